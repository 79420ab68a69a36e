//! [Typing](https://spec.matrix.org/v1.19/client-server-api/#typing-notifications),
//! [receipts](https://spec.matrix.org/v1.19/client-server-api/#receipts) and
//! [read markers](https://spec.matrix.org/v1.19/client-server-api/#read-and-unread-markers).

use std::{sync::Arc, time::Duration};

use ruma::{
    OwnedEventId, OwnedRoomId,
    api::client::{
        read_marker::set_read_marker::v3 as set_read_marker,
        receipt::create_receipt::v3::{self as create_receipt, ReceiptType},
        typing::create_typing_event::v3::{self as create_typing, Typing},
    },
    events::receipt::ReceiptThread,
};

use crate::{
    app::App,
    http::{Routes, error::ApiError, route::route},
    service::{
        rooms::{
            receipts::{Receipt, acknowledge, mark_fully_read},
            typing,
        },
        sessions::Identity,
    },
};

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![route(set_typing), route(send_receipt), route(set_markers)]
}

async fn set_typing(
    app: Arc<App>,
    identity: Identity,
    request: create_typing::Request,
) -> Result<create_typing::Response, ApiError> {
    if request.user_id != identity.user_id {
        return Err(ApiError::forbidden("you cannot type for others"));
    }
    let timeout = match request.state {
        Typing::Yes(info) => Some(info.timeout),
        Typing::No => None,
    };
    let now = (app.clock)();
    let until = app
        .run(move |app| typing::set(app, &request.room_id, &identity.user_id, timeout, now))
        .await?;
    if let Some(until) = until {
        let app = Arc::clone(&app);
        tokio::spawn(async move {
            tokio::time::sleep(until.since(now) + Duration::from_millis(1)).await;
            typing::expire(&app, (app.clock)());
        });
    }
    Ok(create_typing::Response::new())
}

async fn send_receipt(
    app: Arc<App>,
    identity: Identity,
    request: create_receipt::Request,
) -> Result<create_receipt::Response, ApiError> {
    let create_receipt::Request { room_id, receipt_type, event_id, thread, .. } = request;
    match receipt_type {
        ReceiptType::Read => read_to(&app, identity, room_id, event_id, thread, false).await?,
        ReceiptType::ReadPrivate => {
            read_to(&app, identity, room_id, event_id, thread, true).await?;
        }
        ReceiptType::FullyRead if thread != ReceiptThread::Unthreaded => {
            return Err(ApiError::invalid_param("there is one read marker for all threads"));
        }
        ReceiptType::FullyRead => fully_read(&app, identity, room_id, event_id).await?,
        _ => return Err(ApiError::invalid_param("this kind of receipt is not known")),
    }
    Ok(create_receipt::Response::new())
}

async fn set_markers(
    app: Arc<App>,
    identity: Identity,
    request: set_read_marker::Request,
) -> Result<set_read_marker::Response, ApiError> {
    let room_id = || request.room_id.clone();
    for (event_id, private) in [(request.read_receipt, false), (request.private_read_receipt, true)]
    {
        if let Some(event_id) = event_id {
            let thread = ReceiptThread::Unthreaded;
            read_to(&app, identity.clone(), room_id(), event_id, thread, private).await?;
        }
    }
    if let Some(event_id) = request.fully_read {
        fully_read(&app, identity, request.room_id, event_id).await?;
    }
    Ok(set_read_marker::Response::new())
}

async fn read_to(
    app: &Arc<App>,
    identity: Identity,
    room_id: OwnedRoomId,
    event_id: OwnedEventId,
    thread: ReceiptThread,
    private: bool,
) -> Result<(), ApiError> {
    let now = (app.clock)();
    app.run(move |app| {
        let user_id = &identity.user_id;
        let (room_id, event_id, thread) = (&*room_id, &*event_id, &thread);
        acknowledge(app, &Receipt { room_id, user_id, event_id, private, thread, now })
    })
    .await
}

/// The read marker is kept among the member's account data of the room.
async fn fully_read(
    app: &Arc<App>,
    identity: Identity,
    room_id: OwnedRoomId,
    event_id: OwnedEventId,
) -> Result<(), ApiError> {
    app.run(move |app| mark_fully_read(app, &identity.user_id, room_id, event_id)).await
}
