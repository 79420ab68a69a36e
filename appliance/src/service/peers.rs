//! Pairing: the box's own card, and the cards of the enclaves that it exchanges bundles with.

use std::collections::BTreeSet;

use ruma::ServerName;
use sallyport_core::{
    admin::{CardRequest, Consent, Unapproved},
    audit::Entry,
    card::{
        Card, CardError, CourierKey, EncryptionKey, EncryptionSuite, Mismatch, Policy, Proposed,
    },
    cose::KeyId,
    event::{KeyDocument, KeyDocumentError},
    incarnation::Incarnation,
    limits,
    sign::{KeyRole, PublicKey},
    time::Millis,
};
use sallyport_store::{Peer, Store, Write};

use super::{
    hybrid,
    order::{Mandate, Order},
    own_keys,
};
use crate::app::App;

/// How many one-time keys of each device a peer is given. Each pair of devices takes one, once.
const POOL_TARGET: u32 = 30;

/// Why pairing failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed.
    #[error("cards cannot be read or kept")]
    Store(#[from] sallyport_store::Error),
    /// An approval does not count, or some are missing.
    #[error(transparent)]
    Approval(#[from] Unapproved),
    /// The box's keys are not to be had.
    #[error(transparent)]
    Keys(#[from] own_keys::Error),
    /// There is no token.
    #[error("the box has no token: set [token] in the configuration")]
    NoToken,
    /// The card is not accepted.
    #[error("the card is not accepted")]
    Card(#[from] CardError),
    /// The fingerprint is another.
    #[error(transparent)]
    Fingerprint(#[from] Mismatch),
    /// The key document on a confirmed card is not sound.
    #[error("the card's Matrix keys are not sound: ask the peer for a new card")]
    ServerKeys(#[from] KeyDocumentError),
    /// The card is not the one that this place is for.
    #[error("{0}")]
    WrongCard(&'static str),
    /// The card wants more officers than there are.
    #[error(
        "the card wants the approval of {needed} officers, and roster.trusted_keys names {known}: name the others in the configuration first"
    )]
    TooFewOfficers {
        /// How many must approve.
        needed: usize,
        /// How many the configuration names.
        known: usize,
    },
}

/// The box's public keys, for the enclave root to sign.
///
/// # Errors
/// If the token was never present, or does not sign the key document.
pub fn card_request(app: &App, now: Millis) -> Result<CardRequest, Error> {
    let token = app.token.as_ref().ok_or(Error::NoToken)?;
    let server_name = app.config.server_name.clone();
    own_keys::ensure(&app.store, &**token, now)?;
    hybrid::ensure(&app.store, &**token, &server_name)?;
    let document = own_keys::key_document(&app.store, &**token, &server_name, now)?;
    let not_after = Millis(now.0.saturating_add(limits::COURIER_KEY_LIFETIME_MS));
    let event = own_keys::required(&app.store, KeyRole::Event)?;
    let custody = token.custody(&event.name).map_err(own_keys::Error::from)?;
    let old_until = Millis(now.0.saturating_add(limits::BUNDLE_LIFETIME_MS_MAX));
    let signing_keys = own_keys::usable(&app.store, KeyRole::Courier)?.into_iter().map(|courier| {
        // One that was replaced signs until every peer has the card; then it has no more to say.
        let last = if courier.key.retired.is_none() { not_after } else { old_until };
        Ok(CourierKey { public: own_keys::public_key(&courier.key)?, not_after: last })
    });
    let signing_keys = signing_keys.take(limits::CARD_KEYS_MAX).collect::<Result<_, Error>>()?;
    let (incarnation, previous) = app
        .store
        .read(|read| Ok::<_, sallyport_store::Error>((read.incarnation()?, read.own_card()?)))?;
    Ok(CardRequest {
        server_name,
        signing_keys,
        encryption_keys: encryption_keys(&app.store, not_after)?,
        server_keys: document.into_bytes(),
        incarnation,
        previous: previous.map(|card| Card::stored(&card)).transpose()?.map(|card| card.hash()),
        custody: Some(custody),
    })
}

/// The keys that peers encrypt bundles for this box to, the better one first.
///
/// # Errors
/// If there is none yet.
pub fn encryption_keys(store: &Store, not_after: Millis) -> Result<Vec<EncryptionKey>, Error> {
    let current = own_keys::required(store, KeyRole::CourierEncryption)?;
    let hybrid = store.read(|read| read.hybrid_key(&current.key.name))?;
    let hybrid = hybrid.map(|hybrid| hybrid::public_half(&hybrid, not_after));
    Ok(hybrid.into_iter().chain([encryption_half(&current, not_after)]).collect())
}

/// The public half of one of the box's encryption keys, as cards and bundles name it.
#[must_use]
pub fn encryption_half(key: &own_keys::Current, not_after: Millis) -> EncryptionKey {
    EncryptionKey {
        suite: EncryptionSuite::P256HkdfSha256Aes256Gcm.code(),
        public: key.key.public.clone(),
        not_after,
    }
}

/// The courier key that signs a bundle for a peer: the newest on our card once the peer has that card, before then the oldest on it, which is on the
/// card that the peer has.
///
/// # Errors
/// If our card names no courier key that we have.
pub fn courier_key_for(store: &Store, peer: &Peer) -> Result<own_keys::Current, Error> {
    let card = store.read(|read| read.own_card_since())?;
    let (card, installed) = card.ok_or(Error::WrongCard(NO_COURIER_KEY))?;
    let card = Card::stored(&card)?;
    let on_card = |courier: &own_keys::Current| {
        let names = |on: &CourierKey| on.public.as_bytes() == courier.key.public;
        card.content().signing_keys.iter().any(names)
    };
    let mut couriers = own_keys::usable(store, KeyRole::Courier)?.into_iter().filter(on_card);
    let has_card = peer.acked.seq > 0 && peer.acked.created > installed;
    let key = if has_card { couriers.next() } else { couriers.next_back() };
    key.ok_or(Error::WrongCard(NO_COURIER_KEY))
}

const NO_COURIER_KEY: &str = "the box's card names none of its courier keys: ask the box for a new request and have that signed";

/// Installs the box's own card, as the enclave root signed it.
///
/// # Errors
/// If it is not valid, of another server, names other keys than the box has, does not follow the installed one, or an
/// approval does not count.
pub fn install_own_card(app: &App, bytes: Vec<u8>, order: &Order) -> Result<Card, Error> {
    let card = Card::stored(&bytes)?;
    card.check_time(order.now)?;
    if card.content().server_name != app.config.server_name {
        return Err(Error::WrongCard(
            "the card is of another server: install it on that server's box",
        ));
    }
    let signing = own_keys::public_key(&own_keys::required(&app.store, KeyRole::Courier)?.key)?;
    let opening = own_keys::required(&app.store, KeyRole::CourierEncryption)?.key.public;
    let content = card.content();
    if !content.signing_keys.iter().any(|key| key.public == signing)
        || !content.encryption_keys.iter().any(|key| key.public == opening)
    {
        return Err(Error::WrongCard(
            "the card does not name this box's courier keys: ask the box for a new request and have that signed",
        ));
    }
    let officers = &app.config.roster.trusted_keys;
    check_officers(&card.content().policy, officers)?;
    let wanted = Consent::to_own_card(app.config.server_name.clone(), card.hash());
    let mandate = order.approved(officers, None, &wanted)?;
    let serial = ("serial", card.content().serial.to_string());
    let entry = mandate.entry("card.install", card.hash(), [serial]);
    let now = order.now;
    app.store.write(move |write| {
        let known = write.own_card()?;
        let command = || "sallyctl approve card CARD --token TOKEN --out APPROVAL".to_owned();
        check_succession(known.as_deref(), &bytes, known.as_deref(), &mandate, command)?;
        write.set_own_card(&bytes, now)?;
        write.append_audit(entry)?;
        Ok::<_, Error>(())
    })?;
    Ok(card)
}

/// A policy that nobody can fulfil is noticed now and not with the first bundle.
fn check_officers(policy: &Policy, officers: &[PublicKey]) -> Result<(), Error> {
    let needed = policy.export_approvals.max(policy.import_approvals).into();
    let known = officers.iter().map(KeyId::of).collect::<BTreeSet<_>>().len();
    if needed > known { Err(Error::TooFewOfficers { needed, known }) } else { Ok(()) }
}

/// A card follows the one that is known: the same again, or a newer one of the same root key. Another root key is another authority,
/// which could say that nobody need approve anything, or take a peer's place: so as many officers approve it as an export or an
/// import, and one at least.
fn check_succession(
    known: Option<&[u8]>,
    next: &[u8],
    own: Option<&[u8]>,
    mandate: &Mandate,
    command: impl FnOnce() -> String,
) -> Result<(), Error> {
    let Some(known) = known.filter(|known| *known != next) else { return Ok(()) };
    let known = Card::stored(known)?;
    match known.renew(next) {
        Ok(_) => Ok(()),
        Err(CardError::OtherRoot) => {
            let policy =
                own.map(Card::stored).transpose()?.map(|card| card.content().policy.clone());
            let needed =
                policy.map_or(0, |policy| policy.export_approvals.max(policy.import_approvals));
            let what =
                || format!("a card of {} with another root key", known.content().server_name);
            Ok(mandate.approvers().require(usize::from(needed.max(1)), what, command)?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Pairs with an enclave: an officer typed the fingerprint that the other enclave's officer read aloud.
///
/// # Errors
/// If the card is not valid, the fingerprint is another, it does not follow the known card of the enclave, or an approval does not count: then nothing changes.
pub fn pair(app: &App, bytes: Vec<u8>, fingerprint: &str, order: &Order) -> Result<Card, Error> {
    let now = order.now;
    let proposed = Proposed::parse(&bytes, now)?;
    if proposed.content().server_name == app.config.server_name {
        return Err(Error::WrongCard(
            "this is the box's own card: give it to the peer, and take the peer's",
        ));
    }
    let card = proposed.confirm(fingerprint)?;
    let server = card.content().server_name.clone();
    let document = String::from_utf8_lossy(&card.content().server_keys).into_owned();
    let document = KeyDocument::verify(&document, &server, card.content().not_before)?;
    let wanted = Consent::to_pairing(app.config.server_name.clone(), card.hash());
    let mandate = order.approved(&app.config.roster.trusted_keys, None, &wanted)?;
    let hash = ("card", card.hash().to_string());
    let entry = mandate.entry("peer.add", &server, [hash]);
    let ours = app.config.server_name.clone();
    let new = card.clone();
    app.store.write(move |write| {
        let (known, own) = (write.peer(&server)?.map(|peer| peer.card), write.own_card()?);
        let command =
            || format!("sallyctl approve peer CARD --enclave {ours} --fingerprint WORDS --token TOKEN --out APPROVAL");
        check_succession(known.as_deref(), &bytes, own.as_deref(), &mandate, command)?;
        write.set_peer(&server, &bytes, now)?;
        if let Some(known) = known {
            let before = Card::stored(&known)?.content().incarnation;
            note_new_life(write, &new, before, now)?;
        }
        write.keep_server_keys(&document)?;
        write.allot_one_time_keys(&server, POOL_TARGET)?;
        write.append_audit(entry)?;
        Ok::<_, Error>(())
    })?;
    Ok(card)
}

/// Takes the card with which the enclave root says that a peer was restored, from a bundle of its new life: it renews the one we have.
///
/// # Errors
/// If the database fails or holds something that is no card.
pub fn begin_new_life(
    app: &App,
    server: &ServerName,
    bytes: Vec<u8>,
    mandate: &Mandate,
) -> Result<(), Error> {
    let (server, now) = (server.to_owned(), mandate.now());
    let card = Card::stored(&bytes)?;
    let details = [
        ("card", card.hash().to_string()),
        ("serial", card.content().serial.to_string()),
        ("incarnation", card.content().incarnation.to_string()),
    ];
    let entry = mandate.entry("peer.restored", &server, details);
    app.store.write(move |write| {
        let known = write.peer(&server)?.map(|peer| peer.card);
        write.set_peer(&server, &bytes, now)?;
        if let Some(known) = known {
            let before = Card::stored(&known)?.content().incarnation;
            note_new_life(write, &card, before, now)?;
        }
        write.append_audit(entry)?;
        Ok(())
    })
}

/// If a card is of another life of the peer's database than the one before, the exchange begins anew: what we told it may be lost there.
fn note_new_life(
    write: &mut Write<'_>,
    card: &Card,
    before: Incarnation,
    now: Millis,
) -> Result<(), Error> {
    let content = card.content();
    if content.incarnation != before {
        log::warn!(peer:% = content.server_name; "the peer was restored from a backup: it is told everything again");
        write.note_peer_restored(&content.server_name, before, now)?;
    }
    Ok(())
}

/// Takes a newer card of a peer that came inside one of its bundles; answers the row that tells of it, `None` if there is nothing new.
/// What cannot follow the known card changes nothing: the bundle that brought it is sound, and people must meet.
///
/// # Errors
/// If the database holds something that is no card.
pub fn renewal(
    store: &Store,
    server: &ServerName,
    bytes: &[u8],
    mandate: &Mandate,
) -> Result<Option<Renewal>, Error> {
    let Some(peer) = store.read(|read| read.peer(server))? else { return Ok(None) };
    if peer.card == bytes {
        return Ok(None);
    }
    let known = Card::stored(&peer.card)?;
    match known.renew(bytes) {
        Ok(card) if card.content().not_before > mandate.now() => Ok(None),
        // Only a bundle of the new life brings the card of a new life.
        Ok(card) if card.content().incarnation != known.content().incarnation => Ok(None),
        Ok(card) => {
            let details =
                [("card", card.hash().to_string()), ("serial", card.content().serial.to_string())];
            Ok(Some(Renewal { entry: mandate.entry("peer.renew", server, details), taken: true }))
        }
        // An old stick.
        Err(CardError::NotNewer { .. }) => Ok(None),
        Err(error) => {
            log::warn!(peer:% = server, error:%; "a bundle brought a card that is not taken");
            let details = [("error", error.to_string())];
            Ok(Some(Renewal {
                entry: mandate.entry("peer.renew.refused", server, details),
                taken: false,
            }))
        }
    }
}

/// What becomes of a card that came in a bundle.
#[derive(Debug)]
pub struct Renewal {
    /// The row that tells of it.
    pub entry: Entry,
    /// Whether the card is taken.
    pub taken: bool,
}

/// All peers with their cards.
///
/// # Errors
/// If the database fails or holds something that is no card.
pub fn list(store: &Store) -> Result<Vec<(Peer, Card)>, Error> {
    let peers = store.read(|read| read.peers())?;
    peers
        .into_iter()
        .map(|peer| Ok((Card::stored(&peer.card)?, peer)))
        .map(|result: Result<_, Error>| result.map(|(card, peer)| (peer, card)))
        .collect()
}

/// Whether an enclave is paired with this one: only then can its users be reached.
///
/// # Errors
/// If the database fails.
pub fn is_peer(store: &Store, server: &ServerName) -> Result<bool, Error> {
    Ok(store.read(|read| read.peer(server))?.is_some())
}
