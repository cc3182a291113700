//! Where sessions are kept: in memory, in files, and in servers that the tests start themselves.

use session_conformance::servers::{
    ServerControl, memcached, memcached::MemcachedServer, postgres, postgres::PostgresServer, redis,
    redis::RedisServer,
};
use session_core::{LockingStore, MemoryStore};
use std::{
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tempfile::TempDir;
use tokio::sync::Mutex;

/// Where sessions are kept: what a test needs of a backend.
pub(crate) trait Backend: Send + Sync + 'static {
    /// Whether its server is installed. Where it is required ([`SESSION_REQUIRE`](required)) and is not, the
    /// test fails.
    fn is_there() -> bool {
        true
    }
    /// An empty place of its own.
    async fn fresh() -> Self;
    /// What one server process would open.
    async fn open(&self) -> Arc<dyn LockingStore>;
}

/// A backend that several processes can open.
pub(crate) trait Shared: Backend {
    fn url(&self) -> String;
}

/// A backend whose server can be hurt.
pub(crate) trait Mortal: Shared {
    /// What it acknowledged is there after its server was killed.
    const KEEPS: bool;
    /// On a server of its own.
    async fn alone() -> Self;
    fn control(&self) -> &dyn ServerControl;
}

/// The same tests for each backend.
macro_rules! on_each_backend {
    ($($test:ident),* $(,)?) => {
        $crate::backends::on_each_backend!(@ memory, Memory, $($test),*);
        $crate::backends::on_each_shared_backend!($($test),*);
    };
    (@ $name:ident, $backend:ident, $($test:ident),*) => {
        mod $name {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    if <$crate::backends::$backend as $crate::backends::Backend>::is_there() {
                        super::$test::<$crate::backends::$backend>().await;
                    }
                }
            )*
        }
    };
}

/// The same for those that several processes can open.
macro_rules! on_each_shared_backend {
    ($($test:ident),* $(,)?) => {
        $crate::backends::on_each_backend!(@ file, File, $($test),*);
        $crate::backends::on_each_server!($($test),*);
    };
}

/// The same for those with a server.
macro_rules! on_each_server {
    ($($test:ident),* $(,)?) => {
        $crate::backends::on_each_backend!(@ redis, Redis, $($test),*);
        $crate::backends::on_each_backend!(@ postgres, Postgres, $($test),*);
        $crate::backends::on_each_backend!(@ memcached, Memcached, $($test),*);
    };
}
pub(crate) use {on_each_backend, on_each_server, on_each_shared_backend};

/// Whether it is installed; says so where it is passed over.
fn is_installed(name: &str, program: Option<PathBuf>) -> bool {
    if program.is_none() {
        let required = std::env::var("SESSION_REQUIRE").unwrap_or_default();
        assert!(
            !required.split(',').any(|required| required == name),
            "{name} is required, and not installed"
        );
        eprintln!("NOT TESTED: {name} is not installed (scripts/install)");
    }
    program.is_some()
}

/// A namespace that no other test has.
fn namespace() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("t{}", NEXT.fetch_add(1, Relaxed))
}

/// The server that tests use side by side: started by the first, stopped when the last one lets go of it.
async fn shared<S>(shared: &Mutex<Weak<S>>, start: impl AsyncFnOnce() -> std::io::Result<S>) -> Arc<S> {
    let mut shared = shared.lock().await;
    if let Some(server) = shared.upgrade() {
        return server;
    }
    let server = Arc::new(start().await.unwrap());
    *shared = Arc::downgrade(&server);
    server
}

pub(crate) struct Memory(MemoryStore);

impl Backend for Memory {
    async fn fresh() -> Self {
        Self(MemoryStore::default())
    }

    async fn open(&self) -> Arc<dyn LockingStore> {
        Arc::new(self.0.clone())
    }
}

pub(crate) struct File(TempDir);

impl Backend for File {
    async fn fresh() -> Self {
        Self(TempDir::new().unwrap())
    }

    async fn open(&self) -> Arc<dyn LockingStore> {
        session_store::connect(&self.url()).await.unwrap()
    }
}

impl Shared for File {
    fn url(&self) -> String {
        format!("file://{}", self.0.path().join("sessions").display())
    }
}

/// One in a namespace of a server.
macro_rules! server {
    ($backend:ident, $server:ident, $name:literal, $program:expr, $start:expr, $alone:expr, keeps: $keeps:literal, $url:literal) => {
        pub(crate) struct $backend {
            server: Arc<$server>,
            namespace: String,
        }

        impl Backend for $backend {
            fn is_there() -> bool {
                is_installed($name, $program)
            }

            async fn fresh() -> Self {
                static SHARED: Mutex<Weak<$server>> = Mutex::const_new(Weak::new());
                Self { server: shared(&SHARED, async || $start.await).await, namespace: namespace() }
            }

            async fn open(&self) -> Arc<dyn LockingStore> {
                session_store::connect(&self.url()).await.unwrap()
            }
        }

        impl Shared for $backend {
            fn url(&self) -> String {
                format!($url, self.server.url(), self.namespace)
            }
        }

        impl Mortal for $backend {
            const KEEPS: bool = $keeps;

            async fn alone() -> Self {
                Self { server: Arc::new($alone.await.unwrap()), namespace: namespace() }
            }

            fn control(&self) -> &dyn ServerControl {
                &*self.server
            }
        }
    };
}

server!(
    Redis, RedisServer, "redis", redis::program(), RedisServer::start(), RedisServer::durable(),
    keeps: true, "{}?prefix={}:"
);
server!(
    Postgres, PostgresServer, "postgres", postgres::program("initdb"), PostgresServer::start(), PostgresServer::start(),
    keeps: true, "{}?schema={}&pool=4"
);
server!(
    Memcached, MemcachedServer, "memcached", memcached::program(), MemcachedServer::start(),
    async { MemcachedServer::start().await?.behind_proxy(Duration::ZERO).await },
    keeps: false, "{}?prefix={}:"
);
