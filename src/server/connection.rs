//! One socket, with what hyper leaves open: a limit on stalled writes, and a close that doesn't lose the last answer.
//!
//! # Why a close lingers
//! An error can be answered before the whole request was read: a body that is announced too large. Closing then makes the kernel
//! answer whatever still arrives with a reset, on which many clients throw the answer away unread and report a broken
//! connection instead. So the writing side is closed first, and for a moment, and up to [`LINGER_BYTES`], the rest is read and thrown away.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// After an early answer so much of the request is read and thrown away at most: enough for whoever is somewhat over a limit, not
/// enough to make work of.
const LINGER_BYTES: usize = 16 << 20;

/// What bytes come and go by: a socket, or TLS over one.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A socket whose client has only so much time.
pub struct Patient {
    stream: Box<dyn Stream>,
    write_timeout: Duration,
    /// Runs while a write is stalled.
    stalled: Option<Pin<Box<Sleep>>>,
    linger: Duration,
    is_body_unread: Arc<AtomicBool>,
    closing: Option<Closing>,
}

/// The writing side is closed, and the rest of the request is being thrown away.
struct Closing {
    until: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl Patient {
    /// Wraps a socket. `is_body_unread` says, when it is to be closed, whether a part of the last request may still be on its way.
    pub fn new(stream: Box<dyn Stream>, write_timeout: Duration, linger: Duration, is_body_unread: Arc<AtomicBool>) -> Self {
        Patient { stream, write_timeout, stalled: None, linger, is_body_unread, closing: None }
    }

    /// Passes on what a write came to, or ends it if it has been stalled for too long.
    fn bounded(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let timeout = self.write_timeout;
        ready!(self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout))).as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of its answer")))
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, from);
        self.bounded(cx, written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, from);
        self.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closing.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        if !this.is_body_unread.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let linger = this.linger;
        let closing = this.closing.get_or_insert_with(|| Closing { until: Box::pin(sleep(linger)), bytes_left: LINGER_BYTES });
        let mut rubbish = [0; 16 << 10];
        loop {
            if closing.until.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut into = ReadBuf::new(&mut rubbish);
            let read = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut into));
            let count = into.filled().len();
            if read.is_err() || count == 0 || count >= closing.bytes_left {
                return Poll::Ready(Ok(()));
            }
            closing.bytes_left -= count;
        }
    }
}
