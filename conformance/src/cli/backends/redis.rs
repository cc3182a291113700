//! Redis: a private server, or the user's, on which each cell gets a prefix of its own.

use super::{Cleaner, Running, Started, namespace, place};
use async_trait::async_trait;
use session_conformance::{
    Instance,
    scenario::Need,
    servers::{
        ServerControl,
        redis::{RedisSentinels, RedisServer},
    },
};
use session_core::{Error, Result};
use session_store::redis::{RedisConfig, RedisStore};
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

struct Redis {
    url: String,
    /// What the prefixes of the cells begin with.
    prefix: String,
    cells: AtomicU32,
    /// Ours, when it is: then there is power over it.
    server: Option<Arc<RedisServer>>,
}

pub(super) fn start(url: Option<String>) -> Pin<Box<dyn Future<Output = Started> + Send>> {
    Box::pin(async {
        let redis = match url {
            Some(url) => Redis::at(url),
            None => Redis::private().await,
        };
        match redis {
            Ok(redis) => Started::when_it_answers(redis).await,
            Err(Missing::Usage(error)) => Started::Refused(error.to_string()),
            Err(Missing::Server(error)) if error.kind() == io::ErrorKind::NotFound => {
                Started::Absent("its server is not installed: apt-get install redis-server".to_owned())
            }
            Err(Missing::Server(error)) => Started::Absent(error.to_string()),
        }
    })
}

enum Missing {
    Usage(Error),
    Server(io::Error),
}

impl Redis {
    fn at(url: String) -> Result<Self, Missing> {
        let config = RedisConfig::from_url(&url).map_err(Missing::Usage)?;
        let prefix = format!("{}conformance-{}-", config.prefix, namespace().map_err(Missing::Usage)?);
        Ok(Self { url, prefix, cells: AtomicU32::new(0), server: None })
    }

    async fn private() -> Result<Self, Missing> {
        let server = RedisServer::durable().await.map_err(Missing::Server)?;
        let url = server.url();
        Ok(Self { url, prefix: "cell-".to_owned(), cells: AtomicU32::new(0), server: Some(Arc::new(server)) })
    }
}

#[async_trait]
impl Running for Redis {
    fn describe(&self) -> String {
        match &self.server {
            Some(server) => format!("private, {}", server.address()),
            None => place(&self.url),
        }
    }

    async fn instance(&self) -> Result<Instance> {
        // The last of two equal options counts.
        let mark = if self.url.contains('?') { '&' } else { '?' };
        let cell = self.cells.fetch_add(1, Relaxed);
        let url = format!("{}{mark}prefix={}{cell}:", self.url, self.prefix);
        let store = RedisStore::connect_url(&url).await?;
        let instance = Instance::new(Arc::new(store)).address(url.clone());
        Ok(match &self.server {
            Some(server) => instance.control(Arc::clone(server) as Arc<dyn ServerControl>),
            None => instance.guard(Cleaner::new(async move {
                RedisStore::connect_url(&url).await?.purge().await.map(drop)
            })),
        })
    }

    fn specials(&self) -> &'static [Need] {
        if self.server.is_some() { &[Need::Replicas, Need::LittleMemory] } else { &[] }
    }

    async fn special(&self, need: Need) -> Result<Instance> {
        let failed = |error| Error::unavailable("start", error);
        if need == Need::Replicas {
            let servers = Arc::new(RedisSentinels::start().await.map_err(failed)?);
            let store = session_store::connect(&servers.url()).await?;
            return Ok(Instance::new(store).control(servers));
        }
        let little = ["--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru"];
        let server = RedisServer::with(&little).await.map_err(failed)?;
        let store = session_store::connect(&server.url()).await?;
        Ok(Instance::new(store).control(Arc::new(server)))
    }
}
