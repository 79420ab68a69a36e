//! The stick and its two gates, which are never open at once.
//!
//! Gate 1 ([`read`], [`mod@write`]) touches the medium and nothing else: it copies files between a device and the *quarantine*, a folder of
//! this machine, in a sandbox without network in which it can open only the quarantine. Gate 2 ([`apply`]) never sees the
//! device: it judges what lies in the quarantine and talks to the box. [`run`] is the order of the three.
//!
//! What is in the quarantine is as foreign as what was on the stick: gate 1 gives it names, sizes and an inventory, and no trust.

use std::{fmt, path::Path};

use sallyport_core::limits::{
    ADMIN_AUTHORITY_BYTES_MAX, BUNDLE_BYTES_MAX, CARD_BYTES_MAX, CERTIFICATES_BYTES_MAX,
    RESTORE_GRANT_BYTES_MAX, ROSTER_BYTES_MAX, STICK_ORDER_BYTES_MAX, STICK_PROVISION_BYTES_MAX,
    STICK_UPDATE_BYTES_MAX,
};
use serde::{Deserialize, Serialize};

pub(crate) mod apply;
pub(crate) mod backup;
pub(crate) mod device;
pub(crate) mod inventory;
pub(crate) mod read;
pub(crate) mod restore;
pub(crate) mod run;
pub(crate) mod settings;
pub(crate) mod state;
pub(crate) mod write;

/// The folder on a stick that everything is in.
pub(crate) const TOP: &str = "SALLYPORT";
/// The folder on a stick for what the box did with it.
pub(crate) const RESULTS: &str = "RESULT";
/// Folders of the quarantine: what a stick brought, and what is to go onto it.
pub(crate) const IN: &str = "in";
pub(crate) const OUT: &str = "out";
/// What the box did with a stick, in plain words; in [`OUT`].
pub(crate) const RESULT: &str = "RESULT.txt";

/// In [`IN`], where no stick can put it: officers approved that everything on the box is destroyed, and somebody typed the word.
pub(crate) const ERASE: &str = "factory-reset";

/// The folders on a stick that are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Folder {
    /// A provisioning document, with approvals; or the grant of a restore.
    Provision,
    /// The same for a box that is provisioned, and certificates.
    Config,
    /// Rosters, with approvals.
    Roster,
    /// Pairing cards, with approvals.
    Cards,
    /// Bundles, with approvals.
    Bundles,
    /// A new version of the box.
    Update,
    /// Backups, of which only the first words are copied.
    Backup,
    /// Marks a stick that may be written to; orders, with approvals.
    Out,
}

impl Folder {
    pub(crate) const ALL: [Self; 8] = [
        Self::Provision,
        Self::Config,
        Self::Roster,
        Self::Cards,
        Self::Bundles,
        Self::Update,
        Self::Backup,
        Self::Out,
    ];

    /// The name on the stick, which a reader compares without regard to case.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Provision => "PROVISION",
            Self::Config => "CONFIG",
            Self::Roster => "ROSTER",
            Self::Cards => "CARDS",
            Self::Bundles => "BUNDLES",
            Self::Update => "UPDATE",
            Self::Backup => "BACKUP",
            Self::Out => "OUT",
        }
    }

    /// Extensions of the files that are copied, and how many bytes they may have.
    pub(crate) fn kinds(self) -> &'static [(&'static str, u64)] {
        const APPROVAL: (&str, u64) = ("approval", ADMIN_AUTHORITY_BYTES_MAX as u64);
        match self {
            Self::Provision => &[
                ("toml", STICK_PROVISION_BYTES_MAX as u64),
                ("grant", RESTORE_GRANT_BYTES_MAX as u64),
                APPROVAL,
            ],
            Self::Config => &[
                ("toml", STICK_PROVISION_BYTES_MAX as u64),
                ("pem", CERTIFICATES_BYTES_MAX as u64),
                APPROVAL,
            ],
            Self::Roster => &[("snr", ROSTER_BYTES_MAX as u64), APPROVAL],
            Self::Cards => &[("snc", CARD_BYTES_MAX as u64), APPROVAL],
            Self::Bundles => &[("snb", BUNDLE_BYTES_MAX), APPROVAL],
            Self::Update => &[("update", STICK_UPDATE_BYTES_MAX), APPROVAL],
            Self::Backup => &[("backup", u64::MAX)],
            Self::Out => &[("order", STICK_ORDER_BYTES_MAX as u64), APPROVAL],
        }
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name of a stranger's choice as it may be shown: without control characters, and short.
pub(crate) fn shown(name: &str) -> String {
    const CHARS_MAX: usize = 80;
    let mut shown: String = name
        .chars()
        .take(CHARS_MAX)
        .map(|c| if c.is_control() || c == char::REPLACEMENT_CHARACTER { '?' } else { c })
        .collect();
    if name.chars().count() > CHARS_MAX {
        shown.push('…');
    }
    shown
}

/// The kind of a file by its name, which decides the extension that it has in the quarantine.
fn kind_of(folder: Folder, name: &str) -> Option<(&'static str, u64)> {
    let extension = Path::new(name).extension()?.to_str()?;
    // Other systems hide what they keep for themselves behind a dot.
    let hidden = name.starts_with('.');
    let kind = folder.kinds().iter().find(|(kind, _)| extension.eq_ignore_ascii_case(kind));
    kind.copied().filter(|_| !hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_decides_and_hidden_files_are_nobodys() {
        let table = [
            (Folder::Bundles, "7.snb", Some("snb")),
            (Folder::Bundles, "A NAME (2).SNB", Some("snb")),
            (Folder::Bundles, "etc/../x.snb", Some("snb")),
            (Folder::Bundles, "../../etc/x.snb", None),
            (Folder::Bundles, "first.approval", Some("approval")),
            (Folder::Bundles, "._7.snb", None),
            (Folder::Bundles, ".snb", None),
            (Folder::Bundles, "snb", None),
            (Folder::Bundles, "7.snb.exe", None),
            (Folder::Roster, "7.snb", None),
            (Folder::Backup, "a.backup", Some("backup")),
            (Folder::Backup, "a.backup.002", None),
            (Folder::Provision, "restore.grant", Some("grant")),
        ];
        for (folder, name, expected) in table {
            assert_eq!(kind_of(folder, name).map(|(kind, _)| kind), expected, "{folder} {name}");
        }
    }

    #[test]
    fn names_of_strangers_are_shown_without_harm() {
        assert_eq!(shown("a\u{1b}[31m\nb"), "a?[31m?b");
        assert_eq!(shown(&"x".repeat(1000)).chars().count(), 81);
    }
}
