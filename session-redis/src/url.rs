//! The parts of a URL that may name several hosts, which the `url` crate does not read.
//!
//! No error shows a part of the URL before its options: a password with an unescaped `/` may be anywhere in
//! there.

use crate::config::{Node, invalid};
use session_core::Result;

/// Split and decoded, not yet understood.
pub(crate) struct Url {
    pub(crate) scheme: String,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
    hosts: String,
    pub(crate) path: Vec<String>,
    pub(crate) options: Vec<(String, String)>,
}

impl Url {
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| invalid("a URL begins with redis:// or the like"))?;
        if rest.contains('#') {
            return Err(invalid("`#` is written %23 in a URL"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (Some(user), hosts),
            None => (None, authority),
        };
        let (username, password) = match user {
            None => (None, None),
            Some(user) => match user.split_once(':') {
                None => (Some(decode(user)?), None),
                Some((name, password)) => (Some(decode(name)?), Some(decode(password)?)),
            },
        };
        let options = query.split('&').filter(|option| !option.is_empty()).map(|option| {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            Ok((decode(name)?, decode(value)?))
        });
        Ok(Self {
            scheme: scheme.to_owned(),
            username: username.filter(|name| !name.is_empty()), // `:password@` is the default user's
            password: password.filter(|password| !password.is_empty()),
            hosts: hosts.to_owned(),
            path: path.split('/').filter(|part| !part.is_empty()).map(decode).collect::<Result<_>>()?,
            options: options.collect::<Result<_>>()?,
        })
    }

    pub(crate) fn nodes(&self, default_port: u16) -> Result<Vec<Node>> {
        self.hosts.split(',').map(|host| node(host, default_port)).collect()
    }
}

/// `host`, `host:port`, `[address]` or `[address]:port`.
fn node(text: &str, default_port: u16) -> Result<Node> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => (address, None),
        Some((address, port)) => (address, Some(port.strip_prefix(':').unwrap_or(port))),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() {
        return Err(invalid("the URL names no host"));
    }
    let port = match port {
        None => default_port,
        Some(port) => port.parse().map_err(|_| invalid("a port is a number from 0 to 65535"))?,
    };
    Ok(Node::new(decode(host)?, port))
}

fn decode(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => return Err(invalid("`%` in a URL is followed by two hexadecimal digits")),
        }
    }
    String::from_utf8(bytes).map_err(|_| invalid("the URL is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use crate::{LockKind, Node, RedisConfig, Secret, Topology};
    use session_core::ErrorKind;
    use std::time::Duration;

    #[test]
    fn one_server_with_everything() {
        let config = RedisConfig::from_url(
            "redis://us%40er:pa%3Ass@[::1]:7000/3?prefix=a:b/&lock=spin&connect_timeout=3s&response_timeout=250ms&poll=10ms&claim=20ms",
        )
        .unwrap();
        assert_eq!(config.topology, Topology::Server(Node::new("::1", 7000)));
        assert_eq!(config.username.as_deref(), Some("us@er"));
        assert_eq!(config.password, Some(Secret::new("pa:ss")));
        assert_eq!((config.database, config.prefix.as_str(), config.lock), (3, "a:b/", LockKind::Spin));
        assert_eq!(config.connect_timeout, Duration::from_secs(3));
        assert_eq!(config.response_timeout, Duration::from_millis(250));
        assert_eq!((config.poll.as_millis(), config.claim.as_millis()), (10, 20));
    }

    #[test]
    fn defaults() {
        let config = RedisConfig::from_url("redis://:secret@host").unwrap();
        assert_eq!(config.topology, Topology::Server(Node::new("host", 6379)));
        assert_eq!((config.username, config.password), (None, Some(Secret::new("secret"))));
        assert_eq!(config.prefix, "session:");
    }

    #[test]
    #[cfg(feature = "sentinel")]
    fn sentinels() {
        let config = RedisConfig::from_url(
            "redis+sentinel://u:p@a:1,b,[::1]:3/main/2?sentinel_username=s&sentinel_password=t",
        )
        .unwrap();
        let sentinels = vec![Node::new("a", 1), Node::new("b", 26379), Node::new("::1", 3)];
        let (username, password) = (Some("s".to_owned()), Some(Secret::new("t")));
        let name = "main".to_owned();
        assert_eq!(config.topology, Topology::Sentinel { sentinels, name, username, password });
        assert_eq!(config.database, 2);
    }

    #[test]
    #[cfg(feature = "cluster")]
    fn cluster() {
        let config = RedisConfig::from_url("redis+cluster://a:1,b").unwrap();
        assert_eq!(
            config.topology,
            Topology::Cluster { nodes: vec![Node::new("a", 1), Node::new("b", 6379)] }
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (url, word) in [
            ("localhost", "redis://"),
            ("http://localhost", "\"http\""),
            ("redis://", "host"),
            ("redis://a,b", "redis+sentinel"),
            ("redis://a:x", "port"),
            ("redis://a:70000", "port"),
            ("redis://a/x", "database"),
            ("redis://a/1/2", "too many"),
            ("redis://a?lok=spin", "known: prefix, lock"),
            ("redis://a?lock=sleep", "queue and spin"),
            ("redis://a?poll=1", "500ms"),
            ("redis://a?poll=600ms", "twice poll"),
            ("redis://a?claim=2m", "500ms"),
            ("redis://a?connect_timeout=0ms", "between"),
            ("redis://a?prefix=", "prefix"),
            ("redis://a?prefix=a{b}", "prefix"),
            ("redis://a?prefix=a*", "prefix"),
            ("redis://a?ca=/x", "rediss"),
            ("redis://a?sentinel_password=x", "redis+sentinel"),
            ("redis://a?prefix=%zz", "%"),
            ("redis://a?prefix=%ff", "UTF-8"),
            ("redis://a#b", "%23"),
        ] {
            let error = RedisConfig::from_url(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{url}");
            assert!(error.to_string().contains(word), "{url}: {error}");
        }
    }

    #[test]
    fn a_feature_that_is_off_is_named() {
        for (url, feature, on) in [
            ("rediss://a", "tls", cfg!(feature = "tls")),
            ("redis+sentinel://a/x", "sentinel", cfg!(feature = "sentinel")),
            ("redis+cluster://a", "cluster", cfg!(feature = "cluster")),
        ] {
            match RedisConfig::from_url(url) {
                Ok(_) => assert!(on, "{url} without {feature}"),
                Err(error) => {
                    assert!(!on, "{url}: {error}");
                    assert_eq!(error.kind(), ErrorKind::Unsupported);
                    assert!(error.to_string().contains(feature), "{error}");
                }
            }
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let config = RedisConfig::from_url("redis://u:hunter2@a").unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        for wrong in ["redis://u:hunter2@a:port", "redis://u:hunter2/x@a", "redis://u:1/hunter2@a"] {
            let error = RedisConfig::from_url(wrong).unwrap_err();
            assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
        }
    }
}
