//! Deferred signing: a token that is slow or gone costs those who send nothing, and a backlog is signed as fast as the token can.

use std::{
    env, fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sallyport_e2e::{
    enclave::{Enclave, Plan, Token},
    place::Place,
};
use serde_json::json;

use crate::{
    load::{self, Outcome, Until},
    scenes::{SENDERS, folder, room},
    table::{Table, Target},
};

/// A token that makes three signatures a second.
const SLOW_TOKEN_MS: u64 = 333;
/// Turns of each token, and how long each lasts.
const ROUNDS: usize = 3;
const MEASURED: Duration = Duration::from_secs(5);
/// How long the token is away; `ABSENT=600` makes it the ten minutes for which nothing may fail.
const ABSENT_SECONDS: u64 = 30;
/// Signatures over which the rate of a slow token is taken.
const CATCH_UP: u64 = 96;
/// How often the backlog is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a backlog may stand still before we call it stuck.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Messages into a room with a member in another enclave: each must be signed, by a fast token and by a slow one.
pub(crate) fn slow_token(table: &mut Table) -> Result<()> {
    let folder = folder()?;
    let peer = peer(folder.path())?;
    let fast = exposed("fast", folder.path(), Token::Software { delay_ms: 0 }, &peer)?;
    let token = Token::Software { delay_ms: SLOW_TOKEN_MS };
    let slow = exposed("slow", folder.path(), token, &peer)?;
    let (mut with_fast, mut with_slow) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let run = format!("round{round}");
        with_fast.push(load::send(&fast.target, SENDERS, Until::Elapsed(MEASURED), &run)?);
        with_slow.push(load::send(&slow.target, SENDERS, Until::Elapsed(MEASURED), &run)?);
    }
    let (with_fast, with_slow) = (Outcome::sum(with_fast), Outcome::sum(with_slow));
    let title = "sent into a room whose events must be signed, fast token";
    table.row(title, with_fast.per_second(), "events/s", Target::None);
    let title = format!("the same with a token of {SLOW_TOKEN_MS} ms per signature");
    table.row(title, with_slow.per_second(), "events/s", Target::None);
    let ratio = 100.0 * with_slow.per_second() / with_fast.per_second();
    table.row("  of the speed with a fast token", ratio, "%", Target::Least(98.0));
    let own = 1000.0 / SLOW_TOKEN_MS as f64;
    let title = "catch-up of the backlog, of the token's own rate";
    table.row(title, 100.0 * slow.catch_up(CATCH_UP)? / own, "%", Target::Least(95.0));
    Ok(())
}

/// The token is away while people send; then it comes back.
pub(crate) fn absent_token(table: &mut Table) -> Result<()> {
    let away = match env::var("ABSENT") {
        Ok(seconds) => seconds.parse().context("ABSENT is a number of seconds")?,
        Err(_) => ABSENT_SECONDS,
    };
    let folder = folder()?;
    let peer = peer(folder.path())?;
    let exposed = exposed("absent", folder.path(), Token::SoftHsm, &peer)?;
    exposed.wait_for(0)?;
    let softhsm = exposed.enclave.plan().folder.join("softhsm");
    let (tokens, drawer) = (softhsm.join("tokens"), softhsm.join("drawer"));
    fs::rename(&tokens, &drawer)?;
    fs::create_dir(&tokens)?;
    // A send that fails ends the run with an error.
    let sent = load::send(&exposed.target, 1, Until::Elapsed(Duration::from_secs(away)), "away")?;
    let waiting = exposed.backlog()?;
    let title = format!("sent in {away} s without the token, none failed");
    table.row(title, sent.latencies.len() as f64, "events", Target::Least(1.0));
    table.row("  that wait for their signature", waiting as f64, "events", Target::None);
    fs::remove_dir(&tokens)?;
    fs::rename(&drawer, &tokens)?;
    let back = Instant::now();
    exposed.wait_for(0)?;
    table.time("  all signed after the token was back", back.elapsed(), Target::None);
    Ok(())
}

/// A box with a room that has a member in another enclave.
struct Exposed {
    enclave: Enclave,
    target: load::Target,
}

/// The other enclave, with a card.
fn peer(folder: &Path) -> Result<Enclave> {
    let peer = Enclave::with_officer("peer", folder)?;
    peer.desk().issue_card_with("0")?;
    Ok(peer)
}

fn exposed(name: &str, folder: &Path, token: Token, peer: &Enclave) -> Result<Exposed> {
    let plan = Plan { token, ceremony: true, ..Plan::for_test(name, folder) };
    let mut enclave = Enclave::create(plan, Place::Here)?;
    enclave.start()?;
    enclave.desk().pair_with(peer.desk())?;
    let client = enclave.client()?;
    let target = room(&client, enclave.plan().plain())?;
    let creator = target.tokens.first().context("a room without members")?;
    let creator = client.with_token(creator)?;
    let guest = json!({"user_id": format!("@guest:{}", peer.plan().server_name())});
    creator.post(&format!("/_matrix/client/v3/rooms/{}/invite", target.room), guest)?;
    Ok(Exposed { enclave, target })
}

impl Exposed {
    /// Events that wait for their signature.
    fn backlog(&self) -> Result<u64> {
        let metrics = self.enclave.client()?.request(http::Method::GET, "/metrics", None)?;
        let text = String::from_utf8_lossy(&metrics.bytes);
        let left = text.lines().find_map(|line| line.strip_prefix("sallyport_unsigned_events "));
        left.context("no such metric")?.trim().parse().context("not a number")
    }

    /// Waits until at most so many are left; when that was.
    fn wait_for(&self, most: u64) -> Result<Instant> {
        let (mut last, mut moved) = (u64::MAX, Instant::now());
        loop {
            let left = self.backlog()?;
            if left <= most {
                return Ok(Instant::now());
            }
            if left != last {
                (last, moved) = (left, Instant::now());
            }
            ensure!(moved.elapsed() < STUCK_AFTER, "{left} events are not being signed");
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Signatures per second while so many of a longer backlog are made, from one batch to another.
    fn catch_up(&self, signatures: u64) -> Result<f64> {
        let before = self.backlog()?;
        ensure!(before > signatures, "the backlog is too short: {before}");
        let began = self.wait_for(before - 1)?;
        let first = self.backlog()?;
        let ended = self.wait_for(first - signatures)?;
        let made = first - self.backlog()?;
        Ok(made as f64 / ended.duration_since(began).as_secs_f64())
    }
}
