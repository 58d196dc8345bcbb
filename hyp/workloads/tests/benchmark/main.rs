//! The benchmark from its command line to its record, on a machine of threads: real control plane, real vCPU threads, real
//! stage-2 tables, and guests that are Rust functions.

mod guests;
mod machine;
mod precopy;

use control::CpuPool;
use guests::{Guest, Sin};
use machine::{CPUS, Outcome, REGISTER, run, run_with_dirty_state, run_without_guest, threads};
use memory::frames::Counts;
use records::record::{PhaseName, Record};
use stage2::Features;
use std::sync::Arc;
use vm::CpuId;

fn records(outcome: &Outcome) -> Vec<Record> {
    let json = outcome
        .lines
        .iter()
        .filter_map(|line| line.strip_prefix("@record "));
    json.map(|json| serde_json::from_str(json).expect("a record is JSON"))
        .collect()
}

fn assert_nothing_left(outcome: &Outcome) {
    let ends: Vec<_> = outcome
        .lines
        .iter()
        .filter(|line| line.contains("after its end"))
        .collect();
    assert!(
        ends.iter()
            .all(|line| line.ends_with(": table 0 guest 0 pending 0")),
        "{ends:?}"
    );
    // One frame of zeros, once there was a VM, stays for those to come.
    let Counts {
        table,
        guest,
        pending,
        ..
    } = outcome.frames;
    assert_eq!((table, guest.saturating_sub(1), pending), (0, 0, 0));
    assert_eq!(outcome.frames.check(), Ok(()));
}

#[test]
fn every_mode_gives_a_verified_record_and_leaves_nothing() {
    let options = "mode=mutex,rwlock,parallel vcpus=3 bytes=3M iterations=2 timeout=60";
    let outcome = run(options, Guest::Honest);
    assert_eq!(outcome.error, None, "{:#?}", outcome.lines);
    let records = records(&outcome);
    assert_eq!(
        records
            .iter()
            .map(|record| &record.mode[..])
            .collect::<Vec<_>>(),
        ["mutex", "rwlock", "parallel"]
    );
    for record in &records {
        assert!(record.verified);
        assert_eq!(
            (record.vcpus, record.bytes_per_vcpu, &record.backing[..]),
            (3, 3 << 20, "2M")
        );
        let phases: Vec<_> = record
            .phases
            .iter()
            .map(|phase| (phase.name, phase.iteration))
            .collect();
        use PhaseName::{Clear, Dirty, Disable, Enable, Get, Populate, Restore};
        let iterations = [
            (Dirty, 1),
            (Get, 1),
            (Clear, 1),
            (Dirty, 2),
            (Get, 2),
            (Clear, 2),
        ];
        assert_eq!(
            phases,
            [
                &[(Populate, 0), (Enable, 0)][..],
                &iterations,
                &[(Disable, 0), (Restore, 0)]
            ]
            .concat()
        );
        // 9 MiB: five blocks, split in the first iteration, and 2304 pages.
        assert_eq!(record.phases[2].counters["faults_split"], 5);
        assert_eq!(record.phases[2].counters["exits_permission_fault"], 2304);
        assert_eq!(record.phases[5].counters["exits_permission_fault"], 2304);
        assert_eq!(record.phases[7].counters["write_protected"], 2304);
    }
    assert_eq!(
        outcome.count("== mode parallel: 3 vCPUs x 3 MiB, backing 2M, 2 iterations =="),
        1
    );
    assert_eq!(
        outcome.count(r#"@progress {"mode":"mutex","step":5,"steps":5}"#),
        1
    );
    assert_eq!(outcome.starting("Iteration 2 clear dirty log time: "), 3);
    assert_eq!(outcome.starting("counters: "), 3);
    assert_eq!(outcome.starting("guest: vCPU 0 is up"), 3);
    assert_nothing_left(&outcome);
}

#[test]
fn several_cpus_harvest_split_and_restore_and_their_work_is_counted() {
    let common = "mode=mutex,rwlock,parallel bytes=10M iterations=2 timeout=60";
    for (vcpus, harvesters) in [(2, 2), (1, 3)] {
        for policy in [
            "split=fault",
            "split=eager slots=2",
            "split=eager enable=all_set clear=with_get",
            "backing=4K slots=3 restore=background",
            "harvest=ring",
            "merging",
        ] {
            let merging = policy == "merging";
            if merging && harvesters == 3 {
                continue;
            }
            let (vcpus, harvesters) = match merging {
                true => (1, 2),
                false => (vcpus, harvesters),
            };
            let options = format!("{common} vcpus={vcpus} harvesters={harvesters} {policy}");
            let outcome = run(&options, Guest::Honest);
            let records = verified(&outcome, 3);
            for record in &records {
                assert_eq!(record.harvesters, harvesters, "{options}");
                let protected = record.counters["write_protected"];
                let pages = 2560 * vcpus;
                assert!(protected >= pages, "{options}: {protected} of {pages}");
            }
        }
    }
}

#[test]
fn shares_that_are_no_multiple_of_anything_are_verified_too() {
    for options in [
        "vcpus=3 bytes=300K iterations=3 backing=4K write_percent=40 timeout=60",
        "vcpus=2 bytes=20K iterations=2 backing=2M random seed=5 timeout=60",
        "vcpus=1 bytes=4K iterations=1 backing=4K write_percent=0 timeout=60",
    ] {
        let outcome = run(options, Guest::Honest);
        assert_eq!(outcome.error, None, "{options}: {:#?}", outcome.lines);
        assert!(records(&outcome).iter().all(|record| record.verified));
        assert_nothing_left(&outcome);
    }
}

/// Runs that make this many verified records, and gives them.
fn verified(outcome: &Outcome, count: usize) -> Vec<Record> {
    assert_eq!(outcome.error, None, "{:#?}", outcome.lines);
    let records = records(outcome);
    assert_eq!(records.len(), count);
    assert!(records.iter().all(|record| record.verified));
    assert_nothing_left(outcome);
    records
}

/// A counter, summed up over the phases of a name and iteration.
fn counted(record: &Record, name: PhaseName, iteration: u64, counter: &str) -> u64 {
    let phases = record.phases.iter();
    let meant = phases.filter(|phase| (phase.name, phase.iteration) == (name, iteration));
    meant.filter_map(|phase| phase.counters.get(counter)).sum()
}

#[test]
fn every_way_to_split_is_verified_and_blocks_come_back() {
    let options = "mode=parallel,mutex split=none,fault,eager vcpus=3 bytes=3M slots=2 iterations=2 timeout=60";
    for policies in [
        "",
        "enable=all_set",
        "clear=with_get",
        "granularity=2M",
        "restore=background",
    ] {
        let records = verified(&run(&format!("{options} {policies}"), Guest::Honest), 6);
        let splits: Vec<_> = records.iter().map(|record| &record.split[..]).collect();
        assert_eq!(splits, ["none", "fault", "eager"].repeat(2), "{policies}");
        for record in &records {
            let restored: u64 = [PhaseName::Disable, PhaseName::Restore]
                .map(|name| counted(record, name, 0, "restored_blocks"))
                .iter()
                .sum();
            let blocks = if policies == "granularity=2M" { 0 } else { 5 };
            assert_eq!(restored, blocks, "{policies}, split {}", record.split);
        }
        let eager = &records[2];
        let splitting = match policies {
            "enable=all_set" => (PhaseName::Clear, 1),
            _ => (PhaseName::Enable, 0),
        };
        let split = counted(eager, splitting.0, splitting.1, "split_blocks");
        assert_eq!(
            split,
            if policies == "granularity=2M" { 0 } else { 5 },
            "{policies}"
        );
        assert_eq!(counted(eager, PhaseName::Dirty, 1, "faults_split"), 0);
    }
}

#[test]
fn rings_lose_nothing_however_small_they_are() {
    let options = "harvest=ring ring_entries=64 vcpus=3 bytes=3M iterations=3 timeout=60";
    for policies in [
        "",
        "split=none slots=3",
        "granularity=2M",
        "random write_percent=50",
        "backing=4K slots=7",
        "backing=4K slots=500",
    ] {
        let records = verified(&run(&format!("{options} {policies}"), Guest::Honest), 1);
        assert_eq!(records[0].harvest, "ring");
    }
}

#[test]
fn hardware_notes_writes_without_a_fault() {
    let options =
        "tracking=writeprotect,hardware split=eager vcpus=3 bytes=3M iterations=3 timeout=60";
    for policies in [
        "",
        "enable=all_set",
        "granularity=2M",
        "clear=with_get slots=5",
        "backing=4K slots=7",
    ] {
        let records = verified(
            &run_with_dirty_state(&format!("{options} {policies}"), Guest::Honest),
            2,
        );
        for iteration in 2..=3 {
            let faults = |record| {
                counted(
                    record,
                    PhaseName::Dirty,
                    iteration,
                    "exits_permission_fault",
                )
            };
            assert_eq!(faults(&records[1]), 0, "{policies}");
            assert!(faults(&records[0]) > 0, "{policies}");
        }
    }
}

#[test]
fn reads_are_counted_apart_and_only_unmapped_blocks_make_them_fault() {
    let options = "split=none,eager write_percent=20 vcpus=2 bytes=4M iterations=2 timeout=60";
    let records = verified(&run(options, Guest::Honest), 2);
    assert!(counted(&records[0], PhaseName::Dirty, 1, "read_faults") > 0);
    assert_eq!(counted(&records[1], PhaseName::Dirty, 1, "read_faults"), 0);
}

#[test]
fn the_longest_exit_of_a_phase_is_measured_on_request() {
    let longest = |options: &str| {
        let records = verified(&run(options, Guest::Honest), 1);
        records[0].phases[0]
            .counters
            .get("longest_exit_ns")
            .copied()
    };
    let options = "vcpus=2 bytes=1M iterations=1 timeout=60";
    assert_eq!(longest(options), None);
    assert!(longest(&format!("{options} exit_times")) > Some(0));
}

#[test]
fn only_faults_in_an_invalidated_range_try_again() {
    let options = "guest=backing workload=invalidate workers=0,2 vcpus=1 bytes=2M timeout=60";
    let records = verified(&run(options, Guest::Honest), 4);
    for record in &records[..2] {
        assert_eq!(record.tracker, "ranges");
        for iteration in 1..=3 {
            let counted = |counter| counted(record, PhaseName::Write, iteration, counter);
            assert_eq!(
                counted("faults_mapped"),
                496,
                "{iteration}: {:?}",
                record.phases
            );
            assert_eq!(counted("faults_retried"), 0);
            // Others may not have had a turn on a busy host.
            assert!(counted("invalidations") == 0 || record.workers > 0);
        }
    }
    assert_eq!(records[2].tracker, "sequence");
}

#[test]
fn a_fork_takes_one_exit_for_a_page_that_it_writes_and_two_where_it_is_unmapped() {
    let options = "guest=backing workload=cow vcpus=1 bytes=1M timeout=60";
    let outcome = run(options, Guest::Honest);
    let records = verified(&outcome, 2);
    let started = outcome.starting("guest: vCPU 0 is up");
    assert_eq!(started, 2, "a fork goes on where its parent was");
    for (record, change, exits) in [(&records[0], "direct", 256), (&records[1], "unmap", 512)] {
        assert_eq!(record.change, change);
        let counted = |name, iteration, counter| counted(record, name, iteration, counter);
        assert_eq!(counted(PhaseName::Read, 1, "exits_translation_fault"), 256);
        let faults = ["exits_permission_fault", "exits_translation_fault"];
        let faults = faults.map(|counter| counted(PhaseName::Write, 2, counter));
        assert_eq!(faults[0], 256, "{:?}", record.phases);
        assert_eq!(faults[0] + faults[1], exits);
        // Nobody shares them any more.
        assert_eq!(counted(PhaseName::Write, 3, "faults_reused"), 256);
    }
}

#[test]
fn what_is_populated_ahead_takes_no_fault() {
    let options = "guest=backing workload=prefault workers=0,1,2 vcpus=1 bytes=3M timeout=60";
    let records = verified(&run(options, Guest::Honest), 3);
    let faults = records
        .iter()
        .map(|record| counted(record, PhaseName::Write, 1, "exits_translation_fault"));
    assert_eq!(faults.collect::<Vec<_>>(), [768, 0, 0]);
    for record in &records {
        let faults = |counter| counted(record, PhaseName::Write, 2, counter);
        assert_eq!(
            faults("exits_translation_fault"),
            0,
            "by the guest's own calls"
        );
        assert_eq!(faults("exits_permission_fault"), 0);
    }
    assert_eq!(
        counted(&records[2], PhaseName::Prefault, 0, "populated"),
        768
    );
}

#[test]
fn two_guests_run_at_once_and_each_has_its_own_account() {
    let outcome = run(
        "guest=backing workload=merge workers=0 vcpus=1 bytes=1M iterations=1 timeout=60",
        Guest::Honest,
    );
    let records = verified(&outcome, 1);
    let counted = |counter| counted(&records[0], PhaseName::Fill, 1, counter);
    // The guests here execute nothing of it.
    assert_eq!((counted("image_frames"), counted("image_sharers")), (1, 2));
    for vm in ["VM 0", "VM 1"] {
        assert_eq!(outcome.starting(&[vm, " after its end: "].concat()), 1);
    }
    let refused = run(
        "guest=backing workload=merge workers=0 vcpus=2",
        Guest::Honest,
    )
    .error;
    let says = "vcpus=2 needs 5 CPUs, one of them for the control plane, but there are 4";
    assert_eq!(refused.as_deref(), Some(says));
}

#[test]
fn a_result_that_is_wrong_fails_the_run_and_says_where() {
    let options = "vcpus=2 bytes=1M iterations=2 timeout=60";
    for (sin, says) in [
        (
            Sin::HidesAPage,
            "iteration 2: the dirty log (get) is wrong: 0 written pages were lost and 1 unwritten ones were harvested, the first is page 7",
        ),
        (
            Sin::InventsAPage,
            "iteration 2: the dirty log (get) is wrong: 1 written pages were lost and 0 unwritten ones were harvested, the first is page 7",
        ),
        (
            Sin::WritesRubbish,
            "iteration 2: guest memory is wrong: page 7 holds 0x1234 instead of 0x2000000000007",
        ),
        (
            Sin::Miscounts,
            "vCPU 0 says it wrote 255 pages, but it is 256",
        ),
    ] {
        let outcome = run(options, Guest::Sinner(sin));
        assert_eq!(outcome.error.as_deref(), Some(says));
        assert_eq!(
            records(&outcome)
                .iter()
                .map(|record| record.verified)
                .collect::<Vec<_>>(),
            [false]
        );
        assert_nothing_left(&outcome);
    }
}

#[test]
fn a_guest_that_breaks_the_rules_ends_its_own_vm_only() {
    let options = "vcpus=2 bytes=1M iterations=2 timeout=60";
    let rules = "the guest breaks the benchmark's rules: ";
    for (sin, says) in [
        (Sin::NoHello, [rules, "vCPU 0 wants a step before the guest has announced itself"].concat()),
        (Sin::HelloTwice, [rules, "vCPU 0 announces it, which vCPU 0 does once"].concat()),
        (
            Sin::BadJournals,
            [rules, "its journals at 0xfffffffffffffff8, 4096 bytes each, must have 32 bytes and lie in its RAM"].concat(),
        ),
        (Sin::PowersOff, "the guest ended too early: the guest powered off".into()),
        (Sin::AllOff, "the guest ended too early: the guest's last vCPU turned itself off".into()),
        (Sin::ReportsFailure, "the guest ended too early: the guest program failed on vCPU 0 with code 0x7 (0x8, 0x9)".into()),
    ] {
        let outcome = run(options, Guest::Sinner(sin));
        assert_eq!(outcome.error, Some(says));
        assert_eq!(records(&outcome), []);
        assert_nothing_left(&outcome);
    }
}

#[test]
fn a_guest_that_hangs_is_out_of_time() {
    let outcome = run("vcpus=2 bytes=1M timeout=1", Guest::Sinner(Sin::Hangs));
    let says = "the guest made no progress for 1 s (timeout=1): 1 of 2 vCPUs are done";
    assert_eq!(outcome.error.as_deref(), Some(says));
    assert_eq!(
        outcome.starting("VM 0, vCPU 0: "),
        1,
        "{:#?}",
        outcome.lines
    );
    assert_eq!(
        outcome.starting("VM 0, vCPU 1: "),
        1,
        "{:#?}",
        outcome.lines
    );
    assert_nothing_left(&outcome);
    let outcome = run(
        "vcpus=1 bytes=2M timeout=1 guest=program",
        Guest::Sinner(Sin::Hangs),
    );
    assert_eq!(
        outcome.error.as_deref(),
        Some("the guest made no progress for 1 s and didn't end (timeout=1)")
    );
    assert_nothing_left(&outcome);
}

#[test]
fn a_program_ends_by_its_verdict() {
    let outcome = run("guest=program vcpus=1 bytes=4M", Guest::Program { code: 0 });
    assert_eq!(outcome.error, None);
    assert_eq!(outcome.count("program: the guest program passed"), 1);
    assert_eq!(outcome.count("guest: garbage in"), 1);
    assert_nothing_left(&outcome);
    let outcome = run("guest=program vcpus=1 bytes=4M", Guest::Program { code: 3 });
    assert_eq!(
        outcome.error.as_deref(),
        Some("the guest program failed on vCPU 0 with code 0x3 (0x1, 0x2)")
    );
    assert_nothing_left(&outcome);
}

#[test]
fn a_cpu_without_a_vcpu_merges_what_a_program_has_and_pauses() {
    // Its pauses would take longer than the test, if the end of the program didn't end them.
    for pauses in ["", "pages_to_scan=1000 sleep_millisecs=4000000000"] {
        let options = ["guest=program vcpus=1 bytes=4M backing=4K merging ", pauses].concat();
        let outcome = run(&options, Guest::Program { code: 0 });
        assert_eq!(outcome.error, None, "{:#?}", outcome.lines);
        assert_eq!(outcome.starting("merging counters: full_scans "), 1);
        assert_nothing_left(&outcome);
    }
    let outcome = run("guest=program vcpus=1 bytes=4M", Guest::Program { code: 0 });
    assert_eq!(outcome.starting("merging"), 0);
}

#[test]
fn a_program_reads_the_device_that_it_is_given() {
    let options = "guest=program vcpus=1 bytes=4M device=/clock@9010000";
    let outcome = run(options, Guest::Reader { expected: REGISTER });
    assert_eq!(outcome.error, None);
    assert_nothing_left(&outcome);
    for (path, why) in [
        (
            "/taken",
            "its registers at 0x0 overlap memory, which the hypervisor keeps",
        ),
        (
            "/clock",
            "the machine's device tree has no such node that is enabled",
        ),
    ] {
        let options = format!("guest=program vcpus=1 bytes=4M device={path}");
        let outcome = run(&options, Guest::Program { code: 0 });
        let says = format!("device='{path}' can't be given to a guest: {why}");
        assert_eq!(outcome.error, Some(says));
        assert_nothing_left(&outcome);
    }
}

#[test]
fn what_cant_be_run_is_refused_before_anything_starts() {
    let refused = |options: &str| run(options, Guest::Honest).error.unwrap();
    assert_eq!(refused("vcpus=2 speed=1"), "unknown option 'speed'");
    assert_eq!(
        refused("vcpus=4"),
        "vcpus=4 needs 5 CPUs, one of them for the control plane, but there are 4"
    );
    assert_eq!(
        refused("vcpus=3 merging"),
        "vcpus=3 merging needs 5 CPUs, one of them for the control plane, one to merge, but there are 4"
    );
    assert_eq!(
        refused("vcpus=2 harvesters=3"),
        "vcpus=2 harvesters=3 needs 5 CPUs, one of them for the control plane, 2 more to harvest, but there are 4"
    );
    assert_eq!(
        refused("vcpus=2 merging=2"),
        "vcpus=2 merging=2 needs 5 CPUs, one of them for the control plane, 2 to merge, but there are 4"
    );
    let short = |options: &str, needed: &str| {
        let says = format!("the guest's memory can't be had: it takes {needed}, and ");
        let error = refused(options);
        assert!(error.starts_with(&says), "{error}");
    };
    short("vcpus=2 bytes=1G", "2052 MiB");
    assert_eq!(
        refused("vcpus=2 bytes=4M ipa_bits=49"),
        "an IPA size of 49 bits is not possible here: 32 to 48"
    );
    short("guest=program vcpus=1 bytes=16M backing=1G", "1 GiB");
    assert_eq!(
        refused("vcpus=2 bytes=4M tracking=hardware"),
        "tracking=hardware needs CPUs that note writes themselves (FEAT_HAFDBS with dirty state), which threads doesn't"
    );
    let no_guest =
        "no guest: the device tree has no multiboot,module with multiboot,kernel under /chosen";
    assert_eq!(
        run_without_guest("vcpus=2").error.as_deref(),
        Some(no_guest)
    );
}

#[test]
fn when_memory_is_short_cpus_that_wait_are_woken_one_by_one_and_cpu_0_last() {
    let machine = threads(Guest::Honest, Features::armv8_0(44, 48));
    let cpu_pool = CpuPool::new(CPUS);
    cpu_pool.post(machine, 2..3, Arc::new(|_| {}));
    let kicked = || -> Vec<usize> {
        let cpus = 0..CPUS;
        cpus.filter(|cpu| machine.is_kicked(CpuId(*cpu))).collect()
    };
    assert_eq!(kicked(), [2], "it has a job");
    for expected in [vec![1, 2], vec![1, 2, 3], vec![0, 1, 2, 3]] {
        cpu_pool.wake_one(machine);
        assert_eq!(kicked(), expected);
    }
}
