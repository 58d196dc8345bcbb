//! The ITS, and the LPIs that it raises (rule V17).
//!
//! An *event* of a device is mapped to an LPI. The table of events is the hypervisor's own, of fixed size: whoever raises an event
//! reads one word of it and changes the LPI's, without a lock. What the guest's commands change is changed by one vCPU at a time,
//! the one that has BUSY of the queue.

pub(crate) mod events;
pub(crate) mod hints;
pub(crate) mod queue;
pub(crate) mod saved;
pub(crate) mod tables;

use crate::config::{VgicError, reserve};
use crate::its::events::Events;
use crate::its::hints::LpiHints;
use crate::its::queue::Queue;
use crate::sync::{AtomicU64, Ordering};
use crate::word::{FIRST_LPI, Word};
use alloc::vec::Vec;

/// Guest memory, in which are an ITS's command queue and the tables of LPIs.
pub trait GuestTables {
    /// Copies bytes out of the VM's own memory. Returns whether all of them are there.
    fn read(&self, ipa: u64, bytes: &mut [u8]) -> bool;
}

/// No memory: for GICs without an ITS.
impl GuestTables for () {
    fn read(&self, _: u64, _: &mut [u8]) -> bool {
        false
    }
}

/// INTIDs have so many bits: the fewest with LPIs.
pub(crate) const INTID_BITS: u32 = 14;
/// How many LPIs there are, at most as many mapped events.
pub(crate) const LPIS: u32 = (1 << INTID_BITS) - FIRST_LPI;
/// EventIDs and DeviceIDs and the numbers of collections have so many bits.
pub(crate) const EVENT_BITS: u32 = 13;
pub(crate) const DEVICE_BITS: u32 = 12;
pub(crate) const COLLECTION_BITS: u32 = 10;
/// Under the model checker there are a few of each, as it pays for every word.
const LPI_WORDS: usize = if cfg!(loom) { 2 } else { LPIS as usize };
const DEVICES: usize = if cfg!(loom) { 1 } else { 1 << DEVICE_BITS };
const COLLECTIONS: usize = if cfg!(loom) { 3 } else { 1 << COLLECTION_BITS };
/// GITS_BASER0 is the table of devices, GITS_BASER1 that of collections.
pub(crate) const DEVICE_TABLE: usize = 0;
pub(crate) const COLLECTION_TABLE: usize = 1;

/// An ITS with its LPIs.
#[derive(Debug)]
pub(crate) struct Its {
    /// Where its registers are.
    pub(crate) address: u64,
    pub(crate) queue: Queue,
    /// GITS_CBASER.
    pub(crate) commands: AtomicU64,
    /// What the guest can write of GITS_BASER0 and GITS_BASER1.
    pub(crate) tables: [AtomicU64; 2],
    /// GICR_PROPBASER, which all redistributors share.
    properties: AtomicU64,
    /// By collection: its vCPU + 1, or 0.
    collections: Vec<AtomicU64>,
    /// By device: the bits of its EventIDs, or 0.
    devices: Vec<AtomicU64>,
    pub(crate) events: Events,
    lpis: Vec<AtomicU64>,
    /// By vCPU.
    hints: Vec<LpiHints>,
    /// By vCPU: GICR_CTLR.EnableLPIs, and GICR_PENDBASER.
    redistributors: Vec<Redistributor>,
}

/// What a redistributor has for LPIs.
#[derive(Debug)]
struct Redistributor {
    enabled: AtomicU64,
    pending: AtomicU64,
}

fn words(count: usize, value: u64) -> Result<Vec<AtomicU64>, VgicError> {
    let mut words = Vec::new();
    reserve(&mut words, count)?;
    words.extend((0..count).map(|_| AtomicU64::new(value)));
    Ok(words)
}

/// Copies words that nobody changes.
fn copied(words: &[AtomicU64]) -> Result<Vec<AtomicU64>, VgicError> {
    let mut copy = Vec::new();
    reserve(&mut copy, words.len())?;
    copy.extend(words.iter().map(copy_of));
    Ok(copy)
}

fn copy_of(word: &AtomicU64) -> AtomicU64 {
    AtomicU64::new(word.load(Ordering::Acquire))
}

/// An LPI that nothing is mapped to.
const RESET: Word = Word(Word::EDGE | Word::GROUP1);

impl Its {
    /// One in its reset state.
    pub(crate) fn new(address: u64, vcpus: usize) -> Result<Self, VgicError> {
        let mut its = Self {
            address,
            queue: Queue::new(0),
            commands: AtomicU64::new(0),
            tables: [AtomicU64::new(0), AtomicU64::new(0)],
            properties: AtomicU64::new(0),
            collections: words(COLLECTIONS, 0)?,
            devices: words(DEVICES, 0)?,
            events: Events::new()?,
            lpis: words(LPI_WORDS, RESET.0)?,
            hints: Vec::new(),
            redistributors: Vec::new(),
        };
        its.add_vcpus(vcpus)?;
        Ok(its)
    }

    fn add_vcpus(&mut self, vcpus: usize) -> Result<(), VgicError> {
        reserve(&mut self.hints, vcpus)?;
        self.hints.extend((0..vcpus).map(|_| LpiHints::new()));
        reserve(&mut self.redistributors, vcpus)?;
        self.redistributors
            .extend((0..vcpus).map(|_| Redistributor {
                enabled: AtomicU64::new(0),
                pending: AtomicU64::new(0),
            }));
        Ok(())
    }

    /// As it was when it was made.
    pub(crate) fn reset(&self) {
        self.queue.reset();
        self.events.reset();
        let zeroed = [&self.commands, &self.properties];
        let redistributors = self.redistributors.iter();
        let redistributors = redistributors.flat_map(|one| [&one.enabled, &one.pending]);
        (zeroed.into_iter().chain(&self.tables))
            .chain(&self.collections)
            .chain(&self.devices)
            .chain(redistributors)
            .for_each(|word| word.store(0, Ordering::Relaxed));
        self.hints.iter().for_each(LpiHints::reset);
        for word in &self.lpis {
            word.store(RESET.0, Ordering::Relaxed);
        }
    }

    /// A copy of its state, with no vCPU loaded (rule V16). Hints are made from the words.
    pub(crate) fn snapshot(&self) -> Result<Self, VgicError> {
        let mut copy = Self {
            address: self.address,
            queue: self.queue.copied(),
            commands: copy_of(&self.commands),
            tables: [copy_of(&self.tables[0]), copy_of(&self.tables[1])],
            properties: copy_of(&self.properties),
            collections: copied(&self.collections)?,
            devices: copied(&self.devices)?,
            events: self.events.copied()?,
            lpis: copied(&self.lpis)?,
            hints: Vec::new(),
            redistributors: Vec::new(),
        };
        copy.add_vcpus(self.hints.len())?;
        for (copy, own) in copy.redistributors.iter_mut().zip(&self.redistributors) {
            *copy = Redistributor {
                enabled: copy_of(&own.enabled),
                pending: copy_of(&own.pending),
            };
        }
        Ok(copy)
    }

    /// The word of an LPI.
    pub(crate) fn lpi(&self, intid: u32) -> Option<&AtomicU64> {
        self.lpis.get(intid.checked_sub(FIRST_LPI)? as usize)
    }

    /// The hints of a vCPU.
    pub(crate) fn hints(&self, vcpu: usize) -> Option<&LpiHints> {
        self.hints.get(vcpu)
    }

    /// Whether a vCPU's redistributor forwards LPIs. Asked by the vCPU itself, which is called when that changes.
    pub(crate) fn forwards_lpis(&self, vcpu: usize) -> bool {
        let redistributor = self.redistributors.get(vcpu);
        redistributor.is_some_and(|one| one.enabled.load(Ordering::Relaxed) != 0)
    }

    /// The LPIs that may be taken by a vCPU, as far as their words say now.
    pub(crate) fn deliverable(&self, vcpu: usize) -> impl Iterator<Item = u32> {
        // Where nothing is mapped yet, whoever maps tells.
        let is_empty = self.events.is_empty();
        let words = self.lpis.iter().take(if is_empty { 0 } else { usize::MAX });
        words.zip(FIRST_LPI..).filter_map(move |(word, intid)| {
            let word = Word(word.load(Ordering::Relaxed));
            (word.is_deliverable() && word.lpi_vcpu() == Some(vcpu)).then_some(intid)
        })
    }
}
