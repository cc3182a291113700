//! The cookie that carries a session's id.
//!
//! ```
//! use session_tower::{CookieConfig, SameSite};
//!
//! // The default: `__Host-id=…; Path=/; Secure; HttpOnly; SameSite=Lax`, gone when the browser is closed.
//! let strict = CookieConfig::default().name("__Host-shop").same_site(SameSite::Strict);
//! // A cookie that ends with its session, and is renewed whenever that slides.
//! let persistent = CookieConfig::default().persistent();
//! // For development without TLS.
//! let plain = CookieConfig::insecure("id");
//! # let sessions = session_core::Sessions::builder(session_core::MemoryStore::default()).build()?;
//! # for config in [strict, persistent, plain] { session_tower::SessionLayer::new(sessions.clone()).cookie(config)?; }
//! # Ok::<(), session_core::Error>(())
//! ```
//!
//! Attributes are those of RFC 6265 and its successor, draft-ietf-httpbis-rfc6265bis (`SameSite`, the
//! prefixes). `HttpOnly` cannot be switched off: an id is nothing for scripts.

use http::{HeaderMap, HeaderValue, header::COOKIE};
use session_core::{Error, ErrorKind, Result, SessionId};
use std::time::Duration;

/// When browsers send the cookie along with requests that another site has caused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SameSite {
    /// Never, not even when the user follows a link: he looks logged out then.
    Strict,
    /// Only when the user follows a link (a top-level navigation by a safe method).
    #[default]
    Lax,
    /// Always; it must be `Secure`.
    None,
}

/// What the cookie looks like. [`SessionLayer::cookie`](crate::SessionLayer::cookie) checks it.
#[derive(Clone, Debug)]
#[must_use = "`SessionLayer::cookie` takes it"]
pub struct CookieConfig {
    name: String,
    path: String,
    domain: Option<String>,
    secure: bool,
    same_site: SameSite,
    persistent: bool,
    max_header: usize,
}

impl Default for CookieConfig {
    fn default() -> Self {
        Self {
            name: "__Host-id".to_owned(),
            path: "/".to_owned(),
            domain: None,
            secure: true,
            same_site: SameSite::Lax,
            persistent: false,
            max_header: 16 << 10,
        }
    }
}

impl CookieConfig {
    /// A cookie that is sent without TLS, too: for [development](crate#without-tls-development), never where
    /// users are, since whoever listens has it then. Its name is yours to choose, without `__Host-`: browsers
    /// refuse that one unless it is `Secure`.
    pub fn insecure(name: impl Into<String>) -> Self {
        Self { name: name.into(), secure: false, ..Self::default() }
    }

    /// The name (`__Host-id`). With the prefix `__Host-` browsers refuse the cookie unless it is `Secure`,
    /// for `/` and for this host alone: so no other host of the domain can plant one.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Which paths it is for (`/`).
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// All hosts of this domain get it (only this host does). It needs a name without `__Host-`.
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.domain = Some(domain.into());
        self
    }

    /// When it goes along with requests from other sites ([`SameSite::Lax`]).
    pub fn same_site(mut self, same_site: SameSite) -> Self {
        self.same_site = same_site;
        self
    }

    /// It outlives the browser and ends with its session (by `Max-Age`), renewed whenever that slides. The
    /// default ends with the browser, and the session by its idle timeout.
    pub fn persistent(mut self) -> Self {
        self.persistent = true;
        self
    }

    /// The longest `Cookie` header that is looked at, in bytes, all of them together (16 KiB). Beyond it
    /// there is no session.
    pub fn max_header(mut self, bytes: usize) -> Self {
        self.max_header = bytes;
        self
    }

    /// # Errors
    /// [`ErrorKind::Invalid`], naming what browsers would refuse or what would break the header.
    pub(crate) fn check(&self) -> Result<()> {
        let prefixed = |prefix: &str| {
            self.name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        };
        let host = prefixed("__Host-");
        let checks = [
            (is_token(&self.name) && self.name.len() <= 128, "its name is no token of 1 to 128 characters"),
            (self.path.starts_with('/') && is_value(&self.path), "its path does not begin with / or has `;`"),
            (self.domain.as_deref().is_none_or(is_domain), "its domain is not a host name"),
            (self.secure || !(host || prefixed("__Secure-")), "the prefix of its name needs `Secure`"),
            (
                !host || (self.path == "/" && self.domain.is_none()),
                "`__Host-` needs the path / and no domain",
            ),
            (self.secure || self.same_site != SameSite::None, "`SameSite=None` needs `Secure`"),
        ];
        match checks.iter().find(|(fine, _)| !fine) {
            None => Ok(()),
            Some((_, why)) => Err(Error::new(ErrorKind::Invalid, "cookie").with_context(*why)),
        }
    }

    /// Everything after the id is the same for every response.
    pub(crate) fn render(self) -> Cookie {
        let mut attributes = format!("; Path={}", self.path);
        if let Some(domain) = &self.domain {
            attributes.push_str("; Domain=");
            attributes.push_str(domain);
        }
        if self.secure {
            attributes.push_str("; Secure");
        }
        attributes.push_str("; HttpOnly; SameSite=");
        attributes.push_str(match self.same_site {
            SameSite::Strict => "Strict",
            SameSite::Lax => "Lax",
            SameSite::None => "None",
        });
        Cookie { name: self.name, attributes, persistent: self.persistent, max_header: self.max_header }
    }
}

/// RFC 9110, section 5.6.2.
fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn is_value(text: &str) -> bool {
    text.len() <= 1024 && text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b';')
}

fn is_domain(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
}

/// Reads and writes the cookie.
#[derive(Clone, Debug)]
pub(crate) struct Cookie {
    name: String,
    attributes: String,
    persistent: bool,
    max_header: usize,
}

impl Cookie {
    /// The id that the client sent. Whatever is wrong with its cookie (damaged, too long, there twice), it
    /// has none: an error page would lock out a user who cannot know what to do about it.
    ///
    /// Of two cookies one was planted, by a sibling host for example, and nobody can tell which.
    pub(crate) fn read(&self, headers: &HeaderMap) -> Option<SessionId> {
        let mut left = self.max_header;
        let mut found = None;
        for header in headers.get_all(COOKIE) {
            left = left.checked_sub(header.len())?;
            for pair in header.as_bytes().split(|byte| *byte == b';') {
                let pair = pair.trim_ascii();
                let value = pair.strip_prefix(self.name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
                if let Some(value) = value
                    && found.replace(value).is_some()
                {
                    return None;
                }
            }
        }
        SessionId::parse(std::str::from_utf8(found?).ok()?)
    }

    /// Whether a client must be told that its session lives longer now.
    pub(crate) const fn is_persistent(&self) -> bool {
        self.persistent
    }

    /// # Errors
    /// None that could be met: what goes in was checked.
    pub(crate) fn set(&self, id: &SessionId, lifetime: Option<Duration>) -> Result<HeaderValue> {
        let Self { name, attributes, .. } = self;
        let id = id.expose();
        header(match lifetime.filter(|_| self.persistent) {
            None => format!("{name}={id}{attributes}"),
            Some(lifetime) => {
                let seconds = lifetime.as_secs() + u64::from(lifetime.subsec_nanos() > 0); // nothing ends early
                format!("{name}={id}{attributes}; Max-Age={seconds}")
            }
        })
    }

    /// # Errors
    /// As for [`set`](Self::set).
    pub(crate) fn remove(&self) -> Result<HeaderValue> {
        let Self { name, attributes, .. } = self;
        header(format!("{name}={attributes}; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT"))
    }
}

fn header(text: String) -> Result<HeaderValue> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|error| Error::new(ErrorKind::Invalid, "cookie").with_source(error))?;
    value.set_sensitive(true); // a bearer token: `Debug` hides it, and HTTP/2 keeps it out of its tables
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::SystemRandom;

    const ID: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

    fn read(headers: &[Vec<u8>]) -> Option<String> {
        let mut map = HeaderMap::new();
        for header in headers {
            map.append(COOKIE, HeaderValue::from_bytes(header).unwrap());
        }
        CookieConfig::default().render().read(&map).map(|id| id.expose())
    }

    #[test]
    fn one_whole_cookie_is_read_and_nothing_else() {
        let cookie = |value: &str| format!("__Host-id={value}").into_bytes();
        let good = cookie(ID);
        let with = |before: &[u8], after: &[u8]| [before, &good, after].concat();
        let cases: [(&str, Vec<Vec<u8>>, bool); 14] = [
            ("alone", vec![good.clone()], true),
            ("among others", vec![b"a=1; b".to_vec(), with(b"c=\"2\";", b" ;d")], true),
            ("none", vec![], false),
            ("other names like it", vec![b"x__Host-id=1; __Host-id2=3; __host-id=4".to_vec()], false),
            ("twice", vec![good.clone(), good.clone()], false),
            ("twice in one header", vec![with(&with(b"", b"; "), b"")], false),
            ("once damaged", vec![good.clone(), cookie("x")], false),
            ("empty", vec![cookie("")], false),
            ("too short", vec![cookie(&ID[1..])], false),
            ("too long", vec![with(b"", b"A")], false),
            ("quoted", vec![cookie(&format!("\"{ID}\""))], false),
            ("not text", vec![b"__Host-id=\xff\xfe".to_vec()], false),
            ("another alphabet", vec![cookie(&ID.replace('A', "+"))], false),
            ("an oversized header", vec![with(b"", &[b' '; 16 << 10])], false),
        ];
        for (name, headers, there) in cases {
            assert_eq!(read(&headers), there.then(|| ID.to_owned()), "{name}");
        }
    }

    #[test]
    fn attributes_are_what_was_configured() {
        let id = SessionId::parse(ID).unwrap();
        let set = |config: CookieConfig| {
            config.check().unwrap();
            config.render().set(&id, Some(Duration::from_millis(1_500))).unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(
            set(CookieConfig::default()),
            format!("__Host-id={ID}; Path=/; Secure; HttpOnly; SameSite=Lax")
        );
        assert_eq!(
            set(CookieConfig::insecure("id").persistent()),
            format!("id={ID}; Path=/; HttpOnly; SameSite=Lax; Max-Age=2")
        );
        assert_eq!(
            set(CookieConfig::default().name("s").path("/a").domain("a.example").same_site(SameSite::Strict)),
            format!("s={ID}; Path=/a; Domain=a.example; Secure; HttpOnly; SameSite=Strict")
        );
        let removed = CookieConfig::default().render().remove().unwrap();
        assert_eq!(
            removed,
            "__Host-id=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT"
        );
    }

    #[test]
    fn what_browsers_would_refuse_is_refused_here() {
        let wrong = [
            CookieConfig::insecure("__Host-id"),
            CookieConfig::insecure("__secure-id"),
            CookieConfig::default().domain("a.example"),
            CookieConfig::default().path("/a"),
            CookieConfig::default().name(""),
            CookieConfig::default().name("a b"),
            CookieConfig::default().name("a;b"),
            CookieConfig::default().name("x".repeat(129)),
            CookieConfig::default().name("id").path("a"),
            CookieConfig::default().name("id").path("/; Domain=x"),
            CookieConfig::default().name("id").path("/\r\n"),
            CookieConfig::default().name("id").domain("a;b"),
            CookieConfig::default().name("id").domain(""),
            CookieConfig::insecure("id").same_site(SameSite::None),
        ];
        for config in wrong {
            let kind = config.check().map_err(|error| error.kind());
            assert_eq!(kind, Err(ErrorKind::Invalid), "{config:?}");
        }
    }

    #[test]
    fn an_id_is_not_shown_by_debug() {
        let id = SessionId::random(&SystemRandom).unwrap();
        let value = CookieConfig::default().render().set(&id, None).unwrap();
        assert!(!format!("{value:?}").contains(&id.expose()));
    }
}
