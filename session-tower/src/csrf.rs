//! A token against cross-site request forgery: in the session and in the form, and the same in both.
//!
//! `SameSite=Lax` keeps other sites' forms from using the cookie in browsers that know it; this is the second
//! line. Two requests that both draw the first token would each show another one, and one of the forms would
//! never be accepted: here the commit of the second is a conflict (409, or a rerun by
//! [`RetryLayer`](crate::RetryLayer)).
//!
//! ```
//! # #[cfg(feature = "axum")] mod example {
//! use axum::{extract::Form, http::StatusCode, response::IntoResponse};
//! use session_tower::{Rejection, Session, csrf};
//!
//! async fn form(session: Session) -> Result<String, Rejection> {
//!     Ok(format!("<form method=post><input type=hidden name=csrf value={}>…", csrf::token(&session)?))
//! }
//!
//! #[derive(serde::Deserialize)]
//! struct Comment {
//!     csrf: String,
//! }
//!
//! async fn comment(session: Session, Form(comment): Form<Comment>) -> Result<StatusCode, Rejection> {
//!     if !csrf::verify(&session, &comment.csrf)? {
//!         return Ok(StatusCode::FORBIDDEN);
//!     }
//!     Ok(StatusCode::NO_CONTENT)
//! }
//! # }
//! ```

use session_core::{Key, Result, Session, SessionId, SystemRandom};

const TOKEN: Key<String> = Key::new("~csrf");

/// The session's token, drawn when there is none yet: 256 bits in 43 characters that need no escaping. It
/// stays until it is [renewed](renew), so several tabs work.
///
/// # Errors
/// As for [`Session::update_with`]; [`ErrorKind::Random`](session_core::ErrorKind::Random).
pub fn token(session: &Session) -> Result<String> {
    if let Some(token) = session.get(TOKEN)? {
        return Ok(token);
    }
    renew(session)
}

/// Whether this is the session's token; `false` also when it has none. How long it takes does not tell where
/// they differ.
///
/// # Errors
/// As for [`Session::get`].
#[must_use = "a request whose token is wrong must be refused"]
pub fn verify(session: &Session, presented: &str) -> Result<bool> {
    let Some(token) = session.get(TOKEN)? else { return Ok(false) };
    Ok(same(token.as_bytes(), presented.as_bytes()))
}

/// A new token; forms with the old one are refused from the commit on. Call it at login, together with
/// [`Session::rotate`].
///
/// # Errors
/// As for [`token`].
pub fn renew(session: &Session) -> Result<String> {
    // An id is what is needed: 256 random bits as text.
    let token = SessionId::random(&SystemRandom)?.expose();
    session.take(TOKEN)?; // seen: of two that renew it at once one is told
    session.insert(TOKEN, &token)?;
    Ok(token)
}

fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::{Access, MemoryStore, Sessions};

    fn sessions() -> Sessions {
        Sessions::builder(MemoryStore::default()).build().unwrap()
    }

    #[test]
    fn a_token_stays_until_it_is_renewed() {
        let session = sessions().create();
        assert!(!verify(&session, "").unwrap());
        let first = token(&session).unwrap();
        assert_eq!(token(&session).unwrap(), first);
        assert!(verify(&session, &first).unwrap());
        for wrong in ["", &first[1..], &format!("{first}A"), &first.to_lowercase()] {
            assert!(!verify(&session, wrong).unwrap(), "{wrong}");
        }
        let second = renew(&session).unwrap();
        assert!(!verify(&session, &first).unwrap());
        assert!(verify(&session, &second).unwrap());
        session.discard();
    }

    #[tokio::test]
    async fn of_two_first_tokens_one_is_refused() {
        let sessions = sessions();
        let new = sessions.create();
        new.insert(Key::<u32>::new("user"), &7).unwrap();
        new.commit().await.unwrap();
        let id = new.id().unwrap();
        let [a, b] = [sessions.open(&id, Access::Write).await, sessions.open(&id, Access::Write).await]
            .map(|opened| opened.unwrap().unwrap());
        let shown = token(&a).unwrap();
        token(&b).unwrap();
        a.commit().await.unwrap();
        assert!(b.commit().await.unwrap_err().is_conflict());
        let session = sessions.open(&id, Access::Read).await.unwrap().unwrap();
        assert!(verify(&session, &shown).unwrap());
    }
}
