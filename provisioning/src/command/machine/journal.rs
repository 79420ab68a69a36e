//! Seals what is new in the machine's journal: its entries are read and hashed here, and the box puts the seal into its audit log.

use std::path::Path;

use anyhow::ensure;
use sallyport_core::{
    admin::{JournalSealed, path},
    journal::{Seal, Sealing, SeqnumId},
};

use crate::{
    client::Box as TheBox,
    journal::{self, OpenJournal},
};

/// The files of one counting of entries, each with the number of its last.
type Counting = (SeqnumId, Vec<(u64, OpenJournal)>);

/// Seals all that is new, the oldest counting first. What cannot be read is left for the next time, and keeps nothing else waiting.
pub(super) fn seal(folder: &Path, the_box: &TheBox) -> anyhow::Result<()> {
    let mut unread = Vec::new();
    let mut seals = Vec::new();
    for (id, files) in countings(folder, &mut unread)? {
        seals.extend(read(id, files, the_box, &mut unread)?);
    }
    for seal in seals {
        let _: JournalSealed = the_box.command(path::JOURNAL, &seal)?;
    }
    ensure!(unread.is_empty(), "{}", unread.join("; "));
    Ok(())
}

fn countings(folder: &Path, unread: &mut Vec<String>) -> anyhow::Result<Vec<Counting>> {
    let mut countings: Vec<Counting> = Vec::new();
    for file in journal::open_all(folder)? {
        match file.tail() {
            Ok((id, tail)) => match countings.iter_mut().find(|(known, _)| *known == id) {
                Some((_, files)) => files.push((tail, file)),
                None => countings.push((id, vec![(tail, file)])),
            },
            Err(why) => unread.push(format!("{why:#}")),
        }
    }
    countings.iter_mut().for_each(|(_, files)| files.sort_by_key(|(tail, _)| *tail));
    Ok(countings)
}

/// The seal of what is new in a counting.
fn read(
    id: SeqnumId,
    files: Vec<(u64, OpenJournal)>,
    the_box: &TheBox,
    unread: &mut Vec<String>,
) -> anyhow::Result<Option<Seal>> {
    let JournalSealed { up_to } = the_box.ask(&format!("{}?seqnum_id={id}", path::JOURNAL))?;
    let mut sealing = Sealing::after(id, up_to);
    for (_, file) in files.into_iter().filter(|(tail, _)| *tail > up_to) {
        let mut longer = sealing.clone();
        let read = file.each(Some((id, up_to)), |entry| longer.take(&entry));
        // What is sealed must still be there after a power cut.
        if let Err(why) = read.and_then(|()| file.sync()) {
            // Its numbers must not be passed by those of later files.
            unread.push(format!("{why:#}"));
            break;
        }
        sealing = longer;
    }
    Ok(sealing.finish())
}
