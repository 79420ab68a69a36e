//! Finding out what a token can do by doing it: lists of mechanisms promise more than modules keep.
//!
//! Each capability is tried with keys of the session. Tokens that make no session keys (YubiHSM 2 does not) are taken at
//! their list's word; a wrong word cannot do harm, because every signature is verified when it is made.

use cryptoki::{
    mechanism::{Mechanism, MechanismType},
    object::{Attribute, AttributeType, ObjectHandle},
};
use sallyport_core::sign::{Algorithm, verify};

use super::{
    codes::during,
    connection::{Connection, decode_point},
    wrapping::Opener,
};
use crate::{
    Caps, Class, Error, KeyKind, KeyRole, P256_POINT_BYTES, Secret32, oaep,
    wrapped::{Capsule, Method},
};

/// What the probes sign: no document of ours, which all begin with `{` or 0x84.
const MESSAGE: &[u8] = b"sallyport token self-test";

/// `CKA_EC_PARAMS` of X25519: the object identifier 1.3.101.110 (RFC 8410), or the name (PKCS#11 3.0).
const X25519_OID: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x6e];
const X25519_NAME: &[u8] = b"\x13\x0acurve25519";
const X25519_POINT_BYTES: usize = 32;

/// Tries everything once, and calls `working` between the steps, of which each may take seconds. Fails only if the token is
/// lost meanwhile, or `working` does.
pub(crate) fn caps(
    connection: &Connection,
    working: &mut dyn FnMut() -> Result<(), Error>,
) -> Result<Caps, Error> {
    let listed = connection.mechanisms()?;
    let has = |wanted: &[MechanismType]| wanted.iter().all(|one| listed.contains(one));
    let ed25519 = [MechanismType::ECC_EDWARDS_KEY_PAIR_GEN, MechanismType::EDDSA];
    let p256_sign = [MechanismType::ECC_KEY_PAIR_GEN, MechanismType::ECDSA];
    let p256_agree = [MechanismType::ECC_KEY_PAIR_GEN, MechanismType::ECDH1_DERIVE];
    let wrap = [MechanismType::AES_KEY_GEN, MechanismType::AES_KEY_WRAP];
    let rsa = [MechanismType::RSA_PKCS_KEY_PAIR_GEN, MechanismType::RSA_PKCS_OAEP];
    let mut works = |kind, role| {
        working()?;
        works(connection, kind, role)
    };
    let mut caps = Caps {
        ed25519: has(&ed25519) && works(KeyKind::Ed25519, KeyRole::Event)?,
        p256_sign: has(&p256_sign) && works(KeyKind::P256, KeyRole::Courier)?,
        p256_agree: has(&p256_agree) && works(KeyKind::P256, KeyRole::CourierEncryption)?,
        wrap: has(&wrap) && works(KeyKind::Aes256, KeyRole::Storage)?,
        rsa_decrypt: false,
        x25519: listed.contains(&MechanismType::ECDH1_DERIVE) && x25519(connection, &listed)?,
    };
    // Cards take half a minute to make an RSA key.
    if caps.storage_kind().is_none() {
        caps.rsa_decrypt = has(&rsa) && works(KeyKind::Rsa2048, KeyRole::Storage)?;
    }
    Ok(caps)
}

fn works(connection: &Connection, kind: KeyKind, role: KeyRole) -> Result<bool, Error> {
    let (key, public) = match connection.generate_with(None, kind, role) {
        Ok(pair) => pair,
        Err(error) => return lost_or(error, true),
    };
    let tried = match (kind, role) {
        (KeyKind::Aes256, _) => wraps(connection, key),
        (KeyKind::Rsa2048, _) => decrypts(connection, key, public),
        (_, KeyRole::CourierEncryption) => agrees(connection, key, public),
        (KeyKind::Ed25519, _) => signs(connection, Algorithm::Ed25519, key, public),
        (KeyKind::P256, _) => signs(connection, Algorithm::P256, key, public),
    };
    for object in if key == public { vec![key] } else { vec![key, public] } {
        connection.session.destroy_object(object).map_err(during("session keys"))?;
    }
    tried.or_else(|error| {
        log::warn!(kind:%, role:%, error:%; "the token lists what it cannot do");
        lost_or(error, false)
    })
}

fn lost_or(error: Error, verdict: bool) -> Result<bool, Error> {
    if error.class() == Class::Reopen { Err(error) } else { Ok(verdict) }
}

fn signs(
    connection: &Connection,
    algorithm: Algorithm,
    key: ObjectHandle,
    public: ObjectHandle,
) -> Result<bool, Error> {
    let signature = connection.sign_with(key, algorithm, MESSAGE)?;
    let Some(public) = point(connection, algorithm, public)? else { return Ok(false) };
    let Ok(signature) = signature.as_slice().try_into() else { return Ok(false) };
    Ok(verify(&public, MESSAGE, &signature).is_ok())
}

/// X25519 in the ways that modules have of it: a mechanism and a type of its own (PKCS#11 3.0), or those of Ed25519 with another curve
/// (SoftHSM 2.6); and the curve by object identifier or by name.
fn x25519(connection: &Connection, listed: &[MechanismType]) -> Result<bool, Error> {
    let mechanisms = [
        (MechanismType::ECC_MONTGOMERY_KEY_PAIR_GEN, Mechanism::EccMontgomeryKeyPairGen),
        (MechanismType::ECC_EDWARDS_KEY_PAIR_GEN, Mechanism::EccEdwardsKeyPairGen),
    ];
    for (_, mechanism) in mechanisms.iter().filter(|(named, _)| listed.contains(named)) {
        for curve in [X25519_OID, X25519_NAME] {
            let public = [
                Attribute::Token(false),
                Attribute::Private(false),
                Attribute::EcParams(curve.to_vec()),
            ];
            let private = [
                Attribute::Token(false),
                Attribute::Private(true),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::Derive(true),
            ];
            let made = connection.session.generate_key_pair(mechanism, &public, &private);
            let (public, key) = match made.map_err(during("X25519 keys")) {
                Ok(pair) => pair,
                Err(error) if error.class() == Class::Reopen => return Err(error),
                Err(_other_spelling) => continue,
            };
            let tried = agrees_with_itself(connection, key, public);
            for object in [key, public] {
                connection.session.destroy_object(object).map_err(during("session keys"))?;
            }
            if tried.or_else(|error| lost_or(error, false))? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn agrees_with_itself(
    connection: &Connection,
    key: ObjectHandle,
    public: ObjectHandle,
) -> Result<bool, Error> {
    let attributes = connection
        .session
        .get_attributes(public, &[AttributeType::EcPoint])
        .map_err(during("reading public keys"))?;
    // The point ends the attribute, whatever it is wrapped in.
    let point = attributes.iter().find_map(|attribute| match attribute {
        Attribute::EcPoint(point) => point.last_chunk::<X25519_POINT_BYTES>(),
        _ => None,
    });
    let Some(peer) = point else { return Ok(false) };
    twice(connection, key, peer)
}

/// With itself as the peer, and compared with a second agreement: the public point alone tells no more.
fn agrees(connection: &Connection, key: ObjectHandle, public: ObjectHandle) -> Result<bool, Error> {
    let Some(public) = point(connection, Algorithm::P256, public)? else { return Ok(false) };
    let Ok(peer) = <[u8; P256_POINT_BYTES]>::try_from(public.as_bytes()) else { return Ok(false) };
    twice(connection, key, &peer)
}

fn twice(connection: &Connection, key: ObjectHandle, peer: &[u8]) -> Result<bool, Error> {
    let first = connection.agree_with(key, peer)?;
    let second = connection.agree_with(key, peer)?;
    Ok(first.expose() == second.expose() && first.expose() != &[0; Secret32::BYTES])
}

fn wraps(connection: &Connection, kek: ObjectHandle) -> Result<bool, Error> {
    let secret = Secret32::random()?;
    let bytes = connection.wrap_with(kek, &secret)?;
    let capsule = Capsule { method: Method::AesKw, bytes };
    let unwrapped = connection.unwrap_with(&Opener { object: kek, public: None }, &capsule)?;
    Ok(unwrapped.expose() == secret.expose())
}

fn decrypts(
    connection: &Connection,
    key: ObjectHandle,
    public: ObjectHandle,
) -> Result<bool, Error> {
    let secret = Secret32::random()?;
    let bytes = oaep::encrypt(&connection.modulus(public)?, &secret)?;
    let capsule = Capsule { method: Method::RsaOaep, bytes };
    let decrypted = connection.unwrap_with(&Opener { object: key, public: None }, &capsule)?;
    Ok(decrypted.expose() == secret.expose())
}

fn point(
    connection: &Connection,
    algorithm: Algorithm,
    public: ObjectHandle,
) -> Result<Option<sallyport_core::sign::PublicKey>, Error> {
    let attributes = connection
        .session
        .get_attributes(public, &[AttributeType::EcPoint])
        .map_err(during("reading public keys"))?;
    Ok(attributes.into_iter().find_map(|attribute| match attribute {
        Attribute::EcPoint(point) => decode_point(algorithm, &point),
        _ => None,
    }))
}
