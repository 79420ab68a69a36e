//! The kernels on the boot partition, and the root that each of them starts.

use sallyport_core::{
    digest::Sha256,
    update::{
        entry::{self, Entry},
        uki,
    },
};

use super::{
    fat::{Folder, Item, Volume},
    medium::Medium,
};

/// Where the boot loader looks for kernels.
const FOLDER: [&str; 2] = ["EFI", "Linux"];

/// An open boot partition.
pub(crate) struct Boot<M> {
    volume: Volume<M>,
    folder: Folder,
}

/// A kernel.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// What its name says; none if it is not a name of ours.
    pub(crate) entry: Option<Entry>,
    /// The root that it starts; none if it does not say so.
    pub(crate) root_hash: Option<Sha256>,
    item: Item,
}

impl Kernel {
    /// The name of its file.
    pub(crate) fn name(&self) -> &str {
        &self.item.name
    }
}

impl<M: Medium> Boot<M> {
    pub(crate) fn open(medium: M) -> anyhow::Result<Self> {
        let mut volume = Volume::open(medium)?;
        let folder = volume.folder(&FOLDER)?;
        Ok(Self { volume, folder })
    }

    /// All kernels.
    pub(crate) fn kernels(&mut self) -> anyhow::Result<Vec<Kernel>> {
        let items = self.folder.items().into_iter();
        let kernels = items.filter(|item| {
            !item.is_folder
                && item.name.len() > 4
                && item.name.to_ascii_lowercase().ends_with(".efi")
        });
        kernels
            .map(|item| {
                let entry = item.name.parse().ok();
                Ok(Kernel { entry, root_hash: self.root_hash(&item)?, item })
            })
            .collect()
    }

    /// The kernel that the boot loader starts next.
    pub(crate) fn next(&mut self) -> anyhow::Result<Option<Entry>> {
        Ok(entry::next(self.kernels()?.iter().filter_map(|kernel| kernel.entry)))
    }

    /// Removes what starts another root than this one, and what a power cut left.
    pub(crate) fn keep_only(&mut self, root_hash: &Sha256) -> anyhow::Result<()> {
        for kernel in self.kernels()? {
            if kernel.root_hash.as_ref() != Some(root_hash) {
                self.volume.remove(&mut self.folder, &kernel.item)?;
            }
        }
        self.volume.reclaim()?;
        Ok(())
    }

    /// Bytes that are free.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.volume.free_bytes()
    }

    /// Bytes that will be free once everything but the kernels of this root is gone.
    pub(crate) fn room_beside(&mut self, root_hash: &Sha256) -> anyhow::Result<u64> {
        let others = self.kernels()?.into_iter();
        let others = others.filter(|kernel| kernel.root_hash.as_ref() != Some(root_hash));
        Ok(others.fold(self.free_bytes(), |sum, kernel| sum.saturating_add(kernel.item.bytes)))
    }

    /// The hash of a kernel.
    #[cfg(test)]
    pub(crate) fn hash(&mut self, kernel: &Kernel) -> anyhow::Result<Sha256> {
        self.volume.hash(&kernel.item)
    }

    /// Puts a kernel there: as a whole or not at all.
    pub(crate) fn install(
        &mut self,
        entry: Entry,
        bytes: u64,
        sha256: &Sha256,
        source: impl FnMut(u64, &mut [u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let name = entry.to_string();
        self.volume.create(&mut self.folder, &name, bytes, sha256, source)
    }

    /// Makes this the one entry of a root. Whether anything had to be changed.
    pub(crate) fn set_entry(&mut self, root_hash: &Sha256, wanted: Entry) -> anyhow::Result<bool> {
        let kernels = self.kernels()?.into_iter();
        let mut kernels: Vec<Kernel> =
            kernels.filter(|kernel| kernel.root_hash.as_ref() == Some(root_hash)).collect();
        // Of two that a power cut left, the one with the wanted name stays.
        kernels.sort_by_key(|kernel| kernel.entry != Some(wanted));
        let mut changed = false;
        let mut kernels = kernels.into_iter();
        if let Some(kernel) = kernels.next().filter(|kernel| kernel.entry != Some(wanted)) {
            self.volume.rename(&mut self.folder, &kernel.item, &wanted.to_string())?;
            changed = true;
        }
        for kernel in kernels {
            self.volume.remove(&mut self.folder, &kernel.item)?;
            changed = true;
        }
        Ok(changed)
    }

    fn root_hash(&mut self, item: &Item) -> anyhow::Result<Option<Sha256>> {
        let head = self.volume.read(item, 0, uki::HEAD_BYTES)?;
        let Some(place) = uki::section(&head, uki::COMMAND_LINE) else { return Ok(None) };
        let bytes = usize::try_from(place.end - place.start)?;
        let text = self.volume.read(item, place.start, bytes)?;
        Ok(uki::root_hash(&String::from_utf8_lossy(&text)))
    }
}
