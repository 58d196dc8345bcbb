//! The registers of the ITS, and those of redistributors about LPIs.

use super::control::{IMPLEMENTER, identity};
use crate::config::Version;
use crate::door::CALL;
use crate::interface::VirtualInterface;
use crate::its::queue::State;
use crate::its::tables::{BASER_ADDRESS, ENTRY_BYTES, INDIRECT, PENDING_ZERO, VALID};
use crate::its::{
    COLLECTION_BITS, COLLECTION_TABLE, DEVICE_BITS, DEVICE_TABLE, EVENT_BITS, GuestTables, Its,
};
use crate::local::Local;
use crate::sync::{AtomicU64, Ordering};
use crate::vgic::Vgic;
use crate::word::{FIRST_LPI, Word};
use arm::Width;

/// GITS_CTLR.
const ENABLED: u64 = 1;
const QUIESCENT: u64 = 1 << 31;
/// GITS_TYPER: physical LPIs; the collections' bits are in CIDbits.
const PHYSICAL: u64 = 1;
const COLLECTION_LIMIT: u64 = 1 << 36;
/// GITS_BASER.Type.
const TYPES: [u64; 2] = [1 << 56, 4 << 56];
/// What a guest can write of GITS_BASER and GITS_CBASER: cacheability and shareability, which mean nothing, too.
const BASER_CACHES: u64 = 7 << 59 | 7 << 53 | 3 << 10;
const BASER_PAGES: u64 = 0xff;
const CBASER_MASK: u64 = VALID | 7 << 59 | 7 << 53 | ((1 << 52) - 1) & !0x3ff | 3 << 10 | 0xff;
/// GITS_CWRITER.Retry, GITS_CREADR.Stalled.
const RETRY: u64 = 1;
const WRITER: u64 = 0x88;
const STALLED: u64 = 1;
const INDEX_SHIFT: u32 = 5;
/// A register, and how far its part that is accessed is shifted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Register {
    Control,
    Implementer,
    Type,
    Commands,
    Writer,
    Reader,
    Table(usize),
    Identity(u64),
    Translater,
}

/// An access to a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Part {
    register: Register,
    shift: u32,
    size: Width,
}

impl Part {
    fn find(offset: u64, size: Width) -> Option<Self> {
        if !offset.is_multiple_of(size.bytes()) {
            return None;
        }
        let register = match offset {
            0..4 => Register::Control,
            4..8 => Register::Implementer,
            8..0x10 => Register::Type,
            0x80..0x88 => Register::Commands,
            WRITER..0x90 => Register::Writer,
            0x90..0x98 => Register::Reader,
            0x100..0x110 => Register::Table((offset as usize - 0x100) / 8),
            0xffd0..0x1_0000 => Register::Identity(offset - 0xffd0),
            0x1_0040..0x1_0044 => Register::Translater,
            _ => return None,
        };
        let is_wide = !matches!(
            register,
            Register::Control
                | Register::Implementer
                | Register::Identity(_)
                | Register::Translater
        );
        let is_allowed = match size {
            Width::Byte => false,
            Width::Half => register == Register::Translater,
            Width::Word => true,
            Width::Double => is_wide,
        };
        let shift = if is_wide { offset % 8 * 8 } else { 0 } as u32;
        is_allowed.then_some(Self {
            register,
            shift,
            size,
        })
    }

    const fn bits(self) -> u64 {
        u64::MAX >> (64 - 8 * self.size.bytes())
    }

    const fn of(self, value: u64) -> u64 {
        value >> self.shift & self.bits()
    }

    /// The register's value with this part.
    const fn with(self, old: u64, value: u64) -> u64 {
        let bits = self.bits() << self.shift;
        old & !bits | value << self.shift & bits
    }

    /// Writes part of a word. Returns whether it has changed.
    fn write(self, word: &AtomicU64, value: u64, mask: u64) -> bool {
        // Two halves that are written at once are two writes.
        let mut old = word.load(Ordering::Relaxed);
        while let Err(other) = word.compare_exchange(
            old,
            self.with(old, value) & mask,
            Ordering::AcqRel,
            Ordering::Relaxed,
        ) {
            old = other;
        }
        self.with(old, value) & mask != old
    }
}

/// What can be written of GITS_BASER of this number.
const fn table_mask(number: usize) -> u64 {
    let indirect = if number == DEVICE_TABLE { INDIRECT } else { 0 };
    VALID | indirect | BASER_CACHES | BASER_ADDRESS | BASER_PAGES
}

impl Its {
    fn read_register(&self, register: Register) -> u64 {
        let state = self.queue.state();
        match register {
            Register::Control => {
                let enabled = if state.has(State::ENABLED) {
                    ENABLED
                } else {
                    0
                };
                enabled | if state.is_quiescent() { QUIESCENT } else { 0 }
            }
            Register::Implementer => IMPLEMENTER,
            Register::Type => {
                PHYSICAL
                    | (ENTRY_BYTES - 1) << 4
                    | u64::from(EVENT_BITS - 1) << 8
                    | u64::from(DEVICE_BITS - 1) << 13
                    | u64::from(COLLECTION_BITS - 1) << 32
                    | COLLECTION_LIMIT
            }
            Register::Commands => self.commands.load(Ordering::Acquire),
            Register::Writer => state.writer() << INDEX_SHIFT,
            Register::Reader => {
                let stalled = if state.has(State::STALLED) {
                    STALLED
                } else {
                    0
                };
                state.reader() << INDEX_SHIFT | stalled
            }
            Register::Table(index) => self.tables.get(index).map_or(0, |table| {
                let fixed = TYPES[index] | (ENTRY_BYTES - 1) << 48;
                table.load(Ordering::Acquire) | fixed
            }),
            Register::Identity(offset) => identity(Version::V3, offset),
            Register::Translater => 0,
        }
    }

    /// The guest writes CWRITER. Returns the queue's state, if the caller has BUSY from now on.
    fn write_writer(&self, part: Part, value: u64) -> Option<State> {
        self.queue.begin_with(|state| {
            // Looked at again with each try: another vCPU may give the queue a new place and length meanwhile.
            let length = self.queue_length();
            let value = part.with(state.writer() << INDEX_SHIFT, value);
            let writer = (value & 0xf_ffff) >> INDEX_SHIFT;
            let written = state.with_writer(writer);
            let written = if value & RETRY != 0 {
                written.without(State::STALLED)
            } else {
                written
            };
            (writer < length).then_some(written)
        })
    }

    /// The value of a register, for [`restore_register`](Self::restore_register).
    pub(super) fn save_register(&self, offset: u64, size: Width) -> u64 {
        Part::find(offset, size).map_or(0, |part| part.of(self.read_register(part.register)))
    }

    /// Gives a register the value that [`save_register`](Self::save_register) had, whatever the others are, and without that
    /// anything is executed or forgotten: CREADR too, which a guest only reads. CBASER comes before CREADR and CWRITER.
    pub(super) fn restore_register(&self, offset: u64, size: Width, value: u64) {
        let Some(part) = Part::find(offset, size) else {
            return;
        };
        let length = self.queue_length();
        let index = |old: u64| {
            let index = (part.with(old << INDEX_SHIFT, value) & 0xf_ffff) >> INDEX_SHIFT;
            // Beyond the end of the queue nothing is.
            if index < length { index } else { 0 }
        };
        match part.register {
            Register::Control => self.write_register(part, value),
            Register::Commands => {
                part.write(&self.commands, value, CBASER_MASK);
            }
            Register::Writer => {
                self.queue
                    .change(|state| Some(state.with_writer(index(state.writer()))));
            }
            Register::Reader => {
                self.queue.change(|state| {
                    let state = state.with_reader(index(state.reader()));
                    Some(match part.of(u64::MAX) & STALLED << part.shift {
                        0 => state,
                        _ if value & STALLED != 0 => state.with(State::STALLED),
                        _ => state.without(State::STALLED),
                    })
                });
            }
            Register::Table(number) => {
                if let Some(table) = self.tables.get(number) {
                    part.write(table, value, table_mask(number));
                }
            }
            Register::Implementer
            | Register::Type
            | Register::Identity(_)
            | Register::Translater => {}
        }
    }

    fn write_register(&self, part: Part, value: u64) {
        match part.register {
            Register::Control => {
                self.queue.change(|state| {
                    Some(if value & ENABLED != 0 {
                        state.with(State::ENABLED)
                    } else {
                        state.without(State::ENABLED)
                    })
                });
            }
            Register::Commands if self.queue.state().is_quiescent() => {
                part.write(&self.commands, value, CBASER_MASK);
                self.queue.change(|state| {
                    Some(state.with_reader(0).with_writer(0).without(State::STALLED))
                });
            }
            Register::Table(index) if self.queue.state().is_quiescent() => {
                if let Some(table) = self.tables.get(index) {
                    // Whoever writes what is there already, as after a suspend, has the same table with what is in it.
                    if !part.write(table, value, table_mask(index)) {
                        return;
                    }
                    // What was in the old table isn't in the new one.
                    let job = if index == COLLECTION_TABLE {
                        State::NO_COLLECTIONS
                    } else {
                        State::NO_DEVICES
                    };
                    self.queue.change(|state| Some(state.with(job)));
                }
            }
            // Written by `write_writer`.
            Register::Writer
            | Register::Commands
            | Register::Table(_)
            | Register::Implementer
            | Register::Type
            | Register::Reader
            | Register::Identity(_)
            | Register::Translater => {}
        }
    }
}

impl<H: VirtualInterface, K: FnMut(usize)> Local<'_, H, K> {
    /// The guest reads a register of the ITS.
    pub(crate) fn read_its(&mut self, offset: u64, size: Width, memory: &dyn GuestTables) -> u64 {
        let vgic: &Vgic = self.vgic;
        let (Some(its), Some(part)) = (&vgic.its, Part::find(offset, size)) else {
            return 0;
        };
        if part.register == Register::Reader {
            // Whoever polls executes what another vCPU has left behind.
            self.execute_commands(its, memory);
            self.fill();
        }
        part.of(its.read_register(part.register))
    }

    /// The guest writes a register of the ITS.
    pub(crate) fn write_its(
        &mut self,
        offset: u64,
        size: Width,
        value: u64,
        memory: &dyn GuestTables,
    ) {
        let vgic: &Vgic = self.vgic;
        let part = match (offset, size) {
            // What is written most.
            (WRITER, Width::Double) => Some(Part {
                register: Register::Writer,
                shift: 0,
                size,
            }),
            _ => Part::find(offset, size),
        };
        let (Some(its), Some(part)) = (&vgic.its, part) else {
            return;
        };
        let begun = match part.register {
            Register::Writer => its.write_writer(part, value),
            Register::Translater => {
                // A CPU's writes are those of device 0.
                vgic.raise_lpi(0, (value & part.bits()) as u32, &mut self.kick);
                return;
            }
            _ => {
                its.write_register(part, value);
                its.queue.begin()
            }
        };
        if let Some(state) = begun {
            self.execute_begun(its, state, memory);
        }
        self.fill();
    }

    /// The guest writes GICR_CTLR of a vCPU.
    pub(crate) fn write_redistributor_control(
        &mut self,
        vcpu: usize,
        value: u64,
        memory: &dyn GuestTables,
    ) {
        let vgic: &Vgic = self.vgic;
        let Some(its) = &vgic.its else { return };
        let forwards = value & 1 != 0;
        if forwards && !its.forwards_lpis(vcpu) {
            self.take_pending_table(its, vcpu, memory);
        }
        if its.set_forwards_lpis(vcpu, forwards) {
            // It looks at everything again, and RWP says whether it has (rule V9).
            if vcpu == self.own.vcpu {
                self.note_all();
            } else if let Some(vcpu) = vgic.vcpus.get(vcpu) {
                vcpu.door.ring(CALL, &mut self.kick);
            }
        }
    }

    fn take_pending_table(&mut self, its: &Its, vcpu: usize, memory: &dyn GuestTables) {
        let bits = its.pending_bits(vcpu, memory);
        for (byte, first) in bits.iter().zip((FIRST_LPI..).step_by(8)) {
            for bit in 0..if *byte == 0 { 0 } else { 8 } {
                if byte >> bit & 1 != 0 {
                    // One that isn't mapped yet is pending when it is.
                    self.change(self.own.vcpu, first + bit, |word| {
                        let is_elsewhere = word.lpi_vcpu().is_some_and(|other| other != vcpu);
                        (!is_elsewhere).then(|| word.with(Word::LATCH))
                    });
                }
            }
        }
    }

    /// The guest writes GICR_PROPBASER: nothing changes while LPIs are forwarded.
    pub(crate) fn write_properties(&mut self, value: impl FnOnce(u64) -> u64) {
        let vgic: &Vgic = self.vgic;
        if let Some(its) = vgic.its.as_ref().filter(|its| !its.is_in_use()) {
            its.set_properties(value(its.properties()));
        }
    }

    /// The same for a vCPU's GICR_PENDBASER.
    pub(crate) fn write_pending_table(&mut self, vcpu: usize, value: impl FnOnce(u64) -> u64) {
        let vgic: &Vgic = self.vgic;
        if let Some(its) = vgic.its.as_ref().filter(|its| !its.forwards_lpis(vcpu)) {
            its.set_pending_table(vcpu, value(its.pending_table(vcpu)));
        }
    }
}

impl Vgic {
    pub(crate) fn properties(&self) -> u64 {
        self.its.as_ref().map_or(0, Its::properties)
    }

    /// GICR_PENDBASER as a guest reads it.
    pub(crate) fn pending_table(&self, vcpu: usize) -> u64 {
        let table = self.its.as_ref().map_or(0, |its| its.pending_table(vcpu));
        table & !PENDING_ZERO
    }
}
