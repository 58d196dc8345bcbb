//! The options of `scripts/run`, their defaults, and the checks that need no machine. What passes here may still be
//! refused by the hypervisor, which alone knows what it can do; but then it is well-formed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use monitor::options::MOST_ITERATIONS;

use crate::error::ToolError;
use crate::qemu::Gic;
use crate::simclock::Costs;
use crate::size::{self, Size, mib};

/// The most CPUs that the hypervisor brings up.
pub const MOST_CPUS: u32 = 128;
/// What the hypervisor, the guest's program and the device tree need at least, beside the memory that is written.
const LEAST_OVERHEAD: Size = mib(64);
/// What they are given where the user doesn't say how much memory the machine has.
const USUAL_OVERHEAD: Size = mib(192);
/// No machine has less RAM where the user doesn't say how much.
const LEAST_RAM: Size = mib(512);
/// RAM comes in multiples of this where the user doesn't say how much.
const MEMORY_STEP: Size = mib(256);
/// The smallest page.
const PAGE: Size = Size(4096);
/// How long beyond the hypervisor's own limits a run may take: the boot, and the verification.
const HOST_MARGIN_SECONDS: u64 = 60;
/// How long a run on simulated time may take: a second of it takes minutes of the host's, the more the more CPUs there are.
const SIMULATED_RUN_SECONDS: u64 = 30 * 60;

/// Boots Parvisor in an emulator and measures it: several vCPUs write to their memory while the hypervisor harvests,
/// again and again, which pages they wrote.
///
/// Installs what is missing, builds, runs every mode in one boot, and ends with a table that compares them. Exit
/// status: 0 all runs verified; 1 a run failed or something is missing; 2 bad options; 3 the hypervisor itself failed;
/// 4 the emulator ended without a word.
#[derive(Clone, Debug, Parser)]
#[command(
    bin_name = "scripts/run",
    disable_version_flag = true,
    max_term_width = 120
)]
pub struct RunOptions {
    /// How many vCPUs write at the same time, each on a CPU of its own.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=127))]
    pub vcpus: u32,

    /// The memory that each vCPU writes: a multiple of 4K. With --guest, all the memory that the guest has.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = size::parse)]
    pub bytes: Size,

    /// How often the memory is dirtied and its log harvested.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=MOST_ITERATIONS))]
    pub iterations: u64,

    /// The size of the pages that guest memory is made of.
    #[arg(long, value_name = "SIZE", value_enum, default_value_t = Backing::Block2M, ignore_case = true)]
    pub backing: Backing,

    /// How stage-2 operations exclude each other: not at all, like KVM since 6.2 (rwlock), like KVM before (mutex).
    /// May be given several times; each mode is one run. [default: mutex, rwlock, parallel]
    #[arg(long = "mode", value_name = "MODE", value_enum, value_delimiter = ',')]
    pub modes: Vec<Mode>,

    /// Which share of the accesses are writes; the others are reads.
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub write_percent: u8,

    /// Choose the pages at random instead of one after the other.
    #[arg(long)]
    pub random: bool,

    /// Where the choice of pages and of writes begins, to repeat a run or to vary it.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// The CPU model to emulate: cortex-a53, cortex-a72, neoverse-n1, neoverse-n2, max, ….
    #[arg(long, value_name = "MODEL", default_value = "neoverse-n1")]
    pub cpu: String,

    /// The version of the interrupt controller. 2 serves at most 8 CPUs.
    #[arg(long, value_name = "VERSION", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=3))]
    pub gic: u8,

    /// How many CPUs the machine has, at most 128; one is the hypervisor's own. [default: vcpus + 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_CPUS)))]
    pub smp: Option<u32>,

    /// How much RAM the machine has. [default: what the other options need]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub mem: Option<Size>,

    /// How long the guest of one run may take before the hypervisor ends it, on the machine's own clock.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub timeout: u64,

    /// How long the emulator may take altogether before it is killed. [default: what --timeout allows, and a
    /// minute; half an hour per mode if --simulated]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub host_timeout: Option<u64>,

    /// Write the results to this file: an array with one record per mode.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Run this guest image instead of the benchmark, until it powers off.
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["iterations", "write_percent", "random", "seed", "json"])]
    pub guest: Option<PathBuf>,

    /// The command line of that guest.
    #[arg(long, value_name = "STRING", requires = "guest")]
    pub guest_append: Option<String>,

    /// Run on simulated time: all CPUs advance side by side, an instruction per nanosecond, as if the host had that many.
    /// Slow, and exact to a few percent; tests/simclock/README.md says what it models. Needs QEMU 10.0 with plugins.
    #[arg(long, conflicts_with_all = ["gdb", "monitor"])]
    pub simulated: bool,

    /// What it costs in simulated nanoseconds to move a cache line from one CPU to another within the hypervisor; 0: nothing.
    #[arg(long, value_name = "NS", requires = "simulated", default_value_t = Costs::default().line_ns, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub line_cost: u64,

    /// What a broadcast TLB invalidation costs in simulated nanoseconds, all of which queue behind each other; a local one
    /// costs a quarter.
    #[arg(long, value_name = "NS", requires = "simulated", default_value_t = Costs::default().tlbi_ns, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub tlbi_cost: u64,

    /// Stop before the first instruction, print how to attach gdb, and wait for it.
    #[arg(long, conflicts_with = "host_timeout")]
    pub gdb: bool,

    /// Run a debug build, in which a break-before-make monitor watches every change of the tables and ends the run at the
    /// first rule that is broken. Slow: its times mean nothing. With --append inject=no-flush, no-break, local or
    /// no-publish it has a bug to find.
    #[arg(long)]
    pub monitor: bool,

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

/// How stage-2 operations exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Mode {
    /// No lock at all.
    Parallel,
    /// Faults share a lock, everything else excludes them.
    Rwlock,
    /// One lock for everything.
    Mutex,
}

impl Mode {
    /// The modes that are compared unless the user chooses.
    const COMPARED: [Mode; 3] = [Mode::Mutex, Mode::Rwlock, Mode::Parallel];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parallel => "parallel",
            Self::Rwlock => "rwlock",
            Self::Mutex => "mutex",
        })
    }
}

/// The size of the pages that guest memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backing {
    /// Pages of 4 KiB.
    #[value(name = "4K")]
    Page4K,
    /// Blocks of 2 MiB.
    #[value(name = "2M")]
    Block2M,
    /// Blocks of 1 GiB.
    #[value(name = "1G")]
    Block1G,
}

impl Backing {
    /// The size of one page or block.
    fn size(self) -> Size {
        match self {
            Self::Page4K => PAGE,
            Self::Block2M => mib(2),
            Self::Block1G => mib(1024),
        }
    }
}

/// Its name in options and results.
impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Page4K => "4K",
            Self::Block2M => "2M",
            Self::Block1G => "1G",
        })
    }
}

/// What a run consists of, all defaults filled in and all checks passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The modes, in the order in which they run.
    pub modes: Vec<Mode>,
    /// The interrupt controller.
    pub gic: Gic,
    /// The CPUs of the machine.
    pub cpus: u32,
    /// The RAM of the machine.
    pub memory: Size,
    /// The hypervisor's options.
    pub append: String,
    /// After how many seconds the emulator is killed; nothing while a debugger may hold it.
    pub host_seconds: Option<u64>,
}

impl RunOptions {
    /// Reads command-line arguments, the first of which is the command itself.
    ///
    /// # Errors
    ///
    /// clap's, which also stands for `--help`.
    pub fn parse_arguments(
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, clap::Error> {
        Self::try_parse_from(arguments)
    }

    /// The costs of simulated time, if that is wanted.
    pub fn costs(&self) -> Option<Costs> {
        self.simulated.then_some(Costs {
            line_ns: self.line_cost,
            tlbi_ns: self.tlbi_cost,
        })
    }

    /// Fills in the defaults and checks the options against each other.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming the option that can't be.
    pub fn plan(&self) -> Result<Plan, ToolError> {
        let modes = self.checked_modes()?;
        let gic = if self.gic == 2 { Gic::V2 } else { Gic::V3 };
        let cpus = self.checked_cpus(gic)?;
        let memory = self.checked_memory()?;
        if self.cpu.is_empty() {
            return usage("--cpu: the name of the model is empty");
        }
        let runs = modes.len() as u64;
        let host_seconds = self.host_timeout.unwrap_or(if self.simulated {
            SIMULATED_RUN_SECONDS * runs
        } else {
            self.timeout * runs + HOST_MARGIN_SECONDS
        });
        Ok(Plan {
            append: self.hypervisor_options(&modes),
            modes,
            gic,
            cpus,
            memory,
            host_seconds: (!self.gdb).then_some(host_seconds),
        })
    }

    fn checked_modes(&self) -> Result<Vec<Mode>, ToolError> {
        if self.modes.is_empty() {
            let alone = self.guest.is_some();
            return Ok(if alone {
                vec![Mode::Parallel]
            } else {
                Mode::COMPARED.to_vec()
            });
        }
        let distinct: BTreeSet<Mode> = self.modes.iter().copied().collect();
        if distinct.len() != self.modes.len() {
            return usage("--mode: the same mode is given twice");
        }
        if self.guest.is_some() && self.modes.len() > 1 {
            return usage("--guest: a guest of your own runs in one mode only");
        }
        Ok(self.modes.clone())
    }

    fn checked_cpus(&self, gic: Gic) -> Result<u32, ToolError> {
        let cpus = self.smp.unwrap_or(self.vcpus + 1);
        if self.vcpus > cpus - 1 {
            return usage(format!(
                "--vcpus {}: a machine with {cpus} CPUs has room for {}, one CPU is the hypervisor's own",
                self.vcpus,
                cpus - 1
            ));
        }
        if cpus > gic.most_cpus() {
            return usage(format!(
                "--gic {}: it serves at most {} CPUs, not {cpus}",
                self.gic,
                gic.most_cpus()
            ));
        }
        Ok(cpus)
    }

    fn checked_memory(&self) -> Result<Size, ToolError> {
        let Size(bytes) = self.bytes;
        if bytes == 0 || !bytes.is_multiple_of(PAGE.0) {
            return usage(format!("--bytes: {} are no multiple of {PAGE}", self.bytes));
        }
        let sharers = if self.guest.is_some() {
            1
        } else {
            u64::from(self.vcpus)
        };
        let written = bytes.checked_mul(sharers);
        let Some(usual) = written.and_then(|written| self.usual_memory(written)) else {
            return usage(format!(
                "--bytes: {} are more than any machine has",
                self.bytes
            ));
        };
        let Some(memory) = self.mem else {
            return Ok(usual);
        };
        if !memory.0.is_multiple_of(mib(1).0) {
            return usage(format!("--mem: {memory} are no multiple of {}", mib(1)));
        }
        if memory.0 < bytes * sharers + LEAST_OVERHEAD.0 {
            return usage(format!(
                "--mem: {sharers} times {} and {LEAST_OVERHEAD} for all else don't fit into {memory}",
                self.bytes
            ));
        }
        Ok(memory)
    }

    /// RAM that is enough for `written` bytes of guest memory, page tables, and blocks that must be aligned.
    fn usual_memory(&self, written: u64) -> Option<Size> {
        let Size(block) = self.backing.size();
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

    fn hypervisor_options(&self, modes: &[Mode]) -> String {
        let modes = modes
            .iter()
            .map(Mode::to_string)
            .collect::<Vec<_>>()
            .join(",");
        let mut options = vec![format!(
            "mode={modes} vcpus={} bytes={}K",
            self.vcpus,
            self.bytes.0 >> 10
        )];
        options.push(format!("backing={} timeout={}", self.backing, self.timeout));
        if self.guest.is_some() {
            options.push("guest=program".into());
        } else {
            options.push(format!(
                "iterations={} write_percent={}",
                self.iterations, self.write_percent
            ));
        }
        if self.random {
            options.push("random".into());
        }
        options.extend(self.seed.map(|seed| format!("seed={seed}")));
        options.extend(self.append.clone());
        options.join(" ")
    }
}

fn usage<T>(text: impl Into<String>) -> Result<T, ToolError> {
    Err(ToolError::Usage(text.into()))
}

/// clap's account of bad arguments in one line.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let joined = lines.join(" ");
    joined
        .strip_prefix("error: ")
        .unwrap_or(&joined)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<RunOptions, clap::Error> {
        let all = std::iter::once("scripts/run").chain(arguments.iter().copied());
        RunOptions::parse_arguments(all.map(OsString::from))
    }

    fn plan(arguments: &[&str]) -> Result<Plan, ToolError> {
        match parse(arguments) {
            Ok(options) => options.plan(),
            Err(error) => Err(ToolError::Usage(one_line(&error))),
        }
    }

    fn refused(arguments: &[&str]) -> String {
        match plan(arguments) {
            Err(ToolError::Usage(text)) => {
                assert!(!text.contains('\n'), "more than one line: {text}");
                text
            }
            other => panic!("{arguments:?} gave {other:?}"),
        }
    }

    #[test]
    fn the_defaults_compare_the_three_modes() {
        let plan = plan(&[]).expect("the defaults are sound");
        assert_eq!(plan.modes, [Mode::Mutex, Mode::Rwlock, Mode::Parallel]);
        assert_eq!((plan.cpus, plan.gic, plan.memory), (5, Gic::V3, mib(512)));
        assert_eq!(
            plan.append,
            "mode=mutex,rwlock,parallel vcpus=4 bytes=65536K backing=2M timeout=120 iterations=3 write_percent=100"
        );
        assert_eq!(plan.host_seconds, Some(420));
    }

    #[test]
    fn every_option_reaches_the_hypervisor() {
        let plan = plan(&[
            "--vcpus=2",
            "--bytes=8M",
            "--iterations=5",
            "--backing=4k",
            "--mode=parallel",
            "--mode=mutex",
            "--random",
            "--write-percent=50",
            "--seed=7",
            "--append=log=debug",
            "--smp=4",
            "--mem=1G",
            "--timeout=9",
        ]);
        let plan = plan.expect("sound options");
        assert_eq!((plan.cpus, plan.memory), (4, mib(1024)));
        assert_eq!(
            plan.append,
            "mode=parallel,mutex vcpus=2 bytes=8192K backing=4K timeout=9 iterations=5 write_percent=50 random seed=7 \
             log=debug"
        );
    }

    #[test]
    fn a_guest_of_ones_own_replaces_the_benchmark() {
        let plan = plan(&["--guest", "some.img", "--vcpus=1"]).expect("sound options");
        assert_eq!(
            plan.append,
            "mode=parallel vcpus=1 bytes=65536K backing=2M timeout=120 guest=program"
        );
        assert!(refused(&["--guest", "a.img", "--json", "x"]).contains("--json"));
        assert!(refused(&["--guest", "a.img", "--mode=mutex,parallel"]).contains("one mode"));
        assert!(refused(&["--guest-append", "x"]).contains("--guest"));
    }

    #[test]
    fn unknown_and_malformed_options_are_refused_in_one_line() {
        assert!(refused(&["--vcpu", "3"]).contains("--vcpu"));
        assert!(refused(&["stray"]).contains("stray"));
        assert!(refused(&["--bytes", "64T"]).contains("64T"));
        assert!(refused(&["--bytes"]).contains("--bytes"));
        assert!(refused(&["--mode", "fast"]).contains("fast"));
        assert!(refused(&["--backing", "8M"]).contains("8M"));
        assert!(refused(&["--write-percent", "101"]).contains("101"));
        assert!(refused(&["--gic", "4"]).contains('4'));
        assert!(refused(&["--vcpus", "0"]).contains('0'));
        assert!(refused(&["--iterations", "0"]).contains('0'));
        assert!(refused(&["--smp", "129"]).contains("129"));
        assert!(refused(&["--cpu", ""]).contains("--cpu"));
        assert!(refused(&["--vcpus=2", "--vcpus=3"]).contains("--vcpus"));
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(refused(&["--vcpus", "4", "--smp", "4"]).contains("room for 3"));
        assert!(refused(&["--smp", "1"]).contains("room for 0"));
        assert!(refused(&["--gic", "2", "--vcpus", "8"]).contains("at most 8"));
        assert!(refused(&["--bytes", "0"]).contains("4 KiB"));
        assert!(refused(&["--bytes", "6000"]).contains("4 KiB"));
        assert!(refused(&["--mem", "256M"]).contains("don't fit"));
        assert!(refused(&["--mem", "5000"]).contains("1 MiB"));
        assert!(refused(&["--bytes", "17179869183G"]).contains("any machine"));
        assert!(refused(&["--mode=mutex", "--mode=mutex"]).contains("twice"));
        assert!(refused(&["--gdb", "--host-timeout=5"]).contains("--gdb"));
    }

    #[test]
    fn memory_leaves_room_for_aligned_blocks() {
        let memory = |arguments: &[&str]| plan(arguments).expect("sound options").memory;
        assert_eq!(memory(&["--backing=1G"]), mib(2304));
        assert_eq!(memory(&["--bytes=1G", "--vcpus=2"]), mib(2304));
        assert!(memory(&["--bytes=8M", "--vcpus=32"]) >= mib(448));
    }

    #[test]
    fn what_follows_two_dashes_is_qemus() {
        let options = parse(&["--vcpus=1", "--", "-d", "int"]).expect("sound options");
        assert_eq!(options.qemu, ["-d", "int"]);
    }

    #[test]
    fn a_debugger_may_take_its_time() {
        assert_eq!(plan(&["--gdb"]).expect("sound options").host_seconds, None);
    }
}
