//! The tracker of invalidations (rule 8), under every interleaving of a fault with one and two invalidations.
//!
//! The tracker is the real one, of two buckets with two records each and two wide ones. One entry and one word of backing stand
//! for all the rest: a fault takes its ticket, reads the word, locks the entry, asks the tracker, and makes the entry or leaves
//! it vacant; an invalidation publishes, takes out what the entry maps, changes the word, and retires. When all have ended the
//! entry maps what the word says, or nothing: `memory.rs` shows the same of the real address space, whose steps are many
//! more.
//!
//! Bounds: two or three CPUs, each a thread, beside a main thread that waits; at most so many preemptions per execution as the
//! first argument of `explore` says.

use std::sync::Arc;

use memory::{Invalidation, Tracker, TrackerMode, Verdict};
use model::checked::every_execution;
use stage2::sync::{AtomicU64, Ordering, full_barrier, relax};
use stage2::{Ipa, IpaRange, PAGE_SIZE};

const REGION: u64 = 256 << 10;
/// The page that the entry maps: neither the first nor the last of its region.
const PAGE: u64 = REGION + 5 * PAGE_SIZE;

const VACANT: u64 = 0;
const LOCKED: u64 = 1;
/// The first frame; each invalidation brings the next one.
const FRAME: u64 = 2;

struct World {
    tracker: Tracker,
    /// The frame that backs the page.
    word: AtomicU64,
    /// The frame that the entry maps.
    entry: AtomicU64,
}

impl World {
    fn new(mode: TrackerMode) -> Self {
        Self {
            tracker: Tracker::new(mode).unwrap(),
            word: AtomicU64::new(FRAME),
            entry: AtomicU64::new(VACANT),
        }
    }

    /// A fault at the page that would map `leaf`; `None` if another CPU was in its way.
    fn fault(&self, leaf: IpaRange) -> Option<Verdict> {
        let ticket = self.tracker.ticket(Ipa::new(PAGE));
        let frame = self.word.load(Ordering::Acquire);
        self.lock_entry()?;
        full_barrier();
        let verdict = self.tracker.check(ticket, &leaf);
        self.finish(verdict, frame);
        Some(verdict)
    }

    fn lock_entry(&self) -> Option<()> {
        self.entry
            .compare_exchange(VACANT, LOCKED, Ordering::AcqRel, Ordering::Relaxed)
            .ok()
            .map(|_| ())
    }

    /// Makes the entry, or restores it.
    fn finish(&self, verdict: Verdict, frame: u64) {
        let holds = match verdict {
            Verdict::Unchanged => true,
            Verdict::LookAgain => self.word.load(Ordering::Acquire) == frame,
            Verdict::Invalidated => false,
        };
        let made = if holds { frame } else { VACANT };
        self.entry.store(made, Ordering::Release);
    }

    /// Has the next frame back the page, in a range that covers it.
    fn invalidate(&self, range: IpaRange) {
        let invalidation = self.tracker.begin(range);
        self.take_out();
        self.word.fetch_add(1, Ordering::AcqRel);
        invalidation.end();
    }

    /// Unmaps the page, if it is mapped.
    fn take_out(&self) {
        loop {
            match self.entry.load(Ordering::Acquire) {
                VACANT => return,
                LOCKED => relax(),
                frame => {
                    let taken = self.entry.compare_exchange(
                        frame,
                        VACANT,
                        Ordering::AcqRel,
                        Ordering::Relaxed,
                    );
                    if taken.is_ok() {
                        return;
                    }
                }
            }
        }
    }

    fn maps_what_backs_the_page(&self) {
        let entry = self.entry.load(Ordering::Acquire);
        let word = self.word.load(Ordering::Acquire);
        assert!(
            entry == VACANT || entry == word,
            "frame {entry} is mapped, the page has {word}"
        );
    }
}

fn page() -> IpaRange {
    range(PAGE, PAGE_SIZE)
}

/// The page after it, in the same region and so in the same bucket.
fn neighbour() -> IpaRange {
    range(PAGE + PAGE_SIZE, PAGE_SIZE)
}

/// Several regions, and the page is in them.
fn wide() -> IpaRange {
    range(PAGE, 2 * REGION)
}

/// Several regions up to the page.
fn wide_before() -> IpaRange {
    range(0, PAGE)
}

/// Several regions from the next page on.
fn wide_neighbour() -> IpaRange {
    range(PAGE + PAGE_SIZE, 2 * REGION)
}

fn range(start: u64, bytes: u64) -> IpaRange {
    Ipa::new(start)..Ipa::new(start + bytes)
}

fn map_page(world: &World) {
    world.fault(page());
}

/// A fault that no invalidation beside it may stop.
fn map_page_at_once(world: &World) {
    assert_ne!(world.fault(page()), Some(Verdict::Invalidated));
}

fn map_block(world: &World) {
    world.fault(range(REGION, REGION));
}

fn map_large_block(world: &World) {
    world.fault(range(0, 2 * REGION));
}

fn change_page(world: &World) {
    world.invalidate(page());
}

fn change_wide(world: &World) {
    world.invalidate(wide());
}

fn touch_neighbour(world: &World) {
    world.tracker.begin(neighbour()).end();
}

fn touch_neighbour_twice(world: &World) {
    touch_neighbour(world);
    touch_neighbour(world);
}

fn touch_wide_neighbour(world: &World) {
    world.tracker.begin(wide_neighbour()).end();
}

fn touch_wide_neighbour_twice(world: &World) {
    world.tracker.begin(wide_before()).end();
    touch_wide_neighbour(world);
}

type Act = fn(&World);

/// Tries every execution, with at most so many preemptions, in which all of `race` run at once.
fn explore<const N: usize>(preemptions: usize, race: [Act; N]) {
    explore_in(TrackerMode::Ranges, preemptions, race);
}

fn explore_in<const N: usize>(mode: TrackerMode, preemptions: usize, race: [Act; N]) {
    explore_all(mode, &[], preemptions, race);
}

/// As `explore`, while the ranges of `crowd` are being invalidated all the time.
fn explore_among<const N: usize>(crowd: &[IpaRange], preemptions: usize, race: [Act; N]) {
    explore_all(TrackerMode::Ranges, crowd, preemptions, race);
}

fn explore_all<const N: usize>(
    mode: TrackerMode,
    crowd: &[IpaRange],
    preemptions: usize,
    race: [Act; N],
) {
    let crowd = crowd.to_vec();
    let race = race.map(|act| move |world: &World, _| act(world));
    every_execution(preemptions, race, move |run| {
        let world = Arc::new(World::new(mode));
        // The records that are taken first have been used before.
        for used in [page(), wide()] {
            world.tracker.begin(used).end();
        }
        let crowd: Vec<_> = (crowd.iter().cloned())
            .map(|range| world.tracker.begin(range))
            .collect();
        run(&world);
        world.maps_what_backs_the_page();
        crowd.into_iter().for_each(Invalidation::end);
        let quiet = world.tracker.ticket(Ipa::new(PAGE));
        let verdict = world.tracker.check(quiet, &page());
        assert_eq!(verdict, Verdict::Unchanged, "all have ended");
    });
}

#[test]
fn rule_8_what_an_invalidation_takes_away_no_fault_maps() {
    explore(6, [map_page, change_page]);
    explore(6, [map_block, change_page]);
}

#[test]
fn rule_8_what_a_wide_invalidation_takes_away_no_fault_maps() {
    explore(6, [map_page, change_wide]);
    explore(6, [map_large_block, change_page]);
    explore(5, [map_large_block, change_wide]);
}

#[test]
fn rule_8_what_two_invalidations_take_away_no_fault_maps() {
    explore(2, [map_page, change_page, change_page]);
    explore(2, [map_page, change_page, change_wide]);
}

#[test]
fn rule_8_a_record_that_is_used_again_hides_no_active_range() {
    explore(2, [map_page, change_page, touch_neighbour]);
    explore(2, [map_page, change_wide, touch_wide_neighbour]);
}

#[test]
fn rule_8_a_range_that_finds_no_record_is_not_missed() {
    let crowd = [neighbour(), neighbour(), wide_neighbour(), wide_neighbour()];
    explore_among(&crowd, 5, [map_page, change_page]);
    explore_among(&crowd, 5, [map_page, change_wide]);
}

#[test]
fn rule_8_a_fault_beside_invalidations_of_its_neighbours_never_retries() {
    explore(4, [map_page_at_once, touch_neighbour_twice]);
    explore(4, [map_page_at_once, touch_wide_neighbour_twice]);
    explore(2, [map_page_at_once, touch_neighbour, touch_neighbour]);
}

#[test]
fn rule_8_as_a_sequence_it_misses_nothing_either() {
    let sequence = TrackerMode::Sequence;
    explore_in(sequence, 6, [map_page, change_page]);
    explore_in(sequence, 2, [map_page, change_page, change_wide]);
}

#[test]
#[should_panic(expected = "is mapped, the page has")]
fn rule_8_a_ticket_that_is_taken_late_is_no_use() {
    fn map_with_late_ticket(world: &World) {
        let frame = world.word.load(Ordering::Acquire);
        let ticket = world.tracker.ticket(Ipa::new(PAGE));
        if world.lock_entry().is_some() {
            full_barrier();
            world.finish(world.tracker.check(ticket, &page()), frame);
        }
    }
    explore(3, [map_with_late_ticket, change_page]);
}

#[test]
#[should_panic(expected = "is mapped, the page has")]
fn rule_8_a_fault_that_asks_without_a_barrier_misses_what_has_begun() {
    fn map_without_barrier(world: &World) {
        let ticket = world.tracker.ticket(Ipa::new(PAGE));
        let frame = world.word.load(Ordering::Acquire);
        if world.lock_entry().is_some() {
            world.finish(world.tracker.check(ticket, &page()), frame);
        }
    }
    explore(3, [map_without_barrier, change_page]);
}
