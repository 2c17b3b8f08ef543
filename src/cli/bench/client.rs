//! Loads over HTTP: many connections that are kept, one request after another on each.
//!
//! The requests are rendered before the clock runs, and of an answer only what is needed is read: what the client spends is spent on both sides, and
//! would hide the difference that is looked for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::BenchError;
use super::reports::Report;

/// An answer comes within this, or never.
const PATIENCE: Duration = Duration::from_secs(60);

/// The largest answer that is read, in bytes: that of a batch has some 100 bytes a report.
const MAX_ANSWER: usize = 4 << 20;

/// A request may be so large, in bytes: the service's default limit of a batch, and some room.
const MAX_BODY: usize = 3 << 20;

/// What is posted, in turn.
#[derive(Clone)]
pub struct Requests {
    rendered: Arc<Vec<Bytes>>,
    /// Reports of each.
    batch: u64,
}

impl Requests {
    /// One report each.
    pub fn single(reports: &[Report]) -> Requests {
        let rendered = reports.iter().map(|report| render("application/json", &report.payload)).collect();
        Requests { rendered: Arc::new(rendered), batch: 1 }
    }

    /// `batch` reports each, or fewer where they are large.
    pub fn ndjson(reports: &[Report], batch: usize) -> Requests {
        let largest = reports.iter().map(|report| report.payload.len() + 1).max().unwrap_or(1);
        let batch = batch.min(MAX_BODY / largest).clamp(1, reports.len().max(1));
        let rendered = reports.chunks_exact(batch).map(|chunk| {
            let lines: Vec<&[u8]> = chunk.iter().map(|report| &report.payload[..]).collect();
            render("application/x-ndjson", &lines.join(&b'\n'))
        });
        Requests { rendered: Arc::new(rendered.collect()), batch: batch as u64 }
    }

    /// How many requests bring at least so many reports, and how many they bring.
    pub fn for_reports(&self, reports: u64) -> (u64, u64) {
        let requests = reports.div_ceil(self.batch).max(1);
        (requests, requests * self.batch)
    }

    fn nth(&self, number: u64) -> &Bytes {
        &self.rendered[(number % self.rendered.len() as u64) as usize]
    }
}

fn render(content_type: &str, body: &[u8]) -> Bytes {
    let head =
        format!("POST /v1/reports HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat().into()
}

/// One kept connection.
pub struct Connection {
    stream: TcpStream,
    arrived: BytesMut,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// If nobody listens there.
    pub async fn open(address: SocketAddr) -> Result<Connection, BenchError> {
        let stream =
            TcpStream::connect(address).await.map_err(|error| BenchError::Wire(format!("connecting to {address} failed: {error}")))?;
        // A request is one write.
        let _ = stream.set_nodelay(true);
        Ok(Connection { stream, arrived: BytesMut::with_capacity(16 << 10) })
    }

    /// Sends a rendered request, and waits until it is accepted.
    ///
    /// # Errors
    /// If it is not.
    pub async fn post(&mut self, request: &[u8]) -> Result<(), BenchError> {
        match self.exchange(request).await? {
            (202, _) => Ok(()),
            (status, body) => Err(BenchError::Wire(format!("a report was answered with {status}: {}", String::from_utf8_lossy(&body)))),
        }
    }

    /// Asks for something.
    ///
    /// # Errors
    /// If there is no answer, or none that helps.
    pub async fn get(&mut self, path: &str) -> Result<Bytes, BenchError> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        match self.exchange(request.as_bytes()).await? {
            (200, body) => Ok(body),
            (status, body) => Err(BenchError::Wire(format!("{path} was answered with {status}: {}", String::from_utf8_lossy(&body)))),
        }
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<(u16, Bytes), BenchError> {
        let answer = timeout(PATIENCE, async {
            self.stream.write_all(request).await.map_err(|error| error.to_string())?;
            loop {
                if let Some(answer) = take_answer(&mut self.arrived)? {
                    return Ok(answer);
                }
                match self.stream.read_buf(&mut self.arrived).await {
                    Ok(0) => return Err("the connection was closed".to_owned()),
                    Ok(_) => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
        });
        let answer = answer.await.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())));
        answer.map_err(|what| BenchError::Wire(format!("HTTP failed: {what}")))
    }
}

/// Takes a whole answer out of what has arrived: its status and its body. The service always says how long it is.
fn take_answer(arrived: &mut BytesMut) -> Result<Option<(u16, Bytes)>, String> {
    let Some(end) = memchr::memmem::find(arrived, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&arrived[..end]).map_err(|_| "an answer is not text".to_owned())?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).ok_or("an answer has no status")?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let length = length.filter(|length| *length <= MAX_ANSWER).ok_or("an answer does not say how long it is, or is too long")?;
    if arrived.len() < end + 4 + length {
        return Ok(None);
    }
    arrived.advance(end + 4);
    Ok(Some((status, arrived.split_to(length).freeze())))
}

/// What came of a load.
pub struct Load {
    /// Reports that were accepted.
    pub reports: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How long each request took, in milliseconds.
    pub latencies_ms: Vec<f64>,
}

impl Load {
    /// Reports a second.
    pub fn rate(&self) -> f64 {
        self.reports as f64 / self.seconds
    }
}

/// Posts at least so many reports, as fast as they are taken.
///
/// # Errors
/// If one is not accepted.
pub async fn load(address: SocketAddr, connections: usize, requests: &Requests, reports: u64) -> Result<Load, BenchError> {
    let (count, reports) = requests.for_reports(reports);
    let next = Arc::new(AtomicU64::new(0));
    let mut posters = JoinSet::new();
    let mut opened = Vec::with_capacity(connections);
    for _ in 0..connections {
        opened.push(Connection::open(address).await?);
    }
    let begin = Instant::now();
    for mut connection in opened {
        let (next, requests) = (Arc::clone(&next), requests.clone());
        posters.spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(latencies);
                }
                let sent = Instant::now();
                connection.post(requests.nth(number)).await?;
                latencies.push(sent.elapsed().as_secs_f64() * 1e3);
            }
        });
    }
    let latencies_ms = gather(posters).await?;
    Ok(Load { reports, seconds: begin.elapsed().as_secs_f64(), latencies_ms })
}

/// Posts `count` reports at a rate, from connections that take turns. A request that is due while the one before it on its connection is still
/// unanswered has waited since it was due: a server that stalls can't hide that.
///
/// # Errors
/// If one is not accepted.
pub async fn paced(address: SocketAddr, connections: usize, requests: &Requests, rate: u32, count: u64) -> Result<Load, BenchError> {
    let mut opened = Vec::with_capacity(connections);
    for _ in 0..connections {
        opened.push(Connection::open(address).await?);
    }
    let begin = Instant::now();
    let mut posters = JoinSet::new();
    for (place, mut connection) in (0_u64..).zip(opened) {
        let requests = requests.clone();
        posters.spawn(async move {
            let mut latencies = Vec::new();
            for number in (place..count).step_by(connections) {
                let due = begin + Duration::from_secs_f64(number as f64 / f64::from(rate));
                let is_late = Instant::now() > due;
                sleep_until(due).await;
                // The timer wakes up to a millisecond late, which is not the server's.
                let sent = if is_late { due } else { Instant::now() };
                connection.post(requests.nth(number)).await?;
                latencies.push(sent.elapsed().as_secs_f64() * 1e3);
            }
            Ok(latencies)
        });
    }
    let latencies_ms = gather(posters).await?;
    Ok(Load { reports: count, seconds: begin.elapsed().as_secs_f64(), latencies_ms })
}

async fn gather(mut posters: JoinSet<Result<Vec<f64>, BenchError>>) -> Result<Vec<f64>, BenchError> {
    let mut latencies = Vec::new();
    while let Some(ended) = posters.join_next().await {
        latencies.extend(ended.unwrap_or_else(|fault| Err(BenchError::Wire(fault.to_string())))?);
    }
    Ok(latencies)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::reports::{Kind, pool};

    #[test]
    fn answers_are_taken_one_by_one_however_they_arrive() {
        let two = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 507 Full\r\ncontent-length:0\r\n\r\n";
        let mut arrived = BytesMut::new();
        let mut answers = Vec::new();
        for byte in two {
            arrived.extend_from_slice(&[*byte]);
            answers.extend(take_answer(&mut arrived).unwrap());
        }
        assert_eq!(answers, [(202, Bytes::from_static(b"{}")), (507, Bytes::new())]);
        assert!(take_answer(&mut BytesMut::from(&b"HTTP/1.1 200 OK\r\n\r\n"[..])).is_err());
    }

    #[test]
    fn batches_are_smaller_where_reports_are_large() {
        let requests = Requests::ndjson(&pool(Kind::Sized(262_144), 1), 100);
        assert!((5..=12).contains(&requests.batch), "{}", requests.batch);
        let requests = Requests::ndjson(&pool(Kind::Sized(1_536), 1), 100);
        assert_eq!(requests.for_reports(250), (3, 300));
    }
}
