//! What is written here is read by others, and their programs find nothing to complain about.

use std::{
    fs,
    io::{self, Read},
};

use sallyport_volume::{Error, Volume, Writer};

use super::image::{Image, content, entry, have, noise};

const OUT: [&str; 2] = ["SALLYPORT", "BUNDLES"];

fn writer(image: &Image) -> Writer<Vec<u8>> {
    Writer::new(Volume::find(image.bytes(), "SALLYPORT").unwrap()).unwrap()
}

#[test]
fn files_of_many_sizes_in_new_folders() {
    if !have("mkfs.vfat") || !have("mcopy") || !have("fsck.vfat") {
        return;
    }
    let options: [&[&str]; 5] = [
        &["-s", "1"],
        &["-s", "8"],
        &["-s", "128"],
        &["-S", "4096", "-s", "1"],
        &["-f", "1", "-s", "1"],
    ];
    for options in options {
        let image = Image::fat32(48, options);
        let before: u64 = fs::metadata(image.path()).unwrap().len();
        let sizes = [0, 1, 511, 512, 513, 4096, 100_000, 1_000_001];
        let name = |size| format!("SNB-{size:016x}.snb");
        let mut writer = writer(&image);
        for size in sizes {
            let bytes = noise(size);
            writer.put(&OUT, &name(size), size as u64, &mut bytes.as_slice()).unwrap();
        }
        let refused = writer.put(&OUT, &name(1).to_uppercase(), 1, &mut [0].as_slice());
        assert!(matches!(refused, Err(Error::Exists)), "{refused:?}");
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes.len() as u64, before);
        image.set(&bytes);
        let said = image.run("fsck.vfat", &["-n"]);
        assert!(!said.contains("differ") && !said.contains("Orphaned"), "{said}");
        // mtools takes for FAT32 only what has at least 65 525 clusters.
        let large = options.contains(&"1") && !options.contains(&"4096");
        let mut volume = Volume::find(bytes, "SALLYPORT").unwrap();
        for size in sizes {
            let path = ["SALLYPORT", "BUNDLES", &name(size)];
            assert_eq!(content(&mut volume, &path).unwrap(), noise(size), "{options:?}");
            if !large {
                continue;
            }
            let theirs = image.path().with_extension("copy");
            let from = format!("::SALLYPORT/BUNDLES/{}", name(size));
            image.mtools("mcopy", &["-n", &from, theirs.to_str().unwrap()]);
            assert_eq!(fs::read(&theirs).unwrap(), noise(size), "{options:?}");
            fs::remove_file(theirs).unwrap();
        }
    }
}

#[test]
fn a_folder_grows_as_it_fills() {
    if !have("mkfs.vfat") || !have("mcopy") || !have("fsck.vfat") {
        return;
    }
    let image = Image::fat32(48, &["-s", "1"]);
    image.mtools("mmd", &["::SALLYPORT"]);
    image.copy("SALLYPORT", "somebody's.txt", b"stays");
    let mut writer = writer(&image);
    for number in 0..200_u64 {
        let content = number.to_be_bytes();
        writer.put(&OUT, &format!("file-{number}-of-many.snb"), 8, &mut &content[..]).unwrap();
    }
    let bytes = writer.finish().unwrap();
    image.set(&bytes);
    image.run("fsck.vfat", &["-n"]);
    let mut volume = Volume::find(bytes, "SALLYPORT").unwrap();
    for number in 0..200_u64 {
        let name = format!("file-{number}-of-many.snb");
        let path = ["SALLYPORT", "BUNDLES", &name];
        assert_eq!(content(&mut volume, &path).unwrap(), number.to_be_bytes());
    }
    assert_eq!(content(&mut volume, &["SALLYPORT", "somebody's.txt"]).unwrap(), b"stays");
}

#[test]
fn what_cannot_be_written_leaves_nothing_that_can_be_seen() {
    if !have("mkfs.vfat") || !have("mcopy") || !have("fsck.vfat") {
        return;
    }
    let image = Image::fat32(34, &["-s", "1"]);
    image.mtools("mmd", &["::SALLYPORT", "::SALLYPORT/BUNDLES"]);
    let mut writer = writer(&image);
    let huge = noise(40 << 20);
    let mut put = |name: &str, bytes: u64, source: &[u8]| {
        writer.put(&OUT, name, bytes, &mut &source[..]).unwrap_err()
    };
    assert!(matches!(put("full.snb", 40 << 20, &huge), Error::Full));
    assert!(matches!(put("large.snb", 1 << 32, &[]), Error::TooLarge));
    assert!(matches!(put("short.snb", 1000, &huge[..999]), Error::Source));
    assert!(matches!(put("long.snb", 1000, &huge[..1001]), Error::Source));
    for name in ["", "a/b", "..", ".a", "a.", "ä", "a b", &"x".repeat(65)] {
        assert!(matches!(put(name, 0, &[]), Error::Name), "{name}");
    }
    let bytes = writer.finish().unwrap();
    image.set(&bytes);
    image.run("fsck.vfat", &["-n"]);
    let mut volume = Volume::find(bytes, "SALLYPORT").unwrap();
    let folder = entry(&mut volume, &OUT).unwrap();
    assert_eq!(volume.list(folder.as_ref()).unwrap(), []);
}

/// Fails after so many bytes.
struct BreaksOff(usize);

impl Read for BreaksOff {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let here = buffer.len().min(self.0);
        self.0 -= here;
        if here == 0 { Err(io::ErrorKind::TimedOut.into()) } else { Ok(here) }
    }
}

#[test]
fn what_has_no_known_end_is_seen_when_it_is_named() {
    if !have("mkfs.vfat") || !have("mcopy") || !have("fsck.vfat") {
        return;
    }
    let batch = 4 << 20;
    for size in [0, 1, 513, batch - 1, batch, batch + 1, 2 * batch, 9_000_001] {
        let image = Image::fat32(48, &["-s", "1"]);
        image.mtools("mmd", &["::SALLYPORT"]);
        let (content_of, mut writer) = (noise(size), writer(&image));
        let mut source = content_of.as_slice();
        // In parts of at most 8 MiB.
        let mut parts = Vec::new();
        loop {
            let laid = writer.lay(&mut source, 2 * batch as u64).unwrap();
            let is_last = laid.bytes() < 2 * batch as u64;
            parts.push(laid);
            if is_last {
                break;
            }
        }
        let mut volume = Volume::find(image.bytes(), "SALLYPORT").unwrap();
        assert!(entry(&mut volume, &OUT).unwrap().is_none());
        for (number, part) in parts.iter().enumerate().rev() {
            writer.name_laid(&OUT, &format!("part-{}.backup", number + 1), part).unwrap();
        }
        let again = writer.name_laid(&OUT, "part-1.backup", &parts[0]);
        assert!(matches!(again, Err(Error::Exists)), "{again:?}");
        let bytes = writer.finish().unwrap();
        image.set(&bytes);
        let said = image.run("fsck.vfat", &["-n"]);
        assert!(!said.contains("differ") && !said.contains("Orphaned"), "{said}");
        let mut volume = Volume::find(bytes, "SALLYPORT").unwrap();
        let mut found = Vec::new();
        for number in 1..=parts.len() {
            let name = format!("part-{number}.backup");
            found.extend(content(&mut volume, &["SALLYPORT", "BUNDLES", &name]).unwrap());
        }
        assert!(found == content_of, "{size}");
    }
}

#[test]
fn what_breaks_off_gives_its_space_back() {
    if !have("mkfs.vfat") || !have("mcopy") || !have("fsck.vfat") {
        return;
    }
    let image = Image::fat32(34, &["-s", "1"]);
    let before = image.bytes();
    let mut writer = writer(&image);
    let broken = writer.lay(&mut BreaksOff(9 << 20), 1 << 30);
    assert!(matches!(broken, Err(Error::BrokenOff(_))), "{broken:?}");
    let full = writer.lay(&mut io::repeat(7), 1 << 30);
    assert!(matches!(full, Err(Error::Full)), "{full:?}");
    // The whole stick has room for it afterwards.
    let laid = writer.lay(&mut noise(30 << 20).as_slice(), 1 << 30).unwrap();
    writer.release(laid).unwrap();
    let bytes = writer.finish().unwrap();
    image.set(&bytes);
    let said = image.run("fsck.vfat", &["-n"]);
    assert!(!said.contains("Orphaned") && !said.contains("Reclaim"), "{said}");
    let tables = |bytes: &[u8]| bytes[32 * 512..][..256 * 1024].to_vec();
    assert!(tables(&bytes) == tables(&before), "clusters are taken by nobody");
}

#[test]
fn exfat_is_not_written() {
    if !have("mkfs.exfat") {
        return;
    }
    let image = Image::exfat(8, &[]);
    let volume = Volume::find(image.bytes(), "SALLYPORT").unwrap();
    assert!(matches!(Writer::new(volume), Err(Error::NotWritable)));
}
