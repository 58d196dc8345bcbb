//! The environment of a scripted vCPU: a fake CPU, fake memory and fake services.

use std::boxed::Box;
use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::vec::Vec;

use memory::{Access, Fault, FaultOutcome};
use stage2::{Ipa, IpaRange, PAGE_SIZE};
use vgic::{ActivePriorities, ListRegister, VirtualInterface, vmcr};

use crate::calls::service::{Service, ServiceReply};
use crate::ids::CpuId;
use crate::ids::VcpuId;
use crate::machine::cpu::{
    Cpu, ExceptionControls, ExceptionRecord, ExitReason, Interrupt, RawExit, Stage2Registers,
    VcpuControls, WriteServer, is_forbidden_write,
};
use crate::machine::guest_memory::{GuestMemory, Refusal};
use crate::machine::protection::Protections;
use crate::registers::debug::DebugState;
use crate::registers::pmu::PmuState;
use crate::registers::state::{El1State, FpState, GuestRegs, PacKeys, VcpuState};
use crate::registers::syndrome::Syndrome;
use crate::registers::sysreg::SystemRegister;

/// The page that has code.
pub const ENTRY: u64 = 0x4000_0000;
/// Where the guest has its vectors.
pub const VBAR: u64 = 0xffff_0000_0000_1800;
pub const SPAN: u64 = 1 << 23;
const HVC: u64 = 0x16 << 26 | 1 << 25;
const SYSTEM_OFF: u64 = 0x8400_0008;

/// One turn of the guest: what it does to its registers, and how it comes out.
pub type Turn = Box<dyn FnMut(&mut GuestRegs) -> RawExit + Send>;

/// Memory that answers faults by a list, resolves them when that is used up, and has one page of code.
#[derive(Debug, Default)]
pub struct FakeSpace {
    pub outcomes: Mutex<VecDeque<FaultOutcome>>,
    pub faults: Mutex<Vec<Fault>>,
    /// What it was asked to populate, or without an access to take back.
    pub ranges: Mutex<Vec<(IpaRange, Option<Access>)>>,
    /// What it answers to that, and then that all is done.
    pub answers: Mutex<VecDeque<Result<u64, Refusal>>>,
    /// What the hypervisor has written, and where.
    pub written: Mutex<Vec<(Ipa, Vec<u8>)>>,
}

impl FakeSpace {
    fn asked(&self, range: IpaRange, most: u64, access: Option<Access>) -> Result<u64, Refusal> {
        let bytes = range.end.get() - range.start.get();
        self.ranges.lock().unwrap().push((range, access));
        let answer = self.answers.lock().unwrap().pop_front();
        answer.unwrap_or(Ok(bytes.min(most)))
    }
}

impl GuestMemory<()> for FakeSpace {
    fn activate(&self, _: &()) -> Stage2Registers {
        Stage2Registers {
            vttbr: 1,
            vtcr: 2,
            forced_write_back: false,
        }
    }

    fn fault(&self, _: &(), fault: &Fault) -> FaultOutcome {
        self.faults.lock().unwrap().push(*fault);
        self.outcomes
            .lock()
            .unwrap()
            .pop_front()
            .unwrap_or(FaultOutcome::Resolved)
    }

    fn is_backed(&self, _: &(), ipa: Ipa) -> bool {
        ipa.align_down(PAGE_SIZE) == Ipa::new(ENTRY)
    }

    fn read_bytes(&self, _: &(), ipa: Ipa, bytes: &mut [u8]) -> bool {
        // The last write of it as a whole.
        let written = self.written.lock().unwrap();
        let mut last_first = written.iter().rev();
        let found = last_first.find(|(at, written)| *at == ipa && written.len() == bytes.len());
        found.is_some_and(|(_, written)| {
            bytes.copy_from_slice(written);
            true
        })
    }

    fn write_bytes(&self, _: &(), ipa: Ipa, bytes: &[u8]) {
        self.written.lock().unwrap().push((ipa, bytes.to_vec()));
    }

    fn prefault(
        &self,
        _: &(),
        _: usize,
        range: IpaRange,
        most: u64,
        access: Access,
    ) -> Result<u64, Refusal> {
        self.asked(range, most, Some(access))
    }

    fn balloon(&self, _: &(), range: IpaRange, most: u64) -> Result<u64, Refusal> {
        self.asked(range, most, None)
    }
}

/// Answers calls and polls by a list, then by NotSupported.
#[derive(Default)]
pub struct FakeService {
    pub replies: Mutex<VecDeque<ServiceReply>>,
    pub calls: Mutex<Vec<(u32, [u64; 6])>>,
    pub low_rings: Mutex<Vec<VcpuId>>,
    /// vCPUs whose slices ended because of a pause.
    pub paused: Mutex<Vec<VcpuId>>,
}

impl FakeService {
    pub fn answering(replies: impl IntoIterator<Item = ServiceReply>) -> Self {
        Self {
            replies: Mutex::new(replies.into_iter().collect()),
            ..Self::default()
        }
    }

    fn next(&self) -> ServiceReply {
        self.replies
            .lock()
            .unwrap()
            .pop_front()
            .unwrap_or(ServiceReply::NotSupported)
    }

    pub fn left(&self) -> usize {
        self.replies.lock().unwrap().len()
    }
}

impl Service for FakeService {
    fn call(&self, _: VcpuId, function: u32, args: [u64; 6]) -> ServiceReply {
        self.calls.lock().unwrap().push((function, args));
        self.next()
    }

    fn poll(&self, _: VcpuId) -> ServiceReply {
        self.next()
    }

    fn ring_low(&self, vcpu: VcpuId) {
        self.low_rings.lock().unwrap().push(vcpu);
    }
}

/// The interrupt lines of the machine's CPUs.
pub struct Lines {
    pending: Mutex<Vec<bool>>,
    raised: Condvar,
}

impl Lines {
    pub fn new(cpus: usize) -> Arc<Self> {
        Arc::new(Self {
            pending: Mutex::new(vec![false; cpus]),
            raised: Condvar::new(),
        })
    }

    pub fn kick(&self, target: CpuId) {
        self.pending.lock().unwrap()[target.0] = true;
        self.raised.notify_all();
    }
}

/// A CPU whose guest follows a script, and then does the same for ever or turns its VM off.
pub struct FakeCpu {
    pub id: CpuId,
    pub lines: Arc<Lines>,
    pub script: VecDeque<Turn>,
    pub endless: Option<Turn>,
    pub translation: Option<Ipa>,
    pub records: Vec<ExceptionRecord>,
    /// The guest's SCTLR_EL1.
    pub sctlr: u64,
    pub loads: Vec<(VcpuState, VcpuControls)>,
    pub loaded: bool,
    /// What the guest has in its FP, system and key registers when it is put, if it has changed them.
    pub changed: Option<(El1State, FpState, PacKeys)>,
    /// The syndrome of an SError that is found when the guest is put.
    pub late_error: Option<u64>,
    pub protections: Protections,
    /// What its random number generator gives, if it has one; then nothing.
    pub random: Option<VecDeque<u64>>,
    pub sleeps: usize,
    /// MDSCR_EL1, whenever the guest has written a debug register.
    pub debug: Vec<u64>,
    /// How often a guest has begun to use the performance monitors, and the registers of these that it can't access itself.
    pub pmus_begun: usize,
    pub pmu_registers: BTreeMap<(u8, u8), u64>,
    /// The performance monitors that the guest is put with, if it has used them.
    pub pmu: Option<PmuState>,
    pub last_exit: Syndrome,
    /// What its clock says, one after the other.
    pub times: Mutex<VecDeque<u64>>,
    pub registers: FakeInterface,
    /// The guest takes all interrupts of group 1: so it leaves ICH_VMCR_EL2.
    pub unmasked: bool,
    /// The interrupts that it takes for a guest with a GIC, before kicks.
    pub taken: VecDeque<Interrupt>,
    /// What has fired when it is woken, each time.
    pub fires: VecDeque<Option<Interrupt>>,
    /// Until when it was to sleep, each time.
    pub ticks: Vec<Option<u64>>,
}

impl FakeCpu {
    pub fn new(id: usize, lines: &Arc<Lines>, script: impl IntoIterator<Item = Turn>) -> Self {
        Self {
            id: CpuId(id),
            lines: lines.clone(),
            script: script.into_iter().collect(),
            endless: None,
            translation: None,
            records: Vec::new(),
            sctlr: SPAN,
            loads: Vec::new(),
            loaded: false,
            changed: None,
            late_error: None,
            protections: Protections::default(),
            random: None,
            sleeps: 0,
            debug: Vec::new(),
            pmus_begun: 0,
            pmu_registers: BTreeMap::new(),
            pmu: None,
            last_exit: Syndrome::NONE,
            times: Mutex::default(),
            registers: FakeInterface::default(),
            unmasked: false,
            taken: VecDeque::new(),
            fires: VecDeque::new(),
            ticks: Vec::new(),
        }
    }

    /// What the guest does next.
    fn turn(&mut self, regs: &mut GuestRegs) -> RawExit {
        let exit = match (self.script.pop_front(), &mut self.endless) {
            (Some(mut turn), _) => turn(regs),
            (None, Some(turn)) => turn(regs),
            (None, None) => {
                regs.x[0] = SYSTEM_OFF;
                RawExit {
                    reason: ExitReason::Synchronous,
                    esr: HVC,
                    far: 0,
                    hpfar: 0,
                }
            }
        };
        if exit.reason == ExitReason::Synchronous {
            let RawExit { esr, far, .. } = exit;
            self.last_exit = Syndrome { esr, far };
        }
        exit
    }
}

/// List registers of no CPU.
#[derive(Clone, Debug, Default)]
pub struct FakeInterface(Arc<Mutex<FakeRegisters>>);

#[derive(Debug, Default)]
struct FakeRegisters {
    list: [ListRegister; 4],
    hcr: u64,
    vmcr: u64,
    active: ActivePriorities,
    /// The physical interrupts that are active.
    physical: Vec<u32>,
}

impl FakeInterface {
    /// The guest acknowledges an interrupt that waits.
    pub fn acknowledge(&self, intid: u32) {
        let mut registers = self.0.lock().unwrap();
        let mut all = registers.list.iter_mut();
        let found = all.find(|register| register.intid() == intid && register.pending());
        let register = found.expect("it waits");
        *register = register.with_state(false, true);
    }

    /// The interrupts that the guest has acknowledged.
    pub fn active(&self) -> Vec<u32> {
        let list = self.0.lock().unwrap().list;
        let active = list.iter().filter(|register| register.active());
        active.map(|register| register.intid()).collect()
    }

    /// The physical interrupts that were made active.
    pub fn physically_active(&self) -> Vec<u32> {
        self.0.lock().unwrap().physical.clone()
    }

    /// The interrupts that wait there to be acknowledged.
    pub fn pending(&self) -> Vec<u32> {
        let list = self.0.lock().unwrap().list;
        let pending = list.iter().filter(|register| register.pending());
        pending.map(|register| register.intid()).collect()
    }
}

impl VirtualInterface for FakeInterface {
    fn list_registers(&self) -> usize {
        self.0.lock().unwrap().list.len()
    }

    fn read_lr(&self, index: usize) -> ListRegister {
        self.0.lock().unwrap().list[index]
    }

    fn write_lr(&mut self, index: usize, value: ListRegister) {
        self.0.lock().unwrap().list[index] = value;
    }

    fn read_hcr(&self) -> u64 {
        self.0.lock().unwrap().hcr
    }

    fn write_hcr(&mut self, value: u64) {
        self.0.lock().unwrap().hcr = value;
    }

    fn read_vmcr(&self) -> u64 {
        self.0.lock().unwrap().vmcr
    }

    fn write_vmcr(&mut self, value: u64) {
        self.0.lock().unwrap().vmcr = value;
    }

    fn read_active_priorities(&self) -> ActivePriorities {
        self.0.lock().unwrap().active
    }

    fn write_active_priorities(&mut self, value: ActivePriorities) {
        self.0.lock().unwrap().active = value;
    }

    fn deactivate(&mut self, _: u32) {}

    fn set_active(&mut self, interrupt: u32, active: bool) {
        let all = &mut self.0.lock().unwrap().physical;
        all.retain(|other| *other != interrupt);
        all.extend(active.then_some(interrupt));
    }
}

impl Cpu for FakeCpu {
    type Interface = FakeInterface;

    fn now_ns(&self) -> u64 {
        let time = self.times.lock().unwrap().pop_front();
        time.expect("nobody asks for a time that isn't measured")
    }

    fn load(&mut self, state: &VcpuState, controls: &VcpuControls) {
        assert!(!self.loaded);
        self.loaded = true;
        self.last_exit = Syndrome::NONE;
        self.loads.push((state.try_clone().unwrap(), *controls));
    }

    fn put(&mut self, state: &mut VcpuState) -> Option<u64> {
        assert!(self.loaded);
        self.loaded = false;
        if let Some(changed) = self.changed.clone() {
            (state.el1, state.fp, state.pac) = changed;
        }
        if let Some(pmu) = &self.pmu {
            state.pmu.clone_from(pmu);
        }
        self.late_error.take()
    }

    fn enter<S: WriteServer>(
        &mut self,
        regs: &mut GuestRegs,
        mut server: Option<&mut S>,
    ) -> RawExit {
        assert!(self.loaded, "entered a guest that isn't loaded");
        loop {
            let exit = self.turn(regs);
            if let Some(server) = &mut server
                && exit.reason == ExitReason::Synchronous
                && is_forbidden_write(exit.esr)
                && let Some(ipa) = self.translation
            {
                if !server.serve(exit.far, ipa) {
                    let reason = ExitReason::ServedWrite;
                    return RawExit { reason, ..exit };
                }
                if !self.lines.pending.lock().unwrap()[self.id.0] {
                    continue;
                }
                let reason = ExitReason::Interrupt;
                return RawExit { reason, ..exit };
            }
            return exit;
        }
    }

    fn syndrome(&self) -> Syndrome {
        self.last_exit
    }

    fn translate_read(&mut self, _: u64) -> Option<Ipa> {
        self.translation
    }

    fn exception_controls(&mut self) -> ExceptionControls {
        ExceptionControls {
            vbar: VBAR,
            sctlr: self.sctlr,
        }
    }

    fn set_exception(&mut self, record: &ExceptionRecord) {
        self.records.push(*record);
    }

    fn set_debug(&mut self, state: &DebugState) {
        assert!(self.loaded);
        self.debug.push(state.mdscr());
    }

    fn begin_sve(&mut self, state: &mut VcpuState) {
        assert!(self.loaded);
        let sve = state.sve.as_mut().expect("the VM offers it");
        sve.begin(&state.fp.q);
    }

    fn begin_pmu(&mut self, state: &PmuState) {
        assert!(self.loaded && state.is_used);
        self.pmus_begun += 1;
    }

    fn access_pmu(&mut self, register: SystemRegister, written: Option<u64>) -> Option<u64> {
        assert!(self.loaded && self.pmus_begun != 0);
        let (_, _, _, crm, op2) = register.fields();
        let place = self.pmu_registers.get_mut(&(crm, op2))?;
        if let Some(written) = written {
            *place = written;
        }
        Some(*place)
    }

    fn id_register(&self, _: SystemRegister) -> u64 {
        u64::MAX
    }

    fn has_random(&self) -> bool {
        self.random.is_some()
    }

    fn random(&mut self) -> Option<u64> {
        self.random.as_mut()?.pop_front()
    }

    fn protections(&self) -> Protections {
        self.protections
    }

    fn kick(&mut self, target: CpuId) {
        self.lines.kick(target);
    }

    fn acknowledge_interrupts(&mut self) -> Option<u32> {
        self.lines.pending.lock().unwrap()[self.id.0] = false;
        while let Some(taken) = self.taken.front() {
            match *taken {
                Interrupt::Device(interrupt) => {
                    self.taken.pop_front();
                    return Some(interrupt);
                }
                Interrupt::Kick => _ = self.taken.pop_front(),
                // Those of a guest are off while none is loaded.
                _ => break,
            }
        }
        None
    }

    fn interface(&mut self) -> FakeInterface {
        assert!(self.loaded, "no guest is loaded");
        if self.unmasked {
            self.registers
                .write_vmcr(vmcr::VENG1 | 0xf0 << vmcr::VPMR_SHIFT);
        }
        self.registers.clone()
    }

    fn take_interrupt(&mut self) -> Option<Interrupt> {
        let taken = self.taken.pop_front();
        if taken.is_none() {
            self.lines.pending.lock().unwrap()[self.id.0] = false;
        }
        taken
    }

    fn physical_offset(&self, _: u64) -> u64 {
        0
    }

    fn wait_for_interrupt(&mut self, tick: Option<u64>) {
        self.ticks.push(tick);
        self.taken.extend(self.fires.pop_front().flatten());
        if tick.is_some() {
            return;
        }
        self.sleeps += 1;
        let mut pending = self.lines.pending.lock().unwrap();
        while !pending[self.id.0] {
            pending = self.lines.raised.wait(pending).unwrap();
        }
    }
}
