//! Memory that several VMs have: forks, images, shared memory.

use super::*;

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

/// As operating systems start: kernel and ramdisk are shared, and all else is allocated when it is touched.
#[test]
fn memory_that_is_allocated_at_first_touch_begins_with_several_images() {
    let machine = Vms::new(4096);
    let (kernel, ramdisk) = (image(&machine, 3), image(&machine, 2));
    let bytes = 2 * BLOCK * PAGE_SIZE;
    let with = |vm: u16, ramdisk_at: u64| {
        let account = Owner::Vm(VmId::new(vm.into()).unwrap());
        let images = [(&*kernel, PAGE_SIZE), (&*ramdisk, ramdisk_at * PAGE_SIZE)];
        Object::with_images(&machine.cpu, account, bytes, Level::L2, &images)
    };
    let spaces = [0, 1].map(|vm| {
        let space = space(&machine, vm, Change::Direct);
        machine.map(&space, with(vm as u16, 4).unwrap());
        space
    });
    let [one, other] = &spaces;
    assert_eq!((machine.guest(), machine.pool.shared_frames()), (5, 5));
    for space in &spaces {
        let content = (0..7).map(|page| machine.read(space, page));
        assert_eq!(content.collect::<Vec<_>>(), [0, 1, 2, 3, 1, 2, 0]);
    }
    assert_eq!(machine.guest(), 5, "only read");
    machine.write(one, 4, 77);
    machine.write(one, 0, 78);
    assert_eq!((machine.read(other, 4), machine.read(other, 0)), (1, 0));
    assert_eq!((machine.read(one, 4), machine.read(one, 0)), (77, 78));
    assert_eq!(machine.guest(), 5 + 2);
    let (_, level, _) = machine.access(one, BLOCK, Access::Write);
    assert_eq!(level, Level::L2, "what no image touches is a block");
    for at in [0, 1, 2, 3] {
        let overlap = with(2, at).map(drop);
        assert_eq!(overlap, Err(ObjectError::ImagesOverlap), "{at}");
    }
    let beyond = with(2, 2 * BLOCK - 1).map(drop);
    assert_eq!(beyond, Err(ObjectError::ImageBeyondEnd));
    spaces
        .into_iter()
        .for_each(|space| space.destroy(&machine.cpu));
    assert_eq!(machine.guest(), 5);
    drop((kernel, ramdisk));
    machine.check_nothing_is_left();
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
