//! Where the server is, how to log in, and which kind of locks: from a URL.

use std::{fmt, path::PathBuf, time::Duration};

use tokio_postgres::config::{Host, SslMode};
use url::form_urlencoded;

use crate::{Error, Result};

/// What a `postgres:` URL says. Printing it shows no user and no password.
#[derive(Clone)]
pub(super) struct Config {
    /// User, password, database and the like. Its hosts and its TLS are not used.
    pub(super) login: tokio_postgres::Config,
    /// To be tried in this order.
    pub(super) servers: Vec<Server>,
    pub(super) tls: Tls,
    /// What a server that asks for a certificate is shown.
    pub(super) identity: Option<Identity>,
    /// Whether waiters listen for the NOTIFY of a release.
    pub(super) listen: bool,
    /// The most connections for statements.
    pub(super) connections: usize,
    /// Advisory locks of a session, not rows.
    pub(super) session: bool,
    /// In session mode: a session for each lease.
    pub(super) dedicated: bool,
    /// In session mode: what names are.
    pub(super) keys: Keys,
    /// The table, quoted.
    pub(super) table: String,
    /// The name of the host that we run on.
    pub(super) host: String,
}

/// What names are to advisory locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    /// Names, which are hashed.
    Name,
    /// The locks' numbers.
    Number,
    /// The locks' pairs of numbers, which are other locks than those with one.
    Pair,
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "name",
            Self::Number => "number",
            Self::Pair => "pair",
        })
    }
}

/// One host of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Server {
    Tcp {
        /// As certificates and errors name it.
        host: String,
        /// What to connect to.
        address: String,
        port: u16,
    },
    Unix(PathBuf),
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// When to use TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tls {
    /// Never.
    Disable,
    /// Where the server offers it, without a look at its certificate: as `libpq` does, and no protection from somebody
    /// in between.
    Prefer,
    /// Always, and the certificate is verified: against the system's roots, or those of a file.
    Verify { roots: Option<PathBuf> },
}

/// PEM files that say who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) certificates: PathBuf,
    pub(super) key: PathBuf,
}

impl Config {
    /// Its servers, as errors name them.
    pub(super) fn names(&self) -> Vec<String> {
        self.servers.iter().map(ToString::to_string).collect()
    }

    /// Reads a URL. Errors do not repeat it, as it may hold a password.
    ///
    /// # Errors
    /// `InvalidArgument` naming `url`.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let invalid = |why: &str| Error::invalid("url", why);
        let (rest, query) = url.split_once('?').unwrap_or((url, ""));
        let (_, authority) = rest.split_once("://").ok_or_else(|| invalid("must start with postgres://"))?;
        let authority = authority.split('/').next().unwrap_or(authority);
        if authority.matches('@').count() > 1 {
            // What is after the first would be taken for the host, and be printed.
            return Err(invalid("has an @ in the user or the password: write it as %40"));
        }
        let mut config = Self {
            login: tokio_postgres::Config::new(),
            servers: Vec::new(),
            tls: Tls::Prefer,
            identity: None,
            listen: true,
            connections: 0,
            session: false,
            dedicated: false,
            keys: Keys::Name,
            table: String::new(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        };
        let (mut theirs, mut connections) = (Vec::new(), None);
        let (mut ssl_mode, mut roots, mut certificates, mut private_key) = (None, None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = form_urlencoded::parse(pair.as_bytes()).next() else { continue };
            match (&*key, &*value) {
                ("mode", "lease") => config.session = false,
                ("mode", "session") => config.session = true,
                ("mode", _) => return Err(invalid("takes mode=lease or mode=session")),
                ("keys", "name") => config.keys = Keys::Name,
                ("keys", "number") => config.keys = Keys::Number,
                ("keys", "pair") => config.keys = Keys::Pair,
                ("keys", _) => return Err(invalid("takes keys=name, keys=number or keys=pair")),
                ("listen", "on") => config.listen = true,
                ("listen", "off") => config.listen = false,
                ("listen", _) => return Err(invalid("takes listen=on or listen=off")),
                ("connections", "dedicated") => config.dedicated = true,
                ("connections", number) => {
                    let number = number.parse().ok().filter(|number| (1..=64).contains(number));
                    connections = Some(number.ok_or_else(|| {
                        invalid("takes connections=1 to connections=64, or dedicated in session mode")
                    })?);
                }
                ("table", name) => {
                    config.table = quoted(name)
                        .ok_or_else(|| invalid("takes table=name or table=schema.name, of letters, digits and _"))?;
                }
                ("sslmode", mode) => ssl_mode = Some(mode.to_owned()),
                ("sslrootcert", "system") => roots = Some(None),
                ("sslrootcert", path) => roots = Some(Some(PathBuf::from(path))),
                ("sslcert", path) => certificates = Some(PathBuf::from(path)),
                ("sslkey", path) => private_key = Some(PathBuf::from(path)),
                _ => theirs.push(pair),
            }
        }
        if !config.session && (config.keys != Keys::Name || config.dedicated) {
            return Err(invalid("takes keys= and connections=dedicated together with mode=session only"));
        }
        if config.session && connections.is_some() {
            return Err(invalid(
                "takes a number of connections in lease mode only: session mode has one, or dedicated",
            ));
        }
        config.connections = connections.unwrap_or(2);
        if config.table.is_empty() {
            config.table = if config.session { "polylock_session" } else { "polylock_lease" }.to_owned();
        }
        config.tls = match ssl_mode.as_deref() {
            Some("disable") => Tls::Disable,
            // Who names roots asks for verification.
            None | Some("prefer" | "allow") if roots.is_none() => Tls::Prefer,
            None | Some("prefer" | "allow" | "require" | "verify-ca" | "verify-full") => {
                Tls::Verify { roots: roots.flatten() }
            }
            Some(_) => {
                return Err(invalid("takes sslmode=disable, allow, prefer, require, verify-ca or verify-full"));
            }
        };
        config.identity = match (certificates, private_key) {
            (Some(certificates), Some(key)) => Some(Identity { certificates, key }),
            (None, None) => None,
            _ => return Err(invalid("takes sslcert and sslkey together")),
        };
        let plain = format!("{rest}?{}", theirs.join("&"));
        config.login = plain.parse().map_err(|error: tokio_postgres::Error| {
            let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            invalid(&format!("is not a PostgreSQL URL: {why}"))
        })?;
        config.servers = servers(&config.login)?;
        // We make TLS ourselves, before the log-in.
        config.login.ssl_mode(SslMode::Disable);
        if config.login.get_application_name().is_none() {
            config.login.application_name(format!("polylock {}@{}", std::process::id(), config.host));
        }
        Ok(config)
    }

    /// How long opening a connection may take, for each server.
    pub(super) fn connect_timeout(&self) -> Duration {
        const USUAL: Duration = Duration::from_secs(5);
        self.login.get_connect_timeout().copied().filter(|timeout| !timeout.is_zero()).unwrap_or(USUAL)
    }
}

fn servers(login: &tokio_postgres::Config) -> Result<Vec<Server>> {
    let (hosts, addresses, ports) = (login.get_hosts(), login.get_hostaddrs(), login.get_ports());
    let fits = |given: usize| given <= 1 || given == hosts.len();
    if !fits(ports.len()) || !(addresses.is_empty() || addresses.len() == hosts.len()) {
        return Err(Error::invalid("url", "has another number of ports or addresses than of hosts"));
    }
    let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(5432);
    let server = |(index, host): (usize, &Host)| match host {
        Host::Tcp(host) => Server::Tcp {
            host: host.clone(),
            address: addresses.get(index).map_or_else(|| host.clone(), ToString::to_string),
            port: port(index),
        },
        #[cfg(unix)]
        Host::Unix(directory) => Server::Unix(directory.join(format!(".s.PGSQL.{}", port(index)))),
    };
    let servers: Vec<_> = hosts.iter().enumerate().map(server).collect();
    if servers.is_empty() {
        return Err(Error::invalid("url", "must name a host, as in postgres://localhost/app"));
    }
    Ok(servers)
}

/// `name` or `schema.name`, quoted for SQL; `None` if it could mean something else there.
fn quoted(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let plain = |part: &&str| {
        (1..=63).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    if parts.len() > 2 || !parts.iter().all(plain) {
        return None;
    }
    Some(parts.iter().map(|part| format!("\"{part}\"")).collect::<Vec<_>>().join("."))
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres://")?;
        for (index, server) in self.servers.iter().enumerate() {
            write!(f, "{}{server}", if index > 0 { "," } else { "" })?;
        }
        write!(f, "/{}", self.login.get_dbname().unwrap_or(""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Config {
        Config::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    #[test]
    fn reads_urls() {
        let config = parse("postgres://bob:s%40cret@db.example:6543/app?table=ops.locks&connections=5&listen=off");
        assert_eq!(config.servers[0].to_string(), "db.example:6543");
        assert_eq!((config.login.get_user(), config.login.get_dbname()), (Some("bob"), Some("app")));
        assert_eq!(config.login.get_password(), Some("s@cret".as_bytes()));
        assert_eq!((config.table.as_str(), config.connections, config.listen), ("\"ops\".\"locks\"", 5, false));
        assert_eq!(format!("{config:?}"), "postgres://db.example:6543/app");
    }

    #[test]
    fn reads_several_hosts_and_sockets() {
        let config = parse("postgresql://u@a,b:5433/app?target_session_attrs=read-write");
        assert_eq!(config.names(), ["a:5432", "b:5433"]);
        let config = parse("postgres:///app?host=/run/postgresql&port=5433");
        assert_eq!(config.servers, [Server::Unix("/run/postgresql/.s.PGSQL.5433".into())]);
    }

    #[test]
    fn asks_for_verification_wherever_that_can_be_meant() {
        let tls = |query: &str| parse(&format!("postgres://h/d?{query}")).tls;
        assert_eq!(tls(""), Tls::Prefer);
        assert_eq!(tls("sslmode=disable"), Tls::Disable);
        for query in [
            "sslmode=require",
            "sslmode=verify-ca",
            "sslmode=verify-full&sslrootcert=system",
            "sslmode=prefer&sslrootcert=system",
            "sslrootcert=system",
        ] {
            assert_eq!(tls(query), Tls::Verify { roots: None }, "{query}");
        }
        assert_eq!(tls("sslrootcert=/ca.pem"), Tls::Verify { roots: Some("/ca.pem".into()) });
    }

    #[test]
    fn refuses_what_it_does_not_understand_and_never_repeats_it() {
        for url in [
            "postgres://u:hush@hush@h/d",
            "postgres://u:hush@h:hush/d",
            "postgres://u:hush@h/d?mode=hush",
            "postgres://u:hush@h/d?hush=1",
            "postgres://u:hush@h/d?table=a%22b",
            "postgres://u:hush@h/d?table=a.b.c",
            "postgres://u:hush@h/d?connections=0",
            "postgres://u:hush@h/d?keys=number",
            "postgres://u:hush@h/d?keys=pair",
            "postgres://u:hush@h/d?connections=dedicated",
            "postgres://u:hush@h/d?mode=session&connections=3",
            "postgres://u:hush@h/d?sslcert=hush",
            "postgres://u:hush@h/d?sslmode=hush",
            "postgres://u:hush@/d",
        ] {
            let error = Config::parse(url).expect_err(url);
            assert_eq!(error.argument(), Some("url"), "{url}");
            let allowed = url.contains("?hush=1") && error.to_string().contains("`hush`");
            assert!(allowed || !format!("{error:?}").contains("hush"), "{url}: {error}");
        }
    }
}
