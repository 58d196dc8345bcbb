//! The binary: joins the platform with the hypervisor.

#![no_std]
#![no_main]

mod selftest;

use platform::boot::{Boot, BootError};
use platform::cpus::CpuStartError;
use platform::{CpuId, console, cpus, gic, psci};

platform::entry!(main);

/// Runs on the boot CPU, once there is a console.
fn main(boot: Boot) -> ! {
    let status = match run(boot) {
        Ok(()) => 0,
        Err(error) => {
            console::write_line(format_args!("parvisor: error: {error}"));
            1
        }
    };
    psci::exit(status)
}

fn run(boot: Boot) -> Result<(), Error> {
    let system = boot.take_over().map_err(Error::Boot)?;
    cpus::start_secondaries(idle).map_err(Error::Cpu)?;
    log::info!("{system}");
    selftest::run(&system.machine.bootargs);
    Ok(())
}

/// What the other CPUs run.
fn idle(_cpu: CpuId) -> ! {
    loop {
        gic::wait();
    }
}

/// Why the machine can't be used.
#[derive(Debug)]
enum Error {
    Boot(BootError),
    Cpu(CpuStartError),
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Boot(error) => error.fmt(f),
            Self::Cpu(error) => error.fmt(f),
        }
    }
}
