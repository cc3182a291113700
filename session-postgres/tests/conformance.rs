//! The suite: advisory locks in one process and in four, leases in one, and leases behind a pooler in four. Then two wrong ways to
//! lock, which it convicts. As `… worker` this program is one of the four. An argument with a `/` in it chooses scenarios.

use session_conformance::{
    Instance, Progress, Strategy, Suite, Verdict,
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
    for mutant in MUTANTS {
        let suite = Suite::new({
            let server = server.clone();
            move || wrong(server.clone(), mutant)
        });
        let suite = suite.backend(mutant.name).workers(Program::new(&program, ["worker"])).processes(4);
        let report = suite
            .scenarios(["concurrency/payment_is_sent_once"])
            .strategies([Strategy::Exclusive])
            .run()
            .await;
        let convicted = report.cells.iter().any(|cell| cell.verdict == Verdict::Fail);
        assert!(convicted, "nobody noticed that {}\n{report}", mutant.name);
    }
    Ok(())
}

/// A store that is made wrong by SQL, in which `CELL` is its schema.
struct Mutant {
    name: &'static str,
    user: &'static str,
    sql: &'static str,
}

static MUTANTS: &[Mutant] = &[
    Mutant {
        name: "locks and reads in one statement",
        user: "postgres",
        sql: r#"DO $do$ BEGIN EXECUTE replace(replace(pg_get_functiondef('CELL.session_wait'::regproc),
            'PERFORM pg_advisory_lock(a_lock);', ''),
            'FROM "CELL".session_records s', 'FROM (SELECT pg_advisory_lock(a_lock)) l, "CELL".session_records s'); END $do$"#,
    },
    Mutant {
        name: "unlocks in the statement that writes",
        user: "hasty",
        // What keeps the lock until the commit does nothing: for this user another function is found under its name.
        sql: "DO $do$ BEGIN
            IF to_regrole('hasty') IS NULL THEN
                CREATE ROLE hasty SUPERUSER LOGIN;
                CREATE SCHEMA hasty;
                CREATE FUNCTION hasty.pg_advisory_xact_lock_shared(bigint) RETURNS void LANGUAGE plpgsql AS $f$ BEGIN END $f$;
                ALTER ROLE hasty SET search_path = hasty, pg_catalog, public;
            END IF;
        END $do$",
    },
];

async fn wrong(server: PostgresServer, mutant: &Mutant) -> Result<Instance> {
    let instance = fresh(server.clone(), server.address(), "advisory").await?;
    let url = instance.address.clone().unwrap_or_default();
    let schema = url.split(['=', '&']).nth(1).unwrap_or_default();
    let sql = mutant.sql.replace("CELL", schema);
    server.query(&sql).await.map_err(|error| Error::backend("wrong", error))?;
    let url = url.replacen("postgres@", &format!("{}@", mutant.user), 1);
    Ok(Instance::new(open(&url).await?).address(url))
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
