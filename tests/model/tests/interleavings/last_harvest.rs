//! The last harvest of a dirty log that hardware keeps, under every interleaving with CPUs that go on to move, merge
//! and unmap pages (rule 14): no vCPU runs any more, and what hardware has noted is in this harvest, as there is no
//! other.
//!
//! Bounds: one region of four pages in a tree of two levels; up to two VMs; two CPUs, each a thread, beside a main
//! thread that waits; at most so many preemptions per execution as the first argument of `explore` says.

use memory::{LogPolicy, Object, Owner, Tracking};
use model::checked::memory::vm_id;
use model::checked::vms::{Act, Cpu, PAGE, SLOT, explore_tracked};
use model::checked::{BLOCK, ENTRIES, page};
use stage2::{Ipa, Level, PAGE_SIZE};

const LAST: Ipa = page(ENTRIES - 1);

/// A region whose first and last pages hardware has noted as written, in entries of pages.
fn written_pages(cpu: &Cpu<'_>) {
    let account = Owner::Vm(vm_id(0));
    let bytes = ENTRIES * PAGE_SIZE;
    cpu.map_known(Object::anonymous(&cpu.memory, account, bytes, Level::L3).unwrap());
    for index in 0..ENTRIES {
        cpu.write_at(0, page(index));
    }
    let policy = LogPolicy {
        tracking: Tracking::Hardware,
        ..LogPolicy::default()
    };
    cpu.space(0)
        .enable_dirty_log(&cpu.memory, SLOT, &policy)
        .unwrap();
    cpu.note_write(0, PAGE);
    cpu.note_write(0, LAST);
}

fn assert_named(dirty: u64) {
    assert_eq!(
        dirty,
        1 | 1 << (ENTRIES - 1),
        "rule 14: a write is in no harvest"
    );
}

fn get(cpu: &Cpu<'_>) {
    let mut dirty = [0];
    cpu.space(0)
        .get_dirty_log(&cpu.memory, SLOT, 0, &mut dirty)
        .unwrap();
    assert_named(dirty[0]);
}

fn get_and_clear(cpu: &Cpu<'_>) {
    let mut dirty = [0];
    cpu.space(0)
        .get_and_clear_dirty_log(&cpu.memory, SLOT, 0, &mut dirty)
        .unwrap();
    assert_named(dirty[0]);
}

fn nothing(_: &Cpu<'_>) {}

fn beside(preemptions: usize, vms: usize, other: Act) {
    for harvest in [get as Act, get_and_clear] {
        explore_tracked(preemptions, vms, written_pages, [other, harvest], nothing);
    }
}

#[test]
fn rule_14_a_last_harvest_beside_a_page_that_moves() {
    beside(2, 1, |cpu| {
        cpu.object().migrate(&cpu.memory, 0);
    });
}

#[test]
fn rule_14_a_last_harvest_beside_a_region_that_moves() {
    beside(1, 1, |cpu| {
        cpu.object().compact_region(&cpu.memory, 0);
    });
}

#[test]
fn rule_14_a_last_harvest_beside_a_table_that_is_unmapped() {
    beside(2, 1, |cpu| cpu.space(0).invalidate(&cpu.memory, BLOCK));
}

#[test]
fn rule_14_a_last_harvest_beside_a_page_that_is_unmapped() {
    beside(2, 1, |cpu| {
        cpu.space(0)
            .invalidate(&cpu.memory, LAST..LAST.offset(PAGE_SIZE));
    });
}

#[test]
fn rule_14_a_last_harvest_beside_a_fork_of_what_it_shares() {
    beside(1, 1, |cpu| {
        drop(cpu.object().fork(&cpu.memory, Owner::Vm(vm_id(1))).unwrap());
    });
}
