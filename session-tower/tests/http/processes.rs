//! The same app in two processes of the operating system, behind one cookie.

use crate::{
    backends::{Shared, on_each_shared_backend},
    support::{Client, Server},
};
use axum::{Router, routing::get};
use futures_util::future::join_all;
use http::{Method, StatusCode};
use session_core::{Key, Sessions};
use session_tower::{ExclusiveSession, Rejection, RetryLayer, Session, SessionLayer};
use std::{
    io::{BufRead as _, BufReader, Lines},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};
use tokio::time::sleep;

const COUNT: Key<u64> = Key::new("count");
const URL: &str = "SESSION_TOWER_SERVES";

on_each_shared_backend!(what_both_count_is_all_kept, a_killed_holder_frees_the_lock);

/// A server process; killed when it is dropped.
struct Process {
    child: Child,
    /// Open as long as it lives: it has more to say than where it serves, and would die of a broken pipe.
    _output: Lines<BufReader<ChildStdout>>,
    server: Server,
}

impl Process {
    fn start(url: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "processes::serve", "--ignored", "--nocapture"])
            .env(URL, url)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = output
            .by_ref()
            .map(|line| line.unwrap())
            .find_map(|line| line.split_once("serving at ").map(|(_, address)| address.parse().unwrap()));
        Self { child, _output: output, server: Server::at(address.expect("it serves")) }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What the processes run. It ends with the test that has started it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "no test: the server that the tests here start"]
async fn serve() {
    let Ok(url) = std::env::var(URL) else { return };
    let sessions = Sessions::builder(session_store::connect(&url).await.unwrap())
        .lock_wait(Duration::from_secs(30))
        .lease(Duration::from_secs(4)) // a killed process frees its locks after that at the latest
        .build()
        .unwrap();
    let app = Router::new()
        .route("/start", get(async |session: Session| Ok::<_, Rejection>(session.insert(COUNT, &0)?)))
        .route("/update", get(update))
        .route("/retry", get(by_hand).layer(RetryLayer::default()))
        .route("/exclusive", get(exclusive))
        .route("/hang", get(hang))
        .layer(SessionLayer::new(sessions));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("\nserving at {}", listener.local_addr().unwrap());
    axum::serve(listener, app).await.unwrap();
}

const ROUNDS: u64 = 20;
const WORK: Duration = Duration::from_millis(2);

async fn update(session: Session) -> Result<(), Rejection> {
    sleep(WORK).await;
    session.update(COUNT, |count| *count += 1)?;
    Ok(())
}

async fn by_hand(session: Session) -> Result<(), Rejection> {
    let count = session.get(COUNT)?.unwrap_or(0);
    sleep(WORK).await;
    session.insert(COUNT, &(count + 1))?;
    Ok(())
}

async fn exclusive(session: ExclusiveSession) -> Result<(), Rejection> {
    by_hand(Session::clone(&session)).await
}

async fn hang(session: ExclusiveSession) -> Result<(), Rejection> {
    session.insert(COUNT, &99)?;
    std::future::pending().await
}

async fn stored<B: Shared>(backend: &B, client: &Client) -> Option<u64> {
    let sessions = Sessions::builder(backend.open().await).build().unwrap();
    sessions.read(&client.id()?).await.unwrap()?.get(COUNT).unwrap()
}

async fn what_both_count_is_all_kept<B: Shared>() {
    let backend = B::fresh().await;
    let processes = [Process::start(&backend.url()), Process::start(&backend.url())];
    for path in ["/update", "/retry", "/exclusive"] {
        let client = Client::default();
        client.get(&processes[0].server, "/start").await;
        for _ in 0..ROUNDS {
            let replies = (0..8).map(|n| client.get(&processes[n % 2].server, path));
            for reply in join_all(replies).await {
                assert_eq!(reply.status, StatusCode::OK, "{path}: {}", reply.body);
            }
        }
        assert_eq!(stored(&backend, &client).await, Some(8 * ROUNDS), "{path}");
    }
}

async fn a_killed_holder_frees_the_lock<B: Shared>() {
    let backend = B::fresh().await;
    let (mut a, b) = (Process::start(&backend.url()), Process::start(&backend.url()));
    let client = Client::default();
    client.get(&a.server, "/start").await;
    let hang = client.request(Method::GET, "/hang", "");
    let hang = client.send(&a.server, hang);
    let locked = async {
        // It has the lock once nobody else gets it at once.
        let probe = Sessions::builder(backend.open().await).lock_wait(Duration::ZERO).build().unwrap();
        let id = client.id().unwrap();
        while probe.exclusive(&id, async |_| Ok(())).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = hang => panic!("it cannot answer"),
        () = locked => a.kill(),
    }
    assert_eq!(client.get(&b.server, "/exclusive").await.status, StatusCode::OK);
    assert_eq!(stored(&backend, &client).await, Some(1));
}
