//! Another kind of store is taken in: see [`import`](mod@crate::log::import).
//!
//! The folder is made as any store is, at the source's first position and with its id. Its file `identity` comes last: what is interrupted is no store, and a
//! start on it is refused with the reason. What the state was where a generation begins is not known, because the source keeps only its newest checkpoints: that is said there as
//! after a repair, and the folder is closed with the state at the end, twice (once where its newest generation holds no event).

use std::path::Path;

use super::fsck::UNKNOWN_CHECKPOINT;
use super::identity::IDENTITY;
use super::open::{self, At};
use super::{Options, SledLog};
use crate::log::committer::{encode_checkpoint, recover};
use crate::log::import::{ImportError, Imported, Target, compare, copy, firsts};
use crate::log::{AppendError, EventLog, Opened};

/// What has to hold before the copy is a store.
pub(in crate::log) type LastWord<'a> = &'a mut dyn FnMut(&mut Opened) -> Result<(), ImportError>;

/// Copies the store that `source` is to `folder`, and compares. `done` is told how far it is, in events; where `last_word` fails, there is no store.
pub(in crate::log) fn import(
    source: &mut Opened,
    folder: &Path,
    options: Options,
    done: &dyn Fn(u64),
    last_word: LastWord<'_>,
) -> Result<Imported, ImportError> {
    let at = At { store: folder };
    let mut log = open::begin(&at, source.log.store_id(), firsts(&*source.log)[0], options)?;
    copy(source, &mut log, done)?;
    let checkpoint = encode_checkpoint(&recover(source)?);
    let identity = log.identity;
    Box::new(log).close(&checkpoint)?;
    identity.write(folder).map_err(|error| at.io(format!("writing the identity: {error}")))?;
    let proven = SledLog::open(folder, options).map_err(ImportError::from).and_then(|copy| {
        let imported = compare(source, &copy)?;
        copy.log.close(&checkpoint)?;
        last_word(source)?;
        Ok(imported)
    });
    if proven.is_err() {
        std::fs::remove_file(folder.join(IDENTITY)).map_err(|error| at.io(format!("taking the identity away again: {error}")))?;
    }
    proven
}

impl Target for SledLog {
    fn log(&mut self) -> &mut dyn EventLog {
        self
    }

    fn cut(&mut self) -> Result<(), AppendError> {
        self.begin_generation(UNKNOWN_CHECKPOINT)
    }
}
