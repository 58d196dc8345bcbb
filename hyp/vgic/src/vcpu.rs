//! What a vCPU alone has, on whichever CPU it is loaded.

use crate::config::{AccessSize, Again, Frame, SgiRegister};
use crate::door::{BLOCKED, LOOK, ON};
use crate::interface::{ActivePriorities, MAX_LIST_REGISTERS, VirtualInterface, vmcr};
use crate::local::Local;
use crate::set::IntidSet;
use crate::sgi;
use crate::sync::Ordering;
use crate::vgic::Vgic;
use crate::word::{FIRST_PPI, FIRST_SPI, Word};

/// The interrupts of a vCPU: part of its context, cloned by a fork.
///
/// Methods that take a [`VirtualInterface`] are for the CPU that the vCPU is loaded on, with its guest outside. `kick` is called
/// with a physical CPU that has to leave its guest, or wake; it may be called for the own CPU, and may ignore that: whoever enters
/// asks [`needs_look`](Self::needs_look) first.
#[derive(Clone, Debug)]
pub struct VcpuInterrupts {
    pub(crate) vcpu: usize,
    /// What the list registers hold that are claimed.
    pub(crate) held: [Held; MAX_LIST_REGISTERS],
    /// Which are: their words have CLAIMED.
    pub(crate) claimed: u32,
    /// Seen, and not in a list register.
    pub(crate) backlog: IntidSet,
    /// Active without a list register, acknowledged by this vCPU.
    pub(crate) outside: IntidSet,
    /// ICH_HCR_EL2 as written last.
    pub(crate) hcr: u64,
    /// ICH_VMCR_EL2 while it isn't loaded.
    pub(crate) vmcr: u64,
    /// The active priorities while it isn't loaded.
    pub(crate) active_priorities: ActivePriorities,
}

/// What a claimed list register holds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Held {
    pub(crate) intid: u32,
    /// Whether it was pending by a latch when it was written.
    pub(crate) latched: bool,
}

impl VcpuInterrupts {
    /// Those of a vCPU in its reset state, which isn't loaded.
    pub const fn new(vcpu: usize) -> Self {
        Self {
            vcpu,
            held: [Held {
                intid: 0,
                latched: false,
            }; MAX_LIST_REGISTERS],
            claimed: 0,
            backlog: IntidSet::EMPTY,
            outside: IntidSet::EMPTY,
            hcr: 0,
            vmcr: 0,
            active_priorities: ActivePriorities::NONE,
        }
    }

    /// The number of the vCPU.
    pub const fn vcpu(&self) -> usize {
        self.vcpu
    }

    /// Resets its CPU interface, for a vCPU that is switched on (PSCI CPU_ON). It isn't loaded. What is pending or active stays
    /// so, as the distributor and the redistributor aren't reset.
    pub fn reset(&mut self) {
        let backlog = self.backlog;
        *self = Self::new(self.vcpu);
        self.backlog = backlog;
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

    /// Whether somebody has something for this vCPU: to be asked before each entry, once kicks were acknowledged.
    #[inline(always)]
    pub fn needs_look(&self, vgic: &Vgic) -> bool {
        // A bit that isn't seen yet comes with a kick, which ends the guest's run at once.
        vgic.vcpus
            .get(self.vcpu)
            .is_some_and(|vcpu| vcpu.door.word.load(Ordering::Relaxed) & LOOK != 0)
    }

    /// Takes what there is for this vCPU into its list registers (rule V2). To be called when [`needs_look`](Self::needs_look)
    /// says so. A kick that was taken is acknowledged before.
    pub fn look<H: VirtualInterface>(&mut self, vgic: &Vgic, hw: &mut H, kick: impl FnMut(usize)) {
        Local::new(vgic, self, hw, kick).drain();
    }

    /// Serves the maintenance interrupt, after it was acknowledged.
    pub fn maintenance<H: VirtualInterface>(
        &mut self,
        vgic: &Vgic,
        hw: &mut H,
        kick: impl FnMut(usize),
    ) {
        let mut local = Local::new(vgic, self, hw, kick);
        local.settle_all();
        local.fill();
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
        !local.is_signalled()
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
                (word.has(Word::LEVEL) != level).then(|| word.with_if(level, Word::LEVEL))
            });
            local.fill();
        }
    }

    /// The guest reads a register. What isn't there reads as zero.
    ///
    /// # Errors
    /// The access has to be executed again.
    pub fn read<H: VirtualInterface>(
        &mut self,
        vgic: &Vgic,
        hw: &mut H,
        frame: Frame,
        offset: u64,
        size: AccessSize,
        kick: impl FnMut(usize),
    ) -> Result<u64, Again> {
        Local::new(vgic, self, hw, kick).read(frame, offset, size)
    }

    /// The guest writes a register. What isn't there ignores it.
    ///
    /// # Errors
    /// The access has to be executed again.
    #[expect(clippy::too_many_arguments, reason = "an access, and what it needs")]
    pub fn write<H: VirtualInterface>(
        &mut self,
        vgic: &Vgic,
        hw: &mut H,
        frame: Frame,
        offset: u64,
        size: AccessSize,
        value: u64,
        kick: impl FnMut(usize),
    ) -> Result<(), Again> {
        Local::new(vgic, self, hw, kick).write(frame, offset, size, value)
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

    /// Whether nobody kicks it: it was put, or never loaded.
    pub fn is_put(&self, vgic: &Vgic) -> bool {
        let vcpu = vgic.vcpus.get(self.vcpu);
        vcpu.is_none_or(|vcpu| vcpu.door.word.load(Ordering::Relaxed) & (ON | BLOCKED) == 0)
    }
}
