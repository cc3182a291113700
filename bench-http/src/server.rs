//! The server process: the same little app, without sessions, with ours, and with the peer's.

use crate::Result;
use axum::{Router, extract::Path, routing::get};
use session_store::{Key, Sessions};
use session_tower::{
    CookieConfig, ExclusiveSession, ReadSession, Rejection, RetryLayer, Session, SessionLayer,
};
use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tower_sessions_redis_store::{RedisStore, fred::prelude::*};

const COUNT: Key<u64> = Key::new("count");
/// As many long writers, each with a key of its own.
pub(crate) const TEN: usize = 10;
const WORK: Duration = Duration::from_millis(2);
const LONG: Duration = Duration::from_millis(200);

/// A server of its own, on a free port; killed when it is dropped.
pub(crate) struct Server {
    pub(crate) address: String,
    child: Child,
}

impl Server {
    pub(crate) fn start(url: &str) -> Result<Self> {
        let mut child =
            Command::new(std::env::current_exe()?).args(["serve", url]).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().ok_or("no output")?;
        let address = BufReader::new(stdout).lines().next().ok_or("the server did not start")??;
        Ok(Self { address, child })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::main(worker_threads = 2)]
pub(crate) async fn run(url: &str) -> Result {
    let sessions =
        Sessions::builder(session_store::connect(url).await?).lock_wait(Duration::from_secs(60)).build()?;
    let ours = Router::new()
        .route("/start", get(async |session: Session| Ok::<_, Rejection>(session.insert(COUNT, &0)?)))
        .route("/value", get(async |session: ReadSession| Ok::<_, Rejection>(text(session.get(COUNT)?))))
        .route("/read", get(async |session: ReadSession| Ok::<_, Rejection>(text(session.get(COUNT)?))))
        .route(
            "/write",
            get(async |session: Session| Ok::<_, Rejection>(session.update(COUNT, |n| *n += 1)?)),
        )
        .route("/exclusive", get(async |session: ExclusiveSession| by_hand(&session, Duration::ZERO).await))
        .route("/work/update", get(update))
        .route(
            "/work/retry",
            get(async |session: Session| by_hand(&session, WORK).await).layer(RetryLayer::default()),
        )
        .route("/work/exclusive", get(async |session: ExclusiveSession| by_hand(&session, WORK).await))
        .route(
            "/long/read",
            get(async |session: ReadSession| {
                tokio::time::sleep(LONG).await;
                Ok::<_, Rejection>(text(session.get(COUNT)?))
            }),
        )
        .route(
            "/long/write/{n}",
            get(async |Path(n): Path<usize>, session: Session| {
                tokio::time::sleep(LONG).await;
                Ok::<_, Rejection>(session.update(key(n), |n| *n += 1)?)
            }),
        )
        .route(
            "/long/kept",
            get(async |session: ReadSession| {
                let kept =
                    (0..TEN).map(|n| session.get(key(n))).collect::<session_store::Result<Vec<_>>>()?;
                Ok::<_, Rejection>(text(Some(kept.into_iter().flatten().sum())))
            }),
        )
        .layer(SessionLayer::new(sessions).cookie(CookieConfig::insecure("ours"))?);
    let app = Router::new().route("/plain", get(async || "plain")).nest("/ours", ours);
    let app = if url.starts_with("redis") { app.nest("/peer", peer(url).await?) } else { app };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}

fn key(n: usize) -> Key<u64> {
    const NAMES: [&str; TEN] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    Key::new(NAMES[n % TEN])
}

fn text(count: Option<u64>) -> String {
    count.unwrap_or(0).to_string()
}

async fn update(session: Session) -> Result<(), Rejection> {
    tokio::time::sleep(WORK).await;
    Ok(session.update(COUNT, |count| *count += 1)?)
}

async fn by_hand(session: &Session, work: Duration) -> Result<(), Rejection> {
    let count = session.get(COUNT)?.unwrap_or(0);
    if !work.is_zero() {
        tokio::time::sleep(work).await;
    }
    Ok(session.insert(COUNT, &(count + 1))?)
}

/// The same app with tower-sessions, as its documentation has it.
async fn peer(url: &str) -> Result<Router> {
    use tower_sessions::{Expiry, Session, SessionManagerLayer, cookie::time, session::Error};

    async fn add(session: &Session, work: Duration) -> Result<(), String> {
        let count: u64 = session.get("count").await.map_err(text)?.unwrap_or(0);
        if !work.is_zero() {
            tokio::time::sleep(work).await;
        }
        session.insert("count", count + 1).await.map_err(text)
    }
    fn text(error: Error) -> String {
        error.to_string()
    }
    let pool = Pool::new(Config::from_url(url)?, None, None, None, 6)?;
    pool.connect();
    pool.wait_for_connect().await?;
    let layer = SessionManagerLayer::new(RedisStore::new(pool))
        .with_secure(false)
        .with_name("peer")
        .with_expiry(Expiry::OnInactivity(time::Duration::minutes(30)));
    let value = async |session: Session| {
        session.get::<u64>("count").await.map_err(text).map(|count| count.unwrap_or(0).to_string())
    };
    Ok(Router::new()
        .route("/start", get(async |session: Session| session.insert("count", 0).await.map_err(text)))
        .route("/value", get(value))
        .route("/read", get(value))
        .route("/write", get(async |session: Session| add(&session, Duration::ZERO).await))
        .route("/work/write", get(async |session: Session| add(&session, WORK).await))
        .layer(layer))
}
