//! Rooms as graphs, by fixtures: `{events, orders of arrival, verdicts, current state, extremities}`.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{OwnedEventId, RoomVersionId, events::StateEventType};
use sallyport_core::{
    event::Status,
    room::{StateMap, Verdict},
    time::Millis,
};
use serde::Deserialize;

use crate::{
    server::Server,
    short::{self, Scribe, Short, all_versions, keys},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Graph {
    why: String,
    #[serde(default = "all_versions")]
    versions: Vec<RoomVersionId>,
    events: Vec<Short>,
    /// Events that are in their place already, with this state after them.
    #[serde(default)]
    placed: Vec<Placed>,
    /// Orders of arrival; every order in which nothing comes before what it follows if it says nothing.
    #[serde(default)]
    orders: Vec<Order>,
    /// Current state in the end: event type, state key if there is one, and the event's name.
    #[serde(default)]
    state: BTreeMap<String, Option<String>>,
    extremities: Vec<String>,
    /// Some event ids.
    #[serde(default)]
    ids: BTreeMap<RoomVersionId, BTreeMap<String, OwnedEventId>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Placed {
    event: String,
    state: Vec<String>,
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
struct Order {
    /// Names of events; with `gutted` or `forged` behind it for such a copy.
    arrive: Vec<String>,
    /// What is said to each. All are accepted if it says nothing.
    #[serde(default)]
    verdicts: Vec<String>,
    /// The extremities in the end, if they depend on the order.
    #[serde(default)]
    extremities: Option<Vec<String>>,
}

#[test]
fn graphs_are_judged_and_resolved_as_the_fixtures_say() {
    let room = short::room(include_str!("../fixtures/graphs/room.json"));
    for file in [
        include_str!("../fixtures/graphs/arrival.json"),
        include_str!("../fixtures/graphs/resolution.json"),
        include_str!("../fixtures/graphs/soft_failure.json"),
    ] {
        let graphs: Vec<Graph> = serde_json::from_str(file).unwrap();
        for graph in &graphs {
            for version in &graph.versions {
                play(version, &room, graph);
            }
        }
    }
}

fn play(version: &RoomVersionId, room: &[Short], graph: &Graph) {
    let (mut scribe, founded) = Scribe::found(version, room);
    for short in &graph.events {
        scribe.write(short);
    }
    for (name, event_id) in graph.ids.get(version).into_iter().flatten() {
        assert_eq!(scribe.event(name).pdu.event_id(), event_id, "{version}, {}", graph.why);
    }
    let mut start = Server::new(version);
    start.found(&founded, &keys());
    for Placed { event, state } in &graph.placed {
        place(&mut start, &scribe, event, state);
    }
    let orders = if graph.orders.is_empty() { every_order(graph) } else { graph.orders.clone() };
    for order in orders {
        let mut server = start.clone();
        let arrive = &order.arrive;
        let mut said = Vec::new();
        for name in arrive {
            said.push(receive(&mut server, &scribe, name));
        }
        let context = format!("{version}, {}: {arrive:?}: {said:?}", graph.why);
        for (at, said) in said.iter().enumerate() {
            let expected = order.verdicts.get(at).map_or("accept", String::as_str);
            assert!(said.starts_with(expected), "{context}: {expected} at {at}");
        }
        let current: BTreeMap<String, String> = server
            .current()
            .into_iter()
            .map(|((kind, key), id)| (format!("{kind} {key}"), scribe.name_of(&id)))
            .collect();
        for (place, name) in &graph.state {
            let place = match place.split_once(" @") {
                Some((kind, user)) => format!("{kind} {}", scribe.user(user)),
                None => format!("{place} "),
            };
            assert_eq!(current.get(&place), name.as_ref(), "{context}: {place}");
        }
        let head = server.head.clone().unwrap();
        let mut ends: Vec<_> = head.extremities.iter().map(|id| scribe.name_of(id)).collect();
        ends.sort();
        assert_eq!(&ends, order.extremities.as_ref().unwrap_or(&graph.extremities), "{context}");
    }
}

fn place(server: &mut Server, scribe: &Scribe, event: &str, state: &[String]) {
    let map: StateMap = state
        .iter()
        .map(|name| {
            let pdu = &scribe.event(name).pdu;
            let kind = StateEventType::from(pdu.kind().to_string());
            ((kind, pdu.state_key().unwrap().to_owned()), pdu.event_id().to_owned())
        })
        .collect();
    let pdu = &scribe.event(event).pdu;
    server.place(keys().sign(pdu, &scribe.rules), map);
}

/// Lets an event arrive; answers what was said to it.
fn receive(server: &mut Server, scribe: &Scribe, name: &str) -> String {
    let bytes = match name.split_once(' ') {
        Some((name, "gutted")) => scribe.event(name).gutted(&scribe.rules),
        Some((name, "forged")) => scribe.event(name).forged(),
        Some((_, other)) => panic!("{other}?"),
        None => scribe.event(name).wire(),
    };
    match server.receive(&bytes, &keys(), Millis(u64::MAX / 2)) {
        Verdict::Accept(_) => "accept".to_owned(),
        Verdict::AcceptRedacted(_) => "redacted".to_owned(),
        Verdict::SoftFail(_, reason) => format!("soft: {reason}"),
        Verdict::Reject(_, reason) => format!("reject: {reason}"),
        Verdict::Drop(reason) => format!("drop: {reason}"),
        Verdict::Known(Status::Accepted) => "known".to_owned(),
        Verdict::Known(status) => format!("known {status:?}"),
        Verdict::Missing { events, .. } => {
            let names: Vec<_> = events.iter().map(|id| scribe.name_of(id)).collect();
            format!("missing: {}", names.join(" "))
        }
        other @ Verdict::Hold(_) => format!("{other:?}"),
    }
}

/// Every order in which nothing comes before what it follows, or what it is authorised by.
fn every_order(graph: &Graph) -> Vec<Order> {
    let placed: BTreeSet<_> = graph.placed.iter().map(|placed| placed.event.as_str()).collect();
    let mut needs = BTreeMap::new();
    let mut before: Option<&str> = None;
    for short in &graph.events {
        let names: BTreeSet<&str> = match &short.after {
            Some(after) => after.iter().map(String::as_str).collect(),
            None => before.into_iter().collect(),
        };
        needs.insert(short.id.as_str(), names);
        before = Some(&short.id);
    }
    needs.retain(|name, _| !placed.contains(name));
    let all: BTreeSet<&str> = needs.keys().copied().collect();
    assert!(all.len() <= 6, "too many orders: {}", graph.why);
    let mut orders = vec![Vec::new()];
    for _ in &all {
        orders = orders
            .iter()
            .flat_map(|order: &Vec<&str>| {
                let ready = all.iter().filter(|name| {
                    !order.contains(name)
                        && needs[*name]
                            .iter()
                            .all(|need| !all.contains(need) || order.contains(need))
                });
                ready.map(|name| [order.as_slice(), &[*name]].concat()).collect::<Vec<_>>()
            })
            .collect();
    }
    orders
        .into_iter()
        .map(|order| Order {
            arrive: order.into_iter().map(str::to_owned).collect(),
            verdicts: Vec::new(),
            extremities: None,
        })
        .collect()
}
