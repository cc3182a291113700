//! Requests that work on one session at the same time.

mod conflicts;
mod counting;
mod history;
mod isolation;
mod once;
mod parallel;

use crate::{
    Strategy,
    scenario::{Convictor, Need, Scenario},
    system::{Settings, Values, values},
};
use std::time::Duration;

/// What must happen once is done under a lock; `write` is for what may be done again.
const ONCE: &[Strategy] = &[Strategy::Blind, Strategy::LockOnly, Strategy::Exclusive];

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new::<counting::IncrementsAreAllKept>(
        "concurrency/increments_are_all_kept",
        "N increments of one counter: final = acknowledged",
        Convictor::BLIND,
    )
    .overlap(10),
    Scenario::new::<counting::DistinctKeysAreAllKept>(
        "concurrency/distinct_keys_are_all_kept",
        "parallel requests each add their own key (the cart): every acknowledged one is there",
        Convictor::BLIND,
    )
    .overlap(10),
    Scenario::new::<counting::AppendsKeepOrderAndCount>(
        "concurrency/appends_keep_order_and_count",
        "each read is a prefix of the final list; no element twice",
        Convictor::BLIND,
    )
    .overlap(10),
    Scenario::new::<counting::RemovedStaysRemoved>(
        "concurrency/removed_stays_removed",
        "a replay never brings back a key that another request removed",
        Convictor::BLIND,
    )
    .overlap(10),
    Scenario::new::<once::FlashIsTakenOnce>(
        "concurrency/flash_is_taken_once",
        "a flash message is consumed by exactly one of N requests",
        Convictor::BLIND,
    )
    .overlap(10),
    Scenario::new::<once::PaymentIsSentOnce>(
        "concurrency/payment_is_sent_once",
        "`if !received_payment { send(); received_payment = true }` under `exclusive`: sent exactly once while leases live",
        Convictor::BLIND,
    )
    .strategies(ONCE)
    .overlap(10),
    Scenario::new::<once::ExclusiveExcludesWriters>(
        "concurrency/exclusive_excludes_writers",
        "the same with `write` requests of the key that it reads beside it: no exclusive commit is refused, no payment unrecorded",
        Convictor::BLIND,
    )
    .strategies(ONCE)
    .needs(&[Need::Fencing])
    .overlap(10),
    Scenario::new::<once::ClaimedEffectHappensOnce>(
        "concurrency/claimed_effect_happens_once",
        "the claim committed before the effect, holders stopped past their lease: at most one effect",
        Convictor::LOCK_ONLY,
    )
    .cap(6)
    .tasks(2)
    .settings(Settings { lease: SHORT, max_hold: SHORT, ..Settings::DEFAULT }),
    Scenario::new::<once::TokenRegenerationHasOneWinner>(
        "concurrency/token_regeneration_has_one_winner",
        "a CSRF token replaced by N requests: each loser learns that it lost",
        Convictor::BLIND,
    )
    .overlap(10),
    Scenario::check::<conflicts::ReadKeyChangedIsAConflict>(
        "concurrency/read_key_changed_is_a_conflict",
        "a write based on a read that has changed is refused, with the fresh data",
        Convictor::BLIND,
    )
    .strategies(&[Strategy::Blind, Strategy::Write]),
    Scenario::new::<parallel::ReadsRunInParallel>(
        "concurrency/reads_run_in_parallel",
        "a barrier that ten readers must all reach inside their handlers opens",
        Convictor::LOCK_ONLY,
    )
    .tasks(10),
    Scenario::new::<parallel::WritersRunInParallel>(
        "concurrency/writers_run_in_parallel",
        "the same barrier for ten writers of different keys under `write`; under `exclusive` never more than one inside; none lost in either",
        Convictor::BLIND,
    )
    .tasks(10),
    Scenario::new::<isolation::SessionsDoNotMix>(
        "concurrency/sessions_do_not_mix",
        "10,000 sessions at once: no session sees another's data",
        Convictor::Mutant("mixes_sessions"),
    )
    .strategies(Strategy::PRODUCT),
    Scenario::new::<history::HistoryIsLinearizable>(
        "concurrency/history_is_linearizable",
        "reads and compare-and-swaps on one session are linearizable (a checker of histories, with a deadline that gives `unknown`)",
        Convictor::BLIND,
    )
    .strategies(Strategy::ALL)
    .overlap(10),
];

/// What a session begins with where nothing else is said: one in which nothing was put is not stored at all.
fn begun() -> Values {
    values([("begun", true.into())])
}

/// A lease that runs out while a test waits for it, and is never renewed.
const SHORT: Duration = Duration::from_millis(250);
