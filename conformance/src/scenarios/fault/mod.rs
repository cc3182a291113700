//! What a bad day of a server, a network or a disk may take away, and what not.

mod disk;
mod eviction;
mod replies;
mod server;
mod traffic;
mod unreliable;

use crate::{
    Strategy,
    scenario::{Convictor, Need, Scenario},
    system::Settings,
};
use std::time::Duration;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new::<replies::LostReplyIsResolved>(
        "fault/lost_reply_is_resolved",
        "a reply is cut or late, a request comes late or twice, others write on top: applied once, or reported unknown",
        Convictor::Mutant("applies_copies_again"),
    )
    .strategies(Strategy::PRODUCT)
    .cap(400)
    .overlap(10)
    .settings(SETTINGS),
    Scenario::check::<server::ServerRestart>(
        "fault/server_restart",
        "after a kill and restart each acknowledged write is there, as the declared durability says; else the loss is shown",
        Convictor::Mutant("durable_in_name_only"),
    )
    .strategies(Strategy::PRODUCT)
    .needs(&[Need::OneProcess, Need::Control])
    .settings(SETTINGS),
    Scenario::check::<server::ServerPause>(
        "fault/server_pause",
        "the server hangs: typed errors in time, no lost update afterwards, recovery without a restart of the client",
        Convictor::Mutant("hangs_with_the_server"),
    )
    .strategies(Strategy::PRODUCT)
    .needs(&[Need::OneProcess, Need::Control])
    .settings(HASTY),
    Scenario::check::<server::ConnectionStorm>(
        "fault/connection_storm",
        "all connections are cut at once, again and again: nothing acknowledged is lost, nothing applied twice",
        Convictor::Mutant("acknowledges_what_failed"),
    )
    .strategies(Strategy::PRODUCT)
    .needs(&[Need::OneProcess, Need::Control])
    .settings(SETTINGS),
    Scenario::check::<server::Failover>(
        "fault/failover",
        "the primary dies: acknowledged writes lost with it are counted and shown; clients find the new one",
        Convictor::Mutant("never_comes_back"),
    )
    .strategies(Strategy::PRODUCT)
    .needs(&[Need::OneProcess, Need::Replicas])
    .limit(Duration::from_secs(60))
    .settings(SETTINGS),
    Scenario::check::<eviction::Eviction>(
        "fault/eviction",
        "under memory pressure: what went is counted; an evicted session is Missing for every verb, never wrong data",
        Convictor::Mutant("revives_on_save"),
    )
    .needs(&[Need::OneProcess, Need::LittleMemory]),
    Scenario::check::<disk::DiskFullAndTornWrite>(
        "fault/disk_full_and_torn_write",
        "every I/O call fails in turn, once and for good, and the power goes: the old or the new record, never a mixture",
        Convictor::Mutant("acknowledges_what_failed"),
    )
    .needs(&[Need::OneProcess, Need::Disk])
    .limit(Duration::from_secs(60)),
];

/// Leases that a crash leaves behind end soon; who waits for one waits longer than that.
const SETTINGS: Settings = Settings::DEFAULT.lease(Duration::from_secs(2)).lock_wait(Duration::from_secs(8));

/// What a request does about a reply that does not come, it does for as long as it would wait for a lock.
const HASTY: Settings = Settings::DEFAULT.lease(Duration::from_secs(1)).lock_wait(Duration::from_secs(1));
