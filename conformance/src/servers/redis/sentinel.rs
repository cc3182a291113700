//! A primary, its replicas, and the sentinels that watch them.

use super::{RedisServer, Reply};
use crate::servers::ServerControl;
use async_trait::async_trait;
use std::{io, net::SocketAddr, time::Duration};
use tokio::time::{Instant, sleep};

/// What the sentinels call the primary.
const NAME: &str = "main";
const PATIENCE: Duration = Duration::from_secs(20);

/// A primary with two replicas and three sentinels, each a process of its own.
#[derive(Debug)]
pub struct RedisSentinels {
    servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
}

impl RedisSentinels {
    /// Starts them; returns when the sentinels know the replicas and each other, so that a failover is
    /// possible.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when redis-server is not installed, otherwise when they do not come
    /// together.
    pub async fn start() -> io::Result<Self> {
        let primary = RedisServer::start().await?;
        let port = primary.address().port();
        let mut servers = vec![primary];
        for _ in 0..2 {
            let replica_of = format!("127.0.0.1 {port}");
            servers.push(
                RedisServer::with(&["--replicaof", &replica_of, "--repl-diskless-sync-delay", "0"]).await?,
            );
        }
        let configuration = format!(
            "sentinel monitor {NAME} 127.0.0.1 {port} 2\nsentinel down-after-milliseconds {NAME} 500\n\
             sentinel failover-timeout {NAME} 3000\nsentinel parallel-syncs {NAME} 2\n"
        );
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(RedisServer::configured(&configuration, &["--sentinel"]).await?);
        }
        let all = Self { servers, sentinels };
        all.until_watching().await?;
        Ok(all)
    }

    /// The URL for clients.
    #[must_use]
    pub fn url(&self) -> String {
        let sentinels: Vec<_> =
            self.sentinels.iter().map(|sentinel| sentinel.address().to_string()).collect();
        format!("redis+sentinel://{}/{NAME}", sentinels.join(","))
    }

    /// The servers; which of them is the primary changes.
    #[must_use]
    pub fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    /// The server that the sentinels call the primary.
    ///
    /// # Errors
    /// When they name none of ours, or do not answer.
    pub async fn primary(&self) -> io::Result<&RedisServer> {
        let question = ["SENTINEL", "get-master-addr-by-name", NAME];
        let mut error = None;
        for sentinel in &self.sentinels {
            let answer = match sentinel.command(question).await {
                Ok(answer) => answer,
                Err(failed) => {
                    error = Some(failed);
                    continue;
                }
            };
            let port = answer.list().get(1).and_then(Reply::text).and_then(|port| port.parse().ok());
            if let Some(server) = self.servers.iter().find(|server| Some(server.address().port()) == port) {
                return Ok(server);
            }
        }
        Err(error.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
    }

    /// Returns when the sentinels name another primary than this one.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`].
    pub async fn until_failed_over(&self, from: SocketAddr) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.primary().await.is_ok_and(|primary| primary.address() != from) {
            wait(deadline).await?;
        }
        Ok(())
    }

    async fn until_watching(&self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_watching().await {
            wait(deadline).await?;
        }
        Ok(())
    }

    /// Whether the sentinels know the replicas and each other, and the replicas their primary.
    async fn is_watching(&self) -> bool {
        for sentinel in &self.sentinels {
            let Ok(state) = sentinel.command(["SENTINEL", "master", NAME]).await else { return false };
            let fields: Vec<_> = state.list().iter().filter_map(Reply::text).collect();
            let of =
                |name: &str| fields.iter().position(|field| *field == name).map(|place| fields[place + 1]);
            if (of("num-slaves"), of("num-other-sentinels")) != (Some("2"), Some("2")) {
                return false;
            }
        }
        for replica in &self.servers[1..] {
            let Ok(info) = replica.command(["INFO", "replication"]).await else { return false };
            if !info.text().is_some_and(|info| info.contains("master_link_status:up")) {
                return false;
            }
        }
        true
    }
}

#[async_trait]
impl ServerControl for RedisSentinels {
    /// Kills the primary; returns when the sentinels name another one. The old one stays away.
    async fn restart(&self) -> io::Result<()> {
        let primary = self.primary().await?;
        primary.kill();
        self.until_failed_over(primary.address()).await
    }

    async fn pause(&self) -> io::Result<()> {
        self.primary().await?.pause().await
    }

    async fn resume(&self) -> io::Result<()> {
        for server in self.servers.iter().filter(|server| server.is_running()) {
            server.resume().await?;
        }
        Ok(())
    }

    async fn cut(&self) -> io::Result<()> {
        self.primary().await?.cut().await
    }
}

pub(super) async fn until(mut so: impl AsyncFnMut() -> bool) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !so().await {
        wait(deadline).await?;
    }
    Ok(())
}

/// A moment, before it is looked again.
async fn wait(deadline: Instant) -> io::Result<()> {
    if Instant::now() > deadline {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "the servers do not come together"));
    }
    sleep(Duration::from_millis(20)).await;
    Ok(())
}
