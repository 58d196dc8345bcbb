//! Queries this CPU's own stage-2 table walker by address translation instructions (AT S12E1R and S12E1W, Arm ARM C5.4): its
//! result for given tables, without running a guest.
//!
//! For self-tests and measurements, on a CPU that has no guest loaded. The registers set here don't affect EL2's own
//! translation, and are restored.

use crate::cpu::register::{read_register, write_register};
use crate::cpu::tlb::CpuInstructions;
use crate::el2::set_up::HCR_BOOT;
use aarch64_cpu::asm::barrier::{self, ISH, SY};
use aarch64_cpu::registers::HCR_EL2;
use core::arch::asm;
use stage2::{Ipa, Level, Pa, RegimeRegisters};
use vm::Stage2Registers;

/// HCR_EL2.DC: with EL1's MMU off its accesses are normal write-back instead of device accesses, so that stage 2 alone decides
/// on the memory type.
const HCR_DC: u64 = 1 << 12;
/// HCR_EL2.FWB.
pub(crate) const HCR_FWB: u64 = 1 << 46;

/// PAR_EL1 (D23.2.122).
const PAR_FAILED: u64 = 1;
const PAR_STAGE2: u64 = 1 << 9;
const PAR_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The memory type that both stages make together, as PAR_EL1.ATTR and PAR_EL1.SH tell it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// The type, as MAIR_ELx encodes it.
    pub attributes: u8,
    /// Shareability: 0b10 outer, 0b11 inner, 0b00 none.
    pub shareability: u8,
}

/// What a translation gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translated {
    /// The physical address of the page, of 4 KiB.
    pub pa: Pa,
    /// How it would be accessed.
    pub memory: Memory,
}

/// What stage 2 didn't allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No valid entry.
    Translation(Level),
    /// The access flag is clear, and hardware doesn't set it.
    AccessFlag(Level),
    /// The access isn't allowed.
    Permission(Level),
    /// Something else, such as a fault of stage 1 or a reserved encoding: PAR_EL1 as it is.
    Other(u64),
}

/// The access that is translated for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Translate {
    /// A load at EL1.
    Read,
    /// A store at EL1.
    Write,
}

/// How EL1's accesses are when its MMU is off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage1 {
    /// Device accesses, as the architecture has it.
    Device,
    /// Normal, write-back, not shareable (HCR_EL2.DC).
    WriteBack,
}

/// This CPU, set up to translate by one set of tables. It puts the registers back when it is dropped.
#[derive(Debug)]
pub struct Walker {
    sctlr: u64,
    regime: RegimeRegisters,
    par: u64,
}

impl Walker {
    /// Has the calling CPU translate by `tables`, EL1's MMU off.
    pub fn new(tables: Stage2Registers, stage1: Stage1) -> Self {
        let walker = Self {
            sctlr: read_register!("sctlr_el1"),
            regime: RegimeRegisters::of(&CpuInstructions::new()),
            par: read_register!("par_el1"),
        };
        let mut hcr = HCR_BOOT | HCR_EL2::VM::Enable.value;
        if tables.forced_write_back {
            hcr |= HCR_FWB;
        }
        if stage1 == Stage1::WriteBack {
            hcr |= HCR_DC;
        }
        // SAFETY: they affect EL1 and EL0 only, where nothing runs meanwhile.
        unsafe {
            write_register!("sctlr_el1", 0);
            let Stage2Registers { vttbr, vtcr, .. } = tables;
            RegimeRegisters { vttbr, vtcr }.load(&CpuInstructions::new());
            write_register!("hcr_el2", hcr);
        }
        barrier::isb(SY);
        walker
    }

    /// Translates `ipa`. May set the entry's access flag, where the tables leave that to hardware.
    pub fn translate(&self, ipa: Ipa, access: Translate) -> Result<Translated, Refusal> {
        // SAFETY: all that it changes is PAR_EL1, and the access flag of an entry, which is an atomic.
        unsafe {
            match access {
                Translate::Read => {
                    asm!("at s12e1r, {}", in(reg) ipa.get(), options(nostack, preserves_flags));
                }
                Translate::Write => {
                    asm!("at s12e1w, {}", in(reg) ipa.get(), options(nostack, preserves_flags));
                }
            }
        }
        barrier::isb(SY);
        decode(read_register!("par_el1"))
    }
}

impl Drop for Walker {
    fn drop(&mut self) {
        // A walk may be setting an access flag.
        barrier::dsb(ISH);
        // SAFETY: what was there before, from the last one to the first.
        unsafe {
            write_register!("hcr_el2", HCR_BOOT);
            self.regime.load(&CpuInstructions::new());
            write_register!("sctlr_el1", self.sctlr);
            write_register!("par_el1", self.par);
        }
        barrier::isb(SY);
    }
}

fn decode(par: u64) -> Result<Translated, Refusal> {
    if par & PAR_FAILED == 0 {
        return Ok(Translated {
            pa: Pa::new(par & PAR_ADDRESS),
            memory: Memory {
                attributes: (par >> 56) as u8,
                shareability: (par >> 7 & 0b11) as u8,
            },
        });
    }
    let status = par >> 1 & 0x3f;
    let level = Level::ALL[(status & 0b11) as usize];
    Err(match status >> 2 {
        _ if par & PAR_STAGE2 == 0 => Refusal::Other(par),
        0b0001 => Refusal::Translation(level),
        0b0010 => Refusal::AccessFlag(level),
        0b0011 => Refusal::Permission(level),
        _ => Refusal::Other(par),
    })
}
