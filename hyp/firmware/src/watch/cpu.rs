//! A CPU that reports its TLB instructions, barriers and loaded VM to the checker. It reports each after the hardware has
//! executed it, so that nothing counts as complete too early.

use memory::{AddressSpace, Caches, CpuMemory, Parallel, VmId};
use platform::cpu::features::CpuFeatures;
use platform::cpu::tlb::{self, CpuInstructions};
use platform::el2::world::HardwareCpu;
use stage2::{Barrier, Features, Instructions, Ipa, Layout, Maintenance, Pa, Tlbi};
use vm::{
    Cpu, CpuId, DebugState, ExceptionControls, ExceptionRecord, GuestRegs, Interrupt, PmuState,
    Protections, RawExit, Syndrome, SystemRegister, VcpuControls, VcpuState, WriteServer,
};

use super::inject;
use super::live::{CHECKER, report, this_cpu};

/// The calling CPU's TLB and cache instructions.
pub type Hardware = Maintenance<WatchedInstructions>;

/// The calling CPU's instructions, at most `most_instructions` for an invalidation.
pub fn hardware(features: &CpuFeatures, most_instructions: u32) -> Hardware {
    let policy = tlb::policy(features, most_instructions);
    Maintenance::new(WatchedInstructions(CpuInstructions::new()), policy)
}

/// The calling CPU, to run guests.
pub fn guest_cpu(features: &CpuFeatures) -> GuestCpu {
    GuestCpu(HardwareCpu::new(features))
}

/// Gives the first 256 VMIDs to VMs that end at once. With 16-bit VMIDs, the next ones don't fit into 8 bits, so that an
/// invalidation with the wrong VTCR_EL2 is found. With 8-bit VMIDs, there is a rollover.
pub fn use_up_vmids(cpu: &CpuMemory<Hardware>, features: Features) {
    let layout = Layout::new(features).ok();
    for _ in 0..1 << 8 {
        let vm = VmId::new(0).zip(layout);
        let space = vm.and_then(|(vm, layout)| AddressSpace::<Parallel>::new(cpu, vm, layout).ok());
        if let Some(space) = space {
            space.activate(cpu);
            space.destroy(cpu);
        }
    }
}

/// Instructions that are reported to the checker.
#[derive(Clone, Copy, Debug)]
pub struct WatchedInstructions(CpuInstructions);

impl Instructions for WatchedInstructions {
    fn tlbi(&self, operation: Tlbi) {
        let Some(operation) = inject::tlbi(operation) else {
            return;
        };
        self.0.tlbi(operation);
        CHECKER.tlbi(this_cpu(), operation.into());
    }

    fn barrier(&self, barrier: Barrier) {
        if !inject::keeps(barrier) {
            return;
        }
        self.0.barrier(barrier);
        CHECKER.barrier(this_cpu(), barrier.into());
    }

    fn vttbr(&self) -> u64 {
        self.0.vttbr()
    }

    fn set_vttbr(&self, value: u64) {
        self.0.set_vttbr(value);
        CHECKER.vttbr(this_cpu(), value);
    }

    fn vtcr(&self) -> u64 {
        self.0.vtcr()
    }

    fn set_vtcr(&self, value: u64) {
        self.0.set_vtcr(value);
        CHECKER.vtcr(this_cpu(), value);
    }
}

impl Caches for WatchedInstructions {
    fn clean_for_guest(&self, pa: Pa, bytes: u64) {
        self.0.clean_for_guest(pa, bytes);
    }

    fn clean_for_fetches(&self, pa: Pa, bytes: u64) {
        self.0.clean_for_fetches(pa, bytes);
    }

    fn clean_for_hypervisor(&self, pa: Pa, bytes: u64) {
        self.0.clean_for_hypervisor(pa, bytes);
    }
}

/// A world switch that is reported to the checker.
#[derive(Debug)]
pub struct GuestCpu(HardwareCpu);

/// Reports the CPU's registers to the checker, after a world switch has written and synchronised them.
fn tell_registers() {
    let (cpu, number) = (CpuInstructions::new(), this_cpu());
    CHECKER.vtcr(number, cpu.vtcr());
    CHECKER.vttbr(number, cpu.vttbr());
    CHECKER.barrier(number, Barrier::Isb.into());
}

impl Cpu for GuestCpu {
    type Interface = <HardwareCpu as Cpu>::Interface;

    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }

    fn load(&mut self, state: &VcpuState, controls: &VcpuControls) {
        self.0.load(state, controls);
        tell_registers();
    }

    fn put(&mut self, state: &mut VcpuState) -> Option<u64> {
        let error = self.0.put(state);
        tell_registers();
        error
    }

    fn enter<S: WriteServer>(&mut self, regs: &mut GuestRegs, _: Option<&mut S>) -> RawExit {
        // Each entry is reported, so each fault is an exit.
        report(CHECKER.enter(this_cpu()));
        self.0.enter(regs, None::<&mut S>)
    }

    fn syndrome(&self) -> Syndrome {
        self.0.syndrome()
    }

    fn translate_read(&mut self, va: u64) -> Option<Ipa> {
        self.0.translate_read(va)
    }

    fn exception_controls(&mut self) -> ExceptionControls {
        self.0.exception_controls()
    }

    fn set_exception(&mut self, record: &ExceptionRecord) {
        self.0.set_exception(record);
    }

    fn set_debug(&mut self, state: &DebugState) {
        self.0.set_debug(state);
    }

    fn begin_sve(&mut self, state: &mut VcpuState) {
        self.0.begin_sve(state);
    }

    fn begin_pmu(&mut self, state: &PmuState) {
        self.0.begin_pmu(state);
    }

    fn access_pmu(&mut self, register: SystemRegister, written: Option<u64>) -> Option<u64> {
        self.0.access_pmu(register, written)
    }

    fn id_register(&self, register: SystemRegister) -> u64 {
        self.0.id_register(register)
    }

    fn has_random(&self) -> bool {
        self.0.has_random()
    }

    fn random(&mut self) -> Option<u64> {
        self.0.random()
    }

    fn protections(&self) -> Protections {
        self.0.protections()
    }

    fn kick(&mut self, target: CpuId) {
        self.0.kick(target);
    }

    fn acknowledge_interrupts(&mut self) -> Option<u32> {
        self.0.acknowledge_interrupts()
    }

    fn wait_for_interrupt(&mut self, tick: Option<u64>) {
        self.0.wait_for_interrupt(tick);
    }

    fn interface(&mut self) -> Self::Interface {
        self.0.interface()
    }

    fn take_interrupt(&mut self) -> Option<Interrupt> {
        self.0.take_interrupt()
    }

    fn physical_offset(&self, offset: u64) -> u64 {
        self.0.physical_offset(offset)
    }
}
