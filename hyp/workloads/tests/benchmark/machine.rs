//! A machine whose CPUs are threads: kicks are flags, stage 2 is walked in software, a guest is a function.

use crate::guests::{Entry, Guest, GuestCpu};
use control::{
    CpuPool, Device, DeviceError, DeviceInterrupt, Facts, FileUse, HOUSEKEEPING_NS, Host, Machine,
    Module, Modules, OwnCpu, Registers, Speaker,
};
use memory::frames::{Counts, FramePool, arena, write_bytes};
use memory::{CpuCounters, CpuMemory, MemorySystem, Object};
use records::record::Progress;
use stage2::{Features, Ipa, NoTlb, PAGE_SIZE};
use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use vm::{
    Cpu, CpuId, DebugState, ExceptionControls, ExceptionRecord, ExitReason, GuestRegs, Interrupt,
    NoInterface, PmuState, Protections, RawExit, Syndrome, SystemRegister, VcpuControls, VcpuState,
    WriteServer,
};

thread_local! {
    /// The number of the CPU that this thread is.
    static THIS_CPU: Cell<usize> = const { Cell::new(0) };
}

pub const CPUS: usize = 4;
const FRAMES: usize = 32 << 8;
/// Where the device is, and what the first word of its second page holds.
pub const DEVICE: u64 = 0x0901_0000;
pub const REGISTER: u64 = 0x0123_4567_89ab_cdef;

pub struct Threads {
    facts: Facts,
    start: Instant,
    kicks: Vec<Kick>,
    lines: Mutex<Vec<String>>,
    guest: Guest,
    /// The pages of a vCPU's share: where vCPU 0 leaves them for the others.
    pub share: AtomicU64,
}

#[derive(Default)]
struct Kick {
    pending: Mutex<bool>,
    changed: Condvar,
}

impl Threads {
    pub fn is_kicked(&self, cpu: CpuId) -> bool {
        *self.kicks[cpu.0].pending.lock().unwrap()
    }

    /// Whether a line begins so that was printed.
    pub fn has_said(&self, start: &str) -> bool {
        let lines = self.lines.lock().unwrap();
        lines.iter().any(|line| line.starts_with(start))
    }

    /// Whether the run that began last has done all of its steps.
    pub fn is_over(&self) -> bool {
        let lines = self.lines.lock().unwrap();
        let mut lines = lines.iter().rev();
        let last = lines.find(|line| line.starts_with("== ") || line.starts_with("@progress "));
        last.and_then(|line| line.strip_prefix("@progress "))
            .is_some_and(|json| {
                let progress: Progress = serde_json::from_str(json).unwrap();
                progress.step == progress.steps
            })
    }

    fn wait_for_kick(&self, cpu: CpuId, most: Duration) {
        let kick = &self.kicks[cpu.0];
        let pending = kick.pending.lock().unwrap();
        let _ = kick
            .changed
            .wait_timeout_while(pending, most, |pending| !*pending)
            .unwrap();
    }

    fn acknowledge(&self, cpu: CpuId) {
        *self.kicks[cpu.0].pending.lock().unwrap() = false;
    }
}

impl Machine for Threads {
    type Cpu = ThreadCpu;
    type Hardware = NoTlb;

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn counter(&self) -> u64 {
        self.now_ns()
    }

    fn write_line(&self, line: fmt::Arguments<'_>) {
        self.lines.lock().unwrap().push(line.to_string());
    }

    fn write_console(&self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn write_console_as(&self, _: &Speaker<'_>, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn read_console(&self, _: &mut [u8]) -> usize {
        0
    }

    fn kick(&self, cpu: CpuId) {
        *self.kicks[cpu.0].pending.lock().unwrap() = true;
        self.kicks[cpu.0].changed.notify_all();
    }

    fn here(&self) -> CpuId {
        CpuId(THIS_CPU.get())
    }

    /// Two pages of registers, the second of which holds [`REGISTER`].
    fn device(&self, memory: &CpuMemory<NoTlb>, path: &str) -> Result<Device, DeviceError> {
        match path {
            "/clock@9010000" => {}
            "/taken" => {
                return Err(DeviceError::Taken {
                    start: 0,
                    by: "memory",
                });
            }
            _ => return Err(DeviceError::Unknown),
        }
        let frames = arena::leak(2);
        // SAFETY: the memory is leaked, and nobody else has it.
        let object = unsafe {
            write_bytes(frames.start.offset(PAGE_SIZE), &REGISTER.to_ne_bytes());
            Object::device(memory, frames)
        };
        Ok(Device {
            name: "clock@9010000",
            compatible: b"test,clock\0",
            registers: vec![Registers {
                start: DEVICE,
                object: object.map_err(DeviceError::Object)?,
            }],
            interrupts: Some(vec![]),
            clock_names: b"",
            lease: Arc::new(()),
        })
    }

    fn forward(&self, _: &DeviceInterrupt, _: CpuId) {
        unreachable!("these guests have no GIC")
    }

    fn unmask(&self, _: &DeviceInterrupt) {
        unreachable!("these guests have no GIC")
    }

    fn mask(&self, _: &DeviceInterrupt) {
        unreachable!("these guests have no GIC")
    }

    fn virtual_cpu_interface(&self, _: &CpuMemory<NoTlb>) -> Result<Registers, DeviceError> {
        Err(DeviceError::NoRegisters)
    }

    fn wait(&self, deadline_ns: u64) {
        let most = Duration::from_nanos(deadline_ns.saturating_sub(self.now_ns()));
        let cpu = CpuId(THIS_CPU.get());
        self.wait_for_kick(cpu, most);
        self.acknowledge(cpu);
    }
}

/// A CPU that runs a guest's function on a thread of its own, in turns.
pub struct ThreadCpu {
    machine: &'static Threads,
    id: CpuId,
    /// The guest that was loaded last.
    guest: Option<GuestCpu>,
    last_exit: Syndrome,
}

impl Cpu for ThreadCpu {
    type Interface = NoInterface;

    fn now_ns(&self) -> u64 {
        self.machine.now_ns()
    }

    fn load(&mut self, state: &VcpuState, controls: &VcpuControls) {
        let entry = Entry {
            machine: self.machine,
            cpu: self.id,
            controls: *controls,
        };
        let is_here = |guest: &GuestCpu| guest.is_at(&entry, state.el1.tpidr_el1);
        if !self.guest.as_ref().is_some_and(is_here) {
            self.guest = Some(GuestCpu::start(self.machine.guest, entry));
        }
        self.last_exit = Syndrome::NONE;
    }

    fn put(&mut self, state: &mut VcpuState) -> Option<u64> {
        let guest = self.guest.as_ref().expect("a vCPU is loaded");
        state.el1.tpidr_el1 = guest.number;
        None
    }

    fn protections(&self) -> Protections {
        Protections::default()
    }

    fn enter<S: WriteServer>(&mut self, regs: &mut GuestRegs, _: Option<&mut S>) -> RawExit {
        let guest = self.guest.as_mut().expect("a vCPU is loaded");
        let exit = guest.resume(regs);
        if exit.reason == ExitReason::Synchronous {
            let RawExit { esr, far, .. } = exit;
            self.last_exit = Syndrome { esr, far };
        }
        exit
    }

    fn syndrome(&self) -> Syndrome {
        self.last_exit
    }

    fn translate_read(&mut self, va: u64) -> Option<Ipa> {
        Some(Ipa::new(va))
    }

    fn exception_controls(&mut self) -> ExceptionControls {
        ExceptionControls { vbar: 0, sctlr: 0 }
    }

    fn set_exception(&mut self, record: &ExceptionRecord) {
        panic!("these guests take no exceptions: {record:?}");
    }

    fn set_debug(&mut self, _: &DebugState) {
        unreachable!("these guests aren't offered any")
    }

    fn begin_sve(&mut self, _: &mut VcpuState) {
        unreachable!("these guests aren't offered any")
    }

    fn begin_pmu(&mut self, _: &PmuState) {
        unreachable!("these guests aren't offered any")
    }

    fn access_pmu(&mut self, _: SystemRegister, _: Option<u64>) -> Option<u64> {
        unreachable!("these guests aren't offered any")
    }

    fn id_register(&self, _: SystemRegister) -> u64 {
        0
    }

    fn kick(&mut self, target: CpuId) {
        self.machine.kick(target);
    }

    fn acknowledge_interrupts(&mut self) -> Option<u32> {
        self.machine.acknowledge(self.id);
        None
    }

    fn interface(&mut self) -> NoInterface {
        unreachable!("these guests have no GIC")
    }

    fn take_interrupt(&mut self) -> Option<Interrupt> {
        unreachable!("these guests have no GIC")
    }

    fn physical_offset(&self, _: u64) -> u64 {
        0
    }

    fn wait_for_interrupt(&mut self, _: Option<u64>) {
        self.machine.wait_for_kick(self.id, Duration::from_secs(60));
    }
}

/// What came of a run.
pub struct Outcome {
    pub error: Option<String>,
    pub lines: Vec<String>,
    pub frames: Counts,
}

impl Outcome {
    pub fn count(&self, line: &str) -> usize {
        self.lines.iter().filter(|other| *other == line).count()
    }

    pub fn starting(&self, start: &str) -> usize {
        self.lines
            .iter()
            .filter(|line| line.starts_with(start))
            .count()
    }
}

/// Runs the workloads with these options and this guest.
pub fn run(options: &str, guest: Guest) -> Outcome {
    run_with(options, guest, Features::armv8_0(44, 48))
}

/// The same, on CPUs that keep dirty state.
pub fn run_with_dirty_state(options: &str, guest: Guest) -> Outcome {
    let features = Features {
        hardware_access: true,
        hardware_dirty: true,
        ..Features::armv8_0(44, 48)
    };
    run_with(options, guest, features)
}

fn run_with(options: &str, guest: Guest, features: Features) -> Outcome {
    let mut image = vec![0; 4096];
    image[16..24].copy_from_slice(&4096u64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    boot(
        options,
        guest,
        Some(Module {
            kind: FileUse::Kernel,
            address: 0x4a00_0000,
            bytes: &image,
            bootargs: "",
        }),
        features,
    )
}

pub fn run_without_guest(options: &str) -> Outcome {
    boot(options, Guest::Honest, None, Features::armv8_0(44, 48))
}

/// A machine none of whose CPUs runs yet.
pub fn threads(guest: Guest, stage2: Features) -> &'static Threads {
    let facts = Facts {
        cpus: CPUS,
        stage2,
        most_tlbi: 16,
        cpu_model: "threads",
        gic: 3,
        guest_gic: None,
        vector_bytes: 0,
        pmu: Err("there are none"),
        clock: "host",
        wakes_for_input: false,
    };
    Box::leak(Box::new(Threads {
        facts,
        start: Instant::now(),
        kicks: (0..CPUS).map(|_| Kick::default()).collect(),
        lines: Mutex::default(),
        guest,
        share: AtomicU64::new(0),
    }))
}

fn boot(options: &str, guest: Guest, module: Option<Module<'_>>, stage2: Features) -> Outcome {
    let machine = threads(guest, stage2);
    let pool: &'static FramePool = Box::leak(Box::new(FramePool::new()));
    // SAFETY: the arena is this pool's alone.
    unsafe { pool.add(arena::leak(FRAMES)) };
    let system: &'static MemorySystem =
        Box::leak(Box::new(MemorySystem::new(pool, CPUS, 16).unwrap()));
    let counters: &'static [CpuCounters] = (0..CPUS)
        .map(|_| CpuCounters::default())
        .collect::<Vec<_>>()
        .leak();
    let cpu_pool: &'static CpuPool<Threads> = Box::leak(Box::new(CpuPool::new(CPUS)));
    let own = move |cpu: usize| OwnCpu {
        id: CpuId(cpu),
        cpu: ThreadCpu {
            machine,
            id: CpuId(cpu),
            guest: None,
            last_exit: Syndrome::NONE,
        },
        memory: CpuMemory::new(system, cpu, NoTlb, &counters[cpu]),
    };
    let over = AtomicBool::new(false);
    let error = thread::scope(|scope| {
        for cpu in 1..CPUS {
            let over = &over;
            scope.spawn(move || {
                THIS_CPU.set(cpu);
                let mut own = own(cpu);
                while !over.load(Ordering::Acquire) {
                    cpu_pool.attend(machine, &mut own);
                    machine.wait_for_kick(own.id, Duration::from_nanos(HOUSEKEEPING_NS));
                    machine.acknowledge(own.id);
                }
            });
        }
        let own = own(0);
        let host = Host {
            machine,
            cpu_pool,
            counters,
            own: &own,
            beside: None,
        };
        let modules = Modules {
            files: module.into_iter().collect(),
            domains: Vec::new(),
        };
        let result = workloads::run(&host, options, &modules);
        over.store(true, Ordering::Release);
        (1..CPUS).for_each(|cpu| machine.kick(CpuId(cpu)));
        result.err().map(|error| error.to_string())
    });
    let lines = machine.lines.lock().unwrap().clone();
    Outcome {
        error,
        lines,
        frames: pool.counts(),
    }
}
