//! What is in the sessions, and which one comes next.

use super::{Contention, Point};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde::{Deserialize, Serialize};
use session_core::{Key, Result, SessionId, Sessions};
use std::time::Duration;

/// What operations change.
pub(super) const COUNT: Key<u64> = Key::new("count");
/// What is in the session beside it.
const CART: Key<Cart> = Key::new("cart");
/// What names, counter and envelope take of a session's size, about.
const OTHERWISE: usize = 40;

/// As compressible as sessions are.
#[derive(Serialize, Deserialize)]
pub(super) struct Cart {
    items: Vec<Item>,
    /// Fills up.
    note: String,
}

#[derive(Serialize, Deserialize)]
struct Item {
    sku: String,
    quantity: u32,
    cents: u32,
}

impl Cart {
    /// About so many bytes as JSON.
    pub(super) fn of(size: usize, random: &mut StdRng) -> Self {
        const ITEM: usize = 55; // at most, as JSON
        let item = |_| Item {
            sku: format!("SKU-{:08x}", random.random::<u32>()),
            quantity: random.random_range(1..10),
            cents: random.random_range(100..100_000),
        };
        let mut cart = Self { items: (0..size / ITEM).map(item).collect(), note: String::new() };
        let encoded = serde_json::to_vec(&cart).map_or(size, |json| json.len());
        cart.note = "-".repeat(size.saturating_sub(encoded + OTHERWISE));
        cart
    }
}

/// New sessions of this size.
pub(super) async fn fill(sessions: &Sessions, point: Point, seed: u64) -> Result<Vec<SessionId>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut ids = Vec::with_capacity(point.sessions());
    while ids.len() < point.sessions() {
        let session = sessions.create();
        session.insert(CART, &Cart::of(point.size, &mut random))?;
        session.insert(COUNT, &0)?;
        session.commit().await?;
        ids.extend(session.id());
    }
    Ok(ids)
}

/// Which session a task takes next.
pub(super) struct Choice {
    random: StdRng,
    /// Of each session, the share of requests that go to it or to one before it.
    shares: Vec<f64>,
    own: usize,
    contention: Contention,
}

/// The longest pause of a task that has been served, where all want the same session.
const PAUSE: Duration = Duration::from_millis(10);

impl Choice {
    pub(super) fn new(point: Point, task: usize, seed: u64) -> Self {
        let zipf = point.contention == Contention::Zipf;
        let weights = 1..=if zipf { point.sessions() } else { 0 };
        let total: f64 = weights.clone().map(|rank| 1.0 / rank as f64).sum();
        let mut sum = 0.0;
        let share = |rank| {
            sum += 1.0 / rank as f64;
            sum / total
        };
        let random = StdRng::seed_from_u64(seed ^ (task as u64) << 32);
        let (own, contention) = (task % point.sessions(), point.contention);
        Self { random, shares: weights.map(share).collect(), own, contention }
    }

    pub(super) fn next(&mut self) -> usize {
        if self.contention != Contention::Zipf {
            return self.own;
        }
        let drawn: f64 = self.random.random();
        self.shares.partition_point(|share| *share < drawn).min(self.shares.len() - 1)
    }

    /// How long to wait before the next request, as clients do. Without it a task that spins for a lock and
    /// has just released it takes it again before anybody else looks, and seems fast while the others starve.
    pub(super) fn pause(&mut self) -> Option<Duration> {
        (self.contention == Contention::Contended).then(|| PAUSE.mul_f64(self.random.random()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cart_has_the_size_that_was_asked_for() {
        for size in [1 << 10, 16 << 10, 256 << 10] {
            let cart = Cart::of(size, &mut StdRng::seed_from_u64(1));
            let json = serde_json::to_vec(&cart).expect("JSON").len();
            assert!((size - OTHERWISE..=size).contains(&json), "{json} of {size}");
        }
    }

    #[test]
    fn the_first_is_asked_for_twice_as_often_as_the_second() {
        let point = Point { tasks: 8, contention: Contention::Zipf, ..Point::default() };
        let mut choice = Choice::new(point, 0, 1);
        let mut counts = vec![0_u32; point.sessions()];
        for _ in 0..100_000 {
            counts[choice.next()] += 1;
        }
        let ratio = f64::from(counts[0]) / f64::from(counts[1]);
        assert!((1.9..2.1).contains(&ratio), "{ratio}");
    }

    #[test]
    fn tasks_meet_as_was_said() {
        let of = |contention, task| {
            Choice::new(Point { tasks: 8, contention, ..Point::default() }, task, 1).next()
        };
        assert_eq!((of(Contention::Uncontended, 3), of(Contention::Uncontended, 4)), (3, 4));
        assert_eq!((of(Contention::Contended, 3), of(Contention::Contended, 4)), (0, 0));
    }
}
