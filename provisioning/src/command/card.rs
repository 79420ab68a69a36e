//! `sallyctl card`: pairing cards.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use http::Method;
use sallyport_core::{
    admin::{CardRequest, Peer, path},
    card::{Content, Direction, Proposed},
    custody::Mode,
    digest::Sha256,
    limits::CARD_BYTES_MAX,
    time::Millis,
};
use serde::Serialize;

use crate::{
    approvals::Approvals,
    client::Box as TheBox,
    files,
    output::{self, Output},
    terminal,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show what a card says.
    Show {
        /// The card.
        file: PathBuf,
    },
    /// Print the fingerprint of a card, to be read aloud to the other enclave's officer.
    Fingerprint {
        /// The card.
        file: PathBuf,
    },
    /// Fetch the box's public keys, for the enclave root to sign: `sallyctl ceremony sign-card`.
    Request {
        /// Where to write them.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Give the box its own card, once the enclave root has signed it.
    Install {
        /// The card.
        file: PathBuf,
        #[command(flatten)]
        approvals: Approvals,
    },
    /// Fetch the box's own card, to give it to another enclave.
    Export {
        /// Where to write it.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

impl Command {
    pub(crate) fn run(self, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
        match self {
            Self::Show { file } => out.show(&Shown::of(&read(&file)?), Shown::text),
            Self::Fingerprint { file } => {
                let fingerprint = read(&file)?.fingerprint();
                out.raw(&format!("{}\n{}\n", fingerprint.words(), fingerprint.hex()))
            }
            Self::Request { out: path } => {
                let mut bytes = Vec::new();
                the_box.fetch(path::CARD_REQUEST, &mut bytes)?;
                CardRequest::decode(&bytes).context("the box's request is not sound")?;
                files::write_new(&path, &bytes)?;
                let hash = Sha256::of(&bytes);
                out.note(&format!(
                    "Request written. Take its hash to the ceremony on paper:\n{hash}"
                ))
            }
            Self::Install { file, approvals } => {
                let approvals = approvals.read()?;
                let card = files::read(&file, CARD_BYTES_MAX)?;
                let own: Peer =
                    the_box.send_bytes(Method::PUT, path::CARD, approvals, &[], card)?;
                out.show(&own, |own| {
                    let until = output::time(own.not_after);
                    format!(
                        "Card {} of {} is installed, valid until {until}.\n",
                        own.serial, own.server_name
                    )
                })
            }
            Self::Export { out: path } => {
                let mut bytes = Vec::new();
                the_box.fetch(path::CARD, &mut bytes)?;
                files::write_new(&path, &bytes)?;
                out.note(&format!("The box's card is in {}.", path.display()))
            }
        }
    }
}

/// A card from a file, shown but not trusted.
pub(super) fn read(file: &Path) -> anyhow::Result<Proposed> {
    let bytes = files::read(file, CARD_BYTES_MAX)?;
    Proposed::parse(&bytes, terminal::now())
        .with_context(|| format!("{} cannot be used", file.display()))
}

/// What a card says, for people and scripts.
#[derive(Serialize)]
pub(super) struct Shown {
    server_name: String,
    enclave: String,
    serial: u64,
    not_before: Millis,
    not_after: Millis,
    fingerprint: String,
    signing_keys: Vec<String>,
    encryption_keys: Vec<String>,
    room_versions: Vec<String>,
    bundle_bytes_max: u64,
    direction: &'static str,
    export_approvals: u8,
    import_approvals: u8,
    custody: Option<Mode>,
}

impl Shown {
    pub(super) fn of(card: &Proposed) -> Self {
        let Content { server_name, enclave, serial, not_before, not_after, policy, .. } =
            card.content();
        let content = card.content();
        Self {
            server_name: server_name.to_string(),
            enclave: enclave.clone(),
            serial: *serial,
            not_before: *not_before,
            not_after: *not_after,
            fingerprint: card.fingerprint().words(),
            signing_keys: content.signing_keys.iter().map(|key| key.id().to_string()).collect(),
            encryption_keys: content
                .encryption_keys
                .iter()
                .map(|key| key.id().to_string())
                .collect(),
            room_versions: policy.room_versions.iter().map(ToString::to_string).collect(),
            bundle_bytes_max: policy.bundle_bytes_max,
            direction: match policy.direction {
                Direction::Both => "sends and receives",
                Direction::Receives => "only receives",
                Direction::Sends => "only sends",
            },
            export_approvals: policy.export_approvals,
            import_approvals: policy.import_approvals,
            custody: content.custody,
        }
    }

    pub(super) fn text(&self) -> String {
        output::pairs(&[
            ("enclave", format!("{} ({})", self.server_name, self.enclave)),
            ("fingerprint", self.fingerprint.clone()),
            ("card", self.serial.to_string()),
            (
                "valid",
                format!("{} to {}", output::time(self.not_before), output::time(self.not_after)),
            ),
            ("signing keys", self.signing_keys.join(" ")),
            ("encryption keys", self.encryption_keys.join(" ")),
            ("bundles", format!("{}, at most {} MiB", self.direction, self.bundle_bytes_max >> 20)),
            ("room versions", self.room_versions.join(" ")),
            (
                "approvals",
                format!("{} to export, {} to import", self.export_approvals, self.import_approvals),
            ),
            ("event key", custody(self.custody)),
        ])
    }
}

/// Where an enclave's event key lives, by its card.
pub(super) fn custody(mode: Option<Mode>) -> String {
    mode.map_or("the card does not say where it lives".to_owned(), |mode| {
        format!("{mode}: {}", mode.meaning())
    })
}
