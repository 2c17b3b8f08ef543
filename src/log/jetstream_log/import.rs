//! A folder's store moves to a stream, and a stream's back to a folder: what is special about the stream. See [`import`](mod@crate::log::import).
//!
//! A store that has moved to a folder leaves a key `moved` in the bucket: an instance that is started on the stream again, by habit or by systemd, is
//! refused, because both stores have the same sessions at the broker. Nothing else of the stream is changed; without the key it can be used again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bucket::Bucket;
use super::members::signs;
use super::open::{self, Purpose};
use super::servers::Pages;
use super::{EventLog, JetStreamLog, Options, Part, known};
use crate::log::committer::{encode_checkpoint, recover};
use crate::log::import::{ImportError, Imported, Target, compare, copy, firsts};
use crate::log::{AppendError, OpenError, Opened, sled_log};

/// The key that says that the store has moved.
const MOVED: &str = "moved";

/// Between two looks whether anybody is at work. Signs of life come once a second.
const LOOK: Duration = Duration::from_millis(2_500);

/// What the key holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Moved {
    /// Where to, for people.
    pub(super) to: String,
}

/// Where the store has moved to, if it has.
pub(super) async fn moved(bucket: &Bucket) -> Result<Option<String>, String> {
    Ok(bucket.read::<Moved>(MOVED).await?.map(|read| read.value.to))
}

/// An instance that is at work on the stream, if there is one: one that counts up.
pub(super) async fn at_work(bucket: &Bucket) -> Result<Option<String>, String> {
    let before = signs(bucket).await?;
    if before.is_empty() {
        return Ok(None);
    }
    tokio::time::sleep(LOOK).await;
    let now = signs(bucket).await?;
    Ok(now.into_iter().find(|(instance, sign)| before.get(instance) != Some(sign)).map(|(_, sign)| sign.name))
}

/// Copies the store that `source` is to the stream of `options`, and compares. `done` is told how far it is, in events.
///
/// # Errors
/// See [`ImportError`].
pub fn import(source: &Opened, options: Options, done: &dyn Fn(u64)) -> Result<Imported, ImportError> {
    let purpose = Purpose::Import(source.log.store_id(), firsts(&*source.log)[0]);
    let (mut log, ..) = open::open_log(options.clone(), purpose)?;
    copy(source, &mut log, done)?;
    let checkpoint = encode_checkpoint(&recover(source)?);
    log.finish(&checkpoint)?;
    let copy = JetStreamLog::open(options)?;
    let imported = compare(source, &copy)?;
    copy.log.close(&checkpoint)?;
    Ok(imported)
}

/// Copies the store in the stream of `options` to `folder`, in which nothing may be, and compares. `done` is told how far it is, in events.
///
/// # Errors
/// See [`ImportError`]. [`OpenError::InUse`] if an instance is at work on the stream.
pub fn export(options: Options, folder: &Path, folder_options: sled_log::Options, done: &dyn Fn(u64)) -> Result<Imported, ImportError> {
    let (log, checkpoint, last_stop, _) = open::open_log(options, Purpose::Export)?;
    let leaving = Leaving { bridge: Arc::clone(&log.bridge), bucket: log.bucket.clone(), pages: log.pages.clone(), next: log.end + 1 };
    let mut source = Opened { log: Box::new(log), checkpoint, last_stop, is_copy: false };
    let to = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned()).display().to_string();
    let exported = sled_log::import(&mut source, folder, folder_options, done, &mut |_| {
        // The mark first: who starts behind it is refused, and who started before is seen.
        let left = leaving.mark(&Moved { to: to.clone() }).and_then(|()| leaving.is_left());
        // It is not for a store that goes on.
        left.inspect_err(|_| leaving.unmark())
    })?;
    let checkpoint = encode_checkpoint(&recover(&source)?);
    source.log.close(&checkpoint)?;
    Ok(exported)
}

/// A stream that is left.
struct Leaving {
    bridge: Arc<super::Bridge>,
    bucket: Bucket,
    pages: Pages,
    /// Behind what was copied.
    next: u64,
}

impl Leaving {
    fn mark(&self, moved: &Moved) -> Result<(), ImportError> {
        let (bucket, moved) = (self.bucket.clone(), Moved { to: moved.to.clone() });
        let marked = self.bridge.wait(super::CLOSING, async move { bucket.put(MOVED, &moved).await });
        let marked = marked.unwrap_or_else(|| Err("the servers did not answer".into()));
        marked.map_err(|what| ImportError::Append(AppendError::Io(format!("marking the stream as moved: {what}"))))
    }

    /// That nobody has appended since it was opened, and nobody is at work. Servers that don't answer have not said so.
    fn is_left(&self) -> Result<(), ImportError> {
        let (bucket, pages, next) = (self.bucket.clone(), self.pages.clone(), self.next);
        let looked = self.bridge.wait(LOOK + super::CLOSING, async move {
            let appended = pages.get(next).await?.is_some();
            Ok::<_, String>((appended, at_work(&bucket).await?))
        });
        match looked.unwrap_or_else(|| Err("the servers did not answer".into())) {
            Ok((false, None)) => Ok(()),
            Ok((true, _)) => {
                Err(ImportError::Busy("an instance has appended to the stream meanwhile: stop every Tidings on it, and begin again".into()))
            }
            Ok((false, Some(name))) => {
                Err(ImportError::Busy(format!("the instance {name} has come to work on the stream meanwhile: stop it, and begin again")))
            }
            Err(what) => Err(ImportError::Busy(format!(
                "whether an instance has appended to the stream meanwhile can't be found out: {what}; begin again"
            ))),
        }
    }

    fn unmark(&self) {
        let bucket = self.bucket.clone();
        // If it stays, the next start says how to take it away.
        self.bridge.wait(super::CLOSING, async move { bucket.forget(MOVED).await });
    }
}

impl Target for JetStreamLog {
    fn log(&mut self) -> &mut dyn EventLog {
        self
    }

    fn cut(&mut self) -> Result<(), AppendError> {
        let begun = Part { first: self.next_seq(), message: self.end + 1, newest: None, bytes: 0 };
        let before = *self.shared.parts().last().expect("there is always one that is written");
        self.change(None, move |state| {
            if state.generations.last().is_some_and(|last| last.first < begun.first) {
                known(state, before);
                state.generations.push(begun);
            }
        })
    }
}

impl JetStreamLog {
    /// Makes a store of it.
    fn finish(mut self, checkpoint: &[u8]) -> Result<(), AppendError> {
        self.leave_clean(checkpoint)?;
        let (bucket, identity) = (self.bucket.clone(), self.identity.clone());
        self.done(async move { bucket.create("identity", &identity).await?.map(|_| ()).ok_or("another store was begun there".to_owned()) })
    }
}

/// Why a stream that was left is not opened.
pub(super) fn has_moved(store: &str, stream: &str, to: &str) -> OpenError {
    OpenError::NotAStream {
        store: store.to_owned(),
        what: format!(
            "it was moved to {to}, and both have the same sessions at the broker. Serve from there; or, if that one will never be used again, \
             `nats kv del {stream} {MOVED}`, which makes this one what it was before the move"
        ),
    }
}
