//! Why a broker can't be reached, in terms of the option to look at.

use std::fmt;
use std::io;
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::ssl;

use super::tls::Seen;
use crate::config::TlsFaults;

/// A step on the way to a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Reading certificates and key.
    Files,
    /// Asking for the addresses of a name.
    Resolve,
    /// Opening the connection.
    Connect,
    /// Agreeing on TLS.
    Handshake,
    /// Agreeing on WebSocket.
    Upgrade,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Files => "reading the files of `ca_certs`, `certfile` and `keyfile`",
            Step::Resolve => "asking for the address of `server`",
            Step::Connect => "connecting to `server` and `port`",
            Step::Handshake => "the TLS handshake (does `port` speak TLS?)",
            Step::Upgrade => "the WebSocket upgrade (does `server` speak WebSocket?)",
        })
    }
}

/// Why a broker can't be reached. Each names the option to look at.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("the name {host} can't be resolved ({error}): look at `server`")]
    Unresolved {
        /// The name.
        host: String,
        /// What the system says.
        error: io::Error,
    },
    /// Nobody listens there, or the network doesn't lead there.
    #[error("{host} at port {port}: {error}; look at `server` and `port`, and whether the broker runs")]
    Unreachable {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// What the system says.
        error: io::Error,
    },
    /// The socket can't be opened.
    #[error("the socket {path}: {error}; look at `server`, at the rights of the file, and whether the broker runs")]
    Socket {
        /// Its path.
        path: String,
        /// What the system says.
        error: io::Error,
    },
    /// A step was not done in time.
    #[error("{step} did not end within {} s", limit.as_secs_f32())]
    TimedOut {
        /// The step.
        step: Step,
        /// How long everything together may take.
        limit: Duration,
    },
    /// The files of TLS can't be used any more. It is tried again, and never without them.
    #[error("TLS can't be set up: {0}")]
    Files(TlsFaults),
    /// The broker's certificate comes from somebody else.
    #[error("the broker's certificate ({subject}) was not issued by an authority in `ca_certs` ({reason})")]
    Untrusted {
        /// Whose certificate.
        subject: String,
        /// OpenSSL's words.
        reason: &'static str,
    },
    /// The certificate is somebody else's.
    #[error("the broker's certificate is for {names}, and not for {host}: `server` has to be a name that it is for")]
    WrongName {
        /// Who was expected.
        host: String,
        /// Whom it is for.
        names: String,
    },
    /// The certificate has expired.
    #[error(
        "the broker's certificate, or one that it comes from ({subject}), has expired on {at}: the broker needs a new one, or `ca_certs` does"
    )]
    Expired {
        /// Whose certificate.
        subject: String,
        /// When.
        at: String,
    },
    /// The certificate is for later.
    #[error(
        "the broker's certificate, or one that it comes from ({subject}), is not valid before {at}: is the clock of this machine right?"
    )]
    NotYetValid {
        /// Whose certificate.
        subject: String,
        /// When.
        at: String,
    },
    /// Something else about the certificate.
    #[error("the broker's certificate ({subject}) can't be used: {reason}")]
    Certificate {
        /// Whose certificate.
        subject: String,
        /// OpenSSL's words.
        reason: &'static str,
    },
    /// The broker wants to know who connects.
    #[error("the broker wants a client's certificate: set `certfile` and `keyfile`")]
    ClientCertificateMissing,
    /// The broker does not take the client's certificate.
    #[error("the broker does not take the client's certificate ({reason}): look at `certfile`")]
    ClientCertificateRefused {
        /// The broker's alert.
        reason: String,
    },
    /// No cipher is known to both.
    #[error("the broker has no cipher in common with `ciphers` ({reason})")]
    NoSharedCipher {
        /// OpenSSL's words.
        reason: String,
    },
    /// No version of TLS is known to both.
    #[error("the broker speaks no version of TLS from 1.2 on ({reason})")]
    ProtocolVersion {
        /// OpenSSL's words.
        reason: String,
    },
    /// What answers there is not TLS.
    #[error(
        "what answers there does not speak TLS ({reason}): look at `port`, or leave `ca_certs` out if the broker is to be reached in the clear"
    )]
    NoTls {
        /// OpenSSL's words.
        reason: String,
    },
    /// The broker does not know the name that it is called by.
    #[error("the broker does not answer to the name in `server` ({reason})")]
    UnknownName {
        /// The broker's alert.
        reason: String,
    },
    /// Something else in the handshake.
    #[error("the TLS handshake failed: {reason}")]
    Handshake {
        /// What is known.
        reason: String,
    },
    /// `wss` without TLS, or `ws` with it.
    #[error("{address} and `ca_certs` don't go together")]
    Mismatch {
        /// The address.
        address: String,
    },
    /// A web server, but no WebSocket at this path.
    #[error("the server answers HTTP {status} and not with WebSocket: look at host, port and path of `server`")]
    Status {
        /// The status.
        status: u16,
    },
    /// WebSocket, but not for MQTT.
    #[error("the server does not agree on the WebSocket subprotocol `mqtt`: look at the path of `server`")]
    Subprotocol,
    /// The upgrade failed.
    #[error("the WebSocket upgrade failed ({reason}): look at host, port and path of `server`")]
    Upgrade {
        /// Why.
        reason: String,
    },
}

impl ConnectError {
    /// Stable, for machines.
    pub fn code(&self) -> &'static str {
        match self {
            ConnectError::Unresolved { .. } => "unresolved",
            ConnectError::Unreachable { .. } | ConnectError::Socket { .. } => "unreachable",
            ConnectError::TimedOut { .. } => "timed_out",
            ConnectError::Files(_) => "tls_files",
            ConnectError::Untrusted { .. } => "untrusted_certificate",
            ConnectError::WrongName { .. } => "wrong_name",
            ConnectError::Expired { .. } => "expired_certificate",
            ConnectError::NotYetValid { .. } => "certificate_not_yet_valid",
            ConnectError::Certificate { .. } => "bad_certificate",
            ConnectError::ClientCertificateMissing => "client_certificate_missing",
            ConnectError::ClientCertificateRefused { .. } => "client_certificate_refused",
            ConnectError::NoSharedCipher { .. } => "no_shared_cipher",
            ConnectError::ProtocolVersion { .. } => "tls_version",
            ConnectError::NoTls { .. } => "no_tls",
            ConnectError::UnknownName { .. } => "unknown_name",
            ConnectError::Handshake { .. } => "tls_handshake",
            ConnectError::Mismatch { .. } => "mismatch",
            ConnectError::Status { .. } => "http_status",
            ConnectError::Subprotocol => "subprotocol",
            ConnectError::Upgrade { .. } => "websocket_upgrade",
        }
    }
}

/// How a connection that was open was lost. The hint, where nothing was understood before, is for connections that were reset.
pub fn lost(error: &io::Error, hint: &str) -> String {
    let hint = if error.kind() == io::ErrorKind::ConnectionReset { hint } else { "" };
    format!("the connection was lost: {}{hint}", explain(error))
}

/// What an error of a connection that was open means. In TLS 1.3 a client is done before the broker has looked at its certificate, so
/// what the broker thinks of it comes with the first read.
pub(super) fn explain(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ssl::Error>()).and_then(ssl::Error::ssl_error);
    let Some((reason, words)) = inner.and_then(of_ssl) else { return error.to_string() };
    match of_alert(reason, &words, None) {
        Some(error) => error.to_string(),
        None if reason == UNEXPECTED_EOF => "the broker closed the connection without ending TLS".to_owned(),
        None => format!("TLS failed: {words}"),
    }
}

// Reason codes of OpenSSL (`sslerr.h`), stable since 1.1. An alert of the broker is 1000 and its number (RFC 8446 §6).
const ALERT: i32 = 1_000;
const CERTIFICATE_VERIFY_FAILED: i32 = 134;
const NO_CIPHERS_AVAILABLE: i32 = 181;
const PACKET_LENGTH_TOO_LONG: i32 = 198;
const WRONG_CIPHER_RETURNED: i32 = 261;
const UNSUPPORTED_PROTOCOL: i32 = 258;
const WRONG_VERSION_NUMBER: i32 = 267;
const UNEXPECTED_EOF: i32 = 294;
const DH_KEY_TOO_SMALL: i32 = 394;

/// `ERR_LIB_SSL`.
const LIBRARY_SSL: i32 = 20;

/// The newest error of the TLS layer itself: its reason, and OpenSSL's words.
fn of_ssl(stack: &ErrorStack) -> Option<(i32, String)> {
    let error = stack.errors().iter().rev().find(|error| error.library_code() == LIBRARY_SSL)?;
    Some((error.reason_code(), error.reason().unwrap_or("no reason given").to_owned()))
}

/// Why a handshake failed.
pub(super) fn of_handshake(error: &ssl::Error, seen: &Seen, has_identity: bool, host: &str) -> ConnectError {
    if let Some(io) = error.io_error() {
        return closed(&io.to_string(), seen, has_identity);
    }
    let Some((reason, words)) = error.ssl_error().and_then(of_ssl) else { return closed("connection closed", seen, has_identity) };
    let in_handshake = InHandshake { has_certificate: seen.has_certificate, has_identity };
    match reason {
        CERTIFICATE_VERIFY_FAILED => of_certificate(seen, host),
        UNEXPECTED_EOF => closed("connection closed", seen, has_identity),
        WRONG_VERSION_NUMBER | PACKET_LENGTH_TOO_LONG => ConnectError::NoTls { reason: words },
        UNSUPPORTED_PROTOCOL => ConnectError::ProtocolVersion { reason: words },
        NO_CIPHERS_AVAILABLE | WRONG_CIPHER_RETURNED | DH_KEY_TOO_SMALL => ConnectError::NoSharedCipher { reason: words },
        alert => of_alert(alert, &words, Some(in_handshake)).unwrap_or(ConnectError::Handshake { reason: words }),
    }
}

/// The other side has hung up: before it has shown a certificate, it does not know what TLS is; after that, it has its own reason.
fn closed(how: &str, seen: &Seen, has_identity: bool) -> ConnectError {
    match (seen.has_certificate, has_identity) {
        (false, _) => ConnectError::NoTls { reason: format!("{how} during the handshake") },
        (true, false) => {
            ConnectError::Handshake { reason: format!("{how}; if the broker wants a client's certificate, `certfile` is missing") }
        }
        (true, true) => ConnectError::Handshake { reason: format!("{how}; look into the broker's log") },
    }
}

/// How far a handshake has come.
#[derive(Clone, Copy)]
struct InHandshake {
    has_certificate: bool,
    has_identity: bool,
}

/// What an alert of the broker means; none if it is none, or says nothing about an option. `at` is none when the handshake is over.
fn of_alert(reason: i32, words: &str, at: Option<InHandshake>) -> Option<ConnectError> {
    let words = words.to_owned();
    // RFC 8446 §6.2
    match reason - ALERT {
        // Before the broker has shown its certificate there is nothing but versions and ciphers to disagree on; after it, in TLS 1.2, it
        // is the client's certificate.
        40 if at.is_some_and(|at| !at.has_certificate) => Some(ConnectError::NoSharedCipher { reason: words }),
        40 if at.is_some_and(|at| !at.has_identity) => Some(ConnectError::ClientCertificateMissing),
        71 => Some(ConnectError::NoSharedCipher { reason: words }),
        70 => Some(ConnectError::ProtocolVersion { reason: words }),
        112 => Some(ConnectError::UnknownName { reason: words }),
        116 => Some(ConnectError::ClientCertificateMissing),
        // bad, unsupported, revoked, expired and unknown certificate, unknown authority, access denied, a signature that doesn't fit
        40 | 42..=46 | 48 | 49 | 51 => Some(ConnectError::ClientCertificateRefused { reason: words }),
        _ => None,
    }
}

// `X509_V_ERR_…` of OpenSSL (`x509_vfy.h`).
const NOT_YET_VALID: i32 = 9;
const HAS_EXPIRED: i32 = 10;
const HOSTNAME_MISMATCH: i32 = 62;
const IP_ADDRESS_MISMATCH: i32 = 64;
/// No issuer, a signature that is not the issuer's, or an issuer that is not trusted.
const UNTRUSTED: [i32; 7] = [2, 7, 18, 19, 20, 21, 27];

fn of_certificate(seen: &Seen, host: &str) -> ConnectError {
    let Some(refusal) = &seen.refusal else {
        return ConnectError::Certificate { subject: "unknown".to_owned(), reason: "OpenSSL does not say why" };
    };
    let (subject, reason) = (refusal.subject.clone(), refusal.words);
    match refusal.verdict {
        NOT_YET_VALID => ConnectError::NotYetValid { subject, at: refusal.valid.0.clone() },
        HAS_EXPIRED => ConnectError::Expired { subject, at: refusal.valid.1.clone() },
        HOSTNAME_MISMATCH | IP_ADDRESS_MISMATCH => ConnectError::WrongName { host: host.to_owned(), names: refusal.names.clone() },
        verdict if UNTRUSTED.contains(&verdict) => ConnectError::Untrusted { subject, reason },
        _ => ConnectError::Certificate { subject, reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_means_what_it_means_at_its_time() {
        let code = |alert: i32, at: Option<(bool, bool)>| {
            let at = at.map(|(has_certificate, has_identity)| InHandshake { has_certificate, has_identity });
            of_alert(ALERT + alert, "words", at).map(|error| error.code())
        };
        let (early, anonymous, known) = (Some((false, true)), Some((true, false)), Some((true, true)));
        for (alert, at, expected) in [
            (40, early, Some("no_shared_cipher")),
            (40, anonymous, Some("client_certificate_missing")),
            (40, known, Some("client_certificate_refused")),
            (42, known, Some("client_certificate_refused")),
            (45, None, Some("client_certificate_refused")),
            (48, None, Some("client_certificate_refused")),
            (70, early, Some("tls_version")),
            (71, early, Some("no_shared_cipher")),
            (112, early, Some("unknown_name")),
            (116, None, Some("client_certificate_missing")),
            (80, known, None),
        ] {
            assert_eq!(code(alert, at), expected, "{alert} {at:?}");
        }
    }

    #[test]
    fn a_connection_that_was_reset_has_a_hint_and_any_other_error_none() {
        assert_eq!(lost(&io::Error::new(io::ErrorKind::ConnectionReset, "reset"), "; hint"), "the connection was lost: reset; hint");
        assert_eq!(lost(&io::Error::other("no"), "; hint"), "the connection was lost: no");
    }
}
