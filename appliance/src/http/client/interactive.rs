//! [User-interactive authentication](https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api):
//! asking again for the password before something that cannot be undone.

use std::sync::Arc;

use http::StatusCode;
use ruma::api::{
    client::uiaa::{AuthData, AuthFlow, AuthType, UiaaInfo, UserIdentifier},
    error::{ErrorKind, StandardErrorBody},
};
use serde_json::value::RawValue;

use crate::{
    app::{App, random},
    http::error::ApiError,
    service::sessions::{self, Identity, LogInError},
};

/// Lets pass who proves with the password of their account who they are; asks all others for it.
///
/// `purpose` says what is to be done, so that a session opened for one thing does not serve another.
pub(super) async fn confirm(
    app: &Arc<App>,
    identity: &Identity,
    auth: Option<AuthData>,
    purpose: &str,
) -> Result<(), ApiError> {
    let purpose = format!("{} {} {purpose}", identity.user_id, identity.device_id);
    let Some(AuthData::Password(password)) = auth else {
        return Err(ask(app, purpose, AuthType::Password)?);
    };
    if !session_fits(app, password.session.as_deref(), &purpose)? {
        return Err(ask(app, purpose, AuthType::Password)?);
    }
    let wrong_password = |session: Option<String>| {
        let wrong = "The password is wrong.".to_owned();
        let error = StandardErrorBody::new(ErrorKind::Forbidden, wrong);
        again(app, session, purpose, AuthType::Password, error)
    };
    let UserIdentifier::Matrix(user) = &password.identifier else {
        return Err(wrong_password(password.session)?);
    };
    let user_id = identity.user_id.clone();
    let named = sessions::full_user_id(&user.user, &app.config.server_name);
    if named.as_deref() != Some(&*user_id) {
        return Err(wrong_password(password.session)?);
    }
    let now = (app.clock)();
    app.attempts.begin(Some(&user_id), None, now).map_err(LogInError::TooMany)?;
    let (owner, secret) = (user_id.clone(), password.password);
    let check = move |app: &App| sessions::password_is_right(&app.store, &owner, &secret);
    if !app.run_password_check(check).await? {
        app.attempts.failed(Some(&user_id), None, now);
        return Err(wrong_password(password.session)?);
    }
    if let Some(session) = &password.session {
        app.interactive.close(session);
    }
    Ok(())
}

/// Whether a session is open for this purpose. Clients may also answer at once without one.
///
/// # Errors
/// If it was opened for another purpose: what is to be done must not change on the way.
pub(super) fn session_fits(
    app: &App,
    session: Option<&str>,
    purpose: &str,
) -> Result<bool, ApiError> {
    let Some(session) = session else { return Ok(true) };
    match app.interactive.purpose(session, (app.clock)()) {
        Some(opened_for) if opened_for == purpose => Ok(true),
        Some(_) => Err(ApiError::forbidden("This session was opened for something else.")),
        None => Ok(false),
    }
}

/// The answer that asks for one stage, in a new session.
pub(super) fn ask(app: &App, purpose: String, stage: AuthType) -> Result<ApiError, ApiError> {
    let session = app.interactive.open(purpose, (app.clock)(), random()?);
    Ok(ApiError::interactive(info(stage, session)))
}

/// The answer that asks for one stage again, in the session in which it failed.
fn again(
    app: &App,
    session: Option<String>,
    purpose: String,
    stage: AuthType,
    error: StandardErrorBody,
) -> Result<ApiError, ApiError> {
    let session = match session {
        Some(session) => session,
        None => app.interactive.open(purpose, (app.clock)(), random()?),
    };
    let mut info = info(stage, session);
    info.auth_error = Some(Box::new(error));
    Ok(ApiError::interactive(info))
}

fn info(stage: AuthType, session: String) -> UiaaInfo {
    let mut info = UiaaInfo::new(vec![AuthFlow::new(vec![stage])]);
    info.session = Some(session);
    // Some clients insist on an object.
    info.params = RawValue::from_string("{}".to_owned()).ok();
    info
}

/// 403 for stages that are not offered.
pub(super) fn not_offered() -> ApiError {
    let message = "This way of authentication is not offered.";
    ApiError::new(StatusCode::FORBIDDEN, ErrorKind::Forbidden, message)
}
