//! One cell of the matrix: a scenario, a strategy, a store, in one process or in several.

use crate::{
    Instance, Judgement,
    scenario::{Findings, Hub, Lab, Link, Need, Operation, Scenario, Seat, Terms, declined, overlapping},
    system::Systems,
    trouble::{Trial, Trouble},
    worker::{self, Job, Program, panicked},
};
use serde_json::Value;
use std::{future::Future, sync::Arc, time::Duration};
use tokio::{task::JoinSet, time::timeout};

/// How long the parent's own steps may take, beside what the operations are given.
const STEP: Duration = Duration::from_secs(60);

/// Runs a cell to its judgement. Whatever happens, it ends.
pub(crate) async fn run(
    scenario: &'static Scenario,
    terms: Terms,
    instance: Instance,
    program: Option<&Program>,
) -> Judgement {
    match try_run(scenario, terms, instance, program).await {
        Ok(judgement) => judgement,
        Err(Trouble::Wrong(why)) => Judgement::default().fault(why),
        Err(Trouble::Unproven(why)) => Judgement::default().unproven(why),
    }
}

async fn try_run(
    scenario: &'static Scenario,
    terms: Terms,
    instance: Instance,
    program: Option<&Program>,
) -> Trial<Judgement> {
    let Instance { store, guard, control, address, disks } = instance;
    let lab = Lab { terms, systems: Systems::new(store, scenario.settings)?, control, disks };
    let limit = scenario.time_limit(terms.ops);

    if let Some(judgement) = step("looking", STEP, declined(&lab, scenario.needs)).await? {
        return Ok(judgement);
    }
    let (steps, parent) = (scenario.steps, lab.clone());
    let plan = step("setup", STEP + limit, caught(async move { steps.setup(&parent).await })).await?;

    let hub = Arc::new(Hub::new(terms.ranks()));
    let working = async {
        match (program, address) {
            (Some(program), Some(address)) if terms.processes > 1 => {
                let Terms { strategy, ops, tasks, processes, seed } = terms;
                let scenario = scenario.name().to_owned();
                let plan = plan.clone();
                let job = Job { scenario, address, strategy, ops, tasks, processes, seed, plan, process: 0 };
                worker::work(program, &job, Arc::clone(&hub)).await
            }
            _ => here(scenario, &lab, plan.clone(), &hub).await,
        }
    };
    let mut found = timeout(limit, working)
        .await
        .map_err(|_| Trouble::wrong(format!("hung: not done within {limit:?}; {}", hub.stuck())))??;
    found.operations.sort_by_key(|operation| operation.start);

    let overlap = Overlap::of(&found.operations);
    let parent = lab.clone();
    let judging = caught(async move { steps.judge(&parent, plan, found).await });
    let judgement = step("judge", STEP + limit, judging).await?;
    drop(guard);
    Ok(overlap.weigh(scenario, judgement))
}

/// A step of the parent, with an end in sight.
async fn step<T>(name: &str, limit: Duration, run: impl Future<Output = Trial<T>>) -> Trial<T> {
    match timeout(limit, run).await {
        Ok(result) => result.map_err(|trouble| trouble.context(name)),
        Err(_) => Err(Trouble::wrong(format!("{name}: hung, not done within {limit:?}"))),
    }
}

/// In a task of its own, so that a panic of the store is a finding and not the end of the suite.
async fn caught<T: Send + 'static>(run: impl Future<Output = Trial<T>> + Send + 'static) -> Trial<T> {
    let mut tasks = JoinSet::new();
    tasks.spawn(run);
    match tasks.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(error)) => Err(panicked(0, error)),
        None => Err(Trouble::unproven("nothing ran")),
    }
}

/// The tasks of one process, in this one.
async fn here(scenario: &'static Scenario, lab: &Lab, plan: Value, hub: &Arc<Hub>) -> Trial<Findings<Value>> {
    let store = scenario.steps.wrap(Arc::clone(lab.store()), lab.terms.seed);
    let systems = Systems::new(store, scenario.settings)?;
    let mut working = JoinSet::new();
    let mut ranks = std::collections::HashMap::new();
    for rank in 0..lab.terms.ranks() {
        let link = Link::Here(Arc::clone(hub));
        let seat = Seat { rank, terms: lab.terms, systems: systems.clone(), link };
        let task = working.spawn(scenario.steps.work(seat, plan.clone()));
        ranks.insert(task.id(), rank);
    }
    let mut operations = Vec::new();
    while let Some(ended) = working.join_next_with_id().await {
        match ended {
            Ok((_, result)) => operations.extend(result?),
            Err(error) => {
                let rank = ranks.get(&error.id()).copied().unwrap_or_default();
                return Err(panicked(rank, error));
            }
        }
    }
    Ok(Findings { operations, signals: hub.signals() })
}

/// How much of the work was done at the same time.
struct Overlap {
    all: usize,
    overlapping: usize,
}

impl Overlap {
    fn of(operations: &[Operation<Value>]) -> Self {
        Self { all: operations.len(), overlapping: overlapping(operations) }
    }

    /// A claim that held when nobody was in the way was not tried.
    fn weigh(&self, scenario: &Scenario, judgement: Judgement) -> Judgement {
        if judgement.is_broken() || judgement.is_decided() {
            return judgement;
        }
        let Self { all, overlapping } = self;
        let needed = (*all as u64 * scenario.overlap).div_ceil(100);
        if (*overlapping as u64) < needed {
            let why =
                format!("only {overlapping} of {all} operations overlapped another task's, {needed} needed");
            return judgement.unproven(why);
        }
        if *all > 0 && judgement.acknowledged == 0 {
            return judgement.unproven("not one operation was acknowledged");
        }
        judgement
    }
}

/// What keeps a cell from running at all, if anything.
pub(crate) fn missing(scenario: &Scenario, instance: &Instance) -> Option<&'static str> {
    if scenario.needs_a(Need::Control) && instance.control.is_none() {
        return Some("nothing here can restart, pause or cut its server");
    }
    (scenario.needs_a(Need::Disk) && instance.disks.is_empty())
        .then_some("nothing here has power over a disk below it")
}
