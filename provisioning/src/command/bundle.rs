//! `sallyctl bundle`: what enclaves send each other on sticks.

use std::{io::Write as _, path::PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use ruma::OwnedServerName;
use sallyport_core::admin::{BundleImported, PeerBundles, path};

use crate::{
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
    },
    /// Import a bundle of a peer. Importing one twice does no harm.
    Import {
        /// The bundle.
        file: PathBuf,
    },
    /// Show what was exported, acknowledged and imported, by peer.
    Status,
}

impl Command {
    pub(crate) fn run(self, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
        match self {
            Self::Export { peer, out: path } => {
                let mut file = files::create_secret(&path)?;
                let uri = format!("{}?peer={peer}", path::BUNDLES_EXPORT);
                let fetched = the_box.command_fetch(&uri, &mut file).and_then(|bytes| {
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
            Self::Import { file } => {
                let imported = send(&file, the_box)?;
                out.show(&imported, imported_text)
            }
            Self::Status => {
                let peers: Vec<PeerBundles> = the_box.ask(path::BUNDLES)?;
                out.show(&peers, |peers| table(peers))
            }
        }
    }
}

/// Streams a bundle to the box.
pub(super) fn send(file: &std::path::Path, the_box: &TheBox) -> anyhow::Result<BundleImported> {
    the_box.send_file(path::BUNDLES_IMPORT, files::open_foreign(file)?)
}

/// What came of an import, for people.
pub(super) fn imported_text(imported: &BundleImported) -> String {
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
