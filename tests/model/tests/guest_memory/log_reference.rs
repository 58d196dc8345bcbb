//! The dirty log against a reference, on real memory and a software MMU: whatever a slot is made of and wherever it
//! begins, in the guest as in its object, however writes are noticed, how much counts as one and which part of the log
//! is taken, what is found is what was written since it was last taken.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use memory::frames::{FramePool, arena};
use memory::{
    Access, AddressSpace, Ahead, CpuMemory, Fault, FaultOutcome, Granularity, LogPolicy,
    MemorySystem, Object, Owner, Parallel, SlotConfig, SlotId, Splitting, Tracking, VmId,
};
use model::{Hardware, Mmu};
use proptest::prelude::*;
use stage2::{Features, Ipa, Layout, Level, PAGE_SIZE, Pa};

const SLOT: SlotId = SlotId(3);
/// Pages of a block of 2 MiB, and of 1 GiB.
const BLOCK: u64 = 512;
const GIB: u64 = BLOCK * BLOCK;
const WORD: u64 = 64;

/// A slot, how it is logged, and what happens.
#[derive(Clone, Debug)]
struct Case {
    piece: Level,
    /// By how many pages the slot begins behind a multiple of the largest block, in the guest and in its object.
    base: u64,
    offset: u64,
    pages: u64,
    policy: LogPolicy,
    /// Whether all of it is written before logging begins.
    written_before: bool,
    acts: Vec<Act>,
}

/// What is done to a slot; pages and words are those of these numbers modulo how many there are.
#[derive(Clone, Debug)]
enum Act {
    Write(u64),
    Read(u64),
    /// Looks at words of the log.
    Get(u64, u64),
    /// Takes what is named of words of the log, after a look at them or without.
    Clear {
        first: u64,
        words: u64,
        named: u64,
        looks: bool,
    },
    GetAndClear(u64, u64),
}

/// What should be in the log: a flag for each page that was written since it was last taken.
struct Reference {
    case: Case,
    dirty: Vec<bool>,
}

impl Reference {
    /// The pages that count as one with a page, if a block may map them: all of it lies in the slot, and at a multiple
    /// of its size in the guest as in the object.
    fn together(&self, page: u64) -> Range<u64> {
        let Case {
            piece,
            base,
            offset,
            pages,
            policy,
            ..
        } = &self.case;
        let in_blocks = *piece <= Level::L2 && policy.granularity == Granularity::Block2M;
        let block = (page + base) / BLOCK * BLOCK;
        if in_blocks
            && base % BLOCK == offset % BLOCK
            && block >= *base
            && block + BLOCK <= pages + base
        {
            block - base..block - base + BLOCK
        } else {
            page..page + 1
        }
    }

    fn write(&mut self, page: u64) {
        for page in self.together(page) {
            self.dirty[page as usize] = true;
        }
    }

    fn word(&self, word: u64) -> u64 {
        let pages = (word * WORD..(word + 1) * WORD).map(|page| self.dirty.get(page as usize));
        pages
            .rev()
            .fold(0, |bits, dirty| bits << 1 | u64::from(dirty == Some(&true)))
    }

    fn words(&self, words: Range<u64>) -> Vec<u64> {
        words.map(|word| self.word(word)).collect()
    }

    fn take(&mut self, first: u64, taken: &[u64]) {
        for (word, bits) in (first..).zip(taken) {
            for bit in (0..WORD).filter(|bit| bits & 1 << bit != 0) {
                self.dirty[(word * WORD + bit) as usize] = false;
            }
        }
    }
}

/// CPU 0 runs the guest, CPU 1 takes the log. One for all cases: what large pieces are made of is zeroed once.
struct Machine {
    mmu: Arc<Mmu>,
    layout: Layout,
    guest: CpuMemory<Hardware>,
    harness: CpuMemory<Hardware>,
    /// What slots map in pieces of 1 GiB.
    large: Arc<Object>,
}

// SAFETY: used by one thread at a time, behind a lock.
unsafe impl Send for Machine {}

impl Machine {
    fn new() -> Self {
        let pool = Box::leak(Box::new(FramePool::new()));
        // The first gigabyte holds the frames' records.
        // SAFETY: the arena is leaked, and added once.
        unsafe { pool.add(arena::leak(3 * GIB as usize)) };
        let system: &MemorySystem = Box::leak(Box::new(MemorySystem::new(pool, 2, 8).unwrap()));
        let features = Features {
            hardware_access: true,
            hardware_dirty: true,
            ..Features::armv8_0(40, 48)
        };
        let layout = Layout::new(features).unwrap();
        let mmu = Mmu::new(layout, 2);
        let cpu = |number| {
            let mmu = mmu.clone();
            let hardware = Hardware { mmu, cpu: number };
            CpuMemory::new(system, number, hardware, Box::leak(Box::default()))
        };
        let (guest, harness) = (cpu(0), cpu(1));
        let large = Object::anonymous(&harness, Owner::Shared, 2 * GIB * PAGE_SIZE, Level::L1);
        Self {
            large: large.unwrap(),
            mmu,
            layout,
            guest,
            harness,
        }
    }

    fn run(&self, case: &Case) {
        let space = AddressSpace::new(&self.harness, VmId::new(0).unwrap(), self.layout).unwrap();
        let vm = Vm {
            machine: self,
            start: Ipa::new((2 * GIB + case.base) * PAGE_SIZE),
            space,
        };
        let object = match case.piece {
            Level::L1 => self.large.clone(),
            piece => {
                let bytes = (case.offset + case.pages).next_multiple_of(BLOCK) * PAGE_SIZE;
                let account = Owner::Vm(vm.space.vm());
                Object::anonymous(&self.harness, account, bytes, piece).unwrap()
            }
        };
        let config = SlotConfig {
            id: SLOT,
            start: vm.start,
            object,
            offset: case.offset * PAGE_SIZE,
            bytes: case.pages * PAGE_SIZE,
            read_only: false,
            write_faults: false,
        };
        vm.space.map_object(&self.harness, config).unwrap();
        vm.check(case);
        vm.space.destroy(&self.harness);
    }
}

struct Vm<'m> {
    machine: &'m Machine,
    space: AddressSpace<Parallel>,
    start: Ipa,
}

impl Vm<'_> {
    fn access(&self, page: u64, access: Access) {
        let ipa = self.start.offset(page * PAGE_SIZE);
        let guest = &self.machine.guest;
        let (vttbr, _) = self.space.activate(guest);
        let root = Pa::new(vttbr.bits() & ((1 << 48) - 1) & !0x3f);
        let write = access == Access::Write;
        while let Err(kind) = self.machine.mmu.access(0, root, ipa, write, 1, |_| {}) {
            let fault = Fault {
                vcpu: 0,
                ipa,
                va: None,
                access,
                kind,
            };
            let outcome = self.space.fault(guest, &fault);
            assert!(
                matches!(outcome, FaultOutcome::Resolved | FaultOutcome::Retry),
                "{outcome:?}"
            );
            guest.refill();
        }
    }

    fn check(&self, case: &Case) {
        if case.written_before {
            let step = if case.piece == Level::L1 { BLOCK } else { 1 };
            (0..case.pages)
                .step_by(step as usize)
                .for_each(|page| self.access(page, Access::Write));
        }
        (self.space)
            .enable_dirty_log(&self.machine.harness, SLOT, &case.policy)
            .unwrap();
        let mut reference = Reference {
            dirty: vec![case.policy.initially_set; case.pages as usize],
            case: case.clone(),
        };
        for act in &case.acts {
            self.act(act, &mut reference);
        }
        let all = self.all(case);
        assert_eq!(self.got(all.clone()), reference.words(all), "at the end");
    }

    fn all(&self, case: &Case) -> Range<u64> {
        0..case.pages.div_ceil(WORD)
    }

    fn got(&self, words: Range<u64>) -> Vec<u64> {
        let mut bitmap = vec![0; (words.end - words.start) as usize];
        let first = words.start * WORD;
        (self.space)
            .get_dirty_log(&self.machine.harness, SLOT, first, &mut bitmap)
            .unwrap();
        bitmap
    }

    fn act(&self, act: &Act, reference: &mut Reference) {
        let (pages, all) = (reference.case.pages, self.all(&reference.case));
        let words = |first: u64, count: u64| {
            let first = first % (all.end + 1);
            first..(first + count).min(all.end)
        };
        let harness = &self.machine.harness;
        match *act {
            Act::Read(page) => self.access(page % pages, Access::Read),
            Act::Write(page) => {
                self.access(page % pages, Access::Write);
                reference.write(page % pages);
            }
            Act::Get(first, count) => {
                let words = words(first, count);
                assert_eq!(
                    self.got(words.clone()),
                    reference.words(words.clone()),
                    "get {words:?}"
                );
            }
            Act::Clear {
                first,
                words: count,
                named,
                looks,
            } => {
                let words = words(first, count);
                let there = reference.words(words.clone());
                if looks {
                    assert_eq!(self.got(words.clone()), there, "get {words:?} to clear");
                }
                let mut taken = vec![named; there.len()];
                (self.space)
                    .clear_dirty_log(harness, SLOT, words.start * WORD, &mut taken)
                    .unwrap();
                let by_hardware = reference.case.policy.tracking == Tracking::Hardware;
                for (there, taken) in there.iter().zip(&taken) {
                    if looks || !by_hardware {
                        assert_eq!(*taken, there & named, "clear {words:?}");
                    } else {
                        // What hardware has noted, and nobody has looked at, stays.
                        assert_eq!(taken & !(there & named), 0, "clear {words:?} blindly");
                    }
                }
                reference.take(words.start, &taken);
            }
            Act::GetAndClear(first, count) => {
                let words = words(first, count);
                let mut taken = vec![0; (words.end - words.start) as usize];
                (self.space)
                    .get_and_clear_dirty_log(harness, SLOT, words.start * WORD, &mut taken)
                    .unwrap();
                assert_eq!(
                    taken,
                    reference.words(words.clone()),
                    "get and clear {words:?}"
                );
                reference.take(words.start, &taken);
            }
        }
    }
}

fn check(case: &Case) {
    static MACHINE: OnceLock<Mutex<Machine>> = OnceLock::new();
    let machine = MACHINE.get_or_init(|| Mutex::new(Machine::new()));
    let machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
    machine.run(case);
}

/// Pages and words that lie at the ends of blocks and words more often than not.
fn near(most: u64) -> impl Strategy<Value = u64> {
    let edge = prop::sample::select(vec![64, BLOCK, GIB]);
    let edges = (edge, 0..8u64, 0..3u64).prop_map(|(edge, times, more)| edge * times + more);
    prop_oneof![0..most, edges.prop_map(|number| number.saturating_sub(1))]
}

fn act(pages: u64) -> impl Strategy<Value = Act> {
    let words = pages / WORD + 2;
    let named = prop_oneof![
        Just(u64::MAX),
        any::<u64>(),
        Just(1 << 63),
        Just(1),
        Just(0)
    ];
    let count = move || prop_oneof![0..3u64, 0..words];
    prop_oneof![
        4 => near(pages).prop_map(Act::Write),
        1 => near(pages).prop_map(Act::Read),
        1 => (0..words, count()).prop_map(|(first, words)| Act::Get(first, words)),
        3 => (0..words, count(), named, any::<bool>())
            .prop_map(|(first, words, named, looks)| Act::Clear { first, words, named, looks }),
        1 => (0..words, count()).prop_map(|(first, words)| Act::GetAndClear(first, words)),
    ]
}

fn policy() -> impl Strategy<Value = LogPolicy> {
    let ahead = Ahead {
        chunk: 4 << 20,
        reserve: 0,
    };
    (
        prop::sample::select(vec![Tracking::Hardware, Tracking::WriteProtect]),
        prop::sample::select(vec![
            Splitting::None,
            Splitting::AtFault,
            Splitting::Eager(ahead),
        ]),
        prop::sample::select(vec![Granularity::Page, Granularity::Block2M]),
        any::<bool>(),
    )
        .prop_map(
            |(tracking, splitting, granularity, initially_set)| LogPolicy {
                tracking,
                splitting,
                granularity,
                initially_set,
                ring: false,
            },
        )
}

/// Slots of so many pages.
fn case(piece: Level, pages: Range<u64>) -> impl Strategy<Value = Case> {
    let skew = || prop::sample::select(vec![0, 1, 2, 63, 64, 65, 511]);
    // Mostly so that blocks fit.
    let places = prop_oneof![3 => skew().prop_map(|skew| (skew, skew)), 1 => (skew(), skew())];
    let most = pages.end;
    let acts = prop::collection::vec(act(most), 1..30);
    (places, pages, policy(), any::<bool>(), acts).prop_map(
        move |((base, offset), pages, policy, written_before, acts)| Case {
            piece,
            base,
            offset,
            pages,
            policy,
            written_before,
            acts,
        },
    )
}

/// How often a property is tried. Failures are not noted in files.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn the_log_of_pages_is_what_was_written(case in case(Level::L3, 1..700)) {
        check(&case);
    }

    #[test]
    fn the_log_of_blocks_is_what_was_written(case in case(Level::L2, 1..3 * BLOCK)) {
        check(&case);
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn the_log_of_gigabytes_is_what_was_written(case in case(Level::L1, GIB + BLOCK..2 * GIB - 511)) {
        check(&case);
    }
}
