//! The command as others use it: what it prints, what it writes, and how it ends.

#![allow(clippy::expect_used, clippy::panic, reason = "this is how a test fails")]

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs::{Permissions, read_dir, read_to_string},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};
use tempfile::TempDir;

fn command(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_session-conformance")).args(args).output().expect("the command starts")
}

fn code(args: &[&str]) -> i32 {
    command(args).status.code().expect("it ends by itself")
}

/// What it says when it is used wrongly.
fn usage(args: &[&str]) -> String {
    let output = command(args);
    assert_eq!(output.status.code(), Some(2), "{args:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).expect("text")
}

const QUICK: [&str; 5] = ["run", "--backend", "memory", "--scenario", "concurrency/increments_*"];

#[test]
fn it_passes_and_prints_the_matrix() {
    let output = command(&[&QUICK[..], &["--seed", "7"]].concat());
    assert_eq!(output.status.code(), Some(0));
    let matrix = String::from_utf8(output.stdout).expect("text");
    let row =
        matrix.lines().find(|line| line.starts_with("concurrency/increments_are_all_kept")).expect("its row");
    assert!(row.contains("loses ") && row.ends_with("pass"), "{matrix}");
    assert!(matrix.contains("seed 7"), "{matrix}");
    let lines = String::from_utf8(output.stderr).expect("text");
    assert!(
        lines.contains("memory write concurrency/increments_are_all_kept, 1 process: pass (400 ack"),
        "{lines}"
    );
}

#[test]
fn the_json_is_as_promised() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("report.json");
    let json = path.to_str().expect("a path");
    assert_eq!(code(&[&QUICK[..], &["--seed", "7", "--json", json, "--require", "memory"]].concat()), 0);
    let report: Value = serde_json::from_slice(&std::fs::read(&path).expect("written")).expect("JSON");
    let header = &report["header"];
    assert_eq!(header["seed"], 7);
    assert!(header["version"].is_string() && header["settings"].is_object() && header["servers"].is_object());
    let cells = report["cells"].as_array().expect("a list");
    assert_eq!(cells.len(), 4, "one for each strategy, in one process");
    for cell in cells {
        let cell = cell.as_object().expect("an object");
        let mut fields: Vec<_> = cell.keys().map(String::as_str).collect();
        fields.sort_unstable();
        let promised = [
            "acknowledged",
            "backend",
            "detail",
            "lost",
            "processes",
            "rejected",
            "scenario",
            "seconds",
            "strategy",
            "unknown",
            "verdict",
        ];
        assert_eq!(fields, promised);
        assert_eq!(cell["backend"], "memory");
        assert_eq!(cell["scenario"], "concurrency/increments_are_all_kept");
        assert_eq!(cell["processes"], 1);
        assert!(cell["seconds"].is_f64() && cell["lost"].is_u64() && cell["detail"].is_string());
    }
    assert_eq!((&cells[0]["strategy"], &cells[0]["verdict"]), (&"blind".into(), &"loses".into()));
    assert_eq!((&cells[2]["strategy"], &cells[2]["verdict"]), (&"write".into(), &"pass".into()));
}

#[test]
fn capped_is_only_what_ran() {
    let capped = |args: &[&str]| -> Vec<String> {
        let output =
            command(&[&["run", "--scenario", "lifecycle/destroy*", "--seed", "7"][..], args].concat());
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().filter(|line| line.starts_with("capped:")).map(str::to_owned).collect()
    };
    // Three scenarios are chosen and have caps; one of them has no blind way.
    let memory = ["--backend", "memory", "--strategy", "blind"];
    assert_eq!(
        capped(&memory),
        [
            "capped: lifecycle/destroyed_is_not_revived at 80 operations",
            "capped: lifecycle/destroy_follows_rotation at 60 operations",
        ]
    );
    assert_eq!(capped(&[&memory[..], &["--ops", "70"]].concat()).len(), 1);
    assert_eq!(capped(&["--backend", NOWHERE]), [] as [String; 0]);
}

/// A server that nobody runs.
const NOWHERE: &str = "memcached=memcached://127.0.0.1:1";

#[test]
fn an_absent_backend_is_one_cell() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("report.json");
    let json = path.to_str().expect("a path");
    let output = command(&[&QUICK[..], &["--backend", NOWHERE, "--json", json]].concat());
    assert_eq!(output.status.code(), Some(0), "absent, and not required");
    assert!(String::from_utf8(output.stdout).expect("text").contains("memcached: absent"));
    let report: Value = serde_json::from_slice(&std::fs::read(&path).expect("written")).expect("JSON");
    let cells = report["cells"].as_array().expect("a list");
    let absent: Vec<_> = cells.iter().filter(|cell| cell["verdict"] == "absent").collect();
    assert_eq!(absent.len(), 1);
    assert_eq!((&absent[0]["backend"], &absent[0]["scenario"]), (&"memcached".into(), &"".into()));
    assert_ne!(absent[0]["detail"], "", "it says what is missing");
}

#[test]
fn a_required_backend_that_is_absent_is_three_unless_the_usage_is_wrong() {
    let required = ["--backend", NOWHERE, "--require", "memory,memcached"];
    assert_eq!(code(&[&QUICK[..], &required].concat()), 3);
    assert_eq!(code(&[&QUICK[..], &required, &["--ops", "none"]].concat()), 2);
}

/// Who reads no further than the first lines still gets the report, and no error.
#[test]
fn a_reader_that_goes_away_early_is_no_failure() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("report.json");
    let json = ["--json", path.to_str().expect("a path")];
    for args in [&["list"][..], &[&QUICK[..], &json].concat()] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_session-conformance"));
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the command starts");
        drop(child.stdout.take());
        assert_eq!(child.wait().expect("it ends").code(), Some(0), "{args:?}");
    }
    let report: Value = serde_json::from_slice(&std::fs::read(&path).expect("written")).expect("JSON");
    assert_eq!(report["cells"].as_array().map(Vec::len), Some(4));
}

/// One task alone has nobody in its way: that shows nothing of what needs others.
#[test]
fn alone_nothing_is_proved() {
    let output = command(&["run", "--backend", "memory", "--tasks", "1", "--scenario", "lifecycle/*"]);
    let lines = String::from_utf8(output.stderr).expect("text");
    for (scenario, strategy) in [
        ("destroyed_is_not_revived", "write"),
        ("destroy_while_waiters_queue", "exclusive"),
        ("rotation_has_one_winner", "write"),
        ("destroy_follows_rotation", "write"),
        ("revoke_all_beats_writers", "exclusive"),
    ] {
        let verdict = format!("memory {strategy} lifecycle/{scenario}, 1 process: unknown");
        assert!(lines.contains(&verdict), "{verdict}\n{lines}");
    }
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn wrong_usage_is_two_with_a_hint() {
    assert!(usage(&["run", "--backend", "nope"]).contains("memory, file, redis, postgres, memcached"));
    assert!(usage(&["run", "--require", "memory,nope"]).contains("there is no such backend"));
    assert!(usage(&["run", "--strategy", "nope"]).contains("blind, lock-only, write, exclusive, driver"));
    assert!(usage(&["run", "--scenario", "nope/*"]).contains("session-conformance list"));
    assert!(usage(&["run", "--scenario", "concurrency/*", "--scenario", "nope"]).contains("'nope'"));
    assert!(
        usage(&["run", "--scenario", "concurrency/increments_*", "--strategy", "driver"])
            .contains("no scenario")
    );
    assert!(usage(&["run", "--backend", "file="]).contains("URL is missing"));
    assert!(usage(&["run", "--backend", "file=sessions"]).contains("file:///absolute/path"));
    assert!(usage(&["run", "--backend", "file=file:///tmp?nope=1"]).contains("nope"));
    assert!(usage(&["run", "--json", "/no/such/directory/report.json"]).contains("/no/such/directory"));
    assert!(usage(&["run", "--tasks", "0"]).contains("at least 1"));
    assert!(usage(&["run", "--jobs", "3"]).contains("--help"));
    assert!(usage(&["brun"]).contains("run"));
    assert_eq!(code(&[]), 2);
}

#[test]
fn list_names_every_scenario_with_its_claim() {
    let output = command(&["list"]);
    assert_eq!(output.status.code(), Some(0));
    let list = String::from_utf8(output.stdout).expect("text");
    for scenario in session_conformance::scenarios::all() {
        assert!(list.contains(scenario.name()) && list.contains(scenario.claim()), "{list}");
    }
}

#[test]
fn help_teaches() {
    let output = command(&["run", "--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).expect("text");
    for word in [
        "--backend",
        "--require",
        "--ops",
        "--tasks",
        "--processes",
        "--seed",
        "--json",
        "--html",
        "Examples:",
        "Exit code:",
    ] {
        assert!(help.contains(word), "{word} is missing in {help}");
    }
    assert!(!String::from_utf8(command(&["--help"]).stdout).expect("text").contains("worker"));
}

#[test]
fn the_page_stands_by_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("report.html");
    assert_eq!(code(&[&QUICK[..], &["--html", path.to_str().expect("a path")]].concat()), 0);
    let page = std::fs::read_to_string(&path).expect("written");
    assert!(page.starts_with("<!doctype html>") && page.contains("increments_are_all_kept"));
    assert!(page.contains("loses ") && page.contains("final = acknowledged"));
    assert!(!page.contains("<script") && !page.contains("http://") && !page.contains("https://"));
}

#[test]
fn a_worker_ends_when_its_parent_is_gone() {
    let output = command(&["worker"]); // with nothing to read
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn its_own_processes_work_on_one_store() {
    let args =
        ["run", "--backend", "file", "--processes", "3", "--tasks", "2", "--ops", "120", "--seed", "7"];
    let scenario = ["--scenario", "concurrency/increments_*", "--strategy", "blind", "--strategy", "write"];
    let output = command(&[&args[..], &scenario].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    let lines = String::from_utf8(output.stderr).expect("text");
    assert!(lines.contains("file blind concurrency/increments_are_all_kept, 3 processes: loses"), "{lines}");
    assert!(lines.contains("3 processes: pass (120 acknowledged"), "{lines}");
}

#[test]
fn a_bench_has_a_row_for_each_operation_at_each_point() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("bench.json");
    let json = path.to_str().expect("a path");
    let backends =
        ["--backend", "memory", "--backend", "file", "--backend", "redis", "--backend", "postgres"];
    let points = ["--backend", "memcached", "--tasks", "2", "--contention", "uncontended,contended"];
    let output =
        command(&[&["bench"][..], &backends, &points, &["--seconds", "0.05", "--json", json]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("2 tasks, contended, 1 KiB"));
    let report: Value = serde_json::from_slice(&std::fs::read(&path).expect("written")).expect("JSON");
    let rows = report["rows"].as_array().expect("a list");
    let servers = report["header"]["servers"].as_object().expect("an object");
    assert_eq!(rows.len(), 2 * (4 * servers.len() - 1), "memory has no classical way");
    for row in rows {
        let row = row.as_object().expect("an object");
        let promised = [
            "backend",
            "operation",
            "tasks",
            "size",
            "contention",
            "p50_us",
            "p90_us",
            "p99_us",
            "p999_us",
            "ops_per_s",
            "trips",
            "vs_floor",
            "vs_classical",
        ];
        assert!(promised.iter().all(|field| row.contains_key(*field)), "{row:?}");
        assert_eq!(row["failed"], 0, "{row:?}");
        let served = !["memory", "file"].contains(&row["backend"].as_str().expect("a name"));
        assert_eq!(row["trips"].is_number(), served, "{row:?}");
        let alone = row["contention"] == "uncontended" && row["operation"] != "classical";
        assert_eq!(row["vs_floor"].is_number(), alone && row["backend"] != "memory", "{row:?}");
    }
}

#[test]
fn a_page_holds_the_matrix_and_the_charts() {
    let dir = tempfile::tempdir().expect("a directory");
    let [run, bench, page] =
        ["run.json", "bench.json", "page.html"].map(|name| dir.path().join(name).display().to_string());
    assert_eq!(code(&[&QUICK[..], &["--json", &run]].concat()), 0);
    let quick = ["bench", "--backend", "memory", "--tasks", "1", "--seconds", "0.05"];
    assert_eq!(code(&[&quick[..], &["--json", &bench]].concat()), 0);
    assert_eq!(code(&["report", &run, &bench, "--html", &page]), 0);
    let html = std::fs::read_to_string(&page).expect("written");
    let in_order =
        ["Who loses data", "What it costs", "<svg role=\"img\"", "Claims and evidence", "--strategy blind"];
    let places: Vec<_> = in_order.iter().map(|text| html.find(text).expect(text)).collect();
    assert!(places.is_sorted(), "{places:?}");
    assert!(!html.contains("<script") && !html.contains("<link") && !html.contains("url("), "self-contained");
    for link in html.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(html.contains(&format!("id=\"{link}\"")), "{link} leads nowhere");
    }
    assert!(usage(&["report", &page, "--html", &page]).contains("page.html"));
}

/// A directory for all that a command leaves behind. The servers that run as another user when root tests may
/// enter it, too.
fn temporary() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("it is ours");
    dir
}

fn left(dir: &TempDir) -> Vec<String> {
    let names = read_dir(dir.path()).expect("it is there");
    names.map(|entry| entry.expect("an entry").file_name().display().to_string()).collect()
}

/// A child as `/proc` shows it: id, name, state.
fn children(parent: u32) -> Vec<(String, String, String)> {
    let processes =
        read_dir("/proc").expect("Linux").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let child = |pid: String| {
        let stat = read_to_string(format!("/proc/{pid}/stat")).ok()?; // none: it has ended, or is no process
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        let mut rest = rest.split_whitespace();
        let state = rest.next()?.to_owned();
        (rest.next()? == parent.to_string()).then(|| (pid, name.to_owned(), state))
    };
    processes.filter_map(child).collect()
}

/// Sends the signal as soon as the command has a child with this name in this state: then it is in the middle
/// of something.
fn broken_off(args: &[&str], name: &str, state: &str, signal: Signal) {
    let dir = temporary();
    let mut command = Command::new(env!("CARGO_BIN_EXE_session-conformance"));
    command.args(args).env("TMPDIR", dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut command = command.spawn().expect("the command starts");
    let deadline = Instant::now() + Duration::from_secs(120);
    let before = loop {
        let children = children(command.id());
        if children.iter().any(|child| child.1 == name && state.contains(&*child.2)) {
            break children;
        }
        assert!(command.try_wait().expect("it is ours").is_none(), "it ended before {name} was {state}");
        assert!(Instant::now() < deadline, "{name} was never {state}: {children:?}");
        sleep(Duration::from_millis(2)); // nothing tells when a process of another's is stopped: it is looked for
    };
    kill_process(Pid::from_child(&command), signal).expect("it runs");
    let status = command.wait().expect("it is ours");
    assert_eq!(status.code(), Some(128 + signal.as_raw()), "{args:?}");
    assert_eq!(left(&dir), Vec::<String>::new(), "{args:?}");
    for (pid, name, _) in before {
        assert!(!Path::new("/proc").join(pid).exists(), "{name} is still there");
    }
}

#[test]
fn broken_off_it_leaves_nothing() {
    let run = ["run", "--backend", "redis", "--scenario", "fault/server_pause", "--processes", "1"];
    for signal in [Signal::INT, Signal::TERM] {
        // A task of the scenario holds the server, which it has stopped.
        broken_off(&[&run[..], &["--strategy", "write"]].concat(), "redis-server", "T", signal);
        broken_off(&["bench", "--backend", "redis"], "redis-server", "RS", signal);
    }
}

#[test]
fn broken_off_at_its_start_it_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM] {
        broken_off(&["run", "--backend", "redis", "--backend", "postgres"], "initdb", "RS", signal);
    }
}

#[test]
fn wrong_usage_leaves_nothing() {
    let dir = temporary();
    let mut command = Command::new(env!("CARGO_BIN_EXE_session-conformance"));
    command
        .args(["run", "--backend", "redis", "--backend", "file=file:///tmp?nope=1"])
        .env("TMPDIR", dir.path());
    assert_eq!(command.output().expect("the command starts").status.code(), Some(2));
    assert_eq!(left(&dir), Vec::<String>::new());
}
