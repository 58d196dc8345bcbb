//! Ranges of physical addresses, and sets of them: the memory that remains when everything in use is removed.
//!
//! Plain arithmetic on values that come from a device tree, so nothing here may overflow or panic. Nothing is shared.

use alloc::vec::Vec;
use core::fmt;

/// Bytes of a page: the unit in which memory is handed over.
pub const PAGE_SIZE: u64 = 4096;

/// A non-empty range of physical addresses, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysicalRange {
    start: u64,
    end: u64,
}

impl PhysicalRange {
    /// From `start` up to `end` (exclusive). `None` if that is empty or backwards.
    pub const fn new(start: u64, end: u64) -> Option<Self> {
        if start < end {
            Some(Self { start, end })
        } else {
            None
        }
    }

    /// The `size` bytes at `start`. `None` if there are none, or if they reach past the end of 64 bits.
    pub const fn sized(start: u64, size: u64) -> Option<Self> {
        match start.checked_add(size) {
            Some(end) => Self::new(start, end),
            None => None,
        }
    }

    /// The first address.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The address behind the last one.
    pub const fn end(self) -> u64 {
        self.end
    }

    /// The number of bytes, never 0.
    pub const fn size(self) -> u64 {
        self.end - self.start
    }

    /// Whether all of `other` lies in this range.
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether `address` lies in this range.
    pub const fn contains_address(self, address: u64) -> bool {
        self.start <= address && address < self.end
    }

    /// Whether the two share an address.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The smallest range of whole units of `unit` bytes (a power of two) that covers this one. Saturates at the last unit
    /// that 64 bits can address.
    pub const fn grow_to(self, unit: u64) -> Self {
        let mask = unit - 1;
        let end = match self.end.checked_add(mask) {
            Some(end) => end & !mask,
            None => !mask,
        };
        Self {
            start: self.start & !mask,
            end: if end > self.end { end } else { self.end },
        }
    }

    /// The largest range of whole units of `unit` bytes (a power of two) within this one, if there is any.
    pub const fn shrink_to(self, unit: u64) -> Option<Self> {
        let mask = unit - 1;
        match self.start.checked_add(mask) {
            Some(start) => Self::new(start & !mask, self.end & !mask),
            None => None,
        }
    }
}

impl fmt::Display for PhysicalRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

impl fmt::Debug for PhysicalRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A set of addresses: ranges in ascending order that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet(Vec<PhysicalRange>);

impl RangeSet {
    /// The set without addresses.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The ranges, ascending and apart.
    pub fn ranges(&self) -> &[PhysicalRange] {
        &self.0
    }

    /// The number of addresses in the set. Saturates.
    pub fn bytes(&self) -> u64 {
        self.0
            .iter()
            .fold(0, |sum: u64, range| sum.saturating_add(range.size()))
    }

    /// Whether all of `range` is in the set.
    pub fn contains(&self, range: PhysicalRange) -> bool {
        self.0.iter().any(|have| have.contains(range))
    }

    /// Whether any of `range` is in the set.
    pub fn overlaps(&self, range: PhysicalRange) -> bool {
        self.0.iter().any(|have| have.overlaps(range))
    }

    /// Adds `range`, merging it with what it overlaps or touches.
    pub fn insert(&mut self, range: PhysicalRange) {
        let mut merged = range;
        self.0.retain(|have| {
            let apart = have.end < merged.start || merged.end < have.start;
            if !apart {
                merged.start = merged.start.min(have.start);
                merged.end = merged.end.max(have.end);
            }
            apart
        });
        let at = self.0.partition_point(|have| have.start < merged.start);
        self.0.insert(at, merged);
    }

    /// Takes `range` out.
    pub fn remove(&mut self, range: PhysicalRange) {
        let mut left = Vec::with_capacity(self.0.len() + 1);
        for have in &self.0 {
            if !have.overlaps(range) {
                left.push(*have);
                continue;
            }
            left.extend(PhysicalRange::new(have.start, range.start));
            left.extend(PhysicalRange::new(range.end, have.end));
        }
        self.0 = left;
    }

    /// The set cut down to whole units of `unit` bytes (a power of two).
    #[must_use]
    pub fn shrink_to(&self, unit: u64) -> Self {
        Self(
            self.0
                .iter()
                .filter_map(|range| range.shrink_to(unit))
                .collect(),
        )
    }

    /// Takes `size` bytes, aligned to `align` (a power of two), out of the set: from the top of the largest range that
    /// has them, so that what remains is in large pieces. `None` if no range has room.
    pub fn take(&mut self, size: u64, align: u64) -> Option<PhysicalRange> {
        let fitting = |range: &PhysicalRange| {
            let start = range.end.checked_sub(size)? & !(align - 1);
            if start < range.start {
                None
            } else {
                PhysicalRange::sized(start, size)
            }
        };
        let taken = self
            .0
            .iter()
            .filter(|range| fitting(range).is_some())
            .max_by_key(|range| range.size())
            .and_then(fitting)?;
        self.remove(taken);
        Some(taken)
    }
}

impl FromIterator<PhysicalRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = PhysicalRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, end: u64) -> PhysicalRange {
        PhysicalRange::new(start, end).unwrap()
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let set: RangeSet = [
            range(0x3000, 0x4000),
            range(0x1000, 0x2000),
            range(0x2000, 0x3000),
        ]
        .into_iter()
        .collect();
        assert_eq!(set.ranges(), [range(0x1000, 0x4000)]);
    }

    #[test]
    fn removing_the_middle_leaves_both_ends() {
        let mut set: RangeSet = [range(0x1000, 0x9000)].into_iter().collect();
        set.remove(range(0x3000, 0x4000));
        assert_eq!(set.ranges(), [range(0x1000, 0x3000), range(0x4000, 0x9000)]);
        assert_eq!(set.bytes(), 0x7000);
    }

    #[test]
    fn ranges_at_the_end_of_64_bits_do_not_overflow() {
        assert_eq!(PhysicalRange::sized(u64::MAX, 2), None);
        assert_eq!(PhysicalRange::sized(5, 0), None);
        let last = range(u64::MAX - 1, u64::MAX);
        assert_eq!(last.shrink_to(PAGE_SIZE), None);
        assert!(last.grow_to(PAGE_SIZE).contains(last));
    }

    #[test]
    fn taking_comes_from_the_top_of_the_largest_range() {
        let mut set: RangeSet = [range(0x1000, 0x9000), range(0x10_0000, 0x10_2000)]
            .into_iter()
            .collect();
        assert_eq!(set.take(0x2000, 0x4000), Some(range(0x4000, 0x6000)));
        assert_eq!(set.take(0x10_0000, 0x1000), None);
        assert_eq!(set.bytes(), 0x8000);
    }

    proptest! {
        #[test]
        fn a_set_holds_what_was_inserted_and_not_removed(
            steps in prop::collection::vec((any::<bool>(), 0u64..64, 1u64..16), 0..24),
        ) {
            let mut set = RangeSet::new();
            let mut model = [false; 80];
            for (insert, start, size) in steps {
                let step = range(start, start + size);
                if insert { set.insert(step) } else { set.remove(step) }
                model[start as usize..(start + size) as usize].fill(insert);
            }
            for (address, expected) in model.iter().enumerate() {
                prop_assert_eq!(set.contains(range(address as u64, address as u64 + 1)), *expected);
            }
            prop_assert!(set.ranges().windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
