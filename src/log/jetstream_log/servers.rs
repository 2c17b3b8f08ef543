//! The connection to the servers, the stream of pages, and what can go wrong on the way.
//!
//! Every request has a limit of its own; what it says when it fails is told as text, because there is nothing to be done about one error that
//! is not done about another: wait, try again up to a bound, then say it.

use std::time::Duration;

use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{
    Config, DirectGetErrorKind, DiscardPolicy, Info, RawMessageErrorKind, RetentionPolicy, StorageType, Stream,
};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{ConnectOptions, Event, ServerAddr};
use bytes::Bytes;

use super::{Login, Options};

/// One request that makes or deletes something, its way there and back: quorum in one place takes milliseconds, a change of leaders some seconds.
pub(super) const REQUEST: Duration = Duration::from_secs(5);

/// One request of the work itself. Whoever gets no answer asks again, on whichever connection there is by then: what was asked on one that is gone is never
/// answered.
pub(super) const ANSWER: Duration = Duration::from_secs(1);

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
}

/// What a stream has to be for this log.
fn wanted(options: &Options) -> Config {
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
        // A single message that is gone would be damage.
        deny_delete: true,
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
        Ok(Pages { context, subject: subject(&options.stream), name: options.stream.clone(), stream, slow })
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

    /// The message at `at`, as the stream's leader has it; none if it has none.
    pub(super) async fn get(&self, at: u64) -> Result<Option<Bytes>, String> {
        match self.stream.get_raw_message(at).await {
            Ok(message) => Ok(Some(message.payload)),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(format!("reading message {at}: {}", told(&error))),
        }
    }

    /// The message at `at`, from whichever replica has it; none if the leader has none.
    pub(super) async fn get_from_any(&self, at: u64) -> Result<Option<Bytes>, String> {
        match self.stream.direct_get(at).await {
            Ok(message) => Ok(Some(message.payload)),
            // A replica may lag, and a stream of somebody's own making may not allow it.
            Err(error) if matches!(error.kind(), DirectGetErrorKind::NotFound | DirectGetErrorKind::ErrorResponse(..)) => {
                self.get(at).await
            }
            Err(error) => Err(format!("reading message {at}: {}", told(&error))),
        }
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

    /// Deletes every message before `at`.
    pub(super) async fn purge_before(&self, at: u64) -> Result<(), String> {
        // Servers take "up to message 1" for "everything".
        if at <= 1 {
            return Ok(());
        }
        self.slow.purge().sequence(at).await.map(|_| ()).map_err(|error| format!("deleting the oldest messages: {}", told(&error)))
    }
}

/// After so long another leader is wanted: longer than an election takes, and a hiccup of a disk.
pub(super) const LEADS_AND_STORES_NOTHING: Duration = Duration::from_secs(8);

/// Asks a stream's leader to let another server lead. There are leaders that answer and store nothing any more: nats-server 2.9.10 was seen to come to that in an
/// election ("has high message lag" in its log), and to stay so. Where this one was only slow, an election harms nobody.
pub(super) async fn let_another_lead(context: &Context, stream: &str) {
    tracing::warn!(stream, "the stream has a leader that answers and stores nothing; it is asked to let another server lead");
    let answer: Result<serde_json::Value, _> = context.request(format!("STREAM.LEADER.STEPDOWN.{stream}"), &()).await;
    if let Err(error) = answer {
        tracing::debug!(%error, "it did not answer to that");
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
