//! Secrets that are wiped when they are dropped and never printed.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use zeroize::Zeroizing;

use crate::Error;

/// 32 secret bytes: a shared secret or a key. On the heap, because what is moved leaves a copy where it was.
pub struct Secret32(Box<Zeroizing<[u8; Self::BYTES]>>);

impl Secret32 {
    /// Bytes of the secret.
    pub const BYTES: usize = 32;

    /// Takes bytes that the caller wipes.
    pub fn new(bytes: &[u8; Self::BYTES]) -> Self {
        let mut secret = Self::zero();
        secret.0.copy_from_slice(bytes);
        secret
    }

    /// The bytes. Do not copy them to where they are not wiped.
    pub fn expose(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// Fresh random bytes.
    ///
    /// # Errors
    /// [`Error::Random`] if the operating system has none.
    pub fn random() -> Result<Self, Error> {
        let mut secret = Self::zero();
        getrandom::fill(secret.0.as_mut_slice()).map_err(Error::Random)?;
        Ok(secret)
    }

    /// Takes bytes that the caller wipes, if they are as many as there must be.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        <&[u8; Self::BYTES]>::try_from(bytes).ok().map(Self::new)
    }

    /// Has the bytes written by a function that cannot return them.
    pub(crate) fn fill<E>(
        write: impl FnOnce(&mut [u8; Self::BYTES]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut secret = Self::zero();
        write(&mut secret.0)?;
        Ok(secret)
    }

    fn zero() -> Self {
        Self(Box::new(Zeroizing::new([0; Self::BYTES])))
    }
}

impl fmt::Debug for Secret32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret32(..)")
    }
}

/// The PIN of a token.
#[derive(Clone)]
pub struct Pin(Zeroizing<String>);

impl Pin {
    /// Bytes of the longest PIN that is read from a file.
    pub const BYTES_MAX: usize = 255;

    /// Takes a PIN that an operator typed.
    pub fn new(pin: String) -> Self {
        Self(Zeroizing::new(pin))
    }

    /// Reads a PIN from a file that nobody but its owner may read. One line end after it is left out.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::PinFile { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(Error::FileMode { path: path.to_owned(), mode });
        }
        Self::read(path, file)
    }

    /// Reads a PIN from a file that somebody else keeps from others.
    pub(crate) fn from_credential(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::PinFile { path: path.to_owned(), source };
        Self::read(path, File::open(path).map_err(failed)?)
    }

    fn read(path: &Path, mut file: File) -> Result<Self, Error> {
        let failed = |source| Error::PinFile { path: path.to_owned(), source };
        // One byte more than allowed tells a long file; with the capacity nothing is moved and left behind in memory.
        let mut text = Zeroizing::new(String::with_capacity(Self::BYTES_MAX + 2));
        file.by_ref().take(Self::BYTES_MAX as u64 + 2).read_to_string(&mut text).map_err(failed)?;
        if text.ends_with('\n') {
            text.pop();
        }
        if text.is_empty() || text.len() > Self::BYTES_MAX {
            return Err(failed(io::Error::new(
                io::ErrorKind::InvalidData,
                "a PIN has 1 to 255 bytes",
            )));
        }
        Ok(Self(text))
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_pin_file_is_private_bounded_and_without_its_line_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pin");
        let cases: [(&str, u32, Result<&str, &str>); 7] = [
            ("1234", 0o600, Ok("1234")),
            ("1234\n", 0o400, Ok("1234")),
            ("12 34 \n\n", 0o600, Ok("12 34 \n")),
            ("1234", 0o640, Err("may be read by others")),
            ("1234", 0o604, Err("may be read by others")),
            ("\n", 0o600, Err("cannot be read")),
            (&"x".repeat(300), 0o600, Err("cannot be read")),
        ];
        for (text, mode, expected) in cases {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let read = Pin::from_file(&path);
            fs::remove_file(&path).unwrap();
            match expected {
                Ok(pin) => assert_eq!(read.unwrap().expose(), pin),
                Err(part) => assert!(read.unwrap_err().to_string().contains(part), "{text:?}"),
            }
        }
        assert!(matches!(Pin::from_file(&path), Err(Error::PinFile { .. })));
    }

    #[test]
    fn secrets_are_not_printed() {
        assert_eq!(format!("{:?}", Pin::new("1234".to_owned())), "Pin(..)");
        assert_eq!(format!("{:?}", Secret32::new(&[1; 32])), "Secret32(..)");
    }
}
