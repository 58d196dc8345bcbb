//! Debian's kernel as modules of a machine that a test makes itself, with a command that it runs before it powers off: with devices
//! of the machine's, and forked.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use emulator::boot::Outcome;
use emulator::qemu::{ModuleKind, PlacedModules};
use emulator::size::mib;
use linux::{Session, prepare_guest};
use options::series::Series;
use qemu_tests::qmp::Socket;
use qemu_tests::{Boot, describe, tree};
use tempfile::TempDir;

use crate::linux::is_available;

/// How the guest marks the begin and the end of its command.
const TOKEN: &str = "session";
/// The line behind which the output of its command is.
pub(crate) const BEGIN: &str = "@session begin";
/// The line that follows a command without a failure.
pub(crate) const END: &str = "@session end 0";
/// How long a machine with Linux may take.
pub(crate) const LINUX_LIMIT: u64 = 600;
/// A command line with which little is printed before.
pub(crate) const QUIET: &str = "console=ttyAMA0 quiet panic=-1";

/// Debian's kernel and its file system.
pub(crate) struct Debian {
    kernel: PathBuf,
    initrd: PathBuf,
    _folder: TempDir,
}

impl Debian {
    /// With a file system whose session is this command, unless this machine can't have one.
    pub fn with(command: &str) -> Option<Self> {
        if !is_available() {
            return None;
        }
        let folder = TempDir::new().expect("room for a folder");
        let initrd = folder.path().join("initrd");
        let series = Series::parse("6.12").expect("a series");
        let session = Session::Command(command.into());
        let kernel = prepare_guest(series, &session, TOKEN, &initrd, |_| {}).expect("it is there");
        Some(Self {
            kernel: kernel.image,
            initrd,
            _folder: folder,
        })
    }

    /// Loads both files, and what else `others` places, into a machine whose RAM has its size. Gives their addresses.
    pub fn load(
        &self,
        mut boot: Boot,
        bootargs: Option<&str>,
        others: &[&Path],
    ) -> (Boot, [u64; 2]) {
        let mut placed = PlacedModules::new(boot.machine.memory);
        let mut place = |kind, path: &Path, bootargs| {
            let address = placed.place(kind, path, bootargs);
            address.expect("the file is there")
        };
        let kernel = place(ModuleKind::Kernel, &self.kernel, bootargs);
        let initrd = place(ModuleKind::Ramdisk, &self.initrd, None);
        for other in others {
            place(ModuleKind::Kernel, other, None);
        }
        boot.machine.modules = placed.fitting().expect("the machine has room");
        (boot, [kernel, initrd])
    }
}

/// Takes the interrupts of the devices that it has: three alarms of a clock, and two times the power button at a GPIO's pin 3.
const INTERRUPTS: &str = r#"
show() { awk -v name="$1" '$NF == name { print $NF ":", $2, $3, $4, $5 }' /proc/interrupts; }
count() { awk -v name="$1" '$NF == name { print $2 }' /proc/interrupts; }
reach() {
    left=3000
    until [ "$(count $1)" -ge $2 ] || [ $left -eq 0 ]; do sleep 0.1; left=$((left - 1)); done
}
if grep -q rtc-pl031 /proc/interrupts; then
    for number in 1 2 3; do
        echo 0 >/sys/class/rtc/rtc0/wakealarm
        echo +2 >/sys/class/rtc/rtc0/wakealarm
        reach rtc-pl031 $number
    done
    show rtc-pl031
fi
for chip in /sys/class/gpio/gpiochip*; do
    [ -e $chip/base ] || continue
    pin=$(($(cat $chip/base) + 3))
    echo $pin >/sys/class/gpio/export
    echo rising >/sys/class/gpio/gpio$pin/edge
    reach gpiolib 2
    [ $(count gpiolib) -ge 2 ] && echo pressed: $(cat $chip/label)
done
"#;

/// Runs a machine to its end, whose power button is pressed all the while.
fn run_pressed(boot: Boot) -> Outcome {
    let socket = Socket::new().expect("room for a socket");
    let boot = boot.arguments(socket.arguments());
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut connection = socket.connect().expect("the machine listens");
            // It ends with the machine.
            while connection.press_power_button().is_ok() {
                thread::sleep(Duration::from_secs(1));
            }
        });
        boot.run_well()
    })
}

/// Whether a line of a guest's is there.
fn has(outcome: &Outcome, line: &str) -> bool {
    outcome.lines.iter().any(|printed| printed == line)
}

#[test]
fn a_debian_takes_the_interrupts_of_devices_that_it_is_given() {
    let Some(debian) = Debian::with(INTERRUPTS) else {
        return;
    };
    let options = "guest=linux vcpus=1 bytes=192M device=/pl061@9030000,/pl031@9010000";
    let boot = Boot::quick(options).memory(mib(1024)).limit(LINUX_LIMIT);
    let (boot, _) = debian.load(boot, Some(QUIET), &[]);
    let outcome = run_pressed(boot);
    // The guest's number of the clock's interrupt isn't the machine's: its board has a clock's there.
    let expected = [
        "guest: rtc-pl031: 3 GICv3 95 Level",
        "guest: pressed: 9030000.pl061",
        &format!("guest: {END}"),
    ];
    assert!(
        expected.iter().all(|line| has(&outcome, line)),
        "{}",
        describe(&outcome)
    );
}

/// One has a clock whose interrupt is an edge, the other one a GPIO whose interrupt is a level.
#[test]
fn two_debians_have_devices_of_their_own() {
    let Some(debian) = Debian::with(INTERRUPTS) else {
        return;
    };
    let boot = Boot::quick("").memory(mib(1024)).limit(LINUX_LIMIT);
    let (boot, [kernel, initrd]) = debian.load(boot, None, &[]);
    let folder = TempDir::new().expect("room for a folder");
    let file = folder.path().join("tree");
    let mut machines = tree::of_machine(&boot);
    tree::make_edge(&mut machines, "/pl031@9010000", 2);
    fs::write(&file, machines.to_dtb()).expect("the folder is ours");
    let files = format!("bytes=192M,kernel={kernel:#x},initrd={initrd:#x},cmdline='{QUIET}'");
    let boot = boot
        .append(&format!("vm=name=a,device=/pl031@9010000,{files}"))
        .append(&format!("vm=name=b,device=/pl061@9030000,{files}"))
        .arguments(["-dtb".into(), file.into_os_string()]);
    let outcome = run_pressed(boot);
    let expected = [
        "[a] rtc-pl031: 3 GICv3 95 Edge",
        &format!("[a] {END}"),
        "[b] pressed: 9030000.pl061",
        &format!("[b] {END}"),
    ];
    assert!(
        expected.iter().all(|line| has(&outcome, line)),
        "{}",
        describe(&outcome)
    );
    assert!(!has(&outcome, "[a] pressed: 9030000.pl061"));
}

/// It fills memory, sleeps until it is forked, and looks at its memory again, from the other CPU too. On a slow machine it is forked
/// while it boots.
#[test]
fn a_debian_and_its_fork_go_on() {
    let Some(debian) = Debian::with(
        r#"
head -c 4000000 /dev/urandom >/dev/shm/a
before=$(md5sum </dev/shm/a)
slept=0
until [ $(cut -d. -f1 /proc/uptime) -ge 30 ]; do
    sleep 0.2
    slept=$((slept + 1))
done
cp /dev/shm/a /dev/shm/b
[ "$before" = "$(md5sum </dev/shm/a)" ] && [ "$before" = "$(taskset 2 md5sum </dev/shm/b)" ] && echo whole, $((slept > 0))
"#,
    ) else {
        return;
    };
    let options = "guest=linux vcpus=2 bytes=192M fork=20";
    let boot = Boot::quick(options).cpus(5).memory(mib(1024));
    let (boot, _) = debian.load(boot.limit(LINUX_LIMIT), Some(QUIET), &[]);
    let outcome = boot.run_well();
    let count = |text: &str| {
        let lines = outcome.lines.iter();
        lines.filter(|line| line.ends_with(text)).count()
    };
    let counts = [
        "VM 1 is a fork of VM 0",
        "guest: whole, 1",
        &format!("guest: {END}"),
        "after its end: table 0 guest 0 pending 0",
    ];
    assert_eq!(counts.map(count), [1, 2, 2, 2], "{}", describe(&outcome));
}
