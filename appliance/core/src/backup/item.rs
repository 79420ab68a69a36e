//! What stands before the content of each part of a backup.
//!
//! ```cddl
//! head = { 0: section, 1: tstr, 2: uint, 3: codec }   ; section; name; bytes of the content; codec
//! ```

use std::fmt;

use minicbor::{Decode, Encode};

use crate::{
    bundle::Codec,
    digest::Sha256,
    limits::{BACKUP_CONTENT_BYTES_MAX, BACKUP_FILE_BYTES_MAX, BACKUP_MEDIA_MAX},
};

/// Bytes of an entry of the list of media: the SHA-256 of the file and its size (u64, big-endian).
pub const MEDIA_ENTRY_BYTES: usize = 40;

/// The files of [`Section::Wrapped`]: those of the box's data that hold secrets, wrapped ones apart from the box key, and the box's card.
pub const WRAPPED_FILES: [&str; 6] =
    ["box.key", "ca.pem", "card", "tls/ca.json", "vault", "working-keys"];

/// A part of a backup. The order of the variants is the order in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum Section {
    /// The configuration of the box: the files of its settings folder, by their names.
    #[n(1)]
    Settings,
    /// The box's own secrets and its card: see [`WRAPPED_FILES`].
    #[n(2)]
    Wrapped,
    /// The database, as SQLite copied it.
    #[n(3)]
    Database,
    /// Every media file that the database refers to, in order: [`MEDIA_ENTRY_BYTES`] for each.
    #[n(4)]
    MediaList,
    /// A media file, by the SHA-256 of its content.
    #[n(5)]
    Media,
    /// The signed manifest.
    #[n(6)]
    Manifest,
}

impl Section {
    /// Every section that the manifest tells of.
    pub const CONTENT: [Self; 5] =
        [Self::Settings, Self::Wrapped, Self::Database, Self::MediaList, Self::Media];

    /// Whether there is one item of it, without a name.
    pub(super) fn is_single(self) -> bool {
        matches!(self, Self::Database | Self::MediaList | Self::Manifest)
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Settings => "settings",
            Self::Wrapped => "secrets",
            Self::Database => "database",
            Self::MediaList => "list of media",
            Self::Media => "media",
            Self::Manifest => "manifest",
        })
    }
}

/// The head of an item.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Head {
    /// Where it belongs.
    #[n(0)]
    pub section: Section,
    /// Its name there; empty where there is only one.
    #[n(1)]
    pub name: String,
    /// Bytes of the content, unpacked.
    #[n(2)]
    pub bytes: u64,
    /// How it is stored.
    #[n(3)]
    pub codec: Codec,
}

impl Head {
    /// The name of a media file's content.
    #[must_use]
    pub fn media(&self) -> Option<Sha256> {
        // One spelling only: the text form takes others as well.
        let sha256: Sha256 = self.name.parse().ok()?;
        (self.section == Section::Media && sha256.to_string() == self.name).then_some(sha256)
    }

    /// What is wrong with it, if anything.
    pub(super) fn problem(&self) -> Option<&'static str> {
        let (name, bytes) = (self.name.as_str(), self.bytes);
        let file_max = u64::try_from(BACKUP_FILE_BYTES_MAX).unwrap_or(u64::MAX);
        let list_max = u64::try_from(MEDIA_ENTRY_BYTES * BACKUP_MEDIA_MAX).unwrap_or(u64::MAX);
        let (named, bytes_max) = match self.section {
            Section::Settings => (is_settings_name(name), file_max),
            Section::Wrapped => (WRAPPED_FILES.contains(&name), file_max),
            Section::Database => (name.is_empty(), BACKUP_CONTENT_BYTES_MAX),
            Section::MediaList => (name.is_empty(), list_max),
            Section::Media => (self.media().is_some(), BACKUP_CONTENT_BYTES_MAX),
            Section::Manifest => (name.is_empty(), file_max),
        };
        if !named {
            return Some("a name that does not belong there");
        }
        (bytes > bytes_max).then_some("too large")
    }
}

/// Whether a name can be that of a settings file: it is put into a folder, so it must never lead out of one.
#[must_use]
pub fn is_settings_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    (1..=64).contains(&name.len())
        && name.chars().all(fits)
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && (name.ends_with(".toml") || name.ends_with(".cbor"))
}
