//! An update file on this machine, from its first byte to its last.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use anyhow::{Context as _, ensure};
use sallyport_core::{
    digest::{Hasher, Sha256},
    limits::UPDATE_KEYS_BYTES_MAX,
    sign::PublicKey,
    update::{
        self, Manifest, PREFIX_BYTES, Part, Payload, Unverified, uki,
        verity::{self, Area, Fault},
    },
};

use super::medium::PIECE_BYTES;
use crate::files;

/// An update file whose signature was verified.
pub(crate) struct UpdateFile {
    file: File,
    payloads_at: u64,
    pub(crate) manifest: Manifest,
    pub(crate) signer: PublicKey,
}

/// An update file of which every byte was verified.
pub(crate) struct WholeFile {
    file: UpdateFile,
    /// The hash of all of it: what approvals name it by.
    pub(crate) sha256: Sha256,
}

/// Reads a list of release keys.
pub(crate) fn keys(path: &Path) -> anyhow::Result<Vec<PublicKey>> {
    let shown = path.display();
    let text = files::read(path, UPDATE_KEYS_BYTES_MAX)?;
    let text = String::from_utf8(text).with_context(|| format!("{shown} is not text"))?;
    update::release_keys(&text).map_err(|line| match line {
        0 => anyhow::anyhow!("{shown} names no release key"),
        line => anyhow::anyhow!("{shown}: line {line} is not a public key"),
    })
}

/// Reads what is signed, and how long the file is; nothing is believed.
pub(crate) fn open(path: &Path) -> anyhow::Result<(File, Unverified)> {
    let shown = path.display();
    let file = files::open_foreign(path)?;
    let mut prefix = [0; PREFIX_BYTES];
    file.read_exact_at(&mut prefix, 0).map_err(|_| update::Refused::NotAnUpdate)?;
    let mut signed = vec![0; update::signed_bytes(&prefix)?];
    file.read_exact_at(&mut signed, PREFIX_BYTES as u64)
        .map_err(|_| update::Refused::NotAnUpdate)?;
    let unverified = Unverified::parse(&signed)?;
    let has = file.metadata().with_context(|| format!("cannot look at {shown}"))?.len();
    let should = unverified.file_bytes();
    ensure!(
        has == should,
        "{shown} has {has} bytes and should have {should}: it was cut short or changed; copy it again"
    );
    Ok((file, unverified))
}

impl UpdateFile {
    /// Opens a file and verifies what is signed.
    pub(crate) fn open(path: &Path, keys: &[PublicKey]) -> anyhow::Result<Self> {
        let (file, unverified) = open(path)?;
        let update::Verified { manifest, signer, payloads_at } = unverified.verify(keys)?;
        Ok(Self { file, payloads_at, manifest, signer })
    }

    /// Reads every byte and holds it against the manifest; then the root file system against its tree, and the kernel against both.
    pub(crate) fn read_through(
        self,
        mut progress: impl FnMut(u64, u64),
    ) -> anyhow::Result<WholeFile> {
        let total = self.payloads_at + self.manifest.payload_bytes();
        let mut whole = Hasher::default();
        let mut head = vec![0; usize::try_from(self.payloads_at)?];
        self.file.read_exact_at(&mut head, 0).context("the update cannot be read")?;
        whole.update(&head);
        let mut done = self.payloads_at;
        for (part, payload, _) in self.manifest.parts() {
            let mut hasher = Hasher::default();
            let mut at = 0;
            while at < payload.bytes {
                let wanted = usize::try_from((payload.bytes - at).min(PIECE_BYTES as u64))?;
                let mut piece = vec![0; wanted];
                self.read(part, at, &mut piece)?;
                hasher.update(&piece);
                whole.update(&piece);
                at += wanted as u64;
                done += wanted as u64;
                progress(done, total);
            }
            ensure!(
                hasher.finish() == payload.sha256,
                "the {part} in the update is not the one that was signed: the file was changed or damaged; copy it again"
            );
        }
        self.check_tree()?;
        self.check_kernel()?;
        Ok(WholeFile { file: self, sha256: whole.finish() })
    }

    /// Reads a piece of a part.
    fn read(&self, part: Part, at: u64, piece: &mut [u8]) -> anyhow::Result<()> {
        let parts = self.manifest.parts().into_iter();
        let start =
            parts.filter(|(found, ..)| *found == part).map(|(_, _, start)| start).sum::<u64>();
        let place = self.payloads_at + start + at;
        self.file.read_exact_at(piece, place).context("the update cannot be read")
    }

    fn check_tree(&self) -> anyhow::Result<()> {
        let Manifest { root, tree, root_hash, .. } = &self.manifest;
        let read = |area, block: u64, into: &mut [u8]| {
            let (part, bytes) = match area {
                Area::Root => (Part::Root, root.bytes),
                Area::Tree => (Part::Tree, tree.bytes),
            };
            let at = block * verity::BLOCK_BYTES as u64;
            ensure!(at + into.len() as u64 <= bytes, "the {part} ends before it");
            self.read(part, at, into)
        };
        let blocks = verity::verify(root_hash, read, |_, _| {}).map_err(|fault| match fault {
            Fault::Unread { source, area, block } => {
                source.context(format!("block {block} of the {area} in the update cannot be read"))
            }
            fault => anyhow::Error::msg(format!(
                "the update does not fit together ({fault}): have it made again"
            )),
        })?;
        ensure!(
            blocks * verity::BLOCK_BYTES as u64 == root.bytes,
            "the hash tree in the update is of another root file system: have it made again"
        );
        Ok(())
    }

    fn check_kernel(&self) -> anyhow::Result<()> {
        let bytes = self.manifest.uki.bytes;
        let mut head = vec![0; uki::HEAD_BYTES.min(usize::try_from(bytes)?)];
        self.read(Part::Uki, 0, &mut head)?;
        let place = uki::section(&head, uki::COMMAND_LINE).filter(|place| place.end <= bytes);
        let place = place.context("the kernel in the update has no command line")?;
        let mut text = vec![0; usize::try_from(place.end - place.start)?];
        self.read(Part::Uki, place.start, &mut text)?;
        ensure!(
            uki::root_hash(&String::from_utf8_lossy(&text)) == Some(self.manifest.root_hash),
            "the kernel in the update starts another root file system: have it made again"
        );
        Ok(())
    }
}

impl WholeFile {
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.file.manifest
    }

    pub(crate) fn signer(&self) -> &PublicKey {
        &self.file.signer
    }

    /// Reads a piece of a part again.
    pub(crate) fn read(&self, part: Part, at: u64, piece: &mut [u8]) -> anyhow::Result<()> {
        self.file.read(part, at, piece)
    }
}

/// Size and hash of a file that becomes a part of an update.
pub(crate) fn payload(path: &Path) -> anyhow::Result<Payload> {
    let (sha256, bytes) = files::hash(files::open_foreign(path)?, path)?;
    Ok(Payload { bytes, sha256 })
}
