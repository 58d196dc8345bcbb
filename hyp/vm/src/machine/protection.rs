//! Reports to guests how they are protected from speculation: SMCCC_ARCH_FEATURES for the firmware workarounds (Arm DEN0028,
//! section 7), with this hypervisor as the guest's firmware.

use smccc::arch::{SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_2, SMCCC_ARCH_WORKAROUND_3};

/// How a guest is protected from one vulnerability, from the best to the worst.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Protection {
    /// The CPU doesn't have it.
    #[default]
    Unaffected,
    /// The guest can protect itself.
    Own,
    /// By a mitigation at each exit, or one that is always on.
    Mitigated,
    /// Not at all.
    Vulnerable,
}

/// How guests are protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Protections {
    /// Against branch targets chosen by others (CVE-2017-5715).
    pub branch_targets: Protection,
    /// Against branch targets selected by others through history (CVE-2022-23960).
    pub branch_history: Protection,
    /// Against loads of overwritten values (CVE-2018-3639).
    pub store_bypass: Protection,
}

/// The answers about a workaround: the caller needs it; doesn't; nobody does, and it mustn't be called; there is none.
const NEEDED: u64 = 0;
const NOT_NEEDED: u64 = 1;
const NOT_REQUIRED: u64 = -2i64 as u64;

impl Protections {
    /// The worse of each.
    #[must_use]
    pub const fn worst(self, other: Self) -> Self {
        Self {
            branch_targets: worse(self.branch_targets, other.branch_targets),
            branch_history: worse(self.branch_history, other.branch_history),
            store_bypass: worse(self.store_bypass, other.store_bypass),
        }
    }

    /// The answer of SMCCC_ARCH_FEATURES for `function`.
    pub(crate) const fn feature(&self, function: u32) -> u64 {
        let both = worse(self.branch_targets, self.branch_history);
        match (function, self.branch_targets, self.store_bypass, both) {
            (SMCCC_ARCH_WORKAROUND_1, protection, _, _)
            | (SMCCC_ARCH_WORKAROUND_3, _, _, protection) => match protection {
                Protection::Unaffected => NOT_NEEDED,
                Protection::Mitigated => NEEDED,
                Protection::Own | Protection::Vulnerable => abi::NOT_SUPPORTED,
            },
            (SMCCC_ARCH_WORKAROUND_2, _, Protection::Unaffected | Protection::Mitigated, _) => {
                NOT_REQUIRED
            }
            _ => abi::NOT_SUPPORTED,
        }
    }

    /// The result of calling `function`, a workaround for branches: the exit for the call has already done it.
    pub(crate) const fn call(&self, function: u32) -> u64 {
        match self.feature(function) {
            NEEDED | NOT_NEEDED => abi::SUCCESS,
            _ => abi::NOT_SUPPORTED,
        }
    }
}

const fn worse(one: Protection, other: Protection) -> Protection {
    if one as u8 > other as u8 { one } else { other }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Protection::{Mitigated, Own, Unaffected, Vulnerable};
    use abi::{NOT_SUPPORTED, SUCCESS};

    fn answers(branch_targets: Protection, branch_history: Protection) -> [u64; 4] {
        let protections = Protections {
            branch_targets,
            branch_history,
            store_bypass: Unaffected,
        };
        let functions = [SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_3];
        let [first, third] = functions.map(|function| protections.feature(function));
        let [call, other] = functions.map(|function| protections.call(function));
        [first, third, call, other]
    }

    #[test]
    fn a_guest_is_told_what_it_needs_and_what_it_may_call() {
        let (yes, no, none) = (NEEDED, NOT_NEEDED, NOT_SUPPORTED);
        assert_eq!(answers(Unaffected, Unaffected), [no, no, SUCCESS, SUCCESS]);
        assert_eq!(answers(Mitigated, Mitigated), [yes, yes, SUCCESS, SUCCESS]);
        assert_eq!(answers(Unaffected, Mitigated), [no, yes, SUCCESS, SUCCESS]);
        assert_eq!(answers(Mitigated, Vulnerable), [yes, none, SUCCESS, none]);
        assert_eq!(answers(Vulnerable, Vulnerable), [none; 4]);
    }

    #[test]
    fn store_bypass_is_never_the_guests_to_call_for() {
        for (store_bypass, answer) in [
            (Unaffected, NOT_REQUIRED),
            (Mitigated, NOT_REQUIRED),
            (Own, NOT_SUPPORTED),
            (Vulnerable, NOT_SUPPORTED),
        ] {
            let protections = Protections {
                store_bypass,
                ..Protections::default()
            };
            assert_eq!(protections.feature(SMCCC_ARCH_WORKAROUND_2), answer);
            assert_eq!(protections.call(SMCCC_ARCH_WORKAROUND_2), NOT_SUPPORTED);
        }
    }

    #[test]
    fn of_several_cpus_the_worst_is_told_of() {
        let good = Protections::default();
        let bad = Protections {
            branch_history: Vulnerable,
            store_bypass: Own,
            ..good
        };
        assert_eq!(good.worst(bad), bad);
        assert_eq!(bad.worst(good), bad);
    }
}
