//! [Server-side key backups](https://spec.matrix.org/v1.19/client-server-api/#server-side-key-backups).

use std::{collections::BTreeMap, sync::Arc};

use http::StatusCode;
use ruma::{
    OwnedRoomId, UInt,
    api::{
        client::backup::{
            BackupAlgorithm, KeyBackupData, RoomKeyBackup, add_backup_keys::v3 as add_keys,
            add_backup_keys_for_room::v3 as add_keys_for_room,
            add_backup_keys_for_session::v3 as add_keys_for_session,
            create_backup_version::v3 as create_version, delete_backup_keys::v3 as delete_keys,
            delete_backup_keys_for_room::v3 as delete_keys_for_room,
            delete_backup_keys_for_session::v3 as delete_keys_for_session,
            delete_backup_version::v3 as delete_version, get_backup_info::v3 as get_version,
            get_backup_keys::v3 as get_keys, get_backup_keys_for_room::v3 as get_keys_for_room,
            get_backup_keys_for_session::v3 as get_keys_for_session,
            get_latest_backup_info::v3 as get_latest_version,
            update_backup_version::v3 as update_version,
        },
        error::{ErrorKind, WrongRoomKeysVersionErrorData},
    },
    serde::Raw,
};
use sallyport_store::{BackupChange, BackupKey, BackupState, BackupVersion};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    app::App,
    http::{Routes, error::ApiError, route::route},
    service::{backups, sessions::Identity},
};

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![
        route(create),
        route(latest),
        route(version),
        route(update),
        route(delete),
        route(put_all),
        route(put_room),
        route(put_session),
        route(get_all),
        route(get_room),
        route(get_session),
        route(delete_all),
        route(delete_room),
        route(delete_session),
    ]
}

/// What `BackupAlgorithm` is on the wire. The data are the client's: they are kept as they came.
#[derive(Deserialize, Serialize)]
struct Algorithm {
    algorithm: String,
    auth_data: Box<RawValue>,
}

/// The version that the body of a change may name once more.
#[derive(Deserialize)]
struct Named {
    version: Option<String>,
}

/// What `KeyBackupData` is on the wire.
#[derive(Deserialize, Serialize)]
struct Key {
    first_message_index: u32,
    forwarded_count: u32,
    is_verified: bool,
    session_data: Box<RawValue>,
}

async fn create(
    app: Arc<App>,
    identity: Identity,
    request: create_version::Request,
) -> Result<create_version::Response, ApiError> {
    let Algorithm { algorithm, auth_data } = parse(&request.algorithm)?;
    let create = move |app: &App| {
        app.store
            .write(move |write| write.create_backup(&identity.user_id, &algorithm, auth_data.get()))
    };
    let version = app.run(create).await?;
    Ok(create_version::Response::new(version.to_string()))
}

async fn latest(
    app: Arc<App>,
    identity: Identity,
    _: get_latest_version::Request,
) -> Result<get_latest_version::Response, ApiError> {
    let backup = find(&app, identity, None).await?;
    let (count, etag, version) = (uint(backup.count), backup.etag, backup.version);
    let algorithm = algorithm(backup)?;
    let (etag, version) = (etag.to_string(), version.to_string());
    Ok(get_latest_version::Response::new(algorithm, count, etag, version))
}

async fn version(
    app: Arc<App>,
    identity: Identity,
    request: get_version::Request,
) -> Result<get_version::Response, ApiError> {
    let backup = find(&app, identity, Some(number(&request.version)?)).await?;
    let (count, etag) = (uint(backup.count), backup.etag.to_string());
    Ok(get_version::Response::new(algorithm(backup)?, count, etag, request.version))
}

async fn update(
    app: Arc<App>,
    identity: Identity,
    request: update_version::Request,
) -> Result<update_version::Response, ApiError> {
    let number = number(&request.version)?;
    let new: Algorithm = parse(&request.algorithm)?;
    let Named { version } = parse(&request.algorithm)?;
    if version.is_some_and(|version| version != request.version) {
        return Err(ApiError::invalid_param("The body names another version than the path."));
    }
    let backup = find(&app, identity.clone(), Some(number)).await?;
    if backup.algorithm != new.algorithm {
        return Err(ApiError::invalid_param("The algorithm of a backup does not change."));
    }
    let update = move |app: &App| {
        let auth_data = new.auth_data;
        app.store.write(move |write| {
            write.set_backup_auth_data(&identity.user_id, number, auth_data.get())
        })
    };
    if app.run(update).await? { Ok(update_version::Response::new()) } else { Err(no_backup()) }
}

async fn delete(
    app: Arc<App>,
    identity: Identity,
    request: delete_version::Request,
) -> Result<delete_version::Response, ApiError> {
    let number = number(&request.version)?;
    let delete = move |app: &App| backups::delete(&app.store, &identity.user_id, number);
    if app.run(delete).await? { Ok(delete_version::Response::new()) } else { Err(no_backup()) }
}

async fn put_all(
    app: Arc<App>,
    identity: Identity,
    request: add_keys::Request,
) -> Result<add_keys::Response, ApiError> {
    let mut keys = Vec::new();
    for (room_id, room) in request.rooms {
        for (session_id, key) in room.sessions {
            keys.push(to_store(room_id.clone(), session_id, &key)?);
        }
    }
    let state = put(app, identity, &request.version, keys).await?;
    Ok(add_keys::Response::new(state.etag.to_string(), uint(state.count)))
}

async fn put_room(
    app: Arc<App>,
    identity: Identity,
    request: add_keys_for_room::Request,
) -> Result<add_keys_for_room::Response, ApiError> {
    let add_keys_for_room::Request { version, room_id, sessions, .. } = request;
    let keys = sessions
        .into_iter()
        .map(|(session_id, key)| to_store(room_id.clone(), session_id, &key))
        .collect::<Result<_, _>>()?;
    let state = put(app, identity, &version, keys).await?;
    Ok(add_keys_for_room::Response::new(state.etag.to_string(), uint(state.count)))
}

async fn put_session(
    app: Arc<App>,
    identity: Identity,
    request: add_keys_for_session::Request,
) -> Result<add_keys_for_session::Response, ApiError> {
    let add_keys_for_session::Request { version, room_id, session_id, session_data, .. } = request;
    let keys = vec![to_store(room_id, session_id, &session_data)?];
    let state = put(app, identity, &version, keys).await?;
    Ok(add_keys_for_session::Response::new(state.etag.to_string(), uint(state.count)))
}

async fn get_all(
    app: Arc<App>,
    identity: Identity,
    request: get_keys::Request,
) -> Result<get_keys::Response, ApiError> {
    let mut rooms: BTreeMap<OwnedRoomId, RoomKeyBackup> = BTreeMap::new();
    for key in keys(app, identity, &request.version, None, None).await? {
        let room = rooms.entry(key.room_id.clone());
        let room = room.or_insert_with(|| RoomKeyBackup::new(BTreeMap::new()));
        room.sessions.insert(key.session_id.clone(), from_store(key)?);
    }
    Ok(get_keys::Response::new(rooms))
}

async fn get_room(
    app: Arc<App>,
    identity: Identity,
    request: get_keys_for_room::Request,
) -> Result<get_keys_for_room::Response, ApiError> {
    let found = keys(app, identity, &request.version, Some(request.room_id), None).await?;
    let sessions = found.into_iter().map(|key| Ok((key.session_id.clone(), from_store(key)?)));
    Ok(get_keys_for_room::Response::new(sessions.collect::<Result<_, ApiError>>()?))
}

async fn get_session(
    app: Arc<App>,
    identity: Identity,
    request: get_keys_for_session::Request,
) -> Result<get_keys_for_session::Response, ApiError> {
    let get_keys_for_session::Request { version, room_id, session_id, .. } = request;
    let found = keys(app, identity, &version, Some(room_id), Some(session_id)).await?;
    let none = || ApiError::not_found("The backup has no key of this session.");
    let key = found.into_iter().next().ok_or_else(none)?;
    Ok(get_keys_for_session::Response::new(from_store(key)?))
}

async fn delete_all(
    app: Arc<App>,
    identity: Identity,
    request: delete_keys::Request,
) -> Result<delete_keys::Response, ApiError> {
    let state = remove(app, identity, &request.version, None, None).await?;
    Ok(delete_keys::Response::new(state.etag.to_string(), uint(state.count)))
}

async fn delete_room(
    app: Arc<App>,
    identity: Identity,
    request: delete_keys_for_room::Request,
) -> Result<delete_keys_for_room::Response, ApiError> {
    let state = remove(app, identity, &request.version, Some(request.room_id), None).await?;
    Ok(delete_keys_for_room::Response::new(state.etag.to_string(), uint(state.count)))
}

async fn delete_session(
    app: Arc<App>,
    identity: Identity,
    request: delete_keys_for_session::Request,
) -> Result<delete_keys_for_session::Response, ApiError> {
    let delete_keys_for_session::Request { version, room_id, session_id, .. } = request;
    let state = remove(app, identity, &version, Some(room_id), Some(session_id)).await?;
    Ok(delete_keys_for_session::Response::new(state.etag.to_string(), uint(state.count)))
}

async fn find(
    app: &Arc<App>,
    identity: Identity,
    version: Option<i64>,
) -> Result<BackupVersion, ApiError> {
    let find = move |app: &App| app.store.read(|read| read.backup(&identity.user_id, version));
    app.run(find).await?.ok_or_else(no_backup)
}

async fn put(
    app: Arc<App>,
    identity: Identity,
    version: &str,
    keys: Vec<BackupKey>,
) -> Result<BackupState, ApiError> {
    let version = number(version)?;
    let put = move |app: &App| {
        app.store.write(move |write| write.put_backup_keys(&identity.user_id, version, &keys))
    };
    changed(app.run(put).await?)
}

async fn keys(
    app: Arc<App>,
    identity: Identity,
    version: &str,
    room_id: Option<OwnedRoomId>,
    session_id: Option<String>,
) -> Result<Vec<BackupKey>, ApiError> {
    let version = number(version)?;
    find(&app, identity.clone(), Some(version)).await?;
    let read = move |app: &App| {
        let (user_id, session_id) = (&identity.user_id, session_id.as_deref());
        app.store.read(|read| read.backup_keys(user_id, version, room_id.as_deref(), session_id))
    };
    app.run(read).await
}

async fn remove(
    app: Arc<App>,
    identity: Identity,
    version: &str,
    room_id: Option<OwnedRoomId>,
    session_id: Option<String>,
) -> Result<BackupState, ApiError> {
    let version = number(version)?;
    let remove = move |app: &App| {
        app.store.write(move |write| {
            let (user_id, session_id) = (&identity.user_id, session_id.as_deref());
            write.delete_backup_keys(user_id, version, room_id.as_deref(), session_id)
        })
    };
    changed(app.run(remove).await?)
}

fn changed(change: BackupChange) -> Result<BackupState, ApiError> {
    match change {
        BackupChange::Done(state) => Ok(state),
        BackupChange::NoSuchVersion => Err(no_backup()),
        BackupChange::NotCurrent(current) => {
            let data = WrongRoomKeysVersionErrorData::new(current.to_string());
            let kind = ErrorKind::WrongRoomKeysVersion(data);
            Err(ApiError::new(StatusCode::FORBIDDEN, kind, "There is a newer backup."))
        }
    }
}

fn to_store(
    room_id: OwnedRoomId,
    session_id: String,
    key: &Raw<KeyBackupData>,
) -> Result<BackupKey, ApiError> {
    let key: Key = parse(key)?;
    Ok(BackupKey {
        room_id,
        session_id,
        first_index: key.first_message_index.into(),
        forwarded: key.forwarded_count.into(),
        verified: key.is_verified,
        session_data: Box::<str>::from(key.session_data).into_string(),
    })
}

fn from_store(key: BackupKey) -> Result<Raw<KeyBackupData>, ApiError> {
    let key = Key {
        first_message_index: u32::try_from(key.first_index).map_err(ApiError::internal)?,
        forwarded_count: u32::try_from(key.forwarded).map_err(ApiError::internal)?,
        is_verified: key.verified,
        session_data: RawValue::from_string(key.session_data).map_err(ApiError::internal)?,
    };
    to_raw_value(&key).map(Raw::from_json).map_err(ApiError::internal)
}

fn algorithm(backup: BackupVersion) -> Result<Raw<BackupAlgorithm>, ApiError> {
    let auth_data = RawValue::from_string(backup.auth_data).map_err(ApiError::internal)?;
    let algorithm = Algorithm { algorithm: backup.algorithm, auth_data };
    to_raw_value(&algorithm).map(Raw::from_json).map_err(ApiError::internal)
}

fn parse<T, U: for<'de> Deserialize<'de>>(raw: &Raw<T>) -> Result<U, ApiError> {
    serde_json::from_str(raw.json().get()).map_err(|error| ApiError::bad_json(error.to_string()))
}

/// Versions are numbers here; any other text names none.
fn number(version: &str) -> Result<i64, ApiError> {
    version.parse().map_err(|_| no_backup())
}

fn uint(count: i64) -> UInt {
    UInt::try_from(count).unwrap_or_default()
}

fn no_backup() -> ApiError {
    ApiError::not_found("There is no such backup.")
}
