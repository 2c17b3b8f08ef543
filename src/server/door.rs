//! Who comes in: tokens, and which of them opens what.
//!
//! ```text
//!   Authorization: Bearer … ─▶ SHA-256 ─▶ compared with every token's, in constant time ─▶ its role against [`TABLE`] ─▶ the route, with its Caller
//!     none, or wrong: 401        again and again: 429                                          not enough: 403
//! ```
//! Nothing of a body has been read by then. A token is never logged, and never kept: what is compared are hashes of it.
//!
//! Without tokens whoever reaches the port may do everything; the configuration refuses that beyond loopback, unless it is said in so many words.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::HttpBody;
use axum::extract::MatchedPath;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use openssl::memcmp;
use openssl::sha::sha256;
use tokio::sync::watch;

use super::caller::{Caller, Role};
use super::error::ApiError;
use super::lines::Lines;
use super::tally::Tally;
use super::tls::Acceptor;
use crate::core::access::TokenHash;

/// So many wrong tokens of one address are answered in a minute before it is told to wait. Enough for a fleet of clients behind one address whose token
/// was changed; a right token is let in at any time.
const WRONG_TOKENS: u32 = 30;

/// In this time.
const WRONG_TOKENS_IN: Duration = Duration::from_secs(60);

/// So many addresses are counted at once, and so many tokens: about 100 KiB.
const MOST_COUNTED: usize = 1_024;

/// What a route asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// No token: whether the service is alive, and what only says how to ask.
    Nothing,
    /// A token that may read, unless the configuration says that anyone may (`http.metrics`).
    Metrics,
    /// A token of this role.
    Token(Role),
}

/// Whose reports a route is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// It shows and changes what belongs to the caller's tenants, and nothing else; or says nothing about tenants.
    Tenants,
    /// It concerns the service as a whole: not for tokens with `tenants`.
    Service,
}

/// A route, and what it asks for.
#[derive(Debug, Clone)]
pub struct Row {
    /// The method. GET stands for HEAD, too.
    pub method: Method,
    /// As the router has it.
    pub path: &'static str,
    /// Which token.
    pub needs: Needs,
    /// Whose reports.
    pub scope: Scope,
}

const fn row(method: Method, path: &'static str, needs: Needs, scope: Scope) -> Row {
    Row { method, path, needs, scope }
}

const READ: Needs = Needs::Token(Role::Read);
const INGEST: Needs = Needs::Token(Role::Ingest);
const ADMIN: Needs = Needs::Token(Role::Admin);

/// What every route asks for. What is not in here, another method of a route included, is for `admin` tokens without tenants: nobody gets in by
/// a row that was forgotten. `tests/security` holds it against the routers.
pub const TABLE: &[Row] = &[
    row(Method::GET, "/", Needs::Nothing, Scope::Tenants),
    row(Method::GET, "/openapi.json", Needs::Nothing, Scope::Tenants),
    row(Method::GET, "/healthz", Needs::Nothing, Scope::Tenants),
    row(Method::GET, "/readyz", Needs::Nothing, Scope::Tenants),
    row(Method::GET, "/metrics", Needs::Metrics, Scope::Tenants),
    row(Method::POST, "/v1/reports", INGEST, Scope::Tenants),
    row(Method::GET, "/v1/status", READ, Scope::Tenants),
    row(Method::GET, "/v1/history", READ, Scope::Tenants),
    row(Method::GET, "/v1/events", READ, Scope::Tenants),
    row(Method::GET, "/v1/deliveries", READ, Scope::Tenants),
    row(Method::GET, "/v1/deliveries/{id}", READ, Scope::Tenants),
    row(Method::GET, "/v1/deliveries/{id}/payload", READ, Scope::Tenants),
    row(Method::POST, "/v1/deliveries/discard", ADMIN, Scope::Tenants),
    row(Method::POST, "/v1/dead/requeue", ADMIN, Scope::Tenants),
    row(Method::POST, "/v1/dead/discard", ADMIN, Scope::Tenants),
    row(Method::GET, "/v1/replays", READ, Scope::Tenants),
    row(Method::POST, "/v1/replays", ADMIN, Scope::Tenants),
    row(Method::GET, "/v1/replays/{id}", READ, Scope::Tenants),
    row(Method::DELETE, "/v1/replays/{id}", ADMIN, Scope::Tenants),
    row(Method::GET, "/v1/audit", READ, Scope::Service),
    row(Method::POST, "/v1/moves", ADMIN, Scope::Service),
    row(Method::POST, "/v1/backups", ADMIN, Scope::Service),
    row(Method::PUT, "/v1/backups/{id}", ADMIN, Scope::Service),
    row(Method::DELETE, "/v1/backups/{id}", ADMIN, Scope::Service),
];

/// What the page at `/` loads stands below this, and holds no data: it is a part of the program.
const PAGE: &str = "/page/";

/// What a request asks for, by its method and the route that it has found.
pub fn wanted(method: &Method, path: &str) -> (Needs, Scope) {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    if method == Method::GET && path.starts_with(PAGE) {
        return (Needs::Nothing, Scope::Tenants);
    }
    let row = TABLE.iter().find(|row| row.path == path && row.method == *method);
    row.map_or((ADMIN, Scope::Service), |row| (row.needs, row.scope))
}

/// A token, and who shows it.
#[derive(Debug, Clone)]
pub struct Token {
    /// What is left of it.
    pub hash: TokenHash,
    /// Who it is.
    pub caller: Caller,
}

/// What is asked of whoever comes. The configuration says it, also while the service runs.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Who may come in; none: everybody, for everything.
    pub tokens: Vec<Token>,
    /// `/metrics` is for everybody.
    pub open_metrics: bool,
    /// So many requests a second of one token; or of one address, where there are no tokens.
    pub rate: Option<u32>,
    /// HTTPS, and nothing else.
    pub tls: Option<Arc<Acceptor>>,
}

/// Where a request comes from. Every request carries it among its extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// Whose requests are counted.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Counted {
    Token(String),
    Address(IpAddr),
}

/// Why somebody was not let in: stable names for answers, metrics and logs.
pub mod codes {
    /// No token, or one that nobody knows.
    pub const UNAUTHORIZED: &str = "unauthorized";
    /// The token's role is not enough.
    pub const FORBIDDEN: &str = "forbidden";
    /// The token is for some tenants only.
    pub const FORBIDDEN_TENANT: &str = "forbidden_tenant";
    /// Wrong tokens came again and again.
    pub const TOO_MANY_ATTEMPTS: &str = "too_many_attempts";
    /// Too many requests.
    pub const RATE_LIMITED: &str = "rate_limited";
    /// TLS did not come about.
    pub const TLS: &str = "tls";
    /// All of them.
    pub const ALL: [&str; 6] = [UNAUTHORIZED, FORBIDDEN, FORBIDDEN_TENANT, TOO_MANY_ATTEMPTS, RATE_LIMITED, TLS];
}

/// What refusals are counted with, by their code.
pub type Count = dyn Fn(&'static str) + Send + Sync;

/// The door.
pub struct Door {
    rules: watch::Receiver<Arc<Rules>>,
    wrong: Mutex<Tally<IpAddr>>,
    requests: Mutex<Tally<Counted>>,
    lines: Mutex<Lines>,
    count: Box<Count>,
}

impl Door {
    /// A door with these rules, as they are at each request.
    pub fn new(rules: watch::Receiver<Arc<Rules>>, count: Box<Count>) -> Door {
        Door {
            rules,
            wrong: Mutex::new(Tally::new(WRONG_TOKENS_IN, MOST_COUNTED)),
            requests: Mutex::new(Tally::new(Duration::from_secs(1), MOST_COUNTED)),
            lines: Mutex::default(),
            count,
        }
    }

    /// A door that everybody may pass.
    pub fn open() -> Door {
        // Rules that nobody changes any more can still be read.
        Door::new(watch::channel(Arc::default()).1, Box::new(|_| {}))
    }

    /// What connections are accepted with, if it is HTTPS.
    pub fn acceptor(&self) -> Option<Arc<Acceptor>> {
        self.rules.borrow().tls.clone()
    }

    /// Lets a request pass that has found its route, and says who asks; or says why not. Its body is not read.
    ///
    /// # Errors
    /// 401, 403 or 429, see [`codes`].
    pub fn admit<B: HttpBody>(&self, request: &Request<B>) -> Result<Caller, ApiError> {
        let Some(path) = request.extensions().get::<MatchedPath>() else {
            // There is nothing there, and that is no secret.
            return Ok(Caller::nobody());
        };
        let rules = self.rules.borrow();
        let peer = request.extensions().get::<Peer>().map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |peer| network_of(peer.0));
        let (needs, scope) = wanted(request.method(), path.as_str());
        let judged = self.judge(&rules, request.headers(), peer, needs, scope);
        judged.map_err(|(code, error)| {
            (self.count)(code);
            self.say(peer, code, request.method(), path.as_str());
            // A client that still sends would take the rest of its body for the next request.
            if request.body().is_end_stream() { error } else { error.closing() }
        })
    }

    fn judge(
        &self,
        rules: &Rules,
        headers: &HeaderMap,
        peer: IpAddr,
        needs: Needs,
        scope: Scope,
    ) -> Result<Caller, (&'static str, ApiError)> {
        let needed = match needs {
            Needs::Nothing => return Ok(Caller::nobody()),
            Needs::Metrics if rules.open_metrics || rules.tokens.is_empty() => return Ok(Caller::nobody()),
            Needs::Metrics => Role::Read,
            Needs::Token(role) => role,
        };
        if rules.tokens.is_empty() {
            self.pace(rules.rate, Counted::Address(peer))?;
            return Ok(Caller::local());
        }
        let caller = self.recognise(rules, headers, peer)?;
        let name = caller.token().unwrap_or_default();
        if !caller.role().may(needed) {
            let message = format!("the token {name} has the role {}, and this needs {} or admin", caller.role().name(), needed.name());
            return Err((codes::FORBIDDEN, ApiError::new(StatusCode::FORBIDDEN, "forbidden", message)));
        }
        if scope == Scope::Service && caller.tenants().is_some() {
            let message = format!("this concerns the whole service, and the token {name} is for some tenants only");
            return Err((codes::FORBIDDEN_TENANT, ApiError::new(StatusCode::FORBIDDEN, "forbidden_tenant", message)));
        }
        self.pace(rules.rate, Counted::Token(name.to_owned()))?;
        Ok(caller)
    }

    /// Whose token it is.
    fn recognise(&self, rules: &Rules, headers: &HeaderMap, peer: IpAddr) -> Result<Caller, (&'static str, ApiError)> {
        let unauthorized = |message: &str| (codes::UNAUTHORIZED, ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message));
        let Some(token) = bearer(headers) else {
            return Err(unauthorized(
                "this service asks for a token: send `Authorization: Bearer TOKEN`, or give the command --token-file or TIDINGS_TOKEN",
            ));
        };
        let hash = sha256(token);
        let mut found = None;
        for known in &rules.tokens {
            // Every one is looked at, and each takes as long as any other: so the time taken says nothing about how near a guess was.
            if memcmp::eq(known.hash.bytes(), &hash) {
                found = Some(&known.caller);
            }
        }
        if let Some(caller) = found {
            return Ok(caller.clone());
        }
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner).note(peer, Instant::now());
        if wrong <= WRONG_TOKENS {
            return Err(unauthorized("nobody knows this token; it may have been changed: http.tokens names the file that it is in"));
        }
        let message = "wrong tokens came again and again from your address: mend the client that has an old one";
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_attempts", message).retry_after(WRONG_TOKENS_IN);
        Err((codes::TOO_MANY_ATTEMPTS, error))
    }

    /// Counts a request, where that is wanted.
    fn pace(&self, rate: Option<u32>, who: Counted) -> Result<(), (&'static str, ApiError)> {
        let Some(rate) = rate else { return Ok(()) };
        if self.requests.lock().unwrap_or_else(PoisonError::into_inner).note(who, Instant::now()) <= rate {
            return Ok(());
        }
        let message = format!("more than {rate} requests in a second (http.rate)");
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message).retry_after(Duration::from_secs(1));
        Err((codes::RATE_LIMITED, error))
    }

    fn say(&self, peer: IpAddr, code: &'static str, method: &Method, path: &str) {
        match self.lines.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(0) => tracing::warn!(%peer, code, %method, path, "a request was not let in"),
            Some(unsaid) => tracing::warn!(%peer, code, %method, path, unsaid, "a request was not let in"),
            None => {}
        }
    }

    /// A connection did not come to speak TLS.
    pub(super) fn without_tls(&self, peer: IpAddr, reason: &str) {
        (self.count)(codes::TLS);
        match self.lines.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(0) => tracing::warn!(%peer, reason, "an HTTPS connection was closed"),
            Some(unsaid) => tracing::warn!(%peer, reason, unsaid, "an HTTPS connection was closed"),
            None => {}
        }
    }
}

/// The token that was shown, if it was shown as RFC 6750 §2.1 says; several are none.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (scheme, token) = value.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// Who has one address of IPv6 has a network of them.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const SECRET: &str = "Hq1vSrYtUoQ6mZ3cXw9e";

    fn token(name: &str, role: Role, tenants: Option<&str>) -> Token {
        let tenants = tenants.map(|tenant| BTreeSet::from([tenant.to_owned()]));
        Token { hash: TokenHash::new(sha256(format!("{SECRET}-{name}").as_bytes())), caller: Caller::of_token(name, role, tenants) }
    }

    fn rules() -> Rules {
        let tokens = vec![
            token("ci", Role::Ingest, None),
            token("prometheus", Role::Read, None),
            token("ops", Role::Admin, None),
            token("acme", Role::Admin, Some("acme")),
        ];
        Rules { tokens, ..Rules::default() }
    }

    fn headers(authorization: &[&str]) -> HeaderMap {
        authorization.iter().map(|value| (AUTHORIZATION, value.parse().unwrap())).collect()
    }

    fn shown(name: &str) -> HeaderMap {
        headers(&[&format!("Bearer {SECRET}-{name}")])
    }

    fn judge(door: &Door, rules: &Rules, headers: &HeaderMap, needs: Needs, scope: Scope) -> Result<Caller, &'static str> {
        door.judge(rules, headers, "192.0.2.1".parse().unwrap(), needs, scope).map_err(|(code, _)| code)
    }

    #[test]
    fn a_token_opens_what_its_role_allows() {
        let (door, rules) = (Door::open(), rules());
        for (name, ingest, read, admin) in [("ci", true, false, false), ("prometheus", false, true, false), ("ops", true, true, true)] {
            for (needs, is_open) in [(INGEST, ingest), (READ, read), (Needs::Metrics, read), (ADMIN, admin)] {
                let found = judge(&door, &rules, &shown(name), needs, Scope::Service);
                assert_eq!(found.as_ref().map(Caller::token), if is_open { Ok(Some(name)) } else { Err(&"forbidden") }, "{name} {needs:?}");
            }
        }
        let open = Rules { open_metrics: true, ..rules.clone() };
        assert!(judge(&door, &open, &HeaderMap::new(), Needs::Metrics, Scope::Tenants).is_ok());
        assert_eq!(judge(&door, &rules, &shown("acme"), ADMIN, Scope::Service), Err("forbidden_tenant"));
        assert!(judge(&door, &rules, &shown("acme"), ADMIN, Scope::Tenants).is_ok());
    }

    #[test]
    fn without_the_right_token_nothing_opens() {
        let (door, rules) = (Door::open(), rules());
        let right = format!("{SECRET}-ops");
        for wrong in [
            vec![],
            vec!["Bearer".to_owned()],
            vec!["Bearer ".to_owned()],
            vec![right.clone()],
            vec![format!("Basic {right}")],
            vec![format!("Bearer {right}x")],
            vec![format!("Bearer {}", &right[..right.len() - 1])],
            vec![format!("Bearer {right}"), format!("Bearer {right}")],
        ] {
            let wrong: Vec<&str> = wrong.iter().map(String::as_str).collect();
            assert_eq!(judge(&door, &rules, &headers(&wrong), READ, Scope::Tenants), Err("unauthorized"), "{wrong:?}");
        }
        assert!(judge(&door, &rules, &headers(&[&format!("bearer  {right} ")]), READ, Scope::Tenants).is_ok());
    }

    #[test]
    fn without_tokens_whoever_comes_may_do_everything() {
        for needs in [INGEST, READ, ADMIN, Needs::Metrics] {
            let caller = judge(&Door::open(), &Rules::default(), &HeaderMap::new(), needs, Scope::Service).unwrap();
            assert!(needs == Needs::Metrics || caller == Caller::local());
        }
    }

    #[test]
    fn wrong_tokens_again_and_again_are_told_to_wait_and_the_right_one_is_let_in() {
        let (door, rules) = (Door::open(), rules());
        let wrong = headers(&["Bearer nonsense-nonsense"]);
        for _ in 0..WRONG_TOKENS {
            assert_eq!(judge(&door, &rules, &wrong, READ, Scope::Tenants), Err("unauthorized"));
        }
        assert_eq!(judge(&door, &rules, &wrong, READ, Scope::Tenants), Err("too_many_attempts"));
        assert!(judge(&door, &rules, &shown("ops"), READ, Scope::Tenants).is_ok());
        let elsewhere = door.judge(&rules, &wrong, "192.0.2.2".parse().unwrap(), READ, Scope::Tenants);
        assert_eq!(elsewhere.unwrap_err().0, "unauthorized");
    }

    #[test]
    fn a_rate_holds_for_each_token() {
        let (door, rules) = (Door::open(), Rules { rate: Some(1), ..rules() });
        // Two of three fall into one second, whenever that begins.
        let asked: Vec<_> = (0..3).map(|_| judge(&door, &rules, &shown("ops"), READ, Scope::Tenants)).collect();
        assert!(asked.contains(&Err("rate_limited")), "{asked:?}");
        assert!(judge(&door, &rules, &shown("prometheus"), READ, Scope::Tenants).is_ok());
    }

    #[test]
    fn a_route_that_is_not_in_the_table_is_for_administrators_of_the_whole() {
        assert_eq!(wanted(&Method::GET, "/v1/new"), (ADMIN, Scope::Service));
        assert_eq!(wanted(&Method::PUT, "/v1/reports"), (ADMIN, Scope::Service));
        assert_eq!(wanted(&Method::HEAD, "/v1/status"), (READ, Scope::Tenants));
        assert_eq!(wanted(&Method::GET, "/page/main.js"), (Needs::Nothing, Scope::Tenants));
        assert_eq!(wanted(&Method::POST, "/page/main.js"), (ADMIN, Scope::Service));
    }

    #[test]
    fn refusals_are_counted_by_their_code() {
        let counted = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&counted);
        let count = move |code: &'static str| {
            assert!(codes::ALL.contains(&code));
            seen.fetch_add(1, Ordering::Relaxed);
        };
        let door = Door::new(watch::channel(Arc::new(rules())).1, Box::new(count));
        let request = Request::get("/").body(axum::body::Body::empty()).unwrap();
        assert_eq!(door.admit(&request), Ok(Caller::nobody()), "no route was found");
        door.without_tls("192.0.2.1".parse().unwrap(), "test");
        assert_eq!(counted.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn an_address_of_ipv6_stands_for_its_network() {
        let network = |text: &str| network_of(text.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8::1:2:3:4"), "2001:db8::");
        assert_eq!((network("::ffff:192.0.2.1"), network("192.0.2.1")), ("192.0.2.1".into(), "192.0.2.1".into()));
    }
}
