//! When the certificates end that a configuration names, so that somebody hears of it before they do.

use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::x509::X509;

use super::listener::ListenerTls;
use super::tls::{self, TlsConfig};

/// The option that names a file, and the Unix time at which what it holds is of no use any more.
pub type End = (&'static str, i64);

impl TlsConfig {
    /// When its certificates end. What can't be read has no end: whoever uses it says so. Reads the files.
    pub fn ends(&self) -> Vec<End> {
        let authorities = tls::authorities_in(&self.ca_certs).ok().and_then(|found| last(&found)).map(|end| ("ca_certs", end));
        let own = self.identity.as_ref().and_then(|identity| first(&tls::certificates(&identity.certfile).ok()?));
        authorities.into_iter().chain(own.map(|end| ("certfile", end))).collect()
    }

    /// When a certificate ends, as a Unix time; none if it does not say so in a way that can be read.
    pub fn end(not_after: &Asn1TimeRef) -> Option<i64> {
        let span = Asn1Time::from_unix(0).ok()?.diff(not_after).ok()?;
        Some(i64::from(span.days) * 86_400 + i64::from(span.secs))
    }
}

impl ListenerTls {
    /// When its certificates end; see [`TlsConfig::ends`].
    pub fn ends(&self) -> Vec<End> {
        let own = tls::certificates(&self.certfile).ok().and_then(|chain| first(&chain)).map(|end| ("certfile", end));
        let clients = self.client_ca.as_ref().and_then(|path| last(&tls::certificates(path).ok()?));
        own.into_iter().chain(clients.map(|end| ("client_ca", end))).collect()
    }
}

/// A chain is as good as the first of its certificates to end.
fn first(chain: &[X509]) -> Option<i64> {
    chain.iter().filter_map(|certificate| TlsConfig::end(certificate.not_after())).min()
}

/// Of authorities one is enough: which of a bundle is used nobody knows here, and old ones stay in bundles for years.
fn last(authorities: &[X509]) -> Option<i64> {
    authorities.iter().filter_map(|certificate| TlsConfig::end(certificate.not_after())).max()
}
