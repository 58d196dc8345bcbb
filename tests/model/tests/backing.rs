//! What backs guest memory changes under running guests: memory objects, copy-on-write, slots, on real memory, step by step.
#![cfg(not(loom))]
#![cfg(not(miri))]

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
    let config = SlotConfig {
        write_faults: true,
        ..slot(anonymous(&machine, 64, Level::L3))
    };
    space.map_object(&machine.cpu, config).unwrap();
    assert_eq!(machine.read(&space, 3), 0);
    assert_eq!(machine.guest(), 1);
    assert_eq!(
        machine.write(&space, 3, 1),
        0,
        "the write took a fault of its own"
    );
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
fn a_fork_shares_all_frames_and_either_side_copies_what_it_writes_in_one_fault() {
    for piece in [Level::L3, Level::L2, Level::L1] {
        // Of a gigabyte, too, the first pages are used.
        let rest = if piece == Level::L1 { GIB - BLOCK } else { 0 };
        let machine = Vms::new(8192 + rest as usize);
        let (parent, child) = (
            space(&machine, 0, Change::Direct),
            space(&machine, 1, Change::Direct),
        );
        machine.map(&parent, anonymous(&machine, BLOCK + rest, piece));
        for page in 0..BLOCK {
            machine.write(&parent, page, page + 1);
        }
        parent.fork(&machine.cpu, &child).unwrap();
        assert_eq!(machine.guest(), BLOCK + rest);
        assert_eq!(machine.pool.shared_frames(), BLOCK + rest);
        for page in 0..BLOCK {
            assert_eq!(machine.read(&child, page), page + 1);
        }
        for page in 0..BLOCK / 2 {
            assert_eq!(
                machine.write(&child, page, 1000 + page),
                1,
                "{piece:?} {page}"
            );
            assert_eq!(
                machine.write(&parent, page, 2000 + page),
                1,
                "{piece:?} {page}"
            );
        }
        for page in 0..BLOCK {
            let (mine, its) = match page < BLOCK / 2 {
                true => (2000 + page, 1000 + page),
                false => (page + 1, page + 1),
            };
            assert_eq!(machine.read(&parent, page), mine);
            assert_eq!(machine.read(&child, page), its);
        }
        assert_eq!(machine.guest(), rest + BLOCK + BLOCK / 2);
        assert_eq!(machine.pool.shared_frames(), rest + BLOCK / 2);
        parent.destroy(&machine.cpu);
        // What the parent had and the child didn't copy is the child's alone: no copy any more.
        assert_eq!(machine.write(&child, BLOCK - 1, 7), 1);
        assert_eq!(machine.guest(), BLOCK + rest);
        assert_eq!(machine.pool.shared_frames(), rest + BLOCK / 2 - 1);
        child.destroy(&machine.cpu);
        machine.check_nothing_is_left();
    }
}

#[test]
fn the_old_way_unmaps_and_takes_a_second_fault() {
    let machine = Vms::new(2048);
    let (parent, child) = (
        space(&machine, 0, Change::Unmap),
        space(&machine, 1, Change::Unmap),
    );
    machine.map(&parent, anonymous(&machine, 8, Level::L3));
    machine.write(&parent, 0, 1);
    parent.fork(&machine.cpu, &child).unwrap();
    assert_eq!(machine.read(&child, 0), 1);
    assert_eq!(machine.write(&child, 0, 2), 2);
    assert_eq!(
        machine.write(&parent, 0, 3),
        1,
        "the last one has it to itself"
    );
    assert_eq!((machine.read(&parent, 0), machine.read(&child, 0)), (3, 2));
    parent.destroy(&machine.cpu);
    child.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

#[test]
fn writes_to_shared_pages_are_logged() {
    let machine = Vms::new(4096);
    let (parent, child) = (
        space(&machine, 0, Change::Direct),
        space(&machine, 1, Change::Direct),
    );
    machine.map(&parent, anonymous(&machine, BLOCK, Level::L2));
    machine.write(&parent, 0, 1);
    let policy = LogPolicy::default();
    parent
        .enable_dirty_log(&machine.cpu, SLOT, &policy)
        .unwrap();
    parent.fork(&machine.cpu, &child).unwrap();
    for page in [3, 64, 511] {
        assert_eq!(machine.write(&parent, page, 5), 1);
    }
    let mut bitmap = [0; 8];
    parent
        .get_and_clear_dirty_log(&machine.cpu, SLOT, 0, &mut bitmap)
        .unwrap();
    assert_eq!(bitmap, [8, 1, 0, 0, 0, 0, 0, 1 << 63]);
    assert_eq!(machine.write(&parent, 3, 6), 1, "it was protected again");
    assert_eq!(machine.read(&child, 3), 0);
    parent.destroy(&machine.cpu);
    child.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

#[test]
fn what_the_hypervisor_writes_doesnt_show_in_a_fork() {
    let machine = Vms::new(4096);
    let (parent, child) = (
        space(&machine, 0, Change::Direct),
        space(&machine, 1, Change::Direct),
    );
    machine.map(&parent, anonymous(&machine, 8, Level::L3));
    machine.write(&parent, 1, 11);
    parent.fork(&machine.cpu, &child).unwrap();
    let at = |page: u64| START.offset(page * PAGE_SIZE);
    let bytes = [1; 2 * PAGE_SIZE as usize];
    child.write_guest(&machine.cpu, at(1), &bytes).unwrap();
    assert_eq!(machine.read(&parent, 1), 11);
    assert_eq!(machine.read(&child, 2), 0x0101_0101_0101_0101);
    let mut back = [0; 2 * PAGE_SIZE as usize];
    child.read_guest(&machine.cpu, at(1), &mut back).unwrap();
    assert_eq!(back, bytes);
    parent
        .read_guest(&machine.cpu, at(2), &mut back[..8])
        .unwrap();
    assert_eq!(back[..8], [0; 8]);
    parent.destroy(&machine.cpu);
    child.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

#[test]
fn an_image_is_one_copy_for_all_and_read_only() {
    let machine = Vms::new(1024);
    let image = Object::image(&machine.cpu, &[7; 5000]).unwrap();
    let spaces = [0, 1].map(|vm| space(&machine, vm, Change::Direct));
    let config = slot(image.clone());
    let refused = spaces[0].map_object(&machine.cpu, config.clone());
    assert_eq!(refused, Err(SlotError::ReadOnlyObject(image.id())));
    for space in &spaces {
        let read_only = SlotConfig {
            read_only: true,
            ..config.clone()
        };
        space.map_object(&machine.cpu, read_only).unwrap();
        assert_eq!(machine.read(space, 0), 0x0707_0707_0707_0707);
        let outcome = machine.fault(space, START, Access::Write, FaultKind::Permission);
        assert_eq!(outcome, FaultOutcome::NotPermitted);
        assert!(space.write_guest(&machine.cpu, START, &[1]).is_err());
    }
    assert_eq!(machine.guest(), 2);
    drop((image, config));
    spaces
        .into_iter()
        .for_each(|space| space.destroy(&machine.cpu));
    machine.check_nothing_is_left();
}

/// An image of so many pages, each of which has its number plus 1 where guests look.
fn image(machine: &Vms, pages: u64) -> Arc<Object> {
    let page = |page: u64| (0..512).flat_map(move |_| (page + 1).to_ne_bytes());
    let bytes: Vec<u8> = (0..pages).flat_map(page).collect();
    Object::image(&machine.cpu, &bytes).unwrap()
}

#[test]
fn vms_that_begin_with_an_image_share_its_frames_until_they_write() {
    const AT: u64 = 3;
    const PAGES: u64 = 5;
    for piece in [Level::L3, Level::L2] {
        let machine = Vms::new(8192);
        let image = image(&machine, PAGES);
        assert_eq!((machine.guest(), image.sharers()), (PAGES, 0));
        let spaces = [0, 1].map(|vm| {
            let space = space(&machine, vm, Change::Direct);
            let account = Owner::Vm(space.vm());
            let (bytes, at) = (2 * BLOCK * PAGE_SIZE, AT * PAGE_SIZE);
            let object = Object::with_image(&machine.cpu, account, bytes, piece, &image, at);
            machine.map(&space, object.unwrap());
            space
        });
        let [one, other] = &spaces;
        assert_eq!(machine.guest(), PAGES + 2 * (2 * BLOCK - PAGES));
        assert_eq!(machine.pool.shared_frames(), PAGES);
        assert_eq!(image.sharers(), 2 * PAGES);
        for space in &spaces {
            assert_eq!(machine.read(space, AT - 1), 0);
            (0..PAGES).for_each(|page| assert_eq!(machine.read(space, AT + page), page + 1));
            assert_eq!(machine.read(space, AT + PAGES), 0);
            let (_, level, _) = machine.access(space, BLOCK + 7, Access::Write);
            assert_eq!(level, piece, "what the image doesn't touch is as it was");
        }
        assert_eq!(machine.write(one, AT + 2, 77), 1);
        let wrote = [one, other].map(|space| machine.read(space, AT + 2));
        assert_eq!(wrote, [77, 3]);
        assert_eq!(image.sharers(), 2 * PAGES - 1);
        assert_eq!(machine.write(one, AT - 1, 5), 0);
        // A fork shares the image's frames too.
        let child = space(&machine, 2, Change::Direct);
        other.fork(&machine.cpu, &child).unwrap();
        assert_eq!(image.sharers(), 3 * PAGES - 1);
        assert_eq!(machine.write(&child, AT, 88), 1);
        assert_eq!((machine.read(other, AT), machine.read(one, AT)), (1, 1));
        child.destroy(&machine.cpu);
        assert_eq!(image.sharers(), 2 * PAGES - 1);
        drop(image);
        let [one, other] = spaces;
        other.destroy(&machine.cpu);
        // The last one that has them needs no copies.
        let before = machine.guest();
        assert_eq!(machine.write(&one, AT, 99), 1);
        assert_eq!(
            (machine.guest(), machine.pool.shared_frames()),
            (before, PAGES - 2)
        );
        one.destroy(&machine.cpu);
        machine.check_nothing_is_left();
    }
}

#[test]
fn an_image_that_doesnt_lie_in_the_memory_at_a_page_is_refused() {
    let machine = Vms::new(1024);
    let image = image(&machine, 3);
    let with = |bytes, at| {
        let account = Owner::Vm(VmId::new(0).unwrap());
        Object::with_image(&machine.cpu, account, bytes, Level::L3, &image, at)
            .map(drop)
            .unwrap_err()
    };
    let unaligned = ObjectError::Unaligned { piece: PAGE_SIZE };
    assert_eq!(with(8 * PAGE_SIZE, 8), unaligned);
    assert_eq!(
        with(4 * PAGE_SIZE, 2 * PAGE_SIZE),
        ObjectError::ImageBeyondEnd
    );
    let top = PAGE_SIZE.wrapping_neg();
    assert_eq!(with(4 * PAGE_SIZE, top), ObjectError::ImageBeyondEnd);
    let out_of_memory = ObjectError::OutOfMemory { bytes: 4 << 20 };
    assert_eq!(with(4 << 20, PAGE_SIZE), out_of_memory);
    assert_eq!(
        (machine.guest(), image.sharers()),
        (3, 0),
        "nothing is left of them"
    );
    drop(image);
    machine.check_nothing_is_left();
}

#[test]
fn with_any_number_of_frames_memory_begins_with_an_image_or_nothing_is_left_of_it() {
    const PAGES: u64 = 3;
    let mut made = 0;
    for frames in 0..160 {
        let machine = Vms::new(frames);
        let Ok(image) = Object::image(&machine.cpu, &[1; (PAGES * PAGE_SIZE) as usize]) else {
            machine.check_nothing_is_left();
            continue;
        };
        let account = Owner::Vm(VmId::new(0).unwrap());
        let (bytes, at) = (24 * PAGE_SIZE, 2 * PAGE_SIZE);
        match Object::with_image(&machine.cpu, account, bytes, Level::L3, &image, at) {
            Ok(object) => {
                assert_eq!((machine.guest(), image.sharers()), (24, PAGES));
                drop(image);
                assert_eq!((machine.guest(), object.sharers()), (24, 0));
                made += 1;
            }
            Err(error) => {
                assert_eq!(error, ObjectError::OutOfMemory { bytes });
                assert_eq!((machine.guest(), image.sharers()), (PAGES, 0));
                drop(image);
            }
        }
        machine.check_nothing_is_left();
    }
    assert!((1..100).contains(&made), "{made}");
}

/// A VM with a slot of each kind: its own memory, shared memory, an image, a device.
#[test]
fn a_fork_has_its_own_copy_of_its_parents_memory_and_the_very_same_of_all_else() {
    const SHARED: u64 = 16;
    const IMAGE: u64 = 32;
    const DEVICE: u64 = 48;
    let machine = Vms::new(1024);
    let (parent, child) = (
        space(&machine, 0, Change::Direct),
        space(&machine, 1, Change::Direct),
    );
    let at = arena::leak(2);
    let shared = Object::shared(&machine.cpu, 8 * PAGE_SIZE, Level::L3).unwrap();
    // SAFETY: nobody uses the memory.
    let device = unsafe { Object::device(&machine.cpu, at.clone()) }.unwrap();
    let own = anonymous(&machine, 8, Level::L3);
    for (number, page, object) in [
        (0, 0, own.clone()),
        (1, SHARED, shared),
        (2, IMAGE, image(&machine, 2)),
        (3, DEVICE, device),
    ] {
        let config = SlotConfig {
            id: SlotId(number),
            start: START.offset(page * PAGE_SIZE),
            read_only: number == 2,
            // Of memory, all but the first page.
            offset: if number < 2 { PAGE_SIZE } else { 0 },
            bytes: object.bytes() - if number < 2 { PAGE_SIZE } else { 0 },
            ..slot(object)
        };
        parent.map_object(&machine.cpu, config).unwrap();
    }
    // The same memory a second time, elsewhere, only to be read.
    let again = SlotConfig {
        id: SlotId(4),
        start: START.offset(64 * PAGE_SIZE),
        read_only: true,
        ..slot(own)
    };
    parent.map_object(&machine.cpu, again).unwrap();
    machine.write(&parent, 0, 1);
    machine.write(&parent, SHARED, 2);
    parent.fork(&machine.cpu, &child).unwrap();

    machine.write(&child, 0, 11);
    assert_eq!((machine.read(&parent, 0), machine.read(&child, 0)), (1, 11));
    assert_eq!(
        machine.read(&child, 65),
        11,
        "both of its slots have one copy"
    );
    assert_eq!(machine.read(&parent, 65), 1);
    for (writer, reader, word) in [(&parent, &child, 3), (&child, &parent, 4)] {
        machine.write(writer, SHARED, word);
        machine.write(writer, SHARED + 6, word + 10);
        let words = [SHARED, SHARED + 6].map(|page| machine.read(reader, page));
        assert_eq!(words, [word, word + 10], "a write isn't seen by the other");
    }
    for space in [&parent, &child] {
        assert_eq!(machine.read(space, IMAGE + 1), 2);
        for page in [IMAGE, 64] {
            let ipa = START.offset(page * PAGE_SIZE);
            let outcome = machine.fault(space, ipa, Access::Write, FaultKind::Permission);
            assert_eq!(outcome, FaultOutcome::NotPermitted);
        }
        let (leaf, ..) = machine.access(space, DEVICE + 1, Access::Write);
        assert_eq!(leaf.pa(), at.start.offset(PAGE_SIZE));
        assert_eq!(leaf.memory(), stage2::MemoryType::DeviceNgnre);
    }
    parent.destroy(&machine.cpu);
    assert_eq!(
        (machine.read(&child, 0), machine.read(&child, SHARED)),
        (11, 4)
    );
    child.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

#[test]
fn a_fork_that_fails_leaves_the_child_without_slots() {
    const AT: u64 = 16;
    let machine = Vms::new(1024);
    let [parent, child] = [0, 1].map(|vm| space(&machine, vm, Change::Direct));
    for number in 0..2 {
        let config = SlotConfig {
            id: SlotId(number),
            start: START.offset(u64::from(number) * AT * PAGE_SIZE),
            ..slot(anonymous(&machine, 8, Level::L3))
        };
        parent.map_object(&machine.cpu, config).unwrap();
        machine.write(&parent, u64::from(number) * AT, 10);
    }
    // There is a name for one copy, and not for the other.
    let mut others: Vec<_> = (3..MAX_OBJECTS)
        .map(|_| anonymous(&machine, 1, Level::L3))
        .collect();
    let forked = parent.fork(&machine.cpu, &child);
    assert_eq!(forked, Err(SlotError::Object(ObjectError::TooMany)));
    for id in [0, 1].map(SlotId) {
        let object = child.object_of(&machine.cpu, id).map(drop);
        assert_eq!(object, Err(SlotError::Unknown(id)));
    }
    assert_eq!(machine.guest(), 2);
    machine.write(&parent, 0, 11);
    others.clear();
    parent.fork(&machine.cpu, &child).unwrap();
    machine.write(&parent, 0, 12);
    let words = [0, AT].map(|page| machine.read(&child, page));
    assert_eq!((words, machine.read(&parent, 0)), ([11, 10], 12));
    child.destroy(&machine.cpu);
    parent.destroy(&machine.cpu);
    machine.check_nothing_is_left();
}

#[test]
fn shared_memory_is_the_same_in_all_vms_also_in_a_fork() {
    let machine = Vms::new(1024);
    let spaces = [0, 1, 2].map(|vm| space(&machine, vm, Change::Direct));
    let bytes = 16 * PAGE_SIZE;
    let object = Object::shared(&machine.cpu, bytes, Level::L3).unwrap();
    machine.map(&spaces[0], object.clone());
    machine.map(&spaces[1], object);
    spaces[1].fork(&machine.cpu, &spaces[2]).unwrap();
    machine.write(&spaces[2], 3, 33);
    assert!(spaces.iter().all(|space| machine.read(space, 3) == 33));
    assert_eq!(machine.guest(), 1);
    spaces
        .into_iter()
        .for_each(|space| space.destroy(&machine.cpu));
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
    space.remove_slot(&machine.cpu, SLOT).unwrap();
    assert_eq!(space.lookup(&machine.cpu, at), None);
    assert_eq!(machine.guest(), 0);
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
