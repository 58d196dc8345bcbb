//! The results of options, and the refusals of wrong ones.

use super::words::Mode;
use super::*;
use emulator::simclock::Costs;
use emulator::size::mib;

/// With four vCPUs unless the arguments say how many: the default depends on the host.
fn parse(arguments: &[&str]) -> Result<RunOptions, clap::Error> {
    let says = (arguments.iter().take_while(|argument| **argument != "--"))
        .any(|argument| argument.starts_with("--vcpus"));
    let usual = (!says).then_some("--vcpus=4");
    let all = ["scripts/run"]
        .into_iter()
        .chain(usual)
        .chain(arguments.iter().copied());
    RunOptions::parse_arguments(all.map(OsString::from))
}

fn plan(arguments: &[&str]) -> Result<Plan, ToolError> {
    match parse(arguments) {
        Ok(options) => options.plan(),
        Err(error) => Err(ToolError::Usage(one_line(&error))),
    }
}

fn refused(arguments: &[&str]) -> String {
    match plan(arguments) {
        Err(ToolError::Usage(text)) => {
            assert!(!text.contains('\n'), "more than one line: {text}");
            text
        }
        other => panic!("{arguments:?} gave {other:?}"),
    }
}

#[test]
fn the_defaults_compare_the_three_modes() {
    let plan = plan(&[]).expect("the defaults are sound");
    assert_eq!(
        plan.workload.modes,
        [Mode::Mutex, Mode::RwLock, Mode::Parallel]
    );
    assert_eq!((plan.cpus, plan.gic, plan.memory), (5, Gic::V3, mib(512)));
    assert_eq!(
        plan.append,
        "mode=mutex,rwlock,parallel vcpus=4 bytes=65536K backing=2M timeout=120 iterations=3 write_percent=100"
    );
    let limit = Limit {
        first_line: Some(Duration::from_millis(16_250)),
        ..Limit::silence(Duration::from_secs(180))
    };
    assert_eq!(plan.limit, limit);
}

#[test]
fn a_run_has_no_more_vcpus_than_its_host_has_cpus() {
    let cases = [(1, 1), (2, 2), (3, 3), (4, 4), (64, 4), (u32::MAX, 4)];
    for (host_cpus, vcpus) in cases {
        assert_eq!(usual_vcpus(host_cpus), vcpus);
    }
    let options = RunOptions::parse_arguments(["scripts/run".into()]).expect("no options");
    let plan = options.plan().expect("the defaults are sound");
    let usual = format!(" vcpus={} ", usual_vcpus(host_cpus()));
    assert!(plan.append.contains(&usual), "{}", plan.append);
}

#[test]
fn every_option_reaches_the_hypervisor() {
    let plan = plan(&[
        "--vcpus=2",
        "--bytes=8M",
        "--iterations=5",
        "--backing=4k",
        "--mode=parallel",
        "--mode=mutex",
        "--random",
        "--write-percent=50",
        "--seed=7",
        "--append=log=debug",
        "--smp=4",
        "--mem=1G",
        "--timeout=9",
    ]);
    let plan = plan.expect("sound options");
    assert_eq!((plan.cpus, plan.memory), (4, mib(1024)));
    assert_eq!(
        plan.append,
        "mode=parallel,mutex vcpus=2 bytes=8192K backing=4K timeout=9 iterations=5 write_percent=50 random seed=7 \
         log=debug"
    );
}

#[test]
fn the_memory_has_as_many_slots_as_a_vm_has_for_it() {
    let most = plan(&["--backing=4k", "--slots=500"]).expect("sound options");
    assert!(most.append.contains("slots=500"), "{}", most.append);
    let beyond = refused(&["--slots=501"]);
    assert!(beyond.contains("501") && beyond.contains("500"), "{beyond}");
    let help = parse(&["--help"]).expect_err("it is help").to_string();
    assert!(
        help.contains("slots the memory is cut, at most 500"),
        "{help}"
    );
}

#[test]
fn the_stress_run_replaces_the_benchmark_and_has_room_for_copies() {
    let plan = plan(&[
        "--stress=9",
        "--vcpus=4",
        "--bytes=128M",
        "--seed=3",
        "--slots=2",
    ]);
    let plan = plan.expect("sound options");
    assert_eq!(
        plan.append,
        "mode=parallel vcpus=4 bytes=131072K backing=2M timeout=120 guest=stress seconds=9 seed=3 slots=2"
    );
    // Its memory and its copy, both for a fork too, and one for the fork's parent.
    assert_eq!(plan.memory, mib(2816));
    assert_eq!(plan.limit.silence, Some(Duration::from_secs(180)));
    assert_eq!(plan.cpus, 9, "a fork may run beside the VM");
    assert!(refused(&["--stress=9", "--split=none"]).contains("--split"));
    assert!(refused(&["--stress=9", "--iterations=2"]).contains("--iterations"));
}

#[test]
fn changes_of_backing_replace_the_benchmark_and_have_cpus_and_memory_for_all() {
    let plan = plan(&["--workload=cow", "--vcpus=8", "--bytes=64M"]).expect("sound options");
    assert_eq!(
        plan.append,
        "mode=parallel vcpus=8 bytes=65536K backing=4K timeout=120 guest=backing workload=cow tracker=ranges \
         change=direct,unmap overcommit=100 workers=0 iterations=3"
    );
    assert_eq!((plan.cpus, plan.memory), (17, mib(1280)));
    assert_eq!(plan.workload.runs(), 2);
    let options = [
        "--workload=invalidate",
        "--workers=0,4",
        "--backing=2M",
        "--mode=rwlock,parallel",
    ];
    let plan = super::tests::plan(&options).expect("sound options");
    assert_eq!((plan.cpus, plan.workload.runs()), (9, 8));
    assert!(plan.append.contains("backing=2M") && plan.append.contains("workers=0,4"));
    assert!(refused(&["--workload=cow", "--split=none"]).contains("--split"));
    assert!(refused(&["--workload=cow", "--stress=2"]).contains("--stress"));
    assert!(refused(&["--workload=swap"]).contains("swap"));
    assert!(refused(&["--tracker=ranges"]).contains("--workload"));
    assert!(
        refused(&["--workload=cow", "--change=direct,direct"]).contains("direct is given twice")
    );
    let says = "--smp 8: too few CPUs: --vcpus 4 and a second VM need 8, and the hypervisor has one of its own";
    assert_eq!(refused(&["--workload=cow", "--vcpus=4", "--smp=8"]), says);
}

#[test]
fn merging_takes_a_cpu_and_says_only_what_is_given() {
    let plan = |arguments: &[&str]| plan(arguments).expect("sound options");
    let usual = plan(&["--merging", "--mode=parallel"]);
    assert_eq!(usual.cpus, 6);
    assert!(
        usual.append.ends_with("write_percent=100 merging"),
        "{}",
        usual.append
    );
    let several = plan(&["--merging=3", "--mode=parallel"]);
    assert_eq!(several.cpus, 8);
    assert!(several.append.ends_with("write_percent=100 merging=3"));
    assert_eq!(plan(&["--merging=1", "--mode=parallel"]), usual);
    let given = plan(&[
        "--workload=merge",
        "--merge-targets=test,ram",
        "--pages-to-scan=500",
        "--sleep-millisecs=20",
        "--max-page-sharing=8",
    ]);
    let words = "workers=0,1 iterations=3 merge_targets=test,ram pages_to_scan=500 sleep_millisecs=20 max_page_sharing=8";
    assert!(given.append.ends_with(words), "{}", given.append);
    let program = plan(&["--guest=x", "--merging", "--merge-targets=ram"]);
    assert!(
        program
            .append
            .ends_with("guest=program merging merge_targets=ram")
    );
}

#[test]
fn harvesters_take_cpus() {
    let several = plan(&["--harvesters=8", "--vcpus=4", "--mode=parallel"]).expect("sound options");
    assert_eq!(several.cpus, 12);
    assert!(
        several.append.ends_with("write_percent=100 harvesters=8"),
        "{}",
        several.append
    );
    let says = "--smp 5: too few CPUs: --vcpus 4 and --harvesters 8 need 11";
    assert!(refused(&["--harvesters=8", "--vcpus=4", "--smp=5"]).contains(says));
    assert!(refused(&["--harvesters=0"]).contains("--harvesters"));
    assert!(refused(&["--harvesters=2", "--stress=5"]).contains("--harvesters"));
    assert!(refused(&["--harvesters=2", "--workload=cow"]).contains("--harvesters"));
}

#[test]
fn merging_that_cant_be_is_refused() {
    assert!(refused(&["--merging", "--workload=merge"]).contains("--merging"));
    let says = "--smp 5: too few CPUs: --vcpus 4 and --merging need 5";
    assert!(refused(&["--merging", "--vcpus=4", "--smp=5"]).contains(says));
    let says = "--smp 6: too few CPUs: --vcpus 4 and --merging=2 need 6";
    assert!(refused(&["--merging=2", "--vcpus=4", "--smp=6"]).contains(says));
    assert!(refused(&["--merging=0"]).contains("--merging"));
    assert!(refused(&["--merging", "--stress=5"]).contains("--merging"));
    assert!(refused(&["--sleep-millisecs=5"]).contains("--sleep-millisecs: nothing is merged"));
    assert!(refused(&["--merging", "--pages-to-scan=0"]).contains("--pages-to-scan"));
    assert!(refused(&["--merging", "--max-page-sharing=1"]).contains("--max-page-sharing"));
    assert!(refused(&["--merging", "--merge-targets=disk"]).contains("disk"));
    assert!(refused(&["--merging", "--merge-targets=ram,ram"]).contains("ram is given twice"));
    let program = ["--guest=x", "--merging", "--merge-targets=test"];
    assert!(refused(&program).contains("--merge-targets test"));
}

#[test]
fn the_benchmark_takes_one_overcommit() {
    let plan = plan(&["--overcommit=150", "--mode=parallel"]).expect("sound options");
    assert!(
        plan.append.ends_with("write_percent=100 overcommit=150"),
        "{}",
        plan.append
    );
    assert!(refused(&["--overcommit=100,150"]).contains("--overcommit: the benchmark"));
    assert!(refused(&["--overcommit=99"]).contains("99"));
    assert!(refused(&["--overcommit=150", "--stress=5"]).contains("--overcommit"));
    assert!(refused(&["--overcommit=150", "--guest=x"]).contains("--overcommit"));
}

#[test]
fn a_guest_of_ones_own_replaces_the_benchmark() {
    let plan = plan(&["--guest", "some.img", "--vcpus=1"]).expect("sound options");
    assert_eq!(
        plan.append,
        "mode=parallel vcpus=1 bytes=65536K backing=2M timeout=120 guest=program"
    );
    assert!(refused(&["--guest", "a.img", "--json", "x"]).contains("--json"));
    assert!(refused(&["--guest", "a.img", "--mode=mutex,parallel"]).contains("one mode"));
    assert!(refused(&["--guest-append", "x"]).contains("--guest"));
}

#[test]
fn what_linux_has_when_its_writes_are_logged_says_that_they_arent() {
    for (arguments, option) in [
        (["--iterations", "4"], "--iterations"),
        (["--split", "eager"], "--split"),
        (["--json", "x"], "--json"),
        (["--split-chunk", "2M"], "--split-chunk"),
    ] {
        let [first, second] = arguments;
        let says = format!("{option} with --linux needs --dirty-log");
        assert_eq!(refused(&["--linux", first, second]), says);
        assert!(plan(&["--linux", "--dirty-log", first, second]).is_ok());
    }
    assert!(refused(&["--linux", "--write-percent=4"]).contains("cannot be used"));
    assert!(refused(&["--kernel=x", "--iterations=4"]).contains("cannot be used"));
}

#[test]
fn unknown_and_malformed_options_are_refused_in_one_line() {
    assert!(refused(&["--vcpu", "3"]).contains("--vcpu"));
    assert!(refused(&["stray"]).contains("stray"));
    assert!(refused(&["--bytes", "64T"]).contains("64T"));
    assert!(refused(&["--bytes"]).contains("--bytes"));
    assert!(refused(&["--mode", "fast"]).contains("fast"));
    assert!(refused(&["--backing", "8M"]).contains("8M"));
    assert!(refused(&["--write-percent", "101"]).contains("101"));
    assert!(refused(&["--gic", "4"]).contains('4'));
    assert!(refused(&["--vcpus", "0"]).contains('0'));
    assert!(refused(&["--iterations", "0"]).contains('0'));
    assert!(refused(&["--smp", "129"]).contains("129"));
    assert!(refused(&["--cpu", ""]).contains("--cpu"));
    assert!(refused(&["--vcpus=2", "--vcpus=3"]).contains("--vcpus"));
    assert!(refused(&["--vcpus", "-1"]).contains("'-1' for '--vcpus <N>'"));
    assert!(refused(&["--bytes", "-8"]).contains("'-8' for '--bytes <SIZE>'"));
    assert!(refused(&["--cpu", "cortex-m3"]).contains("--cpu cortex-m3: a CPU of 32 bits"));
}

#[test]
fn contradictions_are_refused() {
    let says = "--smp 1: too few CPUs: --vcpus 4 needs 4, and the hypervisor has one of its own";
    assert_eq!(refused(&["--smp", "1"]), says);
    assert!(refused(&["--vcpus", "4", "--smp", "4"]).contains("--smp 4: too few"));
    let says =
        "--vcpus 8 needs 8 CPUs, and the hypervisor has one of its own: --gic 2 serves at most 8";
    assert_eq!(refused(&["--gic", "2", "--vcpus", "8"]), says);
    let says = "--smp 9: --gic 2 serves at most 8 CPUs";
    assert_eq!(refused(&["--gic", "2", "--smp", "9"]), says);
    let says = "--bytes 0: each vCPU needs memory, at least 4 KiB";
    assert_eq!(refused(&["--bytes", "0"]), says);
    let says = "--bytes: 6000 bytes aren't a multiple of 4 KiB";
    assert_eq!(refused(&["--bytes", "6000"]), says);
    assert!(refused(&["--bytes", "99999999999G"]).contains("no machine has so much"));
    assert!(refused(&["--mem", "99999999999G"]).contains("no machine has so much"));
    assert!(refused(&["--mem", "256M"]).contains("don't fit"));
    assert!(refused(&["--mem", "5000"]).contains("1 MiB"));
    assert!(refused(&["--bytes", "17179869183G"]).contains("any machine"));
    assert!(refused(&["--mode=mutex", "--mode=mutex"]).contains("twice"));
    assert!(refused(&["--gdb", "--host-timeout=5"]).contains("--gdb"));
}

#[test]
fn memory_leaves_room_for_aligned_blocks() {
    let memory = |arguments: &[&str]| plan(arguments).expect("sound options").memory;
    assert_eq!(memory(&["--backing=1G"]), mib(2304));
    assert_eq!(memory(&["--bytes=1G", "--vcpus=2"]), mib(2304));
    assert!(memory(&["--bytes=8M", "--vcpus=32"]) >= mib(448));
}

#[test]
fn what_follows_two_dashes_is_qemus() {
    let options = parse(&["--vcpus=1", "--", "-d", "int"]).expect("sound options");
    assert_eq!(options.machine.qemu, ["-d", "int"]);
}

#[test]
fn simulated_time_has_costs_and_takes_long() {
    let costs = |arguments: &[&str]| parse(arguments).expect("sound options").machine.costs();
    assert_eq!(costs(&[]), None);
    assert_eq!(costs(&["--simulated"]), Some(Costs::default()));
    let given = costs(&["--simulated", "--line-cost=0", "--tlbi-cost=400"]);
    assert_eq!(
        given,
        Some(Costs {
            line_ns: 0,
            tlbi_ns: 400
        })
    );
    let plan = plan(&["--simulated", "--mode=parallel"]).expect("sound options");
    assert_eq!(plan.limit.silence, Some(Duration::from_secs(1800)));
    assert!(refused(&["--line-cost=50"]).contains("--simulated"));
    assert!(refused(&["--simulated", "--check"]).contains("--check"));
    assert!(refused(&["--simulated", "--tlbi-cost=2000000"]).contains("2000000"));
}

#[test]
fn a_debugger_may_take_its_time() {
    let plan = |arguments: &[&str]| plan(arguments).expect("sound options");
    assert_eq!(plan(&["--gdb"]).limit, Limit::NONE);
    assert_eq!(plan(&["--", "-S", "-s"]).limit, Limit::NONE);
    let total = Limit::total(Duration::from_secs(7));
    assert_eq!(plan(&["--host-timeout=7"]).limit, total);
}

#[test]
fn a_debugger_may_have_another_port() {
    let port = |arguments: &[&str]| parse(arguments).expect("sound options").gdb;
    assert_eq!(port(&[]), None);
    assert_eq!(port(&["--gdb"]), Some(1234));
    assert_eq!(port(&["--gdb", "--vcpus=1"]), Some(1234));
    assert_eq!(port(&["--gdb", "4321"]), Some(4321));
    assert!(refused(&["--gdb=0"]).contains("--gdb"));
    assert!(refused(&["--gdb=70000"]).contains("70000"));
}

#[test]
fn the_stress_run_has_less_memory_unless_the_user_says() {
    let append = |arguments: &[&str]| plan(arguments).expect("sound options").append;
    assert!(append(&["--stress=5"]).contains(" bytes=8192K "));
    assert!(append(&["--stress=5", "--bytes=64M"]).contains(" bytes=65536K "));
}

#[test]
fn what_has_an_option_of_its_own_isnt_appended() {
    let says = "--append vcpus=2: say it by --vcpus";
    assert!(refused(&["--append", "log=debug vcpus=2"]).contains(says));
    assert!(refused(&["--append=seconds=2", "--stress=4"]).contains("say it by --stress"));
    assert!(refused(&["--append=vm=garbage"]).contains("--append vm=garbage: say it by --vm"));
    assert!(refused(&["--append=firmware=1"]).contains("say it by --firmware"));
    assert!(plan(&["--append", "slots=2 exit_times"]).is_ok());
}

#[test]
fn what_is_built_is_quick_unless_its_times_mean_something() {
    let profile = |arguments: &[&str]| parse(arguments).expect("sound options").profile();
    assert_eq!(profile(&[]), Profile::Quick);
    assert_eq!(profile(&["--simulated"]), Profile::Best);
    assert_eq!(profile(&["--profile", "best"]), Profile::Best);
    assert_eq!(profile(&["--simulated", "--profile=quick"]), Profile::Quick);
}
