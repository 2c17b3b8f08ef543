//! `[listener]`: where publishers connect over MQTT, who they have to be, and where what they publish goes.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use openssl::ssl::{SslAcceptor, SslFiletype, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::X509;

use super::connection::password;
use super::own_listener::leads_to_here;
use super::raw::{Field, Table};
use super::{ConnectionConfig, Secret};
use crate::core::address::Address;
use crate::core::types::ConnectionName;

/// The port beside MQTT's own 1883, which a broker on the same machine has.
const EXAMPLE: &str = "127.0.0.1:1884";

/// What is wrong with a listener that others can reach and that asks nobody who he is.
const EXPOSED: &str = "beyond loopback publishers have to say who they are, with `user` and `password_file` or with certificates of `client_ca`; \
    or write `anonymous = true`: then anybody who reaches the port may publish";

/// User names have two bytes of length before them (MQTT 5.0 §3.1.3.5), and this one is stored with every report.
const MAX_USER: usize = 256;

/// `[listener]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where what is published goes.
    pub connection: ConnectionName,
    /// Who publishers have to be, with the password; none: they need not say.
    pub login: Option<(String, Secret)>,
    /// TLS, if it is asked for.
    pub tls: Option<ListenerTls>,
    /// Anybody who reaches the port may publish, and that is meant.
    pub anonymous: bool,
}

impl ListenerConfig {
    /// What is wrong with letting anybody in, if that is what it comes to.
    pub fn exposure(&self) -> Option<&'static str> {
        let asks = self.login.is_some() || self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        (!self.listen.ip().is_loopback() && !asks && !self.anonymous).then_some(EXPOSED)
    }
}

/// A certificate to be known by: the MQTT listener's, or that of HTTPS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerTls {
    /// A PEM file: the certificate, and after it those that lead to its authority.
    pub certfile: PathBuf,
    /// A PEM file: the certificate's private key, not encrypted.
    pub keyfile: PathBuf,
    /// A PEM file with the authorities that publishers' certificates have to come from; none: they need no certificate.
    pub client_ca: Option<PathBuf>,
}

impl ListenerTls {
    /// What connections are accepted with: TLS 1.2 and 1.3, with what Mozilla recommends for servers with clients of several years. Reads the files.
    ///
    /// # Errors
    /// The key that is at fault, and what is wrong with it.
    pub fn acceptor(&self) -> Result<SslAcceptor, (&'static str, String)> {
        let internal = |error: openssl::error::ErrorStack| ("certfile", format!("OpenSSL can't be used: {error}"));
        let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).map_err(internal)?;
        builder.set_min_proto_version(Some(SslVersion::TLS1_2)).map_err(internal)?;
        readable(&self.certfile).map_err(|reason| ("certfile", reason))?;
        let certificate =
            |error: openssl::error::ErrorStack| ("certfile", format!("{} has no certificate in PEM: {error}", self.certfile.display()));
        builder.set_certificate_chain_file(&self.certfile).map_err(certificate)?;
        readable(&self.keyfile).map_err(|reason| ("keyfile", reason))?;
        let key = |error: openssl::error::ErrorStack| {
            ("keyfile", format!("{} has no private key in PEM that belongs to `certfile`: {error}", self.keyfile.display()))
        };
        builder.set_private_key_file(&self.keyfile, SslFiletype::PEM).map_err(key)?;
        builder.check_private_key().map_err(key)?;
        if let Some(client_ca) = &self.client_ca {
            let text = readable(client_ca).map_err(|reason| ("client_ca", reason))?;
            let authorities = X509::stack_from_pem(&text).unwrap_or_default();
            if authorities.is_empty() {
                return Err(("client_ca", format!("{} has no certificate in PEM", client_ca.display())));
            }
            for authority in authorities {
                builder.add_client_ca(&authority).map_err(internal)?;
                builder.cert_store_mut().add_cert(authority).map_err(internal)?;
            }
            builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
            // Sessions are resumed with the certificate that they were made with.
            builder.set_session_id_context(b"tidings").map_err(internal)?;
        }
        Ok(builder.build())
    }
}

fn readable(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{} can't be read: {error}", path.display()))
}

/// The section, if it is there. `names` are those of the connections, also of those that have a mistake.
pub(super) fn listener(
    table: Option<Table<'_>>,
    names: &[String],
    connections: &[ConnectionConfig],
    http: SocketAddr,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Option<ListenerConfig> {
    let mut table = table?;
    let address = |item: &super::raw::Item<'_>| item.as_text()?.parse::<SocketAddr>().ok();
    let listen: Field<Option<SocketAddr>> =
        table.field("listen", None, format_args!("an address and a port such as \"{EXAMPLE}\""), |item| address(item).map(Some));
    if listen.line.is_none() {
        table.missing("listen", format_args!("is required: an address and a port such as \"{EXAMPLE}\""));
    }
    let connection = match table.take("connection") {
        None => {
            table.missing("connection", "is required: the name of the connection that what is published here goes to");
            None
        }
        Some(item) => item.text().inspect(|name| {
            if !names.contains(name) {
                item.mistake(format_args!("there is no `[connection.{name}]`"));
            }
        }),
    };
    let user = table.take("user");
    let password = password(&mut table, environment);
    match (&user, &password) {
        (Some(user), None) => user.mistake("publishers are asked for a password too: `password_file` is missing"),
        (None, Some(password)) => {
            table.mistake(password.key, Some(password.line), "a password is asked for together with a user: `user` is missing")
        }
        _ => {}
    }
    let has_login = user.is_some() || password.is_some();
    let user = user.and_then(|user| {
        let text = user.text()?;
        if text.len() > MAX_USER || text.contains('\0') {
            user.mistake(format_args!("is a text of at most {MAX_USER} bytes"));
        }
        Some(text)
    });
    let (tls, has_client_ca) = tls(&mut table, true);
    let anonymous = table.field("anonymous", false, "true or false", |item| item.as_flag());
    if anonymous.value && (has_login || has_client_ca) {
        table.mistake("anonymous", anonymous.line, "says that anybody may publish, and `user` or `client_ca` say who may: leave one out");
    }
    if let Some(address) = listen.value
        && !address.ip().is_loopback()
        && !has_login
        && !has_client_ca
        && !anonymous.value
        && !anonymous.wrong
    {
        table.mistake("listen", listen.line, EXPOSED);
    }
    if let Some(address) = listen.value.filter(|address| address.port() != 0) {
        if collide(http, address) {
            table.mistake("listen", listen.line, "is where `http.listen` is");
        }
        for connection in connections {
            let leads_back = |server: &&Address| matches!(server, Address::Tcp { host, port } if leads_to_here(host, *port, address));
            if let Some(server) = connection.servers.iter().find(leads_back) {
                table.mistake(
                    "listen",
                    listen.line,
                    format_args!(
                        "connection `{}` ({}) leads back to this listener: reports would go round in a circle; give it the broker's address",
                        connection.name,
                        server.written()
                    ),
                );
            }
        }
    }
    table.finish();
    let login = user.zip(password.and_then(|password| password.secret));
    Some(ListenerConfig { listen: listen.value?, connection: connection?.as_str().into(), login, tls, anonymous: anonymous.value })
}

/// The keys of TLS, held against OpenSSL; and whether clients are asked for certificates, where they can be.
pub(super) fn tls(table: &mut Table<'_>, may_ask_clients: bool) -> (Option<ListenerTls>, bool) {
    let mut take = |key: &'static str| {
        let item = table.take(key)?;
        Some((item.line(), item.text().map(PathBuf::from)))
    };
    let (certfile, keyfile) = (take("certfile"), take("keyfile"));
    let client_ca = if may_ask_clients { take("client_ca") } else { None };
    let has_client_ca = client_ca.is_some();
    let line_of = |given: &Option<(usize, Option<PathBuf>)>| given.as_ref().map(|(line, _)| *line);
    let lines = [line_of(&certfile), line_of(&keyfile), line_of(&client_ca)];
    for (one, line, other, missing) in [("certfile", lines[0], "keyfile", lines[1]), ("keyfile", lines[1], "certfile", lines[0])] {
        if line.is_some() && missing.is_none() {
            table.mistake(one, line, format_args!("`certfile` and `keyfile` come together: `{other}` is missing"));
        }
    }
    if has_client_ca && lines[0].is_none() && lines[1].is_none() {
        table.mistake("client_ca", lines[2], "publishers show certificates over TLS only: `certfile` and `keyfile` are missing");
    }
    let path = |given: Option<(usize, Option<PathBuf>)>| given.and_then(|(_, path)| path);
    let (Some(certfile), Some(keyfile), client_ca) = (path(certfile), path(keyfile), path(client_ca)) else { return (None, has_client_ca) };
    let tls = ListenerTls { certfile, keyfile, client_ca };
    if let Err((key, message)) = tls.acceptor() {
        let line = match key {
            "certfile" => lines[0],
            "keyfile" => lines[1],
            _ => lines[2],
        };
        table.mistake(key, line, message);
    }
    (Some(tls), has_client_ca)
}

/// Whether two servers would want the same port of the same address.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() == other.port() && (a == b || a.is_unspecified() || b.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::super::{from_str, mistake::ConfigErrors};
    use super::*;

    fn load(listener: &str) -> Result<ListenerConfig, Vec<String>> {
        let text = format!("[connection.mqtt]\ndriver = 'mqtt'\nserver = '192.0.2.1'\n[listener]\n{listener}");
        match from_str(&text, "tidings.toml") {
            Ok(config) => Ok(config.listener.unwrap()),
            Err(ConfigErrors { mistakes }) => Err(mistakes.iter().map(ToString::to_string).collect()),
        }
    }

    fn mistake(listener: &str) -> String {
        let mistakes = load(listener).unwrap_err();
        assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
        mistakes.concat()
    }

    #[test]
    fn on_loopback_an_address_and_a_connection_are_enough() {
        let config = load("listen = '127.0.0.1:1884'\nconnection = 'mqtt'").unwrap();
        assert_eq!((config.listen.port(), config.connection.as_str(), config.login, config.tls), (1884, "mqtt", None, None));
        assert!(mistake("connection = 'mqtt'").contains("listener.listen: is required"));
        assert!(mistake("listen = '127.0.0.1:1884'").contains("listener.connection: is required"));
        assert!(mistake("listen = 'localhost'\nconnection = 'mqtt'").contains("tidings.toml:5: listener.listen: expected an address"));
        assert_eq!(
            mistake("listen = '127.0.0.1:1884'\nconnection = 'mqt'"),
            "tidings.toml:6: listener.connection: there is no `[connection.mqt]`"
        );
        assert!(mistake("listen = '127.0.0.1:1884'\nconnection = 'mqtt'\nusr = 'x'").contains("did you mean `user`?"));
    }

    #[test]
    fn beyond_loopback_somebody_has_to_be_asked_who_he_is() {
        let open = "listen = '0.0.0.0:1884'\nconnection = 'mqtt'\n";
        assert!(mistake(open).starts_with("tidings.toml:5: listener.listen: beyond loopback"));
        assert!(load(&format!("{open}anonymous = true")).is_ok());
        assert!(load(&format!("{open}user = 'ci'\npassword = 'secret'")).is_ok());
        assert!(mistake(&format!("{open}user = 'ci'\npassword = 'x'\nanonymous = true")).contains("listener.anonymous: says that anybody"));
        assert!(mistake(&format!("{open}user = 'ci'")).contains("listener.user: publishers are asked for a password too"));
        assert!(mistake(&format!("{open}password = 'x'")).contains("`user` is missing"));
    }

    #[test]
    fn keys_of_tls_come_together_and_are_read() {
        let base = "listen = '127.0.0.1:1884'\nconnection = 'mqtt'\n";
        assert!(mistake(&format!("{base}certfile = 'x'")).contains("listener.certfile: `certfile` and `keyfile` come together"));
        assert!(mistake(&format!("{base}client_ca = 'x'")).contains("listener.client_ca: publishers show certificates over TLS only"));
        let found = mistake(&format!("{base}certfile = '/nowhere/cert'\nkeyfile = '/nowhere/key'"));
        assert!(found.starts_with("tidings.toml:7: listener.certfile: /nowhere/cert can't be read"), "{found}");
    }

    #[test]
    fn a_connection_that_leads_back_to_the_listener_is_refused() {
        let text = "[connection.mqtt]\ndriver = 'mqtt'\nserver = '127.0.0.1'\nport = 1884\n[listener]\nlisten = '127.0.0.1:1884'\nconnection = 'mqtt'";
        let errors = from_str(text, "tidings.toml").unwrap_err().to_string();
        assert!(
            errors.starts_with("tidings.toml:6: listener.listen: connection `mqtt` (127.0.0.1:1884) leads back to this listener"),
            "{errors}"
        );
        let beside = "[connection.mqtt]\ndriver = 'mqtt'\n[http]\nlisten = '127.0.0.1:9000'\n[listener]\nlisten = '0.0.0.0:9000'\nconnection = 'mqtt'\nanonymous = true";
        assert!(from_str(beside, "tidings.toml").unwrap_err().to_string().contains("is where `http.listen` is"));
    }
}
