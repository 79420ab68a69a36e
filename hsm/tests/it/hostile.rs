//! A helper whose box was taken over: whoever holds the socket can have our own documents signed, and nothing else.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use minicbor::{Encoder, encode};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use sallyport_hsm::{KeyKind, KeyName, KeyRole, Token};

use crate::softhsm::{HOME, PIN, SoftHsm, module, program};

/// A helper of the server alpha.example, with its socket in the wrong hands. Frames are made by hand, as the wrong hands would.
struct Captured {
    child: Child,
    socket: UnixStream,
    /// Of the last request.
    number: u64,
}

impl Captured {
    fn new(label: &str) -> Self {
        let (socket, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(program().path)
            .args(["alpha.example", module().to_str().unwrap(), label])
            .arg("--writable")
            .arg(HOME.join("tokens"))
            .stdin(OwnedFd::from(theirs))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self { child, socket, number: 0 }
    }

    fn opened(hsm: &SoftHsm) -> Self {
        let mut captured = Self::new(&hsm.label);
        // Open with a PIN; nothing known of the token before.
        let answer = captured.asks(|e| {
            e.array(2)?.u8(0)?.array(1)?.array(5)?;
            e.array(2)?.u8(0)?.array(1)?.str(PIN)?;
            e.null()?.bool(false)?.bool(false)?.bool(true)?.ok()
        });
        assert!(answer.starts_with(&[0x82, OPENED]), "{}", String::from_utf8_lossy(&answer));
        captured
    }

    /// Asks for a signature over a document of a kind with these parts.
    fn sign(&mut self, key: &KeyName, kind: u8, parts: &[&str]) -> Vec<u8> {
        self.asks(|e| {
            e.array(2)?.u8(4)?.array(3)?.str(&key.to_string())?;
            e.array(1 + parts.len() as u64)?.u8(kind)?;
            for part in parts {
                // Kinds from 3 on are byte strings.
                if kind < 3 {
                    e.str(part)?
                } else {
                    e.bytes(part.as_bytes())?
                };
            }
            e.bool(false)?.ok()
        })
    }

    /// Sends a request and gives the last answer to it.
    fn asks(
        &mut self,
        request: impl FnOnce(
            &mut Encoder<&mut Vec<u8>>,
        ) -> Result<(), encode::Error<std::convert::Infallible>>,
    ) -> Vec<u8> {
        self.number += 1;
        let mut body = [&[VERSION][..], &self.number.to_be_bytes()].concat();
        request(&mut Encoder::new(&mut body)).unwrap();
        self.sends(&body);
        loop {
            let answer = self.receives().expect("an answer");
            if !answer.starts_with(&[0x82, WORKING]) {
                return answer;
            }
        }
    }

    fn sends(&mut self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
        self.socket.write_all(&[&length, frame].concat()).unwrap();
    }

    fn receives(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        self.socket.read_exact(&mut length).ok()?;
        let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
        self.socket.read_exact(&mut frame).unwrap();
        let body = frame.split_off(9);
        assert_eq!(frame, [&[VERSION][..], &self.number.to_be_bytes()].concat());
        Some(body)
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// First byte of a frame.
const VERSION: u8 = 2;
/// First items of answers.
const WORKING: u8 = 0;
const OPENED: u8 = 3;
const SIGNATURE: u8 = 6;
const SECRET: u8 = 7;

const OURS: &str =
    r#"{"method":"GET","uri":"/_matrix/x","origin":"alpha.example","destination":"bravo.example"}"#;
const THEIRS: &str =
    r#"{"method":"GET","uri":"/_matrix/x","origin":"bravo.example","destination":"alpha.example"}"#;
const THEIR_EVENT: &str = r#"{"type":"m.room.message","sender":"@alice:bravo.example","origin_server_ts":1,"content":{},"hashes":{"sha256":""}}"#;
const THEIR_KEYS: &str =
    r#"{"server_name":"bravo.example","valid_until_ts":1,"verify_keys":{},"old_verify_keys":{}}"#;

#[test]
fn what_is_not_ours_is_not_signed() {
    let hsm = SoftHsm::new();
    let token = hsm.start();
    let event = token.generate(KeyRole::Event, KeyKind::Ed25519).unwrap();
    let courier = token.generate(KeyRole::Courier, KeyKind::Ed25519).unwrap();
    drop(token);
    let mut captured = Captured::opened(&hsm);
    assert!(captured.sign(&event, 2, &[OURS]).starts_with(&[0x82, SIGNATURE]));
    let refused = [
        (&event, 2, vec![THEIRS], "not of our server"),
        (&event, 0, vec!["11", THEIR_EVENT], "not of our server"),
        (&event, 1, vec![THEIR_KEYS], "not of our server"),
        (&event, 2, vec!["sign this"], "not a canonical JSON object"),
        (&event, 0, vec!["99", THEIR_EVENT], "is unknown"),
        (&courier, 3, vec!["sign this"], "Sig_structure"),
        // An honest document and a key of another role.
        (&courier, 2, vec![OURS], "event"),
        (&event, 3, vec!["sign this"], "courier"),
    ];
    for (key, kind, parts, why) in refused {
        let answer = captured.sign(key, kind, &parts);
        assert!(answer.starts_with(&[0x82, 1]), "{parts:?} was not refused");
        let text = String::from_utf8_lossy(&answer);
        assert!(text.contains(why), "{parts:?}: {text}");
    }
    assert!(captured.sign(&event, 2, &[OURS]).starts_with(&[0x82, SIGNATURE]));
}

#[test]
fn a_key_that_agrees_does_so_for_its_own_role() {
    let hsm = SoftHsm::new();
    let token = hsm.start();
    let agreement = token.generate(KeyRole::CourierEncryption, KeyKind::P256).unwrap();
    let storage = token.generate(KeyRole::Storage, KeyKind::P256).unwrap();
    drop(token);
    let mut captured = Captured::opened(&hsm);
    let point = p256::SecretKey::from_slice(&[9; 32]).unwrap().public_key().to_sec1_bytes();
    let mut agree = |key: &KeyName| {
        captured.asks(|e| e.array(2)?.u8(5)?.array(2)?.str(&key.to_string())?.bytes(&point)?.ok())
    };
    assert!(agree(&agreement).starts_with(&[0x82, SECRET]));
    let shared = agree(&agreement);
    assert!(String::from_utf8_lossy(&agree(&storage)).contains("courier-encryption"));
    let mut open = |key: &KeyName| {
        captured.asks(|e| {
            e.array(2)?.u8(9)?.array(2)?.str(&key.to_string())?;
            e.array(2)?.u8(2)?.bytes(&point)?.ok()
        })
    };
    let opened = open(&storage);
    assert!(opened.starts_with(&[0x82, SECRET]) && opened != shared);
    assert!(String::from_utf8_lossy(&open(&agreement)).contains("storage"));
}

#[test]
fn a_frame_that_makes_no_sense_is_the_last() {
    let hsm = SoftHsm::new();
    let numbered = |body: &[u8]| [&[VERSION, 0, 0, 0, 0, 0, 0, 0, 0][..], body].concat();
    let frames = [
        vec![],
        vec![VERSION],
        numbered(&[]),
        numbered(&[0xff, 0xff]),
        // Another version.
        [&[VERSION + 1, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0x82, 1, 0x80]].concat(),
        // A request that there is not: number 23.
        numbered(&[0x82, 23, 0x80]),
        // A signature over bare bytes: number 4 with a byte string for the document.
        numbered(&[0x82, 4, 0x83, 0x60, 0x41, 0x00, 0xf4]),
    ];
    for frame in frames {
        let mut captured = Captured::new(&hsm.label);
        captured.sends(&frame);
        assert!(captured.receives().is_none(), "{frame:?}");
        assert!(!captured.child.wait().unwrap().success());
    }
    let mut captured = Captured::new(&hsm.label);
    captured.socket.write_all(&[0xff; 64]).unwrap();
    assert!(captured.receives().is_none());
}

#[test]
fn the_helper_has_given_up_what_it_does_not_need() {
    let hsm = SoftHsm::new();
    let captured = Captured::opened(&hsm);
    let of =
        |file: &str| fs::read_to_string(format!("/proc/{}/{file}", captured.child.id())).unwrap();
    let status = of("status");
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    };
    assert_eq!(value("NoNewPrivs"), "1");
    assert_eq!(value("Seccomp"), "2");
    let limits = of("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let core: Vec<_> = core.split_whitespace().skip(4).take(2).collect();
    assert_eq!(core, ["0", "0"]);
}

#[test]
fn the_helper_keeps_no_file_that_it_inherits() {
    let hsm = SoftHsm::new();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let mut captured = Captured::opened(&hsm);
    drop(theirs);
    ours.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // The end of the stream: nobody has the other end any more.
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    assert!(captured.child.try_wait().unwrap().is_none());
}
