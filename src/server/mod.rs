//! HTTP itself: connections, their limits, who may ask, and errors in JSON. Knows nothing of reports.
//!
//! ```text
//!   listener ─▶ connection (at most so many) ─▶ guard: Host, Origin ─▶ door: token, role ─▶ a room's routes ─▶ answer
//!                │ TLS, time for the head, for a stalled write,                               │ panic: 500
//!                └ and to listen on after an early answer                                     └ no such route: 404 or 405
//! ```
//!
//! The rooms that serve something over HTTP give a `Router` each; [`serve`] runs them together on one listener. Whatever a client
//! does or fails to do, a connection comes to an end: nothing here waits without a limit (see [`Limits`]).
//!
//! What hyper can't read as a request at all (a broken head, one that is too large) it answers by itself, with 400 or 431, no body, and closes.
//!
//! | Module | Holds |
//! |---|---|
//! | [`error`] | the one shape of every error |
//! | [`guard`] | Host and Origin: no web page talks to a service on loopback |
//! | [`door`] | tokens, and the table of which opens what |
//! | [`caller`] | who asks, and what that allows |
//! | [`time`] | times in questions and answers |
//! | [`idempotency`] | by what a request is recognised when it comes again |
//! | [`question`] | bodies that hold a decision |
//! | [`object`] | JSON objects in questions, and nothing that only passes for one |
//! | [`connection`] | one socket: stalled writes, and closing without losing the last answer |
//! | [`tls`] | certificates, and the handshake |
//! | [`timers`] | timers that are used again |
//! | [`tally`], [`lines`] | what is counted of each client, and how much of it is logged |

pub mod caller;
pub mod connection;
pub mod door;
pub mod error;
pub mod guard;
pub mod idempotency;
pub mod lines;
pub mod object;
pub mod question;
pub mod tally;
pub mod time;
pub mod timers;
pub mod tls;

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::{Request, Response};
use axum::middleware;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use connection::{Patient, Stream};
use door::{Door, Peer};
use error::ApiError;
use guard::Guard;
use timers::Timers;

/// Limits of connections.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// So many connections at once; further ones wait in the kernel's backlog. A connection that does nothing takes about 20 KiB.
    pub connections: usize,
    /// A request's head has to be there so soon after the connection was opened or its last answer was sent; also how long an idle
    /// connection is kept. Longer than most scrape intervals; a client that comes later connects again.
    pub head_timeout: Duration,
    /// A request's head may be so large, in bytes; the buffer of a connection, too.
    pub head_bytes: usize,
    /// TLS is agreed on within this.
    pub handshake_timeout: Duration,
    /// A client that takes nothing of an answer for so long is let go.
    pub write_timeout: Duration,
    /// After an answer given before the whole request was read, so long the rest is listened to, so that the client reads the answer.
    pub linger: Duration,
    /// At a stop, requests under way get so long. Longer than a commit takes on a disk in trouble, shorter than systemd's patience.
    pub stop_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 1_024,
            head_timeout: Duration::from_secs(30),
            head_bytes: 16 << 10,
            handshake_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(20),
            linger: Duration::from_secs(2),
            stop_timeout: Duration::from_secs(15),
        }
    }
}

/// Serves `app` to whoever comes until `shutdown`; then takes no more connections, finishes the requests under way, and returns.
pub async fn serve(listener: TcpListener, app: Router, limits: Limits, shutdown: impl Future<Output = ()>) {
    serve_behind(Door::open(), listener, app, limits, shutdown).await;
}

/// The same, to those whom the door lets in.
pub async fn serve_behind(door: Door, listener: TcpListener, app: Router, limits: Limits, shutdown: impl Future<Output = ()>) {
    let guard = Guard::of(listener.local_addr().ok().as_ref().map(SocketAddr::ip));
    let door = Arc::new(door);
    let app = finish(app, guard, Arc::clone(&door));
    let places = Arc::new(Semaphore::new(limits.connections));
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener, &places) => match accepted {
                Ok((stream, peer, place)) => {
                    connections.spawn(receive(stream, peer, Arc::clone(&door), app.clone(), limits, stopping.clone(), place));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    // Out of file descriptors, as a rule: trying at once would only burn the processor.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            // Ended ones are taken out, so that the set does not grow.
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    // No receiver means no connection.
    let _ = stop.send(true);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.stop_timeout, all_ended).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests under way did not end in time and were cut off");
        connections.shutdown().await;
    }
}

/// What holds for every route: the guard, the door, JSON for what is not there, and an answer even if a handler panics.
fn finish(app: Router, guard: Guard, door: Arc<Door>) -> Router {
    app.fallback(async || ApiError::not_found()).method_not_allowed_fallback(async || ApiError::method_not_allowed()).layer(
        middleware::from_fn(move |mut request: Request<Body>, next: middleware::Next| {
            let door = Arc::clone(&door);
            async move {
                match guard.check(&request).and_then(|()| door.admit(&request)) {
                    Ok(caller) => {
                        request.extensions_mut().insert(caller);
                        survive(next.run(request)).await
                    }
                    Err(error) => error.into_response(),
                }
            }
        }),
    )
}

/// Turns a panic of a handler into an answer: the client must not take a fault of ours for a network failure.
async fn survive(answering: impl Future<Output = Response<Body>>) -> Response<Body> {
    let mut answering = pin!(answering);
    let guarded = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| answering.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(response)) => Poll::Ready(Some(response)),
        Err(_) => Poll::Ready(None),
    });
    match guarded.await {
        Some(response) => response,
        None => {
            tracing::error!("a request handler panicked: a fault in Tidings");
            ApiError::internal("a fault in Tidings; its log says more").into_response()
        }
    }
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return Ok((stream, peer, place)),
            // The client went away while it waited.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// One connection, from its first byte to its last.
async fn receive(
    stream: TcpStream,
    peer: SocketAddr,
    door: Arc<Door>,
    app: Router,
    limits: Limits,
    stopping: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
) {
    // Answers are small, and a producer waits for each one.
    let _ = stream.set_nodelay(true);
    let peer = peer.ip();
    let Some(acceptor) = door.acceptor() else { return converse(Box::new(stream), peer, app, limits, stopping).await };
    let ssl = match acceptor.ssl() {
        Ok(ssl) => ssl,
        Err(reason) => return tracing::error!(reason, "TLS can't be served; an HTTPS connection was closed"),
    };
    let mut told = stopping.clone();
    let secured = tokio::select! {
        secured = tokio::time::timeout(limits.handshake_timeout, tls::handshake(ssl, stream)) => secured,
        _ = told.wait_for(|stopping| *stopping) => return,
    };
    match secured {
        Ok(Ok(stream)) => converse(Box::new(stream), peer, app, limits, stopping).await,
        Ok(Err(reason)) => door.without_tls(peer, &reason),
        Err(_) => door.without_tls(peer, "the TLS handshake took too long"),
    }
}

/// What is said on it.
async fn converse(stream: Box<dyn Stream>, peer: IpAddr, app: Router, limits: Limits, mut stopping: watch::Receiver<bool>) {
    let is_body_unread = Arc::new(AtomicBool::new(false));
    let socket = Patient::new(stream, limits.write_timeout, limits.linger, Arc::clone(&is_body_unread));
    let app = TowerToHyperService::new(app);
    let service = service_fn(move |request: Request<Incoming>| -> Answering {
        let (has_body, is_body_unread) = (!request.body().is_end_stream(), Arc::clone(&is_body_unread));
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        let answering = app.call(request);
        Box::pin(async move {
            let response = answering.await?;
            // Refusals may come before the whole body was read.
            is_body_unread.store(has_body && !response.status().is_success(), Ordering::Relaxed);
            Ok(response)
        })
    });
    let conversation = http1::Builder::new()
        .timer(Timers::default())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(limits.head_bytes)
        .serve_connection(TokioIo::new(socket), service);
    let mut conversation = pin!(conversation);
    let told_to_stop = async move {
        // An error means that whoever stops is gone, which comes to the same.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    };
    let ended = tokio::select! {
        ended = conversation.as_mut() => Some(ended),
        () = told_to_stop => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            conversation.as_mut().graceful_shutdown();
            conversation.await
        }
    };
    if let Err(error) = ended {
        // Clients that break off, or are too slow, are nothing to worry an operator with.
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}
