//! Every scenario, in one list. How to write one:
//!
//! A scenario is a claim that a store keeps or breaks. It is data, a [`Scenario`], in the `SCENARIOS` of its
//! group's file, and three steps, a [`Script`](crate::scenario::Script):
//!
//! 1. **setup**, in the parent: fresh sessions, and what the tasks must know. It goes to them as JSON, as the
//!    *plan*.
//! 2. **work**, in every task of every process, all released together: operations. What became of each is
//!    recorded, with a *note* of what the judge must know of it.
//! 3. **judge**, in the parent, when all tasks have ended: compares what was recorded with what can be read,
//!    and counts.
//!
//! The same functions run in one process and in several, so they share nothing but the plan, the
//! [`Task`](crate::scenario::Task), and the store under test. A static, a channel, an `Arc` of one's own
//! would work in one process alone, and is a mistake.
//!
//! ```
//! use session_conformance::{
//!     Judgement, Trial,
//!     scenario::{Batch, Convictor, Findings, Lab, Scenario, Script, Task},
//!     system::{Change, values},
//! };
//!
//! pub const SCENARIOS: &[Scenario] = &[Scenario::new::<LastWordStays>(
//!     "concurrency/last_word_stays", // group/id
//!     "of two appends, one after the other, the second is last", // the claim, one line
//!     Convictor::BLIND, // who is known to break it
//! )
//! .cap(200)
//! .overlap(10)];
//!
//! struct LastWordStays;
//!
//! impl Script for LastWordStays {
//!     type Plan = Vec<Batch>; // sessions, with the operations for each
//!     type Note = u64; // the number that was appended
//!
//!     async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
//!         lab.batches(&values([("words", [0; 0].into())])).await
//!     }
//!
//!     async fn work(task: &Task<u64>, plan: &Vec<Batch>) -> Trial {
//!         let system = task.system(); // sessions, by the strategy of this cell
//!         let mut turns = task.turns(plan);
//!         while let Some(turn) = turns.next().await? {
//!             let append = async {
//!                 let mut session = system.request(turn.id).await?;
//!                 session.change("words", Change::Append(turn.number.into())).await?;
//!                 task.think().await; // let others get in between
//!                 session.commit().await
//!             };
//!             task.attempt(turn.session, turn.number, append).await;
//!         }
//!         Ok(())
//!     }
//!
//!     async fn judge(lab: &Lab, plan: &Vec<Batch>, found: &Findings<u64>) -> Trial<Judgement> {
//!         let mut judgement = found.judgement(); // has counted acknowledged, rejected, unknown
//!         for (session, batch) in plan.iter().enumerate() {
//!             let stored = lab.system().read(&batch.id).await?.unwrap_or_default();
//!             let words: Vec<u64> = serde_json::from_value(stored["words"].clone())?;
//!             let lost: Vec<_> = found
//!                 .of_session(session)
//!                 .filter(|operation| operation.outcome.is_ok() && !words.contains(&operation.note))
//!                 .map(|operation| operation.note)
//!                 .collect();
//!             judgement = judgement.lost(lost.len() as u64, format!("session {session}: missing {lost:?}"));
//!         }
//!         Ok(judgement)
//!     }
//! }
//! ```
//!
//! # What there is to build on
//! | for | use |
//! |---|---|
//! | fresh sessions for the operations of the cell | [`Lab::batches`](crate::scenario::Lab::batches); ids for driver scenarios: [`empty_batches`](crate::scenario::Lab::empty_batches), [`fresh_id`](crate::scenario::Lab::fresh_id), [`Id::key`](crate::system::Id::key) |
//! | this task's share of them | [`Task::turns`](crate::scenario::Task::turns): all tasks enter each session together |
//! | an operation under test | [`Task::attempt`](crate::scenario::Task::attempt); [`begin`](crate::scenario::Task::begin) when the note is known at the end only |
//! | sessions | [`Task::system`](crate::scenario::Task::system), [`system_of`](crate::scenario::Task::system_of) another strategy, [`system_over`](crate::scenario::Task::system_over) a wrapped store, [`patient_system`](crate::scenario::Task::patient_system) with a long lease; the same on [`Lab`](crate::scenario::Lab) |
//! | the product itself, the driver itself | [`Task::sessions`](crate::scenario::Task::sessions), [`Task::store`](crate::scenario::Task::store) |
//! | a store that cuts, delays, swallows | [`Script::wrap`](crate::scenario::Script::wrap) for all tasks of a process, `system_over` for one task; [`Wrapper`](crate::wrapper::Wrapper) changes one method and leaves the rest |
//! | two parties, in two processes where there are several | [`Task::across`](crate::scenario::Task::across) |
//! | leases, waits, lifetimes of a scenario | [`Scenario::settings`], the same in every process |
//! | meeting: all, some, one | [`barrier`](crate::scenario::Task::barrier), [`barrier_of`](crate::scenario::Task::barrier_of), [`signal`](crate::scenario::Task::signal) and [`wait`](crate::scenario::Task::wait), across processes; [`Findings::signals`](crate::scenario::Findings) for the judge |
//! | a stopped or killed process | [`pause_until`](crate::scenario::Task::pause_until), [`pause_for`](crate::scenario::Task::pause_for), [`kill`](crate::scenario::Task::kill), with [`Need::Processes`](crate::scenario::Need); others wait for `paused/RANK`, `killed/RANK` |
//! | chance | [`Task::draw`](crate::scenario::Task::draw), [`Task::think`](crate::scenario::Task::think), by the seed of the run |
//! | time that processes share | [`now`](crate::scenario::now), in microseconds |
//! | a server to restart, pause, cut | [`Lab::control`](crate::scenario::Lab::control), with [`Need::Control`](crate::scenario::Need) |
//! | replicas, little memory | [`Need::Replicas`](crate::scenario::Need), [`Need::LittleMemory`](crate::scenario::Need): an instance of its own, by [`Suite::special`](crate::Suite::special) |
//! | a disk that fails or loses power | [`Lab::disks`](crate::scenario::Lab::disks), with [`Need::Disk`](crate::scenario::Need) |
//! | a claim that one caller can try | [`Check`](crate::scenario::Check) and [`Scenario::check`]: one function, no tasks |
//!
//! # Conventions
//! - `?` is for steps that must succeed: it ends the cell, as broken
//!   ([`Trouble::Wrong`](crate::Trouble::Wrong)) or as unproven (`Unproven`: a server that cannot be reached,
//!   a mistake of the suite). An operation under test goes through `attempt`, where a refusal is a result
//!   like any other.
//! - The judge says [`lost`](crate::Judgement::lost) for acknowledged operations without effect,
//!   [`fault`](crate::Judgement::fault) and [`require`](crate::Judgement::require) for any other breach,
//!   [`compare`](crate::Judgement::compare) for counts, [`note`](crate::Judgement::note) for what is reported
//!   and never asserted (times!), and [`unproven`](crate::Judgement::unproven) when the run did not try the
//!   claim. Evidence names the session's number and what was found of what.
//! - The verdict is the framework's: `FAIL` for a product or driver that broke the claim, `loses` for a
//!   control, `unknown` for a control that is the convictor and lost nothing, for too little overlap, and
//!   when nothing at all was acknowledged.
//! - Time convicts only where it is certain, by when calls began and ended. Where a machine that stands still
//!   can keep a claim from being tried, the scenario notices and tries again with longer times.
//! - A scenario that no control loses names a [mutant](crate::mutants), which `tests/mutants.rs` runs it
//!   against.
//! - No wait without an end: the framework ends a cell that hangs ([`Scenario::limit`]) and names the
//!   barrier; a scenario that expects a wait to be in vain gives it its own limit.
//! - Interleavings are forced, by barriers and signals inside the request, not hoped for by sleeping. Leases
//!   that must run out are short, all others long.
//! - What a backend may lack goes into [`Scenario::needs`]; what it declares instead is asserted in
//!   `scenario/declared.rs`.
//! - A cell takes a fraction of a second with the default operations: there are hundreds. Use
//!   [`Scenario::cap`] where more proves nothing.
//! - One cell again: `session-conformance run --backend memory --strategy write --scenario group/id --seed
//!   N`.

mod concurrency;
mod expiry;
mod fault;
mod lifecycle;
mod limits;
mod lock;

use crate::scenario::Scenario;
use std::time::Duration;

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

/// How long after its end a record or a lease may be there: rounded up, and by a clock that ticks in steps of
/// this, of which one may be left out.
fn late(resolution: Duration) -> Duration {
    3 * resolution
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
