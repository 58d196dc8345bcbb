//! The architecture features that a VM's stage-2 tables use, as text for people.

use core::fmt;
use stage2::{Bbm, Features};

/// The architecture features that a VM's tables use, as text for people.
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
