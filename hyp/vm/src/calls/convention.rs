//! The SMC Calling Convention, version 1.4 (Arm DEN0028): what the registers of a call mean.
//!
//! Of the Arm architecture's calls there are SMCCC_VERSION, SMCCC_ARCH_FEATURES and those workarounds that a guest's CPU needs.
//! There is no SMCCC_ARCH_SOC_ID: a guest isn't told what chip it runs on. The other ranges are PSCI's and TRNG's in the
//! standard secure services, paravirtualized time, and this hypervisor's own; no call counts and no identities of other ranges, which the convention
//! leaves optional. Pure functions.

/// The version of the calling convention (section 7.2).
pub const VERSION: u64 = 1 << 16 | 4;

/// Bits of a function identifier (table 2-1): a fast call, a call with 64-bit arguments, its owner, the caller's hint that it
/// has nothing in SVE's registers, and those that are 0 in a fast call.
const FAST: u32 = 1 << 31;
const CALL_64: u32 = 1 << 30;
const OWNER_SHIFT: u32 = 24;
const OWNER: u32 = 0x3f;
const SVE_HINT: u32 = 1 << 16;
const RESERVED: u32 = 0xfe_0000;

/// How wide a call's arguments and results are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallWidth {
    /// SMC32 and HVC32: w0 to w7. The upper halves of arguments are nobody's, those of results are 0.
    Bits32,
    /// SMC64 and HVC64: x0 to x7. Negative results have their sign in all of x0.
    Bits64,
}

impl CallWidth {
    /// That of a function.
    pub const fn of(function: u32) -> Self {
        if function & CALL_64 == 0 {
            Self::Bits32
        } else {
            Self::Bits64
        }
    }

    /// What a register's value is in a call of this width.
    pub const fn narrow(self, value: u64) -> u64 {
        match self {
            Self::Bits32 => value & u32::MAX as u64,
            Self::Bits64 => value,
        }
    }
}

/// Who answers for a function (table 2-1), of those that answer here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOwner {
    /// The Arm architecture.
    Architecture,
    /// Arm's standard secure services: PSCI, TRNG.
    StandardSecure,
    /// Arm's standard hypervisor services: paravirtualized time.
    StandardHypervisor,
    /// This hypervisor's vendor.
    VendorHypervisor,
    /// Nobody: a yielding call, a reserved bit, another owner.
    Nobody,
}

/// A call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The function, without the hint about SVE.
    pub function: u32,
    /// x1 to x6, as wide as the call.
    pub args: [u64; 6],
}

impl Call {
    /// The call that is in x0 to x6.
    pub fn decode(x: &[u64; 31]) -> Self {
        let function = x[0] as u32 & !SVE_HINT;
        let width = CallWidth::of(function);
        Self {
            function,
            args: core::array::from_fn(|index| width.narrow(x[index + 1])),
        }
    }

    /// Who answers for it.
    pub const fn owner(&self) -> CallOwner {
        if self.function & FAST == 0 || self.function & RESERVED != 0 {
            return CallOwner::Nobody;
        }
        match self.function >> OWNER_SHIFT & OWNER {
            0 => CallOwner::Architecture,
            4 => CallOwner::StandardSecure,
            5 => CallOwner::StandardHypervisor,
            6 => CallOwner::VendorHypervisor,
            _ => CallOwner::Nobody,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn call(function: u64) -> Call {
        let mut x = core::array::from_fn(|index| u64::MAX - index as u64);
        x[0] = function;
        Call::decode(&x)
    }

    #[test]
    fn a_call_has_an_owner_a_width_and_arguments() {
        assert_eq!(call(0x8000_0000).owner(), CallOwner::Architecture);
        assert_eq!(call(0x8400_0000).owner(), CallOwner::StandardSecure);
        assert_eq!(call(0xc500_0020).owner(), CallOwner::StandardHypervisor);
        assert_eq!(call(0xc600_0000).owner(), CallOwner::VendorHypervisor);
        assert_eq!(call(0x8300_0000).owner(), CallOwner::Nobody, "OEM's");
        assert_eq!(call(0x0400_0000).owner(), CallOwner::Nobody, "yielding");
        assert_eq!(
            call(0x8402_0000).owner(),
            CallOwner::Nobody,
            "a reserved bit"
        );
        assert_eq!(call(0x8400_0000).args[1], 0xffff_fffd);
        assert_eq!(call(0xc400_0000).args[1], u64::MAX - 2);
    }

    #[test]
    fn the_upper_half_of_x0_and_the_hint_about_sve_are_nothing_of_the_function() {
        assert_eq!(call(0xdead_beef_c401_0003), call(0xc400_0003));
    }

    proptest! {
        #[test]
        fn only_fast_calls_without_reserved_bits_are_anybodys(function: u32) {
            let call = call(function.into());
            let is_sound = function >> 31 == 1 && function & 0xfe_0000 == 0;
            prop_assert!(call.owner() == CallOwner::Nobody || is_sound);
            prop_assert!(call.args.iter().all(|&arg| function >> 30 & 1 == 1 || arg >> 32 == 0));
        }
    }
}
