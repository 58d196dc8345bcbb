//! Slots that go and move, and pages that are given up, under every interleaving with writes that copy: rules 8 and 10, on the
//! VMs of [`model::checked::vms`].
//!
//! Bounds: one page in trees of two levels with four entries each; up to three VMs; two or three CPUs, each a thread, beside a
//! main thread that waits; at most so many preemptions per execution as the first argument of `explore` says. Of what takes
//! the lock of an address space's owner, one at a time.

use model::checked::memory::{POOL, vm_id};
use model::checked::vms::{
    Act, DIRECT, OLD, PAGE, SLOT, all_is_there, explore, forked_and_read, written,
};
use stage2::sync::relax;
use stage2::{Ipa, PAGE_SIZE};

/// Where slots move to.
const ELSEWHERE: Ipa = Ipa::new(2 * PAGE_SIZE);

/// After the removal no write can reach the memory, whatever a fault had found before.
#[test]
fn rule_10_a_slot_goes_beside_a_write_that_copies() {
    for policy in [DIRECT, OLD] {
        explore(
            2,
            2,
            policy,
            forked_and_read,
            [
                |cpu| {
                    cpu.space(0).remove_slot(&cpu.memory, SLOT).unwrap();
                    assert_eq!(cpu.translate(0, PAGE), None, "rule 10: it is still there");
                    let frames = POOL.counts_of(vm_id(0)).guest;
                    assert_eq!(frames, 0, "rule 10: its memory is still there");
                },
                |cpu| {
                    cpu.write_at(0, PAGE);
                },
            ],
            |cpu| {
                assert_eq!(cpu.read_at(0, PAGE), None);
                cpu.check_all();
            },
        );
    }
}

#[test]
fn rule_10_a_slot_goes_beside_a_copy_in_the_other_vm_that_shares_it() {
    explore(
        2,
        2,
        DIRECT,
        forked_and_read,
        [
            |cpu| cpu.space(0).remove_slot(&cpu.memory, SLOT).unwrap(),
            |cpu| cpu.write(1),
        ],
        all_is_there,
    );
}

/// The copy is put into a table that the slot is about to leave, or where it has gone.
#[test]
fn rule_10_a_slot_moves_beside_a_write_that_copies() {
    explore(
        2,
        2,
        DIRECT,
        forked_and_read,
        [
            |cpu| {
                cpu.space(0)
                    .move_slot(&cpu.memory, SLOT, ELSEWHERE)
                    .unwrap();
                assert_eq!(cpu.translate(0, PAGE), None, "rule 10: it is still there");
            },
            |cpu| {
                let there = cpu.write_at(0, PAGE) || cpu.write_at(0, ELSEWHERE);
                assert!(there, "it was nowhere");
            },
        ],
        |cpu| {
            assert_eq!(cpu.read_at(0, PAGE), None);
            assert_eq!(cpu.read_at(0, ELSEWHERE), Some(cpu.world.expected(0)));
            assert_eq!(cpu.read(1), 1);
        },
    );
}

/// What a guest gives up while it writes there holds zeros and what was written after that; nothing of it is lost to others.
#[test]
fn rule_8_a_page_is_given_up_beside_a_write_and_what_shares_it_stays() {
    for (prepare, preemptions) in [(written as Act, 3), (forked_and_read, 2)] {
        explore(
            preemptions,
            2,
            DIRECT,
            prepare,
            [
                |cpu| {
                    let page = PAGE..PAGE.offset(PAGE_SIZE);
                    while cpu.space(0).balloon(&cpu.memory, page.clone()) == Ok(0) {
                        relax();
                    }
                },
                |cpu| cpu.write(0),
            ],
            |cpu| {
                let found = cpu.read(0);
                assert!(found <= 1, "rule 8: it still holds {found}");
                if let Some(found) = cpu.read_at(1, PAGE) {
                    assert_eq!(found, 1, "what the other VM has");
                }
                cpu.write(0);
                assert_eq!(cpu.read(0), found + 1);
            },
        );
    }
}
