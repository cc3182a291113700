//! memcached: a private server, or the user's, on which each cell gets a prefix of its own.
//!
//! memcached cannot list its keys, so what a cell leaves on a user's server goes with its time, as everything
//! there does.

use super::{Running, Started, namespace, place};
use async_trait::async_trait;
use session_conformance::{
    Instance,
    scenario::Need,
    servers::{ServerControl, memcached::MemcachedServer},
};
use session_core::{Error, Result};
use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

struct Memcached {
    url: String,
    /// What the prefixes of the cells begin with.
    prefix: String,
    cells: AtomicU32,
    /// Ours, when it is: then there is power over it.
    server: Option<Arc<MemcachedServer>>,
}

pub(super) fn start(url: Option<String>) -> Pin<Box<dyn Future<Output = Started> + Send>> {
    Box::pin(async {
        let memcached = match url {
            Some(url) => match namespace() {
                Ok(name) => Memcached::new(url, format!("conformance-{name}-"), None),
                Err(error) => return Started::Absent(error.to_string()),
            },
            None => match private().await {
                Ok(server) => Memcached::new(server.url(), "cell-".to_owned(), Some(Arc::new(server))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Started::Absent(
                        "its server is not installed: apt-get install memcached".to_owned(),
                    );
                }
                Err(error) => return Started::Absent(error.to_string()),
            },
        };
        Started::when_it_answers(memcached).await
    })
}

/// Behind a proxy, so that its connections can be cut.
async fn private() -> io::Result<MemcachedServer> {
    MemcachedServer::start().await?.behind_proxy(Duration::ZERO).await
}

impl Memcached {
    fn new(url: String, prefix: String, server: Option<Arc<MemcachedServer>>) -> Self {
        Self { url, prefix, cells: AtomicU32::new(0), server }
    }
}

#[async_trait]
impl Running for Memcached {
    fn describe(&self) -> String {
        match &self.server {
            Some(server) => format!("private, {}", server.address()),
            None => place(&self.url),
        }
    }

    fn direct(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(|server| server.direct_address())
    }

    async fn instance(&self) -> Result<Instance> {
        let mark = if self.url.contains('?') { '&' } else { '?' };
        let cell = self.cells.fetch_add(1, Relaxed);
        let url = format!("{}{mark}prefix={}{cell}:", self.url, self.prefix);
        let instance = Instance::new(session_store::connect(&url).await?).address(url);
        Ok(match &self.server {
            Some(server) => instance.control(Arc::clone(server) as Arc<dyn ServerControl>),
            None => instance,
        })
    }

    fn specials(&self) -> &'static [Need] {
        if self.server.is_some() { &[Need::LittleMemory] } else { &[] }
    }

    async fn special(&self, _: Need) -> Result<Instance> {
        let server = MemcachedServer::with(&["-m", "8"]).await;
        let server = server.map_err(|error| Error::unavailable("start", error))?;
        let store = session_store::connect(&server.url()).await?;
        Ok(Instance::new(store).control(Arc::new(server)))
    }
}
