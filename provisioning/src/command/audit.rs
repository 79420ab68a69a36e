//! `sallyctl audit`: was the log of administrative commands left as the box wrote it?

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use sallyport_core::{
    admin::{AuditPage, SignedCheckpoint, path},
    audit::{self, Row, Tip, Vouched},
    digest::Sha256,
    journal::{Compared, Entry, Seal, Sealed, compare},
    limits::AUDIT_KEYS_MAX,
    sign::PublicKey,
    time::Millis,
};
use serde::{Deserialize, Serialize};

use crate::{
    client::Box as TheBox,
    files, journal,
    output::{self, Output},
};

/// Bytes of a row in an exported log.
const ROW_BYTES_MAX: u64 = 1 << 20;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Follow the chain of hashes from the first row to the last, and verify what the token signed of it. Compare the last hash
    /// with one that you wrote down: only then is the end of the log known to be there.
    Verify {
        /// An exported log instead of the box's own.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// A hash that you wrote down; the log must contain it.
        #[arg(long, value_name = "HASH")]
        contains: Option<Sha256>,
        /// The audit key that you wrote down, `ed25519:…` or `p256:…`; without it, those count that the box or the file names.
        #[arg(long, value_name = "KEY")]
        key: Option<PublicKey>,
        /// A folder with files of the machine's journal, to be held against the seals in the log.
        #[arg(long, value_name = "FOLDER")]
        journal: Option<PathBuf>,
    },
    /// Have the token sign where the log stands, at once: before an audit, or before the box is handed over.
    Checkpoint,
    /// Write the whole log to a file, one row of JSON per line, with the token's checkpoints and the keys that signed them.
    Export {
        /// The file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Show the last rows.
    Show {
        /// How many.
        #[arg(long, default_value_t = 20)]
        last: u64,
    },
}

impl Command {
    pub(crate) fn run(self, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
        match self {
            Self::Verify { file, contains, key, journal } => {
                // Before the seals: what is written meanwhile is only not sealed yet.
                let entries = journal.as_deref().map(entries).transpose()?;
                let mut log = Log::new(contains, key);
                match file {
                    Some(file) => read_export(&file, |line| log.follow(line))?,
                    None => each_line(the_box, 0, |line| log.follow(line))?,
                }
                out.show(&log.finish(entries)?, Verified::text)
            }
            Self::Checkpoint => {
                let tip: Tip = the_box.command(path::AUDIT_CHECKPOINT, &())?;
                out.show(&tip, |tip| {
                    format!(
                        "The token vouches for the log up to row {}, hash {}\n",
                        tip.id, tip.hash
                    )
                })
            }
            Self::Export { out: path } => {
                let mut file = files::create_secret(&path)?;
                let rows = export(the_box, &mut file)
                    .with_context(|| format!("cannot write {}", path.display()))?;
                file.sync_all().with_context(|| format!("cannot write {}", path.display()))?;
                out.note(&format!("{rows} rows are in {}.", path.display()))
            }
            Self::Show { last } => {
                let page: AuditPage =
                    the_box.ask(&format!("{}?after={}", path::AUDIT, u64::MAX))?;
                let mut rows = Vec::new();
                each_line(the_box, page.tip.id.saturating_sub(last), |line| {
                    if let Line::Row(row) = line {
                        rows.push(*row);
                    }
                    Ok(())
                })?;
                out.show(&rows, |rows| table(rows))
            }
        }
    }
}

/// Writes the whole log to a file; answers how many rows it has.
pub(crate) fn export(the_box: &TheBox, file: &mut File) -> anyhow::Result<u64> {
    let mut rows = 0;
    each_line(the_box, 0, |line| {
        rows += u64::from(matches!(line, Line::Row(_)));
        let mut json = serde_json::to_vec(&line).context("cannot write a row")?;
        json.push(b'\n');
        file.write_all(&json).context("cannot write the log")
    })?;
    Ok(rows)
}

/// A line of an exported log. Keys come first, and each checkpoint after the row that it is of.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Key { audit_key: PublicKey },
    Checkpoint(SignedCheckpoint),
    Row(Box<Row>),
}

/// A log that is being followed.
struct Log {
    tip: Tip,
    /// A hash that must come by.
    wanted: Option<Sha256>,
    /// The key that the officer wrote down: no other is believed.
    pinned: Option<PublicKey>,
    keys: BTreeSet<PublicKey>,
    vouched: Option<Vouched>,
    seals: Vec<Sealed>,
}

/// What is known of a log.
#[derive(Serialize)]
struct Verified {
    #[serde(flatten)]
    tip: Tip,
    /// The last row that the token vouches for.
    vouched: Option<u64>,
    vouched_at: Option<Millis>,
    /// Whether the key was one that the officer wrote down.
    pinned: bool,
    keys: Vec<PublicKey>,
    /// The journal, if it was held against its seals.
    #[serde(skip_serializing_if = "Option::is_none")]
    journal: Option<Compared>,
}

impl Log {
    fn new(wanted: Option<Sha256>, pinned: Option<PublicKey>) -> Self {
        let keys = pinned.iter().cloned().collect();
        Self { tip: Tip::default(), wanted, pinned, keys, vouched: None, seals: Vec::new() }
    }

    fn follow(&mut self, line: Line) -> anyhow::Result<()> {
        match line {
            Line::Key { audit_key } => {
                ensure!(self.vouched.is_none(), "a key stands behind the first row of the log");
                if self.pinned.is_none() {
                    self.keys.insert(audit_key);
                }
                ensure!(self.keys.len() <= AUDIT_KEYS_MAX, "the log names too many audit keys");
            }
            Line::Checkpoint(checkpoint) => {
                let tip = self.tip;
                self.vouched().checkpoint(tip, &checkpoint.bytes())?;
            }
            Line::Row(row) => {
                self.tip = audit::verify(self.tip, [&*row])?;
                self.vouched().row(&row);
                let (id, at) = (row.id, row.entry.at);
                self.seals.extend(Seal::of(&row).map(|seal| Sealed { row: id, at, seal }));
                if self.wanted == Some(self.tip.hash) {
                    self.wanted = None;
                }
            }
        }
        Ok(())
    }

    fn vouched(&mut self) -> &mut Vouched {
        let keys = &self.keys;
        self.vouched.get_or_insert_with(|| Vouched::new(keys.clone(), None))
    }

    fn finish(mut self, journal: Option<Vec<Entry>>) -> anyhow::Result<Verified> {
        ensure!(
            self.wanted.is_none(),
            "the log does not contain the hash that you wrote down: rows were removed"
        );
        let journal = journal.map(|entries| compare(&self.seals, entries)).transpose()?;
        let up_to = self.vouched().up_to();
        Ok(Verified {
            tip: self.tip,
            vouched: up_to.map(|(row, _)| row),
            vouched_at: up_to.map(|(_, at)| at),
            pinned: self.pinned.is_some(),
            keys: self.keys.into_iter().collect(),
            journal,
        })
    }
}

impl Verified {
    fn of_journal(&self, journal: &Compared) -> String {
        let Compared { seals: _, entries, first_row, until, gone, unsealed } = *journal;
        let is = match (first_row, until) {
            (Some(row), Some(at)) => {
                let at = output::time(at);
                format!(
                    "The journal is as it was sealed, from row {row} on until {at}: {entries} entries\n"
                )
            }
            _ => "Nothing of the journal is proven: all entries of some seal must be there\n"
                .to_owned(),
        };
        let is_vouched = first_row.is_none_or(|first| self.vouched >= Some(first));
        let lines = [
            (gone > 0, format!("Older seals whose entries are no longer kept: {gone}\n")),
            (unsealed > 0, format!("Entries that no seal proves: {unsealed}\n")),
            (!is_vouched, "The token does not vouch for these seals yet: `sallyctl audit checkpoint` has it do so\n".to_owned()),
        ];
        is + &lines.into_iter().filter(|(said, _)| *said).map(|(_, line)| line).collect::<String>()
    }

    fn text(&self) -> String {
        let whole =
            format!("The log is whole: {} rows, last hash {}\n", self.tip.id, self.tip.hash);
        let vouched = match (self.vouched, self.vouched_at) {
            (Some(row), Some(at)) => {
                let at = output::time(at);
                format!("The token vouches for it up to row {row}, since {at}\n")
            }
            _ => "The token vouches for none of it: no checkpoint was made yet\n".to_owned(),
        };
        let keys = self.keys.iter().map(|key| format!("  {key}\n")).collect::<String>();
        let believed = if self.pinned || self.keys.is_empty() {
            String::new()
        } else {
            format!(
                "Its key is believed as it was found; compare it with the protocol of the ceremony, or give it with --key:\n{keys}"
            )
        };
        let journal = self.journal.as_ref().map(|journal| self.of_journal(journal));
        whole + &vouched + &believed + &journal.unwrap_or_default()
    }
}

/// All entries of a journal.
fn entries(folder: &Path) -> anyhow::Result<Vec<Entry>> {
    let files = journal::list(folder)?;
    ensure!(!files.is_empty(), "there is no file of a journal in {}", folder.display());
    let mut entries = Vec::new();
    for file in files {
        file.open()?.each(None, |entry| entries.push(entry))?;
    }
    Ok(entries)
}

/// The keys, then all rows of the box after one, page by page, each with its checkpoint.
fn each_line(
    the_box: &TheBox,
    mut after: u64,
    mut each: impl FnMut(Line) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let begin = after;
    loop {
        let page: AuditPage = the_box.ask(&format!("{}?after={after}", path::AUDIT))?;
        if after == begin {
            page.keys.into_iter().try_for_each(|audit_key| each(Line::Key { audit_key }))?;
        }
        let Some(last) = page.rows.last() else { return Ok(()) };
        after = last.id;
        let mut checkpoints = page.checkpoints.into_iter().peekable();
        for row in page.rows {
            let id = row.id;
            each(Line::Row(Box::new(row)))?;
            if let Some(checkpoint) = checkpoints.next_if(|checkpoint| checkpoint.row == id) {
                each(Line::Checkpoint(checkpoint))?;
            }
        }
    }
}

fn read_export(
    path: &Path,
    mut each: impl FnMut(Line) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
    let mut reader = BufReader::new(file);
    for number in 1_u64.. {
        let mut line = Vec::new();
        reader
            .by_ref()
            .take(ROW_BYTES_MAX)
            .read_until(b'\n', &mut line)
            .with_context(|| format!("cannot read {shown}"))?;
        if line.is_empty() {
            break;
        }
        let line = serde_json::from_slice(&line)
            .with_context(|| format!("line {number} of {shown} is not a row of an audit log"))?;
        each(line)?;
    }
    Ok(())
}

fn table(rows: &[Row]) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let entry = &row.entry;
            let details = entry.details.iter().map(|(key, value)| format!("{key}={value}"));
            [
                row.id.to_string(),
                output::time(entry.at),
                entry.actor.clone(),
                entry.approvals.join(" "),
                entry.action.clone(),
                entry.subject.clone(),
                details.collect::<Vec<_>>().join(" "),
            ]
        })
        .collect();
    output::table(["row", "time", "actor", "approved by", "action", "subject", "details"], &rows)
}
