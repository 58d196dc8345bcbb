//! One VM's stage-2 translation: its root, and what its owner does with it as a whole.

use crate::address::{Ipa, IpaRange, Level, PAGE_SIZE, Vttbr};
use crate::descriptor::{Descriptor, Leaf};
use crate::entry::Unlinked;
use crate::memory::{Epoch, TableFrame, TableMemory, Worker};
use crate::root::RootShape;
use crate::tlb::Tlb;
use crate::vmid::VmidHolder;
use crate::walk::{Root, Step};
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

/// The stage-2 tables of one VM. All operations take `&self` and may run on any CPU at any time; only
/// [`destroy`](Self::destroy), which nobody can be racing with, takes the whole.
#[derive(Debug)]
pub struct Stage2 {
    frame: ManuallyDrop<TableFrame>,
    shape: RootShape,
    vmid: VmidHolder,
}

impl Stage2 {
    /// An empty translation with a root of the given shape. `root` are `shape.frames()` zeroed frames in one run that is
    /// aligned to its size.
    pub fn new(root: TableFrame, shape: RootShape) -> Self {
        debug_assert!(root.pa().is_aligned(shape.bytes()) && root.tables() == shape.frames());
        Self {
            frame: ManuallyDrop::new(root),
            shape,
            vmid: VmidHolder::new(),
        }
    }

    /// The shape of the root.
    pub fn shape(&self) -> RootShape {
        self.shape
    }

    /// What gives this VM its VMID.
    pub fn vmid(&self) -> &VmidHolder {
        &self.vmid
    }

    /// What VTTBR_EL2 holds while this VM runs or is invalidated.
    pub fn vttbr(&self) -> Vttbr {
        Vttbr::new(self.frame.pa(), self.vmid.current())
    }

    /// Whether a range lies within the IPA space.
    pub fn contains(&self, range: &IpaRange) -> bool {
        range.start <= range.end && range.end.get() <= 1 << self.shape.ipa_bits()
    }

    /// The whole IPA space.
    pub fn all(&self) -> IpaRange {
        Ipa::new(0)..Ipa::new(1 << self.shape.ipa_bits())
    }

    pub(crate) fn root(&self) -> Root {
        Root {
            pa: self.frame.pa(),
            shape: self.shape,
        }
    }

    /// What maps `ipa` at this moment, and at which level. A locked entry maps nothing.
    pub fn lookup<M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'_, M, T, E>,
        ipa: Ipa,
    ) -> Option<(Leaf, Level)> {
        let page = ipa.align_down(PAGE_SIZE);
        let mut found = None;
        self.root().walk(
            worker,
            page..page.offset(PAGE_SIZE),
            |context| match context.descriptor {
                Descriptor::Table(_) => Step::Descend,
                Descriptor::Frozen => Step::Restart,
                Descriptor::Leaf(leaf) => {
                    found = Some((leaf, context.level));
                    Step::Stop
                }
                Descriptor::Invalid | Descriptor::Locked => Step::Stop,
            },
        );
        found
    }

    /// Unmaps everything and hands all tables, the root last, to the epoch. No vCPU of this VM runs or will run.
    /// `removed` gets every leaf, as in [`unmap`](Self::unmap).
    pub fn destroy<M: TableMemory, T: Tlb, E: Epoch>(
        self,
        worker: &Worker<'_, M, T, E>,
        removed: impl FnMut(Level, Ipa, Leaf),
    ) {
        let vm = self.vttbr();
        self.unmap(worker, self.all(), removed);
        worker.counters.tlbi_broadcast.add(1);
        worker.tlb.invalidate_vmid(vm);
        worker
            .counters
            .tables_unlinked
            .add(self.shape.frames() as u64);
        worker
            .epoch
            .retire(Unlinked::root(ManuallyDrop::into_inner(self.frame)));
    }
}
