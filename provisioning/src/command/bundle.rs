//! `sallyctl bundle`: what enclaves send each other on sticks.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Subcommand;
use ruma::OwnedServerName;
use sallyport_core::{
    admin::{Approval, BundleImported, PeerBundles, path},
    bundle::{Header, unverified_header},
    digest::Sha256,
    time::Millis,
};
use serde::Serialize;

use crate::{
    approvals::Approvals,
    client::Box as TheBox,
    files,
    output::{self, Output},
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a bundle with everything that a peer has not acknowledged yet.
    Export {
        /// Server name of the peer.
        peer: OwnedServerName,
        /// Where to write the bundle.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        #[command(flatten)]
        approvals: Approvals,
    },
    /// Import a bundle of a peer. Importing one twice does no harm.
    Import {
        /// The bundle.
        file: PathBuf,
        #[command(flatten)]
        approvals: Approvals,
    },
    /// Show what a bundle says of itself, and the SHA-256 that officers approve. Needs no box and believes nothing.
    Inspect {
        /// The bundle.
        file: PathBuf,
    },
    /// Show what was exported, acknowledged and imported, by peer.
    Status,
}

impl Command {
    pub(crate) fn run(self, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
        match self {
            Self::Export { peer, out: path, approvals } => {
                let approvals = approvals.read()?;
                let mut file = files::create_secret(&path)?;
                let uri = format!("{}?peer={peer}", path::BUNDLES_EXPORT);
                let fetched = the_box.command_fetch(&uri, approvals, &mut file).and_then(|bytes| {
                    let written = file.flush().and_then(|()| file.sync_all());
                    written.with_context(|| format!("cannot write {}", path.display()))?;
                    Ok(bytes)
                });
                match fetched {
                    Ok(bytes) => out.note(&format!(
                        "A bundle of {bytes} bytes for {peer} is in {}.",
                        path.display()
                    )),
                    Err(error) => {
                        std::fs::remove_file(&path)
                            .context("cannot remove the unfinished bundle")?;
                        Err(error)
                    }
                }
            }
            Self::Import { file, approvals } => {
                let imported = send(&file, approvals.read()?, the_box)?;
                out.show(&imported, imported_text)
            }
            Self::Inspect { file } => out.show(&Inspected::read(&file)?, Inspected::text),
            Self::Status => {
                let peers: Vec<PeerBundles> = the_box.ask(path::BUNDLES)?;
                out.show(&peers, |peers| table(peers))
            }
        }
    }
}

/// Streams a bundle to the box.
pub(crate) fn send(
    file: &Path,
    approvals: Vec<Approval>,
    the_box: &TheBox,
) -> anyhow::Result<BundleImported> {
    the_box.send_file(path::BUNDLES_IMPORT, approvals, files::open_foreign(file)?)
}

/// What a bundle says of itself; nothing of it was verified but the hash.
#[derive(Serialize)]
pub(crate) struct Inspected {
    pub(crate) from: OwnedServerName,
    pub(crate) to: OwnedServerName,
    pub(super) sequence: u64,
    created: Millis,
    expires: Millis,
    bytes: u64,
    pub(crate) sha256: Sha256,
}

impl Inspected {
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let Header { from, to, seq: sequence, created, expires, .. } =
            unverified_header(files::open_foreign(file)?)
                .with_context(|| format!("{} is not a bundle", file.display()))?;
        let (sha256, bytes) = files::hash(files::open_foreign(file)?, file)?;
        Ok(Self { from, to, sequence, created, expires, bytes, sha256 })
    }

    /// What bundles are imported in the order of.
    pub(crate) fn order(&self) -> (OwnedServerName, Millis, u64) {
        (self.from.clone(), self.created, self.sequence)
    }

    fn text(&self) -> String {
        output::pairs(&[
            ("bundle", format!("{} of {} for {}", self.sequence, self.from, self.to)),
            ("made", output::time(self.created)),
            ("expires", output::time(self.expires)),
            ("bytes", self.bytes.to_string()),
            ("SHA-256", self.sha256.to_string()),
        ])
    }
}

/// What came of an import, for people.
pub(crate) fn imported_text(imported: &BundleImported) -> String {
    let BundleImported { peer, sequence, known, report } = imported;
    if *known {
        return format!("Bundle {sequence} of {peer} was imported before; nothing changed.\n");
    }
    let lines = report.iter().map(|line| format!("  {line}\n"));
    format!("Imported bundle {sequence} of {peer}.\n{}", lines.collect::<String>())
}

fn table(peers: &[PeerBundles]) -> String {
    let rows: Vec<_> = peers
        .iter()
        .map(|peer| {
            [
                peer.peer.to_string(),
                peer.exported.to_string(),
                peer.acknowledged.to_string(),
                peer.imported.to_string(),
                peer.imported_at.map_or_else(|| "never".to_owned(), output::time),
            ]
        })
        .collect();
    output::table(["peer", "exported", "acknowledged", "imported", "last import"], &rows)
}
