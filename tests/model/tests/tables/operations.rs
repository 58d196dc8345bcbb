//! The engine's operations, one at a time, on tables of real size.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use model::{Invalidation, Machine, Served, backing_of, real_grounds, request};
use stage2::{
    Access, Attributes, Features, Granule, Ipa, IpaRange, Layout, Level, Mapping, PAGE_SIZE, Pa,
    Permissions, Resolution,
};

const GIB: u64 = 1 << 30;

fn machine() -> Machine {
    Machine::new(Layout::new(Features::armv8_0(40, 48)).unwrap())
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
            (
                level,
                backing_of(page(5).align_down(Granule::Size4K.span(level)))
            )
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
            .write_protect(worker, page(0)..page(1), |_, _| true, |_, _| {})
            .unwrap()
    });
    machine.translate(0, page(0));
    machine.tlbs.take_log();
    assert_eq!(machine.access(0, &write), Some(Served::Relaxed(Level::L3)));
    assert_eq!(
        machine.tlbs.take_log(),
        [Invalidation::Local(0, page(0), Some(Level::L3))]
    );
    machine.destroy();
}

#[test]
fn a_page_relaxed_alone_is_relaxed_by_a_local_invalidation_only() {
    let machine = machine();
    for as_a_page in [false, true] {
        let page = page(u64::from(as_a_page));
        let relax = || {
            machine.on(0, |worker| {
                let stage2 = &machine.stage2;
                if as_a_page {
                    stage2.relax_page(worker, page.offset(8), None)
                } else {
                    stage2.relax(worker, page, None, Level::L3) == Some(Level::L3)
                }
            })
        };
        machine.access(0, &request(page, Access::Read, Level::L3, true));
        assert!(!machine.translate(0, page).unwrap().writable());
        machine.tlbs.take_log();
        assert!(relax());
        assert_eq!(
            machine.tlbs.take_log(),
            [Invalidation::Local(0, page, Some(Level::L3))]
        );
        assert!(machine.translate(0, page).unwrap().writable());
        assert!(!relax(), "it is writable already");
    }
    machine.destroy();
}

#[test]
#[cfg_attr(miri, ignore = "tables of 64 KiB")]
fn a_page_of_any_layout_is_relaxed_to_what_a_write_may_use() {
    for ground in real_grounds() {
        let machine = Machine::new(*ground.layout());
        let page_size = ground.layout().page_size();
        let ipa = Ipa::new(0x4000_0000);
        let logged = Mapping {
            pa: Pa::new(0x8000_0000),
            attributes: Attributes::memory(Permissions::LOGGED),
            largest: Level::L3,
        };
        let relaxed = machine.on(0, |worker| {
            let stage2 = &machine.stage2;
            let range = ipa..ipa.offset(page_size);
            stage2.map(worker, range, logged, || true).unwrap();
            [(); 2].map(|()| stage2.relax(worker, ipa, None, Level::L3))
        });
        assert_eq!(relaxed, [Some(Level::L3), None], "{:?}", ground.layout());
        let (leaf, level) = machine.lookup(ipa).unwrap();
        assert_eq!((leaf.pa(), level), (logged.pa, Level::L3));
        assert!(leaf.writable() && leaf.accessed());
        machine.destroy();
    }
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
#[cfg_attr(miri, ignore = "a thousand faults")]
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
            .write_protect(worker, page(0)..page(1024), |_, _| true, |_, _| {})
            .unwrap()
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
                .write_protect(worker, page(0)..page(1), |_, _| true, |_, _| {})
                .unwrap()
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
                .write_protect(worker, page(0)..page(1), |_, _| true, |_, _| {})
                .unwrap()
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
            .write_protect(worker, all.clone(), |_, _| true, |_, _| {})
            .unwrap()
    });
    machine.access(1, &request(page(7), Access::Write, Level::L1, true));
    for (to, blocks) in [(Level::L2, 1), (Level::L1, 1)] {
        let collapsed = machine.on(0, |worker| {
            machine
                .stage2
                .collapse(worker, all.clone(), to, |_| Permissions::RAM, |_, _, _| {})
                .unwrap()
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
    assert_eq!(machine.frames.live(), machine.stage2.layout().root_tables());
    machine.destroy();
}

#[test]
#[cfg_attr(miri, ignore = "a thousand faults")]
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
            .collapse(
                worker,
                page(0)..page(1024),
                Level::L2,
                |_| Permissions::RAM,
                |_, _, _| {},
            )
            .unwrap()
    });
    assert_eq!((collapsed.blocks, collapsed.left), (0, 2));
    assert!(machine.lookup(page(0)).is_some());
    machine.destroy();
}

#[test]
#[cfg_attr(miri, ignore = "a thousand faults")]
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
            .unwrap()
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

/// Rule 4: what it has locked before is unmapped first, so that nobody waits for both.
#[test]
fn an_unmap_that_waits_for_an_entry_holds_no_other() {
    unmap_beside_a_locked_entry(false);
}

#[test]
fn an_unmap_of_leaves_that_waits_for_an_entry_holds_no_other() {
    unmap_beside_a_locked_entry(true);
}

/// Unmaps two pages, `apart` or as one range, of which the second is locked, and wants the first one let go meanwhile.
fn unmap_beside_a_locked_entry(apart: bool) {
    /// Long enough for a thread that the host has put aside.
    const PATIENCE: Duration = Duration::from_secs(60);
    let machine = machine();
    machine.access(0, &request(page(0), Access::Write, Level::L3, false));
    machine.on(1, |worker| {
        let read = |index| request(page(index), Access::Read, Level::L3, false);
        let Resolution::Vacant(held) = machine.stage2.fault(worker, &read(1)) else {
            panic!("nothing is mapped there");
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                machine.on(0, |worker| {
                    if apart {
                        let pages = [page(0)..page(1), page(1)..page(2)];
                        machine
                            .stage2
                            .unmap_leaves(worker, pages, |_, _, _| {})
                            .unwrap();
                    } else {
                        let both = page(0)..page(2);
                        machine.stage2.unmap(worker, both, |_, _, _| {}).unwrap();
                    }
                });
            });
            let began = Instant::now();
            let mut served = machine.fault(2, &read(0));
            while served != Served::Mapped && began.elapsed() < PATIENCE {
                thread::yield_now();
                served = machine.fault(2, &read(0));
            }
            held.restore().expect("nobody unlinks its table");
            assert_eq!(served, Served::Mapped, "page 0 was not let go");
        });
    });
    machine.destroy();
}

#[test]
fn refused_accesses_change_nothing() {
    let machine = machine();
    let mut read_only = request(page(0), Access::Read, Level::L3, false);
    read_only.attributes = Attributes::memory(Permissions::READ_ONLY);
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
                .write_protect(worker, page(0)..page(1), |_, _| true, |_, _| {})
                .unwrap()
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

/// Of every size that the granules have: 16 to 128 leaves.
#[test]
#[cfg_attr(miri, ignore = "tables of thousands of entries")]
fn a_group_of_any_size_is_made_and_taken_apart() {
    for granule in Granule::ALL {
        let features = Features {
            granule,
            contiguous: true,
            ..Features::armv8_0(40, 48)
        };
        let layout = Layout::new(features).unwrap();
        for level in [Level::L2, Level::L3] {
            let machine = Machine::new(layout);
            let size = layout.group(level).unwrap() as u64;
            let range = Ipa::new(0)..Ipa::new(size * layout.span(level));
            let mapping = Mapping {
                pa: Pa::new(0),
                attributes: Attributes::memory(Permissions::RAM),
                largest: level,
            };
            let map = |range: IpaRange, grounds: bool| {
                machine.on(0, |worker| {
                    machine
                        .stage2
                        .map(worker, range, mapping, || grounds)
                        .map(|mapped| mapped.leaves)
                })
            };
            let contiguous = || machine.lookup(range.start).unwrap().0.contiguous();
            // With a table that is there already, so that entries are locked one by one.
            let beside = range.end..range.end.offset(layout.span(level));
            assert_eq!(map(beside, true), Ok(1));
            assert!(map(range.clone(), false).is_err());
            assert_eq!(map(range.clone(), true), Ok(size));
            assert!(contiguous());
            machine.on(0, |worker| {
                machine
                    .stage2
                    .write_protect(worker, range.clone(), |_, _| true, |_, _| {})
                    .unwrap()
            });
            assert!(!contiguous());
            machine.destroy();
        }
    }
}
