//! The machine of a stress run, its guest, and what the guest remembers of what it wrote.
//!
//! vCPUs read and write pages at random through the MMU, each in words of its own, and keep a journal. They stop between
//! two accesses when the harness asks for it.

use std::ptr::with_exposed_provenance;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use memory::{Access, AddressSpace, CpuMemory, Fault, FaultKind, FaultOutcome, MmuLock, SlotId};
use model::{Hardware, Mmu, pause};
use stage2::{Ipa, Level, PAGE_SIZE, Pa};

/// Words of a page that are one vCPU's, or the hypervisor's.
pub const OWN_WORDS: usize = 8;

/// Accesses after which a vCPU lets others have its thread's time.
const ACCESSES_AT_ONCE: u64 = 64;

/// What vCPUs try, waiting included, before the harness goes on.
const TRIES_IN_A_STEP: u64 = 150;

/// Accesses after which a vCPU rests, on average.
const ACCESSES_IN_A_ROW: u64 = 32;

/// Random numbers, by SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed, for a thread of its own.
    pub fn new(seed: u64, thread: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ thread << 32)
    }

    /// The next.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// One below `count`.
    pub fn below(&mut self, count: u64) -> u64 {
        self.next() % count
    }

    /// True once in so many times.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// A slot of the guest.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its name.
    pub id: SlotId,
    /// Where it begins.
    pub start: Ipa,
    /// Its size.
    pub pages: u64,
    /// What backs it.
    pub piece: Level,
    /// How far the pages that are used lie apart: the guest, and whoever checks it, knows of no others.
    pub apart: u64,
}

impl Place {
    /// A page of it.
    pub fn page(&self, number: u64) -> Ipa {
        self.start.offset(number * PAGE_SIZE)
    }

    /// How many pages are used.
    pub fn used(&self) -> u64 {
        self.pages.div_ceil(self.apart)
    }

    /// Where a page is among those that are used; `None` if it isn't.
    pub fn index(&self, page: u64) -> Option<u64> {
        (page < self.pages && page.is_multiple_of(self.apart)).then(|| page / self.apart)
    }
}

/// What all threads of a run share.
#[derive(Debug)]
pub struct Machine<L> {
    /// The VM's memory.
    pub space: AddressSpace<L>,
    /// The TLBs.
    pub mmu: Arc<Mmu>,
    /// The slots.
    pub places: Vec<Place>,
    /// What each vCPU wrote last, and after them the hypervisor: `OWN_WORDS` for each page, slot after slot.
    pub journals: Vec<Vec<AtomicU64>>,
    /// How many vCPUs there are.
    pub vcpus: usize,
    /// How many different values they write.
    values: u64,
    stop: AtomicBool,
    stopped: AtomicUsize,
    end: AtomicBool,
    waits: AtomicU64,
    /// What the harness has done until now.
    steps: AtomicU64,
    /// What vCPUs have tried until now.
    tries: AtomicU64,
}

impl<L: MmuLock> Machine<L> {
    /// Of these parts; no vCPU runs yet. vCPUs will write so many different `values`: of few, pages are often equal.
    pub fn new(
        space: AddressSpace<L>,
        mmu: Arc<Mmu>,
        places: Vec<Place>,
        vcpus: usize,
        values: u64,
    ) -> Self {
        let pages: u64 = places.iter().map(Place::used).sum();
        let journal = || {
            (0..pages as usize * OWN_WORDS)
                .map(|_| AtomicU64::new(0))
                .collect()
        };
        Self {
            space,
            mmu,
            places,
            journals: (0..=vcpus).map(|_| journal()).collect(),
            vcpus,
            values,
            stop: AtomicBool::new(false),
            stopped: AtomicUsize::new(0),
            end: AtomicBool::new(false),
            waits: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            tries: AtomicU64::new(0),
        }
    }

    /// How often a vCPU waited for room in its ring.
    pub fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }

    /// Where the words of one of the pages that are used are in a journal.
    pub fn in_journal(&self, slot: usize, page: u64) -> usize {
        let before: u64 = self.places[..slot].iter().map(Place::used).sum();
        (before + page / self.places[slot].apart) as usize * OWN_WORDS
    }

    /// Stops all vCPUs, between two accesses.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        while self.stopped.load(Ordering::SeqCst) < self.vcpus {
            pause();
            thread::yield_now();
        }
    }

    /// Lets them go on.
    pub fn go_on(&self) {
        self.stop.store(false, Ordering::SeqCst);
        while self.stopped.load(Ordering::SeqCst) > 0 {
            pause();
            thread::yield_now();
        }
    }

    /// Tells the stopped vCPUs that this is the end.
    pub fn end(&self) {
        self.end.store(true, Ordering::SeqCst);
    }

    /// Whether the vCPU is to go on; stops it where it is to stop.
    fn goes_on(&self) -> bool {
        if self.stop.load(Ordering::SeqCst) {
            self.stopped.fetch_add(1, Ordering::SeqCst);
            while self.stop.load(Ordering::SeqCst) && !self.end.load(Ordering::SeqCst) {
                pause();
                thread::yield_now();
            }
            self.stopped.fetch_sub(1, Ordering::SeqCst);
        }
        self.tries.fetch_add(1, Ordering::Relaxed);
        !self.end.load(Ordering::SeqCst)
    }

    /// What a vCPU does until the end.
    pub fn run_vcpu(&self, cpu: &CpuMemory<Hardware>, vcpu: usize, mut random: Random) {
        let (vttbr, _) = self.space.activate(cpu);
        let root = Pa::new(vttbr.bits() & ((1 << 48) - 1) & !0x3f);
        let mut value = 0;
        // Some of the pages are written again and again.
        let hot: Vec<(usize, u64)> = (0..12).map(|_| self.any_page(&mut random)).collect();
        loop {
            if random.one_in(ACCESSES_IN_A_ROW) {
                self.rest(random.below(4));
            }
            let (slot, page) = match random.below(3) {
                0 => self.any_page(&mut random),
                _ => hot[random.below(hot.len() as u64) as usize],
            };
            let word = random.below(OWN_WORDS as u64) as usize;
            let write = !random.one_in(4);
            value += 1;
            if value % ACCESSES_AT_ONCE == 0 {
                thread::yield_now();
            }
            let offset = (vcpu * OWN_WORDS + word) as u64 * 8;
            let ipa = self.places[slot].page(page).offset(offset);
            let note = &self.journals[vcpu][self.in_journal(slot, page) + word];
            let ended = self.access(cpu, vcpu, root, ipa, write, &mut random, |pa| {
                let memory = word_at(pa);
                if write {
                    let value = value % self.values;
                    memory.store(value, Ordering::Relaxed);
                    note.store(value, Ordering::Relaxed);
                } else {
                    let (found, written) =
                        (memory.load(Ordering::Relaxed), note.load(Ordering::Relaxed));
                    assert_eq!(
                        found, written,
                        "vCPU {vcpu} reads page {page} of slot {slot}"
                    );
                }
            });
            if ended {
                return;
            }
            if cpu.needs_upkeep() {
                cpu.upkeep();
            }
        }
    }

    /// A guest that always writes hides what is lost: the next write shows the page again.
    fn rest(&self, steps: u64) {
        let until = self.steps.load(Ordering::Relaxed) + steps;
        while self.steps.load(Ordering::Relaxed) < until && self.goes_on() {
            self.tries.fetch_add(TRIES_IN_A_STEP / 2, Ordering::Relaxed);
            pause();
            thread::yield_now();
        }
    }

    /// The harness is about to do something more: on a busy host, waits until vCPUs have done something too.
    pub fn begin_step(&self) {
        let until = self.tries.load(Ordering::Relaxed) + TRIES_IN_A_STEP;
        self.steps.fetch_add(1, Ordering::Relaxed);
        while self.tries.load(Ordering::Relaxed) < until {
            pause();
            thread::yield_now();
        }
    }

    fn any_page(&self, random: &mut Random) -> (usize, u64) {
        let slot = random.below(self.places.len() as u64) as usize;
        let place = &self.places[slot];
        (slot, random.below(place.used()) * place.apart)
    }

    /// One access, faulting until it goes through. Whether the run has ended before.
    #[allow(clippy::too_many_arguments)]
    fn access(
        &self,
        cpu: &CpuMemory<Hardware>,
        vcpu: usize,
        root: Pa,
        ipa: Ipa,
        write: bool,
        random: &mut Random,
        act: impl Fn(Pa),
    ) -> bool {
        while self.goes_on() {
            let Err(kind) = (self.mmu).access(vcpu, root, ipa, write, random.next(), &act) else {
                return false;
            };
            self.serve(cpu, vcpu, ipa, write, kind);
        }
        true
    }

    fn serve(
        &self,
        cpu: &CpuMemory<Hardware>,
        vcpu: usize,
        ipa: Ipa,
        write: bool,
        kind: FaultKind,
    ) {
        let fault = Fault {
            vcpu,
            ipa: ipa.align_down(PAGE_SIZE),
            va: None,
            access: if write { Access::Write } else { Access::Read },
            kind,
        };
        match self.space.fault(cpu, &fault) {
            FaultOutcome::Resolved | FaultOutcome::RingLow => return,
            FaultOutcome::RingFull => {
                self.waits.fetch_add(1, Ordering::Relaxed);
            }
            FaultOutcome::Retry => {}
            // Tables of blocks that were restored come back from the epoch.
            FaultOutcome::OutOfFrames => cpu.idle(),
            other => panic!("vCPU {vcpu}: a write ({write}) to {ipa} ended as {other:?}"),
        }
        pause();
        thread::yield_now();
    }
}

/// A word of the guest's memory, which lasts as long as the process.
fn word_at(pa: Pa) -> &'static AtomicU64 {
    let word: *const AtomicU64 = with_exposed_provenance(pa.get() as usize);
    // SAFETY: frames of slots are of the arena, which is never given back, and nobody uses them but as such words.
    unsafe { &*word }
}
