//! Dirty logging by every policy: each run is verified by the hypervisor; here it is seen that the policies do what they
//! promise. Several runs to a boot, with little memory.

use emulator::size::mib;
use qemu_tests::{Boot, describe};
use records::record::{PhaseName, Record};

const SMALL: &str = "vcpus=2 bytes=4M iterations=3 timeout=40";
/// Blocks of 2 MiB in that memory.
const BLOCKS: u64 = 4;

/// The records of so many runs, all verified.
fn verified(boot: &Boot, runs: usize) -> Vec<Record> {
    let outcome = boot.run_well();
    let records = &outcome.records;
    let all_well = records.len() == runs && records.iter().all(|record| record.verified);
    assert!(all_well, "{}", describe(&outcome));
    outcome.records
}

fn run(options: &str, runs: usize) -> Vec<Record> {
    verified(&Boot::benchmark(&format!("{options} {SMALL}")), runs)
}

/// A counter, summed up over the phases of a name and iteration.
fn counted(record: &Record, name: PhaseName, iteration: u64, counter: &str) -> u64 {
    let phases = record.phases.iter();
    let meant = phases.filter(|phase| (phase.name, phase.iteration) == (name, iteration));
    meant.filter_map(|phase| phase.counters.get(counter)).sum()
}

fn restored(record: &Record) -> u64 {
    let phases = [PhaseName::Disable, PhaseName::Restore];
    let restored = phases.map(|name| counted(record, name, 0, "restored_blocks"));
    let left = phases.map(|name| counted(record, name, 0, "tables_left"));
    assert_eq!(left, [0, 0]);
    restored.iter().sum()
}

#[test]
fn blocks_are_split_as_the_policy_says_and_come_back_at_once_or_later() {
    for options in ["", "enable=all_set", "restore=background clear=with_get"] {
        let records = run(&format!("split=none,fault,eager {options}"), 3);
        let splits: Vec<&str> = records.iter().map(|record| &record.split[..]).collect();
        assert_eq!(splits, ["none", "fault", "eager"]);
        for record in &records {
            assert_eq!(restored(record), BLOCKS, "{options}, {}", record.split);
        }
        let (none, fault, eager) = (&records[0], &records[1], &records[2]);
        // With a log that is initially set, nothing faults before it is first cleared.
        let dirty = if options == "enable=all_set" { 2 } else { 1 };
        let split = |record| counted(record, PhaseName::Dirty, dirty, "faults_split");
        assert_eq!(
            [split(none), split(fault), split(eager)],
            [BLOCKS, BLOCKS, 0]
        );
        let mapped = |record| counted(record, PhaseName::Dirty, dirty, "faults_mapped");
        assert_eq!([mapped(fault), mapped(eager)], [0, 0]);
        assert_eq!(
            mapped(none),
            2048 - BLOCKS,
            "all but the page that was written first"
        );
        if dirty == 2 {
            assert_eq!(
                counted(none, PhaseName::Dirty, 1, "exits_permission_fault"),
                0
            );
        }
    }
}

#[test]
fn several_cpus_harvest_split_and_restore() {
    let boot = |options: &str, runs| {
        let options = format!("harvesters=3 {options} {SMALL}");
        verified(&Boot::benchmark(&options).cpus(5), runs)
    };
    for options in ["", "enable=all_set clear=with_get slots=3"] {
        for record in boot(
            &format!("split=fault,eager mode=rwlock,parallel {options}"),
            4,
        ) {
            assert_eq!((record.harvesters, restored(&record)), (3, BLOCKS));
        }
    }
    let options = "tracking=writeprotect,hardware granularity=2M restore=background";
    for record in boot(options, 2) {
        assert!(record.verified);
    }
}

#[test]
fn logging_is_enabled_while_vcpus_write() {
    let records = run("split=none,fault,eager enable=overlapped exit_times", 3);
    for record in &records {
        assert_eq!(
            counted(record, PhaseName::Dirty, 2, "exits_permission_fault"),
            2048
        );
        assert!(counted(record, PhaseName::Dirty, 2, "longest_exit_ns") > 0);
    }
    let split = counted(&records[2], PhaseName::Enable, 0, "split_blocks");
    assert_eq!(split, BLOCKS);
}

#[test]
fn only_blocks_that_are_unmapped_make_reads_fault() {
    let records = run("split=none,fault,eager write_percent=20 exit_times", 3);
    let reads = |record| counted(record, PhaseName::Dirty, 1, "read_faults");
    assert!(reads(&records[0]) > 1000, "{:?}", records[0].phases);
    assert_eq!([reads(&records[1]), reads(&records[2])], [0, 0]);
    let longest = |record| counted(record, PhaseName::Dirty, 1, "longest_exit_ns");
    assert!(records.iter().all(|record| longest(record) > 0));
}

#[test]
fn gigabyte_blocks_are_split_by_every_policy() {
    let options = "backing=1G split=none,fault,eager mode=parallel,mutex";
    let boot = Boot::benchmark(&format!("{options} {SMALL}")).memory(mib(3072));
    for record in verified(&boot, 6) {
        // Those of 2 MiB that were split to pages, and the one of 1 GiB.
        let least = if record.split == "eager" { 513 } else { 5 };
        assert!(restored(&record) >= least, "{:?}", record.phases);
    }
}

#[test]
fn eager_splitting_leaves_its_reserve_and_faults_split_the_rest() {
    let options = "backing=1G split=eager split_reserve=64G";
    let boot = Boot::benchmark(&format!("{options} {SMALL}")).memory(mib(3072));
    let records = verified(&boot, 1);
    assert_eq!(
        counted(&records[0], PhaseName::Enable, 0, "split_ran_out"),
        1
    );
}

#[test]
fn pages_are_logged_by_every_policy() {
    let records = run("backing=4K slots=3 split=none,eager enable=all_set", 2);
    assert!(
        records
            .iter()
            .all(|record| restored(record) == 0 && record.slots == 3)
    );
    run("backing=4K slots=5 harvest=ring ring_entries=64", 1);
}

#[test]
fn whole_blocks_are_logged_where_that_is_wanted() {
    for options in [
        "",
        "harvest=ring ring_entries=64",
        "enable=all_set clear=with_get",
    ] {
        let options = format!("granularity=2M split=fault,eager slots=2 {options}");
        for record in run(&options, 2) {
            let faults = counted(&record, PhaseName::Dirty, 3, "exits_permission_fault");
            assert!((1..=2 * BLOCKS).contains(&faults), "{faults}");
            assert_eq!(restored(&record), 0, "nothing was split");
        }
    }
}

#[test]
fn a_ring_that_is_full_makes_its_vcpu_wait_and_loses_nothing() {
    for record in run("harvest=ring ring_entries=64 split=fault,eager slots=3", 2) {
        assert!(record.counters["ring_full"] > 0);
    }
    let records = run("harvest=ring ring_entries=4096", 1);
    assert_eq!(
        records[0].counters.get("ring_full"),
        None,
        "it is never full"
    );
}

#[test]
fn hardware_notes_writes_without_an_exit() {
    for cpu in ["neoverse-n1", "max"] {
        for options in [
            "",
            "enable=all_set slots=3",
            "granularity=2M",
            "backing=4K clear=with_get",
        ] {
            let options = format!("tracking=hardware split=eager,fault {options} {SMALL}");
            for record in verified(&Boot::benchmark(&options).cpu(cpu), 2) {
                assert!(record.stage2.contains("hardware dirty state"));
                for iteration in 2..=3 {
                    let faults = counted(
                        &record,
                        PhaseName::Dirty,
                        iteration,
                        "exits_permission_fault",
                    );
                    let splits = counted(&record, PhaseName::Dirty, iteration, "faults_split");
                    // Blocks that are split at a fault fault once.
                    assert_eq!(faults, splits, "{options}, iteration {iteration}");
                    assert!(splits == 0 || record.split == "fault" && record.enable == "all_set");
                }
            }
        }
    }
}

#[test]
fn hardware_tracking_is_refused_where_cpus_lack_it() {
    for cpu in ["cortex-a53", "cortex-a72"] {
        let boot = Boot::benchmark(&format!("tracking=writeprotect,hardware {SMALL}"));
        boot.cpu(cpu).run_refused(&["tracking=hardware", cpu]);
    }
}

/// The record of a stress run in which everything was done.
fn stressed(boot: &Boot) -> Record {
    let record = verified(boot, 1).remove(0);
    for what in [
        "rounds",
        "migrated",
        "harvested",
        "enabled",
        "own_writes",
        "pauses",
        "forks",
        "fork_writes",
        "twins",
        "twin_writes",
        "added_by_twins",
        "populated",
        "slots_added",
        "slots_moved",
        "slots_removed",
        "slots_refused",
        "pages_scanned",
        "reclaim_compressed",
    ] {
        let count = record.counters.get(what).copied().unwrap_or_default();
        assert!(count != 0, "{}, {what}: {:?}", record.cpu, record.counters);
    }
    record
}

#[test]
fn everything_at_once_loses_no_page() {
    let mut from_rings = 0;
    for (cpu, options) in [
        ("neoverse-n1", "seconds=6 bytes=2M slots=3 seed=1"),
        ("max", "seconds=3 bytes=1M slots=5 backing=4K seed=2"),
        ("cortex-a72", "seconds=3 bytes=2M seed=3 mode=rwlock"),
    ] {
        let options = format!("guest=stress vcpus=4 ring_entries=64 {options} timeout=40");
        let boot = Boot::benchmark(&options).cpu(cpu).cpus(9).limit(100);
        from_rings += stressed(&boot).counters["from_rings"];
    }
    assert!(from_rings != 0, "rings are used");
}

#[test]
fn everything_at_once_loses_no_page_of_a_gigabyte() {
    let options =
        "guest=stress vcpus=4 seconds=3 bytes=256M backing=1G ring_entries=64 seed=4 timeout=100";
    // The test memory, its copy, what a fork and its parent may write, and a gigabyte that isn't whole.
    let boot = Boot::benchmark(options).cpus(9).memory(mib(7 << 10));
    stressed(&boot.limit(300));
}
