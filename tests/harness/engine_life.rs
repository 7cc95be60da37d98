//! One life of an engine on a simulated host: what is done with it, and what comes of it in the [`History`].
//!
//! Owns the workload of the crash tests: several producers, idempotent and not, topics that roll, relax their flushes, are
//! deleted and trimmed, readers, checkpoints. Checks nothing that a crash could break; `engine_recovery.rs` does that
//! afterwards.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use heddle_engine::{
    AppendError, AppendOrigin, DataDir, Engine, EngineConfig, Error, FirstBatch, Log, LogConfig, LogName, Piece,
    ReadLimit, WantedIdentity,
};
use heddle_io::{Io, Lease, Task};
use heddle_record::{
    BatchBuilder, BatchOptions, LeaderEpoch, LogId, Offset, PartitionIndex, ProducerEpoch, ProducerId, RecordBatch,
    Sequence, Timestamp, TopicId,
};

use crate::history::{Existence, History, LogHistory};

/// Where the engine of a test lives.
pub const DATA_DIR: &str = "/data";

/// The history, shared by the tasks of a life and the test.
pub type Shared = Rc<RefCell<History>>;

/// What differs from life to life.
#[derive(Clone)]
pub struct Life {
    /// Counts the lives of a data directory, from 1: the leader epoch.
    pub number: i32,
    /// Batches of each producer.
    pub batches: u32,
    /// Every batch is as long as every other, and the next life leads in the same epoch: what one life has left behind its
    /// end fits behind what the next one appends.
    pub alike: bool,
    /// Whether the engine is closed in the end.
    pub close: bool,
    /// The engine's settings.
    pub engine: EngineConfig,
}

/// Why a life ended early: the engine refused, which it may if a fault was planted.
#[derive(Debug)]
pub struct Refused(pub String);

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused(error.to_string())
    }
}

impl From<AppendError> for Refused {
    fn from(error: AppendError) -> Refused {
        Refused(error.to_string())
    }
}

impl From<heddle_engine::ReadError> for Refused {
    fn from(error: heddle_engine::ReadError) -> Refused {
        Refused(error.to_string())
    }
}

fn name(topic: &str, id: u8) -> LogName {
    let id = LogId { topic: TopicId::new([id; 16]), partition: PartitionIndex::new(0) };
    LogName { topic: topic.to_owned(), id }
}

/// Small segments, so that a short life rolls often.
fn small(segment_bytes: u32) -> LogConfig {
    LogConfig { segment_bytes, index_interval_bytes: 256, ..LogConfig::default() }
}

/// Opens the data directory and the engine of a life.
///
/// # Errors
/// What the engine refuses.
pub async fn open_engine(io: &Io, config: EngineConfig) -> Result<Engine, Error> {
    let dir = DataDir::open(io, Path::new(DATA_DIR), &WantedIdentity::default()).await?;
    Engine::open(io, dir, config).await
}

impl Life {
    /// The first life of a data directory.
    pub fn first() -> Life {
        // A log is idle as soon as nobody appends to it, so that a short life meets what comes of that.
        let engine = EngineConfig { checkpoint_busy_for: Duration::ZERO, ..EngineConfig::default() };
        Life { number: 1, batches: 6, alike: false, close: true, engine }
    }

    /// The next one, shorter.
    pub fn next(&self) -> Life {
        Life { number: self.number + 1, batches: 3, ..self.clone() }
    }

    /// Lives it.
    ///
    /// # Errors
    /// [`Refused`] as soon as the engine refuses anything.
    pub async fn live(self, io: Io, history: Shared) -> Result<(), Refused> {
        let engine = open_engine(&io, self.engine.clone()).await?;
        let epoch = LeaderEpoch::new(if self.alike { 1 } else { self.number });
        let world = World { io, engine, history, epoch, alike: self.alike };
        let first_producer = i64::from(self.number) * 100;
        let orders = world.open(name("orders", 1), small(2048)).await?;
        let relaxed = world.open(name("relaxed", 2), LogConfig { flush_messages: 50, ..small(1024) }).await?;
        let short = world.open(name("short", 3), LogConfig { retention_bytes: Some(2000), ..small(1024) }).await?;
        let replica = world.open(name("replica", 4), small(9000)).await?;
        let followers: Vec<Task<()>> =
            [&orders, &relaxed, &short].into_iter().flat_map(|log| world.follow(log)).collect();

        let produce = |log: &Log, producer: Option<i64>, window| {
            world.clone().produce(log.clone(), producer, self.batches, window)
        };
        let producers: Vec<Task<Result<(), Refused>>> = vec![
            world.io.spawn(produce(&orders, Some(1), 3)),
            world.io.spawn(produce(&orders, Some(first_producer), 1)),
            world.io.spawn(produce(&orders, None, 2)),
            world.io.spawn(produce(&relaxed, Some(2), 3)),
            world.io.spawn(produce(&short, Some(3), 2)),
        ];
        world.clone().append_and_cut(replica).await?;
        world.pause().await;
        let doomed = name("doomed", 0x10 + self.number as u8);
        world.clone().make_and_delete(doomed).await?;
        world.engine.checkpoint().await?;
        world.delete_records(&orders).await?;
        world.engine.apply_retention().await?;
        world.late_flush(&relaxed).await?;
        for producer in producers {
            producer.await?;
        }
        world.engine.apply_retention().await?;
        world.engine.checkpoint().await?;
        world.clone().produce(orders.clone(), Some(1), 2, 1).await?;
        [&orders, &relaxed, &short].into_iter().for_each(Log::check_invariants);
        followers.into_iter().for_each(Task::cancel);
        if self.close {
            world.engine.close().await?;
        }
        Ok(())
    }
}

#[derive(Clone)]
struct World {
    io: Io,
    engine: Engine,
    history: Shared,
    epoch: LeaderEpoch,
    alike: bool,
}

impl World {
    async fn open(&self, name: LogName, config: LogConfig) -> Result<Log, Refused> {
        let asked = LogHistory::asked(config.clone());
        self.history.borrow_mut().logs.entry(name.clone()).or_insert(asked);
        let log = self.engine.open_log(name.clone(), config).await?;
        log.begin_epoch(self.epoch);
        self.history.borrow_mut().log(&name).existence = Existence::Made;
        Ok(log)
    }

    /// The owner, which moves the high watermark, and a reader.
    fn follow(&self, log: &Log) -> [Task<()>; 2] {
        let owned = log.clone();
        let owner = async move {
            loop {
                let changed = owned.changed().wait();
                owned.set_high_watermark(owned.offsets().committable_end);
                changed.await;
            }
        };
        [self.io.spawn(owner), self.io.spawn(self.clone().read_along(log.clone()))]
    }

    async fn read_along(self, log: Log) {
        let mut position = log.offsets().log_start.offset();
        loop {
            let changed = log.changed().wait();
            let end = log.offsets().high_watermark.offset();
            if position < end {
                match read_batches(&self.io, &log, position, end).await {
                    Ok(batches) => {
                        position = batches.last().map_or(end, |(_, last, _)| Offset::new(last + 1));
                        let mut history = self.history.borrow_mut();
                        let read_end = &mut history.log(log.name()).read_end;
                        *read_end = (*read_end).max(position.get());
                    }
                    // The log's start has moved on, or it is gone.
                    Err(_) => position = position.max(log.offsets().log_start.offset()),
                }
                if log.offline().is_some() {
                    return;
                }
                continue;
            }
            changed.await;
        }
    }

    /// Appends batches of one producer, up to `window` of them not yet acknowledged. A producer that has a past repeats its
    /// last batch first, as one does that did not hear the answer.
    async fn produce(self, log: Log, producer: Option<i64>, batches: u32, window: usize) -> Result<(), Refused> {
        let producer = producer.map(ProducerId::new);
        let mut sequence = self.repeat_last(&log, producer).await?;
        let mut waiting = std::collections::VecDeque::new();
        for _ in 0..batches {
            let records = if self.alike { 1 } else { 1 + self.io.random_u64() % 3 };
            let batch = self.batch(producer, sequence, records);
            sequence = sequence.next(records as u32);
            let appended = log.append(batch.clone(), AppendOrigin::Client, self.epoch).await?;
            assert!(!appended.duplicate, "a new sequence is no duplicate");
            self.history.borrow_mut().log(log.name()).give(
                appended.base_offset.get(),
                appended.last_offset.get(),
                &batch,
            );
            waiting.push_back(self.io.spawn(self.clone().acknowledge(
                log.clone(),
                appended.base_offset,
                appended.last_offset,
            )));
            if waiting.len() >= window {
                waiting.pop_front().expect("just seen").await?;
            }
            self.pause().await;
        }
        for acknowledged in waiting {
            acknowledged.await?;
        }
        Ok(())
    }

    async fn repeat_last(&self, log: &Log, producer: Option<ProducerId>) -> Result<Sequence, Refused> {
        let Some(producer) = producer else { return Ok(Sequence::NONE) };
        let last =
            self.history.borrow_mut().log(log.name()).last_of(producer).map(|(base, given)| (base, given.clone()));
        let Some((base, given)) = last else { return Ok(Sequence::new(0)) };
        let again = log.append(given.bytes.clone(), AppendOrigin::Client, self.epoch).await?;
        assert!(again.duplicate && again.base_offset.get() == base, "{again:?} repeats the batch at {base}");
        let (_, sequence) = given.producer.expect("it has a producer");
        Ok(sequence.next((given.last - base + 1) as u32))
    }

    async fn acknowledge(self, log: Log, base: Offset, last: Offset) -> Result<(), Refused> {
        log.committable(last).await?;
        let mut history = self.history.borrow_mut();
        let log_history = history.log(log.name());
        // Where the topic relaxes flushing this acknowledgement promises nothing about power cuts.
        if !log_history.config.relaxes_flushing() {
            log_history.given.get_mut(&base.get()).expect("it was given offsets").acknowledged = true;
        }
        Ok(())
    }

    /// Asks for a flush in a topic that relaxes them: everything before is durable then.
    async fn late_flush(&self, log: &Log) -> Result<(), Refused> {
        let Some(last) = log.offsets().log_end.offset().checked_add(-1).filter(|last| last.get() >= 0) else {
            return Ok(());
        };
        log.flushed(last).await?;
        let mut history = self.history.borrow_mut();
        let covered = history.log(log.name()).given.values_mut().filter(|given| given.last <= last.get());
        covered.for_each(|given| given.acknowledged = true);
        Ok(())
    }

    async fn delete_records(&self, log: &Log) -> Result<(), Refused> {
        let offsets = log.offsets();
        let before = Offset::new(offsets.high_watermark.offset().get() / 2).max(offsets.log_start.offset());
        self.history.borrow_mut().log(log.name()).deletion_asked = before.get();
        let start = self.engine.delete_records_before(log, before).await?;
        self.history.borrow_mut().log(log.name()).deletion_confirmed = start.offset().get();
        Ok(())
    }

    /// What a follower does that followed a leader who lost: appends, and cuts back what is not committed, and appends again.
    async fn append_and_cut(self, log: Log) -> Result<(), Refused> {
        for _ in 0..2 {
            self.clone().produce(log.clone(), None, 8, 3).await?;
            let offsets = log.offsets();
            let end = (offsets.log_end.offset().get() - 6).max(offsets.high_watermark.offset().get());
            self.history.borrow_mut().log(log.name()).truncation_asked(end);
            let cut = self.engine.truncate_to(&log, Offset::new(end)).await?;
            self.history.borrow_mut().log(log.name()).truncated(cut.get());
        }
        self.produce(log, None, 1, 1).await
    }

    async fn make_and_delete(self, name: LogName) -> Result<(), Refused> {
        let log = self.open(name.clone(), small(1024)).await?;
        self.clone().produce(log, None, 2, 1).await?;
        self.history.borrow_mut().log(&name).existence = Existence::DeletionAsked;
        self.engine.delete_log(&name).await?;
        self.history.borrow_mut().log(&name).existence = Existence::Deleted;
        Ok(())
    }

    fn batch(&self, producer: Option<ProducerId>, sequence: Sequence, records: u64) -> Lease {
        let idempotent = BatchOptions {
            producer_id: producer.unwrap_or(ProducerId::NONE),
            producer_epoch: ProducerEpoch::new(0),
            base_sequence: sequence,
            ..BatchOptions::default()
        };
        let options = if producer.is_some() { idempotent } else { BatchOptions::default() };
        let mut builder = BatchBuilder::new(options);
        for _ in 0..records {
            let length = if self.alike { 150 } else { 50 + self.io.random_u64() % 200 };
            let seed = self.io.random_u64() | 1;
            let value: Vec<u8> = (1..=length).map(|place| (seed.wrapping_mul(place) >> 40) as u8).collect();
            builder.push(Timestamp::new(self.io.wall_clock()), None, Some(&value), &[]).expect("a small batch");
        }
        let mut bytes = Vec::new();
        builder.finish(&mut bytes).expect("a small batch");
        Lease::from_vec(bytes)
    }

    async fn pause(&self) {
        self.io.sleep(Duration::from_micros(self.io.random_u64() % 1500)).await;
    }
}

/// Reads the batches of `from..end`: base offset, last offset and checksum of each.
///
/// # Errors
/// What the engine refuses; bytes that are no batches.
pub async fn read_batches(io: &Io, log: &Log, from: Offset, end: Offset) -> Result<Vec<(i64, i64, u32)>, Refused> {
    let limit = ReadLimit { end, bytes_max: 1 << 20, first_batch: FirstBatch::AtLeastOne };
    let mut batches = Vec::new();
    for piece in log.read(from, limit).await?.pieces {
        let bytes = match piece {
            Piece::File { file, position, len } => io.read_lease(&file, position, len).await.map_err(Error::from)?,
            Piece::Memory(lease) => lease,
        };
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let batch = heddle_record::validate(rest_of_batch(rest)?, heddle_record::Origin::Log);
            let batch = batch.map_err(|error| Refused(format!("read a damaged batch: {error}")))?;
            batches.push((batch.base_offset().get(), batch.last_offset().get(), batch.header().crc));
            rest = &rest[batch.len()..];
        }
    }
    Ok(batches)
}

fn rest_of_batch(bytes: &[u8]) -> Result<&[u8], Refused> {
    let batch = RecordBatch::peek(bytes).map_err(|error| Refused(format!("read what is no batch: {error}")))?;
    Ok(batch.bytes())
}
