//! The way to a running service: blocking HTTP with limits, and errors that say what to do.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use ureq::http::{Request, Response, StatusCode};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, DefaultConnector};
use ureq::{Agent, AsSendBody, Body};

use super::secure::{NotSecured, Secure};
use super::shown::plain;
use super::{FAILED, WRONG_USAGE, output};
use crate::server::error::{ErrorAnswer, ErrorBody};

/// A service that does not answer within this is not going to. Longer than the service itself waits for its disk.
const TIMEOUT: Duration = Duration::from_secs(90);

/// Connecting takes so long at most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest answer that is read, in bytes. Ten thousand deliveries have about 2 MiB.
const MAX_ANSWER: u64 = 64 << 20;

/// Which service, and as whom.
#[derive(Debug, Clone, Args)]
pub struct ServiceArgs {
    /// The service's address
    #[arg(long, env = "TIDINGS_URL", default_value = "http://127.0.0.1:8470")]
    pub url: String,
    /// A file with the token to show; TIDINGS_TOKEN may hold the token itself
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The authorities that the certificate of an https:// service may come from, in PEM [default: those that the system trusts]
    #[arg(long, env = "TIDINGS_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

/// A running service.
pub struct Client {
    agent: Agent,
    url: String,
    token: Option<String>,
    timeout: Duration,
}

/// An answer.
pub struct Reply {
    /// The body.
    pub body: Vec<u8>,
}

/// Why there is no answer, or none that helps.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The token can't be read.
    #[error("the token file {path} can't be read: {error}")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The authorities can't be used.
    #[error("--ca-file (TIDINGS_CA_FILE): {0}")]
    Authorities(String),
    /// TLS did not come about.
    #[error(
        "TLS with {url} failed: {what}; its certificate has to name that host, and to come from an authority that this system trusts or that is in --ca-file (TIDINGS_CA_FILE)"
    )]
    Tls {
        /// Where.
        url: String,
        /// What happened.
        what: String,
    },
    /// The request can't be made from what was given.
    #[error("{0}; check --url (TIDINGS_URL), which looks like http://127.0.0.1:8470, and the token")]
    Request(String),
    /// There is an answer, and it can't be used.
    #[error("{0}")]
    Unusable(String),
    /// Nothing listens there.
    #[error("nothing answers at {url}: {what}; is the service running (`tidings serve`), and is this its address (--url, TIDINGS_URL)?")]
    Unreachable {
        /// Where.
        url: String,
        /// What happened.
        what: String,
        /// The machine is there, and its port is closed: the service may be just starting.
        is_closed: bool,
    },
    /// The connection broke before the answer came.
    #[error("the connection to {url} broke: {what}")]
    Broken {
        /// Where.
        url: String,
        /// What happened.
        what: String,
    },
    /// The service said no.
    #[error("{}", describe(*status, answer))]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The error in the body.
        answer: ErrorBody,
        /// When to come back.
        retry_after: Option<Duration>,
    },
}

impl ClientError {
    /// Says it, and gives the exit code that it ends with.
    pub fn complain(&self) -> ExitCode {
        // What a service answers is shown, and not obeyed by the terminal.
        let lines: Vec<String> = self.to_string().lines().map(plain).collect();
        output::complain(&lines.join("\n"));
        ExitCode::from(if self.is_wrong_usage() { WRONG_USAGE } else { FAILED })
    }

    /// What was given to the command can't be right, whatever the service does.
    fn is_wrong_usage(&self) -> bool {
        match self {
            ClientError::Token { .. } | ClientError::Authorities(_) | ClientError::Request(_) => true,
            ClientError::Refused { status: 422, answer, .. } => matches!(answer.code.as_ref(), "invalid_query" | "invalid_move"),
            _ => false,
        }
    }
}

/// The message, and under it the code and the field, for people and for their searches.
fn describe(status: u16, answer: &ErrorBody) -> String {
    let mut text = format!("{}\n  code:  {} (HTTP {status})", answer.message, answer.code);
    if let Some(field) = &answer.field {
        text.push_str(&format!("\n  field: {field}"));
    }
    match (status, answer.code.as_ref()) {
        (401, _) => text.push_str("\n  do:    give a token with --token-file FILE, or in TIDINGS_TOKEN; `tidings check` beside the service names those that there are"),
        (403, "forbidden") => text.push_str("\n  do:    use another token, or give this one another role in http.tokens and reload the service"),
        _ => {}
    }
    text
}

impl Client {
    /// Gets ready to talk to a service. `token` is what stands in `TIDINGS_TOKEN`.
    ///
    /// # Errors
    /// If the token file or the authorities can't be read.
    pub fn new(args: &ServiceArgs, token: Option<String>) -> Result<Self, ClientError> {
        let token = match &args.token_file {
            None => token,
            Some(path) => Some(fs::read_to_string(path).map_err(|error| ClientError::Token { path: path.clone(), error })?),
        };
        // The service reads the first line of such a file, too.
        let token = token.map(|token| token.trim().lines().next().unwrap_or_default().trim().to_owned()).filter(|token| !token.is_empty());
        let secure = Secure::by(args.ca_file.as_deref()).map_err(ClientError::Authorities)?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // A service on loopback is not reached through a proxy, whatever the environment says.
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .build();
        let agent = Agent::with_parts(config, DefaultConnector::new().chain(secure), DefaultResolver::default());
        Ok(Client { agent, url: args.url.trim_end_matches('/').to_owned(), token, timeout: TIMEOUT })
    }

    /// The same, for what takes longer than most.
    pub fn waiting_for(self, timeout: Duration) -> Self {
        Client { timeout, ..self }
    }

    /// Asks for something.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn get(&self, path: &str) -> Result<Reply, ClientError> {
        self.send("GET", path, &[], &[])
    }

    /// Asks for something that has no end, and gives its body as it comes.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn stream(&self, path: &str, headers: &[(&str, &str)]) -> Result<impl std::io::Read + use<>, ClientError> {
        let mut response = self.ask("GET", path, headers, &[])?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body().into_reader());
        }
        let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec().map_err(|error| self.failure(error))?;
        Err(ClientError::Refused { status: status.as_u16(), answer: error_of(status, &body), retry_after: None })
    }

    /// Posts something.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Reply, ClientError> {
        self.send("POST", path, headers, body)
    }

    /// Puts nothing in a place, which says that it is still wanted.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn put(&self, path: &str) -> Result<Reply, ClientError> {
        self.send("PUT", path, &[], &[])
    }

    /// Takes something away.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn delete(&self, path: &str) -> Result<Reply, ClientError> {
        self.send("DELETE", path, &[], &[])
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Response<Body>, ClientError> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let invalid = |error: ureq::http::Error| ClientError::Request(error.to_string());
        let sent = match method {
            "GET" | "DELETE" => self.run(request.body(()).map_err(invalid)?),
            _ => self.run(request.body(body).map_err(invalid)?),
        };
        sent.map_err(|error| self.failure(error))
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Reply, ClientError> {
        let mut response = self.ask(method, path, headers, body)?;
        let status = response.status();
        let retry_after =
            response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
        let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec().map_err(|error| self.failure(error))?;
        if status.is_success() {
            return Ok(Reply { body });
        }
        Err(ClientError::Refused { status: status.as_u16(), answer: error_of(status, &body), retry_after })
    }

    fn run<B: AsSendBody>(&self, request: Request<B>) -> Result<Response<Body>, ureq::Error> {
        self.agent.run(self.agent.configure_request(request).timeout_global(Some(self.timeout)).build())
    }

    fn failure(&self, error: ureq::Error) -> ClientError {
        let (url, what) = (self.url.clone(), error.to_string());
        match error {
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                ClientError::Unreachable { url, what, is_closed: true }
            }
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => ClientError::Unreachable { url, what, is_closed: false },
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                ClientError::Unreachable { url, what, is_closed: false }
            }
            ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => ClientError::Broken { url, what },
            ureq::Error::Other(error) if error.is::<NotSecured>() => ClientError::Tls { url, what: error.to_string() },
            ureq::Error::Http(_) | ureq::Error::BadUri(_) | ureq::Error::RequireHttpsOnly(_) => ClientError::Request(what),
            _ => ClientError::Unusable(format!("{url} answered with what can't be used: {what}")),
        }
    }
}

/// The error in an answer's body; something else than Tidings may have answered.
fn error_of(status: StatusCode, body: &[u8]) -> ErrorBody {
    let parsed: Result<ErrorAnswer, _> = serde_json::from_slice(body);
    parsed.map(|answer| answer.error).unwrap_or_else(|_| ErrorBody {
        code: "unknown".into(),
        message: format!("the service answered {status}, and not in the way that Tidings does; is this its address (--url, TIDINGS_URL)?"),
        field: None,
    })
}
