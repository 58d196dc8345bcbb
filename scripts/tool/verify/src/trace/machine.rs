//! A machine whose hypervisor is traced, from its start to its exits.

use std::fs::File;
use std::io::BufReader;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::bars::{Boot, Guest};
use super::debugger::Debugger;
use super::log::{self, Exit};
use super::{Setup, unusable};
use emulator::boot::{self, Outcome};
use emulator::effort::Limit;
use emulator::error::ToolError;
use emulator::qemu::hypervisor_text;
use emulator::qemu::{Gic, Machine, Module, ModuleKind};
use emulator::size::mib;

/// No machine takes longer.
const LIMIT: Limit = Limit::total(Duration::from_secs(120));

/// Boots the machine, and gives the exits of its guest.
pub fn trace(setup: &Setup, boot: &Boot, cpu: &str) -> Result<Vec<Exit>, ToolError> {
    let folder = TempDir::new().map_err(|error| ToolError::Io(error.to_string()))?;
    let (socket, log) = (folder.path().join("gdb"), folder.path().join("log"));
    let mut machine = machine(setup, boot, cpu);
    let text = hypervisor_text(&setup.images.symbols)?;
    // QEMU separates options by commas; one that belongs to a path is doubled.
    let listen = socket.to_string_lossy().replace(',', ",,");
    machine.extra = [
        "-accel".into(),
        "tcg,thread=single,one-insn-per-tb=on".into(),
        "-dfilter".into(),
        format!("{:#x}..{:#x}", text.start, text.end - 1).into(),
        "-D".into(),
        log.clone().into(),
        "-gdb".into(),
        format!("unix:{listen},server=on,wait=off").into(),
        "-S".into(),
    ]
    .into();
    let over = AtomicBool::new(false);
    let (traced, outcome) = thread::scope(|scope| {
        let tracer = scope.spawn(|| {
            let debugger = Debugger::connect(&socket, || over.load(Ordering::Relaxed))?;
            debugger.trace(setup.entry, boot.first_cpu, &log)
        });
        let outcome = boot::run(&mut machine.command(), LIMIT, |_, _| {}, |_| {});
        over.store(true, Ordering::Relaxed);
        (tracer.join(), outcome)
    });
    let outcome = outcome.map_err(|error| unusable(&setup.emulator, error))?;
    match traced {
        Ok(Ok(())) if outcome.status.is_none_or(|status| status == 0) => {}
        _ => return Err(failed(boot, cpu, &outcome)),
    }
    let file = File::open(&log).map_err(|error| unusable(&log, error))?;
    log::read(BufReader::with_capacity(1 << 20, file)).map_err(|error| unusable(&log, error))
}

fn machine(setup: &Setup, boot: &Boot, cpu: &str) -> Machine {
    let memory = mib(512);
    let (image, bootargs) = match &boot.guest {
        Guest::Benchmark => (&setup.images.dirty_log, None),
        Guest::Probe(probe) => (&setup.probe, Some(probe.clone())),
        Guest::Micro(word) => (&setup.micro, Some(word.clone())),
    };
    Machine {
        emulator: setup.emulator.clone(),
        cpu: cpu.into(),
        gic: Gic::V3,
        cpus: boot.cpus,
        memory,
        el2: true,
        kernel: Some(setup.images.hypervisor.clone()),
        append: boot.options.clone(),
        modules: vec![Module {
            kind: ModuleKind::Kernel,
            image: image.clone(),
            address: Machine::module_address(memory),
            bootargs,
        }],
        debugger: None,
        simulation: None,
        extra: Vec::new(),
    }
}

/// What became of a machine that ended too early.
fn failed(boot: &Boot, cpu: &str, outcome: &Outcome) -> ToolError {
    let words = outcome.errors.first().or(outcome.fatal.first()).cloned();
    let words = words.or_else(|| outcome.refusal());
    let words = words.unwrap_or_else(|| outcome.end_in_words());
    ToolError::Io(format!("no trace of {} on {cpu}: {words}", boot.name))
}
