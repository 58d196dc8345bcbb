//! Pages move from frame to frame under running VMs, on real memory: what every guest reads is what it wrote.
#![cfg(not(loom))]
#![cfg(not(miri))]

use memory::frames::{FramePool, FrameSize, Purpose, arena, read_bytes, write_bytes};
use memory::{
    Access, AddressSpace, Compacted, CpuMemory, Fault, FaultKind, FaultOutcome, MemorySystem,
    MergePolicy, Object, Owner, PageMerging, Parallel, SlotConfig, SlotId, VmId,
};
use proptest::prelude::*;
use stage2::{Features, Ipa, Layout, Leaf, Level, NoTlb, PAGE_SIZE, Pa};
use std::sync::Arc;

const START: Ipa = Ipa::new(0x4000_0000);
const SLOT: SlotId = SlotId(0);
/// Pages of a block of 2 MiB.
const BLOCK: u64 = 512;

type Space = AddressSpace<Parallel>;

/// CPU 0 of a machine, and its VMs.
struct Machine {
    cpu: CpuMemory<NoTlb>,
    pool: &'static FramePool,
    spaces: Vec<Space>,
}

impl Machine {
    fn new(frames: usize) -> Self {
        let pool: &FramePool = Box::leak(Box::new(FramePool::new()));
        // SAFETY: the arena is leaked, and added once.
        unsafe { pool.add(arena::leak(frames)) };
        let system: &MemorySystem = Box::leak(Box::new(MemorySystem::new(pool, 1, 2, 8)));
        let counters = Box::leak(Box::default());
        Self {
            cpu: CpuMemory::new(system, 0, NoTlb, counters),
            pool,
            spaces: Vec::new(),
        }
    }

    fn add_vm(&mut self, pages: u64, piece: Level) -> Arc<Object> {
        let vm = VmId::new(self.spaces.len()).unwrap();
        let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
        let space = Space::new(&self.cpu, vm, layout).unwrap();
        let object = Object::anonymous(&self.cpu, Owner::Vm(vm), pages * PAGE_SIZE, piece).unwrap();
        let config = SlotConfig {
            id: SLOT,
            start: START,
            offset: 0,
            bytes: object.bytes(),
            object: object.clone(),
            read_only: false,
            write_faults: false,
        };
        space.map_object(&self.cpu, config).unwrap();
        self.spaces.push(space);
        object
    }

    /// A VM that shares all that another one has.
    fn fork(&mut self, of: usize) {
        let vm = VmId::new(self.spaces.len()).unwrap();
        let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
        let child = Space::new(&self.cpu, vm, layout).unwrap();
        self.spaces[of].fork(&self.cpu, &child).unwrap();
        self.spaces.push(child);
    }

    /// What the guest's access leads to, and how many faults it takes.
    fn access(&self, vm: usize, page: u64, access: Access) -> (Leaf, Level, u32) {
        let ipa = START.offset(page * PAGE_SIZE);
        let mut faults = 0;
        loop {
            let kind = match self.spaces[vm].lookup(&self.cpu, ipa) {
                Some((leaf, level)) if access.allowed_by(leaf) => return (leaf, level, faults),
                Some(_) => FaultKind::Permission,
                None => FaultKind::Translation,
            };
            faults += 1;
            let fault = Fault {
                vcpu: 0,
                ipa,
                va: None,
                access,
                kind,
            };
            let outcome = self.spaces[vm].fault(&self.cpu, &fault);
            assert!(
                matches!(outcome, FaultOutcome::Resolved | FaultOutcome::Retry),
                "{outcome:?}"
            );
            self.cpu.refill();
        }
    }

    /// The guest fills a page's second word. How many faults that takes.
    fn write(&self, vm: usize, page: u64, word: u64) -> u32 {
        let (leaf, level, faults) = self.access(vm, page, Access::Write);
        // SAFETY: the leaf maps memory of the arena, which backs the guest.
        unsafe { write_bytes(address(leaf, level, page).offset(8), &word.to_ne_bytes()) };
        faults
    }

    fn read(&self, vm: usize, page: u64) -> u64 {
        let (leaf, level, _) = self.access(vm, page, Access::Read);
        let mut word = [0; 8];
        // SAFETY: as for a write.
        unsafe { read_bytes(address(leaf, level, page).offset(8), &mut word) };
        u64::from_ne_bytes(word)
    }

    /// The frames that back guests, of all owners.
    fn guest(&self) -> u64 {
        let counts = self.pool.counts();
        counts.check().unwrap();
        counts.guest
    }

    fn end(self) {
        for space in self.spaces {
            space.destroy(&self.cpu);
        }
        self.cpu.wait_for_epoch();
        let counts = self.pool.counts();
        counts.check().unwrap();
        assert_eq!(counts.guest, 0, "{counts}");
        assert_eq!(counts.table, 0);
        assert_eq!(self.pool.shared_frames(), 0);
    }
}

fn address(leaf: Leaf, level: Level, page: u64) -> Pa {
    match level {
        Level::L3 => leaf.pa(),
        _ => leaf.pa().offset(page % BLOCK * PAGE_SIZE),
    }
}

/// The frames of a page in a VM.
fn frame(machine: &Machine, vm: usize, page: u64) -> Pa {
    let (leaf, level, _) = machine.access(vm, page, Access::Read);
    address(leaf, level, page)
}

#[test]
fn a_page_moves_to_another_frame_and_no_vm_notices() {
    let mut machine = Machine::new(2048);
    let object = machine.add_vm(4, Level::L3);
    (0..3).for_each(|page| assert_eq!(machine.write(0, page, 10 + page), 1));
    let before = frame(&machine, 0, 1);
    assert!(object.migrate(&machine.cpu, 1));
    assert_ne!(frame(&machine, 0, 1), before);
    assert_eq!(machine.read(0, 1), 11);
    assert_eq!(machine.write(0, 1, 5), 1, "a right is given by a fault");
    machine.cpu.wait_for_epoch();
    assert_eq!((machine.read(0, 1), machine.guest()), (5, 3));
    assert!(!object.migrate(&machine.cpu, 3), "it has no frame");
    drop(object);
    machine.end();
}

#[test]
fn a_shared_frame_moves_with_all_of_its_pages() {
    let mut machine = Machine::new(2048);
    let object = machine.add_vm(4, Level::L3);
    machine.write(0, 2, 7);
    machine.fork(0);
    assert_eq!(machine.read(1, 2), 7);
    assert!(object.migrate(&machine.cpu, 2));
    assert_eq!(frame(&machine, 0, 2), frame(&machine, 1, 2));
    machine.cpu.wait_for_epoch();
    assert_eq!((machine.guest(), machine.pool.shared_frames()), (1, 1));
    assert_eq!(machine.write(1, 2, 8), 1);
    assert_eq!((machine.read(0, 2), machine.read(1, 2)), (7, 8));
    assert_eq!(machine.write(0, 2, 9), 1, "the last one takes it");
    assert_eq!((machine.guest(), machine.pool.shared_frames()), (2, 0));
    drop(object);
    machine.end();
}

#[test]
fn a_region_of_crumbs_becomes_a_block_again() {
    let mut machine = Machine::new(4096);
    let object = machine.add_vm(BLOCK + 3, Level::L3);
    // From the last to the first, so that nothing lies in order.
    for page in (0..BLOCK + 3).rev() {
        machine.write(0, page, 1 + page);
    }
    let tables = machine.pool.counts().table;
    let step = machine.spaces[0]
        .compact(&machine.cpu, SLOT, START)
        .unwrap();
    assert_eq!((step.region, step.blocks), (Compacted::Moved, 1));
    let rest = machine.spaces[0]
        .compact(&machine.cpu, SLOT, step.next.unwrap())
        .unwrap();
    assert_eq!((rest.region, rest.next), (Compacted::NotItsOwn, None));
    machine.cpu.wait_for_epoch();
    let (leaf, level, _) = machine.access(0, 5, Access::Read);
    assert_eq!((level, leaf.writable()), (Level::L2, true));
    assert_eq!(machine.pool.counts().table, tables - 1);
    assert_eq!(machine.guest(), BLOCK + 3);
    for page in 0..BLOCK + 3 {
        assert_eq!(machine.read(0, page), 1 + page);
    }
    let again = machine.spaces[0]
        .compact(&machine.cpu, SLOT, START)
        .unwrap();
    assert_eq!(again.region, Compacted::Whole);
    drop(object);
    machine.end();
}

#[test]
fn what_is_shared_or_untouched_or_has_no_run_stays_in_crumbs() {
    let mut machine = Machine::new(3 * BLOCK as usize);
    let object = machine.add_vm(BLOCK, Level::L3);
    for page in 0..BLOCK - 1 {
        machine.write(0, page, 1 + page);
    }
    assert_eq!(object.compact_region(&machine.cpu, 0), Compacted::NotItsOwn);
    machine.write(0, BLOCK - 1, BLOCK);
    machine.fork(0);
    assert_eq!(object.compact_region(&machine.cpu, 0), Compacted::NotItsOwn);
    machine.spaces.remove(1).destroy(&machine.cpu);
    (0..BLOCK).for_each(|page| assert_eq!(machine.write(0, page, 1 + page), 1));
    let mut runs = Vec::new();
    let (owner, purpose) = (Owner::Hypervisor, Purpose::Guest);
    while let Some(run) = machine.pool.allocate(FrameSize::Block2M, owner, purpose) {
        runs.push(run);
    }
    assert_eq!(
        object.compact_region(&machine.cpu, 0),
        Compacted::OutOfFrames
    );
    for run in runs {
        machine.pool.free(run, FrameSize::Block2M, owner, purpose);
    }
    assert_eq!(object.compact_region(&machine.cpu, 0), Compacted::Moved);
    (0..BLOCK).for_each(|page| assert_eq!(machine.read(0, page), 1 + page));
    drop(object);
    machine.end();
}

#[test]
fn runs_of_which_little_is_used_come_free() {
    let mut machine = Machine::new(16 * BLOCK as usize);
    let stays = machine.add_vm(400, Level::L3);
    let goes = machine.add_vm(6000, Level::L3);
    for page in 0..400 {
        machine.write(0, page, 1 + page);
        for other in page * 15..(page + 1) * 15 {
            machine.write(1, other, 7);
        }
    }
    machine.fork(0);
    drop(goes);
    machine.spaces.remove(1).destroy(&machine.cpu);
    machine.cpu.wait_for_epoch();
    let free_runs = |machine: &Machine| {
        let (size, owner, purpose) = (FrameSize::Block2M, Owner::Hypervisor, Purpose::Guest);
        let taken: Vec<Pa> =
            std::iter::from_fn(|| machine.pool.allocate(size, owner, purpose)).collect();
        for run in &taken {
            machine.pool.free(*run, size, owner, purpose);
        }
        taken.len()
    };
    let before = free_runs(&machine);
    let (mut next, mut moved) = (Some(Pa::new(0)), 0);
    while let Some(from) = next {
        let step = machine.cpu.clear_run(from, 64);
        assert_eq!(step.left, 0);
        moved += step.moved;
        next = step.next;
        machine.cpu.wait_for_epoch();
    }
    let after = free_runs(&machine);
    assert!(
        after >= before + 8,
        "{before} runs, then {after}; {moved} frames moved"
    );
    for page in 0..400 {
        assert_eq!(machine.read(0, page), 1 + page);
        assert_eq!(machine.read(1, page), 1 + page);
    }
    assert_eq!(machine.guest(), 400);
    drop(stays);
    machine.end();
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, u64, u64),
    Read(usize, u64),
    Migrate(u64),
    Compact(usize),
    Clear,
    Scan,
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn guests_read_what_they_wrote(
        steps in prop::collection::vec(
            prop_oneof![
                6 => (0..2usize, 0..BLOCK, 0..3u64).prop_map(|(vm, page, word)| Step::Write(vm, page, word)),
                2 => (0..2usize, 0..BLOCK).prop_map(|(vm, page)| Step::Read(vm, page)),
                4 => (0..BLOCK).prop_map(Step::Migrate),
                2 => (0..2usize).prop_map(Step::Compact),
                1 => Just(Step::Clear),
                1 => Just(Step::Scan),
            ],
            1..60,
        ),
    ) {
        let mut machine = Machine::new(8 * BLOCK as usize);
        let object = machine.add_vm(BLOCK, Level::L3);
        let mut written: [Vec<u64>; 2] = [(1..=BLOCK).collect(), (1..=BLOCK).collect()];
        for page in 0..BLOCK {
            machine.write(0, page, 1 + page);
        }
        machine.fork(0);
        let merging = PageMerging::new(MergePolicy { pages_to_scan: BLOCK, ..MergePolicy::default() });
        merging.add(&object).unwrap();
        // The second VM has its own copy of all, the first so what it had before.
        for page in 0..BLOCK {
            machine.write(1, page, 1 + page);
            machine.write(0, page, 1 + page);
        }
        for step in steps {
            match step {
                Step::Write(vm, page, word) => {
                    prop_assert!(machine.write(vm, page, word) <= 2);
                    written[vm][page as usize] = word;
                }
                Step::Read(vm, page) => prop_assert_eq!(machine.read(vm, page), written[vm][page as usize]),
                Step::Migrate(page) => {
                    object.migrate(&machine.cpu, page);
                }
                Step::Compact(vm) => {
                    machine.spaces[vm].compact(&machine.cpu, SLOT, START).unwrap();
                }
                Step::Clear => {
                    let mut next = Some(Pa::new(0));
                    while let Some(from) = next {
                        next = machine.cpu.clear_run(from, 300).next;
                    }
                }
                Step::Scan => {
                    merging.step(&machine.cpu);
                }
            }
            machine.cpu.wait_for_epoch();
        }
        for (vm, words) in written.iter().enumerate() {
            for (page, word) in (0..).zip(words) {
                prop_assert_eq!(machine.read(vm, page), *word);
            }
        }
        drop(object);
        machine.end();
    }
}
