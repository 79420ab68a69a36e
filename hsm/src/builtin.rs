//! The tokens that a system was built for, and the one that its box has.
//!
//! On a box nobody but the builder of its system says which file a helper loads. A folder of the system has a description of each
//! module that is there ([`Module`], `KIND.toml`); the settings of the box ([`BoxToken`]) name one of them.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use ruma::OwnedServerName;
use sallyport_core::{
    limits::TOKEN_SETTINGS_BYTES_MAX,
    provision::{TokenKind, TokenPin},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Error, ServedToken, Sessions};

/// A module that is built into the system.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Module {
    /// The shared library.
    pub module: PathBuf,
    /// Folders that it may write to, beside devices.
    #[serde(default)]
    pub writable: Vec<PathBuf>,
    /// Whether it may use the network.
    #[serde(default)]
    pub network: bool,
    /// Whether it protects nothing, and is there for tests.
    #[serde(default)]
    pub for_tests: bool,
}

/// The folder with the descriptions of the modules.
#[derive(Clone, Debug)]
pub struct Modules(PathBuf);

/// The token of a box: what its helper serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoxToken {
    /// Whose documents are signed.
    pub server_name: OwnedServerName,
    /// Which module.
    pub kind: TokenKind,
    /// Label of the token.
    pub label: String,
    /// Serial number of the token, if the label is not enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Sessions that work at once.
    #[serde(default)]
    pub sessions: Sessions,
    /// Who gives the PIN: not the helper's affair.
    #[serde(default)]
    pub pin: TokenPin,
}

impl Modules {
    /// The folder where an image has them.
    pub const FOLDER: &str = "/usr/lib/sallyport/tokens";

    /// The descriptions in a folder; without the folder there are none.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// The kinds that there are modules for.
    #[must_use]
    pub fn kinds(&self) -> BTreeSet<TokenKind> {
        let Ok(entries) = fs::read_dir(&self.0) else { return BTreeSet::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| name.strip_suffix(".toml")?.parse().ok()).collect()
    }

    /// The kinds that protect nothing.
    #[must_use]
    pub fn for_tests(&self) -> Vec<TokenKind> {
        let is_toy = |kind: &TokenKind| self.find(kind).is_ok_and(|module| module.for_tests);
        self.kinds().into_iter().filter(is_toy).collect()
    }

    /// The module for a kind.
    ///
    /// # Errors
    /// [`Error::NoModule`] names those that there are.
    pub fn find(&self, kind: &TokenKind) -> Result<Module, Error> {
        let kinds = self.kinds();
        if !kinds.contains(kind) {
            let kinds: Vec<_> = kinds.iter().map(TokenKind::as_str).collect();
            let known = if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") };
            return Err(Error::NoModule { kind: kind.clone(), known });
        }
        read(&self.0.join(format!("{kind}.toml")))
    }
}

impl BoxToken {
    /// Reads what [`BoxToken`] was written as, in TOML.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read or says something else.
    pub fn read(path: &Path) -> Result<Self, Error> {
        read(path)
    }

    /// The token as a helper serves it, with the module that the system has for it.
    pub(crate) fn served(&self, modules: &Modules) -> Result<ServedToken, Error> {
        let Module { module, writable, network, .. } = modules.find(&self.kind)?;
        let Self { label, serial, sessions, .. } = self.clone();
        Ok(ServedToken { module, label, serial, sessions, network, writable })
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(TOKEN_SETTINGS_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    toml::from_str(&text)
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            ("opensc.toml", "module = \"/usr/lib/opensc.so\"\n"),
            ("hsm-9.toml", "module = \"/v.so\"\nnetwork = true\nwritable = [\"/w\"]\n"),
            ("broken.toml", "module = 1\n"),
            ("toy.toml", "module = \"/t.so\"\nfor_tests = true\n"),
            ("NOTES", ""),
            ("Up.toml", "module = \"/u.so\"\n"),
        ];
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn a_kind_is_one_that_the_system_has() {
        let folder = folder();
        let modules = Modules::new(folder.path());
        let find = |kind: &str| modules.find(&kind.parse().unwrap());
        assert_eq!(find("hsm-9").unwrap().writable, [PathBuf::from("/w")]);
        assert_eq!(modules.for_tests(), ["toy".parse().unwrap()]);
        assert!(matches!(find("broken"), Err(Error::File { .. })));
        let missing = find("tpm2").unwrap_err().to_string();
        assert!(missing.contains("it has broken, hsm-9, opensc, toy"), "{missing}");
        let nothing = Modules::new(&folder.path().join("nowhere"));
        let missing = nothing.find(&"opensc".parse().unwrap()).unwrap_err().to_string();
        assert!(missing.contains("it has none"), "{missing}");
    }

    #[test]
    fn settings_name_a_kind_and_no_file() {
        let folder = folder();
        let modules = Modules::new(folder.path());
        let path = folder.path().join("token");
        let text = "server_name = \"alpha.example\"\nkind = \"hsm-9\"\nlabel = \"a\"\n";
        fs::write(&path, text).unwrap();
        let served = BoxToken::read(&path).unwrap().served(&modules).unwrap();
        assert_eq!((served.module, served.network), ("/v.so".into(), true));
        for more in ["module = \"/m.so\"", "kind = \"../x\"", "sessions = 17"] {
            fs::write(&path, format!("{text}{more}\n")).unwrap();
            assert!(matches!(BoxToken::read(&path), Err(Error::File { .. })), "{more}");
        }
    }
}
