//! A connection with TLS or without.

use std::io;

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::backend::{quiet::Quiet, tls::Tls};

pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Speaks TLS over `socket`, with the server called `host`.
pub(super) async fn secure(socket: TcpStream, host: &str, tls: &Tls) -> io::Result<Box<dyn Stream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let connector = TlsConnector::from(tls.config().map_err(io::Error::other)?);
    Ok(Box::new(connector.connect(name, Quiet(socket)).await?))
}
