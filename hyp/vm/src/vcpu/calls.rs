//! Hypercalls: the calling convention, PSCI, a guest's calls about its memory, and the services.

use core::mem;

use memory::Access;
use smccc::arch::{
    SMCCC_ARCH_FEATURES, SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_3, SMCCC_VERSION,
};
use stage2::{Ipa, IpaRange, PAGE_SIZE};

use super::running::{Next, Running};
use crate::calls::convention::{self, Call, CallOwner, CallWidth};
use crate::calls::psci;
use crate::calls::pv_time::{self, PV_TIME_FEATURES};
use crate::calls::service::{Service, ServiceReply};
use crate::calls::trng::{self, TrngReply};
use crate::machine::cpu::Cpu;
use crate::machine::guest_memory::{GuestMemory, Refusal};
use crate::random::Generator;

/// How much memory one call populates or gives back: kept short, as the vCPU can't be paused or ended meanwhile.
const MOST_AT_ONCE: u64 = 2 << 20;

/// The CPU's own random bits, or those of the vCPU's generator.
struct GuestEntropy<'r, K> {
    cpu: &'r mut K,
    generator: &'r mut Option<Generator>,
}

impl<K: Cpu> trng::Source for GuestEntropy<'_, K> {
    fn exists(&self) -> bool {
        self.cpu.has_random() || self.generator.is_some()
    }

    fn next(&mut self, words: usize) -> Option<[u64; 3]> {
        if !self.cpu.has_random() {
            let noise = self.cpu.now_ns();
            return Some(self.generator.as_mut()?.next(noise));
        }
        let mut bits = [0; 3];
        for word in bits.iter_mut().take(words) {
            *word = self.cpu.random()?;
        }
        Some(bits)
    }
}

impl<S, C, K, V> Running<'_, S, C, K, V>
where
    S: GuestMemory<C>,
    K: Cpu,
    V: Service + ?Sized,
{
    pub(super) fn hypercall(&mut self, immediate: u16) -> Next {
        let call = Call::decode(&self.context.state.regs.x);
        let (function, args) = (call.function, call.args);
        if immediate != 0 {
            return self.answer([abi::NOT_SUPPORTED]);
        }
        match call.owner() {
            CallOwner::Architecture => self.architecture_call(function, args[0] as u32),
            CallOwner::StandardSecure if trng::is_function(function) => {
                self.trng(function, args[0] as u32)
            }
            CallOwner::StandardSecure => self.psci(function, [args[0], args[1], args[2]]),
            CallOwner::StandardHypervisor => {
                let structure = self.vm.stolen_times();
                let structure = structure.map(|times| times.structure(self.id.0));
                self.answer([pv_time::call(function, args[0] as u32, structure)])
            }
            CallOwner::VendorHypervisor => self.vendor_call(function, args),
            CallOwner::Nobody => self.answer([abi::NOT_SUPPORTED]),
        }
    }

    fn trng(&mut self, function: u32, argument: u32) -> Next {
        let mut source = GuestEntropy {
            cpu: self.cpu,
            generator: &mut self.context.generator,
        };
        match trng::call(function, argument, &mut source) {
            TrngReply::Status(status) => self.answer([status]),
            TrngReply::Words(words) => self.answer(words),
        }
    }

    fn architecture_call(&mut self, function: u32, argument: u32) -> Next {
        let protections = self.cpu.protections();
        self.answer([match (function, argument) {
            (SMCCC_VERSION, _) => convention::VERSION,
            (SMCCC_ARCH_FEATURES, SMCCC_VERSION | SMCCC_ARCH_FEATURES) => abi::SUCCESS,
            (SMCCC_ARCH_FEATURES, PV_TIME_FEATURES) if self.vm.stolen_times().is_some() => {
                abi::SUCCESS
            }
            (SMCCC_ARCH_FEATURES, function) => protections.feature(function),
            (SMCCC_ARCH_WORKAROUND_1 | SMCCC_ARCH_WORKAROUND_3, _) => protections.call(function),
            _ => abi::NOT_SUPPORTED,
        }])
    }

    fn vendor_call(&mut self, function: u32, args: [u64; 6]) -> Next {
        match function {
            abi::VENDOR_UID => self.answer(abi::UID.map(u64::from)),
            abi::VENDOR_REVISION => self.answer(abi::REVISION.map(u64::from)),
            abi::BALLOON => self.balloon(args[0], args[1]),
            abi::PREFAULT => self.prefault(args[0], args[1], args[2]),
            _ => {
                let reply = self.service.call(self.id, function, args);
                self.served(reply)
            }
        }
    }

    /// Results go to x0 and up, as wide as the call that x0 still names; every other register keeps its value (SMCCC 1.4,
    /// section 2.6).
    fn answer<const N: usize>(&mut self, values: [u64; N]) -> Next {
        let x = &mut self.context.state.regs.x;
        let width = CallWidth::of(x[0] as u32);
        x[..N].copy_from_slice(&values.map(|value| width.narrow(value)));
        Next::Enter
    }

    fn psci(&mut self, function: u32, args: [u64; 3]) -> Next {
        let (vm, memory) = (self.vm, self.memory);
        let is_backed = |ipa| vm.space.is_backed(memory, ipa);
        match psci::call(vm, self.id, function, args, is_backed) {
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
            psci::Reply::PowerDown(start) => self.power_down(start),
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
