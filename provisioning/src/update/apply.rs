//! The order in which an update is written. Each step ends with a flush, and between any two of them the box starts.

use anyhow::{Context as _, bail, ensure};
use sallyport_core::{
    digest::{Hasher, Sha256},
    update::{
        Direction, Manifest, Part, Payload,
        entry::{Entry, Standing},
    },
};

use super::{
    boot::Boot,
    disk::{Access, Disk},
    file::WholeFile,
    gpt::{Extent, Guid, Table},
    medium::{Medium, PIECE_BYTES},
    slots::{Layout, Slot},
    system::Here,
};

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Reading the file.
    Reading,
    /// Writing a part.
    Writing(Part),
    /// Reading it back.
    Checking(Part),
    /// Holding the slot against its root hash.
    Verifying,
    /// Writing the kernel.
    Kernel,
}

impl Step {
    /// For people.
    pub(crate) fn words(self) -> String {
        match self {
            Self::Reading => "reading the update".to_owned(),
            Self::Writing(part) => format!("writing the {part}"),
            Self::Checking(part) => format!("reading the {part} back"),
            Self::Verifying => "verifying the slot".to_owned(),
            Self::Kernel => "writing the kernel".to_owned(),
        }
    }
}

/// An update that may be written: nothing was written yet.
pub(crate) struct Plan<'a, D> {
    disk: &'a D,
    file: &'a WholeFile,
    here: Here,
    direction: Direction,
    layout: Layout,
    running: Entry,
}

impl<'a, D: Disk> Plan<'a, D> {
    /// Holds the disk against the update.
    pub(crate) fn make(
        disk: &'a D,
        file: &'a WholeFile,
        here: Here,
        direction: Direction,
    ) -> anyhow::Result<Self> {
        let mut whole = disk.whole(Access::Read)?;
        let layout = Layout::of(&Table::read(&mut whole)?)?;
        let (_, other) = layout.sides(&here.root_hash)?;
        let Manifest { root, tree, uki, .. } = file.manifest();
        for (part, payload, partition) in
            [(Part::Root, root, &other.root), (Part::Tree, tree, &other.tree)]
        {
            ensure!(
                payload.bytes <= partition.place.bytes,
                "the {part} has {} bytes, and slot {} has room for {}",
                payload.bytes,
                other.name,
                partition.place.bytes
            );
        }
        let mut boot = Boot::open(disk.partition(&layout.esp.place, Access::Read)?)?;
        let running = running_entry(&mut boot, &here)?;
        let room = boot.room_beside(&here.root_hash)?;
        ensure!(
            uki.bytes.saturating_add(1 << 20) <= room,
            "the kernel has {} bytes, and the boot partition has room for {room}",
            uki.bytes
        );
        Ok(Self { disk, file, here, direction, layout, running })
    }

    /// The slot that is written to.
    pub(crate) fn slot(&self) -> anyhow::Result<&Slot> {
        Ok(self.layout.sides(&self.here.root_hash)?.1)
    }

    /// Writes the update. It may be repeated at any time. `about_to_commit` is called when everything but the kernel is there.
    pub(crate) fn carry_out(
        &self,
        mut progress: impl FnMut(Step, u64, u64),
        about_to_commit: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Manifest { version, root, tree, uki, root_hash, .. } = self.file.manifest();
        let (disk, ours) = (self.disk, &self.here.root_hash);
        let slot = self.slot()?;
        // All are opened before the first is written to: one that is in use is found out now.
        let mut boot = Boot::open(disk.partition(&self.layout.esp.place, Access::Write)?)?;
        let parts = [(Part::Root, root, &slot.root), (Part::Tree, tree, &slot.tree)];
        let mut open = Vec::new();
        for (part, payload, partition) in parts {
            open.push((part, *payload, disk.partition(&partition.place, Access::Write)?));
        }
        // 1. Nothing starts the slot any more; what starts the running system does so whatever happens.
        boot.set_entry(ours, Entry::blessed(self.here.release.version, false))?;
        boot.keep_only(ours)?;
        // 2. The slot.
        for (part, payload, medium) in &mut open {
            self.write(*part, *payload, medium, &mut progress)?;
        }
        for (part, payload, medium) in &mut open {
            check(*part, *payload, medium, &mut progress)?;
        }
        drop(open);
        let read =
            slot.verify(disk, root_hash, |done, all| progress(Step::Verifying, done, all))?;
        read.context("the slot was written and reads differently: the disk is failing")?;
        // 3. The ids by which the kernel finds it.
        self.name_slot(slot, root_hash)?;
        about_to_commit()?;
        // 4. The kernel. With the last sector of this the update is there.
        let entry = Entry::on_trial(*version);
        boot.install(entry, uki.bytes, &uki.sha256, |at, piece| {
            progress(Step::Kernel, at + piece.len() as u64, uki.bytes);
            self.file.read(Part::Uki, at, piece)
        })?;
        if self.direction == Direction::Down {
            boot.set_entry(ours, self.running.stood_back())?;
        }
        let next = boot.next()?;
        ensure!(
            next == Some(entry),
            "the boot loader would not start the update next: report this"
        );
        Ok(())
    }

    fn write(
        &self,
        part: Part,
        payload: Payload,
        medium: &mut impl Medium,
        progress: &mut impl FnMut(Step, u64, u64),
    ) -> anyhow::Result<()> {
        let mut at = 0;
        while at < payload.bytes {
            let wanted = usize::try_from((payload.bytes - at).min(PIECE_BYTES as u64))?;
            let mut piece = vec![0; wanted];
            self.file.read(part, at, &mut piece)?;
            medium.write(at, &piece).with_context(|| format!("the {part} cannot be written"))?;
            at += wanted as u64;
            progress(Step::Writing(part), at, payload.bytes);
        }
        medium.flush().with_context(|| format!("the {part} cannot be written"))
    }

    fn name_slot(&self, slot: &Slot, root_hash: &Sha256) -> anyhow::Result<()> {
        let mut whole = self.disk.whole(Access::Write)?;
        let mut table = Table::read(&mut whole)?;
        let (root, tree) = Guid::of_slot(root_hash);
        table.set_id(&slot.root, root)?;
        table.set_id(&slot.tree, tree)?;
        let place = |table: &Table| -> anyhow::Result<[Extent; 2]> {
            let layout = Layout::of(table)?;
            let (_, other) = layout.sides(&self.here.root_hash)?;
            Ok([other.root.place, other.tree.place])
        };
        ensure!(
            place(&table)? == [slot.root.place, slot.tree.place],
            "the partition table changed while the update was written: try once more"
        );
        table.write(&mut whole)
    }
}

/// The entry that started the running system. It must have proven itself: it is what a failed update goes back to.
fn running_entry<M: Medium>(boot: &mut Boot<M>, here: &Here) -> anyhow::Result<Entry> {
    let kernels = boot.kernels()?;
    let mut ours = kernels.iter().filter(|kernel| kernel.root_hash == Some(here.root_hash));
    let entries: Vec<Entry> = ours.by_ref().filter_map(|kernel| kernel.entry).collect();
    let proven = entries
        .iter()
        .find(|entry| matches!(entry.standing(), Standing::Blessed | Standing::Watched));
    match (proven, entries.first()) {
        (Some(entry), _) => Ok(*entry),
        (None, Some(_)) => bail!(
            "version {} itself has yet to prove itself: wait until it has, `sallyctl update status` shows it",
            here.release.version
        ),
        (None, None) => bail!("the boot partition has no kernel of the running system"),
    }
}

/// Reads a part back from the medium.
fn check(
    part: Part,
    payload: Payload,
    medium: &mut impl Medium,
    progress: &mut impl FnMut(Step, u64, u64),
) -> anyhow::Result<()> {
    let mut hasher = Hasher::default();
    let mut at = 0;
    while at < payload.bytes {
        let wanted = usize::try_from((payload.bytes - at).min(PIECE_BYTES as u64))?;
        let mut piece = vec![0; wanted];
        medium.read(at, &mut piece).with_context(|| format!("the {part} cannot be read back"))?;
        hasher.update(&piece);
        at += wanted as u64;
        progress(Step::Checking(part), at, payload.bytes);
    }
    ensure!(
        hasher.finish() == payload.sha256,
        "the {part} was written and reads differently: the disk is failing"
    );
    Ok(())
}
