//! A box and its members for tests of use cases: no sockets, a fixed clock, a real database file.

use std::{path::Path, sync::Arc};

use ruma::{
    OwnedEventId, OwnedRoomId, RoomId, TransactionId, UserId,
    api::client::{
        filter::{FilterDefinition, RoomEventFilter},
        room::create_room::v3::{Request as CreateRoom, RoomPreset},
        sync::sync_events::v3::Response,
    },
    events::{StateEventType, TimelineEventType},
    serde::Raw,
};
use sallyport::{
    app::App,
    config::Config,
    service::{
        rooms::{self, Wish, access::look, membership::Change, state::parse_content, timeline},
        sessions::Identity,
        sync::{self, Answer, Query, token::Token},
    },
    shutdown,
};
use sallyport_core::{room::Intent, time::Millis};
use sallyport_store::Direction;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The present of all tests.
pub(crate) const NOW: Millis = Millis(1_700_000_000_000);

/// A box in a folder of its own.
pub(crate) struct TestBox {
    pub(crate) app: Arc<App>,
    _folder: TempDir,
}

/// A member with one device.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) app: Arc<App>,
    pub(crate) identity: Identity,
}

pub(crate) fn open_with(folder: &Path, more: &str) -> Arc<App> {
    let folder = folder.display().to_string();
    let text = format!("server_name = 'alpha.test'\ndata_dir = {folder:?}\n{more}");
    let config = Config::parse(&text, Path::new("test")).unwrap();
    let (trigger, shutdown) = shutdown::channel();
    // The stop is never announced: who waits for it waits for ever.
    std::mem::forget(trigger);
    App::open(config, || NOW, shutdown).unwrap()
}

impl TestBox {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { app: open_with(folder.path(), ""), _folder: folder }
    }

    pub(crate) fn member(&self, name: &str) -> Member {
        let user_id = UserId::parse(format!("@{name}:alpha.test")).unwrap();
        Member {
            app: Arc::clone(&self.app),
            identity: Identity { user_id, device_id: format!("{name}-phone").into() },
        }
    }
}

impl Member {
    pub(crate) fn id(&self) -> &UserId {
        &self.identity.user_id
    }

    pub(crate) fn other_device(&self) -> Self {
        let mut other = self.clone();
        other.identity.device_id = "other".into();
        other
    }

    pub(crate) fn create(&self, preset: RoomPreset) -> OwnedRoomId {
        let mut request = CreateRoom::new();
        request.preset = Some(preset);
        self.create_with(request)
    }

    pub(crate) fn create_with(&self, request: CreateRoom) -> OwnedRoomId {
        rooms::create::create(&self.app, self.id(), request, NOW).unwrap()
    }

    pub(crate) fn change<'a>(&'a self, room_id: &'a RoomId, target: &'a UserId) -> Change<'a> {
        Change { room_id, sender: self.id(), target, reason: None, now: NOW }
    }

    pub(crate) fn invite(&self, room_id: &RoomId, other: &Self) {
        rooms::membership::invite(&self.app, self.change(room_id, other.id())).unwrap();
    }

    pub(crate) fn join(&self, room_id: &RoomId) {
        rooms::membership::join(&self.app, self.change(room_id, self.id())).unwrap();
    }

    pub(crate) fn leave(&self, room_id: &RoomId) {
        rooms::membership::leave(&self.app, self.change(room_id, self.id())).unwrap();
    }

    pub(crate) fn say(&self, room_id: &RoomId, body: &str) -> OwnedEventId {
        self.send(room_id, "m.room.message", json!({ "msgtype": "m.text", "body": body }))
    }

    pub(crate) fn send(&self, room_id: &RoomId, kind: &str, content: Value) -> OwnedEventId {
        rooms::send(&self.app, self.wish(room_id, kind, content, None)).unwrap()
    }

    pub(crate) fn wish(
        &self,
        room_id: &RoomId,
        kind: &str,
        content: Value,
        txn_id: Option<&str>,
    ) -> Wish {
        let intent = Intent {
            sender: self.id().to_owned(),
            kind: TimelineEventType::from(kind),
            state_key: None,
            content: parse_content(&content.to_string()).unwrap(),
            redacts: None,
            origin_server_ts: NOW,
        };
        let txn_id = txn_id.map(<&TransactionId>::from).map(ToOwned::to_owned);
        let transaction = txn_id.map(|txn_id| (self.identity.device_id.clone(), txn_id));
        Wish { room_id: room_id.to_owned(), intent, transaction }
    }

    pub(crate) fn redact(&self, room_id: &RoomId, event_id: &ruma::EventId) -> OwnedEventId {
        let mut wish = self.wish(room_id, "m.room.redaction", json!({}), None);
        wish.intent.redacts = Some(event_id.to_owned());
        rooms::send(&self.app, wish).unwrap()
    }

    pub(crate) fn set_state(
        &self,
        room_id: &RoomId,
        kind: &str,
        key: &str,
        content: Value,
    ) -> Result<OwnedEventId, rooms::Error> {
        let content = parse_content(&content.to_string()).unwrap();
        let kind = StateEventType::from(kind);
        let wish = rooms::state::wish(&self.app, room_id, self.id(), kind, key, content, NOW)?;
        rooms::send(&self.app, wish)
    }

    pub(crate) fn sync(&self, since: Option<&str>) -> Response {
        self.sync_with(since, FilterDefinition::default())
    }

    pub(crate) fn sync_with(&self, since: Option<&str>, filter: FilterDefinition) -> Response {
        self.ask(since, filter).response
    }

    pub(crate) fn sync_state_after(&self, since: &str) -> Response {
        self.sync_as(Some(since), FilterDefinition::default(), true)
    }

    pub(crate) fn sync_as(
        &self,
        since: Option<&str>,
        filter: FilterDefinition,
        state_after: bool,
    ) -> Response {
        let query = self.query(since, filter);
        sync::sync(&self.app, &Query { state_after, ..query }).unwrap().response
    }

    /// The newest events of a room before a point.
    pub(crate) fn page_back(
        &self,
        room_id: &RoomId,
        from: &str,
        limit: usize,
    ) -> Vec<OwnedEventId> {
        let page = self.app.store.read(|read| {
            let glimpse = look(read, room_id, self.id()).unwrap();
            let query = timeline::PageQuery {
                from: Some(Token::parse(from).unwrap().position),
                to: None,
                direction: Direction::Backward,
                limit,
                filter: &RoomEventFilter::default(),
            };
            timeline::page(read, &glimpse, self.id(), &query)
        });
        page.unwrap().events.iter().map(|event| event.pdu.event_id().to_owned()).collect()
    }

    pub(crate) fn ask(&self, since: Option<&str>, filter: FilterDefinition) -> Answer {
        sync::sync(&self.app, &self.query(since, filter)).unwrap()
    }

    fn query(&self, since: Option<&str>, filter: FilterDefinition) -> Query {
        Query {
            identity: self.identity.clone(),
            since: since.map(|since| Token::parse(since).unwrap()),
            filter,
            full_state: false,
            state_after: false,
            now: NOW,
        }
    }
}

/// An event as JSON.
pub(crate) fn value<T>(raw: &Raw<T>) -> Value {
    serde_json::from_str(raw.json().get()).unwrap()
}

/// Events as JSON.
pub(crate) fn values<T>(events: &[Raw<T>]) -> Vec<Value> {
    events.iter().map(value).collect()
}

/// What was said in these events.
pub(crate) fn bodies<T>(events: &[Raw<T>]) -> Vec<String> {
    let said = |event: Value| event["content"]["body"].as_str().map(ToOwned::to_owned);
    values(events).into_iter().filter_map(said).collect()
}
