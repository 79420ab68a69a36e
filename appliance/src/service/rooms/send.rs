//! Sending: from what a member wants to an event of the room.
//!
//! This is the busiest path of the box. It reads a few rows of the room and of the sender, writes
//! rows of the event alone, and does nothing per member.

use ruma::{
    CanonicalJsonValue, EventId, OwnedDeviceId, OwnedEventId, OwnedRoomId, OwnedTransactionId,
    events::TimelineEventType,
};
use sallyport_core::{
    limits::DRAFTS_MAX,
    room::{self, Draft, Intent, RoomView as _},
};
use sallyport_store::{Annotation, Outcome, Read, Transaction, Write};

use super::Error;
use crate::app::App;

/// What a member wants to send, and by which request.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The room.
    pub room_id: OwnedRoomId,
    /// What to send.
    pub intent: Intent,
    /// Device and transaction id, if the endpoint has one: asked again, the answer is the same.
    pub transaction: Option<(OwnedDeviceId, OwnedTransactionId)>,
}

/// What came of looking at a wish.
#[derive(Debug)]
pub enum Attempt {
    /// The same request has sent it before.
    Sent(OwnedEventId),
    /// It is authorised.
    Draft(Draft),
}

impl Wish {
    /// A wish that no transaction id protects from being done twice.
    #[must_use]
    pub fn new(room_id: OwnedRoomId, intent: Intent) -> Self {
        Self { room_id, intent, transaction: None }
    }

    fn transaction(&self) -> Option<Transaction<'_>> {
        let (device_id, txn_id) = self.transaction.as_ref()?;
        Some(Transaction { device_id, txn_id })
    }
}

/// Sends an event and waits until it is on disk.
///
/// # Errors
/// If the room's rules refuse it or it does not fit.
pub fn send(app: &App, wish: Wish) -> Result<OwnedEventId, Error> {
    for _ in 0..DRAFTS_MAX {
        let draft = match attempt(app, &wish)? {
            Attempt::Sent(event_id) => return Ok(event_id),
            Attempt::Draft(draft) => draft,
        };
        let (wish, mac) = (wish.clone(), app.event_mac.clone());
        match app.store.write(move |write| commit(write, &wish, draft, &mac))? {
            Outcome::Done(event_id) => return Ok(event_id),
            Outcome::Stale => {}
        }
    }
    Err(Error::Busy)
}

/// Authorises a wish on a snapshot of the database.
///
/// # Errors
/// If the room's rules refuse it.
pub fn attempt(app: &App, wish: &Wish) -> Result<Attempt, Error> {
    app.store.read(|read| {
        if let Some(transaction) = wish.transaction()
            && let Some(event_id) = read.sent_before(&wish.intent.sender, &transaction)?
        {
            return Ok(Attempt::Sent(event_id));
        }
        let view = read.view(&wish.room_id)?;
        let draft = room::draft(&view, &wish.room_id, wish.intent.clone())?;
        let draft = draft.map_err(Error::Refused)?;
        if wish.intent.kind == TimelineEventType::RoomRedaction {
            check_redaction(read, wish)?;
        }
        Ok(Attempt::Draft(draft))
    })
}

/// Whether a member may redact what they want to: their own events, and with the power to redact those of others.
///
/// The rules that servers apply to one another are wider ([`room::may_redact`]): a server vouches for its own users.
fn check_redaction(read: &Read<'_>, wish: &Wish) -> Result<(), Error> {
    const NOT_YOURS: Error = Error::Forbidden("you may not redact what others have sent");
    let Intent { sender, redacts, .. } = &wish.intent;
    let target = redacts.as_deref().ok_or(Error::Invalid("a redaction names its event"))?;
    let target = read.event(target)?;
    if let Some(target) = &target {
        if target.pdu.room_id() != wish.room_id {
            return Err(Error::Invalid("the event is in another room"));
        }
        if matches!(target.pdu.kind(), TimelineEventType::RoomCreate) {
            return Err(Error::Forbidden("what created the room cannot be redacted"));
        }
        if target.pdu.sender() == sender {
            return Ok(());
        }
    }
    let view = read.view(&wish.room_id)?;
    let (Some(room), Some(rules)) = (view.room(), view.rules()) else {
        return Err(Error::NotInRoom);
    };
    let levels = room::power_levels(&view, room.state, &rules)?;
    if levels.is_some_and(|levels| levels.user_can_redact_event_of_other(sender)) {
        Ok(())
    } else {
        Err(target.map_or(Error::NotFound("there is no such event"), |_| NOT_YOURS))
    }
}

/// Makes a draft part of its room; a redaction takes effect in the same command.
///
/// # Errors
/// If it is too large, or an annotation that is there already.
pub fn commit(
    write: &mut Write<'_>,
    wish: &Wish,
    draft: Draft,
    mac: &ring::hmac::Key,
) -> Result<Outcome<OwnedEventId>, Error> {
    // Two copies of one request may have been drafted side by side.
    if let Some(transaction) = wish.transaction()
        && let Some(event_id) = write.sent_before(&wish.intent.sender, &transaction)?
    {
        return Ok(Outcome::Done(event_id));
    }
    if annotated_before(write, wish)? {
        return Err(Error::DuplicateAnnotation);
    }
    let event_id = match write.append(draft, wish.transaction(), mac)? {
        Outcome::Stale => return Ok(Outcome::Stale),
        Outcome::Done(placed) => placed.map_err(Error::Seal)?.event_id,
    };
    if wish.intent.redacts.is_some() {
        apply_redaction(write, wish, &event_id)?;
    }
    Ok(Outcome::Done(event_id))
}

/// Whether the same sender has said the same of the same event: reactions are counted by sender.
fn annotated_before(read: &Read<'_>, wish: &Wish) -> Result<bool, Error> {
    let Intent { sender, kind, content, .. } = &wish.intent;
    let Some(CanonicalJsonValue::Object(relation)) = content.get("m.relates_to") else {
        return Ok(false);
    };
    let field = |name| relation.get(name).and_then(CanonicalJsonValue::as_str);
    let (Some("m.annotation"), Some(target), Some(key)) =
        (field("rel_type"), field("event_id"), field("key"))
    else {
        return Ok(false);
    };
    let Ok(target) = <&EventId>::try_from(target) else { return Ok(false) };
    let Some(room) = read.room(&wish.room_id)? else { return Ok(false) };
    let kind = kind.to_string();
    let annotation = Annotation { target, sender, kind: &kind, key };
    Ok(read.has_annotation(&room, &annotation)?)
}

fn apply_redaction(
    write: &mut Write<'_>,
    wish: &Wish,
    redaction_id: &EventId,
) -> Result<(), Error> {
    let (room, target) = {
        let view = write.view(&wish.room_id)?;
        let (Some(room), Some(rules)) = (view.room().cloned(), view.rules()) else {
            return Ok(());
        };
        let Some(redaction) = view.event(redaction_id)? else { return Ok(()) };
        let Some(target) = redaction.pdu.redacts() else { return Ok(()) };
        let Some(known) = view.event(target)? else { return Ok(()) };
        if !room::may_redact(&view, room.state, &rules, &redaction.pdu, &known.pdu)? {
            return Ok(());
        }
        (room, target.to_owned())
    };
    write.apply_redaction(&room, &target, redaction_id)?;
    Ok(())
}
