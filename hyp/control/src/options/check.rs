//! Checks the options against each other.

use super::{OptionError, Options, merging};
use records::words::{Clear, Enable, Harvest, MergeTarget, Tracking};
use stage2::PAGE_SIZE;

impl Options {
    pub(super) fn check<'t>(
        &self,
        is_given: impl Fn(&str) -> bool,
        has_vms: bool,
    ) -> Result<(), OptionError<'t>> {
        self.check_guest(&is_given, has_vms)?;
        self.check_merging(&is_given)?;
        self.check_policies()?;
        if !self.bytes.0.is_multiple_of(PAGE_SIZE) || self.bytes.0 == 0 {
            return Err(OptionError::NotWholePages(self.bytes));
        }
        let (vcpus, bytes) = (self.vcpus, self.bytes);
        let end = self
            .memory_end()
            .ok_or(OptionError::TooMuchMemory { vcpus, bytes })?;
        match self.ipa_bits {
            Some(bits) if end > 1 << bits => {
                Err(OptionError::BeyondIpaSpace { vcpus, bytes, bits })
            }
            _ => self.check_slots(),
        }
    }

    /// Merging options require that something is merged.
    fn check_merging<'t>(&self, is_given: impl Fn(&str) -> bool) -> Result<(), OptionError<'t>> {
        let foreign = merging::KEYS.into_iter().find(|key| is_given(key));
        match foreign {
            _ if self.merges_beside() && self.measures_merging() => Err(OptionError::MergingTwice),
            Some(key) if !self.merges_beside() && !self.measures_merging() => {
                Err(OptionError::NotMerging(key))
            }
            _ if self.guest.is_foreign() && self.merge.targets.contains(&MergeTarget::Test) => {
                Err(OptionError::NoTestMemory(self.guest.name()))
            }
            _ => Ok(()),
        }
    }

    /// Rejects combinations with rings.
    fn check_policies<'t>(&self) -> Result<(), OptionError<'t>> {
        let ring = self.harvest == Harvest::Ring;
        let contradictions = [
            (
                self.trackings.contains(&Tracking::Hardware),
                "tracking=hardware",
                "without a fault nothing enters a ring",
            ),
            (
                self.enable == Enable::AllSet,
                "enable=all_set",
                "a ring doesn't hold all pages",
            ),
            (
                self.clear == Clear::WithGet,
                "clear=with_get",
                "what is taken out of a ring is clear",
            ),
        ];
        if let Some((_, with, why)) = contradictions
            .into_iter()
            .find(|(is_so, ..)| ring && *is_so)
        {
            return Err(OptionError::NotWithRing { with, why });
        }
        Ok(())
    }

    fn check_slots<'t>(&self) -> Result<(), OptionError<'t>> {
        let pieces = self.test_bytes().unwrap_or(u64::MAX) / self.backing.bytes();
        if self.slots as u64 > pieces {
            return Err(OptionError::TooManySlots {
                slots: self.slots,
                pieces,
                piece: self.backing.name(),
            });
        }
        Ok(())
    }
}
