//! Guests without TLBs, on real address spaces. A guest's write is a step of its thread: it looks at the tables, notes dirty
//! state in them as hardware does, and writes to the page's own memory; or it faults. An invalidation is complete only when
//! what it overtakes is: a write that was decided on before counts as not begun.

use super::memory::Space;
use crate::in_place::{AtBroadcasts, InPlace};
use loom::sync::atomic::AtomicU64 as Modelled;
use memory::{Access, CpuMemory, Fault, FaultKind, FaultOutcome};
use stage2::sync::{full_barrier, relax};
use stage2::{Counters, Descriptor, Ipa, PAGE_SIZE, Step, Worker};
use std::ptr::with_exposed_provenance;
use std::sync::atomic::{AtomicU64, Ordering};

loom::lazy_static! {
    /// Invalidations that are complete.
    static ref COMPLETE: Modelled = Modelled::new(0);
}

/// How many invalidations are complete. What they stand for is seen by whoever asks.
fn complete() -> u64 {
    COMPLETE.fetch_add(0, Ordering::AcqRel)
}

/// TLB instructions that count.
pub type Overtaking = AtBroadcasts<fn()>;

/// Those.
pub const OVERTAKING: Overtaking = AtBroadcasts(invalidated);

fn invalidated() {
    full_barrier();
    COMPLETE.fetch_add(1, Ordering::AcqRel);
}

/// Adds one to the word at `ipa`, which begins a page, as hardware does if the tables allow it. Whether it did.
fn write_through(space: &Space, cpu: &CpuMemory<Overtaking>, ipa: Ipa) -> bool {
    let _guard = cpu.pin();
    let counters = Counters::default();
    let worker = Worker {
        memory: &InPlace,
        tlb: &OVERTAKING,
        epoch: &InPlace,
        counters: &counters,
    };
    let mut written = false;
    let before = complete();
    space
        .stage2()
        .walk(&worker, ipa..ipa.offset(PAGE_SIZE), |context| {
            let leaf = match context.descriptor {
                Descriptor::Table(_) => return Step::Descend,
                Descriptor::Leaf(leaf) => leaf,
                _ => return Step::Stop,
            };
            if !leaf.writable() {
                let dirty = leaf.with_write().with_accessed();
                if !leaf.hardware_dirty() || context.exchange(Some(dirty)).is_err() {
                    return Step::Stop;
                }
            }
            if complete() != before {
                return Step::Stop;
            }
            let word: *const AtomicU64 = with_exposed_provenance(leaf.pa().get() as usize);
            // SAFETY: the page is the slot's, of the arena, which lasts.
            unsafe { &*word }.fetch_add(1, Ordering::Relaxed);
            written = true;
            Step::Stop
        })
        .expect("a page");
    written
}

/// The guest of `vcpu` adds one to the word at `ipa`, which begins a page, faulting until it may.
pub fn write(space: &Space, cpu: &CpuMemory<Overtaking>, vcpu: usize, ipa: Ipa) {
    while !write_through(space, cpu, ipa) {
        fault(space, cpu, vcpu, ipa, Access::Write);
    }
}

/// One fault of `vcpu` is served.
pub fn fault(space: &Space, cpu: &CpuMemory<Overtaking>, vcpu: usize, ipa: Ipa, access: Access) {
    let fault = Fault {
        vcpu,
        ipa,
        va: None,
        access,
        kind: FaultKind::Permission,
    };
    match space.fault(cpu, &fault) {
        FaultOutcome::Resolved | FaultOutcome::RingLow => {}
        FaultOutcome::Retry | FaultOutcome::RingFull => relax(),
        other => panic!("{other:?}"),
    }
}

/// The word at `ipa`, as the hypervisor reads it.
pub fn in_memory(space: &Space, cpu: &CpuMemory<Overtaking>, ipa: Ipa) -> u64 {
    let mut bytes = [0; 8];
    space.read_guest(cpu, ipa, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}
