//! What names things: a session's bearer token, and the hashes under which a store knows it and its user.
//!
//! ```
//! use session_core::{SessionId, SystemRandom};
//!
//! let id = SessionId::random(&SystemRandom)?;
//! assert_eq!(SessionId::parse(&id.expose()), Some(id.clone()));
//! assert_eq!(format!("{id:?}"), "SessionId(..)"); // never in a log
//! assert_eq!(SessionId::parse("../etc/passwd"), None);
//! # Ok::<(), session_core::Error>(())
//! ```

use crate::{Random, Result, environment::draw};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// A bearer token: 256 random bits, base64url without padding (43 characters) when it is shown. `Debug` hides
/// it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionId([u8; 32]);

impl SessionId {
    /// The length of an id as text.
    pub const TEXT_LEN: usize = 43;

    /// Draws a new id.
    ///
    /// # Errors
    /// [`ErrorKind::Random`](crate::ErrorKind::Random) when the source fails.
    pub fn random(random: &dyn Random) -> Result<Self> {
        draw(random).map(Self)
    }

    /// Reads what [`expose`](Self::expose) wrote. `None` for anything else: another length, another alphabet,
    /// bits left over.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != Self::TEXT_LEN {
            return None; // before decoding: what a client sends can be long
        }
        BASE64_URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// The token itself, for the cookie. Whoever has it has the session: never log it.
    #[must_use]
    pub fn expose(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.0)
    }

    /// The name under which stores know this session.
    #[must_use]
    pub fn storage_key(&self) -> StorageKey {
        StorageKey(Sha256::digest(self.0).into())
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionId(..)")
    }
}

/// What a store sees of an id: its SHA-256, so that a leaked store holds no bearer token, and no id can be a
/// path, a bad key or too long. `Display` is 64 lowercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorageKey([u8; 32]);

impl StorageKey {
    /// A key from its bytes, for drivers that read it back from their index.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The hash.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A user, hashed: what the user index is keyed by. `Display` is 64 lowercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrincipalKey([u8; 32]);

impl PrincipalKey {
    /// The key of a user's name.
    #[must_use]
    pub fn of(user: &str) -> Self {
        Self(Sha256::new_with_prefix(b"session principal\0").chain_update(user).finalize().into())
    }

    /// A key from its bytes, for drivers that read it back from a record.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The hash.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Opaque: 16 bytes, compared for equality alone, never used twice for one key, also not after a delete, a
/// restart, a rollback or a failover. So the drivers draw it at random; a number that a backend counts must
/// keep that promise, too. Two keys may have the same version.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version([u8; 16]);

impl Version {
    /// A version that was never used before.
    ///
    /// # Errors
    /// [`ErrorKind::Random`](crate::ErrorKind::Random) when the source fails.
    pub fn random(random: &dyn Random) -> Result<Self> {
        draw(random).map(Self)
    }

    /// A version from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// A version from a number that the backend itself assigns.
    #[must_use]
    pub const fn from_u64(number: u64) -> Self {
        Self((number as u128).to_be_bytes())
    }

    /// The bytes.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

/// What a lease is held by: 16 random bytes, drawn by the one who asks. Asking again with the same token is
/// one request, so a lock that was taken with its reply lost is simply asked for again.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token([u8; 16]);

impl Token {
    /// A token that was never used before.
    ///
    /// # Errors
    /// [`ErrorKind::Random`](crate::ErrorKind::Random) when the source fails.
    pub fn random(random: &dyn Random) -> Result<Self> {
        draw(random).map(Self)
    }

    /// A token from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// `Display` and `Debug` as lowercase hexadecimal.
macro_rules! hexadecimal {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    )*};
}

hexadecimal!(StorageKey, PrincipalKey, Version, Token);
