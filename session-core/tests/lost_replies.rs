//! Requests and replies that are lost, late or doubled, at random from a seed: what was acknowledged is
//! stored once, what was refused is not stored, and what is unknown is stored at most once.
//!
//! `SESSION_SEEDS` says how many seeds are tried; the first ones when it is not set.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/environment.rs"]
mod environment;
#[path = "support/faulty.rs"]
mod faulty;

use environment::{Seeded, TokioClock};
use faulty::{Arrives, Fate, Faulty, Reply};
use session_core::{
    Acquired, Effect, Error, ErrorKind, Key, MemoryStore, Result, SessionId, SessionLock as _, Sessions,
    Token,
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

const COUNT: Key<u32> = Key::new("count");
const DONE: Key<Vec<u32>> = Key::new("done");

const TASKS: u32 = 4;

fn seeds(few: u64) -> impl Iterator<Item = u64> {
    let all = std::env::var("SESSION_SEEDS").ok();
    0..all.map_or(few, |number| number.parse().expect("SESSION_SEEDS is a number"))
}

/// Runs on paused time, and again for every seed.
fn on_paused_time<F: Future<Output = ()>>(few: u64, run: impl Fn(u64) -> F) {
    let mut tried = 0;
    for seed in seeds(few) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(run(seed));
        tried += 1;
    }
    println!("{tried} seeds");
    assert!(tried > 0);
}

/// A bad network: about a third of the calls go wrong in some way.
const BAD: u64 = 100;

/// About one in ten.
const BETTER: u64 = 300;

fn network(seed: u64, quality: u64) -> impl FnMut(&'static str) -> Fate + Send + 'static {
    let random = Seeded::new(seed);
    move |_| {
        let (arrives, reply) = match random.below(quality) {
            0..7 => (Arrives::Never, Reply::Lost),
            7..15 => (Arrives::Now, Reply::Lost),
            15..23 => (Arrives::After(random.millis(2_000)), Reply::Lost),
            23..27 => (Arrives::After(random.millis(20)), Reply::Lost),
            27..30 => (Arrives::Again(random.millis(2_000)), Reply::Lost),
            30..32 => (Arrives::Now, Reply::Refused),
            _ => (Arrives::Now, Reply::Given),
        };
        let longest = if reply == Reply::Given { 4 } else { 40 };
        Fate { latency: random.millis(longest), arrives, reply, then: None }
    }
}

/// What its request was told about each operation.
#[derive(Default)]
struct Told(Mutex<BTreeMap<u32, Answer>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Acknowledged,
    Refused,
    Unknown,
}

impl Told {
    fn note<R>(&self, operation: u32, result: &Result<R>) {
        let answer = match result {
            Ok(_) => Answer::Acknowledged,
            Err(error) if error.effect() == Effect::Unknown => Answer::Unknown,
            Err(_) => Answer::Refused,
        };
        self.0.lock().unwrap().insert(operation, answer);
    }

    fn number(&self, of: Answer) -> u32 {
        u32::try_from(self.0.lock().unwrap().values().filter(|answer| **answer == of).count()).unwrap()
    }

    /// Each operation is stored as its answer says.
    fn check(&self, stored: &[u32], seed: u64) {
        for (operation, answer) in &*self.0.lock().unwrap() {
            let times = stored.iter().filter(|there| *there == operation).count();
            match answer {
                Answer::Acknowledged => assert_eq!(times, 1, "seed {seed}: {operation} was acknowledged"),
                Answer::Refused => assert_eq!(times, 0, "seed {seed}: {operation} was refused"),
                Answer::Unknown => assert!(times <= 1, "seed {seed}: {operation} was stored twice"),
            }
        }
    }
}

struct World {
    /// Without the network.
    direct: Sessions,
    inner: MemoryStore,
    /// Two processes, as far as the store can tell.
    processes: [Sessions; 2],
}

fn world(seed: u64, quality: u64, grace: Duration) -> World {
    let clock = TokioClock::start();
    let random = Seeded::new(!seed);
    let inner = MemoryStore::new(clock.clone(), random.clone());
    let faulty = Faulty::new(inner.clone(), network(seed, quality));
    let sessions = |direct: bool| {
        let builder =
            if direct { Sessions::builder(inner.clone()) } else { Sessions::builder(faulty.clone()) };
        let builder = builder.lock_wait(Duration::from_secs(30)).rotation_grace(grace);
        builder.clock(clock.clone()).random(random.clone()).build().unwrap()
    };
    World { direct: sessions(true), processes: [sessions(false), sessions(false)], inner }
}

impl World {
    async fn new_session(&self) -> SessionId {
        let new = self.direct.create();
        new.insert(COUNT, &0).unwrap();
        new.insert(DONE, &Vec::new()).unwrap();
        new.set_principal("user").unwrap();
        new.commit().await.unwrap();
        new.id().unwrap()
    }

    /// By then every late copy has arrived and every lease has run out.
    async fn settle(&self) {
        sleep(Duration::from_secs(60)).await;
    }

    /// Nobody holds the lock.
    async fn assert_unlocked(&self, id: &SessionId, seed: u64) {
        let token = Token::from_bytes([0; 16]);
        let asked =
            self.inner.acquire(&id.storage_key(), token, Duration::from_secs(1), Duration::ZERO).await;
        assert!(matches!(asked, Ok(Acquired::Granted(_))), "seed {seed}: a lock was left");
    }
}

fn count(session: &session_core::Session, operation: u32) -> Result<()> {
    session.update(COUNT, |count| *count += 1)?;
    session.update(DONE, move |done| done.push(operation))
}

#[test]
fn two_hundred_increments() {
    let most_unknown = AtomicU32::new(0);
    on_paused_time(100, async |seed| {
        let world = world(seed, BAD, Duration::ZERO);
        let id = world.new_session().await;
        let told = Arc::new(Told::default());
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            // Even seeds: all in one process, with its queue. Odd seeds: in two.
            let process = if seed % 2 == 0 { 0 } else { task as usize % 2 };
            let (sessions, id, told) = (world.processes[process].clone(), id.clone(), Arc::clone(&told));
            tasks.spawn(async move {
                for operation in (0..200).skip(task as usize).step_by(TASKS as usize) {
                    let done = sessions.update(&id, |session| count(session, operation)).await;
                    told.note(operation, &done);
                }
            });
        }
        tasks.join_all().await;
        world.settle().await;
        let left = world.direct.read(&id).await.unwrap().unwrap();
        told.check(&left.get(DONE).unwrap().unwrap(), seed);
        let (counted, acknowledged) = (left.get(COUNT).unwrap().unwrap(), told.number(Answer::Acknowledged));
        let unknown = told.number(Answer::Unknown);
        assert!(counted >= acknowledged, "seed {seed}: {counted} of {acknowledged} acknowledged");
        assert!(
            counted <= acknowledged + unknown,
            "seed {seed}: {counted}, {acknowledged} and {unknown} unknown"
        );
        assert!(acknowledged > 100, "seed {seed}: only {acknowledged} acknowledged shows nothing");
        world.assert_unlocked(&id, seed).await;
        most_unknown.fetch_max(unknown, Relaxed);
    });
    println!("at most {} of 200 unknown", most_unknown.into_inner());
}

/// Who is inside, and whether there were ever two.
#[derive(Default)]
struct Inside(AtomicU32);

impl Inside {
    fn enter(&self, seed: u64) -> impl Drop {
        struct Leave<'a>(&'a AtomicU32);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Relaxed);
            }
        }
        assert_eq!(self.0.fetch_add(1, Relaxed), 0, "seed {seed}: two holders at once");
        Leave(&self.0)
    }
}

#[test]
fn locks_and_exclusive_requests() {
    on_paused_time(100, async |seed| {
        let world = world(seed, BAD, Duration::ZERO);
        let id = world.new_session().await;
        let (told, inside) = (Arc::new(Told::default()), Arc::new(Inside::default()));
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let sessions = world.processes[task as usize % 2].clone();
            let (id, told, inside) = (id.clone(), Arc::clone(&told), Arc::clone(&inside));
            tasks.spawn(async move {
                for operation in (0..48).skip(task as usize).step_by(TASKS as usize) {
                    let done = if operation % 5 == 0 {
                        sessions.update(&id, |session| count(session, operation)).await
                    } else {
                        let run = async |session: &session_core::Session| {
                            let _inside = inside.enter(seed);
                            sleep(Duration::from_millis(u64::from(operation % 7))).await;
                            count(session, operation)
                        };
                        sessions.exclusive(&id, run).await
                    };
                    told.note(operation, &done);
                }
            });
        }
        tasks.join_all().await;
        world.settle().await;
        let left = world.direct.read(&id).await.unwrap().unwrap();
        told.check(&left.get(DONE).unwrap().unwrap(), seed);
        assert!(told.number(Answer::Acknowledged) > 5, "seed {seed}: too little shows nothing");
        world.assert_unlocked(&id, seed).await;
    });
}

#[test]
fn rotations_among_writers() {
    on_paused_time(100, async |seed| {
        // With a grace, so that whoever has an old id can be led to what it has become.
        let world = world(seed, BAD, Duration::from_hours(1));
        let first = world.new_session().await;
        let told = Arc::new(Told::default());
        let ids = Arc::new(Mutex::new(vec![first.clone()]));
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let sessions = world.processes[task as usize % 2].clone();
            let (told, ids) = (Arc::clone(&told), Arc::clone(&ids));
            tasks.spawn(async move {
                for operation in (0..60).skip(task as usize).step_by(TASKS as usize) {
                    let id = ids.lock().unwrap().last().unwrap().clone();
                    let now = Mutex::new(None);
                    let change = |session: &session_core::Session| {
                        if operation % 6 == 0 {
                            session.rotate()?;
                        }
                        *now.lock().unwrap() = Some(session.clone());
                        count(session, operation)
                    };
                    let done = sessions.update(&id, change).await;
                    told.note(operation, &done);
                    if done.is_ok() {
                        let new = now.into_inner().unwrap().unwrap().id().unwrap();
                        ids.lock().unwrap().push(new);
                    }
                }
            });
        }
        tasks.join_all().await;
        world.settle().await;
        let left = world.direct.read(&first).await.unwrap().unwrap();
        told.check(&left.get(DONE).unwrap().unwrap(), seed);
        assert!(told.number(Answer::Acknowledged) > 10, "seed {seed}: too little shows nothing");
        let ids = std::mem::take(&mut *ids.lock().unwrap());
        for id in &ids {
            let same = world.direct.read(id).await.unwrap().unwrap();
            assert_eq!(same.storage_key(), left.storage_key(), "seed {seed}: two living sessions");
        }
        // And a logout with the very first cookie ends it, whatever it is called by now.
        assert!(world.direct.destroy(&first).await.unwrap());
        for id in &ids {
            assert!(world.direct.read(id).await.unwrap().is_none(), "seed {seed}: it survived its logout");
        }
    });
}

#[test]
fn destroys_among_rotations_and_writers() {
    on_paused_time(100, async |seed| {
        let world = world(seed, BAD, Duration::from_hours(1));
        let first = world.new_session().await;
        let ids = Arc::new(Mutex::new(vec![first.clone()]));
        let mut tasks = JoinSet::new();
        for task in 0..TASKS - 1 {
            let sessions = world.processes[task as usize % 2].clone();
            let ids = Arc::clone(&ids);
            tasks.spawn(async move {
                for operation in 0..8 {
                    let id = ids.lock().unwrap().last().unwrap().clone();
                    let opened = match sessions.open(&id, session_core::Access::Write).await {
                        Ok(Some(opened)) => opened,
                        Ok(None) => break,
                        Err(_) => continue,
                    };
                    if operation % 2 == task % 2 {
                        opened.rotate().unwrap();
                    }
                    count(&opened, operation).unwrap();
                    if opened.commit().await.is_ok() {
                        ids.lock().unwrap().push(opened.id().unwrap());
                    }
                }
            });
        }
        let random = Seeded::new(seed);
        sleep(random.millis(300)).await;
        let destroyed = destroy_until_known(&world.processes[1], &first).await;
        tasks.join_all().await;
        world.settle().await;
        if let Ok(was_there) = destroyed {
            let ids = std::mem::take(&mut *ids.lock().unwrap());
            for id in &ids {
                let there = world.direct.read(id).await.unwrap();
                assert!(there.is_none(), "seed {seed}: alive after a destroy that said {was_there}");
            }
        }
    });
}

/// Asks again after an error that says that nothing happened, as a client may.
async fn destroy_until_known(sessions: &Sessions, id: &SessionId) -> Result<bool> {
    loop {
        match sessions.destroy(id).await {
            Err(error) if error.effect() == Effect::None => sleep(Duration::from_millis(10)).await,
            known => return known,
        }
    }
}

#[test]
fn a_destroy_that_was_refused_left_the_session_alone() {
    on_paused_time(400, async |seed| {
        let world = world(seed, BAD, Duration::ZERO);
        let id = world.new_session().await;
        let destroyed = world.processes[0].destroy(&id).await;
        world.settle().await;
        let there = world.direct.read(&id).await.unwrap().is_some();
        match destroyed {
            Ok(was_there) => assert!(was_there && !there, "seed {seed}"),
            Err(error) if error.effect() == Effect::None => assert!(there, "seed {seed}: {error}"),
            Err(_) => {}
        }
    });
}

#[test]
fn inserts_are_found_or_unknown() {
    on_paused_time(100, async |seed| {
        let world = world(seed, BAD, Duration::ZERO);
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let sessions = world.processes[task as usize % 2].clone();
            tasks.spawn(async move {
                let new = sessions.create();
                new.insert(COUNT, &task)?;
                new.commit().await?;
                Ok::<_, Error>((task, new.id().unwrap()))
            });
        }
        for created in tasks.join_all().await {
            match created {
                Ok((task, id)) => {
                    let there = world.direct.read(&id).await.unwrap().expect("it was acknowledged");
                    assert_eq!(there.get(COUNT).unwrap(), Some(task));
                    // Whatever is still under way, it does not bring back what was destroyed.
                    assert!(world.direct.destroy(&id).await.unwrap());
                    world.settle().await;
                    assert!(world.direct.read(&id).await.unwrap().is_none(), "seed {seed}: revived");
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "seed {seed}"),
            }
        }
    });
}

#[test]
fn revoked_users_stay_logged_out() {
    on_paused_time(100, async |seed| {
        let world = world(seed, BETTER, Duration::from_hours(1));
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(world.new_session().await);
        }
        let ids = Arc::new(Mutex::new(ids));
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for task in 0..3 {
            let (sessions, ids) = (world.processes[task % 2].clone(), Arc::clone(&ids));
            tasks.spawn(async move {
                let mut id = ids.lock().unwrap()[task].clone();
                while start.elapsed() < Duration::from_secs(2) {
                    let Ok(Some(opened)) = sessions.open(&id, session_core::Access::Write).await else {
                        return;
                    };
                    opened.rotate().unwrap();
                    opened.update(COUNT, |count| *count += 1).unwrap();
                    if opened.commit().await.is_err() {
                        return;
                    }
                    id = opened.id().unwrap();
                    ids.lock().unwrap().push(id.clone());
                    sleep(Duration::from_millis(200)).await;
                }
            });
        }
        sleep(Seeded::new(seed).millis(400)).await;
        let mut revoked = world.processes[1].revoke_all("user").await;
        while revoked.is_err() {
            revoked = world.processes[1].revoke_all("user").await; // until it says that it is done
        }
        tasks.join_all().await;
        world.settle().await;
        let ids = std::mem::take(&mut *ids.lock().unwrap());
        for id in &ids {
            assert!(
                world.direct.read(id).await.unwrap().is_none(),
                "seed {seed}: logged in after revoke_all"
            );
        }
    });
}
