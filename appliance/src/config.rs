//! The configuration file: TOML in, a checked [`Config`] out. Nothing else reads the file.
//!
//! The file is read once, at start. Only `server_name` has no default. Errors name the key and
//! what to write instead; `sallyport check-config` prints what the box understood.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ruma::{OwnedServerName, RoomVersionId};
use rustls_pki_types::ServerName;
use sallyport_core::{
    backup::RecoveryKey,
    limits::{BACKUP_RECIPIENTS_MAX, PASSWORD_CHARACTERS_MIN},
    sign::PublicKey,
};
use sallyport_hsm::TokenConfig;
use serde::{Deserialize, Serialize};

/// What the operator decided, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// The enclave's Matrix server name: the part of user ids after the colon. Never changes.
    pub server_name: OwnedServerName,
    /// Where clients reach the box, without a slash at the end.
    pub public_url: String,
    /// The folder of the database, media and certificates.
    pub data_dir: PathBuf,
    /// Whether keys may lie in a file instead of a token. For development.
    pub allow_software_keys: bool,
    /// Whether the box took its first provisioning document from whoever brought it. Shown for ever.
    pub unattended: bool,
    /// Sockets for clients, peers and monitoring.
    pub listeners: Vec<Listener>,
    /// The serving certificate.
    pub tls: Tls,
    /// The administration socket.
    pub admin: Admin,
    /// The token with the box's keys; without one nothing leaves the box.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenConfig>,
    /// Who may create an account.
    pub registration: Registration,
    /// Rooms.
    pub rooms: Rooms,
    /// Whose rosters are applied.
    pub roster: Roster,
    /// Bounds that depend on the machine.
    pub limits: Limits,
    /// Backups.
    pub backup: Backup,
    /// Logging.
    pub log: Log,
    /// The file that it was read from. What lies in its folder belongs to the box's settings.
    #[serde(skip)]
    pub file: PathBuf,
}

/// A socket that the box listens on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listener {
    /// Address and port.
    pub address: SocketAddr,
    /// What is served there.
    pub apis: BTreeSet<Api>,
    /// Whether TLS is spoken. Without it only a loopback address is accepted.
    pub tls: bool,
}

/// A group of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// The client-server API and its `.well-known` document.
    Client,
    /// The page where a member redeems an activation code.
    Activate,
    /// Metrics in the text format of Prometheus.
    Metrics,
}

/// The serving certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Tls {
    /// The box issues its own certificate from its enclave CA.
    Issued {
        /// Names and addresses that clients connect to, besides `server_name` and loopback.
        names: Vec<String>,
        /// Where the certificate's key is.
        key_in: KeyIn,
    },
    /// Certificate chain and key are given as PEM files.
    Files {
        /// The chain, leaf first.
        certificate: PathBuf,
        /// The leaf's private key (PKCS#8).
        key: PathBuf,
    },
}

/// Where the key of the serving certificate is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyIn {
    /// The box makes it with each certificate and keeps it in its vault: members connect while the token is away.
    #[default]
    Box,
    /// The token has it and signs each full handshake: nobody connects while the token is away.
    Token,
}

/// The administration socket.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// A Unix socket; who may open it may administer the box.
    pub socket: PathBuf,
}

/// Who may create an account through the client-server API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registration {
    /// The rule.
    pub mode: RegistrationMode,
}

impl Registration {
    /// How many characters a new password needs. Tests choose theirs.
    #[must_use]
    pub fn password_characters_min(&self) -> usize {
        match self.mode {
            RegistrationMode::Closed | RegistrationMode::Token => PASSWORD_CHARACTERS_MIN,
            RegistrationMode::Open => 1,
        }
    }
}

/// The rule of [`Registration`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RegistrationMode {
    /// Accounts come from rosters and administrators only.
    #[default]
    Closed,
    /// With a registration token issued by an administrator.
    Token,
    /// Whoever reaches the box. For tests.
    Open,
}

/// Defaults of new rooms.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rooms {
    /// The room version of rooms whose creator does not choose one.
    pub default_version: RoomVersionId,
}

/// Whose rosters are applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Roster {
    /// Public keys of the officers who sign rosters and approvals, as `sallyctl ceremony officer-key` prints them.
    pub trusted_keys: Vec<PublicKey>,
}

/// Backups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Backup {
    /// The keys that backups are encrypted to, as `sallyctl ceremony recovery-key` prints them. Each of them opens a backup by itself.
    pub recovery_keys: Vec<RecoveryKey>,
}

impl Backup {
    fn check(self) -> Result<Self, Error> {
        let keys = self.recovery_keys.len();
        if keys <= BACKUP_RECIPIENTS_MAX {
            return Ok(self);
        }
        Err(Error::Invalid {
            key: "backup.recovery_keys".to_owned(),
            problem: format!("{keys} keys are more than the {BACKUP_RECIPIENTS_MAX} of a backup"),
            fix: "name fewer recovery officers",
        })
    }
}

/// Bounds that depend on the machine; all others are constants.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The largest file a member may upload, in bytes.
    pub max_upload_bytes: u64,
    /// How many passwords are checked at a time. Each check takes 19 MiB and one core.
    pub login_workers: usize,
    /// How many connections are served at a time, over all listeners.
    pub connections: usize,
}

/// Logging.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The least severe level that is logged.
    pub level: LogLevel,
}

/// A level of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Something the box should do was not done.
    Error,
    /// Something an operator should know.
    Warn,
    /// The course of events.
    #[default]
    Info,
    /// Each request.
    Debug,
    /// Everything.
    Trace,
}

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The file is no TOML, or a key is unknown or of another type.
    #[error("{} does not have the shape of a configuration", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong there.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is not possible.
    #[error("{key}: {problem}; {fix}")]
    Invalid {
        /// The key as the file writes it.
        key: String,
        /// What is wrong with its value.
        problem: String,
        /// What to write instead.
        fix: &'static str,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`Error`] names the line or the key, and what to do.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file; `path` is named in errors.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let raw: RawConfig = toml::from_str(text)
            .map_err(|source| Error::Parse { path: path.to_owned(), source: Box::new(source) })?;
        Ok(Self { file: path.to_owned(), ..raw.check()? })
    }
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    server_name: OwnedServerName,
    public_url: Option<String>,
    #[serde(default = "default_data_dir")]
    data_dir: PathBuf,
    #[serde(default)]
    allow_software_keys: bool,
    #[serde(default)]
    unattended: bool,
    #[serde(default = "default_listeners")]
    listeners: Vec<RawListener>,
    #[serde(default)]
    tls: RawTls,
    #[serde(default)]
    admin: Admin,
    token: Option<TokenConfig>,
    #[serde(default)]
    registration: Registration,
    #[serde(default)]
    rooms: Rooms,
    #[serde(default)]
    roster: Roster,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    backup: Backup,
    #[serde(default)]
    log: Log,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListener {
    address: SocketAddr,
    apis: BTreeSet<Api>,
    tls: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    #[serde(default)]
    names: Vec<String>,
    key_in: Option<KeyIn>,
}

impl RawConfig {
    fn check(self) -> Result<Config, Error> {
        let listeners = self.listeners.into_iter().enumerate();
        Ok(Config {
            public_url: public_url(self.public_url, &self.server_name)?,
            data_dir: absolute("data_dir", self.data_dir)?,
            listeners: listeners.map(|(i, raw)| raw.check(i)).collect::<Result<_, _>>()?,
            tls: self.tls.check(self.token.is_some())?,
            admin: Admin { socket: absolute("admin.socket", self.admin.socket)? },
            token: check_token(self.token, self.allow_software_keys)?,
            allow_software_keys: self.allow_software_keys,
            unattended: self.unattended,
            registration: self.registration,
            rooms: self.rooms.check()?,
            roster: self.roster,
            limits: self.limits.check()?,
            backup: self.backup.check()?,
            file: PathBuf::new(),
            log: self.log,
            server_name: self.server_name,
        })
    }
}

fn check_token(
    token: Option<TokenConfig>,
    allow_software_keys: bool,
) -> Result<Option<TokenConfig>, Error> {
    if matches!(token, Some(TokenConfig::Software { .. })) && !allow_software_keys {
        return Err(Error::Invalid {
            key: "token.kind".to_owned(),
            problem: "software keys can be copied by whoever reads the disk".to_owned(),
            fix: "configure a PKCS#11 token; for development, set allow_software_keys = true",
        });
    }
    Ok(token)
}

impl RawListener {
    fn check(self, index: usize) -> Result<Listener, Error> {
        let Self { address, apis, tls } = self;
        if apis.is_empty() {
            return Err(Error::Invalid {
                key: format!("listeners[{index}].apis"),
                problem: "nothing is served".to_owned(),
                fix: "list at least one of \"client\", \"activate\", \"metrics\"",
            });
        }
        if !tls && !address.ip().is_loopback() {
            return Err(Error::Invalid {
                key: format!("listeners[{index}].tls"),
                problem: format!("{address} would be served without encryption"),
                fix: "set tls = true, or listen on 127.0.0.1 or [::1]",
            });
        }
        if apis.contains(&Api::Metrics) && !address.ip().is_loopback() {
            return Err(Error::Invalid {
                key: format!("listeners[{index}].apis"),
                problem: format!("metrics would be readable from the network at {address}"),
                fix: "serve \"metrics\" on 127.0.0.1 or [::1]",
            });
        }
        Ok(Listener { address, apis, tls })
    }
}

impl RawTls {
    fn check(self, has_token: bool) -> Result<Tls, Error> {
        let of_key_in = |problem: &str, fix| Error::Invalid {
            key: "tls.key_in".to_owned(),
            problem: problem.to_owned(),
            fix,
        };
        if self.key_in == Some(KeyIn::Token) && !has_token {
            let fix = "configure the token in [token], or leave key_in out";
            return Err(of_key_in("no token is configured", fix));
        }
        if self.key_in.is_some() && self.key.is_some() {
            return Err(of_key_in("the key is given as a file", "leave out key_in, or the files"));
        }
        match (self.certificate, self.key) {
            (None, None) => {
                for name in &self.names {
                    ServerName::try_from(name.as_str()).map_err(|_| Error::Invalid {
                        key: "tls.names".to_owned(),
                        problem: format!("{name:?} is neither a DNS name nor an address"),
                        fix: "write names without scheme and port",
                    })?;
                }
                Ok(Tls::Issued { names: self.names, key_in: self.key_in.unwrap_or_default() })
            }
            (Some(certificate), Some(key)) => Ok(Tls::Files {
                certificate: absolute("tls.certificate", certificate)?,
                key: absolute("tls.key", key)?,
            }),
            _ => Err(Error::Invalid {
                key: "tls".to_owned(),
                problem: "certificate and key belong together".to_owned(),
                fix: "give both files, or neither to let the box issue its certificate",
            }),
        }
    }
}

impl Rooms {
    fn check(self) -> Result<Self, Error> {
        if SUPPORTED_ROOM_VERSIONS.contains(&self.default_version) {
            return Ok(self);
        }
        Err(Error::Invalid {
            key: "rooms.default_version".to_owned(),
            problem: format!("version {} is not supported", self.default_version),
            fix: "write \"10\", \"11\" or \"12\"",
        })
    }
}

impl Limits {
    fn check(self) -> Result<Self, Error> {
        let bounds = [
            ("limits.max_upload_bytes", self.max_upload_bytes, 1, 1 << 40),
            ("limits.login_workers", self.login_workers as u64, 1, 64),
            ("limits.connections", self.connections as u64, 8, 1 << 20),
        ];
        for (key, value, least, most) in bounds {
            if !(least..=most).contains(&value) {
                return Err(Error::Invalid {
                    key: key.to_owned(),
                    problem: format!("{value} is not between {least} and {most}"),
                    fix: "choose a value in these bounds",
                });
            }
        }
        Ok(self)
    }
}

/// The room versions that rooms can have here.
pub const SUPPORTED_ROOM_VERSIONS: [RoomVersionId; 3] =
    [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12];

impl Default for Admin {
    fn default() -> Self {
        Self { socket: PathBuf::from("/run/sallyport/admin.sock") }
    }
}

impl Default for Rooms {
    fn default() -> Self {
        Self { default_version: RoomVersionId::V12 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { max_upload_bytes: 100 << 20, login_workers: cores, connections: 4096 }
    }
}

fn default_data_dir() -> PathBuf {
    PathBuf::from("/var/lib/sallyport")
}

fn default_listeners() -> Vec<RawListener> {
    let apis = BTreeSet::from([Api::Client, Api::Activate]);
    vec![RawListener { address: SocketAddr::from(([0; 8], 443)), apis, tls: true }]
}

fn public_url(url: Option<String>, server_name: &OwnedServerName) -> Result<String, Error> {
    let url = url.unwrap_or_else(|| format!("https://{server_name}"));
    let uri: Option<http::Uri> = url.parse().ok();
    let fits = uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("https" | "http"))
            && uri.authority().is_some()
            && uri.query().is_none()
    });
    if fits {
        return Ok(url.trim_end_matches('/').to_owned());
    }
    Err(Error::Invalid {
        key: "public_url".to_owned(),
        problem: format!("{url:?} is not the address of a server"),
        fix: "write it like \"https://chat.alpha.example\"",
    })
}

fn absolute(key: &str, path: PathBuf) -> Result<PathBuf, Error> {
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Error::Invalid {
        key: key.to_owned(),
        problem: format!("{:?} depends on the current folder", path.display().to_string()),
        fix: "write the path from / on",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("sallyport.toml"))
            .map_err(|error| crate::telemetry::chain(&error))
    }

    fn check_error(text: &str, expected: &str) {
        let error = parse(text).unwrap_err();
        assert!(error.contains(expected), "{text:?} gives {error:?}, not {expected:?}");
    }

    #[test]
    fn a_server_name_is_enough() {
        let config = parse("server_name = 'alpha.example'").unwrap();
        assert_eq!(config.public_url, "https://alpha.example");
        assert_eq!(config.listeners.len(), 1);
        assert!(config.listeners[0].tls);
        assert_eq!(config.tls, Tls::Issued { names: vec![], key_in: KeyIn::Box });
        assert_eq!(config.registration.mode, RegistrationMode::Closed);
        assert_eq!(config.rooms.default_version, RoomVersionId::V12);
    }

    #[test]
    fn the_example_is_valid() {
        let config = parse(include_str!("../sallyport.example.toml")).unwrap();
        let defaults = parse("server_name = 'alpha.example'").unwrap();
        assert_eq!(config.listeners[0], defaults.listeners[0]);
        assert_eq!((config.admin, config.rooms), (defaults.admin, defaults.rooms));
    }

    #[test]
    fn the_printed_configuration_means_the_same() {
        let files = "[tls]\ncertificate = '/c.pem'\nkey = '/k.pem'";
        let token = "allow_software_keys = true\n[token]\nkind = 'software'\npath = '/keys'\n\
                     [tls]\nkey_in = 'token'";
        for more in ["", files, token, "[log]\nlevel = 'debug'\n[registration]\nmode = 'token'"] {
            let config = parse(&format!("server_name = 'alpha.example'\n{more}")).unwrap();
            let printed = toml::to_string(&config).unwrap();
            assert_eq!(parse(&printed).unwrap(), config, "{printed}");
        }
    }

    #[test]
    fn errors_name_the_place_and_the_fix() {
        let with = |text: &str| format!("server_name = 'alpha.example'\n{text}");
        check_error("", "missing field `server_name`");
        check_error("server_name = 'a b'", "line 1");
        check_error(&with("servername = 1"), "unknown field `servername`");
        check_error(&with("[registration]\nmode = 'opn'"), "line 3");
        check_error(&with("[rooms]\ndefault_version = '9'"), "rooms.default_version");
        check_error(&with("[tls]\nkey = '/k.pem'"), "give both files");
        check_error(&with("[tls]\nnames = ['https://a']"), "without scheme");
        check_error(&with("[tls]\nkey_in = 'token'"), "configure the token");
        check_error(&with("[tls]\nkey_in = 'box'\nkey = '/k.pem'"), "given as a file");
        check_error(&with("[token]\nkind = 'software'\npath = '/k'"), "allow_software_keys");
        check_error(&with("data_dir = 'data'"), "data_dir");
        check_error(&with("public_url = 'alpha'"), "public_url");
        check_error(&with("[limits]\nlogin_workers = 0"), "between 1 and 64");
    }

    #[test]
    fn only_loopback_goes_without_tls_and_shows_metrics() {
        let listener = |address: &str, api: &str, tls: bool| {
            parse(&format!(
                "server_name = 'alpha.example'\n\
                 [[listeners]]\naddress = '{address}'\napis = ['{api}']\ntls = {tls}"
            ))
        };
        assert!(listener("127.0.0.1:8008", "client", false).is_ok());
        assert!(listener("[::1]:8008", "metrics", false).is_ok());
        assert!(listener("10.0.0.1:8448", "client", true).is_ok());
        assert!(listener("10.0.0.1:8008", "client", false).unwrap_err().contains("tls = true"));
        assert!(listener("10.0.0.1:8008", "metrics", true).unwrap_err().contains("metrics"));
    }
}
