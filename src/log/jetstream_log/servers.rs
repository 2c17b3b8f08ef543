//! The connection to the servers, the stream of pages, and what can go wrong on the way.
//!
//! Every request has a limit of its own; what it says when it fails is told as text, because there is nothing to be done about one error that
//! is not done about another: wait, try again up to a bound, then say it.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RawMessageErrorKind, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{ConnectOptions, Event, ServerAddr};
use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio::time::timeout;

use super::{Login, Options};

/// One request that makes or deletes something, its way there and back: quorum in one place takes milliseconds, a change of leaders some seconds.
pub(super) const REQUEST: Duration = Duration::from_secs(5);

/// One request of the work itself. Whoever gets no answer asks again, on whichever connection there is by then: what was asked on one that is gone is never
/// answered.
pub(super) const ANSWER: Duration = Duration::from_secs(1);

/// A replica that is well answers sooner than this.
const SOON: Duration = Duration::from_millis(100);

/// So long the leader alone is asked for pages, after a replica was silent.
const LEFT_ALONE: Duration = Duration::from_secs(10);

/// A server that says nothing for three of these is left for another: one that is frozen, or behind a cut, closes no connection.
const PING: Duration = Duration::from_millis(600);

/// Another server has answered within this, or the next one is tried. Together with [`PING`] less than an instance's lease.
const CONNECT: Duration = Duration::from_secs(1);

/// Between two tries to connect, at most: the first one comes at once.
const RECONNECT: Duration = Duration::from_millis(250);

/// Messages that are asked for at once. At 64 KiB each a few MiB.
pub(super) const AT_ONCE: u64 = 64;

/// The largest page must fit a message.
const MIN_MAX_PAYLOAD: usize = crate::log::codec::MAX_PAGE + 1024;

/// Connects, and proves that there is JetStream.
pub(super) async fn connect(options: &Options) -> Result<Context, String> {
    let mut connect = ConnectOptions::new()
        .name(format!("tidings {}", options.instance))
        .connection_timeout(CONNECT)
        .request_timeout(Some(REQUEST))
        .ping_interval(PING)
        .reconnect_delay_callback(|attempts| match attempts {
            0 | 1 => Duration::ZERO,
            more => RECONNECT.min(Duration::from_millis(1 << more.min(8))),
        })
        .event_callback(|event| async move {
            match event {
                Event::Disconnected => tracing::warn!("the connection to the store's servers is gone; it is opened again"),
                Event::Connected => tracing::info!("connected to the store's servers"),
                Event::ServerError(error) => {
                    tracing::warn!("the store's servers refuse something: {error}; `ops/nats.conf` has the rights that Tidings needs")
                }
                other => tracing::debug!("the store's servers: {other}"),
            }
        });
    connect = match &options.login {
        Login::Nobody => connect,
        Login::User { user, password } => connect.user_and_password(user.clone(), password.clone()),
        Login::Token(token) => connect.token(token.clone()),
        Login::Credentials(file) => {
            let failed = |error: std::io::Error| format!("reading the credentials {}: {error}", file.display());
            connect.credentials_file(file).await.map_err(failed)?
        }
    };
    if let Some(file) = &options.ca_certs {
        connect = connect.add_root_certificates(file.clone()).require_tls(true);
    }
    if let Some((certificate, key)) = options.identity.clone() {
        connect = connect.add_client_certificate(certificate, key);
    }
    let servers: Result<Vec<ServerAddr>, _> = options.servers.iter().map(|server| server.parse()).collect();
    let servers = servers.map_err(|error| format!("an address in `store.servers` can't be read: {error}"))?;
    let client = connect.connect(servers).await.map_err(|error| format!("connecting: {}", told(&error)))?;
    let most = client.server_info().max_payload;
    if most < MIN_MAX_PAYLOAD {
        return Err(format!(
            "the servers take messages of {most} bytes and {MIN_MAX_PAYLOAD} are needed: raise `max_payload` in their configuration"
        ));
    }
    Ok(jetstream::context::ContextBuilder::new().timeout(REQUEST).build(client))
}

/// An error with its causes.
pub(super) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The stream of pages.
#[derive(Clone)]
pub(super) struct Pages {
    /// For the work: with [`ANSWER`].
    pub(super) context: Context,
    pub(super) subject: String,
    /// The stream's name.
    pub(super) name: String,
    stream: Stream<()>,
    /// For what takes longer: with [`REQUEST`].
    slow: Stream<()>,
    deletion: Arc<Deletion>,
    /// When a replica that was asked for a page did not answer soon.
    silent: Arc<Mutex<Option<Instant>>>,
}

/// The deleting of old messages one by one.
#[derive(Default)]
struct Deletion {
    /// The first message that is to stay.
    keep_from: AtomicU64,
    /// Held by the one task that does it.
    at_work: tokio::sync::Mutex<()>,
}

/// What a stream has to be for this log.
pub(super) fn wanted(options: &Options) -> Config {
    Config {
        name: options.stream.clone(),
        description: Some("the log of Tidings: pages of events".into()),
        subjects: vec![subject(&options.stream)],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        max_bytes: i64::try_from(options.max_bytes()).unwrap_or(i64::MAX),
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        max_message_size: -1,
        num_replicas: options.replicas,
        allow_direct: true,
        ..Config::default()
    }
}

fn subject(stream: &str) -> String {
    format!("{stream}.pages")
}

/// The stream as it is; none if there is none.
pub(super) async fn find(context: &Context, stream: &str) -> Result<Option<Info>, String> {
    match context.get_stream(stream).await {
        Ok(found) => Ok(Some(found.cached_info().clone())),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
            _ => Err(format!("asking for the stream: {}", told(&error))),
        },
    }
}

/// Which server leads a stream, as its state says. A server by itself leads nothing.
pub(super) fn leader_of(info: &Info) -> Option<String> {
    info.cluster.as_ref()?.leader.clone().filter(|name| !name.is_empty())
}

impl Pages {
    /// The stream, which is created if it is not there.
    pub(super) async fn open(context: &Context, options: &Options, found: Option<Info>) -> Result<Pages, String> {
        let wanted = wanted(options);
        match found {
            None => {
                let created = context.create_stream(wanted).await;
                created.map_err(|error| format!("creating the stream: {}{}", told(&error), replicas_hint(options)))?;
            }
            Some(info) if info.config.max_bytes != wanted.max_bytes => {
                let config = Config { max_bytes: wanted.max_bytes, ..info.config };
                if let Err(error) = context.update_stream(config).await {
                    tracing::warn!("the size of the stream could not be changed to what `store.max_size` asks for: {}", told(&error));
                }
            }
            Some(_) => {}
        }
        let slow = context.get_stream_no_info(&options.stream).await.map_err(|error| told(&error))?;
        let context = jetstream::context::ContextBuilder::new().timeout(ANSWER).build(context.client());
        let stream = context.get_stream_no_info(&options.stream).await.map_err(|error| told(&error))?;
        Ok(Pages {
            context,
            subject: subject(&options.stream),
            name: options.stream.clone(),
            stream,
            slow,
            deletion: Arc::default(),
            silent: Arc::default(),
        })
    }

    /// Why a stream that is there can't be this log's.
    pub(super) fn unfit(info: &Info) -> Option<String> {
        let config = &info.config;
        let wrong = if config.discard != DiscardPolicy::New {
            "it discards old messages: it has to refuse new ones (`discard: new`)"
        } else if config.retention != RetentionPolicy::Limits {
            "it forgets what was read: its retention has to be `limits`"
        } else if !config.max_age.is_zero() || config.max_messages > 0 || config.max_messages_per_subject > 0 {
            "it forgets by age or number of messages: neither may be limited"
        } else if config.storage != StorageType::File {
            "it is kept in memory: its storage has to be `file`"
        } else if config.subjects != [subject(&config.name)] {
            "it takes other subjects than its own"
        } else {
            return None;
        };
        Some(wrong.to_owned())
    }

    /// The name of the server that this client is connected to, or was last.
    pub(super) fn server(&self) -> String {
        self.context.client().server_info().server_name
    }

    pub(super) async fn info(&self) -> Result<Info, String> {
        self.stream.get_info().await.map_err(|error| format!("asking for the state of the stream: {}", told(&error)))
    }

    /// Which server leads the stream, if it answers and says so.
    pub(super) async fn leader(&self) -> Option<String> {
        self.info().await.ok().as_ref().and_then(leader_of)
    }

    /// The message at `at`, as the stream's leader has it; none if it has none.
    pub(super) async fn get(&self, at: u64) -> Result<Option<Bytes>, String> {
        match self.stream.get_raw_message(at).await {
            Ok(message) => Ok(Some(message.payload)),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(format!("reading message {at}: {}", told(&error))),
        }
    }

    /// The message at `at`, from whichever replica has it; none if the leader has none. A replica may lag, or stand still, and a stream of somebody's own making may
    /// not allow it: then the leader is asked, and who answers first counts.
    pub(super) async fn get_from_any(&self, at: u64) -> Result<Option<Bytes>, String> {
        if self.was_silent().is_some_and(|since| since.elapsed() < LEFT_ALONE) {
            return self.get(at).await;
        }
        let mut direct = pin!(self.stream.direct_get(at));
        match timeout(SOON, &mut direct).await {
            Ok(Ok(message)) => Ok(Some(message.payload)),
            Ok(Err(_)) => self.get(at).await,
            Err(_) => {
                // What is read mostly goes on: each page would wait for it.
                self.was_silent().replace(Instant::now());
                tokio::select! {
                    Ok(message) = &mut direct => Ok(Some(message.payload)),
                    answer = self.get(at) => answer,
                }
            }
        }
    }

    fn was_silent(&self) -> MutexGuard<'_, Option<Instant>> {
        // It is changed by calls that don't panic.
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The messages from `from` on, `count` at most and at once, up to the first that is not there.
    pub(super) async fn get_many(&self, from: u64, count: u64, from_any: bool) -> Result<Vec<Bytes>, String> {
        let asked: Vec<_> = (from..from + count)
            .map(|at| {
                let pages = self.clone();
                tokio::spawn(async move { if from_any { pages.get_from_any(at).await } else { pages.get(at).await } })
            })
            .collect();
        let mut found = Vec::with_capacity(asked.len());
        for answer in asked {
            match answer.await.map_err(|error| error.to_string())?? {
                Some(bytes) => found.push(bytes),
                None => break,
            }
        }
        Ok(found)
    }

    /// Deletes every message before `at`, or begins to: see [`delete_before`](Self::delete_before).
    pub(super) async fn purge_before(&self, at: u64) -> Result<(), String> {
        // Servers take "up to message 1" for "everything".
        if at <= 1 {
            return Ok(());
        }
        let deleting = |what: String| format!("deleting the oldest messages: {what}");
        let info = self.slow.get_info().await.map_err(|error| deleting(told(&error)))?;
        if info.state.first_sequence >= at {
            return Ok(());
        }
        if info.config.num_replicas <= 1 || replays_purges(&self.context.client().server_info().version) {
            return self.slow.purge().sequence(at).await.map(|_| ()).map_err(|error| deleting(told(&error)));
        }
        self.deletion.keep_from.fetch_max(at, Ordering::Relaxed);
        let pages = self.clone();
        tokio::spawn(async move {
            if let Err(what) = pages.delete_before().await {
                tracing::warn!("{}; it is gone on with when the next generation is dropped, and at the next start", deleting(what));
            }
        });
        Ok(())
    }

    /// Deletes old messages one by one, from the oldest on, where a purge is not safe: a replica of nats-server before 2.9.21 that is killed and plays a purge again
    /// at its start deletes every message that there was at the time of the purge. This one can be played again. It takes a request a message, which nobody waits for.
    async fn delete_before(&self) -> Result<(), String> {
        let Ok(_alone) = self.deletion.at_work.try_lock() else { return Ok(()) };
        let mut before = 0;
        loop {
            let first = self.info().await?.state.first_sequence;
            let keep_from = self.deletion.keep_from.load(Ordering::Relaxed);
            if first >= keep_from {
                return Ok(());
            }
            if first == before {
                return Err(format!("message {first} does not go; does the stream deny it (`deny_delete`)?"));
            }
            before = first;
            let asked = (first..keep_from.min(first + AT_ONCE)).map(|at| delete(&self.context, &self.name, at));
            try_join_all(asked).await?;
        }
    }
}

/// Whether a server plays a purge of a part again as that at its start, and not as one of everything: since 2.9.21. All of a cluster are taken to be like the one that is asked.
fn replays_purges(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next()) >= (2, 9, 21)
}

/// Deletes one message of a stream; one that is gone already is no error. What the servers refuse has the same code for many reasons, so they are asked whether it is
/// there.
pub(super) async fn delete(context: &Context, stream: &str, at: u64) -> Result<(), String> {
    // Not overwritten: that is for secrets.
    let request = serde_json::json!({ "seq": at, "no_erase": true });
    let answer: Result<Response<serde_json::Value>, _> = context.request(format!("STREAM.MSG.DELETE.{stream}"), &request).await;
    match answer.map_err(|error| told(&error))? {
        Response::Ok(_) => Ok(()),
        Response::Err { error: refused } => {
            let request = serde_json::json!({ "seq": at });
            let found: Result<Response<serde_json::Value>, _> = context.request(format!("STREAM.MSG.GET.{stream}"), &request).await;
            match found {
                Ok(Response::Err { error }) if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => Ok(()),
                _ => Err(refused.to_string()),
            }
        }
    }
}

/// After so long another leader is wanted: longer than a hiccup of a disk.
const LEADS_AND_STORES_NOTHING: Duration = Duration::from_secs(5);

/// Who leads and stores nothing, and since when.
#[derive(Default)]
pub(super) struct Silence(Option<(String, Instant)>);

impl Silence {
    /// Whether another leader is wanted, of which this one has stored nothing once more. Where nobody leads, time counts from when somebody does.
    pub(super) fn is_too_long_of(&mut self, leader: Option<String>, now: Instant) -> bool {
        let begun = match self.0.take() {
            Some((known, since)) if leader.as_ref() == Some(&known) => since,
            _ => now,
        };
        let is_too_long = leader.is_some() && now - begun >= LEADS_AND_STORES_NOTHING;
        self.0 = leader.filter(|_| !is_too_long).map(|leader| (leader, begun));
        is_too_long
    }
}

/// Asks a stream's leader to let another server lead, as `nats stream cluster step-down` does. There are leaders that answer and store nothing any more
/// ([`publish`](super::publish)). Where this one was only slow, an election harms nobody.
pub(super) async fn let_another_lead(context: &Context, stream: &str) {
    tracing::warn!(stream, "the stream has a leader that answers and stores nothing; it is asked to let another server lead");
    // Servers refuse a request that says `null`.
    let request = serde_json::Map::<String, serde_json::Value>::new();
    let answer: Result<Response<serde_json::Value>, _> = context.request(format!("STREAM.LEADER.STEPDOWN.{stream}"), &request).await;
    match answer {
        Ok(Response::Ok(_)) => {}
        Ok(Response::Err { error }) => tracing::warn!(%error, stream, "it refuses to let another server lead"),
        Err(error) => tracing::warn!(%error, stream, "it did not answer whether it lets another server lead"),
    }
}

fn replicas_hint(options: &Options) -> String {
    match options.replicas {
        1 => String::new(),
        replicas => format!(" (`store.replicas` is {replicas}: so many servers with JetStream are needed; 1 is for a single server)"),
    }
}

/// What the store is called in messages.
pub(super) fn where_it_is(options: &Options) -> String {
    format!("jetstream:{} at {}", options.stream, options.servers.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_purge_is_safe_with_is_known_by_its_version() {
        let safe = ["2.9.21", "2.9.25", "2.10.0", "2.10.12-RC.1", "2.15.0-dev", "3.0.0"];
        assert!(safe.iter().all(|version| replays_purges(version)));
        let unsafe_ones = ["2.9.10", "2.9.20", "2.8.4", "2.9", "", "unknown"];
        assert!(!unsafe_ones.iter().any(|version| replays_purges(version)));
    }

    #[test]
    fn another_leader_is_wanted_once_one_has_been_silent_for_long() {
        let (mut silence, mut now) = (Silence::default(), Instant::now());
        let mut after = |seconds: u64, leader: Option<&str>| {
            now += Duration::from_secs(seconds);
            silence.is_too_long_of(leader.map(str::to_owned), now)
        };
        let limit = LEADS_AND_STORES_NOTHING.as_secs();
        assert!(!after(0, Some("a")));
        assert!(!after(limit - 1, Some("a")));
        assert!(after(1, Some("a")));
        assert!(!after(1, Some("a")), "it has to be silent for as long again");
        assert!(!after(limit - 1, None), "nobody leads");
        assert!(!after(limit, Some("a")), "an election has begun it anew");
        assert!(!after(limit, Some("b")), "and so has another leader");
        assert!(after(limit, Some("b")));
    }
}
