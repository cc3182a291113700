//! What is counted, by the `metrics` crate's recorder of the application; `metrics.md` is the list for users.

use std::time::Duration;

pub(crate) fn committed(bytes: usize) {
    metrics::counter!("session_commits_total").increment(1);
    metrics::counter!("session_written_bytes_total").increment(bytes as u64);
}

pub(crate) fn loaded(bytes: usize) {
    metrics::counter!("session_read_bytes_total").increment(bytes as u64);
}

pub(crate) fn conflict() {
    metrics::counter!("session_conflicts_total").increment(1);
}

pub(crate) fn replayed() {
    metrics::counter!("session_replays_total").increment(1);
}

pub(crate) fn refused() {
    metrics::counter!("session_refused_writes_total").increment(1);
}

pub(crate) fn looked_up() {
    metrics::counter!("session_lookups_total").increment(1);
}

pub(crate) fn locked(waited: Duration) {
    metrics::histogram!("session_lock_wait_seconds").record(waited);
}

pub(crate) fn busy() {
    metrics::counter!("session_busy_total").increment(1);
}

pub(crate) fn lease_lost() {
    metrics::counter!("session_leases_lost_total").increment(1);
}
