//! The balloon: memory that a guest gives back.
//!
//! What it gives up reads as zero from then on, and takes a frame again when it is written. To a dirty log it counts as
//! written. vCPUs may be using it meanwhile: what they write may be lost, and nothing else.

use crate::cpu::{Caches, CpuMemory};
use crate::direct::Changer;
use crate::frames::Owner;
use crate::locks::MmuLock;
use crate::object::{Backing, Claim, Object};
use crate::slots::Slot;
use crate::space::AddressSpace;
use core::fmt;
use stage2::sync::{full_barrier, relax};
use stage2::{Ipa, IpaRange, PAGE_SIZE, Tlb};

/// Memory can't be given up. Nothing of it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BalloonError {
    /// The range is empty, or doesn't begin and end with pages.
    Unaligned,
    /// No slot covers the address.
    NoSlot {
        /// The first such address.
        ipa: Ipa,
    },
    /// What backs the address isn't the VM's own, or may not be written by it.
    NotOwn {
        /// The first such address.
        ipa: Ipa,
    },
}

impl fmt::Display for BalloonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unaligned => f.write_str("what is given up must be whole pages, at least one"),
            Self::NoSlot { ipa } => write!(f, "guest address {ipa} is not backed by memory"),
            Self::NotOwn { ipa } => {
                write!(
                    f,
                    "the memory at guest address {ipa} is not the VM's own to give up"
                )
            }
        }
    }
}

impl core::error::Error for BalloonError {}

impl<L: MmuLock> AddressSpace<L> {
    /// Takes back what a guest gives up: a range of whole pages. They read as zero afterwards, and their frames go home
    /// after an epoch. Returns how many of them had something to give. For a bounded stay, a range of few pages.
    ///
    /// # Errors
    /// The range is none of the VM's own memory. Nothing was given up then.
    pub fn balloon<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        range: IpaRange,
    ) -> Result<u64, BalloonError> {
        if range.start >= range.end
            || !range.start.is_aligned(PAGE_SIZE)
            || !range.end.is_aligned(PAGE_SIZE)
        {
            return Err(BalloonError::Unaligned);
        }
        self.check_own(cpu, &range)?;
        let (mut at, mut given) = (range.start, 0);
        while at < range.end {
            // A stay for each page: its slot may go meanwhile, and takes the page along.
            let guard = &cpu.pin();
            if let Some(slot) = self.slots(guard).find(at).filter(|slot| self.owns(slot)) {
                let page = slot.object_page(at);
                given += u64::from((Changer { cpu, guard }).give_up(slot.object(), page));
                full_barrier();
                if let Some(log) = slot.log(guard) {
                    log.mark(slot.page_of(at), 1);
                }
            }
            at = at.offset(PAGE_SIZE);
        }
        cpu.system().pressure().note_ballooned(given);
        Ok(given)
    }

    fn check_own<T>(&self, cpu: &CpuMemory<T>, range: &IpaRange) -> Result<(), BalloonError> {
        let guard = cpu.pin();
        let mut at = range.start;
        while at < range.end {
            let slot = self
                .slots(&guard)
                .find(at)
                .ok_or(BalloonError::NoSlot { ipa: at })?;
            if !self.owns(slot) {
                return Err(BalloonError::NotOwn { ipa: at });
            }
            at = slot.range().end;
        }
        Ok(())
    }

    fn owns(&self, slot: &Slot) -> bool {
        let object = slot.object();
        object.is_private() && object.account() == Owner::Vm(self.vm()) && !slot.read_only()
    }
}

impl<T: Tlb + Caches> Changer<'_, T> {
    /// Takes from a page what backs it. Whether there was anything.
    fn give_up(&self, object: &Object, page: u64) -> bool {
        let claim: Claim<'_> = loop {
            match object.claim(page) {
                Some(claim) => break claim,
                None => relax(),
            }
        };
        match claim.backing() {
            Backing::Vacant | Backing::Zero | Backing::Device(_) => false,
            Backing::Compressed(handle) => {
                claim.end(Backing::Zero);
                object.discard(handle);
                true
            }
            Backing::Owned(frame) | Backing::Shared(frame) => {
                object.lower(page);
                self.unmap(&claim);
                self.end_without(claim, frame, Backing::Zero);
                true
            }
        }
    }
}
