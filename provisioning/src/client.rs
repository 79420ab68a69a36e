//! Talks to a box over its administration socket.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
};

use anyhow::Context as _;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request};
use http_body_util::{BodyExt as _, Full, Limited, combinators::BoxBody};
use hyper::{
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use sallyport_core::admin::{AUTHORITY, Approval, Authority, ErrorBody, ErrorCode};
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

/// Bytes of a JSON answer: the activation codes of the largest roster fit.
const ANSWER_BYTES_MAX: usize = 128 << 20;
/// Bytes that are read from a file at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// The box at the other end of a socket, and who gives it commands.
pub(crate) struct Box {
    socket: PathBuf,
    actor: String,
}

/// Why a box did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Nobody answers.
    #[error("the box does not answer on {}: is it running, and may you open the socket?", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// It said no; the text is the box's own.
    #[error("{0}")]
    Refused(String),
    /// It said that officers must approve, or that an approval does not count; the text is the box's own.
    #[error("{0}")]
    NeedsApproval(String),
    /// What is sent cannot be read to its end.
    #[error(
        "the file could not be read to its end, and nothing of it was imported: was the stick pulled out? Plug it in again and repeat the command"
    )]
    Unread(#[source] anyhow::Error),
    /// The answer is not one of a box.
    #[error("the box's answer cannot be understood: is it of another version?")]
    Broken(#[source] anyhow::Error),
}

type Sent = BoxBody<Bytes, io::Error>;

impl Box {
    pub(crate) fn new(socket: PathBuf, actor: String) -> Self {
        Self { socket, actor }
    }

    /// The administration socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Who gives the commands.
    pub(crate) fn actor(&self) -> &str {
        &self.actor
    }

    /// Asks for something.
    pub(crate) fn ask<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let request = Request::builder().method(Method::GET).uri(path);
        self.json(request, empty())
    }

    /// Gives a command with a JSON body.
    pub(crate) fn command<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.command_approved(path, vec![], body)
    }

    /// Gives a command with a JSON body that officers approved.
    pub(crate) fn command_approved<T: DeserializeOwned>(
        &self,
        path: &str,
        approvals: Vec<Approval>,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let body = serde_json::to_vec(body).context("cannot write the request")?;
        self.json(self.authorised(Method::POST, path, approvals)?, full(body))
    }

    /// Gives a command with a file as its body.
    pub(crate) fn send_bytes<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        approvals: Vec<Approval>,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> anyhow::Result<T> {
        let mut request = self.authorised(method, path, approvals)?;
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.json(request, full(body))
    }

    /// Gives a command with a file as its body, which is read while it is sent.
    pub(crate) fn send_file<T: DeserializeOwned>(
        &self,
        path: &str,
        approvals: Vec<Approval>,
        file: File,
    ) -> anyhow::Result<T> {
        let left = file.metadata().context("cannot see how large the file is")?.len();
        let body = FileBody { file, left }.boxed();
        self.json(self.authorised(Method::POST, path, approvals)?, body)
    }

    /// Gets a file.
    pub(crate) fn fetch(&self, path: &str, to: &mut impl Write) -> anyhow::Result<u64> {
        let request = Request::builder().method(Method::GET).uri(path);
        self.file(request, to)
    }

    /// Gives a command whose answer is a file.
    pub(crate) fn command_fetch(
        &self,
        path: &str,
        approvals: Vec<Approval>,
        to: &mut impl Write,
    ) -> anyhow::Result<u64> {
        self.file(self.authorised(Method::POST, path, approvals)?, to)
    }

    /// Gives a command whose answer is a large file; `watch` hears how many bytes have come, and the number that the answer has in a header.
    pub(crate) fn command_fetch_watched(
        &self,
        path: &str,
        to: &mut impl Write,
        header: &str,
        watch: impl FnMut(u64, Option<u64>),
    ) -> anyhow::Result<u64> {
        self.watched_file(self.authorised(Method::POST, path, vec![])?, to, header, watch)
    }

    fn authorised(
        &self,
        method: Method,
        path: &str,
        approvals: Vec<Approval>,
    ) -> anyhow::Result<request::Builder> {
        let authority = Authority { actor: self.actor.clone(), approvals };
        let authority = serde_json::to_vec(&authority).context("cannot write the request")?;
        let authority = HeaderValue::from_bytes(&authority)
            .context("your name has control characters: give another one with --actor")?;
        Ok(Request::builder().method(method).uri(path).header(AUTHORITY, authority))
    }

    fn json<T: DeserializeOwned>(
        &self,
        request: request::Builder,
        body: Sent,
    ) -> anyhow::Result<T> {
        self.round_trip(request, body, async |answer| {
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|e| Error::Broken(anyhow::Error::from_boxed(e)))?.to_bytes();
            serde_json::from_slice(&body).map_err(|e| Error::Broken(e.into()).into())
        })
    }

    fn file(&self, request: request::Builder, to: &mut impl Write) -> anyhow::Result<u64> {
        self.watched_file(request, to, "", |_, _| {})
    }

    fn watched_file(
        &self,
        request: request::Builder,
        to: &mut impl Write,
        header: &str,
        mut watch: impl FnMut(u64, Option<u64>),
    ) -> anyhow::Result<u64> {
        self.round_trip(request, empty(), async |answer| {
            let (head, mut answer) = answer.into_parts();
            let number =
                head.headers.get(header).and_then(|value| value.to_str().ok()?.parse().ok());
            let mut bytes = 0;
            while let Some(frame) = answer.frame().await {
                let frame = frame.map_err(|e| Error::Broken(e.into()))?;
                if let Some(chunk) = frame.data_ref() {
                    to.write_all(chunk).context("cannot write the file")?;
                    bytes += chunk.len() as u64;
                    watch(bytes, number);
                }
            }
            Ok(bytes)
        })
    }

    fn round_trip<T>(
        &self,
        request: request::Builder,
        body: Sent,
        read: impl AsyncFnOnce(Response<Incoming>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let request = request
            .header(header::HOST, "localhost")
            .body(body)
            .context("cannot write the request")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("cannot open a socket")?;
        runtime.block_on(async {
            let answer = exchange(&self.socket, request).await?;
            if answer.status().is_success() {
                return read(answer).await;
            }
            Err(refusal(answer).await.into())
        })
    }
}

async fn exchange(socket: &Path, request: Request<Sent>) -> Result<Response<Incoming>, Error> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| Error::Unreachable { socket: socket.to_owned(), source })?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| Error::Broken(e.into()))?;
    // Ends with the answer; what went wrong on it is seen by the sender as well.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(|error| {
        // What we do wrong ourselves is only that the body ends with an error.
        if error.is_user() { Error::Unread(error.into()) } else { Error::Broken(error.into()) }
    })
}

async fn refusal(answer: Response<Incoming>) -> Error {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    let text = body.map(|body| body.to_bytes()).unwrap_or_default();
    match serde_json::from_slice::<ErrorBody>(&text) {
        Ok(ErrorBody { code: ErrorCode::NeedsApproval, error }) => Error::NeedsApproval(error),
        Ok(ErrorBody { error, .. }) => Error::Refused(error),
        Err(_) if status == StatusCode::NOT_FOUND => Error::Refused(
            "the box does not know this command: is it of another version?".to_owned(),
        ),
        Err(error) => Error::Broken(anyhow::Error::from(error).context(status)),
    }
}

fn full(body: Vec<u8>) -> Sent {
    Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed()
}

fn empty() -> Sent {
    full(Vec::new())
}

/// A body that reads its file as it goes, so that a bundle of any size takes little memory. Reading blocks, which is
/// fine: nothing else happens on the runtime.
struct FileBody {
    file: File,
    left: u64,
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let wanted = usize::try_from(self.left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let mut chunk = vec![0; wanted];
        Poll::Ready(Some(self.file.read_exact(&mut chunk).map(|()| {
            self.left -= wanted as u64;
            Frame::data(Bytes::from(chunk))
        })))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
