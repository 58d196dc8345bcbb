//! A virtual machine: its memory, the state that its vCPUs share, and its run state.
//!
//! Shared by the CPUs that run its vCPUs and by whoever watches them. The words that the run loop reads on each exit lie in a
//! cache line that is written only by power changes of vCPUs, pauses and the VM's end; each vCPU's own words lie in cache lines
//! of its own.

mod context_lock;
pub(crate) mod devices;
pub(crate) mod glance;
pub(crate) mod pause;
pub(crate) mod power;
pub(crate) mod run_state;
pub(crate) mod stop_reason;

use crate::ids::{CLUSTER, MAX_VCPUS, VcpuId};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::AtomicUsize;
use stage2::sync::{AtomicU64, Ordering, fence};
use vgic::{VcpuInterrupts, Version};

use crate::counts::exits::{ExitCounters, ExitCounts};
use crate::counts::fault_latency::{HoldPeriod, LongestHold};
use crate::ids::CpuId;
use crate::random::{Generator, Seed};
use crate::registers::nospec::within;
use crate::registers::offer::{Offer, OfferedFeatures};
use crate::registers::state::Context;
use crate::registers::state::Start;
use crate::registers::sve::SveState;
use crate::stolen_time::StolenTimes;
use crate::vm::context_lock::ContextLock;
use crate::vm::devices::Devices;
use crate::vm::power::{PowerState, PowerSwitch};
use crate::vm::run_state::Life;
use crate::vm::stop_reason::Starvation;
use crate::vm::stop_reason::StopReason;

/// The affinity fields of MPIDR_EL1, as PSCI takes them.
const AFFINITY: u64 = 0xff_00ff_ffff;
/// `VcpuShared::cpu` of a vCPU that no CPU runs.
const NOWHERE: u64 = u64::MAX;

/// What a VM is made with.
#[derive(Clone, Copy, Debug)]
pub struct VmConfig {
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Size of the guest's physical address space.
    pub ipa_bits: u32,
    /// The physical counter's value at which the guest's virtual counter is 0, as long as its time hasn't stood still.
    pub counter_offset: u64,
    /// Whether vCPUs measure fault latency ([`Vm::longest_hold_ns`]).
    pub times_faults: bool,
}

/// A VM can't be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmError {
    /// It can't have this many vCPUs.
    VcpuCount(usize),
    /// There is not enough memory to describe this many.
    OutOfMemory(usize),
}

impl fmt::Display for VmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VcpuCount(vcpus) => {
                write!(f, "a VM can't have {vcpus} vCPUs: 1 to {MAX_VCPUS}")
            }
            Self::OutOfMemory(vcpus) => write!(f, "not enough memory for {vcpus} vCPUs"),
        }
    }
}

impl core::error::Error for VmError {}

/// The shared state of one vCPU.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct VcpuShared {
    /// Its registers. A slice holds the lock from before it enters the guest until it has left all handlers.
    pub(crate) context: ContextLock,
    pub(crate) power: PowerSwitch,
    cpu: AtomicU64,
    pub(crate) longest_hold: LongestHold,
    pub(crate) exits: ExitCounters,
}

impl VcpuShared {
    fn new(context: Context, power: PowerSwitch) -> Self {
        Self {
            context: ContextLock::new(context),
            power,
            cpu: AtomicU64::new(NOWHERE),
            longest_hold: LongestHold::default(),
            exits: ExitCounters::default(),
        }
    }

    /// The state of a fork's vCPU, which starts from this paused one, for which time has stood still for so many nanoseconds.
    /// Waits while a slice of this one holds its registers. `None` if there is no memory for it.
    pub(crate) fn fork(&self, still_ns: u64) -> Option<Self> {
        let mut context = self.context.lock().fork()?;
        context.stolen.skip(still_ns);
        Some(Self::new(context, self.power.fork()))
    }
}

/// Fields that every exit reads and that seldom change.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Rarely {
    life: Life,
    vcpus_on: AtomicUsize,
}

/// A virtual machine whose memory is an `S`.
#[derive(Debug)]
pub struct Vm<S> {
    rarely: Rarely,
    vcpus: Box<[VcpuShared]>,
    hold_period: HoldPeriod,
    config: VmConfig,
    /// The physical counter's value at which the guest's virtual counter is 0. Changes while all vCPUs are out of the guest.
    counter_offset: AtomicU64,
    devices: Option<Devices>,
    stolen_times: Option<StolenTimes>,
    features: OfferedFeatures,
    /// The guest's memory.
    pub space: S,
}

impl<S> Vm<S> {
    /// A VM with all its vCPUs off.
    ///
    /// # Errors
    /// It can't have so many vCPUs, or there is not enough memory for them. Returns the space.
    pub fn new(config: VmConfig, space: S) -> Result<Self, (VmError, S)> {
        Self::with_devices(config, None, space)
    }

    /// As [`Self::new`], with an interrupt controller and devices.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn with_devices(
        config: VmConfig,
        devices: Option<Devices>,
        space: S,
    ) -> Result<Self, (VmError, S)> {
        let count = config.vcpus;
        if count == 0 || count > MAX_VCPUS {
            return Err((VmError::VcpuCount(count), space));
        }
        let mut vcpus = Vec::new();
        if vcpus.try_reserve_exact(count).is_err() {
            return Err((VmError::OutOfMemory(count), space));
        }
        let interrupts = |vcpu| devices.is_some().then(|| VcpuInterrupts::new(vcpu));
        vcpus.extend(
            (0..count)
                .map(|vcpu| VcpuShared::new(Context::new(interrupts(vcpu)), PowerSwitch::new())),
        );
        let vcpus = vcpus.into_boxed_slice();
        Ok(Self::with_vcpus(config, devices, vcpus, space))
    }

    /// A VM of these vCPUs, none of which is bound to a CPU.
    pub(crate) fn with_vcpus(
        config: VmConfig,
        devices: Option<Devices>,
        vcpus: Box<[VcpuShared]>,
        space: S,
    ) -> Self {
        let is_on = |vcpu: &&VcpuShared| vcpu.power.state() != PowerState::Off;
        let vcpus_on = AtomicUsize::new(vcpus.iter().filter(is_on).count());
        Self {
            rarely: Rarely {
                life: Life::default(),
                vcpus_on,
            },
            vcpus,
            hold_period: HoldPeriod::default(),
            counter_offset: AtomicU64::new(config.counter_offset),
            config,
            devices,
            stolen_times: None,
            features: OfferedFeatures::default(),
            space,
        }
    }

    /// Gives the VM's vCPUs random numbers that follow from `seed`, which no other VM has. CPUs with a generator of their own need
    /// none.
    pub fn set_seed(&mut self, seed: Seed) {
        for (vcpu, shared) in self.vcpus.iter().enumerate() {
            let generator = Generator::new(seed.child(vcpu as u64));
            shared.context.lock().generator = Some(generator);
        }
    }

    /// Has the VM tell its vCPUs the time that was stolen from them, in structures in its memory.
    pub fn tell_stolen_time(&mut self, times: StolenTimes) {
        self.stolen_times = Some(times);
    }

    /// Has the VM offer these features, which all CPUs have that run it. None of its vCPUs has been on.
    ///
    /// # Errors
    /// There is no memory for their registers.
    pub fn offer_features(&mut self, features: OfferedFeatures) -> Result<(), VmError> {
        if features.vector_bytes != 0 {
            for shared in &self.vcpus {
                let sve = SveState::new(features.vector_bytes);
                let sve = sve.ok_or(VmError::OutOfMemory(self.vcpus.len()))?;
                shared.context.lock().state.sve = Some(sve);
            }
        }
        self.features = features;
        Ok(())
    }

    /// The features that a fork offers too: its vCPUs have their registers.
    pub(crate) fn features(&self) -> OfferedFeatures {
        self.features
    }

    pub(crate) fn inherit_features(&mut self, features: OfferedFeatures) {
        self.features = features;
    }

    pub(crate) fn stolen_times(&self) -> Option<StolenTimes> {
        self.stolen_times
    }

    /// The VM's interrupt controller and devices, if it has any.
    pub fn devices(&self) -> Option<&Devices> {
        self.devices.as_ref()
    }

    pub(crate) fn config(&self) -> &VmConfig {
        &self.config
    }

    pub(crate) fn life(&self) -> &Life {
        &self.rarely.life
    }

    /// The VM's vCPUs.
    pub fn vcpus(&self) -> impl Iterator<Item = VcpuId> + use<S> {
        (0..self.vcpus.len()).map(VcpuId)
    }

    /// Size of the guest's physical address space.
    pub fn ipa_bits(&self) -> u32 {
        self.config.ipa_bits
    }

    /// What the VM offers its guest, as far as system registers show it.
    pub(crate) fn offer(&self) -> Offer {
        Offer {
            ipa_bits: self.ipa_bits(),
            gic_registers: self
                .devices
                .as_ref()
                .is_some_and(|devices| devices.gic.version() == Version::V3),
            debug: self.features.debug,
            sve: self.features.vector_bytes != 0,
            pmu: self.features.pmu,
        }
    }

    /// The physical counter's value at which the guest's virtual counter is 0.
    pub fn counter_offset(&self) -> u64 {
        // Ordered by the run state, which whoever changes it releases afterwards.
        self.counter_offset.load(Ordering::Relaxed)
    }

    /// Lets the guest's virtual counter go on where it was `ticks` ago. All vCPUs are out of the guest.
    pub(crate) fn skip_time(&self, ticks: u64) {
        self.counter_offset.fetch_add(ticks, Ordering::Relaxed);
    }

    /// The vCPU with this affinity, as PSCI names it.
    pub fn vcpu_at(&self, affinity: u64) -> Option<VcpuId> {
        let (cluster, core) = ((affinity >> 8 & 0xff) as usize, (affinity & 0xff) as usize);
        let vcpu = VcpuId(cluster * CLUSTER + core);
        let exists =
            affinity & !AFFINITY == 0 && vcpu.0 < self.vcpus.len() && vcpu.affinity() == affinity;
        exists.then_some(VcpuId(within(vcpu.0, self.vcpus.len())))
    }

    /// Turns a vCPU on: its next slice starts it. If it isn't off, returns its state. Panics if there is no such vCPU.
    ///
    /// The CPU that the vCPU is bound to, if [`cpu_of`](Self::cpu_of) names one, must be kicked afterwards.
    pub fn turn_on(&self, vcpu: VcpuId, start: Start) -> Result<(), PowerState> {
        // Counted first: the vCPU may be off again before this returns.
        self.rarely.vcpus_on.fetch_add(1, Ordering::Relaxed);
        let turned_on = self.shared(vcpu).power.turn_on(start);
        if turned_on.is_err() {
            self.rarely.vcpus_on.fetch_sub(1, Ordering::Relaxed);
        }
        // A CPU that binds the vCPU after this sees that it was turned on.
        fence(Ordering::SeqCst);
        turned_on
    }

    /// Turns a vCPU off, by its own slice. Returns whether it was the last.
    pub(crate) fn turn_off(&self, vcpu: VcpuId) -> bool {
        self.shared(vcpu).power.turn_off();
        self.rarely.vcpus_on.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Whether a vCPU is on. Panics if there is no such vCPU.
    pub fn power_state(&self, vcpu: VcpuId) -> PowerState {
        self.shared(vcpu).power.state()
    }

    /// The CPU that a vCPU is bound to: it runs the vCPU, or waits to.
    pub fn cpu_of(&self, vcpu: VcpuId) -> Option<CpuId> {
        match self.shared(vcpu).cpu.load(Ordering::SeqCst) {
            NOWHERE => None,
            cpu => Some(CpuId(cpu as usize)),
        }
    }

    /// Binds a vCPU to `cpu`, unless it is bound already.
    pub(crate) fn bind(&self, vcpu: VcpuId, cpu: CpuId) -> bool {
        let shared = self.shared(vcpu);
        shared
            .cpu
            .compare_exchange(NOWHERE, cpu.0 as u64, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }

    pub(crate) fn unbind(&self, vcpu: VcpuId) {
        self.shared(vcpu).cpu.store(NOWHERE, Ordering::SeqCst);
    }

    pub(crate) fn shared(&self, vcpu: VcpuId) -> &VcpuShared {
        &self.vcpus[vcpu.0]
    }

    /// Calls `kick` for each CPU that one of its vCPUs is bound to.
    pub fn kick_all(&self, mut kick: impl FnMut(CpuId)) {
        // A CPU that binds a vCPU after this sees what was written before.
        fence(Ordering::SeqCst);
        for vcpu in self.vcpus() {
            if let Some(cpu) = self.cpu_of(vcpu) {
                kick(cpu);
            }
        }
    }

    /// Ends the VM, unless it has ended already, and calls `kick` for each CPU that one of its vCPUs is bound to. A slice ends
    /// as soon as its CPU has been kicked.
    pub fn stop(&self, reason: StopReason, kick: impl FnMut(CpuId)) {
        self.life().end(reason);
        self.kick_all(kick);
    }

    /// The reason why the VM has ended, if it has.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.life().reason()
    }

    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        self.life().has_ended()
    }

    /// Whether vCPUs may run: the VM is neither paused nor ended.
    #[inline]
    pub(crate) fn runs(&self) -> bool {
        self.life().runs()
    }

    /// Pauses the VM for lack of memory, and calls `kick` as [`Self::stop`] does.
    pub(crate) fn starve(&self, starvation: Starvation, kick: impl FnMut(CpuId)) {
        self.life().starve(starvation);
        self.kick_all(kick);
    }

    /// The missing memory for which the VM is paused. It stays paused until [`Self::feed`].
    pub fn starvation(&self) -> Option<Starvation> {
        self.life().starvation()
    }

    /// Resumes a VM that was paused for lack of memory, as some was freed, unless it is paused for another reason too. Calls
    /// `kick` as [`Self::stop`] does. The access that lacked memory is tried again.
    pub fn feed(&self, kick: impl FnMut(CpuId)) {
        if self.life().feed() {
            self.kick_all(kick);
        }
    }

    /// The current period, if the vCPUs measure fault latency.
    #[inline]
    pub(crate) fn timed(&self) -> Option<&HoldPeriod> {
        self.config.times_faults.then_some(&self.hold_period)
    }

    /// Begins a new period of [`Self::longest_hold_ns`]. Faults that are being served count in this one or the last.
    pub fn begin_hold_period(&self) {
        self.hold_period.begin();
    }

    /// The longest fault latency in this period: from an exit for a stage-2 fault until the vCPU could enter again, without the
    /// time that it slept for lack of room in its dirty ring. In nanoseconds; 0 unless [`VmConfig::times_faults`].
    pub fn longest_hold_ns(&self) -> u64 {
        let holds = self.vcpus.iter().map(|vcpu| &vcpu.longest_hold);
        holds
            .map(|hold| hold.within(&self.hold_period))
            .max()
            .unwrap_or(0)
    }

    /// A vCPU's exits so far.
    pub fn exits_of(&self, vcpu: VcpuId) -> ExitCounts {
        self.shared(vcpu).exits.snapshot()
    }

    /// The exits of all vCPUs so far.
    pub fn exits(&self) -> ExitCounts {
        let mut sum = ExitCounts::default();
        self.vcpus().for_each(|vcpu| sum.add(&self.exits_of(vcpu)));
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn vm(vcpus: usize) -> Vm<()> {
        Vm::new(
            VmConfig {
                vcpus,
                ipa_bits: 40,
                counter_offset: 0,
                times_faults: false,
            },
            (),
        )
        .unwrap()
    }

    #[test]
    fn vcpus_are_grouped_by_sixteen() {
        let vm = vm(40);
        assert_eq!(VcpuId(17).mpidr(), 0x8000_0101);
        assert_eq!(vm.vcpu_at(0x101), Some(VcpuId(17)));
        assert_eq!(vm.vcpu_at(0x207), Some(VcpuId(39)));
        assert_eq!(vm.vcpu_at(0x208), None);
        assert_eq!(vm.vcpu_at(0x10), None, "affinity 0 counts to 15 only");
        assert_eq!(vm.vcpu_at(0x8000_0000), None, "not an affinity field");
        assert_eq!(vm.vcpu_at(0x1_0000), None);
        assert_eq!(vm.vcpu_at(u64::MAX), None);
        assert!(
            vm.vcpus()
                .all(|vcpu| vm.vcpu_at(vcpu.affinity()) == Some(vcpu))
        );
    }

    #[test]
    fn a_vm_has_at_least_one_vcpu_and_not_too_many() {
        let config = |vcpus| VmConfig {
            vcpus,
            ipa_bits: 40,
            counter_offset: 0,
            times_faults: false,
        };
        assert!(matches!(
            Vm::new(config(0), ()),
            Err((VmError::VcpuCount(0), ()))
        ));
        assert!(Vm::new(config(MAX_VCPUS + 1), ()).is_err());
    }

    #[test]
    fn the_first_reason_to_end_stays_and_everybody_is_kicked() {
        let vm = vm(3);
        assert!(vm.bind(VcpuId(0), CpuId(4)));
        assert!(vm.bind(VcpuId(2), CpuId(6)));
        assert!(
            !vm.bind(VcpuId(2), CpuId(7)),
            "a vCPU runs on one CPU at a time"
        );
        assert_eq!(vm.stop_reason(), None);
        let mut kicked = Vec::new();
        vm.stop(StopReason::PoweredOff, |cpu| kicked.push(cpu));
        vm.stop(StopReason::TimedOut, |_| {});
        assert_eq!(kicked, vec![CpuId(4), CpuId(6)]);
        assert_eq!(vm.stop_reason(), Some(StopReason::PoweredOff));
        vm.unbind(VcpuId(2));
        assert_eq!(vm.cpu_of(VcpuId(2)), None);
    }

    #[test]
    fn the_last_vcpu_to_go_off_is_told() {
        let vm = vm(2);
        let start = Start {
            entry: 0,
            context: 0,
        };
        vm.turn_on(VcpuId(0), start).unwrap();
        vm.turn_on(VcpuId(1), start).unwrap();
        assert_eq!(vm.turn_on(VcpuId(1), start), Err(PowerState::OnPending));
        assert!(!vm.turn_off(VcpuId(1)));
        assert!(vm.turn_off(VcpuId(0)));
    }
}
