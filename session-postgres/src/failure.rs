//! What an error of the server or of the connection means: which kind, and whether it had an effect.

use session_core::{Effect, Error, ErrorKind};

/// The error of a statement that was sent.
///
/// A statement that the server refuses is rolled back, so it had no effect; but for those classes of errors
/// that can strike between the commit and its reply.
pub(crate) fn of_statement(operation: &'static str, error: sqlx::Error) -> Error {
    let Some(code) = code(&error) else {
        return match error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                Error::new(ErrorKind::Damaged, operation).with_source(error).with_effect(Effect::Unknown)
            }
            _ => Error::unavailable(operation, error),
        };
    };
    match (code.get(..2).unwrap_or_default(), code.as_str()) {
        // A connection that broke, a server that shuts down or cancels, a failure inside it.
        ("08" | "57" | "58" | "XX", _) | (_, "40003") => Error::unavailable(operation, error),
        // A standby, or one that was made read-only: reachable, but not for this.
        (_, "25006") => Error::unavailable(operation, error).with_effect(Effect::None),
        ("3F" | "42", _) => Error::new(ErrorKind::Invalid, operation)
            .with_context("the tables are not as this version needs them, or the user may not use them")
            .with_source(error),
        _ => Error::new(ErrorKind::Backend, operation).with_source(error),
    }
}

/// The error of a connection that could not be opened: nothing was sent.
pub(crate) fn of_connect(operation: &'static str, error: sqlx::Error) -> Error {
    let kind = match code(&error).as_deref() {
        // Wrong user, password, database or privileges: trying again does not help.
        Some(code) if code.starts_with("28") || code.starts_with("3D") || code.starts_with("42") => {
            ErrorKind::Invalid
        }
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, operation).with_context("connecting").with_source(error)
}

/// Nothing came back in time.
pub(crate) fn timed_out(operation: &'static str, what: &'static str, effect: Effect) -> Error {
    Error::new(ErrorKind::Unavailable, operation).with_context(what).with_effect(effect)
}

/// The five characters that say what the server thinks.
pub(crate) fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error()?.code().map(std::borrow::Cow::into_owned)
}

/// Whether the connection can be used after this error: the server answered, and goes on.
pub(crate) fn spares_connection(error: &sqlx::Error) -> bool {
    let spares = |code: String| {
        let ends = ["08", "57", "58", "XX"].contains(&code.get(..2).unwrap_or_default());
        !ends || code == "57014" // one statement was cancelled
    };
    code(error).is_some_and(spares)
}

/// A record that is not what this driver wrote.
pub(crate) fn damaged(operation: &'static str, what: &'static str) -> Error {
    Error::new(ErrorKind::Damaged, operation).with_context(what)
}
