//! How equal pages are merged: at which rate, and which of them. The names are those of Linux KSM, where that has one.

use super::OptionError;
use super::value::{self, MergeTarget};
use alloc::string::String;
use alloc::vec::Vec;
use memory::MergePolicy;

/// What these options are called.
pub(super) const KEYS: [&str; 4] = [
    "merge_targets",
    "pages_to_scan",
    "sleep_millisecs",
    "max_page_sharing",
];
/// KSM's numbers have as many bits.
const MOST: u64 = u32::MAX as u64;

/// How equal pages are merged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MergeOptions {
    /// The memory whose pages are merged.
    pub targets: Vec<MergeTarget>,
    /// How many pages are looked at between two pauses.
    pub pages_to_scan: u64,
    /// How long a pause is, in milliseconds; 0 for none.
    pub sleep_millisecs: u64,
    /// How many pages may share a frame.
    pub max_page_sharing: u64,
}

impl Default for MergeOptions {
    fn default() -> Self {
        let policy = MergePolicy::default();
        Self {
            targets: [MergeTarget::Test, MergeTarget::Ram].into(),
            pages_to_scan: policy.pages_to_scan,
            sleep_millisecs: 0,
            max_page_sharing: policy.max_page_sharing,
        }
    }
}

impl MergeOptions {
    /// Sets one of [`KEYS`].
    pub(super) fn set<'t>(
        &mut self,
        key: &'static str,
        text: &'t str,
    ) -> Result<(), OptionError<'t>> {
        let number = |least, expected| value::number(key, text, least, MOST, expected);
        match key {
            "merge_targets" => self.targets = value::words(key, text)?,
            "pages_to_scan" => self.pages_to_scan = number(1, "a number from 1 to 4294967295")?,
            "sleep_millisecs" => {
                self.sleep_millisecs = number(0, "milliseconds, from 0 to 4294967295")?
            }
            "max_page_sharing" => {
                self.max_page_sharing = number(2, "a number from 2 to 4294967295")?
            }
            _ => return Err(OptionError::Unknown(key)),
        }
        Ok(())
    }

    /// The memory whose pages are merged, in words.
    pub fn target_names(&self) -> String {
        let names: Vec<&str> = self.targets.iter().map(|target| target.name()).collect();
        names.join(",")
    }

    /// What this says of it to the memory.
    pub fn policy(&self) -> MergePolicy {
        MergePolicy {
            pages_to_scan: self.pages_to_scan,
            max_page_sharing: self.max_page_sharing,
            ..MergePolicy::default()
        }
    }
}
