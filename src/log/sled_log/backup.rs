//! Backups: generations that stand still, copied and checked, and a file that is written last.
//!
//! ```text
//!   <backup>/
//!     g…/       each generation as it was sealed
//!     backup    what the store is, and up to which event; written last: without it there is no backup
//! ```
//! The file `backup` is one line of JSON and its checksum. There is no `identity`, so that no service ever runs in a backup.
//!
//! A store that is restored says that it is a copy, whatever inode and time its files get, so the next start bumps the epochs: what the
//! broker has in its sessions is newer than the backup.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::fsck::Progress;
use super::identity::{Found, Identity};
use super::open::{self, At, folder_name};
use super::witness::{Testimony, WITNESS, Witness};
use super::{Options, SledLog, durable, room, seal};
use crate::core::types::{Millis, Seq};
use crate::failpoint::{self, Point};
use crate::log::committer::{RecoverError, encode_checkpoint, now, recover};
use crate::log::{LastStop, OpenError, StoreId};
use crate::migrations;

const MANIFEST: &str = "backup";

/// A full generation is sealed within a second or two; the disk may be busy.
const SEALED_WITHIN: Duration = Duration::from_secs(120);

/// The file is a few hundred bytes, and 21 for each generation.
const MAX_MANIFEST: u64 = 16 << 20;

/// What a backup is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of what is stored.
    pub format: u32,
    /// The store's id.
    store: u64,
    tag: u64,
    segment_size: usize,
    created: Millis,
    /// The last event that is in it.
    pub position: u64,
    /// When it was made.
    pub taken: Millis,
    generations: Vec<u64>,
    run: u64,
    /// The newest generation ends with a checkpoint, as a clean stop leaves it.
    clean: bool,
}

impl Manifest {
    /// The id of the store.
    pub fn store_id(&self) -> StoreId {
        StoreId(self.store)
    }

    /// How many generations.
    pub fn generations(&self) -> usize {
        self.generations.len()
    }
}

/// A backup that was made, or restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// What it is of.
    pub manifest: Manifest,
    /// Bytes that were copied and checked.
    pub bytes: u64,
}

/// Why there is no backup, or none was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store can't be read.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The target is there already.
    #[error("{path} is not empty: {hint}")]
    NotEmpty {
        /// The target.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
    },
    /// There is nothing in it.
    #[error("the store {0} holds no event yet: there is nothing to back up")]
    Empty(PathBuf),
    /// A generation is not as it was sealed.
    #[error("generation {generation} of {path} is damaged: {what}; {hint}")]
    Damaged {
        /// The store, or the backup.
        path: PathBuf,
        /// The generation's folder.
        generation: String,
        /// What is wrong.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// The folder is no backup that was finished.
    #[error("{path} is no backup that was finished: {what}; use another one")]
    NotABackup {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// There is too little space.
    #[error("{needed} bytes are to be copied to {path}, and {free} are free there; nothing was written")]
    NoRoom {
        /// The target.
        path: PathBuf,
        /// How many it takes.
        needed: u64,
        /// How many there are.
        free: u64,
    },
    /// The disk failed, is full, or denies access.
    #[error("{what}; what was written so far is no backup and no store, and can be deleted")]
    Io {
        /// What failed, and where.
        what: String,
    },
    /// The service does not hold the generations any more.
    #[error("{0}")]
    Interrupted(String),
}

impl BackupError {
    /// Stable name for logs and machines.
    pub fn code(&self) -> &'static str {
        match self {
            BackupError::Open(error) => error.code(),
            BackupError::Recover(_) | BackupError::Damaged { .. } => "store_damaged",
            BackupError::NotEmpty { .. } => "not_empty",
            BackupError::Empty(_) => "store_empty",
            BackupError::NotABackup { .. } => "not_a_backup",
            BackupError::NoRoom { .. } => "no_room",
            BackupError::Io { .. } => "store_failed",
            BackupError::Interrupted(_) => "interrupted",
        }
    }

    fn io(path: &Path, error: &io::Error) -> BackupError {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => " (it has to be readable here: run this as the service's user, or as root)",
            _ => "",
        };
        BackupError::Io { what: format!("{}: {error}{hint}", path.display()) }
    }
}

/// Copies what a running service holds still: the generations that begin with `generations`, up to the event `position`.
///
/// `alive` is called now and then, and says why to stop.
///
/// # Errors
/// See [`BackupError`].
pub fn backup_running(
    store: &Path,
    generations: &[Seq],
    position: Seq,
    target: &Path,
    progress: &dyn Progress,
    alive: &mut dyn FnMut() -> Result<(), String>,
) -> Result<Copied, BackupError> {
    let identity = identity_of(store)?;
    let started = Instant::now();
    for first in generations {
        let folder = store.join(folder_name(*first));
        while !folder.join(seal::SEAL).exists() {
            alive().map_err(BackupError::Interrupted)?;
            if !folder.exists() {
                return Err(BackupError::Interrupted(format!("{} is gone; begin again", folder.display())));
            }
            if started.elapsed() > SEALED_WITHIN {
                return Err(BackupError::Interrupted(format!("{} is not sealed; look at the service's log", folder.display())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let said = Witness::read(store, identity.tag).map_err(|error| BackupError::io(store, &error))?;
    let run = said.ok_or_else(|| At { store }.damaged("its file `witness` is not what was written"))?.run;
    let manifest = Manifest::of(&identity, generations, position, run, false);
    write(store, manifest, target, progress, alive)
}

/// Copies a store on which no service runs. One that was not closed in order is opened and closed first, as the next start would.
///
/// # Errors
/// See [`BackupError`]; [`OpenError::Locked`] if a service runs.
pub fn backup_stopped(store: &Path, target: &Path, progress: &dyn Progress) -> Result<Copied, BackupError> {
    let at = At { store };
    if !fs::metadata(store).is_ok_and(|meta| meta.is_dir()) {
        return Err(at.not_a_store("there is no such folder").into());
    }
    empty(target, "choose a new folder for the backup")?;
    let mut tried = false;
    loop {
        // Before the lock, which would be left in a folder that is something else.
        let identity = identity_of(store)?;
        let lock = open::lock(&at)?;
        let said = Witness::read(store, identity.tag).map_err(|error| at.io(error))?;
        if let Some(said) = said.filter(|said| said.clean) {
            let mut generations = open::list(store).map_err(|error| at.io(error))?.generations;
            generations.retain(|first| (said.lowest..=said.generation).contains(first));
            if said.last < Seq::FIRST {
                return Err(BackupError::Empty(store.to_owned()));
            }
            let manifest = Manifest::of(&identity, &generations, said.last, said.run, true);
            let copied = write(store, manifest, target, progress, &mut || Ok(()));
            drop(lock);
            return copied;
        }
        drop(lock);
        if tried {
            return Err(at.damaged("it could not be closed in order; see `tidings fsck`").into());
        }
        tried = true;
        let closed = close(&at, Options::for_tool(store, identity.segment_size));
        // What a start and a stop write anew is the service's, whoever does this, and however it ends.
        durable::give_to_owner_of(store, store).map_err(|error| BackupError::io(store, &error))?;
        closed?;
    }
}

/// Opens a store and closes it in order.
fn close(at: &At<'_>, options: Options) -> Result<(), BackupError> {
    let opened = SledLog::open(at.store, options)?;
    if opened.last_stop == LastStop::Fresh {
        return Err(BackupError::Empty(at.store.to_owned()));
    }
    let outbox = recover(&opened)?;
    Ok(opened.log.close(&encode_checkpoint(&outbox)).map_err(|error| at.io(error))?)
}

/// Reads what a backup is of, without checking its generations.
///
/// # Errors
/// [`BackupError::NotABackup`].
pub fn manifest(backup: &Path) -> Result<Manifest, BackupError> {
    let not_one = |what: String| BackupError::NotABackup { path: backup.to_owned(), what };
    let path = backup.join(MANIFEST);
    let meta = fs::metadata(&path).map_err(|error| not_one(format!("its file `{MANIFEST}`, which is written last: {error}")))?;
    if meta.len() > MAX_MANIFEST {
        return Err(not_one(format!("its file `{MANIFEST}` is too long")));
    }
    let text = fs::read_to_string(&path).map_err(|error| not_one(error.to_string()))?;
    let changed = || not_one(format!("its file `{MANIFEST}` is not what was written"));
    let (content, crc) = text.split_once('\n').ok_or_else(changed)?;
    if crc.trim() != format!("crc {:08x}", crc32c::crc32c(content.as_bytes())) {
        return Err(changed());
    }
    let manifest: Manifest = serde_json::from_str(content).map_err(|_| changed())?;
    if manifest.format > migrations::CURRENT {
        let (found, known) = (manifest.format, migrations::CURRENT);
        return Err(OpenError::Newer { path: backup.to_owned(), found, known }.into());
    }
    if manifest.generations.is_empty() { Err(changed()) } else { Ok(manifest) }
}

/// Makes a store in `store`, which must be missing or empty, out of a backup. As root it gives what it makes to the owner of that folder, or of the one above.
///
/// # Errors
/// See [`BackupError`]. What was written by then is no store.
pub fn restore(backup: &Path, store: &Path, progress: &dyn Progress) -> Result<Copied, BackupError> {
    let manifest = manifest(backup)?;
    empty(store, "restore into a new folder, or move this one away first (what a restore leaves that was cut short is no store)")?;
    let heir = Heir::find(store);
    let hint = "this backup can't be restored; use another one";
    let bytes = copy_generations(backup, &manifest, store, hint, progress, &mut || Ok(()))?;
    let failed = |error: io::Error| BackupError::io(store, &error);
    let first = |at: Option<&u64>| Seq(at.copied().unwrap_or(1));
    let testimony = Testimony {
        lowest: first(manifest.generations.first()),
        generation: first(manifest.generations.last()),
        last: Seq(manifest.position),
        run: manifest.run,
        clean: manifest.clean,
    };
    let mut witness = Witness::create(store, manifest.tag, &testimony).map_err(failed)?;
    witness.sync().map_err(failed)?;
    durable::sync_folder(store).map_err(failed)?;
    // Nobody else can give anything away; and what has just been made tells who this is.
    let is_root = fs::metadata(store.join(WITNESS)).map_err(failed)?.uid() == 0;
    let give = || if is_root { heir.give() } else { Ok(()) };
    give().map_err(failed)?;
    failpoint::reach(Point::RestoreIdentity);
    // With this file it is a store.
    manifest.identity().write_as_copy(store).and_then(|()| give()).map_err(failed)?;
    sync_parent(store).map_err(failed)?;
    Ok(Copied { manifest, bytes })
}

/// Who gets what root restores: the service may run as another user, and has to be able to open it.
struct Heir {
    /// The folder that was there before: its owner gets it.
    model: PathBuf,
    /// What is made in it.
    made: PathBuf,
}

impl Heir {
    fn find(store: &Path) -> Heir {
        let missing = store.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).last();
        let made = missing.unwrap_or(store).to_owned();
        let above = made.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Heir { model: if missing.is_some() { above.to_owned() } else { store.to_owned() }, made }
    }

    fn give(&self) -> io::Result<()> {
        // The store may be named by a link.
        durable::give_to_owner_of(&self.model, &self.made.canonicalize()?)
    }
}

impl Manifest {
    fn of(identity: &Identity, generations: &[Seq], position: Seq, run: u64, clean: bool) -> Manifest {
        Manifest {
            format: identity.format,
            store: identity.store.0,
            tag: identity.tag,
            segment_size: identity.segment_size,
            created: identity.created,
            position: position.0,
            taken: now(),
            generations: generations.iter().map(|first| first.0).collect(),
            run,
            clean,
        }
    }

    fn identity(&self) -> Identity {
        Identity { format: self.format, store: StoreId(self.store), tag: self.tag, segment_size: self.segment_size, created: self.created }
    }
}

fn identity_of(store: &Path) -> Result<Identity, BackupError> {
    let at = At { store };
    match Identity::read(store, migrations::CURRENT).map_err(|error| BackupError::io(store, &error))? {
        Found::Store { identity, .. } => Ok(identity),
        Found::OtherFormat(found) if found > migrations::CURRENT => {
            Err(OpenError::Newer { path: store.to_owned(), found, known: migrations::CURRENT }.into())
        }
        Found::OtherFormat(found) => Err(at.io(format!("it has the older format {found}; `tidings migrate` comes first")).into()),
        Found::Missing => Err(at.not_a_store("it has no file `identity`").into()),
        Found::Damaged(what) => Err(at.damaged(what).into()),
    }
}

/// Copies and checks the generations, and then writes the file that makes it a backup.
fn write(
    store: &Path,
    manifest: Manifest,
    target: &Path,
    progress: &dyn Progress,
    alive: &mut dyn FnMut() -> Result<(), String>,
) -> Result<Copied, BackupError> {
    empty(target, "choose a new folder for the backup")?;
    if manifest.generations.is_empty() {
        return Err(BackupError::Empty(store.to_owned()));
    }
    let bytes = copy_generations(store, &manifest, target, "see `tidings fsck`", progress, alive)?;
    failpoint::reach(Point::BackupManifest);
    let content = serde_json::to_string(&manifest).map_err(|error| BackupError::Io { what: error.to_string() })?;
    let line = |file: &mut fs::File| writeln!(file, "{content}\ncrc {:08x}", crc32c::crc32c(content.as_bytes()));
    durable::replace(target, MANIFEST, line).and_then(|()| sync_parent(target)).map_err(|error| BackupError::io(target, &error))?;
    Ok(Copied { manifest, bytes })
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.canonicalize()?.parent() {
        Some(parent) => durable::sync_folder(parent),
        None => Ok(()),
    }
}

/// Missing, or without anything but what a file system puts into its own root.
fn empty(target: &Path, hint: &'static str) -> Result<(), BackupError> {
    match fs::read_dir(target) {
        Ok(mut entries) => match entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == "lost+found")) {
            true => Ok(()),
            false => Err(BackupError::NotEmpty { path: target.to_owned(), hint }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(BackupError::io(target, &error)),
    }
}

fn copy_generations(
    from: &Path,
    manifest: &Manifest,
    to: &Path,
    hint: &'static str,
    progress: &dyn Progress,
    alive: &mut dyn FnMut() -> Result<(), String>,
) -> Result<u64, BackupError> {
    let folders: Vec<(Seq, PathBuf)> =
        manifest.generations.iter().map(|first| (Seq(*first), from.join(folder_name(Seq(*first))))).collect();
    let needed: u64 = folders.iter().map(|(_, folder)| durable::bytes_on_disk(folder)).sum();
    progress.begins("copying", needed);
    open::create_private(to).map_err(|error| BackupError::io(to, &error))?;
    let free = room::known_free(to).unwrap_or(u64::MAX);
    if free < needed {
        return Err(BackupError::NoRoom { path: to.to_owned(), needed, free });
    }
    let mut copied = 0;
    let mut expected = None;
    for (first, folder) in folders {
        alive().map_err(BackupError::Interrupted)?;
        let damaged = |what: String| BackupError::Damaged { path: from.to_owned(), generation: folder_name(first), what, hint };
        let target = to.join(folder_name(first));
        let head = seal::read_head(&folder, manifest.tag).map_err(|error| BackupError::io(&folder, &error))?;
        let head = head
            .filter(|head| head.first == first)
            .ok_or_else(|| damaged("its file `seal` is missing or is not what was written".into()))?;
        if expected.is_some_and(|expected| expected != first) {
            return Err(damaged("the one before it ends elsewhere".into()));
        }
        expected = Some(head.next);
        durable::copy_files(&folder, &target, &mut |bytes| {
            copied += bytes;
            progress.done(bytes);
        })
        .map_err(|error| BackupError::io(&target, &error))?;
        // What was read may be damaged, or what was written; either way it is no backup.
        match seal::wrong_content(&target, &head).map_err(|error| BackupError::io(&target, &error))? {
            None => {}
            Some(what) => return Err(damaged(what)),
        }
        failpoint::reach(Point::BackupGeneration);
    }
    if expected != Some(Seq(manifest.position).next()) {
        let what = format!("the last generation does not end with event {}", manifest.position);
        return Err(BackupError::NotABackup { path: from.to_owned(), what });
    }
    Ok(copied)
}
