//! The protocol of a ceremony: plain text for paper, with lines for the signatures of those who were present.

use sallyport_core::{admin::KeyState, digest::Sha256, sign::PublicKey, time::Millis};
use serde::Serialize;

use crate::output;

/// What happened, and who saw it.
#[derive(Serialize)]
pub(super) struct Protocol {
    what: String,
    enclave: String,
    began: Millis,
    actor: String,
    /// Names as they were typed.
    pub(super) present: Vec<String>,
    steps: Vec<String>,
    facts: Vec<(String, String)>,
    keys: Vec<KeyLine>,
    files: Vec<FileLine>,
}

#[derive(Serialize)]
struct KeyLine {
    what: &'static str,
    name: String,
    public: PublicKey,
    fingerprint: Sha256,
}

#[derive(Serialize)]
struct FileLine {
    name: String,
    sha256: Sha256,
}

impl Protocol {
    pub(super) fn new(what: impl Into<String>, enclave: &str, actor: &str, now: Millis) -> Self {
        Self {
            what: what.into(),
            enclave: enclave.to_owned(),
            began: now,
            actor: actor.to_owned(),
            present: Vec::new(),
            steps: Vec::new(),
            facts: Vec::new(),
            keys: Vec::new(),
            files: Vec::new(),
        }
    }

    pub(super) fn title(&self) -> String {
        format!("{} ({}):", self.what, self.enclave)
    }

    /// Something to know later.
    pub(super) fn fact(&mut self, name: &str, value: impl ToString) {
        self.facts.push((name.to_owned(), value.to_string()));
    }

    /// A key that was made, retired or destroyed.
    pub(super) fn key(&mut self, what: &'static str, name: impl ToString, public: &PublicKey) {
        let fingerprint = Sha256::of(public.to_string().as_bytes());
        self.keys.push(KeyLine {
            what,
            name: name.to_string(),
            public: public.clone(),
            fingerprint,
        });
    }

    /// Keys of the box.
    pub(super) fn states(&mut self, what: &'static str, states: &[KeyState]) {
        states.iter().for_each(|state| self.key(what, &state.name, &state.public));
    }

    /// A file that was read or written.
    pub(super) fn file(&mut self, name: impl ToString, bytes: &[u8]) {
        self.files.push(FileLine { name: name.to_string(), sha256: Sha256::of(bytes) });
    }

    pub(super) fn done(&mut self, number: usize, text: &str, error: Option<&anyhow::Error>) {
        self.steps.push(match error {
            None => format!("{number}. done: {text}"),
            Some(error) => format!("{number}. FAILED: {text}: {error:#}"),
        });
    }

    pub(super) fn stopped(&mut self, number: usize) {
        self.steps.push(format!("{number}. NOT DONE: nobody said yes"));
    }

    /// The protocol as it is printed.
    pub(super) fn text(&self, ended: Millis) -> String {
        let mut text = format!("PROTOCOL OF A KEY CEREMONY\n\n{}\n\n", self.what);
        text.push_str(&output::pairs(&[
            ("enclave", self.enclave.clone()),
            ("begun", output::time(self.began)),
            ("ended", output::time(ended)),
            ("command given by", self.actor.clone()),
            ("present", self.present.join(", ")),
        ]));
        let facts: Vec<_> =
            self.facts.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        text.push_str(&output::pairs(&facts));
        text.push_str("\nSteps\n");
        self.steps.iter().for_each(|step| text.push_str(&format!("  {step}\n")));
        if !self.keys.is_empty() {
            text.push_str("\nKeys (the fingerprint is the SHA-256 of the public key's text)\n");
        }
        for KeyLine { what, name, public, fingerprint } in &self.keys {
            text.push_str(&format!("  {what} {name}\n    {public}\n    {fingerprint}\n"));
        }
        if !self.files.is_empty() {
            text.push_str("\nFiles (SHA-256)\n");
        }
        for FileLine { name, sha256 } in &self.files {
            text.push_str(&format!("  {name}\n    {sha256}\n"));
        }
        text.push_str("\nSignatures\n");
        for name in std::iter::once(&self.actor).chain(&self.present) {
            text.push_str(&format!("\n  ______________________________  {name}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_has_everything_that_witnesses_sign() {
        let now = Millis(1_700_000_000_000);
        let mut protocol = Protocol::new("Rotate the event key", "alpha.example", "alice", now);
        protocol.present = vec!["Bob B.".to_owned()];
        protocol.fact("token", "serial 7");
        let public: PublicKey =
            "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo".parse().unwrap();
        protocol.key("made", "event:0123456789abcdef", &public);
        protocol.file("copy.keys", b"content");
        protocol.done(1, "make a key", None);
        protocol.done(2, "write it down", Some(&anyhow::anyhow!("no pen")));
        protocol.stopped(3);
        let text = protocol.text(now);
        for part in [
            "Rotate the event key",
            "alpha.example",
            "2023-11-14 22:13:20",
            "serial 7",
            "1. done: make a key",
            "2. FAILED: write it down: no pen",
            "3. NOT DONE",
            "made event:0123456789abcdef",
            &Sha256::of(public.to_string().as_bytes()).to_string(),
            &Sha256::of(b"content").to_string(),
            "______________________________  alice",
            "______________________________  Bob B.",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }
}
