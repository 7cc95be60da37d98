//! Many logs, and cold ones, on one core of the engine: `cargo bench -p heddle-bench --bench logs`.
//!
//! - 10,000 logs are made, a durable batch of 1 KiB in each. What one of them costs while all are idle: memory, and the core's
//!   time. Durable appends to 10 logs of another engine, and to 1 % of the many: their ratio. How long the engine and all logs
//!   take to open after a clean stop, and after a kill with 1 % or with all of them being appended to. What it costs to delete
//!   them all, until their files are gone.
//! - A backlog that the page cache has dropped is read from its beginning to its end, while another log is appended to: the
//!   latencies of these appends, and without the backlog; processor time of reading a gigabyte cold, and again warm.
//!
//! `HEDDLE_BENCH_DIR` names the file system to measure, else it is the one of the build; `HEDDLE_BENCH_LOGS` how many logs.
//! `-- idle`, `-- throughput`, `-- restart`, `-- cold`: only these parts.
//!
//! The process that is killed is this program again: `logs append PATH LOGS STEP` appends to each `STEP`th log until then.
//! `logs open PATH LOGS` opens them once and is gone without a word to the disk: for whoever counts system calls.
#![expect(clippy::print_stdout, reason = "a bench prints its rows")]

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use heddle_bench::{batch, busy, now, resident_bytes};
use heddle_engine::{
    AppendOrigin, DataDir, Engine, EngineConfig, FirstBatch, Log, LogConfig, LogName, Piece, ReadLimit, WantedIdentity,
};
use heddle_io::{Executor, File, Io, IoConfig, Lease, OpenOptions, zeros};
use heddle_record::{Compression, LeaderEpoch, LogId, Offset, PartitionIndex, TopicId};

/// How long each throughput is measured, alternating.
const STRETCH: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;
/// Appends in flight: few, so that each active log has one, and many.
const WINDOWS: [usize; 2] = [100, 1000];
/// Logs that are opened at the same time, as the broker does, and that are appended to or deleted.
const OPENED_AT_ONCE: usize = 1024;
const AT_ONCE: usize = 64;
/// One in so many of the logs is active.
const ACTIVE_STEP: usize = 100;
/// How long all logs are left alone before an idle one is measured, and for how long it is then.
const SETTLE: Duration = Duration::from_secs(15);
const IDLE: Duration = Duration::from_secs(5);
/// The length of a plain file, and what is written to one is a multiple of.
const PLAIN_BYTES: usize = 1 << 20;
const BLOCK: usize = 4096;
const BACKLOG_BYTES: usize = 1 << 30;
const READ_BYTES: usize = 1 << 20;
/// Between two appends whose latency is taken.
const PAUSE: Duration = Duration::from_millis(10);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, path, count, step] = &arguments[..]
        && verb == "append"
    {
        append_until_killed(Path::new(path), parsed(count), parsed(step));
        return;
    }
    if let [verb, path, count] = &arguments[..]
        && verb == "open"
    {
        on_a_core(async |io| restart(&io, Path::new(path), parsed(count), "whatever happened").await);
        return;
    }
    let home =
        std::env::var_os("HEDDLE_BENCH_DIR").map_or(env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from).join("logs");
    // What an earlier run has left.
    let _ = std::fs::remove_dir_all(&home);
    let count = std::env::var("HEDDLE_BENCH_LOGS").map_or(10_000, |count| parsed(&count));
    let parts = Parts::of(&arguments);
    if parts.idle || parts.throughput || parts.restart {
        on_a_core(async |io| many_logs(&io, &home, count, parts).await);
    }
    if parts.restart {
        restarts(&home.join("many"), count);
    }
    if parts.cold {
        on_a_core(async |io| cold_backlog(&io, &home.join("cold")).await);
    }
    std::fs::remove_dir_all(&home).expect("it is ours");
}

/// What is measured.
#[derive(Clone, Copy)]
struct Parts {
    idle: bool,
    throughput: bool,
    restart: bool,
    cold: bool,
}

impl Parts {
    /// Those that are named; all if none is. Cargo adds arguments of its own, which begin with a dash.
    fn of(arguments: &[String]) -> Parts {
        let named: Vec<&str> =
            arguments.iter().map(String::as_str).filter(|argument| !argument.starts_with('-')).collect();
        let has = |part| named.is_empty() || named.contains(&part);
        Parts { idle: has("idle"), throughput: has("throughput"), restart: has("restart"), cold: has("cold") }
    }
}

fn parsed(number: &str) -> usize {
    number.parse().expect("a number of logs")
}

/// Runs `work` on a core of its own.
fn on_a_core<T>(work: impl AsyncFnOnce(Io) -> T) -> T {
    let executor = Executor::new(IoConfig::default()).expect("a core starts");
    let io = executor.io();
    executor.run(work(io))
}

fn name(topic: u8, partition: usize) -> LogName {
    let partition = PartitionIndex::new(i32::try_from(partition).expect("fewer partitions"));
    let id = LogId { topic: TopicId::new([topic; 16]), partition };
    LogName { topic: format!("topic-{topic}"), id }
}

async fn open(io: &Io, path: &Path) -> Engine {
    let dir = DataDir::open(io, path, &WantedIdentity::default()).await.expect("a data directory");
    let config = EngineConfig { tail_bytes_max: 64 << 20, ..EngineConfig::default() };
    Engine::open(io, dir, config).await.expect("an engine")
}

/// Appends and waits for the flush.
async fn durable(log: Log, bytes: Lease) {
    let appended = log.append(bytes, AppendOrigin::Client, LeaderEpoch::new(0)).await.expect("it is taken");
    log.flushed(appended.last_offset).await.expect("it is flushed");
    log.set_high_watermark(appended.last_offset.next());
}

/// Durable appends a second, round about these logs, so many in flight.
async fn throughput(io: &Io, logs: &[Log], window: usize, bytes: &Lease) -> f64 {
    let begun = now();
    let (mut waiting, mut done) = (VecDeque::new(), 0);
    for log in logs.iter().cycle() {
        waiting.push_back(io.spawn(durable(log.clone(), bytes.clone())));
        if waiting.len() == window {
            waiting.pop_front().expect("the window is not empty").await;
            done += 1;
            if begun.elapsed() > STRETCH {
                break;
            }
        }
    }
    let rate = f64::from(done) / begun.elapsed().as_secs_f64();
    for one in waiting {
        one.await;
    }
    rate
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Does `work` for each of `count` numbers, `at_once` at the same time.
async fn each<F: Future + 'static>(io: &Io, count: usize, at_once: usize, work: impl Fn(usize) -> F) -> Vec<F::Output> {
    let (mut running, mut done) = (VecDeque::new(), Vec::new());
    for number in 0..count {
        if running.len() == at_once {
            done.push(running.pop_front().expect("some are running").await);
        }
        running.push_back(io.spawn(work(number)));
    }
    for one in running {
        done.push(one.await);
    }
    done
}

/// Opens logs, or makes them.
async fn open_logs(io: &Io, engine: &Engine, topic: u8, count: usize) -> Vec<Log> {
    let open = async |engine: Engine, name| engine.open_log(name, LogConfig::default()).await.expect("a log");
    each(io, count, OPENED_AT_ONCE, |partition| open(engine.clone(), name(topic, partition))).await
}

/// One durable batch to each log.
async fn touch(io: &Io, logs: &[Log], bytes: &Lease) {
    each(io, logs.len(), AT_ONCE, |index| durable(logs[index].clone(), bytes.clone())).await;
}

async fn many_logs(io: &Io, home: &Path, count: usize, parts: Parts) {
    let bytes = Lease::from_vec(batch(2048, Compression::None));
    let (few, many) = (open(io, &home.join("few")).await, open(io, &home.join("many")).await);
    let ten = open_logs(io, &few, 1, 10).await;
    let upkeep = [few.clone(), many.clone()].map(|engine| io.spawn(async move { engine.maintain().await }));
    let before = resident_bytes("self");
    let begun = now();
    let all = open_logs(io, &many, 2, count).await;
    touch(io, &all, &bytes).await;
    println!("{count} logs made, a batch in each: {:.1?}", begun.elapsed());
    many.checkpoint().await.expect("a checkpoint");
    if parts.idle || parts.throughput {
        io.sleep(SETTLE).await;
    }
    if parts.idle {
        idle(io, &many, count, before).await;
    }
    if parts.throughput {
        compare_throughput(io, home, &ten, &all, &bytes).await;
    }
    upkeep.into_iter().for_each(heddle_io::Task::cancel);
    drop(all);
    few.close().await.expect("it closes");
    let begun = now();
    many.close().await.expect("it closes");
    println!("closed in {:.2?}", begun.elapsed());
}

/// What the logs cost while nobody uses them; without them this process had `before` bytes.
async fn idle(io: &Io, many: &Engine, count: usize, before: u64) {
    let busy_before = busy();
    io.sleep(IDLE).await;
    let spent = busy() - busy_before;
    println!(
        "idle: {:.1} KiB a log, {:.2} % of a core, {} files open",
        (resident_bytes("self") as f64 - before as f64) / 1024.0 / count as f64,
        100.0 * spent.as_secs_f64() / IDLE.as_secs_f64(),
        many.open_files(),
    );
}

/// Durable appends to ten logs, and to each [`ACTIVE_STEP`]th of all, alternating with what the disk makes of their pattern.
async fn compare_throughput(io: &Io, home: &Path, ten: &[Log], all: &[Log], bytes: &Lease) {
    let active: Vec<Log> = all.iter().step_by(ACTIVE_STEP).cloned().collect();
    let files = plain_files(io, home, active.len()).await;
    for window in WINDOWS {
        let (mut of_ten, mut of_all, mut limit_of_ten, mut limit_of_all) = (vec![], vec![], vec![], vec![]);
        for _ in 0..ROUNDS {
            limit_of_ten.push(plain_commits(io, &files[..10.min(files.len())], window, bytes.len()).await);
            of_ten.push(throughput(io, ten, window, bytes).await);
            limit_of_all.push(plain_commits(io, &files, window, bytes.len()).await);
            of_all.push(throughput(io, &active, window, bytes).await);
        }
        let ratios = of_ten.iter().zip(&of_all).map(|(ten, all)| all / ten).collect();
        println!(
            "durable appends/s, {window} in flight: to 10 logs {:.0} (plain files {:.0}), to {} of {} {:.0} (plain files {:.0}); \
             ratio {:.2}",
            median(of_ten),
            median(limit_of_ten),
            active.len(),
            all.len(),
            median(of_all),
            median(limit_of_all),
            median(ratios),
        );
    }
}

/// Files whose blocks are written already, opened past the page cache.
async fn plain_files(io: &Io, home: &Path, count: usize) -> Vec<File> {
    let mut files = Vec::new();
    for number in 0..count {
        let path = home.join(format!("plain-{number}"));
        let file = io.open(&path, OpenOptions::create().direct()).await.expect("a file");
        io.write(&file, 0, zeros(PLAIN_BYTES).collect()).await.expect("it is written");
        files.push(file);
    }
    for file in &files {
        io.sync_all(file).await.expect("it is flushed");
    }
    files
}

/// The same commits without an engine: a write in place to each of the files, all at the same time, then one flush. How many
/// batches of `len` bytes a second, if a commit has `window` of them.
async fn plain_commits(io: &Io, files: &[File], window: usize, len: usize) -> f64 {
    let bytes = (window.div_ceil(files.len()) * len).next_multiple_of(BLOCK);
    let begun = now();
    let mut commits = 0;
    while begun.elapsed() < STRETCH {
        let position = (commits * bytes) % (PLAIN_BYTES - bytes);
        let position = (position - position % BLOCK) as u64;
        let writing: Vec<_> = files.iter().map(|file| io.write(file, position, zeros(bytes).collect())).collect();
        for one in writing {
            one.await.expect("it is written");
        }
        io.sync_data(&files[0]).await.expect("it is flushed");
        commits += 1;
    }
    (commits * window) as f64 / begun.elapsed().as_secs_f64()
}

/// Opens all logs after a clean stop and after kills, and deletes them.
fn restarts(path: &Path, count: usize) {
    on_a_core(async |io| {
        let (engine, _) = restart(&io, path, count, "a clean stop").await;
        engine.close().await.expect("it closes");
    });
    kill_while_appending(path, count, ACTIVE_STEP);
    on_a_core(async |io| restart(&io, path, count, "kill -9, 1 % being appended to").await);
    kill_while_appending(path, count, 1);
    on_a_core(async |io| {
        let (engine, logs) = restart(&io, path, count, "kill -9, all being appended to").await;
        drop(logs);
        delete(&io, &engine, path, count).await;
        engine.close().await.expect("it closes");
    });
}

async fn restart(io: &Io, path: &Path, count: usize, after: &str) -> (Engine, Vec<Log>) {
    let (begun, busy_before) = (now(), busy());
    let engine = open(io, path).await;
    let logs = open_logs(io, &engine, 2, count).await;
    let (taken, spent) = (begun.elapsed(), busy() - busy_before);
    let records: i64 = logs.iter().map(|log| log.offsets().log_end.offset().get()).sum();
    assert!(records >= i64::try_from(count).expect("fewer logs"), "each has its first record");
    println!("{count} logs opened after {after}: {taken:.2?}, {spent:.2?} of processor");
    (engine, logs)
}

/// Has another process append to each `step`th log, and kills it.
#[expect(clippy::disallowed_methods, reason = "no core of this process runs meanwhile")]
fn kill_while_appending(path: &Path, count: usize, step: usize) {
    let program = std::env::current_exe().expect("a program knows its path");
    let mut command = Command::new(program);
    let mut child = command
        .args(["append".as_ref(), path.as_os_str()])
        .args([count.to_string(), step.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program runs");
    let mut line = String::new();
    let said = child.stdout.take().expect("it is piped");
    BufReader::new(said).read_line(&mut line).expect("it says when it has appended to all");
    assert_eq!(line.trim(), "appending");
    std::thread::sleep(STRETCH);
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
}

fn append_until_killed(path: &Path, count: usize, step: usize) {
    on_a_core(async |io| {
        let bytes = Lease::from_vec(batch(2048, Compression::None));
        let engine = open(&io, path).await;
        let logs: Vec<Log> = open_logs(&io, &engine, 2, count).await.into_iter().step_by(step).collect();
        let upkeep = io.spawn(async move { engine.maintain().await });
        touch(&io, &logs, &bytes).await;
        println!("appending");
        loop {
            touch(&io, &logs, &bytes).await;
            assert!(!upkeep.is_finished(), "the upkeep goes on");
        }
    });
}

async fn delete(io: &Io, engine: &Engine, path: &Path, count: usize) {
    let (begun, busy_before) = (now(), busy());
    let delete_one = async |engine: Engine, name| engine.delete_log(&name).await.expect("it is deleted");
    each(io, count, AT_ONCE, |partition| delete_one(engine.clone(), name(2, partition))).await;
    let answered = begun.elapsed();
    while std::fs::read_dir(path).expect("the data directory").any(|entry| is_log(&entry)) {
        io.sleep(Duration::from_millis(20)).await;
    }
    let (gone, spent) = (begun.elapsed(), busy() - busy_before);
    println!(
        "{count} logs deleted in {answered:.2?}, their files gone after {gone:.2?}: {:.0} µs a log, {:.0} µs of processor",
        gone.as_secs_f64() * 1e6 / count as f64,
        spent.as_secs_f64() * 1e6 / count as f64,
    );
}

fn is_log(entry: &std::io::Result<std::fs::DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("topic-"))
}

async fn cold_backlog(io: &Io, path: &Path) {
    let engine = open(io, path).await;
    let cold = engine.open_log(name(3, 0), LogConfig { segment_bytes: 64 << 20, ..LogConfig::default() }).await;
    let live = engine.open_log(name(4, 0), LogConfig::default()).await.expect("a log");
    let cold = cold.expect("a log");
    let bytes = Lease::from_vec(batch(READ_BYTES, Compression::None));
    for _ in 0..BACKLOG_BYTES / READ_BYTES {
        durable(cold.clone(), bytes.clone()).await;
    }
    let directory = path.join(cold.name().directory().expect("a name"));
    let (mut alone, mut beside, mut drained) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        let stopped = Rc::new(Cell::new(false));
        let measuring = io.spawn(latencies(io.clone(), live.clone(), Rc::clone(&stopped)));
        io.sleep(STRETCH).await;
        stopped.set(true);
        alone.extend(measuring.await);
        drop_pages(&directory);
        let stopped = Rc::new(Cell::new(false));
        let measuring = io.spawn(latencies(io.clone(), live.clone(), Rc::clone(&stopped)));
        drained.push(drain(io, &cold).await);
        stopped.set(true);
        beside.extend(measuring.await);
    }
    let warm = drain(io, &cold).await;
    let [(alone_half, alone_tail), (half, tail)] = [quantiles(alone), quantiles(beside)];
    println!(
        "durable append, 4 KiB: p50 {alone_half:.2} ms, p99 {alone_tail:.2} ms; beside a cold backlog at {:.0} MB/s p50 {half:.2} ms, \
         p99 {tail:.2} ms: {:.1} times",
        median(drained.iter().map(|(rate, _)| *rate).collect()),
        tail / alone_tail,
    );
    println!(
        "reading: cold, with the checksums, {:.3} CPU s/GB (the appends beside it included); warm {:.3} CPU s/GB",
        median(drained.iter().map(|(_, cost)| *cost).collect()),
        warm.1,
    );
    engine.close().await.expect("it closes");
}

/// Median and 99th percentile, in ms.
fn quantiles(mut latencies: Vec<Duration>) -> (f64, f64) {
    latencies.sort();
    let at = |part: f64| latencies[(part * (latencies.len() - 1) as f64) as usize].as_secs_f64() * 1e3;
    (at(0.5), at(0.99))
}

/// Has the kernel drop what it keeps of the files in a directory.
fn drop_pages(directory: &Path) {
    for entry in std::fs::read_dir(directory).expect("the log's directory") {
        let file = std::fs::File::open(entry.expect("an entry").path()).expect("a file of ours");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("a hint on a file");
    }
}

/// How long durable appends take, each from the time at which it was due.
async fn latencies(io: Io, log: Log, stopped: Rc<Cell<bool>>) -> Vec<Duration> {
    let bytes = Lease::from_vec(batch(4096, Compression::None));
    let mut taken = Vec::new();
    let mut due = io.now();
    while !stopped.get() {
        io.sleep_until(due).await;
        durable(log.clone(), bytes.clone()).await;
        taken.push(io.now().since(due));
        due = due + PAUSE;
    }
    taken
}

/// Reads all of a log. Returns MB/s and CPU seconds per GB.
async fn drain(io: &Io, log: &Log) -> (f64, f64) {
    let (begun, busy_before) = (now(), busy());
    let (mut from, end) = (log.offsets().log_start.offset(), log.offsets().high_watermark.offset());
    let mut bytes = 0;
    while from < end {
        let limit = ReadLimit { end, bytes_max: READ_BYTES, first_batch: FirstBatch::AtLeastOne };
        let out = log.read(from, limit).await.expect("it is sound");
        for piece in &out.pieces {
            if let Piece::File { file, position, len } = piece {
                io.read_lease(file, *position, *len).await.expect("it is there");
            }
        }
        bytes += out.bytes;
        from = Offset::max(out.next_offset, from.next());
    }
    let (taken, spent) = (begun.elapsed().as_secs_f64(), (busy() - busy_before).as_secs_f64());
    (bytes as f64 / 1e6 / taken, spent * 1e9 / bytes as f64)
}
