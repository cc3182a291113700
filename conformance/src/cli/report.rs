//! `report`: one page of what was written before.

use super::{FAILED, PASSED, args::ReportArgs, usage};
use serde::de::DeserializeOwned;
use serde_json::Value;
use session_conformance::{Report, bench::BenchReport};
use std::{fs, path::Path};

pub(super) fn run(args: &ReportArgs) -> i32 {
    let (mut run, mut bench) = (None::<Report>, None::<BenchReport>);
    for path in &args.json {
        let json = read(path);
        if json.get("rows").is_some() {
            let more: BenchReport = decode(path, json);
            match &mut bench {
                Some(bench) => bench.extend(more),
                None => bench = Some(more),
            }
        } else {
            let more: Report = decode(path, json);
            match &mut run {
                Some(run) => run.extend(more),
                None => run = Some(more),
            }
        }
    }
    let page = match (&run, &bench) {
        (_, Some(bench)) => bench.to_html(run.as_ref()),
        (Some(run), None) => run.to_html(),
        (None, None) => usage("nothing to report"),
    };
    match fs::write(&args.html, page) {
        Ok(()) => PASSED,
        Err(error) => {
            eprintln!("error: {}: {error}", args.html.display());
            FAILED
        }
    }
}

fn read(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|error| usage(&format!("{}: {error}", path.display())));
    serde_json::from_slice(&text).unwrap_or_else(|error| usage(&format!("{}: {error}", path.display())))
}

fn decode<T: DeserializeOwned>(path: &Path, json: Value) -> T {
    serde_json::from_value(json).unwrap_or_else(|error| usage(&format!("{}: {error}", path.display())))
}
