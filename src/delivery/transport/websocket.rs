//! MQTT over WebSocket (MQTT 5.0 §6): binary messages whose borders mean nothing, subprotocol `mqtt`.
//!
//! To the lane it is a stream of bytes like any other. Pings are answered while reading; what is written waits in frames until it is
//! flushed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::ClientRequestBuilder;
use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::http::Uri;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::{ConnectError, Io};

/// The name that client and broker have to agree on (MQTT 5.0 §6).
const SUBPROTOCOL: &str = "mqtt";

/// The largest message that is taken, in bytes: many packets of a broker, which are 64 KiB at most.
const LARGEST_MESSAGE: usize = 256 << 10;

/// The largest message that is sent, in bytes. A larger packet goes in several.
const LARGEST_PIECE: usize = 64 << 10;

/// Bytes over WebSocket.
pub(super) struct WebSocket {
    inner: WebSocketStream<Box<dyn Io>>,
    /// What has arrived and was not read yet.
    arrived: Bytes,
}

/// Asks for WebSocket on a connection that is open.
pub(super) async fn upgrade(stream: Box<dyn Io>, host: &str, port: u16, path: &str) -> Result<WebSocket, ConnectError> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    // Whether there is TLS below is not this layer's business.
    let uri = format!("ws://{host}:{port}{path}").parse::<Uri>();
    let uri = uri.map_err(|error| ConnectError::Upgrade { reason: error.to_string() })?;
    let request = ClientRequestBuilder::new(uri).with_sub_protocol(SUBPROTOCOL);
    let config = WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .write_buffer_size(2 * LARGEST_PIECE)
        .max_write_buffer_size(8 * LARGEST_PIECE)
        .max_message_size(Some(LARGEST_MESSAGE))
        .max_frame_size(Some(LARGEST_MESSAGE));
    match client_async_with_config(request, stream, Some(config)).await {
        Ok((inner, _)) => Ok(WebSocket { inner, arrived: Bytes::new() }),
        Err(Error::Http(response)) => Err(ConnectError::Status { status: response.status().as_u16() }),
        Err(Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(_))) => Err(ConnectError::Subprotocol),
        Err(Error::Protocol(ProtocolError::HandshakeIncomplete)) => {
            Err(ConnectError::Upgrade { reason: "the connection was closed before an answer".to_owned() })
        }
        Err(Error::Io(error)) => Err(ConnectError::Upgrade { reason: super::explain(&error) }),
        Err(error) => Err(ConnectError::Upgrade { reason: error.to_string() }),
    }
}

impl AsyncRead for WebSocket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.arrived.is_empty() {
            match ready!(Pin::new(&mut this.inner).poll_next(context)) {
                Some(Ok(Message::Binary(bytes))) => this.arrived = bytes,
                // Answered by the library; the answer leaves with the next read, which follows at once.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(None | Some(CloseFrame { code: CloseCode::Normal, .. })))) | None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Close(Some(frame)))) => {
                    let words: String = frame.reason.escape_debug().take(120).collect();
                    let message = format!("the broker closed the WebSocket with {} {words}", u16::from(frame.code));
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, message)));
                }
                // A text frame is a reason to close (MQTT 5.0 §6.0-1).
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a text frame arrived, where MQTT has binary ones",
                    )));
                }
                Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(as_io(error))),
            }
        }
        let length = this.arrived.len().min(buffer.remaining());
        buffer.put_slice(&this.arrived[..length]);
        this.arrived.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WebSocket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = Pin::new(&mut self.get_mut().inner);
        ready!(inner.as_mut().poll_ready(context)).map_err(as_io)?;
        let length = bytes.len().min(LARGEST_PIECE);
        let piece = Bytes::copy_from_slice(&bytes[..length]);
        inner.start_send(Message::Binary(piece)).map_err(as_io)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context).map_err(as_io)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.inner).poll_close(context)).map_err(as_io)?;
        Pin::new(this.inner.get_mut()).poll_shutdown(context)
    }
}

fn as_io(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::NotConnected.into(),
        error => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
    }
}
