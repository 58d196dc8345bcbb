//! The binary: joins the platform with the hypervisor.

#![no_std]
#![no_main]

extern crate alloc;

mod calibration;
mod machine;
mod selftest;
mod tables;
mod watch;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use control::options::{EarlyOptions, OptionError};
#[cfg(not(feature = "workloads"))]
use control::run as run_guests;
use control::{CpuPool, Domain, FileUse, HOUSEKEEPING_NS, Host, Machine, Module, Modules, OwnCpu};
use machine::Board;
use memory::frames::FramePool;
use memory::{CpuCounters, CpuMemory, IdleCpus, MemorySystem};
use platform::CpuId;
use platform::boot::cpus;
use platform::boot::cpus::CpuStartError;
use platform::boot::heap;
use platform::boot::{Boot, BootError, System};
use platform::console;
use platform::discovery::ModuleKind;
use platform::drivers::gic;
use platform::power::psci;
use spin::Once;
use stage2::{Granule, PAGE_SIZE, Pa, TooFewVmids};
#[cfg(feature = "workloads")]
use workloads::run as run_guests;

platform::entry!(main);

static POOL: FramePool = FramePool::new();
static SHARED: Once<Shared> = Once::new();

/// The state that all CPUs share.
#[derive(Debug)]
struct Shared {
    board: Board,
    cpu_pool: CpuPool<Board>,
    memory: MemorySystem,
    counters: Box<[CpuCounters]>,
}

/// Runs on the boot CPU, once there is a console.
fn main(boot: Boot) -> ! {
    let status = match run(boot) {
        Ok(()) => 0,
        // The control plane has said why.
        Err(Error::Run(status)) => status,
        Err(error) => {
            console::write_line(format_args!("parvisor: error: {error}"));
            error.status()
        }
    };
    psci::exit(status)
}

fn run(boot: Boot) -> Result<(), Error> {
    let system: &'static System = Box::leak(Box::new(boot.take_over().map_err(Error::Boot)?));
    fill_pool(system);
    let bootargs = system.machine.bootargs;
    let early =
        EarlyOptions::parse(bootargs, !system.machine.domains.is_empty()).map_err(Error::Option)?;
    let vmid_bits = system.features.vmid_bits.into();
    let memory = MemorySystem::new(&POOL, cpus::count(), vmid_bits).map_err(Error::Vmids)?;
    cpus::start_secondaries(attend, early.mitigations).map_err(Error::Cpu)?;
    log::info!("{system}");
    if let Some(test) = early.self_test {
        selftest::run(test);
        return Ok(());
    }
    let stage2 = system.features.stage2(Granule::Size4K);
    let stage2 = stage2.ok_or(Error::NoGranule)?;
    let calibration = calibration::run(&system.features);
    log::info!("{calibration}");
    let most_tlbi = calibration.most_instructions();
    watch::start(&early).map_err(Error::Option)?;
    let shared = SHARED.call_once(|| Shared {
        board: Board::new(system, stage2, most_tlbi),
        cpu_pool: CpuPool::new(cpus::count()),
        memory,
        counters: (0..cpus::count()).map(|_| CpuCounters::default()).collect(),
    });
    shared.memory.set_idle_cpus(shared);
    let own = shared.own_cpu(CpuId::BOOT);
    watch::use_up_vmids(&own.memory, stage2);
    let host = Host {
        machine: &shared.board,
        cpu_pool: &shared.cpu_pool,
        counters: &shared.counters,
        own: &own,
        beside: None,
    };
    run_guests(&host, bootargs, &modules(system)).map_err(|error| {
        console::write_line(format_args!("parvisor: error: {error}"));
        Error::Run(error.status())
    })
}

/// What the boot loader has left for guests.
fn modules(system: &'static System) -> Modules<'static> {
    let mut modules = Modules::default();
    for domain in &system.machine.domains {
        modules.domains.push(Domain {
            name: domain.name,
            cpus: domain.cpus,
            kib: domain.kib,
            files: Vec::new(),
        });
    }
    for (index, module) in system.machine.modules.iter().enumerate() {
        let Some(bytes) = system.module(index) else {
            continue;
        };
        let domain = module
            .domain
            .and_then(|index| modules.domains.get_mut(index));
        let files = domain.map_or(&mut modules.files, |domain| &mut domain.files);
        files.push(Module {
            kind: match module.kind {
                ModuleKind::Kernel => FileUse::Kernel,
                ModuleKind::Ramdisk => FileUse::Ramdisk,
                ModuleKind::Other => FileUse::Other,
            },
            address: module.range.start(),
            bytes,
            bootargs: module.bootargs.unwrap_or_default(),
        });
    }
    modules
}

/// Gives all unused memory to the pool, and counts the heap's.
fn fill_pool(system: &System) {
    for range in system.memory.ranges() {
        // SAFETY: the platform says that this is unused RAM, mapped at its own address.
        unsafe { POOL.add(Pa::new(range.start())..Pa::new(range.end())) };
    }
    POOL.count_heap(heap::usage().total as u64 / PAGE_SIZE);
}

/// The loop of the other CPUs.
fn attend(cpu: CpuId) -> ! {
    let shared = loop {
        match SHARED.get() {
            Some(shared) => break shared,
            None => gic::wait(),
        }
    };
    let mut own = shared.own_cpu(cpu);
    loop {
        shared.cpu_pool.attend(&shared.board, &mut own);
        (shared.board).wait(shared.board.now_ns().saturating_add(HOUSEKEEPING_NS));
    }
}

impl IdleCpus for Shared {
    fn wake_one(&self) {
        self.cpu_pool.wake_one(&self.board);
    }
}

impl Shared {
    /// The calling CPU's own state.
    fn own_cpu(&'static self, cpu: CpuId) -> OwnCpu<Board> {
        let features = cpus::features();
        let counters = &self.counters[cpu.index()];
        OwnCpu {
            id: vm::CpuId(cpu.index()),
            cpu: watch::guest_cpu(features),
            memory: CpuMemory::new(
                &self.memory,
                cpu.index(),
                watch::hardware(features, self.board.facts().most_tlbi),
                counters,
            ),
        }
    }
}

/// Why the machine ends with a failing status.
#[derive(Debug)]
enum Error {
    Boot(BootError),
    /// There are more CPUs than VMIDs.
    Vmids(TooFewVmids),
    Cpu(CpuStartError),
    /// A wrong value of an option that is read early.
    Option(OptionError<'static>),
    /// The CPUs' stage 2 has no pages of 4 KiB.
    NoGranule,
    /// A failure that the control plane has reported already.
    Run(u8),
}

impl Error {
    /// The exit status: 2 for options, 1 for all else.
    fn status(&self) -> u8 {
        match self {
            Self::Run(status) => *status,
            // The number of CPUs is the user's choice, as an option is.
            Self::Option(_) | Self::Vmids(_) => 2,
            Self::Boot(_) | Self::Cpu(_) | Self::NoGranule => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boot(error) => error.fmt(f),
            Self::Vmids(error) => error.fmt(f),
            Self::Cpu(error) => error.fmt(f),
            Self::Option(error) => error.fmt(f),
            Self::NoGranule => f.write_str("these CPUs' stage 2 has no pages of 4 KiB"),
            Self::Run(status) => write!(f, "the run failed with status {status}"),
        }
    }
}
