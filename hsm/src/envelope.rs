//! Envelope mode: keys that a token cannot hold, but keeps.
//!
//! Many tokens know no Ed25519 (smart cards, FIPS firmware, TPMs), some no ECDH. For those roles that the token cannot serve there are
//! *working keys*: made in software, wrapped by the token's storage key, certified by its courier key, and stored in a file
//! of the box. A working key is opened once, when it is first needed and the token is there; from then on it is in locked memory
//! ([`crate::locked`]) and works while the token is gone.
//!
//! Which roles those are is known when the token was open once: opening is never waited for until a key is made or used.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use sallyport_core::{
    cose::{KeyId, SignError},
    custody::ModeChoice,
    sign::{Algorithm, Policy, PublicKey, Signature, SigningRequest, verify},
    time::Millis,
    working_key::{Unverified, VERSION, WorkingKey},
};

use crate::{
    Caps, Error, Health, KeyKind, KeyName, KeyRole, Mode, P256_POINT_BYTES, Pin, Secret32, Token,
    keypair, locked::Locked,
};

mod file;
#[cfg(test)]
mod tests;

use file::{Entry, WorkingKeys};

/// A token with working keys for what it cannot do itself.
pub struct EnvelopeToken {
    inner: Arc<dyn Token>,
    choice: ModeChoice,
    policy: Policy,
    file: WorkingKeys,
    /// Held while a key is opened, made or destroyed, but not while one signs.
    changing: Mutex<()>,
    known: Mutex<Known>,
    announced: OnceLock<()>,
}

#[derive(Default)]
struct Known {
    opened: BTreeMap<KeyName, Arc<Opened>>,
    /// Keys that are not in the file. Names are random, so they never will be.
    elsewhere: BTreeSet<KeyName>,
}

/// A working key that can be used.
struct Opened {
    algorithm: Algorithm,
    public: PublicKey,
    secret: Locked,
    /// What its certificate says, and which key of the token signed that.
    certified: WorkingKey,
    signer: KeyName,
}

impl EnvelopeToken {
    /// Adds working keys to a token; they are stored in a file `working-keys` in `folder`.
    pub fn new(inner: Arc<dyn Token>, choice: ModeChoice, folder: &Path, policy: Policy) -> Self {
        Self {
            inner,
            choice,
            policy,
            file: WorkingKeys::new(folder),
            changing: Mutex::default(),
            known: Mutex::default(),
            announced: OnceLock::new(),
        }
    }

    /// Whether new keys of a role are working keys; `None` until the token was open once.
    fn is_working(&self, role: KeyRole) -> Option<bool> {
        let caps = self.inner.caps();
        match (role, self.choice) {
            (KeyRole::Event | KeyRole::CourierEncryption, ModeChoice::Direct) => Some(false),
            (KeyRole::Event, ModeChoice::Envelope) => Some(true),
            (KeyRole::Event, ModeChoice::Auto) => {
                (caps != Caps::default()).then_some(!caps.ed25519)
            }
            (KeyRole::CourierEncryption, ModeChoice::Auto | ModeChoice::Envelope) => {
                (caps != Caps::default()).then_some(!caps.p256_agree)
            }
            _ => Some(false),
        }
    }

    /// Gives a working key, opened; `None` if it is a key of the token.
    fn working(&self, name: &KeyName) -> Result<Option<Arc<Opened>>, Error> {
        if !can_be_working(name.role()) {
            return Ok(None);
        }
        if let Some(answer) = self.remembered(name) {
            return Ok(answer);
        }
        let _changing = lock(&self.changing);
        if let Some(answer) = self.remembered(name) {
            return Ok(answer);
        }
        let Some(entry) = self.file.find(name)? else {
            lock(&self.known).elsewhere.insert(name.clone());
            return Ok(None);
        };
        let opened = Arc::new(self.open(&entry)?);
        log::info!(key:% = name; "a working key is open: it is in the memory of the box until the box is restarted");
        lock(&self.known).opened.insert(name.clone(), Arc::clone(&opened));
        Ok(Some(opened))
    }

    fn remembered(&self, name: &KeyName) -> Option<Option<Arc<Opened>>> {
        let known = lock(&self.known);
        if known.elsewhere.contains(name) {
            return Some(None);
        }
        known.opened.get(name).map(|opened| Some(Arc::clone(opened)))
    }

    /// Has the token open a working key, and believes nothing of it that the token has not certified.
    fn open(&self, entry: &Entry) -> Result<Opened, Error> {
        let unusable = |why: &str| Error::WorkingKey {
            key: entry.name.clone(),
            path: self.file.path().to_owned(),
            why: why.to_owned(),
        };
        let invalid = |error: sallyport_core::working_key::Invalid| unusable(&error.to_string());
        let certificate = Unverified::parse(&entry.certificate).map_err(invalid)?;
        let (signer, courier) = self
            .courier(certificate.signer())?
            .ok_or_else(|| unusable("the key that certified it is not in this token"))?;
        let certified = certificate.verify(&courier).map_err(invalid)?;
        if certified.server_name != self.policy.server_name
            || certified.name != entry.name.to_string()
        {
            return Err(unusable("it was certified for another server or as another key"));
        }
        let algorithm = certified.public.algorithm();
        if !KeyKind::from(algorithm).suits(entry.name.role()) {
            return Err(unusable("it is not of the kind that its role needs"));
        }
        let wrapping: KeyName = certified
            .wrapped_by
            .parse()
            .map_err(|_no_name| unusable("its certificate names no storage key"))?;
        let aad = aad(&certified);
        let secret = match self.inner.unwrap(&wrapping, &entry.wrapped, &aad) {
            Err(Error::Damaged | Error::WrongRole { .. }) => {
                return Err(unusable("the token cannot decrypt it"));
            }
            Err(Error::NoSuchKey(_)) => {
                return Err(unusable("the key that wraps it is not in this token"));
            }
            other => other?,
        };
        if keypair::public_key(algorithm, &secret).as_ref() != Some(&certified.public) {
            return Err(unusable("it is another key than the certified one"));
        }
        let secret = Locked::new(&secret)?;
        Ok(Opened { algorithm, public: certified.public.clone(), secret, certified, signer })
    }

    /// The courier key of the token with this id.
    fn courier(&self, id: KeyId) -> Result<Option<(KeyName, PublicKey)>, Error> {
        for name in self.inner.keys()?.into_iter().filter(|key| key.role() == KeyRole::Courier) {
            let public = self.inner.public_key(&name)?;
            if KeyId::of(&public) == id {
                return Ok(Some((name, public)));
            }
        }
        Ok(None)
    }

    /// Makes a working key. It is in the file before anybody hears of it.
    fn make(&self, role: KeyRole, kind: KeyKind) -> Result<KeyName, Error> {
        let algorithm = kind.algorithm().ok_or(Error::WrongKind { role, kind })?;
        let mut id = [0; KeyName::ID_BYTES];
        getrandom::fill(&mut id).map_err(Error::Random)?;
        let name = KeyName::new(role, id);
        let secret = keypair::fresh(algorithm)?;
        let public = keypair::public_key(algorithm, &secret)
            .ok_or_else(|| Error::NoSuchKey(name.clone()))?;
        let _changing = lock(&self.changing);
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let storage = self.key_of_the_token(KeyRole::Storage, None)?;
        let said = WorkingKey {
            version: VERSION,
            server_name: self.policy.server_name.clone(),
            name: name.to_string(),
            public,
            created: Millis(u64::try_from(created.as_millis()).unwrap_or_default()),
            wrapped_by: storage.to_string(),
        };
        let courier = self.key_of_the_token(KeyRole::Courier, None)?;
        let entry = self.seal(&name, &said, &secret, &storage, &courier)?;
        // What the token does not open again must not become a key.
        let opened = Arc::new(self.open(&entry)?);
        self.file.change(|entries| {
            entries.push(entry);
            Ok(())
        })?;
        lock(&self.known).opened.insert(name.clone(), opened);
        log::info!(key:% = name, wrapped_by:% = storage, certified_by:% = courier; "a working key was made");
        Ok(name)
    }

    fn seal(
        &self,
        name: &KeyName,
        said: &WorkingKey,
        secret: &Secret32,
        storage: &KeyName,
        courier: &KeyName,
    ) -> Result<Entry, Error> {
        let wrapped = self.inner.wrap(storage, secret, &aad(said))?;
        let public = self.inner.public_key(courier)?;
        let sign =
            |bytes: &[u8]| self.inner.sign(courier, &SigningRequest::WorkingKey(bytes.to_vec()));
        let certificate = said.certify(&public, sign).map_err(|error| match error {
            SignError::Signer(error) => error,
            SignError::WrongKey | SignError::Encode => Error::BadSignature(courier.clone()),
        })?;
        Ok(Entry { name: name.clone(), wrapped, certificate })
    }

    /// A key of the token, other than `not`; makes one if there is none.
    fn key_of_the_token(&self, role: KeyRole, not: Option<&KeyName>) -> Result<KeyName, Error> {
        let found = self.inner.keys()?.into_iter();
        if let Some(name) = found.filter(|key| key.role() == role).find(|key| Some(key) != not) {
            return Ok(name);
        }
        let kind = self.inner.kind_for(role).ok_or_else(|| {
            Error::Unsupported(match role {
                KeyRole::Storage => "AES-KW, ECDH on P-256 or RSA-OAEP".to_owned(),
                _ => "Ed25519 or ECDSA on P-256".to_owned(),
            })
        })?;
        self.inner.generate(role, kind)
    }

    /// Before a key of the token is destroyed: has another one of its role wrap or certify what it did.
    fn hand_over(&self, from: &KeyName) -> Result<(), Error> {
        let mut moved = Vec::new();
        for entry in self.file.read()? {
            let opened = self.working(&entry.name)?;
            let opened = opened.ok_or_else(|| Error::NoSuchKey(entry.name.clone()))?;
            let storage: Option<KeyName> = opened.certified.wrapped_by.parse().ok();
            let storage = storage.ok_or(Error::Damaged)?;
            let courier = opened.signer.clone();
            if storage != *from && courier != *from {
                continue;
            }
            let successor = self.inner.keys()?.into_iter();
            let successor =
                successor.filter(|key| key.role() == from.role()).find(|key| key != from);
            let successor = successor
                .ok_or_else(|| Error::KeyInUse { key: from.clone(), by: entry.name.clone() })?;
            let choose = |old| if old == *from { successor.clone() } else { old };
            let (storage, courier) = (choose(storage), choose(courier));
            let said = WorkingKey { wrapped_by: storage.to_string(), ..opened.certified.clone() };
            let secret = Secret32::new(opened.secret.expose());
            moved.push(self.seal(&entry.name, &said, &secret, &storage, &courier)?);
        }
        if moved.is_empty() {
            return Ok(());
        }
        let _changing = lock(&self.changing);
        let again: Vec<_> = moved.iter().map(|entry| self.open(entry)).collect::<Result<_, _>>()?;
        self.file.change(|entries| {
            for entry in entries {
                if let Some(new) = moved.iter().find(|new| new.name == entry.name) {
                    *entry = new.clone();
                }
            }
            Ok(())
        })?;
        let mut known = lock(&self.known);
        for (entry, opened) in moved.iter().zip(again) {
            known.opened.insert(entry.name.clone(), Arc::new(opened));
        }
        Ok(())
    }

    /// Says once in the log where event keys live: as soon as it is known.
    fn announce(&self) {
        if let Some(mode) = self.mode() {
            self.announced.get_or_init(|| {
                log::info!(mode:%; "{}", mode.meaning());
            });
        }
    }
}

impl Opened {
    fn sign(
        &self,
        key: &KeyName,
        request: &SigningRequest,
        policy: &Policy,
    ) -> Result<Signature, Error> {
        if key.role() != request.role() {
            return Err(Error::WrongRole { key: key.clone(), needed: request.role() });
        }
        let bytes = request.bytes_to_sign(policy).map_err(Error::Refused)?;
        let signature = keypair::sign(self.algorithm, self.secret.expose(), &bytes);
        let signature = signature.ok_or_else(|| Error::NoSuchKey(key.clone()))?;
        // A fault of the processor's can give a signature away that tells the key.
        verify(&self.public, &bytes, &signature)
            .map_err(|_mismatch| Error::BadSignature(key.clone()))?;
        Ok(signature)
    }
}

impl Token for EnvelopeToken {
    fn health(&self) -> Health {
        self.inner.health()
    }

    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn mode(&self) -> Option<Mode> {
        let inner = self.inner.mode()?;
        Some(if self.is_working(KeyRole::Event)? { Mode::Envelope } else { inner })
    }

    fn custody(&self, key: &KeyName) -> Result<Mode, Error> {
        if can_be_working(key.role()) && self.file.find(key)?.is_some() {
            return Ok(Mode::Envelope);
        }
        self.inner.custody(key)
    }

    fn kind_for(&self, role: KeyRole) -> Option<KeyKind> {
        if !self.is_working(role)? {
            return self.inner.kind_for(role);
        }
        let caps = self.inner.caps();
        // Without a key that wraps and one that certifies there are no working keys.
        caps.storage_kind().and(caps.signing_kind())?;
        [KeyKind::Ed25519, KeyKind::P256].into_iter().find(|kind| kind.suits(role))
    }

    fn keys(&self) -> Result<Vec<KeyName>, Error> {
        let mut names = self.inner.keys()?;
        self.announce();
        names.extend(self.file.read()?.into_iter().map(|entry| entry.name));
        names.sort();
        Ok(names)
    }

    fn public_key(&self, key: &KeyName) -> Result<PublicKey, Error> {
        match self.working(key)? {
            Some(opened) => Ok(opened.public.clone()),
            None => self.inner.public_key(key),
        }
    }

    fn sign(&self, key: &KeyName, request: &SigningRequest) -> Result<Signature, Error> {
        match self.working(key)? {
            Some(opened) => opened.sign(key, request, &self.policy),
            None => self.inner.sign(key, request),
        }
    }

    fn sign_many(
        &self,
        key: &KeyName,
        requests: &[SigningRequest],
    ) -> Vec<Result<Signature, Error>> {
        match self.working(key) {
            Ok(None) => self.inner.sign_many(key, requests),
            Ok(Some(opened)) => {
                requests.iter().map(|request| opened.sign(key, request, &self.policy)).collect()
            }
            Err(_) => requests.iter().map(|request| self.sign(key, request)).collect(),
        }
    }

    fn agree(&self, key: &KeyName, peer: &[u8; P256_POINT_BYTES]) -> Result<Secret32, Error> {
        let Some(opened) = self.working(key)? else { return self.inner.agree(key, peer) };
        if !key.role().agrees() {
            let needed = KeyRole::CourierEncryption;
            return Err(Error::WrongRole { key: key.clone(), needed });
        }
        keypair::agree(opened.secret.expose(), peer)?.ok_or_else(|| Error::NoSuchKey(key.clone()))
    }

    fn generate(&self, role: KeyRole, kind: KeyKind) -> Result<KeyName, Error> {
        if !kind.suits(role) {
            return Err(Error::WrongKind { role, kind });
        }
        if self.is_working(role).is_none() {
            // Waits until the token is open, or tells why it is not.
            self.inner.keys()?;
        }
        self.announce();
        if self.is_working(role) == Some(true) {
            self.make(role, kind)
        } else {
            self.inner.generate(role, kind)
        }
    }

    fn destroy(&self, key: &KeyName) -> Result<(), Error> {
        match key.role() {
            role if can_be_working(role) && self.file.find(key)?.is_some() => {
                let _changing = lock(&self.changing);
                self.file.change(|entries| {
                    entries.retain(|entry| entry.name != *key);
                    Ok(())
                })?;
                // Wiped when the last signature that is being made with it is done.
                let mut known = lock(&self.known);
                known.opened.remove(key);
                known.elsewhere.insert(key.clone());
                Ok(())
            }
            KeyRole::Storage | KeyRole::Courier => {
                self.hand_over(key)?;
                self.inner.destroy(key)
            }
            _ => self.inner.destroy(key),
        }
    }

    fn wrap(&self, key: &KeyName, secret: &Secret32, aad: &[u8]) -> Result<Vec<u8>, Error> {
        self.inner.wrap(key, secret, aad)
    }

    fn unwrap(&self, key: &KeyName, wrapped: &[u8], aad: &[u8]) -> Result<Secret32, Error> {
        self.inner.unwrap(key, wrapped, aad)
    }

    fn reopen(&self, pin: Pin) -> Result<(), Error> {
        self.inner.reopen(pin)
    }
}

fn can_be_working(role: KeyRole) -> bool {
    matches!(role, KeyRole::Event | KeyRole::CourierEncryption)
}

/// What the wrapped private half is bound to.
fn aad(said: &WorkingKey) -> Vec<u8> {
    let WorkingKey { server_name, name, public, .. } = said;
    let kind = KeyKind::from(public.algorithm());
    let head = format!("sallyport/working-key/1|{server_name}|{name}|{kind}|");
    [head.as_bytes(), public.as_bytes()].concat()
}

/// What a lock guards here is whole between any two statements, so a thread that died holding it left nothing half-done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
