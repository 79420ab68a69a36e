//! What officers sign for a command that somebody else gives.

use ruma::{owned_server_name, server_name};
use sallyport_core::{
    admin::{Approval, Consent, verify},
    digest::Sha256,
    incarnation::Incarnation,
    roster::signed::RosterFile,
    sign::PublicKey,
};

use crate::desk::Desk;

const BUNDLE: &[u8] = include_bytes!("fixtures/some.bundle");
const OFFICER: &str = "--token token.toml --allow-software-keys --out";

/// The desk of an officer, with a signed roster and a bundle.
fn desk() -> (Desk, PublicKey) {
    let desk = Desk::new();
    let officer = desk.officer().parse().unwrap();
    desk.write("list.csv", "localpart\nalice\n");
    desk.run("roster make list.csv --enclave alpha.example --serial 7 --out made.json").ok();
    desk.run(&format!("roster sign made.json {OFFICER} signed.roster")).ok();
    desk.write("some.bundle", BUNDLE);
    (desk, officer)
}

fn approval(desk: &Desk, file: &str) -> Approval {
    Approval::from_text(&String::from_utf8(desk.read(file)).unwrap())
}

/// One command for all approvals; each is for just what the box asks for.
#[test]
fn approvals_are_what_the_box_wants() {
    let (desk, officer) = desk();
    let roster = desk.read("signed.roster");
    let roster = RosterFile::parse(&roster).unwrap().subject();
    let inspected = desk.run("bundle inspect some.bundle --json").ok();
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    let hash = Sha256::of(BUNDLE);
    assert_eq!(inspected["sha256"], hash.to_string());
    let (from, to) = (inspected["from"].as_str().unwrap(), inspected["to"].as_str().unwrap());
    let number = &inspected["sequence"];

    let ours = || owned_server_name!("alpha.example");
    let life = "000102030405060708090a0b0c0d0e0f".parse::<Incarnation>().unwrap();
    let bravo = server_name!("bravo.example");
    let table = [
        (
            "roster signed.roster".to_owned(),
            Consent::to_mass_lock(ours(), roster),
            "Approved: roster 7 may lock unusually many accounts.\n".to_owned(),
        ),
        (
            format!("export bravo.example --enclave alpha.example --incarnation {life} --number 3"),
            Consent::to_export(ours(), life, bravo, 3),
            "Approved: bundle 3 of alpha.example for bravo.example may be exported.\n".to_owned(),
        ),
        (
            "import some.bundle".to_owned(),
            Consent::to_import(to.try_into().unwrap(), hash),
            format!(
                "Approved: bundle {number} of {from} for {to} may be imported. Its SHA-256 is\n{hash}\n"
            ),
        ),
    ];
    for (line, consent, says) in table {
        let out = consent.action.replace('.', "-");
        assert_eq!(desk.run(&format!("approve {line} {OFFICER} {out}")).ok(), says);
        let approvers =
            verify(&[approval(&desk, &out)], std::slice::from_ref(&officer), None, &consent);
        assert_eq!(approvers.unwrap().names().len(), 1, "{line}");
        // An approval is not replaced by another.
        desk.run(&format!("approve {line} {OFFICER} {out}")).fails(1, "is not replaced");
    }
    desk.run(&format!("approve roster made.json {OFFICER} x")).fails(1, "is not a signed roster");
    desk.run(&format!("approve import made.json {OFFICER} x")).fails(1, "is not a bundle");
    desk.run(&format!(
        "approve peer made.json --fingerprint x --enclave alpha.example {OFFICER} x"
    ))
    .fails(1, "not a pairing card");
}

#[test]
fn an_approval_for_nothing_on_the_stick_is_pointed_out() {
    let (desk, _) = desk();
    std::fs::create_dir(desk.path("stick")).unwrap();
    desk.run("stick write stick --roster signed.roster").ok();
    desk.run(&format!("approve import some.bundle {OFFICER} approval")).ok();
    desk.run("stick import stick --codes . --approval approval")
        .fails(1, "approval is for bundle.import of");
    desk.write("approval2", "not an approval");
    desk.run("stick import stick --codes . --approval approval2")
        .fails(1, "approval2 is not an approval, or damaged");
    // With the bundle on the stick there is somebody to ask.
    desk.run("stick write stick --bundle some.bundle").ok();
    desk.run("stick import stick --codes . --approval approval").fails(3, "does not answer");
}
