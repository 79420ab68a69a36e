//! Sockets: TCP with or without TLS for clients, a Unix socket for administration.
//!
//! A connection holds a permit from its first byte to its last, so that the number of
//! connections is bounded and the stop knows when the last one has gone. The box accepts
//! connections and never opens one.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, body::Body};
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use sallyport_core::limits::{
    CONNECTIONS_PER_ADDRESS_MAX, HEADER_READ_MS_MAX, HTTP_HEAD_BYTES_MAX, HTTP_HEADERS_MAX,
    TLS_HANDSHAKE_MS_MAX,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::server::TlsStream;
use tower::ServiceExt as _;

use crate::{app::App, config::Listener, http::auth::PeerAddress, tls::Acceptor};

/// Pause after the operating system refused to accept, so that a lack of descriptors does not
/// become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;

/// Why a socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or not this machine's.
    #[error("cannot listen on {address}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// The administration socket cannot be made.
    #[error("cannot listen on {}", path.display())]
    Unix {
        /// The socket.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// Another box answers on the administration socket.
    #[error("another box already runs on {}; stop it first", path.display())]
    Occupied {
        /// The socket.
        path: PathBuf,
    },
}

/// The user at the other end of a Unix socket, put into a request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct PeerUser {
    /// Numeric user id, as the kernel vouches for it.
    pub uid: u32,
}

/// The bound of connections over all sockets, and of those from one address.
#[derive(Clone)]
pub struct Connections {
    permits: Arc<Semaphore>,
    most: u32,
    by_address: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

/// The place of one connection; free again when dropped.
struct Place {
    address: IpAddr,
    by_address: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
    _permit: OwnedSemaphorePermit,
}

impl Connections {
    /// At most this many at a time.
    pub fn new(most: u32) -> Self {
        Self { permits: Arc::new(Semaphore::new(most as usize)), most, by_address: Arc::default() }
    }

    /// Waits until the last connection has gone, but no longer than `patience`; how many are left.
    pub async fn drain(&self, patience: Duration) -> usize {
        match timeout(patience, self.permits.acquire_many(self.most)).await {
            Ok(_) => 0,
            Err(_) => self.most as usize - self.permits.available_permits(),
        }
    }

    /// A place for a connection from this address, unless it has too many. This machine may
    /// have all: a proxy speaks for many.
    fn place(&self, permit: OwnedSemaphorePermit, address: IpAddr) -> Option<Place> {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let open = by_address.entry(address).or_default();
        if *open >= CONNECTIONS_PER_ADDRESS_MAX && !address.is_loopback() {
            return None;
        }
        *open += 1;
        Some(Place { address, by_address: Arc::clone(&self.by_address), _permit: permit })
    }

    /// Waits for a permit. `None` never happens: nobody closes the semaphore.
    async fn admit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).acquire_owned().await.ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut open) = by_address.entry(self.address) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }
}

/// A TCP address that nobody else can take any more. Who connects is refused until [`Reserved::listen`].
pub struct Reserved {
    address: SocketAddr,
    socket: TcpSocket,
}

/// Takes the address of a listener.
///
/// # Errors
/// [`Error::Tcp`] with the address.
pub fn reserve(listener: &Listener) -> Result<Reserved, Error> {
    let address = listener.address;
    let bound = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        // The cable may be plugged in later, and then it is this machine's address (ip(7)).
        setsockopt(&socket, sockopt::IpFreebind, &true)?;
        socket.bind(address)?;
        Ok(socket)
    };
    let socket = bound().map_err(|source| Error::Tcp { address, source })?;
    Ok(Reserved { address, socket })
}

impl Reserved {
    /// Opens the socket.
    ///
    /// # Errors
    /// [`Error::Tcp`] with the address.
    pub fn listen(self) -> Result<TcpListener, Error> {
        let address = self.address;
        self.socket.listen(BACKLOG).map_err(|source| Error::Tcp { address, source })
    }
}

/// Opens the administration socket for this user and group; replaces one that a crash left.
///
/// # Errors
/// [`Error::Occupied`] if somebody answers there, else [`Error::Unix`].
pub async fn bind_unix(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error::Unix { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        if UnixStream::connect(path).await.is_ok() {
            return Err(Error::Occupied { path: path.to_owned() });
        }
        fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

/// Accepts TCP connections until the box stops. With an acceptor they speak TLS.
pub async fn accept_tcp(
    app: Arc<App>,
    listener: TcpListener,
    tls: Option<Acceptor>,
    router: Router,
    connections: Connections,
) {
    while let Some(permit) = connections.admit().await {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = app.shutdown.requested() => return,
        };
        let Some((stream, address)) = keep_accepting(accepted).await else { continue };
        let Some(place) = connections.place(permit, address.ip()) else { continue };
        // Answers are written at once: waiting for more to send only delays them.
        if let Err(error) = stream.set_nodelay(true) {
            log::debug!(target: "listen", error:% = error; "a connection ended at once");
            continue;
        }
        let (app, tls, router) = (Arc::clone(&app), tls.clone(), router.clone());
        tokio::spawn(async move {
            let peer = Peer::Address(address.ip());
            match tls {
                None => serve(app, stream, router, peer).await,
                Some(tls) => {
                    if let Some(stream) = handshake(&tls, stream).await {
                        serve(app, stream, router, peer).await;
                    }
                }
            }
            drop(place);
        });
    }
}

/// Accepts connections of administrators until the box stops.
pub async fn accept_unix(
    app: Arc<App>,
    listener: UnixListener,
    router: Router,
    connections: Connections,
) {
    while let Some(permit) = connections.admit().await {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = app.shutdown.requested() => return,
        };
        let Some((stream, _)) = keep_accepting(accepted).await else { continue };
        let Ok(credentials) = stream.peer_cred() else { continue };
        let (app, router) = (Arc::clone(&app), router.clone());
        tokio::spawn(async move {
            let peer = Peer::User(PeerUser { uid: credentials.uid() });
            serve(app, stream, router, peer).await;
            drop(permit);
        });
    }
}

async fn handshake(tls: &Acceptor, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
    let patience = Duration::from_millis(TLS_HANDSHAKE_MS_MAX);
    match timeout(patience, tls.accept(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            log::debug!(target: "listen", error:% = error; "a TLS handshake failed");
            None
        }
        Err(_) => {
            log::debug!(target: "listen", patience:? = patience; "a TLS handshake took too long");
            None
        }
    }
}

/// A failure to accept concerns one connection or passes: the box goes on.
async fn keep_accepting<T>(accepted: io::Result<T>) -> Option<T> {
    match accepted {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            log::warn!(target: "listen", error:% = error; "a connection cannot be accepted");
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

#[derive(Clone, Copy)]
enum Peer {
    Address(IpAddr),
    User(PeerUser),
}

/// Serves one connection until it ends or the box stops; a request that has begun is finished.
async fn serve(
    app: Arc<App>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    peer: Peer,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        match peer {
            Peer::Address(address) => {
                request.extensions_mut().insert(PeerAddress(address));
            }
            Peer::User(user) => {
                request.extensions_mut().insert(user);
            }
        }
        router.clone().oneshot(request)
    });
    app.metrics.connections.inc();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(HEADER_READ_MS_MAX))
        .max_headers(HTTP_HEADERS_MAX)
        .max_buf_size(HTTP_HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = app.shutdown.requested() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    app.metrics.connections.dec();
    if let Err(error) = ended {
        log::debug!(target: "listen", error = crate::telemetry::chain(&error); "a connection broke");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[tokio::test]
    async fn one_address_cannot_take_all_places() {
        let connections = Connections::new(2 * CONNECTIONS_PER_ADDRESS_MAX as u32);
        let one: IpAddr = [10, 0, 0, 1].into();
        let mut places = Vec::new();
        for _ in 0..CONNECTIONS_PER_ADDRESS_MAX {
            places.push(connections.place(connections.admit().await.unwrap(), one).unwrap());
        }
        assert!(connections.place(connections.admit().await.unwrap(), one).is_none());
        let other: IpAddr = [10, 0, 0, 2].into();
        assert!(connections.place(connections.admit().await.unwrap(), other).is_some());
        places.pop();
        assert!(connections.place(connections.admit().await.unwrap(), one).is_some());
        drop(places);
        assert_eq!(connections.drain(Duration::from_secs(1)).await, 0);
        assert!(connections.by_address.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_address_may_come_later() {
        // Addresses of documentation, which no machine has (RFC 5737, RFC 3849).
        for address in ["192.0.2.1:0", "[2001:db8::1]:0"] {
            let address = address.parse().unwrap();
            let listener = Listener { address, apis: BTreeSet::new(), tls: false };
            let open = reserve(&listener).unwrap().listen().unwrap();
            assert_eq!(open.local_addr().unwrap().ip(), address.ip());
        }
    }
}
