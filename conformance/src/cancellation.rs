//! Every future of the public interface, dropped at every await point.
//!
//! A request can end at any time: its client goes away, its deadline comes. Whatever it was waiting for then,
//! no lock may stay, no waiter may block the queue, and the session must be as it was before or as it was to
//! become.
//!
//! ```
//! use session_conformance::cancellation::{Bounds, drop_everywhere};
//! use session_core::MemoryStore; // yours
//! use std::{sync::Arc, time::Duration};
//!
//! # async fn run() {
//! let bounds = Bounds { lease: Duration::from_secs(60), free_within: Duration::from_secs(1) };
//! let dropped = drop_everywhere(Arc::new(MemoryStore::default()), bounds).await.unwrap();
//! assert!(dropped.iter().map(|case| case.await_points).sum::<usize>() > 300);
//! # }
//! # tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(run());
//! ```

use async_trait::async_trait;
use bytes::Bytes;
use session_core::{
    Access, Acquired, Capabilities, Deleted, ErrorKind, Grant, Inserted, Key, Loaded, LockingStore, Page,
    PrincipalKey, Put, Released, Renewed, Replaced, Result, Session, SessionId, SessionIndex, SessionLock,
    SessionStore, SessionSweeper, Sessions, StorageKey, Stored, Swept, SystemRandom, Token, Touched, Version,
};
use std::{pin::Pin, sync::Arc, task::Poll, time::Duration};
use tokio::time::{Instant, sleep};

/// What a store has to keep.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How long a lease is.
    pub lease: Duration,
    /// How long after the drop the lock must be free. More than a lease proves the contract of a driver, much
    /// less that what is left is released in the background.
    pub free_within: Duration,
}

/// One future that was dropped everywhere.
#[derive(Clone, Copy, Debug)]
pub struct Dropped {
    /// Which one.
    pub case: &'static str,
    /// At how many points it waits before it comes to its end. (Beyond 128, about.)
    pub await_points: usize,
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

const COUNT: Key<u64> = Key::new("count");

/// More await points than any of these futures has.
const TOO_MANY: usize = 2_000;

/// Drops each future after its first, second, third … await, with a session of its own each time, until it
/// comes to its end.
///
/// Every call of the store waits three times before its effect and three times after it.
///
/// # Errors
/// What was wrong, in which case and after how many awaits.
pub async fn drop_everywhere(
    store: Arc<dyn LockingStore>,
    bounds: Bounds,
) -> std::result::Result<Vec<Dropped>, String> {
    let mut dropped = Vec::new();
    for (case, prepare) in CASES {
        let await_points = drop_one_everywhere(&store, bounds, *prepare)
            .await
            .map_err(|wrong| format!("{case}: {wrong}"))?;
        dropped.push(Dropped { case, await_points });
    }
    Ok(dropped)
}

async fn drop_one_everywhere(
    store: &Arc<dyn LockingStore>,
    bounds: Bounds,
    prepare: Prepare,
) -> std::result::Result<usize, String> {
    let mut awaits = 0;
    while awaits < TOO_MANY {
        // At every point of what is short; of what is long, like a sweep, ever fewer.
        awaits += 1 + awaits / 128;
        let world = World::new(store, bounds).map_err(|error| error.to_string())?;
        let points = awaits - 1;
        let at = |wrong: String| format!("dropped after {awaits} awaits: {wrong}");
        let Prepared { ids, before, after, run } =
            prepare(world.clone()).await.map_err(|error| at(format!("could not be prepared: {error}")))?;
        let ended = cut(run, awaits).await;
        world.check(&ids, before, after).await.map_err(at)?;
        match ended {
            None => {}
            Some(Err(error)) if error.kind() == ErrorKind::Unsupported && store.index().is_none() => {
                return Ok(points);
            }
            Some(Err(error)) => return Err(format!("failed undisturbed: {error}")),
            Some(Ok(())) => {
                for id in &ids {
                    let left = world.count(id).await.map_err(|error| error.to_string())?;
                    if left != after {
                        return Err(format!("ended undisturbed with {left:?} and not {after:?}"));
                    }
                }
                return Ok(points);
            }
        }
    }
    Err(format!("came to no end within {TOO_MANY} awaits"))
}

/// Runs until the end, or until it has waited so many times; `None`: it was dropped then.
async fn cut<T>(mut future: Boxed<T>, awaits: usize) -> Option<T> {
    let mut left = awaits;
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => {
            left -= 1;
            if left == 0 { Poll::Ready(None) } else { Poll::Pending }
        }
    })
    .await
}

#[derive(Clone)]
struct World {
    store: Arc<dyn LockingStore>,
    /// On the store itself; another process as far as the lock is concerned.
    direct: Sessions,
    /// On a store whose calls wait: what is dropped.
    slow: Sessions,
    /// Whose sessions they are; another one each time.
    user: String,
    bounds: Bounds,
}

struct Prepared {
    ids: Vec<SessionId>,
    /// The count in each of the sessions; `None` when there is none.
    before: Option<u64>,
    after: Option<u64>,
    run: Boxed<Result<()>>,
}

impl World {
    fn new(store: &Arc<dyn LockingStore>, bounds: Bounds) -> Result<Self> {
        let build = |store: Arc<dyn LockingStore>, idle: Duration| {
            let builder = Sessions::builder(store).idle_timeout(idle).rotation_grace(Duration::from_mins(10));
            let builder = builder.lease(bounds.lease).max_hold(bounds.lease * 4);
            builder.lock_wait(bounds.free_within + Duration::from_secs(5)).build()
        };
        Ok(Self {
            store: Arc::clone(store),
            direct: build(Arc::clone(store), Duration::from_mins(10))?,
            // A longer idle timeout, so that reading is a reason to touch.
            slow: build(Arc::new(Slow(Arc::clone(store))), Duration::from_mins(30))?,
            user: Token::random(&SystemRandom)?.to_string(),
            bounds,
        })
    }

    async fn new_session(&self) -> Result<SessionId> {
        let new = self.direct.create();
        new.insert(COUNT, &0)?;
        if self.store.index().is_some() {
            new.set_principal(&self.user)?;
        }
        new.commit().await?;
        new.id().ok_or_else(|| session_core::Error::new(ErrorKind::Invalid, "create"))
    }

    async fn opened(&self, access: Access) -> Result<(SessionId, Session)> {
        let id = self.new_session().await?;
        let session = self.slow.open(&id, access).await?;
        Ok((id, session.ok_or_else(|| session_core::Error::new(ErrorKind::Gone, "open"))?))
    }

    async fn rotated(&self) -> Result<SessionId> {
        let id = self.new_session().await?;
        self.direct.update(&id, Session::rotate).await?;
        Ok(id)
    }

    /// Somebody holds the lock, and lets go of it a little later.
    async fn held(&self, by: &Sessions) -> Result<SessionId> {
        let id = self.new_session().await?;
        let holder = by.open(&id, Access::Exclusive).await?;
        tokio::spawn(async move {
            sleep(Duration::from_millis(20)).await;
            drop(holder);
        });
        Ok(id)
    }

    async fn count(&self, id: &SessionId) -> Result<Option<u64>> {
        self.direct.read(id).await?.map_or(Ok(None), |left| left.get(COUNT))
    }

    /// Nothing is locked, nobody is in the way, and nothing is half done.
    async fn check(
        &self,
        ids: &[SessionId],
        before: Option<u64>,
        after: Option<u64>,
    ) -> std::result::Result<(), String> {
        for id in ids {
            self.assert_free(id).await?;
            // In the queue of the same process, and through the same store.
            let start = Instant::now();
            match self.slow.exclusive(id, async |_| Ok(())).await {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Gone => {}
                Err(error) => return Err(format!("the next one cannot get in: {error}")),
            }
            if start.elapsed() > self.bounds.free_within {
                return Err(format!("the next one waited for {:?}", start.elapsed()));
            }
            let left = self.count(id).await.map_err(|error| error.to_string())?;
            if left != before && left != after {
                return Err(format!("it is {left:?}, neither {before:?} nor {after:?}"));
            }
        }
        Ok(())
    }

    async fn assert_free(&self, id: &SessionId) -> std::result::Result<(), String> {
        let (start, key) = (Instant::now(), id.storage_key());
        let token = Token::random(&SystemRandom).map_err(|error| error.to_string())?;
        loop {
            let asked = self.store.acquire(&key, token, self.bounds.lease, Duration::ZERO).await;
            match asked.map_err(|error| error.to_string())? {
                Acquired::Granted(grant) => {
                    return match self.store.release(&grant).await {
                        Ok(Released::Freed) => Ok(()),
                        Ok(Released::Lost) => Err("a lock that was just taken is lost".into()),
                        Err(error) => Err(error.to_string()),
                    };
                }
                Acquired::Held(_) if start.elapsed() > self.bounds.free_within => {
                    return Err(format!("the lock is still held after {:?}", start.elapsed()));
                }
                Acquired::Held(_) => sleep(Duration::from_millis(5)).await,
            }
        }
    }
}

type Prepare = fn(World) -> Boxed<Result<Prepared>>;

fn increment(session: &Session) -> Result<()> {
    session.update(COUNT, |count| *count += 1)
}

/// A session that was opened like that, changed like that: its commit is what is dropped.
async fn commit_of(world: World, access: Access, change: fn(&Session) -> Result<()>) -> Result<Prepared> {
    let (id, session) = world.opened(access).await?;
    change(&session)?;
    let run = Box::pin(async move { session.commit().await });
    Ok(Prepared { ids: vec![id], before: Some(0), after: Some(1), run })
}

/// A function of [`Sessions`] that leaves the session as it is.
fn harmless(id: SessionId, run: impl Future<Output = Result<()>> + Send + 'static) -> Prepared {
    Prepared { ids: vec![id], before: Some(0), after: Some(0), run: Box::pin(run) }
}

const CASES: &[(&str, Prepare)] = &[
    ("open for reading", |world| {
        Box::pin(async move {
            let id = world.new_session().await?;
            Ok(harmless(id.clone(), async move { world.slow.open(&id, Access::Read).await.map(drop) }))
        })
    }),
    ("open for writing", |world| {
        Box::pin(async move {
            let id = world.new_session().await?;
            Ok(harmless(id.clone(), async move { world.slow.open(&id, Access::Write).await.map(drop) }))
        })
    }),
    ("open exclusively", |world| {
        Box::pin(async move {
            let id = world.new_session().await?;
            Ok(harmless(id.clone(), async move { world.slow.open(&id, Access::Exclusive).await.map(drop) }))
        })
    }),
    ("open exclusively behind a holder of the same process", |world| {
        Box::pin(async move {
            let id = world.held(&world.slow).await?;
            Ok(harmless(id.clone(), async move { world.slow.open(&id, Access::Exclusive).await.map(drop) }))
        })
    }),
    ("open exclusively behind a holder elsewhere", |world| {
        Box::pin(async move {
            let id = world.held(&world.direct).await?;
            Ok(harmless(id.clone(), async move { world.slow.open(&id, Access::Exclusive).await.map(drop) }))
        })
    }),
    ("open exclusively under an old id", |world| {
        Box::pin(async move {
            let id = world.rotated().await?;
            Ok(harmless(id.clone(), async move { world.slow.open(&id, Access::Exclusive).await.map(drop) }))
        })
    }),
    ("read", |world| {
        Box::pin(async move {
            let id = world.new_session().await?;
            Ok(harmless(id.clone(), async move { world.slow.read(&id).await.map(drop) }))
        })
    }),
    ("update", |world| {
        Box::pin(async move {
            let id = world.new_session().await?;
            let of = id.clone();
            let run = Box::pin(async move { world.slow.update(&of, increment).await });
            Ok(Prepared { ids: vec![id], before: Some(0), after: Some(1), run })
        })
    }),
    ("update behind a holder of the same process", |world| {
        Box::pin(async move {
            let id = world.held(&world.slow).await?;
            let of = id.clone();
            let run = Box::pin(async move { world.slow.update(&of, increment).await });
            Ok(Prepared { ids: vec![id], before: Some(0), after: Some(1), run })
        })
    }),
    ("update behind a holder elsewhere", |world| {
        Box::pin(async move {
            let id = world.held(&world.direct).await?;
            let of = id.clone();
            let run = Box::pin(async move { world.slow.update(&of, increment).await });
            Ok(Prepared { ids: vec![id], before: Some(0), after: Some(1), run })
        })
    }),
    ("exclusive", |world| {
        Box::pin(async move {
            let id = world.new_session().await?;
            let of = id.clone();
            let work = async |session: &Session| {
                tokio::task::yield_now().await;
                increment(session)
            };
            let run = Box::pin(async move { world.slow.exclusive(&of, work).await });
            Ok(Prepared { ids: vec![id], before: Some(0), after: Some(1), run })
        })
    }),
    ("commit of a new session", |world| {
        Box::pin(async move {
            let new = world.slow.create();
            increment(&new)?;
            // Nobody knows its id before it has come to its end.
            let run = Box::pin(async move { new.commit().await });
            Ok(Prepared { ids: vec![], before: None, after: None, run })
        })
    }),
    ("commit", |world| Box::pin(commit_of(world, Access::Write, increment))),
    ("commit of what another has changed since", |world| {
        Box::pin(async move {
            let (id, session) = world.opened(Access::Write).await?;
            increment(&session)?;
            world.direct.update(&id, increment).await?;
            let run = Box::pin(async move { session.commit().await });
            Ok(Prepared { ids: vec![id], before: Some(1), after: Some(2), run })
        })
    }),
    ("commit of an exclusive session", |world| Box::pin(commit_of(world, Access::Exclusive, increment))),
    ("commit of an exclusive session without a change", |world| {
        Box::pin(async move {
            let (id, session) = world.opened(Access::Exclusive).await?;
            Ok(harmless(id, async move { session.commit().await }))
        })
    }),
    ("commit without a change, which touches", |world| {
        Box::pin(async move {
            let (id, session) = world.opened(Access::Write).await?;
            Ok(harmless(id, async move { session.commit().await }))
        })
    }),
    ("commit of a rotation", |world| {
        Box::pin(commit_of(world, Access::Write, |session| {
            session.rotate().and_then(|()| increment(session))
        }))
    }),
    ("commit of an exclusive rotation", |world| {
        Box::pin(commit_of(world, Access::Exclusive, |session| {
            session.rotate().and_then(|()| increment(session))
        }))
    }),
    ("commit of a rotation that lost", |world| {
        Box::pin(async move {
            let (id, session) = world.opened(Access::Write).await?;
            session.rotate()?;
            increment(&session)?;
            world.direct.update(&id, Session::rotate).await?;
            let run = Box::pin(async move { session.commit().await });
            Ok(Prepared { ids: vec![id], before: Some(0), after: Some(1), run })
        })
    }),
    ("commit of a destroy", |world| {
        Box::pin(async move {
            let prepared = commit_of(world, Access::Write, Session::destroy).await?;
            Ok(Prepared { after: None, ..prepared })
        })
    }),
    ("commit of an exclusive destroy", |world| {
        Box::pin(async move {
            let prepared = commit_of(world, Access::Exclusive, Session::destroy).await?;
            Ok(Prepared { after: None, ..prepared })
        })
    }),
    ("upgrade", |world| {
        Box::pin(async move {
            let (id, session) = world.opened(Access::Write).await?;
            Ok(harmless(id, async move { session.upgrade(Access::Exclusive).await }))
        })
    }),
    ("destroy", |world| {
        Box::pin(async move {
            let id = world.new_session().await?;
            let of = id.clone();
            let run = Box::pin(async move { world.slow.destroy(&of).await.map(drop) });
            Ok(Prepared { ids: vec![id], before: Some(0), after: None, run })
        })
    }),
    ("destroy under an old id", |world| {
        Box::pin(async move {
            let id = world.rotated().await?;
            let of = id.clone();
            let run = Box::pin(async move { world.slow.destroy(&of).await.map(drop) });
            Ok(Prepared { ids: vec![id], before: Some(0), after: None, run })
        })
    }),
    ("destroy while another holds the lock", |world| {
        Box::pin(async move {
            let id = world.held(&world.direct).await?;
            let of = id.clone();
            let run = Box::pin(async move { world.slow.destroy(&of).await.map(drop) });
            Ok(Prepared { ids: vec![id], before: Some(0), after: None, run })
        })
    }),
    ("revoke", |world| {
        Box::pin(async move {
            let id = world.new_session().await?;
            let key = id.storage_key();
            let run = Box::pin(async move { world.slow.revoke(&key).await.map(drop) });
            Ok(Prepared { ids: vec![id], before: Some(0), after: None, run })
        })
    }),
    ("revoke_all", |world| {
        Box::pin(async move {
            let ids = vec![world.new_session().await?, world.rotated().await?];
            let run = Box::pin(async move { world.slow.revoke_all(&world.user).await.map(drop) });
            Ok(Prepared { ids, before: Some(0), after: None, run })
        })
    }),
    ("for_principal", |world| {
        Box::pin(async move {
            let id = world.rotated().await?;
            Ok(harmless(id, async move { world.slow.for_principal(&world.user).await.map(drop) }))
        })
    }),
    ("sweep", |world| {
        Box::pin(async move {
            let id = world.new_session().await?;
            Ok(harmless(id, async move { world.slow.sweep(10).await.map(drop) }))
        })
    }),
];

/// Waits three times before each call and after it.
#[derive(Debug)]
struct Slow(Arc<dyn LockingStore>);

async fn slowly<T>(call: impl Future<Output = T>) -> T {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    let done = call.await;
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    done
}

#[async_trait]
impl SessionStore for Slow {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn index(&self) -> Option<&dyn SessionIndex> {
        self.0.index().map(|_| self as _)
    }

    fn sweeper(&self) -> Option<&dyn SessionSweeper> {
        self.0.sweeper().map(|_| self as _)
    }

    async fn load(&self, key: &StorageKey) -> Result<Option<Stored>> {
        slowly(self.0.load(key)).await
    }

    async fn insert(&self, key: &StorageKey, put: &Put) -> Result<Inserted> {
        slowly(self.0.insert(key, put)).await
    }

    async fn replace(&self, key: &StorageKey, expected: Version, put: &Put) -> Result<Replaced> {
        slowly(self.0.replace(key, expected, put)).await
    }

    async fn touch(&self, key: &StorageKey, expected: Version, ttl: Duration) -> Result<Touched> {
        slowly(self.0.touch(key, expected, ttl)).await
    }

    async fn delete(&self, key: &StorageKey) -> Result<Deleted> {
        slowly(self.0.delete(key)).await
    }
}

#[async_trait]
impl SessionIndex for Slow {
    async fn keys_of(&self, principal: &PrincipalKey, after: Option<Bytes>, limit: usize) -> Result<Page> {
        match self.0.index() {
            Some(index) => slowly(index.keys_of(principal, after, limit)).await,
            None => Err(session_core::Error::new(ErrorKind::Unsupported, "keys_of")),
        }
    }
}

#[async_trait]
impl SessionSweeper for Slow {
    async fn sweep(&self, limit: usize) -> Result<Swept> {
        match self.0.sweeper() {
            Some(sweeper) => slowly(sweeper.sweep(limit)).await,
            None => Ok(Swept::default()),
        }
    }
}

#[async_trait]
impl SessionLock for Slow {
    async fn acquire(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Acquired> {
        slowly(self.0.acquire(key, token, lease, wait)).await
    }

    async fn renew(&self, grant: &Grant, lease: Duration) -> Result<Renewed> {
        slowly(self.0.renew(grant, lease)).await
    }

    async fn release(&self, grant: &Grant) -> Result<Released> {
        slowly(self.0.release(grant)).await
    }
}

#[async_trait]
impl LockingStore for Slow {
    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        slowly(self.0.acquire_and_load(key, token, lease, wait)).await
    }

    async fn replace_and_release(&self, grant: &Grant, expected: Version, put: &Put) -> Result<Replaced> {
        slowly(self.0.replace_and_release(grant, expected, put)).await
    }

    async fn delete_and_release(&self, grant: &Grant) -> Result<Deleted> {
        slowly(self.0.delete_and_release(grant)).await
    }
}
