//! Bundles in, in the order in which their senders made them.

use std::collections::BTreeSet;

use sallyport_core::admin::{Consent, Status};

use super::Gate;
use crate::{
    command::bundle::{self, Inspected},
    stick::{Folder, state::Report},
};

impl Gate<'_> {
    pub(super) fn bundles(&self, status: &Status, report: &mut Report) {
        let lying = self.lying(Folder::Bundles, report);
        let (mut bundles, mut things) = (Vec::new(), Vec::new());
        for file in self.inventory.of(Folder::Bundles, "snb") {
            match Inspected::read(&file.path(&self.args.quarantine)) {
                Ok(bundle) if bundle.to != status.server_name => {
                    report.done(format!("{}: left alone, it is for {}", file.shown(), bundle.to));
                    things.push(Consent::to_import(bundle.to, bundle.sha256));
                }
                Ok(bundle) => {
                    things.push(Consent::to_import(bundle.to.clone(), bundle.sha256));
                    bundles.push((bundle, file));
                }
                Err(why) => report.refused(&file.shown(), &why),
            }
        }
        bundles.sort_by_key(|(bundle, _)| bundle.order());
        let mut refused = BTreeSet::new();
        for (bundle, file) in bundles {
            // It would only be refused for coming too early.
            if refused.contains(&bundle.from) {
                report.done(format!("{}: waits for the one that was refused", file.shown()));
                continue;
            }
            let consent = Consent::to_import(bundle.to.clone(), bundle.sha256);
            let path = file.path(&self.args.quarantine);
            let came = bundle::send(&path, lying.for_this(&consent), self.the_box);
            if came.is_err() {
                refused.insert(bundle.from.clone());
            }
            let text = |imported| {
                let text = bundle::imported_text(&imported);
                text.lines().map(|line| format!("{}: {}", file.shown(), line.trim())).collect()
            };
            report.note(&file.shown(), came.map(text));
        }
        lying.tell_of_others(&things, report);
    }
}
