//! `[store] backend = "jetstream"`: a log on several machines, over NATS JetStream.
//!
//! ```toml
//! [store]
//! backend = "jetstream"
//! servers = ["nats://10.0.0.1:4222", "nats://10.0.0.2:4222", "nats://10.0.0.3:4222"]
//! stream = "tidings"
//! replicas = 3
//! ```

use std::path::{Path, PathBuf};

use super::connection::{Given, is_plain, password, secret_in_file};
use super::raw::{Item, Table};
use super::{Identity, Secret, TlsConfig};

/// What a build without JetStream says.
const NOT_BUILT: &str =
    "this build has no JetStream: build it with `cargo build --release --features jetstream`, or take a package that has it";

/// The keys that belong to it and to nothing else.
const KEYS: [&str; 11] =
    ["servers", "stream", "replicas", "credentials", "user", "password", "password_file", "token_file", "ca_certs", "certfile", "keyfile"];

const EXAMPLE: &str = "\"nats://10.0.0.1:4222\"";

/// A stream's name is the bucket's, part of subjects, and of file names on the servers.
const MAX_STREAM: usize = 64;

/// How the stream is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JetStreamConfig {
    /// Addresses with their scheme, at least one.
    pub servers: Vec<String>,
    /// The stream, and the key-value bucket beside it. `tidings`, as everything else is called.
    pub stream: String,
    /// On how many servers both are kept. 3: one of them may be lost.
    pub replicas: u8,
    /// Who Tidings is to the servers, if they ask.
    pub login: Option<JetStreamLogin>,
    /// The authorities of the servers' certificates: with them TLS is required.
    pub ca_certs: Option<PathBuf>,
    /// The client's certificate and key.
    pub identity: Option<Identity>,
}

/// How Tidings says who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JetStreamLogin {
    /// By name and password.
    User(String, Secret),
    /// By a token.
    Token(Secret),
    /// By a credentials file, which is read at each connect.
    Credentials(PathBuf),
}

impl JetStreamConfig {
    /// Whether the way to every server is over TLS.
    pub fn is_encrypted(&self) -> bool {
        self.ca_certs.is_some() || self.servers.iter().all(|server| server.starts_with("tls://"))
    }
}

impl JetStreamLogin {
    /// For whoever shows a configuration; no secret is in it.
    pub fn shown(&self) -> String {
        match self {
            JetStreamLogin::User(user, _) => format!("user {user}"),
            JetStreamLogin::Token(_) => "a token".to_owned(),
            JetStreamLogin::Credentials(file) => format!("credentials {}", file.display()),
        }
    }
}

/// Notes every key that belongs to JetStream where the store is another.
pub(super) fn refuse(table: &mut Table<'_>) {
    for key in KEYS {
        if let Some(item) = table.take(key) {
            item.mistake("belongs to `backend = \"jetstream\"`, which is not set");
        }
    }
}

/// Passes over its keys, where it is not known which store was meant.
pub(super) fn pass_over(table: &mut Table<'_>) {
    for key in KEYS {
        drop(table.take(key));
    }
}

/// The keys of the backend. `named` is where it is chosen.
pub(super) fn read(table: &mut Table<'_>, named: &Item<'_>, environment: &dyn Fn(&str) -> Option<String>) -> Option<JetStreamConfig> {
    if !cfg!(feature = "jetstream") {
        named.mistake(NOT_BUILT);
    }
    let servers = match table.take("servers") {
        None => {
            table.missing("servers", format_args!("is required: a list such as [{EXAMPLE}]"));
            None
        }
        Some(list) => servers(list),
    };
    let stream = table.field("stream", "tidings".to_owned(), format_args!("1 to {MAX_STREAM} letters, digits, `-` and `_`"), |item| {
        item.as_text().filter(|text| is_plain(text, MAX_STREAM) && !text.contains('.')).map(str::to_owned)
    });
    let replicas = table.field("replicas", 3, "1, 3 or 5", |item| match item.as_whole()? {
        replicas @ (1 | 3 | 5) => u8::try_from(replicas).ok(),
        _ => None,
    });
    let login = login(table, environment);
    let (ca_certs, identity) = tls(table);
    Some(JetStreamConfig { servers: servers?, stream: stream.value, replicas: replicas.value, login, ca_certs, identity })
}

fn servers(list: Item<'_>) -> Option<Vec<String>> {
    list.read(format_args!("a list such as [{EXAMPLE}]"), |list| (list.is_list() && list.count() > 0).then_some(()))?;
    let read: Vec<Option<String>> = list.entries().iter().map(server).collect();
    read.into_iter().collect()
}

fn server(item: &Item<'_>) -> Option<String> {
    let text = item.text()?;
    // Not quoted: what stands before an `@` is a secret.
    if text.contains('@') {
        item.mistake("names a user: give `user` and `password_file`, `token_file` or `credentials` instead");
        return None;
    }
    let (scheme, rest) = text.split_once("://").unwrap_or(("nats", &text));
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse::<u16>().ok().filter(|port| *port > 0)),
        _ => (rest, Some(4222)),
    };
    let is_host =
        !host.is_empty() && !host.contains(['/', ' ', '?', '#']) && (!host.contains(':') || host.starts_with('[') && host.ends_with(']'));
    match port.filter(|_| is_host && matches!(scheme, "nats" | "tls")) {
        Some(port) => Some(format!("{scheme}://{host}:{port}")),
        None => {
            item.mistake(format_args!("expected an address such as {EXAMPLE} or \"tls://nats.example.org:4222\", found {text:?}"));
            None
        }
    }
}

fn login(table: &mut Table<'_>, environment: &dyn Fn(&str) -> Option<String>) -> Option<JetStreamLogin> {
    let credentials = table.take("credentials");
    let token = table.take("token_file");
    let user = table.take("user");
    let password = password(table, environment);
    let mut ways = 0;
    for (item, name) in [(&credentials, "credentials"), (&token, "token_file"), (&user, "user")] {
        if let Some(item) = item {
            ways += 1;
            if ways > 1 {
                item.mistake(format_args!(
                    "there are two ways to log in: give one of `credentials`, `token_file` and `user`, and not `{name}` too"
                ));
            }
        }
    }
    if let Some(item) = &credentials {
        let path = PathBuf::from(item.text()?);
        if let Err(error) = std::fs::File::open(&path) {
            item.mistake(format_args!("{} can't be read: {error}", path.display()));
        }
        return Some(JetStreamLogin::Credentials(path));
    }
    if let Some(item) = &token {
        return secret_in_file(item).map(JetStreamLogin::Token);
    }
    match (user, password) {
        (Some(user), None) => {
            user.mistake("a user has a password: `password_file` is missing");
            None
        }
        (None, Some(Given { key, line, .. })) => {
            table.mistake(key, Some(line), "a password is sent together with a user: `user` is missing");
            None
        }
        (Some(user), Some(password)) => Some(JetStreamLogin::User(user.text()?, password.secret?)),
        (None, None) => None,
    }
}

fn tls(table: &mut Table<'_>) -> (Option<PathBuf>, Option<Identity>) {
    let mut lines = Vec::new();
    let mut take = |key: &'static str| {
        let item = table.take(key)?;
        lines.push((key, item.line()));
        item.text().map(PathBuf::from)
    };
    let (ca_certs, certfile, keyfile) = (take("ca_certs"), take("certfile"), take("keyfile"));
    let line_of = |key: &str| lines.iter().find(|(known, _)| *known == key).map(|(_, line)| *line);
    let mut refused = false;
    for (one, other) in [("certfile", "keyfile"), ("keyfile", "certfile")] {
        if line_of(one).is_some() && line_of(other).is_none() {
            table.mistake(one, line_of(one), format_args!("`certfile` and `keyfile` come together: `{other}` is missing"));
            refused = true;
        }
    }
    if line_of("certfile").is_some() && line_of("ca_certs").is_none() {
        table.mistake("certfile", line_of("certfile"), "certificates are shown over TLS only: `ca_certs` is missing");
        refused = true;
    }
    let identity = certfile.zip(keyfile).map(|(certfile, keyfile)| Identity { certfile, keyfile });
    let Some(authorities) = ca_certs.clone().filter(|_| !refused) else { return (ca_certs, identity) };
    if Path::is_dir(&authorities) {
        table.mistake("ca_certs", line_of("ca_certs"), "here one PEM file is needed, and not a folder");
        return (ca_certs, identity);
    }
    // Held against OpenSSL, which says better than the client what is wrong.
    if let Err(faults) = (TlsConfig { ca_certs: authorities, identity: identity.clone(), ciphers: None }).context() {
        for fault in faults.0 {
            table.mistake(fault.key, line_of(fault.key), fault.message);
        }
    }
    (ca_certs, identity)
}

#[cfg(test)]
mod tests {
    use super::super::{Backend, from_str};
    use super::*;

    fn load(store: &str) -> Result<JetStreamConfig, String> {
        let text = format!("[connection.mqtt]\ndriver = 'mqtt'\n[store]\nbackend = 'jetstream'\n{store}");
        match from_str(&text, "tidings.toml").map(|config| config.store.backend) {
            Ok(Backend::JetStream(config)) => Ok(config),
            Ok(Backend::Sled) => panic!("it is another store"),
            Err(mistakes) => Err(mistakes.to_string()),
        }
    }

    fn mistake(store: &str) -> String {
        let mistakes = load(store).unwrap_err();
        let told: Vec<&str> = mistakes.lines().filter(|line| !line.contains(NOT_BUILT)).collect();
        assert_eq!(told.len(), 1, "{mistakes}");
        told[0].to_owned()
    }

    #[test]
    #[cfg(feature = "jetstream")]
    fn addresses_are_enough() {
        let config = load("servers = ['10.0.0.1', 'tls://b:4443', 'nats://[::1]:1']").unwrap();
        assert_eq!(config.servers, ["nats://10.0.0.1:4222", "tls://b:4443", "nats://[::1]:1"]);
        assert_eq!((config.stream.as_str(), config.replicas, config.login), ("tidings", 3, None));
        let config = load("servers = ['a']\nstream = 'ci_1'\nreplicas = 1\nuser = 'u'\npassword = 'p'").unwrap();
        assert_eq!((config.stream.as_str(), config.replicas), ("ci_1", 1));
        assert_eq!(config.login, Some(JetStreamLogin::User("u".into(), Secret::new("p"))));
        assert!(!format!("{:?}", config.login).contains("\"p\""));
    }

    #[test]
    #[cfg(not(feature = "jetstream"))]
    fn a_build_without_it_says_how_to_get_it() {
        assert_eq!(load("servers = ['a']").unwrap_err(), format!("tidings.toml:4: store.backend: {NOT_BUILT}"));
    }

    #[test]
    fn every_mistake_is_named() {
        assert!(mistake("").contains("store.servers: is required"));
        assert!(mistake("servers = []").starts_with("tidings.toml:5: store.servers: expected a list such as"));
        assert!(mistake("servers = ['http://a']").starts_with("tidings.toml:5: store.servers[0]: expected an address"));
        assert!(mistake("servers = ['a:0']").contains("expected an address"));
        let secret = mistake("servers = ['nats://me:hunter2@a']");
        assert!(secret.contains("names a user") && !secret.contains("hunter2"), "{secret}");
        assert!(mistake("servers = ['a']\nreplicas = 2").starts_with("tidings.toml:6: store.replicas: expected 1, 3 or 5"));
        assert!(mistake("servers = ['a']\nstream = 'a.b'").contains("store.stream: expected 1 to 64 letters"));
        assert!(mistake("servers = ['a']\nuser = 'u'").contains("store.user: a user has a password"));
        assert!(mistake("servers = ['a']\npassword = 'p'").contains("store.password: a password is sent together with a user"));
        assert!(mistake("servers = ['a']\ncredentials = '/nowhere'").contains("store.credentials: /nowhere can't be read"));
        assert!(mistake("servers = ['a']\ntoken_file = '/nowhere'").contains("store.token_file: /nowhere can't be read"));
        assert!(load("servers = ['a']\ncertfile = 'x'").unwrap_err().contains("`keyfile` is missing"));
        assert!(mistake("servers = ['a']\nca_certs = '/nowhere'").contains("store.ca_certs: "));
        assert!(mistake("servers = ['a']\nserver = 'a'").contains("did you mean `servers`?"));
    }

    #[test]
    fn its_keys_belong_to_nothing_else() {
        let text = "[connection.mqtt]\ndriver = 'mqtt'\n[store]\nstream = 'x'";
        let told = from_str(text, "tidings.toml").unwrap_err().to_string();
        assert_eq!(told, "tidings.toml:4: store.stream: belongs to `backend = \"jetstream\"`, which is not set");
    }
}
