//! Checkpoints: the token's word for where the audit log stood.
//!
//! The chain of hashes shows that a log is one piece, but whoever owns the disk can write another piece. A checkpoint is a
//! COSE_Sign1 by the audit key, which never leaves the token: rows before it can no longer be exchanged without the token.
//! The signed payload is
//!
//! ```cddl
//! checkpoint = { 0: tstr               ; server name of the box
//!              , 1: uint               ; number of the last row
//!              , 2: bstr .size 32      ; its hash
//!              , 3: uint }             ; when (milliseconds since 1970)
//! ```
//!
//! An audit key vouches for its successor: a row with the action [`KEY_ROTATED`] names the new key, and a checkpoint of a
//! trusted key at or after that row passes the trust on ([`Vouched`]).

use std::collections::BTreeSet;

use minicbor::{Decode, Encode};
use ruma::{OwnedServerName, ServerName};

use super::{Row, Tip};
use crate::{
    cbor,
    cose::{self, KeyId, SignError},
    digest::Sha256,
    limits::CHECKPOINT_BYTES_MAX,
    sign::{KeyRole, PublicKey, Signature, SigningRequest, context},
    time::Millis,
};

/// The action of the row that tells of a key that replaced another one.
pub const KEY_ROTATED: &str = "key.rotate";

/// What a checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Checkpoint {
    /// The box whose log it is.
    #[cbor(n(0), with = "cbor::id")]
    pub server_name: OwnedServerName,
    /// Number of the last row.
    #[n(1)]
    pub row: u64,
    /// Its hash.
    #[n(2)]
    pub hash: Sha256,
    /// When it was signed.
    #[n(3)]
    pub at: Millis,
}

/// Why a checkpoint vouches for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCheckpoint {
    /// Not a signed checkpoint of the one accepted form.
    #[error("a checkpoint of the log is damaged")]
    Malformed,
    /// Signed by a key that is none of those that are trusted.
    #[error("a checkpoint is signed by the key {0}, which nobody vouches for")]
    UnknownKey(KeyId),
    /// The signature is wrong.
    #[error("the signature of a checkpoint is wrong: it was changed after it was signed")]
    Signature,
    /// It is of another row, or of another log.
    #[error("row {0} is not the one that the token signed: rows were exchanged")]
    OtherRow(u64),
}

impl Checkpoint {
    /// Of the end of a log.
    #[must_use]
    pub fn of(server_name: OwnedServerName, tip: Tip, at: Millis) -> Self {
        Self { server_name, row: tip.id, hash: tip.hash, at }
    }

    /// Signs it with the audit key.
    ///
    /// # Errors
    /// If the signer fails, or answers with another key's signature.
    pub fn sign<E>(
        &self,
        key: &PublicKey,
        signer: impl FnOnce(SigningRequest) -> Result<Signature, E>,
    ) -> Result<Vec<u8>, SignError<E>> {
        let payload = cbor::to_bytes(self).map_err(|_| SignError::Encode)?;
        cose::sign(context::CHECKPOINT, key, payload, |tbs| {
            signer(SigningRequest::Checkpoint(tbs.to_vec()))
        })
    }

    /// Reads one that one of these keys signed.
    ///
    /// # Errors
    /// [`BadCheckpoint`].
    pub fn verify<'k>(
        bytes: &[u8],
        keys: impl IntoIterator<Item = &'k PublicKey>,
    ) -> Result<Self, BadCheckpoint> {
        if bytes.len() > CHECKPOINT_BYTES_MAX {
            return Err(BadCheckpoint::Malformed);
        }
        let envelope =
            cose::Unverified::parse(bytes).map_err(|_unsigned| BadCheckpoint::Malformed)?;
        let id = envelope.key_id();
        let key = keys.into_iter().find(|key| KeyId::of(key) == id);
        let key = key.ok_or(BadCheckpoint::UnknownKey(id))?;
        let payload =
            envelope.verify(context::CHECKPOINT, key).map_err(|_wrong| BadCheckpoint::Signature)?;
        cbor::from_bytes(&payload).map_err(|_shape| BadCheckpoint::Malformed)
    }
}

/// How far a token vouches for a log, found out while its rows go by in order.
#[derive(Clone, Debug)]
pub struct Vouched {
    trusted: BTreeSet<PublicKey>,
    /// Keys that a row names as successors and that no checkpoint covers yet.
    heirs: Vec<PublicKey>,
    server_name: Option<OwnedServerName>,
    row: u64,
    at: Millis,
}

impl Vouched {
    /// For a log whose checkpoints these keys may sign, and of this server if that is known.
    #[must_use]
    pub fn new(trusted: BTreeSet<PublicKey>, server_name: Option<OwnedServerName>) -> Self {
        Self { trusted, heirs: Vec::new(), server_name, row: 0, at: Millis(0) }
    }

    /// The number of the last row that the token vouches for, and when it did; `None` if for none.
    #[must_use]
    pub fn up_to(&self) -> Option<(u64, Millis)> {
        (self.row > 0).then_some((self.row, self.at))
    }

    /// The server of the log, once a checkpoint has named it.
    #[must_use]
    pub fn server_name(&self) -> Option<&ServerName> {
        self.server_name.as_deref()
    }

    /// Takes the next row, whose place in the chain was verified.
    pub fn row(&mut self, row: &Row) {
        let details = &row.entry.details;
        let is_audit = details.get("role").is_some_and(|role| role == KeyRole::Audit.as_str());
        if row.entry.action == KEY_ROTATED && is_audit {
            let heir = details.get("public").and_then(|public| public.parse().ok());
            self.heirs.extend(heir);
        }
    }

    /// Takes the checkpoint of a row that just went by.
    ///
    /// # Errors
    /// [`BadCheckpoint`] if it is not a trusted key's word for this very row.
    pub fn checkpoint(&mut self, tip: Tip, bytes: &[u8]) -> Result<(), BadCheckpoint> {
        let checkpoint = Checkpoint::verify(bytes, &self.trusted)?;
        let ours = self.server_name.get_or_insert_with(|| checkpoint.server_name.clone());
        if (checkpoint.row, checkpoint.hash) != (tip.id, tip.hash)
            || checkpoint.server_name != *ours
        {
            return Err(BadCheckpoint::OtherRow(tip.id));
        }
        self.trusted.extend(self.heirs.drain(..));
        (self.row, self.at) = (checkpoint.row, checkpoint.at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use ed25519_dalek::Signer as _;
    use ruma::owned_server_name;

    use super::*;
    use crate::{
        audit::{Entry, append},
        sign::{Algorithm, Policy},
    };

    struct Key(ed25519_dalek::SigningKey, PublicKey);

    fn key(seed: u8) -> Key {
        let secret = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
        let public = PublicKey::new(Algorithm::Ed25519, secret.verifying_key().as_bytes()).unwrap();
        Key(secret, public)
    }

    fn sign(key: &Key, tip: Tip) -> Vec<u8> {
        let policy = Policy { server_name: owned_server_name!("alpha.example") };
        let checkpoint = Checkpoint::of(policy.server_name.clone(), tip, Millis(7));
        let signed = checkpoint.sign(&key.1, |request| {
            let bytes = request.bytes_to_sign(&policy).unwrap();
            Ok::<_, Infallible>(key.0.sign(&bytes).to_bytes().into())
        });
        signed.unwrap()
    }

    fn row(after: Tip, action: &str, details: &[(&str, String)]) -> (Row, Tip) {
        let entry = Entry {
            at: Millis(1),
            actor: "alice".to_owned(),
            evidence: String::new(),
            approvals: vec![],
            action: action.to_owned(),
            subject: String::new(),
            details: details
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone()))
                .collect(),
        };
        let row = append(after, entry);
        let tip = Tip { id: row.id, hash: row.hash };
        (row, tip)
    }

    #[test]
    fn a_checkpoint_vouches_for_its_row_of_its_log() {
        let ours = key(1);
        let trusting = || Vouched::new([ours.1.clone()].into(), None);
        let tip = Tip { id: 9, hash: Sha256([9; 32]) };
        let good = sign(&ours, tip);
        let mut vouched = trusting();
        assert_eq!(vouched.up_to(), None);
        vouched.checkpoint(tip, &good).unwrap();
        assert_eq!(vouched.up_to(), Some((9, Millis(7))));
        assert_eq!(vouched.server_name().unwrap(), "alpha.example");

        for other in [Tip { id: 8, ..tip }, Tip { hash: Sha256([8; 32]), ..tip }] {
            let refused = trusting().checkpoint(other, &good);
            assert_eq!(refused, Err(BadCheckpoint::OtherRow(other.id)));
        }
        let other_box = Some(owned_server_name!("bravo.example"));
        let refused = Vouched::new([ours.1.clone()].into(), other_box).checkpoint(tip, &good);
        assert_eq!(refused, Err(BadCheckpoint::OtherRow(9)));
        for at in 0..good.len() {
            let mut damaged = good.clone();
            damaged[at] ^= 1;
            assert!(trusting().checkpoint(tip, &damaged).is_err(), "byte {at}");
        }
        let stranger = sign(&key(2), tip);
        let refused = trusting().checkpoint(tip, &stranger);
        assert!(matches!(refused, Err(BadCheckpoint::UnknownKey(_))));
    }

    #[test]
    fn a_key_passes_the_trust_on_with_a_checkpoint_over_the_row_that_names_its_heir() {
        let (old, new) = (key(1), key(2));
        let details = [("role", "audit".to_owned()), ("public", new.1.to_string())];
        let (rotated, tip) = row(Tip::default(), KEY_ROTATED, &details);
        let (later, after) = row(tip, "roster.import", &[]);
        let log = |with_old: bool| {
            let mut vouched = Vouched::new([old.1.clone()].into(), None);
            vouched.row(&rotated);
            if with_old {
                vouched.checkpoint(tip, &sign(&old, tip)).unwrap();
            }
            vouched.row(&later);
            vouched.checkpoint(after, &sign(&new, after)).map(|()| vouched.up_to())
        };
        assert_eq!(log(true), Ok(Some((2, Millis(7)))));
        // Anybody can write a row; without the old key's word it is nothing.
        assert!(matches!(log(false), Err(BadCheckpoint::UnknownKey(_))));
    }
}
