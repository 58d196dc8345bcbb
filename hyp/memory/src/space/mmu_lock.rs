//! The MMU lock that Parvisor doesn't need: kept as a baseline, to compare how faults and changes of one VM's tables exclude
//! each other.
//!
//! All three modes run the same engine. The mode is a type parameter of [`AddressSpace`](crate::AddressSpace), so that
//! [`Parallel`] doesn't even contain a branch for it.

use spin::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// How operations on one VM's stage 2 exclude each other.
pub trait MmuLock: Default + Send + Sync + 'static {
    /// The mode's name in options, result lines and records.
    const NAME: &'static str;
    /// What a fault holds.
    type Shared<'l>
    where
        Self: 'l;
    /// What every other operation holds.
    type Exclusive<'l>
    where
        Self: 'l;

    /// For a fault.
    fn shared(&self) -> Self::Shared<'_>;

    /// For write protection, collapse, unmap.
    fn exclusive(&self) -> Self::Exclusive<'_>;
}

/// The exclusive side of some [`MmuLock`], for whoever changes tables of VMs that needn't be of one mode.
pub(crate) trait Exclusion: Send + Sync {
    /// Does `work` with the lock held as every operation but a fault holds it.
    fn exclusively(&self, work: &mut dyn FnMut());
}

impl<L: MmuLock> Exclusion for L {
    fn exclusively(&self, work: &mut dyn FnMut()) {
        let _lock = self.exclusive();
        work();
    }
}

/// No lock: everything at once.
#[derive(Debug, Default)]
pub struct Parallel;

impl MmuLock for Parallel {
    const NAME: &'static str = "parallel";
    type Shared<'l> = ();
    type Exclusive<'l> = ();

    fn shared(&self) -> Self::Shared<'_> {}

    fn exclusive(&self) -> Self::Exclusive<'_> {}
}

/// Faults share a lock, the rest holds it alone: what Linux KVM/arm64 does since 6.2.
#[derive(Debug, Default)]
pub struct RwLocked(RwLock<()>);

impl MmuLock for RwLocked {
    const NAME: &'static str = "rwlock";
    type Shared<'l> = RwLockReadGuard<'l, ()>;
    type Exclusive<'l> = RwLockWriteGuard<'l, ()>;

    fn shared(&self) -> Self::Shared<'_> {
        self.0.read()
    }

    fn exclusive(&self) -> Self::Exclusive<'_> {
        self.0.write()
    }
}

/// Everything under one lock: what Linux KVM/arm64 did before 6.2, where only relaxing a permission shared it.
#[derive(Debug, Default)]
pub struct Mutexed(Mutex<()>);

impl MmuLock for Mutexed {
    const NAME: &'static str = "mutex";
    type Shared<'l> = MutexGuard<'l, ()>;
    type Exclusive<'l> = MutexGuard<'l, ()>;

    fn shared(&self) -> Self::Shared<'_> {
        self.0.lock()
    }

    fn exclusive(&self) -> Self::Exclusive<'_> {
        self.0.lock()
    }
}
