//! A line to a store that loses replies and requests, delays them, and delivers some twice.

use crate::wrapper::{Wrapper, wrap};
use async_trait::async_trait;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use session_core::{
    Effect, Error, Grant, Inserted, Loaded, LockingStore, Put, Replaced, Result, StorageKey, Stored, Token,
    Version,
};
use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{task::JoinSet, time::sleep};

/// How late a request comes at most.
const LATE: Duration = Duration::from_millis(4);

/// What becomes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    /// It is done, and the reply is lost.
    ReplyLost,
    /// It never arrives.
    RequestLost,
    /// It arrives when the caller has given up.
    ComesLate,
    /// It is answered, and a copy of it arrives later.
    ComesTwice,
    /// The reply is lost, and a copy of it arrives later.
    LostAndComesTwice,
}

/// The line. Dropped, it forgets what is still under way.
pub(super) struct Line {
    inner: Arc<dyn LockingStore>,
    shared: Arc<Shared>,
}

/// The scenario's end of it.
pub(super) struct Shared {
    random: Mutex<StdRng>,
    under_way: Mutex<JoinSet<()>>,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// The store at the other end of such a line.
pub(super) fn unreliable(inner: &Arc<dyn LockingStore>, seed: u64) -> (Arc<dyn LockingStore>, Arc<Shared>) {
    let shared =
        Arc::new(Shared { random: Mutex::new(StdRng::seed_from_u64(seed)), under_way: Mutex::default() });
    (wrap(Line { inner: Arc::clone(inner), shared: Arc::clone(&shared) }), shared)
}

impl Shared {
    /// Returns when everything that was late has arrived.
    pub(super) async fn settled(&self) {
        let mut late = std::mem::take(&mut *self.under_way.lock().unwrap_or_else(PoisonError::into_inner));
        while late.join_next().await.is_some() {}
    }

    fn fate(&self) -> Fate {
        match self.random.lock().unwrap_or_else(PoisonError::into_inner).random_range(0..16) {
            0 | 1 => Fate::ReplyLost,
            2 => Fate::RequestLost,
            3 => Fate::ComesLate,
            4 | 5 => Fate::ComesTwice,
            6 => Fate::LostAndComesTwice,
            _ => Fate::Answered,
        }
    }

    /// Has it arrive after a while, whoever waits for it.
    fn later(&self, call: impl Future<Output = ()> + Send + 'static) {
        let late =
            self.random.lock().unwrap_or_else(PoisonError::into_inner).random_range(0..=LATE.as_micros());
        let late = Duration::from_micros(u64::try_from(late).unwrap_or_default());
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move {
            sleep(late).await;
            call.await;
        });
    }
}

impl Line {
    /// One call, and what becomes of it. The copy is the same request, sent again.
    async fn call<T: Send>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T>> + Send,
        copy: impl Future<Output = ()> + Send + 'static,
    ) -> Result<T> {
        let lost = || Err(Error::unavailable(operation, "the line was cut"));
        let fate = self.shared.fate();
        if matches!(fate, Fate::ComesLate) {
            self.shared.later(copy);
            return lost();
        }
        if fate == Fate::RequestLost {
            return lost();
        }
        let answer = call.await;
        if matches!(fate, Fate::ComesTwice | Fate::LostAndComesTwice) {
            self.shared.later(copy);
        }
        if matches!(fate, Fate::ReplyLost | Fate::LostAndComesTwice) { lost() } else { answer }
    }
}

#[async_trait]
impl Wrapper for Line {
    fn inner(&self) -> &Arc<dyn LockingStore> {
        &self.inner
    }

    /// Fails less often: whoever cannot even open a session tries nothing. And without effect.
    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        if self.shared.fate() == Fate::RequestLost {
            return Err(Error::unavailable("load", "the line was cut").with_effect(Effect::None));
        }
        self.inner.load(key).await
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        let (inner, again, copy) = (Arc::clone(&self.inner), *key, put.clone());
        let copy = async move { drop(inner.insert(&again, &copy).await) };
        self.call("insert", self.inner.insert(key, put), copy).await
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        let (inner, again, copy) = (Arc::clone(&self.inner), *key, put.clone());
        let copy = async move { drop(inner.replace(&again, expected, &copy).await) };
        self.call("replace", self.inner.replace(key, expected, put), copy).await
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        // A copy that comes late could take a lock that nobody holds any more, until its lease ends: that is
        // slow, and no loss.
        self.call("acquire_and_load", self.inner.acquire_and_load(key, token, lease, wait), async {}).await
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        let (inner, again, copy) =
            (Arc::clone(&self.inner), Grant::new(*grant.key(), *grant.token()), put.clone());
        let copy = async move { drop(inner.replace_and_release(&again, expected, &copy).await) };
        self.call("replace_and_release", self.inner.replace_and_release(grant, expected, put), copy).await
    }
}
