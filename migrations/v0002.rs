//! Version 2: the pages of a generation are in several trees of its database.
//!
//! Everything else is as in [version 1](super::v0001), pages and events included. A tree but sled's own is named by the key of the first page that was put
//! into it, and holds the pages from there up to the next tree's name: see `log::sled_log`'s `trees`. A store of version 1 is one of version 2 in which
//! all pages are in sled's own tree, so nothing is rewritten. The number is for releases that know of no other tree: they would take what is in those
//! for lost, and call the store damaged.

use std::path::Path;

use super::Step;

/// The number of this version.
pub const VERSION: u32 = 2;

/// From version 1.
pub struct SeveralTrees;

impl Step for SeveralTrees {
    fn to(&self) -> u32 {
        VERSION
    }

    fn title(&self) -> &'static str {
        "several trees in a database; nothing is rewritten"
    }

    fn prepare(&self, _: &Path) -> Result<(), String> {
        Ok(())
    }

    fn run(&self, _: &Path) -> Result<(), String> {
        Ok(())
    }

    fn validate(&self, _: &Path) -> Result<(), String> {
        Ok(())
    }
}
