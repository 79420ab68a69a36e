//! The helper as a process: its sessions, its end, its sandbox, and one that a service manager starts.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{
            fs::OpenOptionsExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::PathBuf,
    process::{Child, Command},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, Instant},
};

use minicbor::{Encoder, encode};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sallyport_core::sign::{SigningRequest, verify};
use sallyport_hsm::{
    Error, Health, HelperPlace, HelperSettings, HelperToken, KeyKind, KeyName, KeyRole, Pin,
    PinSource, ServedToken, Token,
};
use sallyport_hsm_faults::{Fault, Function, Orders, Times};

use crate::{
    faults::module as faulty_module,
    requests::{policy, x_matrix},
    softhsm::{self, HOME, PIN, SoftHsm, eventually, helpers, module},
};

/// How long a token has for one operation.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What is noticed within this was not found by asking now and then.
const AT_ONCE: Duration = Duration::from_secs(3);
const SESSION_HANDLE_INVALID: Fault = Fault::Return(0xb3);

/// The settings of a helper with the faulty module, as `change` leaves them.
fn settings(hsm: &SoftHsm, change: impl FnOnce(&mut ServedToken)) -> HelperSettings {
    let mut token = softhsm::served(&faulty_module(), &hsm.label);
    change(&mut token);
    let settings = softhsm::settings(&module(), &hsm.label, &hsm.pin_file, TIMEOUT);
    HelperSettings { place: softhsm::place(token), ..settings }
}

fn orders() -> Orders {
    let orders = Orders::new(&HOME.join("orders"));
    orders.clear().unwrap();
    orders
}

fn event_key(token: &HelperToken) -> KeyName {
    token.generate(KeyRole::Event, KeyKind::Ed25519).unwrap()
}

fn each_is_signed(token: &HelperToken, key: &KeyName, requests: &[SigningRequest]) {
    let public = token.public_key(key).unwrap();
    for (request, answer) in requests.iter().zip(token.sign_many(key, requests)) {
        verify(&public, &request.bytes_to_sign(&policy()).unwrap(), &answer.unwrap()).unwrap();
    }
}

#[test]
fn four_sessions_answer_each_caller_in_order() {
    let hsm = SoftHsm::new();
    let _orders = orders();
    let before = helpers();
    let token =
        HelperToken::start(settings(&hsm, |token| token.sessions = 4.try_into().unwrap())).unwrap();
    let keys = [event_key(&token), event_key(&token)];
    let helper = *helpers().difference(&before).next().unwrap();
    let threads = fs::read_dir(format!("/proc/{helper}/task")).unwrap();
    let named = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")));
    let sessions = named.filter(|name| name.as_ref().is_ok_and(|name| name == "session\n"));
    assert_eq!(sessions.count(), 3);
    thread::scope(|scope| {
        for n in 0..4 {
            let (token, key) = (&token, &keys[n % 2]);
            let requests: Vec<_> = (0..150).map(|i| x_matrix(1000 * n as u32 + i)).collect();
            scope.spawn(move || each_is_signed(token, key, &requests));
        }
    });
}

#[test]
fn the_loss_of_one_session_is_the_loss_of_all() {
    let hsm = SoftHsm::new();
    let orders = orders();
    let token =
        HelperToken::start(settings(&hsm, |token| token.sessions = 4.try_into().unwrap())).unwrap();
    let key = event_key(&token);
    let requests: Vec<_> = (0..200).map(x_matrix).collect();
    each_is_signed(&token, &key, &requests);
    orders.clear().unwrap();
    orders.give(Function::Sign, Times::Once, SESSION_HANDLE_INVALID).unwrap();
    each_is_signed(&token, &key, &requests);
    assert_eq!(orders.calls(Function::Login), 1);

    // Handles that came to mean another key are looked up anew by every session.
    let other = event_key(&token);
    each_is_signed(&token, &other, &requests[..20]);
    each_is_signed(&token, &key, &requests[..20]);
    orders.give(Function::SignInit, Times::Once, Fault::SwapHandles).unwrap();
    each_is_signed(&token, &key, &requests);
}

#[test]
fn an_idle_helper_that_dies_is_noticed_at_once() {
    let hsm = SoftHsm::new();
    let token = hsm.start();
    token.keys().unwrap();
    let [helper] = helpers().into_iter().collect::<Vec<_>>()[..] else { panic!("not one helper") };
    let start = Instant::now();
    kill(Pid::from_raw(i32::try_from(helper).unwrap()), Signal::SIGKILL).unwrap();
    eventually("noticing", || matches!(token.health(), Health::Absent { .. }));
    assert!(start.elapsed() < AT_ONCE);
    eventually("another helper", || token.health() == Health::Ready);
}

#[test]
fn a_token_is_found_by_serial_number_too() {
    let hsm = SoftHsm::new();
    let _orders = orders();
    let pkcs11 = softhsm::pkcs11();
    let serial = pkcs11
        .get_slots_with_token()
        .unwrap()
        .into_iter()
        .map(|slot| pkcs11.get_token_info(slot).unwrap())
        .find(|info| info.label() == hsm.label)
        .map(|info| info.serial_number().to_owned());
    let right = HelperToken::start(settings(&hsm, |token| token.serial = serial)).unwrap();
    assert!(right.keys().unwrap().is_empty());
    drop(right);
    let wrong = settings(&hsm, |token| token.serial = Some("0123".to_owned()));
    let refused = HelperToken::start(wrong).unwrap().keys().unwrap_err().to_string();
    assert!(refused.contains("but `token_serial` is 0123"), "{refused}");
}

#[test]
fn a_module_cannot_get_out_of_its_process() {
    let hsm = SoftHsm::new();
    let orders = orders();
    for network in [false, true] {
        orders.clear().unwrap();
        orders.give(Function::GetSlotList, Times::Once, Fault::Escape).unwrap();
        let settings = settings(&hsm, |token| token.network = network);
        let token = HelperToken::start(settings).unwrap();
        token.keys().unwrap();
        let escapes = orders.escapes().unwrap();
        let escaped: BTreeSet<_> = escapes.iter().map(String::as_str).collect();
        let mut allowed = BTreeSet::from(["daemons", "orders"]);
        if network {
            allowed.insert("network");
        }
        // The machine may have no IPv6.
        assert!(
            escaped.iter().copied().filter(|one| *one != "network6").eq(allowed),
            "{escaped:?}"
        );
        assert!(network || !escaped.contains(&"network6"));
    }
}

#[test]
fn a_pin_is_a_credential() {
    let hsm = SoftHsm::new();
    let name = "token-pin";
    let path = HOME.join("credentials").join(name);
    drop(fs::remove_file(&path));
    // systemd's are readable by the group too, as an access control list looks.
    let mut file =
        fs::OpenOptions::new().create_new(true).write(true).mode(0o440).open(&path).unwrap();
    file.write_all(PIN.as_bytes()).unwrap();
    let with = |name: &str| HelperSettings {
        pin: PinSource::Credential(name.to_owned()),
        ..softhsm::settings(&module(), &hsm.label, &hsm.pin_file, TIMEOUT)
    };
    let token = HelperToken::start(with(name)).unwrap();
    assert!(token.keys().unwrap().is_empty());
    drop(token);
    let refused = HelperToken::start(with("another")).unwrap().keys().unwrap_err().to_string();
    assert!(refused.contains("another cannot be read"), "{refused}");
}

#[test]
fn a_pin_that_a_person_gives_is_asked_for_at_each_start() {
    let hsm = SoftHsm::new();
    let orders = orders();
    let settings = HelperSettings { pin: PinSource::Ask, ..settings(&hsm, |_| {}) };
    let token = HelperToken::start(settings).unwrap();
    let locked = token.keys().unwrap_err();
    assert!(matches!(locked, Error::Locked { .. }), "{locked}");
    assert!(locked.to_string().contains("`sallyctl token unlock`"), "{locked}");
    assert_eq!(orders.calls(Function::Login), 0);
    token.reopen(Pin::new(PIN.to_owned())).unwrap();
    let key = event_key(&token);
    orders.give(Function::Sign, Times::Once, SESSION_HANDLE_INVALID).unwrap();
    each_is_signed(&token, &key, &[x_matrix(1)]);
}

#[test]
fn a_pin_is_typed_at_the_token() {
    let hsm = SoftHsm::new();
    let orders = orders();
    let start = || {
        let settings = HelperSettings { pin: PinSource::Pad, ..settings(&hsm, |_| {}) };
        HelperToken::start(settings).unwrap()
    };
    let refused = start().keys().unwrap_err();
    assert!(matches!(refused, Error::Locked { .. }), "{refused}");
    assert!(refused.to_string().contains("no PIN pad"), "{refused}");
    assert_eq!(orders.calls(Function::Login), 0);

    orders.give(Function::GetTokenInfo, Times::Always, Fault::PinPad).unwrap();
    let token = start();
    let key = event_key(&token);
    orders.give(Function::Sign, Times::Once, SESSION_HANDLE_INVALID).unwrap();
    each_is_signed(&token, &key, &[x_matrix(1)]);
    assert_eq!(orders.calls(Function::Login), 2);
}

/// A service manager: starts a helper for each connection to a socket.
struct ServiceManager {
    socket: PathBuf,
    children: Receiver<Child>,
}

impl ServiceManager {
    fn new(hsm: &SoftHsm) -> Self {
        let socket = HOME.join(format!("{}.sock", hsm.label));
        let listener = UnixListener::bind(&socket).unwrap();
        let (started, children) = channel();
        let label = hsm.label.clone();
        thread::spawn(move || {
            for connection in listener.incoming() {
                let child = Command::new(softhsm::program().path)
                    .arg("alpha.example")
                    .arg(faulty_module())
                    .arg(&label)
                    .arg("--writable")
                    .arg(&*HOME)
                    .stdin(OwnedFd::from(connection.unwrap()))
                    .spawn()
                    .unwrap();
                if started.send(child).is_err() {
                    break;
                }
            }
        });
        Self { socket, children }
    }

    fn settings(&self, hsm: &SoftHsm) -> HelperSettings {
        let settings = softhsm::settings(&module(), &hsm.label, &hsm.pin_file, TIMEOUT);
        HelperSettings { place: HelperPlace::Service(self.socket.clone()), ..settings }
    }
}

#[test]
fn a_service_manager_starts_the_helper_and_one_that_hangs_ends_by_itself() {
    let hsm = SoftHsm::new();
    let orders = orders();
    let manager = ServiceManager::new(&hsm);
    let token = HelperToken::start(manager.settings(&hsm)).unwrap();
    let key = event_key(&token);
    each_is_signed(&token, &key, &(0..50).map(x_matrix).collect::<Vec<_>>());
    let mut first = manager.children.recv().unwrap();
    orders.give(Function::Sign, Times::Once, Fault::Hang).unwrap();
    assert!(matches!(token.sign(&key, &x_matrix(1)), Err(Error::Timeout)));
    // Nobody kills it: it ends because the box has closed the connection.
    assert_eq!(first.wait().unwrap().code(), Some(1));
    eventually("a signature by another helper", || token.sign(&key, &x_matrix(1)).is_ok());
    let mut second = manager.children.recv().unwrap();
    drop(token);
    assert!(second.wait().unwrap().success());
}

#[test]
fn a_socket_at_which_nobody_listens_is_named() {
    let hsm = SoftHsm::new();
    let place = HelperPlace::Service(HOME.join("nobody.sock"));
    let settings = softhsm::settings(&module(), &hsm.label, &hsm.pin_file, TIMEOUT);
    let token = HelperToken::start(HelperSettings { place, ..settings }).unwrap();
    let refused = token.keys().unwrap_err().to_string();
    assert!(refused.contains("nobody.sock: start its socket unit"), "{refused}");
}

/// A helper that opens well and then answers each request under these other numbers.
fn liar(name: &str, numbers: impl Fn(u64) -> Vec<u64> + Send + 'static) -> HelperSettings {
    let path = HOME.join(format!("{name}.sock"));
    let listener = UnixListener::bind(&path).unwrap();
    let seen = Arc::new(Mutex::new(()));
    thread::spawn(move || {
        let _one_at_a_time = seen.lock().unwrap();
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            while let Some(number) = receives(&mut connection) {
                if number == u64::MAX {
                    // Opened: serial number, nothing probed, one session.
                    answers(&mut connection, number, |e| {
                        e.array(2)?.u8(3)?.array(3)?.str("1")?.null()?.u8(1)?.ok()
                    });
                } else {
                    for number in numbers(number) {
                        // No keys.
                        answers(&mut connection, number, |e| {
                            e.array(2)?.u8(4)?.array(1)?.array(0)?.ok()
                        });
                    }
                }
            }
        }
    });
    let settings = softhsm::settings(&module(), "liar", &HOME.join("liar.pin"), TIMEOUT);
    softhsm::write_pin(&HOME.join("liar.pin"), PIN);
    HelperSettings { place: HelperPlace::Service(path), ..settings }
}

fn receives(from: &mut UnixStream) -> Option<u64> {
    let mut length = [0; 4];
    from.read_exact(&mut length).ok()?;
    let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    from.read_exact(&mut frame).ok()?;
    Some(u64::from_be_bytes(frame[1..9].try_into().unwrap()))
}

fn answers(
    to: &mut UnixStream,
    number: u64,
    answer: impl FnOnce(
        &mut Encoder<&mut Vec<u8>>,
    ) -> Result<(), encode::Error<std::convert::Infallible>>,
) {
    let mut body = [&[2][..], &number.to_be_bytes()].concat();
    answer(&mut Encoder::new(&mut body)).unwrap();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    // The box may have given it up.
    drop(to.write_all(&[&length[..], &body].concat()));
}

#[test]
fn a_helper_that_answers_what_was_not_asked_is_given_up() {
    let _guard = softhsm::serialize();
    let honest = HelperToken::start(liar("honest", |number| vec![number])).unwrap();
    assert!(honest.keys().unwrap().is_empty());
    let liars = [
        liar("ahead", |number| vec![number + 1]),
        liar("alone", |_| vec![u64::MAX]),
        liar("far", |number| vec![number ^ (1 << 63)]),
    ];
    for settings in liars {
        let token = HelperToken::start(settings).unwrap();
        let given_up = token.keys().unwrap_err();
        assert!(given_up.to_string().contains("answered what was not asked"), "{given_up}");
        assert!(matches!(token.health(), Health::Absent { .. }));
    }
    let twice = HelperToken::start(liar("twice", |number| vec![number, number])).unwrap();
    drop(twice.keys());
    eventually("noticing", || matches!(twice.health(), Health::Absent { .. }));
}
