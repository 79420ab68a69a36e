//! Each authorisation rule of each room version, by fixtures: `{state, event, verdict, why}`.

use ruma::RoomVersionId;
use sallyport_core::{
    room::{
        self, Verdict,
        snapshot::{self, Snapshot},
    },
    time::Millis,
};
use serde::Deserialize;

use crate::{
    server::Server,
    short::{self, Scribe, Short, all_versions, keys},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    rule: String,
    why: String,
    #[serde(default = "all_versions")]
    versions: Vec<RoomVersionId>,
    /// How many of the room's first events there are; all if it says nothing.
    #[serde(default)]
    room_until: Option<String>,
    /// What the create event says besides.
    #[serde(default)]
    create: Option<Short>,
    /// State beyond that of the room.
    #[serde(default)]
    state: Vec<Short>,
    event: Short,
    verdict: String,
}

#[test]
fn each_rule_of_each_version_decides_as_the_specification_says() {
    let room = short::room(include_str!("../fixtures/authorisation/room.json"));
    for table in [
        include_str!("../fixtures/authorisation/create.json"),
        include_str!("../fixtures/authorisation/members.json"),
        include_str!("../fixtures/authorisation/events.json"),
        include_str!("../fixtures/authorisation/power_levels.json"),
    ] {
        let cases: Vec<Case> = serde_json::from_str(table).unwrap();
        let mut wrong = Vec::new();
        for case in &cases {
            for version in &case.versions {
                let verdict = if case.event.is_create() {
                    verdict_on_create(version, &case.event)
                } else {
                    verdict(version, &room, case)
                };
                let fits = match case.verdict.split_once(": ") {
                    Some((word, part)) => verdict
                        .split_once(": ")
                        .is_some_and(|(said, reason)| said == word && reason.contains(part)),
                    None => verdict == case.verdict,
                };
                if !fits {
                    let Case { rule, why, verdict: expected, .. } = case;
                    wrong.push(format!("{version}, {rule}, {why}: {verdict}, not {expected}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

fn verdict(version: &RoomVersionId, room: &[Short], case: &Case) -> String {
    let mut first = room.to_vec();
    if let Some(until) = &case.room_until {
        let end = first.iter().position(|short| short.id == *until).unwrap();
        first.truncate(end + 1);
    }
    if let Some(create) = &case.create {
        first[0] = create.clone();
    }
    first.extend(case.state.clone());
    let (mut scribe, founded) = Scribe::found(version, &first);
    let keys = keys();
    let mut server = Server::new(version);
    server.found(&founded, &keys);
    let event = scribe.write(&case.event);
    match server.receive(&event.wire(), &keys, Millis(u64::MAX / 2)) {
        Verdict::Accept(_) => "accept".to_owned(),
        Verdict::Reject(_, reason) => format!("reject: {reason}"),
        Verdict::Drop(reason) => format!("drop: {reason}"),
        other => format!("{other:?}"),
    }
}

/// A create event is judged when a room is taken over from another server.
fn verdict_on_create(version: &RoomVersionId, create: &Short) -> String {
    let mut scribe = Scribe::new(version);
    let event = scribe.write(create);
    let incoming = match room::parse(&event.wire(), &scribe.rules) {
        Ok(incoming) => incoming,
        Err(error) => return format!("drop: {error}"),
    };
    let checked = incoming.verify(&keys(), &scribe.rules).unwrap();
    let room = Snapshot {
        version: version.clone(),
        state: vec![checked.clone()],
        auth_chain: Vec::new(),
        anchor: checked,
    };
    match snapshot::found(room) {
        Ok(_) => "accept".to_owned(),
        Err(error) => format!("reject: {error}"),
    }
}
