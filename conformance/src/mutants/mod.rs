//! Stores that are wrong in one way each. A scenario that convicts none of them, and no control, proves
//! nothing.
//!
//! Each is a [`Wrapper`](crate::wrapper::Wrapper) around a store that is right, so that it can be wrong on
//! any of them, also on one that processes share. To add one: a wrapper in the file of its theme, a line in
//! [`ALL`], by name, and its name as the [`Convictor`](crate::scenario::Convictor) of the scenarios that are
//! to convict it; `tests/mutants.rs` does the rest.
//!
//! ```
//! use session_conformance::{Instance, Suite, Verdict, mutants};
//! use session_core::MemoryStore;
//! use std::sync::Arc;
//!
//! # async fn run() {
//! let mutant = mutants::find("long_ttls_are_dates").expect("it is in the list");
//! let report = Suite::new(|| async { Ok(Instance::new(mutant.over(Arc::new(MemoryStore::default())))) })
//!     .private()
//!     .scenarios(mutant.convicted_by().iter().copied())
//!     .run()
//!     .await;
//! assert_eq!(report.cells[0].verdict, Verdict::Fail);
//! # }
//! # tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(run());
//! ```

mod bytes;
mod expiry;
mod faults;
mod fencing;
mod ids;
mod leases;
mod reads;
mod sweeps;
mod users;
mod versions;
mod waits;
mod writes;

use session_core::LockingStore;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

type Store = Arc<dyn LockingStore>;

/// A store that is wrong in one way.
#[derive(Clone, Copy)]
pub struct Mutant {
    name: &'static str,
    wrong: &'static str,
    convicted_by: &'static [&'static str],
    over: fn(Store) -> Store,
}

/// All of them, by name.
pub const ALL: &[Mutant] = &[
    Mutant {
        name: "a_connection_for_each_lock",
        wrong: "keeps one of ten connections for each lock that is held",
        convicted_by: &["lock/many_locks_few_connections"],
        over: waits::a_connection_for_each_lock,
    },
    Mutant {
        name: "acknowledges_then_drops",
        wrong: "some writes are acknowledged and never stored",
        convicted_by: &["concurrency/increments_are_all_kept", "concurrency/distinct_keys_are_all_kept"],
        over: writes::acknowledges_then_drops,
    },
    Mutant {
        name: "acknowledges_what_failed",
        wrong: "a write that failed is acknowledged all the same",
        convicted_by: &["fault/connection_storm", "fault/disk_full_and_torn_write"],
        over: faults::acknowledges_what_failed,
    },
    Mutant {
        name: "adopts_unknown_ids",
        wrong: "loading an id that nobody issued makes a record for it",
        convicted_by: &["lifecycle/unknown_id_is_not_adopted"],
        over: ids::adopts_unknown_ids,
    },
    Mutant {
        name: "applies_copies_again",
        wrong: "a write that comes twice is applied twice, over what came between",
        convicted_by: &["fault/lost_reply_is_resolved"],
        over: faults::applies_copies_again,
    },
    Mutant {
        name: "busy_is_missing",
        wrong: "says that there is no such session when it is locked",
        convicted_by: &["lock/wait_limit_is_kept_and_typed"],
        over: waits::busy_is_missing,
    },
    Mutant {
        name: "conflicts_with_the_old_record",
        wrong: "a refused write is shown an older record than the one it was refused for",
        convicted_by: &["concurrency/read_key_changed_is_a_conflict", "concurrency/history_is_linearizable"],
        over: reads::conflicts_with_the_old_record,
    },
    Mutant {
        name: "cuts_what_is_too_long",
        wrong: "cuts what is longer than it can store, and acknowledges it",
        convicted_by: &["limits/too_large_is_refused"],
        over: bytes::cuts_what_is_too_long,
    },
    Mutant {
        name: "drops_refused_writes",
        wrong: "a write that names another version is acknowledged and not stored",
        convicted_by: &[
            "concurrency/increments_are_all_kept",
            "concurrency/token_regeneration_has_one_winner",
            "concurrency/history_is_linearizable",
        ],
        over: writes::drops_refused_writes,
    },
    Mutant {
        name: "durable_in_name_only",
        wrong: "declares that it keeps what it acknowledged, and forgets it when it dies",
        convicted_by: &["fault/server_restart", "fault/disk_full_and_torn_write"],
        over: faults::durable_in_name_only,
    },
    Mutant {
        name: "expires_early",
        wrong: "halves every ttl",
        convicted_by: &["expiry/expires_on_time"],
        over: expiry::expires_early,
    },
    Mutant {
        name: "expires_never",
        wrong: "keeps records a thousand times as long as it should",
        convicted_by: &["expiry/expires_on_time"],
        over: expiry::expires_never,
    },
    Mutant {
        name: "fences_in_name_only",
        wrong: "fencing is declared, and a write without the lock is accepted while another's lease lives",
        convicted_by: &["concurrency/exclusive_excludes_writers", "lock/stale_holder_cannot_write"],
        over: fencing::fences_in_name_only,
    },
    Mutant {
        name: "frees_when_it_refuses",
        wrong: "a holder's write that names another version is refused, and frees the lock",
        convicted_by: &["lock/one_holder_at_a_time"],
        over: leases::frees_when_it_refuses,
    },
    Mutant {
        name: "hangs_with_the_server",
        wrong: "asks a server that does not answer again and again, without an end",
        convicted_by: &["fault/server_pause"],
        over: faults::hangs_with_the_server,
    },
    Mutant {
        name: "index_forgets",
        wrong: "a session that was written again is no longer found by its user",
        convicted_by: &["lifecycle/revoke_all_beats_writers"],
        over: ids::index_forgets,
    },
    Mutant {
        name: "inflates_what_looks_compressed",
        wrong: "inflates what begins as compressed data does, however much comes out",
        convicted_by: &["limits/inflation_is_bounded"],
        over: bytes::inflates_what_looks_compressed,
    },
    Mutant {
        name: "insert_overwrites",
        wrong: "an insert replaces what is there",
        convicted_by: &["lifecycle/an_id_is_inserted_once"],
        over: ids::insert_overwrites,
    },
    Mutant {
        name: "keeps_all_in_name_only",
        wrong: "declares that it does not evict, and does",
        convicted_by: &["fault/eviction"],
        over: faults::keeps_all_in_name_only,
    },
    Mutant {
        name: "loads_nobodys",
        wrong: "what is loaded does not say whose session it is",
        convicted_by: &["lifecycle/revoke_all_beats_writers"],
        over: users::loads_nobodys,
    },
    Mutant {
        name: "locks_unknown_ids",
        wrong: "asking for an id that nobody issued leaves a lock behind",
        convicted_by: &["lifecycle/unknown_id_is_not_adopted"],
        over: ids::locks_unknown_ids,
    },
    Mutant {
        name: "locks_without_lease",
        wrong: "keeps a lock until it is released, as SET NX without a time does",
        convicted_by: &[
            "lock/killed_holder_frees_in_time",
            "lock/stale_holder_cannot_release",
            "lock/stale_holder_cannot_write",
        ],
        over: leases::locks_without_lease,
    },
    Mutant {
        name: "long_ttls_are_dates",
        wrong: "takes a ttl of more than 30 days for a date in 1970",
        convicted_by: &["expiry/long_ttl_is_kept"],
        over: expiry::long_ttls_are_dates,
    },
    Mutant {
        name: "loses_a_wakeup",
        wrong: "wakes who waits for a lock when his time is over, and not when it is free",
        convicted_by: &["lock/waiters_are_all_served"],
        over: waits::loses_a_wakeup,
    },
    Mutant {
        name: "mixes_sessions",
        wrong: "some loads answer with another session's record",
        convicted_by: &["concurrency/sessions_do_not_mix"],
        over: reads::mixes_sessions,
    },
    Mutant {
        name: "never_comes_back",
        wrong: "does not connect again",
        convicted_by: &["fault/connection_storm", "fault/failover", "fault/server_restart"],
        over: faults::never_comes_back,
    },
    Mutant {
        name: "overwrites",
        wrong: "a write ignores the version that it names",
        convicted_by: &[
            "concurrency/increments_are_all_kept",
            "concurrency/flash_is_taken_once",
            "concurrency/read_key_changed_is_a_conflict",
            "concurrency/history_is_linearizable",
        ],
        over: writes::overwrites,
    },
    Mutant {
        name: "reads_from_a_replica",
        wrong: "a load answers with what was there some writes ago",
        convicted_by: &["concurrency/history_is_linearizable"],
        over: reads::reads_from_a_replica,
    },
    Mutant {
        name: "refuses_renewals",
        wrong: "a lease that is alive is not renewed, and its holder is told so",
        convicted_by: &["lock/renewal_outlives_the_lease"],
        over: leases::refuses_renewals,
    },
    Mutant {
        name: "refuses_with_nobodys",
        wrong: "the record that a refused write is shown does not say whose session it is",
        convicted_by: &["lifecycle/revoke_all_beats_writers"],
        over: users::refuses_with_nobodys,
    },
    Mutant {
        name: "renews_in_name_only",
        wrong: "a renewal is acknowledged, and the lease ends when it was to end before",
        convicted_by: &["lock/renewal_outlives_the_lease"],
        over: leases::renews_in_name_only,
    },
    Mutant {
        name: "replaces_with_nobodys",
        wrong: "a write forgets whose session it is",
        convicted_by: &["lifecycle/revoke_all_beats_writers"],
        over: users::replaces_with_nobodys,
    },
    Mutant {
        name: "reuses_a_version",
        wrong: "versions are counted, and the count begins again",
        convicted_by: &["concurrency/history_is_linearizable"],
        over: versions::reuses_a_version,
    },
    Mutant {
        name: "revives_on_save",
        wrong: "a write to a session that is gone makes it anew",
        convicted_by: &["lifecycle/destroyed_is_not_revived", "fault/eviction"],
        over: ids::revives_on_save,
    },
    Mutant {
        name: "serves_the_last_first",
        wrong: "gives a lock to whoever came last",
        convicted_by: &["lock/waiters_are_all_served"],
        over: waits::serves_the_last_first,
    },
    Mutant {
        name: "stale_release_frees",
        wrong: "frees the lock whoever holds it",
        convicted_by: &["lock/stale_holder_cannot_release"],
        over: leases::stale_release_frees,
    },
    Mutant {
        name: "stale_renewal_shortens",
        wrong: "gives the holder's lock the time that another asked for",
        convicted_by: &["lock/stale_holder_cannot_release"],
        over: leases::stale_renewal_shortens,
    },
    Mutant {
        name: "stops_at_nul",
        wrong: "takes a NUL for the end of the data",
        convicted_by: &["limits/any_bytes_any_key"],
        over: bytes::stops_at_nul,
    },
    Mutant {
        name: "sweeps_the_living",
        wrong: "sweeps an hour too early",
        convicted_by: &["expiry/sweep_spares_the_living"],
        over: sweeps::sweeps_the_living,
    },
    Mutant {
        name: "sweeps_without_looking_again",
        wrong: "removes what had expired when it was listed, and may be new since",
        convicted_by: &["expiry/sweep_spares_the_living"],
        over: sweeps::sweeps_without_looking_again,
    },
    Mutant {
        name: "tears",
        wrong: "some writes store the first half of what they were given",
        convicted_by: &["concurrency/increments_are_all_kept", "concurrency/history_is_linearizable"],
        over: writes::tears,
    },
    Mutant {
        name: "touch_ignores_the_version",
        wrong: "touches whatever version is there",
        convicted_by: &["expiry/touch_keeps_data_and_version"],
        over: expiry::touch_ignores_the_version,
    },
    Mutant {
        name: "touch_rewrites",
        wrong: "touches by writing the same data again, under a new version",
        convicted_by: &["expiry/touch_keeps_data_and_version"],
        over: expiry::touch_rewrites,
    },
    Mutant {
        name: "touches_the_dead",
        wrong: "says that it has extended what is no longer there",
        convicted_by: &["expiry/expires_on_time", "expiry/touch_keeps_data_and_version"],
        over: expiry::touches_the_dead,
    },
    Mutant {
        name: "two_holders",
        wrong: "gives a lock to everybody who asks",
        convicted_by: &["concurrency/payment_is_sent_once", "lock/one_holder_at_a_time"],
        over: leases::two_holders,
    },
    Mutant {
        name: "unlocks_before_it_deletes",
        wrong: "the lock is freed before the record is deleted",
        convicted_by: &["lifecycle/destroy_while_waiters_queue"],
        over: fencing::unlocks_before_it_deletes,
    },
    Mutant {
        name: "unlocks_before_it_writes",
        wrong: "frees the lock, and then writes",
        convicted_by: &["concurrency/exclusive_excludes_writers", "lock/one_holder_at_a_time"],
        over: leases::unlocks_before_it_writes,
    },
    Mutant {
        name: "waits_without_end",
        wrong: "waits for a lock for an hour longer than it is told to",
        convicted_by: &["lock/wait_limit_is_kept_and_typed", "lock/colliding_keys_do_not_deadlock"],
        over: waits::waits_without_end,
    },
    Mutant {
        name: "writes_after_the_lease",
        wrong: "accepts a holder's write after its lease, when nobody holds the lock",
        convicted_by: &["lock/stale_holder_cannot_write"],
        over: leases::writes_after_the_lease,
    },
];

/// A mutant by its name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Mutant> {
    ALL.iter().find(|mutant| mutant.name == name)
}

impl Mutant {
    /// Its name, by which a scenario names it as its convictor.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// What it does wrong, in one line.
    #[must_use]
    pub const fn wrong(&self) -> &'static str {
        self.wrong
    }

    /// The scenarios, each of which must convict it.
    #[must_use]
    pub const fn convicted_by(&self) -> &'static [&'static str] {
        self.convicted_by
    }

    /// Around a store that is right.
    #[must_use]
    pub fn over(&self, store: Store) -> Store {
        (self.over)(store)
    }
}

impl fmt::Debug for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutant").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Counts calls, and picks out every so many of them: the first of each `of`, so that a single one is among
/// them.
#[derive(Debug)]
struct EveryFew {
    calls: AtomicUsize,
    of: usize,
}

impl EveryFew {
    const fn of(of: usize) -> Self {
        Self { calls: AtomicUsize::new(0), of }
    }

    fn now(&self) -> bool {
        self.calls.fetch_add(1, Relaxed).is_multiple_of(self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::{ALL, find};
    use crate::{scenario::Convictor, scenarios};

    #[test]
    fn they_are_in_order_and_each_scenario_exists() {
        assert!(ALL.windows(2).all(|pair| pair[0].name < pair[1].name), "{ALL:?}");
        for mutant in ALL {
            assert!(!mutant.convicted_by.is_empty(), "{mutant:?} is convicted by nobody");
            for name in mutant.convicted_by {
                assert!(scenarios::all().any(|scenario| scenario.name() == *name), "{name} of {mutant:?}");
            }
        }
    }

    #[test]
    fn each_convictor_exists_and_is_tried() {
        for scenario in scenarios::all() {
            if let Convictor::Mutant(name) = scenario.convictor() {
                let mutant = find(name).unwrap_or_else(|| panic!("there is no mutant {name}"));
                assert!(mutant.convicted_by.contains(&scenario.name()), "{} of {mutant:?}", scenario.name());
            }
        }
    }
}
