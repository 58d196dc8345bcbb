//! The checker's state apart from the trees: what each CPU has loaded, issued and ordered, and which CPUs may hold entries of
//! which VMID. All of it is behind the checker's lock.

use crate::cpus::CpuSet;
use crate::dirty::Ledger;
use crate::input::{Memory, Stamp, Tlbi};
use crate::operand::{Scope, scope};
use crate::regime::{Regime, Registers};
use crate::tlbs::Held;
use crate::tree::Tree;
use crate::violation::Violation;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// A TLB invalidation that was issued and isn't complete.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) operation: Tlbi,
    /// The regimes that its CPU may have been in.
    pub(crate) regimes: Vec<Regime>,
    pub(crate) issued: Stamp,
    /// Up to when the issuing CPU's own stores were ordered before it.
    pub(crate) ordered: Stamp,
}

impl Pending {
    /// The part of a tree that it is sure to invalidate: in every regime in which it may have been issued.
    fn scope(&self, tree: &Tree) -> Scope {
        let mut scopes = self.regimes.iter().map(|regime| {
            if self.operation == Tlbi::Alle1is || tree.vmid == Some(regime.vmid()) {
                scope(self.operation, tree.geometry(), regime.vtcr)
            } else {
                Scope::Nothing
            }
        });
        let first = scopes.next().unwrap_or(Scope::Nothing);
        if scopes.all(|other| other == first) {
            first
        } else {
            Scope::Nothing
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Cpu {
    pub(crate) registers: Registers,
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
                registers: Registers::new(),
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

    /// A context synchronisation event of a CPU. Trees that it may have had until now may be nobody's any more.
    pub(crate) fn synchronise(&mut self, cpu: usize) {
        for root in self.cpu(cpu).registers.synchronise() {
            if let Some(&number) = self.roots.get(&root) {
                self.settle(number);
            }
        }
    }

    /// A CPU begins to walk the loaded tree.
    pub(crate) fn enter(&mut self, cpu: usize, memory: &impl Memory, now: Stamp) -> Vec<Violation> {
        let regime = self.cpu(cpu).registers.written();
        let (root, vmid) = (regime.root(), regime.vmid());
        let number = self.roots.get(&root).copied();
        let Some((number, tree)) = number.and_then(|number| {
            let tree = self.trees.get_mut(&number)?;
            Some((number, tree))
        }) else {
            return Vec::new();
        };
        tree.wake(memory, now);
        let mut found = Vec::new();
        if !regime.vtcr.fits(tree.geometry()) {
            let vtcr = regime.vtcr.0;
            found.push(Violation::OtherRegime { root, cpu, vtcr });
        }
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
        found.extend(other.map(|other| Violation::VmidReused {
            root,
            vmid,
            other,
            cpu,
        }));
        found
    }

    /// Completes the invalidations of `cpu` that `meant` selects. Invalidations without a DSB between them may happen in any
    /// order: those of smaller scope go first, so that dropped entries may be formed again from the rest.
    pub(crate) fn complete(&mut self, cpu: usize, meant: impl Fn(Tlbi) -> bool) {
        let now = self.clock;
        let pending = &mut self.cpu(cpu).pending;
        let (mut due, rest): (Vec<_>, Vec<_>) =
            (pending.drain(..)).partition(|pending| meant(pending.operation));
        *pending = rest;
        due.sort_by_key(|pending| (strength(pending.operation), pending.issued));
        for pending in due {
            let operation = pending.operation;
            let is_whole = matches!(
                operation,
                Tlbi::Alle1is | Tlbi::Vmalls12e1is | Tlbi::Vmalls12e1
            );
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
            for tree in self.trees.values_mut() {
                let scope = pending.scope(tree);
                if scope != Scope::Nothing {
                    tree.invalidate(&scope, cpus, &covers, pending.issued, now);
                }
            }
            let mut vmids = pending.regimes.iter().map(|regime| regime.vmid());
            let vmid = vmids.next();
            if is_whole && operation == Tlbi::Alle1is {
                self.evict(cpu, cpus, None);
            } else if is_whole && vmids.all(|other| Some(other) == vmid) {
                self.evict(cpu, cpus, vmid);
            }
        }
    }

    /// Lets a tree rest if no CPU has it loaded or holds anything of it.
    pub(crate) fn settle(&mut self, number: u64) {
        let is_held =
            |(_, tenants): (&u16, &Vec<Tenant>)| tenants.iter().any(|tenant| tenant.tree == number);
        let root = self.trees.get(&number).map(|tree| tree.root);
        let is_loaded = |cpu: &Cpu| root.is_some_and(|root| cpu.registers.may_have(root));
        if self.tenants.iter().any(is_held) || self.cpus.iter().any(is_loaded) {
            return;
        }
        if let Some(tree) = self.trees.get_mut(&number) {
            tree.rest();
        }
    }

    /// After an invalidation of everything of a VMID (of all VMIDs, if none is named), only CPUs that have it loaded hold
    /// entries of it, except the issuing CPU.
    fn evict(&mut self, issuer: usize, cpus: CpuSet, vmid: Option<u16>) {
        let loaded: Vec<Vec<Regime>> = (self.cpus.iter())
            .map(|cpu| cpu.registers.possible().collect())
            .collect();
        let mut left = Vec::new();
        for (&found, tenants) in &mut self.tenants {
            if vmid.is_some_and(|vmid| vmid != found) {
                continue;
            }
            for tenant in &mut *tenants {
                let has = |regime: &Regime| regime.root() == tenant.root && regime.vmid() == found;
                let keeps = (loaded.iter().enumerate())
                    .filter(|(cpu, regimes)| *cpu != issuer && regimes.iter().any(has))
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
            .filter(|(_, cpu)| cpu.registers.may_have(root))
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
