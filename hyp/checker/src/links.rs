//! Tracks which tables walkers can be in, as tables are linked and links are invalidated.

use crate::cpus::CpuSet;
use crate::descriptor::{Decoded, decode};
use crate::input::{Memory, Stamp};
use crate::operand::Scope;
use crate::tlbs::Held;
use crate::tree::{Placement, Seen, Table, Tree};
use crate::violation::Violation;
use alloc::vec::Vec;

impl Tree {
    /// Places `frame` and the tables below it for more CPUs. `linked` gets the frames that weren't in the tree before.
    pub(crate) fn link(
        &mut self,
        frame: u64,
        at: (u32, u64),
        cpus: CpuSet,
        memory: &impl Memory,
        now: Stamp,
        linked: &mut Vec<u64>,
    ) {
        let (level, ipa) = at;
        let words: Vec<u64> = (0..self.geometry.entries(level) as u64)
            .map(|index| memory.load(frame + index * 8))
            .collect();
        if self.frames.insert(frame) {
            linked.push(frame);
        }
        self.refresh(frame, &words, now);
        let Some(table) = self.tables.get_mut(&frame) else {
            return;
        };
        match (table.placements.iter_mut()).find(|placement| (placement.level, placement.ipa) == at)
        {
            Some(placement) if placement.reach.covers(cpus) => return,
            Some(placement) => placement.reach = placement.reach | cpus,
            None => {
                table.placements.push(Placement {
                    level,
                    ipa,
                    reach: cpus,
                });
                self.placed.entry(at).or_default().push(frame);
            }
        }
        for (index, word) in words.into_iter().enumerate() {
            if let Decoded::Table(child) = decode(word, level, &self.geometry) {
                let ipa = ipa + index as u64 * self.geometry.span(level);
                self.link(child, (level + 1, ipa), cpus, memory, now, linked);
            }
        }
    }

    /// Reads a frame that is about to be linked. Some walkers may still be in it, from its former use as another table: they
    /// see the new contents too, and keep the old.
    fn refresh(&mut self, frame: u64, words: &[u64], now: Stamp) {
        let seen = |word: &u64| Seen {
            word: *word,
            since: now,
        };
        let Some(table) = self.tables.get(&frame) else {
            let table = Table {
                entries: words.iter().map(seen).collect(),
                placements: Vec::new(),
            };
            self.tables.insert(frame, table);
            return;
        };
        let old = table.entries.clone();
        for placement in table.placements.clone() {
            for (index, (old, new)) in old.iter().zip(words).enumerate() {
                if old.word != *new {
                    let ipa = placement.ipa + index as u64 * self.geometry.span(placement.level);
                    self.hold(
                        frame,
                        (placement.level, ipa),
                        *old,
                        placement.reach,
                        now,
                        None,
                    );
                }
            }
        }
        if let Some(table) = self.tables.get_mut(&frame) {
            for (old, new) in table.entries.iter_mut().zip(words) {
                if old.word != *new {
                    *old = seen(new);
                }
            }
        }
    }

    /// Carries out an invalidation on `cpus`, for TLB entries from before it was issued, as `covers` says.
    pub(crate) fn invalidate(
        &mut self,
        scope: &Scope,
        cpus: CpuSet,
        covers: &dyn Fn(&Held) -> bool,
        issued: Stamp,
        now: Stamp,
    ) {
        for level in self.geometry.start..=3 {
            for (ipa, frame) in
                self.tlbs
                    .drop_level(level, scope, cpus, covers, now, &self.geometry)
            {
                // What was reached through the dropped link only stays in the TLB, as from before the invalidation,
                // which covers it too if it is in its scope.
                self.shrink(frame, level + 1, ipa, Stamp(issued.0 - 1));
            }
        }
        self.tlbs.drop_combined(scope, cpus, covers, issued);
    }

    /// Recomputes which CPUs reach `frame` at a place. CPUs that lose it keep what they saw.
    fn shrink(&mut self, frame: u64, level: u32, ipa: u64, since: Stamp) {
        let reach = self.reach(frame, level, ipa);
        let Some(table) = self.tables.get_mut(&frame) else {
            return;
        };
        let place = |placement: &Placement| (placement.level, placement.ipa) == (level, ipa);
        let Some(placement) = table
            .placements
            .iter_mut()
            .find(|placement| place(placement))
        else {
            return;
        };
        let lost = placement.reach & !reach;
        placement.reach = reach;
        if lost.is_empty() {
            return;
        }
        let entries = table.entries.clone();
        let last = ipa + self.geometry.table_span(level) - 1;
        self.tlbs
            .cut_off((level, ipa)..=(level, last), frame, lost, since);
        for (index, seen) in entries.into_iter().enumerate() {
            let ipa = ipa + index as u64 * self.geometry.span(level);
            self.hold(frame, (level, ipa), seen, lost, since, None);
        }
        if reach.is_empty()
            && let Some(table) = self.tables.get_mut(&frame)
        {
            table.placements.retain(|placement| !place(placement));
            if table.placements.is_empty() {
                self.tables.remove(&frame);
            }
            self.unplace(frame, (level, ipa));
        }
    }

    fn unplace(&mut self, frame: u64, at: (u32, u64)) {
        if let Some(frames) = self.placed.get_mut(&at) {
            frames.retain(|other| *other != frame);
            if frames.is_empty() {
                self.placed.remove(&at);
            }
        }
    }

    /// The CPUs that some entry, in memory or in their TLBs, leads to `frame` at a place below the root.
    fn reach(&self, frame: u64, level: u32, ipa: u64) -> CpuSet {
        let above = level - 1;
        let mut reach = self.tlbs.linked_by((above, ipa), frame, &self.geometry);
        let first = ipa & !(self.geometry.table_span(above) - 1);
        for parent in self.placed.get(&(above, first)).into_iter().flatten() {
            let table = &self.tables[parent];
            let index = ((ipa - first) >> self.geometry.shift(above)) as usize;
            if decode(table.entries[index].word, above, &self.geometry) == Decoded::Table(frame) {
                for placement in &table.placements {
                    if (placement.level, placement.ipa) == (above, first) {
                        reach = reach | placement.reach;
                    }
                }
            }
        }
        reach
    }

    /// Whether the tree itself, as it is in memory, leads to `frame` at a place.
    pub(crate) fn is_linked(&self, frame: u64, level: u32, ipa: u64) -> bool {
        let mut table = self.root;
        for above in self.geometry.start..level {
            let Some(found) = self.tables.get(&table) else {
                return false;
            };
            let first = ipa & !(self.geometry.table_span(above) - 1);
            let index = ((ipa - first) >> self.geometry.shift(above)) as usize;
            match decode(found.entries[index].word, above, &self.geometry) {
                Decoded::Table(next) => table = next,
                Decoded::Leaf(_) | Decoded::Invalid => return false,
            }
        }
        table == frame
    }

    /// Notes that a frame was freed, and checks who can still reach it.
    pub(crate) fn free(&mut self, frame: u64, cpu: usize) -> Option<Violation> {
        self.frames.remove(&frame);
        let table = self.tables.remove(&frame)?;
        let mut violation = None;
        for placement in &table.placements {
            violation = Some(Violation::FreedReachable {
                at: self.place(frame, 0, placement.level, placement.ipa),
                cpu,
                cpus: placement.reach,
                linked: self.is_linked(frame, placement.level, placement.ipa),
            });
            self.unplace(frame, (placement.level, placement.ipa));
        }
        violation
    }
}
