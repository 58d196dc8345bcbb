//! What this crate needs of the machine and of memory: traits, which the platform and the memory of VMs implement.

pub(crate) mod cpu;
pub(crate) mod guest_memory;
pub(crate) mod protection;
