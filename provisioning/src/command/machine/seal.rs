//! What opens and seals an encrypted partition: the programs of systemd.

use std::{
    path::{Path, PathBuf},
    process::Command as Process,
};

use anyhow::{Context as _, ensure};
use sallyport_core::digest::Sha256;
use zeroize::Zeroizing;

use super::dialogue::write_secret;
use crate::{
    notice,
    update::{
        disk::{Access, Disk as _, LocalDisk},
        gpt::{Guid, Partition, Table},
    },
};

/// What enrols keys for an encrypted partition.
const ENROL: &str = "/usr/bin/systemd-cryptenroll";
/// What opens one.
const CRYPTSETUP: &str = "/usr/bin/systemd-cryptsetup";
/// What makes partitions, and the partition that it makes where there is no TPM.
const REPART: &str = "/usr/bin/systemd-repart";
const DEFINITIONS: &str = "/usr/lib/sallyport/repart.d";
/// The label of the data partition.
pub(super) const LABEL: &str = "sallyport-data";
/// The name of the opened partition.
const OPENED: &str = "sallyport-data";
/// A passphrase or recovery key that somebody gave, in memory and only as long as it is needed.
const TYPED: &str = "data.typed";
const GROUPS: usize = 8;
const GROUP_LETTERS: usize = 8;
/// The letters of recovery keys, which lie in the same place on most keyboards.
const LETTERS: &str = "cbdefghijklnrtuv";

/// A key for the programs, in a file.
pub(super) struct Typed(PathBuf);

impl Typed {
    pub(super) fn new(state: &Path) -> Self {
        Self(state.join(TYPED))
    }

    /// Keeps a key until [`Typed::forget`].
    pub(super) fn keep(&self, key: &str) -> anyhow::Result<()> {
        write_secret(&self.0, key)
    }

    pub(super) fn forget(&self) -> anyhow::Result<()> {
        notice::withdraw(&self.0)
    }

    fn unlocks(&self) -> String {
        format!("--unlock-key-file={}", self.0.display())
    }

    /// Makes a new recovery key: with what was typed, or else with the TPM.
    pub(super) fn new_recovery_key(&self, device: &Path) -> anyhow::Result<Zeroizing<String>> {
        let unlock =
            if self.0.exists() { self.unlocks() } else { "--unlock-tpm2-device=auto".to_owned() };
        let made = enrol(device, &[&unlock, "--wipe-slot=recovery", "--recovery-key"], None)?;
        let key = Zeroizing::new(String::from_utf8(made).context("the recovery key is not text")?);
        Ok(Zeroizing::new(key.trim().to_owned()))
    }

    /// Seals a partition to the TPM as it is now, in place of how it was sealed and of passphrases.
    pub(super) fn seal(&self, device: &Path) -> anyhow::Result<()> {
        // By another policy first: where there is a key with the same policy, even if another TPM made it, nothing is done.
        // Passphrases go last, as what was typed may be one.
        [("7+14", "tpm2"), ("7", "tpm2,password")].iter().try_for_each(|(pcrs, wiped)| {
            let (pcrs, wiped) = (format!("--tpm2-pcrs={pcrs}"), format!("--wipe-slot={wiped}"));
            let by = ["--tpm2-device=auto", "--tpm2-public-key-pcrs=11", &pcrs];
            enrol(device, &[&[self.unlocks().as_str(), &wiped][..], &by].concat(), None).map(drop)
        })
    }

    /// Whether some passphrase opens a partition.
    pub(super) fn has_passphrase(device: &Path) -> anyhow::Result<bool> {
        let slots = String::from_utf8(enrol(device, &[], None)?).context("slots are not text")?;
        Ok(slots.lines().any(|line| line.split_whitespace().nth(1) == Some("password")))
    }

    /// Has a partition be opened by a passphrase, and no longer by a TPM.
    pub(super) fn set_passphrase(&self, device: &Path, passphrase: &str) -> anyhow::Result<()> {
        let options = [&self.unlocks(), "--wipe-slot=tpm2,password", "--password"];
        enrol(device, &options, Some(passphrase)).map(drop)
    }

    /// Makes the data partition of a machine without a TPM.
    pub(super) fn make_partition(&self) -> anyhow::Result<()> {
        let made = Process::new(REPART)
            .args(["--dry-run=no", &format!("--definitions={DEFINITIONS}")])
            .arg(format!("--key-file={}", self.0.display()))
            .output()
            .with_context(|| format!("cannot start {REPART}"))?;
        let said = String::from_utf8_lossy(&made.stderr);
        ensure!(made.status.success(), "the data partition cannot be made: {}", said.trim());
        Ok(())
    }

    /// Opens a partition.
    pub(super) fn attach(&self, device: &Path) -> anyhow::Result<()> {
        let opened = Process::new(CRYPTSETUP)
            .args(["attach", OPENED])
            .args([device, &self.0])
            .arg("luks,headless=yes,tries=1")
            .status()
            .with_context(|| format!("cannot start {CRYPTSETUP}"))?;
        ensure!(opened.success(), "That did not open it.");
        Ok(())
    }
}

fn enrol(device: &Path, options: &[&str], passphrase: Option<&str>) -> anyhow::Result<Vec<u8>> {
    let mut process = Process::new(ENROL);
    process.args(options).arg(device);
    if let Some(passphrase) = passphrase {
        process.env("NEWPASSWORD", passphrase);
    }
    let made = process.output().with_context(|| format!("cannot start {ENROL}"))?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "that did not open it: {}", said.trim());
    Ok(made.stdout)
}

/// The disk that the running system started from.
pub(super) fn disk(root_hash: &Sha256) -> anyhow::Result<LocalDisk> {
    LocalDisk::with_partition(&Guid::of_slot(root_hash).0.to_string())
}

/// The data partition of a disk, if there is one.
pub(super) fn data_partition(disk: &LocalDisk) -> anyhow::Result<Option<Partition>> {
    let table = Table::read(&mut disk.whole(Access::Read)?)?;
    Ok(table.partitions().into_iter().find(|partition| partition.label == LABEL))
}

/// A recovery key as it was shown, from the way that somebody typed it or wrote it into a file; `None` if it is none.
pub(super) fn recovery_key(typed: &str) -> Option<Zeroizing<String>> {
    let letters: Zeroizing<Vec<char>> = Zeroizing::new(
        typed
            .chars()
            .filter(|c| !c.is_whitespace() && *c != '-')
            .map(|c| c.to_ascii_lowercase())
            .collect(),
    );
    let sound = letters.len() == GROUPS * GROUP_LETTERS
        && letters.iter().all(|letter| LETTERS.contains(*letter));
    sound.then(|| {
        let groups = letters.chunks(GROUP_LETTERS).map(|group| group.iter().collect::<String>());
        Zeroizing::new(groups.collect::<Vec<_>>().join("-"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_keys_are_taken_as_people_write_them() {
        let key = ["cbdefghi", "jklnrtuv"].repeat(4).join("-");
        for typed in [
            key.clone(),
            key.to_uppercase(),
            key.replace('-', ""),
            key.replace('-', " \n"),
            format!("  {key}\r\n"),
        ] {
            assert_eq!(recovery_key(&typed).unwrap().as_str(), key, "{typed:?}");
        }
        let missing = key.chars().skip(1).collect::<String>();
        for typed in ["", "a passphrase", &missing, &format!("{key}c"), &key.replace('c', "a")] {
            assert!(recovery_key(typed).is_none(), "{typed:?}");
        }
    }
}
