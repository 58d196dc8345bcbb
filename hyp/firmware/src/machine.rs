//! The machine that the monitor works with: the platform behind the monitor's trait.

use core::fmt;

use monitor::{Facts, Machine};
use platform::boot::System;
use platform::discovery::Gic;
use platform::{CpuId, console, cpus, gic, timer};
use stage2::Features;

use crate::watch::{GuestCpu, Hardware};

/// This machine.
#[derive(Debug)]
pub struct Board(Facts);

impl Board {
    /// All of its CPUs are up, and have `stage2` with pages of 4 KiB.
    pub fn new(system: &System, stage2: Features, most_tlbi: u32) -> Self {
        Self(Facts {
            cpus: cpus::count(),
            stage2,
            most_tlbi,
            cpu_model: cpus::model(),
            gic: match system.machine.gic {
                Gic::V2 { .. } => 2,
                Gic::V3 { .. } => 3,
            },
            clock: "cntpct",
        })
    }
}

impl Machine for Board {
    type Cpu = GuestCpu;
    type Hardware = Hardware;

    fn facts(&self) -> &Facts {
        &self.0
    }

    fn now_ns(&self) -> u64 {
        timer::now_ns()
    }

    fn counter(&self) -> u64 {
        timer::counter()
    }

    fn write_line(&self, line: fmt::Arguments<'_>) {
        console::write_line(line);
    }

    fn kick(&self, cpu: vm::CpuId) {
        gic::kick(CpuId::new(cpu.0));
    }

    fn wait(&self, deadline_ns: u64) {
        gic::wait_until(deadline_ns);
    }
}
