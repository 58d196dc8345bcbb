//! The dimensions of the table, and what a row of it says.

use memory::{Ahead, BackingPolicy, Change, Granularity, LogPolicy, Splitting, Tracking};
use model::watched::Equipment;
use stage2::{Bbm, Features, Ipa, Level, PAGE_SIZE, TlbPolicy};
use std::fmt;

/// Pages of a block of 2 MiB, and of one of 1 GiB.
pub const BLOCK: u64 = 512;
pub const GIB: u64 = BLOCK * BLOCK;

/// A choice of each dimension.
#[derive(Clone)]
pub struct Corner {
    pub piece: Level,
    pub log: Log,
    pub second: Second,
    pub place: Place,
    pub cpu: Operator,
    /// Its number among [`MACHINES`].
    pub machine: usize,
    pub frames: Option<usize>,
    /// The first one runs short of frames.
    pub operations: Vec<Operation>,
}

/// How writes to the first slot are logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Log {
    None,
    Pages,
    Blocks,
    InRings,
    InitiallySet,
    HardwarePages,
    HardwareBlocks,
}

/// Who else maps the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Second {
    Nobody,
    Fork,
    SharedObject,
    SameVm,
}

/// Where the first slot lies, in the guest and in its object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// All of the object, at a multiple of 1 GiB.
    Whole,
    /// From the object's second page on, at an address that is as odd: blocks fit further in.
    Odd,
    /// It ends within the object's last block.
    Short,
    /// At an address that is odd in another way than the object's pages: no block fits.
    Skewed,
    /// At a multiple of 2 MiB which none of 1 GiB is: no block of that size fits.
    SkewedByBlock,
}

/// The CPU that does the operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operator {
    /// It has the VM loaded.
    Inside,
    /// It never ran a guest.
    Outside,
}

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    Write,
    WriteGuest,
    Fork,
    EndSecond,
    MoveSlot,
    RemoveSlot,
    Invalidate,
    SwitchLog,
    ClearParts,
    Harvest,
    SplitAhead,
    RestoreBlocks,
    Gather,
    Compact,
    Merge,
    Reclaim,
    Balloon,
    Prefault,
    UnshareRegion,
    ReadOnly,
}

pub const LOGS: [Log; 7] = [
    Log::None,
    Log::Pages,
    Log::Blocks,
    Log::InRings,
    Log::InitiallySet,
    Log::HardwarePages,
    Log::HardwareBlocks,
];
pub const SECONDS: [Second; 4] = [
    Second::Nobody,
    Second::Fork,
    Second::SharedObject,
    Second::SameVm,
];
pub const PLACES: [Place; 5] = [
    Place::Whole,
    Place::Odd,
    Place::Short,
    Place::Skewed,
    Place::SkewedByBlock,
];
pub const OPERATORS: [Operator; 2] = [Operator::Inside, Operator::Outside];
/// How many frames the first operation finds.
pub const FRAMES: [Option<usize>; 6] = [None, Some(0), Some(1), Some(2), Some(4), Some(9)];
pub const OPERATIONS: [Operation; 20] = [
    Operation::Write,
    Operation::WriteGuest,
    Operation::Fork,
    Operation::EndSecond,
    Operation::MoveSlot,
    Operation::RemoveSlot,
    Operation::Invalidate,
    Operation::SwitchLog,
    Operation::ClearParts,
    Operation::Harvest,
    Operation::SplitAhead,
    Operation::RestoreBlocks,
    Operation::Gather,
    Operation::Compact,
    Operation::Merge,
    Operation::Reclaim,
    Operation::Balloon,
    Operation::Prefault,
    Operation::UnshareRegion,
    Operation::ReadOnly,
];

/// What CPUs have, by names.
pub const MACHINES: [(&str, Equipment); 7] = {
    const PLAIN: Features = Features::armv8_0(40, 48);
    const fn by_page(features: Features) -> Equipment {
        Equipment {
            features,
            policy: TlbPolicy {
                range: false,
                level_hint: false,
                most_instructions: 64,
            },
        }
    }
    const fn by_range(features: Features) -> Equipment {
        Equipment {
            policy: TlbPolicy {
                range: true,
                level_hint: true,
                most_instructions: 64,
            },
            ..by_page(features)
        }
    }
    const fn bbm(bbm: Bbm) -> Features {
        Features { bbm, ..PLAIN }
    }
    const HAFDBS: Features = Features {
        hardware_access: true,
        hardware_dirty: true,
        ..PLAIN
    };
    [
        ("Armv8.0", by_page(PLAIN)),
        (
            "FWB, ranges and hints",
            by_range(Features { fwb: true, ..PLAIN }),
        ),
        ("BBM level 1", by_page(bbm(Bbm::Level1))),
        ("BBM level 2, ranges and hints", by_range(bbm(Bbm::Level2))),
        (
            "hardware access flag, ranges and hints",
            by_range(Features {
                hardware_access: true,
                ..PLAIN
            }),
        ),
        (
            "HAFDBS, BBM level 2, groups, ranges and hints",
            by_range(Features {
                bbm: Bbm::Level2,
                contiguous: true,
                ..HAFDBS
            }),
        ),
        (
            "16-bit VMIDs, hints",
            Equipment {
                policy: TlbPolicy {
                    range: false,
                    level_hint: true,
                    most_instructions: 8,
                },
                ..by_page(Features {
                    wide_vmids: true,
                    ..PLAIN
                })
            },
        ),
    ]
};

impl Corner {
    /// How many choices there are of each dimension but the piece and what is done, as a row has them.
    pub const SIZES: [usize; 6] = [
        LOGS.len(),
        SECONDS.len(),
        PLACES.len(),
        OPERATORS.len(),
        MACHINES.len(),
        FRAMES.len(),
    ];

    /// The corner of a row.
    pub fn new(piece: Level, row: &[usize], operations: Vec<Operation>) -> Self {
        Self {
            piece,
            log: LOGS[row[0]],
            second: SECONDS[row[1]],
            place: PLACES[row[2]],
            cpu: OPERATORS[row[3]],
            machine: row[4],
            frames: FRAMES[row[5]],
            operations,
        }
    }

    /// Pages of the memory.
    pub fn pages(&self) -> u64 {
        match self.piece {
            Level::L1 => GIB,
            _ => 3 * BLOCK,
        }
    }

    /// Where the first slot begins, its first page of the memory, and how many it has.
    pub fn place(&self) -> (Ipa, u64, u64) {
        let (whole, odd) = (Ipa::new(0x4000_0000), Ipa::new(0x5000_1000));
        let pages = self.pages();
        match self.place {
            Place::Whole => (whole, 0, pages),
            Place::Odd => (odd, 1, pages - 2),
            Place::Short => (whole, 0, pages - 7),
            Place::Skewed => (odd, 0, pages),
            Place::SkewedByBlock => (whole.offset(BLOCK * PAGE_SIZE), 0, pages),
        }
    }

    /// What the machine's CPUs have: hardware that notes writes if the log wants that.
    pub fn equipment(&self) -> Equipment {
        let (_, equipment) = MACHINES[self.machine];
        let hardware = self.is_by_hardware() || equipment.features.hardware_dirty;
        Equipment {
            features: Features {
                hardware_access: hardware || equipment.features.hardware_access,
                hardware_dirty: hardware,
                ..equipment.features
            },
            ..equipment
        }
    }

    pub fn is_by_hardware(&self) -> bool {
        matches!(self.log, Log::HardwarePages | Log::HardwareBlocks)
    }

    /// How changes of backing reach the tables: on one of the machines by unmapping.
    pub fn backing(&self) -> BackingPolicy {
        let change = match self.machine {
            0 => Change::Unmap,
            _ => Change::Direct,
        };
        BackingPolicy {
            change,
            ..BackingPolicy::default()
        }
    }

    /// How the first slot is logged, if it is.
    pub fn policy(&self) -> Option<LogPolicy> {
        let pages = LogPolicy::default();
        let hardware = LogPolicy {
            tracking: Tracking::Hardware,
            ..pages
        };
        let blocks = |policy| LogPolicy {
            granularity: Granularity::Block2M,
            ..policy
        };
        Some(match self.log {
            Log::None => return None,
            Log::Pages => pages,
            Log::Blocks => LogPolicy {
                splitting: Splitting::None,
                ..blocks(pages)
            },
            Log::InRings => LogPolicy {
                ring: true,
                ..pages
            },
            Log::InitiallySet => LogPolicy {
                initially_set: true,
                splitting: Splitting::Eager(AHEAD),
                ..pages
            },
            Log::HardwarePages => hardware,
            Log::HardwareBlocks => blocks(hardware),
        })
    }
}

/// How blocks are split ahead of faults.
pub const AHEAD: Ahead = Ahead {
    chunk: 2 << 20,
    reserve: 0,
};

impl fmt::Display for Corner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let piece = match self.piece {
            Level::L1 => "1 GiB",
            Level::L2 => "2 MiB",
            _ => "4 KiB",
        };
        write!(
            f,
            "[{piece}; log: {:?}; second: {:?}; place: {:?}; operator: {:?}; CPUs: {}; frames: ",
            self.log, self.second, self.place, self.cpu, MACHINES[self.machine].0
        )?;
        match self.frames {
            Some(frames) => write!(f, "{frames}")?,
            None => f.write_str("enough")?,
        }
        write!(f, "; {:?}]", self.operations)
    }
}
