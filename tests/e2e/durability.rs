//! A power cut at any moment loses nothing that was acknowledged.

use std::{sync::mpsc::channel, thread};

use anyhow::{Result, ensure};
use sallyport_e2e::{enclave::Enclave, http::Client, person::word};
use serde_json::json;

const SENDERS: usize = 8;

/// How many answers a round waits for before the power is cut.
const ACKNOWLEDGED: usize = 200;

const ROUNDS: usize = 3;

#[test]
fn a_kill_at_any_moment_loses_no_acknowledged_event() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut enclave = Enclave::for_test("alpha", folder.path())?;
    let alice = enclave.client()?.register("alice", "correct horse battery staple")?;
    let room = word(&alice.post("/_matrix/client/v3/createRoom", json!({}))?, "room_id")?;
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        let events = send_until_the_power_is_cut(&mut enclave, &alice, &room, round)?;
        ensure!(events.len() >= ACKNOWLEDGED, "only {} events in round {round}", events.len());
        acknowledged.extend(events);
        enclave.start()?;
        for (event, body) in &acknowledged {
            let kept = alice.get(&format!("/_matrix/client/v3/rooms/{room}/event/{event}"))?;
            ensure!(kept["content"]["body"] == *body, "{event} was {body:?} and is {kept}");
        }
    }
    alice
        .put(&format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/last"), message("on"))?;
    enclave.stop()
}

/// Ids and bodies of the events that were acknowledged before the box was killed under full load.
fn send_until_the_power_is_cut(
    enclave: &mut Enclave,
    alice: &Client,
    room: &str,
    round: usize,
) -> Result<Vec<(String, String)>> {
    let (acknowledge, acknowledged) = channel();
    thread::scope(|scope| -> Result<_> {
        for sender in 0..SENDERS {
            let client = alice.with_token(alice.token().unwrap_or_default())?;
            let acknowledge = acknowledge.clone();
            scope.spawn(move || {
                for number in 0.. {
                    let body = format!("{round}-{sender}-{number}");
                    let path =
                        format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/{body}");
                    // What the kill swallows was not acknowledged.
                    let Ok(answer) = client.put(&path, message(&body)) else { break };
                    acknowledge.send((word(&answer, "event_id").unwrap(), body)).unwrap();
                }
            });
        }
        drop(acknowledge);
        let mut events: Vec<_> = acknowledged.iter().take(ACKNOWLEDGED).collect();
        enclave.kill()?;
        events.extend(acknowledged);
        Ok(events)
    })
}

fn message(body: &str) -> serde_json::Value {
    json!({"msgtype": "m.text", "body": body})
}
