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
/// Further options that a program doesn't have.
pub(super) const LOGGED_ONLY: [&str; 5] =
    ["seed", "slots", "ring_entries", "split_chunk", "seconds"];
