//! Adds, moves and removes slots, with vCPUs running.
//!
//! Rule 10: a change publishes a new array. To remove a slot: publish the array without it, unmap its range, remove it from its
//! object's mappings, and free its memory after an epoch. A fault that read the old array looks its own slot up again once it
//! has locked its entry (rule 8); changes of other slots don't make it retry.

use crate::dirty::slot_id::SlotId;
use crate::frames::{GRANULE, Owner};
use crate::object::{Backing, Object};
use crate::space::mapping::Mapping;
use crate::space::mmu_lock::MmuLock;
use crate::space::slot::{Slot, SlotArray, SlotConfig, SlotError};
use crate::space::{AddressSpace, IN_SPACE};
use crate::system::cpu::{Caches, CpuMemory};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ptr;
use crossbeam_epoch::Guard;
use stage2::{Ipa, IpaRange, Level, PAGE_SIZE, Permissions, Tlb};

impl<L: MmuLock> AddressSpace<L> {
    /// Backs `bytes` from `start` on with zeroed memory of the VM's own, in pieces of the span of `piece`, which are also its
    /// largest blocks. vCPUs may be running.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn add_slot<T: Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        start: Ipa,
        bytes: u64,
        piece: Level,
        read_only: bool,
    ) -> Result<(), SlotError> {
        self.check_place(start, bytes, GRANULE.span(piece))?;
        self.slots(&self.pin(cpu))
            .check(id, &(start..start.offset(bytes)), None)?;
        let object = Object::preallocated(cpu, Owner::Vm(self.vm()), bytes, piece);
        self.map_object(
            cpu,
            SlotConfig {
                id,
                start,
                object: object.map_err(SlotError::from)?,
                offset: 0,
                bytes,
                read_only,
                write_faults: false,
            },
        )
    }

    /// Maps a part of an object. vCPUs may be running.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn map_object<T: Caches>(
        &self,
        cpu: &CpuMemory<T>,
        config: SlotConfig,
    ) -> Result<(), SlotError> {
        let _control = self.control().lock();
        self.check(&config)?;
        let guard = self.pin(cpu);
        let range = config.start..config.start.offset(config.bytes);
        self.slots(&guard).check(config.id, &range, None)?;
        let slot = new_slot(config)?;
        self.publish(slot, None, &guard)
    }

    /// The object of a slot. A reference keeps its frames: it must be dropped before the VM is destroyed.
    ///
    /// # Errors
    /// There is no such slot.
    pub fn object_of<T>(&self, cpu: &CpuMemory<T>, id: SlotId) -> Result<Arc<Object>, SlotError> {
        Ok(self.slots(&self.pin(cpu)).get(id)?.object().clone())
    }

    /// Removes a slot. When this returns, no vCPU reaches its memory any more, and all frames that it didn't share are back in
    /// the pool. vCPUs may be running.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn remove_slot<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
    ) -> Result<(), SlotError> {
        let _control = self.control().lock();
        let slot = {
            let guard = self.pin(cpu);
            let slot = self.slots(&guard).get(id)?.clone();
            let without = self.slots(&guard).with(None, Some(id));
            self.replace_slots(without.ok_or(out_of_memory(&slot))?, &guard);
            slot
        };
        self.vacate(cpu, slot.range(), |_, _, _, _| {});
        self.forget(cpu, slot);
        Ok(())
    }

    /// Moves a slot and its memory to another address. Its dirty log, if it had one, ends. vCPUs may be running; when this
    /// returns, none uses the old address any more.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn move_slot<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        to: Ipa,
    ) -> Result<(), SlotError> {
        self.replace_slot(cpu, id, |config| config.start = to)
    }

    /// Makes a slot read-only or writable. Its dirty log, if it had one, ends. vCPUs may be running.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn set_read_only<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        read_only: bool,
    ) -> Result<(), SlotError> {
        self.replace_slot(cpu, id, |config| config.read_only = read_only)
    }

    /// Replaces a slot by another one with the same identifier and memory.
    fn replace_slot<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        id: SlotId,
        change: impl FnOnce(&mut SlotConfig),
    ) -> Result<(), SlotError> {
        let _control = self.control().lock();
        let (old, range, read_only) = {
            let guard = self.pin(cpu);
            let old = self.slots(&guard).get(id)?.clone();
            let mut config = old.config().clone();
            change(&mut config);
            self.check(&config)?;
            let range = config.start..config.start.offset(config.bytes);
            self.slots(&guard).check(id, &range, Some(id))?;
            let read_only = config.read_only;
            self.publish(new_slot(config)?, Some(id), &guard)?;
            (old, range, read_only)
        };
        self.vacate(cpu, old.range(), |_, _, _, _| {});
        self.forget(cpu, old);
        if read_only {
            self.withdraw(cpu, range);
        }
        Ok(())
    }

    /// Makes all entries in a slot's range read-only: faults that read the old slot may have made them writable.
    fn withdraw<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, range: IpaRange) {
        let guard = self.pin(cpu);
        let (tables, epoch) = (cpu.tables(self.vm()), cpu.retirement(self.vm(), &guard));
        let _lock = self.lock().exclusive();
        let worker = cpu.worker(&tables, &epoch);
        let withdrawn = self
            .stage2()
            .protect(&worker, range, Permissions::READ_ONLY, |_, _, _| {});
        withdrawn.expect(IN_SPACE);
    }

    /// Publishes the slots of a VM that has none: all at once, each added to its object first.
    ///
    /// # Errors
    /// There is no heap, or the VM has a slot. It has got none of these then.
    pub(crate) fn publish_first<T>(
        &self,
        cpu: &CpuMemory<T>,
        slots: &[Arc<Slot>],
    ) -> Result<(), SlotError> {
        let _control = self.control().lock();
        let guard = &self.pin(cpu);
        if let Some(slot) = self.slots(guard).iter().next() {
            return Err(SlotError::Exists(slot.id()));
        }
        let all = SlotArray::of(slots).ok_or(SlotError::OutOfMemory { bytes: 0 })?;
        let known = slots.iter().take_while(|slot| self.mapping(slot).enter());
        let known = known.count();
        if let Some(unknown) = slots.get(known) {
            for slot in &slots[..known] {
                Mapping::leave(slot, guard);
            }
            return Err(out_of_memory(unknown));
        }
        self.replace_slots(all, guard);
        Ok(())
    }

    /// Checks a slot's configuration, except for its neighbours.
    ///
    /// # Panics
    /// The object belongs to another memory system.
    pub(crate) fn check(&self, config: &SlotConfig) -> Result<(), SlotError> {
        assert!(
            ptr::eq(self.system(), config.object.system()),
            "an object of another memory system"
        );
        self.check_place(config.start, config.bytes, PAGE_SIZE)?;
        if !config.offset.is_multiple_of(PAGE_SIZE) {
            return Err(SlotError::Unaligned { piece: PAGE_SIZE });
        }
        let end = config.offset.checked_add(config.bytes);
        if end.is_none_or(|end| end > config.object.bytes()) {
            return Err(SlotError::BeyondObject(config.object.id()));
        }
        if config.object.is_image() && !config.read_only {
            return Err(SlotError::ReadOnlyObject(config.object.id()));
        }
        let first = config.object.look(config.offset / PAGE_SIZE).backing();
        let layout = self.stage2().layout();
        match first {
            Backing::Device(pa) if layout.check_backing(pa, config.bytes).is_err() => {
                let bits = layout.pa_bits();
                Err(SlotError::BeyondPhysical { bits })
            }
            // Frames are the pool's, of memory that this CPU runs in.
            _ => Ok(()),
        }
    }

    fn check_place(&self, start: Ipa, bytes: u64, piece: u64) -> Result<(), SlotError> {
        let bits = self.stage2().layout().ipa_bits();
        if bytes == 0 {
            return Err(SlotError::Empty);
        }
        if !start.is_aligned(piece) || !bytes.is_multiple_of(piece) {
            return Err(SlotError::Unaligned { piece });
        }
        let end = start
            .checked_add(bytes)
            .ok_or(SlotError::BeyondIpaSpace { bits })?;
        if !self.stage2().layout().contains(&(start..end)) {
            return Err(SlotError::BeyondIpaSpace { bits });
        }
        Ok(())
    }

    /// Adds a slot to the VM, replacing the one called `without` if that is given. It is added to its object first.
    fn publish(
        &self,
        slot: Arc<Slot>,
        without: Option<SlotId>,
        guard: &Guard,
    ) -> Result<(), SlotError> {
        let with = self.slots(guard).with(Some(slot.clone()), without);
        let with: Box<SlotArray> = with.ok_or(out_of_memory(&slot))?;
        if !self.mapping(&slot).enter() {
            return Err(out_of_memory(&slot));
        }
        self.replace_slots(with, guard);
        Ok(())
    }

    /// Drops a slot that nothing maps any more: its memory is freed with it, unless it is shared.
    fn forget<T: Tlb + Caches>(&self, cpu: &CpuMemory<T>, slot: Arc<Slot>) {
        Mapping::leave(&slot, &self.pin(cpu));
        cpu.wait_for_epoch();
        self.rings().forget(slot.id());
        drop(slot);
        cpu.pool().reclaim_released();
    }
}

/// A slot, with memory for its first dirty log.
pub(crate) fn new_slot(config: SlotConfig) -> Result<Arc<Slot>, SlotError> {
    let slot = Slot::new(config);
    if slot.read_only() || slot.object().is_device() || slot.prepare_log() {
        Ok(Arc::new(slot))
    } else {
        Err(out_of_memory(&slot))
    }
}

fn out_of_memory(slot: &Slot) -> SlotError {
    SlotError::OutOfMemory {
        bytes: slot.pages() * PAGE_SIZE,
    }
}
