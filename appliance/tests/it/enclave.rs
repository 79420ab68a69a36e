//! A box in this process, asked like a client asks.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use axum::{Router, body::Body};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use ruma::OwnedUserId;
use sallyport::{
    app::App,
    config::{Api, Config},
    http::router,
    shutdown,
};
use sallyport_core::time::Millis;
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// The password of all accounts.
pub(crate) const PASSWORD: &str = "correct horse battery";

/// A box whose clock stands still and where everybody may register.
pub(crate) struct Enclave {
    pub(crate) app: Arc<App>,
    router: Router,
    _folder: tempfile::TempDir,
}

/// What the box answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Vec<u8>,
    /// The body as JSON; `null` if it is none.
    pub(crate) json: Value,
}

impl Answer {
    /// The body of a success.
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.json);
        self.json
    }

    /// Status and error code of a failure.
    pub(crate) fn error(self) -> (u16, String) {
        let code = self.json["errcode"].as_str().unwrap_or_default().to_owned();
        (self.status.as_u16(), code)
    }
}

/// A session.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) user_id: OwnedUserId,
    pub(crate) device_id: String,
    pub(crate) token: String,
}

impl Enclave {
    pub(crate) fn open(registration: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().join("data");
        let text = format!(
            "server_name = 'alpha.test'\ndata_dir = {:?}\n\
             [registration]\nmode = '{registration}'\n[limits]\nmax_upload_bytes = 1000000",
            data_dir.display().to_string()
        );
        let config = Config::parse(&text, Path::new("test")).unwrap();
        let (_, shutdown) = shutdown::channel();
        let app = App::open(config, || Millis(1_000_000_000_000), shutdown).unwrap();
        let router = router(Arc::clone(&app), &BTreeSet::from([Api::Client]));
        Self { app, router, _folder: folder }
    }

    /// Sends a request to a path of the client-server API below `/_matrix/client/`.
    pub(crate) async fn call(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Value,
    ) -> Answer {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.send(method, &format!("/_matrix/client/{path}"), token, &[], body).await
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body)).unwrap();
        let (head, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes().to_vec();
        let json = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer { status: head.status, headers: head.headers, bytes, json }
    }

    /// Makes an account without a password and a session of it: quicker than over HTTP.
    pub(crate) fn member(&self, name: &str, device_id: &str) -> Member {
        let user_id: OwnedUserId = format!("@{name}:alpha.test").try_into().unwrap();
        let token = format!("token of {name} {device_id}");
        let new = sallyport_store::NewSession {
            user_id: user_id.clone(),
            device_id: device_id.into(),
            display_name: None,
            tokens: sallyport_store::NewTokens {
                access: self.app.pepper.token(&token).0,
                refresh: None,
                expires: None,
            },
        };
        self.app
            .store
            .write(move |write| {
                write.create_user(&new.user_id, Millis(1))?;
                write.start_session(&new, Millis(1))
            })
            .unwrap();
        Member { user_id, device_id: device_id.to_owned(), token }
    }

    /// Registers an account over HTTP.
    pub(crate) async fn register(&self, name: &str) -> Member {
        let body = json!({
            "username": name, "password": PASSWORD, "auth": { "type": "m.login.dummy" },
        });
        let json = self.call("POST", "v3/register", None, body).await.ok();
        Member {
            user_id: json["user_id"].as_str().unwrap().try_into().unwrap(),
            device_id: json["device_id"].as_str().unwrap().to_owned(),
            token: json["access_token"].as_str().unwrap().to_owned(),
        }
    }

    /// As [`Enclave::call`], as a member.
    pub(crate) async fn ask(
        &self,
        member: &Member,
        method: &str,
        path: &str,
        body: Value,
    ) -> Answer {
        self.call(method, path, Some(&member.token), body).await
    }
}
