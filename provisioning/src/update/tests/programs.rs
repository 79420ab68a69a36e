//! The commands as the box gives them, over a disk in a file: from the first update to the blessing, the verification and a rotten block.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use clap::Parser as _;
use sallyport_core::update::{
    Ledger, Outcome,
    entry::{Entry, Standing},
};
use tempfile::TempDir;

use super::bench::{Image, disk, release_key, version};
use crate::{
    cli::Cli,
    update::{
        boot::Boot,
        disk::{Access, Disk as _, LocalDisk},
        gpt::Table,
        slots::Layout,
    },
};

/// A machine: a folder with its system's files, and a disk in a file.
struct Machine(TempDir);

impl Machine {
    fn new(runs: &Image, older: &Image) -> Self {
        let machine = Self(TempDir::new().unwrap());
        for folder in ["proc", "usr/lib/sallyport", "run/sallyport-state"] {
            fs::create_dir_all(machine.path(folder)).unwrap();
        }
        fs::write(machine.path("disk"), &disk(runs, older).kept().bytes).unwrap();
        fs::write(machine.path("usr/lib/sallyport/update.pub"), format!("{}\n", release_key()))
            .unwrap();
        machine.start(runs);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// This version runs from now on.
    fn start(&self, image: &Image) {
        fs::write(self.path("proc/cmdline"), format!("roothash={} ro", image.root_hash)).unwrap();
        let release = format!("IMAGE_VERSION={}\nSALLYPORT_SCHEMA=9\n", image.version);
        fs::write(self.path("usr/lib/os-release"), release).unwrap();
    }

    fn run(&self, line: &str) -> anyhow::Result<()> {
        let (disk, system) = (self.path("disk"), self.0.path().to_owned());
        let words = ["sallyctl", "--json", "update"].into_iter().chain(line.split(' '));
        let words = words.map(Into::into).chain([
            "--disk".into(),
            disk.into_os_string(),
            "--system".into(),
            system.into_os_string(),
        ]);
        Cli::try_parse_from(words)?.run()
    }

    fn fails(&self, line: &str, says: &str) {
        let error = format!("{:#}", self.run(line).unwrap_err());
        assert!(error.contains(says), "{error}\n does not say {says}");
    }

    fn entries(&self) -> Vec<Entry> {
        let disk = LocalDisk::at(&self.path("disk")).unwrap();
        let esp = self.layout().esp.place;
        let mut boot = Boot::open(disk.partition(&esp, Access::Read).unwrap()).unwrap();
        let kernels = boot.kernels().unwrap();
        let mut entries: Vec<Entry> =
            kernels.into_iter().filter_map(|kernel| kernel.entry).collect();
        entries.sort();
        entries
    }

    fn layout(&self) -> Layout {
        let disk = LocalDisk::at(&self.path("disk")).unwrap();
        Layout::of(&Table::read(&mut disk.whole(Access::Read).unwrap()).unwrap()).unwrap()
    }

    fn ledger(&self) -> Ledger {
        let text = fs::read(self.path("var/lib/sallyport-update/ledger.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    fn update(&self, image: &Image) -> PathBuf {
        let path = self.path(&format!("sallyport-{}.update", image.version));
        fs::write(&path, image.update()).unwrap();
        path
    }

    /// Flips a bit on the disk.
    fn rot(&self, place: u64) {
        let file = fs::OpenOptions::new().read(true).write(true).open(self.path("disk")).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 1], place).unwrap();
    }
}

fn apply(path: &Path) -> String {
    format!("apply {}", path.display())
}

#[test]
fn from_an_update_to_its_blessing() {
    let [old, older, new] = ["0.1.0", "0.0.9", "0.2.0"].map(Image::new);
    let machine = Machine::new(&old, &older);
    machine.run("status").unwrap();
    let before = fs::read(machine.path("disk")).unwrap();
    let update = machine.update(&new);
    machine.run(&format!("{} --dry-run", apply(&update))).unwrap();
    assert!(fs::read(machine.path("disk")).unwrap() == before, "a dry run wrote something");
    machine.run(&apply(&update)).unwrap();
    assert_eq!(
        machine.entries(),
        [Entry::blessed(old.version, false), Entry::on_trial(new.version)]
    );
    assert_eq!(machine.ledger().pending.unwrap().version, new.version);
    assert_eq!(machine.ledger().floor, version("0.0.0"));
    let told = fs::read_to_string(machine.path("run/sallyport-state/update.json")).unwrap();
    assert!(told.contains("Version 0.2.0 is written"), "{told}");
    // The new one comes to its health check.
    machine.start(&new);
    let signal = machine.path("run/sallyport-state/blessed");
    let bless = format!("bless --signal {}", signal.display());
    machine.run(&bless).unwrap();
    assert_eq!(fs::read_to_string(&signal).unwrap(), "0.2.0\n");
    assert_eq!(
        machine.entries(),
        [Entry::blessed(old.version, false), Entry::blessed(new.version, true)]
    );
    let ledger = machine.ledger();
    assert_eq!(ledger.last.unwrap().outcome, Outcome::Blessed);
    assert_eq!(ledger.floor, version("0.0.1"));
    // Once more, and with a torn partition table.
    machine.rot(512 + 60);
    machine.run(&bless).unwrap();
    let disk = LocalDisk::at(&machine.path("disk")).unwrap();
    assert!(Table::read(&mut disk.whole(Access::Read).unwrap()).unwrap().is_sound());
    machine.run("status").unwrap();
    machine.fails(&apply(&update), "version 0.2.0 is what runs here");
}

#[test]
fn an_update_that_does_not_hold_is_noted() {
    let [old, older, new] = ["0.1.0", "0.0.9", "0.2.0"].map(Image::new);
    let machine = Machine::new(&old, &older);
    machine.run(&apply(&machine.update(&new))).unwrap();
    // It fell back, and the old version comes to its health check.
    machine.run("bless").unwrap();
    let ledger = machine.ledger();
    assert_eq!(ledger.last.unwrap().outcome, Outcome::FellBack);
    assert_eq!(ledger.floor, version("0.0.0"));
    // There is nothing to fall back to but what failed.
    assert_eq!(machine.entries()[0].standing(), Standing::Blessed);
    let told = fs::read_to_string(machine.path("run/sallyport-state/update.json")).unwrap();
    assert!(told.contains("VERSION 0.2.0 DID NOT HOLD"), "{told}");
    machine.run("status").unwrap();
}

/// A machine with one slot has nothing to fall back to: a counter would help nobody.
#[test]
fn a_single_system_is_not_watched() {
    let [old, older] = ["0.1.0", "0.0.9"].map(Image::new);
    let machine = Machine::new(&old, &older);
    let disk = LocalDisk::at(&machine.path("disk")).unwrap();
    let esp = machine.layout().esp.place;
    let mut boot = Boot::open(disk.partition(&esp, Access::Write).unwrap()).unwrap();
    boot.keep_only(&old.root_hash).unwrap();
    machine.run("bless").unwrap();
    assert_eq!(machine.entries(), [Entry::blessed(old.version, false)]);
}

#[test]
fn a_block_that_nobody_reads_is_read_and_found_rotten() {
    let [old, older] = ["0.1.0", "0.0.9"].map(Image::new);
    let machine = Machine::new(&old, &older);
    machine.run("verify").unwrap();
    assert!(!machine.path("run/sallyport-state/slots.json").exists());
    let [ours, other] = machine.layout().slots;
    machine.rot(other.root.place.start + 40_000);
    machine.fails("verify", "the slot that does not run is damaged");
    machine.rot(ours.tree.place.start + 4096);
    machine.fails("verify", "the slot of the running system is damaged");
    let told = fs::read_to_string(machine.path("run/sallyport-state/slots.json")).unwrap();
    assert!(told.contains("block 1 of the hash tree is damaged"), "{told}");
    assert!(told.contains("block 9 of the root file system is damaged"), "{told}");
    // An update to the other slot does not mind, and mends it.
    let new = Image::new("0.2.0");
    machine.run(&apply(&machine.update(&new))).unwrap();
    machine.start(&new);
    machine.fails("verify", "the slot that does not run is damaged");
}
