//! `sallyctl hsm status`, `rotate`, `hand-over` and `destroy`: the keys of the running box.

use anyhow::ensure;
use clap::{Args, ValueEnum};
use sallyport_core::{
    admin::{KeyAction, KeyOrder, KeyReport, KeyState, Keys, NewKey, Status, path},
    sign::KeyRole,
};
use sallyport_hsm::KeyName;

use super::{
    dialogue::{Ceremony, Step},
    protocol::Protocol,
};
use crate::{
    approvals::Approvals,
    client::Box as TheBox,
    command::{
        signer::TokenArgs,
        status::{backlog_text, token_text},
    },
    output::{self, Output},
    terminal,
};

#[derive(Args)]
pub(crate) struct Rotate {
    /// Which key.
    #[arg(value_enum)]
    role: Role,
    /// The private half of the old key is gone for good: what waits is signed by its successor.
    #[arg(long)]
    old_key_is_lost: bool,
    #[command(flatten)]
    approvals: Approvals,
    #[command(flatten)]
    ceremony: Ceremony,
}

#[derive(Clone, Copy, ValueEnum)]
enum Role {
    /// Signs what members write, for other enclaves.
    Event,
    /// Signs bundles.
    Courier,
    /// Opens bundles of peers.
    CourierEncryption,
    /// Vouches for the audit log.
    Audit,
    /// That of the certificate that the box serves, in the token or not.
    Tls,
    /// That of the enclave CA, and of the served certificate with it. EVERY DEVICE must trust the new CA before it can connect again.
    Ca,
}

/// The keys that a new token gets.
const ROLES: [KeyRole; 4] =
    [KeyRole::Event, KeyRole::Courier, KeyRole::CourierEncryption, KeyRole::Audit];

#[derive(Args)]
pub(crate) struct HandOver {
    /// A file that describes the new token, which is plugged into this machine.
    #[command(flatten)]
    token: TokenArgs,
    /// The old token is gone for good: the enclave root's signature under the next card is what peers go by.
    #[arg(long)]
    old_token_is_lost: bool,
    #[command(flatten)]
    approvals: Approvals,
    #[command(flatten)]
    ceremony: Ceremony,
}

#[derive(Args)]
pub(crate) struct Destroy {
    /// The key, as `sallyctl hsm status` names it.
    key: KeyName,
    /// Its token is gone for good: only note it.
    #[arg(long)]
    old_key_is_lost: bool,
    #[command(flatten)]
    approvals: Approvals,
    #[command(flatten)]
    ceremony: Ceremony,
}

/// Shows the token and all keys.
pub(super) fn status(the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
    let (keys, status) = (the_box.ask::<Keys>(path::KEYS)?, the_box.ask::<Status>(path::STATUS)?);
    out.show(&keys, |keys| {
        let head = output::pairs(&[
            ("enclave", status.server_name.to_string()),
            ("token", token_text(&status.token.state)),
            ("it", keys.abilities.join(", ")),
            ("to be signed", backlog_text(&keys.backlog, status.now)),
            ("approvals", format!("{} officers for an order about keys", keys.approvals_needed)),
            ("incarnation", keys.incarnation.clone()),
        ]);
        let rows: Vec<_> = keys.keys.iter().map(row).collect();
        let columns = ["key", "algorithm", "made", "retired", "private half", "fingerprint"];
        format!("{head}\n{}", output::table(columns, &rows))
    })
}

fn row(key: &KeyState) -> [String; 6] {
    let private = match (key.destroyed, key.custody) {
        (Some(at), _) => format!("gone since {}", output::time(at)),
        (None, Some(mode)) => mode.as_str().to_owned(),
        (None, None) => "unknown".to_owned(),
    };
    let hybrid = if key.hybrid.is_some() { " and X-Wing" } else { "" };
    let algorithm = format!("{}{hybrid}", key.public.algorithm());
    [
        key.name.clone(),
        algorithm,
        output::time(key.created),
        key.retired.map_or_else(|| "in use".to_owned(), output::time),
        private,
        key.fingerprint().to_string(),
    ]
}

impl Rotate {
    pub(super) fn run(self, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
        let role = match self.role {
            Role::Event => KeyRole::Event,
            Role::Courier => KeyRole::Courier,
            Role::CourierEncryption => KeyRole::CourierEncryption,
            Role::Audit => KeyRole::Audit,
            Role::Tls => KeyRole::Tls,
            Role::Ca => KeyRole::Ca,
        };
        let action = KeyAction::Rotate { role };
        let what = format!("Rotate the {role} key");
        Order { what, action, old_is_lost: self.old_key_is_lost, approvals: self.approvals }.hold(
            the_box,
            self.ceremony,
            out,
        )
    }
}

impl Destroy {
    pub(super) fn run(self, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
        let what = format!("Destroy the key {}", self.key);
        let action = KeyAction::Destroy { name: self.key.to_string() };
        Order { what, action, old_is_lost: self.old_key_is_lost, approvals: self.approvals }.hold(
            the_box,
            self.ceremony,
            out,
        )
    }
}

/// An order to the box that is one step of a ceremony.
struct Order {
    what: String,
    action: KeyAction,
    old_is_lost: bool,
    approvals: Approvals,
}

impl Order {
    fn hold(self, the_box: &TheBox, ceremony: Ceremony, out: &Output) -> anyhow::Result<()> {
        let Self { what, action, old_is_lost, approvals } = self;
        let status: Status = the_box.ask(path::STATUS)?;
        let plan = plan(the_box, &action, old_is_lost)?;
        let protocol =
            Protocol::new(what, status.server_name.as_str(), the_box.actor(), terminal::now());
        let text = sentence(&plan);
        if ceremony.is_plan() {
            tell_of_approvals(&plan, out)?;
        }
        let step = Step::new(text, move |protocol: &mut Protocol| {
            let order = KeyOrder { action, old_is_lost, plan: false };
            let report: KeyReport =
                the_box.command_approved(path::KEYS, approvals.read()?, &order)?;
            let ended = if report.made.is_empty() { "destroyed" } else { "retired" };
            protocol.states(ended, &report.ended);
            protocol.states("made", &report.made);
            Ok(())
        });
        ceremony.hold(protocol, vec![step], out)
    }
}

fn plan(the_box: &TheBox, action: &KeyAction, old_is_lost: bool) -> anyhow::Result<KeyReport> {
    let order = KeyOrder { action: action.clone(), old_is_lost, plan: true };
    the_box.command(path::KEYS, &order)
}

/// What the box will do, as one step with its parts.
fn sentence(plan: &KeyReport) -> String {
    let parts = plan.steps.iter().map(|step| format!("\n     - {step}"));
    format!("order the box to{}", parts.collect::<String>())
}

fn tell_of_approvals(plan: &KeyReport, out: &Output) -> anyhow::Result<()> {
    match plan.approvals_needed {
        0 => Ok(()),
        needed => out.note(&format!(
            "{needed} officers must approve it; each of them types\n  {}",
            plan.approve_command
        )),
    }
}

impl HandOver {
    pub(super) fn run(self, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
        let Self { token, old_token_is_lost: old_is_lost, approvals, ceremony } = self;
        let status: Status = the_box.ask(path::STATUS)?;
        let enclave = status.server_name;
        let plan = plan(the_box, &KeyAction::HandOver { keys: Vec::new() }, old_is_lost)?;
        let what = "Hand the box over to another token";
        let protocol = Protocol::new(what, enclave.as_str(), the_box.actor(), terminal::now());
        if ceremony.is_plan() {
            tell_of_approvals(&plan, out)?;
        }
        let made = std::cell::RefCell::new(Vec::new());
        let steps = vec![
            Step::new("make a key of each role in the new token", |protocol: &mut Protocol| {
                let signer = token.open(enclave.clone())?;
                for role in ROLES {
                    let (name, public) = signer.generate(role, signer.kind_for(role)?)?;
                    protocol.key("made", &name, &public);
                    made.borrow_mut().push(NewKey { name: name.to_string(), public });
                }
                Ok(())
            }),
            Step::new(sentence(&plan), |protocol: &mut Protocol| {
                let keys = made.borrow().clone();
                ensure!(!keys.is_empty(), "no keys were made");
                let order =
                    KeyOrder { action: KeyAction::HandOver { keys }, old_is_lost, plan: false };
                let report: KeyReport =
                    the_box.command_approved(path::KEYS, approvals.read()?, &order)?;
                protocol.states("retired", &report.ended);
                protocol.fact(
                    "vouched for by",
                    if old_is_lost {
                        "nobody: the old token is lost"
                    } else {
                        "the old audit key, in the audit log"
                    },
                );
                Ok(())
            }),
            Step::note(
                "name the new token in the table [token] of the box's configuration, and restart the box",
            ),
            Step::note(
                "have the enclave root sign the new keys: `sallyctl card request`, `sallyctl ceremony sign-card`, `sallyctl card install`",
            ),
            Step::note(
                "bring the new card to every peer on a stick (`sallyctl peer add` there): the enclave root's signature says that it is ours, and until then they refuse our bundles",
            ),
            Step::note(
                "keep the old token in the safe until every peer has acknowledged a bundle, then destroy it",
            ),
        ];
        ceremony.hold(protocol, steps, out)
    }
}
