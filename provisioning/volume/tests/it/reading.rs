//! What other systems write is read.

use std::fmt::Write as _;

use sallyport_volume::{Kind, Volume};

use super::{
    exfat::{ExFat, Layout},
    image::{Image, content, entry, have, noise},
};

const LONG: &str = "a name of more than thirteen characters, with spaces and ÄÖÜ.approval";

#[test]
fn fat32_of_every_geometry() {
    if !have("mkfs.vfat") || !have("mcopy") {
        return;
    }
    // mtools takes for FAT32 only what has at least 65 525 clusters.
    let options: [(u64, &[&str]); 3] =
        [(48, &["-s", "1"]), (80, &["-f", "1", "-s", "2"]), (300, &["-S", "4096", "-s", "1"])];
    let large = noise(1_300_001);
    for (mib, options) in options {
        let image = Image::fat32(mib, options);
        image.mtools("mmd", &["::SALLYPORT", "::SALLYPORT/BUNDLES", "::SALLYPORT/empty"]);
        image.copy("SALLYPORT/BUNDLES", "large.snb", &large);
        image.copy("SALLYPORT/BUNDLES", LONG, b"long");
        image.copy("SALLYPORT/BUNDLES", "lower.txt", b"lower");
        image.copy("SALLYPORT/BUNDLES", "NOTHING", b"");
        let mut volume = Volume::find(image.bytes(), "sallyport").unwrap();
        assert_eq!(volume.kind(), Kind::Fat32);
        let at = |name| ["SALLYPORT", "BUNDLES", name];
        assert_eq!(content(&mut volume, &at("large.snb")).unwrap(), large, "{options:?}");
        assert_eq!(content(&mut volume, &at(LONG)).unwrap(), b"long", "{options:?}");
        assert_eq!(content(&mut volume, &at("lower.txt")).unwrap(), b"lower", "{options:?}");
        assert_eq!(content(&mut volume, &at("NOTHING")).unwrap(), b"", "{options:?}");
        let empty = entry(&mut volume, &["SALLYPORT", "empty"]).unwrap();
        assert_eq!(volume.list(empty.as_ref()).unwrap(), []);
    }
}

#[test]
fn a_folder_of_many_files_and_the_deleted_between_them() {
    if !have("mkfs.vfat") || !have("mcopy") {
        return;
    }
    let image = Image::fat32(48, &["-s", "1"]);
    image.mtools("mmd", &["::MANY"]);
    for number in 0..60 {
        image.copy("MANY", &format!("file with a long name {number}.txt"), &[number]);
    }
    image.mtools("mdel", &["::MANY/file with a long name 7.txt"]);
    let mut volume = Volume::find(image.bytes(), "SALLYPORT").unwrap();
    let folder = entry(&mut volume, &["MANY"]).unwrap();
    assert_eq!(volume.list(folder.as_ref()).unwrap().len(), 59);
    for number in (0..60).filter(|number| *number != 7) {
        let name = format!("file with a long name {number}.txt");
        assert_eq!(content(&mut volume, &["MANY", &name]).unwrap(), [number]);
    }
}

#[test]
fn exfat_with_chains_and_without() {
    if !have("mkfs.exfat") || !have("fsck.exfat") {
        return;
    }
    let large = noise(300_001);
    for size in ["512", "4K", "32K"] {
        let image = Image::exfat(24, &["-c", size]);
        let mut bytes = image.bytes();
        let mut exfat = ExFat::new(&mut bytes);
        let root = exfat.root();
        let top = exfat.folder(root, "SALLYPORT");
        let bundles = exfat.folder(top, "BUNDLES");
        exfat.file(bundles, "one.snb", &large, Layout::SideBySide);
        exfat.file(bundles, LONG, &large[1..], Layout::Chained);
        exfat.file(bundles, "nothing", b"", Layout::Chained);
        image.set(&bytes);
        image.run("fsck.exfat", &["-n"]);
        let mut volume = Volume::find(bytes, "SALLYPORT").unwrap();
        assert_eq!(volume.kind(), Kind::ExFat);
        let at = |name| ["SALLYPORT", "BUNDLES", name];
        assert_eq!(content(&mut volume, &at("one.snb")).unwrap(), large, "{size}");
        assert_eq!(content(&mut volume, &at(LONG)).unwrap(), large[1..], "{size}");
        assert_eq!(content(&mut volume, &at("nothing")).unwrap(), b"", "{size}");
    }
}

/// Partitions as other systems make them: the second of an MBR, and the second of a GPT, each behind one that is no volume.
#[test]
fn in_partitions() {
    if !have("mkfs.vfat") || !have("mcopy") {
        return;
    }
    let image = Image::fat32(48, &[]);
    image.mtools("mmd", &["::SALLYPORT"]);
    image.copy("SALLYPORT", "file", b"content");
    let volume = image.bytes();
    let first = 4096_u64;
    let sectors = volume.len() as u64 / 512;

    let mut mbr = vec![0; first as usize * 512];
    mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
    for (number, (start, count)) in
        [(64_u32, 64_u32), (4096, sectors as u32)].into_iter().enumerate()
    {
        let at = 446 + 16 * number;
        mbr[at + 4] = 0x0c;
        mbr[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        mbr[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
    }
    let mut gpt = vec![0; first as usize * 512];
    gpt[510..512].copy_from_slice(&[0x55, 0xaa]);
    gpt[446 + 4] = 0xee;
    gpt[446 + 8] = 1;
    gpt[446 + 12] = 0xff;
    gpt[512..520].copy_from_slice(b"EFI PART");
    gpt[512 + 72..512 + 80].copy_from_slice(&2_u64.to_le_bytes());
    gpt[512 + 80..512 + 84].copy_from_slice(&128_u32.to_le_bytes());
    gpt[512 + 84..512 + 88].copy_from_slice(&128_u32.to_le_bytes());
    for (number, (start, count)) in [(64, 64), (first, sectors)].into_iter().enumerate() {
        let at = 1024 + 128 * number;
        gpt[at..at + 16].fill(7);
        gpt[at + 32..at + 40].copy_from_slice(&start.to_le_bytes());
        gpt[at + 40..at + 48].copy_from_slice(&(start + count - 1).to_le_bytes());
    }
    for table in [mbr, gpt] {
        let mut volume = Volume::find([table, volume.clone()].concat(), "SALLYPORT").unwrap();
        assert_eq!(content(&mut volume, &["SALLYPORT", "file"]).unwrap(), b"content");
    }
}

#[test]
fn a_raw_volume_is_one_file() {
    let mut bytes = vec![0; (1 << 20) + 4096];
    let mut label = String::new();
    write!(label, "sallyport-raw/1\nBUNDLES/seven.snb\n{}\n", 3000).unwrap();
    bytes[..label.len()].copy_from_slice(label.as_bytes());
    let file = noise(3000);
    bytes[1 << 20..(1 << 20) + 3000].copy_from_slice(&file);
    let mut volume = Volume::find(bytes, "SALLYPORT").unwrap();
    assert_eq!(volume.kind(), Kind::Raw);
    assert_eq!(content(&mut volume, &["SALLYPORT", "BUNDLES", "seven.snb"]).unwrap(), file);
}
