//! Finding records by time.

use crate::harness::*;
use heddle_engine::index::{TIME_ENTRY_LEN, TimeEntry, decode_time_index};
use heddle_engine::{EngineConfig, Log, LogConfig};
use heddle_record::{BatchBuilder, BatchOptions, Compression, Timestamp, TimestampType};

#[test]
fn the_first_record_at_or_after_a_time_is_found_exactly() {
    run(|io| async move {
        for codec in [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
            let home = home();
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
            // Times rise by 10 with each record, except that every seventh batch is old.
            let mut times = Vec::new();
            for number in 0..60i64 {
                let start = if number % 7 == 6 { 5 } else { 1000 + number * 100 };
                let batch_times: Vec<i64> = (0..10).map(|record| start + record * 10).collect();
                commit(&log, batch_at(&batch_times, codec)).await;
                times.extend(batch_times);
            }
            for wanted in [0, 5, 6, 96, 999, 1000, 1001, 2345, 5555, 6790, 6890, 6891] {
                let expected = times.iter().position(|time| *time >= wanted);
                let found = log.offset_for_timestamp(Timestamp::new(wanted)).await.unwrap();
                let found = found.map(|found| (found.offset.get() as usize, found.timestamp.get()));
                assert_eq!(found, expected.map(|offset| (offset, times[offset])), "{codec}, {wanted}");
            }
            let max = log.max_timestamp().await.unwrap().unwrap();
            assert_eq!(
                (max.offset.get(), max.timestamp.get()),
                (times.iter().position(|time| *time == 6990).unwrap() as i64, 6990)
            );
            assert_eq!(max.leader_epoch, EPOCH);
            assert!(log.offline().is_none());
        }
    });
}

#[test]
fn deleted_records_are_not_found() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        commit(&log, batch_at(&[10, 20, 30, 40], Compression::Zstd)).await;
        engine.delete_records_before(&log, offset(2)).await.unwrap();
        let found = log.offset_for_timestamp(Timestamp::new(15)).await.unwrap().unwrap();
        assert_eq!((found.offset, found.timestamp.get()), (offset(2), 30));
    });
}

#[test]
fn a_log_of_its_own_time_answers_with_batches() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let config = LogConfig { timestamp_type: TimestampType::LogAppendTime, ..LogConfig::default() };
        let log = engine.open_log(name("orders", 0), config).await.unwrap();
        let appended = commit(&log, batch_at(&[1, 2], Compression::None)).await;
        let found = log.offset_for_timestamp(Timestamp::new(3)).await.unwrap().unwrap();
        assert_eq!((found.offset, found.timestamp), (offset(0), appended.log_append_time));
        assert_eq!(log.max_timestamp().await.unwrap().unwrap().offset, offset(0));
    });
}

#[test]
fn records_without_times_have_none() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        assert!(log.max_timestamp().await.unwrap().is_none());
        commit(&log, batch_at(&[-1], Compression::None)).await;
        commit(&log, batch_at(&[-5, -1], Compression::Zstd)).await;
        let first = log.max_timestamp().await.unwrap().unwrap();
        assert_eq!((first.offset, first.timestamp), (offset(0), Timestamp::NONE), "as Kafka, which finds its -1 there");
        assert!(log.offset_for_timestamp(Timestamp::new(0)).await.unwrap().is_none());
    });
}

#[test]
fn a_producer_that_leaves_out_the_largest_time_is_corrected() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for time in [500, 900, 700] {
            builder.push(Timestamp::new(time), None, Some(b"v"), &[]).unwrap();
        }
        let mut bytes = finish(builder).to_vec();
        heddle_record::patch::patch_in_place(&mut bytes, |header| header.set_max_timestamp(Timestamp::NONE));
        commit(&log, heddle_io::Lease::from_vec(bytes)).await;
        let max = log.max_timestamp().await.unwrap().unwrap();
        assert_eq!((max.offset.get(), max.timestamp.get()), (1, 900));
    });
}

/// Times of single-record batches that mostly rise: every fifth is late by far.
fn ragged_times() -> Vec<i64> {
    (0..150).map(|number| if number % 5 == 4 { 1000 + number } else { 1000 + number * 100 }).collect()
}

/// Every time that matters, against a walk over all records.
async fn assert_all_times(log: &Log, times: &[i64], context: &str) {
    for wanted in times.iter().flat_map(|time| [time - 1, *time, time + 1]) {
        let expected = times.iter().position(|time| *time >= wanted).map(|offset| (offset as i64, times[offset]));
        let found = log.offset_for_timestamp(Timestamp::new(wanted)).await.unwrap();
        assert_eq!(found.map(|found| (found.offset.get(), found.timestamp.get())), expected, "{context}, {wanted}");
    }
    let newest = times.iter().max().copied().unwrap();
    let found = log.max_timestamp().await.unwrap().unwrap();
    let expected = times.iter().position(|time| *time == newest).unwrap() as i64;
    assert_eq!((found.offset.get(), found.timestamp.get()), (expected, newest), "{context}");
    assert!(log.offline().is_none(), "{context}");
}

/// What a power cut, or anything else, may leave in a time index: each gives other bytes for the same segment.
fn damages(base: heddle_record::Offset, bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let entries = decode_time_index(bytes, base);
    assert!(entries.len() > 5, "enough entries to spoil");
    let encode = |entries: &mut dyn Iterator<Item = TimeEntry>| entries.flat_map(|entry| entry.encode(base)).collect();
    let last = entries.last().unwrap().last_offset;
    let later =
        |entry: &TimeEntry| TimeEntry { last_offset: offset((entry.last_offset.get() + 7).min(last.get())), ..*entry };
    let earlier = |entry: &TimeEntry| TimeEntry { timestamp: Timestamp::new(entry.timestamp.get() - 450), ..*entry };
    // As an older history of the same offsets would have left it.
    let between = |entry: &TimeEntry| TimeEntry { last_offset: offset(entry.last_offset.get() + 1), ..*entry };
    vec![
        ("offsets of later batches", encode(&mut entries.iter().map(later))),
        ("earlier times", encode(&mut entries.iter().map(earlier))),
        ("offsets of the next batch", encode(&mut entries.iter().map(between))),
        (
            "one that claims all",
            encode(
                &mut (0..entries.len())
                    .map(|step| TimeEntry { timestamp: Timestamp::new(step as i64), last_offset: last }),
            ),
        ),
        ("zeros", vec![0; bytes.len()]),
        ("zeros at the end", [&bytes[..2 * TIME_ENTRY_LEN], &vec![0; bytes.len() - 2 * TIME_ENTRY_LEN]].concat()),
        ("a zeroed beginning", [&[0; 3 * TIME_ENTRY_LEN], &bytes[3 * TIME_ENTRY_LEN..]].concat()),
        ("nothing", Vec::new()),
        ("a torn entry", bytes[..bytes.len() / 2 + 1].to_vec()),
    ]
}

#[test]
fn times_are_found_whatever_the_time_index_says() {
    run(|io| async move {
        let times = ragged_times();
        let config = LogConfig { segment_bytes: 6_000, index_interval_bytes: 128, ..LogConfig::default() };
        for damage in 0..9 {
            for reopened in [false, true] {
                let home = tempfile::tempdir().unwrap();
                let mut engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                let mut log = engine.open_log(name("orders", 0), config.clone()).await.unwrap();
                for time in &times {
                    commit(&log, batch_at(&[*time], Compression::None)).await;
                }
                engine.close().await.unwrap();
                drop((engine, log));
                engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                log = engine.open_log(name("orders", 0), config.clone()).await.unwrap();
                let spoil = || {
                    let mut context = "";
                    for path in files(home.path(), &name("orders", 0), ".timeindex") {
                        let base = offset(path.file_stem().unwrap().to_str().unwrap().parse().unwrap());
                        let bytes = std::fs::read(&path).unwrap();
                        if bytes.len() > 5 * TIME_ENTRY_LEN {
                            let (about, spoiled) = damages(base, &bytes).swap_remove(damage);
                            std::fs::write(&path, spoiled).unwrap();
                            context = about;
                        }
                    }
                    assert!(!context.is_empty(), "an index was spoiled");
                    context
                };
                let context = if reopened {
                    drop((engine, log));
                    settle(&io).await;
                    let context = spoil();
                    engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                    log = engine.open_log(name("orders", 0), config.clone()).await.unwrap();
                    context
                } else {
                    spoil()
                };
                assert_all_times(&log, &times, &format!("{context}, reopened {reopened}")).await;
                drop((engine, log));
            }
        }
    });
}
