//! The calls that every guest may make, whatever it is run for.

use crate::guest::console::GuestConsole;
use crate::machine::Machine;
use abi::{CONSOLE_PUT, REPORT, SUCCESS};
use vm::{ServiceReply, StopReason, VcpuId};

/// Answers a byte for the console and the verdict of a test program; `None` for any other call. All vCPUs call at once.
pub fn answer<M: Machine>(
    machine: &M,
    console: &GuestConsole,
    vcpu: VcpuId,
    function: u32,
    args: [u64; 6],
) -> Option<ServiceReply> {
    match function {
        CONSOLE_PUT => {
            console.put(args[0] as u8, |line| machine.write_line(line));
            Some(ServiceReply::Return([SUCCESS, 0, 0, 0]))
        }
        REPORT => Some(ServiceReply::Stop(StopReason::Reported {
            vcpu,
            code: args[0],
            details: [args[1], args[2]],
        })),
        _ => None,
    }
}
