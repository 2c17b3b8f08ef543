//! TLS by OpenSSL: whom to trust is in the context, whom to expect is said here, and why it failed is read from what is left behind.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use openssl::ssl::{Ssl, SslContext, SslVerifyMode};
use openssl::x509::verify::X509CheckFlags;
use openssl::x509::{X509Ref, X509StoreContextRef};
use tokio_openssl::SslStream;

use super::Encryption;
use super::clear::Clear;
use super::error::{self, ConnectError};
use crate::config::TlsConfig;

/// So many names of a certificate are shown.
const SHOWN_NAMES: usize = 6;

/// So many characters of what a certificate says are shown.
const SHOWN_TEXT: usize = 120;

/// Reads the files, off the runtime's threads.
pub(super) async fn context(tls: &TlsConfig) -> Result<SslContext, ConnectError> {
    let tls = tls.clone();
    match tokio::task::spawn_blocking(move || tls.context()).await {
        Ok(context) => context.map_err(ConnectError::Files),
        Err(error) => Err(ConnectError::Handshake { reason: format!("reading the certificates failed: {error}") }),
    }
}

/// What was seen of the broker's certificate.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The broker has shown one.
    pub has_certificate: bool,
    /// Why it was not taken.
    pub refusal: Option<Refusal>,
}

/// Why a certificate was not taken.
#[derive(Debug)]
pub(super) struct Refusal {
    /// OpenSSL's number of it.
    pub verdict: i32,
    /// OpenSSL's words for it.
    pub words: &'static str,
    /// The certificate's subject.
    pub subject: String,
    /// What the certificate is for.
    pub names: String,
    /// From when and until when it is valid.
    pub valid: (String, String),
}

/// Makes sure that it is the broker which was meant, and that nobody else can listen.
pub(super) async fn handshake(context: &SslContext, host: &str, stream: Clear) -> Result<(SslStream<Clear>, Encryption), ConnectError> {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let ssl = expecting(context, host, Arc::clone(&seen)).map_err(|error| ConnectError::Handshake { reason: error.to_string() })?;
    let mut stream = SslStream::new(ssl, stream).map_err(|error| ConnectError::Handshake { reason: error.to_string() })?;
    if let Err(error) = Pin::new(&mut stream).connect().await {
        let has_identity = context.certificate().is_some();
        return Err(error::of_handshake(&error, &seen.lock().unwrap_or_else(PoisonError::into_inner), has_identity, host));
    }
    let ssl = stream.ssl();
    let agreed = Encryption {
        version: ssl.version_str(),
        cipher: ssl.current_cipher().map_or("none", |cipher| cipher.name()),
        ends: ssl.peer_certificate().and_then(|certificate| TlsConfig::end(certificate.not_after())),
    };
    Ok((stream, agreed))
}

/// The name that the certificate has to hold, host name or address; the former is said to the broker, too (RFC 6066 §3).
fn expecting(context: &SslContext, host: &str, seen: Arc<Mutex<Seen>>) -> Result<Ssl, openssl::error::ErrorStack> {
    let mut ssl = Ssl::new(context)?;
    let expected = ssl.param_mut();
    expected.set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS);
    match host.parse::<IpAddr>() {
        Ok(address) => expected.set_ip(address)?,
        Err(_) => {
            // The dot at the end of a full name is not part of it in certificates. An empty name would switch the check off.
            let name = host.strip_suffix('.').filter(|name| !name.is_empty()).unwrap_or(host);
            expected.set_host(name)?;
            ssl.set_hostname(name)?;
        }
    }
    ssl.set_verify_callback(SslVerifyMode::PEER, move |is_good, certificates| {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.has_certificate = true;
        if !is_good && seen.refusal.is_none() {
            seen.refusal = Some(refusal(certificates));
        }
        is_good
    });
    Ok(ssl)
}

fn refusal(certificates: &X509StoreContextRef) -> Refusal {
    let (verdict, certificate) = (certificates.error(), certificates.current_cert());
    let valid = |certificate: &X509Ref| (certificate.not_before().to_string(), certificate.not_after().to_string());
    Refusal {
        verdict: verdict.as_raw(),
        words: verdict.error_string(),
        subject: certificate.map(subject).unwrap_or_default(),
        names: certificate.map(names).unwrap_or_default(),
        valid: certificate.map(valid).unwrap_or_default(),
    }
}

/// What stands in a certificate was written by who knows whom.
fn shown(text: &str) -> String {
    text.escape_debug().take(SHOWN_TEXT).collect()
}

fn subject(certificate: &X509Ref) -> String {
    let entries = certificate.subject_name().entries();
    let entries =
        entries.filter_map(|entry| Some(format!("{}={}", entry.object().nid().short_name().ok()?, entry.data().to_string().ok()?)));
    match entries.collect::<Vec<_>>().join(", ") {
        subject if subject.is_empty() => "without a subject".to_owned(),
        subject => shown(&subject),
    }
}

fn names(certificate: &X509Ref) -> String {
    let alternatives = certificate.subject_alt_names();
    let mut names: Vec<String> = alternatives
        .iter()
        .flatten()
        .filter_map(|name| {
            let address = |bytes: &[u8]| {
                let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
                four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok().map(|address| address.to_string())
            };
            name.dnsname().map(shown).or_else(|| address(name.ipaddress()?))
        })
        .collect();
    if names.is_empty() {
        names.push(subject(certificate));
    }
    let more = names.len().saturating_sub(SHOWN_NAMES);
    names.truncate(SHOWN_NAMES);
    let names = names.join(", ");
    if more > 0 { format!("{names} and {more} more") } else { names }
}
