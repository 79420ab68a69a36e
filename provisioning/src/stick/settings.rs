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

use anyhow::{Context as _, ensure};
use sallyport_core::{
    backup::RecoveryKey,
    limits::STICK_PROVISION_BYTES_MAX,
    provision::{Document, Network, NetworkAddress, Provisioned, Tls, Trust},
    sign::PublicKey,
};
use sallyport_hsm::{PinSource, TokenConfig};
use serde::{Deserialize as _, Serialize};

use crate::files;

/// The record of the provisioning.
pub(crate) const RECORD: &str = "provision.cbor";
/// The configuration of the server.
const SERVER: &str = "sallyport.toml";
/// The network of the machine.
pub(crate) const NETWORK: &str = "network.toml";

/// The folder of the settings.
pub(crate) struct Settings {
    folder: PathBuf,
    places: Places,
}

/// Where things are on this machine, which no document decides.
#[derive(Clone)]
pub(crate) struct Places {
    /// The folder of the server's data.
    pub(crate) data_dir: PathBuf,
    /// The administration socket.
    pub(crate) socket: PathBuf,
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
        let server = self.server(record)?;
        let network = network(&record.document().network)?;
        self.replace(RECORD, &record.encode().context("the record cannot be written")?)?;
        self.replace(NETWORK, network.as_bytes())?;
        self.replace(SERVER, server.as_bytes())
    }

    /// Writes again what follows from the record, if it is not so.
    pub(crate) fn settle(&self) -> anyhow::Result<Option<Provisioned>> {
        let Some(record) = self.read()? else { return Ok(None) };
        let network = network(&record.document().network)?;
        for (name, text) in [(NETWORK, network), (SERVER, self.server(&record)?)] {
            let there = fs::read(self.folder.join(name)).unwrap_or_default();
            if there != text.as_bytes() {
                self.replace(name, text.as_bytes())?;
            }
        }
        Ok(Some(record))
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
            token: document.token.as_ref(),
        };
        let text = toml::to_string(&server).context("cannot write the configuration")?;
        Ok(format!(
            "# Made from provisioning document {}: change that one.\n{text}",
            document.serial
        ))
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
    token: Option<&'a toml::Table>,
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

/// What a document says of the token must be what the box understands.
pub(crate) fn check_token(document: &Document) -> anyhow::Result<()> {
    let Some(token) = &document.token else { return Ok(()) };
    let config = TokenConfig::deserialize(token.clone()).context("[token] is not a token")?;
    let pin = match &config {
        TokenConfig::Pkcs11 { pin, .. } | TokenConfig::Pkcs11Service { pin, .. } => Some(pin),
        TokenConfig::Software { .. } => None,
    };
    ensure!(
        pin.is_some() || document.allow_software_keys,
        "[token] is a file, which whoever reads the disk can copy: name a real token, or for development say allow_software_keys = true"
    );
    ensure!(
        !matches!(pin, Some(PinSource::File(_))),
        "the PIN of the token cannot be in a file: write \"credential:NAME\", \"pad\" or \"ask\""
    );
    Ok(())
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
        NetworkAddress::Dhcp => lines.push("DHCP=yes".to_owned()),
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
        let dhcp =
            "[Match]\nType=ether\n\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nDHCP=yes\n";
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
