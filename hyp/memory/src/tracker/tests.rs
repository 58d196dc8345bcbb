//! Tests each claim of the tracker on one thread, and the whole against a naive model. Interleavings are left to the model
//! checker (`interleavings/tracker.rs`).

use super::*;
use Verdict::{Invalidated, LookAgain, Unchanged};
use proptest::prelude::*;
use stage2::PAGE_SIZE;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const REGION: u64 = 1 << REGION_SHIFT;
const REGION_PAGES: u64 = REGION / PAGE_SIZE;
/// What the tracker is asked to tell apart at once.
const EXACT: usize = 16;

fn tracker() -> Tracker {
    Tracker::new(TrackerMode::Ranges).unwrap()
}

fn range(start: u64, end: u64) -> IpaRange {
    Ipa::new(start)..Ipa::new(end)
}

/// `count` pages from the page with this number on.
fn pages(first: u64, count: u64) -> IpaRange {
    range(first * PAGE_SIZE, (first + count) * PAGE_SIZE)
}

fn page(number: u64) -> IpaRange {
    pages(number, 1)
}

impl Tracker {
    /// What a fault that begins now and maps `leaf` is told.
    fn fault(&self, leaf: IpaRange) -> Verdict {
        self.check(self.ticket(leaf.start), &leaf)
    }
}

#[test]
fn the_end_is_exclusive() {
    for (first, count) in [(7, 1), (7, 20), (7, 3 * REGION_PAGES), (0, REGION_PAGES)] {
        let tracker = tracker();
        let invalidation = tracker.begin(pages(first, count));
        assert_eq!(tracker.fault(page(first + count - 1)), Invalidated);
        assert_eq!(tracker.fault(page(first + count)), Unchanged);
        invalidation.end();
    }
}

#[test]
fn who_waits_for_a_range_waits_for_what_is_published_in_it_and_for_nothing_else() {
    for mode in [TrackerMode::Ranges, TrackerMode::Sequence] {
        let tracker = Tracker::new(mode).unwrap();
        tracker.wait(&pages(0, 1 << 20));
        tracker.wait(&pages(5, 0));
        for (first, count) in [(512, 1), (700, 3 * REGION_PAGES)] {
            let invalidation = tracker.begin(pages(first, count));
            if mode == TrackerMode::Ranges {
                tracker.wait(&pages(first - 1, 1));
                tracker.wait(&pages(first + count, 1 << 20));
            }
            let has_ended = AtomicBool::new(false);
            let last = first + count - 1;
            let touching = [
                page(last),
                pages(last - 3 * REGION_PAGES, 3 * REGION_PAGES + 1),
                pages(0, 1 << 20),
            ];
            let waits = |range: &IpaRange| {
                tracker.wait(range);
                assert!(has_ended.load(Ordering::Relaxed), "{range:?}: still active");
            };
            thread::scope(|scope| {
                for range in &touching {
                    scope.spawn(move || waits(range));
                }
                thread::sleep(Duration::from_millis(20));
                has_ended.store(true, Ordering::Relaxed);
                invalidation.end();
            });
        }
    }
}

/// Fails if it takes longer than any of what it waits for could.
fn ends(work: impl FnOnce() + Send) {
    let has_ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            work();
            has_ended.store(true, Ordering::Relaxed);
        });
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !has_ended.load(Ordering::Relaxed) {
            if std::time::Instant::now() > deadline {
                eprintln!("it waits without an end");
                std::process::abort();
            }
            thread::yield_now();
        }
    });
}

/// At every look another range is active there, and none for long: a guest can have it so by its faults.
#[test]
fn a_wait_ends_although_there_is_always_another_range() {
    let chain = |tracker: &Tracker, range: fn() -> IpaRange| {
        let has_ended = AtomicBool::new(false);
        let first = tracker.begin(range());
        thread::scope(|scope| {
            scope.spawn(|| {
                ends(|| tracker.wait(&page(5)));
                has_ended.store(true, Ordering::Relaxed);
            });
            let mut last = first;
            while !has_ended.load(Ordering::Relaxed) {
                let next = tracker.begin(range());
                last.end();
                last = next;
            }
            last.end();
        });
        assert_eq!(tracker.fault(page(5)), Unchanged);
    };
    for range in [|| page(5), || pages(0, 3 * REGION_PAGES)] {
        chain(&tracker(), range);
        chain(&Tracker::new(TrackerMode::Sequence).unwrap(), range);
    }
}

#[test]
fn a_wait_has_seen_the_end_of_all_that_were_active_whatever_the_others_wait_for() {
    let tracker = tracker();
    let (mut active, mut ended) = (Vec::new(), false);
    // In either half, and waits by others between them.
    for _ in 0..5 {
        active.push(tracker.begin(page(5)));
        let began = tracker.bucket(0).look();
        for _ in 0..40 {
            ended |= tracker.bucket(0).has_outlived(began);
        }
    }
    assert!(!ended, "one is active that was so before");
    let began = tracker.bucket(0).look();
    let last = active.pop();
    active.into_iter().for_each(Invalidation::end);
    assert!((0..40).all(|_| !tracker.bucket(0).has_outlived(began)));
    last.unwrap().end();
    assert!((0..3).any(|_| tracker.bucket(0).has_outlived(began)));
}

#[test]
fn a_fault_at_either_edge_is_told_by_the_range_alone() {
    for (first, count) in [(512, 1), (700, 2), (700, 900), (1000, 4 * REGION_PAGES)] {
        let tracker = tracker();
        let invalidation = tracker.begin(pages(first, count));
        assert_eq!(tracker.fault(page(first - 1)), Unchanged);
        assert_eq!(tracker.fault(page(first)), Invalidated);
        assert_eq!(tracker.fault(page(first + count - 1)), Invalidated);
        assert_eq!(tracker.fault(page(first + count)), Unchanged);
        invalidation.end();
    }
}

#[test]
fn a_block_is_invalidated_by_any_page_of_it() {
    let tracker = tracker();
    let block = pages(REGION_PAGES, REGION_PAGES);
    for first in [REGION_PAGES, REGION_PAGES * 3 / 2, 2 * REGION_PAGES - 1] {
        let invalidation = tracker.begin(page(first));
        assert_eq!(tracker.fault(block.clone()), Invalidated);
        invalidation.end();
    }
    for outside in [REGION_PAGES - 1, 2 * REGION_PAGES] {
        let invalidation = tracker.begin(page(outside));
        assert_eq!(tracker.fault(block.clone()), Unchanged);
        invalidation.end();
    }
}

#[test]
fn a_range_may_end_at_the_top_of_the_address_space() {
    for bits in [32, 36, 40, 42, 44, 48, 52] {
        let (end, last) = (1 << bits, (1 << (bits - 12)) - 1);
        for bytes in [PAGE_SIZE, REGION, REGION + PAGE_SIZE, end] {
            let tracker = tracker();
            let before = tracker.ticket(Ipa::new(end - 1));
            let invalidation = tracker.begin(range(end - bytes, end));
            assert_eq!(tracker.fault(page(last)), Invalidated);
            assert_eq!(tracker.fault(range(end - REGION, end)), Invalidated);
            if bytes < end {
                let below = (end - bytes) / PAGE_SIZE - 1;
                assert_eq!(tracker.fault(page(below)), Unchanged);
                assert_eq!(tracker.fault(page(0)), Unchanged);
            }
            invalidation.end();
            assert_eq!(tracker.check(before, &page(last)), LookAgain);
            assert_eq!(tracker.fault(page(last)), Unchanged);
        }
    }
}

#[test]
fn ranges_do_not_merge_when_a_second_begins_and_the_first_ends() {
    // All in one region; then both wide; then the second overlapping the first.
    for (first, second) in [
        (pages(10, 2), pages(20, 2)),
        (pages(10, 1000), pages(5000, 1000)),
        (pages(10, 2), pages(11, 4)),
    ] {
        let tracker = tracker();
        let between = page(first.end.get().max(13 * PAGE_SIZE) / PAGE_SIZE + 4);
        let ticket = tracker.ticket(first.start);
        let one = tracker.begin(first.clone());
        let two = tracker.begin(second.clone());
        assert_eq!(tracker.fault(between.clone()), Unchanged);
        one.end();
        let alone = first.start..first.start.offset(PAGE_SIZE);
        assert_eq!(tracker.check(ticket, &alone), LookAgain);
        assert_eq!(tracker.fault(alone), Unchanged);
        assert_eq!(tracker.fault(between.clone()), Unchanged);
        let covered = Ipa::new(second.end.get() - PAGE_SIZE)..second.end;
        assert_eq!(tracker.fault(covered.clone()), Invalidated);
        two.end();
        assert_eq!(tracker.fault(covered), Unchanged);
    }
}

#[test]
fn a_retired_range_counts_only_for_tickets_taken_before() {
    let tracker = tracker();
    for invalidated in [page(3), pages(3, REGION_PAGES)] {
        let before = tracker.ticket(Ipa::new(0));
        let invalidation = tracker.begin(invalidated);
        let during = tracker.ticket(Ipa::new(0));
        invalidation.end();
        let after = tracker.ticket(Ipa::new(0));
        assert_eq!(tracker.check(before, &page(3)), LookAgain);
        assert_eq!(tracker.check(during, &page(3)), LookAgain);
        assert_eq!(tracker.check(after, &page(3)), Unchanged);
    }
}

#[test]
fn what_happens_in_other_regions_is_not_noticed() {
    let tracker = tracker();
    let tickets: Vec<Ticket> = (0..64)
        .map(|region| tracker.ticket(Ipa::new(region * REGION)))
        .collect();
    tracker.begin(pages(7 * REGION_PAGES, REGION_PAGES)).end();
    let wide = tracker.begin(pages(9 * REGION_PAGES + 5, 2 * REGION_PAGES));
    for (region, ticket) in (0..).zip(tickets) {
        let expected = match region {
            7 => LookAgain,
            9..=11 => Invalidated,
            _ => Unchanged,
        };
        let asked = page(region * REGION_PAGES + if region == 9 { 5 } else { 0 });
        assert_eq!(tracker.check(ticket, &asked), expected, "region {region}");
    }
    wide.end();
}

#[test]
fn sixteen_ranges_are_exact_and_more_are_coarse_only_while_they_are_many() {
    // In one region, and over several.
    for length in [1, REGION_PAGES] {
        let tracker = tracker();
        let nth = |n: u64| pages(2 * n, length);
        let outside = page(REGION_PAGES - 1);
        let mut active: Vec<_> = (0..EXACT as u64).map(|n| tracker.begin(nth(n))).collect();
        if length == 1 {
            assert_eq!(tracker.fault(outside.clone()), Unchanged);
            assert_eq!(tracker.fault(page(1)), Unchanged);
        }
        assert_eq!(
            tracker.fault(page(2 * EXACT as u64 + REGION_PAGES)),
            Unchanged
        );
        active.extend((0..100).map(|n| tracker.begin(nth(n % 16))));
        assert_eq!(tracker.fault(outside.clone()), Invalidated);
        let elsewhere = page(20 * REGION_PAGES);
        assert_eq!(tracker.fault(elsewhere), Unchanged);
        for invalidation in active.drain(..) {
            assert_eq!(tracker.fault(page(30)), Invalidated);
            invalidation.end();
        }
        assert_eq!(tracker.fault(outside.clone()), Unchanged);
        let one = tracker.begin(nth(0));
        assert_eq!(tracker.fault(page(3 * REGION_PAGES)), Unchanged);
        one.end();
    }
}

/// A record that weren't given back would be missing, and what finds none covers all of the regions that it touches.
#[test]
fn any_number_of_ranges_one_after_the_other_are_exact() {
    for last_page in [8, REGION_PAGES, 3 * REGION_PAGES + 8] {
        let tracker = tracker();
        for _ in 0..100 {
            let one = tracker.begin(pages(0, last_page + 1));
            assert_eq!(tracker.fault(page(last_page)), Invalidated);
            assert_eq!(tracker.fault(page(last_page + 1)), Unchanged);
            one.end();
            assert_eq!(tracker.fault(page(last_page)), Unchanged);
        }
    }
}

#[test]
fn a_leaf_larger_than_a_region_is_looked_at_again_unless_it_is_being_invalidated() {
    let tracker = tracker();
    let gigabyte = range(1 << 30, 2 << 30);
    assert_eq!(tracker.fault(gigabyte.clone()), LookAgain);
    let inside = tracker.begin(page((2 << 30) / PAGE_SIZE - 1));
    assert_eq!(tracker.fault(gigabyte.clone()), Invalidated);
    inside.end();
    let outside = tracker.begin(page((2 << 30) / PAGE_SIZE));
    assert_eq!(tracker.fault(gigabyte), LookAgain);
    outside.end();
}

#[test]
fn an_empty_range_invalidates_nothing() {
    let tracker = tracker();
    let ticket = tracker.ticket(Ipa::new(0));
    let empty = tracker.begin(range(0, 0));
    assert_eq!(tracker.check(ticket, &page(0)), Unchanged);
    empty.end();
    assert_eq!(tracker.check(ticket, &page(0)), Unchanged);
}

#[test]
fn as_a_sequence_any_invalidation_anywhere_stops_every_fault() {
    let tracker = Tracker::new(TrackerMode::Sequence).unwrap();
    let far = page(1 << 20);
    let ticket = tracker.ticket(far.start);
    assert_eq!(tracker.check(ticket, &far), Unchanged);
    let invalidation = tracker.begin(page(0));
    assert_eq!(tracker.check(ticket, &far), Invalidated);
    assert_eq!(tracker.fault(far.clone()), Invalidated);
    invalidation.end();
    assert_eq!(tracker.check(ticket, &far), Invalidated);
    assert_eq!(tracker.fault(far), Unchanged);
    assert_eq!(tracker.fault(range(0, 1 << 30)), Unchanged);
}

#[test]
#[should_panic(expected = "an invalidation was forgotten")]
fn an_invalidation_can_not_be_forgotten() {
    let tracker = tracker();
    drop(tracker.begin(page(0)));
}

#[test]
fn a_fault_outside_every_invalidated_range_never_retries() {
    const FAULTS: u64 = if cfg!(miri) { 200 } else { 200_000 };
    let tracker = &tracker();
    let done = &std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        // The pages on both sides of page 600, and all regions but those around it, again and again.
        let neighbours = [
            pages(512, 88),
            pages(601, 1),
            pages(2048, 100_000),
            pages(601, 2000),
        ];
        for invalidated in neighbours {
            scope.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    tracker.begin(invalidated.clone()).end();
                }
            });
        }
        for _ in 0..FAULTS {
            assert_ne!(tracker.fault(page(600)), Invalidated);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[derive(Clone, Debug)]
enum Step {
    Begin(IpaRange),
    /// Ends the n-th of those that are active.
    End(usize),
    Ticket(u64),
    /// Asks for the n-th ticket's page, or its block.
    Check(usize, bool),
}

/// Page numbers where it matters: around the edges of a few regions, of which some share a bucket, and at the top.
fn some_page() -> impl Strategy<Value = u64> {
    let same_bucket = (1 << 7 | 1) * REGION_PAGES;
    let top = (1 << 40) - 8 * REGION_PAGES;
    let base = prop::sample::select(vec![0, same_bucket, top]);
    (
        base,
        0..4u64,
        prop_oneof![0..4u64, REGION_PAGES - 4..REGION_PAGES],
    )
        .prop_map(|(base, region, page)| base + region * REGION_PAGES + page)
}

fn some_range() -> impl Strategy<Value = IpaRange> {
    let count = prop_oneof![4 => 1..8u64, 2 => REGION_PAGES - 12..2 * REGION_PAGES + 76, 1 => Just(200 * REGION_PAGES)];
    (some_page(), count).prop_map(|(first, count)| pages(first, count.min((1 << 40) - first)))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => some_range().prop_map(Step::Begin),
        3 => any::<usize>().prop_map(Step::End),
        2 => some_page().prop_map(Step::Ticket),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(ticket, block)| Step::Check(ticket, block)),
    ];
    prop::collection::vec(step, 1..120)
}

/// What is active, and at which step each range was retired.
#[derive(Default)]
struct Naive {
    active: Vec<IpaRange>,
    retired: Vec<(usize, IpaRange)>,
    /// When anything last happened.
    changed: usize,
    /// More were active than need be told apart, and some of those may be still.
    crowded: bool,
}

fn overlap(a: &IpaRange, b: &IpaRange) -> bool {
    a.start < b.end && b.start < a.end
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 2000 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn it_answers_as_a_list_of_ranges_would(steps in steps()) {
        let tracker = tracker();
        let mut naive = Naive::default();
        let mut invalidations = Vec::new();
        let mut tickets = Vec::new();
        for (now, step) in (1..).zip(steps) {
            match step {
                Step::Begin(range) => {
                    invalidations.push(tracker.begin(range.clone()));
                    naive.active.push(range);
                    naive.changed = now;
                    naive.crowded |= naive.active.len() > EXACT;
                }
                Step::End(n) if !invalidations.is_empty() => {
                    let n = n % invalidations.len();
                    invalidations.swap_remove(n).end();
                    naive.retired.push((now, naive.active.swap_remove(n)));
                    naive.changed = now;
                    naive.crowded &= !naive.active.is_empty();
                }
                Step::Ticket(number) => {
                    let ticket = tracker.ticket(Ipa::new(number * PAGE_SIZE));
                    tickets.push((now, number, ticket));
                }
                Step::Check(n, block) if !tickets.is_empty() => {
                    let (taken, number, ticket) = tickets[n % tickets.len()];
                    let leaf = if block {
                        pages(number / REGION_PAGES * REGION_PAGES, REGION_PAGES)
                    } else {
                        page(number)
                    };
                    let verdict = tracker.check(ticket, &leaf);
                    let is_active = naive.active.iter().any(|range| overlap(range, &leaf));
                    let was_retired = naive
                        .retired
                        .iter()
                        .any(|(when, range)| *when > taken && overlap(range, &leaf));
                    if is_active {
                        prop_assert_eq!(verdict, Invalidated);
                    } else {
                        prop_assert!(verdict != Invalidated || naive.crowded);
                        prop_assert!(verdict != Unchanged || !was_retired);
                        prop_assert!(verdict == Unchanged || naive.changed > taken || naive.crowded);
                    }
                }
                Step::End(_) | Step::Check(..) => {}
            }
        }
        for invalidation in invalidations {
            invalidation.end();
        }
        prop_assert_eq!(tracker.fault(page(0)), Unchanged);
    }
}
