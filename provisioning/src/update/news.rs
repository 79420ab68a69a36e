//! What the console says of updates: one notice, replaced with each step ([`crate::notice`]).

use std::path::Path;

use anyhow::Context as _;
use sallyport_core::update::{
    Ledger, Outcome, Settled, Version,
    entry::{Entry, Standing},
};
use serde::Serialize;

use super::apply::Step;
use crate::files;

/// A notice.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct News {
    title: String,
    lines: Vec<String>,
}

impl News {
    pub(crate) fn new(title: impl Into<String>, lines: Vec<String>) -> Self {
        Self { title: title.into(), lines }
    }

    /// It is being done.
    pub(crate) fn working(step: Step, percent: u64) -> Self {
        Self::new("An update is being installed", vec![format!("{} ({percent} %)", step.words())])
    }

    /// It is written, and waits for the next start.
    pub(crate) fn written(version: Version) -> Self {
        Self::new(
            format!("Version {version} is written and is tried at the next start"),
            vec!["Start the box again when nobody minds. The stick can be pulled out.".to_owned()],
        )
    }

    /// It was not written, or not to its end: the running version stays.
    pub(crate) fn refused(why: &anyhow::Error) -> Self {
        Self::new("The update was NOT installed", vec![format!("{why:#}")])
    }

    /// What this start shows, once it came to its health check: how an update ended (`settled`: by this start), or that a newer version no longer starts.
    /// `other` is the entry of the other slot. None if there is nothing to tell.
    pub(crate) fn of_start(
        ledger: &Ledger,
        settled: bool,
        other: Option<Entry>,
        running: Version,
    ) -> Option<Self> {
        let last = ledger.last.as_ref();
        let fell_back = |version: Version| {
            last.is_some_and(|last| last.version == version && last.outcome == Outcome::FellBack)
        };
        // An officer permitted to go back: the entry of the newer version stands back as if it had failed.
        let was_put_before_it = last.is_some_and(|last| last.version == running);
        // It is told at each start as long as it stands there: nobody need have looked the first time.
        let newer = other.filter(|other| other.version > running);
        let exhausted = newer.filter(|other| other.standing() == Standing::Exhausted);
        match (exhausted, last) {
            (Some(Entry { version, .. }), _) if fell_back(version) => {
                Some(Self::did_not_hold(version, running))
            }
            (Some(entry @ Entry { version, .. }), _)
                if entry.was_blessed() && !was_put_before_it =>
            {
                Some(Self::new(
                    format!("VERSION {version} NO LONGER STARTS"),
                    vec![format!(
                        "Version {running} runs instead. The disk may be failing: make a backup. Then put the newest update in."
                    )],
                ))
            }
            (_, Some(Settled { version, outcome, .. })) if settled => Some(match outcome {
                Outcome::Blessed => {
                    Self::new(format!("Version {version} is installed"), Vec::new())
                }
                Outcome::FellBack => Self::did_not_hold(*version, running),
            }),
            _ => None,
        }
    }

    fn did_not_hold(version: Version, running: Version) -> Self {
        Self::new(
            format!("VERSION {version} DID NOT HOLD"),
            vec![
                format!(
                    "It did not come to its health check, and version {running} runs again. Nothing was lost."
                ),
                "Tell whoever made the release what you saw.".to_owned(),
            ],
        )
    }

    /// Tells it in a file of this name. It is told to nobody where there is no such folder.
    pub(crate) fn tell(&self, folder: &Path, name: &str) -> anyhow::Result<()> {
        if !folder.is_dir() {
            return Ok(());
        }
        let text = serde_json::to_vec(self).context("the state cannot be told")?;
        files::replace(&folder.join(name), &text)
    }
}

#[cfg(test)]
mod tests {
    use sallyport_core::time::Millis;

    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn what_a_start_shows() {
        let ledger = |outcome: Option<(&str, Outcome)>| Ledger {
            last: outcome.map(|(text, outcome)| Settled {
                version: version(text),
                outcome,
                at: Millis(1),
            }),
            ..Ledger::default()
        };
        let blessed = Some(("0.2.0", Outcome::Blessed));
        let fell_back = Some(("0.2.0", Outcome::FellBack));
        let went_back = Some(("0.1.0", Outcome::Blessed));
        // The last update, whether this start settled it, the other slot's entry, what runs; what is said.
        let table = [
            (None, false, None, "0.1.0", None),
            (None, false, Some("sallyport_0.0.9.efi"), "0.1.0", None),
            (blessed, true, Some("sallyport_0.1.0.efi"), "0.2.0", Some("0.2.0 is installed")),
            (blessed, false, Some("sallyport_0.1.0.efi"), "0.2.0", None),
            (fell_back, true, Some("sallyport_0.2.0+0-3.efi"), "0.1.0", Some("DID NOT HOLD")),
            (fell_back, false, Some("sallyport_0.2.0+0-3.efi"), "0.1.0", Some("DID NOT HOLD")),
            (fell_back, false, None, "0.1.0", None),
            (blessed, false, Some("sallyport_0.2.0+0-9.efi"), "0.1.0", Some("NO LONGER STARTS")),
            (went_back, true, Some("sallyport_0.2.0+0-9.efi"), "0.1.0", Some("0.1.0 is installed")),
            (went_back, false, Some("sallyport_0.2.0+0-9.efi"), "0.1.0", None),
        ];
        for (last, settled, other, running, says) in table {
            let other = other.map(|name| name.parse().unwrap());
            let news = News::of_start(&ledger(last), settled, other, version(running));
            match (news, says) {
                (None, None) => {}
                (Some(News { title, .. }), Some(says)) => assert!(title.contains(says), "{title}"),
                (news, says) => panic!("{news:?} instead of {says:?}, {last:?} {other:?}"),
            }
        }
    }
}
