//! Finding the primary that Sentinel knows by a name.
//!
//! Asked for each new connection, and a connection is given up when it is lost, when it hangs, and when its
//! server answers `READONLY`: so a client follows a failover without being told of it.

use crate::{
    config::{Node, RedisConfig, Secret, Topology},
    connection::{Dialer, Events, field},
};
use redis::{ErrorKind as Kind, RedisError, cmd};
use std::sync::Mutex;

/// The sentinels, those that answered last in front.
#[derive(Debug)]
pub(crate) struct Sentinels {
    name: String,
    username: Option<String>,
    password: Option<Secret>,
    nodes: Mutex<Vec<Node>>,
}

impl Sentinels {
    pub(crate) fn new(config: &RedisConfig) -> Self {
        let (nodes, name, username, password) = match &config.topology {
            Topology::Sentinel { sentinels, name, username, password } => {
                (sentinels.clone(), name.clone(), username.clone(), password.clone())
            }
            _ => Default::default(),
        };
        Self { name, username, password, nodes: Mutex::new(nodes) }
    }

    /// A server that a sentinel calls the primary, and that says so itself.
    pub(crate) async fn primary(&self, dialer: &Dialer) -> Result<Node, RedisError> {
        let nodes = self.nodes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let mut last = RedisError::from((Kind::EmptySentinelList, "no sentinel"));
        // One after the other takes a share of the time each, so that one that hangs does not use it up.
        let share = dialer.config().connect_timeout / (nodes.len() as u32 + 1);
        for node in &nodes {
            match tokio::time::timeout(share, self.ask(dialer, node)).await {
                Ok(Ok(primary)) => {
                    self.prefer(node);
                    return Ok(primary);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
            }
        }
        Err(last)
    }

    async fn ask(&self, dialer: &Dialer, sentinel: &Node) -> Result<Node, RedisError> {
        let user = (self.username.as_deref(), self.password.as_ref());
        let mut connection = dialer.connect(sentinel, user, 0, Events::none()).await?;
        let mut question = cmd("SENTINEL");
        question.arg("get-master-addr-by-name").arg(&self.name);
        let Some((host, port)) = question.query_async::<Option<(String, u16)>>(&mut connection).await? else {
            let text = "the sentinel knows no primary of this name";
            return Err((Kind::MasterNameNotFoundBySentinel, text, self.name.clone()).into());
        };
        let primary = Node::new(host, port);
        // For a while after a failover a sentinel may still name the old one, which may be back as a replica.
        let mut server = dialer.dial(&primary, Events::none()).await?;
        // INFO and not ROLE: a user of the server has the right to it in any case.
        let info: String = cmd("INFO").arg("replication").query_async(&mut server).await?;
        match field(&info, "role") {
            Some("master") => Ok(primary),
            _ => Err((Kind::MasterNameNotFoundBySentinel, "what the sentinel names is a replica").into()),
        }
    }

    /// Whoever answered is asked first the next time.
    fn prefer(&self, sentinel: &Node) {
        let mut nodes = self.nodes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(place) = nodes.iter().position(|node| node == sentinel) {
            nodes[..=place].rotate_right(1);
        }
    }
}
