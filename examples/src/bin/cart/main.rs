//! A small shop that shows the race: a page fires requests in parallel, and shows what each strategy kept of
//! them, and how long it took.
//!
//! ```sh
//! cargo run -p examples --bin cart                        # in memory
//! cargo run -p examples --bin cart -- file:///tmp/shop    # in files
//! ```
//!
//! Then open <http://127.0.0.1:3000>. The three shops differ in one word each: `Session` (the default) runs
//! requests in parallel and loses nothing, `ExclusiveSession` queues them, and `blind` is what most session
//! stores do; there is no such thing in the library, so it is made here.

mod blind;

use axum::{
    Json, Router,
    extract::{Path, Query},
    response::Html,
    routing::{get, post},
};
use serde::Deserialize;
use session_store::{
    Key, Sessions, Store,
    http::{CookieConfig, ExclusiveSession, ReadSession, Rejection, Session, SessionLayer},
};
use std::time::Duration;

const CART: Key<Vec<u32>> = Key::new("cart");

/// What every request does besides: asks a database, a shipping service.
#[derive(Deserialize)]
struct Work {
    ms: u64,
}

impl Work {
    async fn pass(&self) {
        tokio::time::sleep(Duration::from_millis(self.ms.min(1_000))).await;
    }
}

async fn add(Path(item): Path<u32>, Query(work): Query<Work>, session: Session) -> Result<(), Rejection> {
    work.pass().await;
    session.update(CART, move |cart| cart.push(item))?;
    Ok(())
}

async fn add_exclusively(
    Path(item): Path<u32>,
    Query(work): Query<Work>,
    session: ExclusiveSession,
) -> Result<(), Rejection> {
    work.pass().await;
    session.update(CART, move |cart| cart.push(item))?;
    Ok(())
}

async fn cart(session: ReadSession) -> Result<Json<Vec<u32>>, Rejection> {
    Ok(Json(session.get(CART)?.unwrap_or_default()))
}

async fn empty(session: Session) -> Result<(), Rejection> {
    Ok(session.insert(CART, &Vec::new())?)
}

/// A shop with a session of its own. (`insecure`, since not every browser takes a `Secure` cookie from
/// `http://127.0.0.1`.)
fn shop(store: &Store, name: &str) -> examples::Result<Router> {
    let sessions = Sessions::builder(store.clone()).lock_wait(Duration::from_secs(60)).build()?;
    let add = if name == "exclusive" { post(add_exclusively) } else { post(add) };
    Ok(Router::new()
        .route("/", get(cart).delete(empty))
        .route("/{item}", add)
        .layer(SessionLayer::new(sessions).cookie(CookieConfig::insecure(name))?))
}

/// Only the scheme: the rest of a URL may have a password in it.
async fn page() -> Html<String> {
    let url = examples::url();
    let backend = url.split(':').next().unwrap_or_default();
    Html(include_str!("page.html").replace("{backend}", backend))
}

#[tokio::main]
async fn main() -> examples::Result {
    let store = examples::store().await?;
    let app = Router::new()
        .route("/", get(page))
        .nest("/blind", blind::shop(store.clone()))
        .nest("/write", shop(&store, "write")?)
        .nest("/exclusive", shop(&store, "exclusive")?);
    examples::serve(app).await
}
