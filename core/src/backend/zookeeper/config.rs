//! Where an ensemble is, and how to use it.

use std::{fmt, time::Duration};

use super::wire::Acl;
use crate::{Error, Result};

/// One ensemble. Printing it shows no password.
#[derive(Clone)]
pub(super) struct Config {
    pub(super) hosts: Vec<(String, u16)>,
    /// `user:password`
    pub(super) login: Option<String>,
    /// The node under which the locks are: starts with a slash, ends without.
    pub(super) root: String,
    /// What we ask for; the server has the last word.
    pub(super) session_timeout: Duration,
}

impl Config {
    /// Reads a URL; errors do not repeat it, as it may hold a password.
    pub(super) fn parse(url: &str) -> Result<Self> {
        const PORT: u16 = 2181;
        let wrong = |why: &str| Error::invalid("url", format!("is not a ZooKeeper URL: {why}"));
        let rest = url.strip_prefix("zookeeper://").ok_or_else(|| wrong("it must start with zookeeper://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (Some(decoded(login).ok_or_else(|| wrong("its user is not UTF-8"))?), hosts),
            None => (None, authority),
        };
        if login.as_ref().is_some_and(|login| !login.contains(':')) {
            return Err(wrong("a user needs a password"));
        }
        let mut addresses = Vec::new();
        for host in hosts.split(',') {
            let (name, port) = match host.rsplit_once(':') {
                Some((name, port)) if !port.contains(']') => (name, port.parse().ok()),
                _ => (host, Some(PORT)),
            };
            let name = name.trim_start_matches('[').trim_end_matches(']');
            match port {
                Some(port) if !name.is_empty() && port != 0 => addresses.push((name.to_owned(), port)),
                _ => return Err(wrong("each host must be NAME or NAME:PORT")),
            }
        }
        let path = path.trim_end_matches('/');
        let unusable = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains(char::is_control);
        if !path.is_empty() && path.split('/').any(unusable) {
            return Err(wrong("its path has an empty part, '.', '..' or a control character"));
        }
        let root = format!("/{}", if path.is_empty() { "polylock" } else { path });
        let mut config = Self { hosts: addresses, login, root, session_timeout: Duration::from_secs(10) };
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match (&*key, value.parse::<f64>()) {
                ("session_timeout", Ok(seconds)) if (0.1..=86_400.0).contains(&seconds) => {
                    config.session_timeout = Duration::from_secs_f64(seconds);
                }
                ("session_timeout", _) => return Err(wrong("session_timeout must be 0.1 to 86400 seconds")),
                _ => return Err(wrong("its only option is session_timeout")),
            }
        }
        Ok(config)
    }

    pub(super) fn acl(&self) -> Acl {
        if self.login.is_some() { Acl::Creator } else { Acl::Anyone }
    }
}

/// Without its percent escapes.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("zookeeper://")?;
        for (index, (host, port)) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}:{port}", if index == 0 { "" } else { "," })?;
        }
        f.write_str(&self.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_urls() {
        let config = Config::parse("zookeeper://me:p%40s%3As@a,b:1,[::1]:2/x/y/?session_timeout=2.5").unwrap();
        assert_eq!(config.hosts, [("a".into(), 2181), ("b".into(), 1), ("::1".into(), 2)]);
        assert_eq!((config.login.as_deref(), config.root.as_str()), (Some("me:p@s:s"), "/x/y"));
        assert_eq!(config.session_timeout, Duration::from_millis(2500));
        assert_eq!(Config::parse("zookeeper://a").unwrap().root, "/polylock");
        assert_eq!(Config::parse("zookeeper://a/").unwrap().root, "/polylock");
    }

    #[test]
    fn shows_no_password() {
        assert!(!format!("{:?}", Config::parse("zookeeper://me:secret@h").unwrap()).contains("secret"));
        for bad in [
            "://me:secret@",
            "://me:secret@h:0",
            "://secret@h",
            "://me:secret@h//x",
            "://me:secret@h/x/../y",
            "://me:secret@h?a=1",
        ] {
            let error = Config::parse(&format!("zookeeper{bad}")).unwrap_err();
            assert_eq!(error.argument(), Some("url"), "{bad}");
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
    }
}
