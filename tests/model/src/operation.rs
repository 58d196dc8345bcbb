//! Every operation of the engine as a value, so that sequences of them can be made up, shrunk and replayed, and what each
//! one reports.
//!
//! [`perform`] runs one on the engine; any number of threads may. [`Reference`](crate::Reference) says what should come
//! of it.

use stage2::{
    Access, Attributes, BadAddress, Descriptor, Epoch, Ipa, IpaRange, Leaf, Level, MapStopped,
    Mapping, OnBlock, Permissions, Request, Resolution, SplitStopped, Stage2, Step, TableMemory,
    Tlb, Worker,
};

/// Why no operation is refused.
const WITHIN: &str = "a ground is whole pages of the IPA space";

use crate::{Backing, Ground, Served, Span, Supply};

/// An operation on a [`Ground`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Operation {
    /// A guest's access that the tables don't allow, or not yet.
    Fault {
        place: u16,
        access: Access,
        backing: Backing,
        largest: Level,
        attributes: Attributes,
        on_write: OnWrite,
    },
    /// A guest's access that needs no exit: hardware notes it.
    Touch {
        place: u16,
        write: bool,
    },
    Map {
        span: Span,
        backing: Backing,
        largest: Level,
        attributes: Attributes,
    },
    Unmap {
        span: Span,
    },
    /// The pages of the span that `only` names, each a range of its own.
    UnmapLeaves {
        span: Span,
        only: Filter,
    },
    Replace {
        span: Span,
        only: Filter,
        backing: Backing,
        attributes: Attributes,
    },
    Protect {
        span: Span,
        permissions: Permissions,
    },
    WriteProtect {
        span: Span,
        only: Filter,
    },
    Age {
        span: Span,
    },
    TestAge {
        span: Span,
    },
    Split {
        span: Span,
        to: Level,
        blocks: u64,
    },
    Collapse {
        span: Span,
        to: Level,
        permissions: Permissions,
    },
    HarvestDirty {
        span: Span,
    },
    FindDirty {
        span: Span,
    },
    TrackWrites {
        span: Span,
        largest: Level,
        only: Filter,
    },
    Lookup {
        place: u16,
    },
    Walk {
        span: Span,
    },
    CleanCaches {
        span: Span,
    },
    Invalidate {
        span: Span,
    },
    /// From here on, frames for tables are as scarce as this.
    Supply(Supply),
}

/// What becomes of a block that is written and may not be yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnWrite {
    /// It becomes writable.
    Whole,
    /// It is split into leaves of this level, of which one becomes writable.
    Split(Level),
    /// It is unmapped but for a leaf of this level.
    Isolate(Level),
}

impl OnWrite {
    /// Those that make a difference.
    pub const ALL: [Self; 5] = [
        Self::Whole,
        Self::Split(Level::L3),
        Self::Split(Level::L2),
        Self::Isolate(Level::L3),
        Self::Isolate(Level::L2),
    ];

    /// How large a leaf may be that becomes writable.
    pub fn largest_written(self) -> Level {
        match self {
            Self::Whole => Level::L0,
            Self::Split(level) | Self::Isolate(level) => level,
        }
    }

    /// What becomes of a larger one.
    pub fn on_block(self) -> OnBlock {
        match self {
            Self::Isolate(_) => OnBlock::Isolate,
            Self::Whole | Self::Split(_) => OnBlock::Split,
        }
    }
}

/// Leaves that an operation is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filter {
    /// All of them.
    All,
    /// Every other page, and blocks.
    EvenPages,
    /// Pages only.
    Pages,
    /// None.
    Nothing,
}

impl Filter {
    /// Whether it names the leaf of `level` at `ipa`, page number `page`.
    pub fn wants(self, page: u64, level: Level) -> bool {
        match self {
            Self::All => true,
            Self::EvenPages => page.is_multiple_of(2),
            Self::Pages => level == Level::L3,
            Self::Nothing => false,
        }
    }

    /// The pages of a range that it names.
    pub fn pages_of(self, range: IpaRange, page_size: u64) -> impl Iterator<Item = IpaRange> {
        let numbers = range.start.get() / page_size..range.end.get() / page_size;
        let wanted = numbers.filter(move |page| self.wants(*page, Level::L3));
        wanted.map(move |page| Ipa::new(page * page_size)..Ipa::new((page + 1) * page_size))
    }
}

/// A leaf, as a test sees it. `contiguous` counts in the tables only: it's dropped before a leaf is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Mapped {
    pub level: Level,
    pub pa: u64,
    pub attributes: Attributes,
    pub accessed: bool,
    pub contiguous: bool,
}

impl Mapped {
    /// What the engine says of a leaf.
    pub fn new(level: Level, leaf: Leaf) -> Self {
        Self {
            level,
            pa: leaf.pa().get(),
            attributes: leaf.attributes(),
            accessed: leaf.accessed(),
            contiguous: leaf.contiguous(),
        }
    }

    /// The same leaf on its own.
    pub fn alone(self) -> Self {
        Self {
            contiguous: false,
            ..self
        }
    }
}

/// What an operation said. Lists are in the order of addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Report {
    Served(Served),
    Mapped {
        done_to: Ipa,
        leaves: u64,
        stopped: Option<MapStopped>,
    },
    /// Leaves with what they were, of which all are mapped to something else now; and how many blocks were met.
    Replaced {
        leaves: Vec<(Ipa, Mapped)>,
        blocks: u64,
    },
    /// Leaves with what they were.
    Leaves(Vec<(Ipa, Mapped)>),
    /// Leaves by their first address and level.
    Places(Vec<(Ipa, Level)>),
    Accessed(bool),
    Split {
        done_to: Ipa,
        blocks: u64,
        failed: bool,
    },
    /// Tables merged, and left; and how many of the blocks were dirty.
    Collapsed {
        blocks: u64,
        left: u64,
        dirty: u64,
    },
    Found(Option<Mapped>),
    /// Pieces of memory, by address and size.
    Cleaned(Vec<(u64, u64)>),
    Nothing,
}

/// Runs an operation on the engine. Where another CPU is in the way of a fault, tries again, as a guest does.
pub fn perform<'w, M: TableMemory, T: Tlb, E: Epoch>(
    stage2: &'w Stage2,
    worker: &Worker<'w, M, T, E>,
    ground: &Ground,
    operation: Operation,
) -> Report {
    match operation {
        Operation::Fault {
            place,
            access,
            backing,
            largest,
            attributes,
            on_write,
        } => {
            let ipa = ground.page(place);
            let request = Request {
                ipa,
                va: None,
                access,
                pa: ground.frame(ipa, backing),
                largest: ground.largest_backed(largest, backing),
                attributes,
                largest_written: on_write.largest_written(),
                on_block: on_write.on_block(),
            };
            Report::Served(fault(stage2, worker, &request))
        }
        Operation::Touch { place, write } => {
            touch(stage2, worker, ground.page(place), write);
            Report::Nothing
        }
        Operation::Map {
            span,
            backing,
            largest,
            attributes,
        } => {
            let range = ground.range(span);
            let mapping = Mapping {
                pa: ground.frame(range.start, backing),
                attributes,
                largest: ground.largest(largest),
            };
            let (mapped, stopped) = match stage2.map(worker, range, mapping, || true) {
                Ok(mapped) => (mapped, None),
                Err(failed) => (failed.mapped, Some(failed.reason)),
            };
            Report::Mapped {
                done_to: mapped.done_to,
                leaves: mapped.leaves,
                stopped,
            }
        }
        Operation::Replace {
            span,
            only,
            backing,
            attributes,
        } => {
            let page_size = stage2.layout().page_size();
            let mut leaves = Vec::new();
            let found = stage2.replace(
                worker,
                ground.range(span),
                |ipa, _| {
                    let wanted = only.wants(ipa.get() / page_size, Level::L3);
                    wanted.then(|| (ground.frame(ipa, backing), attributes))
                },
                |ipa, leaf| leaves.push((ipa, Mapped::new(Level::L3, leaf))),
            );
            let found = found.expect(WITHIN);
            assert!(found.pages <= leaves.len() as u64);
            let blocks = found.blocks;
            Report::Replaced { leaves, blocks }
        }
        Operation::Split { span, to, blocks } => {
            let (split, failed) = match stage2.split(worker, ground.range(span), to, blocks) {
                Ok(split) => (split, false),
                Err(error) => {
                    assert_eq!(error.reason, SplitStopped::OutOfFrames);
                    (error.split, true)
                }
            };
            Report::Split {
                done_to: split.done_to,
                blocks: split.blocks,
                failed,
            }
        }
        Operation::Collapse {
            span,
            to,
            permissions,
        } => {
            let mut dirty = 0;
            let range = ground.range(span);
            let mut lost = 0;
            let collapsed = stage2.collapse(
                worker,
                range,
                ground.largest(to),
                |was_dirty| {
                    dirty += u64::from(was_dirty);
                    permissions
                },
                |_, _, leaf| lost += u64::from(leaf.dirty()),
            );
            let collapsed = collapsed.expect(WITHIN);
            dirty += lost;
            Report::Collapsed {
                blocks: collapsed.blocks,
                left: collapsed.left,
                dirty,
            }
        }
        Operation::Lookup { place } => Report::Found(
            stage2
                .lookup(worker, ground.page(place))
                .map(|(leaf, level)| Mapped::new(level, leaf)),
        ),
        Operation::Unmap { span }
        | Operation::UnmapLeaves { span, .. }
        | Operation::Protect { span, .. }
        | Operation::WriteProtect { span, .. }
        | Operation::Age { span }
        | Operation::TestAge { span }
        | Operation::HarvestDirty { span }
        | Operation::FindDirty { span }
        | Operation::TrackWrites { span, .. }
        | Operation::Walk { span }
        | Operation::CleanCaches { span }
        | Operation::Invalidate { span } => {
            over_range(stage2, worker, ground.range(span), operation).expect(WITHIN)
        }
        Operation::Supply(_) => Report::Nothing,
    }
}

/// Operations that need no more than a range.
fn over_range<'w, M: TableMemory, T: Tlb, E: Epoch>(
    stage2: &'w Stage2,
    worker: &Worker<'w, M, T, E>,
    range: IpaRange,
    operation: Operation,
) -> Result<Report, BadAddress> {
    let page_size = stage2.layout().page_size();
    let mut leaves = Vec::new();
    let mut places = Vec::new();
    Ok(match operation {
        Operation::Unmap { .. } => {
            stage2.unmap(worker, range, |level, ipa, leaf| {
                leaves.push((ipa, Mapped::new(level, leaf).alone()))
            })?;
            leaves.sort_by_key(|(ipa, _)| *ipa);
            Report::Leaves(leaves)
        }
        Operation::UnmapLeaves { only, .. } => {
            let wanted = only.pages_of(range, page_size);
            stage2.unmap_leaves(worker, wanted, |level, ipa, leaf| {
                leaves.push((ipa, Mapped::new(level, leaf).alone()))
            })?;
            Report::Leaves(leaves)
        }
        Operation::Protect { permissions, .. } => {
            stage2.protect(worker, range, permissions, |ipa, level, leaf| {
                leaves.push((ipa, Mapped::new(level, leaf).alone()))
            })?;
            Report::Leaves(leaves)
        }
        Operation::WriteProtect { only, .. } => {
            stage2.write_protect(
                worker,
                range,
                |ipa: Ipa, level| only.wants(ipa.get() / page_size, level),
                |ipa, level| places.push((ipa, level)),
            )?;
            Report::Places(places)
        }
        Operation::Age { .. } => {
            stage2.age(worker, range, |ipa, level| places.push((ipa, level)))?;
            Report::Places(places)
        }
        Operation::TestAge { .. } => Report::Accessed(stage2.test_age(worker, range)?),
        Operation::HarvestDirty { .. } => {
            stage2.harvest_dirty(worker, range, |ipa, level| places.push((ipa, level)))?;
            Report::Places(places)
        }
        Operation::FindDirty { .. } => {
            stage2.find_dirty(
                worker,
                range,
                |_| true,
                |ipa, level, bits| {
                    let found = (0..u64::BITS as u64).filter(|bit| bits & 1 << bit != 0);
                    let span = stage2.layout().span(level);
                    places.extend(found.map(|bit| (ipa.offset(bit * span), level)));
                },
            )?;
            Report::Places(places)
        }
        Operation::TrackWrites { largest, only, .. } => {
            stage2.track_writes(
                worker,
                range,
                largest,
                |ipa: Ipa, level| only.wants(ipa.get() / page_size, level),
                |ipa, level| places.push((ipa, level)),
            )?;
            Report::Places(places)
        }
        Operation::Walk { .. } => {
            stage2.walk(worker, range, |context| match context.descriptor {
                Descriptor::Table(_) => Step::Descend,
                Descriptor::Leaf(leaf) => {
                    leaves.push((context.ipa, Mapped::new(context.level, leaf).alone()));
                    Step::Continue
                }
                Descriptor::Invalid => Step::Continue,
                Descriptor::Locked => Step::Wait,
                Descriptor::Frozen => Step::Restart,
            })?;
            Report::Leaves(leaves)
        }
        Operation::CleanCaches { .. } => {
            let mut cleaned = Vec::new();
            stage2.clean_caches(worker, range, |pa, bytes| cleaned.push((pa.get(), bytes)))?;
            Report::Cleaned(cleaned)
        }
        _ => {
            stage2.invalidate(worker, range)?;
            Report::Nothing
        }
    })
}

/// Serves a fault until it has an outcome.
fn fault<'w, M: TableMemory, T: Tlb, E: Epoch>(
    stage2: &'w Stage2,
    worker: &Worker<'w, M, T, E>,
    request: &Request,
) -> Served {
    loop {
        return match stage2.fault(worker, request) {
            Resolution::Vacant(broken) => {
                // SAFETY: the ground's memory is chosen within its layout's physical addresses.
                if unsafe { stage2.fill(broken, request) }.is_err() {
                    continue;
                }
                Served::Mapped
            }
            Resolution::Relaxed(level) => Served::Relaxed(level),
            Resolution::Split => Served::Split,
            Resolution::Accessed => Served::Accessed,
            Resolution::Spurious => Served::Spurious,
            Resolution::Busy => continue,
            Resolution::NotPermitted => Served::NotPermitted,
            Resolution::OutOfFrames => Served::OutOfFrames,
            Resolution::NotInSpace => Served::NotInSpace,
        };
    }
}

/// What the hardware walker does at an access through a leaf, where the layout has it do so: sets the access flag, and
/// makes a writable-clean leaf writable-dirty.
fn touch<'w, M: TableMemory, T: Tlb, E: Epoch>(
    stage2: &'w Stage2,
    worker: &Worker<'w, M, T, E>,
    page: Ipa,
    write: bool,
) {
    let features = stage2.layout().features();
    if !features.hardware_access {
        return;
    }
    let range = page..page.offset(stage2.layout().page_size());
    stage2
        .walk(worker, range, |context| match context.descriptor {
            Descriptor::Table(_) => Step::Descend,
            Descriptor::Leaf(leaf) => {
                let noted = if write && features.hardware_dirty && leaf.hardware_dirty() {
                    leaf.with_write().with_accessed()
                } else {
                    leaf.with_accessed()
                };
                match context.exchange(Some(noted)) {
                    Ok(()) => Step::Stop,
                    Err(_) => Step::Again,
                }
            }
            Descriptor::Invalid | Descriptor::Locked => Step::Stop,
            Descriptor::Frozen => Step::Restart,
        })
        .expect("a page");
}
