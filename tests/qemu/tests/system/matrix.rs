//! `scripts/bench` as a user types it.

use std::fs;
use std::path::Path;
use std::process::Output;

use records::record::Record;
use serde_json::Value;
use tempfile::TempDir;

use crate::command::{complaints, script, wrapper};

fn bench(arguments: &[&str], folder: &Path, emulator: Option<&Path>) -> Output {
    script("scripts/bench", arguments, folder, emulator)
}

fn results(path: &Path) -> Value {
    let text = fs::read_to_string(path).expect("the results were written");
    serde_json::from_str(&text).expect("the results are sound")
}

/// The runs of results: their repetition and their record.
fn runs(results: &Value) -> impl Iterator<Item = (u64, Record)> {
    let runs = results["runs"].as_array().expect("there are runs");
    runs.iter().map(|run| {
        let record = serde_json::from_value(run["record"].clone());
        (
            run["repeat"].as_u64().expect("it is a number"),
            record.expect("the record is sound"),
        )
    })
}

fn refused(arguments: &[&str]) -> String {
    let folder = TempDir::new().expect("room for a folder");
    let output = bench(arguments, folder.path(), None);
    let text = complaints(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
    text
}

#[test]
fn a_matrix_becomes_tables_results_and_plots() {
    let folder = TempDir::new().expect("room for a folder");
    let matrix = [
        "--vcpus=1,2",
        "--bytes=1M",
        "--iterations=3",
        "--mode=rwlock,parallel",
        "--repeat=2",
    ];
    let arguments = [
        &matrix[..],
        &["--enable=protect", "--out=out", "--json=out.json"],
    ]
    .concat();
    let output = bench(&arguments, folder.path(), None);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{text}{}",
        complaints(&output)
    );
    for words in [
        "| vCPUs |",
        "Later dirty iterations",
        "All 8 runs of Parvisor are verified.",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let measured = results(&folder.path().join("out.json"));
    let runs: Vec<_> = runs(&measured)
        .map(|(repeat, record)| (repeat, record.vcpus, record.mode))
        .collect();
    let once = [
        (1, "rwlock"),
        (1, "parallel"),
        (2, "rwlock"),
        (2, "parallel"),
    ];
    let expected = [1, 2].into_iter();
    let expected =
        expected.flat_map(|repeat| once.map(|(vcpus, mode)| (repeat, vcpus, mode.to_string())));
    assert_eq!(runs, expected.collect::<Vec<_>>());
    let out = folder.path().join("out");
    for name in [
        "README.md",
        "dirty-later.svg",
        "dirty-later.png",
        "phases.svg",
        "exits.png",
    ] {
        let size = fs::metadata(out.join(name)).map_or(0, |file| file.len());
        assert!(size > 1000, "{name}: {size} bytes");
    }

    let page = fs::read(out.join("README.md")).expect("the page was written");
    let again = bench(
        &["--parse", "out/results.json", "--out", "again"],
        folder.path(),
        None,
    );
    assert_eq!(again.status.code(), Some(0), "{}", complaints(&again));
    let rendered = fs::read(folder.path().join("again/README.md"));
    assert_eq!(rendered.expect("it was rendered"), page);
}

#[test]
fn a_workload_becomes_a_page_of_its_own() {
    let folder = TempDir::new().expect("room for a folder");
    let matrix = [
        "--workload=cow",
        "--vcpus=1,2",
        "--bytes=1M",
        "--iterations=1",
        "--out=out",
    ];
    let output = bench(&matrix, folder.path(), None);
    let text = String::from_utf8_lossy(&output.stdout);
    let complaints = complaints(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{complaints}");
    assert!(
        text.contains("All 4 runs of Parvisor are verified."),
        "{text}"
    );
    let exits = text.split("Exits per page written").nth(1);
    let cells = exits.and_then(|table| table.lines().find(|line| line.starts_with("| 1 ")));
    let cells = cells.unwrap_or_else(|| panic!("no exits: {text}"));
    assert!(cells.contains(" 1.0") && cells.contains(" 2.0"), "{cells}");
    let out = folder.path().join("out");
    for name in ["README.md", "write.svg", "pages.png", "exits.png"] {
        let size = fs::metadata(out.join(name)).map_or(0, |file| file.len());
        assert!(size > 1000, "{name}: {size} bytes");
    }
    let again = bench(&["--parse=out/results.json"], folder.path(), None);
    assert_eq!(
        String::from_utf8_lossy(&again.stdout).lines().next(),
        text.lines().next()
    );
}

#[test]
fn a_matrix_that_cant_be_is_refused_in_one_line() {
    assert!(refused(&["--vcpus=1,1"]).contains("--vcpus"));
    assert!(refused(&["--mode=fast"]).contains("fast"));
    assert!(refused(&["--harvest=ring", "--tracking=hardware"]).contains("hardware"));
    assert!(refused(&["--json=/nowhere/at/all"]).contains("/nowhere/at/all"));
    assert!(refused(&["--out=/dev/null/x"]).contains("/dev/null/x"));
    assert!(refused(&["--parse=/nowhere/at/all"]).contains("/nowhere/at/all"));
    for option in [
        "--repeat=2",
        "--mode=mutex",
        "--iterations=2",
        "--smp=2",
        "--seed=1",
        "--simulated",
    ] {
        let name = option.split('=').next().unwrap_or(option);
        assert!(refused(&["--parse=x", option]).contains(name), "{option}");
    }
    assert!(refused(&["--parse=x", "--vcpus=1,2"]).contains("--vcpus"));
}

#[test]
fn results_are_replaced_on_request_only() {
    let folder = TempDir::new().expect("room for a folder");
    let log = "== mode mutex: 1 vCPUs x 4 MiB, backing 2M, 1 iterations ==\n\
               Populate memory time: 0.001000000s\nparvisor: exit status 0\n";
    fs::write(folder.path().join("log"), log).expect("the folder is ours");
    let parse = |more: &[&str]| {
        let arguments = [&["--parse=log", "--out=out"], more].concat();
        let output = bench(&arguments, folder.path(), None);
        (output.status.code(), complaints(&output))
    };
    assert_eq!(parse(&[]).0, Some(0));
    let (status, text) = parse(&[]);
    assert_eq!(status, Some(2));
    assert!(
        text.contains("--out out: there are results already"),
        "{text}"
    );
    assert_eq!(parse(&["--force"]).0, Some(0));
    let (status, text) = parse(&["--force", "--vcpus=8"]);
    assert_eq!(
        (status, text.contains("--vcpus: all that is parsed says it")),
        (Some(2), true)
    );
}

#[test]
fn a_log_that_is_cut_is_shown_and_fails() {
    let folder = TempDir::new().expect("room for a folder");
    let log = "== mode mutex: 1 vCPUs x 4 MiB, backing 2M, 1 iterations ==\n\
               Populate memory time: 0.001000000s\nIteration 1 dirty mem";
    fs::write(folder.path().join("log"), log).expect("the folder is ours");
    let output = bench(&["--parse=log"], folder.path(), None);
    let (shown, text) = (String::from_utf8_lossy(&output.stdout), complaints(&output));
    assert_eq!(output.status.code(), Some(1), "{shown}{text}");
    assert!(
        shown.contains("mutex") && text.contains("error: log"),
        "{shown}{text}"
    );
}

#[test]
fn a_boot_that_fails_doesnt_lose_the_others() {
    let folder = TempDir::new().expect("room for a folder");
    // Dies in the boots with two vCPUs, three CPUs, after the first lines.
    let emulator = wrapper(
        folder.path(),
        "case \"$*\" in *'-smp 3'*) echo booting; kill -9 $$;; esac; exec qemu-system-aarch64 \"$@\"",
    );
    let arguments = [
        "--vcpus=1,2,3",
        "--bytes=1M",
        "--iterations=1",
        "--mode=parallel",
        "--enable=protect",
        "--out=out",
    ];
    let output = bench(&arguments, folder.path(), Some(&emulator));
    let text = complaints(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(
        text.contains("2 vCPUs") && text.contains("signal: 9"),
        "{text}"
    );
    let kept = results(&folder.path().join("out/results.json"));
    let vcpus: Vec<u64> = runs(&kept).map(|(_, record)| record.vcpus).collect();
    assert_eq!(vcpus, [1, 3]);
    assert_eq!(kept["failures"].as_array().map(Vec::len), Some(1));
}

#[test]
fn an_emulator_that_refuses_to_start_is_told_once() {
    let text = refused(&["--cpu=no-such-cpu", "--vcpus=1,2", "--out=out"]);
    assert!(text.contains("no-such-cpu"), "{text}");
}

#[test]
fn a_captured_log_is_rendered() {
    let folder = TempDir::new().expect("room for a folder");
    let lines = "U-Boot 2023.01\r\n== mode parallel: 2 vCPUs x 4 MiB, backing 2M, 2 iterations ==\r\n\
                 Populate memory time: 0.001000000s\r\nIteration 1 dirty memory time: 0.004000000s\r\n\
                 Iteration 2 dirty memory time: 0.003000000s\r\nparvisor: exit status 0\r\n";
    fs::write(folder.path().join("board.log"), lines).expect("the folder is ours");
    let output = bench(
        &["--parse", "board.log", "--out", "out"],
        folder.path(),
        None,
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{text}{}",
        complaints(&output)
    );
    assert!(text.contains("| Later dirty iterations, ms "), "{text}");
    assert!(folder.path().join("out/phases.png").is_file());
}
