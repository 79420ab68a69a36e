//! Where things are: the repository, cargo, and the programs under test.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, ensure};

/// The top folder of the repository.
#[must_use]
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

/// The cargo that runs this test, or the one on the path.
#[must_use]
pub fn cargo() -> String {
    env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// The homeserver under test.
///
/// # Errors
/// When the programs cannot be built.
pub fn sallyport() -> Result<PathBuf> {
    program("sallyport")
}

/// The admin's tool under test.
///
/// # Errors
/// When the programs cannot be built.
pub fn sallyctl() -> Result<PathBuf> {
    program("sallyctl")
}

/// Whether the programs under test are an optimised build.
#[must_use]
pub fn is_release() -> bool {
    folder().is_ok_and(|path| path.ends_with("release"))
}

/// A program of this workspace, brought up to date.
///
/// # Errors
/// When the programs cannot be built.
pub fn program(name: &str) -> Result<PathBuf> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    BUILT
        .get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let path = folder()?.join(name);
    ensure!(path.is_file(), "{} is not there: run `make build`", path.display());
    Ok(path)
}

/// Brings the programs up to date, so that no test runs against yesterday's build. `make` has just done so and says so
/// with `SALLYPORT_BUILT`.
fn build() -> Result<()> {
    if env::var_os("SALLYPORT_BUILT").is_some() {
        return Ok(());
    }
    let folder = folder()?;
    let mut command = Command::new(cargo());
    command.current_dir(root()).args(["build", "--quiet", "--workspace", "--bins"]);
    if folder.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status().context("cargo cannot be started")?;
    ensure!(status.success(), "the programs under test do not compile");
    Ok(())
}

/// The folder of cargo's that this program was built into, `target/debug` or `target/release`.
fn folder() -> Result<PathBuf> {
    let program = env::current_exe().context("this program has no path")?;
    program
        .ancestors()
        .find(|path| path.ends_with("debug") || path.ends_with("release"))
        .map(Path::to_path_buf)
        .with_context(|| format!("{} is not in a folder of cargo's", program.display()))
}
