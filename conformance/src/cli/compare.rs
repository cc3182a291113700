//! Whether runs agree: a suite whose verdict depends on the day convicts nobody.

use super::{FAILED, PASSED, said, usage};
use session_conformance::{Cell, Report};
use std::{collections::BTreeMap, path::PathBuf};

/// How often each verdict came, by cell.
type Verdicts = BTreeMap<String, BTreeMap<&'static str, usize>>;

pub(super) fn run(paths: &[PathBuf]) -> i32 {
    let read = |path: &PathBuf| {
        let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        serde_json::from_slice(&text).map_err(|error| format!("{} is no report: {error}", path.display()))
    };
    let reports: Vec<Report> = match paths.iter().map(read).collect() {
        Ok(reports) => reports,
        Err(why) => usage(&why),
    };
    let verdicts = verdicts(&reports);
    let differing: Vec<_> = verdicts
        .iter()
        .filter(|(_, verdicts)| verdicts.len() > 1 || verdicts.values().sum::<usize>() != reports.len())
        .collect();
    let mut text = String::new();
    for (cell, verdicts) in &differing {
        let counts: Vec<_> = verdicts.iter().map(|(verdict, times)| format!("{verdict} {times}")).collect();
        text += &format!("{cell}: {} of {} runs\n", counts.join(", "), reports.len());
    }
    let bad: usize = reports.iter().flat_map(|report| &report.cells).filter(|cell| cell.is_bad()).count();
    text += &format!(
        "{} runs of {} cells: {} with verdicts that differ, {bad} times FAIL or unknown where nothing may be lost\n",
        reports.len(),
        verdicts.len(),
        differing.len()
    );
    said(&text, if differing.is_empty() && bad == 0 { PASSED } else { FAILED })
}

fn verdicts(reports: &[Report]) -> Verdicts {
    let mut verdicts = Verdicts::new();
    for cell in reports.iter().flat_map(|report| &report.cells) {
        let Cell { backend, strategy, scenario, processes, verdict, .. } = cell;
        let name = format!("{backend} {strategy} {scenario}, {processes} processes");
        *verdicts.entry(name).or_default().entry(verdict.word()).or_default() += 1;
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use super::verdicts;
    use session_conformance::{Cell, Report, RunSettings, Verdict};

    fn report(verdict: Verdict) -> Report {
        let mut report = Report::new(1, RunSettings::new(400, 4, None));
        let mut cell = Cell::absent("memory", "");
        cell.verdict = verdict;
        report.cells.push(cell);
        report
    }

    #[test]
    fn each_verdict_is_counted_by_cell() {
        let reports = [report(Verdict::Pass), report(Verdict::Unknown), report(Verdict::Pass)];
        let verdicts = verdicts(&reports);
        let counts: Vec<_> = verdicts.values().flatten().map(|(word, times)| (*word, *times)).collect();
        assert_eq!(counts, [("pass", 2), ("unknown", 1)]);
    }
}
