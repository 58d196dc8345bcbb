//! The accesses that CPUs can make at a moment: the translations that a tree's tables and the CPUs' TLBs allow.

use crate::conflict::{Claim, overlap};
use crate::cpus::CpuSet;
use crate::descriptor::{Decoded, decode};
use crate::geometry::Geometry;
use crate::input::{Kind, Stamp};
use crate::tree::{Seen, Tree};
use crate::violation::Copy;
use alloc::vec::Vec;
use core::ops::Range;

/// A way in which a CPU may translate an address now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The descriptor.
    pub word: u64,
    /// The level that it was read at.
    pub level: u32,
    /// Where the address leads.
    pub output: u64,
    /// As what the CPU has it.
    pub kind: Kind,
    /// The entry that holds it, if it still does.
    pub entry: Option<u64>,
    /// Reads are allowed.
    pub readable: bool,
    /// Writes are allowed, and nothing notes them.
    pub writable: bool,
    /// Hardware may make it writable, which notes the write in the entry.
    pub dirty_modifier: bool,
    /// The XN field, two bits.
    pub execute_never: u64,
    /// The access flag.
    pub accessed: bool,
}

impl Tree {
    /// All leaves in tables that walkers can be in, for addresses in `range`; `detached` ones only, if the tree itself
    /// mustn't lead there any more.
    fn visible(
        &self,
        range: Range<u64>,
        detached: bool,
        visit: &mut dyn FnMut(Claim, Seen, u64, CpuSet),
    ) {
        for level in self.geometry.start..=3 {
            let span = self.geometry.table_span(level);
            let first = range.start & !(span - 1);
            for (&(level, base), frames) in self.placed.range((level, first)..(level, range.end)) {
                for frame in frames {
                    if detached && self.is_linked(*frame, level, base) {
                        continue;
                    }
                    let table = &self.tables[frame];
                    let reach = (table.placements.iter())
                        .find(|placement| (placement.level, placement.ipa) == (level, base))
                        .map_or(CpuSet::NONE, |placement| placement.reach);
                    for (index, seen) in table.entries.iter().enumerate() {
                        let claim = Claim {
                            level,
                            ipa: base + index as u64 * self.geometry.span(level),
                            word: seen.word,
                        };
                        let is_leaf =
                            matches!(decode(seen.word, level, &self.geometry), Decoded::Leaf(_));
                        if is_leaf && overlap(&claim.reach(&self.geometry), &range) {
                            visit(claim, *seen, frame + index as u64 * 8, reach);
                        }
                    }
                }
            }
        }
    }

    /// A leaf for an address in `range` that TLBs may hold, although the tables have changed, whose value was written before
    /// `since` and matches `forbidden`.
    pub(crate) fn stale(
        &self,
        range: Range<u64>,
        since: Stamp,
        forbidden: &dyn Fn(&Translation) -> bool,
    ) -> Option<Copy> {
        let geometry = &self.geometry;
        let bad = |claim: Claim, kind, visible_from: Stamp| {
            visible_from < since
                && translation(claim, claim.ipa, kind, None, geometry)
                    .is_some_and(|found| found.accessed && forbidden(&found))
        };
        let mut worst = (self.tlbs.records(range.clone(), geometry).into_iter())
            .find(|(claim, held)| bad(*claim, held.kind, held.visible_from))
            .map(|(claim, held)| held.copy(claim));
        self.visible(range, true, &mut |claim, seen, _, reach| {
            if worst.is_none() && bad(claim, Kind::Visible, seen.since) {
                worst = Some(Copy {
                    value: claim.word,
                    level: claim.level,
                    ipa: claim.ipa,
                    kind: Kind::Visible,
                    cpus: reach,
                });
            }
        });
        worst
    }

    /// Something that leads to this physical memory.
    pub(crate) fn leads_to(&self, memory: &Range<u64>) -> Option<Copy> {
        let geometry = &self.geometry;
        let leads = |claim: Claim| {
            let start = claim.output(claim.ipa, geometry)?;
            overlap(&(start..start + geometry.span(claim.level)), memory).then_some(())
        };
        let all = geometry.all();
        let mut found = (self.tlbs.records(all.clone(), geometry).into_iter())
            .find(|(claim, _)| leads(*claim).is_some())
            .map(|(claim, held)| held.copy(claim));
        self.visible(all, false, &mut |claim, _, _, reach| {
            if found.is_none() && leads(claim).is_some() {
                found = Some(Copy {
                    value: claim.word,
                    level: claim.level,
                    ipa: claim.ipa,
                    kind: Kind::Visible,
                    cpus: reach,
                });
            }
        });
        found
    }

    /// Every way in which `cpu` may translate `ipa` now.
    pub(crate) fn translations(&self, cpu: usize, ipa: u64) -> Vec<Translation> {
        let geometry = &self.geometry;
        let mut all = Vec::new();
        self.visible(ipa..ipa + 1, false, &mut |claim, _, entry, reach| {
            if reach.contains(cpu) {
                all.extend(translation(
                    claim,
                    ipa,
                    Kind::Visible,
                    Some(entry),
                    geometry,
                ));
            }
        });
        for (claim, held) in self.tlbs.records(ipa..ipa + 1, geometry) {
            if held.cpus.contains(cpu) {
                all.extend(translation(claim, ipa, held.kind, None, geometry));
            }
        }
        all
    }
}

fn translation(
    claim: Claim,
    ipa: u64,
    kind: Kind,
    entry: Option<u64>,
    geometry: &Geometry,
) -> Option<Translation> {
    let Decoded::Leaf(leaf) = decode(claim.word, claim.level, geometry) else {
        return None;
    };
    Some(Translation {
        word: claim.word,
        level: claim.level,
        output: claim.output(ipa, geometry)?,
        kind,
        entry,
        readable: leaf.readable,
        writable: leaf.writable,
        dirty_modifier: leaf.dirty_modifier,
        execute_never: leaf.execute_never,
        accessed: leaf.accessed,
    })
}
