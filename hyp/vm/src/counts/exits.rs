//! Counters of a vCPU's exits, by kind.
//!
//! One writer, the slice that runs the vCPU: an increment is a plain load and store, no atomic read-modify-write. Others
//! may read at any time and see each counter at some recent value.

use core::sync::atomic::{AtomicU64, Ordering};

macro_rules! exit_kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// The kind of an exit, or of its result.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum ExitKind {
            $($(#[$doc])* $kind,)*
        }

        impl ExitKind {
            /// Every kind, in the order of the counters.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// The kind's name in reports.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

impl ExitKind {
    /// Whether it is an exit, and not a result of one.
    pub const fn is_exit(self) -> bool {
        !matches!(
            self,
            Self::LostTranslation
                | Self::ReadFault
                | Self::RingFull
                | Self::InjectedAbort
                | Self::InjectedUndefined
        )
    }
}

exit_kinds! {
    /// A stage-2 fault: nothing mapped.
    TranslationFault = "translation_fault",
    /// A stage-2 fault: the access isn't permitted.
    PermissionFault = "permission_fault",
    /// A stage-2 fault: the access flag is clear.
    AccessFlagFault = "access_flag_fault",
    /// An abort that isn't a stage-2 fault.
    OtherAbort = "other_abort",
    /// An HVC, or an SMC, which means the same here.
    Hypercall = "hypercall",
    /// A trapped system register access.
    SystemRegister = "system_register",
    /// An access to an emulated device.
    DeviceAccess = "device_access",
    /// A WFI.
    WaitForInterrupt = "wait_for_interrupt",
    /// A physical interrupt, in general a kick.
    Interrupt = "interrupt",
    /// A system error.
    SystemError = "system_error",
    /// Anything else.
    Other = "other",
    /// Not an exit of its own: a permission fault whose address had to be looked up again.
    LostTranslation = "lost_translation",
    /// Not an exit of its own: a stage-2 fault, of any kind, of a read or a fetch.
    ReadFault = "read_faults",
    /// Not an exit of its own: a write that had to wait for room in the vCPU's dirty ring.
    RingFull = "ring_full",
    /// Not an exit of its own: an external abort that the guest was made to take.
    InjectedAbort = "injected_abort",
    /// Not an exit of its own: an undefined instruction that the guest was made to take.
    InjectedUndefined = "injected_undefined",
}

/// Number of kinds.
pub const EXIT_KINDS: usize = ExitKind::ALL.len();

/// A vCPU's counters, in cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ExitCounters([AtomicU64; EXIT_KINDS]);

impl ExitCounters {
    /// Counts one. Only the slice that runs the vCPU may call this: concurrent calls could lose counts.
    #[inline]
    pub fn count(&self, kind: ExitKind) {
        let counter = &self.0[kind as usize];
        counter.store(
            counter.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
    }

    /// The current counters.
    pub fn snapshot(&self) -> ExitCounts {
        let mut counts = ExitCounts::default();
        for (count, counter) in counts.0.iter_mut().zip(&self.0) {
            *count = counter.load(Ordering::Relaxed);
        }
        counts
    }
}

/// Counters at some moment, or a sum or difference of such.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts([u64; EXIT_KINDS]);

impl ExitCounts {
    /// The count of one kind.
    pub const fn of(&self, kind: ExitKind) -> u64 {
        self.0[kind as usize]
    }

    /// Adds another vCPU's counts.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.0.iter_mut().zip(&other.0) {
            *sum = sum.wrapping_add(*count);
        }
    }

    /// The counts since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut difference = *self;
        for (count, before) in difference.0.iter_mut().zip(&earlier.0) {
            *count = count.wrapping_sub(*before);
        }
        difference
    }

    /// Every kind with its count.
    pub fn iter(&self) -> impl Iterator<Item = (ExitKind, u64)> + '_ {
        ExitKind::ALL.iter().map(|&kind| (kind, self.of(kind)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_by_kind() {
        let counters = ExitCounters::default();
        counters.count(ExitKind::PermissionFault);
        let before = counters.snapshot();
        counters.count(ExitKind::PermissionFault);
        counters.count(ExitKind::Hypercall);
        let after = counters.snapshot();
        assert_eq!(after.of(ExitKind::PermissionFault), 2);
        assert_eq!(after.since(&before).of(ExitKind::PermissionFault), 1);
        let mut sum = after;
        sum.add(&before);
        assert_eq!(sum.of(ExitKind::PermissionFault), 3);
        assert_eq!(sum.iter().map(|(_, count)| count).sum::<u64>(), 4);
    }

    #[test]
    fn a_counter_block_shares_no_cache_line() {
        assert_eq!(align_of::<ExitCounters>(), 128);
        assert_eq!(size_of::<ExitCounters>() % 128, 0);
    }
}
