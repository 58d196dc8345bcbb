//! A VM whose CPUs run at once.

use std::sync::{Arc, Mutex, MutexGuard};

use loom::sync::atomic::{AtomicU64, Ordering};
use model::checked::every_execution;
use model::interrupts::CpuInterface;
use vgic::{
    Forwarded, Frame, GuestTables, SgiRegister, VcpuInterrupts, Version, Vgic, VgicConfig, Width,
};

pub const PREEMPTIONS: usize = 3;
/// An edge and a level, routed to vCPU 0, enabled.
pub const EDGE: u32 = 32;
pub const LEVEL: u32 = 33;
/// An edge with physical interrupt 99 behind it.
pub const DEVICE: u32 = 34;
/// The LPIs of events 0 and 1 of device 0, whose collection is on vCPU 0.
pub const LPI: u32 = 8192;
pub const OTHER_LPI: u32 = 8193;
/// Where the guest has the ITS's tables.
const QUEUE: u64 = 0x10_0000;
const PROPERTIES: u64 = 0x20_0000;
const VALID: u64 = 1 << 63;
/// The property of an enabled LPI, and of a disabled one.
pub const ENABLED: u8 = 0xa1;
pub const DISABLED: u8 = 0xa0;
/// The frame of the SGIs of a redistributor.
const SGI: u64 = 0x1_0000;

/// A CPU and the vCPU that is loaded on it.
pub struct Cpu {
    pub own: VcpuInterrupts,
    pub hw: CpuInterface,
    /// What its guest has acknowledged.
    pub taken: Vec<u32>,
}

pub struct World {
    pub vgic: Vgic,
    /// The commands of the guest's queue, and its LPIs' properties.
    commands: Mutex<Vec<[u64; 4]>>,
    properties: Mutex<[u8; 2]>,
    cpus: Vec<Mutex<Cpu>>,
    kicks: Vec<AtomicU64>,
    /// What devices write before they raise.
    written: AtomicU64,
    /// The newest of it that a guest has seen in a handler.
    pub seen: AtomicU64,
    /// How many interrupts guests have acknowledged.
    pub count: AtomicU64,
}

impl World {
    /// All vCPUs are loaded and ready, each with so many list registers.
    pub fn new(version: Version, vcpus: usize, registers: usize, its: bool) -> Self {
        let config = VgicConfig {
            version,
            vcpus,
            spis: 32,
            affinity: &|vcpu| vcpu as u32,
            distributor: 0,
            redistributors: 0x10_0000,
            its: its.then_some(0x8_0000),
            priority_bits: 5,
            forwarded: &[Forwarded {
                virtual_id: DEVICE,
                physical_id: 99,
            }],
        };
        let cpu = |vcpu| Cpu {
            own: VcpuInterrupts::new(vcpu),
            hw: CpuInterface::new(registers),
            taken: Vec::new(),
        };
        let world = Self {
            vgic: Vgic::new(&config).unwrap(),
            commands: Mutex::new(Vec::new()),
            properties: Mutex::new([ENABLED; 2]),
            cpus: (0..vcpus).map(|vcpu| Mutex::new(cpu(vcpu))).collect(),
            kicks: (0..vcpus).map(|_| AtomicU64::new(0)).collect(),
            written: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            count: AtomicU64::new(0),
        };
        (0..vcpus).for_each(|vcpu| world.load(vcpu));
        let frame = Frame::Distributor;
        for (offset, value) in [(0, 3), (0x84, 7), (0x104, 7), (0xc08, 0b10_00_10)] {
            world.write(0, frame, offset, value);
        }
        for vcpu in 0..vcpus {
            if version == Version::V3 {
                let frame = Frame::Redistributor(vcpu);
                world.write(vcpu, frame, SGI + 0x80, 0xffff_ffff);
                world.write(vcpu, frame, SGI + 0x100, 0xffff);
            }
            world.cpu(vcpu).hw.open(0xf8, true, true);
        }
        if its {
            world.start_its(vcpus);
        }
        world.rest();
        world
    }

    /// Maps collection n to vCPU n, and the LPIs.
    fn start_its(&self, vcpus: usize) {
        for vcpu in 0..vcpus {
            let frame = Frame::Redistributor(vcpu);
            self.write_double(vcpu, frame, 0x70, PROPERTIES | 13);
            self.write_double(vcpu, frame, 0x78, 1 << 62);
        }
        for vcpu in 0..vcpus {
            self.write(vcpu, Frame::Redistributor(vcpu), 0, 1);
        }
        for (offset, value) in [(0x100, VALID), (0x108, VALID), (0x80, VALID | QUEUE)] {
            self.write_double(0, Frame::Its, offset, value);
        }
        self.write(0, Frame::Its, 0, 1);
        for vcpu in 0..vcpus as u64 {
            self.command(0, [9, 0, VALID | vcpu << 16 | vcpu, 0]);
        }
        self.command(0, [8, 12, VALID, 0]);
        self.command(0, map(0, LPI));
        self.command(0, map(1, OTHER_LPI));
    }

    /// A vCPU's guest puts a command into the queue.
    pub fn put_command(&self, words: [u64; 4]) {
        self.commands.lock().unwrap().push(words);
    }

    /// A vCPU's guest has commands executed. Returns whether none is left for it to execute.
    pub fn ring(&self, vcpu: usize) -> bool {
        let count = self.commands.lock().unwrap().len() as u64;
        {
            let Cpu { own, hw, .. } = &mut *self.cpu(vcpu);
            let (size, value) = (Width::Word, count * 32);
            own.write(
                &self.vgic,
                hw,
                self,
                Frame::Its,
                0x88,
                size,
                value,
                self.kick(),
            )
            .unwrap();
        }
        self.enter(vcpu);
        !self.cpu(vcpu).own.has_commands(&self.vgic)
    }

    pub fn command(&self, vcpu: usize, words: [u64; 4]) -> bool {
        self.put_command(words);
        self.ring(vcpu)
    }

    pub fn set_property(&self, lpi: u32, property: u8) {
        self.properties.lock().unwrap()[(lpi - LPI) as usize] = property;
    }

    /// A device writes something, and raises an event.
    pub fn raise_lpi(&self, event: u32) {
        self.written.fetch_add(1, Ordering::Relaxed);
        self.vgic.raise_lpi(0, event, self.kick());
    }

    fn write_double(&self, vcpu: usize, frame: Frame, offset: u64, value: u64) {
        let Cpu { own, hw, .. } = &mut *self.cpu(vcpu);
        let (size, kick) = (Width::Double, self.kick());
        let written = own.write(&self.vgic, hw, self, frame, offset, size, value, kick);
        assert!(written.is_ok());
    }

    pub fn cpu(&self, vcpu: usize) -> MutexGuard<'_, Cpu> {
        // Whoever waited here would wait for ever: the model checker runs all on one thread.
        (self.cpus[vcpu].try_lock()).expect("nobody else is this CPU")
    }

    pub fn kick(&self) -> impl FnMut(usize) + '_ {
        // A barrier before it: whoever is kicked sees what was done before.
        |cpu| {
            self.kicks[cpu].fetch_or(1, Ordering::Release);
        }
    }

    pub fn load(&self, vcpu: usize) {
        let Cpu { own, hw, .. } = &mut *self.cpu(vcpu);
        own.load(&self.vgic, hw, vcpu, self.kick());
    }

    pub fn is_kicked(&self, vcpu: usize) -> bool {
        self.kicks[vcpu].load(Ordering::Relaxed) != 0
    }

    pub fn put(&self, vcpu: usize) {
        let Cpu { own, hw, .. } = &mut *self.cpu(vcpu);
        own.put(&self.vgic, hw, self.kick());
    }

    /// The kick is acknowledged.
    pub fn take_kick(&self, vcpu: usize) {
        self.kicks[vcpu].swap(0, Ordering::Acquire);
    }

    /// A CPU's guest leaves and enters: the kick is acknowledged, then it looks.
    pub fn exit(&self, vcpu: usize) {
        self.take_kick(vcpu);
        self.enter(vcpu);
    }

    /// What a CPU does before it enters its guest.
    pub fn enter(&self, vcpu: usize) {
        let Cpu { own, hw, .. } = &mut *self.cpu(vcpu);
        if hw.wants_maintenance() {
            own.maintenance(&self.vgic, hw, self.kick());
            assert!(!hw.wants_maintenance());
        }
        if own.needs_look(&self.vgic) {
            own.look(&self.vgic, hw, self.kick());
        }
        if own.has_commands(&self.vgic) {
            own.execute_commands(&self.vgic, hw, self, self.kick());
            if own.has_commands(&self.vgic) {
                // It goes on before its guest does, once others have been served.
                self.kick()(vcpu);
            }
        }
    }

    /// The physical CPU is interrupted, if it is kicked or its interface asks for it.
    pub fn interrupts(&self, vcpu: usize) {
        if self.kicks[vcpu].load(Ordering::Relaxed) != 0 {
            self.exit(vcpu);
        } else if self.cpu(vcpu).hw.wants_maintenance() {
            self.enter(vcpu);
        }
    }

    /// The guest of a vCPU acknowledges what is signalled, and sees what was written. An SGI of a GICv2 is noted with its source,
    /// as GICC_IAR has it.
    pub fn acknowledge(&self, vcpu: usize) -> Option<u32> {
        let intid = self.cpu(vcpu).hw.acknowledge()?;
        let source = self.cpu(vcpu).hw.holds(intid);
        let source = source.map_or(0, |register| register.source());
        self.cpu(vcpu).taken.push(intid | u32::from(source) << 10);
        let written = self.written.load(Ordering::Relaxed);
        self.seen.fetch_max(written, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
        Some(intid)
    }

    pub fn end(&self, vcpu: usize, intid: u32) {
        self.cpu(vcpu).hw.end(intid);
    }

    /// The guest takes what is signalled, and ends it.
    pub fn take(&self, vcpu: usize) -> Option<u32> {
        let intid = self.acknowledge(vcpu)?;
        self.end(vcpu, intid);
        Some(intid)
    }

    /// A guest that runs for a while.
    pub fn run(&self, vcpu: usize) {
        self.interrupts(vcpu);
        self.take(vcpu);
    }

    /// A device writes something, each time something newer, and raises.
    pub fn raise(&self, intid: u32) {
        self.written.fetch_add(1, Ordering::Relaxed);
        self.vgic.pulse_spi(intid, self.kick());
    }

    /// A vCPU's guest writes something and sends an SGI to another.
    pub fn send(&self, from: usize, to: usize, sgi: u64) {
        self.written.fetch_add(1, Ordering::Relaxed);
        let mut own = self.cpu(from);
        own.own.send_sgi(
            &self.vgic,
            SgiRegister::Sgi1,
            sgi << 24 | 1 << to,
            self.kick(),
        );
    }

    /// As [`send`](Self::send), with a GICv2.
    pub fn send_v2(&self, from: usize, to: usize, sgi: u64) {
        self.written.fetch_add(1, Ordering::Relaxed);
        self.write(from, Frame::Distributor, 0xf00, 1 << (16 + to) | sgi);
    }

    pub fn write(&self, vcpu: usize, frame: Frame, offset: u64, value: u64) {
        let Cpu { own, hw, .. } = &mut *self.cpu(vcpu);
        let kick = self.kick();
        let written = own.write(
            &self.vgic,
            hw,
            self,
            frame,
            offset,
            Width::Word,
            value,
            kick,
        );
        assert!(written.is_ok());
    }

    /// Reads; `None` if it has to be executed again.
    pub fn read(&self, vcpu: usize, frame: Frame, offset: u64) -> Option<u64> {
        let Cpu { own, hw, .. } = &mut *self.cpu(vcpu);
        own.read(
            &self.vgic,
            hw,
            self,
            frame,
            offset,
            Width::Word,
            self.kick(),
        )
        .ok()
    }

    /// A guest writes an interrupt's bit in a set or clear register, and its CPU enters it again.
    pub fn write_bit(&self, vcpu: usize, base: u64, intid: u32) {
        let (frame, offset) = place(vcpu, base, intid);
        self.write(vcpu, frame, offset, 1 << (intid % 32));
        self.enter(vcpu);
    }

    pub fn read_bit(&self, vcpu: usize, of: usize, base: u64, intid: u32) -> Option<bool> {
        let (frame, offset) = place(of, base, intid);
        let value = self.read(vcpu, frame, offset)?;
        self.enter(vcpu);
        Some(value >> (intid % 32) & 1 != 0)
    }

    pub fn route(&self, vcpu: usize, intid: u32, to: u64) {
        self.write(vcpu, Frame::Distributor, 0x6000 + u64::from(intid) * 8, to);
        self.enter(vcpu);
    }

    /// Whether GICD_CTLR.RWP reads 0.
    pub fn is_written(&self, vcpu: usize) -> bool {
        let control = self.read(vcpu, Frame::Distributor, 0).unwrap();
        self.enter(vcpu);
        control >> 31 & 1 == 0
    }

    /// All CPUs do what they are interrupted for, until there is nothing.
    pub fn rest(&self) {
        let interrupted = |vcpu: &usize| {
            self.kicks[*vcpu].load(Ordering::Relaxed) != 0 || self.cpu(*vcpu).hw.wants_maintenance()
        };
        while let Some(vcpu) = (0..self.cpus.len()).find(interrupted) {
            self.exit(vcpu);
        }
    }

    /// All guests take what is left. Returns what all have taken, in ascending order.
    pub fn finish(&self) -> Vec<u32> {
        loop {
            self.rest();
            if !(0..self.cpus.len()).any(|vcpu| self.take(vcpu).is_some()) {
                break;
            }
        }
        assert!(self.is_written(0), "somebody waits for ever");
        let all = |vcpu| self.cpu(vcpu).taken.clone();
        let mut all: Vec<u32> = (0..self.cpus.len()).flat_map(all).collect();
        all.sort_unstable();
        all
    }

    /// As [`finish`](Self::finish): one interrupt was taken at least once and at most so often, and the last handler saw all that
    /// was written.
    pub fn finish_with(&self, intid: u32, most: usize) {
        let taken = self.finish();
        assert!((1..=most).contains(&taken.len()), "taken: {taken:?}");
        assert!(taken.iter().all(|taken| *taken == intid));
        let seen = self.seen.load(Ordering::Relaxed);
        assert_eq!(
            seen,
            self.written.load(Ordering::Relaxed),
            "seen of what was written"
        );
    }
}

impl GuestTables for World {
    fn read(&self, ipa: u64, bytes: &mut [u8]) -> bool {
        if let Some(lpi) = ipa.checked_sub(PROPERTIES) {
            bytes[0] = self.properties.lock().unwrap()[lpi as usize];
            return true;
        }
        let commands = self.commands.lock().unwrap();
        let words = commands.get(((ipa - QUEUE) / 32) as usize);
        let words = words.copied().unwrap_or_default();
        let (parts, _) = bytes.as_chunks_mut::<8>();
        for (part, word) in parts.iter_mut().zip(words) {
            *part = word.to_le_bytes();
        }
        true
    }
}

/// Commands.
pub fn map(event: u64, lpi: u32) -> [u64; 4] {
    [0xa, u64::from(lpi) << 32 | event, 0, 0]
}

pub fn move_to(event: u64, vcpu: u64) -> [u64; 4] {
    [1, event, vcpu, 0]
}

pub fn int(event: u64) -> [u64; 4] {
    [3, event, 0, 0]
}

pub fn invalidate(event: u64) -> [u64; 4] {
    [0xc, event, 0, 0]
}

pub fn discard(event: u64) -> [u64; 4] {
    [0xf, event, 0, 0]
}

pub const SYNC: [u64; 4] = [5, 0, 0, 0];

fn place(vcpu: usize, base: u64, intid: u32) -> (Frame, u64) {
    if intid < 32 {
        (Frame::Redistributor(vcpu), SGI + base)
    } else {
        (Frame::Distributor, base + 4)
    }
}

pub type Act = fn(&World);

/// Tries every execution in which all of `race` run at once, on a VM that `prepare` has seen, with so many vCPUs and list
/// registers of each; then `check`.
pub fn explore<const N: usize>(size: (usize, usize), prepare: Act, race: [Act; N], check: Act) {
    explore_on(Version::V3, size, prepare, race, check);
}

/// The same with an ITS.
pub fn explore_its<const N: usize>(size: (usize, usize), prepare: Act, race: [Act; N], check: Act) {
    let world = move || World::new(Version::V3, size.0, size.1, true);
    explore_worlds(world, prepare, race, check);
}

/// The same with a GIC of this version.
pub fn explore_on<const N: usize>(
    version: Version,
    size: (usize, usize),
    prepare: Act,
    race: [Act; N],
    check: Act,
) {
    let world = move || World::new(version, size.0, size.1, false);
    explore_worlds(world, prepare, race, check);
}

fn explore_worlds<const N: usize>(
    world: impl Fn() -> World + Send + Sync + 'static,
    prepare: Act,
    race: [Act; N],
    check: Act,
) {
    let race = race.map(|act| move |world: &World, _| act(world));
    every_execution(PREEMPTIONS, race, move |run| {
        let world = Arc::new(world());
        prepare(&world);
        run(&world);
        check(&world);
    });
}

pub fn nothing(_: &World) {}
