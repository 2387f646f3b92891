//! From a URL to a manager.

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    time::Duration,
};

use crate::{
    Error, LockManager, Result,
    backend::{
        Backend, file::FileBackend, memory::MemoryBackend, postgres, redis::RedisBackend, zookeeper::ZookeeperBackend,
    },
    lease::state::Drift,
    options::Patience,
};

/// Where locks are kept, and how. Made by [`connect`](crate::connect).
///
/// | URL | locks are kept |
/// |---|---|
/// | `memory:`, `memory:NAME` | in this process; NAME shares a store among managers |
/// | `file:///var/lock/app` | in files of that directory: among the processes of this host |
/// | several Redis URLs, as a list or separated by commas | in a majority of these independent servers (Redlock) |
/// | `redis://[user:password@]host[:port][/database]`, `rediss://…` (TLS), `redis+unix:///path` | in one Redis or Valkey |
/// | `zookeeper://[user:password@]host[:port],host…[/path][?session_timeout=10]`, `zookeeper+tls://…` | in a ZooKeeper ensemble |
/// | `redis+sentinel://[user:password@]host[:port],…/master[/database]` | in the primary that these sentinels name |
/// | `redis+cluster://[user:password@]host[:port],…` | in a Redis cluster |
/// | `postgres://user:password@host[:port]/database` | in a table of that PostgreSQL database |
///
/// Awaiting it opens the first connection, so that a wrong address or password shows at once; [`lazy`](Self::lazy)
/// leaves that to the first use.
#[must_use = "connects when awaited, or by lazy()"]
#[derive(Clone)]
pub struct Connect {
    urls: Vec<String>,
    options: Options,
}

/// Options of a manager.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) prefix: String,
    pub(crate) drift: Drift,
    pub(crate) node_timeout: Option<Duration>,
    pub(crate) metrics: bool,
    pub(crate) patience: Option<Patience>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            prefix: String::new(),
            drift: Drift { factor: 0.01 },
            node_timeout: None,
            metrics: true,
            patience: None,
        }
    }
}

impl Connect {
    pub(crate) fn new(urls: Vec<String>) -> Self {
        Self { urls: urls.iter().flat_map(|url| split(url)).collect(), options: Options::default() }
    }

    /// Put before each resource's name to make the Redis key. Default: nothing, so that other libraries' locks
    /// on the same name exclude ours and are excluded by ours.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.options.prefix = prefix.into();
        self
    }

    /// How far clocks may run apart, as a part of the ttl: 0 to 0.5, default 0.01.
    pub fn drift_factor(mut self, factor: f64) -> Self {
        self.options.drift.factor = factor;
        self
    }

    /// How long one server may take to answer. Default: a third of the ttl, between 50 ms and 2 s; with several
    /// servers a fifth of the ttl, between 50 ms and 500 ms.
    pub fn node_timeout(mut self, timeout: Duration) -> Self {
        self.options.node_timeout = Some(timeout);
        self
    }

    /// Whether [`LockManager::metrics`] counts (the default).
    pub fn metrics(mut self, metrics: bool) -> Self {
        self.options.metrics = metrics;
        self
    }

    /// Has acquiring fail as soon as the backend has been out of reach for `pause` and for `retries` more tries, whatever the
    /// wait; for `silences` more of them if it says nothing and the lock is waited for, and for none if it answers by an
    /// error that will not be over by itself. For the drop-in for redis-py's lock, whose clients say so.
    #[doc(hidden)]
    pub fn patience(mut self, retries: u32, silences: u32, pause: Duration) -> Self {
        self.options.patience = Some(Patience { retries, silences, pause });
        self
    }

    /// Makes the manager without touching the backend.
    ///
    /// # Errors
    /// `InvalidArgument` naming `url` or the option; `Unsupported` for a directory that locks cannot be kept in.
    pub fn lazy(self) -> Result<LockManager> {
        self.check()?;
        let backend = self.backend()?;
        Ok(LockManager::new(backend, &self.options))
    }

    fn check(&self) -> Result<()> {
        let Options { prefix, drift, node_timeout, metrics: _, patience: _ } = &self.options;
        if !(0.0..=0.5).contains(&drift.factor) {
            return Err(Error::invalid("drift_factor", format!("must be from 0 to 0.5, not {}", drift.factor)));
        }
        if prefix.contains('\0') || prefix.len() > 256 {
            return Err(Error::invalid("prefix", "must have at most 256 bytes and no NUL"));
        }
        if node_timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(Error::invalid("node_timeout", "must be positive"));
        }
        Ok(())
    }

    fn backend(&self) -> Result<Box<dyn Backend>> {
        let [url, more @ ..] = &self.urls[..] else {
            return Err(Error::invalid("url", "must be given: at least one"));
        };
        let scheme = scheme_of(url);
        match scheme {
            _ if is_redis(scheme) && !more.iter().all(|url| is_redis(scheme_of(url))) => {
                Err(Error::invalid("url", "may be a list for Redis servers only"))
            }
            _ if is_redis(scheme) => Ok(Box::new(RedisBackend::new(&self.urls, &self.options)?)),
            _ if !more.is_empty() => Err(Error::invalid("url", "may be a list for Redis servers only")),
            "memory" => Ok(Box::new(MemoryBackend::new(&url["memory:".len()..]))),
            "file" => Ok(Box::new(FileBackend::new(url)?)),
            "postgres" | "postgresql" => postgres::backend(url, &self.options),
            "zookeeper" | "zookeeper+tls" => Ok(Box::new(ZookeeperBackend::new(url, &self.options)?)),
            "" => Err(Error::invalid("url", "must start with a scheme, as in redis://localhost:6379")),
            other => {
                let why = format!(
                    "has the unknown scheme {other:?}; known are redis, rediss, redis+unix, redis+sentinel, redis+cluster, \
                     postgres, zookeeper, zookeeper+tls, file, memory"
                );
                Err(Error::invalid("url", why))
            }
        }
    }
}

impl IntoFuture for Connect {
    type Output = Result<LockManager>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let locks = self.lazy()?;
            locks.backend().check_reachable(&crate::host::Driver::here()).await?;
            Ok(locks)
        })
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URLs may hold passwords.
        f.debug_struct("Connect").field("urls", &self.urls.len()).field("options", &self.options).finish()
    }
}

/// What stands before the colon, if that can be a scheme: what cannot may be a log-in, and is not to be repeated.
fn scheme_of(url: &str) -> &str {
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    if is_scheme(scheme) { scheme } else { "" }
}

fn is_scheme(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

fn is_redis(scheme: &str) -> bool {
    let (base, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
    let known = matches!(base, "redis" | "rediss" | "valkey" | "valkeys");
    scheme == "unix" || known && matches!(kind, "" | "unix" | "sentinel" | "cluster")
}

/// The URLs in a list that is one string: separated by commas, where a scheme follows.
fn split(list: &str) -> Vec<String> {
    let mut urls: Vec<String> = Vec::new();
    for part in list.split(',') {
        // A comma that no scheme follows is a part of the URL, say of its password.
        let starts = part.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme));
        match urls.last_mut() {
            Some(last) if !starts => {
                last.push(',');
                last.push_str(part);
            }
            _ => urls.push(part.to_owned()),
        }
    }
    urls
}

/// One URL or several, for [`connect`](crate::connect).
pub trait IntoUrls {
    /// The URLs in order.
    fn into_urls(self) -> Vec<String>;
}

impl IntoUrls for &str {
    fn into_urls(self) -> Vec<String> {
        vec![self.to_owned()]
    }
}

impl IntoUrls for String {
    fn into_urls(self) -> Vec<String> {
        vec![self]
    }
}

impl IntoUrls for &String {
    fn into_urls(self) -> Vec<String> {
        vec![self.clone()]
    }
}

impl<S: Into<String>> IntoUrls for Vec<S> {
    fn into_urls(self) -> Vec<String> {
        self.into_iter().map(Into::into).collect()
    }
}

impl<S: AsRef<str>> IntoUrls for &[S] {
    fn into_urls(self) -> Vec<String> {
        self.iter().map(|url| url.as_ref().to_owned()).collect()
    }
}

impl<S: Into<String>, const N: usize> IntoUrls for [S; N] {
    fn into_urls(self) -> Vec<String> {
        self.into_iter().map(Into::into).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_may_be_one_string() {
        assert_eq!(split("redis://a,rediss://b:1/2"), ["redis://a", "rediss://b:1/2"]);
        assert_eq!(split("redis://:se,cret@a"), ["redis://:se,cret@a"]);
        assert_eq!(split("memory:"), ["memory:"]);
    }

    #[test]
    fn says_what_is_wrong_with_a_url() {
        for url in ["", "localhost", "nosuch://x", "redis://h:notaport", ":"] {
            let error = connect_error(vec![url]);
            assert_eq!(error.argument(), Some("url"), "{url}: {error}");
        }
        // Where the scheme is missing, what stands in its place may be a password.
        assert!(!connect_error(vec!["se/cret:more@host:1"]).to_string().contains("cret"));
        for several in [vec!["redis://a,b"], vec!["redis://:secret@a:1,b:2"], vec!["redis://a", "postgres://b"]] {
            assert!(connect_error(several).to_string().contains("list"));
        }
        assert_eq!(connect_error(Vec::<String>::new()).argument(), Some("url"));
        for (twice, named) in [
            (["redis://a", "redis://a:6379"], "a:6379"),
            (["redis+cluster://a,b", "redis+cluster://c,b"], "b:6379"),
            (["redis+cluster://a,b", "redis://b"], "b:6379"),
            (["redis+sentinel://a,b/m", "redis+sentinel://b/m"], "m of b:26379"),
        ] {
            assert_eq!(connect_error(twice).to_string(), format!("url lists {named} twice"));
        }
    }

    fn connect_error(urls: impl IntoUrls) -> Error {
        Connect::new(urls.into_urls()).lazy().expect_err("a wrong URL")
    }
}
