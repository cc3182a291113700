//! The suite: advisory locks in one process and in four, leases in one, and leases behind a pooler in four.
//! As `… worker` this program is one of the four. An argument with a `/` in it chooses scenarios.

use session_conformance::{
    Instance, Progress, Report, Strategy, Suite,
    servers::postgres::{PgBouncer, PostgresServer},
    worker,
    worker::Program,
};
use session_core::{Error, LockingStore, Result};
use session_postgres::{PostgresConfig, PostgresStore};
use std::{
    env, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

const RIGHT: [Strategy; 3] = [Strategy::Write, Strategy::Exclusive, Strategy::Driver];
const CONTROLS: [Strategy; 2] = [Strategy::Blind, Strategy::LockOnly];

#[tokio::main]
async fn main() -> Result<()> {
    if env::args().nth(1).as_deref() == Some("worker") {
        worker::serve(|url| async move { open(&url).await }).await;
    }
    // Side by side, each with a server of its own, which is paused and restarted: most of the time is spent waiting
    // for leases to end. The controls have a lock, and no business with its mode: once is enough.
    let (advisory, lease, pooled, controls) = tokio::join!(
        run("postgres", "advisory", false, |suite| suite.strategies(RIGHT)),
        run("postgres, lease", "lease", false, |suite| suite.strategies(RIGHT).processes(1)),
        run("pgbouncer, lease", "lease", true, |suite| suite.strategies(RIGHT).processes(4)),
        run("postgres", "advisory", false, |suite| suite.strategies(CONTROLS)),
    );
    let reports = [advisory?, lease?, pooled?, controls?].into_iter().flatten();
    let all = reports.reduce(|mut all, more| {
        all.extend(more);
        all
    });
    if let Some(all) = all {
        all.assert_passed();
    }
    Ok(())
}

/// `None` without a server.
async fn run(
    backend: &'static str,
    lock: &'static str,
    pooled: bool,
    set: impl FnOnce(Suite) -> Suite,
) -> Result<Option<Report>> {
    let (server, pooler) = match servers(pooled).await {
        Ok(servers) => servers,
        Err(error) if env::var("SESSION_REQUIRE").is_ok_and(|names| names.contains("postgres")) => {
            return Err(Error::unavailable("conformance", error));
        }
        Err(error) => {
            eprintln!("ABSENT, {backend} was not tested: {error}");
            return Ok(None);
        }
    };
    let address = pooler.as_ref().map_or(server.address(), PgBouncer::address);
    let program = env::current_exe().map_err(|error| Error::unavailable("conformance", error))?;
    let suite = Suite::new(move || fresh(server.clone(), address, lock))
        .backend(backend)
        .workers(Program::new(&program, ["worker"]))
        .scenarios(env::args().skip(1).filter(|pattern| pattern.contains('/')))
        .watch(|progress| {
            if let Progress::Ends(cell) = progress {
                println!("{}", cell.line());
            }
        });
    Ok(Some(set(suite).run().await))
}

async fn servers(pooled: bool) -> io::Result<(PostgresServer, Option<PgBouncer>)> {
    let server = PostgresServer::start().await?;
    let pooler = if pooled { Some(PgBouncer::start(&server, &[]).await?) } else { None };
    Ok((server, pooler))
}

async fn open(url: &str) -> Result<Arc<dyn LockingStore>> {
    Ok(Arc::new(PostgresStore::connect(PostgresConfig::from_url(url)?).await?))
}

/// A schema of its own, so that nothing of other cells is seen.
async fn fresh(server: PostgresServer, address: SocketAddr, lock: &str) -> Result<Instance> {
    static CELLS: AtomicU32 = AtomicU32::new(0);
    let cell = CELLS.fetch_add(1, Relaxed);
    let url = format!("{}?schema=cell_{cell}&lock={lock}", server.url_at(address));
    Ok(Instance::new(open(&url).await?).control(Arc::new(server)).address(url))
}
