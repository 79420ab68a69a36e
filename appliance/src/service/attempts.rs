//! Bounds on failed log-ins, per account and per address: guessing takes years, and a mistyped password costs nothing.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ruma::{OwnedUserId, UserId};
use sallyport_core::{
    limits::{
        ATTEMPTS_REMEMBERED, FAILED_LOGIN_FORGOTTEN_MS, FAILED_LOGINS_PER_ACCOUNT,
        FAILED_LOGINS_PER_ADDRESS,
    },
    time::Millis,
};

/// Failed attempts that are remembered.
#[derive(Default)]
pub struct Attempts(Mutex<Buckets>);

#[derive(Default)]
struct Buckets {
    accounts: BTreeMap<OwnedUserId, Bucket>,
    addresses: BTreeMap<IpAddr, Bucket>,
}

/// Failures, one of which is forgotten every [`FAILED_LOGIN_FORGOTTEN_MS`].
#[derive(Clone, Copy)]
struct Bucket {
    failures: u64,
    since: Millis,
}

impl Bucket {
    fn at(self, now: Millis) -> Self {
        let elapsed = now.0.saturating_sub(self.since.0) / FAILED_LOGIN_FORGOTTEN_MS;
        let failures = self.failures.saturating_sub(elapsed);
        let since = if failures == 0 {
            now
        } else {
            Millis(self.since.0.saturating_add(elapsed.saturating_mul(FAILED_LOGIN_FORGOTTEN_MS)))
        };
        Self { failures, since }
    }

    fn wait(self, max: u64, now: Millis) -> Option<Duration> {
        let bucket = self.at(now);
        let next = bucket.since.plus(Duration::from_millis(FAILED_LOGIN_FORGOTTEN_MS));
        (bucket.failures >= max).then(|| next.since(now).max(Duration::from_secs(1)))
    }
}

impl Attempts {
    /// Whether an attempt may be made now; if not, how long to wait.
    ///
    /// # Errors
    /// The time to wait.
    pub fn begin(
        &self,
        user_id: Option<&UserId>,
        address: Option<IpAddr>,
        now: Millis,
    ) -> Result<(), Duration> {
        let buckets = self.lock();
        let account = user_id.and_then(|user_id| {
            buckets.accounts.get(user_id)?.wait(FAILED_LOGINS_PER_ACCOUNT, now)
        });
        let address = address.and_then(|address| {
            buckets.addresses.get(&address)?.wait(FAILED_LOGINS_PER_ADDRESS, now)
        });
        match account.max(address) {
            Some(wait) => Err(wait),
            None => Ok(()),
        }
    }

    /// An attempt has failed; `user_id` is `None` if it was for no account that was named.
    pub fn failed(&self, user_id: Option<&UserId>, address: Option<IpAddr>, now: Millis) {
        let mut buckets = self.lock();
        if let Some(user_id) = user_id {
            count(&mut buckets.accounts, user_id.to_owned(), now);
        }
        if let Some(address) = address {
            count(&mut buckets.addresses, address, now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Buckets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count<K: Ord>(buckets: &mut BTreeMap<K, Bucket>, key: K, now: Millis) {
    if buckets.len() >= ATTEMPTS_REMEMBERED {
        buckets.retain(|_, bucket| bucket.at(now).failures > 0);
    }
    if buckets.len() >= ATTEMPTS_REMEMBERED {
        // Everybody fails at once: the accounts' hashes are slow enough to hold for a while.
        buckets.clear();
    }
    let bucket = buckets.entry(key).or_insert(Bucket { failures: 0, since: now });
    *bucket = bucket.at(now);
    bucket.failures += 1;
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    #[test]
    fn an_account_rests_after_too_many_failures() {
        let attempts = Attempts::default();
        let alice = user_id!("@alice:alpha.test");
        let bob = user_id!("@bob:alpha.test");
        let mut now = Millis(1_000_000);
        for _ in 0..FAILED_LOGINS_PER_ACCOUNT {
            attempts.begin(Some(alice), None, now).unwrap();
            attempts.failed(Some(alice), None, now);
        }
        let wait = attempts.begin(Some(alice), None, now).unwrap_err();
        attempts.begin(Some(bob), None, now).unwrap();
        now = now.plus(wait);
        attempts.begin(Some(alice), None, now).unwrap();
        attempts.failed(Some(alice), None, now);
        attempts.begin(Some(alice), None, now).unwrap_err();
    }

    #[test]
    fn an_address_rests_too_and_memory_is_bounded() {
        let attempts = Attempts::default();
        let address = Some(IpAddr::from([127, 0, 0, 1]));
        let now = Millis(5);
        for number in 0..FAILED_LOGINS_PER_ADDRESS {
            let user_id = UserId::parse(format!("@user{number}:alpha.test")).unwrap();
            attempts.begin(Some(&user_id), address, now).unwrap();
            attempts.failed(Some(&user_id), address, now);
        }
        attempts.begin(None, address, now).unwrap_err();
        for number in 0..2 * ATTEMPTS_REMEMBERED {
            let user_id = UserId::parse(format!("@user{number}:alpha.test")).unwrap();
            attempts.failed(Some(&user_id), None, now);
        }
        assert!(attempts.lock().accounts.len() <= ATTEMPTS_REMEMBERED);
    }
}
