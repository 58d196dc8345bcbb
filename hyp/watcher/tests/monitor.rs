//! The monitor, told of sequences that are right and of the same sequences with one thing wrong.
//!
//! The tree has tables of four entries at levels 1 to 3: a page is 4 KiB, a block of level 2 16 KiB, of level 1 64 KiB.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use watcher::{
    Barrier, Bbm, CpuSet, Difference, Format, Geometry, Granule, Kind, Memory, Monitor, Promise,
    Tlbi, Violation,
};

const ROOT: u64 = 0x10_0000;
const MIDDLE: u64 = 0x20_0000;
const PAGES: u64 = 0x30_0000;
const OTHER: u64 = 0x40_0000;
const VTTBR: u64 = 7 << 48 | ROOT;

const LOCKED: u64 = 0b10;
const WRITE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 10;
const NT: u64 = 1 << 16;
const DBM: u64 = 1 << 51;
const CONTIGUOUS: u64 = 1 << 52;

const fn page(pa: u64) -> u64 {
    pa | 0x7ff
}

const fn block(pa: u64) -> u64 {
    pa | 0x7fd
}

const fn table(pa: u64) -> u64 {
    pa | 3
}

#[derive(Clone, Default)]
struct Words(Rc<RefCell<BTreeMap<u64, u64>>>);

impl Memory for Words {
    fn load(&self, address: u64) -> u64 {
        self.0.borrow().get(&address).copied().unwrap_or(0)
    }
}

/// A machine that does as it is told, and keeps what the monitor says.
struct Machine {
    words: Words,
    monitor: Monitor<Words>,
    found: Vec<Violation>,
}

fn geometry(bbm: Bbm) -> Geometry {
    Geometry {
        stride: 2,
        groups: [1, 1, 1, 2],
        ..Geometry::new(Granule::Size4K, Format::Narrow, 1, 1).with_bbm(bbm)
    }
}

impl Machine {
    /// The root leads to MIDDLE, that to PAGES for the first 16 KiB, and PAGES maps four pages. CPU 0 to 2 run it.
    fn new() -> Self {
        Self::with(Bbm::Level0)
    }

    fn with(bbm: Bbm) -> Self {
        let words = Words::default();
        words.build(ROOT, &[table(MIDDLE)]);
        words.build(MIDDLE, &[table(PAGES)]);
        words.build(
            PAGES,
            &[0, 1, 2, 3].map(|index| page(0x800_0000 + index * 0x1000)),
        );
        let mut machine = Self {
            monitor: Monitor::new(words.clone()),
            words,
            found: Vec::new(),
        };
        machine.monitor.root_created(ROOT, geometry(bbm));
        for cpu in 0..3 {
            machine.load(cpu, VTTBR);
        }
        machine
    }

    fn load(&mut self, cpu: usize, vttbr: u64) -> &mut Self {
        self.found.extend(self.monitor.vttbr(cpu, vttbr));
        self
    }

    /// CPU 0 writes an entry.
    fn write(&mut self, entry: u64, word: u64) -> &mut Self {
        self.write_on(0, entry, word)
    }

    fn write_on(&mut self, cpu: usize, entry: u64, word: u64) -> &mut Self {
        let old = self.words.load(entry);
        let found = self.monitor.change(cpu, entry, &mut || {
            self.words.0.borrow_mut().insert(entry, word);
            Some((old, word))
        });
        self.found.extend(found);
        self
    }

    fn tlbi(&mut self, operation: Tlbi) -> &mut Self {
        self.tlbi_on(0, operation)
    }

    fn tlbi_on(&mut self, cpu: usize, operation: Tlbi) -> &mut Self {
        self.monitor.tlbi(cpu, operation);
        self
    }

    fn dsb(&mut self, barrier: Barrier) -> &mut Self {
        self.monitor.barrier(0, barrier);
        self
    }

    fn dsb_on(&mut self, cpu: usize, barrier: Barrier) -> &mut Self {
        self.monitor.barrier(cpu, barrier);
        self
    }

    /// DSB ISHST; `operations`; DSB ISH; VMALLE1IS; DSB ISH.
    fn flush(&mut self, operations: &[Tlbi]) -> &mut Self {
        self.dsb(Barrier::DsbIshst);
        for operation in operations {
            self.tlbi(*operation);
        }
        self.dsb(Barrier::DsbIsh)
            .tlbi(Tlbi::Vmalle1is)
            .dsb(Barrier::DsbIsh)
    }

    fn free(&mut self, frame: u64) -> &mut Self {
        self.found.extend(self.monitor.table_freed(0, frame));
        self
    }

    fn is_silent(&mut self) -> &mut Self {
        let found: Vec<String> = self.found.iter().map(ToString::to_string).collect();
        assert!(found.is_empty(), "{found:#?}");
        self
    }

    /// The one thing that was found, which is no more.
    fn finds(&mut self) -> Violation {
        assert_eq!(self.found.len(), 1, "{:#?}", self.found);
        self.found.remove(0)
    }

    /// As what, and by whom, a value was held that should have been gone.
    fn finds_held(&mut self) -> (u64, Kind, CpuSet) {
        match self.finds() {
            Violation::NotInvalidated { held, .. } | Violation::Promise { held, .. } => {
                (held.value, held.kind, held.cpus)
            }
            other => panic!("{other}"),
        }
    }
}

impl Words {
    fn build(&self, frame: u64, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            self.0.borrow_mut().insert(frame + index as u64 * 8, *word);
        }
    }
}

const FIRST: u64 = page(0x800_0000);
const MOVED: u64 = page(0x900_0000);

#[test]
fn a_whole_break_before_make_is_right() {
    Machine::new()
        .write(PAGES, LOCKED)
        .flush(&[Tlbi::Ipas2le1is(0)])
        .write(PAGES, MOVED)
        .is_silent();
}

#[test]
fn a_change_of_address_type_or_size_without_a_break_is_found() {
    for (entry, word, difference) in [
        (PAGES, MOVED, Difference::OutputAddress),
        (PAGES, FIRST ^ 1 << 3, Difference::MemoryType),
        (PAGES, FIRST | CONTIGUOUS, Difference::Contiguous),
        (MIDDLE, block(0x800_0000), Difference::Size),
        (MIDDLE, table(OTHER), Difference::Table),
    ] {
        let found = Machine::new().write(entry, word).finds();
        assert!(
            matches!(found, Violation::NoBreak { why, .. } if why == difference),
            "{found}"
        );
    }
}

#[test]
fn every_missing_step_of_an_invalidation_leaves_something() {
    let old = |kind, cpus| (FIRST, kind, cpus);
    let all = CpuSet::ALL;
    use Barrier::*;
    use Tlbi::*;
    type Steps<'s> = &'s [Result<Tlbi, Barrier>];
    let whole: Steps = &[
        Err(DsbIshst),
        Ok(Ipas2le1is(0)),
        Err(DsbIsh),
        Ok(Vmalle1is),
        Err(DsbIsh),
    ];
    for left_out in 0..whole.len() {
        let mut machine = Machine::new();
        machine.write(PAGES, LOCKED);
        for (_, step) in whole
            .iter()
            .enumerate()
            .filter(|(step, _)| *step != left_out)
        {
            match step {
                Ok(operation) => machine.tlbi(*operation),
                Err(barrier) => machine.dsb(*barrier),
            };
        }
        let kind = if left_out < 2 {
            Kind::Stage2
        } else {
            Kind::Combined
        };
        assert_eq!(
            machine.write(PAGES, MOVED).finds_held(),
            old(kind, all),
            "without {:?}",
            whole[left_out]
        );
    }
    let wrong: &[(Steps, Kind, CpuSet)] = &[
        // The order of the two.
        (
            &[
                Err(DsbIsh),
                Ok(Vmalle1is),
                Err(DsbIsh),
                Ok(Ipas2le1is(0)),
                Err(DsbIsh),
            ],
            Kind::Combined,
            all,
        ),
        // A barrier that completes nothing.
        (
            &[
                Err(DsbIsh),
                Ok(Ipas2le1is(0)),
                Err(DsbIshst),
                Ok(Vmalle1is),
                Err(DsbIshst),
            ],
            Kind::Stage2,
            all,
        ),
        (
            &[
                Err(DsbIsh),
                Ok(Ipas2le1is(0)),
                Err(DsbNsh),
                Ok(Vmalle1is),
                Err(DsbNsh),
            ],
            Kind::Stage2,
            all,
        ),
        // A barrier for this CPU before a broadcast.
        (
            &[Err(DsbNshst), Ok(Vmalls12e1is), Err(DsbIsh)],
            Kind::Stage2,
            all,
        ),
        // Local where broadcast is needed.
        (
            &[
                Err(DsbIsh),
                Ok(Ipas2le1(0)),
                Err(DsbNsh),
                Ok(Vmalle1),
                Err(DsbNsh),
            ],
            Kind::Stage2,
            !CpuSet::only(0),
        ),
        (
            &[
                Err(DsbIsh),
                Ok(Ipas2le1is(0)),
                Err(DsbIsh),
                Ok(Vmalle1),
                Err(DsbIsh),
            ],
            Kind::Combined,
            !CpuSet::only(0),
        ),
        (
            &[Err(DsbIsh), Ok(Vmalls12e1), Err(DsbIsh)],
            Kind::Stage2,
            !CpuSet::only(0),
        ),
        // EL2's stage 1.
        (
            &[
                Err(DsbIsh),
                Ok(Alle2is),
                Err(DsbIsh),
                Ok(Vae2is(0)),
                Err(DsbIsh),
            ],
            Kind::Stage2,
            all,
        ),
        // The wrong page, level and granule.
        (
            &[
                Err(DsbIsh),
                Ok(Ipas2le1is(1)),
                Err(DsbIsh),
                Ok(Vmalle1is),
                Err(DsbIsh),
            ],
            Kind::Stage2,
            all,
        ),
        (
            &[
                Err(DsbIsh),
                Ok(Ipas2le1is(0b0110 << 44)),
                Err(DsbIsh),
                Ok(Vmalle1is),
                Err(DsbIsh),
            ],
            Kind::Stage2,
            all,
        ),
        (
            &[
                Err(DsbIsh),
                Ok(Ipas2le1is(0b1011 << 44)),
                Err(DsbIsh),
                Ok(Vmalle1is),
                Err(DsbIsh),
            ],
            Kind::Stage2,
            all,
        ),
    ];
    for (steps, kind, cpus) in wrong {
        let mut machine = Machine::new();
        machine.write(PAGES, LOCKED);
        for step in *steps {
            match step {
                Ok(operation) => machine.tlbi(*operation),
                Err(barrier) => machine.dsb(*barrier),
            };
        }
        assert_eq!(
            machine.write(PAGES, MOVED).finds_held(),
            old(*kind, *cpus),
            "{steps:?}"
        );
    }
}

#[test]
fn every_sufficient_invalidation_is_enough() {
    use Tlbi::*;
    for operation in [
        Ipas2e1is(0),
        Ipas2le1is(0b0111 << 44),
        Ripas2e1is(1 << 46),
        Ripas2le1is(1 << 46 | 3 << 37),
        Vmalls12e1is,
        Alle1is,
    ] {
        Machine::new()
            .write(PAGES, LOCKED)
            .flush(&[operation])
            .write(PAGES, MOVED)
            .is_silent();
    }
}

#[test]
fn an_invalidation_acts_on_the_vmid_that_is_loaded() {
    let mut machine = Machine::new();
    machine
        .load(0, 8 << 48)
        .write(PAGES, LOCKED)
        .flush(&[Tlbi::Vmalls12e1is]);
    assert_eq!(
        machine.write(PAGES, MOVED).finds_held(),
        (FIRST, Kind::Stage2, CpuSet::ALL)
    );
}

#[test]
fn a_range_that_is_one_page_short_leaves_that_page() {
    // Scale 0, num 0: two pages of three.
    let mut machine = Machine::new();
    for index in 0..3 {
        machine.write(PAGES + index * 8, LOCKED);
    }
    machine.flush(&[Tlbi::Ripas2le1is(1 << 46)]);
    machine
        .write(PAGES, MOVED)
        .write(PAGES + 8, page(0x900_1000))
        .is_silent();
    let (value, ..) = machine.write(PAGES + 16, page(0x900_2000)).finds_held();
    assert_eq!(value, page(0x800_2000));
}

#[test]
fn a_value_that_comes_back_needs_no_invalidation() {
    Machine::new()
        .write(PAGES, LOCKED)
        .write(PAGES, FIRST)
        .is_silent();
}

#[test]
fn what_another_cpu_stored_is_covered_but_not_what_this_one_has_not_ordered() {
    Machine::new()
        .write_on(1, PAGES, LOCKED)
        .tlbi(Tlbi::Vmalls12e1is)
        .dsb(Barrier::DsbIsh)
        .write(PAGES, MOVED)
        .is_silent();
    let mut machine = Machine::new();
    machine
        .tlbi(Tlbi::Vmalls12e1is)
        .write_on(1, PAGES, LOCKED)
        .dsb(Barrier::DsbIsh);
    assert_eq!(
        machine.write(PAGES, MOVED).finds_held(),
        (FIRST, Kind::Stage2, CpuSet::ALL)
    );
}

#[test]
fn combined_entries_are_not_gone_if_they_could_come_back_when_their_invalidation_was_issued() {
    let mut machine = Machine::new();
    machine
        .write_on(1, PAGES, LOCKED)
        .dsb_on(1, Barrier::DsbIsh)
        .tlbi_on(1, Tlbi::Ipas2le1is(0))
        .tlbi(Tlbi::Vmalle1is)
        .dsb_on(1, Barrier::DsbIsh)
        .dsb(Barrier::DsbIsh);
    let held = machine.write(PAGES, MOVED).finds_held();
    assert_eq!(held, (FIRST, Kind::Combined, CpuSet::ALL));
}

#[test]
fn a_virtual_page_is_all_of_a_page_but_not_of_a_block() {
    for (entry, old, kind) in [
        (PAGES, FIRST, None),
        (MIDDLE + 8, block(0xc00_0000), Some(Kind::Combined)),
    ] {
        let mut machine = Machine::new();
        machine.write(MIDDLE + 8, block(0xc00_0000));
        let operand = if entry == PAGES { 0 } else { 4 };
        machine
            .write(entry, LOCKED)
            .dsb(Barrier::DsbIsh)
            .tlbi(Tlbi::Ipas2le1is(operand));
        machine
            .dsb(Barrier::DsbIsh)
            .tlbi(Tlbi::Vaae1(operand))
            .dsb(Barrier::DsbIsh);
        machine.write(entry, old + 0x10_0000);
        let found = match machine.finds() {
            Violation::NotInvalidated { held, .. } => held,
            other => panic!("{other}"),
        };
        let here = found.cpus.contains(0);
        assert_eq!((found.kind, here), (Kind::Combined, kind.is_some()));
    }
}

#[test]
fn a_leaf_without_access_flag_is_in_no_tlb() {
    let mut machine = Machine::new();
    machine
        .write(PAGES, FIRST & !ACCESSED)
        .flush(&[Tlbi::Ipas2le1is(0)])
        .write(PAGES, LOCKED)
        .write(PAGES, MOVED)
        .is_silent();
}

#[test]
fn a_table_goes_with_all_that_was_reached_through_it() {
    let mut machine = Machine::new();
    machine
        .write(MIDDLE, LOCKED)
        .flush(&[Tlbi::Ripas2e1is(1 << 46 | 1 << 39)])
        .write(PAGES, 0b100)
        .free(PAGES)
        .write(MIDDLE, block(0x900_0000))
        .is_silent();
}

#[test]
fn what_changes_in_a_table_while_its_link_is_dropped_goes_with_it() {
    let mut machine = Machine::new();
    machine
        .write(MIDDLE, LOCKED)
        .dsb(Barrier::DsbIshst)
        .tlbi(Tlbi::Ripas2e1is(1 << 46 | 1 << 39))
        .write_on(1, PAGES, FIRST | 1 << 54)
        .dsb(Barrier::DsbIsh)
        .tlbi(Tlbi::Vmalle1is)
        .dsb(Barrier::DsbIsh)
        .write(MIDDLE, block(0x900_0000))
        .is_silent();
}

#[test]
fn the_last_level_alone_leaves_the_link_to_a_table() {
    let unlink = |operation| {
        let mut machine = Machine::new();
        machine.write(MIDDLE, LOCKED).flush(&[operation]);
        machine
    };
    let narrow = Tlbi::Ripas2le1is(1 << 46 | 1 << 39);
    let found = unlink(narrow).free(PAGES).finds();
    assert!(
        matches!(
            found,
            Violation::FreedReachable {
                cpus: CpuSet::ALL,
                linked: false,
                ..
            }
        ),
        "{found}"
    );
    let (value, ..) = unlink(narrow).write(MIDDLE, block(0x900_0000)).finds_held();
    assert_eq!(value, table(PAGES));
    // One page's worth: the link goes, the other pages stay.
    let (value, ..) = unlink(Tlbi::Ipas2e1is(0))
        .write(MIDDLE, block(0x900_0000))
        .finds_held();
    assert_eq!(value, page(0x800_1000));
}

#[test]
fn a_link_that_one_cpu_dropped_is_still_with_the_others() {
    let mut machine = Machine::new();
    machine
        .write(MIDDLE, LOCKED)
        .dsb(Barrier::DsbIsh)
        .tlbi(Tlbi::Ipas2e1(0))
        .dsb(Barrier::DsbIsh);
    let found = machine.free(PAGES).finds();
    let others = !CpuSet::only(0);
    assert!(
        matches!(found, Violation::FreedReachable { cpus, .. } if cpus == others),
        "{found}"
    );
}

#[test]
fn a_table_that_the_tree_still_links_is_not_to_be_freed() {
    let found = Machine::new().free(PAGES).finds();
    assert!(
        matches!(found, Violation::FreedReachable { linked: true, .. }),
        "{found}"
    );
}

#[test]
fn walkers_in_an_unlinked_table_see_what_it_becomes() {
    // Unlinked, its leaves dropped, then filled again: what comes in last gets into TLBs through the old link.
    let mut machine = Machine::new();
    machine
        .write(MIDDLE, LOCKED)
        .flush(&[Tlbi::Ripas2le1is(1 << 46 | 1 << 39)]);
    for index in 0..4 {
        machine.write(PAGES + index * 8, 0b100);
    }
    machine.flush(&[Tlbi::Ripas2le1is(1 << 46 | 1 << 39)]);
    machine
        .write(PAGES + 8, page(0xa00_1000))
        .write(PAGES + 8, 0b100);
    machine.flush(&[Tlbi::Ipas2e1is(0)]).is_silent();
    let (value, ..) = machine.write(MIDDLE, block(0x900_0000)).finds_held();
    assert_eq!(value, page(0xa00_1000));
}

#[test]
fn a_table_is_linked_only_over_what_agrees_with_it() {
    // The pages below were dropped from the tree, but not from TLBs.
    let mut machine = Machine::new();
    machine
        .words
        .build(OTHER, &[page(0x800_0000), page(0xb00_0000)]);
    machine.write(MIDDLE, LOCKED).flush(&[Tlbi::Ipas2e1is(0)]);
    let (value, ..) = machine.write(MIDDLE, table(OTHER)).finds_held();
    assert_eq!(value, page(0x800_1000));
}

#[test]
fn size_changes_skip_the_break_as_far_as_the_level_says() {
    let split = |bbm, block| {
        let mut machine = Machine::with(bbm);
        let pages = [0, 1, 2, 3].map(|index| page(0xc00_0000 + index * 0x1000));
        machine.words.build(OTHER, &pages);
        machine.write(MIDDLE + 8, block).is_silent();
        machine.write(MIDDLE + 8, table(OTHER));
        machine
    };
    let plain = block(0xc00_0000);
    split(Bbm::Level2, plain).is_silent();
    split(Bbm::Level1, plain | NT).is_silent();
    for mut machine in [
        split(Bbm::Level0, plain),
        split(Bbm::Level0, plain | NT),
        split(Bbm::Level1, plain),
        split(Bbm::Level2, block(0xd00_0000)),
    ] {
        let found = machine.finds();
        assert!(matches!(found, Violation::NoBreak { .. }), "{found}");
    }
    // nT set in place: the block without it has to be gone first.
    let mut machine = Machine::with(Bbm::Level1);
    machine.words.build(OTHER, &[page(0xc00_0000)]);
    machine
        .write(MIDDLE + 8, plain)
        .write(MIDDLE + 8, plain | NT)
        .is_silent();
    let (value, ..) = machine.write(MIDDLE + 8, table(OTHER)).finds_held();
    assert_eq!(value, plain);
}

#[test]
fn a_block_that_was_split_in_place_is_still_dropped_by_address_but_not_with_the_pages_level() {
    let changed = |operation| {
        let mut machine = Machine::with(Bbm::Level2);
        machine.words.build(
            OTHER,
            &[0, 1, 2, 3].map(|index| page(0xc00_0000 + index * 0x1000)),
        );
        machine
            .write(MIDDLE + 8, block(0xc00_0000))
            .write(MIDDLE + 8, table(OTHER));
        machine
            .write(OTHER, LOCKED)
            .flush(&[operation])
            .write(OTHER, MOVED);
        machine
    };
    changed(Tlbi::Ipas2le1is(4)).is_silent();
    let (value, ..) = changed(Tlbi::Ipas2le1is(0b0111 << 44 | 4)).finds_held();
    assert_eq!(value, block(0xc00_0000));
}

#[test]
fn a_group_agrees_and_is_dropped_as_a_whole() {
    let grouped = |second: u64| {
        let mut machine = Machine::new();
        machine.write(PAGES, LOCKED).write(PAGES + 8, LOCKED);
        machine.flush(&[Tlbi::Ripas2le1is(1 << 46)]);
        machine
            .write(PAGES, FIRST | CONTIGUOUS)
            .write(PAGES + 8, second);
        machine
    };
    let second = page(0x800_1000) | CONTIGUOUS;
    grouped(second).is_silent();
    for (wrong, difference) in [
        (second ^ CONTIGUOUS, Difference::Contiguous),
        (second + 0x1000, Difference::OutputAddress),
        (second ^ 1 << 3, Difference::MemoryType),
        (second & !WRITE, Difference::GroupPermissions),
    ] {
        let found = grouped(wrong).finds();
        assert!(
            matches!(found, Violation::Misgrouped { why, .. } if why == difference),
            "{found}"
        );
    }
    // Its neighbour can bring the group back for as long as it says that it is of one.
    let mut machine = grouped(second);
    machine
        .write(PAGES, LOCKED)
        .flush(&[Tlbi::Ripas2le1is(1 << 46)]);
    let found = machine.write(PAGES, MOVED).finds();
    assert!(matches!(found, Violation::Misgrouped { .. }), "{found}");
}

#[test]
fn a_permission_needs_no_break_but_its_promise_an_invalidation() {
    let protect = |flush: &dyn Fn(&mut Machine)| {
        let mut machine = Machine::new();
        let since = machine.monitor.now();
        machine.write(PAGES, FIRST & !WRITE);
        flush(&mut machine);
        let found = machine
            .monitor
            .promised(ROOT, Promise::NoWrite, 0..0x1000, since);
        machine.found.extend(found);
        machine
    };
    protect(&|machine| {
        machine.flush(&[Tlbi::Ipas2le1is(0)]);
    })
    .is_silent();
    let nothing = protect(&|_| {}).finds_held();
    assert_eq!(nothing, (FIRST, Kind::Stage2, CpuSet::ALL));
    let local = protect(&|machine| {
        machine
            .dsb(Barrier::DsbIsh)
            .tlbi(Tlbi::Ipas2le1(0))
            .dsb(Barrier::DsbIsh);
        machine.tlbi(Tlbi::Vaae1(0)).dsb(Barrier::DsbIsh);
    });
    let held = { local }.finds_held();
    assert_eq!(held, (FIRST, Kind::Stage2, !CpuSet::only(0)));
}

#[test]
fn a_promise_is_not_broken_by_what_came_after_it_began() {
    let mut machine = Machine::new();
    let since = machine.monitor.now();
    machine
        .write(PAGES, FIRST & !WRITE)
        .flush(&[Tlbi::Ipas2le1is(0)]);
    machine
        .write_on(1, PAGES, FIRST)
        .write_on(2, PAGES, FIRST & !WRITE);
    let found = machine
        .monitor
        .promised(ROOT, Promise::NoWrite, 0..0x1000, since);
    assert_eq!(found, []);
}

#[test]
fn an_unmapped_table_that_can_be_reached_breaks_the_promise_of_no_entry() {
    let mut machine = Machine::new();
    let since = machine.monitor.now();
    machine
        .write(MIDDLE, 0)
        .flush(&[Tlbi::Ripas2le1is(1 << 46 | 1 << 39)]);
    let found = machine
        .monitor
        .promised(ROOT, Promise::NoEntry, 0..0x4000, since);
    machine.found.extend(found);
    assert_eq!(machine.finds_held(), (FIRST, Kind::Visible, CpuSet::ALL));
}

#[test]
fn hardware_may_update_an_entry_unannounced_and_nobody_else() {
    let mut machine = Machine::new();
    let clean = page(0x800_0000) & !WRITE & !ACCESSED | DBM;
    machine.write(PAGES, clean).is_silent();
    machine.words.build(PAGES, &[clean | WRITE | ACCESSED]);
    machine.write(PAGES, clean).is_silent();
    machine.words.build(PAGES, &[clean ^ 1 << 53]);
    let found = machine.write(PAGES, clean).finds();
    assert!(
        matches!(found, Violation::Unannounced { expected, .. } if expected == clean),
        "{found}"
    );
}

#[test]
fn a_table_is_linked_after_a_barrier() {
    let link = |barrier: Option<Barrier>| {
        let mut machine = Machine::new();
        machine.monitor.table_allocated(0, OTHER);
        machine.words.build(OTHER, &[page(0xc00_0000)]);
        if let Some(barrier) = barrier {
            machine.dsb(barrier);
        }
        machine.write(MIDDLE + 8, table(OTHER));
        machine
    };
    link(Some(Barrier::DsbIshst)).is_silent();
    link(Some(Barrier::DsbIsh)).is_silent();
    for barrier in [None, Some(Barrier::DsbNshst), Some(Barrier::Isb)] {
        let found = link(barrier).finds();
        assert!(
            matches!(found, Violation::Unordered { frame: OTHER, .. }),
            "{found}"
        );
    }
}

#[test]
fn memory_goes_back_after_the_last_entry_for_it() {
    let freed = |flush: bool| {
        let mut machine = Machine::new();
        machine.write(PAGES, 0);
        if flush {
            machine.flush(&[Tlbi::Ipas2le1is(0)]);
        }
        let found = machine.monitor.memory_freed(0x800_0000..0x800_1000);
        machine.found.extend(found);
        machine
    };
    freed(true).is_silent();
    let found = freed(false).finds();
    assert!(matches!(found, Violation::FreedMapped { .. }), "{found}");
}

#[test]
fn a_tree_ends_with_nobody_in_it_and_nothing_left() {
    let machine = Machine::new();
    let retired = machine.monitor.root_retired(ROOT);
    assert!(
        matches!(retired[..], [Violation::Abandoned { loaded: true, .. }]),
        "{retired:?}"
    );

    let mut machine = Machine::new();
    for cpu in 0..3 {
        machine.load(cpu, 0);
    }
    let retired = machine.monitor.root_retired(ROOT);
    assert!(
        matches!(retired[..], [Violation::Abandoned { loaded: false, .. }]),
        "{retired:?}"
    );

    machine = Machine::new();
    machine.load(1, 0).load(2, 0);
    machine.flush(&[Tlbi::Vmalls12e1is]).load(0, 0);
    assert_eq!(machine.monitor.root_retired(ROOT), []);
    machine.free(PAGES).free(ROOT).is_silent();
    let finished = machine.monitor.root_finished(ROOT);
    assert!(
        matches!(
            finished[..],
            [Violation::Leaked {
                tables: 1,
                frame: MIDDLE,
                ..
            }]
        ),
        "{finished:?}"
    );
}

#[test]
fn a_tree_that_nobody_has_loaded_is_taken_apart_without_further_invalidation() {
    let mut machine = Machine::new();
    machine.load(1, 0).load(2, 0);
    machine.flush(&[Tlbi::Vmalls12e1is]).load(0, 0);
    machine
        .write(MIDDLE, 0b100)
        .free(PAGES)
        .write(ROOT, 0b100)
        .free(MIDDLE);
    assert_eq!(machine.monitor.root_retired(ROOT), []);
    machine.free(ROOT).is_silent();
    assert_eq!(machine.monitor.root_finished(ROOT), []);

    // Loaded again, it is walked as it is.
    let mut machine = Machine::new();
    machine.load(1, 0).load(2, 0);
    machine.flush(&[Tlbi::Vmalls12e1is]).load(0, 0);
    machine
        .write(PAGES, MOVED)
        .load(0, VTTBR)
        .write(PAGES, LOCKED)
        .is_silent();
    assert_eq!(
        machine.write(PAGES, FIRST).finds_held(),
        (MOVED, Kind::Stage2, CpuSet::ALL)
    );
}

#[test]
fn a_vmid_is_given_to_another_tree_after_everything_of_it_was_dropped() {
    const SECOND: u64 = 0x50_0000;
    let reuse = |operation: Option<Tlbi>| {
        let mut machine = Machine::new();
        machine.load(0, 0).load(1, 0).load(2, 0);
        machine.monitor.root_created(SECOND, geometry(Bbm::Level0));
        if let Some(operation) = operation {
            machine
                .dsb_on(1, Barrier::DsbIsh)
                .tlbi_on(1, operation)
                .dsb_on(1, Barrier::DsbIsh);
        }
        machine.load(0, 7 << 48 | SECOND);
        machine
    };
    reuse(Some(Tlbi::Alle1is)).is_silent();
    for operation in [None, Some(Tlbi::Vmalle1is), Some(Tlbi::Vmalls12e1is)] {
        let found = reuse(operation).finds();
        assert!(
            matches!(
                found,
                Violation::VmidReused {
                    vmid: 7,
                    other: ROOT,
                    ..
                }
            ),
            "{found}"
        );
    }
}

#[test]
fn a_page_that_was_written_stays_dirty_until_it_is_harvested() {
    let machine = Machine::new();
    machine.monitor.wrote(ROOT, 0x1000, 1);
    assert_eq!(
        machine
            .monitor
            .written_is_dirty(ROOT, &|page| page == 0x1000),
        []
    );
    let found = machine.monitor.written_is_dirty(ROOT, &|_| false);
    assert_eq!(
        found,
        [Violation::LostDirty {
            root: ROOT,
            ipa: 0x1000,
            cpu: 1
        }]
    );
    machine.monitor.harvested(ROOT, 0..0x2000);
    assert_eq!(machine.monitor.written_is_dirty(ROOT, &|_| false), []);
}

#[test]
fn a_report_names_the_rule_the_entry_the_values_and_the_cpus() {
    let text = Machine::new()
        .write(PAGES, LOCKED)
        .write(PAGES, MOVED)
        .finds()
        .to_string();
    assert_eq!(
        text,
        "rule 2, break-before-make: CPU 0 made entry 0x300000 (level 3, IPA 0x0, root 0x100000, VMID 7) 0x90007ff, but \
         every CPU may hold 0x80007ff of level 3 for IPA 0x0 (as a stage-2 entry); the output addresses differ"
    );
}
