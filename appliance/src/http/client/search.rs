//! [Searching for a text](https://spec.matrix.org/v1.19/client-server-api/#server-side-search) in what is not encrypted.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{
    OwnedUserId, UInt,
    api::client::search::search_events::v3::{
        self as search_events, Criteria, EventContextResult, ResultCategories, ResultRoomEvents,
        SearchResult, UserProfile,
    },
    events::StateEventType,
};
use sallyport_core::{
    limits::{SEARCH_CONTEXT_MAX, SEARCH_RESULTS_MAX},
    time::Millis,
};
use sallyport_store::{Error as StoreError, Read, StoredEvent};

use super::{
    state::format,
    tokens::{page_token, position_of},
};
use crate::{
    app::App,
    http::{Routes, error::ApiError, route::route},
    service::{
        rooms::{
            self,
            access::Glimpse,
            search::{TextQuery, surroundings, texts},
            state,
        },
        sessions::Identity,
    },
};

/// Events of a page whose filter names no limit.
const LIMIT_DEFAULT: usize = 10;

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![route(search)]
}

async fn search(
    app: Arc<App>,
    identity: Identity,
    request: search_events::Request,
) -> Result<search_events::Response, ApiError> {
    let mut categories = ResultCategories::new();
    let Some(criteria) = request.search_categories.room_events else {
        return Ok(search_events::Response::new(categories));
    };
    let now = (app.clock)();
    categories.room_events = app
        .run(move |app| {
            app.store.read(|read| {
                let before = position_of(read, request.next_batch.as_deref())?;
                Shown { read, identity: &identity, criteria: &criteria, now }.find(before)
            })
        })
        .await?;
    Ok(search_events::Response::new(categories))
}

/// Writes what was found for one device.
struct Shown<'a, 'c> {
    read: &'a Read<'c>,
    identity: &'a Identity,
    criteria: &'a Criteria,
    now: Millis,
}

impl Shown<'_, '_> {
    fn find(&self, before: Option<i64>) -> Result<ResultRoomEvents, rooms::Error> {
        let Self { read, identity, criteria, .. } = *self;
        let limit = criteria.filter.limit.map(|limit| bounded(limit, SEARCH_RESULTS_MAX));
        let query = TextQuery {
            term: &criteria.search_term,
            keys: criteria.keys.as_deref(),
            filter: &criteria.filter,
            before,
            limit: limit.unwrap_or(LIMIT_DEFAULT),
        };
        let found = texts(read, &identity.user_id, &query)?;
        let mut results = ResultRoomEvents::new();
        results.count = Some(UInt::new_saturating(found.events.len() as u64));
        results.next_batch = found.next.map(|next| page_token(read, next)).transpose()?;
        results.highlights = found.words;
        for (glimpse, event) in &found.events {
            let room_id = &glimpse.room.room_id;
            if criteria.include_state == Some(true) && !results.state.contains_key(room_id) {
                let events = state::all(read, glimpse)?;
                let events = format(read, &glimpse.room, identity, self.now).state(&events)?;
                results.state.insert(room_id.clone(), events);
            }
            results.results.push(self.result(glimpse, event)?);
        }
        Ok(results)
    }

    fn result(&self, glimpse: &Glimpse, event: &StoredEvent) -> Result<SearchResult, StoreError> {
        let Self { read, identity, criteria, now } = *self;
        let wanted = &criteria.event_context;
        let limits = (
            bounded(wanted.before_limit, SEARCH_CONTEXT_MAX),
            bounded(wanted.after_limit, SEARCH_CONTEXT_MAX),
        );
        let (before, after) = surroundings(read, glimpse, &identity.user_id, event, limits)?;
        let format = format(read, &glimpse.room, identity, now);
        let mut context = EventContextResult::new();
        let start = before.end.unwrap_or(i64::MIN);
        let end = after.end.or_else(|| after.events.last().and_then(|event| event.position));
        context.start = Some(page_token(read, start)?);
        context.end = Some(page_token(read, end.unwrap_or(after.start))?);
        context.events_before = format.events(&before.events)?;
        context.events_after = format.events(&after.events)?;
        if wanted.include_profile {
            let events = before.events.iter().chain([event]).chain(&after.events);
            context.profile_info = self.profiles(glimpse, events)?;
        }
        let mut result = SearchResult::new();
        result.context = context;
        // Without an index there is nothing to weigh: the newest come first.
        result.rank = Some(1.0);
        result.result = Some(format.event(event)?);
        Ok(result)
    }

    fn profiles<'e>(
        &self,
        glimpse: &Glimpse,
        events: impl Iterator<Item = &'e StoredEvent>,
    ) -> Result<BTreeMap<OwnedUserId, UserProfile>, StoreError> {
        let mut profiles = BTreeMap::new();
        for sender in events.map(|event| event.pdu.sender()) {
            if profiles.contains_key(sender) {
                continue;
            }
            let kind = StateEventType::RoomMember;
            let member =
                self.read.state_event_at(&glimpse.room, glimpse.state, &kind, sender.as_str())?;
            let Some(member) = member else { continue };
            let mut profile = UserProfile::new();
            profile.displayname = member.pdu.content_field("displayname");
            profile.avatar_url = member.pdu.content_field("avatar_url");
            profiles.insert(sender.to_owned(), profile);
        }
        Ok(profiles)
    }
}

fn bounded(value: UInt, most: usize) -> usize {
    usize::try_from(u64::from(value)).unwrap_or(most).min(most)
}
