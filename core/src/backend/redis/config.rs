//! Where one server is, and how to log in.

use std::{fmt, path::PathBuf};

use redis::{ConnectionAddr, IntoConnectionInfo};

use crate::{Error, Result};

/// One server. Printing it shows no password.
#[derive(Clone)]
pub(super) struct NodeConfig {
    pub(super) address: Address,
    pub(super) tls: bool,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: i64,
    /// What errors call it.
    pub(super) name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl NodeConfig {
    /// Reads a URL; errors do not repeat it, as it may hold a password.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let (scheme, rest) = url.split_once(':').unwrap_or((url, ""));
        // The parser ignores options that it does not know, and so would a typing error go unseen.
        if !matches!(scheme, "redis+unix" | "unix") && rest.contains(['?', '#']) {
            let why = "takes no ?options and no #fragment; in a password, write ? as %3F and # as %23";
            return Err(Error::invalid("url", why));
        }
        let tls = matches!(scheme, "rediss" | "valkeys");
        // Whether to use TLS is ours to decide; the parser was built without it.
        let plain = if tls { format!("redis:{rest}") } else { url.to_owned() };
        let info = plain
            .as_str()
            .into_connection_info()
            .map_err(|error| Error::invalid("url", format!("is not a Redis URL: {}", error.category())))?;
        let (address, name) = match info.addr() {
            ConnectionAddr::Tcp(host, port) => (Address::Tcp(host.clone(), *port), format!("{host}:{port}")),
            ConnectionAddr::Unix(path) => (Address::Unix(path.clone()), path.display().to_string()),
            _ => return Err(Error::invalid("url", "is not a Redis URL")),
        };
        let login = info.redis_settings();
        let some = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
        Ok(Self {
            address,
            tls,
            username: some(login.username()),
            password: some(login.password()),
            database: login.db(),
            name,
        })
    }

    /// The first requests on a connection, and what each is called in errors.
    pub(super) fn login(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut requests = Vec::new();
        if let Some(password) = &self.password {
            let mut auth = redis::cmd("AUTH");
            if let Some(username) = &self.username {
                auth.arg(username);
            }
            requests.push(("AUTH", auth.arg(password).get_packed_command()));
        }
        if self.database != 0 {
            requests.push(("SELECT", redis::cmd("SELECT").arg(self.database).get_packed_command()));
        }
        requests
    }
}

impl fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "rediss" } else { "redis" };
        write!(f, "{scheme}://{}/{}", self.name, self.database)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_urls() {
        let node = NodeConfig::parse("rediss://me:p%40ss@example.org:7000/3").unwrap();
        assert_eq!(node.address, Address::Tcp("example.org".into(), 7000));
        assert_eq!((node.username.as_deref(), node.password.as_deref()), (Some("me"), Some("p@ss")));
        assert!(node.tls && node.database == 3);
        assert_eq!(NodeConfig::parse("redis://localhost").unwrap().name, "localhost:6379");
        assert_eq!(NodeConfig::parse("redis+unix:///run/redis.sock").unwrap().name, "/run/redis.sock");
        assert_eq!(NodeConfig::parse("redis://[::1]:1").unwrap().address, Address::Tcp("::1".into(), 1));
    }

    #[test]
    fn shows_no_password() {
        let node = NodeConfig::parse("redis://me:secret@h/0").unwrap();
        assert!(!format!("{node:?}").contains("secret"));
        for bad in [
            "redis://h/0?password=secret",
            "rediss://h#insecure",
            "redis://:secret@h:notaport",
            "redis://me:secret@",
            "redis://:secret@h/notadb",
        ] {
            let error = NodeConfig::parse(bad).unwrap_err();
            assert_eq!(error.argument(), Some("url"));
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
    }
}
