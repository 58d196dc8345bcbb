//! Pages come out as they went in, in any order; equal-word pages take no room; all frames are freed at the end.

use super::*;
use crate::frames::{Counts, arena};
use proptest::prelude::*;
use std::boxed::Box;
use std::thread;

fn store_of(frames: usize) -> (Store, &'static FramePool) {
    let pool = Box::leak(Box::new(FramePool::new()));
    // SAFETY: the arena is this pool's alone.
    unsafe { pool.add(arena::leak(frames)) };
    (Store::new(pool), pool)
}

/// A page whose first `different` bytes don't compress, and whose others do.
fn page(seed: u64, different: usize) -> Box<[u8; PAGE]> {
    let mut page = Box::new([seed as u8; PAGE]);
    let mut state = seed | 1;
    for byte in &mut page[..different] {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
    page
}

fn out_of(store: &Store, handle: Handle) -> Box<[u8; PAGE]> {
    let mut page = Box::new([0x5a; PAGE]);
    store.get(handle, &mut page);
    page
}

#[test]
fn pages_whose_words_are_all_alike_take_no_room() {
    let (store, pool) = store_of(0);
    for half in [0u32, u32::MAX, 0xdead_beef] {
        let mut page = [0; PAGE];
        for bytes in page.chunks_exact_mut(4) {
            bytes.copy_from_slice(&half.to_ne_bytes());
        }
        let handle = store.put(&page).unwrap();
        assert_eq!(handle.bytes(), 0);
        assert_eq!(*out_of(&store, handle), page);
        store.drop(handle);
    }
    let odd = page(3, 1);
    assert_eq!(store.put(&odd), Err(Refused::NoRoom));
    assert_eq!(pool.counts().total, 0);
    assert_eq!(store.counts(), StoreCounts::default());
}

#[test]
fn what_does_not_shrink_to_three_quarters_is_refused_and_takes_nothing() {
    let (store, pool) = store_of(64);
    assert_eq!(store.put(&page(1, PAGE)), Err(Refused::Incompressible));
    assert_eq!(store.put(&page(1, LARGEST)), Err(Refused::Incompressible));
    assert_eq!(pool.free_frames(), 64);
    let handle = store.put(&page(1, LARGEST - 64)).unwrap();
    assert_eq!(handle.bytes(), LARGEST as u64);
    assert_eq!(out_of(&store, handle), page(1, LARGEST - 64));
}

#[test]
fn every_shape_fits_its_span_and_wastes_less_than_a_tenth() {
    for shape in SHAPES {
        let used = shape.slots * shape.bytes;
        assert!(
            used <= shape.frames * PAGE && shape.frames <= MOST_FRAMES,
            "{shape:?}"
        );
        assert!(shape.slots >= 2 && shape.slots <= MOST_SLOTS, "{shape:?}");
        assert!(10 * used >= 9 * shape.frames * PAGE, "{shape:?}");
        assert_eq!(shape.all_free().count_ones() as usize, shape.slots);
    }
}

#[test]
fn without_room_for_all_of_a_span_nothing_is_kept() {
    let class = CLASSES - 1;
    assert_eq!(SHAPES[class].frames, 3);
    let (store, pool) = store_of(2);
    assert_eq!(store.put(&page(1, LARGEST - 64)), Err(Refused::NoRoom));
    assert_eq!(
        pool.counts(),
        Counts {
            free: 2,
            total: 2,
            ..Counts::default()
        }
    );
    assert_eq!(store.counts(), StoreCounts::default());
}

#[test]
fn a_span_is_filled_before_another_is_begun_and_goes_when_its_last_page_does() {
    let (store, pool) = store_of(64);
    let shape = SHAPES[CLASSES - 1];
    let mut handles: Vec<Handle> = (0..2 * shape.slots as u64)
        .map(|seed| store.put(&page(seed + 1, LARGEST - 64)).unwrap())
        .collect();
    let compressed = || pool.counts().compressed as usize;
    assert_eq!(compressed(), 2 * shape.frames);
    // One of the second span, then all of the first: its frames go, and the second has room for one.
    store.drop(handles.remove(shape.slots));
    for handle in handles.drain(..shape.slots) {
        store.drop(handle);
    }
    assert_eq!(compressed(), shape.frames);
    handles.push(store.put(&page(77, LARGEST - 64)).unwrap());
    assert_eq!(compressed(), shape.frames);
    assert_eq!(
        out_of(&store, handles[handles.len() - 1]),
        page(77, LARGEST - 64)
    );
    for handle in handles {
        store.drop(handle);
    }
    assert_eq!(pool.free_frames(), 64);
}

#[test]
fn spans_that_have_gone_are_used_again_before_there_are_more() {
    const SPANS: usize = 5;
    let class = CLASSES - 1;
    let (store, pool) = store_of(64);
    for round in 1..=3 {
        let pages = 0..(SPANS * SHAPES[class].slots) as u64;
        let put = |seed| store.put(&page(seed + round, LARGEST - 64)).unwrap();
        let handles: Vec<Handle> = pages.map(put).collect();
        assert_eq!(store.classes[class].lock().spans.len(), SPANS);
        handles.into_iter().for_each(|handle| store.drop(handle));
        assert_eq!(pool.free_frames(), 64);
    }
}

#[test]
fn a_copy_outlives_what_it_was_made_of() {
    let (store, pool) = store_of(64);
    for different in [0, 1000] {
        let original = store.put(&page(5, different)).unwrap();
        let copy = store.copy(original).unwrap();
        assert_eq!(store.counts().pages, 2);
        store.drop(original);
        let other = store.put(&page(6, different)).unwrap();
        assert_eq!(out_of(&store, copy), page(5, different));
        store.drop(copy);
        store.drop(other);
    }
    assert_eq!(pool.free_frames(), 64);
    assert_eq!(store.counts(), StoreCounts::default());
}

#[test]
fn pages_come_and_go_on_many_cpus() {
    const CPUS: u64 = 4;
    const ROUNDS: u64 = if cfg!(miri) { 4 } else { 400 };
    let (store, pool) = store_of(512);
    thread::scope(|scope| {
        for cpu in 0..CPUS {
            let store = &store;
            scope.spawn(move || {
                let mut held: Vec<(Handle, u64)> = Vec::new();
                for round in 0..ROUNDS {
                    let seed = cpu * ROUNDS + round;
                    let different = (seed * 389 % 2900) as usize;
                    held.push((store.put(&page(seed, different)).unwrap(), seed));
                    if round % 3 == 2 {
                        let (handle, seed) = held.swap_remove((round / 2) as usize % held.len());
                        let different = (seed * 389 % 2900) as usize;
                        assert_eq!(out_of(store, handle), page(seed, different));
                        store.drop(handle);
                    }
                    if held.len() > 40 {
                        held.drain(..30).for_each(|(handle, _)| store.drop(handle));
                    }
                }
                for (handle, seed) in held {
                    let different = (seed * 389 % 2900) as usize;
                    assert_eq!(out_of(store, handle), page(seed, different));
                    store.drop(handle);
                }
            });
        }
    });
    assert_eq!(pool.free_frames(), 512);
    assert_eq!(store.counts(), StoreCounts::default());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 64 }))]
    /// Pages of any compressibility come and go in any order, in a pool that may be too small for them.
    #[test]
    fn what_goes_in_comes_out(
        steps in prop::collection::vec((any::<bool>(), any::<u64>(), 0usize..PAGE), 1..150),
        frames in prop::sample::select(vec![3usize, 20, 200]),
    ) {
        let (store, pool) = store_of(frames);
        let mut held: Vec<(Handle, u64, usize)> = Vec::new();
        for (put, seed, different) in steps {
            if put || held.is_empty() {
                match store.put(&page(seed, different)) {
                    Ok(handle) => {
                        prop_assert!(handle.bits() < 1 << Handle::BITS);
                        held.push((Handle::from_bits(handle.bits()), seed, different));
                    }
                    Err(Refused::Incompressible) => prop_assert!(different > LARGEST - 300),
                    Err(Refused::NoRoom) => prop_assert!(pool.free_frames() < MOST_FRAMES as u64),
                }
            } else {
                let (handle, seed, different) = held.swap_remove(seed as usize % held.len());
                prop_assert_eq!(out_of(&store, handle), page(seed, different));
                store.drop(handle);
            }
            let counts = store.counts();
            prop_assert_eq!(counts.pages, held.len() as u64);
            prop_assert_eq!(counts.bytes, held.iter().map(|(handle, ..)| handle.bytes()).sum::<u64>());
            prop_assert!(counts.bytes <= pool.counts().compressed * PAGE_SIZE);
            prop_assert_eq!(pool.counts().check(), Ok(()));
        }
        for (handle, seed, different) in held {
            prop_assert_eq!(out_of(&store, handle), page(seed, different));
            store.drop(handle);
        }
        prop_assert_eq!(pool.free_frames(), frames as u64);
        prop_assert_eq!(store.counts(), StoreCounts::default());
    }
}
