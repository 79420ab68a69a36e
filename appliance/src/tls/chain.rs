//! A chain of certificates with which a higher CA vouches for ours: what is checked before it is served.

use std::time::Duration;

use rustls::{
    RootCertStore,
    client::{verify_server_cert_signed_by_trust_anchor, verify_server_name},
    crypto::ring,
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use sallyport_core::{limits::CERTIFICATES_BYTES_MAX, time::Millis};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::Error;

/// Certificates of a chain: more than anybody needs.
const LENGTH_MAX: usize = 8;

/// Reads a chain in PEM, that of our CA first.
pub(super) fn parse(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    if pem.len() > CERTIFICATES_BYTES_MAX {
        return Err(Error::NotOurs("they are larger than a chain can be"));
    }
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if (1..=LENGTH_MAX).contains(&chain.len()) => Ok(chain),
        Ok(chain) if chain.is_empty() => Err(Error::NotOurs("there is none in the file")),
        Ok(_) => Err(Error::NotOurs("they are more than a chain has")),
        Err(_) => Err(Error::NotOurs("the file is not in PEM")),
    }
}

/// Checks that the chain begins with a certificate for our CA that may and can stand in its place: same name, same key, a CA, valid, and the
/// box's certificate holds under it by each of its names.
pub(super) fn check(
    chain: &[CertificateDer<'static>],
    ours: &CertificateDer<'_>,
    leaf: &CertificateDer<'_>,
    names: &[String],
    now: Millis,
) -> Result<(), Error> {
    let [first, .., anchor] = chain else {
        let [only] = chain else { return Err(Error::NotOurs("there is none in the file")) };
        check_first(only, ours, now)?;
        return vouches(&[], only, leaf, names, now);
    };
    check_first(first, ours, now)?;
    let between = chain.get(..chain.len() - 1).unwrap_or_default();
    vouches(between, anchor, leaf, names, now)
}

/// The chain as it is served: devices have roots of their own.
pub(super) fn without_root(
    mut chain: Vec<CertificateDer<'static>>,
) -> Vec<CertificateDer<'static>> {
    if chain.len() > 1 && chain.last().is_some_and(|last| is_self_signed(last)) {
        chain.pop();
    }
    chain
}

fn check_first(
    first: &CertificateDer<'_>,
    ours: &CertificateDer<'_>,
    now: Millis,
) -> Result<(), Error> {
    let (Ok((_, first)), Ok((_, ours))) =
        (X509Certificate::from_der(first), X509Certificate::from_der(ours))
    else {
        return Err(Error::NotOurs("the first is not an X.509 certificate"));
    };
    if first.public_key().raw != ours.public_key().raw {
        return Err(Error::NotOurs("the first is not for the key of our CA"));
    }
    if first.subject().as_raw() != ours.subject().as_raw() {
        return Err(Error::NotOurs("the first does not have the name of our CA"));
    }
    if !first.is_ca() {
        return Err(Error::NotOurs("the first does not make our CA a CA"));
    }
    let usage = first.key_usage().map_err(|_| Error::NotOurs("the first is malformed"))?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(Error::NotOurs("the first does not let our CA sign certificates"));
    }
    let seconds = i64::try_from(now.0 / 1000).unwrap_or(i64::MAX);
    let validity = first.validity();
    if seconds < validity.not_before.timestamp() || validity.not_after.timestamp() < seconds {
        return Err(Error::NotOurs("the first is not valid today: look at the clock of the box"));
    }
    Ok(())
}

fn vouches(
    between: &[CertificateDer<'static>],
    anchor: &CertificateDer<'static>,
    leaf: &CertificateDer<'_>,
    names: &[String],
    now: Millis,
) -> Result<(), Error> {
    let failed = |name: &str| {
        let name = name.to_owned();
        move |source| Error::Chain { name, source }
    };
    let mut roots = RootCertStore::empty();
    roots.add(anchor.clone()).map_err(failed("anything"))?;
    let parsed = ParsedCertificate::try_from(leaf).map_err(failed("anything"))?;
    let algorithms = ring::default_provider().signature_verification_algorithms;
    let time = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
    for name in names {
        let server = ServerName::try_from(name.as_str())
            .map_err(|_| failed(name)(rustls::CertificateError::NotValidForName.into()))?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, between, time, algorithms.all)
            .and_then(|()| verify_server_name(&parsed, &server))
            .map_err(failed(name))?;
    }
    Ok(())
}

fn is_self_signed(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, certificate)| certificate.subject() == certificate.issuer())
}
