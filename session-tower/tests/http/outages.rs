//! Servers that hang, cut their connections and die under load: what was acknowledged is there afterwards,
//! and nothing twice.

use crate::{
    backends::{Mortal, on_each_server},
    support::{Client, Server, Site},
};
use axum::{Router, routing::get};
use http::StatusCode;
use session_core::Key;
use session_tower::{ReadSession, Rejection, Session, SessionLayer};
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};
use tokio::time::timeout;

const COUNT: Key<u64> = Key::new("count");
/// For as long as a test may take.
const PATIENCE: Duration = Duration::from_secs(60);

on_each_server!(a_server_that_hangs_is_503_until_it_goes_on, a_server_that_dies_under_load_loses_nothing);

async fn count(session: Session) -> Result<(), Rejection> {
    session.update(COUNT, |count| *count += 1)?;
    Ok(())
}

async fn look(session: ReadSession) -> Result<String, Rejection> {
    Ok(session.get(COUNT)?.unwrap_or(0).to_string())
}

fn app(layer: SessionLayer) -> Router {
    Router::new()
        .route("/count", get(count))
        .route("/look", get(look))
        .route("/plain", get(async || "plain"))
        .layer(layer)
}

/// Asks until the answer is 200.
async fn until_ok(client: &Client, server: &Server, path: &str) -> String {
    let ok = async {
        loop {
            let reply = client.get(server, path).await;
            if reply.status == StatusCode::OK {
                return reply.body;
            }
        }
    };
    timeout(PATIENCE, ok).await.expect("it comes back without a restart of its clients")
}

async fn a_server_that_hangs_is_503_until_it_goes_on<B: Mortal>() {
    let site = Site::on(B::alone().await, |settings| settings, app).await;
    let client = Client::default();
    client.get(&site.a, "/count").await;
    let cookie = client.cookie();
    site.backend.control().pause().await.unwrap();
    for path in ["/count", "/look"] {
        let reply = client.get(&site.a, path).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{path}: {}", reply.body);
        assert_eq!((reply.header("retry-after"), reply.set_cookie()), (Some("1"), None), "{path}");
    }
    assert_eq!(client.get(&site.a, "/plain").await.status, StatusCode::OK);
    site.backend.control().resume().await.unwrap();
    assert_eq!(until_ok(&client, &site.a, "/look").await, "1");
    assert_eq!(until_ok(&client, &site.b, "/look").await, "1");
    assert_eq!(client.cookie(), cookie);
}

/// How many were told that it is stored, and how many that nobody knows.
#[derive(Default)]
struct Told {
    stored: u64,
    perhaps: u64,
}

/// Counts until it is told to stop.
async fn counts(client: &Client, server: &Server, stop: &AtomicBool) -> Told {
    let mut told = Told::default();
    while !stop.load(Relaxed) {
        let reply = client.get(server, "/count").await;
        match reply.status {
            StatusCode::OK => told.stored += 1,
            StatusCode::SERVICE_UNAVAILABLE => assert_eq!(reply.header("retry-after"), Some("1")),
            StatusCode::INTERNAL_SERVER_ERROR => {
                assert_eq!(reply.header("retry-after"), None);
                told.perhaps += 1;
            }
            status => panic!("{status}: {}", reply.body),
        }
    }
    told
}

async fn a_server_that_dies_under_load_loses_nothing<B: Mortal>() {
    let site = Site::on(B::alone().await, |settings| settings, app).await;
    let client = Client::default();
    client.get(&site.a, "/count").await;
    let stop = AtomicBool::new(false);
    let outages = async {
        let reader = client.copy();
        let until_more = async || {
            let before: u64 = until_ok(&reader, &site.a, "/look").await.parse().unwrap();
            let more = async {
                while until_ok(&reader, &site.b, "/look").await.parse::<u64>().unwrap() <= before {}
            };
            timeout(PATIENCE, more).await.expect("they go on");
        };
        for _ in 0..3 {
            site.backend.control().cut().await.unwrap();
            until_more().await;
        }
        if B::KEEPS {
            site.backend.control().restart().await.unwrap();
            until_more().await;
        }
        stop.store(true, Relaxed);
    };
    let tabs = [client.copy(), client.copy(), client.copy(), client.copy()];
    let [a, b, c, d] = &tabs;
    let (a, b, c, d, ()) = tokio::join!(
        counts(a, &site.a, &stop),
        counts(b, &site.b, &stop),
        counts(c, &site.a, &stop),
        counts(d, &site.b, &stop),
        outages
    );
    let told = [a, b, c, d].into_iter().fold(Told { stored: 1, perhaps: 0 }, |sum, told| Told {
        stored: sum.stored + told.stored,
        perhaps: sum.perhaps + told.perhaps,
    });
    let counted = site.stored_value(&client, COUNT).await.unwrap();
    assert!((told.stored..=told.stored + told.perhaps).contains(&counted), "{counted}");
    if !B::KEEPS {
        // What is gone is gone as a whole: no session, and the next one begins anew.
        site.backend.control().restart().await.unwrap();
        assert_eq!(until_ok(&client, &site.a, "/look").await, "0");
        until_ok(&client, &site.b, "/count").await;
        assert_eq!(site.stored_value(&client, COUNT).await, Some(1));
    }
}
