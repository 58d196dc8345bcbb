//! What single operations cost a guest, on simulated time: the same guest on Parvisor, under Linux's KVM, and on the machine
//! itself, in one table.

mod ran;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use self::ran::{Kind, Ran};
use super::options::BenchOptions;
use emulator::boot;
use emulator::effort::Limit;
use emulator::error::ToolError;
use emulator::files;
use emulator::images::{self, Images};
use emulator::qemu::{Gic, Machine, Module, ModuleKind};
use emulator::setup;
use emulator::simclock::{self, Costs, Simulation};
use emulator::size::mib;
use emulator::standard_output::print_line;
use linux::{Guest, Micro, Series};
use records::words::Profile;

/// CPUs are never farther apart than twice this, in nanoseconds.
const QUANTUM_NS: u64 = 100;
/// How often each operation is done.
const TIMES: u64 = 1000;
/// What the second column is.
const AT_MOST: &str =
    "at most: what the row may come to on Parvisor, on a neoverse-n1; more has to be explained\n";
/// No machine works longer.
const LIMIT: Limit = Limit::total(Duration::from_secs(1800));
/// RAM of the guest and of the machine.
const GUEST_MIB: u64 = 64;
const MACHINE_MIB: u64 = 512;
const LINUX_MIB: u64 = 512;
const LINUX_MACHINE_MIB: u64 = 1536;
/// How long a booted Linux is left alone, in seconds.
const IDLE_SECONDS: u64 = 10;
/// The most exits of a second of it.
const MOST_IDLE: f64 = 100.0;
/// What the guest does, one after the other: the operations; nothing; ticks of its timer.
const RUNS: [&str; 3] = ["costs", "no ticks", "ticks"];
const NS_PER_MS: f64 = 1e6;

/// A row of the table.
struct Row {
    /// The guest's word for it.
    name: &'static str,
    /// The user's.
    title: &'static str,
    /// The most that it is to cost on Parvisor.
    most: Option<f64>,
    digits: usize,
}

const fn row(name: &'static str, title: &'static str, most: Option<f64>, digits: usize) -> Row {
    Row {
        name,
        title,
        most,
        digits,
    }
}

const ROWS: [Row; 11] = [
    row("hypercall", "hypercall, ns", Some(250.0), 0),
    row("vgic", "vGIC register read, ns", Some(400.0), 0),
    row("device", "device register read, ns", None, 0),
    row("eoi", "end of interrupt, ns", Some(21.0), 0),
    row("ipi", "IPI to the handler, ns", Some(1200.0), 0),
    row("ipi_pairs", "IPI, all pairs at once, ns", Some(1200.0), 0),
    row("lpi", "LPI by INT to the handler, ns", Some(1500.0), 0),
    row("ipi_asleep", "IPI to a vCPU in WFI, ns", None, 0),
    row("tick", "exits for a timer tick", Some(1.0), 2),
    row("start", "power-on to guest, ms", Some(20.0), 2),
    row("init", "Linux to its init, ms", None, 1),
];

/// What was measured of a system.
#[derive(Debug, Default, Serialize)]
struct Column {
    system: String,
    vcpus: u32,
    /// By the names of [`ROWS`].
    values: BTreeMap<String, f64>,
    /// Exits by kind, of the boot of Linux to its first program, if there was one.
    boot_exits: BTreeMap<Kind, u64>,
    /// The same of a second in which it does nothing.
    idle_exits: BTreeMap<Kind, f64>,
}

/// What goes to the file of --json.
#[derive(Debug, Serialize)]
struct Results<'r> {
    cpu: &'r str,
    quantum: u64,
    times: u64,
    columns: &'r [Column],
}

/// Measures and shows it.
pub fn measure(options: &BenchOptions) -> Result<u8, ToolError> {
    if let Some(json) = &options.json {
        files::check_option("--json", json)?;
    }
    setup::rust_target()?;
    let emulator = setup::emulator()?;
    let images = images::build(Profile::Best)?;
    let costs = Costs {
        line_ns: 0,
        tlbi_ns: 0,
    };
    let bench = Bench {
        guest: images::build_micro()?,
        vmm: match options.with_kvm.is_empty() {
            true => None,
            false => Some(images::build_vmm()?),
        },
        simulation: simclock::prepare(&emulator, costs)?.with_quantum(QUANTUM_NS),
        emulator,
        images,
        options,
    };
    let mut columns = Vec::new();
    for vcpus in options.micro_vcpus() {
        bench.measure(*vcpus, &mut columns)?;
    }
    print_line(table(&columns).trim_end_matches('\n'));
    if let Some(exits) = table_of_exits(&columns) {
        print_line(format_args!("\n{}", exits.trim_end_matches('\n')));
    }
    if let Some(json) = &options.json {
        let results = Results {
            cpu: &options.machine.cpu,
            quantum: QUANTUM_NS,
            times: TIMES,
            columns: &columns,
        };
        let text = serde_json::to_vec_pretty(&results).map_err(std::io::Error::from);
        text.and_then(|text| files::replace(json, &text))
            .map_err(|error| ToolError::unusable(json, &error))?;
    }
    Ok(0)
}

/// What is measured, and by what.
struct Bench<'b> {
    emulator: PathBuf,
    images: Images,
    guest: PathBuf,
    vmm: Option<PathBuf>,
    simulation: Simulation,
    options: &'b BenchOptions,
}

impl Bench<'_> {
    fn measure(&self, vcpus: u32, columns: &mut Vec<Column>) -> Result<(), ToolError> {
        let column = |system: &str, mut values: BTreeMap<String, f64>| {
            scale(&mut values);
            Column {
                system: system.into(),
                vcpus,
                values,
                ..Column::default()
            }
        };
        let mut bare = self.run(&self.bare(vcpus, &self.guest, &word(RUNS[0])))?;
        // Nothing has to be started there.
        bare.values.remove("start");
        let bare = column("no hypervisor", bare.values);
        let mut parvisor = self.run(&self.parvisor(vcpus, &word(RUNS[0])))?.values;
        let [none, ticks] =
            [RUNS[1], RUNS[2]].map(|run| self.run(&self.parvisor(vcpus, &word(run))));
        let ticks = ticks?.exits().saturating_sub(none?.exits());
        parvisor.insert("tick".into(), ticks as f64 / TIMES as f64);
        let parvisor = column("Parvisor", parvisor);
        columns.extend([bare, parvisor]);
        for series in &self.options.with_kvm {
            let trees = self.trees(vcpus)?;
            let (Some(vmm), image) = (&self.vmm, &self.guest) else {
                continue;
            };
            let guest = Guest {
                vmm,
                image,
                trees: &trees,
                vcpus,
            };
            let micro = linux::prepare_micro(*series, &guest, |what| eprintln!("setup: {what}"))?;
            let (emulator, cpu) = (&self.emulator, &self.options.machine.cpu);
            let ran = self.run(&micro.machine(emulator, cpu, vcpus, &self.simulation))?;
            let mut values = ran.values;
            values.remove("start");
            if let [_, none, ticks] = ran.kvm_exits[..] {
                let ticks = ticks.saturating_sub(none) as f64;
                values.insert("tick".into(), ticks / TIMES as f64);
            }
            let system = format!("KVM {}", micro.measuring.version);
            columns.push(column(&system, values));
            if vcpus == self.options.micro_vcpus()[0] {
                columns.extend(self.boots(*series, &micro)?);
            }
        }
        Ok(())
    }

    /// The boots of Linux to its first program, on the machine, on Parvisor and on KVM; on these two once more, with a while in
    /// which it does nothing, whose exits are counted.
    fn boots(&self, series: Series, micro: &Micro) -> Result<Vec<Column>, ToolError> {
        let version = &micro.booting.version;
        let bare = self.run(&self.bare_linux(micro, 0))?;
        let mut columns = vec![linux_column(version, "no hypervisor", bare, None)];
        let on_parvisor = |seconds| self.run(&self.parvisor_linux(micro, seconds)?);
        let (boot, idle) = (on_parvisor(0)?, on_parvisor(IDLE_SECONDS)?);
        columns.push(linux_column(version, "Parvisor", boot, Some(idle)));
        if let Some(vmm) = &self.vmm {
            let on_kvm = |seconds| {
                let tree = self.tree(self.bare_linux(micro, seconds))?;
                let like = self.parvisor(1, "");
                let like = Machine {
                    kernel: Some(micro.booting.image.clone()),
                    modules: Vec::new(),
                    ..like
                };
                self.run(&micro.boot_machine(series, vmm, &tree, LINUX_MIB, like)?)
            };
            let (mut boot, idle) = (on_kvm(0)?, on_kvm(IDLE_SECONDS)?);
            // From the machine's power-on, with the boot of the host; and exits that are traced take longer.
            boot.values.clear();
            let system = format!("KVM {}", micro.measuring.version);
            columns.push(linux_column(version, &system, boot, Some(idle)));
        }
        Ok(columns)
    }

    fn bare_linux(&self, micro: &Micro, idle_seconds: u64) -> Machine {
        let kernel = &micro.booting;
        let mut bare = self.bare(1, &kernel.image, &linux_arguments(idle_seconds));
        bare.memory = mib(LINUX_MIB);
        bare.extra = vec!["-initrd".into(), kernel.initramfs.clone().into()];
        bare
    }

    fn parvisor_linux(&self, micro: &Micro, idle_seconds: u64) -> Result<Machine, ToolError> {
        let kernel = &micro.booting;
        let arguments = linux_arguments(idle_seconds);
        let memory = mib(LINUX_MACHINE_MIB);
        let mut parvisor = self.parvisor(1, &arguments);
        parvisor.memory = memory;
        parvisor.append = self.append(1, LINUX_MIB);
        let at = Machine::module_address(memory);
        let length = fs::metadata(&kernel.image)
            .map_err(|error| ToolError::unusable(&kernel.image, &error))?
            .len();
        parvisor.modules = vec![
            module(ModuleKind::Kernel, &kernel.image, at, Some(&arguments)),
            module(
                ModuleKind::Ramdisk,
                &kernel.initramfs,
                Machine::address_behind(at + length),
                None,
            ),
        ];
        Ok(parvisor)
    }

    /// The machine without a hypervisor.
    fn bare(&self, cpus: u32, kernel: &Path, arguments: &str) -> Machine {
        Machine {
            emulator: self.emulator.clone(),
            cpu: self.options.machine.cpu.clone(),
            gic: Gic::V3,
            cpus,
            memory: mib(GUEST_MIB),
            el2: false,
            kernel: Some(kernel.into()),
            append: arguments.into(),
            modules: Vec::new(),
            debugger: None,
            simulation: Some((self.simulation.clone(), 0..0)),
            extra: Vec::new(),
        }
    }

    fn parvisor(&self, vcpus: u32, arguments: &str) -> Machine {
        let memory = mib(MACHINE_MIB);
        let at = Machine::module_address(memory);
        Machine {
            cpus: vcpus + 1,
            memory,
            el2: true,
            kernel: Some(self.images.hypervisor.clone()),
            append: self.append(vcpus, GUEST_MIB),
            modules: vec![module(ModuleKind::Kernel, &self.guest, at, Some(arguments))],
            ..self.bare(vcpus, &self.guest, arguments)
        }
    }

    /// The hypervisor's options.
    fn append(&self, vcpus: u32, mebibytes: u64) -> String {
        let further = self.options.machine.append.as_deref().unwrap_or("");
        let options = format!("guest=linux vcpus={vcpus} bytes={mebibytes}M console=lines");
        format!("{options} {further}").trim_end().into()
    }

    /// The device trees that QEMU makes for a machine like the guest's, one for each run.
    fn trees(&self, vcpus: u32) -> Result<Vec<(String, Vec<u8>)>, ToolError> {
        let trees = RUNS.iter().enumerate().map(|(number, run)| {
            let tree = self.tree(self.bare(vcpus, &self.guest, &word(run)))?;
            Ok((format!("{number}.dtb"), tree))
        });
        trees.collect()
    }

    /// The device tree that QEMU makes for a machine.
    fn tree(&self, mut machine: Machine) -> Result<Vec<u8>, ToolError> {
        let file = self.guest.with_file_name("micro.dtb");
        machine.simulation = None;
        let mut dump = std::ffi::OsString::from("dumpdtb=");
        dump.push(&file);
        machine.extra.extend(["-M".into(), dump]);
        self.start(&machine)?;
        fs::read(&file).map_err(|error| ToolError::unusable(&file, &error))
    }

    fn start(&self, machine: &Machine) -> Result<boot::Outcome, ToolError> {
        let is_verbose = self.options.machine.verbose;
        let observe = |_: &emulator::console::Line, text: &str| {
            if is_verbose {
                eprintln!("{text}");
            }
        };
        boot::run(&mut machine.command(), LIMIT, observe, |_| {})
            .map_err(|error| ToolError::unusable(&self.emulator, &error))
    }

    fn run(&self, machine: &Machine) -> Result<Ran, ToolError> {
        let outcome = self.start(machine)?;
        let lines: Vec<&str> = outcome.lines.iter().map(String::as_str).collect();
        let ran = Ran::read(&lines);
        match &ran.wrong {
            Some(wrong) => Err(ToolError::Io(format!("the guest says: {wrong}"))),
            None if ran.has_ended => Ok(ran),
            None => {
                let said: Vec<&str> = outcome.last_lines(3).collect();
                let how = outcome.end_in_words();
                Err(ToolError::NoStatus(format!("{how}: {}", said.join("; "))))
            }
        }
    }
}

/// What the guest is told for a run.
fn word(run: &str) -> String {
    match run {
        "costs" => format!("costs={TIMES}"),
        "ticks" => format!("ticks={TIMES}"),
        _ => "ticks=0".into(),
    }
}

/// What Linux is told; its first program sleeps for so many seconds.
fn linux_arguments(idle_seconds: u64) -> String {
    format!("console=ttyAMA0 panic=-1 IDLE={idle_seconds}")
}

/// What was measured of a boot of Linux, and of one with an idle while at its end.
fn linux_column(version: &str, system: &str, mut boot: Ran, idle: Option<Ran>) -> Column {
    scale(&mut boot.values);
    let boot_exits = boot.kinds();
    let idle = idle.map(|idle| idle.kinds()).unwrap_or_default();
    let idle = idle.into_iter().map(|(kind, count)| {
        let of_boot = boot_exits.get(&kind).copied().unwrap_or_default();
        (
            kind,
            (count as f64 - of_boot as f64).max(0.0) / IDLE_SECONDS as f64,
        )
    });
    Column {
        system: format!("Linux {version} on {system}"),
        vcpus: 1,
        values: boot.values,
        idle_exits: idle.collect(),
        boot_exits,
    }
}

fn module(kind: ModuleKind, image: &Path, address: u64, arguments: Option<&str>) -> Module {
    Module {
        kind,
        image: image.into(),
        address,
        bootargs: arguments.map(String::from),
    }
}

/// What takes long is shown in milliseconds.
fn scale(values: &mut BTreeMap<String, f64>) {
    for name in ["start", "init"] {
        if let Some(value) = values.get_mut(name) {
            *value /= NS_PER_MS;
        }
    }
}

fn table(columns: &[Column]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let heads = columns.iter().map(|column| match column.vcpus {
        1 => format!("{}, 1 vCPU", column.system),
        vcpus => format!("{}, {vcpus} vCPUs", column.system),
    });
    let heads = [String::new(), "at most".into()].into_iter().chain(heads);
    table.set_header(heads);
    for row in &ROWS {
        let shown = |value: f64| format!("{value:.*}", row.digits);
        let cells = columns.iter().map(|column| column.values.get(row.name));
        if cells.clone().all(|cell| cell.is_none()) {
            continue;
        }
        let most = row.most.map(shown).unwrap_or_default();
        let cells = cells.map(|cell| cell.copied().map(shown).unwrap_or_default());
        table.add_row([row.title.to_string(), most].into_iter().chain(cells));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n{AT_MOST}")
}

/// Exits of the boots of Linux by kind, and of a second in which it does nothing; nothing if there were no boots.
fn table_of_exits(columns: &[Column]) -> Option<String> {
    let booted = columns
        .iter()
        .filter(|column| !column.boot_exits.is_empty());
    let booted: Vec<&Column> = booted.collect();
    if booted.is_empty() {
        return None;
    }
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let heads = booted.iter().flat_map(|column| {
        let system = &column.system;
        [
            format!("{system}: boot"),
            format!("{system}: an idle second"),
        ]
    });
    let first = ["exits".to_string(), "idle, at most".to_string()];
    table.set_header(first.into_iter().chain(heads));
    for kind in Kind::ALL {
        let cells = booted.iter().flat_map(|column| {
            let boot = column.boot_exits.get(&kind).copied().unwrap_or_default();
            let idle = column.idle_exits.get(&kind).copied().unwrap_or_default();
            [boot.to_string(), format!("{idle:.1}")]
        });
        let cells: Vec<String> = cells.collect();
        if cells.iter().all(|cell| cell == "0" || cell == "0.0") {
            continue;
        }
        let first = [kind.title().to_string(), String::new()];
        table.add_row(first.into_iter().chain(cells));
    }
    let sums = booted.iter().flat_map(|column| {
        let boot: u64 = column.boot_exits.values().sum();
        let idle: f64 = column.idle_exits.values().sum();
        [boot.to_string(), format!("{idle:.1}")]
    });
    let first = ["all".to_string(), format!("{MOST_IDLE:.0}")];
    table.add_row(first.into_iter().chain(sums));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    Some(format!("{table}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_without_values_are_left_out() {
        let column = Column {
            system: "Parvisor".into(),
            vcpus: 2,
            values: BTreeMap::from([("hypercall".into(), 238.4), ("tick".into(), 1.0)]),
            ..Column::default()
        };
        let text = table(&[column]);
        assert!(
            text.contains("| hypercall, ns          |     250 |               238 |"),
            "{text}"
        );
        assert!(text.contains("1.00"), "{text}");
        assert!(!text.contains("IPI"), "{text}");
        assert!(text.ends_with(AT_MOST), "{text}");
    }

    #[test]
    fn an_idle_second_is_what_the_second_boot_has_more() {
        let ran = |waits, faults| Ran {
            counters: [
                ("wait_for_interrupt".to_string(), waits),
                ("translation_fault".to_string(), faults),
            ]
            .into(),
            ..Ran::default()
        };
        let column = linux_column("6.12", "Parvisor", ran(100, 7), Some(ran(150, 7)));
        assert_eq!(column.idle_exits[&Kind::Wait], 5.0);
        let text = table_of_exits(&[Column::default(), column]).expect("there was a boot");
        let rows: Vec<String> = text.lines().map(|line| line.replace(' ', "")).collect();
        assert!(
            rows.contains(&"|waitingforinterrupts||100|5.0|".into()),
            "{text}"
        );
        assert!(rows.contains(&"|memoryfaults||7|0.0|".into()), "{text}");
        assert!(rows.contains(&"|all|100|107|5.0|".into()), "{text}");
        assert_eq!(table_of_exits(&[Column::default()]), None);
    }
}
