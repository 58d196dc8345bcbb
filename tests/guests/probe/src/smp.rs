//! Starting and stopping vCPUs by PSCI, rightly and wrongly.

use crate::{
    calls, count, debug, fp, hostile, interrupts, memory, pmu, registers, sve, walks, wrong,
};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use guest_runtime::{Tree, affinity, entry_point, index, println, start_vcpu};
use smccc::Hvc;
use smccc::psci::error::Error;
use smccc::psci::{AffinityState, LowestAffinityLevel, affinity_info, cpu_on};

const ROUNDS: usize = 3;

/// vCPUs that have started, in all rounds.
static STARTED: AtomicUsize = AtomicUsize::new(0);
/// They may go off again.
static MAY_LEAVE: AtomicBool = AtomicBool::new(false);

/// A check of registers that are a vCPU's own: on the first vCPU, and on the second in two lives, at interrupts set up.
pub struct TwoLives {
    check: fn(usize),
    are_wanted: AtomicBool,
    ended: AtomicUsize,
}

impl TwoLives {
    /// Of these checks, each of which is given its vCPU.
    pub const fn new(check: fn(usize)) -> Self {
        Self {
            check,
            are_wanted: AtomicBool::new(false),
            ended: AtomicUsize::new(0),
        }
    }

    /// Executes all of them, on the first vCPU.
    pub fn run(&self) {
        self.are_wanted.store(true, Ordering::Release);
        for life in 1..=2 {
            expect("CPU_ON", start_vcpu(1), Ok(()));
            if life == 1 {
                (self.check)(0);
            }
            while state(1) != Ok(AffinityState::Off) {
                core::hint::spin_loop();
            }
            if self.ended.load(Ordering::Acquire) != life {
                wrong(format_args!("vCPU 1 has ended before its time"));
            }
        }
    }

    /// Whether vCPUs are started for this.
    fn are_wanted(&self) -> bool {
        self.are_wanted.load(Ordering::Acquire)
    }

    /// A life of the second vCPU.
    fn live(&self, own: usize) -> ! {
        interrupts::set_up(own);
        (self.check)(own);
        self.ended.fetch_add(1, Ordering::AcqRel);
        guest_runtime::turn_off()
    }
}

/// What every vCPU but the first does.
pub fn secondary(own_index: usize) -> ! {
    if own_index != index() {
        wrong(format_args!("vCPU {} was started as {own_index}", index()));
    }
    if fp::is_wanted() {
        fp::secondary(own_index);
    }
    if calls::is_flooding() {
        calls::flood();
    }
    if registers::is_dirtying() {
        registers::dirtied();
    }
    if memory::is_racing() {
        memory::racer(own_index);
    }
    for lives in [&sve::LIVES, &debug::LIVES, &pmu::LIVES] {
        if lives.are_wanted() {
            lives.live(own_index);
        }
    }
    if hostile::is_wanted() {
        hostile::secondary(own_index);
    }
    if count::is_wanted() {
        count::secondary(own_index);
    }
    if interrupts::are_wanted() {
        interrupts::secondary(own_index);
    }
    if walks::is_wanted() {
        walks::secondary();
    }
    STARTED.fetch_add(1, Ordering::AcqRel);
    while !MAY_LEAVE.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    guest_runtime::turn_off()
}

/// Starts all vCPUs and waits for their end, some times over.
pub fn probe(tree: Tree) {
    let vcpus = tree.vcpus();
    for round in 1..=ROUNDS {
        MAY_LEAVE.store(false, Ordering::Release);
        for vcpu in 1..vcpus {
            start(vcpu);
        }
        while STARTED.load(Ordering::Acquire) < round * (vcpus - 1) {
            core::hint::spin_loop();
        }
        for vcpu in 0..vcpus {
            expect(
                "CPU_ON of one that is on",
                start_vcpu(vcpu),
                Err(Error::AlreadyOn),
            );
            expect("its AFFINITY_INFO", state(vcpu), Ok(AffinityState::On));
        }
        misuse(vcpus);
        MAY_LEAVE.store(true, Ordering::Release);
        for vcpu in 1..vcpus {
            while state(vcpu) != Ok(AffinityState::Off) {
                core::hint::spin_loop();
            }
        }
    }
    println!("{vcpus} vCPUs, {ROUNDS} times: done");
}

fn start(vcpu: usize) {
    expect(
        "AFFINITY_INFO of one that is off",
        state(vcpu),
        Ok(AffinityState::Off),
    );
    let odd = cpu_on::<Hvc>(affinity(vcpu), entry_point() + 1, 0);
    expect("CPU_ON at an odd address", odd, Err(Error::InvalidAddress));
    let nowhere = cpu_on::<Hvc>(affinity(vcpu), 0x7000_0000, 0);
    expect(
        "CPU_ON outside every slot",
        nowhere,
        Err(Error::InvalidAddress),
    );
    expect("CPU_ON", start_vcpu(vcpu), Ok(()));
    let again = start_vcpu(vcpu);
    if !matches!(again, Err(Error::AlreadyOn | Error::OnPending)) {
        wrong(format_args!("CPU_ON at once again: {again:?}"));
    }
}

fn misuse(vcpus: usize) {
    for target in [affinity(vcpus), 0xff, 0x1_0000, 1 << 31, 1 << 32, u64::MAX] {
        let result = cpu_on::<Hvc>(target, entry_point(), 0);
        expect(
            "CPU_ON of a vCPU that isn't there",
            result,
            Err(Error::InvalidParameters),
        );
        let result = affinity_info::<Hvc>(target, LowestAffinityLevel::All);
        expect("its AFFINITY_INFO", result, Err(Error::InvalidParameters));
    }
}

fn state(vcpu: usize) -> Result<AffinityState, Error> {
    affinity_info::<Hvc>(affinity(vcpu), LowestAffinityLevel::All)
}

fn expect<T: PartialEq + core::fmt::Debug>(what: &str, found: T, expected: T) {
    if found != expected {
        wrong(format_args!("{what}: {found:?} instead of {expected:?}"));
    }
}
