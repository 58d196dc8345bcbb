//! What is printed of every guest, for people.

use crate::guest::FinalState;
use crate::guest::counters::Listed;
use crate::machine::Machine;
use core::fmt;
use memory::VmId;
use records::record::CounterMap;
use stage2::{Bbm, Features};

/// What merging beside a guest came to, if there was some.
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

/// What of the architecture a VM's tables use, for people.
pub struct Stage2Use<'f>(pub &'f Features);

impl fmt::Display for Stage2Use<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let features = self.0;
        let kib = 1u32 << (features.granule.page_shift() - 10);
        write!(f, "{}-bit IPA, {kib}K pages", features.ipa_bits)?;
        let used = [
            (features.lpa2, "LPA2"),
            (features.fwb, "FWB"),
            (features.xnx, "XNX"),
            (features.hardware_access, "hardware access flag"),
            (features.hardware_dirty, "hardware dirty state"),
            (features.contiguous, "contiguous groups"),
            (features.bbm == Bbm::Level1, "BBM level 1"),
            (features.bbm == Bbm::Level2, "BBM level 2"),
        ];
        for (_, name) in used.iter().filter(|(used, _)| *used) {
            write!(f, ", {name}")?;
        }
        Ok(())
    }
}
