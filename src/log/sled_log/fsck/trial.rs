//! What sled shows of the newest generation, tried on a copy: opening the original would write to it.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{Finding, Survey};
use crate::log::OpenError;
use crate::log::sled_log::Options;
use crate::log::sled_log::database::Database;
use crate::log::sled_log::durable;
use crate::log::sled_log::open::At;
use crate::log::sled_log::room;
use crate::log::sled_log::shown::{check_shown, read_checkpoint};

/// A folder that goes away with this.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can't be deleted lies in the folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Opens a copy of the newest generation, as a start would.
///
/// # Errors
/// Why it could not be tried.
pub(in crate::log::sled_log) fn trial(survey: &Survey) -> Result<Option<Finding>, String> {
    let (Some(identity), Some(testimony)) = (survey.identity, survey.testimony) else { return Ok(None) };
    let folder = survey.folder(testimony.generation);
    let scratch = std::env::temp_dir().join(format!("tidings-fsck-{:016x}", getrandom::u64().map_err(|error| error.to_string())?));
    let needed = durable::bytes_on_disk(&folder);
    let free = room::known_free(&std::env::temp_dir()).unwrap_or(u64::MAX);
    let not_tried = |why: String| format!("whether the database shows all that is in its raw file was not tried: {why}");
    if free < needed.saturating_mul(2) {
        return Err(not_tried(format!(
            "a copy of the newest generation takes {needed} bytes in {}, where {free} are free; set TMPDIR to a folder with room",
            std::env::temp_dir().display()
        )));
    }
    DirBuilder::new().mode(0o700).create(&scratch).map_err(|error| not_tried(format!("{}: {error}", scratch.display())))?;
    let scratch = Scratch(scratch);
    copy(&folder, &scratch.0).map_err(|error| not_tried(format!("copying to {}: {error}", scratch.0.display())))?;
    let at = At { store: &survey.store };
    let opened = Database::open(&scratch.0, identity.segment_size, Options::default().sled_cache);
    let tried = opened.map_err(|what| at.not_shown(testimony.generation, &what)).and_then(|database| {
        let file = File::open(scratch.0.join("db")).map_err(|error| at.io(error))?;
        let shown = check_shown(&at, &database, &file, &testimony, survey.tag)?;
        read_checkpoint(&at, &database, &shown, testimony.generation, survey.tag).map(|_| ())
    });
    match tried {
        Ok(()) => Ok(None),
        Err(OpenError::Io { what, .. }) => Err(not_tried(what)),
        Err(OpenError::NotShown { what, .. } | OpenError::Damaged { what, .. }) => Ok(Some(Finding {
            code: "not_shown",
            generation: Some(testimony.generation),
            file: Some("db".into()),
            events: None,
            what: format!("the database does not show what is in its raw file: {what}"),
        })),
        Err(other) => Err(not_tried(other.to_string())),
    }
}

/// Copies a folder's files, and the files of its folders.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            copy(&entry.path(), &target)?;
        } else if entry.file_name() != "seal" {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
