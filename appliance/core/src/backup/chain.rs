//! A full backup and those that follow it: together they are one state of the box, that of the last.

use std::collections::BTreeSet;

use super::{BackupId, Contents, Error, Header};
use crate::{digest::Sha256, limits::BACKUP_CHAIN_MAX};

/// One backup of a chain, as its header tells before anything was opened.
#[derive(Clone, Debug)]
pub struct Link {
    /// Its id.
    pub id: BackupId,
    /// Its header.
    pub header: Header,
}

/// Backups that were read to their ends, in order.
#[derive(Default)]
pub struct Chain {
    read: usize,
    media: BTreeSet<Sha256>,
    last: Option<Contents>,
}

impl Chain {
    /// Whether backups follow each other, the first of which is full. Sound headers can lie: what they say is proven when each was read.
    ///
    /// # Errors
    /// [`Error`] says which one does not fit.
    pub fn check(links: &[Link]) -> Result<(), Error> {
        if links.len() > BACKUP_CHAIN_MAX {
            return Err(Error::Content("too many backups at once"));
        }
        let Some(first) = links.first() else { return Err(Error::Content("no backup")) };
        if let Some(follows) = first.header.follows {
            return Err(Error::NotFull { number: first.header.number, follows });
        }
        for (link, before) in links.iter().skip(1).zip(links) {
            let (header, expected) = (&link.header, &first.header.enclave);
            if header.enclave != *expected {
                let (found, expected) = (header.enclave.clone(), expected.clone());
                return Err(Error::OtherEnclave { found, expected });
            }
            if header.follows != Some(before.id) {
                return Err(Error::OutOfOrder { number: header.number });
            }
        }
        Ok(())
    }

    /// Takes the next backup, which was read to its end.
    pub fn push(&mut self, content: Contents) {
        let brought = content.list.iter().zip(&content.brought).filter(|(_, brought)| **brought);
        self.media.extend(brought.map(|((sha256, _), _)| *sha256));
        self.read = self.read.saturating_add(1);
        self.last = Some(content);
    }

    /// The last backup, if every media file on its list came with one of them.
    ///
    /// # Errors
    /// [`Error::Incomplete`] if not.
    pub fn finish(self) -> Result<Contents, Error> {
        let last = self.last.ok_or(Error::Content("no backup"))?;
        let missing = last.list.iter().filter(|(sha256, _)| !self.media.contains(sha256)).count();
        if missing > 0 {
            let missing = u64::try_from(missing).unwrap_or(u64::MAX);
            return Err(Error::Incomplete { missing });
        }
        Ok(last)
    }
}
