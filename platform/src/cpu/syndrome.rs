//! Describes exception syndromes in words (ESR_ELx, Arm ARM D23.2.37), for reports of fatal exceptions.
//!
//! Pure formatting, tested on the host. Runs while the machine is failing, so it neither allocates nor panics.

use core::fmt;

/// The value of an ESR_ELx register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Syndrome(pub u64);

impl Syndrome {
    /// The exception class, EC.
    pub const fn class(self) -> u8 {
        (self.0 >> 26 & 0x3f) as u8
    }

    /// The instruction-specific syndrome, ISS.
    pub const fn iss(self) -> u32 {
        (self.0 & 0x1ff_ffff) as u32
    }

    /// Whether FAR_ELx belongs to this exception.
    pub const fn has_fault_address(self) -> bool {
        let aborts = matches!(self.class(), 0x20 | 0x21 | 0x24 | 0x25);
        // FnV says that the register wasn't written, which external aborts may do.
        (aborts && self.0 & 1 << 10 == 0) || matches!(self.class(), 0x22 | 0x34 | 0x35)
    }

    const fn class_name(self) -> &'static str {
        match self.class() {
            0x00 => "undefined instruction",
            0x01 => "trapped WFI or WFE",
            0x07 => "trapped FP, SIMD or SVE access",
            0x09 => "trapped pointer authentication",
            0x0a => "trapped 64-byte load or store",
            0x0d => "branch target exception",
            0x0e => "illegal execution state",
            0x15 => "SVC",
            0x16 => "HVC",
            0x17 => "SMC",
            0x18 => "trapped system register access",
            0x19 => "trapped SVE access",
            0x1c => "pointer authentication failure",
            0x1d => "trapped SME access",
            0x20 => "instruction abort from a lower level",
            0x21 => "instruction abort",
            0x22 => "misaligned program counter",
            0x24 => "data abort from a lower level",
            0x25 => "data abort",
            0x26 => "misaligned stack pointer",
            0x27 => "trapped memory copy or set",
            0x2c => "trapped floating-point exception",
            0x2f => "SError",
            0x30 | 0x31 => "breakpoint",
            0x32 | 0x33 => "software step",
            0x34 | 0x35 => "watchpoint",
            0x3c => "BRK instruction",
            _ => "unknown exception class",
        }
    }

    /// What an SError's syndrome says of the error. Only CPUs with FEAT_RAS say anything.
    const fn error_severity(self) -> &'static str {
        let iss = self.iss();
        if iss & 1 << 24 != 0 {
            return ", with a syndrome that the CPU's implementer defines";
        }
        match (iss & 0x3f, iss >> 10 & 7) {
            (0x11, 0) => ", uncontainable",
            (0x11, 1) => ", unrecoverable",
            (0x11, 2) => ", restartable",
            (0x11, 3) => ", recoverable",
            (0x11, 6) => ", corrected",
            _ => "",
        }
    }

    fn write_fault_status(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.iss() & 0x3f;
        let level = status & 3;
        match status {
            0x00..=0x03 => write!(f, "address size fault at level {level}"),
            0x04..=0x07 => write!(f, "translation fault at level {level}"),
            0x08..=0x0b => write!(f, "access flag fault at level {level}"),
            0x0c..=0x0f => write!(f, "permission fault at level {level}"),
            0x10 => f.write_str("external abort"),
            0x11 => f.write_str("tag check fault"),
            0x14..=0x17 => write!(f, "external abort on the table walk at level {level}"),
            0x18 => f.write_str("parity or ECC error"),
            0x1c..=0x1f => write!(f, "parity or ECC error on the table walk at level {level}"),
            0x21 => f.write_str("alignment fault"),
            0x30 => f.write_str("TLB conflict"),
            0x31 => f.write_str("unsupported atomic update"),
            _ => write!(f, "fault status {status:#x}"),
        }
    }
}

impl fmt::Display for Syndrome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.class_name())?;
        match self.class() {
            0x20 | 0x21 => {
                f.write_str(", ")?;
                self.write_fault_status(f)
            }
            0x24 | 0x25 => {
                f.write_str(if self.iss() & 1 << 6 != 0 {
                    " on a write, "
                } else {
                    " on a read, "
                })?;
                self.write_fault_status(f)
            }
            0x2f => f.write_str(self.error_severity()),
            0x15..=0x17 | 0x3c => write!(f, " #{:#x}", self.iss() & 0xffff),
            0x18 => {
                let iss = self.iss();
                let direction = if iss & 1 != 0 { "read of" } else { "write to" };
                let (op0, op1, op2) = (iss >> 20 & 3, iss >> 14 & 7, iss >> 17 & 7);
                let (crn, crm) = (iss >> 10 & 0xf, iss >> 1 & 0xf);
                write!(f, ", {direction} s{op0}_{op1}_c{crn}_c{crm}_{op2}")
            }
            class if self.class_name().starts_with("unknown") => write!(f, " {class:#x}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn syndromes_read_as_sentences() {
        for (esr, expected) in [
            (
                0x9600_0047,
                "data abort on a write, translation fault at level 3",
            ),
            (
                0x9600_000f,
                "data abort on a read, permission fault at level 3",
            ),
            (
                0x8600_000e,
                "instruction abort, permission fault at level 2",
            ),
            (0x0200_0000, "undefined instruction"),
            (0xbe00_0000, "SError"),
            (0xbe00_0411, "SError, unrecoverable"),
            (0xbe00_1811, "SError, corrected"),
            (
                0xbf00_0000,
                "SError, with a syndrome that the CPU's implementer defines",
            ),
            (0xf200_0001, "BRK instruction #0x1"),
            (0x5a00_0003, "HVC #0x3"),
            (
                0x6238_0801,
                "trapped system register access, read of s3_0_c2_c0_4",
            ),
            (0xfe00_0000, "unknown exception class 0x3f"),
        ] {
            assert_eq!(Syndrome(esr).to_string(), expected);
        }
    }

    #[test]
    fn only_aborts_have_a_fault_address() {
        assert!(Syndrome(0x9600_0047).has_fault_address());
        assert!(!Syndrome(0x9600_0450).has_fault_address());
        assert!(!Syndrome(0x0200_0000).has_fault_address());
    }

    #[test]
    fn no_syndrome_panics() {
        for class in 0..64u64 {
            for iss in [0, 1, 0x3f, 0x1ff_ffff, 0x155_5555] {
                let _ = Syndrome(class << 26 | iss).to_string();
            }
        }
    }
}
