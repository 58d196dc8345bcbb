//! Exception syndromes: decodes ESR_EL2, and builds ESR_EL1 for exceptions that a guest is made to take (Arm ARM D24.2.40).
//!
//! The values come from a guest's instructions: any of them is possible, and none may do more harm than a wrong guess. Pure
//! functions that decode any 64 bits.

use devices::Width;
use memory::{Access, FaultKind};

use crate::registers::sysreg::{Direction, SystemRegister};

/// What a synchronous exit leaves in the syndrome registers, until the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syndrome {
    /// ESR_EL2.
    pub esr: u64,
    /// FAR_EL2; valid for aborts.
    pub far: u64,
}

impl Syndrome {
    /// There was no such exit. (No exit has this syndrome: that of an unknown reason says the instruction's length, Arm ARM
    /// D24.2.40.)
    pub const NONE: Self = Self { esr: 0, far: 0 };
}

const IL: u64 = 1 << 25;
const CLASS_SHIFT: u32 = 26;
const CLASS_MASK: u64 = 0x3f;

const CLASS_UNKNOWN: u64 = 0x00;
const CLASS_WF: u64 = 0x01;
const CLASS_HVC64: u64 = 0x16;
const CLASS_SMC64: u64 = 0x17;
const CLASS_SYSTEM: u64 = 0x18;
const CLASS_SVE: u64 = 0x19;
const CLASS_INSTRUCTION_ABORT: u64 = 0x20;
const CLASS_INSTRUCTION_ABORT_SAME: u64 = 0x21;
const CLASS_DATA_ABORT: u64 = 0x24;
const CLASS_DATA_ABORT_SAME: u64 = 0x25;

const ISS_WNR: u32 = 1 << 6;
const ISS_S1PTW: u32 = 1 << 7;
const ISS_CM: u32 = 1 << 8;
const FSC_MASK: u32 = 0x3f;
const FSC_EXTERNAL: u64 = 0x10;

/// In an SError's syndrome (Arm ARM D24.2.40): whether its format is implementation-defined, and the value with which AET is
/// valid.
const SERROR_IDS: u64 = 1 << 24;
const SERROR_FSC_ASYNCHRONOUS: u64 = 0x11;
const SERROR_AET_SHIFT: u32 = 10;
const SERROR_AET_RESTARTABLE: u64 = 0b010;
const SERROR_AET_CORRECTED: u64 = 0b110;

/// The cause of a synchronous exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A load, store or cache operation aborted.
    DataAbort(Abort),
    /// An instruction fetch aborted.
    InstructionAbort(Abort),
    /// HVC; the program counter is past it.
    Hypercall {
        /// The instruction's immediate.
        immediate: u16,
    },
    /// SMC, trapped; the program counter is at it.
    SecureCall {
        /// The instruction's immediate.
        immediate: u16,
    },
    /// MSR, MRS or a system instruction, trapped.
    SystemRegister(SystemAccess),
    /// WFI or WFE, with or without a timeout.
    Wait(Wait),
    /// An instruction of SVE, or an access to its registers.
    Sve,
    /// Anything else: of no meaning to Parvisor's guests, and so undefined.
    Other,
}

impl Cause {
    /// Decodes ESR_EL2.
    #[inline]
    pub fn decode(esr: u64) -> Self {
        let iss = esr as u32 & 0x1ff_ffff;
        match esr >> CLASS_SHIFT & CLASS_MASK {
            CLASS_DATA_ABORT => Self::DataAbort(Abort(iss)),
            CLASS_INSTRUCTION_ABORT => Self::InstructionAbort(Abort(iss)),
            CLASS_HVC64 => Self::Hypercall {
                immediate: iss as u16,
            },
            CLASS_SMC64 => Self::SecureCall {
                immediate: iss as u16,
            },
            CLASS_SYSTEM => Self::SystemRegister(SystemAccess::decode(iss)),
            CLASS_WF => Self::Wait(Wait(iss)),
            CLASS_SVE => Self::Sve,
            _ => Self::Other,
        }
    }
}

/// The instruction-specific syndrome of a WFI or WFE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait(u32);

impl Wait {
    /// The general register with the timeout: a value of the virtual counter.
    pub const fn timeout(self) -> Option<u8> {
        const HAS_TIMEOUT: u32 = 1 << 1;
        const REGISTER_VALID: u32 = 1 << 2;
        if self.0 & (HAS_TIMEOUT | REGISTER_VALID) == HAS_TIMEOUT | REGISTER_VALID {
            Some((self.0 >> 5 & 0x1f) as u8)
        } else {
            None
        }
    }
}

/// The instruction-specific syndrome of an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort(u32);

/// The kind of an abort, by its fault status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortKind {
    /// A stage-2 fault.
    Stage2(FaultKind),
    /// The IPA lies beyond the VM's address space.
    AddressSize,
    /// The TLB held two entries for one address.
    TlbConflict,
    /// Anything else, external aborts among them.
    Other,
}

impl Abort {
    /// What happened.
    #[inline]
    pub fn kind(self) -> AbortKind {
        match self.0 & FSC_MASK {
            0b00_0100..=0b00_0111 | 0b10_1011 => AbortKind::Stage2(FaultKind::Translation),
            0b00_1000..=0b00_1011 => AbortKind::Stage2(FaultKind::AccessFlag),
            0b00_1100..=0b00_1111 => AbortKind::Stage2(FaultKind::Permission),
            0b00_0000..=0b00_0011 | 0b10_1001 => AbortKind::AddressSize,
            0b11_0000 => AbortKind::TlbConflict,
            _ => AbortKind::Other,
        }
    }

    /// Whether the guest's stage-1 table walk faulted, not its access.
    #[inline]
    pub const fn on_table_walk(self) -> bool {
        self.0 & ISS_S1PTW != 0
    }

    /// A data abort's access. A permission fault of a stage-1 walk is the walker's update of a descriptor: reading tables is
    /// always permitted where anything is, and WnR describes the instruction, not the walk.
    #[inline]
    pub fn data_access(self) -> Access {
        let write = match self.on_table_walk() {
            true => self.kind() == AbortKind::Stage2(FaultKind::Permission),
            false => self.0 & ISS_WNR != 0,
        };
        if write { Access::Write } else { Access::Read }
    }

    /// The load or store of a data abort, if the syndrome describes it: it does for those of one general register without
    /// writeback.
    pub fn register_access(self) -> Option<RegisterAccess> {
        const VALID: u32 = 1 << 24;
        const SIGN_EXTENDS: u32 = 1 << 21;
        const IS_64: u32 = 1 << 15;
        if self.0 & VALID == 0 || self.on_table_walk() {
            return None;
        }
        Some(RegisterAccess {
            direction: if self.0 & ISS_WNR != 0 {
                Direction::Write
            } else {
                Direction::Read
            },
            width: Width::ALL[(self.0 >> 22 & 3) as usize],
            operand: (self.0 >> 16 & 0x1f) as u8,
            sign_extends: self.0 & SIGN_EXTENDS != 0,
            is_64: self.0 & IS_64 != 0,
        })
    }

    /// An instruction abort's access.
    #[inline]
    pub fn fetch_access(self) -> Access {
        match (self.on_table_walk(), self.kind()) {
            (false, _) => Access::Execute,
            (true, AbortKind::Stage2(FaultKind::Permission)) => Access::Write,
            (true, _) => Access::Read,
        }
    }
}

/// A load or store of one general register, as the syndrome of a data abort describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterAccess {
    /// Read or write.
    pub direction: Direction,
    /// The width of the access.
    pub width: Width,
    /// The general register: 0 to 30, or 31 for the zero register.
    pub operand: u8,
    /// What is loaded is extended by its sign.
    sign_extends: bool,
    /// The register is used with 64 bits.
    is_64: bool,
}

impl RegisterAccess {
    /// The register after a load of `value`.
    pub const fn loaded(self, value: u64) -> u64 {
        let value = self.width.of(value);
        if !self.sign_extends {
            return match self.is_64 {
                true => value,
                false => value as u32 as u64,
            };
        }
        let unused = u64::BITS - 8 * self.width.bytes() as u32;
        let extended = (value << unused).cast_signed() >> unused;
        match self.is_64 {
            true => extended.cast_unsigned(),
            false => extended as u32 as u64,
        }
    }
}

/// A trapped access to a system register or a system instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemAccess {
    /// Which.
    pub register: SystemRegister,
    /// Read or write.
    pub direction: Direction,
    /// The general register: 0 to 30, or 31 for the zero register.
    pub operand: u8,
}

impl SystemAccess {
    fn decode(iss: u32) -> Self {
        let field = |shift: u32, bits: u32| (iss >> shift & ((1 << bits) - 1)) as u8;
        Self {
            register: SystemRegister::new(
                field(20, 2),
                field(14, 3),
                field(10, 4),
                field(1, 4),
                field(17, 3),
            ),
            direction: if iss & 1 != 0 {
                Direction::Read
            } else {
                Direction::Write
            },
            operand: field(5, 5),
        }
    }
}

/// Whether a guest can continue after an SError with this syndrome as if nothing had happened: the error is corrected, or is
/// contained and unused. Only CPUs with FEAT_RAS say so.
pub const fn is_survived(serror: u64) -> bool {
    let is_told = serror & SERROR_IDS == 0 && serror & FSC_MASK as u64 == SERROR_FSC_ASYNCHRONOUS;
    let severity = serror >> SERROR_AET_SHIFT & 0b111;
    is_told && matches!(severity, SERROR_AET_RESTARTABLE | SERROR_AET_CORRECTED)
}

/// Whether an exit is for a write to ICC_SGI1R_EL1, the commonest of those to registers.
#[inline(always)]
pub const fn is_sgi1r_write(esr: u64) -> bool {
    /// All but the general register and the length of the instruction, which has one.
    const MASK: u64 = CLASS_MASK << CLASS_SHIFT | 0x3f_fc1f;
    const SGI1R_WRITE: u64 = CLASS_SYSTEM << CLASS_SHIFT | 3 << 20 | 5 << 17 | 12 << 10 | 11 << 1;
    esr & MASK == SGI1R_WRITE
}

/// The page of HPFAR_EL2's IPA: FIPA, bits 47 to 4, holds IPA bits 55 to 12.
#[inline]
pub const fn fault_page(hpfar: u64) -> u64 {
    (hpfar & 0xffff_ffff_fff0) << 8
}

/// ESR_EL1 of an undefined instruction, for a guest whose ESR_EL2 was `esr`.
pub const fn undefined(esr: u64) -> u64 {
    // An A64 instruction is always 32 bits long; ESR_EL2 tells of AArch32 ones.
    CLASS_UNKNOWN << CLASS_SHIFT | esr & IL
}

/// ESR_EL1 of a synchronous external abort, for an abort from EL0 or EL1 with ESR_EL2 `esr`. It contains whether the access
/// wrote and whether it was cache maintenance, and nothing that only EL2 may know.
pub const fn external_abort(esr: u64, from_el0: bool) -> u64 {
    let is_fetch = esr >> CLASS_SHIFT & CLASS_MASK == CLASS_INSTRUCTION_ABORT;
    let class = match (is_fetch, from_el0) {
        (true, true) => CLASS_INSTRUCTION_ABORT,
        (true, false) => CLASS_INSTRUCTION_ABORT_SAME,
        (false, true) => CLASS_DATA_ABORT,
        (false, false) => CLASS_DATA_ABORT_SAME,
    };
    let access = if is_fetch {
        0
    } else {
        esr & (ISS_WNR | ISS_CM) as u64
    };
    // IL is 1 for all data aborts without a valid syndrome, and tells of the instruction's length for fetches.
    let length = if is_fetch { esr & IL } else { IL };
    class << CLASS_SHIFT | length | access | FSC_EXTERNAL
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::cpu::is_forbidden_write;
    use proptest::prelude::*;

    fn data_abort(iss: u64) -> Abort {
        match Cause::decode(CLASS_DATA_ABORT << CLASS_SHIFT | IL | iss) {
            Cause::DataAbort(abort) => abort,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn a_write_to_sgi1r_is_what_the_whole_decoding_says(
            iss in 0u64..1 << 25,
            operand in prop::option::of(0u64..32),
            class in prop::sample::select(vec![CLASS_SYSTEM, CLASS_HVC64, CLASS_DATA_ABORT]),
        ) {
            let written = 3 << 20 | 5 << 17 | 12 << 10 | 11 << 1;
            let iss = operand.map_or(iss, |operand| written | operand << 5);
            let esr = class << CLASS_SHIFT | IL | iss;
            let expected = matches!(Cause::decode(esr), Cause::SystemRegister(access)
                if access.register == SystemRegister::new(3, 0, 12, 11, 5) && access.direction == Direction::Write);
            prop_assert_eq!(is_sgi1r_write(esr), expected);
        }

        #[test]
        fn a_forbidden_write_is_what_the_whole_decoding_says(
            iss in 0u64..1 << 25,
            class in prop::sample::select(vec![CLASS_DATA_ABORT, CLASS_INSTRUCTION_ABORT, CLASS_HVC64, CLASS_DATA_ABORT_SAME]),
            status in prop::option::of(0x0cu64..0x10),
        ) {
            let iss = status.map_or(iss, |status| iss & !0x3f | status);
            let esr = class << CLASS_SHIFT | IL | iss;
            let expected = matches!(Cause::decode(esr), Cause::DataAbort(abort)
                if abort.kind() == AbortKind::Stage2(FaultKind::Permission)
                    && abort.data_access() == Access::Write
                    && !abort.on_table_walk()
                    && iss & u64::from(ISS_CM) == 0);
            prop_assert_eq!(is_forbidden_write(esr), expected);
        }
    }

    #[test]
    fn fault_status_is_told_by_kind_at_every_level() {
        for level in 0..4 {
            assert_eq!(
                data_abort(0x04 | level).kind(),
                AbortKind::Stage2(FaultKind::Translation)
            );
            assert_eq!(
                data_abort(0x08 | level).kind(),
                AbortKind::Stage2(FaultKind::AccessFlag)
            );
            assert_eq!(
                data_abort(0x0c | level).kind(),
                AbortKind::Stage2(FaultKind::Permission)
            );
            assert_eq!(data_abort(level).kind(), AbortKind::AddressSize);
        }
        assert_eq!(data_abort(0x10).kind(), AbortKind::Other);
        assert_eq!(data_abort(0x30).kind(), AbortKind::TlbConflict);
    }

    #[test]
    fn a_walk_writes_only_where_reading_is_permitted_already() {
        assert_eq!(data_abort(0x07 | 1 << 6).data_access(), Access::Write);
        assert_eq!(data_abort(0x07).data_access(), Access::Read);
        assert_eq!(
            data_abort(0x07 | 1 << 7 | 1 << 6).data_access(),
            Access::Read
        );
        assert_eq!(data_abort(0x0f | 1 << 7).data_access(), Access::Write);
        assert_eq!(data_abort(0x0f | 1 << 7).fetch_access(), Access::Write);
        assert_eq!(data_abort(0x07).fetch_access(), Access::Execute);
    }

    #[test]
    fn a_system_access_names_its_register() {
        // MRS x3, ID_AA64MMFR0_EL1 (3, 0, 0, 7, 0).
        let iss = 3 << 20 | 3 << 5 | 7 << 1 | 1;
        let Cause::SystemRegister(access) = Cause::decode(CLASS_SYSTEM << CLASS_SHIFT | IL | iss)
        else {
            panic!()
        };
        assert_eq!(access.register, SystemRegister::new(3, 0, 0, 7, 0));
        assert_eq!((access.direction, access.operand), (Direction::Read, 3));
    }

    #[test]
    fn hpfar_holds_the_page_from_bit_4() {
        assert_eq!(fault_page(0x8000_0000 >> 8), 0x8000_0000);
        assert_eq!(fault_page(1 << 63 | 0xf), 0);
    }

    #[test]
    fn an_access_of_one_register_is_described() {
        // LDRSH w2: valid, half-word, sign-extended, register 2.
        let load = data_abort(1 << 24 | 1 << 22 | 1 << 21 | 2 << 16 | 0x07);
        let load = load.register_access().unwrap();
        assert_eq!(
            (load.direction, load.width, load.operand),
            (Direction::Read, Width::Half, 2)
        );
        assert_eq!(
            load.loaded(0xf_8000),
            0xffff_8000,
            "32 bits, as w2 is the target"
        );
        assert_eq!(load.loaded(0x7fff), 0x7fff);
        // LDRSW x3, LDRB w4, LDR x5.
        let loads = [
            (1 << 24 | 2 << 22 | 1 << 21 | 1 << 15, 0xffff_ffff_8877_6655),
            (1 << 24, 0x55),
            (1 << 24 | 3 << 22 | 1 << 15, 0x0102_0304_8877_6655),
        ];
        for (iss, expected) in loads {
            let load = data_abort(iss | 0x07).register_access().unwrap();
            assert_eq!(load.loaded(0x0102_0304_8877_6655), expected);
        }
        let store = data_abort(1 << 24 | 31 << 16 | 1 << 6 | 0x07);
        let store = store.register_access().unwrap();
        assert_eq!(
            (store.direction, store.width, store.operand),
            (Direction::Write, Width::Byte, 31)
        );
        assert_eq!(data_abort(0x47).register_access(), None, "LDP, say");
        assert_eq!(
            data_abort(1 << 24 | 1 << 7 | 0x07).register_access(),
            None,
            "a walk"
        );
    }

    #[test]
    fn a_wait_may_have_a_timeout() {
        let wait = |iss: u64| match Cause::decode(CLASS_WF << CLASS_SHIFT | IL | iss) {
            Cause::Wait(wait) => wait.timeout(),
            other => panic!("{other:?}"),
        };
        assert_eq!(wait(0b00), None, "WFI");
        assert_eq!(wait(0b01), None, "WFE");
        assert_eq!(wait(7 << 5 | 0b110), Some(7), "WFIT");
        assert_eq!(wait(7 << 5 | 0b010), None, "a register that isn't told");
    }

    #[test]
    fn an_external_abort_tells_what_the_guest_may_know() {
        let esr = 0x9342_0047; // data abort, lower EL, ISV, SRT 2, write, translation level 3
        assert_eq!(
            external_abort(esr, false),
            0x25 << 26 | 1 << 25 | 1 << 6 | 0x10
        );
        assert_eq!(
            external_abort(esr, true),
            0x24 << 26 | 1 << 25 | 1 << 6 | 0x10
        );
        let fetch = 0x8200_0006;
        assert_eq!(external_abort(fetch, false), 0x21 << 26 | 1 << 25 | 0x10);
        assert_eq!(external_abort(fetch, true), 0x20 << 26 | 1 << 25 | 0x10);
    }

    #[test]
    fn only_an_error_that_is_known_to_have_done_no_harm_is_survived() {
        let serror = |aet: u64| 0x2f << CLASS_SHIFT | IL | aet << 10 | 0x11;
        let survived = (0..8).filter(|&aet| is_survived(serror(aet)));
        assert_eq!(survived.collect::<std::vec::Vec<_>>(), [0b010, 0b110]);
        // Of an uncategorized one, or one in the implementation's own words, nothing is known.
        assert!(!is_survived(serror(0b110) & !0x3f));
        assert!(!is_survived(serror(0b110) | 1 << 24));
    }

    proptest! {
        #[test]
        fn any_syndrome_decodes(esr: u64) {
            match Cause::decode(esr) {
                Cause::DataAbort(abort) | Cause::InstructionAbort(abort) => {
                    let _ = (abort.kind(), abort.data_access(), abort.fetch_access());
                }
                Cause::SystemRegister(access) => prop_assert!(access.operand < 32),
                _ => {}
            }
            prop_assert_eq!(external_abort(esr, esr & 1 != 0) & 0x3f, 0x10);
            prop_assert_eq!(external_abort(esr, false) >> 24 & 1, 0);
        }
    }
}
