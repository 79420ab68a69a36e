//! The rules of Sallyport, pure: no IO, no clock, no randomness of its own.
//!
//! # How an event travels
//! 1. A local user's wish becomes a [`room::Draft`] ([`room::draft`]): authorised against the room's current state.
//! 2. The store's writer seals it ([`room::Draft::seal`]) onto the forward extremities: content hash, reference hash, event id.
//!    Nothing else is decided there.
//! 3. The signer later asks the token for a signature over [`sign::SigningRequest::Pdu`] and attaches it
//!    ([`event::Signed::attach`]). Only a [`event::Signed`] event can leave the box.
//! 4. An event from another server goes through [`room::decide`], which makes the checks of the Server-Server API,
//!    ["Checks performed on receipt of a PDU"](https://spec.matrix.org/v1.16/server-server-api/#checks-performed-on-receipt-of-a-pdu),
//!    and answers with a [`room::Verdict`].

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod admin;
pub mod audit;
pub mod backup;
pub mod bundle;
pub mod card;
pub mod cbor;
pub mod cose;
pub mod custody;
pub mod digest;
pub mod e2ee;
pub mod event;
mod hex;
pub mod incarnation;
pub mod journal;
pub mod limits;
pub mod merkle;
pub mod provision;
pub mod room;
pub mod roster;
pub mod sign;
pub mod time;
pub mod update;
pub mod working_key;
