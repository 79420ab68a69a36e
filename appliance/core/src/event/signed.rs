//! Signed events: the only ones that may leave the box.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{
    CanonicalJsonValue, OwnedServerName, OwnedServerSigningKeyId, ServerName,
    canonical_json::CanonicalJsonObject,
    room_version_rules::RoomVersionRules,
    serde::{Base64, base64::Standard},
    signatures,
};

use super::{FormatError, Pdu, canonical_string};
use crate::limits;

/// Signatures of an event: server name, key id, signature.
pub type Signatures =
    BTreeMap<OwnedServerName, BTreeMap<OwnedServerSigningKeyId, Base64<Standard>>>;

/// An event with a valid signature of its sender's server.
///
/// Every way out of the box takes this type. It comes from [`Signed::attach`] (our own signature, verified) or
/// [`Incoming::verify`](crate::room::Incoming::verify) (another server's), or is [reloaded](Signed::reload) from where one of them was stored.
#[derive(Debug, Clone)]
pub struct Signed {
    pdu: Arc<Pdu>,
    signatures: Signatures,
}

/// Why a signature was not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The stored event is damaged.
    #[error("the event cannot be signed: {0}")]
    Format(#[from] FormatError),
    /// The signature is not by that key over this event.
    #[error("the token's signature does not verify against its public key")]
    BadSignature(#[source] signatures::VerificationError),
    /// With the signature the event would be larger than the specification allows.
    #[error("the signed event is larger than {} bytes", limits::PDU_BYTES_MAX)]
    TooLarge,
}

impl Signed {
    /// Attaches a signature of the sender's server after verifying it.
    ///
    /// # Errors
    /// If the signature is not by `public_key` over this event, or the event grows too large.
    pub fn attach(
        pdu: Arc<Pdu>,
        key_id: &OwnedServerSigningKeyId,
        public_key: &[u8; 32],
        signature: &[u8],
        rules: &RoomVersionRules,
    ) -> Result<Self, AttachError> {
        let server = pdu.sender().server_name().to_owned();
        let signatures = Signatures::from([(
            server.clone(),
            BTreeMap::from([(key_id.clone(), Base64::new(signature.to_vec()))]),
        )]);
        let signed = Self { pdu, signatures };
        let object = signed.object()?;
        if canonical_string(&object).len() > limits::PDU_BYTES_MAX {
            return Err(AttachError::TooLarge);
        }
        let keys = BTreeMap::from([(
            server.to_string(),
            BTreeMap::from([(key_id.to_string(), Base64::new(public_key.to_vec()))]),
        )]);
        signatures::verify_event(&keys, &object, rules).map_err(AttachError::BadSignature)?;
        Ok(signed)
    }

    /// Takes what arrived, with the signatures that were on it; the caller has verified it with these rules.
    pub(crate) fn verified(pdu: Arc<Pdu>, object: &CanonicalJsonObject) -> Self {
        Self { pdu, signatures: signatures_of(object) }
    }

    /// An event and its signatures as the store kept them: they were verified before they were stored.
    ///
    /// Answers `None` if there is no signature of the sender's server: the event must not leave the box.
    #[must_use]
    pub fn reload(pdu: Arc<Pdu>, signatures: Signatures) -> Option<Self> {
        signatures
            .get(pdu.sender().server_name())
            .is_some_and(|keys| !keys.is_empty())
            .then_some(Self { pdu, signatures })
    }

    /// The event.
    #[must_use]
    pub fn pdu(&self) -> &Arc<Pdu> {
        &self.pdu
    }

    /// The signatures.
    #[must_use]
    pub fn signatures(&self) -> &Signatures {
        &self.signatures
    }

    /// Whether this server has signed it.
    #[must_use]
    pub fn is_signed_by(&self, server: &ServerName) -> bool {
        self.signatures.contains_key(server)
    }

    /// The canonical JSON that goes over the wire, signatures included.
    ///
    /// # Errors
    /// If the stored text is damaged.
    pub fn to_wire(&self) -> Result<String, FormatError> {
        Ok(canonical_string(&self.object()?))
    }

    fn object(&self) -> Result<CanonicalJsonObject, FormatError> {
        let mut object = self.pdu.object()?;
        let servers = self
            .signatures
            .iter()
            .map(|(server, keys)| {
                let keys = keys
                    .iter()
                    .map(|(id, value)| (id.to_string(), CanonicalJsonValue::String(value.encode())))
                    .collect();
                (server.to_string(), CanonicalJsonValue::Object(keys))
            })
            .collect();
        object.insert("signatures".to_owned(), CanonicalJsonValue::Object(servers));
        Ok(object)
    }
}

/// Well-formed signatures of an event as it arrived; others are left out, and with them their claim.
fn signatures_of(object: &CanonicalJsonObject) -> Signatures {
    let mut signatures = Signatures::new();
    let Some(CanonicalJsonValue::Object(servers)) = object.get("signatures") else {
        return signatures;
    };
    for (server, keys) in servers {
        let (Ok(server), CanonicalJsonValue::Object(keys)) =
            (OwnedServerName::try_from(server.as_str()), keys)
        else {
            continue;
        };
        let keys: BTreeMap<_, _> = keys
            .iter()
            .filter_map(|(id, value)| {
                let id = OwnedServerSigningKeyId::try_from(id.as_str()).ok()?;
                let value = Base64::parse(value.as_str()?).ok()?;
                Some((id, value))
            })
            .collect();
        if !keys.is_empty() {
            signatures.insert(server, keys);
        }
    }
    signatures
}
