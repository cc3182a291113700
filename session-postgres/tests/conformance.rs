//! The suite: advisory locks in one process and in four, leases in one, and leases behind a pooler in four.
//! As `… worker` this program is one of the four. An argument with a `/` in it chooses scenarios.

use session_conformance::{
    Instance, Progress, Suite,
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

#[tokio::main]
async fn main() -> Result<()> {
    if env::args().nth(1).as_deref() == Some("worker") {
        worker::serve(|url| async move { open(&url).await }).await;
    }
    let (server, pooler) = match servers().await {
        Ok(servers) => servers,
        Err(error) if env::var("SESSION_REQUIRE").is_ok_and(|names| names.contains("postgres")) => {
            return Err(Error::unavailable("conformance", error));
        }
        Err(error) => {
            eprintln!("ABSENT, nothing was tested: {error}");
            return Ok(());
        }
    };
    let program = env::current_exe().map_err(|error| Error::unavailable("conformance", error))?;
    let suite = |backend, address, lock| {
        let server = server.clone();
        Suite::new(move || fresh(server.clone(), address, lock))
            .backend(backend)
            .workers(Program::new(&program, ["worker"]))
            .scenarios(env::args().skip(1).filter(|pattern| pattern.contains('/')))
            .watch(|progress| {
                if let Progress::Ends(cell) = progress {
                    println!("{}", cell.line());
                }
            })
    };
    suite("postgres", server.address(), "advisory").run().await.assert_passed();
    suite("postgres, lease", server.address(), "lease").processes(1).run().await.assert_passed();
    suite("pgbouncer, lease", pooler.address(), "lease").processes(4).run().await.assert_passed();
    Ok(())
}

async fn servers() -> io::Result<(PostgresServer, PgBouncer)> {
    let server = PostgresServer::start().await?;
    let pooler = PgBouncer::start(&server, &[]).await?;
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
