//! TLS where the URL's scheme asks for it: always verified, against the system's certificates or those that the URL names.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use once_cell::race::OnceBox;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use crate::{Error, Result};

/// Whose certificates are trusted, and what to show of our own. Files in PEM, read again for each connection, so that
/// certificates can be renewed under a running program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tls {
    /// Instead of the system's.
    pub(super) ca: Option<PathBuf>,
    /// Certificate (and what leads to its root) and key.
    pub(super) client: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    /// A client session for the server called `host`, sans I/O.
    pub(super) fn client(&self, host: &str) -> Result<Box<ClientConnection>> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Error::invalid("url", "has a host that no certificate can name"))?;
        let client = ClientConnection::new(self.config()?, name)
            .map_err(|error| Error::unavailable(format!("TLS: {error}")))?;
        Ok(Box::new(client))
    }

    /// Reads the files.
    ///
    /// # Errors
    /// `InvalidArgument` naming `url` if one is not what it should be.
    pub(super) fn config(&self) -> Result<Arc<ClientConfig>> {
        // The system's certificates are many: they are read once.
        static SYSTEM: OnceBox<std::result::Result<Arc<RootCertStore>, String>> = OnceBox::new();
        let roots = match &self.ca {
            Some(file) => Arc::new(roots(file)?),
            None => match SYSTEM.get_or_init(|| Box::new(system_roots())) {
                Ok(roots) => Arc::clone(roots),
                Err(why) => return Err(Error::unavailable(format!("TLS: {why}"))),
            },
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::unavailable(format!("TLS: {error}")))?
            .with_root_certificates(roots);
        Ok(Arc::new(match &self.client {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, error))?;
                config.with_client_auth_cert(chain, secret).map_err(|error| unreadable(certificate, error))?
            }
        }))
    }
}

fn roots(file: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| unreadable(file, error))?;
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(unreadable(file, "there is no certificate in it")),
        Err(error) => Err(unreadable(file, error)),
    }
}

fn unreadable(file: &Path, why: impl std::fmt::Display) -> Error {
    Error::invalid("url", format!("names {}: {why}", file.display()))
}

fn system_roots() -> std::result::Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 { Err("the system has no root certificates".into()) } else { Ok(Arc::new(roots)) }
}
