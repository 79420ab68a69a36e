//! What waits for the token, told to whoever looks and to the log once it is worth a warning.

use std::{collections::BTreeSet, io, path::Path};

use nix::sys::statvfs::statvfs;
use sallyport_core::{admin::Backlog, time::Millis};
use sallyport_store::Store;

/// What waits, and how much room the disk has for more.
///
/// # Errors
/// If the database fails.
pub fn backlog(store: &Store, data_dir: &Path) -> Result<Backlog, sallyport_store::Error> {
    let backlog = store.read(|read| read.backlog())?;
    Ok(Backlog { disk_free: disk_free(data_dir).ok(), ..backlog })
}

/// Bytes that this process may still write to the disk of a folder.
pub(crate) fn disk_free(folder: &Path) -> io::Result<u64> {
    let disk = statvfs(folder)?;
    Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

/// Says a warning when it comes up or gets louder, and not again until it was over.
#[derive(Debug, Default)]
pub struct Watch(BTreeSet<(&'static str, bool)>);

impl Watch {
    /// Logs what is new; answers whether anything was.
    pub fn look(&mut self, backlog: &Backlog, now: Millis) -> bool {
        let warnings = backlog.warnings(now);
        let topics = warnings.iter().map(|warning| warning.topic()).collect();
        let before = std::mem::replace(&mut self.0, topics);
        let new = warnings.iter().filter(|warning| !before.contains(&warning.topic()));
        let mut any = false;
        for warning in new {
            any = true;
            log::warn!(events = backlog.events, age_s = backlog.age_seconds(now); "{warning}");
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_said_once_until_it_gets_louder_or_comes_again() {
        let hours = |n: u64| Millis(n * 3_600_000);
        let waiting = Backlog { events: 1, rooms: 1, since: Some(hours(0)), disk_free: None };
        let mut watch = Watch::default();
        let table = [
            (waiting, 1, false),
            (waiting, 2, true),
            (waiting, 23, false),
            (waiting, 25, true),
            (waiting, 26, false),
            (Backlog::default(), 27, false),
            (waiting, 28, true),
        ];
        for (backlog, at, said) in table {
            assert_eq!(watch.look(&backlog, hours(at)), said, "hour {at}");
        }
    }

    #[test]
    fn the_disk_of_a_folder_has_room() {
        let folder = tempfile::tempdir().unwrap();
        assert!(disk_free(folder.path()).unwrap() > 0);
        assert_eq!(disk_free(&folder.path().join("nowhere")).ok(), None);
    }
}
