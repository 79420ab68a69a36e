//! The enclave CA: founded once, with a key in the token, or in a file where no token is configured.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, PublicKeyData,
};
use ring::digest;
use ruma::ServerName;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use sallyport_core::{
    limits::CERTIFICATES_BYTES_MAX,
    sign::{KeyRole, SigningRequest},
    time::Millis,
};
use sallyport_hsm::KeyName;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    BACKDATED, Error, Keys, LEAF_VALIDITY,
    key::{Asked, SecretPem, TokenKey},
};
use crate::files::{self, Readers};

/// How long the CA is valid: longer than a box is in use, because devices must trust a new one
/// by hand.
const CA_VALIDITY: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);

/// Private, shared and local addresses (RFC 1918, 3927, 4193, 4291, 6598).
const PRIVATE_ADDRESSES: [(IpAddr, u8); 9] = [
    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(100, 64, 0, 0)), 10),
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), 12),
    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), 16),
    (IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
    (IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)), 7),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
];

/// The enclave CA, once it is founded.
pub(super) struct Authority {
    organization: String,
    certificate: CertificateDer<'static>,
    pem: String,
    /// What stands after the box's certificate: the CA's own, or the chain that a higher CA gave for it.
    chain: Vec<CertificateDer<'static>>,
    key: CaKey,
}

/// Where the CA's key is.
enum CaKey {
    File(Box<KeyPair>),
    Token(KeyName),
}

/// `tls/ca.json`: the CA in one file, so that no crash can part key and certificate.
#[derive(Serialize, Deserialize)]
struct StoredAuthority {
    certificate: String,
    /// The private key, if no token was configured when the CA was founded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<SecretPem>,
    /// Name of the key in the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token_key: Option<KeyName>,
    /// What the CA may certify besides private addresses.
    permitted: Vec<String>,
    /// The chain that a higher CA gave for ours, ours first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    chain: Vec<String>,
}

/// Who signs what is asked for in this moment.
enum Signing {
    File,
    Token(TokenKey),
}

/// A CA that nobody knows yet: it is not in its file.
pub(super) struct Founded {
    pub(super) authority: Authority,
    stored: StoredAuthority,
}

impl Founded {
    /// A CA for the given names, with this key in the token, or a key of its own for the file.
    pub(super) fn make(
        server_name: &ServerName,
        names: &[String],
        key: Option<TokenKey>,
        now: Millis,
    ) -> Result<Self, Error> {
        let organization = server_name.as_str().to_owned();
        let params = constrained(&organization, names, now);
        let (certificate, key) = match key {
            Some(key) => {
                let asked = Asked::new(&key, SigningRequest::Certificate);
                let certificate = match params.self_signed(&asked) {
                    Ok(certificate) => certificate,
                    Err(error) => return Err(asked.error(error)),
                };
                (certificate, CaKey::Token(key.name().clone()))
            }
            None => {
                let key = KeyPair::generate().map_err(Error::Issue)?;
                let certificate = params.self_signed(&key).map_err(Error::Issue)?;
                (certificate, CaKey::File(Box::new(key)))
            }
        };
        let (secret, token_key) = match &key {
            CaKey::File(pair) => (Some(SecretPem::of(pair)), None),
            CaKey::Token(name) => (None, Some(name.clone())),
        };
        let stored = StoredAuthority {
            certificate: certificate.pem(),
            key: secret,
            token_key,
            permitted: names.to_vec(),
            chain: vec![],
        };
        let (pem, certificate) = (certificate.pem(), certificate.der().clone());
        let chain = vec![certificate.clone()];
        Ok(Self { authority: Authority { organization, certificate, pem, chain, key }, stored })
    }

    /// Writes it down, for good and for handing out. The one before, if there was one, is gone from then on.
    pub(super) fn keep(self, data_dir: &Path) -> Result<Authority, Error> {
        let path = path(data_dir);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(files::failed("make", folder))?;
        }
        write(&path, &self.stored)?;
        publish(&data_dir.join("ca.pem"), &self.stored.certificate)?;
        let place = if self.stored.key.is_some() { "file" } else { "token" };
        log::info!(key = place; "the enclave CA is founded");
        Ok(self.authority)
    }
}

impl Authority {
    /// Loads the CA, if it was founded.
    pub(super) fn load(
        data_dir: &Path,
        server_name: &ServerName,
        names: &[String],
    ) -> Result<Option<Self>, Error> {
        let path = path(data_dir);
        let Some(stored) = read(&path)? else { return Ok(None) };
        check_permitted(&stored.permitted, names, &path)?;
        let pem = |text: &String| CertificateDer::from_pem_slice(text.as_bytes());
        let certificate = pem(&stored.certificate).map_err(damaged(&path))?;
        let chain: Result<Vec<_>, _> = stored.chain.iter().map(pem).collect();
        let mut chain = chain.map_err(damaged(&path))?;
        if chain.is_empty() {
            chain.push(certificate.clone());
        }
        let key = match (&stored.key, stored.token_key) {
            (_, Some(name)) => CaKey::Token(name),
            (Some(key), None) => {
                CaKey::File(Box::new(KeyPair::from_pem(key.expose()).map_err(damaged(&path))?))
            }
            (None, None) => return Err(damaged(&path)(rcgen::Error::CouldNotParseKeyPair)),
        };
        publish(&data_dir.join("ca.pem"), &stored.certificate)?;
        let organization = server_name.as_str().to_owned();
        Ok(Some(Self { organization, certificate, pem: stored.certificate, chain, key }))
    }

    /// Founds the CA for the given names, with a key in the token, or, if none is configured, in the file.
    pub(super) fn found(
        data_dir: &Path,
        server_name: &ServerName,
        names: &[String],
        keys: &Keys<'_>,
        now: Millis,
    ) -> Result<Self, Error> {
        let key = keys.make(KeyRole::Ca, now)?;
        Founded::make(server_name, names, key, now)?.keep(data_dir)
    }

    /// SHA-256 of the certificate, in pairs of hexadecimal digits.
    pub(super) fn fingerprint(&self) -> String {
        let digest = digest::digest(&digest::SHA256, &self.certificate);
        let pairs = digest.as_ref().iter().map(|byte| format!("{byte:02X}"));
        pairs.collect::<Vec<_>>().join(":")
    }

    /// The CA's own certificate, for devices to trust.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// The CA's own certificate.
    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What is served after the box's certificate.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Whether a higher CA vouches for this one.
    pub(super) fn is_vouched_for(&self) -> bool {
        self.chain.first() != Some(&self.certificate)
    }

    /// The key in the token; `None` if the file has it.
    pub(super) fn token_key(&self) -> Option<&KeyName> {
        match &self.key {
            CaKey::File(_) => None,
            CaKey::Token(name) => Some(name),
        }
    }

    /// The public half of a key that the file has.
    pub(super) fn file_key(&self) -> Option<&[u8]> {
        match &self.key {
            CaKey::File(pair) => Some(pair.der_bytes()),
            CaKey::Token(_) => None,
        }
    }

    /// A certificate for the box with this key, in PEM, and from when until when it is valid.
    pub(super) fn issue(
        &self,
        names: &[String],
        key: &impl PublicKeyData,
        keys: &Keys<'_>,
        now: Millis,
    ) -> Result<(String, Millis, Millis), Error> {
        let mut leaf = CertificateParams::new(names.to_vec()).map_err(Error::Issue)?;
        leaf.distinguished_name = subject("Sallyport", &self.organization);
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        let (not_before, not_after) = validity(&mut leaf, now, LEAF_VALIDITY);
        let issuer = parameters(&self.organization);
        let certificate = match (&self.key, self.signing(keys)?) {
            (_, Signing::Token(key_of_ca)) => {
                let asked = Asked::new(&key_of_ca, SigningRequest::Certificate);
                let signed = leaf.signed_by(key, &Issuer::new(issuer, &asked));
                signed.map_err(|error| asked.error(error))?
            }
            (CaKey::File(pair), Signing::File) => {
                leaf.signed_by(key, &Issuer::new(issuer, &**pair)).map_err(Error::Issue)?
            }
            (CaKey::Token(name), Signing::File) => return Err(Error::NoToken(name.clone())),
        };
        Ok((certificate.pem(), not_before, not_after))
    }

    /// Asks a higher CA for a certificate of this one, in PEM (PKCS #10).
    pub(super) fn request(&self, keys: &Keys<'_>) -> Result<String, Error> {
        let params = parameters(&self.organization);
        match (&self.key, self.signing(keys)?) {
            (_, Signing::Token(key)) => requested(&params, &key, SigningRequest::CaRequest),
            (CaKey::File(pair), Signing::File) => {
                let request = params.serialize_request(&**pair).map_err(Error::Issue)?;
                request.pem().map_err(Error::Issue)
            }
            (CaKey::Token(name), Signing::File) => Err(Error::NoToken(name.clone())),
        }
    }

    fn signing(&self, keys: &Keys<'_>) -> Result<Signing, Error> {
        match &self.key {
            CaKey::File(_) => Ok(Signing::File),
            CaKey::Token(name) => keys.of(name).map(Signing::Token),
        }
    }
}

/// A request for a certificate of a server, in PEM (PKCS #10).
pub(super) fn server_request(
    organization: &str,
    names: &[String],
    key: &TokenKey,
) -> Result<String, Error> {
    let mut params = CertificateParams::new(names.to_vec()).map_err(Error::Issue)?;
    params.distinguished_name = subject("Sallyport", organization);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    requested(&params, key, SigningRequest::TlsRequest)
}

fn requested(
    params: &CertificateParams,
    key: &TokenKey,
    request: fn(Vec<u8>) -> SigningRequest,
) -> Result<String, Error> {
    let asked = Asked::new(key, request);
    match params.serialize_request(&asked) {
        Ok(request) => request.pem().map_err(Error::Issue),
        Err(error) => Err(asked.error(error)),
    }
}

/// Keeps the chain that a higher CA gave for ours. What it is worth was checked before.
pub(super) fn keep_chain(data_dir: &Path, chain: &[CertificateDer<'static>]) -> Result<(), Error> {
    let path = path(data_dir);
    let mut stored: StoredAuthority = read(&path)?.ok_or(Error::NoAuthority)?;
    stored.chain = chain.iter().map(|certificate| pem(certificate)).collect();
    write(&path, &stored)
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("tls").join("ca.json")
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let body = STANDARD.encode(certificate);
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in body.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// The CA's own certificate, before it is signed.
fn constrained(organization: &str, names: &[String], now: Millis) -> CertificateParams {
    let mut ca = parameters(organization);
    validity(&mut ca, now, CA_VALIDITY);
    let given = names.iter().map(|name| match name.parse() {
        Ok(ip @ IpAddr::V4(_)) => GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(ip, 32)),
        Ok(ip @ IpAddr::V6(_)) => GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(ip, 128)),
        Err(_) => GeneralSubtree::DnsName(name.clone()),
    });
    let private = PRIVATE_ADDRESSES
        .map(|(ip, prefix)| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(ip, prefix)));
    ca.name_constraints = Some(NameConstraints {
        permitted_subtrees: given.chain(private).collect(),
        excluded_subtrees: Vec::new(),
    });
    ca
}

/// What founding the CA and issuing with it have in common.
fn parameters(organization: &str) -> CertificateParams {
    let mut ca = CertificateParams::default();
    ca.distinguished_name = subject("Sallyport enclave CA", organization);
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca
}

fn subject(name: &str, organization: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, organization);
    subject.push(DnType::CommonName, name);
    subject
}

fn validity(params: &mut CertificateParams, now: Millis, length: Duration) -> (Millis, Millis) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    // Whole seconds: certificates know no smaller unit.
    let now = Duration::from_secs(now.0 / 1000);
    let (not_before, not_after) = (now.saturating_sub(BACKDATED), now.saturating_add(length));
    params.not_before = epoch + not_before;
    params.not_after = epoch + not_after;
    (Millis(0).plus(not_before), Millis(0).plus(not_after))
}

/// Names the first name that the CA's constraints do not cover.
fn check_permitted(permitted: &[String], names: &[String], path: &Path) -> Result<(), Error> {
    let outside = names.iter().find(|name| match name.parse() {
        Ok(ip) => !permitted.contains(name) && !is_private(ip),
        Err(_) => !permitted.iter().any(|subtree| is_below(name, subtree)),
    });
    match outside {
        None => Ok(()),
        Some(name) => Err(Error::OutsideConstraints {
            name: name.clone(),
            permitted: permitted.join(", "),
            path: path.to_owned(),
        }),
    }
}

fn is_below(name: &str, subtree: &str) -> bool {
    name.strip_suffix(subtree).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn is_private(ip: IpAddr) -> bool {
    PRIVATE_ADDRESSES.iter().any(|(network, prefix)| match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) => {
            (ip.to_bits() ^ network.to_bits()).leading_zeros() >= u32::from(*prefix)
        }
        (IpAddr::V6(ip), IpAddr::V6(network)) => {
            (ip.to_bits() ^ network.to_bits()).leading_zeros() >= u32::from(*prefix)
        }
        _ => false,
    })
}

/// Writes the certificate for handing out, if it is not there already.
fn publish(path: &Path, certificate: &str) -> Result<(), Error> {
    if fs::read(path).is_ok_and(|found| found == certificate.as_bytes()) {
        return Ok(());
    }
    Ok(files::replace(path, certificate.as_bytes(), Readers::All)
        .map_err(files::failed("write", path))?)
}

fn read(path: &Path) -> Result<Option<StoredAuthority>, Error> {
    let content = files::read(path, CERTIFICATES_BYTES_MAX).map_err(files::failed("read", path))?;
    content.map(|content| serde_json::from_slice(&content).map_err(damaged(path))).transpose()
}

fn write(path: &Path, content: &StoredAuthority) -> Result<(), Error> {
    let content = serde_json::to_vec_pretty(content).map_err(damaged(path))?;
    let content = Zeroizing::new(content);
    Ok(files::replace(path, &content, Readers::None).map_err(files::failed("write", path))?)
}

fn damaged<E: std::error::Error + Send + Sync + 'static>(path: &Path) -> impl FnOnce(E) -> Error {
    let path = path.to_owned();
    move |source| Error::Damaged { path, source: Box::new(source) }
}
