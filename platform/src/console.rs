//! The console, a PL011, and the log that is printed on it.
//!
//! Each line of the hypervisor's begins at the beginning of a line, whoever was within one.
//! A CPU takes the lock for a whole line, so lines don't mix. CPUs get the lock in the order in which they asked, so a guest
//! that prints without end delays another CPU's line by one of its own at most. Fatal reports use `emergency_line`, which takes
//! no lock and silences all other CPUs. Waiting for room in the FIFO is bounded: a stuck UART only loses output.

use crate::cpu::percpu::CpuId;
use crate::discovery;
use crate::drivers::gic;
use crate::drivers::timer;
use arm_pl011_uart::{Interrupts, PL011Registers, UniqueMmioPointer};
use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use log::{LevelFilter, Log, Metadata, Record};
use spin::mutex::TicketMutex;

const PATIENCE: u32 = 10_000_000;

static CONSOLE: TicketMutex<Option<Port>> = TicketMutex::new(None);
/// The registers' address for fatal reports, 0 without a console.
static REGISTERS: AtomicUsize = AtomicUsize::new(0);
static SILENCED: AtomicBool = AtomicBool::new(false);
/// Who is within a line: [`NOBODY`], somebody without a name, or one of several speakers, from [`SPEAKERS`] on. Changed by who
/// has the console.
static WITHIN: AtomicUsize = AtomicUsize::new(NOBODY);
const NOBODY: usize = 0;
const SOMEBODY: usize = 1;
const SPEAKERS: usize = 2;

/// A PL011 that bytes are written to.
pub(crate) struct Port {
    uart: arm_pl011_uart::Uart<'static>,
}

impl Port {
    /// # Safety
    /// A PL011's registers are mapped at `registers`, and nobody else writes to them while this exists, except that a fatal
    /// report may cut in on those it silences.
    pub unsafe fn new(registers: NonNull<PL011Registers>) -> Self {
        // SAFETY: as promised by the caller.
        let registers = unsafe { UniqueMmioPointer::new(registers) };
        Self {
            uart: arm_pl011_uart::Uart::new(registers),
        }
    }

    fn write_byte(&mut self, byte: u8) {
        let has_room = wait_while(|| self.uart.is_tx_fifo_full());
        if has_room {
            self.uart.write_word(byte);
        }
    }

    /// Ends the line that somebody is within, if so.
    fn end_line(&mut self) {
        if WITHIN.swap(NOBODY, Ordering::Relaxed) != NOBODY {
            let _ = self.write_str("\n");
        }
    }

    /// Waits until everything has been sent.
    pub fn flush(&self) {
        wait_while(|| self.uart.is_busy());
    }
}

fn wait_while(busy: impl Fn() -> bool) -> bool {
    (0..PATIENCE).any(|_| !busy())
}

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.write_byte(b'\r');
            }
            self.write_byte(byte);
        }
        Ok(())
    }
}

/// Starts using the UART, whose registers are mapped; line settings stay as firmware left them. Log lines are printed from
/// here on.
pub(crate) fn init(uart: discovery::Uart) {
    static LOGGER: Logger = Logger;
    let address = uart.registers.start() as usize;
    let Some(registers) = NonNull::new(address as *mut PL011Registers) else {
        return;
    };
    // SAFETY: the device tree says that a PL011 is there, the caller mapped it, and only this module uses it.
    *CONSOLE.lock() = Some(unsafe { Port::new(registers) });
    REGISTERS.store(address, Ordering::Relaxed);
    // Fails only if a logger is set already, which is this one.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(LevelFilter::Info);
}

/// Prints one line.
pub fn write_line(line: fmt::Arguments<'_>) {
    if let Some(port) = CONSOLE.lock().as_mut() {
        // After a fatal report nobody adds to it.
        while SILENCED.load(Ordering::Relaxed) {
            aarch64_cpu::asm::wfe();
        }
        port.end_line();
        // The port itself never fails.
        let _ = writeln!(port, "{line}");
    }
}

/// Writes bytes as they are, as many as the UART has room for now. Returns their number.
pub fn write(bytes: &[u8]) -> usize {
    let mut console = CONSOLE.lock();
    let Some(port) = console.as_mut() else {
        // Nobody will ever read them.
        return bytes.len();
    };
    let mut written = bytes.iter().take_while(|byte| {
        let has_room = !port.uart.is_tx_fifo_full() && !SILENCED.load(Ordering::Relaxed);
        if has_room {
            port.uart.write_word(**byte);
        }
        has_room
    });
    let count = written.by_ref().count();
    if let Some(last) = count.checked_sub(1) {
        let is_within = bytes[last] != b'\n';
        WITHIN.store(if is_within { SOMEBODY } else { NOBODY }, Ordering::Relaxed);
    }
    count
}

/// Writes bytes of one of several speakers as they are, as many as the UART has room for now. Returns their number. Each line
/// begins with the speaker's name in brackets and a space; the rest of a line that was interrupted, with a plus instead of the
/// space.
pub fn write_as(number: usize, name: &str, mut is_within: bool, bytes: &[u8]) -> usize {
    let mut console = CONSOLE.lock();
    let Some(port) = console.as_mut() else {
        return bytes.len();
    };
    let mut count = 0;
    for byte in bytes {
        if port.uart.is_tx_fifo_full() || SILENCED.load(Ordering::Relaxed) {
            break;
        }
        if WITHIN.load(Ordering::Relaxed) != SPEAKERS + number {
            port.end_line();
            let mark = if is_within { '+' } else { ' ' };
            let _ = write!(port, "[{name}]{mark}");
            WITHIN.store(SPEAKERS + number, Ordering::Relaxed);
        }
        port.write_byte(*byte);
        is_within = *byte != b'\n';
        if !is_within {
            WITHIN.store(NOBODY, Ordering::Relaxed);
        }
        count += 1;
    }
    count
}

/// Lets input ask for the UART's interrupt.
pub(crate) fn announce_input() {
    if let Some(port) = CONSOLE.lock().as_mut() {
        let input = Interrupts::RXI | Interrupts::RTI;
        port.uart.set_interrupt_masks(input);
    }
}

/// Reads the bytes that have arrived. Returns their number. Bytes with errors are left out. If those were all, the next one wakes
/// the boot CPU.
pub fn read(bytes: &mut [u8]) -> usize {
    let mut console = CONSOLE.lock();
    let Some(port) = console.as_mut() else {
        return 0;
    };
    let mut count = 0;
    while count < bytes.len() {
        match port.uart.read_word() {
            Ok(Some(byte)) => {
                bytes[count] = byte;
                count += 1;
            }
            Ok(None) => break,
            Err(_) => {}
        }
    }
    if count < bytes.len() {
        gic::await_console();
    }
    count
}

/// Prints the last line: nobody prints afterwards. Waits until the UART has sent everything.
pub(crate) fn write_last_line(line: fmt::Arguments<'_>) {
    if let Some(port) = CONSOLE.lock().as_mut() {
        port.end_line();
        let _ = writeln!(port, "{line}");
        port.flush();
        SILENCED.store(true, Ordering::Relaxed);
    }
}

/// Silences all other CPUs. False if another CPU has done so before.
pub(crate) fn silence_others() -> bool {
    !SILENCED.swap(true, Ordering::Relaxed)
}

/// Prints one line without the lock, in a fatal report.
pub(crate) fn emergency_line(line: fmt::Arguments<'_>) {
    if let Some(registers) = NonNull::new(REGISTERS.load(Ordering::Relaxed) as *mut PL011Registers)
    {
        // SAFETY: the address is the console's, which stays mapped; whoever else was printing is silenced, and at worst
        // mixes the rest of a line into this one.
        let mut port = unsafe { Port::new(registers) };
        port.end_line();
        let _ = writeln!(port, "{line}");
        port.flush();
    }
}

/// Lines of the form `[   1.234567 cpu0] INFO text`.
struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let microseconds = timer::now_ns() / 1000;
            let (seconds, rest) = (microseconds / 1_000_000, microseconds % 1_000_000);
            let cpu = CpuId::current();
            write_line(format_args!(
                "[{seconds:>4}.{rest:06} {cpu}] {} {}",
                record.level(),
                record.args()
            ));
        }
    }

    fn flush(&self) {}
}
