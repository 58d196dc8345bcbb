//! A VM under KVM like those of QEMU's `virt`: a GICv3 with an ITS, RAM, a UART that takes output.

use core::ffi::CStr;

use crate::linux::{File, exit, exit_thread, fail, memory, pin, spawn, write};

/// `virt`'s map.
const DISTRIBUTOR: u64 = 0x0800_0000;
const ITS: u64 = 0x0808_0000;
const REDISTRIBUTORS: u64 = 0x080a_0000;
const UART: u64 = 0x0900_0000;
const RAM: u64 = 0x4000_0000;
/// Where QEMU puts a kernel that may lie anywhere.
const KERNEL: u64 = 2 << 20;
/// Where we put the device tree, from the end of RAM.
const TREE_FROM_END: u64 = 4 << 20;
/// What a PL011 says that it is, from this register on, and its flags: what is to be sent was sent, and nothing was received.
const UART_ID: u64 = UART + 0xfe0;
const UART_IDS: [u8; 8] = [0x11, 0x10, 0x34, 0, 0x0d, 0xf0, 0x05, 0xb1];
const UART_FLAGS: u64 = UART + 0x18;
const UART_IDLE: u8 = 0x90;
const INTERRUPTS: u32 = 64;

const CREATE_VM: u64 = 0xae01;
const RUN_BYTES: u64 = 0xae04;
const CREATE_VCPU: u64 = 0xae41;
const SET_MEMORY: u64 = 0x4020_ae46;
const RUN: u64 = 0xae80;
const SET_REGISTER: u64 = 0x4010_aeac;
const VCPU_INIT: u64 = 0x4020_aeae;
const PREFERRED_TARGET: u64 = 0x8020_aeaf;
const CREATE_DEVICE: u64 = 0xc00c_aee0;
const SET_ATTRIBUTE: u64 = 0x4018_aee1;

const GIC_V3: u32 = 7;
const GIC_V3_ITS: u32 = 8;
const GROUP_ADDRESS: u32 = 0;
const GROUP_INTERRUPTS: u32 = 3;
const GROUP_CONTROL: u32 = 4;
const ADDRESS_DISTRIBUTOR: u64 = 2;
const ADDRESS_REDISTRIBUTORS: u64 = 3;
const ADDRESS_ITS: u64 = 4;
const INIT: u64 = 0;

const POWER_OFF: u32 = 1;
const PSCI: u32 = 1 << 2;
const X0: u64 = 0x6030_0000_0010_0000;
const PC: u64 = 0x6030_0000_0010_0040;

const EXIT_MMIO: u32 = 6;
const EXIT_SYSTEM_EVENT: u32 = 24;
const INTERRUPTED: i64 = 4;

/// The most vCPUs.
const MOST: usize = 64;

#[repr(C)]
struct Memory {
    slot: u32,
    flags: u32,
    guest: u64,
    bytes: u64,
    host: u64,
}

#[repr(C)]
struct Device {
    kind: u32,
    file: u32,
    flags: u32,
}

#[repr(C)]
struct Attribute {
    flags: u32,
    group: u32,
    attribute: u64,
    address: u64,
}

#[repr(C)]
struct Init {
    target: u32,
    features: [u32; 7],
}

#[repr(C)]
struct Register {
    id: u64,
    address: u64,
}

/// What KVM and its user share of a vCPU, as far as it is read here.
#[repr(C)]
struct Shared {
    request: [u8; 8],
    reason: u32,
    ready: [u8; 4],
    flags: [u64; 2],
    address: u64,
    data: [u8; 8],
    length: u32,
    writes: u8,
}

/// A vCPU, as its thread is told of it.
struct Vcpu {
    file: u64,
    shared_bytes: u64,
    cpu: usize,
}

/// What a VM begins with.
pub struct Machine<'m> {
    pub image: &'m CStr,
    pub tree: &'m CStr,
    /// A file that lies in RAM, and its address.
    pub initrd: Option<(&'m CStr, u64)>,
    pub ram_bytes: u64,
}

impl Machine<'_> {
    /// Where its tree is in its RAM.
    const fn tree_offset(&self) -> u64 {
        self.ram_bytes.saturating_sub(TREE_FROM_END)
    }
}

/// Runs a guest with so many vCPUs until it turns itself off: vCPU 0 on the CPU `first`, the others on those behind it. Calls
/// `before_end` then.
pub fn run(machine: &Machine<'_>, vcpus: usize, first: usize, before_end: fn()) -> ! {
    let Some(kvm) = File::open(c"/dev/kvm", true) else {
        fail(format_args!("this kernel has no KVM on this CPU"));
    };
    // SAFETY: the arguments are those that the requests take, as in the rest of this file.
    let (vm, shared_bytes) = unsafe {
        let vm = File::of(kvm.ioctl("KVM_CREATE_VM", CREATE_VM, 0));
        (vm, kvm.ioctl("KVM_GET_VCPU_MMAP_SIZE", RUN_BYTES, 0))
    };
    load(vm, machine);
    let mut list = [const { None }; MOST];
    for (index, vcpu) in list.iter_mut().enumerate().take(vcpus) {
        *vcpu = Some(Vcpu {
            file: create_vcpu(vm, index, RAM + machine.tree_offset()).number(),
            shared_bytes,
            cpu: first + index,
        });
    }
    create_gic(vm);
    for vcpu in list.iter().skip(1).flatten() {
        spawn(thread, &raw const *vcpu as u64);
    }
    let Some(Some(vcpu)) = list.first() else {
        fail(format_args!("no vCPUs"));
    };
    follow(vcpu);
    before_end();
    exit(0)
}

fn load(vm: File, machine: &Machine<'_>) {
    let (ram, tree, end) = (
        memory(machine.ram_bytes),
        machine.tree_offset(),
        machine.ram_bytes,
    );
    let files = [
        Some((machine.image, KERNEL, tree)),
        Some((machine.tree, tree, end)),
        machine
            .initrd
            .map(|(file, address)| (file, address.saturating_sub(RAM), tree)),
    ];
    for (path, at, end) in files.into_iter().flatten() {
        if at > end {
            fail(format_args!("{path:?} has no room"));
        }
        let Some(file) = File::open(path, false) else {
            fail(format_args!("{path:?} isn't there"));
        };
        // SAFETY: a part of the RAM, which nobody else uses yet.
        let room =
            unsafe { core::slice::from_raw_parts_mut(ram.add(at as usize), (end - at) as usize) };
        file.read(room);
    }
    let region = Memory {
        slot: 0,
        flags: 0,
        guest: RAM,
        bytes: machine.ram_bytes,
        host: ram as u64,
    };
    let argument = &raw const region as u64;
    // SAFETY: as in `run`.
    unsafe { vm.ioctl("KVM_SET_USER_MEMORY_REGION", SET_MEMORY, argument) };
}

fn create_vcpu(vm: File, index: usize, tree: u64) -> File {
    let mut init = Init {
        target: 0,
        features: [0; 7],
    };
    let argument = &raw mut init;
    // SAFETY: as in `run`.
    unsafe {
        vm.ioctl(
            "KVM_ARM_PREFERRED_TARGET",
            PREFERRED_TARGET,
            argument as u64,
        );
        (*argument).features[0] |= PSCI | if index == 0 { 0 } else { POWER_OFF };
        let vcpu = File::of(vm.ioctl("KVM_CREATE_VCPU", CREATE_VCPU, index as u64));
        vcpu.ioctl("KVM_ARM_VCPU_INIT", VCPU_INIT, argument as u64);
        if index == 0 {
            set_register(vcpu, PC, RAM + KERNEL);
            set_register(vcpu, X0, tree);
        }
        vcpu
    }
}

fn set_register(vcpu: File, id: u64, value: u64) {
    let register = Register {
        id,
        address: &raw const value as u64,
    };
    // SAFETY: as in `run`.
    unsafe { vcpu.ioctl("KVM_SET_ONE_REG", SET_REGISTER, &raw const register as u64) };
}

fn create_gic(vm: File) {
    let (interrupts, distributor, redistributors, its) =
        (INTERRUPTS, DISTRIBUTOR, REDISTRIBUTORS, ITS);
    let gic = create_device(vm, GIC_V3);
    let count = &raw const interrupts as u64;
    set_attribute(gic, GROUP_INTERRUPTS, 0, count);
    let address = &raw const distributor as u64;
    set_attribute(gic, GROUP_ADDRESS, ADDRESS_DISTRIBUTOR, address);
    let address = &raw const redistributors as u64;
    set_attribute(gic, GROUP_ADDRESS, ADDRESS_REDISTRIBUTORS, address);
    set_attribute(gic, GROUP_CONTROL, INIT, 0);
    let translator = create_device(vm, GIC_V3_ITS);
    let address = &raw const its as u64;
    set_attribute(translator, GROUP_ADDRESS, ADDRESS_ITS, address);
    set_attribute(translator, GROUP_CONTROL, INIT, 0);
}

fn create_device(vm: File, kind: u32) -> File {
    let mut device = Device {
        kind,
        file: 0,
        flags: 0,
    };
    // SAFETY: as in `run`.
    unsafe { vm.ioctl("KVM_CREATE_DEVICE", CREATE_DEVICE, &raw mut device as u64) };
    File::of(device.file.into())
}

fn set_attribute(device: File, group: u32, attribute: u64, address: u64) {
    let attribute = Attribute {
        flags: 0,
        group,
        attribute,
        address,
    };
    let argument = &raw const attribute as u64;
    // SAFETY: as in `run`; the attribute's value lives as long as the caller.
    unsafe { device.ioctl("KVM_SET_DEVICE_ATTR", SET_ATTRIBUTE, argument) };
}

extern "C" fn thread(vcpu: u64) -> ! {
    // SAFETY: it lies on the first thread's stack, which stays.
    follow(unsafe { &*(vcpu as *const Vcpu) });
    exit_thread()
}

/// Runs a vCPU until its VM turns itself off.
fn follow(vcpu: &Vcpu) {
    pin(vcpu.cpu);
    let file = File::of(vcpu.file);
    let shared = file.map(vcpu.shared_bytes).cast::<Shared>();
    loop {
        // SAFETY: as in `run`.
        match unsafe { file.try_ioctl(RUN, 0) } {
            Ok(_) => {}
            Err(INTERRUPTED) => continue,
            Err(error) => fail(format_args!("KVM_RUN: error {error}")),
        }
        // SAFETY: KVM has written it, and does so again at the next run only.
        let exit = unsafe { shared.read() };
        match exit.reason {
            EXIT_MMIO if exit.writes == 0 => {
                let mut data = [0; 8];
                data[0] = read_device(exit.address);
                // SAFETY: as above.
                unsafe { (&raw mut (*shared).data).write(data) };
            }
            EXIT_MMIO if exit.address == UART => write(&exit.data[..1]),
            EXIT_MMIO => {}
            EXIT_SYSTEM_EVENT => return,
            other => fail(format_args!("exit {other}")),
        }
    }
}

/// What is read at an address that has no memory: a UART, and zeros elsewhere.
fn read_device(address: u64) -> u8 {
    let id = address.wrapping_sub(UART_ID);
    match address {
        UART_FLAGS => UART_IDLE,
        _ if id.is_multiple_of(4) => UART_IDS.get(id as usize / 4).copied().unwrap_or(0),
        _ => 0,
    }
}
