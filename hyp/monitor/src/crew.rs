//! The CPUs beside CPU 0: each waits for a job and does it.
//!
//! CPU 0 posts at most one job at a time for each. A job is shared by the CPUs that do it, and each lets go of it before it
//! says that it is done: when all are, what the job held belongs to CPU 0 alone again.

use crate::machine::{Machine, OwnCpu};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use spin::Mutex;
use vm::CpuId;

/// The CPU that posts jobs.
pub const BOOT_CPU: CpuId = CpuId(0);

/// What CPUs can be given to do.
pub type Job<M> = dyn Fn(&mut OwnCpu<M>) + Send + Sync;

/// All CPUs' mailboxes.
pub struct Crew<M: Machine> {
    mailboxes: Box<[Mailbox<M>]>,
}

#[repr(align(128))]
struct Mailbox<M: Machine> {
    /// From the post of a job until it is done.
    busy: AtomicBool,
    job: Mutex<Option<Arc<Job<M>>>>,
}

impl<M: Machine> Crew<M> {
    /// For a machine of `cpus` CPUs.
    pub fn new(cpus: usize) -> Self {
        let mailbox = |_| Mailbox {
            busy: AtomicBool::new(false),
            job: Mutex::new(None),
        };
        Self {
            mailboxes: (0..cpus).map(mailbox).collect(),
        }
    }

    /// Posts a job for CPUs 1 to `count` and kicks them. They are idle, and there are as many; posts nothing otherwise,
    /// and returns false. Called by CPU 0.
    pub fn post(&self, machine: &M, count: usize, job: Arc<Job<M>>) -> bool {
        let Some(mailboxes) = self.mailboxes.get(1..=count) else {
            return false;
        };
        if mailboxes
            .iter()
            .any(|mailbox| mailbox.busy.load(Ordering::Acquire))
        {
            return false;
        }
        for (index, mailbox) in mailboxes.iter().enumerate() {
            mailbox.busy.store(true, Ordering::Relaxed);
            *mailbox.job.lock() = Some(job.clone());
            machine.kick(CpuId(index + 1));
        }
        true
    }

    /// Whether no CPU has a job. Acquire: what the jobs did is visible to the caller.
    pub fn is_idle(&self) -> bool {
        self.mailboxes
            .iter()
            .all(|mailbox| !mailbox.busy.load(Ordering::Acquire))
    }

    /// Does the calling CPU's job if it has one, and the housekeeping of its memory. Then it is to wait for a kick, and to
    /// call again.
    pub fn attend(&self, machine: &M, own: &mut OwnCpu<M>) {
        let Some(mailbox) = self.mailboxes.get(own.id.0) else {
            return;
        };
        let job = mailbox.job.lock().take();
        let Some(job) = job else {
            own.memory.idle();
            return;
        };
        job(own);
        drop(job);
        // What the job has retired is handed to the epoch before anybody counts on it.
        own.memory.idle();
        mailbox.busy.store(false, Ordering::Release);
        machine.kick(BOOT_CPU);
    }
}

impl<M: Machine> fmt::Debug for Crew<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew")
            .field("cpus", &self.mailboxes.len())
            .finish_non_exhaustive()
    }
}
