//! The trees of a generation's database: pages in the order of their keys, a few in each.
//!
//! ```text
//!   sled's own tree │ pages 1 … 9 │ pages 10 … 18 │ …        each but the first is named by the key of the page that it began with
//! ```
//! What is added to a leaf sled writes behind what is there. Only a leaf that was added to ten times, or holds more than sixteen values, is written anew, and
//! with it all that it holds: in a single tree two thirds of what goes to the disk are pages that stand there already, and the file is twice as long as what
//! is in it until the generation is dropped. So a tree gets no more pages than a leaf takes without that, and then the next one is begun.
//!
//! * A tree costs an entry in sled's list of trees, which is written anew for each. Where pages are small their neighbours cost less than that, so a tree
//!   also has [`TREE_BYTES`] at least, and there are only so many of them.
//! * A tree may be empty: a kill came before its first page, or took out what a torn commit left. Then its pages are in the one before, or there are none.
//! * Stores of format 1 have sled's own tree only, and more are added behind it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::RwLock;

use super::reader::{read, write};
use crate::log::codec::{PageKey, StoredPage};

/// sled's `PAGE_CONSOLIDATION_THRESHOLD` is 10, of which an empty leaf is one.
const TREE_PAGES: usize = 9;

/// A tree has so many bytes before the next one is begun. With pages of 1 KiB a generation takes as much of the disk as in a single tree; with less here it
/// would take more.
const TREE_BYTES: usize = 48 << 10;

/// So many bytes of a segment for each tree: their list stays far below the quarter of a segment that sled would write elsewhere, never synced.
const SEGMENT_BYTES: usize = 512;

type Name = [u8; PageKey::LEN];

/// The trees of an open database.
pub(super) struct Trees {
    db: sled::Db,
    most: usize,
    open: RwLock<Open>,
}

struct Open {
    /// By name; sled's own first.
    all: BTreeMap<Name, sled::Tree>,
    /// The one that is being filled; none before the first page that is added.
    filling: Option<Filling>,
}

struct Filling {
    tree: sled::Tree,
    pages: usize,
    bytes: usize,
}

impl Filling {
    fn is_full(&self) -> bool {
        self.pages >= TREE_PAGES && self.bytes >= TREE_BYTES
    }
}

impl Trees {
    /// Finds the trees of a database that has segments of so many bytes.
    pub(super) fn of(db: sled::Db, segment_size: usize) -> Result<Trees, String> {
        let own: sled::Tree = sled::Tree::clone(&db);
        let mut all = BTreeMap::from([([0; PageKey::LEN], own)]);
        for name in db.tree_names() {
            // sled's own has a name of another length.
            if let Ok(first) = Name::try_from(&name[..]) {
                all.insert(first, db.open_tree(&name).map_err(|error| error.to_string())?);
            }
        }
        Ok(Trees { db, most: segment_size / SEGMENT_BYTES, open: RwLock::new(Open { all, filling: None }) })
    }

    /// Adds a page, whose key is greater than all that there are.
    pub(super) fn add(&self, page: &StoredPage) -> sled::Result<()> {
        let key = page.key.to_bytes();
        self.next(&key, page.bytes.len())?.insert(key, &page.bytes[..]).map(|_| ())
    }

    /// The tree for the next page.
    fn next(&self, key: &Name, bytes: usize) -> sled::Result<sled::Tree> {
        let mut open = write(&self.open);
        let Open { all, filling } = &mut *open;
        if filling.as_ref().is_none_or(|filling| filling.is_full() && all.len() < self.most) {
            let tree = self.db.open_tree(key)?;
            all.insert(*key, tree.clone());
            *filling = Some(Filling { tree, pages: 0, bytes: 0 });
        }
        let filling = filling.as_mut().expect("it has just been begun");
        filling.pages += 1;
        filling.bytes += bytes;
        Ok(filling.tree.clone())
    }

    /// Takes a page out, of which there is none behind.
    pub(super) fn remove(&self, key: &[u8]) -> sled::Result<()> {
        // What takes its place may belong before the tree that is being filled.
        write(&self.open).filling = None;
        self.before(Bound::Included(key), |tree| tree.remove(key)).map(|_| ())
    }

    pub(super) fn get(&self, key: &[u8]) -> sled::Result<Option<sled::IVec>> {
        self.before(Bound::Included(key), |tree| tree.get(key))
    }

    /// The last page whose key is less than `end`.
    pub(super) fn last_before(&self, end: &[u8]) -> sled::Result<Option<(sled::IVec, sled::IVec)>> {
        self.before(Bound::Excluded(end), |tree| tree.range::<&[u8], _>(..end).next_back().transpose())
    }

    /// What `ask` finds in the last tree that begins before `end`, or, where there is nothing, in those before that.
    fn before<T>(&self, end: Bound<&[u8]>, ask: impl Fn(&sled::Tree) -> sled::Result<Option<T>>) -> sled::Result<Option<T>> {
        let open = read(&self.open);
        for (_, tree) in open.all.range::<[u8], _>((Bound::Unbounded, end)).rev() {
            if let Some(found) = ask(tree)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// All pages, in the order of their keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = sled::Result<(sled::IVec, sled::IVec)>> {
        let all: Vec<sled::Tree> = read(&self.open).all.values().cloned().collect();
        all.into_iter().flat_map(|tree| tree.iter())
    }

    pub(super) fn flush(&self) -> sled::Result<usize> {
        self.db.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::core::types::Seq;
    use crate::log::codec::Kind;
    use crate::log::sled_log::database::wait_until_closed;

    /// Large enough for a leaf of the largest pages.
    const SEGMENT: usize = 1 << 20;

    fn open(folder: &Path, segment_size: usize) -> Trees {
        let db = sled::Config::new().path(folder).segment_size(segment_size).flush_every_ms(None).open().unwrap();
        Trees::of(db, segment_size).unwrap()
    }

    fn page(first: u64, len: usize) -> StoredPage {
        let mut bytes = vec![0; len];
        getrandom::fill(&mut bytes).unwrap();
        StoredPage { key: PageKey { first: Seq(first), kind: Kind::Events, run: 0, part: 0 }, bytes, page: None, newest: None }
    }

    /// What is done to a database.
    #[derive(Debug, Clone)]
    enum Step {
        /// Pages of so many bytes, at positions so far from each other.
        Add {
            pages: u64,
            len: usize,
            apart: u64,
        },
        /// A torn commit: the last few pages go, and their positions are used again.
        Remove {
            pages: usize,
        },
        Open,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let add = (1..30_u64, prop_oneof![1..200_usize, 4_000..12_000_usize], 1..4_u64);
        let step = prop_oneof![
            3 => add.prop_map(|(pages, len, apart)| Step::Add { pages, len, apart }),
            1 => (1..25_usize).prop_map(|pages| Step::Remove { pages }),
            1 => Just(Step::Open),
        ];
        prop::collection::vec(step, 1..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_page_is_found_in_its_order(steps in steps()) {
            let folder = tempfile::tempdir().unwrap();
            let mut trees = open(folder.path(), SEGMENT);
            let mut expected: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
            let mut next = 1;
            for step in steps {
                match step {
                    Step::Add { pages, len, apart } => {
                        for _ in 0..pages {
                            let page = page(next, len);
                            next += apart;
                            trees.add(&page).unwrap();
                            expected.insert(page.key.to_bytes().to_vec(), page.bytes);
                        }
                    }
                    Step::Remove { pages } => {
                        for _ in 0..pages {
                            let Some((key, _)) = expected.pop_last() else { break };
                            trees.remove(&key).unwrap();
                            next = u64::from_be_bytes(key[..8].try_into().unwrap());
                        }
                    }
                    Step::Open => {
                        trees.flush().unwrap();
                        drop(trees);
                        wait_until_closed(folder.path()).unwrap();
                        trees = open(folder.path(), SEGMENT);
                    }
                }
            }
            let all: Vec<(Vec<u8>, Vec<u8>)> = trees.iter().map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()).collect();
            prop_assert!(all == expected.clone().into_iter().collect::<Vec<_>>());
            for seq in 0..=next {
                let key = page(seq, 0).key.to_bytes();
                prop_assert!(trees.get(&key).unwrap().as_deref() == expected.get(&key[..]).map(Vec::as_slice));
                let before = trees.last_before(&key).unwrap().map(|(key, value)| (key.to_vec(), value.to_vec()));
                prop_assert!(before == expected.range(..key.to_vec()).next_back().map(|(key, value)| (key.clone(), value.clone())));
            }
        }
    }

    #[test]
    fn a_page_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        // Larger ones than what is written here, so that none is used again.
        let trees = open(folder.path(), 16 << 20);
        let (pages, len) = (600, 8 << 10);
        for first in 1..=pages {
            trees.add(&page(first, len)).unwrap();
            if first % 3 == 0 {
                trees.flush().unwrap();
            }
        }
        let written = std::fs::metadata(folder.path().join("db")).unwrap().len();
        let stored = pages * len as u64;
        assert!(written < stored + stored / 4, "{written} bytes for {stored}");
    }
}
