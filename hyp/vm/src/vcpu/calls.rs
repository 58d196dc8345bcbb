//! Hypercalls: the calling convention, PSCI, a guest's calls about its memory, and the services.

use core::mem;

use memory::Access;
use smccc::arch::{
    SMCCC_ARCH_FEATURES, SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_3, SMCCC_VERSION,
};
use stage2::{Ipa, IpaRange, PAGE_SIZE};

use super::running::{Next, Running};
use crate::calls::psci;
use crate::calls::service::{Service, ServiceReply};
use crate::machine::cpu::Cpu;
use crate::machine::guest_memory::{GuestMemory, Refusal};

/// The version of the calling convention (DEN0028, section 7.2).
const SMCCC_1_4: u64 = 1 << 16 | 4;
/// Bits of a function identifier: a 64-bit call, the owning entity with the fast-call bit (DEN0028, table 2-1).
const CALL_64: u32 = 1 << 30;
const OWNER: u32 = 0xbf00_0000;
const OWNER_PSCI: u32 = 0x8400_0000;
const OWNER_VENDOR: u32 = 0x8600_0000;
/// How much memory one call populates or gives back: kept short, as the vCPU can't be paused or ended meanwhile.
const MOST_AT_ONCE: u64 = 2 << 20;

impl<S, C, K, V> Running<'_, S, C, K, V>
where
    S: GuestMemory<C>,
    K: Cpu,
    V: Service + ?Sized,
{
    pub(super) fn hypercall(&mut self, immediate: u16) -> Next {
        let x = &self.context.state.regs.x;
        let function = x[0] as u32;
        let mask = if function & CALL_64 != 0 {
            u64::MAX
        } else {
            u64::from(u32::MAX)
        };
        let args: [u64; 6] = core::array::from_fn(|index| x[index + 1] & mask);
        if immediate != 0 {
            return self.answer([abi::NOT_SUPPORTED]);
        }
        match (function, function & OWNER) {
            (SMCCC_VERSION, _) => self.answer([SMCCC_1_4]),
            (SMCCC_ARCH_FEATURES, _) => self.answer([match args[0] as u32 {
                SMCCC_VERSION | SMCCC_ARCH_FEATURES => 0,
                function => self.cpu.protections().feature(function),
            }]),
            (SMCCC_ARCH_WORKAROUND_1 | SMCCC_ARCH_WORKAROUND_3, _) => {
                self.answer([self.cpu.protections().call(function)])
            }
            (_, OWNER_PSCI) => self.psci(function, [args[0], args[1], args[2]]),
            (abi::VENDOR_UID, _) => self.answer(abi::UID.map(u64::from)),
            (abi::VENDOR_REVISION, _) => self.answer(abi::REVISION.map(u64::from)),
            (abi::BALLOON, _) => self.balloon(args[0], args[1]),
            (abi::PREFAULT, _) => self.prefault(args[0], args[1], args[2]),
            (_, OWNER_VENDOR) => {
                let reply = self.service.call(self.id, function, args);
                self.served(reply)
            }
            _ => self.answer([abi::NOT_SUPPORTED]),
        }
    }

    /// Results go to x0 and up; every other register keeps its value (SMCCC 1.4, section 2.6).
    fn answer<const N: usize>(&mut self, values: [u64; N]) -> Next {
        self.context.state.regs.x[..N].copy_from_slice(&values);
        Next::Enter
    }

    fn psci(&mut self, function: u32, args: [u64; 3]) -> Next {
        let (vm, memory) = (self.vm, self.memory);
        match psci::call(vm, function, args, |ipa| vm.space.is_backed(memory, ipa)) {
            psci::Reply::Return(value) => self.answer([i64::from(value) as u64]),
            psci::Reply::TurnedOn(target) => {
                if let Some(cpu) = vm.cpu_of(target) {
                    self.cpu.kick(cpu);
                }
                self.answer([abi::SUCCESS])
            }
            psci::Reply::Standby => {
                self.answer([abi::SUCCESS]);
                self.wait(None)
            }
            psci::Reply::Off => Next::TurnOff,
            psci::Reply::Stop(reason) => self.end(reason),
        }
    }

    /// Handles the service's reply.
    fn served(&mut self, reply: ServiceReply) -> Next {
        match reply {
            ServiceReply::Return(values) => self.answer(values),
            ServiceReply::NotSupported => self.answer([abi::NOT_SUPPORTED]),
            ServiceReply::Stop(reason) => self.end(reason),
            ServiceReply::Wait => {
                self.context.awaits_answer = true;
                Next::Wait
            }
        }
    }

    /// Takes the answer for which the vCPU has been waiting since its last slice, if it has.
    pub(super) fn take_answer(&mut self) -> Next {
        if !mem::take(&mut self.context.awaits_answer) {
            return Next::Enter;
        }
        let reply = self.service.poll(self.id);
        self.served(reply)
    }

    fn prefault(&mut self, start: u64, bytes: u64, access: u64) -> Next {
        let access = match access {
            0 => Access::Read,
            1 => Access::Write,
            _ => return self.answer([abi::INVALID_PARAMETERS, 0]),
        };
        let Some(range) = whole_pages(start, bytes, self.vm.ipa_bits()) else {
            return self.answer([abi::INVALID_PARAMETERS, 0]);
        };
        let done = self
            .vm
            .space
            .prefault(self.memory, self.id.0, range, MOST_AT_ONCE, access);
        self.answer_bytes(done)
    }

    fn balloon(&mut self, start: u64, bytes: u64) -> Next {
        let Some(range) = whole_pages(start, bytes, self.vm.ipa_bits()) else {
            return self.answer([abi::INVALID_PARAMETERS, 0]);
        };
        let done = self.vm.space.balloon(self.memory, range, MOST_AT_ONCE);
        self.answer_bytes(done)
    }

    fn answer_bytes(&mut self, done: Result<u64, Refusal>) -> Next {
        let code = match done {
            Ok(bytes) => return self.answer([abi::SUCCESS, bytes]),
            Err(Refusal::NotBacked) => abi::NOT_BACKED,
            Err(Refusal::NotPermitted) => abi::NOT_PERMITTED,
            Err(Refusal::OutOfFrames) => abi::NO_MEMORY,
            Err(Refusal::RingFull) => {
                self.call_again();
                return self.wait_for_ring();
            }
            Err(Refusal::Busy) => {
                self.call_again();
                return Next::Enter;
            }
        };
        self.answer([code, 0])
    }
}

/// A guest's range, if it is valid: whole pages, not empty, within the address space.
fn whole_pages(start: u64, bytes: u64, ipa_bits: u32) -> Option<IpaRange> {
    let is_whole = start.is_multiple_of(PAGE_SIZE) && bytes.is_multiple_of(PAGE_SIZE);
    let end = start.checked_add(bytes)?;
    let is_sound = is_whole && bytes != 0 && end <= 1 << ipa_bits;
    is_sound.then(|| Ipa::new(start)..Ipa::new(end))
}
