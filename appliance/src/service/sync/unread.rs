//! Unread counts: what a member would be notified of since they last read.
//!
//! Counting happens when a member's client asks, never when somebody sends: a message into a room
//! of a thousand members costs the same as into a room of two. Each count goes on from where the
//! last one stopped, in memory, so that a client that syncs pays for the new events only. After a
//! restart, a receipt or a change of the rules it starts again at the receipt, bounded.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, UInt, UserId,
    api::client::sync::sync_events::UnreadNotificationsCount,
    events::{AnySyncTimelineEvent, StateEventType, room::member::MembershipState},
    push::{Action, PushConditionRoomCtx, Ruleset},
    serde::Raw,
};
use sallyport_core::{
    limits::{UNREAD_COUNTS_KEPT, UNREAD_EVENTS_MAX},
    room::power_levels,
};
use sallyport_store::{Direction, Error, Read, Room, StoredEvent};
use serde_json::value::RawValue;

use crate::service::{
    ignored::Ignored,
    push_rules::{self, PushRuleError},
    rooms::relations::thread_root,
};

/// Member events of a user that are looked at to find when they joined.
const MEMBER_EVENTS_READ: usize = 50;

/// Unread counts of members, as far as they have been counted.
#[derive(Default)]
pub struct Counts(Mutex<BTreeMap<(OwnedUserId, OwnedRoomId), Counted>>);

/// What a member has not read in a room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unread {
    /// Outside of threads.
    pub main: Count,
    /// In each thread, by its root.
    pub threads: BTreeMap<OwnedEventId, Count>,
}

/// Events that a member has not read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Those that notify.
    pub notifications: u64,
    /// Those of them that name the member or a keyword of theirs.
    pub highlights: u64,
}

#[derive(Clone)]
struct Counted {
    read: ReadTo,
    rules: u64,
    to: i64,
    unread: Unread,
}

/// How far a member has read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadTo {
    all: i64,
    main: i64,
    threads: BTreeMap<String, i64>,
}

/// What decides which events notify a member.
pub struct Rules {
    /// The rules.
    pub ruleset: Ruleset,
    /// Whose messages do not count.
    pub ignored: Ignored,
    /// Tells these from others: what was counted by others does not count.
    pub fingerprint: u64,
}

impl Rules {
    /// What decides for a member.
    ///
    /// # Errors
    /// If the stored rules are damaged or the database fails.
    pub fn of(read: &Read<'_>, user_id: &UserId) -> Result<Self, PushRuleError> {
        let stored = read.account_data(user_id, None, push_rules::ACCOUNT_DATA_TYPE)?;
        let ignored = Ignored::by(read, user_id)?;
        let mut hasher = DefaultHasher::new();
        (&stored, &ignored).hash(&mut hasher);
        let ruleset = push_rules::rules(read, user_id)?;
        Ok(Self { ruleset, ignored, fingerprint: hasher.finish() })
    }
}

impl Unread {
    /// All counts together.
    #[must_use]
    pub fn total(&self) -> Count {
        self.threads.values().fold(self.main, |sum, count| Count {
            notifications: sum.notifications + count.notifications,
            highlights: sum.highlights + count.highlights,
        })
    }
}

impl From<Count> for UnreadNotificationsCount {
    fn from(count: Count) -> Self {
        let mut unread = Self::new();
        unread.notification_count = Some(UInt::new_saturating(count.notifications));
        unread.highlight_count = Some(UInt::new_saturating(count.highlights));
        unread
    }
}

/// Counts what a joined member has not read of a room, up to a position.
///
/// # Errors
/// If the database fails.
pub fn count(
    counts: &Counts,
    read: &Read<'_>,
    room: &Room,
    user_id: &UserId,
    rules: &Rules,
    to: i64,
) -> Result<Unread, Error> {
    let read_to = ReadTo::of(read, room, user_id)?;
    let key = (user_id.to_owned(), room.room_id.clone());
    let known = counts.lock().get(&key).cloned();
    let mut counted = known
        .filter(|known| known.read == read_to && known.rules == rules.fingerprint && known.to <= to)
        .unwrap_or_else(|| Counted {
            to: read_to.all,
            read: read_to,
            rules: rules.fingerprint,
            unread: Unread::default(),
        });
    if counted.to < to {
        // The newest ones, should there be more than the bound.
        let mut events = read.timeline(
            room,
            counted.to,
            to.saturating_add(1),
            Direction::Backward,
            UNREAD_EVENTS_MAX,
        )?;
        events.reverse();
        if !events.is_empty() {
            let context = context(read, room, user_id)?;
            for event in &events {
                let thread = thread_root(read, event)?;
                counted.add(event, thread, user_id, rules, &context);
            }
        }
        counted.to = to;
        counts.keep(key, counted.clone());
    }
    Ok(counted.unread)
}

impl Counts {
    fn keep(&self, key: (OwnedUserId, OwnedRoomId), counted: Counted) {
        let mut counts = self.lock();
        if counts.len() >= UNREAD_COUNTS_KEPT {
            counts.clear();
        }
        counts.insert(key, counted);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(OwnedUserId, OwnedRoomId), Counted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadTo {
    /// How far a member has read a room. Nobody has to read what was said before they came.
    ///
    /// # Errors
    /// If the database fails.
    pub fn of(read: &Read<'_>, room: &Room, user_id: &UserId) -> Result<Self, Error> {
        let joined = joined_at(read, room, user_id)?.unwrap_or(i64::MAX);
        let mut read_to = Self { all: joined, main: i64::MIN, threads: BTreeMap::new() };
        for receipt in read.receipts_of(room, user_id)? {
            match receipt.thread.as_deref() {
                None => read_to.all = read_to.all.max(receipt.read_to),
                Some("main") => read_to.main = read_to.main.max(receipt.read_to),
                Some(root) => {
                    let thread = read_to.threads.entry(root.to_owned()).or_insert(i64::MIN);
                    *thread = (*thread).max(receipt.read_to);
                }
            }
        }
        Ok(read_to)
    }

    /// The position up to which a thread is read, or what is outside of threads.
    #[must_use]
    pub fn of_thread(&self, thread: Option<&OwnedEventId>) -> i64 {
        let of_thread = match thread {
            Some(root) => self.threads.get(root.as_str()).copied().unwrap_or(i64::MIN),
            None => self.main,
        };
        of_thread.max(self.all)
    }
}

impl Counted {
    fn add(
        &mut self,
        event: &StoredEvent,
        thread: Option<OwnedEventId>,
        user_id: &UserId,
        rules: &Rules,
        context: &PushConditionRoomCtx,
    ) {
        if rules.ignored.hides(event) {
            return;
        }
        if event.position.is_none_or(|at| at <= self.read.of_thread(thread.as_ref())) {
            return;
        }
        let own = event.pdu.sender() == user_id;
        // A new name in a hundred rooms says nothing of what was read there.
        if own && event.pdu.state_key().is_some() {
            return;
        }
        let count = match thread {
            Some(root) if !own => self.unread.threads.entry(root).or_default(),
            Some(root) => {
                self.unread.threads.remove(&root);
                return;
            }
            None => &mut self.unread.main,
        };
        // Who writes has read what is above.
        if own {
            *count = Count::default();
            return;
        }
        let actions = actions(&rules.ruleset, event, context);
        if actions.iter().any(Action::should_notify) {
            count.notifications += 1;
            if actions.iter().any(Action::is_highlight) {
                count.highlights += 1;
            }
        }
    }
}

/// The position at which a joined member came. A new name or picture since then is no second coming.
///
/// # Errors
/// If the database fails.
pub fn joined_at(read: &Read<'_>, room: &Room, user_id: &UserId) -> Result<Option<i64>, Error> {
    let place = read.membership(room, user_id)?;
    let Some(place) = place.filter(|place| place.membership == MembershipState::Join) else {
        return Ok(None);
    };
    let kind = StateEventType::RoomMember;
    let key = user_id.as_str();
    let changes = read.state_history(room, &kind, key, place.position, MEMBER_EVENTS_READ)?;
    let came = changes.iter().map_while(|event| {
        let membership = event.pdu.content_field::<MembershipState>("membership");
        (membership == Some(MembershipState::Join)).then_some(event.position).flatten()
    });
    Ok(Some(came.last().unwrap_or(place.position)))
}

/// What the rules say of an event.
pub fn actions<'r>(
    ruleset: &'r Ruleset,
    event: &StoredEvent,
    context: &PushConditionRoomCtx,
) -> &'r [Action] {
    let Ok(json) = RawValue::from_string(event.pdu.json().to_owned()) else { return &[] };
    let raw: Raw<AnySyncTimelineEvent> = Raw::from_json(json);
    let answer = pin!(ruleset.get_actions(&raw, context));
    // It only waits for thread subscriptions, which there are none of.
    match answer.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(actions) => actions,
        Poll::Pending => &[],
    }
}

/// What the rules of a member may ask about a room.
///
/// # Errors
/// If the database fails.
pub fn context(
    read: &Read<'_>,
    room: &Room,
    user_id: &UserId,
) -> Result<PushConditionRoomCtx, Error> {
    let members = read.member_count(room, &MembershipState::Join)?;
    let member = read.state_event(room, &StateEventType::RoomMember, user_id.as_str())?;
    let name = member
        .and_then(|event| event.pdu.content_field::<String>("displayname"))
        .unwrap_or_else(|| user_id.localpart().to_owned());
    let context = PushConditionRoomCtx::new(
        room.room_id.clone(),
        UInt::new_saturating(members),
        user_id.to_owned(),
        name,
    );
    let view = read.view(&room.room_id)?;
    let levels = match view.rules() {
        Some(rules) => power_levels(&view, room.state, &rules)?,
        None => None,
    };
    Ok(match levels {
        Some(levels) => context.with_power_levels(levels.into()),
        None => context,
    })
}
