//! A request's body, read within limits of size, time and memory.
//!
//! What a client says of its body's length is only used against it: a `Content-Length` beyond the limit is refused before a byte of
//! the body is read. What counts is what arrives. All bodies that are being read or wait for their commit share a budget of memory;
//! when it is used up, new ones are told to come back, so that many slow clients can't fill the memory.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

/// A body, and its place in the budget for as long as it is held.
#[derive(Debug)]
pub struct Held {
    /// The bytes.
    pub bytes: Bytes,
    _places: Option<OwnedSemaphorePermit>,
}

/// Why a body was not read to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// It is larger than allowed.
    #[error("the body is larger than {limit} bytes (`{setting}`); {advice}")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
        /// The setting that holds it.
        setting: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// It took too long.
    #[error("the body did not arrive within {} s; nothing of it was accepted", .0.as_secs_f32())]
    TimedOut(Duration),
    /// It ended early, or its chunks make no sense.
    #[error("the body is broken off or its chunks are malformed; nothing of it was accepted")]
    Broken,
    /// The memory for bodies is used up.
    #[error("too many reports are on their way in; try again in a moment")]
    Crowded,
}

impl BodyError {
    /// Stable name for metrics, logs and HTTP bodies.
    pub fn code(&self) -> &'static str {
        match self {
            BodyError::TooLarge { .. } => "too_large",
            BodyError::TimedOut(_) => "body_timeout",
            BodyError::Broken => "invalid_body",
            BodyError::Crowded => "overloaded",
        }
    }
}

/// How much of a body is read, and how long.
#[derive(Debug, Clone, Copy)]
pub struct Measure {
    /// So many bytes.
    pub limit: usize,
    /// The setting that the limit comes from, for the message.
    pub setting: &'static str,
    /// What to do about a body that is larger.
    pub advice: &'static str,
    /// So long, for all of it.
    pub timeout: Duration,
}

/// Reads a body to its end.
///
/// # Errors
/// A part of the body may be unread then, so the connection can't go on.
pub async fn read(mut body: Body, measure: Measure, budget: &Arc<Semaphore>) -> Result<Held, BodyError> {
    let Measure { limit, setting, advice, timeout } = measure;
    let too_large = BodyError::TooLarge { limit, setting, advice };
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limit {
        return Err(too_large);
    }
    // Runs from the first time that there is something to wait for: most bodies have arrived with their heads, and need no timer.
    let mut patience: Option<Pin<Box<Sleep>>> = None;
    // Not more up front than a common report: an announcement costs nothing.
    let mut bytes = BytesMut::with_capacity(announced.min(64 << 10));
    let mut places: Option<OwnedSemaphorePermit> = None;
    loop {
        let frame = poll_fn(|cx| {
            if let Poll::Ready(frame) = Pin::new(&mut body).poll_frame(cx) {
                return Poll::Ready(Ok(frame));
            }
            ready!(patience.get_or_insert_with(|| Box::pin(sleep(timeout))).as_mut().poll(cx));
            Poll::Ready(Err(BodyError::TimedOut(timeout)))
        });
        let data = match frame.await? {
            None => return Ok(Held { bytes: bytes.freeze(), _places: places }),
            Some(Err(_)) => return Err(BodyError::Broken),
            // Trailers say nothing that is wanted here.
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
        };
        if bytes.len() + data.len() > limit {
            return Err(too_large);
        }
        let wanted = u32::try_from(data.len()).map_err(|_| too_large.clone())?;
        let more = budget.clone().try_acquire_many_owned(wanted).map_err(|_| BodyError::Crowded)?;
        match places.as_mut() {
            Some(places) => places.merge(more),
            None => places = Some(more),
        }
        bytes.extend_from_slice(&data);
    }
}
