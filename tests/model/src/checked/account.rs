//! What the guest did and what the owner of its memory was told, to be compared with the tables in the end: no write and
//! no mapping may be lost, none counted twice.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{Cpu, Machine, backing_of, locked};
use stage2::{Descriptor, Granule, Ipa, Layout, Leaf, Level, PAGE_SIZE, Pa, Step};

/// What the guest did, and what the owner of its memory knows.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// Writes by the guest, by page.
    writes: BTreeMap<Ipa, u64>,
    /// Those that a frame holds: what was written to it, and to the frame that it is a copy of until then.
    contents: BTreeMap<Pa, u64>,
    /// Of those, the ones that were there when the page was last copied.
    copied: BTreeMap<Ipa, u64>,
    /// How often each frame is mapped.
    held: BTreeMap<Pa, i64>,
    /// Pages that are mapped somewhere beside that.
    pub(super) held_somewhere: i64,
    counted: usize,
}

impl Account {
    /// Checks that each mapping was removed once, or is still there.
    pub(super) fn assert_holds(&self, tables: &Snapshot) {
        if self.held_somewhere == 0 {
            let frames: BTreeSet<Pa> = tables.frames().map(|(_, frame)| frame).collect();
            for (frame, held) in &self.held {
                assert_eq!(
                    *held,
                    i64::from(frames.contains(frame)),
                    "rule 5: mappings of {frame} that nobody removed, and whether it is mapped"
                );
            }
        }
        let held = self.held.values().sum::<i64>() + self.held_somewhere;
        assert_eq!(
            held,
            tables.leaves.len() as i64,
            "rule 5: a mapping was lost"
        );
    }
}

/// What the tables hold while nothing runs.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// The leaf of each page.
    pub(super) leaves: BTreeMap<Ipa, (Leaf, Level)>,
    /// The table under each entry.
    pub(super) links: BTreeMap<(Level, Ipa), Pa>,
}

impl Snapshot {
    /// Every page that is mapped, and what to.
    fn frames(&self) -> impl Iterator<Item = (Ipa, Pa)> {
        (self.leaves.iter()).map(|(ipa, (leaf, level))| {
            let span = Granule::Size4K.span(*level);
            (*ipa, leaf.pa().offset(ipa.offset_in(span)))
        })
    }

    /// Checks that groups are whole: all leaves of one carry the contiguous bit, the same attributes, and addresses in line.
    pub(super) fn assert_groups(&self, layout: &Layout) {
        for (ipa, (leaf, level)) in &self.leaves {
            let Some(size) = layout.group(*level).filter(|_| leaf.contiguous()) else {
                continue;
            };
            let span = layout.span(*level);
            let bytes = span * size as u64;
            let first = ipa.align_down(bytes);
            for offset in (0..bytes).step_by(span as usize) {
                let member = self.leaves.get(&first.offset(offset)).map(|(leaf, _)| leaf);
                let alike = member.is_some_and(|member| {
                    member.contiguous()
                        && member.attributes() == leaf.attributes()
                        && member.pa() == leaf.pa().align_down(bytes).offset(offset)
                });
                assert!(
                    alike,
                    "rule 2: {leaf:?} at {ipa} is in a group with {member:?}"
                );
            }
        }
    }
}

impl Machine {
    /// What the tables hold, while nothing else runs.
    pub(super) fn snapshot(&self) -> Snapshot {
        let mut found = Snapshot::default();
        self.cpu(0)
            .work(|stage2, worker| {
                let all = stage2.layout().all();
                stage2.walk(worker, all, |context| {
                    match context.descriptor {
                        Descriptor::Table(pa) => {
                            found.links.insert((context.level, context.ipa), pa);
                            return Step::Descend;
                        }
                        Descriptor::Leaf(leaf) => {
                            let bytes = context.ipa_end.get() - context.ipa.get();
                            for offset in (0..bytes).step_by(PAGE_SIZE as usize) {
                                let at = context.ipa.offset(offset);
                                found.leaves.insert(at, (leaf, context.level));
                            }
                        }
                        Descriptor::Invalid => {}
                        left @ (Descriptor::Locked | Descriptor::Frozen) => {
                            panic!("rule 2: {} was left {left:?}", context.ipa)
                        }
                    }
                    Step::Continue
                })
            })
            .expect("all of the IPA space");
        found
    }

    /// Adds to what the CPUs count together.
    pub fn count(&self, more: usize) {
        locked(&self.account).counted += more;
    }

    /// What the CPUs have counted.
    pub fn counted(&self) -> usize {
        locked(&self.account).counted
    }

    /// Whether all that the guest wrote to the page was copied.
    pub fn is_copied(&self, ipa: Ipa) -> bool {
        let account = locked(&self.account);
        account.writes.get(&ipa) == account.copied.get(&ipa)
    }

    /// Checks, while nothing runs, that what each page is mapped to holds all that the guest has written to the page.
    pub fn assert_writes_are_there(&self) {
        let found = self.snapshot();
        let account = locked(&self.account);
        for (ipa, frame) in found.frames() {
            let written = account.writes.get(&ipa).copied().unwrap_or(0);
            let there = account.contents.get(&frame).copied().unwrap_or(0);
            assert_eq!(
                there, written,
                "rule 2: writes to {ipa} that are in its frame, and all of them"
            );
        }
    }

    pub(super) fn note_write(&self, ipa: Ipa, frame: Pa) {
        let mut account = locked(&self.account);
        *account.writes.entry(ipa).or_default() += 1;
        *account.contents.entry(frame).or_default() += 1;
    }
}

impl Cpu<'_> {
    /// Notes that the leaf of `level` at `first` is mapped so often more.
    pub fn hold(&self, first: Ipa, level: Level, more: i64) {
        self.hold_memory(backing_of(first), level, more);
    }

    /// Notes that the memory of a leaf of `level` is mapped so often more.
    pub(super) fn hold_memory(&self, first: Pa, level: Level, more: i64) {
        let span = self.machine.stage2.layout().span(level);
        let mut account = locked(&self.machine.account);
        for offset in (0..span).step_by(PAGE_SIZE as usize) {
            *account.held.entry(first.offset(offset)).or_default() += more;
        }
    }

    /// Copies what is in one frame to another one.
    pub(super) fn copy_frame(&self, from: Pa, to: Pa) {
        self.machine.tlbs.look_to_copy();
        let mut account = locked(&self.machine.account);
        let contents = account.contents.get(&from).copied().unwrap_or(0);
        account.contents.insert(to, contents);
    }

    /// Copies pages, as one does that were harvested: what is written to them later has to be harvested again.
    pub fn copy(&self, range: Range<Ipa>) {
        self.machine.tlbs.look();
        let mut account = locked(&self.machine.account);
        let Account { writes, copied, .. } = &mut *account;
        for (ipa, count) in writes.range(range) {
            copied.insert(*ipa, *count);
        }
    }
}
