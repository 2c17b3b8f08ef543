//! TLS for the commands: the OpenSSL that is here anyway, under the client's own sockets.
//!
//! The client's own TLS would bring a second implementation along, with other authorities and other certificates that it takes.

use std::fmt;
use std::io::{Read, Write};
use std::path::Path;

use openssl::ssl::{HandshakeError, SslConnector, SslMethod, SslStream, SslVersion};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509VerifyResult};
use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter};

/// What connections are secured with.
#[derive(Debug)]
pub struct Secure(SslConnector);

impl Secure {
    /// Servers have to be certified by an authority in this file; or, without one, by one that the system trusts.
    ///
    /// # Errors
    /// What is wrong with the file, in words.
    pub fn by(authorities: Option<&Path>) -> Result<Secure, String> {
        let internal = |error: openssl::error::ErrorStack| format!("OpenSSL can't be used: {error}");
        let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(internal)?;
        builder.set_min_proto_version(Some(SslVersion::TLS1_2)).map_err(internal)?;
        if let Some(path) = authorities {
            let text = std::fs::read(path).map_err(|error| format!("{} can't be read: {error}", path.display()))?;
            let found = X509::stack_from_pem(&text).unwrap_or_default();
            if found.is_empty() {
                return Err(format!("{} has no certificate in PEM", path.display()));
            }
            let mut store = X509StoreBuilder::new().map_err(internal)?;
            for authority in found {
                store.add_cert(authority).map_err(internal)?;
            }
            builder.set_cert_store(store.build());
        }
        Ok(Secure(builder.build()))
    }
}

/// Why TLS did not come about.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotSecured(String);

impl<In: Transport> Connector<In> for Secure {
    type Out = Either<In, SecureTransport>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() || transport.is_tls() {
            return Ok(Some(Either::A(transport)));
        }
        // An address of IPv6 stands in brackets there, and without them in a certificate.
        let host = details.uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let boxed: Box<dyn Transport> = Box::new(transport);
        let mut adapter = TransportAdapter::new(boxed, details.current_time.clone());
        adapter.set_timeout(details.timeout);
        let stream = self.0.connect(host, adapter).map_err(|error| Error::Other(Box::new(NotSecured(reason(&error)))))?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(SecureTransport { buffers, stream })))
    }
}

/// In OpenSSL's words.
fn reason<S>(error: &HandshakeError<S>) -> String {
    match error {
        HandshakeError::SetupFailure(error) => error.to_string(),
        HandshakeError::Failure(broken) | HandshakeError::WouldBlock(broken) => match broken.ssl().verify_result() {
            X509VerifyResult::OK => broken.error().to_string(),
            unverified => unverified.error_string().to_owned(),
        },
    }
}

/// A connection that is secured.
pub struct SecureTransport {
    buffers: LazyBuffers,
    stream: SslStream<TransportAdapter>,
}

impl fmt::Debug for SecureTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecureTransport")
    }
}

impl Transport for SecureTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.get_mut().set_timeout(timeout);
        Ok(self.stream.write_all(&self.buffers.output()[..amount])?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.get_mut().set_timeout(timeout);
        let count = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
