//! Every target over its seeds and over thousands of damaged copies of them. Finds the shallow bugs, on any compiler, in seconds;
//! `cargo fuzz` finds the deep ones.

#![cfg(test)]

use std::{fs, path::Path};

/// Damaged copies per seed.
const COPIES: u64 = 2_000;
/// Damaged copies of a request. Each that founds a room makes every sync after it longer, so the time grows with the square.
const REQUEST_COPIES: u64 = 60;

macro_rules! smoke {
    ($($target:ident),* $(,)?) => {
        $(#[test]
        fn $target() {
            run(stringify!($target), sallyport_fuzz_targets::$target);
        })*

        /// Every folder of seeds has a target, and every target is handed to libFuzzer.
        #[test]
        fn nothing_is_left_out() {
            let here = fuzz();
            let mut names: Vec<&str> = vec![$(stringify!($target)),*];
            names.sort_unstable();
            assert_eq!(names, entries(&here.join("seeds")));
            let files: Vec<String> = names.iter().map(|name| format!("{name}.rs")).collect();
            assert_eq!(files, entries(&here.join("fuzz_targets")));
        }
    };
}

smoke!(
    approval,
    backup,
    bundle,
    card,
    certificate,
    journal,
    key_document,
    manifest,
    pdu,
    provision,
    record,
    request,
    roster_csv,
    roster_file,
    roster_scim,
    update,
    volume,
);

fn run(name: &str, target: fn(&[u8])) {
    let folder = fuzz().join("seeds").join(name);
    let seeds: Vec<Vec<u8>> =
        entries(&folder).iter().map(|file| fs::read(folder.join(file)).unwrap()).collect();
    assert!(!seeds.is_empty(), "{name} has no seeds");
    target(&[]);
    let copies = if name == "request" { REQUEST_COPIES } else { COPIES };
    for (index, seed) in seeds.iter().enumerate() {
        target(seed);
        let mut random = Random(index as u64 + 1);
        for _ in 0..copies {
            let mut copy = seed.clone();
            for _ in 0..=random.below(3) {
                damage(&mut copy, &seeds, &mut random);
            }
            target(&copy);
        }
    }
}

/// One change of the kind that media, software and attackers make.
fn damage(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    const TELLING: &[&[u8]] = &[
        b"\"",
        b"{",
        b"}",
        b"[",
        b"null",
        b"-1",
        b"9007199254740992",
        b"1e400",
        b"\x00",
        b"\xff\xff\xff\xff",
    ];
    let at = random.below(bytes.len() + 1);
    match random.below(7) {
        0 => bytes.truncate(at),
        1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        2 if at < bytes.len() => bytes[at] = random.next() as u8,
        3 => {
            let piece = TELLING[random.below(TELLING.len())];
            bytes.splice(at..at, piece.iter().copied());
        }
        4 => {
            let end = (at + random.below(64)).min(bytes.len());
            bytes.drain(at..end);
        }
        5 => {
            let end = (at + random.below(64)).min(bytes.len());
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
        _ => {
            let other = &seeds[random.below(seeds.len())];
            bytes.truncate(at);
            bytes.extend_from_slice(&other[random.below(other.len() + 1)..]);
        }
    }
}

/// `tests/fuzz`.
fn fuzz() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// SplitMix64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or_default()
    }
}
