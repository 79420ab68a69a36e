//! [Syncing](https://spec.matrix.org/v1.19/client-server-api/#syncing), with long-polling.

use std::{sync::Arc, time::Duration};

use ruma::api::client::{
    filter::FilterDefinition,
    sync::sync_events::v3::{self as sync_events, Filter},
};
use sallyport_core::limits::SYNC_WAIT_MS_MAX;
use tokio::time::{Instant, timeout_at};

use crate::{
    app::App,
    http::{Routes, error::ApiError, route::route},
    service::{
        sessions::Identity,
        sync::{self, Answer, Query, token::Token},
    },
};

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![route(sync_events)]
}

async fn sync_events(
    app: Arc<App>,
    identity: Identity,
    request: sync_events::Request,
) -> Result<sync_events::Response, ApiError> {
    let since = request.since.as_deref().map(Token::parse).transpose();
    let now = (app.clock)();
    app.presences.set(&identity.user_id, request.set_presence, None, now);
    let query = Query {
        since: since.map_err(|error| ApiError::invalid_param(error.to_string()))?,
        filter: filter(&app, &identity, request.filter).await?,
        identity,
        full_state: request.full_state,
        state_after: request.use_state_after,
        now,
    };
    let wait = request.timeout.unwrap_or_default().min(Duration::from_millis(SYNC_WAIT_MS_MAX));
    let may_wait = query.since.is_some() && !query.full_state && !wait.is_zero();
    let query = Arc::new(query);
    let answer = ask(&app, &query).await?;
    if !may_wait || !answer.is_empty() {
        return Ok(answer.response);
    }
    Ok(wait_for_news(&app, &query, answer, Instant::now() + wait).await?.response)
}

/// Waits until there is something new, or the time is over.
async fn wait_for_news(
    app: &Arc<App>,
    query: &Arc<Query>,
    mut answer: Answer,
    deadline: Instant,
) -> Result<Answer, ApiError> {
    let identity = query.identity.clone();
    let user_id = identity.user_id.clone();
    let rooms = app.run(move |app| sync::watched_rooms(app, &identity)).await?;
    let waiter = app.notify.watch(&user_id, rooms);
    // What was announced between the first look and the registration would ring no bell.
    let mut missed =
        app.notify.position() > answer.position || app.typing.counter() > answer.typing;
    loop {
        if !missed {
            let news = async {
                tokio::select! {
                    () = waiter.news() => true,
                    () = app.shutdown.requested() => false,
                }
            };
            match timeout_at(deadline, news).await {
                Ok(true) => {}
                Ok(false) => return Ok(answer),
                // What nobody is woken for goes along.
                Err(_) => return ask(app, query).await,
            }
        }
        missed = false;
        answer = ask(app, query).await?;
        if !answer.is_empty() {
            return Ok(answer);
        }
    }
}

impl From<sync::Error> for ApiError {
    fn from(error: sync::Error) -> Self {
        match error {
            sync::Error::Rules(error) => error.into(),
            sync::Error::Store(error) => error.into(),
        }
    }
}

async fn ask(app: &Arc<App>, query: &Arc<Query>) -> Result<Answer, ApiError> {
    let query = Arc::clone(query);
    app.run(move |app| sync::sync(app, &query)).await
}

/// The filter that a request names or holds.
async fn filter(
    app: &Arc<App>,
    identity: &Identity,
    filter: Option<Filter>,
) -> Result<FilterDefinition, ApiError> {
    const NO_SUCH_FILTER: &str = "there is no such filter";
    let id = match filter {
        None => return Ok(FilterDefinition::default()),
        Some(Filter::FilterDefinition(definition)) => return Ok(definition),
        Some(Filter::FilterId(id)) => id,
        Some(_) => return Err(ApiError::invalid_param(NO_SUCH_FILTER)),
    };
    let id: i64 = id.parse().map_err(|_| ApiError::invalid_param(NO_SUCH_FILTER))?;
    let user_id = identity.user_id.clone();
    let stored = app.run(move |app| app.store.read(|read| read.filter(&user_id, id))).await?;
    let stored = stored.ok_or_else(|| ApiError::invalid_param(NO_SUCH_FILTER))?;
    serde_json::from_str(&stored).map_err(ApiError::internal)
}
