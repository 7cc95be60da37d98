//! Appending to a log of the engine, against writing the same bytes to a file with `std::fs`.
//!
//! One iteration appends a round of batches: "cached" ends when all are written to the page cache, "durable" when all
//! survive a power cut (the engine's group commit; `File::sync_data` after the last write). The log validates, assigns
//! offsets and keeps indexes; the file does nothing but take the bytes. Old bytes are removed as the log and the file
//! grow, on both sides within the time that is measured.
//!
//! The directory is made below `CARGO_TARGET_TMPDIR`, so it is on the disk of the build; set `HEDDLE_BENCH_DIR` for another.
//!
//! `cargo bench -p heddle-bench --bench append`
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use criterion::{BenchmarkId, Criterion, Throughput};
use heddle_bench::batch;
use heddle_engine::{AppendOrigin, DataDir, Engine, EngineConfig, Log, LogConfig, LogName, WantedIdentity};
use heddle_io::{Executor, IoConfig, Lease};
use heddle_record::{Compression, LeaderEpoch, LogId, Offset, PartitionIndex, TopicId};

/// After so many bytes what is old goes.
const BYTES_KEPT: u64 = 256 << 20;

fn main() {
    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    for durability in [Durability::Cached, Durability::Durable] {
        for (batches, size) in [(1, 4 << 10), (16, 4 << 10), (1, 64 << 10), (16, 64 << 10)] {
            compare(&mut criterion, durability, batches, size);
        }
    }
    criterion.final_summary();
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    Cached,
    Durable,
}

fn compare(criterion: &mut Criterion, durability: Durability, batches: u64, size: usize) {
    let bytes = batch(size, Compression::None);
    let folder = Folder::new();
    let executor = Executor::new(IoConfig::default()).expect("this machine runs the broker");
    let mut group = criterion.benchmark_group(format!("append {durability:?}"));
    group.throughput(Throughput::Bytes(batches * bytes.len() as u64));
    let shape = format!("{batches} x {} KiB", size >> 10);

    let engine = executor.run(open(&executor, &folder.0, durability));
    let mut log = GrowingLog { engine: &engine.0, log: &engine.1, appended: 0 };
    let lease = Lease::from_vec(bytes.clone());
    group.bench_function(BenchmarkId::new(format!("Log::append, {}", executor.backend_name()), &shape), |bench| {
        bench.iter(|| executor.run(log.round(&lease, batches, durability)));
    });
    executor.run(engine.0.close()).expect("the disk works");

    let mut file = GrowingFile::create(&folder.0.join("plain"));
    group.bench_function(BenchmarkId::new("std::fs", &shape), |bench| {
        bench.iter(|| file.round(&bytes, batches, durability));
    });
    group.finish();
}

async fn open(executor: &Executor, folder: &Path, durability: Durability) -> (Engine, Log) {
    let io = executor.io();
    let dir = DataDir::open(&io, &folder.join("data"), &WantedIdentity::default()).await.expect("the folder is new");
    let engine = Engine::open(&io, dir, EngineConfig::default()).await.expect("the folder is new");
    let id = LogId { topic: TopicId::new([1; 16]), partition: PartitionIndex::new(0) };
    let mut config = LogConfig { segment_bytes: 64 << 20, ..LogConfig::default() };
    if durability == Durability::Cached {
        // As far apart as they go: the file of `std::fs` is not flushed either.
        config.flush_messages = u64::MAX;
        config.flush_age_max = None;
    }
    let log = engine.open_log(LogName { topic: "bench".to_owned(), id }, config).await.expect("a log can be made");
    (engine, log)
}

/// A log that loses its old segments.
struct GrowingLog<'a> {
    engine: &'a Engine,
    log: &'a Log,
    appended: u64,
}

impl GrowingLog<'_> {
    async fn round(&mut self, batch: &Lease, batches: u64, durability: Durability) {
        let mut last_offset = Offset::ZERO;
        for _ in 0..batches {
            let appended = self.log.append(batch.clone(), AppendOrigin::Client, LeaderEpoch::new(0)).await;
            last_offset = appended.expect("the sample is good").last_offset;
        }
        match durability {
            Durability::Cached => self.log.written(last_offset).await.expect("the disk works"),
            Durability::Durable => self.log.flushed(last_offset).await.expect("the disk works"),
        }
        self.log.set_high_watermark(last_offset.next());
        self.appended += batches * batch.len() as u64;
        if self.appended > BYTES_KEPT {
            self.appended = 0;
            self.engine.delete_records_before(self.log, last_offset).await.expect("the disk works");
        }
    }
}

/// A file that starts again from its beginning.
struct GrowingFile {
    file: File,
    written: u64,
}

impl GrowingFile {
    fn create(path: &Path) -> Self {
        let file = OpenOptions::new().create_new(true).write(true).open(path).expect("the folder is new");
        GrowingFile { file, written: 0 }
    }

    fn round(&mut self, batch: &[u8], batches: u64, durability: Durability) {
        for _ in 0..batches {
            self.file.write_all(batch).expect("the disk works");
        }
        if durability == Durability::Durable {
            self.file.sync_data().expect("the disk works");
        }
        self.written += batches * batch.len() as u64;
        if self.written > BYTES_KEPT {
            self.written = 0;
            self.file.set_len(0).expect("the disk works");
            self.file.seek(SeekFrom::Start(0)).expect("a file can seek");
        }
    }
}

/// A new folder that goes with this value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let parent =
            std::env::var_os("HEDDLE_BENCH_DIR").map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
        let folder = parent.join(format!("append-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("the folder can be made");
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that stays behind is in nobody's way.
        let _ = fs::remove_dir_all(&self.0);
    }
}
