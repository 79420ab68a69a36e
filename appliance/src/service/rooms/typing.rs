//! Typing: a member says so, and their client forgets to say that it ended.

use std::time::Duration;

use ruma::{RoomId, UserId};
use sallyport_core::{limits::TYPING_MS_MAX, time::Millis};

use super::{Error, joined_room};
use crate::app::App;

/// Notes that a member types, or has stopped; answers until when.
///
/// # Errors
/// If the user is not joined to the room.
pub fn set(
    app: &App,
    room_id: &RoomId,
    user_id: &UserId,
    timeout: Option<Duration>,
    now: Millis,
) -> Result<Option<Millis>, Error> {
    app.store.read(|read| joined_room(read, room_id, user_id).map(|_| ()))?;
    let until = timeout.map(|wanted| now.plus(wanted.min(Duration::from_millis(TYPING_MS_MAX))));
    if app.typing.set(room_id, user_id, until) {
        app.notify.ring_room(room_id);
    }
    Ok(until)
}

/// Forgets those whose time has passed, and tells who watches.
pub fn expire(app: &App, now: Millis) {
    for room_id in app.typing.expire(now) {
        app.notify.ring_room(&room_id);
    }
}
