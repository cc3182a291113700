//! Which server holds a session: consistent hashing over the servers' names.
//!
//! The lock and the record of a session are chosen by the same key, so they are on one server. No server is
//! ever left out because it does not answer: its sessions are unavailable until it does. Were they moved
//! elsewhere meanwhile, its return would bring back what was destroyed or overwritten in its absence.
//!
//! Placement is a promise between processes of different versions and machines:
//! `tests::placement_never_changes` holds it.

use crate::config::Node;
use hashring::HashRing;
use session_core::StorageKey;
use std::hash::{Hash, Hasher};

/// Points of a server on the ring: enough that the busiest of a few servers has some tenth more than its
/// share.
const POINTS: u32 = 160;

#[derive(Debug)]
pub(crate) struct Ring(HashRing<Point>);

/// Hashes as the bytes of its name and number alone: what `derive` adds depends on the machine.
#[derive(Clone, Debug)]
struct Point {
    name: String,
    server: usize,
}

impl Hash for Point {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.name.as_bytes());
    }
}

struct Place<'a>(&'a StorageKey);

impl Hash for Place<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.0.as_bytes());
    }
}

impl Ring {
    /// A ring of these servers, in any order.
    pub(crate) fn new(servers: &[Node]) -> Self {
        let mut ring = HashRing::new();
        let points = servers.iter().enumerate().flat_map(|(server, node)| {
            (0..POINTS).map(move |number| Point { name: format!("{node}#{number}"), server })
        });
        ring.batch_add(points.collect());
        Self(ring)
    }

    /// The index of the session's server. There is at least one.
    pub(crate) fn server_of(&self, key: &StorageKey) -> usize {
        self.0.get(&Place(key)).map_or(0, |point| point.server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &[&str]) -> Vec<Node> {
        names.iter().map(|name| Node::new(*name, 11211)).collect()
    }

    fn key(number: u32) -> StorageKey {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b9).to_be_bytes());
        StorageKey::from_bytes(bytes)
    }

    #[test]
    fn placement_never_changes() {
        let ring = Ring::new(&nodes(&["a", "b", "c"]));
        let places: Vec<_> = (0..20).map(|number| ring.server_of(&key(number))).collect();
        assert_eq!(places, [1, 2, 0, 0, 0, 1, 0, 2, 0, 2, 0, 1, 2, 1, 2, 1, 0, 1, 2, 2]);
    }

    #[test]
    fn the_order_of_the_names_does_not_matter_and_the_load_is_shared() {
        let (one, other) = (nodes(&["a", "b", "c"]), nodes(&["c", "a", "b"]));
        let (ring, same) = (Ring::new(&one), Ring::new(&other));
        let mut load = [0; 3];
        for number in 0..9000 {
            let server = ring.server_of(&key(number));
            assert_eq!(one[server], other[same.server_of(&key(number))]);
            load[server] += 1;
        }
        assert!(load.iter().all(|load| (2400..3600).contains(load)), "{load:?}");
    }

    #[test]
    fn a_server_that_is_taken_away_moves_no_one_elses_sessions() {
        let (three, two) = (nodes(&["a", "b", "c"]), nodes(&["a", "b"]));
        let (before, after) = (Ring::new(&three), Ring::new(&two));
        for number in 0..9000 {
            let was = &three[before.server_of(&key(number))];
            let is = &two[after.server_of(&key(number))];
            assert!(was == is || was.host == "c");
        }
    }
}
