//! Devices that can be assigned to guests.

use super::*;

#[test]
fn a_device_is_found_by_its_path_with_its_registers() {
    let mut tree = virt();
    let bus = child(&mut tree.root, "bus@a000000", "simple-bus");
    cells(bus, 1, 1);
    set(bus, "ranges", [0u32, 0, 0x0a00_0000, 0x10_0000]);
    let both = child(bus, "both@1000", "");
    set(both, "compatible", &["maker,both", "generic"][..]);
    set(both, "reg", [0x1000u32, 0x1000, 0x8000, 0x2000]);
    let beyond = child(bus, "beyond@100000", "");
    set(beyond, "reg", [0x10_0000u32, 0x1000]);
    child(bus, "none", "");
    let off = child(bus, "off@2000", "");
    set(off, "reg", [0x2000u32, 0x1000]);
    set(off, "status", "disabled");
    let blob = tree.to_dtb();
    let find = |path| device(parse(&blob).unwrap(), path).transpose().unwrap();
    assert_eq!(
        find("/bus@a000000/both@1000"),
        Some(Device {
            name: "both@1000",
            compatible: b"maker,both\0generic\0",
            registers: vec![range(0xa00_1000, 0xa00_2000), range(0xa00_8000, 0xa00_a000)],
            interrupts: Some(vec![]),
            clock_names: b"",
        })
    );
    for (path, registers) in [
        ("/pl011@9000000", vec![range(0x900_0000, 0x900_1000)]),
        ("/bus@a000000/beyond@100000", vec![]),
        ("/bus@a000000/none", vec![]),
        ("/", vec![]),
    ] {
        assert_eq!(find(path).unwrap().registers, registers, "{path}");
    }
    for path in ["", "pl011@9000000", "/pl011@9", "/bus@a000000/off@2000"] {
        assert_eq!(find(path), None, "{path}");
    }
}

#[test]
fn a_devices_interrupts_are_those_of_the_gic() {
    let mut tree = virt();
    let gic = tree.find_node_mut("/intc@8000000").unwrap();
    set(gic, "phandle", 0x8005u32);
    set(gic, "#interrupt-cells", 3u32);
    set(&mut tree.root, "interrupt-parent", 0x8005u32);
    let other = child(&mut tree.root, "gpio@9030000", "arm,pl061");
    set(other, "phandle", 7u32);
    set(other, "#interrupt-cells", 2u32);
    let cases: [(&str, &[u32], Option<u32>, _); 9] = [
        (
            "both",
            &[0, 2, 4, 0, 3, 1],
            None,
            Some(vec![(34, false), (35, true)]),
        ),
        ("none", &[], None, Some(vec![])),
        (
            "own",
            &[0, 987, 0x104],
            Some(0x8005),
            Some(vec![(1019, false)]),
        ),
        ("private", &[1, 2, 4], None, None),
        ("falling", &[0, 2, 2], None, None),
        ("beyond", &[0, 988, 4], None, None),
        ("half", &[0, 2, 4, 0], None, None),
        ("of-another", &[3, 0], Some(7), None),
        ("of-nobody", &[0, 2, 4], Some(99), None),
    ];
    for (name, words, parent, _) in &cases {
        let bus = child(&mut tree.root, &format!("bus-{name}"), "simple-bus");
        let node = child(bus, "device", "");
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        set(node, "interrupts", &bytes[..]);
        if let Some(parent) = parent {
            set(node, "interrupt-parent", *parent);
        }
    }
    let node = child(&mut tree.root, "extended", "");
    set(node, "interrupts-extended", [0x8005u32, 0, 2, 4]);
    let blob = tree.to_dtb();
    let find = |path: &str| {
        let found = device(parse(&blob).unwrap(), path).transpose().unwrap();
        let interrupts = found.unwrap().interrupts?.into_iter();
        let told = interrupts.map(|shared| (shared.interrupt.0, shared.is_edge));
        Some(told.collect::<Vec<_>>())
    };
    for (name, _, _, expected) in cases {
        assert_eq!(find(&format!("/bus-{name}/device")), expected, "{name}");
    }
    assert_eq!(find("/extended"), None);
}

/// Whoever has an ITS or an IOMMU tells it physical addresses; models that nobody here knows are found too, and those that
/// are switched off.
#[test]
fn a_guest_is_given_no_interrupt_controller_and_no_iommu() {
    let mut tree = virt();
    let none: &[u8] = &[];
    let gic = tree.find_node_mut("/intc@8000000").unwrap();
    cells(gic, 2, 2);
    set(gic, "ranges", none);
    let its = child(gic, "its@8080000", "arm,gic-v3-its");
    set(its, "msi-controller", none);
    set(its, "reg", [0u32, 0x0808_0000, 0, 0x2_0000]);
    let smmu = child(&mut tree.root, "smmuv3@9050000", "maker,unknown-iommu");
    set(smmu, "#iommu-cells", [1u32]);
    set(smmu, "status", "disabled");
    set(smmu, "reg", [0u32, 0x0905_0000, 0, 0x2_0000]);
    let frame = child(&mut tree.root, "v2m@8020000", "arm,gic-v2m-frame");
    set(frame, "msi-controller", none);
    set(frame, "reg", [0u32, 0x0802_0000, 0, 0x1000]);
    let second = child(&mut tree.root, "intc@a000000", "arm,gic-400");
    set(
        second,
        "reg",
        [0u32, 0x0a00_0000, 0, 0x1000, 0, 0x0a01_0000, 0, 0x2000],
    );
    let machine = discover(&tree).unwrap();
    for (start, end, by) in [
        (0x808_0000, 0x80a_0000, Some("MSI controller (ITS)")),
        (0x809_f000, 0x80a_0000, Some("MSI controller (ITS)")),
        (0x906_f000, 0x907_1000, Some("IOMMU")),
        (0x802_0000, 0x802_1000, Some("MSI controller (ITS)")),
        (0xa01_1000, 0xa01_2000, Some("GIC")),
        (0x907_0000, 0x907_1000, None),
        (0x802_1000, 0x802_2000, None),
    ] {
        assert_eq!(machine.user_of(range(start, end)), by, "{start:#x}");
    }
}

#[test]
fn a_guest_is_given_neither_memory_nor_what_the_hypervisor_uses() {
    let machine = discover(&virt()).unwrap();
    let user_of = |start, end| machine.user_of(range(start, end));
    assert_eq!(user_of(0x3fff_f000, 0x4000_1000), Some("memory"));
    assert_eq!(user_of(0x904_0000, 0x904_1000), Some("console UART"));
    assert_eq!(user_of(0x80f_0000, 0x810_0000), Some("GIC redistributors"));
    assert_eq!(user_of(0x800_f000, 0x801_0000), Some("GIC distributor"));
    assert_eq!(user_of(0x900_0000, 0x900_1000), None);
}
