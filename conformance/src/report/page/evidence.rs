//! What is behind each place of the matrix: the claim, what was counted, what was found, and how to run it
//! again.

use super::{
    super::{Cell, Report},
    escape,
    matrix::{anchor, claim, class},
};
use crate::Verdict;

pub(super) fn section(report: &Report) -> String {
    let mut out = "<section class=\"evidence\">\n<h2>Claims and evidence</h2>\n".to_owned();
    for cell in report.cells.iter().filter(|cell| cell.scenario.is_empty()) {
        out.push_str(&format!(
            "<p><b>{}</b> is absent: {}</p>\n",
            escape(&cell.backend),
            escape(&cell.detail)
        ));
    }
    for scenario in report.scenarios() {
        let cells: Vec<_> = report.cells.iter().filter(|cell| cell.scenario == scenario).collect();
        let quiet = if cells.iter().any(|cell| cell.is_bad()) { "" } else { " class=\"quiet\"" };
        out.push_str(&format!(
            "<article{quiet}><h3>{}</h3>\n<p class=\"claim\">{}</p>\n",
            escape(scenario),
            escape(claim(scenario))
        ));
        for backend in report.backends() {
            for strategy in report.strategies(backend) {
                place(&mut out, report, &report.place(backend, strategy, scenario));
            }
        }
        out.push_str("</article>\n");
    }
    out.push_str("</section>\n");
    out
}

fn place(out: &mut String, report: &Report, cells: &[&Cell]) {
    let Some(first) = cells.first() else { return };
    out.push_str(&format!(
        "<div class=\"place\" id=\"{}\"><h4>{} {}</h4>\n",
        anchor(first),
        escape(&first.backend),
        escape(&first.strategy)
    ));
    for cell in cells {
        let processes = if cell.processes == 1 {
            "1 process".to_owned()
        } else {
            format!("{} processes", cell.processes)
        };
        let mut counted = format!("{} acknowledged", cell.acknowledged);
        for (number, word) in [(cell.lost, "lost"), (cell.rejected, "rejected"), (cell.unknown, "unknown")] {
            if number > 0 {
                counted.push_str(&format!(", {number} {word}"));
            }
        }
        let counted = match cell.verdict {
            Verdict::NotApplicable | Verdict::Absent => String::new(),
            _ => format!(": {counted}, {:.2} s", cell.seconds),
        };
        out.push_str(&format!(
            "<p><span class=\"{}\">{}</span> in {processes}{counted}</p>",
            class(cell.verdict),
            cell.verdict,
        ));
        if !cell.detail.is_empty() {
            out.push_str(&format!("<pre>{}</pre>", escape(&cell.detail)));
        }
        out.push_str(&format!("<code>{}</code>\n", escape(&report.again(cell))));
    }
    out.push_str("</div>\n");
}
