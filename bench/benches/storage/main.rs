//! The storage engine on every backend and device, and how far each is from what the machine can do.
//!
//! Every group is one workload, every row of it a backend of `heddle-io` and a device of the engine: the same engine code, the
//! same batches, a data directory of its own. All rows of a group are sampled in turn, round by round; criterion then gets the
//! samples and prints time and bytes per second. Below each row stands what it cost and which part of the physical limit it
//! reached, probed on the same file system just before.
//!
//! `cargo bench -p heddle-bench --bench storage --features stacks [-- --quick] [-- GROUP]`; without the feature the rows of
//! tokio-uring and glommio are named as missing. `HEDDLE_BENCH_DIR` is where files are made (default: below `target`).
//! How to read the output: `docs/benchmarks.md`.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a measurement is for reading")]

mod cell;
mod limit;
mod meter;

use std::path::PathBuf;
use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput};
use heddle_io::Backend;

use cell::{Cell, DEVICES, Durability, Workload};
use limit::Limits;

const BACKENDS: [Backend; 4] = [Backend::Uring, Backend::Blocking, Backend::TokioUring, Backend::Glommio];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let effort = if arguments.iter().any(|argument| argument == "--quick") { Effort::QUICK } else { Effort::FULL };
    let wanted = group_wanted(&arguments);
    // Criterion's own quick mode doubles iterations for as long as it likes, which samples taken beforehand let it do for ever.
    let is_quick = effort.samples == Effort::QUICK.samples;
    let criterion = if is_quick { Criterion::default() } else { Criterion::default().configure_from_args() };
    // What criterion gets was measured before: it need not wait for anything.
    let mut criterion = criterion.warm_up_time(Duration::from_nanos(1)).sample_size(effort.samples);
    let folder = Folder::new();
    for workload in workloads() {
        if wanted.is_none_or(|wanted| workload.group().contains(wanted)) {
            compare(&mut criterion, workload, &folder, effort);
        }
    }
    criterion.final_summary();
}

/// The part of a group's name that was given, if one was.
fn group_wanted(arguments: &[String]) -> Option<&str> {
    let takes_value = |flag: &str| flag.starts_with("--") && flag.contains("baseline");
    let mut before = "";
    for argument in arguments {
        if !argument.starts_with('-') && !takes_value(before) {
            return Some(argument);
        }
        before = argument;
    }
    None
}

/// How long is measured.
#[derive(Clone, Copy)]
struct Effort {
    /// Of each row; criterion takes no fewer than ten.
    samples: usize,
    /// Of one sample, about.
    span: Duration,
}

impl Effort {
    const QUICK: Effort = Effort { samples: 10, span: Duration::from_millis(40) };
    const FULL: Effort = Effort { samples: 20, span: Duration::from_millis(250) };
}

fn workloads() -> Vec<Workload> {
    let mut all = Vec::new();
    for (size, batches) in [(4 << 10, 16), (64 << 10, 16), (1 << 20, 8)] {
        all.push(Workload::Append { size, batches, durability: Durability::NoSync });
        all.push(Workload::Append { size, batches, durability: Durability::GroupCommit });
        all.push(Workload::Append { size, batches: 1, durability: Durability::SyncEach });
    }
    all.extend([Workload::Unbatched, Workload::TailRead, Workload::ColdRead, Workload::Recover, Workload::Roll]);
    all
}

fn compare(criterion: &mut Criterion, workload: Workload, folder: &Folder, effort: Effort) {
    let limits = Limits::probe(&folder.0);
    println!("\n{}: {}", workload.group(), limits.describe());
    let mut rows = Vec::new();
    for backend in BACKENDS {
        for device in DEVICES {
            match Cell::open(backend, device, workload, &folder.0, effort.span) {
                Ok(cell) => rows.push(cell),
                Err(missing) => println!("{}/{}, {}: {missing}", workload.group(), backend.name(), device.name()),
            }
        }
    }
    for _ in 0..effort.samples {
        rows.iter_mut().for_each(Cell::sample);
    }
    rows.iter_mut().for_each(Cell::count);
    let mut group = criterion.benchmark_group(workload.group());
    let slowest = rows.iter().map(Cell::mean).fold(0.0, f64::max);
    // As long as the samples would take, so that criterion asks for each of them once.
    group.sampling_mode(SamplingMode::Flat).measurement_time(replay(slowest, 2 * effort.samples as u64));
    for cell in &rows {
        group.throughput(Throughput::Bytes(cell.round_bytes()));
        let mut samples = cell.samples.iter().cycle();
        group.bench_function(&cell.name, |bench| {
            bench.iter_custom(|iterations| replay(*samples.next().expect("there are samples"), iterations));
        });
        println!("{}", costs(cell, &limits));
    }
    group.finish();
}

/// What `iterations` rounds took, at `each` seconds.
fn replay(each: f64, iterations: u64) -> Duration {
    Duration::try_from_secs_f64(each * iterations as f64).unwrap_or(Duration::MAX)
}

/// The line below a row.
fn costs(cell: &Cell, limits: &Limits) -> String {
    let rounds = cell.rounds as f64 * cell.samples.len() as f64;
    let bytes = cell.round_bytes() as f64 * rounds;
    let operations = cell.round_operations() as f64;
    let counts = match &cell.counted {
        Ok((calls, punts)) => format!("{:.2} syscalls/op, {:.2} punts/op", calls / operations, punts / operations),
        Err(reason) => format!("syscalls and punts not counted ({reason})"),
    };
    let (floor, by) = cell.floor(limits);
    format!(
        "{:24}{:.3} CPU s/GB, {counts}, {:.2} written/appended, {:.2} of the limit ({by})",
        "",
        cell.spent.cpu.as_secs_f64() / (bytes / 1e9),
        cell.spent.written_bytes as f64 / bytes,
        floor / cell.mean(),
    )
}

/// The folder of this run, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        let parent =
            std::env::var_os("HEDDLE_BENCH_DIR").map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
        let folder = parent.join(format!("storage-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the folder can be made");
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that stays behind is in nobody's way.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
