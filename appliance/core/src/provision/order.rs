//! An order for what a box shall put onto a stick: a short TOML text in the folder that marks the stick.

use ruma::OwnedServerName;
use serde::Deserialize;

use super::Faulty;
use crate::{
    digest::Sha256,
    limits::{ORDER_DAYS_MAX, PROVISION_NAMES_MAX, STICK_ORDER_BYTES_MAX},
    roster::Date,
    time::Millis,
};

/// What shall go onto a stick.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The enclave that it is for. Boxes of others, to which the stick travels, leave it alone.
    pub enclave: OwnedServerName,
    /// Peers to make a bundle for.
    #[serde(default)]
    pub export: Vec<OwnedServerName>,
    /// The box's own pairing card.
    #[serde(default)]
    pub card: bool,
    /// The box's public keys, for the enclave root to sign.
    #[serde(default)]
    pub card_request: bool,
    /// The certificate of the enclave CA, for devices to trust. It also goes with new activation codes.
    #[serde(default)]
    pub ca: bool,
    /// The request of the enclave CA to a higher one.
    #[serde(default)]
    pub certificate_request: bool,
    /// New activation codes for all accounts that nobody has activated.
    #[serde(default)]
    pub codes: bool,
    /// The audit log.
    #[serde(default)]
    pub audit: bool,
    /// The journal of the machine.
    #[serde(default)]
    pub journal: bool,
    /// A backup of the box, encrypted to the recovery officers.
    #[serde(default)]
    pub backup: bool,
    /// Factory reset: everything on the box is destroyed, once somebody has typed a word at its console.
    #[serde(default)]
    pub factory_reset: bool,
    /// The last day of an order for something that officers must approve.
    #[serde(default)]
    pub until: Option<Date>,
}

impl Order {
    /// Reads an order; answers what officers sign with it.
    ///
    /// # Errors
    /// [`Faulty`] names the place and the remedy.
    pub fn parse(text: &[u8]) -> Result<(Self, Sha256), Faulty> {
        if text.len() > STICK_ORDER_BYTES_MAX {
            return Err(Faulty::TooLarge);
        }
        let sha256 = Sha256::of(text);
        let text = std::str::from_utf8(text).map_err(|error| Faulty::Shape(Box::new(error)))?;
        let order: Self = toml::from_str(text).map_err(|error| Faulty::Shape(Box::new(error)))?;
        let wrong = |key, problem: &str| Err(Faulty::Value { key, problem: problem.to_owned() });
        if order.export.len() > PROVISION_NAMES_MAX {
            return wrong("export", "there are too many peers");
        }
        if order.needs_officer() && order.until.is_none() {
            return wrong("until", "write the last day on which the box shall do this");
        }
        Ok((order, sha256))
    }

    /// Whether an officer must approve it.
    #[must_use]
    pub fn needs_officer(&self) -> bool {
        self.tells_of_people() || self.factory_reset
    }

    /// Whether it asks for codes, with which accounts are taken over, logs, or backups.
    #[must_use]
    pub fn tells_of_people(&self) -> bool {
        self.codes || self.audit || self.journal || self.backup
    }

    /// Whether its day has not passed, and is not so far away that the order might be forgotten before.
    #[must_use]
    pub fn is_timely(&self, now: Millis) -> bool {
        let today = Date::of(now).days();
        self.until
            .is_none_or(|until| until.days() >= today && until.days() - today <= ORDER_DAYS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Order, String> {
        Order::parse(text.as_bytes()).map(|(order, _)| order).map_err(|error| error.to_string())
    }

    #[test]
    fn what_officers_approve_has_a_last_day() {
        let head = "enclave = 'alpha.example'\n";
        let order = parse(&format!("{head}export = ['bravo.example']\ncard = true")).unwrap();
        assert!(!order.needs_officer() && order.is_timely(Millis(0)));
        for what in ["codes", "audit", "journal", "backup", "factory_reset"] {
            let error = parse(&format!("{head}{what} = true")).unwrap_err();
            assert!(error.contains("until: write the last day"), "{error}");
            let order = parse(&format!("{head}{what} = true\nuntil = '2026-11-22'")).unwrap();
            // Millis of the 22nd of November 2026, 01:03.
            let now = Millis(1_795_309_385_999);
            let day = 24 * 60 * 60 * 1000;
            assert!(order.needs_officer() && order.is_timely(now));
            assert_eq!(order.tells_of_people(), what != "factory_reset");
            assert!(!order.is_timely(Millis(now.0 + day)), "it is over");
            assert!(!order.is_timely(Millis(now.0 - 40 * day)), "it is far away");
        }
        for text in ["", "enclave = 'a b'", "enclave = 'alpha.example'\nall = true"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
