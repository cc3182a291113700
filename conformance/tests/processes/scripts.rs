//! Scenarios about the framework itself.

use session_conformance::{
    Judgement, Strategy, Trial,
    scenario::{Convictor, Findings, Lab, Need, Scenario, Script, Task, now},
};
use std::time::Duration;

/// None of these is about a store: who breaks them is the framework.
const NOBODY: Convictor = Convictor::Mutant("the framework");

const fn scenario<S: Script>(name: &'static str) -> Scenario {
    Scenario::new::<S>(name, "a test of the framework", NOBODY)
        .strategies(Strategy::DRIVER)
        .needs(&[Need::Processes])
        .cap(1)
        .limit(Duration::from_secs(5))
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario::<TasksMeet>("test/tasks_meet").limit(Duration::from_secs(30)),
    scenario::<OneWorkerDies>("test/one_worker_dies"),
    scenario::<OneTaskPanics>("test/one_task_panics"),
    scenario::<OneTaskNeverComes>("test/one_task_never_comes").limit(Duration::from_secs(1)),
    scenario::<OneWorkerIsKilled>("test/one_worker_is_killed"),
    scenario::<OneWorkerIsStopped>("test/one_worker_is_stopped"),
    scenario::<EveryoneSleepsStopped>("test/everyone_sleeps_stopped").limit(Duration::from_secs(60)),
];

/// What most of them have in common: no plan, and a judgement of the counts alone.
macro_rules! simple {
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

simple!(OneWorkerDies, |task| {
    if task.process() == 1 {
        eprintln!("farewell");
        std::process::exit(7);
    }
    task.barrier("all").await
});

simple!(OneTaskPanics, |task| {
    assert!(task.rank() != 3, "three is enough");
    task.barrier("all").await
});

simple!(OneTaskNeverComes, |task| {
    if task.rank() == 2 {
        task.wait("what nobody signals").await?;
    }
    task.barrier("all").await
});

simple!(OneWorkerIsKilled, |task| {
    if task.rank() == 2 {
        return task.kill().await;
    }
    if task.process() != 1 {
        task.wait("killed/2").await?;
        task.barrier("the living").await?;
        task.attempt(0, (), async { Ok(()) }).await;
        return Ok(());
    }
    task.wait("what nobody signals").await.map(drop)
});

simple!(EveryoneSleepsStopped, |task| {
    if let Some(dir) = std::env::var_os("TEST_PIDS")
        && task.rank().is_multiple_of(task.tasks())
    {
        std::fs::write(std::path::Path::new(&dir).join(std::process::id().to_string()), "")?;
        task.barrier_of("written", task.processes(), Duration::from_secs(10)).await?;
        task.pause_until("what nobody signals").await?;
    }
    task.wait("what nobody signals").await.map(drop)
});

/// Every task waits for every other, by a barrier, by a barrier of some, and by signals with values.
struct TasksMeet;

impl Script for TasksMeet {
    type Plan = String;
    type Note = u64;

    async fn setup(lab: &Lab) -> Trial<String> {
        Ok(format!("{} tasks", lab.ranks()))
    }

    async fn work(task: &Task<u64>, plan: &String) -> Trial {
        assert_eq!((plan.as_str(), task.ranks(), task.processes(), task.tasks()), ("6 tasks", 6, 3, 2));
        task.signal(format!("came/{}", task.rank()), now()).await?;
        task.barrier("all").await?;
        let after = now();
        for rank in 0..task.ranks() {
            let came = task.wait(format!("came/{rank}")).await?.as_u64().expect("a time");
            assert!(came <= after, "task {rank} came {came}, the barrier opened {after}");
        }
        assert!(!task.barrier_of("too few", task.ranks() + 1, Duration::from_millis(50)).await?);
        assert!(task.wait_at_most("never", Duration::from_millis(50)).await?.is_null());
        task.attempt(0, after, async { Ok(()) }).await;
        Ok(())
    }

    async fn judge(_: &Lab, _: &String, found: &Findings<u64>) -> Trial<Judgement> {
        let came = found.signals.keys().filter(|name| name.starts_with("came/")).count();
        let in_order = found.operations.is_sorted_by_key(|operation| operation.start);
        let noted = found.operations.iter().all(|operation| operation.note <= operation.start);
        Ok(found.judgement().require(came == 6 && in_order && noted, || format!("{found:?}")))
    }
}

/// One counts as fast as it can; while its process is stopped its time stands still.
struct OneWorkerIsStopped;

impl Script for OneWorkerIsStopped {
    type Plan = ();
    type Note = (u64, u64);

    async fn setup(_: &Lab) -> Trial {
        Ok(())
    }

    async fn work(task: &Task<(u64, u64)>, (): &()) -> Trial {
        match task.rank() {
            0 => {
                task.wait("counting").await?;
                task.pause_until("enough").await?;
                task.signal("back", now()).await?;
                task.pause_for(Duration::from_millis(50)).await
            }
            // In the same process: it must not run between "paused" and "enough".
            1 => {
                let mut longest = (0, 0);
                let mut last = now();
                task.signal("counting", true).await?;
                while task.wait_at_most("back", Duration::from_millis(1)).await?.is_null() {
                    let this = now();
                    longest = longest.max((this - last, last));
                    last = this;
                }
                let (gap, begin) = longest.max((now() - last, last));
                task.attempt(0, (begin, begin + gap), async { Ok(()) }).await;
                Ok(())
            }
            2 => {
                task.wait("paused/0").await?;
                let stopped = now();
                tokio::time::sleep(Duration::from_millis(200)).await;
                task.signal("stood", serde_json::json!([stopped, now()])).await?;
                task.signal("enough", true).await
            }
            _ => Ok(()),
        }
    }

    async fn judge(_: &Lab, (): &(), found: &Findings<(u64, u64)>) -> Trial<Judgement> {
        let (begin, end) = found.operations[0].note;
        let stood: (u64, u64) = serde_json::from_value(found.signals["stood"].clone())?;
        let slept = begin <= stood.0 && end >= stood.1;
        Ok(found
            .judgement()
            .require(slept, || format!("no gap around {stood:?}, the longest is {:?}", (begin, end))))
    }
}
