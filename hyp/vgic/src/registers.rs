//! The memory-mapped registers (IHI 0069 and, for GICv2, IHI 0048): which there are, and who serves an access.
//!
//! Each topic has a file, with one accessor for the guest and one for saving and restoring. All that comes from a guest is an
//! allegation: what isn't in the tables reads as zero and ignores writes, and so do accesses of a size that a register hasn't.

mod active;
mod attributes;
mod control;
mod enable;
mod its;
mod pending;
mod route;
mod saved;
mod sources;

use crate::config::{Again, Frame, Version};
use crate::interface::VirtualInterface;
use crate::its::GuestTables;
use crate::local::Local;
use crate::own::Asked;
use crate::sync::Ordering;
use crate::vgic::Vgic;
use crate::word::{FIRST_SPI, Word};
use arm::Width;
use core::ops::Range;

/// What a register is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Topic {
    /// GICD_CTLR.
    Control,
    /// GICD_TYPER.
    Type,
    /// GICD_IIDR, GICR_IIDR.
    Implementer,
    /// PIDR4 to CIDR3.
    Identity,
    /// IGROUPR.
    Group,
    /// ISENABLER, ICENABLER.
    Enable(bool),
    /// ISPENDR, ICPENDR.
    Pending(bool),
    /// ISACTIVER, ICACTIVER.
    Active(bool),
    /// IPRIORITYR.
    Priority,
    /// ITARGETSR.
    Targets,
    /// ICFGR.
    Config,
    /// IROUTER.
    Route,
    /// GICD_SGIR.
    Sgi,
    /// SPENDSGIR, CPENDSGIR.
    Sources(bool),
    /// GICR_CTLR.
    RedistributorControl,
    /// GICR_TYPER.
    RedistributorType,
    /// GICR_WAKER.
    Waker,
    /// GICR_PROPBASER.
    Properties,
    /// GICR_PENDBASER.
    PendingTable,
}

/// Registers of one topic.
#[derive(Clone, Copy)]
struct Entry {
    start: u64,
    bytes: u64,
    topic: Topic,
    /// The sizes of accesses, in bytes, as a sum.
    sizes: u64,
}

const fn entry(offsets: Range<u64>, topic: Topic, sizes: u64) -> Entry {
    Entry {
        start: offsets.start,
        bytes: offsets.end - offsets.start,
        topic,
        sizes,
    }
}

const BYTE: u64 = 1;
const WORD: u64 = 4;
const DOUBLE: u64 = 8;

/// Both architectures', and a redistributor's SGI frame.
const INTERRUPTS: &[Entry] = &[
    entry(0x100..0x180, Topic::Enable(true), WORD),
    entry(0x180..0x200, Topic::Enable(false), WORD),
    entry(0x200..0x280, Topic::Pending(true), WORD),
    entry(0x280..0x300, Topic::Pending(false), WORD),
    entry(0x300..0x380, Topic::Active(true), WORD),
    entry(0x380..0x400, Topic::Active(false), WORD),
    entry(0x400..0x800, Topic::Priority, BYTE | WORD),
    entry(0xc00..0xd00, Topic::Config, WORD),
    entry(0x80..0x100, Topic::Group, WORD),
];
const DISTRIBUTOR: &[Entry] = &[
    entry(0..4, Topic::Control, WORD),
    entry(4..8, Topic::Type, WORD),
    entry(8..0xc, Topic::Implementer, WORD),
];
const DISTRIBUTOR_V2: &[Entry] = &[
    entry(0x800..0xc00, Topic::Targets, BYTE | WORD),
    entry(0xf00..0xf04, Topic::Sgi, WORD),
    entry(0xf10..0xf20, Topic::Sources(false), BYTE | WORD),
    entry(0xf20..0xf30, Topic::Sources(true), BYTE | WORD),
    entry(0xfd0..0x1000, Topic::Identity, WORD),
];
const DISTRIBUTOR_V3: &[Entry] = &[
    entry(0x6000..0x8000, Topic::Route, WORD | DOUBLE),
    entry(0xffd0..0x1_0000, Topic::Identity, WORD),
];
const REDISTRIBUTOR: &[Entry] = &[
    entry(0..4, Topic::RedistributorControl, WORD),
    entry(4..8, Topic::Implementer, WORD),
    entry(8..0x10, Topic::RedistributorType, WORD | DOUBLE),
    entry(0x14..0x18, Topic::Waker, WORD),
    entry(0x70..0x78, Topic::Properties, WORD | DOUBLE),
    entry(0x78..0x80, Topic::PendingTable, WORD | DOUBLE),
    entry(0xffd0..0x1_0000, Topic::Identity, WORD),
];
/// All of a distributor's, so that one table is looked through.
static ALL_V2: [Entry; DISTRIBUTOR.len() + INTERRUPTS.len() + DISTRIBUTOR_V2.len()] =
    joined([DISTRIBUTOR, INTERRUPTS, DISTRIBUTOR_V2]);
static ALL_V3: [Entry; DISTRIBUTOR.len() + INTERRUPTS.len() + DISTRIBUTOR_V3.len()] =
    joined([DISTRIBUTOR, INTERRUPTS, DISTRIBUTOR_V3]);

/// Tables as one, with so many entries in all.
const fn joined<const COUNT: usize>(tables: [&[Entry]; 3]) -> [Entry; COUNT] {
    let mut all = [tables[0][0]; COUNT];
    let (mut table, mut index, mut count) = (0, 0, 0);
    while table < tables.len() {
        if index == tables[table].len() {
            (table, index) = (table + 1, 0);
        } else {
            all[count] = tables[table][index];
            (index, count) = (index + 1, count + 1);
        }
    }
    assert!(count == COUNT, "each place has an entry");
    all
}

/// Where a redistributor's SGI frame begins.
const SGI_FRAME: u64 = 64 << 10;

/// A register that there is, or the part of one.
#[derive(Clone, Copy)]
struct Register {
    topic: Topic,
    /// The offset from the topic's first register.
    offset: u64,
    size: Width,
    /// The vCPU whose private interrupts are meant.
    vcpu: usize,
    /// The private interrupts are in this frame, not only shared ones.
    has_private: bool,
    /// The shared interrupts are.
    has_shared: bool,
}

impl Register {
    /// The register at an offset of a frame, for an access by `vcpu`.
    #[inline(always)]
    fn find(vgic: &Vgic, vcpu: usize, frame: Frame, offset: u64, size: Width) -> Option<Self> {
        let v2 = vgic.version == Version::V2;
        let (offset, table, vcpu, has_private, has_shared) = match frame {
            Frame::Distributor if v2 => (offset, &ALL_V2[..], vcpu, true, true),
            Frame::Distributor => (offset, &ALL_V3[..], vcpu, false, true),
            Frame::Redistributor(vcpu) if offset < SGI_FRAME => {
                (offset, REDISTRIBUTOR, vcpu, true, false)
            }
            // Its registers are its own (`its::registers`).
            Frame::Its => return None,
            Frame::Redistributor(vcpu) => (offset - SGI_FRAME, INTERRUPTS, vcpu, true, false),
        };
        let exists = matches!(frame, Frame::Distributor) || !v2 && vcpu < vgic.vcpus.len();
        if !exists || !offset.is_multiple_of(size.bytes()) {
            return None;
        }
        let mut entries = table.iter();
        let entry = entries.find(|entry| offset.wrapping_sub(entry.start) < entry.bytes)?;
        (entry.sizes & size.bytes() != 0).then(|| Self {
            topic: entry.topic,
            offset: offset - entry.start,
            size,
            vcpu,
            has_private,
            has_shared,
        })
    }

    /// The register, as a vCPU remembers that it has asked.
    const fn asked(self) -> Asked {
        (
            self.vcpu,
            self.offset,
            matches!(self.topic, Topic::Pending(_)),
        )
    }

    /// The interrupts that the access is about, with so many bits each.
    const fn interrupts(self, bits: u64) -> Range<u32> {
        let first = (self.offset * 8 / bits) as u32;
        let count = (self.size.bytes() * 8 / bits) as u32;
        first..first + count
    }

    /// Those of them that are in the frame.
    fn present(self, bits: u64) -> impl Iterator<Item = (u32, u32)> + Clone {
        let all = self.interrupts(bits);
        let first = all.start;
        let present = all.filter(move |intid| {
            if *intid < FIRST_SPI {
                self.has_private
            } else {
                self.has_shared
            }
        });
        present.map(move |intid| (intid, (intid - first) * bits as u32))
    }

    /// A value made of what `read` makes of each interrupt's word.
    fn gather(self, vgic: &Vgic, bits: u64, mut read: impl FnMut(u32, Word) -> u64) -> u64 {
        self.present(bits).fold(0, |value, (intid, shift)| {
            let Some(word) = vgic.word(self.vcpu, intid) else {
                return value;
            };
            // What was done before the change that is read is seen: whoever reads may rely on it.
            let word = Word(word.load(Ordering::Acquire));
            value | read(intid, word) << shift
        })
    }

    /// The part of a 64-bit value that the access is about.
    const fn part(self, value: u64) -> u64 {
        let shifted = value >> (self.offset % 8 * 8);
        match self.size {
            Width::Double => value,
            _ => shifted & 0xffff_ffff,
        }
    }

    /// A 64-bit value with the part that the access writes.
    const fn with_part(self, old: u64, value: u64) -> u64 {
        match self.size {
            Width::Double => value,
            _ => {
                let shift = self.offset % 8 * 8;
                old & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift
            }
        }
    }
}

impl<H: VirtualInterface, K: FnMut(usize)> Local<'_, H, K> {
    /// The guest reads.
    pub(crate) fn read(
        &mut self,
        frame: Frame,
        offset: u64,
        size: Width,
        memory: &dyn GuestTables,
    ) -> Result<u64, Again> {
        if frame == Frame::Its {
            return Ok(self.read_its(offset, size, memory));
        }
        let Some(register) = Register::find(self.vgic, self.own.vcpu, frame, offset, size) else {
            return Ok(0);
        };
        let vgic = self.vgic;
        if self.own.asked != Some(register.asked()) {
            self.own.asked = None;
        }
        Ok(match register.topic {
            Topic::Control => vgic.read_control(),
            Topic::Type => vgic.read_type(),
            Topic::Implementer => control::IMPLEMENTER,
            Topic::Identity => control::identity(vgic.version, register.offset),
            _ => return self.read_of_interrupts(register),
        })
    }

    /// The guest reads a register that is about interrupts or a vCPU: apart, as that takes more room than the others do.
    #[inline(never)]
    fn read_of_interrupts(&mut self, register: Register) -> Result<u64, Again> {
        let vgic = self.vgic;
        Ok(match register.topic {
            // Served already.
            Topic::Control | Topic::Type | Topic::Implementer | Topic::Identity => 0,
            Topic::Group | Topic::Priority | Topic::Config => vgic.read_attribute(register),
            Topic::Enable(_) => vgic.read_enable(register),
            Topic::Pending(_) => return self.read_pending(register),
            Topic::Active(_) => return self.read_active(register),
            Topic::Targets => vgic.read_targets(register),
            Topic::Route => vgic.read_route(register),
            Topic::Sgi => 0,
            Topic::Sources(_) => self.read_sources(register),
            Topic::RedistributorControl => vgic.read_redistributor_control(register.vcpu),
            Topic::RedistributorType => vgic.read_redistributor_type(register),
            Topic::Waker => vgic.read_waker(register),
            Topic::Properties => register.part(vgic.properties()),
            Topic::PendingTable => register.part(vgic.pending_table(register.vcpu)),
        })
    }

    /// The guest writes.
    pub(crate) fn write(
        &mut self,
        frame: Frame,
        offset: u64,
        size: Width,
        value: u64,
        memory: &dyn GuestTables,
    ) -> Result<(), Again> {
        if frame == Frame::Its {
            return self.write_its(offset, size, value, memory);
        }
        let Some(register) = Register::find(self.vgic, self.own.vcpu, frame, offset, size) else {
            return Ok(());
        };
        self.own.asked = None;
        match register.topic {
            Topic::Control => self.write_control(value),
            Topic::Group | Topic::Priority | Topic::Config => {
                self.write_attribute(register, value);
            }
            Topic::Enable(enable) => self.write_enable(register, enable, value)?,
            Topic::Pending(pending) => self.write_pending(register, pending, value),
            Topic::Active(active) => self.write_active(register, active, value),
            Topic::Targets => self.write_targets(register, value),
            Topic::Route => self.write_route(register, value),
            Topic::Waker => self.vgic.write_waker(register, value),
            Topic::Sgi => self.write_sgi(value),
            Topic::Sources(pending) => self.write_sources(register, pending, value),
            Topic::RedistributorControl => {
                self.write_redistributor_control(register.vcpu, value, memory);
            }
            Topic::Properties => self.write_properties(|old| register.with_part(old, value)),
            Topic::PendingTable => {
                self.write_pending_table(register.vcpu, |old| register.with_part(old, value));
            }
            Topic::Type | Topic::Implementer | Topic::Identity | Topic::RedistributorType => {}
        }
        self.fill();
        Ok(())
    }
}
