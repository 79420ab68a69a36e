//! [Sending events](https://spec.matrix.org/v1.19/client-server-api/#sending-events-to-a-room) and
//! [redactions](https://spec.matrix.org/v1.19/client-server-api/#redactions).

use std::sync::Arc;

use ruma::{
    OwnedEventId,
    api::client::{
        message::send_message_event::v3 as send_message, redact::redact_event::v3 as redact,
        state::send_state_event::v3 as send_state,
    },
    events::TimelineEventType,
};
use sallyport_core::{
    limits::{DRAFTS_MAX, REASON_BYTES_MAX},
    room::Intent,
};
use sallyport_store::Outcome;
use tokio::sync::oneshot;

use crate::{
    app::App,
    http::{Routes, error::ApiError, route::route},
    service::{
        rooms::{
            self, Wish,
            send::{Attempt, attempt, commit},
            state::{check_message_kind, parse_content, wish},
        },
        sessions::Identity,
    },
};

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![
        route(send_state_event).last_argument_optional(),
        route(send_message_event),
        route(redact_event),
    ]
}

async fn send_message_event(
    app: Arc<App>,
    identity: Identity,
    request: send_message::Request,
) -> Result<send_message::Response, ApiError> {
    let kind = TimelineEventType::from(request.event_type);
    check_message_kind(&kind)?;
    let content = parse_content(request.body.json().get())?;
    let redacts = match (&kind, content.get("redacts")) {
        (TimelineEventType::RoomRedaction, Some(redacts)) => {
            let redacts = redacts.as_str().and_then(|id| OwnedEventId::try_from(id).ok());
            Some(redacts.ok_or_else(|| ApiError::bad_json("redacts is not an event id"))?)
        }
        (TimelineEventType::RoomRedaction, None) => {
            return Err(ApiError::bad_json("a redaction names the event that it redacts"));
        }
        _ => None,
    };
    let intent = Intent {
        sender: identity.user_id,
        kind,
        state_key: None,
        content,
        redacts,
        origin_server_ts: (app.clock)(),
    };
    let transaction = Some((identity.device_id, request.txn_id));
    let event_id = send(&app, Wish { room_id: request.room_id, intent, transaction }).await?;
    Ok(send_message::Response::new(event_id))
}

async fn send_state_event(
    app: Arc<App>,
    identity: Identity,
    request: send_state::Request,
) -> Result<send_state::Response, ApiError> {
    let now = (app.clock)();
    let event_id = app
        .run(move |app| {
            let send_state::Request { room_id, event_type, state_key, body, .. } = request;
            let content = parse_content(body.json().get())?;
            let user_id = &identity.user_id;
            let wish = wish(app, &room_id, user_id, event_type, &state_key, content, now)?;
            rooms::send(app, wish)
        })
        .await?;
    Ok(send_state::Response::new(event_id))
}

async fn redact_event(
    app: Arc<App>,
    identity: Identity,
    request: redact::Request,
) -> Result<redact::Response, ApiError> {
    if request.reason.as_ref().is_some_and(|reason| reason.len() > REASON_BYTES_MAX) {
        return Err(ApiError::invalid_param("the reason is too long"));
    }
    let content = request.reason.map(|reason| ("reason".to_owned(), reason.into()));
    let intent = Intent {
        sender: identity.user_id,
        kind: TimelineEventType::RoomRedaction,
        state_key: None,
        content: content.into_iter().collect(),
        redacts: Some(request.event_id),
        origin_server_ts: (app.clock)(),
    };
    let transaction = Some((identity.device_id, request.txn_id));
    let event_id = send(&app, Wish { room_id: request.room_id, intent, transaction }).await?;
    Ok(redact::Response::new(event_id))
}

/// As [`rooms::send()`], but without holding a thread while the writer works.
async fn send(app: &Arc<App>, wish: Wish) -> Result<OwnedEventId, ApiError> {
    let wish = Arc::new(wish);
    for _ in 0..DRAFTS_MAX {
        let wish = Arc::clone(&wish);
        let answer = app
            .run(move |app| match attempt(app, &wish)? {
                Attempt::Sent(event_id) => Ok(Err(event_id)),
                Attempt::Draft(draft) => {
                    let (done, answer) = oneshot::channel();
                    let mac = app.event_mac.clone();
                    app.store.submit(
                        move |write| commit(write, &wish, draft, &mac),
                        // Nobody listens when the client has gone: the event is sent all the same.
                        move |outcome| drop(done.send(outcome)),
                    );
                    Ok::<_, rooms::Error>(Ok(answer))
                }
            })
            .await?;
        let outcome = match answer {
            Ok(answer) => answer.await.map_err(|_| sallyport_store::Error::Closed)?,
            Err(event_id) => return Ok(event_id),
        };
        match outcome? {
            Outcome::Done(event_id) => return Ok(event_id),
            Outcome::Stale => {}
        }
    }
    Err(rooms::Error::Busy.into())
}
