//! The checker: takes the events of CPUs on trees and TLBs, in the order in which they happen.

use crate::geometry::Geometry;
use crate::input::{Barrier, Memory, Promise, Stamp, Tlbi};
use crate::reads::Translation;
use crate::state::{Pending, State};
use crate::tree::{Change, Tree};
use crate::violation::Violation;
use alloc::vec::Vec;
use core::ops::Range;
use spin::Mutex;

impl Promise {
    fn is_broken_by(self, held: &Translation) -> bool {
        match self {
            Self::NoEntry => true,
            Self::NoWrite => held.writable,
            Self::NoDirty => held.writable && held.dirty_modifier,
            Self::NoExecute => held.execute_never != 0b10,
        }
    }
}

/// Watches any number of trees. Any CPU may call at any time; calls from one CPU come in its program order.
#[derive(Debug)]
pub struct Checker<M> {
    memory: M,
    state: Mutex<State>,
}

impl<M: Memory> Checker<M> {
    /// Without trees.
    pub const fn new(memory: M) -> Self {
        Self {
            memory,
            state: Mutex::new(State::new()),
        }
    }

    /// A tree exists; its root's contents are read.
    pub fn root_created(&self, root: u64, geometry: Geometry) {
        let state = &mut *self.state.lock();
        let now = state.tick();
        let tree = Tree::new(root, geometry, &self.memory, now);
        state.trees.insert(state.next, tree);
        state.roots.insert(root, state.next);
        state.next += 1;
    }

    /// A tree is about to be given up: its tables are going to be freed without another invalidation, no CPU may have it
    /// loaded or hold entries of it.
    pub fn root_retired(&self, root: u64) -> Vec<Violation> {
        self.state.lock().retire(root)
    }

    /// A tree is gone, and all of its frames ought to be free.
    pub fn root_finished(&self, root: u64) -> Vec<Violation> {
        let state = &mut *self.state.lock();
        let leaked = state.roots.remove(&root).and_then(|number| {
            let tree = state.trees.remove(&number)?;
            let frame = *tree.unfreed().first()?;
            Some(Violation::Leaked {
                root,
                tables: tree.unfreed().len(),
                frame,
            })
        });
        leaked.into_iter().collect()
    }

    /// Runs `access`, which tries to change the entry at `entry` on behalf of `cpu` and returns the old and new value of a
    /// change. The access and its consequences are one step.
    pub fn change(
        &self,
        cpu: usize,
        entry: u64,
        access: &mut dyn FnMut() -> Option<(u64, u64)>,
    ) -> Vec<Violation> {
        self.changed_by(Some(cpu), entry, access)
    }

    /// The same for hardware's own updates of access flag and dirty state.
    pub fn hardware_change(
        &self,
        entry: u64,
        access: &mut dyn FnMut() -> Option<(u64, u64)>,
    ) -> Vec<Violation> {
        self.changed_by(None, entry, access)
    }

    fn changed_by(
        &self,
        cpu: Option<usize>,
        entry: u64,
        access: &mut dyn FnMut() -> Option<(u64, u64)>,
    ) -> Vec<Violation> {
        let state = &mut *self.state.lock();
        let mut found = Vec::new();
        let Some((old, new)) = access().filter(|(old, new)| old != new) else {
            return found;
        };
        let now = state.tick();
        let ordered = cpu.map_or(now, |cpu| state.cpu(cpu).ordered);
        let fresh = &state.fresh;
        let is_ordered = |frame| {
            fresh
                .get(&frame)
                .is_none_or(|(_, allocated)| *allocated < ordered)
        };
        for tree in state.trees.values_mut() {
            if let Some((frame, index)) = tree.locate(entry) {
                let change = Change {
                    frame,
                    index,
                    old,
                    new,
                    cpu,
                };
                tree.change(change, &self.memory, now, &is_ordered, &mut found);
            }
        }
        found
    }

    /// `cpu` writes VTTBR_EL2: 0, or the root and VMID of a tree.
    pub fn vttbr(&self, cpu: usize, value: u64) {
        self.state.lock().cpu(cpu).registers.write_vttbr(value);
    }

    /// `cpu` writes VTCR_EL2.
    pub fn vtcr(&self, cpu: usize, value: u64) {
        self.state.lock().cpu(cpu).registers.write_vtcr(value);
    }

    /// `cpu` enters a guest: its loaded registers are in effect, and it may walk. A tree loaded only for an invalidation isn't
    /// walked; once everything of the tree was invalidated and no CPU has it loaded, no CPU can walk it until one enters it.
    pub fn enter(&self, cpu: usize) -> Vec<Violation> {
        let state = &mut *self.state.lock();
        let now = state.tick();
        state.synchronise(cpu);
        state.enter(cpu, &self.memory, now)
    }

    /// `cpu` issues a TLB invalidation, for the VMID in its VTTBR_EL2, as VTCR_EL2 reads it.
    pub fn tlbi(&self, cpu: usize, operation: Tlbi) {
        let state = &mut *self.state.lock();
        let issued = state.tick();
        let cpu = state.cpu(cpu);
        let ordered = if operation.is_local() {
            cpu.ordered.max(cpu.ordered_here)
        } else {
            cpu.ordered
        };
        let pending = Pending {
            operation,
            regimes: cpu.registers.possible().collect(),
            issued,
            ordered,
        };
        cpu.pending.push(pending);
    }

    /// `cpu` executes a barrier.
    pub fn barrier(&self, cpu: usize, barrier: Barrier) {
        let state = &mut *self.state.lock();
        let now = state.tick();
        match barrier {
            Barrier::DsbIsh => state.complete(cpu, |_| true),
            Barrier::DsbNsh => state.complete(cpu, Tlbi::is_local),
            Barrier::Isb => state.synchronise(cpu),
            Barrier::DsbIshst | Barrier::DsbNshst => {}
        }
        let cpu = state.cpu(cpu);
        match barrier {
            Barrier::DsbIsh | Barrier::DsbIshst => cpu.ordered = now,
            Barrier::DsbNsh | Barrier::DsbNshst => cpu.ordered_here = now,
            Barrier::Isb => {}
        }
    }

    /// `cpu` has taken a frame to build a table in.
    pub fn table_allocated(&self, cpu: usize, frame: u64) {
        let state = &mut *self.state.lock();
        let now = state.tick();
        state.fresh.insert(frame, (cpu, now));
    }

    /// `cpu` gives a table's frame (a root's: its first) back.
    pub fn table_freed(&self, cpu: usize, frame: u64) -> Vec<Violation> {
        let state = &mut *self.state.lock();
        state.tick();
        state.fresh.remove(&frame);
        let found = (state.trees.values_mut())
            .filter_map(|tree| tree.free(frame, cpu))
            .collect();
        let gone = |tree: &Tree| tree.is_retired() && tree.unfreed().is_empty();
        state.trees.retain(|_, tree| !gone(tree));
        let trees = &state.trees;
        state.roots.retain(|_, number| trees.contains_key(number));
        found
    }

    /// A guest's memory is given to somebody else.
    pub fn memory_freed(&self, memory: Range<u64>) -> Vec<Violation> {
        let state = &*self.state.lock();
        let leads = |(root, number): (&u64, &u64)| {
            let held = state.trees.get(number)?.leads_to(&memory)?;
            Some(Violation::FreedMapped {
                root: *root,
                memory: memory.clone(),
                held,
            })
        };
        state.roots.iter().filter_map(leads).collect()
    }

    /// The present moment: an operation notes it when it begins, for [`Self::promised`].
    pub fn now(&self) -> Stamp {
        self.state.lock().tick()
    }

    /// An operation that began at `since` returns, and promises this about `range`. Values written since it began don't count:
    /// they come from later changes of others.
    pub fn promised(
        &self,
        root: u64,
        promise: Promise,
        range: Range<u64>,
        since: Stamp,
    ) -> Vec<Violation> {
        let state = &*self.state.lock();
        let broken = state.tree(root).and_then(|tree| {
            let held = tree.stale(range.clone(), since, &|found| promise.is_broken_by(found))?;
            Some(Violation::Promise {
                root,
                promise,
                range,
                held,
            })
        });
        broken.into_iter().collect()
    }

    /// A guest on `cpu` has written to the page at `ipa`.
    pub fn wrote(&self, root: u64, ipa: u64, cpu: usize) {
        self.state.lock().dirty.wrote(root, ipa, cpu);
    }

    /// A harvest has reported the pages of `range` as dirty, and returned.
    pub fn harvested(&self, root: u64, range: Range<u64>) {
        self.state.lock().dirty.harvested(root, range);
    }

    /// Checks that every page that was written since its last harvest is dirty somewhere: in its entry, or in a log.
    pub fn written_is_dirty(&self, root: u64, is_dirty: &dyn Fn(u64) -> bool) -> Vec<Violation> {
        let lost = self.state.lock().dirty.lost(root, is_dirty);
        (lost.into_iter())
            .map(|(ipa, cpu)| Violation::LostDirty { root, ipa, cpu })
            .collect()
    }

    /// Every way in which `cpu` may translate `ipa` now, through a tree.
    pub fn translations(&self, root: u64, cpu: usize, ipa: u64) -> Vec<Translation> {
        let state = &*self.state.lock();
        (state.tree(root))
            .map(|tree| tree.translations(cpu, ipa))
            .unwrap_or_default()
    }

    /// The root of the tree that walkers reach the entry at `entry` in.
    pub fn root_of(&self, entry: u64) -> Option<u64> {
        let state = &*self.state.lock();
        (state.roots.iter())
            .find(|(_, number)| {
                state
                    .trees
                    .get(number)
                    .is_some_and(|tree| tree.locate(entry).is_some())
            })
            .map(|(root, _)| *root)
    }
}
