//! The cluster: a link per primary, and a map from slots to them.
//!
//! Why not the `redis` crate's cluster client: it repeats a command that was lost on the way. A repeated
//! insert could bring back a session that was destroyed in between. Here a command is sent again only after
//! an answer that says that nothing happened (`MOVED`, `ASK`, `TRYAGAIN`, `CLUSTERDOWN`).
//!
//! A session's keys carry its id in braces, so they are in one slot, and every script works on one node.
//! While a slot is moved, Redis refuses scripts on sessions whose keys are not all on one side; most sessions
//! have no lock, so this is the rule. They are tried again, without effect in between, for as long as a
//! connection may take; a plain load goes through.

use crate::{
    config::Node,
    connection::{Dialer, Events, Failure, Finder, Link, Listener},
};
use redis::{Cmd, ErrorKind as Kind, RedisError, Value, aio::MultiplexedConnection, cmd};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};
use tokio::time::Instant;

const SLOTS: u16 = 16384;
/// The first and the longest pause before a command is tried again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));
/// How many redirections one command may follow without a pause.
const REDIRECTIONS: u32 = 8;

/// Who serves which slots: the last slot of each range, and its primary; in order.
type Map = Vec<(u16, u16, Node)>;

/// The connections to a cluster.
#[derive(Clone)]
pub(crate) struct Cluster(Arc<Inner>);

struct Inner {
    dialer: Dialer,
    seeds: Vec<Node>,
    links: Mutex<HashMap<Node, Link>>,
    map: RwLock<Arc<Map>>,
    /// One task asks for a new map; the others wait for it.
    refreshing: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cluster").field(&self.0.seeds).finish()
    }
}

/// What to do after a command was refused.
enum Refusal {
    Moved(Node),
    Ask(Node),
    /// Its slot is on its way. The map is right: its owner will say MOVED or ASK when that has changed.
    Wait,
    /// The node cannot serve it; by now another one may.
    Later,
}

impl Cluster {
    pub(crate) fn new(dialer: Dialer, seeds: &[Node]) -> Self {
        Self(Arc::new(Inner {
            dialer,
            seeds: seeds.to_vec(),
            links: Mutex::default(),
            map: RwLock::default(),
            refreshing: tokio::sync::Mutex::default(),
        }))
    }

    /// Sends a command to the primary of this key.
    pub(crate) async fn run(&self, key: &[u8], command: &Cmd) -> Result<Value, Failure> {
        let slot = slot(key);
        let deadline = Instant::now() + self.0.dialer.config().connect_timeout;
        let (mut pause, mut redirections) = (AGAIN.0, 0);
        let (mut node, mut asking) = (self.owner(slot).await?, false);
        loop {
            let link = self.link(&node);
            let reply = if asking {
                let mut both = redis::pipe();
                both.cmd("ASKING").add_command(command.clone());
                link.run_all(&both).await.map(|mut replies| replies.pop().unwrap_or(Value::Nil))
            } else {
                link.run(command).await
            };
            let failure = match reply {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            let Some(refusal) = refusal(&failure, &node) else {
                if failure.error.is_io_error() {
                    self.forget(); // its primary may be another one by now: the next command asks
                }
                return Err(failure);
            };
            redirections += 1;
            (node, asking) = match refusal {
                Refusal::Ask(to) if redirections <= REDIRECTIONS => (to, true),
                Refusal::Moved(to) if redirections <= REDIRECTIONS => {
                    self.forget();
                    (to, false)
                }
                refusal => {
                    if Instant::now() + pause >= deadline {
                        return Err(failure);
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(AGAIN.1);
                    redirections = 0;
                    if !matches!(refusal, Refusal::Wait) {
                        self.forget();
                    }
                    (self.owner(slot).await?, false)
                }
            };
        }
    }

    /// The links of all primaries that serve slots.
    pub(crate) async fn primaries(&self) -> Result<Vec<Link>, Failure> {
        let map = self.map().await?;
        let mut nodes: Vec<_> = map.iter().map(|(_, _, node)| node).collect();
        nodes.sort_by(|a, b| (&a.host, a.port).cmp(&(&b.host, b.port)));
        nodes.dedup();
        Ok(nodes.into_iter().map(|node| self.link(node)).collect())
    }

    pub(crate) async fn dial_for_messages(
        &self,
        listener: Arc<Listener>,
    ) -> Result<(MultiplexedConnection, Events), RedisError> {
        let mut last = RedisError::from((Kind::ClusterConnectionNotFound, "no node of the cluster answers"));
        for node in self.known() {
            match self.0.dialer.dial_for_messages(&node, Arc::clone(&listener)).await {
                Ok(dialled) => return Ok(dialled),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn owner(&self, slot: u16) -> Result<Node, Failure> {
        let map = self.map().await?;
        let place = map.partition_point(|(_, last, _)| *last < slot);
        match map.get(place).filter(|(first, ..)| *first <= slot) {
            Some((_, _, node)) => Ok(node.clone()),
            None => {
                self.forget();
                let text = "no node serves this slot";
                Err(Failure::before_sending((Kind::ClusterConnectionNotFound, text).into()))
            }
        }
    }

    fn link(&self, node: &Node) -> Link {
        let mut links = self.0.links.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Link::new(self.0.dialer.clone(), Finder::Fixed(node.clone()));
        links.entry(node.clone()).or_insert_with(new).clone()
    }

    fn current(&self) -> Arc<Map> {
        Arc::clone(&self.0.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn forget(&self) {
        *self.0.map.write().unwrap_or_else(PoisonError::into_inner) = Arc::default();
    }

    /// The map, asked for when it is not known.
    async fn map(&self) -> Result<Arc<Map>, Failure> {
        let map = self.current();
        if !map.is_empty() {
            return Ok(map);
        }
        let _turn = self.0.refreshing.lock().await;
        let map = self.current();
        if !map.is_empty() {
            return Ok(map); // another one asked while we waited
        }
        let map = Arc::new(self.ask_all().await.map_err(Failure::before_sending)?);
        let mut links = self.0.links.lock().unwrap_or_else(PoisonError::into_inner);
        // Links to nodes that left are closed when their last command ends; seeds are asked for the next map.
        let seeds = &self.0.seeds;
        links.retain(|node, _| seeds.contains(node) || map.iter().any(|(_, _, owner)| owner == node));
        drop(links);
        *self.0.map.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&map);
        Ok(map)
    }

    /// Those that served slots lately, then the seeds.
    fn known(&self) -> Vec<Node> {
        let links = self.0.links.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known: Vec<_> = links.keys().cloned().collect();
        known.extend(self.0.seeds.iter().filter(|seed| !links.contains_key(seed)).cloned());
        known
    }

    /// All at once; the first complete answer counts: one that hangs delays nobody. Over the links that there
    /// are, since this may happen often while slots are moved.
    async fn ask_all(&self) -> Result<Map, RedisError> {
        let mut asked = tokio::task::JoinSet::new();
        for node in self.known() {
            let link = self.link(&node);
            asked.spawn(async move { slots(&link, &node).await });
        }
        let mut last = RedisError::from((Kind::ClusterConnectionNotFound, "no node of the cluster answers"));
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok(Ok(map)) if !map.is_empty() => return Ok(map),
                Ok(Err(error)) => last = error,
                _ => {} // a node that serves nothing
            }
        }
        Err(last)
    }
}

/// What one node knows.
async fn slots(link: &Link, node: &Node) -> Result<Map, RedisError> {
    let ranges = link.run(cmd("CLUSTER").arg("SLOTS")).await.map_err(|failure| failure.error)?;
    let ranges: Vec<Vec<Value>> = redis::from_redis_value(ranges)?;
    let mut map: Map = ranges.iter().filter_map(|range| self::range(range, node)).collect();
    map.sort_by_key(|(first, ..)| *first);
    Ok(map)
}

/// `[first, last, [host, port, ..], replica..]`
fn range(range: &[Value], asked: &Node) -> Option<(u16, u16, Node)> {
    let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = range else { return None };
    let Some(Value::Int(port)) = primary.get(1) else { return None };
    let host = match primary.first() {
        Some(Value::BulkString(host)) if !host.is_empty() => String::from_utf8_lossy(host).into_owned(),
        _ => asked.host.clone(), // it does not know its own address: the one that we reached it by
    };
    let port = u16::try_from(*port).ok()?;
    Some((u16::try_from(*first).ok()?, u16::try_from(*last).ok()?, Node { host, port }))
}

/// `None`: not about the cluster, or not without effect. A script that a slot on its way stops ("non local
/// key": one that it has just removed) may have written before, and that is for the caller to look up.
fn refusal(failure: &Failure, asked: &Node) -> Option<Refusal> {
    let errors = failure.error.clone().into_server_errors()?;
    let (_, error) = errors.first()?;
    let target = || {
        let (host, port) = error.details()?.split_ascii_whitespace().nth(1)?.rsplit_once(':')?;
        let host = if host.is_empty() { asked.host.clone() } else { host.to_owned() };
        Some(Node { host, port: port.parse().ok()? })
    };
    match error.code() {
        "MOVED" => Some(target().map_or(Refusal::Later, Refusal::Moved)),
        "ASK" => Some(target().map_or(Refusal::Later, Refusal::Ask)),
        // READONLY: a primary that was demoted and does not know its slot's new one yet.
        "CLUSTERDOWN" | "LOADING" | "MASTERDOWN" | "READONLY" => Some(Refusal::Later),
        "TRYAGAIN" => Some(Refusal::Wait),
        _ => None,
    }
}

/// CRC16 (XMODEM) of the part in braces, or of the whole key; as Redis computes it.
fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    let mut crc = 0_u16;
    for byte in tag.unwrap_or(key) {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
        }
    }
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::Effect;

    fn answer(error: &str) -> Failure {
        let answer = redis::parse_redis_value(format!("-{error}\r\n").as_bytes()).unwrap();
        Failure::of(answer.extract_error().unwrap_err())
    }

    #[test]
    fn what_may_have_had_an_effect_is_not_sent_again() {
        let node = Node::new("a", 1);
        for error in [
            "MOVED 3999 127.0.0.1:6381",
            "ASK 3999 127.0.0.1:6381",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "CLUSTERDOWN Hash slot not served",
            "LOADING Redis is loading the dataset in memory",
            "MASTERDOWN Link with MASTER is down",
            "READONLY You can't write against a read only replica.",
        ] {
            let failure = answer(error);
            assert_eq!((failure.effect, refusal(&failure, &node).is_some()), (Effect::None, true), "{error}");
        }
        let failure = answer("ERR Script attempted to access a non local key in a cluster node script: 1");
        assert_eq!((failure.effect, refusal(&failure, &node).is_some()), (Effect::Unknown, false));
    }

    #[test]
    fn slots_are_those_of_redis() {
        // CLUSTER KEYSLOT, Redis 7.0.
        for (key, expected) in [
            ("", 0),
            ("123456789", 12739),
            ("foo", 12182),
            ("session:{abc}", 7638),
            ("session:{abc}:lock", 7638),
            ("{}x", 10595),
            ("a{b", 13340),
        ] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
    }
}
