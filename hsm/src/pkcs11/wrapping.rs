//! Storage keys: the capsules that a token makes or opens ([`crate::wrapped`]).

use cryptoki::{
    mechanism::{
        Mechanism, MechanismType,
        rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource},
    },
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
};
use sallyport_core::sign::{Algorithm, PublicKey};
use zeroize::Zeroizing;

use super::{
    codes::during,
    connection::{Connection, Handle, readable_session_key},
};
use crate::{
    Error, KeyKind, KeyName, Secret32, oaep,
    wrapped::{Capsule, Method, p256_key},
};

/// What opens a capsule with a P-256 key is bound to that key's public half.
pub(super) struct Opener {
    pub(super) object: ObjectHandle,
    pub(super) public: Option<PublicKey>,
}

impl Connection {
    /// Makes a fresh key, and the capsule in which a storage key keeps it.
    pub(crate) fn wrap(&mut self, name: &KeyName) -> Result<(Secret32, Capsule), Error> {
        let Handle { object, kind } = self.find(name)?;
        match kind {
            KeyKind::Aes256 => {
                let fresh = Secret32::random()?;
                let bytes = self.wrap_with(object, &fresh)?;
                Ok((fresh, Capsule { method: Method::AesKw, bytes }))
            }
            KeyKind::P256 => Capsule::to_p256(&self.public_key(name)?),
            KeyKind::Rsa2048 => {
                let fresh = Secret32::random()?;
                // Some tokens keep the public numbers with the private key only.
                let public = self.find_objects(name, ObjectClass::PUBLIC_KEY)?;
                let public = public.first().copied().unwrap_or(object);
                let bytes = oaep::encrypt(&self.modulus(public)?, &fresh)?;
                Ok((fresh, Capsule { method: Method::RsaOaep, bytes }))
            }
            KeyKind::Ed25519 => Err(Error::NoSuchKey(name.clone())),
        }
    }

    /// The key in a capsule that [`Connection::wrap`] made.
    pub(crate) fn unwrap(&mut self, name: &KeyName, capsule: &Capsule) -> Result<Secret32, Error> {
        let Handle { object, kind } = self.find(name)?;
        if Method::of(kind) != Some(capsule.method) || capsule.bytes.len() != capsule.method.bytes()
        {
            return Err(Error::Damaged);
        }
        let public = match capsule.method {
            Method::EcdhP256 => Some(self.public_key(name)?),
            Method::AesKw | Method::RsaOaep | Method::Plain => None,
        };
        self.unwrap_with(&Opener { object, public }, capsule)
    }

    /// AES-KW of a key that is in the token for as long as that takes.
    pub(super) fn wrap_with(&self, kek: ObjectHandle, fresh: &Secret32) -> Result<Vec<u8>, Error> {
        let mut template = readable_session_key(KeyType::AES);
        template.push(Attribute::Value(fresh.expose().to_vec()));
        let key = self.session.create_object(&template).map_err(during("wrapping"))?;
        let wrapped = self
            .session
            .wrap_key(&Mechanism::AesKeyWrap, kek, key)
            .map_err(during("wrapping with AES-KW"));
        let removed = self.session.destroy_object(key).map_err(during("wrapping"));
        let wrapped = wrapped?;
        removed?;
        if wrapped.len() != Method::AesKw.bytes() {
            return Err(Error::Unsupported("wrapping with AES-KW".to_owned()));
        }
        Ok(wrapped)
    }

    pub(super) fn unwrap_with(
        &self,
        opener: &Opener,
        capsule: &Capsule,
    ) -> Result<Secret32, Error> {
        let opened = match (capsule.method, &opener.public) {
            (Method::AesKw, _) => self.unwrap_aes(opener.object, &capsule.bytes),
            (Method::RsaOaep, _) => self.decrypt_rsa(opener.object, &capsule.bytes),
            (Method::EcdhP256, Some(public)) => {
                // Tokens differ in whether they check the point; one off the curve would leak the key bit by bit.
                let point = PublicKey::new(Algorithm::P256, &capsule.bytes);
                let point = point.map_err(|_off_curve| Error::Damaged)?;
                let shared = self.agree_with(opener.object, point.as_bytes())?;
                p256_key(&shared, point.as_bytes(), public.as_bytes())
            }
            (Method::EcdhP256, None) | (Method::Plain, _) => Err(Error::Damaged),
        };
        opened.map_err(|error| match error {
            // Modules say GENERAL_ERROR, FUNCTION_FAILED or even DEVICE_ERROR when a check value is wrong; a broken token would
            // not answer the next question either.
            Error::Device { .. } | Error::Absent => self.check().err().unwrap_or(Error::Damaged),
            other => other,
        })
    }

    fn unwrap_aes(&self, kek: ObjectHandle, wrapped: &[u8]) -> Result<Secret32, Error> {
        let template = readable_session_key(KeyType::AES);
        let key = self
            .session
            .unwrap_key(&Mechanism::AesKeyWrap, kek, wrapped, &template)
            .map_err(during("unwrapping with AES-KW"))?;
        self.take_value(key)
    }

    fn decrypt_rsa(&self, key: ObjectHandle, encrypted: &[u8]) -> Result<Secret32, Error> {
        let params = PkcsOaepParams::new(
            MechanismType::SHA1,
            PkcsMgfType::MGF1_SHA1,
            PkcsOaepSource::empty(),
        );
        let plain = self
            .session
            .decrypt(&Mechanism::RsaPkcsOaep(params), key, encrypted)
            .map(Zeroizing::new)
            .map_err(during("decrypting with RSA-OAEP"))?;
        Secret32::from_slice(&plain).ok_or(Error::Damaged)
    }

    /// The modulus of an RSA key. Its exponent must be the one that we ask for.
    pub(super) fn modulus(&self, object: ObjectHandle) -> Result<Vec<u8>, Error> {
        let attributes = self
            .session
            .get_attributes(object, &[AttributeType::Modulus, AttributeType::PublicExponent])
            .map_err(during("reading public keys"))?;
        let (mut modulus, mut exponent) = (None, None);
        for attribute in attributes {
            match attribute {
                Attribute::Modulus(bytes) => modulus = Some(bytes),
                Attribute::PublicExponent(bytes) => {
                    exponent = bytes.iter().try_fold(0_u64, |number, byte| {
                        Some(number.checked_mul(256)? + u64::from(*byte))
                    });
                }
                _ => {}
            }
        }
        modulus
            .filter(|_| exponent == Some(oaep::EXPONENT))
            .ok_or_else(|| Error::Unsupported("reading RSA keys".to_owned()))
    }
}
