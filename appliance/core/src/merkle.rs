//! Merkle trees over a list (RFC 6962, section 2.1): one hash stands for many entries, in their order, and a later proof
//! that one of them was among them takes a logarithm of hashes.

use crate::digest::Sha256;

/// A tree in the making. It keeps the roots of its complete subtrees, at most one per power of two, and no entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    /// The largest subtree first.
    roots: Vec<Sha256>,
}

impl Tree {
    /// The tree that [`Tree::size`] and [`Tree::to_bytes`] were taken of; `None` if they do not fit each other.
    #[must_use]
    pub fn from_parts(size: u64, roots: &[u8]) -> Option<Self> {
        let (hashes, rest) = roots.as_chunks::<32>();
        let fits = rest.is_empty() && u32::try_from(hashes.len()) == Ok(size.count_ones());
        fits.then(|| Self { size, roots: hashes.iter().map(|hash| Sha256(*hash)).collect() })
    }

    /// How many entries there are.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What [`Tree::from_parts`] takes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.roots.iter().flat_map(|root| root.0).collect()
    }

    /// Appends an entry.
    pub fn push(&mut self, entry: &[u8]) {
        let mut root = Sha256::of_parts(&[&[0], entry]);
        // As many subtrees become one as the size has trailing ones.
        for _ in 0..self.size.trailing_ones() {
            let Some(left) = self.roots.pop() else { break };
            root = node(&left, &root);
        }
        self.roots.push(root);
        self.size = self.size.saturating_add(1);
    }

    /// The hash that stands for all entries; that of nothing for an empty tree.
    #[must_use]
    pub fn root(&self) -> Sha256 {
        let mut roots = self.roots.iter().rev().copied();
        let Some(last) = roots.next() else { return Sha256::of(b"") };
        roots.fold(last, |right, left| node(&left, &right))
    }
}

fn node(left: &Sha256, right: &Sha256) -> Sha256 {
    Sha256::of_parts(&[&[1], left.as_bytes(), right.as_bytes()])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The entries and roots with which implementations of Certificate Transparency are tested.
    const VECTORS: [(&[u8], &str); 8] = [
        (b"", "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
        (b"\x00", "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
        (b"\x10", "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"),
        (b"\x20\x21", "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"),
        (b"\x30\x31", "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4"),
        (b"@ABC", "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef"),
        (b"PQRSTUVW", "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"),
        (b"`abcdefghijklmno", "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"),
    ];

    #[test]
    fn the_roots_are_those_of_the_test_vectors() {
        let mut tree = Tree::default();
        assert_eq!(tree.root(), Sha256::of(b""));
        for (entry, root) in VECTORS {
            tree.push(entry);
            assert_eq!(tree.root().to_string(), root, "{} entries", tree.size());
        }
    }

    /// The definition of the RFC, word for word.
    fn by_definition(entries: &[Vec<u8>]) -> Sha256 {
        match entries {
            [] => Sha256::of(b""),
            [entry] => Sha256::of_parts(&[&[0], entry]),
            _ => {
                let (left, right) = entries.split_at(entries.len().next_power_of_two() / 2);
                node(&by_definition(left), &by_definition(right))
            }
        }
    }

    proptest! {
        #[test]
        fn a_tree_that_was_put_aside_goes_on(entries in prop::collection::vec(any::<Vec<u8>>(), 0..70)) {
            let mut tree = Tree::default();
            for entry in &entries {
                tree = Tree::from_parts(tree.size(), &tree.to_bytes()).unwrap();
                tree.push(entry);
            }
            prop_assert_eq!(tree.root(), by_definition(&entries));
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_no_tree() {
        for (size, bytes) in [(1, 0), (1, 33), (2, 64), (3, 32), (0, 32)] {
            assert_eq!(Tree::from_parts(size, &vec![0; bytes]), None, "{size}, {bytes}");
        }
    }
}
