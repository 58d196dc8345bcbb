//! Rounds of pre-copy with a guest that writes all the while.

use crate::guests::Guest;
use crate::machine::{Outcome, run, run_with_dirty_state};
use crate::{assert_nothing_left, records};
use records::record::PhaseName;

const WRITER: Guest = Guest::Writer {
    vcpus: 2,
    stealthy: false,
};
const COMMON: &str = "guest=program dirty_log vcpus=2 bytes=8M iterations=3 interval=10 timeout=60";

fn assert_verified(outcome: &Outcome, options: &str) {
    assert_eq!(outcome.error, None, "{options}: {:#?}", outcome.lines);
    let records = records(outcome);
    assert!(!records.is_empty(), "{options}");
    for record in records {
        assert!(record.verified, "{options}");
        assert_eq!((&record.guest[..], record.interval), ("program", 10));
        assert_eq!(record.bytes_per_vcpu, 8 << 20);
        let mut copies = record
            .phases
            .iter()
            .filter(|phase| phase.name == PhaseName::Copy);
        let last = copies.next_back().expect("a last round");
        assert!(
            last.iteration == 3 && last.counters["pages_copied"] > 0,
            "{options}"
        );
    }
    assert_nothing_left(outcome);
}

#[test]
fn the_copy_of_a_running_guest_equals_its_memory_in_every_mode_with_every_policy() {
    for policy in [
        "mode=mutex,rwlock,parallel split=none,fault,eager",
        "enable=all_set split=eager clear=with_get",
        "harvest=ring ring_entries=64",
        "granularity=2M restore=never",
        "backing=4K clear=with_get",
    ] {
        let options = format!("{COMMON} {policy}");
        assert_verified(&run(&options, WRITER), &options);
    }
    let options = format!("{COMMON} tracking=hardware,writeprotect split=eager,none");
    assert_verified(&run_with_dirty_state(&options, WRITER), &options);
}

#[test]
fn two_cpus_harvest_and_copy_and_another_merges() {
    let alone = Guest::Writer {
        vcpus: 1,
        stealthy: false,
    };
    let common = COMMON.replace("vcpus=2", "vcpus=1");
    for others in ["harvesters=2", "merging backing=4K"] {
        let options = format!("{common} {others}");
        assert_verified(&run(&options, alone), &options);
    }
}

#[test]
fn a_write_that_no_harvest_names_is_found_and_its_page_named() {
    let stealthy = Guest::Writer {
        vcpus: 2,
        stealthy: true,
    };
    let outcome = run(&format!("{COMMON} mode=parallel"), stealthy);
    // 1 MiB and 600 pages behind the start of RAM.
    let expected = "page 856 of the guest's memory differs from its copy after the last round: 0x40358010 holds 0x5ec, and the \
                    copy 0x1";
    assert_eq!(
        outcome.error.as_deref(),
        Some(expected),
        "{:#?}",
        outcome.lines
    );
    let records = records(&outcome);
    assert_eq!(records.len(), 1);
    assert!(!records[0].verified);
    assert_nothing_left(&outcome);
}

#[test]
fn a_guest_that_ends_within_the_rounds_and_memory_without_room_for_a_copy_are_errors() {
    let outcome = run(COMMON, Guest::Program { code: 0 });
    let error = outcome.error.as_deref().unwrap_or_default();
    assert!(error.starts_with("the guest ended too early: "), "{error}");
    assert_nothing_left(&outcome);
    // Of 32 MiB the guest has all but two.
    let outcome = run(&COMMON.replace("bytes=8M", "bytes=30M"), WRITER);
    let error = outcome.error.as_deref().unwrap_or_default();
    assert!(
        error.starts_with("the copy of the guest's memory can't go on: "),
        "{error}"
    );
    assert_nothing_left(&outcome);
}
