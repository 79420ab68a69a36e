//! Orders for what goes onto the stick.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
};

use anyhow::{Context as _, ensure};
use sallyport_core::{
    admin::{
        CertificateStatus, CodesRequest, Consent, IssuedCode, Keys, PeerBundles, Status, path,
        verify,
    },
    backup::{BackupId, Link},
    digest::Sha256,
    incarnation::Incarnation,
    limits::{BACKUP_CHAIN_MAX, STICK_JOURNAL_BYTES_MAX, STICK_ORDER_BYTES_MAX},
    provision::{Order, Provisioned},
};

use super::{Gate, approvals::Lying, rosters::write_codes};
use crate::{
    command::{audit, machine::WORD, stick},
    files, journal,
    stick::{
        ERASE, Folder, IN,
        backup::Wish,
        inventory::Brought,
        state::{Phase, Report},
    },
};

/// The certificate of the enclave CA, in the folder `OUT`.
const CA: &str = "ca.pem";

impl Gate<'_> {
    pub(super) fn orders(&self, record: &Provisioned, status: &Status, report: &mut Report) {
        let lying = self.lying(Folder::Out, report);
        let mut things = Vec::new();
        for file in self.inventory.of(Folder::Out, "order") {
            let parse = || {
                let text = self.content(file, STICK_ORDER_BYTES_MAX)?;
                Ok::<_, anyhow::Error>(Order::parse(&text)?)
            };
            match parse() {
                Ok((order, _)) if order.enclave != status.server_name => {
                    report.done(format!(
                        "{}: left alone, it is for {}",
                        file.shown(),
                        order.enclave
                    ));
                }
                Ok((order, sha256)) => {
                    for peer in &order.export {
                        let came = self.export(status, peer.as_str(), &lying, &mut things);
                        report.note(&file.shown(), came);
                    }
                    self.public(file, &order, report);
                    let wanted = Consent::to_take_out(order.enclave.clone(), sha256);
                    let approvals = lying.for_this(&wanted);
                    let officers = &record.document().officers;
                    // As many officers approved it, and its last day has not passed.
                    let approved = |count| {
                        verify(&approvals, &officers.trusted_keys, None, &wanted)?.require(
                            count,
                            || format!("the order {sha256}"),
                            || {
                                "sallyctl approve order FILE --token TOKEN --out APPROVAL"
                                    .to_owned()
                            },
                        )?;
                        let timely = order.is_timely(status.now);
                        ensure!(timely, "its last day has passed, or is too far away");
                        Ok(())
                    };
                    if order.tells_of_people() {
                        let came = approved(1).and_then(|()| self.people(status, &order));
                        report.note(&file.shown(), came);
                    }
                    if order.factory_reset {
                        let came = approved(officers.provision_approvals.into())
                            .and_then(|()| self.factory_reset(&order));
                        report.note(&file.shown(), came);
                    }
                    if order.tells_of_people() || order.factory_reset {
                        things.push(wanted);
                    }
                }
                Err(why) => report.refused(&file.shown(), &why),
            }
        }
        lying.tell_of_others(&things, report);
    }

    /// A bundle for a peer, with the approvals that lie there for just its number.
    fn export(
        &self,
        status: &Status,
        peer: &str,
        lying: &Lying,
        things: &mut Vec<Consent>,
    ) -> anyhow::Result<Vec<String>> {
        let folder = self.outgoing(Folder::Bundles)?;
        let peers: Vec<PeerBundles> = self.the_box.ask(path::BUNDLES)?;
        let exported = peers.iter().find(|known| known.peer == peer);
        let exported = exported.with_context(|| format!("{peer} is not a peer of this box"))?;
        let keys: Keys = self.the_box.ask(path::KEYS)?;
        let incarnation: Incarnation = keys.incarnation.parse()?;
        let number = exported.exported.saturating_add(1);
        let enclave = status.server_name.clone();
        let wanted = Consent::to_export(enclave, incarnation, &exported.peer, number);
        let approvals = lying.for_this(&wanted);
        things.push(wanted);
        let part = folder.join("unfinished");
        let mut bundle = files::create_secret(&part)?;
        let uri = format!("{}?peer={peer}", path::BUNDLES_EXPORT);
        let made = self.the_box.command_fetch(&uri, approvals, &mut bundle);
        if made.is_err() {
            fs::remove_file(&part).context("cannot remove the unfinished bundle")?;
        }
        let bytes = made?;
        bundle.sync_all().context("cannot write the bundle")?;
        let name = stick::bundle_name(&part)?;
        fs::rename(&part, folder.join(&name)).context("cannot write the bundle")?;
        Ok(vec![format!("BUNDLES/{name}: bundle {number} for {peer}, {bytes} bytes")])
    }

    /// What anybody may have: public keys, signed by nobody or by ourselves.
    fn public(&self, file: &Brought, order: &Order, report: &mut Report) {
        let card_request = (order.card_request, path::CARD_REQUEST, "card.request");
        for (wanted, uri, name) in [(order.card, path::CARD, "own.snc"), card_request] {
            if wanted {
                let fetch = || {
                    let mut bytes = Vec::new();
                    self.the_box.fetch(uri, &mut bytes)?;
                    let mut lines = self.take(name, |out| Ok(out.write_all(&bytes)?))?;
                    lines.push(format!(
                        "SHA-256 of {name}, to be brought on paper: {}",
                        Sha256::of(&bytes)
                    ));
                    Ok(lines)
                };
                report.note(&file.shown(), fetch());
            }
        }
        if order.ca {
            report.note(&file.shown(), self.take_ca());
        }
        if order.certificate_request {
            let uri = format!("{}?of=ca", path::CERTIFICATE_REQUEST);
            let fetch = || {
                self.take("ca-request.pem", |out| {
                    self.the_box.command_fetch(&uri, vec![], out).map(drop)
                })
            };
            report.note(&file.shown(), fetch());
        }
    }

    /// What tells of people, or lets in whoever has it.
    fn people(&self, status: &Status, order: &Order) -> anyhow::Result<Vec<String>> {
        let mut lines = Vec::new();
        if order.codes {
            // The old codes end with the new ones: first see that there is a place for these.
            self.outgoing(Folder::Out)?;
            let wish = CodesRequest { localparts: vec![], all_waiting: true };
            lines.extend(self.take("codes-new.json", |out| {
                let issued: Vec<IssuedCode> =
                    self.the_box.command(path::ACTIVATION_CODES, &wish)?;
                write_codes(out, &issued)
            })?);
            if !order.ca {
                lines.extend(self.take_ca()?);
            }
        }
        if order.audit {
            lines.extend(
                self.take("audit.jsonl", |out| audit::export(self.the_box, out).map(drop))?,
            );
        }
        if order.journal {
            lines.extend(self.journal()?);
        }
        if order.backup {
            lines.push(self.backup(status)?);
        }
        Ok(lines)
    }

    /// Notes that a backup is to be made, once this gate is closed. It follows the newest on the stick that has there all that it follows itself.
    fn backup(&self, status: &Status) -> anyhow::Result<String> {
        self.outgoing(Folder::Backup)?;
        let keys: Keys = self.the_box.ask(path::KEYS)?;
        let incarnation: Incarnation = keys.incarnation.parse()?;
        let mut links: Vec<Link> = self.backups().into_iter().map(|(_, link)| link).collect();
        links.retain(|link| {
            link.header.enclave == status.server_name && link.header.incarnation == incarnation
        });
        let since = newest_complete(&links);
        Wish { since }.write(&self.args.quarantine)?;
        Ok(match since {
            Some(_) => "A backup of what is new since the newest on the stick is made now.",
            None => "A full backup is made now: the stick has none that it could follow.",
        }
        .to_owned())
    }

    /// Everything on the box is destroyed as soon as the visit of the stick is over, if somebody types a word.
    fn factory_reset(&self, order: &Order) -> anyhow::Result<Vec<String>> {
        ensure!(
            self.args.ask,
            "nobody can be asked here: a factory reset takes somebody at the console of the box"
        );
        let lines = [
            format!("Officers of {} approved a factory reset.", order.enclave),
            "Accounts, messages, files and keys of this box, its settings and its log: nobody can bring them back, not with the recovery key either.".to_owned(),
        ];
        let question = format!("Type {WORD} to destroy it, or nothing to refuse:");
        let typed = self.state.ask(Phase::Erase, &lines, &question)?;
        ensure!(typed.trim() == WORD, "it was refused at the console");
        files::write_new(&self.args.quarantine.join(IN).join(ERASE), b"")?;
        Ok(vec![
            "Everything on this box is destroyed now. It starts again as it was delivered."
                .to_owned(),
        ])
    }

    /// The journal as it lies on the disk, the newest files first, as many as there is room for.
    fn journal(&self) -> anyhow::Result<Vec<String>> {
        let newest_first = journal::list(&self.args.journal)?.into_iter().rev();
        let (mut left, mut lines) = (STICK_JOURNAL_BYTES_MAX, Vec::new());
        for (number, file) in (1..).zip(newest_first) {
            let Some(rest) = left.checked_sub(file.bytes) else { break };
            left = rest;
            lines.extend(self.take(&format!("journal-{number:03}.journal"), |out| {
                let mut source = files::open_foreign(&file.path)?;
                io::copy(&mut source, out).context("cannot copy the journal")?;
                Ok(())
            })?);
        }
        ensure!(!lines.is_empty(), "there is no journal");
        Ok(lines)
    }

    /// The certificate of the enclave CA: devices must trust it before they connect.
    pub(super) fn take_ca(&self) -> anyhow::Result<Vec<String>> {
        let status: CertificateStatus = self.the_box.ask(path::CERTIFICATE)?;
        let ca = status.ca.context("there is no enclave CA: the certificate is given as a file")?;
        let path = self.outgoing(Folder::Out)?.join(CA);
        if !path.exists() {
            let mut file = files::create_secret(&path)?;
            let written = file.write_all(ca.certificate.as_bytes()).and_then(|()| file.sync_all());
            written.context("cannot write to the quarantine")?;
        }
        Ok(vec![format!("OUT/{CA}: compare its SHA-256 with the console, {}", ca.sha256)])
    }

    /// A file for the stick.
    fn take(
        &self,
        name: &str,
        fill: impl FnOnce(&mut File) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<String>> {
        let path = self.outgoing(Folder::Out)?.join(name);
        let mut file = files::create_secret(&path)?;
        if let Err(why) = fill(&mut file) {
            fs::remove_file(&path).context("cannot remove an unfinished file")?;
            return Err(why);
        }
        file.flush().and_then(|()| file.sync_all()).context("cannot write to the quarantine")?;
        Ok(vec![format!("OUT/{name}")])
    }
}

/// The newest backup that another can follow: those that it follows itself are there, back to a full one.
fn newest_complete(links: &[Link]) -> Option<BackupId> {
    let by_id: BTreeMap<_, _> = links.iter().map(|link| (link.id, link)).collect();
    let complete = |link: &&Link| {
        let mut at = *link;
        // One more must fit into what a restore takes.
        for _ in 1..BACKUP_CHAIN_MAX {
            let Some(before) = at.header.follows else { return true };
            let Some(before) = by_id.get(&before) else { return false };
            at = before;
        }
        false
    };
    let newest = links.iter().filter(complete).max_by_key(|link| link.header.number);
    newest.map(|link| link.id)
}
