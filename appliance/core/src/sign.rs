//! What a key may be asked to sign. A request says what it is, and is taken apart again before a token sees a byte of
//! it: whoever can reach the token can have our own documents signed, but cannot use it as an oracle.
//!
//! | request | role of the key | signed bytes | specification |
//! |---|---|---|---|
//! | [`SigningRequest::Pdu`] | event | canonical JSON of the redacted event | Server-Server API, "Signing Events" |
//! | [`SigningRequest::KeyDocument`] | event | canonical JSON | Server-Server API, `GET /_matrix/key/v2/server` |
//! | [`SigningRequest::XMatrix`] | event | canonical JSON | Server-Server API, "Request Authentication" |
//! | [`SigningRequest::Certificate`] | CA | DER of a TBSCertificate | RFC 5280, section 4.1 |
//! | [`SigningRequest::CaRequest`] | CA | DER of a CertificationRequestInfo | RFC 2986, section 4.1 |
//! | [`SigningRequest::TlsRequest`] | TLS | DER of a CertificationRequestInfo | RFC 2986, section 4.1 |
//! | [`SigningRequest::TlsHandshake`] | TLS | the content of CertificateVerify | RFC 8446, section 4.4.3 |
//! | the others | courier, root, officer, audit, release | COSE `Sig_structure` with our context as `external_aad` | RFC 9052, section 4.4 |
//!
//! The three JSON forms share one key, so they must never be mistaken for each other: an event keeps its `type`,
//! `sender` and `hashes` through redaction, and the other two are refused if they hold any field but their own.
//! JSON begins with `{`, a `Sig_structure` with 0x84, DER with 0x30 and a handshake with 0x20.

use std::fmt;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, RoomVersionId, ServerName, UserId,
    canonical_json::RedactingSerializer, room_version_rules::RedactionRules,
};
use serde::{Deserialize, Serialize};

use crate::{
    limits::{KEY_DOCUMENT_BYTES_MAX, PDU_BYTES_MAX, SIGNATURE_BYTES_RESERVED, SIGNED_BYTES_MAX},
    working_key::WorkingKey,
};

mod budget;
pub mod context;
pub mod keys;
mod x509;

pub use budget::{Bucket, Budget, RequestKind};
pub use keys::{
    Algorithm, InvalidKey, NotAPublicKey, PublicKey, Signature, SignatureMismatch, verify,
};

#[cfg(test)]
mod tests;

/// What a key is for. Each key has one role for life, and each [`SigningRequest`] names the only role that may sign it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyRole {
    /// Signs events, federation requests and our key document. Always Ed25519, the only algorithm of Matrix.
    Event,
    /// Signs bundle manifests and acknowledgements.
    Courier,
    /// The private half that opens bundles: agrees, never signs. Always P-256.
    CourierEncryption,
    /// The enclave's root, kept offline: signs pairing cards.
    Root,
    /// An officer's key: signs rosters and approvals.
    Officer,
    /// Signs checkpoints of the audit log.
    Audit,
    /// Wraps secrets at rest, never signs: AES-256, or P-256 in tokens that cannot wrap with AES.
    Storage,
    /// Wraps the private half of one hybrid courier encryption key, and is destroyed with it. As a storage key.
    CourierStorage,
    /// A recovery officer's key, which opens backups: agrees, never signs. Always P-256.
    Recovery,
    /// The enclave CA: signs certificates. Always P-256, because devices know it.
    Ca,
    /// Signs the handshakes of TLS. Always P-256, for the same reason.
    Tls,
    /// The builder's: signs updates of the system.
    Release,
}

impl KeyRole {
    /// Every role, in the order of the table of keys.
    pub const ALL: [Self; 12] = [
        Self::Event,
        Self::Courier,
        Self::CourierEncryption,
        Self::Root,
        Self::Officer,
        Self::Audit,
        Self::Storage,
        Self::CourierStorage,
        Self::Recovery,
        Self::Ca,
        Self::Tls,
        Self::Release,
    ];

    /// The name in key labels and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Courier => "courier",
            Self::CourierEncryption => "courier-encryption",
            Self::Root => "root",
            Self::Officer => "officer",
            Self::Audit => "audit",
            Self::Storage => "storage",
            Self::CourierStorage => "courier-storage",
            Self::Recovery => "recovery",
            Self::Ca => "ca",
            Self::Tls => "tls",
            Self::Release => "release",
        }
    }
}

impl KeyRole {
    /// Whether keys of this role wrap secrets.
    #[must_use]
    pub fn wraps(self) -> bool {
        matches!(self, Self::Storage | Self::CourierStorage)
    }

    /// Whether keys of this role agree with other keys, for opening what was encrypted to them.
    #[must_use]
    pub fn agrees(self) -> bool {
        matches!(self, Self::CourierEncryption | Self::Recovery)
    }
}

impl fmt::Display for KeyRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing to sign. Serialisable, so that the token can live in another process which refuses what it should not sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SigningRequest {
    /// An event of one of our users.
    Pdu {
        /// Decides what redaction keeps.
        room_version: RoomVersionId,
        /// The event in canonical JSON, content hash included; `signatures` and `unsigned` are not signed.
        json: String,
    },
    /// Our answer to `GET /_matrix/key/v2/server`, without `signatures`.
    KeyDocument {
        /// An object of `server_name`, `valid_until_ts`, `verify_keys` and `old_verify_keys`.
        json: String,
    },
    /// A federation request of ours.
    XMatrix {
        /// An object of `method`, `uri`, `origin`, `destination` and, if the request has a body, `content`.
        json: String,
    },
    /// A bundle manifest: `Sig_structure` with [`context::MANIFEST`].
    Manifest(Vec<u8>),
    /// An acknowledgement or receipt for a bundle: `Sig_structure` with [`context::ACKNOWLEDGEMENT`].
    Acknowledgement(Vec<u8>),
    /// A pairing card: `Sig_structure` with [`context::CARD`].
    Card(Vec<u8>),
    /// A roster of accounts: `Sig_structure` with [`context::ROSTER`].
    Roster(Vec<u8>),
    /// An officer's approval of a command: `Sig_structure` with [`context::APPROVAL`].
    Approval(Vec<u8>),
    /// A checkpoint of the audit log: `Sig_structure` with [`context::CHECKPOINT`].
    Checkpoint(Vec<u8>),
    /// What a backup contains: `Sig_structure` with [`context::BACKUP`].
    Backup(Vec<u8>),
    /// What the token says of an event key that it wraps but cannot hold: `Sig_structure` with [`context::WORKING_KEY`].
    WorkingKey(Vec<u8>),
    /// The manifest of an update of the system: `Sig_structure` with [`context::UPDATE`].
    Update(Vec<u8>),
    /// A TBSCertificate: the enclave CA's own certificate, or that of one of its servers.
    Certificate(Vec<u8>),
    /// A CertificationRequestInfo: the enclave CA asks a higher one for its certificate.
    CaRequest(Vec<u8>),
    /// A CertificationRequestInfo: the box asks another CA for its certificate.
    TlsRequest(Vec<u8>),
    /// The content of the CertificateVerify message of a TLS 1.3 server.
    TlsHandshake(Vec<u8>),
}

/// What the holder of the keys knows about itself, against which requests are held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Our Matrix server name: events, key documents and requests of any other server are refused.
    pub server_name: OwnedServerName,
}

/// Why a request is not signed. Always a fault of the asker: asking again cannot help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Longer than the bound for its kind.
    #[error("the {what} has {bytes} bytes, more than the {max} that may be signed")]
    TooLarge {
        /// Kind of request.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// Not a JSON object, or with numbers that canonical JSON does not know.
    #[error("the {what} is not a canonical JSON object")]
    NotJson {
        /// Kind of request.
        what: &'static str,
        /// Where the parser stopped.
        #[source]
        source: serde_json::Error,
    },
    /// A field is missing or has the wrong type.
    #[error("the {what} has no valid `{field}`")]
    Field {
        /// Kind of request.
        what: &'static str,
        /// The field.
        field: &'static str,
    },
    /// A field that a document of this kind does not have.
    #[error("the {what} has the field `{field}`, which does not belong there")]
    UnknownField {
        /// Kind of request.
        what: &'static str,
        /// The field.
        field: String,
    },
    /// It speaks for another server.
    #[error("the {what} is of {named}, not of our server {ours}")]
    Foreign {
        /// Kind of request.
        what: &'static str,
        /// The server it names.
        named: OwnedServerName,
        /// Our server.
        ours: OwnedServerName,
    },
    /// We do not know what redaction keeps in this room version.
    #[error("room version {0} is unknown")]
    RoomVersion(RoomVersionId),
    /// Not exactly one `Sig_structure` of COSE_Sign1 in deterministic encoding.
    #[error("the {what} is not a COSE_Sign1 Sig_structure in deterministic encoding")]
    SigStructure {
        /// Kind of request.
        what: &'static str,
    },
    /// Not the DER of such a document, or one with a part that does not belong there.
    #[error("the {what} is not one that is signed here ({why})")]
    X509 {
        /// Kind of request.
        what: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A document of another kind, or of another program.
    #[error("the {what} does not carry the context of its kind as external_aad")]
    Context {
        /// Kind of request.
        what: &'static str,
    },
}

impl SigningRequest {
    /// What is asked for, without its content.
    pub fn kind(&self) -> RequestKind {
        match self {
            Self::Pdu { .. } => RequestKind::Pdu,
            Self::KeyDocument { .. } => RequestKind::KeyDocument,
            Self::XMatrix { .. } => RequestKind::XMatrix,
            Self::Manifest(_) => RequestKind::Manifest,
            Self::Acknowledgement(_) => RequestKind::Acknowledgement,
            Self::Card(_) => RequestKind::Card,
            Self::Roster(_) => RequestKind::Roster,
            Self::Approval(_) => RequestKind::Approval,
            Self::Checkpoint(_) => RequestKind::Checkpoint,
            Self::Backup(_) => RequestKind::Backup,
            Self::WorkingKey(_) => RequestKind::WorkingKey,
            Self::Update(_) => RequestKind::Update,
            Self::Certificate(_) => RequestKind::Certificate,
            Self::CaRequest(_) => RequestKind::CaRequest,
            Self::TlsRequest(_) => RequestKind::TlsRequest,
            Self::TlsHandshake(_) => RequestKind::TlsHandshake,
        }
    }

    /// The role whose keys alone may sign this.
    pub fn role(&self) -> KeyRole {
        match self {
            Self::Pdu { .. } | Self::KeyDocument { .. } | Self::XMatrix { .. } => KeyRole::Event,
            Self::Manifest(_)
            | Self::Acknowledgement(_)
            | Self::Backup(_)
            | Self::WorkingKey(_) => KeyRole::Courier,
            Self::Card(_) => KeyRole::Root,
            Self::Roster(_) | Self::Approval(_) => KeyRole::Officer,
            Self::Checkpoint(_) => KeyRole::Audit,
            Self::Certificate(_) | Self::CaRequest(_) => KeyRole::Ca,
            Self::TlsRequest(_) | Self::TlsHandshake(_) => KeyRole::Tls,
            Self::Update(_) => KeyRole::Release,
        }
    }

    /// Takes the request apart, holds it against `policy`, and gives the bytes that the signature covers.
    pub fn bytes_to_sign(&self, policy: &Policy) -> Result<Vec<u8>, Refusal> {
        match self {
            Self::Pdu { room_version, json } => pdu(room_version, json, policy),
            Self::KeyDocument { json } => key_document(json, policy),
            Self::XMatrix { json } => x_matrix(json, policy),
            Self::Manifest(bytes) => context::check("manifest", context::MANIFEST, bytes),
            Self::Acknowledgement(bytes) => {
                context::check("acknowledgement", context::ACKNOWLEDGEMENT, bytes)
            }
            Self::Card(bytes) => context::check("pairing card", context::CARD, bytes),
            Self::Roster(bytes) => context::check("roster", context::ROSTER, bytes),
            Self::Approval(bytes) => context::check("approval", context::APPROVAL, bytes),
            Self::Checkpoint(bytes) => context::check("checkpoint", context::CHECKPOINT, bytes),
            Self::Backup(bytes) => context::check("backup", context::BACKUP, bytes),
            Self::WorkingKey(bytes) => working_key(bytes, policy),
            Self::Update(bytes) => context::check("update", context::UPDATE, bytes),
            Self::Certificate(der) => x509::certificate(der, policy),
            Self::CaRequest(der) => x509::request("request of the CA", der, policy),
            Self::TlsRequest(der) => x509::request("certificate request", der, policy),
            Self::TlsHandshake(content) => x509::handshake(content),
        }
    }
}

/// Fields that no signature of Matrix covers (appendices, "Signing JSON").
const UNSIGNED_FIELDS: &[&str] = &["signatures", "unsigned"];

/// The content hash is not compared with the content: an event may have been redacted between its acceptance and its
/// signature, and the hash of what it said stays in it.
fn pdu(room_version: &RoomVersionId, json: &str, policy: &Policy) -> Result<Vec<u8>, Refusal> {
    const WHAT: &str = "event";
    let rules = room_version.rules().ok_or_else(|| Refusal::RoomVersion(room_version.clone()))?;
    let event = object(WHAT, json, PDU_BYTES_MAX - SIGNATURE_BYTES_RESERVED)?;
    text(WHAT, &event, "type")?;
    let sender = text(WHAT, &event, "sender")?;
    let sender = <&UserId>::try_from(sender)
        .map_err(|_invalid| Refusal::Field { what: WHAT, field: "sender" })?;
    ours(WHAT, sender.server_name(), policy)?;
    integer(WHAT, &event, "origin_server_ts")?;
    nested(WHAT, &event, "content")?;
    let hashes = nested(WHAT, &event, "hashes")?;
    text(WHAT, hashes, "sha256")?;
    canonical(WHAT, &event, Some(&rules.redaction))
}

/// The token must certify no key of another server.
fn working_key(bytes: &[u8], policy: &Policy) -> Result<Vec<u8>, Refusal> {
    const WHAT: &str = "working key";
    let signed = context::check(WHAT, context::WORKING_KEY, bytes)?;
    let said = context::payload(bytes).and_then(|payload| WorkingKey::decode(payload).ok());
    let said = said.ok_or(Refusal::SigStructure { what: WHAT })?;
    ours(WHAT, &said.server_name, policy)?;
    Ok(signed)
}

fn key_document(json: &str, policy: &Policy) -> Result<Vec<u8>, Refusal> {
    const WHAT: &str = "key document";
    let document = object(WHAT, json, KEY_DOCUMENT_BYTES_MAX)?;
    only(WHAT, &document, &["server_name", "valid_until_ts", "verify_keys", "old_verify_keys"])?;
    ours(WHAT, server(WHAT, &document, "server_name")?, policy)?;
    integer(WHAT, &document, "valid_until_ts")?;
    nested(WHAT, &document, "verify_keys")?;
    canonical(WHAT, &document, None)
}

fn x_matrix(json: &str, policy: &Policy) -> Result<Vec<u8>, Refusal> {
    const WHAT: &str = "federation request";
    let request = object(WHAT, json, SIGNED_BYTES_MAX)?;
    only(WHAT, &request, &["method", "uri", "origin", "destination", "content"])?;
    text(WHAT, &request, "method")?;
    if !text(WHAT, &request, "uri")?.starts_with("/_matrix/") {
        return Err(Refusal::Field { what: WHAT, field: "uri" });
    }
    server(WHAT, &request, "destination")?;
    ours(WHAT, server(WHAT, &request, "origin")?, policy)?;
    canonical(WHAT, &request, None)
}

fn object(what: &'static str, json: &str, max: usize) -> Result<CanonicalJsonObject, Refusal> {
    if json.len() > max {
        return Err(Refusal::TooLarge { what, bytes: json.len(), max });
    }
    serde_json::from_str(json).map_err(|source| Refusal::NotJson { what, source })
}

fn canonical(
    what: &'static str,
    object: &CanonicalJsonObject,
    redaction: Option<&RedactionRules>,
) -> Result<Vec<u8>, Refusal> {
    let serializer = RedactingSerializer::new().custom_redacted_root_fields(UNSIGNED_FIELDS);
    let serializer = match redaction {
        Some(rules) => serializer.rules(rules),
        None => serializer,
    };
    let json = serializer.serialize(object).map_err(|source| Refusal::NotJson { what, source })?;
    Ok(json.into_bytes())
}

fn only(what: &'static str, object: &CanonicalJsonObject, fields: &[&str]) -> Result<(), Refusal> {
    match object.keys().find(|name| !fields.contains(&name.as_str())) {
        Some(field) => Err(Refusal::UnknownField { what, field: field.clone() }),
        None => Ok(()),
    }
}

fn ours(what: &'static str, named: &ServerName, policy: &Policy) -> Result<(), Refusal> {
    if named == policy.server_name {
        return Ok(());
    }
    Err(Refusal::Foreign { what, named: named.to_owned(), ours: policy.server_name.clone() })
}

fn text<'a>(
    what: &'static str,
    object: &'a CanonicalJsonObject,
    field: &'static str,
) -> Result<&'a str, Refusal> {
    let value = object.get(field).and_then(CanonicalJsonValue::as_str);
    value.ok_or(Refusal::Field { what, field })
}

fn server<'a>(
    what: &'static str,
    object: &'a CanonicalJsonObject,
    field: &'static str,
) -> Result<&'a ServerName, Refusal> {
    let name = text(what, object, field)?;
    <&ServerName>::try_from(name).map_err(|_invalid| Refusal::Field { what, field })
}

fn integer(
    what: &'static str,
    object: &CanonicalJsonObject,
    field: &'static str,
) -> Result<(), Refusal> {
    match object.get(field).and_then(CanonicalJsonValue::as_integer) {
        Some(_) => Ok(()),
        None => Err(Refusal::Field { what, field }),
    }
}

fn nested<'a>(
    what: &'static str,
    object: &'a CanonicalJsonObject,
    field: &'static str,
) -> Result<&'a CanonicalJsonObject, Refusal> {
    let value = object.get(field).and_then(CanonicalJsonValue::as_object);
    value.ok_or(Refusal::Field { what, field })
}
