//! TCP: names to addresses, and the first of them that answers.

use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::clear::Clear;
use super::{ConnectError, Limit, Step};

/// More addresses than this are not tried: the time would be up before.
const MAX_ADDRESSES: usize = 16;

/// The addresses behind a name, in the system's order.
pub(super) async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
    let unknown = |error| ConnectError::Unresolved { host: host.to_owned(), error };
    let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await.map_err(unknown)?.take(MAX_ADDRESSES).collect();
    match found.is_empty() {
        true => Err(unknown(std::io::Error::other("it has no address"))),
        false => Ok(found),
    }
}

/// Connects to the first address that takes it. Each gets its share of the time that is left, so that one that swallows packets doesn't
/// keep the others from being tried.
pub(super) async fn connect(host: &str, port: u16, addresses: &[SocketAddr], limit: Limit) -> Result<Clear, ConnectError> {
    let mut last = None;
    for (tried, address) in addresses.iter().enumerate() {
        let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = limit.until.saturating_duration_since(Instant::now()) / left;
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Acknowledgements are small and wait for nobody.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%address, %error, "TCP_NODELAY could not be set");
                }
                return Clear::new(stream).map_err(|error| ConnectError::Unreachable { host: host.to_owned(), port, error });
            }
            Ok(Err(error)) => last = Some(ConnectError::Unreachable { host: host.to_owned(), port, error }),
            Err(_) => last = last.or(Some(ConnectError::TimedOut { step: Step::Connect, limit: limit.whole })),
        }
    }
    Err(last.unwrap_or(ConnectError::TimedOut { step: Step::Connect, limit: limit.whole }))
}
