//! The code of a first document: given on the command line, or asked for at the console.

use anyhow::bail;
use sallyport_core::{
    digest::Sha256,
    provision::{Code, Document, Trust},
};

use super::Gate;
use crate::{command::provision::Shown, stick::state::Phase};

/// How often somebody may mistype.
const ATTEMPTS: usize = 3;

impl Gate<'_> {
    /// Whether a document may be the first. `approvers` are the officers who signed it.
    pub(super) fn confirm(
        &self,
        document: &Document,
        sha256: Sha256,
        approvers: Vec<String>,
    ) -> anyhow::Result<Trust> {
        if document.unattended {
            return Ok(Trust::Unattended);
        }
        let shown = Shown::of(document, sha256, approvers).pairs();
        let lines = shown.lines().map(str::to_owned).collect();
        self.confirm_code(Code::of(&sha256), "document", lines)?;
        Ok(Trust::Console)
    }

    /// Whether whoever stands at the console has the code of this thing; `lines` say what it is.
    pub(super) fn confirm_code(
        &self,
        code: Code,
        thing: &str,
        mut lines: Vec<String>,
    ) -> anyhow::Result<()> {
        if let Some(typed) = &self.args.confirm {
            if code.is(typed) {
                return Ok(());
            }
            bail!("the code is that of another {thing}: somebody may have swapped the stick");
        }
        if !self.args.ask {
            bail!(
                "nobody can type the code of the {thing} here: use the console of the box, or for a document say `unattended = true` in it"
            );
        }
        let question = "Type the code that the officers brought on paper, or nothing to refuse:";
        for _ in 0..ATTEMPTS {
            let typed = self.state.ask(Phase::Confirm, &lines, question)?;
            if code.is(&typed) {
                return Ok(());
            }
            if typed.trim().is_empty() {
                bail!("it was refused at the console");
            }
            lines.push(format!("That was not the code of this {thing}."));
        }
        bail!("the code was wrong {ATTEMPTS} times: somebody may have swapped the stick")
    }
}
