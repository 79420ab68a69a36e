//! Founding rooms.
//!
//! [Client-Server API, "Creation"](https://spec.matrix.org/v1.16/client-server-api/#creation).

use std::{collections::BTreeSet, time::Duration};

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomAliasId, OwnedRoomId, OwnedUserId, RoomId,
    RoomVersionId, UserId,
    api::client::room::{
        Visibility,
        create_room::v3::{Request, RoomPreset},
    },
    events::{StateEventType, room::member::MembershipState},
};
use sallyport_core::{
    limits::{DRAFTS_MAX, INITIAL_STATE_MAX, INVITES_AT_CREATION_MAX},
    room::{
        self, Intent,
        create::{CreateError, Founded},
    },
    time::Millis,
};
use sallyport_store::Read;
use serde::Deserialize;
use serde_json::json;

use super::{Error, membership, state::parse_content};
use crate::app::{App, random};

/// Founds a room as a client asks for it.
///
/// # Errors
/// If the wishes contradict the rules of the version or each other, or the alias is taken.
pub fn create(
    app: &App,
    creator: &UserId,
    request: Request,
    now: Millis,
) -> Result<OwnedRoomId, Error> {
    let version =
        request.room_version.clone().unwrap_or_else(|| app.config.rooms.default_version.clone());
    let mut plan = Plan::new(app, creator, version, request, now)?;
    for _ in 0..DRAFTS_MAX {
        let intents = app.store.read(|read| plan.intents(read))?;
        let creation = plan.creation.clone();
        let founded = found(app, creator, &plan.version, creation, plan.now, intents)?;
        if let Some(room_id) = commit(app, &plan, founded)? {
            return Ok(room_id);
        }
        plan.now = plan.now.plus(Duration::from_millis(1));
    }
    Err(Error::Busy)
}

/// Stores a new room with its alias and its place in the directory; `None` if its id is taken.
fn commit(app: &App, plan: &Plan<'_>, founded: Founded) -> Result<Option<OwnedRoomId>, Error> {
    let (alias, public, mac) = (plan.alias.clone(), plan.public, app.event_mac.clone());
    let creator = plan.creator.to_owned();
    app.store.write(move |write| {
        let room_id = founded.room_id.clone();
        // From version 12 on a room's id is the hash of its create event: one who founds two equal
        // rooms within a millisecond would found the same one twice.
        if write.room(&room_id)?.is_some() {
            return Ok(None);
        }
        write.found_room(&founded, &mac)?;
        if let Some(alias) = alias
            && !write.insert_alias(&alias, &room_id, &creator)?
        {
            return Err(Error::AliasTaken);
        }
        if public {
            write.publish(&room_id, true)?;
        }
        Ok(Some(room_id))
    })
}

/// Makes the first events of a room with a fresh id.
///
/// # Errors
/// If the version is not served, or an event is against its rules.
pub(super) fn found(
    app: &App,
    creator: &UserId,
    version: &RoomVersionId,
    creation: CanonicalJsonObject,
    now: Millis,
    intents: Vec<Intent>,
) -> Result<Founded, Error> {
    let room_id = fresh_room_id(app)?;
    room::create::create(version, room_id, creator, creation, now, intents).map_err(|error| {
        match error {
            CreateError::UnsupportedVersion(version) => Error::UnsupportedVersion(version),
            CreateError::Seal(error) => Error::Seal(error),
            error => Error::NotFounded(error),
        }
    })
}

/// A random room id. Room versions from 12 on name the room by its create event instead.
fn fresh_room_id(app: &App) -> Result<OwnedRoomId, Error> {
    let bytes: [u8; 16] = random().map_err(Error::NoRandomness)?;
    let id = format!(
        "!{}:{}",
        ruma::serde::Base64::<ruma::serde::base64::UrlSafe>::new(bytes.to_vec()),
        app.config.server_name
    );
    RoomId::parse(id).map_err(|_| Error::Invalid("this server's name makes no room ids"))
}

/// A wish for a room, checked.
struct Plan<'a> {
    creator: &'a UserId,
    version: RoomVersionId,
    request: Request,
    preset: RoomPreset,
    creation: CanonicalJsonObject,
    initial_state: Vec<InitialState>,
    alias: Option<OwnedRoomAliasId>,
    public: bool,
    now: Millis,
}

#[derive(Deserialize)]
struct InitialState {
    #[serde(rename = "type")]
    kind: StateEventType,
    #[serde(default)]
    state_key: String,
    content: CanonicalJsonObject,
}

impl<'a> Plan<'a> {
    fn new(
        app: &App,
        creator: &'a UserId,
        version: RoomVersionId,
        request: Request,
        now: Millis,
    ) -> Result<Self, Error> {
        if room::rules(&version).is_none() {
            return Err(Error::UnsupportedVersion(version));
        }
        if request.invite.len() > INVITES_AT_CREATION_MAX {
            return Err(Error::Invalid("too many invites at once: invite the others later"));
        }
        if request.initial_state.len() > INITIAL_STATE_MAX {
            return Err(Error::Invalid("too many initial state events"));
        }
        for user_id in &request.invite {
            membership::check_reachable(app, user_id)?;
        }
        if !matches!(request.visibility, Visibility::Public | Visibility::Private) {
            return Err(Error::Invalid("the visibility is neither `public` nor `private`"));
        }
        let public = request.visibility == Visibility::Public;
        let preset = match &request.preset {
            Some(RoomPreset::_Custom(_)) => return Err(Error::Invalid("there is no such preset")),
            Some(preset) => preset.clone(),
            None if public => RoomPreset::PublicChat,
            None => RoomPreset::PrivateChat,
        };
        let alias = match &request.room_alias_name {
            Some(name) => Some(
                OwnedRoomAliasId::try_from(format!("#{name}:{}", app.config.server_name))
                    .map_err(|_| Error::Invalid("the alias is not well-formed"))?,
            ),
            None => None,
        };
        let initial_state = request
            .initial_state
            .iter()
            .map(|raw| serde_json::from_str::<InitialState>(raw.json().get()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Error::BadJson(error.to_string()))?;
        let mut plan = Self {
            creator,
            version,
            creation: CanonicalJsonObject::new(),
            preset,
            initial_state,
            alias,
            public,
            now,
            request,
        };
        plan.creation = plan.creation_content()?;
        Ok(plan)
    }

    /// Whether those who are invited get the power of the creator.
    fn trusts_invitees(&self) -> bool {
        self.preset == RoomPreset::TrustedPrivateChat
    }

    fn has_privileged_creators(&self) -> bool {
        room::rules(&self.version)
            .is_some_and(|rules| rules.authorization.explicitly_privilege_room_creators)
    }

    fn creation_content(&self) -> Result<CanonicalJsonObject, Error> {
        let mut content = match &self.request.creation_content {
            Some(raw) => parse_content(raw.json().get())?,
            None => CanonicalJsonObject::new(),
        };
        content.remove("creator");
        content.remove("room_version");
        if !self.has_privileged_creators() {
            content.remove("additional_creators");
            return Ok(content);
        }
        let mut creators: BTreeSet<OwnedUserId> = match content.get("additional_creators") {
            Some(CanonicalJsonValue::Array(ids)) => ids
                .iter()
                .map(|id| OwnedUserId::try_from(id.as_str().unwrap_or_default()))
                .collect::<Result<_, _>>()
                .map_err(|_| Error::Invalid("additional_creators holds what is no user id"))?,
            Some(_) => return Err(Error::Invalid("additional_creators is not a list")),
            None => BTreeSet::new(),
        };
        // A creator's power can never be taken away. Somebody of another enclave gets it in a
        // conversation of equals only: elsewhere it would undo that one enclave is the room's home.
        if creators.iter().any(|user| user.server_name() != self.creator.server_name()) {
            return Err(Error::Invalid(
                "additional_creators must be accounts of this server: they can never be removed",
            ));
        }
        if self.trusts_invitees() {
            creators.extend(self.request.invite.iter().cloned());
        }
        creators.remove(self.creator);
        if !creators.is_empty() {
            let creators = creators.iter().map(|id| CanonicalJsonValue::String(id.to_string()));
            let creators = CanonicalJsonValue::Array(creators.collect());
            content.insert("additional_creators".to_owned(), creators);
        }
        Ok(content)
    }

    /// The events after the create event, in the order of the specification.
    fn intents(&self, read: &Read<'_>) -> Result<Vec<Intent>, Error> {
        let creator = self.creator.as_str();
        let join = membership::content(read, self.creator, MembershipState::Join, None)?;
        let mut intents = vec![self.intent(StateEventType::RoomMember, creator, join)];
        if !self.initially_sets(&StateEventType::RoomPowerLevels) {
            let levels = self.power_levels()?;
            intents.push(self.intent(StateEventType::RoomPowerLevels, "", levels));
        }
        if let Some(alias) = &self.alias {
            let content = json!({ "alias": alias });
            intents.push(self.preset_intent(StateEventType::RoomCanonicalAlias, content)?);
        }
        let (join_rule, guests) = match self.preset {
            RoomPreset::PublicChat => ("public", "forbidden"),
            _ => ("invite", "can_join"),
        };
        for (kind, content) in [
            (StateEventType::RoomJoinRules, json!({ "join_rule": join_rule })),
            (StateEventType::RoomHistoryVisibility, json!({ "history_visibility": "shared" })),
            (StateEventType::RoomGuestAccess, json!({ "guest_access": guests })),
        ] {
            if !self.initially_sets(&kind) {
                intents.push(self.preset_intent(kind, content)?);
            }
        }
        for InitialState { kind, state_key, content } in &self.initial_state {
            intents.push(self.intent(kind.clone(), state_key, content.clone()));
        }
        if let Some(name) = &self.request.name {
            let content = json!({ "name": name });
            intents.push(self.preset_intent(StateEventType::RoomName, content)?);
        }
        if let Some(topic) = &self.request.topic {
            let content = json!({ "topic": topic });
            intents.push(self.preset_intent(StateEventType::RoomTopic, content)?);
        }
        for user_id in &self.request.invite {
            let mut content = membership::content(read, user_id, MembershipState::Invite, None)?;
            if self.request.is_direct {
                content.insert("is_direct".to_owned(), CanonicalJsonValue::Bool(true));
            }
            intents.push(self.intent(StateEventType::RoomMember, user_id.as_str(), content));
        }
        Ok(intents)
    }

    fn initially_sets(&self, kind: &StateEventType) -> bool {
        self.initial_state.iter().any(|state| state.kind == *kind && state.state_key.is_empty())
    }

    fn intent(
        &self,
        kind: StateEventType,
        state_key: &str,
        content: CanonicalJsonObject,
    ) -> Intent {
        Intent::state(self.creator, kind, state_key, content, self.now)
    }

    fn preset_intent(
        &self,
        kind: StateEventType,
        content: serde_json::Value,
    ) -> Result<Intent, Error> {
        Ok(self.intent(kind, "", parse_content(&content.to_string())?))
    }

    fn power_levels(&self) -> Result<CanonicalJsonObject, Error> {
        let privileged = self.has_privileged_creators();
        let mut users = serde_json::Map::new();
        if !privileged {
            users.insert(self.creator.to_string(), json!(100));
            if self.trusts_invitees() {
                let invited = self.request.invite.iter();
                users.extend(invited.map(|user_id| (user_id.to_string(), json!(100))));
            }
        }
        let levels = json!({
            "users": users,
            "users_default": 0,
            "events": {
                "m.room.avatar": 50,
                "m.room.canonical_alias": 50,
                "m.room.encryption": 100,
                "m.room.history_visibility": 100,
                "m.room.name": 50,
                "m.room.power_levels": 100,
                "m.room.server_acl": 100,
                "m.room.tombstone": if privileged { 150 } else { 100 },
            },
            "events_default": 0,
            "state_default": 50,
            "ban": 50,
            "kick": 50,
            "redact": 50,
            "invite": if self.preset == RoomPreset::PublicChat { 50 } else { 0 },
        });
        let mut levels = parse_content(&levels.to_string())?;
        if let Some(raw) = &self.request.power_level_content_override {
            levels.extend(parse_content(raw.json().get())?);
        }
        Ok(levels)
    }
}
