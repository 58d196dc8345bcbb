//! A snapshot of a vCPU, to find out why its VM makes no progress.

use core::fmt;

use crate::ids::VcpuId;
use crate::registers::pstate;
use crate::registers::syndrome::Cause;
use crate::registers::syndrome::Syndrome;
use crate::vm::power::PowerState;

/// A snapshot of a vCPU of a paused VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance {
    /// Which vCPU.
    pub vcpu: VcpuId,
    /// Whether it is on.
    pub power: PowerState,
    /// Its registers; `None` while a slice holds them, in the guest or in an exit's handler.
    pub seen: Option<Seen>,
    /// The number of its exits.
    pub exits: u64,
}

/// The position of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its next instruction.
    pub pc: u64,
    /// Its PSTATE.
    pub pstate: u64,
    /// Its last synchronous exit since a CPU loaded it; [`Syndrome::NONE`] if there was none.
    pub last_exit: Syndrome,
    /// Whether it waits for the answer to a service call.
    pub awaits_answer: bool,
}

impl fmt::Display for Glance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            vcpu, power, exits, ..
        } = self;
        match (power, &self.seen) {
            (PowerState::Off, _) => write!(f, "{vcpu}: off"),
            (PowerState::OnPending, _) => write!(f, "{vcpu}: turned on, not started yet"),
            (PowerState::On, None) => write!(f, "{vcpu}: doesn't come out, after {exits} exits"),
            (PowerState::On, Some(seen)) => write!(f, "{vcpu}: {seen}, {exits} exits"),
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = if pstate::is_el0(self.pstate) { 0 } else { 1 };
        let does = if self.awaits_answer {
            "waits for an answer"
        } else if matches!(Cause::decode(self.last_exit.esr), Cause::Wait(_)) {
            "waits for an interrupt"
        } else {
            "runs"
        };
        let Self { pc, pstate, .. } = self;
        write!(
            f,
            "{does} at EL{level}, pc {pc:#x}, pstate {pstate:#x}, last exit: {}",
            self.last_exit
        )
    }
}

impl fmt::Display for Syndrome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { esr, far } = self;
        if *self == Self::NONE {
            return f.write_str("none");
        }
        match Cause::decode(*esr) {
            Cause::DataAbort(_) => write!(f, "data abort at {far:#x}")?,
            Cause::InstructionAbort(_) => write!(f, "instruction abort at {far:#x}")?,
            Cause::Hypercall { .. } => f.write_str("HVC")?,
            Cause::SecureCall { .. } => f.write_str("SMC")?,
            Cause::SystemRegister(_) => f.write_str("system register")?,
            Cause::Wait(_) => f.write_str("WFI")?,
            Cause::Sve => f.write_str("SVE")?,
            Cause::Other => f.write_str("another exception")?,
        }
        write!(f, " (ESR_EL2 {esr:#x})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    const SEEN: Seen = Seen {
        pc: 0x4020_0040,
        pstate: 0x3c5,
        last_exit: Syndrome::NONE,
        awaits_answer: false,
    };

    fn glance(power: PowerState, seen: Option<Seen>) -> alloc::string::String {
        let glance = Glance {
            vcpu: VcpuId(2),
            power,
            seen,
            exits: 7,
        };
        glance.to_string()
    }

    #[test]
    fn a_vcpu_is_told_by_where_it_is_and_what_it_did_last() {
        let on = |esr, far, awaits_answer| {
            let last_exit = Syndrome { esr, far };
            let seen = Seen {
                last_exit,
                awaits_answer,
                ..SEEN
            };
            glance(PowerState::On, Some(seen))
        };
        assert_eq!(
            on(0, 0, false),
            "vCPU 2: runs at EL1, pc 0x40200040, pstate 0x3c5, last exit: none, 7 exits"
        );
        assert!(on(0x5a00_0000, 0, true).contains("waits for an answer at EL1"));
        assert!(on(0x5a00_0000, 0, true).contains("last exit: HVC (ESR_EL2 0x5a000000)"));
        assert!(on(0x0600_0000, 0, false).contains("waits for an interrupt"));
        assert!(on(0x9200_0046, 0x1234, false).contains("data abort at 0x1234"));
        assert!(on(0x8200_0006, 0x200, false).contains("instruction abort at 0x200"));
    }

    #[test]
    fn a_vcpu_that_cannot_be_looked_at_is_told_too() {
        assert_eq!(glance(PowerState::Off, Some(SEEN)), "vCPU 2: off");
        assert!(glance(PowerState::On, None).contains("doesn't come out"));
        assert!(glance(PowerState::OnPending, None).contains("not started"));
    }
}
