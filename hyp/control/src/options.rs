//! The hypervisor's options, from its own `bootargs`: words of `key=value`, as on a Linux command line.
//!
//! They come from outside, so an unknown or malformed word is an error that names it. Read once at boot.

mod check;
mod early;
mod error;
mod merging;
mod only;
mod value;
mod vms;

pub use early::EarlyOptions;
pub use error::OptionError;
pub(crate) use merging::merge_policy;
pub use vms::{VmFault, VmOptions};

use alloc::string::String;
use alloc::vec::Vec;
use log::LevelFilter;
use only::BACKING_ONLY;
use records::options::{
    self, EARLY_KEYS, KEYS, MOST_ITERATIONS, MOST_SLOTS, MergeOptions, PREFAULT, RAM, RING_ENTRIES,
    VM,
};
use records::record::Record;
use records::size::Size;
use records::words::{
    Backing, Change, Clear, ConsoleMode, CpuFeature, Enable, Granularity, GuestKind, Harvest,
    MergeTarget, Mode, OnCrash, OnReset, Restore, Split, Tracker, Tracking, Workload,
};

/// Where the guest's test memory begins: the start of the first slot that is logged.
pub const TEST_MEMORY: u64 = 0x8000_0000;
/// The most vCPUs.
const MOST_VCPUS: u64 = vm::MAX_VCPUS as u64;
/// The timeout of a guest that may be idle.
pub const NO_TIMEOUT: u64 = u64::MAX;
/// The memory of an operating system, unless the user says otherwise.
const LINUX_BYTES: Size = Size(512 << 20);
/// Slots reserved for other uses than test memory: RAM, and slots that the stress run adds.
pub const OTHER_SLOTS: usize = memory::MAX_SLOTS - MOST_SLOTS;

// What the options allow, the memory has.
const _: () = assert!(
    *RING_ENTRIES.start() == *memory::RING_ENTRIES.start()
        && *RING_ENTRIES.end() == *memory::RING_ENTRIES.end()
);

/// The user's options.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The kind of guest.
    pub guest: GuestKind,
    /// The modes to run, one after the other.
    pub modes: Vec<Mode>,
    /// In each mode, the ways to handle blocks, one after the other.
    pub splits: Vec<Split>,
    /// With each of these, the ways to notice writes, one after the other.
    pub trackings: Vec<Tracking>,
    /// The unit of logging.
    pub granularity: Granularity,
    /// The source of the harvest.
    pub harvest: Harvest,
    /// The CPUs that harvest the log, split ahead and restore blocks, CPU 0 among them.
    pub harvesters: usize,
    /// The entries of each vCPU's dirty ring.
    pub ring_entries: usize,
    /// The action when the log is enabled.
    pub enable: Enable,
    /// How the log is cleared.
    pub clear: Clear,
    /// How blocks that logging has split are restored.
    pub restore: Restore,
    /// How much eager splitting splits before it lets others run.
    pub split_chunk: Size,
    /// The table frames that eager splitting leaves free.
    pub split_reserve: Size,
    /// The number of slots of the test memory.
    pub slots: usize,
    /// Whether to measure the longest exit.
    pub exit_times: bool,
    /// vCPUs.
    pub vcpus: usize,
    /// The paths of devices for the guest, in the machine's device tree. The hypervisor doesn't check the guest's use of them: a
    /// device with DMA reaches all memory.
    pub devices: Vec<String>,
    /// Memory: the benchmark's per vCPU, or a guest program's.
    pub bytes: Size,
    /// The backing of guest memory.
    pub backing: Backing,
    /// The number of iterations of dirtying and harvesting.
    pub iterations: u64,
    /// Whether the writes of a guest of the user's are logged, and copied round by round.
    pub dirty_log: bool,
    /// How the line of such a guest's output begins with which that starts; none: at once.
    pub log_from: Option<String>,
    /// How long such a guest runs between two rounds, in milliseconds.
    pub interval: u64,
    /// The percentage of accesses that write.
    pub write_percent: u64,
    /// Whether the guest accesses pages in random order instead of sequentially.
    pub random: bool,
    /// The seed of the guest's random numbers.
    pub seed: u64,
    /// The workload, for runs that change backing memory.
    pub workload: Workload,
    /// The tracker modes, which decide what faults an invalidation makes retry, one after the other.
    pub trackers: Vec<Tracker>,
    /// With each of these, the ways to carry a changed backing to the tables, one after the other.
    pub changes: Vec<Change>,
    /// With each of these, the numbers of CPUs that work on the guest's memory beside its vCPUs, one after the other. 0
    /// switches their work off.
    pub workers: Vec<u64>,
    /// With each of these, the guest's memory use in percent of its limit, one after the other.
    pub overcommits: Vec<u64>,
    /// Whether an operating system has all of its memory before it starts.
    pub prefault: bool,
    /// How many CPUs merge equal pages while guests run, in other workloads than merging; 0: nothing is merged.
    pub merging: usize,
    /// The options of merging.
    pub merge: MergeOptions,
    /// The size of the guest's physical address space, or `None` for the default.
    pub ipa_bits: Option<u32>,
    /// The duration of the stress run, in seconds.
    pub seconds: u64,
    /// How long a VM may run without progress, in seconds; [`NO_TIMEOUT`] for ever.
    pub timeout: u64,
    /// What becomes of the output of a guest's UART.
    pub console: ConsoleMode,
    /// The address of the module with the firmware that starts in place of a kernel, if there is one.
    pub firmware: Option<u64>,
    /// The features of the CPU that a guest has besides the usual ones.
    pub cpu_features: Vec<CpuFeature>,
    /// After how many seconds a guest is forked, if it is.
    pub fork: Option<u64>,
    /// What becomes of an operating system that asks for a reset.
    pub on_reset: OnReset,
    /// What becomes of an operating system that has crashed.
    pub on_crash: OnCrash,
    /// When the machine was started, in seconds since 1970.
    pub rtc: u32,
    /// The level of log messages.
    pub log: LevelFilter,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            guest: GuestKind::DirtyLog,
            modes: [Mode::Parallel].into(),
            splits: [Split::Fault].into(),
            trackings: [Tracking::WriteProtect].into(),
            granularity: Granularity::Page4K,
            harvest: Harvest::Bitmap,
            harvesters: 1,
            ring_entries: 4096,
            enable: Enable::Protect,
            clear: Clear::Manual,
            restore: Restore::AtOnce,
            split_chunk: Size(128 << 20),
            split_reserve: Size(4 << 20),
            slots: 1,
            exit_times: false,
            vcpus: 4,
            devices: Vec::new(),
            bytes: Size(64 << 20),
            backing: Backing::Block2M,
            iterations: 3,
            dirty_log: false,
            log_from: None,
            interval: 100,
            write_percent: 100,
            random: false,
            seed: 1,
            workload: Workload::Invalidate,
            trackers: [Tracker::Ranges].into(),
            changes: [Change::Direct].into(),
            workers: [0].into(),
            overcommits: [100].into(),
            prefault: false,
            merging: 0,
            merge: MergeOptions::default(),
            ipa_bits: None,
            seconds: 10,
            timeout: 120,
            console: ConsoleMode::Lines,
            firmware: None,
            cpu_features: Vec::new(),
            fork: None,
            on_reset: OnReset::Restart,
            on_crash: OnCrash::Stop,
            rtc: 0,
            log: LevelFilter::Info,
        }
    }
}

/// The words of `bootargs`: key, and value if there is one.
fn each_word(bootargs: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    options::each_word(bootargs).map(|word| match word.split_once('=') {
        Some((key, text)) => (key, Some(text)),
        None => (word, None),
    })
}

impl Options {
    /// Parses the words of `bootargs`, except [`EarlyOptions`] and [`VmOptions`].
    pub fn parse(bootargs: &str) -> Result<Self, OptionError<'_>> {
        Self::parse_with(bootargs, false)
    }

    /// As [`Self::parse`]. `has_vms` says whether there are VMs that `bootargs` don't name.
    pub fn parse_with(bootargs: &str, has_vms: bool) -> Result<Self, OptionError<'_>> {
        let mut options = Self::default();
        let mut given = [false; KEYS.len()];
        for (key, text) in each_word(bootargs).filter(|(key, _)| !EARLY_KEYS.contains(key)) {
            let index = KEYS
                .iter()
                .position(|known| *known == key)
                .ok_or(OptionError::Unknown(key))?;
            let is_again = core::mem::replace(&mut given[index], true);
            if key == VM {
                continue;
            }
            if is_again {
                return Err(OptionError::Twice(KEYS[index]));
            }
            options.set(KEYS[index], text)?;
        }
        let is_given = |key: &str| {
            KEYS.iter()
                .zip(given)
                .any(|(known, given)| given && *known == key)
        };
        let has_vms = has_vms || is_given(VM);
        if has_vms && !is_given("guest") {
            options.guest = GuestKind::Linux;
        }
        if options.guest == GuestKind::Backing {
            options.fill_in(is_given);
        }
        if options.guest == GuestKind::Linux && !is_given("bytes") {
            options.bytes = LINUX_BYTES;
        }
        if options.guest == GuestKind::Linux && !is_given("timeout") {
            options.timeout = NO_TIMEOUT;
        }
        if !is_given("merge_targets") {
            options.merge.targets = options.usual_targets();
        }
        options.check(is_given, has_vms)?;
        Ok(options)
    }

    /// Fills in defaults of a workload: the comparison of its mechanism on and off.
    fn fill_in(&mut self, is_given: impl Fn(&str) -> bool) {
        if !is_given("backing") {
            self.backing = Backing::Page4K;
        }
        if !is_given("tracker") && self.workload == Workload::Invalidate {
            self.trackers = [Tracker::Ranges, Tracker::Sequence].into();
        }
        if !is_given("change") && self.workload == Workload::Cow {
            self.changes = [Change::Direct, Change::Unmap].into();
        }
        if !is_given("workers") {
            self.workers = match self.workload {
                Workload::Invalidate => [0, 1, 4, 16].into(),
                Workload::Merge => [0, 1].into(),
                Workload::Prefault => [0, 1, 8].into(),
                Workload::Cow | Workload::Reclaim => [0].into(),
            };
        }
        if !is_given("overcommit") && self.workload == Workload::Reclaim {
            self.overcommits = [100, 150].into();
        }
    }

    /// The default targets of merging: all memory of the guest; in the merging workload, the memory that its guests fill.
    fn usual_targets(&self) -> Vec<MergeTarget> {
        match self.guest {
            guest if guest.is_foreign() => [MergeTarget::Ram].into(),
            _ if self.measures_merging() => [MergeTarget::Test].into(),
            _ => MergeOptions::default().targets,
        }
    }

    fn set<'t>(&mut self, key: &'static str, text: Option<&'t str>) -> Result<(), OptionError<'t>> {
        match key {
            "random" => {
                self.random = value::alone(key, text)?;
                return Ok(());
            }
            "exit_times" => {
                self.exit_times = value::alone(key, text)?;
                return Ok(());
            }
            "merging" => {
                self.merging = merging::scanners(key, text)?;
                return Ok(());
            }
            PREFAULT => {
                self.prefault = value::alone(key, text)?;
                return Ok(());
            }
            "dirty_log" => {
                self.dirty_log = value::alone(key, text)?;
                return Ok(());
            }
            _ => {}
        }
        let text = value::present(key, text)?;
        match key {
            "guest" => self.guest = value::word(key, text)?,
            "vcpus" => {
                self.vcpus = value::number(key, text, 1, MOST_VCPUS, "a number from 1 on")? as usize
            }
            "device" => self.devices = value::paths(key, text)?,
            "bytes" => self.bytes = value::size(key, text)?,
            "backing" => self.backing = value::word(key, text)?,
            "iterations" => {
                self.iterations =
                    value::number(key, text, 1, MOST_ITERATIONS, "a number from 1 to 65535")?
            }
            "log_from" => self.log_from = Some(value::line(key, text)?),
            "interval" => {
                let most = u32::MAX.into();
                let expected = "milliseconds, from 0 to 4294967295";
                self.interval = value::number(key, text, 0, most, expected)?
            }
            "write_percent" => {
                self.write_percent = value::number(key, text, 0, 100, "a number from 0 to 100")?
            }
            "seed" => self.seed = value::number(key, text, 0, u64::MAX, "a number")?,
            "ipa_bits" => {
                self.ipa_bits =
                    Some(value::number(key, text, 32, 52, "a number from 32 to 52")? as u32)
            }
            "seconds" => {
                self.seconds = value::number(key, text, 1, 1_000_000, "seconds, from 1 to 1000000")?
            }
            "timeout" => {
                self.timeout = value::number(key, text, 1, 1_000_000, "seconds, from 1 to 1000000")?
            }
            "console" => self.console = value::word(key, text)?,
            "rtc" => {
                let most = u32::MAX.into();
                let expected = "seconds since 1970, up to 4294967295";
                self.rtc = value::number(key, text, 0, most, expected)? as u32
            }
            "firmware" => self.firmware = Some(vms::module(key, text)?),
            "cpu_features" => self.cpu_features = value::words(key, text)?,
            "fork" => {
                let expected = "seconds, from 1 to 1000000";
                self.fork = Some(value::number(key, text, 1, 1_000_000, expected)?)
            }
            "on_reset" => self.on_reset = value::word(key, text)?,
            "on_crash" => self.on_crash = value::word(key, text)?,
            "log" => self.log = value::level(key, text)?,
            _ if BACKING_ONLY.contains(&key) => return self.set_backing(key, text),
            _ if merging::KEYS.contains(&key) => return merging::set(&mut self.merge, key, text),
            _ => return self.set_policy(key, text),
        }
        Ok(())
    }

    /// Sets an option of the log policy.
    fn set_policy<'t>(&mut self, key: &'static str, text: &'t str) -> Result<(), OptionError<'t>> {
        match key {
            "mode" => self.modes = value::words(key, text)?,
            "split" => self.splits = value::words(key, text)?,
            "tracking" => self.trackings = value::words(key, text)?,
            "granularity" => self.granularity = value::word(key, text)?,
            "harvest" => self.harvest = value::word(key, text)?,
            "harvesters" => {
                self.harvesters =
                    value::number(key, text, 1, MOST_VCPUS, "a number from 1 on")? as usize
            }
            "ring_entries" => self.ring_entries = value::ring_entries(key, text)?,
            "enable" => self.enable = value::word(key, text)?,
            "clear" => self.clear = value::word(key, text)?,
            "restore" => self.restore = value::word(key, text)?,
            "split_chunk" => self.split_chunk = value::size(key, text)?,
            "split_reserve" => self.split_reserve = value::size(key, text)?,
            "slots" => self.slots = value::slots(key, text)?,
            _ => return Err(OptionError::Unknown(key)),
        }
        Ok(())
    }

    /// Sets an option of how changes of backing are made.
    fn set_backing<'t>(&mut self, key: &'static str, text: &'t str) -> Result<(), OptionError<'t>> {
        match key {
            "workload" => self.workload = value::word(key, text)?,
            "tracker" => self.trackers = value::words(key, text)?,
            "change" => self.changes = value::words(key, text)?,
            "workers" => {
                self.workers = value::numbers(key, text, 0, MOST_VCPUS, "numbers from 0 on")?
            }
            "overcommit" => {
                self.overcommits =
                    value::numbers(key, text, 100, 1000, "percentages from 100 to 1000")?
            }
            _ => return Err(OptionError::Unknown(key)),
        }
        Ok(())
    }

    fn memory_end(&self) -> Option<u64> {
        match self.guest {
            GuestKind::DirtyLog | GuestKind::Stress | GuestKind::Backing => {
                self.test_bytes()?.checked_add(TEST_MEMORY)
            }
            GuestKind::Program | GuestKind::Linux => self.program_bytes()?.checked_add(RAM),
        }
    }

    /// Whether the writes of a guest of the user's are logged.
    pub fn logs_foreign(&self) -> bool {
        self.guest.is_foreign() && self.dirty_log
    }

    /// The CPUs without a vCPU that harvest the log: all of them, where CPU 0 looks after a guest of the user's meanwhile.
    pub fn harvesting_cpus(&self) -> usize {
        match self.logs_foreign() {
            true => self.harvesters,
            false => self.harvesters - 1,
        }
    }

    /// Whether the guest uses more memory than its limit.
    pub fn is_overcommitted(&self) -> bool {
        self.overcommits.iter().any(|percent| *percent > 100)
    }

    /// Whether CPUs merge equal pages while guests run, in other workloads than merging.
    pub fn merges_beside(&self) -> bool {
        self.merging != 0
    }

    /// Whether merging is what the run measures.
    pub fn measures_merging(&self) -> bool {
        self.guest == GuestKind::Backing && self.workload == Workload::Merge
    }

    /// The record of a run, with the merging options if anything was merged.
    pub fn with_merging(&self, record: Record) -> Record {
        if !self.merges_beside() && !self.measures_merging() {
            return record;
        }
        Record {
            scanners: self.merging as u64,
            merge_targets: self.merge.target_names(),
            pages_to_scan: self.merge.pages_to_scan,
            sleep_millisecs: self.merge.sleep_millisecs,
            max_page_sharing: self.merge.max_page_sharing,
            ..record
        }
    }

    /// Whether split blocks may have to stay split.
    pub fn keeps_blocks_apart(&self) -> bool {
        self.is_overcommitted() || self.merges_beside()
    }

    /// How many VMs run at the same time.
    pub fn vms(&self) -> usize {
        match (self.guest, self.workload) {
            (GuestKind::Backing, Workload::Cow | Workload::Merge) => 2,
            (GuestKind::Linux, _) if self.fork.is_some() => 2,
            _ => 1,
        }
    }

    /// The most CPUs that the run uses, besides the control plane's own.
    pub fn busy_cpus(&self) -> usize {
        let workers = match self.guest {
            GuestKind::Backing => self.workers.iter().max().copied().unwrap_or(0) as usize,
            _ => 0,
        };
        self.vcpus * self.vms() + workers + self.merging + self.harvesting_cpus()
    }

    /// The size of the benchmark's test memory: all vCPUs' shares, rounded up to the backing. `None` beyond 64 bits, which
    /// [`Self::parse`] refuses.
    pub fn test_bytes(&self) -> Option<u64> {
        self.bytes
            .0
            .checked_mul(self.vcpus as u64)?
            .checked_next_multiple_of(self.backing.bytes())
    }

    /// The size of the RAM of a guest program or of Linux, rounded up to the backing. `None` beyond 64 bits, which [`Self::parse`] refuses.
    pub fn program_bytes(&self) -> Option<u64> {
        self.bytes.0.checked_next_multiple_of(self.backing.bytes())
    }
}

#[cfg(test)]
mod tests;
