//! A TCP connection of which what arrives can be left alone.
//!
//! ```text
//!   Watched ── leave ──▶ Left ── somebody reads, and there is nothing ──▶ Watched
//! ```
//! tokio's own stream asks the system to wake a thread for each piece that arrives, whether anybody wants to read or not, and whoever sends it pays for that, too.
//! So each direction is watched by itself here, with a descriptor of its own; what arrives on one that is left stays with the system until it is read. Writing is
//! always watched, so that it can end. tokio has `AsyncFd` for that, which can't be made without `unsafe`; so for tokio the two are ends of pipes, which it watches for
//! one direction only. Reading and writing are the same calls.

use std::io::{self, Read};
use std::net::TcpStream;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::net::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;

/// So many bytes are read at once from what was left: a broker's answers to some thousand packets.
const PIECE: usize = 8 << 10;

/// See the module.
pub(super) struct Clear {
    writing: pipe::Sender,
    reading: Reading,
    /// What was left is read into this first, so that no more is copied on than there is.
    piece: Box<[u8]>,
}

enum Reading {
    Watched(pipe::Receiver),
    Left(TcpStream),
    /// The system did not let it be watched, or left.
    Lost,
}

impl Clear {
    /// A connection that is open.
    pub(super) fn new(stream: tokio::net::TcpStream) -> io::Result<Clear> {
        let stream = stream.into_std()?;
        let reading = Reading::Left(stream.try_clone()?);
        let writing = pipe::Sender::from_owned_fd_unchecked(stream.into())?;
        Ok(Clear { writing, reading, piece: vec![0; PIECE].into() })
    }

    /// Nobody is woken by what arrives, until somebody reads and finds nothing.
    pub(super) fn leave(&mut self) {
        self.reading = match std::mem::replace(&mut self.reading, Reading::Lost) {
            // Where that fails the next read says so.
            Reading::Watched(watched) => watched.into_nonblocking_fd().map_or(Reading::Lost, |left| Reading::Left(left.into())),
            other => other,
        };
    }
}

impl AsyncRead for Clear {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Clear { reading, piece, .. } = &mut *self;
        let most = buffer.remaining().min(PIECE);
        if let Reading::Left(left) = reading {
            match left.read(&mut piece[..most]) {
                Ok(count) => {
                    buffer.put_slice(&piece[..count]);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            let Reading::Left(left) = std::mem::replace(reading, Reading::Lost) else { unreachable!("it has just been left") };
            *reading = Reading::Watched(pipe::Receiver::from_owned_fd_unchecked(left.into())?);
        }
        match reading {
            Reading::Watched(watched) => Pin::new(watched).poll_read(context, buffer),
            _ => Poll::Ready(Err(io::Error::other("what arrives can't be watched"))),
        }
    }
}

impl AsyncWrite for Clear {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writing).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is written is with the system.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(&self.writing, Shutdown::Write).map_err(io::Error::from))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    /// One side, and the other.
    async fn pair() -> (Clear, tokio::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(tokio::net::TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (Clear::new(near.unwrap()).unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn what_arrives_is_read_whether_it_was_watched_or_left() {
        let (mut near, mut far) = pair().await;
        let mut read = [0; 64];
        for round in 0_u8..20 {
            if round % 3 == 0 {
                near.leave();
            }
            // Before somebody reads, and while somebody does.
            far.write_all(&[round; 3]).await.unwrap();
            near.read_exact(&mut read[..3]).await.unwrap();
            let (sent, got) = tokio::join!(
                async {
                    tokio::task::yield_now().await;
                    far.write_all(&[round; 40]).await
                },
                near.read_exact(&mut read[..40])
            );
            sent.unwrap();
            got.unwrap();
            assert_eq!(&read[..40], &[round; 40]);
        }
        near.leave();
        drop(far);
        assert_eq!(near.read(&mut read).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_write_that_has_to_wait_goes_on_while_what_arrives_is_left() {
        let (mut near, mut far) = pair().await;
        near.leave();
        let sent: Vec<u8> = (0..8_u32 << 20).map(|n| (n % 251) as u8).collect();
        let (mut got, whole) = (Vec::new(), sent.clone());
        let reading = async {
            far.write_all(b"answers").await.unwrap();
            far.read_to_end(&mut got).await.unwrap();
        };
        let writing = async {
            near.write_all(&sent).await.unwrap();
            near.shutdown().await.unwrap();
        };
        timeout(Duration::from_secs(20), async { tokio::join!(reading, writing) }).await.expect("it goes on");
        assert!(got == whole);
    }
}
