//! A disk as a box has it, small, in memory; the parts of images for it; and update files.

use std::{cell::RefCell, io, path::Path, rc::Rc};

use ed25519_dalek::Signer as _;
use sallyport_core::{
    digest::{Hasher, Sha256},
    sign::{Algorithm, Policy, PublicKey},
    time::Millis,
    update::{Manifest, Payload, Running, Version, entry::Entry},
};

use crate::update::{
    apply::Plan,
    boot::Boot,
    disk::{Access, Disk},
    file::{UpdateFile, WholeFile},
    gpt::{ESP, Extent, Guid, Table},
    medium::{Medium, SECTOR_BYTES},
    slots::Layout,
    system::{Here, Release},
};

/// What happened to a disk, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Write { at: u64, bytes: Vec<u8> },
    Flush,
}

/// A disk in memory. Clones are the same disk.
#[derive(Clone)]
pub(super) struct MemoryDisk(Rc<RefCell<Kept>>);

pub(super) struct Kept {
    pub(super) bytes: Vec<u8>,
    pub(super) events: Vec<Event>,
    /// Places that another program has open.
    pub(super) in_use: Vec<Extent>,
    /// A place whose bit is another one whenever it is read.
    pub(super) rotten: Option<u64>,
}

/// A part of it.
pub(super) struct Part {
    disk: MemoryDisk,
    place: Extent,
}

impl MemoryDisk {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        let kept = Kept { bytes, events: Vec::new(), in_use: Vec::new(), rotten: None };
        Self(Rc::new(RefCell::new(kept)))
    }

    pub(super) fn kept(&self) -> std::cell::RefMut<'_, Kept> {
        self.0.borrow_mut()
    }

    pub(super) fn boot(&self) -> anyhow::Result<Boot<Part>> {
        let place = self.layout()?.esp.place;
        Boot::open(self.partition(&place, Access::Write)?)
    }

    pub(super) fn layout(&self) -> anyhow::Result<Layout> {
        Layout::of(&Table::read(&mut self.whole(Access::Read)?)?)
    }
}

impl Disk for MemoryDisk {
    type Medium = Part;

    fn whole(&self, _: Access) -> anyhow::Result<Part> {
        let bytes = self.0.borrow().bytes.len() as u64;
        Ok(Part { disk: self.clone(), place: Extent { start: 0, bytes } })
    }

    fn partition(&self, place: &Extent, access: Access) -> anyhow::Result<Part> {
        let busy = access == Access::Write && self.0.borrow().in_use.contains(place);
        anyhow::ensure!(!busy, "the partition is in use, so it is not written to");
        Ok(Part { disk: self.clone(), place: *place })
    }
}

impl Medium for Part {
    fn bytes(&self) -> u64 {
        self.place.bytes
    }

    fn read(&mut self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let kept = self.disk.0.borrow();
        let start = usize::try_from(self.place.start + at).unwrap();
        buffer.copy_from_slice(&kept.bytes[start..start + buffer.len()]);
        if let Some(rotten) = kept.rotten.and_then(|rotten| usize::try_from(rotten).ok())
            && (start..start + buffer.len()).contains(&rotten)
        {
            buffer[rotten - start] ^= 1;
        }
        Ok(())
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(at + bytes.len() as u64 <= self.place.bytes, "beyond the end of the partition");
        assert_eq!((at % 512, bytes.len() % 512), (0, 0), "no whole sectors");
        let at = self.place.start + at;
        let mut kept = self.disk.0.borrow_mut();
        let start = usize::try_from(at).unwrap();
        kept.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        kept.events.push(Event::Write { at, bytes: bytes.to_vec() });
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.0.borrow_mut().events.push(Event::Flush);
        Ok(())
    }
}

/// One version of the system.
#[derive(Clone)]
pub(super) struct Image {
    pub(super) version: Version,
    pub(super) root: Vec<u8>,
    pub(super) tree: Vec<u8>,
    pub(super) uki: Vec<u8>,
    pub(super) root_hash: Sha256,
}

pub(super) fn version(text: &str) -> Version {
    text.parse().unwrap()
}

/// SplitMix64: the same numbers in every run.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(count).collect()
    }
}

const ROOT_BYTES: usize = 75 * 4096;

impl Image {
    /// A version with a root file system of its own.
    pub(super) fn new(text: &str) -> Self {
        let version = version(text);
        let mut random = Random(u64::from(version.minor * 100 + version.patch));
        let root = random.bytes(ROOT_BYTES);
        let (tree, root_hash) = hash_tree(&root);
        let command_line = format!("roothash={root_hash} ro quiet");
        let os_release = format!("ID=sallyport\nIMAGE_VERSION={version}\n");
        let uki = pe(&[
            (".osrel", os_release.as_bytes()),
            (".cmdline", command_line.as_bytes()),
            (".linux", &random.bytes(150_000)),
        ]);
        Self { version, root, tree, uki, root_hash }
    }

    pub(super) fn here(&self) -> Here {
        Here { root_hash: self.root_hash, release: Release { version: self.version, schema: 9 } }
    }

    pub(super) fn manifest(&self) -> Manifest {
        let payload =
            |bytes: &[u8]| Payload { bytes: bytes.len() as u64, sha256: Sha256::of(bytes) };
        Manifest {
            version: self.version,
            floor: version("0.0.1"),
            from: version("0.0.1"),
            built: Millis(1_790_000_000_000),
            root: payload(&self.root),
            tree: payload(&self.tree),
            uki: payload(&self.uki),
            root_hash: self.root_hash,
            schema: 9,
            notes: "A test.".to_owned(),
        }
    }

    /// A signed update file with this version.
    pub(super) fn update(&self) -> Vec<u8> {
        self.signed(&self.manifest())
    }

    pub(super) fn signed(&self, manifest: &Manifest) -> Vec<u8> {
        let policy = Policy { server_name: "release.invalid".try_into().unwrap() };
        let head = sallyport_core::update::sign(manifest, &release_key(), |request| {
            let secret = ed25519_dalek::SigningKey::from_bytes(&[1; 32]);
            request.bytes_to_sign(&policy).map(|bytes| secret.sign(&bytes).to_bytes().into())
        });
        [&head.unwrap(), &self.root, &self.tree, &self.uki].map(Vec::as_slice).concat()
    }
}

pub(super) fn release_key() -> PublicKey {
    let secret = ed25519_dalek::SigningKey::from_bytes(&[1; 32]);
    PublicKey::new(Algorithm::Ed25519, secret.verifying_key().as_bytes()).unwrap()
}

/// A file on the disk of this machine, read through as a box does.
pub(super) fn whole(folder: &Path, update: &[u8]) -> anyhow::Result<WholeFile> {
    let path = folder.join("update");
    std::fs::write(&path, update).unwrap();
    UpdateFile::open(&path, &[release_key()])?.read_through(|_, _| {})
}

/// Applies an update as `sallyctl update apply` does.
pub(super) fn apply(disk: &MemoryDisk, runs: &Image, update: &WholeFile) -> anyhow::Result<()> {
    apply_to(disk, runs.here(), update)
}

/// As [`apply`], on a box of which only this is known.
pub(super) fn apply_to(disk: &MemoryDisk, here: Here, update: &WholeFile) -> anyhow::Result<()> {
    let floor = version("0.0.1");
    let running = Running { version: here.release.version, schema: here.release.schema, floor };
    let direction = running.admit(update.manifest(), false)?;
    Plan::make(disk, update, here, direction)?.carry_out(|_, _, _| {}, || Ok(()))
}

const ESP_BYTES: u64 = 34 << 20;
const SLOT_BYTES: u64 = 512 << 10;
const TREE_BYTES: u64 = 64 << 10;

/// A disk whose slot a holds a version that runs, and slot b an older one.
pub(super) fn disk(runs: &Image, older: &Image) -> MemoryDisk {
    let linux = Guid([1; 16]);
    let (a, b) = (Guid::of_slot(&runs.root_hash), Guid::of_slot(&older.root_hash));
    let partitions = [
        (ESP, Guid([9; 16]), "ESP", ESP_BYTES),
        (linux, a.0, "root-a", SLOT_BYTES),
        (linux, a.1, "root-a-verity", TREE_BYTES),
        (linux, b.0, "root-b", SLOT_BYTES),
        (linux, b.1, "root-b-verity", TREE_BYTES),
        (linux, Guid([8; 16]), "data", 1 << 20),
    ];
    let mut bytes = laid_out(&partitions);
    format(&mut bytes[1 << 20..][..usize::try_from(ESP_BYTES).unwrap()], SECTOR_BYTES);
    let disk = MemoryDisk::new(bytes);
    let layout = disk.layout().unwrap();
    for (slot, image) in layout.slots.iter().zip([runs, older]) {
        for (partition, content) in [(&slot.root, &image.root), (&slot.tree, &image.tree)] {
            let mut medium = disk.partition(&partition.place, Access::Write).unwrap();
            medium.write(0, content).unwrap();
        }
    }
    let mut boot = disk.boot().unwrap();
    for (image, entry) in
        [(older, Entry::blessed(older.version, false)), (runs, Entry::blessed(runs.version, true))]
    {
        install(&mut boot, entry, image).unwrap();
    }
    disk.kept().events.clear();
    disk
}

/// An image of a disk with a data partition and others around it; where the former is.
pub(crate) fn data_disk(path: &Path) -> Extent {
    let linux = Guid([1; 16]);
    let partitions = [
        (ESP, Guid([9; 16]), "ESP", ESP_BYTES),
        (linux, Guid([8; 16]), "sallyport-data", 40 << 20),
        (linux, Guid([7; 16]), "root-b", SLOT_BYTES),
    ];
    std::fs::write(path, laid_out(&partitions)).unwrap();
    Extent { start: (1 << 20) + ESP_BYTES, bytes: 40 << 20 }
}

/// A disk with these partitions, each with kind, id, label and size, one after the other from 1 MiB on.
fn laid_out(partitions: &[(Guid, Guid, &str, u64)]) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let mut entries = Vec::new();
    for (kind, id, label, size) in partitions {
        let first = bytes.len() as u64 / 512;
        entries.extend(kind.to_disk());
        entries.extend(id.to_disk());
        entries.extend(first.to_le_bytes());
        entries.extend((first + size / 512 - 1).to_le_bytes());
        entries.extend([0; 8]);
        let mut label: Vec<u8> = label.encode_utf16().flat_map(u16::to_le_bytes).collect();
        label.resize(72, 0);
        entries.extend(label);
        bytes.resize(bytes.len() + usize::try_from(*size).unwrap(), 0);
    }
    entries.resize(128 * 128, 0);
    bytes.resize(bytes.len() + (1 << 20), 0);
    write_table(&mut bytes, &entries);
    bytes
}

pub(super) fn install(boot: &mut Boot<Part>, entry: Entry, image: &Image) -> anyhow::Result<()> {
    let bytes = image.uki.len() as u64;
    boot.install(entry, bytes, &Sha256::of(&image.uki), |at, piece| {
        let at = usize::try_from(at).unwrap();
        piece.copy_from_slice(&image.uki[at..at + piece.len()]);
        Ok(())
    })
}

/// Both copies of a partition table.
fn write_table(bytes: &mut [u8], entries: &[u8]) {
    let last = bytes.len() as u64 / 512 - 1;
    for (my, other, at) in [(1, last, 2), (last, 1, last - 32)] {
        let mut header = b"EFI PART".to_vec();
        header.extend([0x0001_0000_u32, 92, 0, 0].map(u32::to_le_bytes).concat());
        header.extend([my, other, 34, last - 33].map(u64::to_le_bytes).concat());
        header.extend([5; 16]);
        header.extend(u64::to_le_bytes(at));
        header.extend([128, 128, crc32fast::hash(entries)].map(u32::to_le_bytes).concat());
        let crc = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        let place = |lba: u64| usize::try_from(lba).unwrap() * 512;
        bytes[place(my)..][..header.len()].copy_from_slice(&header);
        bytes[place(at)..][..entries.len()].copy_from_slice(entries);
    }
}

/// An empty FAT32 with the folders `EFI/Linux`, one sector of this size per cluster: where it is small, a folder is soon full, and long names cross
/// sectors.
pub(super) fn format(bytes: &mut [u8], sector: usize) {
    let sectors = u32::try_from(bytes.len() / sector).unwrap();
    let table_sectors = (bytes.len() / sector * 4).div_ceil(sector);
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &[0xeb, 0x58, 0x90]);
    put(3, b"SALLYPRT");
    put(11, &u16::try_from(sector).unwrap().to_le_bytes());
    put(13, &[1]);
    put(14, &32_u16.to_le_bytes());
    put(16, &[2]);
    put(21, &[0xf8]);
    put(32, &sectors.to_le_bytes());
    put(36, &u32::try_from(table_sectors).unwrap().to_le_bytes());
    put(44, &2_u32.to_le_bytes());
    put(48, &1_u16.to_le_bytes());
    put(50, &6_u16.to_le_bytes());
    put(64, &[0x80, 0, 0x29]);
    put(71, b"NO NAME    FAT32   ");
    put(510, &[0x55, 0xaa]);
    put(sector, b"RRaA");
    put(sector + 484, b"rrAa");
    put(sector + 488, &[0xff; 8]);
    put(sector + 510, &[0x55, 0xaa]);
    bytes.copy_within(..2 * sector, 6 * sector);
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    for table in 0..2 {
        let end = 0x0fff_ffff_u32;
        let entries = [0x0fff_fff8, end, end, end, end].map(u32::to_le_bytes).concat();
        put((32 + table * table_sectors) * sector, &entries);
    }
    let data = (32 + 2 * table_sectors) * sector;
    let folder = |name: &[u8; 11], cluster: u8| {
        let mut entry = [0; 32];
        entry[..11].copy_from_slice(name);
        entry[11] = 0x10;
        entry[26] = cluster;
        entry
    };
    put(data, &folder(b"EFI        ", 3));
    let efi = [folder(b".          ", 3), folder(b"..         ", 0), folder(b"LINUX      ", 4)];
    put(data + sector, &efi.concat());
    put(data + 2 * sector, &[folder(b".          ", 4), folder(b"..         ", 3)].concat());
}

/// A hash tree as `veritysetup` makes it, without salt.
fn hash_tree(root: &[u8]) -> (Vec<u8>, Sha256) {
    let hash = |block: &[u8]| {
        let mut hasher = Hasher::default();
        hasher.update(block);
        hasher.finish()
    };
    let blocks = root.len() as u64 / 4096;
    let mut level: Vec<u8> = root.chunks(4096).flat_map(|block| hash(block).0).collect();
    level.resize(4096, 0);
    let mut tree = b"verity\0\0".to_vec();
    tree.extend([1_u32, 1].map(u32::to_le_bytes).concat());
    tree.extend([0; 16]);
    tree.extend(b"sha256");
    tree.extend([0; 26]);
    tree.extend([4096_u32, 4096].map(u32::to_le_bytes).concat());
    tree.extend(blocks.to_le_bytes());
    tree.resize(4096, 0);
    tree.extend(&level);
    (tree, hash(&level))
}

/// A PE file with these sections.
fn pe(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 0x200];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x3c] = 0x80;
    bytes[0x80..0x84].copy_from_slice(b"PE\0\0");
    bytes[0x86] = u8::try_from(sections.len()).unwrap();
    for (index, (name, content)) in sections.iter().enumerate() {
        let (header, at) = (0x98 + 40 * index, u32::try_from(bytes.len()).unwrap());
        let size = u32::try_from(content.len()).unwrap();
        bytes[header..header + name.len()].copy_from_slice(name.as_bytes());
        bytes[header + 8..header + 12].copy_from_slice(&size.to_le_bytes());
        bytes[header + 16..header + 20].copy_from_slice(&size.to_le_bytes());
        bytes[header + 20..header + 24].copy_from_slice(&at.to_le_bytes());
        bytes.extend_from_slice(content);
    }
    bytes
}
