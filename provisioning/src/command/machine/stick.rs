//! A recovery key on a stick: the file `SALLYPORT/RECOVERY/recovery.key`, with the key as the console showed it.
//!
//! Any stick can be plugged in, so this reads as gate 1 does (see [`crate::stick`]): in a sandbox, with nothing but the open device and the folder of
//! notices. What comes of it is at most a text in the form of a recovery key, which nothing is done with until somebody presses Enter.

use std::path::Path;

use anyhow::{Context as _, ensure};
use sallyport_hsm::sandbox;
use sallyport_volume::Volume;
use zeroize::Zeroizing;

use super::{
    dialogue::{self, Told, write_secret},
    seal,
};
use crate::{
    files, notice,
    output::Output,
    stick::{TOP, device::Device, read::confine, write::find},
};

/// The key that a stick brought, beside the notices.
pub(super) const KEY: &str = "recovery-stick.key";
const NOTICE: &str = "recovery-stick";
const FOLDER: &str = "RECOVERY";
const FILE: &str = "recovery.key";
/// Bytes of a file with a recovery key; it has 71, and room for what an editor adds.
const FILE_BYTES_MAX: u64 = 256;

/// `sallyctl machine read-recovery-stick`.
pub(super) fn read(state: &Path, device: &Path, out: &Output) -> anyhow::Result<()> {
    sandbox::close_inherited().context("cannot see which files are open")?;
    let device = Device::open(device, false)?;
    confine(&[state.to_owned()], out)?;
    let line = match found(device) {
        Ok(key) => {
            write_secret(&state.join(KEY), &key)?;
            "It has a recovery key: press Enter to try it. The stick can be pulled out after that."
                .to_owned()
        }
        Err(error) => format!("It brings no recovery key: {error:#}."),
    };
    dialogue::tell(
        state,
        NOTICE,
        Told { title: "A stick is plugged in.", lines: &[&line], ..Told::default() },
    )
}

/// `sallyctl machine forget-recovery-stick`.
pub(super) fn forget(state: &Path) -> anyhow::Result<()> {
    notice::withdraw(&state.join(KEY))?;
    notice::withdraw(&notice::path(state, NOTICE))
}

/// What a stick brought that is still plugged in.
pub(super) fn key(state: &Path) -> anyhow::Result<Zeroizing<String>> {
    let bytes = files::read(&state.join(KEY), usize::try_from(FILE_BYTES_MAX)?)?;
    Ok(Zeroizing::new(String::from_utf8(bytes).context("the key is not text")?))
}

fn found(device: Device) -> anyhow::Result<Zeroizing<String>> {
    let mut volume = Volume::find(device, TOP)?;
    let file = find(&mut volume, &[TOP, FOLDER, FILE])?.filter(|entry| !entry.is_folder);
    let file = file.with_context(|| format!("there is no file {TOP}/{FOLDER}/{FILE}"))?;
    ensure!(file.bytes <= FILE_BYTES_MAX, "{FILE} is larger than a recovery key");
    let mut bytes = Zeroizing::new(Vec::new());
    volume.read(&file, &mut |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    let text = std::str::from_utf8(&bytes).ok().and_then(seal::recovery_key);
    text.with_context(|| format!("{FILE} is not a recovery key"))
}
