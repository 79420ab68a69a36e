//! Copies of a key file that a PIN protects, for the safe.

use std::path::Path;

use super::{
    SoftwareToken,
    file::{self, KeyFile, Protection},
};
use crate::{Error, Pin, Secret32};

impl SoftwareToken {
    /// Writes the keys of a key file to a new one, encrypted with a PIN (argon2id).
    ///
    /// # Errors
    /// If the file is protected by a PIN already (copy it as it is), one of the two cannot be read or written, or the copy is there already.
    pub fn copy_with_pin(path: &Path, copy: &Path, pin: &Pin) -> Result<(), Error> {
        let stored = KeyFile::read(path)?;
        if let Protection::Argon2id(_) = stored.protection {
            let what = "another PIN for a key file that has one: copy it as it is";
            return Err(Error::Unsupported(what.to_owned()));
        }
        let master = file::read_master(path)?;
        file::create(copy, Some(pin))?;
        let new = master_of(copy, pin)?;
        fill(&stored, path, &master, copy, &new)
    }

    /// Makes a key file, with its own key beside it, of a copy that [`SoftwareToken::copy_with_pin`] made.
    ///
    /// # Errors
    /// If the PIN is wrong, one of the two cannot be read or written, or the key file is there already.
    pub fn of_copy(copy: &Path, pin: &Pin, path: &Path) -> Result<(), Error> {
        let stored = KeyFile::read(copy)?;
        let master = master_of(copy, pin)?;
        file::create(path, None)?;
        let new = file::read_master(path)?;
        fill(&stored, copy, &master, path, &new)
    }
}

fn master_of(path: &Path, pin: &Pin) -> Result<Secret32, Error> {
    match KeyFile::read(path)?.protection {
        Protection::Argon2id(argon2id) => argon2id.master(path, pin),
        Protection::File => Err(Error::FileFormat { path: path.to_owned() }),
    }
}

fn fill(
    from: &KeyFile,
    path: &Path,
    master: &Secret32,
    to: &Path,
    new: &Secret32,
) -> Result<(), Error> {
    let mut target = KeyFile::read(to)?;
    for (name, kind, secret) in from.open(path, master)? {
        target.add(new, &name, kind, &secret)?;
    }
    target.write(to)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sallyport_core::sign::{KeyRole, Policy};

    use super::*;
    use crate::{KeyKind, Token as _};

    #[test]
    fn keys_survive_a_copy_and_a_wrong_pin_opens_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let open = |name: &str| {
            let policy = Policy { server_name: "alpha.example".try_into().unwrap() };
            SoftwareToken::open_or_create(&at(name), Duration::ZERO, policy).unwrap()
        };
        let token = open("keys");
        let name = token.generate(KeyRole::Audit, KeyKind::P256).unwrap();
        let pin = Pin::new("a long pin".to_owned());
        SoftwareToken::copy_with_pin(&at("keys"), &at("copy"), &pin).unwrap();
        assert!(!at("copy.key").exists(), "nothing but the PIN opens the copy");
        let wrong = Pin::new("another pin".to_owned());
        let refused = SoftwareToken::of_copy(&at("copy"), &wrong, &at("new"));
        assert!(matches!(refused, Err(Error::PinIncorrect)), "{refused:?}");
        assert!(!at("new").exists());
        SoftwareToken::of_copy(&at("copy"), &pin, &at("new")).unwrap();
        let restored = open("new");
        assert_eq!(restored.public_key(&name).unwrap(), token.public_key(&name).unwrap());
        // Neither replaces a file.
        let again = SoftwareToken::of_copy(&at("copy"), &pin, &at("new"));
        assert!(matches!(again, Err(Error::FileExists { .. })), "{again:?}");
        let again = SoftwareToken::copy_with_pin(&at("copy"), &at("copy 2"), &pin);
        assert!(matches!(again, Err(Error::Unsupported(_))), "{again:?}");
    }
}
