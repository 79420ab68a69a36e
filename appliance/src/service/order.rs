//! Who gives an administrative command, who approved it, and the row that it leaves in the audit log.

use std::collections::BTreeMap;

use sallyport_core::{
    admin::{Approvers, Authority, Consent, Unapproved, verify},
    audit::Entry,
    limits::AUDIT_ERROR_CHARS_MAX,
    sign::PublicKey,
    time::Millis,
};

/// A command of a person, as the box got it. Nothing was verified yet.
#[derive(Clone, Debug)]
pub struct Order {
    /// Who says that they give it, and what others signed for it.
    pub authority: Authority,
    /// What the box saw of them itself.
    pub evidence: String,
    /// When.
    pub now: Millis,
}

/// An order with which every approval counts. There is no other way to a row for a command that is carried out, so none
/// can forget to verify them.
#[derive(Clone, Debug)]
pub struct Mandate {
    order: Order,
    approvers: Approvers,
}

impl Order {
    /// For a command that officers may approve, and perhaps must: see [`Mandate::approvers`]. `author` made the thing
    /// and cannot approve it.
    ///
    /// # Errors
    /// If an approval does not count.
    pub fn approved(
        &self,
        officers: &[PublicKey],
        author: Option<&PublicKey>,
        wanted: &Consent,
    ) -> Result<Mandate, Unapproved> {
        let approvers = verify(&self.authority.approvals, officers, author, wanted)?;
        Ok(Mandate { order: self.clone(), approvers })
    }

    /// For a command that nobody approves.
    ///
    /// # Errors
    /// If there are approvals all the same: nobody knows what they are for.
    pub fn alone(&self) -> Result<Mandate, Unapproved> {
        if self.authority.approvals.is_empty() {
            return Ok(Mandate { order: self.clone(), approvers: Approvers::default() });
        }
        Err(Unapproved::NotWanted)
    }

    /// The row for a command that was not carried out, or not to its end. It stands alone: its transaction has no change. Approvals are
    /// not in it: they may be what was wrong.
    #[must_use]
    pub fn failure(&self, action: &str, subject: &str, error: &str) -> Entry {
        let error = error.chars().take(AUDIT_ERROR_CHARS_MAX).collect();
        entry(self, Vec::new(), &format!("{action}.failed"), subject, [("error", error)])
    }
}

impl Mandate {
    /// When the order was given.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.order.now
    }

    /// Who approved.
    #[must_use]
    pub fn approvers(&self) -> &Approvers {
        &self.approvers
    }

    /// The row for the audit log. The command appends it in its own transaction.
    #[must_use]
    pub fn entry(
        &self,
        action: &str,
        subject: impl ToString,
        details: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Entry {
        entry(&self.order, self.approvers.names(), action, subject, details)
    }
}

fn entry(
    order: &Order,
    approvals: Vec<String>,
    action: &str,
    subject: impl ToString,
    details: impl IntoIterator<Item = (&'static str, String)>,
) -> Entry {
    let details: BTreeMap<String, String> =
        details.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Entry {
        at: order.now,
        actor: order.authority.actor.clone(),
        evidence: order.evidence.clone(),
        approvals,
        action: action.to_owned(),
        subject: subject.to_string(),
        details,
    }
}
