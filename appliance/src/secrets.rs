//! Secrets of the box that no token holds: made at the first start, kept on the data partition.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use ring::hmac;
use zeroize::Zeroizing;

const BYTES: usize = 32;

/// The key of the HMAC chain over local events: the signer signs only what was accepted here.
///
/// # Errors
/// If the file cannot be read or made, or is not a key.
pub fn event_mac(path: &Path, fresh: [u8; BYTES]) -> io::Result<hmac::Key> {
    let fresh = Zeroizing::new(fresh);
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(mut file) => {
            file.write_all(&*fresh)?;
            file.sync_all()?;
            Ok(hmac::Key::new(hmac::HMAC_SHA256, &*fresh))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let bytes = Zeroizing::new(fs::read(path)?);
            if bytes.len() != BYTES {
                let message = "it is not 32 bytes long: restore it from the newest backup";
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_for_this_user_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("event-mac.key");
        let first = event_mac(&path, [1; 32]).unwrap();
        let second = event_mac(&path, [2; 32]).unwrap();
        let tag = hmac::sign(&first, b"event");
        hmac::verify(&second, b"event", tag.as_ref()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("event-mac.key");
        fs::write(&path, b"short").unwrap();
        assert!(event_mac(&path, [1; 32]).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"short");
    }
}
