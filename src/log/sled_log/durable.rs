//! Files and folders that are there after a power cut: what has to be synced, in one place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::failpoint::{self, Point};

/// Makes the names in a folder durable: files created, renamed or deleted there.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes every file in a folder, and their names, durable.
pub(super) fn sync_folder_and_files(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(path)
}

/// Puts a whole file in place, so that after a crash either the old one or the new one is there.
///
/// `fill` is given the new file, still under a temporary name.
pub(super) fn replace(folder: &Path, name: &str, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.tmp"));
    // What is there already may be room that was allocated for it.
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&temporary)?;
    fill(&mut file)?;
    file.flush()?;
    let end = file.stream_position()?;
    file.set_len(end)?;
    file.sync_all()?;
    drop(file);
    failpoint::pass(Point::BeforeRename)?;
    fs::rename(&temporary, folder.join(name))?;
    sync_folder(folder)
}

/// Allocates the file that [`replace`] will write, so that it can be written on a disk that is full by then. False if there is no room.
pub(super) fn prepare_replace(folder: &Path, name: &str, bytes: u64) -> io::Result<bool> {
    let temporary = folder.join(format!("{name}.tmp"));
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
    match fallocate(&file, FallocateFlags::KEEP_SIZE, 0, bytes) {
        // Where it can't be done, it is written when its time comes.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(true),
        Err(Errno::NOSPC | Errno::DQUOT) => {
            drop(file);
            fs::remove_file(&temporary)?;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Moves a generation's folder out of the way. Once this has returned it no longer belongs to the store, and whether it has been
/// deleted makes no difference.
pub(super) fn to_trash(store: &Path, folder: &Path) -> io::Result<PathBuf> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let mut trash = store.join(format!("{TRASH_PREFIX}{name}"));
    let mut attempt = 0;
    while trash.exists() {
        attempt += 1;
        trash = store.join(format!("{TRASH_PREFIX}{name}-{attempt}"));
    }
    fs::rename(folder, &trash)?;
    sync_folder(store)?;
    Ok(trash)
}

/// Deletes a folder that was moved out of the way. What fails is tried again at the next start.
pub(super) fn delete_trash(trash: &Path) {
    if let Err(error) = fs::remove_dir_all(trash) {
        tracing::warn!(folder = %trash.display(), "deleting a folder that is no longer needed failed: {error}; it is tried again at the next start");
    }
}

/// What folders begin with that only wait to be deleted.
pub(super) const TRASH_PREFIX: &str = "trash-";

/// What a folder's files take on disk.
pub(super) fn bytes_on_disk(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
}

/// What a folder's files take on disk, those of its folders included.
pub(super) fn tree_on_disk(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => tree_on_disk(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// Copies the files of a folder, but not its folders, to a new folder, and makes the copies durable.
pub(super) fn copy_files(from: &Path, to: &Path, done: &mut dyn FnMut(u64)) -> io::Result<()> {
    std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let target = to.join(entry.file_name());
            done(fs::copy(entry.path(), &target)?);
        }
    }
    sync_folder_and_files(to)
}

/// Gives a file, or a folder with all that is in it, to the owner of `model`: a tool that is run by root must not lock the service out.
pub(super) fn give_to_owner_of(model: &Path, path: &Path) -> io::Result<()> {
    let (wanted, now) = (fs::metadata(model)?, fs::symlink_metadata(path)?);
    if (wanted.uid(), wanted.gid()) != (now.uid(), now.gid()) {
        std::os::unix::fs::lchown(path, Some(wanted.uid()), Some(wanted.gid()))?;
    }
    if now.is_dir() {
        for entry in fs::read_dir(path)? {
            give_to_owner_of(model, &entry?.path())?;
        }
    }
    Ok(())
}

/// What a file takes on disk.
pub(super) fn on_disk(meta: &fs::Metadata) -> u64 {
    meta.blocks() * 512
}
