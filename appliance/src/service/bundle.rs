//! Bundles: everything that this enclave has for a peer, and what a peer has for this one.
//!
//! [`export`](export::export) tells everything since the last bundle that the peer acknowledged. [`import`](import::import) takes a bundle through
//! quarantine, authentication, decryption and verification before the first change; the changes are made in slices that can be repeated, and
//! the bundle counts as received with the last of them.

pub mod export;
pub mod import;
mod media;
mod place;
mod rooms;
mod tally;
mod unlock;
mod users;

use ruma::OwnedServerName;
use sallyport_core::{
    admin::Unapproved,
    bundle,
    card::{Card, Policy},
};
use sallyport_store::Store;

use super::{clock, own_keys, peers, receive, signer};
use crate::files;

/// Why a bundle was not made or not imported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed.
    #[error("the database failed; what was imported so far is kept, try again")]
    Store(#[from] sallyport_store::Error),
    /// An approval does not count, or some are missing.
    #[error(transparent)]
    Approval(#[from] Unapproved),
    /// The box's keys are not to be had.
    #[error(transparent)]
    Keys(#[from] own_keys::Error),
    /// Cards are not to be had.
    #[error(transparent)]
    Peers(#[from] peers::Error),
    /// The clock cannot be right.
    #[error(transparent)]
    Clock(#[from] clock::Error),
    /// There is no such peer.
    #[error("{0} is not a peer: exchange cards with it first")]
    NotAPeer(OwnedServerName),
    /// There is no own card.
    #[error("the box has no card of its own: have the enclave root sign one and install it")]
    NoOwnCard,
    /// The own card is from before a restore.
    #[error(
        "the box was restored from a backup, and its card is from before: have the enclave root sign a new one (`sallyctl card request`, `sallyctl ceremony sign-card`, `sallyctl card install`)"
    )]
    CardOfBefore,
    /// The peer has no key that can be used.
    #[error("every encryption key on {0}'s card has expired: exchange new cards")]
    NoRecipientKey(OwnedServerName),
    /// Another export for the same peer came first.
    #[error("another bundle for {0} was made at the same time: export again")]
    Overtaken(OwnedServerName),
    /// Events could not be signed.
    #[error("events for the peer wait for their signatures: nothing leaves the box unsigned")]
    Unsigned(#[from] signer::Error),
    /// The token failed.
    #[error("the token does not do it: see `sallyctl token status`, then try again")]
    Token(#[source] sallyport_hsm::Error),
    /// A file failed.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The bundle could not be written.
    #[error("the bundle could not be written")]
    Write(#[from] bundle::WriteError),
    /// The bundle could not be sealed.
    #[error("the bundle could not be sealed")]
    Seal(#[from] bundle::SealError),
    /// The bundle is not accepted.
    #[error("the bundle is not accepted")]
    Refused(#[from] bundle::Error),
    /// The bundle is sound, but not the next one.
    #[error("the bundle {0}")]
    Sequence(bundle::Sequence),
    /// What it contains contradicts itself.
    #[error("the bundle's content is not sound ({0}): report it to the sender")]
    Content(String),
    /// Events could not be taken in.
    #[error("events could not be taken in; what was imported so far is kept, try again")]
    Receive(#[from] receive::Error),
    /// No randomness.
    #[error("no randomness is available")]
    NoRandomness(#[from] crate::app::Interrupted),
}

/// What the enclave's own card says: it binds this box. Without a card nothing is exchanged.
fn own_policy(store: &Store) -> Result<Policy, Error> {
    let card = store.read(|read| read.own_card())?.ok_or(Error::NoOwnCard)?;
    Ok(Card::stored(&card).map_err(peers::Error::from)?.content().policy.clone())
}
