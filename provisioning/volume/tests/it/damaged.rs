//! Media that somebody made to break us: each is an error, at once, and none takes more memory than a whole one.

use sallyport_volume::{Damage, Entry, Error, Volume};

use super::{
    exfat::{ExFat, Layout, seal},
    image::{Image, content, entry, have, noise},
};

/// FAT32 with clusters of 512 bytes; `SALLYPORT/FILE` has 5 of them, and lies behind `SALLYPORT`.
struct Fat {
    bytes: Vec<u8>,
    table: usize,
    heap: usize,
}

impl Fat {
    fn new() -> Option<Self> {
        if !have("mkfs.vfat") || !have("mcopy") {
            return None;
        }
        let image = Image::fat32(36, &["-s", "1", "-f", "1", "-R", "32"]);
        image.mtools("mmd", &["::SALLYPORT"]);
        image.copy("SALLYPORT", "FILE", &noise(5 * 512 - 7));
        let bytes = image.bytes();
        let sectors = u32::from_le_bytes(bytes[36..40].try_into().unwrap()) as usize;
        Some(Self { table: 32 * 512, heap: (32 + sectors) * 512, bytes })
    }

    fn next(&self, cluster: u32) -> u32 {
        let at = self.table + cluster as usize * 4;
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap()) & 0x0fff_ffff
    }

    fn set(&mut self, cluster: u32, next: u32) {
        let at = self.table + cluster as usize * 4;
        self.bytes[at..at + 4].copy_from_slice(&next.to_le_bytes());
    }

    /// The clusters of the root, of the folder and of the file.
    fn firsts(&self) -> (u32, u32, u32) {
        let number = |at: usize| u16::from_le_bytes(self.bytes[at..at + 2].try_into().unwrap());
        // Its name is longer than eight characters: the long name comes first.
        let folder = u32::from(number(self.heap + 32 + 26));
        let file = u32::from(number(self.at(folder) + 64 + 26));
        (2, folder, file)
    }

    fn at(&self, cluster: u32) -> usize {
        self.heap + (cluster as usize - 2) * 512
    }

    fn damage(self) -> Damage {
        damage(self.bytes, &["SALLYPORT", "FILE"])
    }
}

/// What is wrong with an image, found by whatever looks at it first.
fn damage(bytes: Vec<u8>, path: &[&str]) -> Damage {
    let read = Volume::find(bytes, "SALLYPORT").and_then(|mut volume| content(&mut volume, path));
    match read {
        Err(Error::Damaged(damage)) => damage,
        Err(Error::NoVolume(Some(why))) => match *why {
            Error::Damaged(damage) => damage,
            other => panic!("{other:?}"),
        },
        other => panic!("{:?}", other.map(|bytes| bytes.len())),
    }
}

#[test]
fn chains_of_fat32() {
    let Some(fat) = Fat::new() else { return };
    let (root, folder, file) = fat.firsts();
    let second = fat.next(file);
    assert_eq!(second, file + 1, "mcopy has other habits: this table must be written again");
    // (what, the cluster, what the table says of it)
    let table = [
        ("the file loops to its beginning", file + 4, file, Damage::Length),
        ("the file loops in its middle", file + 2, file + 1, Damage::Length),
        ("the file is its own next cluster", file, file, Damage::Length),
        ("the file ends early", second, 0x0fff_ffff, Damage::Length),
        ("the file goes on", file + 4, file + 5, Damage::Length),
        ("the file leads to a free cluster", second, 0, Damage::Chain),
        ("the file leads to the reserved cluster", second, 1, Damage::Chain),
        ("the file leads to a bad cluster", second, 0x0fff_fff7, Damage::Chain),
        ("the file leads out of the volume", second, 0x0fff_0000, Damage::Chain),
        ("the root loops", root, root, Damage::Loop),
        ("the folder loops", folder, folder, Damage::Loop),
        ("the folder loops over the root", folder, root, Damage::Loop),
        ("the folder leads out of the volume", folder, 0x00ff_ffff, Damage::Chain),
    ];
    for (what, cluster, next, expected) in table {
        let mut fat = Fat { bytes: fat.bytes.clone(), ..fat };
        if what == "the folder loops over the root" {
            fat.set(root, folder);
        }
        fat.set(cluster, next);
        assert_eq!(fat.damage(), expected, "{what}");
    }
}

#[test]
fn boot_sectors_of_fat32() {
    let Some(fat) = Fat::new() else { return };
    let whole = |value: u32| value.to_le_bytes();
    let half = |value: u16| value.to_le_bytes().to_vec();
    let table: [(&str, usize, Vec<u8>); 12] = [
        ("sectors of 8192 bytes", 11, half(8192)),
        ("no sector in a cluster", 13, vec![0]),
        ("three sectors in a cluster", 13, vec![3]),
        ("no reserved sector", 14, half(0)),
        ("no table", 16, vec![0]),
        ("nine tables", 16, vec![9]),
        ("a table of no sectors", 36, whole(0).to_vec()),
        ("a table larger than the volume", 36, whole(u32::MAX).to_vec()),
        ("more sectors than the device has", 32, whole(u32::MAX).to_vec()),
        ("no sector", 32, whole(0).to_vec()),
        ("a version of the future", 42, half(1)),
        ("an active table that is not there", 40, half(0x83)),
    ];
    for (what, at, value) in table {
        let mut fat = Fat { bytes: fat.bytes.clone(), ..fat };
        fat.bytes[at..at + value.len()].copy_from_slice(&value);
        let damage = fat.damage();
        assert!(matches!(damage, Damage::BootSector(_) | Damage::Truncated), "{what}: {damage}");
    }
    let mut small = fat.bytes.clone();
    small[17..19].copy_from_slice(&512_u16.to_le_bytes());
    assert_eq!(damage(small, &[]), Damage::SmallFat);
    for kept in [512, 20 * 512, 1 << 20, fat.bytes.len() - 512] {
        assert_eq!(damage(fat.bytes[..kept].to_vec(), &[]), Damage::Truncated, "{kept}");
    }
}

#[test]
fn entries_of_fat32() {
    let Some(fat) = Fat::new() else { return };
    let (_, folder, _) = fat.firsts();
    let slot = fat.at(folder) + 64;
    // A size beyond the chain, and a first cluster that cannot be.
    for (at, value, expected) in [
        (28, u32::MAX.to_le_bytes().to_vec(), Damage::Length),
        (28, 0_u32.to_le_bytes().to_vec(), Damage::Length),
        (26, 1_u16.to_le_bytes().to_vec(), Damage::Chain),
        (20, u16::MAX.to_le_bytes().to_vec(), Damage::Chain),
    ] {
        let mut fat = Fat { bytes: fat.bytes.clone(), ..fat };
        fat.bytes[slot + at..slot + at + value.len()].copy_from_slice(&value);
        assert_eq!(fat.damage(), expected, "{at}");
    }
    // Names that lead elsewhere are names, nothing more.
    let mut fat = fat;
    fat.bytes[slot..slot + 11].copy_from_slice(b"../../X TXT");
    let mut volume = Volume::find(fat.bytes.clone(), "SALLYPORT").unwrap();
    let names = names(&mut volume);
    assert_eq!(names, Vec::<String>::new(), "what begins with a dot is not shown");
    fat.bytes[slot..slot + 11].copy_from_slice(b"A/../..\\TXT");
    let mut volume = Volume::find(fat.bytes, "SALLYPORT").unwrap();
    assert_eq!(super::damaged::names(&mut volume), ["A/../..\\.TXT"]);
}

fn names(volume: &mut Volume<Vec<u8>>) -> Vec<String> {
    let folder: Option<Entry> = entry(volume, &["SALLYPORT"]).unwrap();
    volume.list(folder.as_ref()).unwrap().into_iter().map(|entry| entry.name).collect()
}

#[test]
fn a_folder_that_never_ends() {
    let Some(mut fat) = Fat::new() else { return };
    let (_, folder, _) = fat.firsts();
    let first = 1000;
    fat.set(folder, first);
    // 65 536 entries take 4096 clusters: here are more, all full.
    for cluster in first..first + 5000 {
        fat.set(cluster, cluster + 1);
        let at = fat.at(cluster);
        for slot in 0..16 {
            fat.bytes[at + slot * 32..at + slot * 32 + 11].copy_from_slice(b"FULL    TXT");
        }
    }
    fat.set(first + 5000, 0x0fff_ffff);
    assert_eq!(fat.damage(), Damage::Folder);
}

/// exFAT with clusters of 4096 bytes, and `SALLYPORT/FILE` of three in a chain.
fn exfat() -> Option<Vec<u8>> {
    if !have("mkfs.exfat") {
        return None;
    }
    let mut bytes = Image::exfat(8, &["-c", "4K"]).bytes();
    let mut exfat = ExFat::new(&mut bytes);
    let root = exfat.root();
    let top = exfat.folder(root, "SALLYPORT");
    exfat.file(top, "FILE", &noise(3 * 4096 - 7), Layout::Chained);
    Some(bytes)
}

type Change = fn(&mut Vec<u8>);

/// Changes the set of entries of `SALLYPORT/FILE`, and makes its checksum right again.
fn set(bytes: &mut Vec<u8>, change: impl FnOnce(&mut [u8])) {
    let exfat = ExFat::new(bytes);
    let top = exfat.offset(exfat.root());
    let at = (top..).step_by(32).find(|at| bytes[*at] == 0x85).unwrap();
    let folder = u32::from_le_bytes(bytes[at + 52..at + 56].try_into().unwrap());
    let at = ExFat::new(bytes).offset(folder);
    change(&mut bytes[at..at + 96]);
    seal(&mut bytes[at..at + 96]);
}

/// Changes what the table says of the first cluster of the file.
fn link(bytes: &mut Vec<u8>, next: Option<u32>) {
    let mut first = 0;
    set(bytes, |set| first = u32::from_le_bytes(set[52..56].try_into().unwrap()));
    let at = ExFat::new(bytes).entry(first);
    bytes[at..at + 4].copy_from_slice(&next.unwrap_or(first).to_le_bytes());
}

/// Changes the boot sector, and makes the sum of the boot region right again.
fn boot(bytes: &mut [u8], at: usize, value: &[u8]) {
    let sector = 1_usize << bytes[108];
    bytes[at..at + value.len()].copy_from_slice(value);
    let mut sum = 0_u32;
    for (at, byte) in bytes[..11 * sector].iter().enumerate() {
        if ![106, 107, 112].contains(&at) {
            sum = sum.rotate_right(1).wrapping_add(u32::from(*byte));
        }
    }
    let place = &mut bytes[11 * sector..12 * sector];
    place.chunks_mut(4).for_each(|c| c.copy_from_slice(&sum.to_le_bytes()));
}

/// Sets bytes of the set of entries.
fn bytes_of_set(bytes: &mut Vec<u8>, values: &[(usize, u8)]) {
    set(bytes, |set| values.iter().for_each(|(at, value)| set[*at] = *value));
}

const FILES: [(&str, Change, Damage); 13] = [
    ("it loops", |b| link(b, None), Damage::Length),
    ("it leads nowhere", |b| link(b, Some(0)), Damage::Chain),
    ("it leads to a bad cluster", |b| link(b, Some(0xffff_fff7)), Damage::Chain),
    ("it ends early", |b| link(b, Some(u32::MAX)), Damage::Length),
    ("it is larger", |b| bytes_of_set(b, &[(42, 9), (58, 9)]), Damage::Length),
    ("it is huge", |b| bytes_of_set(b, &[(33, 3), (47, 127), (63, 127)]), Damage::Chain),
    ("it was not finished", |b| bytes_of_set(b, &[(40, 1)]), Damage::Unfinished),
    ("it has no cluster", |b| bytes_of_set(b, &[(52, 0), (53, 0)]), Damage::Chain),
    ("it has no name", |b| bytes_of_set(b, &[(35, 0)]), Damage::Entry),
    ("its name is too long", |b| bytes_of_set(b, &[(35, 200)]), Damage::Entry),
    ("its name is no text", |b| bytes_of_set(b, &[(66, 0), (67, 0xd8)]), Damage::Entry),
    ("it has no stream", |b| bytes_of_set(b, &[(32, 0xc2)]), Damage::Entry),
    ("it has too many entries", |b| bytes_of_set(b, &[(1, 255)]), Damage::Entry),
];

const BOOT: [(&str, Change, Damage); 5] = [
    ("no root", |b| boot(b, 96, &[0xff; 4]), Damage::Chain),
    (
        "a volume of 2^64 sectors",
        |b| boot(b, 72, &[0xff; 8]),
        Damage::BootSector("size of the volume"),
    ),
    ("a volume larger than the device", |b| boot(b, 74, &[1]), Damage::Truncated),
    ("too many clusters", |b| boot(b, 94, &[9]), Damage::BootSector("place of the table")),
    ("sectors of 2^40 bytes", |b| b[108] = 40, Damage::BootSector("size of sectors")),
];

#[test]
fn exfat_of_all_kinds() {
    let Some(whole) = exfat() else { return };
    let path = ["SALLYPORT", "FILE"];
    for (what, change, expected) in FILES.into_iter().chain(BOOT) {
        let mut bytes = whole.clone();
        change(&mut bytes);
        assert_eq!(damage(bytes, &path), expected, "{what}");
    }
    let mut unsealed = whole.clone();
    let heap = ExFat::new(&mut unsealed).offset(2);
    // One bit in the boot region, beyond what is looked at.
    unsealed[600] ^= 1;
    assert_eq!(damage(unsealed, &path), Damage::BootSector("checksum"));
    assert_eq!(damage(whole[..heap - 1].to_vec(), &path), Damage::Truncated);
}

#[test]
fn labels_of_raw_volumes() {
    let table = [
        ("BUNDLES/a.snb\n5", Damage::RawLabel),
        ("BUNDLES/a.snb\n5x\n", Damage::RawLabel),
        ("BUNDLES/a.snb\n+5\n", Damage::RawLabel),
        ("BUNDLES/a.snb\n99999999999999999999\n", Damage::RawLabel),
        ("BUNDLES/a.snb\n18446744073709551615\n", Damage::RawLabel),
        ("BUNDLES/a.snb\n4097\n", Damage::Truncated),
        ("BUNDLES\n5\n", Damage::RawLabel),
        ("BUNDLES/\n5\n", Damage::RawLabel),
        ("/a.snb\n5\n", Damage::RawLabel),
        ("BUNDLES/a/b\n5\n", Damage::RawLabel),
        ("BUNDLES/a b\n5\n", Damage::RawLabel),
        ("BUNDLES/a.snb\n5\nmore", Damage::RawLabel),
    ];
    for (label, expected) in table {
        let mut bytes = vec![0; (1 << 20) + 4096];
        let label = format!("sallyport-raw/1\n{label}");
        bytes[..label.len()].copy_from_slice(label.as_bytes());
        assert_eq!(damage(bytes, &[]), expected, "{label:?}");
    }
}

#[test]
fn nothing_at_all() {
    for bytes in [vec![0; 512], vec![0xff; 1 << 16], noise(1 << 16)] {
        let found = Volume::find(bytes, "SALLYPORT").err();
        assert!(matches!(found, Some(Error::NoVolume(None))), "{found:?}");
    }
    let short = Volume::find(vec![0; 100], "SALLYPORT").err();
    assert!(matches!(short, Some(Error::Damaged(Damage::Truncated))), "{short:?}");
}
