//! Pairing cards: the box's own, and those of other enclaves.
//!
//! Who brings a stick is nobody to the box, and hears no fingerprint. So officers approve each card at their own machine, where the approval
//! of a peer's takes the fingerprint that its officer read aloud.

use http::Method;
use sallyport_core::{
    admin::{Approval, Consent, FINGERPRINT, Peer, Status, path, verify},
    card::Card,
    digest::Sha256,
    limits::CARD_BYTES_MAX,
    provision::Provisioned,
};

use super::{Gate, approvals::Lying};
use crate::{
    client,
    stick::{Folder, inventory::Brought, state::Report},
};

/// A card, and what is signed to approve it.
struct Lain<'a> {
    file: &'a Brought,
    bytes: Vec<u8>,
    card: Card,
    own: bool,
    consent: Consent,
}

impl Gate<'_> {
    /// The own card first: without it there are no bundles.
    pub(super) fn cards(&self, record: &Provisioned, status: &Status, report: &mut Report) {
        let lying = self.lying(Folder::Cards, report);
        let (mut cards, mut things) = (Vec::new(), Vec::new());
        for file in self.inventory.of(Folder::Cards, "snc") {
            match self.card(file, status) {
                Ok(card) => {
                    things.push(card.consent.clone());
                    cards.push(card);
                }
                Err(why) => report.refused(&file.shown(), &why),
            }
        }
        cards.sort_by_key(|card| (!card.own, card.card.content().serial));
        for card in &cards {
            let came = if card.own {
                self.install(record, card, &lying)
            } else {
                self.pair(record, card, &lying)
            };
            report.note(&card.file.shown(), came);
        }
        lying.tell_of_others(&things, report);
    }

    fn card<'a>(&self, file: &'a Brought, status: &Status) -> anyhow::Result<Lain<'a>> {
        let bytes = self.content(file, CARD_BYTES_MAX)?;
        let card = Card::stored(&bytes)?;
        let own = card.content().server_name == status.server_name;
        let (enclave, hash) = (status.server_name.clone(), Sha256::of(&bytes));
        let consent = if own {
            Consent::to_own_card(enclave, hash)
        } else {
            Consent::to_pairing(enclave, hash)
        };
        Ok(Lain { file, bytes, card, own, consent })
    }

    fn install(
        &self,
        record: &Provisioned,
        lain: &Lain<'_>,
        lying: &Lying,
    ) -> anyhow::Result<Vec<String>> {
        if let Some(known) = self.own_card()?
            && let Some(line) =
                superseded(lain, &known.fingerprint().words(), known.content().serial)
        {
            return Ok(vec![line]);
        }
        let approvals = lying.for_this(&lain.consent);
        approved(record, lain, &approvals)?;
        let bytes = lain.bytes.clone();
        let own: Peer = self.the_box.send_bytes(Method::PUT, path::CARD, approvals, &[], bytes)?;
        Ok(vec![format!("{}: card {} of this box is installed", lain.file.shown(), own.serial)])
    }

    fn own_card(&self) -> anyhow::Result<Option<Card>> {
        let mut bytes = Vec::new();
        match self.the_box.fetch(path::CARD, &mut bytes) {
            Ok(_) => Ok(Some(Card::stored(&bytes)?)),
            // There is none yet.
            Err(error) if matches!(error.downcast_ref(), Some(client::Error::Refused(_))) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn pair(
        &self,
        record: &Provisioned,
        lain: &Lain<'_>,
        lying: &Lying,
    ) -> anyhow::Result<Vec<String>> {
        let content = lain.card.content();
        let peers: Vec<Peer> = self.the_box.ask(path::PEERS)?;
        if let Some(known) = peers.iter().find(|known| known.server_name == content.server_name)
            && let Some(line) = superseded(lain, &known.fingerprint, known.serial)
        {
            return Ok(vec![line]);
        }
        let approvals = lying.for_this(&lain.consent);
        approved(record, lain, &approvals)?;
        // Whoever approved it compared it with what the peer's officer read aloud.
        let fingerprint = lain.card.fingerprint().words();
        let headers = [(FINGERPRINT, fingerprint.as_str())];
        let bytes = lain.bytes.clone();
        let peer: Peer =
            self.the_box.send_bytes(Method::POST, path::PEERS, approvals, &headers, bytes)?;
        Ok(vec![format!(
            "{}: paired with {} by its card {}, {}",
            lain.file.shown(),
            peer.server_name,
            peer.serial,
            peer.fingerprint
        )])
    }
}

/// Says so if a card is in force that this one does not follow: sticks travel on with the cards that they brought.
fn superseded(lain: &Lain<'_>, fingerprint: &str, serial: u64) -> Option<String> {
    let same = lain.card.fingerprint().words() == fingerprint;
    let known = same && lain.card.content().serial <= serial;
    known.then(|| format!("{}: left alone, card {serial} is in force", lain.file.shown()))
}

/// As many officers as for a provisioning document: cards decide as much.
fn approved(record: &Provisioned, lain: &Lain<'_>, approvals: &[Approval]) -> anyhow::Result<()> {
    let officers = &record.document().officers;
    let needed = usize::from(officers.provision_approvals.max(1));
    let content = lain.card.content();
    let what = || format!("card {} of {}", content.serial, content.server_name);
    let command = || {
        let enclave = &lain.consent.enclave;
        if lain.own {
            "sallyctl approve card CARD --token TOKEN --out APPROVAL".to_owned()
        } else {
            format!(
                "sallyctl approve peer CARD --enclave {enclave} --fingerprint WORDS --token TOKEN --out APPROVAL"
            )
        }
    };
    verify(approvals, &officers.trusted_keys, None, &lain.consent)?
        .require(needed, what, command)?;
    Ok(())
}
