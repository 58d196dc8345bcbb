//! Where the guest says that its tables are: the command queue, the properties of LPIs, and those that the ITS would keep devices
//! and collections in, of which only the size counts.

use super::{DEVICE_TABLE, GuestTables, Its};
use crate::sync::Ordering;
use crate::word::FIRST_LPI;

const PAGE: u64 = 4 << 10;
pub(crate) const VALID: u64 = 1 << 63;
/// GITS_BASER.Indirect: the table has two levels.
pub(crate) const INDIRECT: u64 = 1 << 62;
/// The size of an entry of either table.
pub(crate) const ENTRY_BYTES: u64 = 8;
/// GITS_CBASER and GITS_BASER: the address, and the number of pages less one.
const ADDRESS: u64 = ((1 << 52) - 1) & !(PAGE - 1);
const PAGES: u64 = 0xff;
/// Bits of GITS_BASER's address, with pages of 4 KiB.
pub(crate) const BASER_ADDRESS: u64 = ((1 << 48) - 1) & !(PAGE - 1);
/// The size of a command.
const COMMAND_BYTES: u64 = 32;
/// A command's bytes, which are copied by words.
#[repr(align(8))]
struct Aligned([u8; COMMAND_BYTES as usize]);

/// GICR_PROPBASER.IDbits and GICR_PENDBASER's address.
const PROPERTY_ID_BITS: u64 = 0x1f;
const PENDING_ADDRESS: u64 = ((1 << 52) - 1) & !((64 << 10) - 1);
/// GICR_PENDBASER.PTZ: the table is zero.
pub(crate) const PENDING_ZERO: u64 = 1 << 62;

/// GICR_PROPBASER and GICR_PENDBASER.
const PROPERTIES_MASK: u64 = 7 << 56 | ((1 << 52) - 1) & !0xfff | 7 << 7 | 3 << 10 | 0x1f;
const PENDING_MASK: u64 = PENDING_ZERO | 7 << 56 | ((1 << 52) - 1) & !0xffff | 7 << 7 | 3 << 10;

/// The pending bits of all LPIs.
pub(crate) type PendingBits = [u8; super::LPIS as usize / 8];

impl Its {
    /// How many commands the queue has room for: none where it isn't valid.
    pub(crate) fn queue_length(&self) -> u64 {
        let base = self.commands.load(Ordering::Relaxed);
        if base & VALID == 0 {
            return 0;
        }
        ((base & PAGES) + 1) * (PAGE / COMMAND_BYTES)
    }

    pub(crate) fn queue_address(&self) -> Option<u64> {
        let base = self.commands.load(Ordering::Relaxed);
        (base & VALID != 0).then_some(base & ADDRESS)
    }

    /// Whether the guest's table has room for a device.
    pub(crate) fn holds_device(&self, device: u32) -> bool {
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
    pub(crate) fn property(&self, intid: u32, memory: &dyn GuestTables) -> u8 {
        let base = self.properties.load(Ordering::Relaxed);
        let bits = (base & PROPERTY_ID_BITS) + 1;
        let mut property = [0];
        let address = (base & ADDRESS) + u64::from(intid - FIRST_LPI);
        let is_there = u64::from(intid) >> bits == 0 && memory.read(address, &mut property);
        if is_there { property[0] } else { 0 }
    }

    /// The LPIs that the guest says are pending at a vCPU, whose redistributor is told to forward them.
    pub(crate) fn pending_bits(&self, vcpu: usize, memory: &dyn GuestTables) -> PendingBits {
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

impl Its {
    /// The vCPU of a collection.
    pub(crate) fn vcpu_of(&self, collection: u32) -> Option<usize> {
        let vcpu = self.collections.get(collection as usize)?;
        (vcpu.load(Ordering::Relaxed) as usize).checked_sub(1)
    }

    pub(crate) fn map_collection(&self, collection: u32, vcpu: Option<usize>) {
        if let Some(word) = self.collections.get(collection as usize) {
            let vcpu = vcpu.map_or(0, |vcpu| vcpu as u64 + 1);
            word.store(vcpu, Ordering::Relaxed);
        }
    }

    /// Whether a device is mapped, and has this event.
    pub(crate) fn has_event(&self, device: u32, event: u32) -> bool {
        let bits = self.devices.get(device as usize);
        let bits = bits.map_or(0, |bits| bits.load(Ordering::Relaxed));
        bits != 0 && u64::from(event) >> bits == 0
    }

    pub(crate) fn map_device(&self, device: u32, event_bits: u64) {
        if let Some(word) = self.devices.get(device as usize) {
            word.store(event_bits, Ordering::Relaxed);
        }
    }

    /// The command at a place of the queue. `None` where there is no memory.
    pub(crate) fn command(&self, index: u64, memory: &dyn GuestTables) -> Option<[u64; 4]> {
        let mut command = Aligned([0; COMMAND_BYTES as usize]);
        let bytes = &mut command.0;
        let address = self.queue_address()?.checked_add(index * COMMAND_BYTES)?;
        if !memory.read(address, bytes) {
            return None;
        }
        let (words, _) = bytes.as_chunks::<8>();
        let mut words = words.iter().copied().map(u64::from_le_bytes);
        Some([(); 4].map(|()| words.next().unwrap_or(0)))
    }

    pub(crate) fn forget_devices(&self) {
        for word in &self.devices {
            word.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn forget_collections(&self) {
        for word in &self.collections {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// GICR_PROPBASER.
    pub(crate) fn properties(&self) -> u64 {
        self.properties.load(Ordering::Acquire)
    }

    pub(crate) fn set_properties(&self, value: u64) {
        self.properties
            .store(value & PROPERTIES_MASK, Ordering::Release);
    }

    /// Whether any vCPU's redistributor forwards LPIs.
    pub(crate) fn is_in_use(&self) -> bool {
        (0..self.redistributors.len()).any(|vcpu| self.forwards_lpis(vcpu))
    }

    /// GICR_PENDBASER.
    pub(crate) fn pending_table(&self, vcpu: usize) -> u64 {
        let one = self.redistributors.get(vcpu);
        one.map_or(0, |one| one.pending.load(Ordering::Relaxed))
    }

    pub(crate) fn set_pending_table(&self, vcpu: usize, value: u64) {
        if let Some(one) = self.redistributors.get(vcpu) {
            one.pending.store(value & PENDING_MASK, Ordering::Relaxed);
        }
    }

    /// GICR_CTLR.EnableLPIs. Returns whether that changes anything.
    pub(crate) fn set_forwards_lpis(&self, vcpu: usize, forwards: bool) -> bool {
        let one = self.redistributors.get(vcpu);
        // The vCPU is called afterwards, and acquires this by its door.
        one.is_some_and(|one| {
            one.enabled.swap(u64::from(forwards), Ordering::AcqRel) != u64::from(forwards)
        })
    }
}
