//! What runs on this machine, as the machine says it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use ruma::OwnedServerName;
use sallyport_core::{
    digest::Sha256,
    sign::PublicKey,
    update::{
        Version,
        entry::{Standing, standing_of_boot},
        uki,
    },
};
use serde::Deserialize;

use crate::files;

/// The folders of a system: `/`, or those of a test.
#[derive(Clone, Debug)]
pub(crate) struct System(pub(crate) PathBuf);

/// What runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Here {
    /// The root hash that the kernel was started with.
    pub(crate) root_hash: Sha256,
    /// The version.
    pub(crate) release: Release,
}

/// What the running system says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Release {
    /// The version.
    pub(crate) version: Version,
    /// The schema of the database that it makes.
    pub(crate) schema: u32,
}

/// What updates need of the box's configuration.
#[derive(Deserialize)]
pub(crate) struct Settings {
    /// The enclave.
    pub(crate) server_name: OwnedServerName,
    #[serde(default)]
    roster: Roster,
}

#[derive(Default, Deserialize)]
struct Roster {
    #[serde(default)]
    trusted_keys: Vec<PublicKey>,
}

impl Settings {
    /// The officers' keys.
    pub(crate) fn officers(&self) -> &[PublicKey] {
        &self.roster.trusted_keys
    }
}

impl System {
    /// What runs, from the kernel's command line and the root's os-release.
    pub(crate) fn here(&self) -> anyhow::Result<Here> {
        let command_line = self.text("proc/cmdline")?;
        let root_hash = uki::root_hash(&command_line).context(
            "this system was not started from an image of Sallyport: its kernel's command line names no root hash",
        )?;
        Ok(Here { root_hash, release: self.release()? })
    }

    /// What runs, from the root's os-release alone: the gates of sticks do not see the kernel's command line.
    pub(crate) fn release(&self) -> anyhow::Result<Release> {
        let release = self.text("usr/lib/os-release")?;
        let value = |key: &str| {
            uki::os_release(&release, key).with_context(|| format!("os-release has no {key}"))
        };
        let version = value("IMAGE_VERSION")?.parse().context("os-release: IMAGE_VERSION")?;
        let schema = value("SALLYPORT_SCHEMA")?.parse().context("os-release: SALLYPORT_SCHEMA")?;
        Ok(Release { version, schema })
    }

    /// Whether the boot loader started this system to try it.
    pub(crate) fn is_on_trial(&self) -> anyhow::Result<bool> {
        const VARIABLE_BYTES_MAX: usize = 4096;
        let path = self.0.join(
            "sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f",
        );
        if !path.exists() {
            return Ok(false);
        }
        let variable = files::read(&path, VARIABLE_BYTES_MAX)?;
        Ok(standing_of_boot(&variable) == Standing::Trial)
    }

    /// The release keys that the running system believes.
    pub(crate) fn release_keys(&self) -> PathBuf {
        self.0.join("usr/lib/sallyport/update.pub")
    }

    /// Where updates are remembered.
    pub(crate) fn state(&self) -> PathBuf {
        self.0.join("var/lib/sallyport-update")
    }

    /// Where others are told how an update goes.
    pub(crate) fn news(&self) -> PathBuf {
        self.0.join("run/sallyport-state")
    }

    /// The box's configuration.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let path = "var/lib/sallyport-settings/sallyport.toml";
        toml::from_str(&self.text(path)?).with_context(|| format!("{path} cannot be read"))
    }

    fn text(&self, path: impl AsRef<Path>) -> anyhow::Result<String> {
        const TEXT_BYTES_MAX: usize = 64 * 1024;
        let path = self.0.join(path);
        let text = files::read(&path, TEXT_BYTES_MAX)?;
        String::from_utf8(text).with_context(|| format!("{} is not text", path.display()))
    }
}
