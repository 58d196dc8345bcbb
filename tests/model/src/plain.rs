//! A machine whose TLBs cache every translation that a test makes through [`Machine::access`], per CPU, until an invalidation
//! of sufficient scope; so a missing or too narrow one shows as an access through a stale entry.
//!
//! It is small enough for loom, which explores its every interleaving. What TLBs may do beyond that is
//! [`System`](crate::System)'s.

use crate::frames::{Frames, Retired};
use crate::{Served, locked, serve};
use stage2::sync::{self, full_barrier};
use stage2::{
    Counters, Ipa, IpaRange, Layout, Leaf, Level, PAGE_SIZE, Regime, Request, Stage2, Tlb, Worker,
};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A cached translation: what a CPU may still use.
type Cached = HashMap<(usize, u64), Leaf>;

/// TLBs of several CPUs, by page.
#[derive(Debug)]
pub struct Tlbs {
    layout: Layout,
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
    Leaf(Ipa, Option<Level>),
    /// A range, everywhere; with the tables above or not.
    Range(IpaRange, bool),
    /// A VMID, everywhere.
    Vmid,
    /// Everything.
    All,
    /// One leaf, on one CPU.
    Local(usize, Ipa, Option<Level>),
}

impl Tlbs {
    /// Empty, for one layout.
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            cached: Mutex::default(),
            contents: sync::AtomicU64::new(0),
            invalidations: AtomicU64::new(0),
            log: Mutex::default(),
        }
    }

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
    fn invalidate_leaf(&self, _: Regime, ipa: Ipa, level: Option<Level>) {
        let span = self.tlbs.layout.span(level.unwrap_or(Level::L2));
        let first = ipa.align_down(span);
        let end = first.offset(span);
        self.tlbs.note(Invalidation::Leaf(ipa, level), |_, page| {
            (first..end).contains(&page)
        });
    }

    fn invalidate_range(&self, _: Regime, range: IpaRange, tables: bool) {
        self.tlbs
            .note(Invalidation::Range(range.clone(), tables), |_, page| {
                range.contains(&page)
            });
    }

    fn invalidate_vmid(&self, _: Regime) {
        self.tlbs.note(Invalidation::Vmid, |_, _| true);
    }

    fn invalidate_all_vmids(&self) {
        self.tlbs.note(Invalidation::All, |_, _| true);
    }

    fn invalidate_local(&self, _: Regime, ipa: Ipa, level: Option<Level>, _: Option<u64>) {
        let span = self.tlbs.layout.span(level.unwrap_or(Level::L2));
        let first = ipa.align_down(span);
        let end = first.offset(span);
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

impl Machine {
    /// With an empty translation of the given layout.
    pub fn new(layout: Layout) -> Self {
        let frames = Frames::new(layout);
        let root = frames.allocate_run(layout.root_tables());
        Self {
            stage2: Stage2::new(root, layout),
            frames,
            tlbs: Tlbs::new(layout),
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
        self.on(cpu, |worker| {
            serve(&self.stage2, request, self.stage2.fault(worker, request))
        })
    }

    /// An access by the guest on `cpu`: through the CPU's TLB if it holds the page, else through the tables, faulting until
    /// it succeeds. Returns what the last fault did, if there was one.
    pub fn access(&self, cpu: usize, request: &Request) -> Option<Served> {
        let mut last = None;
        loop {
            if self
                .translate(cpu, request.ipa)
                .is_some_and(|leaf| request.access.allowed_by(leaf))
            {
                return last;
            }
            match self.fault(cpu, request) {
                stuck @ (Served::NotPermitted | Served::OutOfFrames | Served::NotInSpace) => {
                    return Some(stuck);
                }
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
        for frame in self.retired.take() {
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
        let worker = Worker {
            memory: &frames,
            tlb: &tlb,
            epoch: &retired,
            counters: &counters,
        };
        stage2.destroy(&worker).finish(&worker, |_, _, _| {});
        assert!(
            locked(&tlbs.cached).is_empty(),
            "a TLB still holds {:?}",
            locked(&tlbs.cached)
        );
        for frame in retired.take() {
            frames.release(&frame);
        }
        assert_eq!(frames.live(), 0, "table frames leaked");
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("stage2", &self.stage2)
            .finish_non_exhaustive()
    }
}
