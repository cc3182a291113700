//! What the command says: while it runs, and at the end.

use super::{args::RunArgs, backends::Backend};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use session_conformance::{Cell, Progress, Report, Suite, Verdict, scenarios};
use std::{
    fs::File,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
};

/// How wide the matrix may be when nobody knows how wide the screen is.
const WIDTH: usize = 100;

/// Where a run reports to.
pub(super) struct Output {
    bar: Option<ProgressBar>,
    files: Files,
}

/// The files that were asked for.
pub(super) struct Files {
    json: Option<File>,
    html: Option<File>,
}

impl Files {
    /// Opens them now: an hour later is too late to say that one cannot be written.
    pub(super) fn create(json: Option<&Path>, html: Option<&Path>) -> Result<Self, String> {
        let create = |path: &Path| File::create(path).map_err(|error| format!("{}: {error}", path.display()));
        Ok(Self { json: json.map(create).transpose()?, html: html.map(create).transpose()? })
    }

    pub(super) fn write(self, report: &impl Serialize, page: impl FnOnce() -> String) -> io::Result<()> {
        if let Some(mut json) = self.json {
            serde_json::to_writer_pretty(&mut json, report)?;
            writeln!(json)?;
        }
        self.html.map_or(Ok(()), |mut html| html.write_all(page().as_bytes()))
    }
}

/// Says it on the standard output. That nobody listens any more (`| head`) is no failure.
pub(super) fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        said => said,
    }
}

impl Output {
    pub(super) fn open(args: &RunArgs) -> Result<Self, String> {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}");
            ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Ok(Self { bar, files: Files::create(args.json.as_deref(), args.html.as_deref())? })
    }

    pub(super) fn absent(&self, cell: &Cell) {
        let line = format!("{}: absent; {}", cell.backend, cell.detail);
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// Shows how a suite gets on: a bar on a terminal, lines elsewhere; what is bad at once, in both.
    pub(super) fn watch(&self, suite: Suite) -> Suite {
        let Some(bar) = self.bar.clone() else {
            return suite.watch(|progress| {
                if let Progress::Ends(cell) = progress {
                    eprintln!("{}", cell.line());
                }
            });
        };
        bar.inc_length(suite.len() as u64);
        suite.watch(move |progress| match progress {
            Progress::Begins(cell) => {
                bar.set_message(format!("{} {} {}", cell.backend, cell.strategy, cell.scenario))
            }
            Progress::Ends(cell) => {
                if cell.is_bad() {
                    bar.println(cell.line());
                }
                bar.inc(1);
            }
            _ => {}
        })
    }

    /// The files, the matrix, and how to run again what is bad.
    pub(super) fn finish(self, report: &Report, args: &RunArgs) -> io::Result<()> {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        let written = self.files.write(report, || report.to_html());
        let mut text = format!("{}\nseed {}\n", report.to_text(width()), report.header.seed);
        for (scenario, cap) in capped(report) {
            text += &format!("capped: {scenario} at {cap} operations\n");
        }
        for cell in report.cells.iter().filter(|cell| cell.is_bad()) {
            text += &format!("again: {}\n", again(report, cell, args));
        }
        say(&text).and(written)
    }
}

/// The scenarios that ran, with fewer operations than were asked for. One that was chosen and ran nowhere is
/// none of them.
fn capped(report: &Report) -> impl Iterator<Item = (&'static str, u64)> {
    let ran = |name: &str| {
        let of_it = report.cells.iter().filter(|cell| cell.scenario == name);
        of_it
            .map(|cell| cell.verdict)
            .any(|verdict| !matches!(verdict, Verdict::Absent | Verdict::NotApplicable))
    };
    scenarios::all().filter_map(move |scenario| {
        let cap = scenario.most_operations().filter(|cap| *cap < report.header.settings.ops)?;
        ran(scenario.name()).then(|| (scenario.name(), cap))
    })
}

/// The command that runs one cell again. A URL may hold a password: it is not repeated.
fn again(report: &Report, cell: &Cell, args: &RunArgs) -> String {
    let elsewhere =
        |(backend, url): &(&Backend, Option<String>)| backend.name == cell.backend && url.is_some();
    let command = report.again(cell);
    if args.backends().iter().any(elsewhere) {
        let name = format!("--backend {}", cell.backend);
        return command.replacen(&name, &format!("{name}=URL"), 1);
    }
    command
}

fn width() -> usize {
    if !io::stdout().is_terminal() {
        return WIDTH;
    }
    rustix::termios::tcgetwinsize(io::stdout()).map_or(WIDTH, |size| usize::from(size.ws_col).max(WIDTH))
}

/// Every scenario with its claim, its strategies and who breaks it.
pub(super) fn list() -> String {
    let (mut text, mut group) = (String::new(), "");
    for scenario in scenarios::all() {
        if scenario.group() != group {
            group = scenario.group();
            text += &format!("\n{group}\n");
        }
        let strategies: Vec<_> = scenario.runs_with().iter().map(|strategy| strategy.name()).collect();
        let cap = scenario.most_operations().map(|cap| format!("; at most {cap} operations"));
        text += &format!("  {}\n      {}\n", scenario.name(), scenario.claim());
        text += &format!("      {}; convicts {}", strategies.join(", "), scenario.convictor());
        text += &format!("{}\n", cap.unwrap_or_default());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_conformance::RunSettings;

    #[test]
    fn capped_is_what_ran_with_less() {
        let report = |ops, verdicts: &[Verdict]| {
            let mut report = Report::new(1, RunSettings::new(ops, 4, None));
            for verdict in verdicts {
                let mut cell = Cell::absent("memory", "");
                cell.scenario = "fault/lost_reply_is_resolved".to_owned();
                cell.verdict = *verdict;
                report.cells.push(cell);
            }
            report
        };
        let told = |ops, verdicts: &[Verdict]| capped(&report(ops, verdicts)).collect::<Vec<_>>();
        let it = vec![("fault/lost_reply_is_resolved", 400)];
        for verdict in [Verdict::Pass, Verdict::Fail, Verdict::Loses, Verdict::Unknown] {
            assert_eq!(told(401, &[Verdict::Absent, verdict]), it, "{verdict}");
            assert_eq!(told(400, &[verdict]), [], "{verdict}");
        }
        assert_eq!(told(401, &[]), []);
        assert_eq!(told(401, &[Verdict::Absent, Verdict::NotApplicable]), []);
    }
}
