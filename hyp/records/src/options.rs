//! The boot options: each once, with its values, its limits and its meaning. The option `help` prints them.

use crate::size::SizeError;
use crate::words::{
    Backing, Bug, Change, Clear, ConsoleMode, CpuFeature, Enable, Granularity, GuestKind, Harvest,
    MergeTarget, Mitigations, Mode, OnCrash, OnReset, Restore, SelfTest, Split, Tracker, Tracking,
    Word, Workload,
};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::RangeInclusive;

/// Where a guest's RAM begins.
pub const RAM: u64 = 0x4000_0000;
/// The most iterations: the guest's pattern has 16 bits for them.
pub const MOST_ITERATIONS: u64 = u16::MAX as u64;
/// The most slots of test memory.
pub const MOST_SLOTS: usize = 500;
/// The limits of a ring's entries.
pub const RING_ENTRIES: RangeInclusive<usize> = 64..=65536;

/// The values of a size.
pub const SIZES: &str = SizeError::Malformed.expected();
/// The values of a device.
pub const PATHS: &str = "paths of the device tree, like /pl031@9010000";
/// The values of a line's beginning.
pub const LINES: &str = "2 to 64 characters without a space";
/// The levels of log messages.
pub const LEVELS: &str = "error, warn, info, debug or trace";
/// The form of an option without a value.
pub const ALONE: &str = "the word alone";
/// How many CPUs can merge.
pub const SCANNERS: &str = "the word alone for one, or a number from 1 on";
/// The sizes of a ring.
pub const RING_SIZES: &str = "a power of two from 64 to 65536";

/// The form of an address.
pub const ADDRESSES: &str = "an address like 0x50000000";
/// The form of a VM.
pub const VMS: &str = "name=NAME,kernel=ADDRESS, and if wanted vcpus=N, bytes=SIZE, initrd=ADDRESS, firmware=ADDRESS, device=PATH,PATH, \
                       on_reset=WORD, on_crash=WORD, at the end cmdline='WORDS'";
/// The longest name of a VM.
pub const LONGEST_NAME: usize = 31;

/// The mitigations of speculation at exits: an option that is read early.
pub const MITIGATIONS: &str = "mitigations";
/// A test instead of a guest: an option that is read early.
pub const SELF_TEST: &str = "selftest";
/// A bug on purpose: an option that is read early.
pub const INJECT: &str = "inject";
/// The list of the options: an option that is read early.
pub const HELP: &str = "help";

/// Devices of the machine for a guest: also a part of [`VM`].
pub const DEVICE: &str = "device";
/// All memory of a guest before its start.
pub const PREFAULT: &str = "prefault";
/// A VM among several: the only option that may be given more than once.
pub const VM: &str = "vm";

/// The words of a command line. White space within quotes, `'` or `"`, ends no word.
pub fn each_word(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = line;
    core::iter::from_fn(move || {
        rest = rest.trim_ascii_start();
        let mut quote = None;
        let ends = |byte: u8| {
            match (quote, byte) {
                (None, b'\'' | b'"') => quote = Some(byte),
                (Some(open), byte) if open == byte => quote = None,
                _ => {}
            }
            quote.is_none() && byte.is_ascii_whitespace()
        };
        let end = rest.bytes().position(ends).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        rest = behind;
        (!word.is_empty()).then_some(word)
    })
}

/// A value without the quotes around it.
pub fn unquoted(value: &str) -> &str {
    let within = |quote| value.strip_prefix(quote)?.strip_suffix(quote);
    within('\'').or_else(|| within('"')).unwrap_or(value)
}

/// The first part of a [`VM`]'s word, and what is behind it, unless it is the last one. Parts have commas between, and only the value
/// of `cmdline=`, which comes last, and those of `device=` may have commas too.
pub fn first_part(text: &str) -> (&str, Option<&str>) {
    let key = text.split('=').next();
    let mut commas = text.match_indices(',').map(|(at, _)| at);
    let end = match key {
        Some("cmdline") => None,
        // A path has no `=`, so the next part is where another key is.
        Some(DEVICE) => commas.find(|at| {
            let mut behind = text[at + 1..].split(',');
            behind.next().is_some_and(|next| next.contains('='))
        }),
        _ => commas.next(),
    };
    end.map_or((text, None), |at| (&text[..at], Some(&text[at + 1..])))
}

/// Whether a VM can have this name: a letter, then letters, digits, `-`, `_`, `.` or `@`.
pub fn is_name(name: &str) -> bool {
    let is_other = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    name.len() <= LONGEST_NAME
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(is_other)
}

/// A boot option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootOption {
    /// The word before the `=`.
    pub key: &'static str,
    /// Its values, as errors list them too.
    pub values: &'static str,
    /// Its meaning, in one line.
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
pub const BOOT_OPTIONS: [BootOption; 49] = [
    words::<GuestKind>(
        "guest",
        "what runs: the benchmark, another use of its guest, or your own",
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
        "harvesters",
        "a number from 1 on",
        "CPUs that harvest the log, split ahead and restore blocks: CPU 0, and others without a vCPU",
    ),
    option(
        "ring_entries",
        RING_SIZES,
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
        SIZES,
        "how much eager splitting splits before others get their turn",
    ),
    option(
        "split_reserve",
        SIZES,
        "the table frames that eager splitting leaves to faults",
    ),
    option(
        "slots",
        "a number from 1 on",
        "into how many slots the test memory is cut",
    ),
    option("exit_times", ALONE, "measures the longest exit"),
    option(
        "vcpus",
        "a number from 1 on",
        "vCPUs of the guest, each on a CPU of its own",
    ),
    option(
        DEVICE,
        PATHS,
        "devices of the machine that your guest is given, by their paths",
    ),
    option(
        "bytes",
        SIZES,
        "memory: the benchmark's for each vCPU, or all of your guest's",
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
        "dirty_log",
        ALONE,
        "logs what guest=linux or program writes while it runs, and copies it as a migration does",
    ),
    option(
        "log_from",
        LINES,
        "with dirty_log: the beginning of the guest's line that starts it; else at once",
    ),
    option(
        "interval",
        "milliseconds, from 0 to 4294967295",
        "with dirty_log: how long the guest runs between two rounds",
    ),
    option(
        "write_percent",
        "a number from 0 to 100",
        "how many of 100 accesses write",
    ),
    option("random", ALONE, "pages are accessed in random order"),
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
        SCANNERS,
        "the number of CPUs that merge equal pages while guests run",
    ),
    words::<MergeTarget>("merge_targets", "the memory whose pages are merged; a list"),
    option(
        "pages_to_scan",
        "a number from 1 to 4294967295",
        "pages that each CPU that merges looks at between two pauses",
    ),
    option(
        "sleep_millisecs",
        "milliseconds, from 0 to 4294967295",
        "how long it pauses",
    ),
    option(
        "max_page_sharing",
        "a number from 2 to 4294967295",
        "how many merged pages may share a frame",
    ),
    option(
        PREFAULT,
        ALONE,
        "gives guest=linux all of its memory before it starts, not at first touch",
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
        "how long a VM may go on without progress; no limit with guest=linux",
    ),
    words::<ConsoleMode>(
        "console",
        "how guest=linux shows its output; raw: byte by byte, and it gets your input",
    ),
    option(
        "firmware",
        ADDRESSES,
        "the module that starts in flash memory, in place of guest=linux's kernel, as U-Boot does",
    ),
    words::<CpuFeature>(
        "cpu_features",
        "what else of the CPU your guest sees and has; a list",
    ),
    option(
        "fork",
        "seconds, from 1 to 1000000",
        "forks the one guest after so long; both go on",
    ),
    words::<OnReset>(
        "on_reset",
        "what becomes of guest=linux when it asks for a reset, as after a panic",
    ),
    words::<OnCrash>(
        "on_crash",
        "what becomes of guest=linux when it can't go on",
    ),
    option(
        VM,
        VMS,
        "one of several VMs with Linux, once for each; its files are the modules at these addresses",
    ),
    option(
        "rtc",
        "seconds since 1970, up to 4294967295",
        "when the machine was started, for the clock of guest=linux",
    ),
    option("log", LEVELS, "what the hypervisor says of itself"),
];

/// The options that the firmware reads while it boots, before the others.
pub const EARLY_OPTIONS: [BootOption; 4] = [
    words::<Mitigations>(
        MITIGATIONS,
        "what exits do against speculation: what the CPU needs, by default for guest=program and linux",
    ),
    words::<SelfTest>(
        SELF_TEST,
        "a test of the tables, or a failure on purpose, instead of a guest",
    ),
    words::<Bug>(
        INJECT,
        "a bug for the break-before-make checker to find, in its debug build",
    ),
    option(HELP, ALONE, "lists these options"),
];

/// The names of all options.
pub const KEYS: [&str; BOOT_OPTIONS.len()] = keys(&BOOT_OPTIONS);
/// The names of those that are read early.
pub const EARLY_KEYS: [&str; EARLY_OPTIONS.len()] = keys(&EARLY_OPTIONS);

const fn keys<const COUNT: usize>(options: &[BootOption; COUNT]) -> [&'static str; COUNT] {
    let mut keys = [""; COUNT];
    let mut index = 0;
    while index < COUNT {
        keys[index] = options[index].key;
        index += 1;
    }
    keys
}

/// How equal pages are merged. The names are those of Linux KSM, where that has one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MergeOptions {
    /// The memory whose pages are merged.
    pub targets: Vec<MergeTarget>,
    /// The number of pages that each merging CPU visits between two pauses.
    pub pages_to_scan: u64,
    /// The length of a pause in milliseconds; 0 for none.
    pub sleep_millisecs: u64,
    /// The most pages that may share a frame.
    pub max_page_sharing: u64,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self {
            targets: [MergeTarget::Test, MergeTarget::Ram].into(),
            pages_to_scan: 100,
            sleep_millisecs: 0,
            max_page_sharing: 256,
        }
    }
}

impl MergeOptions {
    /// The memory whose pages are merged, in words.
    pub fn target_names(&self) -> String {
        let names: Vec<&str> = self.targets.iter().map(|target| target.name()).collect();
        names.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<&str> {
        each_word(line).collect()
    }

    #[test]
    fn a_vm_has_parts_between_commas() {
        let parts = |text: &'static str| {
            let mut rest = Some(text);
            let next = core::iter::from_fn(move || {
                let (part, behind) = first_part(rest?);
                rest = behind;
                Some(part)
            });
            next.collect::<Vec<_>>()
        };
        assert_eq!(parts("a=1,b,c="), ["a=1", "b", "c="]);
        assert_eq!(parts("a=1,cmdline=x,b=2"), ["a=1", "cmdline=x,b=2"]);
        assert_eq!(parts("device=/m,r@1,/s,a=1"), ["device=/m,r@1,/s", "a=1"]);
        assert_eq!(parts("device=/a,b"), ["device=/a,b"]);
        assert_eq!(parts("devices=/a,b"), ["devices=/a", "b"]);
        assert_eq!(parts("device"), ["device"]);
        assert_eq!(parts(","), ["", ""]);
    }

    #[test]
    fn quotes_keep_a_word_together() {
        assert_eq!(words(" a=1\tb  c=2\n"), ["a=1", "b", "c=2"]);
        assert_eq!(
            words("vm=name=a,cmdline='x y=\"1 2\"' b"),
            ["vm=name=a,cmdline='x y=\"1 2\"'", "b"]
        );
        assert_eq!(words("a='b c"), ["a='b c"]);
        assert_eq!(words("''"), ["''"]);
        assert_eq!(words(" \n "), [""; 0]);
        assert_eq!(unquoted("'a \"b\"'"), "a \"b\"");
        assert_eq!(unquoted("\"a\""), "a");
        assert_eq!(unquoted("'"), "'");
        assert_eq!(unquoted("'a"), "'a");
    }

    #[test]
    fn a_name_can_be_a_files_and_stands_out_in_a_line() {
        assert!(is_name("a") && is_name("domU1") && is_name("vm-1_x.y@2"));
        let longest = "x".repeat(LONGEST_NAME);
        assert!(is_name(&longest) && !is_name(&(longest + "x")));
        for name in ["", "1a", ".a", "a b", "a/b", "a]", "a,b", "ä"] {
            assert!(!is_name(name), "{name}");
        }
    }
}
