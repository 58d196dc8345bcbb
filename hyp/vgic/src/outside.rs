//! What is active without a list register (rules V11 and V12).

use crate::set::IntidSet;

/// INTIDs below this can be outside.
const INTIDS: usize = 1024;

/// The interrupts that are active without a list register, each with the priority at which the guest has acknowledged it: by
/// these the guest ends them, the most urgent first. The words' priorities may be others by now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Outside {
    intids: IntidSet,
    priorities: [u8; INTIDS],
}

impl Outside {
    pub(crate) const EMPTY: Self = Self {
        intids: IntidSet::EMPTY,
        priorities: [0; INTIDS],
    };

    pub(crate) fn is_empty(&self) -> bool {
        self.intids.is_empty()
    }

    pub(crate) fn insert(&mut self, intid: u32, priority: u8) {
        if let Some(place) = self.priorities.get_mut(intid as usize) {
            *place = priority;
            self.intids.insert(intid);
        }
    }

    pub(crate) fn remove(&mut self, intid: u32) {
        self.intids.remove(intid);
    }

    /// The first that isn't below `from`.
    pub(crate) fn next(&self, from: u32) -> Option<u32> {
        self.intids.next(from)
    }

    /// The priority and the INTID of the most urgent.
    pub(crate) fn most_urgent(&self) -> Option<(u8, u32)> {
        let mut best: Option<(u8, u32)> = None;
        let mut from = 0;
        while let Some(intid) = self.next(from) {
            from = intid + 1;
            let priority = *self.priorities.get(intid as usize)?;
            if best.is_none_or(|(other, _)| priority < other) {
                best = Some((priority, intid));
            }
        }
        best
    }
}
