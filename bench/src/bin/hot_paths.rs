//! Instructions and allocations of the hot paths, counted, and held to a baseline that is checked in.
//!
//! Owns the paths and the comparison. Counts do not depend on how busy the machine is: allocations are counted by this program's
//! allocator, instructions by valgrind, which runs this program on one path with two counts of repetitions; the difference
//! is what the repetitions cost, without the preparations. The log is on the simulated disk, in memory, whose own
//! instructions are in the count too.
//!
//! ```text
//! hot_paths              counts, compares with bench/hot_paths.txt, fails above it by more than 2 %
//! hot_paths bless        counts and writes the baseline
//! hot_paths time         nanoseconds of each path, as far as the machine is quiet
//! hot_paths run PATH N   does a path N times: what valgrind is given
//! ```
#![expect(clippy::print_stdout, reason = "what it finds is for reading")]

#[path = "../allocations.rs"]
mod allocations;

use std::fmt::Write;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use allocations::CountingAllocator;
use heddle_bench::{batch, now};
use heddle_engine::{
    AppendOrigin, DataDir, DeviceChoice, Engine, EngineConfig, FirstBatch, Log, LogConfig, LogName, ReadLimit,
    WantedIdentity,
};
use heddle_io::sim::Simulator;
use heddle_io::{Io, Lease};
use heddle_protocol::messages::produce;
use heddle_protocol::{Message, Reader, Records, Writer};
use heddle_record::{Compression, LeaderEpoch, LogId, Offset, Origin, PartitionIndex, TopicId, validate};

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/hot_paths.txt");

/// A count may exceed its baseline by so much.
const TOLERANCE: f64 = 1.02;

/// Repetitions: the few that are taken away from the many.
const FEW: u64 = 64;
const MANY: u64 = 1088;
/// Repetitions whose time is taken.
const TIMED: u64 = 1024;

/// What the log keeps of its end in memory.
const TAIL_BYTES: usize = 8 << 20;

/// The version of Produce that is decoded.
const PRODUCE: i16 = 9;

/// Does a path so many times, and returns the time of the part that counts.
type Repeat = fn(u64) -> Duration;

/// Every path and its name.
const PATHS: [(&str, Repeat); 7] = [
    ("decode produce, one partition of 1 KiB", decode),
    ("validate a batch of 1 KiB", |count| validate_batches(count, 2 << 10)),
    ("validate a batch of 64 KiB", |count| validate_batches(count, 64 << 10)),
    ("append 1 KiB, buffered", |count| append(count, 2 << 10, DeviceChoice::Buffered)),
    ("append 1 KiB, direct", |count| append(count, 2 << 10, DeviceChoice::Direct)),
    ("append 64 KiB, direct", |count| append(count, 64 << 10, DeviceChoice::Direct)),
    ("fetch 64 KiB at the end of a log", fetch),
];

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => compare(&counts()),
        ["bless"] => {
            std::fs::write(BASELINE, render(&counts())).expect("the tree can be written");
            println!("written: {BASELINE}");
            ExitCode::SUCCESS
        }
        ["time"] => {
            for (name, path) in PATHS {
                path(FEW);
                let best = (0..20).map(|_| path(TIMED)).min().expect("twenty tries");
                println!("{:8.0} ns  {name}", best.as_secs_f64() * 1e9 / TIMED as f64);
            }
            ExitCode::SUCCESS
        }
        ["run", name, count] => {
            let (_, path) = PATHS.iter().find(|(known, _)| *known == name).expect("the name of a path");
            path(count.parse().expect("a number of repetitions"));
            ExitCode::SUCCESS
        }
        _ => {
            println!("usage: hot_paths [bless | time | run PATH N]");
            ExitCode::from(2)
        }
    }
}

/// What one repetition of a path costs.
struct Count {
    name: String,
    /// `None` without valgrind.
    instructions: Option<f64>,
    allocations: f64,
}

fn counts() -> Vec<Count> {
    let count = |(name, path): (&str, Repeat)| Count {
        name: name.to_owned(),
        instructions: per_repetition(|count| instructions(name, count)),
        allocations: per_repetition(|count| Some(allocations(path, count))).expect("allocations are always counted"),
    };
    PATHS.into_iter().map(count).collect()
}

fn per_repetition(cost: impl Fn(u64) -> Option<u64>) -> Option<f64> {
    let (few, many) = (cost(FEW)?, cost(MANY)?);
    Some(many.saturating_sub(few) as f64 / (MANY - FEW) as f64)
}

fn allocations(path: Repeat, count: u64) -> u64 {
    let before = ALLOCATOR.count();
    path(count);
    ALLOCATOR.count() - before
}

/// What valgrind counts of a run of this program; `None` where there is no valgrind.
fn instructions(path: &str, count: u64) -> Option<u64> {
    let program = std::env::current_exe().expect("a program knows its path");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]);
    let output = valgrind.arg(program).args(["run", path, &count.to_string()]).output().ok()?;
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "valgrind runs the program: {words}");
    let line = words.lines().find(|line| line.contains("refs:")).expect("valgrind says what it counted");
    let digits: String = line.rsplit(':').next().unwrap_or("").chars().filter(char::is_ascii_digit).collect();
    Some(digits.parse().expect("valgrind counts in digits"))
}

/// The compiler that instructions depend on.
fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output();
    output.map_or_else(|_| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn render(counts: &[Count]) -> String {
    let mut text = format!("# instructions and allocations of one repetition, by {}\n", compiler());
    text.push_str("# cargo run --release -p heddle-bench --bin hot_paths -- bless\n");
    for count in counts {
        let instructions = count.instructions.map_or_else(|| "-".to_owned(), |count| format!("{count:.1}"));
        let line = writeln!(text, "{instructions:>12} {:>10.2}  {}", count.allocations, count.name);
        line.expect("text takes lines");
    }
    text
}

fn compare(counts: &[Count]) -> ExitCode {
    let baseline = std::fs::read_to_string(BASELINE).expect("the baseline is checked in");
    let same_compiler = baseline.lines().next().is_some_and(|line| line.ends_with(&format!("by {}", compiler())));
    if counts.iter().any(|count| count.instructions.is_none()) {
        println!("valgrind is missing: instructions are not compared");
    } else if !same_compiler {
        println!("the baseline is another compiler's: instructions are not compared");
    }
    let mut failed = false;
    for count in counts {
        let line = baseline.lines().find(|line| line.ends_with(&format!("  {}", count.name)));
        let Some(line) = line else {
            println!("{}: not in the baseline", count.name);
            failed = true;
            continue;
        };
        let mut columns = line.split_whitespace().map(|column| column.parse::<f64>().ok());
        let (instructions, allocations) = (columns.next().flatten(), columns.next().flatten());
        let measured = count.instructions.filter(|_| same_compiler);
        failed |= exceeds(&count.name, "instructions", measured, instructions);
        failed |= exceeds(&count.name, "allocations", Some(count.allocations), allocations);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Whether a count is above its baseline; says what it is.
fn exceeds(name: &str, what: &str, measured: Option<f64>, baseline: Option<f64>) -> bool {
    let (Some(measured), Some(baseline)) = (measured, baseline) else { return false };
    // A hundredth of an allocation is how the baseline is rounded.
    let exceeds = measured > baseline * TOLERANCE + 0.01;
    let verdict = if exceeds { "TOO MANY" } else { "ok" };
    println!("{verdict:8} {measured:12.2} {what:12} (baseline {baseline:.2})  {name}");
    exceeds
}

/// The time that `work` takes.
fn timed(work: impl FnOnce()) -> Duration {
    let began = now();
    work();
    now() - began
}

fn decode(count: u64) -> Duration {
    let records = batch(2 << 10, Compression::None);
    let partition = produce::PartitionProduceData { index: 3, records: Some(Records::Bytes(&records)) };
    let topic =
        produce::TopicProduceData { name: "orders", partition_data: vec![partition].into(), ..Default::default() };
    let request =
        produce::ProduceRequest { acks: -1, timeout_ms: 30_000, topic_data: vec![topic].into(), ..Default::default() };
    let mut writer = Writer::new();
    request.encode(&mut writer, PRODUCE).expect("the sample fits its version");
    let bytes = writer.into_bytes();
    timed(|| {
        for _ in 0..count {
            let request = produce::ProduceRequest::decode(&mut Reader::new(black_box(&bytes)), PRODUCE);
            let request = request.expect("the sample is good");
            for topic in &request.topic_data {
                for partition in topic.partition_data {
                    black_box((partition.index, &partition.records));
                }
            }
        }
    })
}

fn validate_batches(count: u64, size: usize) -> Duration {
    let bytes = batch(size, Compression::None);
    timed(|| {
        for _ in 0..count {
            black_box(validate(black_box(&bytes), Origin::Producer).expect("the sample is good").next_offset());
        }
    })
}

/// Only [`Log::append`] itself is timed, not the simulated disk. Whoever times it has a log whose end in memory is full: it is
/// memory's first use that would be measured otherwise, which is over after the first moments of a broker's life.
fn append(count: u64, size: usize, device: DeviceChoice) -> Duration {
    on_a_simulated_disk(device, async move |log| {
        let sample = Lease::from_vec(batch(size, Compression::None));
        let mut spent = Duration::ZERO;
        let unmeasured = if count == TIMED { (2 * TAIL_BYTES / size) as u64 } else { 0 };
        for number in 0..unmeasured + count {
            if number == unmeasured {
                spent = Duration::ZERO;
            }
            let began = now();
            let appended = log.append(sample.clone(), AppendOrigin::Client, LeaderEpoch::new(0)).await;
            spent += now() - began;
            let last_offset = appended.expect("the sample is good").last_offset;
            if number % 16 == 15 {
                log.written(last_offset).await.expect("the simulated disk works");
            }
        }
        spent
    })
}

fn fetch(count: u64) -> Duration {
    on_a_simulated_disk(DeviceChoice::Direct, async move |log| {
        let sample = Lease::from_vec(batch(64 << 10, Compression::None));
        let mut base_offset = Offset::ZERO;
        for _ in 0..16 {
            let appended = log.append(sample.clone(), AppendOrigin::Client, LeaderEpoch::new(0)).await;
            let appended = appended.expect("the sample is good");
            log.flushed(appended.last_offset).await.expect("the simulated disk works");
            log.set_high_watermark(appended.last_offset.next());
            base_offset = appended.base_offset;
        }
        let limit = ReadLimit { end: Offset::MAX, bytes_max: 64 << 10, first_batch: FirstBatch::AtLeastOne };
        let mut spent = Duration::ZERO;
        for _ in 0..count {
            let began = now();
            let read = log.read(base_offset, limit).await.expect("the log is sound");
            spent += now() - began;
            assert_eq!(read.bytes, sample.len(), "one batch, whole");
        }
        spent
    })
}

/// Runs `work` on a log of a simulated host.
fn on_a_simulated_disk<F>(device: DeviceChoice, work: F) -> Duration
where
    F: AsyncFnOnce(&Log) -> Duration + 'static,
{
    let simulator = Simulator::new(7);
    let io = simulator.host("broker").start_core();
    let story = {
        let io = io.clone();
        async move {
            let (engine, log) = open(&io, device).await;
            let spent = work(&log).await;
            engine.close().await.expect("the simulated disk works");
            spent
        }
    };
    simulator.run(&io, story).expect("the story ends")
}

async fn open(io: &Io, device: DeviceChoice) -> (Engine, Log) {
    let dir = DataDir::open(io, Path::new("/data"), &WantedIdentity::default()).await.expect("the disk is new");
    let config = EngineConfig { device, tail_bytes_max: TAIL_BYTES, ..EngineConfig::default() };
    let engine = Engine::open(io, dir, config).await.expect("the disk is new");
    let id = LogId { topic: TopicId::new([1; 16]), partition: PartitionIndex::new(0) };
    let name = LogName { topic: "orders".to_owned(), id };
    let config = LogConfig { segment_bytes: 1 << 30, ..LogConfig::default() };
    let log = engine.open_log(name, config).await.expect("a log can be made");
    (engine, log)
}
