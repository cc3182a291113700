//! The report as one self-contained page: no script, nothing from elsewhere, to be read on a phone, in the
//! dark and on paper.
//!
//! The matrix comes first, since it is the question: who loses data, how much, under what. Each of its cells
//! leads to the claim, the evidence and the command that runs it again; latency comes after it.

#[cfg(feature = "bench")]
mod charts;
mod evidence;
#[cfg(feature = "bench")]
mod latency;
mod matrix;

use super::{Header, Report};

const STYLE: &str = include_str!("style.css");

const LOSES: &str = "Which session stores lose updates";
#[cfg(feature = "bench")]
const COSTS: &str = "What a session costs";

/// The verdicts of a run.
pub(super) fn of_run(report: &Report) -> String {
    page(LOSES, &run(report, ""))
}

/// What was measured; with the verdicts of a run before it, when there are any.
#[cfg(feature = "bench")]
pub(super) fn of_bench(report: Option<&Report>, bench: &crate::bench::BenchReport) -> String {
    let latency = latency::section(bench);
    match report {
        Some(report) => page(LOSES, &run(report, &latency)),
        None => page(COSTS, &format!("<header><h1>{COSTS}</h1></header>\n{latency}")),
    }
}

fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <title>{title}</title><style>\n{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
}

/// The matrix and what it rests on, with what belongs between.
fn run(report: &Report, between: &str) -> String {
    format!(
        "<header><h1>{LOSES}</h1>\n{}</header>\n{}\n{}\n{between}\n{}",
        matrix::headline(report),
        matrix::section(report),
        servers(&report.header),
        evidence::section(report),
    )
}

fn servers(header: &Header) -> String {
    let settings = &header.settings;
    let processes = match settings.processes {
        Some(1) => "in one process".to_owned(),
        Some(processes) => format!("in {processes} processes"),
        None => "in one process and in several".to_owned(),
    };
    format!(
        "<section class=\"run\"><h2>What was run</h2>\n<p>Suite {}, seed {}: {} operations a cell, {} tasks a process, {processes}.</p>\n{}</section>",
        escape(&header.version),
        header.seed,
        settings.ops,
        settings.tasks,
        list(header.servers.iter()),
    )
}

fn list<'a>(servers: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let items = servers.map(|(name, what)| format!("<dt>{}</dt><dd>{}</dd>", escape(name), escape(what)));
    format!("<dl>{}</dl>", items.collect::<String>())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// 12,345.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
