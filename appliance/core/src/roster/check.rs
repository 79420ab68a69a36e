//! What every roster must keep, wherever it comes from: bounds, readable text, known levels, no duplicates.

use std::collections::BTreeMap;

use super::{
    Account, ClearanceKind, Head, Localpart, Mode, Place, Problem, Problems, Roster, problem::shown,
};
use crate::{
    digest::Sha256,
    limits::{
        ROSTER_ACCOUNTS_MAX, ROSTER_CERTS_MAX, ROSTER_CLEARANCES_MAX, ROSTER_LEVELS_MAX,
        ROSTER_NAME_BYTES_MAX,
    },
};

/// Takes accounts one by one and makes a [`Roster`] of them, or the list of all that is wrong.
pub(super) struct Collector {
    head: Head,
    accounts: Vec<(Place, Account)>,
    locks: Vec<(Place, Localpart)>,
    pub(super) problems: Problems,
}

impl Collector {
    pub(super) fn new(head: Head) -> Self {
        let mut problems = Problems::default();
        for fault in head_faults(&head) {
            problems.push(fault.at(Place::File, ""));
        }
        Self { head, accounts: Vec::new(), locks: Vec::new(), problems }
    }

    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    /// False, with a problem noted once, when there are more entries than a roster may have.
    pub(super) fn has_room(&mut self) -> bool {
        let count = self.accounts.len() + self.locks.len();
        if count == ROSTER_ACCOUNTS_MAX {
            let fault = Fault {
                key: "",
                what: format!("more than {ROSTER_ACCOUNTS_MAX} accounts"),
                fix: "split it into delta rosters".to_owned(),
            };
            self.problems.push(fault.at(Place::File, ""));
        }
        count < ROSTER_ACCOUNTS_MAX
    }

    pub(super) fn add(&mut self, place: Place, account: Account) {
        for fault in account_faults(&account, &self.head) {
            self.problems.push(fault.at(place, account.localpart.as_str()));
        }
        self.accounts.push((place, account));
    }

    pub(super) fn lock(&mut self, place: Place, localpart: Localpart) {
        if self.head.mode == Mode::Full {
            let fault = Fault {
                key: "",
                what: "a full roster locks by leaving out".to_owned(),
                fix: "leave the account out, or make a delta roster".to_owned(),
            };
            self.problems.push(fault.at(place, localpart.as_str()));
        }
        self.locks.push((place, localpart));
    }

    pub(super) fn finish(mut self) -> Result<Roster, Problems> {
        self.accounts.sort_by(|a, b| a.1.localpart.cmp(&b.1.localpart));
        self.locks.sort_by(|a, b| a.1.cmp(&b.1));
        self.find_duplicates();
        if !self.problems.is_empty() {
            self.problems.list.sort_by_key(|problem| problem.place);
            return Err(self.problems);
        }
        let accounts = self.accounts.into_iter().map(|(_, account)| account).collect();
        let locks = self.locks.into_iter().map(|(_, localpart)| localpart).collect();
        Ok(Roster { head: self.head, accounts, locks })
    }

    fn find_duplicates(&mut self) {
        let mut localparts = BTreeMap::new();
        let mut external_ids = BTreeMap::new();
        let mut certificates = BTreeMap::new();
        let mut found = Vec::new();
        for (place, account) in &self.accounts {
            let localpart = &account.localpart;
            let mut note = |key, first: Option<Place>, fix: &str| {
                if let Some(first) = first {
                    let what = format!("is the same as in {first}");
                    found.push(
                        Fault { key, what, fix: fix.to_owned() }.at(*place, localpart.as_str()),
                    );
                }
            };
            note(
                "localpart",
                seen(&mut localparts, localpart.as_str(), *place),
                "keep one of the two",
            );
            if let Some(id) = &account.external_id {
                let first = seen(&mut external_ids, id.as_str(), *place);
                note("external_id", first, "give each person a key of their own");
            }
            for certificate in &account.cert_sha256 {
                let first = seen::<Sha256>(&mut certificates, *certificate, *place);
                note("cert_sha256", first, "a certificate belongs to one account");
            }
        }
        for (place, localpart) in &self.locks {
            if let Some(first) = seen(&mut localparts, localpart.as_str(), *place) {
                let what = format!("is the same as in {first}");
                let fix = "keep one of the two".to_owned();
                found.push(Fault { key: "localpart", what, fix }.at(*place, localpart.as_str()));
            }
        }
        found.into_iter().for_each(|problem| self.problems.push(problem));
    }
}

/// The place where a key was seen first, if it was.
fn seen<K: Ord>(places: &mut BTreeMap<K, Place>, key: K, place: Place) -> Option<Place> {
    let first = *places.entry(key).or_insert(place);
    (first != place).then_some(first)
}

/// A problem without its place.
pub(super) struct Fault {
    pub(super) key: &'static str,
    pub(super) what: String,
    pub(super) fix: String,
}

impl Fault {
    pub(super) fn new(key: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { key, what: what.into(), fix: fix.into() }
    }

    pub(super) fn at(self, place: Place, account: &str) -> Problem {
        Problem {
            place,
            account: account.to_owned(),
            key: self.key,
            what: self.what,
            fix: self.fix,
        }
    }
}

/// The largest integer that JSON carries between all programs (RFC 8259, section 6).
const SERIAL_MAX: u64 = (1 << 53) - 1;

fn head_faults(head: &Head) -> Vec<Fault> {
    let mut faults = Vec::new();
    if head.serial > SERIAL_MAX {
        let what = format!("is larger than {SERIAL_MAX}");
        faults.push(Fault::new("serial", what, "count rosters from 1"));
    }
    if head.levels.len() > ROSTER_LEVELS_MAX {
        let what = format!("more than {ROSTER_LEVELS_MAX} clearance levels");
        faults.push(Fault::new("levels", what, "leave out the levels that nobody holds"));
    }
    for (n, level) in head.levels.iter().enumerate() {
        faults.extend(name_fault("levels", level));
        if head.levels.iter().take(n).any(|earlier| earlier == level) {
            let what = format!("the level {:?} is named twice", shown(level));
            faults.push(Fault::new("levels", what, "name each level once, lowest first"));
        }
    }
    faults
}

fn account_faults(account: &Account, head: &Head) -> Vec<Fault> {
    let mut faults = Vec::new();
    if account.localpart.user_id(&head.enclave).is_none() {
        let what = format!("@{}:{} is longer than 255 bytes", account.localpart, head.enclave);
        faults.push(Fault::new("localpart", what, "choose a shorter localpart"));
    }
    let texts = [
        ("display_name", &account.display_name),
        ("unit", &account.unit),
        ("external_id", &account.external_id),
    ];
    for (key, text) in texts {
        faults.extend(text.as_deref().and_then(|text| text_fault(key, text)));
    }
    if account.clearances.len() > ROSTER_CLEARANCES_MAX {
        let what = format!("more than {ROSTER_CLEARANCES_MAX} clearances");
        faults.push(Fault::new("clearance", what, "leave out what a higher level includes"));
    }
    for clearance in &account.clearances {
        faults.extend(name_fault("clearance", &clearance.name));
        if clearance.kind == ClearanceKind::Level && head.rank(&clearance.name).is_none() {
            faults.push(unknown_level(&clearance.name, head));
        }
    }
    if account.cert_sha256.len() > ROSTER_CERTS_MAX {
        let what = format!("more than {ROSTER_CERTS_MAX} certificates");
        faults.push(Fault::new("cert_sha256", what, "leave out the expired ones"));
    }
    faults
}

fn unknown_level(name: &str, head: &Head) -> Fault {
    let what = format!("{:?} is not a clearance level", shown(name));
    let fix = if head.levels.is_empty() {
        "name the levels, lowest first (--levels), or mark a category with +".to_owned()
    } else {
        format!("use one of {}, or mark a category with +", head.levels.join(", "))
    };
    Fault::new("clearance", what, fix)
}

/// Names of levels and categories: texts without the signs that separate them.
fn name_fault(key: &'static str, name: &str) -> Option<Fault> {
    if name.contains([';', '|', '+', ',']) {
        let what = format!("{:?} has one of the signs ; | , +", shown(name));
        return Some(Fault::new(key, what, "write names with letters, digits and spaces"));
    }
    text_fault(key, name)
}

/// A text that people will read on paper and on screens: not empty, not long, nothing invisible.
fn text_fault(key: &'static str, text: &str) -> Option<Fault> {
    if text.is_empty() || text.trim() != text {
        return Some(Fault::new(key, "is empty or has spaces at an end", "remove them"));
    }
    if text.len() > ROSTER_NAME_BYTES_MAX {
        let what = format!("is longer than {ROSTER_NAME_BYTES_MAX} bytes");
        return Some(Fault::new(key, what, "shorten it"));
    }
    let bad = text.chars().find(|c| is_invisible(*c))?;
    let what = format!("has the invisible character U+{:04X}", u32::from(bad));
    Some(Fault::new(key, what, "delete it"))
}

/// Control characters and those that change the direction of the text around them, with which a
/// name could forge what stands next to it on a slip or a terminal.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}
