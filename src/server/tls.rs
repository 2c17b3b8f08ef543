//! TLS for whoever connects here: certificates that are read again, and a handshake.

use std::fmt;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use openssl::ssl::{Ssl, SslAcceptor};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

/// A certificate that was renewed is taken up within this time.
const CERTIFICATE_EVERY: Duration = Duration::from_secs(60);

/// Reads certificate and key, and makes what connections are accepted with.
pub type MakeAcceptor = dyn Fn() -> Result<SslAcceptor, String> + Send + Sync;

/// What TLS connections are accepted with, read anew now and then.
pub struct Acceptor {
    make: Box<MakeAcceptor>,
    made: Mutex<Option<(Instant, SslAcceptor)>>,
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Acceptor")
    }
}

impl Acceptor {
    /// It is made when it is needed.
    pub fn new(make: Box<MakeAcceptor>) -> Self {
        Acceptor { make, made: Mutex::new(None) }
    }

    /// TLS for one connection.
    ///
    /// # Errors
    /// If there never was a certificate that could be read.
    pub fn ssl(&self) -> Result<Ssl, String> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.as_ref().is_none_or(|(at, _)| at.elapsed() >= CERTIFICATE_EVERY) {
            match ((self.make)(), made.as_mut()) {
                (Ok(fresh), _) => *made = Some((Instant::now(), fresh)),
                (Err(reason), Some((at, _))) => {
                    tracing::error!(reason, "the listener's certificate can't be read; the one from before is used");
                    *at = Instant::now();
                }
                (Err(reason), None) => return Err(reason),
            }
        }
        let (_, acceptor) = made.as_ref().ok_or("there is no certificate")?;
        Ssl::new(acceptor.context()).map_err(|error| error.to_string())
    }
}

/// The handshake. It takes as long as the client lets it: whoever calls this sets a limit.
///
/// # Errors
/// In OpenSSL's words.
pub async fn handshake(ssl: Ssl, stream: TcpStream) -> Result<SslStream<TcpStream>, String> {
    let mut stream = SslStream::new(ssl, stream).map_err(|error| error.to_string())?;
    Pin::new(&mut stream).accept().await.map_err(|error| format!("the TLS handshake failed: {error}"))?;
    Ok(stream)
}
