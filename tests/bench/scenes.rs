//! What is measured.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use sallyport_e2e::{
    enclave::{Enclave, Plan, Token},
    http::Client,
    person::word,
    place::Place,
    repository,
};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    exchange,
    load::{self, Outcome, Until},
    signing,
    table::{Table, Target},
    token,
};

/// Something to measure.
pub(crate) struct Scene {
    /// What `ONLY` calls it.
    pub(crate) name: &'static str,
    /// What a reader calls it.
    pub(crate) what: &'static str,
    /// Measures, and adds rows.
    pub(crate) run: fn(&mut Table, Option<SocketAddr>) -> Result<()>,
}

/// Members of the room, and how many of their messages are in flight.
const MEMBERS: usize = 50;
pub(crate) const SENDERS: usize = 64;

const WARM_UP: Duration = Duration::from_secs(2);
const MEASURED: Duration = Duration::from_secs(5);

/// Turns of each token.
const ROUNDS: usize = 3;

/// The slow token of the comparison.
const SLOW_TOKEN_MS: u64 = 300;

/// Events in the large database.
pub(crate) const MANY_EVENTS: usize = 100_000;

impl Scene {
    /// All scenes, in the order of the table.
    pub(crate) const ALL: &[Self] = &[
        Self { name: "send", what: "messages into one room", run: send },
        Self { name: "signing", what: "slow and absent tokens", run: signing },
        Self { name: "token", what: "the token's process", run: |table, _| token::token(table) },
        Self { name: "memory", what: "memory of an idle box", run: memory },
        Self { name: "start", what: "cold start", run: start },
        Self { name: "roster", what: "roster", run: exchange::roster },
        Self { name: "bundle", what: "bundles", run: exchange::bundle },
    ];
}

/// A folder on the disk that the sources are on; the system's temporary folder may be in memory.
pub(crate) fn folder() -> Result<TempDir> {
    let target = repository::root().join("target");
    std::fs::create_dir_all(&target)?;
    Ok(tempfile::Builder::new().prefix("bench-").tempdir_in(target)?)
}

/// The fast and the slow token take turns, so that whatever else the machine does hits both alike.
fn send(table: &mut Table, peer: Option<SocketAddr>) -> Result<()> {
    let folder = folder()?;
    let (_fast_box, fast) = sending_box("fast", folder.path(), 0)?;
    let (_slow_box, slow) = sending_box("slow", folder.path(), SLOW_TOKEN_MS)?;
    let (mut with_fast, mut with_slow) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let run = format!("measured{round}");
        with_fast.push(load::send(&fast, SENDERS, Until::Elapsed(MEASURED), &run)?);
        with_slow.push(load::send(&slow, SENDERS, Until::Elapsed(MEASURED), &run)?);
    }
    let (with_fast, with_slow) = (Outcome::sum(with_fast), Outcome::sum(with_slow));
    let title = format!("sent by {SENDERS} senders into a room of {MEMBERS}");
    table.row(title, with_fast.per_second(), "events/s", Target::Least(4000.0));
    table.time("  answer, median", with_fast.percentile(50), Target::None);
    table.time("  answer, 99th percentile", with_fast.percentile(99), Target::Most(40.0));
    let title = format!("the same with a token of {SLOW_TOKEN_MS} ms per signature");
    table.row(title, with_slow.per_second(), "events/s", Target::None);
    let ratio = 100.0 * with_slow.per_second() / with_fast.per_second();
    table.row("  of the speed with a fast token", ratio, "%", Target::Least(95.0));
    table.time("  answer, 99th percentile", with_slow.percentile(99), Target::None);
    if let Some(address) = peer {
        let target = room(&Client::new(address)?, address)?;
        load::send(&target, SENDERS, Until::Elapsed(WARM_UP), "warm")?;
        let peers = load::send(&target, SENDERS, Until::Elapsed(MEASURED), "measured")?;
        table.row(
            format!("the same to the peer {address}"),
            peers.per_second(),
            "events/s",
            Target::None,
        );
        table.time("  answer, 99th percentile", peers.percentile(99), Target::None);
    }
    Ok(())
}

fn signing(table: &mut Table, _peer: Option<SocketAddr>) -> Result<()> {
    signing::slow_token(table)?;
    signing::absent_token(table)
}

/// A fresh box whose token takes `delay_ms` per signature, with its room warmed up.
fn sending_box(name: &str, folder: &Path, delay_ms: u64) -> Result<(Enclave, load::Target)> {
    let mut plan = Plan::for_test(name, folder);
    plan.token = Token::Software { delay_ms };
    let mut enclave = Enclave::create(plan, Place::Here)?;
    enclave.start()?;
    let target = room(&enclave.client()?, enclave.plan().plain())?;
    load::send(&target, SENDERS, Until::Elapsed(WARM_UP), "warm")?;
    Ok((enclave, target))
}

/// A room with all members joined.
pub(crate) fn room(client: &Client, address: SocketAddr) -> Result<load::Target> {
    let run = std::process::id();
    let members: Vec<Client> = (0..MEMBERS)
        .map(|index| client.register(&format!("bench{run}-{index}"), "a long enough password"))
        .collect::<Result<_>>()?;
    let mut tokens = Vec::new();
    let mut room = String::new();
    for member in &members {
        if room.is_empty() {
            let created =
                member.post("/_matrix/client/v3/createRoom", json!({"preset": "public_chat"}))?;
            room = word(&created, "room_id")?;
        } else {
            member.post(&format!("/_matrix/client/v3/join/{room}"), json!({}))?;
        }
        tokens.extend(member.token().map(str::to_owned));
    }
    ensure!(tokens.len() == MEMBERS, "a member has no access token");
    Ok(load::Target { address, room, tokens })
}

fn memory(table: &mut Table, _peer: Option<SocketAddr>) -> Result<()> {
    let folder = folder()?;
    let enclave = Enclave::for_test("alpha", folder.path())?;
    enclave.client()?.get("/_matrix/client/versions")?;
    let mib = enclave.memory_kib("VmRSS")? as f64 / 1024.0;
    table.row("resident memory of an idle box", mib, "MiB", Target::Most(30.0));
    Ok(())
}

fn start(table: &mut Table, _peer: Option<SocketAddr>) -> Result<()> {
    let folder = folder()?;
    // The very first start makes keys and certificates; what is measured is every later one.
    let mut enclave = Enclave::for_test("alpha", folder.path())?;
    enclave.stop()?;
    table.time(
        "start to first answer, empty database",
        first_answer(&mut enclave)?,
        Target::Most(60.0),
    );
    let target = room(&enclave.client()?, enclave.plan().plain())?;
    load::send(&target, SENDERS, Until::Sent(MANY_EVENTS), "fill")?;
    enclave.stop()?;
    let title = format!("start to first answer, {MANY_EVENTS} events");
    table.time(title, first_answer(&mut enclave)?, Target::Most(150.0));
    let mib = enclave.memory_kib("VmRSS")? as f64 / 1024.0;
    table.row("  resident memory then", mib, "MiB", Target::None);
    Ok(())
}

/// The time from starting the box to its first answer, the median of five starts. The last one goes on.
fn first_answer(enclave: &mut Enclave) -> Result<Duration> {
    let mut times = Vec::new();
    for round in 0..5 {
        if round > 0 {
            enclave.stop()?;
        }
        let client = enclave.client()?;
        let started = Instant::now();
        enclave.start()?;
        client.get("/_matrix/client/versions")?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied().unwrap_or_default())
}
