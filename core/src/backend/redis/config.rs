//! Where servers are, and how to log in.

use std::{borrow::Cow, collections::HashSet, fmt, path::PathBuf, time::Duration};

use futures_util::future::{BoxFuture, FutureExt};
use redis::{ConnectionAddr, IntoConnectionInfo};

use super::{call::CallError, subscriber::Locate};
use crate::{Error, Result, backend::tls::Tls, options};

/// How long a restarted server sits out unless the URL says otherwise: twice the ttl that leases have by default. The ttls of other
/// programs are not known here. Too short a time ends exclusion without a word; too long a one costs one vote for a while.
const LONGEST_TTL: Duration = Duration::from_secs(60);

/// What a URL stands for.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) place: Place,
    /// How long a server that was restarted does not vote.
    pub(super) longest_ttl: Duration,
}

#[derive(Clone, Debug)]
pub(super) enum Place {
    One(NodeConfig),
    /// The primary that any of these sentinels names. `server` has the log-in of the primary, and no address yet.
    Sentinel {
        sentinels: Vec<NodeConfig>,
        master: String,
        server: NodeConfig,
    },
    /// The servers of a cluster, to be found by way of any of these.
    Cluster(Vec<NodeConfig>),
}

impl Place {
    /// What is at this place and at no other: the names of servers with their databases, those of primaries with who knows them.
    pub(super) fn names(&self) -> HashSet<(String, i64)> {
        match self {
            Self::One(node) => [(node.name.clone(), node.database)].into(),
            Self::Sentinel { sentinels, master, server } => {
                let named = |sentinel: &NodeConfig| (format!("{master} of {}", sentinel.name), server.database);
                sentinels.iter().map(named).collect()
            }
            Self::Cluster(seeds) => seeds.iter().map(|seed| (seed.name.clone(), 0)).collect(),
        }
    }
}

/// One server. Printing it shows no password.
#[derive(Clone)]
pub(super) struct NodeConfig {
    pub(super) address: Address,
    pub(super) tls: Option<Tls>,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: i64,
    /// What is to be found there.
    pub(super) role: Role,
    /// To speak RESP3.
    pub(super) resp3: bool,
    /// How many replicas must have a grant before it counts.
    pub(super) replicas: u32,
    /// What errors call it.
    pub(super) name: String,
}

/// What a server is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It keeps locks, whatever it is to others.
    Any,
    /// It keeps locks, and must not be a replica.
    Primary,
    Sentinel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Address {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl Address {
    /// Reads `host:port`; an empty host is that of `self`.
    pub(super) fn read_beside(&self, text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        self.beside(host.trim_start_matches('[').trim_end_matches(']'), port.parse().ok()?)
    }

    /// Another server of those that `self` belongs to. One that does not know its own host is where we found it.
    pub(super) fn beside(&self, host: &str, port: u16) -> Option<Self> {
        match (host, self) {
            ("" | "?", Self::Tcp(host, _)) => Some(Self::Tcp(host.clone(), port)),
            ("" | "?", Self::Unix(_)) => None,
            _ => Some(Self::Tcp(host.to_owned(), port)),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Config {
    /// Reads a URL; errors do not repeat it, as it may hold a password.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let (scheme, rest) = url.split_once(':').unwrap_or((url, ""));
        if rest.contains('#') {
            return Err(Error::invalid("url", "takes no #fragment; in a password, write # as %23"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (scheme, kind) =
            scheme.split_once('+').unwrap_or(if scheme == "unix" { ("redis", "unix") } else { (scheme, "") });
        let mut parameters = Parameters::read(query)?;
        let tls = matches!(scheme, "rediss" | "valkeys");
        parameters.check_for(tls, kind)?;
        let place = match kind {
            "sentinel" => parameters.sentinel(rest, tls)?,
            "cluster" => parameters.cluster(rest, tls)?,
            "unix" => {
                // What a path has no room for.
                let login = parameters.unix.join("&");
                Place::One(parameters.node(&format!("redis+unix:{rest}?{login}"), false)?)
            }
            _ if split(rest).1.len() > 1 => {
                let why = "names several hosts: give a list of URLs for Redlock, or redis+cluster or redis+sentinel";
                return Err(Error::invalid("url", why));
            }
            _ => Place::One(parameters.node(&format!("redis:{rest}"), tls)?),
        };
        Ok(Self { place, longest_ttl: parameters.longest_ttl.unwrap_or(LONGEST_TTL) })
    }
}

/// What stands behind the question mark.
#[derive(Default)]
struct Parameters {
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    resp3: bool,
    replicas: u32,
    longest_ttl: Option<Duration>,
    sentinel_user: Option<String>,
    sentinel_password: Option<String>,
    /// `db`, `user` and `pass` of a socket's URL.
    unix: Vec<String>,
}

impl Parameters {
    fn read(query: &str) -> Result<Self> {
        let mut all = Self::default();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            if matches!(name, "db" | "user" | "pass") {
                all.unix.push(part.to_owned());
                continue;
            }
            let (_, value) =
                url::form_urlencoded::parse(part.as_bytes()).next().unwrap_or((Cow::from(name), Cow::from(value)));
            let path = || Some(PathBuf::from(value.as_ref()));
            let text = || Some(value.clone().into_owned());
            match name {
                "ca" => all.ca = path(),
                "cert" => all.cert = path(),
                "key" => all.key = path(),
                "protocol" => {
                    all.resp3 = match &*value {
                        "2" => false,
                        "3" => true,
                        _ => return Err(Error::invalid("url", "may ask for protocol=2 or protocol=3")),
                    }
                }
                "replicas" => {
                    let wrong = |_| Error::invalid("url", "wants a number of replicas, as in replicas=1");
                    all.replicas = value.parse().map_err(wrong)?;
                }
                "longest_ttl" => {
                    let seconds = value
                        .parse()
                        .ok()
                        .and_then(|seconds: f64| options::duration("url", seconds, Duration::from_secs(1)).ok());
                    let wrong = || Error::invalid("url", "wants seconds, as in longest_ttl=60");
                    all.longest_ttl = Some(seconds.ok_or_else(wrong)?);
                }
                "sentinel_user" => all.sentinel_user = text(),
                "sentinel_password" => all.sentinel_password = text(),
                // Its name is not repeated: it may be the rest of a password.
                _ => {
                    let why = "has an option that is not known; known are protocol, replicas, longest_ttl, ca, cert, \
                               key, sentinel_user and sentinel_password; in a password, write ? as %3F";
                    return Err(Error::invalid("url", why));
                }
            }
        }
        Ok(all)
    }

    fn check_for(&self, tls: bool, kind: &str) -> Result<()> {
        if !tls && (self.ca.is_some() || self.cert.is_some() || self.key.is_some()) {
            return Err(Error::invalid("url", "has ca, cert or key, but no TLS: write rediss"));
        }
        if self.cert.is_some() != self.key.is_some() {
            return Err(Error::invalid("url", "must have both cert and key, or neither"));
        }
        if kind != "sentinel" && (self.sentinel_user.is_some() || self.sentinel_password.is_some()) {
            return Err(Error::invalid("url", "has a log-in for sentinels, but names none"));
        }
        if kind != "unix" && !self.unix.is_empty() {
            let why = "takes db, user and pass for a socket only: write redis://user:password@host/database";
            return Err(Error::invalid("url", why));
        }
        if !matches!(kind, "" | "unix" | "sentinel" | "cluster") || (tls && kind == "unix") {
            return Err(Error::invalid("url", "has an unknown scheme"));
        }
        Ok(())
    }

    /// One server; `url` has no options but those that the parser reads.
    fn node(&mut self, url: &str, tls: bool) -> Result<NodeConfig> {
        // What the parser says of it says no more, and could repeat a password.
        let wrong = || {
            let why = "is not a Redis URL, as in redis://user:password@localhost:6379/0: it has a host, a port up to \
                       65535, a database by its number (in a password, % and the like are written as %25)";
            Error::invalid("url", why)
        };
        let info = url.into_connection_info().map_err(|_| wrong())?;
        let address = match info.addr() {
            ConnectionAddr::Tcp(host, port @ 1..) => Address::Tcp(host.clone(), *port),
            ConnectionAddr::Unix(path) => Address::Unix(path.clone()),
            _ => return Err(wrong()),
        };
        let login = info.redis_settings();
        if login.db() < 0 {
            return Err(wrong());
        }
        let some = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
        let tls = tls.then(|| Tls { ca: self.ca.clone(), client: self.cert.clone().zip(self.key.clone()) });
        if let Some(tls) = &tls {
            tls.config()?; // said now, and not at the first use
        }
        Ok(NodeConfig {
            name: address.to_string(),
            address,
            tls,
            username: some(login.username()),
            password: some(login.password()),
            database: login.db(),
            role: Role::Any,
            resp3: self.resp3,
            replicas: self.replicas,
        })
    }

    /// `//[user:password@]host[:port],…/master[/database]`
    fn sentinel(&mut self, rest: &str, tls: bool) -> Result<Place> {
        let (login, hosts, path) = split(rest);
        let (master, database) = path.split_once('/').unwrap_or((path, ""));
        if master.is_empty() {
            return Err(Error::invalid("url", "must name the master, as in redis+sentinel://h1,h2/mymaster"));
        }
        let master = percent_decode(master);
        let first = hosts.first().copied().unwrap_or_default();
        let mut server = self.node(&format!("redis://{login}{first}/{database}"), tls)?;
        server.role = Role::Primary;
        let mut sentinels = Vec::new();
        for host in hosts {
            let mut sentinel = self.node(&format!("redis://{}", with_port(host, 26379)), tls)?;
            (sentinel.username, sentinel.password) = (self.sentinel_user.clone(), self.sentinel_password.clone());
            (sentinel.role, sentinel.resp3, sentinel.replicas) = (Role::Sentinel, false, 0);
            sentinels.push(sentinel);
        }
        Ok(Place::Sentinel { sentinels, master, server })
    }

    /// `//[user:password@]host[:port],…`
    fn cluster(&mut self, rest: &str, tls: bool) -> Result<Place> {
        let (login, hosts, path) = split(rest);
        if !matches!(path, "" | "0") {
            return Err(Error::invalid("url", "names a database: a cluster has only 0"));
        }
        let nodes: Result<Vec<_>> =
            hosts.into_iter().map(|host| self.node(&format!("redis://{login}{host}"), tls)).collect();
        Ok(Place::Cluster(nodes?))
    }
}

/// Log-in with its `@`, hosts, and path without its `/`.
fn split(rest: &str) -> (&str, Vec<&str>, &str) {
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let at = authority.rfind('@').map_or(0, |at| at + 1);
    let (login, hosts) = authority.split_at(at);
    (login, hosts.split(',').collect(), path)
}

fn with_port(host: &str, port: u16) -> Cow<'_, str> {
    let after_address = host.rfind(']').unwrap_or(0);
    if host[after_address..].contains(':') { host.into() } else { format!("{host}:{port}").into() }
}

fn percent_decode(text: &str) -> String {
    let pair = format!("={}", text.replace('+', "%2B"));
    url::form_urlencoded::parse(pair.as_bytes()).next().map_or_else(String::new, |(_, value)| value.into_owned())
}

impl NodeConfig {
    /// Reads the URL of one server.
    #[cfg(test)]
    pub(super) fn parse(url: &str) -> Result<Self> {
        match Config::parse(url)?.place {
            Place::One(node) => Ok(node),
            _ => Err(Error::invalid("url", "stands for several servers")),
        }
    }

    /// The same log-in at another address.
    pub(super) fn at(&self, address: Address) -> Self {
        Self { name: address.to_string(), address, ..self.clone() }
    }

    /// The first requests on a connection, and what each is called in errors.
    pub(super) fn login(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut requests = Vec::new();
        if self.resp3 {
            let mut hello = redis::cmd("HELLO");
            hello.arg(3);
            if let Some(password) = &self.password {
                hello.arg("AUTH").arg(self.username.as_deref().unwrap_or("default")).arg(password);
            }
            requests.push(("HELLO", hello.get_packed_command()));
        } else if let Some(password) = &self.password {
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

/// A server whose place is known.
impl Locate for NodeConfig {
    fn locate(&self) -> BoxFuture<'_, Result<NodeConfig, CallError>> {
        std::future::ready(Ok(self.clone())).boxed()
    }
}

impl fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
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
        assert!(node.tls.is_some() && node.database == 3);
        assert_eq!(NodeConfig::parse("redis://localhost").unwrap().name, "localhost:6379");
        assert_eq!(NodeConfig::parse("redis+unix:///run/redis.sock").unwrap().name, "/run/redis.sock");
        assert_eq!(NodeConfig::parse("unix:///run/redis.sock?db=2&pass=x").unwrap().database, 2);
        assert_eq!(NodeConfig::parse("redis://[::1]:1").unwrap().address, Address::Tcp("::1".into(), 1));
        assert_eq!(NodeConfig::parse("redis://[::1]:1").unwrap().name, "[::1]:1");
    }

    #[test]
    fn says_what_a_url_has_without_repeating_it() {
        for url in ["redis://u:secret@h:99999", "redis://u:secret@h:x", "redis://u:secret@h/x", "redis://u:secret@"] {
            let error = NodeConfig::parse(url).unwrap_err().to_string();
            assert!(error.contains("a port up to 65535, a database by its number"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_restarted_server_sits_out_the_leases_of_programs_that_set_no_ttl() {
        let config = Config::parse("redis://h").unwrap();
        assert!(config.longest_ttl >= crate::Acquire::default().ttl * 2);
    }

    #[test]
    fn reads_options() {
        let config = Config::parse("redis://h/1?protocol=3&replicas=2&longest_ttl=1.5").unwrap();
        assert_eq!(config.longest_ttl, Duration::from_millis(1500));
        let Place::One(node) = config.place else { panic!("not one server") };
        assert!(node.resp3 && node.replicas == 2 && node.database == 1);
    }

    #[test]
    fn reads_the_urls_of_several_servers() {
        let url = "redis+sentinel://me:secret@h1,h2:7,[::1]/my%20master/3?sentinel_user=s&sentinel_password=p%26w";
        let Place::Sentinel { sentinels, master, server } = Config::parse(url).unwrap().place else { panic!() };
        let names: Vec<&str> = sentinels.iter().map(|sentinel| &*sentinel.name).collect();
        assert_eq!((names, &*master), (vec!["h1:26379", "h2:7", "[::1]:26379"], "my master"));
        assert_eq!(sentinels[0].username.as_deref(), Some("s"));
        assert_eq!(sentinels[0].password.as_deref(), Some("p&w"));
        assert_eq!((server.username.as_deref(), server.password.as_deref()), (Some("me"), Some("secret")));
        assert_eq!((server.database, sentinels[0].database), (3, 0));

        let Place::Cluster(nodes) = Config::parse("redis+cluster://:secret@h1,h2:7").unwrap().place else { panic!() };
        let names: Vec<&str> = nodes.iter().map(|node| &*node.name).collect();
        assert_eq!(names, ["h1:6379", "h2:7"]);
        assert!(nodes.iter().all(|node| node.password.as_deref() == Some("secret")));
    }

    #[test]
    fn shows_no_password() {
        let node = NodeConfig::parse("redis://me:secret@h/0").unwrap();
        assert!(!format!("{node:?}").contains("secret"));
        for bad in [
            "redis://h/0?password=secret",
            "redis://:not?secret@h",
            "redis://h?pass=secret",
            "rediss://h#insecure",
            "redis://h?protocol=secret",
            "redis://h?replicas=secret",
            "redis://h?longest_ttl=secret",
            "redis://h?longest_ttl=-1",
            "redis://h?ca=/nosuch",
            "rediss://h?ca=/nosuch",
            "rediss://h?cert=/nosuch",
            "redis://h?sentinel_password=secret",
            "redis://:secret@h:notaport",
            "redis://:secret@h:0",
            "redis://:secret@h/-1",
            "redis://me:secret@",
            "redis://:secret@h/notadb",
            "redis+sentinel://:secret@h1,h2",
            "redis+sentinel://:secret@h1,h2/m/notadb",
            "redis+cluster://:secret@h1,h2/3",
            "redis+cluster://:secret@h1,h2:notaport",
            "redis+cluster://:secret@h1,,h2",
            "redis+secret://h",
        ] {
            let error = Config::parse(bad).expect_err(bad);
            assert_eq!(error.argument(), Some("url"), "{bad}");
            assert!(!format!("{error:?}").contains("secret"), "{bad}: {error:?}");
        }
    }
}
