//! The functions of libc that the preloaded library takes the place of: the clock, which tells simulated time, and waiting
//! on a condition and waking who does, which tell when a thread needs all CPUs outside guest code, and when a CPU is idle.
//!
//! Any thread of the emulator calls these at any time. Before the plugin is installed they do what libc does.

use std::ffi::{CStr, c_int, c_void};
use std::mem;
use std::sync::OnceLock;

use crate::plugin::own_cpu;
use crate::schedule::Thread;
use crate::simulation::SIMULATION;

const NANOSECONDS: u64 = 1_000_000_000;

type ReadClock = unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> c_int;
type Wake = unsafe extern "C" fn(*mut libc::pthread_cond_t) -> c_int;
type Wait = unsafe extern "C" fn(*mut libc::pthread_cond_t, *mut libc::pthread_mutex_t) -> c_int;

/// The host's monotonic clock in nanoseconds.
pub fn real_time() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: libc writes the time to where it is told.
    unsafe { libc_clock()(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.cast_unsigned() * NANOSECONDS + time.tv_nsec.cast_unsigned()
}

/// Whether the emulator's calls come here: whether what a lookup by name finds first lies in this library.
///
/// The address of this library's own function says nothing, as that is looked up by its name too, and is libc's where this
/// library comes later. A private variable is where the library is.
pub fn is_in_place() -> bool {
    // SAFETY: the lookup changes nothing.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"clock_gettime".as_ptr()) };
    let own = &raw const SIMULATION;
    library_at(found.cast_const()).is_some_and(|found| library_at(own.cast()) == Some(found))
}

/// Where the library begins that an address belongs to.
fn library_at(address: *const c_void) -> Option<usize> {
    let mut found = mem::MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: the lookup writes to where it is told, if it finds anything.
    if address.is_null() || unsafe { libc::dladdr(address, found.as_mut_ptr()) } == 0 {
        return None;
    }
    // SAFETY: it has found something, and has filled this in.
    Some(unsafe { found.assume_init() }.dli_fbase.addr())
}

/// libc's function of this name.
///
/// # Safety
///
/// Called as libc's own: `time` may be written to.
// SAFETY: the signature is libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    let is_monotonic = matches!(clock, libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_RAW);
    if let Some(simulation) = SIMULATION.get().filter(|_| is_monotonic) {
        let shown = simulation.clock().shown(real_time());
        let shown = libc::timespec {
            tv_sec: (shown / NANOSECONDS).cast_signed(),
            tv_nsec: (shown % NANOSECONDS).cast_signed(),
        };
        // SAFETY: the caller's promise.
        unsafe { time.write(shown) };
        return 0;
    }
    // SAFETY: the caller's promise, handed on.
    unsafe { libc_clock()(clock, time) }
}

fn libc_clock() -> ReadClock {
    static LIBC: OnceLock<ReadClock> = OnceLock::new();
    // SAFETY: libc's function has this type.
    *LIBC.get_or_init(|| unsafe { mem::transmute(libc_s(c"clock_gettime")) })
}

/// libc's function of this name.
///
/// # Safety
///
/// Called as libc's own: the mutex is the caller's, and both live until the return.
// SAFETY: the signature is libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_cond_wait(
    condition: *mut libc::pthread_cond_t,
    mutex: *mut libc::pthread_mutex_t,
) -> c_int {
    static LIBC: OnceLock<Wait> = OnceLock::new();
    // SAFETY: libc's function has this type.
    let libc_wait = *LIBC.get_or_init(|| unsafe { mem::transmute(libc_s(c"pthread_cond_wait")) });
    let told = SIMULATION.get().zip(thread());
    let idle = told.and_then(|(simulation, thread)| {
        let cpu = simulation.sleeps(thread, condition.addr(), real_time())?;
        Some((simulation, cpu))
    });
    let result = match idle {
        // All who could wake it come through here. The emulator wakes CPUs without the mutex too, and libc's function misses
        // that if it comes a moment too early; the CPU would hold time back and never run.
        Some((simulation, cpu)) => {
            // SAFETY: the mutex is the caller's.
            unsafe { libc::pthread_mutex_unlock(mutex) };
            simulation.doze(cpu);
            // SAFETY: the mutex lives until the return.
            unsafe { libc::pthread_mutex_lock(mutex) }
        }
        // SAFETY: the caller's promise, handed on.
        None => unsafe { libc_wait(condition, mutex) },
    };
    if let Some((simulation, thread)) = told {
        simulation.has_slept(thread);
    }
    result
}

/// libc's function of this name.
///
/// # Safety
///
/// Called as libc's own: the condition lives until the return.
// SAFETY: the signature is libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_cond_signal(condition: *mut libc::pthread_cond_t) -> c_int {
    static LIBC: OnceLock<Wake> = OnceLock::new();
    // SAFETY: libc's function has this type.
    let libc_wake = *LIBC.get_or_init(|| unsafe { mem::transmute(libc_s(c"pthread_cond_signal")) });
    tell_woken(condition, false);
    // SAFETY: the caller's promise, handed on.
    unsafe { libc_wake(condition) }
}

/// libc's function of this name.
///
/// # Safety
///
/// Called as libc's own: the condition lives until the return.
// SAFETY: the signature is libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_cond_broadcast(condition: *mut libc::pthread_cond_t) -> c_int {
    static LIBC: OnceLock<Wake> = OnceLock::new();
    let libc_wake =
        // SAFETY: libc's function has this type.
        *LIBC.get_or_init(|| unsafe { mem::transmute(libc_s(c"pthread_cond_broadcast")) });
    tell_woken(condition, true);
    // SAFETY: the caller's promise, handed on.
    unsafe { libc_wake(condition) }
}

/// The calling thread, if what it waits for matters: the emulator's own workers don't.
fn thread() -> Option<Thread> {
    if let Some(cpu) = own_cpu() {
        return Some(Thread::Cpu(cpu));
    }
    // SAFETY: asking for numbers changes nothing.
    let is_first = unsafe { libc::gettid() == libc::getpid() };
    is_first.then_some(Thread::First)
}

fn tell_woken(condition: *mut libc::pthread_cond_t, all: bool) {
    if let Some(simulation) = SIMULATION.get() {
        simulation.wakes(condition.addr(), all, real_time());
    }
}

/// The function that libc itself has under a name.
fn libc_s(name: &CStr) -> *mut c_void {
    // SAFETY: the lookup changes nothing.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    assert!(!found.is_null(), "libc has no {name:?}");
    found
}
