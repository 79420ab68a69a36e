//! `sallyctl console`: what a person sees who stands in front of the machine. There is no login; it shows, and asks where a service asks.

use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr},
};
use sallyport_core::admin::{Status, path};
use sallyport_hsm::Modules;

use super::status;
use crate::{
    client::Box as TheBox,
    notice::{self, Notice},
    output,
    signal::Signal,
    update::system::System,
};

/// How often the screen is made up anew; it is written only if it changed.
const REFRESH: Duration = Duration::from_secs(2);
/// Bytes of a line that somebody types.
const TYPED_BYTES_MAX: usize = 4096;
/// Clears the screen and goes to its upper left corner.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

#[derive(Args)]
pub(crate) struct Command {
    /// The folder with the notices of other services.
    #[arg(long, value_name = "FOLDER", default_value = "/run/sallyport-state")]
    state: PathBuf,
    /// The folder with what provisioning decided.
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/sallyport-settings")]
    settings: PathBuf,
    /// The folder in which the system says which modules it has for tokens.
    #[arg(long, value_name = "FOLDER", default_value = Modules::FOLDER)]
    modules: PathBuf,
    /// Print it once and end.
    #[arg(long)]
    once: bool,
    /// Show the notices only: neither server nor network are there yet.
    #[arg(long)]
    early: bool,
    /// End when this file is there.
    #[arg(long, value_name = "FILE")]
    until: Option<PathBuf>,
}

impl Command {
    pub(crate) fn run(self, the_box: &TheBox) -> anyhow::Result<()> {
        let mut shown = String::new();
        let mut remark = None;
        let mut given = Signal::default();
        let is_linux_console = std::env::var_os("TERM").is_some_and(|term| term == "linux");
        while !self.until.as_ref().is_some_and(|file| file.exists()) {
            let view = self.look(the_box);
            show_typing(!view.asking().is_some_and(|notice| notice.secret))?;
            let mut screen = view.text();
            if let Some(remark) = &remark {
                screen += &format!("\n{remark}\n");
            }
            if screen != shown {
                show(&screen, self.once)?;
                shown = screen;
            }
            if self.once {
                return Ok(());
            }
            let signal = Signal::of(&self.state);
            if signal != given {
                signal
                    .give(&mut io::stdout().lock(), is_linux_console)
                    .context("cannot write to the console")?;
                given = signal;
            }
            if let Some(line) = typed()? {
                remark = self.take(&view, &line);
                // What was typed stands on the screen: it is written again.
                shown.clear();
            }
        }
        show_typing(true)
    }

    fn look(&self, the_box: &TheBox) -> View {
        let provisioned = self.settings.join("sallyport.toml").exists();
        let state = match provisioned {
            _ if self.early => State::Early,
            false => State::Unprovisioned,
            true => match the_box.ask::<Status>(path::STATUS) {
                Ok(status) => State::Running(Box::new(status)),
                Err(error) => State::Silent(format!("{error:#}")),
            },
        };
        let mut addresses = ipv4(&fs::read_to_string("/proc/net/fib_trie").unwrap_or_default());
        addresses.extend(ipv6(&fs::read_to_string("/proc/net/if_inet6").unwrap_or_default()));
        let toys = Modules::new(&self.modules).for_tests();
        let toys = toys.iter().map(ToString::to_string).collect();
        View { version: version(), state, addresses, toys, notices: notice::all(&self.state) }
    }

    /// Gives a typed line to the first notice that asks; what is to be said of it.
    fn take(&self, view: &View, line: &str) -> Option<String> {
        let asking = view.asking()?;
        match notice::answer(&self.state, &asking.name, line.trim()) {
            Ok(()) => None,
            Err(error) => Some(format!("{error:#}")),
        }
    }
}

/// How the box is, as far as it can be seen from here.
enum State {
    Unprovisioned,
    Silent(String),
    Running(Box<Status>),
    Early,
}

/// What is on the screen.
struct View {
    version: String,
    state: State,
    addresses: Vec<String>,
    /// Kinds of tokens that the system was built for and that are none.
    toys: Vec<String>,
    notices: Vec<Notice>,
}

impl View {
    fn text(&self) -> String {
        let mut screen = format!("\n  SALLYPORT {}\n\n", self.version);
        let network = if self.addresses.is_empty() {
            "none: is the cable plugged in?".to_owned()
        } else {
            self.addresses.join("  ")
        };
        let rows = match &self.state {
            State::Unprovisioned => {
                screen += "  This box is not set up yet. Plug in the provisioning stick.\n\n";
                vec![("network", network)]
            }
            State::Early => {
                if self.notices.is_empty() {
                    screen += "  The box starts.\n";
                }
                vec![]
            }
            State::Silent(error) => {
                screen += "  The server starts, or does not answer.\n\n";
                vec![("network", network), ("error", notice::printable(error))]
            }
            State::Running(status) => running(status, network),
        };
        screen += &indented(&output::pairs(&rows));
        if let State::Running(status) = &self.state {
            for warning in &status.warnings {
                screen += &format!("\n  WARNING: {}\n", notice::printable(warning));
            }
        }
        if !self.toys.is_empty() {
            screen += &format!(
                "\n  WARNING: THIS SYSTEM TAKES TOKENS THAT ARE NONE ({}): whoever reads the disk has the keys. It is for tests.\n",
                self.toys.join(", ")
            );
        }
        // The question that the next line answers stands last.
        let asking = self.asking();
        let others = self.notices.iter().filter(|notice| Some(*notice) != asking);
        for Notice { title, lines, .. } in others.chain(asking) {
            screen += &format!("\n  {title}\n");
            screen += &lines.iter().map(|line| format!("    {line}\n")).collect::<String>();
        }
        if let Some(ask) = asking.and_then(|notice| notice.ask.as_ref()) {
            screen += &format!("    {ask} ");
        }
        screen
    }

    /// The first notice that asks: it gets what is typed.
    fn asking(&self) -> Option<&Notice> {
        self.notices.iter().find(|notice| notice.ask.is_some())
    }
}

fn running(status: &Status, network: String) -> Vec<(&'static str, String)> {
    let certificate = status.certificate.as_ref();
    let ca = certificate.and_then(|certificate| certificate.ca.as_ref());
    let until = certificate.and_then(|certificate| certificate.not_after);
    let mut pairs = vec![
        ("state", "open".to_owned()),
        ("enclave", status.server_name.to_string()),
        ("network", network),
        ("CA", ca.map_or_else(|| "none yet".to_owned(), |ca| format!("SHA-256 {}", ca.sha256))),
        (
            "certificate",
            until.map_or_else(
                || "none yet".to_owned(),
                |until| format!("valid until {}", output::time(until)),
            ),
        ),
    ];
    pairs.extend(status::token_pairs(&status.token));
    pairs.extend([
        (
            "accounts",
            format!(
                "{} active, {} not activated yet",
                status.accounts.active, status.accounts.waiting
            ),
        ),
        ("to be signed", format!("{} events", status.backlog.events)),
    ]);
    pairs
}

/// The version of the image; that of this program where there is none.
fn version() -> String {
    let release = System(PathBuf::from("/")).release();
    release.map_or_else(|_| env!("CARGO_PKG_VERSION").to_owned(), |it| it.version.to_string())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

fn show(screen: &str, once: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let start = if once { "" } else { CLEAR };
    out.write_all(format!("{start}{screen}").as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write to the console")
}

/// Whether the console shows what is typed.
fn show_typing(shown: bool) -> anyhow::Result<()> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Ok(());
    }
    let mut terminal = tcgetattr(&stdin).context("cannot look at the console")?;
    if terminal.local_flags.contains(LocalFlags::ECHO) != shown {
        terminal.local_flags.set(LocalFlags::ECHO, shown);
        // What was typed before the question is not its answer.
        tcsetattr(&stdin, SetArg::TCSAFLUSH, &terminal).context("cannot set the console up")?;
    }
    Ok(())
}

/// Waits a moment for a line from the keyboard.
fn typed() -> anyhow::Result<Option<String>> {
    let stdin = io::stdin();
    let timeout = PollTimeout::try_from(REFRESH).unwrap_or(PollTimeout::NONE);
    let mut waiting = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    if poll(&mut waiting, timeout).context("cannot wait for the keyboard")? == 0 {
        return Ok(None);
    }
    let mut line = vec![0; TYPED_BYTES_MAX];
    let read = nix::unistd::read(&stdin, &mut line).context("cannot read the keyboard")?;
    anyhow::ensure!(read > 0, "the console is closed");
    line.truncate(read);
    Ok(Some(String::from_utf8_lossy(&line).into_owned()))
}

/// The machine's own addresses in `/proc/net/fib_trie`, without loopback.
fn ipv4(trie: &str) -> Vec<String> {
    let mut found: Vec<Ipv4Addr> = Vec::new();
    let mut last = None;
    for line in trie.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse().ok();
        } else if line.starts_with("/32 host LOCAL") {
            found.extend(last.filter(|address: &Ipv4Addr| !address.is_loopback()));
        }
    }
    found.sort_unstable();
    found.dedup();
    found.iter().map(ToString::to_string).collect()
}

/// The machine's own addresses in `/proc/net/if_inet6` that others reach: neither loopback nor of one link only.
fn ipv6(table: &str) -> Vec<String> {
    const GLOBAL: &str = "00";
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter_map(|row| match *row.as_slice() {
        [address, _, _, GLOBAL, ..] => u128::from_str_radix(address, 16).ok(),
        _ => None,
    })
    .map(|address| Ipv6Addr::from(address).to_string())
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_found() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 10.0.2.15\n        /32 host LOCAL\n     \
                    |-- 127.0.0.1\n        /32 host LOCAL\nLocal:\n     |-- 10.0.2.15\n        /32 host LOCAL\n     |-- 10.0.2.255\n        /32 link BROADCAST\n";
        assert_eq!(ipv4(trie), ["10.0.2.15"]);
        let table = "fe80000000000000505400fffe123456 02 40 20 80     eth0\n\
                     fd000000000000000000000000000001 02 40 00 80     eth0\n\
                     00000000000000000000000000000001 01 80 10 80       lo\n";
        assert_eq!(ipv6(table), ["fd00::1"]);
        assert_eq!(ipv4("").len() + ipv6("").len(), 0);
    }

    #[test]
    fn a_new_box_says_what_to_do() {
        let view = View {
            version: "0.1.0".to_owned(),
            state: State::Unprovisioned,
            addresses: vec!["10.0.2.15".to_owned()],
            toys: vec!["softhsm".to_owned()],
            notices: vec![],
        };
        let text = view.text();
        assert!(text.contains("Plug in the provisioning stick"), "{text}");
        assert!(text.contains("network  10.0.2.15"), "{text}");
        assert!(text.contains("TOKENS THAT ARE NONE (softhsm)"), "{text}");
    }

    #[test]
    fn questions_stand_last_of_their_notice() {
        let notice = Notice {
            name: "key".to_owned(),
            title: "Write this down".to_owned(),
            lines: vec!["abc".to_owned()],
            ask: Some("Last word:".to_owned()),
            secret: false,
        };
        let other = Notice {
            name: "stick".to_owned(),
            title: "Stick".to_owned(),
            lines: vec!["read".to_owned()],
            ask: Some("Later:".to_owned()),
            secret: true,
        };
        let view = View {
            version: "0.1.0".to_owned(),
            state: State::Silent("no socket".to_owned()),
            addresses: vec![],
            toys: vec![],
            notices: vec![notice, other],
        };
        let text = view.text();
        assert!(text.contains("  Stick\n    read\n") && !text.contains("Later"), "{text}");
        assert!(text.ends_with("  Write this down\n    abc\n    Last word: "), "{text}");
        assert!(text.contains("error    no socket"), "{text}");
    }

    #[test]
    fn an_early_console_has_notices_only() {
        let view = View {
            version: "0.1.0".to_owned(),
            state: State::Early,
            addresses: vec![],
            toys: vec![],
            notices: vec![],
        };
        assert!(view.text().ends_with("The box starts.\n"), "{}", view.text());
    }
}
