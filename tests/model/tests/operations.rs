//! The engine's operations, one at a time, on tables of real size.
#![cfg(not(loom))]

use std::collections::HashSet;

use model::{Invalidation, Machine, Served, backing_of, request};
use proptest::prelude::*;
use stage2::{Access, Ipa, Level, PAGE_SIZE, Permissions, RootShape};

const GIB: u64 = 1 << 30;

fn machine() -> Machine {
    Machine::new(RootShape::new(40, 48).unwrap())
}

fn page(index: u64) -> Ipa {
    Ipa::new(GIB + index * PAGE_SIZE)
}

#[test]
fn a_fault_maps_the_largest_block_that_the_backing_allows() {
    for (level, tables) in [(Level::L1, 0), (Level::L2, 1), (Level::L3, 2)] {
        let machine = machine();
        let before = machine.frames.live();
        assert_eq!(
            machine.access(0, &request(page(5), Access::Read, level, false)),
            Some(Served::Mapped)
        );
        let (leaf, found) = machine.lookup(page(5)).unwrap();
        assert_eq!(
            (found, leaf.pa()),
            (level, backing_of(page(5).align_down(level.span())))
        );
        assert_eq!(machine.frames.live() - before, tables);
        machine.destroy();
    }
}

#[test]
fn a_write_protected_page_is_relaxed_by_a_local_invalidation_only() {
    let machine = machine();
    let write = request(page(0), Access::Write, Level::L3, false);
    machine.access(0, &write);
    machine.on(0, |worker| {
        machine
            .stage2
            .write_protect(worker, page(0)..page(1), |_, _| true)
    });
    machine.translate(0, page(0));
    machine.tlbs.take_log();
    assert_eq!(machine.access(0, &write), Some(Served::Relaxed(Level::L3)));
    assert_eq!(
        machine.tlbs.take_log(),
        [Invalidation::Local(0, page(0), Level::L3)]
    );
    machine.destroy();
}

#[test]
fn a_second_cpu_with_an_old_entry_faults_spuriously_and_goes_on() {
    let machine = machine();
    let write = request(page(0), Access::Write, Level::L3, true);
    machine.access(0, &request(page(0), Access::Read, Level::L3, true));
    machine.translate(1, page(0));
    assert_eq!(machine.access(0, &write), Some(Served::Relaxed(Level::L3)));
    assert_eq!(machine.access(1, &write), Some(Served::Spurious));
    machine.destroy();
}

#[test]
fn after_write_protection_no_tlb_holds_a_writable_entry() {
    let machine = machine();
    let pages: HashSet<u64> = (0..1024).map(|i| page(i).get()).collect();
    for i in 0..1024 {
        machine.access(
            i as usize % 4,
            &request(page(i), Access::Write, Level::L3, false),
        );
    }
    assert!(machine.stale_writable(&pages));
    machine.on(0, |worker| {
        machine
            .stage2
            .write_protect(worker, page(0)..page(1024), |_, _| true)
    });
    assert!(!machine.stale_writable(&pages));
    machine.destroy();
}

#[test]
fn write_protection_of_entries_that_another_cpu_tightened_still_invalidates() {
    let machine = machine();
    machine.access(0, &request(page(0), Access::Write, Level::L3, false));
    let protect = || {
        machine.on(0, |worker| {
            machine
                .stage2
                .write_protect(worker, page(0)..page(1), |_, _| true)
        })
    };
    protect();
    machine.tlbs.take_log();
    protect();
    assert_eq!(
        machine.tlbs.take_log(),
        [Invalidation::Range(page(0)..page(1), false)]
    );
    machine.destroy();
}

#[test]
fn the_first_logged_write_splits_a_block_and_keeps_the_rest_readable() {
    for (level, tables) in [(Level::L2, 1), (Level::L1, 2)] {
        let machine = machine();
        machine.access(0, &request(page(0), Access::Write, level, false));
        machine.on(0, |worker| {
            machine
                .stage2
                .write_protect(worker, page(0)..page(1), |_, _| true)
        });
        let before = machine.frames.live();
        assert_eq!(
            machine.access(1, &request(page(7), Access::Write, level, true)),
            Some(Served::Split)
        );
        assert_eq!(machine.frames.live() - before, tables);
        for index in [0, 6, 7, 8, 511] {
            let (leaf, found) = machine.lookup(page(index)).unwrap();
            assert_eq!((found, leaf.pa()), (Level::L3, backing_of(page(index))));
            assert_eq!(leaf.writable(), index == 7);
            assert!(leaf.may_write());
        }
        if level == Level::L1 {
            let (leaf, found) = machine.lookup(page(512)).unwrap();
            assert_eq!(
                (found, leaf.pa(), leaf.writable()),
                (Level::L2, backing_of(page(512)), false)
            );
        }
        machine.destroy();
    }
}

#[test]
fn collapse_restores_blocks_of_every_size() {
    let machine = machine();
    machine.access(0, &request(page(0), Access::Write, Level::L1, false));
    let all = page(0)..page(GIB / PAGE_SIZE);
    machine.on(0, |worker| {
        machine
            .stage2
            .write_protect(worker, all.clone(), |_, _| true)
    });
    machine.access(1, &request(page(7), Access::Write, Level::L1, true));
    for (to, blocks) in [(Level::L2, 1), (Level::L1, 1)] {
        let collapsed = machine.on(0, |worker| {
            machine
                .stage2
                .collapse(worker, all.clone(), to, || Permissions::RAM)
        });
        assert_eq!((collapsed.blocks, collapsed.left), (blocks, 0));
    }
    let (leaf, level) = machine.lookup(page(7)).unwrap();
    assert_eq!(
        (level, leaf.writable(), leaf.pa()),
        (Level::L1, true, backing_of(page(0)))
    );
    assert_eq!(machine.retired.pending(), 2);
    machine.pass_epoch();
    assert_eq!(machine.frames.live(), machine.stage2.shape().frames());
    machine.destroy();
}

#[test]
fn collapse_leaves_incomplete_and_scattered_tables_alone() {
    let machine = machine();
    machine.access(0, &request(page(0), Access::Read, Level::L3, false));
    let mut scattered = request(page(512), Access::Read, Level::L3, false);
    for index in 512..1024 {
        scattered.ipa = page(index);
        scattered.pa = backing_of(page(1535 - index));
        machine.access(0, &scattered);
    }
    let collapsed = machine.on(0, |worker| {
        machine
            .stage2
            .collapse(worker, page(0)..page(1024), Level::L2, || Permissions::RAM)
    });
    assert_eq!((collapsed.blocks, collapsed.left), (0, 2));
    assert!(machine.lookup(page(0)).is_some());
    machine.destroy();
}

#[test]
fn unmap_removes_a_part_of_a_table_and_whole_tables() {
    let machine = machine();
    for index in 0..1024 {
        machine.access(
            index as usize % 3,
            &request(page(index), Access::Write, Level::L3, false),
        );
    }
    let mut removed = 0;
    machine.on(0, |worker| {
        machine
            .stage2
            .unmap(worker, page(100)..page(1024), |_, _, _| removed += 1)
    });
    assert_eq!(removed, 924);
    assert_eq!(machine.retired.pending(), 1);
    assert!(machine.lookup(page(99)).is_some());
    assert!((100..1024).all(|index| machine.lookup(page(index)).is_none()));
    assert!(
        (100..1024).all(|index| (0..3).all(|cpu| machine.translate(cpu, page(index)).is_none()))
    );
    machine.destroy();
}

#[test]
fn refused_accesses_change_nothing() {
    let machine = machine();
    let mut read_only = request(page(0), Access::Read, Level::L3, false);
    read_only.permissions = Permissions::READ_ONLY;
    machine.access(0, &read_only);
    read_only.access = Access::Write;
    assert_eq!(machine.access(0, &read_only), Some(Served::NotPermitted));
    assert!(!machine.lookup(page(0)).unwrap().0.writable());
    machine.destroy();
}

#[test]
fn every_failing_allocation_leaves_the_tables_valid_and_nothing_leaked() {
    for allowed in 0..2 {
        let machine = machine();
        let before = machine.frames.live();
        machine.frames.limit(allowed);
        assert_eq!(
            machine.access(0, &request(page(0), Access::Read, Level::L3, false)),
            Some(Served::OutOfFrames)
        );
        assert!(machine.frames.live() - before <= allowed);
        assert!(machine.lookup(page(0)).is_none());
        machine.frames.limit(2);
        assert_eq!(
            machine.access(0, &request(page(0), Access::Read, Level::L3, false)),
            Some(Served::Mapped)
        );
        machine.destroy();
    }
    for allowed in 0..2 {
        let machine = machine();
        machine.access(0, &request(page(0), Access::Read, Level::L1, false));
        machine.on(0, |worker| {
            machine
                .stage2
                .write_protect(worker, page(0)..page(1), |_, _| true)
        });
        let before = machine.frames.live();
        machine.frames.limit(allowed);
        assert_eq!(
            machine.access(0, &request(page(0), Access::Write, Level::L1, true)),
            Some(Served::OutOfFrames)
        );
        assert_eq!(machine.frames.live(), before);
        assert_eq!(machine.lookup(page(0)).unwrap().1, Level::L1);
        machine.destroy();
    }
}

/// What a plain map says about a page: its permission.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Read(u64),
    Write(u64),
    Protect(u64, u64),
    Unmap(u64, u64),
    Collapse,
}

const PAGES: u64 = 3 * 512;

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => (0..PAGES).prop_map(Operation::Read),
        4 => (0..PAGES).prop_map(Operation::Write),
        2 => (0..PAGES, 1..600u64).prop_map(|(first, count)| Operation::Protect(first, count)),
        // Whole blocks, so that none is cut.
        1 => (0..3u64, 1..3u64).prop_map(|(block, count)| Operation::Unmap(block * 512, count * 512)),
        1 => Just(Operation::Collapse),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_operations_agree_with_a_plain_map(
        operations in prop::collection::vec(operation(), 1..60),
        logged: bool,
    ) {
        let machine = machine();
        let mut writable = [None::<bool>; PAGES as usize];
        let span = |first: u64, count: u64| first..(first + count).min(PAGES);
        for operation in operations {
            match operation {
                Operation::Read(index) | Operation::Write(index) => {
                    let write = matches!(operation, Operation::Write(_));
                    let access = if write { Access::Write } else { Access::Read };
                    machine.access(index as usize % 2, &request(page(index), access, Level::L2, logged));
                    // An unlogged fault maps what it can of the block; a page is known to be mapped, and writable if written.
                    writable[index as usize] =
                        Some(write || (!logged && writable[index as usize].is_none()) || writable[index as usize] == Some(true));
                }
                Operation::Protect(first, count) => {
                    let pages = span(first, count);
                    machine.on(0, |worker| {
                        machine.stage2.write_protect(worker, page(pages.start)..page(pages.end), |_, _| true)
                    });
                    for index in pages {
                        writable[index as usize] = writable[index as usize].map(|_| false);
                        if let Some((leaf, _)) = machine.lookup(page(index)) {
                            prop_assert!(!leaf.writable());
                        }
                    }
                }
                Operation::Unmap(first, count) => {
                    let pages = span(first, count);
                    machine.on(1, |worker| {
                        machine.stage2.unmap(worker, page(pages.start)..page(pages.end), |_, _, _| {})
                    });
                    for index in pages {
                        writable[index as usize] = None;
                        prop_assert!(machine.lookup(page(index)).is_none());
                    }
                }
                Operation::Collapse => {
                    let all = page(0)..page(PAGES);
                    machine.on(0, |worker| {
                        machine.stage2.collapse(worker, all, Level::L2, || Permissions::LOGGED)
                    });
                }
            }
            for (index, known) in writable.iter().enumerate() {
                let found = machine.lookup(page(index as u64));
                if known.is_some() {
                    let (leaf, level) = found.expect("a touched page stays mapped");
                    let offset = page(index as u64).offset_in(level.span());
                    prop_assert_eq!(leaf.pa().offset(offset), backing_of(page(index as u64)));
                }
            }
        }
        machine.destroy();
    }
}
