//! The engine's operations as the owner of a guest's memory uses them, with what it learns from each.

use std::ops::Range;

use super::{Cpu, Machine, Policy, backing_of, locked, other_backing_of, page};
use stage2::sync::full_barrier;
use stage2::{
    Access, Attributes, Collapsed, Ipa, Leaf, Level, MapFailed, Mapped, Mapping, PAGE_SIZE, Pa,
    Permissions, Resolution, Split,
};

/// Why no range is refused.
const IN_SPACE: &str = "tests name pages of the IPA space";

impl Cpu<'_> {
    /// Maps `range` by leaves of no more than `largest`, which must be all that it makes.
    pub fn map(
        &self,
        range: Range<Ipa>,
        largest: Level,
        permissions: Permissions,
    ) -> Result<Mapped, MapFailed> {
        self.map_on_grounds(range, largest, permissions, || true)
    }

    /// Maps `range` by leaves of `largest`, unless the owner of the memory has published that it may not.
    pub fn map_while_granted(
        &self,
        range: Range<Ipa>,
        largest: Level,
    ) -> Result<Mapped, MapFailed> {
        let machine = self.machine;
        self.map_on_grounds(range, largest, Permissions::RAM, || !machine.is_published())
    }

    fn map_on_grounds(
        &self,
        range: Range<Ipa>,
        largest: Level,
        permissions: Permissions,
        grounds: impl FnMut() -> bool,
    ) -> Result<Mapped, MapFailed> {
        let mapping = Mapping {
            pa: backing_of(range.start),
            attributes: Attributes::memory(permissions),
            largest,
        };
        let result = self.work(|stage2, worker| stage2.map(worker, range, mapping, grounds));
        let mapped = match &result {
            Ok(mapped) => mapped,
            Err(failed) => &failed.mapped,
        };
        let span = self.machine.stage2.layout().span(largest);
        let pages = span / self.machine.stage2.layout().page_size();
        locked(&self.machine.account).held_somewhere += (mapped.leaves * pages) as i64;
        result
    }

    /// Serves a read fault, unless the owner of the memory has published that it may not: looks before the entry is locked,
    /// and after it is.
    pub fn fault_while_granted(&self, ipa: Ipa) {
        if self.machine.is_published() {
            return;
        }
        let request = Policy::PAGES.request(ipa, Access::Read);
        self.work(|stage2, worker| {
            if let Resolution::Vacant(broken) = stage2.fault(worker, &request) {
                let (first, level) = (broken.ipa(), broken.level());
                full_barrier();
                if self.machine.is_published() {
                    let _ = broken.restore();
                    return;
                }
                // SAFETY: the frames' numbers stand for memory within the physical addresses.
                if unsafe { stage2.fill(broken, &request) }.is_ok() {
                    self.hold(first, level, 1);
                }
            }
        });
    }

    /// What the tables say about `ipa`.
    pub fn lookup(&self, ipa: Ipa) -> Option<(Leaf, Level)> {
        self.work(|stage2, worker| stage2.lookup(worker, ipa))
    }

    /// Removes what is mapped in `range`, and gives up the hold on it.
    pub fn unmap(&self, range: Range<Ipa>) -> Vec<(Level, Ipa, Leaf)> {
        let mut removed = Vec::new();
        self.work(|stage2, worker| {
            stage2.unmap(worker, range, |level, ipa, leaf| {
                removed.push((level, ipa, leaf));
            })
        })
        .expect(IN_SPACE);
        for (level, ipa, leaf) in &removed {
            self.removed(*level, *ipa, *leaf);
        }
        removed
    }

    /// Removes what is mapped in these ranges, and gives up the hold on it.
    pub fn unmap_leaves<const N: usize>(&self, ranges: [Range<Ipa>; N]) {
        let mut removed = Vec::new();
        self.work(|stage2, worker| {
            stage2.unmap_leaves(worker, ranges, |level, ipa, leaf| {
                removed.push((level, ipa, leaf));
            })
        })
        .expect(IN_SPACE);
        for (level, ipa, leaf) in removed {
            self.removed(level, ipa, leaf);
        }
    }

    /// Puts `frame` behind the page at `ipa`, if a page is mapped there, with what the frame before it holds; and allows what
    /// `permissions` makes of what was allowed. Whether the page is mapped to it now.
    pub fn replace(
        &self,
        ipa: Ipa,
        frame: Pa,
        permissions: impl Fn(Permissions) -> Permissions,
    ) -> bool {
        let page = ipa..ipa.offset(PAGE_SIZE);
        let mut taken = 0;
        let replaced = self.work(|stage2, worker| {
            stage2.replace(
                worker,
                page,
                |_, leaf| {
                    let permissions = permissions(leaf.attributes().permissions);
                    Some((frame, Attributes::memory(permissions)))
                },
                |ipa, old| {
                    taken += 1;
                    self.removed(Level::L3, ipa, old);
                    if old.pa() != frame {
                        self.copy_frame(old.pa(), frame);
                    }
                },
            )
        });
        let replaced = replaced.expect(IN_SPACE);
        assert!(taken <= 1, "rule 5: one page was handed out {taken} times");
        let is_mapped = replaced.pages == 1;
        if is_mapped {
            self.hold_memory(frame, Level::L3, 1);
        }
        is_mapped
    }

    /// As [`Self::replace`], of the page that is the `index`-th, by its other frame, with all else as it was.
    pub fn move_page(&self, index: u64) -> bool {
        let ipa = page(index);
        self.replace(ipa, other_backing_of(ipa), |permissions| permissions)
    }

    fn removed(&self, level: Level, ipa: Ipa, leaf: Leaf) {
        self.hold_memory(leaf.pa(), level, -1);
        if leaf.dirty() {
            self.copy_leaf(ipa, level);
        }
    }

    /// Makes `range` read-only until a fault relaxes it.
    pub fn write_protect(&self, range: Range<Ipa>) {
        let mut dirty = Vec::new();
        self.work(|stage2, worker| {
            stage2.write_protect(
                worker,
                range,
                |_, _| true,
                |ipa, level| dirty.push((ipa, level)),
            )
        })
        .expect(IN_SPACE);
        self.copy_leaves(dirty);
    }

    /// Gives `range` these permissions.
    pub fn protect(&self, range: Range<Ipa>, permissions: Permissions) {
        let mut dirty = Vec::new();
        self.work(|stage2, worker| {
            stage2.protect(worker, range, permissions, |ipa, level, leaf| {
                if leaf.dirty() {
                    dirty.push((ipa, level));
                }
            })
        })
        .expect(IN_SPACE);
        self.copy_leaves(dirty);
    }

    /// Copies what hardware has noted as written in `range`.
    pub fn harvest(&self, range: Range<Ipa>) {
        let mut dirty = Vec::new();
        self.work(|stage2, worker| {
            stage2.harvest_dirty(worker, range, |ipa, level| dirty.push((ipa, level)))
        })
        .expect(IN_SPACE);
        self.copy_leaves(dirty);
    }

    /// Copies what hardware has noted as written in `range` as a dirty log's harvest does: looks for it first, and makes
    /// clean what it has found second. Leaves larger than those of `largest` become read-only then.
    pub fn find_and_track(&self, range: Range<Ipa>, largest: Level) {
        let layout = *self.machine.stage2.layout();
        let mut found: Vec<Range<Ipa>> = Vec::new();
        let mut forgotten = Vec::new();
        self.work(|stage2, worker| {
            stage2.find_dirty(
                worker,
                range.clone(),
                |_| true,
                |ipa, level, bits| {
                    let span = layout.span(level);
                    let first = |leaf: u64| ipa.offset(leaf * span);
                    let dirty = (0..64).filter(|bit| bits & 1 << bit != 0);
                    found.extend(dirty.map(|leaf| first(leaf)..first(leaf + 1)));
                },
            )?;
            full_barrier();
            stage2.track_writes(
                worker,
                range,
                largest,
                |ipa: Ipa, level| {
                    let end = ipa.offset(layout.span(level));
                    (found.iter()).any(|part| part.start < end && ipa < part.end)
                },
                |ipa, level| forgotten.push((ipa, level)),
            )
        })
        .expect(IN_SPACE);
        for part in found {
            self.copy(part);
        }
        self.copy_leaves(forgotten);
    }

    /// Has hardware note the next write through every leaf in `range`, and hands out none of those that it has noted.
    pub fn track(&self, range: Range<Ipa>, largest: Level) {
        self.work(|stage2, worker| {
            stage2.track_writes(worker, range, largest, |_, _| true, |_, _| {})
        })
        .expect(IN_SPACE);
    }

    fn copy_leaves(&self, leaves: Vec<(Ipa, Level)>) {
        for (ipa, level) in leaves {
            self.copy_leaf(ipa, level);
        }
    }

    fn copy_leaf(&self, ipa: Ipa, level: Level) {
        let span = self.machine.stage2.layout().span(level);
        self.copy(ipa..ipa.offset(span));
    }

    /// Clears access flags. How many leaves had it.
    pub fn age(&self, range: Range<Ipa>) -> usize {
        let mut accessed = 0;
        self.work(|stage2, worker| stage2.age(worker, range, |_, _| accessed += 1))
            .expect(IN_SPACE);
        accessed
    }

    /// Splits the blocks in `range`.
    pub fn split(&self, range: Range<Ipa>, to: Level) -> Split {
        self.work(|stage2, worker| stage2.split(worker, range, to, u64::MAX))
            .expect("this machine's frames don't run out")
    }

    /// Merges the tables in `range` into blocks.
    pub fn collapse(&self, range: Range<Ipa>, to: Level, permissions: Permissions) -> Collapsed {
        self.collapse_as(range, to, |_| permissions)
    }

    /// Merges the tables in `range` into blocks that allow what is said then.
    pub fn collapse_as(
        &self,
        range: Range<Ipa>,
        to: Level,
        permissions: impl Fn(&Machine) -> Permissions,
    ) -> Collapsed {
        let mut removed = Vec::new();
        let collapsed = self.work(|stage2, worker| {
            stage2.collapse(
                worker,
                range,
                to,
                |_| permissions(self.machine),
                |level, ipa, leaf| removed.push((level, ipa, leaf)),
            )
        });
        let collapsed = collapsed.expect(IN_SPACE);
        for (level, ipa, leaf) in removed {
            self.removed(level, ipa, leaf);
        }
        collapsed
    }

    /// Destroys the VM: publishes that, and takes its tables apart. Walkers that were in an epoch before may still be there.
    pub fn destroy(self) {
        let machine = self.machine;
        machine.publish();
        // SAFETY: the machine never touches this translation again, but for walkers of the last moment, who only read its
        // root and layout; and it never drops it.
        let stage2 = unsafe { std::ptr::read(&*machine.stage2) };
        self.work(|_, worker| {
            stage2.destroy(worker).finish(worker, |level, _, leaf| {
                self.hold_memory(leaf.pa(), level, -1)
            })
        });
    }

    /// Looks at the tables, unless the VM was destroyed before this CPU entered its epoch.
    pub fn look_unless_destroyed(&self, ipa: Ipa) {
        self.work(|stage2, worker| {
            if !self.machine.is_published() {
                stage2.lookup(worker, ipa);
            }
        });
    }
}
