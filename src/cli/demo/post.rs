//! Posts reports as a busy CI does: several connections that are kept alive, one request after another on each, singles and batches.
//!
//! A topic belongs to one connection, so that its reports are accepted in the order in which they were made. What is waiting when an answer has come goes out as one
//! request: a single report while the service keeps up, NDJSON when it doesn't.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use axum::http::{Request, StatusCode};
use bytes::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::check::Checker;
use super::reports::Generator;

/// Connections that post at once.
const POSTERS: usize = 4;

/// Reports in one request at most: about 200 KiB.
const BATCH: usize = 64;

/// Reports that wait for a connection; then making more of them waits.
const WAITING: usize = 256;

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// A service that is overloaded is asked again so often. It is the demo's own machine that can't keep up then.
const TRIES: u32 = 20;

/// Why posting failed.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The service did not accept.
    #[error("POST /v1/reports was answered with {status}: {body}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The answer.
        body: String,
    },
    /// The connection failed.
    #[error("POST /v1/reports failed: {0}")]
    Broken(String),
}

impl From<hyper::Error> for PostError {
    fn from(error: hyper::Error) -> Self {
        PostError::Broken(error.to_string())
    }
}

/// What is posted, and how fast.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// How many reports.
    pub reports: u64,
    /// Reports per second.
    pub rate: f64,
}

/// Makes, notes and posts the reports of a run; `accepted` counts what was answered with 202.
///
/// # Errors
/// If a report was not accepted.
pub async fn post_all(
    service: SocketAddr,
    load: Load,
    mut generator: Generator,
    books: &Mutex<Checker>,
    accepted: &Arc<AtomicU64>,
) -> Result<(), PostError> {
    let mut posters = JoinSet::new();
    let queues: Vec<_> = (0..POSTERS)
        .map(|_| {
            let (queue, reports) = mpsc::channel(WAITING);
            posters.spawn(Poster { service, connection: None, accepted: Arc::clone(accepted) }.run(reports));
            queue
        })
        .collect();
    let begin = Instant::now();
    for number in 0..load.reports {
        sleep_until(begin + Duration::from_secs_f64(number as f64 / load.rate)).await;
        let Some(report) = generator.next() else { break };
        books.lock().unwrap_or_else(PoisonError::into_inner).expect(report.topic, report.of_topic, report.qos, &report.payload);
        if queues[report.topic_number % POSTERS].send(report.payload).await.is_err() {
            // That poster has failed, and says why below.
            break;
        }
    }
    // The posters end with their queues.
    drop(queues);
    while let Some(ended) = posters.join_next().await {
        ended.unwrap_or_else(|fault| Err(PostError::Broken(fault.to_string())))?;
    }
    Ok(())
}

struct Poster {
    service: SocketAddr,
    connection: Option<SendRequest<Body>>,
    accepted: Arc<AtomicU64>,
}

impl Poster {
    async fn run(mut self, mut reports: mpsc::Receiver<Bytes>) -> Result<(), PostError> {
        let mut waiting = Vec::with_capacity(BATCH);
        while reports.recv_many(&mut waiting, BATCH).await > 0 {
            self.post(&waiting).await?;
            self.accepted.fetch_add(waiting.len() as u64, Ordering::Relaxed);
            waiting.clear();
        }
        Ok(())
    }

    /// Posts reports in one request, and again as long as the service asks for it.
    async fn post(&mut self, reports: &[Bytes]) -> Result<(), PostError> {
        let (kind, body) = match reports {
            [single] => ("application/json", single.clone()),
            many => ("application/x-ndjson", many.join(&b'\n').into()),
        };
        for _ in 0..TRIES {
            let (status, body, wait) = self.send(kind, &body).await?;
            match (status, wait) {
                (StatusCode::ACCEPTED, _) => return Ok(()),
                // Refused as a whole: nothing of it was accepted, so it can be posted again.
                (StatusCode::SERVICE_UNAVAILABLE, Some(wait)) => sleep(wait).await,
                (status, _) => return Err(PostError::Refused { status, body }),
            }
        }
        Err(PostError::Broken(format!("the service was overloaded {TRIES} times")))
    }

    async fn send(&mut self, kind: &str, body: &Bytes) -> Result<(StatusCode, String, Option<Duration>), PostError> {
        let mut connection = match self.connection.take().filter(|connection| !connection.is_closed()) {
            Some(connection) => connection,
            None => connect(self.service).await?,
        };
        connection.ready().await?;
        let request = Request::post("/v1/reports").header(HOST, self.service.to_string()).header(CONTENT_TYPE, kind);
        let request = request.body(Body::from(body.clone())).map_err(|error| PostError::Broken(error.to_string()))?;
        let response = connection.send_request(request).await?;
        let status = response.status();
        let wait = response.headers().get(RETRY_AFTER).and_then(|wait| wait.to_str().ok()?.parse().ok()).map(Duration::from_secs);
        let body = axum::body::to_bytes(Body::new(response.into_body()), MAX_ANSWER).await;
        let body = body.map_err(|error| PostError::Broken(error.to_string()))?;
        self.connection = Some(connection);
        Ok((status, String::from_utf8_lossy(&body).into_owned(), wait))
    }
}

async fn connect(service: SocketAddr) -> Result<SendRequest<Body>, PostError> {
    let broken = |error: std::io::Error| PostError::Broken(error.to_string());
    let stream = TcpStream::connect(service).await.map_err(broken)?;
    stream.set_nodelay(true).map_err(broken)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Ends when the sender is dropped; what goes wrong, the sender says.
    tokio::spawn(connection);
    Ok(sender)
}
