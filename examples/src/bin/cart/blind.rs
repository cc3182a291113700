//! The control: read, change, write back, whatever is there by now. What most session stores do, made here on
//! the driver contract, which has no such verb: a write that is refused is sent again with the version that
//! is there.

use crate::Work;
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header::COOKIE, header::SET_COOKIE},
    response::{AppendHeaders, IntoResponse},
    routing::{get, post},
};
use session_store::{Error, Put, Replaced, SessionId, Store, SystemRandom, Version};
use std::time::Duration;

pub(crate) fn shop(store: Store) -> Router {
    Router::new().route("/", get(cart).delete(empty)).route("/{item}", post(add)).with_state(store)
}

async fn add(
    State(store): State<Store>,
    Path(item): Path<u32>,
    Query(work): Query<Work>,
    headers: HeaderMap,
) -> Result<(), Failed> {
    let id = cookie(&headers).ok_or(Failed)?;
    let (version, mut cart) = load(&store, &id).await?;
    work.pass().await;
    cart.push(item);
    overwrite(&store, &id, version, &cart).await
}

async fn cart(State(store): State<Store>, headers: HeaderMap) -> Result<Json<Vec<u32>>, Failed> {
    let id = cookie(&headers).ok_or(Failed)?;
    Ok(Json(load(&store, &id).await?.1))
}

async fn empty(State(store): State<Store>, headers: HeaderMap) -> Result<impl IntoResponse, Failed> {
    if let Some(id) = cookie(&headers)
        && let Ok((version, _)) = load(&store, &id).await
    {
        overwrite(&store, &id, version, &[]).await?;
        return Ok(AppendHeaders(None));
    }
    let id = SessionId::random(&SystemRandom)?;
    let created = store.insert(&id.storage_key(), &put(&[])?).await?;
    drop(created); // nobody knows this id: it cannot be there
    Ok(AppendHeaders(Some((SET_COOKIE, format!("blind={}; Path=/; HttpOnly; SameSite=Lax", id.expose())))))
}

async fn load(store: &Store, id: &SessionId) -> Result<(Version, Vec<u32>), Failed> {
    let stored = store.load(&id.storage_key()).await?.ok_or(Failed)?;
    Ok((stored.version, serde_json::from_slice(&stored.data)?))
}

/// The mistake.
async fn overwrite(store: &Store, id: &SessionId, mut version: Version, cart: &[u32]) -> Result<(), Failed> {
    let put = put(cart)?;
    loop {
        match store.replace(&id.storage_key(), version, &put).await? {
            Replaced::Done(_) => return Ok(()),
            Replaced::Conflict(fresh) => version = fresh.version, // and what it holds is gone
            Replaced::Missing | Replaced::NotHolder(_) => return Err(Failed),
        }
    }
}

fn put(cart: &[u32]) -> Result<Put, Failed> {
    Ok(Put::new(serde_json::to_vec(cart)?.into(), Duration::from_mins(30)))
}

fn cookie(headers: &HeaderMap) -> Option<SessionId> {
    let cookies = headers.get(COOKIE)?.to_str().ok()?;
    cookies.split(';').find_map(|pair| SessionId::parse(pair.trim().strip_prefix("blind=")?))
}

/// 500, without a word: this is not the part to learn from.
pub(crate) struct Failed;

impl From<Error> for Failed {
    fn from(_: Error) -> Self {
        Self
    }
}

impl From<serde_json::Error> for Failed {
    fn from(_: serde_json::Error) -> Self {
        Self
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> axum::response::Response {
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }
}
