//! One VM's stage-2 translation: its root, and queries about the whole of it.
//!
//! The operations on its tables are in modules of their own: faults, maps, changes of leaves, unmaps, splits, collapses,
//! teardown. All take `&self` and may run on any CPU at any time.

use crate::address::{Ipa, IpaRange, Level, Vmid, Vttbr};
use crate::bounds::BadAddress;
use crate::descriptor::{Descriptor, Leaf};
use crate::layout::Layout;
use crate::memory::{Epoch, TableFrame, TableMemory, Worker};
use crate::tlb::{Regime, Tlb};
use crate::vmid::VmidHolder;
use crate::walk::{Root, Step, VisitContext};
use core::mem::ManuallyDrop;

/// There was no frame for a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfFrames;

impl core::fmt::Display for OutOfFrames {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("no frame left for a stage-2 table")
    }
}

impl core::error::Error for OutOfFrames {}

/// The stage-2 tables of one VM. They end by [`destroy`](Self::destroy), which takes the whole, so nothing can race with it;
/// merely dropping them leaks the tables.
#[derive(Debug)]
pub struct Stage2 {
    frame: ManuallyDrop<TableFrame>,
    layout: Layout,
    vmid: VmidHolder,
    /// What VTTBR_EL2 holds but for the VMID.
    root: Vttbr,
}

impl Stage2 {
    /// An empty translation whose VMID an allocator is to give. `root` are [`Layout::root_bytes`] of zeroed memory, aligned to
    /// their size.
    ///
    /// # Panics
    /// The root is smaller, larger, or at another address.
    pub fn new(root: TableFrame, layout: Layout) -> Self {
        Self::with_vmid(root, layout, VmidHolder::new())
    }

    /// As [`new`](Self::new), with a VMID of the caller's choice ([`VmidHolder::fixed`]).
    ///
    /// # Panics
    /// As `new`.
    pub fn with_vmid(root: TableFrame, layout: Layout, vmid: VmidHolder) -> Self {
        let bytes = layout.root_bytes();
        assert!(
            root.bytes() == bytes
                && root.pa().is_aligned(bytes)
                && layout.check_backing(root.pa(), bytes).is_ok(),
            "{root:?} is no root of {bytes} bytes"
        );
        #[cfg(feature = "watch")]
        if let Some(watcher) = crate::watch::watcher() {
            watcher.root(root.pa(), &layout, true);
        }
        Self {
            root: Vttbr::new(root.pa(), Vmid(0)),
            frame: ManuallyDrop::new(root),
            layout,
            vmid,
        }
    }

    /// The layout of the tables.
    #[inline]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What gives this VM its VMID.
    pub fn vmid(&self) -> &VmidHolder {
        &self.vmid
    }

    /// The value of VTTBR_EL2 while this VM runs or is invalidated, with its current VMID.
    #[inline]
    pub fn vttbr(&self) -> Vttbr {
        self.root.with_vmid(self.vmid.current())
    }

    /// The regime of its invalidations.
    #[inline]
    pub fn regime(&self) -> Regime<'_> {
        Regime::of(self)
    }

    #[inline]
    pub(crate) fn root(&self) -> Root<'_> {
        Root {
            pa: self.frame.pa(),
            layout: &self.layout,
        }
    }

    pub(crate) fn into_root(self) -> (TableFrame, Layout) {
        (ManuallyDrop::into_inner(self.frame), self.layout)
    }

    /// Visits the entries that cover `range`, in address order, from the root down as the visitor says: for operations that
    /// this crate doesn't have. Returns where the visitor stopped, or the range's end.
    ///
    /// The visitor changes entries by [`VisitContext`]'s verbs only, from what it was shown; what it owes the TLBs
    /// is its own business. It runs inside the caller's epoch, beside every other operation.
    ///
    /// # Errors
    /// The range isn't one of whole pages of the IPA space.
    pub fn walk<'w, M: TableMemory, T: Tlb, E: Epoch>(
        &'w self,
        worker: &Worker<'w, M, T, E>,
        range: IpaRange,
        visit: impl FnMut(&VisitContext<'w>) -> Step,
    ) -> Result<Ipa, BadAddress> {
        self.layout.check(&range)?;
        Ok(self.root().walk(worker, range, visit))
    }

    /// The current leaf for `ipa`, with its level. A locked entry maps nothing, except a block that is being replaced without a
    /// break; nor does an address beyond the IPA space. Changes nothing, and says nothing about TLBs.
    pub fn lookup<M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'_, M, T, E>,
        ipa: Ipa,
    ) -> Option<(Leaf, Level)> {
        loop {
            let observed = self.root().seek(worker, ipa)?.observed;
            match observed.descriptor() {
                Descriptor::Leaf(leaf) => return Some((leaf, observed.level())),
                Descriptor::Invalid => return None,
                Descriptor::Locked => {
                    return observed.marked().map(|block| (block, observed.level()));
                }
                // The tree is dead.
                Descriptor::Frozen if observed.level() == self.layout.start() => return None,
                Descriptor::Frozen | Descriptor::Table(_) => worker.before(Step::Restart),
            }
        }
    }

    /// Invalidates all TLB entries for `range`: on return every CPU translates it by the current tables. For owners that use
    /// [`age`](Self::age), which doesn't invalidate, and need certainty once.
    ///
    /// # Errors
    /// The range isn't one of whole pages of the IPA space.
    pub fn invalidate<M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'_, M, T, E>,
        range: IpaRange,
    ) -> Result<(), BadAddress> {
        self.layout.check(&range)?;
        worker.counters.tlbi_broadcast.add(1);
        worker.tlb.invalidate_range(self.regime(), range, false);
        Ok(())
    }

    /// Calls `clean` with the address and size of each piece of write-back memory mapped in `range`, so that accesses of
    /// the guest that bypass the caches (its MMU or caches being off, or after a set/way operation) see what was written
    /// through them. Nothing to do where the layout has FEAT_S2FWB, as no such access exists then.
    ///
    /// What is mapped or unmapped meanwhile may be missed or cleaned in vain.
    ///
    /// # Errors
    /// The range isn't one of whole pages of the IPA space.
    pub fn clean_caches<M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'_, M, T, E>,
        range: IpaRange,
        mut clean: impl FnMut(crate::Pa, u64),
    ) -> Result<(), BadAddress> {
        self.layout.check(&range)?;
        if self.layout.features().fwb {
            return Ok(());
        }
        self.root()
            .walk(worker, range, |context| match context.descriptor {
                Descriptor::Table(_) => Step::Descend,
                Descriptor::Locked => Step::Wait,
                Descriptor::Frozen => Step::Restart,
                Descriptor::Leaf(leaf) if leaf.memory() == crate::MemoryType::WriteBack => {
                    let within = context.start.get() - context.ipa.get();
                    let bytes = context.end.get() - context.start.get();
                    clean(leaf.pa().offset(within), bytes);
                    Step::Continue
                }
                Descriptor::Leaf(_) | Descriptor::Invalid => Step::Continue,
            });
        Ok(())
    }
}
