//! A guest on a CPU: it accesses memory and faults, until it may; and how the owner of its memory serves a fault.

use super::{Cpu, backing_of};
use stage2::sync::relax;
use stage2::{Access, Attributes, Ipa, Level, OnBlock, Permissions, Request, Resolution};

/// What the owner of the memory decides about a fault.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The largest block.
    pub largest: Level,
    /// What a new mapping may do; made writable at once if the fault is a write.
    pub permissions: Permissions,
    /// A write to a block splits it.
    pub split: bool,
    /// What doesn't lie in its way is unmapped then.
    pub isolate: bool,
}

impl Policy {
    /// Pages, writable from the start.
    pub const PAGES: Self = Self {
        largest: Level::L3,
        permissions: Permissions::RAM,
        split: false,
        isolate: false,
    };
    /// Blocks, writable from the start.
    pub const BLOCKS: Self = Self {
        largest: Level::L2,
        ..Self::PAGES
    };
    /// Pages, whose writes are logged.
    pub const LOGGED: Self = Self {
        permissions: Permissions::LOGGED,
        split: true,
        ..Self::PAGES
    };
    /// As [`Self::LOGGED`], by unmapping the rest of a block.
    pub const ISOLATED: Self = Self {
        isolate: true,
        ..Self::LOGGED
    };
    /// Pages, whose writes hardware logs, blocks being split for that.
    pub const TRACKED_PAGES: Self = Self {
        split: true,
        ..Self::TRACKED
    };
    /// Pages, whose writes hardware logs.
    pub const TRACKED: Self = Self {
        permissions: Permissions::LOGGED_BY_HARDWARE,
        ..Self::PAGES
    };
}

impl Policy {
    /// What it decides about this access.
    pub fn request(self, ipa: Ipa, access: Access) -> Request {
        let mut permissions = self.permissions;
        permissions.write |= access == Access::Write && permissions.may_write;
        Request {
            ipa,
            va: None,
            access,
            pa: backing_of(ipa),
            largest: self.largest,
            attributes: Attributes::memory(permissions),
            largest_written: if self.split { Level::L3 } else { Level::L0 },
            on_block: match self.isolate {
                true => OnBlock::Isolate,
                false => OnBlock::Split,
            },
        }
    }
}

/// How one fault ended.
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
}

impl Cpu<'_> {
    /// Serves one fault.
    pub fn fault(&self, ipa: Ipa, access: Access, policy: Policy) -> Served {
        let request = policy.request(ipa, access);
        self.work(|stage2, worker| match stage2.fault(worker, &request) {
            Resolution::Vacant(broken) => {
                let (first, level) = (broken.ipa(), broken.level());
                // SAFETY: the frames' numbers stand for memory within the physical addresses.
                if unsafe { stage2.fill(broken, &request) }.is_err() {
                    return Served::Again;
                }
                self.hold(first, level, 1);
                Served::Mapped
            }
            Resolution::Relaxed(level) => Served::Relaxed(level),
            Resolution::Split => {
                if policy.isolate {
                    // Of two levels of tables, as `SHALLOW` has.
                    let block = ipa.align_down(stage2.layout().span(Level::L2));
                    self.hold(block, Level::L2, -1);
                    self.hold(ipa, Level::L3, 1);
                }
                Served::Split
            }
            Resolution::Accessed => Served::Accessed,
            Resolution::Spurious => Served::Spurious,
            Resolution::Busy => Served::Again,
            Resolution::NotPermitted => Served::NotPermitted,
            Resolution::OutOfFrames => panic!("this machine's frames don't run out"),
            Resolution::NotInSpace => panic!("{ipa} lies beyond the IPA space"),
        })
    }

    /// The guest reads, faulting until it may.
    pub fn read(&self, ipa: Ipa, policy: Policy) {
        self.access(ipa, Access::Read, policy);
    }

    /// The guest writes, faulting until it may.
    pub fn write(&self, ipa: Ipa, policy: Policy) {
        self.access(ipa, Access::Write, policy);
    }

    fn access(&self, ipa: Ipa, access: Access, policy: Policy) {
        while !self.try_access(ipa, access) {
            match self.fault(ipa, access, policy) {
                Served::Again => relax(),
                Served::NotPermitted => panic!("{access:?} of {ipa} was refused"),
                _ => {}
            }
        }
    }
}
