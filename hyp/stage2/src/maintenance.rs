//! TLB maintenance sequences built from the architecture's instructions (Arm ARM D8.17).
//!
//! The sequences are here, and the instructions come in through [`Instructions`], so that they run on a model of the machine
//! too. They act on the VMID in the issuing CPU's VTTBR_EL2, as wide as its VTCR_EL2 says that VMIDs are ([`RegimeRegisters`]).
//! A CPU that runs a vCPU has the values of its VM; any other sets both registers for the duration and then restores them, so
//! that no walk starts from a VM's tables when nobody vouches for them. An invalidation by IPA leaves entries that combine
//! stage 1 and 2. So those of the whole VMID are invalidated afterwards, once the first invalidation has completed: any
//! earlier, they could be formed again from stage-2 entries not yet invalidated.
//!
//! The VM's VMID is read after the barrier that orders the change of its tables (rule 12). A CPU on which the VM gets another
//! VMID meanwhile ([`VmidAllocator::activate`](crate::VmidAllocator::activate)) orders that store before its guest's first
//! walk. So either it walks the changed tables, or its VMID is the one that is invalidated.

use crate::address::{Ipa, IpaRange, Level};
use crate::tlb::{Regime, Tlb};
use crate::tlbi_operand::{self, Piece, Pieces};

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
    ///
    /// With HCR_EL2.TGE clear, also where EL2 runs with VHE: with E2H and TGE both set, as a host under VHE has them,
    /// instructions for EL1 act on EL2's own translation (Arm ARM D8.17), and every stage-2 entry stays in the TLBs. Who runs
    /// so clears TGE around the instruction (an ISB after it is cleared, another one after it is set again).
    fn tlbi(&self, operation: Tlbi);

    /// Issues a barrier.
    fn barrier(&self, barrier: Barrier);

    /// What VTTBR_EL2 holds.
    fn vttbr(&self) -> u64;

    /// Writes VTTBR_EL2, which takes effect with the next ISB or exception return. No guest runs on this CPU until it
    /// holds a running VM's value again.
    fn set_vttbr(&self, value: u64);

    /// What VTCR_EL2 holds.
    fn vtcr(&self) -> u64;

    /// Writes VTCR_EL2. As [`Self::set_vttbr`].
    fn set_vtcr(&self, value: u64);
}

/// The registers that select a CPU's stage-2 regime, for walks and TLB maintenance. They change together (rule 12): one holds
/// the VMID, the other its width and the format of operands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegimeRegisters {
    /// VTTBR_EL2: root table and VMID.
    pub vttbr: u64,
    /// VTCR_EL2: IPA size, granule, walk attributes, width of VMIDs.
    pub vtcr: u64,
}

impl RegimeRegisters {
    /// A CPU's values before its first VM: only VTCR_EL2's RES1 bit.
    pub const NONE: Self = Self {
        vttbr: 0,
        vtcr: 1 << 31,
    };

    /// Loads them into the CPU. On return they are in effect.
    #[inline]
    pub fn load(self, cpu: &impl Instructions) {
        cpu.set_vtcr(self.vtcr);
        cpu.set_vttbr(self.vttbr);
        cpu.barrier(Barrier::Isb);
    }

    /// The CPU's current values.
    #[inline]
    pub fn of(cpu: &impl Instructions) -> Self {
        Self {
            vttbr: cpu.vttbr(),
            vtcr: cpu.vtcr(),
        }
    }
}

/// Which TLB instructions to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TlbPolicy {
    /// FEAT_TLBIRANGE: there are instructions by range.
    pub range: bool,
    /// FEAT_TTL: operands may carry a level.
    pub level_hint: bool,
    /// The most instructions of one invalidation. With more, invalidating the whole VMID is cheaper: its combined entries are
    /// invalidated anyway.
    pub most_instructions: u32,
}

/// TLB maintenance by one CPU's instructions.
#[derive(Clone, Copy, Debug)]
pub struct Maintenance<I> {
    instructions: I,
    policy: TlbPolicy,
    /// All of the hint in operands where they may carry a level, else nothing of it.
    hint_mask: u64,
}

impl<I: Instructions> Maintenance<I> {
    /// With the calling CPU's instructions, as `policy` says.
    pub const fn new(instructions: I, policy: TlbPolicy) -> Self {
        Self {
            instructions,
            policy,
            hint_mask: if policy.level_hint { u64::MAX } else { 0 },
        }
    }

    /// The instructions.
    pub const fn instructions(&self) -> &I {
        &self.instructions
    }

    #[inline]
    fn operand(&self, vm: &Regime<'_>, ipa: Ipa, level: Option<Level>) -> u64 {
        let hint = if self.policy.level_hint { level } else { None };
        tlbi_operand::address(vm.granule(), ipa, hint)
    }

    /// Runs `operations` in the regime of `vm`, after a barrier that orders the change of its tables.
    #[inline(always)]
    fn within(&self, vm: &Regime<'_>, ordered_by: Barrier, operations: impl FnOnce(&I)) {
        let cpu = &self.instructions;
        cpu.barrier(ordered_by);
        let vttbr = vm.vttbr().bits();
        // VTCR_EL2 came with it.
        if cpu.vttbr() == vttbr {
            return operations(cpu);
        }
        let before = RegimeRegisters::of(cpu);
        let vtcr = vm.vtcr();
        RegimeRegisters { vttbr, vtcr }.load(cpu);
        operations(cpu);
        before.load(cpu);
    }

    /// [`Tlb::invalidate_local_page`] for a VM that isn't this CPU's.
    #[cold]
    #[inline(never)]
    fn invalidate_local_of_other(&self, vm: Regime<'_>, ipa: Ipa, va: Option<u64>) {
        self.invalidate_local(vm, vm.page_of(ipa), vm.hint(Level::L3), va);
    }

    /// Whether `range` takes no more instructions than one invalidation may be made of.
    fn is_few(&self, vm: &Regime<'_>, range: &IpaRange) -> bool {
        let most = self.policy.most_instructions as usize;
        let pages = range.end.get().saturating_sub(range.start.get()) >> vm.granule().page_shift();
        if self.policy.range {
            (Pieces::new(vm.granule(), vm.wide(), range).nth(most)).is_none()
        } else {
            pages <= most as u64
        }
    }

    fn by_range(cpu: &I, vm: &Regime<'_>, range: &IpaRange, tables: bool) {
        for piece in Pieces::new(vm.granule(), vm.wide(), range) {
            cpu.tlbi(match (piece, tables) {
                (Piece::Page(operand), true) => Tlbi::Ipas2e1is(operand),
                (Piece::Page(operand), false) => Tlbi::Ipas2le1is(operand),
                (Piece::Range(operand), true) => Tlbi::Ripas2e1is(operand),
                (Piece::Range(operand), false) => Tlbi::Ripas2le1is(operand),
            });
        }
    }

    fn by_page(cpu: &I, vm: &Regime<'_>, range: &IpaRange, tables: bool) {
        let mut ipa = range.start;
        while ipa < range.end {
            let operand = tlbi_operand::address(vm.granule(), ipa, None);
            cpu.tlbi(if tables {
                Tlbi::Ipas2e1is(operand)
            } else {
                Tlbi::Ipas2le1is(operand)
            });
            ipa = ipa.offset(1 << vm.granule().page_shift());
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

/// What drops this CPU's combined entries for `va`, or all of the VMID's.
#[inline(always)]
fn combined(va: Option<u64>) -> Tlbi {
    match va {
        Some(va) => Tlbi::Vaae1(tlbi_operand::virtual_address(va)),
        None => Tlbi::Vmalle1,
    }
}

impl<I: Instructions> Tlb for Maintenance<I> {
    fn invalidate_leaf(&self, vm: Regime<'_>, ipa: Ipa, level: Option<Level>) {
        self.within(&vm, Barrier::DsbIshst, |cpu| {
            cpu.tlbi(Tlbi::Ipas2le1is(self.operand(&vm, ipa, level)));
            drop_combined(cpu);
        });
    }

    fn invalidate_range(&self, vm: Regime<'_>, range: IpaRange, tables: bool) {
        if !self.is_few(&vm, &range) {
            return self.invalidate_vmid(vm);
        }
        self.within(&vm, Barrier::DsbIshst, |cpu| {
            if self.policy.range {
                Self::by_range(cpu, &vm, &range, tables);
            } else {
                Self::by_page(cpu, &vm, &range, tables);
            }
            drop_combined(cpu);
        });
    }

    fn invalidate_vmid(&self, vm: Regime<'_>) {
        self.within(&vm, Barrier::DsbIshst, |cpu| {
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

    #[inline(always)]
    fn invalidate_local(&self, vm: Regime<'_>, ipa: Ipa, level: Option<Level>, va: Option<u64>) {
        self.within(&vm, Barrier::DsbNshst, |cpu| {
            cpu.tlbi(Tlbi::Ipas2le1(self.operand(&vm, ipa, level)));
            cpu.barrier(Barrier::DsbNsh);
            cpu.tlbi(combined(va));
            cpu.barrier(Barrier::DsbNsh);
        });
    }

    #[inline(always)]
    fn invalidate_local_page(&self, vm: Regime<'_>, ipa: Ipa, va: Option<u64>) {
        let cpu = &self.instructions;
        let operand = tlbi_operand::with_hint(ipa, vm.page_hint() & self.hint_mask);
        cpu.barrier(Barrier::DsbNshst);
        if cpu.vttbr() != vm.vttbr().bits() {
            return self.invalidate_local_of_other(vm, ipa, va);
        }
        cpu.tlbi(Tlbi::Ipas2le1(operand));
        cpu.barrier(Barrier::DsbNsh);
        cpu.tlbi(combined(va));
        cpu.barrier(Barrier::DsbNsh);
    }

    fn publish_tables(&self) {
        self.instructions.barrier(Barrier::DsbIshst);
    }
}
