//! TLS: always verified, against the system's certificates or those that the URL names.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// A connection with TLS or without.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Whose certificates are trusted, and what to show of our own. Files in PEM, read again for each connection, so that
/// certificates can be renewed under a running program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tls {
    /// Instead of the system's.
    pub(super) ca: Option<PathBuf>,
    /// Certificate (and what leads to its root) and key.
    pub(super) client: Option<(PathBuf, PathBuf)>,
}

/// Speaks TLS over `socket`, with the server called `host`.
pub(super) async fn secure(socket: TcpStream, host: &str, tls: &Tls) -> io::Result<Box<dyn Stream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let connector = TlsConnector::from(Arc::new(tls.config()?));
    Ok(Box::new(connector.connect(name, socket).await?))
}

impl Tls {
    /// Whether the files can be used.
    pub(super) fn check(&self) -> io::Result<()> {
        self.config().map(drop)
    }

    fn config(&self) -> io::Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        match &self.ca {
            None => _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
            Some(file) => {
                for certificate in certificates(file)? {
                    roots.add(certificate).map_err(|error| unusable(file, error))?;
                }
            }
        }
        if roots.is_empty() {
            return Err(io::Error::other("there are no root certificates to verify the server's with"));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots);
        match &self.client {
            None => Ok(config.with_no_client_auth()),
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, error))?;
                config.with_client_auth_cert(chain, secret).map_err(|error| unusable(certificate, error))
            }
        }
    }
}

fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    read.map_err(|error| unusable(file, error))
}

fn unusable(file: &Path, why: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {why}", file.display()))
}
