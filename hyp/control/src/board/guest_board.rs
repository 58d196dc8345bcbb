//! The board of a guest: what QEMU's virt machine has at the same addresses. Zephyr compiles them in, U-Boot expects them, and
//! all others find them in the device tree.

use super::assigned::{self, AssignedDevice};
use super::map::{
    CPU_INTERFACE, DISTRIBUTOR, ITS, PMU_PPI, PPI, REDISTRIBUTOR, REDISTRIBUTORS, RTC_REGISTERS,
    RTC_SPI, SPI, SPIS, TIMER_PPIS, UART_REGISTERS, UART_SPI,
};
use crate::cpu_pool::BOOT_CPU;
use crate::error::RunError;
use crate::machine::{Device, DeviceInterrupt, Machine, Registers};
use crate::request::Request;
use alloc::sync::Arc;
use alloc::vec::Vec;
use devices::{Bus, Device as Emulated, DeviceHost, IrqLine, Pl011, Pl031};
use memory::CpuMemory;
use records::words::CpuFeature;
use vgic::{Forwarded, Version, Vgic, VgicConfig};
use vm::{CpuId, Devices, VcpuId};

/// The vCPUs that a GICv2 serves.
const GICV2_VCPUS: usize = 8;
const NS_PER_SECOND: u64 = 1_000_000_000;
/// The priority bits that every GIC has.
const PRIORITY_BITS: u32 = 5;

/// The board of a guest, new for each start.
#[derive(Clone, Debug)]
pub struct GuestBoard<'p> {
    /// What starts in flash memory, if it isn't the kernel that starts.
    pub(crate) firmware: Option<&'p [u8]>,
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
    /// Whether the guest has the real-time clock: not if it has a device of the machine's there.
    pub(crate) has_clock: bool,
    /// Whether the guest has the performance monitors.
    pub(crate) has_pmu: bool,
    /// The machine's devices that it has.
    pub(crate) devices: Vec<AssignedDevice>,
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
        let devices = assigned::all(machine, memory, request)?;
        for (path, assigned) in request.options.devices.iter().zip(&devices) {
            if assigned.spis.is_empty() {
                log::info!("device={path} has no interrupts");
            }
        }
        let has_clock = !devices.iter().any(|device| device.overlaps(&RTC_REGISTERS));
        let has_pmu = request.options.cpu_features.contains(&CpuFeature::Pmu);
        let private = [TIMER_PPIS[1], TIMER_PPIS[2]].into_iter();
        let private = private.chain(has_pmu.then_some(PMU_PPI));
        let private = private.map(|ppi| Forwarded {
            virtual_id: PPI + ppi,
            physical_id: PPI + ppi,
        });
        let mut forwarded: Vec<_> = private.collect();
        forwarded.extend(devices.iter().flat_map(AssignedDevice::forwarded));
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
        // It has run on since the options were given.
        let seconds = (request.options.rtc).wrapping_add((now_ns / NS_PER_SECOND) as u32);
        let (uart, rtc) = emulated(machine, &gic, seconds)?;
        Ok(Self {
            firmware: request.firmware,
            ramdisk: request.ramdisk,
            version,
            gic,
            cpu_interface,
            uart,
            rtc,
            has_clock,
            has_pmu,
            devices,
        })
    }

    /// The machine's devices that it has.
    pub(crate) fn assigned(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter().map(|assigned| &assigned.device)
    }

    /// The interrupts of these devices.
    pub(crate) fn interrupts(&self) -> impl Iterator<Item = DeviceInterrupt> {
        let interrupts = self.assigned().flat_map(|device| &device.interrupts);
        interrupts.flatten().copied()
    }

    /// The same, without firmware and ramdisk, which its guest has in memory by now.
    pub(crate) fn started(&self) -> GuestBoard<'static> {
        GuestBoard {
            firmware: None,
            ramdisk: None,
            version: self.version,
            gic: self.gic.clone(),
            cpu_interface: self.cpu_interface.clone(),
            uart: self.uart.clone(),
            rtc: self.rtc.clone(),
            has_clock: self.has_clock,
            has_pmu: self.has_pmu,
            devices: self.devices.clone(),
        }
    }

    /// The board of a fork of its guest, which is paused: its devices are as this one's. What the UART has sent, but nobody has
    /// taken yet, only this one sends.
    ///
    /// # Errors
    /// There is no memory for it, or the guest has a device of the machine's, of which there is one.
    pub fn fork<M: Machine>(&self, machine: &'static M) -> Result<GuestBoard<'static>, RunError> {
        if !self.devices.is_empty() {
            return Err(RunError::ForkWithDevice);
        }
        let gic = Arc::new(self.gic.snapshot()?);
        let (uart, rtc) = emulated(machine, &gic, 0)?;
        let pairs: [(&dyn Emulated, &dyn Emulated); 2] =
            [(&*self.uart, &*uart), (&*self.rtc, &*rtc)];
        for (own, forks) in pairs {
            let mut saved = Vec::new();
            own.save(&mut saved).map_err(|_| RunError::Heap)?;
            forks.restore(&saved).map_err(RunError::Restore)?;
        }
        uart.drop_output();
        Ok(GuestBoard {
            gic,
            uart,
            rtc,
            ..self.started()
        })
    }

    /// What its VM has besides vCPUs and memory.
    pub(crate) fn devices(&self) -> Devices {
        let mut all = Vec::from([(UART_REGISTERS, self.uart.clone() as _)]);
        all.extend((self.has_clock).then(|| (RTC_REGISTERS, self.rtc.clone() as _)));
        Devices {
            gic: self.gic.clone(),
            // They don't overlap.
            bus: Bus::new(all).unwrap_or_default(),
        }
    }
}

/// The devices of a board with this GIC, the clock at so many seconds.
fn emulated<M: Machine>(
    machine: &'static M,
    gic: &Arc<Vgic>,
    seconds: u32,
) -> Result<(Arc<Pl011>, Arc<Pl031>), RunError> {
    let line = |spi| {
        Arc::new(SpiLine {
            machine,
            gic: gic.clone(),
            intid: SPI + spi,
        })
    };
    let control = Arc::new(ControlCpu { machine });
    let uart = Pl011::new(control.clone(), line(UART_SPI)).map_err(|_| RunError::Heap)?;
    let rtc = Pl031::new(seconds, control, line(RTC_SPI));
    Ok((Arc::new(uart), Arc::new(rtc)))
}

/// The line of an SPI.
struct SpiLine<M: Machine> {
    machine: &'static M,
    gic: Arc<Vgic>,
    intid: u32,
}

impl<M: Machine> IrqLine for SpiLine<M> {
    fn set(&self, level: bool) {
        let here = self.machine.here();
        let kick = |cpu| {
            // A vCPU whose own access changes the line looks before it enters its guest.
            if cpu != here.0 {
                self.machine.kick(CpuId(cpu));
            }
        };
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
