//! What a roster would change: computed first, read by a person, then carried out.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{Account, AccountState, Clearance, ClearanceKind, Head, Localpart, Mode, Roster};
use crate::limits::ROSTER_LOCK_PERCENT_MAX;

/// An account as the box has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Current {
    /// What the last roster said, with the state that it has now.
    pub account: Account,
    /// False for an account whose import did not finish: nobody has seen its activation code, so a roster that names it
    /// creates it once more.
    pub settled: bool,
}

/// One change to one account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A new account, which gets an activation code if it is active.
    Create(&'a Account),
    /// Other attributes; the state stays.
    Update(&'a Account),
    /// Nobody may log in any more; attributes may change too.
    Lock(&'a Account),
    /// The person may log in again; attributes may change too.
    Unlock(&'a Account),
    /// Locked because a full roster does not name it, or a delta roster says so; its attributes stay.
    LockAbsent(Localpart),
}

impl Step<'_> {
    /// The account that the step is about.
    #[must_use]
    pub fn localpart(&self) -> &Localpart {
        match self {
            Self::Create(account)
            | Self::Update(account)
            | Self::Lock(account)
            | Self::Unlock(account) => &account.localpart,
            Self::LockAbsent(localpart) => localpart,
        }
    }
}

/// Everything that a roster changes, in ascending order of localparts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan<'a> {
    /// The changes; accounts that stay as they are have none.
    pub steps: Vec<Step<'a>>,
    /// How many of each kind.
    pub counts: Counts,
}

/// A plan in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Accounts that do not exist yet.
    pub new: usize,
    /// Accounts that keep their state but not their attributes.
    pub changed: usize,
    /// Active accounts that would be locked.
    pub locked: usize,
    /// Locked accounts that would be active again.
    pub unlocked: usize,
    /// Accounts that stay as they are.
    pub unchanged: usize,
    /// Accounts, among all those above, whose clearance becomes lower or ends earlier.
    pub clearance_lowered: usize,
    /// Accounts, among all those above, whose clearance becomes higher or ends later, new ones aside.
    pub clearance_raised: usize,
    /// Accounts that are active before the roster.
    pub active_before: usize,
}

/// A roster that locks so many accounts that it is more likely a mistake than an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error(
    "the roster would lock {locked} of {active} active accounts, more than {} in a hundred: \
     check that it is complete, or have a second officer approve it",
    ROSTER_LOCK_PERCENT_MAX
)]
pub struct MassLock {
    /// Accounts that would be locked.
    pub locked: usize,
    /// Accounts that are active now.
    pub active: usize,
}

/// A delta roster that locks accounts which do not exist: somebody else may be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the roster locks accounts that do not exist ({}): correct their localparts", listed(.0))]
pub struct UnknownLocks(pub Vec<Localpart>);

/// Compares a roster with the accounts of the box, which may come in any order.
///
/// # Errors
/// [`UnknownLocks`] if a lock has no account.
pub fn diff(
    roster: &Roster,
    current: impl IntoIterator<Item = Current>,
) -> Result<Plan<'_>, UnknownLocks> {
    let mut current: BTreeMap<Localpart, Current> =
        current.into_iter().map(|c| (c.account.localpart.clone(), c)).collect();
    let active = |c: &Current| c.account.state == AccountState::Active;
    let mut counts = Counts {
        active_before: current.values().filter(|c| active(c)).count(),
        ..Counts::default()
    };
    let mut steps: Vec<Step<'_>> = Vec::new();
    for account in &roster.accounts {
        let before = current.remove(&account.localpart);
        steps.extend(step(account, before, &roster.head, &mut counts));
    }
    match roster.head.mode {
        Mode::Full => {
            for (localpart, c) in current {
                steps.extend(lock_absent(localpart, active(&c), &mut counts));
            }
        }
        Mode::Delta => {
            let mut unknown = Vec::new();
            for localpart in &roster.locks {
                match current.remove(localpart) {
                    Some(c) => {
                        steps.extend(lock_absent(localpart.clone(), active(&c), &mut counts));
                    }
                    None => unknown.push(localpart.clone()),
                }
            }
            if !unknown.is_empty() {
                return Err(UnknownLocks(unknown));
            }
            counts.unchanged += current.len();
        }
    }
    steps.sort_by(|a, b| a.localpart().cmp(b.localpart()));
    Ok(Plan { steps, counts })
}

impl Counts {
    /// The safety stop: does the plan lock more than one in ten of the active accounts?
    #[must_use]
    pub fn mass_lock(&self) -> Option<MassLock> {
        let too_many = self.locked.saturating_mul(100)
            > self.active_before.saturating_mul(ROSTER_LOCK_PERCENT_MAX);
        too_many.then_some(MassLock { locked: self.locked, active: self.active_before })
    }
}

impl fmt::Display for Counts {
    /// `12 new, 3 locked, 1 clearance lowered`, or `nothing changes`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural =
            |n: usize, one: &'static str, many: &'static str| if n == 1 { one } else { many };
        let parts = [
            (self.new, "new"),
            (self.changed, "changed"),
            (self.locked, "locked"),
            (self.unlocked, "unlocked"),
            (
                self.clearance_lowered,
                plural(self.clearance_lowered, "clearance lowered", "clearances lowered"),
            ),
            (
                self.clearance_raised,
                plural(self.clearance_raised, "clearance raised", "clearances raised"),
            ),
        ];
        let mut separator = "";
        for (count, what) in parts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{separator}{count} {what}")?;
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("nothing changes") } else { Ok(()) }
    }
}

fn step<'a>(
    account: &'a Account,
    before: Option<Current>,
    head: &Head,
    counts: &mut Counts,
) -> Option<Step<'a>> {
    let Some(Current { account: before, settled: true }) = before else {
        // An account of an unfinished import counts as active already, whatever happens to it now.
        counts.active_before -=
            usize::from(before.is_some_and(|c| c.account.state == AccountState::Active));
        counts.new += 1;
        return Some(Step::Create(account));
    };
    let covers = |a: &Account, b: &Account| b.clearances.iter().all(|c| covered(c, a, head));
    counts.clearance_lowered += usize::from(!covers(account, &before));
    counts.clearance_raised += usize::from(!covers(&before, account));
    let (count, step) = match (before.state, account.state) {
        (AccountState::Active, AccountState::Locked) => (&mut counts.locked, Step::Lock(account)),
        (AccountState::Locked, AccountState::Active) => {
            (&mut counts.unlocked, Step::Unlock(account))
        }
        _ if before == *account => {
            counts.unchanged += 1;
            return None;
        }
        _ => (&mut counts.changed, Step::Update(account)),
    };
    *count += 1;
    Some(step)
}

fn lock_absent(localpart: Localpart, active: bool, counts: &mut Counts) -> Option<Step<'static>> {
    let count = if active { &mut counts.locked } else { &mut counts.unchanged };
    *count += 1;
    active.then_some(Step::LockAbsent(localpart))
}

/// Is what `clearance` permits also permitted by some clearance of `account`, as long? A level that the ladder no
/// longer has is only covered by itself.
fn covered(clearance: &Clearance, account: &Account, head: &Head) -> bool {
    account.clearances.iter().any(|other| {
        let as_high = other.name == clearance.name
            || clearance.kind == ClearanceKind::Level
                && head
                    .rank(&clearance.name)
                    .is_some_and(|rank| head.rank(&other.name) >= Some(rank));
        let as_long = match (other.until, clearance.until) {
            (None, _) => true,
            (Some(other), Some(until)) => other >= until,
            (Some(_), None) => false,
        };
        other.kind == clearance.kind && as_high && as_long
    })
}

fn listed(localparts: &[Localpart]) -> String {
    const SHOWN_MAX: usize = 5;
    let mut text =
        Vec::from_iter(localparts.iter().take(SHOWN_MAX).map(Localpart::as_str)).join(", ");
    if localparts.len() > SHOWN_MAX {
        text.push_str(&format!(" and {} more", localparts.len() - SHOWN_MAX));
    }
    text
}
