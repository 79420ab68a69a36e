//! A token before the token: it counts and times what is asked of the real one, and bounds what is asked one by one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use sallyport_core::sign::{Bucket, KeyRole, PublicKey, RequestKind, Signature, SigningRequest};
use sallyport_hsm::{
    Caps, Error, Health, KeyKind, KeyName, Mode, P256_POINT_BYTES, Pin, Secret32, Token,
};

use super::metrics::{Metrics, Outcome};

/// A token whose operations are measured, those that fail included. Signatures that are asked for one by one must stay within the
/// [budget](RequestKind::budget) of their kind; batches of events are what people wrote, and have none.
pub struct Measured {
    token: Arc<dyn Token>,
    metrics: Arc<Metrics>,
    started: Instant,
    buckets: Mutex<BTreeMap<RequestKind, Bucket>>,
}

impl Measured {
    /// Measures a token.
    pub fn new(token: Arc<dyn Token>, metrics: Arc<Metrics>) -> Self {
        Self { token, metrics, started: Instant::now(), buckets: Mutex::default() }
    }

    /// Takes a permit for one signature.
    fn admit(&self, kind: RequestKind) -> Result<(), Error> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(kind).or_default();
        bucket.take(kind.budget(), self.started.elapsed()).map_err(|wait| {
            self.metrics.signatures(kind, Outcome::HeldBack, 1);
            Error::TooMany { kind: kind.as_str(), wait_s: wait.as_secs().saturating_add(1) }
        })
    }

    fn count(&self, kind: RequestKind, asked: usize, signed: usize) {
        self.metrics.signatures(kind, Outcome::Signed, signed);
        self.metrics.signatures(kind, Outcome::Failed, asked.saturating_sub(signed));
    }

    fn measure<T>(&self, operations: usize, work: impl FnOnce(&dyn Token) -> T) -> T {
        let began = Instant::now();
        let answer = work(&*self.token);
        self.metrics.token(operations, began.elapsed());
        answer
    }
}

impl Token for Measured {
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

    fn kind_for(&self, role: KeyRole) -> Option<KeyKind> {
        self.token.kind_for(role)
    }

    fn keys(&self) -> Result<Vec<KeyName>, Error> {
        self.measure(1, |token| token.keys())
    }

    fn public_key(&self, key: &KeyName) -> Result<PublicKey, Error> {
        self.measure(1, |token| token.public_key(key))
    }

    fn sign(&self, key: &KeyName, request: &SigningRequest) -> Result<Signature, Error> {
        let kind = request.kind();
        self.admit(kind)?;
        let began = Instant::now();
        let answer = self.measure(1, |token| token.sign(key, request));
        self.metrics.signature_time(kind, began.elapsed());
        self.count(kind, 1, usize::from(answer.is_ok()));
        answer
    }

    fn sign_many(
        &self,
        key: &KeyName,
        requests: &[SigningRequest],
    ) -> Vec<Result<Signature, Error>> {
        let answers = self.measure(requests.len(), |token| token.sign_many(key, requests));
        let kinds: BTreeSet<_> = requests.iter().map(SigningRequest::kind).collect();
        for kind in kinds {
            let of_kind =
                || requests.iter().zip(&answers).filter(|(asked, _)| asked.kind() == kind);
            self.count(kind, of_kind().count(), of_kind().filter(|(_, got)| got.is_ok()).count());
        }
        answers
    }

    fn agree(&self, key: &KeyName, peer: &[u8; P256_POINT_BYTES]) -> Result<Secret32, Error> {
        self.measure(1, |token| token.agree(key, peer))
    }

    fn generate(&self, role: KeyRole, kind: KeyKind) -> Result<KeyName, Error> {
        self.measure(1, |token| token.generate(role, kind))
    }

    fn destroy(&self, key: &KeyName) -> Result<(), Error> {
        self.measure(1, |token| token.destroy(key))
    }

    fn wrap(&self, key: &KeyName, secret: &Secret32, aad: &[u8]) -> Result<Vec<u8>, Error> {
        self.measure(1, |token| token.wrap(key, secret, aad))
    }

    fn unwrap(&self, key: &KeyName, wrapped: &[u8], aad: &[u8]) -> Result<Secret32, Error> {
        self.measure(1, |token| token.unwrap(key, wrapped, aad))
    }

    fn reopen(&self, pin: Pin) -> Result<(), Error> {
        self.measure(1, |token| token.reopen(pin))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ruma::owned_server_name;
    use sallyport_core::sign::Policy;
    use sallyport_hsm::SoftwareToken;

    use super::*;

    #[test]
    fn what_is_asked_one_by_one_is_bounded_and_counted_by_kind() {
        let folder = tempfile::tempdir().unwrap();
        let policy = Policy { server_name: owned_server_name!("alpha.example") };
        let path = folder.path().join("keys");
        let token = SoftwareToken::open_or_create(&path, Duration::ZERO, policy).unwrap();
        let metrics = Arc::new(Metrics::new());
        let token = Measured::new(Arc::new(token), Arc::clone(&metrics));
        let key = token.generate(KeyRole::Audit, KeyKind::P256).unwrap();
        // Refused by the policy, as nothing of it is a checkpoint: it costs a permit all the same.
        let request = SigningRequest::Checkpoint(vec![1]);
        let burst = RequestKind::Checkpoint.budget().burst;
        for _ in 0..burst {
            assert!(matches!(token.sign(&key, &request), Err(Error::Refused(_))));
        }
        let held_back = token.sign(&key, &request).unwrap_err();
        assert!(
            matches!(held_back, Error::TooMany { kind: "checkpoint", wait_s: 1..=30 }),
            "{held_back}"
        );
        // Batches have no bound, and other kinds their own.
        let many = vec![request; 50];
        assert!(
            token
                .sign_many(&key, &many)
                .iter()
                .all(|answer| matches!(answer, Err(Error::Refused(_))))
        );
        let other = token.sign(&key, &SigningRequest::Manifest(vec![1]));
        assert!(matches!(other, Err(Error::WrongRole { .. })));

        let text = metrics.encode().unwrap();
        for line in [
            r#"sallyport_token_requests_total{kind="checkpoint",outcome="failed"} 70"#,
            r#"sallyport_token_requests_total{kind="checkpoint",outcome="held_back"} 1"#,
            r#"sallyport_token_request_seconds_count{kind="checkpoint"} 20"#,
            r#"sallyport_token_requests_total{kind="manifest",outcome="failed"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
