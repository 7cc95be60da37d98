//! Writes the small data directory that every later binary must open: `cargo run --example write_fixture -- DIR`.
//!
//! Run once for each format version; what is in it is what `tests/engine/fixture.rs` expects. It is never written again.

use std::path::Path;

use heddle_engine::{
    AppendOrigin, CleanupPolicy, DataDir, Engine, EngineConfig, Log, LogConfig, LogName, StoredCompression,
    WantedIdentity,
};
use heddle_io::{Executor, Io, IoConfig, Lease};
use heddle_record::{
    BatchBuilder, BatchOptions, BrokerId, Compression, LeaderEpoch, LogId, Offset, PartitionIndex, ProducerEpoch,
    ProducerId, Sequence, Timestamp, TopicId,
};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let path = std::env::args().nth(1).ok_or("write_fixture DIR")?;
    let executor = Executor::new(IoConfig::default())?;
    let io = executor.io();
    executor.run(write(&io, Path::new(&path)))
}

async fn write(io: &Io, path: &Path) -> Outcome<()> {
    let wanted =
        WantedIdentity { cluster_id: Some("Zml4dHVyZSBmb3JtYXQgMQ".to_owned()), broker_id: Some(BrokerId::new(3)) };
    let dir = DataDir::open(io, path, &wanted).await?;
    let engine = Engine::open(io, dir, EngineConfig::default()).await?;
    write_orders(&engine).await?;
    write_table(&engine).await?;
    engine.close().await?;
    // It is opened again and written to, so that there are notes of that.
    drop(engine);
    let dir = DataDir::open(io, path, &wanted).await?;
    let engine = Engine::open(io, dir, EngineConfig::default()).await?;
    append(&engine.open_log(name("orders", 0), config()).await?, 9).await?;
    engine.close().await?;
    Ok(())
}

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 1024,
        index_interval_bytes: 200,
        compression: StoredCompression::Producer,
        timestamp_after_max: None,
        ..LogConfig::default()
    }
}

/// Nine of ten batches under two leader epochs, by every codec, in several segments; the first records are deleted.
async fn write_orders(engine: &Engine) -> Outcome<()> {
    let log = engine.open_log(name("orders", 0), config()).await?;
    for number in 0..9 {
        append(&log, number).await?;
    }
    engine.delete_records_before(&log, Offset::new(4)).await?;
    Ok(())
}

/// A compacted log: twenty values of two keys, one of them deleted, and what seals their segment.
async fn write_table(engine: &Engine) -> Outcome<()> {
    let compact = LogConfig { cleanup_policy: CleanupPolicy::Compact, dirty_ratio_min_millionths: 0, ..config() };
    let log = engine.open_log(name("table", 1), compact).await?;
    let filler = "f".repeat(600);
    for number in 0..23 {
        let value = if number == 19 { None } else { Some(format!("value {number}")) };
        let value = if number < 20 { value.as_deref() } else { Some(filler.as_str()) };
        let key = if number < 20 { format!("key {}", number % 2) } else { format!("filler {number}") };
        let mut builder = BatchBuilder::new(BatchOptions::default());
        builder.push(
            Timestamp::new(1_700_000_000_000 + number),
            Some(key.as_bytes()),
            value.map(str::as_bytes),
            &[],
        )?;
        let mut bytes = Vec::new();
        builder.finish(&mut bytes)?;
        let appended = log.append(Lease::from_vec(bytes), AppendOrigin::Client, LeaderEpoch::new(0)).await?;
        log.flushed(appended.last_offset).await?;
        log.set_high_watermark(appended.last_offset.next());
    }
    engine.compact().await?;
    Ok(())
}

async fn append(log: &Log, number: i32) -> Outcome<()> {
    let codecs = [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
    let epoch = LeaderEpoch::new(if number < 6 { 0 } else { 4 });
    let appended = log.append(batch(number, codecs[number as usize % 5])?, AppendOrigin::Client, epoch).await?;
    log.flushed(appended.last_offset).await?;
    log.set_high_watermark(appended.last_offset.next());
    Ok(())
}

/// Three records of an idempotent producer, a second apart.
fn batch(number: i32, compression: Compression) -> Outcome<Lease> {
    let mut builder = BatchBuilder::new(BatchOptions {
        compression,
        producer_id: ProducerId::new(4711),
        producer_epoch: ProducerEpoch::new(2),
        base_sequence: Sequence::new(number * 3),
        ..BatchOptions::default()
    });
    for record in 0..3 {
        let timestamp = 1_700_000_000_000 + i64::from(number * 3 + record) * 1000;
        let key = format!("key {record}");
        let value = format!("order {record} of batch {number}, {}", "to be delivered ".repeat(5));
        builder.push(Timestamp::new(timestamp), Some(key.as_bytes()), Some(value.as_bytes()), &[])?;
    }
    let mut bytes = Vec::new();
    builder.finish(&mut bytes)?;
    Ok(Lease::from_vec(bytes))
}

fn name(topic: &str, partition: i32) -> LogName {
    let id = LogId { topic: TopicId::new([partition as u8 + 1; 16]), partition: PartitionIndex::new(partition) };
    LogName { topic: topic.to_owned(), id }
}
