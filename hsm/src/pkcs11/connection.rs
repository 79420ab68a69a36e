//! One logged-in session: finding keys by name, and every operation on them.

use std::collections::BTreeMap;

use cryptoki::{
    context::Pkcs11,
    mechanism::{
        Mechanism,
        eddsa::{EddsaParams, EddsaSignatureScheme},
        elliptic_curve::{EcKdf, Ecdh1DeriveParams},
    },
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::{Session, SessionState},
    slot::Slot,
};
use ring::digest::{SHA256, digest};
use sallyport_core::sign::{Algorithm, PublicKey, Signature};
use zeroize::Zeroizing;

use super::{codes::during, module::is_tpm2};
use crate::{Error, KeyKind, KeyName, KeyRole, P256_POINT_BYTES, Secret32, oaep};

/// Object identifier of Ed25519 (RFC 8410), DER.
const ED25519_OID: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];
/// The older spelling of Ed25519 (PKCS#11 3.0, section 2.3.10): PrintableString `edwards25519`.
const ED25519_NAME: &[u8] = b"\x13\x0cedwards25519";
/// Object identifier of P-256 (RFC 5480), DER.
const P256_OID: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// P-256 by its name (PKCS#11 3.0, section 2.3.3): PrintableString `secp256r1`.
const P256_NAME: &[u8] = b"\x13\x09secp256r1";

/// A session. Only one thread ever has it.
pub(crate) struct Connection {
    module: Pkcs11,
    slot: Slot,
    pub(super) session: Session,
    /// Valid as long as this login.
    handles: BTreeMap<KeyName, Handle>,
}

#[derive(Clone, Copy)]
pub(super) struct Handle {
    pub(super) object: ObjectHandle,
    pub(super) kind: KeyKind,
}

impl Connection {
    /// Takes a session of a process that is logged in.
    pub(super) fn new(module: Pkcs11, slot: Slot, session: Session) -> Self {
        Self { module, slot, session, handles: BTreeMap::new() }
    }

    /// Whether the token still answers and the session is logged in. Without the login searches succeed and find nothing.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let info = self.session.get_session_info().map_err(during("session information"))?;
        if info.session_state() != SessionState::RwUser {
            return Err(Error::NotLoggedIn);
        }
        match self.module.get_token_info(self.slot) {
            Ok(_) => Ok(()),
            Err(_whatever) => Err(Error::Absent),
        }
    }

    /// What the module says it can do in this token.
    pub(super) fn mechanisms(&self) -> Result<Vec<cryptoki::mechanism::MechanismType>, Error> {
        // Of every mechanism that it has no name for, `cryptoki` logs an error; most modules have dozens.
        let level = log::max_level();
        log::set_max_level(log::LevelFilter::Off);
        let listed = self.module.get_mechanism_list(self.slot);
        log::set_max_level(level);
        listed.map_err(during("mechanism lists"))
    }

    /// Looks all keys up anew.
    pub(crate) fn forget_handles(&mut self) {
        self.handles.clear();
    }

    /// The names of all keys that are ours.
    pub(crate) fn keys(&self) -> Result<Vec<KeyName>, Error> {
        self.check()?;
        let mut names = Vec::new();
        for class in [ObjectClass::PRIVATE_KEY, ObjectClass::SECRET_KEY] {
            let template = [Attribute::Token(true), Attribute::Class(class)];
            let objects = self.session.find_objects(&template).map_err(during("searches"))?;
            for object in objects {
                names.extend(self.name_of(object)?);
            }
        }
        names.sort();
        Ok(names)
    }

    fn name_of(&self, object: ObjectHandle) -> Result<Option<KeyName>, Error> {
        let attributes = self
            .session
            .get_attributes(object, &[AttributeType::Label, AttributeType::Id])
            .map_err(during("reading attributes"))?;
        let mut role = None;
        let mut id = None;
        for attribute in attributes {
            match attribute {
                Attribute::Label(bytes) => {
                    role = KeyRole::ALL.into_iter().find(|role| label(*role) == bytes);
                }
                Attribute::Id(bytes) => id = bytes.try_into().ok(),
                _ => {}
            }
        }
        Ok(role.zip(id).map(|(role, id)| KeyName::new(role, id)))
    }

    /// Reads a public key from the token.
    pub(crate) fn public_key(&mut self, name: &KeyName) -> Result<PublicKey, Error> {
        let Handle { object, kind } = self.find(name)?;
        let algorithm = kind.algorithm().ok_or_else(|| Error::NoSuchKey(name.clone()))?;
        // Some tokens keep the point with the private key only.
        let public = self.find_objects(name, ObjectClass::PUBLIC_KEY)?;
        let object = public.first().copied().unwrap_or(object);
        let attributes = self
            .session
            .get_attributes(object, &[AttributeType::EcPoint])
            .map_err(during("reading public keys"))?;
        let point = attributes.into_iter().find_map(|attribute| match attribute {
            Attribute::EcPoint(point) => Some(point),
            _ => None,
        });
        let point = point.ok_or_else(|| Error::Unsupported("reading public keys".to_owned()))?;
        decode_point(algorithm, &point)
            .ok_or_else(|| Error::Unsupported("public keys in a known encoding".to_owned()))
    }

    /// Signs bytes with pure Ed25519, or hashes them here and signs the hash with ECDSA: few tokens hash for ECDSA.
    pub(crate) fn sign(&mut self, name: &KeyName, bytes: &[u8]) -> Result<Signature, Error> {
        let Handle { object, kind } = self.find(name)?;
        let algorithm = kind.algorithm().ok_or_else(|| Error::NoSuchKey(name.clone()))?;
        self.sign_with(object, algorithm, bytes)?
            .as_slice()
            .try_into()
            .map_err(|_length| Error::BadSignature(name.clone()))
    }

    /// The signature as the token gives it. Ed25519 never has parameters: SoftHSM 2.6 ignores Ed25519ph silently.
    pub(super) fn sign_with(
        &self,
        key: ObjectHandle,
        algorithm: Algorithm,
        bytes: &[u8],
    ) -> Result<Vec<u8>, Error> {
        match algorithm {
            Algorithm::Ed25519 => {
                let pure = EddsaParams::new(EddsaSignatureScheme::Ed25519);
                self.session
                    .sign(&Mechanism::Eddsa(pure), key, bytes)
                    .map_err(during("Ed25519 signatures"))
            }
            Algorithm::P256 => self
                .session
                .sign(&Mechanism::Ecdsa, key, digest(&SHA256, bytes).as_ref())
                .map_err(during("ECDSA signatures on P-256")),
        }
    }

    /// ECDH without key derivation.
    pub(crate) fn agree(
        &mut self,
        name: &KeyName,
        peer: &[u8; P256_POINT_BYTES],
    ) -> Result<Secret32, Error> {
        let key = self.find(name)?.object;
        self.agree_with(key, peer)
    }

    pub(super) fn agree_with(&self, key: ObjectHandle, peer: &[u8]) -> Result<Secret32, Error> {
        let params = Ecdh1DeriveParams::new(EcKdf::null(), peer);
        let mut template = readable_session_key(KeyType::GENERIC_SECRET);
        template.push(Attribute::ValueLen(32_u64.into()));
        let shared = self
            .session
            .derive_key(&Mechanism::Ecdh1Derive(params), key, &template)
            .map_err(during("ECDH on P-256"))?;
        self.take_value(shared)
    }

    /// Reads the value of a session object and destroys it.
    pub(super) fn take_value(&self, object: ObjectHandle) -> Result<Secret32, Error> {
        let read = self.session.get_attributes(object, &[AttributeType::Value]);
        let removed = self.session.destroy_object(object).map_err(during("session keys"));
        let value =
            read.map_err(during("reading session keys"))?.into_iter().find_map(|attribute| {
                match attribute {
                    Attribute::Value(value) => Some(Zeroizing::new(value)),
                    _ => None,
                }
            });
        removed?;
        value
            .and_then(|value| Secret32::from_slice(&value))
            .ok_or_else(|| Error::Unsupported("reading session keys".to_owned()))
    }

    /// Makes a key that stays in the token, and makes sure of that.
    pub(crate) fn generate(&mut self, name: &KeyName, kind: KeyKind) -> Result<(), Error> {
        let object = self.generate_with(Some(name), kind, name.role())?.0;
        let attributes = self
            .session
            .get_attributes(object, &[AttributeType::Sensitive, AttributeType::Extractable])
            .map_err(during("reading attributes"))?;
        let kept = attributes.contains(&Attribute::Sensitive(true))
            && attributes.contains(&Attribute::Extractable(false));
        if !kept {
            self.destroy(name)?;
            return Err(Error::Extractable);
        }
        Ok(())
    }

    /// Makes a key: with a name for good, or without one for this session. Gives the private or secret key, and the public
    /// one (for AES the same again).
    pub(super) fn generate_with(
        &self,
        name: Option<&KeyName>,
        kind: KeyKind,
        role: KeyRole,
    ) -> Result<(ObjectHandle, ObjectHandle), Error> {
        let mut shared = vec![Attribute::Token(name.is_some())];
        if let Some(name) = name {
            shared.push(Attribute::Label(label(name.role())));
            shared.push(Attribute::Id(name.id().to_vec()));
        }
        let mut secret = shared.clone();
        secret.extend([
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
        ]);
        if kind == KeyKind::Aes256 {
            secret.extend([
                Attribute::ValueLen(32_u64.into()),
                Attribute::Wrap(true),
                Attribute::Unwrap(true),
                Attribute::Encrypt(false),
                Attribute::Decrypt(false),
            ]);
            let key = self
                .session
                .generate_key(&Mechanism::AesKeyGen, &secret)
                .map_err(during("AES keys"))?;
            return Ok((key, key));
        }
        shared.push(Attribute::Private(false));
        if kind == KeyKind::Rsa2048 {
            secret.push(Attribute::Decrypt(true));
            shared.push(Attribute::Encrypt(true));
        } else {
            let agrees = role.agrees() || role.wraps();
            secret.extend([Attribute::Sign(!agrees), Attribute::Derive(agrees)]);
            shared.push(Attribute::Verify(!agrees));
        }
        let (public, private) = self.generate_pair(kind, &shared, &secret)?;
        Ok((private, public))
    }

    fn generate_pair(
        &self,
        kind: KeyKind,
        public: &[Attribute],
        private: &[Attribute],
    ) -> Result<(ObjectHandle, ObjectHandle), Error> {
        let pair = |mechanism: &Mechanism<'_>, curve: &[u8]| {
            let mut public = public.to_vec();
            public.push(Attribute::EcParams(curve.to_vec()));
            self.session.generate_key_pair(mechanism, &public, private)
        };
        match kind {
            KeyKind::Ed25519 => pair(&Mechanism::EccEdwardsKeyPairGen, ED25519_OID)
                .or_else(|_spelling| pair(&Mechanism::EccEdwardsKeyPairGen, ED25519_NAME))
                .map_err(during("Ed25519 keys")),
            KeyKind::Rsa2048 => {
                let exponent =
                    oaep::EXPONENT.to_be_bytes().into_iter().skip_while(|byte| *byte == 0);
                let mut public = public.to_vec();
                public.extend([
                    Attribute::ModulusBits(2048.into()),
                    Attribute::PublicExponent(exponent.collect()),
                ]);
                let mut private = private.to_vec();
                // The helper has none of them sign in any case.
                if !self.is_tpm2() {
                    public.push(Attribute::Verify(false));
                    private.push(Attribute::Sign(false));
                }
                self.session
                    .generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private)
                    .map_err(during("RSA keys of 2048 bits"))
            }
            KeyKind::P256 | KeyKind::Aes256 => pair(&Mechanism::EccKeyPairGen, P256_OID)
                .or_else(|_spelling| pair(&Mechanism::EccKeyPairGen, P256_NAME))
                .map_err(during("P-256 keys")),
        }
    }

    /// Whether the module is [`is_tpm2`].
    pub(crate) fn is_tpm2(&self) -> bool {
        is_tpm2(&self.module)
    }

    /// Destroys a key and its public half.
    pub(crate) fn destroy(&mut self, name: &KeyName) -> Result<(), Error> {
        let key = self.find(name)?.object;
        self.session.destroy_object(key).map_err(during("destroying keys"))?;
        self.handles.remove(name);
        for object in self.find_objects(name, ObjectClass::PUBLIC_KEY)? {
            self.session.destroy_object(object).map_err(during("destroying keys"))?;
        }
        Ok(())
    }

    pub(super) fn find(&mut self, name: &KeyName) -> Result<Handle, Error> {
        if let Some(handle) = self.handles.get(name) {
            return Ok(*handle);
        }
        let mut objects = self.find_objects(name, ObjectClass::PRIVATE_KEY)?;
        if name.role().wraps() {
            objects.extend(self.find_objects(name, ObjectClass::SECRET_KEY)?);
        }
        let object = match objects.as_slice() {
            [object] => *object,
            // A token that is gone or logged out looks empty.
            [] => return Err(self.check().err().unwrap_or(Error::NoSuchKey(name.clone()))),
            _ => return Err(Error::DuplicateKey(name.clone())),
        };
        let attributes = self
            .session
            .get_attributes(object, &[AttributeType::KeyType])
            .map_err(during("reading attributes"))?;
        let kind = attributes.into_iter().find_map(|attribute| match attribute {
            Attribute::KeyType(KeyType::EC_EDWARDS) => Some(KeyKind::Ed25519),
            Attribute::KeyType(KeyType::EC) => Some(KeyKind::P256),
            Attribute::KeyType(KeyType::AES) => Some(KeyKind::Aes256),
            Attribute::KeyType(KeyType::RSA) => Some(KeyKind::Rsa2048),
            _ => None,
        });
        let kind = kind.filter(|kind| kind.suits(name.role()));
        let kind = kind.ok_or_else(|| Error::NoSuchKey(name.clone()))?;
        let handle = Handle { object, kind };
        self.handles.insert(name.clone(), handle);
        Ok(handle)
    }

    pub(super) fn find_objects(
        &self,
        name: &KeyName,
        class: ObjectClass,
    ) -> Result<Vec<ObjectHandle>, Error> {
        let template = [
            Attribute::Token(true),
            Attribute::Class(class),
            Attribute::Label(label(name.role())),
            Attribute::Id(name.id().to_vec()),
        ];
        self.session.find_objects(&template).map_err(during("searches"))
    }
}

/// `CKA_LABEL` of the keys of a role.
fn label(role: KeyRole) -> Vec<u8> {
    format!("sallyport/{role}").into_bytes()
}

/// Template of a key that lives in the session only and whose value may be read.
pub(super) fn readable_session_key(key_type: KeyType) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(key_type),
        Attribute::Token(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

/// `CKA_EC_POINT`: a DER OCTET STRING by the standard; some modules give a BIT STRING or the bare point.
pub(super) fn decode_point(algorithm: Algorithm, point: &[u8]) -> Option<PublicKey> {
    let bytes = match algorithm {
        Algorithm::Ed25519 => PublicKey::ED25519_BYTES,
        Algorithm::P256 => PublicKey::P256_BYTES,
    };
    let start = point.len().checked_sub(bytes)?;
    let (header, point) = point.split_at(start);
    let length = u8::try_from(bytes).ok()?;
    let known = [&[][..], &[0x04, length], &[0x03, length + 1, 0x00]];
    if !known.contains(&header) {
        return None;
    }
    PublicKey::new(algorithm, point).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_in_every_encoding_that_modules_use() {
        let ed25519 = ed25519_dalek::SigningKey::from_bytes(&[3; 32]).verifying_key();
        let p256 = p256::SecretKey::from_slice(&[3; 32]).unwrap().public_key().to_sec1_bytes();
        let keys =
            [(Algorithm::Ed25519, ed25519.as_bytes().to_vec()), (Algorithm::P256, p256.to_vec())];
        for (algorithm, bytes) in keys {
            let length = u8::try_from(bytes.len()).unwrap();
            for header in [vec![], vec![4, length], vec![3, length + 1, 0]] {
                let point = [header.as_slice(), &bytes].concat();
                let key = decode_point(algorithm, &point).unwrap();
                assert_eq!(key.as_bytes(), bytes);
                assert!(decode_point(algorithm, &point[1..]).is_none() || header.len() == 1);
            }
            for header in [vec![4], vec![4, length + 1], vec![0x30, length], vec![3, length, 0]] {
                let point = [header.as_slice(), &bytes].concat();
                assert_eq!(decode_point(algorithm, &point), None, "{header:02x?}");
            }
        }
    }
}
