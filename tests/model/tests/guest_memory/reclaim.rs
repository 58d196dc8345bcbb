//! Memory is short: cold pages are compressed and come back as they were, VMs stay within their limits, guests give
//! memory back. On real memory, step by step.

mod balloon;
mod limits;

use memory::frames::{read_bytes, write_bytes};
use memory::{
    Access, BackingPolicy, BalloonError, FaultKind, FaultOutcome, IdleCpus, LogPolicy,
    MemorySystem, NotBacked, Object, Owner, SlotConfig, SlotId, StoreCounts, VmId, Watermarks,
};
use model::vms::{BLOCK, SLOT, START, Space, Vms, frame, slot};
use stage2::{Features, Ipa, Layout, Level, PAGE_SIZE, Pa};
use std::cell::Cell;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

const WATERMARKS: Watermarks = Watermarks { low: 40, high: 60 };
/// Memory is always short.
const ALWAYS: Watermarks = Watermarks {
    low: 1 << 40,
    high: 1 << 40,
};

/// A CPU that sleeps: how often it was woken.
#[derive(Debug, Default)]
struct Sleeper(AtomicU64);

impl IdleCpus for Sleeper {
    fn wake_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Sleeper {
    /// Whether it was woken since this was asked last.
    fn is_woken(&self) -> bool {
        self.0.swap(0, Ordering::Relaxed) != 0
    }
}

fn vm(number: usize) -> VmId {
    VmId::new(number).unwrap()
}

/// A machine whose memory is watched.
struct Machine {
    vms: Vms,
    system: &'static MemorySystem,
}

impl Deref for Machine {
    type Target = Vms;

    fn deref(&self) -> &Vms {
        &self.vms
    }
}

impl Machine {
    fn new(frames: usize) -> Self {
        let vms = Vms::new(frames);
        let system = vms.cpu.system();
        system.set_watermarks(Some(WATERMARKS));
        Self { vms, system }
    }

    fn space(&self, number: usize) -> Space {
        self.vms.space(number, BackingPolicy::default())
    }

    /// A VM with one slot of so many pages.
    fn vm_of(&self, number: usize, pages: u64, piece: Level) -> Space {
        let space = self.space(number);
        self.map(&space, self.anonymous(space.vm(), pages, piece));
        space
    }

    /// The guest's access to a page, as a CPU without its own access flags has it: where it leads to, or why not.
    fn access(&self, space: &Space, page: u64, access: Access) -> Result<Pa, FaultOutcome> {
        let ipa = START.offset(page * PAGE_SIZE);
        loop {
            let kind = match space.lookup(&self.cpu, ipa) {
                Some((leaf, _)) if !leaf.accessed() => FaultKind::AccessFlag,
                Some((leaf, level)) if access.allowed_by(leaf) => {
                    return Ok(frame(leaf, level, page));
                }
                Some(_) => FaultKind::Permission,
                None => FaultKind::Translation,
            };
            match self.fault(space, ipa, access, kind) {
                FaultOutcome::Resolved | FaultOutcome::Retry => {}
                other => return Err(other),
            }
        }
    }

    /// The guest fills a page with a number that it can be known by, and which compresses well.
    fn write(&self, space: &Space, page: u64, word: u64) -> Result<(), FaultOutcome> {
        let pa = self.access(space, page, Access::Write)?;
        for index in 0..8 {
            // SAFETY: the leaf maps memory of the arena, which backs the guest.
            unsafe { write_bytes(pa.offset(index * 512), &(word + index).to_ne_bytes()) };
        }
        Ok(())
    }

    /// The number that the guest finds a page filled with; 0 for a page of zeros.
    fn read(&self, space: &Space, page: u64) -> u64 {
        let pa = self.access(space, page, Access::Read).unwrap();
        let mut bytes = [0; PAGE_SIZE as usize];
        // SAFETY: as for a write.
        unsafe { read_bytes(pa, &mut bytes) };
        known_by(&bytes)
    }

    /// A CPU to be woken when memory is short.
    fn sleeper(&self) -> &'static Sleeper {
        let sleeper: &Sleeper = Box::leak(Box::default());
        self.system.set_idle_cpus(sleeper);
        sleeper
    }

    fn invalidations(&self) -> u64 {
        self.counters.stage2.tlbi_broadcast.get()
    }

    fn idle_until_relieved(&self) {
        while self.cpu.relieve() {}
        self.cpu.wait_for_epoch();
    }

    fn nothing_is_left(&self) {
        self.cpu.wait_for_epoch();
        let counts = self.counts();
        assert_eq!((counts.guest, counts.table), (0, 0), "{counts}");
        assert_eq!((counts.compressed, counts.pending), (0, 0), "{counts}");
        assert_eq!(self.system.compressed(), StoreCounts::default());
        for number in 0..3 {
            assert_eq!(self.pool.compressed_bytes(Owner::Vm(vm(number))), 0);
            assert!(self.pool.counts_of(vm(number)).is_zero());
        }
    }
}

fn known_by(bytes: &[u8]) -> u64 {
    let word_at = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
    let word = word_at(0);
    for (index, part) in bytes.chunks(512).enumerate() {
        let expected = if word == 0 { 0 } else { word + index as u64 };
        assert_eq!(u64::from_ne_bytes(part[..8].try_into().unwrap()), expected);
        assert!(part[8..].iter().all(|byte| *byte == 0));
    }
    word
}

#[test]
fn a_guest_of_twice_the_memory_finds_all_that_it_wrote() {
    const PAGES: u64 = 1500;
    let machine = Machine::new(800);
    let space = machine.vm_of(0, PAGES, Level::L3);
    for round in 1..=3 {
        for page in 0..PAGES {
            machine
                .write(&space, page, (round << 32) | (page + 1))
                .unwrap();
        }
        for page in (0..PAGES).rev() {
            assert_eq!(machine.read(&space, page), (round << 32) | (page + 1));
        }
    }
    let counters = machine.system.reclaim_counters();
    assert!(counters.compressed.get() > PAGES && counters.direct_steps.get() > 0);
    assert!(machine.counters.faults.brought_back.get() > PAGES);
    assert!(machine.system.compressed().pages > 0);
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn without_watermarks_nothing_is_compressed() {
    let machine = Machine::new(400);
    machine.system.set_watermarks(None);
    let space = machine.vm_of(0, 500, Level::L3);
    let ran_out = (0..500).find(|page| machine.write(&space, *page, 1).is_err());
    assert!(ran_out.is_some());
    assert!(!machine.cpu.relieve());
    assert_eq!(machine.system.compressed().pages, 0);
    // Once it may be, and there is room for it, the guest goes on where it was.
    machine.system.set_watermarks(Some(WATERMARKS));
    let some = START..START.offset(10 * PAGE_SIZE);
    assert_eq!(space.balloon(&machine.cpu, some), Ok(10));
    machine.cpu.wait_for_epoch();
    for page in ran_out.unwrap()..500 {
        machine.write(&space, page, 1).unwrap();
    }
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn idle_cpus_begin_below_the_low_watermark_and_end_at_the_high_one() {
    let machine = Machine::new(600);
    let space = machine.vm_of(0, 600, Level::L3);
    let mut page = 0;
    while machine.pool.free_frames() >= WATERMARKS.low {
        assert!(
            !machine.cpu.relieve(),
            "{} are free",
            machine.pool.free_frames()
        );
        machine.write(&space, page, page + 1).unwrap();
        page += 1;
    }
    assert_eq!(machine.system.reclaim_counters().idle_steps.get(), 0);
    machine.idle_until_relieved();
    let free = machine.pool.free_frames();
    assert!(
        (WATERMARKS.high..WATERMARKS.high + 100).contains(&free),
        "{free}"
    );
    for known in 0..page {
        assert_eq!(machine.read(&space, known), known + 1);
    }
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn a_cpu_is_woken_when_few_frames_are_left_and_no_fault_reclaims_if_it_is_in_time() {
    const PAGES: u64 = 1500;
    let machine = Machine::new(800);
    let sleeper = machine.sleeper();
    let space = machine.vm_of(0, PAGES, Level::L3);
    let mut woken = 0;
    for page in 0..PAGES {
        machine.write(&space, page, page + 1).unwrap();
        let is_short = machine.pool.free_frames() < WATERMARKS.low;
        assert_eq!(sleeper.is_woken(), is_short, "page {page}");
        if is_short {
            woken += 1;
            machine.idle_until_relieved();
            assert!(machine.pool.free_frames() >= WATERMARKS.high);
        }
    }
    assert!((5..60).contains(&woken), "{woken}");
    let counters = machine.system.reclaim_counters();
    assert_eq!(counters.direct_steps.get(), 0);
    assert!(counters.wakes.get() >= woken && counters.compressed.get() > PAGES / 3);
    assert!((0..PAGES).all(|page| machine.read(&space, page) == page + 1));
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

/// Blocks are taken from the pool by no CPU's cache.
#[test]
fn a_cpu_is_woken_when_blocks_have_taken_what_was_left() {
    let machine = Machine::new(5 * BLOCK as usize);
    let sleeper = machine.sleeper();
    let space = machine.vm_of(0, 5 * BLOCK, Level::L2);
    let low = BLOCK * 3 / 2;
    let marks = Watermarks { low, high: low };
    machine.system.set_watermarks(Some(marks));
    for block in 0..4 {
        machine.write(&space, block * BLOCK, 1).unwrap();
        let free = machine.pool.free_frames();
        assert_eq!(sleeper.is_woken(), free < low, "{free} are free");
    }
    assert!(machine.pool.free_frames() < low);
    space.destroy(&machine.cpu);
    machine.system.set_watermarks(None);
    machine.nothing_is_left();
}

#[test]
fn pages_that_are_compressed_together_cost_one_invalidation() {
    let machine = Machine::new(1200);
    let space = machine.vm_of(0, 1000, Level::L3);
    for page in 0..1000 {
        machine.write(&space, page, page + 1).unwrap();
    }
    machine.pool.set_limit(vm(0), Some(400));
    let before = machine.invalidations();
    machine.idle_until_relieved();
    let counters = machine.system.reclaim_counters();
    let (away, batches) = (counters.compressed.get(), counters.batches.get());
    assert!(away >= 550, "{away}");
    assert_eq!(away.div_ceil(16), batches, "sixteen at a time");
    // Ageing takes one for each step that finds pages.
    let invalidations = machine.invalidations() - before;
    let steps = counters.idle_steps.get();
    assert!(
        invalidations <= batches + steps,
        "{invalidations}: {batches} batches, {steps} steps"
    );
    assert!((0..1000).all(|page| machine.read(&space, page) == page + 1));
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn all_of_a_vms_memories_are_compressed() {
    const PAGES: [u64; 2] = [24, 40];
    let machine = Machine::new(1024);
    let space = machine.vm_of(0, PAGES[0], Level::L3);
    let other = SlotConfig {
        id: SlotId(1),
        start: START.offset(PAGES[0] * PAGE_SIZE),
        ..slot(machine.anonymous(space.vm(), PAGES[1], Level::L3))
    };
    space.map_object(&machine.cpu, other).unwrap();
    let all = 0..PAGES[0] + PAGES[1];
    // Neighbours on the list are of one and of the other.
    for page in (0..PAGES[1]).flat_map(|page| [PAGES[0] + page, page % PAGES[0]]) {
        machine.write(&space, page, page + 1).unwrap();
    }
    machine.system.set_watermarks(Some(ALWAYS));
    for _ in 0..16 {
        machine.cpu.relieve();
    }
    machine.cpu.wait_for_epoch();
    assert_eq!(
        (machine.system.compressed().pages, machine.guest()),
        (64, 0)
    );
    machine.system.set_watermarks(None);
    all.for_each(|page| assert_eq!(machine.read(&space, page), page + 1));
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

/// What hasn't been found yet may be found by the next step.
#[test]
fn a_step_looks_at_4096_pages_and_finds_64() {
    let machine = Machine::new(1024);
    let space = machine.vm_of(0, 10_000, Level::L3);
    (5000..5200).for_each(|page| machine.write(&space, page, page).unwrap());
    machine.system.set_watermarks(Some(ALWAYS));
    let found = &machine.system.reclaim_counters().found;
    assert!(machine.cpu.relieve(), "there is more to look at");
    assert_eq!(found.get(), 0);
    assert!(machine.cpu.relieve());
    assert_eq!(found.get(), 64);
    machine.idle_until_relieved();
    assert_eq!((found.get(), machine.guest()), (200, 0));
    machine.system.set_watermarks(None);
    (5000..5200).for_each(|page| assert_eq!(machine.read(&space, page), page));
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn a_fault_that_has_run_out_compresses_few_pages() {
    let machine = Machine::new(2000);
    let space = machine.vm_of(0, 600, Level::L3);
    machine.pool.set_limit(vm(0), Some(200));
    let counters = machine.system.reclaim_counters();
    for page in 0..600 {
        let (away, steps) = (counters.compressed.get(), counters.direct_steps.get());
        machine.write(&space, page, page + 1).unwrap();
        let steps = counters.direct_steps.get() - steps;
        assert!(counters.compressed.get() - away <= 8 * steps);
    }
    assert!(counters.compressed.get() > 400);
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn what_is_used_all_the_time_stays_and_what_is_not_goes() {
    const HOT: u64 = 350;
    let machine = Machine::new(700);
    let space = machine.vm_of(0, 2000, Level::L3);
    for page in 0..2000 {
        machine.write(&space, page, page + 1).unwrap();
        for hot in 0..HOT.min(page) {
            machine.access(&space, hot, Access::Read).unwrap();
        }
        machine.cpu.relieve();
    }
    let back = machine.counters.faults.brought_back.get();
    assert!(back < HOT / 2, "{back} pages in use were compressed");
    let counters = machine.system.reclaim_counters();
    assert!(counters.activated.get() > HOT && counters.deactivated.get() > HOT);
    let (active, inactive) = machine.system.listed_pages();
    assert!(active > 200 && inactive > 200, "{active} {inactive}");
    assert_eq!(machine.read(&space, HOT + 1), HOT + 2);
    assert_eq!(
        machine.counters.faults.brought_back.get(),
        back + 1,
        "a cold page was compressed"
    );
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

/// A block is one page on the lists of reclaim: an access to any page of it, in any slot that maps it, counts.
#[test]
fn a_block_is_in_use_by_any_page_of_it_in_any_slot() {
    const BLOCKS: u64 = 6;
    const HOT: u64 = 2;
    /// Where no block fits.
    const SECOND: Ipa = Ipa::new(0x8000_5000);
    let machine = Machine::new(8 * BLOCK as usize);
    let space = machine.space(0);
    let object = machine.anonymous(space.vm(), BLOCKS * BLOCK, Level::L2);
    machine.map(&space, object.clone());
    let config = SlotConfig {
        id: SlotId(1),
        start: SECOND,
        ..slot(object)
    };
    space.map_object(&machine.cpu, config).unwrap();
    for page in (0..BLOCKS).map(|block| block * BLOCK) {
        machine.write(&space, page, page + 1).unwrap();
    }
    let ipa = SECOND.offset((HOT * BLOCK + 77) * PAGE_SIZE);
    let access = |kind| machine.fault(&space, ipa, Access::Read, kind);
    assert_eq!(access(FaultKind::Translation), FaultOutcome::Resolved);
    // All are found, and none has to go; then they have to.
    let high = 1 << 40;
    for (low, split) in [(1, 0), (high, BLOCKS - 1)] {
        machine
            .system
            .set_watermarks(Some(Watermarks { low, high }));
        machine.cpu.relieve();
        assert_eq!(machine.system.reclaim_counters().split.get(), split);
        assert_eq!(access(FaultKind::AccessFlag), FaultOutcome::Resolved);
    }
    machine.system.set_watermarks(Some(WATERMARKS));
    let (_, level, _) = machine.vms.access(&space, HOT * BLOCK, Access::Read);
    assert_eq!(level, Level::L2, "it is whole");
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn pages_of_zeros_are_dropped() {
    let machine = Machine::new(400);
    let space = machine.vm_of(0, 600, Level::L3);
    for page in 0..600 {
        machine.access(&space, page, Access::Write).unwrap();
    }
    assert!(machine.system.reclaim_counters().zeros.get() > 200);
    assert_eq!(machine.system.compressed().pages, 0);
    assert!((0..600).all(|page| machine.read(&space, page) == 0));
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn what_does_not_compress_stays_and_running_out_loses_nothing() {
    let machine = Machine::new(400);
    let space = machine.vm_of(0, 600, Level::L3);
    let noise = |page: u64| -> Vec<u8> {
        let mut state = page + 1;
        let words = (0..512).map(|_| {
            state = state
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            (state ^ state >> 29).to_ne_bytes()
        });
        words.flatten().collect()
    };
    let mut written = 0;
    let outcome = loop {
        match machine.access(&space, written, Access::Write) {
            // SAFETY: the leaf maps memory of the arena, which backs the guest.
            Ok(pa) => unsafe { write_bytes(pa, &noise(written)) },
            Err(outcome) => break outcome,
        }
        written += 1;
    };
    assert_eq!(outcome, FaultOutcome::OutOfFrames);
    assert!(machine.system.reclaim_counters().incompressible.get() > 0);
    assert!(written > 200);
    let mut bytes = vec![0; PAGE_SIZE as usize];
    for page in 0..written {
        let ipa = START.offset(page * PAGE_SIZE);
        space.read_guest(&machine.cpu, ipa, &mut bytes).unwrap();
        assert!(bytes == noise(page), "page {page}");
    }
    // What a guest gives up is room for another page.
    assert_eq!(machine.access(&space, written, Access::Write), Err(outcome));
    let page = START..START.offset(PAGE_SIZE);
    assert_eq!(space.balloon(&machine.cpu, page), Ok(1));
    assert!(machine.access(&space, written, Access::Write).is_ok());
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn cold_blocks_are_taken_apart() {
    let machine = Machine::new(8 * BLOCK as usize);
    let space = machine.vm_of(0, 12 * BLOCK, Level::L2);
    for page in 0..12 * BLOCK {
        machine.write(&space, page, page + 1).unwrap();
    }
    assert!(machine.system.reclaim_counters().split.get() >= 4);
    for page in 0..12 * BLOCK {
        assert_eq!(machine.read(&space, page), page + 1);
    }
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn forks_and_the_hypervisor_find_what_is_compressed() {
    const PAGES: u64 = 600;
    let machine = Machine::new(660);
    let parent = machine.vm_of(0, PAGES, Level::L3);
    for page in 0..PAGES {
        machine.write(&parent, page, page + 1).unwrap();
    }
    machine.idle_until_relieved();
    let compressed = machine.system.compressed().pages;
    assert!(compressed > 0);
    let child = machine.space(1);
    parent.fork(&machine.cpu, &child).unwrap();
    assert_eq!(machine.system.compressed().pages, 2 * compressed);

    let before = machine.counters.faults.brought_back.get();
    let mut bytes = vec![0; PAGE_SIZE as usize];
    for page in 0..PAGES {
        let ipa = START.offset(page * PAGE_SIZE);
        child.read_guest(&machine.cpu, ipa, &mut bytes).unwrap();
        assert_eq!(known_by(&bytes), page + 1);
        let mut end = [0; 600];
        let last = ipa.offset(PAGE_SIZE - 600);
        child.read_guest(&machine.cpu, last, &mut end).unwrap();
        assert_eq!(end, bytes[PAGE_SIZE as usize - 600..]);
        let (word, part) = (u64::to_ne_bytes(7), ipa.offset(17));
        parent.write_guest(&machine.cpu, part, &word).unwrap();
        let mut back = [0; 8];
        parent.read_guest(&machine.cpu, part, &mut back).unwrap();
        assert_eq!(back, word);
    }
    assert_eq!(machine.counters.faults.brought_back.get(), before);
    assert!((0..PAGES).all(|page| machine.read(&child, page) == page + 1));
    parent.destroy(&machine.cpu);
    assert!((0..PAGES).all(|page| machine.read(&child, page) == page + 1));
    child.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn what_was_written_before_it_was_compressed_is_in_the_dirty_log() {
    let machine = Machine::new(400);
    let space = machine.vm_of(0, 600, Level::L3);
    let policy = LogPolicy::default();
    space.enable_dirty_log(&machine.cpu, SLOT, &policy).unwrap();
    for page in 0..600 {
        machine.write(&space, page, page + 1).unwrap();
    }
    assert!(machine.system.compressed().pages > 200);
    let mut words = [0; 10];
    let log = space.get_dirty_log(&machine.cpu, SLOT, 0, &mut words);
    log.unwrap();
    let marked: u32 = words.iter().map(|word: &u64| word.count_ones()).sum();
    assert_eq!(marked, 600);
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn a_slot_that_goes_takes_along_what_was_compressed() {
    let machine = Machine::new(400);
    let space = machine.vm_of(0, 600, Level::L3);
    for page in 0..600 {
        machine.write(&space, page, page + 1).unwrap();
    }
    assert!(machine.system.compressed().pages > 0);
    space.remove_slot(&machine.cpu, SLOT).unwrap();
    assert_eq!(machine.system.compressed(), StoreCounts::default());
    assert_eq!(machine.counts().compressed, 0);
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn an_object_that_gets_the_name_of_a_larger_one_is_not_taken_for_it() {
    let machine = Machine::new(400);
    machine.system.set_watermarks(Some(Watermarks {
        low: 1 << 20,
        high: 1 << 20,
    }));
    let fill = |pages| {
        let space = machine.vm_of(0, pages, Level::L3);
        (0..pages).for_each(|page| machine.write(&space, page, page + 1).unwrap());
        space
    };
    let space = fill(64);
    // It finds all pages, compresses half of them, and leaves the others listed.
    assert!(machine.cpu.relieve());
    assert_eq!(machine.system.compressed().pages, 32);
    space.destroy(&machine.cpu);
    let space = fill(3);
    machine.idle_until_relieved();
    assert_eq!(machine.system.compressed().pages, 3);
    (0..3).for_each(|page| assert_eq!(machine.read(&space, page), page + 1));
    space.destroy(&machine.cpu);
    machine.nothing_is_left();
}

#[test]
fn with_any_number_of_frames_what_was_written_is_there_and_nothing_is_lost() {
    const PAGES: u64 = 60;
    let mut all_went = 0;
    for frames in 30..130 {
        let machine = Machine::new(frames);
        let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
        let Ok(space) = Space::new(&machine.cpu, vm(0), layout) else {
            continue;
        };
        let bytes = PAGES * PAGE_SIZE;
        let account = Owner::Vm(vm(0));
        if let Ok(object) = Object::anonymous(&machine.cpu, account, bytes, Level::L3) {
            space.map_object(&machine.cpu, slot(object)).unwrap();
            let wrote: Vec<bool> = (0..PAGES)
                .map(|page| machine.write(&space, page, page + 1).is_ok())
                .collect();
            all_went += u64::from(wrote.iter().all(|went| *went));
            let child = Space::new(&machine.cpu, vm(1), layout);
            let forked = child.map(|child| {
                let forked = space.fork(&machine.cpu, &child).is_ok();
                (child, forked)
            });
            let mut bytes = vec![0; PAGE_SIZE as usize];
            for (page, wrote) in (0..PAGES).zip(wrote) {
                let ipa = START.offset(page * PAGE_SIZE);
                space.read_guest(&machine.cpu, ipa, &mut bytes).unwrap();
                let expected = if wrote { page + 1 } else { 0 };
                assert_eq!(known_by(&bytes), expected, "{frames} frames");
                if let Ok((child, true)) = &forked {
                    child.read_guest(&machine.cpu, ipa, &mut bytes).unwrap();
                    assert_eq!(known_by(&bytes), expected, "{frames} frames");
                }
            }
            if let Ok((child, _)) = forked {
                child.destroy(&machine.cpu);
            }
        }
        space.destroy(&machine.cpu);
        machine.nothing_is_left();
    }
    assert!((10..90).contains(&all_went), "{all_went}");
}

thread_local! {
    /// What happens when a CPU is to be woken.
    static MEANWHILE: Cell<Option<Box<dyn FnOnce()>>> = Cell::default();
}

/// While it looks for frames, others go on.
#[derive(Debug)]
struct Others;

impl IdleCpus for Others {
    fn wake_one(&self) {
        MEANWHILE.take().into_iter().for_each(|happens| happens());
    }
}

/// An image takes the place of the memory that is to be written, while the hypervisor makes room for what it writes: the image
/// is everybody's, and stays as it is.
#[test]
fn what_the_hypervisor_writes_goes_into_no_image_that_comes_meanwhile() {
    const IMAGE: SlotId = SlotId(1);
    let machine: &Machine = Box::leak(Box::new(Machine::new(400)));
    let cpu = &machine.cpu;
    machine.system.set_watermarks(None);
    let space: &Space = Box::leak(Box::new(machine.vm_of(0, 1, Level::L3)));
    let at = START.offset(PAGE_SIZE);
    let second = SlotConfig {
        id: IMAGE,
        start: at,
        ..slot(machine.anonymous(space.vm(), 1, Level::L3))
    };
    space.map_object(cpu, second).unwrap();
    machine.write(space, 0, 5).unwrap();
    let image = Object::image(cpu, &[7; PAGE_SIZE as usize]).unwrap();
    // The pool gets frames when there are none, which the CPU has yet to take.
    let hoarder = machine.vm_of(1, 1000, Level::L3);
    let taken = (0..1000).find(|page| machine.write(&hoarder, *page, 1).is_err());
    assert!(taken.is_some());
    let range = START..START.offset(8 * PAGE_SIZE);
    assert_eq!(hoarder.balloon(cpu, range), Ok(8));
    cpu.wait_for_epoch();
    machine.system.set_watermarks(Some(Watermarks {
        low: 1 << 40,
        high: 1 << 40,
    }));
    machine.system.set_idle_cpus(&Others);
    let replacing = image.clone();
    MEANWHILE.set(Some(Box::new(move || {
        space.remove_slot(cpu, IMAGE).unwrap();
        let config = SlotConfig {
            id: IMAGE,
            start: at,
            read_only: true,
            ..slot(replacing)
        };
        space.map_object(cpu, config).unwrap();
    })));
    let written = space.write_guest(cpu, START, &[9; 2 * PAGE_SIZE as usize]);
    assert!(MEANWHILE.take().is_none(), "nothing came in between");
    assert_eq!(written, Err(NotBacked::NoSlot { ipa: at }));
    let mut bytes = [0; 2];
    space
        .read_guest(cpu, START.offset(PAGE_SIZE - 1), &mut bytes)
        .unwrap();
    assert_eq!(bytes, [9, 7]);
}
