//! The code of a first document: given on the command line, or asked for at the console.

use anyhow::bail;
use sallyport_core::{
    digest::Sha256,
    provision::{Code, Document, Trust},
};

use super::Gate;
use crate::command::provision::Shown;

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
        let code = Code::of(&sha256);
        if let Some(typed) = &self.args.confirm {
            if code.is(typed) {
                return Ok(Trust::Console);
            }
            bail!("the code is that of another document: somebody may have swapped the stick");
        }
        if !self.args.ask {
            bail!(
                "nobody can type the code of the document here: use the console of the box, or say `unattended = true` in the document"
            );
        }
        let shown = Shown::of(document, sha256, approvers).pairs();
        let mut lines: Vec<String> = shown.lines().map(str::to_owned).collect();
        let question = "Type the code that the officers brought on paper, or nothing to refuse:";
        for _ in 0..ATTEMPTS {
            let typed = self.state.ask(&lines, question)?;
            if code.is(&typed) {
                return Ok(Trust::Console);
            }
            if typed.trim().is_empty() {
                bail!("it was refused at the console");
            }
            lines.push("That was not the code of this document.".to_owned());
        }
        bail!("the code was wrong {ATTEMPTS} times: somebody may have swapped the stick")
    }
}
