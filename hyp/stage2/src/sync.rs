//! The atomics for the protocol: the machine's, or the model checker's. Other crates that implement rules of the protocol use
//! them too, so that the checker covers those.

#[cfg(not(all(loom, feature = "loom")))]
pub use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};
#[cfg(all(loom, feature = "loom"))]
pub use loom::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};

/// Exchanges `to` for `from` in a word, as [`AtomicU64::compare_exchange`] does with [`Ordering::AcqRel`], and with
/// [`Ordering::Acquire`] where it fails. Whether it did.
///
/// On the machine by exclusives, in line: one text for CPUs with and without FEAT_LSE, and no call.
#[inline(always)]
pub fn exchange(word: &AtomicU64, from: u64, to: u64) -> bool {
    #[cfg(not(all(target_arch = "aarch64", target_os = "none")))]
    return word
        .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
        .is_ok();
    #[cfg(all(target_arch = "aarch64", target_os = "none"))]
    return exclusives::exchange(word, from, to);
}

/// Sets bits of a word if, of those in `mask`, just those in `wanted` are set: a load that acquires, and the [`exchange`] of what
/// was loaded. Whether it did. On the machine the word's cache line moves once for both.
#[inline(always)]
pub fn set_bits_where(word: &AtomicU64, mask: u64, wanted: u64, bits: u64) -> bool {
    #[cfg(not(all(target_arch = "aarch64", target_os = "none")))]
    {
        let found = word.load(Ordering::Acquire);
        found & mask == wanted && exchange(word, found, found | bits)
    }
    #[cfg(all(target_arch = "aarch64", target_os = "none"))]
    exclusives::set_bits_where(word, mask, wanted, bits)
}

/// Sets bits of a word, as [`AtomicU64::fetch_or`] does with [`Ordering::Release`].
#[inline(always)]
pub fn set_bits(word: &AtomicU64, bits: u64) {
    #[cfg(not(all(target_arch = "aarch64", target_os = "none")))]
    word.fetch_or(bits, Ordering::Release);
    #[cfg(all(target_arch = "aarch64", target_os = "none"))]
    exclusives::set_bits(word, bits);
}

/// Clears bits of a word, as [`AtomicU64::fetch_and`] does with [`Ordering::Release`].
#[inline(always)]
pub fn clear_bits(word: &AtomicU64, bits: u64) {
    #[cfg(not(all(target_arch = "aarch64", target_os = "none")))]
    word.fetch_and(!bits, Ordering::Release);
    #[cfg(all(target_arch = "aarch64", target_os = "none"))]
    exclusives::clear_bits(word, bits);
}

/// Loops of a load and a store exclusive, as short as the architecture demands of those that come to an end (Arm ARM
/// B2.12.5): no other access to memory, and no branch but back and out.
#[cfg(all(target_arch = "aarch64", target_os = "none"))]
mod exclusives {
    use core::arch::asm;
    use core::sync::atomic::AtomicU64;

    #[inline(always)]
    pub(super) fn exchange(word: &AtomicU64, from: u64, to: u64) -> bool {
        // SAFETY: it accesses the word alone, which is shared by atomic accesses only, and as an atomic exchange does that
        // acquires and releases.
        unsafe {
            asm!(
                "2: ldaxr {found}, [{word}]",
                "cmp {found}, {from}",
                "b.ne {lost}",
                "stlxr {failed:w}, {to}, [{word}]",
                "cbnz {failed:w}, 2b",
                word = in(reg) word.as_ptr(),
                from = in(reg) from,
                to = in(reg) to,
                found = out(reg) _,
                failed = out(reg) _,
                lost = label { return false },
                options(nostack)
            );
        }
        true
    }

    #[inline(always)]
    pub(super) fn set_bits_where(word: &AtomicU64, mask: u64, wanted: u64, bits: u64) -> bool {
        // SAFETY: as for `exchange`; where the bits aren't as wanted, it only loads, and acquires.
        unsafe {
            asm!(
                "2: ldaxr {found}, [{word}]",
                "and {masked}, {found}, {mask}",
                "orr {found}, {found}, {bits}",
                "cmp {masked}, {wanted}",
                "b.ne {other}",
                "stlxr {masked:w}, {found}, [{word}]",
                "cbnz {masked:w}, 2b",
                word = in(reg) word.as_ptr(),
                mask = in(reg) mask,
                wanted = in(reg) wanted,
                bits = in(reg) bits,
                found = out(reg) _,
                masked = out(reg) _,
                other = label { return false },
                options(nostack)
            );
        }
        true
    }

    macro_rules! change {
        ($(#[$doc:meta])* $name:ident, $operation:literal) => {
            $(#[$doc])*
            #[inline(always)]
            pub(super) fn $name(word: &AtomicU64, bits: u64) {
                // SAFETY: it accesses the word alone, which is shared by atomic accesses only, and as an atomic change does
                // that releases.
                unsafe {
                    asm!(
                        "2: ldxr {found}, [{word}]",
                        concat!($operation, " {found}, {found}, {bits}"),
                        "stlxr {failed:w}, {found}, [{word}]",
                        "cbnz {failed:w}, 2b",
                        word = in(reg) word.as_ptr(),
                        bits = in(reg) bits,
                        found = out(reg) _,
                        failed = out(reg) _,
                        options(nostack, preserves_flags)
                    );
                }
            }
        };
    }

    change!(set_bits, "orr");
    change!(clear_bits, "bic");
}

/// Tells the CPU (or the model checker) that this is a wait for another one.
pub fn relax() {
    #[cfg(feature = "watch")]
    if let Some(watcher) = crate::watch::watcher() {
        return watcher.pause();
    }
    #[cfg(not(all(loom, feature = "loom")))]
    core::hint::spin_loop();
    #[cfg(all(loom, feature = "loom"))]
    checked::relax();
}

/// Orders everything before it against everything after it, for all CPUs (DMB ISH): the barrier of rule 8.
pub fn full_barrier() {
    fence(Ordering::SeqCst);
}

/// Whether `key` is asked about for the first time in this execution. The model checker's atomics have to be made anew in each,
/// also where they lie in memory that outlasts it.
#[cfg(all(loom, feature = "loom"))]
pub fn is_first(key: u64) -> bool {
    checked::is_first(key)
}

#[cfg(all(loom, feature = "loom"))]
mod checked {
    // The model checker runs on a host.
    extern crate std;

    use core::cell::Cell;
    use std::collections::HashSet;
    use std::sync::{Mutex, PoisonError};

    /// How often each CPU may wait in an execution before that is only run to its end, without being varied any further: two
    /// that wait for a third could take turns for ever, and the checker would try every number of turns.
    const WAITS_VARIED: u32 = 2;

    loom::lazy_static! {
        static ref ASKED: Mutex<HashSet<u64>> = Mutex::default();
    }

    pub(super) fn is_first(key: u64) -> bool {
        let asked = ASKED.lock();
        asked.unwrap_or_else(PoisonError::into_inner).insert(key)
    }

    loom::thread_local! {
        static WAITS: Cell<u32> = Cell::new(0);
    }

    pub(super) fn relax() {
        let waits = WAITS.with(|waits| waits.replace(waits.get() + 1));
        if waits >= WAITS_VARIED {
            loom::skip_branch();
        }
        loom::thread::yield_now();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn words_are_exchanged_and_changed_as_atomics_do() {
        let word = AtomicU64::new(5);
        assert!(!exchange(&word, 4, 6) && word.load(Ordering::Relaxed) == 5);
        assert!(exchange(&word, 5, 6) && word.load(Ordering::Relaxed) == 6);
        set_bits(&word, 9);
        assert_eq!(word.load(Ordering::Relaxed), 15);
        assert!(!set_bits_where(&word, 0x18, 0x18, 0x100));
        assert!(!set_bits_where(&word, 0x18, 0, 0x100));
        assert_eq!(word.load(Ordering::Relaxed), 15);
        assert!(set_bits_where(&word, 0x18, 8, 0x100));
        assert_eq!(word.load(Ordering::Relaxed), 0x10f);
        clear_bits(&word, 0x100);
        clear_bits(&word, 6);
        assert_eq!(word.load(Ordering::Relaxed), 9);
    }
}
