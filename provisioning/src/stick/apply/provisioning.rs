//! Documents: the first of a new box, and changes of one that is provisioned.

use anyhow::{Context as _, bail};
use sallyport_core::{
    admin::Consent,
    digest::Sha256,
    limits::STICK_PROVISION_BYTES_MAX,
    provision::{Document, Provisioned, first},
};

use super::Gate;
use crate::{
    stick::{Folder, inventory::Brought, state::Report},
    terminal,
};

impl Gate<'_> {
    /// Makes this machine a box. The stick has just one document.
    pub(super) fn provision(&self) -> anyhow::Result<Provisioned> {
        let mut documents = self.inventory.of(Folder::Provision, "toml");
        let Some(file) = documents.next() else {
            bail!(
                "this box is not provisioned yet, and the stick has no document in SALLYPORT/PROVISION: make one with `sallyctl provision new`"
            );
        };
        if documents.next().is_some() {
            bail!("the stick has several documents in SALLYPORT/PROVISION: leave one there");
        }
        let (text, document, sha256) = self.document(file)?;
        let mut ignored = Report::default();
        let wanted = Consent::to_provision(document.server_name.clone(), sha256);
        let approvals = self.lying(Folder::Provision, &mut ignored).for_this(&wanted);
        let approvers = first(&document, sha256, &approvals)?;
        let names = approvers.names();
        let trust = self.confirm(&document, sha256, names)?;
        let record = Provisioned::begin(&text, approvers, trust, terminal::now())?;
        self.settings.install(&record)?;
        Ok(record)
    }

    /// Documents for a box that is provisioned: of those that may follow, the one with the highest serial.
    pub(super) fn change(&self, record: &Provisioned, report: &mut Report) {
        let files = [Folder::Config, Folder::Provision]
            .into_iter()
            .flat_map(|folder| self.inventory.of(folder, "toml"));
        let mut documents = Vec::new();
        for file in files {
            match self.document(file) {
                Ok((_, _, sha256)) if sha256 == record.sha256() => {}
                Ok((text, document, sha256)) => documents.push((file, text, document, sha256)),
                Err(why) => report.refused(&file.shown(), &why),
            }
        }
        documents.sort_by_key(|(.., document, _)| std::cmp::Reverse(document.serial));
        let mut wanted = Vec::new();
        let mut ignored = Report::default();
        let lying = [Folder::Config, Folder::Provision].map(|f| self.lying(f, &mut ignored));
        let mut changed = false;
        for (file, text, document, sha256) in documents {
            let consent = Consent::to_provision(document.server_name.clone(), sha256);
            let approvals: Vec<_> =
                lying.iter().flat_map(|lying| lying.for_this(&consent)).collect();
            wanted.push(consent);
            if changed {
                report.done(format!("{}: left alone, a newer one is in force now", file.shown()));
                continue;
            }
            let follow = || {
                let Some(approvers) = record.admit(&document, sha256, &approvals)? else {
                    return Ok(Vec::new());
                };
                let next = record.follow(&text, approvers, terminal::now())?;
                self.settings.install(&next)?;
                Ok(vec![format!(
                    "{}: document {} is in force now; the box starts again with it.",
                    file.shown(),
                    document.serial
                )])
            };
            let came = follow();
            changed = came.is_ok();
            report.note(&file.shown(), came);
        }
        if let Some(in_config) = lying.first() {
            in_config.tell_of_others(&wanted, report);
        }
    }

    fn document(&self, file: &Brought) -> anyhow::Result<(Vec<u8>, Document, Sha256)> {
        let text = self.content(file, STICK_PROVISION_BYTES_MAX)?;
        let (document, sha256) = Document::parse(&text)?;
        self.settings.check(&document).context("the box could not use it")?;
        Ok((text, document, sha256))
    }
}
