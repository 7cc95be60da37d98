//! Compaction on one core, beside what reading, hashing and writing the same bytes costs at least:
//! `cargo bench -p heddle-bench --bench compaction`.
//!
//! A log in which every key comes four times is compacted once, and the limit is probed on the very same files in between:
//! all bytes read twice, into the same memory, and their checksums computed, every key hashed where it lies, a quarter of the
//! bytes written and flushed, with the same io and no parsing, no map, no decisions. The keys come in turn, so that whole
//! batches stay or go, or in random order, so that something goes of every batch. Rounds alternate; medians are printed, of
//! the time and of the processor time, which other work on the machine changes less. Then a thousand logs with one small
//! dirty segment each, and the same with nothing dirty.
#![expect(clippy::print_stdout, reason = "a bench prints its rows")]

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use heddle_bench::{busy, now};
use heddle_engine::{
    AppendOrigin, CleanupPolicy, Compacted, DataDir, DeviceChoice, Engine, EngineConfig, LogConfig, LogName,
    WantedIdentity,
};
use heddle_io::{Buffer, Executor, Io, IoConfig, Lease, OpenOptions};
use heddle_record::checksum::crc32c;
use heddle_record::{BatchBuilder, BatchOptions, Batches, LeaderEpoch, LogId, PartitionIndex, Timestamp, TopicId};

const ROUNDS: usize = 5;
const LOG_BYTES: usize = 128 << 20;
const BATCH_BYTES: usize = 64 << 10;
const CHUNK_BYTES: usize = 512 << 10;
/// How often each key comes.
const COPIES: usize = 4;
const SMALL_LOGS: i32 = 1000;

fn main() {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compaction");
    // What an earlier run has left.
    let _ = std::fs::remove_dir_all(&home);
    let executor = Executor::new(IoConfig::default()).expect("a core starts");
    let io = executor.io();
    executor.run(async {
        for (value_bytes, keys) in
            [100, 1000].into_iter().flat_map(|bytes| [(bytes, Keys::InTurn), (bytes, Keys::Random)])
        {
            one_large_log(&io, &home.join(format!("values of {value_bytes}, keys {keys:?}")), value_bytes, keys).await;
        }
        many_small_logs(&io, &home.join("small")).await;
    });
    std::fs::remove_dir_all(&home).expect("it is ours");
}

/// The order in which keys come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keys {
    InTurn,
    Random,
}

impl Keys {
    /// The key of a record, by its number.
    fn of(self, number: usize, keys: usize) -> [u8; 16] {
        match self {
            Keys::InTurn => key(number % keys),
            Keys::Random => {
                let mixed = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                key((mixed >> 32) as usize % keys)
            }
        }
    }
}

/// Time by the clock, and of the processor: user and system of the whole process.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    wall: Duration,
    busy: Duration,
}

/// What `work` costs.
async fn cost<T>(work: impl Future<Output = T>) -> (Cost, T) {
    let (begun, busy_before) = (now(), busy());
    let done = work.await;
    (Cost { wall: begun.elapsed(), busy: busy() - busy_before }, done)
}

fn config(segment_bytes: u32) -> LogConfig {
    LogConfig {
        cleanup_policy: CleanupPolicy::Compact,
        dirty_ratio_min_millionths: 0,
        segment_bytes,
        // What is measured is not the flush of every batch.
        flush_messages: u64::MAX,
        timestamp_after_max: None,
        ..LogConfig::default()
    }
}

fn name(partition: i32) -> LogName {
    let id = LogId { topic: TopicId::new([3; 16]), partition: PartitionIndex::new(partition) };
    LogName { topic: "table".to_owned(), id }
}

async fn open(io: &Io, path: &Path) -> Engine {
    let dir = DataDir::open(io, path, &WantedIdentity::default()).await.expect("a data directory");
    let config = EngineConfig { device: DeviceChoice::Buffered, ..EngineConfig::default() };
    Engine::open(io, dir, config).await.expect("an engine")
}

/// A key of 16 bytes.
fn key(number: usize) -> [u8; 16] {
    let mixed = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&mixed.to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Fills a log so that all but its active segment is dirty.
async fn fill(engine: &Engine, partition: i32, value_bytes: usize, keys: Keys) {
    let log = engine.open_log(name(partition), config(32 << 20)).await.expect("a log");
    let records = LOG_BYTES / (value_bytes + 30);
    let value = vec![b'v'; value_bytes];
    let mut number = 0;
    while number < records {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        while builder.size_uncompressed() < BATCH_BYTES && number < records {
            let key = keys.of(number, records / COPIES);
            builder.push(Timestamp::new(number as i64), Some(&key), Some(&value), &[]).expect("it fits");
            number += 1;
        }
        let mut bytes = Vec::new();
        builder.finish(&mut bytes).expect("it fits");
        let appended = log.append(Lease::from_vec(bytes), AppendOrigin::Client, LeaderEpoch::new(0)).await;
        log.written(appended.expect("it is taken").last_offset).await.expect("it is written");
    }
    log.flush().await.expect("it is flushed");
    log.set_high_watermark(log.offsets().log_end.offset());
    engine.checkpoint().await.expect("a checkpoint");
}

async fn one_large_log(io: &Io, path: &Path, value_bytes: usize, keys: Keys) {
    let engine = open(io, path).await;
    let mut rounds = Vec::new();
    let mut done = Compacted::default();
    for partition in 0..ROUNDS as i32 {
        fill(&engine, partition, value_bytes, keys).await;
        let files = segments(&path.join(name(partition).directory().expect("a name")));
        let keys = files.iter().map(|file| keys_in(file)).collect::<Vec<_>>();
        let (limit, ()) = cost(probe(io, path, &files, &keys)).await;
        let (taken, compacted) = cost(engine.compact()).await;
        done = compacted.expect("it is compacted");
        rounds.push((limit, taken));
        engine.delete_log(&name(partition)).await.expect("it is deleted");
    }
    let median = |of: &dyn Fn(&(Cost, Cost)) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[ROUNDS / 2]
    };
    let bytes = (done.bytes_read + done.bytes_written) as f64;
    println!(
        "values of {value_bytes} B, keys {keys:?}: {:.0} MB read, {:.0} MB written, {} keys in {:.1} MB; {:.0} MB/s, {:.0} ns \
         of processor a record, the limit {:.0}; of the limit: {:.2} by the clock, {:.2} by the processor",
        done.bytes_read as f64 / 1e6,
        done.bytes_written as f64 / 1e6,
        done.keys,
        done.key_bytes_max as f64 / 1e6,
        bytes / 1e6 / median(&|(_, taken)| taken.wall.as_secs_f64()),
        median(&|(_, taken)| taken.busy.as_nanos() as f64 / done.records as f64),
        median(&|(limit, _)| limit.busy.as_nanos() as f64 / done.records as f64),
        median(&|(limit, taken)| limit.wall.as_secs_f64() / taken.wall.as_secs_f64()),
        median(&|(limit, taken)| limit.busy.as_secs_f64() / taken.busy.as_secs_f64()),
    );
    engine.close().await.expect("it closes");
}

/// Where in a segment its keys are.
fn keys_in(file: &Path) -> Vec<Range<usize>> {
    let bytes = std::fs::read(file).expect("a segment");
    let start = bytes.as_ptr() as usize;
    let mut keys = Vec::new();
    for batch in Batches::new(&bytes) {
        for record in batch.expect("a whole batch").records() {
            let key = record.expect("a sound record").key.expect("every record has one");
            let at = key.as_ptr() as usize - start;
            keys.push(at..at + key.len());
        }
    }
    keys
}

/// The sealed segments in a directory.
fn segments(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("the log's directory");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    files.sort();
    files.pop();
    files
}

/// What cannot be left out.
async fn probe(io: &Io, path: &Path, files: &[PathBuf], keys: &[Vec<Range<usize>>]) {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let target = path.join("probe.tmp");
    let out = io.open(&target, OpenOptions::create().truncate()).await.expect("a file");
    let mut sum = 0;
    let mut written = 0;
    let mut buffer = Buffer::with_capacity(CHUNK_BYTES);
    for pass in 0..2 {
        for (file, keys) in files.iter().zip(keys) {
            let file = io.open(file, OpenOptions::read()).await.expect("a segment");
            let len = io.len(&file).await.expect("its length");
            let (mut position, mut keys) = (0, keys.iter().peekable());
            while position < len {
                buffer.clear();
                let (read, filled) = io.read(&file, position, buffer, CHUNK_BYTES).await;
                buffer = filled;
                let end = position as usize + read.expect("its bytes");
                sum ^= u64::from(crc32c(&buffer));
                if pass == 0 {
                    while let Some(key) = keys.next_if(|key| key.start < end) {
                        let within = key.start.saturating_sub(position as usize)..key.end.min(end) - position as usize;
                        sum ^= hasher.hash_one(&buffer[within]);
                    }
                } else {
                    let kept = Lease::from_vec(buffer[..buffer.len() / COPIES].to_vec());
                    let len = kept.len() as u64;
                    io.write(&out, written, vec![kept]).await.expect("it is written");
                    written += len;
                }
                position = end as u64;
            }
        }
    }
    io.sync_data(&out).await.expect("it is flushed");
    std::hint::black_box(sum);
    io.remove_file(&target).await.expect("it is removed");
}

async fn many_small_logs(io: &Io, path: &Path) {
    let engine = open(io, path).await;
    for partition in 0..SMALL_LOGS {
        let log = engine.open_log(name(partition), config(4096)).await.expect("a log");
        for number in 0..8 {
            let mut builder = BatchBuilder::new(BatchOptions::default());
            builder.push(Timestamp::new(number), Some(b"key"), Some(&[b'v'; 900]), &[]).expect("it fits");
            let mut bytes = Vec::new();
            builder.finish(&mut bytes).expect("it fits");
            let appended = log.append(Lease::from_vec(bytes), AppendOrigin::Client, LeaderEpoch::new(0)).await;
            appended.expect("it is taken");
        }
        log.flush().await.expect("it is flushed");
        log.set_high_watermark(log.offsets().log_end.offset());
    }
    engine.checkpoint().await.expect("a checkpoint");
    for what in ["with a dirty segment each", "with nothing dirty", "with nothing dirty, again"] {
        let (taken, done) = cost(engine.compact()).await;
        let done = done.expect("they are compacted");
        println!(
            "{SMALL_LOGS} small logs {what}: {:.2?}, {:.2?} of processor, {} B written",
            taken.wall, taken.busy, done.bytes_written
        );
    }
    engine.close().await.expect("it closes");
}
