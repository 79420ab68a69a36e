//! The two slots of a disk: which one runs, and which one may be written to.

use anyhow::{Context as _, ensure};
use sallyport_core::{
    digest::Sha256,
    update::verity::{self, Area, Fault},
};

use super::{
    disk::{Access, Disk},
    gpt::{ESP, Guid, Partition, Table},
    medium::Medium as _,
};

/// Labels of the partitions with root file systems; those with the trees have `-verity` behind.
const LABELS: [&str; 2] = ["root-a", "root-b"];

/// A slot: two partitions.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    /// `a` or `b`.
    pub(crate) name: &'static str,
    pub(crate) root: Partition,
    pub(crate) tree: Partition,
}

/// What a disk of ours has.
pub(crate) struct Layout {
    pub(crate) esp: Partition,
    pub(crate) slots: [Slot; 2],
}

impl Layout {
    /// Finds the partitions by kind and label.
    pub(crate) fn of(table: &Table) -> anyhow::Result<Self> {
        let partitions = table.partitions();
        let one = |what: &str, is: &dyn Fn(&Partition) -> bool| {
            let mut found = partitions.iter().filter(|partition| is(partition));
            let (first, more) = (found.next(), found.next().is_some());
            ensure!(!more, "the disk has two partitions {what}");
            first.cloned().with_context(|| format!("the disk has no partition {what}"))
        };
        let esp = one("for booting", &|partition| partition.kind == ESP)?;
        let labeled = |label: &str| one(label, &|partition| partition.label == label);
        let slot = |name, label: &str| -> anyhow::Result<Slot> {
            let tree = labeled(&format!("{label}-verity"))?;
            Ok(Slot { name, root: labeled(label)?, tree })
        };
        let [a, b] = LABELS;
        Ok(Self { esp, slots: [slot("a", a)?, slot("b", b)?] })
    }

    /// The slot of the running system, and the other one.
    pub(crate) fn sides(&self, running: &Sha256) -> anyhow::Result<(&Slot, &Slot)> {
        let [a, b] = &self.slots;
        match (a.root_hash() == *running, b.root_hash() == *running) {
            (true, false) => Ok((a, b)),
            (false, true) => Ok((b, a)),
            (true, true) => anyhow::bail!("both slots say that they are the running system"),
            (false, false) => anyhow::bail!(
                "neither slot is that of the running system ({running}): this is not the disk that it started from"
            ),
        }
    }
}

impl Slot {
    /// What the slot should hold.
    pub(crate) fn root_hash(&self) -> Sha256 {
        Guid::root_hash(self.root.id, self.tree.id)
    }

    /// Reads the whole slot and holds it against a root hash. `progress` hears of blocks, how many of how many.
    pub(crate) fn verify<D: Disk>(
        &self,
        disk: &D,
        root_hash: &Sha256,
        progress: impl FnMut(u64, u64),
    ) -> anyhow::Result<Result<u64, Fault<std::io::Error>>> {
        let mut root = disk.partition(&self.root.place, Access::Read)?;
        let mut tree = disk.partition(&self.tree.place, Access::Read)?;
        let read = |area, block: u64, into: &mut [u8]| {
            let at = block.saturating_mul(verity::BLOCK_BYTES as u64);
            match area {
                Area::Root => root.read(at, into),
                Area::Tree => tree.read(at, into),
            }
        };
        Ok(verity::verify(root_hash, read, progress))
    }
}
