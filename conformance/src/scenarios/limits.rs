//! Sizes, bytes and names at their limits.

use crate::scenario::Scenario;

pub(super) const SCENARIOS: &[Scenario] = &[];
