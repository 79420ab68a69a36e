//! `sallyctl update status` and `verify`: what the two slots are.

use std::path::Path;

use anyhow::{Context as _, bail};
use sallyport_core::{
    digest::Sha256,
    update::{
        Ledger, Outcome, Version,
        entry::{Entry, Standing},
        verity::Fault,
    },
};
use serde::Serialize;

use super::{PlaceArgs, Progress};
use crate::{
    notice,
    output::{self, Output},
    update::{
        apply::Step,
        boot::{Boot, Kernel},
        disk::{Access, Disk as _},
        gpt::Table,
        ledger::LedgerFile,
        news::News,
        slots::{Layout, Slot},
        system::Here,
    },
};

/// The notice about the slots.
const SLOTS: &str = "slots.json";

/// What a disk has.
struct Found {
    here: Here,
    disk: crate::update::disk::LocalDisk,
    table_is_sound: bool,
    layout: Layout,
    kernels: Vec<Kernel>,
}

impl Found {
    fn look(place: &PlaceArgs) -> anyhow::Result<Self> {
        let here = place.system().here()?;
        let disk = place.disk(&here)?;
        let table = Table::read(&mut disk.whole(Access::Read)?)?;
        let layout = Layout::of(&table)?;
        let mut boot = Boot::open(disk.partition(&layout.esp.place, Access::Read)?)?;
        let kernels = boot.kernels()?;
        Ok(Self { here, disk, table_is_sound: table.is_sound(), layout, kernels })
    }

    fn entry(&self, root_hash: &Sha256) -> Option<Entry> {
        let kernel =
            self.kernels.iter().find(|kernel| kernel.root_hash.as_ref() == Some(root_hash));
        kernel?.entry
    }
}

#[derive(Serialize)]
struct Status {
    version: Version,
    schema: u32,
    next: Option<String>,
    slots: Vec<SlotStatus>,
    partition_table: &'static str,
    strangers: Vec<String>,
    ledger: Ledger,
}

#[derive(Serialize)]
struct SlotStatus {
    slot: &'static str,
    runs: bool,
    version: Option<Version>,
    entry: Option<String>,
    standing: &'static str,
    root_hash: Sha256,
}

/// `sallyctl update status`.
pub(super) fn status(place: &PlaceArgs, out: &Output) -> anyhow::Result<()> {
    let found = Found::look(place)?;
    let ledger = LedgerFile::in_folder(&place.system().state()).read()?;
    let slots = found.layout.slots.iter().map(|slot| {
        let root_hash = slot.root_hash();
        let entry = found.entry(&root_hash);
        SlotStatus {
            slot: slot.name,
            runs: root_hash == found.here.root_hash,
            version: entry.map(|entry| entry.version),
            entry: entry.map(|entry| entry.to_string()),
            standing: entry.map_or("nothing starts it", |entry| entry.standing().as_str()),
            root_hash,
        }
    });
    let of_a_slot = |kernel: &&Kernel| {
        found.layout.slots.iter().any(|slot| Some(slot.root_hash()) == kernel.root_hash)
    };
    let strangers = found.kernels.iter().filter(|kernel| !of_a_slot(kernel));
    let next = sallyport_core::update::entry::next(found.kernels.iter().filter_map(|k| k.entry));
    let status = Status {
        version: found.here.release.version,
        schema: found.here.release.schema,
        next: next.map(|entry| entry.to_string()),
        slots: slots.collect(),
        partition_table: if found.table_is_sound {
            "sound"
        } else {
            "one of its two copies is not; the next start mends it"
        },
        strangers: strangers.map(|kernel| kernel.name().to_owned()).collect(),
        ledger,
    };
    out.show(&status, |status| status.text())
}

impl Status {
    fn text(&self) -> String {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "nothing".to_owned());
        let mut text = output::pairs(&[
            ("running version", format!("{} (schema {})", self.version, self.schema)),
            ("starts next", or_none(&self.next)),
            ("takes versions from", self.ledger.floor.to_string()),
            ("last update", self.last()),
            ("partition table", self.partition_table.to_owned()),
        ]);
        if !self.strangers.is_empty() {
            let strangers = self.strangers.join(", ");
            text.push_str(&format!("starts no slot: {strangers}; the next update removes it\n"));
        }
        text.push('\n');
        let rows: Vec<[String; 4]> = self
            .slots
            .iter()
            .map(|slot| {
                let version = slot.version.map(|version| version.to_string());
                [
                    slot.slot.to_owned(),
                    if slot.runs { "runs".to_owned() } else { String::new() },
                    version.unwrap_or_else(|| "-".to_owned()),
                    slot.standing.to_owned(),
                ]
            })
            .collect();
        text.push_str(&output::table(["slot", "", "version", "standing"], &rows));
        text
    }

    fn last(&self) -> String {
        if let Some(pending) = &self.ledger.pending {
            let written = output::time(pending.at);
            return format!(
                "{} was written on {written} and has yet to prove itself",
                pending.version
            );
        }
        match &self.ledger.last {
            None => "none".to_owned(),
            Some(last) => {
                let how = match last.outcome {
                    Outcome::Blessed => "is installed since",
                    Outcome::FellBack => {
                        "did not come to its health check, and the version before it came back:"
                    }
                };
                format!("{} {how} {}", last.version, output::time(last.at))
            }
        }
    }
}

#[derive(Serialize)]
struct Checked {
    slot: &'static str,
    runs: bool,
    /// Blocks that were read and right.
    blocks: Option<u64>,
    problem: Option<String>,
}

/// `sallyctl update verify`.
pub(super) fn verify(place: &PlaceArgs, out: &Output) -> anyhow::Result<()> {
    let found = Found::look(place)?;
    let progress = Progress::new(out, None);
    let mut checked = Vec::new();
    for slot in &found.layout.slots {
        checked.extend(check(&found, slot, &progress)?);
    }
    tell(&place.system().news(), &checked)?;
    out.show(&checked, |checked| checked.iter().map(Checked::line).collect())?;
    match checked.iter().find(|slot| slot.problem.is_some()) {
        None => Ok(()),
        Some(rotten) if rotten.runs => bail!(
            "the slot of the running system is damaged: put the update with version {} or a newer one in soon; it is written to the other slot",
            found.here.release.version
        ),
        Some(_) => bail!(
            "the slot that does not run is damaged: there is nothing to fall back to until an update was written to it"
        ),
    }
}

/// Tells the console what is damaged, until it is not any more.
fn tell(folder: &Path, checked: &[Checked]) -> anyhow::Result<()> {
    let damaged = checked.iter().filter(|slot| slot.problem.is_some());
    let lines: Vec<String> = damaged.map(|slot| slot.line().trim_end().to_owned()).collect();
    if lines.is_empty() {
        return notice::withdraw(&folder.join(SLOTS));
    }
    let title = "THE DISK IS FAILING: make a backup, and put the newest update in";
    News::new(title, lines).tell(folder, SLOTS)
}

/// Reads a slot; one that nothing starts may hold anything.
fn check(found: &Found, slot: &Slot, progress: &Progress<'_>) -> anyhow::Result<Option<Checked>> {
    let root_hash = slot.root_hash();
    let runs = root_hash == found.here.root_hash;
    let entry = found.entry(&root_hash);
    if !runs
        && entry.is_none_or(|entry| {
            entry.standing() == Standing::Exhausted && entry.version > found.here.release.version
        })
    {
        return Ok(None);
    }
    let read = slot.verify(&found.disk, &root_hash, |done, all| {
        progress.show(Step::Verifying, done, all);
    });
    let (blocks, problem) = match read.context("the slot cannot be opened")? {
        Ok(blocks) => (Some(blocks), None),
        Err(Fault::Unread { area, block, source }) => {
            (None, Some(format!("block {block} of the {area} cannot be read: {source}")))
        }
        Err(fault) => (None, Some(fault.to_string())),
    };
    Ok(Some(Checked { slot: slot.name, runs, blocks, problem }))
}

impl Checked {
    fn line(&self) -> String {
        let name = if self.runs { "the running system" } else { "the other system" };
        match (&self.problem, self.blocks) {
            (Some(problem), _) => format!("slot {}, {name}: DAMAGED: {problem}\n", self.slot),
            (None, blocks) => {
                let blocks = blocks.unwrap_or_default();
                format!("slot {}, {name}: all {blocks} blocks are as they should be\n", self.slot)
            }
        }
    }
}
