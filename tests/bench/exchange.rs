//! Rosters and bundles: what comes and goes on sticks.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sallyport_e2e::{enclave::Enclave, http::Client, person::word};
use serde_json::json;

use crate::{
    load::{self, Until},
    scenes::{MANY_EVENTS, SENDERS, folder},
    table::{Table, Target},
};

const ACCOUNTS: u32 = 100_000;

/// How long the signer may take for everything that was sent.
const SIGNED_WITHIN: Duration = Duration::from_secs(300);

/// Imports a roster of many new people, and then the same one with a change.
pub(crate) fn roster(table: &mut Table, _peer: Option<SocketAddr>) -> Result<()> {
    let folder = folder()?;
    let enclave = Enclave::with_officer("alpha", folder.path())?;
    let mut list = "localpart,display_name,unit,clearance\n".to_owned();
    for number in 0..ACCOUNTS {
        writeln!(list, "soldier{number:06},Soldier {number},Company {},SECRET", number % 500)?;
    }
    let desk = enclave.desk();
    let name = enclave.plan().server_name();
    fs::write(desk.path("people.csv"), list)?;
    let levels = "OPEN,RESTRICTED,SECRET";
    desk.sallyctl(&[
        "roster",
        "make",
        "people.csv",
        "--enclave",
        &name,
        "--serial",
        "1",
        "--levels",
        levels,
        "--out",
        "people.roster",
    ])?;
    let (token, software) = ("officer.toml", "--allow-software-keys");
    desk.sallyctl(&[
        "roster",
        "sign",
        "people.roster",
        "--token",
        token,
        software,
        "--out",
        "people.signed",
    ])?;
    let started = Instant::now();
    desk.sallyctl(&["roster", "import", "people.signed", "--codes", "people.codes"])?;
    let title = format!("import of a roster of {ACCOUNTS} new people");
    table.time(title, started.elapsed(), Target::Most(10_000.0));
    table.row("  peak resident memory", mib(&enclave, "VmHWM")?, "MiB", Target::None);
    Ok(())
}

/// What a tenth of the events may take less of memory than all of them, in MiB: nothing but chance.
const FLAT_WITHIN_MIB: f64 = 16.0;

/// Exports and imports a bundle with a tenth of the events, and one with all of them: memory must not grow with their number.
pub(crate) fn bundle(table: &mut Table, _peer: Option<SocketAddr>) -> Result<()> {
    let folder = folder()?;
    let (alpha, bravo) = Enclave::paired(folder.path(), "0")?;
    let alice = alpha.client()?.register("alice", "a long enough password")?;
    let bob = bravo.client()?.register("bob", "a long enough password")?;
    let invited = json!({"invite": [format!("@bob:{}", bravo.plan().server_name())]});
    let room = word(&alice.post("/_matrix/client/v3/createRoom", invited)?, "room_id")?;
    carry(&alpha, &bravo, "invite")?;
    bob.post(&format!("/_matrix/client/v3/join/{room}"), json!({}))?;
    carry(&bravo, &alpha, "join")?;
    let tokens = alice.token().map(str::to_owned).into_iter().collect();
    let target = load::Target { address: alpha.plan().plain(), room, tokens };
    let mut few = None;
    for events in [MANY_EVENTS / 10, MANY_EVENTS] {
        load::send(&target, SENDERS, Until::Sent(events), &format!("fill{events}"))?;
        wait_until_signed(&alpha)?;
        let trip = carry(&alpha, &bravo, &format!("events{events}"))?;
        let target =
            |most: f64| if events == MANY_EVENTS { Target::Most(most) } else { Target::None };
        table.time(format!("export of {events} events"), trip.export, target(5_000.0));
        let (export_mib, import_mib) = *few.get_or_insert((trip.export_mib, trip.import_mib));
        let flat = Target::Most((export_mib + FLAT_WITHIN_MIB).round());
        table.row("  memory that it took", trip.export_mib, "MiB", flat);
        table.row("  size of the bundle", trip.size_mib, "MiB", Target::None);
        table.time(format!("import of {events} events"), trip.import, target(15_000.0));
        let flat = Target::Most((import_mib + FLAT_WITHIN_MIB).round());
        table.row("  memory that it took", trip.import_mib, "MiB", flat);
        // What is acknowledged is not sent again.
        carry(&bravo, &alpha, &format!("acknowledgement{events}"))?;
    }
    last_event_arrived(&bob, &target.room, MANY_EVENTS)
}

/// What one bundle took. Memory is what the box's peak was above what it held before.
struct Trip {
    export: Duration,
    export_mib: f64,
    size_mib: f64,
    import: Duration,
    import_mib: f64,
}

fn carry(from: &Enclave, to: &Enclave, name: &str) -> Result<Trip> {
    let taken = |enclave: &Enclave, act: &dyn Fn() -> Result<String>| -> Result<(Duration, f64)> {
        enclave.forget_peak_memory()?;
        let before = mib(enclave, "VmRSS")?;
        let started = Instant::now();
        act()?;
        Ok((started.elapsed(), mib(enclave, "VmHWM")? - before))
    };
    let file = format!("{name}.bundle");
    let peer = to.plan().server_name();
    let export = ["bundle", "export", &peer, "--out", &file];
    let (export, export_mib) = taken(from, &|| from.desk().sallyctl(&export))?;
    let size_mib = fs::metadata(from.desk().path(&file))?.len() as f64 / f64::from(1 << 20);
    fs::rename(from.desk().path(&file), to.desk().path(&file))?;
    let import = ["bundle", "import", &file];
    let (import, import_mib) = taken(to, &|| to.desk().sallyctl(&import))?;
    Ok(Trip { export, export_mib, size_mib, import, import_mib })
}

/// Waits until the signer has caught up, as the box's metrics say. Not part of what is measured.
fn wait_until_signed(enclave: &Enclave) -> Result<()> {
    let started = Instant::now();
    loop {
        let metrics = enclave.client()?.request(http::Method::GET, "/metrics", None)?;
        let text = String::from_utf8_lossy(&metrics.bytes);
        let left = text.lines().find_map(|line| line.strip_prefix("sallyport_unsigned_events "));
        if left.context("no such metric")?.trim() == "0" {
            return Ok(());
        }
        ensure!(started.elapsed() < SIGNED_WITHIN, "{left:?} events are still not signed");
        thread::sleep(Duration::from_millis(100));
    }
}

fn last_event_arrived(bob: &Client, room: &str, events: usize) -> Result<()> {
    let page = bob.get(&format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=1"))?;
    let body = page["chunk"][0]["content"]["body"].as_str().unwrap_or_default();
    ensure!(
        body.starts_with("Situation report"),
        "the last of {events} events is not there: {page}"
    );
    Ok(())
}

fn mib(enclave: &Enclave, field: &str) -> Result<f64> {
    Ok(enclave.memory_kib(field)? as f64 / 1024.0)
}
