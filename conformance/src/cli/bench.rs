//! `bench`: starts the backends, measures one after the other, prints the table.

use super::{
    FAILED, PASSED,
    args::BenchArgs,
    backends::{Backend, Running, Started},
    broken_off::BrokenOff,
    by_hand, describe, failed,
    output::{Files, say},
    usage,
};
use async_trait::async_trait;
use indicatif::{ProgressBar, ProgressStyle};
use session_conformance::{
    Instance,
    bench::{Bench, BenchReport, Scale, Subject, Watch},
};
use session_core::{Error, Result};
use std::{
    io::{self, IsTerminal as _},
    sync::Arc,
};
use tokio::runtime::Builder;
use url::Url;

pub(super) async fn run(args: &BenchArgs) -> i32 {
    let files = Files::create(args.json.as_deref(), args.html.as_deref()).unwrap_or_else(|why| usage(&why));
    // In a runtime of its own, with a core left for the servers: where tasks move between more threads than
    // there are free cores, what is measured is the scheduler.
    let (workers, measured) = (args.workers(), args.clone());
    let measuring = tokio::task::spawn_blocking(move || {
        let runtime = Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
        runtime.block_on(async {
            let mut broken_off = BrokenOff::listen()?;
            let started = match broken_off.start(measured.backends()).await {
                Ok(started) => started,
                Err(code) => return Ok(Err(code)),
            };
            let beside = match broken_off.start(measured.beside()).await {
                Ok(beside) => beside,
                Err(code) => return Ok(Err(code)),
            };
            Ok::<_, io::Error>(tokio::select! {
                report = measure(&measured, started, &beside) => Ok(report),
                // Servers and directories go with what is dropped here.
                code = broken_off.code() => Err(code),
            })
        })
    });
    let report = match measuring.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(Ok(report)) => report,
        Ok(Err(code)) => return code,
        Err(error) => return failed(&error),
    };
    let written = report.map_err(|error| error.to_string()).and_then(|report| {
        let written = files.write(&report, || report.to_html(None));
        let said = say(&format!("{report}\nseed {}\n", report.header.seed));
        said.and(written).map_err(|error| error.to_string())
    });
    match written {
        Ok(()) => PASSED,
        Err(error) => {
            eprintln!("error: {error}");
            FAILED
        }
    }
}

async fn measure(
    args: &BenchArgs,
    backends: Vec<(&'static Backend, Started)>,
    beside: &[(&'static Backend, Started)],
) -> Result<BenchReport> {
    let bench = Bench::new(args.points()).operations(args.operations().iter().copied());
    let bench = bench.time(args.seconds).seed(args.seed);
    let mut report = BenchReport::new(args.seed, args.seconds, args.workers());
    let mut started = Vec::new();
    for (backend, start) in backends {
        match start {
            Started::Running(running) => started.push((backend, running)),
            Started::Absent(how) | Started::Refused(how) => eprintln!("{}: absent; {how}", backend.name),
        }
    }
    let bar = bar(args.scale.is_some());
    if args.scale.is_none() {
        bar.set_length(started.iter().map(|(backend, _)| bench.len(!backend.private) as u64).sum());
    }
    for (backend, running) in started {
        bar.set_message(backend.name);
        report.header.servers.insert(backend.name.to_owned(), describe(backend, &*running).await);
        let subject = subject(backend, &running).await?;
        match args.scale {
            None => report.rows.extend(bench.run(&subject, &|| bar.inc(1)).await?),
            Some(sessions) => {
                let sessions = usize::try_from(sessions).unwrap_or(usize::MAX);
                let scale = Scale { sessions, time: args.seconds, seed: args.seed };
                bar.set_length(sessions as u64);
                let scales = Scales { subject: &subject, bar: &bar };
                let small = match beside.iter().find(|(beside, _)| beside.name == backend.name) {
                    Some((_, Started::Running(running))) => Some(self::subject(backend, running).await?),
                    _ => None,
                };
                report.scale.extend(scale.run(&subject, small.as_ref(), &scales).await?);
                scales.begins("cleaning up");
            }
        }
    }
    bar.finish_and_clear();
    Ok(report)
}

/// Shows how far a store is filled, and weighs it.
struct Scales<'a> {
    subject: &'a Subject,
    bar: &'a ProgressBar,
}

#[async_trait(?Send)]
impl Watch for Scales<'_> {
    async fn weigh(&self) -> Result<Option<u64>> {
        let Some(Ok(address)) = self.subject.instance.address.as_deref().map(Url::parse) else {
            return Ok(None);
        };
        by_hand::weight(&self.subject.backend, &address).await
    }

    async fn settle(&self) -> Result<()> {
        let synced = tokio::task::spawn_blocking(rustix::fs::sync).await;
        synced.map_err(|error| Error::backend("bench", error))
    }

    fn filled(&self, sessions: usize) {
        self.bar.set_position(sessions as u64);
    }

    fn begins(&self, what: &str) {
        self.bar.set_message(format!("{}: {what}", self.subject.backend));
        if self.bar.is_hidden() {
            eprintln!("{}: {what}", self.subject.backend);
        }
    }
}

/// The store, what it is compared with, and the way to it that counts.
async fn subject(backend: &Backend, running: &Arc<dyn Running>) -> Result<Subject> {
    let mut subject = Subject::new(backend.name, running.instance().await?);
    // Several servers in one address are no URL in the strict sense, and nothing that can be compared by
    // hand.
    let Some(Ok(mut address)) = subject.instance.address.as_deref().map(Url::parse) else {
        return Ok(subject);
    };
    if let Some(server) = running.direct() {
        address = by_hand::at(&address, server)?;
        let Instance { guard, .. } = subject.instance;
        let store = session_store::connect(address.as_str()).await?;
        subject.instance = Instance::new(store).guard(guard).address(address.as_str());
    }
    subject.by_hand = by_hand::connect(backend.name, &address).await?;
    subject.counted = by_hand::counted(backend.name, &address).await?;
    Ok(subject)
}

fn bar(sessions: bool) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let count = if sessions { "{pos}/{len}" } else { "{percent}%" };
    let style =
        ProgressStyle::with_template(&format!("{{bar:30}} {count} {{elapsed}}, {{eta}} left, {{wide_msg}}"));
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
