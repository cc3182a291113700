//! Parallel requests of one session, to two servers: whatever was answered with success is there.

use crate::{
    backends::{Backend, on_each_backend},
    support::{Client, Gate, LONG, Site},
};
use async_trait::async_trait;
use axum::{
    Extension, Router,
    extract::Path,
    routing::{get, post},
};
use futures_util::future::join_all;
use http::{Method, StatusCode};
use http_body_util::StreamBody;
use session_conformance::wrapper::{Wrapper, wrap};
use session_core::{Grant, Key, LockingStore, MemoryLock, Pair, Put, Released, Replaced, Sessions, Version};
use session_tower::{
    ExclusiveSession, ReadSession, Rejection, RetryLayer, Session, SessionHandle, SessionLayer,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::sync::Barrier;

const COUNT: Key<u64> = Key::new("count");
const CART: Key<Vec<usize>> = Key::new("cart");
const NAME: Key<String> = Key::new("name");

on_each_backend!(
    updates_are_all_kept,
    read_and_written_under_the_retry_layer_is_all_kept,
    a_look_before_is_no_obstacle_to_the_retry_layer,
    read_and_written_without_it_is_kept_or_refused,
    exclusive_excludes_across_servers,
    carts_keep_what_each_request_adds,
    writers_of_different_keys_run_in_parallel,
    readers_run_in_parallel,
    readers_pass_a_holder,
    a_stale_holder_is_refused,
    a_handler_runs_again_with_the_same_request,
    what_cannot_be_repeated_runs_once,
    reruns_are_bounded,
);

async fn start(session: Session) -> Result<(), Rejection> {
    session.insert(COUNT, &0)?;
    Ok(())
}

async fn count(session: Session) -> Result<(), Rejection> {
    session.update(COUNT, |count| *count += 1)?;
    Ok(())
}

/// The classical mistake: what is read may be old when it is written.
async fn count_by_hand(session: Session) -> Result<(), Rejection> {
    let count = session.get(COUNT)?.unwrap_or(0);
    tokio::task::yield_now().await;
    session.insert(COUNT, &(count + 1))?;
    Ok(())
}

/// The same in a request that has looked at the session before, as a middleware does.
async fn count_after_a_look(Extension(handle): Extension<SessionHandle>) -> Result<(), Rejection> {
    handle.read().await?.get(COUNT)?;
    tokio::task::yield_now().await;
    count_by_hand(handle.write().await?).await
}

fn counters(layer: SessionLayer) -> Router {
    Router::new()
        .route("/by-hand", get(count_by_hand))
        .route("/by-hand-again", get(count_by_hand).layer(RetryLayer::default()))
        .route("/looked-again", get(count_after_a_look).layer(RetryLayer::default()))
        .route("/update", get(count))
        .route("/start", get(start))
        .layer(layer)
}

/// Rounds of eight requests at once; how many were answered with 200. Everything else must be a 409.
async fn eight_at_once<B: Backend>(site: &Site<B>, client: &Client, path: &str) -> u64 {
    const ROUNDS: usize = 20;
    let mut acknowledged = 0;
    for _ in 0..ROUNDS {
        let replies = join_all((0..8).map(|n| client.get(site.either(n), path))).await;
        for reply in replies {
            match reply.status {
                StatusCode::OK => acknowledged += 1,
                status => {
                    assert_eq!(status, StatusCode::CONFLICT, "{}", reply.body);
                    println!("refused: {}", reply.body); // shown when a test fails
                }
            }
        }
    }
    acknowledged
}

async fn updates_are_all_kept<B: Backend>() {
    let site = Site::<B>::start(counters).await;
    let client = Client::default();
    client.get(&site.a, "/start").await;
    assert_eq!(eight_at_once(&site, &client, "/update").await, 160);
    assert_eq!(site.stored_value(&client, COUNT).await, Some(160));
}

async fn read_and_written_under_the_retry_layer_is_all_kept<B: Backend>() {
    let site = Site::<B>::start(counters).await;
    let client = Client::default();
    client.get(&site.a, "/start").await;
    assert_eq!(eight_at_once(&site, &client, "/by-hand-again").await, 160);
    assert_eq!(site.stored_value(&client, COUNT).await, Some(160));
}

async fn a_look_before_is_no_obstacle_to_the_retry_layer<B: Backend>() {
    let site = Site::<B>::start(counters).await;
    let client = Client::default();
    client.get(&site.a, "/start").await;
    assert_eq!(eight_at_once(&site, &client, "/looked-again").await, 160);
    assert_eq!(site.stored_value(&client, COUNT).await, Some(160));
}

async fn read_and_written_without_it_is_kept_or_refused<B: Backend>() {
    let site = Site::<B>::start(counters).await;
    let client = Client::default();
    client.get(&site.a, "/start").await;
    let acknowledged = eight_at_once(&site, &client, "/by-hand").await;
    assert!(acknowledged < 160, "no two requests met: this proved nothing");
    assert_eq!(site.stored_value(&client, COUNT).await, Some(acknowledged));
}

async fn exclusive_excludes_across_servers<B: Backend>() {
    let (inside, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let handler = {
        let (inside, most) = (Arc::clone(&inside), Arc::clone(&most));
        move |session: ExclusiveSession| async move {
            most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
            let count = session.get(COUNT)?.unwrap_or(0);
            tokio::task::yield_now().await;
            session.insert(COUNT, &(count + 1))?;
            inside.fetch_sub(1, SeqCst);
            Ok::<_, Rejection>(())
        }
    };
    let site = Site::<B>::start(move |layer| {
        Router::new().route("/start", get(start)).route("/", get(handler.clone())).layer(layer)
    })
    .await;
    let client = Client::default();
    client.get(&site.a, "/start").await;
    assert_eq!(eight_at_once(&site, &client, "/").await, 160);
    assert_eq!(site.stored_value(&client, COUNT).await, Some(160));
    assert_eq!(most.load(SeqCst), 1);
}

async fn carts_keep_what_each_request_adds<B: Backend>() {
    // All ten are inside their handlers at once, or none gets out.
    let barrier = Arc::new(Barrier::new(10));
    let add = move |Path(item): Path<usize>, session: Session| async move {
        session.update(CART, move |cart| cart.push(item))?;
        barrier.wait().await;
        Ok::<_, Rejection>(())
    };
    let site = Site::<B>::start(move |layer| {
        Router::new().route("/start", get(start)).route("/add/{item}", get(add.clone())).layer(layer)
    })
    .await;
    let client = Client::default();
    client.get(&site.a, "/start").await;
    let replies = join_all((0..10).map(|item| {
        let (client, site) = (&client, &site);
        async move { client.get(site.either(item), &format!("/add/{item}")).await.status }
    }))
    .await;
    assert_eq!(replies, [StatusCode::OK; 10]);
    let mut cart = site.stored_value(&client, CART).await.unwrap();
    cart.sort_unstable();
    assert_eq!(cart, (0..10).collect::<Vec<_>>());
}

async fn writers_of_different_keys_run_in_parallel<B: Backend>() {
    const KEYS: [Key<usize>; 10] = [
        Key::new("0"),
        Key::new("1"),
        Key::new("2"),
        Key::new("3"),
        Key::new("4"),
        Key::new("5"),
        Key::new("6"),
        Key::new("7"),
        Key::new("8"),
        Key::new("9"),
    ];
    let barrier = Arc::new(Barrier::new(10));
    let write = move |Path(n): Path<usize>, session: Session| async move {
        session.insert(KEYS[n], &n)?;
        barrier.wait().await; // queued, none of them would come out
        Ok::<_, Rejection>(())
    };
    let site = Site::<B>::start(move |layer| {
        Router::new().route("/start", get(start)).route("/write/{n}", get(write.clone())).layer(layer)
    })
    .await;
    let client = Client::default();
    client.get(&site.a, "/start").await;
    let replies = join_all((0..10).map(|n| {
        let (client, site) = (&client, &site);
        async move { client.get(site.either(n), &format!("/write/{n}")).await.status }
    }))
    .await;
    assert_eq!(replies, [StatusCode::OK; 10]);
    for (n, key) in KEYS.into_iter().enumerate() {
        assert_eq!(site.stored_value(&client, key).await, Some(n));
    }
}

async fn readers_run_in_parallel<B: Backend>() {
    let barrier = Arc::new(Barrier::new(10));
    let look = move |session: ReadSession| async move {
        barrier.wait().await;
        Ok::<_, Rejection>(session.get(COUNT)?.map(|count| count.to_string()).unwrap_or_default())
    };
    let site = Site::<B>::start(move |layer| {
        Router::new().route("/start", get(start)).route("/", get(look.clone())).layer(layer)
    })
    .await;
    let client = Client::default();
    client.get(&site.a, "/start").await;
    let replies = join_all((0..10).map(|n| client.get(site.either(n), "/"))).await;
    assert!(replies.iter().all(|reply| reply.body == "0" && reply.set_cookie().is_none()));
}

async fn readers_pass_a_holder<B: Backend>() {
    let gate = Gate::new();
    let held = Arc::clone(&gate);
    let hold = move |session: ExclusiveSession| async move {
        session.insert(COUNT, &7)?;
        held.pass().await;
        Ok::<_, Rejection>(())
    };
    let look = async |session: ReadSession| Ok::<_, Rejection>(format!("{:?}", session.get(COUNT)?));
    let site = Site::<B>::start(move |layer| {
        Router::new()
            .route("/start", get(start))
            .route("/hold", get(hold.clone()))
            .route("/look", get(look))
            .layer(layer)
    })
    .await;
    let client = Client::default();
    client.get(&site.a, "/start").await;
    let holder = client.get(&site.a, "/hold");
    let reader = async {
        gate.reached().await;
        let seen = client.get(&site.b, "/look").await.body;
        gate.open();
        seen
    };
    let (holder, seen) = tokio::join!(holder, reader);
    assert_eq!((holder.status, seen.as_str()), (StatusCode::OK, "Some(0)"));
    assert_eq!(site.stored_value(&client, COUNT).await, Some(7));
}

async fn a_stale_holder_is_refused<B: Backend>() {
    let gate = Gate::new();
    let held = Arc::clone(&gate);
    let hold = move |session: ExclusiveSession| async move {
        session.insert(NAME, "stale")?;
        held.pass().await;
        Ok::<_, Rejection>(())
    };
    let take = async |session: ExclusiveSession| Ok::<_, Rejection>(session.insert(NAME, "fresh")?);
    let lease = Duration::from_millis(200);
    let site = Site::<B>::with(
        |settings| settings.lease(lease).max_hold(lease), // never renewed
        move |layer| {
            Router::new()
                .route("/start", get(start))
                .route("/hold", get(hold.clone()))
                .route("/take", get(take))
                .layer(layer)
        },
    )
    .await;
    let client = Client::default();
    client.get(&site.a, "/start").await;
    let stale = client.get(&site.a, "/hold");
    let fresh = async {
        gate.reached().await;
        let fresh = client.get(&site.b, "/take").await; // comes in when the lease is over, and not before
        gate.open();
        fresh
    };
    let (stale, fresh) = tokio::join!(stale, fresh);
    assert_eq!((stale.status, fresh.status), (StatusCode::CONFLICT, StatusCode::OK));
    assert_eq!(stale.header("retry-after"), None);
    assert_eq!(site.stored_value(&client, NAME).await.as_deref(), Some("fresh"));
}

/// A handler that reads the counter, is stopped on its first run, and adds what its body says.
fn interrupted(gate: Arc<Gate>, runs: Arc<AtomicUsize>) -> impl Fn(SessionLayer) -> Router {
    move |layer| {
        let (gate, runs) = (Arc::clone(&gate), Arc::clone(&runs));
        let add = move |session: Session, body: String| async move {
            let count = session.get(COUNT)?.unwrap_or(0);
            if runs.fetch_add(1, SeqCst) == 0 {
                gate.pass().await;
            }
            session.insert(COUNT, &(count + body.parse::<u64>().unwrap()))?;
            Ok::<_, Rejection>(body)
        };
        Router::new()
            .route("/add", post(add).layer(RetryLayer::default().max_body(8)))
            .route("/update", get(count))
            .route("/start", get(start))
            .layer(layer)
    }
}

async fn a_handler_runs_again_with_the_same_request<B: Backend>() {
    let (gate, runs) = (Gate::new(), Arc::<AtomicUsize>::default());
    let site = Site::<B>::start(interrupted(Arc::clone(&gate), Arc::clone(&runs))).await;
    let client = Client::default();
    client.get(&site.a, "/start").await;
    let add = client.post(&site.a, "/add", "10");
    let between = async {
        gate.reached().await;
        client.get(&site.b, "/update").await;
        gate.open();
    };
    let (add, ()) = tokio::join!(add, between);
    assert_eq!((add.status, add.body.as_str(), runs.load(SeqCst)), (StatusCode::OK, "10", 2));
    assert_eq!(site.stored_value(&client, COUNT).await, Some(11));
}

async fn what_cannot_be_repeated_runs_once<B: Backend>() {
    let chunks = || {
        let chunk = http_body::Frame::data(bytes::Bytes::from_static(b"10"));
        StreamBody::new(futures_util::stream::iter([Ok::<_, std::io::Error>(chunk)]))
    };
    for long in [true, false] {
        let (gate, runs) = (Gate::new(), Arc::<AtomicUsize>::default());
        let site = Site::<B>::start(interrupted(Arc::clone(&gate), Arc::clone(&runs))).await;
        let client = Client::default();
        client.get(&site.a, "/start").await;
        let add = async {
            let request = client.request(Method::POST, "/add", "000000010");
            match long {
                true => client.send(&site.a, request).await,
                false => client.send(&site.a, request.map(|_| chunks())).await, // of unknown length
            }
        };
        let between = async {
            gate.reached().await;
            client.get(&site.b, "/update").await;
            gate.open();
        };
        let (add, ()) = tokio::join!(add, between);
        assert_eq!((add.unwrap().status, runs.load(SeqCst)), (StatusCode::CONFLICT, 1), "long: {long}");
        assert_eq!(site.stored_value(&client, COUNT).await, Some(1));
    }
}

async fn reruns_are_bounded<B: Backend>() {
    // Another request gets in between on every run, as long as this one takes no lock.
    let runs = Arc::<AtomicUsize>::default();
    let ran = Arc::clone(&runs);
    let unlucky = move |session: Session, handle: session_tower::SessionHandle| async move {
        let count = session.get(COUNT)?.unwrap_or(0);
        ran.fetch_add(1, SeqCst);
        let id = session.id().unwrap();
        if session.access() != session_core::Access::Exclusive {
            handle.sessions().update(&id, |other| other.update(COUNT, |count| *count += 1)).await?;
        }
        session.insert(COUNT, &(count + 100))?;
        Ok::<_, Rejection>(())
    };
    for (attempts, status, count) in [(2, StatusCode::CONFLICT, 2), (3, StatusCode::OK, 102)] {
        runs.store(0, SeqCst);
        let unlucky = unlucky.clone();
        let site = Site::<B>::start(move |layer| {
            let retry = RetryLayer::default().attempts(attempts);
            Router::new()
                .route("/start", get(start))
                .route("/", get(unlucky.clone()).layer(retry))
                .layer(layer)
        })
        .await;
        let client = Client::default();
        client.get(&site.a, "/start").await;
        assert_eq!(client.get(&site.a, "/").await.status, status);
        assert_eq!(runs.load(SeqCst), attempts as usize);
        assert_eq!(site.stored_value(&client, COUNT).await, Some(count));
    }
}

/// Without fencing a writer without a lock gets past a holder: the holder is refused, and runs once all the
/// same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exclusive_handler_never_runs_again() {
    let runs = Arc::<AtomicUsize>::default();
    let ran = Arc::clone(&runs);
    let charge = move |session: ExclusiveSession, handle: session_tower::SessionHandle| async move {
        ran.fetch_add(1, SeqCst);
        let id = session.id().unwrap();
        handle.sessions().update(&id, |other| other.update(COUNT, |count| *count += 1)).await?;
        session.insert(NAME, "charged")?;
        Ok::<_, Rejection>(())
    };
    let store = Pair(session_core::MemoryStore::default(), MemoryLock::default());
    let sessions = Sessions::builder(store).lease(LONG).max_hold(LONG).build().unwrap();
    let app = Router::new()
        .route("/start", get(start))
        .route("/", get(charge))
        .layer(RetryLayer::default())
        .layer(SessionLayer::new(sessions.clone()));
    let server = crate::support::Server::start(app).await;
    let client = Client::default();
    client.get(&server, "/start").await;
    assert_eq!(client.get(&server, "/").await.status, StatusCode::CONFLICT);
    assert_eq!(runs.load(SeqCst), 1);
    let stored = sessions.read(&client.id().unwrap()).await.unwrap().unwrap();
    assert_eq!((stored.get(COUNT).unwrap(), stored.get(NAME).unwrap()), (Some(1), None));
}

/// The first holder who writes is told that its lease is over, and it is.
#[derive(Debug)]
struct LosesOneLock(Arc<dyn LockingStore>, AtomicUsize);

#[async_trait]
impl Wrapper for LosesOneLock {
    fn inner(&self) -> &Arc<dyn LockingStore> {
        &self.0
    }

    async fn replace_and_release(
        &self,
        grant: &Grant,
        expected: Version,
        put: &Put,
    ) -> session_core::Result<Replaced> {
        if self.1.fetch_add(1, SeqCst) == 0 {
            assert_eq!(self.0.release(grant).await?, Released::Freed);
        }
        self.0.replace_and_release(grant, expected, put).await
    }
}

/// It was the layer that took the lock, and the handler did nothing but change the session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_runs_again_when_the_lock_of_its_rerun_is_lost() {
    let runs = Arc::<AtomicUsize>::default();
    let ran = Arc::clone(&runs);
    let unlucky = move |session: Session, handle: session_tower::SessionHandle| async move {
        let count = session.get(COUNT)?.unwrap_or(0);
        if ran.fetch_add(1, SeqCst) < 2 {
            let id = session.id().unwrap();
            handle.sessions().update(&id, |other| other.update(COUNT, |count| *count += 1)).await?;
        }
        session.insert(COUNT, &(count + 100))?;
        Ok::<_, Rejection>(())
    };
    let store = wrap(LosesOneLock(Arc::new(session_core::MemoryStore::default()), AtomicUsize::new(0)));
    let sessions = Sessions::builder(store).build().unwrap();
    let app = Router::new()
        .route("/start", get(start))
        .route("/", get(unlucky))
        .layer(RetryLayer::default())
        .layer(SessionLayer::new(sessions.clone()));
    let server = crate::support::Server::start(app).await;
    let client = Client::default();
    client.get(&server, "/start").await;
    assert_eq!(client.get(&server, "/").await.status, StatusCode::OK);
    assert_eq!(
        runs.load(SeqCst),
        4,
        "twice without the lock, once with one that is lost, once with one that stays"
    );
    let stored = sessions.read(&client.id().unwrap()).await.unwrap().unwrap();
    assert_eq!(stored.get(COUNT).unwrap(), Some(102));
}
