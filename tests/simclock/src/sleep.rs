//! What threads of the emulator wait with: a lock for moments, and turns that CPUs sleep for. std's own would ask the
//! clock that this library replaces.

use std::cell::UnsafeCell;
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// How often a taken lock is tried before the thread lets others run: on a host with few cores they have it.
const TRIES: u32 = 50;

/// A lock that is held for moments. Whoever waits for it doesn't sleep.
pub struct Lock<T> {
    is_taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by one thread at a time, the one that has taken the lock.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// A free lock around a value.
    pub const fn new(value: T) -> Self {
        Self {
            is_taken: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// Does something with the value while nobody else can. It must neither panic nor take the lock again.
    pub fn with<R>(&self, action: impl FnOnce(&mut T) -> R) -> R {
        let mut tries = 0;
        while self.is_taken.swap(true, Ordering::Acquire) {
            tries += 1;
            if tries > TRIES {
                std::thread::yield_now();
            }
        }
        // SAFETY: the lock is ours, and `action` can't keep the reference.
        let result = action(unsafe { &mut *self.value.get() });
        self.is_taken.store(false, Ordering::Release);
        result
    }
}

impl<T> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").finish_non_exhaustive()
    }
}

/// Where one CPU waits for its turn.
#[derive(Debug)]
pub struct Turn {
    /// The nanoseconds that it may run for; 0: it has to wait.
    granted: AtomicU32,
}

impl Turn {
    /// None is granted.
    pub const fn new() -> Self {
        Self {
            granted: AtomicU32::new(0),
        }
    }

    /// The CPU has used up its turn. To be called before anybody can know that it waits for another.
    pub fn end(&self) {
        self.granted.store(0, Ordering::Relaxed);
    }

    /// Grants a turn and wakes the CPU. It is one nanosecond at least, and four seconds at most.
    pub fn grant(&self, nanoseconds: u64) {
        let granted = u32::try_from(nanoseconds).unwrap_or(u32::MAX).max(1);
        self.granted.store(granted, Ordering::Release);
        // SAFETY: the call wakes sleepers on this word and touches no memory.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.granted.as_ptr(),
                libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                1,
            )
        };
    }

    /// Waits for a turn, for at most about `limit` of real time.
    pub fn wait(&self, limit: Duration) -> Option<u64> {
        if self.granted.load(Ordering::Acquire) == 0 {
            let timeout = libc::timespec {
                tv_sec: limit.as_secs().cast_signed(),
                tv_nsec: i64::from(limit.subsec_nanos()),
            };
            // SAFETY: the call reads the word and the timeout, which both outlive it.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    self.granted.as_ptr(),
                    libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                    0,
                    ptr::from_ref(&timeout),
                )
            };
        }
        let granted = self.granted.load(Ordering::Acquire);
        (granted != 0).then_some(u64::from(granted))
    }
}

impl Default for Turn {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_lock_lets_one_thread_in_at_a_time() {
        let count = Lock::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        count.with(|count| *count += 1);
                    }
                });
            }
        });
        assert_eq!(count.with(|count| *count), 40_000);
    }

    #[test]
    fn a_turn_wakes_who_waits_for_it() {
        let turn = Turn::new();
        assert_eq!(turn.wait(Duration::from_millis(1)), None);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| turn.wait(Duration::from_secs(60)));
            turn.grant(7);
            assert_eq!(waiter.join().expect("it wakes"), Some(7));
        });
        assert_eq!(turn.wait(Duration::from_secs(60)), Some(7));
        turn.end();
        assert_eq!(turn.wait(Duration::from_millis(1)), None);
    }
}
