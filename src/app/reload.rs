//! Another configuration, while the service runs.
//!
//! ```text
//!   read ─▶ lane sets are durable ─▶ routing is replaced ─▶ lanes stop: removed, changed ─▶ lanes start: added, changed
//!    └ mistakes: nothing changes       between two requests
//! ```
//!
//! - A report is bound to a lane only after that lane is in the log, so no route leads nowhere.
//! - It is replaced between two requests: what is bound to the old lanes stands before what is bound to the new ones, and nothing more comes to
//!   the old ones when they are retired.
//! - A connection that has not changed is not touched: its lanes don't even notice.
//! - What is accepted is bound: it keeps its connection, topic and QoS, whatever is configured later.
//! - What only a restart can change keeps its old value, and the log, `/v1/status` and `tidings status` say so.

use std::collections::BTreeSet;
use std::time::Duration;

use super::control::{Control, limits, notice_to, routing, settings};
use super::lanes::{self, Newest};
use super::{StartError, access, listener, read_files};
use crate::admin::settings::Refused;
use crate::config::{Config, ConnectionConfig, HttpConfig, ListenerConfig, StoreConfig};
use crate::core::event::Event;
use crate::core::types::ConnectionName;
use crate::log::committer::now;

/// New requests wait for those under way no longer than this: longer than a commit takes on any disk that works.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(30);

/// Who has the configuration read again, in the history.
const BY_SIGNAL: &str = "SIGHUP";

/// What was changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Connections that were not there before.
    pub added: Vec<ConnectionName>,
    /// Connections whose lanes have started again with other settings.
    pub changed: Vec<ConnectionName>,
    /// Connections that are gone. What waits for them stays.
    pub removed: Vec<ConnectionName>,
    /// Keys that keep their old values until a restart.
    pub restart_needed: Vec<&'static str>,
}

/// Why nothing, or not everything, was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReloadError {
    /// The configuration has mistakes, one a line. The old one stays in force.
    #[error("{0}")]
    Mistakes(String),
    /// Requests under way did not come to their end, and new ones can't wait for ever. The old one stays in force.
    #[error(
        "requests under way did not end within {} s; the old configuration stays in force. Look at the disk, then reload again",
        REPLACE_TIMEOUT.as_secs()
    )]
    Busy,
    /// The service stops. The next start reads the file.
    #[error("the service is stopping; the next start reads the configuration")]
    Stopping,
    /// The store failed, so the service is about to end; or others were first on a log that is shared. A part of it may be in force.
    #[error("{0}")]
    Failed(String),
}

impl Control {
    /// Puts another configuration in force, or says in the log why not.
    pub(super) async fn reload(&mut self, read: Result<Box<Config>, String>) -> Result<Changes, ReloadError> {
        if self.is_stopping() {
            return Err(ReloadError::Stopping);
        }
        let outcome = match read {
            Ok(config) => self.put_in_force(*config).await,
            Err(mistakes) => Err(ReloadError::Mistakes(mistakes)),
        };
        match &outcome {
            Ok(changes) => self.succeeded(changes),
            Err(ReloadError::Mistakes(mistakes)) => {
                tracing::error!("the configuration was not reloaded because of its mistakes, which follow; the old one stays in force");
                self.refused(mistakes);
            }
            Err(busy @ ReloadError::Busy) => self.refused(&busy.to_string()),
            Err(ReloadError::Stopping) => {}
            Err(ReloadError::Failed(what)) => self.refused(&format!("the configuration was not put in force as a whole: {what}")),
        }
        outcome
    }

    fn succeeded(&self, changes: &Changes) {
        let Changes { added, changed, removed, restart_needed } = changes;
        tracing::info!(added = names(added), changed = names(changed), removed = names(removed), "the configuration was reloaded");
        if !restart_needed.is_empty() {
            tracing::warn!("a restart is needed for: {}; until then these settings keep their old values", restart_needed.join(", "));
        }
        // At last: who sees it counted finds all of it.
        self.metrics.tidings_config_last_reload_successful.set(1);
        self.metrics.tidings_config_reloads_total.with_label_values(&["ok"]).inc();
    }

    fn refused(&self, mistakes: &str) {
        for mistake in mistakes.lines() {
            tracing::error!("{mistake}");
        }
        let refused = Refused { at: now(), mistakes: mistakes.to_owned() };
        self.settings.send_modify(|settings| settings.refused = Some(refused));
        // At last, as above.
        self.metrics.tidings_config_last_reload_successful.set(0);
        self.metrics.tidings_config_reloads_total.with_label_values(&["refused"]).inc();
    }

    async fn put_in_force(&mut self, mut config: Config) -> Result<Changes, ReloadError> {
        let restart_needed = keep_until_restart(&self.config, &mut config);
        // The file was read for its own address; where the service listens until a restart, it may lack what is needed.
        if let Some(message) = config.http.exposure(config.http.listen) {
            let message = format!("http.listen: {}, until a restart, is {message}", config.http.listen);
            return Err(ReloadError::Mistakes(message));
        }
        if let Some(listener) = &config.listener
            && !config.connections.iter().any(|connection| connection.name == listener.connection)
        {
            let name = &listener.connection;
            return Err(ReloadError::Mistakes(format!(
                "connection `{name}` is gone, and the MQTT listener publishes to it until a restart: keep it, or restart"
            )));
        }
        if let Some(message) = config.listener.as_ref().and_then(ListenerConfig::exposure) {
            return Err(ReloadError::Mistakes(format!("listener.listen: until a restart it is where it was, and {message}")));
        }
        let files = read_files(&config).await;
        let has_other_files = |name: &ConnectionName| self.files.get(name) != files.get(name);
        let mut changes = compare(&self.config, &config, restart_needed, &has_other_files);
        let bound_to = self.routing.current().await.lanes.clone();
        let mut newest = Vec::with_capacity(config.connections.len());
        for connection in &config.connections {
            let made = lanes::newest(connection, &self.log).await?;
            // A reload that was given up may have made a set of lanes that nobody uses.
            let is_other_set = bound_to.span(&connection.name).is_some_and(|span| span != made.span);
            if is_other_set && !changes.changed.contains(&connection.name) {
                changes.changed.push(connection.name.clone());
            }
            newest.push(made);
        }
        let to_stop: Vec<ConnectionName> = changes.changed.iter().chain(&changes.removed).cloned().collect();
        let mut stopping = self.stopping.clone();
        tokio::select! {
            () = self.routing.replace(routing(&config, &newest)) => {}
            () = tokio::time::sleep(REPLACE_TIMEOUT) => return Err(ReloadError::Busy),
            // The next start begins with the file as it is then.
            _ = stopping.wait_for(|stopping| *stopping) => return Err(ReloadError::Stopping),
        }
        let what = differences(&self.config, &config, &changes);
        self.rules.send_replace(access::rules(&config.http));
        access::warn(&config.http);
        self.publishers.send_replace(listener::access(&config, &self.log));
        self.notices.send_replace(notice_to(&config, &newest));
        self.log.limit(limits(&config)).await.map_err(StartError::from)?;
        self.settings.send_replace(settings(&config, changes.restart_needed.clone()));
        (self.config, self.files) = (config, files);
        if !self.pools.stop(&to_stop).await {
            tracing::warn!("what is in flight was not acknowledged in time; it goes on with the new settings");
        }
        let to_start = |newest: &&Newest| changes.added.contains(&newest.connection) || changes.changed.contains(&newest.connection);
        for newest in newest.iter().filter(to_start) {
            let known = self.config.connections.iter().find(|connection| connection.name == newest.connection).cloned();
            let Some(connection) = known else { continue };
            self.start_lanes_of(&connection, newest).await?;
        }
        self.audit(&what).await;
        Ok(changes)
    }

    /// For the history: that it was changed, and what. Who sends a signal nobody can know.
    async fn audit(&self, what: &[String]) {
        let what = if what.is_empty() { "no difference".to_owned() } else { what.join("; ") };
        let event = Event::Audit { who: BY_SIGNAL.to_owned(), what: format!("reloaded the configuration: {what}"), at: now() };
        if let Err(error) = self.log.record(vec![event]).await {
            tracing::error!(%error, "the history does not say that the configuration was reloaded");
        }
    }
}

/// What differs, in words for the history. Whoever adds a setting decides here what is said of it.
fn differences(old: &Config, new: &Config, changes: &Changes) -> Vec<String> {
    let Config { store, http, listener, connections: _, retry, gap_notice, routes, file: _, zuul: _, notes: _ } = new;
    let StoreConfig { backend: _, path: _, retention_ms, dead_retention_ms, max_size } = store;
    let HttpConfig { listen: _, max_report, max_batch, tokens, open_metrics, rate, anonymous, tls, notes: _ } = http;
    let Changes { added, changed, removed, restart_needed: _ } = changes;
    let login = |listener: &Option<ListenerConfig>| listener.as_ref().and_then(|listener| listener.login.clone());
    let connections = [("added", added), ("changed", changed), ("removed", removed)];
    let mut found: Vec<String> = connections
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(how, list)| format!("connections {how}: {}", names(list)))
        .collect();
    found.extend(access::differences(&old.http.tokens, tokens));
    let settings = [
        ("the pipelines", routes.entries() != old.routes.entries()),
        ("retry", *retry != old.retry),
        ("gap_notice", *gap_notice != old.gap_notice),
        ("store.retention", *retention_ms != old.store.retention_ms),
        ("store.dead_retention", *dead_retention_ms != old.store.dead_retention_ms),
        ("store.max_size", *max_size != old.store.max_size),
        ("http.max_report", *max_report != old.http.max_report),
        ("http.max_batch", *max_batch != old.http.max_batch),
        ("http.metrics", *open_metrics != old.http.open_metrics),
        ("http.rate", *rate != old.http.rate),
        ("http.anonymous", *anonymous != old.http.anonymous),
        ("http.certfile and http.keyfile", *tls != old.http.tls),
        ("listener.user and its password", login(listener) != login(&old.listener)),
    ];
    found.extend(settings.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name.to_owned()));
    found
}

/// What can't change while the service runs keeps its old value; says which keys that are. Whoever adds a setting decides here.
fn keep_until_restart(old: &Config, new: &mut Config) -> Vec<&'static str> {
    let Config { store, http, listener, connections: _, retry: _, gap_notice: _, routes: _, file: _, zuul: _, notes: _ } = new;
    let StoreConfig { backend, path, retention_ms: _, dead_retention_ms: _, max_size: _ } = store;
    let HttpConfig { listen, max_report: _, max_batch: _, tokens: _, open_metrics: _, rate: _, anonymous: _, tls: _, notes: _ } = http;
    let mut keys = Vec::new();
    let mut keep = |key, differs| {
        if differs {
            keys.push(key);
        }
    };
    keep("store.backend", kept(backend, &old.store.backend));
    keep("store.path", kept(path, &old.store.path));
    keep("http.listen", kept(listen, &old.http.listen));
    match (listener, &old.listener) {
        (Some(ListenerConfig { listen, connection, login: _, tls, anonymous: _ }), Some(old)) => {
            keep("listener.listen", kept(listen, &old.listen));
            keep("listener.connection", kept(connection, &old.connection));
            keep("listener.certfile, keyfile and client_ca", kept(tls, &old.tls));
        }
        (listener, old) => keep("listener", kept(listener, old)),
    }
    keys
}

/// Puts the old value back; whether it had changed.
fn kept<T: Clone + PartialEq>(new: &mut T, old: &T) -> bool {
    let differs = new != old;
    new.clone_from(old);
    differs
}

/// What the change comes to. How often and how soon is retried is a setting of every lane.
fn compare(old: &Config, new: &Config, restart_needed: Vec<&'static str>, has_other_files: &dyn Fn(&ConnectionName) -> bool) -> Changes {
    let find = |config: &'_ Config, name: &ConnectionName| config.connections.iter().find(|known| known.name == *name).cloned();
    let mut changes = Changes { restart_needed, ..Changes::default() };
    let names: BTreeSet<&ConnectionName> = [old, new].into_iter().flat_map(|config| &config.connections).map(|known| &known.name).collect();
    for name in names {
        let (before, after): (Option<ConnectionConfig>, Option<ConnectionConfig>) = (find(old, name), find(new, name));
        match (before, after) {
            (None, _) => changes.added.push(name.clone()),
            (Some(_), None) => changes.removed.push(name.clone()),
            (Some(before), Some(after)) if before != after || old.retry != new.retry || has_other_files(name) => {
                changes.changed.push(name.clone())
            }
            (Some(_), Some(_)) => {}
        }
    }
    changes
}

fn names(connections: &[ConnectionName]) -> String {
    connections.iter().map(ConnectionName::as_str).collect::<Vec<_>>().join(", ")
}

impl From<StartError> for ReloadError {
    fn from(error: StartError) -> Self {
        ReloadError::Failed(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn config(text: &str) -> Config {
        config::from_str(text, "test.toml").unwrap()
    }

    #[test]
    fn what_only_a_restart_changes_keeps_its_value_and_is_named() {
        let old = config("store.path = '/a'\nhttp.listen = '127.0.0.1:1'\nhttp.max_report = '2KiB'");
        let mut new = config("store.path = '/b'\nhttp.listen = '127.0.0.1:2'\nhttp.max_report = '3KiB'");
        assert_eq!(keep_until_restart(&old, &mut new), ["store.path", "http.listen"]);
        assert_eq!((&new.store.path, new.http.listen, new.http.max_report), (&old.store.path, old.http.listen, 3 << 10));
        assert!(keep_until_restart(&old, &mut old.clone()).is_empty());
    }

    #[test]
    fn where_it_listens_until_a_restart_decides_whether_tokens_are_needed() {
        let old = config("http.listen = '192.0.2.1:1'\nhttp.anonymous = true");
        let mut new = config("http.listen = '127.0.0.1:1'");
        assert_eq!(new.http.exposure(new.http.listen), None);
        keep_until_restart(&old, &mut new);
        assert!(new.http.exposure(new.http.listen).is_some());
    }

    #[test]
    fn of_the_listener_who_may_publish_changes_and_where_it_listens_waits_for_a_restart() {
        let with = |listen: &str, more: &str| {
            config(&format!("connection.a.driver = 'mqtt'\n[listener]\nlisten = '{listen}'\nconnection = 'a'\n{more}"))
        };
        let old = with("192.0.2.1:1", "user = 'ci'\npassword = 'old'");
        let mut new = with("192.0.2.1:2", "user = 'ci'\npassword = 'new'");
        assert_eq!(keep_until_restart(&old, &mut new), ["listener.listen"]);
        let listener = new.listener.unwrap();
        assert_eq!((listener.listen.port(), listener.login.unwrap().1.expose()), (1, "new"));
        // On loopback nobody has to be asked; until the restart that it needs it is not there.
        let mut open = with("127.0.0.1:1", "");
        keep_until_restart(&old, &mut open);
        assert!(open.listener.unwrap().exposure().is_some());
        let mut none = config("connection.a.driver = 'mqtt'");
        assert_eq!(keep_until_restart(&old, &mut none), ["listener"]);
        assert_eq!(none.listener, old.listener);
    }

    #[test]
    fn only_connections_that_differ_are_stopped() {
        let [a, b, b_other, c] = ["a.driver = 'mqtt'", "b.driver = 'mqtt'", "b = { driver = 'mqtt', port = 2 }", "c.driver = 'mqtt'"]
            .map(|text| format!("connection.{text}\n"));
        let changes = compare(&config(&(a.clone() + &b)), &config(&(b_other + &c)), Vec::new(), &|_| false);
        assert_eq!((names(&changes.added), names(&changes.changed), names(&changes.removed)), ("c".into(), "b".into(), "a".into()));
        let changes = compare(&config(&a), &config(&a), Vec::new(), &|_| false);
        assert_eq!(changes, Changes::default());
    }

    #[test]
    fn other_retries_concern_every_connection() {
        let other = config("connection.a.driver = 'mqtt'\nretry.attempts = 3");
        let changes = compare(&config("connection.a.driver = 'mqtt'"), &other, Vec::new(), &|_| false);
        assert_eq!(names(&changes.changed), "a");
    }

    #[test]
    fn a_renewed_certificate_concerns_its_connection() {
        let same = config("connection.a.driver = 'mqtt'\nconnection.b.driver = 'mqtt'");
        let changes = compare(&same, &same, Vec::new(), &|name| name.as_str() == "b");
        assert_eq!(names(&changes.changed), "b");
    }
}
