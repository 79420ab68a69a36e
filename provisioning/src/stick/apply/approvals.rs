//! The approvals that lie beside the things on a stick.

use sallyport_core::{
    admin::{Approval, Consent},
    limits::ADMIN_AUTHORITY_BYTES_MAX,
};

use super::Gate;
use crate::stick::{Folder, state::Report};

/// Approvals of one folder, sorted by what they say they are for. Whether they count the box finds out.
pub(super) struct Lying(Vec<(String, Approval, Consent)>);

impl Lying {
    pub(super) fn read(gate: &Gate<'_>, folder: Folder, report: &mut Report) -> Self {
        let mut lying = Vec::new();
        for file in gate.inventory.of(folder, "approval") {
            let read = || {
                let text = gate.content(file, ADMIN_AUTHORITY_BYTES_MAX)?;
                let approval = Approval::from_text(&String::from_utf8_lossy(&text));
                let consent = approval.unverified_consent();
                let consent = consent.ok_or_else(|| anyhow::anyhow!("not an approval, or damaged"));
                Ok::<_, anyhow::Error>((file.shown(), approval, consent?))
            };
            match read() {
                Ok(found) => lying.push(found),
                Err(why) => report.refused(&file.shown(), &why),
            }
        }
        Self(lying)
    }

    /// Those for this thing.
    pub(super) fn for_this(&self, wanted: &Consent) -> Vec<Approval> {
        let fitting = self.0.iter().filter(|(_, _, consent)| consent == wanted);
        fitting.map(|(_, approval, _)| approval.clone()).collect()
    }

    /// Names those that are for none of these things: a mistake that must not pass in silence.
    pub(super) fn tell_of_others(&self, things: &[Consent], report: &mut Report) {
        for (name, _, consent) in &self.0 {
            if !things.contains(consent) {
                report.done(format!("{name}: an approval for {consent}, which is not there"));
            }
        }
    }
}
