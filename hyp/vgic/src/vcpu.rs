//! What one does with the interrupts of a vCPU.

use crate::config::{Again, Frame, SgiRegister};
use crate::door::{BLOCKED, COMMANDS, LOOK, ON};
use crate::interface::{ActivePriorities, VirtualInterface, vmcr};
use crate::its::GuestTables;
use crate::local::Local;
use crate::outside::Outside;
use crate::own::VcpuInterrupts;
use crate::sgi;
use crate::sync::{AtomicU64, Ordering};
use crate::vgic::Vgic;
use crate::word::{FIRST_PPI, FIRST_SPI, Word};
use arm::Width;

/// What a guest's CPU interface holds beside what is in words: to be saved and restored with them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterfaceState {
    /// ICH_VMCR_EL2.
    pub control: u64,
    /// The active priorities.
    pub active_priorities: ActivePriorities,
    /// With GICv2: the source of each SGI that is active.
    pub sources: [u8; FIRST_PPI as usize],
}

/// Tells whether there is something for a vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Doorbell<'v>(&'v AtomicU64);

impl Doorbell<'_> {
    /// Whether there is: to be asked before each entry, once kicks were acknowledged.
    #[inline(always)]
    pub fn rings(self) -> bool {
        // A bit that isn't seen yet comes with a kick, which ends the guest's run at once.
        self.0.load(Ordering::Relaxed) & LOOK != 0
    }
}

impl VcpuInterrupts {
    /// Resets its CPU interface, for a vCPU that is switched on (PSCI CPU_ON). It isn't loaded. What is pending or active stays
    /// so, as the distributor and the redistributor aren't reset.
    pub fn reset(&mut self) {
        let (backlog, sources) = (self.backlog, self.sources);
        *self = Self::new(self.vcpu);
        self.backlog = backlog;
        self.sources = sources;
    }

    /// The state of its CPU interface. It isn't loaded.
    pub const fn save_interface(&self) -> InterfaceState {
        InterfaceState {
            control: self.vmcr,
            active_priorities: self.active_priorities,
            sources: self.sources,
        }
    }

    /// Gives it the state of a CPU interface, after the registers of `vgic` were restored. It isn't loaded.
    pub fn restore_interface(&mut self, vgic: &Vgic, state: InterfaceState) {
        self.vmcr = state.control;
        self.active_priorities = state.active_priorities;
        self.sources = state.sources.map(|source| source & 7);
        self.outside = Outside::EMPTY;
        for intid in 0..FIRST_SPI + vgic.spis.len() as u32 {
            let word = vgic.word(self.vcpu, intid);
            let word = word.map(|word| Word(word.load(Ordering::Acquire)));
            if let Some(word) = word
                && word.has(Word::ACT)
                && word.owner() == self.vcpu
            {
                self.outside.insert(intid, word.priority());
            }
        }
    }

    /// Loads the vCPU on physical CPU `cpu` (rule V14): from now on it is kicked there. Writes all registers of the interface.
    pub fn load<H: VirtualInterface>(
        &mut self,
        vgic: &Vgic,
        hw: &mut H,
        cpu: usize,
        kick: impl FnMut(usize),
    ) {
        // What hardware has counted is another vCPU's.
        let own = self;
        let mut local = Local {
            vgic,
            own,
            hw,
            kick,
        };
        local.load(cpu);
    }

    /// Takes the vCPU off its CPU (rule V14): its list registers go back into the words, and nobody kicks it any more. The
    /// interface is left without valid list registers.
    pub fn put<H: VirtualInterface>(&mut self, vgic: &Vgic, hw: &mut H, kick: impl FnMut(usize)) {
        Local::new(vgic, self, hw, kick).put();
    }

    /// Takes the vCPU off its CPU as [`put`](Self::put) does, if there is nothing to look at: from then on it is asleep, and is
    /// woken on `cpu` (rule V15). Returns whether it sleeps. Asked after [`may_sleep`](Self::may_sleep).
    pub fn block<H: VirtualInterface>(
        &mut self,
        vgic: &Vgic,
        hw: &mut H,
        kick: impl FnMut(usize),
    ) -> bool {
        Local::new(vgic, self, hw, kick).block()
    }

    /// By which this vCPU is told that somebody has something for it.
    pub fn doorbell<'v>(&self, vgic: &'v Vgic) -> Option<Doorbell<'v>> {
        let vcpu = vgic.vcpus.get(self.vcpu)?;
        Some(Doorbell(&vcpu.door.word))
    }

    /// Whether somebody has something for this vCPU, as its [`doorbell`](Self::doorbell) tells.
    pub fn needs_look(&self, vgic: &Vgic) -> bool {
        self.doorbell(vgic).is_some_and(Doorbell::rings)
    }

    /// Takes what there is for this vCPU into its list registers (rule V2). To be called when [`needs_look`](Self::needs_look)
    /// says so. A kick that was taken is acknowledged before.
    pub fn look<H: VirtualInterface>(&mut self, vgic: &Vgic, hw: &mut H, kick: impl FnMut(usize)) {
        Local::new(vgic, self, hw, kick).drain();
    }

    /// Whether the vCPU has commands of the ITS to execute before it enters its guest: those that an access of its guest has left,
    /// as an access takes bounded time.
    #[inline(always)]
    pub fn has_commands(&self, vgic: &Vgic) -> bool {
        let vcpu = vgic.vcpus.get(self.vcpu);
        // It alone sets and clears this.
        vcpu.is_some_and(|vcpu| vcpu.door.word.load(Ordering::Relaxed) & COMMANDS != 0)
    }

    /// Executes some of them, when [`has_commands`](Self::has_commands) says so. If it still says so then, this is called again before
    /// the guest is entered, once what has come meanwhile was served. `memory` is the guest's.
    pub fn execute_commands<H: VirtualInterface>(
        &mut self,
        vgic: &Vgic,
        hw: &mut H,
        memory: &dyn GuestTables,
        kick: impl FnMut(usize),
    ) {
        let mut local = Local::new(vgic, self, hw, kick);
        if let (Some(door), Some(its)) = (local.door(), &vgic.its) {
            door.word.fetch_and(!COMMANDS, Ordering::Relaxed);
            local.execute_commands(its, memory);
            local.fill();
        }
    }

    /// Serves the maintenance interrupt, after it was acknowledged.
    pub fn maintenance<H: VirtualInterface>(
        &mut self,
        vgic: &Vgic,
        hw: &mut H,
        kick: impl FnMut(usize),
    ) {
        Local::new(vgic, self, hw, kick).maintain();
    }

    /// Whether a WFI of the guest may sleep (rule V15): no interrupt would be signalled. Looks first. The caller sleeps with
    /// physical interrupts pending, so that a kick wakes it.
    pub fn may_sleep<H: VirtualInterface>(
        &mut self,
        vgic: &Vgic,
        hw: &mut H,
        kick: impl FnMut(usize),
    ) -> bool {
        let mut local = Local::new(vgic, self, hw, kick);
        local.drain();
        // The maintenance interrupt may come later than the exit for the guest's WFI.
        local.maintain();
        !local.is_signalled()
    }

    /// Whether an interrupt waits that wakes the vCPU while it is powered down: one that is forwarded to its CPU interface,
    /// whatever that lets through, as it is off too. Looks first.
    pub fn is_requested<H: VirtualInterface>(
        &mut self,
        vgic: &Vgic,
        hw: &mut H,
        kick: impl FnMut(usize),
    ) -> bool {
        let mut local = Local::new(vgic, self, hw, kick);
        local.drain();
        // As in `may_sleep`.
        local.maintain();
        local.is_requested()
    }

    /// Whether the physical interrupt behind a private one would come to the vCPU: if not, it needn't wake for that. It is told
    /// when another vCPU changes this.
    pub fn awaits(&self, vgic: &Vgic, virtual_id: u32) -> bool {
        let word = vgic.word(self.vcpu, virtual_id);
        // Nothing else is read because of it.
        let word = word.map(|word| Word(word.load(Ordering::Relaxed)));
        word.is_some_and(|word| {
            let is_on = word.has(Word::ENABLED) && Vgic::is_group_on(vgic.groups(), word);
            // One that was taken already comes no second time before its end.
            is_on && !word.has(Word::HW)
        })
    }

    /// A physical interrupt was taken on this CPU that is forwarded as `virtual_id`: its priority was dropped, it is active. The
    /// guest's deactivation deactivates it.
    pub fn raise_physical<H: VirtualInterface>(
        &mut self,
        vgic: &Vgic,
        hw: &mut H,
        virtual_id: u32,
        kick: impl FnMut(usize),
    ) {
        if vgic.physical(virtual_id).is_some() {
            let mut local = Local::new(vgic, self, hw, kick);
            local.change(local.own.vcpu, virtual_id, |word| {
                Some(word.with(Word::LATCH | Word::HW))
            });
            local.fill();
        }
    }

    /// Sets the line of a PPI of this vCPU. Others than PPIs are ignored.
    pub fn set_private_level<H: VirtualInterface>(
        &mut self,
        vgic: &Vgic,
        hw: &mut H,
        intid: u32,
        level: bool,
        kick: impl FnMut(usize),
    ) {
        if (FIRST_PPI..FIRST_SPI).contains(&intid) {
            let mut local = Local::new(vgic, self, hw, kick);
            local.change(local.own.vcpu, intid, |word| {
                let latch = level && word.has(Word::EDGE);
                let new = word.with_if(level, Word::LEVEL);
                let new = new.with(if latch { Word::LATCH } else { 0 });
                (word.has(Word::LEVEL) != level).then_some(new)
            });
            local.fill();
        }
    }

    /// As [`read`](Self::read), of a register that needs no more than this. `None` for the others: those of pending and active
    /// state, which list registers have a part in, and those of the ITS.
    #[inline(never)]
    pub fn read_shared(
        &mut self,
        vgic: &Vgic,
        frame: Frame,
        offset: u64,
        size: Width,
    ) -> Option<u64> {
        let value = vgic.read_shared(self.vcpu, frame, offset, size)?;
        // The register that it has asked others about is another.
        self.asked = None;
        Some(value)
    }

    /// The guest reads a register. What isn't there reads as zero. `memory` is the guest's, for the ITS.
    ///
    /// # Errors
    /// The access has to be executed again.
    #[expect(clippy::too_many_arguments, reason = "an access, and what it needs")]
    pub fn read<H: VirtualInterface>(
        &mut self,
        vgic: &Vgic,
        hw: &mut H,
        memory: &dyn GuestTables,
        frame: Frame,
        offset: u64,
        size: Width,
        kick: impl FnMut(usize),
    ) -> Result<u64, Again> {
        if let Some(value) = self.read_shared(vgic, frame, offset, size) {
            return Ok(value);
        }
        Local::new(vgic, self, hw, kick).read(frame, offset, size, memory)
    }

    /// The guest writes a register. What isn't there ignores it. `memory` is the guest's, for the ITS.
    ///
    /// # Errors
    /// The access has to be executed again.
    #[expect(clippy::too_many_arguments, reason = "an access, and what it needs")]
    pub fn write<H: VirtualInterface>(
        &mut self,
        vgic: &Vgic,
        hw: &mut H,
        memory: &dyn GuestTables,
        frame: Frame,
        offset: u64,
        size: Width,
        value: u64,
        kick: impl FnMut(usize),
    ) -> Result<(), Again> {
        Local::new(vgic, self, hw, kick).write(frame, offset, size, value, memory)
    }

    /// The guest writes a register that sends SGIs. An SGI to itself is there for [`needs_look`](Self::needs_look).
    #[inline]
    pub fn send_sgi(
        &mut self,
        vgic: &Vgic,
        register: SgiRegister,
        value: u64,
        kick: impl FnMut(usize),
    ) {
        sgi::send(vgic, self.vcpu, register, value, kick);
    }

    /// The guest writes ICC_DIR_EL1, which trapped ([`hcr::TDIR`](crate::hcr::TDIR)).
    pub fn deactivate<H: VirtualInterface>(
        &mut self,
        vgic: &Vgic,
        hw: &mut H,
        intid: u32,
        kick: impl FnMut(usize),
    ) {
        let mut local = Local::new(vgic, self, hw, kick);
        // With EOImode 0 there is nothing to be done.
        if local.hw.read_vmcr() & vmcr::VEOIM != 0 {
            local.set_active(local.own.vcpu, intid, false);
            local.fill();
        }
    }

    /// Whether it sleeps by [`block`](Self::block), and hasn't been loaded since.
    pub fn is_asleep(&self, vgic: &Vgic) -> bool {
        let vcpu = vgic.vcpus.get(self.vcpu);
        vcpu.is_some_and(|vcpu| vcpu.door.word.load(Ordering::Relaxed) & BLOCKED != 0)
    }

    /// Whether nobody kicks it: it was put, or never loaded.
    pub fn is_put(&self, vgic: &Vgic) -> bool {
        let vcpu = vgic.vcpus.get(self.vcpu);
        vcpu.is_none_or(|vcpu| vcpu.door.word.load(Ordering::Relaxed) & (ON | BLOCKED) == 0)
    }
}
