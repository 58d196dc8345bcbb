//! Tears down a tree, in bounded steps.
//!
//! The caller owns the tree: no vCPU runs on it, and no operation is started any more. Late walkers may still read its tables,
//! so these are freed through the epoch as always; such a walk ends at the frozen root.

use crate::address::{Ipa, Level, Pa};
use crate::descriptor::{Descriptor, Leaf};
use crate::entry::{Entry, Unlinked};
use crate::layout::Layout;
use crate::memory::{Epoch, TableFrame, TableMemory, Worker, table_entries};
use crate::stage2::Stage2;
use crate::tlb::Tlb;
use core::slice;

/// A tree that is being taken apart. Dropping one before [`step`](Self::step) has said that all is done leaks the rest.
#[must_use = "tables that aren't taken apart leak"]
#[derive(Debug)]
pub struct Teardown {
    root: Option<TableFrame>,
    layout: Layout,
    /// The tables from the root down to the one being emptied.
    path: [Place; 4],
    depth: usize,
}

/// How far a table is emptied.
#[derive(Clone, Copy, Debug)]
struct Place {
    table: Pa,
    first: Ipa,
    next: usize,
}

impl Stage2 {
    /// Begins to give up the tree. No vCPU of this VM runs or will run, and no operation on it is under way or to come.
    /// Invalidates the VMID: from here on no TLB holds anything of it.
    pub fn destroy<M: TableMemory, T: Tlb, E: Epoch>(
        self,
        worker: &Worker<'_, M, T, E>,
    ) -> Teardown {
        worker.counters.tlbi_broadcast.add(1);
        worker.tlb.invalidate_vmid(self.regime());
        let (root, layout) = self.into_root();
        let top = Place {
            table: root.pa(),
            first: Ipa::new(0),
            next: 0,
        };
        Teardown {
            root: Some(root),
            layout,
            path: [top; 4],
            depth: 0,
        }
    }
}

impl Teardown {
    /// Takes apart at most `entries` entries more and hands tables that are empty to the epoch. `removed` gets each leaf.
    /// Whether nothing is left; calling it again then does nothing.
    pub fn step<M: TableMemory, T: Tlb, E: Epoch>(
        &mut self,
        worker: &Worker<'_, M, T, E>,
        entries: usize,
        mut removed: impl FnMut(Level, Ipa, Leaf),
    ) -> bool {
        for _ in 0..entries {
            if self.root.is_none() {
                return true;
            }
            self.take_next(worker, &mut removed);
        }
        self.root.is_none()
    }

    /// Takes all that is left apart.
    pub fn finish<M: TableMemory, T: Tlb, E: Epoch>(
        mut self,
        worker: &Worker<'_, M, T, E>,
        mut removed: impl FnMut(Level, Ipa, Leaf),
    ) {
        while !self.step(worker, usize::MAX, &mut removed) {}
    }

    fn take_next<M: TableMemory, T: Tlb, E: Epoch>(
        &mut self,
        worker: &Worker<'_, M, T, E>,
        removed: &mut impl FnMut(Level, Ipa, Leaf),
    ) {
        let level = self.level();
        let format = self.layout.format();
        let place = self.path[self.depth];
        let Some(entry) = self.entries(worker).get(place.next) else {
            return self.leave(worker);
        };
        let ipa = place
            .first
            .offset((place.next as u64) << self.layout.shift(level));
        self.path[self.depth].next += 1;
        match entry.freeze(level, format).descriptor() {
            Descriptor::Leaf(leaf) => removed(level, ipa, leaf),
            Descriptor::Table(table) => {
                self.depth += 1;
                self.path[self.depth] = Place {
                    table,
                    first: ipa,
                    next: 0,
                };
            }
            Descriptor::Invalid | Descriptor::Locked | Descriptor::Frozen => {}
        }
    }

    /// The level of the table being emptied.
    fn level(&self) -> Level {
        Level::ALL[self.layout.start() as usize + self.depth]
    }

    fn entries<'m, M: TableMemory, T: Tlb, E: Epoch>(
        &self,
        worker: &Worker<'m, M, T, E>,
    ) -> &'m [Entry] {
        let table = self.path[self.depth].table;
        if self.depth > 0 {
            return table_entries(worker.memory, &self.layout, table);
        }
        // SAFETY: the root's frames are one run of `layout.root_tables()` tables, which this owns.
        unsafe {
            slice::from_raw_parts(
                worker.memory.entries(table).as_ptr(),
                self.layout.root_entries(),
            )
        }
    }

    /// Hands the table that has been emptied to the epoch.
    fn leave<M: TableMemory, T: Tlb, E: Epoch>(&mut self, worker: &Worker<'_, M, T, E>) {
        let frame = if self.depth > 0 {
            let frame = TableFrame::from_linked(self.path[self.depth].table, &self.layout);
            self.depth -= 1;
            Some(frame)
        } else {
            self.root.take()
        };
        if let Some(frame) = frame {
            #[cfg(feature = "watch")]
            if let (None, Some(watcher)) = (&self.root, crate::watch::watcher()) {
                watcher.root(frame.pa(), &self.layout, false);
            }
            let tables = frame.bytes() / self.layout.table_size();
            worker.counters.tables_unlinked.add(tables);
            worker.epoch.retire(Unlinked::of_dead_tree(frame));
        }
    }
}
