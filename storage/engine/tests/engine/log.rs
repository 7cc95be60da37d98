//! Appending and reading, on a real file system.

use std::time::Duration;

use crate::harness::*;
use heddle_engine::{
    AppendError, AppendOrigin, CleanupPolicy, EngineConfig, FirstBatch, LogConfig, RECORD_FAULTS_MAX, ReadError,
    ReadLimit, RecordFault, StoredCompression,
};
use heddle_io::Lease;
use heddle_record::{
    BatchBuilder, BatchOptions, Compression, LeaderEpoch, ProducerEpoch, ProducerId, RecordBatch, Sequence, Timestamp,
    TimestampType,
};

#[test]
fn offsets_follow_each_other_and_come_back() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        for (count, base) in [(1, 0), (3, 1), (2, 4)] {
            let appended = commit(&log, batch(count, 10)).await;
            assert_eq!(appended.base_offset, offset(base));
            assert_eq!(appended.last_offset, offset(base + count as i64 - 1));
        }
        assert_eq!(read_all(&io, &log).await, [(0, 0), (1, 3), (4, 5)]);
        let offsets = log.offsets();
        assert_eq!(offsets.log_end.get(), 6);
        assert_eq!(offsets.flushed_end.get(), 6);
        assert_eq!(offsets.high_watermark.get(), 6);
    });
}

#[test]
fn an_offset_inside_a_batch_returns_the_whole_batch() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        for _ in 0..5 {
            commit(&log, batch(10, 100)).await;
        }
        let out = log.read(offset(25), limit(50, 1 << 20)).await.unwrap();
        assert_eq!(offsets_of(&io, &out).await, [(20, 29), (30, 39), (40, 49)]);
        assert_eq!((out.start_offset, out.next_offset), (offset(20), offset(50)));
    });
}

#[test]
fn limits_hold_whole_batches_and_at_least_one() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
        for _ in 0..40 {
            commit(&log, batch(2, 40)).await;
        }
        let one = batch(2, 40).len();
        for from in 0..80 {
            let whole = from / 2 * 2;
            let out = log.read(offset(from), limit(80, 1)).await.unwrap();
            assert_eq!(offsets_of(&io, &out).await, [(whole, whole + 1)], "at least one, from {from}");
            let none = ReadLimit { first_batch: FirstBatch::WithinLimit, ..limit(80, one - 1) };
            assert_eq!(log.read(offset(from), none).await.unwrap().bytes, 0);
            let out = log.read(offset(from), limit(80, 3 * one + 5)).await.unwrap();
            let found = offsets_of(&io, &out).await;
            assert!(found.len() <= 3 && found[0] == (whole, whole + 1), "{found:?}");
            let out = log.read(offset(from), limit(41, usize::MAX)).await.unwrap();
            let found = offsets_of(&io, &out).await;
            assert_eq!(found.last().map_or(40, |last| last.1 + 1), 40.max(if from < 40 { 40 } else { 0 }));
        }
        assert_eq!(read_all(&io, &log).await.len(), 40);
    });
}

#[test]
fn offsets_outside_of_the_log_are_refused() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        commit(&log, batch(3, 10)).await;
        assert_eq!(log.read(offset(3), EVERYTHING).await.unwrap().bytes, 0, "the end itself is empty");
        for out in [4, -1] {
            let error = log.read(offset(out), EVERYTHING).await.unwrap_err();
            assert!(
                matches!(error, ReadError::OutOfRange { log_start, log_end } if log_start.get() == 0 && log_end.get() == 3)
            );
        }
    });
}

#[test]
fn appends_while_a_write_is_in_flight_share_one_flush() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        let mut last = offset(0);
        for _ in 0..100 {
            last = append(&log, batch(1, 10)).await.unwrap().last_offset;
        }
        assert_eq!(log.offsets().log_end.get(), 100, "offsets are there before anything is written");
        assert_eq!(log.offsets().flushed_end.get(), 0);
        log.flushed(last).await.unwrap();
        assert_eq!(log.offsets().flushed_end.get(), 100);
        log.written(offset(5)).await.unwrap();
        log.check_invariants();
    });
}

#[test]
fn the_high_watermark_never_passes_what_is_flushed() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("durable", 0), LogConfig::default()).await.unwrap();
        let appended = append(&log, batch(5, 10)).await.unwrap();
        log.set_high_watermark(offset(5));
        assert_eq!(log.offsets().high_watermark.get(), 0);
        log.committable(appended.last_offset).await.unwrap();
        log.set_high_watermark(offset(5));
        assert_eq!(log.offsets().high_watermark.get(), 5);
        log.set_high_watermark(offset(2));
        assert_eq!(log.offsets().high_watermark.get(), 5, "never back");
    });
}

#[test]
fn a_relaxed_topic_commits_what_is_written() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let config = LogConfig { flush_messages: 10, ..LogConfig::default() };
        let log = engine.open_log(name("relaxed", 0), config).await.unwrap();
        let appended = append(&log, batch(5, 10)).await.unwrap();
        log.committable(appended.last_offset).await.unwrap();
        log.set_high_watermark(offset(5));
        let offsets = log.offsets();
        assert_eq!((offsets.high_watermark.get(), offsets.flushed_end.get()), (5, 0));
        // The tenth record asks for a flush.
        let appended = append(&log, batch(5, 10)).await.unwrap();
        while log.offsets().flushed_end.get() < 10 {
            log.changed().wait().await;
        }
        // And whoever waits for a flush gets one.
        let next = append(&log, batch(1, 10)).await.unwrap();
        assert_eq!(next.base_offset, appended.last_offset.next());
        log.flushed(next.last_offset).await.unwrap();
        log.check_invariants();
    });
}

#[test]
fn a_bounded_wait_flushes_a_relaxed_topic() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let age = Duration::from_millis(1);
        let config = LogConfig { flush_messages: u64::MAX, flush_age_max: Some(age), ..LogConfig::default() };
        let log = engine.open_log(name("relaxed", 0), config).await.unwrap();
        let upkeep = engine.clone();
        let task = io.spawn(async move { upkeep.maintain().await });
        append(&log, batch(1, 10)).await.unwrap();
        while log.offsets().flushed_end.get() < 1 {
            log.changed().wait().await;
        }
        task.cancel();
    });
}

#[test]
fn duplicates_get_the_original_offsets_even_in_flight() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        let first = append(&log, idempotent(7, 0, 0, 3)).await.unwrap();
        let again = append(&log, idempotent(7, 0, 0, 3)).await.unwrap();
        assert!(again.duplicate && !first.duplicate);
        assert_eq!((again.base_offset, again.last_offset), (first.base_offset, first.last_offset));
        assert_eq!(log.offsets().flushed_end.get(), 0, "the original is still in flight");
        log.flushed(again.last_offset).await.unwrap();
        let gap = append(&log, idempotent(7, 0, 5, 1)).await.unwrap_err();
        assert!(matches!(gap, AppendError::OutOfOrderSequence { expected: 3, found: 5 }));
        append(&log, idempotent(7, 1, 0, 1)).await.unwrap();
        let old = append(&log, idempotent(7, 0, 3, 1)).await.unwrap_err();
        log.flush().await.unwrap();
        assert!(matches!(old, AppendError::InvalidProducerEpoch { current: 1, found: 0 }));
        assert_eq!(read_all(&io, &log).await, [(0, 2), (3, 3)]);
    });
}

/// As Kafka does: the bit is the broker's, so it is cleared where the producer's times count, and no time at all is wrong.
#[test]
fn a_log_append_time_that_a_client_claims() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        let claimed = |times: &[i64], max: i64, codec| {
            let log_append_time = Some(Timestamp::new(max));
            let mut builder =
                BatchBuilder::new(BatchOptions { log_append_time, compression: codec, ..BatchOptions::default() });
            times.iter().for_each(|time| builder.push(Timestamp::new(*time), Some(b"k"), None, &[]).unwrap());
            finish(builder)
        };
        append(&log, claimed(&[5, 9], 9, Compression::Gzip)).await.unwrap();
        log.flush().await.unwrap();
        let kept = log.offset_for_timestamp(Timestamp::new(6)).await.unwrap().unwrap();
        assert_eq!((kept.offset.get(), kept.timestamp), (1, Timestamp::new(9)), "the producer's own times are read");
        let without = append(&log, claimed(&[-1], -1, Compression::None)).await;
        let Err(AppendError::InvalidRecords(invalid)) = without else { panic!("no time was taken") };
        assert!(matches!(invalid.first[..], [(0, RecordFault::LogAppendTime { .. })]) && invalid.untimely);

        let stamping = LogConfig { timestamp_type: TimestampType::LogAppendTime, ..LogConfig::default() };
        let log = engine.open_log(name("stamped", 0), stamping).await.unwrap();
        let many = vec![7; RECORD_FAULTS_MAX + 5];
        let refused = append(&log, claimed(&many, 7, Compression::Zstd)).await;
        let Err(AppendError::InvalidRecords(invalid)) = refused else { panic!("a client's append time was taken") };
        assert_eq!((invalid.first.len(), invalid.count), (RECORD_FAULTS_MAX, RECORD_FAULTS_MAX + 5));
        assert_eq!(log.offsets().log_end.get(), 0);
    });
}

#[test]
fn clients_may_not_send_what_only_brokers_do() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        let built = |options: BatchOptions| {
            let mut builder = BatchBuilder::new(options);
            builder.push(Timestamp::new(1), Some(b"\0\0\0\x01"), Some(b"v"), &[]).unwrap();
            finish(builder)
        };
        let producer = BatchOptions {
            producer_id: ProducerId::new(1),
            producer_epoch: ProducerEpoch::new(0),
            base_sequence: Sequence::new(0),
            ..BatchOptions::default()
        };
        let transactional = built(BatchOptions { transactional: true, ..producer });
        assert!(matches!(append(&log, transactional).await, Err(AppendError::InvalidTxnState)));
        let control = built(BatchOptions { control: true, ..producer });
        assert!(matches!(append(&log, control.clone()).await, Err(AppendError::InvalidRecord { .. })));
        let two: Vec<u8> = [&*batch(1, 1), &*batch(1, 1)].concat();
        assert!(matches!(append(&log, Lease::from_vec(two)).await, Err(AppendError::NotOneBatch(_))));
        let mut broken = batch(1, 50).to_vec();
        broken[70] ^= 1;
        assert!(matches!(append(&log, Lease::from_vec(broken)).await, Err(AppendError::Corrupt(_))));
        assert!(matches!(append(&log, Lease::from_vec(vec![1; 10])).await, Err(AppendError::NotOneBatch(_))));
        assert_eq!(log.offsets().log_end.get(), 0, "nothing of all that was kept");
        log.append(control, AppendOrigin::Broker, EPOCH).await.unwrap();
    });
}

#[test]
fn sizes_keys_and_times_have_bounds() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let config = LogConfig {
            max_message_bytes: 500,
            cleanup_policy: CleanupPolicy::Compact,
            timestamp_before_max: Some(Duration::from_secs(3600)),
            ..LogConfig::default()
        };
        let log = engine.open_log(name("compacted", 0), config).await.unwrap();
        let now = io.wall_clock();
        assert!(matches!(append(&log, batch(1, 600)).await, Err(AppendError::TooLarge { limit: 500, .. })));
        let mut without_key = BatchBuilder::new(BatchOptions::default());
        without_key.push(Timestamp::new(now), Some(b"k"), None, &[]).unwrap();
        without_key.push(Timestamp::new(now), None, Some(b"v"), &[]).unwrap();
        let Err(AppendError::InvalidRecords(invalid)) = append(&log, finish(without_key)).await else {
            panic!("a record without a key was taken")
        };
        assert_eq!((&invalid.first, invalid.untimely), (&vec![(1, RecordFault::NoKey)], false));
        for (codec, delta) in [(Compression::None, -7200), (Compression::Zstd, -7200), (Compression::None, 7200)] {
            let times = [now, now + delta * 1000, now];
            let refused = append(&log, batch_at(&times, codec)).await;
            let Err(AppendError::InvalidRecords(invalid)) = refused else { panic!("{codec} {delta}") };
            assert!(invalid.untimely && invalid.first[0].0 == 1, "{invalid:?}");
        }
        append(&log, batch_at(&[now, now - 1000], Compression::Lz4)).await.unwrap();
    });
}

#[test]
fn a_log_may_give_its_own_time_and_codec() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let config = LogConfig {
            timestamp_type: TimestampType::LogAppendTime,
            compression: StoredCompression::Codec { codec: Compression::Zstd, level: None },
            ..LogConfig::default()
        };
        let log = engine.open_log(name("stamped", 0), config).await.unwrap();
        let appended = commit(&log, batch_at(&[1, 2, 3], Compression::Gzip)).await;
        assert!(appended.log_append_time.get() > 1_600_000_000_000);
        let bytes = bytes_of(&io, &log.read(offset(0), EVERYTHING).await.unwrap()).await;
        let stored = heddle_record::validate(&bytes, heddle_record::Origin::Log).unwrap();
        assert_eq!(stored.compression(), Some(Compression::Zstd));
        assert_eq!(stored.max_timestamp(), appended.log_append_time);
        assert_eq!(stored.record_count(), 3);
        // Batches of that codec already are kept as they are.
        let same = batch_at(&[5], Compression::Zstd);
        let body = RecordBatch::peek(&same).unwrap().body().to_vec();
        commit(&log, same).await;
        let bytes = bytes_of(&io, &log.read(offset(3), EVERYTHING).await.unwrap()).await;
        assert_eq!(RecordBatch::peek(&bytes).unwrap().body(), body);
    });
}

#[test]
fn segments_roll_before_the_append_that_would_overflow() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
        for _ in 0..30 {
            commit(&log, batch(1, 300)).await;
        }
        let sizes: Vec<u64> = files(home.path(), log.name(), ".log").iter().map(|path| batches_len(path)).collect();
        assert!(sizes.len() > 4 && sizes.iter().all(|size| *size <= 2048), "{sizes:?}");
        assert_eq!(read_all(&io, &log).await.len(), 30);
        for from in 0..30 {
            let out = log.read(offset(from), limit(30, 1)).await.unwrap();
            assert_eq!(offsets_of(&io, &out).await, [(from, from)]);
        }
    });
}

#[test]
fn the_age_of_a_segment_rolls_it_too() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let config = LogConfig { segment_age_max: Duration::ZERO, ..LogConfig::default() };
        let log = engine.open_log(name("orders", 0), config).await.unwrap();
        commit(&log, batch(1, 1)).await;
        commit(&log, batch(1, 1)).await;
        assert_eq!(log.segment_count(), 2);
    });
}

#[test]
fn leaders_of_old_epochs_are_refused() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        log.append(batch(2, 1), AppendOrigin::Client, LeaderEpoch::new(3)).await.unwrap();
        let stale = log.append(batch(1, 1), AppendOrigin::Client, LeaderEpoch::new(2)).await;
        assert!(matches!(stale, Err(AppendError::StaleLeaderEpoch)));
        log.begin_epoch(LeaderEpoch::new(5));
        assert_eq!(log.epoch_end_offset(LeaderEpoch::new(5)).unwrap().end_offset, offset(2), "case 5");
        assert_eq!(log.epoch_end_offset(LeaderEpoch::new(4)).unwrap().epoch, LeaderEpoch::new(3), "case 2");
        assert_eq!(log.latest_epoch(), Some(LeaderEpoch::new(5)));
    });
}

#[test]
fn replicated_batches_must_continue_the_log() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let leader = engine.open_log(name("leader", 0), LogConfig::default()).await.unwrap();
        let follower = engine.open_log(name("follower", 0), LogConfig::default()).await.unwrap();
        commit(&leader, batch(3, 10)).await;
        commit(&leader, idempotent(9, 0, 0, 2)).await;
        let bytes = bytes_of(&io, &leader.read(offset(0), EVERYTHING).await.unwrap()).await;
        let second = bytes[batch(3, 10).len()..].to_vec();
        let gap = follower.append_replicated(Lease::from_vec(second)).await;
        assert!(
            matches!(gap, Err(AppendError::NotContiguous { expected, found }) if (expected.get(), found.get()) == (0, 3)),
            "case 35"
        );
        let offsets = follower.append_replicated(Lease::from_vec(bytes.clone())).await.unwrap();
        assert_eq!(offsets.log_end.get(), 5);
        follower.flush().await.unwrap();
        assert_eq!(bytes_of(&io, &follower.read(offset(0), EVERYTHING).await.unwrap()).await, bytes);
        assert_eq!(follower.producer_count(), 1);
        follower.check_invariants();
    });
}

#[test]
fn appends_wait_where_too_much_is_pending_and_keep_their_order() {
    run(|io| async move {
        let home = home();
        let config = EngineConfig { pending_bytes_max: 4096, ..EngineConfig::default() };
        let engine = open_engine(&io, home.path(), config).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let log = log.clone();
                io.spawn(async move { append(&log, batch(1, 1000)).await.unwrap().base_offset.get() })
            })
            .collect();
        for (number, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await, number as i64);
        }
        log.flush().await.unwrap();
        assert_eq!(read_all(&io, &log).await.len(), 50);
        log.check_invariants();
    });
}

#[test]
fn deleted_logs_are_gone_and_take_nothing_more() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        assert!(engine.open_log(name("orders", 0), LogConfig::default()).await.is_err(), "open twice");
        commit(&log, batch(1, 10)).await;
        let waiting = append(&log, batch(1, 10)).await.unwrap();
        engine.delete_log(log.name()).await.unwrap();
        assert!(matches!(append(&log, batch(1, 1)).await, Err(AppendError::Offline(_))), "case 23");
        // Whether the flush raced with the deletion or not, the data directory is fine (case 33).
        let _either = log.flushed(waiting.last_offset).await;
        io.yield_now().await;
        assert!(!engine.data_dir().is_offline());
        assert!(engine.stored_logs().await.unwrap().is_empty());
        let again = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        assert_eq!(again.offsets().log_end.get(), 0);
        engine.delete_log(&name("never", 1)).await.unwrap();
    });
}
