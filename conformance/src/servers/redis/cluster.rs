//! Three primaries that share the slots.

use super::{RedisServer, Reply, sentinel::until};
use crate::servers::free_port;
use std::io;

const SLOTS: u16 = 16384;

/// A cluster of three nodes without replicas, each a process of its own.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
    names: Vec<String>,
}

impl RedisCluster {
    /// Starts them; returns when each of them finds the cluster complete.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when redis-server is not installed, otherwise when they do not come
    /// together.
    pub async fn start() -> io::Result<Self> {
        let (mut nodes, mut names, mut buses) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..3_u16 {
            // By default the bus is 10,000 above the port, which a free port may not leave room for.
            let bus = free_port()?.to_string();
            let arguments =
                ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port", &bus];
            let node = RedisServer::with(&arguments).await?;
            let (first, last) =
                (SLOTS / 3 * number, if number == 2 { SLOTS - 1 } else { SLOTS / 3 * (number + 1) - 1 });
            let (first, last) = (first.to_string(), last.to_string());
            node.command(["CLUSTER", "ADDSLOTSRANGE", &first, &last]).await?;
            node.command(["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]).await?;
            let name = node.command(["CLUSTER", "MYID"]).await?;
            names.push(name.text().unwrap_or_default().to_owned());
            nodes.push(node);
            buses.push(bus);
        }
        for (node, bus) in nodes.iter().zip(&buses).skip(1) {
            let port = node.address().port().to_string();
            nodes[0].command(["CLUSTER", "MEET", "127.0.0.1", &port, bus]).await?;
        }
        until(async || {
            for node in &nodes {
                let Ok(info) = node.command(["CLUSTER", "INFO"]).await else { return false };
                let complete = |info: &str| {
                    info.contains("cluster_state:ok")
                        && info.contains("cluster_known_nodes:3")
                        && info.contains("cluster_slots_ok:16384")
                };
                if !info.text().is_some_and(complete) {
                    return false;
                }
            }
            true
        })
        .await?;
        Ok(Self { nodes, names })
    }

    /// The URL for clients.
    #[must_use]
    pub fn url(&self) -> String {
        let nodes: Vec<_> = self.nodes.iter().map(|node| node.address().to_string()).collect();
        format!("redis+cluster://{}", nodes.join(","))
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// Which node serves the slot of this key, and the slot.
    ///
    /// # Errors
    /// When a node does not answer.
    pub async fn owner_of(&self, key: &str) -> io::Result<(usize, u16)> {
        let slot = self.nodes[0].command(["CLUSTER", "KEYSLOT", key]).await?.number().unwrap_or_default();
        let ranges = self.nodes[0].command(["CLUSTER", "SLOTS"]).await?;
        for range in ranges.list() {
            let [first, last, primary, ..] = range.list() else { continue };
            if !(first.number()..=last.number()).contains(&Some(slot)) {
                continue;
            }
            let port = primary.list().get(1).and_then(Reply::number);
            let owner = self.nodes.iter().position(|node| Some(i64::from(node.address().port())) == port);
            if let Some(owner) = owner {
                return Ok((owner, u16::try_from(slot).unwrap_or_default()));
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Says that the slot is on its way from one node to another. From now on each of its keys is on one of
    /// the two.
    ///
    /// # Errors
    /// When a node refuses.
    pub async fn begin_move(&self, slot: u16, from: usize, to: usize) -> io::Result<()> {
        let slot = slot.to_string();
        self.nodes[to].command(["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.names[from]]).await?;
        self.nodes[from].command(["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.names[to]]).await?;
        Ok(())
    }

    /// Moves up to `count` keys; returns how many there were.
    ///
    /// # Errors
    /// When a node refuses.
    pub async fn move_keys(&self, slot: u16, from: usize, to: usize, count: u32) -> io::Result<usize> {
        let (slot, count) = (slot.to_string(), count.to_string());
        let keys = self.nodes[from].command(["CLUSTER", "GETKEYSINSLOT", &slot, &count]).await?;
        let port = self.nodes[to].address().port().to_string();
        for key in keys.list() {
            let Reply::Bytes(key) = key else { continue };
            let command: [&[u8]; 6] = [b"MIGRATE", b"127.0.0.1", port.as_bytes(), key, b"0", b"5000"];
            self.nodes[from].command(command).await?;
        }
        Ok(keys.list().len())
    }

    /// Gives the slot to the node it was moved to.
    ///
    /// # Errors
    /// When a node refuses.
    pub async fn end_move(&self, slot: u16, to: usize) -> io::Result<()> {
        let slot = slot.to_string();
        // The new owner first: so the slot is never without one.
        for node in std::iter::once(&self.nodes[to]).chain(&self.nodes) {
            node.command(["CLUSTER", "SETSLOT", &slot, "NODE", &self.names[to]]).await?;
        }
        Ok(())
    }
}
