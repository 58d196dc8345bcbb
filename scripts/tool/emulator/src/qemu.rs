//! The emulator's command line: one machine, the hypervisor's image as its kernel, guests as the modules that QEMU's
//! `guest-loader` puts into memory and announces in the device tree.

use std::ffi::OsString;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::elf::SHF_EXECINSTR;
use object::{Object, ObjectSection, SectionFlags};

use crate::error::ToolError;
use crate::simclock::Simulation;
use crate::size::Size;

/// The most CPUs that the hypervisor brings up.
pub const MOST_CPUS: u32 = 128;
/// Where QEMU's `-kernel` puts an image in RAM of `virt`.
pub const LOAD_ADDRESS: u64 = 0x4020_0000;
/// Where RAM begins on `virt`.
const RAM_BASE: u64 = 0x4000_0000;
/// Modules begin on a 2 MiB boundary, as guest images want it.
const MODULE_ALIGNMENT: u64 = 2 << 20;

/// The architecture of the interrupt controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gic {
    /// GICv2: at most 8 CPUs.
    V2,
    /// GICv3.
    V3,
}

impl Gic {
    /// The number that QEMU and records know it by.
    pub fn version(self) -> u64 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }

    /// How many CPUs it serves.
    pub fn most_cpus(self) -> u32 {
        match self {
            Self::V2 => 8,
            Self::V3 => MOST_CPUS,
        }
    }
}

/// What a file in memory is to the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// A guest's image.
    Kernel,
    /// The file system that the guest before it starts with.
    Ramdisk,
}

/// A file that is in memory when the hypervisor starts.
#[derive(Clone, Debug)]
pub struct Module {
    /// What it is.
    pub kind: ModuleKind,
    /// The file; a guest's image is flat.
    pub image: PathBuf,
    /// The physical address it is put at.
    pub address: u64,
    /// The command line that is announced with it.
    pub bootargs: Option<String>,
}

/// A machine to start.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The emulator or a wrapper around it.
    pub emulator: PathBuf,
    /// The CPU model, with QEMU's properties if any.
    pub cpu: String,
    /// The interrupt controller.
    pub gic: Gic,
    /// The number of CPUs.
    pub cpus: u32,
    /// The size of RAM, in whole MiB.
    pub memory: Size,
    /// Whether CPUs have EL2.
    pub el2: bool,
    /// The kernel to start; `None` if the extra arguments name it.
    pub kernel: Option<PathBuf>,
    /// The hypervisor's options.
    pub append: String,
    /// The guests.
    pub modules: Vec<Module>,
    /// The port on which it waits for a debugger before its first instruction, if it is to.
    pub debugger: Option<u16>,
    /// The simulation of time, with the virtual addresses of the instructions in the cache-line model; `None` for real time.
    pub simulation: Option<(Simulation, Range<u64>)>,
    /// Further arguments, behind all others.
    pub extra: Vec<OsString>,
}

impl Machine {
    /// The address for a guest image that is clear of the hypervisor and the device tree in RAM of this size. QEMU
    /// puts the kernel at the start and the tree in the middle of RAM or 128 MiB into it, whichever is lower.
    pub fn module_address(memory: Size) -> u64 {
        let tree = (memory.0 / 2).min(128 << 20);
        let offset = (tree + (32 << 20)).min(memory.0 / 4 * 3);
        RAM_BASE + offset / MODULE_ALIGNMENT * MODULE_ALIGNMENT
    }

    /// Where RAM of this size is.
    pub fn ram(memory: Size) -> Range<u64> {
        RAM_BASE..RAM_BASE + memory.0
    }

    /// The address for a file behind one that ends here.
    pub fn address_behind(end: u64) -> u64 {
        end.next_multiple_of(MODULE_ALIGNMENT)
    }

    /// The command that starts it, with the console on standard output.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.emulator);
        let el2 = if self.el2 { "on" } else { "off" };
        command.arg("-M").arg(format!(
            "virt,virtualization={el2},gic-version={}",
            self.gic.version()
        ));
        command.args(["-cpu", &self.cpu]);
        command.arg("-smp").arg(self.cpus.to_string());
        command.arg("-m").arg(format!("{}M", self.memory.0 >> 20));
        if let Some(kernel) = &self.kernel {
            command
                .arg("-kernel")
                .arg(kernel)
                .args(["-append", &self.append]);
        }
        for module in &self.modules {
            command.arg("-device").arg(module.device());
        }
        command.args([
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-monitor",
            "none",
            "-no-reboot",
        ]);
        if let Some(port) = self.debugger {
            command.arg("-gdb").arg(format!("tcp::{port}")).arg("-S");
        }
        if let Some((simulation, text)) = &self.simulation {
            simulation.apply(&mut command, text.clone());
        }
        command.args(&self.extra);
        command
    }
}

impl Module {
    fn device(&self) -> OsString {
        let kind = match self.kind {
            ModuleKind::Kernel => "kernel",
            ModuleKind::Ramdisk => "initrd",
        };
        let mut device = OsString::from(format!("guest-loader,addr={:#x},{kind}=", self.address));
        device.push(escape_commas(&self.image.to_string_lossy()));
        if let Some(bootargs) = &self.bootargs {
            device.push(format!(",bootargs={}", escape_commas(bootargs)));
        }
        device
    }
}

/// Files in a machine's RAM, one behind the other.
#[derive(Debug)]
pub struct PlacedModules {
    memory: Size,
    end: u64,
    modules: Vec<Module>,
}

impl PlacedModules {
    /// None yet, in a machine with so much RAM.
    pub fn new(memory: Size) -> Self {
        Self {
            memory,
            end: Machine::module_address(memory),
            modules: Vec::new(),
        }
    }

    /// Gives the address of a file, which it gets if it has none. A file that is placed again keeps its first `bootargs`.
    ///
    /// # Errors
    ///
    /// The file can't be looked at.
    pub fn place(
        &mut self,
        kind: ModuleKind,
        image: &Path,
        bootargs: Option<&str>,
    ) -> Result<u64, ToolError> {
        let is_there = |module: &&Module| module.kind == kind && module.image == image;
        if let Some(module) = self.modules.iter().find(is_there) {
            return Ok(module.address);
        }
        let found = fs::metadata(image).map_err(|error| ToolError::unusable(image, &error))?;
        let address = Machine::address_behind(self.end);
        self.end = address + found.len();
        self.modules.push(Module {
            kind,
            image: image.into(),
            address,
            bootargs: bootargs.map(String::from),
        });
        Ok(address)
    }

    /// The machine's RAM.
    pub fn memory(&self) -> Size {
        self.memory
    }

    /// The modules; `None` if the RAM has no room for them.
    pub fn fitting(self) -> Option<Vec<Module>> {
        let has_room = Machine::ram(self.memory).contains(&self.end);
        has_room.then_some(self.modules)
    }
}

/// Where the text of an image lies whose ELF file is `symbols`, when QEMU's `-kernel` has loaded it.
///
/// # Errors
///
/// [`ToolError::Io`] if the file can't be read or has no instructions.
pub fn hypervisor_text(symbols: &Path) -> Result<Range<u64>, ToolError> {
    let failed =
        |error: &dyn std::fmt::Display| ToolError::Io(format!("{}: {error}", symbols.display()));
    let contents = fs::read(symbols).map_err(|error| failed(&error))?;
    let file = object::File::parse(contents.as_slice()).map_err(|error| failed(&error))?;
    let is_text = |flags: SectionFlags| matches!(flags, SectionFlags::Elf { sh_flags, .. } if sh_flags.contains(SHF_EXECINSTR));
    let sections = file
        .sections()
        .filter(|section| is_text(section.flags()))
        .map(|section| section.address()..section.address() + section.size());
    let whole = sections.reduce(|one, other| one.start.min(other.start)..one.end.max(other.end));
    let text = whole.ok_or_else(|| failed(&"it has no instructions"))?;
    Ok(LOAD_ADDRESS + text.start..LOAD_ADDRESS + text.end)
}

/// QEMU separates properties by commas; one that belongs to a value is doubled.
fn escape_commas(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::mib;

    fn machine() -> Machine {
        Machine {
            emulator: "qemu".into(),
            cpu: "max".into(),
            gic: Gic::V3,
            cpus: 5,
            memory: mib(512),
            el2: true,
            kernel: Some("parvisor.img".into()),
            append: "mode=mutex,parallel vcpus=4".into(),
            modules: Vec::new(),
            debugger: None,
            simulation: None,
            extra: vec!["-d".into(), "int".into()],
        }
    }

    fn arguments(machine: &Machine) -> Vec<String> {
        machine
            .command()
            .get_args()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn the_command_names_machine_kernel_and_options() {
        let arguments = arguments(&machine());
        let value = |name: &str| {
            let index = arguments
                .iter()
                .position(|argument| argument == name)
                .expect(name);
            arguments[index + 1].as_str()
        };
        assert_eq!(value("-M"), "virt,virtualization=on,gic-version=3");
        assert_eq!(value("-smp"), "5");
        assert_eq!(value("-m"), "512M");
        assert_eq!(value("-append"), "mode=mutex,parallel vcpus=4");
        assert!(arguments.ends_with(&["-d".into(), "int".into()]));
        assert!(!arguments.contains(&"-S".into()));
    }

    #[test]
    fn a_machine_waits_for_a_debugger_on_the_port_that_was_named() {
        let machine = Machine {
            debugger: Some(4321),
            ..machine()
        };
        let arguments = arguments(&machine);
        let gdb = arguments.iter().position(|argument| argument == "-gdb");
        let said = gdb.map(|index| &arguments[index + 1..index + 3]);
        assert_eq!(said, Some(["tcp::4321".into(), "-S".into()].as_slice()));
    }

    #[test]
    fn commas_in_paths_and_bootargs_reach_the_guest_loader() {
        let module = Module {
            kind: ModuleKind::Kernel,
            image: "a,b.img".into(),
            address: 0x4a00_0000,
            bootargs: Some("x=1,2".into()),
        };
        assert_eq!(
            module.device(),
            "guest-loader,addr=0x4a000000,kernel=a,,b.img,bootargs=x=1,,2"
        );
        let ramdisk = Module {
            kind: ModuleKind::Ramdisk,
            bootargs: None,
            ..module
        };
        assert_eq!(
            ramdisk.device(),
            "guest-loader,addr=0x4a000000,initrd=a,,b.img"
        );
    }

    #[test]
    fn a_file_has_one_place_and_files_lie_apart_within_ram() {
        let folder = tempfile::TempDir::new().expect("room for a folder");
        let file = |name: &str, bytes: usize| {
            let path = folder.path().join(name);
            fs::write(&path, vec![0; bytes]).expect("the folder is ours");
            path
        };
        let (one, other) = (file("one", 5 << 20), file("other", 1));
        let mut placed = PlacedModules::new(mib(256));
        let mut place = |kind, path: &Path| placed.place(kind, path, None).expect("it is there");
        let first = place(ModuleKind::Kernel, &one);
        assert_eq!(first, Machine::module_address(mib(256)));
        assert_eq!(place(ModuleKind::Kernel, &one), first);
        let second = place(ModuleKind::Ramdisk, &other);
        assert!(second >= first + (5 << 20) && second % MODULE_ALIGNMENT == 0);
        let nowhere = placed.place(ModuleKind::Kernel, &folder.path().join("x"), None);
        assert!(nowhere.is_err());
        assert_eq!(placed.fitting().map(|modules| modules.len()), Some(2));
        let mut narrow = PlacedModules::new(mib(16));
        (narrow.place(ModuleKind::Kernel, &one, None)).expect("it is there");
        assert!(narrow.fitting().is_none());
    }

    #[test]
    fn a_module_is_clear_of_image_and_tree() {
        for count in [128, 192, 256, 512, 1024, 65536] {
            let memory = mib(count);
            let address = Machine::module_address(memory);
            let tree = RAM_BASE + (memory.0 / 2).min(128 << 20);
            assert_eq!(address % MODULE_ALIGNMENT, 0);
            assert!(address >= tree + (2 << 20), "{count} MiB: {address:#x}");
            assert!(
                address + (16 << 20) <= RAM_BASE + memory.0,
                "{count} MiB: {address:#x}"
            );
        }
    }
}
