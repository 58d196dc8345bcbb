//! Slots that the guest doesn't know of: they come, move and go while its vCPUs run, and must keep the contents written to
//! them.
//!
//! Some are the VM's own memory, some a read-only image. Requests that must be refused are tried, too. Used by CPU 0 only.

use super::Stress;
use super::shuffle::Shuffle;
use crate::harness::error::WorkloadError;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use control::Machine;
use control::RunError;
use control::guest::RunningGuest;
use control::options::OTHER_SLOTS;
use fastrand::Rng;
use memory::{Access, MmuLock, Object, Owner, SlotConfig, SlotError, SlotId};
use stage2::{Ipa, Level, PAGE_SIZE};

/// Places for these slots, one each: so far apart that no two share a table.
const PLACES: u64 = 16;
const PLACE_BYTES: u64 = 4 << 20;
/// The most pages of one.
const MOST_PAGES: u64 = PLACE_BYTES / PAGE_SIZE / 2;
const BLOCK_PAGES: u64 = 512;
/// Identifiers that no other slot has.
const FIRST_ID: u32 = 0x8000;
/// How many there are at once.
const MOST: usize = 6;

// Beside them there are RAM, the copy of the test memory, and what the VM has in common with its forks.
const _: () = assert!(MOST + 3 <= OTHER_SLOTS);

/// A change of these slots.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// Adds a slot, unless there are enough.
    Add,
    /// Tries to add a slot over another one.
    AddOver,
    /// Moves a slot to a free place.
    Move,
    /// Tries to move a slot over another one, if there are two.
    MoveOver,
    Remove,
    Populate,
    Write,
}

impl Change {
    /// How often each is done in a deal.
    pub(super) const COUNTS: &[(Self, usize)] = &[
        (Self::Add, 2),
        (Self::AddOver, 1),
        (Self::Move, 1),
        (Self::MoveOver, 1),
        (Self::Remove, 1),
        (Self::Populate, 1),
        (Self::Write, 2),
    ];
}

/// All slots that the guest isn't told of.
#[derive(Debug)]
pub(super) struct Slots {
    /// The start of the first place.
    start: Ipa,
    slots: Vec<UnseenSlot>,
    changes: Shuffle<Change>,
}

/// A slot that the guest isn't told of.
#[derive(Debug)]
struct UnseenSlot {
    id: SlotId,
    place: u64,
    read_only: bool,
    /// The first word of each page.
    words: Vec<u64>,
}

impl Slots {
    /// None yet, behind `end`.
    pub(super) fn behind(end: Ipa) -> Self {
        Self {
            start: Ipa::new(end.get().next_multiple_of(PLACE_BYTES)),
            slots: Vec::new(),
            changes: Shuffle::of(Change::COUNTS),
        }
    }

    /// Whether all places lie in an address space of so many bits.
    pub(super) fn fit(&self, ipa_bits: u32) -> bool {
        self.start.get() + PLACES * PLACE_BYTES <= 1 << ipa_bits
    }

    /// The end of the last place.
    pub(super) fn end(&self) -> Ipa {
        self.place(PLACES)
    }

    fn place(&self, place: u64) -> Ipa {
        self.start.offset(place * PLACE_BYTES)
    }

    /// The slot at a place.
    fn at(&self, place: u64) -> Option<&UnseenSlot> {
        self.slots.iter().find(|slot| slot.place == place)
    }

    /// A free place: there are more places than slots.
    fn free_place(&self, random: &mut Rng) -> u64 {
        let first = random.u64(..PLACES);
        let places = (0..PLACES).map(|more| (first + more) % PLACES);
        let mut free = places.filter(|place| self.at(*place).is_none());
        free.next().unwrap_or(first)
    }

    /// Makes one change. Returns its name.
    fn act<M: Machine, L: MmuLock>(
        &mut self,
        guest: &RunningGuest<'_, M, L>,
        random: &mut Rng,
    ) -> Result<&'static str, WorkloadError> {
        let free = self.free_place(random);
        if self.slots.is_empty() {
            return self.add(guest, free, random);
        }
        let index = random.usize(..self.slots.len());
        self.check(guest, index)?;
        let other = (index + 1) % self.slots.len();
        let taken = self.slots[other].place;
        match self.changes.deal(random) {
            Change::Add if self.slots.len() < MOST => self.add(guest, free, random),
            Change::AddOver => self.add(guest, taken, random),
            Change::Move => self.relocate(guest, index, free),
            Change::MoveOver => self.relocate(guest, index, taken),
            Change::Remove => self.remove(guest, index),
            Change::Populate => self.populate(guest, index, random),
            Change::Add | Change::Write => self.write(guest, index, random),
        }
    }

    fn add<M: Machine, L: MmuLock>(
        &mut self,
        guest: &RunningGuest<'_, M, L>,
        place: u64,
        random: &mut Rng,
    ) -> Result<&'static str, WorkloadError> {
        let free = (FIRST_ID..).map(SlotId);
        let mut free = free.filter(|id| self.slots.iter().all(|slot| slot.id != *id));
        let id = free.next().unwrap_or(SlotId(FIRST_ID));
        let read_only = random.u32(..4) == 0;
        let pages = match random.u32(..4) {
            0 => BLOCK_PAGES,
            _ => random.u64(1..=64),
        };
        let words: Vec<u64> = match read_only {
            true => (0..pages).map(|_| random.u64(..)).collect(),
            false => vec![0; pages as usize],
        };
        let config = SlotConfig {
            id,
            start: self.place(place),
            object: object(guest, &words, read_only)?,
            offset: 0,
            bytes: pages * PAGE_SIZE,
            read_only,
            write_faults: random.bool(),
        };
        let added = guest.vm.space.map_object(&guest.own.memory, config);
        if let Some(other) = self.at(place) {
            return expect(added, SlotError::Overlaps(other.id));
        }
        added?;
        self.slots.push(UnseenSlot {
            id,
            place,
            read_only,
            words,
        });
        Ok("slots_added")
    }

    fn relocate<M: Machine, L: MmuLock>(
        &mut self,
        guest: &RunningGuest<'_, M, L>,
        index: usize,
        place: u64,
    ) -> Result<&'static str, WorkloadError> {
        let (id, from) = (self.slots[index].id, self.slots[index].place);
        let (own, space) = (&guest.own.memory, &guest.vm.space);
        let moved = space.move_slot(own, id, self.place(place));
        if let Some(other) = self.at(place).filter(|other| other.id != id) {
            return expect(moved, SlotError::Overlaps(other.id));
        }
        moved?;
        self.slots[index].place = place;
        if from != place {
            self.expect_nothing(guest, from)?;
        }
        self.check(guest, index)?;
        Ok("slots_moved")
    }

    fn remove<M: Machine, L: MmuLock>(
        &mut self,
        guest: &RunningGuest<'_, M, L>,
        index: usize,
    ) -> Result<&'static str, WorkloadError> {
        let slot = self.slots.swap_remove(index);
        let (own, space) = (&guest.own.memory, &guest.vm.space);
        space.remove_slot(own, slot.id)?;
        self.expect_nothing(guest, slot.place)?;
        let again = space.remove_slot(own, slot.id);
        expect(again, SlotError::Unknown(slot.id))?;
        Ok("slots_removed")
    }

    fn populate<M: Machine, L: MmuLock>(
        &self,
        guest: &RunningGuest<'_, M, L>,
        index: usize,
        random: &mut Rng,
    ) -> Result<&'static str, WorkloadError> {
        let slot = &self.slots[index];
        let first = random.u64(..slot.words.len() as u64);
        let end = random.u64(first + 1..=slot.words.len() as u64);
        let start = self.place(slot.place);
        let range = start.offset(first * PAGE_SIZE)..start.offset(end * PAGE_SIZE);
        let access = match slot.read_only || random.bool() {
            true => Access::Read,
            false => Access::Write,
        };
        super::act::populate(guest, range, access)?;
        Ok("slots_populated")
    }

    fn write<M: Machine, L: MmuLock>(
        &mut self,
        guest: &RunningGuest<'_, M, L>,
        index: usize,
        random: &mut Rng,
    ) -> Result<&'static str, WorkloadError> {
        let start = self.place(self.slots[index].place);
        let slot = &mut self.slots[index];
        let page = random.usize(..slot.words.len());
        let word = random.u64(..);
        let at = start.offset(page as u64 * PAGE_SIZE);
        let (own, space) = (&guest.own.memory, &guest.vm.space);
        let written = space.write_guest(own, at, &word.to_le_bytes());
        match (slot.read_only, written) {
            (false, written) => {
                written?;
                slot.words[page] = word;
            }
            (true, Err(_)) => {}
            (true, Ok(())) => return Err(WorkloadError::Unrefused { ipa: at }),
        }
        Ok("slots_written")
    }

    /// Checks that a slot holds the contents written to it.
    fn check<M: Machine, L: MmuLock>(
        &self,
        guest: &RunningGuest<'_, M, L>,
        index: usize,
    ) -> Result<(), WorkloadError> {
        let slot = &self.slots[index];
        for (page, expected) in slot.words.iter().enumerate() {
            let at = self.place(slot.place).offset(page as u64 * PAGE_SIZE);
            let mut word = [0; 8];
            guest
                .vm
                .space
                .read_guest(&guest.own.memory, at, &mut word)?;
            let found = u64::from_le_bytes(word);
            if found != *expected {
                return Err(WorkloadError::WrongWord {
                    ipa: at,
                    found,
                    expected: *expected,
                });
            }
        }
        Ok(())
    }

    /// Checks that nothing is mapped at a place, neither for the hypervisor nor in the tables.
    fn expect_nothing<M: Machine, L: MmuLock>(
        &self,
        guest: &RunningGuest<'_, M, L>,
        place: u64,
    ) -> Result<(), WorkloadError> {
        let (own, space) = (&guest.own.memory, &guest.vm.space);
        let start = self.place(place);
        for page in [0, 1, BLOCK_PAGES - 1, BLOCK_PAGES, MOST_PAGES] {
            let ipa = start.offset(page * PAGE_SIZE);
            let is_backed = space.read_guest(own, ipa, &mut [0]).is_ok();
            if is_backed || space.lookup(own, ipa).is_some() {
                return Err(WorkloadError::Unrefused { ipa });
            }
        }
        Ok(())
    }
}

/// The object for a slot: an image of these words, or untouched memory.
fn object<M: Machine, L: MmuLock>(
    guest: &RunningGuest<'_, M, L>,
    words: &[u64],
    read_only: bool,
) -> Result<Arc<Object>, WorkloadError> {
    let own = &guest.own.memory;
    let object = if read_only {
        let mut bytes = Vec::new();
        let size = words.len() * PAGE_SIZE as usize;
        bytes.try_reserve_exact(size).map_err(|_| RunError::Heap)?;
        bytes.resize(size, 0);
        for (page, word) in bytes.chunks_mut(PAGE_SIZE as usize).zip(words) {
            page[..8].copy_from_slice(&word.to_le_bytes());
        }
        Object::image(own, &bytes)
    } else {
        let piece = match words.len() as u64 {
            BLOCK_PAGES => Level::L2,
            _ => Level::L3,
        };
        let account = Owner::Vm(guest.vm.space.vm());
        Object::anonymous(own, account, words.len() as u64 * PAGE_SIZE, piece)
    };
    Ok(object.map_err(SlotError::from)?)
}

/// Checks that a change of slots was refused with the expected error.
fn expect(
    result: Result<(), SlotError>,
    expected: SlotError,
) -> Result<&'static str, WorkloadError> {
    match result {
        Err(error) if error == expected => Ok("slots_refused"),
        Err(error) => Err(error.into()),
        Ok(()) => Err(WorkloadError::UnrefusedSlot { expected }),
    }
}

impl<M: Machine, L: MmuLock> Stress<'_, M, L> {
    /// Changes one of the slots that the guest isn't told of.
    pub(super) fn change_slots(&mut self) -> Result<(), WorkloadError> {
        let ipa_bits = self.guest.vm.space.stage2().layout().ipa_bits();
        let has_room = self.guest.own.memory.pool().counts().free >= 2 * MOST_PAGES;
        if !self.slots.fit(ipa_bits) || !has_room {
            return Ok(());
        }
        let name = self.slots.act(self.guest, &mut self.random)?;
        self.count(name, 1);
        Ok(())
    }
}
