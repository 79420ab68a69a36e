//! A stick as a medium: an image in a file, made and filled by the programs of other systems.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// The programs that this needs; Debian has them in dosfstools, mtools and exfatprogs.
const PROGRAMS: [&str; 3] = ["mkfs.vfat", "mcopy", "mkfs.exfat"];
/// A volume of mtools' own idea of FAT32 has at least 65 525 clusters.
const FAT32_MIB: u64 = 48;

/// An image with FAT32.
#[derive(Debug)]
pub struct Medium {
    path: PathBuf,
}

/// Whether media can be made here. Says so loudly if not, for then nothing is tested.
#[must_use]
pub fn can_be_made() -> bool {
    let missing = PROGRAMS.iter().find(|name| program(name).arg("--help").output().is_err());
    if let Some(name) = missing {
        eprintln!("SKIPPED: {name} is not installed, nothing was tested; run `make setup`");
    }
    missing.is_none()
}

impl Medium {
    /// A new stick with FAT32, with a folder `SALLYPORT` and these in it.
    ///
    /// # Errors
    /// When the programs fail.
    pub fn fat32(path: &Path, folders: &[&str]) -> Result<Self> {
        File::create(path)?.set_len(FAT32_MIB << 20)?;
        good(program("mkfs.vfat").args(["-F", "32", "-s", "1"]).arg(path))?;
        let medium = Self { path: path.to_owned() };
        medium.mtools("mmd", &["::SALLYPORT"])?;
        for folder in folders {
            medium.mtools("mmd", &[&format!("::SALLYPORT/{folder}")])?;
        }
        Ok(medium)
    }

    /// The image.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies a file into a folder, which is there.
    ///
    /// # Errors
    /// When mtools fails.
    pub fn put(&self, file: &Path, folder: &str, name: &str) -> Result<()> {
        let file = file.to_str().context("a path that is not text")?;
        self.mtools("mcopy", &["-o", file, &format!("::SALLYPORT/{folder}/{name}")]).map(drop)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove(&self, folder: &str, name: &str) -> Result<()> {
        self.mtools("mdel", &[&format!("::SALLYPORT/{folder}/{name}")]).map(drop)
    }

    /// The names in a folder.
    ///
    /// # Errors
    /// When it is not there.
    pub fn names(&self, folder: &str) -> Result<Vec<String>> {
        let said = self.mtools("mdir", &["-b", &format!("::SALLYPORT/{folder}")])?;
        let names = said.lines().filter_map(|line| line.rsplit('/').next());
        Ok(names.filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }

    /// Copies a file from the stick.
    ///
    /// # Errors
    /// When it is not there.
    pub fn take(&self, folder: &str, name: &str, to: &Path) -> Result<()> {
        let to = to.to_str().context("a path that is not text")?;
        self.mtools("mcopy", &["-o", &format!("::SALLYPORT/{folder}/{name}"), to]).map(drop)
    }

    /// A new folder.
    ///
    /// # Errors
    /// When it is there already.
    pub fn mkdir(&self, folder: &str) -> Result<()> {
        self.mtools("mmd", &[&format!("::SALLYPORT/{folder}")]).map(drop)
    }

    /// The content of a file.
    ///
    /// # Errors
    /// When it is not there.
    pub fn bytes(&self, folder: &str, name: &str) -> Result<Vec<u8>> {
        let name = format!("::SALLYPORT/{folder}/{name}");
        let mut mtype = program("mtype");
        let output =
            mtype.env("MTOOLS_SKIP_CHECK", "1").arg("-i").arg(&self.path).arg(&name).output()?;
        ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }

    /// The text of a file.
    ///
    /// # Errors
    /// When it is not there.
    pub fn text(&self, folder: &str, name: &str) -> Result<String> {
        self.mtools("mtype", &[&format!("::SALLYPORT/{folder}/{name}")])
    }

    /// What `fsck` finds; nothing is changed.
    ///
    /// # Errors
    /// When something is wrong.
    pub fn check(&self) -> Result<()> {
        good(program("fsck.vfat").arg("-n").arg(&self.path)).map(drop)
    }

    fn mtools(&self, name: &str, arguments: &[&str]) -> Result<String> {
        good(program(name).env("MTOOLS_SKIP_CHECK", "1").arg("-i").arg(&self.path).args(arguments))
    }
}

/// A new image with exFAT.
///
/// # Errors
/// When the program fails.
pub fn exfat(path: &Path, mib: u64) -> Result<Vec<u8>> {
    File::create(path)?.set_len(mib << 20)?;
    good(program("mkfs.exfat").arg(path))?;
    Ok(fs::read(path)?)
}

fn program(name: &str) -> Command {
    let sbin = Path::new("/usr/sbin").join(name);
    Command::new(if sbin.exists() { sbin } else { PathBuf::from(name) })
}

fn good(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?} cannot be started"))?;
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(said)
}
