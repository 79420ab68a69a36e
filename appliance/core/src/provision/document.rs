//! The text of a provisioning document, and what is checked of it before anybody believes it.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use ruma::OwnedServerName;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Token;
use crate::{
    backup::RecoveryKey,
    digest::Sha256,
    limits::{
        ADMIN_APPROVALS_MAX, BACKUP_RECIPIENTS_MAX, PROVISION_LISTENERS_MAX, PROVISION_NAMES_MAX,
        PROVISION_OFFICERS_MAX, STICK_PROVISION_BYTES_MAX,
    },
    sign::PublicKey,
};

/// What makes a machine the box of an enclave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Number of this document; each later one has a higher.
    pub serial: u64,
    /// The enclave's Matrix server name. Never changes.
    pub server_name: OwnedServerName,
    /// Where clients reach the box, for example `https://chat.alpha.example`; by default the server name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
    /// Whether a box without a console takes it as its first document from whoever brings it.
    #[serde(default)]
    pub unattended: bool,
    /// Whether keys may lie in a file instead of a token. For development.
    #[serde(default)]
    pub allow_software_keys: bool,
    /// Addresses and ports that the box serves with TLS; by default every one, port 443.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<SocketAddr>,
    /// The wired network.
    #[serde(default)]
    pub network: Network,
    /// The certificate that the box issues.
    #[serde(default)]
    pub tls: Tls,
    /// The officers.
    pub officers: Officers,
    /// The token; without one nothing leaves the box.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
}

/// The wired network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// The interface, by its hardware address; by default any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
    /// Where the address is from.
    pub address: NetworkAddress,
    /// The router, for devices in other networks of the enclave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Name servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// Time servers; without one the clock of the machine is all there is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ntp: Vec<IpAddr>,
}

/// Where the address of the box is from. Text form: `dhcp`, or `192.168.7.1/24`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkAddress {
    /// A server of the network gives it.
    #[default]
    Dhcp,
    /// Always this one, with the length of its network's prefix in bits.
    Static(IpAddr, u8),
}

/// The hardware address of an interface. Text form: `52:54:00:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface([u8; 6]);

/// The certificate that the box issues from its own enclave CA, whose key its token makes. A higher CA can vouch for that one later
/// (`sallyctl certificate install`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Names and addresses that clients connect to, besides the server name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Where the certificate's key is.
    pub key_in: TlsKey,
}

/// Where the key of the serving certificate is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsKey {
    /// In the box's vault.
    #[default]
    Box,
    /// In the token.
    Token,
}

/// The officers of the enclave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Officers {
    /// Public keys of those who sign rosters and approvals, as `sallyctl ceremony officer-key` prints them.
    pub trusted_keys: Vec<PublicKey>,
    /// How many of them must sign a document like this one.
    #[serde(default = "one")]
    pub provision_approvals: u8,
    /// The keys that backups are encrypted to, as `sallyctl ceremony recovery-key` prints them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recovery_keys: Vec<RecoveryKey>,
}

/// A document that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Faulty {
    /// Larger than any document.
    #[error("the document is larger than {} KiB", STICK_PROVISION_BYTES_MAX >> 10)]
    TooLarge,
    /// Not text, not TOML, or a key is unknown or of another type.
    #[error(
        "the document does not have its shape: compare it with what `sallyctl provision new` makes"
    )]
    Shape(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A value is not possible.
    #[error("{key}: {problem}")]
    Value {
        /// The key as the document writes it.
        key: &'static str,
        /// What is wrong with it, and what to write.
        problem: String,
    },
}

impl Document {
    /// Reads and checks a document; answers what officers sign with it.
    ///
    /// # Errors
    /// [`Faulty`] names the place and the remedy.
    pub fn parse(text: &[u8]) -> Result<(Self, Sha256), Faulty> {
        if text.len() > STICK_PROVISION_BYTES_MAX {
            return Err(Faulty::TooLarge);
        }
        let sha256 = Sha256::of(text);
        let text = std::str::from_utf8(text).map_err(|error| Faulty::Shape(Box::new(error)))?;
        let document: Self =
            toml::from_str(text).map_err(|error| Faulty::Shape(Box::new(error)))?;
        document.check()?;
        Ok((document, sha256))
    }

    /// The URL that clients use.
    #[must_use]
    pub fn url(&self) -> String {
        self.public_url.clone().unwrap_or_else(|| format!("https://{}", self.server_name))
    }

    fn check(&self) -> Result<(), Faulty> {
        let wrong = |key, problem: &str| Err(Faulty::Value { key, problem: problem.to_owned() });
        if self.serial == 0 || i64::try_from(self.serial).is_err() {
            return wrong("serial", "write a number from 1 on");
        }
        let url = self.url();
        let host = url.strip_prefix("https://").unwrap_or_default();
        let (name, port) = host.rsplit_once(':').unwrap_or((host, "443"));
        if port.parse::<u16>().is_err() || !is_name(name) {
            return wrong("public_url", "write it like \"https://chat.alpha.example\"");
        }
        if self.listen.len() > PROVISION_LISTENERS_MAX {
            return wrong("listen", "there are too many addresses");
        }
        if let NetworkAddress::Static(own, _) = self.network.address
            && let Some(other) = self
                .listen
                .iter()
                .map(SocketAddr::ip)
                .find(|ip| !ip.is_unspecified() && !ip.is_loopback() && *ip != own)
        {
            // The server would wait for an address that never comes.
            let problem = format!("{other} is not the address in [network], {own}");
            return wrong("listen", &problem);
        }
        if self.tls.names.len() > PROVISION_NAMES_MAX || !self.tls.names.iter().all(|n| is_name(n))
        {
            return wrong("tls.names", "write few names and addresses, without scheme and port");
        }
        if self.tls.key_in == TlsKey::Token && self.token.is_none() {
            return wrong("tls.key_in", "there is no [token] for it");
        }
        if let Some(token) = &self.token {
            token.check(self.allow_software_keys)?;
        }
        self.officers.check()?;
        self.network.check()
    }
}

impl Officers {
    fn check(&self) -> Result<(), Faulty> {
        let wrong = |key, problem: String| Err(Faulty::Value { key, problem });
        let officers = self.trusted_keys.iter().collect::<std::collections::BTreeSet<_>>().len();
        if officers != self.trusted_keys.len() || officers > PROVISION_OFFICERS_MAX {
            return wrong(
                "officers.trusted_keys",
                "a key is there twice, or there are too many".into(),
            );
        }
        if self.recovery_keys.len() > BACKUP_RECIPIENTS_MAX {
            return wrong("officers.recovery_keys", "there are too many".into());
        }
        let needed = usize::from(self.provision_approvals);
        let most = officers.min(ADMIN_APPROVALS_MAX);
        if !(1..=most).contains(&needed) {
            let problem = format!("{needed} must sign, which is not between 1 and {most}");
            return wrong("officers.provision_approvals", problem);
        }
        Ok(())
    }
}

impl Network {
    fn check(&self) -> Result<(), Faulty> {
        let wrong = |key, problem: &str| Err(Faulty::Value { key, problem: problem.to_owned() });
        if self.dns.len() > PROVISION_NAMES_MAX || self.ntp.len() > PROVISION_NAMES_MAX {
            return wrong("network", "there are too many servers");
        }
        match (self.address, self.gateway) {
            (NetworkAddress::Dhcp, Some(_)) => {
                wrong("network.gateway", "leave it out: with DHCP the network says it")
            }
            (NetworkAddress::Static(own, _), Some(gateway))
                if own.is_ipv4() != gateway.is_ipv4() || own == gateway =>
            {
                wrong("network.gateway", "it must be another address of the same kind")
            }
            _ => Ok(()),
        }
    }
}

const fn one() -> u8 {
    1
}

/// A DNS name or an address, as a certificate can carry it.
fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.parse::<IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(label))
}

/// Text that is no address of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write \"dhcp\", or an address with the length of its prefix: \"192.168.7.1/24\"")]
pub struct NotAnAddress;

impl FromStr for NetworkAddress {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        if text == "dhcp" {
            return Ok(Self::Dhcp);
        }
        let (address, prefix) = text.split_once('/').ok_or(NotAnAddress)?;
        let address: IpAddr = address.parse().map_err(|_| NotAnAddress)?;
        let prefix: u8 = prefix.parse().map_err(|_| NotAnAddress)?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let everyone = match address {
            IpAddr::V4(address) => address == Ipv4Addr::BROADCAST,
            IpAddr::V6(address) => address == Ipv6Addr::UNSPECIFIED,
        };
        let usable = !(everyone
            || address.is_unspecified()
            || address.is_loopback()
            || address.is_multicast());
        if usable && (1..=longest).contains(&prefix) {
            Ok(Self::Static(address, prefix))
        } else {
            Err(NotAnAddress)
        }
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dhcp => f.write_str("dhcp"),
            Self::Static(address, prefix) => write!(f, "{address}/{prefix}"),
        }
    }
}

/// Text that is no hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write the hardware address like \"52:54:00:12:34:56\"")]
pub struct NotAnInterface;

impl FromStr for Interface {
    type Err = NotAnInterface;

    fn from_str(text: &str) -> Result<Self, NotAnInterface> {
        let mut address = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut address {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(NotAnInterface)?;
            let digits = part.bytes().all(|b| b.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16).ok().filter(|_| digits).ok_or(NotAnInterface)?;
        }
        if parts.next().is_some() { Err(NotAnInterface) } else { Ok(Self(address)) }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

macro_rules! text_form {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

text_form!(NetworkAddress, Interface);
