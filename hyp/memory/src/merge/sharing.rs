//! Merges two pages into one frame: claims both, makes them read-only everywhere, compares them, and points all mappings of the
//! one at the other's frame.
//!
//! Both pages stay claimed throughout, and no CPU waits for the second claim while it holds the first. A frame that a claimed
//! page shares stays and isn't written: to become its sole owner again, a page must be the only one left.

use crate::change::propagate::Changer;
use crate::frames::{self, Owner, checksum_page, same_pages};
use crate::object::{Backing, Claim, Object};
use crate::system::cpu::Caches;
use stage2::{PAGE_SIZE, Pa, Permissions, Tlb};

/// A page of an object.
#[derive(Clone, Copy)]
pub(super) struct PageOf<'o> {
    pub(super) object: &'o Object,
    pub(super) page: u64,
}

impl<'o> PageOf<'o> {
    /// Whether both have the same frame at this moment.
    pub(super) fn shares_with(self, other: PageOf<'_>) -> bool {
        let backing = self.object.look(self.page).backing();
        matches!(backing, Backing::Shared(_)) && backing == other.object.look(other.page).backing()
    }

    fn claim(self) -> Option<Claim<'o>> {
        self.object.claim(self.page)
    }
}

/// The result of merging two pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Joined {
    /// They share a frame now.
    Done {
        /// How many pages seen in the last scan had a frame of their own.
        alone: u64,
        /// Whether the frame was shared before.
        shared: bool,
    },
    /// Another CPU is changing the backing of one of them.
    Busy,
    /// They aren't equal, may not be merged any more, or too many pages share their frame.
    Different,
}

/// A checksum of a frame's current contents, never 0. The frame was found in the changer's epoch. Guest writes past the caches
/// may be missed: the checksum only selects pages, and these are compared without stale lines.
pub(super) fn checksum<T>(_: &Changer<'_, T>, pa: Pa) -> u32 {
    // SAFETY: the frame backs a guest, and isn't given to anybody else in the changer's epoch.
    noted(unsafe { checksum_page(pa) })
}

/// The checksum of a page of zeros.
pub(super) fn checksum_of_zeros() -> u32 {
    noted(frames::checksum_of_zeros())
}

/// The part of a checksum that is stored.
fn noted(checksum: u64) -> u32 {
    (checksum as u32).max(1)
}

impl<T: Tlb + Caches> Changer<'_, T> {
    /// Merges two pages, of which the second was seen by the last scan, into one of their frames.
    pub(super) fn join(&self, page: PageOf<'_>, other: PageOf<'_>, most: u64) -> Joined {
        let (Some(page), Some(other)) = (page.claim(), other.claim()) else {
            return Joined::Busy;
        };
        match (page.backing(), other.backing()) {
            (Backing::Owned(from), Backing::Owned(to)) => {
                self.seal(&other);
                if !self.is_sealed_copy(&page, from, to) {
                    return Joined::Different;
                }
                self.cpu.recharge(other.object().account(), Owner::Shared);
                self.share(page, from, to);
                other.end(Backing::Shared(to));
                Joined::Done {
                    alone: 1,
                    shared: false,
                }
            }
            (Backing::Owned(from), Backing::Shared(to)) => {
                let sharers = self.sharers(to);
                if sharers >= most || !self.is_sealed_copy(&page, from, to) {
                    return Joined::Different;
                }
                self.share(page, from, to);
                Joined::Done {
                    alone: u64::from(sharers <= 1),
                    shared: sharers > 1,
                }
            }
            (Backing::Shared(to), Backing::Owned(from)) => {
                let sharers = self.sharers(to);
                if sharers >= most || !self.is_sealed_copy(&other, from, to) {
                    return Joined::Different;
                }
                self.share(other, from, to);
                Joined::Done {
                    alone: 1,
                    shared: sharers > 1,
                }
            }
            _ => Joined::Different,
        }
    }

    /// Frees the frame of a page of zeros.
    pub(super) fn give_up_zeros(&self, page: PageOf<'_>) -> Joined {
        let Some(claim) = page.claim() else {
            return Joined::Busy;
        };
        let zeros = page.object.system().zeros();
        let Backing::Owned(from) = claim.backing() else {
            return Joined::Different;
        };
        if !self.is_sealed_copy(&claim, from, zeros) {
            return Joined::Different;
        }
        page.object.system().objects().unshare(from, claim.sharer());
        self.replace(&claim, from, zeros, |_| Permissions::READ_ONLY);
        self.leave(claim, Backing::Zero, from);
        Joined::Done {
            alone: 0,
            shared: true,
        }
    }

    /// Seals a claimed page: no vCPU can write to it any more.
    fn seal(&self, claim: &Claim<'_>) {
        claim.object().lower(claim.page());
        self.withdraw(claim);
    }

    /// Whether a sealed page equals another frame, which isn't written either.
    fn is_sealed_copy(&self, claim: &Claim<'_>, pa: Pa, other: Pa) -> bool {
        self.seal(claim);
        // A guest whose caches are off has written past them: what is shared was perhaps never read since.
        self.cpu.drop_stale_lines(pa, PAGE_SIZE);
        self.cpu.drop_stale_lines(other, PAGE_SIZE);
        // SAFETY: both frames back guests, or one is that of zeros.
        unsafe { same_pages(pa, other) }
    }

    /// Points a sealed page to an equal shared frame, and frees its own.
    fn share(&self, claim: Claim<'_>, from: Pa, to: Pa) {
        let objects = self.cpu.system().objects();
        // The reverse map says so first: nobody moves the frame without this page.
        objects.unshare(from, claim.sharer());
        objects.share(to, claim.sharer());
        self.replace(&claim, from, to, |_| Permissions::READ_ONLY);
        self.leave(claim, Backing::Shared(to), from);
    }

    /// Ends the claim of a page that has left its own frame: the frame becomes unreachable first, then the epoch gets it.
    fn leave(&self, claim: Claim<'_>, now: Backing, from: Pa) {
        let account = claim.object().account();
        claim.end(now);
        self.cpu.retire_guest(self.guard, from, account);
    }

    fn sharers(&self, pa: Pa) -> u64 {
        self.cpu.system().objects().count(pa)
    }
}
