//! Blocks that are marked with nT to be replaced (FEAT_BBM level 1). CPUs may fault on them for as long as they are, so
//! no mark is left behind.
// Miri doesn't know how the schedules switch stacks.
#![cfg(not(miri))]

use checker::Kind;
use model::{System, backing_of, explore};
use shuttle::thread;
use stage2::{
    Access, Attributes, Bbm, Features, Ipa, Layout, Level, Mapping, OnBlock, Permissions, Request,
    TlbPolicy,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const NO_TRANSLATION: u64 = 1 << 16;
const CPUS: usize = 3;
const SCHEDULES: u64 = 400;

/// A block of 2 MiB that nobody has accessed, on CPUs whose hardware sets the access flag; and frames for so many
/// tables.
fn unaccessed_block(frames: usize) -> System {
    let layout = Layout::new(Features {
        bbm: Bbm::Level1,
        hardware_access: true,
        ..Features::armv8_0(40, 48)
    });
    let policy = TlbPolicy {
        range: true,
        level_hint: true,
        most_instructions: 4,
    };
    let system = System::new(layout.expect("a usual layout"), CPUS, policy);
    let block = Ipa::new(0)..Ipa::new(system.stage2().layout().span(Level::L2));
    let mapping = Mapping {
        pa: backing_of(block.start),
        attributes: Attributes::memory(Permissions::RAM),
        largest: Level::L2,
    };
    system.on(0, |worker| {
        let mapped = (system.stage2()).map(worker, block.clone(), mapping, || true);
        mapped.expect("frames don't run out yet");
        (system.stage2().age(worker, block.clone(), |_, _| {})).unwrap();
        system.stage2().invalidate(worker, block).unwrap();
    });
    system.frames().limit(frames);
    system
}

/// Whether the split is done, or there were no frames for it.
fn split(system: &System, cpu: usize) -> bool {
    let block = Ipa::new(0)..Ipa::new(system.stage2().layout().span(Level::L2));
    system.on(cpu, |worker| {
        (system.stage2().split(worker, block, Level::L3, 1)).is_ok()
    })
}

/// No walker meets a mark, and guests get on. A TLB may still hold the block with its mark, by which it translates:
/// faults come of walks.
fn no_mark_is_left(system: &System) {
    let ways = (system.checker()).translations(system.root(), 2, 0);
    for way in ways.iter().filter(|way| way.kind == Kind::Visible) {
        assert!(
            way.level == 3 || way.word & NO_TRANSLATION == 0,
            "a mark is left: {way:x?}"
        );
    }
    let request = Request {
        ipa: Ipa::new(0),
        va: None,
        access: Access::Read,
        pa: backing_of(Ipa::new(0)),
        largest: Level::L2,
        attributes: Attributes::memory(Permissions::RAM),
        largest_written: Level::L0,
        on_block: OnBlock::Split,
    };
    let (output, _) = system.access(2, &request).expect("the page is mapped");
    assert_eq!(output, backing_of(Ipa::new(0)));
}

#[test]
fn a_split_that_runs_out_of_frames_after_a_lost_exchange_leaves_no_mark() {
    let failures = Arc::new(AtomicUsize::new(0));
    let failed = failures.clone();
    explore(SCHEDULES, move |_| {
        let system = Arc::new(unaccessed_block(1));
        let splitting = {
            let (system, failed) = (system.clone(), failed.clone());
            thread::spawn(move || {
                if !split(&system, 0) {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let hardware = {
            let system = system.clone();
            thread::spawn(move || system.speculate(1, Ipa::new(0)))
        };
        splitting.join().expect("the split ends");
        hardware.join().expect("the walk ends");
        let system = Arc::into_inner(system).expect("the threads have ended");
        no_mark_is_left(&system);
        system.frames().limit(usize::MAX);
        assert!(split(&system, 0), "there are frames again");
        system.destroy();
    });
    let failures = failures.load(Ordering::Relaxed);
    assert!(failures > 0, "no schedule has had the exchange lost");
}

#[test]
fn two_splits_of_which_one_has_a_frame_leave_no_mark() {
    explore(SCHEDULES, |_| {
        let system = Arc::new(unaccessed_block(1));
        let splits = [0, 1].map(|cpu| {
            let system = system.clone();
            thread::spawn(move || split(&system, cpu))
        });
        let hardware = {
            let system = system.clone();
            thread::spawn(move || system.speculate(2, Ipa::new(0)))
        };
        for thread in splits {
            thread.join().expect("the split ends");
        }
        hardware.join().expect("the walk ends");
        let system = Arc::into_inner(system).expect("the threads have ended");
        no_mark_is_left(&system);
        system.destroy();
    });
}
