//! Every binary opens what earlier ones have written. `examples/write_fixture.rs` wrote each version, once.

use std::path::{Path, PathBuf};

use crate::harness::*;
use heddle_engine::inspect::find_logs;
use heddle_engine::{DataDir, Engine, EngineConfig, LogConfig, LogName, WantedIdentity};
use heddle_record::{
    BatchBuilder, BatchOptions, BrokerId, LeaderEpoch, LogId, PartitionIndex, ProducerEpoch, ProducerId, Sequence,
    Timestamp, TopicId,
};

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.as_ref().unwrap(), to.join(entry.as_ref().unwrap().file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A copy of a fixture's data directory in `home`, with its checkpoint or without.
fn copy_fixture(fixture: &Path, home: &Path, with_checkpoint: bool) -> PathBuf {
    let path = home.join("data");
    copy_directory(fixture, &path);
    if !with_checkpoint {
        std::fs::remove_file(path.join("heddle.checkpoint.0")).unwrap();
    }
    path
}

fn orders() -> LogName {
    let id = LogId { topic: TopicId::new([1; 16]), partition: PartitionIndex::new(0) };
    LogName { topic: "orders".to_owned(), id }
}

/// The batch of the fixture's producer with this number, without its records' text.
fn producer_batch(number: i32) -> heddle_io::Lease {
    let mut builder = BatchBuilder::new(BatchOptions {
        producer_id: ProducerId::new(4711),
        producer_epoch: ProducerEpoch::new(2),
        base_sequence: Sequence::new(number * 3),
        ..BatchOptions::default()
    });
    for _ in 0..3 {
        builder.push(Timestamp::new(1), None, Some(b"again"), &[]).unwrap();
    }
    finish(builder)
}

/// Every format holds the same records.
async fn check_contents(io: &heddle_io::Io, path: &Path, log_start: i64) {
    let wanted =
        WantedIdentity { cluster_id: Some("Zml4dHVyZSBmb3JtYXQgMQ".into()), broker_id: Some(BrokerId::new(3)) };
    let dir = DataDir::open(io, path, &wanted).await.unwrap();
    let engine = Engine::open(io, dir, EngineConfig::default()).await.unwrap();
    assert!(engine.stored_logs().await.unwrap().contains(&orders()));
    let log = engine.open_log(orders(), LogConfig::default()).await.unwrap();
    log.check_invariants();
    let offsets = log.offsets();
    assert_eq!((offsets.log_end.get(), offsets.flushed_end.get()), (30, 30));
    let batches: Vec<(i64, i64)> = (0..10).map(|number| (number * 3, number * 3 + 2)).collect();
    assert_eq!(offsets.log_start.get(), log_start, "a checkpoint knows which records were deleted");
    let from = log_start / 3;
    assert_eq!(read_all(io, &log).await, batches[from as usize..]);
    assert_eq!(log.epoch_end_offset(LeaderEpoch::new(0)).unwrap().end_offset, offset(18));
    assert_eq!(log.latest_epoch(), Some(LeaderEpoch::new(4)));
    let found = log.offset_for_timestamp(Timestamp::new(1_700_000_013_001)).await.unwrap().unwrap();
    assert_eq!((found.offset, found.timestamp.get()), (offset(14), 1_700_000_014_000));
    for number in 5..10 {
        let again = log.append(producer_batch(number), heddle_engine::AppendOrigin::Client, LeaderEpoch::new(4)).await;
        assert!(again.unwrap().duplicate, "batch {number}");
    }
    let next = log.append(producer_batch(10), heddle_engine::AppendOrigin::Client, LeaderEpoch::new(4)).await.unwrap();
    assert_eq!((next.base_offset, next.duplicate), (offset(30), false));
    log.flushed(next.last_offset).await.unwrap();
}

#[test]
fn every_format_opens_by_its_checkpoint_and_without_it() {
    let formats = ["format-1", "format-2", "format-3"];
    for (format, with_checkpoint) in formats.into_iter().flat_map(|format| [(format, true), (format, false)]) {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format);
        run(|io| {
            let fixture = &fixture;
            async move {
                let home = home();
                let path = copy_fixture(fixture, home.path(), with_checkpoint);
                for log in find_logs(&io, &path).await.unwrap() {
                    assert!(log.check(&io).await.unwrap().iter().all(|(_, report)| report.is_sound()));
                }
                let other = if with_checkpoint { 4 } else { 0 };
                check_contents(&io, &path, other).await;
            }
        });
    }
}

#[test]
fn a_compacted_log_opens_by_its_checkpoint_and_without_it() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-3");
    let id = LogId { topic: TopicId::new([2; 16]), partition: PartitionIndex::new(1) };
    let table = LogName { topic: "table".to_owned(), id };
    for with_checkpoint in [true, false] {
        run(|io| {
            let (fixture, table) = (&fixture, table.clone());
            async move {
                let home = home();
                let path = copy_fixture(fixture, home.path(), with_checkpoint);
                let dir = DataDir::open(&io, &path, &WantedIdentity::default()).await.unwrap();
                let engine = Engine::open(&io, dir, EngineConfig::default()).await.unwrap();
                let log = engine.open_log(table, LogConfig::default()).await.unwrap();
                log.check_invariants();
                assert_eq!(log.offsets().log_end.get(), 23);
                let batches = read_all(&io, &log).await;
                assert_eq!(batches[..2], [(18, 18), (19, 19)], "the last value and the tombstone");
                let out = log.read(offset(3), limit(23, 1)).await.unwrap();
                assert_eq!(offsets_of(&io, &out).await, [(18, 18)]);
            }
        });
    }
}
