//! Who gives an administrative command, and the row that it leaves in the audit log.

use std::collections::BTreeMap;

use sallyport_core::{admin::Authority, audit::Entry, limits::AUDIT_ERROR_CHARS_MAX, time::Millis};

/// A command of a person, as the box got it.
#[derive(Clone, Debug)]
pub struct Order {
    /// Who says that they give it, and what others signed for it.
    pub authority: Authority,
    /// What the box saw of them itself.
    pub evidence: String,
    /// When.
    pub now: Millis,
}

impl Order {
    /// The row for the audit log. The command appends it in its own transaction.
    #[must_use]
    pub fn entry(
        &self,
        action: &str,
        subject: impl ToString,
        details: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Entry {
        let details: BTreeMap<String, String> =
            details.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Entry {
            at: self.now,
            actor: self.authority.actor.clone(),
            evidence: self.evidence.clone(),
            approvals: Vec::new(),
            action: action.to_owned(),
            subject: subject.to_string(),
            details,
        }
    }

    /// The row for a command that was not carried out, or not to its end. It stands alone: its transaction has no change.
    #[must_use]
    pub fn failure(&self, action: &str, subject: &str, error: &str) -> Entry {
        let error = error.chars().take(AUDIT_ERROR_CHARS_MAX).collect();
        self.entry(&format!("{action}.failed"), subject, [("error", error)])
    }
}
