//! What happens without a network: the envelope, codecs, replay, ids and queues, on the store in memory.
//!
//! `cargo bench -p session-core [-- FILTER]`. Private parts are measured by what they are for: a read is the
//! envelope's way in, a write both ways. The store in memory, a part of each, is measured by itself.

#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs, reason = "a bench that cannot run says so")]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use serde::{Deserialize, Serialize};
use session_core::{
    Access, Codec, Inserted, Key, MemoryStore, Put, Result, Session, SessionId, SessionStore as _, Sessions,
    SessionsBuilder, SystemRandom,
};
use std::{hint::black_box, time::Duration};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
};

const COUNT: Key<u64> = Key::new("count");
const CART: Key<Vec<Item>> = Key::new("cart");

#[derive(Clone, Serialize, Deserialize)]
struct Item {
    sku: String,
    quantity: u32,
    cents: u32,
}

/// About so many bytes as JSON.
fn cart(bytes: usize) -> Vec<Item> {
    const ITEM: usize = 52;
    let item = |number| Item {
        sku: format!("SKU-{:08x}", number * 0x9e37_79b9_u64 % 0xffff_ffff),
        quantity: number as u32 % 9 + 1,
        cents: number as u32 * 7919 % 100_000,
    };
    (0..(bytes / ITEM) as u64).map(item).collect()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn sessions(settings: impl FnOnce(SessionsBuilder) -> SessionsBuilder) -> Sessions {
    settings(Sessions::builder(MemoryStore::default())).build().unwrap()
}

fn filled(runtime: &Runtime, sessions: &Sessions, bytes: usize) -> SessionId {
    let session = sessions.create();
    session.insert(CART, &cart(bytes)).unwrap();
    session.insert(COUNT, &0).unwrap();
    runtime.block_on(session.commit()).unwrap();
    session.id().unwrap()
}

fn change(session: &Session) -> Result<()> {
    session.update(COUNT, |count| *count += 1)
}

async fn exclusive(sessions: &Sessions, id: &SessionId) {
    sessions.exclusive(id, async |session| change(session)).await.unwrap();
}

fn store(criterion: &mut Criterion) {
    let (runtime, store) = (runtime(), MemoryStore::default());
    let key = SessionId::random(&SystemRandom).unwrap().storage_key();
    let put = Put::new(vec![7; 1024].into(), Duration::from_secs(1800));
    assert!(matches!(runtime.block_on(store.insert(&key, &put)), Ok(Inserted::Created(_))));
    criterion.bench_function("store in memory/load", |bencher| {
        bencher.iter(|| runtime.block_on(store.load(&key)).unwrap());
    });
}

fn envelope(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("envelope");
    for (name, compress_from) in [("plain", usize::MAX), ("compressed", 1 << 10)] {
        for bytes in [1 << 10, 16 << 10, 256 << 10] {
            let sessions = sessions(|builder| builder.compress_from(compress_from));
            let id = filled(&runtime, &sessions, bytes);
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_function(BenchmarkId::new(format!("read {name}"), bytes), |bencher| {
                bencher.iter(|| runtime.block_on(sessions.read(&id)).unwrap());
            });
            group.bench_function(BenchmarkId::new(format!("write {name}"), bytes), |bencher| {
                bencher.iter(|| runtime.block_on(sessions.update(&id, change)).unwrap());
            });
        }
    }
}

fn codecs(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codecs");
    let codecs = [
        ("json", Codec::Json),
        #[cfg(feature = "bincode")]
        ("bincode", Codec::Bincode),
        #[cfg(feature = "msgpack")]
        ("msgpack", Codec::MessagePack),
    ];
    let value = cart(16 << 10);
    group.throughput(Throughput::Bytes(16 << 10));
    for (name, codec) in codecs {
        let sessions = sessions(|builder| builder.codec(codec));
        group.bench_function(BenchmarkId::new("encode", name), |bencher| {
            bencher.iter_batched(
                || sessions.create(),
                |session| session.insert(CART, &value).map(|()| session),
                BatchSize::SmallInput,
            );
        });
        let session = sessions.create();
        session.insert(CART, &value).unwrap();
        group.bench_function(BenchmarkId::new("decode", name), |bencher| {
            bencher.iter(|| session.get(CART).unwrap());
        });
    }
}

/// A commit that finds another's and does its own operations again.
fn replay(criterion: &mut Criterion) {
    let (runtime, sessions) = (runtime(), sessions(|builder| builder));
    let id = filled(&runtime, &sessions, 1 << 10);
    let mut group = criterion.benchmark_group("replay");
    for operations in [1, 10, 100_u64] {
        for (name, conflict) in [("accepted", false), ("refused once", true)] {
            let opened = || {
                let opened = runtime.block_on(sessions.open(&id, Access::Write)).unwrap().unwrap();
                for _ in 0..operations {
                    change(&opened).unwrap();
                }
                if conflict {
                    runtime.block_on(sessions.update(&id, change)).unwrap();
                }
                opened
            };
            group.bench_function(BenchmarkId::new(name, operations), |bencher| {
                let commit = |session: Session| runtime.block_on(session.commit()).unwrap();
                bencher.iter_batched(opened, commit, BatchSize::PerIteration);
            });
        }
    }
}

fn ids(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ids");
    let id = SessionId::random(&SystemRandom).unwrap();
    let text = id.expose();
    group.bench_function("random", |bencher| bencher.iter(|| SessionId::random(&SystemRandom).unwrap()));
    group.bench_function("parse", |bencher| bencher.iter(|| SessionId::parse(black_box(&text)).unwrap()));
    group.bench_function("expose", |bencher| bencher.iter(|| black_box(&id).expose()));
    group.bench_function("storage key", |bencher| bencher.iter(|| black_box(&id).storage_key()));
}

/// One after the other through the queue of one session, and what the lock adds when nobody waits.
fn queue(criterion: &mut Criterion) {
    const AT_ONCE: u64 = 32;
    let (runtime, sessions) = (runtime(), sessions(|builder| builder));
    let id = filled(&runtime, &sessions, 1 << 10);
    let mut group = criterion.benchmark_group("queue");
    group.bench_function("alone", |bencher| {
        bencher.iter(|| runtime.block_on(exclusive(&sessions, &id)));
    });
    group.throughput(Throughput::Elements(AT_ONCE));
    group.bench_function(format!("{AT_ONCE} at once"), |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let mut all = JoinSet::new();
                for _ in 0..AT_ONCE {
                    let (sessions, id) = (sessions.clone(), id.clone());
                    all.spawn(async move { exclusive(&sessions, &id).await });
                }
                all.join_all().await;
            });
        });
    });
}

criterion_group!(benches, store, envelope, codecs, replay, ids, queue);
criterion_main!(benches);
