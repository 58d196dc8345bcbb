//! Errors of a workload: of its run, of its guest, or of a check. Each is one line that names the culprit.

use crate::harness::verify::{BeyondShare, Mismatch, WrongContent};
use crate::harness::violation::GuestViolation;
use alloc::string::String;
use control::RunError;
use core::fmt;
use memory::{LogError, MergeError, NotBacked, PrefaultError, SlotError, SlotId, VmId};
use stage2::{Ipa, OutOfFrames};
use vm::VcpuId;

/// Why a workload failed.
#[derive(Debug)]
pub enum WorkloadError {
    /// A guest couldn't be run, or not to its end.
    Run(RunError),
    /// The dirty log doesn't work as it should.
    Log(LogError),
    /// As before, in a step with which only some vCPUs are done.
    StepTimedOut {
        /// For how long, in seconds.
        seconds: u64,
        /// vCPUs that were done.
        arrived: usize,
        /// vCPUs.
        vcpus: usize,
    },
    /// Memory couldn't be populated ahead.
    Prefault(PrefaultError),
    /// The guest doesn't keep to the benchmark's rules.
    Guest(GuestViolation),
    /// A vCPU counts other pages than its journal names.
    WrongCount {
        /// Which vCPU.
        vcpu: VcpuId,
        /// How many pages it says that it has written.
        counted: u64,
        /// How many its journal names, or it has to write.
        expected: u64,
    },
    /// A vCPU hasn't read each page that it hasn't written.
    WrongReads {
        /// Which vCPU.
        vcpu: VcpuId,
        /// How often it says that it has read.
        counted: u64,
        /// How often it had to.
        expected: u64,
    },
    /// A vCPU's journal is wrong in itself.
    Journal {
        /// Which vCPU.
        vcpu: VcpuId,
        /// How.
        error: BeyondShare,
    },
    /// The harvest isn't what was written.
    Harvest {
        /// In which iteration.
        iteration: u64,
        /// What was harvested: by `get` or by `clear`.
        by: &'static str,
        /// The difference.
        mismatch: Mismatch,
    },
    /// Guest memory doesn't hold what was written.
    Content {
        /// After which iteration.
        iteration: u64,
        /// What is wrong.
        error: WrongContent,
    },
    /// The CPUs don't note writes.
    NoHardwareDirty {
        /// Their model.
        cpu: &'static str,
    },
    /// Blocks that logging has split didn't come back.
    NotRestored {
        /// How many tables are still in their place.
        left: u64,
    },
    /// There are other tables than before logging.
    TablesRemain {
        /// Tables before.
        before: u64,
        /// Tables now.
        tables: u64,
    },
    /// A page was written, and no harvest named it.
    Lost {
        /// The VM.
        vm: VmId,
        /// The slot.
        slot: SlotId,
        /// The page, counted from the start of the slot.
        page: u64,
        /// How the slot was logged.
        policy: String,
        /// What the run's random numbers began with.
        seed: u64,
    },
    /// A page doesn't hold what its writer has written.
    Inconsistent {
        /// The page, counted from the start of the test memory.
        page: u64,
        /// What it holds.
        found: u64,
        /// What it should hold, if that isn't the writer's secret.
        expected: Option<u64>,
        /// What the run's random numbers began with.
        seed: u64,
    },
    /// Memory that the guest doesn't know of doesn't hold what was written there.
    WrongWord {
        /// Where.
        ipa: Ipa,
        /// What it holds.
        found: u64,
        /// What it should hold.
        expected: u64,
    },
    /// Memory can be reached where none is, or written where it may only be read.
    Unrefused {
        /// Where.
        ipa: Ipa,
    },
    /// A change of slots was made that must be refused.
    UnrefusedSlot {
        /// Why.
        expected: SlotError,
    },
    /// The record can't be written as JSON.
    Record(serde_json::Error),
}

impl WorkloadError {
    /// Whether it is the options that can't be served, by this machine or with this guest: nothing has run.
    pub fn is_bad_option(&self) -> bool {
        match self {
            Self::Run(error) => error.is_bad_option(),
            Self::NoHardwareDirty { .. } => true,
            _ => false,
        }
    }

    /// Whether the benchmark ran to a result that is wrong.
    pub fn is_mismatch(&self) -> bool {
        matches!(
            self,
            Self::WrongCount { .. }
                | Self::WrongReads { .. }
                | Self::Journal { .. }
                | Self::Harvest { .. }
                | Self::Content { .. }
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
