//! What the emulator calls: the plugin's installation, and its callbacks, each on the thread of the CPU that it is about.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs;
use std::ptr;
use std::thread;

use qemu_plugin_sys as qemu;

use crate::MOST_CPUS;
use crate::decode::{Scope, fetches_to_write, tlb_invalidation};
use crate::interposed;
use crate::lines::Access;
use crate::options::{Options, one_thread_for_all};
use crate::simulation::{SIMULATION, Simulation};

const NO_REGISTERS: qemu::qemu_plugin_cb_flags = qemu::qemu_plugin_cb_flags::QEMU_PLUGIN_CB_NO_REGS;

/// The version of the emulator's interface that the plugin was made for: QEMU 10.0's.
// SAFETY: the name is the emulator's for this very purpose.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 4;

/// Where the emulator's arguments can be read, each ended by a zero byte.
const COMMAND_LINE: &str = "/proc/self/cmdline";
/// What is said where one thread runs all CPUs: they would wait for each other for ever, and `-icount` has a clock of its own.
const NEEDS_THREADS: &str =
    "simulated time needs a thread for each CPU, as '-accel tcg,thread=multi' has them";

thread_local! {
    /// The CPU whose thread this is.
    static CPU: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The CPU whose thread calls, if it is a CPU's.
pub fn own_cpu() -> Option<usize> {
    CPU.get()
}

/// Installs the plugin, and tells the emulator whether that went well.
///
/// # Safety
///
/// Called by the emulator: `arguments` are as many strings as `count` says.
// SAFETY: the name is the emulator's for this very purpose.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: qemu::qemu_plugin_id_t,
    _: *const qemu::qemu_info_t,
    count: c_int,
    arguments: *mut *mut c_char,
) -> c_int {
    let arguments = (0..usize::try_from(count).unwrap_or(0)).map(|index| {
        // SAFETY: the caller's promise.
        let argument = unsafe { CStr::from_ptr(*arguments.add(index)) };
        argument.to_string_lossy()
    });
    match install(id, arguments) {
        Ok(()) => 0,
        Err(reason) => {
            eprintln!("simclock: {reason}");
            -1
        }
    }
}

fn install<S: AsRef<str>>(
    id: qemu::qemu_plugin_id_t,
    arguments: impl IntoIterator<Item = S>,
) -> Result<(), String> {
    let options = Options::parse(arguments)?;
    if !interposed::is_in_place() {
        return Err("not preloaded: LD_PRELOAD must name this library too".into());
    }
    if let Some(option) = fs::read(COMMAND_LINE)
        .ok()
        .as_deref()
        .and_then(one_thread_for_all)
    {
        return Err(format!("{option}: {NEEDS_THREADS}"));
    }
    if options.is_check {
        // SAFETY: the emulator has started nothing yet that would have to be ended.
        unsafe { libc::_exit(0) };
    }
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let simulation = Simulation::new(options, cores, interposed::real_time());
    if SIMULATION.set(simulation).is_err() {
        return Err("loaded twice".into());
    }
    // SAFETY: the callbacks live as long as the library, which the emulator never unloads.
    unsafe {
        qemu::qemu_plugin_register_vcpu_init_cb(id, Some(cpu_created));
        qemu::qemu_plugin_register_vcpu_exit_cb(id, Some(cpu_gone));
        qemu::qemu_plugin_register_vcpu_idle_cb(id, Some(cpu_idles));
        qemu::qemu_plugin_register_vcpu_resume_cb(id, Some(cpu_resumes));
        qemu::qemu_plugin_register_vcpu_tb_trans_cb(id, Some(block_translated));
        qemu::qemu_plugin_register_atexit_cb(id, Some(emulator_ends), ptr::null_mut());
    }
    Ok(())
}

/// The machine. The callbacks are registered after it was made.
fn simulation() -> &'static Simulation {
    match SIMULATION.get() {
        Some(simulation) => simulation,
        None => unreachable!("no callback comes before the installation"),
    }
}

extern "C" fn cpu_created(_: qemu::qemu_plugin_id_t, cpu: c_uint) {
    let cpu = cpu as usize;
    if cpu >= MOST_CPUS {
        eprintln!("simclock: the machine has more than {MOST_CPUS} CPUs");
        std::process::exit(1);
    }
    if CPU.replace(Some(cpu)).is_some_and(|other| other != cpu) {
        eprintln!("simclock: one thread runs several CPUs: {NEEDS_THREADS}");
        std::process::exit(1);
    }
    simulation().start(cpu, interposed::real_time());
}

extern "C" fn cpu_gone(_: qemu::qemu_plugin_id_t, cpu: c_uint) {
    simulation().remove(cpu as usize);
}

extern "C" fn cpu_idles(_: qemu::qemu_plugin_id_t, cpu: c_uint) {
    simulation().idle(cpu as usize, interposed::real_time());
}

extern "C" fn cpu_resumes(_: qemu::qemu_plugin_id_t, cpu: c_uint) {
    simulation().start(cpu as usize, interposed::real_time());
}

extern "C" fn turn_spent(cpu: c_uint, _: *mut c_void) {
    simulation().spent(cpu as usize);
}

extern "C" fn memory_accessed(
    cpu: c_uint,
    information: qemu::qemu_plugin_meminfo_t,
    address: u64,
    _: *mut c_void,
) {
    // SAFETY: called within the emulator's callback, with what that was given.
    let is_store = unsafe { qemu::qemu_plugin_mem_is_store(information) };
    let access = if is_store {
        Access::Store
    } else {
        Access::Load
    };
    accessed(cpu, information, address, access);
}

extern "C" fn memory_fetched_to_write(
    cpu: c_uint,
    information: qemu::qemu_plugin_meminfo_t,
    address: u64,
    _: *mut c_void,
) {
    accessed(cpu, information, address, Access::Store);
}

fn accessed(cpu: c_uint, information: qemu::qemu_plugin_meminfo_t, address: u64, access: Access) {
    // SAFETY: called within the emulator's callback, with what that was given.
    let physical = unsafe {
        let found = qemu::qemu_plugin_get_hwaddr(information, address);
        if found.is_null() || qemu::qemu_plugin_hwaddr_is_io(found) {
            return;
        }
        qemu::qemu_plugin_hwaddr_phys_addr(found)
    };
    simulation().access(cpu as usize, physical, access);
}

extern "C" fn invalidated_locally(cpu: c_uint, _: *mut c_void) {
    simulation().invalidate(cpu as usize, Scope::Local);
}

extern "C" fn invalidated_everywhere(cpu: c_uint, _: *mut c_void) {
    simulation().invalidate(cpu as usize, Scope::Broadcast);
}

extern "C" fn block_translated(_: qemu::qemu_plugin_id_t, block: *mut qemu::qemu_plugin_tb) {
    let simulation = simulation();
    // SAFETY: the block and its instructions are the emulator's, within its callback; a callback that is registered lives
    // as long as the library.
    unsafe {
        let instructions = qemu::qemu_plugin_tb_n_insns(block);
        let counters = simulation.counters();
        counters.count_in(block, instructions as u64, Some(turn_spent));
        for index in 0..instructions {
            let instruction = qemu::qemu_plugin_tb_get_insn(block, index);
            let mut bytes = [0; 4];
            let read =
                qemu::qemu_plugin_insn_data(instruction, bytes.as_mut_ptr().cast(), bytes.len());
            // A64 instructions are words; what else there may be is none that is looked for.
            let word = if read == bytes.len() {
                u32::from_le_bytes(bytes)
            } else {
                0
            };
            let scope = tlb_invalidation(word);
            if let Some(scope) = scope {
                let callback = match scope {
                    Scope::Local => invalidated_locally,
                    Scope::Broadcast => invalidated_everywhere,
                };
                qemu::qemu_plugin_register_vcpu_insn_exec_cb(
                    instruction,
                    Some(callback),
                    NO_REGISTERS,
                    ptr::null_mut(),
                );
            }
            if simulation.has_lines(qemu::qemu_plugin_insn_vaddr(instruction)) {
                let callback = match fetches_to_write(word) {
                    true => memory_fetched_to_write,
                    false => memory_accessed,
                };
                qemu::qemu_plugin_register_vcpu_mem_cb(
                    instruction,
                    Some(callback),
                    NO_REGISTERS,
                    qemu::qemu_plugin_mem_rw::QEMU_PLUGIN_MEM_RW,
                    ptr::null_mut(),
                );
            }
        }
    }
}

extern "C" fn emulator_ends(_: qemu::qemu_plugin_id_t, _: *mut c_void) {
    eprintln!(
        "simclock: {}",
        simulation().summary(interposed::real_time())
    );
}
