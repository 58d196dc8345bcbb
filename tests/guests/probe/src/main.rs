//! The guest that misbehaves: does what its command line names, checks what comes of it, and reports.
//!
//! | name | what it does | how it ends |
//! |---|---|---|
//! | `outside` | all kinds of accesses outside every slot | passes |
//! | `jump` | calls code that isn't there | passes |
//! | `sysregs` | reads and clears every system register, executes every system instruction | passes |
//! | `dirty` | leaves everything in a vCPU's registers, and starts it again | passes |
//! | `hypercalls` | known calls, and unknown ones with garbage | passes |
//! | `random` | asks for random numbers, rightly and wrongly | passes |
//! | `features` | executes what its ID registers say that there is | passes |
//! | `workarounds` | asks what it needs against speculation, and calls what it may | passes |
//! | `smp` | starts and stops all vCPUs, rightly and wrongly | passes |
//! | `fp` | keeps values in the FP registers of all vCPUs through exits of all kinds | passes |
//! | `memory` | gives memory up and has it populated ahead, rightly and wrongly | passes |
//! | `race` | does so while other vCPUs use the same memory | passes |
//! | `walks` | lets the hypervisor walk tables that change into a device's registers | passes |
//! | `clock` | reads the clock that it is given as a device | passes |
//! | `interrupts` | takes interrupts of its timers, and sends some between all vCPUs, also LPIs where there is an ITS, on QEMU's virt machine | by the call |
//! | `alarm` | takes the interrupt of a clock that it is given, and resets with it active, on such a machine | by the call |
//! | `forked` | takes such interrupts while it is forked | by the call |
//! | `sve` | keeps values in SVE's registers, on a vCPU that starts twice too, on such a machine | by the call |
//! | `debug` | sets watchpoints, likewise | by the call |
//! | `nested` | has more interrupts active than there are list registers, there | by the call |
//! | `pmu` | counts by hand and takes the interrupts of overflows, likewise; `pmu exactly` counts instructions and cycles | by the call |
//! | `count` | counts that no SGI, tick or interrupt of a device is lost or comes twice, there | by the call |
//! | `devices` | accesses every register of the devices there in every way | by the call |
//! | `hostile` | does at random whatever a guest can do to its GIC, timers, devices and vCPUs, there, or much of one kind of it | by the call |
//! | `stack`, `vectors` | has its stack or its vectors in a device | never |
//! | `off`, `reset` | what they say | by the call |
//! | `fail` | reports a failure | fails |
//! | `spin`, `storm`, `wfi`, `flood` | compute, fault, wait or print for ever | never |

#![no_std]
#![no_main]

mod access;
mod alarm;
mod calls;
mod clock;
mod count;
mod debug;
mod devices;
mod features;
mod fp;
mod hostile;
mod interrupts;
mod lpis;
mod memory;
mod nested;
mod pmu;
mod random;
mod registers;
mod smp;
mod sve;
mod walks;

use core::fmt::Arguments;
use guest_runtime::{Tree, println, report};
use smccc::Hvc;

guest_runtime::entry!(main, smp::secondary);

/// A probe found something wrong.
const WRONG: u64 = 16;
/// The probe `fail`.
const ASKED_FOR: u64 = 17;
/// There is no such probe.
const UNKNOWN: u64 = 18;

fn main(tree: Tree) -> ! {
    let (name, arguments) = match tree.bootargs().split_once(' ') {
        Some((name, arguments)) => (name, arguments),
        None => (tree.bootargs(), ""),
    };
    match name {
        "outside" => access::outside(tree),
        "jump" => access::jump(),
        "storm" => access::storm(),
        "flood" => calls::flood_from_all(tree),
        "sysregs" => registers::probe(),
        "dirty" => registers::leave_dirty(tree),
        "hypercalls" => calls::probe(),
        "random" => random::probe(),
        "features" => features::probe(),
        "workarounds" => calls::workarounds(),
        "smp" => smp::probe(tree),
        "fp" => fp::probe(tree),
        "memory" => memory::probe(tree),
        "race" => memory::race(tree),
        "walks" => walks::probe(tree),
        "clock" => clock::probe(tree),
        "interrupts" => interrupts::probe(tree),
        "alarm" => alarm::probe(tree),
        "forked" => interrupts::while_forked(tree),
        "nested" => nested::probe(tree),
        "sve" => sve::probe(tree),
        "debug" => debug::probe(tree),
        "pmu" => pmu::probe(tree, arguments),
        "count" => count::probe(tree, arguments),
        "hostile" => hostile::probe(tree, arguments),
        "devices" => devices::probe(tree, arguments),
        "stack" => devices::stack(tree),
        "vectors" => devices::vectors(tree),
        "off" => guest_runtime::power_off(),
        "reset" => {
            let _ = smccc::psci::system_reset::<Hvc>();
            wrong(format_args!("the reset returned"))
        }
        "fail" => report(ASKED_FOR, 0, 0),
        "wfi" => guest_runtime::rest(),
        "spin" => loop {
            core::hint::spin_loop();
        },
        unknown => {
            println!("there is no probe {unknown:?}");
            report(UNKNOWN, 0, 0)
        }
    }
    report(0, 0, 0)
}

/// Says what isn't as it should be, and ends the VM.
fn wrong(what: Arguments<'_>) -> ! {
    println!("wrong: {what}");
    report(WRONG, 0, 0)
}
