//! A tree for one test, the worker for its operations, and the counts of comparisons.

use core::fmt;
use core::ops::AddAssign;

use platform::calibration::UNMEASURED;
use platform::cpu::features::CpuFeatures;
use platform::cpu::tlb::{self, Maintenance};
use stage2::{Counters, Layout, Stage2, Tlb, Worker};
use vm::Stage2Registers;

use crate::tables::HeapTables;

/// The counts of comparisons.
#[derive(Clone, Copy, Default, Debug)]
pub struct Checks {
    /// Combinations of features.
    pub variants: u64,
    /// Translations that succeeded.
    pub translated: u64,
    /// Translations that were refused.
    pub refused: u64,
    /// Access flags that hardware set.
    pub accessed: u64,
    /// Instruction fetches of a guest, allowed or refused.
    pub executed: u64,
    /// Writes that hardware noted.
    pub dirtied: u64,
}

impl AddAssign for Checks {
    fn add_assign(&mut self, other: Self) {
        self.variants += other.variants;
        self.translated += other.translated;
        self.refused += other.refused;
        self.accessed += other.accessed;
        self.executed += other.executed;
        self.dirtied += other.dirtied;
    }
}

impl fmt::Display for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            variants,
            translated,
            refused,
            accessed,
            ..
        } = self;
        write!(
            f,
            "{variants} variants, {translated} translations and {refused} refusals as expected, \
             {accessed} access flags set by hardware"
        )?;
        if self.executed + self.dirtied > 0 {
            let (executed, dirtied) = (self.executed, self.dirtied);
            write!(
                f,
                ", {executed} instruction fetches as expected, {dirtied} writes noted by hardware"
            )?;
        }
        Ok(())
    }
}

/// The calling CPU's worker on such a tree.
pub type OwnWorker<'t> = Worker<'t, HeapTables, Maintenance, HeapTables>;

/// The reason why no operation may fail.
pub const WITHIN: &str = "selftest=stage2: pages of the address space";

/// Lends a tree to `work`. Panics if one of its tables is left afterwards.
pub fn with_tree<R>(
    cpu: &CpuFeatures,
    layout: Layout,
    work: impl FnOnce(&Stage2, &OwnWorker<'_>) -> R,
) -> R {
    // SAFETY: this CPU does one operation after the other on the tree, and keeps no result of any: `work` has no other worker.
    let tables = unsafe { HeapTables::new(&layout) };
    let maintenance = tlb::maintenance(cpu, UNMEASURED);
    let counters = Counters::default();
    let worker = Worker {
        memory: &tables,
        tlb: &maintenance,
        epoch: &tables,
        counters: &counters,
    };
    let stage2 = Stage2::new(tables.root(&layout), layout);
    maintenance.publish_tables();
    let result = work(&stage2, &worker);
    stage2.destroy(&worker).finish(&worker, |_, _, _| {});
    assert_eq!(tables.frames(), 0, "selftest=stage2: tables are left");
    result
}

/// The registers that select a tree.
pub fn registers(stage2: &Stage2) -> Stage2Registers {
    let layout = stage2.layout();
    Stage2Registers {
        vttbr: stage2.vttbr().bits(),
        vtcr: layout.vtcr(),
        forced_write_back: layout.features().fwb,
    }
}
