//! A small HTTP client for tests: JSON over plain loopback, one connection per request.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpStream, runtime};

/// Speaks to one box, as one account or none.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    token: Option<String>,
    runtime: runtime::Runtime,
}

/// What the box answered.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body as JSON; `null` if it is none.
    pub json: Value,
    /// The head, for its header fields.
    pub head: http::response::Parts,
    /// The body as it came.
    pub bytes: Bytes,
}

impl Client {
    /// Speaks to `address` without an account.
    ///
    /// # Errors
    /// When the operating system has no means for one more connection.
    pub fn new(address: SocketAddr) -> Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { address, token: None, runtime })
    }

    /// The same box, as the account of `token`.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn with_token(&self, token: &str) -> Result<Self> {
        Ok(Self { token: Some(token.to_owned()), ..Self::new(self.address)? })
    }

    /// The access token, if this client has one.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Sends a request and reads the answer, whatever its status.
    ///
    /// # Errors
    /// When the box cannot be reached or breaks off.
    pub fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header(header::HOST, self.address.to_string());
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let bytes = body.map(Value::to_string).unwrap_or_default();
        self.send(request, bytes.into())
    }

    /// Sends a request with any body.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn send(&self, mut request: http::request::Builder, body: Bytes) -> Result<Answer> {
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let response =
            self.runtime.block_on(exchange(self.address, request.body(Full::new(body))?))?;
        let (head, bytes) = response.into_parts();
        let json = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Ok(Answer { status: head.status.as_u16(), json, head, bytes })
    }

    /// Gets a path.
    ///
    /// # Errors
    /// As [`Client::request`], and on every status but 200.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.request(Method::GET, path, None)?.ok(path)
    }

    /// Posts JSON.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post(&self, path: &str, body: Value) -> Result<Value> {
        self.request(Method::POST, path, Some(&body))?.ok(path)
    }

    /// Puts JSON.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn put(&self, path: &str, body: Value) -> Result<Value> {
        self.request(Method::PUT, path, Some(&body))?.ok(path)
    }

    /// Registers on a box whose registration is open, and answers a client for the new account.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn register(&self, user: &str, password: &str) -> Result<Self> {
        const PATH: &str = "/_matrix/client/v3/register";
        let mut body = json!({"username": user, "password": password});
        let first = self.request(Method::POST, PATH, Some(&body))?;
        ensure!(first.status == 401, "register: {} {}", first.status, first.json);
        body["auth"] = json!({"type": "m.login.dummy", "session": first.json["session"]});
        let answer = self.post(PATH, body)?;
        self.with_token(crate::person::word(&answer, "access_token")?.as_str())
    }

    /// Logs in with a password, and answers a client for the account.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn login(&self, user: &str, password: &str) -> Result<Self> {
        let identifier = json!({"type": "m.id.user", "user": user});
        let body =
            json!({"type": "m.login.password", "identifier": identifier, "password": password});
        let answer = self.post("/_matrix/client/v3/login", body)?;
        self.with_token(crate::person::word(&answer, "access_token")?.as_str())
    }
}

impl Answer {
    /// The body, if the status is 200.
    ///
    /// # Errors
    /// On every other status, with what the box said.
    pub fn ok(self, what: &str) -> Result<Value> {
        ensure!(self.status == 200, "{what}: {} {}", self.status, self.json);
        Ok(self.json)
    }

    /// A header field, if it is there and text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }
}

async fn exchange(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<Response<Bytes>> {
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("the box does not listen on {address}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let (head, body) = response.into_parts();
    let bytes = body.collect().await?.to_bytes();
    drop(sender);
    connection.await??;
    Ok(Response::from_parts(head, bytes))
}
