//! Approvals: a second person's signature for one command on one thing in one enclave.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use minicbor::{Decode, Encode};
use ruma::OwnedServerName;
use serde::{Deserialize, Serialize};

use crate::{
    cbor,
    cose::{self, KeyId, SignError},
    digest::Sha256,
    sign::{PublicKey, Signature, SigningRequest, context},
    time::Millis,
};

/// What an officer agrees to.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Consent {
    /// The enclave whose box gets the command.
    #[cbor(n(0), with = "cbor::id")]
    pub enclave: OwnedServerName,
    /// The command: [`Consent::MASS_LOCK`].
    #[n(1)]
    pub action: String,
    /// The thing, by its hash.
    #[n(2)]
    pub subject: Sha256,
    /// When the officer agreed.
    #[n(3)]
    pub at: Millis,
}

/// A signed [`Consent`]. Text form: base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Approval(String);

/// Why an approval does not count.
#[derive(Debug, thiserror::Error)]
pub enum NotApproved {
    /// Not base64 of a signed consent.
    #[error("an approval is damaged: make it again with `sallyctl roster approve`")]
    Malformed,
    /// The key is none of the officers'.
    #[error("an approval is signed with the key {0}, which is not an officer's key here")]
    UnknownSigner(KeyId),
    /// The signature is wrong.
    #[error("the signature of an approval is wrong: it was changed after it was signed")]
    Signature(#[source] cose::Error),
    /// It is for another enclave, command or thing.
    #[error("an approval is for {action} of {subject} in {enclave}, which is not this command")]
    OtherCommand {
        /// The enclave that it names.
        enclave: OwnedServerName,
        /// The command that it names.
        action: String,
        /// The thing that it names.
        subject: Sha256,
    },
    /// Who made the thing cannot approve it.
    #[error("an approval is by the officer who signed the roster: ask another one")]
    OwnWork,
}

impl Consent {
    /// Importing a roster although it locks more accounts than [`crate::limits::ROSTER_LOCK_PERCENT_MAX`] permits.
    pub const MASS_LOCK: &str = "roster.mass-lock";

    /// Signs the consent.
    ///
    /// # Errors
    /// If the signer fails, or answers with another key's signature.
    pub fn sign<E>(
        &self,
        key: &PublicKey,
        signer: impl FnOnce(SigningRequest) -> Result<Signature, E>,
    ) -> Result<Approval, SignError<E>> {
        let payload = cbor::to_bytes(self).map_err(|_| SignError::Encode)?;
        let signed = cose::sign(context::APPROVAL, key, payload, |tbs| {
            signer(SigningRequest::Approval(tbs.to_vec()))
        })?;
        Ok(Approval(STANDARD.encode(signed)))
    }
}

impl Approval {
    /// An approval as it stands in a file; whether it counts is found out by [`Approval::verify`].
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The text form.
    #[must_use]
    pub fn as_text(&self) -> &str {
        &self.0
    }

    /// Verifies that one of the officers, other than `author`, agreed to just this; answers who. The time of the consent
    /// does not matter.
    ///
    /// # Errors
    /// [`NotApproved`] says why it does not count.
    pub fn verify<'k>(
        &self,
        officers: &'k [PublicKey],
        author: &PublicKey,
        wanted: &Consent,
    ) -> Result<&'k PublicKey, NotApproved> {
        let bytes = STANDARD.decode(&self.0).map_err(|_| NotApproved::Malformed)?;
        let envelope = cose::Unverified::parse(&bytes).map_err(|_| NotApproved::Malformed)?;
        let key_id = envelope.key_id();
        let key = officers
            .iter()
            .find(|key| KeyId::of(key) == key_id)
            .ok_or(NotApproved::UnknownSigner(key_id))?;
        let payload = envelope.verify(context::APPROVAL, key).map_err(NotApproved::Signature)?;
        let consent: Consent = cbor::from_bytes(&payload).map_err(|_| NotApproved::Malformed)?;
        let Consent { enclave, action, subject, at: _ } = consent;
        if (&enclave, &action, subject) != (&wanted.enclave, &wanted.action, wanted.subject) {
            return Err(NotApproved::OtherCommand { enclave, action, subject });
        }
        if key == author { Err(NotApproved::OwnWork) } else { Ok(key) }
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::Signer as _;

    use super::*;
    use crate::sign::{Algorithm, Policy};

    fn officer(seed: u8) -> (ed25519_dalek::SigningKey, PublicKey) {
        let secret = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
        let key = PublicKey::new(Algorithm::Ed25519, secret.verifying_key().as_bytes()).unwrap();
        (secret, key)
    }

    fn consent() -> Consent {
        Consent {
            enclave: "alpha.example".try_into().unwrap(),
            action: Consent::MASS_LOCK.to_owned(),
            subject: Sha256([1; 32]),
            at: Millis(5),
        }
    }

    fn approval(consent: &Consent, seed: u8) -> Approval {
        let (secret, key) = officer(seed);
        let policy = Policy { server_name: consent.enclave.clone() };
        let signed = consent.sign(&key, |request| {
            request.bytes_to_sign(&policy).map(|bytes| secret.sign(&bytes).to_bytes().into())
        });
        signed.unwrap()
    }

    #[test]
    fn only_another_officer_for_this_very_command_counts() {
        let officers = [officer(1).1, officer(2).1];
        let author = &officers[0];
        let verify = |approval: &Approval, wanted: &Consent| {
            approval.verify(&officers, author, wanted).cloned()
        };
        let wanted = Consent { at: Millis(9), ..consent() };
        assert_eq!(verify(&approval(&consent(), 2), &wanted).unwrap(), officers[1]);
        assert!(matches!(verify(&approval(&consent(), 1), &wanted), Err(NotApproved::OwnWork)));
        assert!(matches!(
            verify(&approval(&consent(), 3), &wanted),
            Err(NotApproved::UnknownSigner(_))
        ));
        let others = [
            Consent { enclave: "bravo.example".try_into().unwrap(), ..consent() },
            Consent { action: "bundle.export".to_owned(), ..consent() },
            Consent { subject: Sha256([2; 32]), ..consent() },
        ];
        for other in others {
            let refused = verify(&approval(&other, 2), &wanted);
            assert!(matches!(refused, Err(NotApproved::OtherCommand { .. })), "{other:?}");
        }
        for text in ["", "!", "AAAA"] {
            let refused = verify(&Approval::from_text(text), &wanted);
            assert!(matches!(refused, Err(NotApproved::Malformed)), "{text}");
        }
    }
}
