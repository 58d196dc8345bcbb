//! Runs of every size are allocated and freed: none overlap, none are lost, all are counted.

use super::*;
use crate::frames::arena;
use proptest::prelude::*;

const VM: VmId = VmId::new(3).unwrap();

fn pool_of(frames: usize) -> (FramePool, Range<Pa>) {
    let pool = FramePool::new();
    let range = arena::leak(frames);
    // SAFETY: the arena is this pool's alone.
    unsafe { pool.add(range.clone()) };
    (pool, range)
}

#[test]
fn frame_0_and_broken_frames_are_never_handed_out() {
    let pool = FramePool::new();
    // SAFETY: nothing is accessed, only numbers are allocated.
    unsafe {
        pool.add(Pa::new(0)..Pa::new(2 * PAGE_SIZE + 5));
        pool.add(Pa::new(0x10_0001)..Pa::new(0x10_2fff));
        pool.add(Pa::new(0x20_0001)..Pa::new(0x20_0002));
        pool.add(Pa::new(u64::MAX - 5)..Pa::new(u64::MAX));
    }
    let mut all: Vec<u64> =
        core::iter::from_fn(|| pool.allocate(FrameSize::Page4K, Owner::Hypervisor, Purpose::Heap))
            .map(Pa::get)
            .collect();
    all.sort();
    assert_eq!(all, [0x1000, 0x10_1000]);
    assert_eq!(pool.counts().total, 2);
}

#[test]
fn a_gibibyte_comes_in_one_aligned_piece() {
    let (pool, range) = pool_of(MAX_RUN);
    assert_eq!(
        pool.allocate(FrameSize::Block1G, Owner::Vm(VM), Purpose::Guest),
        Some(range.start)
    );
    assert_eq!(
        pool.allocate(FrameSize::Page4K, Owner::Vm(VM), Purpose::Guest),
        None
    );
    assert_eq!(
        pool.counts_of(VM),
        VmCounts {
            table: 0,
            guest: MAX_RUN as u64,
            pending: 0
        }
    );
    pool.free(
        range.start,
        FrameSize::Block1G,
        Owner::Vm(VM),
        Purpose::Guest,
    );
    assert!(pool.counts_of(VM).is_zero());
    assert_eq!(pool.allocate_run(3, Owner::Vm(VM), Purpose::Guest), None);
    assert_eq!(
        pool.allocate_run(MAX_RUN * 2, Owner::Vm(VM), Purpose::Guest),
        None
    );
    assert_eq!(pool.allocate_run(0, Owner::Vm(VM), Purpose::Guest), None);
}

#[test]
fn a_root_is_zeroed_and_is_pending_until_the_epoch_lets_go() {
    let (pool, range) = pool_of(32);
    // SAFETY: the arena is in nobody's use yet.
    unsafe { crate::frames::write_bytes(range.start, &[0xff; 32 * PAGE_SIZE as usize]) };
    let root = pool.allocate_root(16, VM).unwrap();
    assert!(root.is_aligned(16 * PAGE_SIZE));
    let mut word = [0xff; 128];
    // SAFETY: the root is this test's.
    unsafe { crate::frames::read_bytes(root, &mut word) };
    assert_eq!(word, [0; 128]);
    assert_eq!(
        pool.counts_of(VM),
        VmCounts {
            table: 16,
            guest: 0,
            pending: 0
        }
    );

    pool.note_pending(VM, 16);
    assert_eq!(
        pool.counts_of(VM),
        VmCounts {
            table: 0,
            guest: 0,
            pending: 16
        }
    );
    // SAFETY: nobody uses the root.
    unsafe { pool.release_deferred(root, 16, VM) };
    assert!(pool.counts_of(VM).is_zero());
    assert_eq!(
        pool.counts(),
        Counts {
            cached: 16,
            free: 16,
            total: 32,
            ..Counts::default()
        }
    );

    assert_eq!(pool.reclaim_released(), 16);
    assert_eq!(pool.reclaim_released(), 0);
    assert_eq!(
        pool.counts(),
        Counts {
            free: 32,
            total: 32,
            ..Counts::default()
        }
    );
    assert!(
        pool.allocate_run(32, Owner::Hypervisor, Purpose::Heap)
            .is_some(),
        "the run has merged again"
    );
}

#[test]
fn pieces_of_guest_memory_come_home_through_the_epoch_whole() {
    let (pool, range) = pool_of(1024);
    let piece = pool
        .allocate(FrameSize::Block2M, Owner::Vm(VM), Purpose::Guest)
        .unwrap();
    pool.guest_leaving(Owner::Vm(VM), 512);
    let counts = pool.counts();
    assert_eq!((counts.guest, counts.cached, counts.free), (0, 512, 512));
    assert!(pool.counts_of(VM).is_zero());
    // SAFETY: nobody uses the piece.
    unsafe { pool.release_guest_piece(piece, FrameSize::Block2M) };
    assert_eq!(pool.reclaim_released(), 512);
    assert_eq!(
        pool.allocate_run(1024, Owner::Hypervisor, Purpose::Compressed),
        Some(range.start),
        "the piece has merged again"
    );
    let counts = pool.counts();
    assert_eq!((counts.compressed, counts.cached), (1024, 0));
    assert_eq!(counts.check(), Ok(()));
}

#[test]
fn the_last_frames_of_a_fragmented_pool_are_found_for_a_cache() {
    let (pool, range) = pool_of(64);
    let mut all = [Pa::new(0); 64];
    assert_eq!(pool.take_for_cache(&mut all).0, 64);
    let mut fragments: Vec<Pa> = all.into_iter().step_by(2).collect();
    fragments.extend(all.get(41));
    for fragment in &fragments {
        pool.return_from_cache(*fragment);
    }
    let mut found = [Pa::new(0); 40];
    assert_eq!(pool.take_for_cache(&mut found).0, fragments.len());
    let mut found = found[..fragments.len()].to_vec();
    found.sort();
    fragments.sort();
    assert_eq!(found, fragments);
    assert!(range.contains(&found[0]));
    assert_eq!(pool.free_frames(), 0);
}

#[test]
fn the_frames_that_are_kept_go_to_compressed_memory_only() {
    let (pool, _) = pool_of(8);
    pool.keep_for_compressed(3);
    assert_eq!(pool.take_for_cache(&mut [Pa::new(0); 8]).0, 5);
    for purpose in [Purpose::Guest, Purpose::Heap, Purpose::Table] {
        assert_eq!(pool.allocate_run(1, Owner::Hypervisor, purpose), None);
    }
    for _ in 0..3 {
        let taken = pool.allocate_run(1, Owner::Hypervisor, Purpose::Compressed);
        assert!(taken.is_some());
    }
    assert_eq!(pool.free_frames(), 0);
}

#[test]
fn a_run_of_guest_memory_fits_what_its_owner_may_have_or_is_refused() {
    let (pool, _range) = pool_of(64);
    let guest = |frames| pool.allocate_run(frames, Owner::Vm(VM), Purpose::Guest);
    pool.set_limit(VM, Some(7));
    pool.charge_compressed(Owner::Vm(VM), PAGE_SIZE + 1);
    assert_eq!(pool.room(VM), Some(5), "a frame that is begun counts");
    assert_eq!(guest(8), None);
    assert!(guest(4).is_some());
    assert_eq!((guest(2), pool.room(VM)), (None, Some(1)));
    assert!(guest(1).is_some());
    assert_eq!((guest(1), pool.over_limit(VM)), (None, 0));
    let free = |owner, purpose| pool.allocate_run(8, owner, purpose).is_some();
    assert!(free(Owner::Vm(VM), Purpose::Table), "tables don't count");
    assert!(free(Owner::Shared, Purpose::Guest));
    pool.set_limit(VM, Some(2));
    assert_eq!((pool.room(VM), pool.over_limit(VM)), (Some(0), 5));
}

#[test]
fn the_early_heap_is_counted() {
    let (pool, _) = pool_of(4);
    pool.count_heap(7);
    assert_eq!(
        pool.counts(),
        Counts {
            heap: 7,
            free: 4,
            total: 11,
            ..Counts::default()
        }
    );
    assert_eq!(pool.counts().check(), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 }))]
    /// Allocates (even steps) and frees (odd) runs of all sizes, by different owners, from a pool with a hole in it.
    #[test]
    fn runs_never_overlap_and_all_come_back(steps in prop::collection::vec((any::<bool>(), 0u32..12, 0usize..4), 1..200)) {
        const FRAMES: usize = 4096;
        let base = Pa::new(1 << 30);
        let pool = FramePool::new();
        // SAFETY: nothing is accessed, only numbers are allocated.
        unsafe {
            pool.add(base..base.offset(1000 * PAGE_SIZE));
            pool.add(base.offset(1001 * PAGE_SIZE)..base.offset(FRAMES as u64 * PAGE_SIZE));
        }
        let owners = [
            (Owner::Hypervisor, Purpose::Heap),
            (Owner::Vm(VM), Purpose::Guest),
            (Owner::Vm(VM), Purpose::Table),
            (Owner::Shared, Purpose::Guest),
        ];
        let mut held: Vec<(u64, usize, usize)> = Vec::new();
        for (allocate, order, which) in steps {
            let frames = 1 << order;
            if allocate {
                let (owner, purpose) = owners[which];
                if let Some(pa) = pool.allocate_run(frames, owner, purpose) {
                    let bytes = frames as u64 * PAGE_SIZE;
                    prop_assert!(pa.is_aligned(bytes));
                    let hole = base.get() + 1000 * PAGE_SIZE;
                    let within = |start: u64, size: u64, at: u64| start <= at && at < start + size;
                    prop_assert!(!within(pa.get(), bytes, hole));
                    for (start, size, _) in &held {
                        let size = *size as u64 * PAGE_SIZE;
                        prop_assert!(!within(pa.get(), bytes, *start) && !within(*start, size, pa.get()));
                    }
                    held.push((pa.get(), frames, which));
                }
            } else if !held.is_empty() {
                let (start, frames, which) = held.swap_remove(order as usize * 7 % held.len());
                pool.free_run(Pa::new(start), frames, owners[which].0, owners[which].1);
            }
            let of = |which: usize| held.iter().filter(|run| run.2 == which).map(|run| run.1 as u64).sum::<u64>();
            let counts = pool.counts();
            prop_assert_eq!(counts.check(), Ok(()));
            prop_assert_eq!((counts.heap, counts.guest, counts.table), (of(0), of(1) + of(3), of(2)));
            prop_assert_eq!(pool.counts_of(VM), VmCounts { table: of(2), guest: of(1), pending: 0 });
            prop_assert_eq!(pool.shared_frames(), of(3));
        }
        for (start, frames, which) in held {
            pool.free_run(Pa::new(start), frames, owners[which].0, owners[which].1);
        }
        let counts = pool.counts();
        prop_assert_eq!((counts.free, counts.total), (FRAMES as u64 - 1, FRAMES as u64 - 1));
        prop_assert!(pool.allocate_run(2048, Owner::Hypervisor, Purpose::Heap).is_some());
    }
}
