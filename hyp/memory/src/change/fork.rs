//! Forks a VM's memory: parent and fork share all frames copy-on-write.

use crate::change::propagate::Changer;
use crate::frames::{FrameSize, Owner};
use crate::object::{Backing, Claims, Object, ObjectError};
use crate::space::AddressSpace;
use crate::space::mmu_lock::MmuLock;
use crate::space::slot::{Slot, SlotArray, SlotConfig, SlotError};
use crate::space::slot_edit::new_slot;
use crate::system::cpu::{Caches, CpuMemory};
use alloc::sync::Arc;
use alloc::vec::Vec;
use stage2::Tlb;

/// Pages that are shared during one stay in the epoch: those of a region.
const AT_ONCE: u64 = FrameSize::Block2M.frames() as u64;

impl<L: MmuLock> AddressSpace<L> {
    /// Gives `child`, which has no slots, the slots of this VM. The VM's own memory is shared copy-on-write, page by page;
    /// shared objects, images and devices are the same in both. Dirty logs aren't inherited.
    ///
    /// For a consistent copy the VM must be paused: what vCPUs write meanwhile may be in the copy or not. When this returns,
    /// neither VM sees the other's writes, and no write was lost.
    ///
    /// # Errors
    /// There is no heap, no room for another copy of compressed pages, or there are too many objects. The child has no slots
    /// then, and may try again.
    pub fn fork<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, child: &Self) -> Result<(), SlotError> {
        // Before any lock: two that were to be each other's child would wait for each other.
        if let Some(slot) = child.slots(&child.pin(cpu)).iter().next() {
            return Err(SlotError::Exists(slot.id()));
        }
        if self.slots(&self.pin(cpu)).iter().next().is_none() {
            cpu.system().trust(child.vm(), self.vm());
            return Ok(());
        }
        let _control = self.control().lock();
        let forked = self.fork_slots(cpu, child);
        match forked {
            Ok(()) => cpu.system().trust(child.vm(), self.vm()),
            // What was made of the child's memory is given back by now, also what others were looking at.
            Err(_) => cpu.wait_for_epoch(),
        }
        forked
    }

    /// Makes all of the child's slots and only then publishes them, so that a failure leaves nothing to undo.
    fn fork_slots<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        child: &Self,
    ) -> Result<(), SlotError> {
        let slots = self.held_slots(cpu)?;
        let mut copies: Vec<(Arc<Object>, Arc<Object>)> = Vec::new();
        let mut forked = try_with_capacity(slots.len())?;
        for slot in &slots {
            forked.push(fork_slot(cpu, child, slot, &mut copies)?);
        }
        child.publish_first(cpu, &forked)
    }

    /// References to all slots, for use beyond the epoch.
    fn held_slots<T>(&self, cpu: &CpuMemory<T>) -> Result<Vec<Arc<Slot>>, SlotError> {
        let guard = self.pin(cpu);
        let slots: &SlotArray = self.slots(&guard);
        let mut held = try_with_capacity(slots.iter().count())?;
        held.extend(slots.iter().cloned());
        Ok(held)
    }
}

/// The child's version of one of the parent's slots. Private memory is copied as one object for all slots that map parts of it.
fn fork_slot<L: MmuLock, T: Tlb + Caches>(
    cpu: &CpuMemory<T>,
    child: &AddressSpace<L>,
    slot: &Slot,
    copies: &mut Vec<(Arc<Object>, Arc<Object>)>,
) -> Result<Arc<Slot>, SlotError> {
    let object = slot.object();
    let known = copies
        .iter()
        .find(|(original, _)| Arc::ptr_eq(original, object));
    let copy = match known {
        Some((_, copy)) => copy.clone(),
        None if !object.is_private() => object.clone(),
        None => {
            copies
                .try_reserve(1)
                .map_err(|_| SlotError::OutOfMemory { bytes: 0 })?;
            let copy = object.fork(cpu, Owner::Vm(child.vm()))?;
            copies.push((object.clone(), copy.clone()));
            copy
        }
    };
    let config = SlotConfig {
        object: copy,
        ..slot.config().clone()
    };
    child.check(&config)?;
    new_slot(config)
}

/// An empty vector with room for `count` values.
fn try_with_capacity<V>(count: usize) -> Result<Vec<V>, SlotError> {
    let mut values = Vec::new();
    let reserved = values.try_reserve_exact(count);
    reserved.map_err(|_| SlotError::OutOfMemory { bytes: 0 })?;
    Ok(values)
}

impl Object {
    /// Another object with the same contents, which shares all frames with this one copy-on-write. VMs may be using this one,
    /// as for [`AddressSpace::fork`]. Its own frames will be charged to `account`.
    ///
    /// # Errors
    /// There is no heap for it, no room for another copy of compressed pages, or there are too many objects.
    pub fn fork<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        account: Owner,
    ) -> Result<Arc<Self>, ObjectError> {
        self.system().check(cpu);
        let copy = Self::anonymous(cpu, account, self.bytes(), self.piece())?;
        let mut next = 0;
        while next < self.pages() {
            let (first, end) = (next, (next + AT_ONCE).min(self.pages()));
            let claims = self.claim_all(first..end);
            // The copy's is as untouched, and either is allocated as one when it is touched.
            if let Some(untouched) = self.untouched(first) {
                next += untouched;
                continue;
            }
            next = end;
            copy.note_shared(first);
            // With the claims: whoever gives the region a block again has all of its pages, too.
            self.note_shared(first);
            let guard = &cpu.pin();
            Changer { cpu, guard }.withdraw_all(self, first..end);
            for page in claims.pages() {
                self.share_page(cpu, page, (&copy, page), &claims)?;
            }
            copy.take_extent(first, self);
        }
        Ok(copy)
    }

    /// Lets `copy`, which nobody uses yet, share all frames of this object, beginning at the copy's page `at`. This object is
    /// an image: no mapping may write it.
    pub(crate) fn share_image<T>(
        &self,
        cpu: &CpuMemory<T>,
        copy: &Self,
        at: u64,
    ) -> Result<(), ObjectError> {
        debug_assert!(self.is_image());
        for first in (0..self.pages()).step_by(AT_ONCE as usize) {
            let claims = self.claim_all(first..(first + AT_ONCE).min(self.pages()));
            for page in claims.pages() {
                copy.lower(at + page);
                self.share_page(cpu, page, (copy, at + page), &claims)?;
            }
        }
        Ok(())
    }

    /// Lets a page of `copy`, which nobody uses yet, share the backing of a page here, which becomes read-only.
    fn share_page<T>(
        &self,
        cpu: &CpuMemory<T>,
        page: u64,
        (copy, to): (&Self, u64),
        claims: &Claims<'_>,
    ) -> Result<(), ObjectError> {
        let backing = match self.look(page).backing() {
            Backing::Owned(pa) => {
                cpu.recharge(self.account(), Owner::Shared);
                Backing::Shared(pa)
            }
            Backing::Compressed(handle) => {
                let copied = copy.keep_copy_of(handle);
                let bytes = self.bytes();
                let copied = copied.map_err(|_| ObjectError::OutOfMemory { bytes })?;
                copy.publish(to, Backing::Compressed(copied));
                return Ok(());
            }
            other => other,
        };
        if let Backing::Shared(pa) = backing {
            cpu.system().objects().share(pa, copy.sharer(to));
        }
        copy.publish(to, backing);
        claims.set(page, backing);
        Ok(())
    }
}
