//! Speed and size of a box: `make bench`, or `make bench ONLY="send memory"`.
//!
//! With `PEER=127.0.0.1:8008` the same messages also go to another homeserver with open registration, so that both stand in one table.

#![expect(
    clippy::indexing_slicing,
    reason = "reading a field that a JSON value does not have gives null"
)]

mod exchange;
mod load;
mod scenes;
mod signing;
mod table;
mod token;

use std::{env, net::SocketAddr, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};

use scenes::Scene;
use table::Table;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("bench: a target was missed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    if let [measure, folder] = arguments.as_slice()
        && measure == token::MEASURE
    {
        return token::measure(Path::new(folder)).map(|()| true);
    }
    let only = env::var("ONLY").unwrap_or_default();
    let wanted: Vec<&str> = only.split_whitespace().collect();
    let peer: Option<SocketAddr> = env::var("PEER")
        .ok()
        .filter(|text| !text.is_empty())
        .map(|text| text.parse().context("PEER is an address and a port"))
        .transpose()?;
    let mut table = Table::default();
    table.about_the_machine()?;
    for scene in Scene::ALL {
        if wanted.is_empty() || wanted.contains(&scene.name) {
            eprintln!("bench: {} ...", scene.what);
            (scene.run)(&mut table, peer).context(scene.what)?;
        }
    }
    print!("{table}");
    Ok(table.all_met())
}
