//! TLS for `rediss://`: always verified, against the system's certificates.

use std::sync::Arc;

use once_cell::race::OnceBox;
use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};

use crate::{Error, Result};

/// A client session for the server called `host`, sans I/O.
pub(super) fn client(host: &str) -> Result<Box<ClientConnection>> {
    static CONFIG: OnceBox<std::result::Result<Arc<ClientConfig>, String>> = OnceBox::new();
    let config = CONFIG
        .get_or_init(|| Box::new(config()))
        .as_ref()
        .map_err(|why| Error::unavailable(format!("TLS: {why}")))?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Error::invalid("url", "has a host that no certificate can name"))?;
    let client = ClientConnection::new(Arc::clone(config), name)
        .map_err(|error| Error::unavailable(format!("TLS: {error}")))?;
    Ok(Box::new(client))
}

fn config() -> std::result::Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err("the system has no root certificates".into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
