//! A timeout that counts observations, not time: CPU 0 gives up on others after a number of looks, spaced apart, without any
//! progress.
//!
//! Time between two looks counts no further. So a machine that its host stops for hours, or starves of CPU, gets as many looks
//! as any other.

use core::cell::Cell;

/// A limit in looks. Used by the waiting CPU.
#[derive(Debug)]
pub(crate) struct Patience {
    apart_ns: u64,
    most: u32,
    left: Cell<u32>,
    next_ns: Cell<u64>,
}

impl Patience {
    /// A wait that begins now and lasts at least `limit_ns`, with so many looks, at least one.
    pub fn new(now_ns: u64, limit_ns: u64, looks: u32) -> Self {
        let patience = Self {
            apart_ns: limit_ns / u64::from(looks),
            most: looks,
            left: Cell::new(looks),
            next_ns: Cell::new(0),
        };
        patience.renew(now_ns);
        patience
    }

    /// The time of the next look.
    pub fn next_ns(&self) -> u64 {
        self.next_ns.get()
    }

    /// Whether the next look is due.
    pub fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.next_ns.get()
    }

    /// Notes progress: the limit starts again.
    pub fn renew(&self, now_ns: u64) {
        self.left.set(self.most);
        self.next_ns.set(now_ns.saturating_add(self.apart_ns));
    }

    /// Notes a look without progress, if one is due. Returns whether it was the last.
    pub fn is_over(&self, now_ns: u64) -> bool {
        if self.is_due(now_ns) {
            self.left.set(self.left.get().saturating_sub(1));
            self.next_ns.set(now_ns.saturating_add(self.apart_ns));
        }
        self.left.get() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_after_as_many_looks_as_were_meant() {
        let patience = Patience::new(1000, 400, 4);
        assert_eq!(patience.next_ns(), 1100);
        let ends = (1000..2000).find(|now| patience.is_over(*now));
        assert_eq!(ends, Some(1400));
        assert!(patience.is_over(1401), "it stays over");
    }

    #[test]
    fn a_machine_that_was_stopped_has_lost_one_look() {
        let patience = Patience::new(0, 400, 4);
        assert!(!patience.is_over(1_000_000_000));
        let ends = (1_000_000_000..2_000_000_000).find(|now| patience.is_over(*now));
        assert_eq!(ends, Some(1_000_000_300));
    }

    #[test]
    fn progress_gives_all_looks_back() {
        let patience = Patience::new(0, 400, 4);
        assert!(!patience.is_over(100) && !patience.is_over(200) && !patience.is_over(300));
        patience.renew(350);
        assert!(!patience.is_over(400) && patience.is_due(450));
        assert_eq!((350..).find(|now| patience.is_over(*now)), Some(750));
    }
}
