//! Export: everything for a peer since the last bundle that it acknowledged, as one sealed file.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufReader, BufWriter, Seek as _, SeekFrom, Write as _},
    mem,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
};

use minicbor::bytes::ByteVec;
use ruma::{OwnedEventId, OwnedRoomId, ServerName};
use sallyport_core::{
    admin::Consent,
    bundle::{
        Ack, BundleId, BundleKind, Clock, Contents, Envelope, Header, Kind, Manifest,
        OneTimeKeyClaim, Prerequisites, Record, RoomFrontier, ToDevice, Writer,
    },
    card::Card,
    digest::Sha256,
    limits,
    sign::SigningRequest,
    time::Millis,
};
use sallyport_store::{Peer, Read, Told};

use super::{Error, media, rooms, users};
use crate::{
    app::{App, random},
    files,
    service::{
        audit::{self, When},
        clock,
        order::{Mandate, Order},
        own_keys::{self, Current},
        peers, signer,
    },
};

/// How many to-device messages, claims or keys are read at once.
const PAGE: usize = 500;

/// A bundle that was made.
#[derive(Debug)]
pub struct Exported {
    /// The sealed file; the caller carries it to the stick and removes it.
    pub path: PathBuf,
    /// Its header.
    pub header: Header,
}

/// What went into a bundle.
struct Filled {
    contents: Contents,
    told: Told,
    snapshots: Vec<(OwnedRoomId, OwnedEventId)>,
    prerequisites: Prerequisites,
    frontiers: Vec<RoomFrontier>,
}

/// Makes a bundle for a peer. Its number is used up in the transaction that also appends the row to the audit log.
///
/// # Errors
/// If the peer is not known, too few officers approved, events wait for their signatures, or a disk or the token fails. No number is used up unless
/// the bundle is complete.
pub fn export(app: &App, to: &ServerName, order: &Order) -> Result<Exported, Error> {
    let now = order.now;
    clock::check(&app.store, now)?;
    let peer =
        app.store.read(|read| read.peer(to))?.ok_or_else(|| Error::NotAPeer(to.to_owned()))?;
    let card = Card::stored(&peer.card).map_err(peers::Error::from)?;
    card.check_time(now).map_err(peers::Error::from)?;
    check_own_card(app)?;
    let mandate = approved(app, &peer, order)?;
    let token = app.token.as_deref().ok_or(peers::Error::NoToken)?;
    let stop = || app.shutdown.is_requested();
    signer::sign_pending(app, token, stop)?;

    let folder = app.config.data_dir.join("bundles");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(files::failed("make", &folder))?;
    let id = BundleId(random()?);
    let spool_path = folder.join(format!("{id}.spool"));
    let spool = Temporary::create(spool_path)?;
    let writer = Writer::new(
        BufWriter::new(spool.file.try_clone().map_err(files::failed("open", &spool.path))?),
        card.content().policy.bundle_bytes_max,
    );
    let filled = app.store.read(|read| fill(read, app, &peer, writer, now))?;
    let manifest = manifest(app, &peer, &filled, id, now)?;
    let mut bundle = Temporary::create(spool.path.with_extension("bundle"))?;
    let courier = peers::courier_key_for(&app.store, &peer)?;
    let header = seal(app, &card, &courier, &manifest, &spool, &mut bundle, now)?;
    note_sent(app, peer, filled, &header, &mandate)?;
    Ok(Exported { path: bundle.keep(), header })
}

/// After a restore peers must hear from the enclave root that there is a new incarnation before they hear anything from it.
fn check_own_card(app: &App) -> Result<(), Error> {
    let (card, incarnation) = app
        .store
        .read(|read| Ok::<_, sallyport_store::Error>((read.own_card()?, read.incarnation()?)))?;
    let card = Card::stored(&card.ok_or(Error::NoOwnCard)?).map_err(peers::Error::from)?;
    if card.content().incarnation == incarnation { Ok(()) } else { Err(Error::CardOfBefore) }
}

/// Officers approve the bundle of one number for one peer, and with it whatever waits for the peer when it is made.
fn approved(app: &App, peer: &Peer, order: &Order) -> Result<Mandate, Error> {
    let policy = super::own_policy(&app.store)?;
    let enclave = &app.config.server_name;
    let incarnation = app.store.read(|read| read.incarnation())?;
    let (server, number) = (&peer.server, peer.sent_seq.saturating_add(1));
    let wanted = Consent::to_export(enclave.clone(), incarnation, server, number);
    let mandate = order.approved(&app.config.roster.trusted_keys, None, &wanted)?;
    mandate.approvers().require(
        policy.export_approvals.into(),
        || format!("the export of bundle {number} for {server}"),
        || {
            format!(
                "sallyctl approve export {server} --enclave {enclave} --incarnation {incarnation} --number {number} --token TOKEN --out APPROVAL"
            )
        },
    )?;
    Ok(mandate)
}

/// From here on the bundle has left, whatever becomes of the file.
fn note_sent(
    app: &App,
    peer: Peer,
    filled: Filled,
    header: &Header,
    mandate: &Mandate,
) -> Result<(), Error> {
    let details = [
        ("sequence", header.seq.to_string()),
        ("bundle", header.id.to_string()),
        ("manifest", header.manifest.to_string()),
    ];
    let entry = mandate.entry("bundle.export", &peer.server, details);
    let hash = *header.manifest.as_bytes();
    let Filled { told, snapshots, .. } = filled;
    app.store.write(move |write| {
        let now = write.peer(&peer.server)?;
        if now.is_none_or(|now| now.sent_seq != peer.sent_seq) {
            return Err(Error::Overtaken(peer.server));
        }
        write.note_sent(&peer.server, &told, &hash, &snapshots)?;
        audit::append_signatures(write, When::Now, entry.at)?;
        write.append_audit(entry)?;
        Ok(())
    })
}

/// Writes the sections; all from one snapshot of the database.
fn fill(
    read: &Read<'_>,
    app: &App,
    peer: &Peer,
    mut writer: Writer<BufWriter<File>>,
    now: Millis,
) -> Result<Filled, Error> {
    let up_to = read.position()?;
    let mut told = Told {
        seq: peer.sent_seq.saturating_add(1),
        position: up_to,
        pool: peer.acked.pool,
        claims: peer.acked.claims,
        created: now,
    };
    users::export_users(read, peer, &app.config.server_name, up_to, &mut writer)?;
    told.pool = users::export_one_time_keys(read, peer, now, &mut writer)?;
    let first = export_to_device(read, peer, &mut writer)?;
    let shared = read.rooms_shared_with(peer)?;
    let mut snapshots = Vec::new();
    let mut frontiers = Vec::new();
    for room in &shared {
        rooms::export(read, peer, room, up_to, &mut writer)?;
        if let Some((anchor, _)) = &room.anchor {
            snapshots.push((room.room.room_id.clone(), anchor.clone()));
        }
        frontiers.push(RoomFrontier {
            room_id: room.room.room_id.clone(),
            events: room.room.extremities.clone(),
        });
    }
    media::export(read, app, peer, &shared, &mut writer)?;
    told.claims = export_claims(read, peer, &mut writer)?;
    let (_, contents) = writer.finish()?;
    // A peer that was restored has lost what came before, and we have it no more.
    let to_device = if peer.returns_to.is_some() { 0 } else { first.saturating_sub(1) };
    let prerequisites = Prerequisites { rooms: Vec::new(), to_device };
    Ok(Filled { contents, told, snapshots, prerequisites, frontiers })
}

/// Writes the to-device messages that the peer has not acknowledged; answers the number of the first, or of the one that would be.
fn export_to_device(
    read: &Read<'_>,
    peer: &Peer,
    writer: &mut Writer<BufWriter<File>>,
) -> Result<u64, Error> {
    let mut page = read.outgoing_to_device(&peer.server, 0, PAGE)?;
    let Some((first, _)) = page.first() else { return Ok(0) };
    let first = u64::try_from(*first).unwrap_or_default();
    let mut section = writer.section(Kind::ToDevice, None)?;
    while let Some((last, _)) = page.last() {
        let last = *last;
        for (n, edu) in page {
            section.push(&Record::ToDevice(to_device(n, &edu)?))?;
        }
        page = read.outgoing_to_device(&peer.server, last, PAGE)?;
    }
    section.finish()?;
    Ok(first)
}

fn to_device(n: i64, edu: &str) -> Result<ToDevice, Error> {
    #[derive(serde::Deserialize)]
    struct Edu<'e> {
        sender: ruma::OwnedUserId,
        #[serde(rename = "type")]
        kind: String,
        message_id: String,
        #[serde(borrow)]
        messages: &'e serde_json::value::RawValue,
    }
    let edu: Edu<'_> = serde_json::from_str(edu)
        .map_err(|error| Error::Content(format!("a to-device message: {error}")))?;
    Ok(ToDevice {
        n: u64::try_from(n).unwrap_or_default(),
        sender: edu.sender,
        message_id: edu.message_id,
        event_type: edu.kind,
        messages: edu.messages.get().as_bytes().to_vec(),
    })
}

/// Tells the peer which of its one-time keys were given away; answers the number of the last.
fn export_claims(
    read: &Read<'_>,
    peer: &Peer,
    writer: &mut Writer<BufWriter<File>>,
) -> Result<i64, Error> {
    let mut last = peer.acked.claims;
    let mut page = read.key_claims(&peer.server, last, PAGE)?;
    if page.is_empty() {
        return Ok(last);
    }
    let mut section = writer.section(Kind::Claims, None)?;
    while !page.is_empty() {
        for claim in page {
            last = claim.n;
            section.push(&Record::Claim(OneTimeKeyClaim {
                n: u64::try_from(claim.n).unwrap_or_default(),
                user_id: claim.user_id,
                device_id: claim.device_id,
                key_id: claim.key_id,
            }))?;
        }
        page = read.key_claims(&peer.server, last, PAGE)?;
    }
    section.finish()?;
    Ok(last)
}

fn manifest(
    app: &App,
    peer: &Peer,
    filled: &Filled,
    id: BundleId,
    now: Millis,
) -> Result<Manifest, Error> {
    let token = app.token.as_deref().ok_or(peers::Error::NoToken)?;
    let server_name = &app.config.server_name;
    let own = own_keys::key_document(&app.store, token, server_name, now)?;
    let others = app.store.read(|read| read.server_keys())?;
    let mut server_keys = vec![ByteVec::from(own.into_bytes())];
    for (server, document) in others {
        if server != peer.server && server != *server_name {
            server_keys.push(ByteVec::from(document.json().as_bytes().to_vec()));
        }
    }
    let incarnation = app.store.read(|read| read.incarnation())?;
    let not_after = Millis(now.0.saturating_add(limits::COURIER_KEY_LIFETIME_MS));
    Ok(Manifest {
        id,
        from: server_name.clone(),
        to: peer.server.clone(),
        incarnation,
        seq: filled.told.seq,
        created: now,
        expires: Millis(now.0.saturating_add(limits::BUNDLE_VALIDITY_MS)),
        blind: random()?,
        previous: peer.sent_manifest.map(Sha256),
        kind: BundleKind::Delta,
        clock: Clock { source: "operator".to_owned(), error_ms: None },
        server_keys,
        encryption_keys: peers::encryption_keys(&app.store, not_after)?,
        prerequisites: filled.prerequisites.clone(),
        sections: filled.contents.sections.clone(),
        ack: acknowledgement(app, peer, filled)?,
        card: app.store.read(|read| read.own_card())?,
    })
}

fn acknowledgement(app: &App, peer: &Peer, filled: &Filled) -> Result<Option<Ack>, Error> {
    let Some(received) = &peer.received else { return Ok(None) };
    let number =
        |read: &Read<'_>| read.incoming_number(&peer.server, received.incarnation, "to_device");
    let to_device = app.store.read(number)?.unwrap_or_default();
    Ok(Some(Ack {
        incarnation: received.incarnation,
        seq: received.seq,
        missing: Vec::new(),
        outcomes: Vec::new(),
        to_device: u64::try_from(to_device).unwrap_or_default(),
        rooms: filled.frontiers.clone(),
    }))
}

fn seal(
    app: &App,
    card: &Card,
    courier: &Current,
    manifest: &Manifest,
    spool: &Temporary,
    output: &mut Temporary,
    now: Millis,
) -> Result<Header, Error> {
    let token = app.token.as_deref().ok_or(peers::Error::NoToken)?;
    let server = &card.content().server_name;
    let recipient_key =
        card.encryption_key(now).ok_or_else(|| Error::NoRecipientKey(server.clone()))?;
    let signing_key = own_keys::public_key(&courier.key)?;
    let randomness = random()?;
    let envelope = Envelope {
        manifest,
        recipient_key,
        bytes_max: card.content().policy.bundle_bytes_max,
        signing_key: &signing_key,
        randomness: &randomness,
    };
    let mut input = spool.file.try_clone().map_err(files::failed("open", &spool.path))?;
    input.seek(SeekFrom::Start(0)).map_err(files::failed("read", &spool.path))?;
    let header = {
        let mut buffered = BufWriter::new(&mut output.file);
        let header = envelope.seal(BufReader::new(input), &mut buffered, |bytes| {
            token.sign(&courier.name, &SigningRequest::Manifest(bytes.to_vec()))
        })?;
        buffered.flush().map_err(files::failed("write", &output.path))?;
        header
    };
    output.file.sync_all().map_err(files::failed("write", &output.path))?;
    Ok(header)
}

/// A file that is removed unless it is kept.
struct Temporary {
    file: File,
    path: PathBuf,
}

impl Temporary {
    fn create(path: PathBuf) -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(files::failed("make", &path))?;
        Ok(Self { file, path })
    }

    fn keep(mut self) -> PathBuf {
        mem::take(&mut self.path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            let _: std::io::Result<()> = fs::remove_file(&self.path);
        }
    }
}
