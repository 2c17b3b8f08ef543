//! The key-value bucket beside the stream: what the store is, where its generations begin, its checkpoints, who is at work.
//!
//! | Key | Holds (JSON, so that `nats kv get` shows it) | Changed |
//! |---|---|---|
//! | `identity` | format version, store id, tag | never: the first instance creates it by compare-and-set |
//! | `state` | starts, generations, the two newest checkpoints, where the log was closed | by compare-and-set |
//! | `checkpoint.ID.PART` | a part of a checkpoint: a page ([`codec`](crate::log::codec)) | never; deleted when two newer ones are there |
//! | `instance.ID` | an instance's sign of life ([`members`](super::members)) | once a second |
//! | `home` | the servers that it was made on ([`home`](super::home)) | when they change |
//! | `copy` | what a copy ended with when it was found to be one ([`home`](super::home)) | by compare-and-set, once a copy |
//! | `moved` | where the store has moved to, if it has ([`import`](mod@super::import)) | when it moves |
//! | `witness` | the last message that has to be there ([`watch`](super::watch)) | once a second, by compare-and-set |
//!
//! Everything is read from the leader, so that what was written is seen by whoever reads afterwards.

use std::collections::BTreeMap;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{self, CreateErrorKind, UpdateErrorKind};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RawMessageErrorKind, StorageType};
use bytes::Bytes;
use futures_util::future::try_join_all;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant, sleep};

use super::Options;
use super::servers::{delete, find, leader_of, let_another_lead, told};
use crate::core::types::{Millis, Seq};

/// What the bucket's stream is called.
pub(super) fn stream_name(options: &Options) -> String {
    format!("KV_{}", options.stream)
}

/// The bucket.
#[derive(Clone)]
pub(super) struct Bucket {
    context: Context,
    store: kv::Store,
}

/// `identity`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Identity {
    /// The version of the format, of the bucket and of the pages.
    pub(super) format: u32,
    /// The store's id, in hex as everywhere.
    pub(super) store: String,
    /// What stands in every page, in hex.
    pub(super) tag: String,
}

/// `state`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// How often the store was opened.
    pub(super) starts: u64,
    /// The message that was the last one when an instance closed the log; none since one has started. Whoever finds it the last one still
    /// finds a log that was closed.
    #[serde(default)]
    pub(super) closed_at: Option<u64>,
    /// Oldest first; never empty.
    #[serde(deserialize_with = "at_least_one")]
    pub(super) generations: Vec<Part>,
    /// Oldest first, two at most.
    pub(super) checkpoints: Vec<Mark>,
}

/// There is no log without a generation: whoever writes `state` by hand, or another program, is told so, and the store is not opened.
fn at_least_one<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Part>, D::Error> {
    let parts = Vec::deserialize(deserializer)?;
    if parts.is_empty() { Err(serde::de::Error::custom("it names no generation")) } else { Ok(parts) }
}

/// A generation: a range of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    /// Its first event.
    pub(super) first: Seq,
    /// The message from which it is read.
    pub(super) message: u64,
    /// The time of its newest event, as far as it was known when this was written.
    pub(super) newest: Option<Millis>,
    /// Its pages in bytes, as of then.
    pub(super) bytes: u64,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The first event that is not in it.
    pub(super) next: Seq,
    /// The message from which the log is read on.
    pub(super) message: u64,
    /// Names its keys.
    pub(super) id: String,
    /// How many keys it has.
    pub(super) parts: u64,
}

impl State {
    /// Of a store that holds nothing.
    pub(super) fn fresh() -> State {
        let first = Part { first: Seq::FIRST, message: 1, newest: None, bytes: 0 };
        State { starts: 0, closed_at: None, generations: vec![first], checkpoints: Vec::new() }
    }

    /// Adds a checkpoint, unless it is there, and keeps the two newest.
    pub(super) fn mark(&mut self, mark: Mark) {
        if self.checkpoints.iter().any(|kept| kept.id == mark.id) {
            return;
        }
        self.checkpoints.push(mark);
        self.checkpoints.sort_by_key(|mark| mark.next);
        let surplus = self.checkpoints.len().saturating_sub(2);
        self.checkpoints.drain(..surplus);
    }
}

/// A value, and what proves that it has not changed since.
pub(super) struct Read<T> {
    pub(super) value: T,
    pub(super) revision: u64,
}

/// What a key holds, and when that was written, in seconds by the servers' clocks.
pub(super) struct Entry<T> {
    pub(super) key: String,
    pub(super) value: T,
    pub(super) at: i64,
}

/// What is asked for to learn of keys without reading them.
#[derive(Serialize)]
struct Filter {
    subjects_filter: String,
}

/// The part of the answer that matters: which subjects there are.
#[derive(Deserialize)]
struct Keys {
    state: KeysState,
}

#[derive(Deserialize)]
struct KeysState {
    #[serde(default)]
    subjects: Option<BTreeMap<String, u64>>,
}

impl Bucket {
    /// Whether there is one.
    pub(super) async fn exists(context: &Context, options: &Options) -> Result<bool, String> {
        Ok(find(context, &stream_name(options)).await?.is_some())
    }

    /// The bucket, which is created if it is not there.
    pub(super) async fn open(context: &Context, options: &Options, exists: bool) -> Result<Bucket, String> {
        if !exists {
            // A bucket is a stream. It is made as one, because the client's own way asks for figures of the account that nats-server 2.9 does not give.
            let config = Config {
                name: stream_name(options),
                description: Some("what Tidings keeps beside its log".into()),
                subjects: vec![format!("$KV.{}.>", options.stream)],
                discard: DiscardPolicy::New,
                storage: StorageType::File,
                max_bytes: -1,
                max_messages: -1,
                max_messages_per_subject: 1,
                max_message_size: -1,
                max_consumers: -1,
                num_replicas: options.replicas,
                allow_rollup: true,
                allow_direct: true,
                ..Config::default()
            };
            let created = context.create_stream(config).await;
            created.map_err(|error| format!("creating the bucket: {}", told(&error)))?;
        }
        let store = context.get_key_value(&options.stream).await;
        Ok(Bucket { context: context.clone(), store: store.map_err(|error| format!("asking for the bucket: {}", told(&error)))? })
    }

    async fn raw(&self, key: &str) -> Result<Option<(Bytes, u64)>, String> {
        let subject = format!("{}{key}", self.store.prefix);
        match self.store.stream.get_last_raw_message_by_subject(&subject).await {
            // What was deleted with `nats kv del` is there as an empty message.
            Ok(message) => Ok(Some((message.payload, message.sequence)).filter(|(bytes, _)| !bytes.is_empty())),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(format!("reading `{key}` of the bucket: {}", told(&error))),
        }
    }

    /// The keys that begin with `prefix`, which ends with a dot. One request.
    pub(super) async fn keys(&self, prefix: &str) -> Result<Vec<String>, String> {
        let subject = format!("STREAM.INFO.{}", self.store.stream_name);
        let filter = Filter { subjects_filter: format!("{}{prefix}>", self.store.prefix) };
        let asking = |what: String| format!("asking for the keys of the bucket: {what}");
        let answer: Response<Keys> = self.context.request(subject, &filter).await.map_err(|error| asking(told(&error)))?;
        match answer {
            Response::Ok(keys) => {
                let subjects = keys.state.subjects.unwrap_or_default().into_keys();
                Ok(subjects.filter_map(|subject| subject.strip_prefix(&self.store.prefix).map(str::to_owned)).collect())
            }
            Response::Err { error } => Err(asking(error.to_string())),
        }
    }

    /// The values of these keys, all asked for at once. One that is gone, or can't be read, is left out.
    pub(super) async fn read_all<T: DeserializeOwned>(&self, keys: Vec<String>) -> Result<Vec<Entry<T>>, String> {
        let ask = async |key: String| {
            let subject = format!("{}{key}", self.store.prefix);
            match self.store.stream.get_last_raw_message_by_subject(&subject).await {
                Ok(message) => {
                    Ok(serde_json::from_slice(&message.payload).ok().map(|value| Entry { key, value, at: message.time.unix_timestamp() }))
                }
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
                Err(error) => Err(format!("reading `{key}` of the bucket: {}", told(&error))),
            }
        };
        let found: Result<Vec<Option<Entry<T>>>, String> = try_join_all(keys.into_iter().map(ask)).await;
        Ok(found?.into_iter().flatten().collect())
    }

    /// Writes a key, whatever it holds.
    pub(super) async fn put<T: Serialize>(&self, key: &str, value: &T) -> Result<(), String> {
        let written = self.store.put(key, json(value)).await;
        written.map(drop).map_err(|error| format!("writing `{key}` to the bucket: {}", told(&error)))
    }

    /// Which server leads it, if it answers and says so.
    pub(super) async fn leader(&self) -> Option<String> {
        self.store.stream.get_info().await.ok().as_ref().and_then(leader_of)
    }

    /// Asks its leader to let another server lead.
    pub(super) async fn let_another_lead(&self) {
        let_another_lead(&self.context, &self.store.stream_name).await;
    }

    /// Deletes a key, without a trace.
    pub(super) async fn forget(&self, key: &str) -> Result<(), String> {
        let deleting = |what: String| format!("deleting `{key}` from the bucket: {what}");
        // By its number, and not by purging its subject: see `Pages::delete_before`.
        match self.store.stream.get_last_raw_message_by_subject(&format!("{}{key}", self.store.prefix)).await {
            Ok(message) => delete(&self.context, &self.store.stream_name, message.sequence).await.map_err(deleting),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(()),
            Err(error) => Err(deleting(told(&error))),
        }
    }

    /// The value of a key.
    pub(super) async fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Read<T>>, String> {
        let Some((bytes, revision)) = self.raw(key).await? else { return Ok(None) };
        let value = serde_json::from_slice(&bytes).map_err(|error| format!("`{key}` of the bucket can't be read: {error}"))?;
        Ok(Some(Read { value, revision }))
    }

    /// Creates a key; none if it is there already.
    pub(super) async fn create<T: Serialize>(&self, key: &str, value: &T) -> Result<Option<u64>, String> {
        match self.store.create(key, json(value)).await {
            Ok(revision) => Ok(Some(revision)),
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(format!("writing `{key}` to the bucket: {}", told(&error))),
        }
    }

    /// Changes a key that has not been changed since `revision`; none if it has.
    pub(super) async fn replace<T: Serialize>(&self, key: &str, value: &T, revision: u64) -> Result<Option<u64>, String> {
        match self.store.update(key, json(value), revision).await {
            Ok(revision) => Ok(Some(revision)),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
            Err(error) => Err(format!("writing `{key}` to the bucket: {}", told(&error))),
        }
    }

    /// Changes `state`, whoever else does so meanwhile. An answer that is lost is found out about by reading; `change` may be applied more
    /// than once, each time to what is there.
    pub(super) async fn change(&self, change: impl Fn(&mut State) + Send + Sync, patience: Duration) -> Result<State, String> {
        let until = Instant::now() + patience;
        loop {
            let failed = match self.change_once(&change).await {
                Ok(Some(state)) => return Ok(state),
                Ok(None) => "others keep changing `state` of the bucket".to_owned(),
                Err(what) => what,
            };
            if Instant::now() >= until {
                return Err(failed);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// As [`change`](Self::change), and deletes the checkpoints that `state` no longer names. `put` was written for it, and others may have made it
    /// useless meanwhile.
    pub(super) async fn change_and_clear(
        &self,
        put: Option<&Mark>,
        change: impl Fn(&mut State) + Send + Sync,
        patience: Duration,
    ) -> Result<State, String> {
        let before = self.read::<State>("state").await.ok().flatten().map(|read| read.value.checkpoints).unwrap_or_default();
        let state = self.change(change, patience).await?;
        let of_use = |mark: &&Mark| state.checkpoints.iter().any(|kept| kept.id == mark.id);
        for mark in before.iter().chain(put).filter(|mark| !of_use(mark)) {
            // What stays behind takes a little room, and nobody reads it.
            let _ = self.drop_checkpoint(&mark.id).await;
        }
        Ok(state)
    }

    async fn change_once(&self, change: &(impl Fn(&mut State) + Send + Sync)) -> Result<Option<State>, String> {
        let Read { value, revision } = self.read::<State>("state").await?.ok_or("`state` is missing from the bucket")?;
        let mut changed = value.clone();
        change(&mut changed);
        if changed == value {
            return Ok(Some(changed));
        }
        Ok(self.replace("state", &changed, revision).await?.map(|_| changed))
    }

    /// Writes the parts of a checkpoint.
    pub(super) async fn put_checkpoint(&self, id: &str, parts: Vec<Bytes>) -> Result<(), String> {
        for (part, bytes) in parts.into_iter().enumerate() {
            let key = format!("checkpoint.{id}.{part}");
            self.store.put(&key, bytes).await.map_err(|error| format!("writing `{key}` to the bucket: {}", told(&error)))?;
        }
        Ok(())
    }

    /// The parts of a checkpoint; none if one is missing.
    pub(super) async fn checkpoint(&self, mark: &Mark) -> Result<Option<Vec<Bytes>>, String> {
        let mut parts = Vec::new();
        for part in 0..mark.parts {
            let Some((bytes, _)) = self.raw(&format!("checkpoint.{}.{part}", mark.id)).await? else { return Ok(None) };
            parts.push(bytes);
        }
        Ok(Some(parts))
    }

    /// Deletes the parts of a checkpoint, without a trace.
    pub(super) async fn drop_checkpoint(&self, id: &str) -> Result<(), String> {
        for key in self.keys(&format!("checkpoint.{id}.")).await? {
            self.forget(&key).await?;
        }
        Ok(())
    }
}

fn json<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).expect("what is kept in the bucket is plain data").into()
}
