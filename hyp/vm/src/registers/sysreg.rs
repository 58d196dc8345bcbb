//! System registers that trap to EL2, and their emulation.
//!
//! There are six groups: the ID registers, filtered (`id`); the GIC's, where the VM has one; the debug registers and those of the
//! performance monitors, where it offers them (`debug`, `pmu`); registers that may be accessed without effect (debug registers elsewhere, ACTLR_EL1, set/way maintenance); and
//! all others, which are undefined. Pure functions.

use core::fmt;

use vgic::SgiRegister;

use crate::registers::offer::Offer;

/// A system register or instruction by its encoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemRegister(u16);

/// The direction of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// MRS.
    Read,
    /// MSR, or a system instruction.
    Write,
}

impl SystemRegister {
    /// The register with these fields of the instruction; bits beyond a field's width are dropped.
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        let (op0, op1, crn, crm, op2) = (
            op0 as u16 & 3,
            op1 as u16 & 7,
            crn as u16 & 15,
            crm as u16 & 15,
            op2 as u16 & 7,
        );
        Self(op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2)
    }

    /// op0, op1, CRn, CRm, op2.
    pub const fn fields(self) -> (u8, u8, u8, u8, u8) {
        let bits = self.0;
        (
            (bits >> 14) as u8,
            (bits >> 11) as u8 & 7,
            (bits >> 7) as u8 & 15,
            (bits >> 3) as u8 & 15,
            bits as u8 & 7,
        )
    }

    /// Whether the register lies in the space of ID registers that HCR_EL2.TID3 traps.
    pub const fn is_id(self) -> bool {
        matches!(self.fields(), (3, 0, 0, 1..=7, _))
    }
}

impl fmt::Debug for SystemRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (op0, op1, crn, crm, op2) = self.fields();
        write!(f, "S{op0}_{op1}_C{crn}_C{crm}_{op2}")
    }
}

/// The emulation of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulation {
    /// A read returns the CPU's own register, filtered.
    Id,
    /// Reads give this value, writes have no effect.
    Fixed(u64),
    /// A write sends a software-generated interrupt.
    SendSgi(SgiRegister),
    /// A write deactivates an interrupt of the guest.
    Deactivate,
    /// It is one of the vCPU's debug registers, if the CPU has so many.
    Debug,
    /// It is one of the vCPU's performance monitors', if the CPU has it.
    Pmu,
    /// The guest takes an undefined instruction.
    Undefined,
}

/// ICC_SRE_EL1 of a GIC without the older memory-mapped interface: SRE, DFB and DIB, which can't be cleared.
const ICC_SRE: u64 = 0b111;

/// The numbers of breakpoints and watchpoints in the ID registers, the least that the architecture allows (they do nothing).
pub const DEBUG_POINTS: u8 = 2;

/// The emulation of a trapped access to `register` by the guest of a VM that offers this.
pub const fn emulate(register: SystemRegister, direction: Direction, offer: &Offer) -> Emulation {
    let gic = offer.gic_registers;
    let ignored = Emulation::Fixed(0);
    match (register.fields(), direction) {
        ((3, 0, 0, 1..=7, _), Direction::Read) => Emulation::Id,
        // ICC_SRE_EL1.
        ((3, 0, 12, 12, 5), _) if gic => Emulation::Fixed(ICC_SRE),
        // ICC_DIR_EL1, which traps where the GIC wants it.
        ((3, 0, 12, 11, 1), Direction::Write) if gic => Emulation::Deactivate,
        // ICC_SGI1R_EL1, ICC_ASGI1R_EL1, ICC_SGI0R_EL1.
        ((3, 0, 12, 11, 5), Direction::Write) if gic => Emulation::SendSgi(SgiRegister::Sgi1),
        ((3, 0, 12, 11, 6), Direction::Write) if gic => Emulation::SendSgi(SgiRegister::Asgi1),
        ((3, 0, 12, 11, 7), Direction::Write) if gic => Emulation::SendSgi(SgiRegister::Sgi0),
        // MDSCR_EL1, DBGBVR, DBGBCR, DBGWVR, DBGWCR, OSLAR_EL1, OSLSR_EL1, DBGCLAIMSET_EL1, DBGCLAIMCLR_EL1.
        ((2, 0, 0, 2, 2) | (2, 0, 0, _, 4..=7) | (2, 0, 1, 0 | 1, 4) | (2, 0, 7, 8 | 9, 6), _)
            if offer.debug =>
        {
            Emulation::Debug
        }
        _ if offer.pmu && is_of_pmu(register) => Emulation::Pmu,
        // ACTLR_EL1.
        ((3, 0, 1, 0, 1), _) => ignored,
        // DC ISW, CSW, CISW. Guest memory is coherent; nobody may clean a machine's caches by set and way.
        ((1, 0, 7, 6 | 10 | 14, 2), Direction::Write) => ignored,
        // MDCCINT_EL1, MDSCR_EL1, OSDTRRX_EL1, OSDTRTX_EL1, OSECCR_EL1.
        ((2, 0, 0, 0 | 2 | 3, 2) | (2, 0, 0, 2, 0) | (2, 0, 0, 6, 2), _) => ignored,
        // DBGBVR, DBGBCR, DBGWVR, DBGWCR.
        ((2, 0, 0, point, 4..=7), _) if point < DEBUG_POINTS => ignored,
        // MDRAR_EL1, OSLSR_EL1, DBGAUTHSTATUS_EL1, MDCCSR_EL0.
        ((2, 0, 1, 0, 0) | (2, 0, 7, 14, 6) | (2, 3, 0, 1, 0), Direction::Read) => ignored,
        // The OS lock is implemented (OSLM = 0b10) and never locked.
        ((2, 0, 1, 1, 4), Direction::Read) => Emulation::Fixed(1 << 3),
        // OSLAR_EL1.
        ((2, 0, 1, 0, 4), Direction::Write) => ignored,
        // OSDLR_EL1, DBGPRCR_EL1, DBGCLAIMSET_EL1, DBGCLAIMCLR_EL1.
        ((2, 0, 1, 3 | 4, 4) | (2, 0, 7, 8 | 9, 6), _) => ignored,
        _ => Emulation::Undefined,
    }
}

/// The registers of PMUv3, as MDCR_EL2.TPM traps them: PMCR_EL0 to PMCEID1_EL0, PMCCNTR_EL0, PMXEVTYPER_EL0,
/// PMXEVCNTR_EL0, PMUSERENR_EL0, PMOVSSET_EL0; PMEVCNTR, PMEVTYPER, PMCCFILTR_EL0; PMINTENSET_EL1, PMINTENCLR_EL1, PMMIR_EL1.
const fn is_of_pmu(register: SystemRegister) -> bool {
    matches!(
        register.fields(),
        (3, 3, 9, 12, _)
            | (3, 3, 9, 13, 0..=2)
            | (3, 3, 9, 14, 0 | 3)
            | (3, 3, 14, 8..=15, _)
            | (3, 0, 9, 14, 1 | 2 | 6)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WITHOUT_GIC: Offer = Offer {
        ipa_bits: 40,
        gic_registers: false,
        debug: false,
        sve: false,
        pmu: false,
    };
    const WITH_GIC: Offer = Offer {
        gic_registers: true,
        ..WITHOUT_GIC
    };

    fn emulated(register: SystemRegister, direction: Direction) -> Emulation {
        emulate(register, direction, &WITHOUT_GIC)
    }

    /// As in the Arm GIC specification, 12.2: what traps while a list register's interrupts don't.
    #[test]
    fn the_gics_registers_are_there_where_the_vm_has_them() {
        let register = |crm, op2| SystemRegister::new(3, 0, 12, crm, op2);
        let sre = register(12, 5);
        for direction in [Direction::Read, Direction::Write] {
            assert_eq!(emulate(sre, direction, &WITH_GIC), Emulation::Fixed(7));
            assert_eq!(emulated(sre, direction), Emulation::Undefined);
        }
        for (op2, sgi) in [
            (5, SgiRegister::Sgi1),
            (6, SgiRegister::Asgi1),
            (7, SgiRegister::Sgi0),
        ] {
            let sends = register(11, op2);
            let write = emulate(sends, Direction::Write, &WITH_GIC);
            assert_eq!(write, Emulation::SendSgi(sgi));
            let read = emulate(sends, Direction::Read, &WITH_GIC);
            assert_eq!(read, Emulation::Undefined);
            assert_eq!(emulated(sends, Direction::Write), Emulation::Undefined);
        }
    }

    /// Arm ARM D24.5: all that MDCR_EL2.TPM traps.
    #[test]
    fn the_performance_monitors_are_there_where_the_vm_offers_them() {
        let offer = Offer {
            pmu: true,
            ..WITHOUT_GIC
        };
        let mut found = 0;
        for bits in 0..=u16::MAX {
            let register = SystemRegister(bits);
            for direction in [Direction::Read, Direction::Write] {
                let offered = emulate(register, direction, &offer);
                match offered {
                    Emulation::Pmu => {
                        assert_eq!(emulated(register, direction), Emulation::Undefined);
                        found += 1;
                    }
                    _ => assert_eq!(emulated(register, direction), offered, "{register:?}"),
                }
            }
        }
        // 31 event counters with their types, PMCCFILTR_EL0 and one that isn't there; and 16 others.
        assert_eq!(found, 2 * (64 + 16));
    }

    #[test]
    fn an_encoding_keeps_its_fields() {
        assert_eq!(
            SystemRegister::new(3, 7, 15, 14, 6).fields(),
            (3, 7, 15, 14, 6)
        );
        assert_eq!(
            SystemRegister::new(3, 0, 0, 4, 0),
            SystemRegister::new(7, 8, 16, 20, 8)
        );
    }

    #[test]
    fn id_registers_can_be_read_only() {
        let id = SystemRegister::new(3, 0, 0, 4, 0);
        assert!(id.is_id());
        assert_eq!(emulated(id, Direction::Read), Emulation::Id);
        assert_eq!(emulated(id, Direction::Write), Emulation::Undefined);
        assert!(!SystemRegister::new(3, 0, 0, 0, 0).is_id());
    }

    #[test]
    fn what_a_guest_is_not_offered_is_undefined() {
        let hidden = [
            (3, 3, 9, 12, 0),  // PMCR_EL0
            (3, 0, 12, 12, 5), // ICC_SRE_EL1
            (3, 0, 1, 2, 0),   // ZCR_EL1
            (3, 3, 14, 2, 1),  // CNTP_CTL_EL0
            (3, 0, 10, 4, 0),  // LORSA_EL1
            (3, 0, 5, 3, 0),   // ERRIDR_EL1
            (3, 0, 15, 0, 0),  // implementation defined
            (3, 4, 1, 1, 0),   // HCR_EL2
            (1, 0, 7, 6, 4),   // DC IGSW
            (2, 0, 0, 2, 5),   // DBGBCR2_EL1
        ];
        for (op0, op1, crn, crm, op2) in hidden {
            let register = SystemRegister::new(op0, op1, crn, crm, op2);
            assert_eq!(
                emulated(register, Direction::Read),
                Emulation::Undefined,
                "{register:?}"
            );
            assert_eq!(
                emulated(register, Direction::Write),
                Emulation::Undefined,
                "{register:?}"
            );
        }
    }

    #[test]
    fn what_an_operating_system_touches_early_does_no_harm() {
        let mdscr = SystemRegister::new(2, 0, 0, 2, 2);
        let oslar = SystemRegister::new(2, 0, 1, 0, 4);
        let dc_cisw = SystemRegister::new(1, 0, 7, 14, 2);
        assert_eq!(emulated(mdscr, Direction::Write), Emulation::Fixed(0));
        assert_eq!(emulated(oslar, Direction::Write), Emulation::Fixed(0));
        assert_eq!(emulated(dc_cisw, Direction::Write), Emulation::Fixed(0));
    }

    proptest! {
        #[test]
        fn any_encoding_is_decided(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8, gic_registers: bool, debug: bool) {
            let register = SystemRegister::new(op0, op1, crn, crm, op2);
            let offer = Offer { gic_registers, debug, ..WITHOUT_GIC };
            let read = emulate(register, Direction::Read, &offer);
            prop_assert!(!matches!(read, Emulation::SendSgi(_)));
            prop_assert_ne!(emulate(register, Direction::Write, &offer), Emulation::Id);
            let is_debug = read == Emulation::Debug;
            prop_assert!(!is_debug || debug && register.fields().0 == 2);
        }
    }
}
