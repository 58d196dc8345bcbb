//! Where the guest says that its tables are: the command queue, the properties of LPIs, and those that the ITS would keep devices
//! and collections in, of which only the size counts.

use super::{DEVICE_TABLE, GuestTables, Its};
use crate::sync::Ordering;
use crate::word::FIRST_LPI;

const PAGE: u64 = 4 << 10;
pub(super) const VALID: u64 = 1 << 63;
/// GITS_BASER.Indirect: the table has two levels.
pub(super) const INDIRECT: u64 = 1 << 62;
/// The size of an entry of either table.
pub(super) const ENTRY_BYTES: u64 = 8;
/// GITS_CBASER and GITS_BASER: the address, and the number of pages less one.
const ADDRESS: u64 = ((1 << 52) - 1) & !(PAGE - 1);
const PAGES: u64 = 0xff;
/// Bits of GITS_BASER's address, with pages of 4 KiB.
pub(super) const BASER_ADDRESS: u64 = ((1 << 48) - 1) & !(PAGE - 1);
/// The size of a command.
const COMMAND_BYTES: u64 = 32;

/// GICR_PROPBASER.IDbits and GICR_PENDBASER's address.
const PROPERTY_ID_BITS: u64 = 0x1f;
const PENDING_ADDRESS: u64 = ((1 << 52) - 1) & !((64 << 10) - 1);
/// GICR_PENDBASER.PTZ: the table is zero.
pub(crate) const PENDING_ZERO: u64 = 1 << 62;

/// The pending bits of all LPIs.
pub(super) type PendingBits = [u8; super::LPIS as usize / 8];

impl Its {
    /// How many commands the queue has room for: none where it isn't valid.
    pub(super) fn queue_length(&self) -> u64 {
        let base = self.commands.load(Ordering::Relaxed);
        if base & VALID == 0 {
            return 0;
        }
        ((base & PAGES) + 1) * (PAGE / COMMAND_BYTES)
    }

    pub(super) fn queue_address(&self) -> Option<u64> {
        let base = self.commands.load(Ordering::Relaxed);
        (base & VALID != 0).then_some(base & ADDRESS)
    }

    /// Whether the guest's table has room for a device.
    pub(super) fn holds_device(&self, device: u32) -> bool {
        let base = self.tables[DEVICE_TABLE].load(Ordering::Relaxed);
        let entries = ((base & PAGES) + 1) * (PAGE / ENTRY_BYTES);
        let entries = if base & INDIRECT == 0 {
            entries
        } else {
            entries * (PAGE / ENTRY_BYTES)
        };
        base & VALID != 0 && u64::from(device) < entries
    }

    /// What the guest's table says of an LPI: its priority, and whether it is enabled. Disabled, where there is no table.
    pub(super) fn property(&self, intid: u32, memory: &dyn GuestTables) -> u8 {
        let base = self.properties.load(Ordering::Relaxed);
        let bits = (base & PROPERTY_ID_BITS) + 1;
        let mut property = [0];
        let address = (base & ADDRESS) + u64::from(intid - FIRST_LPI);
        let is_there = u64::from(intid) >> bits == 0 && memory.read(address, &mut property);
        if is_there { property[0] } else { 0 }
    }

    /// The LPIs that the guest says are pending at a vCPU, whose redistributor is told to forward them.
    pub(super) fn pending_bits(&self, vcpu: usize, memory: &dyn GuestTables) -> PendingBits {
        let mut bits: PendingBits = [0; _];
        let base = self.redistributors.get(vcpu);
        let base = base.map_or(PENDING_ZERO, |one| one.pending.load(Ordering::Relaxed));
        let address = (base & PENDING_ADDRESS) + u64::from(FIRST_LPI) / 8;
        if base & PENDING_ZERO != 0 || !memory.read(address, &mut bits) {
            return [0; _];
        }
        bits
    }
}
