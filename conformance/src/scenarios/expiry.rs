//! When sessions end, and when they do not.

use crate::scenario::Scenario;

pub(super) const SCENARIOS: &[Scenario] = &[];
