//! What members say that they have read.

use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId, UserId, events::receipt::ReceiptThread};
use sallyport_core::time::Millis;
use sallyport_store::{NewReceipt, Read};

use super::{
    Error,
    relations::{relation, thread_root},
};
use crate::app::App;

/// A receipt, as a client sends it.
#[derive(Debug, Clone, Copy)]
pub struct Receipt<'a> {
    /// The room.
    pub room_id: &'a RoomId,
    /// Who has read.
    pub user_id: &'a UserId,
    /// The newest event that was read.
    pub event_id: &'a EventId,
    /// Whether only the user's own devices may know.
    pub private: bool,
    /// What was read: a thread, what is outside of threads, or everything.
    pub thread: &'a ReceiptThread,
    /// When.
    pub now: Millis,
}

/// Notes what a member has read. A receipt never moves back.
///
/// # Errors
/// If the user is not joined to the room, or the event is not in the thread.
pub fn acknowledge(app: &App, receipt: &Receipt<'_>) -> Result<(), Error> {
    let Receipt { room_id, user_id, event_id, private, thread, now } = *receipt;
    if !app.store.read(|read| is_in_thread(read, event_id, thread))? {
        return Err(Error::Invalid("the event is not in this thread"));
    }
    let kind = if private { "m.read.private" } else { "m.read" };
    let thread = thread.as_str().map(str::to_owned);
    let (room_id, user_id) = (room_id.to_owned(), user_id.to_owned());
    let event_id = event_id.to_owned();
    app.store.write(move |write| {
        let room = super::joined_room(write, &room_id, &user_id)?;
        let new = NewReceipt {
            user_id: &user_id,
            kind,
            thread: thread.as_deref(),
            event_id: &event_id,
            ts: now,
        };
        write.store_receipt(&room, &new)?;
        Ok(())
    })
}

/// Whether an event is in a thread. A root, and what relates to it, is in its thread and outside of it.
fn is_in_thread(
    read: &Read<'_>,
    event_id: &EventId,
    thread: &ReceiptThread,
) -> Result<bool, sallyport_store::Error> {
    let root = match thread {
        ReceiptThread::Unthreaded => return Ok(true),
        ReceiptThread::Main => None,
        ReceiptThread::Thread(root) => Some(root),
        _ => return Ok(false),
    };
    let Some(event) = read.event(event_id)? else { return Ok(root.is_none()) };
    let found = thread_root(read, &event)?;
    let Some(root) = root else { return Ok(found.is_none()) };
    let is_about_root = || relation(&event).is_some_and(|relation| relation.event_id == *root);
    Ok(match found {
        Some(found) => found == *root,
        None => event_id == root || is_about_root(),
    })
}

/// Moves a member's read marker, which their devices share. It is account data of the room.
///
/// # Errors
/// If the user is not joined to the room.
pub fn mark_fully_read(
    app: &App,
    user_id: &UserId,
    room_id: OwnedRoomId,
    event_id: OwnedEventId,
) -> Result<(), Error> {
    let user_id = user_id.to_owned();
    app.store.write(move |write| {
        super::joined_room(write, &room_id, &user_id)?;
        let content = serde_json::json!({ "event_id": event_id }).to_string();
        Ok(write.set_account_data(&user_id, Some(&room_id), "m.fully_read", &content)?)
    })
}
