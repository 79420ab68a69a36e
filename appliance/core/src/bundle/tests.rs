//! Tests of bundles as a whole: round trips, and every way in which one can be wrong.

use std::{convert::Infallible, io, time::Duration};

use ed25519_dalek::{Signer as _, SigningKey};
use minicbor::bytes::ByteVec;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use ruma::{RoomVersionId, device_id, event_id, mxc_uri, room_id, server_name, user_id};
use zeroize::Zeroizing;

use super::*;
use crate::{
    card::{Card, CourierKey, EncryptionKey, tests::card_of},
    digest::Sha256,
    incarnation::Incarnation,
    sign::{Algorithm, PublicKey},
    time::Millis,
};

mod corruption;
mod round_trip;

pub(super) const NOW: Millis = Millis(1_800_000_000_000);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn secret(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn public(seed: u8) -> PublicKey {
    PublicKey::new(Algorithm::Ed25519, secret(seed).verifying_key().as_bytes()).unwrap()
}

/// The recipient's private key: what the token does.
fn token(seed: u8) -> p256::SecretKey {
    p256::SecretKey::from_slice(&[seed; 32]).unwrap()
}

fn encryption_key(seed: u8) -> EncryptionKey {
    let public = token(seed).public_key().to_sec1_point(false).as_bytes().to_vec();
    EncryptionKey { suite: 1, public, not_after: NOW.plus(DAY * 30) }
}

fn agree(seed: u8) -> impl FnOnce(PrivateHalf<'_>) -> Result<Zeroizing<[u8; 32]>, io::Error> {
    move |asked| match asked {
        PrivateHalf::Agree(point) => {
            let point = p256::PublicKey::from_sec1_bytes(point).map_err(io::Error::other)?;
            let agreed = token(seed).diffie_hellman(&point);
            Ok(Zeroizing::new((*agreed.raw_secret_bytes()).into()))
        }
        PrivateHalf::Seed => Ok(Zeroizing::new([seed; 32])),
    }
}

/// The card of alpha, which sends.
fn alpha() -> Card {
    card_of("alpha.example", |content| {
        content.signing_keys = vec![CourierKey { public: public(2), not_after: NOW.plus(DAY) }];
    })
}

fn gate(peers: &[Card]) -> Gate<'_> {
    Gate {
        me: server_name!("bravo.example"),
        peers,
        now: NOW,
        bytes_max: 1 << 30,
        admit_expired: false,
        admit_future: false,
    }
}

fn manifest(contents: Contents) -> Manifest {
    Manifest {
        id: BundleId([1; 16]),
        from: server_name!("alpha.example").to_owned(),
        to: server_name!("bravo.example").to_owned(),
        incarnation: Incarnation([2; 16]),
        seq: 1,
        created: NOW,
        expires: NOW.plus(DAY * 90),
        blind: [3; 32],
        previous: None,
        kind: BundleKind::Delta,
        clock: Clock { source: "operator".to_owned(), error_ms: Some(2000) },
        server_keys: vec![ByteVec::from(b"{}".to_vec())],
        encryption_keys: vec![encryption_key(9)],
        prerequisites: Prerequisites::default(),
        sections: contents.sections,
        ack: Some(Ack { seq: 4, ..Ack::default() }),
        card: None,
    }
}

pub(super) fn header() -> Header {
    Header {
        from: server_name!("alpha.example").to_owned(),
        to: server_name!("bravo.example").to_owned(),
        id: BundleId([1; 16]),
        incarnation: Incarnation([2; 16]),
        seq: 1,
        created: NOW,
        expires: NOW,
        plaintext_bytes: 0,
        manifest: Sha256::of(b""),
        suite: 1,
        recipient_key: encryption_key(3).id(),
        encapsulated: Vec::new(),
    }
}

fn spool(sections: &[(Kind, Vec<Record>)]) -> (Vec<u8>, Contents) {
    let mut writer = Writer::new(Vec::new(), 1 << 30);
    for (kind, records) in sections {
        let room = records.iter().find_map(|record| match record {
            Record::Room(Room::Head(head)) => Some(head.room_id.clone()),
            _ => None,
        });
        let mut section = writer.section(*kind, room.as_deref()).unwrap();
        records.iter().for_each(|record| section.push(record).unwrap());
        section.finish().unwrap();
    }
    writer.finish().unwrap()
}

fn seal(manifest: &Manifest, spool: &[u8]) -> Result<Vec<u8>, SealError> {
    seal_to(&encryption_key(3), manifest, spool)
}

fn seal_to(
    recipient_key: &EncryptionKey,
    manifest: &Manifest,
    spool: &[u8],
) -> Result<Vec<u8>, SealError> {
    let mut file = Vec::new();
    let envelope = Envelope {
        manifest,
        recipient_key,
        bytes_max: 1 << 30,
        signing_key: &public(2),
        randomness: &[4; 64],
    };
    let sign = |tbs: &[u8]| Ok::<_, Infallible>(secret(2).sign(tbs).to_bytes().into());
    envelope.seal(spool, &mut file, sign)?;
    Ok(file)
}

fn bundle(sections: &[(Kind, Vec<Record>)]) -> Vec<u8> {
    let (spool, contents) = spool(sections);
    seal(&manifest(contents), &spool).unwrap()
}

/// Everything that an import does, from the file to the records.
fn import(file: &[u8]) -> Result<Vec<Record>, Error> {
    import_through(file, &gate(&[alpha()]))
}

fn import_through(file: &[u8], gate: &Gate<'_>) -> Result<Vec<Record>, Error> {
    let sealed = Sealed::open(file, gate)?;
    let authentic = sealed.unlock(&encryption_key(3), agree(3))?.authenticate()?;
    let entries: Result<Vec<_>, _> = authentic.records(file)?.collect();
    Ok(entries?.into_iter().map(|entry| entry.record).collect())
}

fn room_head(snapshot: bool) -> Record {
    Record::Room(Room::Head(RoomHead {
        room_id: room_id!("!r:alpha.example").to_owned(),
        version: RoomVersionId::V12,
        snapshot,
        servers: vec![server_name!("alpha.example").to_owned()],
    }))
}

fn pdu(role: PduRole, json: &str) -> Record {
    Record::Room(Room::Pdu(Pdu { role, json: json.as_bytes().to_vec() }))
}

fn to_device(n: u64) -> Record {
    Record::ToDevice(ToDevice {
        n,
        sender: user_id!("@alice:alpha.example").to_owned(),
        message_id: format!("m{n}"),
        event_type: "m.room.encrypted".to_owned(),
        messages: b"{}".to_vec(),
    })
}

/// A section of every kind.
fn everything() -> Vec<(Kind, Vec<Record>)> {
    let keys =
        ServerKeys { server_name: server_name!("alpha.example").to_owned(), json: b"{}".to_vec() };
    let receipt = Receipt {
        room_id: room_id!("!r:alpha.example").to_owned(),
        user_id: user_id!("@alice:alpha.example").to_owned(),
        event_id: event_id!("$e").to_owned(),
        thread_id: Some("main".to_owned()),
        time: NOW,
    };
    vec![
        (Kind::Cards, vec![Record::Card(ByteVec::from(b"card".to_vec()))]),
        (Kind::Keys, vec![Record::Keys(keys)]),
        (Kind::Users, vec![Record::User(user())]),
        (Kind::OneTimeKeys, vec![Record::OneTimeKeys(pool())]),
        (Kind::ToDevice, vec![to_device(5), to_device(6)]),
        (Kind::Room, room()),
        (Kind::Media, media()),
        (Kind::Receipts, vec![Record::Receipt(receipt)]),
        (Kind::Want, wants()),
    ]
}

fn user() -> User {
    let device = Device {
        device_id: device_id!("DEVICE").to_owned(),
        keys: Some(b"{}".to_vec()),
        display_name: None,
    };
    User {
        user_id: user_id!("@alice:alpha.example").to_owned(),
        stream_id: 7,
        status: UserStatus::Active,
        moved_to: Some(user_id!("@alice:bravo.example").to_owned()),
        profile: Some(br#"{"displayname":"Alice"}"#.to_vec()),
        devices: vec![device],
        master_key: Some(b"{}".to_vec()),
        self_signing_key: None,
        deleted_devices: vec![device_id!("OLD").to_owned()],
    }
}

fn pool() -> Pool {
    let key = OneTimeKey { n: 1, key_id: "signed_curve25519:A".to_owned(), json: b"{}".to_vec() };
    Pool {
        user_id: user_id!("@alice:alpha.example").to_owned(),
        device_id: device_id!("DEVICE").to_owned(),
        keys: vec![key.clone()],
        fallback: Some(key),
        expires: NOW.plus(DAY * 180),
    }
}

fn room() -> Vec<Record> {
    let event_id = event_id!("$e").to_owned();
    let state = vec![event_id.clone()];
    let gap = RoomGap { event_id: event_id.clone(), missing: vec![], state };
    let withheld = Withheld { event_id, verdict: Verdict::SoftFailed };
    vec![
        room_head(true),
        pdu(PduRole::AuthChain, "{}"),
        pdu(PduRole::State, "{}"),
        pdu(PduRole::StateAnchor, "{}"),
        pdu(PduRole::Timeline, r#"{"a":1}"#),
        Record::Room(Room::Gap(gap)),
        Record::Room(Room::Withheld(withheld)),
    ]
}

fn media() -> Vec<Record> {
    let head = MediaHead {
        uri: mxc_uri!("mxc://alpha.example/abc").to_owned(),
        sha256: Sha256::of(b"picture"),
        bytes: 7,
        content_type: Some("image/png".to_owned()),
        filename: None,
    };
    vec![
        Record::Media(Media::Head(head)),
        Record::Media(Media::Part(b"pic".to_vec())),
        Record::Media(Media::Part(b"ture".to_vec())),
    ]
}

fn wants() -> Vec<Record> {
    let room_id = room_id!("!r:alpha.example").to_owned();
    let user_id = user_id!("@alice:alpha.example").to_owned();
    let device_id = device_id!("DEVICE").to_owned();
    vec![
        Record::Want(Want::Event {
            room_id: room_id.clone(),
            event_id: event_id!("$e").to_owned(),
        }),
        Record::Want(Want::Media(mxc_uri!("mxc://bravo.example/x").to_owned())),
        Record::Want(Want::User(user_id.clone())),
        Record::Want(Want::OneTimeKeys { user_id, device_id }),
        Record::Want(Want::Room(room_id)),
    ]
}

fn records(sections: &[(Kind, Vec<Record>)]) -> Vec<Record> {
    sections.iter().flat_map(|(_, records)| records.clone()).collect()
}
