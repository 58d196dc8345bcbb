//! A device that the guest is given to itself: a real-time clock, PL031 (Arm DDI 0224), which it reads without an exit.

use crate::wrong;
use guest_runtime::{Tree, println};

/// RTCDR: the seconds.
const DATA: u64 = 0;
/// RTCPeriphID0, whose low byte is that of the part number.
const PERIPHERAL_ID: u64 = 0xfe0;
const PART: u32 = 0x31;
/// More reads than there are in a second or two.
const MOST_READS: u64 = 1 << 32;

/// Reads the clock until it ticks.
pub fn probe(tree: Tree) {
    let Some(registers) = tree.registers("arm,pl031") else {
        wrong(format_args!("the device tree has no clock"));
    };
    // SAFETY: the clock's registers lie there, and reading these changes nothing.
    let read = |offset| unsafe { ((registers + offset) as *const u32).read_volatile() };
    let part = read(PERIPHERAL_ID);
    if part != PART {
        wrong(format_args!("the clock's part number ends in {part:#x}"));
    }
    let first = read(DATA);
    let Some(reads) = (0..MOST_READS).find(|_| read(DATA) != first) else {
        wrong(format_args!("the clock stands still at {first}"));
    };
    println!("the clock ticked after {reads} reads");
}
