//! Finding records by time.

use crate::harness::*;
use heddle_engine::{EngineConfig, LogConfig};
use heddle_record::{BatchBuilder, BatchOptions, Compression, Timestamp, TimestampType};

#[test]
fn the_first_record_at_or_after_a_time_is_found_exactly() {
    run(|io| async move {
        for codec in [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
            let home = tempfile::tempdir().unwrap();
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
        let home = tempfile::tempdir().unwrap();
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
        let home = tempfile::tempdir().unwrap();
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
        let home = tempfile::tempdir().unwrap();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        assert!(log.max_timestamp().await.unwrap().is_none());
        commit(&log, batch_at(&[-1], Compression::None)).await;
        assert!(log.max_timestamp().await.unwrap().is_none());
        assert!(log.offset_for_timestamp(Timestamp::new(0)).await.unwrap().is_none());
    });
}

#[test]
fn a_producer_that_leaves_out_the_largest_time_is_corrected() {
    run(|io| async move {
        let home = tempfile::tempdir().unwrap();
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
