//! Measures the cost of TLB maintenance on this machine, for [`platform::calibration`]. It takes some hundred microseconds once,
//! on the boot CPU. The other CPUs are up and idle, so that broadcasts reach them.

use crate::tables::HeapTables;
use platform::calibration::{Calibration, Costs, KEPT_TRANSLATIONS, picoseconds};
use platform::cpu::features::CpuFeatures;
use platform::cpu::tlb::{self, CpuInstructions};
use platform::drivers::timer;
use platform::el2::walker::{Stage1, Translate, Walker};
use stage2::{
    Attributes, Barrier, Counters, Granule, Instructions, Ipa, Layout, Level, Mapping, PAGE_SHIFT,
    PAGE_SIZE, Pa, Permissions, Stage2, Tlbi, Worker,
};
use vm::Stage2Registers;

/// The least ticks of a time that the clock's resolution doesn't distort.
const LEAST_TICKS: u64 = 128;
/// The most repetitions of an operation to reach that time.
const MOST_REPETITIONS: u64 = 1024;
/// The number of samples, of which the least counts, as disturbances only make them longer.
const SAMPLES: usize = 3;
/// The number of measured instructions that share a DSB.
const BATCH: u64 = 16;
/// The distance between translated pages, in pages, which puts their entries into different cache lines.
const STRIDE: u64 = 8;

/// Measures, while nothing runs on the other CPUs.
pub fn run(cpu: &CpuFeatures) -> Calibration {
    Calibration(measure(cpu))
}

fn measure(cpu: &CpuFeatures) -> Option<Costs> {
    let features = cpu.stage2(Granule::Size4K)?;
    let layout = Layout::new(stage2::Features {
        ipa_bits: features.ipa_bits.min(32),
        lpa2: false,
        ..features
    })
    .ok()?;
    // SAFETY: this CPU does one operation after the other on the tree, and keeps no result of any.
    let tables = unsafe { HeapTables::new(&layout) };
    let maintenance = tlb::maintenance(cpu, platform::calibration::UNMEASURED);
    let counters = Counters::default();
    let worker = Worker {
        memory: &tables,
        tlb: &maintenance,
        epoch: &tables,
        counters: &counters,
    };
    let stage2 = Stage2::new(tables.root(&layout), layout);
    let all = Ipa::new(0)..Ipa::new(KEPT_TRANSLATIONS * STRIDE * PAGE_SIZE);
    let mapping = Mapping {
        // Nothing is accessed.
        pa: Pa::new(0),
        attributes: Attributes::memory(Permissions::READ_ONLY),
        largest: Level::L3,
    };
    let mapped = stage2.map(&worker, all, mapping, || true);
    let costs = mapped.ok().and_then(|_| {
        let walker = Walker::new(
            Stage2Registers {
                vttbr: stage2.vttbr().bits(),
                vtcr: layout.vtcr(),
                forced_write_back: layout.features().fwb,
            },
            Stage1::WriteBack,
        );
        let this = maintenance.instructions();
        Some(Costs {
            instruction: instruction(this, cpu.tlbi_range)?,
            combined: shortest(|| complete(this, Tlbi::Vmalle1is))?,
            whole: shortest(|| complete(this, Tlbi::Vmalls12e1is))?,
            refill: refill(this, &walker)?,
        })
    });
    stage2.destroy(&worker).finish(&worker, |_, _, _| {});
    costs
}

fn complete(cpu: &CpuInstructions, operation: Tlbi) {
    cpu.tlbi(operation);
    cpu.barrier(Barrier::DsbIsh);
    cpu.barrier(Barrier::Isb);
}

/// The cost of the dearer of the instructions that an invalidation may consist of.
fn instruction(cpu: &CpuInstructions, by_range: bool) -> Option<u64> {
    let batch = |operation: fn(u64) -> Tlbi| {
        shortest(|| {
            for page in 0..BATCH {
                cpu.tlbi(operation(page * STRIDE));
            }
            cpu.barrier(Barrier::DsbIsh);
            cpu.barrier(Barrier::Isb);
        })
    };
    let by_page = batch(Tlbi::Ipas2le1is)?;
    let dearer = if by_range {
        // Two pages from this one on, of 4 KiB (TG = 0b01).
        by_page.max(batch(|page| Tlbi::Ripas2le1is(1 << 46 | page))?)
    } else {
        by_page
    };
    Some(dearer / BATCH)
}

/// The additional time of translations after all of the VMID was invalidated.
fn refill(cpu: &CpuInstructions, walker: &Walker) -> Option<u64> {
    let translate_all = || {
        let start = timer::counter();
        for page in 0..KEPT_TRANSLATIONS {
            let ipa = Ipa::new((page * STRIDE) << PAGE_SHIFT);
            // A refused translation costs the same.
            let _ = walker.translate(ipa, Translate::Read);
        }
        timer::counter().saturating_sub(start)
    };
    let (mut cold, mut warm) = (u64::MAX, u64::MAX);
    for _ in 0..SAMPLES {
        complete(cpu, Tlbi::Vmalls12e1is);
        cold = cold.min(translate_all());
        warm = warm.min(translate_all());
    }
    let ticks = cold.saturating_sub(warm);
    (cold >= LEAST_TICKS).then(|| picoseconds(ticks, KEPT_TRANSLATIONS, timer::frequency()))
}

/// The least duration of `operation` in picoseconds, or `None` if the clock is too coarse.
fn shortest(operation: impl Fn()) -> Option<u64> {
    let mut repetitions = 1;
    let mut shortest = u64::MAX;
    let mut samples = 0;
    while samples < SAMPLES {
        let start = timer::counter();
        for _ in 0..repetitions {
            operation();
        }
        let ticks = timer::counter().saturating_sub(start);
        if ticks >= LEAST_TICKS {
            shortest = shortest.min(picoseconds(ticks, repetitions, timer::frequency()));
            samples += 1;
        } else if repetitions == MOST_REPETITIONS {
            return None;
        } else {
            repetitions *= 2;
        }
    }
    Some(shortest)
}
