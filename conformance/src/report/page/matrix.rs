//! Who loses data, how much, under what: a sentence, a table of backends, and the whole matrix.

use super::{
    super::{Cell, Report, summary, worst},
    escape, thousands,
};
use crate::{Strategy, Verdict, scenarios};

/// The answer in one sentence.
pub(super) fn headline(report: &Report) -> String {
    let lost = |wanted: &[Strategy]| {
        let cells =
            report.cells.iter().filter(|cell| wanted.iter().any(|strategy| cell.strategy == strategy.name()));
        cells.fold((0, 0), |(lost, all), cell| (lost + cell.lost, all + cell.acknowledged))
    };
    let words = |strategy: Strategy| {
        let (lost, all) = lost(&[strategy]);
        format!("<b class=\"{}\">{strategy}</b> lost {} of {}", colour(lost), thousands(lost), thousands(all))
    };
    let bad = report.cells.iter().filter(|cell| cell.is_bad()).count();
    let verdict = match bad {
        0 if report.passed() => "<b class=\"pass\">Every product and driver cell passed.</b>".to_owned(),
        0 => "Nothing of the product was tried.".to_owned(),
        1 => "<b class=\"fail\">One product or driver cell did not pass.</b>".to_owned(),
        bad => format!("<b class=\"fail\">{bad} product or driver cells did not pass.</b>"),
    };
    let ran: Vec<_> = Strategy::SESSIONS
        .iter()
        .filter(|strategy| report.cells.iter().any(|cell| cell.strategy == strategy.name()))
        .map(|strategy| words(*strategy))
        .collect();
    let all = if ran.is_empty() {
        String::new()
    } else {
        format!(" Of the acknowledged operations, {}.", ran.join(", "))
    };
    format!("<p class=\"lead\">{verdict}{all}</p>\n")
}

fn colour(lost: u64) -> &'static str {
    if lost > 0 { "loses" } else { "pass" }
}

pub(super) fn section(report: &Report) -> String {
    format!(
        "<section>\n<h2>Who loses data</h2>\n{}\n{}\n{LEGEND}\n</section>",
        backends(report),
        matrix(report)
    )
}

const LEGEND: &str = "<p class=\"legend\"><b>blind</b> (read, change, overwrite) is what most session stores do, <b>lock-only</b> \
    (lock, read, change, overwrite) what the careful ones do: both are controls, and there to lose. <b>write</b> and <b>exclusive</b> are \
    this project's; <b>driver</b> speaks to the store below them. \
    <span class=\"pass\">pass</span> the claim held · <span class=\"fail\">FAIL</span> it was broken · <span class=\"loses\">loses</span> a \
    control lost: lost of acknowledged · <span class=\"na\">n/a</span> the backend says that it cannot, which was checked · <span \
    class=\"unknown\">unknown</span> the run proved nothing · <span class=\"absent\">absent</span> something it needs is not here. \
    (4p): in four processes.</p>";

/// One row a backend, one column a strategy: how often it held.
fn backends(report: &Report) -> String {
    let head: String = Strategy::ALL.iter().map(|strategy| format!("<th>{strategy}</th>")).collect();
    let rows: String = report
        .backends()
        .iter()
        .map(|backend| {
            let places: String =
                Strategy::ALL.iter().map(|strategy| tally(report, backend, *strategy)).collect();
            format!("<tr><th>{}</th>{places}</tr>\n", escape(backend))
        })
        .collect();
    format!(
        "<div class=\"wide\"><table class=\"tally\"><thead><tr><th></th>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )
}

/// What became of one strategy on one backend.
fn tally(report: &Report, backend: &str, strategy: Strategy) -> String {
    let cells: Vec<_> = report
        .cells
        .iter()
        .filter(|cell| cell.backend == backend && cell.strategy == strategy.name())
        .collect();
    let absent = report.cells.iter().any(|cell| cell.backend == backend && cell.scenario.is_empty());
    let count = |verdict| cells.iter().filter(|cell| cell.verdict == verdict).count();
    let Some(worst) = worst(&cells) else {
        return if absent { "<td class=\"absent\">absent</td>".to_owned() } else { "<td></td>".to_owned() };
    };
    let tried = cells.len() - count(Verdict::NotApplicable) - count(Verdict::Absent);
    let text = match worst.verdict {
        Verdict::Pass => format!("{tried} pass"),
        Verdict::Loses => format!("loses in {} of {tried}", count(Verdict::Loses)),
        Verdict::Fail => format!("FAILS in {} of {tried}", count(Verdict::Fail)),
        Verdict::Unknown => format!("{} unknown of {tried}", count(Verdict::Unknown)),
        verdict => verdict.word().to_owned(),
    };
    let most = match (worst.lost, worst.verdict) {
        (lost @ 1.., Verdict::Loses | Verdict::Fail) => {
            format!("<small>up to {lost} of {}</small>", worst.acknowledged)
        }
        _ => String::new(),
    };
    format!("<td class=\"{}\">{text}{most}</td>", class(worst.verdict))
}

/// One table for each group of scenarios.
fn matrix(report: &Report) -> String {
    let columns: Vec<_> = report
        .backends()
        .into_iter()
        .flat_map(|backend| report.strategies(backend).into_iter().map(move |strategy| (backend, strategy)))
        .collect();
    let scenarios = report.scenarios();
    if scenarios.is_empty() {
        return String::new();
    }
    let over: String = columns
        .chunk_by(|(one, _), (other, _)| one == other)
        .filter_map(|columns| Some((columns.first()?.0, columns.len())))
        .map(|(backend, columns)| {
            format!("<th colspan=\"{columns}\" class=\"first\">{}</th>", escape(backend))
        })
        .collect();
    let is_first = |index: usize| index == 0 || columns[index - 1].0 != columns[index].0;
    let under: String = columns
        .iter()
        .enumerate()
        .map(|(index, (_, strategy))| {
            format!("<th{}>{strategy}</th>", if is_first(index) { " class=\"first\"" } else { "" })
        })
        .collect();
    let mut groups = String::new();
    for rows in scenarios.chunk_by(|one, other| group(one) == group(other)) {
        let title = rows.first().map_or("", |scenario| group(scenario));
        groups.push_str(&format!(
            "<tbody><tr class=\"group\"><th>{}</th><td colspan=\"{}\"></td></tr>\n",
            escape(title),
            columns.len()
        ));
        for scenario in rows {
            let name = scenario.rsplit('/').next().unwrap_or(scenario).replace('_', " ");
            groups.push_str(&format!("<tr><th title=\"{}\">{}</th>", escape(claim(scenario)), escape(&name)));
            for (index, (backend, strategy)) in columns.iter().enumerate() {
                groups.push_str(&place(&report.place(backend, *strategy, scenario), is_first(index)));
            }
            groups.push_str("</tr>\n");
        }
        groups.push_str("</tbody>\n");
    }
    format!(
        "<div class=\"wide\"><table class=\"matrix\"><thead><tr><th></th>{over}</tr><tr><th></th>{under}</tr></thead>\n{groups}</table></div>"
    )
}

fn group(scenario: &str) -> &str {
    scenario.split('/').next().unwrap_or_default()
}

/// What the scenario claims; nothing of one that this version does not know.
pub(super) fn claim(scenario: &str) -> &'static str {
    scenarios::all().find(|known| known.name() == scenario).map_or("", |known| known.claim())
}

fn place(cells: &[&Cell], first: bool) -> String {
    let edge = if first { " first" } else { "" };
    let Some(worst) = worst(cells) else { return format!("<td class=\"none{edge}\"></td>") };
    let class = class(worst.verdict);
    format!("<td class=\"{class}{edge}\"><a href=\"#{}\">{}</a></td>", anchor(worst), escape(&summary(cells)))
}

pub(super) fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::Loses => "loses",
        Verdict::NotApplicable => "na",
        Verdict::Unknown => "unknown",
        Verdict::Absent => "absent",
    }
}

/// One for each place of the matrix.
pub(super) fn anchor(cell: &Cell) -> String {
    escape(&format!("{}-{}-{}", cell.backend, cell.strategy, cell.scenario).replace(['/', ' '], "-"))
}
