//! Servers that hang, cut, refuse or are something else: a typed error within the timeout, and a connection
//! that is not used again.

use crate::{common::*, with_server};
use session_conformance::servers::{ServerControl as _, memcached::MemcachedServer};
use session_core::{
    Effect, Error, ErrorKind, Grant, LockingStore as _, Replaced, SessionLock as _, SessionStore as _,
    StorageKey, Touched, Version,
};
use session_memcached::{MemcachedConfig, MemcachedStore, Protocol};
use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    task::JoinSet,
    time::Instant,
};

const TIMEOUT: Duration = Duration::from_millis(150);
/// A loaded machine is late.
const LATE: Duration = Duration::from_millis(1500);

async fn impatient(server: &MemcachedServer, protocol: Protocol, pool: usize) -> MemcachedStore {
    let mut config = config(server, protocol);
    config.timeout = TIMEOUT;
    config.pool = NonZeroUsize::new(pool).unwrap();
    MemcachedStore::connect(&config).await.unwrap()
}

async fn in_time<T: std::fmt::Debug>(operation: impl Future<Output = Result<T, Error>>) -> Error {
    let start = Instant::now();
    let error = operation.await.expect_err("nobody answers");
    assert!(start.elapsed() < TIMEOUT + LATE, "{:?}: {error}", start.elapsed());
    error
}

#[tokio::test]
async fn a_server_that_hangs_is_unavailable_within_the_timeout() {
    for protocol in BOTH {
        let server = with_server!().behind_proxy(Duration::ZERO).await.unwrap();
        let store = impatient(&server, protocol, 1).await;
        let (key, other) = (new_key(), new_key());
        let version = insert(&store, &key, "mine").await;
        insert(&store, &other, "another's").await;
        let (grant, _) = lock(&store, &key).await;
        let no = put("no");

        for pause in 0..8 {
            load(&store, &other).await; // an open connection, which the request below is sent on
            let connections = server.traffic().connections;
            server.pause().await.unwrap();
            let (name, error, effect) = match pause {
                0 => ("load", in_time(store.load(&key)).await, Effect::None),
                1 => ("insert", in_time(store.insert(&new_key(), &no)).await, Effect::Unknown),
                // Named by a version that was never there: what arrives late changes nothing.
                2 => {
                    let replace = store.replace(&key, Version::from_u64(9), &no);
                    ("replace", in_time(replace).await, Effect::None)
                }
                3 => ("touch", in_time(store.touch(&other, version, TTL)).await, Effect::None),
                4 => ("delete", in_time(store.delete(&new_key())).await, Effect::None),
                5 => ("renew", in_time(store.renew(&grant, LEASE)).await, Effect::None),
                6 => {
                    let stranger = Grant::new(key, new_token());
                    ("release", in_time(store.release(&stranger)).await, Effect::None)
                }
                _ => {
                    let ask = store.acquire(&other, new_token(), LEASE, Duration::ZERO);
                    ("acquire", in_time(ask).await, Effect::Unknown)
                }
            };
            assert_eq!(
                (error.kind(), error.effect(), error.operation()),
                (ErrorKind::Unavailable, effect, name)
            );
            // And while it still hangs: no connection at all, so nothing was sent.
            let error = in_time(store.replace(&key, version, &no)).await;
            assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error}");
            server.resume().await.unwrap();

            // The late replies belong to nobody.
            let stored = eventually(&store, &other).await;
            assert_eq!(stored.data, "another's");
            assert_eq!(load(&store, &key).await.data, "mine");
            assert!(server.traffic().connections > connections, "the one with a reply under way was closed");
        }
        let done = store.replace_and_release(&grant, version, &put("on")).await.unwrap();
        assert!(matches!(done, Replaced::Done(_)));
    }
}

/// A server that has just been woken may need a moment.
async fn eventually(store: &MemcachedStore, key: &StorageKey) -> session_core::Stored {
    let start = Instant::now();
    loop {
        match store.load(key).await {
            Ok(stored) => return stored.expect("it is there"),
            Err(error) => assert!(start.elapsed() < Duration::from_secs(10), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_write_under_way_when_the_server_hangs_is_unknown_and_found_by_its_version() {
    for protocol in BOTH {
        let server = with_server!();
        let store = impatient(&server, protocol, 2).await;
        let key = new_key();
        insert(&store, &key, "one").await;
        let before = load(&store, &key).await.version; // so that the write is sent at once
        server.pause().await.unwrap();
        let error = in_time(store.replace(&key, before, &put("two"))).await;
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{error}");
        server.resume().await.unwrap();

        let now = eventually(&store, &key).await;
        let again = store.replace(&key, before, &put("three")).await.unwrap();
        match (now.data.as_ref(), again) {
            (b"one", Replaced::Done(_)) => {} // it never arrived
            (_, Replaced::Conflict(fresh)) => assert_eq!(fresh.data, "two"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_pool_that_is_used_up_is_an_error_within_the_timeout() {
    // Each exchange takes longer than half the timeout: of many at once on one connection only one gets
    // through.
    let server = with_server!().behind_proxy(TIMEOUT * 3 / 5).await.unwrap();
    let mut config = config(&server, Protocol::Plain);
    (config.timeout, config.pool) = (TIMEOUT * 4, NonZeroUsize::MIN);
    let store = MemcachedStore::connect(&config).await.unwrap();
    let key = new_key();
    insert(&store, &key, "data").await;
    let mut loads = JoinSet::new();
    for _ in 0..30 {
        let store = store.clone();
        loads.spawn(async move { (Instant::now(), store.load(&key).await, Instant::now()) });
    }
    let (mut through, mut refused) = (0, 0);
    while let Some(joined) = loads.join_next().await {
        match joined.unwrap() {
            (_, Ok(stored), _) => {
                assert_eq!(stored.unwrap().data, "data");
                through += 1;
            }
            (start, Err(error), end) => {
                assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error}");
                assert!(end - start < TIMEOUT * 4 + LATE);
                refused += usize::from(error.to_string().contains("(at most 1 at a time)"));
            }
        }
    }
    assert!(through >= 1 && refused >= 20, "{through} through, {refused} refused");
    assert_eq!(load(&store, &key).await.data, "data");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_lose_no_update() {
    for protocol in BOTH {
        let server = with_server!().behind_proxy(Duration::ZERO).await.unwrap();
        let store = store(&server, protocol).await;
        let key = new_key();
        insert(&store, &key, "0").await;
        let stop = Arc::new(AtomicBool::new(false));
        let (acknowledged, unknown) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut writers = JoinSet::new();
        for _ in 0..8 {
            let (store, stop) = (store.clone(), Arc::clone(&stop));
            let (acknowledged, unknown) = (Arc::clone(&acknowledged), Arc::clone(&unknown));
            writers.spawn(async move {
                while !stop.load(Relaxed) {
                    let Ok(Some(stored)) = store.load(&key).await else { continue };
                    let next = number(&stored.data) + 1;
                    match store.replace(&key, stored.version, &put(next.to_string())).await {
                        Ok(Replaced::Done(_)) => {
                            acknowledged.fetch_add(1, Relaxed);
                        }
                        Ok(Replaced::Conflict(_)) => {}
                        Ok(other) => panic!("{other:?}"),
                        Err(error) if error.effect() == Effect::Unknown => {
                            unknown.fetch_add(1, Relaxed);
                        }
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
                    }
                }
            });
        }
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            server.cut().await.unwrap();
        }
        stop.store(true, Relaxed);
        while let Some(joined) = writers.join_next().await {
            joined.unwrap();
        }
        let last = number(&eventually(&store, &key).await.data);
        let (acknowledged, unknown) = (acknowledged.load(Relaxed), unknown.load(Relaxed));
        assert!(acknowledged > 10, "{acknowledged}");
        assert!(
            (acknowledged..=acknowledged + unknown).contains(&last),
            "{acknowledged} + {unknown}: {last}"
        );
    }
}

fn number(data: &[u8]) -> u64 {
    std::str::from_utf8(data).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_server_without_cas_numbers_is_refused_with_the_cure() {
    let server = with_server!(&["-C"]);
    let error = MemcachedStore::connect(&config(&server, Protocol::Auto)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unsupported, Effect::None));
    assert!(error.to_string().contains("-C"), "{error}");
}

/// Something that answers each line as it is told, and keeps the lines.
async fn impostor(
    answer: impl Fn(&str) -> String + Send + Sync + 'static,
) -> (u16, Arc<std::sync::Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let lines = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (kept, answer) = (Arc::clone(&lines), Arc::new(answer));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (kept, answer) = (Arc::clone(&kept), Arc::clone(&answer));
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                while stream.read_line(&mut line).await.unwrap_or(0) > 0 {
                    let reply = answer(line.trim_end());
                    kept.lock().unwrap().push(std::mem::take(&mut line));
                    if stream.get_mut().write_all(reply.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (port, lines)
}

fn settings() -> String {
    "STAT item_size_max 1048576\r\nSTAT cas_enabled yes\r\nEND\r\n".to_owned()
}

#[tokio::test]
async fn a_server_without_the_meta_protocol_is_spoken_to_plainly() {
    for version in ["1.5.6", "1.6.9"] {
        let (port, lines) = impostor(move |line| match line {
            "version" => format!("VERSION {version}\r\n"),
            "mn" if version == "1.6.9" => "MN\r\n".to_owned(), // as a part of the meta commands was then
            "stats" => "STAT time 1800000000\r\nEND\r\n".to_owned(),
            "stats settings" => settings(),
            line if line.starts_with("gets ") => "END\r\n".to_owned(),
            _ => "ERROR\r\n".to_owned(),
        })
        .await;
        let mut config = MemcachedConfig::server("127.0.0.1", port);
        let store = MemcachedStore::connect(&config).await.unwrap();
        let key = new_key();
        assert_eq!(store.load(&key).await.unwrap(), None);
        assert!(lines.lock().unwrap().contains(&format!("gets {}\r\n", data_key(&key))));
        assert_eq!(store.touch(&key, Version::from_u64(1), TTL).await.unwrap(), Touched::Missing);

        if version == "1.5.6" {
            config.protocol = Protocol::Meta;
            let error = MemcachedStore::connect(&config).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("1.5.6") && error.to_string().contains("plain"), "{error}");
        }
    }
}

#[tokio::test]
async fn what_is_no_memcached_is_an_error_and_not_a_session() {
    let greetings: [fn(&str) -> String; 6] = [
        |_| "HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n".to_owned(),
        |_| "x".repeat(100_000),
        |_| String::new(),
        |line| if line == "version" { "VERSION 1.6.18\r\n".to_owned() } else { "ERROR\r\n".to_owned() },
        |line| if line == "version" { "VERSION 1.6.18\r\n".to_owned() } else { "END\r\n".to_owned() },
        |line| if line == "version" { "VERSION 1.6.18\r\n".to_owned() } else { "STAT \u{e4}".repeat(2000) },
    ];
    for greeting in greetings {
        let (port, _) = impostor(greeting).await;
        let mut config = MemcachedConfig::server("127.0.0.1", port);
        config.timeout = TIMEOUT;
        let error = in_time(MemcachedStore::connect(&config)).await;
        let kinds = [ErrorKind::Unavailable, ErrorKind::Unsupported, ErrorKind::Backend];
        assert!(kinds.contains(&error.kind()) && error.effect() == Effect::None, "{error:?}");
    }
}

#[tokio::test]
async fn a_reply_that_answers_nothing_asked_is_an_error_and_closes_the_connection() {
    let replies = [
        "VA 5 c1 t60 O999999\r\nhello\r\n",
        "VA 5 c1 t60\r\nhello\r\n",
        "VA 99999999999 c1 t60 O1\r\n",
        "VA 5 c1 t60 O1\r\nhello, world\r\n",
        "HD\r\n",
        "STORED\r\n",
        "SERVER_ERROR out of memory\r\n",
        "\r\n",
    ];
    for reply in replies {
        let (port, lines) = impostor(move |line| match line {
            "version" => "VERSION 1.6.18\r\n".to_owned(),
            "mn" => "MN\r\n".to_owned(),
            "stats" => "STAT time 1800000000\r\nEND\r\n".to_owned(),
            "stats settings" => settings(),
            _ => reply.to_owned(),
        })
        .await;
        let mut config = MemcachedConfig::server("127.0.0.1", port);
        config.timeout = TIMEOUT;
        let store = MemcachedStore::connect(&config).await.unwrap();
        for _ in 0..2 {
            let error = in_time(store.load(&new_key())).await;
            assert_eq!(
                (error.kind(), error.effect()),
                (ErrorKind::Backend, Effect::None),
                "{reply:?}: {error:?}"
            );
            assert!(
                !error.to_string().contains("hello") && !format!("{error:?}").contains("hello"),
                "{error:?}"
            );
        }
        let greetings = lines.lock().unwrap().iter().filter(|line| *line == "version\r\n").count();
        assert_eq!(
            greetings, 2,
            "{reply:?}: each on a connection of its own, the first being that of connect"
        );
    }
}
