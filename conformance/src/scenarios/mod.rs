//! Every scenario, in one list.

mod concurrency;
mod expiry;
mod fault;
mod lifecycle;
mod limits;
mod lock;

use crate::scenario::Scenario;

/// The groups, in the order of the matrix.
const GROUPS: &[&[Scenario]] = &[
    concurrency::SCENARIOS,
    lifecycle::SCENARIOS,
    expiry::SCENARIOS,
    lock::SCENARIOS,
    limits::SCENARIOS,
    fault::SCENARIOS,
];

/// All scenarios, in the order of the matrix.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    GROUPS.iter().copied().flatten()
}

/// Those whose `group/id` matches one of the patterns; all, when there are none.
pub fn matching<'a>(
    patterns: &'a [String],
    further: &'static [Scenario],
) -> impl Iterator<Item = &'static Scenario> + use<'a> {
    let chosen = |scenario: &&Scenario| {
        patterns.is_empty() || patterns.iter().any(|pattern| matches(pattern, scenario.name()))
    };
    all().chain(further).filter(chosen)
}

/// Whether the text is what the pattern says; `*` stands for any text, also none.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, rest)) => text.strip_prefix(before).is_some_and(|text| {
            (0..=text.len()).filter(|at| text.is_char_boundary(*at)).any(|at| matches(rest, &text[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::{all, matches};
    use std::collections::HashSet;

    #[test]
    fn a_star_stands_for_any_text() {
        assert!(matches("concurrency/*", "concurrency/increments_are_all_kept"));
        assert!(matches("*_kept", "concurrency/increments_are_all_kept"));
        assert!(matches("*/*", "lock/x") && matches("*", "") && matches("a*", "a"));
        assert!(!matches("lock/*", "lifecycle/x") && !matches("lock", "lock/x") && !matches("a*b", "ac"));
    }

    #[test]
    fn every_scenario_has_a_group_a_name_of_its_own_and_one_line_of_claim() {
        let mut names = HashSet::new();
        for scenario in all() {
            assert!(names.insert(scenario.name()), "{} is there twice", scenario.name());
            assert!(!scenario.group().is_empty(), "{} has no group", scenario.name());
            assert!(!scenario.claim().is_empty() && !scenario.claim().contains('\n'), "{}", scenario.name());
            assert!(!scenario.runs_with().is_empty(), "{} runs with no strategy", scenario.name());
        }
    }
}
