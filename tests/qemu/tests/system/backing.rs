//! What backs memory changes while guests use it: each run is verified by its guests; here it is seen that it costs what it
//! should. With little memory.

use emulator::size::mib;
use qemu_tests::{Boot, describe};
use records::record::{Phase, PhaseName, Record};

/// Pages of the memory of two vCPUs in [`run`].
const PAGES: u64 = 1024;

/// The records of so many runs of a workload with that memory, all verified.
fn run(workload: &str, runs: usize) -> Vec<Record> {
    run_with(&format!("{workload} bytes=2M"), runs)
}

/// The records of so many runs of a workload, all verified.
fn run_with(workload: &str, runs: usize) -> Vec<Record> {
    let options = format!("guest=backing workload={workload} vcpus=2 timeout=60");
    let outcome = Boot::benchmark(&options).cpus(6).limit(150).run_well();
    let records = &outcome.records;
    let all_well = records.len() == runs && records.iter().all(|record| record.verified);
    assert!(all_well, "{}", describe(&outcome));
    records.clone()
}

/// A counter of a phase; one that isn't there is 0.
fn counted(record: &Record, phase: (PhaseName, u64), counter: &str) -> u64 {
    let phases = record.phases.iter();
    let mut meant = phases.filter(|found| (found.name, found.iteration) == phase);
    let found = meant
        .next()
        .unwrap_or_else(|| panic!("no {phase:?} in {:?}", record.phases));
    found.counters.get(counter).copied().unwrap_or(0)
}

#[test]
fn faults_beside_invalidated_ranges_never_try_again() {
    for record in run("invalidate tracker=ranges workers=0,1,3", 3) {
        for iteration in 1..=3 {
            let counted = |counter| counted(&record, (PhaseName::Write, iteration), counter);
            assert_eq!(counted("faults_retried"), 0, "{} workers", record.workers);
            assert_eq!(counted("faults_mapped"), PAGES - 2 * 16);
        }
        let invalidations = |phase: &Phase| phase.counters.get("invalidations").copied();
        let all: u64 = record.phases.iter().filter_map(invalidations).sum();
        assert_eq!(all > 0, record.workers > 0);
    }
}

#[test]
fn with_one_count_for_the_vm_they_do() {
    let retried_beside = |workers| {
        let options = format!("invalidate tracker=sequence workers={workers} iterations=4");
        let counters = &run(&options, 1)[0].counters;
        counters.get("faults_retried").copied().unwrap_or_default()
    };
    assert_eq!(retried_beside(0), 0);
    // On a busy host the other CPU may have had no turn.
    assert!((0..5).any(|_| retried_beside(1) > 0));
}

#[test]
fn a_page_that_a_fork_writes_takes_one_exit_and_two_where_it_is_unmapped() {
    let records = run("cow", 2);
    for (record, change, exits) in [(&records[0], "direct", 1), (&records[1], "unmap", 2)] {
        assert_eq!(record.change, change);
        let faults = |phase| {
            let kinds = ["exits_permission_fault", "exits_translation_fault"];
            kinds
                .iter()
                .map(|kind| counted(record, phase, kind))
                .sum::<u64>()
        };
        assert_eq!(faults((PhaseName::Read, 1)), PAGES);
        assert_eq!(faults((PhaseName::Write, 2)), exits * PAGES, "{change}");
        assert!(counted(record, (PhaseName::Write, 3), "faults_reused") >= PAGES);
    }
}

#[test]
fn what_is_populated_ahead_takes_no_fault() {
    for record in run("prefault workers=0,1,3", 3) {
        let faults = counted(&record, (PhaseName::Write, 1), "exits_translation_fault");
        assert_eq!(faults, if record.workers == 0 { PAGES } else { 0 });
        // The guest has given it up, and had it populated by its own calls.
        let faults = ["exits_translation_fault", "exits_permission_fault"];
        let faults = faults.map(|kind| counted(&record, (PhaseName::Write, 2), kind));
        assert_eq!(faults, [0, 0]);
    }
}

/// The guests have one piece of 1 GiB each, of which they use the first pages.
#[test]
fn what_backs_gigabytes_changes_while_guests_use_them() {
    for (workload, runs) in [
        // Not merging: a scan of gigabytes takes the emulator minutes.
        ("cow", 2),
        ("invalidate tracker=ranges workers=1", 1),
        ("prefault workers=1", 1),
    ] {
        let options =
            format!("guest=backing workload={workload} backing=1G vcpus=2 bytes=2M timeout=60");
        let boot = Boot::benchmark(&options).cpus(6).memory(mib(4096));
        let outcome = boot.limit(150).run_well();
        let records = &outcome.records;
        let all_well = records.len() == runs && records.iter().all(|record| record.verified);
        assert!(all_well, "{}", describe(&outcome));
    }
}

#[test]
fn equal_pages_of_two_vms_are_merged_while_both_check_them() {
    let records = run("merge iterations=1", 2);
    let guest = |record, phase| counted(record, phase, "frames_guest");
    let (filled, merged) = ((PhaseName::Fill, 0), (PhaseName::Merge, 0));
    let [before, after] = [filled, merged].map(|phase| guest(&records[1], phase));
    assert_eq!(before, guest(&records[0], filled));
    // Of both VMs' memory less than 60 % remain.
    assert!(
        before - after > 2 * PAGES * 40 / 100,
        "{before} frames became {after}"
    );
    // One copy of the kernel serves both, but for the pages of it that they write.
    let image = |counter| counted(&records[1], (PhaseName::Fill, 1), counter);
    let (frames, sharers) = (image("image_frames"), image("image_sharers"));
    assert!(
        sharers > frames && sharers <= 2 * frames,
        "{sharers} of {frames}"
    );
    let shared = counted(&records[1], merged, "pages_sharing");
    assert!(shared > 2 * PAGES * 30 / 100, "{shared}");
    // What one of them fills anew had partners, but for a quarter: it is copied, or left to its last sharer, or was zeros.
    let kinds = ["faults_unshared", "faults_reused", "faults_populated"];
    let own = kinds.map(|kind| counted(&records[1], (PhaseName::Fill, 1), kind));
    assert!(
        own.iter().sum::<u64>() > PAGES / 20,
        "{own:?} have a frame of their own again"
    );
}

#[test]
fn a_cpu_without_a_vcpu_merges_beside_the_benchmark_which_is_verified() {
    for policies in [
        "",
        "overcommit=150 harvest=ring ring_entries=64 slots=2",
        "backing=4K merge_targets=ram max_page_sharing=2 pages_to_scan=1000 sleep_millisecs=1",
    ] {
        let merges = |iterations| {
            let options =
                format!("merging vcpus=2 bytes=2M iterations={iterations} timeout=60 {policies}");
            let outcome = Boot::benchmark(&options).cpus(4).limit(150).run_well();
            let record = &outcome.records[0];
            assert!(record.verified, "{}", describe(&outcome));
            let mut lines = outcome.lines.iter();
            assert!(lines.any(|line| line.starts_with("merging counters: ")));
            let counter = |name: &str| record.counters.get(name).copied().unwrap_or(0);
            // What the guest's RAM has of zeros.
            let merged = counter("ksm_zero_pages") + counter("pages_sharing");
            counter("full_scans") >= 2 && merged > 0
        };
        // On a busy host the CPU that merges may come late.
        assert!([30, 100, 300].into_iter().any(merges), "{policies}");
    }
}

#[test]
fn two_cpus_merge_together() {
    for workload in [
        "merging=2 vcpus=1 bytes=4M iterations=100 backing=4K timeout=60",
        "guest=backing workload=merge workers=2 vcpus=1 bytes=4M iterations=1 timeout=60",
    ] {
        let outcome = Boot::benchmark(workload).cpus(5).limit(150).run_well();
        let record = &outcome.records[0];
        assert!(record.verified, "{}", describe(&outcome));
        let merge = record
            .phases
            .iter()
            .find(|phase| phase.name == PhaseName::Merge);
        let counters = merge.map_or(&record.counters, |phase| &phase.counters);
        let counter = |name: &str| counters.get(name).copied().unwrap_or(0);
        assert_eq!(
            (counter("scanners"), record.scanners + record.workers),
            (2, 2)
        );
        assert!(counter("full_scans") >= 1, "{}", describe(&outcome));
        assert!(counter("ksm_zero_pages") + counter("pages_sharing") > 0);
    }
}

#[test]
fn merging_keeps_to_its_rate() {
    // The guest ends long before the first pause does.
    let rate = "pages_to_scan=7 sleep_millisecs=3600000";
    let options = format!("merging {rate} vcpus=2 bytes=4M iterations=2 timeout=60");
    let outcome = Boot::benchmark(&options).cpus(4).run_well();
    let record = &outcome.records[0];
    assert_eq!(record.counters["pages_scanned"], 7);
    assert_eq!(
        (record.pages_to_scan, record.sleep_millisecs),
        (7, 3_600_000)
    );
}

#[test]
fn a_fork_is_merged_with_what_it_comes_from() {
    let records = run("cow merging change=direct iterations=1", 1);
    assert_eq!(records[0].merge_targets, "test,ram");
    assert!(records[0].counters["pages_scanned"] > 0);
}

#[test]
fn a_vm_with_less_memory_than_it_uses_loses_nothing() {
    // Enough for what the guest's RAM has of zeros not to be all that has to go.
    let records = run_with("reclaim bytes=16M iterations=1", 2);
    let back = |record| counted(record, (PhaseName::Check, 1), "brought_back");
    assert_eq!(back(&records[0]), 0);
    assert!(back(&records[1]) > 500, "{:?}", records[1].phases);
}

#[test]
fn the_benchmark_is_verified_with_less_memory_than_it_uses() {
    for policies in [
        "",
        "backing=4K",
        "split=eager slots=3",
        "harvest=ring ring_entries=64",
    ] {
        let options = format!("overcommit=150 vcpus=2 bytes=8M iterations=3 timeout=60 {policies}");
        let outcome = Boot::benchmark(&options)
            .memory(mib(512))
            .limit(150)
            .run_well();
        let record = &outcome.records[0];
        assert!(
            record.verified && record.overcommit == 150,
            "{}",
            describe(&outcome)
        );
        assert!(
            record.counters.contains_key("faults_brought_back"),
            "{:?}",
            record.counters
        );
    }
}
