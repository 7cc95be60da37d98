//! The recovery checkpoint: one file per core with what every log of the core needs to come back quickly.
//!
//! Owns `heddle.checkpoint.<core>`. A checkpoint is a help, never the truth: one that is torn, damaged or old is ignored
//! with a line in the log, and the logs are scanned from their start. It is replaced as a whole, atomically.
//!
//! Which core owns a log changes from run to run. So all checkpoints of the directory are read at start and of each log
//! the newest snapshot counts; every core carries on those that no core has replaced by its own yet. Only then are the
//! files of cores that no longer exist removed.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::MutexGuard;

use heddle_io::sync::Semaphore;
use heddle_io::{EntryKind, Io, Lease, OpenOptions};
use heddle_record::checksum::crc32c;
use heddle_record::{LogId, PartitionIndex, TopicId};
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use crate::data_dir::{DataDir, write_checked};
use crate::engine::Engine;
use crate::error::Error;
use crate::layout::{self, LogName};
use crate::segment_index::Indexes;

/// What a checkpoint file starts with.
pub const CHECKPOINT_MAGIC: [u8; 8] = *b"HEDDLECP";
/// The version of the snapshot behind the header.
pub const CHECKPOINT_VERSION: u32 = 1;
/// Bytes before the snapshot: magic, version, checksum of the snapshot, its length, zeros.
pub const CHECKPOINT_HEADER_LEN: usize = 32;

/// One core's checkpoint.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// Counts the times that the data directory was opened; the larger is the newer.
    pub(crate) generation: u64,
    pub(crate) logs: Vec<LogSnapshot>,
}

/// What a log looked like, up to its recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct LogSnapshot {
    pub(crate) topic_id: [u8; 16],
    pub(crate) partition: i32,
    /// The generation in which it was taken, and a count within it: the larger is the newer.
    pub(crate) generation: u64,
    pub(crate) sequence: u64,
    pub(crate) log_start: i64,
    /// The recovery point: everything below was flushed.
    pub(crate) recovery_offset: i64,
    pub(crate) recovery_segment: i64,
    pub(crate) recovery_position: u64,
    /// Segments up to the one with the recovery point.
    pub(crate) segments: Vec<SegmentSnapshot>,
    /// Leader epochs and their first offsets.
    pub(crate) epochs: Vec<(i32, i64)>,
    pub(crate) producers: Vec<ProducerSnapshot>,
}

/// A segment up to the recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct SegmentSnapshot {
    pub(crate) base_offset: i64,
    pub(crate) size: u64,
    /// The largest timestamp, and the last offset of the first batch that has it.
    pub(crate) max_time: Option<(i64, i64)>,
    /// Entries in the index files.
    pub(crate) offset_entries: u32,
    pub(crate) time_entries: u32,
    /// Whether the index files are complete.
    pub(crate) index_complete: bool,
    pub(crate) first_append_at: Option<i64>,
    pub(crate) last_append_at: Option<i64>,
}

/// A producer of a log.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct ProducerSnapshot {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
    pub(crate) active_at: i64,
    pub(crate) batches: Vec<ProducerBatchSnapshot>,
}

/// A batch of a producer.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct ProducerBatchSnapshot {
    pub(crate) base_sequence: i32,
    pub(crate) last_sequence: i32,
    pub(crate) base_offset: i64,
    pub(crate) last_offset: i64,
    pub(crate) log_append_time: i64,
}

impl LogSnapshot {
    pub(crate) fn id(&self) -> LogId {
        LogId { topic: TopicId::new(self.topic_id), partition: PartitionIndex::new(self.partition) }
    }
}

/// What the checkpoints of earlier runs say.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    /// The generation of this run.
    generation: u64,
    /// The newest snapshot of each log, until the core that opened the log has written its own.
    logs: BTreeMap<LogId, LogSnapshot>,
    /// A checkpoint could not be read: logs without a snapshot may have had one.
    pub(crate) lost: bool,
    /// Cores that have written a checkpoint in this run.
    written_by: BTreeSet<usize>,
}

impl Inherited {
    /// The snapshot of a log.
    pub(crate) fn snapshot(&self, id: LogId) -> Option<LogSnapshot> {
        self.logs.get(&id).cloned()
    }
}

/// Orders the checkpoints of one core, and lets one of them serve everybody who asked before it began.
pub(crate) struct CheckpointTurn {
    turn: Semaphore,
    begun: Cell<u64>,
    /// The number of the last one that succeeded.
    saved: Cell<u64>,
}

impl CheckpointTurn {
    pub(crate) fn new() -> CheckpointTurn {
        CheckpointTurn { turn: Semaphore::new(1), begun: Cell::new(0), saved: Cell::new(0) }
    }
}

impl Engine {
    /// Writes a checkpoint, if anything has changed since the last: first flushes every log, so that the next start has
    /// nothing to scan but what comes after.
    ///
    /// # Errors
    /// The former checkpoint stays in force.
    pub async fn checkpoint(&self) -> Result<(), Error> {
        let logs = self.logs();
        if logs.iter().all(|log| !log.inner.state.borrow().unsaved) {
            return Ok(());
        }
        for log in &logs {
            log.inner.start_flushing();
        }
        for log in logs.iter().filter(|log| log.offline().is_none()) {
            // A log that goes offline meanwhile has its last flushed state saved.
            if log.flush().await.is_ok() {
                log.inner.write_indexes(Indexes::All).await?;
            }
        }
        self.save().await
    }

    /// Writes a checkpoint of what is flushed now. Whoever asks while one is being written shares the next.
    ///
    /// # Errors
    /// The former checkpoint stays in force.
    pub(crate) async fn save(&self) -> Result<(), Error> {
        let turns = &self.inner.checkpoint;
        let begun_before = turns.begun.get();
        let _turn = turns.turn.acquire(1).await;
        if turns.saved.get() > begun_before {
            return Ok(());
        }
        turns.begun.set(turns.begun.get() + 1);
        self.write_snapshot(turns.begun.get()).await?;
        turns.saved.set(turns.begun.get());
        Ok(())
    }

    async fn write_snapshot(&self, sequence: u64) -> Result<(), Error> {
        let core = &self.inner.core;
        core.dir.offline_error().map_or(Ok(()), Err)?;
        core.bytes_since_checkpoint.set(0);
        let open = self.logs();
        let own: BTreeSet<LogId> = open.iter().map(|log| log.name().id).collect();
        let snapshot = {
            let inherited = inherited(&core.dir);
            let generation = inherited.generation;
            let mut logs: Vec<LogSnapshot> = open.iter().map(|log| log.inner.snapshot(generation, sequence)).collect();
            logs.extend(inherited.logs.values().filter(|log| !own.contains(&log.id())).cloned());
            Snapshot { generation, logs }
        };
        let bytes = Lease::from_vec(encode(&snapshot));
        let name = layout::checkpoint_file(core.config.core);
        let written = write_checked(&core.io, core.dir.path(), &name, bytes).await;
        if let Err(error) = written {
            core.dir.note_failure(&error);
            for log in &open {
                log.inner.state.borrow_mut().unsaved = true;
            }
            return Err(error);
        }
        for (log, saved) in open.iter().zip(&snapshot.logs) {
            log.inner.note_saved(saved);
        }
        self.forget_inherited(&own).await
    }

    /// Snapshots of logs that this core has written itself are no longer needed; once all cores have written, neither are
    /// the files of cores that do not exist any more.
    async fn forget_inherited(&self, own: &BTreeSet<LogId>) -> Result<(), Error> {
        let core = &self.inner.core;
        let all_written = {
            let mut inherited = inherited(&core.dir);
            inherited.logs.retain(|id, _| !own.contains(id));
            inherited.written_by.insert(core.config.core) && inherited.written_by.len() == core.config.cores
        };
        if !all_written {
            return Ok(());
        }
        for entry in core.io.read_dir(core.dir.path()).await? {
            if layout::checkpoint_core(&entry.name).is_some_and(|number| number >= core.config.cores) {
                core.io.remove_file(&core.dir.path().join(&entry.name)).await?;
            }
        }
        Ok(())
    }
}

/// What is inherited. It is there from the first engine's opening on.
pub(crate) fn inherited(dir: &DataDir) -> MappedInherited<'_> {
    let guard = dir.inherited().lock().expect("nobody panics while holding it");
    assert!(guard.is_some(), "checkpoints are loaded when the first engine opens");
    MappedInherited(guard)
}

/// A guard of what is inherited.
pub(crate) struct MappedInherited<'a>(MutexGuard<'a, Option<Inherited>>);

impl std::ops::Deref for MappedInherited<'_> {
    type Target = Inherited;

    fn deref(&self) -> &Inherited {
        self.0.as_ref().expect("checked when it was locked")
    }
}

impl std::ops::DerefMut for MappedInherited<'_> {
    fn deref_mut(&mut self) -> &mut Inherited {
        self.0.as_mut().expect("checked when it was locked")
    }
}

/// Forgets the snapshot of a log that is deleted.
pub(crate) fn forget_log(dir: &DataDir, id: LogId) {
    inherited(dir).logs.remove(&id);
}

/// Reads all checkpoints of the directory, unless another engine of this process has. Returns whether this call did.
///
/// # Errors
/// What the system refuses. What cannot be understood is ignored.
pub(crate) async fn load_once(io: &Io, dir: &DataDir) -> Result<bool, Error> {
    if dir.inherited().lock().expect("nobody panics while holding it").is_some() {
        return Ok(false);
    }
    let mut loaded = Inherited::default();
    let mut present = BTreeSet::new();
    for entry in io.read_dir(dir.path()).await? {
        if entry.kind == EntryKind::File && layout::checkpoint_core(&entry.name).is_some() {
            let path = dir.path().join(&entry.name);
            match read_snapshot(io, &path).await? {
                Ok(snapshot) => loaded.take(snapshot),
                Err(reason) => {
                    loaded.lost = true;
                    tracing::warn!(file = %path.display(), reason, "a checkpoint is not readable; its logs are scanned from their start");
                }
            }
        } else if let Some(name) = LogName::from_directory(&entry.name) {
            present.insert(name.id);
        }
    }
    loaded.generation += 1;
    loaded.logs.retain(|id, _| present.contains(id));
    let mut inherited = dir.inherited().lock().expect("nobody panics while holding it");
    let first = inherited.is_none();
    inherited.get_or_insert(loaded);
    Ok(first)
}

impl Inherited {
    /// Keeps what is newer than what is known.
    fn take(&mut self, snapshot: Snapshot) {
        self.generation = self.generation.max(snapshot.generation);
        for log in snapshot.logs {
            let age = |log: &LogSnapshot| (log.generation, log.sequence);
            match self.logs.get(&log.id()) {
                Some(known) if age(known) >= age(&log) => {}
                _ => {
                    self.logs.insert(log.id(), log);
                }
            }
        }
    }
}

/// The bytes of a checkpoint file.
pub(crate) fn encode(snapshot: &Snapshot) -> Vec<u8> {
    let body = rkyv::to_bytes::<rkyv::rancor::Error>(snapshot).expect("a snapshot in memory can be written to memory");
    let mut bytes = Vec::with_capacity(CHECKPOINT_HEADER_LEN + body.len());
    bytes.extend_from_slice(&CHECKPOINT_MAGIC);
    bytes.extend_from_slice(&CHECKPOINT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&crc32c(&body).to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.resize(CHECKPOINT_HEADER_LEN, 0);
    bytes.extend_from_slice(&body);
    bytes
}

/// The snapshot in these bytes of a file, or why there is none.
pub(crate) fn decode(bytes: &[u8]) -> Result<Snapshot, &'static str> {
    let (header, body) = bytes.split_first_chunk::<CHECKPOINT_HEADER_LEN>().ok_or("too short")?;
    let (magic, rest) = header.split_first_chunk().expect("the header is longer");
    let (version, rest) = rest.split_first_chunk().expect("the header is longer");
    let (crc, rest) = rest.split_first_chunk().expect("the header is longer");
    let (len, _) = rest.split_first_chunk().expect("the header is longer");
    if *magic != CHECKPOINT_MAGIC {
        return Err("not a checkpoint");
    }
    if u32::from_le_bytes(*version) != CHECKPOINT_VERSION {
        return Err("another version");
    }
    if u64::from_le_bytes(*len) != body.len() as u64 {
        return Err("torn");
    }
    if u32::from_le_bytes(*crc) != crc32c(body) {
        return Err("the checksum does not match");
    }
    let mut aligned: AlignedVec = AlignedVec::with_capacity(body.len());
    aligned.extend_from_slice(body);
    rkyv::from_bytes::<Snapshot, rkyv::rancor::Error>(&aligned).map_err(|_| "the snapshot is malformed")
}

/// Reads one checkpoint: what it says, or why it says nothing.
///
/// # Errors
/// What the system refuses.
pub(crate) async fn read_snapshot(io: &Io, path: &std::path::Path) -> Result<Result<Snapshot, &'static str>, Error> {
    let file = io.open(path, OpenOptions::read()).await?;
    let len = io.len(&file).await?;
    let bytes = io.read_lease(&file, 0, usize::try_from(len).expect("a file in memory")).await?;
    Ok(decode(&bytes))
}
