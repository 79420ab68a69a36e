//! What a box remembers of its provisioning: the document in force, who approved it, and how the first one was trusted.
//!
//! ```cddl
//! provisioned = { 0: bstr                ; the document in force, TOML
//!               , 1: [* bstr .size 8]    ; key ids of the officers who approved it
//!               , 2: 0 / 1               ; how the first document was trusted: console / unattended
//!               , 3: uint                ; when it came into force (milliseconds since 1970)
//!               , 4: bstr .size 32 }     ; SHA-256 of the first document
//! ```

use std::fmt;

use minicbor::{Decode, Encode};
use serde::Serialize;

use super::{Document, Faulty, Refused, approved};
use crate::{
    admin::{Approval, Approvers},
    cbor,
    digest::Sha256,
    limits::STICK_PROVISION_BYTES_MAX,
    time::Millis,
};

/// How a box came to trust its first document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Encode, Decode)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum Trust {
    /// Somebody typed its code at the console.
    #[n(0)]
    Console,
    /// Nobody compared anything.
    #[n(1)]
    Unattended,
}

impl Trust {
    /// For people.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Console => "the code of the first document was typed at the console",
            Self::Unattended => {
                "UNATTENDED: nobody compared the code of the first document, so compare the fingerprint of the enclave CA"
            }
        }
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Console => "console",
            Self::Unattended => "unattended",
        })
    }
}

/// What a box remembers of its provisioning.
#[derive(Clone, Debug, PartialEq)]
pub struct Provisioned {
    document: Document,
    sha256: Sha256,
    wire: Wire,
}

/// Bytes that are no record of a provisioning.
#[derive(Debug, thiserror::Error)]
pub enum NotARecord {
    /// Not its form.
    #[error("the record of the provisioning is damaged: restore the settings from a backup")]
    Form,
    /// The document in it is of another version.
    #[error("the document in force cannot be read: is it of another version?")]
    Document(#[source] Faulty),
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(map)]
struct Wire {
    #[cbor(n(0), with = "minicbor::bytes")]
    document: Vec<u8>,
    #[n(1)]
    approvers: Approvers,
    #[n(2)]
    trust: Trust,
    #[n(3)]
    at: Millis,
    #[n(4)]
    first: Sha256,
}

impl Provisioned {
    /// The record of a first document. `document` is its text, which [`super::first`] admitted.
    ///
    /// # Errors
    /// As [`Document::parse`].
    pub fn begin(
        document: &[u8],
        approvers: Approvers,
        trust: Trust,
        at: Millis,
    ) -> Result<Self, Faulty> {
        let (parsed, sha256) = Document::parse(document)?;
        let wire = Wire { document: document.to_vec(), approvers, trust, at, first: sha256 };
        Ok(Self { document: parsed, sha256, wire })
    }

    /// Whether a document is the one in force, follows it, or is refused.
    ///
    /// # Errors
    /// [`Refused`] says why.
    pub fn admit(
        &self,
        document: &Document,
        sha256: Sha256,
        approvals: &[Approval],
    ) -> Result<Option<Approvers>, Refused> {
        if sha256 == self.sha256 {
            return Ok(None);
        }
        if document.server_name != self.document.server_name {
            let (found, own) = (&document.server_name, &self.document.server_name);
            return Err(Refused::OtherEnclave { found: found.to_string(), own: own.to_string() });
        }
        if document.serial <= self.document.serial {
            let (found, in_force) = (document.serial, self.document.serial);
            return Err(Refused::Old { found, in_force });
        }
        approved(document, sha256, approvals, &self.document.officers).map(Some)
    }

    /// The record after a document that [`Provisioned::admit`] admitted. How the first one was trusted stays.
    ///
    /// # Errors
    /// As [`Document::parse`].
    pub fn follow(
        &self,
        document: &[u8],
        approvers: Approvers,
        at: Millis,
    ) -> Result<Self, Faulty> {
        let (parsed, sha256) = Document::parse(document)?;
        let Wire { trust, first, .. } = self.wire;
        let wire = Wire { document: document.to_vec(), approvers, trust, at, first };
        Ok(Self { document: parsed, sha256, wire })
    }

    /// The document in force.
    #[must_use]
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// Its SHA-256.
    #[must_use]
    pub fn sha256(&self) -> Sha256 {
        self.sha256
    }

    /// Who approved it.
    #[must_use]
    pub fn approvers(&self) -> &Approvers {
        &self.wire.approvers
    }

    /// How the first document was trusted.
    #[must_use]
    pub fn trust(&self) -> Trust {
        self.wire.trust
    }

    /// When the document came into force.
    #[must_use]
    pub fn at(&self) -> Millis {
        self.wire.at
    }

    /// The bytes to keep.
    ///
    /// # Errors
    /// Never for a record that was made here.
    pub fn encode(&self) -> Result<Vec<u8>, cbor::Error> {
        cbor::to_bytes(&self.wire)
    }

    /// Reads kept bytes.
    ///
    /// # Errors
    /// [`NotARecord`].
    pub fn decode(bytes: &[u8]) -> Result<Self, NotARecord> {
        // The document, and little beside it.
        if bytes.len() > 2 * STICK_PROVISION_BYTES_MAX {
            return Err(NotARecord::Form);
        }
        let wire: Wire = cbor::from_bytes(bytes).map_err(|_| NotARecord::Form)?;
        let (document, sha256) = Document::parse(&wire.document).map_err(NotARecord::Document)?;
        Ok(Self { document, sha256, wire })
    }
}
