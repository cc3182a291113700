//! Cancelled at every await, under load: no session ever sees another's data, and the pool loses nothing.

use crate::{common::*, with_server};
use session_conformance::servers::memcached::MemcachedServer;
use session_core::{
    Error, ErrorKind, Grant, Loaded, LockingStore as _, Replaced, SessionLock as _, SessionStore as _,
    StorageKey, Stored,
};
use session_memcached::{MemcachedStore, Protocol};
use std::{
    future::poll_fn,
    num::NonZeroUsize,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};
use tokio::{task::JoinSet, time::Instant};

/// How long each protocol is tried: seconds, from the environment.
const SOAK: &str = "SESSION_MEMCACHED_SOAK";
const SESSIONS: usize = 24;
const TASKS: usize = 16;
const CONNECTIONS: usize = 3;

/// Runs a future until it has been polled so often; then it is dropped where it is. Each time that it is not
/// ready it waits for something: the numbers from 1 on are its awaits, one after the other.
async fn until_poll<T>(polls: u32, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(move |context| match future.as_mut().poll(context) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending if left <= 1 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

/// A small generator of its own: the same choices again for the same seed, which is printed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn new_seed() -> u64 {
    new_token().as_bytes().iter().fold(0, |seed, byte| seed.rotate_left(8) ^ u64::from(*byte))
}

/// Whose it is, and of differing length, so that a reply that is read at the wrong place shows.
fn data_of(session: usize, round: u64) -> Vec<u8> {
    let mut data = format!("session {session} round {round} ").into_bytes();
    data.resize(data.len() + session * 37 + (round % 7) as usize * 501, b'a' + (session % 26) as u8);
    data
}

fn assert_owner(stored: &Stored, session: usize) {
    let text = String::from_utf8_lossy(&stored.data);
    let mut words = text.split(' ');
    assert_eq!((words.next(), words.next()), (Some("session"), Some(session.to_string().as_str())));
    assert_eq!(words.next(), Some("round"));
    let round = words.next().unwrap().parse().unwrap();
    assert_eq!(stored.data, data_of(session, round), "a mixture");
}

/// What may go wrong here: time. Never a reply that is not the right one.
fn assert_only_late(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}

#[derive(Default)]
struct Counts {
    done: AtomicU64,
    cancelled: AtomicU64,
    late: AtomicU64,
}

/// One random operation, cut at a random await.
async fn step(store: &MemcachedStore, keys: &[StorageKey], dice: &mut Dice, counts: &Counts) {
    let session = dice.roll(SESSIONS as u64) as usize;
    let (key, polls, token) = (&keys[session], dice.roll(9) as u32 + 1, new_token());
    let new = put(data_of(session, dice.roll(1000)));
    let operation = async {
        match dice.roll(6) {
            0 | 1 => {
                let stored = store.load(key).await?.expect("nobody deletes it");
                assert_owner(&stored, session);
            }
            2 => {
                let stored = store.load(key).await?.expect("nobody deletes it");
                assert_owner(&stored, session);
                if let Replaced::Conflict(fresh) = store.replace(key, stored.version, &new).await? {
                    assert_owner(&fresh, session);
                }
            }
            3 => {
                let lease = Duration::from_millis(1);
                if let Loaded::Granted(grant, stored) =
                    store.acquire_and_load(key, token, lease, Duration::ZERO).await?
                {
                    assert_owner(&stored, session);
                    if let Replaced::Conflict(fresh) =
                        store.replace_and_release(&grant, stored.version, &new).await?
                    {
                        assert_owner(&fresh, session);
                    }
                }
            }
            4 => {
                let stored = store.load(key).await?.expect("nobody deletes it");
                let _outcome = store.touch(key, stored.version, TTL).await?;
            }
            _ => {
                let grant = Grant::new(*key, token);
                let _outcome = store.renew(&grant, LEASE).await?;
                let _outcome = store.release(&grant).await?;
            }
        }
        Ok::<_, Error>(())
    };
    match until_poll(polls, operation).await {
        None => counts.cancelled.fetch_add(1, Relaxed),
        Some(Ok(())) => counts.done.fetch_add(1, Relaxed),
        Some(Err(error)) => {
            assert_only_late(&error);
            counts.late.fetch_add(1, Relaxed)
        }
    };
}

async fn small_pool(server: &MemcachedServer, protocol: Protocol) -> MemcachedStore {
    let mut config = config(server, protocol);
    (config.pool, config.timeout) = (NonZeroUsize::new(CONNECTIONS).unwrap(), Duration::from_secs(5));
    MemcachedStore::connect(&config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_sees_anothers_data_whatever_is_cancelled() {
    let seconds = std::env::var(SOAK).ok().map_or(15, |seconds| seconds.parse().expect("seconds"));
    for protocol in BOTH {
        let server = with_server!();
        let store = small_pool(&server, protocol).await;
        let keys: Arc<[_]> = std::iter::repeat_with(new_key).take(SESSIONS).collect();
        for (session, key) in keys.iter().enumerate() {
            assert!(store.insert(key, &put(data_of(session, 0))).await.is_ok());
        }
        let counts = Arc::new(Counts::default());
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut tasks = JoinSet::new();
        let seed = new_seed();
        eprintln!("{protocol:?}: seed {seed}");
        for task in 0..TASKS {
            let (store, keys, counts) = (store.clone(), Arc::clone(&keys), Arc::clone(&counts));
            let mut dice = Dice((seed ^ (task as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
            tasks.spawn(async move {
                while Instant::now() < end {
                    step(&store, &keys, &mut dice, &counts).await;
                }
            });
        }
        while let Some(joined) = tasks.join_next().await {
            joined.unwrap();
        }
        // The pool is whole: all its connections can be used at once, and what they say is right.
        let mut whole = JoinSet::new();
        for (session, key) in keys.iter().copied().enumerate() {
            let store = store.clone();
            whole.spawn(async move { assert_owner(&load(&store, &key).await, session) });
        }
        while let Some(joined) = whole.join_next().await {
            joined.unwrap();
        }
        let (done, cancelled) = (counts.done.load(Relaxed), counts.cancelled.load(Relaxed));
        eprintln!("{protocol:?}: {done} done, {cancelled} cancelled, {} late", counts.late.load(Relaxed));
        assert!(
            done > 100 && cancelled > 100,
            "{done} done, {cancelled} cancelled: too few to prove anything"
        );
    }
}

#[tokio::test]
async fn a_write_cancelled_at_any_await_is_whole_or_not_at_all() {
    let server = with_server!();
    for protocol in BOTH {
        let (store, other) = (small_pool(&server, protocol).await, store(&server, protocol).await);
        let key = new_key();
        assert!(store.insert(&key, &put(data_of(1, 0))).await.is_ok());
        let (mut applied, mut round) = (0, 0);
        let mut finished = false;
        for polls in 1.. {
            for warm in [true, false] {
                round += 1;
                // Warm: the number is known, and the write is one exchange; else the record is read first.
                let before = load(if warm { &store } else { &other }, &key).await;
                let write =
                    store.replace(&key, before.version, &put(data_of(1, round))).await_until(polls).await;
                let after = load(&store, &key).await;
                assert_owner(&after, 1);
                if after.version == before.version {
                    assert!(write.is_none(), "done, but not there");
                    // It may still be on its way; naming the version it names decides.
                    replace_settles(&other, &key, before.version).await;
                } else {
                    applied += 1;
                }
                finished = write.is_some();
            }
            if finished {
                break;
            }
        }
        assert!(applied > 0);
    }
}

async fn replace_settles(store: &MemcachedStore, key: &StorageKey, version: session_core::Version) {
    match store.replace(key, version, &put(data_of(1, 7))).await.unwrap() {
        Replaced::Done(_) => {}
        Replaced::Conflict(fresh) => assert_owner(&fresh, 1),
        other => panic!("{other:?}"),
    }
}

trait AwaitUntil: Future + Sized {
    async fn await_until(self, polls: u32) -> Option<Self::Output> {
        until_poll(polls, self).await
    }
}

impl<F: Future> AwaitUntil for F {}

#[tokio::test]
async fn a_lock_cancelled_at_any_await_is_free_after_its_release() {
    let server = with_server!();
    for protocol in BOTH {
        let (store, other) = (small_pool(&server, protocol).await, store(&server, protocol).await);
        let key = new_key();
        assert!(store.insert(&key, &put(data_of(1, 0))).await.is_ok());
        for polls in 1..40 {
            let token = new_token();
            let asked = store.acquire_and_load(&key, token, LEASE, Duration::ZERO);
            let asked = until_poll(polls, asked).await;
            // What the caller does who stopped asking: it may have been given the lock, or be given it still,
            // when the request is read by the server after this release. Then it ends with its lease, or with
            // a release after that.
            let free = async {
                loop {
                    let _outcome = store.release(&Grant::new(key, token)).await.unwrap();
                    if let Loaded::Granted(grant, stored) = locked(&other, &key).await.unwrap() {
                        assert_owner(&stored, 1);
                        release(&other, &grant).await;
                        return;
                    }
                }
            };
            tokio::time::timeout(LEASE / 2, free).await.expect("the lock is free");
            if asked.is_some() {
                break;
            }
            assert!(polls < 39, "it never ends");
        }
    }
}

/// Why all this is needed: what memcache-async does by itself, on one connection that is used again after a
/// cancelled read.
#[tokio::test]
async fn the_hazard_is_real() {
    let server = with_server!();
    for (name, data) in [("mine", "my data"), ("yours", "your data")] {
        server.command(&format!("set {name} 0 0 {}\r\n{data}", data.len())).await.unwrap();
    }
    let stream = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    let mut naive = memcache_async::ascii::Protocol::new(stream);
    assert!(until_poll(1, naive.get("mine")).await.is_none(), "the reply cannot be there already");
    assert_eq!(naive.get("yours").await.unwrap(), b"my data");
}
