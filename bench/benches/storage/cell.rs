//! One cell of the comparison: a workload on a backend and a device, with its samples.
//!
//! Owns an executor and a data directory of its own. Never measured alone: `main.rs` takes samples of all cells of a group in
//! turn, so that what disturbs the machine disturbs them alike.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use heddle_bench::batch;
use heddle_engine::{
    AppendOrigin, DataDir, DeviceChoice, Engine, EngineConfig, FirstBatch, Log, LogConfig, LogName, Piece, ReadLimit,
    WantedIdentity,
};
use heddle_io::{Backend, Executor, Io, IoConfig, Lease};
use heddle_record::{Compression, LeaderEpoch, LogId, Offset, PartitionIndex, TopicId};

use crate::limit::Limits;
use crate::meter::{Counters, Mark, Spent};

/// After so many bytes what is old goes.
const BYTES_KEPT: u64 = 128 << 20;
/// Bytes in the log that is read or recovered.
const STORED_BYTES: u64 = 64 << 20;
const READ_BYTES: usize = 1 << 20;
const PARTITIONS: i32 = 16;

/// What is done in one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workload {
    /// So many batches of about this size to one partition.
    Append { size: usize, batches: u64, durability: Durability },
    /// A batch of 1 KiB to each of 16 partitions, all durable.
    Unbatched,
    /// 1 MiB from the end of the log, just written.
    TailRead,
    /// 1 MiB that is not in memory.
    ColdRead,
    /// A log of 64 MiB is opened after a kill, without a checkpoint.
    Recover,
    /// Four batches of 64 KiB, durable, to segments that hold no more.
    Roll,
}

/// What a round of appends waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// All are written.
    NoSync,
    /// All are flushed, by as few flushes as the engine likes.
    GroupCommit,
    /// Each is flushed before the next begins.
    SyncEach,
}

/// How segments are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    /// Through the page cache.
    Buffered,
    /// Past it.
    Direct,
}

/// Every device that the engine has.
pub(crate) const DEVICES: [Device; 2] = [Device::Buffered, Device::Direct];

impl Device {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Device::Buffered => "buffered",
            Device::Direct => "direct",
        }
    }

    fn engine_config(self) -> EngineConfig {
        let device = match self {
            Device::Buffered => DeviceChoice::Buffered,
            Device::Direct => DeviceChoice::Direct,
        };
        EngineConfig { device, ..EngineConfig::default() }
    }
}

/// A workload on one backend and device.
pub(crate) struct Cell {
    pub(crate) name: String,
    device: Device,
    workload: Workload,
    executor: Executor,
    folder: Folder,
    batch: Lease,
    opened: Option<Opened>,
    /// Rounds of one sample.
    pub(crate) rounds: u64,
    /// Seconds of one round, sample by sample.
    pub(crate) samples: Vec<f64>,
    /// All samples together.
    pub(crate) spent: Spent,
    /// System calls and punts of one round; the reason if they cannot be counted.
    pub(crate) counted: Result<(f64, f64), String>,
}

struct Opened {
    engine: Engine,
    logs: Vec<Log>,
    appended: u64,
    next_read: Offset,
}

impl Cell {
    /// Opens an engine in a new folder below `parent`, with what the workload reads in it.
    ///
    /// # Errors
    ///
    /// Why this row is missing.
    pub(crate) fn open(
        backend: Backend,
        device: Device,
        workload: Workload,
        parent: &Path,
        target: Duration,
    ) -> Result<Cell, String> {
        if !backend.is_built() {
            return Err("not in this build: cargo feature `stacks`".to_owned());
        }
        let executor = Executor::new(IoConfig { backend, ..IoConfig::default() }).map_err(|error| error.to_string())?;
        let name = format!("{}, {}", backend.name(), device.name());
        let mut cell = Cell {
            folder: Folder::new(parent.join(format!("{}-{}", backend.name(), device.name()))),
            name,
            device,
            workload,
            executor,
            batch: Lease::from_vec(batch(workload.batch_size(), Compression::None)),
            opened: None,
            rounds: 1,
            samples: Vec::new(),
            spent: Spent::default(),
            counted: Err("not counted".to_owned()),
        };
        cell.set_up();
        cell.calibrate(target);
        Ok(cell)
    }

    /// Bytes of batches in one round.
    pub(crate) fn round_bytes(&self) -> u64 {
        let len = self.batch.len() as u64;
        match self.workload {
            Workload::Append { batches, .. } => batches * len,
            Workload::Unbatched => PARTITIONS as u64 * len,
            Workload::TailRead | Workload::ColdRead => (READ_BYTES as u64 / len) * len,
            Workload::Recover => STORED_BYTES.div_ceil(len) * len,
            Workload::Roll => 4 * len,
        }
    }

    /// What is called an operation of a round: an append, a read, a recovery.
    pub(crate) fn round_operations(&self) -> u64 {
        match self.workload {
            Workload::Append { batches, .. } => batches,
            Workload::Unbatched => PARTITIONS as u64,
            Workload::TailRead | Workload::ColdRead | Workload::Recover => 1,
            Workload::Roll => 4,
        }
    }

    /// The seconds that a round takes at least, and what says so.
    pub(crate) fn floor(&self, limits: &Limits) -> (f64, &'static str) {
        let bytes = self.round_bytes() as f64;
        let memory = bytes * (limits.copy + limits.checksum);
        let disk = bytes * limits.write;
        match self.workload {
            // What is not flushed stays in the page cache, or goes to the drive.
            Workload::Append { durability: Durability::NoSync, .. } => match self.device {
                Device::Buffered => (memory, "copy + CRC"),
                Device::Direct => (disk, "O_DIRECT write"),
            },
            Workload::Append { durability: Durability::GroupCommit, .. } | Workload::Unbatched => {
                (limits.commit + disk, "O_DIRECT write + one commit")
            }
            Workload::Append { durability: Durability::SyncEach, batches, .. } => {
                (limits.commit * batches as f64 + disk, "O_DIRECT write + a commit each")
            }
            Workload::Roll => (limits.commit + disk, "O_DIRECT write + one commit"),
            Workload::TailRead => (bytes * limits.copy, "copy"),
            Workload::ColdRead => (bytes * limits.read, "O_DIRECT read"),
            Workload::Recover => (memory, "copy + CRC"),
        }
    }

    /// Takes one timed sample.
    pub(crate) fn sample(&mut self) {
        self.before_sample();
        let mark = Mark::now();
        self.run(self.rounds);
        let spent = mark.spent();
        self.samples.push(spent.time.as_secs_f64() / self.rounds as f64);
        self.spent += spent;
    }

    /// Takes one sample that is counted, not timed.
    pub(crate) fn count(&mut self) {
        self.before_sample();
        let rounds = self.rounds.min(64);
        self.counted = match Counters::start() {
            Ok(mut counters) => {
                self.run(rounds);
                let (calls, punts) = counters.counted();
                Ok((calls as f64 / rounds as f64, punts as f64 / rounds as f64))
            }
            Err(error) => Err(error.to_string()),
        };
    }

    /// The mean time of a round, seconds.
    pub(crate) fn mean(&self) -> f64 {
        self.samples.iter().sum::<f64>() / self.samples.len() as f64
    }

    /// Finds how many rounds take about `target`.
    fn calibrate(&mut self, target: Duration) {
        self.run(1);
        self.before_sample();
        let mark = Mark::now();
        self.run(2);
        let each = (mark.spent().time / 2).max(Duration::from_nanos(100));
        let most = if self.workload == Workload::ColdRead { STORED_BYTES / self.round_bytes() - 2 } else { 20_000 };
        self.rounds = ((target.as_nanos() / each.as_nanos()) as u64).clamp(1, most);
    }

    fn set_up(&mut self) {
        self.opened = Some(self.executor.run(open(&self.executor.io(), &self.folder.0, self.device, self.workload)));
        if self.workload.reads() {
            let per_round = (1 << 20) / self.batch.len() as u64;
            let opened = self.opened.as_mut().expect("it was just opened");
            let batch = &self.batch;
            self.executor.run(async {
                while opened.appended < STORED_BYTES {
                    opened.append(batch, per_round, Durability::GroupCommit).await;
                }
            });
        }
    }

    fn before_sample(&mut self) {
        if self.workload == Workload::ColdRead {
            forget_pages(&self.folder.0);
            self.opened.as_mut().expect("it is open between samples").next_read = Offset::ZERO;
        }
    }

    /// Does `rounds` rounds.
    fn run(&mut self, rounds: u64) {
        let io = self.executor.io();
        let (workload, device, batch, folder) = (self.workload, self.device, &self.batch, &self.folder.0);
        let opened = &mut self.opened;
        self.executor.run(async {
            for _ in 0..rounds {
                if workload == Workload::Recover {
                    kill(&io, opened, folder).await;
                    *opened = Some(open(&io, folder, device, workload).await);
                }
                let opened = opened.as_mut().expect("it is open between rounds");
                opened.round(&io, workload, batch).await;
            }
        });
    }
}

impl Workload {
    pub(crate) fn group(self) -> String {
        match self {
            Workload::Append { size, durability, .. } => {
                let size = if size < 1 << 20 { format!("{} KiB", size >> 10) } else { format!("{} MiB", size >> 20) };
                let durability = match durability {
                    Durability::NoSync => "no sync",
                    Durability::GroupCommit => "group commit",
                    Durability::SyncEach => "sync each",
                };
                format!("append {size}, {durability}")
            }
            Workload::Unbatched => "unbatched".to_owned(),
            Workload::TailRead => "tail-read".to_owned(),
            Workload::ColdRead => "cold-read".to_owned(),
            Workload::Recover => "recover".to_owned(),
            Workload::Roll => "roll".to_owned(),
        }
    }

    fn batch_size(self) -> usize {
        match self {
            // A batch of one record of 1 KiB has a header besides.
            Workload::Append { size, .. } => size,
            Workload::Unbatched => 2 << 10,
            Workload::TailRead | Workload::ColdRead | Workload::Recover | Workload::Roll => 64 << 10,
        }
    }

    fn partitions(self) -> i32 {
        if self == Workload::Unbatched { PARTITIONS } else { 1 }
    }

    fn reads(self) -> bool {
        matches!(self, Workload::TailRead | Workload::ColdRead | Workload::Recover)
    }

    fn log_config(self) -> LogConfig {
        let segment_bytes = match self {
            // Room for three batches of the sample; the fourth rolls.
            Workload::Roll => 200 << 10,
            _ => 64 << 20,
        };
        let mut config = LogConfig { segment_bytes, max_message_bytes: 2 << 20, ..LogConfig::default() };
        if matches!(self, Workload::Append { durability: Durability::NoSync, .. }) {
            config.flush_messages = u64::MAX;
        }
        config
    }
}

impl Opened {
    async fn round(&mut self, io: &Io, workload: Workload, batch: &Lease) {
        match workload {
            Workload::Append { batches, durability, .. } => self.append(batch, batches, durability).await,
            Workload::Unbatched => self.append(batch, 1, Durability::GroupCommit).await,
            Workload::Roll => self.append(batch, 4, Durability::GroupCommit).await,
            Workload::Recover => {}
            Workload::TailRead => {
                let end = self.logs[0].offsets().high_watermark.get();
                let in_batch = end / (self.appended / batch.len() as u64) as i64;
                let from = end - in_batch * (READ_BYTES / batch.len()) as i64;
                self.next_read = Offset::new(from);
                self.read(io).await;
            }
            Workload::ColdRead => self.read(io).await,
        }
    }

    /// `batches` to each partition.
    async fn append(&mut self, batch: &Lease, batches: u64, durability: Durability) {
        let mut last_offset = Offset::ZERO;
        for log in &self.logs {
            for _ in 0..batches {
                let appended = log.append(batch.clone(), AppendOrigin::Client, LeaderEpoch::new(0)).await;
                last_offset = appended.expect("the sample is good").last_offset;
                if durability == Durability::SyncEach {
                    log.flushed(last_offset).await.expect("the disk works");
                }
            }
        }
        for log in &self.logs {
            match durability {
                Durability::NoSync => log.written(last_offset).await.expect("the disk works"),
                Durability::GroupCommit | Durability::SyncEach => {
                    log.flushed(last_offset).await.expect("the disk works")
                }
            }
            log.set_high_watermark(last_offset.next());
        }
        self.appended += batches * batch.len() as u64 * self.logs.len() as u64;
        if self.appended > BYTES_KEPT {
            self.appended = 0;
            for log in &self.logs {
                self.engine.delete_records_before(log, last_offset).await.expect("the disk works");
            }
        }
    }

    /// Reads from where the last read ended, every byte into memory.
    async fn read(&mut self, io: &Io) {
        let limit = ReadLimit { end: Offset::MAX, bytes_max: READ_BYTES, first_batch: FirstBatch::AtLeastOne };
        let read = self.logs[0].read(self.next_read, limit).await.expect("the log is sound");
        assert!(read.bytes > READ_BYTES / 2, "the log holds what was appended");
        for piece in &read.pieces {
            let bytes = match piece {
                Piece::File { file, position, len } => {
                    io.read_lease(file, *position, *len).await.expect("the disk works")
                }
                Piece::Memory(lease) => Lease::from_vec(lease.to_vec()),
            };
            std::hint::black_box(&bytes);
        }
        self.next_read = read.next_offset;
    }
}

async fn open(io: &Io, folder: &Path, device: Device, workload: Workload) -> Opened {
    let path = folder.join("data");
    let dir = DataDir::open(io, &path, &WantedIdentity::default()).await.expect("the folder is ours");
    let engine = Engine::open(io, dir, device.engine_config()).await.expect("the folder is ours");
    let mut logs = Vec::new();
    for partition in 0..workload.partitions() {
        let id = LogId { topic: TopicId::new([1; 16]), partition: PartitionIndex::new(partition) };
        let name = LogName { topic: "bench".to_owned(), id };
        logs.push(engine.open_log(name, workload.log_config()).await.expect("a log can be made"));
    }
    Opened { engine, logs, appended: 0, next_read: Offset::ZERO }
}

/// Drops the engine as a kill would, with its checkpoints.
async fn kill(io: &Io, opened: &mut Option<Opened>, folder: &Path) {
    *opened = None;
    while io.tasks() > 0 {
        io.yield_now().await;
    }
    let entries = io.read_dir(&folder.join("data")).await.expect("the folder is ours");
    for entry in entries.iter().filter(|entry| entry.name.starts_with("heddle.checkpoint")) {
        io.remove_file(&folder.join("data").join(&entry.name)).await.expect("the folder is ours");
    }
}

/// Drops what the page cache has of all files below `folder`.
fn forget_pages(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            forget_pages(&path);
        } else if let Ok(file) = fs::File::open(&path) {
            // Dirty pages stay: they are written first.
            file.sync_all().expect("the disk works");
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("a hint on a file");
        }
    }
}

/// A new folder that goes with this value.
struct Folder(PathBuf);

impl Folder {
    fn new(path: PathBuf) -> Folder {
        fs::create_dir_all(&path).expect("the folder can be made");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that stays behind is in nobody's way.
        let _ = fs::remove_dir_all(&self.0);
    }
}
