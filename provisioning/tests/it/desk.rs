//! A folder to work in, and the binary to work with.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

/// A fresh folder; every command runs in it.
pub(crate) struct Desk(TempDir);

/// How a command ended, with the folder's name and times masked.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Desk {
    /// A folder with a software token.
    pub(crate) fn new() -> Self {
        let desk = Self(TempDir::new().unwrap());
        desk.write("token.toml", format!("kind = \"software\"\npath = {:?}\n", desk.path("keys")));
        desk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Runs a command line; words are separated by single spaces, `_` stands for a space in a word.
    pub(crate) fn run(&self, line: &str) -> Ended {
        let output = Command::new(env!("CARGO_BIN_EXE_sallyctl"))
            .args(line.split(' ').map(|word| word.replace('_', " ")))
            .current_dir(self.0.path())
            .env_clear()
            .env("SALLYPORT_ADMIN_SOCKET", self.path("admin.sock"))
            .output()
            .unwrap();
        self.ended(&output)
    }

    /// Makes an officer's key and answers its public half.
    pub(crate) fn officer(&self) -> String {
        let made = self.run("ceremony officer-key --enclave alpha.example --token token.toml --allow-software-keys --json").ok();
        let made: serde_json::Value = serde_json::from_str(&made).unwrap();
        made["public"].as_str().unwrap().to_owned()
    }

    fn ended(&self, output: &Output) -> Ended {
        let text = |bytes: &[u8]| masked(&String::from_utf8_lossy(bytes), self.0.path());
        Ended { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Ended {
    /// What was printed; the command must have succeeded.
    pub(crate) fn ok(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{}", self.out);
        self.out
    }

    /// The command must have failed with this code and said this.
    pub(crate) fn fails(self, code: i32, says: &str) {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        assert!(self.err.contains(says), "{}\n does not say {says}", self.err);
    }
}

/// The folder as `FOLDER`, times as `TIME`.
fn masked(text: &str, folder: &Path) -> String {
    let text = text.replace(&folder.display().to_string(), "FOLDER");
    let mut lines = Vec::new();
    for line in text.split('\n') {
        let mut line = line.to_owned();
        while let Some(end) = line.find(" UTC") {
            let start = end - "2026-11-22 01:02:03".len();
            line.replace_range(start..end + " UTC".len(), "TIME");
        }
        lines.push(line);
    }
    lines.join("\n")
}
