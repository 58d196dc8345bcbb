//! Errors of a workload: of its run, of its guest, or of a check. Each is one line that names the culprit.

use crate::harness::verify::{BeyondShare, Mismatch, WrongContent};
use crate::harness::violation::GuestViolation;
use alloc::string::String;
use control::RunError;
use control::guest::RAM;
use core::fmt;
use memory::{LogError, MergeError, NotBacked, PrefaultError, SlotError, SlotId, VmId};
use stage2::{Ipa, OutOfFrames, PAGE_SIZE};
use vm::VcpuId;

/// Why a workload failed.
#[derive(Debug)]
pub enum WorkloadError {
    /// A guest couldn't be run, or not to its end.
    Run(RunError),
    /// The dirty log doesn't work as it should.
    Log(LogError),
    /// The guest made no progress, in a step that only some vCPUs have finished.
    StepTimedOut {
        /// For how long, in seconds.
        seconds: u64,
        /// vCPUs that were done.
        arrived: usize,
        /// vCPUs.
        vcpus: usize,
    },
    /// Pre-faulting failed.
    Prefault(PrefaultError),
    /// The guest doesn't keep to the benchmark's rules.
    Guest(GuestViolation),
    /// A vCPU's count of written pages differs from its journal.
    WrongCount {
        /// Which vCPU.
        vcpu: VcpuId,
        /// Its own count.
        counted: u64,
        /// The pages in its journal, or in its task.
        expected: u64,
    },
    /// A vCPU hasn't read exactly the pages that it hasn't written.
    WrongReads {
        /// Which vCPU.
        vcpu: VcpuId,
        /// Its own count of reads.
        counted: u64,
        /// The reads that it had to make.
        expected: u64,
    },
    /// A vCPU's journal is inconsistent.
    Journal {
        /// Which vCPU.
        vcpu: VcpuId,
        /// The error.
        error: BeyondShare,
    },
    /// The harvest differs from the written pages.
    Harvest {
        /// The iteration.
        iteration: u64,
        /// The harvesting call: `get` or `clear`.
        by: &'static str,
        /// The difference.
        mismatch: Mismatch,
    },
    /// Guest memory doesn't hold the written contents.
    Content {
        /// After which iteration.
        iteration: u64,
        /// What is wrong.
        error: WrongContent,
    },
    /// The CPUs have no hardware dirty state.
    NoHardwareDirty {
        /// Their model.
        cpu: &'static str,
    },
    /// No memory is left for the copy of a guest's memory.
    NoCopy(NotBacked),
    /// Guest memory differs from its copy, with the guest stopped and all copied that it has written.
    CopyDiffers {
        /// The address of the first word that differs.
        ipa: Ipa,
        /// The guest's word.
        guest: u64,
        /// The copy's.
        copy: u64,
    },
    /// Blocks that logging has split weren't restored.
    NotRestored {
        /// How many tables are left in their place.
        left: u64,
    },
    /// The number of tables differs from before logging.
    TablesRemain {
        /// Tables before.
        before: u64,
        /// Tables now.
        tables: u64,
    },
    /// A page was written, and no harvest reported it.
    Lost {
        /// The VM.
        vm: VmId,
        /// The slot.
        slot: SlotId,
        /// The page, counted from the start of the slot.
        page: u64,
        /// The slot's log policy.
        policy: String,
        /// The seed of the run's random numbers.
        seed: u64,
    },
    /// A page doesn't hold its writer's value.
    Inconsistent {
        /// The page, counted from the start of the test memory.
        page: u64,
        /// The value found.
        found: u64,
        /// The expected value, unless only the writer knows it.
        expected: Option<u64>,
        /// The seed of the run's random numbers.
        seed: u64,
    },
    /// Memory that the guest isn't told of doesn't hold the value written there.
    WrongWord {
        /// The address.
        ipa: Ipa,
        /// The value found.
        found: u64,
        /// The expected value.
        expected: u64,
    },
    /// An address without memory was accessible, or read-only memory writable.
    Unrefused {
        /// The address.
        ipa: Ipa,
    },
    /// A change of slots succeeded that must be refused.
    UnrefusedSlot {
        /// The expected error.
        expected: SlotError,
    },
    /// The record can't be written as JSON.
    Record(serde_json::Error),
}

impl WorkloadError {
    /// Whether the options are at fault, on this machine or with this guest: nothing has run.
    pub fn is_bad_option(&self) -> bool {
        match self {
            Self::Run(error) => error.is_bad_option(),
            Self::NoHardwareDirty { .. } => true,
            _ => false,
        }
    }

    /// Whether the benchmark ran to its end with a wrong result.
    pub fn is_mismatch(&self) -> bool {
        matches!(
            self,
            Self::WrongCount { .. }
                | Self::WrongReads { .. }
                | Self::Journal { .. }
                | Self::Harvest { .. }
                | Self::Content { .. }
                | Self::CopyDiffers { .. }
                | Self::NotRestored { .. }
                | Self::TablesRemain { .. }
        )
    }
}

impl fmt::Display for WorkloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(error) => error.fmt(f),
            Self::Log(error) => error.fmt(f),
            Self::StepTimedOut {
                seconds,
                arrived,
                vcpus,
            } => write!(
                f,
                "the guest made no progress for {seconds} s (timeout={seconds}): {arrived} of {vcpus} vCPUs are done"
            ),
            Self::Prefault(error) => error.fmt(f),
            Self::Guest(complaint) => complaint.fmt(f),
            Self::WrongCount {
                vcpu,
                counted,
                expected,
            } => {
                write!(
                    f,
                    "{vcpu} says it wrote {counted} pages, but it is {expected}"
                )
            }
            Self::WrongReads {
                vcpu,
                counted,
                expected,
            } => {
                write!(
                    f,
                    "{vcpu} says it read {counted} pages, but it is {expected}"
                )
            }
            Self::Journal { vcpu, error } => write!(f, "{vcpu}: {error}"),
            Self::Harvest {
                iteration,
                by,
                mismatch,
            } => {
                write!(
                    f,
                    "iteration {iteration}: the dirty log ({by}) is wrong: {mismatch}"
                )
            }
            Self::Content { iteration, error } => {
                write!(f, "iteration {iteration}: guest memory is wrong: {error}")
            }
            Self::NoHardwareDirty { cpu } => write!(
                f,
                "tracking=hardware needs CPUs that note writes themselves (FEAT_HAFDBS with dirty state), which {cpu} doesn't"
            ),
            Self::NoCopy(error) => {
                write!(f, "the copy of the guest's memory can't go on: {error}")
            }
            Self::CopyDiffers { ipa, guest, copy } => write!(
                f,
                "page {} of the guest's memory differs from its copy after the last round: {ipa} holds {guest:#x}, and the \
                 copy {copy:#x}",
                (ipa.get() - RAM.get()) / PAGE_SIZE
            ),
            Self::NotRestored { left } => write!(
                f,
                "blocks that logging has split didn't come back: {left} tables are left"
            ),
            Self::TablesRemain { before, tables } => write!(
                f,
                "logging is over, but {tables} tables are in use where {before} were before"
            ),
            Self::Lost {
                vm,
                slot,
                page,
                policy,
                seed,
            } => write!(
                f,
                "{vm}, {slot}: page {page} was written and no harvest named it ({policy}, seed={seed})"
            ),
            Self::Inconsistent {
                page,
                found,
                expected,
                seed,
            } => {
                write!(f, "page {page} of the test memory holds {found:#x}, ")?;
                match expected {
                    Some(expected) => write!(f, "not {expected:#x} (seed={seed})"),
                    None => write!(f, "which nobody wrote last (seed={seed})"),
                }
            }
            Self::WrongWord {
                ipa,
                found,
                expected,
            } => write!(f, "guest address {ipa} holds {found:#x}, not {expected:#x}"),
            Self::Unrefused { ipa } => write!(f, "guest address {ipa} must not be accessible so"),
            Self::UnrefusedSlot { expected } => {
                write!(f, "slots were changed although: {expected}")
            }
            Self::Record(error) => write!(f, "the record can't be written: {error}"),
        }
    }
}

impl core::error::Error for WorkloadError {}

macro_rules! from {
    ($($error:ty => $variant:ident),* $(,)?) => {
        $(impl From<$error> for WorkloadError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        })*
    };
}

from! {
    RunError => Run,
    LogError => Log,
    PrefaultError => Prefault,
    serde_json::Error => Record,
}

macro_rules! from_run {
    ($($error:ty),* $(,)?) => {
        $(impl From<$error> for WorkloadError {
            fn from(error: $error) -> Self {
                Self::Run(error.into())
            }
        })*
    };
}

from_run!(MergeError, NotBacked, OutOfFrames, SlotError);
