//! Two at once, stopped at each file call of the one; waiters; dropped futures.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod support;

use session_core::{
    Acquired, Deleted, Effect, ErrorKind, Grant, Inserted, Loaded, LockingStore as _, Released, Replaced,
    SessionLock as _, SessionStore as _, SessionSweeper as _, Token,
};
use session_file::{FileConfig, FileStore};
use std::{
    fs::File,
    future::Future,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use support::{hooked::Hooked, verbs::*, *};
use tokio::time::{Instant, sleep, timeout};

/// Stops one file call until it is told to go on.
#[derive(Default)]
struct Stop {
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Stop {
    fn here(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 = true;
        self.changed.notify_all();
        while !state.1 {
            state = self.changed.wait(state).unwrap();
        }
    }

    fn reached(&self) -> bool {
        self.state.lock().unwrap().0
    }

    async fn wait_until_reached(&self) {
        while !self.reached() {
            sleep(Duration::from_millis(1)).await;
        }
    }

    fn go_on(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

/// A store whose call of this number stops.
fn stopping(config: FileConfig) -> (FileStore, Arc<Stop>, Arc<Hooked>, Arc<AtomicUsize>) {
    let (stop, at) = (Arc::new(Stop::default()), Arc::new(AtomicUsize::new(usize::MAX)));
    let fs = Hooked::new({
        let (stop, at) = (Arc::clone(&stop), Arc::clone(&at));
        move |call| {
            if call.number == at.load(SeqCst) {
                stop.here();
            }
            Ok(())
        }
    });
    (FileStore::open(config.fs(fs.clone())).unwrap(), stop, fs, at)
}

/// Wherever a writer is stopped, another one's write comes before it or after it: exactly one replaces the
/// version that both name.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_one_wins_wherever_the_first_is_stopped() {
    for (second, nth) in
        [Verb::Replace, Verb::Delete].into_iter().flat_map(|verb| (1..40).map(move |n| (verb, n)))
    {
        let fixture = Fixture::new();
        let (first, stop, fs, at) = stopping(fixture.config());
        let (other, key) = (fixture.open(), key());
        let version = insert(&other, &key, &put(OLD).principal(Some(ann()))).await;
        at.store(fs.calls() + nth, SeqCst);
        let one = tokio::spawn({
            let first = first.clone();
            async move { first.replace(&key, version, &put("first")).await }
        });
        while !stop.reached() && !one.is_finished() {
            sleep(Duration::from_micros(100)).await;
        }
        // The other one either waits for the flock or is through before the first has it.
        let mut two = tokio::spawn(async move {
            match second {
                Verb::Delete => matches!(other.delete(&key).await.unwrap(), Deleted::Removed(_)),
                _ => matches!(other.replace(&key, version, &put("second")).await.unwrap(), Replaced::Done(_)),
            }
        });
        let early = timeout(Duration::from_millis(20), &mut two).await;
        stop.go_on();
        let first_won = match one.await.unwrap().unwrap() {
            Replaced::Done(_) => true,
            Replaced::Conflict(stored) => {
                assert_eq!(stored.data, "second");
                false
            }
            Replaced::Missing => {
                assert_eq!(second, Verb::Delete);
                false
            }
            Replaced::NotHolder(held) => panic!("{held:?}"),
        };
        let second_won = match early {
            Ok(won) => won.unwrap(),
            Err(_) => two.await.unwrap(),
        };
        let left = fixture.open().load(&key).await.unwrap().map(|stored| stored.data);
        if second == Verb::Delete {
            assert!(second_won, "destroy wins, call {nth}");
            assert_eq!(left, None, "and nothing comes back, call {nth}");
        } else {
            assert!(first_won != second_won, "both or neither, call {nth}");
            assert_eq!(left.unwrap(), if first_won { "first" } else { "second" }, "call {nth}");
        }
        if !stop.reached() {
            assert!(nth > 10, "only {nth} calls");
            break;
        }
    }
}

/// A lease is judged in the step that writes: the next holder is never let in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ends_in_the_middle_of_a_write_lets_nobody_between() {
    for nth in 1..60 {
        let fixture = Fixture::new();
        let (holder, stop, fs, at) = stopping(fixture.config());
        let (other, key) = (fixture.open(), key());
        let version = insert(&other, &key, &put("0")).await;
        let grant = acquire(&holder, &key, MINUTE / 2).await;
        at.store(fs.calls() + nth, SeqCst);
        let write = tokio::spawn({
            let holder = holder.clone();
            async move { holder.replace_and_release(&grant, version, &put("holder")).await.unwrap() }
        });
        while !stop.reached() && !write.is_finished() {
            sleep(Duration::from_micros(100)).await;
        }
        fixture.lease_clock.advance(MINUTE / 2);
        let mut next = tokio::spawn(async move {
            match other.acquire_and_load(&key, token(), MINUTE, NO_WAIT).await.unwrap() {
                Loaded::Granted(grant, stored) => (other, grant, stored),
                otherwise => panic!("{otherwise:?}"),
            }
        });
        let early = timeout(Duration::from_millis(20), &mut next).await;
        stop.go_on();
        let written = matches!(write.await.unwrap(), Replaced::Done(_));
        let (other, grant, stored) = match early {
            Ok(next) => next.unwrap(),
            Err(_) => next.await.unwrap(),
        };
        // The next holder has seen the write, or the write was refused: and what it saw is what it replaces.
        assert_eq!(stored.data, if written { "holder" } else { "0" }, "call {nth}");
        let done = other.replace_and_release(&grant, stored.version, &put("next")).await.unwrap();
        assert!(matches!(done, Replaced::Done(_)), "call {nth}: {done:?}");
        if !stop.reached() {
            assert!(nth > 15, "only {nth} calls");
            break;
        }
    }
}

/// A sweep has seen that a record is expired; before it removes it, a new one is inserted under that key, or
/// the lock is taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_removes_nothing_that_came_meanwhile() {
    for nth in 0..60 {
        let fixture = Fixture::new();
        let (other, key) = (fixture.open(), key());
        insert(&other, &key, &put(OLD).principal(Some(ann()))).await;
        fixture.clock.advance(MINUTE);
        // From the first look at the record to the last at its index: nothing else of a sweep can meet the
        // others.
        let (stop, at, record) =
            (Arc::new(Stop::default()), AtomicUsize::new(usize::MAX), fixture.record_path(&key));
        let fs = Hooked::new({
            let stop = Arc::clone(&stop);
            move |call| {
                if call.is("open", &record) && at.load(SeqCst) == usize::MAX {
                    at.store(call.number + nth, SeqCst);
                }
                if call.number == at.load(SeqCst) {
                    stop.here();
                }
                Ok(())
            }
        });
        let sweeping = FileStore::open(fixture.config().fs(fs)).unwrap();
        // A clone: the last one closes the store, on whichever thread.
        let sweep = tokio::spawn({
            let sweeping = sweeping.clone();
            async move { sweeping.sweep(10).await.unwrap() }
        });
        while !stop.reached() && !sweep.is_finished() {
            sleep(Duration::from_micros(100)).await;
        }
        assert!(stop.reached(), "only {nth} calls");
        let mut work = tokio::spawn(async move {
            let version = insert(&other, &key, &put("new").principal(Some(ann()))).await;
            let grant = acquire(&other, &key, MINUTE).await;
            (other, version, grant)
        });
        let early = timeout(Duration::from_millis(5), &mut work).await;
        stop.go_on();
        let _swept = sweep.await.unwrap();
        let (other, version, grant) = match early {
            Ok(work) => work.unwrap(),
            Err(_) => work.await.unwrap(),
        };
        let stored = other.load(&key).await.unwrap().unwrap();
        assert_eq!((stored.version, &stored.data[..]), (version, &b"new"[..]), "call {nth}");
        let keys = session_core::SessionIndex::keys_of(&other, &ann(), None, 10).await.unwrap().keys;
        assert_eq!(keys, [key], "call {nth}");
        let done = other.replace_and_release(&grant, version, &put("newer")).await.unwrap();
        assert!(matches!(done, Replaced::Done(_)), "the lock was left alone, call {nth}: {done:?}");
    }
}

/// A sweep meets a login between its index and its record: the entry that seems to name nothing stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_leaves_the_index_of_a_login_alone() {
    let fixture = Fixture::new();
    let (stop, key) = (Arc::new(Stop::default()), key());
    let (sweeping, temp) = (fixture.open(), fixture.record_path(&key).with_extension("tmp"));
    let fs = Hooked::new({
        let stop = Arc::clone(&stop);
        move |call| {
            if call.is("create", &temp) {
                stop.here();
            }
            Ok(())
        }
    });
    let login = FileStore::open(fixture.config().fs(fs)).unwrap();
    let inserted = tokio::spawn(async move {
        insert(&login, &key, &put("x").principal(Some(ann()))).await;
    });
    stop.wait_until_reached().await;
    let store = sweeping.clone();
    let mut sweep = tokio::spawn(async move { store.sweep(10).await.unwrap() });
    // It waits for the login's step, as long as that takes.
    assert!(timeout(Duration::from_millis(500), &mut sweep).await.is_err());
    stop.go_on();
    inserted.await.unwrap();
    let _swept = sweep.await.unwrap();
    let keys = session_core::SessionIndex::keys_of(&sweeping, &ann(), None, 10).await.unwrap().keys;
    assert_eq!(keys, [key]);
}

/// Two stores of one process are two owners; a store that is closed is a dead one.
#[tokio::test]
async fn a_lease_of_a_closed_store_is_taken_at_once() {
    let fixture = Fixture::new();
    let (one, two, key) = (fixture.open(), fixture.open(), key());
    let version = insert(&one, &key, &put("x")).await;
    let grant = acquire(&one, &key, MINUTE).await;
    assert!(matches!(two.acquire(&key, token(), MINUTE, NO_WAIT).await.unwrap(), Acquired::Held(_)));
    assert!(matches!(two.replace(&key, version, &put("y")).await.unwrap(), Replaced::NotHolder(_)));
    let clone = one.clone();
    drop(one);
    assert!(matches!(two.acquire(&key, token(), MINUTE, NO_WAIT).await.unwrap(), Acquired::Held(_)));
    drop(clone);
    let version = replace(&two, &key, version, &put("y")).await;
    let refused = two.replace_and_release(&grant, version, &put("z")).await.unwrap();
    assert!(matches!(refused, Replaced::NotHolder(held) if held.retry_after.is_none()), "{refused:?}");
    let _mine = acquire(&two, &key, MINUTE).await;
}

/// Something tidies up temporary directories under living stores: they go on, and still see each other.
#[tokio::test]
async fn what_is_tidied_away_under_a_living_store_comes_back() {
    let fixture = Fixture::new();
    let (one, two, key) = (fixture.open(), fixture.open(), key());
    insert(&one, &key, &put("x").principal(Some(ann()))).await;
    for part in ["owners", "records", "users"] {
        for entry in fixture.root().join(part).read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                std::fs::remove_dir_all(path).unwrap()
            } else {
                std::fs::remove_file(path).unwrap()
            }
        }
    }
    assert!(one.load(&key).await.unwrap().is_none());
    insert(&one, &key, &put("x").principal(Some(ann()))).await;
    let grant = acquire(&one, &key, MINUTE).await;
    assert!(matches!(two.acquire(&key, token(), MINUTE, NO_WAIT).await.unwrap(), Acquired::Held(_)));
    let _swept = two.sweep(10).await.unwrap();
    assert!(matches!(two.acquire(&key, token(), MINUTE, NO_WAIT).await.unwrap(), Acquired::Held(_)));
    assert_eq!(one.release(&grant).await.unwrap(), Released::Freed);
}

/// A directory that is replaced between open and flock: the step notices that it holds the flock of nobody.
#[tokio::test(flavor = "multi_thread")]
async fn the_flock_of_a_removed_directory_counts_for_nothing() {
    let fixture = Fixture::new();
    let key = key();
    let store = fixture.open();
    insert(&store, &key, &put("x")).await;
    let shard: PathBuf = fixture.record_path(&key).parent().unwrap().to_owned();
    let opened = Arc::new(AtomicUsize::new(0));
    let fs = Hooked::new({
        let (shard, opened) = (shard.clone(), Arc::clone(&opened));
        move |call| {
            if call.is("open", &shard) {
                opened.fetch_add(1, SeqCst);
            }
            // After the first open, before its flock.
            if call.name == "try_lock" && opened.load(SeqCst) == 1 && shard.exists() {
                std::fs::rename(&shard, shard.with_extension("moved")).unwrap();
            }
            Ok(())
        }
    });
    let other = FileStore::open(fixture.config().fs(fs)).unwrap();
    insert(&other, &key, &put("y")).await;
    assert!(opened.load(SeqCst) >= 2, "it looked again");
    assert_eq!(store.load(&key).await.unwrap().unwrap().data, "y");
}

/// The flock of a step that hangs: an error within the time, without effect; and everything goes on
/// afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_hangs_is_an_error_within_the_time() {
    let fixture = Fixture::new();
    let store = FileStore::open(fixture.config().busy_timeout(Duration::from_millis(100))).unwrap();
    let key = key();
    let version = insert(&store, &key, &put("x")).await;
    let hanging = File::open(fixture.record_path(&key).parent().unwrap()).unwrap();
    hanging.lock().unwrap();
    let begun = Instant::now();
    let many: Vec<_> = (0..2000)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.replace(&key, version, &put("y")).await })
        })
        .collect();
    // Reading needs no flock, and no thread that the others could have taken.
    assert_eq!(store.load(&key).await.unwrap().unwrap().data, "x");
    for task in many {
        let error = task.await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    hanging.unlock().unwrap();
    replace(&store, &key, version, &put("y")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn increments_of_many_tasks_and_stores_are_all_kept() {
    let fixture = Fixture::new();
    let key = key();
    insert(&fixture.open(), &key, &put("0")).await;
    let stores = [fixture.open(), fixture.open(), fixture.open()];
    let tasks: Vec<_> = (0..12)
        .map(|number| {
            let store = stores[number % 3].clone();
            tokio::spawn(async move {
                for _ in 0..25 {
                    if number % 2 == 0 {
                        loop {
                            let stored = store.load(&key).await.unwrap().unwrap();
                            let new = put(one_more(&stored.data));
                            if let Replaced::Done(_) =
                                store.replace(&key, stored.version, &new).await.unwrap()
                            {
                                break;
                            }
                        }
                    } else {
                        let wait = Duration::from_secs(30);
                        let loaded = store.acquire_and_load(&key, token(), MINUTE, wait).await.unwrap();
                        let Loaded::Granted(grant, stored) = loaded else { panic!("{loaded:?}") };
                        let new = put(one_more(&stored.data));
                        let done = store.replace_and_release(&grant, stored.version, &new).await.unwrap();
                        // Fenced: nobody wrote since.
                        assert!(matches!(done, Replaced::Done(_)), "{done:?}");
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(fixture.open().load(&key).await.unwrap().unwrap().data, "300");
}

/// A future that is dropped at any of its awaits: the step happened or did not, nothing is half, and the lock
/// can be given back by its token, whatever became of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_future_leaves_before_or_after() {
    let seen = [AtomicU64::new(0), AtomicU64::new(0)];
    for round in 0..300_u64 {
        for verb in VERBS {
            let fixture = Fixture::new();
            let (store, key) = (fixture.open(), key());
            let version = verb.prepare(&store, &key).await;
            verb.lock(&store, &key).await;
            {
                let mut future = std::pin::pin!(verb.run(&store, &key, version));
                // Polled once it is on its way to another thread; then dropped after more and more time.
                match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(result) => result.unwrap(),
                    Poll::Pending if round % 3 == 0 => {}
                    Poll::Pending => drop(timeout(Duration::from_micros(round * 3), future).await),
                }
            }
            // In the queue behind what was dropped: when this is through, it is decided.
            let released = store.release(&Grant::new(key, TOKEN)).await.unwrap();
            let happened = verb.happened(&store, &key, version).await.unwrap_or_default();
            seen[usize::from(happened)].fetch_add(1, SeqCst);
            if verb == Verb::ReplaceAndRelease || verb == Verb::DeleteAndRelease {
                assert_eq!(released == Released::Lost, happened, "released with the write, or not at all");
            }
            let acquired = store.acquire(&key, token(), MINUTE, NO_WAIT).await.unwrap();
            assert!(matches!(acquired, Acquired::Granted(_)), "{verb:?}: {acquired:?}");
        }
        if round >= 20 && seen.iter().all(|seen| seen.load(SeqCst) > 0) {
            return;
        }
    }
    panic!("only before or only after: {seen:?}");
}

/// Who waits gets the lock when it is released, and says `Held` when it is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_gets_what_is_released_and_gives_up_in_time() {
    let directory = tempfile::TempDir::new().unwrap();
    let config = FileConfig::new(directory.path().join("sessions"));
    let (one, two, key) = (FileStore::open(config.clone()).unwrap(), FileStore::open(config).unwrap(), key());
    let grant = acquire(&one, &key, MINUTE).await;
    let begun = Instant::now();
    let wait = Duration::from_millis(120);
    let Acquired::Held(held) = two.acquire(&key, token(), MINUTE, wait).await.unwrap() else {
        panic!("it is held")
    };
    assert!(begun.elapsed() >= wait && begun.elapsed() < wait * 10, "{:?}", begun.elapsed());
    assert!(held.retry_after.unwrap() > MINUTE / 2);

    // Its turn was kept, and ends: who comes without waiting must not be refused for long.
    assert_eq!(one.release(&grant).await.unwrap(), Released::Freed);
    let wait = Duration::from_secs(10);
    let acquired = one.acquire(&key, token(), Duration::from_millis(50), wait).await.unwrap();
    assert!(matches!(acquired, Acquired::Granted(_)));
    assert!(begun.elapsed() < Duration::from_secs(5));

    // And a lease that is not released ends.
    let acquired = two.acquire(&key, token(), MINUTE, wait).await.unwrap();
    assert!(matches!(acquired, Acquired::Granted(_)));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

/// What was written before the machine was started again says times that are far ahead: none of it holds
/// anything.
#[tokio::test]
async fn what_another_boot_has_left_holds_nothing() {
    let fixture = Fixture::new();
    let key = key();
    let store = fixture.open();
    insert(&store, &key, &put("x")).await;
    fixture.lease_clock.advance(MINUTE * 1000); // a long time since boot
    let grant = acquire(&store, &key, MINUTE).await;
    // Somebody waits for so long that a turn is kept.
    let waiting = store.acquire(&key, token(), MINUTE, Duration::from_millis(80)).await.unwrap();
    assert!(matches!(waiting, Acquired::Held(_)));
    let left = std::fs::read(fixture.lock_path(&key)).unwrap();
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
    drop(store);
    std::fs::write(fixture.lock_path(&key), left).unwrap();
    let earlier = Manual::new();
    let store = FileStore::open(fixture.config().lease_clock(Arc::new(earlier))).unwrap();
    let grant = acquire(&store, &key, MINUTE).await;
    assert_eq!(store.release(&grant).await.unwrap(), Released::Freed);
    assert_eq!(fixture.session_files(), [fixture.record_path(&key)]);
}

/// A store that passes its lock on inside all the time, as a process with a long queue does, lets others in
/// all the same.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_in_vain_gets_the_next_turn() {
    let directory = tempfile::TempDir::new().unwrap();
    let config = FileConfig::new(directory.path().join("sessions"));
    let (greedy, patient, key) =
        (FileStore::open(config.clone()).unwrap(), FileStore::open(config).unwrap(), key());
    insert(&greedy, &key, &put("x")).await;
    let turns = Arc::new(AtomicU64::new(0));
    let busy = tokio::spawn({
        let turns = Arc::clone(&turns);
        async move {
            loop {
                let token: Token = token();
                let wait = Duration::from_secs(30);
                let Acquired::Granted(grant) = greedy.acquire(&key, token, MINUTE, wait).await.unwrap()
                else {
                    panic!("never in 30 s")
                };
                sleep(Duration::from_millis(100)).await;
                assert_eq!(greedy.release(&grant).await.unwrap(), Released::Freed);
                turns.fetch_add(1, SeqCst);
            }
        }
    });
    for _ in 0..5 {
        let before = turns.load(SeqCst);
        while turns.load(SeqCst) == before {
            sleep(Duration::from_millis(1)).await;
        }
        let before = turns.load(SeqCst);
        let acquired = patient.acquire(&key, token(), MINUTE, Duration::from_secs(30)).await.unwrap();
        let Acquired::Granted(grant) = acquired else {
            panic!("starved for {} turns", turns.load(SeqCst) - before)
        };
        assert!(turns.load(SeqCst) - before <= 8, "{} turns of 100 ms", turns.load(SeqCst) - before);
        assert_eq!(patient.release(&grant).await.unwrap(), Released::Freed);
    }
    busy.abort();
}

/// An insert that was delayed for ever does not happen twice.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_inserts_one_creates() {
    let fixture = Fixture::new();
    let (stores, key) = ([fixture.open(), fixture.open()], key());
    let tasks: Vec<_> = (0..40)
        .map(|number| {
            let store = stores[number % 2].clone();
            tokio::spawn(async move { store.insert(&key, &put(number.to_string())).await.unwrap() })
        })
        .collect();
    let mut created = Vec::new();
    for task in tasks {
        if let Inserted::Created(version) = task.await.unwrap() {
            created.push(version);
        }
    }
    assert_eq!(created.len(), 1);
    assert_eq!(stores[0].load(&key).await.unwrap().unwrap().version, created[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_is_reached() {
    // The hook itself: a test that never stops would prove nothing.
    let fixture = Fixture::new();
    let (store, stop, fs, at) = stopping(fixture.config());
    at.store(fs.calls() + 1, SeqCst);
    let task = tokio::spawn(async move { store.delete(&key()).await.unwrap() });
    stop.wait_until_reached().await;
    assert!(!task.is_finished());
    stop.go_on();
    assert!(matches!(task.await.unwrap(), Deleted::Missing));
}
