//! The boot partition and the partition table after what others did to them.

use sallyport_core::update::entry::{Counter, Entry};
use sallyport_volume::Volume;

use super::bench::{Event, Image, MemoryDisk, apply, disk, format, install, version, whole};
use crate::update::{
    boot::Boot,
    disk::{Access, Disk as _},
    gpt::{Extent, Guid, Table},
};

#[test]
fn a_torn_copy_of_the_partition_table_is_mended_from_the_other() {
    let disk = disk(&Image::new("0.1.0"), &Image::new("0.0.9"));
    let bytes = disk.kept().bytes.clone();
    let partitions = Table::read(&mut disk.whole(Access::Read).unwrap()).unwrap().partitions();
    let end = bytes.len() - 512;
    for torn in [512 + 20, 1024 + 60, end + 20, end - 32 * 512 + 88] {
        disk.kept().bytes[torn] ^= 1;
        let mut whole = disk.whole(Access::Write).unwrap();
        let table = Table::read(&mut whole).unwrap();
        assert_eq!(table.partitions(), partitions, "{torn}");
        assert!(!table.is_sound(), "{torn}");
        table.write(&mut whole).unwrap();
        assert!(Table::read(&mut whole).unwrap().is_sound());
        assert!(disk.kept().bytes == bytes, "{torn}");
    }
    disk.kept().bytes[512 + 20] ^= 1;
    disk.kept().bytes[end + 20] ^= 1;
    assert!(Table::read(&mut disk.whole(Access::Read).unwrap()).is_err());
}

#[test]
fn a_sound_table_is_not_written() {
    let disk = disk(&Image::new("0.1.0"), &Image::new("0.0.9"));
    let mut whole = disk.whole(Access::Write).unwrap();
    let table = Table::read(&mut whole).unwrap();
    table.write(&mut whole).unwrap();
    assert_eq!(disk.kept().events, []);
    let mut table = table;
    let partition = table.partitions().swap_remove(3);
    table.set_id(&partition, Guid([3; 16])).unwrap();
    table.write(&mut whole).unwrap();
    let events = disk.kept().events.clone();
    let places: Vec<u64> = events
        .iter()
        .map(|event| match event {
            Event::Write { at, .. } => at / 512,
            Event::Flush => 0,
        })
        .collect();
    let last = disk.kept().bytes.len() as u64 / 512 - 1;
    assert_eq!(places, [last - 32, last, 0, 2, 1, 0], "the copy at the end first, and flushed");
}

#[test]
fn text_form_of_an_id() {
    let text = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
    assert_eq!(crate::update::gpt::ESP.to_string(), text);
}

#[test]
fn a_folder_grows_and_its_names_stay() {
    let [runs, older] = ["0.1.0", "0.0.9"].map(Image::new);
    let disk = disk(&runs, &older);
    let mut boot = disk.boot().unwrap();
    let mut wanted = vec![Entry::blessed(older.version, false), Entry::blessed(runs.version, true)];
    for number in 0..20 {
        let image = Image::new(&format!("0.3.{number}"));
        // Names of two and of three entries.
        let entry = if number % 2 == 0 {
            Entry::on_trial(image.version)
        } else {
            Entry {
                version: image.version,
                counter: Some(Counter { left: 100_000_000, done: 100_000_000 }),
            }
        };
        install(&mut boot, entry, &image).unwrap();
        wanted.push(entry);
    }
    let found = |boot: &mut Boot<_>| -> Vec<Entry> {
        let mut found: Vec<Entry> =
            boot.kernels().unwrap().into_iter().filter_map(|kernel| kernel.entry).collect();
        found.sort();
        found
    };
    wanted.sort();
    assert_eq!(found(&mut boot), wanted);
    // Read from the disk again.
    let mut boot = disk.boot().unwrap();
    assert_eq!(found(&mut boot), wanted);
    // A longer name does not fit into its place.
    let long =
        Entry { version: runs.version, counter: Some(Counter { left: 100_000_000, done: 0 }) };
    boot.set_entry(&runs.root_hash, long).unwrap();
    assert!(found(&mut disk.boot().unwrap()).contains(&long));
    boot.keep_only(&runs.root_hash).unwrap();
    let mut boot = disk.boot().unwrap();
    assert_eq!(found(&mut boot), [long]);
    let free = boot.free_bytes();
    boot.keep_only(&runs.root_hash).unwrap();
    assert_eq!(boot.free_bytes(), free);
}

/// As systemd-repart makes them.
#[test]
fn a_boot_partition_with_large_sectors() {
    const BYTES: usize = 270 << 20;
    let mut bytes = vec![0; BYTES];
    format(&mut bytes, 4096);
    let disk = MemoryDisk::new(bytes);
    let place = Extent { start: 0, bytes: BYTES as u64 };
    let open = || Boot::open(disk.partition(&place, Access::Write).unwrap()).unwrap();
    let [one, two] = ["0.1.0", "0.2.0"].map(Image::new);
    let mut boot = open();
    let before = boot.free_bytes();
    install(&mut boot, Entry::blessed(one.version, false), &one).unwrap();
    install(&mut boot, Entry::on_trial(two.version), &two).unwrap();
    let mut boot = open();
    assert_eq!(boot.next().unwrap(), Some(Entry::on_trial(two.version)));
    boot.set_entry(&two.root_hash, Entry::blessed(two.version, true)).unwrap();
    let kernels = open().kernels().unwrap();
    assert_eq!(kernels.len(), 2);
    for (kernel, image) in kernels.iter().zip([&one, &two]) {
        assert!(open().hash(kernel).unwrap() == sallyport_core::digest::Sha256::of(&image.uki));
    }
    let mut boot = open();
    boot.keep_only(&one.root_hash).unwrap();
    let used = before - boot.free_bytes();
    assert_eq!(used, (one.uki.len() as u64).next_multiple_of(4096));
}

/// A cut between the two steps of a change of name leaves both names, of one file.
#[test]
fn two_names_of_one_kernel_become_one() {
    let [runs, older] = ["0.1.0", "0.0.9"].map(Image::new);
    let disk = disk(&runs, &older);
    let before = disk.kept().bytes.clone();
    let long =
        Entry { version: runs.version, counter: Some(Counter { left: 100_000_000, done: 0 }) };
    disk.boot().unwrap().set_entry(&runs.root_hash, long).unwrap();
    let events = disk.kept().events.clone();
    disk.kept().bytes = before;
    for event in events.iter().take_while(|event| **event != Event::Flush) {
        let Event::Write { at, bytes } = event else { continue };
        let at = usize::try_from(*at).unwrap();
        disk.kept().bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let mut boot = disk.boot().unwrap();
    assert_eq!(boot.kernels().unwrap().len(), 3);
    boot.set_entry(&runs.root_hash, Entry::blessed(runs.version, true)).unwrap();
    boot.keep_only(&runs.root_hash).unwrap();
    let mut boot = disk.boot().unwrap();
    let kernels = boot.kernels().unwrap();
    assert_eq!(kernels.len(), 1);
    assert_eq!(kernels[0].entry, Some(Entry::blessed(version("0.1.0"), true)));
    assert!(boot.hash(&kernels[0]).unwrap() == sallyport_core::digest::Sha256::of(&runs.uki));
}

/// What we write is what other programs read: the reader of sticks, which shares nothing with this one, and `fsck.vfat` where there is one.
#[test]
fn other_programs_read_what_was_written() {
    let [runs, older, new] = ["0.1.0", "0.0.9", "0.2.0"].map(Image::new);
    let disk = disk(&runs, &older);
    let folder = tempfile::tempdir().unwrap();
    let update = whole(folder.path(), &new.update()).unwrap();
    apply(&disk, &runs, &update).unwrap();
    let place = disk.layout().unwrap().esp.place;
    let start = usize::try_from(place.start).unwrap();
    let end = start + usize::try_from(place.bytes).unwrap();
    let esp = disk.kept().bytes[start..end].to_vec();
    let path = folder.path().join("esp");
    std::fs::write(&path, &esp).unwrap();

    let mut volume = Volume::find(esp, "EFI").unwrap();
    let mut found = volume.list(None).unwrap();
    for name in ["EFI", "LINUX"] {
        let below = found.into_iter().find(|entry| entry.name == name).unwrap();
        found = volume.list(Some(&below)).unwrap();
    }
    let mut kernels = Vec::new();
    for kernel in found.into_iter().filter(|entry| !entry.is_folder) {
        let mut content = Vec::new();
        let mut each = |piece: &[u8]| {
            content.extend_from_slice(piece);
            Ok(())
        };
        volume.read(&kernel, &mut each).unwrap();
        kernels.push((kernel.name, content));
    }
    kernels.sort();
    let wanted = [("sallyport_0.1.0.efi", &runs.uki), ("sallyport_0.2.0+3-0.efi", &new.uki)];
    assert!(kernels == wanted.map(|(name, uki)| (name.to_owned(), uki.clone())));

    let mut check = std::process::Command::new("fsck.vfat");
    let check = check.arg("-n").arg(&path).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").output();
    if let Ok(check) = check {
        let said = String::from_utf8_lossy(&check.stdout);
        assert!(check.status.success(), "{said}");
    }
}
