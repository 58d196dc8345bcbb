//! The hypervisor's side of the benchmark guest's hypercalls.
//!
//! All vCPUs call at once, with any arguments. The guest's statements are allegations: they are checked here, or compared with
//! what the hypervisor knows. A guest that breaks the rules is stopped, and its first violation is recorded.

use crate::harness::error::WorkloadError;
use crate::harness::low_rings::LowRings;
use crate::harness::steps::{Arrival, Steps};
use crate::harness::violation::GuestViolation;
use abi::{BENCH_HELLO, BENCH_NEXT, BENCH_PARAMS, INCONSISTENT, SUCCESS, params};
use control::BOOT_CPU;
use control::Machine;
use control::RunError;
use control::guest::RAM;
use control::guest::common_calls;
use control::guest::console::GuestConsole;
use control::options::{Options, TEST_MEMORY};
use records::words::GuestKind;
use spin::Once;
use stage2::{Ipa, PAGE_SIZE};
use vm::{Service, ServiceReply, StopReason, VcpuId};

const WORD_BYTES: u64 = size_of::<u64>() as u64;

/// The guest's journals in its RAM: one bitmap per vCPU, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Journals {
    start: Ipa,
    bytes_per_vcpu: u64,
}

impl Journals {
    /// Checks the guest's allegation against RAM of `ram` bytes and the size that a journal needs.
    fn check(start: u64, bytes_per_vcpu: u64, vcpus: usize, needed: u64, ram: u64) -> Option<Self> {
        let room = bytes_per_vcpu >= needed && bytes_per_vcpu.is_multiple_of(WORD_BYTES);
        let end = bytes_per_vcpu
            .checked_mul(vcpus as u64)?
            .checked_add(start)?;
        let inside =
            start >= RAM.get() && end <= RAM.get() + ram && start.is_multiple_of(WORD_BYTES);
        (room && inside).then_some(Self {
            start: Ipa::new(start),
            bytes_per_vcpu,
        })
    }

    /// The address of a vCPU's journal.
    pub fn of(&self, vcpu: usize) -> Ipa {
        self.start.offset(self.bytes_per_vcpu * vcpu as u64)
    }

    /// The address of the last word of a vCPU's journal.
    pub fn end_of(&self, vcpu: usize) -> Ipa {
        self.of(vcpu).offset(self.bytes_per_vcpu - WORD_BYTES)
    }
}

/// The size in bytes of a journal with a bit for each of so many pages.
pub fn journal_bytes(pages: u64) -> u64 {
    pages.div_ceil(u64::BITS.into()) * WORD_BYTES
}

/// The bytes of the journal that a vCPU needs for its share.
pub fn needed_journal(options: &Options) -> u64 {
    let pages = options.bytes.0 / PAGE_SIZE;
    match options.guest {
        GuestKind::Stress => {
            (pages * size_of::<u32>() as u64).next_multiple_of(WORD_BYTES) + WORD_BYTES
        }
        GuestKind::DirtyLog | GuestKind::Backing | GuestKind::Program | GuestKind::Linux => {
            journal_bytes(pages)
        }
    }
}

/// The benchmark's side of the hypercalls.
#[derive(Debug)]
pub struct Bench<M: Machine> {
    machine: &'static M,
    console: GuestConsole,
    steps: Steps,
    low_rings: LowRings,
    journals: Once<Journals>,
    violation: Once<GuestViolation>,
    vcpus: usize,
    bytes_per_vcpu: u64,
    journal_bytes: u64,
    ram: u64,
    write_percent: u64,
    kind: u64,
    seed: u64,
}

impl<M: Machine> Bench<M> {
    /// For a guest with these options and `ram` bytes of RAM.
    pub fn new(machine: &'static M, options: &Options, ram: u64) -> Self {
        Self {
            machine,
            console: GuestConsole::new(),
            steps: Steps::new(options.vcpus),
            low_rings: LowRings::new(options.vcpus),
            journals: Once::new(),
            violation: Once::new(),
            vcpus: options.vcpus,
            bytes_per_vcpu: options.bytes.0,
            journal_bytes: needed_journal(options),
            ram,
            write_percent: options.write_percent,
            kind: match (options.guest, options.random) {
                (GuestKind::Stress, _) => params::STRESS,
                (_, true) => params::RANDOM,
                (_, false) => 0,
            },
            seed: options.seed,
        }
    }

    /// The same for a fork of the paused guest: its vCPUs have announced themselves, and are at the same point.
    #[must_use]
    pub fn fork(&self) -> Self {
        let journals = Once::new();
        if let Some(known) = self.journals() {
            journals.call_once(|| known);
        }
        Self {
            machine: self.machine,
            console: GuestConsole::new(),
            steps: self.steps.fork(),
            low_rings: LowRings::new(self.vcpus),
            journals,
            violation: Once::new(),
            ..*self
        }
    }

    /// The lock step with the vCPUs.
    pub fn steps(&self) -> &Steps {
        &self.steps
    }

    /// The vCPUs whose rings need a harvest.
    pub fn low_rings(&self) -> &LowRings {
        &self.low_rings
    }

    /// The journals, once the guest has announced them.
    pub fn journals(&self) -> Option<Journals> {
        self.journals.get().copied()
    }

    /// The guest's first violation if that ended the run, or what the guest found; else the run's own error.
    pub fn explain(&self, error: WorkloadError) -> WorkloadError {
        match (self.violation.get(), error) {
            (Some(violation), WorkloadError::Run(RunError::Ended(StopReason::Requested))) => {
                WorkloadError::Guest(*violation)
            }
            (
                _,
                WorkloadError::Run(RunError::Ended(StopReason::Reported {
                    code: INCONSISTENT,
                    details: [page, found],
                    ..
                })),
            ) => WorkloadError::Inconsistent {
                page,
                found,
                expected: None,
                seed: self.seed,
            },
            (_, error) => error,
        }
    }

    /// Prints the guest's unfinished line.
    pub fn flush(&self) {
        self.console.flush(|line| self.machine.write_line(line));
    }

    fn hello(&self, vcpu: VcpuId, start: u64, bytes_per_vcpu: u64) -> ServiceReply {
        if vcpu != VcpuId(0) || self.journals.is_completed() {
            return self.refuse(GuestViolation::SecondHello(vcpu));
        }
        let needed = self.journal_bytes;
        match Journals::check(start, bytes_per_vcpu, self.vcpus, needed, self.ram) {
            Some(journals) => {
                self.journals.call_once(|| journals);
                ServiceReply::Return([SUCCESS, self.vcpus as u64, self.bytes_per_vcpu, TEST_MEMORY])
            }
            None => self.refuse(GuestViolation::BadJournals {
                start,
                bytes_per_vcpu,
                needed,
            }),
        }
    }

    fn next(&self, vcpu: VcpuId, written: u64, read: u64) -> ServiceReply {
        if !self.journals.is_completed() {
            return self.refuse(GuestViolation::NoHello(vcpu));
        }
        let at_ns = self.machine.now_ns();
        let arrival = Arrival {
            written,
            read,
            at_ns,
        };
        if self.steps.arrive(vcpu.0, arrival) {
            self.machine.kick(BOOT_CPU);
        }
        self.poll(vcpu)
    }

    fn refuse(&self, violation: GuestViolation) -> ServiceReply {
        self.violation.call_once(|| violation);
        ServiceReply::Stop(StopReason::Requested)
    }
}

impl<M: Machine> Service for Bench<M> {
    fn call(&self, vcpu: VcpuId, function: u32, args: [u64; 6]) -> ServiceReply {
        match function {
            BENCH_HELLO => self.hello(vcpu, args[0], args[1]),
            BENCH_PARAMS => {
                ServiceReply::Return([SUCCESS, self.write_percent, self.kind, self.seed])
            }
            BENCH_NEXT => self.next(vcpu, args[0], args[1]),
            _ => common_calls::answer(self.machine, &self.console, vcpu, function, args)
                .unwrap_or(ServiceReply::NotSupported),
        }
    }

    fn ring_low(&self, vcpu: VcpuId) {
        self.low_rings.note(vcpu.0);
        self.machine.kick(BOOT_CPU);
    }

    fn poll(&self, vcpu: VcpuId) -> ServiceReply {
        match self.steps.answer(vcpu.0) {
            Some(step) => {
                ServiceReply::Return([step.code, step.iteration, step.part.0, step.part.1])
            }
            None => ServiceReply::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn journals_must_lie_in_ram_and_hold_every_page() {
        let ram = RAM.get();
        assert_eq!(journal_bytes(64), 8);
        assert_eq!(journal_bytes(65), 16);
        let journals = Journals::check(ram + 8, 16, 3, 16, 56).unwrap();
        assert_eq!(journals.of(2), RAM.offset(8 + 32));
        assert_eq!(
            Journals::check(ram + 8, 16, 3, 16, 55),
            None,
            "beyond the end"
        );
        assert_eq!(
            Journals::check(ram - 8, 16, 3, 16, 56),
            None,
            "before the start"
        );
        assert_eq!(Journals::check(ram + 4, 16, 3, 16, 56), None, "unaligned");
        assert_eq!(Journals::check(ram, 8, 3, 16, 56), None, "too small");
        assert_eq!(Journals::check(ram, 20, 2, 16, 56), None, "no whole words");
        assert_eq!(
            Journals::check(ram, u64::MAX - 7, 2, 16, 56),
            None,
            "overflow"
        );
    }

    proptest! {
        #[test]
        fn accepted_journals_lie_in_ram(start: u64, bytes: u64, vcpus in 1usize..64, ram in 0u64..1 << 40) {
            if let Some(journals) = Journals::check(start, bytes, vcpus, 8, ram) {
                let last = journals.of(vcpus - 1).get() + bytes;
                prop_assert!(journals.of(0) >= RAM && last <= RAM.get() + ram);
            }
        }
    }
}
