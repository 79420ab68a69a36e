//! Keys of the box are replaced, handed over and destroyed, and peers go on.

use std::{fs, path::Path, sync::Arc, time::Duration};

use ruma::{OwnedRoomId, server_name};
use sallyport::{
    app::App,
    config::Config,
    service::{
        audit, bundle,
        bundle::{export::export, import::import},
        hybrid,
        order::Order,
        own_keys, peers,
        rotation::{self, Error},
        signer,
    },
    shutdown,
};
use sallyport_core::{
    admin::{Approval, Consent, KeyAction, KeyOrder, KeyReport, KeyState, NewKey},
    audit::{Tip, Vouched, verify},
    bundle::unverified_header,
    card::{Card, EncryptionSuite},
    digest::Sha256,
    sign::{KeyRole, Policy},
    time::Millis,
};
use sallyport_hsm::{KeyKind, SoftwareToken, Token as _};
use sallyport_store::OwnKey;

use crate::bundles::{ALICE, Enclave, NOW, enclave, message, order, shared_room};

fn minutes(minutes: u64) -> Millis {
    NOW.plus(Duration::from_secs(60 * minutes))
}

fn at(now: Millis) -> Order {
    Order { now, ..order() }
}

fn wish(action: KeyAction) -> KeyOrder {
    KeyOrder { action, old_is_lost: false, plan: false }
}

fn rotate(enclave: &Enclave, role: KeyRole, now: Millis) -> Result<KeyReport, Error> {
    rotation::carry_out(&enclave.app, &wish(KeyAction::Rotate { role }), &at(now))
}

fn keys(enclave: &Enclave, role: KeyRole) -> Vec<OwnKey> {
    enclave.app.store.read(|read| read.own_keys(role.as_str())).unwrap()
}

fn actions(enclave: &Enclave) -> Vec<String> {
    let rows = enclave.app.store.read(|read| read.audit_rows(0, 1000)).unwrap();
    rows.into_iter().map(|row| row.entry.action).collect()
}

/// Carries a bundle from one to the other at a time.
fn carry(from: &Enclave, to: &Enclave, now: Millis) {
    let made = export(&from.app, &to.app.config.server_name, &at(now)).unwrap();
    take(to, &made.path, now).unwrap();
}

fn take(to: &Enclave, bundle: &Path, now: Millis) -> Result<(), bundle::Error> {
    let hash = Sha256::of(&fs::read(bundle).unwrap());
    import(&to.app, bundle, hash, &at(now)).map(drop)
}

fn pair() -> (Enclave, Enclave) {
    let (alpha, bravo) = (enclave("alpha.test"), enclave("bravo.test"));
    alpha.pair(&bravo);
    bravo.pair(&alpha);
    (alpha, bravo)
}

fn sign_waiting(enclave: &Enclave) {
    let token = enclave.app.token.clone().unwrap();
    signer::sign_pending(&enclave.app, &*token, || false).unwrap();
}

fn signer_of(enclave: &Enclave, room_id: &OwnedRoomId, body: &str) -> String {
    enclave
        .app
        .store
        .read(|read| {
            let room = read.room(room_id)?.unwrap();
            let all = read.signed_events(
                &room,
                i64::MIN,
                i64::MAX,
                (server_name!("nobody.test"), None),
                100,
            )?;
            let event = all.into_iter().find(|(_, signed)| {
                signed.pdu().content_field::<String>("body").as_deref() == Some(body)
            });
            let signatures = event.unwrap().1.signatures().clone();
            let keys = signatures.into_values().next().unwrap();
            Ok::<_, sallyport_store::Error>(keys.into_keys().next().unwrap().to_string())
        })
        .unwrap()
}

#[test]
fn an_event_key_signs_what_waits_and_peers_accept_events_of_before_and_after() {
    let (alpha, bravo) = pair();
    let room_id = shared_room(&alpha);
    alpha.send(&room_id, message(ALICE, "before"));
    let old = own_keys::required(&alpha.app.store, KeyRole::Event).unwrap();
    let report = rotate(&alpha, KeyRole::Event, minutes(1)).unwrap();
    assert_eq!(report.ended[0].name, old.name.to_string());
    let all = keys(&alpha, KeyRole::Event);
    assert_eq!(all[0].name, report.made[0].name);
    assert_eq!((all[1].retired, all[1].destroyed), (Some(minutes(1)), None));
    assert_eq!(alpha.app.store.read(|read| read.backlog()).unwrap().events, 0, "drained");

    alpha.send(&room_id, message(ALICE, "after"));
    carry(&alpha, &bravo, minutes(2));
    assert_eq!(bravo.bodies(&room_id), ["before", "after"]);
    let key_id = |name: &str| name.replace("event:", "ed25519:");
    assert_eq!(signer_of(&bravo, &room_id, "before"), key_id(&all[1].name));
    assert_eq!(signer_of(&bravo, &room_id, "after"), key_id(&all[0].name));
    // What the old key signed is told before the row that replaces it.
    let actions = actions(&alpha);
    let place = |action| actions.iter().position(|found| found == action).unwrap();
    assert!(place("events.sign") < place("key.rotate"), "{actions:?}");
}

#[test]
fn a_retired_event_key_was_valid_for_everything_it_signed_whatever_the_clock_said() {
    let (alpha, _) = pair();
    let room_id = shared_room(&alpha);
    alpha.send(&room_id, message(ALICE, "dated in the future by a wrong clock"));
    // The box's clock was right again, and earlier, when the key was replaced.
    rotate(&alpha, KeyRole::Event, Millis(NOW.0 - 60_000)).unwrap();
    let retired = keys(&alpha, KeyRole::Event)[1].retired;
    assert_eq!(retired, Some(Millis(NOW.0 + 1)));
}

#[test]
fn the_successor_of_a_lost_event_key_signs_what_waits() {
    let (alpha, bravo) = pair();
    let room_id = shared_room(&alpha);
    alpha.send(&room_id, message(ALICE, "signed"));
    sign_waiting(&alpha);
    alpha.send(&room_id, message(ALICE, "waiting"));
    let old = own_keys::required(&alpha.app.store, KeyRole::Event).unwrap();
    alpha.app.token.as_ref().unwrap().destroy(&old.name).unwrap();

    let refused = rotate(&alpha, KeyRole::Event, minutes(1)).unwrap_err();
    assert!(refused.to_string().contains("--old-key-is-lost"), "{refused}");
    assert_eq!(keys(&alpha, KeyRole::Event).len(), 1, "nothing has changed");
    let of_role = alpha.app.token.as_ref().unwrap().keys().unwrap();
    assert!(of_role.iter().all(|name| name.role() != KeyRole::Event), "no key is left over");

    let lost = KeyOrder { old_is_lost: true, ..wish(KeyAction::Rotate { role: KeyRole::Event }) };
    let plan = rotation::plan(&alpha.app, &lost).unwrap();
    assert!(plan.steps.iter().any(|step| step.contains("sign the 1 events")), "{:?}", plan.steps);
    rotation::carry_out(&alpha.app, &lost, &at(minutes(1))).unwrap();
    assert_eq!(keys(&alpha, KeyRole::Event)[1].destroyed, Some(minutes(1)));
    carry(&alpha, &bravo, minutes(2));
    assert_eq!(bravo.bodies(&room_id), ["signed", "waiting"]);
    let rows = alpha.app.store.read(|read| read.audit_rows(0, 1000)).unwrap();
    let row = rows.iter().find(|row| row.entry.action == "key.rotate").unwrap();
    assert_eq!(row.entry.details["old_key_is_lost"], "true");
}

/// A second card for the keys as they are, which follows the one that is installed.
fn renew_card(enclave: &Enclave, now: Millis) -> Vec<u8> {
    let card = enclave.issue("safe", 2, (0, 0));
    peers::install_own_card(&enclave.app, card.clone(), &at(now)).unwrap();
    card
}

#[test]
fn courier_keys_change_without_a_meeting_and_the_old_encryption_key_is_destroyed() {
    let (alpha, bravo) = pair();
    let room_id = shared_room(&alpha);
    carry(&alpha, &bravo, minutes(1));
    // On its way while the keys change.
    let late = export(&bravo.app, server_name!("alpha.test"), &at(minutes(1))).unwrap().path;
    for role in [KeyRole::Courier, KeyRole::CourierEncryption] {
        rotate(&alpha, role, minutes(2)).unwrap();
    }
    let token = alpha.app.token.clone().unwrap();
    let tidy = |now| rotation::destroy_superseded(&alpha.app, &*token, now).unwrap();
    let old = keys(&alpha, KeyRole::CourierEncryption)[1].clone();
    let hybrid = alpha.app.store.read(|read| read.hybrid_key(&old.name)).unwrap().unwrap();
    let header = unverified_header(fs::File::open(&late).unwrap()).unwrap();
    assert_eq!(header.suite, EncryptionSuite::XWingHkdfSha256Aes256Gcm.code());
    let gone = || keys(&alpha, KeyRole::CourierEncryption)[1].destroyed.is_some();
    tidy(minutes(3));
    assert!(!gone(), "the card does not name the new key yet");

    // Before the card is there, everything goes on with the old keys; then bundles carry it.
    alpha.send(&room_id, message(ALICE, "under the old card"));
    carry(&alpha, &bravo, minutes(3));
    let card = renew_card(&alpha, minutes(4));
    tidy(minutes(5));
    assert!(!gone(), "bravo does not have the card yet");
    alpha.send(&room_id, message(ALICE, "with the new card"));
    carry(&alpha, &bravo, minutes(5));
    let known = bravo.app.store.read(|read| read.peer(server_name!("alpha.test"))).unwrap();
    assert_eq!(known.unwrap().card, card);
    assert!(actions(&bravo).contains(&"peer.renew".to_owned()));

    // The old key still opens what bravo made before; then bravo's answer is for the new one, and acknowledges the card.
    take(&alpha, &late, minutes(6)).unwrap();
    carry(&bravo, &alpha, minutes(6));
    tidy(minutes(7));
    assert!(gone());
    let left: Vec<_> = token.keys().unwrap().iter().map(ToString::to_string).collect();
    assert!(!left.contains(&old.name) && !left.contains(&hybrid.storage), "{left:?}");
    assert_eq!(alpha.app.store.read(|read| read.hybrid_key(&old.name)).unwrap(), None);
    // With the database alone nobody opens the stick again.
    assert!(hybrid::seed(&*token, server_name!("alpha.test"), &hybrid).is_err());
    assert_eq!(actions(&alpha).last().unwrap(), "key.destroyed");

    // From now on the new courier key signs, and nobody needs the old one.
    let peer = alpha.app.store.read(|read| read.peer(server_name!("bravo.test"))).unwrap().unwrap();
    let couriers = keys(&alpha, KeyRole::Courier);
    let signs = peers::courier_key_for(&alpha.app.store, &peer).unwrap();
    assert_eq!(signs.name.to_string(), couriers[0].name);
    let destroy = wish(KeyAction::Destroy { name: couriers[1].name.clone() });
    rotation::carry_out(&alpha.app, &destroy, &at(minutes(8))).unwrap();
    alpha.send(&room_id, message(ALICE, "under the new key"));
    carry(&alpha, &bravo, minutes(9));
    assert_eq!(bravo.bodies(&room_id).len(), 3);
}

#[test]
fn a_card_of_another_root_in_a_bundle_changes_nothing_but_is_on_record() {
    let (alpha, bravo) = pair();
    let room_id = shared_room(&alpha);
    let known = alpha.card.clone();
    let other = alpha.issue("another safe", 2, (0, 0));
    alpha.app.store.write(move |write| write.set_own_card(&other, NOW)).unwrap();
    carry(&alpha, &bravo, minutes(1));
    let peer = bravo.app.store.read(|read| read.peer(server_name!("alpha.test"))).unwrap();
    assert_eq!(peer.unwrap().card, known);
    assert!(actions(&bravo).contains(&"peer.renew.refused".to_owned()));
    assert!(bravo.bodies(&room_id).is_empty());
}

#[test]
fn keys_in_use_or_needed_are_not_destroyed() {
    let (alpha, _) = pair();
    let destroy = |name: String| {
        rotation::carry_out(&alpha.app, &wish(KeyAction::Destroy { name }), &at(minutes(9)))
    };
    let current = keys(&alpha, KeyRole::Courier)[0].name.clone();
    assert!(matches!(destroy(current.clone()), Err(Error::InUse(_))));
    rotate(&alpha, KeyRole::Courier, minutes(1)).unwrap();
    let needed = destroy(current).unwrap_err();
    assert!(needed.to_string().contains("does not name its successor"), "{needed}");
    let unknown = destroy("event:0000000000000000".to_owned()).unwrap_err();
    assert!(matches!(unknown, Error::Unknown(_)), "{unknown}");

    shared_room(&alpha);
    sign_waiting(&alpha);
    rotate(&alpha, KeyRole::Event, minutes(2)).unwrap();
    let old = keys(&alpha, KeyRole::Event)[1].name.clone();
    destroy(old).unwrap();
    // What it signed can be verified for ever.
    let token = alpha.app.token.clone().unwrap();
    let name = &alpha.app.config.server_name;
    let document = own_keys::key_document(&alpha.app.store, &*token, name, minutes(3)).unwrap();
    assert!(document.contains(&keys(&alpha, KeyRole::Event)[1].name.replace("event:", "ed25519:")));
}

#[test]
fn the_old_audit_key_vouches_for_the_new_one() {
    let (alpha, _) = pair();
    let first = own_keys::required(&alpha.app.store, KeyRole::Audit).unwrap();
    rotate(&alpha, KeyRole::Audit, minutes(1)).unwrap();
    let token = alpha.app.token.clone().unwrap();
    let name = &alpha.app.config.server_name;
    audit::checkpoint_on_order(&alpha.app.store, &*token, name, &at(minutes(2))).unwrap();

    let (rows, checkpoints) = alpha
        .app
        .store
        .read(|read| {
            Ok::<_, sallyport_store::Error>((
                read.audit_rows(0, 1000)?,
                read.checkpoints(0, u64::MAX)?,
            ))
        })
        .unwrap();
    // Only the first key was written down.
    let pinned = own_keys::public_key(&first.key).unwrap();
    let mut vouched = Vouched::new([pinned].into(), None);
    let mut tip = Tip::default();
    for row in &rows {
        tip = verify(tip, [row]).unwrap();
        vouched.row(row);
        for checkpoint in checkpoints.iter().filter(|checkpoint| checkpoint.row == row.id) {
            vouched.checkpoint(tip, &checkpoint.bytes).unwrap();
        }
    }
    assert_eq!(vouched.up_to().unwrap().0, rows.last().unwrap().id);
    assert_eq!(checkpoints.len(), 2);
}

#[test]
fn officers_approve_orders_about_keys_once() {
    let alpha = crate::bundles::bare_enclave("alpha.test", 2, 1);
    peers::install_own_card(&alpha.app, alpha.card.clone(), &order()).unwrap();
    let rotation = wish(KeyAction::Rotate { role: KeyRole::Audit });
    let consent = || {
        let incarnation = alpha.app.store.read(|read| read.incarnation()).unwrap();
        let current = own_keys::required(&alpha.app.store, KeyRole::Audit).unwrap();
        let names = [current.name.to_string()];
        Consent::to_keys("alpha.test".try_into().unwrap(), incarnation, "key.rotate", &names)
    };
    let give = |approvals: Vec<Approval>| {
        let mut order = order();
        order.authority.approvals = approvals;
        rotation::carry_out(&alpha.app, &rotation, &order)
    };
    let both = [0, 1].map(|officer| alpha.officers.approve(officer, &consent()));
    let refused = give(vec![both[0].clone()]).unwrap_err().to_string();
    assert!(refused.contains("2 needed, 1 given"), "{refused}");
    assert!(refused.contains("sallyctl approve keys audit:"), "{refused}");
    give(both.to_vec()).unwrap();
    // The same approvals are for nothing now: they named the key that was replaced.
    assert!(matches!(give(both.to_vec()), Err(Error::Approval(_))));
}

/// The names of keys in a report.
fn named(keys: &[KeyState]) -> Vec<&str> {
    keys.iter().map(|key| key.name.as_str()).collect()
}

fn ca_pem(enclave: &Enclave) -> String {
    fs::read_to_string(enclave.app.config.data_dir.join("ca.pem")).unwrap()
}

#[test]
fn the_keys_of_certificates_are_replaced_on_order_and_the_old_ones_destroyed() {
    let (alpha, _) = pair();
    let certificates = alpha.app.certificates.as_ref().unwrap();
    let unfounded = rotate(&alpha, KeyRole::Tls, minutes(1)).unwrap_err();
    assert!(unfounded.to_string().contains("there is no enclave CA yet"), "{unfounded}");
    certificates.refresh(&alpha.app.store, NOW).unwrap();

    // The key of the certificate is the box's own.
    let ca = ca_pem(&alpha);
    let order = wish(KeyAction::Rotate { role: KeyRole::Tls });
    let plan = rotation::plan(&alpha.app, &order).unwrap();
    assert!(plan.steps.iter().any(|step| step.contains("in the box's vault")), "{:?}", plan.steps);
    let report = rotate(&alpha, KeyRole::Tls, minutes(1)).unwrap();
    assert_eq!((named(&report.ended), report.made.len()), (named(&plan.ended), 1));
    let next = rotation::plan(&alpha.app, &order).unwrap();
    assert_eq!(named(&next.ended), named(&report.made));
    assert_eq!(ca_pem(&alpha), ca);
    assert_eq!(actions(&alpha).last().unwrap(), "key.rotate");

    // The CA's is in the token.
    let old = own_keys::required(&alpha.app.store, KeyRole::Ca).unwrap().name;
    let order = wish(KeyAction::Rotate { role: KeyRole::Ca });
    let plan = rotation::plan(&alpha.app, &order).unwrap();
    assert!(plan.steps.iter().any(|step| step.contains("EVERY DEVICE")), "{:?}", plan.steps);
    let report = rotate(&alpha, KeyRole::Ca, minutes(2)).unwrap();
    assert_eq!(named(&report.ended)[0], old.to_string());
    assert_ne!(ca_pem(&alpha), ca);
    assert_eq!(keys(&alpha, KeyRole::Ca)[0].name, report.made[0].name);
    let token = alpha.app.token.clone().unwrap();
    rotation::destroy_superseded(&alpha.app, &*token, minutes(3)).unwrap();
    assert_eq!(keys(&alpha, KeyRole::Ca)[1].destroyed, Some(minutes(3)));
    assert!(!token.keys().unwrap().contains(&old), "it is in the token still");
    assert!(actions(&alpha).ends_with(&[
        "key.rotate".to_owned(),
        "key.rotate".to_owned(),
        "key.destroyed".to_owned()
    ]));
}

#[test]
fn officers_approve_that_keys_of_certificates_are_replaced() {
    let alpha = crate::bundles::bare_enclave("alpha.test", 1, 1);
    peers::install_own_card(&alpha.app, alpha.card.clone(), &order()).unwrap();
    let certificates = alpha.app.certificates.as_ref().unwrap();
    certificates.refresh(&alpha.app.store, NOW).unwrap();
    for role in [KeyRole::Tls, KeyRole::Ca] {
        let refused = rotate(&alpha, role, NOW).unwrap_err().to_string();
        assert!(refused.contains("1 needed, 0 given"), "{refused}");
        let rotation = wish(KeyAction::Rotate { role });
        let plan = rotation::plan(&alpha.app, &rotation).unwrap();
        let names: Vec<_> = named(&plan.ended).into_iter().map(str::to_owned).collect();
        let incarnation = alpha.app.store.read(|read| read.incarnation()).unwrap();
        let consent =
            Consent::to_keys("alpha.test".try_into().unwrap(), incarnation, "key.rotate", &names);
        let mut approved = order();
        approved.authority.approvals = vec![alpha.officers.approve(0, &consent)];
        rotation::carry_out(&alpha.app, &rotation, &approved).unwrap();
        let again = rotation::carry_out(&alpha.app, &rotation, &approved).unwrap_err();
        assert!(matches!(again, Error::Approval(_)), "{again}");
    }
}

#[test]
fn certificates_that_are_given_as_files_are_not_ours_to_replace() {
    let folder = tempfile::tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(["alpha.test".to_owned()]).unwrap();
    let (certificate, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
    fs::write(&certificate, pair.cert.pem()).unwrap();
    fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let text = format!(
        "server_name = 'alpha.test'\ndata_dir = {:?}\n[tls]\ncertificate = {certificate:?}\nkey = {key:?}",
        folder.path().join("data"),
    );
    let config = Config::parse(&text, Path::new("test")).unwrap();
    let app = App::open(config, || NOW, shutdown::channel().1).unwrap();
    for role in [KeyRole::Tls, KeyRole::Ca] {
        let order = wish(KeyAction::Rotate { role });
        let refused = rotation::carry_out(&app, &order, &at(NOW)).unwrap_err().to_string();
        assert!(refused.contains("given as files"), "{refused}");
    }
}

#[test]
fn a_box_goes_on_with_another_token() {
    let (mut alpha, bravo) = pair();
    let room_id = shared_room(&alpha);
    alpha.send(&room_id, message(ALICE, "before"));
    let folder = tempfile::tempdir().unwrap();
    let policy = Policy { server_name: alpha.app.config.server_name.clone() };
    let path = folder.path().join("new token");
    let other = SoftwareToken::open_or_create(&path, Duration::ZERO, policy).unwrap();
    let new: Vec<NewKey> = own_keys::ROTATED
        .into_iter()
        .map(|role| {
            let kind = other.kind_for(role).unwrap_or(KeyKind::Ed25519);
            let name = other.generate(role, kind).unwrap();
            NewKey { name: name.to_string(), public: other.public_key(&name).unwrap() }
        })
        .collect();
    let short = wish(KeyAction::HandOver { keys: new[1..].to_vec() });
    let refused = rotation::carry_out(&alpha.app, &short, &at(minutes(1))).unwrap_err();
    assert!(matches!(refused, Error::Incomplete), "{refused}");
    let hand_over = wish(KeyAction::HandOver { keys: new });
    rotation::carry_out(&alpha.app, &hand_over, &at(minutes(1))).unwrap();

    // The box is restarted with the other token.
    Arc::get_mut(&mut alpha.app).unwrap().token = Some(Arc::new(other));
    alpha.send(&room_id, message(ALICE, "after"));
    let card = renew_card(&alpha, minutes(2));
    let fingerprint = Card::stored(&card).unwrap().fingerprint().words();
    peers::pair(&bravo.app, card, &fingerprint, &at(minutes(2))).unwrap();
    carry(&alpha, &bravo, minutes(3));
    assert_eq!(bravo.bodies(&room_id), ["before", "after"]);
}
