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
    /// The guard of a fault.
    type Shared<'l>
    where
        Self: 'l;
    /// The guard of every other operation.
    type Exclusive<'l>
    where
        Self: 'l;

    /// For a fault.
    fn shared(&self) -> Self::Shared<'_>;

    /// For write protection, collapse, unmap.
    fn exclusive(&self) -> Self::Exclusive<'_>;
}

/// The exclusive side of some [`MmuLock`], for changes of several VMs' tables, which may use different modes.
pub(crate) trait Exclusion: Send + Sync {
    /// Runs `work` with the lock held exclusively, as every operation but a fault holds it.
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

/// Faults share a lock, all other operations hold it alone: as Linux KVM/arm64 does since 6.2.
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
