//! TLS to a broker: the files and the cipher string that a connection names, and what OpenSSL makes of them.
//!
//! What is checked when the configuration is read is what is done at each connect, because it is the same function:
//! [`TlsConfig::context`] reads the files anew each time, so that certificates which were renewed are taken up without a restart.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslVerifyMode, SslVersion};
use openssl::x509::X509;
use openssl::x509::store::{X509Store, X509StoreBuilder};

/// The largest PEM file, in bytes: the bundle of a whole operating system has a quarter of a MiB.
const MAX_PEM: u64 = 4 << 20;

/// So many files of a folder are read as certificates at most.
const MAX_CERTIFICATES: usize = 2_000;

/// What stands for `ciphers` that are left out: what Python's `ssl` had for years, and so Zuul. It governs TLS 1.2 only.
const DEFAULT_CIPHERS: &str = "DEFAULT:!aNULL:!eNULL:!MD5:!3DES:!DES:!RC4:!IDEA:!SEED:!aDSS:!SRP:!PSK";

/// How a connection is encrypted, and who the broker and Tidings are to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// The authorities that may have issued the broker's certificate, and no others: a PEM file, or a folder of them.
    pub ca_certs: PathBuf,
    /// Who Tidings is, if the broker asks.
    pub identity: Option<Identity>,
    /// An OpenSSL cipher list for TLS 1.2. The suites of TLS 1.3 are not governed by it, as in Python's `ssl`.
    pub ciphers: Option<String>,
}

/// The client's certificate and key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// A PEM file: the certificate, and after it those that lead to its authority.
    pub certfile: PathBuf,
    /// A PEM file: the certificate's private key, not encrypted.
    pub keyfile: PathBuf,
}

/// What is wrong with one of the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFault {
    /// `ca_certs`, `certfile`, `keyfile` or `ciphers`.
    pub key: &'static str,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.key, self.message)
    }
}

/// Everything that is wrong with the keys of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFaults(pub Vec<TlsFault>);

impl fmt::Display for TlsFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, fault) in self.0.iter().enumerate() {
            write!(f, "{}{fault}", if place > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

impl std::error::Error for TlsFaults {}

impl TlsConfig {
    /// Reads the files, and makes of everything what connections are opened with: TLS 1.2 or newer, the broker's certificate required.
    /// The broker's name is not part of it.
    ///
    /// # Errors
    /// Everything that is wrong. No message holds what a key file holds.
    pub fn context(&self) -> Result<SslContext, TlsFaults> {
        let mut faults = Vec::new();
        let mut note = |key, message| faults.push(TlsFault { key, message });
        let mut context = match empty_context() {
            Ok(context) => context,
            Err(error) => return Err(TlsFaults(vec![TlsFault { key: "ca_certs", message: reason(&error) }])),
        };
        match authorities(&self.ca_certs) {
            Ok(store) => context.set_cert_store(store),
            Err(message) => note("ca_certs", message),
        }
        if let Some(identity) = &self.identity {
            use_identity(&mut context, identity, &mut note);
        }
        if let Some(ciphers) = &self.ciphers
            && let Err(message) = use_ciphers(&mut context, ciphers)
        {
            note("ciphers", message);
        }
        if faults.is_empty() { Ok(context.build()) } else { Err(TlsFaults(faults)) }
    }
}

fn empty_context() -> Result<SslContextBuilder, ErrorStack> {
    let mut context = SslContext::builder(SslMethod::tls_client())?;
    // What is to be written grows, and may move, between two attempts to write it.
    context.set_mode(SslMode::AUTO_RETRY | SslMode::ACCEPT_MOVING_WRITE_BUFFER | SslMode::ENABLE_PARTIAL_WRITE | SslMode::RELEASE_BUFFERS);
    context.set_options(SslOptions::NO_COMPRESSION | SslOptions::NO_RENEGOTIATION);
    context.set_verify(SslVerifyMode::PEER);
    context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    context.set_cipher_list(DEFAULT_CIPHERS)?;
    Ok(context)
}

fn use_identity(context: &mut SslContextBuilder, identity: &Identity, note: &mut impl FnMut(&'static str, String)) {
    let chain = certificates(&identity.certfile).and_then(|chain| {
        let path = identity.certfile.display();
        let mut chain = chain.into_iter();
        let Some(own) = chain.next() else { return Err(format!("{path} holds no certificate in PEM")) };
        let used = context.set_certificate(&own).and_then(|()| chain.try_for_each(|issuer| context.add_extra_chain_cert(issuer)));
        used.map_err(|error| format!("{path} can't be used: {}", reason(&error))).map(|()| own)
    });
    let chain = chain.map_err(|message| note("certfile", message));
    let key = private_key(&identity.keyfile).map_err(|message| note("keyfile", message));
    let (Ok(own), Ok(key)) = (chain, key) else { return };
    let path = identity.keyfile.display();
    if !own.public_key().is_ok_and(|public| public.public_eq(&key)) {
        note("keyfile", format!("{path} is not the key of the certificate in {}", identity.certfile.display()));
    } else if let Err(error) = context.set_private_key(&key) {
        note("keyfile", format!("{path} can't be used: {}", reason(&error)));
    }
}

fn use_ciphers(context: &mut SslContextBuilder, ciphers: &str) -> Result<(), String> {
    // OpenSSL reads up to a zero byte.
    if ciphers.contains(|c: char| c.is_control()) {
        return Err("expected an OpenSSL cipher list without control characters".to_owned());
    }
    context.set_cipher_list(ciphers).map_err(|error| {
        format!("OpenSSL can select no cipher by this list ({}); try it with `openssl ciphers -v -tls1_2 'LIST'`. It governs TLS 1.2: the suites of TLS 1.3 are always on", reason(&error))
    })
}

/// The authorities in a file, or in every certificate file of a folder.
fn authorities(path: &Path) -> Result<X509Store, String> {
    let found = authorities_in(path)?;
    if found.is_empty() {
        return Err(format!("{} holds no certificate in PEM", path.display()));
    }
    let made = X509StoreBuilder::new().and_then(|mut store| {
        found.into_iter().try_for_each(|certificate| store.add_cert(certificate))?;
        Ok(store.build())
    });
    made.map_err(|error| format!("{} can't be used: {}", path.display(), reason(&error)))
}

pub(super) fn authorities_in(path: &Path) -> Result<Vec<X509>, String> {
    if path.is_dir() { folder(path) } else { certificates(path) }
}

/// Every certificate in the files of a folder that are called as certificates are.
fn folder(path: &Path) -> Result<Vec<X509>, String> {
    let unreadable = |error: std::io::Error| format!("{} can't be read: {error}", path.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        if is_certificate_file(&file) {
            files.push(file);
        }
        if files.len() > MAX_CERTIFICATES {
            return Err(format!("{} has more than {MAX_CERTIFICATES} files of certificates", path.display()));
        }
    }
    let mut found = Vec::new();
    for file in files {
        found.extend(certificates(&file)?);
    }
    Ok(found)
}

/// By its ending, or by a hash and a number as `openssl rehash` names it.
fn is_certificate_file(path: &Path) -> bool {
    let Some(ending) = path.extension().and_then(|ending| ending.to_str()) else { return false };
    let is_hashed = || path.file_stem().is_some_and(|stem| stem.len() == 8 && stem.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit));
    ["pem", "crt", "cer"].contains(&ending) || (ending.bytes().all(|byte| byte.is_ascii_digit()) && is_hashed())
}

pub(super) fn certificates(path: &Path) -> Result<Vec<X509>, String> {
    let pem = read(path)?;
    X509::stack_from_pem(&pem).map_err(|error| format!("{} holds a certificate that can't be read: {}", path.display(), reason(&error)))
}

fn private_key(path: &Path) -> Result<PKey<Private>, String> {
    let pem = read(path)?;
    let path = path.display();
    let mut is_encrypted = false;
    let key = PKey::private_key_from_pem_callback(&pem, |_| {
        is_encrypted = true;
        Err(ErrorStack::get())
    });
    match key {
        Ok(key) => Ok(key),
        Err(_) if is_encrypted => {
            Err(format!("{path} is encrypted; Tidings has nobody to ask for its passphrase: decrypt it with `openssl pkey`"))
        }
        Err(error) => Err(format!("{path} holds no private key in PEM ({})", reason(&error))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_PEM + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => Err(format!("{} can't be read: {error}", path.display())),
        Ok(_) if bytes.len() as u64 > MAX_PEM => Err(format!("{} has more than {MAX_PEM} bytes", path.display())),
        Ok(_) => Ok(bytes),
    }
}

/// OpenSSL's words, without the places in its own source.
fn reason(error: &ErrorStack) -> String {
    let words = error.errors().iter().rev().find_map(|error| error.reason());
    words.unwrap_or("OpenSSL does not say why").to_owned()
}

#[cfg(test)]
pub(super) mod tests;
