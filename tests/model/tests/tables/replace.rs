//! Other memory behind pages that are mapped, one operation at a time and beside a held entry, on tables of real size.

use std::thread;
use std::time::{Duration, Instant};

use model::{Invalidation, Machine, Served, backing_of, request};
use stage2::{
    Access, Attributes, Features, Ipa, IpaRange, Layout, Leaf, Level, Mapping, PAGE_SIZE, Pa,
    Permissions, Replaced, Resolution,
};

/// Pages that one invalidation serves at most.
const BATCH: u64 = 32;

fn machine() -> Machine {
    Machine::new(Layout::new(Features::armv8_0(40, 48)).unwrap())
}

fn page(index: u64) -> Ipa {
    Ipa::new((1 << 30) + index * PAGE_SIZE)
}

fn pages(range: std::ops::Range<u64>) -> IpaRange {
    page(range.start)..page(range.end)
}

/// Memory that nothing is mapped to at first.
fn other(ipa: Ipa) -> Pa {
    backing_of(ipa).offset(1 << 40)
}

fn fault(machine: &Machine, pages: std::ops::Range<u64>, access: Access) {
    for index in pages {
        machine.access(0, &request(page(index), access, Level::L3, false));
    }
}

/// Replaces all pages of `range`, and says which leaves were handed out.
fn replace(machine: &Machine, range: IpaRange, new: Permissions) -> (Replaced, Vec<(Ipa, Leaf)>) {
    let mut taken = Vec::new();
    let found = machine.on(1, |worker| {
        machine
            .stage2
            .replace(
                worker,
                range,
                |ipa, _| Some((other(ipa), Attributes::memory(new))),
                |ipa, leaf| taken.push((ipa, leaf)),
            )
            .unwrap()
    });
    (found, taken)
}

#[test]
fn a_page_is_mapped_to_its_new_memory_without_a_fault() {
    let machine = machine();
    fault(&machine, 0..1, Access::Write);
    let (found, taken) = replace(&machine, pages(0..1), Permissions::READ_ONLY);
    assert_eq!((found.pages, found.blocks), (1, 0));
    let [(ipa, old)] = taken[..] else {
        panic!("one leaf is handed out: {taken:?}");
    };
    assert_eq!((ipa, old.pa()), (page(0), backing_of(page(0))));
    assert!(old.writable());
    let (leaf, level) = machine.lookup(page(0)).unwrap();
    assert_eq!((leaf.pa(), level), (other(page(0)), Level::L3));
    assert_eq!(leaf.attributes().permissions, Permissions::READ_ONLY);
    let read = request(page(0), Access::Read, Level::L3, false);
    assert_eq!(machine.access(0, &read), None, "it took a fault");
    machine.destroy();
}

#[test]
fn what_is_handed_out_is_in_no_tlb_and_not_mapped_again_yet() {
    let machine = machine();
    fault(&machine, 0..BATCH, Access::Write);
    let all = (0..BATCH).map(|index| page(index).get()).collect();
    assert!(machine.stale_writable(&all));
    let mut handed_out = 0;
    machine.on(1, |worker| {
        machine
            .stage2
            .replace(
                worker,
                pages(0..BATCH),
                |ipa, _| Some((other(ipa), Attributes::memory(Permissions::RAM))),
                |ipa, _| {
                    assert!(!machine.stale_writable(&all));
                    let read = request(ipa, Access::Read, Level::L3, false);
                    assert_eq!(machine.fault(2, &read), Served::Again, "{ipa} isn't held");
                    handed_out += 1;
                },
            )
            .unwrap()
    });
    assert_eq!(handed_out, BATCH);
    machine.destroy();
}

#[test]
fn one_invalidation_serves_as_many_pages_as_are_held_at_once() {
    let machine = machine();
    fault(&machine, 0..3 * BATCH + 1, Access::Read);
    machine.tlbs.take_log();
    let (found, _) = replace(&machine, pages(0..3 * BATCH + 1), Permissions::RAM);
    assert_eq!(found.pages, 3 * BATCH + 1);
    let batch = |first| Invalidation::Range(pages(first..first + BATCH), false);
    let last = Invalidation::Range(pages(3 * BATCH..3 * BATCH + 1), false);
    assert_eq!(
        machine.tlbs.take_log(),
        [batch(0), batch(BATCH), batch(2 * BATCH), last]
    );
    machine.destroy();
}

#[test]
fn what_isnt_chosen_stays_and_costs_nothing() {
    let machine = machine();
    fault(&machine, 0..4, Access::Write);
    machine.tlbs.take_log();
    let found = machine.on(1, |worker| {
        machine
            .stage2
            .replace(
                worker,
                pages(0..4),
                |_, _| None,
                |ipa, _| panic!("{ipa} was taken"),
            )
            .unwrap()
    });
    assert_eq!(found, Replaced::default());
    assert_eq!(machine.tlbs.take_log(), []);
    for index in 0..4 {
        let (leaf, _) = machine.lookup(page(index)).unwrap();
        assert_eq!(leaf.pa(), backing_of(page(index)));
    }
    machine.destroy();
}

#[test]
fn what_isnt_mapped_isnt_created() {
    let machine = machine();
    fault(&machine, 1..2, Access::Read);
    let tables = machine.frames.live();
    let (found, _) = replace(&machine, pages(0..1024), Permissions::RAM);
    assert_eq!(found.pages, 1);
    assert!(machine.lookup(page(0)).is_none() && machine.lookup(page(2)).is_none());
    assert_eq!(machine.frames.live(), tables);
    machine.destroy();
}

#[test]
fn blocks_are_left_alone_and_counted() {
    let machine = machine();
    let block = request(page(512), Access::Write, Level::L2, false);
    machine.access(0, &block);
    fault(&machine, 0..1, Access::Read);
    fault(&machine, 1024..1025, Access::Read);
    let (found, taken) = replace(&machine, pages(0..1536), Permissions::RAM);
    assert_eq!((found.pages, found.blocks), (2, 1));
    assert_eq!(taken.len(), 2);
    let (leaf, level) = machine.lookup(page(512)).unwrap();
    assert_eq!((leaf.pa(), level), (backing_of(page(512)), Level::L2));
    machine.destroy();
}

#[test]
fn a_page_keeps_its_access_flag() {
    let machine = machine();
    fault(&machine, 0..2, Access::Read);
    let aged = pages(0..1);
    machine.on(0, |worker| {
        machine.stage2.age(worker, aged, |_, _| {}).unwrap()
    });
    replace(&machine, pages(0..2), Permissions::RAM);
    assert!(!machine.lookup(page(0)).unwrap().0.accessed());
    assert!(machine.lookup(page(1)).unwrap().0.accessed());
    machine.destroy();
}

#[test]
fn contiguous_groups_are_taken_apart_first() {
    let machine = Machine::new(
        Layout::new(Features {
            contiguous: true,
            ..Features::armv8_0(40, 48)
        })
        .unwrap(),
    );
    let mapping = Mapping {
        pa: backing_of(page(0)),
        attributes: Attributes::memory(Permissions::RAM),
        largest: Level::L3,
    };
    let groups = pages(0..48);
    let mapped = machine.on(0, |worker| {
        machine.stage2.map(worker, groups, mapping, || true)
    });
    mapped.expect("there are frames");
    assert!(machine.lookup(page(20)).unwrap().0.contiguous());
    // Page 7 first, so that the group of page 20 is met while it is held.
    let found = machine.on(1, |worker| {
        machine
            .stage2
            .replace(
                worker,
                pages(0..48),
                |ipa, leaf| {
                    let chosen = ipa == page(7) || ipa == page(20);
                    let is_old = leaf.pa() == backing_of(ipa);
                    (chosen && is_old).then(|| (other(ipa), Attributes::memory(Permissions::RAM)))
                },
                |_, leaf| assert!(!leaf.contiguous()),
            )
            .unwrap()
    });
    assert_eq!(found.pages, 2);
    for index in 0..48 {
        let (leaf, _) = machine.lookup(page(index)).unwrap();
        let replaced = index == 7 || index == 20;
        let expected = if replaced { other } else { backing_of };
        assert_eq!(leaf.pa(), expected(page(index)));
        assert_eq!(leaf.contiguous(), index >= 32, "page {index}");
    }
    machine.destroy();
}

/// As whoever copies a page on write finds it: by then hardware has noted a write, or a fault has made it writable.
#[test]
fn a_leaf_that_changes_after_it_was_chosen_is_chosen_again() {
    let machine = machine();
    machine.access(0, &request(page(0), Access::Read, Level::L3, true));
    let mut seen = Vec::new();
    let mut taken = Vec::new();
    machine.on(1, |worker| {
        machine
            .stage2
            .replace(
                worker,
                pages(0..1),
                |ipa, leaf| {
                    if seen.is_empty() {
                        let write = request(ipa, Access::Write, Level::L3, true);
                        assert_eq!(machine.access(0, &write), Some(Served::Relaxed(Level::L3)));
                    }
                    seen.push(leaf.writable());
                    Some((other(ipa), Attributes::memory(Permissions::RAM)))
                },
                |_, leaf| taken.push(leaf.writable()),
            )
            .unwrap()
    });
    assert_eq!(seen, [false, true]);
    assert_eq!(taken, [true], "a write was lost");
    machine.destroy();
}

/// Rule 5: whoever took a leaf has it, also if there is no place any more for what was to come instead.
#[test]
fn a_leaf_whose_table_is_unlinked_meanwhile_is_handed_out_once_and_nothing_comes_instead() {
    let machine = machine();
    fault(&machine, 0..512, Access::Write);
    let mut taken = Vec::new();
    let mut removed = Vec::new();
    let found = machine.on(1, |worker| {
        machine
            .stage2
            .replace(
                worker,
                pages(0..1),
                |ipa, _| Some((other(ipa), Attributes::memory(Permissions::RAM))),
                |ipa, _| {
                    taken.push(ipa);
                    let table = pages(0..512);
                    machine.on(2, |worker| {
                        (machine.stage2)
                            .unmap(worker, table, |_, ipa, _| removed.push(ipa))
                            .unwrap()
                    });
                },
            )
            .unwrap()
    });
    assert_eq!(found, Replaced::default());
    assert_eq!(taken, [page(0)]);
    assert_eq!(removed, (1..512).map(page).collect::<Vec<_>>());
    assert!(machine.lookup(page(0)).is_none());
    machine.pass_epoch();
    machine.destroy();
}

/// Rule 4: what it has taken before is made first, so that nobody waits for both.
#[test]
fn a_replacement_that_waits_for_an_entry_holds_no_other() {
    /// Long enough for a thread that the host has put aside.
    const PATIENCE: Duration = Duration::from_secs(60);
    let machine = machine();
    fault(&machine, 0..1, Access::Write);
    machine.on(2, |worker| {
        let read = request(page(1), Access::Read, Level::L3, false);
        let Resolution::Vacant(held) = machine.stage2.fault(worker, &read) else {
            panic!("nothing is mapped there");
        };
        thread::scope(|scope| {
            scope.spawn(|| replace(&machine, pages(0..2), Permissions::RAM));
            let began = Instant::now();
            let is_replaced = || {
                let found = machine.lookup(page(0));
                found.is_some_and(|(leaf, _)| leaf.pa() == other(page(0)))
            };
            while !is_replaced() && began.elapsed() < PATIENCE {
                thread::yield_now();
            }
            let replaced = is_replaced();
            held.restore().expect("nobody unlinks its table");
            assert!(replaced, "page 0 was not let go");
        });
    });
    machine.destroy();
}

#[test]
fn what_has_taken_the_place_of_a_page_keeps_its_rights() {
    let machine = machine();
    fault(&machine, 0..2, Access::Read);
    replace(&machine, pages(1..2), Permissions::READ_ONLY);
    for index in 0..2 {
        let (old, ipa) = (backing_of(page(index)), pages(index..index + 1));
        machine.on(1, |worker| {
            let permitted = Permissions::LOGGED;
            let protected =
                (machine.stage2).protect_mapped(worker, ipa, old, permitted, |_, _, _| {});
            protected.unwrap();
        });
    }
    let may_write = |index| machine.lookup(page(index)).unwrap().0.may_write();
    assert!(may_write(0), "it maps what it did");
    assert!(!may_write(1), "something else is there");
    machine.destroy();
}

#[test]
fn no_page_of_a_contiguous_group_is_made_writable_alone() {
    let features = Features {
        contiguous: true,
        ..Features::armv8_0(40, 48)
    };
    let machine = Machine::new(Layout::new(features).unwrap());
    let mapping = Mapping {
        pa: backing_of(page(0)),
        attributes: Attributes::memory(Permissions::LOGGED),
        largest: Level::L3,
    };
    let mapped = machine.on(0, |worker| {
        (machine.stage2).map(worker, pages(0..32), mapping, || true)
    });
    mapped.expect("there are frames");
    let relax = |index| {
        let ipa = page(index);
        machine.on(0, |worker| {
            (machine.stage2).relax(worker, ipa, Some(ipa.get()), Level::L3)
        })
    };
    assert_eq!(relax(5), None);
    let all =
        |is: &dyn Fn(Leaf) -> bool| (0..16).all(|index| is(machine.lookup(page(index)).unwrap().0));
    assert!(
        all(&|leaf| leaf.contiguous() && !leaf.writable()),
        "nothing has changed"
    );
    // The whole way takes the group apart; then its pages are made writable one by one.
    fault(&machine, 5..6, Access::Write);
    assert!(all(&|leaf| !leaf.contiguous()));
    assert_eq!(relax(6), Some(Level::L3));
    machine.destroy();
}
