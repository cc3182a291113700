//! The framework in one process: verdicts, choices, and what is asserted where a backend declines.

#![allow(clippy::expect_used, clippy::panic, reason = "this is how a test fails")]

use async_trait::async_trait;
use session_conformance::{
    Cell, Instance, Judgement, Report, Strategy, Suite, Trial, Trouble, Verdict,
    scenario::{Batch, Check, Convictor, Findings, Lab, Need, Scenario, Script, Task},
    system::values,
    wrapper::{Wrapper, wrap},
};
use session_core::{
    Error, ErrorKind, Key, Loaded, LockingStore, MemoryLock, MemoryStore, Pair, Result, StorageKey, Token,
};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

const MUTANT: Convictor = Convictor::Mutant("of these tests");

const SCENARIOS: &[Scenario] = &[
    Scenario::new::<Idle>("test/idle", "a control that loses nothing", Convictor::BLIND),
    Scenario::new::<OneByOne>("test/one_by_one", "nobody is in the way", MUTANT)
        .strategies(Strategy::PRODUCT)
        .needs(&[Need::OneProcess])
        .overlap(10),
    Scenario::new::<Refused>("test/refused", "every operation is refused", MUTANT)
        .strategies(Strategy::DRIVER),
    Scenario::new::<Hangs>("test/hangs", "it never ends", MUTANT)
        .strategies(Strategy::DRIVER)
        .limit(Duration::from_millis(200))
        .cap(1),
    Scenario::new::<Draws>("test/draws", "chance", MUTANT).strategies(Strategy::DRIVER),
    Scenario::new::<ByClosure>("test/by_closure", "the product's own closures", MUTANT)
        .strategies(Strategy::PRODUCT),
    Scenario::check::<Panics>("test/panics", "it panics", MUTANT),
    Scenario::check::<Unreachable>("test/unreachable", "no server", MUTANT),
    Scenario::check::<Never>("test/needs_an_index", "an index", MUTANT)
        .needs(&[Need::OneProcess, Need::Index]),
    Scenario::check::<Never>("test/needs_fencing", "fencing", MUTANT)
        .needs(&[Need::OneProcess, Need::Fencing]),
    Scenario::check::<Never>("test/needs_control", "a server", MUTANT)
        .needs(&[Need::OneProcess, Need::Control]),
    Scenario::check::<Never>("test/needs_processes", "processes", MUTANT).needs(&[Need::Processes]),
];

macro_rules! work {
    ($name:ident, |$task:ident| $work:block) => {
        struct $name;

        impl Script for $name {
            type Plan = ();
            type Note = ();

            async fn setup(_: &Lab) -> Trial {
                Ok(())
            }

            async fn work($task: &Task<()>, (): &()) -> Trial $work

            async fn judge(_: &Lab, (): &(), found: &Findings<()>) -> Trial<Judgement> {
                Ok(found.judgement())
            }
        }
    };
}

macro_rules! check {
    ($name:ident, $check:block) => {
        struct $name;

        impl Check for $name {
            async fn check(_: &Lab) -> Trial<Judgement> $check
        }
    };
}

work!(Idle, |task| {
    task.attempt(0, (), async { Ok(()) }).await;
    Ok(())
});

work!(OneByOne, |task| {
    for rank in 0..task.ranks() {
        if rank == task.rank() {
            task.attempt(0, (), async { Ok(()) }).await;
        }
        task.barrier(format!("after {rank}")).await?;
    }
    Ok(())
});

work!(Refused, |task| {
    task.attempt(0, (), async { Err::<(), _>(Error::new(ErrorKind::Busy, "test")) }).await;
    Ok(())
});

work!(Hangs, |task| { task.wait("what nobody signals").await.map(drop) });

/// Shows what each task drew.
struct Draws;

impl Script for Draws {
    type Plan = ();
    type Note = u64;

    async fn setup(_: &Lab) -> Trial {
        Ok(())
    }

    async fn work(task: &Task<u64>, (): &()) -> Trial {
        task.attempt(task.rank(), task.draw(0..u64::MAX), async { Ok(()) }).await;
        Ok(())
    }

    async fn judge(_: &Lab, (): &(), found: &Findings<u64>) -> Trial<Judgement> {
        let drawn: Vec<_> = (0..4).flat_map(|rank| found.of_session(rank)).map(|one| one.note).collect();
        assert!(drawn.iter().all(|one| drawn.iter().filter(|other| *other == one).count() == 1), "{drawn:?}");
        Ok(found.judgement().note(format!("{drawn:?}")))
    }
}

const DONE: Key<u64> = Key::new("done");

/// Works with the product itself, in its own words.
struct ByClosure;

impl Script for ByClosure {
    type Plan = Vec<Batch>;
    type Note = ();

    async fn setup(lab: &Lab) -> Trial<Vec<Batch>> {
        lab.batches(&values([("done", 0.into())])).await
    }

    async fn work(task: &Task<()>, plan: &Vec<Batch>) -> Trial {
        for batch in plan {
            let id = batch.id.session_id().ok_or_else(|| Trouble::unproven("an id of the product"))?;
            let locked = task.sessions().exclusive(&id, async |session| {
                task.think().await;
                session.update(DONE, |done| *done += 1)
            });
            task.attempt(0, (), locked).await;
            let replayed = task.sessions().update(&id, |session| session.update(DONE, |done| *done += 1));
            task.attempt(0, (), replayed).await;
        }
        Ok(())
    }

    async fn judge(lab: &Lab, plan: &Vec<Batch>, found: &Findings<()>) -> Trial<Judgement> {
        let count = found.count(0);
        let done = lab.system().number(&plan[0].id, "done").await?;
        Ok(found.judgement().compare("done", count.acknowledged, count.unknown, done))
    }
}

check!(Panics, { panic!("all is lost") });
check!(Unreachable, { Err(Error::unavailable("load", "no route").into()) });
check!(Never, { Err(Trouble::wrong("it ran, and was not to")) });

fn suite(scenario: &str) -> Suite {
    let make = || async { Ok(Instance::new(Arc::new(MemoryStore::default()))) };
    Suite::new(make).private().also(SCENARIOS).scenarios([scenario])
}

/// On a store without fencing. (Its index is the memory store's.)
fn pair(scenario: &str) -> Suite {
    let make = || async { Ok(Instance::new(Arc::new(Pair(MemoryStore::default(), MemoryLock::default())))) };
    Suite::new(make).private().also(SCENARIOS).scenarios([scenario])
}

async fn only(suite: Suite) -> Cell {
    let report = suite.run().await;
    assert_eq!(report.cells.len(), 1, "{report}");
    report.cells[0].clone()
}

fn verdict(report: &Report, strategy: Strategy) -> Verdict {
    let cell = report.cells.iter().find(|cell| cell.strategy == strategy.name());
    cell.expect("a cell of this strategy").verdict
}

#[tokio::test]
async fn a_convictor_that_loses_nothing_proves_nothing() {
    let report = suite("test/idle").run().await;
    assert_eq!(verdict(&report, Strategy::Blind), Verdict::Unknown);
    assert_eq!(verdict(&report, Strategy::LockOnly), Verdict::Pass, "another control need not lose");
    assert_eq!(verdict(&report, Strategy::Write), Verdict::Pass);
    assert!(report.passed(), "controls decide nothing");
}

#[tokio::test]
async fn without_overlap_nothing_was_tried() {
    let report = suite("test/one_by_one").run().await;
    assert_eq!(verdict(&report, Strategy::Write), Verdict::Unknown);
    assert!(report.cells[0].detail.contains("only 0 of 4 operations overlapped"), "{report}");
    assert!(!report.passed());
}

#[tokio::test]
async fn when_nothing_is_acknowledged_nothing_was_tried() {
    let cell = only(suite("test/refused")).await;
    assert_eq!((cell.verdict, cell.rejected, cell.acknowledged), (Verdict::Unknown, 4, 0));
}

#[tokio::test]
async fn a_script_may_use_the_product_itself() {
    let report = suite("test/by_closure").run().await;
    assert!(
        report.cells.iter().all(|cell| (cell.verdict, cell.acknowledged) == (Verdict::Pass, 8)),
        "{report}"
    );
}

#[tokio::test]
async fn a_cell_that_hangs_fails() {
    let cell = only(suite("test/hangs")).await;
    assert_eq!(cell.verdict, Verdict::Fail);
    assert!(cell.detail.contains("hung") && cell.detail.contains("capped at 1"), "{}", cell.detail);
}

#[tokio::test]
async fn a_store_that_panics_fails() {
    let cell = only(suite("test/panics")).await;
    assert_eq!(cell.verdict, Verdict::Fail);
    assert!(cell.detail.contains("all is lost"), "{}", cell.detail);
}

#[tokio::test]
async fn a_store_that_cannot_be_reached_proves_nothing() {
    let cell = only(suite("test/unreachable")).await;
    assert_eq!(cell.verdict, Verdict::Unknown);
    assert!(cell.detail.contains("no route"), "{}", cell.detail);
}

#[tokio::test]
async fn a_store_that_cannot_be_made_proves_nothing() {
    let make = || async { Err(Error::unavailable("open", "no such directory")) };
    let cell = only(Suite::new(make).private().also(SCENARIOS).scenarios(["test/panics"])).await;
    assert_eq!(cell.verdict, Verdict::Unknown);
}

#[tokio::test]
async fn what_a_store_declares_it_lacks_is_asserted() {
    let cell = only(pair("test/needs_fencing")).await;
    assert_eq!(cell.verdict, Verdict::NotApplicable);
    assert!(cell.detail.contains("accepted during a lease"), "{}", cell.detail);
    // With fencing it runs, and this one fails when it runs.
    assert_eq!(only(suite("test/needs_fencing")).await.verdict, Verdict::Fail);
    assert_eq!(only(suite("test/needs_an_index")).await.verdict, Verdict::Fail);
}

#[tokio::test]
async fn what_is_missing_is_absent_or_declined_and_never_passed() {
    assert_eq!(only(suite("test/needs_control")).await.verdict, Verdict::Absent);
    assert_eq!(only(suite("test/needs_processes")).await.verdict, Verdict::NotApplicable);
    let report = suite("test/needs_control").run().await;
    assert!(!report.passed(), "nothing has passed");
}

#[tokio::test]
async fn the_same_seed_gives_the_same_choices() {
    let drawn = |seed| async move { only(suite("test/draws").seed(seed)).await.detail };
    assert_eq!(drawn(7).await, drawn(7).await);
    assert_ne!(drawn(7).await, drawn(8).await);
}

/// What it grants is heard of late, as on a machine that stands still just then: the first lease is over by
/// that time.
#[derive(Debug)]
struct LateToHear(Arc<dyn LockingStore>);

#[async_trait]
impl Wrapper for LateToHear {
    fn inner(&self) -> &Arc<dyn LockingStore> {
        &self.0
    }

    async fn acquire_and_load(
        &self,
        key: &StorageKey,
        token: Token,
        lease: Duration,
        wait: Duration,
    ) -> Result<Loaded> {
        let loaded = self.0.acquire_and_load(key, token, lease, wait).await;
        sleep(Duration::from_millis(250)).await;
        loaded
    }
}

#[tokio::test]
async fn a_lease_that_ends_because_the_machine_is_slow_convicts_nobody() {
    let make = || async { Ok(Instance::new(wrap(LateToHear(Arc::new(MemoryStore::default()))))) };
    let suite = Suite::new(make).private().strategies([Strategy::Exclusive]);
    let cell = only(suite.scenarios(["lock/renewal_outlives_the_lease"])).await;
    assert_eq!(cell.verdict, Verdict::Pass, "{}", cell.detail);
}
