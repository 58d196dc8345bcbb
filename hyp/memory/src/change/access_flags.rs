//! Reads and clears a page's access flags: in every entry that maps the page, in all VMs.
//!
//! Where hardware doesn't set access flags, clearing one makes the next access fault. Any CPU may call at any time, with vCPUs
//! running and whether or not the page is claimed.

use crate::object::Object;
use crate::space::mapping::Mapping;
use crate::space::{IN_SPACE, Space};
use crate::system::cpu::CpuMemory;
use alloc::sync::Arc;
use stage2::{IpaRange, Tlb};

/// Reads and clears access flags. TLBs are invalidated once for many pages, at the end.
pub(crate) struct AccessScan<'c, T: Tlb> {
    cpu: &'c CpuMemory<T>,
    cleared: Option<(Arc<Space>, IpaRange)>,
}

impl<'c, T: Tlb> AccessScan<'c, T> {
    pub(crate) fn new(cpu: &'c CpuMemory<T>) -> Self {
        Self { cpu, cleared: None }
    }

    /// Clears the access flags of all entries that map a page, or the block that begins with it. Accesses from the end of this
    /// call on set them.
    pub(crate) fn age(&mut self, object: &Object, page: u64) {
        let cpu = self.cpu;
        Self::clear(cpu, object, page, |space, range| match &mut self.cleared {
            Some((same, cleared)) if Arc::ptr_eq(same, space) => {
                cleared.start = cleared.start.min(range.start);
                cleared.end = cleared.end.max(range.end);
            }
            cleared => {
                let before = cleared.replace((space.clone(), range));
                Self::invalidate(cpu, before);
            }
        });
    }

    /// Whether a page, or the block that it begins, was accessed since its access flags were cleared; clears them.
    pub(crate) fn was_accessed(&self, object: &Object, page: u64) -> bool {
        let mut accessed = false;
        Self::clear(self.cpu, object, page, |_, _| accessed = true);
        accessed
    }

    fn clear(
        cpu: &CpuMemory<T>,
        object: &Object,
        page: u64,
        mut accessed: impl FnMut(&Arc<Space>, IpaRange),
    ) {
        let pages = page..page + object.pages_at_once(page);
        let guard = cpu.pin();
        for mapping in Mapping::all_of(object, &guard) {
            let range = mapping.range_of(&pages);
            if range.is_empty() {
                continue;
            }
            let space = &mapping.space;
            let (tables, epoch) = (cpu.tables(space.vm()), cpu.retirement(space.vm(), &guard));
            let worker = cpu.worker(&tables, &epoch);
            let mut any = false;
            mapping.lock.exclusively(&mut || {
                space
                    .stage2()
                    .age(&worker, range.clone(), |_, _| any = true)
                    .expect(IN_SPACE);
            });
            if any {
                accessed(space, range);
            }
        }
    }

    fn invalidate(cpu: &CpuMemory<T>, cleared: Option<(Arc<Space>, IpaRange)>) {
        if let Some((space, range)) = cleared {
            let guard = cpu.pin();
            let (tables, epoch) = (cpu.tables(space.vm()), cpu.retirement(space.vm(), &guard));
            space
                .stage2()
                .invalidate(&cpu.worker(&tables, &epoch), range)
                .expect(IN_SPACE);
        }
    }
}

impl<T: Tlb> Drop for AccessScan<'_, T> {
    fn drop(&mut self) {
        Self::invalidate(self.cpu, self.cleared.take());
    }
}
