//! Seals of the machine's journal: what systemd-journald had written, on record in the audit log.
//!
//! A *seal* stands for a stretch of entries by the root of a Merkle tree over their hashes ([`crate::merkle`]). It is a row of the
//! audit log, so whoever changes, removes or inserts an entry later must change the chain as well, and what the token signed of it.
//! Entries are known by where journald counts them (`__CURSOR`: the id of the counting, and a number that only grows), not by their
//! order in time: a clock may be wrong, and a power cut begins a new counting. The hash of an entry depends on its fields and not on
//! their order, so that another version of `journalctl` reads the same from the same files.

mod export;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use export::{Entries, Unreadable};

use crate::{audit::Row, digest::Sha256, hex::parse_u128, merkle::Tree, time::Millis};

/// The action of the row of a seal.
pub const JOURNAL_SEALED: &str = "journal.seal";

/// The id of a counting of entries: journald begins one with a new machine, and where it must leave a file behind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqnumId(pub u128);

/// A text that is not 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an id of journal entries: 32 hexadecimal digits are expected")]
pub struct NotASeqnumId;

/// An entry of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Which counting it is of.
    pub seqnum_id: SeqnumId,
    /// Its number there.
    pub seqnum: u64,
    /// The hash of both and of all fields.
    pub hash: Sha256,
}

/// What a stretch of the journal was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// Which counting it is of.
    pub seqnum_id: SeqnumId,
    /// The number of the last entry before; 0 for none.
    pub after: u64,
    /// The number of the last entry.
    pub last: u64,
    /// How many entries: journald may leave numbers out.
    pub entries: u64,
    /// The root of the Merkle tree over their hashes, by their numbers.
    pub merkle_root: Sha256,
}

impl Seal {
    /// Whether it is of at least one entry, and of no more than there are numbers.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        self.last
            .checked_sub(self.after)
            .is_some_and(|numbers| (1..=numbers).contains(&self.entries))
    }

    /// What a row of the audit log says of it; its subject is the id of the counting.
    #[must_use]
    pub fn details(&self) -> [(&'static str, String); 4] {
        [
            ("after", self.after.to_string()),
            ("last", self.last.to_string()),
            ("entries", self.entries.to_string()),
            ("merkle_root", self.merkle_root.to_string()),
        ]
    }

    /// The seal that a row of the audit log is of; `None` if it is of something else.
    #[must_use]
    pub fn of(row: &Row) -> Option<Self> {
        let entry = &row.entry;
        let detail = |name| entry.details.get(name);
        let number = |name| detail(name).and_then(|text| text.parse().ok());
        if entry.action != JOURNAL_SEALED {
            return None;
        }
        Some(Self {
            seqnum_id: entry.subject.parse().ok()?,
            after: number("after")?,
            last: number("last")?,
            entries: number("entries")?,
            merkle_root: detail("merkle_root")?.parse().ok()?,
        })
    }
}

/// A seal in the making.
#[derive(Clone, Debug)]
pub struct Sealing {
    seqnum_id: SeqnumId,
    after: u64,
    last: u64,
    tree: Tree,
}

impl Sealing {
    /// For what comes after an entry of this counting.
    #[must_use]
    pub fn after(seqnum_id: SeqnumId, after: u64) -> Self {
        Self { seqnum_id, after, last: after, tree: Tree::default() }
    }

    /// Takes an entry, unless it is of another counting or its number was passed: two files may both have it.
    pub fn take(&mut self, entry: &Entry) {
        if entry.seqnum_id == self.seqnum_id && entry.seqnum > self.last {
            self.last = entry.seqnum;
            self.tree.push(entry.hash.as_bytes());
        }
    }

    /// The seal; `None` if nothing came.
    #[must_use]
    pub fn finish(self) -> Option<Seal> {
        let Self { seqnum_id, after, last, tree } = self;
        let seal = Seal { seqnum_id, after, last, entries: tree.size(), merkle_root: tree.root() };
        (last > after).then_some(seal)
    }
}

/// A seal as it stands in the audit log.
#[derive(Clone, Copy, Debug)]
pub struct Sealed {
    /// The number of its row.
    pub row: u64,
    /// When the row was written.
    pub at: Millis,
    /// What it says.
    pub seal: Seal,
}

/// A journal that is not what was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Altered {
    /// There are too few entries, or too many.
    #[error(
        "the journal was changed: row {row} of the audit log sealed {sealed} of its entries, and there are {found}: entries were removed or added"
    )]
    Number {
        /// The row of the audit log.
        row: u64,
        /// How many there were.
        sealed: u64,
        /// How many there are.
        found: u64,
    },
    /// An entry has another content.
    #[error(
        "the journal was changed: among the {sealed} entries that row {row} of the audit log sealed, one or more are not what they were"
    )]
    Content {
        /// The row of the audit log.
        row: u64,
        /// How many entries it is of.
        sealed: u64,
    },
    /// Two files disagree.
    #[error("the journal was changed: two files have different entries with the number {0}")]
    Two(u64),
}

/// A journal that was held against its seals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// Seals that their entries fit.
    pub seals: u64,
    /// The entries that they are of.
    pub entries: u64,
    /// The row of the oldest of these seals.
    pub first_row: Option<u64>,
    /// When the newest of them was made: what came later is not sealed.
    pub until: Option<Millis>,
    /// Older seals whose entries are no longer kept, or not all of them.
    pub gone: u64,
    /// Entries that no seal vouches for: those after the last seal, and those of which a part is gone.
    pub unsealed: u64,
}

/// Holds the entries of a journal against the seals of the audit log, which are in the order of their rows.
///
/// A journal is bounded: its oldest files go. So the seals before the first of which anything is there count as gone, and that one as
/// well if a part of it is missing. All later ones must be there to the last entry.
///
/// # Errors
/// What was changed, by the first seal that does not fit.
pub fn compare(seals: &[Sealed], mut entries: Vec<Entry>) -> Result<Compared, Altered> {
    entries.sort_unstable();
    entries.dedup();
    let twice = entries.array_windows().find(|[a, b]| place(a) == place(b));
    if let Some([entry, _]) = twice {
        return Err(Altered::Two(entry.seqnum));
    }
    let mut compared = Compared::default();
    let mut is_kept = false;
    for Sealed { row, at, seal } in seals {
        let of_it = stretch(&entries, seal);
        let mut tree = Tree::default();
        of_it.iter().for_each(|entry| tree.push(entry.hash.as_bytes()));
        let (sealed, found) = (seal.entries, tree.size());
        let is_oldest = !is_kept;
        is_kept |= found > 0;
        if is_oldest && found < sealed {
            compared.gone += 1;
        } else if found != sealed {
            return Err(Altered::Number { row: *row, sealed, found });
        } else if tree.root() != seal.merkle_root {
            return Err(Altered::Content { row: *row, sealed });
        } else {
            compared.seals += 1;
            compared.entries += found;
            compared.first_row.get_or_insert(*row);
            compared.until = Some(*at);
        }
    }
    let all = u64::try_from(entries.len()).unwrap_or(u64::MAX);
    compared.unsealed = all.saturating_sub(compared.entries);
    Ok(compared)
}

fn place(entry: &Entry) -> (SeqnumId, u64) {
    (entry.seqnum_id, entry.seqnum)
}

/// Those of the entries, which are sorted, that a seal is of.
fn stretch<'e>(entries: &'e [Entry], seal: &Seal) -> &'e [Entry] {
    let up_to = |seqnum| entries.partition_point(|entry| place(entry) <= (seal.seqnum_id, seqnum));
    entries.get(up_to(seal.after)..up_to(seal.last)).unwrap_or_default()
}

impl fmt::Display for SeqnumId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for SeqnumId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SeqnumId {
    type Err = NotASeqnumId;

    fn from_str(text: &str) -> Result<Self, NotASeqnumId> {
        parse_u128(text).map(Self).ok_or(NotASeqnumId)
    }
}

impl Serialize for SeqnumId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SeqnumId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audit::{self, append};

    fn entry(id: u128, seqnum: u64) -> Entry {
        let hash = Sha256::of_parts(&[&id.to_be_bytes(), &seqnum.to_be_bytes()]);
        Entry { seqnum_id: SeqnumId(id), seqnum, hash }
    }

    fn seal(id: u128, after: u64, numbers: &[u64]) -> Seal {
        let mut sealing = Sealing::after(SeqnumId(id), after);
        numbers.iter().for_each(|number| sealing.take(&entry(id, *number)));
        sealing.finish().unwrap()
    }

    /// Two countings, as after a power cut, with three seals; row 7 leaves a number out.
    fn journal() -> (Vec<Sealed>, Vec<Entry>) {
        let seals = [seal(9, 0, &[1, 2, 3]), seal(9, 3, &[4, 6]), seal(5, 0, &[7, 8])];
        let seals = [(3, seals[0]), (7, seals[1]), (8, seals[2])];
        let sealed = seals.map(|(row, seal)| Sealed { row, at: Millis(row * 10), seal });
        let kept = [(9, 1), (9, 2), (9, 3), (9, 4), (9, 6), (5, 7), (5, 8), (5, 9)];
        (sealed.to_vec(), kept.iter().map(|(id, number)| entry(*id, *number)).collect())
    }

    #[test]
    fn a_journal_that_nobody_changed_fits_its_seals() {
        let (seals, mut entries) = journal();
        let whole = Compared {
            seals: 3,
            entries: 7,
            first_row: Some(3),
            until: Some(Millis(80)),
            gone: 0,
            unsealed: 1,
        };
        assert_eq!(compare(&seals, entries.clone()), Ok(whole));
        // Files may overlap, and come in any order.
        entries.extend(entries.clone());
        entries.reverse();
        assert_eq!(compare(&seals, entries), Ok(whole));
        assert_eq!(compare(&[], vec![]), Ok(Compared::default()));
    }

    #[test]
    fn the_oldest_entries_may_be_gone_and_no_others() {
        let (seals, entries) = journal();
        let gone = |from: usize| compare(&seals, entries[from..].to_vec()).unwrap();
        assert_eq!((gone(3).seals, gone(3).gone, gone(3).unsealed), (2, 1, 1));
        // A part of the first is there, which proves nothing.
        assert_eq!((gone(2).seals, gone(2).gone, gone(2).unsealed), (2, 1, 2));
        assert_eq!((gone(7).seals, gone(7).gone, gone(7).unsealed), (0, 3, 1));
        let without = |at: usize| {
            let mut left = entries.clone();
            left.remove(at);
            compare(&seals, left)
        };
        let number = |row, sealed, found| Err(Altered::Number { row, sealed, found });
        assert_eq!(without(3), number(7, 2, 1));
        assert_eq!(without(5), number(8, 2, 1));
        let whole_file = entries.iter().copied().filter(|entry| entry.seqnum_id.0 == 9).collect();
        assert_eq!(compare(&seals, whole_file), number(8, 2, 0));
    }

    #[test]
    fn what_was_changed_or_added_is_found() {
        let (seals, entries) = journal();
        for (at, row, sealed) in [(0, 3, 3), (4, 7, 2), (6, 8, 2)] {
            let mut changed = entries.clone();
            changed[at].hash.0[31] ^= 1;
            assert_eq!(compare(&seals, changed), Err(Altered::Content { row, sealed }));
        }
        let with = |more: Entry| compare(&seals, [&entries[..], &[more]].concat());
        assert_eq!(with(entry(9, 5)), Err(Altered::Number { row: 7, sealed: 2, found: 3 }));
        let other = Entry { hash: Sha256([1; 32]), ..entry(9, 4) };
        assert_eq!(with(other), Err(Altered::Two(4)));
        // Behind the last seal anybody can write, and it is said so.
        assert_eq!(with(entry(5, 10)).unwrap().unsealed, 2);
    }

    #[test]
    fn a_seal_comes_back_from_its_row() {
        let seal = seal(0xab, 3, &[4, 6]);
        let row = |action: &str, seal: &Seal| {
            let details = seal.details().map(|(key, value)| (key.to_owned(), value));
            let entry = audit::Entry {
                at: Millis(1),
                actor: "journal".to_owned(),
                evidence: String::new(),
                approvals: vec![],
                action: action.to_owned(),
                subject: seal.seqnum_id.to_string(),
                details: details.into(),
            };
            append(audit::Tip::default(), entry)
        };
        assert_eq!(Seal::of(&row(JOURNAL_SEALED, &seal)), Some(seal));
        assert_eq!(Seal::of(&row("journal.seal.failed", &seal)), None);
        assert_eq!((seal.last, seal.entries, seal.is_possible()), (6, 2, true));
        for (after, last, entries) in [(4, 4, 1), (5, 4, 1), (4, 6, 3), (4, 6, 0)] {
            assert!(!Seal { after, last, entries, ..seal }.is_possible());
        }
        assert_eq!(Sealing::after(SeqnumId(1), 3).finish(), None);
    }

    proptest! {
        #[test]
        fn any_change_behind_the_first_seal_is_found(at in 3_usize..7, what in 0_u8..3, byte in 0_usize..32) {
            let (seals, mut entries) = journal();
            match what {
                0 => drop(entries.remove(at)),
                1 => entries[at].hash.0[byte] ^= 0x80,
                _ => entries[at].seqnum += 100,
            }
            prop_assert!(compare(&seals, entries).is_err());
        }
    }
}
