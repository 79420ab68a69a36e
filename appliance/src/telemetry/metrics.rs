//! All metrics, with their names, in one place.
//!
//! Served as `/metrics` on the administration socket and on loopback listeners that list
//! `metrics`. No metric has a label with a user, a room or an address.

use std::{
    fmt, fs,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use sallyport_core::{admin::Backlog, custody::Mode, sign::RequestKind, time::Millis};
use sallyport_hsm::Health;
use sallyport_store::Committed;

/// The numbers that the parts of the box keep up to date.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Family<EndpointLabels, Histogram, fn() -> Histogram>,
    resident_memory: Gauge,
    write_group_size: Histogram,
    write_group_seconds: Histogram,
    events: Counter,
    unsigned_events: Gauge,
    unsigned_oldest: Gauge,
    signed_events: Counter,
    last_backup: Gauge,
    token_seconds: Histogram,
    token_mode: Family<ModeLabels, Gauge>,
    /// Handshakes that the token signed.
    pub tls_signatures: Counter,
    token_requests: Family<TokenLabels, Counter>,
    token_request_seconds: Family<KindLabels, Histogram, fn() -> Histogram>,
    token_ready: Gauge,
    token_absent: Gauge,
    /// Since when the token has not been ready; `None` while it is.
    absent_since: Mutex<Option<Instant>>,
    /// Clients that wait in `/sync`.
    pub sync_waiters: Gauge,
    /// Open connections.
    pub connections: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    endpoint: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabels {
    mode: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabels {
    method: String,
    endpoint: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// What came of a signature that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The token signed.
    Signed,
    /// The token did not.
    Failed,
    /// The token was not asked: too many of the kind.
    HeldBack,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Signed => "signed",
            Self::Failed => "failed",
            Self::HeldBack => "held_back",
        }
    }
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("sallyport"),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(seconds),
            resident_memory: Gauge::default(),
            write_group_size: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            write_group_seconds: seconds(),
            events: Counter::default(),
            unsigned_events: Gauge::default(),
            unsigned_oldest: Gauge::default(),
            signed_events: Counter::default(),
            last_backup: Gauge::default(),
            token_seconds: seconds(),
            token_mode: Family::default(),
            tls_signatures: Counter::default(),
            token_requests: Family::default(),
            token_request_seconds: Family::new_with_constructor(seconds),
            token_ready: Gauge::default(),
            token_absent: Gauge::default(),
            absent_since: Mutex::default(),
            sync_waiters: Gauge::default(),
            connections: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    #[rustfmt::skip]
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("http_requests", "Requests answered", self.requests.clone());
        registry.register_with_unit("http_request", "Time to answer a request", Unit::Seconds, self.request_seconds.clone());
        registry.register("http_connections", "Open connections", self.connections.clone());
        registry.register("tls_signatures", "TLS handshakes that the token signed", self.tls_signatures.clone());
        registry.register("sync_waiters", "Clients that wait in /sync", self.sync_waiters.clone());
        registry.register("store_write_group_size", "Commands per commit", self.write_group_size.clone());
        registry.register_with_unit("store_write_group", "Time of a commit", Unit::Seconds, self.write_group_seconds.clone());
        registry.register("events", "Events accepted into rooms", self.events.clone());
        registry.register("unsigned_events", "Own events that wait for their signature", self.unsigned_events.clone());
        registry.register_with_unit("unsigned_oldest", "How long the oldest of them has waited", Unit::Seconds, self.unsigned_oldest.clone());
        registry.register("signed_events", "Own events that the token signed", self.signed_events.clone());
        registry.register_with_unit("last_backup_timestamp", "When the last verified backup was made, since 1970; 0 if there is none", Unit::Seconds, self.last_backup.clone());
        registry.register("token_requests", "Signatures asked for, by kind and by what came of it", self.token_requests.clone());
        registry.register_with_unit("token_request", "Time of a signature that was asked for alone", Unit::Seconds, self.token_request_seconds.clone());
        registry.register("token_ready", "Whether the token is open", self.token_ready.clone());
        registry.register_with_unit("token_absent", "How long the token has not been open", Unit::Seconds, self.token_absent.clone());
        registry.register_with_unit("token_operation", "Time of an operation of the token", Unit::Seconds, self.token_seconds.clone());
        registry.register("token_mode", "Where the event key lives: 1 for the mode that is in use", self.token_mode.clone());
        registry.register_with_unit("process_resident_memory", "Resident memory", Unit::Bytes, self.resident_memory.clone());
    }

    /// Counts an answered request. `endpoint` is the path with its arguments unnamed.
    pub fn request(
        &self,
        method: &Method,
        endpoint: &'static str,
        status: StatusCode,
        elapsed: Duration,
    ) {
        let method = method.as_str().to_owned();
        let labels = EndpointLabels { method: method.clone(), endpoint };
        self.request_seconds.get_or_create(&labels).observe(elapsed.as_secs_f64());
        self.requests
            .get_or_create(&RequestLabels { method, endpoint, status: status.as_u16() })
            .inc();
    }

    /// Records a commit of the database.
    pub fn commit(&self, committed: &Committed) {
        self.write_group_size.observe(committed.commands as f64);
        self.write_group_seconds.observe(committed.duration.as_secs_f64());
        self.events.inc_by(committed.events);
    }

    /// Records operations of the token that took this long together, as if each had taken as long as the others.
    pub fn token(&self, operations: usize, elapsed: Duration) {
        let each = elapsed.as_secs_f64() / operations as f64;
        for _ in 0..operations {
            self.token_seconds.observe(each);
        }
    }

    /// Records where the event key lives; unknown modes are none.
    pub fn token_mode(&self, in_use: Option<Mode>) {
        for mode in Mode::ALL {
            let labels = ModeLabels { mode: mode.as_str() };
            self.token_mode.get_or_create(&labels).set(i64::from(Some(mode) == in_use));
        }
    }

    /// Counts signatures of one kind that were asked for, and what came of them.
    pub fn signatures(&self, kind: RequestKind, outcome: Outcome, count: usize) {
        let labels = TokenLabels { kind: kind.as_str(), outcome: outcome.as_str() };
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.token_requests.get_or_create(&labels).inc_by(count);
        if kind == RequestKind::Pdu && outcome == Outcome::Signed {
            self.signed_events.inc_by(count);
        }
    }

    /// Records how long a signature took that was asked for alone.
    pub fn signature_time(&self, kind: RequestKind, elapsed: Duration) {
        let labels = KindLabels { kind: kind.as_str() };
        self.token_request_seconds.get_or_create(&labels).observe(elapsed.as_secs_f64());
    }

    /// Records what waits for the token.
    pub fn backlog(&self, backlog: &Backlog, now: Millis) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.unsigned_events.set(gauge(backlog.events));
        self.unsigned_oldest.set(gauge(backlog.age_seconds(now)));
    }

    /// Records when the last verified backup was made.
    pub fn backup(&self, made: Option<Millis>) {
        let seconds = made.map_or(0, |made| made.0 / 1000);
        self.last_backup.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// Records how the token stands; `None` if there is none.
    pub fn token_health(&self, health: Option<Health>) {
        let mut since = self.absent_since.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = health == Some(Health::Ready);
        *since = if ready { None } else { Some(since.unwrap_or_else(Instant::now)) };
        let absent = since.map_or(0, |since| since.elapsed().as_secs());
        self.token_ready.set(i64::from(ready));
        self.token_absent.set(i64::try_from(absent).unwrap_or(i64::MAX));
    }

    /// The text format of Prometheus (OpenMetrics).
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        if let Some(bytes) = resident_bytes() {
            self.resident_memory.set(bytes);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// 0.1 ms to 52 s, doubling.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 20))
}

/// Resident memory of this process, from `/proc/self/status`.
fn resident_bytes() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_endpoint_and_status() {
        let metrics = Metrics::new();
        let path = "/_matrix/client/v3/login";
        metrics.request(&Method::GET, path, StatusCode::OK, Duration::from_millis(3));
        let text = metrics.encode().unwrap();
        let line = r#"sallyport_http_requests_total{method="GET",endpoint="/_matrix/client/v3/login",status="200"} 1"#;
        assert!(text.contains(line), "{text}");
        assert!(text.contains("sallyport_http_request_seconds_bucket"), "{text}");
    }

    #[test]
    fn one_mode_is_in_use() {
        let metrics = Metrics::new();
        metrics.token_mode(Some(Mode::Direct));
        metrics.token_mode(Some(Mode::Envelope));
        let text = metrics.encode().unwrap();
        for (mode, value) in [("direct", 0), ("envelope", 1), ("software", 0)] {
            let line = format!("sallyport_token_mode{{mode=\"{mode}\"}} {value}\n");
            assert!(text.contains(&line), "{text}");
        }
    }

    #[test]
    fn memory_is_measured() {
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}
