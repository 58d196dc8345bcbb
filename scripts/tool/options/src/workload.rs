//! The runs of one boot of the hypervisor: the checks that need no machine, the RAM, and the words of the hypervisor's command
//! line. Values that are the hypervisor's defaults have no words.

use std::fmt::{self, Display};
use std::time::SystemTime;

use records::record::Record;
use records::words::CpuFeature;

use super::backing::{BackingOptions, Case, Compared};
use super::merging::Merging;
use super::shared::{WorkloadOptions, host_cpus};
use super::typed;
use super::usage;
use super::vms::Vm;
use super::words::{
    Backing, Clear, Enable, Granularity, Harvest, Mode, Restore, Split, Tracking, list,
};
use emulator::error::ToolError;
use emulator::size::{Size, mib};

/// The least memory of the hypervisor, the guest's program and the device tree, beside the memory that is written.
const LEAST_OVERHEAD: Size = mib(64);
/// The memory that they get unless the user chooses the machine's RAM.
const USUAL_OVERHEAD: Size = mib(192);
/// The least RAM of a machine, unless the user chooses it.
const LEAST_RAM: Size = mib(512);
/// RAM is a multiple of this, unless the user chooses it.
const MEMORY_STEP: Size = mib(256);
/// The memory of each vCPU, unless the user chooses it.
const USUAL_BYTES: Size = mib(64);
/// The smallest page.
const PAGE: Size = Size(4096);

/// The runs of one boot: each mode with each way to split and to track.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The modes, in the order in which they run.
    pub modes: Vec<Mode>,
    /// When blocks are split, in the order of the runs in each mode.
    pub splits: Vec<Split>,
    /// How writes are noticed, in the order of the runs with each way to split.
    pub trackings: Vec<Tracking>,
    /// vCPUs.
    pub vcpus: u32,
    /// The memory of each.
    pub bytes: Size,
    /// The backing of guest memory.
    pub backing: Backing,
    /// How often it is dirtied and harvested.
    pub iterations: u64,
    /// How many of 100 accesses write.
    pub write_percent: u8,
    /// Whether pages are chosen at random.
    pub random: bool,
    /// Where the choice begins.
    pub seed: Option<u64>,
    /// The granularity of the log.
    pub granularity: Granularity,
    /// The form of the log.
    pub harvest: Harvest,
    /// How many CPUs harvest, the hypervisor's own among them.
    pub harvesters: u32,
    /// The entries of each ring.
    pub ring_entries: Option<u32>,
    /// How the log is enabled.
    pub enable: Enable,
    /// How the log is cleared.
    pub clear: Clear,
    /// When split blocks are restored.
    pub restore: Restore,
    /// How much eager splitting does at a time.
    pub split_chunk: Option<Size>,
    /// The table frames that eager splitting leaves.
    pub split_reserve: Option<Size>,
    /// How many slots the memory is cut into.
    pub slots: u32,
    /// Whether exits are timed.
    pub exit_times: bool,
    /// Whether the guest is a program of the user, or Linux, instead of the benchmark.
    pub program: bool,
    /// The room that its kernel and initrd need before it starts, if it is Linux.
    pub linux: Option<u64>,
    /// The VMs with Linux, if there are several.
    pub vms: Vec<Vm>,
    /// Whether Linux starts again when it reboots; else that ends the run.
    pub restarts: bool,
    /// How many milliseconds Linux runs between two rounds, if its memory is logged and copied while it runs.
    pub logged: Option<u32>,
    /// What else of the CPU the guest has.
    pub cpu_features: Vec<CpuFeature>,
    /// For how many seconds the stress run goes on, if that is to run instead of the benchmark.
    pub stress: Option<u64>,
    /// The workload that changes backing memory, and its lists, if it runs instead of the benchmark.
    pub compared: Option<Compared>,
    /// The memory that the benchmark's guest uses, in percent of its limit.
    pub overcommit: u32,
    /// How equal pages are merged.
    pub merging: Merging,
}

/// One run of a boot: the values that differ between its runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The mode.
    pub mode: Mode,
    /// When blocks are split.
    pub split: Split,
    /// How writes are noticed.
    pub tracking: Tracking,
    /// Its values of a workload that changes backing memory.
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
    /// The runs of `options` and `backing`. Lists of one value for a whole boot give their first value; an empty list stands for
    /// the hypervisor's own choice. On simulated time all CPUs of a machine run at the same time.
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
        let host_cpus = if simulated { u32::MAX } else { host_cpus() };
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
            harvesters: *options.harvesters.first().unwrap_or(&1),
            ring_entries: options.ring_entries,
            enable: *options.enables.first().unwrap_or(&Enable::Protect),
            clear: options.clear,
            restore: options.restore,
            split_chunk: options.split_chunk,
            split_reserve: options.split_reserve,
            slots: options.slots,
            exit_times: options.exit_times,
            program: false,
            linux: None,
            vms: Vec::new(),
            restarts: false,
            logged: None,
            cpu_features: Vec::new(),
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

    /// Its runs, in their order.
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
        if !self.vms.is_empty() {
            let vcpus = self.vms.iter().map(|vm| vm.vcpus);
            return vcpus.fold(self.merging.beside, u32::saturating_add);
        }
        let compared = self.compared.as_ref();
        let busy = compared.map_or(self.vcpus, |compared| {
            self.vcpus * compared.vms() + compared.most_workers()
        });
        // While Linux runs, the hypervisor's own CPU has its console to look after, and others harvest.
        let harvesting = match self.logged {
            Some(_) => self.harvesters,
            None => self.harvesters - 1,
        };
        busy + self.merging.beside + harvesting
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

    /// The RAM that the machine gets: the user's choice if it is enough, else the usual.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming the option that can't be.
    pub fn memory(&self, wanted: Option<Size>) -> Result<Size, ToolError> {
        if !self.vms.is_empty() {
            return self.memory_of_vms(wanted);
        }
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
        // The stress run keeps a copy, and so does who logs Linux. Of two VMs, each has its own memory.
        let vms = self.compared.as_ref().map_or(1, Compared::vms);
        let copies = if self.stress.is_some() || self.logged.is_some() {
            2
        } else {
            u64::from(vms)
        };
        // For a fork, it wants as much room as the VM and the fork may write of both beside each other.
        let forked = self.stress.map_or(0, |_| 3);
        let written = bytes.checked_mul(sharers * (copies + forked));
        let modules = self.linux.unwrap_or(0);
        let usual = written
            .and_then(|written| written.checked_add(modules))
            .and_then(|needed| self.usual_memory(needed));
        let Some(usual) = usual else {
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
        let overhead = Size(LEAST_OVERHEAD.0 + modules);
        if memory.0 < bytes * sharers * copies + overhead.0 {
            return usage(format!(
                "--mem: {sharers} times {} and {overhead} for all else don't fit into {memory}",
                self.bytes
            ));
        }
        Ok(memory)
    }

    /// As [`Self::memory`], of several VMs.
    fn memory_of_vms(&self, wanted: Option<Size>) -> Result<Size, ToolError> {
        let block = self.backing.bytes();
        let mut sizes = self.vms.iter().map(|vm| vm.bytes.0);
        let sum = sizes.try_fold(0u64, |sum, bytes| {
            sum.checked_add(bytes.checked_next_multiple_of(block)?)
        });
        let modules = self.linux.unwrap_or(0);
        let needed = sum.and_then(|sum| sum.checked_add(modules));
        let usual = needed.and_then(|needed| Some((needed, self.usual_memory(needed)?)));
        let Some((needed, usual)) = usual else {
            return usage("--vm: the VMs have more memory than any machine");
        };
        match wanted {
            None => Ok(usual),
            Some(memory) if !memory.0.is_multiple_of(mib(1).0) => {
                usage(format!("--mem: {memory} aren't a multiple of {}", mib(1)))
            }
            Some(memory) if memory.0 < needed.saturating_add(LEAST_OVERHEAD.0) => usage(format!(
                "--mem: the VMs of --vm, their files, and {LEAST_OVERHEAD} for all else don't fit into {memory}"
            )),
            Some(memory) => Ok(memory),
        }
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
    pub fn words(&self, timeout: Option<u64>, append: Option<&str>) -> String {
        let mut words = vec![format!("mode={}", list(&self.modes))];
        if self.vms.is_empty() {
            words.push(format!(
                "vcpus={} bytes={}K",
                self.vcpus,
                self.bytes.0 >> 10
            ));
        }
        words.push(format!("backing={}", self.backing));
        words.extend(timeout.map(|timeout| format!("timeout={timeout}")));
        if self.linux.is_some() {
            words.push("guest=linux".into());
            words.push(match self.logged {
                None => "console=raw".into(),
                Some(interval) => {
                    format!(
                        "dirty_log iterations={} interval={interval}",
                        self.iterations
                    )
                }
            });
            words.extend((!self.restarts).then(|| "on_reset=stop".into()));
            let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let seconds = since_1970.map_or(0, |since| since.as_secs().min(u32::MAX.into()));
            words.extend((!typed::appends(append, "rtc")).then(|| format!("rtc={seconds}")));
        } else if self.program {
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
        }
        if self.compared.is_none() {
            words.extend(
                (self.overcommit != 100).then(|| format!("overcommit={}", self.overcommit)),
            );
        }
        if !self.cpu_features.is_empty() {
            words.push(format!("cpu_features={}", list(&self.cpu_features)));
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
        say("harvesters", self.harvesters.to_string(), &1);
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
