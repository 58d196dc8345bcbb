//! Speculation attacks of a guest on EL2, and their mitigations at each exit. They are chosen once per CPU from its ID
//! registers, its model and firmware's answers, by plain arithmetic that is tested on the host.
//!
//! - Branch targets (CVE-2017-5715, variant 2): a guest trains the predictor for EL2's branches, or the next VM's. CPUs
//!   with FEAT_CSV2 keep contexts (exception levels and VMIDs) apart; others need firmware (SMCCC_ARCH_WORKAROUND_1).
//! - Branch history (CVE-2022-23960): CPUs with FEAT_CSV2 still let the history of a guest choose among EL2's own
//!   targets, unless they have FEAT_CSV2_3 or FEAT_ECBHB. It is cleared by CLRBHB, by a loop of as many taken branches
//!   as the CPU remembers, or by firmware (SMCCC_ARCH_WORKAROUND_3).
//! - Store bypass (CVE-2018-3639, variant 4): where the CPU has SSBS, EL2 runs with it clear, as SCTLR_EL2.DSSBS is;
//!   elsewhere firmware's mitigation, SMCCC_ARCH_WORKAROUND_2, is on from the start, and nobody switches it off.
//! - Loads across exception levels (CVE-2017-5754, variant 3) reach nothing: EL2's memory is in no table of EL1's.
//!
//! An exit's mitigation runs before any other VM is entered, so it protects VMs from each other too. Model lists and loop
//! counts: Arm, *Cache Speculation Side-channels* and *Spectre-BHB* (2022), and Linux 6.14.

use crate::cpu::features::IdRegisters;
use core::fmt;
use vm::{Protection, Protections};

/// Firmware's answer to SMCCC_ARCH_FEATURES about a workaround, on the asking CPU (Arm DEN0028, section 7).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Workaround {
    /// It isn't there, and mustn't be called.
    #[default]
    Missing,
    /// It may be called, and this CPU needs it.
    Needed,
    /// This CPU doesn't need it.
    NotNeeded,
}

/// Firmware's answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Firmware {
    /// SMCCC_ARCH_WORKAROUND_1: branch targets.
    pub branch_targets: Workaround,
    /// SMCCC_ARCH_WORKAROUND_2: store bypass.
    pub store_bypass: Workaround,
    /// SMCCC_ARCH_WORKAROUND_3: branch targets and branch history.
    pub branch_history: Workaround,
}

/// The mitigation at the start of every exit from a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnExit {
    /// Nothing is needed, or nothing would help.
    Nothing,
    /// CLRBHB.
    ClearHistory,
    /// So many taken branches.
    Loop(u8),
    /// A call of firmware, then so many taken branches.
    Firmware(u32, u8),
}

impl fmt::Display for OnExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing against speculation"),
            Self::ClearHistory => f.write_str("CLRBHB"),
            Self::Loop(loops) => write!(f, "{loops} taken branches"),
            Self::Firmware(function, 0) => write!(f, "call {function:#x} of firmware"),
            Self::Firmware(function, loops) => {
                write!(
                    f,
                    "call {function:#x} of firmware and {loops} taken branches"
                )
            }
        }
    }
}

/// The decision for a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// The mitigation.
    pub on_exit: OnExit,
    /// The protection of guests with it, and whether they may protect themselves.
    pub protections: Protections,
}

impl Decision {
    /// For a CPU with these registers and this firmware.
    pub const fn new(id: &IdRegisters, firmware: &Firmware) -> Self {
        let model = model(id.midr);
        let branch_targets = branch_targets(id, model, firmware);
        let (on_exit, branch_history) = match branch_targets {
            // History alone isn't what an attacker would take.
            Protection::Vulnerable => (OnExit::Nothing, Protection::Vulnerable),
            _ => history(id, model, firmware),
        };
        let on_exit = match (branch_targets, on_exit) {
            (Protection::Mitigated, OnExit::Firmware(..)) => on_exit,
            (Protection::Mitigated, OnExit::Loop(loops)) => {
                OnExit::Firmware(smccc::arch::SMCCC_ARCH_WORKAROUND_1, loops)
            }
            // CPUs that have CLRBHB have FEAT_CSV2.
            (Protection::Mitigated, _) => OnExit::Firmware(smccc::arch::SMCCC_ARCH_WORKAROUND_1, 0),
            _ => on_exit,
        };
        Self {
            on_exit,
            protections: Protections {
                branch_targets,
                branch_history,
                store_bypass: store_bypass(id, model, firmware),
            },
        }
    }

    /// The decision without mitigations at exits, for users who switch them off.
    #[must_use]
    pub fn without_exits(self) -> Self {
        let unmitigated = |protection| match protection {
            Protection::Mitigated => Protection::Vulnerable,
            other => other,
        };
        Self {
            on_exit: OnExit::Nothing,
            protections: Protections {
                branch_targets: unmitigated(self.protections.branch_targets),
                branch_history: unmitigated(self.protections.branch_history),
                ..self.protections
            },
        }
    }
}

/// Implementer and part number of MIDR_EL1.
const fn model(midr: u64) -> (u8, u16) {
    ((midr >> 24) as u8, (midr >> 4 & 0xfff) as u16)
}

const fn field(register: u64, low_bit: u32) -> u8 {
    (register >> low_bit & 0xf) as u8
}

/// Cores that don't speculate far enough: Cortex-A35, A53, A55, A510, A520, Brahma-B53, and Kryo's small ones.
const fn is_in_order(model: (u8, u16)) -> bool {
    matches!(
        model,
        (0x41, 0xd03..=0xd05 | 0xd46 | 0xd80) | (0x42, 0x100) | (0x51, 0x801 | 0x803 | 0x805)
    )
}

const fn branch_targets(id: &IdRegisters, model: (u8, u16), firmware: &Firmware) -> Protection {
    const TSV110: (u8, u16) = (0x48, 0xd01);
    if field(id.aa64pfr0, CSV2) != 0 || is_in_order(model) || matches!(model, TSV110) {
        return Protection::Unaffected;
    }
    match firmware.branch_targets {
        Workaround::Needed => Protection::Mitigated,
        Workaround::NotNeeded => Protection::Unaffected,
        Workaround::Missing => Protection::Vulnerable,
    }
}

/// Fields: ID_AA64PFR0_EL1.CSV2, ID_AA64MMFR1_EL1.ECBHB, ID_AA64ISAR2_EL1.CLRBHB, ID_AA64PFR1_EL1.SSBS.
const CSV2: u32 = 56;
const ECBHB: u32 = 60;
const CLRBHB: u32 = 28;
const SSBS: u32 = 4;
/// ID_AA64PFR0_EL1.CSV2 of FEAT_CSV2_3.
const CSV2_3: u8 = 3;

const fn history(id: &IdRegisters, model: (u8, u16), firmware: &Firmware) -> (OnExit, Protection) {
    let is_safe = field(id.aa64pfr0, CSV2) >= CSV2_3 || field(id.aa64mmfr1, ECBHB) != 0;
    if is_safe || is_in_order(model) {
        return (OnExit::Nothing, Protection::Unaffected);
    }
    if field(id.aa64isar2, CLRBHB) != 0 {
        return (OnExit::ClearHistory, Protection::Mitigated);
    }
    if let Some(loops) = loops(model) {
        return (OnExit::Loop(loops), Protection::Mitigated);
    }
    match firmware.branch_history {
        Workaround::Needed => (
            OnExit::Firmware(smccc::arch::SMCCC_ARCH_WORKAROUND_3, 0),
            Protection::Mitigated,
        ),
        Workaround::NotNeeded => (OnExit::Nothing, Protection::Unaffected),
        Workaround::Missing => (OnExit::Nothing, Protection::Vulnerable),
    }
}

/// How many taken branches a model remembers.
#[expect(
    clippy::manual_range_patterns,
    reason = "models have names, and their numbers no order"
)]
const fn loops(model: (u8, u16)) -> Option<u8> {
    Some(match model {
        // Cortex-X3, Neoverse V2, V3, V3AE.
        (0x41, 0xd4e | 0xd4f | 0xd83 | 0xd84) => 132,
        // Cortex-A715, A720.
        (0x41, 0xd4d | 0xd81) => 38,
        // Cortex-A78, A78AE, A78C, X1, X1C, A710, X2; Neoverse V1, N2.
        (0x41, 0xd41 | 0xd42 | 0xd4b | 0xd44 | 0xd4c | 0xd47 | 0xd48 | 0xd40 | 0xd49) => 32,
        // Cortex-A76, A76AE, A77; Neoverse N1; Kryo 4xx Gold.
        (0x41, 0xd0b | 0xd0e | 0xd0d | 0xd0c) | (0x51, 0x804) => 24,
        // Ampere-1.
        (0xc0, 0xac3) => 11,
        // Cortex-A57, A72.
        (0x41, 0xd07 | 0xd08) => 8,
        _ => return None,
    })
}

const fn store_bypass(id: &IdRegisters, model: (u8, u16), firmware: &Firmware) -> Protection {
    let own = field(id.aa64pfr1, SSBS) != 0;
    match firmware.store_bypass {
        _ if own => Protection::Own,
        _ if is_in_order(model) => Protection::Unaffected,
        Workaround::Needed => Protection::Mitigated,
        Workaround::NotNeeded => Protection::Unaffected,
        Workaround::Missing => Protection::Vulnerable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Protection::{Mitigated, Own, Unaffected, Vulnerable};
    use smccc::arch::{SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_3};

    const fn arm(part: u64, csv2: u64) -> IdRegisters {
        IdRegisters {
            midr: 0x41 << 24 | 0xf << 16 | part << 4,
            aa64pfr0: csv2 << CSV2,
            aa64pfr1: 0,
            aa64dfr0: 0,
            aa64isar0: 0,
            aa64isar1: 0,
            aa64isar2: 0,
            aa64mmfr0: 0,
            aa64mmfr1: 0,
            aa64mmfr2: 0,
            aa64mmfr3: 0,
        }
    }

    const NONE: Firmware = Firmware {
        branch_targets: Workaround::Missing,
        store_bypass: Workaround::Missing,
        branch_history: Workaround::Missing,
    };
    /// As TF-A on cores that need all of it.
    const ALL: Firmware = Firmware {
        branch_targets: Workaround::Needed,
        store_bypass: Workaround::Needed,
        branch_history: Workaround::Needed,
    };

    fn decided(id: &IdRegisters, firmware: &Firmware) -> (OnExit, [Protection; 3]) {
        let Decision {
            on_exit,
            protections,
        } = Decision::new(id, firmware);
        let Protections {
            branch_targets,
            branch_history,
            store_bypass,
        } = protections;
        (on_exit, [branch_targets, branch_history, store_bypass])
    }

    #[test]
    fn small_cores_need_nothing_whatever_firmware_says() {
        for part in [0xd03, 0xd04, 0xd05, 0xd46, 0xd80] {
            for firmware in [NONE, ALL] {
                let expected = (OnExit::Nothing, [Unaffected; 3]);
                assert_eq!(decided(&arm(part, 0), &firmware), expected, "{part:#x}");
            }
        }
    }

    #[test]
    fn a_core_that_confuses_contexts_has_its_firmware_called() {
        let a72 = arm(0xd08, 0);
        assert_eq!(
            decided(&a72, &ALL),
            (OnExit::Firmware(SMCCC_ARCH_WORKAROUND_1, 8), [Mitigated; 3])
        );
        // Nothing helps without.
        assert_eq!(decided(&a72, &NONE), (OnExit::Nothing, [Vulnerable; 3]));
        let a73 = arm(0xd09, 0);
        assert_eq!(
            decided(&a73, &ALL),
            (OnExit::Firmware(SMCCC_ARCH_WORKAROUND_3, 0), [Mitigated; 3])
        );
        let old = Firmware {
            branch_history: Workaround::Missing,
            ..ALL
        };
        assert_eq!(
            decided(&a73, &old),
            (
                OnExit::Firmware(SMCCC_ARCH_WORKAROUND_1, 0),
                [Mitigated, Vulnerable, Mitigated]
            )
        );
        let healthy = Firmware {
            branch_targets: Workaround::NotNeeded,
            store_bypass: Workaround::NotNeeded,
            branch_history: Workaround::NotNeeded,
        };
        assert_eq!(decided(&a73, &healthy), (OnExit::Nothing, [Unaffected; 3]));
    }

    #[test]
    fn cores_that_tell_contexts_apart_have_their_history_cleared() {
        for (part, loops) in [
            (0xd0c, 24),
            (0xd49, 32),
            (0xd4f, 132),
            (0xd81, 38),
            (0xd08, 8),
        ] {
            assert_eq!(
                decided(&arm(part, 1), &NONE),
                (OnExit::Loop(loops), [Unaffected, Mitigated, Vulnerable]),
                "{part:#x}"
            );
        }
        let clears = IdRegisters {
            aa64isar2: 1 << CLRBHB,
            aa64pfr1: 2 << SSBS,
            ..arm(0xd49, 2)
        };
        assert_eq!(
            decided(&clears, &ALL),
            (OnExit::ClearHistory, [Unaffected, Mitigated, Own])
        );
    }

    #[test]
    fn cores_that_keep_history_apart_need_nothing() {
        let contexts = arm(0xd0c, 3);
        let exceptions = IdRegisters {
            aa64mmfr1: 1 << ECBHB,
            ..arm(0xd0c, 1)
        };
        for id in [contexts, exceptions] {
            assert_eq!(
                decided(&id, &NONE),
                (OnExit::Nothing, [Unaffected, Unaffected, Vulnerable])
            );
        }
    }

    #[test]
    fn of_a_model_that_nobody_knows_the_worst_is_believed() {
        let unknown = IdRegisters {
            midr: 0x7f << 24 | 0x123 << 4,
            ..arm(0, 0)
        };
        assert_eq!(decided(&unknown, &NONE), (OnExit::Nothing, [Vulnerable; 3]));
        let newer = IdRegisters {
            aa64pfr0: 1 << CSV2,
            ..unknown
        };
        assert_eq!(
            decided(&newer, &NONE),
            (OnExit::Nothing, [Unaffected, Vulnerable, Vulnerable])
        );
        assert_eq!(
            decided(&newer, &ALL),
            (
                OnExit::Firmware(SMCCC_ARCH_WORKAROUND_3, 0),
                [Unaffected, Mitigated, Mitigated]
            )
        );
    }

    #[test]
    fn without_what_exits_do_guests_arent_told_that_they_are_protected() {
        let decision = Decision::new(&arm(0xd08, 0), &ALL).without_exits();
        assert_eq!(decision.on_exit, OnExit::Nothing);
        let protections = decision.protections;
        assert_eq!(protections.branch_targets, Vulnerable);
        assert_eq!(protections.branch_history, Vulnerable);
        assert_eq!(protections.store_bypass, Mitigated);
    }
}
