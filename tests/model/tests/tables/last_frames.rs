//! What needs more frames than there are left ends with a word of that: nothing tries for ever.

use memory::frames::{FrameSize, Purpose};
use memory::{
    Access, BackingPolicy, Fault, FaultKind, FaultOutcome, LogPolicy, NotPopulated, Owner, VmId,
};
use model::vms::{BLOCK, GIB, SLOT, START, Vms};
use stage2::{Level, PAGE_SIZE};

/// More often than a fault is tried again by chance.
const TRIES: usize = 8;
/// Pages that a VM may have.
const LIMIT: u64 = 64;
/// What a test takes out of the pool, frame by frame.
const HELD: (FrameSize, Owner, Purpose) = (FrameSize::Page4K, Owner::Hypervisor, Purpose::Heap);

#[test]
fn the_hypervisor_writes_to_a_vm_that_has_a_limit() {
    let machine = Vms::new(512);
    let space = machine.space(0, BackingPolicy::default());
    machine.map(&space, machine.anonymous(space.vm(), 2 * LIMIT, Level::L3));
    let vm = VmId::new(0).unwrap();
    machine.pool.set_limit(vm, Some(LIMIT));
    let write = |page: u64| {
        let at = START.offset(page * PAGE_SIZE);
        space.write_guest(&machine.cpu, at, &[1]).is_ok()
    };
    assert!((0..LIMIT).all(write));
    assert!(!write(LIMIT), "it has all that it may have");
    assert!(write(0), "it has that page already");
}

#[test]
fn a_split_that_takes_two_frames_is_refused_when_one_is_left() {
    let machine = Vms::new((GIB + 64 * BLOCK) as usize);
    let space = machine.space(0, BackingPolicy::default());
    machine.map(&space, machine.anonymous(space.vm(), GIB, Level::L1));
    machine.write(&space, 0, 5);
    let other = machine.space(1, BackingPolicy::default());
    machine.map(&other, machine.anonymous(other.vm(), BLOCK, Level::L3));
    machine.write(&other, 0, 5);
    let policy = LogPolicy::default();
    (space.enable_dirty_log(&machine.cpu, SLOT, &policy)).unwrap();
    let mut rest = Vec::new();
    let (size, owner, purpose) = HELD;
    while let Some(frame) = machine.pool.allocate(size, owner, purpose) {
        rest.push(frame);
    }
    let mut page = 1;
    while machine.counts().cached > 1 {
        machine.write(&other, page, 5);
        page += 1;
    }
    let fault = Fault {
        vcpu: 0,
        ipa: START,
        va: None,
        access: Access::Write,
        kind: FaultKind::Permission,
    };
    let outcomes = (0..TRIES).map(|_| space.fault(&machine.cpu, &fault));
    assert_eq!(outcomes.last(), Some(FaultOutcome::OutOfFrames));
    let page = START..START.offset(PAGE_SIZE);
    let populated = space.prefault(&machine.cpu, 0, page, Access::Write);
    assert_eq!(populated.unwrap_err().reason, NotPopulated::OutOfFrames);
    // With one more there are enough.
    machine.pool.free(rest.pop().unwrap(), size, owner, purpose);
    let mut outcomes = (0..TRIES).map(|_| space.fault(&machine.cpu, &fault));
    assert!(outcomes.any(|outcome| outcome == FaultOutcome::Resolved));
}
