//! [End-to-end encryption keys](https://spec.matrix.org/v1.19/client-server-api/#key-management-api).

use std::{collections::BTreeMap, sync::Arc};

use ruma::{
    OneTimeKeyAlgorithm, UInt,
    api::client::keys::{
        claim_keys::v3 as claim_keys,
        get_key_changes::v3 as get_key_changes,
        get_keys::v3 as get_keys,
        upload_keys::v3 as upload_keys,
        upload_signatures::v3::{self as upload_signatures, Failure},
        upload_signing_keys::v3 as upload_signing_keys,
    },
    serde::Raw,
};
use sallyport_core::e2ee::KeyError;
use serde_json::{json, value::RawValue};

use super::{interactive, tokens::position_of};
use crate::{
    app::App,
    http::{Routes, error::ApiError, route::route},
    service::{
        keys::{self, KeysError, SignatureError, SigningKeys, SigningKeysChange, Upload},
        rooms,
        sessions::Identity,
        sync,
    },
};

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![
        route(upload),
        route(query),
        route(claim),
        route(changes),
        route(upload_signing),
        route(signatures),
    ]
}

async fn upload(
    app: Arc<App>,
    identity: Identity,
    request: upload_keys::Request,
) -> Result<upload_keys::Response, ApiError> {
    let texts = |keys: BTreeMap<ruma::OwnedOneTimeKeyId, Raw<_>>| {
        keys.into_iter().map(|(id, key)| (id.to_string(), text(key))).collect()
    };
    let upload = Upload {
        device_keys: request.device_keys.map(text),
        one_time_keys: texts(request.one_time_keys),
        fallback_keys: texts(request.fallback_keys),
    };
    let counts = app.run(move |app| keys::upload(&app.store, &identity, &upload)).await?;
    let counts = counts.into_iter().map(|(algorithm, count)| {
        (OneTimeKeyAlgorithm::from(algorithm), UInt::try_from(count).unwrap_or(UInt::MAX))
    });
    Ok(upload_keys::Response::new(counts.collect()))
}

async fn query(
    app: Arc<App>,
    identity: Identity,
    request: get_keys::Request,
) -> Result<get_keys::Response, ApiError> {
    let query = move |app: &App| keys::query(&app.store, &identity.user_id, &request.device_keys);
    let mut response = get_keys::Response::new();
    for (user_id, found) in app.run(query).await? {
        let devices = found
            .devices
            .into_iter()
            .map(|(device_id, keys)| Ok((device_id, raw(keys)?)))
            .collect::<Result<_, ApiError>>()?;
        response.device_keys.insert(user_id.clone(), devices);
        for (keys, key) in [
            (&mut response.master_keys, found.master),
            (&mut response.self_signing_keys, found.self_signing),
            (&mut response.user_signing_keys, found.user_signing),
        ] {
            if let Some(key) = key {
                keys.insert(user_id.clone(), raw(key)?);
            }
        }
    }
    Ok(response)
}

async fn claim(
    app: Arc<App>,
    _: Identity,
    request: claim_keys::Request,
) -> Result<claim_keys::Response, ApiError> {
    let wanted = request.one_time_keys.into_iter().map(|(user_id, devices)| {
        let devices = devices.into_iter().map(|(id, algorithm)| (id, algorithm.to_string()));
        (user_id, devices.collect())
    });
    let wanted = wanted.collect();
    let claim = move |app: &App| keys::claim(&app.store, &app.config.server_name, wanted);
    let mut claimed = BTreeMap::new();
    for (user_id, devices) in app.run(claim).await? {
        let of_user: &mut claim_keys::OneTimeKeys = claimed.entry(user_id).or_default();
        for (device_id, key) in devices {
            let id = key.key_id.as_str().try_into().map_err(ApiError::internal)?;
            of_user.insert(device_id, BTreeMap::from([(id, raw(key.key)?)]));
        }
    }
    Ok(claim_keys::Response::new(claimed))
}

/// The answer goes up to now, whatever the client's `to`: what came later is in its next sync once more.
async fn changes(
    app: Arc<App>,
    identity: Identity,
    request: get_key_changes::Request,
) -> Result<get_key_changes::Response, ApiError> {
    let changes = move |app: &App| {
        app.store.read(|read| {
            // A token from before a restore names no point: then all that is known has changed.
            let since = position_of(read, Some(&request.from))?.unwrap_or_default();
            Ok::<_, rooms::Error>(sync::device_list_changes(read, &identity.user_id, since)?)
        })
    };
    let lists = app.run(changes).await?;
    Ok(get_key_changes::Response::new(lists.changed, lists.left))
}

async fn upload_signing(
    app: Arc<App>,
    identity: Identity,
    request: upload_signing_keys::Request,
) -> Result<upload_signing_keys::Response, ApiError> {
    let upload_signing_keys::Request {
        auth, master_key, self_signing_key, user_signing_key, ..
    } = request;
    let new = SigningKeys {
        master: master_key.map(text),
        self_signing: self_signing_key.map(text),
        user_signing: user_signing_key.map(text),
    };
    let (user_id, keys) = (identity.user_id.clone(), new.clone());
    let change = app.run(move |app| keys::signing_keys_change(&app.store, &user_id, &keys)).await?;
    match change {
        SigningKeysChange::Nothing => return Ok(upload_signing_keys::Response::new()),
        // The first keys need no password: whoever holds the only session could upload them anyway.
        SigningKeysChange::First => {}
        SigningKeysChange::Replaces => {
            interactive::confirm(&app, &identity, auth, "replace the cross-signing keys").await?;
        }
    }
    let first = change == SigningKeysChange::First;
    let upload =
        move |app: &App| keys::upload_signing_keys(&app.store, &identity.user_id, &new, first);
    app.run(upload).await?;
    Ok(upload_signing_keys::Response::new())
}

async fn signatures(
    app: Arc<App>,
    identity: Identity,
    request: upload_signatures::Request,
) -> Result<upload_signatures::Response, ApiError> {
    let objects = request.signed_keys.into_iter().map(|(user_id, objects)| {
        let objects = objects.iter().map(|(id, json)| (id.to_owned(), json.get().to_owned()));
        (user_id, objects.collect())
    });
    let objects = objects.collect();
    let upload = move |app: &App| keys::upload_signatures(&app.store, &identity.user_id, &objects);
    let mut response = upload_signatures::Response::new();
    for (user_id, failures) in app.run(upload).await? {
        for (target, error) in failures {
            let failure = failure(&error).map_err(ApiError::internal)?;
            response.failures.entry(user_id.clone()).or_default().insert(target, failure);
        }
    }
    Ok(response)
}

fn failure(error: &SignatureError) -> serde_json::Result<Failure> {
    let code = match error {
        SignatureError::NotFound => "M_NOT_FOUND",
        SignatureError::Differs => "M_INVALID_PARAM",
        SignatureError::Key(_) => "M_INVALID_SIGNATURE",
        SignatureError::TooMany => "M_TOO_LARGE",
    };
    serde_json::from_value(json!({ "errcode": code, "error": error.to_string() }))
}

fn text<T>(raw: Raw<T>) -> String {
    Box::<str>::from(raw.into_json()).into_string()
}

fn raw<T>(json: String) -> Result<Raw<T>, ApiError> {
    RawValue::from_string(json).map(Raw::from_json).map_err(ApiError::internal)
}

impl From<KeysError> for ApiError {
    fn from(error: KeysError) -> Self {
        match error {
            KeysError::Key { ref id, ref source } => {
                let message = format!("The key {id} is not acceptable: {source}.");
                match source {
                    KeyError::BadSignature(_) => Self::invalid_signature(message),
                    _ => Self::invalid_param(message),
                }
            }
            KeysError::NoDeviceKeys
            | KeysError::Conflict(_)
            | KeysError::TooManyKeys
            | KeysError::TooManyUsers => Self::invalid_param(error.to_string()),
            KeysError::NoMasterKey => Self::missing_param(error.to_string()),
            KeysError::Busy => Self::unavailable(error),
            KeysError::Store(error) => error.into(),
        }
    }
}
