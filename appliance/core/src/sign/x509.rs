//! What keys of certificates may sign: certificates and requests of our own enclave, and handshakes of TLS 1.3.

use x509_parser::{
    certificate::TbsCertificate,
    certification_request::X509CertificationRequestInfo,
    extensions::ExtendedKeyUsage,
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY},
    prelude::FromDer as _,
    x509::{SubjectPublicKeyInfo, X509Name},
};

use super::{Policy, Refusal};
use crate::limits::SIGNED_BYTES_MAX;

/// A TBSCertificate that the enclave CA signs: its own (path length 0, constrained names), or one of a TLS server.
pub(super) fn certificate(der: &[u8], policy: &Policy) -> Result<Vec<u8>, Refusal> {
    const WHAT: &str = "certificate";
    let refused = |why| Refusal::X509 { what: WHAT, why };
    let whole = bounded(WHAT, der)?;
    let (rest, certificate) =
        TbsCertificate::from_der(whole).map_err(|_malformed| refused("not a TBSCertificate"))?;
    if !rest.is_empty() {
        return Err(refused("bytes follow it"));
    }
    ours(WHAT, certificate.issuer(), policy)?;
    ours(WHAT, certificate.subject(), policy)?;
    p256(WHAT, certificate.public_key())?;
    let basic = certificate.basic_constraints().map_err(|_| refused("basic constraints"))?;
    if let Some(basic) = basic.map(|basic| basic.value).filter(|basic| basic.ca) {
        if basic.path_len_constraint != Some(0) || certificate.subject() != certificate.issuer() {
            return Err(refused("a CA other than that of the enclave"));
        }
        let names = certificate.name_constraints().map_err(|_| refused("name constraints"))?;
        let permitted = names.and_then(|names| names.value.permitted_subtrees.as_ref());
        return match permitted {
            Some(subtrees) if !subtrees.is_empty() => Ok(der.to_vec()),
            _ => Err(refused("a CA without name constraints")),
        };
    }
    let usage = certificate.extended_key_usage().map_err(|_| refused("extended key usage"))?;
    match usage.map(|usage| usage.value) {
        Some(usage) if is_server_auth_alone(usage) => Ok(der.to_vec()),
        _ => Err(refused("not the certificate of a TLS server")),
    }
}

fn is_server_auth_alone(usage: &ExtendedKeyUsage<'_>) -> bool {
    let others = usage.any
        || usage.client_auth
        || usage.code_signing
        || usage.email_protection
        || usage.time_stamping
        || usage.ocsp_signing
        || !usage.other.is_empty();
    usage.server_auth && !others
}

/// A CertificationRequestInfo of our enclave. What a certificate made from it may do is for the CA to say that is asked.
pub(super) fn request(what: &'static str, der: &[u8], policy: &Policy) -> Result<Vec<u8>, Refusal> {
    let refused = |why| Refusal::X509 { what, why };
    let whole = bounded(what, der)?;
    let (rest, request) = X509CertificationRequestInfo::from_der(whole)
        .map_err(|_malformed| refused("not a CertificationRequestInfo"))?;
    if !rest.is_empty() {
        return Err(refused("bytes follow it"));
    }
    ours(what, &request.subject, policy)?;
    p256(what, &request.subject_pki)?;
    Ok(der.to_vec())
}

/// What a TLS 1.3 server signs: 64 spaces, the context, a zero byte, and the hash of the handshake (SHA-256 or SHA-384).
pub(super) fn handshake(content: &[u8]) -> Result<Vec<u8>, Refusal> {
    const SERVER: &[u8] = b"TLS 1.3, server CertificateVerify\0";
    let hash = content.strip_prefix(&[b' '; 64]).and_then(|rest| rest.strip_prefix(SERVER));
    match hash.map(<[u8]>::len) {
        Some(32 | 48) => Ok(content.to_vec()),
        _ => Err(Refusal::X509 { what: "handshake", why: "not the CertificateVerify of a server" }),
    }
}

fn bounded<'a>(what: &'static str, der: &'a [u8]) -> Result<&'a [u8], Refusal> {
    if der.len() > SIGNED_BYTES_MAX {
        return Err(Refusal::TooLarge { what, bytes: der.len(), max: SIGNED_BYTES_MAX });
    }
    Ok(der)
}

/// Whether the organization that it names is our enclave.
fn ours(what: &'static str, name: &X509Name<'_>, policy: &Policy) -> Result<(), Refusal> {
    let mut organizations = name.iter_organization();
    let ours = organizations.next().and_then(|named| named.as_str().ok())
        == Some(policy.server_name.as_str());
    if ours && organizations.next().is_none() {
        return Ok(());
    }
    Err(Refusal::X509 { what, why: "its organization is not our server" })
}

fn p256(what: &'static str, key: &SubjectPublicKeyInfo<'_>) -> Result<(), Refusal> {
    let algorithm = &key.algorithm;
    let curve = algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256) {
        return Ok(());
    }
    Err(Refusal::X509 { what, why: "its key is not on P-256" })
}

#[cfg(test)]
mod tests;
