//! Copy-on-write: a write to a page whose frame is shared, or is read-only for another reason.
//!
//! The writing vCPU makes the copy inside its own write fault. The copy replaces the shared frame in every table that maps the
//! page. If the writer had no entry yet, its fault continues and makes one.

use crate::change::propagate::Changer;
use crate::frames::{Owner, copy_page};
use crate::object::{Backing, Claim, Object};
use crate::space::slot::Slot;
use crate::space::{Change, Space};
use crate::system::cpu::{Caches, CpuMemory};
use stage2::{Level, PAGE_SIZE, Pa, Permissions, Tlb};

/// How changes of a VM's backing are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChangeMode {
    change: Change,
    /// Whether FEAT_S2FWB is on, so that no guest can bypass the data caches.
    pub(crate) fwb: bool,
}

impl Space {
    /// How changes of its backing are made.
    #[inline]
    pub(crate) fn change_mode(&self) -> ChangeMode {
        ChangeMode {
            change: self.change(),
            fwb: self.stage2().layout().features().fwb,
        }
    }
}

/// The result of preparing a page for a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unshared {
    /// The page has a copy of its own; if changes are direct, every entry that maps the page leads to it.
    Copied,
    /// The frame is the page's own. A fault may make its entries writable.
    Reused,
    /// Another CPU is changing the page.
    Busy,
    /// There is no frame for the copy.
    OutOfFrames,
}

impl<T: Tlb + Caches> Changer<'_, T> {
    /// Gives a page a frame of its own, for a write.
    pub(crate) fn unshare(&self, object: &Object, page: u64, mode: ChangeMode) -> Unshared {
        let Some(claim) = object.claim(page) else {
            return Unshared::Busy;
        };
        let (from, to) = match claim.backing() {
            Backing::Owned(own) => (own, Some(own)),
            Backing::Zero => (object.system().zeros(), self.zeroed_for(object, mode)),
            Backing::Shared(shared) => (shared, self.copy_of(&claim, shared, mode)),
            // Its fault has to see to that first.
            Backing::Vacant | Backing::Device(_) | Backing::Compressed(_) => {
                return Unshared::Busy;
            }
        };
        let Some(to) = to else {
            return Unshared::OutOfFrames;
        };
        if from == to {
            self.permit(&claim, from, writable_by_fault);
        } else {
            object.lower(page);
            match mode.change {
                Change::Direct => self.replace(&claim, from, to, writable_by_fault),
                Change::Unmap => self.unmap(&claim),
            }
        }
        self.settle(claim, from, to);
        if from == to {
            Unshared::Reused
        } else {
            Unshared::Copied
        }
    }

    fn zeroed_for(&self, object: &Object, mode: ChangeMode) -> Option<Pa> {
        let zeroed = self.cpu.take_guest(object.account())?;
        show(self.cpu, zeroed, mode.fwb);
        Some(zeroed)
    }

    /// A frame with the contents of `shared` for one of the pages that share it: the same frame for its last sharer.
    fn copy_of(&self, claim: &Claim<'_>, shared: Pa, mode: ChangeMode) -> Option<Pa> {
        let account = claim.object().account();
        if self.cpu.system().objects().count(shared) == 1 {
            self.cpu.recharge(Owner::Shared, account);
            return Some(shared);
        }
        let copy = self.cpu.take_guest(account)?;
        self.cpu.drop_stale_lines(shared, PAGE_SIZE);
        // SAFETY: the copy has just come from the pool; what is shared isn't written, and stays while the claim lasts.
        unsafe { copy_page(shared, copy) };
        show(self.cpu, copy, mode.fwb);
        Some(copy)
    }

    /// Updates the frames' records and owners, and ends the claim.
    fn settle(&self, claim: Claim<'_>, from: Pa, to: Pa) {
        let objects = self.cpu.system().objects();
        let mut left = 1;
        if from != to {
            if let Backing::Shared(_) = claim.backing() {
                left = objects.unshare(from, claim.sharer());
            }
            objects.own(to, claim.sharer());
        }
        // First nobody finds the frame any more, then it is handed to the epoch.
        claim.end(Backing::Owned(to));
        if left == 0 {
            // The others have copied it at the same time.
            self.cpu.retire_guest(self.guard, from, Owner::Shared);
        }
    }
}

/// The initial permissions of a page that its VM may write: without write permission, which only a fault adds, as it also marks
/// the log.
pub(crate) fn writable_by_fault(slot: &Slot) -> Permissions {
    if slot.read_only() {
        Permissions::READ_ONLY
    } else {
        Permissions::LOGGED
    }
}

/// Makes a page that was written here visible to guests, with or without caches.
pub(crate) fn show<T: Caches>(cpu: &CpuMemory<T>, pa: Pa, fwb: bool) {
    if fwb {
        cpu.hardware().clean_for_fetches(pa, PAGE_SIZE);
    } else {
        cpu.hardware().clean_for_guest(pa, PAGE_SIZE);
    }
}

/// The result of populating a page that had no frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Populated {
    /// It has a frame now.
    Done,
    /// Another CPU has changed it, or its piece has to be allocated smaller: look again.
    Changed,
    /// Another CPU is changing it.
    Busy,
    /// There is no frame for it.
    OutOfFrames,
}

impl Object {
    /// Backs an untouched page, together with its whole piece if there is a run of frames for it.
    pub(crate) fn populate<T: Caches>(
        &self,
        cpu: &CpuMemory<T>,
        page: u64,
        mode: ChangeMode,
    ) -> Populated {
        let piece = self.piece_at(page);
        if piece < Level::L3 {
            return self.populate_piece(cpu, page, piece);
        }
        let Some(claim) = self.claim(page) else {
            return Populated::Busy;
        };
        if claim.backing() != Backing::Vacant {
            return Populated::Changed;
        }
        let Some(pa) = cpu.take_guest(self.account()) else {
            return Populated::OutOfFrames;
        };
        show(cpu, pa, mode.fwb);
        cpu.system().objects().own(pa, claim.sharer());
        claim.end(Backing::Owned(pa));
        Populated::Done
    }

    #[cold]
    fn populate_piece<T: Caches>(&self, cpu: &CpuMemory<T>, page: u64, piece: Level) -> Populated {
        let first = self.first_of_piece(page, piece);
        let Some(claim) = self.claim(first) else {
            return Populated::Busy;
        };
        // Whoever had it before may have allocated it, or found that it has to be smaller.
        if claim.backing() != Backing::Vacant || self.piece_at(first) != piece {
            return Populated::Changed;
        }
        match self.allocate_piece(cpu, first, piece) {
            Some(pa) => {
                claim.end(Backing::Owned(pa));
                Populated::Done
            }
            None => {
                self.allocate_smaller(first, piece);
                Populated::Changed
            }
        }
    }
}
