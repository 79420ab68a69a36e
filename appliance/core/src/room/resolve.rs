//! State resolution over [`ruma::state_res`], with the look-ups that it needs.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    EventId, OwnedEventId,
    room_version_rules::RoomVersionRules,
    state_res::{self, utils::event_id_set::EventIdSet},
};

use super::view::{RoomView, StateId, StateKey, StateMap};
use crate::{event::Judged, limits};

/// A state: one that is stored, or one that was just worked out.
#[derive(Debug, Clone)]
pub(super) enum Resolved {
    Stored(StateId),
    Map(Arc<StateMap>),
}

/// Resolves the states after several events into one.
///
/// # Errors
/// The view's.
pub(super) fn resolve<V: RoomView>(
    view: &V,
    rules: &RoomVersionRules,
    states: &BTreeSet<StateId>,
) -> Result<Resolved, V::Error> {
    let maps = states.iter().map(|state| view.state_map(*state)).collect::<Result<Vec<_>, _>>()?;
    resolve_maps(view, rules, &maps).map(|resolved| match (resolved, states.first()) {
        (None, Some(only)) => Resolved::Stored(*only),
        (map, _) => Resolved::Map(map.unwrap_or_default()),
    })
}

/// Resolves states; answers `None` if they are one and the same stored state.
pub(super) fn resolve_maps<V: RoomView>(
    view: &V,
    rules: &RoomVersionRules,
    maps: &[Arc<StateMap>],
) -> Result<Option<Arc<StateMap>>, V::Error> {
    if maps.len() == 1 {
        return Ok(None);
    }
    let Some(v2) = rules.state_res.v2_rules() else { return Ok(None) };
    let events = Events::new(view);
    // What authorises the unconflicted events is in every chain, so it cancels out of the auth difference.
    let common = auth_chain(view, entries(maps.first(), |key, id| !is_conflicted(key, id, maps)))?;
    let mut chains = Vec::with_capacity(maps.len());
    for map in maps {
        let own = auth_chain(view, entries(Some(map), |key, id| is_conflicted(key, id, maps)))?;
        chains.push(own.difference(&common).cloned().collect::<EventIdSet<_>>());
    }
    let resolved = state_res::resolve(
        &rules.authorization,
        v2,
        maps.iter().map(AsRef::as_ref),
        chains,
        |event_id| events.fetch(event_id),
        |conflicted| events.conflicted_subgraph(conflicted),
    );
    if let Some(error) = events.failed.into_inner() {
        return Err(error);
    }
    // State resolution only fails on events that it cannot find; those never pass `decide`. The first state is then as good as any.
    Ok(Some(match resolved {
        Ok(map) => Arc::new(map),
        Err(_) => maps.first().cloned().unwrap_or_default(),
    }))
}

fn entries(
    map: Option<&Arc<StateMap>>,
    wanted: impl Fn(&StateKey, &OwnedEventId) -> bool,
) -> Vec<OwnedEventId> {
    let entries = map.into_iter().flat_map(|map| map.iter());
    entries.filter(|(key, id)| wanted(key, id)).map(|(_, id)| id.clone()).collect()
}

/// Whether not all states have this entry.
fn is_conflicted(key: &StateKey, id: &OwnedEventId, maps: &[Arc<StateMap>]) -> bool {
    maps.iter().any(|map| map.get(key) != Some(id))
}

/// The events themselves and all that they are authorised by, recursively.
///
/// # Errors
/// The view's.
pub fn auth_chain<V: RoomView>(
    view: &V,
    of: impl IntoIterator<Item = OwnedEventId>,
) -> Result<BTreeSet<OwnedEventId>, V::Error> {
    let mut chain = BTreeSet::new();
    let mut next: Vec<_> = of.into_iter().collect();
    while let Some(event_id) = next.pop() {
        if chain.len() >= limits::AUTH_CHAIN_MAX || chain.contains(&event_id) {
            continue;
        }
        if let Some(known) = view.event(&event_id)? {
            next.extend(known.pdu.auth_events().iter().cloned());
        }
        chain.insert(event_id);
    }
    Ok(chain)
}

/// Events for the callbacks of state resolution, which cannot fail themselves.
struct Events<'v, V: RoomView> {
    view: &'v V,
    failed: RefCell<Option<V::Error>>,
}

impl<'v, V: RoomView> Events<'v, V> {
    fn new(view: &'v V) -> Self {
        Self { view, failed: RefCell::new(None) }
    }

    fn fetch(&self, event_id: &EventId) -> Option<Judged> {
        match self.view.event(event_id) {
            Ok(known) => known.map(|known| known.judged()),
            Err(error) => {
                *self.failed.borrow_mut() = Some(error);
                None
            }
        }
    }

    /// Events on a path along auth edges from one conflicted event to another.
    ///
    /// [Room version 12, "State resolution"](https://spec.matrix.org/v1.16/rooms/v12/#state-resolution): the conflicted state subgraph.
    fn conflicted_subgraph(
        &self,
        conflicted: &state_res::StateMap<Vec<OwnedEventId>>,
    ) -> Option<EventIdSet<OwnedEventId>> {
        let starts: BTreeSet<_> = conflicted.values().flatten().cloned().collect();
        // Depth first; an event is in the subgraph if a conflicted event is reachable from it and it was reached from one.
        let mut reaches: BTreeMap<OwnedEventId, bool> = BTreeMap::new();
        for start in &starts {
            self.mark(start, &starts, &mut reaches);
        }
        Some(reaches.into_iter().filter(|(_, reaches)| *reaches).map(|(id, _)| id).collect())
    }

    /// Notes for an event and all below it whether a conflicted event can be reached. Iterative: chains are long.
    fn mark(
        &self,
        start: &OwnedEventId,
        targets: &BTreeSet<OwnedEventId>,
        reaches: &mut BTreeMap<OwnedEventId, bool>,
    ) {
        let mut stack = vec![(start.clone(), false)];
        while let Some((event_id, children_done)) = stack.pop() {
            let Some(event) = self.fetch(&event_id) else { continue };
            let parents = event.pdu.auth_events();
            if children_done {
                let reached = targets.contains(&event_id)
                    || parents.iter().any(|id| reaches.get(id).copied().unwrap_or(false));
                reaches.insert(event_id, reached);
            } else if !reaches.contains_key(&event_id) && reaches.len() < limits::AUTH_CHAIN_MAX {
                reaches.insert(event_id.clone(), false);
                stack.push((event_id, true));
                stack.extend(parents.iter().map(|id| (id.clone(), false)));
            }
        }
    }
}
