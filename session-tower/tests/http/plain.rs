//! The layer on a service that knows nothing of axum.

use crate::support::{Client, Server};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use session_core::{Key, MemoryStore, Sessions};
use session_tower::{RetryLayer, SessionHandle, SessionLayer};
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};
use tower_layer::Layer as _;
use tower_service::Service;

const COUNT: Key<u64> = Key::new("count");

#[derive(Clone)]
struct Counter;

impl Service<Request<Full<Bytes>>> for Counter {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        let handle = request.extensions().get::<SessionHandle>().unwrap().clone();
        Box::pin(async move {
            Ok(match count(&handle).await {
                Ok(count) => Response::new(Full::from(count.to_string())),
                Err(error) => session_tower::Rejection(error).response(),
            })
        })
    }
}

async fn count(handle: &SessionHandle) -> session_core::Result<u64> {
    let session = handle.write().await?;
    session.update_with(COUNT, |count| *count.insert(count.unwrap_or(0) + 1))
}

#[tokio::test]
async fn it_counts() {
    let sessions = Sessions::builder(MemoryStore::default()).build().unwrap();
    let mut service = SessionLayer::new(sessions.clone()).layer(RetryLayer::default().layer(Counter));
    let mut call = async |cookie: Option<&str>| {
        let request = Request::builder();
        let request = match cookie {
            Some(cookie) => request.header("cookie", cookie),
            None => request,
        };
        service.call(request.body(Full::default()).unwrap()).await.unwrap()
    };
    let first = call(None).await;
    assert_eq!(first.status(), StatusCode::OK);
    let cookie = first.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    assert!(!call(Some(&cookie)).await.headers().contains_key("set-cookie"));
    let id = Client::with_cookie(cookie).id().unwrap();
    assert_eq!(sessions.read(&id).await.unwrap().unwrap().get(COUNT).unwrap(), Some(2));
}

/// A service may answer with a body of its own type: then it is mapped first, and axum's is one that is made
/// of bytes.
#[tokio::test]
async fn it_is_a_layer_for_axum() {
    let sessions = Sessions::builder(MemoryStore::default()).build().unwrap();
    let app = axum::Router::new()
        .route(
            "/",
            axum::routing::get(async |handle: SessionHandle| {
                count(&handle).await.map(|count| count.to_string()).map_err(session_tower::Rejection)
            }),
        )
        .layer(SessionLayer::new(sessions));
    let server = Server::start(app).await;
    let client = Client::default();
    assert_eq!(client.get(&server, "/").await.body, "1");
    assert_eq!(client.get(&server, "/").await.body, "2");
}
