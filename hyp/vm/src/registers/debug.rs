//! A vCPU's debug registers (Arm ARM D2), for a VM that offers them.
//!
//! A guest's accesses trap and change these values; the CPU has them while the vCPU is loaded and some debug exception is on. So
//! nothing of one guest is ever in the CPU's registers for another, and a guest that isn't debugged costs nothing. No guest
//! reaches what acts on the machine: the debug channel, halting, and the OS locks of the CPU. The guest's own OS lock is kept
//! here, and acts as the CPU's does.

use crate::registers::sysreg::{Direction, SystemRegister};

/// The most breakpoints, and the most watchpoints.
pub const MOST_DEBUG_POINTS: usize = 16;

/// MDSCR_EL1: SS, TDCC, KDE, MDE; of these what makes exceptions.
const MDSCR: u64 = MDSCR_SS | 1 << 12 | MDSCR_KDE | MDSCR_MDE;
const MDSCR_SS: u64 = 1;
const MDSCR_KDE: u64 = 1 << 13;
const MDSCR_MDE: u64 = 1 << 15;
/// `DBGBCR<n>_EL1`: E, PMC, BAS, HMC, SSC, LBN, BT.
const BREAKPOINT_CONTROL: u64 = 0x00ff_e1e7;
/// `DBGWCR<n>_EL1`: E, PAC, LSC, BAS, HMC, SSC, LBN, WT, MASK.
const WATCHPOINT_CONTROL: u64 = 0x1f1f_ffff;
const WATCHPOINT_VALUE: u64 = !0b11;
/// The claim tags that there are.
const CLAIM: u64 = 0xff;
/// OSLSR_EL1: the lock is implemented (OSLM = 0b10), and locked.
const OSLM: u64 = 1 << 3;
const OSLK: u64 = 1 << 1;

/// How many breakpoints and watchpoints a CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugPoints {
    /// Breakpoints.
    pub breakpoints: usize,
    /// Watchpoints.
    pub watchpoints: usize,
}

impl DebugPoints {
    /// As ID_AA64DFR0_EL1 says.
    pub const fn of(id_aa64dfr0: u64) -> Self {
        Self {
            breakpoints: 1 + (id_aa64dfr0 >> 12 & 0xf) as usize,
            watchpoints: 1 + (id_aa64dfr0 >> 20 & 0xf) as usize,
        }
    }
}

/// A breakpoint or a watchpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugPoint {
    /// `DBGBVR<n>_EL1` or `DBGWVR<n>_EL1`.
    pub value: u64,
    /// `DBGBCR<n>_EL1` or `DBGWCR<n>_EL1`.
    pub control: u64,
}

/// The debug registers of a vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugState {
    mdscr: u64,
    claim: u64,
    is_locked: bool,
    /// Breakpoints.
    pub breakpoints: [DebugPoint; MOST_DEBUG_POINTS],
    /// Watchpoints.
    pub watchpoints: [DebugPoint; MOST_DEBUG_POINTS],
}

impl DebugState {
    /// MDSCR_EL1 as the CPU has it: the guest's OS lock holds all exceptions off, but for BRK.
    pub const fn mdscr(&self) -> u64 {
        match self.is_locked {
            true => self.mdscr & !(MDSCR_SS | MDSCR_KDE | MDSCR_MDE),
            false => self.mdscr,
        }
    }

    /// Whether the CPU needs these registers while the vCPU is loaded.
    pub const fn is_on(&self) -> bool {
        self.mdscr() != 0
    }

    /// Executes the guest's access to one of them, a write of `value`. Returns what a read gives; `None` if there is no such
    /// register.
    pub(crate) fn access(
        &mut self,
        register: SystemRegister,
        direction: Direction,
        value: u64,
        points: DebugPoints,
    ) -> Option<u64> {
        let write = direction == Direction::Write;
        let (place, bits) = match register.fields() {
            (2, 0, 0, 2, 2) => (&mut self.mdscr, MDSCR),
            (2, 0, 0, index, op2 @ 4..=7) => {
                let (all, count) = match op2 {
                    4 | 5 => (&mut self.breakpoints, points.breakpoints),
                    _ => (&mut self.watchpoints, points.watchpoints),
                };
                let index = usize::from(index);
                let point = all.get_mut(index).filter(|_| index < count)?;
                match op2 {
                    4 => (&mut point.value, u64::MAX),
                    5 => (&mut point.control, BREAKPOINT_CONTROL),
                    6 => (&mut point.value, WATCHPOINT_VALUE),
                    _ => (&mut point.control, WATCHPOINT_CONTROL),
                }
            }
            (2, 0, 1, 0, 4) if write => {
                self.is_locked = value & 1 != 0;
                return Some(0);
            }
            (2, 0, 1, 1, 4) if !write => return Some(OSLM | if self.is_locked { OSLK } else { 0 }),
            // DBGCLAIMSET_EL1 reads as the tags that there are, DBGCLAIMCLR_EL1 as those that are set.
            (2, 0, 7, 8, 6) => {
                self.claim |= if write { value & CLAIM } else { 0 };
                return Some(CLAIM);
            }
            (2, 0, 7, 9, 6) => {
                self.claim &= if write { !value } else { u64::MAX };
                return Some(self.claim);
            }
            _ => return None,
        };
        if write {
            *place = value & bits;
        }
        Some(*place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINTS: DebugPoints = DebugPoints {
        breakpoints: 6,
        watchpoints: 4,
    };
    const ALL: u64 = u64::MAX;

    fn read(state: &mut DebugState, crn: u8, crm: u8, op2: u8) -> Option<u64> {
        let register = SystemRegister::new(2, 0, crn, crm, op2);
        state.access(register, Direction::Read, 0, POINTS)
    }

    fn write(state: &mut DebugState, crn: u8, crm: u8, op2: u8, value: u64) -> Option<u64> {
        let register = SystemRegister::new(2, 0, crn, crm, op2);
        state.access(register, Direction::Write, value, POINTS)
    }

    #[test]
    fn each_register_keeps_the_bits_that_it_has() {
        let mut state = DebugState::default();
        for (crm, op2, bits) in [
            (2, 2, 0xb001),
            (5, 4, ALL),
            (5, 5, 0x00ff_e1e7),
            (3, 6, ALL - 3),
            (3, 7, 0x1f1f_ffff),
        ] {
            assert_eq!(read(&mut state, 0, crm, op2), Some(0));
            assert!(write(&mut state, 0, crm, op2, ALL).is_some());
            assert_eq!(read(&mut state, 0, crm, op2), Some(bits), "{crm} {op2}");
        }
        let point = |value, control| DebugPoint { value, control };
        assert_eq!(state.breakpoints[5], point(ALL, 0x00ff_e1e7));
        assert_eq!(state.watchpoints[3], point(ALL - 3, 0x1f1f_ffff));
        for (crm, op2) in [(6, 4), (15, 5), (4, 6), (4, 7), (3, 2), (1, 3)] {
            assert_eq!(read(&mut state, 0, crm, op2), None, "{crm} {op2}");
            assert_eq!(write(&mut state, 0, crm, op2, 1), None);
        }
    }

    #[test]
    fn the_os_lock_holds_exceptions_off_but_hides_nothing() {
        let mut state = DebugState::default();
        write(&mut state, 0, 2, 2, 1 << 15 | 1 << 12);
        assert!(state.is_on() && state.mdscr() == 1 << 15 | 1 << 12);
        write(&mut state, 1, 0, 4, 1);
        assert_eq!(state.mdscr(), 1 << 12);
        assert_eq!(read(&mut state, 0, 2, 2), Some(1 << 15 | 1 << 12));
        assert_eq!(read(&mut state, 1, 1, 4), Some(0b1010));
        assert_eq!(read(&mut state, 1, 0, 4), None, "OSLAR_EL1 is written only");
        write(&mut state, 1, 0, 4, 0);
        assert_eq!(read(&mut state, 1, 1, 4), Some(0b1000));
        assert_eq!(state.mdscr(), 1 << 15 | 1 << 12);
    }

    #[test]
    fn claim_tags_are_set_and_cleared_one_by_one() {
        let mut state = DebugState::default();
        write(&mut state, 7, 8, 6, 0x105);
        write(&mut state, 7, 8, 6, 0x80);
        assert_eq!(read(&mut state, 7, 8, 6), Some(0xff));
        write(&mut state, 7, 9, 6, 4);
        assert_eq!(read(&mut state, 7, 9, 6), Some(0x81));
    }
}
