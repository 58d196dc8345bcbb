//! The attributes of a mapping, apart from its address, and their bits in a leaf.

use super::{
    ACCESSED, EXECUTE_SHIFT, FORCED_WRITE_BACK, HARDWARE_DIRTY, INNER_SHAREABLE, Leaf, MAY_WRITE,
    MEMORY_TYPE_SHIFT, S2AP_READ, S2AP_WRITE, TABLE_OR_PAGE, VALID,
};
use crate::address::{Level, Pa};
use crate::features::{Features, Format};

/// Who may execute from a mapping. EL0 and EL1 differ only with FEAT_XNX; without it, a mapping is executable at both or at
/// none. The values are those of `XN[1:0]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Execute {
    /// EL0 and EL1.
    Everywhere = 0b00,
    /// EL0 only.
    AtEl0 = 0b01,
    /// Nobody.
    Nowhere = 0b10,
    /// EL1 only.
    AtEl1 = 0b11,
}

/// A guest's permissions for a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Permissions {
    /// Writable now. With `hardware_dirty`: dirty.
    pub write: bool,
    /// A fault may make it writable. Always set where `write` is.
    pub may_write: bool,
    /// Who executes.
    pub execute: Execute,
    /// Hardware makes it writable at the first write, which then shows in `write` (FEAT_HAFDBS). Without that feature it has no
    /// effect, and the first write faults.
    pub hardware_dirty: bool,
}

impl Permissions {
    /// Readable, writable, executable: ordinary RAM.
    pub const RAM: Self = Self {
        write: true,
        may_write: true,
        execute: Execute::Everywhere,
        hardware_dirty: false,
    };
    /// As [`Self::RAM`], but the first write faults: RAM whose writes are logged.
    pub const LOGGED: Self = Self {
        write: false,
        ..Self::RAM
    };
    /// As [`Self::RAM`], but the first write is recorded by hardware.
    pub const LOGGED_BY_HARDWARE: Self = Self {
        hardware_dirty: true,
        ..Self::LOGGED
    };
    /// Never writable.
    pub const READ_ONLY: Self = Self {
        may_write: false,
        ..Self::LOGGED
    };
}

/// The memory type for a guest (stage 1 can only make it stricter, but for FEAT_S2FWB's forced write-back). The values are
/// those of `MemAttr[3:0]` without FEAT_S2FWB.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum MemoryType {
    /// Device-nGnRnE: the strictest.
    DeviceNgnrne = 0b0000,
    /// Device-nGnRE: early write acknowledgement allowed.
    DeviceNgnre = 0b0001,
    /// Normal, not cacheable.
    NonCacheable = 0b0101,
    /// Normal, inner and outer write-back cacheable; forced where the layout has FEAT_S2FWB.
    WriteBack = 0b1111,
}

/// The attributes of a mapping: all but its address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Attributes {
    /// The memory type.
    pub memory: MemoryType,
    /// What the guest may do.
    pub permissions: Permissions,
}

impl Attributes {
    /// Write-back memory.
    pub const fn memory(permissions: Permissions) -> Self {
        Self {
            memory: MemoryType::WriteBack,
            permissions,
        }
    }
}

impl Permissions {
    /// How many there are.
    pub(super) const COUNT: usize = 1 << 5;

    /// The same, with hardware tracking writes.
    #[must_use]
    pub(crate) const fn tracked(self) -> Self {
        Self {
            hardware_dirty: true,
            ..self
        }
    }

    /// A unique number for each combination of permissions.
    #[inline(always)]
    pub(super) const fn number(self) -> usize {
        (self.write as usize
            | (self.may_write as usize) << 1
            | (self.hardware_dirty as usize) << 2
            | (self.execute as usize) << 3)
            % Self::COUNT
    }

    /// The descriptor's bits for the permissions with a number.
    const fn encode(number: usize, xnx: bool, tracking: bool) -> u64 {
        let write = number & 1 != 0;
        let may_write = write || number & 1 << 1 != 0;
        let execute = (number >> 3) as u64;
        let execute = if xnx || execute == 0 {
            execute
        } else {
            Execute::Nowhere as u64
        };
        let mut bits = execute << EXECUTE_SHIFT;
        if write {
            bits |= S2AP_WRITE;
        }
        if may_write {
            bits |= MAY_WRITE;
        }
        if may_write && tracking && number & 1 << 2 != 0 {
            bits |= HARDWARE_DIRTY;
        }
        bits
    }
}

/// The parts of leaf words, computed once for a layout: mapping is in the fault path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LeafBits {
    /// Of every leaf: valid, readable, accessed, shareability.
    pub(super) leaf: u64,
    /// The memory type of write-back memory.
    pub(super) write_back: u64,
    /// Permissions, by their numbers.
    pub(super) permissions: [u64; Permissions::COUNT],
}

impl LeafBits {
    pub(crate) const fn new(format: Format, features: &Features) -> Self {
        let mut permissions = [0; Permissions::COUNT];
        let mut number = 0;
        while number < permissions.len() {
            permissions[number] =
                Permissions::encode(number, features.xnx, features.hardware_dirty);
            number += 1;
        }
        let shareable = if matches!(format, Format::Lpa2) {
            0
        } else {
            INNER_SHAREABLE
        };
        Self {
            leaf: VALID | S2AP_READ | ACCESSED | shareable,
            write_back: if features.fwb {
                FORCED_WRITE_BACK
            } else {
                (MemoryType::WriteBack as u64) << MEMORY_TYPE_SHIFT
            },
            permissions,
        }
    }

    /// A leaf of `level` that maps `pa`, which is aligned to its size, accessed, in no contiguous group.
    #[inline]
    pub(crate) const fn leaf(
        &self,
        format: Format,
        level: Level,
        pa: Pa,
        attributes: Attributes,
    ) -> Leaf {
        let kind = if matches!(level, Level::L3) {
            TABLE_OR_PAGE
        } else {
            0
        };
        let memory = match attributes.memory {
            MemoryType::WriteBack => self.write_back,
            memory => (memory as u64) << MEMORY_TYPE_SHIFT,
        };
        let permissions = self.permissions(attributes.permissions);
        Leaf {
            word: self.leaf | kind | memory | permissions | format.address_bits(pa),
            format,
        }
    }

    /// The bits of these permissions, as far as the tables have the features for them.
    #[inline(always)]
    pub(crate) const fn permissions(&self, permissions: Permissions) -> u64 {
        self.permissions[permissions.number()]
    }
}
