//! Compaction on one core, beside what reading, hashing and writing the same bytes costs at least:
//! `cargo bench -p heddle-bench --bench compaction`.
//!
//! A log in which every key comes four times is compacted once, and the limit is probed on the very same files in between:
//! all bytes read twice and their checksums computed, every key hashed, a quarter of the bytes written and flushed, with
//! the same io and no parsing, no map, no decisions. Rounds alternate; medians are printed. Then a thousand logs with one
//! small dirty segment each, and the same with nothing dirty.
#![expect(clippy::print_stdout, reason = "a bench prints its rows")]

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use heddle_engine::{
    AppendOrigin, CleanupPolicy, Compacted, DataDir, DeviceChoice, Engine, EngineConfig, LogConfig, LogName,
    WantedIdentity,
};
use heddle_io::{Executor, Io, IoConfig, Lease, OpenOptions};
use heddle_record::checksum::crc32c;
use heddle_record::{BatchBuilder, BatchOptions, LeaderEpoch, LogId, PartitionIndex, Timestamp, TopicId};

const ROUNDS: usize = 5;
const LOG_BYTES: usize = 128 << 20;
const BATCH_BYTES: usize = 64 << 10;
const CHUNK_BYTES: usize = 1 << 20;
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
        for value_bytes in [100, 1000] {
            one_large_log(&io, &home.join(format!("values of {value_bytes}")), value_bytes).await;
        }
        many_small_logs(&io, &home.join("small")).await;
    });
    std::fs::remove_dir_all(&home).expect("it is ours");
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

/// Fills a log so that all but its active segment is dirty. Gives the number of records.
async fn fill(engine: &Engine, partition: i32, value_bytes: usize) -> usize {
    let log = engine.open_log(name(partition), config(32 << 20)).await.expect("a log");
    let records = LOG_BYTES / (value_bytes + 30);
    let value = vec![b'v'; value_bytes];
    let mut number = 0;
    while number < records {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        while builder.size_uncompressed() < BATCH_BYTES && number < records {
            let key = key(number % (records / COPIES));
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
    records
}

async fn one_large_log(io: &Io, path: &Path, value_bytes: usize) {
    let engine = open(io, path).await;
    let mut ratios = Vec::new();
    let mut last = (Duration::ZERO, Duration::ZERO, Compacted::default());
    for round in 0..ROUNDS {
        let partition = round as i32;
        let records = fill(&engine, partition, value_bytes).await;
        let files = segments(&path.join(name(partition).directory().expect("a name")));
        let limit = probe(io, path, &files, records).await;
        let begun = heddle_bench::now();
        let done = engine.compact().await.expect("it is compacted");
        let taken = begun.elapsed();
        ratios.push(limit.as_secs_f64() / taken.as_secs_f64());
        last = (limit, taken, done);
        engine.delete_log(&name(partition)).await.expect("it is deleted");
    }
    ratios.sort_by(f64::total_cmp);
    let (limit, taken, done) = last;
    println!(
        "values of {value_bytes} B: {:.0} MB read, {:.0} MB written in {taken:.2?}, {:.0} MB/s; the limit {limit:.2?}; \
         {} keys in {:.1} MB; of the limit: median {:.2}, {:.2} to {:.2}",
        done.bytes_read as f64 / 1e6,
        done.bytes_written as f64 / 1e6,
        (done.bytes_read + done.bytes_written) as f64 / 1e6 / taken.as_secs_f64(),
        done.keys,
        done.key_bytes_max as f64 / 1e6,
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1],
    );
    engine.close().await.expect("it closes");
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

async fn probe(io: &Io, path: &Path, files: &[PathBuf], records: usize) -> Duration {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let keys: Vec<[u8; 16]> = (0..records).map(key).collect();
    let target = path.join("probe.tmp");
    let out = io.open(&target, OpenOptions::create().truncate()).await.expect("a file");
    let begun = heddle_bench::now();
    let mut sum = keys.iter().fold(0, |sum, key| sum ^ hasher.hash_one(&key[..]));
    let mut written = 0;
    for pass in 0..2 {
        for file in files {
            let file = io.open(file, OpenOptions::read()).await.expect("a segment");
            let len = io.len(&file).await.expect("its length");
            let mut position = 0;
            while position < len {
                let bytes = io.read_lease(&file, position, CHUNK_BYTES).await.expect("its bytes");
                sum ^= u64::from(crc32c(&bytes));
                position += bytes.len() as u64;
                if pass == 1 {
                    let kept = Lease::from_vec(bytes[..bytes.len() / COPIES].to_vec());
                    let len = kept.len() as u64;
                    io.write(&out, written, vec![kept]).await.expect("it is written");
                    written += len;
                }
            }
        }
    }
    io.sync_data(&out).await.expect("it is flushed");
    std::hint::black_box(sum);
    let taken = begun.elapsed();
    io.remove_file(&target).await.expect("it is removed");
    taken
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
        let begun = heddle_bench::now();
        let done = engine.compact().await.expect("they are compacted");
        println!("{SMALL_LOGS} small logs {what}: {:.2?}, {} B written", begun.elapsed(), done.bytes_written);
    }
    engine.close().await.expect("it closes");
}
