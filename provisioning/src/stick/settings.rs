//! The settings of a box: what its provisioning decided, as files.
//!
//! `provision.cbor` is the record ([`Provisioned`]) and decides; `sallyport.toml` and `network.toml` follow from it and are written again
//! by [`Settings::settle`], at every start of the machine, should a power cut have come in between. Each is replaced in one step,
//! and the one before stays beside it with `.before` at the end of its name.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use sallyport_core::{
    backup::RecoveryKey,
    limits::STICK_PROVISION_BYTES_MAX,
    provision::{Document, Network, NetworkAddress, Provisioned, Tls, TokenPin, Trust},
    sign::PublicKey,
};
use sallyport_hsm::{BoxToken, Modules, PinSource, Sessions, TokenConfig};
use serde::Serialize;

use crate::files;

/// The record of the provisioning.
pub(crate) const RECORD: &str = "provision.cbor";
/// The configuration of the server.
const SERVER: &str = "sallyport.toml";
/// The token, for its helper; not there if the box has none behind a module.
pub(crate) const TOKEN: &str = "token.toml";
/// The network of the machine.
pub(crate) const NETWORK: &str = "network.toml";

/// Keys in a file, for development: in the folder of the server's data.
const SOFTWARE_KEYS: &str = "software-token";
/// Milliseconds that a token has if its document does not say: smart cards take seconds to make a key.
const TOKEN_TIMEOUT_MS: u64 = 30_000;

/// The folder of the settings.
pub(crate) struct Settings {
    folder: PathBuf,
    places: Places,
}

/// Where things are on this machine, which no document decides.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// The folder of the server's data.
    pub(crate) data_dir: PathBuf,
    /// The administration socket.
    pub(crate) socket: PathBuf,
    /// The socket at which a service manager starts the token's helper.
    pub(crate) helper: PathBuf,
    /// The modules that the system has for tokens.
    pub(crate) modules: Modules,
}

impl Settings {
    pub(crate) fn new(folder: &Path, places: Places) -> Self {
        Self { folder: folder.to_owned(), places }
    }

    /// What is in force; `None` if the box was never provisioned.
    pub(crate) fn read(&self) -> anyhow::Result<Option<Provisioned>> {
        let path = self.folder.join(RECORD);
        match fs::metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            looked_at => looked_at.with_context(|| format!("cannot open {}", path.display()))?,
        };
        let bytes = files::read(&path, 2 * STICK_PROVISION_BYTES_MAX)?;
        Ok(Some(Provisioned::decode(&bytes)?))
    }

    /// Puts a record into force.
    pub(crate) fn install(&self, record: &Provisioned) -> anyhow::Result<()> {
        // Nothing may be half done for a reason that was known before.
        self.check(record.document())?;
        let server = self.server(record)?;
        let network = network(&record.document().network)?;
        let token = token(record.document())?;
        self.replace(RECORD, &record.encode().context("the record cannot be written")?)?;
        self.replace(NETWORK, network.as_bytes())?;
        self.put(TOKEN, token.as_deref())?;
        self.replace(SERVER, server.as_bytes())
    }

    /// Writes again what follows from the record, if it is not so.
    pub(crate) fn settle(&self) -> anyhow::Result<Option<Provisioned>> {
        let Some(record) = self.read()? else { return Ok(None) };
        let network = network(&record.document().network)?;
        let token = token(record.document())?;
        let server = self.server(&record)?;
        for (name, text) in [(NETWORK, Some(network)), (TOKEN, token), (SERVER, Some(server))] {
            self.put(name, text.as_deref())?;
        }
        Ok(Some(record))
    }

    /// What a document asks of the system must be there.
    pub(crate) fn check(&self, document: &Document) -> anyhow::Result<()> {
        if let Some(token) = document.token.as_ref().filter(|token| !token.kind.is_software()) {
            self.places.modules.find(&token.kind)?;
        }
        Ok(())
    }

    /// Writes a file if it does not say this already, or removes it.
    fn put(&self, name: &str, text: Option<&str>) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        let Some(text) = text else { return crate::notice::withdraw(&path) };
        let there = fs::read(path).unwrap_or_default();
        if there == text.as_bytes() { Ok(()) } else { self.replace(name, text.as_bytes()) }
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        let (new, before) = (
            path.with_file_name(format!("{name}.new")),
            path.with_file_name(format!("{name}.before")),
        );
        let replaced = || -> anyhow::Result<()> {
            if new.symlink_metadata().is_ok() {
                fs::remove_file(&new)?;
            }
            files::write_new(&new, bytes)?;
            if path.exists() {
                if before.symlink_metadata().is_ok() {
                    fs::remove_file(&before)?;
                }
                let old = fs::read(&path)?;
                files::write_new(&before, &old)?;
            }
            fs::rename(&new, &path)?;
            Ok(files::sync_folder(&self.folder)?)
        };
        replaced().with_context(|| format!("cannot write {}", path.display()))
    }

    /// The configuration of the server.
    fn server(&self, record: &Provisioned) -> anyhow::Result<String> {
        let document = record.document();
        let everywhere = || vec![SocketAddr::from(([0; 8], 443))];
        let listen =
            if document.listen.is_empty() { everywhere() } else { document.listen.clone() };
        let listeners = listen.into_iter().map(|address| Listener {
            address,
            apis: ["client", "activate"],
            tls: true,
        });
        let server = Server {
            server_name: document.server_name.as_str(),
            public_url: document.url(),
            data_dir: &self.places.data_dir,
            allow_software_keys: document.allow_software_keys,
            unattended: record.trust() == Trust::Unattended,
            listeners: listeners.collect(),
            tls: &document.tls,
            admin: Admin { socket: &self.places.socket },
            roster: Roster { trusted_keys: &document.officers.trusted_keys },
            backup: Backup { recovery_keys: &document.officers.recovery_keys },
            token: self.token(document),
        };
        let text = toml::to_string(&server).context("cannot write the configuration")?;
        Ok(format!(
            "# Made from provisioning document {}: change that one.\n{text}",
            document.serial
        ))
    }

    /// The token as the server reaches it: through a helper that another user runs.
    fn token(&self, document: &Document) -> Option<TokenConfig> {
        let token = document.token.as_ref()?;
        Some(if token.kind.is_software() {
            TokenConfig::Software { path: self.places.data_dir.join(SOFTWARE_KEYS), delay_ms: 0 }
        } else {
            TokenConfig::Pkcs11Service {
                helper: self.places.helper.clone(),
                pin: match token.pin {
                    // The console gives the one that is sealed, as a person would.
                    TokenPin::Ask | TokenPin::Sealed => PinSource::Ask,
                    TokenPin::Pad => PinSource::Pad,
                },
                timeout_ms: token.timeout_ms.unwrap_or(TOKEN_TIMEOUT_MS),
                mode: token.mode,
            }
        })
    }
}

/// The configuration of the server, as `sallyport serve` reads it.
#[derive(Serialize)]
struct Server<'a> {
    server_name: &'a str,
    public_url: String,
    data_dir: &'a Path,
    allow_software_keys: bool,
    unattended: bool,
    listeners: Vec<Listener>,
    tls: &'a Tls,
    admin: Admin<'a>,
    roster: Roster<'a>,
    backup: Backup<'a>,
    token: Option<TokenConfig>,
}

#[derive(Serialize)]
struct Listener {
    address: SocketAddr,
    apis: [&'static str; 2],
    tls: bool,
}

#[derive(Serialize)]
struct Admin<'a> {
    socket: &'a Path,
}

#[derive(Serialize)]
struct Roster<'a> {
    trusted_keys: &'a [PublicKey],
}

#[derive(Serialize)]
struct Backup<'a> {
    recovery_keys: &'a [RecoveryKey],
}

fn network(network: &Network) -> anyhow::Result<String> {
    toml::to_string(network).context("cannot write the settings of the network")
}

/// What the helper of the token serves; nothing if there is no token behind a module.
fn token(document: &Document) -> anyhow::Result<Option<String>> {
    let Some(token) = document.token.as_ref().filter(|token| !token.kind.is_software()) else {
        return Ok(None);
    };
    let sessions = token.sessions.map(Sessions::try_from).transpose()?;
    let served = BoxToken {
        server_name: document.server_name.clone(),
        kind: token.kind.clone(),
        label: token.label.clone().context("the token has no label")?,
        serial: token.serial.clone(),
        sessions: sessions.unwrap_or_default(),
        pin: token.pin,
    };
    toml::to_string(&served).map(Some).context("cannot write the settings of the token")
}

/// The settings of the network as systemd-networkd reads them.
pub(crate) fn networkd(network: &Network) -> String {
    let list = |addresses: &[IpAddr]| {
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let mut lines = vec!["[Match]".to_owned(), "Type=ether".to_owned()];
    lines.extend(network.interface.map(|interface| format!("MACAddress={interface}")));
    lines.extend(["", "[Network]", "LinkLocalAddressing=no", "IPv6AcceptRA=no"].map(str::to_owned));
    match network.address {
        // The server answers to its end, which may come after that of networkd.
        NetworkAddress::Dhcp => {
            lines.extend(["DHCP=yes", "KeepConfiguration=dynamic-on-stop"].map(str::to_owned));
        }
        NetworkAddress::Static(..) => lines.push(format!("Address={}", network.address)),
    }
    lines.extend(network.gateway.map(|gateway| format!("Gateway={gateway}")));
    let servers = [("DNS", &network.dns), ("NTP", &network.ntp)];
    let servers = servers.into_iter().filter(|(_, servers)| !servers.is_empty());
    lines.extend(servers.map(|(key, servers)| format!("{key}={}", list(servers))));
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_written_for_networkd() {
        let of = |text: &str| networkd(&toml::from_str(text).unwrap());
        let dhcp = "[Match]\nType=ether\n\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n\
                    DHCP=yes\nKeepConfiguration=dynamic-on-stop\n";
        assert_eq!(of(""), dhcp);
        let fixed = of(
            "interface = \"52:54:00:12:34:56\"\naddress = \"10.0.0.1/8\"\ngateway = \"10.0.0.2\"\ndns = [\"10.0.0.3\", \"10.0.0.4\"]",
        );
        for line in [
            "MACAddress=52:54:00:12:34:56",
            "Address=10.0.0.1/8",
            "Gateway=10.0.0.2",
            "DNS=10.0.0.3 10.0.0.4",
        ] {
            assert!(fixed.lines().any(|l| l == line), "{fixed}");
        }
        assert!(!fixed.contains("DHCP") && !fixed.contains("NTP"), "{fixed}");
    }
}
