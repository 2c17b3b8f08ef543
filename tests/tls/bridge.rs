//! A WebSocket server that passes MQTT on to a broker: Debian's mosquitto is built without.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{SinkExt, StreamExt};
use openssl::ssl::{Ssl, SslAcceptor, SslFiletype, SslMethod};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_openssl::SslStream;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;

use crate::setup::Site;

/// How the bridge treats its clients.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    /// As a broker does, with packets cut into small frames and pings in between.
    Usual,
    /// It does not know the subprotocol.
    NoSubprotocol,
    /// It sends packets as text.
    Text,
}

pub struct Bridge {
    pub port: u16,
    pub pongs: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Bridge {
    /// In front of a broker on this machine; with the broker's certificate of a site, it speaks TLS.
    pub fn start(broker: u16, tls: Option<&Site>, manners: Manners) -> Bridge {
        let acceptor = tls.map(|site| {
            let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
            acceptor.set_certificate_chain_file(site.path("broker.pem")).unwrap();
            acceptor.set_private_key_file(site.path("broker.key"), SslFiletype::PEM).unwrap();
            acceptor.build()
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let pongs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&pongs);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, pongs) = (acceptor.clone(), Arc::clone(&counted));
                tokio::spawn(async move {
                    match acceptor {
                        None => serve(stream, broker, manners, &pongs).await,
                        Some(acceptor) => {
                            let mut stream = SslStream::new(Ssl::new(acceptor.context()).unwrap(), stream).unwrap();
                            if Pin::new(&mut stream).accept().await.is_ok() {
                                serve(stream, broker, manners, &pongs).await;
                            }
                        }
                    }
                });
            }
        });
        Bridge { port, pongs, _runtime: runtime }
    }
}

#[allow(clippy::result_large_err, reason = "the library's own signature")]
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, broker: u16, manners: Manners, pongs: &AtomicUsize) {
    let answer = |request: &Request, mut response: Response| {
        if request.uri().path() != "/mqtt" {
            return Err(Response::builder().status(404).body(None).unwrap());
        }
        assert_eq!(request.headers().get("Sec-WebSocket-Protocol"), Some(&HeaderValue::from_static("mqtt")));
        if manners != Manners::NoSubprotocol {
            response.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("mqtt"));
        }
        Ok(response)
    };
    let Ok(socket) = accept_hdr_async(stream, answer).await else { return };
    let (mut to_client, mut from_client) = socket.split();
    let Ok(broker) = TcpStream::connect(("127.0.0.1", broker)).await else { return };
    let (mut from_broker, mut to_broker) = broker.into_split();
    let out = async {
        while let Some(Ok(message)) = from_client.next().await {
            match message {
                Message::Binary(bytes) => to_broker.write_all(&bytes).await?,
                Message::Pong(_) => _ = pongs.fetch_add(1, Ordering::Relaxed),
                _ => {}
            }
        }
        to_broker.shutdown().await
    };
    let back = async {
        let mut buffer = [0; 1_024];
        loop {
            let length = from_broker.read(&mut buffer).await.unwrap_or(0);
            if length == 0 {
                return to_client.close().await;
            }
            for piece in buffer[..length].chunks(3) {
                let text = || Message::text(String::from_utf8_lossy(piece).into_owned());
                to_client.send(if manners == Manners::Text { text() } else { Message::binary(piece.to_vec()) }).await?;
                to_client.send(Message::Ping("are you there".into())).await?;
            }
        }
    };
    tokio::select! {
        _ = out => {}
        _ = back => {}
    }
}
