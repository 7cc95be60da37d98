//! One life of an engine whose logs are compacted, on a simulated host: rows of a table by key, tombstones, passes over them,
//! retention; and what must be left of that after a crash, whatever compaction has taken away.
//!
//! Owns the workload and its promises: no live row is lost, no deleted one comes back, nothing is at another offset or there
//! twice, and producers go on where they were. `engine_life.rs` is the same for logs that nobody compacts.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use heddle_engine::{
    AppendOrigin, CleanupPolicy, Engine, EngineConfig, FirstBatch, Log, LogConfig, LogName, Piece, ReadLimit,
};
use heddle_io::{Io, Lease};
use heddle_record::{
    BatchBuilder, BatchOptions, Batches, Compression, LeaderEpoch, LogId, Offset, PartitionIndex, ProducerEpoch,
    ProducerId, Sequence, Timestamp, TopicId,
};

use crate::crash_states::Scenario;
use crate::engine_life::open_engine;
use crate::engine_recovery::Verdict;

/// A key's number, and its value; none deletes the key.
pub type Row = (u64, Option<u64>);

/// Keys of a table.
const KEYS: u64 = 12;
/// Memory for fewer keys than there are: a log takes several passes.
const SMALL_MAP_BYTES: usize = 400;

/// What differs from life to life.
#[derive(Clone)]
pub struct TableLife {
    /// Counts the lives of a data directory, from 1: the leader epoch.
    pub number: i32,
    /// Rounds of appends and a pass.
    pub rounds: u64,
    /// The engine's settings.
    pub engine: EngineConfig,
}

/// One table, as seen from outside.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Every record that got an offset, and was not cut off by a recovery.
    given: BTreeMap<i64, Row>,
    /// The batches by base offset: last offset, sequence, bytes.
    batches: BTreeMap<i64, (i64, i32, Lease)>,
    /// Everything below was acknowledged.
    acknowledged: i64,
    /// Retention may have deleted up to here.
    start_max: i64,
}

/// All tables, as seen from outside.
pub type Tables = BTreeMap<String, Table>;

fn name(topic: &str) -> LogName {
    let id = topic.bytes().fold(7, |id: u8, byte| id.wrapping_mul(31).wrapping_add(byte));
    LogName { topic: topic.to_owned(), id: LogId { topic: TopicId::new([id; 16]), partition: PartitionIndex::new(0) } }
}

/// How a compacted log of many small segments is kept, each of them compacted as soon as it is sealed.
pub fn compacted() -> LogConfig {
    LogConfig {
        cleanup_policy: CleanupPolicy::Compact,
        segment_bytes: 1024,
        index_interval_bytes: 128,
        dirty_ratio_min_millionths: 0,
        // A tombstone goes in the pass after the first one over it.
        delete_retention: Duration::ZERO,
        timestamp_after_max: None,
        ..LogConfig::default()
    }
}

/// The tables and how they are kept.
fn topics() -> [(&'static str, LogConfig); 2] {
    let window = LogConfig { cleanup_policy: CleanupPolicy::CompactDelete, retention_bytes: Some(2500), ..compacted() };
    [("table", compacted()), ("window", window)]
}

impl TableLife {
    /// The first life of a data directory.
    pub fn first() -> TableLife {
        let engine = EngineConfig { checkpoint_busy_for: Duration::ZERO, ..EngineConfig::default() };
        TableLife { number: 1, rounds: 3, engine }
    }
}

impl Scenario for TableLife {
    type History = Tables;

    fn digest(history: &Tables) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (name, table) in history {
            (name, table.given.len(), table.acknowledged, table.start_max).hash(&mut hasher);
        }
        hasher.finish()
    }

    async fn live(self, io: Io, history: Rc<RefCell<Tables>>) -> Verdict {
        let mut config = self.engine.clone();
        if self.number % 2 == 1 {
            config.cleaner.map_bytes_max = SMALL_MAP_BYTES;
        }
        let engine = open_engine(&io, config).await.map_err(text)?;
        let mut tables = Vec::new();
        for (topic, config) in topics() {
            let log = engine.open_log(name(topic), config).await.map_err(text)?;
            log.begin_epoch(LeaderEpoch::new(self.number));
            log.set_high_watermark(log.offsets().committable_end);
            tables.push(OpenTable { io: io.clone(), log, topic, history: Rc::clone(&history), epoch: self.number });
        }
        for round in 0..self.rounds {
            for _ in 0..6 {
                for table in &tables {
                    table.append().await?;
                }
            }
            if round % 3 == 1 {
                engine.checkpoint().await.map_err(text)?;
            }
            let compacting = io.spawn(compact(engine.clone()));
            if round % 2 == 0 {
                tables[1].delete_old(&engine).await?;
            }
            tables[0].append().await?;
            compacting.await?;
            for table in &tables {
                table.log.check_invariants();
            }
        }
        engine.close().await.map_err(text)
    }

    async fn recover(self, io: Io, history: Tables) -> Verdict<Tables> {
        let engine = open_engine(&io, self.engine.clone()).await.map_err(text)?;
        let mut adopted = Tables::new();
        for (topic, config) in topics() {
            let log = engine.open_log(name(topic), config.clone()).await.map_err(text)?;
            log.check_invariants();
            log.set_high_watermark(log.offsets().committable_end);
            let table = history.get(topic).cloned().unwrap_or_default();
            let table = table.check(&io, &log, &config).await.map_err(|broken| format!("{topic}: {broken}"))?;
            adopted.insert(topic.to_owned(), table);
        }
        Ok(adopted)
    }

    fn next(&self) -> TableLife {
        TableLife { number: self.number + 1, rounds: 2, ..self.clone() }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

async fn compact(engine: Engine) -> Verdict {
    engine.compact().await.map(|_| ()).map_err(text)
}

/// A table that a life writes to.
struct OpenTable {
    io: Io,
    log: Log,
    topic: &'static str,
    history: Rc<RefCell<Tables>>,
    epoch: i32,
}

impl OpenTable {
    fn seen<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        change(self.history.borrow_mut().entry(self.topic.to_owned()).or_default())
    }

    async fn append(&self) -> Verdict {
        let last = self
            .seen(|table| table.batches.last_key_value().map(|(base, (last, seq, _))| seq + (last - base + 1) as i32));
        let sequence = last.unwrap_or(0);
        let rows = rows_by_chance(&self.io, KEYS);
        let batch = batch(sequence, &rows);
        let appended = self.log.append(batch.clone(), AppendOrigin::Client, LeaderEpoch::new(self.epoch)).await;
        let appended = appended.map_err(text)?;
        let (base, last) = (appended.base_offset.get(), appended.last_offset);
        self.seen(|table| {
            table.batches.insert(base, (last.get(), sequence, batch));
            table.given.extend((base..).zip(rows));
        });
        self.log.flushed(last).await.map_err(text)?;
        self.log.set_high_watermark(last.next());
        self.seen(|table| table.acknowledged = last.get() + 1);
        Ok(())
    }

    /// Retention takes the oldest segments.
    async fn delete_old(&self, engine: &Engine) -> Verdict {
        self.seen(|table| table.start_max = table.acknowledged);
        engine.apply_retention().await.map_err(text)?;
        let start = self.log.offsets().log_start.get();
        self.seen(|table| table.start_max = start);
        Ok(())
    }
}

/// One row to three of a table of `keys` keys, a third of them deletions.
pub fn rows_by_chance(io: &Io, keys: u64) -> Vec<Row> {
    let count = 1 + io.random_u64() % 3;
    let row = |chance: u64| (chance % keys, (!chance.is_multiple_of(3)).then_some(chance));
    (0..count).map(|_| row(io.random_u64())).collect()
}

/// A batch of the one producer; every fourth sequence begins one that is compressed.
///
/// # Panics
/// If there are no rows.
pub fn batch(sequence: i32, rows: &[Row]) -> Lease {
    let options = BatchOptions {
        producer_id: ProducerId::new(9),
        producer_epoch: ProducerEpoch::new(0),
        base_sequence: Sequence::new(sequence),
        compression: if sequence % 4 == 3 { Compression::Lz4 } else { Compression::None },
        ..BatchOptions::default()
    };
    let mut builder = BatchBuilder::new(options);
    for (key, value) in rows {
        let value = value.map(|value| [value.to_be_bytes(); 8].concat());
        builder.push(Timestamp::new(77), Some(&key.to_be_bytes()), value.as_deref(), &[]).expect("a small batch");
    }
    let mut bytes = Vec::new();
    builder.finish(&mut bytes).expect("a small batch");
    Lease::from_vec(bytes)
}

impl Table {
    /// Holds a recovered log against what was promised, and gives what is left.
    async fn check(mut self, io: &Io, log: &Log, config: &LogConfig) -> Verdict<Table> {
        let offsets = log.offsets();
        let (start, end) = (offsets.log_start.offset(), offsets.log_end.offset());
        if end.get() < self.acknowledged {
            return Err(format!("it ends at {end}, {} was acknowledged", self.acknowledged));
        }
        if offsets.flushed_end.offset() != end {
            return Err(format!("a recovered log is flushed: {offsets:?}"));
        }
        let start_max = if config.cleanup_policy == CleanupPolicy::CompactDelete { self.start_max } else { 0 };
        if start.get() > start_max {
            return Err(format!("it starts at {start}, and nothing was deleted behind {start_max}"));
        }
        let found = rows(io, log, start, end).await?;
        // The batch in which the log starts is read as a whole.
        let found: BTreeMap<i64, Row> = found.into_iter().filter(|(offset, _)| *offset >= start.get()).collect();
        check_rows(&found, &self.given, start.get()..end.get())?;
        self.given.split_off(&end.get());
        self.batches.split_off(&end.get());
        if let Some((base, (_, _, bytes))) = self.batches.last_key_value().filter(|(base, _)| **base >= start.get()) {
            let epoch = log.latest_epoch().unwrap_or(LeaderEpoch::NONE);
            check_repeat(log, bytes.clone(), epoch, *base).await?;
        }
        Ok(Table { acknowledged: end.get(), start_max: start.get(), ..self })
    }
}

/// Holds the rows that are left of a log of `offsets` against all that were ever given to it.
///
/// # Errors
/// A row that was never there, or another table than was given.
pub fn check_rows(found: &BTreeMap<i64, Row>, given: &BTreeMap<i64, Row>, offsets: Range<i64>) -> Verdict {
    if let Some((offset, row)) = found.iter().find(|(offset, row)| given.get(offset) != Some(row)) {
        return Err(format!("at {offset} there is {row:?}, which was never there"));
    }
    let given: BTreeMap<i64, Row> = given.range(offsets).map(|(offset, row)| (*offset, *row)).collect();
    if table(found) != table(&given) {
        return Err(format!("the rows are {:?}, not {:?}", table(found), table(&given)));
    }
    Ok(())
}

/// The producer repeats its batch at `base`, and has to be told that it is there.
///
/// # Errors
/// It is told anything else.
pub async fn check_repeat(log: &Log, batch: Lease, epoch: LeaderEpoch, base: i64) -> Verdict {
    let again = log.append(batch, AppendOrigin::Client, epoch).await;
    if !again.as_ref().is_ok_and(|again| again.duplicate && again.base_offset.get() == base) {
        return Err(format!("the producer repeats its batch at {base} and gets {again:?}"));
    }
    Ok(())
}

/// The rows of `from..end`, by offset.
///
/// # Errors
/// What the engine refuses; what is no batch, damaged, or there twice.
pub async fn rows(io: &Io, log: &Log, mut from: Offset, end: Offset) -> Verdict<BTreeMap<i64, Row>> {
    let mut rows = BTreeMap::new();
    while from < end {
        let limit = ReadLimit { end, bytes_max: 700, first_batch: FirstBatch::AtLeastOne };
        let out = log.read(from, limit).await.map_err(text)?;
        if out.bytes == 0 {
            return Err(format!("nothing at {from}, the end is {end}"));
        }
        for piece in out.pieces {
            let bytes = match piece {
                Piece::Memory(bytes) => bytes,
                Piece::File { file, position, len } => io.read_lease(&file, position, len).await.map_err(text)?,
            };
            add_rows(&bytes, &mut rows)?;
        }
        from = out.next_offset;
    }
    Ok(rows)
}

fn add_rows(bytes: &[u8], rows: &mut BTreeMap<i64, Row>) -> Verdict {
    for batch in Batches::new(bytes) {
        let batch = batch.map_err(text)?;
        if batch.computed_crc() != batch.crc() {
            return Err(format!("the batch at {} is damaged", batch.base_offset()));
        }
        let mut scratch = Vec::new();
        let body = batch.uncompressed_body(1 << 20, &mut scratch).map_err(text)?;
        for record in batch.records_in(body) {
            let record = record.map_err(text)?;
            let number = |bytes: &[u8]| bytes.first_chunk().map(|chunk| u64::from_be_bytes(*chunk));
            let key = record.key.and_then(number).ok_or("a record without its key")?;
            let offset = batch.header().offset_of(&record).get();
            if rows.insert(offset, (key, record.value.and_then(number))).is_some() {
                return Err(format!("offset {offset} twice"));
            }
        }
    }
    Ok(())
}

/// Which keys have which values after these rows.
fn table(rows: &BTreeMap<i64, Row>) -> BTreeMap<u64, u64> {
    let mut table = BTreeMap::new();
    for (key, value) in rows.values() {
        match value {
            Some(value) => table.insert(*key, *value),
            None => table.remove(key),
        };
    }
    table
}
