//! Speculation mitigations on this CPU: selects its vectors once, by the decision of [`crate::cpu::speculation`].

use crate::cpu::features::IdRegisters;
use crate::cpu::percpu::PerCpu;
use crate::cpu::register::write_register;
use crate::cpu::speculation::{Decision, OnExit};
use crate::el2::exceptions;
use crate::power::psci;
use aarch64_cpu::asm::barrier;
use core::sync::atomic::{AtomicBool, Ordering};
use spin::Mutex;
use vm::Protections;

static IS_ON: AtomicBool = AtomicBool::new(true);
/// The worst that any CPU has, of those that are up.
static WORST: Mutex<Option<Protections>> = Mutex::new(None);

/// Has exits from guests begin with nothing, on CPUs that come up from here on.
pub(crate) fn switch_off() {
    IS_ON.store(false, Ordering::Relaxed);
}

/// Decides for the calling CPU, and returns what exits from guests begin with.
pub(crate) fn this_cpu(cpu: &PerCpu) -> OnExit {
    let mut decision = Decision::new(&IdRegisters::read(), &psci::workarounds());
    if !IS_ON.load(Ordering::Relaxed) {
        decision = decision.without_exits();
    }
    let (workaround, loops) = match decision.on_exit {
        OnExit::Nothing | OnExit::ClearHistory => (0, 0),
        OnExit::Loop(loops) => (0, loops),
        OnExit::Firmware(workaround, loops) => (workaround, loops),
    };
    cpu.workaround.store(workaround.into(), Ordering::Relaxed);
    cpu.loops.store(loops.into(), Ordering::Relaxed);
    // SAFETY: all vectors do the same but for what exits begin with, and no guest has run on this CPU.
    unsafe { write_register!("vbar_el2", exceptions::vectors(decision.on_exit)) };
    barrier::isb(barrier::SY);
    let mut worst = WORST.lock();
    let own = decision.protections;
    *worst = Some(worst.map_or(own, |others| others.worst(own)));
    decision.on_exit
}

/// How guests are protected, on whichever CPU.
pub(crate) fn protections() -> Protections {
    WORST.lock().unwrap_or_default()
}
