//! What there is to choose: each boot option once, with its values and its meaning. `help` prints this.

use super::value::{self, Word};
use super::{
    Backing, Bug, Change, Clear, Enable, Granularity, GuestKind, Harvest, MergeTarget, Mitigations,
    Mode, Restore, SelfTest, Split, Tracker, Tracking, Workload,
};
use core::fmt;

/// The options that are taken early.
pub(super) const MITIGATIONS: &str = "mitigations";
pub(super) const SELF_TEST: &str = "selftest";
pub(super) const INJECT: &str = "inject";
pub(super) const HELP: &str = "help";

/// A boot option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootOption {
    /// The word before the `=`.
    pub key: &'static str,
    /// What it can be, as errors say it too.
    pub values: &'static str,
    /// What it means, in one line.
    pub meaning: &'static str,
}

impl fmt::Display for BootOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            key,
            values,
            meaning,
        } = self;
        write!(f, "  {key:<17} {meaning} ({values})")
    }
}

const fn option(key: &'static str, values: &'static str, meaning: &'static str) -> BootOption {
    BootOption {
        key,
        values,
        meaning,
    }
}

const fn words<W: Word>(key: &'static str, meaning: &'static str) -> BootOption {
    option(key, W::EXPECTED, meaning)
}

/// All options, in the order in which they are listed.
pub const BOOT_OPTIONS: [BootOption; 36] = [
    words::<GuestKind>(
        "guest",
        "what runs: the benchmark, another use of its guest, or a program of your own",
    ),
    words::<Mode>("mode", "how stage-2 operations exclude each other; a list"),
    words::<Split>(
        "split",
        "what becomes of a block when logging needs smaller pieces; a list",
    ),
    words::<Tracking>("tracking", "how writes are noticed; a list"),
    words::<Granularity>("granularity", "how much is logged as one"),
    words::<Harvest>("harvest", "what the log of writes is read from"),
    option(
        "ring_entries",
        value::RING_SIZES,
        "entries of each vCPU's dirty ring",
    ),
    words::<Enable>("enable", "what enabling the log does"),
    words::<Clear>("clear", "how the log is cleared"),
    words::<Restore>(
        "restore",
        "what is done about blocks that logging has split",
    ),
    option(
        "split_chunk",
        value::SIZES,
        "how much eager splitting splits before others get their turn",
    ),
    option(
        "split_reserve",
        value::SIZES,
        "the table frames that eager splitting leaves to faults",
    ),
    option(
        "slots",
        "a number from 1 on",
        "into how many slots the test memory is cut",
    ),
    option("exit_times", value::ALONE, "measures the longest exit"),
    option(
        "vcpus",
        "a number from 1 on",
        "vCPUs of the guest; one CPU more is needed",
    ),
    option(
        "device",
        value::PATHS,
        "a device that a program is given, by its path in the device tree",
    ),
    option(
        "bytes",
        value::SIZES,
        "memory: the benchmark's for each vCPU, or all of a program's",
    ),
    words::<Backing>(
        "backing",
        "the size of the pieces that guest memory is made of",
    ),
    option(
        "iterations",
        "a number from 1 to 65535",
        "how often memory is dirtied and harvested",
    ),
    option(
        "write_percent",
        "a number from 0 to 100",
        "how many of 100 accesses write",
    ),
    option("random", value::ALONE, "pages are accessed in random order"),
    option("seed", "a number", "where the guest's random numbers start"),
    words::<Workload>(
        "workload",
        "with guest=backing: what changes the memory behind the guest",
    ),
    words::<Tracker>(
        "tracker",
        "which faults an invalidation makes try again; a list",
    ),
    words::<Change>("change", "how pages get other frames; a list"),
    option(
        "workers",
        "numbers from 0 on",
        "CPUs that change the guest's memory beside its vCPUs; a list",
    ),
    option(
        "overcommit",
        "percentages from 100 to 1000",
        "how much memory the guest uses where it has 100; a list",
    ),
    option(
        "merging",
        value::ALONE,
        "a CPU merges equal pages while guests run",
    ),
    words::<MergeTarget>("merge_targets", "the memory whose pages are merged; a list"),
    option(
        "pages_to_scan",
        "a number from 1 to 4294967295",
        "pages that merging looks at between two pauses",
    ),
    option(
        "sleep_millisecs",
        "milliseconds, from 0 to 4294967295",
        "how long merging pauses",
    ),
    option(
        "max_page_sharing",
        "a number from 2 to 4294967295",
        "how many merged pages may share a frame",
    ),
    option(
        "ipa_bits",
        "a number from 32 to 52",
        "bits of a guest's physical addresses",
    ),
    option(
        "seconds",
        "seconds, from 1 to 1000000",
        "how long guest=stress goes on",
    ),
    option(
        "timeout",
        "seconds, from 1 to 1000000",
        "how long a VM may take",
    ),
    option("log", value::LEVELS, "what the hypervisor says of itself"),
];

/// Options that are taken before the others are read, by whoever boots the machine.
pub const EARLY_OPTIONS: [BootOption; 4] = [
    words::<Mitigations>(
        MITIGATIONS,
        "what exits do against speculation: what the CPU needs, by default for guest=program",
    ),
    words::<SelfTest>(
        SELF_TEST,
        "a test of the tables, or a failure on purpose, instead of a guest",
    ),
    words::<Bug>(
        INJECT,
        "a bug for the break-before-make monitor to find, in its debug build",
    ),
    option(HELP, value::ALONE, "lists these options"),
];

/// The names of all options.
pub(super) const KEYS: [&str; BOOT_OPTIONS.len()] = keys(&BOOT_OPTIONS);
/// The names of those that are taken early.
pub(super) const EARLY_KEYS: [&str; EARLY_OPTIONS.len()] = keys(&EARLY_OPTIONS);

const fn keys<const COUNT: usize>(options: &[BootOption; COUNT]) -> [&'static str; COUNT] {
    let mut keys = [""; COUNT];
    let mut index = 0;
    while index < COUNT {
        keys[index] = options[index].key;
        index += 1;
    }
    keys
}
