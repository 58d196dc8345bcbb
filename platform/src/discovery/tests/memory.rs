//! The memory plan of a discovered machine.

use super::*;

#[test]
fn what_is_in_use_is_never_free() {
    let mut tree = virt();
    add_module(&mut tree, 0x5000_0000, 0x12345);
    tree.memory_reservations
        .push(MemoryReservation::new(0x6000_0800, 0x10));
    let parent = child(&mut tree.root, "reserved-memory", "");
    cells(parent, 2, 2);
    set(parent, "ranges", &[][..] as &[u8]);
    let secret = child(parent, "secure@70000000", "");
    set(secret, "reg", [0u32, 0x7000_0000, 0, 0x10_0000]);
    set(secret, "no-map", &[][..] as &[u8]);
    let plan = plan(&tree).unwrap();
    let secure = range(0x7000_0000, 0x7010_0000);
    for used in [
        IMAGE,
        TREE,
        range(0x5000_0000, 0x5001_3000),
        range(0x6000_0000, 0x6000_1000),
        secure,
        plan.heap,
    ] {
        assert!(!plan.free.overlaps(used), "{used}");
    }
    assert!(!plan.mapped.overlaps(secure));
    assert!(plan.mapped.contains(range(0x6000_0000, 0x6000_1000)));
    assert_eq!(plan.heap.size(), 32 << 20);
    assert!(
        plan.stacks
            .is_some_and(|stacks| stacks.size() == 33 * crate::discovery::plan::stack::TOTAL)
    );
    let in_use = 0x20_0000
        + 0x10_0000
        + 0x1_3000
        + 0x1000
        + 0x10_0000
        + plan.heap.size()
        + plan.stacks.unwrap().size();
    assert_eq!(plan.free.bytes(), 0x4000_0000 - in_use);
}

#[test]
fn page_0_is_never_mapped() {
    let mut tree = virt();
    set(
        tree.find_node_mut("/memory@40000000").unwrap(),
        "reg",
        [0u32, 0, 0, 0x8000_0000],
    );
    for device in ["pl011@9000000", "pl011@9040000"] {
        tree.root.remove_child(device);
    }
    set(
        tree.find_node_mut("/intc@8000000").unwrap(),
        "reg",
        [
            0u32,
            0xf000_0000,
            0,
            0x1_0000,
            0,
            0xf10a_0000,
            0,
            0xf6_0000,
            0x40,
            0,
            0,
            0x400_0000,
        ],
    );
    let plan = plan(&tree).unwrap();
    assert_eq!(plan.mapped.ranges(), [range(0x1000, 0x8000_0000)]);
}

#[test]
fn an_image_outside_memory_is_refused() {
    let machine = discover(&virt()).unwrap();
    let elsewhere = range(0x8000_0000, 0x8010_0000);
    assert_eq!(
        MemoryPlan::new(&machine, 40, elsewhere, TREE).unwrap_err(),
        PlanError::ImageOutsideMemory(elsewhere)
    );
}

#[test]
fn modules_in_the_wrong_place_are_refused_by_name() {
    let misplaced = |start, size| {
        let mut tree = virt();
        add_module(&mut tree, start, size);
        match plan(&tree).unwrap_err() {
            PlanError::Module { module, fault, .. } if module == format!("module@{start:x}") => {
                fault
            }
            other => panic!("{other}"),
        }
    };
    assert_eq!(
        misplaced(0x4030_0000, 0x1000),
        ModuleFault::OverlapsHypervisor(IMAGE)
    );
    assert_eq!(
        misplaced(0x47ff_f000, 0x2000),
        ModuleFault::OverlapsTree(TREE)
    );
    assert_eq!(misplaced(0x7fff_f000, 0x2000), ModuleFault::OutsideMemory);
    let mut tree = virt();
    add_module(&mut tree, 0x5000_0000, 0x2000);
    add_module(&mut tree, 0x5000_1000, 0x1000);
    assert!(
        plan(&tree)
            .unwrap_err()
            .to_string()
            .ends_with("overlaps guest module module@50000000")
    );
}

#[test]
fn devices_where_memory_is_are_refused() {
    let mut tree = virt();
    set(
        tree.find_node_mut("/pl011@9040000").unwrap(),
        "reg",
        [0u32, 0x4500_0000, 0, 0x1000],
    );
    assert!(matches!(
        plan(&tree).unwrap_err(),
        PlanError::DeviceInMemory {
            device: "console UART",
            ..
        }
    ));
}

#[test]
fn memory_too_small_for_the_heap_is_refused() {
    let mut tree = virt();
    set(
        tree.find_node_mut("/memory@40000000").unwrap(),
        "reg",
        [0u32, 0x4000_0000, 0, 0x60_0000],
    );
    assert!(matches!(
        plan(&tree).unwrap_err(),
        PlanError::NoRoom { what: "heap", .. }
    ));
}
