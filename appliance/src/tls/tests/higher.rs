//! A higher CA that vouches for the enclave's.

use ::ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, GeneralSubtree, IsCa, KeyPair,
    KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use rustls_pki_types::pem::PemObject as _;
use x509_parser::{
    certificate::X509Certificate, certification_request::X509CertificationRequest,
    prelude::FromDer as _,
};

use super::*;

struct Higher(CertifiedIssuer<'static, KeyPair>);

/// The key of a request or of a certificate.
struct Point(Vec<u8>);

impl PublicKeyData for Point {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl Higher {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Ministry root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        at_now(&mut params);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn root(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// A certificate for the key of a request.
    fn certify(&self, request: &str, change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "alpha.example");
        params.distinguished_name.push(DnType::CommonName, "Sallyport enclave CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        at_now(&mut params);
        change(&mut params);
        params.signed_by(&point(request), &self.0).unwrap().pem()
    }
}

fn at_now(params: &mut CertificateParams) {
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(NOW.0);
    params.not_before = now - Duration::from_secs(60);
    params.not_after = now + Duration::from_secs(60);
}

fn point(request: &str) -> Point {
    let der = request_der(request);
    let (_, request) = X509CertificationRequest::from_der(&der).unwrap();
    let key = &request.certification_request_info.subject_pki;
    Point(key.subject_public_key.data.to_vec())
}

fn request_der(pem: &str) -> Vec<u8> {
    rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

/// A request holds together: its signature is of the key that it names.
fn check_request(pem: &str) {
    let der = request_der(pem);
    let (rest, request) = X509CertificationRequest::from_der(&der).unwrap();
    assert!(rest.is_empty());
    let info = &request.certification_request_info;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &info.subject_pki.subject_public_key.data)
        .verify(info.raw, &request.signature_value.data)
        .unwrap();
}

fn install(fixture: &Fixture, certificates: &Certificates, chain: &str) -> Result<bool, Error> {
    let mut noted = false;
    certificates.install(chain.as_bytes(), &fixture.store, NOW, || {
        noted = true;
        Ok::<_, Error>(())
    })?;
    Ok(noted)
}

#[test]
fn requests_are_of_the_keys_in_use() {
    for fixture in [Fixture::new(), Fixture::with_token(Duration::ZERO)] {
        let certificates = fixture.open("", NOW);
        let request = certificates.ca_request(&fixture.store).unwrap();
        check_request(&request);
        let served = chain(&certificates);
        let (_, ours) = X509Certificate::from_der(&served[1]).unwrap();
        assert_eq!(ours.public_key().subject_public_key.data, point(&request).0);
        let error = certificates.tls_request(&fixture.store, NOW).unwrap_err();
        assert!(matches!(error, Error::PassingKey));
    }
    let fixture = Fixture::with_token(Duration::ZERO);
    let certificates = fixture.open("[tls]\nkey_in = 'token'", NOW);
    let request = certificates.tls_request(&fixture.store, NOW).unwrap();
    check_request(&request);
    let served = chain(&certificates);
    let (_, leaf) = X509Certificate::from_der(&served[0]).unwrap();
    assert_eq!(leaf.public_key().subject_public_key.data, point(&request).0);
    fixture.token().pull_out();
    assert!(certificates.ca_request(&fixture.store).unwrap_err().waits_for_token());
}

#[test]
fn who_trusts_the_higher_ca_trusts_the_box() {
    for fixture in [Fixture::new(), Fixture::with_token(Duration::ZERO)] {
        let certificates = fixture.open("", NOW);
        let higher = Higher::new();
        handshake(&certificates, higher.root(), "alpha.example", NOW).unwrap_err();
        let ours = higher.certify(&certificates.ca_request(&fixture.store).unwrap(), |_| {});
        let with_root = ours + &higher.0.pem();
        assert!(install(&fixture, &certificates, &with_root).unwrap());
        let again = fixture.open("", NOW);
        for certificates in [certificates, again] {
            assert!(certificates.status().unwrap().vouched_for);
            assert_eq!(chain(&certificates).len(), 2, "the root is the devices' own");
            handshake(&certificates, higher.root(), "alpha.example", NOW).unwrap();
            fixture.handshake(&certificates, "alpha.example", NOW).unwrap();
        }
    }
}

#[test]
fn a_chain_that_does_not_vouch_for_the_box_changes_nothing() {
    let fixture = Fixture::new();
    let certificates = fixture.open("", NOW);
    let before = chain(&certificates);
    let higher = Higher::new();
    let request = certificates.ca_request(&fixture.store).unwrap();
    let of_another = Fixture::new().open("", NOW);
    let of_another = of_another.ca_request(&Fixture::new().store).unwrap();
    let root = higher.0.pem();
    let certify = |change: fn(&mut CertificateParams)| higher.certify(&request, change);
    let constrained = |ca: &mut CertificateParams| {
        let permitted_subtrees = vec![GeneralSubtree::DnsName("bravo.example".to_owned())];
        let excluded_subtrees = Vec::new();
        ca.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees });
    };
    let cases: Vec<(&str, String, &str)> = vec![
        ("nothing", String::new(), "there is none in the file"),
        ("no PEM", "-----BEGIN CERTIFICATE-----\nx".to_owned(), "the file is not in PEM"),
        ("too many", root.repeat(9), "more than a chain has"),
        ("another key", higher.certify(&of_another, |_| {}), "not for the key of our CA"),
        ("no CA", certify(|ca| ca.is_ca = IsCa::ExplicitNoCa), "does not make our CA a CA"),
        (
            "may not sign",
            certify(|ca| ca.key_usages = vec![KeyUsagePurpose::CrlSign]),
            "does not let our CA sign",
        ),
        (
            "another name",
            certify(|ca| ca.distinguished_name.push(DnType::CommonName, "Other CA")),
            "does not have the name of our CA",
        ),
        (
            "expired",
            certify(|ca| ca.not_after = ca.not_before + Duration::from_secs(1)),
            "is not valid today",
        ),
        ("other names", certify(constrained), "does not vouch for"),
        ("other names, with its root", certify(constrained) + &root, "does not vouch for"),
        ("another root", certify(|_| {}) + &Higher::new().0.pem(), "does not vouch for"),
    ];
    for (name, pem, expected) in cases {
        let error = install(&fixture, &certificates, &pem).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
        assert_eq!(chain(&certificates), before, "{name}");
        assert_eq!(chain(&fixture.open("", NOW)), before, "{name}");
    }
}
