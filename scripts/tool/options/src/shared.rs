//! The options that `scripts/run` and `scripts/bench` have in common. What `scripts/bench` takes as a list of values to
//! compare is a list here; `scripts/run`, which boots once, takes one of them ([`one`]).

use std::ffi::OsString;

use clap::{Arg, ArgAction, Args};
use records::options::{MOST_ITERATIONS, MOST_SLOTS};

use super::words::{Backing, Clear, Enable, Granularity, Harvest, Mode, Restore, Split, Tracking};
use emulator::simclock::Costs;
use emulator::size::{self, Size};

/// The CPU model that is emulated unless the user names another one.
const USUAL_CPU: &str = "neoverse-n1";

/// Makes an option that takes a list take one value.
pub fn one(default: &'static str) -> impl Fn(Arg) -> Arg {
    move |option| {
        let single = option.action(ArgAction::Set).value_delimiter(None);
        single.default_value(default)
    }
}

/// How many CPUs this host has; as many as one likes if it doesn't tell.
pub fn host_cpus() -> u32 {
    let count = std::thread::available_parallelism();
    count.map_or(u32::MAX, |count| {
        u32::try_from(count.get()).unwrap_or(u32::MAX)
    })
}

/// How many vCPUs a run has unless the user says. With more of them than the host has CPUs, a vCPU that holds the lock of the
/// compared modes is often preempted, and the others wait for the host's scheduler.
pub fn usual_vcpus(host_cpus: u32) -> u32 {
    host_cpus.clamp(1, 4)
}

/// The measured workload.
#[derive(Args, Clone, Debug)]
pub struct WorkloadOptions {
    /// How many vCPUs access memory at the same time, each on a CPU of its own.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=127))]
    pub vcpus: Vec<u32>,

    /// The memory of each vCPU: a multiple of 4K.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub bytes: Option<Size>,

    /// How often the memory is dirtied and its log harvested.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=MOST_ITERATIONS))]
    pub iterations: u64,

    /// The size of the pages that guest memory is made of.
    #[arg(
        long = "backing",
        id = "backing",
        value_name = "SIZE",
        value_enum,
        value_delimiter = ',',
        ignore_case = true
    )]
    pub backings: Vec<Backing>,

    /// How stage-2 operations exclude each other: not at all, like KVM since 6.2 (rwlock), like KVM before (mutex). A list
    /// is compared. [default: mutex, rwlock, parallel]
    #[arg(
        long = "mode",
        id = "mode",
        value_name = "MODE",
        value_enum,
        value_delimiter = ','
    )]
    pub modes: Vec<Mode>,

    /// The effect of a write fault on a logged block; with `eager`, blocks are split before. A list is compared.
    #[arg(
        long = "split",
        id = "split",
        value_name = "POLICY",
        value_enum,
        value_delimiter = ',',
        default_value = "fault"
    )]
    pub splits: Vec<Split>,

    /// How writes are noticed; `hardware` needs a CPU with FEAT_HAFDBS. A list is compared.
    #[arg(
        long = "tracking",
        id = "tracking",
        value_name = "KIND",
        value_enum,
        value_delimiter = ',',
        default_value = "writeprotect"
    )]
    pub trackings: Vec<Tracking>,

    /// The granularity of the log. At 2M no block is split, and a whole block is dirty.
    #[arg(
        long = "granularity",
        id = "granularity",
        value_name = "SIZE",
        value_enum,
        value_delimiter = ',',
        ignore_case = true
    )]
    pub granularities: Vec<Granularity>,

    /// The form of the log.
    #[arg(
        long = "harvest",
        id = "harvest",
        value_name = "KIND",
        value_enum,
        value_delimiter = ','
    )]
    pub harvests: Vec<Harvest>,

    /// How many CPUs together harvest the bitmap, split ahead and restore blocks: the hypervisor's own, and others without a
    /// vCPU. Only for the benchmark.
    #[arg(long = "harvesters", id = "harvesters", value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=127))]
    pub harvesters: Vec<u32>,

    /// How many entries each vCPU's dirty ring has: a power of two. [default: the hypervisor's, 4096]
    #[arg(long, value_name = "N", value_parser = ring_entries)]
    pub ring_entries: Option<u32>,

    /// How the log is enabled.
    #[arg(
        long = "enable",
        id = "enable",
        value_name = "KIND",
        value_enum,
        value_delimiter = ','
    )]
    pub enables: Vec<Enable>,

    /// How the log is cleared.
    #[arg(long, value_name = "KIND", value_enum, default_value_t = Clear::Manual)]
    pub clear: Clear,

    /// When blocks that logging has split are restored.
    #[arg(long, value_name = "KIND", value_enum, default_value_t = Restore::AtOnce)]
    pub restore: Restore,

    /// How much eager splitting does before it lets others through. [default: the hypervisor's, 128M]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub split_chunk: Option<Size>,

    /// The table frames that eager splitting leaves alone. [default: the hypervisor's, 4M]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub split_reserve: Option<Size>,

    /// Into how many slots the memory is cut.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=MOST_SLOTS as i64),
        help = format!("Into how many slots the memory is cut, at most {MOST_SLOTS}")
    )]
    pub slots: u32,

    /// Measure the longest exit of each vCPU, which costs each fault about 50 instructions.
    #[arg(long)]
    pub exit_times: bool,

    /// Which share of the accesses are writes; the others are reads.
    #[arg(
        long = "write-percent",
        id = "write_percent",
        value_name = "PERCENT",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u8).range(0..=100)
    )]
    pub write_percents: Vec<u8>,

    /// Choose the pages at random instead of one after the other.
    #[arg(long)]
    pub random: bool,

    /// Where the choice of pages and of writes begins, to repeat a run or to vary it.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// The machine that it is measured on, and how it is watched.
#[derive(Args, Clone, Debug)]
pub struct MachineOptions {
    /// The CPU model to emulate: cortex-a53, cortex-a72, neoverse-n1, neoverse-n2, max, ….
    #[arg(long, value_name = "MODEL", default_value = USUAL_CPU)]
    pub cpu: String,

    /// The version of the interrupt controller. 2 serves at most 8 CPUs.
    #[arg(long, value_name = "VERSION", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=3))]
    pub gic: u8,

    /// How long a guest may go on without progress before the hypervisor ends it, by the machine's own clock. [default: 120; a
    /// Linux guest may be idle for as long as it likes]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub timeout: Option<u64>,

    /// How long the emulator may work for one boot before it is killed; that others keep the host busy doesn't count. [default: no
    /// limit, but a minute longer than --timeout without a word; half an hour if --simulated]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub host_timeout: Option<u64>,

    /// Run on simulated time: all CPUs advance side by side, an instruction per nanosecond, as if the host had that many.
    /// Slow, and exact to a few percent; tests/simclock/README.md says what it models. Needs QEMU 10.0 with plugins.
    #[arg(long)]
    pub simulated: bool,

    /// The cost of moving a cache line from one CPU to another within the hypervisor, in simulated nanoseconds; 0: nothing.
    #[arg(long, value_name = "NS", requires = "simulated", default_value_t = Costs::default().line_ns, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub line_cost: u64,

    /// The cost of a broadcast TLB invalidation in simulated nanoseconds. All of them queue behind each other; a local one
    /// costs a quarter.
    #[arg(long, value_name = "NS", requires = "simulated", default_value_t = Costs::default().tlbi_ns, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub tlbi_cost: u64,

    /// Further options for the hypervisor, as they are.
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    pub append: Option<String>,

    /// Show all that the hypervisor and the emulator print.
    #[arg(long, short)]
    pub verbose: bool,

    /// Further arguments for QEMU, behind `--`.
    #[arg(last = true, value_name = "QEMU-ARGS")]
    pub qemu: Vec<OsString>,
}

impl MachineOptions {
    /// The CPU model, if it isn't the usual one.
    pub fn chosen_cpu(&self) -> Option<&str> {
        Some(self.cpu.as_str()).filter(|cpu| *cpu != USUAL_CPU)
    }

    /// The costs of simulated time, if that is wanted.
    pub fn costs(&self) -> Option<Costs> {
        self.simulated.then_some(Costs {
            line_ns: self.line_cost,
            tlbi_ns: self.tlbi_cost,
        })
    }
}

fn ring_entries(text: &str) -> Result<u32, String> {
    let entries = text.parse::<u32>().ok();
    let sound =
        entries.filter(|entries| entries.is_power_of_two() && (64..=65536).contains(entries));
    sound.ok_or_else(|| "expected a power of two from 64 to 65536".into())
}
