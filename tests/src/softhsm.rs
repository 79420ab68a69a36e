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
        let configuration = folder.join("softhsm2.conf");
        let this = Self { configuration };
        if this.configuration.exists() {
            return Ok(this);
        }
        let tokens = folder.join("tokens");
        fs::create_dir_all(&tokens)?;
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        fs::write(&this.configuration, text)?;
        let output = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", label])
            .args(["--pin", pin, "--so-pin", pin])
            .env(Self::VARIABLE, &this.configuration)
            .output()
            .context("`softhsm2-util` cannot be started; run `make setup`")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "softhsm2-util: {complaint}");
        Ok(this)
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
