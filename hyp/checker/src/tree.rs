//! One tree: its tables as walkers see them, and for each table the CPUs whose walkers can be in it.
//!
//! A table is *placed* where an entry, in memory or in a TLB, leads to it: at a level and an IPA, for the CPUs that can follow
//! that entry. Live tables are placed for every CPU. An unlinked table stays placed for the CPUs that may still hold the old
//! link; they may walk to anything it holds meanwhile. The entries of a placed table are in the TLBs of those CPUs by
//! definition; their former values are in [`Tlbs`](crate::tlbs::Tlbs).

use crate::conflict::{Claim, conflict};
use crate::cpus::CpuSet;
use crate::descriptor::{Decoded, decode, is_cached, is_hardware_update};
use crate::geometry::Geometry;
use crate::input::{Kind, Memory, Stamp};
use crate::tlbs::{Held, Tlbs};
use crate::violation::{Place, Violation};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// The last announced value of an entry, and when it was written.
#[derive(Clone, core::marker::Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) word: u64,
    pub(crate) since: Stamp,
}

/// Where a table is, and for whom.
#[derive(Clone, core::marker::Copy, Debug)]
pub(crate) struct Placement {
    pub(crate) level: u32,
    pub(crate) ipa: u64,
    pub(crate) reach: CpuSet,
}

#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) entries: Vec<Seen>,
    pub(crate) placements: Vec<Placement>,
}

/// A change of an entry.
#[derive(Clone, core::marker::Copy, Debug)]
pub(crate) struct Change {
    pub(crate) frame: u64,
    pub(crate) index: usize,
    pub(crate) old: u64,
    pub(crate) new: u64,
    /// Who made it: a CPU, or hardware.
    pub(crate) cpu: Option<usize>,
}

/// One tree.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) root: u64,
    pub(crate) geometry: Geometry,
    pub(crate) vmid: Option<u16>,
    /// No CPU has it loaded or holds anything of it. Then it may change at will, and isn't followed.
    pub(crate) dormant: bool,
    /// Given up: nothing of it is watched any more but that its frames are freed.
    pub(crate) retired: bool,
    pub(crate) tables: BTreeMap<u64, Table>,
    /// The frames placed at each level and first IPA of a table.
    pub(crate) placed: BTreeMap<(u32, u64), Vec<u64>>,
    /// Frames that were linked and not freed yet.
    pub(crate) frames: BTreeSet<u64>,
    pub(crate) tlbs: Tlbs,
}

impl Tree {
    /// A tree with its root's contents.
    pub(crate) fn new(root: u64, geometry: Geometry, memory: &impl Memory, now: Stamp) -> Self {
        let mut tree = Self {
            root,
            geometry,
            vmid: None,
            dormant: false,
            retired: false,
            tables: BTreeMap::new(),
            placed: BTreeMap::new(),
            frames: BTreeSet::new(),
            tlbs: Tlbs::new(),
        };
        tree.link(
            root,
            (geometry.start, 0),
            CpuSet::ALL,
            memory,
            now,
            &mut Vec::new(),
        );
        tree
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired
    }

    /// The frame and index of the entry at `address`, if walkers can reach it.
    pub(crate) fn locate(&self, address: u64) -> Option<(u64, usize)> {
        let (&frame, table) = self.tables.range(..=address).next_back()?;
        let index = ((address - frame) / 8) as usize;
        (index < table.entries.len()).then_some((frame, index))
    }

    pub(crate) fn place(&self, frame: u64, index: usize, level: u32, ipa: u64) -> Place {
        Place {
            root: self.root,
            vmid: self.vmid,
            entry: frame + index as u64 * 8,
            level,
            ipa,
        }
    }

    /// The tables under a claim, and the entries in them that walkers make something of.
    fn visit_under(&self, claim: Claim, visit: &mut dyn FnMut(Claim)) {
        let (Decoded::Table(frame), level) = (
            decode(claim.word, claim.level, &self.geometry),
            claim.level + 1,
        ) else {
            return;
        };
        let Some(table) = self.tables.get(&frame) else {
            return;
        };
        for (index, seen) in table.entries.iter().enumerate() {
            let ipa = claim.ipa + index as u64 * self.geometry.span(level);
            let below = Claim {
                level,
                ipa,
                word: seen.word,
            };
            if decode(seen.word, level, &self.geometry) != Decoded::Invalid {
                visit(below);
                self.visit_under(below, visit);
            }
        }
    }

    /// Notes a change and returns what is wrong with it. `ordered` says whether the linking CPU has ordered a frame's contents.
    pub(crate) fn change(
        &mut self,
        change: Change,
        memory: &impl Memory,
        now: Stamp,
        ordered: &dyn Fn(u64) -> bool,
        found: &mut Vec<Violation>,
    ) {
        let placements = self.tables[&change.frame].placements.clone();
        self.check_announced(change, &placements, now, found);
        for placement in &placements {
            let ipa = placement.ipa + change.index as u64 * self.geometry.span(placement.level);
            let at = |word| Claim {
                level: placement.level,
                ipa,
                word,
            };
            let (old, new) = (at(change.old), at(change.new));
            if let Decoded::Table(frame) = decode(change.new, placement.level, &self.geometry) {
                let mut linked = Vec::new();
                self.link(
                    frame,
                    (placement.level + 1, ipa),
                    placement.reach,
                    memory,
                    now,
                    &mut linked,
                );
                if let Some(&frame) = linked.iter().find(|frame| !ordered(**frame)) {
                    found.push(Violation::Unordered {
                        at: self.place(change.frame, change.index, placement.level, ipa),
                        cpu: change.cpu.unwrap_or(0),
                        frame,
                    });
                }
            }
            found.extend(self.judge(change, old, new));
            self.tlbs.forget_visible(new, placement.reach);
            let seen = self.tables[&change.frame].entries[change.index];
            self.hold(
                change.frame,
                (placement.level, ipa),
                seen,
                placement.reach,
                now,
                change.cpu,
            );
        }
        if let Some(table) = self.tables.get_mut(&change.frame) {
            table.entries[change.index] = Seen {
                word: change.new,
                since: now,
            };
        }
    }

    /// Values that CPUs saw at a place stay in their TLBs, where TLBs can hold such values.
    pub(crate) fn hold(
        &mut self,
        frame: u64,
        at: (u32, u64),
        seen: Seen,
        cpus: CpuSet,
        since: Stamp,
        writer: Option<usize>,
    ) {
        if is_cached(seen.word, at.0, &self.geometry) {
            self.tlbs.hold(
                at,
                Held {
                    word: seen.word,
                    frame,
                    kind: Kind::Stage2,
                    cpus,
                    visible_from: seen.since,
                    since,
                    detached: Stamp(0),
                    writer,
                },
            );
        }
    }

    /// Checks that an entry holds the last value announced, apart from changes by hardware.
    fn check_announced(
        &mut self,
        change: Change,
        placements: &[Placement],
        now: Stamp,
        found: &mut Vec<Violation>,
    ) {
        let Some(table) = self.tables.get_mut(&change.frame) else {
            return;
        };
        let seen = table.entries[change.index];
        if seen.word == change.old {
            return;
        }
        table.entries[change.index] = Seen {
            word: change.old,
            since: now,
        };
        for placement in placements {
            let ipa = placement.ipa + change.index as u64 * self.geometry.span(placement.level);
            self.hold(
                change.frame,
                (placement.level, ipa),
                seen,
                placement.reach,
                now,
                None,
            );
            if !is_hardware_update(seen.word, change.old) {
                found.push(Violation::Unannounced {
                    at: self.place(change.frame, change.index, placement.level, ipa),
                    expected: seen.word,
                    found: change.old,
                });
            }
        }
    }

    /// What is wrong with making `new` of `old`: the worst, if several things are.
    fn judge(&self, change: Change, old: Claim, new: Claim) -> Option<Violation> {
        let geometry = &self.geometry;
        let at = self.place(change.frame, change.index, new.level, new.ipa);
        let cpu = change.cpu.unwrap_or(0);
        if decode(new.word, new.level, geometry) == Decoded::Invalid {
            return None;
        }
        let mut why = conflict(old, new, geometry);
        self.visit_under(old, &mut |below| {
            why = why.or(conflict(below, new, geometry))
        });
        self.visit_under(new, &mut |below| {
            why = why.or(conflict(below, old, geometry))
        });
        if let Some(why) = why {
            return Some(Violation::NoBreak {
                at,
                cpu,
                old: change.old,
                new: change.new,
                why,
            });
        }
        let held = self.tlbs.overlapping(new.reach(geometry), geometry);
        let mut worst = None;
        let mut judge = |claim: Claim| {
            for (other, copy) in &held {
                if worst.is_none() {
                    worst = conflict(claim, *other, geometry).map(|why| (*copy, why));
                }
            }
        };
        judge(new);
        if !held.is_empty() {
            self.visit_under(new, &mut judge);
        }
        if let Some((held, why)) = worst {
            return Some(Violation::NotInvalidated {
                at,
                cpu,
                new: change.new,
                held,
                why,
            });
        }
        self.neighbours(change.frame, change.index, new)
            .find_map(|other| {
                conflict(new, other, geometry).map(|why| Violation::Misgrouped {
                    at,
                    cpu,
                    new: change.new,
                    neighbour: other.ipa,
                    other: other.word,
                    why,
                })
            })
    }

    /// The entries beside `claim` that could be in one group with it.
    fn neighbours(&self, frame: u64, index: usize, claim: Claim) -> impl Iterator<Item = Claim> {
        let size = self.geometry.groups[claim.level as usize];
        let first = index & !(size - 1);
        let span = self.geometry.span(claim.level);
        let base = claim.ipa - (index - first) as u64 * span;
        let entries = self
            .tables
            .get(&frame)
            .map(|table| &table.entries[..])
            .unwrap_or_default();
        let group = entries.get(first..first + size).unwrap_or_default();
        (group.iter().enumerate())
            .filter(move |(place, _)| first + place != index)
            .map(move |(place, seen)| Claim {
                level: claim.level,
                ipa: base + place as u64 * span,
                word: seen.word,
            })
    }

    /// Gives the tree up: nothing is expected any more but that its frames are freed.
    pub(crate) fn retire(&mut self) {
        self.retired = true;
        self.rest();
    }

    /// Nobody walks it or holds anything of it, from now on.
    pub(crate) fn rest(&mut self) {
        self.dormant = true;
        self.tables.clear();
        self.placed.clear();
        self.tlbs = Tlbs::new();
    }

    /// Somebody may walk it, from now on: as it is.
    pub(crate) fn wake(&mut self, memory: &impl Memory, now: Stamp) {
        if self.dormant && !self.retired {
            self.dormant = false;
            let top = (self.geometry.start, 0);
            self.link(self.root, top, CpuSet::ALL, memory, now, &mut Vec::new());
        }
    }

    /// Frames that were linked and never freed.
    pub(crate) fn unfreed(&self) -> &BTreeSet<u64> {
        &self.frames
    }
}
