//! Whether a bundle may be imported now: its place in the sequence, what it builds on, and the card with which a restored peer begins anew.

use sallyport_core::{
    bundle::{Authentic, Header, Last, Manifest, Position, Sequence, sequence},
    card::Card,
    digest::Sha256,
};
use sallyport_store::{Peer, Received, Store};

use super::Error;
use crate::{app::App, service::peers};

/// Where a bundle belongs among those that were imported from its sender.
pub(super) fn place(store: &Store, peer: &Peer, header: &Header) -> Result<Sequence, Error> {
    let card = Card::stored(&peer.card).map_err(peers::Error::from)?;
    let incarnation = card.content().incarnation;
    let received = peer.received.filter(|received| received.incarnation == incarnation);
    let last =
        received.map(|Received { seq, manifest, .. }| Last { seq, manifest: Sha256(manifest) });
    let position = Position { incarnation, last };
    let (known, retired) = store.read(|read| {
        let known = read.imported_manifest(&peer.server, header.seq)?;
        Ok::<_, sallyport_store::Error>((known, read.retired_incarnations(&peer.server)?))
    })?;
    Ok(sequence(&position, |_| known.map(Sha256), &retired, header))
}

/// The card with which the enclave root says that the peer was restored: a bundle of a life that we do not know must bring it.
pub(super) fn new_life(
    peer: &Peer,
    authentic: &Authentic,
    place: Sequence,
) -> Result<Option<Vec<u8>>, Error> {
    if place != Sequence::NewIncarnation {
        return Ok(None);
    }
    let bytes = authentic.manifest().card.as_ref().ok_or(Error::Sequence(place))?;
    let known = Card::stored(&peer.card).map_err(peers::Error::from)?;
    let card = known.renew(bytes).map_err(|_not_newer| Error::Sequence(place))?;
    if card.content().incarnation != authentic.header().incarnation {
        return Err(Error::Sequence(place));
    }
    Ok(Some(bytes.clone()))
}

/// Every bundle repeats what was not acknowledged, so one that was lost is made up for by the next, if that says so.
pub(super) fn check_prerequisites(
    app: &App,
    peer: &Peer,
    manifest: &Manifest,
    place: Sequence,
) -> Result<(), Error> {
    let (delivered, retired) = app.store.read(|read| {
        let delivered = read.incoming_number(&peer.server, manifest.incarnation, "to_device")?;
        Ok::<_, sallyport_store::Error>((delivered, read.retired_incarnations(&peer.server)?))
    })?;
    // Nothing has come of this life: then what came of the one before does not count, and what it had told is with us.
    if delivered.is_none() && (place == Sequence::NewIncarnation || !retired.is_empty()) {
        return Ok(());
    }
    let needed = i64::try_from(manifest.prerequisites.to_device).unwrap_or(i64::MAX);
    if needed > delivered.unwrap_or_default() { Err(Error::Sequence(place)) } else { Ok(()) }
}
