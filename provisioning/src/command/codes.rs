//! `sallyctl codes`: the slips that people get in their hands.

use std::{io::Write as _, path::PathBuf};

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use sallyport_core::{
    admin::{CodesRequest, IssuedCode, path},
    limits::ROSTER_BYTES_MAX,
    roster::{Date, Localpart},
};

use crate::{client::Box as TheBox, files, output::Output};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Print slips to cut apart and hand over in person, from a file of codes.
    Print {
        /// The file that `roster import` or `codes renew` wrote.
        file: PathBuf,
        /// The address that people open in a browser to use their code.
        #[arg(long, value_name = "URL")]
        url: Option<String>,
    },
    /// Make new codes, for slips that were lost or have expired, or for a forgotten password. The old ones end at once.
    Renew {
        /// The accounts, by the part of the user id before the colon.
        #[arg(value_name = "LOCALPART", required_unless_present = "all_waiting")]
        localparts: Vec<Localpart>,
        /// All active accounts that nobody has activated yet.
        #[arg(long)]
        all_waiting: bool,
        /// Where to write the codes.
        #[arg(long, value_name = "FILE")]
        codes: PathBuf,
    },
}

impl Command {
    pub(crate) fn run(self, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
        match self {
            Self::Print { file, url } => {
                let bytes = files::read(&file, ROSTER_BYTES_MAX)?;
                let codes: Vec<IssuedCode> = serde_json::from_slice(&bytes)
                    .with_context(|| format!("{} is not a file of codes", file.display()))?;
                ensure!(!codes.is_empty(), "{} has no codes", file.display());
                let slips = codes.iter().map(|code| slip(code, url.as_deref()));
                out.raw(&slips.collect::<String>())
            }
            Self::Renew { localparts, all_waiting, codes } => {
                let mut file = files::create_secret(&codes)?;
                let wish = CodesRequest { localparts, all_waiting };
                let issued: anyhow::Result<Vec<IssuedCode>> =
                    the_box.command(path::ACTIVATION_CODES, &wish);
                if issued.is_err() {
                    std::fs::remove_file(&codes)
                        .context("cannot remove the empty file of codes")?;
                }
                let issued = issued?;
                let json = serde_json::to_vec_pretty(&issued).context("cannot write the codes")?;
                file.write_all(&json).and_then(|()| file.sync_all()).with_context(|| {
                    format!("cannot write {}: renew the codes again", codes.display())
                })?;
                let (count, shown) = (issued.len(), codes.display());
                out.note(&format!("{count} new activation codes are in {shown}."))
            }
        }
    }
}

/// One slip. Nothing on it needs more than a plain printer.
fn slip(code: &IssuedCode, url: Option<&str>) -> String {
    let lines = [
        ("Account", Some(code.user_id.as_str())),
        ("Name", code.display_name.as_deref()),
        ("Unit", code.unit.as_deref()),
        ("Code", Some(code.code.as_str())),
    ];
    let mut text = "- - - - - - - - - - - - - - - - - - - - - - - - - - - - - -\n\n".to_owned();
    for (name, value) in lines {
        if let Some(value) = value {
            text.push_str(&format!("  {name:7}  {value}\n"));
        }
    }
    let place = url.map_or_else(|| "the activation page".to_owned(), str::to_owned);
    let last_day = Date::of(code.expires_at);
    text.push_str(&format!(
        "\n  Open {place}, type the code and choose a password.\n  \
         It works once, and before {last_day}. Show it to nobody.\n\n"
    ));
    text
}
