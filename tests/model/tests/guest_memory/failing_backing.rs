//! Every operation that takes frames for what backs guests, with the n-th frame missing, wherever the others are: in the CPU's
//! cache, which faults take from, or in the pool. What fails says so and loses nothing: once there are frames again the same
//! call completes, every guest reads what it wrote, and in the end every frame is back.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use memory::frames::{FramePool, arena};
use memory::{
    Access, AddressSpace, BackingPolicy, Change, CpuMemory, Fault, FaultKind, FaultOutcome,
    LogPolicy, MemorySystem, MergePolicy, NotBacked, NotPopulated, Object, ObjectError, Owner,
    PageMerging, Parallel, SlotConfig, SlotError, SlotId, StoreCounts, VmId, Watermarks,
};
use stage2::{Features, Ipa, IpaRange, Layout, Level, NoTlb, OutOfFrames, PAGE_SIZE, Pa};

/// Frames that are there in the end: more than all of it takes.
const ENOUGH: u64 = 256;
/// Frames of a full cache.
const CACHED: u64 = 64;
/// Frames that the pool has beside it, at most: more than are taken from the pool itself.
const POOLED: u64 = 16;
/// What takes frames, each of which has to be missing once.
const WITH_FRAMES: [&str; 8] = [
    "a VM",
    "an object",
    "write",
    "read",
    "a write by the hypervisor",
    "an image",
    "prefault",
    "a frame that moves",
];
/// Pages of a guest's memory.
const PAGES: u64 = 8;
const RAM: SlotId = SlotId(0);
const IMAGE: SlotId = SlotId(1);
const START: Ipa = Ipa::new(0x4000_0000);
const ELSEWHERE: Ipa = Ipa::new(0x8000_0000);
const IMAGE_AT: Ipa = Ipa::new(0xc000_0000);

type Space = AddressSpace<Parallel>;

/// Frames that are there at first.
#[derive(Clone, Copy, Debug)]
struct Frames {
    /// In the CPU's cache.
    cached: u64,
    /// In the pool.
    pooled: u64,
}

/// A machine whose frames run out.
struct Machine {
    cpu: CpuMemory<NoTlb>,
    pool: &'static FramePool,
    /// The frames that it hasn't got yet.
    rest: Option<Range<Pa>>,
    /// What has failed for want of one.
    starved: BTreeSet<&'static str>,
}

/// Whether an operation failed for want of a frame, and not otherwise.
trait Starved {
    fn is_starved(&self) -> bool;
}

impl Starved for OutOfFrames {
    fn is_starved(&self) -> bool {
        true
    }
}

impl Starved for ObjectError {
    fn is_starved(&self) -> bool {
        matches!(self, Self::OutOfMemory { .. })
    }
}

impl Starved for SlotError {
    fn is_starved(&self) -> bool {
        matches!(self, Self::OutOfMemory { .. })
    }
}

impl Starved for NotPopulated {
    fn is_starved(&self) -> bool {
        matches!(self, Self::OutOfFrames)
    }
}

impl Starved for NotBacked {
    fn is_starved(&self) -> bool {
        matches!(self, Self::OutOfFrames { .. })
    }
}

impl Machine {
    /// With so many frames at first, of `all`, which are nobody's.
    fn new(all: Range<Pa>, frames: Frames) -> Self {
        let pool: &FramePool = Box::leak(Box::new(FramePool::new()));
        let cached = all.start.offset(frames.cached * PAGE_SIZE);
        let pooled = cached.offset(frames.pooled * PAGE_SIZE);
        // SAFETY: the arena is leaked, and whoever had it before has ended.
        unsafe { pool.add(all.start..cached) };
        let system: &MemorySystem = Box::leak(Box::new(MemorySystem::new(pool, 1, 8).unwrap()));
        let cpu = CpuMemory::new(system, 0, NoTlb, Box::leak(Box::default()));
        assert_eq!(pool.free_frames(), 0, "all are in the cache");
        // SAFETY: as above.
        unsafe { pool.add(cached..pooled) };
        Self {
            cpu,
            pool,
            rest: Some(pooled..all.end),
            starved: BTreeSet::new(),
        }
    }

    /// Does what may fail for want of a frame; if it does, again with more of them.
    fn complete<R, E: Starved + std::fmt::Debug>(
        &mut self,
        what: &'static str,
        mut work: impl FnMut(&CpuMemory<NoTlb>) -> Result<R, E>,
    ) -> R {
        loop {
            match work(&self.cpu) {
                Ok(result) => return result,
                Err(error) => {
                    assert!(error.is_starved(), "{error:?}");
                    self.starved.insert(what);
                    let left = self.pool.free_frames();
                    self.cpu.refill();
                    // It wasn't the cache that had too few.
                    if self.pool.free_frames() == left {
                        let rest = self.rest.take().expect("there are enough frames now");
                        // SAFETY: as for the first ones.
                        unsafe { self.pool.add(rest) };
                    }
                }
            }
        }
    }

    fn write(&mut self, guest: &mut Guest, page: u64, value: u64) {
        let ipa = guest.at(page);
        let space = &guest.space;
        self.complete("write", |cpu| access(space, cpu, ipa, Access::Write));
        // Where the guest's own store would go now.
        let (leaf, _) = guest.space.lookup(&self.cpu, ipa).expect("it is mapped");
        // SAFETY: the leaf maps memory of the arena.
        unsafe { memory::frames::write_bytes(leaf.pa(), &value.to_ne_bytes()) };
        guest.holds[page as usize] = value;
    }

    fn read(&mut self, guest: &Guest, page: u64) -> u64 {
        let ipa = guest.at(page);
        self.complete("read", |cpu| access(&guest.space, cpu, ipa, Access::Read));
        let (leaf, _) = guest.space.lookup(&self.cpu, ipa).expect("it is mapped");
        let mut value = [0; 8];
        // SAFETY: as for a write.
        unsafe { memory::frames::read_bytes(leaf.pa(), &mut value) };
        u64::from_ne_bytes(value)
    }

    /// All that a guest wrote is there, for itself and for the hypervisor.
    fn check(&mut self, guest: &Guest) {
        for page in 0..PAGES {
            let mut value = [0; 8];
            let space = &guest.space;
            space
                .read_guest(&self.cpu, guest.at(page), &mut value)
                .unwrap();
            let expected = guest.holds[page as usize];
            assert_eq!(u64::from_ne_bytes(value), expected, "page {page}");
            assert_eq!(self.read(guest, page), expected, "page {page}");
        }
    }
}

/// A VM with what its guest wrote.
struct Guest {
    space: Space,
    start: Ipa,
    holds: [u64; PAGES as usize],
}

impl Guest {
    fn at(&self, page: u64) -> Ipa {
        self.start.offset(page * PAGE_SIZE)
    }

    fn all(&self) -> IpaRange {
        self.start..self.at(PAGES)
    }
}

fn space(cpu: &CpuMemory<NoTlb>, vm: usize, change: Change) -> Result<Space, OutOfFrames> {
    let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
    let backing = BackingPolicy {
        change,
        ..BackingPolicy::default()
    };
    Space::with_backing(cpu, VmId::new(vm).unwrap(), layout, backing)
}

fn slot(id: SlotId, start: Ipa, object: Arc<Object>) -> SlotConfig {
    SlotConfig {
        id,
        start,
        offset: 0,
        bytes: object.bytes(),
        read_only: id == IMAGE,
        write_faults: false,
        object,
    }
}

/// A guest's access, faulting until it may go on.
fn access(
    space: &Space,
    cpu: &CpuMemory<NoTlb>,
    ipa: Ipa,
    access: Access,
) -> Result<(), NotPopulated> {
    loop {
        let kind = match space.lookup(cpu, ipa) {
            Some((leaf, _)) if access.allowed_by(leaf) => return Ok(()),
            Some(_) => FaultKind::Permission,
            None => FaultKind::Translation,
        };
        let fault = Fault {
            vcpu: 0,
            ipa,
            va: None,
            access,
            kind,
        };
        match space.fault(cpu, &fault) {
            FaultOutcome::Resolved | FaultOutcome::Retry => {}
            FaultOutcome::OutOfFrames => return Err(NotPopulated::OutOfFrames),
            other => panic!("{other:?}"),
        }
    }
}

/// All that takes frames, of which there are so many at first. What failed for want of one.
fn run_out_after(frames: Frames, all: Range<Pa>, change: Change) -> BTreeSet<&'static str> {
    let mut machine = Machine::new(all, frames);
    let guest = |machine: &mut Machine, vm| Guest {
        space: machine.complete("a VM", |cpu| space(cpu, vm, change)),
        start: START,
        holds: [0; PAGES as usize],
    };
    let account = Owner::Vm(VmId::new(0).unwrap());
    let mut parent = guest(&mut machine, 0);
    let mut child = guest(&mut machine, 1);
    let bytes = PAGES * PAGE_SIZE;
    let object = machine.complete("an object", |cpu| {
        Object::anonymous(cpu, account, bytes, Level::L3)
    });
    machine.complete("a slot", |cpu| {
        let config = slot(RAM, START, object.clone());
        parent.space.map_object(cpu, config)
    });
    for page in 0..6 {
        machine.write(&mut parent, page, 10 + page);
    }
    assert_eq!(machine.read(&parent, 7), 0);

    fork_and_write(&mut machine, &mut parent, &mut child);
    share_an_image(&mut machine, &parent, &child);
    machine.complete("prefault", |cpu| {
        let populated = child.space.prefault(cpu, 0, child.all(), Access::Write);
        populated.map_err(|error| error.reason)
    });
    merge(&mut machine, &mut parent, &mut child);
    machine.complete("a frame that moves", |cpu| {
        object.migrate(cpu, 4).then_some(()).ok_or(OutOfFrames)
    });
    drop(object);
    compress(&mut machine, &mut parent, &mut child);

    machine.complete("a slot that moves", |cpu| {
        parent.space.move_slot(cpu, RAM, ELSEWHERE)
    });
    parent.start = ELSEWHERE;
    for page in 0..PAGES {
        machine.write(&mut parent, page, 40 + page);
    }
    machine.check(&parent);
    machine.check(&child);
    machine.complete("a slot that goes", |cpu| parent.space.remove_slot(cpu, RAM));
    machine.check(&child);

    parent.space.destroy(&machine.cpu);
    child.space.destroy(&machine.cpu);
    machine.cpu.wait_for_epoch();
    let counts = machine.pool.counts();
    counts.check().unwrap();
    assert_eq!((counts.guest, counts.table), (0, 0), "{counts}");
    assert_eq!(machine.pool.shared_frames(), 0);
    assert_eq!(machine.cpu.system().compressed(), StoreCounts::default());
    machine.starved
}

/// The child shares the parent's pages until either writes them, one of the two logged.
fn fork_and_write(machine: &mut Machine, parent: &mut Guest, child: &mut Guest) {
    machine.complete("fork", |cpu| parent.space.fork(cpu, &child.space));
    child.holds = parent.holds;
    for page in 0..4 {
        machine.write(child, page, 20 + page);
    }
    let policy = LogPolicy::default();
    parent
        .space
        .enable_dirty_log(&machine.cpu, RAM, &policy)
        .unwrap();
    for page in 2..6 {
        machine.write(parent, page, 30 + page);
    }
    let bytes = 77_u64.to_ne_bytes();
    machine.complete("a write by the hypervisor", |cpu| {
        child.space.write_guest(cpu, child.at(6), &bytes)
    });
    child.holds[6] = 77;
}

/// One image in both.
fn share_an_image(machine: &mut Machine, parent: &Guest, child: &Guest) {
    let image = machine.complete("an image", |cpu| {
        Object::image(cpu, &[7; 3 * PAGE_SIZE as usize])
    });
    for guest in [parent, child] {
        let space = &guest.space;
        machine.complete("a slot", |cpu| {
            let config = slot(IMAGE, IMAGE_AT, image.clone());
            space.map_object(cpu, config)
        });
        machine.complete("read", |cpu| access(space, cpu, IMAGE_AT, Access::Read));
    }
}

/// Equal pages of both share a frame, until they are written, and one moves while they do.
fn merge(machine: &mut Machine, parent: &mut Guest, child: &mut Guest) {
    let merging = PageMerging::new(MergePolicy::default());
    (machine.cpu.system()).trust(child.space.vm(), parent.space.vm());
    for guest in [&mut *parent, &mut *child] {
        merging.add_vm(&machine.cpu, &guest.space).unwrap();
        for page in 0..3 {
            machine.write(guest, page, 60);
        }
    }
    let until = merging.statistics().full_scans + 3;
    while merging.statistics().full_scans < until {
        merging.step(&machine.cpu);
    }
    assert!(machine.pool.shared_frames() > 0, "nothing was merged");
    machine.check(parent);
    machine.check(child);
    machine.write(parent, 0, 61);
    machine.write(child, 1, 62);
}

/// What one has given up reads as zeros; what was compressed of both is as it was, and of some of it a frame is needed.
fn compress(machine: &mut Machine, parent: &mut Guest, child: &mut Guest) {
    let pages = child.at(5)..child.at(7);
    assert_eq!(child.space.balloon(&machine.cpu, pages), Ok(2));
    child.holds[5..7].fill(0);
    let system = machine.cpu.system();
    let always = Watermarks {
        low: 1 << 40,
        high: 1 << 40,
    };
    system.set_watermarks(Some(always));
    // What was accessed lately has a second chance.
    for _ in 0..3 {
        machine.cpu.relieve();
    }
    system.set_watermarks(None);
    assert!(system.compressed().pages > 0 || machine.pool.free_frames() == 0);
    machine.cpu.wait_for_epoch();
    for guest in [parent, child] {
        for page in 0..PAGES {
            let ipa = guest.at(page);
            machine.complete("a page that comes back", |cpu| {
                access(&guest.space, cpu, ipa, Access::Read)
            });
        }
        machine.check(guest);
    }
}

#[test]
fn whichever_frame_is_missing_nothing_is_lost_and_the_same_call_completes_later() {
    let all = arena::leak(ENOUGH as usize);
    let (mut starved, mut runs) = (BTreeSet::new(), 0);
    for (cached, pooled) in (0..=CACHED).flat_map(|cached| (0..=POOLED).map(move |n| (cached, n))) {
        for change in [Change::Direct, Change::Unmap] {
            let failed = run_out_after(Frames { cached, pooled }, all.clone(), change);
            runs += usize::from(!failed.is_empty());
            starved.extend(failed);
        }
    }
    println!("{runs} times a frame was missing: for {starved:?}");
    assert!(WITH_FRAMES.iter().all(|what| starved.contains(what)));
}
