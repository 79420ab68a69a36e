//! `sallyctl ceremony`: keys that are made once, with witnesses.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand, ValueEnum, value_parser};
use ruma::{OwnedServerName, RoomVersionId};
use sallyport_core::{
    admin::{CardRequest, CardTerms},
    backup::RecoveryKey,
    card::{Card, Direction, Fingerprint, Policy, Proposed},
    digest::Sha256,
    limits::{ADMIN_APPROVALS_MAX, CARD_BYTES_MAX},
    sign::{KeyRole, PublicKey, SigningRequest},
};
use sallyport_hsm::{KeyKind, KeyName};
use serde::Serialize;

use super::{
    card::Shown,
    recovery,
    signer::{self, TokenArgs},
};
use crate::{
    files,
    output::{self, Output},
    terminal,
};

/// More than a command can carry would forbid it for ever.
const APPROVALS_MAX: i64 = ADMIN_APPROVALS_MAX as i64;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make the enclave's root key. It signs pairing cards and nothing else, and stays in the safe.
    InitRoot(NewKey),
    /// Make an officer's key, which signs rosters and approvals.
    OfficerKey(NewKey),
    /// Make the key of those who build releases, which signs updates of the system.
    ReleaseKey {
        #[command(flatten)]
        token: TokenArgs,
        /// The algorithm: P-256 is what every token can do.
        #[arg(long, value_enum, default_value_t = Algorithm::P256)]
        algorithm: Algorithm,
    },
    /// Make a recovery officer's key, which opens backups and nothing else.
    RecoveryKey(NewRecoveryKey),
    /// Sign the box's keys with the enclave root: the result is the box's pairing card.
    SignCard(SignCard),
}

#[derive(Args)]
pub(crate) struct NewKey {
    #[command(flatten)]
    token: TokenArgs,
    /// Server name of the enclave.
    #[arg(long, value_name = "NAME")]
    enclave: OwnedServerName,
    /// The algorithm: P-256 is what every token can do.
    #[arg(long, value_enum, default_value_t = Algorithm::P256)]
    algorithm: Algorithm,
}

#[derive(Args)]
pub(crate) struct NewRecoveryKey {
    #[command(flatten)]
    token: TokenArgs,
    /// Server name of the enclave.
    #[arg(long, value_name = "NAME")]
    enclave: OwnedServerName,
    /// Make a key that stays closed when quantum computers come: the token wraps it, and the officer keeps this file beside the token.
    #[arg(long, value_name = "FILE")]
    hybrid: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Algorithm {
    P256,
    Ed25519,
}

#[derive(Args)]
pub(crate) struct SignCard {
    /// The request that `sallyctl card request` fetched from the box.
    request: PathBuf,
    /// The hash of the request as it was shown at the box, brought on paper.
    #[arg(long, value_name = "HASH")]
    request_hash: Sha256,
    #[command(flatten)]
    token: TokenArgs,
    /// The root key, if the token has several.
    #[arg(long, value_name = "NAME")]
    key: Option<KeyName>,
    /// Name of the enclave for people.
    #[arg(long, value_name = "TEXT")]
    name: String,
    /// Number of this card; higher than that of the last one.
    #[arg(long)]
    serial: u64,
    /// How many days the card is valid.
    #[arg(long, default_value_t = 730)]
    days: u64,
    /// The largest bundle that the enclave takes, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 16_384)]
    bundle_mib_max: u64,
    /// Which way bundles may travel, seen from this enclave.
    #[arg(long, value_enum, default_value_t = Way::Both)]
    direction: Way,
    /// How many officers must approve each export of this enclave, with `sallyctl approve export`.
    #[arg(long, value_name = "OFFICERS", default_value_t = 1, value_parser = value_parser!(u8).range(..=APPROVALS_MAX))]
    export_approvals: u8,
    /// How many officers must approve each import of this enclave, with `sallyctl approve import`.
    #[arg(long, value_name = "OFFICERS", default_value_t = 1, value_parser = value_parser!(u8).range(..=APPROVALS_MAX))]
    import_approvals: u8,
    /// Where to write the card.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Way {
    Both,
    Receives,
    Sends,
}

impl Command {
    pub(crate) fn run(self, out: &Output) -> anyhow::Result<()> {
        match self {
            Self::InitRoot(args) => {
                let made = args.make(KeyRole::Root)?;
                let fingerprint = Fingerprint::of(&made.public, &args.enclave);
                let made = Made { fingerprint: Some(fingerprint.words()), ..made };
                out.show(&made, |made| {
                    format!(
                        "{}Write the fingerprint down: the officers of other enclaves will ask for it.\n",
                        made.text()
                    )
                })
            }
            Self::OfficerKey(args) => {
                let made = args.make(KeyRole::Officer)?;
                out.show(&made, |made| {
                    format!(
                        "{}Put the public key into the box's configuration:\n\n[roster]\ntrusted_keys = [\"{}\"]\n",
                        made.text(),
                        made.public
                    )
                })
            }
            Self::ReleaseKey { token, algorithm } => {
                let enclave = signer::no_enclave();
                let made = NewKey { token, enclave, algorithm }.make(KeyRole::Release)?;
                out.show(&made, |made| {
                    let (key, public) = (&made.key, &made.public);
                    format!(
                        "key         {key}\npublic key  {public}\nPut the public key into the image, as a line of its own: usr/lib/sallyport/update.pub\n"
                    )
                })
            }
            Self::RecoveryKey(args) => {
                let signer = args.token.open(args.enclave.clone())?;
                let (key, public) = recovery::make(&signer, &args.enclave, args.hybrid.as_deref())?;
                let made = MadeRecovery { enclave: args.enclave, key, public };
                out.show(&made, MadeRecovery::text)
            }
            Self::SignCard(args) => sign_card(&args, out),
        }
    }
}

impl NewKey {
    fn make(&self, role: KeyRole) -> anyhow::Result<Made> {
        let kind = match self.algorithm {
            Algorithm::P256 => KeyKind::P256,
            Algorithm::Ed25519 => KeyKind::Ed25519,
        };
        let signer = self.token.open(self.enclave.clone())?;
        let (key, public) = signer.generate(role, kind)?;
        Ok(Made { enclave: self.enclave.clone(), key, public, fingerprint: None })
    }
}

/// A key that was made.
#[derive(Serialize)]
struct Made {
    enclave: OwnedServerName,
    key: KeyName,
    public: PublicKey,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
}

impl Made {
    fn text(&self) -> String {
        let mut lines = vec![
            ("enclave", self.enclave.to_string()),
            ("key", self.key.to_string()),
            ("public key", self.public.to_string()),
        ];
        lines.extend(self.fingerprint.clone().map(|words| ("fingerprint", words)));
        output::pairs(&lines)
    }
}

/// A recovery officer's key that was made.
#[derive(Serialize)]
struct MadeRecovery {
    enclave: OwnedServerName,
    key: KeyName,
    public: RecoveryKey,
}

impl MadeRecovery {
    fn text(&self) -> String {
        let made = output::pairs(&[
            ("enclave", self.enclave.to_string()),
            ("key", self.key.to_string()),
            ("public key", self.public.to_string()),
        ]);
        format!(
            "{made}Put the public key into the box's configuration, and the token into a safe that is not beside the box:\n\n[backup]\nrecovery_keys = [\"{}\"]\n",
            self.public
        )
    }
}

fn sign_card(args: &SignCard, out: &Output) -> anyhow::Result<()> {
    let bytes = files::read(&args.request, CARD_BYTES_MAX)?;
    ensure!(
        Sha256::of(&bytes) == args.request_hash,
        "the request is not the one that the box showed: its hash is {}",
        Sha256::of(&bytes)
    );
    let request = CardRequest::decode(&bytes)
        .with_context(|| format!("{} is not a request for a card", args.request.display()))?;
    let signer = args.token.open(request.server_name.clone())?;
    let (key, root) = signer.key(KeyRole::Root, args.key.as_ref())?;
    let now = terminal::now();
    let terms = CardTerms {
        enclave: args.name.clone(),
        serial: args.serial,
        not_before: now,
        not_after: now.plus(Duration::from_secs(args.days.saturating_mul(24 * 60 * 60))),
        root,
        policy: Policy {
            bundle_bytes_max: args.bundle_mib_max.saturating_mul(1 << 20),
            room_versions: vec![RoomVersionId::V12, RoomVersionId::V11, RoomVersionId::V10],
            direction: match args.direction {
                Way::Both => Direction::Both,
                Way::Receives => Direction::Receives,
                Way::Sends => Direction::Sends,
            },
            export_approvals: args.export_approvals,
            import_approvals: args.import_approvals,
        },
    };
    let card = Card::sign(&request.into_content(terms), |tbs| {
        signer.sign(&key, &SigningRequest::Card(tbs.to_vec()))
    })
    .context("the card was not signed")?;
    files::write_new(&args.out, &card)?;
    let shown = Proposed::parse(&card, now).context("the new card cannot be read back")?;
    out.show(&Shown::of(&shown), Shown::text)
}
