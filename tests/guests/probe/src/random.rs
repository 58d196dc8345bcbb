//! Random numbers by TRNG (Arm DEN0098).

use crate::wrong;
use guest_runtime::println;

const VERSION: u32 = 0x8400_0050;
const FEATURES: u32 = 0x8400_0051;
const UUID: u32 = 0x8400_0052;
const RND: [u32; 2] = [0x8400_0053, 0xC400_0053];
const NOT_SUPPORTED: i64 = -1;
const INVALID_PARAMETERS: i64 = -2;
const ROUNDS: usize = 64;

/// Calls `function` by SMC in every other round; x0 has its sign in all of its bits, as wide as the call is.
fn call(round: usize, function: u32, argument: u64) -> (i64, [u64; 3]) {
    let mut arguments = [0x5a; 17];
    arguments[0] = argument;
    let conduit = [smccc::hvc64, smccc::smc64][round % 2];
    let results = conduit(function, arguments);
    if results[4..] != arguments[3..] {
        wrong(format_args!("call {function:#x} changed x4 to x17"));
    }
    let status = match function >> 30 & 1 {
        0 => i64::from(results[0] as i32),
        _ => results[0] as i64,
    };
    (status, [results[1], results[2], results[3]])
}

/// Makes all of the calls.
pub fn probe() {
    let (version, _) = call(0, VERSION, 0);
    if version == NOT_SUPPORTED {
        for function in [FEATURES, UUID, RND[0], RND[1]] {
            let (status, _) = call(0, function, VERSION.into());
            expect("a call of what isn't there", status, NOT_SUPPORTED);
        }
        return println!("random numbers: none");
    }
    expect("TRNG_VERSION", version, 0x1_0000);
    for function in [VERSION, FEATURES, UUID, RND[0], RND[1]] {
        expect("TRNG_FEATURES", call(0, FEATURES, function.into()).0, 0);
    }
    let mut seen = [0; ROUNDS];
    for (round, seen) in seen.iter_mut().enumerate() {
        let (status, all) = call(round, RND[1], 192);
        expect("TRNG_RND64", status, 0);
        *seen = all[0] ^ all[1] ^ all[2];
        let (status, few) = call(round, RND[0], 33);
        expect("TRNG_RND32", status, 0);
        if few[0] != 0 || few[1] > 1 || few[2] > u32::MAX.into() {
            wrong(format_args!("33 bits: {few:x?}"));
        }
        for (function, bits) in [(RND[0], 97), (RND[1], 193), (RND[0], 0), (RND[1], 0)] {
            let (status, none) = call(round, function, bits);
            expect("a wrong number of bits", status, INVALID_PARAMETERS);
            if none != [0; 3] {
                wrong(format_args!("{bits} bits: {none:x?}"));
            }
        }
    }
    seen.sort_unstable();
    if seen.windows(2).any(|pair| pair[0] == pair[1]) {
        wrong(format_args!("the same number twice: {seen:x?}"));
    }
    println!("random numbers: some");
}

fn expect(what: &str, found: i64, expected: i64) {
    if found != expected {
        wrong(format_args!("{what}: {found} instead of {expected}"));
    }
}
