//! The way to a broker: a stream of bytes over TCP, TLS, WebSocket or a Unix socket.
//!
//! ```text
//!   host:port ─resolve─▶ TCP ──────────────────────────────┐
//!               + ca_certs └─▶ TLS ─────────────────────────┤
//!   ws://… ───resolve─▶ TCP ────────────▶ upgrade to WebSocket ┼─▶ Stream
//!   wss://… ──resolve─▶ TCP ─▶ TLS ─────▶ upgrade to WebSocket ┤
//!   unix:/… ──────────────────────────────────────────────────┘
//! ```
//!
//! Every step is within one limit, and a step that fails is said in terms of the option to look at ([`ConnectError`]). Certificates are
//! read anew each time; files that can't be used are no connection, never an older one's and never one in the clear.
//!
//! What arrives over TCP, with or without TLS, can be left where it is until somebody reads ([`clear`]).
//!
//! A successful write says that the stream has taken the bytes, and a flush that the operating system has: WebSocket frames wait in
//! between, so who counts what has left flushes first.

mod clear;
mod error;
mod tcp;
mod tls;
mod unix;
mod websocket;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_openssl::SslStream;

use clear::Clear;
use error::explain;
pub use error::{ConnectError, Step, lost};

use crate::config::TlsConfig;
use crate::core::address::Address;

/// What bytes go through.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// An open way to a broker.
pub struct Stream {
    io: Way,
    tls: Option<Encryption>,
    is_local: bool,
}

/// What the bytes go through at the end.
enum Way {
    Clear(Clear),
    Tls(SslStream<Clear>),
    Other(Box<dyn Io>),
}

/// What TLS has agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// The version, such as `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite, by OpenSSL's name.
    pub cipher: &'static str,
    /// When the broker's certificate ends, as a Unix time.
    pub ends: Option<i64>,
}

impl Stream {
    /// What TLS has agreed on; none in the clear.
    pub fn encryption(&self) -> Option<&Encryption> {
        self.tls.as_ref()
    }

    /// It is in the clear, and the broker may have expected otherwise.
    pub fn may_expect_tls(&self) -> bool {
        self.tls.is_none() && !self.is_local
    }

    /// A read brings all that has arrived, or as much as was asked for.
    pub fn comes_whole(&self) -> bool {
        matches!(self.io, Way::Clear(_))
    }

    /// Where that can be, nobody is woken by what arrives until somebody reads and finds nothing.
    pub fn leave(&mut self) {
        match &mut self.io {
            Way::Clear(stream) => stream.leave(),
            Way::Tls(stream) => stream.get_mut().leave(),
            Way::Other(_) => {}
        }
    }
}

/// What a connection that ends before its first packet may have been instead; a hint, or nothing. `arrived` is what has come of it.
pub fn instead(arrived: &[u8], may_expect_tls: bool) -> &'static str {
    match (arrived, may_expect_tls) {
        // An alert (RFC 8446 §6), which answers a CONNECT in the clear.
        ([21, 3, ..], true) => "; that is an alert of TLS: set `ca_certs`, or look at `port`",
        ([], true) => " before it said anything; if it expects TLS there, `ca_certs` is missing",
        ([], false) => "",
        _ => "; what it sent is no MQTT packet: look at `port`",
    }
}

/// Connects to a broker, within a limit.
///
/// # Errors
/// What went wrong, and which option to look at.
pub async fn connect(address: &Address, tls: Option<&TlsConfig>, limit: Duration) -> Result<Stream, ConnectError> {
    let limit = Limit { whole: limit, until: Instant::now() + limit };
    match address {
        Address::Unix { path } => {
            Ok(Stream { io: Way::Other(Box::new(limit.keep(Step::Connect, unix::connect(path)).await??)), tls: None, is_local: true })
        }
        Address::Tcp { host, port } => over_tcp(host, *port, tls, limit).await,
        Address::WebSocket { host, port, path, is_secure } => {
            // The configuration has seen to it that there is no `wss` without it; were there one, it must not go in the clear.
            if *is_secure != tls.is_some() {
                return Err(ConnectError::Mismatch { address: address.written() });
            }
            let Stream { io, tls, is_local } = over_tcp(host, *port, tls, limit).await?;
            let below: Box<dyn Io> = match io {
                Way::Clear(stream) => Box::new(stream),
                Way::Tls(stream) => Box::new(stream),
                Way::Other(stream) => stream,
            };
            let upgrade = websocket::upgrade(below, host, *port, path);
            Ok(Stream { io: Way::Other(Box::new(limit.keep(Step::Upgrade, upgrade).await??)), tls, is_local })
        }
    }
}

async fn over_tcp(host: &str, port: u16, tls: Option<&TlsConfig>, limit: Limit) -> Result<Stream, ConnectError> {
    // First, because a connection that waits for slow files is closed by brokers that wait for a CONNECT.
    let context = match tls {
        None => None,
        Some(tls) => Some(limit.keep(Step::Files, tls::context(tls)).await??),
    };
    let addresses = limit.keep(Step::Resolve, tcp::resolve(host, port)).await??;
    let stream = tcp::connect(host, port, &addresses, limit).await?;
    match context {
        None => Ok(Stream { io: Way::Clear(stream), tls: None, is_local: false }),
        Some(context) => {
            let (stream, agreed) = limit.keep(Step::Handshake, tls::handshake(&context, host, stream)).await??;
            Ok(Stream { io: Way::Tls(stream), tls: Some(agreed), is_local: false })
        }
    }
}

/// How long everything together may take.
#[derive(Debug, Clone, Copy)]
struct Limit {
    whole: Duration,
    until: Instant,
}

impl Limit {
    async fn keep<T>(self, step: Step, work: impl Future<Output = T>) -> Result<T, ConnectError> {
        tokio::time::timeout_at(self.until, work).await.map_err(|_| ConnectError::TimedOut { step, limit: self.whole })
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Way::Clear(stream) => Pin::new(stream).poll_read(context, buffer),
            Way::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Way::Other(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Way::Clear(stream) => Pin::new(stream).poll_write(context, bytes),
            Way::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Way::Other(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Way::Clear(stream) => Pin::new(stream).poll_flush(context),
            Way::Tls(stream) => Pin::new(stream).poll_flush(context),
            Way::Other(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Way::Clear(stream) => Pin::new(stream).poll_shutdown(context),
            Way::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Way::Other(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
