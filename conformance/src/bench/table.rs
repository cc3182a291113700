//! The rows as text.

use super::{BenchReport, Row, scale};
use std::fmt;

const LEGEND: &str = "\
times in us; trips: round trips of one operation; vs floor: p50 by that of the same commands by hand;
vs classical: p50 by that of lock, read, overwrite, unlock (uncompressed), as session handlers elsewhere do it.";

pub(super) fn write(report: &BenchReport, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for rows in report.rows.chunk_by(|one, other| one.backend == other.backend) {
        let Some(first) = rows.first() else { continue };
        writeln!(
            f,
            "{:<42}{:>9}{:>9}{:>9}{:>9}{:>10}{:>7}{:>10}{:>14}",
            format!("{} ----", first.backend),
            "p50",
            "p90",
            "p99",
            "p99.9",
            "ops/s",
            "trips",
            "vs floor",
            "vs classical"
        )?;
        for rows in rows.chunk_by(|one, other| one.point() == other.point()) {
            if let Some(first) = rows.first() {
                writeln!(f, "{}", first.point())?;
            }
            for row in rows {
                line(row, f)?;
            }
        }
        writeln!(f)?;
    }
    scale::write(&report.scale, f)?;
    if report.rows.is_empty() { writeln!(f, "times in us, one task") } else { writeln!(f, "{LEGEND}") }
}

fn line(row: &Row, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let some = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
    let failed = if row.failed > 0 { format!("  {} FAILED", row.failed) } else { String::new() };
    writeln!(
        f,
        "    {:<38}{:>9}{:>9}{:>9}{:>9}{:>10.0}{:>7}{:>10}{:>14}{failed}",
        row.operation.name(),
        time(row.p50_us),
        time(row.p90_us),
        time(row.p99_us),
        time(row.p999_us),
        row.ops_per_s,
        some(row.trips),
        some(row.vs_floor),
        some(row.vs_classical),
    )
}

/// Three digits are enough.
fn time(us: f64) -> String {
    if us < 100.0 { format!("{us:.1}") } else { format!("{us:.0}") }
}
