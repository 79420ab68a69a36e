//! Whatever the order in which events arrive, servers end up with the same room.

use proptest::prelude::*;
use ruma::{RoomVersionId, ServerName};
use sallyport_core::{
    event::Status,
    room::{Intent, VERSIONS, Verdict},
    time::Millis,
};

use crate::server::{Keys, Server, founded, member, message, state};

const NOW: Millis = Millis(1_000_000);
const USERS: [&str; 4] =
    ["@alice:alpha.test", "@adam:alpha.test", "@bob:bravo.test", "@beth:bravo.test"];

/// Something that somebody tries to do; what the rules refuse is skipped.
#[derive(Debug, Clone)]
enum Step {
    Message(usize),
    Topic(usize),
    Kick(usize, usize),
    Ban(usize, usize),
    Join(usize),
    Invite(usize, usize),
    Power(usize, usize, u8),
    JoinRule(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..USERS.len();
    prop_oneof![
        3 => who.clone().prop_map(Step::Message),
        2 => who.clone().prop_map(Step::Topic),
        1 => (who.clone(), who.clone()).prop_map(|(a, b)| Step::Kick(a, b)),
        1 => (who.clone(), who.clone()).prop_map(|(a, b)| Step::Ban(a, b)),
        2 => who.clone().prop_map(Step::Join),
        1 => (who.clone(), who.clone()).prop_map(|(a, b)| Step::Invite(a, b)),
        1 => (who.clone(), who.clone(), 0..101_u8).prop_map(|(a, b, level)| Step::Power(a, b, level)),
        1 => (who, any::<bool>()).prop_map(|(a, open)| Step::JoinRule(a, open)),
    ]
}

fn intent(step: &Step, version: &RoomVersionId, ts: u64) -> Intent {
    let creator_level = creator_level(version);
    match *step {
        Step::Message(who) => message(USERS[who], "text", ts),
        Step::Topic(who) => {
            state(USERS[who], "m.room.topic", "", &format!(r#"{{"topic":"{ts}"}}"#), ts)
        }
        Step::Kick(who, whom) => member(USERS[who], USERS[whom], "leave", ts),
        Step::Ban(who, whom) => member(USERS[who], USERS[whom], "ban", ts),
        Step::Join(who) => member(USERS[who], USERS[who], "join", ts),
        Step::Invite(who, whom) => member(USERS[who], USERS[whom], "invite", ts),
        Step::Power(who, whom, level) => {
            let users = if whom == 0 {
                creator_level.trim_end_matches(',').to_owned()
            } else {
                format!(r#"{creator_level}"{}":{level}"#, USERS[whom])
            };
            state(
                USERS[who],
                "m.room.power_levels",
                "",
                &format!(r#"{{"users":{{{users}}},"invite":0}}"#),
                ts,
            )
        }
        Step::JoinRule(who, open) => {
            let rule = if open { "public" } else { "invite" };
            state(USERS[who], "m.room.join_rules", "", &format!(r#"{{"join_rule":"{rule}"}}"#), ts)
        }
    }
}

/// The creator's entry among the levels of users, which version 12 has none of.
fn creator_level(version: &RoomVersionId) -> &'static str {
    if *version == RoomVersionId::V12 { "" } else { r#""@alice:alpha.test":100,"# }
}

/// Lets a server do what its own users try; the others' attempts are not its business.
fn act(
    server: &mut Server,
    name: &ServerName,
    steps: &[Step],
    version: &RoomVersionId,
    keys: &Keys,
    from: u64,
) -> Vec<String> {
    let mut sent = Vec::new();
    for (step, ts) in steps.iter().zip(from..) {
        let intent = intent(step, version, ts);
        if intent.sender.server_name() == name
            && let Ok(signed) = server.send(intent, keys)
        {
            sent.push(signed.to_wire().unwrap());
        }
    }
    sent
}

/// Delivers events in any order: what asks for others comes again.
fn deliver(server: &mut Server, mut events: Vec<String>, keys: &Keys) {
    while !events.is_empty() {
        let before = events.len();
        events.retain(|event| {
            matches!(server.receive(event.as_bytes(), keys, NOW), Verdict::Missing { .. })
        });
        assert!(events.len() < before, "events that never find their predecessors");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_arrival_does_not_change_the_room(
        version in 0..VERSIONS.len(),
        common in prop::collection::vec(step(), 0..6),
        alphas in prop::collection::vec(step(), 0..10),
        bravos in prop::collection::vec(step(), 0..10),
        seed in any::<u64>(),
    ) {
        let version = &VERSIONS[version];
        let keys = Keys::of(&["alpha.test", "bravo.test"]);
        let mut alpha = Server::new(version);
        alpha.found(&founded(version, "public"), &keys);
        for (who, ts) in USERS.iter().zip(2000..).skip(1) {
            alpha.send(member(who, who, "join", ts), &keys).unwrap();
        }
        // Power on both sides, so that they have something to disagree about.
        let creator = creator_level(version);
        let levels = format!(
            r#"{{"users":{{{creator}"{}":50,"{}":75,"{}":50}},"invite":0}}"#,
            USERS[1], USERS[2], USERS[3]
        );
        alpha.send(state(USERS[0], "m.room.power_levels", "", &levels, 2050), &keys).unwrap();
        for (step, ts) in common.iter().zip(2100..) {
            let _refused = alpha.send(intent(step, version, ts), &keys);
        }
        let mut bravo = alpha.clone();
        let mut late = alpha.clone();
        let mut later = alpha.clone();

        // A netsplit: both go on alone, then hear of each other.
        let a = act(&mut alpha, "alpha.test".try_into().unwrap(), &alphas, version, &keys, 3000);
        let b = act(&mut bravo, "bravo.test".try_into().unwrap(), &bravos, version, &keys, 3000);
        deliver(&mut alpha, b.clone(), &keys);
        deliver(&mut bravo, a.clone(), &keys);

        // Two that were away hear all of it, each in an order of its own.
        let mut all = [a, b].concat();
        deliver(&mut late, all.clone(), &keys);
        shuffle(&mut all, seed);
        deliver(&mut later, all, &keys);

        let servers = [&alpha, &bravo, &late, &later];
        agree_on_history(&servers)?;
        if servers.iter().all(|server| !has_soft_failed(server)) {
            agree_on_the_present(&servers)?;
        }

        // Somebody who knows all of it writes once more.
        let leaves = alpha.leaves();
        let merge = alpha.forge(message(USERS[0], "merge", 5000), &leaves, &keys);
        let mut merged = [alpha, bravo, late, later];
        let verdicts = merged.each_mut().map(|server| server.receive(merge.as_bytes(), &keys, NOW));
        agree_on_history(&merged.each_ref())?;
        if verdicts.iter().all(|verdict| matches!(verdict, Verdict::Accept(_))) {
            agree_on_the_present(&merged.each_ref())?;
            prop_assert_eq!(merged[0].ends().len(), 1);
        }
    }
}

/// Whatever the order of arrival, also with soft failures: which events are rejected, and the state after each event, as they depend
/// on what an event follows and is authorised by, and on nothing else.
fn agree_on_history(servers: &[&Server]) -> Result<(), TestCaseError> {
    let [first, others @ ..] = servers else { return Ok(()) };
    for other in others {
        prop_assert!(first.events.keys().eq(other.events.keys()));
        for event_id in first.events.keys() {
            prop_assert_eq!(first.judgement(event_id), other.judgement(event_id));
        }
        prop_assert_eq!(first.leaves(), other.leaves());
    }
    Ok(())
}

/// The same current state and the same extremities. Soft failure hangs on what a server knew at the time, so this holds only as long as
/// there was none, and again once an accepted event follows everything.
fn agree_on_the_present(servers: &[&Server]) -> Result<(), TestCaseError> {
    for server in servers {
        prop_assert_eq!(server.current(), servers[0].current());
        prop_assert_eq!(server.ends(), servers[0].ends());
    }
    Ok(())
}

fn has_soft_failed(server: &Server) -> bool {
    server.events.values().any(|(known, _)| known.status == Status::SoftFailed)
}

fn shuffle(events: &mut [String], seed: u64) {
    let mut random = seed | 1;
    for i in (1..events.len()).rev() {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let j = usize::try_from(random >> 33).unwrap() % (i + 1);
        events.swap(i, j);
    }
}
