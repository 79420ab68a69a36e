//! The power goes at any moment of an update: the old version starts or the new one, never neither.
//!
//! An update is recorded. For each point, what was flushed before is on the disk, and of the sectors that were written since the last flush any
//! have arrived, in any order. Each result is judged as firmware, boot loader and kernel would. `make update-powercut POINTS=200` does it longer.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use sallyport_core::{
    digest::Sha256,
    update::{
        Version,
        entry::{self, Standing},
    },
};

use super::bench::{Event, Image, MemoryDisk, Random, apply, apply_to, disk, install, whole};
use crate::update::{
    file,
    medium::SECTOR_BYTES,
    system::{Here, Release},
};

/// Points of the short form.
const POINTS: usize = 20;

/// What starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Starts {
    Old,
    New,
}

/// What is known of a version.
#[derive(Clone, Copy)]
struct Known {
    version: Version,
    root_hash: Sha256,
    uki: Sha256,
}

struct Scene {
    old: Known,
    new: Known,
    update: file::WholeFile,
    /// The disk before, and what happened to it.
    before: Vec<u8>,
    epochs: Vec<Vec<Event>>,
    _folder: Option<tempfile::TempDir>,
}

impl Known {
    fn of(image: &Image) -> Self {
        let Image { version, root_hash, .. } = *image;
        Self { version, root_hash, uki: Sha256::of(&image.uki) }
    }

    fn here(&self, schema: u32) -> Here {
        Here { root_hash: self.root_hash, release: Release { version: self.version, schema } }
    }
}

impl Scene {
    /// The image of a box, the system that starts from it, and an update that was made for it.
    fn of_files(disk: &Path, update: &Path, keys: &Path) -> Self {
        let keys = file::keys(keys).unwrap();
        let update = file::UpdateFile::open(update, &keys).unwrap();
        let update = update.read_through(|_, _| {}).unwrap();
        let disk = MemoryDisk::new(std::fs::read(disk).unwrap());
        let mut boot = disk.boot().unwrap();
        let starts = boot.next().unwrap().unwrap();
        let kernels = boot.kernels().unwrap();
        let kernel = kernels.iter().find(|kernel| kernel.entry == Some(starts)).unwrap();
        let root_hash = kernel.root_hash.unwrap();
        let old = Known { version: starts.version, root_hash, uki: boot.hash(kernel).unwrap() };
        let manifest = update.manifest();
        let (version, root_hash, uki) = (manifest.version, manifest.root_hash, manifest.uki.sha256);
        let new = Known { version, root_hash, uki };
        let before = disk.kept().bytes.clone();
        apply_to(&disk, old.here(manifest.schema), &update).unwrap();
        let epochs = epochs(&disk);
        Self { old, new, update, before, epochs, _folder: None }
    }

    fn record(old: &str, older: &str, new: &str) -> Self {
        let (old, older, new) = (Image::new(old), Image::new(older), Image::new(new));
        let folder = tempfile::tempdir().unwrap();
        let update = whole(folder.path(), &new.update()).unwrap();
        let disk = disk(&old, &older);
        // What an earlier cut left: clusters without a file, and an entry that the firmware wrote across two sectors.
        let mut boot = disk.boot().unwrap();
        for version in ["0.0.2", "0.0.3"] {
            let stranger = Image::new(version);
            install(&mut boot, entry::Entry::blessed(stranger.version, true), &stranger).unwrap();
        }
        disk.kept().events.clear();
        let before = disk.kept().bytes.clone();
        apply(&disk, &old, &update).unwrap();
        let (old, new) = (Known::of(&old), Known::of(&new));
        Self { old, new, update, before, epochs: epochs(&disk), _folder: Some(folder) }
    }

    /// The disk after a cut: everything up to an epoch, and of that epoch what chance keeps.
    fn cut(&self, random: &mut Random) -> (MemoryDisk, usize) {
        let last = random.below(self.epochs.len());
        let mut bytes = self.before.clone();
        let mut put = |at: u64, sector: &[u8]| {
            let at = usize::try_from(at).unwrap();
            bytes[at..at + sector.len()].copy_from_slice(sector);
        };
        for event in self.epochs[..last].iter().flatten() {
            if let Event::Write { at, bytes } = event {
                put(*at, bytes);
            }
        }
        let mut loose: Vec<(u64, &[u8])> = Vec::new();
        for event in &self.epochs[last] {
            if let Event::Write { at, bytes } = event {
                let sectors = bytes.chunks(SECTOR_BYTES);
                loose.extend((*at..).step_by(SECTOR_BYTES).zip(sectors));
            }
        }
        let kept_of_8 = random.below(9);
        loose.retain(|_| random.below(8) < kept_of_8);
        for place in 0..loose.len() {
            let other = random.below(loose.len());
            loose.swap(place, other);
        }
        loose.into_iter().for_each(|(at, sector)| put(at, sector));
        (MemoryDisk::new(bytes), last)
    }

    /// What starts from a disk, judged as those do who start it.
    fn judge(&self, disk: &MemoryDisk) -> anyhow::Result<Starts> {
        let mut boot = disk.boot()?;
        let next = boot.next()?.context("the boot loader finds no kernel")?;
        let kernels = boot.kernels()?;
        let kernel = kernels.iter().find(|kernel| kernel.entry == Some(next)).unwrap();
        let (starts, image) = match kernel.root_hash {
            Some(hash) if hash == self.old.root_hash => (Starts::Old, &self.old),
            Some(hash) if hash == self.new.root_hash => (Starts::New, &self.new),
            other => anyhow::bail!("{next} starts a root that is neither: {other:?}"),
        };
        ensure!(next.version == image.version, "{next} starts another version");
        // The firmware starts nothing whose signature does not fit: the kernel must be whole.
        ensure!(boot.hash(kernel)? == image.uki, "{next} is not whole");
        let slots = disk.layout()?.slots;
        let slot = slots.iter().find(|slot| slot.root_hash() == image.root_hash);
        let slot = slot.context("no partition has the ids that the kernel looks for")?;
        slot.verify(disk, &image.root_hash, |_, _| {})??;
        // Whatever starts, there is the old one to come back to, untouched and without a counter that runs out, until the new one is blessed.
        let old = kernels.iter().find(|kernel| kernel.root_hash == Some(self.old.root_hash));
        let standing = old.and_then(|old| old.entry).context("the old kernel is gone")?.standing();
        ensure!(
            starts == Starts::Old || matches!(standing, Standing::Blessed | Standing::Exhausted),
            "the new version is tried while the old one is {standing:?}"
        );
        let slot = slots.iter().find(|slot| slot.root_hash() == self.old.root_hash);
        let slot = slot.context("the old slot lost its ids")?;
        slot.verify(disk, &self.old.root_hash, |_, _| {})??;
        Ok(starts)
    }

    /// Cuts the power at so many points; how often which version starts.
    fn cut_often(
        &self,
        points: usize,
        mut keep: impl FnMut(usize, Starts, &MemoryDisk),
    ) -> BTreeMap<Starts, usize> {
        let mut random = Random(7);
        let mut counts = BTreeMap::new();
        for point in 0..points {
            let (disk, epoch) = self.cut(&mut random);
            let starts = self.judge(&disk).unwrap_or_else(|error| {
                panic!("point {point}, after {epoch} of {} flushes: {error:#}", self.epochs.len())
            });
            *counts.entry(starts).or_default() += 1;
            keep(point, starts, &disk);
            if starts == Starts::Old && point.is_multiple_of(4) {
                // The admin tries again.
                let schema = self.update.manifest().schema;
                apply_to(&disk, self.old.here(schema), &self.update).unwrap();
                assert_eq!(self.judge(&disk).unwrap(), Starts::New, "point {point}, again");
            }
        }
        counts
    }
}

/// What was written between two flushes.
fn epochs(disk: &MemoryDisk) -> Vec<Vec<Event>> {
    let events = disk.kept().events.clone();
    events.split(|event| *event == Event::Flush).map(<[Event]>::to_vec).collect()
}

/// The same over the image of a box, if `DISK`, `UPDATE` and `KEYS` name one, an update for it and its release keys. `OUT` gets three images of each outcome, to
/// start them.
#[test]
fn power_cuts_on_the_image_of_a_box() {
    let path = |name| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let (Some(disk), Some(update), Some(keys)) = (path("DISK"), path("UPDATE"), path("KEYS"))
    else {
        println!("DISK, UPDATE and KEYS name no image of a box");
        return;
    };
    let scene = Scene::of_files(&disk, &update, &keys);
    let mut kept = BTreeMap::new();
    let counts = scene.cut_often(points(), |point, starts, disk| {
        let count: &mut usize = kept.entry(starts).or_default();
        if let Some(out) = path("OUT").filter(|_| *count < 3) {
            let name = format!("cut-{point}-{starts:?}.raw").to_ascii_lowercase();
            std::fs::write(out.join(name), &disk.kept().bytes).unwrap();
            *count += 1;
        }
    });
    println!("{} flushes; {counts:?}", scene.epochs.len());
    assert!(counts.contains_key(&Starts::Old), "{counts:?}");
}

fn points() -> usize {
    env::var("POINTS").ok().map_or(POINTS, |text| text.parse().unwrap())
}

#[test]
fn a_power_cut_leaves_the_old_version_or_the_new_one() {
    let scene = Scene::record("0.1.0", "0.0.9", "0.2.0");
    assert_eq!(scene.judge(&MemoryDisk::new(scene.before.clone())).unwrap(), Starts::Old);
    let counts = scene.cut_often(points(), |_, _, _| {});
    println!("{} flushes; {counts:?}", scene.epochs.len());
    assert!(counts.contains_key(&Starts::Old), "{counts:?}");
}

#[test]
fn a_power_cut_on_the_way_to_an_older_version_leaves_one_of_the_two() {
    let scene = Scene::record("0.3.0", "0.0.9", "0.2.0");
    let counts = scene.cut_often(points(), |_, _, _| {});
    assert!(counts.contains_key(&Starts::Old), "{counts:?}");
}

/// The whole order of things, without chance: everything before the last flush but one starts the old version, everything after the last the new one.
#[test]
fn the_last_sector_makes_the_difference() {
    let scene = Scene::record("0.1.0", "0.0.9", "0.2.0");
    let mut bytes = scene.before.clone();
    let mut outcomes = Vec::new();
    for epoch in &scene.epochs {
        for event in epoch {
            if let Event::Write { at, bytes: written } = event {
                let at = usize::try_from(*at).unwrap();
                bytes[at..at + written.len()].copy_from_slice(written);
            }
        }
        outcomes.push(scene.judge(&MemoryDisk::new(bytes.clone())).unwrap());
    }
    let writes: Vec<&Event> =
        scene.epochs.iter().rev().find(|e| !e.is_empty()).unwrap().iter().collect();
    let [Event::Write { bytes: last, .. }] = writes.as_slice() else { panic!("{}", writes.len()) };
    assert_eq!(last.len(), SECTOR_BYTES);
    let news = outcomes.iter().filter(|starts| **starts == Starts::New).count();
    // What follows the last write is its flush.
    assert_eq!(news, 2, "{outcomes:?}");
    assert!(outcomes.is_sorted());
}

/// The record is a real disk's: the bytes of the partition that runs and of the data are never written to.
#[test]
fn what_runs_is_never_written_to() {
    let scene = Scene::record("0.1.0", "0.0.9", "0.2.0");
    let disk = MemoryDisk::new(scene.before.clone());
    let layout = disk.layout().unwrap();
    let [ours, _] = &layout.slots;
    for event in scene.epochs.iter().flatten() {
        let Event::Write { at, bytes } = event else { continue };
        for place in [ours.root.place, ours.tree.place] {
            let apart = at + bytes.len() as u64 <= place.start || *at >= place.start + place.bytes;
            assert!(apart, "{} bytes at {at}", bytes.len());
        }
    }
}
