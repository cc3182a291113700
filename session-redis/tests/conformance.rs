//! The suite, on a private server that keeps what it acknowledged.

mod common;

use session_conformance::{Instance, Suite, servers::redis::RedisServer};
use session_redis::RedisStore;
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

#[tokio::test(flavor = "multi_thread")]
async fn conformance() {
    let Some(server) = common::server(&["--appendonly", "yes"]).await else { return };
    let server = Arc::new(server);
    Suite::new(move || fresh(Arc::clone(&server))).backend("redis").processes(1).run().await.assert_passed();
}

/// A prefix of its own for each cell: nothing of the others is seen under it.
async fn fresh(server: Arc<RedisServer>) -> session_core::Result<Instance> {
    static CELLS: AtomicU32 = AtomicU32::new(0);
    let url = format!("{}?prefix=cell{}:", server.url(), CELLS.fetch_add(1, Relaxed));
    Ok(Instance::new(Arc::new(RedisStore::connect_url(&url).await?)).control(server).address(url))
}
