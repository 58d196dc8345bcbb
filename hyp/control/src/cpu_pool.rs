//! The pool of CPUs besides CPU 0: each waits for a job and does it. Waiting CPUs, CPU 0 included, compress cold pages while
//! memory is short; a CPU that notices a shortage wakes one of them.
//!
//! CPU 0 posts at most one job at a time to each CPU; different CPUs may have different jobs, for instance those of several
//! VMs. The CPUs that do a job share it, and each drops it before it reports completion. Once all have, CPU 0 alone owns what
//! the job held.

use crate::machine::{Machine, OwnCpu};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use spin::Mutex;
use vm::CpuId;

/// The CPU that posts jobs.
pub const BOOT_CPU: CpuId = CpuId(0);

/// How often a CPU that nobody kicks does housekeeping, in nanoseconds: guests fragment memory without telling anybody, so this
/// bounds how long it stays fragmented.
pub const HOUSEKEEPING_NS: u64 = 100_000_000;

/// A job for CPUs.
pub type Job<M> = dyn Fn(&mut OwnCpu<M>) + Send + Sync;

/// All CPUs' mailboxes.
pub struct CpuPool<M: Machine> {
    mailboxes: Box<[Mailbox<M>]>,
}

#[repr(align(128))]
struct Mailbox<M: Machine> {
    /// From the post of a job until its completion.
    busy: AtomicBool,
    /// Whether the CPU is kept for a guest, also while it has no job. Only CPU 0 uses this.
    reserved: AtomicBool,
    /// Set when the CPU is woken to reclaim memory, cleared when it finds no shortage any more.
    relieves: AtomicBool,
    job: Mutex<Option<Arc<Job<M>>>>,
}

impl<M: Machine> CpuPool<M> {
    /// For a machine of `cpus` CPUs.
    pub fn new(cpus: usize) -> Self {
        let mailbox = |_| Mailbox {
            busy: AtomicBool::new(false),
            reserved: AtomicBool::new(false),
            relieves: AtomicBool::new(false),
            job: Mutex::new(None),
        };
        Self {
            mailboxes: (0..cpus).map(mailbox).collect(),
        }
    }

    /// The first `count` adjacent CPUs besides CPU 0 that have no job and aren't reserved. Called by CPU 0, which alone posts
    /// jobs: they stay idle until it does. Acquire: the effects of their last jobs are visible to the caller.
    pub fn find_idle(&self, count: usize) -> Option<Range<usize>> {
        let mut start = 1;
        for (cpu, mailbox) in self.mailboxes.iter().enumerate().skip(1) {
            if mailbox.is_busy() || mailbox.reserved.load(Ordering::Relaxed) {
                start = cpu + 1;
            } else if cpu + 1 - start == count {
                return Some(start..cpu + 1);
            }
        }
        None
    }

    /// Reserves CPUs that [`Self::find_idle`] has found, or ends that. Called by CPU 0.
    pub(crate) fn reserve(&self, cpus: Range<usize>, reserved: bool) {
        for mailbox in &self.mailboxes[cpus] {
            mailbox.reserved.store(reserved, Ordering::Relaxed);
        }
    }

    /// Posts a job for CPUs that [`Self::find_idle`] has found, and kicks them. Called by CPU 0.
    pub fn post(&self, machine: &M, cpus: Range<usize>, job: Arc<Job<M>>) {
        for cpu in cpus {
            let mailbox = &self.mailboxes[cpu];
            debug_assert!(cpu != BOOT_CPU.0 && !mailbox.is_busy());
            mailbox.busy.store(true, Ordering::Relaxed);
            *mailbox.job.lock() = Some(job.clone());
            machine.kick(CpuId(cpu));
        }
    }

    /// Whether none of these CPUs has a job. Acquire: the effects of their jobs are visible to the caller.
    pub fn are_idle(&self, cpus: Range<usize>) -> bool {
        self.mailboxes[cpus]
            .iter()
            .all(|mailbox| !mailbox.is_busy())
    }

    /// Whether no CPU has a job, as [`Self::are_idle`].
    pub fn is_idle(&self) -> bool {
        self.are_idle(0..self.mailboxes.len())
    }

    /// Wakes a waiting CPU that isn't reclaiming yet, CPU 0 last, as it has other duties. For any CPU at any time. May miss a
    /// CPU that is just going idle; the next CPU to see a shortage retries.
    pub fn wake_one(&self, machine: &M) {
        let cpus = (1..self.mailboxes.len()).chain([BOOT_CPU.0]);
        let idle = cpus.into_iter().find(|cpu| {
            let mailbox = &self.mailboxes[*cpu];
            !mailbox.is_busy()
                && !mailbox.relieves.load(Ordering::Relaxed)
                && !mailbox.relieves.swap(true, Ordering::Relaxed)
        });
        if let Some(cpu) = idle {
            machine.kick(CpuId(cpu));
        }
    }

    /// A step of reclaim, for a waiting CPU. Returns whether there is more to do.
    pub fn relieve(&self, own: &OwnCpu<M>) -> bool {
        let more = own.memory.relieve();
        if let (false, Some(mailbox)) = (more, self.mailboxes.get(own.id.0)) {
            mailbox.relieves.store(false, Ordering::Relaxed);
        }
        more
    }

    /// Does the calling CPU's job if it has one, else reclaims memory during a shortage; then does memory housekeeping. The
    /// caller then waits for a kick, or for [`HOUSEKEEPING_NS`], and calls again.
    pub fn attend(&self, machine: &M, own: &mut OwnCpu<M>) {
        let Some(mailbox) = self.mailboxes.get(own.id.0) else {
            return;
        };
        let job = mailbox.job.lock().take();
        let Some(job) = job else {
            // A job that is posted meanwhile comes with a kick.
            while self.relieve(own) && !mailbox.is_busy() {}
            own.memory.idle();
            while !mailbox.is_busy() && own.memory.gather() {}
            return;
        };
        job(own);
        drop(job);
        // What the job has retired is handed to the epoch before anybody counts on it.
        own.memory.hand_over_retired();
        mailbox.busy.store(false, Ordering::Release);
        machine.kick(BOOT_CPU);
        // Filling the cache and the like keeps nobody waiting.
        own.memory.idle();
    }
}

impl<M: Machine> Mailbox<M> {
    fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }
}

impl<M: Machine> fmt::Debug for CpuPool<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuPool")
            .field("cpus", &self.mailboxes.len())
            .finish_non_exhaustive()
    }
}
