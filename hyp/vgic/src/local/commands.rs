//! Executing commands (IHI 0069, 5.3), some at each access of the guest: the rest before the vCPU enters its guest again.
//!
//! A command that names what there isn't has no effect. One that can't be read stalls the queue.

use super::Local;
use crate::door::COMMANDS;
use crate::interface::VirtualInterface;
use crate::its::events::Event;
use crate::its::queue::State;
use crate::its::{COLLECTION_BITS, DEVICE_BITS, EVENT_BITS, GuestTables, Its, LPIS};
use crate::sync::Ordering;
use crate::word::{FIRST_LPI, Word};

/// What is done at an access, in places of the table of events that are looked at.
const BUDGET: u32 = if cfg!(loom) { 64 } else { 4096 };
/// A command, or the change of an LPI, in the same unit.
const COMMAND: u32 = if cfg!(loom) { 1 } else { 64 };

/// A command that is known, with its fields as the guest wrote them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Command {
    Move {
        device: u32,
        event: u32,
        collection: u32,
    },
    Raise {
        device: u32,
        event: u32,
    },
    Clear {
        device: u32,
        event: u32,
    },
    Sync,
    MapDevice {
        device: u32,
        event_bits: u64,
        valid: bool,
    },
    MapCollection {
        collection: u32,
        vcpu: u64,
        valid: bool,
    },
    Map {
        device: u32,
        event: u32,
        lpi: u32,
        collection: u32,
    },
    Invalidate {
        device: u32,
        event: u32,
    },
    InvalidateAll {
        collection: u32,
    },
    MoveAll {
        from: u64,
        to: u64,
    },
    Discard {
        device: u32,
        event: u32,
    },
}

impl Command {
    fn decode(words: [u64; 4]) -> Option<Self> {
        let [first, second, third, fourth] = words;
        let device = (first >> 32) as u32;
        let event = second as u32;
        let collection = third as u32 & 0xffff;
        let valid = third >> 63 != 0;
        // RDbase: the number of the vCPU, as GITS_TYPER.PTA is 0.
        let vcpu = |word: u64| word >> 16 & 0x7_ffff_ffff;
        Some(match first & 0xff {
            0x01 => Self::Move {
                device,
                event,
                collection,
            },
            0x03 => Self::Raise { device, event },
            0x04 => Self::Clear { device, event },
            0x05 => Self::Sync,
            0x08 => Self::MapDevice {
                device,
                event_bits: (second & 0x1f) + 1,
                valid,
            },
            0x09 => Self::MapCollection {
                collection,
                vcpu: vcpu(third),
                valid,
            },
            0x0a => Self::Map {
                device,
                event,
                lpi: (second >> 32) as u32,
                collection,
            },
            0x0b => Self::Map {
                device,
                event,
                lpi: event,
                collection,
            },
            0x0c => Self::Invalidate { device, event },
            0x0d => Self::InvalidateAll { collection },
            0x0e => Self::MoveAll {
                from: vcpu(third),
                to: vcpu(fourth),
            },
            0x0f => Self::Discard { device, event },
            _ => return None,
        })
    }
}

/// How far a command has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Done {
    /// It is done.
    Whole,
    /// The rest is to be done by a later access.
    InPart,
}

impl<H: VirtualInterface, K: FnMut(usize)> Local<'_, H, K> {
    /// Executes what there is in the queue, unless another vCPU does, as far as a budget goes. The rest is noted at the own door.
    /// The caller fills.
    pub(crate) fn execute_commands(&mut self, its: &Its, memory: &dyn GuestTables) {
        if let Some(state) = its.queue.begin() {
            self.execute_begun(its, state, memory);
        }
    }

    /// The same, for whoever has BUSY.
    pub(crate) fn execute_begun(&mut self, its: &Its, mut state: State, memory: &dyn GuestTables) {
        let mut budget = BUDGET;
        while budget != 0
            && let Some(next) = self.execute_next(its, state, &mut budget, memory)
        {
            if !next.has(State::BUSY) {
                return;
            }
            state = next;
        }
        its.queue.let_go();
        if let Some(door) = self.door() {
            // Of nothing that another has written.
            door.word.fetch_or(COMMANDS, Ordering::Relaxed);
        }
    }

    /// Executes what is next: whoever has BUSY. Returns the state, without BUSY if all is done; `None` if the rest of a command is
    /// to be done later.
    #[inline(always)]
    fn execute_next(
        &mut self,
        its: &Its,
        state: State,
        budget: &mut u32,
        memory: &dyn GuestTables,
    ) -> Option<State> {
        if state.has(State::JOBS) {
            let job = if state.has(State::NO_DEVICES) {
                State::NO_DEVICES
            } else {
                State::NO_COLLECTIONS
            };
            let done = self.forget(its, job, budget) == Done::Whole;
            let without = |state: State| state.without(job).with_progress(0);
            return done.then(|| its.queue.advance(without));
        }
        let (index, count) = (state.reader(), its.queue_length());
        // A queue that ends before what is written of it would never be empty.
        let words = if state.writer() < count {
            its.command(index, memory)
        } else {
            None
        };
        let Some(words) = words else {
            let stalled = |state: State| state.with(State::STALLED).with_progress(0);
            return Some(its.queue.advance(stalled));
        };
        *budget = budget.saturating_sub(COMMAND);
        let command = Command::decode(words);
        let done =
            command.is_none_or(|command| self.execute(its, command, budget, memory) == Done::Whole);
        done.then(|| {
            let next = (index + 1).checked_rem(count).unwrap_or(0);
            its.queue
                .advance(|state| state.with_reader(next).with_progress(0))
        })
    }

    #[inline(always)]
    fn execute(
        &mut self,
        its: &Its,
        command: Command,
        budget: &mut u32,
        memory: &dyn GuestTables,
    ) -> Done {
        match command {
            Command::Move {
                device,
                event,
                collection,
            } => {
                if collection >> COLLECTION_BITS == 0
                    && let Some((place, event)) = its.events.find(device, event)
                {
                    its.events.set(place, event.with_collection(collection));
                    self.route_lpi(event.lpi(), its.vcpu_of(collection));
                }
            }
            Command::Raise { device, event } => {
                if let Some((_, event)) = its.events.find(device, event) {
                    self.raise_mapped(its, event.lpi());
                }
            }
            Command::Clear { device, event } => {
                if let Some((_, event)) = its.events.find(device, event) {
                    self.set_pending(self.own.vcpu, event.lpi(), false);
                }
            }
            Command::Sync => {
                // Pairs with the `fetch_sub` of who has settled: what its guest did before is seen.
                if self.vgic.unsettled.load(Ordering::Acquire) != 0 {
                    return Done::InPart;
                }
            }
            Command::MapDevice {
                device,
                event_bits,
                valid,
            } => {
                return self.map_device(its, device, valid.then_some(event_bits), budget);
            }
            Command::MapCollection {
                collection,
                vcpu,
                valid,
            } => {
                let vcpu = valid.then_some(vcpu as usize);
                let exists = vcpu.is_none_or(|vcpu| vcpu < self.vgic.vcpus.len());
                if exists && collection >> COLLECTION_BITS == 0 {
                    its.map_collection(collection, vcpu);
                    return self.walk(its, budget, |local, _, event| {
                        let is_in = event.collection() == collection;
                        is_in && local.route_lpi(event.lpi(), vcpu)
                    });
                }
            }
            Command::Map {
                device,
                event,
                lpi,
                collection,
            } => {
                if its.has_event(device, event)
                    && (FIRST_LPI..FIRST_LPI + LPIS).contains(&lpi)
                    && collection >> COLLECTION_BITS == 0
                {
                    self.map_event(its, device, event, lpi, collection, memory);
                }
            }
            Command::Invalidate { device, event } => {
                if let Some((_, event)) = its.events.find(device, event) {
                    self.configure_lpi(its, event.lpi(), memory);
                }
            }
            Command::InvalidateAll { collection } => {
                return self.walk(its, budget, |local, _, event| {
                    let is_in = event.collection() == collection;
                    is_in && local.configure_lpi(its, event.lpi(), memory)
                });
            }
            Command::MoveAll { from, to } => {
                let to = to as usize;
                if to < self.vgic.vcpus.len() {
                    return self.walk(its, budget, |local, _, event| {
                        let word = its.lpi(event.lpi());
                        let word = word.map(|word| Word(word.load(Ordering::Acquire)));
                        let vcpu = word.and_then(Word::lpi_vcpu);
                        vcpu.is_some_and(|vcpu| vcpu as u64 == from)
                            && local.route_lpi(event.lpi(), Some(to))
                    });
                }
            }
            Command::Discard { device, event } => {
                if let Some((place, event)) = its.events.find(device, event) {
                    self.discard(its, place, event);
                }
            }
        }
        Done::Whole
    }

    /// Raises an LPI whose mapping only this vCPU could end, as it has BUSY.
    #[inline(always)]
    fn raise_mapped(&mut self, its: &Its, lpi: u32) {
        let Some(word) = its.lpi(lpi) else { return };
        // Pairs with the exchange of whoever claims it: a guest sees what was written before the command.
        let old = Word(word.fetch_or(Word::LATCH, Ordering::AcqRel));
        let told = self.vgic.told(0, lpi, old, old.with(Word::LATCH));
        match told {
            Some(told) if told == self.own.vcpu => self.note(lpi),
            Some(told) => {
                if let (Some(vcpu), Some(hints)) = (self.vgic.vcpus.get(told), its.hints(told)) {
                    hints.ring(lpi, &vcpu.door, &mut self.kick);
                }
            }
            None => {}
        }
    }

    /// Calls `each` with the mapped events, from where the last access left off. It returns whether it has done something.
    fn walk(
        &mut self,
        its: &Its,
        budget: &mut u32,
        mut each: impl FnMut(&mut Self, usize, Event) -> bool,
    ) -> Done {
        if its.events.is_empty() {
            return Done::Whole;
        }
        let first = its.queue.state().progress();
        for place in first..its.events.places() {
            if *budget == 0 {
                its.queue.change(|state| Some(state.with_progress(place)));
                return Done::InPart;
            }
            let worked = its
                .events
                .get(place)
                .is_some_and(|event| each(self, place, event));
            *budget = budget.saturating_sub(if worked { COMMAND } else { 1 });
        }
        Done::Whole
    }

    /// As the guest has replaced a table.
    #[cold]
    fn forget(&mut self, its: &Its, job: u64, budget: &mut u32) -> Done {
        if job == State::NO_DEVICES {
            its.forget_devices();
            return self.walk(its, budget, |local, place, event| {
                local.discard(its, place, event)
            });
        }
        its.forget_collections();
        self.walk(its, budget, |local, _, event| {
            local.route_lpi(event.lpi(), None)
        })
    }

    fn map_device(&mut self, its: &Its, device: u32, bits: Option<u64>, budget: &mut u32) -> Done {
        let is_known = device >> DEVICE_BITS == 0 && its.holds_device(device);
        if !is_known || bits.is_some_and(|bits| bits > u64::from(EVENT_BITS)) {
            return Done::Whole;
        }
        its.map_device(device, bits.unwrap_or(0));
        // Those of the device that had the number before.
        self.walk(its, budget, |local, place, event| {
            event.device() == device && local.discard(its, place, event)
        })
    }

    #[inline(never)]
    fn map_event(
        &mut self,
        its: &Its,
        device: u32,
        event: u32,
        lpi: u32,
        collection: u32,
        memory: &dyn GuestTables,
    ) {
        let (Some(word), None) = (its.lpi(lpi), its.events.find(device, event)) else {
            return;
        };
        let event = Event::new(device, event, lpi, collection);
        let is_taken = Word(word.load(Ordering::Acquire)).has(Word::MAPPED);
        let Some(place) = its.events.free_place(event).filter(|_| !is_taken) else {
            return;
        };
        let vcpu = its.vcpu_of(collection);
        let mapped = self.change(self.own.vcpu, lpi, |word| {
            Some(word.with(Word::MAPPED).with_lpi_vcpu(vcpu))
        });
        if let Some((_, new)) = mapped {
            self.configure_lpi(its, lpi, memory);
            let generation = new.lpi_generation();
            its.events.add(place, event.with_generation(generation));
        }
    }

    /// Ends a mapping: what was raised by it and isn't taken yet is gone.
    #[inline(never)]
    fn discard(&mut self, its: &Its, place: usize, event: Event) -> bool {
        let own = self.own.vcpu;
        self.change_synced(own, event.lpi(), |word| {
            let gone = word
                .without(Word::LATCH | Word::MAPPED)
                .with_next_lpi_generation();
            Some(if word.has(Word::CLAIMED) {
                with_sync(gone.with(Word::DROP), own)
            } else {
                gone
            })
        });
        its.events.remove(place);
        true
    }

    #[inline(never)]
    fn route_lpi(&mut self, lpi: u32, vcpu: Option<usize>) -> bool {
        let own = self.own.vcpu;
        let changed = self.change_synced(own, lpi, |word| {
            let moved = word.with_lpi_vcpu(vcpu);
            (moved != word).then(|| with_sync(moved, own))
        });
        changed.is_some()
    }

    /// Gives an LPI what its property byte says.
    #[inline(never)]
    fn configure_lpi(&mut self, its: &Its, lpi: u32, memory: &dyn GuestTables) -> bool {
        let own = self.own.vcpu;
        let property = its.property(lpi, memory);
        let priority = property & 0xfc & self.vgic.priority_mask;
        self.change_synced(own, lpi, |word| {
            let new = word
                .with_if(property & 1 != 0, Word::ENABLED)
                .with_priority(priority);
            (new != word).then(|| with_sync(new, own))
        });
        true
    }
}

/// With SYNC if another vCPU has it in a list register.
fn with_sync(word: Word, own: usize) -> Word {
    if word.has(Word::CLAIMED) && word.owner() != own {
        word.with(Word::SYNC)
    } else {
        word
    }
}
