//! `/activate`: the page where a person types the code from their slip and chooses a password.
//!
//! It works in any browser, without scripts. Nobody can make a browser do anything here without knowing a code, so no
//! further protection against forged requests is needed.

use std::{sync::Arc, time::Duration};

use askama::Template;
use axum::{
    Router,
    extract::{DefaultBodyLimit, Form, FromRequest as _, Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use ruma::OwnedUserId;
use sallyport_core::limits::{ACTIVATION_FORM_BYTES_MAX, PASSWORD_CHARACTERS_MIN};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    auth::{Anonymous, Caller as _},
    error::ApiError,
};
use crate::{
    app::{App, random},
    service::activation::{self, Error},
};

/// The page and its style sheet.
pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/activate", get(form).post(activate))
        .route("/activate/style.css", get(style))
        .layer(DefaultBodyLimit::max(ACTIVATION_FORM_BYTES_MAX))
        .layer(middleware::from_fn(careful))
}

/// The form.
async fn form(State(app): State<Arc<App>>) -> Response {
    Page::form(&app, "", None).answer(StatusCode::OK)
}

/// What was typed into the form.
#[derive(Deserialize)]
struct Typed {
    code: String,
    password: String,
    repeated: String,
}

/// Uses the code up, or says what to correct.
async fn activate(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let address = Anonymous::identify(&app, &head).await?.address;
    let now = (app.clock)();
    if let Err(wait) = app.attempts.begin(None, address, now) {
        return Ok(slow_down(&app, wait));
    }
    let request = Request::from_parts(head, body);
    let typed = Form::<Typed>::from_request(request, &app).await;
    let Ok(Form(Typed { code, password, repeated })) = typed else {
        return Ok(
            Page::form(&app, "", Some("Fill in the whole form.")).answer(StatusCode::BAD_REQUEST)
        );
    };
    let (password, repeated) = (Zeroizing::new(password), Zeroizing::new(repeated));
    if *password != *repeated {
        let problem = "The two passwords differ. Type the same one twice.";
        return Ok(Page::form(&app, &code, Some(problem)).answer(StatusCode::BAD_REQUEST));
    }
    let (salt, typed) = (random()?, code.clone());
    let activated = app.run_password_check(move |app| {
        let (store, pepper) = (&app.store, &app.pepper);
        let user_id = activation::activate(store, pepper, None, &typed, &password, &salt, now);
        Ok::<_, ApiError>(user_id)
    });
    let (status, problem) = match activated.await? {
        Ok(user_id) => return Ok(Page::done(&app, user_id).answer(StatusCode::OK)),
        Err(error @ (Error::NotACode(_) | Error::Unknown)) => {
            app.attempts.failed(None, address, now);
            (StatusCode::FORBIDDEN, sentence(&error))
        }
        Err(error @ Error::Password(_)) => (StatusCode::BAD_REQUEST, sentence(&error)),
        Err(error) => return Err(ApiError::internal(error)),
    };
    Ok(Page::form(&app, &code, Some(&problem)).answer(status))
}

async fn style() -> ([(HeaderName, HeaderValue); 1], &'static str) {
    let css = HeaderValue::from_static("text/css; charset=utf-8");
    ([(header::CONTENT_TYPE, css)], include_str!("../../templates/activate.css"))
}

fn slow_down(app: &App, wait: Duration) -> Response {
    let problem = "Too many codes were wrong. Wait a few minutes and try again.";
    let mut response = Page::form(app, "", Some(problem)).answer(StatusCode::TOO_MANY_REQUESTS);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
    response
}

/// The page: the form, or what to do next.
#[derive(Template)]
#[template(path = "activate.html")]
struct Page<'a> {
    server_name: &'a str,
    public_url: &'a str,
    code: &'a str,
    problem: Option<&'a str>,
    user_id: Option<OwnedUserId>,
    password_characters_min: usize,
}

impl<'a> Page<'a> {
    fn form(app: &'a App, code: &'a str, problem: Option<&'a str>) -> Self {
        Self {
            server_name: app.config.server_name.as_str(),
            public_url: &app.config.public_url,
            code,
            problem,
            user_id: None,
            password_characters_min: PASSWORD_CHARACTERS_MIN,
        }
    }

    fn done(app: &'a App, user_id: OwnedUserId) -> Self {
        Self { user_id: Some(user_id), ..Self::form(app, "", None) }
    }

    fn answer(&self, status: StatusCode) -> Response {
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        match self.render() {
            Ok(page) => (status, [(header::CONTENT_TYPE, html)], page).into_response(),
            Err(error) => ApiError::internal(error).into_response(),
        }
    }
}

/// An error as a sentence for the page.
fn sentence(error: &Error) -> String {
    let mut text = error.to_string();
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    text.push('.');
    text
}

/// Headers for a page that takes secrets: no scripts, no frames, no copies.
async fn careful(request: Request, next: Next) -> Response {
    const HEADERS: [(HeaderName, &str); 5] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
        ),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ];
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
