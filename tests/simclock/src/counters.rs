//! How far each CPU is within its turn: a number per CPU that the emulated code itself adds to, and that makes it call when
//! the turn is over. It stands at [`END`] then, whatever the length of the turn.

use qemu_plugin_sys as qemu;

/// Where a turn is over.
pub const END: u64 = 1 << 40;

/// The emulator's array of one number per CPU.
#[derive(Clone, Copy)]
pub struct Counters {
    board: *mut qemu::qemu_plugin_scoreboard,
}

// SAFETY: the emulator keeps the array for ever, and each CPU's number is a word of its own; one that is read while its CPU
// writes to it is old or new.
unsafe impl Send for Counters {}
// SAFETY: as above.
unsafe impl Sync for Counters {}

impl Counters {
    /// Numbers that are 0.
    pub fn new() -> Self {
        Self {
            // SAFETY: the emulator's function takes any size.
            board: unsafe { qemu::qemu_plugin_scoreboard_new(size_of::<u64>()) },
        }
    }

    fn entry(self) -> qemu::qemu_plugin_u64 {
        qemu::qemu_plugin_u64 {
            score: self.board,
            offset: 0,
        }
    }

    /// The number of a CPU that the emulator has announced.
    pub fn get(self, cpu: usize) -> u64 {
        // SAFETY: the array has room for every CPU that was announced.
        unsafe { qemu::qemu_plugin_u64_get(self.entry(), cpu as u32) }
    }

    /// To be called on the CPU's own thread, or before it runs.
    pub fn set(self, cpu: usize, value: u64) {
        // SAFETY: as `get`.
        unsafe { qemu::qemu_plugin_u64_set(self.entry(), cpu as u32, value) };
    }

    /// To be called on the CPU's own thread.
    pub fn add(self, cpu: usize, value: u64) {
        // SAFETY: as `get`.
        unsafe { qemu::qemu_plugin_u64_add(self.entry(), cpu as u32, value) };
    }

    /// Makes a block of code count its `instructions` when it begins, and then call `spent` if the turn is over.
    ///
    /// # Safety
    ///
    /// `block` is what the emulator has given to the callback of a translation that is still running.
    pub unsafe fn count_in(
        self,
        block: *mut qemu::qemu_plugin_tb,
        instructions: u64,
        spent: qemu::qemu_plugin_vcpu_udata_cb_t,
    ) {
        // SAFETY: the caller's promise; the array lives for ever.
        unsafe {
            qemu::qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(
                block,
                qemu::qemu_plugin_op::QEMU_PLUGIN_INLINE_ADD_U64,
                self.entry(),
                instructions,
            );
            qemu::qemu_plugin_register_vcpu_tb_exec_cond_cb(
                block,
                spent,
                qemu::qemu_plugin_cb_flags::QEMU_PLUGIN_CB_NO_REGS,
                qemu::qemu_plugin_cond::QEMU_PLUGIN_COND_GE,
                self.entry(),
                END,
                std::ptr::null_mut(),
            );
        }
    }
}
