//! The suite, in both protocols. This program is the test, and with `worker` as its first argument one of the
//! processes of it.

use session_conformance::{
    Instance, Report, Strategy, Suite, scenario::Need, servers::memcached::MemcachedServer, worker,
};
use session_core::{Error, Result};
use session_memcached::{MemcachedConfig, MemcachedStore};
use std::{env, sync::Arc, time::Duration};

#[tokio::main]
async fn main() -> Result<()> {
    if env::args().nth(1).as_deref() == Some("worker") {
        worker::serve(|url| async move { Ok(Arc::new(connect(&url).await?) as _) }).await;
    }
    // Side by side, since most of the time is spent waiting for leases to end. The controls know no protocol:
    // once is enough.
    let (controls, write, exclusive, plain_write, plain_exclusive) = tokio::join!(
        run("meta", &[Strategy::Blind, Strategy::LockOnly]),
        run("meta", &[Strategy::Write, Strategy::Driver]),
        run("meta", &[Strategy::Exclusive]),
        run("plain", &[Strategy::Write, Strategy::Driver]),
        run("plain", &[Strategy::Exclusive]),
    );
    let reports = [controls?, write?, exclusive?, plain_write?, plain_exclusive?].into_iter().flatten();
    let all = reports.reduce(|mut all, more| {
        all.extend(more);
        all
    });
    if let Some(all) = all {
        all.assert_passed();
    }
    Ok(())
}

/// On a server of its own, which is paused and restarted; `None` without one.
async fn run(protocol: &'static str, strategies: &[Strategy]) -> Result<Option<Report>> {
    let server = match MemcachedServer::start().await {
        Ok(server) => server.behind_proxy(Duration::ZERO).await.map(Arc::new),
        Err(error) => Err(error),
    };
    let server = match server {
        Ok(server) => server,
        Err(error) if env::var("SESSION_REQUIRE").is_ok_and(|names| names.contains("memcached")) => {
            return Err(Error::unavailable("conformance", error));
        }
        Err(error) => {
            eprintln!("ABSENT: no memcached ({error}); this test shows nothing");
            return Ok(None);
        }
    };
    let program = env::current_exe().map_err(|error| Error::unavailable("conformance", error))?;
    let suite = Suite::new(move || instance(Arc::clone(&server), protocol))
        .special(Need::LittleMemory, move || little(protocol))
        .backend(format!("memcached ({protocol})"))
        .workers(worker::Program::new(program, ["worker"]))
        .strategies(strategies.iter().copied())
        .scenarios(env::args().nth(1))
        .ops(200);
    Ok(Some(suite.run().await))
}

async fn connect(url: &str) -> Result<MemcachedStore> {
    MemcachedStore::connect(&MemcachedConfig::from_url(url)?).await
}

/// A store with a prefix of its own: what it leaves behind expires.
async fn instance(server: Arc<MemcachedServer>, protocol: &str) -> Result<Instance> {
    let prefix = session_core::SessionId::random(&session_core::SystemRandom)?.expose();
    let url = format!("{}?prefix={prefix}&protocol={protocol}", server.url());
    Ok(Instance::new(Arc::new(connect(&url).await?)).control(server).address(url))
}

/// A server that must evict, for the scenario that is about that: the others keep their records.
async fn little(protocol: &'static str) -> Result<Instance> {
    let server = MemcachedServer::with(&["-m", "8"]).await;
    let server = server.map_err(|error| Error::unavailable("conformance", error))?;
    let store = connect(&format!("{}?protocol={protocol}", server.url())).await?;
    Ok(Instance::new(Arc::new(store)).guard(server))
}
