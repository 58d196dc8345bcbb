//! The rules of the protocol that the engine carries, under every interleaving of two CPUs.
//!
//! Bounds: tables of four entries, two levels, two threads beside a main thread that only waits, at most four
//! preemptions per execution. `RUSTFLAGS="--cfg loom" cargo test -p model --release` runs them.
#![cfg(loom)]

use std::collections::HashSet;

use loom::sync::atomic::{AtomicBool, Ordering, fence};
use loom::thread;
use model::{Machine, Served, backing_of, request};
use stage2::{
    Access, Descriptor, Ipa, Level, PAGE_SIZE, Permissions, Resolution, RootShape, TABLE_ENTRIES,
};
use std::sync::{Arc, Mutex};

const PAGES: u64 = TABLE_ENTRIES as u64;

fn page(index: u64) -> Ipa {
    Ipa::new(index * PAGE_SIZE)
}

/// One block's span.
fn block() -> std::ops::Range<Ipa> {
    page(0)..page(PAGES)
}

fn explore(scenario: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(scenario);
}

/// Runs both on threads of their own, on CPUs 1 and 2.
fn race(
    machine: &Arc<Machine>,
    first: impl FnOnce(&Machine) + Send + 'static,
    second: impl FnOnce(&Machine) + Send + 'static,
) {
    let on_thread = |machine: Arc<Machine>, work: Box<dyn FnOnce(&Machine) + Send>| {
        thread::spawn(move || work(&machine))
    };
    let first = on_thread(machine.clone(), Box::new(first));
    let second = on_thread(machine.clone(), Box::new(second));
    first.join().unwrap();
    second.join().unwrap();
}

fn machine() -> Arc<Machine> {
    Arc::new(Machine::new(RootShape::small()))
}

fn finish(machine: Arc<Machine>) {
    Arc::into_inner(machine)
        .expect("the threads have ended")
        .destroy();
}

fn write(index: u64, level: Level, logged: bool) -> stage2::Request {
    request(page(index), Access::Write, level, logged)
}

fn protect(machine: &Machine, range: std::ops::Range<Ipa>) {
    machine.on(1, |worker| {
        machine.stage2.write_protect(worker, range, |_, _| true)
    });
}

#[test]
fn rule_1_two_faults_relax_one_entry_and_both_go_on() {
    explore(|| {
        let machine = machine();
        machine.access(0, &request(page(0), Access::Read, Level::L3, true));
        let fault = |cpu: usize| {
            move |machine: &Machine| {
                machine.access(cpu, &write(0, Level::L3, true));
            }
        };
        race(&machine, fault(1), fault(2));
        assert!(machine.lookup(page(0)).unwrap().0.writable());
        finish(machine);
    });
}

#[test]
fn rule_1_and_3_after_protection_no_tlb_is_more_permissive_than_the_tables() {
    explore(|| {
        let machine = machine();
        machine.access(2, &write(0, Level::L3, false));
        race(
            &machine,
            |machine| protect(machine, page(0)..page(1)),
            |machine| {
                machine.access(2, &write(0, Level::L3, false));
            },
        );
        let writable = machine.lookup(page(0)).unwrap().0.writable();
        assert!(writable || !machine.stale_writable(&HashSet::from([page(0).get()])));
        finish(machine);
    });
}

#[test]
fn rule_3_two_protections_both_return_without_a_stale_entry() {
    explore(|| {
        let machine = machine();
        machine.access(0, &write(0, Level::L3, false));
        let check = |machine: &Machine| {
            protect(machine, page(0)..page(1));
            assert!(!machine.stale_writable(&HashSet::from([page(0).get()])));
        };
        race(&machine, check, check);
        finish(machine);
    });
}

#[test]
fn rule_2_two_splits_of_one_block_make_one_table_with_both_pages_writable() {
    explore(|| {
        let machine = machine();
        machine.access(0, &write(0, Level::L2, false));
        protect(&machine, block());
        race(
            &machine,
            |machine| {
                machine.access(1, &write(0, Level::L2, true));
            },
            |machine| {
                machine.access(2, &write(1, Level::L2, true));
            },
        );
        for index in 0..PAGES {
            let (leaf, level) = machine.lookup(page(index)).unwrap();
            assert_eq!((level, leaf.pa()), (Level::L3, backing_of(page(index))));
            assert_eq!(leaf.writable(), index < 2);
        }
        assert_eq!(
            machine.frames.live(),
            2,
            "the loser gives its table back (rule 6)"
        );
        finish(machine);
    });
}

#[test]
fn rule_2_and_3_a_split_against_protection_leaves_nothing_writable_unseen() {
    explore(|| {
        let machine = machine();
        machine.access(0, &write(0, Level::L2, false));
        protect(&machine, block());
        race(
            &machine,
            |machine| protect(machine, block()),
            |machine| {
                machine.fault(2, &write(0, Level::L2, true));
                machine.translate(2, page(0));
            },
        );
        let writable = machine.lookup(page(0)).unwrap().0.writable();
        assert!(writable || !machine.stale_writable(&HashSet::from([page(0).get()])));
        finish(machine);
    });
}

#[test]
fn rule_4_a_fault_on_a_locked_entry_returns_to_the_guest() {
    explore(|| {
        let machine = machine();
        let returned = Arc::new(AtomicBool::new(false));
        let signal = returned.clone();
        race(
            &machine,
            move |machine| {
                machine.on(1, |worker| {
                    let wanted = write(0, Level::L3, false);
                    let Resolution::Vacant(broken) = machine.stage2.fault(worker, &wanted) else {
                        // The other one was first.
                        return;
                    };
                    let other = machine.fault(2, &wanted);
                    assert_eq!(other, Served::Again);
                    broken
                        .make(Descriptor::Leaf(wanted.leaf(Level::L3)))
                        .unwrap();
                });
                signal.store(true, Ordering::Release);
            },
            |machine| {
                machine.access(2, &write(0, Level::L3, false));
            },
        );
        assert!(returned.load(Ordering::Acquire));
        assert!(machine.lookup(page(0)).is_some());
        finish(machine);
    });
}

#[test]
fn rule_5_a_walker_in_a_table_that_is_collapsed_starts_again() {
    logging_begins_while_a_table_is_merged(Access::Write);
}

#[test]
fn rule_8_a_table_that_is_merged_while_logging_begins_decides_on_what_is_published() {
    logging_begins_while_a_table_is_merged(Access::Read);
}

/// `before` made the table's pages: writable, or read-only as logging once left them.
fn logging_begins_while_a_table_is_merged(before: Access) {
    explore(move || {
        let machine = machine();
        for index in 0..PAGES {
            machine.access(
                0,
                &request(page(index), before, Level::L3, before == Access::Read),
            );
        }
        // Logging is switched on while the table is being merged (rule 8): publish, full barrier, walk.
        let logging = Arc::new(AtomicBool::new(false));
        let published = logging.clone();
        race(
            &machine,
            move |machine| {
                machine.on(1, |worker| {
                    machine.stage2.collapse(worker, block(), Level::L2, || {
                        match logging.load(Ordering::Relaxed) {
                            true => Permissions::LOGGED,
                            false => Permissions::RAM,
                        }
                    })
                });
            },
            move |machine| {
                published.store(true, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                machine.on(2, |worker| {
                    machine.stage2.write_protect(worker, block(), |_, _| true)
                });
            },
        );
        for index in 0..PAGES {
            if let Some((leaf, _)) = machine.lookup(page(index)) {
                assert!(
                    !leaf.writable(),
                    "page {index} escaped the write protection"
                );
                assert_eq!(
                    leaf.pa().get() & !(Level::L2.span() - 1),
                    backing_of(page(0)).get()
                );
            }
        }
        finish(machine);
    });
}

#[test]
fn rule_5_a_fault_in_a_table_that_is_collapsed_ends_with_the_access_allowed() {
    explore(|| {
        let machine = machine();
        for index in 0..PAGES {
            machine.access(0, &request(page(index), Access::Read, Level::L3, true));
        }
        race(
            &machine,
            |machine| {
                machine.on(1, |worker| {
                    machine
                        .stage2
                        .collapse(worker, block(), Level::L2, || Permissions::RAM)
                });
            },
            |machine| {
                machine.access(2, &write(1, Level::L3, false));
            },
        );
        assert!(machine.lookup(page(1)).unwrap().0.writable());
        finish(machine);
    });
}

#[test]
fn rule_5_whoever_unmaps_a_table_gets_all_that_a_late_fault_put_into_it() {
    explore(|| {
        let machine = machine();
        machine.access(0, &write(0, Level::L3, false));
        let removed = Arc::new(Mutex::new(HashSet::new()));
        let mapped = Arc::new(Mutex::new(false));
        let (collect, outcome) = (removed.clone(), mapped.clone());
        race(
            &machine,
            move |machine| {
                machine.on(1, |worker| {
                    machine.stage2.unmap(worker, block(), |_, ipa, _| {
                        collect.lock().unwrap().insert(ipa);
                    })
                });
                assert!(!machine.stale_writable(&HashSet::from([page(0).get()])));
            },
            move |machine| {
                *outcome.lock().unwrap() =
                    machine.fault(2, &write(1, Level::L3, false)) == Served::Mapped;
            },
        );
        let removed = removed.lock().unwrap();
        assert!(removed.contains(&page(0)));
        let (in_tree, taken) = (
            machine.lookup(page(1)).is_some(),
            removed.contains(&page(1)),
        );
        assert_eq!(
            *mapped.lock().unwrap(),
            in_tree || taken,
            "a mapping is lost in a dead table"
        );
        finish(machine);
    });
}

#[test]
fn rule_5_two_unmaps_remove_each_leaf_once() {
    explore(|| {
        let machine = machine();
        for index in 0..2 {
            machine.access(0, &write(index, Level::L3, false));
        }
        let removed = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let unmap = |removed: Arc<std::sync::atomic::AtomicU64>, cpu: usize| {
            move |machine: &Machine| {
                machine.on(cpu, |worker| {
                    machine.stage2.unmap(worker, block(), |_, _, _| {
                        removed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    })
                });
            }
        };
        race(
            &machine,
            unmap(removed.clone(), 1),
            unmap(removed.clone(), 2),
        );
        assert_eq!(removed.load(std::sync::atomic::Ordering::Relaxed), 2);
        assert!((0..2).all(|index| machine.lookup(page(index)).is_none()));
        finish(machine);
    });
}

#[test]
fn rule_6_two_faults_install_one_table() {
    explore(|| {
        let machine = machine();
        race(
            &machine,
            |machine| {
                machine.access(1, &write(0, Level::L3, false));
            },
            |machine| {
                machine.access(2, &write(1, Level::L3, false));
            },
        );
        assert!((0..2).all(|index| machine.lookup(page(index)).is_some()));
        assert_eq!(machine.frames.live(), 2);
        finish(machine);
    });
}

#[test]
fn rule_11_whoever_sees_a_table_sees_what_is_in_it() {
    explore(|| {
        let machine = machine();
        machine.access(0, &write(0, Level::L2, false));
        protect(&machine, block());
        race(
            &machine,
            |machine| {
                machine.fault(1, &write(0, Level::L2, true));
            },
            |machine| {
                let read = request(page(1), Access::Read, Level::L2, true);
                let served = loop {
                    match machine.fault(2, &read) {
                        Served::Again => thread::yield_now(),
                        served => break served,
                    }
                };
                assert_eq!(served, Served::Spurious, "a page of the block was missing");
            },
        );
        finish(machine);
    });
}
