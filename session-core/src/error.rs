//! One error for drivers and sessions: a kind to act on, an effect to decide on a retry.
//!
//! ```
//! use session_core::{Effect, Error, ErrorKind};
//!
//! let error = Error::new(ErrorKind::Unavailable, "replace").with_context("127.0.0.1:6379");
//! assert_eq!(error.kind(), ErrorKind::Unavailable);
//! assert_eq!(error.effect(), Effect::None);
//! assert_eq!(error.to_string(), "replace: the store is unavailable (127.0.0.1:6379)");
//! ```

use std::{borrow::Cow, error::Error as StdError, fmt};

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn StdError + Send + Sync>;

/// What went wrong, for the caller to act on.
///
/// Outcomes that are part of a driver's life ([`Replaced::Conflict`](crate::Replaced::Conflict) and the like)
/// are values, not errors. [`Conflict`](Self::Conflict), [`Gone`](Self::Gone), [`Busy`](Self::Busy) and
/// [`LockLost`](Self::LockLost) are what a [`Session`](crate::Session) makes of them, because `?` is what
/// handlers write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Something that this request was shown has changed since: nothing was stored. Run the request again.
    Conflict,
    /// The session was destroyed, rotated away or has expired: nothing was stored, and nothing will be.
    Gone,
    /// The lock could not be had within `lock_wait`, or too many were waiting for it already.
    Busy,
    /// The lease ran out under its holder: nothing was stored, but a side effect may have happened.
    LockLost,
    /// A write through read-only access.
    ReadOnly,
    /// A write after `commit` or `discard`.
    Closed,
    /// A call on a session from inside one of its own closures.
    Reentrant,
    /// A closure panicked when it was run again on fresh data: nothing was stored.
    Panicked,
    /// A value does not decode as the type that was asked for; the context names its key.
    Decode,
    /// A value does not encode; the context names its key.
    Encode,
    /// A stored record is torn, foreign, or of an unknown format. It is left where it is.
    Damaged,
    /// A limit on size or number was passed; the context names it.
    TooLarge,
    /// An argument or a setting that cannot be used; the context says which and why.
    Invalid,
    /// The store could not be reached or did not answer in time.
    Unavailable,
    /// The backend cannot do this and says so; nothing changed.
    Unsupported,
    /// The source of randomness failed.
    Random,
    /// The backend answered with an error of its own; see the source.
    Backend,
}

impl ErrorKind {
    const fn describe(self) -> &'static str {
        match self {
            Self::Conflict => "what this request has seen was changed by another one; nothing was stored",
            Self::Gone => "the session no longer exists",
            Self::Busy => "the session is locked by another request",
            Self::LockLost => "the lock was lost before the write; nothing was stored",
            Self::ReadOnly => "the session is open for reading only",
            Self::Closed => "the session is closed: it was committed or discarded",
            Self::Reentrant => "a session was used from inside one of its own closures",
            Self::Panicked => "a closure panicked when it was run again on fresh data",
            Self::Decode => "a value does not decode",
            Self::Encode => "a value does not encode",
            Self::Damaged => "the stored record is damaged or foreign; it was left as it is",
            Self::TooLarge => "a limit was passed",
            Self::Invalid => "an argument or a setting cannot be used",
            Self::Unavailable => "the store is unavailable",
            Self::Unsupported => "this backend does not support that",
            Self::Random => "the source of randomness failed",
            Self::Backend => "the backend answered with an error",
        }
    }
}

/// What a failed operation may have done to the store. Retry by effect, never by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Nothing happened, and nothing will: safe to repeat.
    None,
    /// The reply was lost: it may have happened, and may still happen. Look it up before a repeat.
    Unknown,
}

/// Anything that went wrong. One pointer wide.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    effect: Effect,
    operation: &'static str,
    context: Option<Cow<'static, str>>,
    source: Option<Source>,
}

impl Error {
    /// An error of this kind, raised by `operation` (the name of the method), without effect.
    #[must_use]
    pub fn new(kind: ErrorKind, operation: &'static str) -> Self {
        Self(Box::new(Inner { kind, effect: Effect::None, operation, context: None, source: None }))
    }

    /// Any driver error; its effect is [`Effect::Unknown`] until the driver knows better.
    #[must_use]
    pub fn backend(operation: &'static str, source: impl Into<Source>) -> Self {
        Self::new(ErrorKind::Backend, operation).with_effect(Effect::Unknown).with_source(source)
    }

    /// The store could not be reached; its effect is [`Effect::Unknown`] until the driver knows better.
    #[must_use]
    pub fn unavailable(operation: &'static str, source: impl Into<Source>) -> Self {
        Self::new(ErrorKind::Unavailable, operation).with_effect(Effect::Unknown).with_source(source)
    }

    /// A stored record that is not what was written.
    pub(crate) fn damaged(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Damaged, "load").with_context(what)
    }

    /// A part of a session beyond what its format can hold.
    pub(crate) fn too_large(what: &'static str) -> Self {
        Self::new(ErrorKind::TooLarge, "commit").with_context(what)
    }

    /// The same error with another effect.
    #[must_use]
    pub fn with_effect(mut self, effect: Effect) -> Self {
        self.0.effect = effect;
        self
    }

    /// The same error, saying where: a key's name, a limit, an address. Never a session's id or data.
    #[must_use]
    pub fn with_context(mut self, context: impl Into<Cow<'static, str>>) -> Self {
        self.0.context = Some(context.into());
        self
    }

    /// The same error, with what caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What to act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What to decide a retry on.
    #[must_use]
    pub fn effect(&self) -> Effect {
        self.0.effect
    }

    /// The method that failed.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// Where it failed, if there is more to say than the operation.
    #[must_use]
    pub fn context(&self) -> Option<&str> {
        self.0.context.as_deref()
    }

    /// Whether the request lost against another one and may be run again as a whole.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.0.kind == ErrorKind::Conflict
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.operation, self.0.kind.describe())?;
        if let Some(context) = &self.0.context {
            write!(f, " ({context})")?;
        }
        if self.0.effect == Effect::Unknown {
            f.write_str("; whether it took effect is unknown")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("effect", &self.0.effect)
            .field("operation", &self.0.operation)
            .field("context", &self.0.context)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
