//! The addresses and the interrupts of a guest's board.

use core::ops::Range;
use devices::{Pl011, Pl031};
use stage2::Ipa;
use vm::StolenTimes;

/// The GIC's distributor.
pub(super) const DISTRIBUTOR: Range<u64> = 0x0800_0000..0x0801_0000;
/// The CPU interface of a GICv2.
pub(super) const CPU_INTERFACE: Range<u64> = 0x0801_0000..0x0802_0000;
/// The ITS of a GICv3.
pub(super) const ITS: Range<u64> = 0x0808_0000..0x080a_0000;
/// The redistributors of a GICv3.
pub(super) const REDISTRIBUTORS: Range<u64> = 0x080a_0000..0x0900_0000;
/// The size of a redistributor.
pub(super) const REDISTRIBUTOR: u64 = 0x2_0000;
/// The UART, and its interrupt among the SPIs.
pub(super) const UART: u64 = 0x0900_0000;
pub(super) const UART_SPI: u32 = 1;
/// The real-time clock, and its interrupt among the SPIs.
pub(super) const RTC: u64 = 0x0901_0000;
pub(super) const RTC_SPI: u32 = 2;
/// Their registers.
pub(super) const UART_REGISTERS: Range<u64> = UART..UART + Pl011::BYTES;
pub(super) const RTC_REGISTERS: Range<u64> = RTC..RTC + Pl031::BYTES;
/// The structures of the times stolen from vCPUs, which QEMU has there too.
pub(crate) const STOLEN_TIMES: StolenTimes = StolenTimes::new(Ipa::new(0x090a_0000));
/// The interrupts of the timers among the PPIs: EL3's, EL1's physical and virtual one, EL2's.
pub(super) const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

/// That of the performance monitors.
pub(super) const PMU_PPI: u32 = 7;

/// The INTIDs of the first PPI and of the first SPI.
pub(super) const PPI: u32 = 16;
pub(super) const SPI: u32 = 32;
pub(super) const SPIS: usize = 64;

/// The redistributors that a GICv3 has for so many vCPUs.
pub(super) fn redistributors(vcpus: usize) -> Range<u64> {
    let start = REDISTRIBUTORS.start;
    start..start + vcpus as u64 * REDISTRIBUTOR
}
