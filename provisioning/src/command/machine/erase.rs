//! Factory reset: the keys of the data partition are destroyed, and with them everything on it.
//!
//! The volume key exists in the header of the partition only, in slots that passphrase, recovery key and TPM open. The header goes first, because
//! nothing that comes after it can fail in a way that brings data back; a power cut before the end leaves a box that asks for a recovery key which does not
//! exist any more, and whose reset is begun again.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Args;

use super::{
    dialogue::{Dialogue, Told},
    seal,
};
use crate::{
    output::Output,
    update::{
        disk::{Access, Disk as _, LocalDisk},
        gpt::{Partition, Table},
        medium::{Medium as _, PIECE_BYTES},
        system::System,
    },
};

/// The name of the notice and of the pipe for its answer.
const NOTICE: &str = "factory-reset";
/// What somebody types.
pub(crate) const WORD: &str = "ERASE";
/// Bytes at the beginning of an encrypted partition that have, with room to spare, both copies of its header and all slots: LUKS2 ends them at 16 MiB.
const HEADER_BYTES: u64 = 32 << 20;

#[derive(Args)]
pub(crate) struct EraseArgs {
    /// Have somebody type a word at the console first.
    #[arg(long)]
    ask: bool,
    /// The folder with the notices for the console.
    #[arg(long, value_name = "FOLDER", default_value = "/run/sallyport-state")]
    state: PathBuf,
    /// The disk, or an image of one; that of the running system if not given.
    #[arg(long, value_name = "DISK")]
    disk: Option<PathBuf>,
}

impl EraseArgs {
    pub(super) fn run(&self, out: &Output) -> anyhow::Result<()> {
        if self.ask && !self.confirmed()? {
            return out.note("Nothing was erased.");
        }
        let disk = match &self.disk {
            Some(path) => LocalDisk::at(path)?,
            None => seal::disk(&System("/".into()).here()?.root_hash)?,
        };
        let Some(partition) = seal::data_partition(&disk)? else {
            return out.note("There is no data partition: the next start makes one.");
        };
        overwrite_header(&disk, &partition)?;
        out.note("The keys of the data partition are destroyed.")?;
        if !disk.discard(&partition.place)? {
            out.note("This disk does not forget on demand: what remains on it is encrypted, and nobody has the key.")?;
        }
        take_out(&disk, &partition)?;
        out.note("The disk is as it was delivered. The next start makes new data.")
    }

    fn confirmed(&self) -> anyhow::Result<bool> {
        let dialogue = Dialogue::open(&self.state, NOTICE)?;
        let typed = dialogue.ask(Told {
            title: "FACTORY RESET: EVERYTHING ON THIS BOX WILL BE DESTROYED.",
            lines: &[
                "Accounts, messages, files and keys of this box, its settings and its log. Nobody can bring them back, not with the recovery key either.",
                "Backups and what is in a token stay as they are.",
            ],
            ask: Some("Type ERASE to destroy it, or press Enter to start the box as it is:"),
            secret: false,
        })?;
        Ok(typed.trim() == WORD)
    }
}

/// Overwrites header and slots, and reads back from the medium that nothing of them is left.
fn overwrite_header(disk: &LocalDisk, partition: &Partition) -> anyhow::Result<()> {
    let mut medium = disk.partition(&partition.place, Access::Destroy)?;
    let bytes = HEADER_BYTES.min(medium.bytes());
    let zeros = vec![0; PIECE_BYTES];
    let pieces = || {
        (0..bytes).step_by(PIECE_BYTES).map(|at| {
            let rest = usize::try_from(bytes - at).unwrap_or(PIECE_BYTES);
            (at, rest.min(PIECE_BYTES))
        })
    };
    for (at, size) in pieces() {
        let written = medium.write(at, zeros.get(..size).unwrap_or_default());
        written.context("the header of the data partition cannot be overwritten")?;
    }
    medium.flush().context("the header of the data partition cannot be overwritten")?;
    let mut read = vec![0; PIECE_BYTES];
    for (at, size) in pieces() {
        let piece = read.get_mut(..size).context("a piece that is too large")?;
        medium.read(at, piece).context("the data partition cannot be read back")?;
        ensure!(
            piece.iter().all(|byte| *byte == 0),
            "the header of the data partition was overwritten and reads differently: destroy the disk"
        );
    }
    Ok(())
}

/// Takes the partition off the disk, so that the next start makes a new one.
fn take_out(disk: &LocalDisk, partition: &Partition) -> anyhow::Result<()> {
    let mut whole = disk.whole(Access::Destroy)?;
    let mut table = Table::read(&mut whole)?;
    table.remove(partition)?;
    table.write(&mut whole)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt as _, path::Path};

    use super::*;
    use crate::update::tests::bench::data_disk;

    fn erase(disk: &Path, state: &Path, ask: bool) -> anyhow::Result<()> {
        let args = EraseArgs { ask, state: state.to_owned(), disk: Some(disk.to_owned()) };
        args.run(&Output::new(false))
    }

    #[test]
    fn header_and_partition_go_and_the_rest_of_the_disk_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let place = data_disk(&path);
        let disk = LocalDisk::at(&path).unwrap();
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let end = place.start + place.bytes;
        for (at, bytes) in [(place.start, &b"LUKS"[..]), (place.start + HEADER_BYTES - 4, b"slot")]
        {
            file.write_all_at(bytes, at).unwrap();
        }
        file.write_all_at(b"data", end - 4).unwrap();
        file.write_all_at(b"another", end).unwrap();
        let others = || {
            let partitions = Table::read(&mut disk.whole(Access::Read).unwrap()).unwrap();
            let mut partitions = partitions.partitions();
            partitions.retain(|partition| partition.label != seal::LABEL);
            partitions
        };
        let before = others();
        erase(&path, folder.path(), false).unwrap();
        let mut left = vec![0; usize::try_from(place.bytes).unwrap()];
        file.read_exact_at(&mut left, place.start).unwrap();
        assert!(left.iter().all(|byte| *byte == 0));
        let mut beyond = [0; 7];
        file.read_exact_at(&mut beyond, end).unwrap();
        assert_eq!(&beyond, b"another");
        assert!(seal::data_partition(&disk).unwrap().is_none());
        assert_eq!(others(), before);
        // Once more is nothing to do.
        erase(&path, folder.path(), false).unwrap();
    }

    #[test]
    fn only_the_word_erases() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        data_disk(&path);
        let disk = LocalDisk::at(&path).unwrap();
        for (typed, gone) in [("", false), ("erase", false), ("yes", false), (WORD, true)] {
            let asking = std::thread::spawn({
                let (path, state) = (path.clone(), folder.path().to_owned());
                move || erase(&path, &state, true)
            });
            while crate::notice::answer(folder.path(), NOTICE, typed).is_err() {
                std::thread::yield_now();
            }
            asking.join().unwrap().unwrap();
            assert_eq!(seal::data_partition(&disk).unwrap().is_none(), gone, "{typed:?}");
        }
    }
}
