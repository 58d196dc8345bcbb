//! The plan of a guest: image, vCPUs, memory, and layout of its tables. Constant while it runs.

use crate::board::GuestBoard;
use crate::error::RunError;
use crate::machine::{Device, Facts};
use crate::options::TEST_MEMORY;
use crate::request::Request;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use memory::{BackingPolicy, Object, SlotConfig, SlotId, VmId};
use records::image::GuestImage;
use records::words::{Backing, CpuFeature};
use stage2::{Features, Ipa, IpaRange, Layout, Level, PAGE_SIZE};
use vm::OfferedFeatures;

/// Where a guest's RAM begins.
pub const RAM: Ipa = Ipa::new(records::options::RAM);
/// The slot of RAM.
pub const RAM_SLOT: SlotId = SlotId(0);
/// The slot of memory that the guest isn't told of.
pub const UNSEEN_SLOT: SlotId = SlotId(u16::MAX as u32);
/// The slot of the times stolen from vCPUs, which the guest reads only.
pub const STOLEN_TIME_SLOT: SlotId = SlotId(u16::MAX as u32 - 1);
/// The slot of the flash memory that firmware starts in.
pub const FLASH_SLOT: SlotId = SlotId(u16::MAX as u32 - 2);
/// The slot of a device's first registers; the others' follow.
const DEVICE_SLOT: u32 = 1 << 16;
/// The default address space of a guest in bits, as in Linux KVM; larger if needed.
const USUAL_IPA_BITS: u32 = 40;
/// The most address bits in descriptors without FEAT_LPA2.
const NARROW_BITS: u32 = 48;

/// The level whose entries map pieces of this backing.
pub(super) const fn level(backing: Backing) -> Level {
    match backing {
        Backing::Page4K => Level::L3,
        Backing::Block2M => Level::L2,
        Backing::Block1G => Level::L1,
    }
}

/// A slot of test memory. Slots are adjacent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TestSlot {
    /// Its name.
    pub id: SlotId,
    /// Its first page, counted from the start of the test memory.
    pub first_page: u64,
    /// Its pages.
    pub pages: u64,
}

impl TestSlot {
    /// The addresses that it covers.
    pub fn range(&self) -> IpaRange {
        let start = Ipa::new(TEST_MEMORY).offset(self.first_page * PAGE_SIZE);
        start..start.offset(self.pages * PAGE_SIZE)
    }

    /// Words of its bitmap.
    pub fn words(&self) -> usize {
        self.pages.div_ceil(u64::BITS.into()) as usize
    }
}

/// The plan of a guest.
#[derive(Clone, Debug)]
pub struct GuestPlan<'p> {
    /// Its number among the VMs.
    pub vm: VmId,
    /// Its image.
    pub image: GuestImage<'p>,
    /// The object with the image for all guests that start from it: their RAM shares its frames. Without it the guest gets a
    /// copy.
    pub kernel: Option<Arc<Object>>,
    /// The same of its initial ramdisk, if its [board](Self::board) has one.
    pub ramdisk: Option<Arc<Object>>,
    /// Its board, if it has interrupts and emulated devices.
    pub board: Option<GuestBoard<'p>>,
    /// Its command line.
    pub bootargs: &'p str,
    /// Its vCPUs.
    pub vcpus: usize,
    /// The CPUs that run them, if it has some of its own.
    pub cpus: Option<Range<usize>>,
    /// CPUs without a vCPU that share CPU 0's work on its memory
    /// ([`RunningGuest::share_work`](crate::RunningGuest::share_work)). Nobody else gets them while it runs.
    pub helpers: usize,
    /// The size of its RAM, a multiple of the backing's.
    pub ram: u64,
    /// The backing of its RAM.
    pub ram_backing: Backing,
    /// The slots of its test memory, if it has any.
    pub test: Vec<TestSlot>,
    /// The backing of its test memory.
    pub test_backing: Backing,
    /// Whether its test memory is allocated at first touch.
    pub lazy: bool,
    /// Whether it has all of its RAM before it starts.
    pub prefault: bool,
    /// The limit on its own memory, in bytes, if there is one.
    pub limit: Option<u64>,
    /// How its tables follow changes of backing.
    pub policy: BackingPolicy,
    /// The devices assigned to it, unless its [board](Self::board) has them.
    pub devices: Vec<Device>,
    /// The size of memory that the guest isn't told of, a multiple of the RAM's backing, at [`Self::unseen_start`].
    pub unseen: u64,
    /// Whether its tables have hardware dirty state.
    pub hardware_dirty: bool,
    /// The entries of each vCPU's dirty ring, if they have any.
    pub ring_entries: Option<usize>,
    /// Whether its vCPUs measure their longest exits.
    pub exit_times: bool,
    /// The size of its address space, if it was requested.
    pub ipa_bits: Option<u32>,
    /// The features of the CPU that it has besides the usual ones.
    pub cpu_features: Vec<CpuFeature>,
    /// How long it may run without progress, in seconds.
    pub timeout: u64,
}

impl<'p> GuestPlan<'p> {
    /// For the guest of a request, with `ram` bytes of RAM in blocks of 2 MiB and nothing beyond.
    pub fn of(request: &Request<'p>, vm: VmId, ram: u64) -> Self {
        let options = &request.options;
        Self {
            vm,
            image: request.image,
            kernel: None,
            ramdisk: None,
            board: None,
            bootargs: request.bootargs,
            vcpus: options.vcpus,
            cpus: None,
            helpers: 0,
            ram,
            ram_backing: Backing::Block2M,
            test: Vec::new(),
            test_backing: options.backing,
            lazy: false,
            prefault: false,
            limit: None,
            policy: BackingPolicy::default(),
            devices: Vec::new(),
            unseen: 0,
            hardware_dirty: false,
            ring_entries: None,
            exit_times: false,
            ipa_bits: options.ipa_bits,
            cpu_features: options.cpu_features.clone(),
            timeout: options.timeout,
        }
    }

    /// The same guest, limited so that its memory use is `percent` of the limit; unlimited at 100. Where there is test memory,
    /// the RAM doesn't count.
    pub fn limited_to(self, percent: u64) -> Self {
        let test: u64 = self.test.iter().map(|slot| slot.pages * PAGE_SIZE).sum();
        let limit = (percent > 100).then(|| match test {
            0 => self.ram / percent * 100,
            _ => self.ram + test / percent * 100,
        });
        Self { limit, ..self }
    }

    /// The features that its VM offers, of what such a machine has.
    pub(super) fn offered(&self, facts: &Facts) -> Result<OfferedFeatures, RunError> {
        let mut offered = OfferedFeatures::default();
        for feature in &self.cpu_features {
            match feature {
                CpuFeature::Debug => offered.debug = true,
                CpuFeature::Sve if facts.vector_bytes != 0 => {
                    offered.vector_bytes = facts.vector_bytes;
                }
                CpuFeature::Sve => {
                    let why = "the CPUs don't have it";
                    return Err(RunError::NoCpuFeature(*feature, why));
                }
                CpuFeature::Pmu => {
                    let missing = |why| RunError::NoCpuFeature(*feature, why);
                    facts.pmu.map_err(missing)?;
                    offered.pmu = true;
                }
            }
        }
        Ok(offered)
    }

    /// The memory listed in its device tree.
    pub(super) fn memory(&self) -> Vec<IpaRange> {
        let test = Ipa::new(TEST_MEMORY);
        let mut memory = Vec::from([RAM..RAM.offset(self.ram)]);
        memory.extend((!self.test.is_empty()).then(|| test..self.test_end()));
        memory
    }

    /// The machine's devices that it has.
    pub(super) fn assigned(&self) -> impl Iterator<Item = &Device> {
        let board = self.board.iter().flat_map(GuestBoard::assigned);
        self.devices.iter().chain(board)
    }

    /// The slots of the devices, and of the registers of the interrupt controller that the guest accesses itself.
    pub(super) fn device_slots(&self) -> impl Iterator<Item = SlotConfig> + '_ {
        let registers = self.assigned().flat_map(|device| &device.registers);
        let board = self.board.iter();
        let registers = registers.chain(board.flat_map(|board| &board.cpu_interface));
        (DEVICE_SLOT..).zip(registers).map(|(number, registers)| {
            let start = Ipa::new(registers.start);
            whole(SlotId(number), start, registers.object.clone())
        })
    }

    /// The end of the test memory.
    pub(super) fn test_end(&self) -> Ipa {
        let last = self.test.last().map(|slot| slot.range().end);
        last.unwrap_or(Ipa::new(TEST_MEMORY))
    }

    /// The start of the memory that the guest isn't told of: behind all else.
    pub fn unseen_start(&self) -> Ipa {
        let end = self.test_end().max(RAM.offset(self.ram));
        Ipa::new(end.get().next_multiple_of(self.ram_backing.bytes()))
    }

    /// The layout of its tables, within `possible`. Uses FEAT_LPA2's larger addresses only if its own address space needs them,
    /// and dirty state if requested; contiguous groups not yet, as nothing here uses them.
    pub(super) fn layout(&self, possible: &Features) -> Result<Layout, RunError> {
        let devices = self.device_slots();
        let devices = devices.map(|slot| slot.start.get() + slot.bytes);
        let end = self.unseen_start().get() + self.unseen;
        let end = devices.fold(end, u64::max);
        let needed = u64::BITS - end.saturating_sub(1).leading_zeros();
        let usual = USUAL_IPA_BITS.max(needed).min(possible.ipa_bits);
        let ipa_bits = self.ipa_bits.unwrap_or(usual);
        Ok(Layout::new(Features {
            ipa_bits,
            lpa2: possible.lpa2 && ipa_bits > NARROW_BITS,
            hardware_dirty: possible.hardware_dirty && self.hardware_dirty,
            contiguous: false,
            ..*possible
        })?)
    }
}

/// All of an object as a slot.
pub(super) fn whole(id: SlotId, start: Ipa, object: Arc<Object>) -> SlotConfig {
    SlotConfig {
        id,
        start,
        offset: 0,
        bytes: object.bytes(),
        object,
        read_only: false,
        write_faults: false,
    }
}
