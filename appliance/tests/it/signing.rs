//! Signing behind the conversation while the token comes and goes.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
    mpsc::{Receiver, Sender, channel},
};

use ruma::server_name;
use sallyport::service::{
    bundle::{self, export::export},
    peers, signer,
};
use sallyport_core::sign::{KeyRole, PublicKey, Signature, SigningRequest};
use sallyport_hsm::{
    Caps, Error, Health, KeyKind, KeyName, Mode, P256_POINT_BYTES, Pin, Secret32, Token,
};

use crate::bundles::{bare_enclave, order, shared_room};

/// A token that can be pulled out. Says when it was asked in vain.
struct Pluggable {
    token: Arc<dyn Token>,
    plugged: AtomicBool,
    missed: Mutex<Sender<()>>,
}

impl Pluggable {
    fn pulled_out(token: Arc<dyn Token>) -> (Arc<Self>, Receiver<()>) {
        let (missed, asked) = channel();
        let plugged = AtomicBool::new(false);
        (Arc::new(Self { token, plugged, missed: Mutex::new(missed) }), asked)
    }

    fn there(&self) -> Result<&dyn Token, Error> {
        if self.plugged.load(Ordering::SeqCst) {
            return Ok(&*self.token);
        }
        // Whoever no longer listens has heard enough.
        let _: Result<(), _> = self.missed.lock().unwrap().send(());
        Err(Error::Absent)
    }
}

impl Token for Pluggable {
    fn health(&self) -> Health {
        self.token.health()
    }

    fn caps(&self) -> Caps {
        self.token.caps()
    }

    fn mode(&self) -> Option<Mode> {
        self.token.mode()
    }

    fn custody(&self, key: &KeyName) -> Result<Mode, Error> {
        self.token.custody(key)
    }

    fn keys(&self) -> Result<Vec<KeyName>, Error> {
        self.there()?.keys()
    }

    fn public_key(&self, key: &KeyName) -> Result<PublicKey, Error> {
        self.there()?.public_key(key)
    }

    fn sign(&self, key: &KeyName, request: &SigningRequest) -> Result<Signature, Error> {
        self.there()?.sign(key, request)
    }

    fn sign_many(
        &self,
        key: &KeyName,
        requests: &[SigningRequest],
    ) -> Vec<Result<Signature, Error>> {
        match self.there() {
            Ok(token) => token.sign_many(key, requests),
            Err(_) => requests.iter().map(|_| Err(Error::Absent)).collect(),
        }
    }

    fn agree(&self, key: &KeyName, peer: &[u8; P256_POINT_BYTES]) -> Result<Secret32, Error> {
        self.there()?.agree(key, peer)
    }

    fn generate(&self, role: KeyRole, kind: KeyKind) -> Result<KeyName, Error> {
        self.there()?.generate(role, kind)
    }

    fn destroy(&self, key: &KeyName) -> Result<(), Error> {
        self.there()?.destroy(key)
    }

    fn wrap(&self, key: &KeyName, secret: &Secret32, aad: &[u8]) -> Result<Vec<u8>, Error> {
        self.there()?.wrap(key, secret, aad)
    }

    fn unwrap(&self, key: &KeyName, wrapped: &[u8], aad: &[u8]) -> Result<Secret32, Error> {
        self.there()?.unwrap(key, wrapped, aad)
    }

    fn reopen(&self, pin: Pin) -> Result<(), Error> {
        self.there()?.reopen(pin)
    }
}

/// The signer sleeps for seconds after a failure; an export neither waits for that nor fails because of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_does_not_wait_for_a_signer_that_rests() {
    let (mut alpha, bravo) = (bare_enclave("alpha.test", 0, 0), bare_enclave("bravo.test", 0, 0));
    peers::install_own_card(&alpha.app, alpha.card.clone(), &order()).unwrap();
    alpha.pair(&bravo);
    shared_room(&alpha);
    let (token, asked) = Pluggable::pulled_out(alpha.app.token.clone().unwrap());
    Arc::get_mut(&mut alpha.app).unwrap().token = Some(Arc::clone(&token) as Arc<dyn Token>);

    let app = Arc::clone(&alpha.app);
    let signer = tokio::spawn(signer::run(Arc::clone(&app)));
    let exported = tokio::task::spawn_blocking(move || {
        asked.recv().unwrap();
        let export = || export(&app, server_name!("bravo.test"), &order());
        let error = export().unwrap_err();
        let bundle::Error::Unsigned(signer::Error::Token(error)) = error else {
            panic!("{error}");
        };
        assert!(matches!(error, Error::Absent), "{error}");
        token.plugged.store(true, Ordering::SeqCst);
        export().unwrap()
    });
    exported.await.unwrap();
    assert!(!signer.is_finished());
    signer.abort();
}
