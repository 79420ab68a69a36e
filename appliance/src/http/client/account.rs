//! [Account registration and management](https://spec.matrix.org/v1.19/client-server-api/#account-registration-and-management).

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use ruma::{
    OwnedUserId,
    api::{
        client::{
            account::{
                ThirdPartyIdRemovalStatus,
                change_password::v3 as change_password,
                check_registration_token_validity::v1 as check_token,
                deactivate::v3 as deactivate,
                get_3pids::v3 as get_third_party_ids,
                get_username_availability::v3 as get_availability,
                register::{
                    RegistrationKind,
                    v3::{self as register},
                },
                whoami::v3 as whoami,
            },
            uiaa::{AuthData, AuthType},
        },
        error::ErrorKind,
    },
};

use sallyport_core::roster::Localpart;
use serde_json::json;

use super::{interactive, said_in_full};
use crate::{
    app::{App, random},
    config::RegistrationMode,
    http::{
        Routes,
        auth::Anonymous,
        error::ApiError,
        route::{Streamed, route, stream},
    },
    service::{
        accounts::{self, AccountError},
        activation,
        sessions::{self, DeviceWish, Fresh, Identity},
    },
};

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![
        route(register),
        route(availability),
        route(token_validity),
        route(change_password),
        route(deactivate),
        route(who_am_i),
        stream(third_party_ids),
    ]
}

async fn register(
    app: Arc<App>,
    _: Anonymous,
    request: register::Request,
) -> Result<register::Response, ApiError> {
    if request.kind != RegistrationKind::User {
        return Err(ApiError::forbidden("There are no guests on this server."));
    }
    let (stage, user_id) = match app.config.registration.mode {
        RegistrationMode::Closed => return Err(closed()),
        RegistrationMode::Token => {
            (AuthType::RegistrationToken, awaited_name(&app, request.username)?)
        }
        RegistrationMode::Open => (AuthType::Dummy, wanted_name(&app, request.username).await?),
    };
    let purpose = format!("register {user_id}");
    let (session, code) = match (request.auth, &stage) {
        (None, _) => return Err(interactive::ask(&app, purpose, stage)?),
        (Some(AuthData::Dummy(dummy)), AuthType::Dummy) => (dummy.session, None),
        (Some(AuthData::RegistrationToken(token)), AuthType::RegistrationToken) => {
            (token.session, Some(token.token))
        }
        _ => return Err(interactive::not_offered()),
    };
    if !interactive::session_fits(&app, session.as_deref(), &purpose)? {
        return Err(interactive::ask(&app, purpose, stage)?);
    }
    let password = request
        .password
        .ok_or_else(|| ApiError::missing_param("A new account needs a password."))?;
    let (now, salt, made) = ((app.clock)(), random()?, user_id.clone());
    let register = move |app: &App| match code {
        Some(code) => {
            let (store, pepper, made) = (&app.store, &app.pepper, Some(&*made));
            activation::activate(store, pepper, made, &code, &password, &salt, now)
                .map(drop)
                .map_err(ApiError::from)
        }
        None => Ok(accounts::register(app, &made, &password, &salt, now)?),
    };
    app.run_password_check(register).await?;
    if let Some(session) = session {
        app.interactive.close(&session);
    }
    let mut response = register::Response::new(user_id.clone());
    if request.inhibit_login {
        return Ok(response);
    }
    let wish = DeviceWish {
        device_id: request.device_id,
        display_name: request.initial_device_display_name,
        refresh: request.refresh_token,
    };
    let fresh = Fresh::new(random()?, &app.pepper);
    let start = move |app: &App| sessions::start(&app.store, user_id, wish, now, &fresh);
    let started = app.run(start).await?;
    response.device_id = Some(started.device_id);
    response.access_token = Some(started.access_token);
    response.refresh_token = started.refresh_token;
    response.expires_in = started.expires_in;
    Ok(response)
}

/// The user id of an account that a roster made, and that its owner takes over with an activation code.
fn awaited_name(app: &App, name: Option<String>) -> Result<OwnedUserId, ApiError> {
    let name = name.ok_or_else(|| ApiError::missing_param("Give the username on your slip."))?;
    let localpart: Option<Localpart> = name.parse().ok();
    localpart
        .and_then(|localpart| localpart.user_id(&app.config.server_name))
        .ok_or_else(|| AccountError::InvalidName.into())
}

/// The user id of a new account: of the name that the client wants, or of one that is made up.
async fn wanted_name(app: &Arc<App>, name: Option<String>) -> Result<OwnedUserId, ApiError> {
    let name = match name {
        // People type their name as it begins a sentence.
        Some(name) => name.to_ascii_lowercase(),
        None => u64::from_be_bytes(random()?).to_string(),
    };
    app.run(move |app| accounts::available(&app.store, &app.config.server_name, &name)).await
}

fn closed() -> ApiError {
    ApiError::forbidden("Accounts are made by your administrators.")
}

async fn availability(
    app: Arc<App>,
    _: Anonymous,
    request: get_availability::Request,
) -> Result<get_availability::Response, ApiError> {
    if app.config.registration.mode == RegistrationMode::Closed {
        return Err(closed());
    }
    wanted_name(&app, Some(request.username)).await?;
    Ok(get_availability::Response::new(true))
}

async fn token_validity(
    app: Arc<App>,
    anonymous: Anonymous,
    request: check_token::Request,
) -> Result<check_token::Response, ApiError> {
    if app.config.registration.mode != RegistrationMode::Token {
        return Err(closed());
    }
    let (now, address) = ((app.clock)(), anonymous.address);
    app.attempts.begin(None, address, now).map_err(ApiError::limit_exceeded)?;
    let owner = app.run(move |app| {
        let owner = activation::owner(&app.store, &app.pepper, &request.token, now);
        Ok::<_, ApiError>(owner)
    });
    match owner.await? {
        Ok(_) => Ok(check_token::Response::new(true)),
        Err(activation::Error::NotACode(_) | activation::Error::Unknown) => {
            app.attempts.failed(None, address, now);
            Ok(check_token::Response::new(false))
        }
        Err(error) => Err(error.into()),
    }
}

async fn change_password(
    app: Arc<App>,
    identity: Identity,
    request: change_password::Request,
) -> Result<change_password::Response, ApiError> {
    interactive::confirm(&app, &identity, request.auth, "change the password").await?;
    let salt = random()?;
    let change = move |app: &App| {
        let (password, others) = (&request.new_password, request.logout_devices);
        accounts::change_password(app, identity, password, others, &salt)
    };
    app.run_password_check(change).await?;
    Ok(change_password::Response::new())
}

async fn deactivate(
    app: Arc<App>,
    identity: Identity,
    request: deactivate::Request,
) -> Result<deactivate::Response, ApiError> {
    interactive::confirm(&app, &identity, request.auth, "deactivate the account").await?;
    let now = (app.clock)();
    app.run(move |app| accounts::deactivate(app, identity.user_id, now)).await?;
    Ok(deactivate::Response::new(ThirdPartyIdRemovalStatus::NoSupport))
}

/// No account has an e-mail address or a telephone number.
/// There are none.
async fn third_party_ids(
    _: Arc<App>,
    _: Identity,
    _: Streamed<get_third_party_ids::Request>,
) -> Result<Response, ApiError> {
    said_in_full(&json!({}), [("threepids", json!([]))])
}

async fn who_am_i(
    _: Arc<App>,
    identity: Identity,
    _: whoami::Request,
) -> Result<whoami::Response, ApiError> {
    let mut response = whoami::Response::new(identity.user_id, false);
    response.device_id = Some(identity.device_id);
    Ok(response)
}

impl From<activation::Error> for ApiError {
    fn from(error: activation::Error) -> Self {
        match error {
            activation::Error::NotACode(_) | activation::Error::Unknown => {
                Self::forbidden("The activation code is not valid.")
            }
            activation::Error::Password(error) => error.into(),
            activation::Error::Store(error) => error.into(),
            error => Self::internal(error),
        }
    }
}

impl From<AccountError> for ApiError {
    fn from(error: AccountError) -> Self {
        let status = StatusCode::BAD_REQUEST;
        match error {
            AccountError::InvalidName => {
                Self::new(status, ErrorKind::InvalidUsername, error.to_string())
            }
            AccountError::Taken => Self::new(status, ErrorKind::UserInUse, "The name is taken."),
            AccountError::Password(error) => error.into(),
            AccountError::Store(error) => error.into(),
        }
    }
}
