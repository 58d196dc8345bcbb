//! Changes of size without a break, as far as FEAT_BBM goes, and groups of contiguous entries.

use crate::machine::{
    CONTIGUOUS, FIRST, LOCKED, MIDDLE, MOVED, Machine, NT, OTHER, PAGES, WRITE, block, page, table,
};
use checker::{Bbm, Difference, Tlbi, Violation};

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
