//! Provisioning documents: what makes a machine the box of an enclave.
//!
//! A document is a text ([`Document`], TOML) with approvals of officers ([`crate::admin::Approval`]) beside it. They sign the SHA-256 of
//! the text, so there is one scheme for everything that officers sign.
//!
//! # Whom a box believes
//! - A box that **is** provisioned takes a document of its own enclave whose serial is higher than that in force, approved by as many
//!   officers as the document *in force* says, counted among the officers *in force* ([`Provisioned::admit`]). So a change of the
//!   officers is approved by those before.
//! - A box that **is not** knows no key. The document must be approved by as many of the officers that it names itself as it says
//!   ([`first`]): that shows that it is whole and that these people hold their keys, and not that they are the right people. For that,
//!   somebody at the console types the [`Code`] that the officers' own machine printed. It is made of the document, so a document that
//!   somebody else put onto the stick has another.
//! - Where nobody stands at a console, the document may say `unattended = true`. Then whoever brings the first stick owns the box,
//!   and [`Trust::Unattended`] is shown for as long as the box lives, so that somebody compares the fingerprint of the enclave CA.

mod code;
mod document;
mod order;
mod record;
mod token;

pub use code::Code;
pub use document::{Document, Faulty, Interface, Network, NetworkAddress, Officers, Tls, TlsKey};
pub use order::Order;
pub use record::{NotARecord, Provisioned, Trust};
pub use token::{NotAKind, Token, TokenKind, TokenPin};

use crate::{
    admin::{Approval, Approvers, Consent, Unapproved, verify},
    digest::Sha256,
    sign::PublicKey,
};

/// Why a document is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Too few approvals, or one that does not count.
    #[error(transparent)]
    Unapproved(#[from] Unapproved),
    /// It is for another enclave.
    #[error("the document is for {found}, and this is the box of {own}")]
    OtherEnclave {
        /// The enclave it is for.
        found: String,
        /// This box's.
        own: String,
    },
    /// Older than what is in force, or another of the same serial.
    #[error("the document has the serial {found}, and {in_force} is in force: raise it")]
    Old {
        /// Its serial.
        found: u64,
        /// The serial in force.
        in_force: u64,
    },
}

/// A document for a box that knows no key yet: approved by as many of its own officers as it says itself.
///
/// # Errors
/// [`Refused::Unapproved`].
pub fn first(
    document: &Document,
    sha256: Sha256,
    approvals: &[Approval],
) -> Result<Approvers, Refused> {
    approved(document, sha256, approvals, &document.officers)
}

fn approved(
    document: &Document,
    sha256: Sha256,
    approvals: &[Approval],
    officers: &Officers,
) -> Result<Approvers, Refused> {
    let wanted = Consent::to_provision(document.server_name.clone(), sha256);
    let keys: &[PublicKey] = &officers.trusted_keys;
    let approvers = verify(approvals, keys, None, &wanted)?;
    approvers.require(
        usize::from(officers.provision_approvals),
        || format!("the provisioning document {} of {}", document.serial, document.server_name),
        || "sallyctl provision sign DOCUMENT --token TOKEN --out APPROVAL".to_owned(),
    )?;
    Ok(approvers)
}

#[cfg(test)]
mod tests;
