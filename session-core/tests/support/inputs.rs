//! What is done with one input of arbitrary bytes: by the property tests, and by the fuzzer.

#![allow(dead_code, reason = "each test uses a part of it")]

use bytes::{BufMut as _, Bytes, BytesMut};
use session_core::{
    Access, Clock, Error, ErrorKind, Inserted, Key, MemoryStore, Put, Random, Result, Session, SessionId,
    SessionStore as _, Sessions,
};
use std::{sync::Arc, time::Duration};
use tokio::runtime::{Builder, Runtime};

/// What may come out of the inflater here; small, so that inputs come beyond it.
pub(crate) const MAX_INFLATED: usize = 16 << 10;

/// Names that inputs are likely to hit.
const NAMES: [Key<serde_json::Value>; 3] = [Key::new("a"), Key::new("b"), Key::new("key")];

#[derive(Debug)]
struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> Duration {
        Duration::from_secs(1_700_000_000)
    }
}

impl Random for Fixed {
    fn fill(&self, buffer: &mut [u8]) -> Result<()> {
        buffer.fill(7);
        Ok(())
    }
}

/// Runs to the end, on a runtime that is made once in a thread.
pub(crate) fn at_once<F: Future>(future: F) -> F::Output {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// A head with a checksum that is right.
pub(crate) fn with_checksum(head: [u8; 4], body: &[u8]) -> Bytes {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&head);
    sum.update(body);
    let mut whole = BytesMut::new();
    whole.put_slice(&head);
    whole.put_u32_le(sum.finalize());
    whole.put_slice(body);
    whole.freeze()
}

/// A session that is stored as these bytes.
pub(crate) struct Stored {
    pub(crate) store: MemoryStore,
    pub(crate) sessions: Sessions,
    pub(crate) id: SessionId,
    pub(crate) bytes: Bytes,
}

impl Stored {
    pub(crate) fn new(bytes: Bytes) -> Self {
        let store = MemoryStore::new(Arc::new(Fixed), Arc::new(Fixed));
        let builder = Sessions::builder(store.clone()).clock(Arc::new(Fixed)).max_inflated(MAX_INFLATED);
        let sessions = builder.rotation_grace(Duration::from_secs(60)).build().unwrap();
        let id = SessionId::random(&Fixed).unwrap();
        let put = Put::new(bytes.clone(), Duration::from_mins(5));
        assert!(matches!(at_once(store.insert(&id.storage_key(), &put)), Ok(Inserted::Created(_))));
        Self { store, sessions, id, bytes }
    }

    pub(crate) fn open(&self) -> Result<Option<Session>> {
        at_once(self.sessions.open(&self.id, Access::Write))
    }

    /// Whoever reads it is told so by an error of this kind, and it stays as it is.
    pub(crate) fn assert_refused(&self, kind: ErrorKind) {
        let error = self.open().expect_err("it cannot be read");
        assert_eq!(error.kind(), kind, "{error}");
        let error = at_once(self.sessions.read(&self.id)).expect_err("it cannot be read");
        assert_eq!(error.kind(), kind, "{error}");
        let error = at_once(self.sessions.update(&self.id, |session| session.insert(NAMES[0], &1.into())));
        assert_eq!(error.expect_err("it cannot be changed").kind(), kind);
        self.assert_stays();
    }

    fn assert_stays(&self) {
        let there = at_once(self.store.load(&self.id.storage_key())).unwrap();
        assert_eq!(there.expect("it is still there").data, self.bytes, "it was overwritten");
    }
}

/// Opens a record of these bytes: a session, none, or an error of its own kind. What can be read can be
/// written and read again.
pub(crate) fn record(bytes: Bytes) {
    let stored = Stored::new(bytes);
    let session = match stored.open() {
        Ok(Some(session)) => session,
        Ok(None) => return stored.assert_stays(), // a tombstone, or beyond its lifetime
        Err(error) => {
            assert!(is_a_verdict(&error), "{error:?}");
            return stored.assert_stays();
        }
    };
    let names = session.names().unwrap();
    for key in NAMES {
        match session.get(key) {
            Ok(value) => assert_eq!(value.is_some(), names.iter().any(|name| name == key.name())),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Decode, "{error:?}"),
        }
    }
    // Blindly, so that what does not decode is no obstacle.
    session.insert(NAMES[0], &serde_json::Value::Null).unwrap();
    match at_once(session.commit()) {
        Ok(()) => {
            let again = at_once(stored.sessions.read(&stored.id)).unwrap().unwrap();
            assert_eq!(again.names(), session.names().unwrap());
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::TooLarge, "{error:?}"),
    }
}

fn is_a_verdict(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::TooLarge | ErrorKind::Unsupported)
}

/// The envelope: as it comes, and with a head of which three bytes are the input's and the rest is right.
pub(crate) fn envelope(input: &[u8]) {
    record(Bytes::copy_from_slice(input));
    if let Some(([flags, kind, codec], body)) = input.split_first_chunk() {
        record(with_checksum([1, flags & 3, kind & 3, codec & 3], body));
    }
}

/// The inflater: a claim, and a stream.
pub(crate) fn inflater(input: &[u8]) {
    if let Some((claim, stream)) = input.split_first_chunk() {
        // Half of the claims are within the limit.
        let claim = u32::from_le_bytes(*claim) % (2 * MAX_INFLATED as u32);
        record(with_checksum([1, 1, 0, 0], &[&claim.to_le_bytes(), stream].concat()));
    }
}

/// The session id, as it comes in a cookie.
pub(crate) fn session_id(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Some(id) = SessionId::parse(&text) {
        assert_eq!(id.expose(), text, "one id, one text");
    }
}
