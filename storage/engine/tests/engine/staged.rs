//! Large batches received straight into their place ([`Log::stage`]): the same log as if they had been appended whole.

use crate::harness::*;
use heddle_engine::{AppendError, Appended, CleanupPolicy, DeviceChoice, EngineConfig, Log, LogConfig, Staging};
use heddle_io::{AppendBuffer, Lease};
use heddle_record::{
    BatchError, BatchOptions, HEADER_LEN, LeaderEpoch, ProducerEpoch, ProducerId, Sequence, TimestampType,
};

/// A batch of about a mebibyte from a producer whose sequences begin at `sequence`.
fn large(sequence: i32) -> Lease {
    let options = BatchOptions {
        producer_id: ProducerId::new(7),
        producer_epoch: ProducerEpoch::new(0),
        base_sequence: Sequence::new(sequence),
        ..BatchOptions::default()
    };
    let mut builder = heddle_record::BatchBuilder::new(options);
    for index in 0..10 {
        let value: Vec<u8> = (0..100_000u32).map(|at| (at * 7 + index + sequence as u32) as u8).collect();
        builder.push(heddle_record::Timestamp::new(1000), None, Some(&value), &[]).unwrap();
    }
    finish(builder)
}

/// Gives the body of a batch in pieces of at most `piece` bytes.
fn body(batch: &Lease, piece: usize) -> impl FnMut(&mut AppendBuffer, usize) -> Result<usize, heddle_io::Error> {
    let mut rest = batch.slice(HEADER_LEN..batch.len());
    move |buffer, count| {
        let staged = buffer.stage(&rest[..count.min(piece).min(rest.len())]);
        rest.advance(staged);
        Ok(staged)
    }
}

async fn stage(log: &Log, batch: &Lease, piece: usize) -> Result<Staging, AppendError> {
    let header = batch.first_chunk().unwrap();
    log.stage(header, batch.len(), EPOCH, body(batch, piece)).await
}

/// Stages and commits; appends whole where that is asked for.
async fn append_staged(log: &Log, batch: Lease, piece: usize) -> Appended {
    let is_direct = crate::DEVICE == DeviceChoice::Direct;
    assert_eq!(log.can_stage(batch.first_chunk().unwrap(), batch.len()), is_direct);
    match stage(log, &batch, piece).await.unwrap() {
        Staging::Staged(staged) => {
            assert!(is_direct, "the buffered device writes from where a batch was received");
            let before = log.offsets();
            let appended = staged.commit();
            assert_eq!(before.log_end.offset(), appended.base_offset, "nothing had changed before");
            appended
        }
        Staging::Duplicate(original) => original,
        Staging::Whole => append(log, batch).await.unwrap(),
    }
}

#[test]
fn a_staged_batch_is_in_the_log_like_any_other() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        commit(&log, batch(3, 10)).await;
        for (round, piece) in [1000, 70_000, usize::MAX].into_iter().enumerate() {
            let batch = large(10 * round as i32);
            let appended = append_staged(&log, batch.clone(), piece).await;
            assert_eq!((appended.base_offset.get(), appended.duplicate), (3 + 10 * round as i64, false));
            let again = append_staged(&log, batch, piece).await;
            assert_eq!((again.base_offset, again.duplicate), (appended.base_offset, true));
            log.flushed(appended.last_offset).await.unwrap();
            log.check_invariants();
        }
        commit(&log, batch(1, 10)).await;
        let expected = [(0, 2), (3, 12), (13, 22), (23, 32), (33, 33)];
        assert_eq!(read_all(&io, &log).await, expected);
        engine.close().await.unwrap();
        drop((log, engine));
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        assert_eq!(read_all(&io, &log).await, expected);
        assert!(append_staged(&log, large(20), usize::MAX).await.duplicate, "producers are remembered");
    });
}

#[test]
fn what_fails_its_checks_gives_its_place_back() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        commit(&log, batch(3, 10)).await;
        let good = large(0);
        let mut bytes = good.to_vec();
        bytes[900_000] ^= 1;
        let damaged = Lease::from_vec(bytes);
        for _ in 0..3 {
            match stage(&log, &damaged, usize::MAX).await {
                Err(AppendError::Corrupt(BatchError::Checksum { .. })) | Ok(Staging::Whole) => {}
                _ => panic!("a damaged batch is refused"),
            }
            // Its sender leaves in the middle.
            let (mut give, mut calls) = (body(&good, 100_000), 0);
            let left = log.stage(good.first_chunk().unwrap(), good.len(), EPOCH, |buffer, count| {
                calls += 1;
                if calls < 5 {
                    give(buffer, count)
                } else {
                    Err(heddle_io::Error::new("receive from", std::io::ErrorKind::ConnectionReset, "gone"))
                }
            });
            match left.await {
                Err(AppendError::Corrupt(BatchError::Truncated { .. })) | Ok(Staging::Whole) => {}
                _ => panic!("half a batch is refused"),
            }
            // Whoever staged it thinks better of it.
            drop(stage(&log, &good, usize::MAX).await.unwrap());
            log.check_invariants();
            let appended = commit(&log, batch(1, 100_000)).await;
            assert_eq!(log.offsets().log_end.offset(), appended.last_offset.next());
        }
        let appended = append_staged(&log, good, usize::MAX).await;
        assert_eq!(appended.base_offset, offset(6), "its sequence was not used up");
        log.flushed(appended.last_offset).await.unwrap();
        assert_eq!(read_all(&io, &log).await, [(0, 2), (3, 3), (4, 4), (5, 5), (6, 15)]);
    });
}

#[test]
fn an_append_waits_for_the_staged_batch_before_it() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        let Staging::Staged(staged) = stage(&log, &large(0), usize::MAX).await.unwrap() else { return };
        let behind = io.spawn({
            let log = log.clone();
            async move { append(&log, batch(1, 10)).await.unwrap().base_offset }
        });
        io.yield_now().await;
        assert_eq!(log.offsets().log_end, offset(0).into());
        assert_eq!(staged.commit().base_offset, offset(0));
        assert_eq!(behind.await, offset(10));
    });
}

#[test]
fn what_is_not_plain_is_appended_whole() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        let plain = large(0);
        let header = plain.first_chunk::<HEADER_LEN>().unwrap();
        let settings = [
            LogConfig { cleanup_policy: CleanupPolicy::Compact, ..LogConfig::default() },
            LogConfig { timestamp_type: TimestampType::LogAppendTime, ..LogConfig::default() },
            LogConfig { max_message_bytes: 1000, ..LogConfig::default() },
        ];
        for config in settings {
            log.set_config(config);
            assert!(!log.can_stage(header, plain.len()));
            assert!(matches!(stage(&log, &plain, usize::MAX).await, Ok(Staging::Whole)));
        }
        log.set_config(LogConfig::default());
        assert!(!log.can_stage(header, plain.len() + 1), "its length is not that of its frame");
        let mut newer = *header;
        newer[16] = 3;
        assert!(!log.can_stage(&newer, plain.len()));
        // A segment is rolled by an append alone.
        log.set_config(LogConfig { segment_bytes: 1_500_000, max_message_bytes: 1_400_000, ..LogConfig::default() });
        append_staged(&log, plain, usize::MAX).await;
        assert!(matches!(stage(&log, &large(10), usize::MAX).await, Ok(Staging::Whole)));
        // Its leader was superseded.
        log.begin_epoch(LeaderEpoch::new(5));
        let stale = stage(&log, &large(10), usize::MAX).await;
        assert!(matches!(stale, Err(AppendError::StaleLeaderEpoch) | Ok(Staging::Whole)));
    });
}
