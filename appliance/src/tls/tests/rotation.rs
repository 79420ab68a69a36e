//! Certificates and their keys are replaced while the box serves.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    handshakes::{IN_TOKEN, connect, echo, new_device},
    *,
};

/// Notes new keys as the service does.
fn note(fixture: &Fixture, new: &[Held]) -> Result<(), Error> {
    for Held { current, .. } in new.iter().filter(|held| held.in_token) {
        let (key, role) = (current.key.clone(), current.name.role());
        let old = own_keys::current(&fixture.store, role)?;
        fixture
            .store
            .write::<_, sallyport_store::Error>(move |write| {
                old.map_or(Ok(()), |old| write.retire_own_key(&old.key.name, NOW))?;
                write.insert_own_key(&key)
            })
            .map_err(own_keys::Error::from)?;
    }
    Ok(())
}

fn rotate(fixture: &Fixture, certificates: &Certificates, part: Part) -> Result<Vec<Held>, Error> {
    certificates.rotate(part, &fixture.store, NOW, |new| note(fixture, new))
}

fn current(fixture: &Fixture, role: KeyRole) -> KeyName {
    own_keys::required(&fixture.store, role).unwrap().name
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_go_on_while_a_key_in_the_token_is_replaced() {
    let fixture = Fixture::with_token(Duration::ZERO);
    let certificates = fixture.open(IN_TOKEN, NOW);
    let address = echo(Some(certificates.acceptor().unwrap())).await;
    let phone = new_device(&fixture);
    let name = ServerName::try_from("alpha.example").unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let mut open = phone.connect(name, stream).await.unwrap();
    let (old, before) = (current(&fixture, KeyRole::Tls), chain(&certificates));
    assert!(certificates.uses(&old).unwrap());

    // A handshake under way has the certificate of before.
    let under_way = certificates.current.borrow().clone();
    let made = rotate(&fixture, &certificates, Part::Leaf).unwrap();
    let new = current(&fixture, KeyRole::Tls);
    assert!(made.len() == 1 && made[0].current.name == new && new != old, "{made:?}");
    assert!(certificates.uses(&old).unwrap(), "it is to sign a handshake yet");
    drop(under_way);
    assert!(!certificates.uses(&old).unwrap() && certificates.uses(&new).unwrap());
    fixture.token().destroy(&old).unwrap();

    open.write_all(b"x").await.unwrap();
    open.read_exact(&mut [0]).await.unwrap();
    let after = chain(&certificates);
    assert!(after[0] != before[0] && after[1] == before[1], "the CA is the same");
    connect(&new_device(&fixture), address).await.unwrap();
    // And so after a restart.
    let again = fixture.try_open(IN_TOKEN, NOW).unwrap();
    assert_eq!(chain(&again), after);
    fixture.handshake(&again, "alpha.example", NOW).unwrap();
}

#[test]
fn a_key_of_the_box_is_replaced_with_its_certificate() {
    for fixture in [Fixture::new(), Fixture::with_token(Duration::ZERO)] {
        let certificates = fixture.open("", NOW);
        let before = (chain(&certificates), certificates.held(Part::Leaf, &fixture.store).unwrap());
        let made = rotate(&fixture, &certificates, Part::Leaf).unwrap();
        let held = certificates.held(Part::Leaf, &fixture.store).unwrap();
        assert_eq!(held[0].current.name, made[0].current.name);
        assert_ne!(held[0].current.key.public, before.1[0].current.key.public);
        assert!(!held[0].in_token && held[0].current.key.created == NOW);
        let after = chain(&certificates);
        assert!(after[0] != before.0[0] && after[1] == before.0[1]);
        fixture.handshake(&certificates, "alpha.example", NOW).unwrap();
        // The token is not needed to serve it.
        if let Some(token) = &fixture.token {
            token.pull_out();
        }
        assert_eq!(chain(&fixture.try_open("", NOW).unwrap()), after);
    }
}

#[test]
fn a_new_ca_takes_the_place_of_the_old_one_that_devices_must_forget() {
    for (fixture, more) in [
        (Fixture::new(), ""),
        (Fixture::with_token(Duration::ZERO), ""),
        (Fixture::with_token(Duration::ZERO), IN_TOKEN),
    ] {
        let certificates = fixture.open(more, NOW);
        let root = || CertificateDer::from_pem_file(fixture.path().join("ca.pem")).unwrap();
        let old = root();
        let held = certificates.held(Part::Authority, &fixture.store).unwrap();
        let made = rotate(&fixture, &certificates, Part::Authority).unwrap();
        let roles = |keys: &[Held]| keys.iter().map(|held| held.current.name.role()).collect();
        let (before, after): (Vec<_>, Vec<_>) = (roles(&held), roles(&made));
        assert_eq!(
            (before, after),
            (vec![KeyRole::Ca, KeyRole::Tls], vec![KeyRole::Ca, KeyRole::Tls])
        );
        handshake(&certificates, old, "alpha.example", NOW).unwrap_err();
        handshake(&certificates, root(), "alpha.example", NOW).unwrap();
        for old in held.iter().filter(|held| held.in_token) {
            assert!(!certificates.uses(&old.current.name).unwrap(), "{old:?}");
            fixture.token().destroy(&old.current.name).unwrap();
        }
        let again = fixture.try_open(more, NOW).unwrap();
        again.refresh(&fixture.store, NOW).unwrap();
        assert_eq!(chain(&again), chain(&certificates));
    }
}

#[test]
fn a_ca_in_a_file_moves_into_the_token() {
    let mut fixture = Fixture::new();
    drop(fixture.open("", NOW));
    let with_token = Fixture::with_token(Duration::ZERO);
    fixture.token.clone_from(&with_token.token);
    let certificates = fixture.open("", NOW);
    rotate(&fixture, &certificates, Part::Authority).unwrap();
    let key = current(&fixture, KeyRole::Ca).to_string();
    assert_eq!(certificates.status().unwrap().ca.unwrap().key, KeyPlace::Token { key });
    let stored = fs::read_to_string(fixture.path().join("tls/ca.json")).unwrap();
    assert!(!stored.contains("PRIVATE KEY"), "{stored}");
    fixture.handshake(&certificates, "alpha.example", NOW).unwrap();
}

#[test]
fn what_fails_before_it_is_noted_changes_nothing_and_leaves_no_key() {
    let fixture = Fixture::with_token(Duration::ZERO);
    let certificates = fixture.open(IN_TOKEN, NOW);
    let (before, keys) = (chain(&certificates), fixture.token().keys().unwrap());
    for part in [Part::Leaf, Part::Authority] {
        let refused = certificates.rotate(part, &fixture.store, NOW, |_| Err(Error::PassingKey));
        assert!(matches!(refused, Err(Error::PassingKey)));
        assert_eq!(fixture.token().keys().unwrap(), keys, "{part:?}");
        fixture.token().pull_out();
        let absent = rotate(&fixture, &certificates, part).unwrap_err();
        assert!(absent.waits_for_token(), "{absent}");
        fixture.token().plug_in();
    }
    assert!(certificates.refresh(&fixture.store, NOW).unwrap());
    assert_eq!(chain(&certificates), before);
    assert_eq!(chain(&fixture.try_open(IN_TOKEN, NOW).unwrap()), before);
}

#[test]
fn a_power_cut_between_the_note_and_the_certificate_is_made_up_for() {
    for (part, role) in [(Part::Leaf, KeyRole::Tls), (Part::Authority, KeyRole::Ca)] {
        let fixture = Fixture::with_token(Duration::ZERO);
        let before = chain(&fixture.open(IN_TOKEN, NOW));
        // What the order noted before the power went.
        let key = own_keys::make(fixture.token(), role, NOW).unwrap();
        let name: KeyName = key.name.parse().unwrap();
        let held = Held { current: own_keys::Current { name, key }, in_token: true };
        note(&fixture, std::slice::from_ref(&held)).unwrap();

        let certificates = fixture.try_open(IN_TOKEN, NOW).unwrap();
        assert_eq!(chain(&certificates), before, "served until the token has signed a better one");
        fixture.handshake(&certificates, "alpha.example", NOW).unwrap();
        assert!(certificates.refresh(&fixture.store, NOW).unwrap());
        fixture.handshake(&certificates, "alpha.example", NOW).unwrap();
        let now_held = certificates.held(part, &fixture.store).unwrap();
        assert_eq!(now_held[0].current.name, held.current.name);
        assert!(certificates.uses(&held.current.name).unwrap());
        assert_ne!(chain(&certificates), before);
    }
}
