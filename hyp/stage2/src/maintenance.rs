//! TLB maintenance out of the architecture's instructions (Arm ARM D8.17).
//!
//! The sequences are here, so that they run on a model of the machine as well as on the machine; the instructions come
//! in through [`Instructions`]. They act on the VMID in the issuing CPU's VTTBR_EL2. A vCPU's CPU has that of its VM;
//! anybody else sets it for the duration and puts back what was there, so that no walk starts from a VM's tables when
//! nobody vouches for them. An invalidation by IPA leaves entries that combine stage 1 and 2, so those of the whole VMID go
//! after it, and not before its completion, as they could come back out of what it hasn't reached yet.

use crate::address::{Ipa, IpaRange, Level};
use crate::operand::{self, Piece, Pieces};
use crate::tlb::{Regime, Tlb};

/// A TLB invalidation instruction, with its operand as encoded (Arm ARM C5.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tlbi {
    /// IPAS2E1IS: by IPA, tables too, inner shareable.
    Ipas2e1is(u64),
    /// IPAS2LE1IS: by IPA, last level, inner shareable.
    Ipas2le1is(u64),
    /// RIPAS2E1IS: by range, tables too, inner shareable (FEAT_TLBIRANGE).
    Ripas2e1is(u64),
    /// RIPAS2LE1IS: by range, last level, inner shareable (FEAT_TLBIRANGE).
    Ripas2le1is(u64),
    /// IPAS2LE1: by IPA, last level, this CPU.
    Ipas2le1(u64),
    /// VMALLE1IS: combined entries and stage 1 of the VMID, inner shareable.
    Vmalle1is,
    /// VMALLE1: the same on this CPU.
    Vmalle1,
    /// VAAE1: combined entries and stage 1 of one virtual address in all address spaces, this CPU.
    Vaae1(u64),
    /// VMALLS12E1IS: everything of the VMID, inner shareable.
    Vmalls12e1is,
    /// ALLE1IS: everything of every VMID, inner shareable.
    Alle1is,
}

/// A barrier (Arm ARM B2.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Barrier {
    /// DSB ISHST: earlier stores are visible to every CPU's walker.
    DsbIshst,
    /// DSB ISH: as DSB ISHST, and earlier TLB invalidations are complete on every CPU.
    DsbIsh,
    /// DSB NSHST: earlier stores are visible to this CPU's walker.
    DsbNshst,
    /// DSB NSH: as DSB NSHST, and earlier TLB invalidations of this CPU are complete.
    DsbNsh,
    /// ISB: what follows is fetched and translated anew.
    Isb,
}

/// The issuing CPU's instructions, executed in the order of the calls.
pub trait Instructions {
    /// Issues a TLB invalidation for the VMID that VTTBR_EL2 holds.
    fn tlbi(&self, operation: Tlbi);

    /// Issues a barrier.
    fn barrier(&self, barrier: Barrier);

    /// What VTTBR_EL2 holds.
    fn vttbr(&self) -> u64;

    /// Writes VTTBR_EL2. No guest runs on this CPU until it holds a running VM's value again.
    fn set_vttbr(&self, value: u64);
}

/// What of the TLB instructions to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TlbPolicy {
    /// FEAT_TLBIRANGE: there are instructions by range.
    pub range: bool,
    /// FEAT_TTL: operands may carry a level.
    pub level_hint: bool,
    /// Most instructions that one invalidation is made of. Beyond, dropping the whole VMID is cheaper: its combined
    /// entries go anyway.
    pub most_instructions: u32,
}

/// TLB maintenance by one CPU's instructions.
#[derive(Clone, Copy, Debug)]
pub struct Maintenance<I> {
    instructions: I,
    policy: TlbPolicy,
}

impl<I: Instructions> Maintenance<I> {
    /// With the calling CPU's instructions, as `policy` says.
    pub const fn new(instructions: I, policy: TlbPolicy) -> Self {
        Self {
            instructions,
            policy,
        }
    }

    /// The instructions.
    pub const fn instructions(&self) -> &I {
        &self.instructions
    }

    #[inline]
    fn operand(&self, vm: &Regime, ipa: Ipa, level: Option<Level>) -> u64 {
        let hint = if self.policy.level_hint { level } else { None };
        operand::address(vm.granule, ipa, hint)
    }

    /// Runs `operations` with the VMID of `vm` in VTTBR_EL2.
    #[inline]
    fn with_vmid(&self, vm: &Regime, operations: impl FnOnce(&I)) {
        let cpu = &self.instructions;
        let current = cpu.vttbr();
        if current == vm.vttbr.bits() {
            return operations(cpu);
        }
        cpu.set_vttbr(vm.vttbr.bits());
        cpu.barrier(Barrier::Isb);
        operations(cpu);
        cpu.set_vttbr(current);
        cpu.barrier(Barrier::Isb);
    }

    /// Whether `range` takes no more instructions than one invalidation may be made of.
    fn is_few(&self, vm: &Regime, range: &IpaRange) -> bool {
        let most = self.policy.most_instructions as usize;
        let pages = range.end.get().saturating_sub(range.start.get()) >> vm.granule.page_shift();
        if self.policy.range {
            Pieces::new(vm, range).nth(most).is_none()
        } else {
            pages <= most as u64
        }
    }

    fn by_range(cpu: &I, vm: &Regime, range: &IpaRange, tables: bool) {
        for piece in Pieces::new(vm, range) {
            cpu.tlbi(match (piece, tables) {
                (Piece::Page(operand), true) => Tlbi::Ipas2e1is(operand),
                (Piece::Page(operand), false) => Tlbi::Ipas2le1is(operand),
                (Piece::Range(operand), true) => Tlbi::Ripas2e1is(operand),
                (Piece::Range(operand), false) => Tlbi::Ripas2le1is(operand),
            });
        }
    }

    fn by_page(cpu: &I, vm: &Regime, range: &IpaRange, tables: bool) {
        let mut ipa = range.start;
        while ipa < range.end {
            let operand = operand::address(vm.granule, ipa, None);
            cpu.tlbi(if tables {
                Tlbi::Ipas2e1is(operand)
            } else {
                Tlbi::Ipas2le1is(operand)
            });
            ipa = ipa.offset(1 << vm.granule.page_shift());
        }
    }
}

/// Drops the VMID's combined entries everywhere, once what was dropped before it is gone.
#[inline]
fn drop_combined(cpu: &impl Instructions) {
    cpu.barrier(Barrier::DsbIsh);
    cpu.tlbi(Tlbi::Vmalle1is);
    cpu.barrier(Barrier::DsbIsh);
    cpu.barrier(Barrier::Isb);
}

impl<I: Instructions> Tlb for Maintenance<I> {
    fn invalidate_leaf(&self, vm: Regime, ipa: Ipa, level: Option<Level>) {
        self.instructions.barrier(Barrier::DsbIshst);
        self.with_vmid(&vm, |cpu| {
            cpu.tlbi(Tlbi::Ipas2le1is(self.operand(&vm, ipa, level)));
            drop_combined(cpu);
        });
    }

    fn invalidate_range(&self, vm: Regime, range: IpaRange, tables: bool) {
        if !self.is_few(&vm, &range) {
            return self.invalidate_vmid(vm);
        }
        self.instructions.barrier(Barrier::DsbIshst);
        self.with_vmid(&vm, |cpu| {
            if self.policy.range {
                Self::by_range(cpu, &vm, &range, tables);
            } else {
                Self::by_page(cpu, &vm, &range, tables);
            }
            drop_combined(cpu);
        });
    }

    fn invalidate_vmid(&self, vm: Regime) {
        self.instructions.barrier(Barrier::DsbIshst);
        self.with_vmid(&vm, |cpu| {
            cpu.tlbi(Tlbi::Vmalls12e1is);
            cpu.barrier(Barrier::DsbIsh);
            cpu.barrier(Barrier::Isb);
        });
    }

    fn invalidate_all_vmids(&self) {
        let cpu = &self.instructions;
        cpu.barrier(Barrier::DsbIshst);
        cpu.tlbi(Tlbi::Alle1is);
        cpu.barrier(Barrier::DsbIsh);
        cpu.barrier(Barrier::Isb);
    }

    #[inline]
    fn invalidate_local(&self, vm: Regime, ipa: Ipa, level: Option<Level>, va: Option<u64>) {
        self.instructions.barrier(Barrier::DsbNshst);
        self.with_vmid(&vm, |cpu| {
            cpu.tlbi(Tlbi::Ipas2le1(self.operand(&vm, ipa, level)));
            cpu.barrier(Barrier::DsbNsh);
            cpu.tlbi(match va {
                Some(va) => Tlbi::Vaae1(operand::virtual_address(va)),
                None => Tlbi::Vmalle1,
            });
            cpu.barrier(Barrier::DsbNsh);
            cpu.barrier(Barrier::Isb);
        });
    }

    fn publish_tables(&self) {
        self.instructions.barrier(Barrier::DsbIshst);
    }
}
