//! The matrix as text.

use super::{Cell, Report, summary};
use crate::{Strategy, Verdict};

const LEGEND: &str = "\
pass     the claim held                 FAIL     it was broken: what was lost, of what was acknowledged
loses    a control lost: it is there to n/a      the backend says that it cannot, and that is so
unknown  the run proved nothing         absent   not run: something is missing here
blind and lock-only are controls: what session handlers elsewhere do. (4p): in four processes.";

/// One column: a strategy of a backend.
struct Column<'a> {
    backend: &'a str,
    strategy: Strategy,
    cells: Vec<String>,
    width: usize,
}

pub(super) fn render(report: &Report, width: usize) -> String {
    let scenarios = report.scenarios();
    let mut out = String::new();
    if !scenarios.is_empty() {
        let first = scenarios.iter().map(|name| name.len()).max().unwrap_or_default();
        let columns: Vec<_> =
            report.backends().iter().flat_map(|backend| columns(report, backend, &scenarios)).collect();
        for block in blocks(&columns, width.saturating_sub(first)) {
            matrix(&mut out, &scenarios, first, block);
            out.push('\n');
        }
        out.push_str(LEGEND);
        out.push('\n');
    }
    evidence(&mut out, report);
    out
}

fn columns<'a>(report: &'a Report, backend: &'a str, scenarios: &[&str]) -> Vec<Column<'a>> {
    let column = |strategy: Strategy| {
        let place = |scenario: &&str| summary(&report.place(backend, strategy, scenario));
        let cells: Vec<_> = scenarios.iter().map(place).collect();
        let widest = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or_default();
        Column { backend, strategy, width: widest.max(strategy.name().len()), cells }
    };
    report.strategies(backend).into_iter().map(column).collect()
}

/// Whole backends side by side, as many as fit.
fn blocks<'a, 'b>(columns: &'b [Column<'a>], width: usize) -> Vec<&'b [Column<'a>]> {
    let room = |columns: &[Column<'_>]| columns.iter().map(|column| column.width + 2).sum::<usize>();
    let mut blocks = Vec::new();
    let mut begin = 0;
    let mut end = 0;
    for backend in columns.chunk_by(|one, other| one.backend == other.backend) {
        if end > begin && room(&columns[begin..end + backend.len()]) > width {
            blocks.push(&columns[begin..end]);
            begin = end;
        }
        end += backend.len();
    }
    blocks.push(&columns[begin..]);
    blocks
}

fn matrix(out: &mut String, scenarios: &[&str], first: usize, columns: &[Column<'_>]) {
    let mut line = format!("{:first$}", "");
    for backend in columns.chunk_by(|one, other| one.backend == other.backend) {
        let room = backend.iter().map(|column| column.width + 2).sum::<usize>() - 2;
        let name = backend.first().map_or("", |column| column.backend);
        line.push_str(&format!("  {name:-<room$}"));
    }
    push_line(out, &line);
    let mut line = format!("{:first$}", "");
    for column in columns {
        line.push_str(&format!("  {:1$}", column.strategy, column.width));
    }
    push_line(out, &line);
    for (row, scenario) in scenarios.iter().enumerate() {
        let mut line = format!("{scenario:first$}");
        for column in columns {
            line.push_str(&format!("  {:1$}", column.cells[row], column.width));
        }
        push_line(out, &line);
    }
}

fn push_line(out: &mut String, line: &str) {
    out.push_str(line.trim_end());
    out.push('\n');
}

/// What is behind the bad cells, and what is missing.
fn evidence(out: &mut String, report: &Report) {
    let shown = |cell: &&Cell| match cell.verdict {
        Verdict::Fail | Verdict::Unknown => true,
        Verdict::Absent => cell.scenario.is_empty(),
        Verdict::Pass | Verdict::Loses | Verdict::NotApplicable => false,
    };
    for cell in report.cells.iter().filter(shown) {
        let line = if cell.scenario.is_empty() { format!("{}: absent", cell.backend) } else { cell.line() };
        push_line(out, &format!("\n{line}"));
        for finding in cell.detail.lines() {
            push_line(out, &format!("    {finding}"));
        }
    }
}
