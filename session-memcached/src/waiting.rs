//! How long a waiter pauses before it looks at the lock again.
//!
//! memcached wakes nobody, so a waiter must look. It knows its place in the queue, and how long the present
//! holder has held: the next in line looks without a pause while a holder is new (most holders are done
//! soon), later after pauses that grow with the time the holder takes, so that what they add to the wait
//! stays a part of it. Those behind only have to notice that the line moves.

use session_core::{Random, Result, Token};
use std::time::Duration;
use tokio::time::Instant;

/// How long a holder is new.
const NEW: Duration = Duration::from_millis(3);
/// Which part of the time that it has waited for this holder a waiter sleeps.
const PART: u32 = 4;
/// tokio's timers count milliseconds.
const SHORTEST: Duration = Duration::from_millis(1);
/// The longest pause of the next in line, and of all others.
const LONGEST: [Duration; 2] = [Duration::from_millis(4), Duration::from_millis(16)];

/// One waiter's view of the holders so far.
#[derive(Debug, Default)]
pub(crate) struct Pauses(Option<(Token, Instant)>);

impl Pauses {
    /// The pause after having seen this holder from this place in the queue; zero: look again at once.
    pub(crate) fn next(&mut self, holder: Token, place: usize, random: &dyn Random) -> Result<Duration> {
        let now = Instant::now();
        let since = match self.0 {
            Some((last, since)) if last == holder => since,
            _ => self.0.insert((holder, now)).1,
        };
        let held = now - since;
        if place == 0 && held < NEW {
            return Ok(Duration::ZERO);
        }
        let pause = (held / PART).clamp(SHORTEST, LONGEST[place.min(1)]);
        // Between a half and the whole of it: waiters are not to march in step.
        let mut draw = [0; 2];
        random.fill(&mut draw)?;
        Ok(pause / 2 + pause / 2 * u32::from(u16::from_be_bytes(draw)) / u32::from(u16::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::SystemRandom;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_with_the_wait_and_begin_again_with_each_holder() {
        let (one, other) = (Token::from_bytes([1; 16]), Token::from_bytes([2; 16]));
        for place in [0, 1, 7] {
            let mut pauses = Pauses::default();
            let mut next = |holder| pauses.next(holder, place, &SystemRandom).unwrap();
            let first = next(one);
            assert_eq!(first.is_zero(), place == 0);
            assert!(first <= SHORTEST);
            tokio::time::advance(NEW).await;
            let soon = next(one);
            assert!(soon >= SHORTEST / 2 && soon <= SHORTEST, "{soon:?}");
            tokio::time::advance(Duration::from_secs(1)).await;
            let late = next(one);
            let longest = LONGEST[place.min(1)];
            assert!(late >= longest / 2 && late <= longest, "{late:?}");
            assert_eq!(next(other).is_zero(), place == 0);
        }
    }
}
