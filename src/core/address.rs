//! Where a broker is: the address as an operator writes it, parsed once.
//!
//! ```text
//!   broker.example.com   192.0.2.1   2001:db8::1     host name or address, the port apart
//!   broker.example.com:1883   [2001:db8::1]:1883     the same with its port, in a list
//!   ws://host:port/path   wss://host:port/path       WebSocket (MQTT 5.0 §6), in the clear and over TLS
//!   unix:/path/to/socket                             a socket on this machine
//! ```

use std::fmt;

use ::core::net::Ipv6Addr;

/// The port registered for MQTT. That TLS has another by custom is not implied: it would change where a connection leads.
pub const DEFAULT_PORT: u16 = 1883;

/// Where MQTT is served over WebSocket, if the address doesn't say: the path that brokers have in their own examples.
const DEFAULT_PATH: &str = "/mqtt";

/// The longest host name (RFC 1035 §2.3.4).
const MAX_HOST: usize = 253;

/// The longest path of a URL that is taken.
const MAX_PATH: usize = 2_000;

/// `sun_path` has 108 bytes, with a zero at the end.
const MAX_SOCKET_PATH: usize = 107;

/// Where a broker is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// MQTT over TCP, or over TLS over TCP.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// MQTT over WebSocket (MQTT 5.0 §6).
    WebSocket {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
        /// Path and query, from the slash on.
        path: String,
        /// `wss`: over TLS.
        is_secure: bool,
    },
    /// MQTT over a Unix socket.
    Unix {
        /// The socket's absolute path.
        path: String,
    },
}

/// Why a text is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// `mqtt://`, `tcp://` and other schemes that mean plain MQTT.
    #[error(
        "expected a host name or an address without a scheme such as `mqtt://`; what has one is `ws://`, `wss://` and `unix:` (TLS is asked for with `ca_certs`)"
    )]
    Scheme,
    /// `[::1]` where the port is apart.
    #[error("expected an address without brackets")]
    Brackets,
    /// `host:1883` where the port is apart.
    #[error("expected a host name or an address alone: the port stands under `port`, or write `servers = [\"host:port\"]`")]
    PortApart,
    /// An address of IPv6 without brackets: its last group could be a port.
    #[error("expected an address of IPv6 in brackets, such as \"[2001:db8::1]:1883\"")]
    NoBrackets,
    /// Not a host name.
    #[error("expected a host name or an address")]
    Host,
    /// Not a port.
    #[error("expected a port from 1 to 65535 after the last colon")]
    Port,
    /// A port beside an address that has a place for it.
    #[error("`port` goes with a host name alone: here the port stands in `server`")]
    PortTwice,
    /// `ws://user:password@host`.
    #[error("expected no user in the address: user and password stand under `user` and `password`")]
    UserInfo,
    /// Not a path of a URL.
    #[error("expected a path of printable ASCII without blanks and `#`, at most {MAX_PATH} bytes")]
    Path,
    /// Not the path of a socket.
    #[error("expected the absolute path of a socket, such as `unix:/run/mosquitto.sock`, at most {MAX_SOCKET_PATH} bytes")]
    SocketPath,
}

impl AddressError {
    /// Stable, for machines.
    pub fn code(self) -> &'static str {
        "invalid_address"
    }
}

impl Address {
    /// MQTT over TCP.
    pub fn tcp(host: impl Into<String>, port: u16) -> Address {
        Address::Tcp { host: host.into(), port }
    }

    /// An address whose port stands apart, if it has one at all: `server` and `port`.
    ///
    /// # Errors
    /// What is wrong with the address; [`AddressError::PortTwice`] is the port's mistake.
    pub fn of_server(server: &str, port: Option<u16>) -> Result<Address, AddressError> {
        if let Some(address) = other_transport(server)? {
            return if port.is_some() { Err(AddressError::PortTwice) } else { Ok(address) };
        }
        if server.starts_with('[') || server.ends_with(']') {
            return Err(AddressError::Brackets);
        }
        if server.contains(':') && server.parse::<Ipv6Addr>().is_err() {
            return Err(AddressError::PortApart);
        }
        Ok(Address::Tcp { host: host(server)?, port: port.unwrap_or(DEFAULT_PORT) })
    }

    /// An address that is complete: an entry of `servers`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Address, AddressError> {
        if let Some(address) = other_transport(text)? {
            return Ok(address);
        }
        let (host, port) = host_and_port(text)?;
        Ok(Address::Tcp { host, port: port.unwrap_or(DEFAULT_PORT) })
    }

    /// As it is written in `servers`. Its [`Display`](fmt::Display) is what is stored, and has never had brackets.
    pub fn written(&self) -> String {
        match self {
            Address::Tcp { host, port } => format!("{}:{port}", bracketed(host)),
            other => other.to_string(),
        }
    }

    /// Host name or address, where there is one.
    pub fn host(&self) -> Option<&str> {
        match self {
            Address::Tcp { host, .. } | Address::WebSocket { host, .. } => Some(host),
            Address::Unix { .. } => None,
        }
    }

    /// What is said there stays on this machine.
    pub fn is_local(&self) -> bool {
        self.host().is_none_or(|host| host == "localhost" || host.parse::<::core::net::IpAddr>().is_ok_and(|address| address.is_loopback()))
    }
}

/// The key of a broker's session in the log: a change of it means another session.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::WebSocket { host, port, path, is_secure } => {
                let scheme = if *is_secure { "wss" } else { "ws" };
                write!(f, "{scheme}://{}:{port}{path}", bracketed(host))
            }
            Address::Unix { path } => write!(f, "unix:{path}"),
        }
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// An address with a scheme that is known; none if there is no scheme.
fn other_transport(text: &str) -> Result<Option<Address>, AddressError> {
    // `unix:1883` is a host of that name and its port: a path begins with a slash.
    let is_port = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(path) = text.strip_prefix("unix:").filter(|path| !is_port(path)) {
        // `unix:///path` is how URLs write it.
        let path = path.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(path);
        let is_path = path.len() > 1 && path.len() <= MAX_SOCKET_PATH && path.starts_with('/') && !path.starts_with("//");
        return match is_path && !path.ends_with('/') && !path.contains(char::is_control) {
            true => Ok(Some(Address::Unix { path: path.to_owned() })),
            false => Err(AddressError::SocketPath),
        };
    }
    let (is_secure, rest, default_port) = match text.split_once("://") {
        None => return Ok(None),
        Some(("ws", rest)) => (false, rest, 80),
        Some(("wss", rest)) => (true, rest, 443),
        Some(_) => return Err(AddressError::Scheme),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err(AddressError::UserInfo);
    }
    let is_printable = |byte: u8| byte.is_ascii_graphic() && !b"#\"<>\\^`{|}".contains(&byte);
    if path.len() > MAX_PATH || !(path.is_empty() || path.starts_with('/')) || !path.bytes().all(is_printable) {
        return Err(AddressError::Path);
    }
    let (host, port) = host_and_port(authority)?;
    let path = if path.is_empty() { DEFAULT_PATH } else { path };
    Ok(Some(Address::WebSocket { host, port: port.unwrap_or(default_port), path: path.to_owned(), is_secure }))
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`.
fn host_and_port(text: &str) -> Result<(String, Option<u16>), AddressError> {
    let (name, after) = match text.strip_prefix('[') {
        Some(rest) => {
            let (inside, after) = rest.split_once(']').ok_or(AddressError::Host)?;
            inside.parse::<Ipv6Addr>().map_err(|_| AddressError::Host)?;
            (inside, after)
        }
        None => {
            let (name, after) = text.split_at(text.find(':').unwrap_or(text.len()));
            if after.matches(':').count() > 1 {
                return Err(AddressError::NoBrackets);
            }
            (name, after)
        }
    };
    let port = match after.strip_prefix(':') {
        Some(port) => Some(port_of(port)?),
        None if after.is_empty() => None,
        None => return Err(AddressError::Port),
    };
    Ok((host(name)?, port))
}

fn port_of(text: &str) -> Result<u16, AddressError> {
    // `parse` takes a sign, too.
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_number && *port > 0).ok_or(AddressError::Port)
}

/// Names that don't resolve are found out when connecting; here only what can't be a name is refused.
fn host(text: &str) -> Result<String, AddressError> {
    let is_wrong = |c: char| c.is_whitespace() || c.is_control() || "/@?#[]\\\"".contains(c);
    match text.is_empty() || text.len() > MAX_HOST || text.contains(is_wrong) {
        true => Err(AddressError::Host),
        false => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web_socket(host: &str, port: u16, path: &str, is_secure: bool) -> Address {
        Address::WebSocket { host: host.into(), port, path: path.into(), is_secure }
    }

    #[test]
    fn an_entry_of_servers_is_complete_in_itself() {
        for (text, address) in [
            ("a", Address::tcp("a", 1883)),
            ("a:8883", Address::tcp("a", 8883)),
            ("192.0.2.1:1", Address::tcp("192.0.2.1", 1)),
            ("[2001:db8::1]", Address::tcp("2001:db8::1", 1883)),
            ("[2001:db8::1]:65535", Address::tcp("2001:db8::1", 65_535)),
            ("ws://a", web_socket("a", 80, "/mqtt", false)),
            ("ws://a/", web_socket("a", 80, "/", false)),
            ("wss://a:8084/x/y?token=1", web_socket("a", 8084, "/x/y?token=1", true)),
            ("wss://[::1]", web_socket("::1", 443, "/mqtt", true)),
            ("unix:1883", Address::tcp("unix", 1883)),
            ("unix:/run/m.sock", Address::Unix { path: "/run/m.sock".into() }),
            ("unix:///run/m.sock", Address::Unix { path: "/run/m.sock".into() }),
        ] {
            assert_eq!(Address::parse(text), Ok(address.clone()), "{text}");
            assert_eq!(Address::parse(&address.written()), Ok(address), "{text}: what is shown reads back");
        }
    }

    #[test]
    fn a_server_has_its_port_apart_or_in_its_address_and_not_both() {
        assert_eq!(Address::of_server("::1", Some(1)), Ok(Address::tcp("::1", 1)));
        assert_eq!(Address::of_server("a", None), Ok(Address::tcp("a", 1883)));
        assert_eq!(Address::of_server("wss://a:1/", None), Ok(web_socket("a", 1, "/", true)));
        for text in ["ws://a", "unix:/m.sock"] {
            assert_eq!(Address::of_server(text, Some(1)), Err(AddressError::PortTwice), "{text}");
        }
        assert_eq!(Address::of_server("a:1883", None), Err(AddressError::PortApart));
        assert_eq!(Address::of_server("[::1]", None), Err(AddressError::Brackets));
    }

    #[test]
    fn the_session_of_a_tcp_address_is_known_as_it_always_was() {
        assert_eq!(Address::tcp("broker", 1883).to_string(), "broker:1883");
        assert_eq!(Address::tcp("2001:db8::1", 1883).to_string(), "2001:db8::1:1883");
        assert_eq!(web_socket("::1", 80, "/mqtt", false).to_string(), "ws://[::1]:80/mqtt");
    }

    #[test]
    fn what_is_no_address_says_why() {
        for (text, error) in [
            ("", AddressError::Host),
            ("a b", AddressError::Host),
            ("a/b", AddressError::Host),
            (":1883", AddressError::Host),
            ("[a]:1", AddressError::Host),
            ("[::1", AddressError::Host),
            ("a:", AddressError::Port),
            ("a:0", AddressError::Port),
            ("a:+1", AddressError::Port),
            ("a:65536", AddressError::Port),
            ("[::1]1883", AddressError::Port),
            ("2001:db8::1:1883", AddressError::NoBrackets),
            ("mqtt://a", AddressError::Scheme),
            ("mqtts://a:8883", AddressError::Scheme),
            ("WS://a", AddressError::Scheme),
            ("ws://", AddressError::Host),
            ("ws://u:p@a/mqtt", AddressError::UserInfo),
            ("ws://a?x=1", AddressError::Path),
            ("ws://a/m#f", AddressError::Path),
            ("ws://a/m q", AddressError::Path),
            ("unix:", AddressError::SocketPath),
            ("unix:m.sock", AddressError::SocketPath),
            ("unix://host/m.sock", AddressError::SocketPath),
            ("unix:/", AddressError::SocketPath),
        ] {
            assert_eq!(Address::parse(text), Err(error), "{text}");
        }
        assert_eq!(Address::parse(&format!("unix:/{}", "x".repeat(107))), Err(AddressError::SocketPath));
        assert_eq!(Address::parse(&"x".repeat(254)), Err(AddressError::Host));
    }
}
