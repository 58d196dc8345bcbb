//! The world switch: moves one CPU between EL2 and its guest.
//!
//! A vCPU keeps its CPU, so its system, FP and key registers are switched only when it is loaded and put; an exit saves the
//! general registers and nothing else (`world.S`). Each CPU has its own [`HardwareCpu`]; nothing here is shared.

use core::arch::global_asm;
use core::mem::offset_of;
use core::ptr;

use aarch64_cpu::asm::barrier::{self, SY};
use aarch64_cpu::asm::wfi;
use aarch64_cpu::registers::HCR_EL2;
use stage2::{Instructions, Ipa, PAGE_SIZE, RegimeRegisters};
use vm::{
    Cpu, DebugPoints, DebugState, El1State, ExceptionControls, ExceptionRecord, ExitReason,
    FpState, GuestRegs, Interrupt, PacKeys, PmuState, Protections, RawExit, Stage2Registers,
    Syndrome, SystemRegister, VcpuControls, VcpuState, WriteServer, forbidden_write,
};

use crate::cpu::features::CpuFeatures;
use crate::cpu::percpu::CpuId;
use crate::cpu::random;
use crate::cpu::recover;
use crate::cpu::register::{read_register, write_register};
use crate::cpu::tlb::CpuInstructions;
use crate::drivers::gic::{self, ListRegisters};
use crate::drivers::timer;
use crate::el2::debug;
use crate::el2::exceptions;
use crate::el2::pmu::Pmu;
use crate::el2::protect;
use crate::el2::set_up::{CNTHCTL_COUNTER, HCR_BOOT};
use crate::el2::sve;
use crate::el2::walker::HCR_FWB;

global_asm!(
    include_str!("world.S"),
    x = const offset_of!(GuestRegs, x),
    pc = const offset_of!(GuestRegs, pc),
    q = const offset_of!(FpState, q),
    fpcr = const offset_of!(FpState, fpcr),
    data_abort = const forbidden_write::CLASS,
    write_shift = const forbidden_write::STATUS_SHIFT,
    write_bits = const forbidden_write::STATUS_BITS,
    forbidden_write = const forbidden_write::STATUS,
    synchronous = const ExitReason::Synchronous as u64,
    interrupt = const ExitReason::Interrupt as u64,
    system_error = const ExitReason::SystemError as u64,
);

const _: () = assert!(
    offset_of!(GuestRegs, pstate) == offset_of!(GuestRegs, pc) + 8
        && offset_of!(FpState, fpsr) == offset_of!(FpState, fpcr) + 8,
    "world.S loads and stores these as pairs"
);

const _: () = assert!(
    forbidden_write::CLASS_SHIFT == 26 && forbidden_write::CLASS_BITS == 6,
    "world.S reads ESR_EL2.EC so"
);

unsafe extern "C" {
    fn world_enter(
        regs: *mut GuestRegs,
        server: *mut (),
        serve: unsafe extern "C" fn(*mut ()) -> u64,
    ) -> ExitReason;
    fn world_load_fp(state: *const FpState);
    fn world_save_fp(state: *mut FpState);
    fn world_take_error() -> u64;
}

/// HCR_EL2 bits that aarch64-cpu doesn't name: no access to what isn't offered, nor to what acts on the whole machine
/// (Arm ARM D23.2.53).
const HCR_TWI: u64 = 1 << 13;
const HCR_TID3: u64 = 1 << 18;
const HCR_TIDCP: u64 = 1 << 20;
const HCR_TACR: u64 = 1 << 21;
const HCR_TSW: u64 = 1 << 22;
const HCR_TLOR: u64 = 1 << 35;
const HCR_TERR: u64 = 1 << 36;
const HCR_TEA: u64 = 1 << 37;
const HCR_APK: u64 = 1 << 40;
const HCR_API: u64 = 1 << 41;
const HCR_TID5: u64 = 1 << 58;

/// HCR_EL2 while a guest is loaded.
const HCR_GUEST: u64 = HCR_BOOT
    | HCR_EL2::VM::Enable.value
    | HCR_EL2::SWIO::SET.value
    | HCR_TWI
    | HCR_TID3
    | HCR_TIDCP
    | HCR_TACR
    | HCR_TSW;

/// CNTHCTL_EL2 without VHE: EL1 has the physical timer (EL1PCEN); what it sees of timer and counter is less CNTPOFF_EL2 (ECV).
const CNTHCTL_TIMER: u64 = 1 << 1;
const CNTHCTL_ECV: u64 = 1 << 12;

/// PAR_EL1: the address that a translation gave (D23.2.122).
const PAR_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// This CPU, as it runs guests.
#[derive(Debug)]
pub struct HardwareCpu {
    hcr: u64,
    pauth: bool,
    ras: bool,
    has_random: bool,
    /// CNTPOFF_EL2 exists and acts.
    offsets_physical_counter: bool,
    list_registers: Option<ListRegisters>,
    protections: Protections,
    /// The breakpoints and watchpoints that it has.
    debug_points: DebugPoints,
    /// A debug exception of the loaded guest is on.
    debugs: bool,
    /// The loaded guest has SVE's registers.
    has_sve: bool,
    pmu: Pmu,
    /// The loaded guest has a virtual GIC, and the CPU takes the interrupts of EL1's timers.
    has_virtual_gic: bool,
}

impl HardwareCpu {
    /// For the calling CPU, whose features are `features`. All CPUs are up.
    pub fn new(features: &CpuFeatures) -> Self {
        let pauth = features.pauth_address || features.pauth_generic;
        let mut hcr = HCR_GUEST;
        if pauth {
            hcr |= HCR_API | HCR_APK;
        }
        let ras = features.ras != 0;
        if ras {
            hcr |= HCR_TERR | HCR_TEA;
        }
        if features.mte != 0 {
            hcr |= HCR_TID5;
        }
        if features.lor {
            hcr |= HCR_TLOR;
        }
        Self {
            hcr,
            pauth,
            ras,
            has_random: features.rng,
            offsets_physical_counter: features.ecv >= 2 && timer::can_offset_physical(),
            list_registers: gic::list_registers(),
            protections: protect::protections(),
            debug_points: DebugPoints::of(read_register!("id_aa64dfr0_el1")),
            debugs: false,
            has_sve: false,
            pmu: Pmu::new(features),
            has_virtual_gic: false,
        }
    }
}

macro_rules! el1_registers {
    ($each:ident, $state:expr) => {
        $each!(
            $state,
            sctlr_el1,
            cpacr_el1,
            ttbr0_el1,
            ttbr1_el1,
            tcr_el1,
            mair_el1,
            amair_el1,
            vbar_el1,
            contextidr_el1,
            esr_el1,
            far_el1,
            afsr0_el1,
            afsr1_el1,
            elr_el1,
            spsr_el1,
            sp_el0,
            sp_el1,
            tpidr_el0,
            tpidrro_el0,
            tpidr_el1,
            par_el1,
            csselr_el1,
            cntkctl_el1,
            cntv_cval_el0,
            cntv_ctl_el0,
            cntp_cval_el0,
            cntp_ctl_el0
        )
    };
}

macro_rules! load_each {
    ($state:expr, $($register:ident),*) => {{
        let El1State { $($register),* } = $state;
        // SAFETY: EL1's registers, which nothing at EL2 relies on.
        unsafe { $(write_register!($register, *$register);)* }
    }};
}

macro_rules! save_each {
    ($state:expr, $($register:ident),*) => {
        *$state = El1State { $($register: read_register!($register)),* }
    };
}

macro_rules! key_registers {
    ($each:ident, $keys:expr) => {
        $each!($keys,
            apia "s3_0_c2_c1_0" "s3_0_c2_c1_1", apib "s3_0_c2_c1_2" "s3_0_c2_c1_3",
            apda "s3_0_c2_c2_0" "s3_0_c2_c2_1", apdb "s3_0_c2_c2_2" "s3_0_c2_c2_3",
            apga "s3_0_c2_c3_0" "s3_0_c2_c3_1")
    };
}

macro_rules! load_keys {
    ($keys:expr, $($key:ident $low:literal $high:literal),*) => {{
        let PacKeys { $($key),* } = $keys;
        // SAFETY: EL2 uses no pointer authentication; the CPU has the registers, the caller has checked.
        unsafe { $(write_register!($low, $key[0]); write_register!($high, $key[1]);)* }
    }};
}

macro_rules! save_keys {
    ($keys:expr, $($key:ident $low:literal $high:literal),*) => {
        *$keys = PacKeys { $($key: [read_register!($low), read_register!($high)]),* }
    };
}

macro_rules! id_registers {
    ($register:expr, $($crm:literal $op2:literal $name:literal),*) => {
        match $register.fields() {
            $((3, 0, 0, $crm, $op2) => read_register!($name),)*
            _ => 0,
        }
    };
}

/// Where the loaded guest's stage 1 maps `va` for a read at EL1.
#[inline(always)]
fn translate_read(va: u64) -> Option<Ipa> {
    let kept = read_register!("par_el1");
    recover::translate_read(va);
    let result = read_register!("par_el1");
    // SAFETY: the guest's own value.
    unsafe { write_register!("par_el1", kept) };
    (result & recover::PAR_FAILED == 0).then(|| Ipa::new(result & PAR_ADDRESS | (va % PAGE_SIZE)))
}

/// What follows a write that stage 2 forbids, for `world_enter`: 0 if the guest goes on, else one more than the reason for
/// which it comes out.
///
/// # Safety
/// The guest has just exited for such a write, and `server` is an `S` that is lent to the caller exclusively.
unsafe extern "C" fn serve_write<S: WriteServer>(server: *mut ()) -> u64 {
    let (esr, va) = (read_register!("esr_el2"), read_register!("far_el2"));
    // HPFAR_EL2 isn't valid then (Arm ARM D24.2.66).
    let Some(ipa) = translate_read(va) else {
        // An exception of the walk has left its own syndrome, and the guest's is still to be handled.
        // SAFETY: EL2 only reads these registers, and they hold what the guest's exit has left there.
        unsafe {
            write_register!("esr_el2", esr);
            write_register!("far_el2", va);
        }
        return 1 + ExitReason::Synchronous as u64;
    };
    // SAFETY: as the caller promised.
    let server = unsafe { &mut *server.cast::<S>() };
    if server.serve(va, ipa) {
        0
    } else {
        1 + ExitReason::ServedWrite as u64
    }
}

/// As [`serve_write`], where nobody serves writes.
extern "C" fn serve_none(_: *mut ()) -> u64 {
    1 + ExitReason::Synchronous as u64
}

impl HardwareCpu {
    /// Gives EL1 its physical timer and both timers' interrupts to the hypervisor, or takes them away.
    fn set_timers(&mut self, controls: &VcpuControls) {
        if self.has_virtual_gic != controls.virtual_gic {
            self.has_virtual_gic = controls.virtual_gic;
            gic::set_forwarding(controls.virtual_gic);
        }
        let mut access = CNTHCTL_COUNTER;
        if controls.virtual_gic {
            access |= CNTHCTL_TIMER;
            if self.offsets_physical_counter {
                access |= CNTHCTL_ECV;
                // SAFETY: what EL1 subtracts from its counter; the CPU has the register.
                unsafe { write_register!("s3_4_c14_c0_6", controls.counter_offset) }; // CNTPOFF_EL2
            }
        }
        // SAFETY: EL1's access to its timer and counter.
        unsafe { write_register!("cnthctl_el2", access) };
    }
}

impl Cpu for HardwareCpu {
    type Interface = ListRegisters;

    fn now_ns(&self) -> u64 {
        crate::drivers::timer::now_ns()
    }

    fn load(&mut self, state: &VcpuState, controls: &VcpuControls) {
        exceptions::mask_errors();
        if self.has_virtual_gic || controls.virtual_gic {
            self.set_timers(controls);
        }
        el1_registers!(load_each, &state.el1);
        if self.pauth {
            key_registers!(load_keys, &state.pac);
        }
        let Stage2Registers {
            vttbr,
            vtcr,
            forced_write_back,
        } = controls.stage2;
        let forced_write_back = if forced_write_back { HCR_FWB } else { 0 };
        // SAFETY: FP registers are the guest's alone, as EL2 is compiled without; the controls act on EL1 only. Stage 2 is
        // switched on last, when all that EL1 translates by is this guest's.
        unsafe {
            world_load_fp(&raw const state.fp);
            write_register!("vmpidr_el2", controls.mpidr);
            write_register!("cntvoff_el2", controls.counter_offset);
            // No exit yet of this guest.
            write_register!("esr_el2", 0);
            write_register!("far_el2", 0);
            if self.ras {
                // What the guest takes for DISR_EL1.
                write_register!("s3_4_c12_c1_1", state.disr_el1); // VDISR_EL2
            }
            barrier::isb(SY);
            RegimeRegisters { vttbr, vtcr }.load(&CpuInstructions::new());
            write_register!("hcr_el2", self.hcr | forced_write_back);
        }
        if let Some(sve) = &state.sve
            && sve.is_used
        {
            sve::load(sve);
            self.has_sve = true;
        }
        if state.pmu.is_used {
            self.pmu.load(&state.pmu, controls.virtual_gic);
        }
        if state.debug.is_on() {
            self.set_debug(&state.debug);
        }
        barrier::isb(SY);
    }

    fn put(&mut self, state: &mut VcpuState) -> Option<u64> {
        // SAFETY: what it may change of EL2's registers it saves as a function does. SErrors are unmasked afterwards,
        // which is as they are at EL2 while no guest is loaded.
        let error = unsafe { world_take_error() };
        el1_registers!(save_each, &mut state.el1);
        // SAFETY: as in `load`; the guest doesn't run any more.
        unsafe {
            world_save_fp(&raw mut state.fp);
            write_register!("cntv_ctl_el0", 0);
            write_register!("cntp_ctl_el0", 0);
            write_register!("hcr_el2", HCR_BOOT);
        }
        if self.has_virtual_gic {
            self.interface().switch_off();
        }
        if self.debugs {
            debug::switch_off();
            self.debugs = false;
        }
        if self.pmu.is_loaded {
            self.pmu.put(&mut state.pmu, self.has_virtual_gic);
        }
        if self.has_sve {
            state.sve.iter_mut().for_each(sve::put);
            self.has_sve = false;
        }
        // VTCR_EL2 stays, and means nothing until it is written together with a VTTBR_EL2 again.
        CpuInstructions::new().set_vttbr(0);
        if self.pauth {
            key_registers!(save_keys, &mut state.pac);
        }
        if self.ras {
            state.disr_el1 = read_register!("s3_4_c12_c1_1"); // VDISR_EL2
        }
        barrier::isb(SY);
        (error != 0).then_some(error)
    }

    #[inline]
    fn enter<S: WriteServer>(&mut self, regs: &mut GuestRegs, server: Option<&mut S>) -> RawExit {
        let (server, serve): (*mut S, unsafe extern "C" fn(*mut ()) -> u64) = match server {
            Some(server) => (server, serve_write::<S>),
            None => (ptr::null_mut(), serve_none),
        };
        // SAFETY: a guest is loaded. `world_enter` comes back as a function does: what it may change of EL2's registers it
        // saves, and of memory it writes only `regs`, which is lent to it exclusively. So is `server`, which it gives to
        // nothing but `serve`.
        let reason = unsafe { world_enter(regs, server.cast(), serve) };
        RawExit {
            reason,
            esr: read_register!("esr_el2"),
            far: read_register!("far_el2"),
            hpfar: read_register!("hpfar_el2"),
        }
    }

    fn syndrome(&self) -> Syndrome {
        // Interrupts leave these registers alone. Where EL2 has recovered from an exception since, they tell of that.
        Syndrome {
            esr: read_register!("esr_el2"),
            far: read_register!("far_el2"),
        }
    }

    #[inline]
    fn translate_read(&mut self, va: u64) -> Option<Ipa> {
        translate_read(va)
    }

    fn exception_controls(&mut self) -> ExceptionControls {
        ExceptionControls {
            vbar: read_register!("vbar_el1"),
            sctlr: read_register!("sctlr_el1"),
        }
    }

    fn set_exception(&mut self, record: &ExceptionRecord) {
        // SAFETY: EL1's registers, which nothing at EL2 relies on.
        unsafe {
            write_register!("elr_el1", record.elr);
            write_register!("spsr_el1", record.spsr);
            write_register!("esr_el1", record.esr);
            if let Some(far) = record.far {
                write_register!("far_el1", far);
            }
        }
    }

    fn set_debug(&mut self, state: &DebugState) {
        self.debugs = state.is_on();
        match self.debugs {
            true => debug::load(state, self.debug_points),
            false => debug::switch_off(),
        }
    }

    fn begin_sve(&mut self, state: &mut VcpuState) {
        let Some(sve) = &mut state.sve else { return };
        // SAFETY: the guest's own, which has used no others so far.
        unsafe { world_save_fp(&raw mut state.fp) };
        sve.begin(&state.fp.q);
        sve::load(sve);
        self.has_sve = true;
    }

    fn begin_pmu(&mut self, state: &PmuState) {
        self.pmu.load(state, self.has_virtual_gic);
    }

    fn access_pmu(&mut self, register: SystemRegister, written: Option<u64>) -> Option<u64> {
        self.pmu.access(register, written)
    }

    fn id_register(&self, register: SystemRegister) -> u64 {
        id_registers!(register,
            4 0 "id_aa64pfr0_el1", 4 1 "id_aa64pfr1_el1", 4 4 "s3_0_c0_c4_4", 5 0 "id_aa64dfr0_el1", 6 0 "id_aa64isar0_el1",
            6 1 "id_aa64isar1_el1", 6 2 "s3_0_c0_c6_2", 7 0 "id_aa64mmfr0_el1", 7 1 "id_aa64mmfr1_el1",
            7 2 "s3_0_c0_c7_2")
    }

    fn has_random(&self) -> bool {
        self.has_random
    }

    fn random(&mut self) -> Option<u64> {
        random::reseeded()
    }

    fn protections(&self) -> Protections {
        self.protections
    }

    fn kick(&mut self, target: vm::CpuId) {
        gic::kick(CpuId::new(target.0));
    }

    fn interface(&mut self) -> ListRegisters {
        self.list_registers
            .expect("a CPU without list registers has guests without a virtual GIC")
    }

    fn take_interrupt(&mut self) -> Option<Interrupt> {
        gic::take()
    }

    fn acknowledge_interrupts(&mut self) -> Option<u32> {
        gic::acknowledge()
    }

    fn wait_for_interrupt(&mut self, tick: Option<u64>) {
        match tick {
            Some(tick) => gic::wait_until_tick(tick),
            None => {
                barrier::dsb(SY);
                wfi();
            }
        }
    }

    fn physical_offset(&self, offset: u64) -> u64 {
        if self.offsets_physical_counter {
            offset
        } else {
            0
        }
    }
}
