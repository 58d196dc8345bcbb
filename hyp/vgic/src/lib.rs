//! A virtual GIC **without a lock**.
//!
//! A guest sees a GICv3: distributor, redistributors, ITS, and the CPU interface that hardware virtualizes by list registers. Each
//! interrupt is one atomic word. Each vCPU has a door, one word by which others tell it that there is something to look at; its list
//! registers are its own. Device interrupts, SGIs, routing, disabling and clearing of one VM all run at the same time, on any CPU;
//! two of them are serialised only by the word of the interrupt that both want. No end of an interrupt writes shared memory.
//!
//! # The protocol
//! *The word* of an interrupt is the only truth about it. An interrupt that a list register holds is *claimed*: OWNER in the word
//! is the vCPU that has it. Other CPUs leave messages in the word then, and OWNER *settles*: it makes list register and word agree.
//! *Hints* (a bit for each SPI, for each vCPU) and the door only say where to look; a stray one is harmless.
//!
//! - **V1 Tell.** The word is changed by a read-modify-write first, then the hint is set, then the door, if the hints were empty;
//!   the kick is last. It is sent exactly if the vCPU was on or asleep and nothing was there to look at. Who is told: OWNER, if the
//!   interrupt is claimed and anything changed; else the vCPU that it is routed to *now*, if it became deliverable, or its route,
//!   group or priority changed. Nobody tests before the change.
//! - **V2 Drain**, with the guest outside: the kick is acknowledged, all bits of the door are taken in one exchange, then the hints
//!   by swap; what is claimed is settled, the rest goes to the backlog, and list registers are filled. Each entry looks at the door
//!   once.
//! - **V3 Settle**, by one exchange: the state of the list register is combined with the messages. What may not stay goes back
//!   into the word in the exchange that releases the claim; then whoever it goes to is told. Messages and SYNC are cleared in it,
//!   and only after the list register is written is `unsettled` decremented.
//! - **V4 Claim**, by one exchange, of a word that is deliverable and routed here now; then the list register. LATCH and list
//!   register are never both pending for one raise. Only OWNER releases.
//! - **V5 Edge.** There are no more acknowledgements than raises, and after each raise one that sees what was written before it.
//! - **V6 Level.** The line is sampled when it is settled: at the end of the interrupt, by a maintenance interrupt. It is never
//!   pending and active. A rise under a claim tells nobody; a fall tells OWNER.
//! - **V7 Something left.** A latch that stays in the word of an active interrupt asks for a maintenance interrupt, too.
//! - **V8 SGI.** The door's bit is the latch: one `fetch_or`. It is set in the word before it leaves the door. Readers look at the
//!   door first. With GICv2, the sources are set first, then the door; a list register has one source at a time.
//! - **V9 Disable.** Counted in `unsettled` first, then the word is changed, with SYNC if another vCPU owns it. GICD_CTLR.RWP reads 1
//!   until all have looked. EL2 waits for nothing. Groups that are switched off are published, and all vCPUs are called.
//! - **V10 By hand.** Active and pending state of an interrupt that another vCPU owns is changed by messages, and read after it has
//!   answered (SYNC). The wait is bounded, and serves the own door meanwhile; then the guest executes the access again ([`Again`]).
//! - **V11 End.** The end of an interrupt is no work: its claim is released when somebody looks. What was active without a list
//!   register is counted by hardware (EOIcount), and is served first after an exit: by the priority at which the guest has acknowledged
//!   it, and only if EOImode is 0 by then, as QEMU counts ends that deactivate nothing, too. With EOImode 1 DIR traps where it can, and
//!   nothing that is counted is an end.
//! - **V12 Overflow.** The most urgent are in list registers, pending before active. Maintenance interrupts are asked for only while
//!   something that could be loaded waits.
//! - **V13 Hardware.** Whoever removes the last trace of a forwarded interrupt by hand ends the physical one, afterwards, or leaves
//!   that to the CPU that has it (DEBT).
//! - **V14 Put.** All claims are released, then the door is off: what is claimed has an owner that can be kicked. Loading switches
//!   the door on first, and looks then.
//! - **V15 Sleep.** The door goes from on to asleep by an exchange that fails if there is anything to look at.
//! - **V16 Snapshot.** With devices quiet and vCPUs put, the words are the state.
//! - **V17 LPIs.** An event of a device is one word of the ITS's table: its LPI, and the *generation* of the mapping. Whoever
//!   raises it finds that word, and sets LATCH in the LPI's word by an exchange, if that is mapped and of the same generation.
//!   DISCARD counts the generation up and takes LATCH, a claim gets DROP and SYNC. MOVI changes a route. INV reads the property
//!   byte first, then changes the word: one vCPU at a time executes commands, which has BUSY. BUSY, CWRITER and CREADR are one
//!   word; BUSY is let go by an exchange from "nothing is left", so that what another vCPU adds has somebody who executes it. Some
//!   commands are executed at an access. The rest, and what comes behind a SYNC that waits until `unsettled` is 0, the vCPU has
//!   noted at its own door, and executes before it enters its guest, serving its door in between
//!   ([`has_commands`](VcpuInterrupts::has_commands)). A vCPU that is switched off leaves them to whoever reads CREADR.
//!   An LPI has no active state: one that a CPU keeps active is over when it leaves its list register.
//! - **V18 Routing** is to one vCPU: GICD_TYPER.No1N. With GICv2 the lowest target of ITARGETSR has it.
//!
//! # Use
//! A VM has one [`Vgic`]; devices raise by [`Vgic::set_spi_level`], [`Vgic::pulse_spi`] and [`Vgic::raise_lpi`]. Each vCPU has [`VcpuInterrupts`]: loaded
//! on a CPU ([`load`](VcpuInterrupts::load)), asked before each entry ([`needs_look`](VcpuInterrupts::needs_look)), given the guest's
//! accesses ([`read`](VcpuInterrupts::read), [`write`](VcpuInterrupts::write), [`send_sgi`](VcpuInterrupts::send_sgi)) and the
//! maintenance interrupt. [`VirtualInterface`] is what the CPU provides. All that a guest passes is an allegation: no access panics,
//! and each takes bounded time.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod config;
mod door;
mod interface;
mod its;
mod local;
mod outside;
mod own;
mod registers;
mod set;
mod settle;
mod sgi;
mod sync;
mod vcpu;
mod vgic;
mod word;

pub use arm::Width;
pub use config::{
    Again, Forwarded, Frame, MAX_SPIS, MAX_VCPUS, SgiRegister, Version, VgicConfig, VgicError,
};
pub use interface::{
    ActivePriorities, ListRegister, MAX_LIST_REGISTERS, VirtualInterface, hcr, vmcr,
};
pub use its::GuestTables;
pub use its::saved::ItsEntry;
pub use own::VcpuInterrupts;
pub use vcpu::{Doorbell, InterfaceState};
pub use vgic::Vgic;
