//! What the monitor knows beside the trees: what CPUs have loaded, issued and ordered, and who may hold what under which
//! VMID. All of it is behind the monitor's lock.

use crate::cpus::CpuSet;
use crate::dirty::Ledger;
use crate::input::Tlbi;
use crate::monitor::{Memory, Stamp};
use crate::operand::scope;
use crate::tlbs::Held;
use crate::tree::Tree;
use crate::violation::Violation;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// A TLB invalidation that was issued and isn't complete.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) operation: Tlbi,
    pub(crate) vmid: u16,
    pub(crate) issued: Stamp,
    /// Up to when the issuing CPU's own stores were ordered before it.
    pub(crate) ordered: Stamp,
}

#[derive(Clone, Debug)]
pub(crate) struct Cpu {
    pub(crate) vttbr: u64,
    /// Its last DSB for all CPUs, and for itself only.
    pub(crate) ordered: Stamp,
    pub(crate) ordered_here: Stamp,
    pub(crate) pending: Vec<Pending>,
}

/// Who may hold entries of a tree under a VMID.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) tree: u64,
    pub(crate) root: u64,
    pub(crate) cpus: CpuSet,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) clock: Stamp,
    /// By a number of their own: roots' addresses come back.
    pub(crate) trees: BTreeMap<u64, Tree>,
    pub(crate) roots: BTreeMap<u64, u64>,
    pub(crate) next: u64,
    pub(crate) cpus: Vec<Cpu>,
    /// Table frames that were allocated and not linked yet: by whom, when.
    pub(crate) fresh: BTreeMap<u64, (usize, Stamp)>,
    pub(crate) tenants: BTreeMap<u16, Vec<Tenant>>,
    pub(crate) dirty: Ledger,
}

impl State {
    pub(crate) const fn new() -> Self {
        Self {
            clock: Stamp(0),
            trees: BTreeMap::new(),
            roots: BTreeMap::new(),
            next: 0,
            cpus: Vec::new(),
            fresh: BTreeMap::new(),
            tenants: BTreeMap::new(),
            dirty: Ledger::new(),
        }
    }

    pub(crate) fn tick(&mut self) -> Stamp {
        self.clock.0 += 1;
        self.clock
    }

    pub(crate) fn cpu(&mut self, cpu: usize) -> &mut Cpu {
        if self.cpus.len() <= cpu {
            let fresh = Cpu {
                vttbr: 0,
                ordered: Stamp(0),
                ordered_here: Stamp(0),
                pending: Vec::new(),
            };
            self.cpus.resize(cpu + 1, fresh);
        }
        &mut self.cpus[cpu]
    }

    pub(crate) fn tree(&self, root: u64) -> Option<&Tree> {
        self.trees.get(self.roots.get(&root)?)
    }

    pub(crate) fn load(
        &mut self,
        cpu: usize,
        value: u64,
        memory: &impl Memory,
        now: Stamp,
    ) -> Option<Violation> {
        let (root, vmid) = (root_of(value), vmid_of(value));
        let number = *self.roots.get(&root)?;
        let tree = self.trees.get_mut(&number)?;
        tree.wake(memory, now);
        let moved = tree.vmid.is_some_and(|old| old != vmid);
        tree.vmid = Some(vmid);
        let tenants = self.tenants.entry(vmid).or_default();
        let other = (tenants.iter())
            .find(|tenant| tenant.cpus.contains(cpu) && (tenant.tree != number || moved))
            .map(|tenant| tenant.root);
        match tenants.iter_mut().find(|tenant| tenant.tree == number) {
            Some(tenant) => tenant.cpus = tenant.cpus | CpuSet::only(cpu),
            None => tenants.push(Tenant {
                tree: number,
                root,
                cpus: CpuSet::only(cpu),
            }),
        }
        other.map(|other| Violation::VmidReused {
            root,
            vmid,
            other,
            cpu,
        })
    }

    /// Completes the invalidations of `cpu` that `meant` picks. What a DSB doesn't separate may have happened in any
    /// order: what drops less goes first, so that the rest may bring it back.
    pub(crate) fn complete(&mut self, cpu: usize, meant: impl Fn(Tlbi) -> bool) {
        let now = self.clock;
        let pending = &mut self.cpu(cpu).pending;
        let (mut due, rest): (Vec<_>, Vec<_>) =
            (pending.drain(..)).partition(|pending| meant(pending.operation));
        *pending = rest;
        due.sort_by_key(|pending| (strength(pending.operation), pending.issued));
        for pending in due {
            let operation = pending.operation;
            let cpus = if operation.is_local() {
                CpuSet::only(cpu)
            } else {
                CpuSet::ALL
            };
            let covers = |held: &Held| {
                let visible = if held.writer == Some(cpu) {
                    pending.ordered
                } else {
                    pending.issued
                };
                held.since < visible
            };
            let everyone = operation == Tlbi::Alle1is;
            for tree in self.trees.values_mut() {
                if everyone || tree.vmid == Some(pending.vmid) {
                    let scope = scope(operation, tree.geometry());
                    tree.invalidate(&scope, cpus, &covers, pending.issued, now);
                }
            }
            if matches!(
                operation,
                Tlbi::Alle1is | Tlbi::Vmalls12e1is | Tlbi::Vmalls12e1
            ) {
                self.evict(cpu, cpus, pending.vmid, everyone);
            }
        }
    }

    /// Lets a tree rest if no CPU has it loaded or holds anything of it.
    pub(crate) fn settle(&mut self, number: u64) {
        let is_held =
            |(_, tenants): (&u16, &Vec<Tenant>)| tenants.iter().any(|tenant| tenant.tree == number);
        let is_loaded = |cpu: &Cpu| self.roots.get(&root_of(cpu.vttbr)) == Some(&number);
        if self.tenants.iter().any(is_held) || self.cpus.iter().any(is_loaded) {
            return;
        }
        if let Some(tree) = self.trees.get_mut(&number) {
            tree.rest();
        }
    }

    /// After everything of a VMID was dropped, only those CPUs hold it that have it loaded; but for the one that did it.
    pub(crate) fn evict(&mut self, issuer: usize, cpus: CpuSet, vmid: u16, everyone: bool) {
        let loaded: Vec<u64> = self.cpus.iter().map(|cpu| cpu.vttbr).collect();
        let mut left = Vec::new();
        for (&found, tenants) in &mut self.tenants {
            if !everyone && found != vmid {
                continue;
            }
            for tenant in &mut *tenants {
                let keeps = (loaded.iter().enumerate())
                    .filter(|(cpu, value)| {
                        *cpu != issuer
                            && root_of(**value) == tenant.root
                            && vmid_of(**value) == found
                    })
                    .fold(CpuSet::NONE, |set, (cpu, _)| set | CpuSet::only(cpu));
                tenant.cpus = tenant.cpus & (!cpus | keeps);
            }
            let gone = tenants.extract_if(.., |tenant| tenant.cpus.is_empty());
            left.extend(gone.map(|tenant| tenant.tree));
        }
        self.tenants.retain(|_, tenants| !tenants.is_empty());
        for tree in left {
            self.settle(tree);
        }
    }

    pub(crate) fn retire(&mut self, root: u64) -> Vec<Violation> {
        self.tick();
        let Some(number) = self.roots.get(&root).copied() else {
            return Vec::new();
        };
        let loaded = (self.cpus.iter().enumerate())
            .filter(|(_, cpu)| root_of(cpu.vttbr) == root)
            .fold(CpuSet::NONE, |set, (cpu, _)| set | CpuSet::only(cpu));
        let holding = (self.tenants.values().flatten())
            .filter(|tenant| tenant.tree == number)
            .fold(CpuSet::NONE, |set, tenant| set | tenant.cpus);
        if let Some(tree) = self.trees.get_mut(&number) {
            tree.retire();
        }
        [(loaded, true), (holding & !loaded, false)]
            .into_iter()
            .filter(|(cpus, _)| !cpus.is_empty())
            .map(|(cpus, loaded)| Violation::Abandoned { root, cpus, loaded })
            .collect()
    }
}

/// How much an invalidation drops that others can bring back.
fn strength(operation: Tlbi) -> u32 {
    match operation {
        Tlbi::Vmalle1is | Tlbi::Vmalle1 | Tlbi::Vaae1(_) | Tlbi::Vae2is(_) | Tlbi::Alle2is => 0,
        Tlbi::Ipas2le1is(_) | Tlbi::Ipas2le1(_) | Tlbi::Ripas2le1is(_) => 1,
        Tlbi::Ipas2e1is(_) | Tlbi::Ipas2e1(_) | Tlbi::Ripas2e1is(_) => 2,
        Tlbi::Vmalls12e1is | Tlbi::Vmalls12e1 | Tlbi::Alle1is => 3,
    }
}

/// VTTBR_EL2.BADDR: bits 47 to 1, with bits 51 to 48 of the address in 5 to 2 where roots are aligned enough.
pub(crate) fn root_of(vttbr: u64) -> u64 {
    const ADDRESS: u64 = 0x0000_ffff_ffff_ffc0;
    vttbr & ADDRESS | (vttbr >> 2 & 0xf) << 48
}

/// VTTBR_EL2.VMID.
pub(crate) fn vmid_of(vttbr: u64) -> u16 {
    (vttbr >> 48) as u16
}
