//! The memory system of suites that run real address spaces under the model checker: one pool for all executions, whose
//! frames, caches and epochs are the real ones. What isn't the checker's (the pool's lock, the epoch's own state) is not
//! reordered by it, but every order of the steps around it is tried.

use super::CPUS;
use memory::frames::{FramePool, arena};
use memory::{AddressSpace, CpuMemory, MemorySystem, Parallel, VmId};
use stage2::VmidAllocator;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Of so many executions one is followed by a look at what is left of it and those before.
const CHECKED: usize = 64;

/// A VM's memory.
pub type Space = AddressSpace<Parallel>;

/// The frames. Tests that use them run one at a time ([`alone`](super::alone)).
pub static POOL: FramePool = FramePool::new();

/// The memory system of all executions.
pub fn system() -> &'static MemorySystem {
    static SYSTEM: OnceLock<MemorySystem> = OnceLock::new();
    SYSTEM.get_or_init(|| {
        // SAFETY: the arena is leaked, and added once.
        unsafe { POOL.add(arena::leak(2048)) };
        // Not by way of a Result: the model checker's threads have little stack.
        MemorySystem::with_vmids(&POOL, CPUS, VmidAllocator::new(CPUS, 8).unwrap())
    })
}

/// CPU `number`, with these TLBs and caches.
pub fn cpu_with<T>(number: usize, hardware: T) -> CpuMemory<T> {
    CpuMemory::new(system(), number, hardware, Box::leak(Box::default()))
}

/// The VM of this number.
pub fn vm_id(vm: usize) -> VmId {
    VmId::new(vm).unwrap()
}

/// Checks that every frame has come back, and every charge is undone, after all executions.
pub fn nothing_is_left(vms: usize) {
    nothing_is_left_of(vms);
    assert_eq!(POOL.counts().guest, 0, "frames that back nothing leaked");
}

/// Checks that every frame has come back from the first VMs.
fn nothing_is_left_of(vms: usize) {
    for vm in 0..vms {
        let counts = POOL.counts_of(vm_id(vm));
        assert!(counts.is_zero(), "VM {vm} has {counts:?} left");
    }
    assert_eq!(POOL.shared_frames(), 0, "shared frames leaked");
}

/// [`nothing_is_left`] of the VMs after some executions. What leaks stays away, and adding up all CPUs that there ever
/// were takes longer and longer.
pub fn nothing_is_left_so_far(vms: usize) {
    static EXECUTIONS: AtomicUsize = AtomicUsize::new(0);
    if EXECUTIONS
        .fetch_add(1, Ordering::Relaxed)
        .is_multiple_of(CHECKED)
    {
        nothing_is_left_of(vms);
    }
}
