//! What each operation costs on the host, per page: `cargo bench -p engine-bench`.
//!
//! Alone, and with two CPUs faulting at once under each way to exclude them from each other. Instructions, which are
//! repeatable, are counted elsewhere (`src/bin/instructions.rs`).

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main,
};
use engine_bench::{BLOCK_PAGES, BenchWorker, Cpu, fill, page, serve, tree, write};
use memory::{MmuLock, Mutexed, Parallel, RwLocked};
use stage2::{All, Level, Permissions, Stage2};

/// Pages that an operation is measured on: four tables.
const PAGES: u64 = 4 * BLOCK_PAGES;

/// Measures `operation` on a tree that `prepare` has filled, time per page.
fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    prepare: impl Fn(&Stage2, &Cpu),
    operation: impl Fn(&Stage2, &BenchWorker<'_>),
) {
    group.throughput(Throughput::Elements(PAGES));
    group.bench_function(name, |bencher| {
        bencher.iter_batched_ref(
            || {
                let (stage2, cpu) = (tree(), Cpu::new(16));
                prepare(&stage2, &cpu);
                (stage2, cpu)
            },
            |(stage2, cpu)| operation(black_box(stage2), &cpu.worker()),
            BatchSize::LargeInput,
        );
    });
}

fn of_pages(permissions: Permissions) -> impl Fn(&Stage2, &Cpu) {
    move |stage2, cpu| fill(stage2, cpu, PAGES, Level::L3, permissions)
}

fn operations(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("operation");
    let all = || page(0)..page(PAGES);
    let empty_tables = |stage2: &Stage2, cpu: &Cpu| {
        fill(stage2, cpu, PAGES, Level::L3, Permissions::RAM);
        for table in 0..PAGES / BLOCK_PAGES {
            let pages = page(table * BLOCK_PAGES)..page((table + 1) * BLOCK_PAGES - 1);
            stage2.unmap(&cpu.worker(), pages, |_, _, _| {}).unwrap();
        }
    };
    let blocks = |stage2: &Stage2, cpu: &Cpu| fill(stage2, cpu, PAGES, Level::L2, Permissions::RAM);

    measure(&mut group, "fault, map", empty_tables, |stage2, worker| {
        for index in 0..PAGES {
            serve(stage2, worker, &write(index));
        }
    });
    let logged = of_pages(Permissions::LOGGED);
    measure(&mut group, "fault, relax", &logged, |stage2, worker| {
        for index in 0..PAGES {
            serve(stage2, worker, &write(index));
        }
    });
    let pages = of_pages(Permissions::RAM);
    measure(
        &mut group,
        "map",
        |_, _| {},
        |stage2, worker| {
            let mapping = engine_bench::mapping(Level::L3, Permissions::RAM);
            let _ = black_box(stage2.map(worker, all(), mapping, || true));
        },
    );
    measure(&mut group, "write protect", &pages, |stage2, worker| {
        stage2.write_protect(worker, all(), All, |_, _| {}).unwrap();
    });
    measure(&mut group, "protect", &pages, |stage2, worker| {
        stage2
            .protect(worker, all(), Permissions::READ_ONLY, |_, _, _| {})
            .unwrap();
    });
    measure(&mut group, "age", &pages, |stage2, worker| {
        stage2.age(worker, all(), |_, _| {}).unwrap();
    });
    measure(&mut group, "unmap", &pages, |stage2, worker| {
        stage2.unmap(worker, all(), |_, _, _| {}).unwrap();
    });
    measure(&mut group, "split", blocks, |stage2, worker| {
        let _ = black_box(stage2.split(worker, all(), Level::L3, u64::MAX));
    });
    measure(&mut group, "collapse", &pages, |stage2, worker| {
        stage2
            .collapse(worker, all(), Level::L2, |_| Permissions::RAM, |_, _, _| {})
            .unwrap();
    });
    group.finish();
}

/// Relaxes the pages of a table of its own on each of `cpus` CPUs, each fault under the lock as the firmware holds it.
fn relax_under<L: MmuLock>(cpus: u64, rounds: u64) -> Duration {
    let stage2 = tree();
    fill(
        &stage2,
        &Cpu::new(16),
        cpus * BLOCK_PAGES,
        Level::L3,
        Permissions::LOGGED,
    );
    let lock = L::default();
    let start = std::sync::Barrier::new(cpus as usize);
    let times = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cpus)
            .map(|number| {
                let (stage2, lock, start) = (&stage2, &lock, &start);
                scope.spawn(move || {
                    let cpu = Cpu::new(16);
                    let worker = cpu.worker();
                    let pages = number * BLOCK_PAGES..(number + 1) * BLOCK_PAGES;
                    let mut spent = Duration::ZERO;
                    for _ in 0..rounds {
                        let range = page(pages.start)..page(pages.end);
                        stage2
                            .write_protect(&worker, range, All, |_, _| {})
                            .unwrap();
                        start.wait();
                        let begun = Instant::now();
                        for index in pages.clone() {
                            let _held = lock.shared();
                            serve(stage2, &worker, &write(index));
                        }
                        spent += begun.elapsed();
                    }
                    spent
                })
            })
            .collect();
        let times = threads.into_iter().map(|thread| thread.join());
        times.map(|time| time.unwrap_or_default()).max()
    });
    times.unwrap_or_default()
}

fn locks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("relax, each CPU on its own table");
    group.throughput(Throughput::Elements(BLOCK_PAGES));
    for cpus in [1, 2] {
        let name = |mode: &str| format!("{mode}, {cpus} CPUs");
        group.bench_function(name(Parallel::NAME), |bencher| {
            bencher.iter_custom(|rounds| relax_under::<Parallel>(cpus, rounds));
        });
        group.bench_function(name(RwLocked::NAME), |bencher| {
            bencher.iter_custom(|rounds| relax_under::<RwLocked>(cpus, rounds));
        });
        group.bench_function(name(Mutexed::NAME), |bencher| {
            bencher.iter_custom(|rounds| relax_under::<Mutexed>(cpus, rounds));
        });
    }
    group.finish();
}

criterion_group!(
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = operations, locks
);
criterion_main!(benches);
