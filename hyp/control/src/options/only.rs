//! Options that not every guest has.

/// Options of the benchmark only: the stress run chooses at random.
pub(super) const BENCHMARK_ONLY: [&str; 13] = [
    "iterations",
    "write_percent",
    "random",
    "split",
    "tracking",
    "granularity",
    "harvest",
    "harvesters",
    "enable",
    "clear",
    "restore",
    "split_reserve",
    "exit_times",
];
/// Options of workloads that change backing memory; the benchmark also has the last of them.
pub(super) const BACKING_ONLY: [&str; 5] =
    ["workload", "tracker", "change", "workers", "overcommit"];
/// Options of the benchmark that those workloads have too.
pub(super) const BACKING_TOO: [&str; 2] = ["iterations", "exit_times"];
/// Options of the stress run that those workloads don't have.
pub(super) const NOT_BACKING: [&str; 4] = ["slots", "ring_entries", "split_chunk", "seconds"];
/// Options of the benchmark that other guests don't have when their writes are logged.
pub(super) const ACCESSES_ONLY: [&str; 2] = ["write_percent", "random"];
/// Options that they don't have either.
pub(super) const NOT_LOGGED: [&str; 3] = ["seed", "slots", "seconds"];
/// Options of such logging only.
pub(super) const LIVE_ONLY: [&str; 2] = ["log_from", "interval"];
/// Further options that a program doesn't have, unless its writes are logged.
pub(super) const LOGGED_ONLY: [&str; 5] =
    ["seed", "slots", "ring_entries", "split_chunk", "seconds"];
