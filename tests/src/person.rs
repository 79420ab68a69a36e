//! A person at a real Matrix client: one process of `tests/clients` that takes commands.

use std::{
    collections::BTreeMap,
    fmt,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{place::Place, repository};

/// How long a client may take for anything, including its waits, before we call it stuck.
const STUCK_AFTER: Duration = Duration::from_secs(120);

/// How long clients wait for something that must come.
pub const PATIENCE_MS: u64 = 30_000;

/// Which client the person uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Software {
    /// matrix-nio with vodozemac.
    Nio,
    /// matrix-js-sdk with its Rust crypto.
    JsSdk,
}

impl fmt::Display for Software {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nio => "matrix-nio",
            Self::JsSdk => "matrix-js-sdk",
        })
    }
}

/// A running client. Its process ends with this value.
#[derive(Debug)]
pub struct Person {
    /// For messages: `alice (matrix-nio)`.
    name: String,
    process: Child,
    commands: Option<ChildStdin>,
    replies: Receiver<Value>,
    early: BTreeMap<u64, Value>,
    asked: u64,
}

/// A command that was given and not answered yet.
#[derive(Debug)]
#[must_use = "ask `Person::answer` what became of it"]
pub struct Asked {
    id: u64,
    command: String,
}

impl Person {
    /// Starts a client in `place`. `authority` is the certificate that it trusts for HTTPS. What the client prints for
    /// developers goes to `diary`.
    ///
    /// # Errors
    /// When the client is not installed or cannot be started.
    pub fn start(
        name: &str,
        software: Software,
        place: &Place,
        authority: Option<&Path>,
        diary: &Path,
    ) -> Result<Self> {
        let clients = repository::root().join("tests/clients");
        let (program, script) = match software {
            Software::Nio => (repository::root().join("tests/.venv/bin/python"), "nio_client.py"),
            Software::JsSdk => ("node".into(), "js/client.mjs"),
        };
        let mut command = place.command(program);
        command.arg(clients.join(script));
        if let Some(authority) = authority {
            command.env("SALLYPORT_CA", authority).env("NODE_EXTRA_CA_CERTS", authority);
        }
        let diary = std::fs::File::create(diary).context("no file for the client's diary")?;
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(diary)
            .spawn()
            .with_context(|| format!("{software} cannot be started; run `make setup`"))?;
        let commands = process.stdin.take();
        let output = process.stdout.take().context("no output of the client")?;
        let (send, replies) = channel();
        thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            for reply in lines.filter_map(|line| serde_json::from_str(&line).ok()) {
                if send.send(reply).is_err() {
                    break;
                }
            }
        });
        let name = format!("{name} ({software})");
        Ok(Self { name, process, commands, replies, early: BTreeMap::new(), asked: 0 })
    }

    /// Gives a command and waits for what it answers. `tests/clients/README.md` lists the commands.
    ///
    /// # Errors
    /// What the client answers, when it refuses or waits in vain.
    pub fn call(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let asked = self.ask(command, arguments)?;
        self.answer(asked)
    }

    /// Gives a command without waiting for its answer.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn ask(&mut self, command: &str, mut arguments: Value) -> Result<Asked> {
        self.asked += 1;
        let fields = arguments.as_object_mut().context("arguments are an object")?;
        fields.insert("id".to_owned(), json!(self.asked));
        fields.insert("do".to_owned(), json!(command));
        let commands = self.commands.as_mut().context("the client is gone")?;
        writeln!(commands, "{arguments}").with_context(|| format!("{} is gone", self.name))?;
        Ok(Asked { id: self.asked, command: command.to_owned() })
    }

    /// Waits for the answer to a command.
    ///
    /// # Errors
    /// As [`Person::call`].
    pub fn answer(&mut self, asked: Asked) -> Result<Value> {
        let Asked { id, command } = asked;
        while !self.early.contains_key(&id) {
            let mut reply = match self.replies.recv_timeout(STUCK_AFTER) {
                Ok(reply) => reply,
                Err(RecvTimeoutError::Timeout) => bail!("{} is stuck in {command}", self.name),
                Err(RecvTimeoutError::Disconnected) => bail!("{} died in {command}", self.name),
            };
            let whose = reply["id"].as_u64().context("an answer without id")?;
            self.early.insert(whose, reply.take());
        }
        let mut reply = self.early.remove(&id).context("an answer was lost")?;
        if let Some(error) = reply["error"].as_str() {
            bail!("{}: {error}", self.name);
        }
        Ok(reply["ok"].take())
    }

    /// Logs in; answers the device id.
    ///
    /// # Errors
    /// As [`Person::call`].
    pub fn login(&mut self, server: &str, user: &str, password: &str) -> Result<String> {
        let answer =
            self.call("login", json!({"server": server, "user": user, "password": password}))?;
        word(&answer, "device")
    }

    /// Registers, with an activation code if there is one; answers the device id.
    ///
    /// # Errors
    /// As [`Person::call`].
    pub fn register(
        &mut self,
        server: &str,
        user: &str,
        password: &str,
        code: Option<&str>,
    ) -> Result<String> {
        let arguments =
            json!({"server": server, "user": user, "password": password, "token": code});
        let answer = self.call("register", arguments)?;
        word(&answer, "device")
    }

    /// Creates an encrypted room and answers its id.
    ///
    /// # Errors
    /// As [`Person::call`].
    pub fn create_encrypted_room(&mut self, name: &str, invite: &[&str]) -> Result<String> {
        let arguments = json!({"name": name, "encrypted": true, "invite": invite});
        word(&self.call("create_room", arguments)?, "room")
    }

    /// Invites `user`.
    ///
    /// # Errors
    /// As [`Person::call`].
    pub fn invite(&mut self, room: &str, user: &str) -> Result<()> {
        self.call("invite", json!({"room": room, "user": user}))?;
        Ok(())
    }

    /// Waits for an invite to `room` and joins it. Answers who invited.
    ///
    /// # Errors
    /// As [`Person::call`].
    pub fn accept_invite(&mut self, room: &str) -> Result<String> {
        let invite = self.call("await_invite", json!({"room": room, "wait_ms": PATIENCE_MS}))?;
        self.call("join", json!({"room": room}))?;
        word(&invite, "inviter")
    }

    /// Says something.
    ///
    /// # Errors
    /// As [`Person::call`].
    pub fn say(&mut self, room: &str, body: &str) -> Result<()> {
        self.call("send", json!({"room": room, "body": body}))?;
        Ok(())
    }

    /// Waits until `body` from `sender` can be read, and checks that it came encrypted.
    ///
    /// # Errors
    /// As [`Person::call`], and when the message was not encrypted.
    pub fn read(&mut self, room: &str, sender: &str, body: &str) -> Result<()> {
        let arguments =
            json!({"room": room, "body": body, "sender": sender, "wait_ms": PATIENCE_MS});
        let message = self.call("await_message", arguments)?;
        ensure!(message["encrypted"] == true, "{} got {body:?} unencrypted", self.name);
        Ok(())
    }

    /// Waits until the client sees `user` with `membership` in `room`.
    ///
    /// # Errors
    /// As [`Person::call`].
    pub fn see_member(&mut self, room: &str, user: &str, membership: &str) -> Result<()> {
        let arguments =
            json!({"room": room, "user": user, "membership": membership, "wait_ms": PATIENCE_MS});
        self.call("await_member", arguments)?;
        Ok(())
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        // The end of its input ends the client.
        drop(self.commands.take());
        if let Err(error) = self.process.wait() {
            eprintln!("{}: {error}", self.name);
        }
    }
}

/// The string in `field` of an answer.
///
/// # Errors
/// When there is none.
pub fn word(answer: &Value, field: &str) -> Result<String> {
    let text = answer[field].as_str().with_context(|| format!("no {field:?} in {answer}"))?;
    Ok(text.to_owned())
}
