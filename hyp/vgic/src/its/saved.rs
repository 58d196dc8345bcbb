//! Saving and restoring what an ITS has beside registers: what its guest's commands have made of it, and its LPIs. No vCPU is
//! loaded, and no device raises (rule V16).

use super::queue::State;
use super::{COLLECTION_BITS, DEVICE_BITS, EVENT_BITS, Its, LPIS, events::Event};
use crate::door::{CALL, COMMANDS};
use crate::sync::Ordering;
use crate::vgic::Vgic;
use crate::word::{FIRST_LPI, Word};

/// A part of an ITS's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ItsEntry {
    /// A device, whose EventIDs have so many bits.
    Device {
        /// Its DeviceID.
        device: u32,
        /// 1 or more.
        event_bits: u32,
    },
    /// A collection that is mapped to a vCPU.
    Collection {
        /// Its number.
        collection: u32,
        /// The vCPU's.
        vcpu: usize,
    },
    /// An event that is mapped to an LPI.
    Event {
        /// The DeviceID.
        device: u32,
        /// The EventID.
        event: u32,
        /// The INTID.
        lpi: u32,
        /// The collection that the event is in.
        collection: u32,
        /// The vCPU that the LPI goes to: the collection's, or where MOVALL has sent it.
        vcpu: Option<usize>,
    },
    /// An LPI that isn't as after a reset, whether it is mapped or not.
    Lpi {
        /// The INTID.
        lpi: u32,
        /// As the guest's table had it when the ITS was told.
        priority: u8,
        /// The same.
        enabled: bool,
        /// It is pending.
        pending: bool,
    },
    /// A table was replaced, and what was in the old one isn't all forgotten yet.
    Replaced {
        /// The table of devices.
        devices: bool,
        /// The table of collections.
        collections: bool,
    },
}

impl Its {
    fn entries(&self) -> impl Iterator<Item = ItsEntry> {
        let state = self.queue.state();
        let replaced = ItsEntry::Replaced {
            devices: state.has(State::NO_DEVICES),
            collections: state.has(State::NO_COLLECTIONS),
        };
        let is_replaced = state.has(State::NO_DEVICES | State::NO_COLLECTIONS);
        let devices = self.devices.iter().zip(0..);
        let devices = devices.filter_map(|(bits, device)| {
            let event_bits = bits.load(Ordering::Acquire) as u32;
            (event_bits != 0).then_some(ItsEntry::Device { device, event_bits })
        });
        let collections = (0..self.collections.len() as u32).filter_map(|collection| {
            let vcpu = self.vcpu_of(collection)?;
            Some(ItsEntry::Collection { collection, vcpu })
        });
        let events = (0..self.events.places()).filter_map(|place| {
            let event = self.events.get(place)?;
            let word = Word(self.lpi(event.lpi())?.load(Ordering::Acquire));
            Some(ItsEntry::Event {
                device: event.device(),
                event: event.event(),
                lpi: event.lpi(),
                collection: event.collection(),
                vcpu: word.lpi_vcpu(),
            })
        });
        let lpis = self.lpis.iter().zip(FIRST_LPI..);
        let lpis = lpis.filter_map(|(word, lpi)| {
            let word = Word(word.load(Ordering::Acquire));
            let (enabled, pending) = (word.has(Word::ENABLED), word.has(Word::LATCH));
            let priority = word.priority();
            (enabled || pending || priority != 0).then_some(ItsEntry::Lpi {
                lpi,
                priority,
                enabled,
                pending,
            })
        });
        (is_replaced.then_some(replaced).into_iter())
            .chain(devices)
            .chain(collections)
            .chain(events)
            .chain(lpis)
    }

    /// Takes an entry. Returns whether there can be such a one.
    fn take_entry(&self, entry: ItsEntry, vcpus: usize, priority_mask: u8) -> bool {
        match entry {
            ItsEntry::Device { device, event_bits } => {
                let fits = device >> DEVICE_BITS == 0 && (1..=EVENT_BITS).contains(&event_bits);
                if fits {
                    self.map_device(device, event_bits.into());
                }
                fits
            }
            ItsEntry::Collection { collection, vcpu } => {
                let fits = collection >> COLLECTION_BITS == 0 && vcpu < vcpus;
                if fits {
                    self.map_collection(collection, Some(vcpu));
                }
                fits
            }
            ItsEntry::Event {
                device,
                event,
                lpi,
                collection,
                vcpu,
            } => {
                let fits = device >> DEVICE_BITS == 0
                    && event >> EVENT_BITS == 0
                    && (FIRST_LPI..FIRST_LPI + LPIS).contains(&lpi)
                    && collection >> COLLECTION_BITS == 0
                    && vcpu.is_none_or(|vcpu| vcpu < vcpus)
                    && self.events.find(device, event).is_none();
                let Some(word) = self.lpi(lpi).filter(|_| fits) else {
                    return false;
                };
                let event = Event::new(device, event, lpi, collection);
                let old = Word(word.load(Ordering::Relaxed));
                let Some(place) = self
                    .events
                    .free_place(event)
                    .filter(|_| !old.has(Word::MAPPED))
                else {
                    return false;
                };
                let new = old.with(Word::MAPPED).with_lpi_vcpu(vcpu);
                // Nobody else is there.
                word.store(new.0, Ordering::Relaxed);
                self.events
                    .add(place, event.with_generation(new.lpi_generation()));
                true
            }
            ItsEntry::Lpi {
                lpi,
                priority,
                enabled,
                pending,
            } => {
                let word = lpi.checked_sub(FIRST_LPI).and_then(|_| self.lpi(lpi));
                let Some(word) = word.filter(|_| priority & !priority_mask == 0) else {
                    return false;
                };
                let new = Word(word.load(Ordering::Relaxed))
                    .with_priority(priority)
                    .with_if(enabled, Word::ENABLED)
                    .with_if(pending, Word::LATCH);
                word.store(new.0, Ordering::Relaxed);
                true
            }
            ItsEntry::Replaced {
                devices,
                collections,
            } => {
                let jobs = [
                    (devices, State::NO_DEVICES),
                    (collections, State::NO_COLLECTIONS),
                ];
                for (_, job) in jobs.into_iter().filter(|(is_replaced, _)| *is_replaced) {
                    self.queue.change(|state| Some(state.with(job)));
                }
                true
            }
        }
    }
}

impl Vgic {
    /// What the ITS has beside registers, in the order in which [`restore_its_entry`](Self::restore_its_entry) takes it.
    ///
    /// GITS_CTLR, GITS_CBASER, GITS_CREADR, GITS_CWRITER and GITS_BASER are [saved](Self::save) as registers, and so are
    /// GICR_CTLR, GICR_PROPBASER and GICR_PENDBASER.
    pub fn its_entries(&self) -> impl Iterator<Item = ItsEntry> {
        self.its.as_ref().into_iter().flat_map(Its::entries)
    }

    /// Gives an ITS in its reset state an entry of [`its_entries`](Self::its_entries), after the registers were restored. Returns
    /// whether there can be such an entry beside those before it; else nothing has changed. Each vCPU looks at everything when it
    /// is loaded, and goes on with commands that were left.
    pub fn restore_its_entry(&self, entry: ItsEntry) -> bool {
        let its = self.its.as_ref();
        let taken =
            its.is_some_and(|its| its.take_entry(entry, self.vcpus.len(), self.priority_mask));
        self.look_again();
        taken
    }

    /// Has all vCPUs look at everything, and one go on with the ITS's commands, when they are loaded.
    pub(crate) fn look_again(&self) {
        let has_work = |its: &Its| its.queue.state().has_work();
        let mut more = if self.its.as_ref().is_some_and(has_work) {
            COMMANDS
        } else {
            0
        };
        for vcpu in &self.vcpus {
            // Released to whoever loads the vCPU.
            vcpu.door.word.fetch_or(CALL | more, Ordering::Release);
            more = 0;
        }
    }
}
