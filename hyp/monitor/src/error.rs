//! Why a run failed: each error is one line that names the culprit.

use crate::bench::Complaint;
use crate::guest_tree::TreeError;
use crate::machine::DeviceError;
use crate::quote::Quoted;
use crate::verify::{BeyondShare, Mismatch, WrongContent};
use alloc::string::String;
use core::fmt;
use memory::frames::{Unbalanced, VmCounts};
use memory::{LogError, MergeError, NotBacked, PrefaultError, RingError, SlotError, SlotId, VmId};
use records::image::ImageError;
use records::size::Size;
use stage2::{BadLayout, Ipa, OutOfFrames};
use vm::{StopReason, VcpuId, VmError};

/// Why a run failed.
#[derive(Debug)]
pub enum RunError {
    /// The guest's image can't be used.
    Image(ImageError),
    /// There are not enough CPUs.
    TooFewCpus {
        /// The vCPUs that are wanted.
        vcpus: usize,
        /// The CPUs that it takes.
        needed: usize,
        /// The CPUs that there are.
        cpus: usize,
        /// Whether one is to merge.
        merging: bool,
    },
    /// The VM can't be made.
    Vm(VmError),
    /// The guest's address space can't have this size.
    Layout(BadLayout),
    /// There is no frame for the root table.
    Frames(OutOfFrames),
    /// The guest's memory can't be had.
    Slot(SlotError),
    /// The machine hasn't as much memory as the guest is to have.
    TooLittleMemory {
        /// What it is to have.
        wanted: Size,
        /// What there is.
        free: Size,
    },
    /// The guest can't be given the device that it is to have.
    Device {
        /// Its path.
        path: String,
        /// Why.
        error: DeviceError,
    },
    /// The heap is exhausted.
    Heap,
    /// The guest's memory isn't where it should be.
    NotBacked(NotBacked),
    /// The guest's device tree can't be written.
    Tree(TreeError),
    /// The dirty log doesn't work as it should.
    Log(LogError),
    /// The guest ended before it was done.
    Ended(StopReason),
    /// A guest program ended, and not well.
    Program(StopReason),
    /// The guest made no progress any more.
    TimedOut {
        /// For how long, in seconds.
        seconds: u64,
    },
    /// As before, in a step with which only some vCPUs are done.
    StepTimedOut {
        /// For how long, in seconds.
        seconds: u64,
        /// vCPUs that were done.
        arrived: usize,
        /// vCPUs.
        vcpus: usize,
    },
    /// CPUs don't come back from the guest.
    Stuck,
    /// Memory couldn't be populated ahead.
    Prefault(PrefaultError),
    /// The guest doesn't keep to the benchmark's rules.
    Guest(Complaint),
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
    /// Dirty rings can't be had.
    Ring(RingError),
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
    /// Memory can't be merged.
    Merge(MergeError),
    /// The VM was destroyed, and frames of it remain.
    Leak(VmCounts),
    /// The machine's frames don't add up.
    Unbalanced(Unbalanced),
    /// The record can't be written as JSON.
    Record(serde_json::Error),
}

impl RunError {
    /// Whether it is the options that can't be served, by this machine or with this guest: nothing has run.
    pub fn is_bad_option(&self) -> bool {
        matches!(
            self,
            Self::Image(_)
                | Self::TooFewCpus { .. }
                | Self::Layout(_)
                | Self::TooLittleMemory { .. }
                | Self::Device { .. }
                | Self::NoHardwareDirty { .. }
        )
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

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => error.fmt(f),
            Self::TooFewCpus {
                vcpus,
                needed,
                cpus,
                merging,
            } => {
                let (option, merger) = match merging {
                    true => (" merging", ", one to merge"),
                    false => ("", ""),
                };
                write!(
                    f,
                    "vcpus={vcpus}{option} needs {needed} CPUs, one of them for the monitor{merger}, but there are {cpus}"
                )
            }
            Self::Vm(error) => error.fmt(f),
            Self::Layout(error) => error.fmt(f),
            Self::Frames(error) => error.fmt(f),
            Self::Slot(error) => write!(f, "the guest's memory can't be had: {error}"),
            Self::TooLittleMemory { wanted, free } => write!(
                f,
                "the guest's memory can't be had: it takes {wanted}, and {free} are free"
            ),
            Self::Device { path, error } => {
                write!(
                    f,
                    "device={} can't be given to a guest: {error}",
                    Quoted(path)
                )
            }
            Self::Heap => f.write_str("the heap is too small for this much guest memory"),
            Self::NotBacked(error) => error.fmt(f),
            Self::Tree(error) => write!(f, "the guest's device tree can't be written: {error}"),
            Self::Log(error) => error.fmt(f),
            Self::Ended(reason) => write!(f, "the guest ended too early: {reason}"),
            Self::Program(reason) => write!(f, "{reason}"),
            Self::TimedOut { seconds } => write!(
                f,
                "the guest made no progress for {seconds} s and didn't end (timeout={seconds})"
            ),
            Self::StepTimedOut {
                seconds,
                arrived,
                vcpus,
            } => write!(
                f,
                "the guest made no progress for {seconds} s (timeout={seconds}): {arrived} of {vcpus} vCPUs are done"
            ),
            Self::Stuck => f.write_str("CPUs don't come back from the guest"),
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
            Self::Ring(error) => error.fmt(f),
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
            Self::Merge(error) => error.fmt(f),
            Self::Leak(counts) => write!(f, "the VM was destroyed but has frames: {counts}"),
            Self::Unbalanced(error) => error.fmt(f),
            Self::Record(error) => write!(f, "the record can't be written: {error}"),
        }
    }
}

impl core::error::Error for RunError {}

macro_rules! from {
    ($($error:ty => $variant:ident),* $(,)?) => {
        $(impl From<$error> for RunError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        })*
    };
}

from! {
    ImageError => Image,
    VmError => Vm,
    BadLayout => Layout,
    OutOfFrames => Frames,
    SlotError => Slot,
    NotBacked => NotBacked,
    TreeError => Tree,
    LogError => Log,
    RingError => Ring,
    PrefaultError => Prefault,
    MergeError => Merge,
    Unbalanced => Unbalanced,
    serde_json::Error => Record,
}
