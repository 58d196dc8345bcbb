//! Starts the secondary CPUs by PSCI. Each starts on the final tables, checks that it matches the boot CPU, and enters the
//! function given to it.

use crate::boot::context::BOOT_CONTEXT;
use crate::cpu::caches;
use crate::cpu::common::{Common, Own};
use crate::cpu::features::{self, CpuFeatures};
use crate::cpu::percpu::{self, CpuId, PerCpu};
use crate::cpu::register::read_register;
use crate::discovery::Mpidr;
use crate::drivers::gic::{self, GicError};
use crate::drivers::timer;
use crate::el2::exceptions;
use crate::el2::pmu;
use crate::el2::protect;
use crate::el2::set_up;
use crate::el2::sve;
use crate::power::park::{ParkCode, park};
use crate::power::psci;
use core::fmt;
use core::sync::atomic::Ordering;
use spin::{Mutex, Once};

/// States of a CPU, in [`PerCpu::state`].
const OFF: u8 = 0;
const ONLINE: u8 = 1;
const FAILED: u8 = 2;

/// The longest time a CPU may take to answer, once all earlier CPUs have.
const PATIENCE_NS: u64 = 10_000_000_000;

static FEATURES: Once<CpuFeatures> = Once::new();
/// What the CPUs that are up have in common.
static COMMON: Mutex<Option<Common>> = Mutex::new(None);
static ENTRY: Once<fn(CpuId) -> !> = Once::new();
static FAULT: Mutex<Option<CpuStartError>> = Mutex::new(None);

/// The features of all CPUs.
///
/// # Panics
/// Before [`Boot::take_over`](crate::boot::Boot::take_over).
pub fn features() -> &'static CpuFeatures {
    FEATURES
        .get()
        .expect("the boot CPU's features are probed first of all")
}

pub(crate) fn set_features(features: CpuFeatures) {
    FEATURES.call_once(|| features);
    note_own(&features);
}

/// Notes what the calling CPU, which has no guest yet, has in common with the others.
fn note_own(features: &CpuFeatures) {
    const MPIDR_MT: u64 = 1 << 24;
    let own = Common::of(&Own {
        vector_lengths: sve::vector_lengths(features),
        pmu: features.pmu,
        event_counters: pmu::event_counters(features),
        is_thread: read_register!("mpidr_el1") & MPIDR_MT != 0,
    });
    let mut common = COMMON.lock();
    *common = Some(common.map_or(own, |common| common.and(own)));
}

/// What all CPUs have in common of the features in which they may differ. All are up.
///
/// # Panics
/// Before [`Boot::take_over`](crate::boot::Boot::take_over).
pub fn common() -> Common {
    (*COMMON.lock()).expect("the boot CPU has noted its own")
}

/// Why a CPU can't be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuStartError {
    /// Firmware refuses to start it.
    Refused {
        /// The CPU.
        cpu: CpuId,
        /// Its affinity.
        mpidr: Mpidr,
        /// The error.
        error: psci::Error,
    },
    /// It was started, and doesn't answer.
    NoAnswer {
        /// The CPU.
        cpu: CpuId,
        /// Its affinity.
        mpidr: Mpidr,
    },
    /// It lacks a feature of the boot CPU.
    Unlike {
        /// The CPU.
        cpu: CpuId,
        /// Its affinity.
        mpidr: Mpidr,
        /// The missing feature.
        feature: &'static str,
    },
    /// Its part of the interrupt controller can't be used.
    Gic(GicError),
}

impl fmt::Display for CpuStartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { cpu, mpidr, error } => {
                write!(f, "firmware doesn't start {cpu} ({mpidr}): {error}")
            }
            Self::NoAnswer { cpu, mpidr } => {
                write!(f, "{cpu} ({mpidr}) was started but doesn't come up")
            }
            Self::Unlike {
                cpu,
                mpidr,
                feature,
            } => {
                write!(f, "{cpu} ({mpidr}) differs from the boot CPU in {feature}")
            }
            Self::Gic(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for CpuStartError {}

/// Starts all other CPUs; each runs `entry` with its number, interrupts masked. Returns when all of them are up. With
/// `mitigations`, exits from guests apply the speculation mitigations on all CPUs. Must be called once, by the boot CPU.
///
/// # Errors
/// One doesn't come up.
pub fn start_secondaries(entry: fn(CpuId) -> !, mitigations: bool) -> Result<(), CpuStartError> {
    unsafe extern "C" {
        safe static secondary_start: u8;
    }
    ENTRY.call_once(|| entry);
    if !mitigations {
        protect::switch_off();
    }
    if let Some(own) = PerCpu::try_current() {
        log::info!("exits from guests begin with {}", protect::this_cpu(own));
    }
    caches::clean_value(&BOOT_CONTEXT);
    let start = (&raw const secondary_start) as u64;
    for cpu in percpu::secondaries() {
        let context = core::ptr::from_ref(cpu) as u64;
        psci::cpu_on(cpu.mpidr, start, context).map_err(|error| CpuStartError::Refused {
            cpu: cpu.id,
            mpidr: cpu.mpidr,
            error,
        })?;
    }
    percpu::secondaries().iter().try_for_each(wait_until_online)
}

/// The model of the calling CPU.
pub fn model() -> &'static str {
    features::model_name(read_register!("midr_el1"))
}

/// The number of CPUs, all of them running.
pub fn count() -> usize {
    1 + percpu::secondaries().len()
}

fn wait_until_online(cpu: &PerCpu) -> Result<(), CpuStartError> {
    let deadline = timer::now_ns().saturating_add(PATIENCE_NS);
    loop {
        match cpu.state.load(Ordering::Acquire) {
            ONLINE => return Ok(()),
            OFF if timer::now_ns() < deadline => core::hint::spin_loop(),
            _ => break,
        }
    }
    let failure = FAULT.lock().take();
    Err(failure.unwrap_or(CpuStartError::NoAnswer {
        cpu: cpu.id,
        mpidr: cpu.mpidr,
    }))
}

/// The entry of a started CPU, called by the entry code on the CPU's own stack.
pub(crate) extern "C" fn secondary_main(cpu: &'static PerCpu) -> ! {
    let features = CpuFeatures::probe();
    set_up::set_registers(&features);
    exceptions::unmask_errors();
    protect::this_cpu(cpu);
    match check(cpu, &features) {
        Ok(entry) => {
            note_own(&features);
            cpu.state.store(ONLINE, Ordering::Release);
            entry(cpu.id)
        }
        Err(error) => {
            FAULT.lock().get_or_insert(error);
            cpu.state.store(FAILED, Ordering::Release);
            park(ParkCode::EarlyFault)
        }
    }
}

fn check(cpu: &PerCpu, own: &CpuFeatures) -> Result<fn(CpuId) -> !, CpuStartError> {
    if let Some(feature) = features().missing_on(own) {
        return Err(CpuStartError::Unlike {
            cpu: cpu.id,
            mpidr: cpu.mpidr,
            feature,
        });
    }
    gic::init_cpu().map_err(CpuStartError::Gic)?;
    ENTRY.get().copied().ok_or(CpuStartError::NoAnswer {
        cpu: cpu.id,
        mpidr: cpu.mpidr,
    })
}
