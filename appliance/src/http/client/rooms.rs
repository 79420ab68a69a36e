//! [Rooms](https://spec.matrix.org/v1.19/client-server-api/#rooms-1): creation, and what went wrong
//! about a room in the specification's codes.

use std::sync::Arc;

use http::StatusCode;
use ruma::api::{
    client::room::{create_room::v3 as create_room, upgrade_room::v3 as upgrade_room},
    error::ErrorKind,
};
use sallyport_core::room::Refusal;

use crate::{
    app::App,
    http::{Routes, error::ApiError, route::route},
    service::{
        rooms::{self, upgrade::Upgrade},
        sessions::Identity,
    },
};

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![route(create_room), route(upgrade_room)]
}

async fn create_room(
    app: Arc<App>,
    identity: Identity,
    request: create_room::Request,
) -> Result<create_room::Response, ApiError> {
    let now = (app.clock)();
    let room_id =
        app.run(move |app| rooms::create::create(app, &identity.user_id, request, now)).await?;
    Ok(create_room::Response::new(room_id))
}

async fn upgrade_room(
    app: Arc<App>,
    identity: Identity,
    request: upgrade_room::Request,
) -> Result<upgrade_room::Response, ApiError> {
    let now = (app.clock)();
    let new = app
        .run(move |app| {
            let upgrade = Upgrade {
                room_id: &request.room_id,
                user_id: &identity.user_id,
                version: request.new_version,
                additional_creators: request.additional_creators.into_iter().collect(),
                now,
            };
            rooms::upgrade::upgrade(app, &upgrade)
        })
        .await?;
    Ok(upgrade_room::Response::new(new))
}

impl From<rooms::Error> for ApiError {
    fn from(error: rooms::Error) -> Self {
        use rooms::Error;
        let message = error.to_string();
        let bad = |kind| Self::new(StatusCode::BAD_REQUEST, kind, message.clone());
        match error {
            Error::NotInRoom | Error::Forbidden(_) => Self::forbidden(message),
            Error::Refused(Refusal::UnknownRoom) => Self::forbidden("you are not in this room"),
            Error::Refused(Refusal::Format(_)) => bad(ErrorKind::BadJson),
            Error::Refused(_) => Self::forbidden(message),
            Error::NotFound(_) => Self::not_found(message),
            Error::Invalid(_) => Self::invalid_param(message),
            Error::BadJson(_) => Self::bad_json(message),
            Error::BadAlias(_) => bad(ErrorKind::BadAlias),
            Error::AliasTaken => bad(ErrorKind::RoomInUse),
            Error::NotAPeer(_) => Self::forbidden(message),
            Error::UnsupportedVersion(_) => bad(ErrorKind::UnsupportedRoomVersion),
            Error::DuplicateAnnotation => bad(ErrorKind::DuplicateAnnotation),
            Error::NotFounded(_) => bad(ErrorKind::InvalidRoomState),
            Error::Seal(_) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::TooLarge, message)
            }
            Error::Busy => Self::unavailable(error),
            Error::Peers(_) => Self::internal(error),
            Error::NoRandomness(source) => source.into(),
            Error::Store(source) => source.into(),
        }
    }
}
