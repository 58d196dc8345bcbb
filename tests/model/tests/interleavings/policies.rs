//! Every policy of the dirty log beside writes, under every interleaving: rules 8 and 9 on the real address space, its rings
//! and bitmaps. What the harness has copied when the guest has stopped is the guest's memory.
//!
//! A guest's write is a step of its thread ([`overtaking`]): `tracking.rs`, `changes.rs` and `tables.rs` have TLBs.
//!
//! Bounds: pages, no blocks, in a tree of two levels
//! with four entries each, rings of two entries; two or three CPUs, each a thread, beside a main thread that waits; at most so
//! many preemptions per execution as the first argument of `explore` says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memory::{CpuMemory, DirtyPages, LogPolicy, SlotId, Tracking};
use model::checked::memory::{Space, cpu_with, nothing_is_left, nothing_is_left_so_far, vm_id};
use model::checked::overtaking::{self, OVERTAKING, Overtaking};
use model::checked::{alone, every_execution, page};
use stage2::{Features, Layout, Level, PAGE_SIZE};

const SLOT: SlotId = SlotId(0);
const PAGES: u64 = 3;

const PROTECT: LogPolicy = LogPolicy {
    tracking: Tracking::WriteProtect,
    splitting: memory::Splitting::AtFault,
    granularity: memory::Granularity::Page,
    initially_set: false,
    ring: false,
};
const PROTECT_ALL_SET: LogPolicy = LogPolicy {
    initially_set: true,
    ..PROTECT
};
const HARDWARE: LogPolicy = LogPolicy {
    tracking: Tracking::Hardware,
    ..PROTECT
};
const HARDWARE_ALL_SET: LogPolicy = LogPolicy {
    initially_set: true,
    ..HARDWARE
};
const RING: LogPolicy = LogPolicy {
    ring: true,
    ..PROTECT
};
const POLICIES: [LogPolicy; 5] = [PROTECT, PROTECT_ALL_SET, HARDWARE, HARDWARE_ALL_SET, RING];

/// What the harness has copied of each page, in one execution.
static COPY: [AtomicU64; PAGES as usize] = [const { AtomicU64::new(0) }; PAGES as usize];

type Cpu = CpuMemory<Overtaking>;

fn cpu(number: usize) -> Cpu {
    cpu_with(number, OVERTAKING)
}

/// An address space with one slot of a few pages.
fn space(cpu: &Cpu) -> Space {
    let features = Features {
        hardware_access: true,
        hardware_dirty: true,
        ..Features::armv8_0(32, 48)
    };
    let layout = Layout::small(Level::L2, features);
    let mut space = Space::new(cpu, vm_id(0), layout).unwrap();
    space.make_rings(2, 2).unwrap();
    space
        .add_slot(cpu, SLOT, page(0), PAGES * PAGE_SIZE, Level::L3, false)
        .unwrap();
    space
}

/// Not the first page: a ring's entry that was never written names that.
fn write(space: &Space, cpu: &Cpu) {
    overtaking::write(space, cpu, 0, page(1));
}

fn write_by_second(space: &Space, cpu: &Cpu) {
    overtaking::write(space, cpu, 1, page(1));
}

fn in_memory(space: &Space, cpu: &Cpu, number: u64) -> u64 {
    overtaking::in_memory(space, cpu, page(number))
}

fn copy(space: &Space, cpu: &Cpu, number: u64) {
    COPY[number as usize].store(in_memory(space, cpu, number), Ordering::Relaxed);
}

/// Starts to log; and to copy, if not all of it is dirty to begin with.
fn enable(space: &Space, cpu: &Cpu, policy: &LogPolicy) {
    space.enable_dirty_log(cpu, SLOT, policy).unwrap();
    for number in (0..PAGES).filter(|_| !policy.initially_set) {
        copy(space, cpu, number);
    }
}

fn disable(space: &Space, cpu: &Cpu) {
    space.disable_dirty_log(cpu, SLOT).unwrap();
}

fn harvest_rings(space: &Space, cpu: &Cpu) {
    let none = DirtyPages {
        slot: SLOT,
        first: 0,
        count: 0,
    };
    for vcpu in 0..2 {
        let mut pages = [none; 2];
        let count = space.harvest_ring(cpu, vcpu, &mut pages);
        for pages in &pages[..count] {
            copy(space, cpu, pages.first);
        }
    }
}

fn copy_named(space: &Space, cpu: &Cpu, bitmap: u64) {
    for number in (0..PAGES).filter(|page| bitmap & 1 << page != 0) {
        copy(space, cpu, number);
    }
}

/// Gets and clears in one, and rings.
fn harvest(space: &Space, cpu: &Cpu) {
    harvest_rings(space, cpu);
    let mut bitmap = [0];
    space
        .get_and_clear_dirty_log(cpu, SLOT, 0, &mut bitmap)
        .unwrap();
    copy_named(space, cpu, bitmap[0]);
}

/// Gets, then clears what there was.
fn get_then_clear(space: &Space, cpu: &Cpu) {
    let mut bitmap = [0];
    space.get_dirty_log(cpu, SLOT, 0, &mut bitmap).unwrap();
    space.clear_dirty_log(cpu, SLOT, 0, &mut bitmap).unwrap();
    copy_named(space, cpu, bitmap[0]);
}

type Act = Box<dyn Fn(&Space, &Cpu) + Send + Sync>;

fn act(act: impl Fn(&Space, &Cpu) + Send + Sync + 'static) -> Act {
    Box::new(act)
}

/// Tries every execution, with at most so many preemptions, in which `prepare` runs on CPU 0, then each of `race` at once
/// with the others; then the guest has stopped, and the last harvest makes the copy whole. One test at a time, as all share
/// the pool.
fn explore<const N: usize>(preemptions: usize, prepare: Act, race: [Act; N]) {
    let _alone = alone();
    let race = race.map(|act| move |space: &Space, number| act(space, &cpu(number)));
    every_execution(preemptions, race, move |run| {
        for copied in &COPY {
            copied.store(u64::MAX, Ordering::Relaxed);
        }
        let own = cpu(0);
        let space = Arc::new(space(&own));
        prepare(&space, &own);
        run(&space);
        harvest(&space, &own);
        for number in 0..PAGES {
            let copied = COPY[number as usize].load(Ordering::Relaxed);
            let written = in_memory(&space, &own, number);
            assert_eq!(
                copied, written,
                "rule 9: writes to page {number} that the copy has, and that there were"
            );
        }
        let space = Arc::into_inner(space).expect("the threads have ended");
        space.destroy(&own);
        own.wait_for_epoch();
        nothing_is_left_so_far(1);
    });
    nothing_is_left(1);
}

#[test]
fn rule_8_no_write_is_lost_while_logging_is_enabled() {
    for policy in POLICIES {
        let begin = act(move |space, cpu| enable(space, cpu, &policy));
        explore(3, act(|_, _| {}), [begin, act(write)]);
        let begin = act(move |space, cpu| enable(space, cpu, &policy));
        explore(3, act(write), [begin, act(write)]);
        let begin = act(move |space, cpu| enable(space, cpu, &policy));
        explore(2, act(write), [begin, act(write), act(write_by_second)]);
    }
}

#[test]
fn rule_9_no_write_is_lost_beside_a_harvest() {
    for policy in POLICIES {
        for prepared in [false, true] {
            for take in [harvest, get_then_clear] {
                let prepare = move || {
                    act(move |space: &Space, cpu: &Cpu| {
                        enable(space, cpu, &policy);
                        if prepared {
                            harvest(space, cpu);
                        }
                        write(space, cpu);
                    })
                };
                explore(3, prepare(), [act(take), act(write)]);
                explore(2, prepare(), [act(take), act(write), act(write_by_second)]);
            }
        }
    }
}

/// A fault that is decided on one log, and meets the next.
#[test]
fn rule_8_no_write_is_lost_while_a_log_replaces_another() {
    for (first, second) in POLICIES
        .iter()
        .flat_map(|first| POLICIES.map(|second| (*first, second)))
    {
        let prepare = move |dirty: bool| {
            act(move |space: &Space, cpu: &Cpu| {
                if dirty {
                    write(space, cpu);
                }
                enable(space, cpu, &first);
            })
        };
        let switch = move || {
            act(move |space: &Space, cpu: &Cpu| {
                disable(space, cpu);
                enable(space, cpu, &second);
            })
        };
        explore(2, prepare(false), [switch(), act(write)]);
        explore(2, prepare(true), [switch(), act(write)]);
    }
}

#[test]
fn rule_9_no_write_is_lost_while_a_log_replaces_another_beside_two_writers() {
    for (first, second) in [
        (HARDWARE, PROTECT),
        (RING, HARDWARE),
        (RING, PROTECT),
        (PROTECT, RING),
    ] {
        explore(
            1,
            act(move |space, cpu| enable(space, cpu, &first)),
            [
                act(move |space, cpu| {
                    disable(space, cpu);
                    enable(space, cpu, &second);
                    harvest(space, cpu);
                }),
                act(write),
                act(write_by_second),
            ],
        );
    }
}

/// The ring has two entries: the third page waits for the harvester, and goes on.
#[test]
fn rule_9_a_vcpu_whose_ring_is_full_waits_for_its_harvester_and_loses_nothing() {
    let fill = || {
        act(|space: &Space, cpu: &Cpu| {
            enable(space, cpu, &RING);
            overtaking::write(space, cpu, 0, page(0));
            overtaking::write(space, cpu, 0, page(2));
        })
    };
    explore(3, fill(), [act(harvest_rings), act(write)]);
    explore(
        2,
        fill(),
        [act(harvest_rings), act(write), act(write_by_second)],
    );
    let half_full = act(|space: &Space, cpu: &Cpu| {
        enable(space, cpu, &RING);
        overtaking::write(space, cpu, 0, page(2));
    });
    let write_two = act(|space: &Space, cpu: &Cpu| {
        overtaking::write(space, cpu, 0, page(0));
        overtaking::write(space, cpu, 0, page(1));
    });
    explore(2, half_full, [act(harvest_rings), write_two]);
}

#[test]
fn rule_9_writes_by_the_hypervisor_are_logged_beside_a_harvest() {
    for policy in POLICIES {
        let prepare = || act(move |space: &Space, cpu: &Cpu| enable(space, cpu, &policy));
        let emulate = || {
            act(|space: &Space, cpu: &Cpu| {
                space
                    .write_guest(cpu, page(2), &7u64.to_le_bytes())
                    .unwrap()
            })
        };
        explore(4, prepare(), [act(harvest), emulate()]);
        explore(2, prepare(), [act(harvest), emulate(), act(write)]);
        let begin = act(move |space, cpu| enable(space, cpu, &policy));
        explore(4, act(|_, _| {}), [begin, emulate()]);
    }
}
