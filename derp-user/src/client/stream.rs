//! Connections as streams of bytes, for what is not DERP.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::{ClientError, Connector};

/// A connection with TLS or without.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

impl Connector {
    /// Connects as far as TLS. The caller limits the time.
    ///
    /// # Errors
    ///
    /// Whatever stands between here and a finished handshake.
    pub(crate) async fn open_stream(&self) -> Result<Box<dyn ByteStream>, ClientError> {
        let (socket, tls) = self.open_tcp().await?;
        let Some((config, name)) = tls else { return Ok(Box::new(socket)) };
        let stream = TlsConnector::from(config).connect(name, socket).await;
        stream.map(|stream| -> Box<dyn ByteStream> { Box::new(stream) }).map_err(|error| {
            let host = self.target().authority();
            match rustls_error(&error) {
                Some(source) => ClientError::Tls { host, source },
                None => ClientError::Io { host, source: error },
            }
        })
    }
}

fn rustls_error(error: &io::Error) -> Option<rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>().cloned()
}
