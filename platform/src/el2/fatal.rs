//! Fatal errors of the hypervisor: reports what happened, where, and the call chain; then powers off with status 3.
//!
//! The CPU can't be trusted any more, so this takes no lock, allocates nothing and follows no unchecked pointer. A second
//! failure on the way powers off at once, a third one stops the CPU (exceptions.S). Only one CPU reports; others that fail
//! meanwhile wait for the power-off.

use crate::console::{self, emergency_line};
use crate::cpu::percpu::{CpuId, FatalFrame, PerCpu};
use crate::cpu::syndrome::Syndrome;
use crate::image;
use crate::power::park::{ParkCode, park};
use crate::power::psci;
use crate::range::PhysicalRange;
use core::panic::PanicInfo;
use core::sync::atomic::Ordering;

const STATUS: u8 = 3;
const MAX_FRAMES: usize = 32;

/// Reports the exception in `cpu`'s frame. Called by the vectors, on the emergency stack.
pub(crate) extern "C" fn report_exception(cpu: &'static PerCpu) -> ! {
    begin(cpu.fatal_depth.load(Ordering::Relaxed));
    // SAFETY: the vector of this CPU wrote the frame before it came here, and nothing writes it while this runs.
    let frame = unsafe { &*cpu.frame.get() };
    print_exception(cpu, frame);
    // Where the PC isn't in the text, a wrong call led to it.
    let pc = if image::text().contains_address(frame.elr) {
        frame.elr
    } else {
        frame.x[30].wrapping_sub(4)
    };
    print_backtrace(cpu, Some(pc), frame.x[29]);
    end()
}

/// Goes on only as the first failure of the first CPU to fail.
fn begin(depth: u64) {
    if depth > 1 {
        emergency_line(format_args!("... and failed again while reporting that"));
        end();
    }
    if !console::silence_others() {
        loop {
            aarch64_cpu::asm::wfe();
        }
    }
}

fn end() -> ! {
    emergency_line(format_args!("parvisor: exit status {STATUS}"));
    psci::power_off()
}

fn print_exception(cpu: &PerCpu, frame: &FatalFrame) {
    let syndrome = Syndrome(frame.esr);
    match frame.vector % 4 {
        0 => emergency_line(format_args!(
            "parvisor: FATAL: {}: {syndrome} in the hypervisor{}",
            cpu.id,
            guard(cpu, frame)
        )),
        1 | 2 => emergency_line(format_args!(
            "parvisor: FATAL: {}: interrupt taken in the hypervisor",
            cpu.id
        )),
        _ => emergency_line(format_args!(
            "parvisor: FATAL: {}: {syndrome} in the hypervisor",
            cpu.id
        )),
    }
    emergency_line(format_args!(
        "  esr {:#010x}  far {:#018x}  elr {:#018x}  spsr {:#010x}  {}",
        frame.esr, frame.far, frame.elr, frame.spsr, cpu.mpidr
    ));
    for (row, registers) in frame.x[..30].chunks(3).enumerate() {
        let first = row * 3;
        emergency_line(format_args!(
            "  x{:<2} {:#018x}  x{:<2} {:#018x}  x{:<2} {:#018x}",
            first,
            registers[0],
            first + 1,
            registers[1],
            first + 2,
            registers[2]
        ));
    }
    emergency_line(format_args!(
        "  x30 {:#018x}  sp  {:#018x}",
        frame.x[30], frame.sp
    ));
}

/// Says so if the fault is one of a stack that has run full.
fn guard(cpu: &PerCpu, frame: &FatalFrame) -> &'static str {
    let at_guard = Syndrome(frame.esr).has_fault_address()
        && cpu
            .guard_pages()
            .any(|guard| guard.contains_address(frame.far));
    if at_guard { ": stack overflow" } else { "" }
}

/// Prints the call chain from `fp`, as offsets into the image, which are the addresses in its ELF file.
fn print_backtrace(cpu: &PerCpu, pc: Option<u64>, fp: u64) {
    emergency_line(format_args!("  backtrace (addr2line -e parvisor.elf):"));
    if let Some(offset) = pc.and_then(offset_in_text) {
        emergency_line(format_args!("    {offset:#x}"));
    }
    for return_address in Frames::new(cpu, fp).take(MAX_FRAMES) {
        let Some(offset) = offset_in_text(return_address) else {
            break;
        };
        // The call itself, not what comes after it.
        emergency_line(format_args!("    {:#x}", offset - 4));
    }
}

fn offset_in_text(address: u64) -> Option<u64> {
    let text = image::text();
    let offset = address.checked_sub(text.start())?;
    (offset >= 4 && address <= text.end()).then_some(offset)
}

/// Return addresses, from frame records that lie, ascending, on one of the CPU's stacks (AAPCS64 6.4.6).
struct Frames {
    stacks: [Option<PhysicalRange>; 2],
    fp: u64,
}

impl Frames {
    fn new(cpu: &PerCpu, fp: u64) -> Self {
        Self {
            stacks: [cpu.stack(), cpu.emergency_stack()],
            fp,
        }
    }
}

impl Iterator for Frames {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let record = PhysicalRange::sized(self.fp, 16)?;
        if !self.fp.is_multiple_of(8)
            || !self
                .stacks
                .iter()
                .flatten()
                .any(|stack| stack.contains(record))
        {
            return None;
        }
        let record = self.fp as *const [u64; 2];
        // SAFETY: the record is aligned and lies within this CPU's own stack, which is mapped.
        let [next, return_address] = unsafe { record.read_volatile() };
        self.fp = if next > self.fp { next } else { 0 };
        Some(return_address)
    }
}

/// A panic is reported like an exception.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let Some(cpu) = PerCpu::try_current() else {
        park(ParkCode::EarlyFault)
    };
    begin(cpu.fatal_depth.fetch_add(1, Ordering::Relaxed) + 1);
    let id = CpuId::current();
    match info.location() {
        Some(at) => emergency_line(format_args!(
            "parvisor: FATAL: {id}: panic at {at}: {}",
            info.message()
        )),
        None => emergency_line(format_args!(
            "parvisor: FATAL: {id}: panic: {}",
            info.message()
        )),
    }
    let fp: u64;
    // SAFETY: reads the frame pointer.
    unsafe {
        core::arch::asm!("mov {}, x29", out(reg) fp, options(nomem, nostack, preserves_flags))
    };
    print_backtrace(cpu, None, fp);
    end()
}
