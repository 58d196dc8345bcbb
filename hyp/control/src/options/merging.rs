//! Options of page merging: how many CPUs do it, its rate, and which pages it covers. Named as in Linux KSM where that has the
//! same option.

use super::OptionError;
use super::value;
use memory::MergePolicy;
use records::options::{MergeOptions, SCANNERS};

/// The names of these options.
pub(super) const KEYS: [&str; 4] = [
    "merge_targets",
    "pages_to_scan",
    "sleep_millisecs",
    "max_page_sharing",
];
/// The largest number: KSM's numbers have 32 bits.
const MOST: u64 = u32::MAX as u64;

/// The most CPUs that merge, far more than any machine has.
const MOST_SCANNERS: u64 = u16::MAX as u64;

/// How many CPUs merge: one if the word stands alone.
pub(super) fn scanners<'t>(
    key: &'static str,
    text: Option<&'t str>,
) -> Result<usize, OptionError<'t>> {
    let number = |text| value::number(key, text, 1, MOST_SCANNERS, SCANNERS);
    text.map_or(Ok(1), |text| number(text).map(|number| number as usize))
}

/// Sets one of [`KEYS`].
pub(super) fn set<'t>(
    options: &mut MergeOptions,
    key: &'static str,
    text: &'t str,
) -> Result<(), OptionError<'t>> {
    let number = |least, expected| value::number(key, text, least, MOST, expected);
    match key {
        "merge_targets" => options.targets = value::words(key, text)?,
        "pages_to_scan" => options.pages_to_scan = number(1, "a number from 1 to 4294967295")?,
        "sleep_millisecs" => {
            options.sleep_millisecs = number(0, "milliseconds, from 0 to 4294967295")?
        }
        "max_page_sharing" => {
            options.max_page_sharing = number(2, "a number from 2 to 4294967295")?
        }
        _ => return Err(OptionError::Unknown(key)),
    }
    Ok(())
}

/// The merge policy from these options, for so many CPUs.
pub fn merge_policy(options: &MergeOptions, scanners: usize) -> MergePolicy {
    MergePolicy {
        scanners,
        pages_to_scan: options.pages_to_scan,
        max_page_sharing: options.max_page_sharing,
        ..MergePolicy::default()
    }
}
