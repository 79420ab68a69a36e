//! How many signatures of each kind the box asks of its token: a bucket of permits per kind, as pure arithmetic.

use std::time::Duration;

use crate::limits::{
    SIGNATURES_FEDERATION, SIGNATURES_HANDSHAKES, SIGNATURES_PER_BUNDLE, SIGNATURES_RARE,
};

/// What a [`SigningRequest`](super::SigningRequest) asks for, without its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RequestKind {
    /// An event.
    Pdu,
    /// Our key document.
    KeyDocument,
    /// A federation request.
    XMatrix,
    /// The manifest of a bundle.
    Manifest,
    /// An acknowledgement or receipt.
    Acknowledgement,
    /// A pairing card.
    Card,
    /// A roster.
    Roster,
    /// An officer's approval.
    Approval,
    /// A checkpoint of the audit log.
    Checkpoint,
    /// What a backup contains.
    Backup,
    /// What the token says of a key that it wraps.
    WorkingKey,
    /// The manifest of an update of the system.
    Update,
    /// A certificate of the enclave CA.
    Certificate,
    /// The enclave CA's request to a higher one.
    CaRequest,
    /// The box's request to another CA.
    TlsRequest,
    /// A handshake of TLS.
    TlsHandshake,
}

impl RequestKind {
    /// The name in metrics and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pdu => "pdu",
            Self::KeyDocument => "key_document",
            Self::XMatrix => "x_matrix",
            Self::Manifest => "manifest",
            Self::Acknowledgement => "acknowledgement",
            Self::Card => "card",
            Self::Roster => "roster",
            Self::Approval => "approval",
            Self::Checkpoint => "checkpoint",
            Self::Backup => "backup",
            Self::WorkingKey => "working_key",
            Self::Update => "update",
            Self::Certificate => "certificate",
            Self::CaRequest => "ca_request",
            Self::TlsRequest => "tls_request",
            Self::TlsHandshake => "tls_handshake",
        }
    }

    /// How many of them a box asks for one by one. Batches of events have no bound.
    #[must_use]
    pub fn budget(self) -> Budget {
        match self {
            Self::Pdu | Self::XMatrix => SIGNATURES_FEDERATION,
            Self::KeyDocument | Self::Manifest | Self::Acknowledgement => SIGNATURES_PER_BUNDLE,
            Self::TlsHandshake => SIGNATURES_HANDSHAKES,
            Self::Card
            | Self::Roster
            | Self::Approval
            | Self::Checkpoint
            | Self::Backup
            | Self::WorkingKey
            | Self::Update
            | Self::Certificate
            | Self::CaRequest
            | Self::TlsRequest => SIGNATURES_RARE,
        }
    }
}

/// A bound on how often something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// How many at once, after a long rest.
    pub burst: u32,
    /// How many a minute in the long run. At least 1.
    pub per_minute: u32,
}

/// How much of a [`Budget`] is used up: the generic cell rate algorithm (ITU-T I.371), which keeps one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// When the bucket would be full again. Times count from any fixed moment.
    full_at: Duration,
}

impl Bucket {
    /// Takes one permit.
    ///
    /// # Errors
    /// How long to wait for the next one.
    pub fn take(&mut self, budget: Budget, now: Duration) -> Result<(), Duration> {
        let each = Duration::from_secs(60) / budget.per_minute.max(1);
        let full_at = self.full_at.max(now) + each;
        let wait = full_at.saturating_sub(now).saturating_sub(each * budget.burst);
        if wait > Duration::ZERO {
            return Err(wait);
        }
        self.full_at = full_at;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUDGET: Budget = Budget { burst: 3, per_minute: 6 };

    #[test]
    fn a_burst_then_one_every_ten_seconds() {
        let mut bucket = Bucket::default();
        let second = Duration::from_secs;
        for at in [100, 100, 100] {
            assert_eq!(bucket.take(BUDGET, second(at)), Ok(()));
        }
        assert_eq!(bucket.take(BUDGET, second(100)), Err(second(10)));
        assert_eq!(bucket.take(BUDGET, second(104)), Err(second(6)));
        assert_eq!(bucket.take(BUDGET, second(110)), Ok(()));
        assert_eq!(bucket.take(BUDGET, second(110)), Err(second(10)));
        // After a rest the whole burst is there again, and no more.
        let taken = (0..9).filter(|_| bucket.take(BUDGET, second(1000)).is_ok()).count();
        assert_eq!(taken, 3);
    }

    proptest! {
        #[test]
        fn never_more_than_the_budget(gaps in prop::collection::vec(0_u64..20_000, 0..200)) {
            let (mut bucket, mut now, mut taken) = (Bucket::default(), 0, 0_u64);
            for gap in gaps {
                now += gap;
                taken += u64::from(bucket.take(BUDGET, Duration::from_millis(now)).is_ok());
                prop_assert!(taken <= 3 + now / 10_000);
            }
        }
    }
}
