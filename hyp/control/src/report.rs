//! Prints a report of each guest, for people.

use crate::guest::FinalState;
use crate::guest::counters::Listed;
use crate::machine::Machine;
use memory::VmId;
use records::record::CounterMap;

/// Prints the statistics of background merging, if there was any.
pub fn merged<M: Machine>(machine: &M, merged: &CounterMap) {
    if !merged.is_empty() {
        machine.write_line(format_args!("merging {}", Listed(merged)));
    }
}

/// The counter dump at the end of a run.
pub fn final_state<M: Machine>(machine: &M, vm: VmId, state: &FinalState) {
    machine.write_line(format_args!("{}", Listed(&state.counters)));
    machine.write_line(format_args!("{vm} after its end: {}", state.frames));
    machine.write_line(format_args!("{}", state.machine_frames));
}
