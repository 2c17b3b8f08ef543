//! A store of an older format: a copy is made beside it, and then the steps of [`migrations`] are done, in order.
//!
//! ```text
//!   plan ─▶ all there? ─▶ room for a copy? ─▶ copy whole store to <store>.before-format-N ─▶ mark ─▶ step: prepare, run, validate, record ─▶ … ─▶ unmark
//!                  └ no: refused                a kill: made again             └─ a kill from here on: no second copy, the step again
//! ```
//! The mark is a file in the store that names the copy. As long as it stands, what is in the store may be half of a step, and the copy is
//! what there was before: it is never written again, and never deleted here.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::identity::{self, Found, Identity};
use super::open::{self, At};
use super::{durable, room, seal};
use crate::failpoint::{self, Point};
use crate::log::OpenError;
use crate::migrations::{self, Step};

/// Stands in the store while it is migrated, and names the copy.
const MARK: &str = "migrating";

/// What has to be done to a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The format that it has.
    pub found: u32,
    /// The format that this release writes.
    pub known: u32,
    /// The steps: the format that each makes, and what it does.
    pub steps: Vec<(u32, &'static str)>,
    /// What the copy takes that is made first, in bytes.
    pub copy_bytes: u64,
}

/// What was done to a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// What had to be done.
    pub plan: Plan,
    /// Where the store as it was before is.
    pub copy: Option<PathBuf>,
}

/// Says what has to be done to a store, and changes nothing.
///
/// # Errors
/// [`OpenError::Newer`], [`OpenError::NotAStore`] and [`OpenError::Damaged`] as for a start.
pub fn plan(store: &Path) -> Result<Plan, OpenError> {
    plan_with(&At { store }, migrations::STEPS, migrations::CURRENT).map(|(plan, _)| plan)
}

/// Does what has to be done to a store. Takes its lock.
///
/// # Errors
/// As [`plan`]; [`OpenError::Locked`] while a service runs; [`OpenError::Io`] names the step that failed, and the copy.
pub fn migrate(store: &Path) -> Result<Migrated, OpenError> {
    migrate_with(&At { store }, migrations::STEPS, migrations::CURRENT)
}

pub(super) fn migrate_with(at: &At<'_>, steps: &[&dyn Step], known: u32) -> Result<Migrated, OpenError> {
    plan_with(at, steps, known)?;
    let _lock = open::lock(at)?;
    upgrade(at, steps, known)
}

fn plan_with<'a>(at: &At<'_>, steps: &[&'a dyn Step], known: u32) -> Result<(Plan, Vec<&'a dyn Step>), OpenError> {
    let found = match Identity::read(at.store, known).map_err(|error| at.io(error))? {
        Found::Missing => return Err(at.not_a_store("it has no file `identity`")),
        Found::Damaged(what) => return Err(at.damaged(what)),
        Found::OtherFormat(found) => found,
        Found::Store { .. } => known,
    };
    let needed = match migrations::plan(steps, found, known) {
        migrations::Plan::Newer => return Err(OpenError::Newer { path: at.store.to_owned(), found, known }),
        migrations::Plan::Unknown => {
            return Err(at.not_a_store(format!("its file `identity` says format {found}, which no release has written")));
        }
        migrations::Plan::Current => Vec::new(),
        migrations::Plan::Steps(needed) => needed,
    };
    let named = needed.iter().map(|step| (step.to(), step.title())).collect();
    let copy_bytes = if needed.is_empty() { 0 } else { durable::tree_on_disk(at.store) };
    Ok((Plan { found, known, steps: named, copy_bytes }, needed))
}

/// Migrates a store whose lock is held.
pub(super) fn upgrade(at: &At<'_>, steps: &[&dyn Step], known: u32) -> Result<Migrated, OpenError> {
    let (plan, needed) = plan_with(at, steps, known)?;
    let mark = at.store.join(MARK);
    if needed.is_empty() {
        unmark(at)?;
        return Ok(Migrated { plan, copy: None });
    }
    let copy = match fs::read_to_string(&mark) {
        Ok(text) => PathBuf::from(text.trim_end()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            open::prove_older(at, plan.found)?;
            let copy = copy_beside(at, known, plan.copy_bytes)?;
            failpoint::reach(Point::MigrationCopied);
            let write = |file: &mut fs::File| writeln!(file, "{}", copy.display());
            durable::replace(at.store, MARK, write).map_err(|error| at.io(format!("{}: {error}", mark.display())))?;
            copy
        }
        Err(error) => return Err(at.io(format!("{}: {error}", mark.display()))),
    };
    tracing::info!(from = plan.found, to = known, copy = %copy.display(), "migrating the store; a copy of it as it was has been made");
    failpoint::reach(Point::MigrationMarked);
    let record = |version| {
        failpoint::reach(Point::MigrationRun);
        identity::set_format(at.store, version).map_err(|error| error.to_string())
    };
    migrations::run(at.store, &needed, record).map_err(|what| {
        at.io(format!("{what}. The store as it was before is in {}; the next start tries this step again", copy.display()))
    })?;
    failpoint::reach(Point::MigrationRecorded);
    unmark(at)?;
    Ok(Migrated { plan, copy: Some(copy) })
}

/// Takes the mark away from a store that has the format of this release. It may stand there still, if a kill came between the last step and this;
/// the next migration would take the copy that it names for its own.
pub(super) fn unmark(at: &At<'_>) -> Result<(), OpenError> {
    let mark = at.store.join(MARK);
    match fs::remove_file(&mark).and_then(|()| durable::sync_folder(at.store)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at.io(format!("{}: {error}", mark.display()))),
        _ => Ok(()),
    }
}

/// Copies the whole store, whatever is in it. Under another name until it is whole.
fn copy_beside(at: &At<'_>, known: u32, needed: u64) -> Result<PathBuf, OpenError> {
    let store = at.store.canonicalize().map_err(|error| at.io(error))?;
    let (Some(parent), Some(name)) = (store.parent(), store.file_name()) else {
        return Err(at.io("it is the root of the file system, and a copy has to be made beside it before it is migrated"));
    };
    let free = room::known_free(parent).unwrap_or(u64::MAX);
    if free < needed {
        return Err(at.io(format!(
            "a copy of it has to be made before it is migrated, which takes {needed} bytes in {}, and {free} are free there; nothing was changed",
            parent.display()
        )));
    }
    let base = format!("{}.before-format-{known}", name.to_string_lossy());
    let place = |n: u32| parent.join(if n == 0 { base.clone() } else { format!("{base}-{n}") });
    let copy = (0..).map(place).find(|place| !place.exists()).expect("a number is free");
    let unfinished = parent.join(format!("{base}.unfinished"));
    let made = || -> io::Result<()> {
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        copy_tree(&store, &unfinished)?;
        durable::give_to_owner_of(&store, &unfinished)?;
        fs::rename(&unfinished, &copy)?;
        durable::sync_folder(parent)
    };
    made().map_err(|error| {
        // It is of no use, and may be what fills the disk.
        let _ = fs::remove_dir_all(&unfinished);
        let who = "; if the service's user may not write there, run `tidings migrate` as root";
        at.io(format!("a copy of it has to be made in {} before it is migrated: {error}{who}; nothing was changed", copy.display()))
    })?;
    Ok(copy)
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    durable::copy_files(from, to, &mut |_| ())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let sum = |path: &Path| seal::checksum(path);
            let (original, copy) = (sum(&entry.path())?, sum(&to.join(entry.file_name()))?);
            // The lock says who holds it, which changes nothing.
            if original != copy && entry.file_name() != open::LOCK {
                return Err(io::Error::other(format!("{} is not what was copied", to.join(entry.file_name()).display())));
            }
        }
    }
    durable::sync_folder(to)
}
