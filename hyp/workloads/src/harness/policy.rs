//! One run out of all that the options list, and the log policy for it.

use control::options::Options;
use core::fmt;
use memory::{Ahead, LogPolicy, Splitting};
use records::words::{Enable, Granularity, Harvest, Mode, Split, Tracking};
use stage2::PAGE_SIZE;

/// One run's choice from the lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The mode.
    pub mode: Mode,
    /// The handling of blocks.
    pub split: Split,
    /// The way to notice writes.
    pub tracking: Tracking,
}

/// The runs of a boot, in their order.
pub fn choices(options: &Options) -> impl Iterator<Item = Choice> + '_ {
    let Options {
        modes,
        splits,
        trackings,
        ..
    } = options;
    modes.iter().flat_map(move |&mode| {
        splits.iter().flat_map(move |&split| {
            trackings.iter().map(move |&tracking| Choice {
                mode,
                split,
                tracking,
            })
        })
    })
}

impl Choice {
    /// The log policy of this run.
    pub fn policy(&self, options: &Options) -> LogPolicy {
        let ahead = Ahead {
            chunk: options.split_chunk.0,
            reserve: options.split_reserve.0 / PAGE_SIZE,
        };
        LogPolicy {
            tracking: match self.tracking {
                Tracking::WriteProtect => memory::Tracking::WriteProtect,
                Tracking::Hardware => memory::Tracking::Hardware,
            },
            splitting: match self.split {
                Split::None => Splitting::None,
                Split::Fault => Splitting::AtFault,
                Split::Eager => Splitting::Eager(ahead),
            },
            granularity: match options.granularity {
                Granularity::Page4K => memory::Granularity::Page,
                Granularity::Block2M => memory::Granularity::Block2M,
            },
            initially_set: options.enable == Enable::AllSet,
            ring: options.harvest == Harvest::Ring,
        }
    }
}

/// A log policy in the options' words.
pub struct Words<'p>(pub &'p LogPolicy);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = self.0;
        let split = match policy.splitting {
            Splitting::None => Split::None,
            Splitting::AtFault => Split::Fault,
            Splitting::Eager(_) => Split::Eager,
        };
        let tracking = match policy.tracking {
            memory::Tracking::WriteProtect => Tracking::WriteProtect,
            memory::Tracking::Hardware => Tracking::Hardware,
        };
        let granularity = match policy.granularity {
            memory::Granularity::Page => Granularity::Page4K,
            memory::Granularity::Block2M => Granularity::Block2M,
        };
        let enable = match policy.initially_set {
            true => Enable::AllSet,
            false => Enable::Protect,
        };
        let harvest = match policy.ring {
            true => Harvest::Ring,
            false => Harvest::Bitmap,
        };
        write!(
            f,
            "split={} tracking={} granularity={} enable={} harvest={}",
            split.name(),
            tracking.name(),
            granularity.name(),
            enable.name(),
            harvest.name()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    #[test]
    fn runs_are_the_product_of_the_lists_the_first_of_them_slowest() {
        let options =
            Options::parse("mode=mutex,parallel split=none,eager tracking=hardware,writeprotect")
                .unwrap();
        let names: Vec<_> = choices(&options)
            .map(|choice| {
                [
                    choice.mode.name(),
                    choice.split.name(),
                    choice.tracking.name(),
                ]
            })
            .collect();
        assert_eq!(names.len(), 8);
        assert_eq!(names[1], ["mutex", "none", "writeprotect"]);
        assert_eq!(names[2], ["mutex", "eager", "hardware"]);
        assert_eq!(names[4], ["parallel", "none", "hardware"]);
    }

    #[test]
    fn a_policy_is_said_in_the_words_that_make_it() {
        for options in [
            "split=eager tracking=hardware granularity=2M enable=all_set harvest=bitmap",
            "split=none tracking=writeprotect granularity=4K enable=protect harvest=ring",
            "split=fault tracking=writeprotect granularity=4K enable=protect harvest=bitmap",
        ] {
            let parsed = Options::parse(options).unwrap();
            let policy = choices(&parsed).next().unwrap().policy(&parsed);
            assert_eq!(Words(&policy).to_string(), options);
        }
    }
}
