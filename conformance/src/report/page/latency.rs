//! What was measured: charts first, all numbers below.

use super::{charts, escape, list, thousands};
use crate::bench::{BenchReport, Contention, Operation, Point, Row};

pub(super) fn section(bench: &BenchReport) -> String {
    let settings = &bench.header.settings;
    let mut out = format!(
        "<section class=\"latency\">\n<h2>What it costs</h2>\n<p>Each operation for {} s at each point, all ways in turn in one run; {} of {} \
         processors for the tasks, the rest for the servers. Ratios hold on other machines, microseconds don't.</p>\n{}",
        settings.seconds,
        settings.workers,
        settings.processors,
        list(bench.header.servers.iter()),
    );
    let alone = |row: &&Row| row.point() == Point::default();
    chapter(
        &mut out,
        bench,
        "Against the same commands by hand",
        "One task, 1 KiB. Bars: p50; the thin line goes on to p99 (without an end: further than the drawing); the upright mark is the p50 of the same commands sent by hand on a raw client.",
        &alone,
        charts::bars,
    );
    chapter(
        &mut out,
        bench,
        "Percentiles",
        "The same. What one in a hundred and one in a thousand waits.",
        &alone,
        charts::curves,
    );
    let most =
        bench.rows.iter().filter(|row| row.contention == Contention::Contended).map(|row| row.tasks).max();
    let contended = |row: &&Row| {
        row.contention == Contention::Contended && Some(row.tasks) == most && row.operation != Operation::Read
    };
    chapter(
        &mut out,
        bench,
        "Waiting for one session",
        &format!(
            "{} tasks change one session, over and over, with a pause of up to 10 ms between. Bars and lines as above.",
            most.unwrap_or_default()
        ),
        &contended,
        charts::bars,
    );
    if !bench.rows.is_empty() {
        out.push_str(&numbers(bench));
    }
    if !bench.scale.is_empty() {
        out.push_str(&scale(bench));
    }
    out.push_str("</section>\n");
    out
}

/// A chart for each backend that has such rows.
fn chapter(
    out: &mut String,
    bench: &BenchReport,
    title: &str,
    text: &str,
    wanted: &dyn Fn(&&Row) -> bool,
    draw: fn(&[&Row]) -> String,
) {
    let mut figures = String::new();
    for rows in bench.rows.chunk_by(|one, other| one.backend == other.backend) {
        let rows: Vec<_> = rows.iter().filter(wanted).collect();
        let Some(first) = rows.first() else { continue };
        let label = format!("{}: {}", first.backend, spoken(&rows));
        // The drawing has no words of its own for those who cannot see it.
        let svg = draw(&rows).replacen(
            "<svg ",
            &format!("<svg role=\"img\" aria-label=\"{}\" ", escape(&label)),
            1,
        );
        figures.push_str(&format!(
            "<figure><figcaption>{}</figcaption>{svg}</figure>\n",
            escape(&first.backend)
        ));
    }
    if !figures.is_empty() {
        out.push_str(&format!("<h3>{title}</h3>\n<p>{text}</p>\n<div class=\"charts\">\n{figures}</div>\n"));
    }
}

fn spoken(rows: &[&Row]) -> String {
    let words = |row: &&Row| {
        format!("{} p50 {}, p99 {}", row.operation, charts::time(row.p50_us), charts::time(row.p99_us))
    };
    rows.iter().map(words).collect::<Vec<_>>().join("; ")
}

fn numbers(bench: &BenchReport) -> String {
    const HEAD: [&str; 10] =
        ["", "p50", "p90", "p99", "p99.9", "ops/s", "round trips", "vs floor", "vs classical", "failed"];
    let head: String = HEAD.iter().map(|name| format!("<th>{name}</th>")).collect();
    let some = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.2}"));
    let mut body = String::new();
    for rows in bench.rows.chunk_by(|one, other| one.backend == other.backend && one.point() == other.point())
    {
        let Some(first) = rows.first() else { continue };
        body.push_str(&format!(
            "<tr class=\"group\"><th>{}</th><td colspan=\"9\">{}</td></tr>\n",
            escape(&first.backend),
            first.point()
        ));
        for row in rows {
            let failed = if row.failed > 0 { row.failed.to_string() } else { String::new() };
            let times: String = [row.p50_us, row.p90_us, row.p99_us, row.p999_us]
                .iter()
                .map(|us| format!("<td>{}</td>", charts::time(*us)))
                .collect();
            body.push_str(&format!(
                "<tr><th>{}</th>{times}<td>{:.0}</td><td>{}</td><td>{}</td><td>{}</td><td>{failed}</td></tr>\n",
                row.operation,
                row.ops_per_s,
                some(row.trips),
                some(row.vs_floor),
                some(row.vs_classical),
            ));
        }
    }
    format!(
        "<h3>All numbers</h3>\n<p>vs floor: p50 by that of the same commands by hand; vs classical: by that of lock, read, overwrite, unlock, \
         as session handlers elsewhere do it (never compressed).</p>\n\
         <div class=\"wide\"><table class=\"numbers\"><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n"
    )
}

/// Whether many sessions make each one slower.
fn scale(bench: &BenchReport) -> String {
    let some = |value: Option<f64>| value.map_or_else(String::new, |value| thousands(value as u64));
    let ratio = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.2}"));
    let mut body = String::new();
    for rows in bench.scale.chunk_by(|one, other| one.backend == other.backend) {
        let Some(first) = rows.first() else { continue };
        body.push_str(&format!(
            "<tr class=\"group\"><th>{}</th><td colspan=\"7\"></td></tr>\n",
            escape(&first.backend)
        ));
        for row in rows {
            body.push_str(&format!(
                "<tr><th>{}{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                row.operation,
                if row.sweeping { ", while others are swept" } else { "" },
                thousands(row.sessions as u64),
                charts::time(row.p50_us),
                charts::time(row.p99_us),
                ratio(row.p50_by_small),
                ratio(row.p99_by_small),
                some(row.bytes_per_session),
                some(row.swept_per_s),
            ));
        }
    }
    const HEAD: [&str; 8] =
        ["", "sessions", "p50", "p99", "p50 by", "p99 by", "bytes a session", "swept a second"];
    let head: String = HEAD.iter().map(|name| format!("<th>{name}</th>")).collect();
    format!(
        "<h3>Many sessions</h3>\n<p>One task, small sessions chosen at random. By: by that of ten thousand sessions.</p>\n\
         <div class=\"wide\"><table class=\"numbers\"><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n"
    )
}
