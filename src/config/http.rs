//! `[http]`: where the API is, who may come in, and how much at once.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use super::listener::{self, ListenerTls};
use super::raw::Table;
use super::tokens::{self, TokenConfig};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A report of a start is about half a KiB. A report is one MQTT packet and is held whole in memory, on both sides. What is stored with it, and its history
/// when it is carried forward, takes the last of the 16 MiB that an event may have.
const MAX_REPORT: RangeInclusive<u64> = KIB..=15 * MIB;
/// A body is one commit, and everything that waits, waits for it.
const MAX_BATCH: RangeInclusive<u64> = KIB..=64 * MIB;
/// More than a hundred thousand requests a second no machine answers; 0 is no limit.
const RATE: RangeInclusive<u64> = 0..=100_000;

/// `[http]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Where the API, metrics and dashboard are served. Beyond loopback only with tokens, or by the operator's word.
    pub listen: SocketAddr,
    /// The largest report, in bytes.
    pub max_report: usize,
    /// The largest request body, in bytes; at least `max_report`.
    pub max_batch: usize,
    /// Who may come in; none: whoever reaches the port may do everything.
    pub tokens: Vec<TokenConfig>,
    /// Whether `/metrics` is for everybody who reaches the port.
    pub open_metrics: bool,
    /// So many requests a second of one token, or of one address where there are no tokens; none: no limit.
    pub rate: Option<u32>,
    /// Whoever reaches the port beyond loopback may do everything, and that is meant.
    pub anonymous: bool,
    /// HTTPS, if it is asked for.
    pub tls: Option<ListenerTls>,
    /// What is right but probably not meant.
    pub notes: Vec<String>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 8470)),
            max_report: 1 << 20,
            max_batch: 4 << 20,
            tokens: Vec::new(),
            open_metrics: true,
            rate: None,
            anonymous: false,
            tls: None,
            notes: Vec::new(),
        }
    }
}

impl HttpConfig {
    /// What is wrong with being reached from other machines under these rules, if anything is.
    pub fn exposure(&self, listen: SocketAddr) -> Option<&'static str> {
        let is_open = !listen.ip().is_loopback() && self.tokens.is_empty() && !self.anonymous;
        is_open.then_some(
            "beyond loopback (127.0.0.1, [::1]) whoever comes has to show a token of `tokens`; \
             or write `anonymous = true`: then anybody who reaches the port may post, read and decide",
        )
    }
}

/// The section. What is wrong is noted.
pub(super) fn http(table: Option<Table<'_>>, environment: &dyn Fn(&str) -> Option<String>) -> HttpConfig {
    let default = HttpConfig::default();
    let Some(mut table) = table else { return default };
    let expected = format!("an address and a port such as \"{}\"", default.listen);
    let listen = table.field("listen", default.listen, expected, |item| item.as_text()?.parse::<SocketAddr>().ok());
    let mut notes = Vec::new();
    let given = table.take("tokens");
    let has_tokens = given.is_some();
    let tokens = given.map(|item| tokens::all(item, environment, &mut notes)).unwrap_or_default();
    let anonymous = table.field("anonymous", false, "true or false", |item| item.as_flag());
    if anonymous.value && has_tokens {
        table.mistake("anonymous", anonymous.line, "says that anybody may do everything, and `tokens` say who may: leave one out");
    }
    let metrics = table.field("metrics", !has_tokens, "\"anyone\" or \"token\"", |item| match item.as_text() {
        Some("anyone") => Some(true),
        Some("token") => Some(false),
        _ => None,
    });
    if !metrics.wrong && !metrics.value && !has_tokens {
        table.mistake("metrics", metrics.line, "asks for a token, and there are no `tokens`");
    }
    let expected = format!("a whole number of requests per second, up to {}; 0 for no limit", RATE.end());
    let read = |item: &super::raw::Item<'_>| item.as_whole().filter(|rate| RATE.contains(rate)).and_then(|rate| u32::try_from(rate).ok());
    let rate = table.field("rate", 0, expected, read).value;
    let (tls, _) = listener::tls(&mut table, false);
    let max_report = table.size("max_report", MAX_REPORT, default.max_report as u64);
    let max_batch = table.size("max_batch", MAX_BATCH, default.max_batch as u64);
    if !max_report.wrong && !max_batch.wrong && max_report.value > max_batch.value {
        let (culprit, line) = if max_report.line.is_some() { ("max_report", max_report.line) } else { ("max_batch", max_batch.line) };
        let sizes = (super::format_size(max_report.value), super::format_size(max_batch.value));
        table.mistake(
            culprit,
            line,
            format_args!("`max_report` ({}) can't be larger than `max_batch` ({}), the largest body", sizes.0, sizes.1),
        );
    }
    if !listen.value.ip().is_loopback() && tls.is_none() {
        notes.push(format!(
            "http {}: tokens and reports come unencrypted; give `certfile` and `keyfile`, or have a proxy with TLS in front",
            listen.value
        ));
    }
    // The bounds above fit any usize that Tidings can be built for.
    let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    let http = HttpConfig {
        listen: listen.value,
        max_report: bytes(max_report.value),
        max_batch: bytes(max_batch.value),
        tokens,
        open_metrics: metrics.value,
        rate: (rate > 0).then_some(rate),
        anonymous: anonymous.value,
        tls,
        notes,
    };
    if let Some(message) = http.exposure(http.listen)
        && !has_tokens
        && !anonymous.wrong
    {
        table.mistake("listen", listen.line, message);
    }
    table.finish();
    http
}

#[cfg(test)]
mod tests {
    use super::super::from_str;
    use super::*;

    const TOKEN: &str =
        "tokens = [{ name = 'ci', role = 'ingest', sha256 = 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' }]\n";

    fn load(lines: &str) -> Result<HttpConfig, String> {
        from_str(&format!("[http]\n{lines}\n"), "t").map(|config| config.http).map_err(|errors| errors.to_string())
    }

    #[test]
    fn beyond_loopback_somebody_has_to_be_asked_who_he_is() {
        for listen in ["127.0.0.1:0", "127.9.9.9:80", "[::1]:8470"] {
            assert_eq!(load(&format!("listen = '{listen}'")).unwrap().notes, [""; 0]);
        }
        for listen in ["0.0.0.0:8470", "192.0.2.1:8470", "[::]:8470", "[::ffff:192.0.2.1]:8470"] {
            let open = format!("listen = '{listen}'\n");
            let refused = load(&open).unwrap_err();
            assert!(refused.starts_with("t:2: http.listen: beyond loopback"), "{refused}");
            assert!(load(&format!("{open}anonymous = false")).is_err());
            for word in ["anonymous = true", TOKEN] {
                let notes = load(&(open.clone() + word)).unwrap().notes;
                assert!(notes[0].contains("come unencrypted"), "{notes:?}");
            }
        }
        assert!(load(&format!("anonymous = true\n{TOKEN}")).unwrap_err().contains("http.anonymous: says that anybody may do everything"));
    }

    #[test]
    fn metrics_are_for_who_has_a_token_where_there_are_tokens_unless_it_is_said() {
        assert!(load("").unwrap().open_metrics);
        assert!(!load(TOKEN).unwrap().open_metrics);
        assert!(load(&format!("{TOKEN}metrics = 'anyone'")).unwrap().open_metrics);
        assert!(load("metrics = 'token'").unwrap_err().contains("http.metrics: asks for a token, and there are no `tokens`"));
        assert!(load("metrics = 'none'").unwrap_err().contains("http.metrics: expected \"anyone\" or \"token\""));
    }

    #[test]
    fn a_rate_is_a_number_and_none_unless_it_is_said() {
        assert_eq!((load("").unwrap().rate, load("rate = 0").unwrap().rate, load("rate = 50").unwrap().rate), (None, None, Some(50)));
        assert!(load("rate = -1").unwrap_err().contains("http.rate: expected a whole number"));
    }

    #[test]
    fn certificate_and_key_come_together_and_are_read() {
        assert!(load("certfile = 'x'").unwrap_err().contains("http.certfile: `certfile` and `keyfile` come together"));
        let found = load("certfile = '/nowhere/cert'\nkeyfile = '/nowhere/key'").unwrap_err();
        assert!(found.starts_with("t:2: http.certfile: /nowhere/cert can't be read"), "{found}");
        assert!(load("client_ca = 'x'").unwrap_err().contains("http.client_ca: unknown key"));
    }
}
