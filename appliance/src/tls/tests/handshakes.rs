//! Handshakes over real sockets with a key in the token.

use std::{io, net::SocketAddr};

use rustls::HandshakeKind;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use super::*;

pub(super) const IN_TOKEN: &str = "[tls]\nkey_in = 'token'";

/// Answers each byte with the same, with TLS or without.
pub(super) async fn echo(acceptor: Option<Acceptor>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Some(acceptor) = acceptor else {
                    let (mut from, mut to) = stream.split();
                    return tokio::io::copy(&mut from, &mut to).await.map(drop);
                };
                let (mut from, mut to) = tokio::io::split(acceptor.accept(stream).await?);
                tokio::io::copy(&mut from, &mut to).await.map(drop)
            });
        }
    });
    address
}

/// Connects, has a byte echoed (after that the client has its tickets), and tells how hands were shaken.
pub(super) async fn connect(device: &TlsConnector, to: SocketAddr) -> io::Result<HandshakeKind> {
    let stream = TcpStream::connect(to).await?;
    let name = ServerName::try_from("alpha.example").unwrap();
    let mut stream = device.connect(name, stream).await?;
    stream.write_all(b"x").await?;
    stream.read_exact(&mut [0]).await?;
    Ok(stream.get_ref().1.handshake_kind().unwrap())
}

pub(super) fn new_device(fixture: &Fixture) -> TlsConnector {
    let root = CertificateDer::from_pem_file(fixture.path().join("ca.pem")).unwrap();
    TlsConnector::from(Arc::new(device(root, NOW)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_token_holds_up_handshakes_and_nothing_else() {
    const HANDSHAKES: u64 = 40;
    let fixture = Fixture::with_token(Duration::from_millis(300));
    let certificates = fixture.open(IN_TOKEN, NOW);
    let secure = echo(Some(certificates.acceptor().unwrap())).await;
    let plain = echo(None).await;
    let mut clients = JoinSet::new();
    for _ in 0..HANDSHAKES {
        let device = new_device(&fixture);
        clients.spawn(async move { connect(&device, secure).await.unwrap() });
    }
    // The first has its signature, so that the others are waiting for theirs.
    assert_eq!(clients.join_next().await.unwrap().unwrap(), HandshakeKind::Full);
    for _ in 0..100 {
        let mut stream = TcpStream::connect(plain).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
    }
    let meanwhile = fixture.made.get();
    assert!(meanwhile < HANDSHAKES / 2, "{meanwhile} signatures in the time of 100 plain answers");
    while let Some(kind) = clients.join_next().await {
        assert_eq!(kind.unwrap(), HandshakeKind::Full);
    }
    assert_eq!(fixture.made.get(), HANDSHAKES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_session_needs_neither_a_signature_nor_the_token() {
    let fixture = Fixture::with_token(Duration::ZERO);
    let certificates = fixture.open(IN_TOKEN, NOW);
    let acceptor = certificates.acceptor().unwrap();
    let (one, other) = (echo(Some(acceptor.clone())).await, echo(Some(acceptor)).await);
    let phone = new_device(&fixture);
    assert_eq!(connect(&phone, one).await.unwrap(), HandshakeKind::Full);
    assert_eq!(connect(&phone, one).await.unwrap(), HandshakeKind::Resumed);
    assert_eq!(connect(&phone, other).await.unwrap(), HandshakeKind::Resumed);
    assert_eq!(fixture.made.get(), 1);

    fixture.token().pull_out();
    assert_eq!(connect(&phone, other).await.unwrap(), HandshakeKind::Resumed);
    for _ in 0..3 * TLS_SIGNATURES_AT_ONCE {
        connect(&new_device(&fixture), one).await.unwrap_err();
    }
    fixture.token().plug_in();
    assert_eq!(connect(&new_device(&fixture), one).await.unwrap(), HandshakeKind::Full);
    assert_eq!(fixture.made.get(), 2);
}

/// A client that offers a key exchange that we do not know first comes to the signature by another way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_must_try_twice_is_served() {
    let fixture = Fixture::with_token(Duration::ZERO);
    let mut certificates = fixture.open(IN_TOKEN, NOW);
    let server = Arc::get_mut(&mut certificates).unwrap();
    server.provider.kx_groups.retain(|group| group.name() == rustls::NamedGroup::secp384r1);
    let address = echo(Some(certificates.acceptor().unwrap())).await;
    let kind = connect(&new_device(&fixture), address).await.unwrap();
    assert_eq!(kind, HandshakeKind::FullWithHelloRetryRequest);
    assert_eq!(fixture.made.get(), 1);
}

#[test]
fn after_a_rotation_the_next_certificate_has_the_new_key() {
    let fixture = Fixture::with_token(Duration::ZERO);
    let certificates = fixture.open(IN_TOKEN, NOW);
    let first = certificates.status().unwrap().tls_key.unwrap();
    assert!(matches!(&first, KeyPlace::Token { key } if key.starts_with("tls:")), "{first:?}");
    fixture.handshake(&certificates, "alpha.example", NOW).unwrap();
    // Back to a key of the box, and to the token again.
    let boxed = fixture.open("", NOW);
    assert_eq!(boxed.status().unwrap().tls_key, Some(KeyPlace::Vault));
    fixture.handshake(&boxed, "alpha.example", NOW).unwrap();
    assert_eq!(fixture.open(IN_TOKEN, NOW).status().unwrap().tls_key, Some(first));
}
