//! Which certificates, requests and handshakes are signed, with what rcgen makes of them.

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, NameConstraints, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData, SignatureAlgorithm,
};
use x509_parser::{certificate::X509Certificate, certification_request::X509CertificationRequest};

use super::*;
use crate::sign::{KeyRole, SigningRequest};

const OURS: &str = "alpha.example";

type Make = fn(Vec<u8>) -> SigningRequest;

#[test]
fn certificates_of_our_servers_and_of_our_ca_are_signed() {
    for der in [leaf(|_| {}, &key()), own_ca(|_| {})] {
        let request = SigningRequest::Certificate(der.clone());
        assert_eq!(request.role(), KeyRole::Ca);
        assert_eq!(request.bytes_to_sign(&policy()).unwrap(), der);
    }
}

#[test]
fn other_certificates_are_refused() {
    use ExtendedKeyUsagePurpose as Usage;
    let usages = |usages: &[Usage]| {
        let usages = usages.to_vec();
        leaf(move |leaf| leaf.extended_key_usages = usages, &key())
    };
    let organizations = |more: &'static [&'static str]| {
        leaf(move |leaf| leaf.distinguished_name = named("Sallyport", more), &key())
    };
    let sub_ca = |leaf: &mut CertificateParams| {
        leaf.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        leaf.name_constraints = constraints();
    };
    let unconstrained = "a CA without name constraints";
    let other_ca = "a CA other than that of the enclave";
    let no_server = "not the certificate of a TLS server";
    let not_ours = "its organization is not our server";
    let not_p256 = "its key is not on P-256";
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("foreign subject", organizations(&["bravo.example"]), not_ours),
        ("no organization", organizations(&[]), not_ours),
        ("two organizations", organizations(&[OURS, "bravo.example"]), not_ours),
        ("foreign issuer", issued_by("bravo.example", server(), &key()), not_ours),
        (
            "path length 1",
            own_ca(|ca| ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(1))),
            other_ca,
        ),
        ("any path", own_ca(|ca| ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), other_ca),
        ("CA below ours", leaf(sub_ca, &key()), other_ca),
        ("no constraints", own_ca(|ca| ca.name_constraints = None), unconstrained),
        ("only exclusions", own_ca(|ca| ca.name_constraints = exclusions()), unconstrained),
        ("no usage", usages(&[]), no_server),
        ("code signing", usages(&[Usage::CodeSigning]), no_server),
        ("server and code", usages(&[Usage::ServerAuth, Usage::CodeSigning]), no_server),
        ("server and client", usages(&[Usage::ServerAuth, Usage::ClientAuth]), no_server),
        ("any usage", usages(&[Usage::Any, Usage::ServerAuth]), no_server),
        ("other usage", usages(&[Usage::ServerAuth, Usage::Other(vec![1, 3, 6, 1])]), no_server),
        ("RSA key", leaf(|_| {}, &ForeignKey(&PKCS_RSA_SHA256)), not_p256),
        ("P-384 key", leaf(|_| {}, &ForeignKey(&PKCS_ECDSA_P384_SHA384)), not_p256),
        ("Ed25519 key", leaf(|_| {}, &ForeignKey(&PKCS_ED25519)), not_p256),
        ("byte after it", [leaf(|_| {}, &key()), vec![0]].concat(), "bytes follow it"),
        ("a request", request_of(OURS), "not a TBSCertificate"),
        ("a whole certificate", whole_certificate(), "not a TBSCertificate"),
    ];
    for (name, der, why) in cases {
        check_refused(name, SigningRequest::Certificate(der), why);
    }
}

#[test]
fn requests_of_our_enclave_are_signed_and_no_others() {
    let kinds: [(Make, KeyRole); 2] =
        [(SigningRequest::CaRequest, KeyRole::Ca), (SigningRequest::TlsRequest, KeyRole::Tls)];
    for (make, role) in kinds {
        let der = request_of(OURS);
        let request = make(der.clone());
        assert_eq!(request.role(), role);
        assert_eq!(request.bytes_to_sign(&policy()).unwrap(), der);

        let cases = [
            ("foreign", request_of("bravo.example"), "its organization is not our server"),
            ("Ed25519", request_with(OURS, &other_key()), "its key is not on P-256"),
            ("byte after it", [der.clone(), vec![0]].concat(), "bytes follow it"),
            ("a certificate", leaf(|_| {}, &key()), "not a CertificationRequestInfo"),
            ("nothing", Vec::new(), "not a CertificationRequestInfo"),
        ];
        for (name, der, why) in cases {
            check_refused(name, make(der), why);
        }
    }
}

#[test]
fn the_handshakes_of_a_server_are_signed_and_nothing_that_resembles_them() {
    const SERVER: &str = "TLS 1.3, server CertificateVerify\0";
    let content = |spaces: usize, context: &str, hash: usize| {
        [" ".repeat(spaces).as_bytes(), context.as_bytes(), &vec![7; hash]].concat()
    };
    for hash in [32, 48] {
        let bytes = content(64, SERVER, hash);
        let request = SigningRequest::TlsHandshake(bytes.clone());
        assert_eq!(request.role(), KeyRole::Tls);
        assert_eq!(request.bytes_to_sign(&policy()).unwrap(), bytes);
    }
    let cases = [
        ("a client's", content(64, "TLS 1.3, client CertificateVerify\0", 32)),
        ("a space too few", content(63, SERVER, 32)),
        ("a space too many", content(65, SERVER, 32)),
        ("no hash", content(64, SERVER, 0)),
        ("half a hash", content(64, SERVER, 31)),
        ("SHA-1", content(64, SERVER, 20)),
        ("more than a hash", content(64, SERVER, 64)),
        ("TLS 1.2", vec![7; 64 + 32]),
        ("nothing", Vec::new()),
    ];
    for (name, bytes) in cases {
        let why = "not the CertificateVerify of a server";
        check_refused(name, SigningRequest::TlsHandshake(bytes), why);
    }
}

#[test]
fn too_many_bytes_are_not_parsed() {
    let huge = || vec![0x30; SIGNED_BYTES_MAX + 1];
    for request in [SigningRequest::Certificate(huge()), SigningRequest::TlsRequest(huge())] {
        assert!(matches!(request.bytes_to_sign(&policy()), Err(Refusal::TooLarge { .. })));
    }
}

proptest! {
    /// What is signed is what was parsed, to its last byte: a changed certificate is signed unchanged or refused.
    #[test]
    fn no_damage_makes_it_panic_or_sign_something_else(
        at: prop::sample::Index, byte: u8, cut: prop::sample::Index,
    ) {
        for der in [leaf(|_| {}, &key()), own_ca(|_| {}), request_of(OURS)] {
            let mut changed = der.clone();
            changed[at.index(der.len())] = byte;
            for bytes in [changed, der[..cut.index(der.len())].to_vec()] {
                for make in [SigningRequest::Certificate, SigningRequest::CaRequest] {
                    if let Ok(signed) = make(bytes.clone()).bytes_to_sign(&policy()) {
                        prop_assert_eq!(&signed, &bytes);
                    }
                }
            }
        }
    }
}

fn check_refused(name: &str, request: SigningRequest, expected: &str) {
    match request.bytes_to_sign(&policy()) {
        Err(Refusal::X509 { why, .. }) => assert_eq!(why, expected, "{name}"),
        other => panic!("{name}: {other:?}"),
    }
}

fn policy() -> Policy {
    Policy { server_name: OURS.try_into().unwrap() }
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn other_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ED25519).unwrap()
}

/// A public key of an algorithm that rcgen has no generator for here; its bytes are not looked at.
struct ForeignKey(&'static SignatureAlgorithm);

impl PublicKeyData for ForeignKey {
    fn der_bytes(&self) -> &[u8] {
        &[0x30, 3, 2, 1, 1]
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0
    }
}

fn named(name: &str, organizations: &[&str]) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    for (index, organization) in organizations.iter().enumerate() {
        // rcgen keeps one value per type, and looks at the object identifier only to compare types.
        let kind = if index == 0 {
            DnType::OrganizationName
        } else {
            DnType::CustomDnType(vec![2, 5, 4, 10])
        };
        subject.push(kind, *organization);
    }
    subject.push(DnType::CommonName, name);
    subject
}

fn server() -> CertificateParams {
    let mut leaf = CertificateParams::new(vec![OURS.to_owned()]).unwrap();
    leaf.distinguished_name = named("Sallyport", &[OURS]);
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf
}

fn ca_of(organization: &str) -> CertificateParams {
    let mut ca = CertificateParams::default();
    ca.distinguished_name = named("Sallyport enclave CA", &[organization]);
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.name_constraints = constraints();
    ca
}

fn constraints() -> Option<NameConstraints> {
    Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(OURS.to_owned())],
        excluded_subtrees: Vec::new(),
    })
}

fn exclusions() -> Option<NameConstraints> {
    Some(NameConstraints {
        permitted_subtrees: Vec::new(),
        excluded_subtrees: vec![GeneralSubtree::DnsName("bravo.example".to_owned())],
    })
}

/// The TBSCertificate of a server, issued by our CA.
fn leaf(change: impl FnOnce(&mut CertificateParams), key: &impl PublicKeyData) -> Vec<u8> {
    let mut leaf = server();
    change(&mut leaf);
    issued_by(OURS, leaf, key)
}

fn issued_by(
    organization: &str,
    leaf: CertificateParams,
    key_of_leaf: &impl PublicKeyData,
) -> Vec<u8> {
    let issuer = Issuer::new(ca_of(organization), key());
    to_be_signed(leaf.signed_by(key_of_leaf, &issuer).unwrap().der())
}

fn own_ca(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut ca = ca_of(OURS);
    change(&mut ca);
    to_be_signed(ca.self_signed(&key()).unwrap().der())
}

fn whole_certificate() -> Vec<u8> {
    ca_of(OURS).self_signed(&key()).unwrap().der().to_vec()
}

fn to_be_signed(certificate: &[u8]) -> Vec<u8> {
    let (_, certificate) = X509Certificate::from_der(certificate).unwrap();
    certificate.tbs_certificate.as_ref().to_vec()
}

fn request_of(organization: &str) -> Vec<u8> {
    request_with(organization, &key())
}

fn request_with(organization: &str, key: &KeyPair) -> Vec<u8> {
    let mut asked = server();
    asked.distinguished_name = named("Sallyport", &[organization]);
    let request = asked.serialize_request(key).unwrap();
    let (_, request) = X509CertificationRequest::from_der(request.der()).unwrap();
    request.certification_request_info.raw.to_vec()
}
