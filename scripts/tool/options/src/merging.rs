//! The options of page merging, under the names that Linux KSM has: how many CPUs merge equal pages beside the guest,
//! which memory, and at which rate.

use clap::Args;

use super::words::{Changing, MergeTarget, list};
use super::{distinct, usage};
use emulator::error::ToolError;
use emulator::qemu::MOST_CPUS;

/// The most CPUs that merge: the hypervisor's own does other work.
const MOST_SCANNERS: i64 = MOST_CPUS as i64 - 1;

/// The options of merging.
#[derive(Args, Clone, Debug)]
pub struct MergingOptions {
    /// Merge the guest's equal pages while it runs, on CPUs without a vCPU: on one, or on N with --merging=N (with the '=').
    #[arg(
        long,
        value_name = "N",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = clap::value_parser!(u32).range(1..=MOST_SCANNERS)
    )]
    pub merging: Option<u32>,

    /// The memory whose pages are merged: the benchmark's test memory, and all else that the guest has. [default: test,ram;
    /// test for --workload merge]
    #[arg(
        long,
        value_name = "MEMORY",
        value_enum,
        value_delimiter = ',',
        ignore_case = true
    )]
    pub merge_targets: Vec<MergeTarget>,

    /// How many pages each of these CPUs looks at between two pauses. [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub pages_to_scan: Option<u32>,

    /// How long each pause is, in milliseconds; 0: none. [default: 0, as a CPU of its own does it]
    #[arg(long, value_name = "MS")]
    pub sleep_millisecs: Option<u32>,

    /// How many pages may share a frame. [default: 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub max_page_sharing: Option<u32>,
}

/// How equal pages are merged, all checks passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merging {
    /// How many CPUs of their own do it beside the guest.
    pub beside: u32,
    /// The user's further options, in the hypervisor's words.
    pub words: Vec<String>,
}

impl MergingOptions {
    /// The checked options, for a `workload`, the benchmark or a `program`.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] naming the option that can't be.
    pub fn checked(&self, workload: Option<Changing>, program: bool) -> Result<Merging, ToolError> {
        distinct("--merge-targets", &self.merge_targets)?;
        let measured = workload == Some(Changing::Merge);
        if self.merging.is_some() && measured {
            return usage("--merging: --workload merge has its --workers for that");
        }
        let targets = (!self.merge_targets.is_empty()).then(|| list(&self.merge_targets));
        let number = |number: Option<u32>| number.map(|number| number.to_string());
        let said = [
            ("merge_targets", targets),
            ("pages_to_scan", number(self.pages_to_scan)),
            ("sleep_millisecs", number(self.sleep_millisecs)),
            ("max_page_sharing", number(self.max_page_sharing)),
        ];
        let said = said.into_iter();
        let said: Vec<_> = said
            .filter_map(|(key, value)| Some((key, value?)))
            .collect();
        match said.first() {
            Some((key, _)) if self.merging.is_none() && !measured => {
                let option = key.replace('_', "-");
                return usage(format!(
                    "--{option}: nothing is merged without --merging or --workload merge"
                ));
            }
            _ => {}
        }
        if program && self.merge_targets.contains(&MergeTarget::Test) {
            return usage(
                "--merge-targets test: a guest of your own has no test memory, all is ram",
            );
        }
        let words = said.iter().map(|(key, value)| format!("{key}={value}"));
        Ok(Merging {
            beside: self.merging.unwrap_or(0),
            words: words.collect(),
        })
    }
}
