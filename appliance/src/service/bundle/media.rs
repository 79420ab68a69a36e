//! Media in bundles. The server cannot see which encrypted event names which file, so what travels is what members of shared rooms
//! have uploaded since, up to a size; anything else has to be asked for.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufWriter, Read as _},
};

use ruma::{OwnedMxcUri, ServerName, events::room::member::MembershipState};
use sallyport_core::{
    bundle::{Kind, Media, MediaHead, Record, Writer},
    digest::Sha256,
    limits,
    time::Millis,
};
use sallyport_store::{Peer, Read, SharedRoom};

use super::Error;
use crate::{
    app::{App, random},
    files,
    service::media::{Description, MediaError, Receiving, add_remote},
};

/// Writes the files that local members of the shared rooms have uploaded since the last acknowledged bundle.
pub(super) fn export(
    read: &Read<'_>,
    app: &App,
    peer: &Peer,
    shared: &[SharedRoom],
    writer: &mut Writer<BufWriter<File>>,
) -> Result<(), Error> {
    let server_name = &app.config.server_name;
    let mut members = BTreeSet::new();
    for shared in shared {
        let joined = read.members(&shared.room, &MembershipState::Join)?;
        members.extend(joined.into_iter().map(|member| member.user_id));
    }
    let since = peer.acked.created;
    let mut media = read.media_since(server_name, since, limits::MEDIA_PUSH_BYTES_MAX)?;
    media.retain(|media| media.uploader.as_ref().is_some_and(|user| members.contains(user)));
    if media.is_empty() {
        return Ok(());
    }
    let mut section = writer.section(Kind::Media, None)?;
    for media in media {
        let Some(content) = media.content else { continue };
        let path = app.files.path(&content.sha256);
        let mut input = File::open(&path).map_err(files::failed("read", &path))?;
        section.push(&Record::Media(Media::Head(MediaHead {
            uri: OwnedMxcUri::from(format!("mxc://{server_name}/{}", media.media_id)),
            sha256: Sha256(content.sha256),
            bytes: content.size,
            content_type: content.content_type,
            filename: content.filename,
        })))?;
        let mut part = vec![0; limits::MEDIA_PART_BYTES_MAX];
        loop {
            let length = input.read(&mut part).map_err(files::failed("read", &path))?;
            let Some(bytes) = part.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
            section.push(&Record::Media(Media::Part(bytes.to_vec())))?;
        }
    }
    Ok(section.finish()?)
}

/// A file that is being received.
pub(super) struct Incoming {
    head: MediaHead,
    missing: u64,
    file: Receiving,
}

/// Takes a record of the media section in; answers whether a file is complete and kept. The reader has verified length and hash.
pub(super) fn take(
    app: &App,
    origin: &ServerName,
    open: &mut Option<Incoming>,
    record: Media,
    now: Millis,
) -> Result<bool, Error> {
    let incoming = match record {
        Media::Head(head) => {
            let file = app.files.receive(random()?, head.bytes).map_err(failed)?;
            Incoming { missing: head.bytes, head, file }
        }
        Media::Part(bytes) => {
            let Some(mut incoming) = open.take() else { return Ok(false) };
            incoming.file.write(&bytes).map_err(failed)?;
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            incoming.missing = incoming.missing.saturating_sub(length);
            incoming
        }
    };
    if incoming.missing > 0 {
        *open = Some(incoming);
        return Ok(false);
    }
    let Incoming { head, file, .. } = incoming;
    let (server, media_id) = head
        .uri
        .parts()
        .map_err(|error| Error::Content(format!("the name of a media file: {error}")))?;
    if server != origin {
        return Err(Error::Content(format!("{} is not of {origin}", head.uri)));
    }
    let description = Description { content_type: head.content_type, filename: head.filename };
    add_remote(&app.store, server, media_id, file, description, now).map_err(failed)?;
    Ok(true)
}

fn failed(error: MediaError) -> Error {
    match error {
        MediaError::Store(error) => Error::Store(error),
        other => Error::Content(format!("a media file could not be kept: {other}")),
    }
}
