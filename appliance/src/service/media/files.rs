//! Files of media, named by the SHA-256 of their content: equal content takes its room once.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use ring::digest;
use sallyport_store::FileHash;

use super::MediaError;

/// The folder with the files.
pub struct Files {
    folder: PathBuf,
}

impl Files {
    /// Opens the folder, makes it if needed, and removes what interrupted uploads left.
    ///
    /// # Errors
    /// If the folder cannot be made or read.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        let files = Self { folder };
        match fs::remove_dir_all(files.receiving()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(files.receiving())?;
        Ok(files)
    }

    /// The path of a file.
    #[must_use]
    pub fn path(&self, sha256: &FileHash) -> PathBuf {
        let name: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        let (folder, rest) = name.split_at(2);
        self.folder.join(folder).join(rest)
    }

    /// Begins to receive a file of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn receive(&self, random: [u8; 18], bytes_max: u64) -> Result<Receiving, MediaError> {
        let path = self.receiving().join(super::media_id(random));
        let file = File::create_new(&path)?;
        let folder = self.folder.clone();
        let context = digest::Context::new(&digest::SHA256);
        Ok(Receiving { file, path, folder, context, size: 0, bytes_max })
    }

    fn receiving(&self) -> PathBuf {
        self.folder.join("receiving")
    }
}

/// A file that is being received. It goes when dropped, unless it was finished.
pub struct Receiving {
    file: File,
    path: PathBuf,
    folder: PathBuf,
    context: digest::Context,
    size: u64,
    bytes_max: u64,
}

impl Receiving {
    /// Writes the next piece.
    ///
    /// # Errors
    /// If the file gets too large or the disk is full.
    pub fn write(&mut self, piece: &[u8]) -> Result<(), MediaError> {
        self.size = self.size.saturating_add(piece.len() as u64);
        if self.size > self.bytes_max {
            return Err(MediaError::TooLarge(self.bytes_max));
        }
        self.context.update(piece);
        self.file.write_all(piece)?;
        Ok(())
    }

    /// Puts the file on disk under its name, and answers its hash and its size in bytes.
    pub(super) fn finish(self) -> Result<(FileHash, u64), MediaError> {
        let mut sha256 = FileHash::default();
        for (to, from) in sha256.iter_mut().zip(self.context.clone().finish().as_ref()) {
            *to = *from;
        }
        let files = Files { folder: self.folder.clone() };
        let path = files.path(&sha256);
        if path.try_exists()? {
            return Ok((sha256, self.size));
        }
        self.file.sync_all()?;
        let folder = path.parent().unwrap_or(&self.folder);
        if !folder.try_exists()? {
            fs::create_dir_all(folder)?;
            sync(&self.folder)?;
        }
        fs::rename(&self.path, &path)?;
        sync(folder)?;
        Ok((sha256, self.size))
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        // A finished file has moved away; of another, what remains is removed at the next start.
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!(error:err = error; "an interrupted upload could not be removed");
        }
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn equal_content_is_kept_once_and_interrupted_uploads_go() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path().join("media")).unwrap();
        for number in [1, 2] {
            let mut file = files.receive([number; 18], 100).unwrap();
            file.write(b"hello ").unwrap();
            file.write(b"world").unwrap();
            let (sha256, size) = file.finish().unwrap();
            assert_eq!(size, 11);
            assert_eq!(fs::read(files.path(&sha256)).unwrap(), b"hello world");
        }
        let mut dropped = files.receive([3; 18], 100).unwrap();
        dropped.write(b"x").unwrap();
        assert_eq!(count(&files.receiving()), 1);
        drop(dropped);
        assert_eq!(count(&files.receiving()), 0);
        let mut large = files.receive([4; 18], 3).unwrap();
        assert!(matches!(large.write(b"four"), Err(MediaError::TooLarge(3))));
        fs::write(files.receiving().join("left"), b"x").unwrap();
        drop(large);
        let files = Files::open(directory.path().join("media")).unwrap();
        assert_eq!(count(&files.receiving()), 0);
    }
}
