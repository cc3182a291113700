//! The suite on Redis, in one process and in four, and what it says of drivers that are wrong. As `… worker`
//! this program is one of the four; any other argument is the pattern of the scenarios to run, without the
//! wrong drivers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is how a test fails")]

mod mutants;

use session_conformance::{
    Instance, Suite,
    servers::redis::{self, RedisServer},
    worker,
    worker::Program,
};
use session_core::{LockingStore, Result, SessionId, SystemRandom};
use session_redis::RedisStore;
use std::{env, sync::Arc};

#[tokio::main]
async fn main() {
    // What begins with a dash is for the standard harness, which this is not.
    let argument = env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    if argument.as_deref() == Some("worker") {
        worker::serve(|address| async move { connect(&address).await }).await;
    }
    if redis::program().is_none() {
        let required = env::var("SESSION_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "redis"), "redis is required and not installed");
        return eprintln!("NOT TESTED: redis-server is not installed (apt-get install redis-server)");
    }
    let server = Arc::new(RedisServer::durable().await.expect("redis-server starts"));
    if argument.is_none() {
        mutants::are_convicted(&server).await;
    }
    let right = Suite::new(move || fresh(Arc::clone(&server), "")).backend("redis").workers(workers());
    right.scenarios(argument).run().await.assert_passed();
}

fn workers() -> Program {
    Program::new(env::current_exe().unwrap(), ["worker"])
}

/// The store at a URL, or the mutant that is named before it.
async fn connect(address: &str) -> Result<Arc<dyn LockingStore>> {
    match address.split_once(' ') {
        Some((mutant, url)) => mutants::connect(mutant, url).await,
        None => Ok(Arc::new(RedisStore::connect_url(address).await?)),
    }
}

/// A prefix of its own for each cell: nothing of the others is seen under it.
async fn fresh(server: Arc<RedisServer>, mutant: &str) -> Result<Instance> {
    let prefix = SessionId::random(&SystemRandom)?.expose();
    let url = format!("{mutant}{}?prefix={prefix}:", server.url());
    Ok(Instance::new(connect(&url).await?).control(server).address(url))
}
