//! Officers approve what enters and leaves the enclave, as many as its card says.

use std::{fs, sync::Arc};

use axum::Router;
use http::{Method, StatusCode};
use ruma::server_name;
use sallyport::{app::App, http::admin_router, service::peers};
use sallyport_core::{
    admin::{Approval, BundleImported, Consent, ErrorBody, ErrorCode, path},
    card::Proposed,
    digest::Sha256,
};

use crate::{
    bundles::{Enclave, NOW, bare_enclave, order},
    commands::{Command, EXPORT, log},
};

/// Alpha, whose card wants two officers for an export and one for an import, and bravo, whose card wants none.
fn strict_pair() -> (Enclave, Enclave, Router) {
    let (alpha, bravo) = (bare_enclave("alpha.test", 2, 1), bare_enclave("bravo.test", 0, 0));
    for (own, other) in [(&alpha, &bravo), (&bravo, &alpha)] {
        peers::install_own_card(&own.app, own.card.clone(), &order()).unwrap();
        own.pair(other);
    }
    let router = admin_router(Arc::clone(&alpha.app));
    (alpha, bravo, router)
}

fn to_export(app: &App, number: u64) -> Consent {
    let incarnation = app.store.read(|read| read.incarnation()).unwrap();
    let (ours, peer) = (app.config.server_name.clone(), server_name!("bravo.test"));
    Consent::to_export(ours, incarnation, peer, number)
}

/// What the box says to a command that is not approved; nothing but a row that says so is left of it.
async fn refused(router: &Router, app: &App, command: Command) -> String {
    let peer = || app.store.read(|read| read.peer(server_name!("bravo.test"))).unwrap();
    let (before, rows) = (peer(), log(app).len());
    let (status, body) = command.give(router, Some("alice")).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{}", String::from_utf8_lossy(&body));
    let ErrorBody { code, error } = serde_json::from_slice(&body).unwrap();
    assert_eq!((code, peer()), (ErrorCode::NeedsApproval, before));
    let left = log(app).split_off(rows);
    assert_eq!(left.len(), 1);
    assert!(left[0].entry.action.ends_with(".failed") && left[0].entry.approvals.is_empty());
    error
}

/// What the box says to a command that it does not carry out whoever approves.
async fn impossible(router: &Router, command: Command) -> String {
    let (status, body) = command.give(router, Some("alice")).await;
    assert_eq!(status, StatusCode::CONFLICT, "{}", String::from_utf8_lossy(&body));
    serde_json::from_slice::<ErrorBody>(&body).unwrap().error
}

async fn done(router: &Router, command: Command) -> Vec<u8> {
    let (status, body) = command.give(router, Some("alice")).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    body
}

#[tokio::test]
async fn an_export_needs_two_officers() {
    let (alpha, bravo, router) = strict_pair();
    let (app, officers) = (&alpha.app, &alpha.officers);
    let first = to_export(app, 1);
    let by = |who: &[usize]| -> Vec<Approval> {
        who.iter().map(|officer| officers.approve(*officer, &first)).collect()
    };
    let export = |approvals| Command::post(EXPORT, b"").approved(approvals);

    let error = refused(&router, app, export(vec![])).await;
    let incarnation = app.store.read(|read| read.incarnation()).unwrap();
    let says = format!(
        "too few officers approved the export of bundle 1 for bravo.test (2 needed, 0 given, 2 missing): each of those missing runs \
         `sallyctl approve export bravo.test --enclave alpha.test --incarnation {incarnation} --number 1 --token TOKEN --out APPROVAL`"
    );
    assert!(error.starts_with(&says), "{error}");
    // The same officer twice is one officer.
    for approvals in [by(&[0]), by(&[1, 1])] {
        let error = refused(&router, app, export(approvals)).await;
        assert!(error.contains("(2 needed, 1 given, 1 missing)"), "{error}");
    }
    // A third one who is no officer here spoils the command, although two are enough.
    let mut strangers = by(&[0, 1]);
    strangers.push(bravo.officers.approve(0, &first));
    let error = refused(&router, app, export(strangers)).await;
    assert!(error.starts_with("approval 3 does not count: it is signed with the key"), "{error}");
    let to_import = Consent { action: Consent::IMPORT.to_owned(), ..first.clone() };
    let other = vec![officers.approve(0, &to_import), officers.approve(1, &first)];
    let error = refused(&router, app, export(other)).await;
    assert!(error.starts_with("approval 1 does not count: it is for bundle.import of"), "{error}");

    done(&router, export(by(&[0, 1]))).await;
    let row = log(app).pop().unwrap().entry;
    let mut both = vec![officers.id(0), officers.id(1)];
    both.sort();
    assert_eq!((row.action.as_str(), row.approvals), ("bundle.export", both));

    // The approvals of the first bundle are none of the second.
    let error = refused(&router, app, export(by(&[0, 1]))).await;
    let second = to_export(app, 2);
    let says =
        format!("approval 1 does not count: it is for {first}, and this command is {second}");
    assert_eq!(error, says);
    let again = [0, 1].map(|officer| officers.approve(officer, &second));
    done(&router, export(again.into())).await;
}

#[tokio::test]
async fn an_import_needs_an_officer_who_saw_the_file() {
    let (alpha, bravo, router) = strict_pair();
    let (app, officers) = (&alpha.app, &alpha.officers);
    let bundle = fs::read(bravo.export(&alpha)).unwrap();
    let other = fs::read(bravo.export(&alpha)).unwrap();
    let approval = |bundle: &[u8]| {
        let ours = app.config.server_name.clone();
        vec![officers.approve(0, &Consent::to_import(ours, Sha256::of(bundle)))]
    };
    let import = |approvals| Command::post(path::BUNDLES_IMPORT, &bundle).approved(approvals);

    let error = refused(&router, app, import(vec![])).await;
    let hash = Sha256::of(&bundle);
    let says = format!(
        "too few officers approved the import of bundle 1 of bravo.test, SHA-256 {hash} (1 needed, 0 given, 1 missing): each \
         of those missing runs `sallyctl approve import BUNDLE --token TOKEN --out APPROVAL`"
    );
    assert!(error.starts_with(&says), "{error}");
    let error = refused(&router, app, import(approval(&other))).await;
    assert!(error.starts_with("approval 1 does not count: it is for bundle.import of"), "{error}");

    done(&router, import(approval(&bundle))).await;
    let rows = log(app).into_iter().rev().map(|row| row.entry);
    for (entry, action) in rows.zip(["bundle.imported", "bundle.import"]) {
        assert_eq!((entry.action.as_str(), entry.approvals), (action, vec![officers.id(0)]));
    }
    // Nothing changes the second time, so nobody need approve it.
    let again: BundleImported =
        serde_json::from_slice(&done(&router, import(vec![])).await).unwrap();
    assert!(again.known);
}

#[tokio::test]
async fn what_nobody_approves_is_not_given_with_approvals() {
    let (alpha, _, router) = strict_pair();
    let (app, officers) = (&alpha.app, &alpha.officers);
    let approvals = vec![officers.approve(0, &to_export(app, 1))];
    for (path, body) in [
        (path::CLOCK_ACCEPT, ""),
        (path::TOKEN_UNLOCK, r#"{"pin":"1234"}"#),
        (path::ACTIVATION_CODES, r#"{"all_waiting":true}"#),
    ] {
        let command = Command::post(path, body.as_bytes()).approved(approvals.clone());
        let error = refused(&router, app, command).await;
        assert!(error.starts_with("this command is one that nobody approves"), "{path}: {error}");
    }
}

#[tokio::test]
async fn without_a_card_of_its_own_a_box_imports_nothing() {
    let (alpha, bravo) = (bare_enclave("alpha.test", 0, 0), bare_enclave("bravo.test", 0, 0));
    peers::install_own_card(&bravo.app, bravo.card.clone(), &order()).unwrap();
    alpha.pair(&bravo);
    bravo.pair(&alpha);
    let bundle = fs::read(bravo.export(&alpha)).unwrap();
    let router = admin_router(Arc::clone(&alpha.app));
    let import = Command::post(path::BUNDLES_IMPORT, &bundle);
    let error = impossible(&router, import).await;
    assert!(error.starts_with("the box has no card of its own"), "{error}");
}

/// Else whoever gives commands would sign a card that asks nobody, or take a peer's name for a key of their own.
#[tokio::test]
async fn another_root_key_needs_officers() {
    let (alpha, bravo, router) = strict_pair();
    let (app, officers) = (&alpha.app, &alpha.officers);
    let install = |card: &[u8]| Command::new(Method::PUT, path::CARD, card);
    let both = |consent: &Consent| [0, 1].map(|officer| officers.approve(officer, consent)).into();
    let ours = || app.config.server_name.clone();

    let lax = alpha.issue("forged", 9, (0, 0));
    let error = refused(&router, app, install(&lax)).await;
    assert!(error.starts_with("too few officers approved a card of alpha.test with another root key (2 needed, 0 given"), "{error}");
    // The enclave's root decides alone, with a newer card, and as long as there are so many officers.
    let error = impossible(&router, install(&alpha.issue("safe", 2, (3, 1)))).await;
    assert!(error.starts_with("the card wants the approval of 3 officers"), "{error}");
    let renewed = alpha.issue("safe", 2, (2, 2));
    done(&router, install(&renewed)).await;
    let error = impossible(&router, install(&alpha.card)).await;
    assert!(error.contains("the card has serial 1, but serial 2 is already known"), "{error}");
    let approved = install(&lax).approved(both(&Consent::to_own_card(ours(), Sha256::of(&lax))));
    done(&router, approved).await;

    // A card that asks for nobody's approval is not enough for another bravo: one officer at least.
    let stranger = bravo.issue("forged", 9, (0, 0));
    let pair = |card: &[u8]| {
        let words = Proposed::parse(card, NOW).unwrap().fingerprint().words();
        Command::post(path::PEERS, card).fingerprint(words)
    };
    let error = refused(&router, app, pair(&stranger)).await;
    assert!(error.starts_with("too few officers approved a card of bravo.test with another root key (1 needed, 0 given"), "{error}");
    done(&router, pair(&bravo.issue("safe", 2, (0, 0)))).await;
    let consent = Consent::to_pairing(ours(), Sha256::of(&stranger));
    done(&router, pair(&stranger).approved(both(&consent))).await;
}
