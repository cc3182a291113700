//! PostgreSQL: a private cluster, or the user's server, on which each cell gets a schema of its own.

use super::{Cleaner, Running, Started, namespace, place};
use async_trait::async_trait;
use session_conformance::{
    Instance,
    servers::{ServerControl, postgres::PostgresServer},
};
use session_core::Result;
use session_store::postgres::{PostgresConfig, PostgresStore};
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

struct Postgres {
    url: String,
    /// What the schemas of the cells begin with.
    schema: String,
    cells: AtomicU32,
    /// Ours, when it is: then there is power over it.
    server: Option<Arc<PostgresServer>>,
}

pub(super) fn start(url: Option<String>) -> Pin<Box<dyn Future<Output = Started> + Send>> {
    Box::pin(async {
        let postgres = match url {
            Some(url) => match namespace() {
                Ok(name) => Postgres::new(url, format!("conformance_{name}_"), None),
                Err(error) => return Started::Absent(error.to_string()),
            },
            None => match private().await {
                Ok(server) => Postgres::new(server.url(), "cell_".to_owned(), Some(Arc::new(server))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Started::Absent(
                        "its server is not installed: apt-get install postgresql".to_owned(),
                    );
                }
                Err(error) => return Started::Absent(error.to_string()),
            },
        };
        Started::when_it_answers(postgres).await
    })
}

/// With room for the connections of five processes; like PostgreSQL's own default it waits for the disk.
async fn private() -> io::Result<PostgresServer> {
    PostgresServer::with(&["max_connections=300"]).await
}

impl Postgres {
    fn new(url: String, schema: String, server: Option<Arc<PostgresServer>>) -> Self {
        Self { url, schema, cells: AtomicU32::new(0), server }
    }
}

#[async_trait]
impl Running for Postgres {
    fn describe(&self) -> String {
        match &self.server {
            Some(server) => format!("private, {}", server.address()),
            None => place(&self.url),
        }
    }

    async fn instance(&self) -> Result<Instance> {
        let mark = if self.url.contains('?') { '&' } else { '?' };
        let cell = self.cells.fetch_add(1, Relaxed);
        let url = format!("{}{mark}schema={}{cell}", self.url, self.schema);
        let store = PostgresStore::connect(PostgresConfig::from_url(&url)?).await?;
        let instance = Instance::new(Arc::new(store)).address(url.clone());
        Ok(match &self.server {
            Some(server) => instance.control(Arc::clone(server) as Arc<dyn ServerControl>),
            None => instance.guard(Cleaner::new(async move {
                PostgresStore::drop_schema(&PostgresConfig::from_url(&url)?).await
            })),
        })
    }
}
