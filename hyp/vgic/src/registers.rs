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
    /// The offset of the first.
    start: u64,
    topic: Topic,
    /// The sizes of accesses, in bytes, as a sum.
    sizes: u64,
}

const fn entry(start: u64, topic: Topic, sizes: u64) -> Option<Entry> {
    Some(Entry {
        start,
        topic,
        sizes,
    })
}

const BYTE: u64 = 1;
const WORD: u64 = 4;
const DOUBLE: u64 = 8;

/// The registers at an offset of both architectures' distributors, or of a redistributor's SGI frame.
#[inline(always)]
const fn interrupts(offset: u64) -> Option<Entry> {
    match offset {
        0x80..0x100 => entry(0x80, Topic::Group, WORD),
        0x100..0x180 => entry(0x100, Topic::Enable(true), WORD),
        0x180..0x200 => entry(0x180, Topic::Enable(false), WORD),
        0x200..0x280 => entry(0x200, Topic::Pending(true), WORD),
        0x280..0x300 => entry(0x280, Topic::Pending(false), WORD),
        0x300..0x380 => entry(0x300, Topic::Active(true), WORD),
        0x380..0x400 => entry(0x380, Topic::Active(false), WORD),
        0x400..0x800 => entry(0x400, Topic::Priority, BYTE | WORD),
        0xc00..0xd00 => entry(0xc00, Topic::Config, WORD),
        _ => None,
    }
}

/// Those at an offset of a distributor.
#[inline(always)]
const fn distributor(version: Version, offset: u64) -> Option<Entry> {
    match (version, offset) {
        (_, 0..4) => entry(0, Topic::Control, WORD),
        (_, 4..8) => entry(4, Topic::Type, WORD),
        (_, 8..0xc) => entry(8, Topic::Implementer, WORD),
        (Version::V2, 0x800..0xc00) => entry(0x800, Topic::Targets, BYTE | WORD),
        (Version::V2, 0xf00..0xf04) => entry(0xf00, Topic::Sgi, WORD),
        (Version::V2, 0xf10..0xf20) => entry(0xf10, Topic::Sources(false), BYTE | WORD),
        (Version::V2, 0xf20..0xf30) => entry(0xf20, Topic::Sources(true), BYTE | WORD),
        (Version::V2, 0xfd0..0x1000) => entry(0xfd0, Topic::Identity, WORD),
        (Version::V3, 0x6000..0x8000) => entry(0x6000, Topic::Route, WORD | DOUBLE),
        (Version::V3, 0xffd0..0x1_0000) => entry(0xffd0, Topic::Identity, WORD),
        _ => interrupts(offset),
    }
}

/// Those at an offset of a redistributor's RD frame.
#[inline(always)]
const fn redistributor(offset: u64) -> Option<Entry> {
    match offset {
        0..4 => entry(0, Topic::RedistributorControl, WORD),
        4..8 => entry(4, Topic::Implementer, WORD),
        8..0x10 => entry(8, Topic::RedistributorType, WORD | DOUBLE),
        0x14..0x18 => entry(0x14, Topic::Waker, WORD),
        0x70..0x78 => entry(0x70, Topic::Properties, WORD | DOUBLE),
        0x78..0x80 => entry(0x78, Topic::PendingTable, WORD | DOUBLE),
        0xffd0..0x1_0000 => entry(0xffd0, Topic::Identity, WORD),
        _ => None,
    }
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
        let (entry, offset, vcpu, has_private, has_shared) = match frame {
            Frame::Distributor => (distributor(vgic.version, offset), offset, vcpu, v2, true),
            Frame::Redistributor(vcpu) if v2 || vcpu >= vgic.vcpus.len() => return None,
            Frame::Redistributor(vcpu) if offset < SGI_FRAME => {
                (redistributor(offset), offset, vcpu, true, false)
            }
            Frame::Redistributor(vcpu) => {
                let offset = offset - SGI_FRAME;
                (interrupts(offset), offset, vcpu, true, false)
            }
            // Its registers are its own (`its::registers`).
            Frame::Its => return None,
        };
        let entry = entry?;
        let bytes = size.bytes();
        (entry.sizes & bytes != 0 && offset & (bytes - 1) == 0).then(|| Self {
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

impl Vgic {
    /// The guest reads a register whose value no list register has a part in. `None`: one of the others, or of the ITS. `vcpu` is
    /// the one that reads.
    ///
    /// Most reads are such, and they need nothing of the CPU that the vCPU is loaded on.
    #[inline(always)]
    pub(crate) fn read_shared(
        &self,
        vcpu: usize,
        frame: Frame,
        offset: u64,
        size: Width,
    ) -> Option<u64> {
        if frame == Frame::Its {
            return None;
        }
        let Some(register) = Register::find(self, vcpu, frame, offset, size) else {
            return Some(0);
        };
        match register.topic {
            Topic::Control => Some(self.read_control()),
            Topic::Type => Some(self.read_type()),
            Topic::Implementer => Some(control::IMPLEMENTER),
            Topic::Identity => Some(control::identity(self.version, register.offset)),
            Topic::Pending(_) | Topic::Active(_) | Topic::Sources(_) => None,
            _ => Some(self.read_of_interrupts(register)),
        }
    }

    /// The guest reads a register that is about interrupts or a vCPU: apart, as that takes more room than the others do.
    #[inline(never)]
    fn read_of_interrupts(&self, register: Register) -> u64 {
        match register.topic {
            // Served by others, or reads as zero.
            Topic::Control | Topic::Type | Topic::Implementer | Topic::Identity => 0,
            Topic::Pending(_) | Topic::Active(_) | Topic::Sources(_) | Topic::Sgi => 0,
            Topic::Group | Topic::Priority | Topic::Config => self.read_attribute(register),
            Topic::Enable(_) => self.read_enable(register),
            Topic::Targets => self.read_targets(register),
            Topic::Route => self.read_route(register),
            Topic::RedistributorControl => self.read_redistributor_control(register.vcpu),
            Topic::RedistributorType => self.read_redistributor_type(register),
            Topic::Waker => self.read_waker(register),
            Topic::Properties => register.part(self.properties()),
            Topic::PendingTable => register.part(self.pending_table(register.vcpu)),
        }
    }
}

impl<H: VirtualInterface, K: FnMut(usize)> Local<'_, H, K> {
    /// The guest reads a register that [`Vgic::read_shared`] doesn't serve.
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
        match register.topic {
            Topic::Pending(_) => self.read_pending(register),
            Topic::Active(_) => self.read_active(register),
            Topic::Sources(_) => Ok(self.read_sources(register)),
            // Served already.
            _ => Ok(0),
        }
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
            self.write_its(offset, size, value, memory);
            return Ok(());
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
