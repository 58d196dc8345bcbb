//! The dirty-log benchmark: every mode, backing and way to choose pages, each verified by the hypervisor, and nothing left
//! of the VM afterwards.

use emulator::boot::Outcome;
use emulator::size::mib;
use qemu_tests::{Boot, SHORT, assert_verified, describe, emulator};
use records::record::{PhaseName, Record};

fn run(options: &str) -> Outcome {
    Boot::benchmark(options).run_well()
}

#[test]
fn every_mode_is_verified_in_one_boot() {
    let outcome = run(&format!("mode=mutex,rwlock,parallel {SHORT}"));
    assert_verified(&outcome, &["mutex", "rwlock", "parallel"]);
    for record in &outcome.records {
        assert_eq!(
            (record.vcpus, record.bytes_per_vcpu, record.iterations),
            (2, 4 << 20, 2)
        );
        assert_eq!((record.backing.as_str(), record.write_percent), ("2M", 100));
        assert_eq!(
            phase_names(record),
            expected_phases(2),
            "{}",
            describe(&outcome)
        );
        assert!(
            record.phases.iter().all(|phase| phase.ns > 0),
            "{:?}",
            record.phases
        );
        assert!(record.counters.values().any(|count| *count > 0));
    }
}

fn phase_names(record: &Record) -> Vec<(PhaseName, u64)> {
    record
        .phases
        .iter()
        .map(|phase| (phase.name, phase.iteration))
        .collect()
}

fn expected_phases(iterations: u64) -> Vec<(PhaseName, u64)> {
    let mut names = vec![(PhaseName::Populate, 0), (PhaseName::Enable, 0)];
    for iteration in 1..=iterations {
        names.extend(
            [PhaseName::Dirty, PhaseName::Get, PhaseName::Clear].map(|name| (name, iteration)),
        );
    }
    names.extend([PhaseName::Disable, PhaseName::Restore].map(|name| (name, 0)));
    names
}

#[test]
fn the_result_lines_are_those_of_dirty_log_perf_test() {
    let outcome = run(SHORT);
    for start in [
        "Populate memory time: ",
        "Enabling dirty logging time: ",
        "Iteration 1 dirty memory time: ",
        "Iteration 2 get dirty log time: ",
        "Iteration 2 clear dirty log time: ",
        "Disabling dirty logging time: ",
    ] {
        let found = outcome
            .lines
            .iter()
            .any(|line| line.starts_with(start) && line.ends_with('s'));
        assert!(found, "{start}: {}", describe(&outcome));
    }
}

#[test]
fn small_pages_back_a_guest() {
    assert_verified(&run(&format!("backing=4K {SHORT}")), &["parallel"]);
}

#[test]
fn gigabyte_blocks_back_a_guest() {
    let options = "backing=1G mode=mutex,rwlock,parallel vcpus=2 bytes=8M iterations=2 timeout=60";
    let boot = Boot::benchmark(options).memory(mib(3072));
    assert_verified(&boot.run_well(), &["mutex", "rwlock", "parallel"]);
}

#[test]
fn reads_and_random_pages_are_told_apart_from_writes() {
    for options in [
        "write_percent=20",
        "random seed=7",
        "random write_percent=50 seed=1",
    ] {
        for backing in ["4K", "2M"] {
            let outcome = run(&format!("backing={backing} {options} {SHORT}"));
            assert_verified(&outcome, &["parallel"]);
        }
    }
}

#[test]
fn a_guest_that_writes_nothing_dirties_nothing() {
    assert_verified(&run(&format!("write_percent=0 {SHORT}")), &["parallel"]);
}

#[test]
fn one_page_per_vcpu_is_enough() {
    assert_verified(
        &run("vcpus=2 bytes=4K iterations=3 backing=4K timeout=40"),
        &["parallel"],
    );
    assert_verified(
        &run("vcpus=2 bytes=4K iterations=3 timeout=40"),
        &["parallel"],
    );
}

#[test]
fn every_size_of_guest_address_space_works() {
    for bits in [32, 36, 40, 44] {
        let outcome = Boot::benchmark(&format!("ipa_bits={bits} {SHORT}")).run_well();
        assert_verified(&outcome, &["parallel"]);
    }
    let outcome = Boot::benchmark(&format!("ipa_bits=48 {SHORT}"))
        .cpu("neoverse-n2")
        .run_well();
    assert_verified(&outcome, &["parallel"]);
}

#[test]
fn nothing_is_left_of_a_destroyed_vm() {
    let outcome = run(&format!("mode=mutex,rwlock,parallel {SHORT}"));
    let accounts: Vec<&String> = outcome
        .lines
        .iter()
        .filter(|line| line.contains(" after its end: "))
        .collect();
    assert_eq!(accounts.len(), 3, "{}", describe(&outcome));
    let is_nothing = |line: &&String| line.ends_with(": table 0 guest 0 pending 0");
    assert!(accounts.iter().all(is_nothing), "{accounts:?}");
}

/// Each step has all of the time, and a fault that is served is progress.
#[test]
fn a_run_that_makes_progress_goes_on_beyond_its_timeout() {
    let boot = Boot::benchmark("mode=parallel vcpus=2 bytes=64M iterations=6 timeout=2");
    assert_verified(&boot.run_well(), &["parallel"]);
}

/// As a host does that gives the emulator no CPU for longer than the guest's limit.
#[cfg(target_os = "linux")]
#[test]
fn a_machine_that_stands_still_for_longer_than_the_timeout_goes_on() {
    let folder = tempfile::TempDir::new().expect("room for a folder");
    let script = format!(
        "pipe={}/pipe; mkfifo $pipe; {} \"$@\" > $pipe & pid=$!\n\
         while read -r line; do echo \"$line\"; case $line in Populate*)\n\
         kill -STOP $pid; sleep 5; kill -CONT $pid;; esac; done < $pipe; wait $pid",
        folder.path().display(),
        emulator().display()
    );
    let mut boot = Boot::benchmark("mode=parallel vcpus=2 bytes=16M iterations=3 timeout=2");
    boot.machine.emulator = crate::command::wrapper(folder.path(), &script);
    assert_verified(&boot.run_well(), &["parallel"]);
}

#[test]
fn sixteen_vcpus_write_at_once() {
    let boot = Boot::benchmark("vcpus=16 bytes=2M iterations=2 timeout=100")
        .cpus(17)
        .limit(150);
    assert_verified(&boot.run_well(), &["parallel"]);
}
