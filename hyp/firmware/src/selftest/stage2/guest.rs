//! A guest of a few instructions, for tests that need an access: execution permissions, hardware's dirty state, the engine's
//! invalidations, and debug and streaming modes that boot firmware may have left on.
//!
//! It also tries writes that must be refused, because QEMU 10.0 dies of an assertion (`is_s2_format` in `do_ats_write`) when AT
//! S12E1W meets a permission fault of stage 2.

use alloc::alloc::{Layout as Allocation, alloc_zeroed, dealloc, handle_alloc_error};
use core::convert::Infallible;
use core::fmt;
use core::ptr::NonNull;

use memory::Caches;
use platform::cpu::features::CpuFeatures;
use platform::el2::world::HardwareCpu;
use stage2::{
    Access, Attributes, Execute, Features, Ipa, IpaRange, Layout, Level, Mapping, OnBlock, Pa,
    Permissions, Request, Resolution, Stage2,
};
use vm::{Cpu, ExitReason, VcpuControls, VcpuState};

use super::tree::{Checks, OwnWorker, WITHIN, registers, with_tree};

/// The operands of the calls by which a guest exits.
const DONE: u32 = 1;
const FROM_EL0: u32 = 2;
const FROM_EL1: u32 = 3;
/// `add v0.4s, v0.4s, v0.4s`: undefined in streaming mode (FEAT_SME).
const ADD_VECTORS: u32 = 0x4ea0_8400;
/// CPACR_EL1.FPEN: FP and SIMD don't trap.
const FP_ENABLED: u64 = 0b11 << 20;
/// `str x2, [x1]`
const STORE: u32 = 0xf900_0022;
/// The vectors for exceptions from EL0 and from EL1 (Arm ARM D1.4.2).
const VECTOR_FROM_EL0: usize = 0x400;
const VECTOR_FROM_EL1: usize = 0x200;
/// SPSR_EL2 for EL0, everything masked.
const EL0_MASKED: u64 = 0x3c0;
/// SPSR_EL2 for EL1 on its own stack pointer, everything masked.
const EL1_MASKED: u64 = EL0_MASKED | 0b101;
/// As above, but for debug exceptions.
const EL1_DEBUGGABLE: u64 = EL1_MASKED & !(1 << 9);

const fn hvc(operand: u32) -> u32 {
    0xd400_0002 | operand << 5
}

const fn svc(operand: u32) -> u32 {
    0xd400_0001 | operand << 5
}

/// Why the guest exited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// By HVC, with this operand.
    Call(u32),
    /// Stage 2 refused an instruction fetch: the fault status.
    Fetch(u64),
    /// Stage 2 refused a data access: the fault status.
    Data(u64),
    /// Another exception: its ESR_EL2.
    Other(u64),
}

/// Fault status codes, for level 0 (Arm ARM D23.2.39, ISS of a data abort).
pub const ACCESS_FLAG: u64 = 0b00_1000;
/// As above.
pub const PERMISSION: u64 = 0b00_1100;

/// Runs the guest in a tree with these features, whose pages lie at the end of the address space. Panics at a difference.
pub fn check(cpu: &CpuFeatures, features: Features) -> Checks {
    let layout = Layout::new(features)
        .unwrap_or_else(|error| panic!("selftest=stage2: {features:?}: {error}"));
    with_tree(cpu, layout, |stage2, worker| {
        let page_size = layout.page_size();
        let end = layout.all().end.get();
        let page = |number: u64| Ipa::new(end - (4 - number) * page_size);
        let mut guest = Guest {
            stage2,
            worker,
            vcpu: GuestCpu::new(cpu, stage2),
            code: Page::new(page_size),
            vectors: Page::new(page_size),
            data: Page::new(page_size),
            code_at: page(0),
            vectors_at: page(1),
            data_at: page(2),
            checks: Checks::default(),
        };
        guest.fetches();
        guest.runs_without_inherited_modes();
        guest.stores();
        guest.checks
    })
}

struct Guest<'t> {
    stage2: &'t Stage2,
    worker: &'t OwnWorker<'t>,
    vcpu: GuestCpu,
    code: Page,
    vectors: Page,
    data: Page,
    code_at: Ipa,
    vectors_at: Ipa,
    data_at: Ipa,
    checks: Checks,
}

impl Guest<'_> {
    /// Single-step, breakpoints and streaming mode are off for a guest, even if boot firmware left them on.
    fn runs_without_inherited_modes(&mut self) {
        self.vectors.write(VECTOR_FROM_EL1 / 4, hvc(FROM_EL1));
        self.map(self.code_at, &self.code, Permissions::RAM);
        self.expect(
            &[ADD_VECTORS, hvc(DONE)],
            EL1_DEBUGGABLE,
            Exit::Call(DONE),
            &"debug exceptions or SIMD, with what boot firmware left in the registers,",
        );
    }

    /// Every way to allow execution, tried at EL1 and at EL0.
    fn fetches(&mut self) {
        self.vectors.write(VECTOR_FROM_EL0 / 4, hvc(FROM_EL0));
        self.map(self.vectors_at, &self.vectors, Permissions::RAM);
        for execute in [
            Execute::Everywhere,
            Execute::AtEl0,
            Execute::AtEl1,
            Execute::Nowhere,
        ] {
            let permissions = Permissions {
                execute,
                ..Permissions::RAM
            };
            self.map(self.code_at, &self.code, permissions);
            let told_apart = self.stage2.layout().features().xnx;
            let at_el1 = execute == Execute::Everywhere || execute == Execute::AtEl1 && told_apart;
            let at_el0 = execute == Execute::Everywhere || execute == Execute::AtEl0 && told_apart;
            for (is_el1, allowed) in [(true, at_el1), (false, at_el0)] {
                let (instruction, call, pstate) = match is_el1 {
                    true => (hvc(DONE), DONE, EL1_MASKED),
                    false => (svc(0), FROM_EL0, EL0_MASKED),
                };
                let expected = match allowed {
                    true => Exit::Call(call),
                    false => Exit::Fetch(PERMISSION + 3),
                };
                self.expect(&[instruction], pstate, expected, &execute);
                self.checks.executed += 1;
            }
        }
    }

    /// Stores to pages with every kind of write permission.
    fn stores(&mut self) {
        let features = *self.stage2.layout().features();
        self.map(self.code_at, &self.code, Permissions::RAM);
        let refused = Exit::Data(PERMISSION + 3);
        for (permissions, expected) in [
            (Permissions::RAM, Exit::Call(DONE)),
            (Permissions::LOGGED, refused),
            (Permissions::READ_ONLY, refused),
        ] {
            self.map(self.data_at, &self.data, permissions);
            self.store(expected);
        }
        self.map(self.data_at, &self.data, Permissions::LOGGED_BY_HARDWARE);
        if features.hardware_dirty {
            self.stores_noted_by_hardware();
        } else {
            self.store(refused);
        }
        self.map(self.data_at, &self.data, Permissions::RAM);
        self.store_to_an_aged_page(features.hardware_access);
    }

    /// Each harvest reports a write once, and the next write is noted again, even if the TLB holds the page.
    fn stores_noted_by_hardware(&mut self) {
        for _ in 0..3 {
            assert!(self.harvest().is_none(), "selftest=stage2: dirty too early");
            self.store(Exit::Call(DONE));
            let harvested = self.harvest();
            assert_eq!(
                harvested,
                Some(self.data_at),
                "selftest=stage2: a write isn't noted"
            );
            self.checks.dirtied += 1;
        }
    }

    fn harvest(&self) -> Option<Ipa> {
        let mut dirty = None;
        self.stage2
            .harvest_dirty(self.worker, self.page(self.data_at), |ipa, _| {
                dirty = Some(ipa);
            })
            .expect(WITHIN);
        dirty
    }

    fn store_to_an_aged_page(&mut self, by_hardware: bool) {
        self.store(Exit::Call(DONE));
        let page = self.page(self.data_at);
        let accessed = || self.stage2.test_age(self.worker, page.clone());
        self.stage2
            .age(self.worker, page.clone(), |_, _| {})
            .expect(WITHIN);
        self.stage2
            .invalidate(self.worker, page.clone())
            .expect(WITHIN);
        assert_eq!(accessed(), Ok(false));
        if !by_hardware {
            self.store(Exit::Data(ACCESS_FLAG + 3));
            let request = Request {
                ipa: self.data_at,
                va: Some(self.data_at.get()),
                access: Access::Write,
                pa: self.data.pa(),
                largest: Level::L3,
                attributes: Attributes::memory(Permissions::RAM),
                largest_written: Level::L0,
                on_block: OnBlock::Split,
            };
            let resolution = self.stage2.fault(self.worker, &request);
            assert!(
                matches!(resolution, Resolution::Accessed),
                "selftest=stage2: {resolution:?}"
            );
        }
        self.store(Exit::Call(DONE));
        assert_eq!(self.stage2.test_age(self.worker, page), Ok(true));
        self.checks.accessed += u64::from(by_hardware);
    }

    /// Stores to the data page, and checks that only an allowed store changes it.
    fn store(&mut self, expected: Exit) {
        self.data.write(0, 0);
        self.expect(&[STORE, hvc(DONE)], EL1_MASKED, expected, &"a store");
        let arrived = self.data.read(0) != 0;
        assert_eq!(
            arrived,
            expected == Exit::Call(DONE),
            "selftest=stage2: what is stored"
        );
    }

    fn expect(&mut self, instructions: &[u32], pstate: u64, expected: Exit, what: &dyn fmt::Debug) {
        for (index, instruction) in instructions.iter().enumerate() {
            self.code.write(index, *instruction);
        }
        for page in [&self.code, &self.vectors, &self.data] {
            page.show(self.worker);
        }
        let mut state = VcpuState::starting_at(self.code_at.get(), 0);
        state.el1.vbar_el1 = self.vectors_at.get();
        state.regs.x[1] = self.data_at.get();
        state.regs.x[2] = u64::MAX;
        state.el1.cpacr_el1 = FP_ENABLED;
        state.regs.pstate = pstate;
        let exit = self.vcpu.run(&mut state);
        if exit != expected {
            panic!(
                "selftest=stage2: {what:?} at EL{} is to end in {expected:x?}, but ends in {exit:x?}; {:?}",
                pstate >> 2 & 0b11,
                self.stage2.layout()
            );
        }
    }

    /// Maps a page anew.
    fn map(&self, ipa: Ipa, page: &Page, permissions: Permissions) {
        let range = self.page(ipa);
        self.stage2
            .unmap(self.worker, range.clone(), |_, _, _| {})
            .expect(WITHIN);
        let mapping = Mapping {
            pa: page.pa(),
            attributes: Attributes::memory(permissions),
            largest: Level::L3,
        };
        let mapped = self.stage2.map(self.worker, range, mapping, || true);
        assert!(mapped.is_ok(), "selftest=stage2: {mapped:?}");
    }

    fn page(&self, ipa: Ipa) -> IpaRange {
        ipa..ipa.offset(self.stage2.layout().page_size())
    }
}

/// The vCPU of such a guest.
#[derive(Debug)]
pub struct GuestCpu {
    cpu: HardwareCpu,
    controls: VcpuControls,
}

impl GuestCpu {
    /// For the calling CPU and this tree.
    pub fn new(cpu: &CpuFeatures, stage2: &Stage2) -> Self {
        Self {
            cpu: HardwareCpu::new(cpu),
            controls: VcpuControls {
                stage2: registers(stage2),
                mpidr: 1 << 31,
                counter_offset: 0,
                virtual_gic: false,
            },
        }
    }

    /// Runs the guest until it exits.
    pub fn run(&mut self, state: &mut VcpuState) -> Exit {
        self.cpu.load(state, &self.controls);
        let exit = loop {
            let exit = self.cpu.enter(&mut state.regs, None::<&mut Infallible>);
            if exit.reason != ExitReason::Interrupt {
                break exit;
            }
            while self.cpu.acknowledge_interrupts().is_some() {}
        };
        let error = self.cpu.put(state);
        assert_eq!(error, None, "an SError came of the guest's accesses");
        let status = exit.esr & 0x3f;
        match (exit.reason, exit.esr >> 26 & 0x3f) {
            (ExitReason::Synchronous, 0x16) => Exit::Call(exit.esr as u32 & 0xffff),
            (ExitReason::Synchronous, 0x20) => Exit::Fetch(status),
            (ExitReason::Synchronous, 0x24) => Exit::Data(status),
            _ => Exit::Other(exit.esr),
        }
    }
}

/// A guest's page that stores to the address in its vCPU's x1.
pub struct StoringPage(Page);

impl StoringPage {
    /// A page of this size, ready to be mapped.
    pub fn new(bytes: u64, worker: &OwnWorker<'_>) -> Self {
        let page = Page::new(bytes);
        page.write(0, STORE);
        page.write(1, hvc(DONE));
        page.show(worker);
        Self(page)
    }

    /// Its address.
    pub fn pa(&self) -> Pa {
        self.0.pa()
    }

    /// The exit after a store to `ipa` by the page, which is mapped at `code_at`.
    pub fn store(&self, vcpu: &mut GuestCpu, code_at: Ipa, ipa: Ipa) -> Exit {
        let mut state = VcpuState::starting_at(code_at.get(), 0);
        state.regs.x[1] = ipa.get();
        vcpu.run(&mut state)
    }
}

/// A page of the heap that a guest uses.
struct Page {
    memory: NonNull<u32>,
    size: Allocation,
}

impl Page {
    fn new(bytes: u64) -> Self {
        let bytes = bytes as usize;
        let size = Allocation::from_size_align(bytes, bytes)
            .expect("a page's size is a small power of two");
        // SAFETY: a page's size isn't 0.
        let memory = NonNull::new(unsafe { alloc_zeroed(size) }.cast());
        Self {
            memory: memory.unwrap_or_else(|| handle_alloc_error(size)),
            size,
        }
    }

    fn pa(&self) -> Pa {
        Pa::new(self.memory.as_ptr().expose_provenance() as u64)
    }

    /// Makes writes to the page visible to the guest.
    fn show(&self, worker: &OwnWorker<'_>) {
        let instructions = worker.tlb.instructions();
        instructions.clean_for_guest(self.pa(), self.size.size() as u64);
    }

    /// Writes a word; no guest runs meanwhile.
    fn write(&self, index: usize, word: u32) {
        assert!(index < self.size.size() / 4);
        // SAFETY: it lies in the page, and no guest runs.
        unsafe { self.memory.add(index).write_volatile(word) };
    }

    fn read(&self, index: usize) -> u32 {
        assert!(index < self.size.size() / 4);
        // SAFETY: it lies in the page, and no guest runs.
        unsafe { self.memory.add(index).read_volatile() }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this size, and no guest runs.
        unsafe { dealloc(self.memory.as_ptr().cast(), self.size) };
    }
}
