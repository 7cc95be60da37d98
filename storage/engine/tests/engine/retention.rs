//! What goes away: by age, by size, by DeleteRecords, by truncation.

use std::time::Duration;

use crate::harness::*;
use heddle_engine::{CleanupPolicy, EngineConfig, LogConfig, ReadError};
use heddle_record::{Compression, LeaderEpoch};

#[test]
fn the_oldest_segments_go_while_the_log_stays_large_enough() {
    run(|io| async move {
        let home = home();
        let config = LogConfig { retention_age: None, retention_bytes: Some(5000), ..small_segments() };
        {
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("orders", 0), config.clone()).await.unwrap();
            for _ in 0..40 {
                commit(&log, batch(1, 300)).await;
            }
            let before = log.size_bytes();
            engine.apply_retention().await.unwrap();
            assert!(before > 10_000 && (5000..8000).contains(&log.size_bytes()), "{}", log.size_bytes());
            log.check_invariants();
            let start = log.offsets().log_start.offset();
            assert!(
                matches!(log.read(offset(0), EVERYTHING).await, Err(ReadError::OutOfRange { log_start, .. }) if log_start.offset() == start)
            );
        }
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), config).await.unwrap();
        assert!(log.offsets().log_start.get() > 0 && log.offsets().log_end.get() == 40);
        assert_eq!(read_all(&io, &log).await.last(), Some(&(39, 39)));
    });
}

/// As in Kafka, where a limit of 0 is the only one that is still reached without the active segment.
#[test]
fn the_active_segment_goes_where_no_bytes_are_kept() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        for (bytes, start) in [(1, 0), (0, 3)] {
            let config = LogConfig { retention_age: None, retention_bytes: Some(bytes), ..LogConfig::default() };
            let log = engine.open_log(name("orders", i32::try_from(bytes).unwrap()), config).await.unwrap();
            commit(&log, batch(3, 10)).await;
            engine.apply_retention().await.unwrap();
            log.check_invariants();
            assert_eq!((log.offsets().log_start.get(), log.offsets().log_end.get()), (start, 3), "{bytes} bytes");
            assert_eq!(log.max_timestamp().await.unwrap().is_none(), bytes == 0);
            assert_eq!(commit(&log, batch(1, 1)).await.base_offset, offset(3));
        }
    });
}

#[test]
fn old_active_segments_go_too_and_the_end_of_the_log_stays() {
    run(|io| async move {
        let home = home();
        let config = LogConfig {
            retention_age: Some(Duration::from_secs(60)),
            timestamp_after_max: None,
            ..LogConfig::default()
        };
        {
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("orders", 0), config.clone()).await.unwrap();
            commit(&log, batch_at(&[1000, 2000], Compression::None)).await;
            engine.apply_retention().await.unwrap();
            log.check_invariants();
            assert_eq!((log.offsets().log_start.get(), log.offsets().log_end.get()), (2, 2));
            assert_eq!(log.size_bytes(), 0);
            assert_eq!(files(home.path(), log.name(), ".log").len(), 1);
        }
        // Even if the checkpoint is lost, offsets are not given out again.
        std::fs::remove_file(home.path().join("heddle.checkpoint.0")).unwrap();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), config).await.unwrap();
        assert_eq!(commit(&log, batch(1, 1)).await.base_offset, offset(2));
    });
}

#[test]
fn fresh_and_future_records_stay_and_uncommitted_ones_always() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let config = LogConfig {
            retention_age: Some(Duration::from_secs(60)),
            timestamp_after_max: None,
            ..LogConfig::default()
        };
        let fresh = engine.open_log(name("fresh", 0), config.clone()).await.unwrap();
        commit(&fresh, batch_at(&[io.wall_clock()], Compression::None)).await;
        let future = engine.open_log(name("future", 0), config.clone()).await.unwrap();
        commit(&future, batch_at(&[io.wall_clock() + (1 << 40)], Compression::None)).await;
        // Case 11: flushed but not committed.
        let uncommitted = engine
            .open_log(name("uncommitted", 0), LogConfig { segment_age_max: Duration::ZERO, ..config.clone() })
            .await
            .unwrap();
        for _ in 0..3 {
            let appended = append(&uncommitted, batch_at(&[1000], Compression::None)).await.unwrap();
            uncommitted.flushed(appended.last_offset).await.unwrap();
        }
        uncommitted.set_high_watermark(offset(1));
        let compacted = engine
            .open_log(name("compacted", 0), LogConfig { cleanup_policy: CleanupPolicy::Compact, ..config })
            .await
            .unwrap();
        commit(&compacted, batch_at(&[1000], Compression::None)).await;
        engine.apply_retention().await.unwrap();
        for (log, start) in [(&fresh, 0), (&future, 0), (&uncommitted, 1), (&compacted, 0)] {
            assert_eq!(log.offsets().log_start.get(), start, "{log:?}");
            log.check_invariants();
        }
    });
}

#[test]
fn deleted_records_stay_deleted() {
    run(|io| async move {
        let home = home();
        {
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
            for _ in 0..20 {
                commit(&log, batch(2, 200)).await;
            }
            assert!(matches!(engine.delete_records_before(&log, offset(41)).await, Err(ReadError::OutOfRange { .. })));
            assert_eq!(engine.delete_records_before(&log, offset(21)).await.unwrap().get(), 21);
            assert_eq!(engine.delete_records_before(&log, offset(5)).await.unwrap().get(), 21, "never back");
            log.check_invariants();
            // The batch that contains the start is whole.
            let out = log.read(offset(21), limit(24, 1 << 20)).await.unwrap();
            assert_eq!(offsets_of(&io, &out).await, [(20, 21), (22, 23)]);
        }
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
        assert_eq!(log.offsets().log_start.get(), 21);
        assert_eq!(engine.delete_records_before(&log, offset(0)).await.unwrap().get(), 21);
        log.flush().await.unwrap();
        log.set_high_watermark(offset(40));
        assert_eq!(engine.delete_records_before(&log, offset(40)).await.unwrap().get(), 40);
        assert_eq!(commit(&log, batch(1, 1)).await.base_offset, offset(40));
    });
}

#[test]
fn a_cut_log_goes_on_where_it_was_cut() {
    run(|io| async move {
        for (cut, checkpointed) in [(31, false), (31, true), (7, true), (0, true), (39, true)] {
            let home = home();
            let expected: Vec<(i64, i64)> = {
                let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
                for number in 0..20 {
                    append(&log, idempotent(3, 0, number * 2, 2)).await.unwrap();
                    append(&log, batch(1, 300)).await.unwrap();
                }
                log.flush().await.unwrap();
                if checkpointed {
                    engine.checkpoint().await.unwrap();
                }
                let end = engine.truncate_to(&log, offset(cut)).await.unwrap();
                assert!(end <= offset(cut) && end > offset(cut - 2), "at a batch: {end}");
                log.check_invariants();
                let appended = commit(&log, batch(1, 200)).await;
                assert_eq!(appended.base_offset, end);
                read_all(&io, &log).await
            };
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
            assert_eq!(read_all(&io, &log).await, expected, "cut at {cut}");
            log.check_invariants();
        }
    });
}

#[test]
fn a_cut_keeps_what_producers_wrote_before_it() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
        for number in 0..30 {
            append(&log, idempotent(3, 0, number, 1)).await.unwrap();
        }
        assert_eq!(engine.truncate_to(&log, offset(4)).await.unwrap(), offset(4));
        assert!(append(&log, idempotent(3, 0, 3, 1)).await.unwrap().duplicate);
        assert!(!append(&log, idempotent(3, 0, 4, 1)).await.unwrap().duplicate);
        // Case 6: a cut to the end or beyond still forgets epochs without records.
        log.begin_epoch(LeaderEpoch::new(7));
        engine.truncate_to(&log, offset(5)).await.unwrap();
        assert_eq!(log.latest_epoch(), Some(LeaderEpoch::new(0)));
    });
}

#[test]
fn a_segments_space_is_used_again_and_its_old_batches_never_come_back() {
    run(|io| async move {
        let config = LogConfig { segment_bytes: 128 << 10, retention_age: None, ..LogConfig::default() };
        for checkpoint_survives in [true, false] {
            let home = home();
            let recycled = |expected: bool| {
                let kept = !files(home.path(), &name("orders", 0), "recycled.tmp").is_empty();
                assert_eq!(kept, expected && crate::DEVICE == heddle_engine::DeviceChoice::Direct);
            };
            {
                let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                let log = engine.open_log(name("orders", 0), config.clone()).await.unwrap();
                for _ in 0..10 {
                    commit(&log, batch(1, 30_000)).await;
                }
                // A reader keeps the first file from being used again; the second is free.
                let reader = log.read(offset(0), EVERYTHING).await.unwrap();
                engine.delete_records_before(&log, offset(9)).await.unwrap();
                recycled(true);
                assert!(reader.bytes > 0);
                drop(reader);
                for _ in 0..4 {
                    commit(&log, batch(1, 30_000)).await;
                }
                recycled(false);
                commit(&log, batch(1, 10)).await;
                assert_eq!(read_all(&io, &log).await, (9..15).map(|offset| (offset, offset)).collect::<Vec<_>>());
            }
            // Killed: behind the end of the last segment lie whole, sound batches of the first life of its blocks (case 41).
            if !checkpoint_survives {
                std::fs::remove_file(home.path().join("heddle.checkpoint.0")).unwrap();
            }
            for life in 0..3 {
                let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                let log = engine.open_log(name("orders", 0), config.clone()).await.unwrap();
                let start = log.offsets().log_start.get();
                assert!(start == 9 || (!checkpoint_survives && start <= 9), "{start}");
                let expected: Vec<_> = (start..15 + life).map(|offset| (offset, offset)).collect();
                assert_eq!(read_all(&io, &log).await, expected);
                commit(&log, batch(1, 10)).await;
            }
        }
    });
}
