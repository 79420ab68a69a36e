//! Pairing by sticks: nobody is at the box to hear a fingerprint, so officers approve cards at their desks.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use sallyport_e2e::{
    desk::Desk,
    enclave::Enclave,
    medium::{self, Medium},
};

use crate::sticks::{provisioned, strs, visit};

const OFFICER: [&str; 3] = ["--token", "officer.toml", "--allow-software-keys"];

fn approve(desk: &Desk, what: &[&str], out: &str) -> Result<String> {
    desk.sallyctl(&[&["approve"], what, &OFFICER, &["--out", out]].concat())
}

/// Has the enclave root sign what the box put onto the stick.
fn sign_card(desk: &Desk, hash: &str) -> Result<()> {
    let terms = ["--name", "alpha", "--serial", "1", "--out", "alpha.card"];
    let root = ["--token", "root.toml", "--allow-software-keys", "--request-hash", hash];
    desk.sallyctl(&[&["ceremony", "sign-card", "card.request"], &root[..], &terms[..]].concat())?;
    Ok(())
}

#[test]
fn cards_on_a_stick_count_once_officers_approved_them() -> Result<()> {
    if !medium::can_be_made() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let alpha = Enclave::with_officer("alpha", folder.path())?;
    let bravo = Enclave::with_officer("bravo", folder.path())?;
    provisioned(&alpha)?;
    bravo.desk().issue_card()?;
    let desk = alpha.desk();
    let stick = Medium::fat32(&folder.path().join("stick"), &["CARDS", "OUT"])?;
    let arguments = visit(&alpha, stick.path(), &[])?;
    let at_the_box = || desk.sallyctl(&strs(&arguments));

    fs::write(
        desk.path("keys.order"),
        "enclave = \"alpha.example\"\ncard_request = true\nca = true\n",
    )?;
    stick.put(&desk.path("keys.order"), "OUT", "keys.order")?;
    let said = at_the_box()?;
    let hash = said
        .lines()
        .find_map(|line| line.strip_prefix("SHA-256 of card.request, to be brought on paper: "));
    stick.take("OUT", "card.request", &desk.path("card.request"))?;
    sign_card(desk, hash.with_context(|| format!("no hash in {said}"))?)?;
    ensure!(stick.text("OUT", "ca.pem")? == fs::read_to_string(alpha.authority())?);
    stick.remove("OUT", "keys.order")?;

    fs::copy(bravo.desk().path("bravo.card"), desk.path("bravo.card"))?;
    stick.put(&desk.path("bravo.card"), "CARDS", "bravo.snc")?;
    stick.put(&desk.path("alpha.card"), "CARDS", "ours.snc")?;
    let refusal = at_the_box().err().context("taken without approvals")?.to_string();
    ensure!(refusal.contains("something on the stick was refused"), "{refusal}");
    let result = stick.text("RESULT", "RESULT-002.txt")?;
    for refused in ["card 1 of alpha.example", "card 1 of bravo.example"] {
        ensure!(result.contains(&format!("too few officers approved {refused}")), "{result}");
    }
    ensure!(!desk.sallyctl(&["peer", "list"])?.contains("bravo"), "paired without an approval");

    // An officer who heard another fingerprint signs nothing.
    let (heard, other) = (bravo.desk().fingerprint("bravo.card")?, desk.fingerprint("alpha.card")?);
    let pairing =
        |words| ["peer", "bravo.card", "--enclave", "alpha.example", "--fingerprint", words];
    let refusal = approve(desk, &pairing(&other), "peer.approval").err();
    let refusal = refusal.context("approved although the fingerprint is another")?;
    ensure!(refusal.to_string().contains("fingerprint"), "{refusal}");
    approve(desk, &pairing(&heard), "peer.approval")?;
    stick.put(&desk.path("peer.approval"), "CARDS", "peer.approval")?;
    ensure!(at_the_box().is_err(), "the own card was taken without an approval");
    ensure!(desk.sallyctl(&["peer", "list"])?.contains("bravo.example"));
    approve(desk, &["card", "alpha.card"], "card.approval")?;
    stick.put(&desk.path("card.approval"), "CARDS", "card.approval")?;
    let said = at_the_box()?;
    ensure!(said.contains("CARDS/ours.snc: card 1 of this box is installed"), "{said}");
    ensure!(said.contains("CARDS/bravo.snc: left alone, card 1 is in force"), "{said}");
    let said = at_the_box()?;
    ensure!(said.contains("CARDS/ours.snc: left alone, card 1 is in force"), "{said}");
    desk.sallyctl(&["audit", "verify"])?;
    Ok(())
}
