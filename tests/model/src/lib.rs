//! A machine for the stage-2 engine that a test can watch: table frames that count and run out, TLBs that hold on to
//! whatever they saw, an epoch that says what was given up.
//!
//! The TLBs cache every translation that a test makes through [`Machine::access`], per CPU, until an invalidation of
//! sufficient scope; so a missing or too narrow one shows as an access through a stale entry.

use std::alloc::{self, Layout};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ptr::{NonNull, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use stage2::sync::{self, full_barrier};
use stage2::{
    Access, Counters, Descriptor, Entry, Epoch, Ipa, IpaRange, Leaf, Level, PAGE_SIZE, Pa,
    Permissions, Request, Resolution, RootShape, Stage2, TABLE_ENTRIES, TableFrame, TableMemory,
    Tlb, Unlinked, Vttbr, Worker,
};

/// A table as the walkers see it: page-aligned.
#[repr(align(4096))]
struct Table {
    _entries: [Entry; TABLE_ENTRIES],
}

/// Table frames on the host's heap.
#[derive(Debug, Default)]
pub struct Frames {
    live: Mutex<HashMap<u64, usize>>,
    /// Allocations that may still succeed; `None` is no limit.
    budget: Mutex<Option<usize>>,
}

impl Frames {
    /// Frames that are allocated now.
    pub fn live(&self) -> usize {
        locked(&self.live).values().sum()
    }

    /// Lets `count` more allocations succeed.
    pub fn limit(&self, count: usize) {
        *locked(&self.budget) = Some(count);
    }

    /// A run of empty tables, aligned to its size in pages.
    fn allocate_run(&self, tables: usize) -> Pa {
        // SAFETY: the layout's size isn't zero.
        let start = unsafe { alloc::alloc(layout(tables)) }.cast::<Table>();
        assert!(!start.is_null());
        for index in 0..tables {
            let table = Table {
                _entries: std::array::from_fn(|_| Entry::new(Descriptor::Invalid)),
            };
            // SAFETY: the allocation holds `tables` tables.
            unsafe { start.add(index).write(table) };
        }
        let address = start.expose_provenance() as u64;
        locked(&self.live).insert(address, tables);
        Pa::new(address)
    }

    fn entries_of(&self, frame: &TableFrame) -> &[Entry; TABLE_ENTRIES] {
        // SAFETY: a frame that somebody owns is live.
        unsafe { self.entries(frame.pa()).cast().as_ref() }
    }

    fn release(&self, frame: &TableFrame) {
        let tables = locked(&self.live).remove(&frame.pa().get());
        assert_eq!(
            tables,
            Some(frame.tables()),
            "{frame:?} was freed twice, or never allocated"
        );
        let start: *mut Table = with_exposed_provenance_mut(frame.pa().get() as usize);
        for index in 0..frame.tables() {
            // SAFETY: `allocate_run` wrote that many tables there; the run was just found to be live, and is no more.
            unsafe { start.add(index).drop_in_place() };
        }
        // SAFETY: as above, with the same layout.
        unsafe { alloc::dealloc(start.cast(), layout(frame.tables())) };
    }
}

fn layout(tables: usize) -> Layout {
    let align = (tables * PAGE_SIZE as usize).next_power_of_two();
    Layout::from_size_align(tables * size_of::<Table>(), align).expect("a small layout")
}

// SAFETY: the tables are live and empty until `release`.
unsafe impl TableMemory for Frames {
    fn allocate(&self) -> Option<TableFrame> {
        if let Some(left) = locked(&self.budget).as_mut() {
            *left = left.checked_sub(1)?;
        }
        Some(TableFrame::new(self.allocate_run(1)))
    }

    fn free(&self, frame: TableFrame) {
        let last = &self.entries_of(&frame)[TABLE_ENTRIES - 1];
        let frozen = last.observe(Level::L3).descriptor() == Descriptor::Frozen;
        assert!(
            !frozen,
            "rule 7: {frame:?} was linked, and must go through the epoch"
        );
        self.release(&frame);
    }

    fn entries(&self, pa: Pa) -> NonNull<Entry> {
        NonNull::new(with_exposed_provenance_mut(pa.get() as usize)).expect("a table's address")
    }
}

/// The epoch: keeps what was retired until a test lets it pass.
#[derive(Debug, Default)]
pub struct Retired(Mutex<Vec<TableFrame>>);

impl Retired {
    /// Frames that wait.
    pub fn pending(&self) -> usize {
        locked(&self.0).iter().map(TableFrame::tables).sum()
    }
}

impl Epoch for Retired {
    fn retire(&self, unlinked: Unlinked) {
        locked(&self.0).push(unlinked.into_frame());
    }
}

/// A cached translation: what a CPU may still use.
type Cached = HashMap<(usize, u64), Leaf>;

/// TLBs of several CPUs, by page.
#[derive(Debug)]
pub struct Tlbs {
    cached: Mutex<Cached>,
    /// What `cached` is to the model checker, which doesn't see into that: written by invalidations, read by accesses.
    contents: sync::AtomicU64,
    /// How many there were. Changes under the lock of `cached`.
    invalidations: AtomicU64,
    log: Mutex<Vec<Invalidation>>,
}

/// An invalidation that the engine asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// One leaf, everywhere.
    Leaf(Ipa, Level),
    /// A range, everywhere; with the tables above or not.
    Range(IpaRange, bool),
    /// A VMID, everywhere.
    Vmid,
    /// Everything.
    All,
    /// One leaf, on one CPU.
    Local(usize, Ipa, Level),
}

impl Default for Tlbs {
    fn default() -> Self {
        Self {
            cached: Mutex::default(),
            contents: sync::AtomicU64::new(0),
            invalidations: AtomicU64::new(0),
            log: Mutex::default(),
        }
    }
}

impl Tlbs {
    /// What was asked for since the last call.
    pub fn take_log(&self) -> Vec<Invalidation> {
        std::mem::take(&mut locked(&self.log))
    }

    fn note(&self, what: Invalidation, gone: impl Fn(usize, Ipa) -> bool) {
        self.contents.fetch_add(1, Ordering::Relaxed);
        full_barrier();
        let mut cached = locked(&self.cached);
        cached.retain(|(cpu, page), _| !gone(*cpu, Ipa::new(*page)));
        self.invalidations.fetch_add(1, Ordering::Relaxed);
        drop(cached);
        locked(&self.log).push(what);
    }
}

/// One CPU's view of the TLBs.
#[derive(Clone, Copy, Debug)]
pub struct CpuTlb<'m> {
    tlbs: &'m Tlbs,
    cpu: usize,
}

impl Tlb for CpuTlb<'_> {
    fn invalidate_leaf(&self, _: Vttbr, ipa: Ipa, level: Level) {
        let first = ipa.align_down(level.span());
        let end = first.offset(level.span());
        self.tlbs.note(Invalidation::Leaf(ipa, level), |_, page| {
            (first..end).contains(&page)
        });
    }

    fn invalidate_range(&self, _: Vttbr, range: IpaRange, tables: bool) {
        self.tlbs
            .note(Invalidation::Range(range.clone(), tables), |_, page| {
                range.contains(&page)
            });
    }

    fn invalidate_vmid(&self, _: Vttbr) {
        self.tlbs.note(Invalidation::Vmid, |_, _| true);
    }

    fn invalidate_all_vmids(&self) {
        self.tlbs.note(Invalidation::All, |_, _| true);
    }

    fn invalidate_local(&self, _: Vttbr, ipa: Ipa, level: Level, _: Option<u64>) {
        let first = ipa.align_down(level.span());
        let end = first.offset(level.span());
        let me = self.cpu;
        self.tlbs
            .note(Invalidation::Local(me, ipa, level), |cpu, page| {
                cpu == me && (first..end).contains(&page)
            });
    }

    fn publish_tables(&self) {}
}

/// A machine with one VM.
pub struct Machine {
    /// Its table frames.
    pub frames: Frames,
    /// Its TLBs.
    pub tlbs: Tlbs,
    /// What waits for an epoch.
    pub retired: Retired,
    /// The VM's translation, until it is destroyed.
    pub stage2: Stage2,
}

/// What backs guest addresses in these tests: an address far above them, so that the two can't be mixed up.
pub const BACKING: u64 = 0x40_0000_0000;

/// The frame behind `ipa`.
pub const fn backing_of(ipa: Ipa) -> Pa {
    Pa::new(BACKING + ipa.get())
}

/// A request as the owner of the memory would make it: blocks of `largest`, writes logged or not.
pub fn request(ipa: Ipa, access: Access, largest: Level, logged: bool) -> Request {
    let permissions = match (logged, access) {
        (true, Access::Read | Access::Execute) => Permissions::LOGGED,
        _ => Permissions::RAM,
    };
    Request {
        ipa,
        va: None,
        access,
        pa: backing_of(ipa.align_down(PAGE_SIZE)),
        largest: if logged { Level::L3 } else { largest },
        permissions,
        split: logged,
    }
}

impl Machine {
    /// With an empty translation of the given shape.
    pub fn new(shape: RootShape) -> Self {
        let frames = Frames::default();
        let root = TableFrame::root(frames.allocate_run(shape.frames()), shape.frames());
        Self {
            stage2: Stage2::new(root, shape),
            frames,
            tlbs: Tlbs::default(),
            retired: Retired::default(),
        }
    }

    /// What CPU `cpu` works with.
    pub fn on<R>(
        &self,
        cpu: usize,
        work: impl FnOnce(&Worker<'_, Frames, CpuTlb<'_>, Retired>) -> R,
    ) -> R {
        let tlb = CpuTlb {
            tlbs: &self.tlbs,
            cpu,
        };
        let counters = Counters::default();
        work(&Worker {
            memory: &self.frames,
            tlb: &tlb,
            epoch: &self.retired,
            counters: &counters,
        })
    }

    /// Serves one fault, as the owner of the memory does. Whether the access can go ahead now.
    pub fn fault(&self, cpu: usize, request: &Request) -> Served {
        self.on(cpu, |worker| match self.stage2.fault(worker, request) {
            Resolution::Vacant(broken) => {
                let leaf = request.leaf(broken.level());
                if broken.make(Descriptor::Leaf(leaf)).is_ok() {
                    Served::Mapped
                } else {
                    Served::Again
                }
            }
            Resolution::Relaxed(level) => Served::Relaxed(level),
            Resolution::Split => Served::Split,
            Resolution::Spurious => Served::Spurious,
            Resolution::Busy => Served::Again,
            Resolution::NotPermitted => Served::NotPermitted,
            Resolution::OutOfFrames => Served::OutOfFrames,
        })
    }

    /// An access by the guest on `cpu`: through the CPU's TLB if it holds the page, else through the tables, faulting until
    /// it succeeds. Returns what the last fault did, if there was one.
    pub fn access(&self, cpu: usize, request: &Request) -> Option<Served> {
        let mut last = None;
        loop {
            if self
                .translate(cpu, request.ipa)
                .is_some_and(|leaf| allowed(leaf, request.access))
            {
                return last;
            }
            match self.fault(cpu, request) {
                stuck @ (Served::NotPermitted | Served::OutOfFrames) => return Some(stuck),
                served => last = Some(served),
            }
        }
    }

    /// What CPU `cpu` translates `ipa` to, filling its TLB.
    pub fn translate(&self, cpu: usize, ipa: Ipa) -> Option<Leaf> {
        let key = (cpu, ipa.align_down(PAGE_SIZE).get());
        self.tlbs.contents.load(Ordering::Relaxed);
        if let Some(leaf) = locked(&self.tlbs.cached).get(&key) {
            return Some(*leaf);
        }
        loop {
            let before = self.tlbs.invalidations.load(Ordering::Relaxed);
            // A walk that begins after an invalidation sees what was written before it.
            full_barrier();
            let (leaf, _) = self.lookup(ipa)?;
            let mut cached = locked(&self.tlbs.cached);
            // An invalidation completes only when the walks that it overtakes have: their result is as if never walked.
            if self.tlbs.invalidations.load(Ordering::Relaxed) == before {
                cached.insert(key, leaf);
                return Some(leaf);
            }
        }
    }

    /// What the tables say about `ipa`.
    pub fn lookup(&self, ipa: Ipa) -> Option<(Leaf, Level)> {
        self.on(0, |worker| self.stage2.lookup(worker, ipa))
    }

    /// Whether any CPU's TLB holds a writable entry for a page of `pages`.
    pub fn stale_writable(&self, pages: &HashSet<u64>) -> bool {
        self.tlbs.contents.load(Ordering::Relaxed);
        locked(&self.tlbs.cached)
            .iter()
            .any(|((_, page), leaf)| pages.contains(page) && leaf.writable())
    }

    /// Lets the epoch pass, with nobody inside.
    pub fn pass_epoch(&self) {
        for frame in std::mem::take(&mut *locked(&self.retired.0)) {
            self.frames.release(&frame);
        }
    }

    /// Destroys the VM and checks that nothing is left of it.
    pub fn destroy(self) {
        let Self {
            frames,
            tlbs,
            retired,
            stage2,
        } = self;
        let counters = Counters::default();
        let tlb = CpuTlb {
            tlbs: &tlbs,
            cpu: 0,
        };
        stage2.destroy(
            &Worker {
                memory: &frames,
                tlb: &tlb,
                epoch: &retired,
                counters: &counters,
            },
            |_, _, _| {},
        );
        assert!(
            locked(&tlbs.cached).is_empty(),
            "a TLB still holds {:?}",
            locked(&tlbs.cached)
        );
        for frame in std::mem::take(&mut *locked(&retired.0)) {
            frames.release(&frame);
        }
        assert_eq!(frames.live(), 0, "table frames leaked");
    }
}

/// How a fault of this machine ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Served {
    /// Mapped where nothing was.
    Mapped,
    /// Made writable at this level.
    Relaxed(Level),
    /// A block was split.
    Split,
    /// Nothing to do.
    Spurious,
    /// To be tried again.
    Again,
    /// Refused.
    NotPermitted,
    /// No frame.
    OutOfFrames,
}

fn allowed(leaf: Leaf, access: Access) -> bool {
    match access {
        Access::Read => true,
        Access::Write => leaf.writable(),
        Access::Execute => leaf.executable(),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("stage2", &self.stage2)
            .finish_non_exhaustive()
    }
}
