//! The three steps of a scenario, with their types and without.

use super::{
    Findings, Lab, Operation,
    task::{Seat, Task},
};
use crate::{Judgement, trouble::Trial};
use async_trait::async_trait;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use session_core::LockingStore;
use std::{future::Future, marker::PhantomData, sync::Arc};

/// The three steps of a scenario. Written as `async fn`s; see [`crate::scenarios`] for the pattern.
///
/// The functions are the same whether the tasks are in this process or in others: what they share goes
/// through the plan, the [`Task`], and the store under test.
pub trait Script: Send + Sync + 'static {
    /// What the parent prepared and every task must know: ids, sizes.
    type Plan: Serialize + DeserializeOwned + Send + Sync + 'static;

    /// What the judge must know of each operation; `()` when time and outcome are enough.
    type Note: Serialize + DeserializeOwned + Send + 'static;

    /// In the parent: fresh sessions, and what else the tasks must know.
    fn setup(lab: &Lab) -> impl Future<Output = Trial<Self::Plan>> + Send;

    /// In every process, before its tasks begin: the store that they work on, for a scenario about one that
    /// is slow, deaf or forgetful. The parent keeps the store as it is. The seed is another one in each
    /// process.
    fn wrap(store: Arc<dyn LockingStore>, _seed: u64) -> Arc<dyn LockingStore> {
        store
    }

    /// In every task of every process, all released together: operations, each recorded by [`Task::attempt`].
    fn work(task: &Task<Self::Note>, plan: &Self::Plan) -> impl Future<Output = Trial> + Send;

    /// In the parent, when all tasks have ended: reads what is there, compares it with what was recorded.
    fn judge(
        lab: &Lab,
        plan: &Self::Plan,
        found: &Findings<Self::Note>,
    ) -> impl Future<Output = Trial<Judgement>> + Send;
}

/// A scenario without tasks: one caller tries something and looks.
pub trait Check: Send + Sync + 'static {
    /// Tries and judges.
    fn check(lab: &Lab) -> impl Future<Output = Trial<Judgement>> + Send;
}

/// A [`Check`] as a [`Script`] whose tasks have nothing to do.
pub(crate) struct Alone<C>(PhantomData<fn() -> C>);

impl<C: Check> Script for Alone<C> {
    type Plan = ();
    type Note = ();

    async fn setup(_: &Lab) -> Trial {
        Ok(())
    }

    async fn work(_: &Task<()>, (): &()) -> Trial {
        Ok(())
    }

    async fn judge(lab: &Lab, (): &(), _: &Findings<()>) -> Trial<Judgement> {
        C::check(lab).await
    }
}

/// A [`Script`] without its types: plans and notes as JSON, as they go through a pipe.
#[async_trait]
pub(crate) trait Steps: Send + Sync {
    async fn setup(&self, lab: &Lab) -> Trial<Value>;
    fn wrap(&self, store: Arc<dyn LockingStore>, seed: u64) -> Arc<dyn LockingStore>;
    async fn work(&self, seat: Seat, plan: Value) -> Trial<Vec<Operation<Value>>>;
    async fn judge(&self, lab: &Lab, plan: Value, found: Findings<Value>) -> Trial<Judgement>;
}

struct Typed<S>(PhantomData<fn() -> S>);

pub(crate) const fn of<S: Script>() -> &'static dyn Steps {
    const { &Typed::<S>(PhantomData) }
}

#[async_trait]
impl<S: Script> Steps for Typed<S> {
    async fn setup(&self, lab: &Lab) -> Trial<Value> {
        Ok(serde_json::to_value(S::setup(lab).await?)?)
    }

    fn wrap(&self, store: Arc<dyn LockingStore>, seed: u64) -> Arc<dyn LockingStore> {
        S::wrap(store, seed)
    }

    async fn work(&self, seat: Seat, plan: Value) -> Trial<Vec<Operation<Value>>> {
        let plan: S::Plan = serde_json::from_value(plan)?;
        let task = Task::new(seat);
        S::work(&task, &plan).await?;
        let untyped = |operation: Operation<S::Note>| {
            let Operation { rank, session, start, end, outcome, note } = operation;
            Ok(Operation { rank, session, start, end, outcome, note: serde_json::to_value(note)? })
        };
        task.into_log().into_iter().map(untyped).collect()
    }

    async fn judge(&self, lab: &Lab, plan: Value, found: Findings<Value>) -> Trial<Judgement> {
        let plan: S::Plan = serde_json::from_value(plan)?;
        S::judge(lab, &plan, &found.typed()?).await
    }
}
