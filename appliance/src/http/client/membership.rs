//! [Room membership](https://spec.matrix.org/v1.19/client-server-api/#room-membership).

use std::sync::Arc;

use ruma::{
    OwnedRoomId, OwnedRoomOrAliasId, OwnedUserId, RoomId, UserId,
    api::client::{
        knock::knock_room::v3 as knock_room,
        membership::{
            ban_user::v3 as ban_user,
            forget_room::v3 as forget_room,
            invite_user::v3::{self as invite_user, InvitationRecipient},
            join_room_by_id::v3 as join_room,
            join_room_by_id_or_alias::v3 as join_room_or_alias,
            joined_rooms::v3 as joined_rooms,
            kick_user::v3 as kick_user,
            leave_room::v3 as leave_room,
            unban_user::v3 as unban_user,
        },
    },
};

use crate::{
    app::App,
    http::{Routes, error::ApiError, route::route},
    service::{
        rooms::{
            self, directory,
            membership::{self, Change},
        },
        sessions::Identity,
    },
};

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![
        route(joined),
        route(invite),
        route(join),
        route(join_by_alias),
        route(knock),
        route(forget),
        route(leave),
        route(kick),
        route(ban),
        route(unban),
    ]
}

async fn joined(
    app: Arc<App>,
    identity: Identity,
    _: joined_rooms::Request,
) -> Result<joined_rooms::Response, ApiError> {
    let rooms = app
        .run(move |app| app.store.read(|read| membership::joined_rooms(read, &identity.user_id)))
        .await?;
    Ok(joined_rooms::Response::new(rooms))
}

async fn invite(
    app: Arc<App>,
    identity: Identity,
    request: invite_user::Request,
) -> Result<invite_user::Response, ApiError> {
    let InvitationRecipient::UserId(recipient) = request.recipient else {
        return Err(ApiError::invalid_param("this server invites by user id only"));
    };
    let step = Step::of(request.room_id, identity, recipient.reason).on(recipient.user_id);
    step.take(&app, membership::invite).await?;
    Ok(invite_user::Response::new())
}

async fn join(
    app: Arc<App>,
    identity: Identity,
    request: join_room::Request,
) -> Result<join_room::Response, ApiError> {
    let room_id = request.room_id.clone();
    Step::of(request.room_id, identity, request.reason).take(&app, membership::join).await?;
    Ok(join_room::Response::new(room_id))
}

async fn join_by_alias(
    app: Arc<App>,
    identity: Identity,
    request: join_room_or_alias::Request,
) -> Result<join_room_or_alias::Response, ApiError> {
    let room_id = resolve(&app, request.room_id_or_alias).await?;
    let step = Step::of(room_id.clone(), identity, request.reason);
    step.take(&app, membership::join).await?;
    Ok(join_room_or_alias::Response::new(room_id))
}

async fn knock(
    app: Arc<App>,
    identity: Identity,
    request: knock_room::Request,
) -> Result<knock_room::Response, ApiError> {
    let room_id = resolve(&app, request.room_id_or_alias).await?;
    let step = Step::of(room_id.clone(), identity, request.reason);
    step.take(&app, membership::knock).await?;
    Ok(knock_room::Response::new(room_id))
}

async fn forget(
    app: Arc<App>,
    identity: Identity,
    request: forget_room::Request,
) -> Result<forget_room::Response, ApiError> {
    app.run(move |app| membership::forget(app, &request.room_id, &identity.user_id)).await?;
    Ok(forget_room::Response::new())
}

async fn leave(
    app: Arc<App>,
    identity: Identity,
    request: leave_room::Request,
) -> Result<leave_room::Response, ApiError> {
    Step::of(request.room_id, identity, request.reason).take(&app, membership::leave).await?;
    Ok(leave_room::Response::new())
}

async fn kick(
    app: Arc<App>,
    identity: Identity,
    request: kick_user::Request,
) -> Result<kick_user::Response, ApiError> {
    let step = Step::of(request.room_id, identity, request.reason).on(request.user_id);
    step.take(&app, membership::kick).await?;
    Ok(kick_user::Response::new())
}

async fn ban(
    app: Arc<App>,
    identity: Identity,
    request: ban_user::Request,
) -> Result<ban_user::Response, ApiError> {
    let step = Step::of(request.room_id, identity, request.reason).on(request.user_id);
    step.take(&app, membership::ban).await?;
    Ok(ban_user::Response::new())
}

async fn unban(
    app: Arc<App>,
    identity: Identity,
    request: unban_user::Request,
) -> Result<unban_user::Response, ApiError> {
    let step = Step::of(request.room_id, identity, request.reason).on(request.user_id);
    step.take(&app, membership::unban).await?;
    Ok(unban_user::Response::new())
}

/// A change of membership that owns its parts, to be carried to another thread.
struct Step {
    room_id: OwnedRoomId,
    sender: OwnedUserId,
    target: OwnedUserId,
    reason: Option<String>,
}

impl Step {
    /// A change of the sender's own membership.
    fn of(room_id: OwnedRoomId, identity: Identity, reason: Option<String>) -> Self {
        Self { room_id, target: identity.user_id.clone(), sender: identity.user_id, reason }
    }

    /// The same change, of another's membership.
    fn on(self, target: OwnedUserId) -> Self {
        Self { target, ..self }
    }

    async fn take(
        self,
        app: &Arc<App>,
        use_case: fn(&App, Change<'_>) -> Result<(), rooms::Error>,
    ) -> Result<(), ApiError> {
        let now = (app.clock)();
        app.run(move |app| {
            let room_id: &RoomId = &self.room_id;
            let (sender, target): (&UserId, &UserId) = (&self.sender, &self.target);
            let reason = self.reason.as_deref();
            use_case(app, Change { room_id, sender, target, reason, now })
        })
        .await
    }
}

async fn resolve(app: &Arc<App>, id: OwnedRoomOrAliasId) -> Result<OwnedRoomId, ApiError> {
    app.run(move |app| directory::resolve(app, &id)).await
}
