//! What all vCPUs of a VM share: a word for each interrupt, a door for each vCPU.

use crate::config::{
    Forwarded, Frame, MAX_SPIS, MAX_VCPUS, Version, VgicConfig, VgicError, reserve,
};
use crate::door::{CALL, COMMANDS, Door, ON, SGIS};
use crate::its::Its;
use crate::sgi::sources::Sources;
use crate::sync::{AtomicU64, Ordering};
use crate::word::{FIRST_LPI, FIRST_PPI, FIRST_SPI, Word};
use alloc::vec::Vec;
use core::array;
use core::ops::Range;

/// The length of the distributor and of half a redistributor.
const FRAME_BYTES: u64 = 64 << 10;
/// The length of a GICv2's distributor.
const V2_BYTES: u64 = 4 << 10;
/// Under the model checker there are a few of each kind, as it pays for every word.
const PRIVATE_INTERRUPTS: usize = if cfg!(loom) { 8 } else { 32 };
const MOST_WORDS: usize = if cfg!(loom) { 3 } else { MAX_SPIS };

/// What others see of a vCPU.
#[derive(Debug)]
pub(crate) struct SharedVcpu {
    pub(crate) door: Door,
    /// Who has sent the SGIs of a GICv2.
    pub(crate) sources: Sources,
    private: [AtomicU64; PRIVATE_INTERRUPTS],
    pub(crate) affinity: u32,
    /// ProcessorSleep of GICR_WAKER.
    pub(crate) asleep: AtomicU64,
}

/// The virtual GIC of a VM.
#[derive(Debug)]
pub struct Vgic {
    pub(crate) version: Version,
    pub(crate) vcpus: Vec<SharedVcpu>,
    pub(crate) spis: Vec<AtomicU64>,
    pub(crate) its: Option<Its>,
    /// GICD_CTLR.EnableGrp0 and EnableGrp1.
    groups: AtomicU64,
    /// How many words have SYNC (rule V9).
    pub(crate) unsettled: AtomicU64,
    /// vCPUs by affinity.
    by_affinity: Vec<(u32, u16)>,
    pub(crate) forwarded: Vec<Forwarded>,
    /// The bits of a priority that there are.
    pub(crate) priority_mask: u8,
    distributor: u64,
    redistributors: u64,
}

impl Vgic {
    /// One in its reset state.
    ///
    /// # Errors
    /// There is no such GIC, or no memory for it.
    pub fn new(config: &VgicConfig<'_>) -> Result<Self, VgicError> {
        config.check()?;
        let mut by_affinity = Vec::new();
        reserve(&mut by_affinity, config.vcpus)?;
        by_affinity.extend((0..config.vcpus).map(|vcpu| ((config.affinity)(vcpu), vcpu as u16)));
        by_affinity.sort_unstable();
        if let Some((affinity, _)) = by_affinity.iter().find(|(affinity, _)| affinity >> 24 != 0) {
            return Err(VgicError::Affinity(*affinity));
        }
        if let Some(twice) = by_affinity.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(VgicError::Affinity(twice[0].0));
        }
        let mut forwarded = Vec::new();
        reserve(&mut forwarded, config.forwarded.len())?;
        forwarded.extend_from_slice(config.forwarded);
        let mut vgic = Self {
            version: config.version,
            vcpus: Vec::new(),
            spis: Vec::new(),
            its: None,
            groups: AtomicU64::new(0),
            unsettled: AtomicU64::new(0),
            by_affinity,
            forwarded,
            priority_mask: (0xff00_u32 >> config.priority_bits) as u8,
            distributor: config.distributor,
            redistributors: config.redistributors,
        };
        reserve(&mut vgic.vcpus, config.vcpus)?;
        for vcpu in 0..config.vcpus {
            let private = |intid| AtomicU64::new(vgic.reset_word(intid as u32).0);
            let shared = SharedVcpu {
                door: Door::new(0),
                sources: Sources::new(),
                private: array::from_fn(private),
                affinity: (config.affinity)(vcpu),
                asleep: AtomicU64::new(1),
            };
            vgic.vcpus.push(shared);
        }
        reserve(&mut vgic.spis, config.spis)?;
        let spi = vgic.reset_word(FIRST_SPI).0;
        vgic.spis
            .extend((0..config.spis.min(MOST_WORDS)).map(|_| AtomicU64::new(spi)));
        if let Some(address) = config.its {
            vgic.its = Some(Its::new(address, config.vcpus)?);
        }
        Ok(vgic)
    }

    const fn reset_word(&self, intid: u32) -> Word {
        match (intid, self.version) {
            (0..FIRST_PPI, Version::V3) => Word(Word::EDGE),
            // SGIs of a GICv2 are always enabled.
            (0..FIRST_PPI, Version::V2) => Word(Word::EDGE | Word::ENABLED),
            _ => Word(0),
        }
    }

    /// As it was when it was made: for the reset of a VM. No vCPU is loaded, and no device raises.
    pub fn reset(&self) {
        // Whoever runs the VM orders its next run after this.
        self.groups.store(0, Ordering::Relaxed);
        self.unsettled.store(0, Ordering::Relaxed);
        for vcpu in &self.vcpus {
            vcpu.door.reset();
            vcpu.sources.reset();
            vcpu.asleep.store(1, Ordering::Relaxed);
            for (intid, word) in vcpu.private.iter().enumerate() {
                word.store(self.reset_word(intid as u32).0, Ordering::Relaxed);
            }
        }
        for word in &self.spis {
            word.store(self.reset_word(FIRST_SPI).0, Ordering::Relaxed);
        }
        if let Some(its) = &self.its {
            its.reset();
        }
    }

    /// A copy of its state, for a fork. No vCPU is loaded, and no device raises (rule V16). Physical SPIs that are active stay
    /// the original's. Those private to a CPU are active on behalf of whoever is loaded there, so the copy has them too.
    ///
    /// # Errors
    /// No memory.
    pub fn snapshot(&self) -> Result<Self, VgicError> {
        let mut copy = Self {
            version: self.version,
            vcpus: Vec::new(),
            spis: Vec::new(),
            its: self.its.as_ref().map(Its::snapshot).transpose()?,
            groups: AtomicU64::new(self.groups()),
            unsettled: AtomicU64::new(0),
            by_affinity: Vec::new(),
            forwarded: Vec::new(),
            priority_mask: self.priority_mask,
            distributor: self.distributor,
            redistributors: self.redistributors,
        };
        let own = |word: &AtomicU64, without| {
            let word = Word(word.load(Ordering::Acquire));
            AtomicU64::new(word.without(without).0)
        };
        reserve(&mut copy.by_affinity, self.by_affinity.len())?;
        copy.by_affinity.extend_from_slice(&self.by_affinity);
        reserve(&mut copy.forwarded, self.forwarded.len())?;
        copy.forwarded.extend_from_slice(&self.forwarded);
        reserve(&mut copy.vcpus, self.vcpus.len())?;
        copy.vcpus.extend(self.vcpus.iter().map(|vcpu| SharedVcpu {
            // Hints are made from the words.
            door: Door::new(vcpu.door.word.load(Ordering::Acquire) & (SGIS | COMMANDS) | CALL),
            sources: vcpu.sources.copied(),
            private: array::from_fn(|intid| own(&vcpu.private[intid], 0)),
            affinity: vcpu.affinity,
            asleep: AtomicU64::new(vcpu.asleep.load(Ordering::Relaxed)),
        }));
        reserve(&mut copy.spis, self.spis.len())?;
        let spis = self.spis.iter();
        copy.spis
            .extend(spis.map(|word| own(word, Word::HW | Word::DEBT)));
        Ok(copy)
    }

    /// The architecture that the guest sees.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    /// From the first to the last of the frames' addresses; between them there may be others.
    pub fn reach(&self) -> Range<u64> {
        match self.version {
            Version::V2 => self.distributor..self.distributor + V2_BYTES,
            Version::V3 => {
                let redistributors = 2 * FRAME_BYTES * self.vcpus.len() as u64;
                let (one, other) = (self.distributor, self.redistributors);
                one.min(other)..(one + FRAME_BYTES).max(other + redistributors)
            }
        }
    }

    /// The frame at an address of the guest, and the offset in it.
    #[inline(always)]
    pub fn locate(&self, ipa: u64) -> Option<(Frame, u64)> {
        let offset = ipa.wrapping_sub(self.distributor);
        let bytes = match self.version {
            Version::V2 => V2_BYTES,
            Version::V3 => FRAME_BYTES,
        };
        if offset < bytes {
            return Some((Frame::Distributor, offset));
        }
        if let Some(its) = &self.its {
            let offset = ipa.wrapping_sub(its.address);
            if offset < 2 * FRAME_BYTES {
                return Some((Frame::Its, offset));
            }
        }
        let offset = ipa.wrapping_sub(self.redistributors);
        let vcpu = offset / (2 * FRAME_BYTES);
        let frame = Frame::Redistributor(vcpu as usize);
        (self.version == Version::V3 && vcpu < self.vcpus.len() as u64)
            .then_some((frame, offset % (2 * FRAME_BYTES)))
    }

    /// Sets the line of an SPI, from any CPU. Calls `kick` with a physical CPU that has to leave its guest, or wake; the caller
    /// may leave out its own CPU. Others than SPIs are ignored.
    ///
    /// A device that lowers its line does so before it takes its requests, and looks for new ones afterwards (rule V6).
    pub fn set_spi_level(&self, intid: u32, level: bool, mut kick: impl FnMut(usize)) {
        let Some(word) = self.spi(intid) else { return };
        // Pairs with the exchanges of whoever owns it, also when lowering: a device that lowers sees what the guest wrote before
        // it was asked, and a guest that is interrupted sees what the device wrote before it raised.
        let (old, new) = if level {
            let old = Word(word.fetch_or(Word::LEVEL, Ordering::AcqRel));
            (old, old.with(Word::LEVEL))
        } else {
            let old = Word(word.fetch_and(!Word::LEVEL, Ordering::AcqRel));
            (old, old.without(Word::LEVEL))
        };
        if level && old.has(Word::EDGE) && !old.has(Word::LEVEL) {
            // What is configured as an edge is pending from its rise on.
            return self.raise_spi(intid, Word::LATCH, &mut kick);
        }
        // A rise under a claim tells nobody: the end of the interrupt comes back, and the line is sampled then.
        if level && new.has(Word::CLAIMED) {
            return;
        }
        self.tell_of(0, intid, old, new, &mut kick);
    }

    /// Raises an SPI that is configured as an edge, from any CPU; `kick` as in [`set_spi_level`](Self::set_spi_level).
    pub fn pulse_spi(&self, intid: u32, mut kick: impl FnMut(usize)) {
        self.raise_spi(intid, Word::LATCH, &mut kick);
    }

    /// A physical SPI was taken on any CPU that is forwarded as `virtual_id`: its priority was dropped, it is active; `kick` as in
    /// [`set_spi_level`](Self::set_spi_level).
    pub fn forward_spi(&self, virtual_id: u32, mut kick: impl FnMut(usize)) {
        if self.physical(virtual_id).is_some() {
            self.raise_spi(virtual_id, Word::LATCH | Word::HW, &mut kick);
        }
    }

    /// As [`forward_spi`](Self::forward_spi), by the number of the physical interrupt. One that isn't forwarded stays active.
    pub fn forward_physical(&self, physical_id: u32, kick: impl FnMut(usize)) {
        let mut forwarded = self.forwarded.iter();
        if let Some(forwarded) = forwarded.find(|one| one.physical_id == physical_id) {
            self.forward_spi(forwarded.virtual_id, kick);
        }
    }

    fn raise_spi(&self, intid: u32, bits: u64, kick: &mut impl FnMut(usize)) {
        let Some(word) = self.spi(intid) else { return };
        // Pairs with the exchange of whoever claims it: a guest sees what the device wrote before it raised.
        let old = Word(word.fetch_or(bits, Ordering::AcqRel));
        self.tell_of(0, intid, old, old.with(bits), kick);
    }

    /// Raises an event of a device, as a message-signalled interrupt does, from any CPU; `kick` as in
    /// [`set_spi_level`](Self::set_spi_level). Events that aren't mapped are ignored.
    pub fn raise_lpi(&self, device: u32, event: u32, mut kick: impl FnMut(usize)) {
        let Some(its) = &self.its else { return };
        if !its.queue.is_enabled() {
            return;
        }
        let Some((_, event)) = its.events.find(device, event) else {
            return;
        };
        let Some(word) = its.lpi(event.lpi()) else {
            return;
        };
        // An event that is discarded meanwhile isn't the one that was found: its LPI may be another's by now.
        let raised = Self::change(word, |old| {
            let is_mapped = old.has(Word::MAPPED) && old.lpi_generation() == event.generation();
            is_mapped.then(|| old.with(Word::LATCH))
        });
        if let Ok((old, new)) = raised {
            self.tell_of(0, event.lpi(), old, new, &mut kick);
        }
    }

    /// Tells whoever has to know that a word was changed (rule V1).
    pub(crate) fn tell_of(
        &self,
        vcpu: usize,
        intid: u32,
        old: Word,
        new: Word,
        kick: &mut impl FnMut(usize),
    ) {
        if let Some(told) = self.told(vcpu, intid, old, new) {
            self.tell(told, intid, kick);
        }
    }

    /// Who has to know of a change: who owns the list register that holds it, else who it is routed to if it became deliverable.
    #[inline]
    pub(crate) fn told(&self, vcpu: usize, intid: u32, old: Word, new: Word) -> Option<usize> {
        if new.has(Word::CLAIMED) {
            (old != new).then(|| new.owner())
        } else if new.became_deliverable(old) {
            self.target(vcpu, intid, new)
        } else {
            None
        }
    }

    /// Tells a vCPU to look at an interrupt again.
    pub(crate) fn tell(&self, vcpu: usize, intid: u32, kick: &mut impl FnMut(usize)) {
        let Some(door) = self.vcpus.get(vcpu).map(|vcpu| &vcpu.door) else {
            return;
        };
        match intid {
            // Its own bit would raise it.
            0..FIRST_PPI => door.ring(CALL, kick),
            FIRST_PPI..FIRST_SPI => door.ring(1 << intid, kick),
            FIRST_SPI..FIRST_LPI => door.ring_spi(intid, kick),
            FIRST_LPI.. => {
                let hints = self.its.as_ref().and_then(|its| its.hints(vcpu));
                if let Some(hints) = hints {
                    hints.ring(intid, door, kick);
                }
            }
        }
    }

    /// Tells all vCPUs but one to look at everything again.
    pub(crate) fn call_all_but(&self, own: usize, kick: &mut impl FnMut(usize)) {
        for (_, vcpu) in self
            .vcpus
            .iter()
            .enumerate()
            .filter(|(vcpu, _)| *vcpu != own)
        {
            vcpu.door.ring(CALL, kick);
        }
    }

    /// The vCPU that an interrupt goes to; `vcpu` is the one whose private interrupt it is.
    #[inline]
    pub(crate) fn target(&self, vcpu: usize, intid: u32, word: Word) -> Option<usize> {
        if intid < FIRST_SPI {
            return Some(vcpu);
        }
        if intid >= FIRST_LPI {
            return word.lpi_vcpu();
        }
        match self.version {
            Version::V3 => self.vcpu_of(word.route()),
            Version::V2 => {
                let lowest = word.route().trailing_zeros() as usize;
                (lowest < self.vcpus.len()).then_some(lowest)
            }
        }
    }

    /// The vCPU of an affinity.
    #[inline]
    pub(crate) fn vcpu_of(&self, affinity: u32) -> Option<usize> {
        // Where vCPUs are counted in groups of 16, as guests expect.
        let counted = (affinity >> 8) as usize * 16 + (affinity & 0xff) as usize;
        if self
            .vcpus
            .get(counted)
            .is_some_and(|vcpu| vcpu.affinity == affinity)
        {
            return Some(counted);
        }
        let found = self
            .by_affinity
            .binary_search_by_key(&affinity, |(affinity, _)| *affinity);
        found.ok().map(|at| usize::from(self.by_affinity[at].1))
    }

    /// The word of a vCPU's private interrupt, of an SPI, or of an LPI.
    pub(crate) fn word(&self, vcpu: usize, intid: u32) -> Option<&AtomicU64> {
        if intid < FIRST_SPI {
            self.vcpus.get(vcpu)?.private.get(intid as usize)
        } else if intid < FIRST_LPI {
            self.spi(intid)
        } else {
            self.its.as_ref()?.lpi(intid)
        }
    }

    /// An SPI's word as it is.
    pub(crate) fn shared(&self, intid: u32) -> Option<Word> {
        // Acquires what was done before the change that is read.
        self.spi(intid)
            .map(|word| Word(word.load(Ordering::Acquire)))
    }

    fn spi(&self, intid: u32) -> Option<&AtomicU64> {
        self.spis.get(intid.checked_sub(FIRST_SPI)? as usize)
    }

    /// Changes a word by one exchange, unless `change` finds that there is nothing to do. Returns it as it was and as it is.
    pub(crate) fn change(
        word: &AtomicU64,
        mut change: impl FnMut(Word) -> Option<Word>,
    ) -> Result<(Word, Word), Word> {
        let mut old = Word(word.load(Ordering::Acquire));
        loop {
            let Some(new) = change(old) else {
                return Err(old);
            };
            // Pairs with every other change of the word: whoever comes second sees what the first wrote before.
            match word.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok((old, new)),
                Err(other) => old = Word(other),
            }
        }
    }

    /// Which groups are on: bit 0 for group 0, bit 1 for group 1.
    pub(crate) fn groups(&self) -> u64 {
        // Pairs with `set_groups`; who is called sees them by the door in any case.
        self.groups.load(Ordering::Acquire)
    }

    /// Publishes which groups are on. Returns whether this changed anything; then all vCPUs have to be called.
    pub(crate) fn set_groups(&self, groups: u64) -> bool {
        self.groups.swap(groups, Ordering::AcqRel) != groups
    }

    /// Whether the group of a word is on.
    pub(crate) const fn is_group_on(groups: u64, word: Word) -> bool {
        groups >> word.has(Word::GROUP1) as u32 & 1 != 0
    }

    /// Whether a disabled interrupt may still be in a list register of a running guest (GICD_CTLR.RWP, rule V9).
    pub(crate) fn is_write_pending(&self) -> bool {
        // Pairs with the `fetch_sub` of who has settled: what its guest did before is seen.
        self.unsettled.load(Ordering::Acquire) != 0
            || self.vcpus.iter().any(|vcpu| {
                // Pairs with the exchange that takes a CALL, in the same way.
                let door = vcpu.door.word.load(Ordering::Acquire);
                door & (ON | CALL) == ON | CALL
            })
    }

    /// The physical interrupt behind a virtual one.
    pub(crate) fn physical(&self, virtual_id: u32) -> Option<u32> {
        let mut forwarded = self.forwarded.iter();
        let found = forwarded.find(|forwarded| forwarded.virtual_id == virtual_id);
        found.map(|forwarded| forwarded.physical_id)
    }
}

impl VgicConfig<'_> {
    fn check(&self) -> Result<(), VgicError> {
        let (most, align, bytes) = match self.version {
            Version::V2 => (8, V2_BYTES, V2_BYTES),
            Version::V3 => (MAX_VCPUS, FRAME_BYTES, FRAME_BYTES),
        };
        if !(1..=most).contains(&self.vcpus) {
            return Err(VgicError::Vcpus(self.vcpus));
        }
        if !(FIRST_SPI as usize..=MAX_SPIS).contains(&self.spis) || !self.spis.is_multiple_of(32) {
            return Err(VgicError::Spis(self.spis));
        }
        if !(4..=8).contains(&self.priority_bits) {
            return Err(VgicError::PriorityBits(self.priority_bits));
        }
        let end = FIRST_SPI + self.spis as u32;
        for (index, forwarded) in self.forwarded.iter().enumerate() {
            let intid = forwarded.virtual_id;
            let twice = self.forwarded[..index]
                .iter()
                .any(|other| other.virtual_id == intid);
            if !(FIRST_PPI..end).contains(&intid) || twice {
                return Err(VgicError::Forwarded(intid));
            }
        }
        let frames = match self.version {
            Version::V2 if self.its.is_some() => return Err(VgicError::Frames),
            Version::V2 => [Some((self.distributor, bytes)), None, None],
            Version::V3 => [
                Some((self.distributor, bytes)),
                Some((self.redistributors, self.vcpus as u64 * 2 * FRAME_BYTES)),
                self.its.map(|its| (its, 2 * FRAME_BYTES)),
            ],
        };
        let mut frames = frames.into_iter().flatten();
        while let Some((start, bytes)) = frames.next() {
            let end = start.checked_add(bytes).ok_or(VgicError::Frames)?;
            let mut others = frames.clone();
            let overlaps =
                others.any(|(other, bytes)| start < other.saturating_add(bytes) && other < end);
            if overlaps || !start.is_multiple_of(align) {
                return Err(VgicError::Frames);
            }
        }
        Ok(())
    }
}
