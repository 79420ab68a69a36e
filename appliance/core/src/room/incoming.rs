//! Events as they arrive: the first three checks on receipt of a PDU, which need nothing of the room.
//!
//! [Server-Server API, "Checks performed on receipt of a PDU"](https://spec.matrix.org/v1.16/server-server-api/#checks-performed-on-receipt-of-a-pdu):
//! 1. format ([`parse`]: drop), 2. signatures ([`Incoming::verify`]: drop), 3. hashes (redact).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    CanonicalJsonObject, OwnedServerName,
    room_version_rules::RoomVersionRules,
    signatures::{self, Verified},
    state_res,
};

use super::verdict::{Hold, Verdict};
use crate::event::{FormatError, KeyLookup, KeySource, Pdu, Signed, parse_object};

/// An event as it arrived: well-formed, not yet verified.
#[derive(Debug, Clone)]
pub struct Incoming {
    pdu: Arc<Pdu>,
    object: CanonicalJsonObject,
    servers: BTreeSet<OwnedServerName>,
}

/// An event whose signatures are good.
#[derive(Debug, Clone)]
pub struct Checked {
    pub(super) event: Signed,
    pub(super) gutted: bool,
}

/// Parses what claims to be an event of a room of this version.
///
/// # Errors
/// If it is not well-formed: then it is dropped.
pub fn parse(bytes: &[u8], rules: &RoomVersionRules) -> Result<Incoming, FormatError> {
    let mut object = parse_object(bytes)?;
    object.remove("unsigned");
    state_res::check_pdu_format(&object, &rules.event_format).map_err(FormatError::Field)?;
    let servers =
        signatures::required_server_signatures_to_verify_event(&object, &rules.signatures)
            .map_err(|error| FormatError::Field(error.to_string()))?;
    let pdu = Arc::new(Pdu::new(object.clone(), rules)?);
    Ok(Incoming { pdu, object, servers })
}

impl Incoming {
    /// The event, unverified.
    #[must_use]
    pub fn pdu(&self) -> &Arc<Pdu> {
        &self.pdu
    }

    /// The servers that must have signed it.
    #[must_use]
    pub fn servers(&self) -> &BTreeSet<OwnedServerName> {
        &self.servers
    }

    /// Checks signatures and hashes. Pure and independent of other events: many can be checked at once.
    ///
    /// # Errors
    /// With the verdict, if a signature is bad, keys are missing, or the event must wait for fresh ones.
    pub fn verify(
        self,
        keys: &impl KeySource,
        rules: &RoomVersionRules,
    ) -> Result<Checked, Box<Verdict>> {
        let mut public_keys = BTreeMap::new();
        let mut unknown = Vec::new();
        for server in &self.servers {
            match keys.keys(server, self.pdu.origin_server_ts()) {
                KeyLookup::Keys(set) => {
                    public_keys.insert(server.to_string(), set);
                }
                KeyLookup::Stale => {
                    return Err(Box::new(Verdict::Hold(Hold::FreshKeys(server.clone()))));
                }
                KeyLookup::Unknown => unknown.push(server.clone()),
            }
        }
        if !unknown.is_empty() {
            let (events, state) = (Vec::new(), Vec::new());
            return Err(Box::new(Verdict::Missing { events, state, keys: unknown }));
        }
        match signatures::verify_event(&public_keys, &self.object, rules) {
            Ok(Verified::All) => {
                Ok(Checked { event: Signed::verified(self.pdu, &self.object), gutted: false })
            }
            Ok(Verified::Signatures) => match self.pdu.redacted(rules) {
                Ok(redacted) => Ok(Checked {
                    event: Signed::verified(Arc::new(redacted), &self.object),
                    gutted: true,
                }),
                Err(error) => Err(Box::new(Verdict::Drop(error.to_string()))),
            },
            Err(error) => Err(Box::new(Verdict::Drop(format!("bad signature: {error}")))),
        }
    }
}

impl Checked {
    /// The event.
    #[must_use]
    pub fn pdu(&self) -> &Arc<Pdu> {
        self.event.pdu()
    }
}
