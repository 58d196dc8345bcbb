//! Simulated parallel time for QEMU's multi-threaded TCG.
//!
//! Every vCPU advances in lock step with the others at one instruction per simulated nanosecond, and the
//! emulator's monotonic clock is replaced by the simulated one, so that CNTVCT_EL0 and every timer in the
//! guest show the time that a machine with that many real cores would show, whatever the host has.
//! With `cost=N`, moving a 64-byte line between cores costs N simulated ns, and moves of one line queue
//! behind each other: a shared lock word or counter then costs what it costs on a real many-core machine.
//! With `tlbi=N`, a broadcast TLB invalidation costs N simulated ns and all of them queue behind each other (they
//! share the interconnect); a local one costs a quarter and queues behind nobody.
//!
//! The library must be both preloaded (to replace the clock) and loaded as a plugin (to count).

use qemu_plugin_sys as q;
use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::os::raw::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};

#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 4;

const MAX_VCPUS: usize = 128;
const LINE_SETS: usize = 1 << 20;
const LINE_LOCKS: usize = 4096;
/// Real time between looks at the vCPU that holds time back. One that made no progress between two looks is stuck
/// outside guest code, mostly because the emulator wants all vCPUs out of it (a broadcast TLBI, a new translation
/// buffer): whoever waits must then go on for a moment, or both would wait for ever.
const LOOK_NS: i64 = 500_000;

/// How far a vCPU may run ahead of the slowest one, in instructions.
static QUANTUM: AtomicU64 = AtomicU64::new(1000);
/// Simulated ns to move a cache line between cores; 0 turns the model off.
static COST: AtomicU64 = AtomicU64::new(0);
/// Simulated ns of a broadcast TLB invalidation; 0 makes it as cheap as any instruction.
static TLBI: AtomicU64 = AtomicU64::new(0);
/// Only instructions at these virtual addresses take part in the cache-line model.
static LO: AtomicU64 = AtomicU64::new(0);
static HI: AtomicU64 = AtomicU64::new(u64::MAX);

#[derive(Clone, Copy, PartialEq)]
enum State {
    Off,
    Running,
    /// Ahead of the others: waits for them.
    Waiting,
    /// In WFI or powered off: does not hold time back.
    Idle,
}

struct Sim {
    time: [u64; MAX_VCPUS],
    state: [State; MAX_VCPUS],
    vcpus: usize,
    waits: u64,
    stuck: u64,
}

struct Guarded<T>(AtomicBool, UnsafeCell<T>);
// SAFETY: the cell is only reached through `with`, under the flag.
unsafe impl<T> Sync for Guarded<T> {}

impl<T> Guarded<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        acquire(&self.0);
        // SAFETY: the flag is ours.
        let r = f(unsafe { &mut *self.1.get() });
        self.0.store(false, Release);
        r
    }
}

/// std's locks sleep on the clock that this library replaces, so it brings its own.
fn acquire(flag: &AtomicBool) {
    let mut tries = 0;
    while flag.swap(true, Acquire) {
        tries += 1;
        if tries > 50 {
            unsafe { libc::sched_yield() };
        }
    }
}

static SIM: Guarded<Sim> = Guarded(
    AtomicBool::new(false),
    UnsafeCell::new(Sim {
        time: [0; MAX_VCPUS],
        state: [State::Off; MAX_VCPUS],
        vcpus: 0,
        waits: 0,
        stuck: 0,
    }),
);
/// Copies of `Sim::time` for the cache-line model.
static TIME: [AtomicU64; MAX_VCPUS] = [const { AtomicU64::new(0) }; MAX_VCPUS];
static PARKED: [AtomicU32; MAX_VCPUS] = [const { AtomicU32::new(0) }; MAX_VCPUS];
/// Simulated ns.
static NOW: AtomicU64 = AtomicU64::new(0);
/// Real time since when all vCPUs are idle (simulated time then runs at real speed), or 0.
static IDLE_SINCE: AtomicU64 = AtomicU64::new(0);
static BASE: AtomicU64 = AtomicU64::new(0);
static ON: AtomicBool = AtomicBool::new(false);
static DELAYS: AtomicU64 = AtomicU64::new(0);
static MOVES: AtomicU64 = AtomicU64::new(0);
static BROADCASTS: AtomicU64 = AtomicU64::new(0);
static LOCALS: AtomicU64 = AtomicU64::new(0);
static DVM_BUSY_UNTIL: Guarded<u64> = Guarded(AtomicBool::new(false), UnsafeCell::new(0));
static mut COUNTERS: *mut q::qemu_plugin_scoreboard = std::ptr::null_mut();

fn real_ns() -> u64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

fn sim_ns() -> u64 {
    let idle = IDLE_SINCE.load(Acquire);
    let now = NOW.load(Acquire);
    if idle == 0 {
        now
    } else {
        now + real_ns().saturating_sub(idle)
    }
}

/// Takes libc's place in the emulator.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(id: libc::clockid_t, ts: *mut libc::timespec) -> c_int {
    if ON.load(Acquire) && (id == libc::CLOCK_MONOTONIC || id == libc::CLOCK_MONOTONIC_RAW) {
        let t = BASE.load(Relaxed) + sim_ns();
        unsafe {
            *ts = libc::timespec {
                tv_sec: (t / 1_000_000_000) as i64,
                tv_nsec: (t % 1_000_000_000) as i64,
            }
        };
        return 0;
    }
    unsafe { libc::syscall(libc::SYS_clock_gettime, id, ts) as c_int }
}

fn futex_wait(a: &AtomicU32, value: u32) {
    let t = libc::timespec {
        tv_sec: 0,
        tv_nsec: LOOK_NS,
    };
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            a as *const _,
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            value,
            &t,
        )
    };
}

fn futex_wake(a: &AtomicU32) {
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            a as *const _,
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            1,
        )
    };
}

/// A vCPU's instructions (and delays) since it was last looked at.
fn pending() -> q::qemu_plugin_u64 {
    q::qemu_plugin_u64 {
        score: unsafe { COUNTERS },
        offset: 0,
    }
}

impl Sim {
    fn take_pending(&mut self, i: usize) {
        unsafe {
            self.time[i] += q::qemu_plugin_u64_get(pending(), i as u32);
            q::qemu_plugin_u64_set(pending(), i as u32, 0);
        }
        TIME[i].store(self.time[i], Relaxed);
    }

    fn run(&mut self, i: usize) {
        if IDLE_SINCE.load(Relaxed) != 0 {
            NOW.store(sim_ns(), Release);
            IDLE_SINCE.store(0, Release);
        }
        self.vcpus = self.vcpus.max(i + 1);
        self.state[i] = State::Running;
        self.time[i] = self.time[i].max(NOW.load(Relaxed));
        TIME[i].store(self.time[i], Relaxed);
    }

    fn unpark(&mut self, i: usize) {
        self.state[i] = State::Running;
        PARKED[i].store(0, Release);
        futex_wake(&PARKED[i]);
    }

    fn busy(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.vcpus).filter(|&i| matches!(self.state[i], State::Running | State::Waiting))
    }

    /// The busy vCPU that holds time back, and how far it is by its own count.
    fn slowest(&self) -> Option<(usize, u64)> {
        let i = self.busy().min_by_key(|&i| self.time[i])?;
        Some((
            i,
            self.time[i] + unsafe { q::qemu_plugin_u64_get(pending(), i as u32) },
        ))
    }

    /// Moves time to the slowest busy vCPU and releases those who waited for it.
    fn advance(&mut self) -> Option<u64> {
        let floor = self.busy().map(|i| self.time[i]).min()?;
        NOW.fetch_max(floor, AcqRel);
        let window = QUANTUM.load(Relaxed);
        for i in 0..self.vcpus {
            if self.state[i] == State::Waiting && self.time[i] <= floor + window {
                self.unpark(i);
            }
        }
        Some(floor)
    }
}

extern "C" fn vcpu_init(_: q::qemu_plugin_id_t, i: c_uint) {
    assert!(
        (i as usize) < MAX_VCPUS,
        "simclock: at most {MAX_VCPUS} vCPUs"
    );
    SIM.with(|s| s.run(i as usize));
}

extern "C" fn vcpu_exit(_: q::qemu_plugin_id_t, i: c_uint) {
    SIM.with(|s| {
        s.state[i as usize] = State::Off;
        s.advance();
    });
}

extern "C" fn vcpu_idle(_: q::qemu_plugin_id_t, i: c_uint) {
    SIM.with(|s| {
        let i = i as usize;
        s.take_pending(i);
        s.state[i] = State::Idle;
        if s.advance().is_none() && IDLE_SINCE.load(Relaxed) == 0 {
            NOW.fetch_max(s.time[i], AcqRel);
            IDLE_SINCE.store(real_ns(), Release);
        }
    });
}

extern "C" fn vcpu_resume(_: q::qemu_plugin_id_t, i: c_uint) {
    SIM.with(|s| s.run(i as usize));
}

extern "C" fn quantum_spent(i: c_uint, _: *mut c_void) {
    let i = i as usize;
    let must_wait = SIM.with(|s| {
        s.take_pending(i);
        if s.state[i] != State::Running {
            s.run(i);
        }
        let floor = s.advance().unwrap_or(0);
        let ahead = s.time[i] > floor + QUANTUM.load(Relaxed);
        if ahead {
            s.state[i] = State::Waiting;
            PARKED[i].store(1, Release);
            s.waits += 1;
        }
        ahead
    });
    if !must_wait {
        return;
    }
    let mut seen = None;
    while PARKED[i].load(Acquire) == 1 {
        futex_wait(&PARKED[i], 1);
        SIM.with(|s| {
            if s.state[i] != State::Waiting {
                return;
            }
            let slowest = s.slowest();
            if slowest.is_some() && slowest == seen {
                s.stuck += 1;
                s.unpark(i);
            }
            seen = slowest;
        });
    }
}

#[derive(Clone, Copy)]
struct Line {
    tag: u64,
    sharers: u128,
    /// Simulated time until which it is on its way to a core.
    busy_until: u64,
}

struct Lines(UnsafeCell<Vec<Line>>, [AtomicBool; LINE_LOCKS]);
// SAFETY: a line is only reached under the lock of its set.
unsafe impl Sync for Lines {}
static LINES: Lines = Lines(
    UnsafeCell::new(Vec::new()),
    [const { AtomicBool::new(false) }; LINE_LOCKS],
);

extern "C" fn access(i: c_uint, info: q::qemu_plugin_meminfo_t, va: u64, _: *mut c_void) {
    let pa = unsafe {
        let h = q::qemu_plugin_get_hwaddr(info, va);
        if h.is_null() || q::qemu_plugin_hwaddr_is_io(h) {
            return;
        }
        q::qemu_plugin_hwaddr_phys_addr(h)
    };
    let store = unsafe { q::qemu_plugin_mem_is_store(info) };
    let tag = pa >> 6;
    let set = (tag.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as usize % LINE_SETS;
    let me = 1u128 << i;
    let cost = COST.load(Relaxed);

    let lock = &LINES.1[set % LINE_LOCKS];
    acquire(lock);
    // SAFETY: the set's lock is ours.
    let line = unsafe { &mut (&mut *LINES.0.get())[set] };
    let mut wait = 0;
    if line.tag != tag {
        *line = Line {
            tag,
            sharers: me,
            busy_until: 0,
        };
    } else {
        let have = if store {
            line.sharers == me
        } else {
            line.sharers & me != 0
        };
        if !have {
            let now =
                TIME[i as usize].load(Relaxed) + unsafe { q::qemu_plugin_u64_get(pending(), i) };
            let start = now.max(line.busy_until);
            // a writer holds the line for the whole move; readers can be served nearly together
            line.busy_until = start + if store { cost } else { cost / 4 };
            line.sharers = if store { me } else { line.sharers | me };
            wait = start + cost - now;
        }
    }
    lock.store(false, Release);
    if wait > 0 {
        MOVES.fetch_add(1, Relaxed);
        delay(i, wait);
    }
}

fn delay(i: c_uint, ns: u64) {
    DELAYS.fetch_add(ns, Relaxed);
    unsafe { q::qemu_plugin_u64_add(pending(), i, ns) };
}

/// Whether an instruction is a TLB invalidation, and if so whether it is broadcast.
/// SYS with CRn 8 or 9 (Arm ARM, A64 system instructions for TLB maintenance); CRm 0..=3 and 5 reach other cores, but
/// for op1 = 4 (EL2) CRm 4 is the local form of the by-IPA ones.
fn tlbi_scope(word: u32) -> Option<bool> {
    let (top, crn, crm) = (word >> 19, word >> 12 & 0xf, word >> 8 & 0xf);
    let is_sys = top == 0xd508_0000 >> 19;
    (is_sys && (crn == 8 || crn == 9)).then_some(matches!(crm, 0..=3 | 5))
}

extern "C" fn tlb_invalidation(i: c_uint, broadcast: *mut c_void) {
    let cost = TLBI.load(Relaxed);
    if broadcast.is_null() {
        LOCALS.fetch_add(1, Relaxed);
        return delay(i, cost / 4);
    }
    BROADCASTS.fetch_add(1, Relaxed);
    let now = TIME[i as usize].load(Relaxed) + unsafe { q::qemu_plugin_u64_get(pending(), i) };
    let end = DVM_BUSY_UNTIL.with(|busy| {
        *busy = now.max(*busy) + cost;
        *busy
    });
    delay(i, end - now);
}

extern "C" fn block_translated(_: q::qemu_plugin_id_t, tb: *mut q::qemu_plugin_tb) {
    const NO_REGS: q::qemu_plugin_cb_flags = q::qemu_plugin_cb_flags::QEMU_PLUGIN_CB_NO_REGS;
    unsafe {
        let n = q::qemu_plugin_tb_n_insns(tb);
        q::qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(
            tb,
            q::qemu_plugin_op::QEMU_PLUGIN_INLINE_ADD_U64,
            pending(),
            n as u64,
        );
        q::qemu_plugin_register_vcpu_tb_exec_cond_cb(
            tb,
            Some(quantum_spent),
            NO_REGS,
            q::qemu_plugin_cond::QEMU_PLUGIN_COND_GE,
            pending(),
            QUANTUM.load(Relaxed),
            std::ptr::null_mut(),
        );
        let range = LO.load(Relaxed)..HI.load(Relaxed);
        for k in 0..n {
            let insn = q::qemu_plugin_tb_get_insn(tb, k);
            let mut word = 0u32;
            q::qemu_plugin_insn_data(insn, (&raw mut word).cast(), size_of::<u32>());
            if let Some(broadcast) = tlbi_scope(word) {
                q::qemu_plugin_register_vcpu_insn_exec_cb(
                    insn,
                    Some(tlb_invalidation),
                    NO_REGS,
                    broadcast as usize as *mut c_void,
                );
            }
            if COST.load(Relaxed) != 0 && range.contains(&q::qemu_plugin_insn_vaddr(insn)) {
                q::qemu_plugin_register_vcpu_mem_cb(
                    insn,
                    Some(access),
                    NO_REGS,
                    q::qemu_plugin_mem_rw::QEMU_PLUGIN_MEM_RW,
                    std::ptr::null_mut(),
                );
            }
        }
    }
}

extern "C" fn at_exit(_: q::qemu_plugin_id_t, _: *mut c_void) {
    SIM.with(|s| {
        eprintln!(
            "simclock: simulated {:.3} ms in {:.1} real s; {} waits, {} let go as stuck; \
             {} line moves, {} broadcast and {} local TLBIs; waited {:.3} ms for them",
            sim_ns() as f64 / 1e6,
            (real_ns() - BASE.load(Relaxed)) as f64 / 1e9,
            s.waits,
            s.stuck,
            MOVES.load(Relaxed),
            BROADCASTS.load(Relaxed),
            LOCALS.load(Relaxed),
            DELAYS.load(Relaxed) as f64 / 1e6,
        )
    });
}

fn number(v: &str) -> Option<u64> {
    match v.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => v.parse().ok(),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: q::qemu_plugin_id_t,
    _: *const q::qemu_info_t,
    argc: c_int,
    argv: *mut *mut c_char,
) -> c_int {
    let mut is_check = false;
    for k in 0..argc as usize {
        let arg = unsafe { CStr::from_ptr(*argv.add(k)) }
            .to_string_lossy()
            .into_owned();
        if arg == "check" || arg == "check=on" {
            is_check = true;
            continue;
        }
        let target = arg.split_once('=').and_then(|(key, v)| {
            let slot = match key {
                "quantum" => &QUANTUM,
                "cost" => &COST,
                "tlbi" => &TLBI,
                "lo" => &LO,
                "hi" => &HI,
                _ => return None,
            };
            Some((slot, number(v)?))
        });
        match target {
            Some((slot, v)) => slot.store(v, Relaxed),
            None => {
                eprintln!(
                    "simclock: '{arg}': expected quantum=N, cost=N, tlbi=N, lo=ADDR or hi=ADDR"
                );
                return -1;
            }
        }
    }
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"clock_gettime".as_ptr()) };
    if found as usize != clock_gettime as *const () as usize {
        eprintln!("simclock: not preloaded: set LD_PRELOAD to this library");
        return -1;
    }
    if is_check {
        unsafe { libc::_exit(0) };
    }
    unsafe {
        COUNTERS = q::qemu_plugin_scoreboard_new(size_of::<u64>());
        *LINES.0.get() = vec![
            Line {
                tag: u64::MAX,
                sharers: 0,
                busy_until: 0
            };
            LINE_SETS
        ];
        q::qemu_plugin_register_vcpu_init_cb(id, Some(vcpu_init));
        q::qemu_plugin_register_vcpu_exit_cb(id, Some(vcpu_exit));
        q::qemu_plugin_register_vcpu_idle_cb(id, Some(vcpu_idle));
        q::qemu_plugin_register_vcpu_resume_cb(id, Some(vcpu_resume));
        q::qemu_plugin_register_vcpu_tb_trans_cb(id, Some(block_translated));
        q::qemu_plugin_register_atexit_cb(id, Some(at_exit), std::ptr::null_mut());
    }
    let now = real_ns();
    BASE.store(now, Relaxed);
    IDLE_SINCE.store(now, Relaxed);
    ON.store(true, Release);
    0
}
