//! Approvals: other officers' signatures for one command on one thing in one enclave.
//!
//! There is one scheme for all commands. An officer signs a [`Consent`], which names the enclave, the command and the thing by its
//! hash; `sallyctl approve` makes it, on a machine that need not reach the box. The box verifies every approval that comes with a
//! command ([`verify`]), counts officers and not approvals, and refuses the command if one does not count. The signed
//! payload is
//!
//! ```cddl
//! consent = { 0: tstr                  ; server name of the enclave
//!           , 1: tstr                  ; action
//!           , 2: bstr .size 32         ; subject
//!           , 3: uint }                ; when the officer agreed (milliseconds since 1970)
//! ```
//!
//! in a COSE_Sign1 with the context [`context::APPROVAL`].

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use minicbor::{Decode, Encode};
use ruma::{OwnedServerName, ServerName};
use serde::{Deserialize, Serialize};

use crate::{
    cbor,
    cose::{self, KeyId, SignError},
    digest::Sha256,
    incarnation::Incarnation,
    sign::{PublicKey, Signature, SigningRequest, context},
    time::Millis,
};

/// What an officer agrees to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consent {
    /// The enclave whose box gets the command.
    pub enclave: OwnedServerName,
    /// The command, as in the audit log; [`Consent::MASS_LOCK`] and its like.
    pub action: String,
    /// The thing, by a hash.
    pub subject: Sha256,
}

/// A signed [`Consent`]. Text form: base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Approval(String);

/// The officers who approved a command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Approvers(#[n(0)] BTreeSet<KeyId>);

/// Why a command is not approved.
#[derive(Debug, thiserror::Error)]
pub enum Unapproved {
    /// One of the approvals does not count; none may be wrong.
    #[error("approval {number} does not count")]
    Bad {
        /// Its place among those given; the first is 1.
        number: usize,
        /// Why.
        #[source]
        why: NotApproved,
    },
    /// The command is one that nobody approves.
    #[error("this command is one that nobody approves: give it without approvals")]
    NotWanted,
    /// Not enough officers.
    #[error(
        "too few officers approved {what} ({needed} needed, {given} given, {} missing): each of those missing runs \
         `{command}`, and you give the command again with --approval FILE for every approval",
        needed.saturating_sub(*given)
    )]
    TooFew {
        /// The command and the thing, for people.
        what: String,
        /// How many officers must approve.
        needed: usize,
        /// How many did.
        given: usize,
        /// What an officer types to approve.
        command: String,
    },
}

/// Why an approval does not count.
#[derive(Debug, thiserror::Error)]
pub enum NotApproved {
    /// Not base64 of a signed consent.
    #[error("it is damaged: make it again with `sallyctl approve`")]
    Malformed,
    /// The key is none of the officers'.
    #[error("it is signed with the key {0}, which is not an officer's key here")]
    UnknownSigner(KeyId),
    /// The signature is wrong.
    #[error("its signature is wrong: it was changed after it was signed")]
    Signature(#[source] cose::Error),
    /// It is for another enclave, command or thing.
    #[error("it is for {found}, and this command is {wanted}")]
    OtherCommand {
        /// What it is for.
        found: Box<Consent>,
        /// What it should be for.
        wanted: Box<Consent>,
    },
    /// Who made the thing cannot approve it.
    #[error("it is by the officer who signed the roster: ask another one")]
    OwnWork,
}

/// Verifies that each of the approvals is one officer's for just this command and not by `author`, who made the thing; answers who
/// approved. When they agreed does not matter: what they agreed to can be done once, or twice without harm.
///
/// # Errors
/// [`Unapproved::Bad`] names the first approval that does not count.
pub fn verify(
    approvals: &[Approval],
    officers: &[PublicKey],
    author: Option<&PublicKey>,
    wanted: &Consent,
) -> Result<Approvers, Unapproved> {
    let mut approvers = BTreeSet::new();
    for (number, approval) in (1..).zip(approvals) {
        let approver = approval.verify(officers, author, wanted);
        approvers.insert(approver.map_err(|why| Unapproved::Bad { number, why })?);
    }
    Ok(Approvers(approvers))
}

impl Consent {
    /// Importing a roster although it locks more accounts than [`crate::limits::ROSTER_LOCK_PERCENT_MAX`] permits.
    pub const MASS_LOCK: &str = "roster.mass-lock";
    /// Making a bundle for a peer.
    pub const EXPORT: &str = "bundle.export";
    /// Importing a bundle.
    pub const IMPORT: &str = "bundle.import";
    /// Pairing with an enclave.
    pub const PAIR: &str = "peer.add";
    /// Provisioning a box, or changing how it is provisioned.
    pub const PROVISION: &str = "box.provision";
    /// Writing what the box knows of people onto a stick.
    pub const TAKE_OUT: &str = "box.take-out";
    /// Installing the enclave's own card.
    pub const INSTALL_CARD: &str = "card.install";

    /// Installing a version of the system that is older than the floor.
    pub const DOWNGRADE: &str = "update.downgrade";

    /// To an order about the box's own keys, which these names are, in one life of its database: a key is replaced or destroyed once, so the consent is
    /// for nothing afterwards. The action is that of a [`KeyAction`](super::KeyAction).
    #[must_use]
    pub fn to_keys(
        enclave: OwnedServerName,
        incarnation: Incarnation,
        action: &str,
        keys: &[String],
    ) -> Self {
        // No name has a space in it.
        let names = keys.join(" ");
        let parts: [&[u8]; 3] = [b"sallyport/keys/1", &incarnation.0, names.as_bytes()];
        Self { enclave, action: action.to_owned(), subject: Sha256::of_parts(&parts) }
    }

    /// To a roster that locks many accounts; `roster` is the hash of its statement.
    #[must_use]
    pub fn to_mass_lock(enclave: OwnedServerName, roster: Sha256) -> Self {
        Self { enclave, action: Self::MASS_LOCK.to_owned(), subject: roster }
    }

    /// To one export: what the peer has not acknowledged when the bundle of this number is made. After that bundle, or in another
    /// life of the database, the consent is for nothing.
    #[must_use]
    pub fn to_export(
        enclave: OwnedServerName,
        incarnation: Incarnation,
        peer: &ServerName,
        number: u64,
    ) -> Self {
        // Only the last part varies in length.
        let parts: [&[u8]; 4] = [
            b"sallyport/export/1",
            &incarnation.0,
            &number.to_be_bytes(),
            peer.as_str().as_bytes(),
        ];
        Self { enclave, action: Self::EXPORT.to_owned(), subject: Sha256::of_parts(&parts) }
    }

    /// To the import of a bundle; `bundle` is the hash of the whole file.
    #[must_use]
    pub fn to_import(enclave: OwnedServerName, bundle: Sha256) -> Self {
        Self { enclave, action: Self::IMPORT.to_owned(), subject: bundle }
    }

    /// To pairing with the enclave of a card; `card` is the hash of the file.
    #[must_use]
    pub fn to_pairing(enclave: OwnedServerName, card: Sha256) -> Self {
        Self { enclave, action: Self::PAIR.to_owned(), subject: card }
    }

    /// To a provisioning document; `document` is the hash of the file.
    #[must_use]
    pub fn to_provision(enclave: OwnedServerName, document: Sha256) -> Self {
        Self { enclave, action: Self::PROVISION.to_owned(), subject: document }
    }

    /// To an order for activation codes or logs on a stick; `order` is the hash of the file.
    #[must_use]
    pub fn to_take_out(enclave: OwnedServerName, order: Sha256) -> Self {
        Self { enclave, action: Self::TAKE_OUT.to_owned(), subject: order }
    }

    /// To installing the enclave's own card; `card` is the hash of the file.
    #[must_use]
    pub fn to_own_card(enclave: OwnedServerName, card: Sha256) -> Self {
        Self { enclave, action: Self::INSTALL_CARD.to_owned(), subject: card }
    }

    /// To installing a version below the floor; `update` is the hash of the whole file.
    #[must_use]
    pub fn to_downgrade(enclave: OwnedServerName, update: Sha256) -> Self {
        Self { enclave, action: Self::DOWNGRADE.to_owned(), subject: update }
    }

    /// Signs the consent.
    ///
    /// # Errors
    /// If the signer fails, or answers with another key's signature.
    pub fn sign<E>(
        &self,
        at: Millis,
        key: &PublicKey,
        signer: impl FnOnce(SigningRequest) -> Result<Signature, E>,
    ) -> Result<Approval, SignError<E>> {
        let Self { enclave, action, subject } = self.clone();
        let payload = cbor::to_bytes(&Payload { enclave, action, subject, at })
            .map_err(|_| SignError::Encode)?;
        let signed = cose::sign(context::APPROVAL, key, payload, |tbs| {
            signer(SigningRequest::Approval(tbs.to_vec()))
        })?;
        Ok(Approval(STANDARD.encode(signed)))
    }
}

impl std::fmt::Display for Consent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} in {}", self.action, self.subject, self.enclave)
    }
}

impl Approval {
    /// An approval as it stands in a file; whether it counts is found out by [`verify`].
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The text form.
    #[must_use]
    pub fn as_text(&self) -> &str {
        &self.0
    }

    /// What it says that it is for, to sort approvals by; nothing is verified.
    #[must_use]
    pub fn unverified_consent(&self) -> Option<Consent> {
        let bytes = STANDARD.decode(&self.0).ok()?;
        let envelope = cose::Unverified::parse(&bytes).ok()?;
        cbor::from_bytes(envelope.unverified_payload()).ok().map(Payload::consent)
    }

    fn verify(
        &self,
        officers: &[PublicKey],
        author: Option<&PublicKey>,
        wanted: &Consent,
    ) -> Result<KeyId, NotApproved> {
        let bytes = STANDARD.decode(&self.0).map_err(|_| NotApproved::Malformed)?;
        let envelope = cose::Unverified::parse(&bytes).map_err(|_| NotApproved::Malformed)?;
        let key_id = envelope.key_id();
        let key = officers
            .iter()
            .find(|key| KeyId::of(key) == key_id)
            .ok_or(NotApproved::UnknownSigner(key_id))?;
        let payload = envelope.verify(context::APPROVAL, key).map_err(NotApproved::Signature)?;
        let payload: Payload = cbor::from_bytes(&payload).map_err(|_| NotApproved::Malformed)?;
        let found = payload.consent();
        if found != *wanted {
            let (found, wanted) = (Box::new(found), Box::new(wanted.clone()));
            return Err(NotApproved::OtherCommand { found, wanted });
        }
        if author == Some(key) { Err(NotApproved::OwnWork) } else { Ok(key_id) }
    }
}

impl Approvers {
    /// The ids of their keys, for the audit log.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    /// Whether they are as many as a command needs. `what` names the command for people, and `command` is what an officer types.
    ///
    /// # Errors
    /// [`Unapproved::TooFew`] says how many are missing.
    pub fn require(
        &self,
        needed: usize,
        what: impl FnOnce() -> String,
        command: impl FnOnce() -> String,
    ) -> Result<(), Unapproved> {
        let given = self.0.len();
        if given >= needed {
            return Ok(());
        }
        Err(Unapproved::TooFew { what: what(), needed, given, command: command() })
    }
}

/// What is signed.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Payload {
    #[cbor(n(0), with = "cbor::id")]
    enclave: OwnedServerName,
    #[n(1)]
    action: String,
    #[n(2)]
    subject: Sha256,
    #[n(3)]
    at: Millis,
}

impl Payload {
    fn consent(self) -> Consent {
        let Self { enclave, action, subject, at: _ } = self;
        Consent { enclave, action, subject }
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::Signer as _;
    use ruma::{owned_server_name, server_name};

    use super::*;
    use crate::sign::{Algorithm, Policy};

    fn officer(seed: u8) -> (ed25519_dalek::SigningKey, PublicKey) {
        let secret = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
        let key = PublicKey::new(Algorithm::Ed25519, secret.verifying_key().as_bytes()).unwrap();
        (secret, key)
    }

    fn consent() -> Consent {
        Consent::to_mass_lock(owned_server_name!("alpha.example"), Sha256([1; 32]))
    }

    fn approval(consent: &Consent, seed: u8) -> Approval {
        let (secret, key) = officer(seed);
        let policy = Policy { server_name: consent.enclave.clone() };
        let signed = consent.sign(Millis(seed.into()), &key, |request| {
            request.bytes_to_sign(&policy).map(|bytes| secret.sign(&bytes).to_bytes().into())
        });
        signed.unwrap()
    }

    #[test]
    fn only_another_officer_for_this_very_command_counts() {
        let officers = [officer(1).1, officer(2).1];
        let author = Some(&officers[0]);
        let good = approval(&consent(), 2);
        let refused = |approval: Approval| {
            // The second of two: one that is wrong spoils the command.
            let given = [good.clone(), approval];
            match verify(&given, &officers, author, &consent()).unwrap_err() {
                Unapproved::Bad { number: 2, why } => why,
                other => panic!("{other}"),
            }
        };
        assert!(matches!(refused(approval(&consent(), 1)), NotApproved::OwnWork));
        assert!(matches!(refused(approval(&consent(), 3)), NotApproved::UnknownSigner(_)));
        let others = [
            Consent { enclave: owned_server_name!("bravo.example"), ..consent() },
            Consent { action: Consent::EXPORT.to_owned(), ..consent() },
            Consent { subject: Sha256([2; 32]), ..consent() },
        ];
        for other in others {
            let why = refused(approval(&other, 2));
            assert!(matches!(why, NotApproved::OtherCommand { .. }), "{other}");
            assert!(why.to_string().starts_with(&format!("it is for {other}, ")), "{why}");
        }
        for text in ["", "!", "AAAA"] {
            let why = refused(Approval::from_text(text));
            assert!(matches!(why, NotApproved::Malformed), "{text}");
        }
        // Somebody else's signature under an officer's key id.
        let mut forged = STANDARD.decode(good.as_text()).unwrap();
        *forged.last_mut().unwrap() ^= 1;
        let why = refused(Approval::from_text(&STANDARD.encode(forged)));
        assert!(matches!(why, NotApproved::Signature(_)));
    }

    #[test]
    fn officers_are_counted_and_not_approvals() {
        let officers = [officer(1).1, officer(2).1];
        let by = |seeds: &[u8]| {
            let given: Vec<_> = seeds.iter().map(|seed| approval(&consent(), *seed)).collect();
            let approvers = verify(&given, &officers, None, &consent()).unwrap();
            approvers.require(2, || "the roster".to_owned(), || "approve".to_owned())
        };
        by(&[1, 2]).unwrap();
        let says = "too few officers approved the roster (2 needed, 1 given, 1 missing): each of those missing runs `approve`";
        for seeds in [&[2_u8, 2][..], &[1]] {
            let error = by(seeds).unwrap_err().to_string();
            assert!(error.starts_with(says), "{error}");
        }
        assert!(matches!(by(&[]), Err(Unapproved::TooFew { given: 0, .. })));
    }

    #[test]
    fn an_export_is_approved_once() {
        let of = |incarnation: u8, peer, number| {
            let enclave = owned_server_name!("alpha.example");
            Consent::to_export(enclave, Incarnation([incarnation; 16]), peer, number)
        };
        let bravo = server_name!("bravo.example");
        let all = [
            of(1, bravo, 1),
            of(1, bravo, 2),
            of(2, bravo, 1),
            of(1, server_name!("charlie.example"), 1),
        ];
        let subjects: BTreeSet<_> = all.iter().map(|consent| consent.subject).collect();
        assert_eq!(subjects.len(), all.len());
    }

    #[test]
    fn a_consent_to_keys_names_action_keys_and_life_of_the_database() {
        let of = |incarnation: u8, action: &str, keys: &[&str]| {
            let enclave = owned_server_name!("alpha.example");
            let keys: Vec<_> = keys.iter().map(|key| (*key).to_owned()).collect();
            let consent = Consent::to_keys(enclave, Incarnation([incarnation; 16]), action, &keys);
            (consent.action, consent.subject)
        };
        let all = [
            of(1, "key.rotate", &["event:01"]),
            of(2, "key.rotate", &["event:01"]),
            of(1, "key.destroy", &["event:01"]),
            of(1, "key.rotate", &["event:02"]),
            of(1, "key.rotate", &["event:01", "event:02"]),
        ];
        assert_eq!(BTreeSet::from(all.clone()).len(), all.len());
    }

    #[test]
    fn approvals_can_be_sorted_before_anybody_verifies_them() {
        assert_eq!(approval(&consent(), 9).unverified_consent(), Some(consent()));
        assert_eq!(Approval::from_text("AAAA").unverified_consent(), None);
    }
}
