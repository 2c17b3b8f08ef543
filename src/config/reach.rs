//! How a connection reaches its broker: addresses and TLS, from plain values and whatever file they stand in.
//!
//! A source gives what it read as a [`Reach`], and says for each mistake in which line of which file its key stands.

use std::path::PathBuf;

use super::{Identity, TlsConfig};
use crate::core::address::{Address, AddressError};

/// So many brokers of one connection at most: each is tried for seconds before the next.
const MAX_SERVERS: usize = 16;

/// What a source says, as it says it.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// `server`.
    pub server: Option<String>,
    /// `port`.
    pub port: Option<u16>,
    /// `servers`. What is none in it is no text, and has been noted.
    pub servers: Option<Vec<Option<String>>>,
    /// `ca_certs`.
    pub ca_certs: Option<String>,
    /// `certfile`.
    pub certfile: Option<String>,
    /// `keyfile`.
    pub keyfile: Option<String>,
    /// `ciphers`.
    pub ciphers: Option<String>,
}

/// The key that a mistake is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// A key of the connection.
    Key(&'static str),
    /// An entry of `servers`, counted from 0.
    Server(usize),
}

impl Reach {
    /// The brokers in order of preference, and TLS if it is asked for. They count only if nothing was noted.
    pub(super) fn check(self, note: &mut dyn FnMut(At, String)) -> (Vec<Address>, Option<TlsConfig>) {
        let addresses = self.addresses(note);
        let tls = self.tls(note);
        for (at, address) in &addresses {
            if let Some(message) = conflict(address, tls.is_some() || self.ca_certs.is_some()) {
                // The culprit is TLS where the address has none, and the address where it needs TLS.
                let at = if self.ca_certs.is_some() { At::Key("ca_certs") } else { *at };
                note(at, message);
            }
        }
        (addresses.into_iter().map(|(_, address)| address).collect(), tls)
    }

    fn addresses(&self, note: &mut dyn FnMut(At, String)) -> Vec<(At, Address)> {
        let Some(servers) = &self.servers else {
            let server = self.server.as_deref().unwrap_or("localhost");
            return match Address::of_server(server, self.port) {
                Ok(address) => vec![(At::Key("server"), address)],
                Err(error) => {
                    let key = if error == AddressError::PortTwice { "port" } else { "server" };
                    note(At::Key(key), error.to_string());
                    Vec::new()
                }
            };
        };
        for (key, is_given) in [("server", self.server.is_some()), ("port", self.port.is_some())] {
            if is_given {
                note(At::Key(key), "there is `servers` too: give one of them".to_owned());
            }
        }
        if servers.is_empty() || servers.len() > MAX_SERVERS {
            note(At::Key("servers"), format!("expected 1 to {MAX_SERVERS} brokers, found {}", servers.len()));
        }
        let mut addresses: Vec<(At, Address)> = Vec::new();
        for (index, server) in servers.iter().enumerate() {
            match server.as_deref().map(Address::parse) {
                None => {}
                Some(Err(error)) => note(At::Server(index), error.to_string()),
                Some(Ok(address)) if addresses.iter().any(|(_, known)| *known == address) => {
                    note(At::Server(index), format!("{} stands in the list already", address.written()));
                }
                Some(Ok(address)) => addresses.push((At::Server(index), address)),
            }
        }
        addresses
    }

    /// Zuul's rules, and what OpenSSL says about the files. Asked for and wrong it is still asked for: nobody connects without it then.
    fn tls(&self, note: &mut dyn FnMut(At, String)) -> Option<TlsConfig> {
        let keys = [("certfile", &self.certfile, "keyfile", &self.keyfile), ("keyfile", &self.keyfile, "certfile", &self.certfile)];
        for (one, given, other, missing) in keys {
            if given.is_some() && missing.is_none() {
                note(At::Key(one), format!("`certfile` and `keyfile` come together: `{other}` is missing"));
            }
        }
        let Some(ca_certs) = &self.ca_certs else {
            for (key, given) in [("certfile", &self.certfile), ("keyfile", &self.keyfile), ("ciphers", &self.ciphers)] {
                if given.is_some() {
                    note(At::Key(key), "needs `ca_certs`".to_owned());
                }
            }
            return None;
        };
        let identity = self.certfile.as_ref().zip(self.keyfile.as_ref());
        let tls = TlsConfig {
            ca_certs: PathBuf::from(ca_certs),
            identity: identity.map(|(certfile, keyfile)| Identity { certfile: certfile.into(), keyfile: keyfile.into() }),
            ciphers: self.ciphers.clone(),
        };
        if let Err(faults) = tls.context() {
            faults.0.into_iter().for_each(|fault| note(At::Key(fault.key), fault.message));
        }
        Some(tls)
    }
}

/// Why an address can't be reached with TLS, or without.
fn conflict(address: &Address, with_tls: bool) -> Option<String> {
    let shown = address.written();
    match address {
        Address::WebSocket { is_secure: true, .. } if !with_tls => {
            Some(format!("{shown} is reached over TLS: `ca_certs` is missing, the authorities that its certificate may come from"))
        }
        Address::WebSocket { is_secure: false, .. } if with_tls => {
            Some(format!("asks for TLS, and {shown} has none: write `wss://`, or leave `ca_certs` out"))
        }
        Address::Unix { .. } if with_tls => {
            Some(format!("asks for TLS, and {shown} has none: it stays on this machine; leave `ca_certs` out"))
        }
        _ => None,
    }
}
