//! Handlers that fail, clients that go away, stores that do: what is stored then, and what is not.

use crate::{
    backends::{Backend, on_each_backend},
    support::{Client, Gate, Site},
};
use axum::{
    Router,
    body::Body,
    http::Response,
    middleware::{Next, from_fn},
    response::IntoResponse,
    routing::get,
};
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use session_core::{Effect, ErrorKind, Key};
use session_tower::{
    ExclusiveSession, Failure, ReadSession, Rejection, Session, SessionHandle, SessionLayer, WhenDown,
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};

const COUNT: Key<u64> = Key::new("count");

on_each_backend!(
    nothing_is_asked_of_the_store_for_nothing,
    a_server_error_discards_and_a_client_error_commits,
    a_handler_may_leave_out_what_it_did,
    what_a_timeout_has_cut_off_is_not_stored,
    a_panic_stores_nothing_and_frees_the_lock,
    a_client_that_goes_away_frees_the_lock,
    what_outlives_its_request_holds_nothing,
    a_commit_outlives_its_client,
    an_early_commit_outlives_its_client,
    a_store_goes_away_and_comes_back,
    a_store_that_is_away_at_the_commit,
    after_a_side_effect_nothing_invites_a_repeat,
    readers_can_go_on_without_the_store,
    who_waits_in_vain_is_told_when_to_come_back,
    a_failure_can_be_said_in_other_words,
    an_upgrade_is_stored_first,
    a_stream_begins_when_it_is_stored,
    a_long_handler_commits_early,
    without_its_layer_an_extractor_says_so,
);

async fn count(session: Session) -> Result<(), Rejection> {
    session.update(COUNT, |count| *count += 1)?;
    Ok(())
}

async fn look(session: ReadSession) -> Result<String, Rejection> {
    Ok(format!("{:?}", session.get(COUNT)?))
}

async fn charge(session: ExclusiveSession) -> Result<(), Rejection> {
    session.update(COUNT, |count| *count += 1)?;
    Ok(())
}

fn routes() -> Router {
    Router::new()
        .route("/count", get(count))
        .route("/look", get(look))
        .route("/charge", get(charge))
        .route("/nothing", get(async |_: Session| "nothing"))
        .route("/plain", get(async || "plain"))
}

fn app(layer: SessionLayer) -> Router {
    routes().layer(layer)
}

async fn nothing_is_asked_of_the_store_for_nothing<B: Backend>() {
    let site = Site::<B>::start(app).await;
    let bot = Client::default();
    for path in ["/nothing", "/look", "/plain"] {
        let reply = bot.get(&site.a, path).await;
        assert_eq!((reply.status, reply.set_cookie()), (StatusCode::OK, None), "{path}");
    }
    assert!(site.faults.calls().is_empty());
    let client = Client::default();
    for (path, calls) in [
        ("/count", &["insert"] as &[_]),
        ("/plain", &[]),
        ("/nothing", &["load"]),
        ("/look", &["load"]),
        ("/count", &["load", "replace"]),
        ("/charge", &["acquire_and_load", "replace_and_release"]),
    ] {
        client.get(&site.b, path).await;
        assert_eq!(site.faults.calls(), calls, "{path}");
    }
}

async fn a_server_error_discards_and_a_client_error_commits<B: Backend>() {
    let answer = |status: u16| {
        get(move |session: Session| async move {
            session.update(COUNT, |count| *count += 1)?;
            Ok::<_, Rejection>(StatusCode::from_u16(status).unwrap())
        })
    };
    let rejected = async |session: Session| {
        session.update(COUNT, |count| *count += 1)?;
        Err::<(), _>(Rejection(session_core::Error::new(ErrorKind::Gone, "test")))
    };
    let site = Site::<B>::start(move |layer| {
        routes()
            .route("/302", answer(302))
            .route("/401", answer(401))
            .route("/499", answer(499))
            .route("/500", answer(500))
            .route("/503", answer(503))
            .route("/rejected", get(rejected))
            .layer(layer)
    })
    .await;
    let client = Client::default();
    assert_eq!(client.get(&site.a, "/500").await.set_cookie(), None);
    client.get(&site.a, "/count").await;
    for (path, count) in [("/302", 2), ("/401", 3), ("/499", 4), ("/500", 4), ("/503", 4), ("/rejected", 4)] {
        client.get(&site.b, path).await;
        assert_eq!(site.stored_value(&client, COUNT).await, Some(count), "{path}");
    }
}

async fn what_a_timeout_has_cut_off_is_not_stored<B: Backend>() {
    let half = async |session: Session| {
        session.update(COUNT, |count| *count += 1)?;
        std::future::pending::<Result<(), Rejection>>().await
    };
    let hurry = async |request, next: Next| {
        let answer = tokio::time::timeout(Duration::from_millis(50), next.run(request)).await;
        answer.unwrap_or_else(|_| StatusCode::REQUEST_TIMEOUT.into_response())
    };
    let site =
        Site::<B>::start(move |layer| routes().route("/half", get(half).layer(from_fn(hurry))).layer(layer))
            .await;
    let client = Client::default();
    client.get(&site.a, "/count").await;
    assert_eq!(client.get(&site.a, "/half").await.status, StatusCode::REQUEST_TIMEOUT);
    assert_eq!(client.get(&site.b, "/look").await.body, "Some(1)");
}

async fn a_handler_may_leave_out_what_it_did<B: Backend>() {
    let refuse = async |session: Session| {
        session.update(COUNT, |count| *count += 100)?;
        session.discard();
        Ok::<_, Rejection>(StatusCode::NOT_FOUND)
    };
    let site = Site::<B>::start(move |layer| routes().route("/refuse", get(refuse)).layer(layer)).await;
    let client = Client::default();
    let nobody = client.get(&site.a, "/refuse").await;
    assert_eq!((nobody.status, nobody.set_cookie()), (StatusCode::NOT_FOUND, None));
    client.get(&site.a, "/count").await;
    let refused = client.get(&site.b, "/refuse").await;
    assert_eq!((refused.status, refused.set_cookie()), (StatusCode::NOT_FOUND, None));
    assert_eq!(site.stored_value(&client, COUNT).await, Some(1));
}

/// `/hold` takes the lock, changes the session and stays; how it leaves is the test's choice.
async fn holding<B: Backend>(
    gate: &Arc<Gate>,
    leave: impl Fn() + Clone + Send + Sync + 'static,
) -> (Site<B>, Client) {
    let gate = Arc::clone(gate);
    let hold = move |session: ExclusiveSession| async move {
        session.update(COUNT, |count| *count += 100)?;
        gate.pass().await;
        leave();
        Ok::<_, Rejection>(())
    };
    let site = Site::<B>::start(move |layer| routes().route("/hold", get(hold.clone())).layer(layer)).await;
    let client = Client::default();
    client.get(&site.a, "/count").await;
    (site, client)
}

async fn a_panic_stores_nothing_and_frees_the_lock<B: Backend>() {
    let gate = Gate::new();
    let (site, client) = holding::<B>(&gate, || panic!("a handler that panics, for a test")).await;
    gate.open();
    let request = client.request(Method::GET, "/hold", "");
    assert!(client.send(&site.a, request).await.is_err());
    assert_eq!(client.get(&site.b, "/charge").await.status, StatusCode::OK); // long before the lease is over
    assert_eq!(site.stored_value(&client, COUNT).await, Some(2));
}

async fn a_client_that_goes_away_frees_the_lock<B: Backend>() {
    let gate = Gate::new();
    let (site, client) = holding::<B>(&gate, || ()).await;
    let request = client.request(Method::GET, "/hold", "");
    tokio::select! {
        _ = client.send(&site.a, request) => panic!("it cannot answer"),
        () = gate.reached() => {} // and the connection is closed
    }
    assert_eq!(client.get(&site.b, "/charge").await.status, StatusCode::OK);
    assert_eq!(site.stored_value(&client, COUNT).await, Some(2));
}

async fn what_outlives_its_request_holds_nothing<B: Backend>() {
    // A task that the handler has started still has the session, and the means to open it.
    let (kept, mut told) = mpsc::unbounded_channel::<(ExclusiveSession, SessionHandle)>();
    let escape = move |session: ExclusiveSession, handle: SessionHandle| async move {
        session.update(COUNT, |count| *count += 100)?;
        kept.send((session, handle)).unwrap();
        std::future::pending::<()>().await;
        Ok::<_, Rejection>(())
    };
    let site =
        Site::<B>::start(move |layer| routes().route("/escape", get(escape.clone())).layer(layer)).await;
    let client = Client::default();
    client.get(&site.a, "/count").await;
    let request = client.request(Method::GET, "/escape", "");
    let (session, handle) = tokio::select! {
        _ = client.send(&site.a, request) => panic!("it cannot answer"),
        kept = told.recv() => kept.unwrap(),
    };
    assert_eq!(client.get(&site.b, "/charge").await.status, StatusCode::OK);
    assert_eq!(session.commit().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(handle.write().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(site.stored_value(&client, COUNT).await, Some(2));
}

async fn a_commit_outlives_its_client<B: Backend>() {
    let site = Site::<B>::start(app).await;
    let client = Client::default();
    client.get(&site.a, "/count").await;
    let gate = site.faults.stop_at("replace");
    let request = client.request(Method::GET, "/count", "");
    tokio::select! {
        _ = client.send(&site.a, request) => panic!("it cannot answer"),
        () = gate.reached() => {}
    }
    gate.open();
    settles(&site, &client, 2).await;
}

async fn an_early_commit_outlives_its_client<B: Backend>() {
    let early = async |session: Session| {
        session.update(COUNT, |count| *count += 1)?;
        session.commit().await?;
        std::future::pending::<()>().await;
        Ok::<_, Rejection>(())
    };
    let site = Site::<B>::start(move |layer| routes().route("/early", get(early)).layer(layer)).await;
    let client = Client::default();
    client.get(&site.a, "/count").await;
    let gate = site.faults.stop_at("replace");
    let request = client.request(Method::GET, "/early", "");
    tokio::select! {
        _ = client.send(&site.a, request) => panic!("it cannot answer"),
        () = gate.reached() => {}
    }
    gate.open();
    settles(&site, &client, 2).await;
}

/// Waits until it is stored, for as long as a test may take.
async fn settles<B: Backend>(site: &Site<B>, client: &Client, count: u64) {
    let stored = async {
        while site.stored_value(client, COUNT).await != Some(count) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), stored).await.expect("it is stored in the end");
}

async fn a_store_goes_away_and_comes_back<B: Backend>() {
    let site = Site::<B>::start(app).await;
    let client = Client::default();
    client.get(&site.a, "/count").await;
    let cookie = client.cookie();
    for effect in [Effect::None, Effect::Unknown] {
        // Opening has no effect, whatever the driver knows.
        site.faults.goes_down(effect);
        for path in ["/count", "/look", "/charge"] {
            let reply = client.get(&site.a, path).await;
            assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
            assert_eq!((reply.header("retry-after"), reply.set_cookie()), (Some("1"), None), "{path}");
        }
        assert_eq!(client.get(&site.b, "/plain").await.status, StatusCode::OK);
        site.faults.comes_back();
    }
    assert_eq!(client.get(&site.b, "/count").await.status, StatusCode::OK);
    assert_eq!(client.cookie(), cookie); // the same session, with all that was in it
    assert_eq!(site.stored_value(&client, COUNT).await, Some(2));
}

async fn a_store_that_is_away_at_the_commit<B: Backend>() {
    let site = Site::<B>::start(app).await;
    let client = Client::default();
    client.get(&site.a, "/count").await;
    for (effect, status, retry) in [
        (Effect::None, StatusCode::SERVICE_UNAVAILABLE, true),
        (Effect::Unknown, StatusCode::INTERNAL_SERVER_ERROR, false),
    ] {
        let gate = site.faults.stop_at("replace");
        let break_it = async {
            gate.reached().await;
            site.faults.goes_down(effect);
            (0..9).for_each(|_| gate.open());
        };
        let (reply, ()) = tokio::join!(client.get(&site.a, "/count"), break_it);
        assert_eq!((reply.status, reply.header("retry-after").is_some()), (status, retry), "{effect:?}");
        assert_eq!(reply.set_cookie(), None);
        site.faults.comes_back();
    }
    assert_eq!(site.stored_value(&client, COUNT).await, Some(1));
}

async fn after_a_side_effect_nothing_invites_a_repeat<B: Backend>() {
    let early = async |session: ExclusiveSession| {
        session.update(COUNT, |count| *count += 1)?;
        Ok::<_, Rejection>(session.commit().await?)
    };
    // Whether the layer's commit fails or the handler's own.
    for path in ["/charge", "/early"] {
        let site = Site::<B>::start(move |layer| routes().route("/early", get(early)).layer(layer)).await;
        let client = Client::default();
        client.get(&site.a, "/count").await;
        let gate = site.faults.stop_at("replace_and_release");
        let break_it = async {
            gate.reached().await;
            site.faults.goes_down(Effect::None);
            gate.open();
        };
        let (reply, ()) = tokio::join!(client.get(&site.a, path), break_it);
        assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR, "{path}");
        assert_eq!(reply.header("retry-after"), None, "{path}");
    }
}

async fn readers_can_go_on_without_the_store<B: Backend>() {
    let gate = Gate::new();
    let between = Arc::clone(&gate);
    let both = move |read: ReadSession, handle: SessionHandle| async move {
        let seen = read.get(COUNT)?;
        between.pass().await;
        let session = handle.write().await?; // the store is back, but this request has been shown an empty session
        session.insert(COUNT, &(seen.unwrap_or(0) + 1))?;
        Ok::<_, Rejection>(())
    };
    let there = async |session: Option<ReadSession>| format!("{}", session.is_some());
    let site = Site::<B>::start(move |layer| {
        routes()
            .route("/there", get(there))
            .route("/both", get(both.clone()))
            .layer(layer.when_down(WhenDown::ReadEmpty))
    })
    .await;
    let client = Client::default();
    client.get(&site.a, "/count").await;
    site.faults.goes_down(Effect::None);
    let reply = client.get(&site.a, "/look").await;
    assert_eq!((reply.status, reply.body.as_str(), reply.set_cookie()), (StatusCode::OK, "None", None));
    assert_eq!(client.get(&site.a, "/there").await.body, "false");
    assert_eq!(client.get(&site.a, "/count").await.status, StatusCode::SERVICE_UNAVAILABLE);
    let come_back = async {
        gate.reached().await;
        site.faults.comes_back();
        gate.open();
    };
    let (reply, ()) = tokio::join!(client.get(&site.a, "/both"), come_back);
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(site.stored_value(&client, COUNT).await, Some(1));
}

async fn who_waits_in_vain_is_told_when_to_come_back<B: Backend>() {
    let gate = Gate::new();
    let held = Arc::clone(&gate);
    let hold = move |_: ExclusiveSession| async move { held.pass().await };
    let site = Site::<B>::with(
        |settings| settings.lock_wait(Duration::from_millis(50)),
        move |layer| routes().route("/hold", get(hold.clone())).layer(layer),
    )
    .await;
    let client = Client::default();
    client.get(&site.a, "/count").await;
    let waiter = async {
        gate.reached().await;
        let waiter = client.get(&site.b, "/charge").await;
        gate.open();
        waiter
    };
    let (holder, waiter) = tokio::join!(client.get(&site.a, "/hold"), waiter);
    assert_eq!((holder.status, waiter.status), (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(waiter.header("retry-after"), Some("1"));
    assert_eq!(site.stored_value(&client, COUNT).await, Some(1));
}

async fn a_failure_can_be_said_in_other_words<B: Backend>() {
    let log = Arc::<Mutex<Vec<ErrorKind>>>::default();
    let seen = Arc::clone(&log);
    let own = async || Rejection(session_core::Error::new(ErrorKind::Conflict, "test")).into_response();
    let site = Site::<B>::start(move |layer| {
        let layer = layer.on_failure(|error, mut response| {
            *response.body_mut() = format!("{:?}", error.kind()).into();
            if error.kind() == ErrorKind::Unavailable {
                *response.status_mut() = StatusCode::IM_A_TEAPOT;
            }
            response
        });
        let seen = Arc::clone(&seen);
        let note = move |response: Response<Body>| {
            if let Some(failure) = response.extensions().get::<Failure>() {
                seen.lock().unwrap().push(failure.kind());
            }
            std::future::ready(response)
        };
        routes().route("/own", get(own)).layer(layer).layer(axum::middleware::map_response(note))
    })
    .await;
    let client = Client::default();
    let reply = client.get(&site.a, "/own").await;
    assert_eq!((reply.status, reply.body.as_str()), (StatusCode::CONFLICT, "Conflict"));
    client.get(&site.a, "/count").await;
    site.faults.goes_down(Effect::None);
    let reply = client.get(&site.a, "/count").await;
    assert_eq!((reply.status, reply.body.as_str()), (StatusCode::IM_A_TEAPOT, "Unavailable"));
    assert_eq!(*log.lock().unwrap(), [ErrorKind::Conflict, ErrorKind::Unavailable]);
}

async fn an_upgrade_is_stored_first<B: Backend>() {
    let echo = async |session: Session, mut request: axum::extract::Request| {
        session.update(COUNT, |count| *count += 1)?;
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut word = [0; 4];
            io.read_exact(&mut word).await.unwrap();
            io.write_all(&word).await.unwrap();
        });
        let response =
            Response::builder().status(101).header("upgrade", "echo").header("connection", "upgrade");
        Ok::<_, Rejection>(response.body(Body::empty()).unwrap())
    };
    let site = Site::<B>::start(move |layer| routes().route("/echo", get(echo)).layer(layer)).await;
    let client = Client::default();
    client.get(&site.a, "/count").await;
    let gate = site.faults.stop_at("replace");
    let mut request = client.request(Method::GET, "/echo", "");
    request.headers_mut().insert("upgrade", "echo".parse().unwrap());
    request.headers_mut().insert("connection", "upgrade".parse().unwrap());
    let order = Mutex::new(Vec::new());
    let upgraded = async {
        let (response, connection) = client.head(&site.a, request).await.unwrap();
        order.lock().unwrap().push("head");
        (response, connection)
    };
    let stored = async {
        gate.reached().await;
        // The head would be here by now if it did not wait: the loopback takes microseconds.
        tokio::time::sleep(Duration::from_millis(50)).await;
        order.lock().unwrap().push("stored");
        gate.open();
    };
    let ((response, _connection), ()) = tokio::join!(upgraded, stored);
    assert_eq!(*order.lock().unwrap(), ["stored", "head"]);
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(site.stored_value(&client, COUNT).await, Some(2));
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    io.write_all(b"ping").await.unwrap();
    let mut word = [0; 4];
    io.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"ping");
}

async fn a_stream_begins_when_it_is_stored<B: Backend>() {
    let gate = Gate::new();
    let more = Arc::clone(&gate);
    let stream = move |session: ExclusiveSession| async move {
        session.update(COUNT, |count| *count += 1)?;
        let chunks = futures_util::stream::unfold((session, more, 0), |(session, more, n)| async move {
            if n == 2 {
                return None;
            }
            more.pass().await;
            let refused = session.insert(COUNT, &99).unwrap_err().kind(); // the body comes after the commit
            let chunk = format!("{:?} {refused:?};", session.get(COUNT).unwrap());
            Some((Ok::<_, std::io::Error>(chunk), (session, more, n + 1)))
        });
        Ok::<_, Rejection>(Body::from_stream(chunks))
    };
    let site =
        Site::<B>::start(move |layer| routes().route("/stream", get(stream.clone())).layer(layer)).await;
    let client = Client::default();
    client.get(&site.a, "/count").await;
    let request = client.request(Method::GET, "/stream", "");
    let (response, _connection) = client.head(&site.a, request).await.unwrap();
    gate.reached().await;
    // It is stored and the lock is free, while the body is still to come.
    assert_eq!(client.get(&site.b, "/charge").await.status, StatusCode::OK);
    assert_eq!(site.stored_value(&client, COUNT).await, Some(3));
    gate.open();
    gate.open();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "Some(2) Closed;Some(2) Closed;");
}

async fn a_long_handler_commits_early<B: Backend>() {
    let gate = Gate::new();
    let long = Arc::clone(&gate);
    let early = move |session: ExclusiveSession, handle: SessionHandle| async move {
        session.update(COUNT, |count| *count += 1)?;
        session.commit().await?;
        long.pass().await;
        let id = session.id().unwrap();
        handle.sessions().update(&id, |session| session.update(COUNT, |count| *count += 10)).await?;
        Ok::<_, Rejection>(StatusCode::INTERNAL_SERVER_ERROR) // what was committed stays
    };
    let site = Site::<B>::start(move |layer| routes().route("/early", get(early.clone())).layer(layer)).await;
    let client = Client::default();
    let meanwhile = async {
        gate.reached().await;
        gate.open();
    };
    // A new session, too, and its cookie goes out with whatever response there is.
    let (reply, ()) = tokio::join!(client.get(&site.a, "/early"), meanwhile);
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(site.stored_value(&client, COUNT).await, Some(11));
    let meanwhile = async {
        gate.reached().await;
        let seen = client.get(&site.b, "/look").await.body;
        assert_eq!(client.get(&site.b, "/charge").await.status, StatusCode::OK);
        gate.open();
        seen
    };
    let (_, seen) = tokio::join!(client.get(&site.a, "/early"), meanwhile);
    assert_eq!(seen, "Some(12)");
    assert_eq!(site.stored_value(&client, COUNT).await, Some(23));
}

async fn without_its_layer_an_extractor_says_so<B: Backend>() {
    let site = Site::<B>::start(|_| routes()).await;
    let reply = Client::default().get(&site.a, "/count").await;
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
    let retried = Site::<B>::start(|_| routes().layer(session_tower::RetryLayer::default())).await;
    let reply = Client::default().get(&retried.a, "/plain").await;
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
}
