//! The matrix as one self-contained page: no script, nothing from elsewhere.

use super::{Cell, Report, summary, worst};
use crate::scenarios;

const STYLE: &str = include_str!("style.css");

pub(super) fn render(report: &Report) -> String {
    let header = &report.header;
    let servers: String = header
        .servers
        .iter()
        .map(|(name, version)| format!("<li><b>{}</b> {}</li>", escape(name), escape(version)))
        .collect();
    let settings = &header.settings;
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Which session stores lose updates</title><style>{STYLE}</style>\n\
         <h1>Which session stores lose updates</h1>\n\
         <p>Suite {}, seed {}, {} operations a cell, {} tasks a process. \
         <b>blind</b> and <b>lock-only</b> are controls: what session handlers elsewhere do; they are there to lose.</p>\n\
         <ul>{servers}</ul>\n{}\n{}\n</html>\n",
        escape(&header.version),
        header.seed,
        settings.ops,
        settings.tasks,
        matrix(report),
        evidence(report),
    )
}

fn matrix(report: &Report) -> String {
    let backends = report.backends();
    let columns: Vec<_> = backends
        .iter()
        .flat_map(|backend| report.strategies(backend).into_iter().map(move |strategy| (*backend, strategy)))
        .collect();
    let over: String = backends
        .iter()
        .map(|backend| (backend, report.strategies(backend).len()))
        .filter(|(_, columns)| *columns > 0)
        .map(|(backend, columns)| format!("<th colspan=\"{columns}\">{}</th>", escape(backend)))
        .collect();
    let under: String = columns.iter().map(|(_, strategy)| format!("<th>{strategy}</th>")).collect();
    let rows: String = report
        .scenarios()
        .iter()
        .map(|scenario| {
            let places: String = columns
                .iter()
                .map(|(backend, strategy)| place(&report.place(backend, *strategy, scenario)))
                .collect();
            let claim =
                scenarios::all().find(|known| known.name() == *scenario).map_or("", |known| known.claim());
            format!("<tr><th>{}<small>{}</small></th>{places}</tr>\n", escape(scenario), escape(claim))
        })
        .collect();
    format!(
        "<div class=\"wide\"><table><thead><tr><th></th>{over}</tr><tr><th></th>{under}</tr></thead>\n\
         <tbody>{rows}</tbody></table></div>"
    )
}

fn place(cells: &[&Cell]) -> String {
    let Some(worst) = worst(cells) else { return "<td></td>".to_owned() };
    let class = match worst.verdict.word() {
        "n/a" => "na".to_owned(),
        word => word.to_lowercase(),
    };
    format!("<td class=\"{class}\"><a href=\"#{}\">{}</a></td>", anchor(worst), escape(&summary(cells)))
}

fn evidence(report: &Report) -> String {
    let cells: String = report
        .cells
        .iter()
        .map(|cell| {
            let title =
                if cell.scenario.is_empty() { format!("{}: absent", cell.backend) } else { cell.line() };
            format!(
                "<section id=\"{}\"><h3>{}</h3><pre>{}</pre></section>\n",
                anchor(cell),
                escape(&title),
                escape(&cell.detail)
            )
        })
        .collect();
    format!("<h2>Evidence</h2>\n{cells}")
}

fn anchor(cell: &Cell) -> String {
    escape(
        &format!("{}-{}-{}-{}", cell.backend, cell.strategy, cell.scenario, cell.processes)
            .replace(['/', ' '], "-"),
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
