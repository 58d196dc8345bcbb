//! Errors in the options. Each is one line that names the culprit.

use super::vms::VmFault;
use crate::quote::Quoted;
use core::fmt;
use records::options::MOST_SLOTS;
use records::size::Size;

/// An error in the options.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OptionError<'t> {
    /// No option has this name.
    Unknown(&'t str),
    /// The option was given before.
    Twice(&'static str),
    /// A list names the same thing twice.
    Repeated {
        /// The option.
        key: &'static str,
        /// The repeated word.
        text: &'t str,
    },
    /// The option needs a value.
    NoValue(&'static str),
    /// Only the debug build has the option.
    DebugBuildOnly(&'static str),
    /// There is no memory for the option's value.
    NoRoom(&'static str),
    /// The option's value is malformed.
    Malformed {
        /// The option.
        key: &'static str,
        /// Its value.
        text: &'t str,
        /// The possible values.
        expected: &'static str,
    },
    /// The option doesn't apply to the guest.
    NotForGuest {
        /// The option.
        key: &'static str,
        /// The kind of guest.
        guest: &'static str,
    },
    /// The log can't be harvested from rings.
    NotWithRing {
        /// The option that excludes rings.
        with: &'static str,
        /// Why.
        why: &'static str,
    },
    /// A VM can't have so many slots for test memory.
    SlotsBeyondVm(u64),
    /// There are fewer pieces of memory than slots.
    TooManySlots {
        /// The slots.
        slots: usize,
        /// The pieces.
        pieces: u64,
        /// The size of each.
        piece: &'static str,
    },
    /// A guest of the user's was to run in several modes.
    OneMode(&'static str),
    /// A guest was to run with several limits that has one for all of its runs.
    OneOvercommit(&'static str),
    /// An option of merging, but nothing is merged.
    NotMerging(&'static str),
    /// A background scanner together with a workload that has its own.
    MergingTwice,
    /// Test memory as a target of merging, but there is none.
    NoTestMemory(&'static str),
    /// The memory isn't a whole number of pages.
    NotWholePages(Size),
    /// The memory of all vCPUs exceeds any address space.
    TooMuchMemory {
        /// vCPUs.
        vcpus: usize,
        /// Memory of each.
        bytes: Size,
    },
    /// A VM can't be described so.
    Vm {
        /// Its name, or all that describes it if it has none.
        vm: &'t str,
        /// What is wrong.
        fault: VmFault<'t>,
    },
    /// The memory of several VMs was to be logged.
    LoggedVms,
    /// A guest was to have all of its memory from the start that may not have so much.
    PrefaultLimited,
    /// The flash memory of a guest with firmware isn't logged.
    LoggedFirmware,
    /// The option is a matter of each VM.
    OfEachVm(&'static str),
    /// The memory of all vCPUs exceeds the given address space.
    BeyondIpaSpace {
        /// vCPUs.
        vcpus: usize,
        /// Memory of each.
        bytes: Size,
        /// The address space.
        bits: u32,
    },
}

impl fmt::Display for OptionError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(key) => write!(f, "unknown option {}", Quoted(key)),
            Self::Twice(key) => write!(f, "option '{key}' is given twice"),
            Self::Repeated { key, text } => {
                write!(f, "option '{key}' names {} twice", Quoted(text))
            }
            Self::NoRoom(key) => write!(f, "there is no memory for the value of option '{key}'"),
            Self::DebugBuildOnly(key) => write!(
                f,
                "option '{key}' needs the debug build with the break-before-make checker, as scripts/run --check makes it"
            ),
            Self::NoValue(key) => write!(f, "option '{key}' needs a value: {key}=..."),
            Self::Malformed {
                key,
                text,
                expected,
            } => {
                write!(
                    f,
                    "malformed value {} for option '{key}': expected {expected}",
                    Quoted(text)
                )
            }
            Self::NotForGuest { key, guest } => write!(
                f,
                "option '{key}' contradicts guest={guest}, which has no use for it"
            ),
            Self::NotWithRing { with, why } => {
                write!(f, "{with} contradicts harvest=ring: {why}")
            }
            Self::SlotsBeyondVm(slots) => write!(
                f,
                "slots={slots} exceeds the {MOST_SLOTS} slots that a VM has for test memory"
            ),
            Self::TooManySlots {
                slots,
                pieces,
                piece,
            } => write!(
                f,
                "slots={slots} contradicts the memory, which is {pieces} pieces of {piece}"
            ),
            Self::OneMode(guest) => {
                write!(
                    f,
                    "several modes contradict guest={guest}, which runs once without dirty_log"
                )
            }
            Self::OneOvercommit(guest) => write!(
                f,
                "several values of overcommit contradict guest={guest}, which has one for all of its runs"
            ),
            Self::NotMerging(key) => {
                write!(f, "option '{key}' needs merging: nothing is merged without")
            }
            Self::MergingTwice => f.write_str(
                "option 'merging' contradicts workload=merge, whose workers merge already",
            ),
            Self::NoTestMemory(guest) => write!(
                f,
                "merge_targets=test contradicts guest={guest}, whose memory is all ram"
            ),
            Self::NotWholePages(bytes) => {
                write!(
                    f,
                    "malformed value '{}' for option 'bytes': expected whole pages of 4K",
                    bytes.0
                )
            }
            Self::TooMuchMemory { vcpus, bytes } => {
                write!(
                    f,
                    "vcpus={vcpus} bytes={} is more memory than any machine has",
                    bytes.0
                )
            }
            Self::Vm { vm, fault } => write!(f, "VM {}: {fault}", Quoted(vm)),
            Self::LoggedFirmware => f.write_str(
                "option 'dirty_log' contradicts firmware=: flash memory, which that writes, isn't logged",
            ),
            Self::LoggedVms => {
                f.write_str("option 'dirty_log' contradicts VMs with names: it logs one guest")
            }
            Self::PrefaultLimited => f.write_str(
                "option 'prefault' contradicts overcommit, with which a guest may not have all of its memory",
            ),
            Self::OfEachVm(key) => write!(
                f,
                "option '{key}' contradicts VMs with names, each of which has its own"
            ),
            Self::BeyondIpaSpace { vcpus, bytes, bits } => {
                write!(
                    f,
                    "ipa_bits={bits} contradicts vcpus={vcpus} bytes={}: the memory doesn't fit",
                    bytes.0
                )
            }
        }
    }
}

impl core::error::Error for OptionError<'_> {}
