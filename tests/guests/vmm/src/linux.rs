//! Linux's system calls (arm64), as far as they are needed.

use core::arch::{asm, global_asm};
use core::ffi::CStr;
use core::fmt;

const IOCTL: u64 = 29;
const OPEN_AT: u64 = 56;
const CLOSE: u64 = 57;
const READ: u64 = 63;
const WRITE: u64 = 64;
const EXIT: u64 = 93;
const EXIT_GROUP: u64 = 94;
const NANOSLEEP: u64 = 101;
const SET_AFFINITY: u64 = 122;
const REBOOT: u64 = 142;
const MMAP: u64 = 222;

/// O_RDWR, from the root folder on.
const READ_AND_WRITE: u64 = 2;
const HERE: u64 = -100_i64 as u64;
/// The words of a mask of CPUs.
const CPU_WORDS: usize = 4;
/// Of a thread: what it shares with others is all but its registers and its signal mask.
const THREAD: u64 = 0x5_0f00;

global_asm!(
    // x0 = the top of a stack, x1 and x2 = a function that never returns and what it is given.
    ".global start_thread",
    "start_thread:",
    "mov x4, x1",
    "mov x5, x2",
    "mov x1, x0",
    "ldr x0, ={flags}",
    "mov x2, xzr",
    "mov x3, xzr",
    "mov x8, #220", // clone
    "svc #0",
    "cbz x0, 1f",
    "ret",
    "1: mov x29, xzr",
    "mov x30, xzr",
    "mov x0, x5",
    "br x4",
    ".ltorg",
    flags = const THREAD,
);

unsafe extern "C" {
    fn start_thread(stack: u64, run: extern "C" fn(u64) -> !, argument: u64) -> i64;
}

/// A system call; gives what it returns.
///
/// # Safety
/// As the call says.
unsafe fn call(number: u64, arguments: [u64; 6]) -> i64 {
    let [a, b, c, d, e, f] = arguments;
    let result: i64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("svc #0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d, in("x4") e,
            in("x5") f, options(nostack));
    }
    result
}

/// Ends the program with a line that says why.
pub fn fail(what: fmt::Arguments<'_>) -> ! {
    line(format_args!("@micro wrong: {what}"));
    exit(1)
}

/// Ends all threads.
pub fn exit(status: u64) -> ! {
    loop {
        // SAFETY: it ends.
        unsafe { call(EXIT_GROUP, [status, 0, 0, 0, 0, 0]) };
    }
}

/// Ends this thread.
pub fn exit_thread() -> ! {
    loop {
        // SAFETY: it ends.
        unsafe { call(EXIT, [0; 6]) };
    }
}

/// Sleeps for so many seconds.
pub fn sleep(seconds: u64) {
    let time = [seconds, 0];
    // SAFETY: the time is read.
    unsafe { call(NANOSLEEP, [time.as_ptr() as u64, 0, 0, 0, 0, 0]) };
}

/// Switches the machine off.
pub fn power_off() -> ! {
    const MAGIC: [u64; 3] = [0xfee1_dead, 0x2812_1969, 0x4321_fedc];
    let [one, two, off] = MAGIC;
    // SAFETY: nothing is to be kept.
    unsafe { call(REBOOT, [one, two, off, 0, 0, 0]) };
    exit(1)
}

/// Standard output.
pub struct Output;

impl fmt::Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write(text.as_bytes());
        Ok(())
    }
}

/// Writes to standard output.
pub fn write(bytes: &[u8]) {
    // SAFETY: the bytes are read.
    unsafe {
        call(
            WRITE,
            [1, bytes.as_ptr() as u64, bytes.len() as u64, 0, 0, 0],
        )
    };
}

/// Writes a line.
pub fn line(text: fmt::Arguments<'_>) {
    use core::fmt::Write;
    // There is nobody to tell.
    let _ = writeln!(Output, "{text}");
}

/// A file, which stays open.
#[derive(Clone, Copy)]
pub struct File(u64);

impl File {
    /// Opens a file to be read, and written if it is a device.
    pub fn open(path: &CStr, writes: bool) -> Option<Self> {
        let flags = if writes { READ_AND_WRITE } else { 0 };
        // SAFETY: the path is read.
        let file = unsafe { call(OPEN_AT, [HERE, path.as_ptr() as u64, flags, 0, 0, 0]) };
        u64::try_from(file).ok().map(Self)
    }

    /// The file that the system has opened with this number.
    pub const fn of(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Reads as much as there is and as has room. Closes it.
    pub fn read(self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(room) = bytes.get_mut(done..) {
            let (start, length) = (room.as_mut_ptr() as u64, room.len() as u64);
            // SAFETY: the bytes are lent to it.
            let count = unsafe { call(READ, [self.0, start, length, 0, 0, 0]) };
            match usize::try_from(count) {
                Ok(0) | Err(_) => break,
                Ok(count) => done += count,
            }
        }
        // SAFETY: nobody uses it any more.
        unsafe { call(CLOSE, [self.0, 0, 0, 0, 0, 0]) };
        done
    }

    /// An ioctl, which has to succeed; gives what it returns.
    ///
    /// # Safety
    /// `argument` is what this request takes.
    pub unsafe fn ioctl(self, what: &str, request: u64, argument: u64) -> u64 {
        // SAFETY: the caller's promise.
        match unsafe { self.try_ioctl(request, argument) } {
            Ok(result) => result,
            Err(error) => fail(format_args!("{what}: error {error}")),
        }
    }

    /// An ioctl; gives what it returns, or the error.
    ///
    /// # Safety
    /// As [`Self::ioctl`].
    pub unsafe fn try_ioctl(self, request: u64, argument: u64) -> Result<u64, i64> {
        // SAFETY: the caller's promise.
        let result = unsafe { call(IOCTL, [self.0, request, argument, 0, 0, 0]) };
        u64::try_from(result).map_err(|_| -result)
    }

    /// Maps so many of its bytes, for good.
    pub fn map(self, bytes: u64) -> *mut u8 {
        const SHARED: u64 = 1;
        map(bytes, SHARED, self.0)
    }
}

/// Memory of zeros, for good.
pub fn memory(bytes: u64) -> *mut u8 {
    const PRIVATE: u64 = 2;
    const ANONYMOUS: u64 = 0x20;
    map(bytes, PRIVATE | ANONYMOUS, u64::MAX)
}

fn map(bytes: u64, flags: u64, file: u64) -> *mut u8 {
    const READ_WRITE: u64 = 3;
    // SAFETY: the system chooses addresses that nobody uses.
    let start = unsafe { call(MMAP, [0, bytes, READ_WRITE, flags, file, 0]) };
    match start {
        0.. => start as *mut u8,
        error => fail(format_args!("no memory: error {error}")),
    }
}

/// Keeps this thread on one CPU.
pub fn pin(cpu: usize) {
    let mut mask = [0_u64; CPU_WORDS];
    let Some(word) = mask.get_mut(cpu / 64) else {
        fail(format_args!("there is no CPU {cpu}"));
    };
    *word = 1 << (cpu % 64);
    let bytes = size_of_val(&mask) as u64;
    // SAFETY: the mask is read.
    let result = unsafe { call(SET_AFFINITY, [0, bytes, mask.as_ptr() as u64, 0, 0, 0]) };
    if result < 0 {
        fail(format_args!("CPU {cpu}: error {result}"));
    }
}

/// Starts a thread.
pub fn spawn(run: extern "C" fn(u64) -> !, argument: u64) {
    const STACK: u64 = 64 << 10;
    let stack = memory(STACK) as u64 + STACK;
    // SAFETY: the stack is the thread's own.
    let result = unsafe { start_thread(stack, run, argument) };
    if result < 0 {
        fail(format_args!("no thread: error {result}"));
    }
}
