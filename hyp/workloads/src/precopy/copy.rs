//! The copy of a guest's memory: an address space without vCPUs, as a migration's destination has it. Its pages are of the
//! machine's own frames, each from when something else than zeros is copied there.

use crate::dirty_log::parts::Part;
use crate::harness::error::WorkloadError;
use alloc::boxed::Box;
use alloc::vec::Vec;
use control::RunError;
use control::guest::{RAM, RAM_SLOT};
use core::sync::atomic::{AtomicU64, Ordering};
use memory::{
    AddressSpace, Caches, CpuMemory, MmuLock, Object, Owner, SlotConfig, SlotError, VmId,
};
use stage2::{Ipa, Level, PAGE_SIZE, Tlb};

const PAGE: usize = PAGE_SIZE as usize;
const WORD: usize = size_of::<u64>();
/// Bytes that are looked at together: few enough for the compiler to do it in registers.
const LINE: usize = 16;

/// The copy of a guest's RAM. Several CPUs write to it at once, each for pages of its own.
pub(super) struct Copy<L> {
    space: AddressSpace<L>,
    /// A bit for each page that has been written to: the others are zeros.
    written: Box<[AtomicU64]>,
}

impl<L: MmuLock> Copy<L> {
    /// A copy of zeros for a guest's RAM of `bytes` bytes; charged to `vm`, which is nobody's.
    pub fn new<T: Tlb + Caches>(
        own: &CpuMemory<T>,
        guest: &AddressSpace<L>,
        vm: VmId,
        bytes: u64,
    ) -> Result<Self, RunError> {
        let words = usize::try_from((bytes / PAGE_SIZE).div_ceil(u64::BITS.into()));
        let mut written = Vec::new();
        let reserved = words.map(|words| {
            written.try_reserve_exact(words)?;
            written.resize_with(words, || AtomicU64::new(0));
            Ok::<_, alloc::collections::TryReserveError>(())
        });
        if !matches!(reserved, Ok(Ok(()))) {
            return Err(RunError::Heap);
        }
        let space = AddressSpace::new(own, vm, *guest.stage2().layout())?;
        let mapped = Object::anonymous(own, Owner::Vm(vm), bytes, Level::L3)
            .map_err(SlotError::from)
            .and_then(|object| {
                let slot = SlotConfig {
                    id: RAM_SLOT,
                    start: RAM,
                    offset: 0,
                    bytes,
                    object,
                    read_only: false,
                    write_faults: false,
                };
                space.map_object(own, slot)
            });
        if let Err(error) = mapped {
            space.destroy(own);
            return Err(error.into());
        }
        Ok(Self {
            space,
            written: written.into(),
        })
    }

    /// Gives its memory back. Nobody uses it any more.
    pub fn destroy<T: Tlb + Caches>(self, own: &CpuMemory<T>) {
        self.space.destroy(own);
    }

    /// Copies the pages that a part's log names. The log has been taken, so no vCPU writes to them unseen. Returns how many
    /// were copied; zeros that are there already aren't.
    pub fn take<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        guest: &AddressSpace<L>,
        part: &Part,
    ) -> Result<u64, WorkloadError> {
        let mut bytes = page_buffer()?;
        let mut copied = 0;
        let log = part.log.lock();
        for (index, word) in log.iter().enumerate() {
            let mut left = *word;
            while left != 0 {
                let bit = index as u64 * u64::from(u64::BITS) + u64::from(left.trailing_zeros());
                left &= left - 1;
                let page = part.pages.start + bit;
                if page < part.pages.end {
                    copied += u64::from(self.take_page(cpu, guest, page, &mut bytes)?);
                }
            }
        }
        Ok(copied)
    }

    /// Copies a page, unless it is zeros and nothing else was ever copied there.
    fn take_page<T: Tlb + Caches>(
        &self,
        cpu: &CpuMemory<T>,
        guest: &AddressSpace<L>,
        page: u64,
        bytes: &mut [u8],
    ) -> Result<bool, WorkloadError> {
        let at = address(page);
        // One CPU at a time has the page, whose bit the steps between two rounds carry to the next one.
        let (word, bit) = (&self.written[page as usize / 64], 1 << (page % 64));
        let is_first = word.load(Ordering::Relaxed) & bit == 0;
        if is_first && !guest.has_contents(cpu, at).map_err(RunError::from)? {
            return Ok(false);
        }
        guest.read_guest(cpu, at, bytes).map_err(RunError::from)?;
        if is_first {
            if is_zeros(bytes) {
                return Ok(false);
            }
            word.fetch_or(bit, Ordering::Relaxed);
        }
        let written = self.space.write_guest(cpu, at, bytes);
        written.map_err(WorkloadError::NoCopy)?;
        Ok(true)
    }

    /// Compares a part of the guest's memory with the copy, page by page. No vCPU runs.
    pub fn compare<T: Caches>(
        &self,
        cpu: &CpuMemory<T>,
        guest: &AddressSpace<L>,
        part: &Part,
    ) -> Result<(), WorkloadError> {
        let (mut theirs, mut ours) = (page_buffer()?, page_buffer()?);
        for page in part.pages.clone() {
            let at = address(page);
            let is_empty = |space: &AddressSpace<L>| Ok(!space.has_contents(cpu, at)?);
            let are_empty = is_empty(guest).and_then(|is| Ok(is && is_empty(&self.space)?));
            if are_empty.map_err(RunError::NotBacked)? {
                continue;
            }
            guest
                .read_guest(cpu, at, &mut theirs)
                .map_err(RunError::from)?;
            self.space
                .read_guest(cpu, at, &mut ours)
                .map_err(RunError::from)?;
            if let Some((offset, guest, copy)) = difference(&theirs, &ours) {
                let ipa = at.offset(offset as u64);
                return Err(WorkloadError::CopyDiffers { ipa, guest, copy });
            }
        }
        Ok(())
    }
}

fn address(page: u64) -> Ipa {
    RAM.offset(page * PAGE_SIZE)
}

fn is_zeros(bytes: &[u8]) -> bool {
    let (lines, _) = bytes.as_chunks::<LINE>();
    lines.iter().all(|line| *line == [0; LINE])
}

/// The first word that differs: its place, and what it is in each.
fn difference(one: &[u8], other: &[u8]) -> Option<(usize, u64, u64)> {
    let (lines, others) = (one.as_chunks::<LINE>().0, other.as_chunks::<LINE>().0);
    let mut lines = lines.iter().zip(others);
    let start = lines.position(|(one, other)| one != other)? * LINE;
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..)?.first_chunk()?;
        Some(u64::from_le_bytes(*word))
    };
    let words = (start..start + LINE).step_by(WORD);
    let mut words = words.filter_map(|at| Some((at, word(one, at)?, word(other, at)?)));
    words.find(|(_, one, other)| one != other)
}

fn page_buffer() -> Result<Vec<u8>, RunError> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(PAGE).map_err(|_| RunError::Heap)?;
    bytes.resize(PAGE, 0);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_counts_in_a_comparison_and_for_zeros() {
        let zeros = page_buffer().unwrap();
        assert!(is_zeros(&zeros) && difference(&zeros, &zeros).is_none());
        for word in 0..PAGE / WORD {
            let mut other = zeros.clone();
            other[word * WORD + word % WORD] = 1;
            let value = 1 << (word % WORD * 8);
            assert!(!is_zeros(&other));
            assert_eq!(difference(&zeros, &other), Some((word * WORD, 0, value)));
            assert_eq!(difference(&other, &zeros), Some((word * WORD, value, 0)));
        }
    }
}
