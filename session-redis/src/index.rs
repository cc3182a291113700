//! The index: one sorted set per user, each session at its expiry.
//!
//! An entry is written before the record, never moved forward in time, and taken out when the session is
//! deleted or when a page is read after its time. So it may name what is gone, and never omits what lives, as
//! long as the server keeps what it acknowledged:
//!
//! - A server that evicts may evict an index and keep the sessions that it names. There the store offers none
//!   ([`SessionStore::index`](session_core::SessionStore::index)).
//! - In a cluster an index and its sessions may be on different servers. A failover of the one may forget the
//!   last names of sessions that live on the other, until each is written or touched again.

use crate::{
    RedisStore,
    layout::{index_key, unhex},
    script::INDEX_PAGE,
};
use async_trait::async_trait;
use bytes::Bytes;
use redis::Value;
use session_core::{Effect, Error, ErrorKind, Page, PrincipalKey, Result, SessionIndex, StorageKey};

/// The longest page: one reply, and one step of the server, that others wait for.
const LONGEST_PAGE: usize = 1000;

#[async_trait]
impl SessionIndex for RedisStore {
    async fn keys_of(&self, principal: &PrincipalKey, after: Option<Bytes>, limit: usize) -> Result<Page> {
        let (score, member) = match &after {
            None => (&b""[..], &b""[..]),
            Some(after) => cursor(after)?,
        };
        let limit = limit.clamp(1, LONGEST_PAGE);
        let one_more = (limit + 1).to_string(); // tells whether there is a next page
        let index = index_key(&self.0.prefix, principal);
        let arguments = [score, member, one_more.as_bytes()];
        let reply = self.0.call("keys_of", &INDEX_PAGE, &[index.as_bytes()], &arguments).await;
        let Value::Array(entries) = reply.map_err(|error| error.with_effect(Effect::None))? else {
            return Err(damaged());
        };
        let mut page = Page::default();
        for entry in entries.chunks_exact(2).take(limit) {
            let [Value::BulkString(member), Value::BulkString(score)] = entry else { return Err(damaged()) };
            page.keys.push(StorageKey::from_bytes(unhex(member).ok_or_else(damaged)?));
            page.next = Some([&score[..], b" ", member].concat().into());
        }
        if entries.len() <= 2 * limit {
            page.next = None;
        }
        Ok(page)
    }
}

/// `score member`, as the page before ended.
fn cursor(after: &[u8]) -> Result<(&[u8], &[u8])> {
    let space = after.iter().position(|byte| *byte == b' ');
    let (score, member) = space.map(|space| (&after[..space], &after[space + 1..])).unwrap_or_default();
    if score.is_empty() || !score.iter().all(u8::is_ascii_digit) || unhex::<32>(member).is_none() {
        return Err(Error::new(ErrorKind::Invalid, "keys_of").with_context("not a page of this index"));
    }
    Ok((score, member))
}

fn damaged() -> Error {
    Error::new(ErrorKind::Damaged, "keys_of").with_context("an index that this driver did not write")
}
