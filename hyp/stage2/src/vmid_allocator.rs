//! Allocates VMIDs, with rollover (VTTBR_EL2.VMID, 8 or 16 bits).
//!
//! There are more VMs over time than VMIDs. A VMID belongs to a generation. When all are used up, a new generation begins with
//! an invalidation of every TLB entry of every VM. A VM that a CPU is running then keeps its VMID in the new generation.
//! Linux's ASID and KVM's VMID allocators use the same scheme.
//!
//! All CPUs may call [`VmidAllocator::activate`] at once. It takes a lock only if the VM has no VMID of the current generation,
//! or right after a rollover. It is called when a vCPU starts on a CPU, not on faults or exits.

use crate::address::Vmid;
use crate::tlb::Tlb;
use alloc::vec::Vec;
use core::fmt;
use spin::Mutex;

use crate::sync::{AtomicU64, Ordering};
use crate::vmid::{FIXED, NUMBER_BITS, VmidHolder, generation, number};

/// There are too many CPUs for the VMIDs: at a rollover each may hold one, and there has to be another one to give out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooFewVmids {
    /// The CPUs.
    pub cpus: usize,
    /// The bits of a VMID.
    pub bits: u32,
}

impl TooFewVmids {
    /// CPUs that VMIDs of so many bits are enough for: one is left over, and VMID 0 is never given out.
    const fn most_cpus(bits: u32) -> usize {
        (1 << bits) - 2
    }
}

impl fmt::Display for TooFewVmids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpus, bits } = self;
        let most = Self::most_cpus(*bits);
        write!(
            f,
            "this machine has {cpus} CPUs, and VMIDs of {bits} bits are enough for {most}: start it with fewer"
        )
    }
}

impl core::error::Error for TooFewVmids {}

/// Allocates VMIDs to VMs.
#[derive(Debug)]
pub struct VmidAllocator {
    generation: AtomicU64,
    /// What each CPU runs, or 0 since the last rollover.
    active: Vec<AtomicU64>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    used: Vec<u64>,
    next: u16,
    /// VMIDs of the last rollover that CPUs were running with.
    reserved: Vec<u64>,
}

impl VmidAllocator {
    /// For `cpus` CPUs whose VMIDs have `bits` bits (8 or 16).
    ///
    /// # Errors
    /// There are too few VMIDs for them: 8 bits are enough for 254 CPUs.
    pub fn new(cpus: usize, bits: u32) -> Result<Self, TooFewVmids> {
        if cpus > TooFewVmids::most_cpus(bits) {
            return Err(TooFewVmids { cpus, bits });
        }
        Ok(Self {
            generation: AtomicU64::new(1),
            active: (0..cpus).map(|_| AtomicU64::new(0)).collect(),
            state: Mutex::new(State {
                used: core::iter::repeat_n(0, (1usize << bits).div_ceil(64)).collect(),
                next: 1,
                reserved: core::iter::repeat_n(0, cpus).collect(),
            }),
        })
    }

    /// Makes sure that the VM has a VMID, and notes that `cpu` runs it from now on. At a rollover, invalidates all TLBs before
    /// it returns. An invalidation for the VM either uses the VMID returned here, or its table changes are visible before the
    /// guest walks the tables here (rule 12).
    ///
    /// # Panics
    /// The VM has a VMID of its own ([`VmidHolder::fixed`]).
    pub fn activate(&self, cpu: usize, holder: &VmidHolder, tlb: &impl Tlb) -> Vmid {
        let active = &self.active[cpu];
        let held = holder.value.load(Ordering::Acquire);
        let was = active.load(Ordering::Relaxed);
        // SeqCst with the rollover's increment and swap: either this exchange sees that the rollover took `was` away, or
        // the rollover sees `held` and reserves it.
        if was != 0
            && generation(held) == self.generation.load(Ordering::SeqCst)
            && active
                .compare_exchange(was, held, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
        {
            return Vmid(number(held));
        }
        let mut state = self.state.lock();
        let mut held = holder.value.load(Ordering::Relaxed);
        assert!(generation(held) != FIXED, "this VM has its own VMID");
        if generation(held) != self.generation.load(Ordering::Relaxed) {
            held = self.renew(&mut state, held, tlb);
            holder.value.store(held, Ordering::Release);
            // Before any walk by it: pairs with the barrier between a change of the tables and the look at the VMID.
            // CPUs that only find it need none: their walks depend on what they have read here, and memory is
            // multi-copy atomic.
            tlb.publish_tables();
        }
        active.store(held, Ordering::SeqCst);
        Vmid(number(held))
    }

    fn renew(&self, state: &mut State, old: u64, tlb: &impl Tlb) -> u64 {
        let current = self.generation.load(Ordering::Relaxed);
        if old != 0 {
            let renewed = current << NUMBER_BITS | u64::from(number(old));
            let mut kept = false;
            for reserved in state
                .reserved
                .iter_mut()
                .filter(|reserved| **reserved == old)
            {
                *reserved = renewed;
                kept = true;
            }
            if kept || state.take(number(old)) {
                return renewed;
            }
        }
        if let Some(fresh) = state.take_any() {
            return current << NUMBER_BITS | u64::from(fresh);
        }
        let next = current + 1;
        self.generation.store(next, Ordering::SeqCst);
        self.begin_generation(state);
        tlb.invalidate_all_vmids();
        let fresh = (state.take_any())
            .expect("there are more VMIDs than CPUs hold, or there were no allocator");
        next << NUMBER_BITS | u64::from(fresh)
    }

    fn begin_generation(&self, state: &mut State) {
        state.used.fill(0);
        state.next = 1;
        for (cpu, active) in self.active.iter().enumerate() {
            let running = match active.swap(0, Ordering::SeqCst) {
                0 => state.reserved[cpu],
                vmid => vmid,
            };
            if running != 0 {
                state.take(number(running));
            }
            state.reserved[cpu] = running;
        }
    }
}

impl State {
    /// Marks a VMID as used; whether it was free.
    fn take(&mut self, vmid: u16) -> bool {
        let (word, bit) = (usize::from(vmid) / 64, 1 << (vmid % 64));
        let free = self.used[word] & bit == 0;
        self.used[word] |= bit;
        free
    }

    fn take_any(&mut self) -> Option<u16> {
        let count = self.used.len() * 64;
        let vmid =
            (usize::from(self.next)..count).find(|&v| self.used[v / 64] & 1 << (v % 64) == 0)?;
        // VMID 0 is skipped by `next` starting at 1. Wraps only from 65535, after which the search finds nothing.
        self.next = (vmid as u16).saturating_add(1);
        self.take(vmid as u16).then_some(vmid as u16)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::address::{Ipa, IpaRange, Level};
    use crate::tlb::Regime;
    use core::sync::atomic::AtomicUsize;
    use proptest::prelude::*;

    /// Counts what a rollover invalidates.
    #[derive(Default)]
    struct Flushes(AtomicUsize);

    impl Tlb for Flushes {
        fn invalidate_leaf(&self, _: Regime<'_>, _: Ipa, _: Option<Level>) {}
        fn invalidate_range(&self, _: Regime<'_>, _: IpaRange, _: bool) {}
        fn invalidate_vmid(&self, _: Regime<'_>) {}
        fn invalidate_all_vmids(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn invalidate_local(&self, _: Regime<'_>, _: Ipa, _: Option<Level>, _: Option<u64>) {}
        fn publish_tables(&self) {}
    }

    #[test]
    fn all_vmids_but_zero_are_given_out_before_a_rollover() {
        // 65,535 of them take Miri minutes.
        let most = if cfg!(miri) { 8 } else { 16 };
        for bits in [8, most] {
            let (allocator, flushes) = (VmidAllocator::new(2, bits).unwrap(), Flushes::default());
            let mut seen = alloc::vec![false; 1 << bits];
            for _ in 1..1 << bits {
                let vmid = allocator.activate(0, &VmidHolder::new(), &flushes);
                assert!(!core::mem::replace(&mut seen[usize::from(vmid.0)], true));
            }
            assert!(!seen[0] && flushes.0.load(Ordering::Relaxed) == 0);
            allocator.activate(0, &VmidHolder::new(), &flushes);
            assert_eq!(flushes.0.load(Ordering::Relaxed), 1);
        }
    }

    #[test]
    fn as_many_cpus_as_vmids_are_refused_and_one_less_works() {
        let refused = VmidAllocator::new(255, 8).unwrap_err();
        assert_eq!(refused, TooFewVmids { cpus: 255, bits: 8 });
        assert_eq!(
            alloc::string::ToString::to_string(&refused),
            "this machine has 255 CPUs, and VMIDs of 8 bits are enough for 254: start it with fewer"
        );
        assert!(VmidAllocator::new(65_535, 16).is_err());
        // All run a VM of their own, and go over to another one: through rollovers, no two share a VMID.
        let (allocator, flushes) = (VmidAllocator::new(254, 8).unwrap(), Flushes::default());
        let vms: Vec<_> = (0..3 * 254).map(|_| VmidHolder::new()).collect();
        for (turn, vm) in vms.iter().enumerate() {
            allocator.activate(turn % 254, vm, &flushes);
            let running = &vms[turn.saturating_sub(253)..=turn];
            let mut seen = [false; 256];
            for vm in running {
                let vmid = usize::from(vm.current().0);
                assert!(vmid != 0 && !core::mem::replace(&mut seen[vmid], true));
            }
        }
        assert!(flushes.0.load(Ordering::Relaxed) > 0);
    }

    #[test]
    fn a_vm_that_runs_through_rollovers_keeps_its_vmid() {
        let (allocator, flushes) = (VmidAllocator::new(2, 8).unwrap(), Flushes::default());
        let runs = VmidHolder::new();
        let vmid = allocator.activate(1, &runs, &flushes);
        for _ in 0..1000 {
            assert_ne!(allocator.activate(0, &VmidHolder::new(), &flushes), vmid);
        }
        assert!(flushes.0.load(Ordering::Relaxed) >= 3);
        assert_eq!(allocator.activate(1, &runs, &flushes), vmid);
    }

    #[test]
    fn cpus_that_start_vms_at_once_never_share_a_vmid() {
        extern crate std;
        const CPUS: usize = 4;
        const ROUNDS: usize = if cfg!(miri) { 30 } else { 5000 };
        let (allocator, flushes) = (VmidAllocator::new(CPUS, 8).unwrap(), Flushes::default());
        let running: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
        std::thread::scope(|scope| {
            for cpu in 0..CPUS {
                let (allocator, flushes, running) = (&allocator, &flushes, &running);
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        running[cpu].store(0, Ordering::SeqCst);
                        let vmid = allocator.activate(cpu, &VmidHolder::new(), flushes);
                        running[cpu].store(vmid.0.into(), Ordering::SeqCst);
                        let others = (0..CPUS).filter(|other| *other != cpu);
                        for other in others {
                            assert_ne!(running[other].load(Ordering::SeqCst), u64::from(vmid.0));
                        }
                    }
                });
            }
        });
    }

    /// Enough for several rollovers; Miri gets to the first one.
    const STARTS: usize = if cfg!(miri) { 400 } else { 2000 };

    proptest! {
        #![proptest_config(crate::tests::cases())]

        #[test]
        fn a_vmid_changes_hands_only_over_an_invalidation(
            starts in prop::collection::vec((0..3usize, 0..400usize), 1..STARTS),
        ) {
            let (allocator, flushes) = (VmidAllocator::new(3, 8).unwrap(), Flushes::default());
            let vms: alloc::vec::Vec<_> = (0..400).map(|_| VmidHolder::new()).collect();
            let mut last_user = [None::<(usize, usize)>; 256];
            let mut runs = [None; 3];
            for (cpu, vm) in starts {
                let vmid = allocator.activate(cpu, &vms[vm], &flushes);
                runs[cpu] = Some(vm);
                let flushed = flushes.0.load(Ordering::Relaxed);
                if let Some((user, then)) = last_user[usize::from(vmid.0)] {
                    prop_assert!(user == vm || flushed > then);
                }
                last_user[usize::from(vmid.0)] = Some((vm, flushed));
                for other in runs.iter().flatten() {
                    prop_assert!(*other == vm || vms[*other].current() != vmid);
                }
            }
        }
    }
}
