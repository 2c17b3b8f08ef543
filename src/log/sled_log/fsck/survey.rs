//! What stands in the store's folder: identity, witness, generations; and what can be said of them when one is lost.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::{Finding, Findings};
use crate::core::types::Seq;
use crate::log::OpenError;
use crate::log::codec::Limits;
use crate::log::sled_log::identity::{self, Found, IDENTITY, Identity};
use crate::log::sled_log::open::{self, At, folder_name};
use crate::log::sled_log::scan::tags;
use crate::log::sled_log::witness::{Testimony, WITNESS, Witness};
use crate::migrations;

/// What stands there.
pub(in crate::log::sled_log) struct Survey {
    pub(in crate::log::sled_log) store: PathBuf,
    /// Held as long as this lives.
    pub(in crate::log::sled_log) _lock: File,
    /// If it is whole.
    pub(in crate::log::sled_log) identity: Option<Identity>,
    /// From the identity, or from the pages.
    pub(in crate::log::sled_log) tag: u64,
    /// If it is whole.
    pub(in crate::log::sled_log) testimony: Option<Testimony>,
    /// The folders that belong to the store, oldest first.
    pub(in crate::log::sled_log) generations: Vec<Seq>,
    pub(in crate::log::sled_log) findings: Findings,
}

impl Survey {
    pub(in crate::log::sled_log) fn folder(&self, generation: Seq) -> PathBuf {
        self.store.join(folder_name(generation))
    }
}

/// Takes the lock, and looks around.
pub(in crate::log::sled_log) fn survey(store: &Path) -> Result<Survey, OpenError> {
    let at = At { store };
    match fs::metadata(store) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Err(at.not_a_store("it is no folder")),
        Err(error) => return Err(at.io(error)),
    }
    let listing = open::list(store).map_err(|error| at.io(error))?;
    let has = |name: &str| store.join(name).exists();
    if listing.generations.is_empty() && !has(IDENTITY) && !has(WITNESS) {
        return Err(at.not_a_store("it has no file `identity`, no file `witness`, and no generation"));
    }
    let lock = open::lock(&at)?;
    let listing = open::list(store).map_err(|error| at.io(error))?;
    let mut findings = Findings::default();
    let mut damaged = |file: &str, what: String| {
        findings.add(Finding { code: "file_damaged", generation: None, file: Some(file.into()), events: None, what });
    };
    let found = match Identity::read(store, migrations::CURRENT).map_err(|error| at.io(error))? {
        // A changed digit is no newer release.
        Found::OtherFormat(_) if !identity::is_whole(store).map_err(|error| at.io(error))? => {
            Found::Damaged("the file `identity` is not what was written: its checksum is wrong".into())
        }
        found => found,
    };
    let whole = match found {
        Found::Store { identity, .. } if (Limits::MIN_SEGMENT..=Limits::MAX_SEGMENT).contains(&identity.segment_size) => Some(identity),
        Found::Store { .. } => {
            damaged(IDENTITY, "the file `identity` names an impossible segment size".into());
            None
        }
        Found::OtherFormat(found) if found > migrations::CURRENT => {
            return Err(OpenError::Newer { path: store.to_owned(), found, known: migrations::CURRENT });
        }
        Found::OtherFormat(found) => {
            return Err(at.io(format!("it has the older format {found}; `tidings migrate` comes first")));
        }
        Found::Missing => {
            damaged(IDENTITY, "the file `identity` is missing".into());
            None
        }
        Found::Damaged(what) => {
            damaged(IDENTITY, what);
            None
        }
    };
    let tag = match whole {
        Some(identity) => identity.tag,
        None => tag_of_the_pages(&at, &listing.generations)?,
    };
    let testimony = Witness::read(store, tag).map_err(|error| at.io(format!("reading the witness: {error}")))?;
    if testimony.is_none() {
        damaged(WITNESS, "the file `witness` is missing or is not what was written (neither of its two slots)".into());
    }
    // What the witness says is below the lowest has been given up, whether or not it has been deleted yet.
    let kept = |first: &Seq| testimony.is_none_or(|said| *first >= said.lowest);
    let generations = listing.generations.into_iter().filter(kept).collect();
    Ok(Survey { store: store.to_owned(), _lock: lock, identity: whole, tag, testimony, generations, findings })
}

/// The store's tag by its pages: that of most of them, because a report may well hold a page of another store.
fn tag_of_the_pages(at: &At<'_>, generations: &[Seq]) -> Result<u64, OpenError> {
    let mut all: BTreeMap<u64, u64> = BTreeMap::new();
    for first in generations {
        for (tag, count) in tags(&at.store.join(folder_name(*first))).map_err(|error| at.io(error))? {
            *all.entry(tag).or_insert(0) += count;
        }
    }
    let most = all.into_iter().max_by_key(|(_, count)| *count);
    most.map(|(tag, _)| tag).ok_or_else(|| at.damaged("its identity is lost, and no page of any store is in it: there is nothing to save"))
}
