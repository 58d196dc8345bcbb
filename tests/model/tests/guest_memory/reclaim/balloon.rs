//! What guests give up: it reads as zeros, and its frames are free.

use super::*;

#[test]
fn what_a_guest_gives_up_reads_as_zero_and_its_frames_go_home() {
    let machine = Machine::new(3 * BLOCK as usize);
    let space = machine.vm_of(0, 2 * BLOCK, Level::L2);
    for page in 0..2 * BLOCK {
        machine.write(&space, page, page + 1).unwrap();
    }
    let child = machine.space(1);
    space.fork(&machine.cpu, &child).unwrap();
    let page = |number: u64| START.offset(number * PAGE_SIZE);
    assert_eq!(space.balloon(&machine.cpu, page(3)..page(10)), Ok(7));
    assert_eq!(space.balloon(&machine.cpu, page(9)..page(11)), Ok(1));
    for number in 0..20 {
        let expected = if (3..11).contains(&number) {
            0
        } else {
            number + 1
        };
        assert_eq!(machine.read(&space, number), expected);
        assert_eq!(
            machine.read(&child, number),
            number + 1,
            "the fork has its own"
        );
    }
    child.destroy(&machine.cpu);
    machine.cpu.wait_for_epoch();
    let before = machine.guest();
    assert_eq!(before, 2 * BLOCK - 8);
    // One table for the pages of the block, and sixteen pages at a time.
    let invalidations = machine.invalidations();
    assert_eq!(
        space.balloon(&machine.cpu, page(BLOCK)..page(BLOCK + 100)),
        Ok(100)
    );
    assert_eq!(
        machine.invalidations() - invalidations,
        1 + 100u64.div_ceil(16)
    );
    machine.cpu.wait_for_epoch();
    assert_eq!(machine.guest(), before - 100);
    machine.write(&space, 5, 77).unwrap();
    assert_eq!((machine.read(&space, 5), machine.read(&space, 6)), (77, 0));
    assert_eq!(machine.system.reclaim_counters().ballooned.get(), 108);
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

/// A block is taken apart for what goes, in each table that maps it: its other pages cost their guests no fault.
#[test]
fn neighbours_of_what_a_guest_gives_up_stay_mapped() {
    let machine = Machine::new(4 * BLOCK as usize);
    let space = machine.vm_of(0, 3 * BLOCK, Level::L2);
    let mapped = |page: u64| space.lookup(&machine.cpu, START.offset(page * PAGE_SIZE));
    for page in [0, BLOCK, 2 * BLOCK] {
        machine.write(&space, page, 1).unwrap();
        assert_eq!(mapped(page).unwrap().1, Level::L2);
    }
    let (first, end) = (BLOCK - 2, BLOCK + 3);
    let range = START.offset(first * PAGE_SIZE)..START.offset(end * PAGE_SIZE);
    assert_eq!(space.balloon(&machine.cpu, range), Ok(end - first));
    for page in first - 9..end + 9 {
        let gone = (first..end).contains(&page);
        assert_eq!(mapped(page).is_none(), gone, "page {page}");
    }
    assert!(mapped(0).is_some() && mapped(2 * BLOCK - 1).is_some());
    assert_eq!(mapped(2 * BLOCK).unwrap().1, Level::L2);
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

/// The same memory in two slots, of which the second begins with a later page and at an address where no block fits.
#[test]
fn what_is_given_up_in_one_slot_is_gone_from_every_other() {
    const SECOND: Ipa = Ipa::new(0x8000_5000);
    const FROM: u64 = 3;
    let machine = Machine::new(3 * BLOCK as usize);
    let space = machine.space(0);
    let object = machine.anonymous(space.vm(), 2 * BLOCK, Level::L2);
    machine.map(&space, object.clone());
    let config = SlotConfig {
        id: SlotId(1),
        start: SECOND,
        offset: FROM * PAGE_SIZE,
        bytes: object.bytes() - FROM * PAGE_SIZE,
        ..slot(object)
    };
    space.map_object(&machine.cpu, config).unwrap();
    let in_second = |page: u64| SECOND.offset((page - FROM) * PAGE_SIZE);
    let pages = [2, 3, 4, BLOCK - 1, BLOCK, 2 * BLOCK - 1];
    for page in pages {
        machine.write(&space, page, page + 1).unwrap();
        if page >= FROM {
            let outcome = machine.fault(
                &space,
                in_second(page),
                Access::Write,
                FaultKind::Translation,
            );
            assert_eq!(outcome, FaultOutcome::Resolved);
        }
    }
    for (first, end) in [(1, 5), (BLOCK - 1, BLOCK + 1), (2 * BLOCK - 1, 2 * BLOCK)] {
        let range = START.offset(first * PAGE_SIZE)..START.offset(end * PAGE_SIZE);
        assert_eq!(space.balloon(&machine.cpu, range), Ok(end - first));
    }
    for page in pages.into_iter().filter(|page| *page >= FROM) {
        let mapped = space.lookup(&machine.cpu, in_second(page));
        assert_eq!(mapped, None, "page {page}");
        let mut bytes = [1; 8];
        let read = space.read_guest(&machine.cpu, in_second(page), &mut bytes);
        assert_eq!((read, bytes), (Ok(()), [0; 8]));
    }
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

/// What lies outside of a slot's part of the memory isn't the slot's, and what is next to it even less.
#[test]
fn what_is_given_up_beside_a_slot_leaves_it_and_its_neighbours_alone() {
    const ALL: Ipa = Ipa::new(0x8000_0000);
    const PART: std::ops::Range<u64> = 2..6;
    let machine = Machine::new(400);
    let space = machine.space(0);
    let object = machine.anonymous(space.vm(), 8, Level::L3);
    let pages = PART.end - PART.start;
    let at = |page: u64| START.offset(page * PAGE_SIZE);
    let before = Ipa::new(START.get() - PAGE_SIZE);
    let other = || machine.anonymous(space.vm(), 1, Level::L3);
    for (id, start, object, offset, count) in [
        (0, START, object.clone(), PART.start, pages),
        (1, ALL, object, 0, 8),
        (2, before, other(), 0, 1),
        (3, at(pages), other(), 0, 1),
    ] {
        let config = SlotConfig {
            id: SlotId(id),
            start,
            object,
            offset: offset * PAGE_SIZE,
            bytes: count * PAGE_SIZE,
            read_only: false,
            write_faults: false,
        };
        space.map_object(&machine.cpu, config).unwrap();
    }
    let near: Vec<Ipa> = [before].into_iter().chain((0..=pages).map(at)).collect();
    let everywhere = (0..8).map(|page| ALL.offset(page * PAGE_SIZE));
    for ipa in near.iter().copied().chain(everywhere) {
        let outcome = machine.fault(&space, ipa, Access::Write, FaultKind::Translation);
        assert_eq!(outcome, FaultOutcome::Resolved);
    }
    let balloon = |first: u64, end: u64| {
        let range = ALL.offset(first * PAGE_SIZE)..ALL.offset(end * PAGE_SIZE);
        assert_eq!(space.balloon(&machine.cpu, range), Ok(end - first));
    };
    let gone = || -> Vec<Ipa> {
        let is_gone = |ipa: &Ipa| space.lookup(&machine.cpu, *ipa).is_none();
        near.iter().copied().filter(is_gone).collect()
    };
    balloon(0, PART.start);
    balloon(PART.end, 8);
    assert_eq!(gone(), []);
    balloon(PART.end - 1, PART.end);
    balloon(PART.start, PART.start + 1);
    assert_eq!(gone(), [at(0), at(pages - 1)]);
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

/// What is compressed has no frame, but takes room.
#[test]
fn what_is_given_up_after_it_was_compressed_takes_no_room() {
    let machine = Machine::new(400);
    let space = machine.vm_of(0, 40, Level::L3);
    for page in 0..40 {
        machine.write(&space, page, page + 1).unwrap();
    }
    let high = 1 << 40;
    machine
        .system
        .set_watermarks(Some(Watermarks { low: high, high }));
    for _ in 0..4 {
        machine.cpu.relieve();
    }
    machine.system.set_watermarks(None);
    assert_eq!(machine.system.compressed().pages, 40);
    let range = START.offset(10 * PAGE_SIZE)..START.offset(30 * PAGE_SIZE);
    assert_eq!(space.balloon(&machine.cpu, range), Ok(20));
    assert_eq!(machine.system.compressed().pages, 20);
    for page in 0..40 {
        let expected = if (10..30).contains(&page) {
            0
        } else {
            page + 1
        };
        assert_eq!(machine.read(&space, page), expected);
    }
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

/// What is given up is written, to the last page of it, in the log of every slot that it lies in, and nothing else is.
#[test]
fn what_a_guest_gives_up_is_dirty_in_the_log_of_its_slot() {
    const PAGES: u64 = 100;
    let machine = Machine::new(400);
    let space = machine.vm_of(0, PAGES, Level::L3);
    let second = SlotConfig {
        id: SlotId(1),
        start: START.offset(PAGES * PAGE_SIZE),
        ..slot(machine.anonymous(space.vm(), PAGES, Level::L3))
    };
    space.map_object(&machine.cpu, second).unwrap();
    for page in (0..2 * PAGES).step_by(2) {
        machine.write(&space, page, page + 1).unwrap();
    }
    let slots = [SLOT, SlotId(1)];
    let policy = LogPolicy::default();
    for id in slots {
        space.enable_dirty_log(&machine.cpu, id, &policy).unwrap();
    }
    let (first, end) = (10, PAGES + 91);
    let range = START.offset(first * PAGE_SIZE)..START.offset(end * PAGE_SIZE);
    assert_eq!(
        space.balloon(&machine.cpu, range),
        Ok((end - first) / 2 + 1)
    );
    let is_mapped = |page: &u64| {
        let ipa = START.offset(page * PAGE_SIZE);
        space.lookup(&machine.cpu, ipa).is_some()
    };
    assert_eq!((first..end).find(is_mapped), None);
    for (index, id) in slots.into_iter().enumerate() {
        let mut words = [0_u64; 2];
        space
            .get_dirty_log(&machine.cpu, id, 0, &mut words)
            .unwrap();
        for page in 0..PAGES {
            let number = index as u64 * PAGES + page;
            let is_dirty = words[page as usize / 64] & 1 << (page % 64) != 0;
            assert_eq!(is_dirty, (first..end).contains(&number), "page {number}");
        }
    }
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn what_a_guest_gives_up_goes_home_though_it_does_nothing_else() {
    const PAGES: u64 = 4096;
    let machine = Machine::new(PAGES as usize + 600);
    let space = machine.vm_of(0, PAGES, Level::L3);
    for page in 0..PAGES {
        machine.write(&space, page, page + 1).unwrap();
    }
    let page = |number: u64| START.offset(number * PAGE_SIZE);
    let mut waiting = Vec::new();
    for first in (0..PAGES).step_by(512) {
        let given = space.balloon(&machine.cpu, page(first)..page(first + 512));
        assert_eq!(given, Ok(512));
        waiting.push(machine.pool.counts().cached);
    }
    // Those of the last few batches wait for their epoch, however many came before.
    assert!(
        waiting.last() < Some(&1024),
        "frames that wait: {waiting:?}"
    );
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn a_guest_gives_up_its_own_memory_only() {
    let machine = Machine::new(400);
    let space = machine.vm_of(0, 16, Level::L3);
    let end = START.offset(16 * PAGE_SIZE);
    let shared = Object::shared(&machine.cpu, 16 * PAGE_SIZE, Level::L3).unwrap();
    let config = SlotConfig {
        id: SlotId(1),
        start: end,
        ..slot(shared)
    };
    space.map_object(&machine.cpu, config).unwrap();
    machine.write(&space, 15, 9).unwrap();
    machine.write(&space, 16, 9).unwrap();
    let balloon = |from: Ipa, to: Ipa| space.balloon(&machine.cpu, from..to);
    let page = |number: u64| START.offset(number * PAGE_SIZE);
    assert_eq!(balloon(page(1), page(1)), Err(BalloonError::Unaligned));
    assert_eq!(balloon(page(2), page(1)), Err(BalloonError::Unaligned));
    assert_eq!(
        balloon(page(1).offset(8), page(2)),
        Err(BalloonError::Unaligned)
    );
    assert_eq!(
        balloon(page(1), page(2).offset(8)),
        Err(BalloonError::Unaligned)
    );
    assert_eq!(
        balloon(page(15), page(17)),
        Err(BalloonError::NotOwn { ipa: end })
    );
    let hole = page(32);
    assert_eq!(
        balloon(page(40), page(41)),
        Err(BalloonError::NoSlot { ipa: page(40) })
    );
    let of_other = SlotConfig {
        id: SlotId(2),
        start: page(48),
        ..slot(machine.anonymous(vm(1), 1, Level::L3))
    };
    space.map_object(&machine.cpu, of_other).unwrap();
    assert_eq!(
        balloon(page(48), page(49)),
        Err(BalloonError::NotOwn { ipa: page(48) })
    );
    assert_eq!(space.set_read_only(&machine.cpu, SLOT, true), Ok(()));
    assert_eq!(
        balloon(page(15), page(16)),
        Err(BalloonError::NotOwn { ipa: page(15) })
    );
    space.remove_slot(&machine.cpu, SlotId(1)).unwrap();
    assert_eq!(
        balloon(hole, page(33)),
        Err(BalloonError::NoSlot { ipa: hole })
    );
    assert_eq!(machine.read(&space, 15), 9, "nothing was given up");
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}
