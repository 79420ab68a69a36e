//! `sallyctl peer`: pairing with other enclaves.

use std::path::PathBuf;

use clap::Subcommand;
use http::Method;
use sallyport_core::{
    admin::{FINGERPRINT, Peer, path},
    limits::CARD_BYTES_MAX,
};

use super::card;
use crate::{
    approvals::Approvals,
    client::Box as TheBox,
    files,
    output::{self, Output},
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Pair with the enclave of a card. Its officer reads the fingerprint to you, over the telephone or in person; you
    /// type what you hear. That is what keeps a swapped stick from becoming your peer.
    Add {
        /// The peer's pairing card.
        card: PathBuf,
        /// The fingerprint that the peer's officer read aloud: eight words, or all 64 digits.
        #[arg(long, value_name = "WORDS")]
        fingerprint: String,
        #[command(flatten)]
        approvals: Approvals,
    },
    /// List the enclaves that this one is paired with.
    List,
}

impl Command {
    pub(crate) fn run(self, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
        match self {
            Self::Add { card: file, fingerprint, approvals } => {
                let approvals = approvals.read()?;
                let bytes = files::read(&file, CARD_BYTES_MAX)?;
                let headers = [(FINGERPRINT, fingerprint.as_str())];
                let peer: Peer =
                    the_box.send_bytes(Method::POST, path::PEERS, approvals, &headers, bytes)?;
                out.show(&peer, |peer| {
                    let peers = table(std::slice::from_ref(peer));
                    format!("Paired.\n{peers}Its event key: {}\n", card::custody(peer.custody))
                })
            }
            Self::List => {
                let peers: Vec<Peer> = the_box.ask(path::PEERS)?;
                out.show(&peers, |peers| table(peers))
            }
        }
    }
}

fn table(peers: &[Peer]) -> String {
    let rows: Vec<_> = peers
        .iter()
        .map(|peer| {
            [
                peer.server_name.to_string(),
                peer.enclave.clone(),
                peer.serial.to_string(),
                output::time(peer.not_after),
                peer.fingerprint.clone(),
            ]
        })
        .collect();
    output::table(["enclave", "name", "card", "valid until", "fingerprint"], &rows)
}
