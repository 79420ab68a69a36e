//! [Login and sessions](https://spec.matrix.org/v1.19/client-server-api/#login).

use std::sync::Arc;

use http::StatusCode;
use ruma::api::{
    client::{
        session::{
            get_login_types::v3::{self as get_login_types, LoginType},
            login::v3::{self as login, LoginInfo, Password},
            logout::v3 as logout,
            logout_all::v3 as logout_all,
            refresh_token::v3 as refresh_token,
        },
        uiaa::UserIdentifier,
    },
    error::{ErrorKind, UnknownTokenErrorData},
};

use crate::{
    app::{App, random},
    http::{
        Routes,
        auth::{Anonymous, Leaving},
        error::ApiError,
        route::route,
    },
    service::{
        passwords,
        sessions::{self, DeviceWish, Fresh, LogIn, LogInError, Started, TokenError},
    },
};

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![
        route(login_types),
        route(log_in),
        route(refresh),
        route(log_out),
        route(log_out_everywhere),
    ]
}

async fn login_types(
    _: Arc<App>,
    _: Anonymous,
    _: get_login_types::Request,
) -> Result<get_login_types::Response, ApiError> {
    Ok(get_login_types::Response::new(vec![LoginType::Password(Default::default())]))
}

async fn log_in(
    app: Arc<App>,
    caller: Anonymous,
    request: login::Request,
) -> Result<login::Response, ApiError> {
    let LoginInfo::Password(password) = request.login_info else {
        let message = "Log in with m.login.password.";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, ErrorKind::Unknown, message));
    };
    let user = claimed_user(&password).ok_or_else(|| {
        ApiError::invalid_param("Name the user with an identifier of type m.id.user.")
    })?;
    let login = LogIn {
        user,
        password: password.password,
        device: DeviceWish {
            device_id: request.device_id,
            display_name: request.initial_device_display_name,
            refresh: request.refresh_token,
        },
    };
    let (now, fresh) = ((app.clock)(), Fresh::new(random()?, &app.pepper));
    let log_in = move |app: &App| {
        let server_name = &app.config.server_name;
        let origin = caller.address;
        sessions::log_in(&app.store, &app.attempts, server_name, login, origin, now, &fresh)
    };
    let started = app.run_password_check(log_in).await?;
    let Started { user_id, device_id, access_token, refresh_token, expires_in } = started;
    let mut response = login::Response::new(user_id, access_token, device_id);
    response.refresh_token = refresh_token;
    response.expires_in = expires_in;
    Ok(response)
}

/// The user that a client names, also in the way of before `identifier`.
#[expect(deprecated, reason = "old clients, matrix-commander among them, still send `user`")]
fn claimed_user(password: &Password) -> Option<String> {
    match &password.identifier {
        Some(UserIdentifier::Matrix(user)) => Some(user.user.clone()),
        Some(_) => None,
        None => password.user.clone(),
    }
}

async fn refresh(
    app: Arc<App>,
    _: Anonymous,
    request: refresh_token::Request,
) -> Result<refresh_token::Response, ApiError> {
    let (now, fresh) = ((app.clock)(), Fresh::new(random()?, &app.pepper));
    let refresh =
        move |app: &App| sessions::refresh(&app.store, &request.refresh_token, now, &fresh);
    let started = app.run(refresh).await?;
    let mut response = refresh_token::Response::new(started.access_token);
    response.refresh_token = started.refresh_token;
    response.expires_in_ms = started.expires_in;
    Ok(response)
}

async fn log_out(
    app: Arc<App>,
    Leaving(identity): Leaving,
    _: logout::Request,
) -> Result<logout::Response, ApiError> {
    app.run(move |app| sessions::log_out(&app.store, identity)).await?;
    Ok(logout::Response::new())
}

async fn log_out_everywhere(
    app: Arc<App>,
    Leaving(identity): Leaving,
    _: logout_all::Request,
) -> Result<logout_all::Response, ApiError> {
    app.run(move |app| sessions::log_out_everywhere(&app.store, identity.user_id)).await?;
    Ok(logout_all::Response::new())
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Unknown => Self::unknown_token(false),
            TokenError::Expired => {
                let mut data = UnknownTokenErrorData::new();
                data.soft_logout = true;
                let message = "The access token has expired.";
                Self::new(StatusCode::UNAUTHORIZED, ErrorKind::UnknownToken(data), message)
            }
            TokenError::Store(error) => error.into(),
        }
    }
}

impl From<LogInError> for ApiError {
    fn from(error: LogInError) -> Self {
        match error {
            LogInError::Forbidden => Self::forbidden("The user or the password is wrong."),
            LogInError::Locked => Self::user_locked(),
            LogInError::TooMany(wait) => Self::limit_exceeded(wait),
            LogInError::BadDevice => Self::invalid_param("The device id or its name is too long."),
            LogInError::Password(error) => error.into(),
            LogInError::Store(error) => error.into(),
        }
    }
}

impl From<passwords::Error> for ApiError {
    fn from(error: passwords::Error) -> Self {
        match error {
            passwords::Error::TooShort { .. } | passwords::Error::TooLong => {
                let message = error.to_string();
                Self::new(StatusCode::BAD_REQUEST, ErrorKind::WeakPassword, message)
            }
            error @ passwords::Error::Hash(_) => Self::internal(error),
        }
    }
}
