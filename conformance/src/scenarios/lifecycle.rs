//! From the first insert to the last delete: ids, rotation, destruction.

use crate::scenario::Scenario;

pub(super) const SCENARIOS: &[Scenario] = &[];
