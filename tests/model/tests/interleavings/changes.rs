//! Permissions and access flags changed beside faults, splits and each other, under every interleaving: rules 1 and 3.
//!
//! Bounds: tables of four entries, two levels of them (three where it says `DEEP`); two or three CPUs, each a thread, beside
//! a main thread that waits for them; at most so many preemptions per execution as the first argument of `explore` says.

use model::checked::{BLOCK, Cpu, Machine, Policy, SHALLOW, explore, no_more, page, pages};
use stage2::{Access, Execute, Level, Permissions};

const PAGE: std::ops::Range<stage2::Ipa> = pages(0..1);

fn protect_page(cpu: Cpu<'_>) {
    cpu.write_protect(PAGE);
}

fn write_page(cpu: Cpu<'_>) {
    cpu.write(page(0), Policy::LOGGED);
}

#[test]
fn rule_3_after_protection_no_tlb_is_more_permissive_than_the_tables() {
    explore(6, SHALLOW, write_page, [protect_page, write_page], no_more);
}

#[test]
fn rule_3_protection_beside_two_writers() {
    explore(
        2,
        SHALLOW,
        write_page,
        [protect_page, write_page, write_page],
        no_more,
    );
}

/// Write protection that nobody undoes.
fn protect_for_good(cpu: Cpu<'_>) {
    cpu.write_protect(BLOCK);
    cpu.machine().tlbs().assert_not_writable(&BLOCK);
}

/// CPU 3's TLB holds what CPU 0 has made writable.
fn writable_page_in_a_tlb(cpu: Cpu<'_>) {
    cpu.machine().cpu(3).write(page(0), Policy::PAGES);
}

#[test]
fn rule_3_two_protections_both_return_without_a_stale_entry() {
    explore(
        6,
        SHALLOW,
        writable_page_in_a_tlb,
        [protect_for_good, protect_for_good],
        no_more,
    );
}

#[test]
fn rule_3_three_protections_all_return_without_a_stale_entry() {
    explore(
        3,
        SHALLOW,
        writable_page_in_a_tlb,
        [protect_for_good, protect_for_good, protect_for_good],
        no_more,
    );
}

/// The ground for writes is withdrawn.
fn make_read_only(cpu: Cpu<'_>) {
    cpu.protect(PAGE, Permissions::READ_ONLY);
    cpu.machine().tlbs().assert_not_writable(&PAGE);
}

#[test]
fn rule_3_two_changes_to_the_same_rights_both_return_without_a_stale_entry() {
    explore(
        6,
        SHALLOW,
        writable_page_in_a_tlb,
        [make_read_only, make_read_only],
        is_read_only,
    );
}

/// Whoever gives back a right that another one has taken still withholds the others, of which that one may not have told
/// the TLBs.
#[test]
fn rule_3_a_right_given_back_leaves_no_stale_entry_with_another() {
    explore(
        6,
        SHALLOW,
        writable_page_in_a_tlb,
        [
            |cpu| {
                let nothing_but_reads = Permissions {
                    execute: Execute::Nowhere,
                    ..Permissions::READ_ONLY
                };
                cpu.protect(PAGE, nothing_but_reads);
            },
            make_read_only,
        ],
        is_read_only,
    );
}

fn try_to_write(cpu: Cpu<'_>) {
    cpu.fault(page(0), Access::Write, Policy::LOGGED);
    cpu.try_access(page(0), Access::Write);
}

fn is_read_only(machine: &Machine) {
    let (leaf, _) = machine.lookup(page(0)).expect("it is mapped");
    assert!(!leaf.writable() && !leaf.may_write());
}

#[test]
fn rule_3_a_fault_relaxes_only_what_the_entry_that_it_saw_allows() {
    explore(
        6,
        SHALLOW,
        |cpu| cpu.read(page(0), Policy::LOGGED),
        [make_read_only, try_to_write],
        is_read_only,
    );
}

#[test]
fn rule_3_two_faults_relax_only_what_the_entry_that_they_saw_allows() {
    explore(
        3,
        SHALLOW,
        |cpu| cpu.read(page(0), Policy::LOGGED),
        [make_read_only, try_to_write, try_to_write],
        is_read_only,
    );
}

#[test]
fn rule_3_a_right_that_one_takes_and_another_gives() {
    explore(
        6,
        SHALLOW,
        write_page,
        [
            |cpu| cpu.protect(PAGE, Permissions::READ_ONLY),
            |cpu| cpu.protect(PAGE, Permissions::RAM),
        ],
        no_more,
    );
}

#[test]
fn rule_3_rights_taken_and_given_beside_a_guest_that_writes() {
    explore(
        3,
        SHALLOW,
        write_page,
        [
            |cpu| cpu.protect(PAGE, Permissions::READ_ONLY),
            |cpu| cpu.protect(PAGE, Permissions::RAM),
            |cpu| {
                cpu.try_access(page(0), Access::Write);
            },
        ],
        no_more,
    );
}

#[test]
fn rule_1_ageing_and_protection_both_take_effect() {
    explore(
        6,
        SHALLOW,
        write_page,
        [
            |cpu| {
                cpu.age(PAGE);
            },
            protect_for_good,
        ],
        |machine| {
            let (leaf, _) = machine.lookup(page(0)).unwrap();
            assert!(!leaf.accessed() && !leaf.writable());
        },
    );
}

#[test]
fn rule_1_ageing_and_two_protections_all_take_effect() {
    const NO_CODE: Permissions = Permissions {
        execute: Execute::Nowhere,
        ..Permissions::READ_ONLY
    };
    explore(
        3,
        SHALLOW,
        write_page,
        [
            |cpu| {
                cpu.age(PAGE);
            },
            protect_for_good,
            |cpu| cpu.protect(PAGE, NO_CODE),
        ],
        |machine| {
            let (leaf, _) = machine.lookup(page(0)).unwrap();
            assert!(!leaf.accessed() && !leaf.writable());
            assert_eq!(leaf.execute(), Execute::Nowhere);
        },
    );
}

fn writable_block_in_a_tlb(cpu: Cpu<'_>) {
    cpu.machine().cpu(3).write(page(0), Policy::BLOCKS);
}

#[test]
fn rule_3_a_block_that_is_protected_while_it_is_split_ends_read_only() {
    explore(
        5,
        SHALLOW,
        writable_block_in_a_tlb,
        [protect_for_good, |cpu| {
            cpu.split(BLOCK, Level::L3);
        }],
        |machine| assert!((0..4).all(|index| !machine.lookup(page(index)).unwrap().0.writable())),
    );
}

#[test]
fn rule_3_a_block_that_is_protected_and_aged_while_it_is_split() {
    explore(
        2,
        SHALLOW,
        writable_block_in_a_tlb,
        [
            protect_for_good,
            |cpu| {
                cpu.split(BLOCK, Level::L3);
            },
            |cpu| {
                cpu.age(BLOCK);
            },
        ],
        |machine| {
            for index in 0..4 {
                let (leaf, _) = machine.lookup(page(index)).unwrap();
                assert!(
                    !leaf.writable() && !leaf.accessed(),
                    "page {index}: {leaf:?}"
                );
            }
        },
    );
}

#[test]
fn rule_3_protection_beside_a_fault_that_splits() {
    explore(
        5,
        SHALLOW,
        |cpu| {
            writable_block_in_a_tlb(cpu);
            cpu.write_protect(BLOCK);
        },
        [
            |cpu| cpu.write_protect(BLOCK),
            |cpu| {
                cpu.fault(page(0), Access::Write, Policy::LOGGED);
                cpu.try_access(page(0), Access::Write);
            },
        ],
        no_more,
    );
}
