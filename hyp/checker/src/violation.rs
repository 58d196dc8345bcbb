//! The violations that the checker reports.

use crate::conflict::Difference;
use crate::cpus::CpuSet;
use crate::input::{Kind, Promise};
use core::fmt;
use core::ops::Range;

/// An entry of a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The tree's root.
    pub root: u64,
    /// Its VMID, if a CPU has loaded it.
    pub vmid: Option<u16>,
    /// Address of the entry itself.
    pub entry: u64,
    /// The level of its table.
    pub level: u32,
    /// The first address that it is for.
    pub ipa: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "entry {:#x} (level {}, IPA {:#x}, root {:#x}",
            self.entry, self.level, self.ipa, self.root
        )?;
        match self.vmid {
            Some(vmid) => write!(f, ", VMID {vmid})"),
            None => f.write_str(")"),
        }
    }
}

/// What TLBs may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copy {
    /// The value.
    pub value: u64,
    /// The level of the entry that it was read from.
    pub level: u32,
    /// The first address that the entry was for.
    pub ipa: u64,
    /// As what it is held.
    pub kind: Kind,
    /// By whom.
    pub cpus: CpuSet,
}

impl fmt::Display for Copy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} may hold {:#x} of level {} for IPA {:#x} {}",
            self.cpus, self.value, self.level, self.ipa, self.kind
        )
    }
}

/// A rule of the architecture or of the protocol was broken. Numbers are those of the protocol.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Violation {
    /// Rule 2: a valid entry became another valid one that it needs a break for.
    NoBreak {
        /// The entry.
        at: Place,
        /// Who changed it.
        cpu: usize,
        /// What it held.
        old: u64,
        /// What it holds.
        new: u64,
        /// Why it needs a break.
        why: Difference,
    },
    /// Rule 2: a value was made while TLBs may still hold one that excludes it.
    NotInvalidated {
        /// The entry that was made.
        at: Place,
        /// Who made it.
        cpu: usize,
        /// What it holds now.
        new: u64,
        /// What the TLBs may hold.
        held: Copy,
        /// Why the two exclude each other.
        why: Difference,
    },
    /// Leaves of one contiguous group don't agree (Arm ARM D8.7.1).
    Misgrouped {
        /// The entry that was made.
        at: Place,
        /// Who made it.
        cpu: usize,
        /// What it holds now.
        new: u64,
        /// Its neighbour's address.
        neighbour: u64,
        /// What the neighbour holds.
        other: u64,
        /// What differs.
        why: Difference,
    },
    /// Rule 5: a table's frame was freed while walkers can still reach it.
    FreedReachable {
        /// The table, as its first entry.
        at: Place,
        /// Who freed it.
        cpu: usize,
        /// Whose walkers reach it.
        cpus: CpuSet,
        /// Whether the tree itself still leads to it.
        linked: bool,
    },
    /// Rule 10: a guest's memory was freed while TLBs or tables lead to it.
    FreedMapped {
        /// The tree that maps it.
        root: u64,
        /// The memory.
        memory: Range<u64>,
        /// What leads there.
        held: Copy,
    },
    /// Rule 11: a table was linked whose contents the linking CPU has not ordered before the link.
    Unordered {
        /// The link.
        at: Place,
        /// Who linked it.
        cpu: usize,
        /// The table's frame.
        frame: u64,
    },
    /// Rules 3 and 9: an operation returned, and its promise doesn't hold.
    Promise {
        /// The tree.
        root: u64,
        /// The promise.
        promise: Promise,
        /// For which addresses.
        range: Range<u64>,
        /// What breaks it.
        held: Copy,
    },
    /// Rule 9: a page was written, and nothing says so any more.
    LostDirty {
        /// The tree.
        root: u64,
        /// The page.
        ipa: u64,
        /// Who wrote.
        cpu: usize,
    },
    /// Rule 7: a tree is gone, but not all of its tables.
    Leaked {
        /// The tree.
        root: u64,
        /// How many frames are left.
        tables: usize,
        /// One of them.
        frame: u64,
    },
    /// A tree is given up while CPUs have it loaded, or hold entries of it.
    Abandoned {
        /// The tree.
        root: u64,
        /// The CPUs.
        cpus: CpuSet,
        /// Whether they have it in VTTBR_EL2 still.
        loaded: bool,
    },
    /// Rule 12: a CPU walks a tree by a VTCR_EL2 that isn't the tree's.
    OtherRegime {
        /// The tree.
        root: u64,
        /// Who walks.
        cpu: usize,
        /// VTCR_EL2.
        vtcr: u64,
    },
    /// A tree is loaded with a VMID under which the CPU may hold entries of another one.
    VmidReused {
        /// The tree.
        root: u64,
        /// The VMID.
        vmid: u16,
        /// The other tree.
        other: u64,
        /// Who loaded it.
        cpu: usize,
    },
    /// Rule 1: an entry changed without the checker being told: not by an exchange, or in a table that was freed.
    Unannounced {
        /// The entry.
        at: Place,
        /// What it should have held.
        expected: u64,
        /// What it held.
        found: u64,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBreak {
                at,
                cpu,
                old,
                new,
                why,
            } => write!(
                f,
                "rule 2, break-before-make: CPU {cpu} changed {at} from {old:#x} to {new:#x} without a break; {why}"
            ),
            Self::NotInvalidated {
                at,
                cpu,
                new,
                held,
                why,
            } => write!(
                f,
                "rule 2, break-before-make: CPU {cpu} made {at} {new:#x}, but {held}; {why}"
            ),
            Self::Misgrouped {
                at,
                cpu,
                new,
                neighbour,
                other,
                why,
            } => write!(
                f,
                "contiguous group: CPU {cpu} made {at} {new:#x}, but its neighbour for IPA {neighbour:#x} is {other:#x}; {why}"
            ),
            Self::FreedReachable {
                at,
                cpu,
                cpus,
                linked,
            } => write!(
                f,
                "rule 5, free after flush: CPU {cpu} freed the table with {at}, which {} of {cpus} can reach",
                if *linked {
                    "the tree still links and the walkers"
                } else {
                    "cached tables of the walkers"
                }
            ),
            Self::FreedMapped { root, memory, held } => write!(
                f,
                "rule 10, memory after flush: {memory:#x?} was freed, but {held} (root {root:#x})"
            ),
            Self::Unordered { at, cpu, frame } => write!(
                f,
                "rule 11, contents before links: CPU {cpu} linked the table {frame:#x} at {at} with no DSB since it was allocated"
            ),
            Self::Promise {
                root,
                promise,
                range,
                held,
            } => write!(
                f,
                "{promise}: promised for IPAs {:#x} to {:#x} of root {root:#x}, but {held}",
                range.start, range.end
            ),
            Self::LostDirty { root, ipa, cpu } => write!(
                f,
                "rule 9, dirty log: CPU {cpu} wrote IPA {ipa:#x} of root {root:#x} after the last harvest, and nothing says that it is dirty"
            ),
            Self::Leaked {
                root,
                tables,
                frame,
            } => write!(
                f,
                "rule 7, reclamation: {tables} tables of root {root:#x} were never freed, {frame:#x} among them"
            ),
            Self::Abandoned { root, cpus, loaded } => write!(
                f,
                "rule 7, destruction: root {root:#x} is given up, but {cpus} {}",
                if *loaded {
                    "have it in VTTBR_EL2"
                } else {
                    "may hold entries under its VMID"
                }
            ),
            Self::OtherRegime { root, cpu, vtcr } => write!(
                f,
                "rule 12, regimes: CPU {cpu} walks root {root:#x} by VTCR_EL2 {vtcr:#x}, which doesn't fit it"
            ),
            Self::VmidReused {
                root,
                vmid,
                other,
                cpu,
            } => write!(
                f,
                "VMIDs: CPU {cpu} loaded root {root:#x} with VMID {vmid}, under which it may hold entries of root {other:#x}"
            ),
            Self::Unannounced {
                at,
                expected,
                found,
            } => write!(
                f,
                "rule 1, exchanges: {at} held {found:#x} where the last announced value is {expected:#x}"
            ),
        }
    }
}

impl core::error::Error for Violation {}
