//! Who may ask: no web page, unless it is the service's own.
//!
//! A service on loopback is reached by everything that runs on the machine, and that includes every page open in a browser there.
//! Two things keep pages out:
//!
//! * **Host.** With *DNS rebinding* a page of `evil.example` has its own name resolve to 127.0.0.1 after it was loaded. To the browser the
//!   service is then the page's own site: the page may read and post whatever it likes. But the browser still sends `Host:
//!   evil.example`. So on loopback only names that mean this machine are answered.
//! * **Origin.** Browsers say which page a cross-site post comes from, and don't ask first for the simple ones. So a request
//!   with an `Origin` that is not the service's own is refused, on every listener.
//!
//! On other addresses the service doesn't know by which names it is reached, so `Host` is not checked there; tokens keep strangers out.

use std::net::IpAddr;

use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, Request, StatusCode, Version};

use super::error::ApiError;

/// What is asked of every request on a listener.
#[derive(Debug, Clone, Copy)]
pub struct Guard {
    /// The listener's address; none if the system doesn't tell.
    address: Option<IpAddr>,
}

impl Guard {
    /// The guard of a listener on this address.
    pub fn of(address: Option<IpAddr>) -> Self {
        Guard { address }
    }

    /// Lets a request pass, or says why not.
    ///
    /// # Errors
    /// 400 without a usable `Host`, 403 for a foreign `Host` or `Origin`. The request's body is not read then.
    pub fn check<B>(&self, request: &Request<B>) -> Result<(), ApiError> {
        let host = single(request.headers(), HOST)?;
        // HTTP/1.0 has no Host, and no browser speaks it.
        if host.is_none() && request.version() > Version::HTTP_10 {
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_host", "a request needs a Host header (RFC 9112 §3.2)").closing());
        }
        // A request line may carry a name of its own (`GET http://name/ HTTP/1.1`), which counts more than the header.
        let names = [host, request.uri().authority().map(|authority| authority.as_str())];
        for name in names.into_iter().flatten() {
            if !self.is_own(name) {
                let message = format!(
                    "this service answers to localhost and its address only, and not to {name:?}; if that is meant to be its name, put a proxy in front that sets Host"
                );
                return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden_host", message).closing());
            }
        }
        let Some(origin) = single(request.headers(), ORIGIN)? else { return Ok(()) };
        let own = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if own.zip(host).is_some_and(|(origin, host)| origin.eq_ignore_ascii_case(host)) {
            return Ok(());
        }
        Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden_origin", format!("web pages of {origin:?} may not talk to this service"))
            .closing())
    }

    /// Whether `host`, with or without a port, means this service.
    fn is_own(&self, host: &str) -> bool {
        let Some(address) = self.address.filter(IpAddr::is_loopback) else { return true };
        let name = name_of(host);
        if name.trim_end_matches('.').eq_ignore_ascii_case("localhost") {
            return true;
        }
        name.parse::<IpAddr>().is_ok_and(|named| named.is_loopback() || named == address)
    }
}

/// The value of a header that may be there once.
fn single(headers: &HeaderMap, name: HeaderName) -> Result<Option<&str>, ApiError> {
    let code = if name == HOST { "invalid_host" } else { "forbidden_origin" };
    let refuse = |what: &str| ApiError::new(StatusCode::BAD_REQUEST, code, format!("the header {name} {what}")).closing();
    let mut values = headers.get_all(&name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(refuse("is given more than once"));
    }
    value.to_str().map(Some).map_err(|_| refuse("is not visible ASCII"))
}

/// The host without its port and brackets: `[::1]:80` → `::1`.
fn name_of(host: &str) -> &str {
    if let Some(bracketed) = host.strip_prefix('[') {
        return bracketed.split(']').next().unwrap_or_default();
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(address: &str, headers: &[(&str, &str)]) -> Result<(), StatusCode> {
        let mut request = Request::get("/metrics");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let guard = Guard::of(Some(address.parse().unwrap()));
        guard.check(&request.body(()).unwrap()).map_err(|error| {
            use axum::response::IntoResponse;
            error.into_response().status()
        })
    }

    #[test]
    fn on_loopback_every_name_of_this_machine_is_answered_at_any_port() {
        for host in ["localhost", "LOCALHOST:8470", "localhost.:1", "127.0.0.1", "127.0.0.1:8470", "127.9.8.7:1", "[::1]", "[::1]:8470"] {
            assert_eq!(ask("127.0.0.1", &[("host", host)]), Ok(()), "{host}");
        }
    }

    #[test]
    fn a_rebound_name_is_refused_on_loopback_and_not_elsewhere() {
        for host in
            ["evil.example", "evil.example:8470", "localhost.evil.example", "127.0.0.1.evil.example", "", "192.0.2.1", "[::2]:1", "0.0.0.0"]
        {
            assert_eq!(ask("127.0.0.1", &[("host", host)]), Err(StatusCode::FORBIDDEN), "{host}");
        }
        assert_eq!(ask("192.0.2.7", &[("host", "tidings.example")]), Ok(()));
    }

    #[test]
    fn a_request_without_one_host_is_refused() {
        assert_eq!(ask("127.0.0.1", &[]), Err(StatusCode::BAD_REQUEST));
        assert_eq!(ask("127.0.0.1", &[("host", "localhost"), ("host", "localhost")]), Err(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn a_name_in_the_request_line_is_checked_too() {
        let guard = Guard::of(Some("127.0.0.1".parse().unwrap()));
        let request = Request::get("http://evil.example/metrics").header("host", "localhost").body(()).unwrap();
        assert!(guard.check(&request).is_err());
    }

    #[test]
    fn only_the_services_own_pages_may_ask() {
        let own = [("host", "localhost:8470"), ("origin", "http://localhost:8470")];
        assert_eq!(ask("127.0.0.1", &own), Ok(()));
        for origin in ["http://localhost:3000", "http://evil.example", "null", "", "http://localhost:8470.evil.example", "file://"] {
            assert_eq!(ask("127.0.0.1", &[("host", "localhost:8470"), ("origin", origin)]), Err(StatusCode::FORBIDDEN), "{origin}");
            assert_eq!(ask("192.0.2.7", &[("host", "localhost:8470"), ("origin", origin)]), Err(StatusCode::FORBIDDEN), "{origin}");
        }
    }
}
