//! Several processes on one store: this test starts itself again as a child, kills it, stops it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod support;

use rustix::process::{Pid, Signal, kill_process};
use session_core::{
    Acquired, Effect, ErrorKind, Loaded, LockingStore as _, Put, Replaced, SessionLock as _,
    SessionStore as _, SessionSweeper as _, StorageKey, Swept, Version,
};
use session_file::{FileConfig, FileDurability, FileStore};
use std::{
    env,
    io::{BufRead as _, BufReader, Lines, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use support::{hooked::Hooked, verbs::*, *};
use tempfile::TempDir;
use tokio::time::Instant;

const ROLE: &str = "SESSION_FILE_TEST_ROLE";
const ROOT: &str = "SESSION_FILE_TEST_ROOT";
const LONG: Duration = Duration::from_secs(3600);

/// A process of this test, killed when it is dropped.
struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    fn start(root: &Path, role: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["a_worker", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(ROOT, root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { input: child.stdin.take(), child, output }
    }

    /// The next line that the worker says, less what the test harness says around it. `None` when it has
    /// died.
    fn hear(&mut self) -> Option<String> {
        self.output.by_ref().map_while(Result::ok).find_map(|line| Some(line.split_once('@')?.1.to_owned()))
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.input.as_mut().unwrap(), "{what}").unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.id(), signal).unwrap();
    }

    fn id(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn wait(&mut self) {
        self.input = None;
        self.child.wait().unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may be dead already, which is what is wanted.
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Whether a signal has stopped it.
fn is_stopped(id: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", id.as_raw_nonzero())).unwrap().contains(") T ")
}

fn say(what: impl std::fmt::Display) {
    println!("@{what}");
}

fn listen() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// What the workers do. Without a role, as a test among others, there is nothing to do.
#[test]
fn a_worker() {
    let Ok(role) = env::var(ROLE) else { return };
    let root = env::var(ROOT).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let words: Vec<_> = role.split(' ').collect();
        let key = |text: &str| StorageKey::from_bytes([text.parse().unwrap(); 32]);
        match words[..] {
            ["count", number, times] => count(&root, key(number), times.parse().unwrap()).await,
            ["hold", number, lease] => hold(&root, key(number), lease.parse().unwrap()).await,
            ["beget", number] => beget(&root, key(number)).await,
            ["die", verb, nth] => die(&root, Verb::named(verb), nth.parse().unwrap()).await,
            ["stop", nth] => stop(&root, nth.parse().unwrap()).await,
            _ => panic!("{role}"),
        }
    });
}

/// Increments, with and without the lock, in four tasks.
async fn count(root: &str, key: StorageKey, times: usize) {
    let store = FileStore::open(FileConfig::new(root)).unwrap();
    let tasks: Vec<_> = (0..4)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..times {
                    if number % 2 == 0 {
                        increment(&store, &key).await
                    } else {
                        locked_increment(&store, &key).await
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    say("done");
}

async fn increment(store: &FileStore, key: &StorageKey) {
    loop {
        let stored = store.load(key).await.unwrap().unwrap();
        let new = put(one_more(&stored.data));
        match store.replace(key, stored.version, &new).await.unwrap() {
            Replaced::Done(_) => return,
            Replaced::Conflict(_) | Replaced::NotHolder(_) => {}
            Replaced::Missing => panic!("nobody deletes it"),
        }
    }
}

async fn locked_increment(store: &FileStore, key: &StorageKey) {
    let loaded = store.acquire_and_load(key, token(), LONG, LONG).await.unwrap();
    let Loaded::Granted(grant, stored) = loaded else { panic!("{loaded:?}") };
    let done = store.replace_and_release(&grant, stored.version, &put(one_more(&stored.data))).await.unwrap();
    assert!(matches!(done, Replaced::Done(_)), "fenced: {done:?}");
}

/// Takes the lock, waits to be told, tries to write under it.
async fn hold(root: &str, key: StorageKey, lease: u64) {
    let store = FileStore::open(FileConfig::new(root)).unwrap();
    let loaded = store.acquire_and_load(&key, token(), Duration::from_millis(lease), LONG).await.unwrap();
    let Loaded::Granted(grant, stored) = loaded else { panic!("{loaded:?}") };
    say("held");
    listen();
    say(match store.replace_and_release(&grant, stored.version, &put("the holder's")).await.unwrap() {
        Replaced::Done(_) => "done",
        Replaced::NotHolder(_) => "not holder",
        Replaced::Conflict(_) => "conflict",
        Replaced::Missing => "missing",
    });
}

/// Takes the lock and starts a program that outlives it.
async fn beget(root: &str, key: StorageKey) {
    let store = FileStore::open(FileConfig::new(root)).unwrap();
    let _grant = acquire(&store, &key, LONG).await;
    let nothing = Stdio::null;
    let child = Command::new("sleep").arg("60").stdin(nothing()).stdout(nothing()).stderr(nothing()).spawn();
    say(child.unwrap().id());
    listen();
}

/// A store that sends this process a signal before its call of that number.
fn misbehaving(root: &str, signal: Signal) -> (FileStore, Arc<Hooked>, Arc<AtomicUsize>) {
    let at = Arc::new(AtomicUsize::new(usize::MAX));
    let fs = Hooked::new({
        let at = Arc::clone(&at);
        move |call| {
            if call.number == at.load(SeqCst) {
                kill_process(rustix::process::getpid(), signal).unwrap();
                if signal == Signal::KILL {
                    // It comes to the process, which may be a moment later than this thread would go on.
                    std::thread::park();
                }
            }
            Ok(())
        }
    });
    (FileStore::open(FileConfig::new(root).durability(FileDurability::File).fs(fs.clone())).unwrap(), fs, at)
}

/// Does a verb, and dies before the n-th file call of it.
async fn die(root: &str, verb: Verb, nth: usize) {
    let (store, fs, at) = misbehaving(root, Signal::KILL);
    let key = StorageKey::from_bytes([1; 32]);
    verb.lock(&store, &key).await;
    let version = store.load(&key).await.unwrap().map_or(Version::from_u64(0), |stored| stored.version);
    at.store(fs.calls() + nth, SeqCst);
    verb.run(&store, &key, version).await.unwrap();
    say("through");
    listen();
}

/// Replaces, and stops before the n-th file call of it.
async fn stop(root: &str, nth: usize) {
    let (store, fs, at) = misbehaving(root, Signal::STOP);
    let key = StorageKey::from_bytes([1; 32]);
    let version = store.load(&key).await.unwrap().unwrap().version;
    at.store(fs.calls() + nth, SeqCst);
    match store.replace(&key, version, &put(NEW)).await.unwrap() {
        Replaced::Done(_) => say("done"),
        Replaced::Conflict(_) => say("conflict"),
        other => panic!("{other:?}"),
    }
    listen();
}

fn store_in(directory: &TempDir) -> FileStore {
    FileStore::open(FileConfig::new(directory.path())).unwrap()
}

#[tokio::test]
async fn increments_of_several_processes_are_all_kept() {
    let directory = TempDir::new().unwrap();
    let (store, key) = (store_in(&directory), StorageKey::from_bytes([1; 32]));
    insert(&store, &key, &Put::new("0".into(), LONG)).await;
    let mut workers: Vec<_> = (0..3).map(|_| Worker::start(directory.path(), "count 1 40")).collect();
    for worker in &mut workers {
        assert_eq!(worker.hear().as_deref(), Some("done"));
    }
    assert_eq!(store.load(&key).await.unwrap().unwrap().data, "480");
}

#[tokio::test]
async fn the_lock_of_a_killed_holder_is_free_at_once() {
    let directory = TempDir::new().unwrap();
    let (store, key) = (store_in(&directory), StorageKey::from_bytes([1; 32]));
    let version = insert(&store, &key, &Put::new("x".into(), LONG)).await;
    for way in 0..3 {
        let mut holder = Worker::start(directory.path(), "hold 1 3600000");
        assert_eq!(holder.hear().as_deref(), Some("held"));
        assert!(matches!(store.acquire(&key, token(), LONG, NO_WAIT).await.unwrap(), Acquired::Held(_)));
        let refused = store.replace(&key, version, &put("y")).await.unwrap();
        assert!(matches!(refused, Replaced::NotHolder(_)), "{refused:?}");
        holder.signal(Signal::KILL);
        holder.wait();
        // Taken, written past, or swept: dead is dead.
        match way {
            0 => {
                let grant = acquire(&store, &key, LONG).await;
                assert_eq!(store.release(&grant).await.unwrap(), session_core::Released::Freed);
            }
            1 => {
                let loaded = store.acquire_and_load(&key, TOKEN, LONG, NO_WAIT).await.unwrap();
                let Loaded::Granted(grant, stored) = loaded else { panic!("{loaded:?}") };
                assert_eq!(stored.data, "x");
                assert_eq!(store.release(&grant).await.unwrap(), session_core::Released::Freed);
            }
            _ => drop(replace(&store, &key, version, &Put::new("y".into(), LONG)).await),
        }
    }
    assert_eq!(store.sweep(10).await.unwrap(), Swept::default());
    assert_eq!(files_in(&directory.path().join("records")).len(), 1, "the record alone");
    assert_eq!(files_in(&directory.path().join("owners")).len(), 1, "this process alone");
}

#[tokio::test]
async fn a_stopped_holder_loses_the_lock_at_its_deadline_and_its_write_is_refused() {
    let directory = TempDir::new().unwrap();
    let (store, key) = (store_in(&directory), StorageKey::from_bytes([1; 32]));
    insert(&store, &key, &Put::new("x".into(), LONG)).await;
    let mut holder = Worker::start(directory.path(), "hold 1 600");
    assert_eq!(holder.hear().as_deref(), Some("held"));
    let held = Instant::now();
    holder.signal(Signal::STOP);
    while !is_stopped(holder.id()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let Acquired::Held(left) = store.acquire(&key, token(), LONG, NO_WAIT).await.unwrap() else {
        panic!("the stopped one has its lease still")
    };
    assert!(left.retry_after.unwrap() <= Duration::from_millis(600));
    let loaded = store.acquire_and_load(&key, TOKEN, LONG, LONG).await.unwrap();
    let Loaded::Granted(grant, stored) = loaded else { panic!("{loaded:?}") };
    // The holder said so a moment after it had it.
    assert!(held.elapsed() > Duration::from_millis(500), "not before the deadline: {:?}", held.elapsed());
    let done = store.replace_and_release(&grant, stored.version, &put("the next one's")).await.unwrap();
    assert!(matches!(done, Replaced::Done(_)), "{done:?}");
    holder.signal(Signal::CONT);
    holder.tell("go on");
    assert_eq!(holder.hear().as_deref(), Some("not holder"));
    assert_eq!(store.load(&key).await.unwrap().unwrap().data, "the next one's");
}

#[tokio::test]
async fn a_stopped_holder_is_refused_though_nobody_took_the_lock() {
    let directory = TempDir::new().unwrap();
    let (store, key) = (store_in(&directory), StorageKey::from_bytes([1; 32]));
    insert(&store, &key, &Put::new("x".into(), LONG)).await;
    let mut holder = Worker::start(directory.path(), "hold 1 100");
    assert_eq!(holder.hear().as_deref(), Some("held"));
    holder.signal(Signal::STOP);
    tokio::time::sleep(Duration::from_millis(150)).await;
    holder.signal(Signal::CONT);
    holder.tell("go on");
    assert_eq!(holder.hear().as_deref(), Some("not holder"));
    assert_eq!(store.load(&key).await.unwrap().unwrap().data, "x");
}

/// A program that a holder has started does not keep the holder's locks when the holder is killed.
#[tokio::test]
async fn the_children_of_a_killed_holder_keep_nothing() {
    let directory = TempDir::new().unwrap();
    let (store, key) = (store_in(&directory), StorageKey::from_bytes([1; 32]));
    let mut holder = Worker::start(directory.path(), "beget 1");
    let orphan = Pid::from_raw(holder.hear().unwrap().parse().unwrap()).unwrap();
    assert!(matches!(store.acquire(&key, token(), LONG, NO_WAIT).await.unwrap(), Acquired::Held(_)));
    holder.signal(Signal::KILL);
    holder.wait();
    let acquired = store.acquire(&key, token(), LONG, NO_WAIT).await.unwrap();
    kill_process(orphan, Signal::KILL).unwrap();
    assert!(matches!(acquired, Acquired::Granted(_)), "{acquired:?}");
}

/// Killed before each file call of each verb: the record is the old or the new one, the lock is free, a sweep
/// leaves nothing.
#[tokio::test]
async fn a_process_can_be_killed_anywhere() {
    for verb in VERBS {
        for nth in 1.. {
            let (directory, key) = (TempDir::new().unwrap(), StorageKey::from_bytes([1; 32]));
            let clock = Manual::now();
            let config = FileConfig::new(directory.path());
            let store = FileStore::open(config.clock(Arc::new(clock.clone()))).unwrap();
            let version = verb.prepare(&store, &key).await;
            let mut worker = Worker::start(directory.path(), &format!("die {verb:?} {nth}"));
            if worker.hear().as_deref() == Some("through") {
                assert!(nth > 8, "{verb:?}: only {nth} calls");
                break;
            }
            worker.wait();
            let stored =
                store.load(&key).await.unwrap_or_else(|error| panic!("{verb:?}, call {nth}: {error}"));
            let whole = stored.as_ref().is_none_or(|stored| {
                stored.version == version && stored.data == OLD && stored.principal == Some(ann())
                    || stored.version != version && stored.data == NEW && stored.principal == Some(bob())
            });
            assert!(whole, "{verb:?}, call {nth}: {stored:?}");
            if let Some(stored) = stored {
                let user = stored.principal.unwrap();
                let page = session_core::SessionIndex::keys_of(&store, &user, None, 10).await.unwrap();
                assert_eq!(page.keys, [key], "{verb:?}, call {nth}: the index names whoever has it");
                // The lock of the dead is no obstacle.
                replace(&store, &key, stored.version, &put("next")).await;
            } else {
                insert(&store, &key, &put("next")).await;
            }
            let _grant = acquire(&store, &key, LONG).await;
            clock.advance(LONG);
            drop(store);
            let store = FileStore::open(FileConfig::new(directory.path()).clock(Arc::new(clock))).unwrap();
            assert_eq!(store.sweep(10).await.unwrap().removed, 1);
            for part in ["records", "users"] {
                assert_eq!(files_in(&directory.path().join(part)), NONE, "{verb:?}, call {nth}");
            }
            assert_eq!(files_in(&directory.path().join("owners")).len(), 1, "{verb:?}, call {nth}");
        }
    }
}

/// Stopped before each file call of a write: others are served, or told within the time that they are not;
/// the stopped one's write comes before theirs or is refused.
#[tokio::test]
async fn a_process_can_be_stopped_anywhere() {
    let mut waited = 0;
    for nth in 1.. {
        let (directory, key) = (TempDir::new().unwrap(), StorageKey::from_bytes([1; 32]));
        let config = FileConfig::new(directory.path()).busy_timeout(Duration::from_millis(250));
        let store = FileStore::open(config).unwrap();
        let version = insert(&store, &key, &Put::new(OLD.into(), LONG)).await;
        let mut worker = Worker::start(directory.path(), &format!("stop {nth}"));
        let id = worker.id();
        let said = std::thread::spawn(move || (worker.hear(), worker));
        while !is_stopped(id) && !said.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let was_stopped = is_stopped(id);
        let first = store.replace(&key, version, &put("ours")).await;
        kill_process(id, Signal::CONT).unwrap();
        let (said, worker) = said.join().unwrap();
        drop(worker);
        let left = store.load(&key).await.unwrap().unwrap().data;
        match first {
            Ok(Replaced::Done(_)) => {
                assert_eq!((&left[..], said.as_deref()), (&b"ours"[..], Some("conflict")), "call {nth}");
            }
            Ok(Replaced::Conflict(_)) => {
                assert_eq!((&left[..], said.as_deref()), (NEW.as_bytes(), Some("done")), "call {nth}");
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                waited += 1;
                assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error}");
                assert_eq!((&left[..], said.as_deref()), (NEW.as_bytes(), Some("done")), "call {nth}");
            }
        }
        if !was_stopped {
            break;
        }
    }
    assert!(waited > 5, "in {waited} calls it held the flock");
}
