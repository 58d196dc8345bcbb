//! A tree under test: its changes, and the comparison with the CPU's walker after each.

use core::fmt;

use platform::cpu::features::CpuFeatures;
use platform::el2::walker::{Memory, Refusal, Stage1, Translate, Translated, Walker};
use stage2::{
    Attributes, Descriptor, Execute, Ipa, IpaRange, Layout, Level, Mapping, MemoryType, PAGE_SIZE,
    Pa, Permissions, Stage2, Step,
};
use vm::Stage2Registers;

use super::guest::{Exit, GuestCpu, PERMISSION, StoringPage};
use super::tree::{Checks, OwnWorker, WITHIN, registers, with_tree};

/// The number of random changes of a tree.
const RANDOM_CHANGES: usize = 24;
/// One of so many writes that must be refused is tried, as each takes a guest.
const WRITES_PER_GUEST: u64 = 8;
/// The number of places, at the start of the address space, that see most changes.
const BUSY_PLACES: u64 = 6;
/// The most leaves of a random change.
const MOST_LEAVES: u64 = 24;

const MEMORY: [MemoryType; 4] = [
    MemoryType::WriteBack,
    MemoryType::NonCacheable,
    MemoryType::DeviceNgnre,
    MemoryType::DeviceNgnrne,
];

/// A tree under test.
pub struct Subject<'t> {
    stage2: &'t Stage2,
    worker: &'t OwnWorker<'t>,
    registers: Stage2Registers,
    /// `None` while a guest is loaded.
    walker: Option<Walker>,
    refused_writes: u64,
    stage1: Stage1,
    /// One above the largest physical address.
    pa_end: u64,
    random: Random,
    /// The guest that tries writes that must be refused, its code, and the address of its code.
    vcpu: GuestCpu,
    storing: StoringPage,
    storing_at: Ipa,
    checks: Checks,
}

impl Subject<'_> {
    /// Builds a tree of this layout, changes it, and compares. Panics at a difference.
    pub fn check(cpu: &CpuFeatures, layout: Layout) -> Checks {
        let mut checks = Checks {
            variants: 1,
            ..Checks::default()
        };
        for stage1 in [Stage1::WriteBack, Stage1::Device] {
            checks += with_tree(cpu, layout, |stage2, worker| {
                Subject::new(cpu, stage2, worker, stage1).all()
            });
        }
        checks
    }
}

/// The walker's expected view of a leaf.
#[derive(Clone, Copy, Debug)]
struct Expected {
    /// The translation of the address.
    pa: Pa,
    attributes: Attributes,
    accessed: bool,
    level: Level,
}

impl<'t> Subject<'t> {
    fn new(
        cpu: &CpuFeatures,
        stage2: &'t Stage2,
        worker: &'t OwnWorker<'t>,
        stage1: Stage1,
    ) -> Self {
        let features = stage2.layout().features();
        let narrow = stage2.layout().format() == stage2::Format::Narrow;
        let pa_bits = features.pa_bits.min(if narrow { 48 } else { 52 });
        let page_size = stage2.layout().page_size();
        let storing_at = Ipa::new(stage2.layout().all().end.get() - page_size);
        Self {
            stage2,
            worker,
            registers: registers(stage2),
            walker: None,
            refused_writes: 0,
            stage1,
            pa_end: 1 << pa_bits,
            random: Random(u64::from(features.ipa_bits) << 8 | 1),
            vcpu: GuestCpu::new(cpu, stage2),
            storing: StoringPage::new(page_size, worker),
            storing_at,
            checks: Checks::default(),
        }
    }

    fn all(mut self) -> Checks {
        let mapping = Mapping {
            pa: self.storing.pa(),
            attributes: Attributes::memory(Permissions::RAM),
            largest: Level::L3,
        };
        self.map(self.storing_at..self.layout().all().end, mapping);
        self.beyond_the_address_space();
        self.leaves_of_each_level();
        // Stage 1 makes no difference to them.
        if self.stage1 == Stage1::WriteBack {
            for _ in 0..RANDOM_CHANGES {
                self.change_at_random();
            }
        }
        self.checks
    }

    fn layout(&self) -> &'t Layout {
        self.stage2.layout()
    }

    /// The first address beyond the layout isn't translated.
    fn beyond_the_address_space(&mut self) {
        let features = self.layout().features();
        if features.ipa_bits < features.pa_bits {
            let beyond = self.layout().all().end;
            let answer = self.translate(beyond, Translate::Read);
            if !matches!(answer, Err(Refusal::Translation(_))) {
                self.fail(beyond, &"a translation fault", &answer);
            }
            self.checks.refused += 1;
        }
    }

    /// Leaves and contiguous groups of each level, as mapped and after changes.
    fn leaves_of_each_level(&mut self) {
        let layout = self.layout();
        let top = layout.largest_leaf().max(layout.start());
        for level in Level::ALL.into_iter().filter(|level| *level >= top) {
            for (turn, memory) in MEMORY.into_iter().enumerate() {
                let group = layout.group(level).filter(|_| turn % 2 == 0);
                let range = self.place(level, group.unwrap_or(1) as u64, turn);
                self.leaf_as_asked(level, range, memory);
            }
        }
    }

    fn leaf_as_asked(&mut self, level: Level, range: IpaRange, memory: MemoryType) {
        let attributes = Attributes {
            memory,
            ..self.any_attributes()
        };
        let mapping = Mapping {
            pa: self.physical(range.end.get() - range.start.get()),
            attributes,
            largest: level,
        };
        self.stage2
            .unmap(self.worker, range.clone(), |_, _, _| {})
            .expect(WITHIN);
        self.map(range.clone(), mapping);
        let mut asked = Expected {
            pa: mapping.pa,
            attributes,
            accessed: true,
            level,
        };
        self.agree_as_asked(&range, asked);
        self.age(&range);
        asked.accessed = false;
        self.agree_as_asked(&range, asked);
        asked.attributes.permissions = self.any_attributes().permissions;
        let permissions = asked.attributes.permissions;
        self.stage2
            .protect(self.worker, range.clone(), permissions, |_, _, _| {})
            .expect(WITHIN);
        self.agree_as_asked(&range, asked);
        self.stage2
            .write_protect(self.worker, range.clone(), |_, _| true, |_, _| {})
            .expect(WITHIN);
        asked.attributes.permissions.write = false;
        asked.attributes.permissions.hardware_dirty = false;
        self.agree_as_asked(&range, asked);
    }

    fn age(&self, range: &IpaRange) {
        let aged = self.stage2.age(self.worker, range.clone(), |_, _| {});
        let invalidated = || self.stage2.invalidate(self.worker, range.clone());
        aged.and_then(|()| invalidated()).expect(WITHIN);
    }

    fn map(&self, range: IpaRange, mapping: Mapping) {
        let mapped = self
            .stage2
            .map(self.worker, range.clone(), mapping, || true);
        assert!(
            mapped.is_ok_and(|mapped| mapped.done_to == range.end),
            "selftest=stage2: {range:?} isn't mapped: {mapped:?}"
        );
    }

    /// Compares the first and the last page of a range with `asked`.
    fn agree_as_asked(&mut self, range: &IpaRange, asked: Expected) {
        for ipa in [range.start, self.last_page(range)] {
            let pa = asked.pa.offset(ipa.get() - range.start.get());
            // Where hardware sets the flag, an earlier translation may have done so.
            let by_hardware = self.layout().features().hardware_access;
            let accessed = asked.accessed || by_hardware;
            for access in [Translate::Read, Translate::Write] {
                let expected = self.answer(
                    Expected {
                        pa,
                        accessed,
                        ..asked
                    },
                    access,
                );
                self.compare(ipa, access, expected);
            }
        }
    }

    fn change_at_random(&mut self) {
        let top = self.layout().largest_leaf().max(self.layout().start());
        let levels = Level::L3 as u64 - top as u64 + 1;
        let level = Level::ALL[(top as u64 + self.random.below(levels)) as usize];
        let count = 1 + self.random.below(MOST_LEAVES);
        let range = self.place(level, count, 7);
        let (stage2, worker) = (self.stage2, self.worker);
        match self.random.below(8) {
            0..=2 => {
                let mapping = Mapping {
                    pa: self.physical(self.layout().span(level)),
                    attributes: self.any_attributes(),
                    largest: level.above().unwrap_or(level),
                };
                // It may run out of tables, as splits may. The part that was done is compared.
                let _ = stage2.map(worker, range.clone(), mapping, || true);
            }
            3 => stage2
                .unmap(worker, range.clone(), |_, _, _| {})
                .expect(WITHIN),
            4 => {
                let permissions = self.any_attributes().permissions;
                stage2
                    .protect(worker, range.clone(), permissions, |_, _, _| {})
                    .expect(WITHIN);
            }
            5 => stage2
                .write_protect(worker, range.clone(), |_, _| true, |_, _| {})
                .expect(WITHIN),
            6 => self.age(&range),
            _ => {
                let to = level.below().unwrap_or(level);
                let _ = stage2.split(worker, range.clone(), to, 2);
            }
        }
        self.agree_around(&range);
    }

    /// Compares addresses in and around a range with the contents of the tables.
    fn agree_around(&mut self, range: &IpaRange) {
        let pages = (range.end.get() - range.start.get()) / self.layout().page_size();
        let within = range
            .start
            .offset(self.random.below(pages) * self.layout().page_size());
        let before = Ipa::new(range.start.get().saturating_sub(PAGE_SIZE));
        let behind = range.end.min(self.last_page(&self.layout().all()));
        for ipa in [range.start, within, self.last_page(range), before, behind] {
            for access in [Translate::Read, Translate::Write] {
                let expected = match self.find(ipa) {
                    Ok(leaf) => self.answer(leaf, access),
                    Err(level) => Err(Refusal::Translation(level)),
                };
                self.compare(ipa, access, expected);
            }
        }
    }

    /// The leaf of an address in the tables, or the level without an entry.
    fn find(&self, ipa: Ipa) -> Result<Expected, Level> {
        let page = ipa.align_down(self.layout().page_size());
        let range = page..page.offset(self.layout().page_size());
        let mut found = Err(Level::L0);
        let walked = self.stage2.walk(self.worker, range, |context| {
            found = match context.descriptor {
                Descriptor::Table(_) => return Step::Descend,
                Descriptor::Leaf(leaf) => Ok(Expected {
                    pa: leaf.pa().offset(ipa.get() - context.ipa.get()),
                    attributes: leaf.attributes(),
                    accessed: leaf.accessed(),
                    level: context.level,
                }),
                Descriptor::Invalid | Descriptor::Locked | Descriptor::Frozen => Err(context.level),
            };
            Step::Stop
        });
        walked.expect(WITHIN);
        found
    }

    /// The walker's expected answer for a leaf.
    fn answer(&self, leaf: Expected, access: Translate) -> Result<Translated, Refusal> {
        let features = self.layout().features();
        let permissions = leaf.attributes.permissions;
        let by_hardware =
            features.hardware_dirty && permissions.hardware_dirty && permissions.may_write;
        if !leaf.accessed && !features.hardware_access {
            Err(Refusal::AccessFlag(leaf.level))
        } else if access == Translate::Write && !permissions.write && !by_hardware {
            Err(Refusal::Permission(leaf.level))
        } else {
            Ok(Translated {
                pa: leaf.pa.align_down(PAGE_SIZE),
                memory: self.memory(leaf.attributes.memory),
            })
        }
    }

    /// The combination of a memory type with stage 1's (Arm ARM D8.6.5 and, with FEAT_S2FWB, D8.6.6).
    fn memory(&self, memory: MemoryType) -> Memory {
        const WRITE_BACK: u8 = 0xff;
        const NON_CACHEABLE: u8 = 0x44;
        const DEVICE_NGNRE: u8 = 0x04;
        const DEVICE_NGNRNE: u8 = 0x00;
        const INNER: u8 = 0b11;
        const OUTER: u8 = 0b10;
        let forced = self.layout().features().fwb;
        let attributes = match (memory, self.stage1) {
            (MemoryType::WriteBack, Stage1::WriteBack) => WRITE_BACK,
            (MemoryType::WriteBack, Stage1::Device) if forced => WRITE_BACK,
            (MemoryType::NonCacheable, Stage1::WriteBack) => NON_CACHEABLE,
            (MemoryType::DeviceNgnre, Stage1::WriteBack) => DEVICE_NGNRE,
            (MemoryType::DeviceNgnre, Stage1::Device) if forced => DEVICE_NGNRE,
            (MemoryType::DeviceNgnrne, _) | (_, Stage1::Device) => DEVICE_NGNRNE,
        };
        let shareability = match (attributes, self.stage1) {
            (WRITE_BACK, Stage1::WriteBack) => INNER,
            // Device accesses of stage 1 are outer shareable, and the wider one counts.
            _ => OUTER,
        };
        Memory {
            attributes,
            shareability,
        }
    }

    fn compare(&mut self, ipa: Ipa, access: Translate, expected: Result<Translated, Refusal>) {
        let before = self.find(ipa);
        let answer = match expected {
            Err(Refusal::Permission(_)) => {
                self.refused_writes += 1;
                if !self.refused_writes.is_multiple_of(WRITES_PER_GUEST) {
                    return;
                }
                self.store(ipa)
            }
            _ => self.translate(ipa, access),
        };
        if answer != expected {
            self.fail(ipa, &(access, expected), &answer);
        }
        match answer {
            Ok(_) => self.checks.translated += 1,
            Err(_) => self.checks.refused += 1,
        }
        if let (Ok(before), Ok(after)) = (before, self.find(ipa)) {
            self.checks.accessed += u64::from(after.accessed && !before.accessed);
        }
    }

    fn translate(&mut self, ipa: Ipa, access: Translate) -> Result<Translated, Refusal> {
        let walker = self
            .walker
            .get_or_insert_with(|| Walker::new(self.registers, self.stage1));
        walker.translate(ipa, access)
    }

    /// The refusal of a guest's store.
    fn store(&mut self, ipa: Ipa) -> Result<Translated, Refusal> {
        self.walker = None;
        let exit = self.storing.store(&mut self.vcpu, self.storing_at, ipa);
        Err(match exit {
            Exit::Data(status) if status & !0b11 == PERMISSION => {
                Refusal::Permission(Level::ALL[(status & 0b11) as usize])
            }
            _ => panic!("selftest=stage2: a store to {ipa} ends in {exit:x?}"),
        })
    }

    fn fail(&self, ipa: Ipa, expected: &dyn fmt::Debug, answer: &dyn fmt::Debug) -> ! {
        panic!(
            "selftest=stage2: {ipa} is to be {expected:x?}, but this CPU says {answer:x?}; tables: {:x?}, {:x?}, {:?}",
            self.find(ipa),
            self.layout(),
            self.stage1,
        )
    }

    /// A range of `count` leaves of `level`, or of all if there are fewer. The first two turns give the first and the last
    /// such range, others a random one. A power of two of leaves is aligned to its size.
    fn place(&mut self, level: Level, count: u64, turn: usize) -> IpaRange {
        let span = self.layout().span(level);
        let all = self.end().get();
        let count = count.min(all / span);
        let (bytes, grain) = match count.is_power_of_two() {
            true => (count * span, count * span),
            false => (count * span, span),
        };
        let places = (all - bytes) / grain + 1;
        let place = match turn {
            0 => 0,
            1 => places - 1,
            // Mostly at a place that was changed before.
            _ if self.random.below(4) != 0 => self.random.below(places.min(BUSY_PLACES)),
            _ => self.random.below(places),
        };
        let start = Ipa::new(place * grain);
        start..start.offset(bytes)
    }

    /// The end of the addresses that are tried: the last entry of the largest leaves' level is the storing page's.
    fn end(&self) -> Ipa {
        let top = self.layout().largest_leaf().max(self.layout().start());
        Ipa::new(self.layout().all().end.get() - self.layout().span(top))
    }

    fn last_page(&self, range: &IpaRange) -> Ipa {
        Ipa::new(range.end.get() - self.layout().page_size())
    }

    /// A physical address that is aligned to `bytes`.
    fn physical(&mut self, bytes: u64) -> Pa {
        let aligned_to = bytes.next_power_of_two();
        let room = self.pa_end.saturating_sub(aligned_to * 2 * MOST_LEAVES);
        Pa::new(self.random.below(room.max(1))).align_down(aligned_to)
    }

    /// Any memory type with any permissions.
    fn any_attributes(&mut self) -> Attributes {
        const PERMISSIONS: [Permissions; 4] = [
            Permissions::RAM,
            Permissions::LOGGED_BY_HARDWARE,
            Permissions::LOGGED,
            Permissions::READ_ONLY,
        ];
        const EXECUTE: [Execute; 4] = [
            Execute::Everywhere,
            Execute::AtEl0,
            Execute::AtEl1,
            Execute::Nowhere,
        ];
        let mut any = || self.random.below(4) as usize;
        Attributes {
            memory: MEMORY[any()],
            permissions: Permissions {
                execute: EXECUTE[any()],
                ..PERMISSIONS[any()]
            },
        }
    }
}

/// Numbers that look random, the same at every run (xorshift64*).
struct Random(u64);

impl Random {
    /// Less than `bound`, which isn't 0.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }
}
