//! Opening a store: look, prove, and only then touch.
//!
//! ```text
//!   folder ─▶ lock ─▶ identity ─▶ witness ─▶ generations: all there, no gap between them ─▶ the newest: ─┬─ clean: files as sealed
//!      │                 │                                                                               └─ unclean: raw scan
//!      └─ empty:         └─ older format: migrate                              … all is proven │
//!         create           newer: refuse                                                        ▼
//!                          witness: not clean ─▶ delete what is left over ─▶ seal what a kill left ─▶ sled ─▶ check what it shows
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::database::Database;
use super::durable::{self, TRASH_PREFIX};
use super::fsck::UNKNOWN_CHECKPOINT;
use super::identity::{Found, IDENTITY, Identity};
use super::prove::{Proven, prove_closed, prove_sealed, prove_written, sort};
use super::reader::{Generation as Handle, Shared, State};
use super::room::{self, BALLAST, Ballast, Free};
use super::seal::{self, Head, SealError};
use super::shown::{Noted, Shown, check_shown, read_checkpoint};
use super::upgrade::{unmark, upgrade};
use super::witness::{Testimony, WITNESS, Witness};
use super::writer::Writer;
use super::{Active, Options, SledLog};
use crate::core::types::{Millis, Seq};
use crate::failpoint::{self, Point};
use crate::log::codec::{Encoder, Kind, Limits, MAGIC, StoredPage};
use crate::log::sizes::Sizes;
use crate::log::{LastStop, OpenError, Opened, StoreId};
use crate::migrations;

pub(super) const LOCK: &str = "lock";

/// The folder of the generation that begins with `first`. Sorted by name is sorted by position.
pub(super) fn folder_name(first: Seq) -> String {
    format!("g{:020}", first.0)
}

pub(super) fn folder_first(name: &str) -> Option<Seq> {
    let digits = name.strip_prefix('g').filter(|digits| digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    // Positions begin with 1.
    digits.parse().ok().filter(|first| *first > 0).map(Seq)
}

/// Names the store in every error.
pub(super) struct At<'a> {
    pub(super) store: &'a Path,
}

impl At<'_> {
    pub(super) fn damaged(&self, what: impl Into<String>) -> OpenError {
        OpenError::Damaged { path: self.store.to_owned(), what: what.into() }
    }

    pub(super) fn io(&self, what: impl std::fmt::Display) -> OpenError {
        OpenError::Io { path: self.store.to_owned(), what: what.to_string() }
    }

    pub(super) fn not_a_store(&self, what: impl Into<String>) -> OpenError {
        OpenError::NotAStore { path: self.store.to_owned(), what: what.into() }
    }

    pub(super) fn not_shown(&self, first: Seq, what: &str) -> OpenError {
        OpenError::NotShown { path: self.store.to_owned(), what: format!("generation {}: {what}", folder_name(first)) }
    }

    pub(super) fn missing(&self, first: Seq, what: &str) -> OpenError {
        self.damaged(format!("generation {}: {what}", folder_name(first)))
    }
}

/// What stands in the store's folder.
#[derive(Default)]
pub(super) struct Listing {
    has_identity: bool,
    pub(super) generations: Vec<Seq>,
    trash: Vec<PathBuf>,
    /// The first name that no store has.
    foreign: Option<String>,
}

/// Reports are nobody else's business: a folder that is made here can be entered by its owner only.
pub(super) fn create_private(store: &Path) -> std::io::Result<()> {
    std::os::unix::fs::DirBuilderExt::mode(fs::DirBuilder::new().recursive(true), 0o700).create(store)
}

/// See [`SledLog::open`].
pub(super) fn open(store: &Path, options: Options) -> Result<Opened, OpenError> {
    let at = At { store };
    if let Some(parent) = store.parent()
        && !store.exists()
    {
        create_private(store)
            .and_then(|()| durable::sync_folder(if parent == Path::new("") { Path::new(".") } else { parent }))
            .map_err(|error| at.io(error))?;
    }
    let listing = list(store).map_err(|error| at.io(error))?;
    if let (false, Some(foreign)) = (listing.has_identity, &listing.foreign) {
        return Err(at.not_a_store(format!("it has no file `identity`, and holds `{foreign}`")));
    }
    let lock = lock(&at)?;
    // Once more, now that nobody else changes it.
    let listing = list(store).map_err(|error| at.io(error))?;
    match Identity::read(store, migrations::CURRENT).map_err(|error| at.io(error))? {
        Found::Missing => create(&at, lock, listing, options),
        Found::Damaged(what) => Err(at.damaged(what)),
        Found::OtherFormat(_) => {
            upgrade(&at, migrations::STEPS, migrations::CURRENT)?;
            drop(lock);
            open(store, options)
        }
        Found::Store { identity, is_copy } => existing(&at, lock, listing, identity, is_copy, options),
    }
}

pub(super) fn list(store: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    for entry in fs::read_dir(store)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        match name.as_str() {
            IDENTITY => listing.has_identity = true,
            // What a file system puts into its own root.
            LOCK | WITNESS | BALLAST | "identity.tmp" | "lost+found" => {}
            _ if name.starts_with(TRASH_PREFIX) => listing.trash.push(entry.path()),
            _ => match folder_first(&name) {
                Some(first) => listing.generations.push(first),
                None => listing.foreign = Some(name),
            },
        }
    }
    listing.generations.sort_unstable();
    Ok(listing)
}

pub(super) fn lock(at: &At<'_>) -> Result<File, OpenError> {
    let path = at.store.join(LOCK);
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = opened.map_err(|error| at.io(format!("{}: {error}", path.display())))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let read = file.read_to_string(&mut pid);
            let holder = if read.is_ok() && !pid.trim().is_empty() { format!(" (pid {})", pid.trim()) } else { String::new() };
            return Err(OpenError::Locked { path: at.store.to_owned(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(at.io(format!("locking {}: {error}", path.display()))),
    }
    let write = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    match write {
        // The number is for messages only; the lock holds without it.
        Err(error) if !room::is_full(&error) => Err(at.io(format!("{}: {error}", path.display()))),
        _ => Ok(file),
    }
}

pub(super) fn random(at: &At<'_>) -> Result<u64, OpenError> {
    getrandom::u64().map_err(|error| at.io(format!("no random number: {error}")))
}

/// Makes a new store; also out of what a killed creation left.
fn create(at: &At<'_>, lock: File, listing: Listing, options: Options) -> Result<Opened, OpenError> {
    let made = make(at, lock, listing, options, StoreId(random(at)?), Seq::FIRST)?;
    // With this file the store exists.
    made.identity.write(at.store).map_err(|error| at.io(error))?;
    Ok(Opened { log: Box::new(made.into_log(at)?), checkpoint: None, last_stop: LastStop::Fresh, is_copy: false })
}

/// Begins a store in an empty or new folder, with the id of another and at its first position. It is none before its identity is written.
#[cfg(feature = "jetstream")]
pub(super) fn begin(at: &At<'_>, id: StoreId, first: Seq, options: Options) -> Result<SledLog, OpenError> {
    create_private(at.store).map_err(|error| at.io(error))?;
    let lock = lock(at)?;
    let listing = list(at.store).map_err(|error| at.io(error))?;
    let held = listing.foreign.clone().or(listing.has_identity.then(|| IDENTITY.to_owned()));
    if let Some(held) = held.or(listing.generations.first().map(|first| folder_name(*first))) {
        return Err(at.not_a_store(format!("it holds `{held}`, and has to be empty")));
    }
    make(at, lock, listing, options, id, first)?.into_log(at)
}

/// Everything of a new store but the file that makes it one.
fn make(at: &At<'_>, lock: File, listing: Listing, options: Options, store: StoreId, first: Seq) -> Result<Whole, OpenError> {
    for &first in &listing.generations {
        let folder = at.store.join(folder_name(first));
        if holds_pages(&folder).map_err(|error| at.io(error))? {
            return Err(at.damaged(format!("its file `identity` is missing, and {} holds events", folder_name(first))));
        }
    }
    clear(at, listing.generations.iter().copied(), listing.trash)?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    let identity =
        Identity { format: migrations::CURRENT, store, tag: random(at)?, segment_size: options.segment_size, created: Millis(created) };
    let sizes = Sizes { segment: options.segment_size as u64, generation: options.generation_size };
    let (free, needed) = (room::free(at.store), sizes.start() + room::OTHER_FILES);
    if free < needed {
        return Err(at.io(format!(
            "only {free} bytes are free on its disk, and a new store needs {needed}; free some space, or choose another `store.path`"
        )));
    }
    let opening = if first == Seq::FIRST { Vec::new() } else { unknown(at, &identity, first)? };
    let active = Active::create(at.store, first, options.segment_size, &options, &opening).map_err(|what| at.io(what))?;
    failpoint::reach(Point::StoreGeneration);
    let testimony = Testimony { lowest: first, generation: first, last: Seq(first.0 - 1), run: 1, clean: false };
    let witness = Witness::create(at.store, identity.tag, &testimony).and_then(|mut witness| {
        witness.sync()?;
        durable::sync_folder(at.store)?;
        failpoint::reach(Point::StoreWitness);
        Ok(witness)
    });
    let witness = witness.map_err(|error: io::Error| at.io(error))?;
    Ok(Whole { lock, identity, witness, testimony, sealed: Vec::new(), active, options })
}

/// In place of the checkpoint that a generation begins with, which is not known.
fn unknown(at: &At<'_>, identity: &Identity, first: Seq) -> Result<Vec<StoredPage>, OpenError> {
    let encoder = Encoder::new(identity.tag, 1, Limits::for_segment(identity.segment_size));
    let pages = encoder.map_err(|error| at.io(error))?.checkpoint(Kind::OpeningCheckpoint, first, UNKNOWN_CHECKPOINT);
    pages.map_err(|error| at.io(error))
}

/// Whether anything in the folder looks like a page, of whichever store.
fn holds_pages(folder: &Path) -> io::Result<bool> {
    match fs::read(folder.join("db")) {
        Ok(bytes) => Ok(memchr::memmem::find(&bytes, &MAGIC).is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes generations that are not part of the store, and what an earlier deletion left.
fn clear(at: &At<'_>, generations: impl Iterator<Item = Seq>, mut trash: Vec<PathBuf>) -> Result<(), OpenError> {
    for first in generations {
        let moved = durable::to_trash(at.store, &at.store.join(folder_name(first)));
        trash.push(moved.map_err(|error| at.io(format!("{}: {error}", folder_name(first))))?);
    }
    trash.iter().for_each(|trash| durable::delete_trash(trash));
    Ok(())
}

/// What is known of a store before anything in it is touched: all that was accepted is there.
struct Sound {
    witness: Witness,
    testimony: Testimony,
    sealed: Vec<Proven>,
    /// The seal of the newest generation, after a clean stop.
    closed: Option<Head>,
    /// Generations that are not part of it.
    left_over: Vec<Seq>,
}

/// Looks at a store and proves it. Writes nothing.
fn prove(at: &At<'_>, listing: &Listing, identity: &Identity) -> Result<Sound, OpenError> {
    let tag = identity.tag;
    if !(Limits::MIN_SEGMENT..=Limits::MAX_SEGMENT).contains(&identity.segment_size) {
        return Err(at.damaged("the file `identity` names an impossible segment size"));
    }
    let found = Witness::open(at.store, tag).map_err(|error| at.io(format!("reading the witness: {error}")))?;
    let Some((witness, testimony)) = found else {
        return Err(at.damaged("the file `witness` is missing or is not what was written (neither of its two slots)"));
    };
    let (kept, left_over) = sort(at, &listing.generations, &testimony, tag)?;
    let sealed = prove_sealed(at, &kept, tag)?;
    let folder = at.store.join(folder_name(testimony.generation));
    let closed = if testimony.clean { Some(prove_closed(at, &folder, &testimony, tag)?) } else { None };
    if closed.is_none() {
        prove_written(at, &folder, &testimony, tag)?;
    }
    Ok(Sound { witness, testimony, sealed, closed, left_over })
}

/// Proves a store of an older format, before it is migrated. What is looked at is the same in all formats so far.
pub(super) fn prove_older(at: &At<'_>, format: u32) -> Result<(), OpenError> {
    let listing = list(at.store).map_err(|error| at.io(error))?;
    match Identity::read(at.store, format).map_err(|error| at.io(error))? {
        Found::Store { identity, .. } => prove(at, &listing, &identity).map(drop),
        Found::Damaged(what) => Err(at.damaged(what)),
        Found::Missing | Found::OtherFormat(_) => Err(at.io("its file `identity` changes meanwhile")),
    }
}

fn existing(at: &At<'_>, lock: File, listing: Listing, identity: Identity, is_copy: bool, options: Options) -> Result<Opened, OpenError> {
    let Sound { mut witness, mut testimony, sealed, closed, left_over } = prove(at, &listing, &identity)?;
    let (tag, folder) = (identity.tag, at.store.join(folder_name(testimony.generation)));

    let sizes = Sizes { segment: identity.segment_size as u64, generation: options.generation_size };
    let mut ballast = Ballast::find(at.store, sizes.ballast());
    room_to_start(at, &folder, sizes, &mut ballast)?;

    // All is there. From here on this start is one that has to be closed again.
    let last_stop = if testimony.clean { LastStop::Clean } else { LastStop::Unclean };
    testimony.clean = false;
    testimony.run += 1;
    witness.write(&testimony).and_then(|()| witness.sync()).map_err(|error| at.io(format!("writing the witness: {error}")))?;
    failpoint::reach(Point::StartAnnounced);
    unmark(at)?;
    clear(at, left_over.into_iter(), listing.trash)?;
    let sealed = seal_rest(at, sealed, tag)?;
    seal::remove(&folder).map_err(|error| at.io(error))?;

    let database = Database::open(&folder, identity.segment_size, options.sled_cache).map_err(|what| {
        let name = folder_name(testimony.generation);
        at.io(format!(
            "the database of generation {name} does not open: {what}. If the disk is well (space, health), its files beside `db`, which \
             are `conf` and `snap.…`, are damaged: see `tidings fsck`"
        ))
    })?;
    let file = super::open_database_file(&folder).map_err(|error| at.io(error))?;
    let mut shown = match closed {
        Some(head) => Shown { last: testimony.last, newest: head.newest, stored: head.stored, checkpoint_end: None, checkpoint: None },
        None => {
            let shown = check_shown(at, &database, &file, &testimony, tag)?;
            // A commit that was killed before its sync counts from now on, so it has to stay.
            file.sync_data().map_err(|error| at.io(format!("syncing what was found: {error}")))?;
            shown
        }
    };
    failpoint::reach(Point::StartShown);
    let checkpoint = read_checkpoint(at, &database, &shown, testimony.generation, tag)?;
    if last_stop == LastStop::Clean && checkpoint.as_ref().map(|checkpoint| checkpoint.next) != Some(shown.last.next()) {
        return Err(at.not_shown(testimony.generation, "sled does not show the checkpoint that it was closed with"));
    }
    testimony.last = shown.last;
    shown.checkpoint = checkpoint.as_ref().map(|checkpoint| Noted::of(checkpoint.next, &checkpoint.bytes));
    let active = Active::of(testimony.generation, folder, database, file, identity.segment_size, &shown);
    let whole = Whole { lock, identity, witness, testimony, sealed, active, options };
    Ok(Opened { log: Box::new(whole.into_log(at)?), checkpoint, last_stop, is_copy })
}

/// Opening writes, too: sled's snapshot and the end of its file, and a seal where a kill came before it.
fn room_to_start(at: &At<'_>, folder: &Path, sizes: Sizes, ballast: &mut Ballast) -> Result<(), OpenError> {
    let file = super::open_database_file(folder).map_err(|error| at.io(error))?;
    // sled's snapshot says of each node where it is: a few bytes for each KiB.
    let others = room::OTHER_FILES + file.metadata().map_or(0, |meta| meta.len()) / 64;
    loop {
        let is_ahead =
            room::ahead(room::free(at.store), &file, sizes.start()).map_err(|error| at.io(format!("allocating space: {error}")))?;
        let free = room::free(at.store);
        if is_ahead && free >= others {
            return Ok(());
        }
        if !ballast.release("the start") {
            let needed = others + if is_ahead { 0 } else { sizes.start() };
            return Err(at.io(format!(
                "only {free} bytes are free on its disk, about {needed} are needed to open it, and there is no ballast left to release; \
                 nothing is lost: free some space and start again"
            )));
        }
    }
}

fn seal_rest(at: &At<'_>, proven: Vec<Proven>, tag: u64) -> Result<Vec<Head>, OpenError> {
    let seal = |generation| match generation {
        Proven::Sealed(head) => Ok(head),
        Proven::Unsealed { first, next } => seal::make(&at.store.join(folder_name(first)), tag, first, next).map_err(|error| match error {
            SealError::Missing(what) => at.missing(first, &what),
            SealError::Io(error) => at.io(error),
        }),
    };
    proven.into_iter().map(seal).collect()
}

/// Everything that a log is put together from.
pub(super) struct Whole {
    pub(super) lock: File,
    pub(super) identity: Identity,
    pub(super) witness: Witness,
    pub(super) testimony: Testimony,
    pub(super) sealed: Vec<Head>,
    pub(super) active: Active,
    pub(super) options: Options,
}

impl Whole {
    pub(super) fn into_log(self, at: &At<'_>) -> Result<SledLog, OpenError> {
        let Whole { lock, identity, witness, testimony, sealed, active, options } = self;
        let sizes = Sizes { segment: identity.segment_size as u64, generation: options.generation_size };
        let mut ballast = Ballast::find(at.store, sizes.ballast());
        ballast.shrink();
        ballast.restore(sizes.tight(sizes.floor()));
        let limits = Limits::for_segment(identity.segment_size);
        let encoder = Encoder::new(identity.tag, testimony.run, limits).map_err(|error| at.io(error))?;
        let handle = |head: Head| Handle::new(head.first, at.store.join(folder_name(head.first)), State::Sealed, head.newest);
        let mut generations: Vec<Arc<Handle>> = sealed.into_iter().map(handle).collect();
        generations.push(Arc::clone(&active.handle));
        let shared = Shared::new(identity.tag, testimony.last, generations, options.page_cache);
        Ok(SledLog {
            store: at.store.to_owned(),
            _lock: lock,
            identity,
            options,
            sizes,
            ballast,
            free: Free::on(at.store),
            witness,
            testimony,
            encoder,
            prepared: Ok(0),
            writer: Writer::default(),
            under_way: None,
            shared,
            active,
            failed: None,
            background: Vec::new(),
        })
    }
}
