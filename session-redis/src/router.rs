//! Which connection a command goes to: the only one, or the one of its slot.

use crate::{
    config::{RedisConfig, Topology},
    connection::{Dialer, Events, Failure, Finder, Link, Listener},
    script::Call,
};
use redis::{Cmd, RedisError, Value, aio::MultiplexedConnection};
use session_core::Result;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub(crate) enum Router {
    One(Link),
    #[cfg(feature = "cluster")]
    Cluster(crate::cluster::Cluster),
}

impl Router {
    pub(crate) fn new(config: &RedisConfig) -> Result<Self> {
        let dialer = Dialer::new(config)?;
        match &config.topology {
            Topology::Server(node) => Ok(Self::One(Link::new(dialer, Finder::Fixed(node.clone())))),
            #[cfg(feature = "sentinel")]
            Topology::Sentinel { .. } => {
                let sentinels = crate::sentinel::Sentinels::new(config);
                Ok(Self::One(Link::new(dialer, Finder::Sentinel(sentinels.into()))))
            }
            #[cfg(feature = "cluster")]
            Topology::Cluster { nodes } => Ok(Self::Cluster(crate::cluster::Cluster::new(dialer, nodes))),
            #[cfg(not(all(feature = "sentinel", feature = "cluster")))]
            _ => Err(crate::config::invalid("a topology that needs a feature")), // validated above
        }
    }

    /// Whether a session and its user's index may be on two servers.
    pub(crate) fn is_cluster(&self) -> bool {
        match self {
            Self::One(_) => false,
            #[cfg(feature = "cluster")]
            Self::Cluster(_) => true,
        }
    }

    /// Runs a script where its keys are.
    pub(crate) async fn call(&self, call: Call<'_>) -> Result<Value, Failure> {
        let key = call.keys.first().copied().unwrap_or_default();
        match self.send(key, &call.by_hash()).await {
            Err(failure) if failure.code().as_deref() == Some("NOSCRIPT") => {
                self.send(key, &call.in_full()).await
            }
            result => result,
        }
    }

    /// Sends a command to where this key is.
    pub(crate) async fn send(&self, _key: &[u8], command: &Cmd) -> Result<Value, Failure> {
        match self {
            Self::One(link) => link.run(command).await,
            #[cfg(feature = "cluster")]
            Self::Cluster(cluster) => cluster.run(_key, command).await,
        }
    }

    /// The links of all primaries.
    pub(crate) async fn primaries(&self) -> Result<Vec<Link>, Failure> {
        match self {
            Self::One(link) => Ok(vec![link.clone()]),
            #[cfg(feature = "cluster")]
            Self::Cluster(cluster) => cluster.primaries().await,
        }
    }

    /// A connection of its own for messages. In a cluster any node will do: messages reach all of them.
    pub(crate) async fn dial_for_messages(
        &self,
        listener: Arc<Listener>,
    ) -> Result<(MultiplexedConnection, Events), RedisError> {
        match self {
            Self::One(link) => link.dial_for_messages(listener).await,
            #[cfg(feature = "cluster")]
            Self::Cluster(cluster) => cluster.dial_for_messages(listener).await,
        }
    }
}
