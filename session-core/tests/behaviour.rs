//! What the portable part promises beside the protocols: queueing, leases, expiry, access, limits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/environment.rs"]
mod environment;
#[path = "support/faulty.rs"]
mod faulty;

use environment::{Seeded, TokioClock};
use faulty::{Arrives, Fate, Faulty, Reply};
use session_core::{
    Access, Clock, Effect, ErrorKind, Key, LockingStore, MemoryLock, MemoryStore, Pair, Random, Result,
    Session, SessionId, SessionStore as _, Sessions, SessionsBuilder,
};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, sleep},
};

const COUNT: Key<u32> = Key::new("count");
const TEXT: Key<String> = Key::new("count"); // the same name, another type

const LEASE: Duration = Duration::from_secs(3);
const WAIT: Duration = Duration::from_secs(5);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

struct World {
    clock: Arc<TokioClock>,
    store: MemoryStore,
    sessions: Sessions,
    id: SessionId,
}

/// Another process: it draws other numbers than the ones before.
fn builder(store: impl LockingStore, clock: &Arc<TokioClock>) -> SessionsBuilder {
    static SEED: AtomicU64 = AtomicU64::new(100);
    let seed = SEED.fetch_add(1, Relaxed);
    let builder = Sessions::builder(store).clock(clock.clone()).random(Seeded::new(seed));
    builder.lease(LEASE).lock_wait(WAIT).max_hold(seconds(20))
}

async fn world_with(change: impl Fn(SessionsBuilder) -> SessionsBuilder) -> World {
    let clock = TokioClock::start();
    let store = MemoryStore::new(clock.clone(), Seeded::new(6));
    let sessions = change(builder(store.clone(), &clock)).build().unwrap();
    let id = new_session(&sessions).await;
    World { clock, store, sessions, id }
}

async fn world() -> World {
    world_with(|builder| builder).await
}

async fn new_session(sessions: &Sessions) -> SessionId {
    let new = sessions.create();
    new.insert(COUNT, &0).unwrap();
    new.commit().await.unwrap();
    new.id().unwrap()
}

async fn count(sessions: &Sessions, id: &SessionId) -> Option<u32> {
    sessions.read(id).await.unwrap().map(|left| left.get(COUNT).unwrap().unwrap_or_default())
}

fn increment(session: &Session) -> Result<()> {
    session.update(COUNT, |count| *count += 1)
}

impl World {
    async fn open(&self, access: Access) -> Session {
        self.sessions.open(&self.id, access).await.unwrap().unwrap()
    }

    /// Another process.
    fn elsewhere(&self) -> Sessions {
        builder(self.store.clone(), &self.clock).build().unwrap()
    }

    async fn set(&self, value: u32) {
        self.elsewhere().update(&self.id, |session| session.insert(COUNT, &value)).await.unwrap();
    }

    async fn count(&self) -> Option<u32> {
        count(&self.sessions, &self.id).await
    }
}

macro_rules! assert_kind {
    ($result:expr, $kind:ident) => {{
        let error = $result.expect_err("it cannot have gone well");
        assert_eq!(error.kind(), ErrorKind::$kind, "{error:?}");
        error
    }};
}

// The queue.

#[tokio::test(start_paused = true)]
async fn the_lock_is_had_in_the_order_of_asking() {
    let world = world().await;
    let holder = world.open(Access::Exclusive).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    for place in 0..10 {
        let (sessions, id, order) = (world.sessions.clone(), world.id.clone(), Arc::clone(&order));
        tasks.spawn(async move {
            let work = async |session: &Session| {
                order.lock().unwrap().push(place);
                sleep(Duration::from_millis(5)).await;
                increment(session)
            };
            sessions.exclusive(&id, work).await
        });
        yield_now().await;
    }
    sleep(Duration::from_millis(100)).await;
    assert!(order.lock().unwrap().is_empty());
    holder.discard();
    for done in tasks.join_all().await {
        done.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), (0..10).collect::<Vec<_>>());
    assert_eq!(world.count().await, Some(10));
}

#[tokio::test(start_paused = true)]
async fn one_waiter_too_many_is_refused_at_once() {
    let world = world_with(|builder| builder.max_waiters(2)).await;
    let holder = world.open(Access::Exclusive).await;
    let mut waiters: Vec<_> =
        (0..2).map(|_| Box::pin(world.sessions.open(&world.id, Access::Exclusive))).collect();
    for waiter in &mut waiters {
        tokio::select! { biased; _ = waiter => panic!("it is held"), () = yield_now() => {} }
    }
    let start = Instant::now();
    let error = assert_kind!(world.sessions.open(&world.id, Access::Exclusive).await, Busy);
    assert!(error.to_string().contains("max_waiters"), "{error}");
    assert_eq!(start.elapsed(), Duration::ZERO);
    // Who leaves makes room for another one.
    drop(waiters.pop());
    let mut next = Box::pin(world.sessions.open(&world.id, Access::Exclusive));
    tokio::select! { biased; _ = &mut next => panic!("it is held"), () = yield_now() => {} }
    holder.discard();
    waiters.pop().unwrap().await.unwrap().unwrap().discard();
    next.await.unwrap().unwrap().discard();
}

#[tokio::test(start_paused = true)]
async fn busy_comes_after_lock_wait() {
    let world = world().await;
    let _holder = world.open(Access::Exclusive).await;
    for sessions in [world.sessions.clone(), world.elsewhere()] {
        let start = Instant::now();
        assert_kind!(sessions.open(&world.id, Access::Exclusive).await, Busy);
        let waited = start.elapsed();
        assert!(waited >= WAIT && waited < WAIT + Duration::from_millis(50), "{waited:?}");
    }
}

/// The next one of the process asks when the lock is free, and not before.
#[tokio::test(start_paused = true)]
async fn the_place_is_kept_until_the_release_is_done() {
    let clock = TokioClock::start();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    let store = Faulty::new(MemoryStore::new(clock.clone(), Seeded::new(1)), move |call| {
        seen.lock().unwrap().push((call, Instant::now()));
        let latency = if call == "release" { seconds(1) } else { Duration::ZERO };
        Fate { latency, ..Fate::GOOD }
    });
    let sessions = builder(store, &clock).build().unwrap();
    let id = new_session(&sessions).await;
    let holder = sessions.open(&id, Access::Exclusive).await.unwrap().unwrap();
    drop(holder); // in the background
    sessions.exclusive(&id, async |session| increment(session)).await.unwrap();
    let calls = calls.lock().unwrap();
    let at = |name| calls.iter().filter(|(call, _)| *call == name).map(|(_, at)| *at).collect::<Vec<_>>();
    let (asked, released) = (at("acquire_and_load"), at("release"));
    assert_eq!((asked.len(), released.len()), (2, 1));
    assert!(asked[1] >= released[0] + seconds(1), "it asked before the release was done");
}

/// Whoever commits next builds on what the one before has written: no conflict among the requests of one
/// process.
#[tokio::test(start_paused = true)]
async fn commits_of_one_process_do_not_conflict() {
    let clock = TokioClock::start();
    let writes = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&writes);
    let store = Faulty::new(MemoryStore::new(clock.clone(), Seeded::new(1)), move |call| {
        *counted.lock().unwrap() += u32::from(call == "replace");
        Fate { latency: Duration::from_millis(1), ..Fate::GOOD }
    });
    let sessions = builder(store, &clock).build().unwrap();
    let id = new_session(&sessions).await;
    let mut opened = Vec::new();
    for _ in 0..16 {
        opened.push(sessions.open(&id, Access::Write).await.unwrap().unwrap());
    }
    let mut commits = JoinSet::new();
    for session in opened {
        increment(&session).unwrap();
        commits.spawn(async move { session.commit().await });
    }
    for committed in commits.join_all().await {
        committed.unwrap();
    }
    assert_eq!(count(&sessions, &id).await, Some(16));
    assert_eq!(*writes.lock().unwrap(), 16, "some were refused and replayed");
}

/// The hint may be older than what a request has loaded: the store decides.
#[tokio::test(start_paused = true)]
async fn a_hint_that_is_old_does_no_harm() {
    let world = world().await;
    let [a, b, c] =
        [world.open(Access::Write).await, world.open(Access::Write).await, world.open(Access::Write).await];
    for session in [&a, &b, &c] {
        increment(session).unwrap();
    }
    let elsewhere = world.elsewhere();
    let others = async {
        for _ in 0..5 {
            elsewhere.update(&world.id, increment).await.unwrap();
            yield_now().await;
        }
    };
    let (a, b, c, ()) = tokio::join!(a.commit(), b.commit(), c.commit(), others);
    a.and(b).and(c).unwrap();
    assert_eq!(world.count().await, Some(8));
}

/// Whoever may not replay stays with what was loaded: from an older hint there would be no way back.
#[tokio::test(start_paused = true)]
async fn a_hint_that_is_old_is_no_conflict_for_who_may_not_replay() {
    let clock = TokioClock::start();
    let inner = MemoryStore::new(clock.clone(), Seeded::new(1));
    let elsewhere = builder(inner.clone(), &clock).build().unwrap();
    let store = Faulty::new(inner, |call| {
        let latency = if call == "replace" { seconds(1) } else { Duration::ZERO };
        Fate { latency, ..Fate::GOOD }
    });
    let sessions = builder(store, &clock).max_replays(0).build().unwrap();
    let id = new_session(&elsewhere).await;
    let open = async || sessions.open(&id, Access::Write).await.unwrap().unwrap();
    let [leaves_a_hint, loses] = [open().await, open().await];
    increment(&leaves_a_hint).unwrap();
    increment(&loses).unwrap();
    let is_current = async {
        sleep(Duration::from_millis(1_500)).await; // the second is under way, the hint of the first is there
        elsewhere.update(&id, increment).await.unwrap();
        let session = open().await;
        increment(&session).unwrap();
        session.commit().await
    };
    let (left, lost, stored) = tokio::join!(leaves_a_hint.commit(), loses.commit(), is_current);
    left.and(stored).unwrap();
    assert_kind!(lost, Conflict);
    assert_eq!(count(&elsewhere, &id).await, Some(3));
}

// Leases.

#[tokio::test(start_paused = true)]
async fn a_holder_that_lives_keeps_its_lock() {
    let world = world().await;
    let holder = world.open(Access::Exclusive).await;
    increment(&holder).unwrap();
    sleep(LEASE * 4).await;
    assert_kind!(world.elsewhere().open(&world.id, Access::Exclusive).await, Busy);
    holder.commit().await.unwrap();
    assert_eq!(world.count().await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_hangs_does_not_lock_for_ever() {
    let world = world().await;
    let hangs = world.open(Access::Exclusive).await;
    increment(&hangs).unwrap();
    sleep(seconds(18)).await; // it is no longer renewed, since max_hold is 20 seconds
    let start = Instant::now();
    world.elsewhere().exclusive(&world.id, async |session| increment(session)).await.unwrap();
    assert!(start.elapsed() <= seconds(2), "{:?}", start.elapsed());
    assert_kind!(hangs.commit().await, LockLost);
    assert_eq!(world.count().await, Some(1));
}

/// It may have had a side effect, and there is no write that would be refused.
#[tokio::test(start_paused = true)]
async fn a_lock_that_was_lost_is_told_to_who_changed_nothing() {
    let world = world().await;
    let hangs = world.open(Access::Exclusive).await;
    sleep(seconds(20)).await; // beyond max_hold
    let error = assert_kind!(hangs.commit().await, LockLost);
    assert_eq!(error.effect(), Effect::None);
    let overtaken = async |_: &Session| {
        sleep(seconds(20)).await;
        world.elsewhere().exclusive(&world.id, async |session| increment(session)).await
    };
    assert_kind!(world.sessions.exclusive(&world.id, overtaken).await, LockLost);
    world.sessions.exclusive(&world.id, async |_| Ok(())).await.unwrap();
    assert_eq!(world.count().await, Some(1));
}

/// An update has no side effects: where it takes the lock, that is to come to an end.
#[tokio::test(start_paused = true)]
async fn an_update_that_changed_nothing_does_not_mind_a_lost_lock() {
    let clock = TokioClock::start();
    let inner = MemoryStore::new(clock.clone(), Seeded::new(1));
    let others = builder(inner.clone(), &clock).build().unwrap();
    let id = new_session(&others).await;
    let (by, of) = (others.clone(), id.clone());
    let store = Faulty::new(inner, move |call| match call {
        "load" => {
            let (others, id) = (by.clone(), of.clone());
            Fate::GOOD.then(|| async move { others.update(&id, increment).await.unwrap() })
        }
        "release" => Fate { latency: LEASE * 2, ..Fate::GOOD },
        _ => Fate::GOOD,
    });
    let sessions = builder(store, &clock).build().unwrap();
    let conflicts = |session: &Session| match session.get(COUNT)?.unwrap() {
        seen @ 0..3 => session.insert(COUNT, &(seen + 1)),
        _ => Ok(()),
    };
    sessions.update(&id, conflicts).await.unwrap();
    assert_eq!(count(&others, &id).await, Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_writer_waits_for_the_exclusive_one_and_loses_nothing() {
    for own_process in [true, false] {
        let world = world().await;
        let holder = world.open(Access::Exclusive).await;
        increment(&holder).unwrap();
        let sessions = if own_process { world.sessions.clone() } else { world.elsewhere() };
        let writer = sessions.open(&world.id, Access::Write).await.unwrap().unwrap();
        increment(&writer).unwrap();
        let start = Instant::now();
        let holds = async {
            sleep(seconds(1)).await;
            holder.commit().await
        };
        let (held, written) = tokio::join!(holds, writer.commit());
        held.and(written).unwrap();
        assert!(start.elapsed() >= seconds(1));
        assert_eq!(world.count().await, Some(2));
    }
}

/// To wait for the lock is no replay; to build on what its holder has written is one.
#[tokio::test(start_paused = true)]
async fn a_writer_waits_for_the_exclusive_one_without_a_replay() {
    for (max_replays, holder_writes) in [(0, false), (1, true)] {
        let world = world().await;
        let holder = world.open(Access::Exclusive).await;
        let sessions = builder(world.store.clone(), &world.clock).max_replays(max_replays).build().unwrap();
        let writer = sessions.open(&world.id, Access::Write).await.unwrap().unwrap();
        increment(&writer).unwrap();
        if holder_writes {
            increment(&holder).unwrap();
        }
        let holds = async {
            sleep(seconds(1)).await;
            holder.commit().await
        };
        let (held, written) = tokio::join!(holds, writer.commit());
        held.and(written).unwrap();
        assert_eq!(world.count().await, Some(1 + u32::from(holder_writes)));
    }
}

/// A machine that stands still loses each lock that it gets before its write arrives.
#[tokio::test(start_paused = true)]
async fn a_writer_that_loses_each_lock_comes_to_an_end() {
    for (max_replays, locks) in [(0, 1), (1, 1), (3, 3)] {
        let clock = TokioClock::start();
        let inner = MemoryStore::new(clock.clone(), Seeded::new(1));
        let others = builder(inner.clone(), &clock).build().unwrap();
        let id = new_session(&others).await;
        let asked = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&asked);
        let store = Faulty::new(inner, move |call| match call {
            "acquire_and_load" => {
                counted.fetch_add(1, Relaxed);
                Fate::GOOD
            }
            "renew" => Fate::new(Arrives::Never, Reply::Lost),
            "replace_and_release" => Fate { latency: LEASE * 2, ..Fate::GOOD },
            _ => Fate::GOOD,
        });
        let sessions = builder(store, &clock).max_replays(max_replays).build().unwrap();
        let holder = others.open(&id, Access::Exclusive).await.unwrap().unwrap();
        let writer = sessions.open(&id, Access::Write).await.unwrap().unwrap();
        increment(&writer).unwrap();
        let holds = async {
            sleep(seconds(1)).await;
            holder.discard();
        };
        let (written, ()) = tokio::join!(writer.commit(), holds);
        assert_kind!(written, Busy);
        assert_eq!(asked.load(Relaxed), locks);
        assert_eq!(count(&others, &id).await, Some(0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_pair_does_not_fence_and_loses_nothing_all_the_same() {
    let clock = TokioClock::start();
    let pair = Pair(MemoryStore::new(clock.clone(), Seeded::new(1)), MemoryLock::new(clock.clone()));
    let sessions = builder(pair, &clock).build().unwrap();
    let id = new_session(&sessions).await;
    let holder = sessions.open(&id, Access::Exclusive).await.unwrap().unwrap();
    increment(&holder).unwrap();
    sessions.update(&id, increment).await.unwrap(); // it does not wait
    assert_kind!(holder.commit().await, Conflict);
    assert_eq!(count(&sessions, &id).await, Some(1));
    // And the lock went with it.
    sessions.exclusive(&id, async |session| increment(session)).await.unwrap();
    assert_eq!(count(&sessions, &id).await, Some(2));
}

/// Without fencing a commit that is overtaken again and again ends, under the lock or not.
#[tokio::test(start_paused = true)]
async fn a_commit_that_is_always_overtaken_ends_as_a_conflict() {
    let clock = TokioClock::start();
    let inner = MemoryStore::new(clock.clone(), Seeded::new(1));
    let others = builder(inner.clone(), &clock).build().unwrap();
    let id = new_session(&others).await;
    let overtaken = Arc::new(AtomicU64::new(0));
    let (times, by, of) = (Arc::clone(&overtaken), others.clone(), id.clone());
    // Whatever it is told of the record, another one writes before it goes on.
    let store = Faulty::new(inner, move |_| {
        times.fetch_add(1, Relaxed);
        let (others, id) = (by.clone(), of.clone());
        Fate::GOOD.then(|| async move { others.update(&id, increment).await.unwrap() })
    });
    let sessions =
        builder(Pair(store, MemoryLock::new(clock.clone())), &clock).max_replays(5).build().unwrap();
    let session = sessions.open(&id, Access::Write).await.unwrap().unwrap();
    increment(&session).unwrap();
    let error = assert_kind!(session.commit().await, Conflict);
    assert!(error.to_string().contains("5 replays"), "{error}");
    let left = count(&others, &id).await.unwrap();
    assert_eq!(u64::from(left), overtaken.load(Relaxed), "only what the others wrote is in it");
}

/// Without fencing another's lease stops no write: a commit that asked for the lock to save conflicts goes on
/// without it.
#[tokio::test(start_paused = true)]
async fn a_commit_that_was_overtaken_does_not_fail_for_a_lock_that_it_does_not_need() {
    let clock = TokioClock::start();
    let inner = MemoryStore::new(clock.clone(), Seeded::new(1));
    let others = builder(inner.clone(), &clock).build().unwrap();
    let id = new_session(&others).await;
    let overtakes = Arc::new(AtomicU64::new(0));
    let (left, by, of) = (Arc::clone(&overtakes), others.clone(), id.clone());
    let store = Faulty::new(inner, move |_| {
        if left.try_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_err() {
            return Fate::GOOD;
        }
        let (others, id) = (by.clone(), of.clone());
        Fate::GOOD.then(|| async move { others.update(&id, increment).await.unwrap() })
    });
    let pair = Arc::new(Pair(store, MemoryLock::new(clock.clone())));
    let holder = builder(Arc::clone(&pair), &clock).build().unwrap();
    let held = holder.open(&id, Access::Exclusive).await.unwrap().unwrap();
    let sessions = builder(pair, &clock).build().unwrap();
    overtakes.store(4, Relaxed); // by then it has asked for the lock
    sessions.update(&id, increment).await.unwrap();
    assert_eq!(count(&others, &id).await, Some(5));
    held.discard();
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_committed_in_the_middle() {
    let world = world().await;
    let work = async |session: &Session| {
        increment(session)?;
        session.commit().await?;
        assert_eq!(session.get(COUNT)?, Some(1), "it can still be read");
        assert_kind!(session.insert(COUNT, &7), Closed);
        assert_kind!(session.commit().await, Closed);
        world.sessions.exclusive(&world.id, async |session| increment(session)).await
    };
    world.sessions.exclusive(&world.id, work).await.unwrap();
    assert_eq!(world.count().await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_fails_with_is_returned_and_nothing_is_stored() {
    let world = world().await;
    let fails = |session: &Session| {
        increment(session)?;
        Err::<(), _>(session_core::Error::new(ErrorKind::Invalid, "handler"))
    };
    assert_kind!(world.sessions.update(&world.id, fails).await, Invalid);
    assert_kind!(world.sessions.exclusive(&world.id, async |session| fails(session)).await, Invalid);
    world.sessions.exclusive(&world.id, async |_| Ok(())).await.unwrap();
    assert_eq!(world.count().await, Some(0));
}

// Access.

#[tokio::test(start_paused = true)]
async fn an_upgrade_keeps_what_was_done_and_sees_what_is_fresh() {
    let world = world().await;
    let session = world.open(Access::Write).await;
    increment(&session).unwrap();
    world.set(10).await;
    session.upgrade(Access::Exclusive).await.unwrap();
    assert_eq!(session.access(), Access::Exclusive);
    assert_eq!(session.get(COUNT).unwrap(), Some(11));
    assert_kind!(world.elsewhere().open(&world.id, Access::Exclusive).await, Busy);
    session.upgrade(Access::Read).await.unwrap(); // less changes nothing
    assert_eq!(session.access(), Access::Exclusive);
    session.commit().await.unwrap();
    assert_eq!(world.count().await, Some(11));
    assert_kind!(session.upgrade(Access::Exclusive).await, Closed);
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_is_refused_when_what_was_seen_has_changed() {
    let world = world().await;
    for from in [Access::Read, Access::Write] {
        world.set(0).await;
        let session = world.open(from).await;
        assert_eq!(session.get(COUNT).unwrap(), Some(0));
        world.set(10).await;
        assert_kind!(session.upgrade(Access::Exclusive).await, Conflict);
        assert_eq!(session.access(), from);
        assert!(session.is_open());
        session.discard();
        // No lock is left.
        world.elsewhere().exclusive(&world.id, async |_| Ok(())).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_becomes_a_writer_or_not() {
    let world = world().await;
    let reader = world.open(Access::Read).await;
    assert_kind!(reader.insert(COUNT, &1), ReadOnly);
    assert_kind!(reader.destroy(), ReadOnly);
    assert_kind!(reader.rotate(), ReadOnly);
    reader.upgrade(Access::Write).await.unwrap();
    increment(&reader).unwrap();
    reader.commit().await.unwrap();
    assert_eq!(world.count().await, Some(1));

    let gone = world.open(Access::Write).await;
    assert!(world.sessions.destroy(&world.id).await.unwrap());
    assert_kind!(gone.upgrade(Access::Exclusive).await, Gone);
    gone.discard();
    assert!(!gone.is_open());

    let new = world.sessions.create();
    new.upgrade(Access::Exclusive).await.unwrap(); // nobody knows its id: there is nothing to lock
    increment(&new).unwrap();
    new.commit().await.unwrap();
    assert_eq!(count(&world.sessions, &new.id().unwrap()).await, Some(1));
}

// Closures.

#[tokio::test(start_paused = true)]
async fn a_closure_that_uses_its_own_session_is_told_so() {
    let world = world().await;
    let session = world.open(Access::Write).await;
    let inner = session.clone();
    let told = session.update_with(COUNT, move |_| inner.get(COUNT).map_err(|error| error.kind())).unwrap();
    assert_eq!(told, Err(ErrorKind::Reentrant));
    session.discard();
}

#[tokio::test(start_paused = true)]
async fn a_rerun_that_panics_ends_the_commit() {
    let world = world().await;
    let session = world.open(Access::Write).await;
    session.update(COUNT, |count| *count = 10_u32.checked_sub(*count).expect("never more than ten")).unwrap();
    world.set(11).await;
    assert_kind!(session.commit().await, Panicked);
    assert_eq!(world.count().await, Some(11));
}

#[tokio::test(start_paused = true)]
async fn a_first_run_that_panics_changes_nothing() {
    let world = world().await;
    let session = world.open(Access::Write).await;
    increment(&session).unwrap();
    let runs = session.clone();
    let panics = tokio::spawn(async move { runs.update(COUNT, |_| panic!("at once")) });
    assert!(panics.await.unwrap_err().is_panic());
    session.commit().await.unwrap();
    assert_eq!(world.count().await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_rerun_that_cannot_decode_ends_the_commit() {
    let world = world().await;
    let session = world.open(Access::Write).await;
    increment(&session).unwrap();
    world.elsewhere().update(&world.id, |session| session.insert(TEXT, "seven")).await.unwrap();
    let error = assert_kind!(session.commit().await, Decode);
    assert_eq!(error.context(), Some("count"));
    let left = world.sessions.read(&world.id).await.unwrap().unwrap();
    assert_eq!(left.get(TEXT).unwrap().as_deref(), Some("seven"));
    // Unless the key says that it does not matter.
    let discards = COUNT.discard_undecodable();
    world.sessions.update(&world.id, |session| session.update(discards, |count| *count += 1)).await.unwrap();
    assert_eq!(world.count().await, Some(1));
}

// Expiry.

#[tokio::test(start_paused = true)]
async fn idle_slides_and_the_cap_does_not() {
    let world = world_with(|builder| builder.idle_timeout(seconds(100)).max_lifetime(seconds(250))).await;
    for _ in 0..2 {
        sleep(seconds(90)).await;
        assert!(world.count().await.is_some(), "it was used");
    }
    sleep(seconds(69)).await;
    let left = world.sessions.read(&world.id).await.unwrap().unwrap();
    assert!(left.ttl() <= seconds(1), "{:?}", left.ttl());
    sleep(seconds(1)).await;
    assert_eq!(world.count().await, None);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_come_back_in_time_is_logged_out() {
    let world = world_with(|builder| builder.idle_timeout(seconds(100))).await;
    sleep(seconds(100)).await;
    assert_eq!(world.count().await, None);
    assert!(!world.sessions.destroy(&world.id).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_touch_comes_when_a_tenth_has_passed() {
    let clock = TokioClock::start();
    let touches = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&touches);
    let store = Faulty::new(MemoryStore::new(clock.clone(), Seeded::new(1)), move |call| {
        *counted.lock().unwrap() += u32::from(call == "touch");
        Fate::GOOD
    });
    let sessions = builder(store, &clock).idle_timeout(seconds(100)).build().unwrap();
    let id = new_session(&sessions).await;
    for (passed, touched) in [(0, 0), (9, 0), (2, 1), (5, 1), (6, 2)] {
        sleep(seconds(passed)).await;
        assert!(sessions.read(&id).await.unwrap().is_some());
        assert_eq!(*touches.lock().unwrap(), touched, "after {passed} more seconds");
    }
    // A commit without a change does the same; one with a change needs none.
    sleep(seconds(20)).await;
    let session = sessions.open(&id, Access::Write).await.unwrap().unwrap();
    session.commit().await.unwrap();
    assert_eq!(*touches.lock().unwrap(), 3);
    sleep(seconds(20)).await;
    sessions.update(&id, increment).await.unwrap();
    assert_eq!(*touches.lock().unwrap(), 3);
    sleep(seconds(99)).await;
    assert!(sessions.read(&id).await.unwrap().is_some(), "the commit has slid it");
}

/// What is left is what is left at the commit, however long the request has taken.
#[tokio::test(start_paused = true)]
async fn a_long_request_without_a_change_slides_it_too() {
    let world = world_with(|builder| builder.idle_timeout(seconds(60))).await;
    for access in [Access::Write, Access::Read, Access::Write] {
        let poll = world.open(access).await;
        sleep(seconds(50)).await;
        poll.commit().await.unwrap();
        assert_eq!(poll.renewed(), Some(seconds(60)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_fixed_lifetime_does_not_slide() {
    let world = world_with(|builder| builder.fixed_lifetime(seconds(100))).await;
    sleep(seconds(60)).await;
    world.sessions.update(&world.id, increment).await.unwrap();
    assert_eq!(world.count().await, Some(1));
    sleep(seconds(39)).await;
    assert_eq!(world.count().await, Some(1));
    sleep(seconds(1)).await;
    assert_eq!(world.count().await, None);
    assert_kind!(world.sessions.update(&world.id, increment).await, Gone);
}

/// The clock of a store that keeps records for longer than it was told.
#[derive(Debug)]
struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Duration {
        seconds(1_700_000_000)
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_over_is_gone_even_where_the_store_still_has_it() {
    let clock = TokioClock::start();
    let store = MemoryStore::new(Arc::new(Stopped), Seeded::new(1));
    let sessions = builder(store.clone(), &clock).max_lifetime(seconds(100)).build().unwrap();
    let id = new_session(&sessions).await;
    let session = sessions.open(&id, Access::Write).await.unwrap().unwrap();
    sleep(seconds(100)).await;
    assert!(store.load(&id.storage_key()).await.unwrap().is_some());
    assert_kind!(session.upgrade(Access::Exclusive).await, Gone);
    assert_eq!(session.access(), Access::Write);
    increment(&session).unwrap();
    assert_kind!(session.commit().await, Gone);
    for access in [Access::Read, Access::Write, Access::Exclusive] {
        assert!(sessions.open(&id, access).await.unwrap().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotation_keeps_the_cap() {
    let world = world_with(|builder| builder.max_lifetime(seconds(100))).await;
    sleep(seconds(60)).await;
    let session = world.open(Access::Write).await;
    session.rotate().unwrap();
    session.commit().await.unwrap();
    let new = session.id().unwrap();
    sleep(seconds(39)).await;
    assert_eq!(count(&world.sessions, &new).await, Some(0));
    sleep(seconds(1)).await;
    assert_eq!(count(&world.sessions, &new).await, None);
}

// Rotation.

#[tokio::test(start_paused = true)]
async fn the_old_id_is_dead_or_lives_for_its_grace() {
    for grace in [seconds(0), seconds(30)] {
        let world = world_with(|builder| builder.rotation_grace(grace)).await;
        let (session, late) = (world.open(Access::Write).await, world.open(Access::Write).await);
        session.rotate().unwrap();
        increment(&session).unwrap();
        increment(&late).unwrap();
        session.commit().await.unwrap();
        let new = session.id().unwrap();
        assert_ne!(new, world.id);
        if grace.is_zero() {
            assert!(world.sessions.open(&world.id, Access::Read).await.unwrap().is_none());
            assert_kind!(late.commit().await, Gone);
        } else {
            for access in [Access::Read, Access::Write, Access::Exclusive] {
                let led = world.sessions.open(&world.id, access).await.unwrap().unwrap();
                assert_eq!(led.id().as_ref(), Some(&new), "the client is told");
                led.discard();
            }
            late.commit().await.unwrap();
            assert_eq!(late.id().as_ref(), Some(&new));
            assert_eq!(count(&world.sessions, &new).await, Some(2));
            sleep(grace).await;
            assert!(world.sessions.open(&world.id, Access::Read).await.unwrap().is_none());
        }
        assert!(world.sessions.destroy(&world.id).await.unwrap(), "a logout finds it for minutes");
        assert_eq!(count(&world.sessions, &new).await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn an_exclusive_request_does_not_go_on_under_another_id() {
    let world = world_with(|builder| builder.rotation_grace(seconds(30))).await;
    let clock = &world.clock;
    let pair = Pair(world.store.clone(), MemoryLock::new(clock.clone()));
    let unfenced = builder(pair, clock).rotation_grace(seconds(30)).build().unwrap();
    let exclusive = unfenced.open(&world.id, Access::Exclusive).await.unwrap().unwrap();
    increment(&exclusive).unwrap();
    world.sessions.update(&world.id, Session::rotate).await.unwrap();
    assert_kind!(exclusive.commit().await, Gone);
}

/// The versions of a backend that counts them for each record, in the order in which they are drawn.
#[derive(Debug)]
struct Counted(Mutex<VecDeque<u8>>);

impl Random for Counted {
    fn fill(&self, buffer: &mut [u8]) -> Result<()> {
        buffer.fill(self.0.lock().unwrap().pop_front().expect("another version was drawn"));
        Ok(())
    }
}

/// A version says nothing about another key's: the one under the new id is no sign that nothing has changed.
#[tokio::test(start_paused = true)]
async fn a_rotation_to_a_record_of_the_same_version_loses_nothing() {
    let clock = TokioClock::start();
    // The old record, the new one, the tombstone; what is refused, and what is written under the new id.
    let versions = Counted(Mutex::new(VecDeque::from([1, 1, 2, 3, 2])));
    let store = MemoryStore::new(clock.clone(), Arc::new(versions));
    let sessions = builder(store, &clock).rotation_grace(seconds(30)).build().unwrap();
    let id = new_session(&sessions).await;
    let rotating = sessions.open(&id, Access::Write).await.unwrap().unwrap();
    let late = sessions.open(&id, Access::Write).await.unwrap().unwrap();
    increment(&rotating).unwrap();
    increment(&late).unwrap();
    rotating.rotate().unwrap();
    rotating.commit().await.unwrap();
    late.commit().await.unwrap();
    assert_eq!(late.id(), rotating.id());
    assert_eq!(count(&sessions, &late.id().unwrap()).await, Some(2));
}

// Users.

#[tokio::test(start_paused = true)]
async fn a_users_sessions_are_listed_once_each() {
    let world = world().await;
    world.sessions.update(&world.id, |session| session.set_principal("user")).await.unwrap();
    let other = new_session(&world.sessions).await;
    world.sessions.update(&other, |session| session.set_principal("user")).await.unwrap();
    let session = world.open(Access::Write).await;
    session.rotate().unwrap();
    session.commit().await.unwrap();
    let devices = world.sessions.for_principal("user").await.unwrap();
    assert_eq!(devices.len(), 2);
    assert!(world.sessions.for_principal("nobody").await.unwrap().is_empty());
    // Log out that device.
    assert!(world.sessions.revoke(&other.storage_key()).await.unwrap());
    assert!(!world.sessions.revoke(&other.storage_key()).await.unwrap());
    assert_eq!(world.sessions.for_principal("user").await.unwrap().len(), 1);
    assert_eq!(world.sessions.revoke_all("user").await.unwrap(), 1);
    assert_eq!(world.sessions.revoke_all("user").await.unwrap(), 0);
    assert_eq!(count(&world.sessions, &session.id().unwrap()).await, None);
}

// Limits.

#[tokio::test(start_paused = true)]
async fn names_operations_and_sizes_are_limited() {
    const EMPTY: Key<u32> = Key::new("");
    const LONG: Key<u32> = Key::new("a name of more than twenty bytes");
    let world =
        world_with(|builder| builder.max_key_name(20).max_stored(2_000).compress_from(usize::MAX)).await;
    let session = world.open(Access::Write).await;
    assert_kind!(session.insert(EMPTY, &1), Invalid);
    assert_kind!(session.get(EMPTY), Invalid);
    assert_kind!(session.update(LONG, |_| ()), TooLarge);
    assert_kind!(session.contains(LONG), TooLarge);
    for _ in 0..65_536 {
        session.remove(COUNT).unwrap();
    }
    assert_kind!(session.remove(COUNT), TooLarge);
    assert_kind!(session.get(COUNT), TooLarge);
    session.discard();
    let large = world.open(Access::Write).await;
    large.insert(TEXT, &"x".repeat(3_000)).unwrap();
    let error = assert_kind!(large.commit().await, TooLarge);
    assert!(error.to_string().contains("max_stored"), "{error}");
    assert_eq!(world.count().await, Some(0));
}

/// Draws the same again and again.
#[derive(Debug)]
struct Stuck;

impl Random for Stuck {
    fn fill(&self, buffer: &mut [u8]) -> Result<()> {
        buffer.fill(1);
        Ok(())
    }
}

/// Draws nothing.
#[derive(Debug)]
struct Broken;

impl Random for Broken {
    fn fill(&self, _: &mut [u8]) -> Result<()> {
        Err(session_core::Error::new(ErrorKind::Random, "random"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_source_of_randomness_is_an_error() {
    let world = world().await;
    let build =
        |random: Arc<dyn Random>| builder(world.store.clone(), &world.clock).random(random).build().unwrap();
    let stuck = build(Arc::new(Stuck));
    new_session(&stuck).await;
    let second = stuck.create();
    second.insert(COUNT, &1).unwrap();
    assert_kind!(second.commit().await, Random);
    let broken = build(Arc::new(Broken));
    let new = broken.create();
    new.insert(COUNT, &1).unwrap();
    assert_kind!(new.commit().await, Random);
    assert_kind!(broken.open(&world.id, Access::Exclusive).await, Random);
    assert_kind!(broken.update(&world.id, increment).await, Random);
    assert_eq!(world.count().await, Some(0));
    world.sessions.exclusive(&world.id, async |_| Ok(())).await.unwrap(); // nothing is locked
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    type Change = fn(SessionsBuilder) -> SessionsBuilder;
    let with = |change: Change| change(Sessions::builder(MemoryStore::default())).build().map(drop);
    let wrong: [(Change, &str); 9] = [
        (|builder| builder.lease(Duration::ZERO), "lease"),
        (|builder| builder.idle_timeout(Duration::ZERO), "idle_timeout"),
        (|builder| builder.max_lifetime(Duration::MAX), "max_lifetime"),
        (|builder| builder.lock_wait(Duration::MAX), "lock_wait"),
        (|builder| builder.max_hold(seconds(1)), "max_hold"),
        (|builder| builder.max_stored(1), "max_stored"),
        (|builder| builder.max_inflated(usize::MAX), "max_inflated"),
        (|builder| builder.max_key_name(0), "max_key_name"),
        (|builder| builder.max_key_name(1 << 20), "max_key_name"),
    ];
    for (change, name) in wrong {
        let error = assert_kind!(with(change), Invalid);
        assert!(error.to_string().contains(name), "{error}");
    }
    with(|builder| builder.max_waiters(0).max_replays(0).lock_wait(Duration::ZERO)).unwrap();
}

#[cfg(feature = "msgpack")]
#[tokio::test(start_paused = true)]
async fn a_session_keeps_its_codec() {
    let world = world_with(|builder| builder.codec(session_core::Codec::MessagePack)).await;
    let json = world.elsewhere();
    json.update(&world.id, increment).await.unwrap();
    assert_eq!(world.count().await, Some(1));
    assert_eq!(count(&json, &world.id).await, Some(1));
}
