//! The numbers of Parvisor's own hypercalls: what a guest and the hypervisor must agree on.
//!
//! They lie in the vendor-specific hypervisor range of the Arm SMC Calling Convention (DEN0028, 1.4: owner 6) and are
//! made by HVC with immediate 0: the function in w0, arguments in x1 to x6, results in x0 to x3. x0 is 0 for success or
//! a negative error code. A crate of its own, so that guests need nothing else of the hypervisor. It has constants, and the
//! functions that both sides compute.

#![no_std]

pub mod content;

/// x0 after an unknown call (SMCCC 1.4, section 5.2).
pub const NOT_SUPPORTED: u64 = -1i64 as u64;
/// x0 after a call with invalid arguments (SMCCC 1.4, section 5.2).
pub const INVALID_PARAMETERS: u64 = -3i64 as u64;
/// x0 after a call for which no memory is left.
pub const NO_MEMORY: u64 = -4i64 as u64;
/// x0 after a call about addresses that the guest has no memory at.
pub const NOT_BACKED: u64 = -5i64 as u64;
/// x0 after a call about memory that doesn't permit it, as it is read-only or a device's.
pub const NOT_PERMITTED: u64 = -6i64 as u64;
/// x0 after a successful call, unless the call says otherwise.
pub const SUCCESS: u64 = 0;

/// First function of the fast 64-bit vendor-specific hypervisor range.
pub const VENDOR_FAST64: u32 = 0xC600_0000;
/// First function of the fast 32-bit vendor-specific hypervisor range.
pub const VENDOR_FAST32: u32 = 0x8600_0000;
/// Asks whose range this is: [`UID`] in w0 to w3.
pub const VENDOR_UID: u32 = 0x8600_FF01;
/// Asks for the revision of the range: [`REVISION`] in w0 and w1.
pub const VENDOR_REVISION: u32 = 0x8600_FF03;

/// Parvisor's identity, the UUID 7a8f5e20-6c41-4f0b-9d3e-504152564953, in the byte order of SMCCC (5.3).
pub const UID: [u32; 4] = [0x205e_8f7a, 0x0b4f_416c, 0x4150_3e9d, 0x5349_5652];
/// Major and minor revision of the calls below.
pub const REVISION: [u32; 2] = [1, 0];

/// Writes the byte in x1 to the hypervisor's console, which prints whole lines.
pub const CONSOLE_PUT: u32 = VENDOR_FAST64;
/// Announces the benchmark guest, by its first vCPU. x1: IPA of the vCPUs' journals, which follow each other; x2: bytes of
/// one vCPU's journal. Returns x1: number of vCPUs; x2: bytes of test memory per vCPU; x3: IPA of the test memory.
pub const BENCH_HELLO: u32 = VENDOR_FAST64 + 1;
/// Ends this vCPU's step and waits for the next. x1: pages that it wrote; x2: how often it read. Returns x0: the step, one of
/// [`step`]; x1: the iteration, from 1. For steps that say so, x2: the first page of the part of each share; x3: its pages.
pub const BENCH_NEXT: u32 = VENDOR_FAST64 + 2;
/// A test program's verdict, which ends the VM. x1: 0 if it passed, else its own failure code; x2, x3: details.
pub const REPORT: u32 = VENDOR_FAST64 + 3;
/// Asks for the benchmark's parameters. Returns x1: percentage of accesses that write; x2: a sum of [`params`]; x3: seed.
pub const BENCH_PARAMS: u32 = VENDOR_FAST64 + 4;
/// Gives memory up. x1: its IPA; x2: its size in bytes, both in pages of 4 KiB. Returns x1: how many bytes, from x1 on, are
/// given up. If these aren't all, the guest calls again for the rest. Memory that was given up reads as zero afterwards. Writes
/// of other vCPUs meanwhile may be lost. If any part of the range is at fault, [`INVALID_PARAMETERS`], [`NOT_BACKED`] or
/// [`NOT_PERMITTED`], and nothing is changed.
pub const BALLOON: u32 = VENDOR_FAST64 + 0x10;
/// Populates memory ahead of any access. x1: its IPA; x2: its size in bytes, both in pages of 4 KiB; x3: 0 for
/// reads, 1 for writes. Returns x1: how many bytes, from x1 on, are populated. If these aren't all, the guest calls again for
/// the rest. Such accesses cause no stage-2 fault there, until the memory is changed otherwise. Errors as for [`BALLOON`], and
/// [`NO_MEMORY`].
pub const PREFAULT: u32 = VENDOR_FAST64 + 0x11;

/// The code of [`REPORT`] for a page with wrong contents. x2: its index within the test memory; x3: the word that was found.
pub const INCONSISTENT: u64 = 17;

/// Bits in x2 of what [`BENCH_PARAMS`] returns.
pub mod params {
    /// Pages are chosen at random.
    pub const RANDOM: u64 = 1;
    /// The steps are those of the stress run. A vCPU's journal has 32 bits for each of its pages, which count its writes, and a
    /// word at its end, which counts its additions to the memory shared by the VMs.
    pub const STRESS: u64 = 2;
}

/// What [`BENCH_NEXT`] tells a vCPU to do.
pub mod step {
    /// End: the first vCPU turns the VM off, the others themselves.
    pub const STOP: u64 = 0;
    /// Write [`pattern`](crate::pattern) of iteration 0 to every page of the vCPU's share.
    pub const POPULATE: u64 = 1;
    /// Access every page of the share once, and write the pattern of the iteration to those that the write percentage picks.
    pub const DIRTY: u64 = 2;
    /// Read and write at random. The pages of the test memory are dealt out to the vCPUs one by one. A write puts
    /// [`counted`](crate::counted) into the page's first and then its last word. x2: IPA of the memory shared with other VMs; x3:
    /// its pages. Now and then a vCPU adds 1 to the last word of its journal, and then to the first word of a shared page.
    pub const STRESS: u64 = 3;
    /// Write the pattern of the iteration to each page of a part of the share, without noting it anywhere.
    pub const WRITE: u64 = 4;
    /// Read each page of a part of the share, which must hold the pattern of the iteration.
    pub const READ: u64 = 5;
    /// Read each page of a part of the share, which must hold zeros.
    pub const READ_ZEROS: u64 = 6;
    /// Fill each page of a part of the share with the [`content`](crate::content) of the iteration.
    pub const FILL: u64 = 7;
    /// Read every word of a part of the share, which must hold the content of the iteration.
    pub const CHECK: u64 = 8;
    /// Give a part of the share up by [`BALLOON`](crate::BALLOON).
    pub const GIVE_UP: u64 = 9;
    /// Have a part of the share populated for writes by [`PREFAULT`](crate::PREFAULT).
    pub const POPULATE_AHEAD: u64 = 10;
}

/// The word that the benchmark guest writes to the start of a page: `iteration` (16 bits) and the page's index within the
/// test memory.
pub const fn pattern(iteration: u64, page: u64) -> u64 {
    iteration << 48 | page
}

/// The word that the stress run's guest writes to a page for the `count`th time (32 bits); nothing but zeros before the first.
pub const fn counted(count: u64, page: u64) -> u64 {
    if count == 0 { 0 } else { count << 32 | page }
}

/// The number of writes to a page that holds this word.
pub const fn count_of(word: u64) -> u64 {
    word >> 32
}
