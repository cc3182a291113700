//! What a bad day of a server or a network may take away, and what not.

use crate::scenario::Scenario;

pub(super) const SCENARIOS: &[Scenario] = &[];
