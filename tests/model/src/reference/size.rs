//! What splits and collapses promise.

use stage2::{Attributes, Ipa, IpaRange, Level, Permissions};

use super::{Reference, Slot, is_dirty};
use crate::{Mapped, Report};

impl Reference {
    pub(super) fn split(&mut self, range: &IpaRange, to: Level, blocks: u64) -> Report {
        let mut done = 0;
        let mut at = range.start;
        let mut failed = false;
        while at < range.end {
            let Slot { level, first, leaf } = self.slot(at);
            if level >= to || leaf.is_none() {
                // The engine doesn't look below `to`; nor is there anything to do.
                at = self.end(level, first).min(range.end);
                continue;
            }
            if done == blocks {
                break;
            }
            self.dissolve(first);
            if !self.split_one(level, first, to) {
                failed = true;
                break;
            }
            done += 1;
        }
        Report::Split {
            done_to: at,
            blocks: done,
            failed,
        }
    }

    /// Splits a leaf to `to`, or if there are no frames for that, by one level.
    fn split_one(&mut self, level: Level, first: Ipa, to: Level) -> bool {
        let mut frames = 0;
        let mut tables = 1;
        let mut to = to;
        for _ in level as usize..to as usize {
            frames += tables;
            tables *= self.layout.table_entries();
        }
        if !self.take(frames) {
            let below = level.below().expect("a block");
            if below >= to || !self.take(1) {
                return false;
            }
            to = below;
        }
        let end = self.end(level, first);
        let mut at = first;
        while at < end {
            let slot = self.slot(at);
            if slot.level < to {
                self.cut(slot.first);
            } else {
                at = self.end(slot.level, slot.first);
            }
        }
        true
    }

    /// Replaces the leaf at `first` by a table of leaves of the next level.
    pub(super) fn cut(&mut self, first: Ipa) {
        let leaf = self.leaves.remove(&first).expect("a leaf to cut");
        let below = leaf.level.below().expect("a block");
        self.tables.insert((leaf.level, first));
        let span = self.layout.span(below);
        for offset in (0..self.layout.span(leaf.level)).step_by(span as usize) {
            let piece = Mapped {
                level: below,
                pa: leaf.pa + offset,
                ..leaf.alone()
            };
            self.leaves.insert(first.offset(offset), piece);
        }
    }

    pub(super) fn collapse(
        &mut self,
        range: &IpaRange,
        to: Level,
        permissions: Permissions,
    ) -> Report {
        let to = to.max(self.layout.start());
        let (mut blocks, mut left, mut dirty) = (0, 0, 0);
        let whole: Vec<Ipa> = self
            .tables
            .iter()
            .filter(|(level, first)| {
                *level == to && *first >= range.start && self.end(to, *first) <= range.end
            })
            .map(|(_, first)| *first)
            .collect();
        for first in whole {
            let pieces = self.within(&(first..self.end(to, first)));
            let Some(below) = to
                .below()
                .filter(|below| self.is_block(to, *below, &pieces))
            else {
                left += 1;
                continue;
            };
            for (ipa, leaf) in &pieces {
                debug_assert_eq!(leaf.level, below);
                self.leaves.remove(ipa);
            }
            self.tables.remove(&(to, first));
            let was_dirty = pieces.iter().any(|(_, leaf)| is_dirty(leaf));
            let attributes = Attributes {
                memory: pieces[0].1.attributes.memory,
                permissions,
            };
            self.put(to, first, pieces[0].1.pa, attributes);
            let block = self.leaf(first);
            block.accessed = pieces.iter().any(|(_, leaf)| leaf.accessed);
            let now = &mut block.attributes.permissions;
            now.write |= now.hardware_dirty && was_dirty;
            blocks += 1;
            dirty += u64::from(was_dirty);
        }
        Report::Collapsed {
            blocks,
            left,
            dirty,
        }
    }

    /// Whether these leaves are all of a table under an entry of level `to`, and could be one block.
    fn is_block(&self, to: Level, below: Level, pieces: &[(Ipa, Mapped)]) -> bool {
        let span = self.layout.span(below);
        let stays = |leaf: &Mapped| {
            let attributes = leaf.attributes;
            let permissions = Permissions {
                write: false,
                ..attributes.permissions
            };
            (attributes.memory, permissions)
        };
        pieces.len() == self.layout.table_entries()
            && pieces[0].1.pa.is_multiple_of(self.layout.span(to))
            && pieces.iter().zip(0..).all(|((_, leaf), index)| {
                leaf.level == below
                    && leaf.pa == pieces[0].1.pa + index * span
                    && stays(leaf) == stays(&pieces[0].1)
            })
    }
}
