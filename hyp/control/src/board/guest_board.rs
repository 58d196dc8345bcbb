//! The board of a guest: what QEMU's virt machine has at the same addresses. Zephyr compiles them in, U-Boot expects them, and
//! all others find them in the device tree.

use crate::cpu_pool::BOOT_CPU;
use crate::error::RunError;
use crate::machine::{Machine, Registers};
use crate::request::Request;
use alloc::sync::Arc;
use core::ops::Range;
use devices::{Bus, DeviceHost, IrqLine, Pl011, Pl031};
use memory::CpuMemory;
use stage2::Ipa;
use vgic::{Forwarded, Version, Vgic, VgicConfig};
use vm::{CpuId, Devices, StolenTimes, VcpuId};

/// The GIC's distributor.
pub(super) const DISTRIBUTOR: Range<u64> = 0x0800_0000..0x0801_0000;
/// The CPU interface of a GICv2.
pub(super) const CPU_INTERFACE: Range<u64> = 0x0801_0000..0x0802_0000;
/// The ITS of a GICv3.
pub(super) const ITS: Range<u64> = 0x0808_0000..0x080a_0000;
/// The redistributors of a GICv3.
const REDISTRIBUTORS: Range<u64> = 0x080a_0000..0x0900_0000;
/// The size of a redistributor.
const REDISTRIBUTOR: u64 = 0x2_0000;
/// The UART, and its interrupt among the SPIs.
pub(super) const UART: u64 = 0x0900_0000;
pub(super) const UART_SPI: u32 = 1;
/// The real-time clock, and its interrupt among the SPIs.
pub(super) const RTC: u64 = 0x0901_0000;
pub(super) const RTC_SPI: u32 = 2;
/// The structures of the times stolen from vCPUs, which QEMU has there too.
pub(crate) const STOLEN_TIMES: StolenTimes = StolenTimes::new(Ipa::new(0x090a_0000));
/// The interrupts of the timers among the PPIs: EL3's, EL1's physical and virtual one, EL2's.
pub(super) const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

/// The INTIDs of the first PPI and of the first SPI.
const PPI: u32 = 16;
const SPI: u32 = 32;
const SPIS: usize = 64;
/// The vCPUs that a GICv2 serves.
const GICV2_VCPUS: usize = 8;
const NS_PER_SECOND: u64 = 1_000_000_000;
/// The priority bits that every GIC has.
const PRIORITY_BITS: u32 = 5;

/// The board of a guest, new for each start.
#[derive(Clone, Debug)]
pub struct GuestBoard<'p> {
    /// The initial ramdisk, if there is one.
    pub(crate) ramdisk: Option<&'p [u8]>,
    /// The version of its GIC, which is that of the machine's.
    pub(crate) version: Version,
    /// Its GIC.
    gic: Arc<Vgic>,
    /// The CPU interface of a GICv2.
    pub(crate) cpu_interface: Option<Registers>,
    pub(crate) uart: Arc<Pl011>,
    pub(crate) rtc: Arc<Pl031>,
}

/// The redistributors that a GICv3 has for so many vCPUs.
pub(super) fn redistributors(vcpus: usize) -> Range<u64> {
    let start = REDISTRIBUTORS.start;
    start..start + vcpus as u64 * REDISTRIBUTOR
}

impl<'p> GuestBoard<'p> {
    /// The board for a request.
    ///
    /// # Errors
    /// Its GIC can't serve them, or there is no memory.
    pub fn new<M: Machine>(
        machine: &'static M,
        memory: &CpuMemory<M::Hardware>,
        request: &Request<'p>,
    ) -> Result<Self, RunError> {
        let (vcpus, now_ns) = (request.options.vcpus, machine.now_ns());
        let version = machine.facts().guest_gic.ok_or(RunError::NoGuestGic)?;
        let most = match version {
            Version::V2 => GICV2_VCPUS,
            Version::V3 => ((REDISTRIBUTORS.end - REDISTRIBUTORS.start) / REDISTRIBUTOR) as usize,
        };
        if vcpus > most {
            let gic = machine.facts().gic;
            return Err(RunError::GicVcpus { vcpus, gic, most });
        }
        let cpu_interface = match version {
            Version::V2 => Some(Registers {
                start: CPU_INTERFACE.start,
                ..(machine.virtual_cpu_interface(memory)).map_err(|_| RunError::NoGuestGic)?
            }),
            Version::V3 => None,
        };
        let forwarded = [TIMER_PPIS[1], TIMER_PPIS[2]].map(|timer| Forwarded {
            virtual_id: PPI + timer,
            physical_id: PPI + timer,
        });
        let gic = Arc::new(Vgic::new(&VgicConfig {
            version,
            vcpus,
            spis: SPIS,
            affinity: &|vcpu| VcpuId(vcpu).affinity() as u32,
            distributor: DISTRIBUTOR.start,
            redistributors: REDISTRIBUTORS.start,
            its: (version == Version::V3).then_some(ITS.start),
            priority_bits: PRIORITY_BITS,
            forwarded: &forwarded,
        })?);
        let line = |spi| {
            Arc::new(SpiLine {
                machine,
                gic: gic.clone(),
                intid: SPI + spi,
            })
        };
        let control = Arc::new(ControlCpu { machine });
        let uart = Pl011::new(control.clone(), line(UART_SPI)).map_err(|_| RunError::Heap)?;
        let rtc = Pl031::new(
            // It has run on since the options were given.
            (request.options.rtc).wrapping_add((now_ns / NS_PER_SECOND) as u32),
            control,
            line(RTC_SPI),
        );
        Ok(Self {
            ramdisk: request.ramdisk,
            version,
            gic,
            cpu_interface,
            uart: Arc::new(uart),
            rtc: Arc::new(rtc),
        })
    }

    /// What its VM has besides vCPUs and memory.
    pub(crate) fn devices(&self) -> Devices {
        let uart = (UART..UART + Pl011::BYTES, self.uart.clone() as _);
        let rtc = (RTC..RTC + Pl031::BYTES, self.rtc.clone() as _);
        Devices {
            gic: self.gic.clone(),
            // They don't overlap.
            bus: Bus::new([uart, rtc].into()).unwrap_or_default(),
        }
    }
}

/// The line of an SPI.
struct SpiLine<M: Machine> {
    machine: &'static M,
    gic: Arc<Vgic>,
    intid: u32,
}

impl<M: Machine> IrqLine for SpiLine<M> {
    fn set(&self, level: bool) {
        let kick = |cpu| self.machine.kick(CpuId(cpu));
        self.gic.set_spi_level(self.intid, level, kick);
    }
}

/// CPU 0, which attends to the devices, and the clock.
struct ControlCpu<M: Machine> {
    machine: &'static M,
}

impl<M: Machine> DeviceHost for ControlCpu<M> {
    fn now_ns(&self) -> u64 {
        self.machine.now_ns()
    }

    fn wake(&self) {
        self.machine.kick(BOOT_CPU);
    }
}
