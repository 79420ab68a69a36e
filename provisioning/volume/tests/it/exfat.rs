//! Puts files onto exFAT, which no program without a kernel does: enough of a writer for tests, judged by `fsck.exfat`.

/// An image of exFAT as `mkfs.exfat` made it.
pub(crate) struct ExFat<'i> {
    image: &'i mut Vec<u8>,
    cluster: usize,
    table: usize,
    heap: usize,
    clusters: u32,
}

/// How the clusters of a file lie.
#[derive(Clone, Copy)]
pub(crate) enum Layout {
    SideBySide,
    /// In a chain, with a hole after each.
    Chained,
}

impl<'i> ExFat<'i> {
    pub(crate) fn new(image: &'i mut Vec<u8>) -> Self {
        let number = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
        let sector = 1_usize << image[108];
        let of = |at| number(at) as usize * sector;
        let (cluster, table, heap) = (sector << image[109], of(80), of(88));
        let clusters = number(92);
        Self { image, cluster, table, heap, clusters }
    }

    pub(crate) fn root(&self) -> u32 {
        u32::from_le_bytes(self.image[96..100].try_into().unwrap())
    }

    /// A new folder of one cluster; answers that cluster.
    pub(crate) fn folder(&mut self, parent: u32, name: &str) -> u32 {
        let cluster = self.take(1, Layout::SideBySide)[0];
        let length = self.cluster as u64;
        self.enter(parent, name, 0x10, Some(cluster), length, Layout::SideBySide);
        cluster
    }

    pub(crate) fn file(&mut self, parent: u32, name: &str, content: &[u8], layout: Layout) {
        let clusters = self.take(content.len().div_ceil(self.cluster), layout);
        for (cluster, piece) in clusters.iter().zip(content.chunks(self.cluster)) {
            let at = self.offset(*cluster);
            self.image[at..at + piece.len()].copy_from_slice(piece);
        }
        self.enter(parent, name, 0x20, clusters.first().copied(), content.len() as u64, layout);
    }

    pub(crate) fn offset(&self, cluster: u32) -> usize {
        self.heap + (cluster as usize - 2) * self.cluster
    }

    /// Where the entry of a cluster stands in the table.
    pub(crate) fn entry(&self, cluster: u32) -> usize {
        self.table + cluster as usize * 4
    }

    /// Takes free clusters in the bitmap, which is the first entry of type 0x81 in the root.
    fn take(&mut self, count: usize, layout: Layout) -> Vec<u32> {
        let root = self.offset(self.root());
        let entry = (root..).step_by(32).find(|at| self.image[*at] == 0x81).unwrap();
        let bitmap = u32::from_le_bytes(self.image[entry + 20..entry + 24].try_into().unwrap());
        let bitmap = self.offset(bitmap);
        let mut taken = Vec::new();
        let step = match layout {
            Layout::SideBySide => 1,
            Layout::Chained => 2,
        };
        let free = |image: &[u8], cluster: u32| {
            let index = cluster as usize - 2;
            image[bitmap + index / 8] & (1 << (index % 8)) == 0
        };
        // Behind everything that is taken.
        let first = (2..2 + self.clusters).rev().take_while(|c| free(self.image, *c)).last();
        for cluster in (first.unwrap()..).step_by(step).take(count) {
            let index = cluster as usize - 2;
            self.image[bitmap + index / 8] |= 1 << (index % 8);
            taken.push(cluster);
        }
        if matches!(layout, Layout::Chained) {
            let next = taken.iter().skip(1).copied().chain([u32::MAX]);
            for (cluster, next) in taken.iter().zip(next) {
                let at = self.entry(*cluster);
                self.image[at..at + 4].copy_from_slice(&next.to_le_bytes());
            }
        }
        taken
    }

    fn enter(
        &mut self,
        parent: u32,
        name: &str,
        attributes: u16,
        first: Option<u32>,
        bytes: u64,
        layout: Layout,
    ) {
        let units: Vec<u16> = name.encode_utf16().collect();
        let names = units.len().div_ceil(15);
        let mut set = vec![0; 32 * (2 + names)];
        set[0] = 0x85;
        set[1] = 1 + names as u8;
        set[4..6].copy_from_slice(&attributes.to_le_bytes());
        for time in [8, 12, 16] {
            set[time..time + 4].copy_from_slice(&0x0021_0000_u32.to_le_bytes());
        }
        set[32] = 0xc0;
        set[33] = match (first, layout) {
            (None, _) => 0,
            (_, Layout::SideBySide) => 3,
            (_, Layout::Chained) => 1,
        };
        set[35] = units.len() as u8;
        let upper: Vec<u16> = name.to_ascii_uppercase().encode_utf16().collect();
        let bytes_of = upper.iter().flat_map(|unit| unit.to_le_bytes());
        let hash = bytes_of.fold(0_u16, |sum, b| sum.rotate_right(1).wrapping_add(u16::from(b)));
        set[36..38].copy_from_slice(&hash.to_le_bytes());
        set[40..48].copy_from_slice(&bytes.to_le_bytes());
        set[52..56].copy_from_slice(&first.unwrap_or(0).to_le_bytes());
        set[56..64].copy_from_slice(&bytes.to_le_bytes());
        for (number, piece) in units.chunks(15).enumerate() {
            let at = 64 + number * 32;
            set[at] = 0xc1;
            for (place, unit) in piece.iter().enumerate() {
                let at = at + 2 + place * 2;
                set[at..at + 2].copy_from_slice(&unit.to_le_bytes());
            }
        }
        seal(&mut set);
        let start = self.offset(parent);
        let free = (start..start + self.cluster).step_by(32).find(|at| self.image[*at] == 0);
        let at = free.expect("the folder is full");
        self.image[at..at + set.len()].copy_from_slice(&set);
    }
}

/// Makes the checksum of a set of entries right.
pub(crate) fn seal(set: &mut [u8]) {
    let counted = set.iter().enumerate().filter(|(at, _)| ![2, 3].contains(at));
    let sum = counted.fold(0_u16, |sum, (_, b)| sum.rotate_right(1).wrapping_add(u16::from(*b)));
    set[2..4].copy_from_slice(&sum.to_le_bytes());
}
