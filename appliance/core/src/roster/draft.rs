//! An account as people write it: texts that must become typed values, each with its own way of being wrong.

use super::{
    Account, AccountState, Clearance, ClearanceKind, Date, Localpart, Place,
    check::{Collector, Fault},
    problem::shown,
};
use crate::digest::Sha256;

/// The texts of one row or entry. Empty texts count as absent.
#[derive(Default)]
pub(super) struct Draft<'a> {
    pub(super) localpart: &'a str,
    pub(super) display_name: Option<&'a str>,
    pub(super) unit: Option<&'a str>,
    /// Name (a category with `+`) and last day.
    pub(super) clearances: Vec<(&'a str, Option<&'a str>)>,
    pub(super) locked: bool,
    pub(super) home_enclave: Option<&'a str>,
    pub(super) moved_from: Option<&'a str>,
    pub(super) moved_to: Option<&'a str>,
    pub(super) certificates: Vec<&'a str>,
    pub(super) external_id: Option<&'a str>,
}

impl Collector {
    /// Adds the account if its texts are right, and notes each problem if not.
    pub(super) fn add_draft(&mut self, place: Place, draft: &Draft<'_>) {
        let mut faults = Vec::new();
        let localpart = noted(&mut faults, self.localpart(draft.localpart));
        let account = localpart.map(|localpart| account_of(localpart, draft, &mut faults));
        match account {
            Some(account) if faults.is_empty() => self.add(place, account),
            _ => {
                for fault in faults {
                    self.problems.push(fault.at(place, draft.localpart));
                }
            }
        }
    }

    /// A localpart, or the user id of an account of this enclave.
    pub(super) fn localpart(&self, text: &str) -> Result<Localpart, Fault> {
        let text = text.trim();
        let enclave = &self.head().enclave;
        let bare = match text.strip_prefix('@').unwrap_or(text).split_once(':') {
            None => text.strip_prefix('@').unwrap_or(text),
            Some((bare, server)) if server == enclave.as_str() => bare,
            Some((bare, server)) => {
                let what =
                    format!("is an account of {:?}, this roster is for {enclave}", shown(server));
                let fix =
                    format!("write only {:?} if the person gets an account here", shown(bare));
                return Err(Fault::new("localpart", what, fix));
            }
        };
        bare.parse().map_err(|_| localpart_fault(bare))
    }
}

fn account_of(localpart: Localpart, draft: &Draft<'_>, faults: &mut Vec<Fault>) -> Account {
    let owned = |text: Option<&str>| present(text).map(str::to_owned);
    let mut account = Account::new(localpart);
    account.display_name = owned(draft.display_name);
    account.unit = owned(draft.unit);
    account.external_id = owned(draft.external_id);
    if draft.locked {
        account.state = AccountState::Locked;
    }
    for (name, until) in &draft.clearances {
        account.clearances.extend(noted(faults, clearance(name, *until)));
    }
    for text in &draft.certificates {
        let fix = "write the SHA-256 of the certificate as 64 hexadecimal digits";
        account.cert_sha256.extend(parsed::<Sha256>(faults, "cert_sha256", Some(text), fix));
    }
    let fix = "write a server name such as bravo.example";
    account.home_enclave = parsed(faults, "home_enclave", draft.home_enclave, fix);
    let fix = "write a whole user id such as @anna:bravo.example";
    account.moved_from = parsed(faults, "moved_from", draft.moved_from, fix);
    account.moved_to = parsed(faults, "moved_to", draft.moved_to, fix);
    account
}

fn localpart_fault(text: &str) -> Fault {
    let allowed = "use only a-z, 0-9 and . _ = - / +";
    if text.is_empty() {
        return Fault::new("localpart", "is missing", "give every account one");
    }
    let lower = text.to_lowercase();
    if lower != text && lower.parse::<Localpart>().is_ok() {
        return Fault::new("localpart", "has upper-case letters", format!("write {lower:?}"));
    }
    let bad = text.chars().find(|c| c.to_string().parse::<Localpart>().is_err());
    match bad {
        Some(bad) => Fault::new("localpart", format!("has the character {bad:?}"), allowed),
        None => Fault::new("localpart", "is longer than 255 bytes", "choose a shorter one"),
    }
}

fn clearance(name: &str, until: Option<&str>) -> Result<Clearance, Fault> {
    let (kind, name) = match name.trim().strip_prefix('+') {
        Some(category) => (ClearanceKind::Category, category.trim()),
        None => (ClearanceKind::Level, name.trim()),
    };
    let until = match present(until) {
        None => None,
        Some(text) => Some(text.parse::<Date>().map_err(|_| {
            let what = format!("{:?} is not a date", shown(text));
            Fault::new("clearance", what, "write year-month-day, for example 2027-06-30")
        })?),
    };
    Ok(Clearance { kind, name: name.to_owned(), until })
}

fn parsed<T: std::str::FromStr>(
    faults: &mut Vec<Fault>,
    key: &'static str,
    text: Option<&str>,
    fix: &str,
) -> Option<T> {
    let text = present(text)?;
    let value = text
        .parse()
        .map_err(|_| Fault::new(key, format!("{:?} is not well-formed", shown(text)), fix));
    noted(faults, value)
}

fn noted<T>(faults: &mut Vec<Fault>, value: Result<T, Fault>) -> Option<T> {
    value.map_err(|fault| faults.push(fault)).ok()
}

fn present(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}
