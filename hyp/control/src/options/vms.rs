//! The VMs of a boot that runs several: each is a word of its own, `vm=name=a,kernel=0x50000000,cmdline='console=ttyAMA0'`.

use super::{LINUX_BYTES, NO_TIMEOUT, OptionError, Options, each_word, value};
use crate::quote::Quoted;
use core::fmt;
use records::options::{ADDRESSES, DEVICE, PATHS, VM, VMS, first_part, is_name, unquoted};
use records::size::{Size, SizeError, decimal};
use records::words::{GuestKind, OnCrash, OnReset, Word};

/// What a VM is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmOptions<'t> {
    /// Its name, which no other has.
    pub name: &'t str,
    /// Its vCPUs.
    pub vcpus: usize,
    /// Its memory, if that isn't the usual.
    pub bytes: Option<Size>,
    /// The address of the module with its kernel, which only firmware can do without.
    pub kernel: Option<u64>,
    /// The address of the module with the firmware that starts in the kernel's place, if there is some.
    pub firmware: Option<u64>,
    /// The address of the module with its initial ramdisk.
    pub ramdisk: Option<u64>,
    /// The paths of the machine's devices that it is given, as [`Options::devices`] has them, with commas between.
    pub devices: Option<&'t str>,
    /// What becomes of it when it asks for a reset, unless that is said for all.
    pub on_reset: Option<OnReset>,
    /// What becomes of it when it crashes, unless that is said for all.
    pub on_crash: Option<OnCrash>,
    /// Its kernel's command line, unless that comes with the kernel.
    pub bootargs: Option<&'t str>,
}

/// What is wrong with a VM's word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmFault<'t> {
    /// A part that no VM has.
    Unknown(&'t str),
    /// A part without a value.
    NoValue(&'t str),
    /// A part that was there before.
    Twice(&'t str),
    /// A part that every VM needs.
    Missing(&'static str),
    /// Two parts that name the same module.
    SameModule {
        /// The parts.
        keys: [&'static str; 2],
        /// Its address.
        address: u64,
    },
    /// A device that is named twice.
    Repeated(&'t str),
    /// There is no memory for a part's value.
    NoRoom(&'static str),
    /// A part with a wrong value.
    Malformed {
        /// The part.
        key: &'t str,
        /// Its value.
        text: &'t str,
        /// The possible values.
        expected: &'static str,
    },
}

impl fmt::Display for VmFault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(part) => write!(f, "unknown part {}: expected {VMS}", Quoted(part)),
            Self::NoValue(key) => write!(f, "part {} has no value", Quoted(key)),
            Self::Twice(key) => write!(f, "part {} is there twice", Quoted(key)),
            Self::Missing(key) => write!(f, "{key}= is missing"),
            Self::SameModule {
                keys: [one, other],
                address,
            } => write!(f, "{one}= and {other}= name the same module, {address:#x}"),
            Self::Repeated(path) => write!(f, "device= names {} twice", Quoted(path)),
            Self::NoRoom(key) => write!(f, "there is no memory for the value of {key}="),
            Self::Malformed {
                key,
                text,
                expected,
            } => write!(
                f,
                "malformed value {} for {}: expected {expected}",
                Quoted(text),
                Quoted(key)
            ),
        }
    }
}

const NAMES: &str = "up to 31 letters, digits, '-', '_', '.' or '@', a letter first";
const VCPUS: &str = "a number from 1 on";

impl<'t> VmOptions<'t> {
    /// The VMs in `bootargs`, in their order.
    pub fn each(bootargs: &'t str) -> impl Iterator<Item = Result<VmOptions<'t>, OptionError<'t>>> {
        let words = each_word(bootargs).filter(|(key, _)| *key == VM);
        words.map(|(_, text)| {
            let text = unquoted(value::present(VM, text)?);
            Self::parse(text).map_err(|fault| OptionError::Vm {
                vm: name_of(text),
                fault,
            })
        })
    }

    fn parse(text: &'t str) -> Result<Self, VmFault<'t>> {
        const KEYS: [&str; 10] = [
            "name", "kernel", "firmware", "vcpus", "bytes", "initrd", "device", "on_reset",
            "on_crash", "cmdline",
        ];
        let mut values = [None; KEYS.len()];
        let mut rest = Some(text);
        while let Some(text) = rest {
            let (part, behind) = first_part(text);
            rest = behind;
            let (key, given) = part.split_once('=').unwrap_or((part, ""));
            let index = KEYS.iter().position(|known| *known == key);
            let index = index.ok_or(VmFault::Unknown(key))?;
            if given.is_empty() {
                return Err(VmFault::NoValue(key));
            }
            if values[index].replace(given).is_some() {
                return Err(VmFault::Twice(key));
            }
        }
        let [
            name,
            kernel,
            firmware,
            vcpus,
            bytes,
            ramdisk,
            devices,
            on_reset,
            on_crash,
            bootargs,
        ] = values;
        if kernel.or(firmware).is_none() {
            return Err(VmFault::Missing("kernel"));
        }
        let vm = Self {
            name: part("name", name, NAMES, |text| is_name(text).then_some(text))?
                .ok_or(VmFault::Missing("name"))?,
            kernel: part("kernel", kernel, ADDRESSES, address)?,
            firmware: part("firmware", firmware, ADDRESSES, address)?,
            vcpus: part("vcpus", vcpus, VCPUS, vcpus_of)?.unwrap_or(1),
            bytes: part("bytes", bytes, SizeError::Malformed.expected(), bytes_of)?,
            ramdisk: part("initrd", ramdisk, ADDRESSES, address)?,
            devices: devices.map(check_devices).transpose()?,
            on_reset: part("on_reset", on_reset, OnReset::EXPECTED, word)?,
            on_crash: part("on_crash", on_crash, OnCrash::EXPECTED, word)?,
            bootargs: bootargs.map(unquoted),
        };
        vm.check_modules().map(|()| vm)
    }

    /// Checks that each of its modules has one use.
    fn check_modules(&self) -> Result<(), VmFault<'t>> {
        let uses = [
            ("kernel", self.kernel, "initrd", self.ramdisk),
            ("firmware", self.firmware, "kernel", self.kernel),
            ("firmware", self.firmware, "initrd", self.ramdisk),
        ];
        for (key, module, other_key, other) in uses {
            if let Some(address) = module
                && module == other
            {
                let keys = [key, other_key];
                return Err(VmFault::SameModule { keys, address });
            }
        }
        Ok(())
    }
}

impl Options {
    /// The options of one VM among several.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn of_vm<'t>(&self, vm: &VmOptions<'t>) -> Result<Self, OptionError<'t>> {
        let is_beside = self.guest != GuestKind::Linux;
        let devices = vm.devices.map(|text| value::paths(DEVICE, text));
        Ok(Self {
            guest: GuestKind::Linux,
            modes: self.modes.iter().copied().take(1).collect(),
            vcpus: vm.vcpus,
            bytes: vm.bytes.unwrap_or(LINUX_BYTES),
            on_reset: vm.on_reset.unwrap_or(self.on_reset),
            on_crash: vm.on_crash.unwrap_or(self.on_crash),
            timeout: if is_beside { NO_TIMEOUT } else { self.timeout },
            merging: if is_beside { 0 } else { self.merging },
            devices: devices.transpose()?.unwrap_or_default(),
            ..self.clone()
        })
    }
}

/// Checks the paths of a VM's devices.
fn check_devices(text: &str) -> Result<&str, VmFault<'_>> {
    match value::paths(DEVICE, text) {
        Ok(_) => Ok(text),
        Err(OptionError::Repeated { text, .. }) => Err(VmFault::Repeated(text)),
        Err(OptionError::NoRoom(key)) => Err(VmFault::NoRoom(key)),
        Err(_) => Err(VmFault::Malformed {
            key: DEVICE,
            text,
            expected: PATHS,
        }),
    }
}

/// The value of a part, if it is there.
fn part<'t, T>(
    key: &'static str,
    text: Option<&'t str>,
    expected: &'static str,
    read: impl Fn(&'t str) -> Option<T>,
) -> Result<Option<T>, VmFault<'t>> {
    let malformed = |text| VmFault::Malformed {
        key,
        text,
        expected,
    };
    text.map(|text| read(text).ok_or(malformed(text)))
        .transpose()
}

/// The address of a module, as the value of an option.
pub(super) fn module<'t>(key: &'static str, text: &'t str) -> Result<u64, OptionError<'t>> {
    address(text).ok_or(OptionError::Malformed {
        key,
        text,
        expected: ADDRESSES,
    })
}

fn address(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    let is_plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u64::from_str_radix(digits, 16).ok().filter(|_| is_plain)
}

fn vcpus_of(text: &str) -> Option<usize> {
    let number = decimal(text).and_then(|number| usize::try_from(number).ok());
    number.filter(|number| (1..=vm::MAX_VCPUS).contains(number))
}

fn bytes_of(text: &str) -> Option<Size> {
    let size = Size::parse(text).ok()?;
    (size.0 != 0 && size.0.is_multiple_of(stage2::PAGE_SIZE)).then_some(size)
}

fn word<T: Word>(text: &str) -> Option<T> {
    T::ALL.iter().copied().find(|value| value.word() == text)
}

/// The name in a VM's word, or else all of it, for a message.
fn name_of(text: &str) -> &str {
    let mut parts = text.split(',');
    parts
        .find_map(|part| part.strip_prefix("name="))
        .unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    fn vms(bootargs: &str) -> Vec<VmOptions<'_>> {
        VmOptions::each(bootargs).map(Result::unwrap).collect()
    }

    fn refused(word: &str) -> String {
        let bootargs = format!("guest=linux vm={word}");
        let mut vms = VmOptions::each(&bootargs);
        vms.next().unwrap().unwrap_err().to_string()
    }

    #[test]
    fn each_vm_is_a_word() {
        let few = VmOptions {
            name: "a",
            vcpus: 1,
            bytes: None,
            kernel: Some(0x5000_0000),
            firmware: None,
            ramdisk: None,
            devices: None,
            on_reset: None,
            on_crash: None,
            bootargs: None,
        };
        let all = VmOptions {
            name: "b-2",
            vcpus: 3,
            bytes: Some(Size(96 << 20)),
            kernel: Some(0x5000_0000),
            firmware: None,
            ramdisk: Some(0x5800_0000),
            devices: Some("/maker,rtc@1,/soc/b"),
            on_reset: Some(OnReset::Stop),
            on_crash: Some(OnCrash::Restart),
            bootargs: Some("console=ttyAMA0,115200 x=\"1, 2\""),
        };
        let bootargs = "vm=name=a,kernel=0x50000000 log=info \
            vm=bytes=96M,kernel=0x50000000,name=b-2,vcpus=3,initrd=0x58000000,device=/maker,rtc@1,/soc/b,on_reset=stop,on_crash=restart,\
            cmdline='console=ttyAMA0,115200 x=\"1, 2\"'";
        assert_eq!(vms(bootargs), [few, all]);
        assert_eq!(vms("vm='name=a,kernel=0x50000000'"), [few]);
        let firmware = vms("vm=name=a,firmware=0x4f000000")[0];
        assert_eq!(
            (firmware.kernel, firmware.firmware),
            (None, Some(0x4f00_0000))
        );
        let devices = |word: &str| vms(word)[0].devices.map(String::from);
        let last = devices("vm=name=a,kernel=0x1,device=/a,/b");
        assert_eq!(last.as_deref(), Some("/a,/b"));
        assert_eq!(vms("guest=linux"), []);
    }

    #[test]
    fn what_is_wrong_with_a_vm_is_named() {
        for (word, says) in [
            (
                "name=a,kernel=0x1,bites=1M",
                "VM 'a': unknown part 'bites': expected name=",
            ),
            ("kernel=0x1", "VM 'kernel=0x1': name= is missing"),
            ("name=a", "VM 'a': kernel= is missing"),
            ("name=a,kernel=", "VM 'a': part 'kernel' has no value"),
            ("name=a,,kernel=0x1", "VM 'a': unknown part ''"),
            (
                "name=a,name=b,kernel=0x1",
                "VM 'a': part 'name' is there twice",
            ),
            (
                "name=-a,kernel=0x1",
                "VM '-a': malformed value '-a' for 'name': expected up to 31",
            ),
            (
                "name=a,kernel=50",
                "VM 'a': malformed value '50' for 'kernel': expected an address",
            ),
            ("name=a,kernel=0x+1", "for 'kernel'"),
            ("name=a,firmware=1", "for 'firmware': expected an address"),
            ("name=a,kernel=0x10000000000000000", "for 'kernel'"),
            (
                "name=a,kernel=0x1,vcpus=0",
                "VM 'a': malformed value '0' for 'vcpus': expected a number",
            ),
            ("name=a,kernel=0x1,bytes=4097", "for 'bytes'"),
            ("name=a,kernel=0x1,bytes=0", "for 'bytes'"),
            ("name=a,kernel=0x1,initrd=x", "for 'initrd'"),
            (
                "name=a,kernel=0x50000000,initrd=0x50000000",
                "VM 'a': kernel= and initrd= name the same module, 0x50000000",
            ),
            (
                "name=a,kernel=0x1,firmware=0x1",
                "firmware= and kernel= name the same module, 0x1",
            ),
            (
                "name=a,firmware=0x1,initrd=0x1",
                "firmware= and initrd= name the same module, 0x1",
            ),
            (
                "name=a,kernel=0x1,on_reset=no",
                "for 'on_reset': expected restart or stop",
            ),
            (
                "name=a,kernel=0x1,on_crash=no",
                "for 'on_crash': expected stop or restart",
            ),
            (
                "name=a,kernel=0x1,device=rtc",
                "VM 'a': malformed value 'rtc' for 'device': expected paths",
            ),
            (
                "name=a,device=/a,/b,/a,kernel=0x1",
                "VM 'a': device= names '/a' twice",
            ),
            (
                "name=a,device=/a,kernel=0x1,device=/b",
                "VM 'a': part 'device' is there twice",
            ),
            ("name=a,kernel=0x1,device=", "part 'device' has no value"),
            ("name=a,device=/a,kernel", "VM 'a': kernel= is missing"),
            ("", "'vm' needs a value"),
        ] {
            let said = refused(word);
            assert!(said.contains(says), "{word}: {said}");
            assert!(!said.contains('\n'), "{said}");
        }
    }
}
