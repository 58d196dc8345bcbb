//! Hypercalls: the known ones, then thousands of unknown ones with garbage. None may do harm; what is unknown is not
//! supported; x4 to x17 are preserved (SMCCC 1.4, section 2.6).

use crate::wrong;
use abi::{BALLOON, BENCH_NEXT, NOT_SUPPORTED, REPORT, REVISION, UID, VENDOR_REVISION, VENDOR_UID};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};
use guest_runtime::{Tree, call, expect_exception, println, start_vcpu};
use smccc::arch::{
    SMCCC_ARCH_FEATURES, SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_2, SMCCC_ARCH_WORKAROUND_3,
    SMCCC_VERSION,
};

const PSCI_VERSION: u32 = 0x8400_0000;
const PSCI_CPU_ON: [u32; 2] = [0x8400_0003, 0xC400_0003];
const PSCI_FEATURES: u32 = 0x8400_000A;
const PSCI_SYSTEM_SUSPEND: [u32; 2] = [0x8400_000E, 0xC400_000E];
const PSCI_SYSTEM_RESET2: [u32; 2] = [0x8400_0012, 0xC400_0012];
/// Functions of PSCI, without their width, that end or stop the caller: CPU_SUSPEND, CPU_OFF, SYSTEM_OFF, SYSTEM_RESET,
/// CPU_FREEZE, CPU_DEFAULT_SUSPEND, SYSTEM_SUSPEND, SYSTEM_RESET2.
const ENDS: [u32; 8] = [1, 2, 8, 9, 0xB, 0xC, 0xE, 0x12];
const WIDTH: u32 = 1 << 30;
/// The caller's hint about SVE, which is nothing of the function.
const HINT: u32 = 1 << 16;
const FAST: u32 = 1 << 31;
const ROUNDS: u32 = 4000;

type Conduit = fn(u32, [u64; 17]) -> [u64; 18];

/// Makes all of the calls, by HVC and by SMC.
pub fn probe() {
    let mut random = Random::new(1);
    let conduits: [Conduit; 2] = [smccc::hvc64, smccc::smc64];
    for conduit in conduits {
        known(conduit);
        for _ in 0..ROUNDS {
            garbage(conduit, &mut random);
        }
        known(conduit);
    }
    // Calls with an immediate are nobody's.
    expect_exception(|| {
        // SAFETY: whatever it is, it isn't a call that ends the VM.
        unsafe {
            asm!("hvc #1", "smc #0xffff", inout("x0") u64::from(PSCI_VERSION) => _, clobber_abi("C"))
        };
    });
    println!("hypercalls: done");
}

static IS_FLOODING: AtomicBool = AtomicBool::new(false);

/// Whether this is what vCPUs are started for.
pub fn is_flooding() -> bool {
    IS_FLOODING.load(Ordering::Acquire)
}

/// Prints without end, on all vCPUs.
pub fn flood_from_all(tree: Tree) -> ! {
    IS_FLOODING.store(true, Ordering::Release);
    for vcpu in 1..tree.vcpus() {
        if let Err(error) = start_vcpu(vcpu) {
            wrong(format_args!("vCPU {vcpu} can't be started: {error}"));
        }
    }
    flood()
}

/// Prints without end: lines of nothing, so that most of the time somebody has the console.
pub fn flood() -> ! {
    loop {
        call(abi::CONSOLE_PUT, [u64::from(b'\n'), 0, 0]);
    }
}

/// Asks about each of the workarounds of firmware, and calls those that may be called.
pub fn workarounds() {
    let call = |function: u32, argument: u32| {
        let mut arguments = [0x5a; 17];
        arguments[0] = argument.into();
        let results = smccc::smc64(function, arguments);
        if results[4..] != arguments[3..] {
            wrong(format_args!("call {function:#x} changed x4 to x17"));
        }
        results[0] as i32
    };
    let answers = [
        SMCCC_ARCH_WORKAROUND_1,
        SMCCC_ARCH_WORKAROUND_2,
        SMCCC_ARCH_WORKAROUND_3,
    ]
    .map(|function| {
        let answer = call(SMCCC_ARCH_FEATURES, function);
        let result = call(function, 0);
        if (answer < 0) != (result < 0) {
            wrong(format_args!(
                "workaround {function:#x} is told as {answer} and returns {result}"
            ));
        }
        answer
    });
    let [first, second, third] = answers;
    println!("workarounds: {first} {second} {third}");
}

fn known(conduit: Conduit) {
    let call = |function, argument| {
        let mut arguments = [0; 17];
        arguments[0] = argument;
        let results = conduit(function, arguments);
        [results[0], results[1], results[2], results[3]]
    };
    let expect = |what: &str, is_right: bool, found: [u64; 4]| {
        if !is_right {
            wrong(format_args!("{what}: {found:x?}"));
        }
    };
    let found = call(PSCI_VERSION, 0);
    expect("PSCI_VERSION", found[0] >= 0x1_0000, found);
    let found = call(PSCI_FEATURES, PSCI_CPU_ON[1].into());
    expect("PSCI_FEATURES", found[0] == 0, found);
    let found = call(PSCI_FEATURES | HINT, PSCI_CPU_ON[1].into());
    expect("PSCI_FEATURES with a hint", found[0] == 0, found);
    for (function, argument, error) in [
        (PSCI_FEATURES, 0x8400_0010, -1i32 as u32 as u64),
        (PSCI_SYSTEM_RESET2[0], 1, -2i32 as u32 as u64),
        (PSCI_SYSTEM_RESET2[1], 1, -2i64 as u64),
        (PSCI_SYSTEM_RESET2[1], 0x8000_0000, -1i64 as u64),
        // No instruction can be there.
        (PSCI_SYSTEM_SUSPEND[0], 1, -9i32 as u32 as u64),
        (PSCI_SYSTEM_SUSPEND[1], 1, -9i64 as u64),
    ] {
        let found = call(function, argument);
        expect("an error, as wide as its call", found[0] == error, found);
    }
    let found = call(SMCCC_VERSION, 0);
    expect(
        "SMCCC_VERSION",
        (0x1_0001..0x8000_0000).contains(&found[0]),
        found,
    );
    let found = call(VENDOR_UID, 0);
    expect("the vendor's UID", found == UID.map(u64::from), found);
    let found = call(VENDOR_REVISION, 0);
    expect(
        "the vendor's revision",
        found[..2] == REVISION.map(u64::from),
        found,
    );
}

fn garbage(conduit: Conduit, random: &mut Random) {
    let function = function(random);
    let mut arguments = [0; 17].map(|_: u64| random.argument());
    if ends(function) {
        return;
    }
    if PSCI_CPU_ON.contains(&(function & !HINT)) {
        // No vCPU can start at an odd address.
        arguments[1] |= 1;
    }
    let results = conduit(function, arguments);
    if results[4..] != arguments[3..] {
        wrong(format_args!(
            "call {function:#x} changed x4 to x17: {:x?}, {:x?}",
            &arguments[3..],
            &results[4..]
        ));
    }
    let answer = if function & WIDTH == 0 {
        i64::from(results[0] as i32) as u64
    } else {
        results[0]
    };
    if is_unknown(function) && answer != NOT_SUPPORTED {
        wrong(format_args!(
            "call {function:#x} returned {:#x}",
            results[0]
        ));
    }
}

/// A function that may be anyone's, with a number near those that are known in half of the cases.
fn function(random: &mut Random) -> u32 {
    let owners = [
        0x80, 0x81, 0x82, 0x84, 0x85, 0x86, 0xC0, 0xC4, 0xC6, 0xC6, 0xBF, 0x04,
    ];
    let bits = random.next();
    let number = if bits & 1 == 0 {
        bits >> 8 & 0x3f
    } else {
        bits >> 8 & 0xffff
    };
    match bits >> 32 & 0xf {
        owner @ 0..12 => owners[owner as usize] << 24 | number as u32 | (bits >> 40) as u32 & HINT,
        _ => random.next() as u32,
    }
}

/// Whether the call would end this probe, or might take its memory away.
fn ends(function: u32) -> bool {
    let is_psci = function & !(WIDTH | HINT | 0x1f) == 0x8400_0000;
    is_psci && ENDS.contains(&(function & 0x1f))
        || [REPORT, BENCH_NEXT, BALLOON].contains(&(function & !HINT))
}

/// Whether nobody knows the function: it isn't fast, or its owner isn't Arm, the standard services, or this hypervisor.
fn is_unknown(function: u32) -> bool {
    function & FAST == 0 || !matches!(function >> 24 & 0x3f, 0 | 4 | 6)
}

/// A pseudo-random sequence (xorshift64).
pub struct Random(u64);

impl Random {
    /// One of many.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Small numbers, addresses and any 64 bits.
    fn argument(&mut self) -> u64 {
        let bits = self.next();
        match bits & 3 {
            0 => bits >> 60,
            1 => 0x4000_0000 | (bits >> 34),
            2 => u64::MAX << (bits >> 58),
            _ => bits,
        }
    }
}
