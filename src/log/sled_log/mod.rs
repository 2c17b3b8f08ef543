//! The log on disk, on sled.
//!
//! # Constraints
//! * **Accepted means durable.** [`append`](EventLog::append) returns after `insert` → `flush` → `fdatasync` → witness.
//! * **A damaged store is refused, untouched.** Opening a damaged sled database zeroes what it can't read, so all that was accepted is
//!   found in the raw files first (`scan`), and compared with what the witness has seen.
//! * **An ordinary crash never needs an operator**, at whatever moment it comes: see the tables below.
//! * **One commit at a time**, whole and in order. While a large one is written by a thread of its own (`writer`), the pages of the next one are made.
//! * **A failure is final.** After the first one nothing more is written: what a failed `fsync` left behind is not known.
//! * **A sync is to find the pages and nothing else to write**: each goes over zeros that stand on the disk already (`zeros`).
//! * Keys only ever grow, values stay small, nothing is deleted but whole generations: what sled does well. Each page is written once (`trees`).
//!
//! # On disk
//! ```text
//!   <store>/
//!     identity                 what the store is; written last at creation                        (identity)
//!     witness                  what must be in it                                                 (witness)
//!     lock                     held while it is open; the holder's process id
//!     ballast                  bytes to be given up when the disk is full                         (room)
//!     g00000000000000000001/   a generation: a sled database that begins with this position
//!       db, conf, …            sled's
//!       seal                   where each page stands, in one that is not being written any more  (seal)
//!     g00000000000000184467/   the newest generation is the one that is written
//!     trash-…                  a folder that is being deleted
//!     migrating                names the copy that was made before a migration; only while that is under way  (upgrade)
//!     moved                    where the store has moved to: no service starts here any more      (app)
//! ```
//! Pages and checkpoints are the values ([`codec`](super::codec)). Every generation but the very first begins with a checkpoint.
//!
//! # What a crash leaves, and what the next start makes of it
//!
//! | Killed while | left | then |
//! |---|---|---|
//! | creating the store | no `identity`, no page | created anew |
//! | committing | perhaps a whole commit behind the witness; perhaps a part of one | a whole one stays, a part is taken out |
//! | writing zeros ahead | some of them behind the last page, or a length without them | as after any kill |
//! | beginning a generation | a folder that the witness does not name | deleted; the one before goes on |
//! | sealing | a generation without `seal` that is not the newest | scanned and sealed |
//! | dropping | a folder below the witness's lowest, or `trash-…` | deleted |
//! | closing | perhaps a generation that has just begun; a checkpoint, perhaps a `seal`, the witness not clean | as after any kill |
//! | making or giving up ballast | a part of it | made again when there is space |
//! | a full disk lets nothing be written | as after any kill | the ballast is given up first |
//! | starting | the witness not clean | as after any kill |
//! | ending a migration | `migrating`, in a store of the newest format | taken away |

mod backup;
mod database;
mod durable;
mod fsck;
mod identity;
#[cfg(feature = "jetstream")]
mod import;
mod open;
mod prove;
mod reader;
mod repair;
mod room;
mod scan;
mod seal;
mod shown;
mod trees;
mod upgrade;
mod witness;
mod writer;
mod zeros;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

pub use self::backup::{BackupError, Copied, Manifest, backup_running, backup_stopped, manifest, restore};
pub use self::fsck::{Checked, Finding, Findings, Progress, Report, Unreadable, fsck};
#[cfg(feature = "jetstream")]
pub(super) use self::import::import;
pub use self::repair::{Repair, RepairError, Repaired, repair};
pub use self::upgrade::{Migrated, Plan, migrate, plan};

use self::database::Database;
use self::identity::Identity;
use self::reader::{About, Generation as Handle, Shared, State, lock, read, write};
use self::room::{Ballast, Free};
use self::shown::{Noted, Shown};
use self::witness::{Testimony, Witness};
use self::writer::Writer;
use self::zeros::Zeros;
use super::codec::{Encoder, Kind, StoredPage};
use super::sizes::Sizes;
use super::{AppendError, Begun, EventLog, Generation, LogReader, OpenError, Opened, Space, StoreId, Urgency};
use crate::core::event::Event;
use crate::core::types::{LaneKey, SendNo, Seq};
use crate::failpoint::{self, Point};

/// A commit of so many pages is written by the writer's thread: making the pages of the next one takes about as long as that. With less, handing it over
/// costs more than it saves.
const WORTH_HANDING_OVER: usize = 2;

/// A start after a clean stop reads the newest generation to see that it is as it was closed, and sled reads it once more. So many segments take it half
/// as long again as none. On a small disk a generation has no more, and stops make no others there.
const LONG_TO_READ: u64 = 2;

/// Where commits have so many bytes, no zeros are written ahead of them: writing everything twice costs more than the syncs get cheaper.
const TOO_LARGE_FOR_ZEROS: u64 = 16 << 10;

/// How a store is opened. Sizes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// sled's segments, in a store that is created; an existing one keeps its own. 8 MiB: with pages of 64 KiB the largest value stays
    /// well below what sled would move to a file that it never syncs.
    pub segment_size: usize,
    /// Stored pages after which a generation is full. 64 MiB: recovery takes a fraction of a second, and a deletion frees space soon.
    pub generation_size: u64,
    /// sled's cache. 16 MiB: only readers that follow closely use it, and they are served by `page_cache` first. As long as a generation is written, most of
    /// it stays there all the same: see `database`.
    pub sled_cache: u64,
    /// Decoded pages kept for readers. 8 MiB: some thousands of reports, more than a window of any lane.
    pub page_cache: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { segment_size: 8 << 20, generation_size: 64 << 20, sled_cache: 16 << 20, page_cache: 8 << 20 }
    }
}

/// The log on disk.
pub struct SledLog {
    store: PathBuf,
    /// Locked as long as the log is open.
    _lock: File,
    identity: Identity,
    options: Options,
    sizes: Sizes,
    ballast: Ballast,
    free: Free,
    witness: Witness,
    testimony: Testimony,
    encoder: Encoder,
    /// Of the events of the next append, so many are in the encoder already; or why it does not take them.
    prepared: Result<usize, AppendError>,
    writer: Writer,
    /// How many events are on their way to the disk, and the room that they take at worst.
    under_way: Option<(u64, u64)>,
    shared: Arc<Shared>,
    active: Active,
    /// The first failure. Nothing is written after it.
    failed: Option<String>,
    background: Vec<JoinHandle<Result<(), String>>>,
}

/// The generation that is being written.
struct Active {
    /// Its database, shared with readers.
    handle: Arc<Handle>,
    /// The database's own file, for `fdatasync`.
    file: Arc<File>,
    /// Bytes of pages stored since its opening checkpoint, those that are on their way included.
    stored: u64,
    /// Bytes of the checkpoint that it began with, if this run has begun it.
    opening: u64,
    /// The newest checkpoint that is in it, if that is known.
    checkpoint: Option<Noted>,
    /// At so many ticks to come its folder is measured: what was written may show a little later.
    measures: u32,
    /// What is written ahead of sled in that file.
    zeros: Zeros,
}

/// See [`Active::measures`].
const MEASURES: u32 = 2;

impl Options {
    /// The options for the store in the folder `store`, which is to take no more than `max_size` bytes: sizes follow from that, or from the
    /// size of the file system if that is less.
    pub fn for_store(store: &Path, max_size: u64) -> Options {
        // A store that is not there yet will be where its parent is.
        let space = store.ancestors().find(|folder| folder.exists()).and_then(room::total);
        Options::for_space(space.map_or(max_size, |space| space.min(max_size)))
    }

    /// The options for a store that has so many bytes.
    pub fn for_space(space: u64) -> Options {
        let Sizes { segment, generation } = Sizes::for_space(space);
        let segment_size = usize::try_from(segment).expect("segments are bounded");
        Options { segment_size, generation_size: generation, ..Options::default() }
    }

    /// The options for a tool that opens a store with segments of so many bytes in the service's place. It does not know how much the store may take,
    /// so the ballast stays as it is in the store in the folder `model`.
    fn for_tool(model: &Path, segment_size: usize) -> Options {
        let segment = segment_size as u64;
        let held = Ballast::find(model, 0).held();
        // What a generation adds to it; none is smaller than two segments.
        let generation = 4 * held.saturating_sub(Sizes { segment, generation: 0 }.ballast());
        Options { segment_size, generation_size: generation.max(2 * segment), ..Options::default() }
    }
}

impl SledLog {
    /// Opens the store in the folder `store`, or creates it if the folder is empty or missing.
    ///
    /// # Errors
    /// See [`OpenError`]. Where something is missing or wrong, nothing has been opened or changed.
    pub fn open(store: &Path, options: Options) -> Result<Opened, OpenError> {
        open::open(store, options)
    }

    fn check(&mut self) -> Result<(), AppendError> {
        let mut still = Vec::new();
        for thread in self.background.drain(..) {
            if !thread.is_finished() {
                still.push(thread);
            } else if let Err(what) = outcome_of(thread) {
                self.failed.get_or_insert(what);
            }
        }
        self.background = still;
        self.failed.clone().map_or(Ok(()), |what| Err(AppendError::Io(what)))
    }

    /// Makes a failure final.
    fn kept<T>(&mut self, outcome: Result<T, String>) -> Result<T, AppendError> {
        outcome.map_err(|what| {
            tracing::error!(store = %self.store.display(), "the store failed: {what}");
            self.failed = Some(what.clone());
            AppendError::Io(what)
        })
    }

    /// Makes pages durable in the current generation.
    fn write(&mut self, pages: &[StoredPage]) -> Result<(), AppendError> {
        self.write_zeros(pages)?;
        let outcome = writer::write(&self.active.handle, pages, &self.active.file);
        self.kept(outcome)?;
        self.active.stored += bytes_of(pages);
        self.active.measures = MEASURES;
        Ok(())
    }

    /// Writes zeros ahead of the next commit, which syncs them, if the last one went beyond those that there were.
    fn write_zeros(&mut self, pages: &[StoredPage]) -> Result<(), AppendError> {
        if !self.active.zeros.is_due() || bytes_of(pages) >= TOO_LARGE_FOR_ZEROS {
            return Ok(());
        }
        let Active { handle, file, zeros, .. } = &mut self.active;
        let outcome = handle.standing_still(|| zeros.write(&self.store, file));
        self.kept(outcome)
    }

    /// The pages of `events`, of which some may have been prepared.
    fn pages_of(&mut self, events: &[Event], next_send: &dyn Fn(&LaneKey) -> SendNo) -> Result<Vec<StoredPage>, AppendError> {
        let prepared = std::mem::replace(&mut self.prepared, Ok(0))?;
        if prepared == 0 {
            self.encoder.begin(self.next_seq());
        }
        self.encoder.add(&events[prepared..], next_send)?;
        self.encoder.finish()
    }

    /// What is to be done once pages with `count` events are durable.
    fn is_durable(&mut self, count: u64, pages: &mut [StoredPage]) -> Result<Seq, AppendError> {
        self.testimony.last = Seq(self.testimony.last.0 + count);
        self.testify(false)?;
        let mut about = lock(&self.active.handle.about);
        // The rest of the folder is measured at each tick; between two, the database's file is what grows.
        if let Ok(meta) = self.active.file.metadata() {
            about.bytes = about.bytes.max(durable::on_disk(&meta));
            self.active.zeros.note(meta.len());
        }
        about.newest = about.newest.max(pages.iter().filter_map(|page| page.newest).max());
        drop(about);
        self.shared.publish(self.testimony.last, pages.iter_mut().filter_map(|page| page.page.take()));
        Ok(self.testimony.last)
    }

    /// Writes the witness, and syncs it unless the next [`EventLog::tick`] is soon enough.
    fn testify(&mut self, sync: bool) -> Result<(), AppendError> {
        let written = failpoint::pass(Point::BeforeWitness).and_then(|()| self.witness.write(&self.testimony));
        let outcome = written.and_then(|()| if sync { self.witness.sync() } else { Ok(()) });
        self.kept(outcome.map_err(|error| format!("writing the witness: {error}")))
    }

    /// Makes sure that `need` bytes can be written to the database that is being written.
    fn ahead(&mut self, need: u64, urgency: Urgency, what_for: &str) -> Result<bool, AppendError> {
        self.active.measures = MEASURES;
        let ahead = room::ahead(self.free.bytes(), &self.active.file, need);
        let mut is_there = self.kept(ahead.map_err(|error| format!("allocating space: {error}")))?;
        let held = self.ballast.held();
        if !is_there && urgency == Urgency::LastResort && self.ballast.release(what_for) {
            // All of it at once, before whoever fills the disk takes it.
            for need in [need + held / 4 * 3, need + held / 4, need] {
                let ahead = room::ahead(room::free(&self.store), &self.active.file, need);
                is_there = self.kept(ahead.map_err(|error| format!("allocating space: {error}")))?;
                if is_there {
                    break;
                }
            }
        }
        Ok(is_there)
    }

    /// Makes sure that the current generation can be sealed, and `more` bytes written to other files of the store.
    fn room_to_seal(&mut self, more: u64) -> Result<bool, AppendError> {
        let prepared = if room::free(&self.store) < room::PLENTY {
            durable::prepare_replace(&self.active.handle.folder, seal::SEAL, seal::most_bytes(self.active.stored))
        } else {
            Ok(true)
        };
        let prepared = self.kept(prepared.map_err(|error| format!("allocating a seal: {error}")))?;
        Ok(prepared && room::free(&self.store) >= more)
    }

    /// See [`EventLog::make_room_to_begin`]: the next generation's folder with its file, in which the space is allocated.
    fn prepare_next(&mut self, next: Seq, need: u64) -> std::io::Result<bool> {
        let folder = self.store.join(open::folder_name(next));
        match std::fs::create_dir(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return if room::is_full(&error) { Ok(false) } else { Err(error) };
            }
            _ => {}
        }
        let has_room = File::create(folder.join("db")).and_then(|file| {
            // What is allocated may be the last that there was, and sled makes folders and files of its own beside it.
            Ok(room::ahead(room::free(&self.store), &file, need)? && room::free(&self.store) >= room::OTHER_FILES)
        });
        if !matches!(has_room, Ok(true)) {
            std::fs::remove_dir_all(&folder)?;
        }
        match has_room {
            Err(error) if room::is_full(&error) => Ok(false),
            other => other,
        }
    }

    /// Whether no event is durable yet in the generation that is being written.
    fn is_empty(&self) -> bool {
        self.testimony.last.next() == self.active.handle.first
    }

    fn join_background(&mut self) {
        for thread in self.background.drain(..) {
            if let Err(what) = outcome_of(thread) {
                self.failed.get_or_insert(what);
            }
        }
    }
}

impl EventLog for SledLog {
    fn store_id(&self) -> StoreId {
        self.identity.store
    }

    fn next_seq(&self) -> Seq {
        self.testimony.last.next()
    }

    fn append(&mut self, events: &[Event], next_send: &dyn Fn(&LaneKey) -> SendNo) -> Result<Seq, AppendError> {
        self.check()?;
        if events.is_empty() {
            return Ok(self.testimony.last);
        }
        assert!(self.under_way.is_none(), "one append at a time");
        let mut pages = self.pages_of(events, next_send)?;
        self.write(&pages)?;
        self.is_durable(events.len() as u64, &mut pages)
    }

    fn prepare(&mut self, events: &[Event], next_send: &dyn Fn(&LaneKey) -> SendNo) {
        let Ok(before) = self.prepared else { return };
        if before == 0 {
            self.encoder.begin(Seq(self.next_seq().0 + self.under_way.map_or(0, |(count, _)| count)));
        }
        self.prepared = self.encoder.add(events, next_send).map(|()| before + events.len());
    }

    fn begin_append(
        &mut self,
        events: &[Event],
        next_send: &dyn Fn(&LaneKey) -> SendNo,
        done: Box<dyn FnOnce() + Send>,
    ) -> Result<Begun, AppendError> {
        self.check()?;
        assert!(self.under_way.is_none(), "one append at a time");
        let count = events.len() as u64;
        let mut pages = self.pages_of(events, next_send)?;
        let bytes = bytes_of(&pages);
        if pages.len() < WORTH_HANDING_OVER {
            self.write(&pages)?;
            self.is_durable(count, &mut pages)?;
            return Ok(Begun::Durable);
        }
        self.write_zeros(&pages)?;
        let begun = self.writer.begin(&self.active.handle, pages, &self.active.file, done);
        self.kept(begun)?;
        self.active.stored += bytes;
        self.active.measures = MEASURES;
        self.under_way = Some((count, self.sizes.commit(bytes)));
        Ok(Begun::UnderWay)
    }

    fn finish_append(&mut self) -> Result<Seq, AppendError> {
        let Some((count, _)) = self.under_way.take() else { return Ok(self.testimony.last) };
        let written = self.writer.finish();
        let mut pages = self.kept(written)?;
        self.is_durable(count, &mut pages)
    }

    fn is_generation_full(&self) -> bool {
        // A checkpoint that is larger than half a small generation must not be most of what is written.
        let is_empty = self.under_way.is_none() && self.is_empty();
        self.active.stored >= self.sizes.generation.max(2 * self.active.opening) && !is_empty
    }

    fn begin_generation(&mut self, checkpoint: &[u8]) -> Result<(), AppendError> {
        self.check()?;
        let next = self.next_seq();
        if self.is_empty() {
            // It has just begun, with a checkpoint as of the same position.
            return Ok(());
        }
        let pages = self.encoder.checkpoint(Kind::OpeningCheckpoint, next, checkpoint)?;
        let created = Active::create(&self.store, next, self.identity.segment_size, &self.options, &pages);
        let active = self.kept(created)?;
        failpoint::reach(Point::GenerationMade);
        // From here on the new generation is the one that must be there.
        self.testimony.generation = next;
        self.testify(true)?;
        failpoint::reach(Point::GenerationBegun);
        write(&self.shared.generations).push(Arc::clone(&active.handle));
        let full = std::mem::replace(&mut self.active, active).handle;
        self.active.checkpoint = Some(Noted::of(next, checkpoint));
        let tag = self.identity.tag;
        let sealing = std::thread::Builder::new().name("seal".into()).spawn(move || full.seal(tag, next));
        let thread = self.kept(sealing.map_err(|error| format!("starting a thread: {error}")))?;
        self.background.push(thread);
        Ok(())
    }

    fn generations(&self) -> Vec<Generation> {
        let generations = read(&self.shared.generations);
        let seen = |handle: &Arc<Handle>| {
            let About { newest, bytes } = *lock(&handle.about);
            Generation { first: handle.first, newest, bytes }
        };
        generations.iter().map(seen).collect()
    }

    fn drop_oldest_generation(&mut self) -> Result<(), AppendError> {
        self.check()?;
        let (oldest, lowest) = {
            let generations = read(&self.shared.generations);
            let [oldest, next, ..] = &generations[..] else { return Ok(()) };
            (Arc::clone(oldest), next.first)
        };
        // The witness first: it must never ask for what is gone.
        self.testimony.lowest = lowest;
        self.testify(true)?;
        failpoint::reach(Point::GenerationDisowned);
        write(&self.shared.generations).remove(0);
        *write(&oldest.state) = State::Dropped;
        self.shared.forget_below(lowest);
        let moved = durable::to_trash(&self.store, &oldest.folder).map_err(|error| format!("{}: {error}", oldest.folder.display()));
        let trash = self.kept(moved)?;
        failpoint::reach(Point::GenerationTrashed);
        let delete = move || {
            durable::delete_trash(&trash);
            Ok(())
        };
        let spawned = std::thread::Builder::new().name("delete".into()).spawn(delete);
        let thread = self.kept(spawned.map_err(|error| format!("starting a thread: {error}")))?;
        self.background.push(thread);
        Ok(())
    }

    fn space(&self) -> Space {
        let generations: u64 = read(&self.shared.generations).iter().map(|handle| lock(&handle.about).bytes).sum();
        let ballast = self.ballast.held();
        Space { used: generations + ballast, free: self.free.bytes(), ballast }
    }

    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn make_room(&mut self, bytes: u64, urgency: Urgency) -> Result<bool, AppendError> {
        self.check()?;
        let under_way = self.under_way.map_or(0, |(_, room)| room);
        self.ahead(under_way + self.sizes.commit(bytes), urgency, "outcomes of deliveries")
    }

    fn make_room_to_begin(&mut self, bytes: u64) -> Result<bool, AppendError> {
        self.check()?;
        let next = self.next_seq();
        if self.is_empty() {
            return Ok(true);
        }
        if !self.room_to_seal(room::OTHER_FILES)? {
            return Ok(false);
        }
        let prepared = self.prepare_next(next, self.sizes.commit(bytes) + self.sizes.segment);
        self.kept(prepared.map_err(|error| format!("preparing a generation: {error}")))
    }

    fn is_long_to_read(&self) -> bool {
        // What stands in an empty one are checkpoints: another generation would begin where it does.
        self.active.stored >= LONG_TO_READ * self.sizes.segment && !self.is_empty()
    }

    fn tick(&mut self) -> Result<(), AppendError> {
        self.check()?;
        if self.active.measures > 0 {
            self.active.measures -= 1;
            self.active.handle.measure();
        }
        self.ballast.restore(self.sizes.tight(self.sizes.floor()));
        let synced = self.witness.sync().map_err(|error| format!("syncing the witness: {error}"));
        self.kept(synced)
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::clone(&self.shared) as Arc<dyn LogReader>
    }

    fn adopt_copy(&mut self) -> Result<(), AppendError> {
        self.check()?;
        let written = self.identity.write(&self.store).map_err(|error| format!("writing the identity: {error}"));
        self.kept(written)
    }

    fn close(mut self: Box<Self>, checkpoint: &[u8]) -> Result<(), AppendError> {
        self.join_background();
        self.check()?;
        let next = self.next_seq();
        let what_for = "a clean stop";
        let has_room = self.ahead(self.sizes.commit(checkpoint.len() as u64), Urgency::LastResort, what_for)?
            && (self.room_to_seal(0)? || self.ballast.release(what_for) && self.room_to_seal(0)?);
        if !has_room {
            tracing::warn!(
                store = %self.store.display(),
                "the disk is too full for a clean stop; nothing is lost, and the next start takes a little longer"
            );
            return Ok(());
        }
        // Where a service is started and stopped again and again with nothing to do, an empty generation would grow by one each time.
        let is_there = self.is_empty() && self.active.checkpoint == Some(Noted::of(next, checkpoint));
        if !is_there {
            let pages = self.encoder.checkpoint(Kind::Checkpoint, next, checkpoint)?;
            self.write(&pages)?;
        }
        failpoint::reach(Point::ClosingCheckpoint);
        let sealed = self.active.handle.seal(self.identity.tag, next);
        self.kept(sealed)?;
        failpoint::reach(Point::ClosingSealed);
        // Only now: a clean witness says that the seal is there and the files are as it says.
        self.testimony.clean = true;
        self.testify(true)
    }
}

impl Active {
    /// Makes a generation's folder, with its opening checkpoint, and makes it durable.
    fn create(store: &Path, first: Seq, segment_size: usize, options: &Options, checkpoint: &[StoredPage]) -> Result<Active, String> {
        let folder = store.join(open::folder_name(first));
        let failed = |error: std::io::Error| format!("creating {}: {error}", folder.display());
        // It may have been prepared.
        std::fs::create_dir(&folder).or_else(|error| if folder.is_dir() { Ok(()) } else { Err(error) }).map_err(failed)?;
        failpoint::reach(Point::GenerationFolder);
        let database = Database::open(&folder, segment_size, options.sled_cache)?;
        let file = open_database_file(&folder).map_err(failed)?;
        if !checkpoint.is_empty() {
            database.commit(checkpoint, &file)?;
            failpoint::reach(Point::GenerationCheckpoint);
        }
        database.stand_still()?;
        let mut zeros = Zeros::of(&folder, segment_size);
        zeros.note(file.metadata().map_err(failed)?.len());
        if zeros.is_due() {
            zeros.write(store, &file);
        }
        durable::sync_folder_and_files(&folder).and_then(|()| durable::sync_folder(store)).map_err(failed)?;
        let opening = checkpoint.iter().map(|page| page.bytes.len() as u64).sum();
        let handle = Handle::new(first, folder, State::Active(database), None);
        Ok(Active { handle, file: Arc::new(file), stored: 0, opening, checkpoint: None, measures: MEASURES, zeros })
    }

    /// One that an earlier run has begun.
    fn of(first: Seq, folder: PathBuf, database: Database, file: File, segment_size: usize, shown: &Shown) -> Active {
        Active {
            zeros: Zeros::of(&folder, segment_size),
            handle: Handle::new(first, folder, State::Active(database), shown.newest),
            file: Arc::new(file),
            stored: shown.stored,
            opening: 0,
            checkpoint: shown.checkpoint,
            measures: MEASURES,
        }
    }
}

/// What came of work in the background. A panic in it leaves a folder in a state that nobody knows.
fn outcome_of(thread: JoinHandle<Result<(), String>>) -> Result<(), String> {
    let name = thread.thread().name().unwrap_or_default().to_owned();
    thread
        .join()
        .unwrap_or_else(|_| Err(format!("the thread `{name}` of the store panicked, which is a fault in Tidings: please report it")))
}

fn bytes_of(pages: &[StoredPage]) -> u64 {
    pages.iter().map(|page| page.bytes.len() as u64).sum()
}

/// The database's own file, for syncing it, and for allocating space in it.
fn open_database_file(folder: &Path) -> std::io::Result<File> {
    File::options().read(true).write(true).open(folder.join("db"))
}

impl Drop for SledLog {
    /// Without [`EventLog::close`] this is as good as a kill: nothing more is promised, but the files are let go.
    fn drop(&mut self) {
        self.join_background();
        let mut state = write(&self.active.handle.state);
        if matches!(*state, State::Active(_)) {
            *state = State::Unreadable("the log has been dropped".into());
            // Whoever opens the store next must not meet a thread of sled's that still holds the file.
            if let Err(what) = database::wait_until_closed(&self.active.handle.folder) {
                tracing::debug!("{what}");
            }
        }
    }
}
