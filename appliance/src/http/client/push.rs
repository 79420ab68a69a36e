//! [Push notifications](https://spec.matrix.org/v1.19/client-server-api/#push-notifications): rules and pushers.
//!
//! Pushers are kept, and nothing is ever pushed: there is no network to push over.

use std::sync::Arc;

use http::StatusCode;
use ruma::{
    api::{
        client::push::{
            delete_pushrule::v3 as delete_rule,
            get_notifications::v3::{self as get_notifications, Notification},
            get_pushers::v3 as get_pushers,
            get_pushrule::v3 as get_rule,
            get_pushrule_actions::v3 as get_actions,
            get_pushrule_enabled::v3 as get_enabled,
            get_pushrules_all::v3 as get_all,
            get_pushrules_global_scope::v3 as get_global,
            set_pusher::v3::{self as set_pusher, PusherAction},
            set_pushrule::v3 as set_rule,
            set_pushrule_actions::v3 as set_actions,
            set_pushrule_enabled::v3 as set_enabled,
        },
        error::ErrorKind,
    },
    push::Ruleset,
};
use sallyport_core::limits::{ACCOUNT_DATA_BYTES_MAX, IDENTIFIER_BYTES_MAX, PUSHERS_MAX};
use sallyport_store::StoredPusher;

use super::{
    state::format,
    timeline::limit,
    tokens::{page_token, position_of},
};
use crate::{
    app::App,
    http::{Routes, error::ApiError, route::route},
    service::{
        notifications::{self, NotificationQuery},
        push_rules::{self, PushRuleError},
        sessions::Identity,
    },
};

/// Notifications of a page whose request names no limit.
const NOTIFICATIONS_DEFAULT: usize = 20;

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![
        route(all).also("/_matrix/client/v3/pushrules"),
        route(global).also("/_matrix/client/v3/pushrules/global"),
        route(rule),
        route(put_rule),
        route(remove_rule),
        route(actions),
        route(put_actions),
        route(enabled),
        route(put_enabled),
        route(pushers),
        route(put_pusher),
        route(notifications),
    ]
}

async fn rules(app: &Arc<App>, identity: Identity) -> Result<Ruleset, ApiError> {
    let rules = move |app: &App| app.store.read(|read| push_rules::rules(read, &identity.user_id));
    app.run(rules).await
}

async fn all(
    app: Arc<App>,
    identity: Identity,
    _: get_all::Request,
) -> Result<get_all::Response, ApiError> {
    Ok(get_all::Response::new(rules(&app, identity).await?))
}

async fn global(
    app: Arc<App>,
    identity: Identity,
    _: get_global::Request,
) -> Result<get_global::Response, ApiError> {
    Ok(get_global::Response::new(rules(&app, identity).await?))
}

async fn rule(
    app: Arc<App>,
    identity: Identity,
    request: get_rule::Request,
) -> Result<get_rule::Response, ApiError> {
    let rules = rules(&app, identity).await?;
    let rule = rules.get(request.kind, &request.rule_id).ok_or_else(no_such_rule)?;
    Ok(get_rule::Response::new(rule.to_owned().into()))
}

async fn put_rule(
    app: Arc<App>,
    identity: Identity,
    request: set_rule::Request,
) -> Result<set_rule::Response, ApiError> {
    let set_rule::Request { rule, before, after, .. } = request;
    if rule.rule_id().len() > IDENTIFIER_BYTES_MAX {
        return Err(ApiError::invalid_param("The id of the rule is too long."));
    }
    let insert = move |rules: &mut Ruleset| rules.insert(rule, after.as_deref(), before.as_deref());
    app.run(move |app| push_rules::change(&app.store, identity.user_id, insert)).await?;
    Ok(set_rule::Response::new())
}

async fn remove_rule(
    app: Arc<App>,
    identity: Identity,
    request: delete_rule::Request,
) -> Result<delete_rule::Response, ApiError> {
    let remove = move |rules: &mut Ruleset| rules.remove(request.kind, &request.rule_id);
    app.run(move |app| push_rules::change(&app.store, identity.user_id, remove)).await?;
    Ok(delete_rule::Response::new())
}

async fn actions(
    app: Arc<App>,
    identity: Identity,
    request: get_actions::Request,
) -> Result<get_actions::Response, ApiError> {
    let rules = rules(&app, identity).await?;
    let rule = rules.get(request.kind, &request.rule_id).ok_or_else(no_such_rule)?;
    Ok(get_actions::Response::new(rule.actions().to_vec()))
}

async fn put_actions(
    app: Arc<App>,
    identity: Identity,
    request: set_actions::Request,
) -> Result<set_actions::Response, ApiError> {
    let set_actions::Request { kind, rule_id, actions, .. } = request;
    let set = move |rules: &mut Ruleset| rules.set_actions(kind, &rule_id, actions);
    app.run(move |app| push_rules::change(&app.store, identity.user_id, set)).await?;
    Ok(set_actions::Response::new())
}

async fn enabled(
    app: Arc<App>,
    identity: Identity,
    request: get_enabled::Request,
) -> Result<get_enabled::Response, ApiError> {
    let rules = rules(&app, identity).await?;
    let rule = rules.get(request.kind, &request.rule_id).ok_or_else(no_such_rule)?;
    Ok(get_enabled::Response::new(rule.enabled()))
}

async fn put_enabled(
    app: Arc<App>,
    identity: Identity,
    request: set_enabled::Request,
) -> Result<set_enabled::Response, ApiError> {
    let set_enabled::Request { kind, rule_id, enabled, .. } = request;
    let set = move |rules: &mut Ruleset| rules.set_enabled(kind, &rule_id, enabled);
    app.run(move |app| push_rules::change(&app.store, identity.user_id, set)).await?;
    Ok(set_enabled::Response::new())
}

async fn pushers(
    app: Arc<App>,
    identity: Identity,
    _: get_pushers::Request,
) -> Result<get_pushers::Response, ApiError> {
    let list = move |app: &App| app.store.read(|read| read.pushers(&identity.user_id));
    let stored = app.run(list).await?;
    let pushers = stored.iter().map(|pusher| serde_json::from_str(&pusher.content));
    let pushers = pushers.collect::<serde_json::Result<_>>().map_err(ApiError::internal)?;
    Ok(get_pushers::Response::new(pushers))
}

async fn put_pusher(
    app: Arc<App>,
    identity: Identity,
    request: set_pusher::Request,
) -> Result<set_pusher::Response, ApiError> {
    let Identity { user_id, device_id } = identity;
    match request.action {
        PusherAction::Post(data) => {
            let pusher = data.pusher;
            let content = serde_json::to_string(&pusher).map_err(ApiError::internal)?;
            if content.len() > ACCOUNT_DATA_BYTES_MAX {
                return Err(ApiError::too_large(ACCOUNT_DATA_BYTES_MAX as u64));
            }
            let (app_id, pushkey) = (pusher.ids.app_id, pusher.ids.pushkey);
            let pusher = StoredPusher { app_id, pushkey, content };
            let set = move |app: &App| {
                app.store.write(move |write| {
                    write.set_pusher(&user_id, &device_id, &pusher, PUSHERS_MAX)
                })
            };
            if !app.run(set).await? {
                return Err(ApiError::forbidden("There are too many pushers already."));
            }
        }
        PusherAction::Delete(ids) => {
            let delete = move |app: &App| {
                app.store
                    .write(move |write| write.delete_pusher(&user_id, &ids.app_id, &ids.pushkey))
            };
            app.run(delete).await?;
        }
        _ => return Err(ApiError::invalid_param("This change of a pusher is not known.")),
    }
    Ok(set_pusher::Response::new())
}

async fn notifications(
    app: Arc<App>,
    identity: Identity,
    request: get_notifications::Request,
) -> Result<get_notifications::Response, ApiError> {
    let now = (app.clock)();
    app.run(move |app| {
        app.store.read(|read| {
            let query = NotificationQuery {
                before: position_of(read, request.from.as_deref())?,
                limit: request.limit.map_or(NOTIFICATIONS_DEFAULT, limit),
                highlights_only: request.only.as_deref() == Some("highlight"),
            };
            let page = notifications::list(read, &identity.user_id, query)?;
            let mut response = get_notifications::Response::new(Vec::new());
            for found in page.notifications {
                let event = format(read, &found.room, &identity, now).event(&found.event)?;
                let ts = found.event.pdu.origin_server_ts().to_matrix();
                let room_id = found.room.room_id;
                response.notifications.push(Notification::new(
                    found.actions,
                    event,
                    found.read,
                    room_id,
                    ts,
                ));
            }
            response.next_token = page.next.map(|next| page_token(read, next)).transpose()?;
            Ok::<_, ApiError>(response)
        })
    })
    .await
}

fn no_such_rule() -> ApiError {
    ApiError::not_found("There is no such rule.")
}

impl From<PushRuleError> for ApiError {
    fn from(error: PushRuleError) -> Self {
        use ruma::push::RemovePushRuleError;
        match error {
            PushRuleError::NotFound(_) | PushRuleError::Remove(RemovePushRuleError::NotFound) => {
                no_such_rule()
            }
            PushRuleError::Insert(error) => Self::invalid_param(error.to_string()),
            PushRuleError::Remove(error) => {
                Self::new(StatusCode::BAD_REQUEST, ErrorKind::InvalidParam, error.to_string())
            }
            PushRuleError::TooMany => Self::forbidden("There are too many rules already."),
            error @ PushRuleError::Json(_) => Self::internal(error),
            PushRuleError::Store(error) => error.into(),
        }
    }
}
