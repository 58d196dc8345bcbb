//! Stale TLB entries: values that TLBs may still hold, though the tables have changed.
//!
//! The current value of a placed table's entry is in TLBs by definition and isn't repeated here. So the set is small: a value
//! is added when its entry changes, and removed when an invalidation that covers it has completed on every CPU.
//!
//! A stage-2 value in a TLB can turn into a combined one at any time. So a value of [`Kind::Stage2`] stands for both; an
//! invalidation by IPA turns it into one of [`Kind::Combined`].

use crate::conflict::{Claim, overlap};
use crate::cpus::CpuSet;
use crate::descriptor::{Decoded, decode};
use crate::geometry::Geometry;
use crate::input::{Kind, Stamp};
use crate::operand::Scope;
use crate::violation::Copy;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::mem;
use core::ops::Range;

/// An entry of the tree, as a TLB knows it: by level and first address.
type At = (u32, u64);

/// A value that some TLBs may hold.
#[derive(Clone, core::marker::Copy, Debug)]
pub(crate) struct Held {
    pub(crate) word: u64,
    pub(crate) kind: Kind,
    pub(crate) cpus: CpuSet,
    /// The table that it was read from.
    pub(crate) frame: u64,
    /// When it was written to the table.
    pub(crate) visible_from: Stamp,
    /// When no walker could find it any more.
    pub(crate) since: Stamp,
    /// For a combined one: when it couldn't come back out of a stage-2 one any more.
    pub(crate) detached: Stamp,
    /// The CPU whose store removed it.
    pub(crate) writer: Option<usize>,
}

impl Held {
    pub(crate) fn copy(&self, claim: Claim) -> Copy {
        Copy {
            value: self.word,
            level: claim.level,
            ipa: claim.ipa,
            kind: self.kind,
            cpus: self.cpus,
        }
    }
}

/// The stale part of all TLBs, for one tree.
#[derive(Debug)]
pub(crate) struct Tlbs {
    held: BTreeMap<At, Vec<Held>>,
    /// Where there are combined entries without a stage-2 one behind them.
    combined: BTreeSet<At>,
}

impl Tlbs {
    pub(crate) const fn new() -> Self {
        Self {
            held: BTreeMap::new(),
            combined: BTreeSet::new(),
        }
    }

    pub(crate) fn hold(&mut self, at: At, held: Held) {
        if !held.cpus.is_empty() {
            self.held.entry(at).or_default().push(held);
        }
    }

    /// `cpus` can no longer reach a table at `places`: no walker of theirs can have read it since.
    pub(crate) fn cut_off(
        &mut self,
        places: core::ops::RangeInclusive<At>,
        frame: u64,
        cpus: CpuSet,
        since: Stamp,
    ) {
        for records in self.held.range_mut(places).map(|(_, records)| records) {
            let mut earlier = Vec::new();
            for held in records.iter_mut() {
                let theirs = held.cpus & cpus;
                if held.frame == frame && held.since > since && !theirs.is_empty() {
                    held.cpus = held.cpus & !cpus;
                    earlier.push(Held {
                        cpus: theirs,
                        since,
                        writer: None,
                        ..*held
                    });
                }
            }
            records.retain(|held| !held.cpus.is_empty());
            records.extend(earlier);
        }
    }

    /// What is visible to `cpus` is in their TLBs by that alone.
    pub(crate) fn forget_visible(&mut self, visible: Claim, cpus: CpuSet) {
        let at = (visible.level, visible.ipa);
        if let Some(records) = self.held.get_mut(&at) {
            records.retain(|held| held.word != visible.word || !cpus.covers(held.cpus));
            self.tidy(at);
        }
    }

    fn tidy(&mut self, at: At) {
        if self.held.get(&at).is_some_and(Vec::is_empty) {
            self.held.remove(&at);
            self.combined.remove(&at);
        }
    }

    /// The values for addresses in `range`.
    pub(crate) fn records(&self, range: Range<u64>, geometry: &Geometry) -> Vec<(Claim, Held)> {
        let mut found = Vec::new();
        for level in geometry.start..=3 {
            let first = geometry.group(level, range.start).start;
            let end = geometry.group(level, range.end - 1).end;
            for (&(level, ipa), records) in self.held.range((level, first)..(level, end)) {
                for held in records {
                    let claim = Claim {
                        level,
                        ipa,
                        word: held.word,
                    };
                    if overlap(&claim.reach(geometry), &range) {
                        found.push((claim, *held));
                    }
                }
            }
        }
        found
    }

    /// The same, to be reported.
    pub(crate) fn overlapping(&self, range: Range<u64>, geometry: &Geometry) -> Vec<(Claim, Copy)> {
        if self.held.is_empty() {
            return Vec::new();
        }
        (self.records(range, geometry).into_iter())
            .map(|(claim, held)| (claim, held.copy(claim)))
            .collect()
    }

    /// The CPUs that hold a link to `frame`.
    pub(crate) fn linked_by(&self, at: At, frame: u64, geometry: &Geometry) -> CpuSet {
        (self.held.get(&at).into_iter().flatten())
            .filter(|held| {
                held.kind == Kind::Stage2
                    && decode(held.word, at.0, geometry) == Decoded::Table(frame)
            })
            .fold(CpuSet::NONE, |cpus, held| cpus | held.cpus)
    }

    /// Drops stage-2 entries of one level in `scope`; the leaves among them may be in combined entries still, but for a
    /// scope of everything. Returns the tables that dropped links led to, and for which address.
    pub(crate) fn drop_level(
        &mut self,
        level: u32,
        scope: &Scope,
        cpus: CpuSet,
        covers: &dyn Fn(&Held) -> bool,
        now: Stamp,
        geometry: &Geometry,
    ) -> Vec<(u64, u64)> {
        let (range, tables, leaves) = match scope {
            Scope::Nothing | Scope::Combined(_) => return Vec::new(),
            Scope::Everything => (geometry.all(), true, true),
            Scope::Stage2 {
                range,
                last_level,
                level: hint,
            } => (
                range.start & !(geometry.span(level) - 1)..range.end,
                !last_level && hint.is_none_or(|hint| level < hint),
                hint.is_none_or(|hint| level == hint),
            ),
        };
        let mut cut = Vec::new();
        let places: Vec<At> = (self.held.range((level, range.start)..(level, range.end)))
            .map(|(at, _)| *at)
            .collect();
        for at in places {
            let Some(records) = self.held.get_mut(&at) else {
                continue;
            };
            let mut combined = Vec::new();
            for held in records
                .iter_mut()
                .filter(|held| held.kind == Kind::Stage2 && covers(held))
            {
                let gone = held.cpus & cpus;
                match decode(held.word, level, geometry) {
                    Decoded::Table(frame) if tables => cut.push((at.1, frame)),
                    Decoded::Leaf(_) if leaves => combined.push(Held {
                        kind: Kind::Combined,
                        cpus: gone,
                        detached: now,
                        ..*held
                    }),
                    _ => continue,
                }
                held.cpus = held.cpus & !gone;
            }
            if *scope != Scope::Everything {
                records.extend(combined);
            }
            records.retain(|held| !held.cpus.is_empty());
            if records.iter().any(|held| held.kind == Kind::Combined) {
                self.combined.insert(at);
            }
            self.tidy(at);
        }
        cut
    }

    /// Drops combined entries in `scope`, except those that could be formed again when the invalidation was issued.
    pub(crate) fn drop_combined(
        &mut self,
        scope: &Scope,
        cpus: CpuSet,
        covers: &dyn Fn(&Held) -> bool,
        issued: Stamp,
    ) {
        let gone = |held: &Held| {
            held.kind == Kind::Combined
                && covers(held)
                && (*scope == Scope::Everything || held.detached < issued)
        };
        let page = match scope {
            Scope::Nothing | Scope::Stage2 { .. } => return,
            Scope::Everything | Scope::Combined(None) => None,
            Scope::Combined(page) => *page,
        };
        for at in mem::take(&mut self.combined) {
            // One virtual page's entry is all there is of a page, but not of a block.
            let meant = page.is_none_or(|page| at == (3, page));
            let Some(records) = self.held.get_mut(&at) else {
                continue;
            };
            for held in records.iter_mut().filter(|held| meant && gone(held)) {
                held.cpus = held.cpus & !cpus;
            }
            records.retain(|held| !held.cpus.is_empty());
            if records.iter().any(|held| held.kind == Kind::Combined) {
                self.combined.insert(at);
            }
            self.tidy(at);
        }
    }
}
