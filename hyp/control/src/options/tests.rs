//! Tests which options are accepted, and the error for each mistake.

use super::*;
use alloc::string::{String, ToString};
use alloc::vec;
use proptest::prelude::*;
use records::options::{BOOT_OPTIONS, BootOption, EARLY_OPTIONS};
use records::words::{Bug, SelfTest};

fn refused(bootargs: &str) -> String {
    Options::parse(bootargs).expect_err(bootargs).to_string()
}

#[test]
fn without_options_the_defaults_hold() {
    assert_eq!(Options::parse(""), Ok(Options::default()));
    assert_eq!(Options::parse(" \t\n"), Ok(Options::default()));
}

#[test]
fn every_option_is_read() {
    let text = "mode=mutex,rwlock,parallel vcpus=8 bytes=8M backing=1G iterations=5 write_percent=30 random seed=9 \
                ipa_bits=40 timeout=7 log=debug guest=dirty_log split=eager,none,fault tracking=hardware,writeprotect \
                granularity=2m harvest=bitmap harvesters=9 ring_entries=64 enable=all_set clear=with_get restore=background \
                split_chunk=4M split_reserve=0 slots=1 exit_times";
    let options = Options::parse(text).unwrap();
    assert_eq!(
        options,
        Options {
            guest: GuestKind::DirtyLog,
            modes: vec![Mode::Mutex, Mode::RwLock, Mode::Parallel],
            splits: vec![Split::Eager, Split::None, Split::Fault],
            trackings: vec![Tracking::Hardware, Tracking::WriteProtect],
            granularity: Granularity::Block2M,
            harvest: Harvest::Bitmap,
            harvesters: 9,
            ring_entries: 64,
            enable: Enable::AllSet,
            clear: Clear::WithGet,
            restore: Restore::Background,
            split_chunk: Size(4 << 20),
            split_reserve: Size(0),
            slots: 1,
            exit_times: true,
            vcpus: 8,
            bytes: Size(8 << 20),
            backing: Backing::Block1G,
            iterations: 5,
            write_percent: 30,
            random: true,
            seed: 9,
            ipa_bits: Some(40),
            timeout: 7,
            log: LevelFilter::Debug,
            ..Options::default()
        }
    );
    assert_eq!(
        options.test_bytes(),
        Some(1 << 30),
        "rounded up to the backing"
    );
}

#[test]
fn a_guest_is_given_devices_by_their_paths() {
    let paths = |bootargs| Options::parse(bootargs).unwrap().devices;
    assert!(paths("guest=program").is_empty());
    let given = paths("guest=program device=/soc/rtc@9010000");
    assert_eq!(given, ["/soc/rtc@9010000"]);
    let given = paths("guest=linux device=/maker,rtc@1,/soc/b,/c");
    assert_eq!(given, ["/maker,rtc@1", "/soc/b", "/c"]);
    assert_eq!(
        refused("guest=program device=rtc"),
        "malformed value 'rtc' for option 'device': expected paths of the device tree, like /pl031@9010000"
    );
    assert_eq!(
        refused("guest=linux device=/rtc,/uart,/rtc"),
        "option 'device' names '/rtc' twice"
    );
    for guest in ["dirty_log", "stress", "backing"] {
        let says = refused(&["guest=", guest, " device=/rtc"].concat());
        let expected = "option 'device' contradicts guest=";
        assert!(says.starts_with(expected), "{says}");
    }
}

#[test]
fn a_fork_needs_cpus_of_its_own() {
    let options = Options::parse("guest=linux vcpus=3 fork=5 cpu_features=sve,debug").unwrap();
    assert_eq!((options.fork, options.busy_cpus()), (Some(5), 6));
    assert_eq!(options.cpu_features, [CpuFeature::Sve, CpuFeature::Debug]);
    for (bootargs, key) in [
        ("guest=program fork=1", "fork"),
        ("guest=linux merging fork=1", "fork"),
        ("guest=dirty_log cpu_features=sve", "cpu_features"),
    ] {
        let says = refused(bootargs);
        let expected = ["option '", key, "' contradicts guest="].concat();
        assert!(says.starts_with(&expected), "{says}");
    }
}

#[test]
fn runs_that_change_backing_compare_what_they_are_there_for() {
    let of = |text: &str| Options::parse(&["guest=backing ", text].concat()).unwrap();
    let invalidate = of("");
    assert_eq!(invalidate.trackers, [Tracker::Ranges, Tracker::Sequence]);
    assert_eq!(invalidate.workers, [0, 1, 4, 16]);
    assert_eq!(invalidate.backing, Backing::Page4K);
    assert_eq!((invalidate.vms(), invalidate.busy_cpus()), (1, 20));
    let cow = of("workload=cow vcpus=8");
    assert_eq!(cow.changes, [Change::Direct, Change::Unmap]);
    assert_eq!((cow.trackers.len(), cow.workers.len()), (1, 1));
    assert_eq!((cow.vms(), cow.busy_cpus()), (2, 16));
    assert_eq!(of("workload=merge").workers, [0, 1]);
    assert_eq!(of("workload=prefault").workers, [0, 1, 8]);
    assert_eq!(of("workload=reclaim").overcommits, [100, 150]);
    let given = of(
        "workload=reclaim tracker=sequence change=unmap workers=2,0 overcommit=200 backing=2M iterations=2 exit_times \
         seed=4 mode=rwlock",
    );
    assert_eq!(given.trackers, [Tracker::Sequence]);
    assert_eq!(given.changes, [Change::Unmap]);
    assert_eq!(given.workers, [2, 0]);
    assert_eq!(given.overcommits, [200]);
    assert_eq!(given.backing, Backing::Block2M);
}

#[test]
fn what_has_no_use_for_changes_of_backing_is_named() {
    for (guest, key) in [
        ("backing", "split=none"),
        ("backing", "slots=2"),
        ("backing", "seconds=3"),
        ("backing", "write_percent=3"),
        ("dirty_log", "workload=cow"),
        ("stress", "workers=1"),
        ("program", "tracker=ranges"),
    ] {
        let name = key.split('=').next().unwrap();
        assert_eq!(
            refused(&["guest=", guest, " ", key].concat()),
            [
                "option '",
                name,
                "' contradicts guest=",
                guest,
                ", which has no use for it"
            ]
            .concat()
        );
    }
    assert!(Options::parse("overcommit=150").unwrap().is_overcommitted());
    assert_eq!(
        refused("overcommit=100,150"),
        "several values of overcommit contradict guest=dirty_log, which has one for all of its runs"
    );
    assert_eq!(
        refused("guest=backing workers=1,1"),
        "option 'workers' names '1' twice"
    );
    assert_eq!(
        refused("guest=backing workers=many"),
        "malformed value 'many' for option 'workers': expected numbers from 0 on"
    );
    assert_eq!(
        refused("guest=backing overcommit=99"),
        "malformed value '99' for option 'overcommit': expected percentages from 100 to 1000"
    );
    assert_eq!(
        refused("guest=backing workload=swap"),
        "malformed value 'swap' for option 'workload': expected invalidate, cow, merge, prefault or reclaim"
    );
}

#[test]
fn merging_has_a_rate_and_targets() {
    let of = |text: &str| Options::parse(text).unwrap();
    let usual = of("merging vcpus=2");
    assert_eq!((usual.merging, usual.busy_cpus()), (1, 3));
    for count in [1, 4, 65535] {
        let several = of(&format!("merging={count} vcpus=2"));
        assert_eq!((several.merging, several.busy_cpus()), (count, 2 + count));
        assert_eq!(several.merge, usual.merge);
    }
    assert_eq!(usual.merge, MergeOptions::default());
    assert_eq!(
        merge_policy(&usual.merge, 1),
        memory::MergePolicy::default()
    );
    let given =
        of("merging merge_targets=RAM pages_to_scan=7 sleep_millisecs=20 max_page_sharing=2");
    assert_eq!(
        given.merge,
        MergeOptions {
            targets: vec![MergeTarget::Ram],
            pages_to_scan: 7,
            sleep_millisecs: 20,
            max_page_sharing: 2,
        }
    );
    assert_eq!(
        of("merging guest=program").merge.targets,
        [MergeTarget::Ram]
    );
    let workload = of("guest=backing workload=merge sleep_millisecs=5");
    assert_eq!(workload.merge.targets, [MergeTarget::Test]);
    assert_eq!((workload.merging, workload.merge.sleep_millisecs), (0, 5));
    assert_eq!(of("guest=backing workload=reclaim merging").merging, 1);
}

#[test]
fn merging_that_cant_be_is_named() {
    assert_eq!(
        refused("pages_to_scan=9"),
        "option 'pages_to_scan' needs merging: nothing is merged without"
    );
    assert_eq!(
        refused("guest=backing workload=cow merge_targets=ram"),
        "option 'merge_targets' needs merging: nothing is merged without"
    );
    assert_eq!(
        refused("guest=backing workload=merge merging"),
        "option 'merging' contradicts workload=merge, whose workers merge already"
    );
    assert_eq!(
        refused("guest=program merging merge_targets=ram,test"),
        "merge_targets=test contradicts guest=program, whose memory is all ram"
    );
    for key in ["merging", "merge_targets=ram", "pages_to_scan=1"] {
        let says = "contradicts guest=stress, which has no use for it";
        assert!(refused(&["guest=stress ", key].concat()).ends_with(says));
    }
    for (option, expected) in [
        ("merge_targets=disk", "test, ram or both"),
        ("pages_to_scan=0", "a number from 1 to 4294967295"),
        ("sleep_millisecs=-1", "milliseconds, from 0 to 4294967295"),
        ("max_page_sharing=1", "a number from 2 to 4294967295"),
    ] {
        let refusal = refused(&["merging ", option].concat());
        assert!(
            refusal.ends_with(&["expected ", expected].concat()),
            "{refusal}"
        );
    }
    for count in ["0", "65536", "two", ""] {
        assert_eq!(
            refused(&format!("merging={count}")),
            format!(
                "malformed value '{count}' for option 'merging': expected the word alone for one, or a number from 1 on"
            )
        );
    }
    assert_eq!(
        refused("merging merge_targets=ram,ram"),
        "option 'merge_targets' names 'ram' twice"
    );
}

#[test]
fn unknown_options_are_named() {
    assert_eq!(refused("vcpus=2 speed=fast"), "unknown option 'speed'");
    assert_eq!(refused("quiet"), "unknown option 'quiet'");
    assert_eq!(refused("=5"), "unknown option ''");
    assert_eq!(refused("VCPUS=5"), "unknown option 'VCPUS'");
    assert_eq!(refused("a\u{7}b"), r"unknown option 'a\u{7}b'");
}

#[test]
fn malformed_values_are_named_with_what_is_expected() {
    assert_eq!(
        refused("vcpus=0"),
        "malformed value '0' for option 'vcpus': expected a number from 1 on"
    );
    assert_eq!(
        refused("vcpus=two"),
        "malformed value 'two' for option 'vcpus': expected a number from 1 on"
    );
    assert_eq!(
        refused("vcpus=-1"),
        "malformed value '-1' for option 'vcpus': expected a number from 1 on"
    );
    assert_eq!(refused("vcpus="), "option 'vcpus' needs a value: vcpus=...");
    assert_eq!(refused("vcpus"), "option 'vcpus' needs a value: vcpus=...");
    assert_eq!(
        refused("random=1"),
        "malformed value '1' for option 'random': expected the word alone"
    );
    assert_eq!(
        refused("mode=fast"),
        "malformed value 'fast' for option 'mode': expected parallel, rwlock or mutex"
    );
    assert_eq!(
        refused("mode=mutex,"),
        "malformed value '' for option 'mode': expected parallel, rwlock or mutex"
    );
    assert_eq!(
        refused("backing=3M"),
        "malformed value '3M' for option 'backing': expected 4K, 2M or 1G"
    );
    assert_eq!(
        refused("bytes=64X"),
        "malformed value '64X' for option 'bytes': expected a number of bytes, or a number with K, M or G, as in 64M"
    );
    assert_eq!(
        refused("bytes=5000"),
        "malformed value '5000' for option 'bytes': expected whole pages of 4K"
    );
    assert_eq!(
        refused("bytes=0"),
        "malformed value '0' for option 'bytes': expected whole pages of 4K"
    );
    assert_eq!(
        refused("write_percent=101"),
        "malformed value '101' for option 'write_percent': expected a number from 0 to 100"
    );
    assert_eq!(
        refused("ipa_bits=31"),
        "malformed value '31' for option 'ipa_bits': expected a number from 32 to 52"
    );
    assert_eq!(
        refused("iterations=65536"),
        "malformed value '65536' for option 'iterations': expected a number from 1 to 65535"
    );
    assert_eq!(
        refused("log=loud"),
        "malformed value 'loud' for option 'log': expected error, warn, info, debug or trace"
    );
    assert_eq!(
        refused("guest=solaris"),
        "malformed value 'solaris' for option 'guest': expected dirty_log, stress, backing, program or linux"
    );
    assert_eq!(
        refused("timeout=0"),
        "malformed value '0' for option 'timeout': expected seconds, from 1 to 1000000"
    );
}

#[test]
fn contradictions_are_named() {
    assert_eq!(refused("vcpus=2 vcpus=2"), "option 'vcpus' is given twice");
    assert_eq!(refused("random random"), "option 'random' is given twice");
    assert_eq!(
        refused("mode=mutex,mutex"),
        "option 'mode' names 'mutex' twice"
    );
    let only = "contradicts guest=program, which has no use for it";
    assert_eq!(
        refused("guest=program random"),
        ["option 'random' ", only].concat()
    );
    assert_eq!(
        refused("write_percent=100 guest=program"),
        ["option 'write_percent' ", only].concat()
    );
    assert_eq!(
        refused("guest=program iterations=3"),
        ["option 'iterations' ", only].concat()
    );
    assert_eq!(
        refused("guest=program mode=mutex,rwlock"),
        "several modes contradict guest=program, which runs once without dirty_log"
    );
    assert_eq!(
        refused("ipa_bits=32 vcpus=4 bytes=1G"),
        "ipa_bits=32 contradicts vcpus=4 bytes=1073741824: the memory doesn't fit"
    );
    assert_eq!(
        refused("ipa_bits=32 guest=program vcpus=1 bytes=4G"),
        "ipa_bits=32 contradicts vcpus=1 bytes=4294967296: the memory doesn't fit"
    );
    assert!(Options::parse("ipa_bits=32 guest=program vcpus=4 bytes=3G").is_ok());
    let too_much = "is more memory than any machine has";
    assert_eq!(
        refused("vcpus=4096 bytes=16777215G"),
        ["vcpus=4096 bytes=18014397435740160 ", too_much].concat()
    );
    assert_eq!(
        refused("guest=program vcpus=1 bytes=18446744073709547520"),
        ["vcpus=1 bytes=18446744073709547520 ", too_much].concat()
    );
}

#[test]
fn what_does_not_go_with_rings_is_named() {
    for (with, why) in [
        ("tracking=hardware", "without a fault nothing enters a ring"),
        ("enable=all_set", "a ring doesn't hold all pages"),
        ("clear=with_get", "what is taken out of a ring is clear"),
    ] {
        let options = ["harvest=ring ", with].concat();
        let says = [with, " contradicts harvest=ring: ", why].concat();
        assert_eq!(refused(&options), says);
        assert!(Options::parse(with).is_ok());
    }
    assert_eq!(
        refused("harvest=ring tracking=writeprotect,hardware"),
        "tracking=hardware contradicts harvest=ring: without a fault nothing enters a ring"
    );
}

#[test]
fn malformed_policies_are_named() {
    assert_eq!(
        refused("ring_entries=100"),
        "malformed value '100' for option 'ring_entries': expected a power of two from 64 to 65536"
    );
    assert_eq!(
        refused("split=fault,fault"),
        "option 'split' names 'fault' twice"
    );
    assert_eq!(
        refused("tracking=software"),
        "malformed value 'software' for option 'tracking': expected writeprotect or hardware"
    );
    assert_eq!(
        refused("enable=all-set"),
        "malformed value 'all-set' for option 'enable': expected protect, all_set or overlapped"
    );
    assert_eq!(
        refused("exit_times=1"),
        "malformed value '1' for option 'exit_times': expected the word alone"
    );
    assert_eq!(
        refused("vcpus=3 bytes=3M slots=6"),
        "slots=6 contradicts the memory, which is 5 pieces of 2M"
    );
    assert!(Options::parse("vcpus=3 bytes=3M slots=5").is_ok());
}

#[test]
fn test_memory_has_no_more_slots_than_a_vm_has_left_for_it() {
    let with = |slots: u64| ["vcpus=1 bytes=8M backing=4K slots=", &slots.to_string()].concat();
    let most = MOST_SLOTS as u64;
    assert_eq!(most, 500, "as documents say");
    assert_eq!(
        Options::parse(&with(most)).unwrap().slots + OTHER_SLOTS,
        memory::MAX_SLOTS
    );
    for slots in [most + 1, 513, 32764, u64::MAX] {
        let expected = format!("slots={slots} exceeds the 500 slots that a VM has for test memory");
        assert_eq!(refused(&with(slots)), expected);
    }
    for slots in ["0", "-1", "many", "18446744073709551616"] {
        let expected = "expected a number from 1 on";
        assert!(refused(&["slots=", slots].concat()).ends_with(expected));
    }
}

#[test]
fn the_stress_run_chooses_for_itself() {
    assert_eq!(
        refused("guest=stress split=eager"),
        "option 'split' contradicts guest=stress, which has no use for it"
    );
    assert_eq!(
        refused("seconds=5"),
        "option 'seconds' contradicts guest=dirty_log, which has no use for it"
    );
    assert_eq!(
        refused("guest=program slots=2"),
        "option 'slots' contradicts guest=program, which has no use for it"
    );
    let options = "guest=stress seconds=5 slots=3 seed=4 ring_entries=64 mode=mutex,parallel";
    assert_eq!(Options::parse(options).unwrap().seconds, 5);
}

#[test]
fn a_program_may_have_what_a_vm_has() {
    let options =
        Options::parse("mode=parallel vcpus=1 bytes=64M backing=2M timeout=120 guest=program")
            .unwrap();
    assert_eq!((options.guest, options.vcpus), (GuestKind::Program, 1));
}

#[test]
fn linux_has_memory_of_its_own_and_may_be_idle() {
    let options = Options::parse("guest=linux").unwrap();
    assert_eq!(options.program_bytes(), Some(512 << 20));
    assert_eq!(options.timeout, NO_TIMEOUT);
    assert_eq!(
        (options.console, options.on_reset),
        (ConsoleMode::Lines, OnReset::Restart)
    );
    let options = "guest=linux vcpus=4 bytes=6G timeout=3 console=raw on_reset=stop rtc=1796054400 mode=rwlock merging";
    let options = Options::parse(options).unwrap();
    assert_eq!(
        (options.program_bytes(), options.timeout),
        (Some(6 << 30), 3)
    );
    assert_eq!(
        (options.console, options.on_reset),
        (ConsoleMode::Raw, OnReset::Stop)
    );
    assert_eq!(options.rtc, 1_796_054_400);
    assert_eq!(options.merge.targets, [MergeTarget::Ram]);
}

#[test]
fn the_log_of_a_guest_of_the_users_has_the_benchmarks_options() {
    let options = Options::parse(
        "guest=linux dirty_log log_from=@1f mode=mutex,parallel split=none,eager tracking=hardware iterations=5 interval=0 \
         harvesters=2 clear=with_get vcpus=3 overcommit=150 merging",
    )
    .unwrap();
    assert!(options.logs_foreign());
    assert_eq!(options.log_from.as_deref(), Some("@1f"));
    assert_eq!((options.iterations, options.interval), (5, 0));
    // Three vCPUs, two that harvest and one that merges: CPU 0 harvests nothing.
    assert_eq!((options.harvesting_cpus(), options.busy_cpus()), (2, 6));
    let usual = Options::parse("guest=program dirty_log harvest=ring").unwrap();
    assert_eq!((usual.interval, usual.log_from), (100, None));
    assert!(!Options::parse("harvesters=2").unwrap().logs_foreign());
    for (options, key, guest) in [
        ("guest=linux dirty_log seed=3", "seed", "linux"),
        ("guest=linux dirty_log slots=2", "slots", "linux"),
        (
            "guest=linux dirty_log write_percent=3",
            "write_percent",
            "linux",
        ),
        ("guest=linux interval=3", "interval", "linux"),
        ("guest=linux log_from=@1", "log_from", "linux"),
        ("guest=program dirty_log log_from=@1", "log_from", "program"),
        ("guest=program overcommit=150", "overcommit", "program"),
        ("dirty_log", "dirty_log", "dirty_log"),
        ("guest=stress dirty_log", "dirty_log", "stress"),
    ] {
        assert_eq!(
            refused(options),
            alloc::format!("option '{key}' contradicts guest={guest}, which has no use for it")
        );
    }
    assert_eq!(
        refused("guest=linux overcommit=100,150"),
        "several values of overcommit contradict guest=linux, which has one for all of its runs"
    );
    assert_eq!(
        refused("guest=linux dirty_log harvest=ring tracking=hardware"),
        refused("harvest=ring tracking=hardware")
    );
}

#[test]
fn what_isnt_for_linux_or_for_linux_only_is_named() {
    for (options, key, guest) in [
        ("guest=linux iterations=3", "iterations", "linux"),
        ("guest=linux seed=3", "seed", "linux"),
        ("guest=program console=raw", "console", "program"),
        ("on_reset=stop", "on_reset", "dirty_log"),
        ("guest=stress rtc=3", "rtc", "stress"),
    ] {
        assert_eq!(
            refused(options),
            alloc::format!("option '{key}' contradicts guest={guest}, which has no use for it")
        );
    }
    assert_eq!(
        refused("guest=linux mode=mutex,parallel"),
        "several modes contradict guest=linux, which runs once without dirty_log"
    );
    assert_eq!(
        refused("guest=linux console=both"),
        "malformed value 'both' for option 'console': expected lines or raw"
    );
    assert_eq!(
        refused("guest=linux bytes=16G ipa_bits=34"),
        "ipa_bits=34 contradicts vcpus=4 bytes=17179869184: the memory doesn't fit"
    );
}

proptest! {
    #[test]
    fn any_text_is_read_without_a_panic_and_refused_in_one_line(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = Options::parse(&String::from_utf8_lossy(&bytes)) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn words_of_options_are_read_without_a_panic(
        words in prop::collection::vec((prop::sample::select(&KEYS[..]), "[=,0-9a-zKMG]{0,24}"), 0..6),
    ) {
        let text: String = words.iter().map(|(key, value)| [*key, "=", value, " "].concat()).collect();
        if let Err(error) = Options::parse(&text) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}

#[test]
fn help_says_of_each_option_what_errors_say_too() {
    for option in BOOT_OPTIONS.iter().filter(|option| option.key != VM) {
        let word = alloc::format!("{}=?", option.key);
        let error = Options::parse(&word).map(|_| ());
        is_listed_as_errors_say(option, error);
    }
    for option in &EARLY_OPTIONS {
        let word = alloc::format!("{}=?", option.key);
        let error = EarlyOptions::parse(&word, false).map(|_| ());
        is_listed_as_errors_say(option, error);
    }
}

fn is_listed_as_errors_say(option: &BootOption, parsed: Result<(), OptionError<'_>>) {
    let (key, values) = (option.key, option.values);
    match parsed {
        Err(OptionError::Malformed {
            key: named,
            expected,
            ..
        }) => assert_eq!((named, expected), (key, values)),
        other => panic!("{key}=?: {other:?}"),
    }
    let line = option.to_string();
    assert!(line.contains(key) && line.contains(values), "{line}");
    assert!(!option.meaning.is_empty() && line.len() <= 140, "{line}");
    let all = BOOT_OPTIONS.iter().chain(&EARLY_OPTIONS);
    assert_eq!(all.filter(|other| other.key == key).count(), 1, "{key}");
}

#[test]
fn several_vms_are_linux_unless_a_benchmark_runs_beside_them() {
    let vm = "vm=name=a,kernel=0x50000000,bytes=96M vm=name=b,kernel=0x50000000,on_crash=restart";
    let options = Options::parse(vm).unwrap();
    assert_eq!(
        (options.guest, options.timeout),
        (GuestKind::Linux, NO_TIMEOUT)
    );
    let vms: Vec<_> = VmOptions::each(vm).map(Result::unwrap).collect();
    let of = |options: &Options, index: usize| options.of_vm(&vms[index]).unwrap();
    let (a, b) = (of(&options, 0), of(&options, 1));
    assert_eq!(
        (a.vcpus, a.bytes, a.on_crash),
        (1, Size(96 << 20), OnCrash::Stop)
    );
    assert_eq!((b.bytes, b.on_crash), (LINUX_BYTES, OnCrash::Restart));
    let options = Options::parse(&format!("{vm} on_reset=stop on_crash=restart merging")).unwrap();
    let a = of(&options, 0);
    assert_eq!((a.on_reset, a.on_crash), (OnReset::Stop, OnCrash::Restart));
    assert_eq!(a.merging, 1);
    let beside = format!("guest=dirty_log mode=mutex,parallel vcpus=2 merging timeout=9 {vm}");
    let options = Options::parse(&beside).unwrap();
    assert_eq!((options.guest, options.vcpus), (GuestKind::DirtyLog, 2));
    let a = of(&options, 0);
    assert_eq!((a.guest, a.vcpus, a.merging), (GuestKind::Linux, 1, 0));
    assert_eq!((a.timeout, a.modes), (NO_TIMEOUT, [Mode::Mutex].into()));
    assert_eq!(
        Options::parse_with("", true).unwrap().guest,
        GuestKind::Linux
    );
    let of_each = refused(&format!("vcpus=2 {vm}"));
    assert_eq!(
        of_each,
        "option 'vcpus' contradicts VMs with names, each of which has its own"
    );
    assert!(refused(&format!("guest=linux bytes=1G {vm}")).starts_with("option 'bytes'"));
    assert!(refused(&format!("dirty_log {vm}")).starts_with("option 'dirty_log' contradicts VMs"));
    assert!(refused("guest=dirty_log on_crash=stop").contains("on_crash"));
    assert!(refused(&format!("device=/a {vm}")).starts_with("option 'device' contradicts VMs"));
    let beside = refused(&format!("guest=dirty_log device=/a {vm}"));
    assert!(beside.starts_with("option 'device' contradicts guest="));
}

#[test]
fn an_operating_system_may_have_all_memory_from_the_start() {
    let is_ahead = |bootargs| Options::parse(bootargs).unwrap().prefault;
    assert!(!is_ahead("guest=linux"));
    assert!(is_ahead("guest=linux prefault"));
    assert!(is_ahead("prefault guest=dirty_log vm=name=a,kernel=0x1"));
    assert!(refused("guest=linux prefault=2").contains("the word alone"));
    assert!(refused("guest=program prefault").starts_with("option 'prefault' contradicts guest="));
    assert!(refused("guest=dirty_log prefault").contains("'prefault'"));
    let limited = refused("guest=linux prefault overcommit=150");
    assert!(limited.starts_with("option 'prefault' contradicts overcommit"));
}

#[test]
fn each_of_several_vms_has_devices_of_its_own() {
    let words = "guest=program device=/main vm=name=a,device=/a,/b,kernel=0x50000000 vm=name=b,kernel=0x50000000";
    let options = Options::parse(words).unwrap();
    assert_eq!(options.devices, ["/main"]);
    let devices = VmOptions::each(words).map(|vm| options.of_vm(&vm.unwrap()).unwrap().devices);
    assert!(devices.eq([Vec::from(["/a".to_string(), "/b".to_string()]), Vec::new()]));
}

#[test]
fn help_is_a_word_among_others() {
    let help = |bootargs| EarlyOptions::parse(bootargs, false).map(|options| options.help);
    for bootargs in ["help", "vcpus=2 help", "\thelp mode=no"] {
        assert_eq!(help(bootargs), Ok(true), "{bootargs}");
    }
    for bootargs in ["", "vcpus=2", "helpful", "log=help"] {
        assert_eq!(help(bootargs), Ok(false), "{bootargs}");
    }
    assert_eq!(
        refused_early("help=yes"),
        "malformed value 'yes' for option 'help': expected the word alone"
    );
}

fn refused_early(bootargs: &str) -> String {
    let error = EarlyOptions::parse(bootargs, false).expect_err(bootargs);
    error.to_string()
}

#[test]
fn options_that_are_taken_early_are_passed_over_by_the_others() {
    let bootargs = "vcpus=2 mitigations=on selftest=wx help inject=local";
    let early = EarlyOptions::parse(bootargs, false).unwrap();
    let expected = EarlyOptions {
        help: true,
        mitigations: true,
        self_test: Some(SelfTest::WriteText),
        inject: Some(Bug::Local),
    };
    assert_eq!(early, expected);
    assert_eq!(Options::parse(bootargs).unwrap().vcpus, 2);
    let with_an_unknown = EarlyOptions::parse("colour=red vcpus=0", false);
    assert_eq!(with_an_unknown, Ok(EarlyOptions::default()));
}

#[test]
fn what_is_wrong_with_early_options_is_named() {
    assert_eq!(
        refused_early("mitigations=some"),
        "malformed value 'some' for option 'mitigations': expected auto, on or off"
    );
    assert_eq!(
        refused_early("selftest=off selftest=on"),
        "malformed value 'off' for option 'selftest': expected stage2, panic, undef, stack, null, wx, nx or nested"
    );
    assert_eq!(
        refused_early("inject=local inject=local"),
        "option 'inject' is given twice"
    );
    assert_eq!(
        refused_early("selftest"),
        "option 'selftest' needs a value: selftest=..."
    );
    let bug = EarlyOptions::parse("inject=local", false).unwrap();
    let error = bug.check_no_bug().unwrap_err().to_string();
    assert!(
        error.contains("'inject'") && error.contains("--check"),
        "{error}"
    );
    assert_eq!(EarlyOptions::default().check_no_bug(), Ok(()));
}

#[test]
fn exits_do_something_against_speculation_where_there_are_vms() {
    let vm = "guest=dirty_log vm=name=a,kernel=0x50000000";
    assert!(EarlyOptions::parse(vm, false).unwrap().mitigations);
    assert!(EarlyOptions::parse("", true).unwrap().mitigations);
    assert!(!EarlyOptions::parse("", false).unwrap().mitigations);
}

#[test]
fn exits_do_something_against_speculation_where_the_guest_is_a_program() {
    let mitigations = |bootargs| EarlyOptions::parse(bootargs, false).unwrap().mitigations;
    assert!(mitigations("guest=program vcpus=2"));
    assert!(mitigations("mitigations=auto guest=PROGRAM"));
    assert!(!mitigations("guest=program mitigations=off"));
    assert!(!mitigations("vcpus=2"));
    assert!(mitigations("mitigations=On"));
}
