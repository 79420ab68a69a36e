//! `sallyctl audit`: was the log of administrative commands left as the box wrote it?

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use sallyport_core::{
    admin::{AuditPage, path},
    audit::{self, Row, Tip},
    digest::Sha256,
};

use crate::{
    client::Box as TheBox,
    files,
    output::{self, Output},
};

/// Bytes of a row in an exported log.
const ROW_BYTES_MAX: u64 = 1 << 20;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Follow the chain of hashes from the first row to the last. Compare the last hash with one that you wrote down:
    /// only then is the end of the log known to be there.
    Verify {
        /// An exported log instead of the box's own.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// A hash that you wrote down; the log must contain it.
        #[arg(long, value_name = "HASH")]
        contains: Option<Sha256>,
    },
    /// Write the whole log to a file, one row of JSON per line.
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
            Self::Verify { file, contains } => {
                let mut chain = Chain { tip: Tip::default(), wanted: contains };
                match file {
                    Some(file) => read_export(&file, |row| chain.follow(&row))?,
                    None => each_row(the_box, 0, |row| chain.follow(&row))?,
                }
                ensure!(
                    chain.wanted.is_none(),
                    "the log does not contain the hash that you wrote down: rows were removed"
                );
                out.show(&chain.tip, |tip| {
                    format!("The log is whole: {} rows, last hash {}\n", tip.id, tip.hash)
                })
            }
            Self::Export { out: path } => {
                let mut file = files::create_secret(&path)?;
                let mut rows = 0_u64;
                each_row(the_box, 0, |row| {
                    let mut line = serde_json::to_vec(&row).context("cannot write a row")?;
                    line.push(b'\n');
                    rows += 1;
                    file.write_all(&line)
                        .with_context(|| format!("cannot write {}", path.display()))
                })?;
                file.sync_all().with_context(|| format!("cannot write {}", path.display()))?;
                out.note(&format!("{rows} rows are in {}.", path.display()))
            }
            Self::Show { last } => {
                let page: AuditPage =
                    the_box.ask(&format!("{}?after={}", path::AUDIT, u64::MAX))?;
                let mut rows = Vec::new();
                each_row(the_box, page.tip.id.saturating_sub(last), |row| {
                    rows.push(row);
                    Ok(())
                })?;
                out.show(&rows, |rows| table(rows))
            }
        }
    }
}

/// A chain that is being followed, and a hash that must come by.
struct Chain {
    tip: Tip,
    wanted: Option<Sha256>,
}

impl Chain {
    fn follow(&mut self, row: &Row) -> anyhow::Result<()> {
        self.tip = audit::verify(self.tip, [row])?;
        if self.wanted == Some(self.tip.hash) {
            self.wanted = None;
        }
        Ok(())
    }
}

/// All rows of the box after one, page by page.
fn each_row(
    the_box: &TheBox,
    mut after: u64,
    mut each: impl FnMut(Row) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    loop {
        let page: AuditPage = the_box.ask(&format!("{}?after={after}", path::AUDIT))?;
        let Some(last) = page.rows.last() else { return Ok(()) };
        after = last.id;
        page.rows.into_iter().try_for_each(&mut each)?;
    }
}

fn read_export(path: &Path, mut each: impl FnMut(Row) -> anyhow::Result<()>) -> anyhow::Result<()> {
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
        let row = serde_json::from_slice(&line)
            .with_context(|| format!("line {number} of {shown} is not a row of an audit log"))?;
        each(row)?;
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
