//! Update files, admission, the ledger, and hash trees against what `veritysetup` made.

use ed25519_dalek::Signer as _;
use proptest::prelude::*;

use super::{
    verity::{Area, BLOCK_BYTES, Fault},
    *,
};
use crate::{
    digest::Hasher,
    sign::{Algorithm, Policy},
};

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

fn payload(bytes: u64) -> Payload {
    Payload { bytes, sha256: Sha256::of(&bytes.to_be_bytes()) }
}

fn manifest() -> Manifest {
    Manifest {
        version: version("0.2.0"),
        floor: version("0.1.0"),
        from: version("0.1.0"),
        built: Millis(1_790_000_000_000),
        root: payload(8192),
        tree: payload(4096),
        uki: payload(1000),
        root_hash: Sha256([7; 32]),
        schema: 9,
        notes: "Mends the clock.".to_owned(),
    }
}

fn key(seed: u8) -> (ed25519_dalek::SigningKey, PublicKey) {
    let secret = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
    let public = PublicKey::new(Algorithm::Ed25519, secret.verifying_key().as_bytes()).unwrap();
    (secret, public)
}

fn signed(manifest: &Manifest) -> Result<Vec<u8>, SignError<crate::sign::Refusal>> {
    let (secret, public) = key(1);
    let policy = Policy { server_name: "alpha.example".try_into().unwrap() };
    sign(manifest, &public, |request| {
        request.bytes_to_sign(&policy).map(|bytes| secret.sign(&bytes).to_bytes().into())
    })
}

/// Reads a file's beginning as a box does.
fn read(file: &[u8], keys: &[PublicKey]) -> Result<Verified, Refused> {
    let (prefix, rest) = file.split_first_chunk().ok_or(Refused::NotAnUpdate)?;
    let signed = rest.get(..signed_bytes(prefix)?).ok_or(Refused::NotAnUpdate)?;
    Unverified::parse(signed)?.verify(keys)
}

#[test]
fn what_was_signed_is_read() {
    let file = signed(&manifest()).unwrap();
    let read = read(&file, &[key(2).1, key(1).1]).unwrap();
    assert_eq!(read.manifest, manifest());
    assert_eq!(read.signer, key(1).1);
    assert_eq!(read.payloads_at, file.len() as u64);
    let places = read.manifest.parts().map(|(part, payload, at)| (part, payload.bytes, at));
    assert_eq!(places, [(Part::Root, 8192, 0), (Part::Tree, 4096, 8192), (Part::Uki, 1000, 12288)]);
    assert_eq!(read.manifest.payload_bytes(), 13288);
}

#[test]
fn every_flipped_bit_and_every_truncation_is_refused() {
    let file = signed(&manifest()).unwrap();
    let keys = [key(1).1];
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut damaged = file.clone();
            damaged[at] ^= 1 << bit;
            assert!(read(&damaged, &keys).is_err(), "byte {at}, bit {bit}");
        }
        assert!(read(&file[..at], &keys).is_err(), "first {at} bytes");
    }
    let stranger = read(&file, &[key(2).1]).unwrap_err();
    assert_eq!(stranger, Refused::UnknownSigner(KeyId::of(&key(1).1)));
}

#[test]
fn a_manifest_that_contradicts_itself_is_neither_signed_nor_read() {
    type Change = fn(&mut Manifest);
    let table: [(&str, Change); 9] = [
        ("no root", |m| m.root.bytes = 0),
        ("half a block", |m| m.root.bytes = 8191),
        ("a tree of half a block", |m| m.tree.bytes = 1),
        ("a huge root", |m| m.root.bytes = UPDATE_ROOT_BYTES_MAX + 4096),
        ("no kernel", |m| m.uki.bytes = 0),
        ("a huge kernel", |m| m.uki.bytes = UPDATE_UKI_BYTES_MAX + 1),
        ("a floor above itself", |m| m.floor = version("0.2.1")),
        ("over a newer one", |m| m.from = version("0.2.1")),
        ("notes of two lines", |m| m.notes = "one\ntwo".to_owned()),
    ];
    for (what, change) in table {
        let mut manifest = manifest();
        change(&mut manifest);
        assert!(matches!(signed(&manifest), Err(SignError::Encode)), "{what}");
        // Signed by somebody with the key, though.
        let (secret, public) = key(1);
        let payload = cbor::to_bytes(&manifest).unwrap();
        let envelope = cose::sign(context::UPDATE, &public, payload, |tbs| {
            Ok::<_, std::convert::Infallible>(secret.sign(tbs).to_bytes().into())
        });
        let refused = Unverified::parse(&envelope.unwrap()).unwrap_err();
        assert!(matches!(refused, Refused::Impossible(_)), "{what}: {refused}");
    }
}

#[test]
fn a_prefix_bounds_what_is_read() {
    let prefix = |length: u32| {
        let mut prefix = [0; PREFIX_BYTES];
        prefix[..16].copy_from_slice(MAGIC);
        prefix[16..].copy_from_slice(&length.to_be_bytes());
        prefix
    };
    assert_eq!(signed_bytes(&prefix(1)), Ok(1));
    assert_eq!(signed_bytes(&prefix(4096)), Ok(4096));
    for length in [0, 4097, u32::MAX] {
        assert_eq!(signed_bytes(&prefix(length)), Err(Refused::NotAnUpdate), "{length}");
    }
    assert_eq!(signed_bytes(&[0; PREFIX_BYTES]), Err(Refused::NotAnUpdate));
}

#[test]
fn release_keys_are_one_per_line() {
    let (one, two) = (key(1).1, key(2).1);
    let text = format!("# current\n{one}\n\n  {two}\n");
    assert_eq!(release_keys(&text), Ok(vec![one, two]));
    assert_eq!(release_keys("# none\n"), Err(0));
    assert_eq!(release_keys(&format!("{}\nnonsense", key(1).1)), Err(2));
}

#[test]
fn which_update_a_box_takes() {
    let running = Running { version: version("0.3.0"), schema: 9, floor: version("0.2.0") };
    let update = |number: &str, from: &str, schema| Manifest {
        version: version(number),
        floor: version("0.0.0"),
        from: version(from),
        schema,
        ..manifest()
    };
    let (version, low) = (version("0.1.0"), version("0.2.0"));
    let table = [
        ("newer", update("0.4.0", "0.1.0", 9), false, Ok(Direction::Up)),
        ("newer schema", update("0.4.0", "0.3.0", 12), false, Ok(Direction::Up)),
        ("older, above the floor", update("0.2.0", "0.1.0", 9), false, Ok(Direction::Down)),
        ("the same", update("0.3.0", "0.1.0", 9), true, Err(NotAdmitted::Runs(running.version))),
        (
            "a leap",
            update("0.5.0", "0.4.0", 9),
            true,
            Err(NotAdmitted::TooFar {
                version: self::version("0.5.0"),
                from: self::version("0.4.0"),
                running: running.version,
            }),
        ),
        (
            "older schema",
            update("0.2.0", "0.1.0", 8),
            true,
            Err(NotAdmitted::OldSchema { version: low, knows: 8, has: 9 }),
        ),
        (
            "below the floor",
            update("0.1.0", "0.1.0", 9),
            false,
            Err(NotAdmitted::BelowFloor { version, floor: running.floor }),
        ),
        ("below, permitted", update("0.1.0", "0.1.0", 9), true, Ok(Direction::Down)),
    ];
    for (what, update, permitted, answer) in table {
        assert_eq!(running.admit(&update, permitted), answer, "{what}");
    }
}

#[test]
fn the_floor_rises_when_a_version_is_blessed_and_never_falls() {
    let mut ledger = Ledger::default();
    assert!(!ledger.settle(&Sha256([7; 32]), Millis(1)));
    // It came, and did not hold.
    ledger.wrote(&manifest(), Millis(2));
    assert!(ledger.settle(&Sha256([8; 32]), Millis(3)));
    let settled = |outcome, at| Some(Settled { version: version("0.2.0"), outcome, at });
    assert_eq!((ledger.floor, &ledger.pending), (Version::default(), &None));
    assert_eq!(ledger.last, settled(Outcome::FellBack, Millis(3)));
    // It came again, and held.
    ledger.wrote(&manifest(), Millis(4));
    assert!(ledger.settle(&Sha256([7; 32]), Millis(5)));
    assert_eq!(ledger.floor, version("0.1.0"));
    assert_eq!(ledger.last, settled(Outcome::Blessed, Millis(5)));
    // An older one with a lower floor, which an officer permitted.
    let older = Manifest { floor: version("0.0.1"), root_hash: Sha256([6; 32]), ..manifest() };
    ledger.wrote(&older, Millis(6));
    assert!(ledger.settle(&Sha256([6; 32]), Millis(7)));
    assert_eq!(ledger.floor, version("0.1.0"));
    let text = serde_json::to_string(&ledger).unwrap();
    assert_eq!(serde_json::from_str::<Ledger>(&text).unwrap(), ledger);
}

/// A root file system of so many blocks, and its hash tree as `veritysetup format` makes it.
fn slot(blocks: u64, salt: &[u8]) -> (Vec<u8>, Vec<u8>, Sha256) {
    let root: Vec<u8> = (0..blocks)
        .flat_map(|i| (0..4096_u64).map(move |j| u8::try_from((i * 7 + j * 13) % 251).unwrap()))
        .collect();
    let hash = |block: &[u8]| {
        let mut hasher = Hasher::default();
        hasher.update(salt);
        hasher.update(block);
        hasher.finish()
    };
    let mut hashes: Vec<Sha256> = root.chunks(BLOCK_BYTES).map(hash).collect();
    let mut levels = Vec::new();
    while hashes.len() > 1 {
        let mut level: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
        level.resize(level.len().next_multiple_of(BLOCK_BYTES), 0);
        hashes = level.chunks(BLOCK_BYTES).map(hash).collect();
        levels.insert(0, level);
    }
    let mut tree = b"verity\0\0".to_vec();
    tree.extend([1_u32, 1].map(u32::to_le_bytes).concat());
    tree.extend([&[0; 15][..], &[1], b"sha256", &[0; 26]].concat());
    tree.extend([4096_u32, 4096].map(u32::to_le_bytes).concat());
    tree.extend(blocks.to_le_bytes());
    tree.extend(u16::try_from(salt.len()).unwrap().to_le_bytes());
    tree.extend([0; 6]);
    tree.extend(salt);
    tree.resize(BLOCK_BYTES, 0);
    tree.extend(levels.concat());
    (root, tree, hashes[0])
}

fn verify(root: &[u8], tree: &[u8], root_hash: &Sha256) -> Result<u64, Fault<&'static str>> {
    let read = |area, block: u64, into: &mut [u8]| {
        let bytes = if area == Area::Root { root } else { tree };
        let at = usize::try_from(block).unwrap() * BLOCK_BYTES;
        into.copy_from_slice(bytes.get(at..at + BLOCK_BYTES).ok_or("beyond the end")?);
        Ok(())
    };
    let mut last = (0, 0);
    let blocks = verity::verify(root_hash, read, |done, all| last = (done, all))?;
    assert_eq!(last, (blocks, blocks), "progress ends at the end");
    Ok(blocks)
}

#[test]
fn trees_are_those_of_veritysetup() {
    let (root, tree, root_hash) = slot(200, &Sha256::of(b"salt").0);
    let theirs = "2e4001a017dbe7d5c0588447e7e52b7550f132164ce3351b3ac4f356d479aae2";
    assert_eq!(root_hash, theirs.parse().unwrap());
    let theirs = "7aa1de3e8de42a0cb54bdc415d14bf27084946dd2e005a94861859d58772c757";
    assert_eq!(Sha256::of(&tree), theirs.parse().unwrap());
    assert_eq!(verify(&root, &tree, &root_hash).unwrap(), 200);
    let (root, tree, root_hash) = slot(1, &[]);
    let theirs = "e05455bcbbec58463277e8874036e57bdcf8c49c792a23ce03d6baba0765271c";
    assert_eq!(root_hash, theirs.parse().unwrap());
    assert_eq!((tree.len(), verify(&root, &tree, &root_hash).unwrap()), (4096, 1));
}

#[test]
fn a_superblock_of_another_kind_is_refused() {
    let (root, tree, root_hash) = slot(3, b"salt");
    for at in (0..16).chain(32..88) {
        // The salt's padding is not looked at, and the salt itself is covered by the root hash.
        if (82..88).contains(&at) {
            continue;
        }
        let mut other = tree.clone();
        other[at] ^= 1;
        assert!(verify(&root, &other, &root_hash).is_err(), "byte {at}");
    }
    assert!(matches!(verify(&root, &[], &root_hash), Err(Fault::Unread { block: 0, .. })));
    assert!(matches!(verify(&root, &[0; 4096], &root_hash), Err(Fault::NoTree)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_flipped_bit_of_a_slot_is_found(blocks in 1_u64..300, place: prop::sample::Index, bit in 0_u32..8) {
        let (mut root, mut tree, root_hash) = slot(blocks, b"salt");
        // Padding behind the superblock is not part of anything.
        let in_tree = tree.len() - BLOCK_BYTES;
        let at = place.index(root.len() + in_tree);
        let (area, block) = match at.checked_sub(root.len()) {
            None => {
                root[at] ^= 1_u8 << bit;
                (Area::Root, at / BLOCK_BYTES)
            }
            Some(at) => {
                tree[BLOCK_BYTES + at] ^= 1_u8 << bit;
                (Area::Tree, 1 + at / BLOCK_BYTES)
            }
        };
        match verify(&root, &tree, &root_hash) {
            Err(Fault::Rotten { area: found, block: at }) => {
                prop_assert_eq!((found, at), (area, block as u64));
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn any_manifest_survives_its_file(
        numbers: [u32; 3], built: u64, blocks in 1_u64..1000, uki in 1_u64..100_000, schema: u32, notes in "[ -~]{0,200}",
    ) {
        let [major, minor, patch] = numbers;
        let wanted = Manifest {
            version: Version { major, minor, patch },
            floor: Version { major: major / 2, ..Version::default() },
            from: Version::default(),
            built: Millis(built),
            root: payload(blocks * 4096),
            tree: payload(4096),
            uki: payload(uki),
            schema,
            notes,
            ..manifest()
        };
        let file = signed(&wanted).unwrap();
        prop_assert_eq!(read(&file, &[key(1).1]).unwrap().manifest, wanted);
    }
}
