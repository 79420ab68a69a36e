//! What is not written, and why; and what an update does to the entries of the boot partition.

use sallyport_core::update::entry::Entry;

use super::bench::{Event, Image, MemoryDisk, apply, disk, version, whole};

fn names(disk: &MemoryDisk) -> Vec<String> {
    let kernels = disk.boot().unwrap().kernels().unwrap();
    let mut names: Vec<String> = kernels.iter().map(|kernel| kernel.name().to_owned()).collect();
    names.sort();
    names
}

fn images() -> [Image; 3] {
    ["0.1.0", "0.0.9", "0.2.0"].map(Image::new)
}

/// Applies an update that must be refused with these words, before anything is written.
fn refused(disk: &MemoryDisk, runs: &Image, update: &[u8], says: &str) {
    let before = disk.kept().bytes.clone();
    let folder = tempfile::tempdir().unwrap();
    let done = whole(folder.path(), update).and_then(|update| apply(disk, runs, &update));
    let error = format!("{:#}", done.unwrap_err());
    assert!(error.contains(says), "{error}\n does not say {says}");
    assert!(disk.kept().bytes == before, "something was written: {says}");
    assert!(!disk.kept().events.iter().any(|event| matches!(event, Event::Write { .. })));
}

#[test]
fn an_update_replaces_the_other_slot_and_its_kernel() {
    let [old, older, new] = images();
    let disk = disk(&old, &older);
    assert_eq!(names(&disk), ["sallyport_0.0.9.efi", "sallyport_0.1.0+9-0.efi"]);
    let folder = tempfile::tempdir().unwrap();
    let update = whole(folder.path(), &new.update()).unwrap();
    apply(&disk, &old, &update).unwrap();
    assert_eq!(names(&disk), ["sallyport_0.1.0.efi", "sallyport_0.2.0+3-0.efi"]);
    // Once more, as after a cut.
    apply(&disk, &old, &update).unwrap();
    assert_eq!(names(&disk), ["sallyport_0.1.0.efi", "sallyport_0.2.0+3-0.efi"]);
    // It was blessed, and an older one than it comes: the newer must stand back.
    let mut boot = disk.boot().unwrap();
    assert!(boot.set_entry(&new.root_hash, Entry::blessed(new.version, true)).unwrap());
    assert!(!boot.set_entry(&new.root_hash, Entry::blessed(new.version, true)).unwrap());
    let back = whole(folder.path(), &Image::new("0.1.5").update()).unwrap();
    apply(&disk, &new, &back).unwrap();
    assert_eq!(names(&disk), ["sallyport_0.1.5+3-0.efi", "sallyport_0.2.0+0-9.efi"]);
    assert_eq!(disk.boot().unwrap().next().unwrap(), Some(Entry::on_trial(version("0.1.5"))));
}

#[test]
fn a_file_that_is_not_what_was_signed_is_refused() {
    let [old, older, new] = images();
    let disk = disk(&old, &older);
    let good = new.update();
    let payloads = good.len() - new.root.len() - new.tree.len() - new.uki.len();
    for (at, says) in [
        (3, "not an update of Sallyport"),
        (payloads - 1, "the signature of the update is wrong"),
        (payloads + 5000, "the root file system in the update is not the one that was signed"),
        (payloads + new.root.len() + 20, "the hash tree in the update is not the one"),
        (good.len() - 1, "the kernel in the update is not the one"),
    ] {
        let mut damaged = good.clone();
        damaged[at] ^= 0x10;
        refused(&disk, &old, &damaged, says);
    }
    refused(&disk, &old, &good[..good.len() - 1], "it was cut short or changed");
    refused(&disk, &old, &[good.as_slice(), b"x"].concat(), "it was cut short or changed");
    refused(&disk, &old, b"PK", "not an update of Sallyport");
}

#[test]
fn a_signed_file_whose_parts_do_not_fit_together_is_refused() {
    let [old, older, new] = images();
    let disk = disk(&old, &older);
    let other = Image::new("0.2.1");
    let mixed = Image { root: other.root.clone(), ..new.clone() };
    refused(&disk, &old, &mixed.update(), "block 0 of the root file system is damaged");
    let mixed = Image { uki: other.uki.clone(), ..new.clone() };
    refused(&disk, &old, &mixed.update(), "starts another root file system");
    let mixed = Image { uki: vec![0; 5000], ..new.clone() };
    refused(&disk, &old, &mixed.update(), "has no command line");
    let mut larger = new.clone();
    larger.root.extend([0; 4096]);
    refused(&disk, &old, &larger.update(), "is of another root file system");
}

#[test]
fn a_disk_that_does_not_fit_is_refused() {
    let [old, older, new] = images();
    let stranger = Image::new("0.1.0");
    let disk = disk(&older, &old);
    let says = "version 0.1.0 is what runs here";
    refused(&disk, &stranger, &old.update(), says);
    let another = Image { root_hash: new.root_hash, ..old.clone() };
    refused(&disk, &another, &new.update(), "neither slot is that of the running system");
    // Somebody has the other slot open.
    let place = disk.layout().unwrap().slots[0].root.place;
    disk.kept().in_use.push(place);
    refused(&disk, &old, &new.update(), "in use");
}

#[test]
fn a_version_that_is_on_trial_itself_takes_no_update() {
    let [old, older, new] = images();
    let disk = disk(&old, &older);
    let mut boot = disk.boot().unwrap();
    boot.set_entry(&old.root_hash, Entry::on_trial(old.version)).unwrap();
    disk.kept().events.clear();
    refused(&disk, &old, &new.update(), "has yet to prove itself");
}

#[test]
fn a_disk_that_fails_is_noticed_before_the_boot_loader_hears_of_it() {
    let [old, older, new] = images();
    let disk = disk(&old, &older);
    let folder = tempfile::tempdir().unwrap();
    let update = whole(folder.path(), &new.update()).unwrap();
    let slot = disk.layout().unwrap().slots[1].clone();
    for (place, says) in [
        (slot.root.place.start + 5000, "the root file system was written and reads differently"),
        (slot.tree.place.start + 5000, "the hash tree was written and reads differently"),
    ] {
        disk.kept().rotten = Some(place);
        let error = apply(&disk, &old, &update).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        disk.kept().rotten = None;
        assert_eq!(names(&disk), ["sallyport_0.1.0.efi"]);
    }
    apply(&disk, &old, &update).unwrap();
}
