//! The enclave CA and the serving certificate that it issues.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints,
};
use ring::digest;
use ruma::ServerName;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use sallyport_core::time::Millis;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{BACKDATED, Error, LEAF_VALIDITY, Pair, RENEW_BEFORE};
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

/// The enclave CA.
#[derive(Debug)]
pub(super) struct Authority {
    folder: PathBuf,
    organization: String,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// `tls/ca.json`: the CA in one file, so that no crash can part key and certificate.
#[derive(Serialize, Deserialize)]
struct StoredAuthority {
    certificate: String,
    key: String,
    /// What the CA may certify besides private addresses.
    permitted: Vec<String>,
}

/// `tls/leaf.json`: the serving certificate with what decides whether it still fits.
#[derive(Serialize, Deserialize)]
struct StoredLeaf {
    certificate: String,
    key: String,
    names: Vec<String>,
    not_before: Millis,
    not_after: Millis,
    ca_fingerprint: String,
}

impl Authority {
    /// Loads the CA, or founds it for the given names if this is the first start.
    pub(super) fn open(
        data_dir: &Path,
        server_name: &ServerName,
        names: &[String],
        now: Millis,
    ) -> Result<Self, Error> {
        let folder = data_dir.join("tls");
        fs::create_dir_all(&folder).map_err(file("make", &folder))?;
        let path = folder.join("ca.json");
        let organization = server_name.as_str().to_owned();
        let stored = match read::<StoredAuthority>(&path)? {
            Some(stored) => stored,
            None => {
                let stored = found(&organization, names, now).map_err(Error::Issue)?;
                write(&path, &stored)?;
                stored
            }
        };
        check_permitted(&stored.permitted, names, &path)?;
        let key = KeyPair::from_pem(&stored.key).map_err(damaged(&path))?;
        let certificate = CertificateDer::from_pem_slice(stored.certificate.as_bytes())
            .map_err(damaged(&path))?;
        publish(&data_dir.join("ca.pem"), &stored.certificate)?;
        let issuer = Issuer::new(parameters(&organization), key);
        Ok(Self { folder, organization, certificate, issuer })
    }

    /// SHA-256 of the certificate, in pairs of hexadecimal digits.
    pub(super) fn fingerprint(&self) -> String {
        let digest = digest::digest(&digest::SHA256, &self.certificate);
        let pairs = digest.as_ref().iter().map(|byte| format!("{byte:02X}"));
        pairs.collect::<Vec<_>>().join(":")
    }

    /// The serving certificate: the stored one while it fits, else a new one.
    pub(super) fn leaf(&self, names: &[String], now: Millis) -> Result<Pair, Error> {
        let path = self.folder.join("leaf.json");
        let stored = match read::<StoredLeaf>(&path)? {
            Some(stored) if self.fits(&stored, names, now) => stored,
            _ => {
                let stored = self.issue(names, now).map_err(Error::Issue)?;
                write(&path, &stored)?;
                stored
            }
        };
        let leaf = CertificateDer::from_pem_slice(stored.certificate.as_bytes())
            .map_err(damaged(&path))?;
        let key = PrivateKeyDer::from_pem_slice(stored.key.as_bytes()).map_err(damaged(&path))?;
        Ok((vec![leaf, self.certificate.clone()], key))
    }

    fn fits(&self, leaf: &StoredLeaf, names: &[String], now: Millis) -> bool {
        leaf.names == names
            && leaf.ca_fingerprint == self.fingerprint()
            && leaf.not_before <= now
            && now.plus(RENEW_BEFORE) < leaf.not_after
    }

    fn issue(&self, names: &[String], now: Millis) -> Result<StoredLeaf, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::new(names.to_vec())?;
        leaf.distinguished_name = subject("Sallyport", &self.organization);
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        let (not_before, not_after) = validity(&mut leaf, now, LEAF_VALIDITY);
        Ok(StoredLeaf {
            certificate: leaf.signed_by(&key, &self.issuer)?.pem(),
            key: key.serialize_pem(),
            names: names.to_vec(),
            not_before,
            not_after,
            ca_fingerprint: self.fingerprint(),
        })
    }
}

fn found(
    organization: &str,
    names: &[String],
    now: Millis,
) -> Result<StoredAuthority, rcgen::Error> {
    let key = KeyPair::generate()?;
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
    Ok(StoredAuthority {
        certificate: ca.self_signed(&key)?.pem(),
        key: key.serialize_pem(),
        permitted: names.to_vec(),
    })
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
    files::replace(path, certificate.as_bytes(), Readers::All).map_err(file("write", path))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    match fs::read(path) {
        Ok(content) => serde_json::from_slice(&content).map(Some).map_err(damaged(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file("read", path)(error)),
    }
}

fn write(path: &Path, content: &impl Serialize) -> Result<(), Error> {
    let content = serde_json::to_vec_pretty(content).map_err(damaged(path))?;
    files::replace(path, &content, Readers::None).map_err(file("write", path))
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}

fn damaged<E: std::error::Error + Send + Sync + 'static>(path: &Path) -> impl FnOnce(E) -> Error {
    let path = path.to_owned();
    move |source| Error::Damaged { path, source: Box::new(source) }
}
