//! Messages for the next page: "saved", after a redirect.
//!
//! Parallel requests lose none, and each is shown once: of two pages that take the same message one commits,
//! the other one is a conflict (409, or a rerun by [`RetryLayer`](crate::RetryLayer), which then finds none).
//!
//! ```
//! # #[cfg(feature = "axum")] mod example {
//! use axum::response::Redirect;
//! use session_tower::{Rejection, Session, flash};
//!
//! async fn save(session: Session) -> Result<Redirect, Rejection> {
//!     flash::push(&session, flash::Level::Success, "saved")?;
//!     Ok(Redirect::to("/"))
//! }
//!
//! async fn page(session: Session) -> Result<String, Rejection> {
//!     let messages = flash::take(&session)?;
//!     Ok(messages.iter().map(|message| format!("<p class={:?}>{}", message.level, message.text)).collect())
//! }
//! # }
//! ```
//!
//! The text is stored as it is: escape it in the page, as anything else.

use serde::{Deserialize, Serialize};
use session_core::{Key, Result, Session};

const MESSAGES: Key<Vec<Message>> = Key::new("~flash");

/// What kind of message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// Something to know.
    Info,
    /// Something went well.
    Success,
    /// Something to look at.
    Warning,
    /// Something went wrong.
    Error,
}

/// A message for the next page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// What kind of message it is.
    pub level: Level,
    /// What it says.
    pub text: String,
}

/// Adds a message, after those of other requests.
///
/// # Errors
/// As for [`Session::update`].
pub fn push(session: &Session, level: Level, text: impl Into<String>) -> Result<()> {
    let message = Message { level, text: text.into() };
    session.update(MESSAGES, move |messages| messages.push(message.clone()))
}

/// Takes all messages out, oldest first.
///
/// # Errors
/// As for [`Session::take`].
pub fn take(session: &Session) -> Result<Vec<Message>> {
    if !session.contains(MESSAGES)? {
        return Ok(Vec::new()); // with less to be compared: only that there is none
    }
    Ok(session.take(MESSAGES)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::{Access, MemoryStore, Sessions};

    #[tokio::test]
    async fn none_is_lost_and_each_is_taken_once() {
        let sessions = Sessions::builder(MemoryStore::default()).build().unwrap();
        let new = sessions.create();
        push(&new, Level::Info, "one").unwrap();
        new.commit().await.unwrap();
        let id = new.id().unwrap();
        let open = async || sessions.open(&id, Access::Write).await.unwrap().unwrap();

        let (a, b) = (open().await, open().await);
        push(&a, Level::Success, "two").unwrap();
        push(&b, Level::Warning, "three").unwrap();
        a.commit().await.unwrap();
        b.commit().await.unwrap();

        let (a, b) = (open().await, open().await);
        let texts = |session| take(session).unwrap().into_iter().map(|m| m.text).collect::<Vec<_>>();
        assert_eq!(texts(&a), ["one", "two", "three"]);
        assert_eq!(texts(&b), ["one", "two", "three"]);
        a.commit().await.unwrap();
        assert!(b.commit().await.unwrap_err().is_conflict());
        assert_eq!(take(&open().await).unwrap(), []);
    }

    #[tokio::test]
    async fn looking_for_messages_makes_no_session() {
        let sessions = Sessions::builder(MemoryStore::default()).build().unwrap();
        let session = sessions.create();
        assert_eq!(take(&session).unwrap(), []);
        session.commit().await.unwrap();
        assert_eq!(session.id(), None);
    }
}
