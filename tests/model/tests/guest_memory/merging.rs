//! Pages of running VMs are merged and parted again, on real memory: what every guest reads is what it wrote.

use memory::frames::arena;
use memory::{
    Access, BackingPolicy, FaultKind, FaultOutcome, LogPolicy, MergeError, MergePolicy,
    MergeStatistics, Object, Owner, PageMerging, SlotConfig, SlotId,
};
use model::vms::{BLOCK, SLOT, START, Space, Vms, slot};
use proptest::prelude::*;
use stage2::{Level, PAGE_SIZE};
use std::collections::BTreeMap;
use std::sync::Arc;

/// CPU 0 of a machine, its VMs, and the scanner.
struct Machine {
    vms: Vms,
    merging: PageMerging,
    spaces: Vec<Space>,
}

impl Machine {
    fn new(frames: usize, policy: MergePolicy) -> Self {
        Self {
            vms: Vms::new(frames),
            merging: PageMerging::new(policy),
            spaces: Vec::new(),
        }
    }

    /// Two VMs of `pages` pages each, in pieces of the span of `piece`, whose pages may be merged.
    fn with_two(frames: usize, pages: u64, piece: Level, policy: MergePolicy) -> Self {
        let mut machine = Self::new(frames, policy);
        for _ in 0..2 {
            let object = machine.add_vm(pages, piece);
            machine.merging.add(&object).unwrap();
        }
        machine
    }

    /// A VM that trusts those there are, and that these trust.
    fn add_vm(&mut self, pages: u64, piece: Level) -> Arc<Object> {
        let object = self.add_lone_vm(pages, piece);
        let last = self.spaces.len() - 1;
        self.trust(last, 0);
        object
    }

    fn trust(&self, vm: usize, other: usize) {
        let [vm, other] = [vm, other].map(|vm| self.spaces[vm].vm());
        self.vms.cpu.system().trust(vm, other);
    }

    fn add_lone_vm(&mut self, pages: u64, piece: Level) -> Arc<Object> {
        let space = self.vms.space(self.spaces.len(), BackingPolicy::default());
        let object = self.vms.anonymous(space.vm(), pages, piece);
        self.vms.map(&space, object.clone());
        self.spaces.push(space);
        object
    }

    /// One more VM, with all that another one has.
    fn fork(&mut self, of: usize) {
        let child = self.vms.space(self.spaces.len(), BackingPolicy::default());
        self.spaces[of].fork(&self.vms.cpu, &child).unwrap();
        self.spaces.push(child);
    }

    /// As [`Vms::write`].
    fn write(&self, vm: usize, page: u64, word: u64) -> u32 {
        self.vms.write(&self.spaces[vm], page, word)
    }

    fn read(&self, vm: usize, page: u64) -> u64 {
        self.vms.read(&self.spaces[vm], page)
    }

    fn level(&self, vm: usize, page: u64) -> Level {
        self.vms.access(&self.spaces[vm], page, Access::Read).1
    }

    /// Scans until all pages have been looked at so often more, and gives back what that let go of.
    fn scan(&self, times: u64) -> MergeStatistics {
        let until = self.merging.statistics().full_scans + times;
        while self.merging.statistics().full_scans < until {
            self.merging.step(&self.vms.cpu);
        }
        self.vms.cpu.wait_for_epoch();
        self.merging.statistics()
    }

    fn guest(&self) -> u64 {
        self.vms.guest()
    }

    fn end(self) {
        for space in self.spaces {
            space.destroy(&self.vms.cpu);
        }
        self.vms.check_nothing_is_left();
    }
}

#[test]
fn equal_pages_of_two_vms_share_a_frame_until_one_is_written() {
    let machine = Machine::with_two(4096, 8, Level::L3, MergePolicy::default());
    for page in 0..8 {
        machine.write(0, page, 100 + page);
        machine.write(1, 7 - page, 100 + page);
    }
    assert_eq!(machine.guest(), 16);
    let first = machine.scan(1);
    assert_eq!((first.pages_volatile, first.pages_sharing), (16, 0));
    let second = machine.scan(1);
    assert_eq!((second.pages_shared, second.pages_sharing), (8, 8));
    assert_eq!((second.pages_unshared, second.pages_volatile), (0, 0));
    assert_eq!((machine.guest(), machine.vms.pool.shared_frames()), (8, 8));
    assert_eq!(machine.scan(1).pages_sharing, 8, "they stay so");
    for page in 0..8 {
        assert_eq!(machine.read(0, page), 100 + page);
        assert_eq!(machine.read(1, 7 - page), 100 + page);
    }
    assert_eq!(machine.write(0, 3, 7), 1, "one fault for a copy");
    assert_eq!((machine.read(0, 3), machine.read(1, 4)), (7, 103));
    assert_eq!(machine.write(1, 4, 8), 1, "the last one takes it back");
    assert_eq!((machine.guest(), machine.vms.pool.shared_frames()), (9, 7));
    let third = machine.scan(1);
    assert_eq!((third.pages_shared, third.pages_sharing), (7, 7));
    assert_eq!(third.pages_volatile, 2);
    machine.end();
}

#[test]
fn a_page_that_is_written_between_scans_is_left_alone() {
    let machine = Machine::with_two(4096, 4, Level::L3, MergePolicy::default());
    for round in 0..4 {
        for vm in 0..2 {
            for page in 0..4 {
                machine.write(vm, page, 1 + round);
            }
        }
        let statistics = machine.scan(1);
        assert_eq!(
            (statistics.pages_volatile, statistics.pages_sharing),
            (8, 0)
        );
        assert_eq!(machine.write(0, 0, 1 + round), 0, "it was protected");
    }
    machine.end();
}

#[test]
fn pages_of_zeros_give_up_their_frames() {
    let machine = Machine::with_two(4096, 8, Level::L3, MergePolicy::default());
    for page in 0..8 {
        machine.write(0, page, 1);
        machine.write(0, page, 0);
    }
    let statistics = machine.scan(2);
    assert_eq!((statistics.zero_pages, machine.guest()), (8, 0));
    assert_eq!(machine.scan(1).zero_pages, 8);
    assert_eq!((machine.write(0, 2, 5), machine.read(0, 2)), (1, 5));
    assert_eq!((machine.read(0, 3), machine.guest()), (0, 1));
    machine.end();
}

#[test]
fn no_more_pages_share_a_frame_than_the_policy_says() {
    let policy = MergePolicy {
        max_page_sharing: 4,
        ..MergePolicy::default()
    };
    let machine = Machine::with_two(4096, 10, Level::L3, policy);
    for vm in 0..2 {
        (0..10).for_each(|page| assert_eq!(machine.write(vm, page, 9), 1));
    }
    let mut statistics = machine.scan(2);
    assert_eq!(machine.guest(), 5);
    for _ in 0..3 {
        let counted = (statistics.pages_shared, statistics.pages_sharing);
        assert_eq!((counted, statistics.pages_unshared), ((5, 15), 0));
        statistics = machine.scan(1);
    }
    machine.end();
}

/// A frame that as many pages share as may, and a page that is like them: whichever is met first, they stay apart.
#[test]
fn no_page_joins_a_frame_that_enough_share() {
    let policy = MergePolicy {
        max_page_sharing: 2,
        ..MergePolicy::default()
    };
    for alone_first in [true, false] {
        let mut machine = Machine::new(4096, policy);
        let mut objects = [0, 1].map(|_| machine.add_vm(4, Level::L3));
        for vm in 0..2 {
            (0..4).for_each(|page| assert_eq!(machine.write(vm, page, 1 + page), 1));
        }
        machine.fork(1);
        if !alone_first {
            objects.reverse();
        }
        for object in &objects {
            machine.merging.add(object).unwrap();
        }
        machine.scan(3);
        assert_eq!((machine.guest(), machine.vms.pool.shared_frames()), (8, 4));
        drop(objects);
        machine.end();
    }
}

#[test]
fn pages_that_are_shared_already_are_not_joined_with_each_other() {
    let mut machine = Machine::with_two(4096, 4, Level::L3, MergePolicy::default());
    for vm in 0..2 {
        (0..4).for_each(|page| assert_eq!(machine.write(vm, page, 1 + page), 1));
    }
    for vm in 0..2 {
        machine.fork(vm);
    }
    let statistics = machine.scan(3);
    assert_eq!((machine.guest(), machine.vms.pool.shared_frames()), (8, 8));
    let counted = |statistics: MergeStatistics| {
        let shared = (statistics.pages_shared, statistics.pages_sharing);
        (shared, statistics.pages_unshared)
    };
    assert_eq!(counted(statistics), ((8, 0), 0));
    for child in 2..4 {
        (machine.merging)
            .add_vm(&machine.vms.cpu, &machine.spaces[child])
            .unwrap();
    }
    assert_eq!(counted(machine.scan(2)), ((8, 8), 0));
    assert_eq!(machine.guest(), 8);
    machine.end();
}

#[test]
fn a_block_is_taken_apart_only_if_enough_of_its_pages_have_partners() {
    for (equal, pays) in [(100, false), (128, true), (400, true)] {
        let machine = Machine::with_two(8192, BLOCK, Level::L2, MergePolicy::default());
        for page in 0..BLOCK {
            machine.write(0, page, page + 1);
            let its = if page < equal { page + 1 } else { 1000 + page };
            machine.write(1, page, its);
        }
        let statistics = machine.scan(4);
        let saved = if pays { equal } else { 0 };
        assert_eq!(statistics.pages_sharing, saved, "{equal} equal pages");
        assert_eq!(machine.guest(), 2 * BLOCK - saved);
        for vm in 0..2 {
            let level = if pays { Level::L3 } else { Level::L2 };
            assert_eq!(machine.level(vm, 300), level);
        }
        for page in 0..BLOCK {
            assert_eq!(machine.read(0, page), page + 1);
        }
        machine.end();
    }
}

#[test]
fn what_a_fork_shares_is_joined_by_others() {
    let mut machine = Machine::with_two(4096, 8, Level::L3, MergePolicy::default());
    for page in 0..8 {
        machine.write(0, page, 1 + page);
        machine.write(1, page, 1 + page);
    }
    machine.fork(0);
    machine.scan(2);
    assert_eq!(machine.guest(), 8);
    for vm in 0..3 {
        machine.write(vm, 5, 50 + vm as u64);
    }
    assert_eq!(
        (0..3).map(|vm| machine.read(vm, 5)).collect::<Vec<_>>(),
        [50, 51, 52]
    );
    assert_eq!(machine.guest(), 10);
    machine.end();
}

#[test]
fn what_a_fork_shares_is_counted_whichever_is_met_first() {
    for (comes_first, lives) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut machine = Machine::new(4096, MergePolicy::default());
        let mut objects = [0, 1].map(|_| machine.add_vm(9, Level::L3));
        machine.write(0, 0, 77);
        for page in 1..9 {
            machine.write(0, page, page);
            machine.write(1, page, page);
        }
        let child = machine.vms.space(2, BackingPolicy::default());
        machine.spaces[1].fork(&machine.vms.cpu, &child).unwrap();
        match lives {
            true => machine.spaces.push(child),
            false => child.destroy(&machine.vms.cpu),
        }
        if comes_first {
            objects.reverse();
        }
        for object in &objects {
            machine.merging.add(object).unwrap();
        }
        let statistics = machine.scan(2);
        let counted = (statistics.pages_shared, statistics.pages_sharing);
        assert_eq!((counted, statistics.pages_unshared), ((8, 8), 1));
        assert_eq!(machine.guest(), 9);
        drop(objects);
        machine.end();
    }
}

#[test]
fn a_page_of_a_block_has_one_partner_however_many_pages_are_like_it() {
    for pages_first in [true, false] {
        let mut machine = Machine::new(4096, MergePolicy::default());
        let mut objects = [
            machine.add_vm(BLOCK, Level::L2),
            machine.add_vm(200, Level::L3),
        ];
        for page in 0..BLOCK {
            machine.write(0, page, if page == 5 { 7 } else { 1000 + page });
        }
        (0..200).for_each(|page| assert_eq!(machine.write(1, page, 7), 1));
        if pages_first {
            objects.reverse();
        }
        for object in &objects {
            machine.merging.add(object).unwrap();
        }
        machine.scan(5);
        assert_eq!(machine.level(0, 300), Level::L2);
        assert_eq!((machine.read(0, 5), machine.read(1, 199)), (7, 7));
        drop(objects);
        machine.end();
    }
}

#[test]
fn pages_of_zeros_take_a_block_apart_if_they_are_enough() {
    for (zeros, pays) in [(100, false), (128, true)] {
        let mut machine = Machine::new(4096, MergePolicy::default());
        let object = machine.add_vm(BLOCK, Level::L2);
        machine.merging.add(&object).unwrap();
        (zeros..BLOCK).for_each(|page| {
            machine.write(0, page, page);
        });
        let statistics = machine.scan(4);
        let saved = if pays { zeros } else { 0 };
        assert_eq!(
            (statistics.zero_pages, machine.guest()),
            (saved, BLOCK - saved)
        );
        let level = if pays { Level::L3 } else { Level::L2 };
        assert_eq!((machine.level(0, 300), machine.read(0, 7)), (level, 0));
        drop(object);
        machine.end();
    }
}

#[test]
fn writes_to_merged_pages_are_logged() {
    let machine = Machine::with_two(4096, 8, Level::L3, MergePolicy::default());
    for vm in 0..2 {
        (0..8).for_each(|page| assert_eq!(machine.write(vm, page, 1 + page), 1));
    }
    machine.spaces[0]
        .enable_dirty_log(&machine.vms.cpu, SLOT, &LogPolicy::default())
        .unwrap();
    assert_eq!(machine.scan(2).pages_sharing, 8);
    machine.write(0, 5, 9);
    let mut bitmap = [0];
    machine.spaces[0]
        .get_and_clear_dirty_log(&machine.vms.cpu, SLOT, 0, &mut bitmap)
        .unwrap();
    assert_eq!(bitmap, [1 << 5]);
    machine.end();
}

#[test]
fn a_step_looks_at_no_more_pages_than_the_policy_says() {
    let policy = MergePolicy {
        pages_to_scan: 30,
        ..MergePolicy::default()
    };
    let machine = Machine::with_two(4096, 100, Level::L3, policy);
    let mut scanned = 0;
    for _ in 0..20 {
        let step = machine.merging.step(&machine.vms.cpu);
        assert!(step <= 30);
        scanned += step;
    }
    let statistics = machine.merging.statistics();
    assert_eq!(statistics.full_scans, 2);
    assert_eq!(statistics.pages_scanned, scanned);
    machine.end();
}

#[test]
fn objects_come_and_go_and_only_pages_of_their_own_are_merged() {
    let mut machine = Machine::new(4096, MergePolicy::default());
    let image = Object::image(&machine.vms.cpu, &[1; 5000]).unwrap();
    assert_eq!(machine.merging.add(&image), Err(MergeError::NotMergeable));
    drop(image);
    assert_eq!(
        machine.merging.step(&machine.vms.cpu),
        0,
        "nothing is offered"
    );
    for vm in 0..3 {
        let object = machine.add_vm(8, Level::L3);
        machine.merging.add(&object).unwrap();
        (machine
            .merging
            .add_vm(&machine.vms.cpu, &machine.spaces[vm]))
        .unwrap();
    }
    for vm in 0..3 {
        (0..8).for_each(|page| assert_eq!(machine.write(vm, page, 1 + page), 1));
    }
    machine.scan(1);
    // One ends, others are withdrawn.
    machine.spaces.remove(0).destroy(&machine.vms.cpu);
    for by_object in [true, false] {
        let object = machine.add_vm(8, Level::L3);
        let vm = machine.spaces.len() - 1;
        (0..8).for_each(|page| assert_eq!(machine.write(vm, page, 1 + page), 1));
        machine.merging.add(&object).unwrap();
        match by_object {
            true => machine.merging.remove(&object),
            false => (machine.merging).remove_vm(&machine.vms.cpu, &machine.spaces[vm]),
        }
        drop(object);
        machine.spaces.remove(vm).destroy(&machine.vms.cpu);
    }
    let statistics = machine.scan(3);
    assert_eq!((statistics.pages_shared, statistics.pages_sharing), (8, 8));
    machine.end();
}

#[test]
fn what_is_withdrawn_is_left_alone_and_the_others_are_scanned_anew() {
    let mut machine = Machine::new(4096, MergePolicy::default());
    let objects = [0, 1, 2].map(|vm| {
        let object = machine.add_vm(8, Level::L3);
        machine.merging.add(&object).unwrap();
        let first = if vm == 0 { 100 } else { 1 };
        (0..8).for_each(|page| assert_eq!(machine.write(vm, page, first + page), 1));
        object
    });
    machine.scan(1);
    // The next scan is in the middle of the second object.
    let cpu = &machine.vms.cpu;
    assert_eq!(machine.merging.scan(cpu, 12), 12);
    machine.merging.remove(&objects[0]);
    assert_eq!(machine.merging.scan(cpu, 1000), 16);
    let statistics = machine.merging.statistics();
    assert_eq!(statistics.full_scans, 2);
    let counted = (statistics.pages_shared, statistics.pages_sharing);
    assert_eq!((counted, statistics.pages_unshared), ((8, 8), 0));
    // It isn't touched any more, though the others have pages like it.
    for page in 0..8 {
        assert_eq!(machine.write(0, page, 1 + page), 0, "it was protected");
    }
    machine.scan(3);
    assert_eq!((machine.guest(), machine.vms.pool.shared_frames()), (16, 8));
    machine.merging.add(&objects[0]).unwrap();
    machine.scan(3);
    assert_eq!((machine.guest(), machine.vms.pool.shared_frames()), (8, 8));
    drop(objects);
    machine.end();
}

#[test]
fn of_a_vm_all_is_added_that_has_pages_to_merge_and_all_is_withdrawn() {
    let mut machine = Machine::new(4096, MergePolicy::default());
    let own = [0, 1].map(|_| machine.add_vm(8, Level::L3));
    let more = (machine.vms).anonymous(machine.spaces[0].vm(), 8, Level::L3);
    let image = Object::image(&machine.vms.cpu, &[1; 2 * PAGE_SIZE as usize]).unwrap();
    // SAFETY: nobody uses the memory.
    let device = unsafe { Object::device(&machine.vms.cpu, arena::leak(2)) }.unwrap();
    for (number, object) in (1..).zip([image, device, more]) {
        let config = SlotConfig {
            id: SlotId(number),
            start: START.offset(u64::from(number) * 16 * PAGE_SIZE),
            read_only: object.bytes() == 2 * PAGE_SIZE,
            ..slot(object)
        };
        (machine.spaces[0].map_object(&machine.vms.cpu, config)).unwrap();
    }
    for page in 0..8 {
        machine.write(0, page, 100 + page);
        machine.write(0, 48 + page, 1 + page);
        machine.write(1, page, 1 + page);
    }
    for space in &machine.spaces {
        machine.merging.add_vm(&machine.vms.cpu, space).unwrap();
    }
    let guest = machine.guest();
    assert_eq!(machine.merging.scan(&machine.vms.cpu, 1000), 24);
    (machine.merging).remove_vm(&machine.vms.cpu, &machine.spaces[0]);
    assert_eq!(machine.scan(3).pages_unshared, 8);
    assert_eq!(machine.guest(), guest);
    (machine.merging)
        .add_vm(&machine.vms.cpu, &machine.spaces[0])
        .unwrap();
    assert_eq!(machine.scan(3).pages_sharing, 8);
    assert_eq!(machine.guest(), guest - 8);
    drop(own);
    machine.end();
}

#[test]
fn pages_of_many_objects_are_all_met() {
    const PAGES: u64 = 64;
    let mut machine = Machine::new(4096, MergePolicy::default());
    for vm in 0..5 {
        let object = machine.add_vm(PAGES, Level::L3);
        machine.merging.add(&object).unwrap();
        // The last two are equal.
        let first = 1 + vm.min(3) as u64 * PAGES;
        (0..PAGES).for_each(|page| assert_eq!(machine.write(vm, page, first + page), 1));
    }
    assert_eq!(machine.scan(2).pages_sharing, PAGES);
    assert_eq!(machine.guest(), 4 * PAGES);
    machine.end();
}

#[test]
fn without_frames_for_tables_nothing_is_lost() {
    let machine = Machine::with_two(2048, BLOCK, Level::L2, MergePolicy::default());
    for vm in 0..2 {
        (0..BLOCK).for_each(|page| {
            machine.write(vm, page, 1 + page);
        });
    }
    machine.scan(2);
    // The blocks pay for being split from now on, but there is no frame for a table.
    let mut taken = Vec::new();
    let size = memory::frames::FrameSize::Page4K;
    while let Some(pa) =
        (machine.vms.pool).allocate(size, Owner::Hypervisor, memory::frames::Purpose::Guest)
    {
        taken.push(pa);
    }
    machine.scan(1);
    for pa in taken {
        machine
            .vms
            .pool
            .free(pa, size, Owner::Hypervisor, memory::frames::Purpose::Guest);
    }
    for vm in 0..2 {
        (0..BLOCK).for_each(|page| assert_eq!(machine.read(vm, page), 1 + page));
    }
    machine.end();
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, u64, u64),
    Read(usize, u64),
    Scan(u64),
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn guests_read_what_they_wrote(
        piece in prop::sample::select(vec![Level::L3, Level::L2]),
        most in 2..5u64,
        steps in prop::collection::vec(
            prop_oneof![
                4 => (0..2usize, 0..24u64, 0..3u64).prop_map(|(vm, page, word)| Step::Write(vm, page, word)),
                2 => (0..2usize, 0..24u64).prop_map(|(vm, page)| Step::Read(vm, page)),
                2 => (1..4u64).prop_map(Step::Scan),
            ],
            1..80,
        ),
    ) {
        let policy = MergePolicy { max_page_sharing: most, pages_of_block: 4, pages_to_scan: 70, ..MergePolicy::default() };
        let pages = if piece == Level::L2 { BLOCK } else { 24 };
        let machine = Machine::with_two(4096, pages, piece, policy);
        let mut written = [[0; 24]; 2];
        for step in steps {
            match step {
                Step::Write(vm, page, word) => {
                    prop_assert!(machine.write(vm, page, word) <= 2);
                    written[vm][page as usize] = word;
                }
                Step::Read(vm, page) => prop_assert_eq!(machine.read(vm, page), written[vm][page as usize]),
                Step::Scan(times) => {
                    machine.scan(times);
                }
            }
        }
        for (vm, words) in written.iter().enumerate() {
            for (page, word) in (0..).zip(words) {
                prop_assert_eq!(machine.read(vm, page), *word);
            }
        }
        // What nobody writes any more is counted as it is.
        let statistics = machine.scan(4);
        let mut sharers = BTreeMap::new();
        for (vm, words) in written.iter().enumerate() {
            let frames = frames(&machine, vm, 24).into_iter().zip(words);
            for (frame, _) in frames.filter(|(_, word)| **word != 0) {
                *sharers.entry(frame).or_insert(0) += 1;
            }
        }
        let shared: Vec<u64> = sharers.into_values().filter(|count| *count > 1).collect();
        let sharing = shared.iter().sum::<u64>() - shared.len() as u64;
        prop_assert_eq!(statistics.pages_shared, shared.len() as u64);
        prop_assert_eq!(statistics.pages_sharing, sharing);
        machine.end();
    }
}

/// A machine of VMs whose pages are all equal and offered for merging; nobody trusts anybody.
fn strangers(vms: usize, pages: u64) -> Machine {
    let mut machine = Machine::new(256, MergePolicy::default());
    for vm in 0..vms {
        let object = machine.add_lone_vm(pages, Level::L3);
        machine.merging.add(&object).unwrap();
        for page in 0..pages {
            machine.write(vm, page, 7);
        }
    }
    machine
}

/// Whether two VMs' pages have the same frame is what a guest can time.
fn frames(machine: &Machine, vm: usize, pages: u64) -> Vec<stage2::Pa> {
    let space = &machine.spaces[vm];
    let frame = |page| machine.vms.access(space, page, Access::Read).0.pa();
    (0..pages).map(frame).collect()
}

#[test]
fn equal_pages_of_vms_that_dont_trust_each_other_stay_apart() {
    const PAGES: u64 = 3;
    let machine = strangers(3, PAGES);
    let statistics = machine.scan(4);
    assert_eq!((statistics.pages_shared, statistics.pages_sharing), (3, 6));
    let first: Vec<_> = (0..3).map(|vm| frames(&machine, vm, PAGES)).collect();
    for (vm, frames) in first.iter().enumerate() {
        assert!(
            frames.iter().all(|frame| *frame == frames[0]),
            "within VM {vm}"
        );
    }
    assert!(first[0][0] != first[1][0] && first[1][0] != first[2][0] && first[0][0] != first[2][0]);

    // The last two come to trust each other.
    machine.trust(2, 1);
    machine.scan(3);
    machine.write(1, 0, 8);
    machine.write(1, 0, 7);
    machine.scan(3);
    let now: Vec<_> = (0..3).map(|vm| frames(&machine, vm, PAGES)).collect();
    assert_eq!(now[0], first[0], "the first is alone still");
    assert!(now[1][0] == now[1][1] || now[1][0] == now[2][0]);
    machine.end();
}

#[test]
fn pages_of_zeros_give_up_their_frames_whoever_trusts_whom() {
    let mut machine = Machine::new(256, MergePolicy::default());
    for vm in 0..2 {
        let object = machine.add_lone_vm(4, Level::L3);
        machine.merging.add(&object).unwrap();
        for page in 0..4 {
            machine.write(vm, page, 1);
            machine.write(vm, page, 0);
        }
    }
    let before = machine.guest();
    machine.scan(4);
    assert_eq!(before - machine.guest(), 8);
    machine.end();
}

#[test]
fn memory_that_vms_share_is_merged_with_itself_only() {
    let mut machine = Machine::new(256, MergePolicy::default());
    let own = machine.add_vm(2, Level::L3);
    let shared = Object::shared(&machine.vms.cpu, 2 * PAGE_SIZE, Level::L3).unwrap();
    let other = machine.vms.space(1, BackingPolicy::default());
    machine.vms.map(&other, shared.clone());
    machine.spaces.push(other);
    machine.trust(1, 0);
    for object in [&own, &shared] {
        machine.merging.add(object).unwrap();
    }
    for (vm, page) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        machine.write(vm, page, 9);
    }
    machine.scan(4);
    drop((own, shared));
    let (own, shared) = (frames(&machine, 0, 2), frames(&machine, 1, 2));
    assert!(own[0] == own[1] && shared[0] == shared[1] && own[0] != shared[0]);
    machine.end();
}

/// A VM's number may be used again, by one that nobody trusts.
#[test]
fn a_new_vm_isnt_trusted_for_its_number() {
    let mut machine = strangers(2, 2);
    machine.trust(1, 0);
    let gone = machine.spaces.pop().unwrap();
    machine.merging.remove_vm(&machine.vms.cpu, &gone);
    gone.destroy(&machine.vms.cpu);
    machine.vms.cpu.wait_for_epoch();
    let object = machine.add_lone_vm(2, Level::L3);
    machine.merging.add(&object).unwrap();
    drop(object);
    for page in 0..2 {
        machine.write(1, page, 7);
    }
    machine.scan(4);
    assert_ne!(frames(&machine, 0, 2)[0], frames(&machine, 1, 2)[0]);
    machine.end();
}

/// A fork shares its parent's frames in any case.
#[test]
fn a_fork_trusts_its_parent() {
    let mut machine = strangers(1, 2);
    let child = machine.vms.space(1, BackingPolicy::default());
    machine.spaces[0].fork(&machine.vms.cpu, &child).unwrap();
    machine.spaces.push(child);
    for (vm, page) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        machine.write(vm, page, 5);
    }
    (machine.merging)
        .add_vm(&machine.vms.cpu, &machine.spaces[1])
        .unwrap();
    machine.scan(4);
    assert_eq!(frames(&machine, 0, 2), frames(&machine, 1, 2));
    machine.end();
}

/// Nobody pays for what is shared: a VM with a limit that fills its memory with equal pages would have more than that.
#[test]
fn a_vm_gets_no_memory_beyond_its_limit_by_having_pages_merged() {
    const LIMIT: u64 = 8;
    let mut machine = Machine::new(256, MergePolicy::default());
    for _ in 0..2 {
        let object = machine.add_vm(2 * LIMIT, Level::L3);
        machine.merging.add(&object).unwrap();
    }
    let (limited, free) = (machine.spaces[0].vm(), machine.spaces[1].vm());
    let pool = machine.vms.cpu.pool();
    pool.set_limit(limited, Some(LIMIT));
    for vm in 0..2 {
        for page in 0..LIMIT {
            machine.write(vm, page, 7);
        }
    }
    machine.scan(4);
    assert_eq!(pool.counts_of(limited).guest, LIMIT);
    assert_eq!((pool.counts_of(free).guest, pool.shared_frames()), (0, 1));
    // Zeros are nobody's memory, so it may have others instead.
    for page in 0..LIMIT / 2 {
        machine.write(0, page, 0);
    }
    machine.scan(3);
    assert_eq!(pool.counts_of(limited).guest, LIMIT / 2);
    for page in LIMIT..LIMIT + LIMIT / 2 {
        machine.write(0, page, 7);
    }
    machine.scan(3);
    assert_eq!(pool.counts_of(limited).guest, LIMIT);
    pool.set_limit(limited, None);
    machine.scan(3);
    assert_eq!(
        pool.counts_of(limited).guest,
        0,
        "nothing is its own any more"
    );
    machine.end();
}

/// The same for copies: what a write takes is charged to the VM that writes, and one at its limit has none.
#[test]
fn a_fork_that_writes_pays_for_its_copies() {
    let mut machine = strangers(1, 4);
    let child = machine.vms.space(1, BackingPolicy::default());
    machine.spaces[0].fork(&machine.vms.cpu, &child).unwrap();
    let pool = machine.vms.cpu.pool();
    let (parent, vm) = (machine.spaces[0].vm(), child.vm());
    machine.spaces.push(child);
    pool.set_limit(vm, Some(3));
    for page in 0..3 {
        machine.write(1, page, 8);
    }
    assert_eq!(
        (pool.counts_of(parent).guest, pool.counts_of(vm).guest),
        (0, 3)
    );
    let last = START.offset(3 * PAGE_SIZE);
    let kind = FaultKind::Translation;
    let refused = (machine.vms).fault(&machine.spaces[1], last, Access::Write, kind);
    assert_eq!(refused, FaultOutcome::OutOfFrames);
    assert_eq!(pool.over_limit(vm), 0);
    machine.end();
}
