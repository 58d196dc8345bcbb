//! A hypervisor for one guest, as small as it can be: what it takes to run a guest on `stage2`'s tables on a machine.
//!
//! It runs at EL2 of QEMU's `virt`, without the standard library and without an allocator. The guest writes a few pages, whose
//! writes are logged; its first write to each page faults, and a harvest says which they were. Then its memory is unmapped, and the
//! tables are given up. See the crate's README for how to build and boot it.

#![no_std]
#![no_main]

mod memory;
mod serial;

use core::arch::{asm, global_asm};
use memory::{Frames, Stay};
use stage2::{
    Access, Attributes, Counters, CpuInstructions, Granule, IdRegisters, Instructions, Ipa,
    IpaRange, Layout, Level, Maintenance, Mapping, OnBlock, Pa, Permissions, RegimeRegisters,
    Request, Resolution, Stage2, TlbPolicy, Vmid, VmidHolder, Worker,
};

global_asm!(include_str!("world.S"));

macro_rules! read {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reading these registers has no effect.
        unsafe { asm!(concat!("mrs {}, ", $register), out(reg) value, options(nomem, nostack)) };
        value
    }};
}

macro_rules! set {
    ($register:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: it says how the guest runs, and that only its own memory is mapped is up to the tables.
        unsafe { asm!(concat!("msr ", $register, ", {}"), in(reg) value, options(nostack)) };
    }};
}

/// EL2's own translation: devices in the first gigabyte, RAM in the second.
#[unsafe(no_mangle)]
static HYPERVISOR_TABLE: Table = Table({
    const BLOCK: u64 = 0b01;
    const ACCESSED: u64 = 1 << 10;
    const RES1: u64 = 1 << 6;
    const INNER_SHAREABLE: u64 = 0b11 << 8;
    const DEVICE: u64 = 1 << 2 | 1 << 54;
    let mut entries = [0; 512];
    entries[0] = BLOCK | ACCESSED | RES1 | DEVICE;
    entries[1] = 0x4000_0000 | BLOCK | ACCESSED | RES1 | INNER_SHAREABLE;
    entries
});

#[repr(C, align(4096))]
struct Table([u64; 512]);

/// What a guest's exception leaves: x0 to x30, ELR, SPSR.
type Registers = [u64; 33];

unsafe extern "C" {
    /// Runs the guest until it has an exception.
    fn run_guest(registers: &mut Registers);
    /// The guest's code: a page.
    static GUEST: u8;
}

/// Where the guest's code lies in its own memory.
const CODE: Ipa = Ipa::new(0);
/// Where its RAM lies: two blocks.
const RAM: IpaRange = Ipa::new(0x8000_0000)..Ipa::new(0x8040_0000);
/// What backs it: RAM of the machine that nothing else uses.
const BACKING: Pa = Pa::new(0x4400_0000);

const PAGE: u64 = 4096;

#[unsafe(no_mangle)]
extern "C" fn hypervisor() -> ! {
    let id = IdRegisters {
        midr: read!("midr_el1"),
        aa64mmfr0: read!("id_aa64mmfr0_el1"),
        aa64mmfr1: read!("id_aa64mmfr1_el1"),
        aa64mmfr2: read!("s3_0_c0_c7_2"),
    };
    let mut features = id.features(Granule::Size4K).expect("4 KiB pages");
    features.ipa_bits = 36;
    let layout = Layout::new(features).expect("an IPA size that all CPUs have");

    // What a CPU works with. There is one CPU; others would each have a `Worker`, and all share `stage2`.
    let frames = Frames::new();
    let stay = Stay::new(&frames);
    // SAFETY: this is EL2 without VHE, and the guest runs in `run_guest` only. Invalidations by range aren't asked for.
    let instructions = unsafe { CpuInstructions::new() };
    let policy = TlbPolicy {
        range: false,
        level_hint: false,
        most_instructions: 64,
    };
    let tlb = Maintenance::new(instructions, policy);
    let counters = Counters::default();
    let worker = Worker {
        memory: &frames,
        tlb: &tlb,
        epoch: &stay,
        counters: &counters,
    };
    let root = frames.root(&layout).expect("a frame for the root");
    let stage2 = Stage2::with_vmid(root, layout, VmidHolder::fixed(Vmid(1)));
    // The VMID is new to this CPU's TLB.
    tlb.instructions().barrier(stage2::Barrier::DsbIshst);

    // RAM ahead of any fault, in blocks; the first write to each page will fault. The code is left to its first fetch.
    let mapping = Mapping {
        pa: BACKING,
        attributes: Attributes::memory(Permissions::LOGGED),
        largest: Level::L1,
    };
    let mapped = stage2
        .map(&worker, RAM, mapping, || true)
        .expect("enough frames");
    serial::print(format_args!("mapped {} blocks", mapped.leaves));

    // How the guest runs: stage 2, EL1 in AArch64, its memory cacheable though its MMU is off.
    const VM: u64 = 1;
    const FMO_IMO_AMO: u64 = 0b111 << 3;
    const DC: u64 = 1 << 12;
    const RW: u64 = 1 << 31;
    const FWB: u64 = 1 << 46;
    let fwb = if features.fwb { FWB } else { 0 };
    set!("hcr_el2", VM | FMO_IMO_AMO | DC | RW | fwb);
    set!("sctlr_el1", 0x30d0_0800); // RES1, MMU off
    let regime = RegimeRegisters {
        vttbr: stage2.vttbr().bits(),
        vtcr: layout.vtcr(),
    };
    regime.load(tlb.instructions());

    let mut registers = [0; 33];
    registers[1] = RAM.start.get();
    registers[31] = CODE.get();
    registers[32] = 0x3c5; // EL1h, interrupts masked
    let mut log = Log::default();
    let mut faults = 0;
    loop {
        // SAFETY: the guest reaches its own RAM and its code's page, and nothing else is mapped.
        unsafe { run_guest(&mut registers) };
        let syndrome = read!("esr_el2");
        match syndrome >> 26 {
            0x16 => {
                let written = harvest(&stage2, &worker, &mut log);
                serial::print(format_args!("round {}: {written:?}", syndrome & 0xffff));
                if syndrome & 0xffff == 2 {
                    break;
                }
            }
            // Instruction and data aborts. With its stage 1 off, the guest's virtual address is the IPA.
            0x20 | 0x24 => {
                let ipa = Ipa::new(read!("far_el2"));
                let access = match (syndrome >> 26, syndrome >> 6 & 1) {
                    (0x20, _) => Access::Execute,
                    (_, 0) => Access::Read,
                    _ => Access::Write,
                };
                faults += 1;
                serve(&stage2, &worker, &mut log, ipa, access);
            }
            class => panic!("an exception of class {class:#x}"),
        }
    }
    serial::print(format_args!("{faults} faults"));

    // The guest's end. Nobody else can be looking at what was unlinked, so the frames are free.
    let unmapped = stage2.unmap(&worker, RAM, |_, _, _| {});
    assert!(unmapped.is_ok(), "all of it is in the IPA space");
    let mut teardown = stage2.destroy(&worker);
    while !teardown.step(&worker, 100, |_, _, _| {}) {}
    stay.leave();
    serial::print(format_args!("frames in use: {}", frames.used()));
    power_off()
}

/// What is behind an address of the guest's, with how it may be used.
fn backing(ipa: Ipa) -> (Pa, Attributes, Level) {
    if RAM.contains(&ipa) {
        let pa = BACKING.offset(ipa.get() - RAM.start.get());
        return (pa, Attributes::memory(Permissions::LOGGED), Level::L3);
    }
    assert!(
        ipa.align_down(PAGE) == CODE,
        "the guest has nothing at {ipa}"
    );
    let code = Pa::new(&raw const GUEST as u64);
    let pa = code.offset(ipa.get() - CODE.get());
    (pa, Attributes::memory(Permissions::READ_ONLY), Level::L3)
}

/// Serves a fault: maps the page, or makes it writable and notes it.
fn serve<I: Instructions>(
    stage2: &Stage2,
    worker: &Worker<'_, Frames, Maintenance<I>, Stay<'_>>,
    log: &mut Log,
    ipa: Ipa,
    access: Access,
) {
    let (pa, attributes, largest) = backing(ipa);
    let request = Request {
        ipa,
        va: None,
        access,
        pa,
        largest,
        attributes,
        largest_written: Level::L3,
        on_block: OnBlock::Split,
    };
    match stage2.fault(worker, &request) {
        // With more CPUs, this is where to look again whether `backing` still says so, and to restore the entry if not (rule 8).
        Resolution::Vacant(broken) => {
            // SAFETY: what `backing` names is the guest's: its RAM, or its code.
            let filled = unsafe { stage2.fill(broken, &request) };
            assert!(filled.is_ok(), "nobody else unlinks tables");
        }
        // First the entry is writable, then the page is in the log (rule 9).
        Resolution::Relaxed(_) | Resolution::Split if access == Access::Write => log.add(ipa),
        Resolution::Accessed | Resolution::Spurious | Resolution::Busy => {}
        other => panic!("{access:?} at {ipa}: {other:?}"),
    }
}

/// Takes the log, then has the next write to each of its pages fault again (rule 9). Returns the pages.
fn harvest<I: Instructions>(
    stage2: &Stage2,
    worker: &Worker<'_, Frames, Maintenance<I>, Stay<'_>>,
    log: &mut Log,
) -> Log {
    let taken = core::mem::take(log);
    let wanted = |ipa, level| level == Level::L3 && taken.has(ipa);
    let protected = stage2.write_protect(worker, RAM, wanted, |_, _| {});
    assert!(protected.is_ok(), "all of it is in the IPA space");
    taken
}

/// Which of the first 64 pages were written.
#[derive(Default)]
struct Log(u64);

impl Log {
    fn add(&mut self, ipa: Ipa) {
        self.0 |= 1 << Self::page(ipa);
    }

    fn has(&self, ipa: Ipa) -> bool {
        Self::page(ipa) < 64 && self.0 >> Self::page(ipa) & 1 != 0
    }

    fn page(ipa: Ipa) -> u64 {
        (ipa.get() - RAM.start.get()) / PAGE
    }
}

impl core::fmt::Debug for Log {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("pages")?;
        (0..64)
            .filter(|page| self.0 >> page & 1 != 0)
            .try_for_each(|page| write!(f, " {page}"))
    }
}

#[unsafe(no_mangle)]
extern "C" fn fatal(syndrome: u64, at: u64) -> ! {
    panic!("an exception with syndrome {syndrome:#x} at {at:#x}");
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    serial::print(format_args!("{info}"));
    power_off()
}

/// PSCI SYSTEM_OFF (DEN 0022).
fn power_off() -> ! {
    // SAFETY: the call ends the machine.
    unsafe { asm!("smc #0", in("w0") 0x8400_0008_u32, options(noreturn)) }
}
