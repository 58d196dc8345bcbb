//! Device trees built here, and the expected results; no change to a tree's bytes makes the reader panic.

mod devices;
mod memory;

use super::*;
use crate::discovery::plan::{MemoryPlan, ModuleFault, PlanError};
use alloc::string::ToString;
use alloc::{format, vec};
use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{ToPropertyValue, fdt};
use proptest::prelude::*;

const BOOT: Mpidr = Mpidr::from_register(0);
const IMAGE: PhysicalRange = range(0x4020_0000, 0x4040_0000);
const TREE: PhysicalRange = range(0x4800_0000, 0x4810_0000);

const fn range(start: u64, end: u64) -> PhysicalRange {
    match PhysicalRange::new(start, end) {
        Some(range) => range,
        None => panic!("empty"),
    }
}

fn set(node: &mut DeviceTreeNode, name: &str, value: impl ToPropertyValue) {
    node.add_property(DeviceTreeProperty::new(name, value).unwrap());
}

fn cells(node: &mut DeviceTreeNode, address: u32, size: u32) {
    set(node, "#address-cells", address);
    set(node, "#size-cells", size);
}

fn child<'a>(
    parent: &'a mut DeviceTreeNode,
    name: &str,
    compatible: &str,
) -> &'a mut DeviceTreeNode {
    let mut node = DeviceTreeNode::new(name).unwrap();
    if !compatible.is_empty() {
        set(&mut node, "compatible", compatible);
    }
    parent.add_child_mut(node)
}

/// What QEMU's `virt` with GICv3 describes, two clusters of 16 CPUs and two more.
fn virt() -> DeviceTree {
    let mut tree = DeviceTree::new();
    let root = &mut tree.root;
    cells(root, 2, 2);
    let memory = child(root, "memory@40000000", "");
    set(memory, "device_type", "memory");
    set(memory, "reg", [0u32, 0x4000_0000, 0, 0x4000_0000]);
    let cpus = child(root, "cpus", "");
    cells(cpus, 1, 0);
    for index in 0..34u32 {
        let mpidr = ((index / 16) << 8) | (index % 16);
        let cpu = child(cpus, &format!("cpu@{mpidr:x}"), "arm,cortex-a72");
        set(cpu, "device_type", "cpu");
        set(cpu, "enable-method", "psci");
        set(cpu, "reg", mpidr);
    }
    let psci = child(root, "psci", "");
    set(psci, "compatible", &["arm,psci-1.0", "arm,psci-0.2"][..]);
    set(psci, "method", "smc");
    let timer = child(root, "timer", "arm,armv8-timer");
    set(
        timer,
        "interrupts",
        [1u32, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4],
    );
    let pmu = child(root, "pmu", "arm,armv8-pmuv3");
    set(pmu, "interrupts", [1u32, 7, 4]);
    let gic = child(root, "intc@8000000", "arm,gic-v3");
    set(gic, "#redistributor-regions", 2u32);
    set(gic, "interrupts", [1u32, 9, 4]);
    set(
        gic,
        "reg",
        [
            0u32,
            0x0800_0000,
            0,
            0x1_0000,
            0,
            0x080a_0000,
            0,
            0xf6_0000,
            0x40,
            0,
            0,
            0x400_0000,
        ],
    );
    for address in ["9000000", "9040000"] {
        let uart = child(root, &format!("pl011@{address}"), "");
        set(uart, "compatible", &["arm,pl011", "arm,primecell"][..]);
        set(
            uart,
            "reg",
            [0, u32::from_str_radix(address, 16).unwrap(), 0, 0x1000],
        );
        let spi = if address == "9000000" { 1u32 } else { 8 };
        set(uart, "interrupts", [0u32, spi, 4]);
    }
    let chosen = child(root, "chosen", "");
    set(chosen, "stdout-path", "/pl011@9040000:115200n8");
    set(chosen, "bootargs", "mode=parallel vcpus=4");
    tree
}

/// Longer seeds are folded: no bit of theirs is lost, and none counts twice.
#[test]
fn a_seed_of_firmware_is_taken_if_it_is_long_enough() {
    let seed = |bytes: &[u8]| {
        let mut tree = virt();
        set(tree.find_node_mut("/chosen").unwrap(), "rng-seed", bytes);
        discover(&tree).unwrap().seed.map(|seed| *seed.bytes())
    };
    assert_eq!(seed(&[]), None);
    assert_eq!(seed(&[1; 31]), None);
    assert_eq!(seed(&[1; 32]), Some([1; 32]));
    assert_eq!(seed(&[1; 63]), Some([1; 32]));
    let long: [u8; 64] = core::array::from_fn(|index| 1 << (index / 32));
    assert_eq!(seed(&long), Some([3; 32]));
}

fn add_module(tree: &mut DeviceTree, start: u32, size: u32) {
    let chosen = tree.find_node_mut("/chosen").unwrap();
    let module = child(chosen, &format!("module@{start:x}"), "");
    set(
        module,
        "compatible",
        &["multiboot,module", "multiboot,kernel"][..],
    );
    set(module, "reg", [0u32, start, 0, size]);
    set(module, "bootargs", "quiet");
}

/// The blob that the machine's description is read from lives as long as the test's process, as firmware's does.
fn discover(tree: &DeviceTree) -> Result<Machine<'static>, DiscoveryError> {
    Machine::discover(parse(tree.to_dtb().leak()).unwrap(), BOOT)
}

fn plan(tree: &DeviceTree) -> Result<MemoryPlan, PlanError> {
    MemoryPlan::new(&discover(tree).unwrap(), 40, IMAGE, TREE)
}

#[test]
fn a_virt_machine_is_described_in_full() {
    let machine = discover(&virt()).unwrap();
    assert_eq!(machine.memory.ranges(), [range(0x4000_0000, 0x8000_0000)]);
    assert_eq!(machine.cpus.len(), 34);
    assert_eq!(machine.cpus[33].mpidr.affinity(), 0x201);
    assert!(machine.cpus.iter().all(|cpu| cpu.by_psci));
    assert_eq!(machine.conduit, Some(Conduit::Smc));
    assert_eq!(
        machine.console,
        Some(Uart {
            registers: range(0x904_0000, 0x904_1000),
            interrupt: Some(Interrupt(40)),
        })
    );
    assert_eq!(machine.bootargs, "mode=parallel vcpus=4");
    assert_eq!(machine.seed, None);
    assert_eq!(
        machine.timer,
        Some(TimerInterrupts {
            physical: Interrupt(30),
            virtual_timer: Interrupt(27),
            hypervisor: Interrupt(26)
        })
    );
    assert_eq!(machine.maintenance, Some(Interrupt(25)));
    assert_eq!(machine.pmu, Some(Interrupt(23)));
    assert_eq!(
        machine.gic,
        Gic::V3 {
            distributor: range(0x800_0000, 0x801_0000),
            redistributors: vec![
                range(0x80a_0000, 0x900_0000),
                range(0x40_0000_0000, 0x40_0400_0000)
            ],
        }
    );
    assert!(machine.modules.is_empty());
}

#[test]
fn the_boot_cpu_comes_first_whatever_its_place() {
    let dtb = virt().to_dtb();
    let machine =
        Machine::discover(parse(&dtb).unwrap(), Mpidr::from_register(0x8000_0105)).unwrap();
    assert_eq!(machine.cpus[0].mpidr.affinity(), 0x105);
    assert_eq!(machine.cpus[1].mpidr.affinity(), 0);
    assert_eq!(machine.cpus.len(), 34);
    let stranger = Mpidr::from_register(0x7);
    let mut tree = virt();
    tree.find_node_mut("/cpus").unwrap().remove_child("cpu@7");
    assert_eq!(
        Machine::discover(parse(&tree.to_dtb()).unwrap(), stranger).unwrap_err(),
        DiscoveryError::NoBootCpu(stranger)
    );
}

/// As on Xilinx' ZynqMP.
#[test]
fn of_a_gicv2_in_large_pages_the_adjacent_registers_are_used() {
    let mut tree = virt();
    tree.root.remove_child("intc@8000000");
    let gic = child(
        &mut tree.root,
        "interrupt-controller@f9010000",
        "arm,gic-400",
    );
    let frames = [
        (0xf901_0000, 0x1_0000),
        (0xf902_0000, 0x2_0000),
        (0xf904_0000, 0x2_0000),
        (0xf906_0000, 0x2_0000),
    ];
    let reg: Vec<u32> = frames
        .iter()
        .flat_map(|&(start, size)| [0, start, 0, size])
        .collect();
    set(gic, "reg", &*reg);
    assert_eq!(
        discover(&tree).unwrap().gic,
        Gic::V2 {
            distributor: range(0xf901_0000, 0xf902_0000),
            cpu_interface: range(0xf902_f000, 0xf903_1000),
            virtual_control: Some(range(0xf904_0000, 0xf906_0000)),
            virtual_cpu_interface: Some(range(0xf906_f000, 0xf907_1000)),
        }
    );
}

#[test]
fn registers_are_translated_through_every_bus() {
    let mut tree = virt();
    tree.root.remove_child("intc@8000000");
    tree.root.remove_child("pl011@9040000");
    let soc = child(&mut tree.root, "soc", "simple-bus");
    cells(soc, 1, 1);
    set(
        soc,
        "ranges",
        [
            0x7e00_0000u32,
            0,
            0xfe00_0000,
            0x180_0000,
            0x4000_0000,
            0,
            0xff80_0000,
            0x80_0000,
        ],
    );
    let gic = child(soc, "interrupt-controller@40041000", "arm,gic-400");
    set(
        gic,
        "reg",
        [
            0x4004_1000u32,
            0x1000,
            0x4004_2000,
            0x2000,
            0x4004_4000,
            0x2000,
            0x4004_6000,
            0x2000,
        ],
    );
    let uart = child(soc, "serial@7e201000", "arm,pl011");
    set(uart, "reg", [0x7e20_1000u32, 0x200]);
    set(
        child(&mut tree.root, "aliases", ""),
        "serial0",
        "/soc/serial@7e201000",
    );
    set(
        tree.find_node_mut("/chosen").unwrap(),
        "stdout-path",
        "serial0:115200n8",
    );
    let machine = discover(&tree).unwrap();
    assert_eq!(
        machine.gic,
        Gic::V2 {
            distributor: range(0xff84_1000, 0xff84_2000),
            cpu_interface: range(0xff84_2000, 0xff84_4000),
            virtual_control: Some(range(0xff84_4000, 0xff84_6000)),
            virtual_cpu_interface: Some(range(0xff84_6000, 0xff84_8000)),
        }
    );
    assert_eq!(
        machine.console,
        Some(Uart {
            registers: range(0xfe20_1000, 0xfe20_1200),
            interrupt: None,
        })
    );
}

#[test]
fn a_uart_behind_a_bus_without_ranges_is_no_console() {
    let mut tree = virt();
    tree.root.remove_child("pl011@9040000");
    tree.root.remove_child("pl011@9000000");
    let bus = child(&mut tree.root, "i2c", "");
    cells(bus, 2, 2);
    set(
        child(bus, "pl011@9000000", "arm,pl011"),
        "reg",
        [0u32, 0x900_0000, 0, 0x1000],
    );
    assert_eq!(discover(&tree).unwrap().console, None);
}

#[test]
fn a_uart_without_an_interrupt_that_cpus_share_is_looked_at() {
    for interrupts in [&[][..], &[1u32, 4, 4], &[0], &[0, 988, 4]] {
        let mut tree = virt();
        let uart = tree.find_node_mut("/pl011@9040000").unwrap();
        let bytes: Vec<u8> = interrupts
            .iter()
            .flat_map(|cell| cell.to_be_bytes())
            .collect();
        uart.remove_property("interrupts");
        set(uart, "interrupts", bytes);
        let console = discover(&tree).unwrap().console.unwrap();
        assert_eq!(console.interrupt, None, "{interrupts:?}");
    }
}

#[test]
fn a_disabled_uart_gives_way_to_one_that_works() {
    let mut tree = virt();
    set(
        tree.find_node_mut("/pl011@9040000").unwrap(),
        "status",
        "disabled",
    );
    assert_eq!(
        discover(&tree).unwrap().console,
        Some(Uart {
            registers: range(0x900_0000, 0x900_1000),
            interrupt: Some(Interrupt(33)),
        })
    );
}

#[test]
fn a_tree_without_memory_is_refused() {
    let mut tree = virt();
    set(
        tree.find_node_mut("/memory@40000000").unwrap(),
        "reg",
        [0u32, 0x4000_0000, 0, 0],
    );
    assert_eq!(discover(&tree).unwrap_err(), DiscoveryError::NoMemory);
    tree.root.remove_child("memory@40000000");
    assert_eq!(
        discover(&tree).unwrap_err().to_string(),
        "the device tree describes no memory"
    );
}

#[test]
fn memory_past_the_end_of_64_bits_is_refused() {
    let mut tree = virt();
    set(
        tree.find_node_mut("/memory@40000000").unwrap(),
        "reg",
        [u32::MAX, 0, u32::MAX, 0],
    );
    assert_eq!(
        discover(&tree).unwrap_err().to_string(),
        "device tree node memory@40000000: property reg is malformed"
    );
}

#[test]
fn a_timer_interrupt_of_an_impossible_number_is_none() {
    let mut tree = virt();
    let timer = tree.find_node_mut("/timer").unwrap();
    set(
        timer,
        "interrupts",
        [1u32, 13, 4, 1, u32::MAX, 4, 1, 11, 4, 1, 10, 4],
    );
    assert_eq!(discover(&tree).unwrap().timer, None);
}

/// The tree of [`virt`] with names that the specification forbids.
fn with_long_names() -> DeviceTree {
    let mut tree = virt();
    let name = "a-property-name-of-more-than-31-characters";
    tree.root
        .add_property(DeviceTreeProperty::new_unchecked(name, "value"));
    tree.root.add_child(DeviceTreeNode::new_unchecked(
        "a,node;with(odd)characters-in-its-name",
    ));
    tree
}

#[test]
fn names_that_break_the_specification_do_not_keep_a_machine_from_booting() {
    let dtb = with_long_names().to_dtb();
    assert!(fdt::Fdt::new(&dtb).is_err());
    let machine = Machine::discover(parse(&dtb).unwrap(), BOOT).unwrap();
    assert_eq!(machine.cpus.len(), 34);
}

#[test]
fn two_cpus_of_one_affinity_are_refused() {
    let mut tree = virt();
    set(tree.find_node_mut("/cpus/cpu@1").unwrap(), "reg", 3u32);
    assert!(matches!(
        discover(&tree).unwrap_err(),
        DiscoveryError::DuplicateCpu(_)
    ));
}

#[test]
fn a_tree_without_a_gic_is_refused() {
    let mut tree = virt();
    tree.root.remove_child("intc@8000000");
    assert_eq!(discover(&tree).unwrap_err(), DiscoveryError::NoGic);
}

#[test]
fn failed_cpus_are_left_out_and_spin_table_ones_are_not_psci_s() {
    let mut tree = virt();
    set(
        tree.find_node_mut("/cpus/cpu@1").unwrap(),
        "status",
        "fail-cache",
    );
    set(
        tree.find_node_mut("/cpus/cpu@2").unwrap(),
        "enable-method",
        "spin-table",
    );
    let machine = discover(&tree).unwrap();
    assert_eq!(machine.cpus.len(), 33);
    assert!(
        machine
            .cpus
            .iter()
            .all(|cpu| cpu.by_psci == (cpu.mpidr.affinity() != 2))
    );
}

#[test]
fn modules_are_found_as_guest_loader_writes_them() {
    let mut tree = virt();
    add_module(&mut tree, 0x5000_0000, 0x12345);
    let machine = discover(&tree).unwrap();
    assert_eq!(
        machine.modules,
        [GuestModule {
            name: "module@50000000",
            kind: ModuleKind::Kernel,
            range: range(0x5000_0000, 0x5001_2345),
            bootargs: Some("quiet"),
            domain: None,
        }]
    );
}

/// Adds a VM as Xen's dom0less has it, with a kernel and a ramdisk.
fn add_domain(tree: &mut DeviceTree, name: &str, kernel: u32, ramdisk: u32) {
    let chosen = tree.find_node_mut("/chosen").unwrap();
    let domain = child(chosen, name, "xen,domain");
    cells(domain, 2, 2);
    set(domain, "cpus", 2u32);
    set(domain, "memory", [0u32, 0x2_0000]);
    for (kind, start) in [("multiboot,kernel", kernel), ("multiboot,ramdisk", ramdisk)] {
        let module = child(domain, &format!("module@{start:x}"), "");
        set(module, "compatible", &[kind, "multiboot,module"][..]);
        set(module, "reg", [0u32, start, 0, 0x1000]);
        set(module, "bootargs", "quiet");
    }
}

#[test]
fn vms_are_found_as_dom0less_describes_them() {
    let mut tree = virt();
    add_domain(&mut tree, "domU1", 0x5000_0000, 0x5100_0000);
    add_module(&mut tree, 0x5200_0000, 0x1000);
    add_domain(&mut tree, "domU2", 0x5000_0000, 0x5300_0000);
    let chosen = tree.find_node_mut("/chosen").unwrap();
    child(chosen, "domU3", "xen,domain");
    let machine = discover(&tree).unwrap();
    let vms = machine.domains.iter();
    let vms: Vec<_> = vms.map(|vm| (vm.name, vm.cpus, vm.kib)).collect();
    let described = (Some(2), Some(0x2_0000));
    assert_eq!(
        vms,
        [
            ("domU1", described.0, described.1),
            ("domU2", described.0, described.1),
            ("domU3", None, None)
        ]
    );
    let modules = machine.modules.iter();
    let modules: Vec<_> = modules
        .map(|module| (module.range.start(), module.kind, module.domain))
        .collect();
    assert_eq!(
        modules,
        [
            (0x5000_0000, ModuleKind::Kernel, Some(0)),
            (0x5100_0000, ModuleKind::Ramdisk, Some(0)),
            (0x5200_0000, ModuleKind::Kernel, None),
            (0x5000_0000, ModuleKind::Kernel, Some(1)),
            (0x5300_0000, ModuleKind::Ramdisk, Some(1)),
        ]
    );
    // Both VMs have one kernel.
    let plan = MemoryPlan::new(&machine, 40, IMAGE, TREE).unwrap();
    assert!(!plan.free.overlaps(range(0x5000_0000, 0x5000_1000)));
}

#[test]
fn files_of_vms_that_overlap_are_refused() {
    let mut tree = virt();
    add_domain(&mut tree, "domU1", 0x5000_0000, 0x5000_0800);
    let machine = discover(&tree).unwrap();
    let error = MemoryPlan::new(&machine, 40, IMAGE, TREE).unwrap_err();
    let says = "overlaps guest module module@50000000";
    assert!(error.to_string().ends_with(says), "{error}");
}

#[test]
fn modules_follow_the_cell_sizes_of_chosen_if_it_has_them() {
    let mut tree = virt();
    let chosen = tree.find_node_mut("/chosen").unwrap();
    cells(chosen, 2, 1);
    let module = child(chosen, "module@50000000", "");
    set(
        module,
        "compatible",
        &["multiboot,module", "multiboot,ramdisk"][..],
    );
    set(module, "reg", [0u32, 0x5000_0000, 0x1000]);
    let module = &discover(&tree).unwrap().modules[0];
    assert_eq!(module.kind, ModuleKind::Ramdisk);
    assert_eq!(module.range, range(0x5000_0000, 0x5000_1000));
}

fn examine(blob: &[u8]) {
    let Ok(tree) = parse(blob) else { return };
    let _ = (find_console(tree), find_conduit(tree));
    match Machine::discover(tree, BOOT) {
        Err(error) => drop(error.to_string()),
        Ok(machine) => match MemoryPlan::new(&machine, 48, IMAGE, TREE) {
            Err(error) => drop(error.to_string()),
            Ok(plan) => assert!(!plan.free.overlaps(IMAGE)),
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_change_of_a_tree_s_bytes_makes_discovery_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        truncate in prop::bool::weighted(0.1),
    ) {
        let mut tree = virt();
        add_module(&mut tree, 0x5000_0000, 0x12345);
        add_domain(&mut tree, "domU1", 0x5100_0000, 0x5200_0000);
        tree.memory_reservations.push(MemoryReservation::new(0x6000_0800, 0x10));
        let mut blob = tree.to_dtb();
        for (at, byte) in changes {
            let at = at.index(blob.len());
            blob[at] = byte;
        }
        if truncate {
            blob.truncate(cut.index(blob.len()));
        }
        examine(&blob);
    }

    #[test]
    fn nor_of_one_that_only_its_structure_keeps_from_a_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![0u8..12, any::<u8>()]), 1..4),
    ) {
        let mut blob = with_long_names().to_dtb();
        for (at, byte) in changes {
            let at = at.index(blob.len());
            blob[at] = byte;
        }
        examine(&blob);
    }

    #[test]
    fn no_property_value_makes_discovery_panic(
        path in prop::sample::select(vec![
            "/", "/memory@40000000", "/cpus", "/cpus/cpu@1", "/psci", "/timer", "/intc@8000000", "/pl011@9040000", "/chosen",
            "/chosen/module@50000000", "/chosen/domU1", "/chosen/domU1/module@51000000",
        ]),
        name in prop::sample::select(vec![
            "reg", "#address-cells", "#size-cells", "status", "compatible", "interrupts", "#redistributor-regions",
            "stdout-path", "bootargs", "linux,initrd-start", "ranges", "method", "device_type", "cpus", "memory",
        ]),
        value in prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 0..48),
    ) {
        let mut tree = virt();
        add_module(&mut tree, 0x5000_0000, 0x12345);
        add_domain(&mut tree, "domU1", 0x5100_0000, 0x5200_0000);
        set(tree.find_node_mut(path).unwrap(), name, value.as_slice());
        examine(&tree.to_dtb());
    }
}
