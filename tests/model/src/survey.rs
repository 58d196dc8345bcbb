//! What the tables do say, and whether they are well formed.
//!
//! For a tree that nobody is changing: a locked or frozen entry found here was forgotten.

use std::collections::{BTreeMap, BTreeSet};

use stage2::{Descriptor, Epoch, Ipa, Layout, Level, Stage2, Step, TableMemory, Tlb, Worker};

use crate::Mapped;

/// All that a tree holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Survey {
    /// The leaves, by their first address.
    pub leaves: BTreeMap<Ipa, Mapped>,
    /// The entries that lead to a table, by level and first address.
    pub tables: BTreeSet<(Level, Ipa)>,
}

impl Survey {
    /// Looks at every entry.
    pub fn of<'w, M: TableMemory, T: Tlb, E: Epoch>(
        stage2: &'w Stage2,
        worker: &Worker<'w, M, T, E>,
    ) -> Self {
        let mut survey = Self::default();
        let walked = stage2.walk(worker, stage2.layout().all(), |context| {
            match context.descriptor {
                Descriptor::Table(_) => {
                    survey.tables.insert((context.level, context.ipa));
                    return Step::Descend;
                }
                Descriptor::Leaf(leaf) => {
                    let leaf = Mapped::new(context.level, leaf);
                    survey.leaves.insert(context.ipa, leaf);
                }
                Descriptor::Invalid => {}
                forgotten @ (Descriptor::Locked | Descriptor::Frozen) => panic!(
                    "the entry of {} at {:?} was left {forgotten:?}",
                    context.ipa, context.level
                ),
            }
            Step::Continue
        });
        assert!(walked.is_ok());
        survey
    }

    /// Checks what holds of every tree: leaves are aligned, groups are whole and alike.
    pub fn check(&self, layout: &Layout) {
        for (ipa, leaf) in &self.leaves {
            let span = layout.span(leaf.level);
            assert!(
                ipa.is_aligned(span) && leaf.pa & (span - 1) == 0,
                "{leaf:?} at {ipa} is not aligned"
            );
            assert!(leaf.level >= layout.largest_leaf(), "{leaf:?} is too large");
            let permissions = leaf.attributes.permissions;
            assert!(
                permissions.may_write || !permissions.write && !permissions.hardware_dirty,
                "{leaf:?} at {ipa} can be written and mustn't become so"
            );
            if leaf.contiguous {
                self.check_group(layout, *ipa, leaf);
            }
        }
    }

    fn check_group(&self, layout: &Layout, ipa: Ipa, leaf: &Mapped) {
        let size = layout.group(leaf.level).expect("a layout with groups");
        let span = layout.span(leaf.level);
        let bytes = size as u64 * span;
        let first = ipa.align_down(bytes);
        let start = leaf.pa & !(bytes - 1);
        for offset in (0..bytes).step_by(span as usize) {
            let expected = Mapped {
                pa: start + offset,
                ..*leaf
            };
            let accessed = |leaf: &Mapped| Mapped {
                accessed: true,
                ..*leaf
            };
            assert_eq!(
                self.leaves.get(&first.offset(offset)).map(accessed),
                Some(accessed(&expected)),
                "{leaf:?} at {ipa} is in a group that isn't whole, or isn't uniform"
            );
        }
    }
}
