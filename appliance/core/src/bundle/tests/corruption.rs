//! Every way in which a bundle can be wrong has its own answer, and none of them is a panic.

use proptest::prelude::*;

use super::*;
use crate::card::tests::card_of;

fn small() -> Vec<u8> {
    bundle(&[(Kind::ToDevice, vec![to_device(1), to_device(2)])])
}

#[test]
fn every_flipped_byte_is_noticed() {
    let file = small();
    for at in 0..file.len() {
        for flip in [0x01, 0x80] {
            let mut damaged = file.clone();
            damaged[at] ^= flip;
            assert!(import(&damaged).is_err(), "byte {at} of {}", file.len());
        }
    }
}

#[test]
fn every_truncation_is_noticed() {
    let file = small();
    for length in 0..file.len() {
        let result = import(&file[..length]);
        assert!(matches!(result, Err(Error::Truncated)), "first {length} bytes: {result:?}");
    }
    let longer = [&file[..], b"x"].concat();
    assert!(matches!(import(&longer), Err(Error::Trailing)));
}

#[test]
fn what_is_not_a_bundle() {
    assert!(matches!(import(&[0; 100]), Err(Error::NotABundle)));
    let mut later = small();
    later[19] = 2;
    assert!(matches!(import(&later), Err(Error::NewerFormat { found: 2 })));
    let mut endless_header = small();
    endless_header[20] = 0xff;
    assert!(matches!(import(&endless_header), Err(Error::Header(None))));
}

#[test]
fn the_gate() {
    let file = small();
    let peers = [alpha()];
    let open = |gate: Gate<'_>| import_through(&file, &gate).map(|records| records.len());
    let gate = gate(&peers);
    let late = NOW.plus(DAY * 91);
    let early = Millis(NOW.0 - 25 * 60 * 60 * 1000);

    assert!(matches!(open(gate), Ok(2)));
    assert!(matches!(open(Gate { peers: &[], ..gate }), Err(Error::UnknownSender { .. })));
    let me = server_name!("charlie.example");
    assert!(matches!(open(Gate { me, ..gate }), Err(Error::WrongRecipient { .. })));
    // Nor do we know the signer of what goes from a stranger to a stranger, or from us to a peer: pairing would not help.
    assert!(matches!(open(Gate { me, peers: &[], ..gate }), Err(Error::WrongRecipient { .. })));
    assert!(matches!(open(Gate { now: late, ..gate }), Err(Error::Expired { .. })));
    assert!(matches!(open(Gate { now: late, admit_expired: true, ..gate }), Ok(2)));
    let small = Gate { bytes_max: file.len() as u64 - 1, ..gate };
    assert!(matches!(open(small), Err(Error::Oversized { .. })));
    assert!(matches!(open(Gate { bytes_max: file.len() as u64, ..gate }), Ok(2)));

    // A peer whose card is valid since long ago.
    let card = |change: &dyn Fn(&mut crate::card::Content)| {
        [card_of("alpha.example", |content| {
            content.not_before = Millis(0);
            content.signing_keys = vec![CourierKey { public: public(2), not_after: late }];
            change(content);
        })]
    };
    let old = card(&|_| {});
    let ahead = Gate { peers: &old, now: early, ..gate };
    assert!(matches!(open(ahead), Err(Error::FromTheFuture { .. })));
    assert!(matches!(open(Gate { admit_future: true, ..ahead }), Ok(2)));
    let revoked = card(&|content| content.not_after = Millis(NOW.0 - 1));
    assert!(matches!(open(Gate { peers: &revoked, ..gate }), Err(Error::SenderCard(_))));
    let key_over = card(&|content| content.signing_keys[0].not_after = Millis(NOW.0 - 1));
    let result = open(Gate { peers: &key_over, ..gate });
    assert!(matches!(result, Err(Error::SenderKeyExpired { .. })));
}

#[test]
fn a_peer_cannot_speak_for_another() {
    let (spool, contents) = spool(&[]);
    let from = server_name!("charlie.example").to_owned();
    let file = seal(&Manifest { from, ..manifest(contents) }, &spool).unwrap();
    assert!(matches!(import(&file), Err(Error::WrongSender { .. })));
}

#[test]
fn keys_that_do_not_fit() {
    let file = small();
    let peers = [alpha()];
    let sealed = || Sealed::open(&file[..], &gate(&peers)).unwrap();
    let result = sealed().unlock(&encryption_key(5), agree(5)).err();
    assert!(matches!(result, Some(Error::WrongKey { .. })), "the id of another key");
    let result = sealed().unlock(&encryption_key(3), agree(5)).err();
    assert!(matches!(result, Some(Error::Damaged { chunk: 0 })), "the secret of another key");
    let broken = |_: PrivateHalf<'_>| Err(io::Error::other("unplugged"));
    let result = sealed().unlock(&encryption_key(3), broken).err();
    assert!(matches!(result, Some(Error::Token(_))));
}

#[test]
fn a_point_off_the_curve_never_reaches_the_token() {
    let payload = crate::cbor::to_bytes(&Header {
        expires: NOW.plus(DAY),
        plaintext_bytes: 100,
        encapsulated: vec![4; 65],
        ..header()
    })
    .unwrap();
    let sign = |tbs: &[u8]| Ok::<_, Infallible>(secret(2).sign(tbs).to_bytes().into());
    let context = crate::sign::context::MANIFEST;
    let envelope = crate::cose::sign(context, &public(2), payload, sign).unwrap();
    let mut file = b"SALLYPORT-BUNDLE\0\0\0\x01".to_vec();
    file.extend((envelope.len() as u32).to_be_bytes());
    file.extend(envelope);
    let peers = [alpha()];
    let sealed = Sealed::open(&file[..], &gate(&peers)).unwrap();
    let asked = |_: PrivateHalf<'_>| -> Result<_, io::Error> { panic!("the token was asked") };
    assert!(matches!(sealed.unlock(&encryption_key(3), asked).err(), Some(Error::Header(None))));
}

/// A peer that is trusted but lies: the file is authentic, the content is not what the manifest says.
fn lie(change: impl FnOnce(&mut Manifest)) -> Error {
    let (spool, contents) = spool(&[(Kind::ToDevice, (1..100).map(to_device).collect())]);
    let mut manifest = manifest(contents);
    change(&mut manifest);
    lying(&manifest, &spool)
}

/// Seals without the checks of an honest sender.
fn lying(manifest: &Manifest, spool: &[u8]) -> Error {
    use super::super::{chunk, hpke};
    let bytes = manifest.to_bytes().unwrap();
    let suite = encryption_key(3).suite().unwrap();
    let (point, secret_key) =
        hpke::encapsulate(suite, &encryption_key(3).public, &[4; 64]).unwrap();
    let plaintext = [&(bytes.len() as u32).to_be_bytes(), &bytes[..], spool].concat();
    let header = Header {
        expires: manifest.expires,
        plaintext_bytes: plaintext.len() as u64,
        manifest: Sha256::of(&bytes),
        encapsulated: point.to_vec(),
        ..header()
    };
    let sign = |tbs: &[u8]| Ok::<_, Infallible>(secret(2).sign(tbs).to_bytes().into());
    let mut file = header.seal(&public(2), sign).unwrap();
    let keys = chunk::Keys::new(&secret_key, Sha256::of(&file)).unwrap();
    let mut chunks = chunk::ChunkWriter::new(&mut file, keys);
    io::Write::write_all(&mut chunks, &plaintext).unwrap();
    chunks.finish_as_announced(plaintext.len() as u64).unwrap();
    import(&file).unwrap_err()
}

#[test]
fn a_lying_manifest() {
    let bomb = |e: &Error| matches!(e, Error::Bomb { section: 0 });
    let manifest = |e: &Error| matches!(e, Error::Manifest(_));
    let section = |e: &Error| matches!(e, Error::Section { section: 0 });
    type Expected<'a> = &'a dyn Fn(&Error) -> bool;
    let table: [(&str, Error, Expected<'_>); 12] = [
        ("more than 50 times", lie(|m| m.sections[0].bytes = 1 << 40), &bomb),
        ("fewer bytes", lie(|m| m.sections[0].bytes -= 1), &bomb),
        ("more bytes", lie(|m| m.sections[0].bytes += 1), &section),
        ("fewer records", lie(|m| m.sections[0].records -= 1), &section),
        ("more records", lie(|m| m.sections[0].records += 1), &section),
        ("records without bytes", lie(|m| m.sections[0].records = 1 << 60), &manifest),
        ("another length", lie(|m| m.sections[0].stored_bytes -= 1), &manifest),
        ("lengths that overflow", lie(|m| m.sections[0].stored_bytes = u64::MAX), &manifest),
        ("another hash", lie(|m| m.sections[0].sha256 = Sha256::of(b"")), &|e| {
            matches!(e, Error::SectionHash { section: 0 })
        }),
        ("another codec", lie(|m| m.sections[0].codec = Codec::Stored), &manifest),
        ("a room", lie(|m| m.sections[0].room_id = Some(room_id!("!r:a.b").to_owned())), &manifest),
        ("another bundle", lie(|m| m.seq = 2), &manifest),
    ];
    for (what, error, expected) in table {
        assert!(expected(&error), "{what}: {error:?}");
    }
}

#[test]
fn order_and_doubles_of_sections() {
    let (spool, contents) = spool(&[(Kind::Users, vec![]), (Kind::ToDevice, vec![to_device(1)])]);
    let mut manifest = manifest(contents);
    manifest.sections.swap(0, 1);
    assert!(matches!(lying(&manifest, &spool), Error::Manifest("sections out of order")));
    manifest.sections.swap(0, 1);
    manifest.sections[0].sha256 = manifest.sections[1].sha256;
    assert!(matches!(lying(&manifest, &spool), Error::SectionHash { section: 0 }));

    let room = (Kind::Room, vec![room_head(false)]);
    let (spool, contents) = super::spool(&[room]);
    let mut manifest = super::manifest(contents);
    manifest.sections.extend(manifest.sections.clone());
    let spool = [&spool[..], &spool].concat();
    assert!(matches!(lying(&manifest, &spool), Error::Manifest("two sections for one room")));
}

/// A section of these bytes, compressed as a sender likes, with a manifest that is right about them.
fn crafted(
    kind: u16,
    critical: bool,
    records: u64,
    bytes: &[u8],
    stored: &[u8],
) -> (Manifest, Vec<u8>) {
    let section = Section {
        kind,
        critical,
        room_id: None,
        codec: Codec::Zstd,
        stored_bytes: stored.len() as u64,
        bytes: bytes.len() as u64,
        sha256: Sha256::of(stored),
        records,
    };
    let contents = Contents { sections: vec![section], bytes: stored.len() as u64 };
    (manifest(contents), stored.to_vec())
}

fn record(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes(), body].concat()
}

#[test]
fn records_that_are_not_sound() {
    let refused = |kind: Kind, bytes: &[u8]| {
        let stored = zstd::encode_all(bytes, 3).unwrap();
        let (manifest, spool) = crafted(kind.code(), true, 1, bytes, &stored);
        lying(&manifest, &spool)
    };
    let too_large = [&u32::MAX.to_be_bytes()[..], b"x"].concat();
    let not_deterministic = record(&[0xbf, 0xff]);
    let table = [
        ("larger than its kind", refused(Kind::Keys, &too_large)),
        ("not CBOR", refused(Kind::Keys, &record(b"\xff"))),
        ("not deterministic", refused(Kind::Users, &not_deterministic)),
        ("an unknown user id", refused(Kind::Want, &record(&[0x82, 3, 0x61, b'x']))),
    ];
    for (what, error) in table {
        assert!(matches!(error, Error::Record { section: 0, record: 0, .. }), "{what}: {error:?}");
    }
    let beyond = [&100_u32.to_be_bytes()[..], b"x"].concat();
    assert!(matches!(refused(Kind::Keys, &beyond), Error::Section { section: 0 }));
}

#[test]
fn a_bomb_is_not_unpacked() {
    // 64 MiB of zeros in 2 KiB, with a manifest that says so; and one that says it is little.
    let zeros = vec![0; 64 << 20];
    let stored = zstd::encode_all(&zeros[..], 19).unwrap();
    let (manifest, spool) = crafted(Kind::ToDevice.code(), true, 1, &zeros, &stored);
    assert!(matches!(lying(&manifest, &spool), Error::Bomb { section: 0 }));
    let (manifest, spool) = crafted(Kind::ToDevice.code(), true, 1, &zeros[..5], &stored);
    assert!(matches!(lying(&manifest, &spool), Error::Bomb { section: 0 }));
}

#[test]
fn a_window_above_the_bound_is_refused() {
    use zstd::stream::raw::CParameter;
    let body = record(&minicbor::to_vec(ByteVec::from(b"card".to_vec())).unwrap());
    let compress = |window_log| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.set_parameter(CParameter::WindowLog(window_log)).unwrap();
        encoder.include_contentsize(false).unwrap();
        io::Write::write_all(&mut encoder, &body).unwrap();
        // Flushed in between: the frame cannot take the content's size for its window.
        io::Write::flush(&mut encoder).unwrap();
        encoder.finish().unwrap()
    };
    let (manifest, spool) = crafted(Kind::Cards.code(), true, 1, &body, &compress(24));
    assert!(matches!(lying(&manifest, &spool), Error::Section { section: 0 }));
    let (manifest, spool) = crafted(Kind::Cards.code(), true, 1, &body, &compress(23));
    let file = seal(&manifest, &spool).unwrap();
    assert_eq!(import(&file).unwrap().len(), 1);
}

#[test]
fn unknown_kinds_are_refused_or_passed_over() {
    let (manifest, spool) = crafted(400, true, 1, b"anything", b"at all");
    let refused = lying(&manifest, &spool);
    assert!(matches!(refused, Error::UnknownSection { section: 0, kind: 400 }));
    let refused = seal(&manifest, &spool);
    assert!(matches!(refused, Err(SealError::Manifest(_))));

    let (manifest, spool) = crafted(400, false, 1, b"anything", b"at all");
    let file = seal(&manifest, &spool).unwrap();
    assert_eq!(import(&file).unwrap(), []);
    let peers = [alpha()];
    let sealed = Sealed::open(&file[..], &gate(&peers)).unwrap();
    let authentic = sealed.unlock(&encryption_key(3), agree(3)).unwrap().authenticate().unwrap();
    assert_eq!(authentic.records(&file[..]).unwrap().skipped(), [0]);
}

#[test]
fn the_writer_holds_the_rules_of_sections() {
    let room = room_id!("!r:alpha.example");
    let part = |bytes: &[u8]| Record::Media(Media::Part(bytes.to_vec()));
    let file = |bytes, content: &[u8]| {
        Record::Media(Media::Head(MediaHead {
            uri: mxc_uri!("mxc://alpha.example/f").to_owned(),
            sha256: Sha256::of(content),
            bytes,
            content_type: None,
            filename: None,
        }))
    };
    let large = "x".repeat(65_537);
    let other_room = Record::Room(Room::Head(RoomHead {
        room_id: room_id!("!other:alpha.example").to_owned(),
        version: RoomVersionId::V12,
        snapshot: false,
        servers: vec![],
    }));
    let table: &[(&str, Kind, Vec<Record>)] = &[
        ("another kind", Kind::Users, vec![to_device(1)]),
        ("numbers from 1", Kind::ToDevice, vec![to_device(0)]),
        ("a number twice", Kind::ToDevice, vec![to_device(2), to_device(2)]),
        ("numbers backwards", Kind::ToDevice, vec![to_device(2), to_device(1)]),
        ("no head", Kind::Room, vec![pdu(PduRole::Timeline, "{}")]),
        ("an empty room", Kind::Room, vec![]),
        ("two heads", Kind::Room, vec![room_head(false), room_head(false)]),
        ("another room's head", Kind::Room, vec![other_room]),
        ("state without snapshot", Kind::Room, vec![room_head(false), pdu(PduRole::State, "{}")]),
        ("no anchor", Kind::Room, vec![room_head(true), pdu(PduRole::State, "{}")]),
        (
            "two anchors",
            Kind::Room,
            vec![room_head(true), pdu(PduRole::Anchor, "{}"), pdu(PduRole::Anchor, "{}")],
        ),
        ("a large event", Kind::Room, vec![room_head(false), pdu(PduRole::Timeline, &large)]),
        ("a part of nothing", Kind::Media, vec![part(b"x")]),
        ("half a file", Kind::Media, vec![file(2, b"xx"), part(b"x")]),
        ("a file within a file", Kind::Media, vec![file(2, b"xx"), file(2, b"xx")]),
        ("more than the file", Kind::Media, vec![file(1, b"xx"), part(b"xx")]),
        ("another file", Kind::Media, vec![file(2, b"xx"), part(b"yy")]),
        ("an empty part", Kind::Media, vec![file(2, b"xx"), part(b"")]),
        ("an empty file of another hash", Kind::Media, vec![file(0, b"xx")]),
        ("a large part", Kind::Media, vec![file(1 << 21, b"xx"), part(&vec![0; (1 << 20) + 1])]),
    ];
    for (what, kind, records) in table {
        let mut writer = Writer::new(Vec::new(), 1 << 30);
        let mut section = writer.section(*kind, (*kind == Kind::Room).then_some(room)).unwrap();
        let pushed = records.iter().try_for_each(|record| section.push(record));
        let written = pushed.and_then(|()| section.finish());
        assert!(matches!(written, Err(WriteError::Record(_))), "{what}: {written:?}");
        assert!(matches!(writer.finish(), Err(WriteError::Unfinished)), "{what}");
    }
}

#[test]
fn the_writer_holds_order_and_size() {
    let room = room_id!("!r:alpha.example");
    let mut writer = Writer::new(Vec::new(), 1000);
    writer.section(Kind::ToDevice, None).unwrap().finish().unwrap();
    let late = writer.section(Kind::Users, None).err();
    assert!(matches!(late, Some(WriteError::Order { kind: Kind::Users })));
    assert!(matches!(writer.section(Kind::Room, None).err(), Some(WriteError::Order { .. })));
    let mut section = writer.section(Kind::Room, Some(room)).unwrap();
    section.push(&room_head(false)).unwrap();
    section.finish().unwrap();
    let again = writer.section(Kind::Room, Some(room)).err();
    assert!(matches!(again, Some(WriteError::Order { .. })));
    let mut section = writer.section(Kind::Media, None).unwrap();
    let head = MediaHead {
        uri: mxc_uri!("mxc://alpha.example/f").to_owned(),
        sha256: Sha256::of(b""),
        bytes: 2000,
        content_type: None,
        filename: None,
    };
    section.push(&Record::Media(Media::Head(head))).unwrap();
    let full = section.push(&Record::Media(Media::Part(vec![7; 1000])));
    assert!(matches!(full, Err(WriteError::Full { max: 1000 })));
}

#[test]
fn a_spool_that_was_changed_is_not_sealed() {
    let (mut spool, contents) = spool(&[(Kind::ToDevice, vec![to_device(1)])]);
    spool[3] ^= 1;
    assert!(matches!(seal(&manifest(contents), &spool), Err(SealError::Spool)));
}

#[test]
fn a_manifest_that_would_be_refused_is_not_sealed() {
    let unsealable = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = manifest(Contents::default());
        change(&mut manifest);
        seal(&manifest, &[]).err()
    };
    let refused = |e: Option<SealError>| matches!(e, Some(SealError::Manifest(_)));
    assert!(refused(unsealable(&|m| m.seq = 0)));
    assert!(refused(unsealable(&|m| m.expires = Millis(m.created.0 - 1))));
    assert!(refused(unsealable(&|m| m.expires = m.created.plus(DAY * 181))));
}

proptest! {
    #[test]
    fn parsers_take_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400), code in 0u16..12) {
        let _ = Header::parse(&bytes);
        let _ = Manifest::parse(&bytes);
        if let Some(kind) = Kind::from_code(code) {
            let _ = Record::parse(kind, &bytes);
        }
        let file = [b"SALLYPORT-BUNDLE\0\0\0\x01\0\0\0\x40", &bytes[..]].concat();
        prop_assert!(import(&file).is_err());
        // The rest of an import, over bytes that a peer may have signed.
        let section = Section {
            kind: code, critical: false, room_id: None, codec: Codec::Stored,
            stored_bytes: bytes.len() as u64, bytes: bytes.len() as u64,
            sha256: Sha256::default(), records: 5,
        };
        let manifest = manifest(Contents { sections: vec![section], bytes: 0 });
        let _ = Records::new(&manifest, Spool(&bytes[..])).count();
    }
}
