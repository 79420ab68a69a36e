//! Everything that reads bytes from outside, as functions that must not panic and whose claims must hold.
//!
//! `../fuzz_targets/` hands them to libFuzzer, `tests/smoke/main.rs` runs them over `../seeds/` on any compiler.

#![expect(clippy::expect_used, reason = "a target reports what it finds by panicking")]

mod request;

use ruma::{ServerName, server_name, signatures::PublicKeySet};
use sallyport_core::{
    admin::{Approval, Approvers, verify},
    backup,
    bundle::{Gate, Header, Kind, Manifest, Record, Sealed},
    card::{Card, Proposed},
    event::{KeyDocument, KeyLookup, KeySource, Pdu},
    journal::{Entries, Sealing},
    provision::{self, Document, Order, Provisioned, Trust},
    room,
    roster::{self, Head, Mode, Roster},
    sign::{KeyRole, Policy, SigningRequest},
    time::Millis,
    update::{self, entry, uki},
};
use sallyport_volume::{Volume, Writer};

pub use self::request::request;

/// The time at which everything is read, in the year 2026.
const NOW: Millis = Millis(1_795_000_000_000);

/// A bundle as it lies on a stick, before we know who sent it.
pub fn bundle(bytes: &[u8]) {
    let gate = Gate {
        me: server_name!("bravo.example"),
        peers: &[],
        now: NOW,
        bytes_max: 1 << 30,
        admit_expired: false,
        admit_future: false,
    };
    assert!(Sealed::open(bytes, &gate).is_err(), "opened, though we have no peer");
    if let Ok(header) = Header::parse(bytes) {
        assert!(!header.from.as_str().is_empty());
    }
}

/// A backup as it lies on a stick. Nobody's key opens it.
pub fn backup(bytes: &[u8]) {
    let Ok(sealed) = backup::Sealed::open(bytes) else { return };
    let (id, header) = (sealed.id(), sealed.header().clone());
    assert!(!header.recipients.is_empty(), "a backup that nobody can open");
    let is_full = header.is_full();
    let alone = backup::Chain::check(&[backup::Link { id, header }]);
    assert_eq!(alone.is_ok(), is_full, "a full backup stands alone, and no other does");
    let stranger = backup::RecoveryKey::x_wing(&[1; 32]);
    assert!(!sealed.is_for(&stranger), "encrypted to a key that nobody named");
}

/// A bundle's manifest, from a peer that has gone bad.
pub fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::parse(bytes) else { return };
    let again = manifest.to_bytes().expect("what was read can be written");
    assert_eq!(bytes, again, "a manifest has one encoding, or its hash means nothing");
}

/// A record of a bundle, from a peer that has gone bad. The first byte is the kind of its section.
pub fn record(bytes: &[u8]) {
    let Some((code, body)) = bytes.split_first() else { return };
    let Some(kind) = Kind::from_code(u16::from(*code)) else { return };
    let Ok(record) = Record::parse(kind, body) else { return };
    assert_eq!(record.kind(), kind);
    let mut again = Vec::new();
    record.append_to(&mut again).expect("what was read can be written");
    assert_eq!(body, again, "a record has one encoding");
}

/// A stick of a stranger: whatever can be listed is listed and read, and a file is put onto what can be written.
pub fn volume(bytes: &[u8]) {
    const DEPTH_MAX: usize = 4;
    let Ok(mut volume) = Volume::find(bytes.to_vec(), "SALLYPORT") else { return };
    let mut folders = vec![(None, 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in volume.list(folder.as_ref()).unwrap_or_default() {
            let mut length = 0;
            let read = volume.read(&entry, &mut |piece| {
                length += piece.len() as u64;
                Ok(())
            });
            assert!(length <= bytes.len() as u64, "more was read than there is");
            assert!(read.is_err() || length == entry.bytes, "a file is as long as it says");
            if entry.is_folder && depth < DEPTH_MAX {
                folders.push((Some(entry), depth + 1));
            }
        }
    }
    let Ok(mut writer) = Writer::new(volume) else { return };
    let content = b"what the box says";
    let path = ["SALLYPORT", "RESULT"];
    let put = writer.put(&path, "RESULT-001.txt", content.len() as u64, &mut content.as_slice());
    let Ok(disk) = writer.finish() else { return };
    assert_eq!(disk.len(), bytes.len());
    if put.is_ok() {
        assert!(
            disk.windows(content.len()).any(|place| place == content),
            "written, and not there"
        );
    }
}

/// The entries of a journal that came on a stick.
pub fn journal(bytes: &[u8]) {
    let mut entries = Entries::new(bytes);
    let read: Vec<_> = entries.by_ref().map_while(Result::ok).collect();
    assert!(entries.next().is_none(), "there is nothing behind an error");
    let Some(first) = read.first() else { return };
    let mut sealing = Sealing::after(first.seqnum_id, 0);
    read.iter().for_each(|entry| sealing.take(entry));
    if let Some(seal) = sealing.finish() {
        assert!(seal.is_possible(), "more entries than numbers");
        assert!(seal.entries <= read.len() as u64, "more was sealed than there is");
    }
}

/// A provisioning document, an order for a stick, or what a box remembers of either.
pub fn provision(bytes: &[u8]) {
    if let Ok((document, sha256)) = Document::parse(bytes) {
        assert!(provision::first(&document, sha256, &[]).is_err(), "approved by nobody");
        let record = Provisioned::begin(bytes, Approvers::default(), Trust::Unattended, NOW);
        let record = record.expect("what was parsed is parsed again");
        assert_eq!(record.admit(&document, sha256, &[]).ok(), Some(None), "it is in force");
        let again = record.encode().map(|bytes| Provisioned::decode(&bytes).ok());
        assert_eq!(again.expect("what was made can be written"), Some(record));
    }
    if let Ok((order, _)) = Order::parse(bytes) {
        assert!(!order.needs_officer() || order.until.is_some());
    }
    if let Ok(record) = Provisioned::decode(bytes) {
        assert_eq!(record.encode().ok().as_deref(), Some(bytes), "a record has one encoding");
    }
}

/// A pairing card.
pub fn card(bytes: &[u8]) {
    let proposed = Proposed::parse(bytes, NOW);
    let Ok(card) = Card::stored(bytes) else {
        assert!(proposed.is_err(), "proposed, but cannot be stored");
        return;
    };
    let again = Card::stored(bytes).expect("reading it twice is reading it once");
    assert_eq!(card.hash(), again.hash());
    assert_eq!(card.fingerprint().words(), again.fingerprint().words());
}

/// A certificate or the like that a box that was taken over wants to have signed. The first byte says which.
pub fn certificate(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    let request = match kind % 4 {
        0 => SigningRequest::Certificate(body.to_vec()),
        1 => SigningRequest::CaRequest(body.to_vec()),
        2 => SigningRequest::TlsRequest(body.to_vec()),
        _ => SigningRequest::TlsHandshake(body.to_vec()),
    };
    let policy = Policy { server_name: server_name!("alpha.example").to_owned() };
    let Ok(signed) = request.bytes_to_sign(&policy) else { return };
    assert_eq!(signed, body, "what is signed is what was judged");
    let spaces = body.starts_with(&[b' '; 64]);
    assert_eq!(
        spaces,
        request.role() == KeyRole::Tls && kind % 4 == 3,
        "one kind passes for another"
    );
}

/// An approval that comes with a command, as text.
pub fn approval(bytes: &[u8]) {
    let approval = Approval::from_text(&String::from_utf8_lossy(bytes));
    let Some(consent) = approval.unverified_consent() else { return };
    let approvals = std::slice::from_ref(&approval);
    assert!(verify(approvals, &[], None, &consent).is_err(), "counts, though no officer is known");
    assert!(!consent.to_string().is_empty());
}

/// What a box reads of updates before it believes anything: the beginning of a file, a kernel, the boot loader's word, a list of keys.
pub fn update(bytes: &[u8]) {
    if let Some((prefix, rest)) = bytes.split_first_chunk()
        && let Ok(length) = update::signed_bytes(prefix)
        && let Some(Ok(update)) = rest.get(..length).map(update::Unverified::parse)
    {
        let manifest = update.manifest();
        assert!(manifest.floor <= manifest.version, "a floor above the version");
        assert!(update.file_bytes() > update.payloads_at(), "an update of nothing");
        assert!(update.verify(&[]).is_err(), "verified, though no release key is known");
    }
    if let Some(place) = uki::section(bytes, uki::COMMAND_LINE) {
        assert!(place.end - place.start <= 64 * 1024, "a section without a bound");
    }
    let text = String::from_utf8_lossy(bytes);
    if let Ok(entry) = text.parse::<entry::Entry>() {
        assert_eq!(entry.to_string().parse(), Ok(entry), "a name has one meaning");
    }
    assert!(entry::standing_of_boot(bytes) != entry::Standing::Exhausted, "it was started");
    let _: Result<_, usize> = update::release_keys(&text);
}

/// A roster as a personnel office exports it.
pub fn roster_csv(bytes: &[u8]) {
    if let Ok(roster) = roster::csv::parse(bytes, head()) {
        sound(&roster);
    }
}

/// A roster as a directory service exports it.
pub fn roster_scim(bytes: &[u8]) {
    if let Ok(roster) = roster::scim::parse(bytes, head()) {
        sound(&roster);
    }
}

/// A signed roster on a stick.
pub fn roster_file(bytes: &[u8]) {
    let Ok(file) = roster::signed::RosterFile::parse(bytes) else { return };
    assert!(file.verify(&[]).is_err(), "verified, though no officer is known");
    // The accounts of a file whose signature is good but whose signer has gone bad.
    if let Ok(roster) = Roster::decode(head(), bytes) {
        sound(&roster);
    }
}

/// Whatever form a roster came in: accounts stand in order, each once, and survive their encoding.
fn sound(roster: &Roster) {
    let pairs = roster.accounts.iter().zip(roster.accounts.iter().skip(1));
    for (one, next) in pairs {
        assert!(one.localpart < next.localpart, "accounts out of order or twice");
    }
    let again = Roster::decode(roster.head.clone(), &roster.encode());
    assert_eq!(&again.expect("what was accepted can be read again"), roster);
}

fn head() -> Head {
    Head {
        enclave: server_name!("alpha.example").to_owned(),
        serial: 7,
        mode: Mode::Full,
        issued_at: NOW,
        levels: ["OPEN", "RESTRICTED", "SECRET"].map(str::to_owned).to_vec(),
    }
}

/// An event of another server, in every room version that we serve.
pub fn pdu(bytes: &[u8]) {
    for version in room::VERSIONS {
        let rules = room::rules(&version).expect("a version that we serve has rules");
        let Ok(incoming) = room::parse(bytes, &rules) else { continue };
        let event = incoming.pdu().clone();
        let object = event.object().expect("what was parsed can be read again");
        let again = Pdu::new(object, &rules).expect("what was accepted is accepted again");
        assert_eq!(event.event_id(), again.event_id(), "the id depends on the event alone");
        assert_eq!(event.json(), again.json(), "canonical JSON has one form");
        let redacted = event.redacted(&rules).expect("every event can be redacted");
        assert_eq!(event.event_id(), redacted.event_id(), "redaction keeps the id");
        let twice = redacted.redacted(&rules).expect("a redacted event can be redacted");
        assert_eq!(redacted.json(), twice.json(), "redacting twice is redacting once");
        let from_store = Pdu::from_stored(
            event.event_id().to_owned(),
            event.room_id().to_owned(),
            event.json().into(),
            &rules,
        );
        let from_store = from_store.expect("the store gives back what was parsed");
        assert_eq!(event.sender(), from_store.sender());
        assert_eq!(event.redacts(), from_store.redacts());
        // The specification wants no server's signature under the answer to a third-party invite.
        let needs_signature = !incoming.servers().is_empty();
        let signed = incoming.verify(&NoKeys, &rules).is_ok();
        assert!(!(signed && needs_signature), "signed although nobody has a key");
    }
}

/// A server's published keys.
pub fn key_document(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let made = Millis(1_700_000_000_000);
    let Ok(document) = KeyDocument::verify(text, server_name!("bravo.example"), made) else {
        return;
    };
    assert_eq!(document.server_name(), "bravo.example");
    assert!(!document.keys_at(document.valid_until()).is_empty(), "signed by no key of its own");
}

/// Servers whose keys have no key in them.
struct NoKeys;

impl KeySource for NoKeys {
    fn keys(&self, _server: &ServerName, _time: Millis) -> KeyLookup {
        KeyLookup::Keys(PublicKeySet::new())
    }
}
