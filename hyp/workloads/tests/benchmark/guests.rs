//! Guests: functions that run on threads of their own, and come out of the guest by handing over an exit.

use crate::machine::{DEVICE, Threads};
use abi::{
    BALLOON, BENCH_HELLO, BENCH_NEXT, BENCH_PARAMS, CONSOLE_PUT, INCONSISTENT, PREFAULT, REPORT,
    content, pattern, step,
};
use std::panic;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use vm::{CpuId, ExitReason, GuestRegs, RawExit, VcpuControls};

const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON: u32 = 0xc400_0003;
const SYSTEM_OFF: u32 = 0x8400_0008;
/// Behind the image.
const JOURNALS: u64 = 0x4010_0000;
const JOURNAL_BYTES: u64 = 4096;
/// The register of a guest that isn't 0 once its vCPU waits for a step. A fork's vCPU that is loaded with it has its step in the
/// registers: it is forked in no other place.
const WAITS: usize = 19;
/// Bits of a leaf's descriptor: it may be written; it may be made so by the hardware (FEAT_HAFDBS).
const WRITABLE: u64 = 1 << 7;
const MAY_BECOME_DIRTY: u64 = 1 << 51;

/// Which guest to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guest {
    /// Does what it should.
    Honest,
    /// Does one thing wrong.
    Sinner(Sin),
    /// Reads its device, and reports whether that is what it should be.
    Reader {
        /// What it should be.
        expected: u64,
    },
    /// Writes at random to its RAM until nobody wants its log any more, then reports success.
    Writer {
        /// How many vCPUs it has, one or two.
        vcpus: u64,
        /// Whether one of its writes isn't noticed.
        stealthy: bool,
    },
    /// Calls with garbage, then reports.
    Program {
        /// Its verdict.
        code: u64,
    },
}

/// What a guest does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sin {
    HidesAPage,
    InventsAPage,
    WritesRubbish,
    Miscounts,
    NoHello,
    HelloTwice,
    BadJournals,
    PowersOff,
    AllOff,
    ReportsFailure,
    Hangs,
}

/// Where a vCPU starts.
#[derive(Clone, Copy)]
pub struct Entry {
    pub machine: &'static Threads,
    pub cpu: CpuId,
    pub controls: VcpuControls,
}

/// The hypervisor's end of a guest's thread.
pub struct GuestCpu {
    /// Its own, which it keeps in a register while its vCPU isn't loaded.
    pub number: u64,
    entry: Entry,
    resume: SyncSender<GuestRegs>,
    exits: Receiver<(GuestRegs, RawExit)>,
}

impl GuestCpu {
    pub fn start(guest: Guest, entry: Entry) -> Self {
        let (resume, resumed) = sync_channel(1);
        let (exit, exits) = sync_channel(1);
        thread::spawn(move || {
            let Ok(regs) = resumed.recv() else { return };
            let vcpu = (entry.controls.mpidr & 0xff) as usize;
            Vcpu {
                entry,
                vcpu,
                regs,
                resumed,
                exit,
            }
            .run(guest);
        });
        static GUESTS: AtomicU64 = AtomicU64::new(1);
        Self {
            number: GUESTS.fetch_add(1, Ordering::Relaxed),
            entry,
            resume,
            exits,
        }
    }

    /// Whether this guest goes on where the vCPU is loaded that keeps `number`: a fork keeps its parent's.
    pub fn is_at(&self, entry: &Entry, number: u64) -> bool {
        self.number == number && self.entry.controls == entry.controls
    }

    pub fn resume(&mut self, regs: &mut GuestRegs) -> RawExit {
        if self.entry.machine.is_kicked(self.entry.cpu) {
            return RawExit {
                reason: ExitReason::Interrupt,
                esr: 0,
                far: 0,
                hpfar: 0,
            };
        }
        self.resume
            .send(regs.clone())
            .expect("the guest waits to be resumed");
        let (after, exit) = self.exits.recv().expect("the guest exits");
        *regs = after;
        exit
    }
}

/// The guest's end.
struct Vcpu {
    entry: Entry,
    vcpu: usize,
    regs: GuestRegs,
    resumed: Receiver<GuestRegs>,
    exit: SyncSender<(GuestRegs, RawExit)>,
}

impl Vcpu {
    fn exit(&mut self, exit: RawExit) {
        let handed_over = self.exit.send((self.regs.clone(), exit));
        match handed_over.ok().and_then(|()| self.resumed.recv().ok()) {
            Some(regs) => self.regs = regs,
            // The VM has ended: so does its thread, without a message.
            None => panic::resume_unwind(Box::new(())),
        }
    }

    fn call<const N: usize>(&mut self, function: u32, args: [u64; N]) -> [u64; 4] {
        self.regs.x[0] = function.into();
        self.regs.x[1..=N].copy_from_slice(&args);
        self.exit(RawExit {
            reason: ExitReason::Synchronous,
            esr: 0x16 << 26 | 1 << 25,
            far: 0,
            hpfar: 0,
        });
        self.regs.x[..4].try_into().unwrap()
    }

    /// The word at `ipa`, once stage 2 lets this vCPU have it.
    fn word(&mut self, ipa: u64, write: bool) -> &'static AtomicU64 {
        loop {
            let fault = match walk(&self.entry.controls, ipa, write) {
                Some((pa, writable)) if writable || !write => {
                    // SAFETY: the arena's memory stays for ever, and the VM's frames are its own while its vCPUs run.
                    return unsafe { &*ptr::with_exposed_provenance(pa as usize) };
                }
                Some(_) => 0x0f,
                None => 0x07,
            };
            let esr = 0x24 << 26 | 1 << 25 | u64::from(write) << 6 | fault;
            self.exit(RawExit {
                reason: ExitReason::Synchronous,
                esr,
                far: ipa,
                hpfar: ipa >> 12 << 4,
            });
        }
    }

    fn print(&mut self, text: &str) {
        for byte in text.bytes() {
            self.call(CONSOLE_PUT, [byte.into()]);
        }
    }

    fn run(mut self, guest: Guest) {
        match guest {
            Guest::Honest => self.benchmark(None),
            Guest::Sinner(Sin::Hangs) => self.hang(),
            Guest::Sinner(sin) => self.benchmark(Some(sin)),
            Guest::Reader { expected } => {
                let found = self.word(DEVICE + 4096, false).load(Ordering::Relaxed);
                self.call(REPORT, [u64::from(found != expected), found, 0]);
            }
            Guest::Program { code } => self.program(code),
            Guest::Writer { vcpus, stealthy } => self.write_at_random(vcpus, stealthy),
        }
    }

    fn write_at_random(&mut self, vcpus: u64, stealthy: bool) {
        /// Pages from there on, of which some are never written.
        const FIRST: u64 = 0x4010_0000;
        const PAGES: u64 = 600;
        const HIDDEN: u64 = FIRST + 4096 * PAGES + 16;
        if self.vcpu == 0 {
            self.word(HIDDEN, true).store(1, Ordering::SeqCst);
            if vcpus > 1 {
                self.call(CPU_ON, [1, 0x4000_0000, 1]);
            }
        }
        let mut random = fastrand::Rng::with_seed(self.vcpu as u64);
        while self.vcpu != 0 || !self.entry.machine.is_over() {
            let (page, value) = (random.u64(..PAGES), random.u64(..4));
            let at = FIRST + page * 4096 + random.u64(..512) * 8;
            self.word(at, true).store(value, Ordering::SeqCst);
            // There is no TLB whose invalidation waits for a store: it is noticed if the entry is still writable after it, or
            // else now.
            self.word(at, true);
            if stealthy && self.entry.machine.has_said("Iteration 1 copy memory") {
                self.word(HIDDEN, false).store(0x5ec, Ordering::SeqCst);
            }
            if self.entry.machine.is_kicked(self.entry.cpu) {
                self.exit(RawExit {
                    reason: ExitReason::Interrupt,
                    esr: 0,
                    far: 0,
                    hpfar: 0,
                });
            }
        }
        self.call(REPORT, [0, 0, 0]);
    }

    fn hang(&mut self) {
        if self.vcpu == 0 {
            self.call(BENCH_HELLO, [JOURNALS, JOURNAL_BYTES]);
            self.call(CPU_ON, [1, 0x4000_0000, 1]);
            self.call(BENCH_NEXT, [0]);
        }
        loop {
            if self.entry.machine.is_kicked(self.entry.cpu) {
                self.exit(RawExit {
                    reason: ExitReason::Interrupt,
                    esr: 0,
                    far: 0,
                    hpfar: 0,
                });
            }
            thread::yield_now();
        }
    }

    fn program(&mut self, code: u64) {
        for function in (0..=0xff)
            .chain([0xff01, 0xff03, 0xffff])
            .flat_map(|n| [0xc600_0000 + n, 0x8600_0000 + n])
        {
            if ![CONSOLE_PUT, REPORT].contains(&function) {
                self.call(function, [u64::MAX, u64::MAX - 7, 1 << 63, 0, 5, 6]);
            }
        }
        self.print("garbage in\n");
        self.call(REPORT, [code, 1, 2]);
    }

    fn benchmark(&mut self, sin: Option<Sin>) {
        let mut next = match self.regs.x[WAITS] {
            0 => None,
            _ => Some(self.regs.x[..4].try_into().unwrap()),
        };
        if self.vcpu == 0 && next.is_none() {
            self.begin(sin);
        }
        let [_, percent, random, seed] = self.call(BENCH_PARAMS, []);
        let share = self.entry.machine.share.load(Ordering::Acquire);
        let first = share * self.vcpu as u64;
        let mut generator = seed
            .wrapping_mul(0x9e37_79b9)
            .wrapping_add(self.vcpu as u64 + 1);
        let (mut written, mut read) = (0, 0);
        loop {
            self.regs.x[WAITS] = 1;
            let next = next.take();
            let [code, iteration, from, count] =
                next.unwrap_or_else(|| self.call(BENCH_NEXT, [written, read]));
            match code {
                step::POPULATE => {
                    let journal = JOURNALS + JOURNAL_BYTES * self.vcpu as u64;
                    self.word(journal, true).store(0, Ordering::Relaxed);
                    for page in first..first + share {
                        self.write(page, pattern(0, page));
                    }
                    written = share;
                }
                step::DIRTY => {
                    let accesses = (0..share).map(|access| {
                        generator = generator
                            .wrapping_mul(6364136223846793005)
                            .wrapping_add(1442695040888963407);
                        let draw = generator >> 33;
                        (
                            if random == 1 { draw % share } else { access },
                            draw / 1000 % 100 < percent,
                        )
                    });
                    let accesses: Vec<_> = accesses.collect();
                    read = accesses.iter().filter(|(_, write)| !write).count() as u64;
                    written = self.dirty(iteration, first, share, &accesses, sin);
                }
                step::WRITE..=step::CHECK => {
                    for page in first + from..first + from + count {
                        self.change_or_check(code, iteration, seed, page);
                    }
                }
                step::GIVE_UP => self.call_for_all(BALLOON, 0, first + from, count),
                step::POPULATE_AHEAD => self.call_for_all(PREFAULT, 1, first + from, count),
                _ if self.vcpu == 0 => {
                    self.call(SYSTEM_OFF, []);
                }
                _ => {
                    self.call(CPU_OFF, []);
                }
            }
        }
    }

    fn begin(&mut self, sin: Option<Sin>) {
        self.print("vCPU 0 is up\n");
        match sin {
            Some(Sin::NoHello) => {
                self.call(BENCH_NEXT, [0]);
            }
            Some(Sin::BadJournals) => {
                self.call(BENCH_HELLO, [u64::MAX - 7, 4096]);
            }
            Some(Sin::PowersOff) => {
                self.call(SYSTEM_OFF, []);
            }
            Some(Sin::AllOff) => {
                self.call(CPU_OFF, []);
            }
            Some(Sin::ReportsFailure) => {
                self.call(REPORT, [7, 8, 9]);
            }
            _ => {}
        }
        let [_, vcpus, bytes, _] = self.call(BENCH_HELLO, [JOURNALS, JOURNAL_BYTES]);
        if sin == Some(Sin::HelloTwice) {
            self.call(BENCH_HELLO, [JOURNALS, JOURNAL_BYTES]);
        }
        self.entry
            .machine
            .share
            .store(bytes / 4096, Ordering::Release);
        for vcpu in 1..vcpus {
            assert_eq!(self.call(CPU_ON, [vcpu, 0x4000_0000, vcpu])[0], 0);
        }
    }

    fn write(&mut self, page: u64, value: u64) {
        self.word(0x8000_0000 + page * 4096, true)
            .store(value, Ordering::Relaxed);
    }

    /// Makes a call for some pages until it has done all of them.
    fn call_for_all(&mut self, function: u32, argument: u64, page: u64, count: u64) {
        let (mut at, mut left) = (0x8000_0000 + page * 4096, count * 4096);
        while left != 0 {
            let [status, done, ..] = self.call(function, [at, left, argument]);
            assert_eq!(status, 0);
            at += done;
            left -= done;
        }
    }

    /// Does to one page what a step does to all that are meant.
    fn change_or_check(&mut self, code: u64, count: u64, seed: u64, page: u64) {
        let (first, more, words) = match code {
            step::WRITE | step::READ => (pattern(count, page), 0, 1),
            step::READ_ZEROS => (0, 0, 1),
            _ => {
                let (first, more) = content::words(page, seed, count);
                (first, more, 512)
            }
        };
        let is_write = code == step::WRITE || code == step::FILL;
        for index in 0..words {
            let value = first.wrapping_add(more.wrapping_mul(index % content::PERIOD));
            let word = self.word(0x8000_0000 + page * 4096 + index * 8, is_write);
            if is_write {
                word.store(value, Ordering::Relaxed);
            }
            let found = word.load(Ordering::Relaxed);
            if found != value {
                self.call(REPORT, [INCONSISTENT, page, found]);
            }
        }
    }

    /// Returns the number of pages written.
    fn dirty(
        &mut self,
        iteration: u64,
        first: u64,
        share: u64,
        accesses: &[(u64, bool)],
        sin: Option<Sin>,
    ) -> u64 {
        let sin = sin.filter(|_| iteration == 2 && self.vcpu == 0);
        let journal = JOURNALS + JOURNAL_BYTES * self.vcpu as u64;
        for word in 0..share.div_ceil(64) {
            self.word(journal + word * 8, true)
                .store(0, Ordering::Relaxed);
        }
        for (page, is_write) in accesses {
            if !is_write {
                self.word(0x8000_0000 + (first + page) * 4096, false);
                continue;
            }
            let sins_here = sin.filter(|_| *page == 7);
            if sins_here != Some(Sin::InventsAPage) {
                self.write(first + page, pattern(iteration, first + page));
            }
            if sins_here == Some(Sin::WritesRubbish) {
                self.write(first + page, 0x1234);
            }
            if sins_here != Some(Sin::HidesAPage) {
                self.word(journal + page / 64 * 8, true)
                    .fetch_or(1 << (page % 64), Ordering::Relaxed);
            }
        }
        let mut count = 0;
        for word in 0..share.div_ceil(64) {
            count += u64::from(
                self.word(journal + word * 8, false)
                    .load(Ordering::Relaxed)
                    .count_ones(),
            );
        }
        match sin {
            Some(Sin::Miscounts) => count - 1,
            Some(Sin::HidesAPage) => count + 1,
            _ => count,
        }
    }
}

/// Where stage 2 maps `ipa`, and whether for writes, as the hardware walks it (Arm ARM D8.3). A write makes a leaf dirty whose
/// dirty state hardware keeps.
fn walk(controls: &VcpuControls, ipa: u64, write: bool) -> Option<(u64, bool)> {
    const ADDRESS: u64 = 0xffff_ffff_f000;
    let mut level = 2 - (controls.stage2.vtcr >> 6 & 3);
    let mut table = controls.stage2.vttbr & ADDRESS;
    let mut index_mask = u64::MAX;
    loop {
        let shift = 12 + 9 * (3 - level);
        let entry = table + ((ipa >> shift) & index_mask) * 8;
        // SAFETY: tables lie in the arena, which stays for ever.
        let word = unsafe { &*ptr::with_exposed_provenance::<AtomicU64>(entry as usize) };
        let mut entry = word.load(Ordering::Acquire);
        if entry & 1 == 0 {
            return None;
        }
        if level == 3 || entry & 2 == 0 {
            let offset = ipa & ((1 << shift) - 1);
            while write && entry & (WRITABLE | MAY_BECOME_DIRTY) == MAY_BECOME_DIRTY {
                let dirty = entry | WRITABLE;
                match word.compare_exchange(entry, dirty, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => entry = dirty,
                    Err(_) => return walk(controls, ipa, write),
                }
            }
            return Some((
                entry & ADDRESS & !((1 << shift) - 1) | offset,
                entry & WRITABLE != 0,
            ));
        }
        table = entry & ADDRESS;
        index_mask = 0x1ff;
        level += 1;
    }
}
