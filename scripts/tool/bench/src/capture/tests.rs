//! Logs as they are captured.

use super::*;

const SAMPLE: &str = include_str!("../../../emulator/samples/record.json").trim_ascii();

const PARVISOR_LINES: &str = "\
== mode mutex: 2 vCPUs x 4 MiB, backing 2M, 2 iterations ==
Populate memory time: 0.001372000s
Enabling dirty logging time: 0.000651000s
Iteration 1 dirty memory time: 0.008599000s
Iteration 1 get dirty log time: 0.000054000s
Iteration 1 clear dirty log time: 0.000375000s
Iteration 2 dirty memory time: 0.010144000s
Disabling dirty logging time: 0.001452000s
";

fn read(text: &str) -> Result<Capture, String> {
    read_knowing(text, &Known::default())
}

fn read_knowing(text: &str, known: &Known) -> Result<Capture, String> {
    let capture = Capture::read(Path::new("log"), text, known);
    capture.map_err(|error| {
        let line = error.to_string();
        assert!(!line.contains('\n'), "{line}");
        line
    })
}

#[test]
fn records_are_found_among_anything() {
    let text = format!(
        "U-Boot 2023.01\r\n\u{1b}[2K[12:00:01] \u{1b}[32m@record {SAMPLE}\u{1b}[0m\r\n\u{0}\u{fffd}trash\r\n@record {SAMPLE} tail\n"
    );
    let capture = read(&text).expect("two records");
    let sample: Record = serde_json::from_str(SAMPLE).expect("the sample is a record");
    assert_eq!(capture.records, [sample.clone(), sample]);
    assert!(capture.failures.is_empty());
}

#[test]
fn a_record_that_a_terminal_has_cut_into_lines_is_put_together() {
    let (one, two) = SAMPLE.split_at(77);
    let (two, three) = two.split_at(80);
    let capture = read(&format!("@record {one}\r\n{two}\r\n{three}\r\n")).expect("a record");
    assert_eq!(capture.records.len(), 1);
}

#[test]
fn a_guest_cannot_forge_a_record() {
    let forged =
        format!("guest: @record {SAMPLE}\n[12:00] guest: Populate memory time: 0.000000001s\n");
    assert!(
        read(&forged)
            .expect_err("there is none")
            .contains("no results in 2 lines")
    );
}

#[test]
fn of_a_lost_record_the_result_lines_are_left() {
    let cut = &SAMPLE[..SAMPLE.len() / 2];
    let capture = read(&format!(
        "{PARVISOR_LINES}@record {cut}\n{PARVISOR_LINES}@record {SAMPLE}\n"
    ))
    .expect("two runs");
    let notice = &capture.failures[0];
    assert!(
        notice.starts_with("log:9: a record that can't be read"),
        "{notice}"
    );
    let modes: Vec<&str> = capture
        .records
        .iter()
        .map(|record| record.mode.as_str())
        .collect();
    assert_eq!(modes, ["mutex", "parallel"]);
    assert!(
        read(&format!("@record {cut}\n"))
            .expect_err("it is cut")
            .starts_with("log:1: ")
    );
    assert!(
        read("\n@record {\"mode\":1}\n")
            .expect_err("none")
            .starts_with("log:2: ")
    );
}

#[test]
fn result_lines_alone_are_a_run() {
    let text = format!("{PARVISOR_LINES}parvisor: exit status 0\n").replace('\n', "\r\n");
    let capture = read(&text).expect("a run");
    let record = &capture.records[0];
    assert_eq!(
        (record.mode.as_str(), record.vcpus, record.bytes_per_vcpu),
        ("mutex", 2, 4 << 20)
    );
    assert_eq!(
        (
            record.backing.as_str(),
            record.iterations,
            record.phases.len()
        ),
        ("2M", 2, 7)
    );
    assert!(record.verified);
    assert!(!read(PARVISOR_LINES).expect("a run").records[0].verified);
}

#[test]
fn a_heading_names_what_isnt_usual() {
    let record = heading(
        "== mode parallel: 16 vCPUs x 8 MiB, backing 1G, 4 iterations, split eager, tracking hardware, clear with_get, \
         3 slots, overcommit 150 %, merging test,ram, scanners 3, sleep_millisecs 20 ==",
    )
    .expect("a heading");
    assert_eq!(
        (record.overcommit, record.merge_targets.as_str()),
        (150, "test,ram")
    );
    assert_eq!(record.scanners, 3);
    assert_eq!((record.pages_to_scan, record.sleep_millisecs), (100, 20));
    assert_eq!(
        (record.mode.as_str(), record.split.as_str()),
        ("parallel", "eager")
    );
    assert_eq!(
        (record.tracking.as_str(), record.backing.as_str()),
        ("hardware", "1G")
    );
    assert_eq!(
        (record.clear.as_str(), record.enable.as_str()),
        ("with_get", "protect")
    );
    assert_eq!(
        (record.vcpus, record.bytes_per_vcpu, record.slots),
        (16, 8 << 20, 3)
    );
}

#[test]
fn a_workloads_result_lines_are_a_run_too() {
    let text = "\
[ 1.0] == cow, mode parallel: 2 vCPUs x 4 MiB, backing 4K, tracker ranges, change unmap, 3 workers, overcommit 100 % ==
Iteration 1 write memory time: 0.001372000s
Forking the VM time: 0.000651000s
Iteration 1 read memory time: 0.000375000s
parvisor: exit status 0
";
    let record = read(text).expect("a run").records.remove(0);
    let said = (
        record.workload.as_str(),
        record.change.as_str(),
        record.workers,
    );
    assert_eq!(said, ("cow", "unmap", 3));
    assert_eq!((record.split.as_str(), record.write_percent), ("", 0));
    assert_eq!((record.phases.len(), record.verified), (3, true));
    assert_eq!(heading("== stress, mode parallel: 2 vCPUs =="), None);
}

#[test]
fn linux_names_itself_and_its_options() {
    let lines = PARVISOR_LINES
        .lines()
        .skip(1)
        .map(|line| format!("[    2.5] {line}\n"));
    let lines: String = lines.collect();
    let text = format!(
        "[    0.0] Linux version 6.12.117-cloud-arm64 (debian)\n# ./dirty_log_perf_test -v 4 -b 8M -s anonymous_thp -g -m 3\n{lines}"
    );
    let record = read(&text).expect("a run").records.remove(0);
    assert_eq!(
        (record.system.as_str(), record.mode.as_str()),
        ("linux 6.12.117", "kvm")
    );
    assert_eq!(
        (record.vcpus, record.bytes_per_vcpu, record.backing.as_str()),
        (4, 8 << 20, "2M")
    );
    assert_eq!(
        (record.enable.as_str(), record.clear.as_str()),
        ("protect", "with_get")
    );
    assert!(
        read(&lines)
            .expect_err("unknown")
            .contains("log:1: result lines that don't say how many vCPUs")
    );
    let known = Known {
        vcpus: Some(3),
        bytes: Some(4096),
        ..Known::default()
    };
    assert_eq!(
        read_knowing(&lines, &known).expect("a run").records[0].vcpus,
        3
    );
}
