//! The protocol of the administration socket: HTTP/1.1 over a Unix socket, JSON bodies, files as they are.
//!
//! Every command that changes something carries the header [`AUTHORITY`] with who gives it and who approved it; the box
//! writes both, and what it sees of the caller itself, into its audit log in the transaction of the change. Each approval
//! that comes with a command must count ([`verify`]). An export and an import need as many officers as the policy of the enclave's own card
//! says, and so does a card of another root key than the one before; a roster that locks many accounts needs one. Other cards and rosters may
//! be approved, and the remaining commands may not.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET` [`path::STATUS`] | | [`Status`] |
//! | `POST` [`path::ROSTER_DRY_RUN`] | signed roster | [`RosterReport`] |
//! | `POST` [`path::ROSTER`] | signed roster | [`RosterImported`] |
//! | `POST` [`path::ACTIVATION_CODES`] | [`CodesRequest`] | [`IssuedCode`] list |
//! | `GET` [`path::AUDIT`]`?after=ID` | | [`AuditPage`] |
//! | `POST` [`path::AUDIT_CHECKPOINT`] | | [`Tip`]: what the token vouches for now |
//! | `GET` [`path::JOURNAL`]`?seqnum_id=ID` | | [`JournalSealed`] |
//! | `POST` [`path::JOURNAL`] | [`Seal`](crate::journal::Seal) of the machine's journal | [`JournalSealed`] |
//! | `GET` [`path::CARD_REQUEST`] | | [`CardRequest`], to be signed by the enclave root |
//! | `GET`, `PUT` [`path::CARD`] | `PUT`: own card | `GET`: own card, `PUT`: [`Peer`] |
//! | `GET` [`path::PEERS`] | | [`Peer`] list |
//! | `POST` [`path::PEERS`] with [`FINGERPRINT`] | the peer's card | [`Peer`] |
//! | `GET` [`path::BUNDLES`] | | [`PeerBundles`] list |
//! | `POST` [`path::BUNDLES_EXPORT`]`?peer=NAME` | | the bundle |
//! | `POST` [`path::BUNDLES_IMPORT`] | a bundle | [`BundleImported`] |
//! | `POST` [`path::BACKUP`]`?since=ID` | | the backup, encrypted; [`BACKUP_BYTES`] says how much it is at most |
//! | `POST` [`path::BACKUP_VERIFIED`] | [`BackupVerified`] | [`BackupMade`] |
//! | `GET` [`path::CERTIFICATE`] | | [`CertificateStatus`] |
//! | `PUT` [`path::CERTIFICATE`] | chain in PEM that a higher CA gave for ours | [`CertificateStatus`] |
//! | `POST` [`path::CERTIFICATE_REQUEST`]`?of=ca` or `tls` | | request for a certificate (PKCS #10) in PEM |
//! | `GET` [`path::TOKEN`] | | [`TokenReport`] |
//! | `POST` [`path::TOKEN_UNLOCK`] | [`Unlock`] | [`TokenReport`] |
//! | `GET` [`path::KEYS`] | | [`Keys`] |
//! | `POST` [`path::KEYS`] | [`KeyOrder`] | [`KeyReport`] |
//! | `POST` [`path::CLOCK_ACCEPT`] | | [`Millis`]: the time that counts from now on |
//!
//! Whatever is not a success has an [`ErrorBody`].

mod approval;
mod backlog;
mod backup;
mod card_request;
mod keys;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ruma::OwnedServerName;
use serde::{Deserialize, Serialize};

pub use approval::{Approval, Approvers, Consent, NotApproved, Unapproved, verify};
pub use backlog::{Backlog, BacklogWarning};
pub use backup::{BackupMade, BackupState, BackupVerified, RestoreReport};
pub use card_request::{CardRequest, CardTerms, NotARequest};
pub use keys::{KeyAction, KeyOrder, KeyReport, KeyState, Keys, NewKey};

use crate::{
    audit::{Row, Tip},
    custody::Mode,
    digest::Sha256,
    limits::{ADMIN_ACTOR_CHARS_MAX, ADMIN_APPROVALS_MAX, ADMIN_AUTHORITY_BYTES_MAX},
    roster::{Counts, Head, Localpart, MassLock},
    sign::PublicKey,
    time::Millis,
};

/// Header of a command: an [`Authority`] in JSON.
pub const AUTHORITY: &str = "sallyport-authority";
/// Header of the command that adds a peer: the fingerprint that the officer typed.
pub const FINGERPRINT: &str = "sallyport-fingerprint";

/// Header of the answer with a backup: the bytes of its content before they are compressed and encrypted, for a display of progress.
pub const BACKUP_BYTES: &str = "sallyport-backup-bytes";

/// Where each command is.
pub mod path {
    /// How the box is.
    pub const STATUS: &str = "/admin/v1/status";
    /// Import of a roster.
    pub const ROSTER: &str = "/admin/v1/roster";
    /// What a roster would change.
    pub const ROSTER_DRY_RUN: &str = "/admin/v1/roster/dry-run";
    /// New activation codes.
    pub const ACTIVATION_CODES: &str = "/admin/v1/activation-codes";
    /// The audit log.
    pub const AUDIT: &str = "/admin/v1/audit";
    /// A checkpoint of the audit log, at once.
    pub const AUDIT_CHECKPOINT: &str = "/admin/v1/audit/checkpoint";
    /// How far the machine's journal is sealed.
    pub const JOURNAL: &str = "/admin/v1/journal";
    /// The box's public keys, for the enclave root to sign.
    pub const CARD_REQUEST: &str = "/admin/v1/card/request";
    /// The box's own pairing card.
    pub const CARD: &str = "/admin/v1/card";
    /// The enclaves that this one is paired with.
    pub const PEERS: &str = "/admin/v1/peers";
    /// How the exchange with each peer stands.
    pub const BUNDLES: &str = "/admin/v1/bundles";
    /// A new bundle for a peer.
    pub const BUNDLES_EXPORT: &str = "/admin/v1/bundles/export";
    /// A bundle of a peer.
    pub const BUNDLES_IMPORT: &str = "/admin/v1/bundles/import";
    /// A new backup.
    pub const BACKUP: &str = "/admin/v1/backup";
    /// A backup was read back and verified.
    pub const BACKUP_VERIFIED: &str = "/admin/v1/backup/verified";
    /// The serving certificate and the enclave CA.
    pub const CERTIFICATE: &str = "/admin/v1/certificate";
    /// A request to another CA.
    pub const CERTIFICATE_REQUEST: &str = "/admin/v1/certificate/request";
    /// How the token is.
    pub const TOKEN: &str = "/admin/v1/token";
    /// A PIN for the token.
    pub const TOKEN_UNLOCK: &str = "/admin/v1/token/unlock";
    /// The box's own keys.
    pub const KEYS: &str = "/admin/v1/keys";
    /// An officer's word that the clock is right although it went backwards.
    pub const CLOCK_ACCEPT: &str = "/admin/v1/clock/accept";
}

/// Who gives a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authority {
    /// Name of the person, as they say.
    pub actor: String,
    /// What other people signed for this command.
    #[serde(default)]
    pub approvals: Vec<Approval>,
}

/// A header that does not say who gives the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAuthority {
    /// Absent, too large, or not JSON.
    #[error("the command does not say who gives it: send the header {AUTHORITY}")]
    Header,
    /// The name is empty, too long or unreadable.
    #[error(
        "the name of the person is empty, longer than {ADMIN_ACTOR_CHARS_MAX} characters or has control characters"
    )]
    Actor,
    /// More approvals than anybody needs.
    #[error("more than {ADMIN_APPROVALS_MAX} approvals")]
    Approvals,
}

impl Authority {
    /// Reads the value of the header.
    ///
    /// # Errors
    /// [`NoAuthority`] says what is missing.
    pub fn parse(header: &[u8]) -> Result<Self, NoAuthority> {
        if header.len() > ADMIN_AUTHORITY_BYTES_MAX {
            return Err(NoAuthority::Header);
        }
        let authority: Self = serde_json::from_slice(header).map_err(|_| NoAuthority::Header)?;
        let actor = &authority.actor;
        if actor.trim().is_empty()
            || actor.chars().count() > ADMIN_ACTOR_CHARS_MAX
            || actor.chars().any(char::is_control)
        {
            return Err(NoAuthority::Actor);
        }
        if authority.approvals.len() > ADMIN_APPROVALS_MAX {
            return Err(NoAuthority::Approvals);
        }
        Ok(authority)
    }
}

/// How the box is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Matrix server name.
    pub server_name: OwnedServerName,
    /// Version of the box.
    pub version: String,
    /// Its clock.
    pub now: Millis,
    /// The accounts that rosters made.
    pub accounts: AccountCounts,
    /// The last imported roster.
    pub roster: Option<RosterState>,
    /// The end of the audit log: write it down now and then, and compare.
    pub audit: Tip,
    /// How the token is.
    pub token: TokenReport,
    /// The serving certificate, if a listener speaks TLS.
    pub certificate: Option<CertificateStatus>,
    /// The box's own secrets.
    pub vault: VaultStatus,
    /// What waits for the token.
    pub backlog: Backlog,
    /// How the backups stand.
    #[serde(default)]
    pub backup: BackupState,
    /// What somebody should look after, in sentences.
    pub warnings: Vec<String>,
}

/// The serving certificate and the CA that issued it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// The enclave CA, if it was founded. There is none if the certificate is given as a file.
    pub ca: Option<CaStatus>,
    /// Whether a higher CA vouches for the enclave's.
    pub vouched_for: bool,
    /// Where the key of the certificate is.
    pub tls_key: Option<KeyPlace>,
    /// What clients may call the box.
    pub names: Vec<String>,
    /// Until when the certificate is valid.
    pub not_after: Option<Millis>,
    /// Why there is no certificate, or why one that no longer fits is served.
    pub waits: Option<String>,
}

/// The enclave CA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaStatus {
    /// SHA-256 of its certificate as devices show it.
    pub sha256: String,
    /// The certificate in PEM, for devices to trust.
    pub certificate: String,
    /// Where its key is.
    pub key: KeyPlace,
}

/// Where a key is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "in", rename_all = "kebab-case")]
pub enum KeyPlace {
    /// In the token.
    Token {
        /// Its name there.
        key: String,
    },
    /// In the box's vault.
    Vault,
    /// In a file, where it can be copied.
    File,
}

/// How the box's own secrets are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultStatus {
    /// What every start opens it with.
    pub box_key: BoxKeyPlace,
    /// The token's key that opens it when the box key is lost.
    pub token_key: Option<String>,
}

/// Where the box key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BoxKeyPlace {
    /// The service manager gives it.
    Credential,
    /// In a file beside the vault.
    File,
}

/// How many accounts there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountCounts {
    /// Accounts that somebody activated and may use.
    pub active: u64,
    /// Accounts that are locked.
    pub locked: u64,
    /// Accounts that nobody has activated yet.
    pub waiting: u64,
}

/// The last imported roster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterState {
    /// Its serial.
    pub serial: u64,
    /// SHA-256 of its signed statement.
    pub subject: Sha256,
    /// When the import was finished.
    pub imported_at: Millis,
}

/// What a roster changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterReport {
    /// What the roster is for.
    pub head: Head,
    /// Id of the officer's key that signed it.
    pub signer: String,
    /// SHA-256 of the signed statement: what approvals are for.
    pub subject: Sha256,
    /// The changes in numbers.
    pub counts: Counts,
    /// Present if the roster is held back for locking too many accounts.
    pub mass_lock: Option<MassLock>,
    /// The accounts that would be locked, up to a bound.
    pub locked: Vec<Localpart>,
}

/// Answer to an import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterImported {
    /// What was changed.
    pub report: RosterReport,
    /// The activation codes of the new accounts. The box has no second copy.
    pub codes: Vec<IssuedCode>,
}

/// An activation code for the slip of one person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedCode {
    /// The account.
    pub user_id: String,
    /// Name of the person.
    pub display_name: Option<String>,
    /// Unit of the person.
    pub unit: Option<String>,
    /// The code.
    pub code: String,
    /// Until when it may be used.
    pub expires_at: Millis,
}

/// A wish for new activation codes; the old ones of these accounts end at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodesRequest {
    /// For these accounts, also if they were activated before: the person forgot the password.
    #[serde(default)]
    pub localparts: Vec<Localpart>,
    /// For all active accounts that nobody has activated yet.
    #[serde(default)]
    pub all_waiting: bool,
}

/// A part of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPage {
    /// Rows in order; fewer than asked for only at the end of the log.
    pub rows: Vec<Row>,
    /// Checkpoints of these rows.
    #[serde(default)]
    pub checkpoints: Vec<SignedCheckpoint>,
    /// The audit keys of the box, the newest first, as the box says: compare with what was written down.
    #[serde(default)]
    pub keys: Vec<PublicKey>,
    /// The end of the log.
    pub tip: Tip,
}

/// How far a counting of journal entries is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalSealed {
    /// The number of its last entry that is; 0 if none is.
    pub up_to: u64,
}

/// A [`crate::audit::Checkpoint`] as it was signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedCheckpoint {
    /// The row that it is of.
    pub row: u64,
    /// The COSE_Sign1, in base64.
    pub checkpoint: String,
}

impl SignedCheckpoint {
    /// Of a row.
    #[must_use]
    pub fn new(row: u64, bytes: &[u8]) -> Self {
        Self { row, checkpoint: STANDARD.encode(bytes) }
    }

    /// The COSE_Sign1; empty, which no key signed, if the text is none.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        STANDARD.decode(&self.checkpoint).unwrap_or_default()
    }
}

/// An enclave that this one is paired with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Matrix server name.
    pub server_name: OwnedServerName,
    /// Name for people.
    pub enclave: String,
    /// Fingerprint of its root key, in words.
    pub fingerprint: String,
    /// Serial of its card.
    pub serial: u64,
    /// Until when the card is valid.
    pub not_after: Millis,
    /// Where the key lives that signs its events, if its card says so.
    pub custody: Option<Mode>,
}

/// How the exchange with a peer stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerBundles {
    /// The peer.
    pub peer: OwnedServerName,
    /// Sequence number of the last bundle that was made for it.
    pub exported: u64,
    /// Sequence number of the last bundle that it acknowledged.
    pub acknowledged: u64,
    /// Sequence number of the last bundle of it that was imported.
    pub imported: u64,
    /// When the last bundle of it was imported.
    pub imported_at: Option<Millis>,
}

/// What an imported bundle brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleImported {
    /// Who made it.
    pub peer: OwnedServerName,
    /// Its sequence number.
    pub sequence: u64,
    /// True if it was imported before, and nothing changed now.
    pub known: bool,
    /// What came of its parts, in sentences for people.
    pub report: Vec<String>,
}

/// How the token is, and where the keys of the box live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenReport {
    /// How the token is.
    #[serde(flatten)]
    pub state: TokenStatus,
    /// Where the key lives that signs events. Unknown until the box has one, or the token was open once.
    pub event_key: Option<Mode>,
    /// Where the key lives that opens bundles. Unknown until the box has one.
    pub courier_encryption_key: Option<Mode>,
}

/// How the token is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum TokenStatus {
    /// None is configured: nothing leaves the box.
    None,
    /// Being opened for the first time.
    Starting,
    /// Open: the box signs.
    Ready,
    /// Waits for a PIN.
    Locked {
        /// What happened and what to do.
        why: String,
    },
    /// Not usable at the moment; the box tries again by itself.
    Absent {
        /// What happened and what to do.
        why: String,
        /// How often it tried.
        attempts: u32,
    },
}

/// A PIN for the token. Has no `Debug`: it must never be logged.
#[derive(Serialize, Deserialize, zeroize::ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct Unlock {
    /// The user PIN.
    pub pin: String,
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what happened and what to do, outermost first.
    pub error: String,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request itself is wrong.
    BadRequest,
    /// The box understood and will not do it.
    Refused,
    /// It will do it once enough officers have approved, and every approval counts.
    NeedsApproval,
    /// There is no such thing.
    NotFound,
    /// Not now; later perhaps.
    Unavailable,
    /// The box failed; its log says why.
    Internal,
}

impl ErrorCode {
    /// The HTTP status of the answer.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Refused => 409,
            Self::NeedsApproval => 403,
            Self::NotFound => 404,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_names_a_person() {
        let parse = |text: &str| Authority::parse(text.as_bytes()).map(|a| a.actor);
        assert_eq!(parse(r#"{"actor":"alice"}"#), Ok("alice".to_owned()));
        let approvals = [r#""AAAA""#; ADMIN_APPROVALS_MAX + 1].join(",");
        let table = [
            (String::new(), NoAuthority::Header),
            (r#"{"actor":"alice","root":true}"#.to_owned(), NoAuthority::Header),
            (
                format!(r#"{{"actor":"{}"}}"#, "x".repeat(ADMIN_AUTHORITY_BYTES_MAX)),
                NoAuthority::Header,
            ),
            (r#"{"actor":" "}"#.to_owned(), NoAuthority::Actor),
            (r#"{"actor":"al\nice"}"#.to_owned(), NoAuthority::Actor),
            (
                format!(r#"{{"actor":"{}"}}"#, "x".repeat(ADMIN_ACTOR_CHARS_MAX + 1)),
                NoAuthority::Actor,
            ),
            (format!(r#"{{"actor":"alice","approvals":[{approvals}]}}"#), NoAuthority::Approvals),
        ];
        for (text, why) in table {
            assert_eq!(parse(&text), Err(why), "{text:.80}");
        }
    }
}
