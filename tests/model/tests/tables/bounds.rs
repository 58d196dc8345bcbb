//! Addresses that tables can't translate: every operation refuses them, in release builds too, and has changed nothing.

use model::{Machine, Served, Survey};
use stage2::{
    Access, All, Attributes, BadAddress, Features, Granule, Ipa, IpaRange, Layout, Leaf, Level,
    MapStopped, Mapping, OnBlock, Pa, Permissions, Request, SplitStopped, Stage2, Step, TableFrame,
};

/// Where something is mapped.
const MAPPED: u64 = 0x4000_0000;
const BACKING: u64 = 0x1_0000_0000;

fn layouts() -> impl Iterator<Item = Layout> {
    let of = |granule, ipa_bits, lpa2| Features {
        granule,
        lpa2,
        ..Features::armv8_0(ipa_bits, 52)
    };
    let features = [
        of(Granule::Size4K, 32, false),
        of(Granule::Size4K, 39, false),
        of(Granule::Size4K, 40, false),
        of(Granule::Size4K, 48, false),
        of(Granule::Size4K, 52, true),
        of(Granule::Size16K, 47, false),
        of(Granule::Size64K, 42, false),
        of(Granule::Size64K, 52, false),
    ];
    features
        .map(|features| Layout::new(features).unwrap())
        .into_iter()
}

/// A machine with two blocks and a page mapped.
fn machine(layout: Layout) -> Machine {
    let machine = Machine::new(layout);
    let block = layout.span(Level::L2);
    let start = Ipa::new(MAPPED).align_down(block);
    let range = start..start.offset(2 * block + layout.page_size());
    machine.on(0, |worker| {
        let mapped = machine.stage2.map(worker, range, mapping(BACKING), || true);
        assert_eq!(mapped.unwrap().leaves, 3);
    });
    machine
}

fn mapping(pa: u64) -> Mapping {
    Mapping {
        pa: Pa::new(pa),
        attributes: Attributes::memory(Permissions::RAM),
        largest: Level::L2,
    }
}

fn request(ipa: u64) -> Request {
    Request {
        ipa: Ipa::new(ipa),
        va: None,
        access: Access::Write,
        pa: Pa::new(BACKING),
        largest: Level::L3,
        attributes: Attributes::memory(Permissions::RAM),
        largest_written: Level::L3,
        on_block: OnBlock::Split,
    }
}

fn survey(machine: &Machine) -> Survey {
    machine.on(0, |worker| Survey::of(&machine.stage2, worker))
}

/// What each operation on a range says about this one, by name.
fn asked(machine: &Machine, range: &IpaRange) -> Vec<(&'static str, Option<BadAddress>)> {
    let stage2 = &machine.stage2;
    let range = || range.clone();
    machine.on(0, |worker| {
        let map = stage2.map(worker, range(), mapping(BACKING), || true);
        let map = map.err().map(|failed| match failed.reason {
            MapStopped::BadAddress(bad) => {
                assert_eq!(
                    (failed.mapped.leaves, failed.mapped.done_to),
                    (0, range().start)
                );
                bad
            }
            other => panic!("{other:?}"),
        });
        let split = stage2.split(worker, range(), Level::L3, u64::MAX);
        let split = split.err().map(|failed| match failed.reason {
            SplitStopped::BadAddress(bad) => {
                assert_eq!(
                    (failed.split.blocks, failed.split.done_to),
                    (0, range().start)
                );
                bad
            }
            other => panic!("{other:?}"),
        });
        let told = |_: Level, _: Ipa, _: Leaf| panic!("nothing is removed");
        vec![
            ("map", map),
            ("split", split),
            ("unmap", stage2.unmap(worker, range(), told).err()),
            (
                "unmap_leaves",
                stage2.unmap_leaves(worker, [range()], told).err(),
            ),
            (
                "replace",
                stage2
                    .replace(worker, range(), |_, _| None, |_, _| {})
                    .err(),
            ),
            (
                "protect",
                stage2
                    .protect(worker, range(), Permissions::READ_ONLY, |_, _, _| {})
                    .err(),
            ),
            (
                "write_protect",
                stage2.write_protect(worker, range(), All, |_, _| {}).err(),
            ),
            (
                "track_writes",
                stage2
                    .track_writes(worker, range(), Level::L3, All, |_, _| {})
                    .err(),
            ),
            (
                "harvest_dirty",
                stage2.harvest_dirty(worker, range(), |_, _| {}).err(),
            ),
            (
                "find_dirty",
                stage2
                    .find_dirty(worker, range(), |_| true, |_, _, _| {})
                    .err(),
            ),
            ("age", stage2.age(worker, range(), |_, _| {}).err()),
            ("test_age", stage2.test_age(worker, range()).err()),
            (
                "clean_caches",
                stage2.clean_caches(worker, range(), |_, _| {}).err(),
            ),
            (
                "collapse",
                stage2
                    .collapse(worker, range(), Level::L2, |_| Permissions::RAM, told)
                    .err(),
            ),
            ("invalidate", stage2.invalidate(worker, range()).err()),
            ("walk", stage2.walk(worker, range(), |_| Step::Stop).err()),
        ]
    })
}

#[test]
fn ranges_that_are_reversed_unaligned_or_outside_are_refused_by_every_operation() {
    for layout in layouts() {
        let machine = machine(layout);
        let before = survey(&machine);
        let frames = machine.frames.live();
        machine.tlbs.take_log();
        let (page_size, end) = (layout.page_size(), layout.all().end);
        let at = |address: u64| Ipa::new(address);
        let (page, next) = (at(MAPPED), at(MAPPED + page_size));
        let ipa_bits = layout.ipa_bits();
        let outside = |end| BadAddress::NotInSpace { end, ipa_bits };
        let unaligned = |ipa| BadAddress::Unaligned { ipa, page_size };
        let far = at(u64::MAX - page_size + 1);
        for (range, why) in [
            (
                next..page,
                BadAddress::Reversed {
                    start: next,
                    end: page,
                },
            ),
            (at(MAPPED + 8)..next, unaligned(at(MAPPED + 8))),
            (
                page..at(MAPPED + page_size / 2),
                unaligned(at(MAPPED + page_size / 2)),
            ),
            (page..end.offset(page_size), outside(end.offset(page_size))),
            (end..end.offset(page_size), outside(end.offset(page_size))),
            (
                end.offset(page_size)..end.offset(page_size),
                outside(end.offset(page_size)),
            ),
            (far..at(u64::MAX), outside(at(u64::MAX))),
        ] {
            for (operation, said) in asked(&machine, &range) {
                assert_eq!(said, Some(why), "{operation} of {range:?}");
            }
        }
        assert_eq!(survey(&machine), before);
        assert_eq!(machine.frames.live(), frames);
        assert!(machine.tlbs.take_log().is_empty());
        machine.destroy();
    }
}

#[test]
fn the_ends_of_the_space_and_empty_ranges_are_not_refused() {
    for layout in layouts() {
        let machine = Machine::new(layout);
        let end = layout.all().end;
        let last = Ipa::new(end.get() - layout.page_size());
        for range in [last..end, end..end, Ipa::new(0)..Ipa::new(0)] {
            machine.on(0, |worker| {
                let mapped = machine
                    .stage2
                    .map(worker, range.clone(), mapping(BACKING), || true);
                assert_eq!(mapped.unwrap().done_to, range.end);
                machine
                    .stage2
                    .unmap(worker, range.clone(), |_, _, _| {})
                    .unwrap();
            });
        }
        machine.on(0, |worker| {
            machine
                .stage2
                .unmap(worker, layout.all(), |_, _, _| {})
                .unwrap()
        });
        machine.destroy();
    }
}

#[test]
fn an_address_beyond_the_space_is_mapped_to_nothing_and_can_t_be() {
    for layout in layouts() {
        let machine = machine(layout);
        let frames = machine.frames.live();
        let end = 1 << layout.ipa_bits();
        let page_size = layout.page_size();
        for ipa in [end, end + page_size, end + MAPPED, 1 << 63, u64::MAX] {
            assert_eq!(machine.lookup(Ipa::new(ipa)), None, "{ipa:#x}");
            assert_eq!(
                machine.fault(0, &request(ipa)),
                Served::NotInSpace,
                "{ipa:#x}"
            );
            let relaxed = machine.on(0, |worker| {
                machine.stage2.relax(worker, Ipa::new(ipa), None, Level::L0)
            });
            assert_eq!(relaxed, None, "{ipa:#x}");
        }
        assert_eq!(machine.frames.live(), frames);
        assert_eq!(machine.fault(0, &request(end - page_size)), Served::Mapped);
        machine.destroy();
    }
}

#[test]
fn memory_that_no_descriptor_can_name_is_not_mapped_as_other_memory() {
    for layout in layouts() {
        let machine = machine(layout);
        let page_size = layout.page_size();
        let pa_bits = layout.pa_bits();
        let free = Ipa::new(0)..Ipa::new(2 * page_size);
        let before = survey(&machine);
        for pa in [
            1 << pa_bits,
            (1 << pa_bits) - page_size,
            1 << 52,
            !(page_size - 1),
        ] {
            let range = free.clone();
            let mapped = machine.on(0, |w| machine.stage2.map(w, range, mapping(pa), || true));
            let (pa, bytes) = (Pa::new(pa), 2 * page_size);
            let far = BadAddress::NotInMemory { pa, bytes, pa_bits };
            assert_eq!(mapped.unwrap_err().reason, MapStopped::BadAddress(far));
        }
        let (pa, range) = (BACKING + page_size / 2, free.clone());
        let mapped = machine.on(0, |w| machine.stage2.map(w, range, mapping(pa), || true));
        let pa = Pa::new(pa);
        let odd = BadAddress::UnalignedBacking { pa, page_size };
        assert_eq!(mapped.unwrap_err().reason, MapStopped::BadAddress(odd));
        assert_eq!(survey(&machine), before);
        let top = mapping((1 << pa_bits) - 2 * page_size);
        machine
            .on(0, |w| machine.stage2.map(w, free, top, || true))
            .unwrap();
        let (leaf, _) = machine.lookup(Ipa::new(page_size)).unwrap();
        assert_eq!(leaf.pa(), Pa::new((1 << pa_bits) - page_size));
        machine.destroy();
    }
}

/// Nor put in the place of what is mapped: pages that were answered for before have what was answered, and no other is touched.
#[test]
fn a_page_is_not_replaced_by_memory_that_no_descriptor_can_name() {
    for layout in layouts() {
        let machine = machine(layout);
        let page_size = layout.page_size();
        let start = Ipa::new(0);
        let pages = start..start.offset(4 * page_size);
        let small = Mapping {
            largest: Level::L3,
            ..mapping(BACKING)
        };
        machine.on(0, |worker| {
            let mapped = machine.stage2.map(worker, pages.clone(), small, || true);
            assert_eq!(mapped.unwrap().leaves, 4);
        });
        let other = Pa::new(2 * BACKING);
        for bad in [1 << layout.pa_bits(), BACKING + page_size / 2, u64::MAX] {
            let choose = |ipa: Ipa, leaf: Leaf| {
                let pa = if ipa == start { other } else { Pa::new(bad) };
                Some((pa, leaf.attributes()))
            };
            let replaced = machine.on(0, |worker| {
                (machine.stage2).replace(worker, pages.clone(), choose, |_, _| {})
            });
            assert!(replaced.is_err(), "{bad:#x}");
            for page in 0..4 {
                let (leaf, _) = machine.lookup(start.offset(page * page_size)).unwrap();
                let was = Pa::new(BACKING + page * page_size);
                assert_eq!(leaf.pa(), if page == 0 { other } else { was });
            }
        }
        machine.destroy();
    }
}

/// A page's word in a table above the lowest is a link to the page, which walkers would take for a table.
#[test]
fn a_visitor_s_page_does_not_become_a_link() {
    let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
    let machine = Machine::new(layout);
    let page = layout.leaf(
        Level::L3,
        Pa::new(BACKING),
        Attributes::memory(Permissions::RAM),
    );
    let span = layout.span(layout.start());
    for locks in [false, true] {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            machine.on(0, |worker| {
                machine
                    .stage2
                    .walk(worker, Ipa::new(0)..Ipa::new(span), |context| {
                        if locks {
                            let broken = context.lock().unwrap().flush(
                                worker.tlb,
                                machine.stage2.regime(),
                                &layout,
                            );
                            let _ = broken.make_leaf(Some(page));
                        } else {
                            let _ = context.exchange(Some(page));
                        }
                        Step::Stop
                    })
                    .unwrap()
            })
        }));
        let said = *outcome.unwrap_err().downcast::<String>().unwrap();
        assert!(said.contains("is no leaf of L1"), "{said}");
        assert!(survey(&machine).leaves.is_empty());
        assert!(survey(&machine).tables.is_empty());
    }
    // What is of the level may be put there, and taken away.
    let block = layout.leaf(
        Level::L1,
        Pa::new(BACKING),
        Attributes::memory(Permissions::RAM),
    );
    for new in [Some(block), None] {
        let walked = machine.on(0, |worker| {
            machine
                .stage2
                .walk(worker, Ipa::new(0)..Ipa::new(span), |context| {
                    context.exchange(new).unwrap();
                    Step::Stop
                })
                .unwrap()
        });
        assert_eq!(walked, Ipa::new(0));
        assert_eq!(
            machine.lookup(Ipa::new(0)),
            new.map(|leaf| (leaf, Level::L1))
        );
    }
    machine.destroy();
}

#[test]
fn a_root_that_is_too_small_or_not_aligned_is_refused() {
    let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
    let bytes = layout.root_bytes();
    assert_eq!(bytes, 2 * layout.table_size());
    let refused = |pa: u64, bytes: u64| {
        std::panic::catch_unwind(|| {
            // SAFETY: nobody has these addresses, and nothing reads them: the root is refused, or never walked.
            let root = unsafe { TableFrame::new(Pa::new(pa), bytes) };
            Stage2::new(root, layout)
        })
        .is_err()
    };
    assert!(!refused(BACKING, bytes));
    assert!(refused(BACKING, bytes / 2), "one of its tables is missing");
    assert!(refused(BACKING, 2 * bytes));
    assert!(refused(BACKING + bytes / 2, bytes));
    assert!(refused(1 << 48, bytes), "no link could lead there");
}
