//! What one boot of the hypervisor runs: the checks that need no machine, the RAM that it needs, and the words of the
//! command line that the hypervisor gets. What is left as the hypervisor has it by default isn't said.

use std::fmt::{self, Display};

use records::record::Record;

use super::backing::{BackingOptions, Case, Compared};
use super::merging::Merging;
use super::shared::WorkloadOptions;
use super::usage;
use super::words::{Backing, Clear, Enable, Granularity, Harvest, Mode, Restore, Split, Tracking};
use emulator::error::ToolError;
use emulator::size::{Size, mib};

/// What the hypervisor, the guest's program and the device tree need at least, beside the memory that is written.
const LEAST_OVERHEAD: Size = mib(64);
/// What they are given where the user doesn't say how much memory the machine has.
const USUAL_OVERHEAD: Size = mib(192);
/// No machine has less RAM where the user doesn't say how much.
const LEAST_RAM: Size = mib(512);
/// RAM comes in multiples of this where the user doesn't say how much.
const MEMORY_STEP: Size = mib(256);
/// The memory of each vCPU where the user doesn't say how much.
const USUAL_BYTES: Size = mib(64);
/// The smallest page.
const PAGE: Size = Size(4096);

/// What one boot runs: each mode with each way to split and to track.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The modes, in the order in which they run.
    pub modes: Vec<Mode>,
    /// What a write fault on a block does, in the order in which it runs in each mode.
    pub splits: Vec<Split>,
    /// What makes a write known, in the order in which it runs with each way to split.
    pub trackings: Vec<Tracking>,
    /// vCPUs.
    pub vcpus: u32,
    /// The memory of each.
    pub bytes: Size,
    /// What memory is made of.
    pub backing: Backing,
    /// How often it is dirtied and harvested.
    pub iterations: u64,
    /// How many of 100 accesses write.
    pub write_percent: u8,
    /// Whether pages are chosen at random.
    pub random: bool,
    /// Where the choice begins.
    pub seed: Option<u64>,
    /// The size of what is logged.
    pub granularity: Granularity,
    /// What the log is read from.
    pub harvest: Harvest,
    /// The entries of each ring.
    pub ring_entries: Option<u32>,
    /// What enabling the log does.
    pub enable: Enable,
    /// How the log is cleared.
    pub clear: Clear,
    /// What disabling the log does.
    pub restore: Restore,
    /// How much eager splitting does at a time.
    pub split_chunk: Option<Size>,
    /// What eager splitting leaves of the table frames.
    pub split_reserve: Option<Size>,
    /// How many slots the memory is cut into.
    pub slots: u32,
    /// Whether exits are timed.
    pub exit_times: bool,
    /// Whether the guest is a program of the user instead of the benchmark.
    pub program: bool,
    /// For how many seconds the stress run goes on, if that is to run instead of the benchmark.
    pub stress: Option<u64>,
    /// What is compared where what backs memory changes, if that is to run instead of the benchmark.
    pub compared: Option<Compared>,
    /// How much memory the benchmark's guest uses where it has 100.
    pub overcommit: u32,
    /// How equal pages are merged.
    pub merging: Merging,
}

/// One run of a boot: what its boot doesn't say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The mode.
    pub mode: Mode,
    /// What a write fault on a block does.
    pub split: Split,
    /// What makes a write known.
    pub tracking: Tracking,
    /// What it has of the lists that are compared where what backs memory changes.
    pub case: Option<Case>,
}

impl Run {
    /// Whether `record` is the result of this run of its boot.
    pub fn is(&self, record: &Record) -> bool {
        if let Some(case) = &self.case {
            return record.mode == self.mode.to_string() && case.is(record);
        }
        record.mode == self.mode.to_string()
            && record.split == self.split.to_string()
            && record.tracking == self.tracking.to_string()
    }
}

impl Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            mode,
            split,
            tracking,
            case,
        } = self;
        match case {
            Some(case) => write!(f, "mode {mode}, {case}"),
            None => write!(f, "mode {mode}, split {split}, tracking {tracking}"),
        }
    }
}

impl Workload {
    /// What `options` and `backing` say of the benchmark or of runs in which what backs memory changes, where each list that
    /// belongs to the boot has one value; of more, the first is taken. An empty list stands for the hypervisor's own choice. On
    /// simulated time all CPUs of a machine run at the same time.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming the option that can't be.
    pub fn of(
        options: &WorkloadOptions,
        backing: &BackingOptions,
        simulated: bool,
    ) -> Result<Self, ToolError> {
        options.check_lists()?;
        let first = |list: &[u32]| list.first().copied().unwrap_or(1);
        let host_cpus = match std::thread::available_parallelism() {
            Ok(count) if !simulated => u32::try_from(count.get()).unwrap_or(u32::MAX),
            _ => u32::MAX,
        };
        let most_vcpus = options.vcpus.iter().max().copied().unwrap_or(1);
        let compared = backing.compared(most_vcpus, host_cpus)?;
        let pages = match compared {
            Some(_) => Backing::Page4K,
            None => Backing::Block2M,
        };
        Ok(Self {
            modes: options.modes.clone(),
            splits: options.splits.clone(),
            trackings: options.trackings.clone(),
            vcpus: first(&options.vcpus),
            bytes: options.bytes.unwrap_or(USUAL_BYTES),
            backing: *options.backings.first().unwrap_or(&pages),
            iterations: options.iterations,
            write_percent: *options.write_percents.first().unwrap_or(&100),
            random: options.random,
            seed: options.seed,
            granularity: *options
                .granularities
                .first()
                .unwrap_or(&Granularity::Page4K),
            harvest: *options.harvests.first().unwrap_or(&Harvest::Bitmap),
            ring_entries: options.ring_entries,
            enable: *options.enables.first().unwrap_or(&Enable::Protect),
            clear: options.clear,
            restore: options.restore,
            split_chunk: options.split_chunk,
            split_reserve: options.split_reserve,
            slots: options.slots,
            exit_times: options.exit_times,
            program: false,
            stress: None,
            compared,
            overcommit: backing.overcommits.first().copied().unwrap_or(100),
            merging: backing.merging.checked(backing.workload, false)?,
        })
    }

    /// The modes that it runs in unless the user chooses.
    pub fn usual_modes(&self) -> Vec<Mode> {
        let compares_modes = !self.program && self.stress.is_none() && self.compared.is_none();
        match compares_modes {
            true => Mode::COMPARED.to_vec(),
            false => vec![Mode::Parallel],
        }
    }

    /// How many runs it makes.
    pub fn runs(&self) -> usize {
        self.each().count()
    }

    /// Its runs, in the order in which they are made.
    pub fn each(&self) -> impl Iterator<Item = Run> {
        let cases: Vec<Option<Case>> = match &self.compared {
            Some(compared) => compared.each().into_iter().map(Some).collect(),
            None => vec![None],
        };
        let mut runs = Vec::new();
        for &mode in &self.modes {
            for &split in &self.splits {
                for &tracking in &self.trackings {
                    runs.extend(cases.iter().map(|&case| Run {
                        mode,
                        split,
                        tracking,
                        case,
                    }));
                }
            }
        }
        runs.into_iter()
    }

    /// The CPUs that it keeps busy at most, beside the hypervisor's own.
    pub fn busy_cpus(&self) -> u32 {
        let compared = self.compared.as_ref();
        let busy = compared.map_or(self.vcpus, |compared| {
            self.vcpus * compared.vms() + compared.most_workers()
        });
        busy + self.merging.beside
    }

    /// The CPUs that it can make use of, beside the hypervisor's own: the stress run has a fork run beside its VM, if it can.
    pub fn useful_cpus(&self) -> u32 {
        let twin = self.stress.map_or(0, |_| self.vcpus);
        self.busy_cpus() + twin
    }

    /// Why it can't be run on any machine, if so: a policy that excludes another.
    pub fn contradiction(&self) -> Option<&'static str> {
        if self.harvest != Harvest::Ring {
            return None;
        }
        if self.trackings.contains(&Tracking::Hardware) {
            Some("--harvest ring and --tracking hardware: without a fault nothing enters the ring")
        } else if self.enable == Enable::AllSet {
            Some("--harvest ring and --enable all_set: a ring has no room for every page")
        } else if self.clear == Clear::WithGet {
            Some("--harvest ring and --clear with_get: a ring is read without a bitmap to clear")
        } else {
            None
        }
    }

    /// The RAM that the machine gets: what is needed, or what the user wants if that is enough.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming the option that can't be.
    pub fn memory(&self, wanted: Option<Size>) -> Result<Size, ToolError> {
        let Size(bytes) = self.bytes;
        if bytes == 0 {
            let who = if self.program { "a guest" } else { "each vCPU" };
            return usage(format!("--bytes 0: {who} needs memory, at least {PAGE}"));
        }
        if !bytes.is_multiple_of(PAGE.0) {
            let bytes = self.bytes;
            return usage(format!("--bytes: {bytes} aren't a multiple of {PAGE}"));
        }
        let sharers = if self.program {
            1
        } else {
            u64::from(self.vcpus)
        };
        // The stress run keeps a copy; where there are two VMs, each has its own.
        let vms = self.compared.as_ref().map_or(1, Compared::vms);
        let copies = if self.stress.is_some() {
            2
        } else {
            u64::from(vms)
        };
        // For a fork, it wants as much room as the VM and the fork may write of both beside each other.
        let forked = self.stress.map_or(0, |_| 3);
        let written = bytes.checked_mul(sharers * (copies + forked));
        let Some(usual) = written.and_then(|written| self.usual_memory(written)) else {
            return usage(format!(
                "--bytes: {} are more than any machine has",
                self.bytes
            ));
        };
        let Some(memory) = wanted else {
            return Ok(usual);
        };
        if !memory.0.is_multiple_of(mib(1).0) {
            return usage(format!("--mem: {memory} aren't a multiple of {}", mib(1)));
        }
        if memory.0 < bytes * sharers * copies + LEAST_OVERHEAD.0 {
            return usage(format!(
                "--mem: {sharers} times {} and {LEAST_OVERHEAD} for all else don't fit into {memory}",
                self.bytes
            ));
        }
        Ok(memory)
    }

    /// RAM that is enough for `written` bytes of guest memory, page tables, and blocks that must be aligned.
    fn usual_memory(&self, written: u64) -> Option<Size> {
        let block = self.backing.bytes();
        let aligned = written.checked_next_multiple_of(block)?;
        let tables = written / 64;
        // The first gigabyte of RAM holds the hypervisor and can't be one block.
        let first = if self.backing == Backing::Block1G {
            block
        } else {
            0
        };
        let sum = aligned
            .checked_add(tables)?
            .checked_add(first + USUAL_OVERHEAD.0)?;
        sum.max(LEAST_RAM.0)
            .checked_next_multiple_of(MEMORY_STEP.0)
            .map(Size)
    }

    /// The hypervisor's options, followed by what the user wants to `append`.
    pub fn words(&self, timeout: u64, append: Option<&str>) -> String {
        let mut words = vec![
            format!("mode={}", list(&self.modes)),
            format!("vcpus={} bytes={}K", self.vcpus, self.bytes.0 >> 10),
            format!("backing={} timeout={timeout}", self.backing),
        ];
        if self.program {
            words.push("guest=program".into());
        } else if let Some(seconds) = self.stress {
            words.push(format!("guest=stress seconds={seconds}"));
        } else if let Some(compared) = &self.compared {
            words.push(format!(
                "{} iterations={}",
                compared.words(),
                self.iterations
            ));
        } else {
            words.push(format!(
                "iterations={} write_percent={}",
                self.iterations, self.write_percent
            ));
            words.extend(
                (self.overcommit != 100).then(|| format!("overcommit={}", self.overcommit)),
            );
        }
        words.extend(match self.merging.beside {
            0 => None,
            1 => Some("merging".into()),
            count => Some(format!("merging={count}")),
        });
        words.extend(self.merging.words.iter().cloned());
        if self.random {
            words.push("random".into());
        }
        words.extend(self.seed.map(|seed| format!("seed={seed}")));
        self.policies(&mut words);
        words.extend(append.map(String::from));
        words.join(" ")
    }

    /// The policies that aren't the hypervisor's own choice.
    fn policies(&self, words: &mut Vec<String>) {
        let mut say = |key: &str, value: String, usual: &dyn Display| {
            if value != usual.to_string() {
                words.push(format!("{key}={value}"));
            }
        };
        say("split", list(&self.splits), &Split::Fault);
        say("tracking", list(&self.trackings), &Tracking::WriteProtect);
        say(
            "granularity",
            self.granularity.to_string(),
            &Granularity::Page4K,
        );
        say("harvest", self.harvest.to_string(), &Harvest::Bitmap);
        say("enable", self.enable.to_string(), &Enable::Protect);
        say("clear", self.clear.to_string(), &Clear::Manual);
        say("restore", self.restore.to_string(), &Restore::AtOnce);
        say("slots", self.slots.to_string(), &1);
        let kilobytes = |size: Size| format!("{}K", size.0 >> 10);
        words.extend(
            self.ring_entries
                .map(|count| format!("ring_entries={count}")),
        );
        words.extend(
            self.split_chunk
                .map(|size| format!("split_chunk={}", kilobytes(size))),
        );
        words.extend(
            self.split_reserve
                .map(|size| format!("split_reserve={}", kilobytes(size))),
        );
        if self.exit_times {
            words.push("exit_times".into());
        }
    }
}

/// Values as the hypervisor takes a list of them.
pub(super) fn list<T: Display>(values: &[T]) -> String {
    let words: Vec<String> = values.iter().map(T::to_string).collect();
    words.join(",")
}
