//! What the system tests share: machines with the images of this tree, started with whatever a test wants to be
//! different, each with a hard limit of the emulator's own time: however busy the host is, no machine is ended for that.
//!
//! The images are built once per process. Tests may boot machines at the same time.

pub mod pty;
pub mod qmp;
pub mod raw;
pub mod tree;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use emulator::boot::{self, Outcome};
use emulator::effort::Limit;
use emulator::images::{self, Images};
use emulator::qemu::{Gic, Machine, Module, ModuleKind};
use emulator::setup;
use emulator::size::{Size, mib};
use records::words::Profile;

/// No machine may take longer unless its test says so.
const LIMIT: Duration = Duration::from_secs(60);
/// The options of a benchmark that is over soon.
pub const SHORT: &str = "vcpus=2 bytes=4M iterations=2 timeout=40";

/// The images of this tree, built at the first call.
///
/// # Panics
///
/// If they can't be built.
pub fn images() -> &'static Images {
    static IMAGES: OnceLock<Images> = OnceLock::new();
    IMAGES.get_or_init(|| images::build(Profile::Best).unwrap_or_else(|error| panic!("{error}")))
}

/// What `scripts/run` boots unless it is told otherwise, built at the first call.
///
/// # Panics
///
/// If it can't be built.
pub fn quick_images() -> &'static Images {
    static IMAGES: OnceLock<Images> = OnceLock::new();
    IMAGES.get_or_init(|| images::build(Profile::Quick).unwrap_or_else(|error| panic!("{error}")))
}

/// The guest that misbehaves on request, built at the first call.
///
/// # Panics
///
/// If it can't be built.
pub fn probe_guest() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| images::build_probe().unwrap_or_else(|error| panic!("{error}")))
}

/// The hypervisor with the break-before-make checker, built at the first call.
///
/// # Panics
///
/// If it can't be built.
pub fn watched_hypervisor() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let images = images::build_watched(quick_images().clone(), Profile::Quick);
        images.unwrap_or_else(|error| panic!("{error}")).hypervisor
    })
}

/// The emulator of this machine.
///
/// # Panics
///
/// If there is none.
pub fn emulator() -> &'static Path {
    static EMULATOR: OnceLock<PathBuf> = OnceLock::new();
    EMULATOR.get_or_init(|| setup::emulator().unwrap_or_else(|error| panic!("{error}")))
}

/// Whether the emulator knows this CPU model; older ones don't know all.
///
/// # Panics
///
/// If the emulator can't be run.
pub fn emulates(cpu: &str) -> bool {
    let output = Command::new(emulator())
        .args(["-M", "virt", "-cpu", "help"])
        .output();
    let models = output.expect("the emulator can be run").stdout;
    String::from_utf8_lossy(&models)
        .split_whitespace()
        .any(|model| model == cpu)
}

/// A machine to boot: 3 CPUs of the model neoverse-n1 with GICv3 and 512 MiB, unless a test wants something else.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The machine, for what has no method here.
    pub machine: Machine,
    limit: Duration,
}

impl Boot {
    /// The hypervisor with these options and no guest.
    pub fn without_guest(append: &str) -> Self {
        Self::with(images(), append)
    }

    fn with(images: &Images, append: &str) -> Self {
        let machine = Machine {
            emulator: emulator().into(),
            cpu: "neoverse-n1".into(),
            gic: Gic::V3,
            cpus: 3,
            memory: mib(512),
            el2: true,
            kernel: Some(images.hypervisor.clone()),
            append: append.into(),
            modules: Vec::new(),
            debugger: None,
            simulation: None,
            extra: Vec::new(),
        };
        Self {
            machine,
            limit: LIMIT,
        }
    }

    /// As [`Self::without_guest`], with the hypervisor that `scripts/run` boots unless it is told otherwise.
    pub fn quick(append: &str) -> Self {
        Self::with(quick_images(), append)
    }

    /// The hypervisor with these options and the guest of the benchmark.
    pub fn benchmark(append: &str) -> Self {
        Self::without_guest(append).guest(&images().dirty_log, None)
    }

    /// The hypervisor with one vCPU of the guest that misbehaves, `probe` chooses how, for at most `seconds`.
    pub fn probe(probe: &str, seconds: u64) -> Self {
        let append = format!("guest=program vcpus=1 bytes=16M timeout={seconds}");
        Self::without_guest(&append).guest(probe_guest(), Some(probe))
    }

    /// Adds a guest image at an address that is free.
    pub fn guest(mut self, image: &Path, bootargs: Option<&str>) -> Self {
        self.machine.modules.push(Module {
            kind: ModuleKind::Kernel,
            image: image.into(),
            address: Machine::module_address(self.machine.memory),
            bootargs: bootargs.map(String::from),
        });
        self
    }

    /// Adds to the hypervisor's options.
    pub fn append(mut self, options: &str) -> Self {
        self.machine.append = format!("{} {options}", self.machine.append);
        self
    }

    /// Another CPU model.
    pub fn cpu(mut self, model: &str) -> Self {
        self.machine.cpu = model.into();
        self
    }

    /// Another interrupt controller.
    pub fn gic(mut self, gic: Gic) -> Self {
        self.machine.gic = gic;
        self
    }

    /// Another number of CPUs.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.machine.cpus = cpus;
        self
    }

    /// Another size of RAM. The modules stay where they are.
    pub fn memory(mut self, memory: Size) -> Self {
        self.machine.memory = memory;
        self
    }

    /// Another image to start.
    pub fn kernel(mut self, image: &Path) -> Self {
        self.machine.kernel = Some(image.into());
        self
    }

    /// More arguments for QEMU.
    pub fn arguments<S: Into<std::ffi::OsString>>(
        mut self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Self {
        self.machine
            .extra
            .extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Another limit.
    pub fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// Boots it and follows it to its end.
    ///
    /// # Panics
    ///
    /// If the emulator can't be started.
    pub fn run(&self) -> Outcome {
        let mut command = self.machine.command();
        boot::run(&mut command, Limit::total(self.limit), |_, _| {}, |_| {})
            .unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// As [`Boot::run`], and all must have gone well.
    ///
    /// # Panics
    ///
    /// If the status isn't 0 or anything was complained about.
    pub fn run_well(&self) -> Outcome {
        let outcome = self.run();
        let is_well =
            outcome.status == Some(0) && outcome.errors.is_empty() && outcome.fatal.is_empty();
        assert!(is_well, "{}", describe(&outcome));
        outcome
    }

    /// As [`Boot::run`], and the hypervisor must have refused its options, with status 2 and one line that contains each of
    /// `words`.
    ///
    /// # Panics
    ///
    /// If it didn't.
    pub fn run_refused(&self, words: &[&str]) -> Outcome {
        self.run_to_error(2, words)
    }

    /// As [`Boot::run_refused`], for a machine that can't be used, which is status 1.
    ///
    /// # Panics
    ///
    /// If it goes on.
    pub fn run_failed(&self, words: &[&str]) -> Outcome {
        self.run_to_error(1, words)
    }

    fn run_to_error(&self, status: i32, words: &[&str]) -> Outcome {
        let outcome = self.run();
        let named = |error: &String| words.iter().all(|word| error.contains(word));
        let is_refused =
            outcome.status == Some(status) && outcome.fatal.is_empty() && outcome.errors.len() == 1;
        assert!(
            is_refused && outcome.errors.iter().all(named),
            "expected {words:?}\n{}",
            describe(&outcome)
        );
        outcome
    }
}

/// A record of each of these modes, verified, and no more.
///
/// # Panics
///
/// If there isn't.
pub fn assert_verified(outcome: &Outcome, modes: &[&str]) {
    let found: Vec<&str> = outcome
        .records
        .iter()
        .map(|record| record.mode.as_str())
        .collect();
    assert_eq!(found, modes, "{}", describe(outcome));
    assert!(
        outcome.records.iter().all(|record| record.verified),
        "{}",
        describe(outcome)
    );
}

/// What happened, for the message of a failed test.
pub fn describe(outcome: &Outcome) -> String {
    let mut text = format!(
        "end {:?}, status {:?}, errors {:?}, complaints {:?}, console:\n",
        outcome.end, outcome.status, outcome.errors, outcome.complaints
    );
    for line in outcome.last_lines(60) {
        let _ = writeln!(text, "  | {line}");
    }
    text
}
