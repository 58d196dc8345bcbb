//! The device tree of a guest's board, as QEMU writes it for its virt machine.

use super::assigned::AssignedDevice;
use super::map::{
    CPU_INTERFACE, DISTRIBUTOR, ITS, PMU_PPI, RTC, RTC_SPI, TIMER_PPIS, UART, UART_SPI,
    redistributors,
};
use crate::guest::TreeError;
use crate::guest::device_tree::{self, check_room, most_device_bytes, write_cpus, write_memory};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use stage2::IpaRange;
use vgic::Version;
use vm::Seed;
use vm_fdt::{Error, FdtWriter};

/// The phandles of the GIC, the clock, and the ITS.
const GIC: u32 = 1;
const CLOCK: u32 = 2;
const MSI: u32 = 3;
/// The seed of the kernel's address space layout, among those that follow from the kernel's own.
const LAYOUT_SEED: u64 = 0;
/// The cells of an interrupt: kind, number, trigger.
const KIND_SPI: u32 = 0;
const KIND_PPI: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;
/// The UART's clock. Nothing runs by it: drivers only compute divisors from it.
const CLOCK_HZ: u32 = 24_000_000;

/// The contents of the tree.
#[derive(Debug)]
pub struct BoardDescription<'d> {
    /// The version of the GIC.
    pub gic: Version,
    /// The affinity of each vCPU.
    pub affinities: &'d [u64],
    /// The memory.
    pub memory: &'d [IpaRange],
    /// The initial ramdisk, if there is one.
    pub ramdisk: Option<IpaRange>,
    /// The machine's devices that it has.
    pub devices: &'d [AssignedDevice],
    /// Whether it has the real-time clock.
    pub has_clock: bool,
    /// Whether it has the performance monitors.
    pub has_pmu: bool,
    /// The kernel's command line.
    pub bootargs: &'d str,
    /// The secret that the kernel makes random numbers of, if there is one.
    pub seed: Option<Seed>,
}

impl BoardDescription<'_> {
    /// The flattened tree.
    ///
    /// # Errors
    /// A value that a tree can't hold, or there is no heap.
    pub fn to_tree(&self) -> Result<Vec<u8>, TreeError> {
        /// For a vCPU's node, and for all else.
        const NODE: usize = 256;
        const REST: usize = 8192;
        let nodes = (self.affinities.len() + self.memory.len()).saturating_mul(NODE);
        let devices = most_device_bytes(self.devices.iter().map(|assigned| &assigned.device));
        let bytes = (self.bootargs.len()).saturating_add(nodes + REST + devices);
        // Its buffer is copied into one twice as large when it grows.
        check_room(self.bootargs, bytes.saturating_mul(4))?;
        self.write().map_err(TreeError::Value)
    }

    fn write(&self) -> Result<Vec<u8>, Error> {
        let mut tree = FdtWriter::new()?;
        let root = tree.begin_node("")?;
        tree.property_string("compatible", "linux,dummy-virt")?;
        tree.property_string("model", "Parvisor virtual machine")?;
        tree.property_u32("#address-cells", 2)?;
        tree.property_u32("#size-cells", 2)?;
        tree.property_u32("interrupt-parent", GIC)?;
        self.write_chosen(&mut tree)?;
        for range in self.memory {
            write_memory(&mut tree, range)?;
        }
        write_cpus(&mut tree, self.affinities)?;
        write_psci(&mut tree)?;
        write_timer(&mut tree)?;
        if self.has_pmu {
            write_pmu(&mut tree)?;
        }
        self.write_gic(&mut tree)?;
        write_clock(&mut tree)?;
        let uart = ["arm,pl011", "arm,primecell"];
        write_device(
            &mut tree,
            "pl011",
            UART,
            UART_SPI,
            uart,
            &["uartclk", "apb_pclk"],
        )?;
        if self.has_clock {
            let rtc = ["arm,pl031", "arm,primecell"];
            write_device(&mut tree, "pl031", RTC, RTC_SPI, rtc, &["apb_pclk"])?;
        }
        for assigned in self.devices {
            device_tree::write_device(&mut tree, &assigned.device, |tree| {
                write_interrupts(tree, assigned)
            })?;
        }
        tree.end_node(root)?;
        tree.finish()
    }

    fn write_chosen(&self, tree: &mut FdtWriter) -> Result<(), Error> {
        let chosen = tree.begin_node("chosen")?;
        tree.property_string("bootargs", self.bootargs)?;
        tree.property_string("stdout-path", &path("pl011", UART))?;
        if let Some(seed) = &self.seed {
            tree.property("rng-seed", seed.bytes())?;
            let layout = seed.child(LAYOUT_SEED);
            tree.property("kaslr-seed", &layout.bytes()[..size_of::<u64>()])?;
        }
        if let Some(ramdisk) = &self.ramdisk {
            tree.property_u64("linux,initrd-start", ramdisk.start.get())?;
            tree.property_u64("linux,initrd-end", ramdisk.end.get())?;
        }
        tree.end_node(chosen)
    }

    fn write_gic(&self, tree: &mut FdtWriter) -> Result<(), Error> {
        let (compatible, second) = match self.gic {
            Version::V2 => ("arm,cortex-a15-gic", CPU_INTERFACE),
            Version::V3 => ("arm,gic-v3", redistributors(self.affinities.len())),
        };
        let gic = tree.begin_node(&name("intc", DISTRIBUTOR.start))?;
        tree.property_string("compatible", compatible)?;
        tree.property_u32("phandle", GIC)?;
        tree.property_null("interrupt-controller")?;
        tree.property_u32("#interrupt-cells", 3)?;
        tree.property_u32("#address-cells", 2)?;
        tree.property_u32("#size-cells", 2)?;
        tree.property_null("ranges")?;
        tree.property_array_u64("reg", &[sized(&DISTRIBUTOR), sized(&second)].concat())?;
        if self.gic == Version::V3 {
            tree.property_u32("#redistributor-regions", 1)?;
            let its = tree.begin_node(&name("its", ITS.start))?;
            tree.property_string("compatible", "arm,gic-v3-its")?;
            tree.property_u32("phandle", MSI)?;
            tree.property_null("msi-controller")?;
            tree.property_u32("#msi-cells", 1)?;
            tree.property_array_u64("reg", &sized(&ITS))?;
            tree.end_node(its)?;
        }
        tree.end_node(gic)
    }
}

fn write_psci(tree: &mut FdtWriter) -> Result<(), Error> {
    let psci = tree.begin_node("psci")?;
    let versions = ["arm,psci-1.0", "arm,psci-0.2", "arm,psci"];
    tree.property_string_list("compatible", strings(&versions))?;
    tree.property_string("method", "hvc")?;
    // Whoever knows PSCI 0.1 only finds its functions here.
    tree.property_u32("cpu_suspend", 0xc400_0001)?;
    tree.property_u32("cpu_off", 0x8400_0002)?;
    tree.property_u32("cpu_on", 0xc400_0003)?;
    tree.end_node(psci)
}

fn write_timer(tree: &mut FdtWriter) -> Result<(), Error> {
    let timer = tree.begin_node("timer")?;
    tree.property_string("compatible", "arm,armv8-timer")?;
    let interrupts = TIMER_PPIS.map(|ppi| [KIND_PPI, ppi, LEVEL_HIGH]);
    tree.property_array_u32("interrupts", interrupts.as_flattened())?;
    let names = ["sec-phys", "phys", "virt", "hyp-phys"];
    tree.property_string_list("interrupt-names", strings(&names))?;
    tree.property_null("always-on")?;
    tree.end_node(timer)
}

fn write_pmu(tree: &mut FdtWriter) -> Result<(), Error> {
    let pmu = tree.begin_node("pmu")?;
    tree.property_string("compatible", "arm,armv8-pmuv3")?;
    tree.property_array_u32("interrupts", &[KIND_PPI, PMU_PPI, LEVEL_HIGH])?;
    tree.end_node(pmu)
}

fn write_clock(tree: &mut FdtWriter) -> Result<(), Error> {
    let clock = tree.begin_node("apb-pclk")?;
    tree.property_string("compatible", "fixed-clock")?;
    tree.property_u32("phandle", CLOCK)?;
    tree.property_u32("#clock-cells", 0)?;
    tree.property_u32("clock-frequency", CLOCK_HZ)?;
    tree.property_string("clock-output-names", "clk24mhz")?;
    tree.end_node(clock)
}

/// The interrupts of a device of the machine's. Its clocks become the board's: the machine's run as they do.
fn write_interrupts(tree: &mut FdtWriter, assigned: &AssignedDevice) -> Result<(), Error> {
    let device = &assigned.device;
    let interrupts = device.interrupts.iter().flatten().zip(&assigned.spis);
    let cells = interrupts.map(|(interrupt, spi)| {
        let trigger = match interrupt.is_edge {
            true => EDGE_RISING,
            false => LEVEL_HIGH,
        };
        [KIND_SPI, *spi, trigger]
    });
    let cells: Vec<[u32; 3]> = cells.collect();
    if !cells.is_empty() {
        tree.property_array_u32("interrupts", cells.as_flattened())?;
    }
    let clocks = device.clock_names.iter().filter(|byte| **byte == 0);
    let clocks: Vec<u32> = clocks.map(|_| CLOCK).collect();
    if !clocks.is_empty() {
        tree.property_array_u32("clocks", &clocks)?;
        tree.property("clock-names", device.clock_names)?;
    }
    Ok(())
}

/// The node of a PrimeCell, whose clocks have these names.
fn write_device(
    tree: &mut FdtWriter,
    device: &str,
    address: u64,
    spi: u32,
    compatible: [&str; 2],
    clocks: &[&str],
) -> Result<(), Error> {
    let node = tree.begin_node(&name(device, address))?;
    tree.property_string_list("compatible", strings(&compatible))?;
    tree.property_array_u64("reg", &[address, 0x1000])?;
    tree.property_array_u32("interrupts", &[KIND_SPI, spi, LEVEL_HIGH])?;
    let all: Vec<u32> = clocks.iter().map(|_| CLOCK).collect();
    tree.property_array_u32("clocks", &all)?;
    tree.property_string_list("clock-names", strings(clocks))?;
    tree.end_node(node)
}

fn name(device: &str, address: u64) -> String {
    format!("{device}@{address:x}")
}

fn path(device: &str, address: u64) -> String {
    format!("/{device}@{address:x}")
}

fn strings(strings: &[&str]) -> Vec<String> {
    strings.iter().map(|string| String::from(*string)).collect()
}

fn sized(range: &Range<u64>) -> [u64; 2] {
    [range.start, range.end - range.start]
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtoolkit::fdt::Fdt;
    use dtoolkit::{Node, Property};
    use stage2::Ipa;

    fn tree(gic: Version, vcpus: u64, bootargs: &str) -> Vec<u8> {
        let affinities: Vec<u64> = (0..vcpus).collect();
        let ramdisk = Ipa::new(0x4440_0000)..Ipa::new(0x4450_0001);
        BoardDescription {
            gic,
            affinities: &affinities,
            memory: &[Ipa::new(0x4000_0000)..Ipa::new(0x2_4000_0000)],
            ramdisk: Some(ramdisk),
            devices: &[],
            has_clock: true,
            has_pmu: true,
            bootargs,
            seed: Some(Seed::new([0x5e; Seed::BYTES])),
        }
        .to_tree()
        .unwrap()
    }

    fn value(blob: &[u8], node: &str, property: &str) -> Vec<u8> {
        let tree = Fdt::new(blob).unwrap();
        let node = tree.find_node(node).unwrap_or_else(|| panic!("{node}"));
        let property = node.property(property);
        property
            .unwrap_or_else(|| panic!("no such property"))
            .value()
            .into()
    }

    fn cells(cells: &[u32]) -> Vec<u8> {
        cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
    }

    #[test]
    fn drivers_find_what_qemus_machine_has() {
        let blob = tree(Version::V3, 4, "console=ttyAMA0");
        let value = |node, property| value(&blob, node, property);
        assert_eq!(value("/", "interrupt-parent"), cells(&[GIC]));
        assert_eq!(value("/chosen", "bootargs"), b"console=ttyAMA0\0");
        assert_eq!(value("/chosen", "stdout-path"), b"/pl011@9000000\0");
        assert_eq!(value("/chosen", "rng-seed"), [0x5e; 32]);
        let layout = value("/chosen", "kaslr-seed");
        assert!(layout.len() == 8 && layout != [0x5e; 8]);
        assert_eq!(
            value("/chosen", "linux,initrd-start"),
            cells(&[0, 0x4440_0000])
        );
        assert_eq!(
            value("/chosen", "linux,initrd-end"),
            cells(&[0, 0x4450_0001])
        );
        assert_eq!(
            value("/memory@40000000", "reg"),
            cells(&[0, 0x4000_0000, 2, 0])
        );
        assert_eq!(
            value("/psci", "compatible"),
            b"arm,psci-1.0\0arm,psci-0.2\0arm,psci\0"
        );
        assert_eq!(
            value("/timer", "interrupts"),
            cells(&[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4])
        );
        assert_eq!(value("/pmu", "compatible"), b"arm,armv8-pmuv3\0");
        assert_eq!(value("/pmu", "interrupts"), cells(&[1, 7, 4]));
        assert_eq!(
            value("/intc@8000000", "reg"),
            cells(&[0, 0x0800_0000, 0, 0x1_0000, 0, 0x080a_0000, 0, 0x8_0000])
        );
        assert_eq!(value("/intc@8000000", "compatible"), b"arm,gic-v3\0");
        let its = |property| value("/intc@8000000/its@8080000", property);
        assert_eq!(its("compatible"), b"arm,gic-v3-its\0");
        assert_eq!(its("reg"), cells(&[0, 0x0808_0000, 0, 0x2_0000]));
        assert_eq!(its("#msi-cells"), cells(&[1]));
        for (node, address, spi, clocks, names) in [
            (
                "/pl011@9000000",
                0x0900_0000,
                1,
                &[CLOCK, CLOCK][..],
                &b"uartclk\0apb_pclk\0"[..],
            ),
            ("/pl031@9010000", 0x0901_0000, 2, &[CLOCK], b"apb_pclk\0"),
        ] {
            assert_eq!(value(node, "reg"), cells(&[0, address, 0, 0x1000]));
            assert_eq!(value(node, "interrupts"), cells(&[0, spi, 4]));
            assert_eq!(value(node, "clocks"), cells(clocks));
            assert_eq!(value(node, "clock-names"), names);
        }
        let tree = Fdt::new(&blob).unwrap();
        assert_eq!(tree.find_node("/cpus").unwrap().children().count(), 4);
    }

    #[test]
    fn a_gicv2_has_its_cpu_interface() {
        let blob = tree(Version::V2, 1, "");
        assert_eq!(
            value(&blob, "/intc@8000000", "compatible"),
            b"arm,cortex-a15-gic\0"
        );
        let tree = Fdt::new(&blob).unwrap();
        assert!(tree.find_node("/intc@8000000/its@8080000").is_none());
        assert_eq!(
            value(&blob, "/intc@8000000", "reg"),
            cells(&[0, 0x0800_0000, 0, 0x1_0000, 0, 0x0801_0000, 0, 0x1_0000])
        );
    }

    #[test]
    fn arguments_that_a_tree_cant_hold_are_refused() {
        let description = BoardDescription {
            gic: Version::V3,
            affinities: &[0],
            memory: &[],
            ramdisk: None,
            devices: &[],
            has_clock: true,
            has_pmu: true,
            bootargs: "a\0b",
            seed: None,
        };
        assert!(matches!(description.to_tree(), Err(TreeError::Value(_))));
    }
}
