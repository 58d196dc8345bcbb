//! What a vCPU alone has, on whichever CPU it is loaded.

use crate::config::{AccessSize, Again, Frame, SgiRegister};
use crate::interface::VirtualInterface;
use crate::vgic::Vgic;

/// The interrupts of a vCPU: part of its context, cloned by a fork.
///
/// Methods that take a [`VirtualInterface`] are for the CPU that the vCPU is loaded on, with its guest outside. `kick` is called
/// with a physical CPU that has to leave its guest, or wake; it may be called for the own CPU, and may ignore that: whoever enters
/// asks [`needs_look`](Self::needs_look) first.
#[derive(Clone, Debug)]
pub struct VcpuInterrupts {
    vcpu: usize,
}

impl VcpuInterrupts {
    /// Those of a vCPU in its reset state, which isn't loaded.
    pub const fn new(vcpu: usize) -> Self {
        Self { vcpu }
    }

    /// The number of the vCPU.
    pub const fn vcpu(&self) -> usize {
        self.vcpu
    }

    /// As they were when made, for a vCPU that is switched on (PSCI CPU_ON) or reset. It isn't loaded.
    pub fn reset(&mut self, _vgic: &Vgic) {}

    /// Loads the vCPU on physical CPU `cpu` (rule V14): from now on it is kicked there. Writes all registers of the interface.
    pub fn load<H: VirtualInterface>(
        &mut self,
        _vgic: &Vgic,
        _hw: &mut H,
        _cpu: usize,
        _kick: impl FnMut(usize),
    ) {
    }

    /// Takes the vCPU off its CPU (rule V14): its list registers go back into the words, and nobody kicks it any more. The
    /// interface is left without valid list registers.
    pub fn put<H: VirtualInterface>(
        &mut self,
        _vgic: &Vgic,
        _hw: &mut H,
        _kick: impl FnMut(usize),
    ) {
    }

    /// As [`put`](Self::put), for a vCPU that waits for an interrupt: what comes from here on kicks the CPU that it was loaded on
    /// (rule V15). False if something has come already; then nobody kicks it.
    pub fn put_waiting<H: VirtualInterface>(
        &mut self,
        vgic: &Vgic,
        hw: &mut H,
        kick: impl FnMut(usize),
    ) -> bool {
        self.put(vgic, hw, kick);
        true
    }

    /// Whether somebody has something for this vCPU: to be asked before each entry, once kicks were acknowledged.
    #[inline(always)]
    pub fn needs_look(&self, _vgic: &Vgic) -> bool {
        false
    }

    /// Takes what there is for this vCPU into its list registers (rule V2). To be called when [`needs_look`](Self::needs_look)
    /// says so. A kick that was taken is acknowledged before.
    pub fn look<H: VirtualInterface>(
        &mut self,
        _vgic: &Vgic,
        _hw: &mut H,
        _kick: impl FnMut(usize),
    ) {
    }

    /// Serves the maintenance interrupt, after it was acknowledged.
    pub fn maintenance<H: VirtualInterface>(
        &mut self,
        _vgic: &Vgic,
        _hw: &mut H,
        _kick: impl FnMut(usize),
    ) {
    }

    /// Whether a WFI of the guest may sleep (rule V15): no interrupt would be signalled. Looks first. The caller sleeps with
    /// physical interrupts pending, so that a kick wakes it.
    pub fn may_sleep<H: VirtualInterface>(
        &mut self,
        _vgic: &Vgic,
        _hw: &mut H,
        _kick: impl FnMut(usize),
    ) -> bool {
        true
    }

    /// A physical interrupt was taken on this CPU that is forwarded as `virtual_id`: its priority was dropped, it is active. The
    /// guest's deactivation deactivates it.
    pub fn raise_physical<H: VirtualInterface>(
        &mut self,
        _vgic: &Vgic,
        _hw: &mut H,
        _virtual_id: u32,
        _kick: impl FnMut(usize),
    ) {
    }

    /// Sets the line of a PPI of this vCPU. Others than PPIs are ignored.
    pub fn set_private_level<H: VirtualInterface>(
        &mut self,
        _vgic: &Vgic,
        _hw: &mut H,
        _intid: u32,
        _level: bool,
        _kick: impl FnMut(usize),
    ) {
    }

    /// The guest reads a register. What isn't there reads as zero.
    ///
    /// # Errors
    /// The access has to be executed again.
    pub fn read<H: VirtualInterface>(
        &mut self,
        _vgic: &Vgic,
        _hw: &mut H,
        _frame: Frame,
        _offset: u64,
        _size: AccessSize,
        _kick: impl FnMut(usize),
    ) -> Result<u64, Again> {
        Ok(0)
    }

    /// The guest writes a register. What isn't there ignores it.
    ///
    /// # Errors
    /// The access has to be executed again.
    #[expect(clippy::too_many_arguments, reason = "an access, and what it needs")]
    pub fn write<H: VirtualInterface>(
        &mut self,
        _vgic: &Vgic,
        _hw: &mut H,
        _frame: Frame,
        _offset: u64,
        _size: AccessSize,
        _value: u64,
        _kick: impl FnMut(usize),
    ) -> Result<(), Again> {
        Ok(())
    }

    /// The guest writes a register that sends SGIs.
    pub fn send_sgi(
        &mut self,
        _vgic: &Vgic,
        _register: SgiRegister,
        _value: u64,
        _kick: impl FnMut(usize),
    ) {
    }

    /// The guest writes ICC_DIR_EL1, which trapped ([`hcr::TDIR`](crate::hcr::TDIR)).
    pub fn deactivate<H: VirtualInterface>(
        &mut self,
        _vgic: &Vgic,
        _hw: &mut H,
        _intid: u32,
        _kick: impl FnMut(usize),
    ) {
    }
}
