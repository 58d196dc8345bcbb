//! A VM with its CPUs, one step after the other.

use model::interrupts::CpuInterface;
use vgic::{
    Forwarded, Frame, GuestTables, SgiRegister, VcpuInterrupts, Version, Vgic, VgicConfig, Width,
};

pub const GICD: u64 = 0x0800_0000;
pub const GICR: u64 = 0x080a_0000;
pub const SPIS: usize = 64;
/// PPI 27 is PPI 28 of the machine, SPI 40 is its SPI 99.
pub const FORWARDED: [Forwarded; 2] = [
    Forwarded {
        virtual_id: 27,
        physical_id: 28,
    },
    Forwarded {
        virtual_id: 40,
        physical_id: 99,
    },
];
/// The offset of a redistributor's SGI frame.
pub const SGI: u64 = 0x1_0000;
pub const D: Frame = Frame::Distributor;

pub fn affinity(vcpu: usize) -> u32 {
    ((vcpu as u32 / 16) << 8) | (vcpu as u32 % 16)
}

pub fn config(vcpus: usize) -> VgicConfig<'static> {
    VgicConfig {
        version: Version::V3,
        vcpus,
        spis: SPIS,
        affinity: &affinity,
        distributor: GICD,
        redistributors: GICR,
        its: None,
        priority_bits: 5,
        forwarded: &FORWARDED,
    }
}

pub struct Cpu {
    pub own: VcpuInterrupts,
    pub hw: CpuInterface,
}

/// The guest's memory, in which are the ITS's tables.
pub struct Tables(pub Vec<u8>);

pub const RAM: u64 = 0x4000_0000;

impl Tables {
    pub fn write(&mut self, ipa: u64, bytes: &[u8]) {
        let start = (ipa - RAM) as usize;
        self.0[start..start + bytes.len()].copy_from_slice(bytes);
    }
}

impl GuestTables for Tables {
    fn read(&self, ipa: u64, bytes: &mut [u8]) -> bool {
        let start = ipa.checked_sub(RAM).map(|start| start as usize);
        let found = start.and_then(|start| self.0.get(start..start.checked_add(bytes.len())?));
        found.is_some_and(|found| {
            bytes.copy_from_slice(found);
            true
        })
    }
}

pub struct World {
    pub vgic: Vgic,
    pub tables: Tables,
    pub cpus: Vec<Cpu>,
    /// Kicks that are on their way.
    pub kicked: Vec<bool>,
    /// CPUs whose guests are outside for another reason.
    exited: Vec<bool>,
    /// How many there were.
    pub kicks: usize,
    /// How often commands of the ITS were executed before an entry.
    pub rounds: usize,
}

impl World {
    /// All vCPUs are loaded, each on the CPU of its number, with so many list registers.
    pub fn new(vcpus: usize, registers: usize) -> Self {
        let mut world = Self::asleep(vcpus, registers);
        (0..vcpus).for_each(|vcpu| world.load(vcpu));
        world
    }

    /// No vCPU is loaded.
    pub fn asleep(vcpus: usize, registers: usize) -> Self {
        Self::asleep_with(&config(vcpus), registers)
    }

    /// As [`ready`](Self::ready), with a GICv2, as Linux leaves it: all in group 0.
    pub fn ready_v2(vcpus: usize, registers: usize) -> Self {
        let mut world = Self::asleep_v2(vcpus, registers);
        for vcpu in 0..vcpus {
            world.load(vcpu);
            world.cpus[vcpu].hw.open(0xf8, true, false);
        }
        world.write(0, D, 0, 1);
        world.settle();
        world
    }

    /// As [`asleep`](Self::asleep), with a GICv2.
    pub fn asleep_v2(vcpus: usize, registers: usize) -> Self {
        let config = VgicConfig {
            version: Version::V2,
            ..config(vcpus)
        };
        Self::asleep_with(&config, registers)
    }

    pub fn asleep_with(config: &VgicConfig<'_>, registers: usize) -> Self {
        let vcpus = config.vcpus;
        Self {
            vgic: Vgic::new(config).unwrap(),
            tables: Tables(Vec::new()),
            cpus: (0..vcpus)
                .map(|vcpu| Cpu {
                    own: VcpuInterrupts::new(vcpu),
                    hw: CpuInterface::new(registers),
                })
                .collect(),
            kicked: vec![false; vcpus],
            exited: vec![false; vcpus],
            kicks: 0,
            rounds: 0,
        }
    }

    /// As Linux leaves it: all in group 1, enabled where `enabled` says so, and nothing masked.
    pub fn ready(vcpus: usize, registers: usize) -> Self {
        let mut world = Self::new(vcpus, registers);
        world.write(0, D, 0, 3);
        for spis in [0x84, 0x88] {
            world.write(0, D, spis, u64::from(u32::MAX));
        }
        for vcpu in 0..vcpus {
            let frame = Frame::Redistributor(vcpu);
            world.write(vcpu, frame, SGI + 0x80, u64::from(u32::MAX));
            world.cpus[vcpu].hw.open(0xf8, true, true);
        }
        world.settle();
        world
    }

    /// Calls a method of a vCPU.
    pub fn with<R>(
        &mut self,
        vcpu: usize,
        call: impl FnOnce(&mut VcpuInterrupts, &Vgic, &mut CpuInterface, &mut dyn FnMut(usize)) -> R,
    ) -> R {
        self.with_tables(vcpu, |own, vgic, hw, _, kick| call(own, vgic, hw, kick))
    }

    fn with_tables<R>(
        &mut self,
        vcpu: usize,
        call: impl FnOnce(
            &mut VcpuInterrupts,
            &Vgic,
            &mut CpuInterface,
            &Tables,
            &mut dyn FnMut(usize),
        ) -> R,
    ) -> R {
        self.exited[vcpu] = true;
        let Cpu { own, hw } = &mut self.cpus[vcpu];
        let (kicked, kicks) = (&mut self.kicked, &mut self.kicks);
        call(own, &self.vgic, hw, &self.tables, &mut |cpu| {
            kicked[cpu] = true;
            *kicks += 1;
        })
    }

    pub fn load(&mut self, vcpu: usize) {
        self.with(vcpu, |own, vgic, hw, kick| own.load(vgic, hw, vcpu, kick));
    }

    pub fn put(&mut self, vcpu: usize) {
        self.with(vcpu, |own, vgic, hw, kick| own.put(vgic, hw, kick));
        assert_eq!(self.cpus[vcpu].hw.held().count(), 0);
        assert!(self.cpus[vcpu].own.is_put(&self.vgic));
    }

    /// What a CPU does before it enters its guest.
    pub fn enter(&mut self, vcpu: usize) {
        self.kicked[vcpu] = false;
        if self.cpus[vcpu].hw.wants_maintenance() {
            self.with(vcpu, |own, vgic, hw, kick| own.maintenance(vgic, hw, kick));
            assert!(
                !self.cpus[vcpu].hw.wants_maintenance(),
                "a maintenance interrupt comes at once again"
            );
        }
        let needs_look = self.cpus[vcpu].own.needs_look(&self.vgic);
        if needs_look {
            self.with(vcpu, |own, vgic, hw, kick| own.look(vgic, hw, kick));
        }
        if self.has_commands(vcpu) {
            self.rounds += 1;
            self.with_tables(vcpu, |own, vgic, hw, tables, kick| {
                own.execute_commands(vgic, hw, tables, kick);
            });
            // The rest is next.
            self.kicked[vcpu] = self.has_commands(vcpu);
        }
        let needs_look = self.cpus[vcpu].own.needs_look(&self.vgic);
        assert_eq!(needs_look, self.has_commands(vcpu));
        self.exited[vcpu] = false;
    }

    pub fn has_commands(&self, vcpu: usize) -> bool {
        self.cpus[vcpu].own.has_commands(&self.vgic)
    }

    /// All CPUs do so whose guests are outside, or that are kicked or interrupted by their interface, as long as there are such.
    pub fn settle(&mut self) {
        loop {
            let loaded = |cpu: &Cpu| !cpu.own.is_put(&self.vgic);
            let pending: Vec<usize> = (0..self.cpus.len())
                .filter(|vcpu| loaded(&self.cpus[*vcpu]))
                .filter(|vcpu| {
                    let cpu = &self.cpus[*vcpu];
                    self.kicked[*vcpu] || self.exited[*vcpu] || cpu.hw.wants_maintenance()
                })
                .collect();
            if pending.is_empty() {
                return;
            }
            pending.into_iter().for_each(|vcpu| self.enter(vcpu));
        }
    }

    pub fn try_read(&mut self, vcpu: usize, frame: Frame, offset: u64, size: Width) -> Option<u64> {
        self.with_tables(vcpu, |own, vgic, hw, tables, kick| {
            own.read(vgic, hw, tables, frame, offset, size, kick)
        })
        .ok()
    }

    pub fn read(&mut self, vcpu: usize, frame: Frame, offset: u64) -> u64 {
        self.read_sized(vcpu, frame, offset, Width::Word)
    }

    /// Reads as often as it has to be executed again.
    pub fn read_sized(&mut self, vcpu: usize, frame: Frame, offset: u64, size: Width) -> u64 {
        for _ in 0..4 {
            if let Some(value) = self.try_read(vcpu, frame, offset, size) {
                return value;
            }
            self.settle();
        }
        panic!("a read of {frame:?} + {offset:#x} never ends");
    }

    pub fn write(&mut self, vcpu: usize, frame: Frame, offset: u64, value: u64) {
        self.write_sized(vcpu, frame, offset, Width::Word, value);
    }

    pub fn write_sized(&mut self, vcpu: usize, frame: Frame, offset: u64, size: Width, value: u64) {
        let written = self.try_write(vcpu, frame, offset, size, value);
        assert!(written, "a GICv3 has no writes that wait");
    }

    /// Writes. Returns whether it is done, and need not be executed again.
    pub fn try_write(
        &mut self,
        vcpu: usize,
        frame: Frame,
        offset: u64,
        size: Width,
        value: u64,
    ) -> bool {
        self.with_tables(vcpu, |own, vgic, hw, tables, kick| {
            own.write(vgic, hw, tables, frame, offset, size, value, kick)
        })
        .is_ok()
    }

    /// Sets or clears a bit of an interrupt by the set or clear register at `base`, on the frame that it is in.
    pub fn write_bit(&mut self, vcpu: usize, base: u64, intid: u32) {
        self.write_bit_of(vcpu, vcpu, base, intid);
    }

    /// As [`write_bit`](Self::write_bit), by a vCPU, of another's private interrupt.
    pub fn write_bit_of(&mut self, by: usize, of: usize, base: u64, intid: u32) {
        let (frame, offset) = Self::place(of, base, intid);
        self.write(by, frame, offset, 1 << (intid % 32));
    }

    pub fn read_bit(&mut self, vcpu: usize, base: u64, intid: u32) -> bool {
        self.read_bit_of(vcpu, vcpu, base, intid)
    }

    pub fn read_bit_of(&mut self, by: usize, of: usize, base: u64, intid: u32) -> bool {
        let (frame, offset) = Self::place(of, base, intid);
        self.read(by, frame, offset) >> (intid % 32) & 1 != 0
    }

    /// The register with an interrupt's bit, of those at `base`.
    pub fn place(of: usize, base: u64, intid: u32) -> (Frame, u64) {
        if intid < 32 {
            (Frame::Redistributor(of), SGI + base)
        } else {
            (D, base + u64::from(intid / 32) * 4)
        }
    }

    /// The guest writes DIR, with EOImode 1.
    pub fn deactivate(&mut self, vcpu: usize, intid: u32) {
        if self.cpus[vcpu].hw.write_dir(intid) {
            self.with(vcpu, |own, vgic, hw, kick| {
                own.deactivate(vgic, hw, intid, kick)
            });
        }
    }

    pub fn enable(&mut self, vcpu: usize, intid: u32) {
        self.write_bit(vcpu, 0x100, intid);
    }

    pub fn disable(&mut self, vcpu: usize, intid: u32) {
        self.write_bit(vcpu, 0x180, intid);
    }

    /// Whether an interrupt is pending, as a vCPU reads it.
    pub fn pending(&mut self, vcpu: usize, intid: u32) -> bool {
        self.read_bit(vcpu, 0x200, intid)
    }

    pub fn active(&mut self, vcpu: usize, intid: u32) -> bool {
        self.read_bit(vcpu, 0x300, intid)
    }

    pub fn set_priority(&mut self, vcpu: usize, intid: u32, priority: u8) {
        let frame = if intid < 32 {
            Frame::Redistributor(vcpu)
        } else {
            D
        };
        let base = if intid < 32 { SGI } else { 0 };
        let offset = base + 0x400 + u64::from(intid);
        self.write_sized(vcpu, frame, offset, Width::Byte, priority.into());
    }

    /// Makes an SPI an edge.
    pub fn set_edge(&mut self, intid: u32, edge: bool) {
        let offset = 0xc00 + u64::from(intid / 16) * 4;
        let shift = intid % 16 * 2;
        let old = self.read(0, D, offset) & !(2 << shift);
        self.write(0, D, offset, old | u64::from(edge) << (shift + 1));
    }

    pub fn set_route(&mut self, vcpu: usize, intid: u32, to: usize) {
        let offset = 0x6000 + u64::from(intid) * 8;
        self.write_sized(vcpu, D, offset, Width::Double, affinity(to).into());
    }

    pub fn set_level(&mut self, intid: u32, level: bool) {
        let (kicked, kicks) = (&mut self.kicked, &mut self.kicks);
        self.vgic.set_spi_level(intid, level, |cpu| {
            kicked[cpu] = true;
            *kicks += 1;
        });
    }

    pub fn pulse(&mut self, intid: u32) {
        let (kicked, kicks) = (&mut self.kicked, &mut self.kicks);
        self.vgic.pulse_spi(intid, |cpu| {
            kicked[cpu] = true;
            *kicks += 1;
        });
    }

    /// Sends an SGI from a vCPU to another.
    pub fn send(&mut self, from: usize, to: usize, sgi: u32) {
        let affinity = u64::from(affinity(to));
        let value = 1 << (affinity & 15) | (affinity >> 8) << 16 | u64::from(sgi) << 24;
        self.send_value(from, SgiRegister::Sgi1, value);
    }

    pub fn send_value(&mut self, from: usize, register: SgiRegister, value: u64) {
        self.with(from, |own, vgic, _, kick| {
            own.send_sgi(vgic, register, value, kick)
        });
    }

    /// The physical interrupt behind one is taken on a CPU.
    pub fn take_physical(&mut self, vcpu: usize, virtual_id: u32) {
        let forwarded = FORWARDED
            .iter()
            .find(|forwarded| forwarded.virtual_id == virtual_id);
        let physical = forwarded.unwrap().physical_id;
        let is_new = self.cpus[vcpu].hw.physical.insert(physical);
        assert!(is_new, "a physical interrupt fires though it is active");
        self.with(vcpu, |own, vgic, hw, kick| {
            own.raise_physical(vgic, hw, virtual_id, kick)
        });
    }

    /// The guest of a vCPU acknowledges what is signalled.
    pub fn acknowledge(&mut self, vcpu: usize) -> Option<u32> {
        self.settle();
        self.cpus[vcpu].hw.acknowledge()
    }

    /// The guest ends an interrupt, with EOImode 0.
    pub fn end(&mut self, vcpu: usize, intid: u32) {
        self.cpus[vcpu].hw.end(intid);
    }

    /// The guest takes an interrupt and ends it.
    pub fn take(&mut self, vcpu: usize) -> Option<u32> {
        let taken = self.acknowledge(vcpu)?;
        self.end(vcpu, taken);
        Some(taken)
    }
}
