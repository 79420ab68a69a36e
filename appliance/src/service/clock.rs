//! The box's clock against the newest time that it has seen. There is no network time in an enclave: a battery runs down, an operator
//! mistypes, and what is dated wrongly is wrong for ever at every peer.
//!
//! Local chat goes on whatever the clock says. What leaves or enters the enclave waits until the clock is right, or an
//! officer accepts it: one wrong date must not block the exchange for good.

use std::time::Duration;

use sallyport_core::{admin::Unapproved, time::Millis};
use sallyport_store::Store;

use super::order::Order;

/// How far behind the newest time seen the clock may be: small corrections are nobody's business.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// Why the exchange with peers waits.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed.
    #[error("the newest time seen cannot be read or kept")]
    Store(#[from] sallyport_store::Error),
    /// An approval does not count, or some are missing.
    #[error(transparent)]
    Approval(#[from] Unapproved),
    /// The clock went backwards.
    #[error(
        "the clock is {} minutes behind the newest time this box has seen: set the clock, or if that time was wrong have an officer accept the clock as it is (sallyctl clock accept)",
        behind.as_secs() / 60
    )]
    Behind {
        /// How far it is behind.
        behind: Duration,
    },
}

/// Whether the clock can be right, and remembers its time if so.
///
/// # Errors
/// [`Error::Behind`] if the box has seen a later time.
pub fn check(store: &Store, now: Millis) -> Result<(), Error> {
    let newest = store.read(|read| read.last_time())?.unwrap_or_default();
    let behind = newest.since(now);
    if behind > TOLERANCE {
        return Err(Error::Behind { behind });
    }
    if now > newest {
        store.write(move |write| write.note_time(now))?;
    }
    Ok(())
}

/// An officer says that the clock is right although it went backwards; answers the time that counts from now on.
///
/// # Errors
/// If the database fails, or there are approvals: nobody approves the time.
pub fn accept(store: &Store, order: &Order) -> Result<Millis, Error> {
    let (now, mandate) = (order.now, order.alone()?);
    store.write(move |write| {
        let newest = write.last_time()?.unwrap_or_default();
        let details = [("newest_seen_ms", newest.0.to_string())];
        write.note_time(now)?;
        write.append_audit(mandate.entry("clock.accept", now.0, details))
    })?;
    Ok(now)
}

#[cfg(test)]
mod tests {
    use ruma::server_name;
    use sallyport_store::Options;

    use super::*;

    #[test]
    fn a_clock_that_went_backwards_is_noticed_until_it_is_right_or_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(Options {
            path: &folder.path().join("db"),
            server_name: server_name!("alpha.test"),
            fresh_incarnation: [1; 16],
            on_commit: Box::new(|_| {}),
        })
        .unwrap();
        let minute = |n: u64| Millis(1_000_000_000_000 + n * 60_000);
        check(&store, minute(60)).unwrap();
        check(&store, minute(56)).unwrap();
        let error = check(&store, minute(30)).unwrap_err();
        assert!(error.to_string().contains("30 minutes behind"), "{error}");
        assert!(error.to_string().contains("set the clock"), "{error}");
        assert!(error.to_string().contains("sallyctl clock accept"), "{error}");
        check(&store, minute(61)).unwrap();
        assert!(check(&store, minute(30)).is_err());
        store.write(move |write| write.note_time(minute(30))).unwrap();
        check(&store, minute(30)).unwrap();
    }
}
