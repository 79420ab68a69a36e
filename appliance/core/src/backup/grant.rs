//! Permission for one machine to open certain backups: how a restore happens where no recovery officer's key may come.
//!
//! A new machine makes a key of its own ([`RecoveryKey::x_wing`]) and shows the public half: its *request*. At the officers' desk the recovery key opens the
//! backups, and their content keys are wrapped for the machine: the *grant*. Each is bound to the machine's key and to the id of its backup, and
//! opens nothing else.
//!
//! ```cddl
//! grant   = { 0: tstr                  ; server name of the enclave
//!           , 1: bstr .size 8          ; id of the machine's key
//!           , ? 2: tstr                ; fingerprint of the enclave root in words; absent: nobody vouches for the backups
//!           , 3: [1*64 granted] }      ; a full backup and those that follow it, in order
//! granted = { 0: bstr .size 32         ; id of the backup
//!           , 1: stanza }              ; its content key
//! ```
//!
//! A grant is signed by nobody: whoever makes one for backups of the enclave has a recovery key, and the code ([`crate::provision::Code`] of
//! [`Grant::sha256`]) that somebody types at the machine's console says that this is the one which the desk made. Likewise the desk is given the code of the request.

use minicbor::{Decode, Encode};
use ruma::OwnedServerName;
use zeroize::Zeroizing;

use super::{BackupId, Error, RecoveryKey, Stanza, WriteError};
use crate::{
    bundle::{PrivateHalf, hpke::RANDOMNESS_BYTES},
    cbor,
    cose::KeyId,
    digest::Sha256,
    limits::{BACKUP_CHAIN_MAX, RESTORE_FINGERPRINT_BYTES_MAX, RESTORE_GRANT_BYTES_MAX},
};

/// Backups with their content keys.
pub type ContentKeys = Vec<(BackupId, Zeroizing<[u8; 32]>)>;

/// Permission for one machine to open certain backups.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Grant {
    /// The enclave.
    #[cbor(n(0), with = "cbor::id")]
    pub enclave: OwnedServerName,
    /// The machine's key.
    #[n(1)]
    pub to: KeyId,
    /// The fingerprint of the enclave root, as the desk compared it; `None` if the box had no card and the desk took it nevertheless.
    #[n(2)]
    pub fingerprint: Option<String>,
    /// A full backup and those that follow it, in order.
    #[n(3)]
    pub backups: Vec<Granted>,
}

/// One backup of a grant.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Granted {
    /// Which one.
    #[n(0)]
    pub id: BackupId,
    /// Its content key, for the machine.
    #[n(1)]
    pub stanza: Stanza,
}

impl Grant {
    /// Grants backups, each with its content key, to the machine that made this request. `randomness` gives each its own bytes, used once.
    ///
    /// # Errors
    /// If the machine's key cannot be used, or there is no randomness.
    pub fn new<E: Into<WriteError>>(
        enclave: OwnedServerName,
        fingerprint: Option<String>,
        request: &RecoveryKey,
        content_keys: &[(BackupId, Zeroizing<[u8; 32]>)],
        mut randomness: impl FnMut() -> Result<[u8; RANDOMNESS_BYTES], E>,
    ) -> Result<Self, WriteError> {
        let mut backups = Vec::with_capacity(content_keys.len());
        for (id, content_key) in content_keys {
            let randomness = randomness().map_err(Into::into)?;
            let stanza = Stanza::wrap(request, content_key, &info(*id), &randomness)?;
            backups.push(Granted { id: *id, stanza });
        }
        Ok(Self { enclave, to: request.id(), fingerprint, backups })
    }

    /// The bytes of its file.
    ///
    /// # Errors
    /// Never for a grant that was made here.
    pub fn encode(&self) -> Result<Vec<u8>, cbor::Error> {
        cbor::to_bytes(self)
    }

    /// Reads its file.
    ///
    /// # Errors
    /// [`Error::Grant`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > RESTORE_GRANT_BYTES_MAX {
            return Err(Error::Grant);
        }
        let grant: Self = cbor::from_bytes(bytes).map_err(|_| Error::Grant)?;
        let words = grant.fingerprint.as_deref().unwrap_or_default();
        let sound = (1..=BACKUP_CHAIN_MAX).contains(&grant.backups.len())
            && words.len() <= RESTORE_FINGERPRINT_BYTES_MAX;
        if sound { Ok(grant) } else { Err(Error::Grant) }
    }

    /// What its code is made of.
    #[must_use]
    pub fn sha256(bytes: &[u8]) -> Sha256 {
        Sha256::of_parts(&[b"sallyport/restore-grant/1|", bytes])
    }

    /// What the code of a machine's request is made of.
    #[must_use]
    pub fn request_sha256(request: &RecoveryKey) -> Sha256 {
        Sha256::of_parts(&[b"sallyport/restore-request/1|", request.public()])
    }

    /// The content keys, for the machine that it was made for.
    ///
    /// # Errors
    /// [`Error::OtherRequest`], or [`Error::WrongKey`] if something in it was changed.
    pub fn open(&self, seed: &[u8; 32]) -> Result<ContentKeys, Error> {
        let own = RecoveryKey::x_wing(seed);
        if self.to != own.id() {
            return Err(Error::OtherRequest);
        }
        let mut keys = Vec::with_capacity(self.backups.len());
        for Granted { id, stanza } in &self.backups {
            if stanza.key != own.id() || stanza.suite != own.suite().code() {
                return Err(Error::Grant);
            }
            let seed = |_: PrivateHalf<'_>| Ok::<_, Error>(Zeroizing::new(*seed));
            keys.push((*id, stanza.unwrap(&own, &info(*id), seed)?));
        }
        Ok(keys)
    }
}

/// What a content key is bound to.
fn info(id: BackupId) -> Vec<u8> {
    format!("sallyport/restore-grant/1|{id}").into_bytes()
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;

    const SEED: [u8; 32] = [4; 32];

    fn grant() -> Grant {
        let machine = RecoveryKey::x_wing(&SEED);
        let keys = [1, 2].map(|n| (BackupId(Sha256([n; 32])), Zeroizing::new([n + 10; 32])));
        let words = Some("eight words".to_owned());
        let enclave = server_name!("alpha.test").to_owned();
        let mut next = 0;
        let randomness = || {
            next += 1;
            Ok::<_, WriteError>([next; RANDOMNESS_BYTES])
        };
        Grant::new(enclave, words, &machine, &keys, randomness).unwrap()
    }

    #[test]
    fn a_grant_opens_for_the_machine_that_asked() {
        let grant = grant();
        let bytes = grant.encode().unwrap();
        let again = Grant::parse(&bytes).unwrap();
        assert_eq!(again, grant);
        let keys = again.open(&SEED).unwrap();
        let opened: Vec<_> = keys.iter().map(|(id, key)| (id.0.0[0], key[0])).collect();
        assert_eq!(opened, [(1, 11), (2, 12)]);
        assert!(matches!(again.open(&[5; 32]), Err(Error::OtherRequest)));
    }

    #[test]
    fn a_content_key_is_bound_to_its_backup() {
        let mut exchanged = grant();
        let [first, second] = exchanged.backups.as_mut_slice() else { unreachable!() };
        std::mem::swap(&mut first.id, &mut second.id);
        assert!(matches!(exchanged.open(&SEED), Err(Error::WrongKey)));
    }

    #[test]
    fn what_is_no_grant_is_refused() {
        let bytes = grant().encode().unwrap();
        for end in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            assert!(matches!(Grant::parse(&bytes[..end]), Err(Error::Grant)), "{end}");
        }
        let mut empty = grant();
        empty.backups.clear();
        assert!(matches!(Grant::parse(&empty.encode().unwrap()), Err(Error::Grant)));
        let mut long = grant();
        long.fingerprint = Some("x".repeat(RESTORE_FINGERPRINT_BYTES_MAX + 1));
        assert!(matches!(Grant::parse(&long.encode().unwrap()), Err(Error::Grant)));
        let mut machines = bytes.clone();
        machines.resize(RESTORE_GRANT_BYTES_MAX + 1, 0);
        assert!(matches!(Grant::parse(&machines), Err(Error::Grant)));
    }

    #[test]
    fn codes_are_of_one_request_and_one_grant() {
        let request = |seed| Grant::request_sha256(&RecoveryKey::x_wing(&[seed; 32]));
        assert_ne!(request(1), request(2));
        let bytes = grant().encode().unwrap();
        assert_ne!(Grant::sha256(&bytes), Grant::sha256(&bytes[1..]));
    }
}
