//! Whether a bundle is the next one: replays, gaps and rewritten history are found from the header and what was imported.

use std::fmt;

use super::{Header, Manifest};
use crate::{digest::Sha256, incarnation::Incarnation};

/// How far the bundles of a peer were imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The life of the peer's database: from its newest card.
    pub incarnation: Incarnation,
    /// The last bundle of this life below which none is missing; none before the first.
    pub last: Option<Last>,
}

/// A bundle that was imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    /// Its sequence number.
    pub seq: u64,
    /// The hash of its manifest.
    pub manifest: Sha256,
}

/// Where a bundle belongs. Only [`Sequence::Next`] may be imported without further questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequence {
    /// It follows the last one, or is the first.
    Next,
    /// It was imported before. Nothing is to be done but to acknowledge it again.
    Duplicate,
    /// It came before the one it follows. Events may be taken whose prerequisites are met; device lists, one-time keys
    /// and to-device messages wait until the gap is closed, or declared lost by an officer.
    Gap {
        /// The sequence number that should come next.
        expected: u64,
        /// The one that came.
        got: u64,
    },
    /// Another bundle was imported under the same number. Either the peer was restored without saying so, or somebody
    /// has its courier key: to be looked into before anything of this peer is imported.
    Equivocation {
        /// The number that was used twice.
        seq: u64,
    },
    /// The peer was restored from a backup: the manifest must bring a card that renews the one we have and names this
    /// incarnation.
    NewIncarnation,
    /// From before the peer's last restore: what it says was undone by that.
    Retired,
}

/// Holds a header against what was imported from its sender.
///
/// `imported` gives the manifest hash of another bundle of the same incarnation, if it was imported and is still known;
/// `retired` are the sender's incarnations before this one.
pub fn sequence(
    position: &Position,
    imported: impl FnOnce(u64) -> Option<Sha256>,
    retired: &[Incarnation],
    header: &Header,
) -> Sequence {
    if retired.contains(&header.incarnation) {
        return Sequence::Retired;
    }
    if header.incarnation != position.incarnation {
        return Sequence::NewIncarnation;
    }
    let known = match position.last {
        Some(last) if last.seq == header.seq => Some(last.manifest),
        _ => imported(header.seq),
    };
    if known.is_some_and(|manifest| manifest != header.manifest) {
        return Sequence::Equivocation { seq: header.seq };
    }
    let last = position.last.map_or(0, |last| last.seq);
    if known.is_some() || header.seq <= last {
        return Sequence::Duplicate;
    }
    match last.saturating_add(1) {
        expected if expected == header.seq => Sequence::Next,
        expected => Sequence::Gap { expected, got: header.seq },
    }
}

/// Whether a manifest that is [`Sequence::Next`] continues the chain of manifests: it names the hash of the last one. If
/// not, it is to be treated as [`Sequence::Equivocation`].
pub fn continues(position: &Position, manifest: &Manifest) -> bool {
    manifest.previous == position.last.map(|last| last.manifest)
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Next => write!(f, "is the next bundle"),
            Self::Duplicate => write!(f, "was imported before: nothing to do"),
            Self::Gap { expected, got } => {
                write!(
                    f,
                    "is number {got}, but {expected} has not come yet: import that one first, or have an officer declare it lost"
                )
            }
            Self::Equivocation { seq } => {
                write!(
                    f,
                    "another bundle had the number {seq}: stop, and ask the peer's officer whether its box was restored or its courier key stolen"
                )
            }
            Self::NewIncarnation => {
                write!(
                    f,
                    "comes from a restored box: it must bring a card for that, signed by the peer's root key"
                )
            }
            Self::Retired => write!(f, "is from before the peer's box was restored: nothing to do"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::tests::header;

    #[test]
    fn places_in_the_sequence() {
        let (now, before, after) =
            (Incarnation([1; 16]), Incarnation([2; 16]), Incarnation([3; 16]));
        let hash = |seq: u64| Sha256::of(&seq.to_be_bytes());
        let first = Position { incarnation: now, last: None };
        let fifth = Position { last: Some(Last { seq: 5, manifest: hash(5) }), ..first };
        let bundle = |incarnation, seq, manifest| Header { incarnation, seq, manifest, ..header() };
        let equivocation = |seq| Sequence::Equivocation { seq };
        let gap = |expected, got| Sequence::Gap { expected, got };
        let table = [
            ("first", first, bundle(now, 1, hash(1)), Sequence::Next),
            ("first is missing", first, bundle(now, 2, hash(2)), gap(1, 2)),
            ("first of another life", first, bundle(after, 1, hash(1)), Sequence::NewIncarnation),
            ("next", fifth, bundle(now, 6, hash(6)), Sequence::Next),
            ("gap", fifth, bundle(now, 8, hash(8)), gap(6, 8)),
            ("again", fifth, bundle(now, 5, hash(5)), Sequence::Duplicate),
            ("old again", fifth, bundle(now, 3, hash(3)), Sequence::Duplicate),
            ("again above a gap", fifth, bundle(now, 9, hash(9)), Sequence::Duplicate),
            ("too old to be known", fifth, bundle(now, 1, hash(77)), Sequence::Duplicate),
            ("last rewritten", fifth, bundle(now, 5, hash(7)), equivocation(5)),
            ("old rewritten", fifth, bundle(now, 3, hash(7)), equivocation(3)),
            ("rewritten above a gap", fifth, bundle(now, 9, hash(7)), equivocation(9)),
            ("restored", fifth, bundle(after, 1, hash(1)), Sequence::NewIncarnation),
            ("from before", fifth, bundle(before, 6, hash(6)), Sequence::Retired),
        ];
        for (what, position, header, expected) in table {
            let imported = |seq| [3, 9].contains(&seq).then(|| hash(seq));
            let found = sequence(&position, imported, &[before], &header);
            assert_eq!(found, expected, "{what}");
        }
        let last = Some(Last { seq: u64::MAX, manifest: hash(5) });
        let end = bundle(now, u64::MAX, hash(5));
        let found = sequence(&Position { last, ..first }, |_| None, &[], &end);
        assert_eq!(found, Sequence::Duplicate);
    }
}
