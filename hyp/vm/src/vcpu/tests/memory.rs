//! The run loop over real memory: a guest's calls about its memory, and running out of frames.

use super::*;
use ::memory::frames::{FramePool, arena};
use ::memory::{
    AddressSpace, CpuMemory, MemorySystem, Object, Owner, Parallel, SlotConfig, SlotId, VmId,
};
use stage2::{Features, Layout, Level, NoTlb};
use std::thread;

const START: u64 = 0x8000_0000;
const BALLOON: u64 = 0xc600_0010;
const PREFAULT: u64 = 0xc600_0011;
const NOT_BACKED: i64 = -5;
const NOT_PERMITTED: i64 = -6;

/// A machine of two CPUs and some frames.
struct Machine {
    pool: &'static FramePool,
    system: &'static MemorySystem,
}

impl Machine {
    fn new(frames: usize) -> Self {
        let pool: &FramePool = Box::leak(Box::new(FramePool::new()));
        // SAFETY: the arena is leaked, and added once.
        unsafe { pool.add(arena::leak(frames)) };
        let system: &MemorySystem = Box::leak(Box::new(MemorySystem::new(pool, 2, 8).unwrap()));
        Self { pool, system }
    }

    /// One of its CPUs, for the thread that calls.
    fn cpu(&self, number: usize) -> CpuMemory<NoTlb> {
        let counters = Box::leak(Box::default());
        CpuMemory::new(self.system, number, NoTlb, counters)
    }
}

fn space(cpu: &CpuMemory<NoTlb>, vm: usize) -> AddressSpace<Parallel> {
    let layout = Layout::new(Features::armv8_0(40, 48)).unwrap();
    AddressSpace::new(cpu, VmId::new(vm).unwrap(), layout).unwrap()
}

/// A slot of pages that nobody has touched.
fn untouched(cpu: &CpuMemory<NoTlb>, vm: usize, pages: u64) -> SlotConfig {
    let (account, bytes) = (Owner::Vm(VmId::new(vm).unwrap()), pages * PAGE_SIZE);
    SlotConfig {
        id: SlotId(1),
        start: Ipa::new(START),
        object: Object::anonymous(cpu, account, bytes, Level::L3).unwrap(),
        offset: 0,
        bytes,
        read_only: false,
        write_faults: false,
    }
}

fn vm_of(space: AddressSpace<Parallel>) -> Vm<AddressSpace<Parallel>> {
    let config = VmConfig {
        vcpus: 1,
        ipa_bits: 40,
        counter_offset: 0,
        times_faults: false,
    };
    let vm = Vm::new(config, space).unwrap();
    let start = Start {
        entry: ENTRY,
        context: 0,
    };
    vm.turn_on(VcpuId(0), start).unwrap();
    vm
}

/// The guest has this in x0 and x1 after a call.
fn answered(status: i64, bytes: u64) -> Turn {
    check(move |regs| assert_eq!((regs.x[0] as i64, regs.x[1]), (status, bytes)))
}

#[test]
fn what_guests_ask_of_their_memory_is_done_or_refused_as_a_whole() {
    let machine = Machine::new(2048);
    let cpu = machine.cpu(0);
    let space = space(&cpu, 0);
    space.map_object(&cpu, untouched(&cpu, 0, 1024)).unwrap();
    let image = SlotConfig {
        id: SlotId(2),
        start: Ipa::new(START + 1024 * PAGE_SIZE),
        object: Object::image(&cpu, &[7; PAGE_SIZE as usize]).unwrap(),
        bytes: PAGE_SIZE,
        read_only: true,
        ..untouched(&cpu, 0, 1)
    };
    space.map_object(&cpu, image).unwrap();
    let vm = vm_of(space);
    let (all, most) = (1024 * PAGE_SIZE, 512 * PAGE_SIZE);
    let (image, page) = (START + all, PAGE_SIZE);
    let script = [
        // As far as the image, and beyond it.
        (PREFAULT, START, all + page, 1, NOT_PERMITTED, 0),
        (BALLOON, START, all + page, 0, NOT_PERMITTED, 0),
        (PREFAULT, START, all + 2 * page, 0, NOT_BACKED, 0),
        (BALLOON, START - page, 2 * page, 0, NOT_BACKED, 0),
        (PREFAULT, image, page, 0, 0, page),
        (PREFAULT, image - page, 2 * page, 0, 0, 2 * page),
        (PREFAULT, START, all, 1, 0, most),
        (BALLOON, START + page, page, 0, 0, page),
        (BALLOON, image, page, 0, NOT_PERMITTED, 0),
    ];
    let script = script
        .into_iter()
        .flat_map(|(function, start, bytes, access, status, done)| {
            [
                call(function, [start, bytes, access]),
                answered(status, done),
            ]
        });
    let mut fake = FakeCpu::new(0, &Lines::new(1), script);
    let service = FakeService::default();
    run_slices(&vm, VcpuId(0), &mut fake, &cpu, &service);
    assert!(fake.script.is_empty());
    cpu.wait_for_epoch();
    // The image, and what was populated but for what was given up.
    assert_eq!(machine.pool.counts().guest, 1 + 512 - 1);
    let Vm { space, .. } = vm;
    space.destroy(&cpu);
    cpu.wait_for_epoch();
    assert_eq!(machine.pool.counts().guest, 0);
}

/// A guest that writes to all of its pages, some times over: those that it has before cost nothing.
fn writing(pages: u64, times: u64) -> Turn {
    let mut writes = 0;
    Box::new(move |regs| {
        if writes == pages * times {
            regs.x[0] = SYSTEM_OFF;
            return exit(HVC);
        }
        let ipa = START + writes % pages * PAGE_SIZE;
        writes += 1;
        RawExit {
            hpfar: ipa >> 12 << 4,
            ..exit(DATA_ABORT | WRITE | 0x07)
        }
    })
}

#[test]
fn a_vm_that_has_used_up_all_frames_goes_on_when_some_come_back() {
    const PAGES: u64 = 1024;
    let machine = Machine::new(1500);
    let other = machine.cpu(1);
    let (hog, start) = (space(&other, 1), Ipa::new(START));
    let bytes = 800 * PAGE_SIZE;
    hog.add_slot(&other, SlotId(1), start, bytes, Level::L3, false)
        .unwrap();
    let space = space(&other, 0);
    space
        .map_object(&other, untouched(&other, 0, PAGES))
        .unwrap();
    let vm = vm_of(space);
    let (lines, service) = (Lines::new(2), FakeService::default());
    let starved = thread::scope(|scope| {
        let (vm, machine, lines, service) = (&vm, &machine, &lines, &service);
        scope.spawn(move || {
            let mut fake = FakeCpu::new(0, lines, []);
            fake.endless = Some(writing(PAGES, 3));
            let cpu = machine.cpu(0);
            run_slices(vm, VcpuId(0), &mut fake, &cpu, service);
        });
        let mut starved = 0;
        while vm.stop_reason().is_none() {
            if vm.starvation().is_some() {
                starved += 1;
                if starved == 1 {
                    hog.remove_slot(&other, SlotId(1)).unwrap();
                }
                if starved == 9 {
                    vm.stop(StopReason::TimedOut, |cpu| lines.kick(cpu));
                }
                vm.feed(|cpu| lines.kick(cpu));
            }
            thread::yield_now();
        }
        starved
    });
    assert!((1..9).contains(&starved), "{starved}");
    assert_eq!(vm.stop_reason(), Some(StopReason::PoweredOff));
    assert!(service.paused.lock().unwrap().contains(&VcpuId(0)));
    assert_eq!(machine.pool.counts().guest, PAGES);
    vm.space.destroy(&other);
    hog.destroy(&other);
}
