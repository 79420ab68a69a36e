//! What is written is read.

use proptest::prelude::*;

use super::*;

#[test]
fn every_kind_of_record_comes_back() {
    let sections = everything();
    let file = bundle(&sections);
    let imported = import(&file).unwrap();
    assert_eq!(imported, records(&sections));
    assert_eq!(file, bundle(&sections), "the same content and randomness give the same bytes");
}

#[test]
fn the_fixture_of_the_first_version_is_still_read() {
    let file = include_bytes!("fixtures/version-1.bundle");
    assert_eq!(import(file).unwrap(), records(&everything()));
}

#[test]
fn empty_bundles_and_empty_sections() {
    assert_eq!(import(&bundle(&[])).unwrap(), []);
    assert_eq!(import(&bundle(&[(Kind::ToDevice, vec![])])).unwrap(), []);
}

#[test]
fn header_and_manifest_are_told_before_anything_is_unpacked() {
    let (spool, contents) = spool(&everything());
    let manifest = manifest(contents);
    let file = seal(&manifest, &spool).unwrap();
    let peers = [alpha()];
    let sealed = Sealed::open(&file[..], &gate(&peers)).unwrap();
    assert_eq!(sealed.header().seq, 1);
    assert_eq!(sealed.header().manifest, Sha256::of(&manifest.to_bytes().unwrap()));
    let unlocked = sealed.unlock(&encryption_key(3), agree(3)).unwrap();
    assert_eq!(unlocked.manifest(), &manifest);
    let first = Position { incarnation: manifest.incarnation, last: None };
    assert!(continues(&first, unlocked.manifest()));
    let last = Last { seq: 1, manifest: Sha256::of(b"another") };
    assert!(!continues(&Position { last: Some(last), ..first }, unlocked.manifest()));
}

#[test]
fn a_bundle_to_a_hybrid_key_opens_with_its_seed_only() {
    let (spool, contents) = spool(&everything());
    let recipient = EncryptionKey::x_wing(&[3; 32], NOW.plus(DAY));
    let file = seal_to(&recipient, &manifest(contents), &spool).unwrap();
    let peers = [alpha()];
    let sealed = || Sealed::open(&file[..], &gate(&peers)).unwrap();
    let authentic = sealed().unlock(&recipient, agree(3)).unwrap().authenticate().unwrap();
    let read: Result<Vec<_>, _> = authentic.records(&file[..]).unwrap().collect();
    let read: Vec<_> = read.unwrap().into_iter().map(|entry| entry.record).collect();
    assert_eq!(read, records(&everything()));
    assert!(sealed().unlock(&recipient, agree(4)).is_err());
    assert!(sealed().unlock(&encryption_key(3), agree(3)).is_err());
}

#[test]
fn an_import_goes_on_where_it_was_interrupted() {
    let sections = everything();
    let file = bundle(&sections);
    let peers = [alpha()];
    let sealed = Sealed::open(&file[..], &gate(&peers)).unwrap();
    let authentic = sealed.unlock(&encryption_key(3), agree(3)).unwrap().authenticate().unwrap();
    let all: Vec<_> = authentic.records(&file[..]).unwrap().map(Result::unwrap).collect();
    for (at, entry) in all.iter().enumerate() {
        let mut rest = authentic.records(&file[..]).unwrap();
        rest.resume(entry.section, entry.number).unwrap();
        let rest: Vec<_> = rest.map(Result::unwrap).collect();
        assert_eq!(rest, all[at..], "from section {} record {}", entry.section, entry.number);
    }
    // The second reading is of the same file.
    let mut other = file.clone();
    other[30] ^= 1;
    assert!(authentic.records(&other[..]).is_err());
}

#[test]
fn a_spool_can_be_imported_on_trial() {
    let sections = everything();
    let (spool, contents) = spool(&sections);
    let records_of_spool = Records::new(&manifest(contents), Spool(&spool[..]));
    let imported: Vec<_> = records_of_spool.map(|entry| entry.unwrap().record).collect();
    assert_eq!(imported, records(&sections));
}

#[test]
fn what_compresses_too_well_is_padded() {
    let zeros = "0".repeat(60_000);
    let mut records = vec![room_head(false)];
    records.extend((0..100).map(|_| pdu(PduRole::Timeline, &zeros)));
    let sections = [(Kind::Room, records.clone())];
    let (_, contents) = spool(&sections);
    let section = &contents.sections[0];
    assert!(section.bytes <= section.stored_bytes * 50, "{section:?}");
    assert!(section.bytes > section.stored_bytes * 49, "padded, but not more than needed");
    assert_eq!(import(&bundle(&sections)).unwrap(), records);
}

#[test]
fn more_than_one_chunk_and_more_than_one_step() {
    let events: Vec<_> = (0..5_000).map(|n| pdu(PduRole::Timeline, &event(n))).collect();
    let sections = [(Kind::Room, [vec![room_head(false)], events].concat())];
    let file = bundle(&sections);
    assert!(file.len() > 2 << 20, "three chunks: {} bytes", file.len());
    assert_eq!(import(&file).unwrap(), records(&sections));
}

/// About 1 KiB that hardly compresses, as signatures and ciphertext do not.
fn event(n: u64) -> String {
    let noise = |seed: u8| Sha256::of(&[&n.to_be_bytes()[..], &[seed]].concat()).to_string();
    let noise: String = (0..14).map(noise).collect();
    format!(r#"{{"content":{{"ciphertext":"{noise}"}},"depth":{n},"type":"m.room.encrypted"}}"#)
}

proptest! {
    #[test]
    fn any_events_come_back(
        events in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..2000), 0..40),
        files in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..5000), 0..4),
    ) {
        let pdus = events.into_iter().map(|json| {
            Record::Room(Room::Pdu(Pdu { role: PduRole::Timeline, json }))
        });
        let media = files.into_iter().flat_map(|bytes| {
            let head = MediaHead {
                uri: mxc_uri!("mxc://alpha.example/f").to_owned(),
                sha256: Sha256::of(&bytes),
                bytes: bytes.len() as u64,
                content_type: None,
                filename: None,
            };
            [Record::Media(Media::Head(head)), Record::Media(Media::Part(bytes))]
        });
        let sections = [
            (Kind::Room, std::iter::once(room_head(false)).chain(pdus).collect()),
            (Kind::Media, media.collect()),
        ];
        prop_assert_eq!(import(&bundle(&sections)).unwrap(), records(&sections));
    }
}
