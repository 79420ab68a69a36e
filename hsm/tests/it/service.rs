//! The token of a box as its image has it: a service manager starts the helper by the settings of the box, a blank token is set up over
//! a socket of its own, and a person gives the PIN.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use sallyport_hsm::{
    Error, Health, HelperPlace, HelperSettings, HelperToken, KeyKind, KeyRole, Pin, PinSource,
    Setup, SetupAnswer, Token,
};

use crate::{
    requests::{policy, x_matrix},
    softhsm::{self, HOME, PIN, TIMEOUT, eventually},
};

const OFFICER_PIN: &str = "0123456789012345";

/// What an image has for one label: settings, modules, and a socket for each program.
struct Box {
    label: String,
    helper: PathBuf,
    setup: PathBuf,
}

impl Box {
    fn new() -> Self {
        let (label, _) = softhsm::unused_label();
        let folder = HOME.join(format!("box {label}"));
        fs::create_dir_all(folder.join("modules")).unwrap();
        let writable = HOME.join("tokens");
        fs::write(
            folder.join("modules/softhsm.toml"),
            format!(
                "module = {:?}\nwritable = [{writable:?}]\nfor_tests = true\n",
                softhsm::module()
            ),
        )
        .unwrap();
        fs::write(
            folder.join("token.toml"),
            format!("server_name = \"alpha.example\"\nkind = \"softhsm\"\nlabel = \"{label}\"\n"),
        )
        .unwrap();
        let listening = |program: &str| {
            let socket = folder.join(format!("{program}.sock"));
            let listener = UnixListener::bind(&socket).unwrap();
            let (program, folder) = (softhsm::example(program), folder.clone());
            thread::spawn(move || serve(&listener, &program, &folder));
            socket
        };
        Self { label, helper: listening("token-helper"), setup: listening("token-setup") }
    }

    fn start(&self, pin: PinSource) -> HelperToken {
        let place = HelperPlace::Service(self.helper.clone());
        HelperToken::start(HelperSettings { place, pin, timeout: TIMEOUT, policy: policy() })
            .unwrap()
    }

    fn set_up(&self, question: &Setup<'_>) -> SetupAnswer {
        question.ask(&self.setup, TIMEOUT).unwrap()
    }
}

/// A service manager: starts a program for each connection.
fn serve(listener: &UnixListener, program: &Path, folder: &Path) {
    for connection in listener.incoming() {
        let mut child = Command::new(program)
            .arg("--settings")
            .arg(folder.join("token.toml"))
            .arg("--modules")
            .arg(folder.join("modules"))
            .stdin(OwnedFd::from(connection.unwrap()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        thread::spawn(move || child.wait());
    }
}

fn pin(text: &str) -> Pin {
    Pin::new(text.to_owned())
}

fn is_locked(token: &HelperToken, why: &str) -> bool {
    matches!(token.health(), Health::Locked { why: found } if found.contains(why))
}

#[test]
fn a_blank_token_is_set_up_and_waits_for_its_pin_at_each_start() {
    let _guard = softhsm::serialize();
    let the_box = Box::new();
    let token = the_box.start(PinSource::Ask);
    // It is not there: nobody is asked for the PIN of a token that is not there.
    eventually("noticing", || matches!(token.health(), Health::Absent { .. }));
    let absent = token.keys().unwrap_err().to_string();
    assert!(absent.contains("no token with the label"), "{absent}");

    assert_eq!(the_box.set_up(&Setup::Look), SetupAnswer::Blank);
    let (officer, user) = (pin(OFFICER_PIN), pin(PIN));
    let set_up = Setup::SetUp { officer_pin: &officer, user_pin: &user };
    let SetupAnswer::Done(serial) = the_box.set_up(&set_up) else { panic!("not set up") };
    assert!(!serial.is_empty());
    assert_eq!(the_box.set_up(&Setup::Look), SetupAnswer::There);
    // Again it would lose its keys.
    let SetupAnswer::Failed(why) = the_box.set_up(&set_up) else { panic!("set up twice") };
    assert!(why.contains(&the_box.label), "{why}");

    // It is found without anybody's help, and then waits.
    eventually("a token that waits for its PIN", || is_locked(&token, "type it at the console"));
    token.reopen(user.clone()).unwrap();
    let key = token.generate(KeyRole::Event, KeyKind::Ed25519).unwrap();
    token.sign(&key, &x_matrix(1)).unwrap();
    drop(token);

    let token = the_box.start(PinSource::Ask);
    eventually("a token that waits for its PIN", || is_locked(&token, "type it at the console"));
    let refused = token.reopen(pin("wrong horse")).unwrap_err();
    assert!(matches!(refused, Error::PinIncorrect), "{refused}");
    assert!(is_locked(&token, "refused the PIN"));
    token.reopen(user).unwrap();
    assert_eq!(token.keys().unwrap(), [key]);
}

#[test]
fn a_pin_that_cannot_be_read_is_told_only_of_a_token_that_is_there() {
    let _guard = softhsm::serialize();
    let the_box = Box::new();
    let source = PinSource::File(HOME.join("no such PIN"));
    let token = the_box.start(source.clone());
    eventually("noticing", || matches!(token.health(), Health::Absent { .. }));
    drop(token);
    softhsm::make(&the_box.label);
    let token = the_box.start(source);
    eventually("a PIN that is missing", || is_locked(&token, "no such PIN cannot be read"));
}

#[test]
fn questions_that_make_no_sense_are_not_answered() {
    let _guard = softhsm::serialize();
    let the_box = Box::new();
    for question in ["", "\n", "format", "set-up\n", "set-up\nonly one\n", "set-up\n\n\n"] {
        let mut stream = UnixStream::connect(&the_box.setup).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(question.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "", "{question:?}");
    }
    assert_eq!(the_box.set_up(&Setup::Look), SetupAnswer::Blank);
}
