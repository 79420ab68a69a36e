//! SoftHSM2 in a folder of its own: a real PKCS#11 module that needs no hardware.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// Where Debian's package puts the module.
pub const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// A folder with one initialised token.
#[derive(Clone, Debug)]
pub struct SoftHsm {
    configuration: PathBuf,
}

impl SoftHsm {
    /// Makes a token with `label` and `pin` under `folder`, or finds the one that an earlier call made there.
    ///
    /// # Errors
    /// When SoftHSM2 is not installed or refuses.
    pub fn create(folder: &Path, label: &str, pin: &str) -> Result<Self> {
        let there_was_one = folder.join("softhsm2.conf").exists();
        let this = Self::blank(folder)?;
        if there_was_one {
            return Ok(this);
        }
        this.add(label, pin)?;
        Ok(this)
    }

    /// Makes one more token.
    ///
    /// # Errors
    /// When SoftHSM2 is not installed or refuses.
    pub fn add(&self, label: &str, pin: &str) -> Result<()> {
        self.util(&["--init-token", "--free", "--label", label, "--pin", pin, "--so-pin", pin])
    }

    /// Destroys a token with everything in it.
    ///
    /// # Errors
    /// When there is no such token.
    pub fn remove(&self, label: &str) -> Result<()> {
        self.util(&["--delete-token", "--token", label])
    }

    fn util(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new("softhsm2-util")
            .args(arguments)
            .env(Self::VARIABLE, &self.configuration)
            .output()
            .context("`softhsm2-util` cannot be started; run `make setup`")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "softhsm2-util: {complaint}");
        Ok(())
    }

    /// A slot with a blank token under `folder`, or whatever an earlier call left there.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn blank(folder: &Path) -> Result<Self> {
        let configuration = folder.join("softhsm2.conf");
        let tokens = folder.join("tokens");
        fs::create_dir_all(&tokens)?;
        if !configuration.exists() {
            let text = format!(
                "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
                tokens.display()
            );
            fs::write(&configuration, text)?;
        }
        Ok(Self { configuration })
    }

    /// What OpenSC's `pkcs11-tool` lists of the objects in the token with this label.
    ///
    /// # Errors
    /// When OpenSC is not installed, or cannot log in.
    pub fn listed(&self, label: &str, pin: &str) -> Result<String> {
        let output = Command::new("pkcs11-tool")
            .args(["--module", MODULE, "--token-label", label, "--login", "--pin", pin])
            .arg("--list-objects")
            .env(Self::VARIABLE, &self.configuration)
            .output()
            .context("`pkcs11-tool` cannot be started; run `make setup`")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pkcs11-tool: {complaint}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// How many objects (keys, halves of key pairs) are in the token.
    ///
    /// # Errors
    /// When its folder cannot be read.
    pub fn objects(&self) -> Result<usize> {
        let tokens = self.configuration.with_file_name("tokens");
        let mut count = 0;
        for token in fs::read_dir(tokens)? {
            for file in fs::read_dir(token?.path())? {
                let path = file?.path();
                let is_object = path.extension().is_some_and(|e| e == "object");
                // `token.object` is the token itself.
                count += usize::from(is_object && !path.ends_with("token.object"));
            }
        }
        Ok(count)
    }

    /// The environment variable that leads the module to its configuration.
    pub const VARIABLE: &str = "SOFTHSM2_CONF";

    /// The value of [`SoftHsm::VARIABLE`].
    #[must_use]
    pub fn configuration(&self) -> &Path {
        &self.configuration
    }
}
