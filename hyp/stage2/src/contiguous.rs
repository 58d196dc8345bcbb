//! Contiguous groups: adjacent leaves that a TLB may keep as one entry (Arm ARM D8.7.1).
//!
//! All leaves of a group are alike but for access flags. Before any other change to one of its leaves, the group is taken apart
//! here. Groups are locked from their first entry on, so if two CPUs take a group apart, one of them wins the first entry.
//!
//! The entries are broken even where FEAT_BBM would allow clearing the contiguous bit in place: in a half-cleared group another
//! CPU could change an entry that no longer has the bit, while a TLB loads that entry again as part of the group.

use crate::address::Ipa;
use crate::descriptor::Descriptor;
use crate::entry::{Entry, Unflushed};
use crate::memory::{Epoch, TableMemory, Worker};
use crate::stage2::Stage2;
use crate::tlb::Tlb;
use crate::walk::{Step, VisitContext, lost};

/// Most entries of a group: the pages of 16 KiB.
pub(crate) const MOST_MEMBERS: usize = 128;

/// A group's entries, in a table.
struct Members<'t> {
    entries: &'t [Entry],
    first: Ipa,
    shift: u32,
}

impl Members<'_> {
    fn ipa(&self, index: usize) -> Ipa {
        self.first.offset((index as u64) << self.shift)
    }
}

/// Takes apart the group of the context's leaf. On return none of its leaves has the contiguous bit, and no TLB has an entry
/// for more than one of them; or another CPU interfered, as the returned step says.
#[cold]
pub(crate) fn dissolve<'w, M: TableMemory, T: Tlb, E: Epoch>(
    worker: &Worker<'w, M, T, E>,
    stage2: &Stage2,
    context: &VisitContext<'w>,
) -> Step {
    let layout = stage2.layout();
    let shift = layout.shift(context.level);
    let Some(size) = layout.group(context.level) else {
        debug_assert!(false, "a contiguous leaf in a layout without groups");
        return Step::Continue;
    };
    let index = context.index & !(size - 1);
    let members = Members {
        entries: &context.table[index..index + size],
        first: context.ipa.align_down((size as u64) << shift),
        shift,
    };
    let mut held: [Option<Unflushed<'w>>; MOST_MEMBERS] = [const { None }; MOST_MEMBERS];
    for (index, entry) in members.entries.iter().enumerate() {
        match lock_member(worker, stage2, context, entry, members.ipa(index)) {
            Ok(unflushed) => held[index] = unflushed,
            Err(step) => {
                for unflushed in held.iter_mut().filter_map(Option::take) {
                    // Lost only to an unmap of the whole table, whose the leaf is then (rule 5).
                    let _ = unflushed.restore();
                }
                return step;
            }
        }
    }
    flush(worker, stage2, &members);
    worker.counters.groups_dissolved.add(1);
    for unflushed in held.iter_mut().filter_map(Option::take) {
        let broken = unflushed.flushed();
        if let Descriptor::Leaf(leaf) = broken.old() {
            // As above.
            let _ = broken.make(Descriptor::Leaf(leaf.without_contiguous()));
        }
    }
    Step::Again
}

/// `None` for an entry that isn't in the group any more.
fn lock_member<'w, M: TableMemory, T: Tlb, E: Epoch>(
    worker: &Worker<'w, M, T, E>,
    stage2: &Stage2,
    context: &VisitContext<'w>,
    entry: &'w Entry,
    ipa: Ipa,
) -> Result<Option<Unflushed<'w>>, Step> {
    loop {
        let observed = entry.observe(context.level, stage2.layout().format());
        match observed.descriptor() {
            Descriptor::Leaf(leaf) if leaf.contiguous() => {
                if let Ok(unflushed) = entry.lock_to_change(observed, ipa) {
                    return Ok(Some(unflushed));
                }
                // Hardware may have set its access flag.
                lost(worker);
            }
            Descriptor::Locked => return Err(Step::Wait),
            Descriptor::Frozen => return Err(Step::Restart),
            Descriptor::Leaf(_) | Descriptor::Invalid | Descriptor::Table(_) => return Ok(None),
        }
    }
}

fn flush<M: TableMemory, T: Tlb, E: Epoch>(
    worker: &Worker<'_, M, T, E>,
    stage2: &Stage2,
    members: &Members<'_>,
) {
    worker.counters.tlbi_broadcast.add(1);
    let range = members.first..members.ipa(members.entries.len());
    worker.tlb.invalidate_range(stage2.regime(), range, false);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::features::Features;
    use crate::layout::Layout;
    use crate::{Granule, Level};

    #[test]
    fn groups_of_every_granule_can_be_held_at_once() {
        for granule in Granule::ALL {
            let features = Features {
                granule,
                contiguous: true,
                ..Features::armv8_0(40, 48)
            };
            let layout = Layout::new(features).unwrap();
            for level in Level::ALL {
                assert!(layout.group(level).is_none_or(|size| size <= MOST_MEMBERS));
            }
        }
    }
}
