//! Where memory lies: slots, ranges that are unmapped, moved or populated ahead.

use super::*;

#[test]
fn slots_are_refused_as_kvm_refuses_them() {
    let machine = Vms::new(1024);
    let space = space(&machine, 0, Change::Direct);
    let object = anonymous(&machine, 16, Level::L3);
    let good = SlotConfig {
        bytes: 8 * PAGE_SIZE,
        ..slot(object.clone())
    };
    let refused = |change: fn(&mut SlotConfig)| {
        let mut config = good.clone();
        change(&mut config);
        space.map_object(&machine.cpu, config).unwrap_err()
    };
    assert_eq!(refused(|slot| slot.bytes = 0), SlotError::Empty);
    let unaligned = SlotError::Unaligned { piece: PAGE_SIZE };
    assert_eq!(refused(|slot| slot.bytes += 1), unaligned);
    assert_eq!(refused(|slot| slot.start = Ipa::new(0x123)), unaligned);
    assert_eq!(refused(|slot| slot.offset = 8), unaligned);
    let beyond = SlotError::BeyondObject(object.id());
    assert_eq!(refused(|slot| slot.offset = 9 * PAGE_SIZE), beyond);
    assert_eq!(
        refused(|slot| slot.offset = PAGE_SIZE.wrapping_neg()),
        beyond
    );
    let too_high = SlotError::BeyondIpaSpace { bits: 40 };
    assert_eq!(
        refused(|slot| slot.start = Ipa::new((1 << 40) - PAGE_SIZE)),
        too_high
    );
    assert_eq!(
        refused(|slot| slot.start = Ipa::new(PAGE_SIZE.wrapping_neg())),
        too_high
    );
    space.map_object(&machine.cpu, good.clone()).unwrap();
    assert_eq!(refused(|_| {}), SlotError::Exists(SLOT));
    assert_eq!(
        refused(|slot| slot.id = SlotId(1)),
        SlotError::Overlaps(SLOT)
    );
    let last = START.offset(7 * PAGE_SIZE);
    assert_eq!(
        space.move_slot(&machine.cpu, SlotId(9), last),
        Err(SlotError::Unknown(SlotId(9)))
    );
    assert_eq!(
        space.remove_slot(&machine.cpu, SlotId(9)),
        Err(SlotError::Unknown(SlotId(9)))
    );
    space.destroy(&machine.cpu);
    drop((good, object));
    machine.check_nothing_is_left();
}

#[test]
fn memory_that_is_allocated_for_a_slot_has_to_lie_as_its_pieces_do() {
    let machine = Vms::new(4 * BLOCK as usize);
    let space = space(&machine, 0, Change::Direct);
    let block = BLOCK * PAGE_SIZE;
    let add =
        |id, start, bytes| space.add_slot(&machine.cpu, SlotId(id), start, bytes, Level::L2, false);
    let unaligned = Err(SlotError::Unaligned { piece: block });
    assert_eq!(add(0, START.offset(PAGE_SIZE), block), unaligned);
    assert_eq!(add(0, START, block + PAGE_SIZE), unaligned);
    assert_eq!(add(0, START, 0), Err(SlotError::Empty));
    assert_eq!(add(0, START, block), Ok(()));
    // Of the two things that are wrong, the one that more memory wouldn't mend.
    let below = Ipa::new(START.get() - 16 * block);
    assert_eq!(
        add(1, below, 17 * block),
        Err(SlotError::Overlaps(SlotId(0)))
    );
    assert_eq!(add(0, below, 16 * block), Err(SlotError::Exists(SlotId(0))));
    let bytes = 16 * block;
    assert_eq!(add(1, below, bytes), Err(SlotError::OutOfMemory { bytes }));
    assert_eq!(machine.guest(), BLOCK);
    space.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

#[test]
fn a_vm_has_up_to_512_slots() {
    let machine = Vms::new(1024);
    let space = space(&machine, 0, Change::Direct);
    let object = anonymous(&machine, 1, Level::L3);
    let config = |number: usize| SlotConfig {
        id: SlotId(number as u32),
        start: START.offset(number as u64 * PAGE_SIZE),
        ..slot(object.clone())
    };
    for number in 0..MAX_SLOTS {
        space.map_object(&machine.cpu, config(number)).unwrap();
    }
    let one_more = space.map_object(&machine.cpu, config(MAX_SLOTS));
    assert_eq!(one_more, Err(SlotError::TooMany));
    // All of them are the same page.
    machine.write(&space, 77, 9);
    assert_eq!(machine.read(&space, MAX_SLOTS as u64 - 1), 9);
    assert_eq!(machine.guest(), 1);
    space.destroy(&machine.cpu);
    drop(object);
    machine.check_nothing_is_left();
}

#[test]
fn an_invalidated_range_is_found_again_as_it_was_and_its_neighbours_stay() {
    let machine = Vms::new(1024);
    let space = space(&machine, 0, Change::Direct);
    machine.map(&space, anonymous(&machine, 8, Level::L3));
    for page in 0..8 {
        machine.write(&space, page, page + 100);
    }
    let at = |page| START.offset(page * PAGE_SIZE);
    space.invalidate(&machine.cpu, at(2)..at(5));
    space.invalidate(&machine.cpu, at(6)..at(6));
    for page in 0..8 {
        let mapped = space.lookup(&machine.cpu, at(page)).is_some();
        assert_eq!(mapped, !(2..5).contains(&page), "page {page}");
    }
    assert_eq!(machine.guest(), 8);
    for page in 0..8 {
        assert_eq!(machine.read(&space, page), page + 100);
    }
    assert_eq!(machine.guest(), 8, "nothing was allocated anew");
    space.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

/// An unmap goes by steps of 128 MiB, which begin and end within the range as they like.
#[test]
fn a_range_of_any_size_is_unmapped_to_its_last_page_and_its_neighbours_stay() {
    const STEP: u64 = 64 * BLOCK;
    const PAGES: u64 = 3 * STEP + 7;
    let machine = Vms::new(1024);
    let space = space(&machine, 0, Change::Direct);
    machine.map(&space, anonymous(&machine, PAGES, Level::L3));
    let probes = [
        0,
        1,
        STEP - 1,
        STEP,
        2 * STEP - 1,
        2 * STEP,
        3 * STEP,
        PAGES - 2,
        PAGES - 1,
    ];
    let at = |page| START.offset(page * PAGE_SIZE);
    let mapped = || -> Vec<u64> {
        let is_mapped = |page: &u64| space.lookup(&machine.cpu, at(*page)).is_some();
        probes.into_iter().filter(is_mapped).collect()
    };
    let all_is_there = || {
        let reads = |page: &u64| machine.read(&space, *page) == page + 100;
        probes.iter().all(reads)
    };
    for (range, left) in [
        (1..PAGES - 1, vec![0, PAGES - 1]),
        (STEP..PAGES, vec![0, 1, STEP - 1]),
        (0..2 * STEP, vec![2 * STEP, 3 * STEP, PAGES - 2, PAGES - 1]),
    ] {
        for page in probes {
            machine.write(&space, page, page + 100);
        }
        space.invalidate(&machine.cpu, at(range.start)..at(range.end));
        assert_eq!(mapped(), left, "{range:?}");
        assert!(all_is_there());
    }
    let elsewhere = at(4 * STEP + 3);
    space.move_slot(&machine.cpu, SLOT, elsewhere).unwrap();
    assert_eq!(mapped(), []);
    space.move_slot(&machine.cpu, SLOT, START).unwrap();
    assert!(all_is_there());
    space.remove_slot(&machine.cpu, SLOT).unwrap();
    assert_eq!(mapped(), []);
    space.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

#[test]
fn a_slot_that_moves_takes_its_memory_along_and_one_that_goes_leaves_nothing() {
    let machine = Vms::new(8192);
    let space = space(&machine, 0, Change::Direct);
    machine.map(&space, anonymous(&machine, 2 * BLOCK, Level::L2));
    machine.write(&space, 5, 55);
    machine.write(&space, BLOCK, 66);
    // Onto its own second half.
    space
        .move_slot(&machine.cpu, SLOT, START.offset(BLOCK * PAGE_SIZE))
        .unwrap();
    let outcome = machine.fault(&space, START, Access::Read, FaultKind::Translation);
    assert_eq!(outcome, FaultOutcome::NoSlot);
    assert_eq!(space.lookup(&machine.cpu, START), None);
    assert_eq!(machine.read(&space, BLOCK + 5), 55);
    assert_eq!(machine.read(&space, 2 * BLOCK), 66);
    space.set_read_only(&machine.cpu, SLOT, true).unwrap();
    let at = START.offset(BLOCK * PAGE_SIZE);
    let outcome = machine.fault(&space, at, Access::Write, FaultKind::Translation);
    assert_eq!(outcome, FaultOutcome::NotPermitted);
    let free = machine.pool.free_frames();
    space.remove_slot(&machine.cpu, SLOT).unwrap();
    assert_eq!(space.lookup(&machine.cpu, at), None);
    assert_eq!(machine.guest(), 0);
    assert!(machine.pool.free_frames() >= free + 2 * BLOCK, "at once");
    space.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

/// Two VMs give the same name to their slots of the same memory: one that goes takes along its own only.
#[test]
fn memory_that_one_vm_has_let_go_of_still_follows_every_change_in_the_other() {
    let machine = Vms::new(512);
    let shared = Object::shared(&machine.cpu, 4 * PAGE_SIZE, Level::L3).unwrap();
    let [one, other] = [0, 1].map(|vm| space(&machine, vm, Change::Direct));
    for vm in [&one, &other] {
        machine.map(vm, shared.clone());
        machine.write(vm, 1, 11);
    }
    one.remove_slot(&machine.cpu, SLOT).unwrap();
    let ipa = START.offset(PAGE_SIZE);
    let frame = || other.lookup(&machine.cpu, ipa).unwrap().0.pa();
    let before = frame();
    assert!(shared.migrate(&machine.cpu, 1));
    assert_ne!(frame(), before);
    assert_eq!(machine.read(&other, 1), 11);
    drop(shared);
    for vm in [one, other] {
        vm.destroy(&machine.cpu);
    }
    machine.check_nothing_is_left();
}

/// A block that is populated from its middle on says nothing of how far the next one is.
#[test]
fn every_page_of_a_range_is_populated_behind_a_block_too() {
    let machine = Vms::new(4096);
    let space = space(&machine, 0, Change::Direct);
    machine.map(&space, anonymous(&machine, 2 * BLOCK, Level::L2));
    let at = |page: u64| START.offset(page * PAGE_SIZE);
    // The second block is in pages.
    machine.write(&space, BLOCK, 1);
    space
        .balloon(&machine.cpu, at(BLOCK + 9)..at(BLOCK + 10))
        .unwrap();
    space.invalidate(&machine.cpu, at(0)..at(2 * BLOCK));
    let range = at(5).offset(8)..at(2 * BLOCK - 1).offset(8);
    assert_eq!(
        space.prefault(&machine.cpu, 0, range, Access::Write),
        Ok(())
    );
    let is_mapped = |page: &u64| {
        let mapped = space.lookup(&machine.cpu, at(*page));
        mapped.is_some_and(|(leaf, _)| Access::Write.allowed_by(leaf))
    };
    assert_eq!((5..2 * BLOCK).find(|page| !is_mapped(page)), None);
    // Behind the slot, behind the address space, and where addresses end.
    for from in [at(2 * BLOCK), Ipa::new(1 << 40), Ipa::new(u64::MAX - 4095)] {
        let from = from.offset(8);
        let error = space
            .prefault(&machine.cpu, 0, from..from.offset(1), Access::Read)
            .unwrap_err();
        assert_eq!((error.done_to, error.reason), (from, NotPopulated::NoSlot));
    }
    space.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

#[test]
fn what_is_populated_ahead_takes_no_fault() {
    let machine = Vms::new(4096);
    let space = space(&machine, 0, Change::Direct);
    machine.map(&space, anonymous(&machine, 256, Level::L3));
    let end = START.offset(256 * PAGE_SIZE);
    space
        .prefault(&machine.cpu, 0, START..end, Access::Write)
        .unwrap();
    assert_eq!(machine.guest(), 256);
    assert!((0..256).all(|page| machine.write(&space, page, page) == 0));
    let beyond = START..end.offset(PAGE_SIZE);
    let error = space
        .prefault(&machine.cpu, 0, beyond, Access::Read)
        .unwrap_err();
    assert_eq!((error.done_to, error.reason), (end, NotPopulated::NoSlot));
    space.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}
