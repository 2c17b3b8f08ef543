//! Proof, before anything is opened, that all is there that was accepted. Reads only.

use std::path::Path;
use std::time::Instant;

use super::open::{At, folder_name};
use super::scan::scan;
use super::seal::{self, Head};
use super::witness::Testimony;
use crate::core::types::Seq;
use crate::log::OpenError;
use crate::log::codec::Kind;

/// Splits the generations into those that the witness knows, and what a kill left over.
pub(super) fn sort(at: &At<'_>, generations: &[Seq], testimony: &Testimony, tag: u64) -> Result<(Vec<Seq>, Vec<Seq>), OpenError> {
    let (mut kept, mut left_over) = (Vec::new(), Vec::new());
    for &first in generations {
        if first < testimony.lowest {
            left_over.push(first);
        } else if first > testimony.generation {
            let folder = at.store.join(folder_name(first));
            if !scan(&folder, tag).map_err(|error| at.io(error))?.events.is_empty() {
                return Err(at.missing(first, "it holds events, and the witness does not know it"));
            }
            left_over.push(first);
        } else {
            kept.push(first);
        }
    }
    for needed in [testimony.lowest, testimony.generation] {
        if !kept.contains(&needed) {
            return Err(at.missing(needed, "its folder is missing"));
        }
    }
    Ok((kept, left_over))
}

/// A generation that is not being written any more.
pub(super) enum Proven {
    Sealed(Head),
    /// A kill came before its seal; the scan has found all of it.
    Unsealed {
        first: Seq,
        next: Seq,
    },
}

/// All generations but the newest: each is there, whole as far as can be seen without reading it, and the next one begins where it ends.
pub(super) fn prove_sealed(at: &At<'_>, kept: &[Seq], tag: u64) -> Result<Vec<Proven>, OpenError> {
    let mut proven = Vec::new();
    for pair in kept.windows(2) {
        let (first, next) = (pair[0], pair[1]);
        let folder = at.store.join(folder_name(first));
        if !folder.join(seal::SEAL).exists() {
            let found = scan(&folder, tag).map_err(|error| at.io(error))?;
            found.covering(first, Seq(next.0 - 1)).map_err(|what| at.missing(first, &what))?;
            proven.push(Proven::Unsealed { first, next });
            continue;
        }
        let head = seal::read_head(&folder, tag).map_err(|error| at.io(error))?;
        let head = head.filter(|head| head.first == first);
        let head = head.ok_or_else(|| at.missing(first, "its file `seal` is not what was written"))?;
        if head.next != next {
            return Err(at.damaged(format!("events {} to {} are missing: no generation begins with {0}", head.next, next.0 - 1)));
        }
        if let Some(wrong) = seal::wrong_lengths(&folder, &head) {
            return Err(at.missing(first, &wrong));
        }
        proven.push(Proven::Sealed(head));
    }
    Ok(proven)
}

/// The newest generation after a clean stop: its files are, byte for byte, those that were closed.
pub(super) fn prove_closed(at: &At<'_>, folder: &Path, testimony: &Testimony, tag: u64) -> Result<Head, OpenError> {
    let first = testimony.generation;
    let head = seal::read_head(folder, tag).map_err(|error| at.io(error))?;
    let head = head.filter(|head| head.first == first && head.next == testimony.last.next());
    let head = head.ok_or_else(|| at.missing(first, "its file `seal` is missing or is not what was written"))?;
    match seal::wrong_content(folder, &head).map_err(|error| at.io(error))? {
        Some(wrong) => Err(at.missing(first, &wrong)),
        None => Ok(head),
    }
}

/// The newest generation after a kill: everything that was accepted is in its raw file.
pub(super) fn prove_written(at: &At<'_>, folder: &Path, testimony: &Testimony, tag: u64) -> Result<(), OpenError> {
    let first = testimony.generation;
    for file in ["db", "conf"] {
        if !folder.join(file).exists() {
            return Err(at.missing(first, &format!("its file `{file}` is missing")));
        }
    }
    let started = Instant::now();
    let found = scan(folder, tag).map_err(|error| at.io(error))?;
    tracing::info!(generation = %first, elapsed_ms = started.elapsed().as_millis(), "searched the raw file after an unclean stop");
    if first > Seq::FIRST && !found.has_checkpoint(Kind::OpeningCheckpoint, first) {
        return Err(at.missing(first, "the checkpoint that it begins with is not in it"));
    }
    found.covering(first, testimony.last).map_err(|what| at.missing(first, &what))?;
    Ok(())
}
