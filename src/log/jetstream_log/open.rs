//! Opening: find or make the stream and the bucket, and read on from the newest checkpoint. As many instances as like to may do so at once.
//!
//! | Stream | Bucket | `identity` | then |
//! |---|---|---|---|
//! | none, or empty | none, or there | none | made: a creation that was interrupted goes on |
//! | holds messages | none, or there | none | refused: somebody else's |
//! | none | there | there | refused: the reports are gone |
//! | there | there | there | the pages since the newest checkpoint are read, each of which has to be there |

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::bridge::Bridge;
use super::bucket::{Bucket, Identity, Mark, State};
use super::growth::Growth;
use super::home::Home;
use super::members::Members;
use super::reader::Shared;
use super::scan::{Commit, Scanner};
use super::servers::{AT_ONCE, Pages, connect, find, where_it_is};
use super::watch::{self, Testimony, Watched};
use super::{FORMAT, JetStreamLog, Options, import};
use crate::core::event::Event;
use crate::core::types::Seq;
use crate::log::codec::{Decoder, Encoder, Kind, Limits, parse};
use crate::log::sizes::Sizes;
use crate::log::{Checkpoint, LastStop, OpenError, Opened, StoreId};

/// Servers that answer may be about to find each other, or elect who leads a stream that another instance has just made.
const SETTLING: Duration = Duration::from_secs(20);

/// Between two tries of that.
const AGAIN: Duration = Duration::from_millis(500);

/// The whole of it, the pages apart: some dozen requests, and perhaps an election.
const OPENING: Duration = Duration::from_secs(60);

/// So many messages are asked for at once, within such a time.
const BATCH: Duration = Duration::from_secs(30);

/// What a store is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be worked on, beside others.
    Serve,
    /// To take in another store, with its id and from this position on. It is a store, with an identity, when that has ended.
    Import(StoreId, Seq),
    /// To be copied to somewhere else, while nobody works on it.
    Export,
}

/// What is known after the first part.
struct Found {
    pages: Pages,
    bucket: Bucket,
    identity: Identity,
    state: State,
    must_hold: u64,
    last_message: u64,
    bytes: u64,
    max_bytes: u64,
    home: Home,
    /// It is a copy: the epochs are bumped behind this message, or are to be.
    copied_at: Option<u64>,
    is_fresh: bool,
    was_clean: bool,
}

pub(super) fn open(options: Options, purpose: Purpose) -> Result<Opened, OpenError> {
    let (log, checkpoint, last_stop, is_copy) = open_log(options, purpose)?;
    Ok(Opened { log: Box::new(log), checkpoint, last_stop, is_copy })
}

pub(super) fn open_log(options: Options, purpose: Purpose) -> Result<(JetStreamLog, Option<Checkpoint>, LastStop, bool), OpenError> {
    let store = where_it_is(&options);
    let unreachable = |what: String| OpenError::Unreachable { store: store.clone(), what };
    let bridge = Arc::new(Bridge::new().map_err(|error| unreachable(format!("starting a thread: {error}")))?);
    let (asked, named) = (options.clone(), store.clone());
    let found = bridge.wait(OPENING, async move { prepare(&asked, &named, purpose).await });
    let found = found.unwrap_or_else(|| Err(unreachable(format!("the servers did not answer within {} s", OPENING.as_secs()))))?;
    let damaged = |what: String| OpenError::StreamDamaged { store: store.clone(), what };
    let hex = |text: &str| u64::from_str_radix(text, 16).map_err(|_| damaged("`identity` of the bucket holds no ids".into()));
    let (tag, id) = (hex(&found.identity.tag)?, hex(&found.identity.store)?);
    let (checkpoint, mark) = newest_checkpoint(&bridge, &found, tag, &store)?;
    let (next, from) = match &mark {
        Some(mark) => (mark.next, mark.message),
        None => (found.state.generations[0].first, found.state.generations[0].message),
    };
    let is_import = matches!(purpose, Purpose::Import(..));
    if checkpoint.is_none() && found.state.generations[0].first > Seq::FIRST && !is_import {
        return Err(damaged("no checkpoint can be read, and the oldest events are no longer stored".into()));
    }
    if found.last_message + 1 < from || found.last_message < found.must_hold {
        let must = found.must_hold.max(from - 1);
        return Err(damaged(format!("the stream ends with message {}, and {must} had been stored", found.last_message)));
    }
    let shared = Arc::new(Shared::new(tag, &bridge, &found.pages, found.state.generations.clone(), options.page_cache));
    let mut scanner = Scanner::new(tag, next);
    read_on(&bridge, &found, &shared, &mut scanner, from).map_err(|error| match error {
        Unread::Failed(what) => unreachable(what),
        Unread::Damaged(what) => damaged(what),
    })?;
    shared.reach(Seq(scanner.next().0 - 1), found.last_message);
    let is_copy = match found.copied_at {
        None => false,
        Some(at) if is_bumped_behind(&bridge, &found, &shared, at).map_err(unreachable)? => {
            let (bucket, home) = (found.bucket.clone(), found.home.clone());
            let adopted = bridge.wait(BATCH, async move { home.adopt(&bucket).await });
            adopted.unwrap_or_else(|| Err("the servers don't answer".into())).map_err(unreachable)?;
            false
        }
        Some(_) => true,
    };
    let sizes = Sizes { generation: options.generation_size, ..Sizes::for_space(options.max_size) };
    // Pages are cut as on disk, with the default segments: what a page holds does not depend on where it is kept.
    let encoder = Encoder::new(tag, found.state.starts, Limits::for_segment(8 << 20)).map_err(|error| unreachable(error.to_string()))?;
    let testimony = Testimony::keep(&bridge, &found.bucket, &shared.last_message);
    let watched = Watched::new(found.bytes, found.max_bytes);
    watched.keep_up(&bridge, &found.pages);
    let message_id = format!("{}.{}", found.identity.store, found.state.starts);
    let growth = Growth::new(&found.pages, &message_id);
    let members = Arc::new(Members::new(&bridge, &found.bucket, &watched, growth, (&options.instance, found.state.starts)));
    let last_stop = match (found.is_fresh, found.was_clean) {
        (true, _) => LastStop::Fresh,
        (false, true) => LastStop::Clean,
        (false, false) => LastStop::Unclean,
    };
    let log = JetStreamLog {
        _testimony: testimony,
        members,
        store,
        id: StoreId(id),
        identity: found.identity.clone(),
        home: found.home,
        message_id,
        run: found.state.starts,
        commits: 0,
        checkpoints: 0,
        has_cleared: false,
        encoder,
        scanner,
        end: found.last_message,
        opening: 0,
        sizes,
        patience: options.patience,
        watched,
        unanswered: None,
        failed: None,
        bucket: found.bucket,
        pages: found.pages,
        shared,
        bridge,
    };
    Ok((log, checkpoint, last_stop, is_copy))
}

async fn prepare(options: &Options, store: &str, purpose: Purpose) -> Result<Found, OpenError> {
    let context = connect(options).await.map_err(|what| OpenError::Unreachable { store: store.to_owned(), what })?;
    let until = Instant::now() + SETTLING;
    loop {
        match find_or_make(&context, options, store, purpose).await {
            Err(OpenError::Unreachable { what, .. }) if purpose == Purpose::Serve && Instant::now() < until => {
                tracing::info!(store, "the servers are not ready yet: {what}; it is tried again");
                sleep(AGAIN).await;
            }
            other => return other,
        }
    }
}

async fn find_or_make(context: &Context, options: &Options, store: &str, purpose: Purpose) -> Result<Found, OpenError> {
    let unreachable = |what: String| OpenError::Unreachable { store: store.to_owned(), what };
    let unfit = |what: String| OpenError::NotAStream { store: store.to_owned(), what };
    let info = find(context, &options.stream).await.map_err(unreachable)?;
    if let Some(what) = info.as_ref().and_then(Pages::unfit) {
        return Err(unfit(format!("{what}; change the stream, or choose another `store.stream`")));
    }
    let held = info.as_ref().map(|info| info.state.last_sequence);
    let exists = Bucket::exists(context, options).await.map_err(unreachable)?;
    if !exists && held.is_some_and(|last| last > 0) {
        return Err(unfit(format!(
            "the stream holds messages, and its bucket `{}` is missing; choose another `store.stream`, or restore the bucket as well",
            options.stream
        )));
    }
    let is_export = purpose == Purpose::Export;
    if is_export && (!exists || held.is_none()) {
        return Err(unfit("there is no stream, or no bucket beside it".into()));
    }
    let bucket = Bucket::open(context, options, exists).await.map_err(unreachable)?;
    let known = bucket.read::<Identity>("identity").await.map_err(unreachable)?;
    if known.is_some() && held.is_none() {
        let what = "the bucket is there, and the stream is gone with everything that was accepted".to_owned();
        return Err(OpenError::StreamDamaged { store: store.to_owned(), what });
    }
    if known.is_none() && held.is_some_and(|last| last > 0) {
        return Err(unfit("the stream holds messages, and no `identity` stands in its bucket; choose another `store.stream`".into()));
    }
    let (identity, is_fresh) = match (known, purpose) {
        (None, Purpose::Import(id, first)) => match imported(&bucket, id, first).await.map_err(unreachable)? {
            Some(identity) => (identity, true),
            None => {
                return Err(unfit(
                    "another store was begun here; delete the stream and the bucket, or choose another `store.stream`".into(),
                ));
            }
        },
        (Some(_), Purpose::Import(..)) => {
            return Err(unfit("it holds a store already, and nothing is written over one; choose another `store.stream`".into()));
        }
        (Some(known), _) => (known.value, false),
        (None, Purpose::Export) => return Err(unfit("it holds no store".into())),
        (None, Purpose::Serve) => identify(&bucket).await.map_err(unreachable)?,
    };
    if identity.format != FORMAT {
        return Err(OpenError::Newer { path: PathBuf::from(store), found: identity.format, known: FORMAT });
    }
    if let Some(to) = import::moved(&bucket).await.map_err(unreachable)? {
        return Err(import::has_moved(store, &options.stream, &to));
    }
    if is_export && let Some(holder) = import::at_work(&bucket).await.map_err(unreachable)? {
        return Err(OpenError::InUse { store: store.to_owned(), holder });
    }
    let pages = Pages::open(context, options, info).await.map_err(unreachable)?;
    let closed_at = bucket.read::<State>("state").await.map_err(unreachable)?.and_then(|state| state.value.closed_at);
    let begun = |state: &mut State| {
        state.starts += 1;
        state.closed_at = None;
    };
    // Not tried again where the answer is lost: a start more is counted, and no two have the same number.
    let state = bucket.change(begun, Duration::from_secs(10)).await.map_err(unreachable)?;
    if state.generations.is_empty() {
        return Err(OpenError::StreamDamaged { store: store.to_owned(), what: "`state` of the bucket names no generation".into() });
    }
    // What a drop that was interrupted has left.
    let lowest = state.generations[0].message;
    // The witness first: what it says was stored before it said so.
    let must_hold = watch::must_hold(&bucket).await.map_err(unreachable)?;
    let info = pages.info().await.map_err(unreachable)?;
    if info.state.first_sequence > 0 && info.state.first_sequence < lowest {
        pages.purge_before(lowest).await.map_err(unreachable)?;
    }
    let max_bytes = u64::try_from(info.config.max_bytes).ok().filter(|bytes| *bytes > 0).unwrap_or(u64::MAX);
    let (last_message, bytes) = (info.state.last_sequence, info.state.bytes);
    let home = Home::of(info.cluster.as_ref());
    let copied_at = match purpose {
        Purpose::Import(..) => None,
        Purpose::Serve | Purpose::Export => home.copied_at(&bucket, last_message).await.map_err(unreachable)?,
    };
    if copied_at.is_some() && is_export {
        return Err(unfit(
            "it was restored on other servers than it was made on, and the broker's sessions are the original's. Start a service on it once, which opens \
             sessions of its own, stop it, and move it then"
                .into(),
        ));
    }
    let was_clean = closed_at == Some(last_message);
    Ok(Found { pages, bucket, identity, state, must_hold, last_message, bytes, max_bytes, home, copied_at, is_fresh, was_clean })
}

fn random() -> Result<u64, String> {
    getrandom::u64().map_err(|error| format!("the system gives no random numbers: {error}"))
}

/// Says what the store is, unless another instance is faster.
async fn identify(bucket: &Bucket) -> Result<(Identity, bool), String> {
    // First: once there is an identity there is a state.
    bucket.create("state", &State::fresh()).await?;
    let identity = Identity { format: FORMAT, store: format!("{:016x}", random()?), tag: format!("{:016x}", random()?) };
    if bucket.create("identity", &identity).await?.is_some() {
        return Ok((identity, true));
    }
    let read = bucket.read("identity").await?.ok_or("`identity` is missing from the bucket")?;
    Ok((read.value, false))
}

/// Begins a store that is to take in another; none if something was begun here before. The identity comes last, when it is whole.
async fn imported(bucket: &Bucket, id: StoreId, first: Seq) -> Result<Option<Identity>, String> {
    let mut state = State::fresh();
    state.generations[0].first = first;
    if bucket.create("state", &state).await?.is_none() {
        return Ok(None);
    }
    Ok(Some(Identity { format: FORMAT, store: id.to_string(), tag: format!("{:016x}", random()?) }))
}

/// The newest checkpoint that can be read. The one before is kept for when it can't.
fn newest_checkpoint(bridge: &Bridge, found: &Found, tag: u64, store: &str) -> Result<(Option<Checkpoint>, Option<Mark>), OpenError> {
    let mut why = None;
    for mark in found.state.checkpoints.iter().rev() {
        let (bucket, asked) = (found.bucket.clone(), mark.clone());
        let parts = bridge.wait(BATCH, async move { bucket.checkpoint(&asked).await });
        let parts = parts.unwrap_or_else(|| Err("the servers don't answer".into()));
        let parts = parts.map_err(|what| OpenError::Unreachable { store: store.to_owned(), what })?;
        match parts.ok_or_else(|| "a part is missing".to_owned()).and_then(|parts| decoded(tag, mark, &parts)) {
            Ok(bytes) => return Ok((Some(Checkpoint { next: mark.next, bytes }), Some(mark.clone()))),
            Err(what) => {
                tracing::error!("the checkpoint before event {} can't be read: {what}; the one before it is tried", mark.next);
                why = Some(what);
            }
        }
    }
    match why {
        Some(what) if found.state.generations[0].first > Seq::FIRST => {
            Err(OpenError::StreamDamaged { store: store.to_owned(), what: format!("no checkpoint can be read: {what}") })
        }
        _ => Ok((None, None)),
    }
}

fn decoded(tag: u64, mark: &Mark, parts: &[Bytes]) -> Result<Vec<u8>, String> {
    let mut decoder = Decoder::new().map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    for (number, part) in (0u32..).zip(parts) {
        let parsed = parse(tag, part).map_err(|error| error.to_string())?;
        let header = parsed.header;
        if header.kind == Kind::Events || header.first != mark.next || header.part != number || header.parts as usize != parts.len() {
            return Err("its parts don't belong together".into());
        }
        decoder.checkpoint_part(&parsed, &mut bytes).map_err(|error| error.to_string())?;
    }
    Ok(bytes)
}

/// Why the pages could not be read.
enum Unread {
    Failed(String),
    Damaged(String),
}

/// Reads the stream from `from` to its end.
fn read_on(bridge: &Bridge, found: &Found, shared: &Shared, scanner: &mut Scanner, from: u64) -> Result<(), Unread> {
    // What a generation held before the checkpoint has been counted with it; the rest is counted here.
    let mut at = from;
    while at <= found.last_message {
        let count = AT_ONCE.min(found.last_message - at + 1);
        let pages = found.pages.clone();
        let read = bridge.wait(BATCH, async move { pages.get_many(at, count, true).await });
        let read = read.unwrap_or_else(|| Err("the servers don't answer".into())).map_err(Unread::Failed)?;
        if (read.len() as u64) < count {
            return Err(Unread::Damaged(format!("message {} of the stream is missing", at + read.len() as u64)));
        }
        for bytes in read {
            if let Some(commit) = scanner.take(at, bytes).map_err(Unread::Damaged)? {
                shared.note(&shared.decode_commit(&commit).map_err(Unread::Damaged)?);
            }
            at += 1;
        }
    }
    Ok(())
}

/// Whether another instance has bumped the epochs of a copy that was found when its last message was `at`. That is a commit of one page.
fn is_bumped_behind(bridge: &Bridge, found: &Found, shared: &Shared, at: u64) -> Result<bool, String> {
    let mut from = at + 1;
    while from <= found.last_message {
        let (pages, count) = (found.pages.clone(), AT_ONCE.min(found.last_message - from + 1));
        let read = bridge.wait(BATCH, async move { pages.get_many(from, count, true).await });
        let read = read.unwrap_or_else(|| Err("the servers don't answer".into()))?;
        let is_bump = |(at, bytes)| {
            let decoded = shared.decode_commit(&Commit { at, pages: vec![bytes] });
            decoded.is_ok_and(|decoded| {
                decoded.iter().any(|page| page.page.events.iter().any(|event| matches!(event, Event::EpochBumped { .. })))
            })
        };
        if (from..).zip(read).any(is_bump) {
            return Ok(true);
        }
        from += count;
    }
    Ok(false)
}
