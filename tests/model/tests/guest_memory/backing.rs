//! What backs guest memory changes under running guests: memory objects, copy-on-write, slots, on real memory, step by step.

mod frames;
mod sharing;
mod slots;

use memory::frames::{FramePool, arena, read_bytes, write_bytes};
use memory::{
    Access, BackingPolicy, Change, CpuMemory, FaultKind, FaultOutcome, LogPolicy, MAX_OBJECTS,
    MAX_SLOTS, MemorySystem, NotBacked, NotPopulated, Object, ObjectError, Owner, SlotConfig,
    SlotError, SlotId, VmId,
};
use model::vms::{BLOCK, GIB, SLOT, START, Space, Vms, frame, slot};
use stage2::{Ipa, Level, NoTlb, PAGE_SIZE, Pa};
use std::sync::Arc;

fn space(machine: &Vms, vm: usize, change: Change) -> Space {
    let backing = BackingPolicy {
        change,
        ..BackingPolicy::default()
    };
    machine.space(vm, backing)
}

/// Memory of VM 0.
fn anonymous(machine: &Vms, pages: u64, piece: Level) -> Arc<Object> {
    machine.anonymous(VmId::new(0).unwrap(), pages, piece)
}

/// An image of so many pages, each of which has its number plus 1 where guests look.
fn image(machine: &Vms, pages: u64) -> Arc<Object> {
    let page = |page: u64| (0..512).flat_map(move |_| (page + 1).to_ne_bytes());
    let bytes: Vec<u8> = (0..pages).flat_map(page).collect();
    Object::image(&machine.cpu, &bytes).unwrap()
}

#[test]
fn the_name_of_an_object_that_is_no_more_names_nothing() {
    let vms = Vms::new(256);
    let vm = VmId::new(0).unwrap();
    let names: Vec<_> = (0..9)
        .map(|_| vms.anonymous(vm, 1, Level::L3).id())
        .collect();
    for (index, name) in names.iter().enumerate() {
        assert!(!names[..index].contains(name), "{names:?}");
    }
    assert_eq!(
        names[0].to_string(),
        names[8].to_string(),
        "the place is the same"
    );
    // There are 8192 names for a place, which are given in turn. Whatever an object's is, its pages are found by it.
    for _ in 0..8192 - 9 {
        vms.anonymous(vm, 1, Level::L3);
    }
    let space = space(&vms, 0, Change::Direct);
    for name in &names[..2] {
        let object = vms.anonymous(vm, 1, Level::L3);
        assert_eq!(object.id(), *name);
        vms.map(&space, object.clone());
        vms.write(&space, 0, 7);
        assert!(object.migrate(&vms.cpu, 0));
        assert_eq!(vms.read(&space, 0), 7);
        space.remove_slot(&vms.cpu, SLOT).unwrap();
    }
    space.destroy(&vms.cpu);
    vms.check_nothing_is_left();
}

/// Whoever had it before has left something in every word, which would be a link in a table.
#[test]
fn memory_that_was_used_before_is_zeros_for_a_guest_and_empty_tables() {
    let all = arena::leak(6 * BLOCK as usize);
    for page in (all.start.get()..all.end.get()).step_by(PAGE_SIZE as usize) {
        // SAFETY: the memory is nobody else's.
        unsafe { write_bytes(Pa::new(page), &[0xa3; PAGE_SIZE as usize]) };
    }
    let pool: &FramePool = Box::leak(Box::new(FramePool::new()));
    // SAFETY: as above.
    unsafe { pool.add(all) };
    let system: &MemorySystem = Box::leak(Box::new(MemorySystem::new(pool, 1, 8).unwrap()));
    let counters = Box::leak(Box::default());
    let cpu = CpuMemory::new(system, 0, NoTlb, counters);
    let machine = Vms {
        cpu,
        counters,
        pool,
    };
    let space = space(&machine, 0, Change::Direct);
    let blocks = START.offset(BLOCK * PAGE_SIZE);
    let ahead = START.offset(2 * BLOCK * PAGE_SIZE);
    let block = BLOCK * PAGE_SIZE;
    machine.map(&space, anonymous(&machine, 8, Level::L3));
    let config = SlotConfig {
        id: SlotId(1),
        start: blocks,
        ..slot(anonymous(&machine, BLOCK, Level::L2))
    };
    space.map_object(&machine.cpu, config).unwrap();
    let added = space.add_slot(&machine.cpu, SlotId(2), ahead, block, Level::L2, false);
    added.unwrap();
    // Tables have room for all of the space.
    for ipa in (0..1 << 40).step_by(1 << 30) {
        assert_eq!(space.lookup(&machine.cpu, Ipa::new(ipa)), None, "{ipa:#x}");
    }
    let pages = [(1, Access::Read), (2, Access::Write)];
    let edges = [
        BLOCK,
        2 * BLOCK - 1,
        2 * BLOCK,
        2 * BLOCK + 7,
        3 * BLOCK - 1,
    ];
    for (page, access) in (pages.into_iter()).chain(edges.map(|page| (page, Access::Write))) {
        let (leaf, level, _) = machine.access(&space, page, access);
        let mut found = [1; PAGE_SIZE as usize];
        // SAFETY: the leaf maps memory of the arena, which backs the guest.
        unsafe { read_bytes(model::vms::frame(leaf, level, page), &mut found) };
        assert!(found.iter().all(|byte| *byte == 0), "page {page}");
    }
    assert_eq!(
        space.lookup(&machine.cpu, START.offset(3 * PAGE_SIZE)),
        None
    );
    space.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

#[test]
fn memory_that_cant_be_described_is_refused() {
    let machine = Vms::new(256);
    let vm = Owner::Vm(VmId::new(0).unwrap());
    let anonymous = |bytes, piece| Object::anonymous(&machine.cpu, vm, bytes, piece).map(drop);
    assert_eq!(anonymous(0, Level::L3), Err(ObjectError::Empty));
    for (level, piece) in [
        (Level::L3, 4 << 10),
        (Level::L2, 2 << 20),
        (Level::L1, 1 << 30),
    ] {
        let unaligned = Err(ObjectError::Unaligned { piece });
        for bytes in [1, piece / 2, piece - 1, piece + 1, 2 * piece + 8] {
            assert_eq!(anonymous(bytes, level), unaligned, "{bytes:#x}");
        }
    }
    let image = Object::image(&machine.cpu, &[]).map(drop);
    assert_eq!(image, Err(ObjectError::Empty));
    let at = arena::leak(2);
    // SAFETY: nobody uses the memory.
    let device = |range| unsafe { Object::device(&machine.cpu, range) }.map(drop);
    let unaligned = Err(ObjectError::Unaligned { piece: PAGE_SIZE });
    assert_eq!(device(at.start.offset(8)..at.end.offset(8)), unaligned);
    assert_eq!(device(at.start..at.end.offset(8)), unaligned);
    assert_eq!(device(at.end..at.start), Err(ObjectError::Empty));
    assert_eq!(device(at), Ok(()));
    machine.check_nothing_is_left();
}

#[test]
fn there_are_as_many_objects_as_there_are_names_for() {
    let machine = Vms::new(256);
    let mut objects: Vec<_> = (0..MAX_OBJECTS)
        .map(|_| anonymous(&machine, 1, Level::L3))
        .collect();
    let one_more = || Object::shared(&machine.cpu, PAGE_SIZE, Level::L3).map(|object| object.id());
    assert_eq!(one_more(), Err(ObjectError::TooMany));
    let space = space(&machine, 0, Change::Direct);
    let slot = space.add_slot(&machine.cpu, SLOT, START, PAGE_SIZE, Level::L3, false);
    assert_eq!(slot, Err(SlotError::Object(ObjectError::TooMany)));
    let gone = objects.swap_remove(MAX_OBJECTS / 2).id();
    let new = one_more().unwrap();
    assert_eq!(new.to_string(), gone.to_string(), "the place that is free");
    assert_ne!(new, gone);
    space.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

#[test]
fn memory_is_allocated_when_it_is_first_written_and_reads_as_zero_before() {
    let machine = Vms::new(1024);
    let space = space(&machine, 0, Change::Direct);
    machine.map(&space, anonymous(&machine, 64, Level::L3));
    assert_eq!(machine.guest(), 0);
    assert_eq!((machine.read(&space, 5), machine.read(&space, 6)), (0, 0));
    assert_eq!(machine.guest(), 0, "reading took a frame");
    let (zeros, ..) = machine.access(&space, 5, Access::Read);
    assert!(!zeros.writable() && !zeros.may_write());
    assert_eq!(
        machine.write(&space, 5, 55),
        1,
        "one fault for a page of zeros"
    );
    assert_eq!(
        machine.write(&space, 9, 99),
        1,
        "one fault for an untouched page"
    );
    assert_eq!(machine.guest(), 2);
    assert_eq!((machine.read(&space, 5), machine.read(&space, 6)), (55, 0));
    space.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

#[test]
fn a_slot_whose_faults_all_count_as_writes_never_maps_zeros() {
    let machine = Vms::new(1024);
    let space = space(&machine, 0, Change::Direct);
    let object = anonymous(&machine, 64, Level::L3);
    let config = SlotConfig {
        write_faults: true,
        ..slot(object.clone())
    };
    space.map_object(&machine.cpu, config).unwrap();
    assert_eq!(machine.read(&space, 3), 0);
    assert_eq!(machine.guest(), 1);
    assert_eq!(
        machine.write(&space, 3, 1),
        0,
        "the write took a fault of its own"
    );
    let faults = &machine.counters.faults;
    let populated = [&faults.populated, &faults.zeros, &faults.unshared].map(|count| count.get());
    assert_eq!(populated, [1, 0, 0], "in one step");
    // Where another slot of the same memory has mapped zeros, it has a frame as well.
    let other = machine.space(1, BackingPolicy::default());
    machine.map(&other, object);
    assert_eq!(machine.read(&other, 4), 0);
    assert_eq!(machine.guest(), 1);
    assert_eq!((machine.read(&space, 4), machine.guest()), (0, 2));
    assert_eq!(machine.write(&space, 4, 7), 0);
    assert_eq!(machine.read(&other, 4), 7);
    other.destroy(&machine.cpu);
    space.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

#[test]
fn large_pieces_are_mapped_by_blocks_and_smaller_ones_where_there_is_no_run() {
    let machine = Vms::new(2 * BLOCK as usize);
    let space = space(&machine, 0, Change::Direct);
    machine.map(&space, anonymous(&machine, 2 * BLOCK, Level::L2));
    let (_, level, _) = machine.access(&space, 17, Access::Read);
    assert_eq!((level, machine.guest()), (Level::L2, BLOCK));
    let (_, level, _) = machine.access(&space, BLOCK + 17, Access::Write);
    assert_eq!((level, machine.guest()), (Level::L3, BLOCK + 1));
    space.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

#[test]
fn no_block_reaches_beyond_its_slot_on_either_side() {
    let machine = Vms::new(4096);
    let space = space(&machine, 0, Change::Direct);
    let object = anonymous(&machine, 3 * BLOCK, Level::L2);
    // From the middle of the first block to the middle of the last.
    let (first, end) = (5, 2 * BLOCK + 7);
    let config = SlotConfig {
        start: START.offset(first * PAGE_SIZE),
        offset: first * PAGE_SIZE,
        bytes: (end - first) * PAGE_SIZE,
        ..slot(object)
    };
    space.map_object(&machine.cpu, config).unwrap();
    let is_mapped = |page: u64| {
        let ipa = START.offset(page * PAGE_SIZE);
        space.lookup(&machine.cpu, ipa).is_some()
    };
    for (page, expected) in [(first, Level::L3), (BLOCK, Level::L2), (end - 1, Level::L3)] {
        let (_, level, _) = machine.access(&space, page, Access::Write);
        assert_eq!(level, expected, "page {page}");
    }
    assert!(!is_mapped(first - 1) && !is_mapped(end));
    let from = START.offset(first * PAGE_SIZE);
    space.restore_blocks(&machine.cpu, SLOT, from).unwrap();
    assert!(!is_mapped(first - 1) && !is_mapped(end));
    space.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

#[test]
fn a_device_is_mapped_as_such_and_neither_read_nor_written_by_the_hypervisor() {
    let machine = Vms::new(1024);
    let space = space(&machine, 0, Change::Direct);
    let at = arena::leak(2);
    // SAFETY: nobody uses the memory.
    let device = unsafe { Object::device(&machine.cpu, at.clone()) }.unwrap();
    machine.map(&space, device);
    let (leaf, _, faults) = machine.access(&space, 1, Access::Write);
    assert_eq!((leaf.pa(), faults), (at.start.offset(PAGE_SIZE), 1));
    assert_eq!(leaf.memory(), stage2::MemoryType::DeviceNgnre);
    assert!(!Access::Execute.allowed_by(leaf));
    assert!(space.read_guest(&machine.cpu, START, &mut [0]).is_err());
    assert!(space.write_guest(&machine.cpu, START, &[0]).is_err());
    space.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

/// What lies behind the memory is nothing, or nobody's to write.
#[test]
fn the_hypervisor_writes_all_of_a_range_or_nothing_of_it() {
    let machine = Vms::new(1024);
    let space = space(&machine, 0, Change::Direct);
    machine.map(&space, anonymous(&machine, 2, Level::L3));
    let end = START.offset(2 * PAGE_SIZE);
    let across = START.offset(PAGE_SIZE - 8);
    let refused = |what| {
        let written = space.write_guest(&machine.cpu, across, &[7; PAGE_SIZE as usize + 9]);
        assert_eq!(written, Err(NotBacked::NoSlot { ipa: end }), "{what}");
        let mut found = [1; PAGE_SIZE as usize + 8];
        space.read_guest(&machine.cpu, across, &mut found).unwrap();
        assert!(found.iter().all(|byte| *byte == 0), "{what}");
    };
    refused("no slot");
    let config = SlotConfig {
        id: SlotId(1),
        start: end,
        read_only: true,
        ..slot(image(&machine, 1))
    };
    space.map_object(&machine.cpu, config).unwrap();
    refused("an image");
    space.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}
