//! Too few frames for what is shared, and for its tables.

use super::*;

#[test]
fn running_out_of_frames_loses_nothing() {
    let machine = Vms::new(700);
    let (parent, child) = (
        space(&machine, 0, Change::Direct),
        space(&machine, 1, Change::Direct),
    );
    machine.map(&parent, anonymous(&machine, BLOCK, Level::L3));
    let all = START..START.offset(BLOCK * PAGE_SIZE);
    parent
        .prefault(&machine.cpu, 0, all.clone(), Access::Write)
        .unwrap();
    for page in 0..BLOCK {
        machine.write(&parent, page, page);
    }
    parent.fork(&machine.cpu, &child).unwrap();
    let error = child
        .prefault(&machine.cpu, 0, all, Access::Write)
        .unwrap_err();
    assert_eq!(error.reason, NotPopulated::OutOfFrames);
    assert!((0..BLOCK).all(|page| machine.read(&parent, page) == page));
    parent.destroy(&machine.cpu);
    assert!((0..BLOCK).all(|page| machine.read(&child, page) == page));
    child.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

/// A VM that has all the frames that there are, until it gives some up.
struct Hoarder {
    space: Space,
    given: u64,
}

impl Hoarder {
    fn new(machine: &Vms) -> Self {
        const PAGES: u64 = 4096;
        let space = space(machine, 2, Change::Direct);
        machine.map(&space, machine.anonymous(space.vm(), PAGES, Level::L3));
        let take = |page: u64| {
            let ipa = START.offset(page * PAGE_SIZE);
            machine.fault(&space, ipa, Access::Write, FaultKind::Translation)
        };
        let none = (0..PAGES).find(|page| take(*page) == FaultOutcome::OutOfFrames);
        assert!(none.is_some(), "there are more frames");
        Self { space, given: 0 }
    }

    /// Gives up so many frames, which the CPU has then.
    fn give(&mut self, machine: &Vms, frames: u64) {
        let at = |page| START.offset(page * PAGE_SIZE);
        let range = at(self.given)..at(self.given + frames);
        if frames > 0 {
            assert_eq!(self.space.balloon(&machine.cpu, range), Ok(frames));
        }
        self.given += frames;
        machine.cpu.wait_for_epoch();
        machine.cpu.refill();
    }
}

/// A copy of a page of a block takes a frame, and its neighbours a table in each slot that maps them as a block:
/// whichever of these is missing, the guest gets its copy once there is one, and nobody finds anything else changed.
#[test]
fn a_page_of_a_shared_block_is_copied_whichever_frame_is_missing() {
    const SECOND: Ipa = Ipa::new(0x8000_0000);
    const PAGE: u64 = 5;
    for (frames, change) in
        (0..6).flat_map(|frames| [(frames, Change::Direct), (frames, Change::Unmap)])
    {
        let machine = Vms::new(2048);
        let parent = space(&machine, 0, change);
        let object = anonymous(&machine, BLOCK, Level::L2);
        machine.map(&parent, object.clone());
        let second = SlotConfig {
            id: SlotId(1),
            start: SECOND,
            ..slot(object)
        };
        parent.map_object(&machine.cpu, second).unwrap();
        for page in PAGE - 1..PAGE + 2 {
            machine.write(&parent, page, page + 100);
        }
        let child = space(&machine, 1, change);
        parent.fork(&machine.cpu, &child).unwrap();
        let (first, second) = (
            START.offset(PAGE * PAGE_SIZE),
            SECOND.offset(PAGE * PAGE_SIZE),
        );
        for vm in [&parent, &child] {
            machine.read(vm, PAGE);
            machine.fault(vm, second, Access::Read, FaultKind::Translation);
            let level = |ipa| vm.lookup(&machine.cpu, ipa).map(|(_, level)| level);
            assert_eq!(
                (level(first), level(second)),
                (Some(Level::L2), Some(Level::L2))
            );
        }
        let mut hoarder = Hoarder::new(&machine);
        hoarder.give(&machine, frames);
        let leaf = loop {
            let kind = match child.lookup(&machine.cpu, first) {
                Some((leaf, _)) if Access::Write.allowed_by(leaf) => break leaf,
                Some(_) => FaultKind::Permission,
                None => FaultKind::Translation,
            };
            if machine.fault(&child, first, Access::Write, kind) == FaultOutcome::OutOfFrames {
                hoarder.give(&machine, 1);
            }
        };
        // SAFETY: the leaf maps memory of the arena, which backs the guest.
        unsafe { write_bytes(leaf.pa().offset(8), &7_u64.to_ne_bytes()) };
        hoarder.give(&machine, 16);
        for (vm, expected) in [(&parent, PAGE + 100), (&child, 7)] {
            assert_eq!(machine.read(vm, PAGE - 1), PAGE + 99);
            assert_eq!(machine.read(vm, PAGE), expected);
            assert_eq!(machine.read(vm, PAGE + 1), PAGE + 101);
            let frame_at = |ipa| {
                let found = vm.lookup(&machine.cpu, ipa);
                found.map(|(leaf, level)| frame(leaf, level, PAGE))
            };
            assert!(frame_at(second).is_none_or(|frame| Some(frame) == frame_at(first)));
        }
        for vm in [child, parent, hoarder.space] {
            vm.destroy(&machine.cpu);
        }
        machine.check_nothing_is_left();
    }
}

/// Its frame is the page's own again, but the block's other pages need a table, for which there is no frame: the guest is told
/// so, and doesn't fault for ever.
#[test]
fn the_last_one_of_those_who_shared_a_block_writes_when_there_is_a_table_for_it() {
    let machine = Vms::new(2048);
    let parent = space(&machine, 0, Change::Direct);
    machine.map(&parent, anonymous(&machine, BLOCK, Level::L2));
    (0..2).for_each(|page| _ = machine.write(&parent, page, page + 100));
    let child = space(&machine, 1, Change::Direct);
    parent.fork(&machine.cpu, &child).unwrap();
    child.destroy(&machine.cpu);
    let (_, level, _) = machine.access(&parent, 0, Access::Read);
    assert_eq!(level, Level::L2);
    let mut hoarder = Hoarder::new(&machine);
    let outcome = machine.fault(&parent, START, Access::Write, FaultKind::Permission);
    assert_eq!(outcome, FaultOutcome::OutOfFrames);
    hoarder.give(&machine, 1);
    machine.write(&parent, 0, 7);
    assert_eq!(
        (machine.read(&parent, 0), machine.read(&parent, 1)),
        (7, 101)
    );
    for vm in [parent, hoarder.space] {
        vm.destroy(&machine.cpu);
    }
    machine.check_nothing_is_left();
}
