//! Counts of the machine's frames, by place and use.

use core::fmt;

/// All frames of a pool, by place. Each frame is in one place. While CPUs allocate and free, a frame on the move may be counted
/// twice or not at all, so the sum is exact only when they rest.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// In translation tables.
    pub table: u64,
    /// In guests' memory.
    pub guest: u64,
    /// In the hypervisor's heap, [records](crate::frames::FrameRecord) of other frames, or the frame of zeros.
    pub heap: u64,
    /// Holding guests' memory in compressed form.
    pub compressed: u64,
    /// In CPUs' caches, or on the way to the pool: tables once the epoch has released them, guest memory once it was given up.
    pub cached: u64,
    /// Taken out of a tree, waiting for an epoch to pass.
    pub pending: u64,
    /// In the pool.
    pub free: u64,
    /// All that the pool was given.
    pub total: u64,
}

/// The frames of a pool don't add up: some were lost, or freed twice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unbalanced(Counts);

impl Counts {
    /// Every place with its name and count, the total last.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("table", self.table),
            ("guest", self.guest),
            ("heap", self.heap),
            ("compressed", self.compressed),
            ("cached", self.cached),
            ("pending", self.pending),
            ("free", self.free),
            ("total", self.total),
        ]
        .into_iter()
    }

    /// Whether the places add up to the total.
    pub fn check(&self) -> Result<(), Unbalanced> {
        let places = [
            self.table,
            self.guest,
            self.heap,
            self.compressed,
            self.cached,
            self.pending,
            self.free,
        ];
        let sum = places
            .iter()
            .fold(0u64, |sum, place| sum.wrapping_add(*place));
        if sum == self.total {
            Ok(())
        } else {
            Err(Unbalanced(*self))
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("frames:")?;
        self.iter()
            .try_for_each(|(name, count)| write!(f, " {name} {count}"))
    }
}

impl fmt::Display for Unbalanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the frames don't add up ({})", self.0)
    }
}

impl core::error::Error for Unbalanced {}

/// The frames of one VM.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VmCounts {
    /// In its translation tables.
    pub table: u64,
    /// In its memory, as far as it is charged for that.
    pub guest: u64,
    /// Former tables that wait for an epoch to pass.
    pub pending: u64,
}

impl VmCounts {
    /// Whether the VM has no frames left.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for VmCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "table {} guest {} pending {}",
            self.table, self.guest, self.pending
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_frame_is_noticed() {
        let mut counts = Counts {
            table: 1,
            guest: 2,
            heap: 3,
            compressed: 7,
            cached: 4,
            pending: 5,
            free: 6,
            total: 28,
        };
        assert_eq!(counts.check(), Ok(()));
        counts.free -= 1;
        let error = counts.check().unwrap_err().to_string();
        assert_eq!(
            error,
            "the frames don't add up (frames: table 1 guest 2 heap 3 compressed 7 cached 4 pending 5 free 5 total 28)"
        );
    }
}
