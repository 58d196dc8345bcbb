//! VMs that may have only so many frames.

use super::*;

#[test]
fn a_cpu_is_woken_when_a_vm_comes_near_to_its_limit_and_no_fault_reclaims_if_it_is_in_time() {
    const LIMIT: u64 = 320;
    let marks = Watermarks::of(LIMIT);
    let machine = Machine::new(2000);
    let sleeper = machine.sleeper();
    let (small, other) = (
        machine.vm_of(0, 600, Level::L3),
        machine.vm_of(1, 600, Level::L3),
    );
    machine.pool.set_limit(vm(0), Some(LIMIT));
    let mut woken = 0;
    for page in 0..600 {
        machine.write(&small, page, page + 1).unwrap();
        machine.write(&other, page, page + 1).unwrap();
        let away = machine.pool.compressed_bytes(Owner::Vm(vm(0)));
        let used = machine.pool.counts_of(vm(0)).guest + away.div_ceil(PAGE_SIZE);
        assert!(used <= LIMIT);
        let is_woken = sleeper.is_woken();
        // It is allowed no more than one at a time by then.
        assert!(is_woken || used <= LIMIT - marks.low + 1, "page {page}");
        if is_woken {
            woken += 1;
            machine.idle_until_relieved();
        }
    }
    assert!((5..100).contains(&woken), "{woken}");
    let counters = machine.system.reclaim_counters();
    assert_eq!(counters.direct_steps.get(), 0);
    assert_eq!(machine.pool.counts_of(vm(1)).guest, 600, "nobody's limit");
    for page in 0..600 {
        assert_eq!(machine.read(&small, page), page + 1);
        assert_eq!(machine.read(&other, page), page + 1);
    }
    small.destroy(&machine.cpu);
    other.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn a_cpu_is_woken_when_blocks_have_taken_what_a_vm_may_have() {
    const LIMIT: u64 = 3 * BLOCK + 8;
    let machine = Machine::new(8 * BLOCK as usize);
    let sleeper = machine.sleeper();
    let space = machine.vm_of(0, 3 * BLOCK, Level::L2);
    machine.pool.set_limit(vm(0), Some(LIMIT));
    for block in 0..3 {
        machine.write(&space, block * BLOCK, 1).unwrap();
        assert_eq!(sleeper.is_woken(), block == 2, "block {block}");
    }
    assert!(machine.pool.free_frames() > WATERMARKS.high);
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

/// What a VM had is listed under a name that another one's memory has by now, and has to go when the VM has nothing.
#[test]
fn what_a_vm_has_let_go_of_is_no_other_one_s_to_compressed() {
    const HIGH: u64 = 1 << 40;
    let machine = Machine::new(600);
    let marks = Watermarks { low: 1, high: HIGH };
    machine.system.set_watermarks(Some(marks));
    let listed = |number| {
        let space = machine.vm_of(number, 8, Level::L3);
        (0..8).for_each(|page| machine.write(&space, page, 1 + page).unwrap());
        // All are found, and none has to go.
        (0..4).for_each(|_| assert!(!machine.cpu.relieve()));
        let name = space.object_of(&machine.cpu, SLOT).unwrap().id();
        (space, name.to_string())
    };
    let (first, name) = listed(0);
    first.destroy(&machine.cpu);
    let (other, same) = listed(1);
    assert_eq!((name, machine.system.listed_pages()), (same, (0, 16)));
    machine.pool.set_limit(vm(0), Some(0));
    while machine.cpu.relieve() {}
    let active_and_inactive = machine.system.listed_pages();
    assert_eq!(active_and_inactive, (0, 8), "the first one's are no more");
    assert_eq!(machine.system.compressed().pages, 0);
    (0..8).for_each(|page| assert_eq!(machine.read(&other, page), 1 + page));
    other.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn a_limit_holds_for_its_vm_and_for_no_other() {
    let machine = Machine::new(2000);
    let (small, other) = (
        machine.vm_of(0, 600, Level::L3),
        machine.vm_of(1, 600, Level::L3),
    );
    machine.pool.set_limit(vm(0), Some(200));
    for page in 0..600 {
        machine.write(&small, page, page + 1).unwrap();
        machine.write(&other, page, page + 1).unwrap();
        assert_eq!(machine.pool.over_limit(vm(0)), 0);
        assert!(machine.pool.counts_of(vm(0)).guest <= 200);
    }
    assert_eq!(machine.pool.counts_of(vm(1)).guest, 600);
    let compressed = machine.pool.compressed_bytes(Owner::Vm(vm(0)));
    assert!(compressed >= 400 * 128);
    assert_eq!(machine.pool.compressed_bytes(Owner::Vm(vm(1))), 0);
    for page in 0..600 {
        assert_eq!(machine.read(&small, page), page + 1);
        assert_eq!(machine.read(&other, page), page + 1);
    }
    // A limit that is set later is come to from idle CPUs.
    machine.pool.set_limit(vm(1), Some(300));
    assert!(machine.pool.over_limit(vm(1)) >= 300);
    machine.idle_until_relieved();
    assert_eq!(machine.pool.over_limit(vm(1)), 0);
    assert!((0..600).all(|page| machine.read(&other, page) == page + 1));
    small.destroy(&machine.cpu);
    other.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn a_limit_below_what_cannot_be_compressed_is_out_of_frames_for_its_vm_only() {
    let machine = Machine::new(1000);
    let (small, other) = (
        machine.vm_of(0, 600, Level::L3),
        machine.vm_of(1, 600, Level::L3),
    );
    machine.system.set_watermarks(None);
    machine.pool.set_limit(vm(0), Some(10));
    for page in 0..10 {
        machine.write(&small, page, 1).unwrap();
    }
    assert_eq!(machine.write(&small, 10, 1), Err(FaultOutcome::OutOfFrames));
    for page in 0..100 {
        machine.write(&other, page, 1).unwrap();
    }
    machine.pool.set_limit(vm(0), None);
    machine.write(&small, 10, 1).unwrap();
    small.destroy(&machine.cpu);
    other.destroy(&machine.cpu);
    machine.nothing_is_left();
}
