//! The performance monitors of the loaded guest, once it has used them. Unless one is loaded, they trap.
//!
//! Nothing that EL2 does is counted. With FEAT_PMUv3p5 MDCR_EL2.HPMD and HCCD see to that, whatever a guest has written, and the
//! guest accesses its counters itself. Older PMUs count what their filters say: so accesses trap on, and EL2 executes them without
//! the filters' NSH (Arm ARM D11.5, D24.3.19). MDCR_EL2.TPMCR with PMCR_EL0.DP would do for FEAT_PMUv3p1, but not all have it.

use crate::cpu::features::CpuFeatures;
use crate::cpu::register::{read_register, write_register};
use crate::drivers::gic;
use aarch64_cpu::asm::barrier;
use vm::{EventCounter, PmuState, PmuVersion, SystemRegister};

/// MDCR_EL2: HPMN, TPMCR, TPM, HPMD, HCCD.
const HPMN: u64 = 0x1f;
const TPMCR: u64 = 1 << 5;
const TPM: u64 = 1 << 6;
const HPMD: u64 = 1 << 17;
const HCCD: u64 = 1 << 23;
/// PMCR_EL0.N.
const PMCR_N_SHIFT: u32 = 11;
/// All counters, for the registers that have a bit for each.
const ALL: u64 = u64::MAX;

/// MDCR_EL2's bits about the PMU while no guest has it: all accesses trap, and all counters are EL1's.
pub(crate) fn traps(features: &CpuFeatures) -> u64 {
    let mut traps = TPM | TPMCR;
    traps |= u64::from(event_counters(features));
    if features.pmu.has_hpmd() {
        traps |= HPMD;
    }
    if features.pmu.spares_el2() {
        traps |= HCCD;
    }
    traps
}

/// The calling CPU's event counters; 0 without a PMU.
pub(crate) fn event_counters(features: &CpuFeatures) -> u8 {
    match features.pmu.0 {
        0 => 0,
        _ => (read_register!("pmcr_el0") >> PMCR_N_SHIFT & HPMN) as u8,
    }
}

/// `$each` on the number and the names of each event counter's registers.
macro_rules! event_registers {
    ($each:ident, $($argument:expr),*) => {
        $each!($($argument),*;
            0 "pmevcntr0_el0" "pmevtyper0_el0", 1 "pmevcntr1_el0" "pmevtyper1_el0",
            2 "pmevcntr2_el0" "pmevtyper2_el0", 3 "pmevcntr3_el0" "pmevtyper3_el0",
            4 "pmevcntr4_el0" "pmevtyper4_el0", 5 "pmevcntr5_el0" "pmevtyper5_el0",
            6 "pmevcntr6_el0" "pmevtyper6_el0", 7 "pmevcntr7_el0" "pmevtyper7_el0",
            8 "pmevcntr8_el0" "pmevtyper8_el0", 9 "pmevcntr9_el0" "pmevtyper9_el0",
            10 "pmevcntr10_el0" "pmevtyper10_el0", 11 "pmevcntr11_el0" "pmevtyper11_el0",
            12 "pmevcntr12_el0" "pmevtyper12_el0", 13 "pmevcntr13_el0" "pmevtyper13_el0",
            14 "pmevcntr14_el0" "pmevtyper14_el0", 15 "pmevcntr15_el0" "pmevtyper15_el0",
            16 "pmevcntr16_el0" "pmevtyper16_el0", 17 "pmevcntr17_el0" "pmevtyper17_el0",
            18 "pmevcntr18_el0" "pmevtyper18_el0", 19 "pmevcntr19_el0" "pmevtyper19_el0",
            20 "pmevcntr20_el0" "pmevtyper20_el0", 21 "pmevcntr21_el0" "pmevtyper21_el0",
            22 "pmevcntr22_el0" "pmevtyper22_el0", 23 "pmevcntr23_el0" "pmevtyper23_el0",
            24 "pmevcntr24_el0" "pmevtyper24_el0", 25 "pmevcntr25_el0" "pmevtyper25_el0",
            26 "pmevcntr26_el0" "pmevtyper26_el0", 27 "pmevcntr27_el0" "pmevtyper27_el0",
            28 "pmevcntr28_el0" "pmevtyper28_el0", 29 "pmevcntr29_el0" "pmevtyper29_el0",
            30 "pmevcntr30_el0" "pmevtyper30_el0")
    };
}

/// Writes a register of the guest's, or reads it.
macro_rules! access {
    ($name:literal, $written:expr) => {
        match $written {
            None => read_register!($name),
            Some(value) => {
                // SAFETY: the guest's own, which nothing at EL2 relies on; the CPU has it.
                unsafe { write_register!($name, value) };
                barrier::isb(barrier::SY);
                0
            }
        }
    };
}

macro_rules! access_counter {
    ($which:expr, $written:expr; $($number:literal $value:literal $kind:literal),*) => {
        match $which { $($number => Some(access!($value, $written)),)* _ => None }
    };
}

macro_rules! access_filter {
    ($which:expr, $written:expr; $($number:literal $value:literal $kind:literal),*) => {
        match $which { $($number => Some(access!($kind, $written)),)* _ => None }
    };
}

macro_rules! load_events {
    ($events:expr, $count:expr; $($number:literal $value:literal $kind:literal),*) => {
        $(
            if $number < $count {
                write_register!($value, $events[$number].value);
                write_register!($kind, $events[$number].kind);
            }
        )*
    };
}

macro_rules! save_events {
    ($events:expr, $count:expr; $($number:literal $value:literal $kind:literal),*) => {$(
        if $number < $count {
            $events[$number] = EventCounter {
                value: read_register!($value),
                kind: read_register!($kind),
            };
        }
    )*};
}

/// The number of the selected counter.
const SELECTED: u64 = 0x1f;
const CYCLE_COUNTER: u64 = 31;
/// PMMIR_EL1 exists (FEAT_PMUv3p4).
const V3P4: PmuVersion = PmuVersion(5);

/// This CPU's PMU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pmu {
    version: PmuVersion,
    events: u8,
    /// MDCR_EL2 while no guest has it.
    traps: u64,
    /// A guest has it.
    pub(super) is_loaded: bool,
}

impl Pmu {
    /// That of the calling CPU, whose features are `features`.
    pub(super) fn new(features: &CpuFeatures) -> Self {
        Self {
            version: features.pmu,
            events: event_counters(features),
            traps: read_register!("mdcr_el2"),
            is_loaded: false,
        }
    }

    /// Gives the PMU to a guest that uses it; with `interrupts` the CPU takes the PMU's interrupt.
    pub(super) fn load(&mut self, state: &PmuState, interrupts: bool) {
        // SAFETY: the guest's own, on a CPU that has a PMU, as the VM offers it; EL2 uses none of it. PMCR_EL0 is written last:
        // nothing counts until then.
        unsafe {
            write_register!("pmcntenclr_el0", ALL);
            write_register!("pmintenclr_el1", ALL);
            write_register!("pmovsclr_el0", ALL);
            write_register!("pmccntr_el0", state.pmccntr);
            write_register!("pmccfiltr_el0", state.pmccfiltr);
            event_registers!(load_events, state.events, self.events);
            write_register!("pmselr_el0", state.pmselr);
            write_register!("pmuserenr_el0", state.pmuserenr);
            write_register!("pmovsset_el0", state.overflowed);
            write_register!("pmintenset_el1", state.interrupting);
            write_register!("pmcntenset_el0", state.enabled);
            write_register!("pmcr_el0", state.pmcr);
            if self.version.spares_el2() {
                write_register!("mdcr_el2", self.traps & !(TPM | TPMCR));
            }
        }
        barrier::isb(barrier::SY);
        if interrupts {
            gic::set_pmu_forwarding(true);
        }
        self.is_loaded = true;
    }

    /// Takes the PMU from the guest for which it was [loaded](Self::load).
    pub(super) fn put(&mut self, state: &mut PmuState, interrupts: bool) {
        if interrupts {
            gic::set_pmu_forwarding(false);
        }
        state.keep_pmcr(read_register!("pmcr_el0"));
        // SAFETY: as above. EL0's accesses are EL1's to trap first.
        unsafe {
            write_register!("pmcr_el0", 0);
            write_register!("mdcr_el2", self.traps);
        }
        barrier::isb(barrier::SY);
        event_registers!(save_events, state.events, self.events);
        state.pmccntr = read_register!("pmccntr_el0");
        state.pmccfiltr = read_register!("pmccfiltr_el0");
        state.pmselr = read_register!("pmselr_el0");
        state.pmuserenr = read_register!("pmuserenr_el0");
        state.overflowed = read_register!("pmovsset_el0");
        state.interrupting = read_register!("pmintenset_el1");
        state.enabled = read_register!("pmcntenset_el0");
        // SAFETY: as above.
        unsafe { write_register!("pmuserenr_el0", 0) };
        self.is_loaded = false;
    }

    /// Executes the guest's access to a register, if the CPU has it.
    pub(super) fn access(&self, register: SystemRegister, written: Option<u64>) -> Option<u64> {
        // What the guest accesses itself traps only where it isn't there.
        if self.version.spares_el2() {
            return None;
        }
        let event = |crm: u8, op2: u8| u64::from(crm & 3) << 3 | u64::from(op2);
        let selected = || read_register!("pmselr_el0") & SELECTED;
        let value = match register.fields() {
            (3, 3, 9, 12, 0) => access!("pmcr_el0", written),
            (3, 3, 9, 12, 1) => access!("pmcntenset_el0", written),
            (3, 3, 9, 12, 2) => access!("pmcntenclr_el0", written),
            (3, 3, 9, 12, 3) => access!("pmovsclr_el0", written),
            (3, 3, 9, 12, 4) => {
                self.increment(written?);
                0
            }
            (3, 3, 9, 12, 5) => access!("pmselr_el0", written),
            (3, 3, 9, 12, 6) if written.is_none() => read_register!("pmceid0_el0"),
            (3, 3, 9, 12, 7) if written.is_none() => read_register!("pmceid1_el0"),
            (3, 3, 9, 13, 0) => access!("pmccntr_el0", written),
            (3, 3, 9, 13, 1) => return self.filter(selected(), written),
            (3, 3, 9, 13, 2) => return self.counter(selected(), written),
            (3, 3, 9, 14, 0) => access!("pmuserenr_el0", written),
            (3, 3, 9, 14, 3) => access!("pmovsset_el0", written),
            (3, 0, 9, 14, 1) => access!("pmintenset_el1", written),
            (3, 0, 9, 14, 2) => access!("pmintenclr_el1", written),
            (3, 0, 9, 14, 6) if written.is_none() && self.version.0 >= V3P4.0 => {
                read_register!("s3_0_c9_c14_6") // PMMIR_EL1
            }
            (3, 3, 14, crm @ 8..=11, op2) => return self.counter(event(crm, op2), written),
            (3, 3, 14, crm @ 12..=15, op2) => return self.filter(event(crm, op2), written),
            _ => return None,
        };
        Some(value)
    }

    /// Executes a write to PMSWINC_EL0, as the CPU's own would count for EL2: not at all.
    fn increment(&self, counters: u64) {
        const SPSR_EL: u64 = 0b1100;
        // The guest's exit is the last exception that EL2 has taken.
        let at_el0 = read_register!("spsr_el2") & SPSR_EL == 0;
        let (control, enabled) = (read_register!("pmcr_el0"), read_register!("pmcntenset_el0"));
        for number in 0..self.events.into() {
            let (value, kind) = (self.counter(number, None), self.filter(number, None));
            let Some(counter) = value.zip(kind) else {
                continue;
            };
            let (value, kind) = counter;
            let counts = PmuState::counts_increment(control, kind, at_el0);
            if counts && counters & enabled & 1 << number != 0 {
                let value = u64::from((value as u32).wrapping_add(1));
                self.counter(number, Some(value));
                if value == 0 {
                    access!("pmovsset_el0", Some(1 << number));
                }
            }
        }
    }

    /// An access to an event counter.
    fn counter(&self, number: u64, written: Option<u64>) -> Option<u64> {
        if number >= self.events.into() {
            return None;
        }
        event_registers!(access_counter, number, written)
    }

    /// An access to the filter of a counter.
    fn filter(&self, number: u64, written: Option<u64>) -> Option<u64> {
        let written = written.map(PmuVersion::filter);
        if number == CYCLE_COUNTER {
            return Some(access!("pmccfiltr_el0", written));
        }
        if number >= self.events.into() {
            return None;
        }
        event_registers!(access_filter, number, written)
    }
}
