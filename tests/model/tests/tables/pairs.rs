//! Every operation of the engine beside every other one, on the machine model: two CPUs with an operation each, two that run
//! the guest, hardware that sets access flags when nobody asked it to.
//!
//! A seed decides all: the pair, the features, what is mapped before, and the schedule. `PARVISOR_SEED=…` runs one,
//! `PARVISOR_SCHEDULES=…` as many as wanted.
// Miri doesn't know how the schedules switch stacks.
#![cfg(not(miri))]

use checker::Promise;
use model::{Outcome, System, backing_of, choose, explore};
use shuttle::thread;
use stage2::{
    Access, Attributes, Bbm, Features, Granule, Ipa, IpaRange, Layout, Leaf, Level, Mapping,
    OnBlock, Pa, Permissions, RegimeRegisters, Request, TlbPolicy,
};
use std::sync::Arc;

/// What a CPU does in a scenario.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Read,
    Write,
    Map,
    Unmap,
    Replace,
    WriteProtect,
    ReadOnly,
    Relax,
    Age,
    Harvest,
    Track,
    Split,
    Collapse,
    Invalidate,
}

use Operation::*;

const ALL: &[Operation] = &[
    Read,
    Write,
    Map,
    Unmap,
    Replace,
    WriteProtect,
    ReadOnly,
    Relax,
    Age,
    Harvest,
    Track,
    Split,
    Collapse,
    Invalidate,
];
/// Those that may run where hardware alone keeps track of writes: the others need an owner with a log.
const TRACKED: &[Operation] = &[
    Read, Write, Map, Unmap, Replace, Age, Harvest, Track, Split, Collapse, Invalidate,
];
/// Those that may run where hardware tracks no more than pages: blocks are read-only, and replaced at a write. A merge
/// would need an owner with a log.
const TRACKED_PAGES: &[Operation] = &[
    Read, Write, Map, Unmap, Replace, Age, Harvest, Track, Split, Invalidate,
];
const CPUS: usize = 4;

/// One scenario's machine.
#[derive(Debug)]
struct Scene {
    system: System,
    tracked: bool,
    /// The largest leaves that hardware tracks.
    largest_tracked: Level,
}

/// What a page is mapped to once [`Replace`] has come by, until it does so again.
fn other_backing_of(ipa: Ipa) -> Pa {
    backing_of(ipa).offset(1 << 40)
}

/// Whether `pa` is where an access to `ipa` may lead.
fn backs(pa: Pa, ipa: Ipa) -> bool {
    pa == backing_of(ipa) || pa == other_backing_of(ipa)
}

fn one_of<T: Copy>(choices: &[T]) -> T {
    choices[choose(choices.len())]
}

impl Scene {
    fn new(layout: Layout) -> Self {
        let policy = TlbPolicy {
            range: choose(2) == 0,
            level_hint: choose(2) == 0,
            most_instructions: one_of(&[1, 4, 64]),
        };
        Self {
            system: System::new(layout, CPUS, policy),
            tracked: layout.features().hardware_dirty,
            largest_tracked: Level::L0,
        }
    }

    fn layout(&self) -> &Layout {
        self.system.stage2().layout()
    }

    /// The addresses that this is about: all of a small tree, two blocks of one of real size.
    fn window(&self) -> IpaRange {
        let blocks = Ipa::new(2 * self.layout().span(Level::L2));
        let end = self.layout().all().end;
        let is_small = self.layout().table_entries() < 16;
        Ipa::new(0)..if is_small { end } else { blocks }
    }

    fn page(&self) -> Ipa {
        let pages = self.window().end.get() / self.layout().page_size();
        Ipa::new(choose(pages as usize) as u64 * self.layout().page_size())
    }

    fn range(&self) -> IpaRange {
        match choose(4) {
            0 => self.window(),
            1 => {
                let span = self.layout().span(Level::L2);
                let first = self.page().align_down(span);
                first..first.offset(span)
            }
            _ => {
                let (one, other) = (self.page(), self.page());
                one.min(other)..one.max(other).offset(self.layout().page_size())
            }
        }
    }

    fn largest(&self) -> Level {
        let top = self.layout().start().max(self.layout().largest_leaf());
        let small = self.layout().table_entries() < 16;
        one_of(&[if small { top } else { Level::L2 }, Level::L2, Level::L3])
    }

    fn permissions(&self) -> Permissions {
        if self.tracked {
            Permissions::LOGGED_BY_HARDWARE
        } else {
            one_of(&[Permissions::RAM, Permissions::LOGGED])
        }
    }

    /// Guest accesses to a page until one goes through, which has to lead to what backs the page.
    fn access(&self, cpu: usize, access: Access) {
        let ipa = self.page();
        let permissions = self.permissions();
        let request = Request {
            ipa,
            va: None,
            access,
            pa: backing_of(ipa),
            largest: self.largest(),
            attributes: Attributes::memory(Permissions {
                write: access == Access::Write || permissions.write,
                ..permissions
            }),
            // A split by a fault makes its page writable for an owner that logs it.
            largest_written: if self.tracked {
                self.largest_tracked
            } else {
                one_of(&[Level::L0, Level::L2, Level::L3])
            },
            on_block: one_of(&[OnBlock::Split, OnBlock::Isolate]),
        };
        // Refused where another operation has made it read-only.
        if let Ok((output, _)) = self.system.access(cpu, &request) {
            assert!(backs(output, ipa), "the guest got to {output:?} at {ipa}");
        }
    }

    /// What hardware has noted of a leaf is reported, and nothing else keeps it.
    fn collected(&self, ipa: Ipa, level: Level) {
        let range = ipa.get()..ipa.get() + self.layout().span(level);
        self.system.checker().harvested(self.system.root(), range);
    }

    /// A CPU that is about to work on the VM's tables may be one that doesn't run it: as it came up, as it left this
    /// VM, or with another VM, whose tables and VMIDs are others.
    fn leave(&self, cpu: usize) {
        let other = self.layout().features().granule != Granule::Size16K;
        match choose(4) {
            0 => self.system.load(cpu, RegimeRegisters::NONE),
            1 => self.system.put(cpu),
            2 => self.system.load(
                cpu,
                RegimeRegisters {
                    vttbr: 0x42 << 48 | 0x1_0000,
                    vtcr: 1 << 31 | u64::from(other) << 15,
                },
            ),
            _ => {}
        }
    }

    fn run(&self, cpu: usize, operation: Operation) {
        let system = &self.system;
        self.leave(cpu);
        let range = self.range();
        let since = system.now();
        let mut leaves: Vec<(Ipa, Level)> = Vec::new();
        // What is writable and untracked is as good as dirty: nobody makes it clean.
        let mut dirty = |level: Level, ipa: Ipa, leaf: Leaf| {
            if leaf.writable() {
                leaves.push((ipa, level));
            }
        };
        match operation {
            Read => return self.access(cpu, Access::Read),
            Write => return self.access(cpu, Access::Write),
            Map => {
                let mapping = Mapping {
                    pa: backing_of(range.start),
                    attributes: Attributes::memory(self.permissions()),
                    largest: self.largest(),
                };
                let mapped = system.on(cpu, |worker| {
                    system.stage2().map(worker, range, mapping, || true)
                });
                mapped.expect("frames don't run out here");
            }
            Unmap => {
                let wanted = range.clone();
                system.on(cpu, |worker| {
                    system.stage2().unmap(worker, wanted, &mut dirty).unwrap()
                });
                system.promised(Promise::NoEntry, range, since);
            }
            Replace => {
                let attributes = Attributes::memory(self.permissions());
                let toggled = |ipa, leaf: Leaf| {
                    if leaf.pa() == backing_of(ipa) {
                        other_backing_of(ipa)
                    } else {
                        backing_of(ipa)
                    }
                };
                system.on(cpu, |worker| {
                    system
                        .stage2()
                        .replace(
                            worker,
                            range,
                            |ipa, leaf| Some((toggled(ipa, leaf), attributes)),
                            |ipa, leaf| {
                                let page = ipa..ipa.offset(self.layout().page_size());
                                system.promised(Promise::NoEntry, page, since);
                                dirty(Level::L3, ipa, leaf);
                            },
                        )
                        .unwrap()
                });
            }
            WriteProtect => {
                let wanted = range.clone();
                system.on(cpu, |worker| {
                    system
                        .stage2()
                        .write_protect(worker, wanted, |_, _| true, |_, _| {})
                        .unwrap()
                });
                system.promised(Promise::NoWrite, range, since);
            }
            ReadOnly => {
                let wanted = range.clone();
                system.on(cpu, |worker| {
                    (system.stage2())
                        .protect(worker, wanted, Permissions::READ_ONLY, |_, _, _| {})
                        .unwrap()
                });
                system.promised(Promise::NoWrite, range, since);
            }
            Relax => {
                let permissions = self.permissions();
                system.on(cpu, |worker| {
                    (system.stage2())
                        .protect(worker, range, permissions, |_, _, _| {})
                        .unwrap()
                });
            }
            Age => system.on(cpu, |worker| {
                system.stage2().age(worker, range, |_, _| {}).unwrap()
            }),
            Harvest => {
                system.on(cpu, |worker| {
                    (system.stage2())
                        .harvest_dirty(worker, range, |ipa, level| leaves.push((ipa, level)))
                        .unwrap()
                });
                for (ipa, level) in &leaves {
                    let pages = *ipa..ipa.offset(self.layout().span(*level));
                    system.promised(Promise::NoDirty, pages, since);
                }
            }
            Track => {
                let mut found: Vec<IpaRange> = Vec::new();
                system.on(cpu, |worker| {
                    let stage2 = system.stage2();
                    let add = |ipa: Ipa, level, bits: u64| {
                        let span = self.layout().span(level);
                        let pages = (0..64).filter(|bit| bits & 1 << bit != 0);
                        let first = |page| ipa.offset(page * span);
                        found.extend(pages.map(|page| first(page)..first(page + 1)));
                    };
                    stage2
                        .find_dirty(worker, range.clone(), |_| true, add)
                        .unwrap();
                    let named = |ipa: Ipa, level: Level| {
                        let end = ipa.offset(self.layout().span(level));
                        found.iter().any(|part| part.start < end && ipa < part.end)
                    };
                    stage2
                        .track_writes(worker, range, self.largest_tracked, named, |ipa, level| {
                            leaves.push((ipa, level));
                        })
                        .unwrap();
                });
                // Now what was found may be copied.
                for part in found {
                    system.promised(Promise::NoDirty, part.clone(), since);
                    let root = system.root();
                    (system.checker()).harvested(root, part.start.get()..part.end.get());
                }
            }
            Split => {
                let to = one_of(&[Level::L2, Level::L3]);
                let split = system.on(cpu, |worker| system.stage2().split(worker, range, to, 2));
                split.expect("frames don't run out here");
            }
            Collapse => {
                let permissions = self.permissions();
                let to = Level::L2;
                system.on(cpu, |worker| {
                    system
                        .stage2()
                        .collapse(
                            worker,
                            range,
                            to,
                            |dirty| Permissions {
                                write: dirty || permissions.write,
                                ..permissions
                            },
                            |level, ipa, leaf| {
                                if leaf.dirty() {
                                    leaves.push((ipa, level));
                                }
                            },
                        )
                        .unwrap()
                });
            }
            Invalidate => system.on(cpu, |worker| {
                system.stage2().invalidate(worker, range).unwrap()
            }),
        }
        for (ipa, level) in leaves {
            self.collected(ipa, level);
        }
    }

    /// After all is done: what the tables say is right, every write is known of, and nothing is left in the end.
    fn finish(self) {
        self.system.check();
        let step = self.layout().page_size();
        for ipa in (0..self.window().end.get())
            .step_by(step as usize)
            .map(Ipa::new)
        {
            if let Some((leaf, level)) = self.system.lookup(ipa) {
                let offset = ipa.offset_in(self.layout().span(level));
                assert!(backs(leaf.pa().offset(offset), ipa), "{leaf:?} at {ipa}");
            }
            if let Outcome::Done(output) = self.system.guest(3, ipa, Access::Read) {
                assert!(backs(output, ipa), "the guest got to {output:?} at {ipa}");
            }
        }
        if self.tracked {
            let is_dirty = |page| {
                let found = self.system.lookup(Ipa::new(page));
                found.is_some_and(|(leaf, _)| leaf.writable())
            };
            // Asked outside: the lookup reports to the checker itself.
            let dirty: Vec<u64> = (0..self.window().end.get())
                .step_by(step as usize)
                .filter(|page| is_dirty(*page))
                .collect();
            let lost = (self.system.checker())
                .written_is_dirty(self.system.root(), &|page| dirty.contains(&page));
            assert!(lost.is_empty(), "{}", lost[0]);
        }
        self.system.destroy();
    }
}

/// Runs every pair of `operations` so often, each on a machine with a layout that `layout` chooses, told how often the pair
/// has run before.
fn every_pair(operations: &'static [Operation], times: u64, layout: fn(u64) -> Layout) {
    let pairs = (operations.len() * operations.len()) as u64;
    explore(pairs * times, move |seed| {
        let scene = Scene::new(layout(seed / pairs));
        race(scene, operations, (seed % pairs) as usize);
    });
}

/// Runs a few pairs of operations, which the seed chooses: for trees of real size, which take long.
fn some_pairs(schedules: u64, layout: fn(u64) -> Layout) {
    explore(schedules, move |seed| {
        race(Scene::new(layout(seed)), ALL, choose(ALL.len() * ALL.len()));
    });
}

/// Runs one pair beside two guests.
fn race(scene: Scene, operations: &'static [Operation], pair: usize) {
    let (first, second) = (
        operations[pair / operations.len()],
        operations[pair % operations.len()],
    );
    for _ in 0..choose(4) {
        scene.run(choose(CPUS), one_of(operations));
    }
    let scene = Arc::new(scene);
    let on_thread = |work: Box<dyn FnOnce(&Scene) + Send>| {
        let scene = scene.clone();
        thread::spawn(move || work(&scene))
    };
    let guest = |cpu: usize| {
        move |scene: &Scene| {
            for _ in 0..3 {
                let ipa = scene.page();
                scene.system.speculate(cpu, ipa);
                scene.access(cpu, one_of(&[Access::Read, Access::Write, Access::Execute]));
            }
        }
    };
    let threads = [
        on_thread(Box::new(move |scene| scene.run(0, first))),
        on_thread(Box::new(move |scene| scene.run(1, second))),
        on_thread(Box::new(guest(2))),
        on_thread(Box::new(guest(3))),
    ];
    for thread in threads {
        thread.join().expect("the thread ends");
    }
    let scene = Arc::into_inner(scene).expect("the threads have ended");
    scene.finish();
}

fn features(granule: Granule, contiguous: bool, bbm: Bbm) -> Features {
    Features {
        granule,
        contiguous,
        bbm,
        wide_vmids: choose(2) == 0,
        ..Features::armv8_0(40, 48)
    }
}

#[test]
fn without_any_optional_feature() {
    every_pair(ALL, 4, |_| {
        let granule = one_of(&Granule::ALL);
        Layout::small(
            one_of(&[Level::L1, Level::L2]),
            features(granule, false, Bbm::Level0),
        )
    });
}

#[test]
fn with_contiguous_groups() {
    every_pair(ALL, 4, |_| {
        Layout::small(Level::L1, features(Granule::Size4K, true, Bbm::Level0))
    });
}

#[test]
fn with_hardware_access_flag() {
    every_pair(ALL, 4, |_| {
        let features = Features {
            hardware_access: true,
            ..features(one_of(&Granule::ALL), choose(2) == 0, Bbm::Level0)
        };
        Layout::small(Level::L1, features)
    });
}

#[test]
fn with_hardware_dirty_state() {
    every_pair(TRACKED, 8, |_| {
        let features = Features {
            hardware_access: true,
            hardware_dirty: true,
            ..features(one_of(&Granule::ALL), choose(2) == 0, Bbm::Level0)
        };
        Layout::small(Level::L1, features)
    });
}

#[test]
fn with_hardware_dirty_state_of_pages_only() {
    let pairs = (TRACKED_PAGES.len() * TRACKED_PAGES.len()) as u64;
    explore(pairs * 12, move |seed| {
        let features = Features {
            hardware_access: true,
            hardware_dirty: true,
            ..features(
                one_of(&Granule::ALL),
                choose(2) == 0,
                one_of(&[Bbm::Level0, Bbm::Level2]),
            )
        };
        let scene = Scene {
            largest_tracked: one_of(&[Level::L2, Level::L3]),
            ..Scene::new(Layout::small(Level::L1, features))
        };
        race(scene, TRACKED_PAGES, (seed % pairs) as usize);
    });
}

#[test]
fn with_size_changes_by_way_of_nt() {
    // Of real size: nT is an address bit of smaller blocks.
    every_pair(ALL, 1, |_| {
        let features = features(Granule::Size4K, choose(2) == 0, Bbm::Level1);
        Layout::new(features).expect("a layout of real size")
    });
}

#[test]
fn with_size_changes_without_a_break() {
    every_pair(ALL, 4, |_| {
        let granule = one_of(&Granule::ALL);
        Layout::small(Level::L1, features(granule, choose(2) == 0, Bbm::Level2))
    });
}

/// Combinations of what changes the tables or the order of instructions, beside FEAT_BBM's levels.
const COMBINATIONS: u64 = 3 << 5;

/// One of them.
fn combination(number: u64, bbm: Bbm, hardware_dirty: bool) -> Features {
    let has = |bit: u32| (number / 3) >> bit & 1 != 0;
    Features {
        fwb: has(1),
        xnx: has(2),
        hardware_access: hardware_dirty || has(3),
        hardware_dirty,
        ..features(Granule::ALL[(number % 3) as usize], has(0), bbm)
    }
}

fn small(features: Features, number: u64) -> Layout {
    let start = [Level::L1, Level::L2][((number / 3) >> 4 & 1) as usize];
    Layout::small(start, features)
}

#[test]
fn with_every_combination_of_features() {
    every_pair(ALL, COMBINATIONS, |number| {
        small(combination(number, Bbm::Level0, false), number)
    });
    every_pair(ALL, COMBINATIONS, |number| {
        small(combination(number, Bbm::Level2, false), number)
    });
}

#[test]
fn with_every_combination_of_features_and_hardware_dirty_state() {
    every_pair(TRACKED, COMBINATIONS, |number| {
        small(combination(number, Bbm::Level0, true), number)
    });
    every_pair(TRACKED, COMBINATIONS, |number| {
        small(combination(number, Bbm::Level2, true), number)
    });
}

#[test]
fn with_every_granule_of_real_size() {
    some_pairs(24, |number| {
        let bbm = one_of(&[Bbm::Level0, Bbm::Level1, Bbm::Level2]);
        Layout::new(combination(number, bbm, false)).expect("every CPU's sizes")
    });
}

#[test]
fn with_addresses_of_52_bits() {
    some_pairs(24, |number| {
        let wide = Features {
            lpa2: true,
            ipa_bits: 52,
            pa_bits: 52,
            ..combination(number, Bbm::Level0, false)
        };
        Layout::new(wide).expect("a layout of 52 bits")
    });
}
