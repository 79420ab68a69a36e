//! An officer approves what leaves and enters the enclave, by the commands that the box prints.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use sallyport_e2e::{desk::Desk, enclave::Enclave};

/// Does what the box asks for in the refusal of a command: types what stands between the backticks, with the officer's own token.
fn approve(desk: &Desk, refusal: &str, bundle: &str, approval: &str) -> Result<()> {
    let command = refusal.split('`').nth(1).context("no command in the refusal")?;
    let mut words: Vec<&str> = command.split(' ').skip(1).collect();
    for word in &mut words {
        *word = match *word {
            "TOKEN" => "officer.toml",
            "APPROVAL" => approval,
            "BUNDLE" => bundle,
            other => other,
        };
    }
    words.push("--allow-software-keys");
    desk.sallyctl(&words).map(drop)
}

#[test]
fn bundles_travel_once_an_officer_of_each_side_approves() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (alpha, bravo) = Enclave::paired(folder.path(), "1")?;

    for number in ["1", "2"] {
        let bundle = format!("{number}.bundle");
        let steps: [(&Desk, Vec<&str>); 2] = [
            (alpha.desk(), vec!["bundle", "export", "bravo.example", "--out", &bundle]),
            (bravo.desk(), vec!["bundle", "import", &bundle]),
        ];
        for (desk, command) in steps {
            let refusal = desk.sallyctl(&command).err().context("done without an approval")?;
            let approval = format!("{}-{number}.approval", command[1]);
            approve(desk, &refusal.to_string(), &bundle, &approval)?;
            if number == "2" {
                let old = format!("{}-1.approval", command[1]);
                let with_old = [&command[..], &["--approval", &old]].concat();
                let refusal =
                    desk.sallyctl(&with_old).err().context("done with an old approval")?;
                ensure!(refusal.to_string().contains("approval 1 does not count"), "{refusal}");
            }
            desk.sallyctl(&[&command[..], &["--approval", &approval]].concat())?;
            if command[1] == "export" {
                fs::copy(alpha.desk().path(&bundle), bravo.desk().path(&bundle))?;
            }
        }
    }
    for desk in [alpha.desk(), bravo.desk()] {
        desk.sallyctl(&["audit", "verify"])?;
        let log: serde_json::Value =
            serde_json::from_str(&desk.sallyctl(&["audit", "show", "--json"])?)?;
        let rows = log.as_array().context("no rows")?;
        let approved = rows.iter().filter(|row| {
            row["action"].as_str().is_some_and(|action| action.starts_with("bundle."))
                && row["approvals"].as_array().is_some_and(|officers| officers.len() == 1)
        });
        ensure!(approved.count() >= 2, "{log}");
    }
    Ok(())
}
