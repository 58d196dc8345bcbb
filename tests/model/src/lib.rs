//! Machines for the stage-2 engine that a test can watch.
//!
//! [`Machine`] has simple TLBs and is for tests of one operation after the other; `checked` holds what loom runs on.
//! [`System`] is the machine model: CPUs with real TLB instructions and barriers, TLBs that hold all that the architecture
//! lets them, hardware that updates entries on its own, and a checker (the `checker` crate) that names the rule that is
//! broken. It runs under random schedules that replay from a seed ([`explore`]). [`Mmu`] is a simpler one that threads of
//! the host run on as well, with real memory behind it; [`vms`] has VMs on real memory, step by step, and [`watched`] has
//! them under the checker; [`in_place`] is what tests bring beside those. Random operations come from [`strategies`].
//! [`interrupts`] has the virtual CPU interface of a GIC.

#[cfg(loom)]
pub mod checked;
mod frames;
mod ground;
pub mod in_place;
pub mod interrupts;
mod operation;
mod plain;
mod reference;
mod replay;
mod survey;

#[cfg(not(loom))]
mod cpu;
#[cfg(not(loom))]
mod epochs;
#[cfg(not(loom))]
mod guest;
#[cfg(not(loom))]
mod mmu;
#[cfg(not(loom))]
mod schedule;
#[cfg(not(loom))]
pub mod strategies;
#[cfg(not(loom))]
mod system;
#[cfg(not(loom))]
pub mod vms;
#[cfg(not(loom))]
pub mod watched;

pub use frames::{Frames, Retired, Supply};
pub use ground::{Backing, Ground, Span, real_grounds, small_grounds};
pub use operation::{Filter, Mapped, OnWrite, Operation, Report, perform};
pub use plain::{CpuTlb, Invalidation, Machine, Tlbs};
pub use reference::Reference;
pub use replay::{Replay, assert_same_leaves};
pub use survey::Survey;

#[cfg(not(loom))]
pub use {
    cpu::Cpu,
    guest::Outcome,
    mmu::{Hardware, Mmu},
    schedule::{choose, explore, pause},
    system::{System, WatchedFrames},
};

use stage2::{
    Access, Attributes, Ipa, Level, OnBlock, PAGE_SIZE, Pa, Permissions, Request, Resolution,
    Stage2,
};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What backs guest addresses in these tests: an address far above them, so that the two can't be mixed up.
pub const BACKING: u64 = 0x40_0000_0000;

/// The frame behind `ipa`.
pub const fn backing_of(ipa: Ipa) -> Pa {
    Pa::new(BACKING + ipa.get())
}

/// A request as the owner of the memory would make it: blocks of `largest`, writes logged or not.
pub fn request(ipa: Ipa, access: Access, largest: Level, logged: bool) -> Request {
    let permissions = match (logged, access) {
        (true, Access::Read | Access::Execute) => Permissions::LOGGED,
        _ => Permissions::RAM,
    };
    Request {
        ipa,
        va: None,
        access,
        pa: backing_of(ipa.align_down(PAGE_SIZE)),
        largest: if logged { Level::L3 } else { largest },
        attributes: Attributes::memory(permissions),
        largest_written: if logged { Level::L3 } else { Level::L0 },
        on_block: OnBlock::Split,
    }
}

/// How a fault of this machine ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Served {
    /// Mapped where nothing was.
    Mapped,
    /// Made writable at this level.
    Relaxed(Level),
    /// A block was split.
    Split,
    /// Its access flag was set.
    Accessed,
    /// Nothing to do.
    Spurious,
    /// To be tried again.
    Again,
    /// Refused.
    NotPermitted,
    /// No frame.
    OutOfFrames,
    /// Beyond the IPA space.
    NotInSpace,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves what is left of a fault after the engine's part, as the owner of the memory does.
fn serve(stage2: &Stage2, request: &Request, resolution: Resolution<'_>) -> Served {
    match resolution {
        Resolution::Vacant(broken) => {
            // SAFETY: what tests make up lies within the physical addresses of their layouts.
            if unsafe { stage2.fill(broken, request) }.is_ok() {
                Served::Mapped
            } else {
                Served::Again
            }
        }
        Resolution::Relaxed(level) => Served::Relaxed(level),
        Resolution::Split => Served::Split,
        Resolution::Accessed => Served::Accessed,
        Resolution::Spurious => Served::Spurious,
        Resolution::Busy => Served::Again,
        Resolution::NotPermitted => Served::NotPermitted,
        Resolution::OutOfFrames => Served::OutOfFrames,
        Resolution::NotInSpace => Served::NotInSpace,
    }
}
