//! Several VMs with Linux: each is an option of its own, `--vm name=a,vcpus=2,bytes=512M,kernel=FILE`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use records::options::{DEVICE, PATHS, first_part, is_name};
use records::words::{OnCrash, OnReset, Word};

use super::kernel_files::{INITRD_ROOM, Initrd, KERNEL_ROOM, check_kernel_file, check_length};
use super::usage;
use emulator::error::ToolError;
use emulator::size::{self, Size, mib};

/// What an error about a VM's parts ends with.
const PARTS: &str = "expected name=, vcpus=, bytes=, kernel=, initrd=, device=, on_reset=, on_crash=, at the end cmdline=";
/// A VM's memory, unless the user chooses it.
const USUAL_BYTES: Size = mib(512);
/// A VM's vCPUs, unless the user chooses them.
const USUAL_VCPUS: u32 = 1;
/// The command line of a kernel, unless the user chooses it.
const USUAL_COMMAND_LINE: &str = "console=ttyAMA0";

/// One of several VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Its name, if the user has chosen it.
    pub name: Option<String>,
    /// Its vCPUs.
    pub vcpus: u32,
    /// Its memory.
    pub bytes: Size,
    /// Its kernel; else it has Debian's, with a shell.
    pub kernel: Option<PathBuf>,
    /// The file system that its kernel starts with.
    pub initrd: Option<PathBuf>,
    /// The paths of the machine's devices that it is given, in the machine's device tree, with commas between.
    pub devices: Option<String>,
    /// What becomes of it when it asks for a reset.
    pub on_reset: Option<OnReset>,
    /// What becomes of it when it crashes.
    pub on_crash: Option<OnCrash>,
    /// Its kernel's command line, or what is added to it.
    pub cmdline: Option<String>,
}

impl Vm {
    /// Reads one.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut vm = Self {
            name: None,
            vcpus: USUAL_VCPUS,
            bytes: USUAL_BYTES,
            kernel: None,
            initrd: None,
            devices: None,
            on_reset: None,
            on_crash: None,
            cmdline: None,
        };
        let mut given = BTreeSet::new();
        let mut rest = Some(text);
        while let Some(text) = rest {
            let (part, behind) = first_part(text);
            rest = behind;
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| format!("'{part}': {PARTS}"))?;
            if !given.insert(key) {
                return Err(format!("{key}= is there twice"));
            }
            vm.set(key, value)
                .map_err(|why| format!("{key}={value}: {why}"))?;
        }
        if vm.initrd.is_some() && vm.kernel.is_none() {
            return Err("initrd= needs kernel=".into());
        }
        Ok(vm)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "name" if is_name(value) => self.name = Some(value.into()),
            "name" => {
                return Err(
                    "a name has up to 31 letters, digits, '-', '_', '.' or '@', a letter first"
                        .into(),
                );
            }
            "vcpus" => {
                let vcpus = value.parse().ok().filter(|vcpus| *vcpus >= 1);
                self.vcpus = vcpus.ok_or("expected a number from 1 on")?;
            }
            "bytes" => {
                self.bytes = size::parse(value).map_err(|error| error.to_string())?;
                if self.bytes.0 == 0 || !self.bytes.0.is_multiple_of(4096) {
                    return Err("expected a multiple of 4K".into());
                }
            }
            "kernel" => self.kernel = Some(value.into()),
            "initrd" => self.initrd = Some(value.into()),
            DEVICE => {
                // What the machine has, the hypervisor knows. None of it is white space, which would end its word.
                let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"'\"".contains(&byte);
                if !value.starts_with('/') || !value.bytes().all(is_plain) {
                    return Err(format!("expected {PATHS}"));
                }
                self.devices = Some(value.into());
            }
            "on_reset" => self.on_reset = Some(word(value)?),
            "on_crash" => self.on_crash = Some(word(value)?),
            "cmdline" => self.cmdline = Some(value.into()),
            _ => return Err(PARTS.into()),
        }
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// The command line of its kernel.
    pub fn command_line(&self) -> String {
        match (&self.kernel, &self.cmdline) {
            (Some(_), Some(own)) => own.clone(),
            (None, more) => {
                // It resets after a panic, and so starts again.
                let restarts = self.on_crash == Some(OnCrash::Restart);
                let panic = if restarts { " panic=-1" } else { "" };
                let more = more.iter().map(|more| format!(" {more}"));
                format!("{USUAL_COMMAND_LINE}{panic}{}", more.collect::<String>())
            }
            (Some(_), None) => USUAL_COMMAND_LINE.into(),
        }
    }

    /// The hypervisor's word for it, with its files at these addresses.
    ///
    /// # Errors
    ///
    /// [`ToolError::Usage`] if the command line can't be in it.
    pub fn word(&self, kernel: u64, initrd: Option<u64>) -> Result<String, ToolError> {
        let mut word = format!(
            "vm=name={},vcpus={},bytes={}K,kernel={kernel:#x}",
            self.name(),
            self.vcpus,
            self.bytes.0 >> 10
        );
        if let Some(initrd) = initrd {
            word.push_str(&format!(",initrd={initrd:#x}"));
        }
        if let Some(devices) = &self.devices {
            word.push_str(&format!(",{DEVICE}={devices}"));
        }
        if let Some(on_reset) = self.on_reset {
            word.push_str(&format!(",on_reset={on_reset}"));
        }
        if let Some(on_crash) = self.on_crash {
            word.push_str(&format!(",on_crash={on_crash}"));
        }
        let line = self.command_line();
        let quote = ['\'', '"'].into_iter().find(|quote| !line.contains(*quote));
        match quote {
            Some(quote) => Ok(format!("{word},cmdline={quote}{line}{quote}")),
            None => usage(format!(
                "--vm {}: cmdline= has both kinds of quotes",
                self.name()
            )),
        }
    }
}

fn word<T: Word>(text: &str) -> Result<T, String> {
    let mut all = T::ALL.iter().copied();
    let word = all.find(|value| value.word() == text);
    word.ok_or_else(|| format!("expected {}", T::EXPECTED))
}

/// Names those that have none, and checks that no name is there twice.
///
/// # Errors
///
/// [`ToolError::Usage`] naming the name.
pub fn named(vms: &[Vm]) -> Result<Vec<Vm>, ToolError> {
    let mut names = BTreeSet::new();
    let named = vms.iter().enumerate().map(|(index, vm)| Vm {
        name: Some(vm.name.clone().unwrap_or(format!("vm{}", index + 1))),
        ..vm.clone()
    });
    let named: Vec<Vm> = named.collect();
    match named.iter().find(|vm| !names.insert(vm.name())) {
        Some(twice) => usage(format!("--vm: the name {} is there twice", twice.name())),
        None => Ok(named),
    }
}

/// Checks the files of these VMs. Gives how much room they need in the machine's RAM before a VM starts; a file counts once.
///
/// # Errors
///
/// [`ToolError::Usage`] naming the file.
pub fn check_files(vms: &[Vm]) -> Result<u64, ToolError> {
    let mut files: BTreeSet<&Path> = BTreeSet::new();
    let (mut room, mut has_debian) = (0, false);
    for vm in vms {
        check_length("--vm", &vm.command_line())?;
        let Some(kernel) = &vm.kernel else {
            has_debian = true;
            continue;
        };
        let option = |part: &str| format!("--vm {}: {part}=", vm.name());
        let initrd = vm.initrd.as_deref();
        let initrd = initrd.map(|path| Initrd::check(&option("initrd"), path));
        check_kernel_file(
            &option("kernel"),
            kernel,
            vm.bytes,
            initrd.transpose()?.as_ref(),
            "bytes=",
        )?;
        for path in [Some(kernel), vm.initrd.as_ref()].into_iter().flatten() {
            if files.insert(path) {
                let found =
                    fs::metadata(path).map_err(|error| ToolError::unusable(path, &error))?;
                room += found.len();
            }
        }
    }
    if has_debian {
        room += KERNEL_ROOM + INITRD_ROOM;
    }
    Ok(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_what_its_parts_say() {
        let usual = Vm::parse("name=a").expect("sound");
        assert_eq!((usual.name(), usual.vcpus), ("a", 1));
        assert_eq!((usual.bytes, usual.kernel.as_ref()), (mib(512), None));
        let vm = Vm::parse(
            "name=b,vcpus=2,bytes=128M,kernel=/k,initrd=/i,device=/r@1,/s/t,u,on_reset=stop,on_crash=restart,cmdline=a=1,2 \"b\"",
        );
        let vm = vm.expect("sound");
        let word = vm.word(0x5000_0000, Some(0x5800_0000)).expect("sound");
        assert_eq!(
            word,
            "vm=name=b,vcpus=2,bytes=131072K,kernel=0x50000000,initrd=0x58000000,device=/r@1,/s/t,u,on_reset=stop,on_crash=restart,cmdline='a=1,2 \"b\"'"
        );
        let quotes = Vm::parse("name=c,cmdline=a'b").expect("sound");
        let word = quotes.word(0x1000, None).expect("sound");
        assert_eq!(
            word,
            "vm=name=c,vcpus=1,bytes=524288K,kernel=0x1000,cmdline=\"console=ttyAMA0 a'b\""
        );
        let both = Vm::parse("name=c,cmdline='\"").expect("sound");
        assert!(both.word(0x1000, None).is_err());
    }

    #[test]
    fn what_is_wrong_with_a_vm_is_named() {
        for (text, says) in [
            ("nam=a", "nam=a: expected name="),
            ("a", "'a': expected name="),
            ("name=1", "name=1: a name has up to 31"),
            ("name=a,name=b", "name= is there twice"),
            ("vcpus=0", "vcpus=0: expected a number"),
            ("bytes=1", "bytes=1: expected a multiple of 4K"),
            ("on_crash=x", "on_crash=x: expected stop or restart"),
            ("initrd=/i", "initrd= needs kernel="),
            (
                "device=rtc",
                "device=rtc: expected paths of the device tree",
            ),
            ("device=/a b", "device=/a b: expected paths"),
            ("device=/a,/b,device=/c", "device= is there twice"),
        ] {
            let said = Vm::parse(text).expect_err(text);
            assert!(said.starts_with(says), "{text}: {said}");
        }
    }

    #[test]
    fn vms_without_names_get_some_and_none_is_there_twice() {
        let vms = |texts: &[&str]| -> Vec<Vm> {
            let parsed = texts.iter().map(|text| Vm::parse(text).expect("sound"));
            parsed.collect()
        };
        let all = named(&vms(&["vcpus=1", "name=a", "vcpus=2"])).expect("sound");
        let names: Vec<&str> = all.iter().map(Vm::name).collect();
        assert_eq!(names, ["vm1", "a", "vm3"]);
        let twice = named(&vms(&["name=a", "name=a"])).expect_err("twice");
        assert!(twice.to_string().contains("the name a is there twice"));
        assert!(named(&vms(&["vcpus=1", "name=vm1"])).is_err());
    }
}
