//! Hypervisor access to guest memory: images, buffers of hypercalls, copies for migration.
//!
//! vCPUs may be running: one that uses the same bytes meanwhile sees a mixture of old and new.

use crate::change::copy_on_write::{Populated, Unshared, show};
use crate::change::propagate::Changer;
use crate::frames::{read_bytes, write_bytes};
use crate::object::{Backing, Claim};
use crate::reclaim::steps::Shortage;
use crate::space::mmu_lock::MmuLock;
use crate::space::slot::Slot;
use crate::space::{AddressSpace, NotBacked};
use crate::system::cpu::{Caches, CpuMemory};
use core::ops::Range;
use crossbeam_epoch::Guard;
use stage2::sync::{full_barrier, relax};
use stage2::{Ipa, PAGE_SIZE, Pa, Tlb};

impl<L: MmuLock> AddressSpace<L> {
    /// Copies bytes into guest memory, as a device would: into read-only slots too, and marked in the dirty log.
    ///
    /// # Errors
    /// Some of the range isn't backed by the VM's own memory: nothing is written. Or a page has no frame, or has lost its
    /// backing as slots change meanwhile: everything before that page is written.
    pub fn write_guest<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        ipa: Ipa,
        bytes: &[u8],
    ) -> Result<(), NotBacked> {
        let guard = self.pin(cpu);
        self.for_each_page(&guard, ipa, bytes.len(), |slot, at, _| check_own(slot, at))?;
        drop(guard);
        let mut done = 0;
        loop {
            let rest = &bytes[done..];
            let start = ipa.offset(done as u64);
            let written =
                self.for_each_page(&self.pin(cpu), start, rest.len(), |slot, at, part| {
                    // Slots may have changed since.
                    check_own(slot, at)?;
                    self.write_page(cpu, slot, at, &rest[part])
                });
            match written {
                Err(NotBacked::OutOfFrames { ipa: at })
                    if cpu.relieve_shortage() != Shortage::Lasts =>
                {
                    done = (at.get() - ipa.get()) as usize;
                }
                other => return other,
            }
        }
    }

    /// Writes within one page while its backing is claimed.
    fn write_page<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        slot: &Slot,
        at: Ipa,
        bytes: &[u8],
    ) -> Result<(), NotBacked> {
        // A stay of its own: others may have to be waited for.
        let (claim, page) = self
            .claim_to_write(cpu, slot, at)
            .ok_or(NotBacked::OutOfFrames { ipa: at })?;
        let pa = page.offset(at.offset_in(PAGE_SIZE));
        if (bytes.len() as u64) < PAGE_SIZE {
            // Of a line that is written in part the rest is written back as well.
            cpu.drop_stale_lines(pa, bytes.len() as u64);
        }
        // SAFETY: the frame backs the guest, and stays its page's own while that is claimed.
        unsafe { write_bytes(pa, bytes) };
        show(cpu, page, self.stage2().layout().features().fwb);
        claim.cancel();
        // Logging that is switched on meanwhile is seen here, or what is copied then has these bytes (rule 8).
        full_barrier();
        if let Some(log) = slot.log(&self.pin(cpu)) {
            log.mark_page(slot.page_of(at));
        }
        Ok(())
    }

    /// Gives a page a frame of its own and claims it. `None` without a frame.
    fn claim_to_write<'s, T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        slot: &'s Slot,
        at: Ipa,
    ) -> Option<(Claim<'s>, Pa)> {
        let (object, page) = (&**slot.object(), slot.object_page(at));
        let mode = self.space().change_mode();
        loop {
            let backing = match object.claim(page) {
                Some(claim) => match claim.backing() {
                    Backing::Owned(pa) => return Some((claim, pa)),
                    other => other,
                },
                None => {
                    relax();
                    continue;
                }
            };
            let ran_out = match backing {
                Backing::Vacant => object.populate(cpu, page, mode) == Populated::OutOfFrames,
                Backing::Compressed(_) => {
                    object.bring_back(cpu, page, mode) == Populated::OutOfFrames
                }
                _ => {
                    let guard = &self.pin(cpu);
                    Changer { cpu, guard }.unshare(object, page, mode) == Unshared::OutOfFrames
                }
            };
            if ran_out {
                return None;
            }
        }
    }

    /// Copies bytes out of guest memory.
    ///
    /// # Errors
    /// Some of the range isn't backed by memory.
    pub fn read_guest<T: Caches>(
        &self,
        cpu: &CpuMemory<T>,
        ipa: Ipa,
        bytes: &mut [u8],
    ) -> Result<(), NotBacked> {
        let guard = self.pin(cpu);
        let length = bytes.len();
        if (1..=PAGE_SIZE - ipa.offset_in(PAGE_SIZE)).contains(&(length as u64)) {
            // The commonest: a few words.
            let slot = self.slots(&guard).find(ipa);
            return read_page(cpu, slot.ok_or(NotBacked::NoSlot { ipa })?, ipa, bytes);
        }
        self.for_each_page(&guard, ipa, length, |slot, at, part| {
            read_page(cpu, slot, at, &mut bytes[part])
        })
    }

    /// Whether a page may hold anything but zeros. If not, it has no frame of its own, and reads as zeros at this moment.
    ///
    /// # Errors
    /// There is no slot.
    pub fn has_contents<T: Caches>(&self, cpu: &CpuMemory<T>, ipa: Ipa) -> Result<bool, NotBacked> {
        let guard = self.pin(cpu);
        let slot = self.slots(&guard).find(ipa);
        let slot = slot.ok_or(NotBacked::NoSlot { ipa })?;
        let look = slot.object().look(slot.object_page(ipa));
        let is_empty = matches!(look.backing(), Backing::Vacant | Backing::Zero);
        Ok(look.is_claimed() || !is_empty)
    }

    /// Calls `each` with the slot, the address and the part of the buffer, for every page that a range touches.
    fn for_each_page(
        &self,
        guard: &Guard,
        ipa: Ipa,
        length: usize,
        mut each: impl FnMut(&Slot, Ipa, Range<usize>) -> Result<(), NotBacked>,
    ) -> Result<(), NotBacked> {
        let slots = self.slots(guard);
        let mut done = 0;
        while done < length {
            let at = ipa
                .checked_add(done as u64)
                .ok_or(NotBacked::NoSlot { ipa })?;
            let slot = slots.find(at).ok_or(NotBacked::NoSlot { ipa: at })?;
            let offset = at.offset_in(PAGE_SIZE);
            let part = done..length.min(done + (PAGE_SIZE - offset) as usize);
            done = part.end;
            each(slot, at, part)?;
        }
        Ok(())
    }
}

/// Reads within one page.
fn read_page<T: Caches>(
    cpu: &CpuMemory<T>,
    slot: &Slot,
    at: Ipa,
    bytes: &mut [u8],
) -> Result<(), NotBacked> {
    loop {
        let backing = backing_to_read(slot, at, bytes);
        match backing {
            Backing::Owned(page) | Backing::Shared(page) => {
                let pa = page.offset(at.offset_in(PAGE_SIZE));
                cpu.drop_stale_lines(pa, bytes.len() as u64);
                // SAFETY: the frame is memory. Whether it still backed the guest is seen below.
                unsafe { read_bytes(pa, bytes) }
            }
            Backing::Vacant | Backing::Zero => bytes.fill(0),
            // Read already.
            Backing::Compressed(_) => return Ok(()),
            Backing::Device(_) => return Err(NotBacked::NoSlot { ipa: at }),
        }
        // A frame that the last of several pages has let go of goes home at once; the page says so before that.
        full_barrier();
        if slot.object().look(slot.object_page(at)).backing() == backing {
            return Ok(());
        }
    }
}

/// Whether a slot's memory may be written: a device isn't memory, and an image is shared.
fn check_own(slot: &Slot, at: Ipa) -> Result<(), NotBacked> {
    match slot.object().is_device() || slot.object().is_image() {
        true => Err(NotBacked::NoSlot { ipa: at }),
        false => Ok(()),
    }
}

/// The backing of a page. `bytes` of a compressed page are read at once, as it stays compressed only while it is claimed. Waits
/// while another CPU is changing the page: its entries may already lead to another frame, in which guests write bytes that the
/// old one lacks.
fn backing_to_read(slot: &Slot, at: Ipa, bytes: &mut [u8]) -> Backing {
    let (object, number) = (slot.object(), slot.object_page(at));
    loop {
        let look = object.look(number);
        let compressed = matches!(look.backing(), Backing::Compressed(_));
        if !compressed && !look.is_claimed() {
            return look.backing();
        }
        let claim = compressed.then(|| object.claim(number)).flatten();
        match claim.as_ref().map(Claim::backing) {
            Some(Backing::Compressed(handle)) => {
                let mut page = [0; PAGE_SIZE as usize];
                object.system().store().get(handle, &mut page);
                let start = at.offset_in(PAGE_SIZE) as usize;
                bytes.copy_from_slice(&page[start..start + bytes.len()]);
                return Backing::Compressed(handle);
            }
            Some(_) => {}
            None => relax(),
        }
    }
}
