//! A broker on this machine, by a socket in the file system.

use tokio::net::UnixStream;

use super::ConnectError;

pub(super) async fn connect(path: &str) -> Result<UnixStream, ConnectError> {
    UnixStream::connect(path).await.map_err(|error| ConnectError::Socket { path: path.to_owned(), error })
}
