//! `bench`: starts the backends, measures one after the other, prints the table.

use super::{
    FAILED, PASSED,
    args::BenchArgs,
    backends::{Backend, Running, Started},
    by_hand, output, usage,
};
use indicatif::{ProgressBar, ProgressStyle};
use session_conformance::{
    Instance,
    bench::{Bench, BenchReport, Subject},
};
use session_core::Result;
use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::Arc,
};
use url::Url;

pub(super) async fn run(args: &BenchArgs) -> i32 {
    let files = (output::create(args.json.as_deref()), output::create(args.html.as_deref()));
    let (Ok(json), Ok(_html)) = files else {
        let (json, html) = files;
        usage(&json.and(html).err().unwrap_or_default());
    };
    let report = tokio::select! {
        report = measure(args) => report,
        // Servers and directories go with what is dropped here.
        _ = tokio::signal::ctrl_c() => return FAILED,
    };
    let written = report.map_err(|error| error.to_string()).and_then(|report| {
        let write = || -> io::Result<()> {
            let mut out = io::stdout().lock();
            writeln!(out, "{report}\nseed {}", report.header.seed)?;
            if let Some(mut json) = json {
                serde_json::to_writer_pretty(&mut json, &report)?;
                writeln!(json)?;
            }
            Ok(())
        };
        write().map_err(|error| error.to_string())
    });
    match written {
        Ok(()) => PASSED,
        Err(error) => {
            eprintln!("error: {error}");
            FAILED
        }
    }
}

async fn measure(args: &BenchArgs) -> Result<BenchReport> {
    let bench = Bench::new(args.points()).operations(args.operations().iter().copied());
    let bench = bench.time(args.seconds).seed(args.seed);
    let mut report = BenchReport::new(args.seed, args.seconds.as_secs_f64());
    let mut started = Vec::new();
    for (backend, url) in args.backends() {
        match (backend.start)(url).await {
            Started::Running(running) => started.push((backend, running)),
            Started::Absent(how) => eprintln!("{}: absent; {how}", backend.name),
            Started::Refused(why) => usage(&format!("--backend {}: {why}", backend.name)),
        }
    }
    let bar = bar();
    bar.set_length(started.iter().map(|(backend, _)| bench.len(!backend.private) as u64).sum());
    for (backend, running) in started {
        bar.set_message(backend.name);
        report.header.servers.insert(backend.name.to_owned(), running.describe());
        let subject = subject(backend, &running).await?;
        report.rows.extend(bench.run(&subject, &|| bar.inc(1)).await?);
    }
    bar.finish_and_clear();
    Ok(report)
}

/// The store, what it is compared with, and the way to it that counts.
async fn subject(backend: &Backend, running: &Arc<dyn Running>) -> Result<Subject> {
    let mut subject = Subject::new(backend.name, running.instance().await?);
    // Several servers in one address are no URL in the strict sense, and nothing that can be compared by hand.
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

fn bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {percent}% {elapsed}, {eta} left, {wide_msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
