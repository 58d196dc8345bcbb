//! Compresses pages and frees their frames, and decompresses them when they are needed.
//!
//! Both change a page's backing, under its claim. Pages are compressed in batches: first they are unmapped everywhere, so that
//! nobody writes them meanwhile, and dirty state that hardware noted is passed to the logs. A page of zeros becomes one that
//! was never written. A page that can't be compressed keeps its frame; only its entries are gone, which faults make again. A
//! freed frame is reused only after an epoch, as the hypervisor may still be reading it.

use crate::change::copy_on_write::{ChangeMode, Populated, show};
use crate::change::propagate::Changer;
use crate::frames::compressed_store::{Handle, Refused};
use crate::frames::{Owner, page_at, page_at_mut};
use crate::object::claim_batch::Batch;
use crate::object::{Backing, Claim, Object};
use crate::system::cpu::{Caches, CpuMemory};
use stage2::{PAGE_SIZE, Pa, Tlb};

impl<T: Tlb + Caches> Changer<'_, T> {
    /// Isolates pages that have frames of their own: unmaps them everywhere. When this returns, their contents can be read,
    /// however they were written, and don't change while they are claimed.
    pub(crate) fn isolate(&self, batch: &Batch<'_>) {
        self.unmap_batch(batch);
        for claim in batch.claims() {
            if let Backing::Owned(frame) = claim.backing() {
                self.cpu.drop_stale_lines(frame, PAGE_SIZE);
            }
        }
    }

    /// Ends the claim of a page that has left its frame, which nothing maps any more.
    pub(crate) fn end_without(&self, claim: Claim<'_>, frame: Pa, backing: Backing) {
        let owner = match claim.backing() {
            Backing::Owned(_) => claim.object().account(),
            _ => Owner::Shared,
        };
        let left = self.cpu.system().objects().unshare(frame, claim.sharer());
        // First nobody finds the frame any more, then it is handed to the epoch.
        claim.end(backing);
        if left == 0 {
            self.cpu.retire_guest(self.guard, frame, owner);
        }
    }
}

impl<T: Tlb + Caches> CpuMemory<T> {
    /// Compresses an [isolated](Changer::isolate) page. The caller needs no epoch: only users of this page have to wait
    /// meanwhile.
    ///
    /// # Errors
    /// The page isn't compressible, or there is no room for it. Returns the claim.
    pub(crate) fn compress<'o>(&self, claim: Claim<'o>) -> Result<Backing, (Claim<'o>, Refused)> {
        let Backing::Owned(frame) = claim.backing() else {
            debug_assert!(false, "{claim:?} has no frame of its own");
            return Ok(claim.backing());
        };
        let object = claim.object();
        // SAFETY: the frame is the page's own, which is claimed, and nothing maps it any more: nobody writes it.
        let contents = unsafe { page_at(frame) };
        let backing = if *contents == [0; PAGE_SIZE as usize] {
            Backing::Zero
        } else {
            let handle = match self.system().store().put(contents) {
                Ok(handle) => handle,
                Err(refused) => return Err((claim, refused)),
            };
            self.pool()
                .charge_compressed(object.account(), handle.bytes());
            Backing::Compressed(handle)
        };
        let guard = &self.pin();
        (Changer { cpu: self, guard }).end_without(claim, frame, backing);
        // The model checker doesn't see that this comes before the object is let go.
        #[cfg(loom)]
        stage2::sync::full_barrier();
        Ok(backing)
    }
}

impl Object {
    /// Decompresses a page into a new frame.
    pub(crate) fn bring_back<T: Caches>(
        &self,
        cpu: &CpuMemory<T>,
        page: u64,
        mode: ChangeMode,
    ) -> Populated {
        let Some(claim) = self.claim(page) else {
            return Populated::Busy;
        };
        let Backing::Compressed(handle) = claim.backing() else {
            return Populated::Changed;
        };
        let Some(frame) = cpu.take_guest(self.account()) else {
            return Populated::OutOfFrames;
        };
        // SAFETY: the frame has just been taken, and is nobody else's.
        cpu.system()
            .store()
            .get(handle, unsafe { page_at_mut(frame) });
        self.discard(handle);
        show(cpu, frame, mode.fwb);
        cpu.system().objects().own(frame, claim.sharer());
        claim.end(Backing::Owned(frame));
        Populated::Done
    }

    /// Stores another copy of a compressed page, for this object.
    pub(crate) fn keep_copy_of(&self, handle: Handle) -> Result<Handle, Refused> {
        let copy = self.system().store().copy(handle)?;
        self.pool().charge_compressed(self.account(), copy.bytes());
        Ok(copy)
    }

    /// Removes a page's compressed contents from the store. The page is claimed, or nobody can reach it.
    pub(crate) fn discard(&self, handle: Handle) {
        self.pool()
            .discharge_compressed(self.account(), handle.bytes());
        self.system().store().drop(handle);
    }
}
