//! Rooms in a short form that people can read: names instead of ids; keys and times are deterministic.
//!
//! `@alice` stands for `@alice:alpha.test`: names that begin with `a` live on alpha, all others on bravo. A key of an object that
//! ends in ` (before 12)` is left out from version 12 on. `$name` stands for the id of the event of that name.

use std::{collections::BTreeMap, sync::Arc};

use ed25519_dalek::Signer;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomId, RoomVersionId,
    canonical_json::RedactingSerializer,
    room_version_rules::RoomVersionRules,
    serde::{Base64, base64::Standard},
    state_res,
};
use sallyport_core::{
    event::Pdu,
    room::{self, create::Founded},
};
use serde::Deserialize;
use serde_json::{Value, json, value::to_raw_value};

use crate::server::Keys;

/// An event in its short form.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Short {
    /// Its name.
    #[serde(default)]
    pub(crate) id: String,
    by: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    key: Option<String>,
    #[serde(default = "empty")]
    content: Value,
    /// The event that it redacts.
    #[serde(default)]
    redacts: Option<String>,
    /// Names of the events that it follows; the one listed before it if it says nothing.
    #[serde(default)]
    pub(crate) after: Option<Vec<String>>,
    /// Names of the events that it claims to be authorised by; what an honest server names if it says nothing.
    #[serde(default)]
    auth: Option<Vec<String>>,
    /// When it was sent, if not one second after the one that was listed before.
    #[serde(default)]
    at: Option<u64>,
    /// Other fields.
    #[serde(default)]
    with: BTreeMap<String, Value>,
    /// Servers besides its sender's that sign it.
    #[serde(default)]
    also_signed_by: Vec<String>,
}

impl Short {
    pub(crate) fn is_create(&self) -> bool {
        self.kind == "m.room.create"
    }
}

fn empty() -> Value {
    json!({})
}

/// An event that was written from its short form.
#[derive(Clone)]
pub(crate) struct Written {
    pub(crate) pdu: Arc<Pdu>,
    signatures: CanonicalJsonObject,
    /// Names of the state after it, as its own server sees it: what it follows, the last one first.
    state: BTreeMap<(String, String), String>,
}

/// Everything that is written of one room.
#[derive(Clone)]
pub(crate) struct Scribe {
    pub(crate) version: RoomVersionId,
    pub(crate) rules: RoomVersionRules,
    room_id: Option<OwnedRoomId>,
    time: u64,
    last: Option<String>,
    events: BTreeMap<String, Written>,
}

/// The room that the fixtures of a folder begin with.
pub(crate) fn room(json: &str) -> Vec<Short> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Room {
        #[serde(rename = "about")]
        _about: Vec<String>,
        room: Vec<Short>,
    }
    serde_json::from_str::<Room>(json).unwrap().room
}

/// The versions of a fixture that names none.
pub(crate) fn all_versions() -> Vec<RoomVersionId> {
    room::VERSIONS.to_vec()
}

/// The servers of all short forms.
pub(crate) fn keys() -> Keys {
    Keys::of(&["alpha.test", "bravo.test"])
}

impl Scribe {
    pub(crate) fn new(version: &RoomVersionId) -> Self {
        Self {
            version: version.clone(),
            rules: room::rules(version).unwrap(),
            room_id: None,
            time: 1000,
            last: None,
            events: BTreeMap::new(),
        }
    }

    /// Writes the first events of a room, the create event first. Nobody asks whether the rules allow them.
    pub(crate) fn found(version: &RoomVersionId, room: &[Short]) -> (Self, Founded) {
        let mut scribe = Self::new(version);
        let events: Vec<_> = room.iter().map(|short| scribe.write(short).pdu).collect();
        let room_id = events[0].room_id().to_owned();
        (scribe, Founded { room_id, version: version.clone(), events })
    }

    pub(crate) fn event(&self, name: &str) -> &Written {
        self.events.get(name).unwrap_or_else(|| panic!("no event is called {name}"))
    }

    /// The id of a user.
    pub(crate) fn user(&self, name: &str) -> String {
        self.expand_text(&format!("@{name}"))
    }

    /// The name of an event.
    pub(crate) fn name_of(&self, event_id: &ruma::EventId) -> String {
        let named = self.events.iter().find(|(_, event)| event.pdu.event_id() == event_id);
        named.map_or_else(|| event_id.to_string(), |(name, _)| name.clone())
    }

    /// Writes, hashes and signs an event, whether or not the rules allow it.
    pub(crate) fn write(&mut self, short: &Short) -> Written {
        self.time = short.at.unwrap_or(self.time + 1000);
        let is_create = short.is_create();
        let after = short.after.clone().unwrap_or_else(|| self.last.iter().cloned().collect());
        let mut state = BTreeMap::new();
        for name in &after {
            state.extend(self.event(name).state.clone());
        }
        let sender = self.expand_text(&short.by);
        let key = short.key.as_ref().map(|key| self.expand_text(key));
        let content = self.content(short, is_create, &sender);
        let auth = short.auth.clone().unwrap_or_else(|| {
            if is_create {
                return Vec::new();
            }
            let wanted = self.wanted(&short.kind, &sender, key.as_deref(), &content);
            wanted.iter().filter_map(|wanted| state.get(wanted).cloned()).collect()
        });
        let ids = |names: &[String]| -> Vec<String> {
            names.iter().map(|name| self.event(name).pdu.event_id().to_string()).collect()
        };
        let depth = after.iter().map(|name| self.event(name).pdu.depth()).max().unwrap_or(0) + 1;
        let mut event = json!({
            "type": short.kind, "sender": sender, "content": content, "depth": depth,
            "origin_server_ts": self.time, "prev_events": ids(&after), "auth_events": ids(&auth),
        });
        if let Some(room_id) = &self.room_id {
            event["room_id"] = json!(room_id);
        } else if !self.rules.authorization.room_create_event_id_as_room_id {
            event["room_id"] = json!("!room:alpha.test");
        }
        if let Some(key) = &key {
            event["state_key"] = json!(key);
        }
        if let Some(target) = &short.redacts
            && !self.rules.redaction.content_field_redacts
        {
            event["redacts"] = json!(self.event(target).pdu.event_id());
        }
        for (field, value) in &short.with {
            event[field] = self.expand(value);
        }
        let written = self.sign(&event, &short.also_signed_by);
        let pdu = &written.pdu;
        self.room_id.get_or_insert_with(|| pdu.room_id().to_owned());
        if let Some(key) = key {
            state.insert((short.kind.clone(), key), short.id.clone());
        }
        let written = Written { state, ..written };
        self.events.insert(short.id.clone(), written.clone());
        self.last = Some(short.id.clone());
        written
    }

    fn content(&self, short: &Short, is_create: bool, sender: &str) -> Value {
        let mut content = self.expand(&short.content);
        if is_create {
            let fields = content.as_object_mut().unwrap();
            fields.entry("room_version").or_insert(json!(self.version));
            if !self.rules.authorization.use_room_create_sender {
                fields.entry("creator").or_insert(json!(sender));
            }
            fields.retain(|_, value| !value.is_null());
        }
        if let Some(target) = &short.redacts
            && self.rules.redaction.content_field_redacts
        {
            content["redacts"] = json!(self.event(target).pdu.event_id());
        }
        content
    }

    /// What an honest server names as authorising an event.
    fn wanted(
        &self,
        kind: &str,
        sender: &str,
        key: Option<&str>,
        content: &Value,
    ) -> Vec<(String, String)> {
        let types = state_res::auth_types_for_event(
            &kind.into(),
            sender.try_into().unwrap(),
            key,
            &to_raw_value(content).unwrap(),
            &self.rules.authorization,
        );
        // Of an event that makes no sense nobody knows what authorises it.
        let types = types.unwrap_or_else(|_| {
            let create = [("m.room.create".into(), String::new())];
            let named = !self.rules.authorization.room_create_event_id_as_room_id;
            create.into_iter().filter(|_| named).collect()
        });
        types.into_iter().map(|(kind, key)| (kind.to_string(), key)).collect()
    }

    fn sign(&self, event: &Value, also: &[String]) -> Written {
        let mut object: CanonicalJsonObject = serde_json::from_value(event.clone()).unwrap();
        ruma::signatures::add_content_hash_to_event(&mut object).unwrap();
        let pdu = Arc::new(Pdu::new(object.clone(), &self.rules).unwrap());
        let bytes = RedactingSerializer::new()
            .rules(&self.rules.redaction)
            .custom_redacted_root_fields(&["signatures", "unsigned"])
            .serialize(&object)
            .unwrap();
        let own = pdu.sender().server_name().to_string();
        let signatures = also
            .iter()
            .chain([&own])
            .map(|server| {
                let key = &keys().0[&ruma::OwnedServerName::try_from(server.as_str()).unwrap()];
                let signature = key.sign(bytes.as_bytes()).to_bytes();
                let signature = Base64::<Standard, _>::new(signature).encode();
                let signature = CanonicalJsonValue::String(signature);
                let by_key = CanonicalJsonObject::from([("ed25519:1".to_owned(), signature)]);
                (server.clone(), CanonicalJsonValue::Object(by_key))
            })
            .collect();
        Written { pdu, signatures, state: BTreeMap::new() }
    }

    fn expand(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.expand_text(text)),
            Value::Array(items) => items.iter().map(|item| self.expand(item)).collect(),
            Value::Object(fields) => {
                let old = !self.rules.authorization.explicitly_privilege_room_creators;
                let fields = fields.iter().filter_map(|(key, value)| {
                    let key = match key.strip_suffix(" (before 12)") {
                        Some(key) => old.then_some(key)?,
                        None => key,
                    };
                    Some((self.expand_text(key), self.expand(value)))
                });
                Value::Object(fields.collect())
            }
            other => other.clone(),
        }
    }

    fn expand_text(&self, text: &str) -> String {
        if let Some(event) = text.strip_prefix('$').and_then(|name| self.events.get(name)) {
            return event.pdu.event_id().to_string();
        }
        match text.strip_prefix('@') {
            Some(name) if !name.contains(':') && !name.is_empty() => {
                let server = if name.starts_with('a') { "alpha.test" } else { "bravo.test" };
                format!("{text}:{server}")
            }
            _ => text.to_owned(),
        }
    }
}

impl Written {
    /// The bytes in which it travels.
    pub(crate) fn wire(&self) -> Vec<u8> {
        signed(self.pdu.object().unwrap(), &self.signatures)
    }

    /// A copy of which only what redaction leaves arrives.
    pub(crate) fn gutted(&self, rules: &RoomVersionRules) -> Vec<u8> {
        signed(self.pdu.redacted(rules).unwrap().object().unwrap(), &self.signatures)
    }

    /// A copy that somebody has signed with another key.
    pub(crate) fn forged(&self) -> Vec<u8> {
        let signature = CanonicalJsonValue::String("A".repeat(86));
        let by_key = CanonicalJsonObject::from([("ed25519:1".to_owned(), signature)]);
        let server = self.pdu.sender().server_name().to_string();
        let signatures = CanonicalJsonObject::from([(server, CanonicalJsonValue::Object(by_key))]);
        signed(self.pdu.object().unwrap(), &signatures)
    }
}

fn signed(mut event: CanonicalJsonObject, signatures: &CanonicalJsonObject) -> Vec<u8> {
    event.insert("signatures".to_owned(), CanonicalJsonValue::Object(signatures.clone()));
    serde_json::to_vec(&event).unwrap()
}
