//! What a browser gets and what it may send.

use crate::{
    backends::{Backend, on_each_backend},
    support::{Client, Site},
};
use axum::{Router, routing::get};
use http::StatusCode;
use session_core::{Clock, Key, MemoryStore, Sessions, SystemClock, SystemRandom};
use session_tower::{CookieConfig, ReadSession, Rejection, Session, SessionHandle, SessionLayer};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

const COUNT: Key<u64> = Key::new("count");

on_each_backend!(
    a_new_session_is_told_once,
    broken_cookies_are_no_cookies,
    a_response_with_an_id_is_for_one_client,
    a_session_is_bound_to_its_client,
    clearing_does_not_unbind,
);

async fn count(session: Session) -> Result<(), Rejection> {
    session.update(COUNT, |count| *count += 1)?;
    Ok(())
}

async fn look(session: Option<ReadSession>) -> Result<String, Rejection> {
    Ok(match session {
        Some(session) => format!("{:?}", session.get(COUNT)?),
        None => "nobody".to_owned(),
    })
}

fn routes() -> Router {
    Router::new()
        .route("/count", get(count))
        .route("/look", get(look))
        .route("/nothing", get(async |_: Session| ()))
        .route("/plain", get(async || ()))
        .route("/leave", get(async |session: Session| Ok::<_, Rejection>(session.destroy()?)))
}

fn app(layer: SessionLayer) -> Router {
    routes().layer(layer)
}

async fn a_new_session_is_told_once<B: Backend>() {
    let site = Site::<B>::start(app).await;
    let client = Client::default();
    let first = client.get(&site.a, "/count").await;
    let id = client.id().unwrap().expose();
    assert_eq!(
        first.set_cookie().unwrap(),
        format!("__Host-id={id}; Path=/; Secure; HttpOnly; SameSite=Lax")
    );
    for path in ["/count", "/look", "/nothing"] {
        assert_eq!(client.get(&site.b, path).await.set_cookie(), None, "{path}");
    }
    assert_eq!(client.id().unwrap().expose(), id);
}

async fn broken_cookies_are_no_cookies<B: Backend>() {
    let site = Site::<B>::start(app).await;
    let client = Client::default();
    client.get(&site.a, "/count").await;
    let good = client.cookie().unwrap();
    let broken = [
        good[..good.len() - 1].to_owned(),
        format!("{good}A"),
        format!("{good}; {good}"),
        format!("{good}; x={}", "y".repeat(20_000)),
        "__Host-id=".to_owned(),
        "__Host-id=../../etc/passwd".to_owned(),
        format!("__Host-id={}", "x".repeat(4_000)),
        "=; ;;,\"".to_owned(),
    ];
    site.faults.calls();
    for cookie in broken {
        let client = Client::with_cookie(cookie.clone());
        let reply = client.get(&site.a, "/look").await;
        assert_eq!(
            (reply.status, reply.body.as_str(), reply.set_cookie()),
            (StatusCode::OK, "nobody", None),
            "{cookie}"
        );
        assert!(site.faults.calls().is_empty(), "{cookie}");
        // And who puts something in gets a session of his own.
        let reply = client.get(&site.a, "/count").await;
        assert_eq!((reply.status, reply.set_cookie().is_some()), (StatusCode::OK, true), "{cookie}");
        assert_eq!(site.faults.calls(), ["insert"]);
    }
    assert_eq!(client.get(&site.b, "/look").await.body, "Some(1)");
}

async fn a_response_with_an_id_is_for_one_client<B: Backend>() {
    let says = |cache: &'static str, vary: &'static str| {
        get(move |session: Session| async move {
            session.update(COUNT, |count| *count += 1)?;
            Ok::<_, Rejection>(([("cache-control", cache), ("vary", vary)], ""))
        })
    };
    let site = Site::<B>::start(move |layer| {
        routes()
            .route("/public", says("public, max-age=60", "accept"))
            .route("/private", says("max-age=60, Private", "accept, Cookie"))
            .layer(layer)
    })
    .await;
    let caching = async |client: &Client, path| {
        let reply = client.get(&site.a, path).await;
        let vary =
            reply.headers.get_all("vary").iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        (reply.header("cache-control").map(str::to_owned), vary.join("|"))
    };
    let some = |text: &str| Some(text.to_owned());
    let cases = [
        ("/count", some("no-store"), "cookie", None),
        ("/public", some("no-store"), "accept|cookie", some("public, max-age=60")),
        ("/private", some("max-age=60, Private"), "accept, Cookie", some("max-age=60, Private")),
        ("/look", None, "cookie", None),
        ("/plain", None, "", None),
    ];
    for (path, new, vary, known) in cases {
        let client = Client::default();
        assert_eq!(caching(&client, path).await, (new, vary.to_owned()), "{path}, new");
        assert_eq!(caching(&client, path).await, (known, vary.to_owned()), "{path}, known");
    }
}

fn by_agent(layer: SessionLayer) -> SessionLayer {
    layer.bind(|request| {
        let agent = request.headers.get("user-agent");
        agent.map(|agent| agent.to_str().unwrap().to_owned()).unwrap_or_default()
    })
}

async fn from_agent<B: Backend>(
    site: &Site<B>,
    client: &Client,
    agent: &str,
    path: &str,
) -> crate::support::Reply {
    let mut request = client.request(http::Method::GET, path, "");
    request.headers_mut().insert("user-agent", agent.parse().unwrap());
    client.send(&site.a, request).await.unwrap()
}

async fn a_session_is_bound_to_its_client<B: Backend>() {
    let site = Site::<B>::start(|layer| app(by_agent(layer))).await;
    let client = Client::default();
    from_agent(&site, &client, "fox", "/nothing").await;
    assert_eq!(client.cookie(), None); // to be bound is not to have something in it
    from_agent(&site, &client, "fox", "/count").await;
    let thief = client.copy();
    assert_eq!(from_agent(&site, &thief, "wolf", "/look").await.body, "nobody");
    from_agent(&site, &thief, "wolf", "/leave").await;
    from_agent(&site, &thief, "wolf", "/count").await;
    assert_ne!(thief.cookie(), client.cookie());
    assert_eq!(from_agent(&site, &client, "fox", "/look").await.body, "Some(1)");
    assert_eq!(site.stored(&client).await.unwrap().names(), ["count", "~client"]);
}

async fn clearing_does_not_unbind<B: Backend>() {
    let clear = async |session: Session| {
        session.clear()?;
        session.insert(COUNT, &5)?;
        Ok::<_, Rejection>(())
    };
    let site =
        Site::<B>::start(move |layer| routes().route("/clear", get(clear)).layer(by_agent(layer))).await;
    let client = Client::default();
    from_agent(&site, &client, "fox", "/count").await;
    from_agent(&site, &client, "fox", "/clear").await;
    assert_eq!(from_agent(&site, &client, "fox", "/look").await.body, "Some(5)");
    assert_eq!(from_agent(&site, &client.copy(), "wolf", "/look").await.body, "nobody");
}

#[derive(Debug, Default)]
struct Ahead(Mutex<Duration>);

impl Ahead {
    fn by(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }
}

impl Clock for Ahead {
    fn now(&self) -> Duration {
        SystemClock.now() + *self.0.lock().unwrap()
    }
}

/// A cookie that outlives the browser ends with its session: it is sent again whenever that slides, and only
/// then.
#[tokio::test]
async fn a_persistent_cookie_follows_its_session() {
    let clock = Arc::<Ahead>::default();
    let store = MemoryStore::new(clock.clone(), Arc::new(SystemRandom));
    let sessions = Sessions::builder(store)
        .clock(clock.clone())
        .idle_timeout(Duration::from_secs(1_000))
        .max_lifetime(Duration::from_secs(1_500))
        .build()
        .unwrap();
    let rotate = async |session: Session| Ok::<_, Rejection>(session.rotate()?);
    let logout = async |session: Session, _: SessionHandle| Ok::<_, Rejection>(session.destroy()?);
    let layer = SessionLayer::new(sessions).cookie(CookieConfig::insecure("id").persistent()).unwrap();
    let app = routes().route("/rotate", get(rotate)).route("/logout", get(logout)).layer(layer);
    let server = crate::support::Server::start(app).await;
    let client = Client::default();
    let seconds = |reply: crate::support::Reply| {
        let (_, age) = reply.set_cookie()?.split_once("Max-Age=")?;
        Some(age.split(';').next().unwrap().parse::<u64>().unwrap())
    };
    assert_eq!(seconds(client.get(&server, "/count").await), Some(1_000));
    assert_eq!(seconds(client.get(&server, "/look").await), None); // it has not slid
    clock.by(Duration::from_secs(200));
    assert_eq!(seconds(client.get(&server, "/look").await), Some(1_000)); // it has: reading is using
    assert_eq!(seconds(client.get(&server, "/look").await), None);
    assert_eq!(seconds(client.get(&server, "/count").await), Some(1_000));
    clock.by(Duration::from_secs(900));
    let left = seconds(client.get(&server, "/count").await).unwrap();
    assert!((390..=400).contains(&left), "{left}"); // never beyond the maximum
    let left = seconds(client.get(&server, "/rotate").await).unwrap();
    assert!((390..=400).contains(&left), "{left}"); // of the session, and not of what is left under the old id
    assert_eq!(seconds(client.get(&server, "/logout").await), Some(0));
}
