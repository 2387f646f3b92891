//! Where an ensemble is, and how to use it.

use std::{fmt, path::PathBuf, time::Duration};

use super::{name::decoded, wire::Acl};
use crate::{Error, Result, backend::tls::Tls};

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
    pub(super) tls: Option<Tls>,
}

impl Config {
    /// Reads a URL; errors do not repeat it, as it may hold a password.
    pub(super) fn parse(url: &str) -> Result<Self> {
        const PORT: u16 = 2181;
        let wrong = |why: &str| Error::invalid("url", format!("is not a ZooKeeper URL: {why}"));
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let is_tls = match scheme {
            "zookeeper" => false,
            "zookeeper+tls" => true,
            _ => return Err(wrong("it must start with zookeeper:// or zookeeper+tls://")),
        };
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
        let path = decoded(path).ok_or_else(|| wrong("its path is not UTF-8"))?;
        let path = path.trim_end_matches('/');
        // No control characters, and in UTF-16 no surrogates, nothing for private use, no specials.
        let refused = |c: char| c.is_control() || c > '\u{d7ff}' && !('\u{f900}'..='\u{ffef}').contains(&c);
        let unusable = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains(refused);
        if !path.is_empty() && path.split('/').any(unusable) {
            return Err(wrong("its path has an empty part, '.', '..' or a character that ZooKeeper refuses"));
        }
        let root = format!("/{}", if path.is_empty() { "polylock" } else { path });
        let mut config = Self { hosts: addresses, login, root, session_timeout: Duration::from_secs(10), tls: None };
        let (mut tls, mut cert, mut key) = (Tls::default(), None, None);
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match (&*name, value.parse::<f64>()) {
                ("session_timeout", Ok(seconds)) if (0.1..=86_400.0).contains(&seconds) => {
                    config.session_timeout = Duration::from_secs_f64(seconds);
                }
                ("session_timeout", _) => return Err(wrong("session_timeout must be 0.1 to 86400 seconds")),
                ("ca", _) => tls.ca = Some(PathBuf::from(&*value)),
                ("cert", _) => cert = Some(PathBuf::from(&*value)),
                ("key", _) => key = Some(PathBuf::from(&*value)),
                // Its name is not repeated: it may be the rest of a password.
                _ => return Err(wrong("its options are session_timeout, ca, cert and key")),
            }
        }
        if cert.is_some() != key.is_some() {
            return Err(wrong("cert and key belong together"));
        }
        tls.client = cert.zip(key);
        if is_tls {
            // Files that cannot be read are better told now.
            tls.config()?;
            config.tls = Some(tls);
        } else if tls != Tls::default() {
            return Err(wrong("ca, cert and key are for zookeeper+tls://"));
        }
        Ok(config)
    }

    pub(super) fn acl(&self) -> Acl {
        if self.login.is_some() { Acl::Creator } else { Acl::Anyone }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls.is_some() { "zookeeper+tls://" } else { "zookeeper://" })?;
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
        assert_eq!(Config::parse("zookeeper://a/x%20y").unwrap().root, "/x y");
        assert_eq!(Config::parse("zookeeper+tls://a").unwrap().tls, Some(Tls::default()));
        assert_eq!(Config::parse("zookeeper://a/%C3%BC\u{f900}").unwrap().root, "/\u{fc}\u{f900}");
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
            "://me:secret@h/\u{1f512}",
            "://me:secret@h/\u{fffd}",
            "://me:secret@h?a=1",
            "://me:secret@h?ca=/x",
            "+tls://me:secret@h?cert=/x",
            "+tls://me:secret@h?ca=/no/such/file",
            "://me:sec?secret@h",
            "://me:sec/secret@h",
        ] {
            let error = Config::parse(&format!("zookeeper{bad}")).unwrap_err();
            assert_eq!(error.argument(), Some("url"), "{bad}");
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
    }
}
