//! The interrupt of a device of the machine's that the guest is given: the alarm of a real-time clock, PL031 (Arm DDI 0224).
//!
//! It is a level. The first time the guest leaves it active and resets; the clock's match register, which outlives that, tells the
//! second time. Whoever the interrupt was left active by, it comes again.

use crate::interrupts;
use crate::wrong;
use guest_runtime::{Tree, println};
use smccc::Hvc;

const DATA: u64 = 0;
const MATCH: u64 = 4;
const MASK: u64 = 0x10;
const RAW: u64 = 0x14;
const CLEAR: u64 = 0x1c;
const ALARMS: u32 = 2;
/// None is pending.
const NONE: u32 = 1023;

pub fn probe(tree: Tree) {
    interrupts::begin(tree);
    let found = tree
        .registers("arm,pl031")
        .zip(tree.shared_interrupt("arm,pl031"));
    let Some((clock, spi)) = found else {
        wrong(format_args!("there is no clock with an interrupt"));
    };
    let (read, write) = (interrupts::read, interrupts::write);
    let is_first = read(clock, MATCH) == 0;
    // What the last start has left.
    write(clock, MASK, 0);
    write(clock, CLEAR, 1);
    let interrupt = interrupts::enable_shared(spi);
    let alarm = || {
        write(clock, MATCH, read(clock, DATA) + 1);
        write(clock, MASK, 1);
        let taken = interrupts::wait_for(interrupt);
        if read(clock, RAW) & 1 == 0 {
            wrong(format_args!("an alarm without its cause"));
        }
        taken
    };
    if is_first {
        alarm();
        let _ = smccc::psci::system_reset::<Hvc>();
        wrong(format_args!("the reset returned"));
    }
    for _ in 0..ALARMS {
        // While the cause is there it comes again.
        interrupts::end(alarm());
        let taken = interrupts::wait_for(interrupt);
        write(clock, MASK, 0);
        write(clock, CLEAR, 1);
        interrupts::end(taken);
        let left = interrupts::take();
        if left != NONE {
            wrong(format_args!("interrupt {left} without an alarm"));
        }
    }
    println!("alarm: interrupt {interrupt}, all as it should be");
    guest_runtime::power_off()
}
