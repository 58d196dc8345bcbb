//! Memory limits of VMs, and counts of what each VM has compressed.
//!
//! A fault that takes a frame for a VM with a limit spends its CPU's allowance, in a cache line that no other CPU writes. An
//! allowance counts as used memory. It is renewed under the pool's lock ([`FramePool::renew_allowance`]), where the VM's whole
//! use is added up. So the limit is exact, but for a frame that changes owner during the addition.
//!
//! [`FramePool::renew_allowance`]: crate::frames::FramePool::renew_allowance

use crate::frames::{MAX_VMS, OWNERS, Owner, VmId};
use core::sync::atomic::{AtomicU64, Ordering};
use stage2::PAGE_SIZE;

/// The limit of a VM that may use all frames.
const NONE: u64 = u64::MAX;
/// The most frames of one CPU's allowance.
const ALLOWED_AT_ONCE: u64 = 32;
/// The share of the remaining frames that one CPU gets, so that the last frames aren't all with CPUs that don't need them.
const SHARE: u64 = 8;

/// The limits of all VMs. Faults read them; they are written when somebody sets one.
pub(super) struct Limits {
    most: [AtomicU64; MAX_VMS],
    /// By owner, in bytes. Written when memory is compressed or decompressed, in cache lines that no fault reads otherwise.
    compressed: Compressed,
}

#[repr(align(128))]
struct Compressed([AtomicU64; OWNERS]);

impl Limits {
    pub(super) const fn new() -> Self {
        Self {
            most: [const { AtomicU64::new(NONE) }; MAX_VMS],
            compressed: Compressed([const { AtomicU64::new(0) }; OWNERS]),
        }
    }

    #[inline]
    pub(super) fn is_limited(&self, vm: VmId) -> bool {
        self.most[vm.number()].load(Ordering::Relaxed) != NONE
    }

    pub(super) fn set(&self, vm: VmId, frames: Option<u64>) {
        self.most[vm.number()].store(frames.unwrap_or(NONE), Ordering::Relaxed);
    }

    pub(super) fn get(&self, vm: VmId) -> Option<u64> {
        let most = self.most[vm.number()].load(Ordering::Relaxed);
        (most != NONE).then_some(most)
    }

    /// How many frames more a VM that uses `used` may have.
    pub(super) fn room(&self, vm: VmId, used: u64) -> u64 {
        self.most[vm.number()]
            .load(Ordering::Relaxed)
            .saturating_sub(used)
    }

    pub(super) fn compressed(&self, owner: Owner) -> u64 {
        self.compressed.0[owner.index()].load(Ordering::Relaxed)
    }

    pub(super) fn charge_compressed(&self, owner: Owner, bytes: u64) {
        self.compressed.0[owner.index()].fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn discharge_compressed(&self, owner: Owner, bytes: u64) {
        self.compressed.0[owner.index()].fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A CPU's allowance out of `room` frames.
pub(super) fn allowance(room: u64) -> u64 {
    (room / SHARE).clamp(1, ALLOWED_AT_ONCE).min(room)
}

/// Bytes in frames, as counted towards a limit.
pub(super) fn in_frames(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_SIZE)
}
