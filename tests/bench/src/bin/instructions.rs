//! One operation of the engine, or of what decides for it, for an instruction counter to look at: `instructions OPERATION` prepares it and calls the
//! function of that name in [`measured`] once. Prints by how many pages its instructions are to be divided.

use std::process::ExitCode;
use std::sync::Arc;

use engine_bench::{BLOCK_PAGES, Cpu, fill, page, tracked_tree, tree, write};
use memory::frames::{FramePool, arena};
use memory::{
    Access, AddressSpace, CpuMemory, Fault, FaultKind, FaultOutcome, LogPolicy, MemorySystem,
    MergePolicy, Object, Owner, PageMerging, Parallel, SlotConfig, SlotId, VmId,
};
use stage2::{Features, Layout, Level, NoTlb, PAGE_SIZE, Permissions, Stage2};

/// What is measured. Never inlined, so that the counter finds them by name.
mod measured {
    use crate::Space;
    use engine_bench::{BLOCK_PAGES, BenchWorker, page};
    use memory::{CpuMemory, Fault, FaultOutcome, PageMerging};
    use stage2::{All, Level, NoTlb, Request, Resolution, Stage2};
    use std::hint::black_box;

    #[inline(never)]
    pub fn relax(stage2: &Stage2, worker: &BenchWorker<'_>, request: &Request) -> bool {
        let Request { ipa, va, .. } = *request;
        let relaxed = stage2.relax(worker, ipa, va, request.largest_written);
        relaxed.is_some()
    }

    #[inline(never)]
    pub fn map_page(stage2: &Stage2, worker: &BenchWorker<'_>, request: &Request) -> bool {
        let Resolution::Vacant(broken) = stage2.fault(worker, request) else {
            return false;
        };
        // SAFETY: as in `engine_bench::serve`.
        unsafe { stage2.fill(broken, request) }.is_ok()
    }

    #[inline(never)]
    pub fn split_block(stage2: &Stage2, worker: &BenchWorker<'_>) -> bool {
        let block = page(0)..page(BLOCK_PAGES);
        stage2
            .split(worker, block, Level::L3, 1)
            .is_ok_and(|split| split.blocks == 1)
    }

    #[inline(never)]
    pub fn epoch(cpu: &CpuMemory<NoTlb>, faults: u64) -> bool {
        for _ in 0..faults {
            drop(cpu.pin());
        }
        true
    }

    /// Functions that serve faults, each under a name of its own.
    macro_rules! faults {
        ($($name:ident),*) => {
            $(#[inline(never)]
            pub fn $name(space: &Space, cpu: &CpuMemory<NoTlb>, faults: &[Fault]) -> bool {
                // No two of them are the same to the linker.
                black_box(stringify!($name));
                faults
                    .iter()
                    .all(|fault| space.fault(cpu, fault) == FaultOutcome::Resolved)
            })*
        };
    }

    faults!(
        fault_logged,
        fault_backed,
        fault_first_touch,
        fault_zeros,
        fault_copy,
        fault_last
    );

    /// Functions that look at all pages once to merge them, each under a name of its own.
    macro_rules! scans {
        ($($name:ident),*) => {
            $(#[inline(never)]
            pub fn $name(merging: &PageMerging, cpu: &CpuMemory<NoTlb>) -> u64 {
                black_box(stringify!($name));
                merging.step(cpu)
            })*
        };
    }

    scans!(scan_new, scan_unique, scan_merge, scan_shared);

    #[inline(never)]
    pub fn find_dirty(stage2: &Stage2, worker: &BenchWorker<'_>, pages: u64) -> u64 {
        let mut found = 0;
        stage2
            .find_dirty(
                worker,
                page(0)..page(pages),
                |_| true,
                |_, _, bits| found += u64::from(bits.count_ones()),
            )
            .expect("pages");
        found
    }

    #[inline(never)]
    pub fn track(stage2: &Stage2, worker: &BenchWorker<'_>, pages: u64) -> bool {
        let all = page(0)..page(pages);
        stage2
            .track_writes(worker, all, Level::L3, All, |_, _| {})
            .is_ok()
    }

    #[inline(never)]
    pub fn harvest(stage2: &Stage2, worker: &BenchWorker<'_>, pages: u64) -> bool {
        stage2
            .write_protect(worker, page(0)..page(pages), All, |_, _| {})
            .is_ok()
    }
}

/// The operations, with what each divides its instructions by.
const OPERATIONS: [(&str, u64); 17] = [
    ("relax", 1),
    ("map_page", 1),
    ("split_block", 1),
    ("harvest", 8 * BLOCK_PAGES),
    ("find_dirty", 8 * BLOCK_PAGES),
    ("track", 8 * BLOCK_PAGES),
    ("epoch", EPOCH_FAULTS),
    ("fault_logged", FAULTS),
    ("fault_backed", FAULTS),
    ("fault_first_touch", FAULTS),
    ("fault_zeros", FAULTS),
    ("fault_copy", FAULTS),
    ("fault_last", FAULTS),
    ("scan_new", BLOCK_PAGES),
    ("scan_unique", BLOCK_PAGES),
    ("scan_merge", BLOCK_PAGES),
    ("scan_shared", BLOCK_PAGES),
];

/// What hardware has noted a write to.
const TRACKED_AND_DIRTY: Permissions = Permissions {
    hardware_dirty: true,
    ..Permissions::RAM
};

/// Faults whose stays in the epoch are measured together: its upkeep comes at every 128th.
const EPOCH_FAULTS: u64 = 1024;
/// CPUs that take part in the epoch meanwhile: the upkeep looks at each.
const EPOCH_CPUS: usize = 4;

/// Faults of whole address spaces that are measured together, so that the epoch's upkeep has its share.
const FAULTS: u64 = 32;

type Space = AddressSpace<Parallel>;

/// A VM, or its fork, whose faults are measured.
struct Vms {
    cpu: CpuMemory<NoTlb>,
    vm: Space,
    fork: Space,
    object: Arc<Object>,
}

impl Vms {
    /// A VM with memory that is there, or comes when it is touched; and another one without any.
    fn new(is_there: bool) -> Self {
        // SAFETY: the arena is leaked, and added once.
        unsafe { POOL.add(arena::leak(4096)) };
        let system = &*Box::leak(Box::new(MemorySystem::new(&POOL, 1, 8).unwrap()));
        let cpu = CpuMemory::new(system, 0, NoTlb, Box::leak(Box::default()));
        let space = |number| {
            let layout = Layout::new(Features::armv8_0(40, 48)).expect("every CPU has it");
            let vm = VmId::new(number).expect("there are more");
            Space::new(&cpu, vm, layout).expect("enough frames")
        };
        let (vm, fork) = (space(0), space(1));
        let (bytes, account) = (BLOCK_PAGES * PAGE_SIZE, Owner::Vm(vm.vm()));
        let object = if is_there {
            Object::preallocated(&cpu, account, bytes, Level::L3)
        } else {
            Object::anonymous(&cpu, account, bytes, Level::L3)
        };
        let object = object.expect("enough frames");
        let slot = SlotConfig {
            id: SlotId(0),
            start: page(0),
            object: object.clone(),
            offset: 0,
            bytes,
            read_only: false,
            write_faults: false,
        };
        vm.map_object(&cpu, slot).expect("it fits");
        Self {
            cpu,
            vm,
            fork,
            object,
        }
    }

    fn faults(&self, access: Access, kind: FaultKind) -> Vec<Fault> {
        let fault = |number| Fault {
            vcpu: 0,
            ipa: page(number),
            va: None,
            access,
            kind,
        };
        (1..=FAULTS).map(fault).collect()
    }

    /// Has all pages mapped ahead.
    fn map(&self, vm: &Space, access: Access) {
        let all = page(0)..page(BLOCK_PAGES);
        vm.prefault(&self.cpu, 0, all, access)
            .expect("enough frames");
        self.cpu.refill();
    }
}

/// Whether the faults were served.
fn serve(operation: &str) -> bool {
    let vms = Vms::new(matches!(operation, "fault_logged" | "fault_backed"));
    let Vms { cpu, vm, fork, .. } = &vms;
    let denied = vms.faults(Access::Write, FaultKind::Permission);
    let unmapped = vms.faults(Access::Write, FaultKind::Translation);
    // The table is there.
    let first = Fault {
        ipa: page(0),
        ..unmapped[0]
    };
    assert_eq!(vm.fault(cpu, &first), FaultOutcome::Resolved);
    match operation {
        "fault_logged" => {
            vms.map(vm, Access::Write);
            vm.enable_dirty_log(cpu, SlotId(0), &LogPolicy::default())
                .expect("not logged yet");
            measured::fault_logged(vm, cpu, &denied)
        }
        "fault_backed" => measured::fault_backed(vm, cpu, &unmapped),
        "fault_first_touch" => measured::fault_first_touch(vm, cpu, &unmapped),
        "fault_zeros" => {
            vms.map(vm, Access::Read);
            measured::fault_zeros(vm, cpu, &denied)
        }
        _ => {
            vms.map(vm, Access::Write);
            vm.fork(cpu, fork).expect("enough memory");
            vms.map(fork, Access::Read);
            if operation == "fault_copy" {
                return measured::fault_copy(fork, cpu, &denied);
            }
            // The VM has copied all, so the rest is its fork's alone.
            measured::fault_copy(vm, cpu, &denied);
            cpu.refill();
            measured::fault_last(fork, cpu, &denied)
        }
    }
}

/// How many pages were looked at to merge them: for the first time; with nothing equal among them; with pairs that come to
/// share a frame, or share it already.
fn scan(operation: &str) -> u64 {
    let vms = Vms::new(false);
    let Vms { cpu, vm, .. } = &vms;
    let different = if operation == "scan_unique" { 1 } else { 2 };
    for number in 0..BLOCK_PAGES {
        let word = (1 + number / different).to_le_bytes();
        vm.write_guest(cpu, page(number), &word)
            .expect("enough frames");
    }
    vms.map(vm, Access::Write);
    let merging = PageMerging::new(MergePolicy {
        pages_to_scan: BLOCK_PAGES,
        ..MergePolicy::default()
    });
    merging.add(&vms.object).expect("enough memory");
    if operation == "scan_new" {
        return measured::scan_new(&merging, cpu);
    }
    merging.step(cpu);
    match operation {
        "scan_unique" => measured::scan_unique(&merging, cpu),
        "scan_merge" => measured::scan_merge(&merging, cpu),
        _ => {
            merging.step(cpu);
            measured::scan_shared(&merging, cpu)
        }
    }
}

static POOL: FramePool = FramePool::new();

/// Whether the operation did what it was to do.
fn run(operation: &str, pages: u64, stage2: &Stage2, cpu: &Cpu) -> bool {
    let worker = cpu.worker();
    match operation {
        fault if fault.starts_with("fault_") => serve(fault),
        scanned if scanned.starts_with("scan_") => scan(scanned) == pages,
        "relax" => {
            fill(stage2, cpu, BLOCK_PAGES, Level::L3, Permissions::LOGGED);
            measured::relax(stage2, &worker, &write(7))
        }
        "map_page" => {
            fill(stage2, cpu, 7, Level::L3, Permissions::RAM);
            measured::map_page(stage2, &worker, &write(7))
        }
        "split_block" => {
            fill(stage2, cpu, BLOCK_PAGES, Level::L2, Permissions::RAM);
            measured::split_block(stage2, &worker)
        }
        "find_dirty" => {
            let stage2 = tracked_tree();
            fill(&stage2, cpu, pages, Level::L3, TRACKED_AND_DIRTY);
            // One page in eight: as many as a harvest of a busy guest may find, or more.
            measured::track(&stage2, &worker, pages - pages / 8);
            measured::find_dirty(&stage2, &worker, pages) == pages / 8
        }
        "track" => {
            let stage2 = tracked_tree();
            fill(&stage2, cpu, pages, Level::L3, TRACKED_AND_DIRTY);
            measured::track(&stage2, &worker, pages)
                && measured::find_dirty(&stage2, &worker, pages) == 0
        }
        "epoch" => {
            let system = &*Box::leak(Box::new(MemorySystem::new(&POOL, EPOCH_CPUS, 8).unwrap()));
            let cpus: Vec<_> = (0..EPOCH_CPUS)
                .map(|number| CpuMemory::new(system, number, NoTlb, Box::leak(Box::default())))
                .collect();
            measured::epoch(&cpus[0], pages)
        }
        _ => {
            fill(stage2, cpu, pages, Level::L3, Permissions::RAM);
            measured::harvest(stage2, &worker, pages)
                && stage2
                    .lookup(&worker, page(pages - 1))
                    .is_some_and(|(leaf, _)| !leaf.writable())
        }
    }
}

fn main() -> ExitCode {
    let operation = std::env::args().nth(1).unwrap_or_default();
    let Some((name, pages)) = OPERATIONS.iter().find(|(name, _)| *name == operation) else {
        let names = OPERATIONS.map(|(name, _)| name).join(", ");
        eprintln!("error: {operation:?} is none of {names}");
        return ExitCode::from(2);
    };
    let (stage2, cpu) = (tree(), Cpu::new(64));
    if !run(name, *pages, &stage2, &cpu) {
        eprintln!("error: {name} didn't do what it was to do");
        return ExitCode::FAILURE;
    }
    println!("{pages}");
    ExitCode::SUCCESS
}
