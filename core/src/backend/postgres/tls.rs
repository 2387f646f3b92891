//! TLS, asked for before the log-in.

use std::{io, path::Path, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::{
    config::{Config, Tls},
    socket::Bytes,
};
use crate::Error;

/// A connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Asks the server at `host` for TLS as the configuration says.
pub(super) async fn secure(mut socket: Bytes, host: &str, config: &Config) -> Result<Box<dyn Stream>, Trouble> {
    /// Length and code of the protocol's SSLRequest.
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    if config.tls == Tls::Disable {
        return Ok(Box::new(socket));
    }
    socket.write_all(&SSL_REQUEST).await?;
    // One byte and no more: what follows it in clear text could come from anybody.
    let mut answer = [0];
    socket.read_exact(&mut answer).await?;
    match (answer[0], &config.tls) {
        (b'S', _) => {}
        (_, Tls::Verify { .. }) => {
            return Err(io::Error::other("the server offers no TLS, which sslmode asks for").into());
        }
        _ => return Ok(Box::new(socket)),
    }
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let connector = TlsConnector::from(Arc::new(client_config(config)?));
    Ok(Box::new(connector.connect(name, socket).await?))
}

/// Why there is no TLS.
pub(super) enum Trouble {
    Io(io::Error),
    /// A file that the URL names is of no use.
    Url(Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn client_config(config: &Config) -> Result<ClientConfig, Trouble> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = match &config.tls {
        Tls::Verify { roots } => builder.with_root_certificates(root_store(roots.as_deref())?),
        _ => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
    };
    let Some(identity) = &config.identity else { return Ok(builder.with_no_client_auth()) };
    let certificates = read_certificates("sslcert", &identity.certificates)?;
    let unusable = |why: String| of_no_use("sslkey", &identity.key, &why);
    let key = PrivateKeyDer::from_pem_file(&identity.key).map_err(|error| unusable(error.to_string()))?;
    builder.with_client_auth_cert(certificates, key).map_err(|error| unusable(error.to_string()))
}

fn root_store(file: Option<&Path>) -> Result<RootCertStore, Trouble> {
    let mut roots = RootCertStore::empty();
    match file {
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        Some(file) => {
            for certificate in read_certificates("sslrootcert", file)? {
                roots.add(certificate).map_err(|error| of_no_use("sslrootcert", file, &error.to_string()))?;
            }
        }
    }
    if roots.is_empty() {
        return Err(io::Error::other("the system has no root certificates to verify the server's with").into());
    }
    Ok(roots)
}

fn read_certificates(option: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, Trouble> {
    let certificates = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(of_no_use(option, file, "it has no certificates")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(of_no_use(option, file, &error.to_string())),
    }
}

fn of_no_use(option: &str, file: &Path, why: &str) -> Trouble {
    Trouble::Url(Error::invalid("url", format!("has a file of no use, {option}={}: {why}", file.display())))
}

/// Takes any certificate: for `sslmode=prefer`, where clear text would do as well.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
