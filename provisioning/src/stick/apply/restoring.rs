//! A machine that is not provisioned and sees backups: it asks for a grant, or takes one.

use std::{
    io::{Read as _, Write as _},
    path::Path,
};

use anyhow::{Context as _, bail, ensure};
use sallyport_core::{
    backup::{BackupId, Chain, Grant, Link, RecoveryKey, Sealed},
    limits::{BACKUP_HEAD_BYTES_MAX, RESTORE_GRANT_BYTES_MAX},
    provision::Code,
};

use super::Gate;
use crate::{
    files, output,
    stick::{
        Folder,
        inventory::Brought,
        restore::{self, Console, DOCUMENTS_MAX},
        state::Report,
    },
};

/// The request on the stick.
const REQUEST: &str = "restore.request";

impl Gate<'_> {
    /// Whether the stick is about a restore; if so, what comes of that is in the report.
    pub(super) fn restores(&self, report: &mut Report) -> bool {
        let folder = Folder::Provision;
        if restore::is_under_way(&self.args.quarantine) {
            report.done(
                "This machine is being restored: wait for the console to say that it is done.",
            );
            return true;
        }
        let grants: Vec<_> = self.inventory.of(folder, "grant").collect();
        if let [grant] = grants.as_slice() {
            report.note(&grant.shown(), self.take_grant(grant));
            return true;
        }
        if grants.len() > 1 {
            report.refused("the restore", &anyhow::anyhow!("there are several grants: leave one"));
            return true;
        }
        let has_document = self.inventory.of(folder, "toml").next().is_some();
        let has_backups = self.inventory.of(Folder::Backup, "backup").next().is_some();
        if has_document || !has_backups {
            return false;
        }
        report.note("the restore", self.ask_for_grant());
        true
    }

    /// The backups on the stick, by what their first words say.
    pub(super) fn backups(&self) -> Vec<(&Brought, Link)> {
        let head = |file: &Brought| {
            let input = files::open_foreign(&file.path(&self.args.quarantine)).ok()?;
            let sealed = Sealed::open(input.take(BACKUP_HEAD_BYTES_MAX as u64)).ok()?;
            Some(Link { id: sealed.id(), header: sealed.header().clone() })
        };
        let files = self.inventory.of(Folder::Backup, "backup");
        files.filter_map(|file| Some((file, head(file)?))).collect()
    }

    /// Writes this machine's request. Its code is shown at the console alone: on the stick it would say nothing about who wrote that.
    fn ask_for_grant(&self) -> anyhow::Result<Vec<String>> {
        let folder = self.outgoing(Folder::Out)?;
        let secret = restore::ask(self.args.settings.folder())?;
        let key = RecoveryKey::x_wing(secret.expose());
        let mut file = files::create_secret(&folder.join(REQUEST))?;
        writeln!(file, "{key}")
            .and_then(|()| file.sync_all())
            .context("cannot write the request")?;
        let code = Code::of(&Grant::request_sha256(&key));
        let lines = [
            format!("code of its request: {code}"),
            "Take the code to the recovery officer on paper, and the stick. There: sallyctl backup grant".to_owned(),
            "Come back with the grant in SALLYPORT/PROVISION, the backups in SALLYPORT/BACKUP.".to_owned(),
        ];
        self.restore_console()
            .tell("This machine waits to go on as a box that was lost", &lines)?;
        Ok(vec![format!(
            "OUT/{REQUEST}: this machine asks to go on as the box of a backup. Its code is on the console; a machine that shall be a new box needs a document in SALLYPORT/PROVISION instead."
        )])
    }

    /// Judges a grant, has its code typed, and notes which backups are wanted.
    fn take_grant(&self, file: &Brought) -> anyhow::Result<Vec<String>> {
        let bytes = self.content(file, RESTORE_GRANT_BYTES_MAX)?;
        let grant = Grant::parse(&bytes)?;
        let secret = restore::pending(self.args.settings.folder())?.context(
            "this machine has not asked for a restore: plug in a stick with the backups and a folder SALLYPORT/OUT",
        )?;
        let granted = grant.open(secret.expose())?;
        let (mut names, mut links) = (Vec::new(), Vec::new());
        let there = self.backups();
        for (id, _) in &granted {
            let (file, link) = find(&there, *id)?;
            ensure!(link.header.enclave == grant.enclave, "the grant is for another enclave");
            names.push(file.name.clone());
            links.push(link.clone());
        }
        Chain::check(&links)?;
        let last = links.last().context("the grant is for no backup")?;
        let lines = output::pairs(&[
            ("enclave", grant.enclave.to_string()),
            ("backup", format!("{}, of {}", last.header.number, output::time(last.header.created))),
            (
                "root",
                grant
                    .fingerprint
                    .clone()
                    .unwrap_or_else(|| "NOT COMPARED: the box had no card".to_owned()),
            ),
        ]);
        let code = Code::of(&Grant::sha256(&bytes));
        self.confirm_code(code, "grant", lines.lines().map(str::to_owned).collect())?;
        let documents: Vec<_> = self.inventory.of(Folder::Provision, "toml").collect();
        ensure!(documents.len() <= DOCUMENTS_MAX, "there are too many documents beside the grant");
        let approvals = self.inventory.of(Folder::Provision, "approval");
        let beside = documents.into_iter().chain(approvals);
        let beside: Vec<_> = beside.map(|file| file.path(&self.args.quarantine)).collect();
        restore::want(&self.args.quarantine, &bytes, names, &beside)?;
        Ok(vec![format!(
            "This machine goes on as the box of {}, by backup {}.",
            grant.enclave, last.header.number
        )])
    }

    /// A machine that a document made a box waits for no grant.
    pub(super) fn withdraw_request(&self) -> anyhow::Result<()> {
        restore::withdraw(self.args.settings.folder(), self.notices())
    }

    fn restore_console(&self) -> Console {
        Console(self.notices().map(Path::to_owned))
    }

    fn notices(&self) -> Option<&Path> {
        self.args.state.as_deref().and_then(Path::parent)
    }
}

fn find<'a>(
    there: &'a [(&Brought, Link)],
    id: BackupId,
) -> anyhow::Result<(&'a Brought, &'a Link)> {
    let found = there.iter().find(|(_, link)| link.id == id);
    let Some((file, link)) = found else {
        bail!("the backup {id}, which the grant is for, is not in SALLYPORT/BACKUP");
    };
    Ok((file, link))
}
