//! Linux's system calls, as far as the load makes them.

use core::arch::{asm, global_asm};
use core::ptr::NonNull;

// The first instruction of a process finds its arguments on the stack.
global_asm!(
    ".global _start",
    "_start:",
    "mov x29, xzr",
    "mov x0, sp",
    "bl {begin}",
    "brk #1",
    begin = sym begin,
);

const WRITE: u64 = 64;
const READ: u64 = 63;
const EXIT_GROUP: u64 = 94;
const NANOSLEEP: u64 = 101;
const SCHED_SETAFFINITY: u64 = 122;
const SCHED_GETAFFINITY: u64 = 123;
const SYSINFO: u64 = 179;
const CLONE: u64 = 220;
const MMAP: u64 = 222;
const WAIT4: u64 = 260;

const STANDARD_OUTPUT: u64 = 1;
const STANDARD_INPUT: u64 = 0;
const SIGCHLD: u64 = 17;
const PROT_READ_WRITE: u64 = 3;
const MAP_SHARED: u64 = 1;
const MAP_PRIVATE: u64 = 2;
const MAP_ANONYMOUS: u64 = 0x20;

/// The words of a set of CPUs.
const SET: usize = 16;
/// The most CPUs that are used.
pub const MOST_CPUS: usize = 64 * SET;

/// Who sees what is written to new memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// This process alone, and a copy of it each process that it makes.
    Private,
    /// All processes that it makes.
    Shared,
}

extern "C" fn begin(stack: *const usize) -> ! {
    // SAFETY: there is the number of arguments, and then the address of each of these strings, which end with a zero.
    let argument = unsafe {
        match *stack {
            0 | 1 => "",
            _ => {
                let argument = *stack.add(2) as *const core::ffi::c_char;
                core::ffi::CStr::from_ptr(argument).to_str().unwrap_or("")
            }
        }
    };
    exit(crate::run(argument))
}

/// Makes a system call; gives its result, which is above -4096 as an unsigned number if it failed.
///
/// # Safety
/// The kernel may do with this process's memory what the call says.
unsafe fn call(number: u64, arguments: [u64; 6]) -> u64 {
    let [mut result, second, third, fourth, fifth, sixth] = arguments;
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "svc #0",
            in("x8") number,
            inout("x0") result,
            in("x1") second,
            in("x2") third,
            in("x3") fourth,
            in("x4") fifth,
            in("x5") sixth,
            options(nostack),
        );
    }
    result
}

/// Ends this process with a status.
pub fn exit(status: u8) -> ! {
    loop {
        // SAFETY: it doesn't return.
        unsafe { call(EXIT_GROUP, [status.into(), 0, 0, 0, 0, 0]) };
    }
}

/// Prints some text as a whole.
pub fn print(text: &str) {
    // SAFETY: the kernel reads the text.
    unsafe {
        call(
            WRITE,
            [
                STANDARD_OUTPUT,
                text.as_ptr().addr() as u64,
                text.len() as u64,
                0,
                0,
                0,
            ],
        )
    };
}

/// Waits until something is typed, or nothing can be any more.
pub fn wait_for_input() {
    let mut byte = 0u8;
    // SAFETY: the kernel writes one byte at most.
    unsafe {
        call(
            READ,
            [STANDARD_INPUT, (&raw mut byte).addr() as u64, 1, 0, 0, 0],
        )
    };
}

/// Waits for a hundredth of a second.
pub fn rest() {
    let time: [u64; 2] = [0, 10_000_000];
    // SAFETY: the kernel reads the time.
    unsafe { call(NANOSLEEP, [time.as_ptr().addr() as u64, 0, 0, 0, 0, 0]) };
}

/// The CPUs that this process may run on, one bit each.
pub fn cpus() -> [u64; SET] {
    let mut set = [0u64; SET];
    // SAFETY: the kernel writes the set.
    unsafe {
        call(
            SCHED_GETAFFINITY,
            [
                0,
                size_of_val(&set) as u64,
                set.as_mut_ptr().addr() as u64,
                0,
                0,
                0,
            ],
        )
    };
    set
}

/// Has this process run on one CPU only.
pub fn stay_on(cpu: usize) {
    let mut set = [0u64; SET];
    set[cpu / 64] = 1 << (cpu % 64);
    // SAFETY: the kernel reads the set.
    unsafe {
        call(
            SCHED_SETAFFINITY,
            [
                0,
                size_of_val(&set) as u64,
                set.as_ptr().addr() as u64,
                0,
                0,
                0,
            ],
        )
    };
}

/// The memory of the machine, in bytes.
pub fn memory() -> u64 {
    // struct sysinfo: the total is its fifth word, in units that the 14th has in its lower half.
    let mut info = [0u64; 16];
    // SAFETY: the kernel writes the structure, which has 112 bytes.
    unsafe { call(SYSINFO, [info.as_mut_ptr().addr() as u64, 0, 0, 0, 0, 0]) };
    info[4] * (info[13] & 0xffff_ffff)
}

/// New memory of zeros; `None` if there is none.
pub fn map(bytes: usize, sharing: Sharing) -> Option<NonNull<u8>> {
    let flags = match sharing {
        Sharing::Private => MAP_PRIVATE | MAP_ANONYMOUS,
        Sharing::Shared => MAP_SHARED | MAP_ANONYMOUS,
    };
    // SAFETY: nothing else is where the kernel puts it.
    let at = unsafe { call(MMAP, [0, bytes as u64, PROT_READ_WRITE, flags, u64::MAX, 0]) };
    let is_error = at > u64::MAX - 4096;
    NonNull::new(core::ptr::with_exposed_provenance_mut(at as usize)).filter(|_| !is_error)
}

/// Makes a copy of this process. True in the copy; `None` if there is none.
pub fn fork() -> Option<bool> {
    // SAFETY: the copy has its own memory, but for what is shared on purpose.
    match unsafe { call(CLONE, [SIGCHLD, 0, 0, 0, 0, 0]) } {
        0 => Some(true),
        error if error > u64::MAX - 4096 => None,
        _ => Some(false),
    }
}

/// Waits for the end of a process that this one has made. Whether it ended well.
pub fn wait() -> bool {
    let mut status = 0u32;
    // SAFETY: the kernel writes the status.
    let found = unsafe {
        call(
            WAIT4,
            [u64::MAX, (&raw mut status).addr() as u64, 0, 0, 0, 0],
        )
    };
    status == 0 && found <= u64::MAX - 4096
}
