//! Rosters, oldest first. Whoever is new needs an activation code, which goes onto the stick: the box has no other way to people.

use std::io::Write as _;

use anyhow::Context as _;
use http::Method;
use sallyport_core::{
    admin::{Approval, Consent, IssuedCode, RosterImported, RosterReport, Status, path},
    limits::ROSTER_BYTES_MAX,
    roster::signed::RosterFile,
};

use super::Gate;
use crate::{
    files,
    stick::{Folder, inventory::Brought, state::Report},
};

impl Gate<'_> {
    pub(super) fn rosters(&self, status: &Status, report: &mut Report) {
        let lying = self.lying(Folder::Roster, report);
        let mut last = status.roster.as_ref().map(|roster| roster.serial);
        let (mut rosters, mut things) = (Vec::new(), Vec::new());
        for file in self.inventory.of(Folder::Roster, "snr") {
            let head = || {
                let bytes = self.content(file, ROSTER_BYTES_MAX)?;
                let roster = RosterFile::parse(&bytes)?;
                Ok::<_, anyhow::Error>((roster.statement().head.clone(), roster.subject()))
            };
            match head() {
                Ok((head, subject)) => {
                    things.push(Consent::to_mass_lock(head.enclave.clone(), subject));
                    rosters.push((head, subject, file));
                }
                Err(why) => report.refused(&file.shown(), &why),
            }
        }
        rosters.sort_by_key(|(head, ..)| head.serial);
        for (head, subject, file) in rosters {
            if let Err(why) = head.admit(&status.server_name, last) {
                report.done(format!("{}: left alone, {why}", file.shown()));
                continue;
            }
            let consent = Consent::to_mass_lock(head.enclave.clone(), subject);
            let came = self.roster(file, head.serial, lying.for_this(&consent));
            if came.is_ok() {
                last = Some(head.serial);
            }
            report.note(&file.shown(), came);
        }
        lying.tell_of_others(&things, report);
    }

    fn roster(
        &self,
        file: &Brought,
        serial: u64,
        approvals: Vec<Approval>,
    ) -> anyhow::Result<Vec<String>> {
        let bytes = self.content(file, ROSTER_BYTES_MAX)?;
        let would: RosterReport = self.the_box.send_bytes(
            Method::POST,
            path::ROSTER_DRY_RUN,
            vec![],
            &[],
            bytes.clone(),
        )?;
        // Before the import: the box gives the codes only once.
        let codes = if would.counts.new > 0 {
            let folder = self.outgoing(Folder::Out).context(
                "the roster has new accounts, and their activation codes must go onto the stick",
            )?;
            let path = folder.join(format!("codes-{serial}.json"));
            Some((files::create_secret(&path)?, path))
        } else {
            None
        };
        let imported: anyhow::Result<RosterImported> =
            self.the_box.send_bytes(Method::POST, path::ROSTER, approvals, &[], bytes);
        let imported = match (imported, &codes) {
            (Err(why), Some((_, path))) => {
                std::fs::remove_file(path).context("cannot remove the empty file of codes")?;
                return Err(why);
            }
            (imported, _) => imported?,
        };
        let counts = imported.report.counts;
        let mut lines = vec![format!("{}: roster {serial} is imported: {counts}", file.shown())];
        if let Some((mut file, path)) = codes {
            write_codes(&mut file, &imported.codes)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            lines.push(format!("{} activation codes are in OUT/{name}.", imported.codes.len()));
            lines.extend(self.take_ca()?);
        }
        Ok(lines)
    }
}

pub(super) fn write_codes(file: &mut std::fs::File, codes: &[IssuedCode]) -> anyhow::Result<()> {
    let json = serde_json::to_vec_pretty(codes).context("cannot write the codes")?;
    file.write_all(&json).and_then(|()| file.sync_all()).context(
        "accounts were made, but their codes cannot be written: order new ones with `codes = true`",
    )
}
