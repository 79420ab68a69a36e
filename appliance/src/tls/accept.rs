//! Handshakes. One whose key is in the token waits for its turn and is then signed on a thread that may block.

use std::{io, sync::Arc};

use rustls::{ServerConfig, server};
use tokio::{net::TcpStream, sync::Semaphore, task::spawn_blocking};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

/// Makes TLS of connections. All that are cloned from one share its session tickets.
#[derive(Clone, Debug)]
pub struct Acceptor {
    config: Arc<ServerConfig>,
    /// Whose turn it is to have the token sign; `None` if the key is in memory.
    turns: Option<Arc<Semaphore>>,
}

impl Acceptor {
    pub(super) fn new(config: ServerConfig, turns: Option<Arc<Semaphore>>) -> Self {
        Self { config: Arc::new(config), turns }
    }

    /// Shakes hands. The caller bounds the time.
    ///
    /// # Errors
    /// If the client does, or the token does not sign.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let start = LazyConfigAcceptor::new(server::Acceptor::default(), stream).await?;
        let config = Arc::clone(&self.config);
        let Some(turns) = &self.turns else {
            return start.into_stream(config).await;
        };
        let turn = Arc::clone(turns).acquire_owned().await.map_err(io::Error::other)?;
        // The answer to the first message of a client has the signature in it, so that slow clients keep nobody waiting: the turn ends before the
        // rest of the handshake. A client that resumes a session needs no signature, and is through at once.
        let accept = spawn_blocking(move || {
            let accept = start.into_stream(config);
            drop(turn);
            accept
        });
        accept.await.map_err(io::Error::other)?.await
    }
}
