//! The values that options can have, by the words that bootargs and records have for them.

use super::{MOST_SLOTS, OptionError};
use crate::size::{Size, SizeError, decimal};
use alloc::string::String;
use alloc::vec::Vec;
use log::LevelFilter;
use memory::RING_ENTRIES;
use stage2::Level;

/// What a size can be.
pub(super) const SIZES: &str = SizeError::Malformed.expected();
/// What a device can be.
pub(super) const PATHS: &str = "a path of the device tree, like /pl031@9010000";
/// What can be logged.
pub(super) const LEVELS: &str = "error, warn, info, debug or trace";
/// What an option can be that has no value.
pub(super) const ALONE: &str = "the word alone";
/// How large a ring can be.
pub(super) const RING_SIZES: &str = "a power of two from 64 to 65536";

/// A value that a word stands for.
pub(super) trait Word: Copy + Eq + 'static {
    /// All there are.
    const ALL: &'static [Self];
    /// What an error lists.
    const EXPECTED: &'static str;

    /// The word.
    fn word(self) -> &'static str;
}

macro_rules! words {
    ($(#[$doc:meta])* $type:ident: $expected:literal { $($(#[$about:meta])* $value:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $type {
            $($(#[$about])* $value,)*
        }

        impl $type {
            /// Its word in options and results.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $word,)*
                }
            }
        }

        impl Word for $type {
            const ALL: &'static [Self] = &[$(Self::$value),*];
            const EXPECTED: &'static str = $expected;

            fn word(self) -> &'static str {
                self.name()
            }
        }
    };
}

words! {
    /// How stage-2 operations exclude each other.
    Mode: "parallel, rwlock or mutex" {
        /// One lock for everything.
        Mutex = "mutex",
        /// Faults share the lock.
        RwLock = "rwlock",
        /// No lock.
        Parallel = "parallel",
    }
}

words! {
    /// What guest memory is made of: the size of its pieces, and the largest block that maps it.
    Backing: "4K, 2M or 1G" {
        /// Pages of 4 KiB.
        Page4K = "4K",
        /// Blocks of 2 MiB.
        Block2M = "2M",
        /// Blocks of 1 GiB.
        Block1G = "1G",
    }
}

impl Backing {
    /// The level of table that maps a piece by one entry.
    pub const fn level(self) -> Level {
        match self {
            Self::Page4K => Level::L3,
            Self::Block2M => Level::L2,
            Self::Block1G => Level::L1,
        }
    }

    /// The size of a piece.
    pub const fn bytes(self) -> u64 {
        stage2::Granule::Size4K.span(self.level())
    }
}

words! {
    /// What the guest is.
    GuestKind: "dirty_log, stress, backing or program" {
        /// The dirty-log benchmark's.
        DirtyLog = "dirty_log",
        /// The same image, for the stress run.
        Stress = "stress",
        /// The same image, for the runs in which what backs its memory changes.
        Backing = "backing",
        /// A program that runs until it ends by itself.
        Program = "program",
    }
}

words! {
    /// What becomes of blocks that are larger than what is logged as one.
    Split: "fault, none or eager" {
        /// A write fault splits the block.
        Fault = "fault",
        /// A write fault unmaps the block and maps the one page.
        None = "none",
        /// They are split ahead of the faults.
        Eager = "eager",
    }
}

words! {
    /// How a write is noticed.
    Tracking: "writeprotect or hardware" {
        /// The first write faults.
        WriteProtect = "writeprotect",
        /// The CPU notes it.
        Hardware = "hardware",
    }
}

words! {
    /// How much memory is logged as one.
    Granularity: "4K or 2M" {
        /// A page.
        Page4K = "4K",
        /// A block of 2 MiB, where such map memory.
        Block2M = "2M",
    }
}

words! {
    /// What the log is read from.
    Harvest: "bitmap or ring" {
        /// A bitmap for each slot.
        Bitmap = "bitmap",
        /// A ring for each vCPU, and the bitmap behind it.
        Ring = "ring",
    }
}

words! {
    /// What enabling the log does.
    Enable: "protect, all_set or overlapped" {
        /// All is write-protected.
        Protect = "protect",
        /// All is write-protected, and split if it is to be, while the vCPUs access their memory.
        Overlapped = "overlapped",
        /// All is dirty, and is write-protected when it is first cleared.
        AllSet = "all_set",
    }
}

words! {
    /// How the log is cleared.
    Clear: "manual or with_get" {
        /// Apart from getting it.
        Manual = "manual",
        /// Together with getting it.
        WithGet = "with_get",
    }
}

words! {
    /// What is done about blocks that logging has split, once it is disabled.
    Restore: "at_once, background or never" {
        /// They are put together before the guest goes on.
        AtOnce = "at_once",
        /// They are put together while the guest runs.
        Background = "background",
        /// They stay split.
        Never = "never",
    }
}

words! {
    /// What changes what backs memory.
    Workload: "invalidate, cow, merge, prefault or reclaim" {
        /// CPUs invalidate ranges next to those that vCPUs fault in.
        Invalidate = "invalidate",
        /// A VM is forked, and the fork reads and writes every page.
        Cow = "cow",
        /// Equal pages of two VMs are merged.
        Merge = "merge",
        /// Memory is populated ahead of its first access.
        Prefault = "prefault",
        /// A VM has less memory than it uses.
        Reclaim = "reclaim",
    }
}

words! {
    /// Which faults an invalidation makes try again.
    Tracker: "ranges or sequence" {
        /// Those in its range.
        Ranges = "ranges",
        /// Those in its VM.
        Sequence = "sequence",
    }
}

words! {
    /// How a page that is mapped gets another frame.
    Change: "direct or unmap" {
        /// Its entries are given it.
        Direct = "direct",
        /// It is unmapped, and faults map it again.
        Unmap = "unmap",
    }
}

words! {
    /// Memory of a guest whose equal pages are merged.
    MergeTarget: "test, ram or both" {
        /// The test memory.
        Test = "test",
        /// All else that the guest has, or a program's memory.
        Ram = "ram",
    }
}

words! {
    /// What exits from guests do against speculation.
    Mitigations: "auto, on or off" {
        /// What the CPUs need, where the guest is somebody's program.
        Auto = "auto",
        /// What the CPUs need.
        On = "on",
        /// Nothing.
        Off = "off",
    }
}

words! {
    /// What the hypervisor does to itself instead of running a guest.
    SelfTest: "stage2, panic, undef, stack, null, wx, nx or nested" {
        /// Compares the engine's tables with what the CPU's table walker makes of them.
        Stage2 = "stage2",
        /// Panics.
        Panic = "panic",
        /// Executes an undefined instruction.
        Undefined = "undef",
        /// Overflows its stack.
        Stack = "stack",
        /// Reads page 0.
        Null = "null",
        /// Writes to its instructions.
        WriteText = "wx",
        /// Executes data.
        ExecuteData = "nx",
        /// Fails while it reports a failure.
        Nested = "nested",
    }
}

words! {
    /// A bug that the debug build has on request.
    Bug: "no-flush, no-break, local or no-publish" {
        /// A TLB flush that does nothing.
        NoFlush = "no-flush",
        /// A block stays valid while it is replaced by a table.
        NoBreak = "no-break",
        /// Invalidations reach only the CPU that issues them.
        Local = "local",
        /// Tables are linked without the barrier that makes their contents visible to walkers.
        NoPublish = "no-publish",
    }
}

/// The value that a word stands for. Capitals don't count.
pub(super) fn word<'t, T: Word>(key: &'static str, text: &'t str) -> Result<T, OptionError<'t>> {
    let mut all = T::ALL.iter().copied();
    all.find(|value| value.word().eq_ignore_ascii_case(text))
        .ok_or(OptionError::Malformed {
            key,
            text,
            expected: T::EXPECTED,
        })
}

/// The values that words stand for, which commas part.
pub(super) fn words<'t, T: Word>(
    key: &'static str,
    text: &'t str,
) -> Result<Vec<T>, OptionError<'t>> {
    let mut values = Vec::new();
    for name in text.split(',') {
        let value = word(key, name)?;
        if values.contains(&value) {
            return Err(OptionError::Repeated { key, text: name });
        }
        values.push(value);
    }
    Ok(values)
}

pub(super) fn size<'t>(key: &'static str, text: &'t str) -> Result<Size, OptionError<'t>> {
    Size::parse(text).map_err(|error| OptionError::Malformed {
        key,
        text,
        expected: error.expected(),
    })
}

/// A node's path in a device tree.
pub(super) fn path<'t>(key: &'static str, text: &'t str) -> Result<String, OptionError<'t>> {
    match text.strip_prefix('/') {
        Some(_) => {
            let mut path = String::new();
            path.try_reserve_exact(text.len())
                .map_err(|_| OptionError::NoRoom(key))?;
            path.push_str(text);
            Ok(path)
        }
        None => Err(OptionError::Malformed {
            key,
            text,
            expected: PATHS,
        }),
    }
}

pub(super) fn number<'t>(
    key: &'static str,
    text: &'t str,
    least: u64,
    most: u64,
    expected: &'static str,
) -> Result<u64, OptionError<'t>> {
    let number = decimal(text).filter(|number| (least..=most).contains(number));
    number.ok_or(OptionError::Malformed {
        key,
        text,
        expected,
    })
}

/// How many slots the test memory is cut into.
pub(super) fn slots<'t>(key: &'static str, text: &'t str) -> Result<usize, OptionError<'t>> {
    let slots = number(key, text, 1, u64::MAX, "a number from 1 on")?;
    let fitting = usize::try_from(slots).ok();
    let fitting = fitting.filter(|slots| *slots <= MOST_SLOTS);
    fitting.ok_or(OptionError::SlotsBeyondVm(slots))
}

/// Different numbers, which commas part.
pub(super) fn numbers<'t>(
    key: &'static str,
    text: &'t str,
    least: u64,
    most: u64,
    expected: &'static str,
) -> Result<Vec<u64>, OptionError<'t>> {
    let mut values = Vec::new();
    for part in text.split(',') {
        let value = number(key, part, least, most, expected)?;
        if values.contains(&value) {
            return Err(OptionError::Repeated { key, text: part });
        }
        values.push(value);
    }
    Ok(values)
}

pub(super) fn level<'t>(key: &'static str, text: &'t str) -> Result<LevelFilter, OptionError<'t>> {
    let levels = [
        LevelFilter::Error,
        LevelFilter::Warn,
        LevelFilter::Info,
        LevelFilter::Debug,
        LevelFilter::Trace,
    ];
    let level = levels
        .into_iter()
        .find(|level| level.as_str().eq_ignore_ascii_case(text));
    level.ok_or(OptionError::Malformed {
        key,
        text,
        expected: LEVELS,
    })
}

/// The value of an option that needs one.
pub(super) fn present<'t>(
    key: &'static str,
    text: Option<&'t str>,
) -> Result<&'t str, OptionError<'t>> {
    text.filter(|text| !text.is_empty())
        .ok_or(OptionError::NoValue(key))
}

/// An option without a value.
pub(super) fn alone<'t>(key: &'static str, text: Option<&'t str>) -> Result<bool, OptionError<'t>> {
    match text {
        None => Ok(true),
        Some(text) => Err(OptionError::Malformed {
            key,
            text,
            expected: ALONE,
        }),
    }
}

pub(super) fn ring_entries<'t>(key: &'static str, text: &'t str) -> Result<usize, OptionError<'t>> {
    let entries = decimal(text).and_then(|number| usize::try_from(number).ok());
    entries
        .filter(|entries| entries.is_power_of_two() && RING_ENTRIES.contains(entries))
        .ok_or(OptionError::Malformed {
            key,
            text,
            expected: RING_SIZES,
        })
}
