//! What other CPUs do in the middle of an operation, at a broadcast of its own that the test chooses: on real memory, step by
//! step. CPU 0 and guests act meanwhile, CPU 1 does what is interrupted; where that has to leave the epoch for the rest of
//! what happens, a thread is CPU 2.

use memory::frames::write_bytes;
use memory::{
    Access, BackingPolicy, Compacted, CpuMemory, Fault, FaultKind, FaultOutcome, LogPolicy,
    MergePolicy, Object, PageMerging, StoreCounts, Watermarks,
};
use model::in_place::AtBroadcasts;
use model::vms::{BLOCK, SLOT, START, Space, Vms, frame};
use stage2::{Ipa, IpaRange, Level, NoTlb, PAGE_SIZE};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

const CPUS: usize = 3;

fn at(page: u64) -> Ipa {
    START.offset(page * PAGE_SIZE)
}

fn pages(first: u64, count: u64) -> IpaRange {
    at(first)..at(first + count)
}

/// A VM with memory of its own, all of which its guest has written, from the last page to the first.
fn written(vms: &Vms, number: usize, pages: u64, piece: Level) -> (Space, Arc<Object>) {
    let space = vms.space(number, BackingPolicy::default());
    let object = vms.anonymous(space.vm(), pages, piece);
    vms.map(&space, object.clone());
    for page in (0..pages).rev() {
        vms.write(&space, page, 1 + page);
    }
    (space, object)
}

/// CPU 1, on which something happens at its broadcast of this number, counted from 0.
fn interrupted<F: Fn()>(
    vms: &Vms,
    broadcast: u64,
    happens: F,
) -> CpuMemory<AtBroadcasts<impl Fn()>> {
    let broadcasts = Cell::new(0);
    let hardware = AtBroadcasts(move || {
        if broadcasts.replace(broadcasts.get() + 1) == broadcast {
            happens();
        }
    });
    CpuMemory::new(vms.cpu.system(), 1, hardware, Box::leak(Box::default()))
}

/// Does `work` with a CPU 2 that makes a slot read-only when it is told to.
fn beside_a_slot_that_gets_read_only(vms: &Vms, space: &Space, work: impl FnOnce(Sender<()>)) {
    let system = vms.cpu.system();
    thread::scope(|scope| {
        let (begin, begins) = channel();
        scope.spawn(move || {
            let cpu = CpuMemory::new(system, 2, NoTlb, Box::leak(Box::default()));
            if begins.recv().is_ok() {
                space.set_read_only(&cpu, SLOT, true).unwrap();
            }
        });
        work(begin);
    });
}

/// Waits until faults find the slot read-only.
fn wait_for_read_only(vms: &Vms, space: &Space, page: u64) {
    let write = || vms.fault(space, at(page), Access::Write, FaultKind::Translation);
    while write() != FaultOutcome::NotPermitted {
        thread::yield_now();
    }
}

fn end<const N: usize>(vms: &Vms, spaces: [Space; N]) {
    spaces.into_iter().for_each(|space| space.destroy(&vms.cpu));
    vms.check_nothing_is_left();
}

/// A page moves by two broadcasts: of its right to be written, and of its frame.
#[test]
fn a_region_that_changes_while_it_moves_gives_back_what_it_has_not_used() {
    let last = BLOCK - 1;
    // One that hasn't moved yet is given up, or one that has.
    for (moving, gone) in [(0, 1), (0, last), (20, 40), (last - 1, last), (last, 0)] {
        let vms = Vms::with_cpus(4096, CPUS);
        let (space, object) = written(&vms, 0, BLOCK, Level::L3);
        let cpu = interrupted(&vms, 2 * moving, || {
            assert_eq!(space.balloon(&vms.cpu, pages(gone, 1)), Ok(1));
        });
        assert_eq!(object.compact_region(&cpu, 0), Compacted::Busy);
        cpu.wait_for_epoch();
        assert_eq!(vms.guest(), BLOCK - 1, "{gone} went while {moving} moved");
        for page in 0..BLOCK {
            let word = if page == gone { 0 } else { 1 + page };
            assert_eq!(vms.read(&space, page), word);
        }
        drop((object, cpu));
        end(&vms, [space]);
    }
}

/// What was found before a region moved isn't there any more: another slot has its place, or it is logged by now.
#[test]
fn no_block_is_made_for_a_slot_that_has_changed_while_its_pages_were_gathered() {
    for logged in [false, true] {
        let vms = Vms::with_cpus(8 * BLOCK as usize, CPUS);
        let (space, object) = written(&vms, 0, BLOCK, Level::L2);
        let child = vms.space(1, BackingPolicy::default());
        space.fork(&vms.cpu, &child).unwrap();
        (0..BLOCK).for_each(|page| assert_eq!(vms.write(&child, page, 1000 + page), 1));
        beside_a_slot_that_gets_read_only(&vms, &child, |begin| {
            let (child, vms) = (&child, &vms);
            let cpu = interrupted(vms, 0, move || {
                if logged {
                    let policy = LogPolicy::default();
                    child.enable_dirty_log(&vms.cpu, SLOT, &policy).unwrap();
                    return;
                }
                begin.send(()).unwrap();
                wait_for_read_only(vms, child, 5);
                while child.lookup(&vms.cpu, at(BLOCK - 1)).is_some() {
                    thread::yield_now();
                }
                // The guest goes on, and gets a table again.
                assert_eq!(vms.read(child, 5), 1005);
            });
            assert!(cpu.gather(), "it moves all the same");
            cpu.wait_for_epoch();
        });
        let (leaf, level) = child.lookup(&vms.cpu, at(5)).unwrap();
        assert_eq!((level, leaf.writable()), (Level::L3, false));
        assert_eq!(leaf.may_write(), logged);
        for page in 0..BLOCK {
            let words = [&space, &child].map(|space| vms.read(space, page));
            assert_eq!(words, [1 + page, 1000 + page]);
        }
        drop(object);
        end(&vms, [space, child]);
    }
}

/// Sixteen pages are given up at once.
#[test]
fn a_slot_that_gets_read_only_while_it_is_given_up_keeps_the_rest() {
    const PAGES: u64 = 64;
    let vms = Vms::with_cpus(1024, CPUS);
    let (space, object) = written(&vms, 0, PAGES, Level::L3);
    beside_a_slot_that_gets_read_only(&vms, &space, |begin| {
        let (space, vms) = (&space, &vms);
        let cpu = interrupted(vms, 0, move || {
            begin.send(()).unwrap();
            wait_for_read_only(vms, space, PAGES - 1);
        });
        assert_eq!(space.balloon(&cpu, pages(0, PAGES)), Ok(16));
    });
    for page in 0..PAGES {
        let word = if page < 16 { 0 } else { 1 + page };
        assert_eq!(vms.read(&space, page), word, "page {page}");
    }
    drop(object);
    end(&vms, [space]);
}

/// Nobody finds the other page of a frame at its old place while it is copied from there.
#[test]
fn a_frame_stays_where_it_is_while_one_of_its_pages_is_copied() {
    let vms = Vms::with_cpus(1024, CPUS);
    let (space, object) = written(&vms, 0, 1, Level::L3);
    let child = vms.space(1, BackingPolicy::default());
    space.fork(&vms.cpu, &child).unwrap();
    assert_eq!(vms.read(&child, 0), 1);
    let moved = Cell::new(None);
    let cpu = interrupted(&vms, 0, || {
        moved.set(Some(object.migrate(&vms.cpu, 0)));
    });
    let write = Fault {
        vcpu: 0,
        ipa: at(0),
        va: None,
        access: Access::Write,
        kind: FaultKind::Permission,
    };
    assert_eq!(child.fault(&cpu, &write), FaultOutcome::Resolved);
    assert_eq!(moved.get(), Some(false));
    assert_eq!(vms.write(&child, 0, 2), 0);
    assert!(object.migrate(&vms.cpu, 0), "it is the last one's");
    assert_eq!((vms.read(&space, 0), vms.read(&child, 0)), (1, 2));
    drop(cpu);
    drop(object);
    end(&vms, [space, child]);
}

/// A page that another CPU moves is passed over, and counted for ever.
#[test]
fn what_others_change_is_skipped_by_a_scan() {
    let vms = Vms::with_cpus(1024, CPUS);
    let (space, object) = written(&vms, 0, 4, Level::L3);
    let merging = PageMerging::new(MergePolicy::default());
    merging.add(&object).unwrap();
    let skipped = || merging.statistics().pages_skipped;
    let meanwhile = Cell::new((0, 0));
    let cpu = interrupted(&vms, 0, || {
        meanwhile.set((merging.scan(&vms.cpu, 3), skipped()));
    });
    assert!(object.migrate(&cpu, 1));
    assert_eq!(meanwhile.get(), (3, 1), "before the scan has ended");
    for scanned in [1, 4, 4] {
        assert_eq!((merging.scan(&vms.cpu, 4), skipped()), (scanned, 1));
    }
    drop(cpu);
    drop((merging, object));
    end(&vms, [space]);
}

/// Pages that merging compares when they are to be compressed, and that turn out to be different, are the next to go still.
#[test]
fn what_others_have_when_it_is_to_be_compressed_is_compressed_later() {
    const HIGH: u64 = 1 << 40;
    let vms = Vms::with_cpus(1024, CPUS);
    let (space, object) = written(&vms, 0, 2, Level::L3);
    (0..2).for_each(|page| _ = vms.write(&space, page, 7));
    let merging = PageMerging::new(MergePolicy::default());
    merging.add(&object).unwrap();
    let system = vms.cpu.system();
    let watermarks = |low| system.set_watermarks(Some(Watermarks { low, high: HIGH }));
    // Both are listed, and don't have to go yet.
    watermarks(1);
    assert!(!vms.cpu.relieve());
    assert_eq!(system.listed_pages(), (0, 2));
    let (leaf, level) = space.lookup(&vms.cpu, at(1)).unwrap();
    let cpu = interrupted(&vms, 0, || {
        // The guest writes by what its TLB holds until the invalidation is complete.
        // SAFETY: the leaf maps memory of the arena, which backs the guest.
        unsafe { write_bytes(frame(leaf, level, 1).offset(8), &[9]) };
        watermarks(HIGH);
        vms.cpu.relieve();
        assert_eq!(
            system.compressed(),
            StoreCounts::default(),
            "both are taken"
        );
    });
    (0..2).for_each(|_| assert_eq!(merging.scan(&cpu, 2), 2));
    assert_eq!(merging.statistics().pages_shared, 0);
    vms.cpu.relieve();
    assert_eq!(system.compressed().pages, 2);
    system.set_watermarks(None);
    assert_eq!((vms.read(&space, 0), vms.read(&space, 1)), (7, 9));
    drop((merging, object, cpu));
    end(&vms, [space]);
}
