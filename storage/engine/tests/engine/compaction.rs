//! Compaction: of each key the last record stays, wherever a reader looks, and whatever the engine was told in between.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::harness::*;
use heddle_engine::inspect::find_logs;
use heddle_engine::{
    AppendError, AppendOrigin, CleanerConfig, CleanupPolicy, Engine, EngineConfig, Log, LogConfig, ReadError,
};
use heddle_io::sim::{Effect, Fault, OperationKind, Simulator};
use heddle_io::{Io, Lease};
use heddle_record::{
    BatchBuilder, BatchHeader, BatchOptions, Batches, Compression, ProducerEpoch, ProducerId, Sequence, Timestamp,
};

fn compacted() -> LogConfig {
    LogConfig {
        cleanup_policy: CleanupPolicy::Compact,
        dirty_ratio_min_millionths: 0,
        timestamp_after_max: None,
        ..small_segments()
    }
}

/// A record as it was written or read: key, value, time.
type Written = (Option<String>, Option<String>, i64);

fn keyed(options: BatchOptions, records: &[(&str, Option<&str>, i64)]) -> Lease {
    let mut builder = BatchBuilder::new(options);
    for (key, value, time) in records {
        builder.push(Timestamp::new(*time), Some(key.as_bytes()), value.map(str::as_bytes), &[]).unwrap();
    }
    finish(builder)
}

async fn put(log: &Log, key: &str, value: Option<&str>) -> i64 {
    let now = 1_000_000 + log.offsets().log_end.get();
    commit(log, keyed(BatchOptions::default(), &[(key, value, now)])).await.base_offset.get()
}

/// Fills the active segment and seals it, so that what was written before can be compacted.
async fn seal(log: &Log) {
    let segments = log.segment_count();
    let filler = "f".repeat(900);
    while log.segment_count() == segments {
        put(log, "filler", Some(&filler)).await;
    }
}

/// Every record of a log by its offset, and the headers of its batches.
async fn everything(io: &Io, log: &Log) -> (BTreeMap<i64, Written>, Vec<BatchHeader>) {
    let (mut records, mut headers) = (BTreeMap::new(), Vec::new());
    let mut from = log.offsets().log_start.offset();
    loop {
        let out = log.read(from, EVERYTHING).await.unwrap();
        if out.bytes == 0 {
            return (records, headers);
        }
        let bytes = bytes_of(io, &out).await;
        for batch in Batches::new(&bytes) {
            let batch = batch.unwrap();
            assert_eq!(batch.computed_crc(), batch.crc());
            let mut scratch = Vec::new();
            let body = batch.uncompressed_body(1 << 20, &mut scratch).unwrap();
            headers.push(*batch.header());
            for record in batch.records_in(body).map(Result::unwrap) {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                let time = batch.header().timestamp_of(&record).get();
                let written = (record.key.map(text), record.value.map(text), time);
                assert!(records.insert(batch.header().offset_of(&record).get(), written).is_none(), "no offset twice");
            }
        }
        assert!(out.next_offset > from);
        from = out.next_offset;
    }
}

/// The last value of each key, tombstones left out.
fn latest(records: &BTreeMap<i64, Written>) -> BTreeMap<String, String> {
    let mut latest = BTreeMap::new();
    for (key, value, _) in records.values() {
        let Some(key) = key else { continue };
        match value {
            Some(value) => latest.insert(key.clone(), value.clone()),
            None => latest.remove(key),
        };
    }
    latest
}

async fn verify(io: &Io, path: &Path) {
    for log in find_logs(io, path).await.unwrap() {
        for (segment, report) in log.check(io).await.unwrap() {
            assert!(report.is_sound(), "{segment:?}: {report:?}");
        }
    }
}

#[test]
fn the_last_record_of_each_key_stays_where_it_was() {
    run(|io| async move {
        let home = home();
        let expected = {
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("table", 0), compacted()).await.unwrap();
            for round in 0..20 {
                for key in ["a", "b", "c"] {
                    put(&log, key, Some(&format!("{key}{round}"))).await;
                }
            }
            seal(&log).await;
            let (before, _) = everything(&io, &log).await;
            let done = engine.compact().await.unwrap();
            log.check_invariants();
            assert!(done.records_removed >= 57 && done.bytes_written > 0, "{done:?}");
            let (after, _) = everything(&io, &log).await;
            assert_eq!(latest(&before), latest(&after));
            assert!(after.iter().all(|(offset, record)| before.get(offset) == Some(record)), "as they were");
            let of_a: Vec<&i64> = after.iter().filter(|(_, r)| r.0.as_deref() == Some("a")).map(|(o, _)| o).collect();
            assert_eq!(of_a, [&57]);
            assert_eq!(engine.compact().await.unwrap().bytes_written, 0, "nothing is dirty any more");
            after
        };
        verify(&io, home.path()).await;
        for lost in [false, true] {
            if lost {
                std::fs::remove_file(home.path().join("heddle.checkpoint.0")).unwrap();
            }
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("table", 0), compacted()).await.unwrap();
            log.set_high_watermark(offset(i64::MAX));
            assert_eq!(everything(&io, &log).await.0, expected, "checkpoint lost: {lost}");
            engine.close().await.unwrap();
        }
    });
}

#[test]
fn what_a_cut_left_half_done_is_shown_as_it_will_be_and_brought_to_its_end() {
    // Case 32.
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("table", 0), compacted()).await.unwrap();
        for round in 0..60 {
            put(&log, &format!("{}", round % 3), Some(&"v".repeat(100))).await;
        }
        seal(&log).await;
        engine.checkpoint().await.unwrap();
        let directory = home.path().join(log.name().directory().unwrap());
        let before: Vec<_> = files(home.path(), log.name(), ".log");
        let copies: Vec<_> = before.iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
        engine.compact().await.unwrap();
        let (expected, _) = everything(&io, &log).await;
        drop((engine, log));
        settle(&io).await;
        // As if the last steps had not been reached: the others are there again, and the new one waits.
        let first = directory.join("00000000000000000000.log");
        let generation = std::fs::read(directory.join("compaction")).unwrap()[32 + 24];
        std::fs::rename(&first, directory.join(format!("00000000000000000000.{generation}.cleaned"))).unwrap();
        std::fs::write(directory.join("00000000000000000000.9.cleaned"), b"a leftover").unwrap();
        for (path, bytes) in copies.iter().filter(|(path, _)| !path.exists()) {
            std::fs::write(path, bytes).unwrap();
        }
        let shown = find_logs(&io, home.path()).await.unwrap();
        assert!(shown[0].segments[0].compacted_bytes.is_some() && shown[0].segments.len() < before.len());
        verify(&io, home.path()).await;
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("table", 0), compacted()).await.unwrap();
        log.check_invariants();
        assert_eq!(everything(&io, &log).await.0, expected);
        assert!(files(home.path(), log.name(), ".cleaned").is_empty());
        engine.close().await.unwrap();
        drop((engine, log));
        settle(&io).await;
        verify(&io, home.path()).await;
        // What compaction wrote down is needed: a log without it stays closed, as it is.
        let manifest = directory.join("compaction");
        std::fs::write(&manifest, b"rot").unwrap();
        std::fs::remove_file(home.path().join("heddle.checkpoint.0")).unwrap();
        let reports = find_logs(&io, home.path()).await.unwrap()[0].check(&io).await.unwrap();
        assert!(!reports[0].1.is_sound());
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        assert!(is_damage(&engine.open_log(name("table", 0), compacted()).await.unwrap_err()));
        assert_eq!(std::fs::read(&manifest).unwrap(), b"rot");
    });
}

#[test]
fn a_read_between_records_gives_the_next_batch() {
    // Case 57.
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("table", 0), compacted()).await.unwrap();
        for round in 0..200 {
            put(&log, &format!("{}", round % 7), Some(&"v".repeat(50))).await;
        }
        seal(&log).await;
        engine.compact().await.unwrap();
        let (_, headers) = everything(&io, &log).await;
        assert!(headers.len() < 30 && log.segment_count() <= 3, "{} in {}", headers.len(), log.segment_count());
        let end = log.offsets().log_end.get();
        for from in 0..end {
            let out = log.read(offset(from), limit(end, 1)).await.unwrap();
            let found = offsets_of(&io, &out).await;
            let next = headers.iter().find(|header| header.last_offset().get() >= from).unwrap();
            assert_eq!(found, [(next.base_offset.get(), next.last_offset().get())], "from {from}");
        }
        assert!(matches!(log.read(offset(end + 1), EVERYTHING).await, Err(ReadError::OutOfRange { .. })));
        // By time: exactly the first that is left at or after it.
        let (records, _) = everything(&io, &log).await;
        for time in (999_990..1_000_000 + end).step_by(3) {
            let expected = records.iter().find(|(_, record)| record.2 >= time).map(|(offset, _)| *offset);
            let found = log.offset_for_timestamp(Timestamp::new(time)).await.unwrap();
            assert_eq!(found.map(|found| found.offset.get()), expected, "at {time}");
        }
        assert_eq!(log.max_timestamp().await.unwrap().unwrap().offset.get(), *records.keys().last().unwrap());
        // Records are deleted in the middle of a gap.
        assert_eq!(engine.delete_records_before(&log, offset(100)).await.unwrap().get(), 100);
        log.check_invariants();
        let (rest, _) = everything(&io, &log).await;
        assert!(rest.keys().all(|offset| records.contains_key(offset)));
    });
}

#[test]
fn a_tombstone_stays_until_its_horizon_and_then_goes() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let hour = LogConfig { delete_retention: Duration::from_secs(3600), ..compacted() };
        let log = engine.open_log(name("table", 0), hour).await.unwrap();
        put(&log, "k", Some("v")).await;
        put(&log, "other", Some("v")).await;
        let tombstone = put(&log, "k", None).await;
        seal(&log).await;
        let before = io.wall_clock();
        engine.compact().await.unwrap();
        let (records, headers) = everything(&io, &log).await;
        assert_eq!(records.get(&tombstone), Some(&(Some("k".into()), None, 1_000_000 + tombstone)), "its own time");
        assert!(!records.contains_key(&0));
        let header = headers.iter().find(|header| header.base_offset.get() == tombstone).unwrap();
        let horizon = header.delete_horizon().expect("the first pass sets it").get();
        assert!((before + 3_600_000..=io.wall_clock() + 3_600_000).contains(&horizon), "{horizon}");
        // Another pass changes neither the horizon nor the tombstone.
        seal(&log).await;
        engine.compact().await.unwrap();
        let (_, headers) = everything(&io, &log).await;
        let header = headers.iter().find(|header| header.base_offset.get() == tombstone).unwrap();
        assert_eq!(header.delete_horizon().map(Timestamp::get), Some(horizon));

        // Without retention it goes as soon as nothing below it is left to hide.
        let none = LogConfig { delete_retention: Duration::ZERO, ..compacted() };
        let log = engine.open_log(name("more", 0), none).await.unwrap();
        put(&log, "k", Some("v")).await;
        let tombstone = put(&log, "k", None).await;
        seal(&log).await;
        engine.compact().await.unwrap();
        let (records, _) = everything(&io, &log).await;
        assert!(!records.contains_key(&0) && !records.contains_key(&tombstone), "{records:?}");
        verify(&io, home.path()).await;
    });
}

#[test]
fn producers_go_on_where_they_were() {
    run(|io| async move {
        let home = home();
        let by = |producer: i64, sequence: i32| BatchOptions {
            producer_id: ProducerId::new(producer),
            producer_epoch: ProducerEpoch::new(0),
            base_sequence: Sequence::new(sequence),
            ..BatchOptions::default()
        };
        let record = [("k", Some("v"), 5), ("l", Some("v"), 6)];
        for lost in [false, true] {
            {
                let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                let log = engine.open_log(name("table", lost.into()), compacted()).await.unwrap();
                for number in 0..4 {
                    for producer in [1, 2] {
                        commit(&log, keyed(by(producer, number * 2), &record)).await;
                    }
                }
                put(&log, "k", Some("last")).await;
                put(&log, "l", Some("last")).await;
                seal(&log).await;
                engine.compact().await.unwrap();
                let (records, headers) = everything(&io, &log).await;
                assert!(records.values().all(|record| record.1.as_deref() != Some("v")));
                let kept: Vec<_> = headers.iter().filter(|header| header.has_producer()).collect();
                assert_eq!(kept.len(), 2, "the last batch of each producer");
                for header in kept {
                    assert_eq!((header.record_count, header.last_sequence()), (0, Sequence::new(7)));
                    assert_eq!((header.base_timestamp, header.max_timestamp.get()), (Timestamp::NONE, 6));
                }
                engine.close().await.unwrap();
            }
            if lost {
                std::fs::remove_file(home.path().join("heddle.checkpoint.0")).unwrap();
            }
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("table", lost.into()), compacted()).await.unwrap();
            log.check_invariants();
            assert_eq!(log.producer_count(), 2);
            assert!(append(&log, keyed(by(1, 6), &record)).await.unwrap().duplicate);
            let gap = append(&log, keyed(by(2, 9), &record)).await;
            assert!(matches!(gap, Err(AppendError::OutOfOrderSequence { expected: 8, found: 9 })), "{gap:?}");
            commit(&log, keyed(by(2, 8), &record)).await;
            engine.close().await.unwrap();
        }
    });
}

/// The marker that ends a transaction of `producer`.
fn marker(producer: i64) -> Lease {
    let options = BatchOptions {
        producer_id: ProducerId::new(producer),
        producer_epoch: ProducerEpoch::new(0),
        transactional: true,
        control: true,
        ..BatchOptions::default()
    };
    let mut builder = BatchBuilder::new(options);
    // Version 0, type 1: a commit.
    builder.push(Timestamp::new(7), Some(&[0, 0, 0, 1]), Some(&[0; 6]), &[]).unwrap();
    finish(builder)
}

#[test]
fn the_end_of_a_transaction_goes_after_its_last_data() {
    // Case 51.
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        for retention in [Duration::ZERO, Duration::from_secs(3600)] {
            let config = LogConfig { delete_retention: retention, ..compacted() };
            let topic = format!("table {}", retention.as_secs()).replace(' ', "-");
            let log = engine.open_log(name(&topic, 0), config).await.unwrap();
            let by_broker = async |batch: Lease| {
                let appended = log.append(batch, AppendOrigin::Broker, EPOCH).await.unwrap();
                log.flushed(appended.last_offset).await.unwrap();
                log.set_high_watermark(appended.last_offset.next());
                appended.base_offset.get()
            };
            let data = |sequence, key: &'static str| {
                let options = BatchOptions {
                    producer_id: ProducerId::new(4),
                    producer_epoch: ProducerEpoch::new(0),
                    base_sequence: Sequence::new(sequence),
                    transactional: true,
                    ..BatchOptions::default()
                };
                keyed(options, &[(key, Some("v"), 5)])
            };
            by_broker(data(0, "k")).await;
            let first = by_broker(marker(4)).await;
            by_broker(data(1, "stays")).await;
            let second = by_broker(marker(4)).await;
            let markers = async || {
                let (_, headers) = everything(&io, &log).await;
                let markers = headers.into_iter().filter(|header| header.attributes.is_control());
                markers.map(|header| (header.base_offset.get(), header.delete_horizon().is_some())).collect::<Vec<_>>()
            };
            seal(&log).await;
            engine.compact().await.unwrap();
            assert_eq!(markers().await, [(first, false), (second, false)], "their data is there");
            put(&log, "k", Some("later")).await;
            seal(&log).await;
            engine.compact().await.unwrap();
            let found = markers().await;
            if retention.is_zero() {
                // The pass that set its time was followed by one that it was due for.
                assert_eq!(found, [(second, false)]);
            } else {
                assert_eq!(found, [(first, true), (second, false)], "from now on its time runs");
            }
            log.check_invariants();
        }
        engine.close().await.unwrap();
        verify(&io, home.path()).await;
    });
}

#[test]
fn every_codec_comes_back_as_it_was() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let config = LogConfig { segment_bytes: 1 << 20, ..compacted() };
        for (partition, compression) in (0..).zip(Compression::ALL) {
            let log = engine.open_log(name("table", partition), config.clone()).await.unwrap();
            let options = BatchOptions { compression, ..BatchOptions::default() };
            // Large enough for the helper threads.
            let noise = |number: u64| -> String {
                let mut seed = number + 1;
                let digit = |_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    char::from(b'!' + (seed >> 33) as u8 % 90)
                };
                (0..40_000).map(digit).collect()
            };
            for number in 0..60 {
                let (first, second) = (format!("{}", number % 5), format!("only {number}"));
                commit(&log, keyed(options, &[(&first, Some(&noise(number)), 7), (&second, Some("x"), 9)])).await;
            }
            let (before, _) = everything(&io, &log).await;
            let done = engine.compact().await.unwrap();
            assert!(done.records_removed > 10, "{compression:?}: {done:?}");
            let (after, headers) = everything(&io, &log).await;
            assert_eq!(latest(&before), latest(&after));
            assert!(headers.iter().all(|header| header.attributes.compression() == Some(compression)));
            assert!(after.iter().all(|(offset, record)| before.get(offset) == Some(record)), "{compression:?}");
        }
        verify(&io, home.path()).await;
    });
}

#[test]
fn what_is_young_active_or_uncommitted_is_left_alone() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let fill = async |log: &Log| {
            for _ in 0..3 {
                put(log, "k", Some("v")).await;
            }
            seal(log).await;
        };
        let lag = LogConfig { compaction_lag_min: Duration::from_secs(3600), ..compacted() };
        let young = engine.open_log(name("young", 0), lag).await.unwrap();
        let (long, now) = ("v".repeat(800), io.wall_clock());
        for time in [now, now, now + (1 << 40), now, now] {
            commit(&young, keyed(BatchOptions::default(), &[("k", Some(&long), time)])).await;
        }
        let kept = engine.open_log(name("kept", 0), LogConfig { cleanup_policy: CleanupPolicy::Delete, ..compacted() });
        let kept = kept.await.unwrap();
        fill(&kept).await;
        let clean_enough = LogConfig { dirty_ratio_min_millionths: 1_000_000, ..compacted() };
        let clean_enough = engine.open_log(name("clean", 0), clean_enough).await.unwrap();
        fill(&clean_enough).await;
        let uncommitted = engine.open_log(name("uncommitted", 0), compacted()).await.unwrap();
        for _ in 0..30 {
            let appended =
                append(&uncommitted, keyed(BatchOptions::default(), &[("k", Some(&"v".repeat(90)), 5)])).await;
            uncommitted.flushed(appended.unwrap().last_offset).await.unwrap();
        }
        uncommitted.set_high_watermark(offset(1));
        assert_eq!(engine.compact().await.unwrap().records_removed, 0);
        // A log that is switched off is as it was; on again, it is compacted.
        young.set_config(compacted());
        engine.set_cleaner(CleanerConfig { enabled: false, ..CleanerConfig::default() });
        assert_eq!(engine.compact().await.unwrap().bytes_read, 0);
        engine.set_cleaner(CleanerConfig::default());
        assert_eq!(engine.compact().await.unwrap().records_removed, 3);
        // A record that has waited long enough counts, and its segment is sealed for it.
        let overdue = LogConfig {
            compaction_lag_max: Some(Duration::ZERO),
            dirty_ratio_min_millionths: 1_000_000,
            ..compacted()
        };
        let active = engine.open_log(name("active", 0), compacted()).await.unwrap();
        put(&active, "k", Some("v")).await;
        put(&active, "k", Some("w")).await;
        assert_eq!(engine.compact().await.unwrap().records_removed, 0);
        active.set_config(overdue);
        assert_eq!(engine.compact().await.unwrap().records_removed, 1);
        active.check_invariants();
        assert_eq!(put(&active, "k", Some("x")).await, 2);
    });
}

#[test]
fn a_log_with_more_keys_than_memory_takes_several_passes() {
    run(|io| async move {
        let home = home();
        let cleaner = CleanerConfig { map_bytes_max: 2000, ..CleanerConfig::default() };
        let engine = open_engine(&io, home.path(), EngineConfig { cleaner, ..EngineConfig::default() }).await;
        let log = engine.open_log(name("table", 0), compacted()).await.unwrap();
        for round in 0..5 {
            for key in 0..200 {
                put(&log, &format!("key {key}"), Some(&format!("{round}"))).await;
            }
        }
        seal(&log).await;
        let (before, _) = everything(&io, &log).await;
        let done = engine.compact().await.unwrap();
        assert!(done.key_bytes_max <= 2000 && done.records_removed >= 700, "{done:?}");
        let (after, _) = everything(&io, &log).await;
        assert_eq!(latest(&before), latest(&after));
    });
}

/// A pass notes that it is about to change an idle log, and a checkpoint that begins meanwhile still finds the log idle, so
/// that the note is void when it is written: what is appended next must be found by the next start all the same.
#[test]
fn a_note_that_a_checkpoint_has_overtaken_is_written_again() {
    let host = Simulator::new(8).host("broker");
    let config = || EngineConfig { checkpoint_busy_for: Duration::ZERO, ..EngineConfig::default() };
    let disk = host.clone();
    let last = live(&host, |io| async move {
        let engine = open_engine(&io, Path::new("/data"), config()).await;
        let table = engine.open_log(name("table", 0), compacted()).await.unwrap();
        for number in 0..20 {
            put(&table, "k", Some(&format!("{number} {}", "v".repeat(200)))).await;
        }
        seal(&table).await;
        io.sleep(Duration::from_secs(1)).await;
        engine.checkpoint().await.unwrap();
        // A new log needs no note, and has the next checkpoint begin.
        let other = engine.open_log(name("other", 0), LogConfig::default()).await.unwrap();
        commit(&other, batch(1, 10)).await;
        disk.plant(Fault::next(OperationKind::Flush, Effect::Hang(Duration::from_secs(5))).on_path("touched"));
        let cleaner = engine.clone();
        let compacting = io.spawn(async move { cleaner.compact().await.unwrap() });
        io.sleep(Duration::from_secs(1)).await;
        engine.checkpoint().await.unwrap();
        assert!(compacting.await.records_removed > 15);
        put(&table, "k", Some("acknowledged")).await
    });
    live(&host, |io| async move {
        let engine = open_engine(&io, Path::new("/data"), config()).await;
        let table = engine.open_log(name("table", 0), compacted()).await.unwrap();
        table.check_invariants();
        assert_eq!(table.offsets().log_end.get(), last + 1);
    });
}

/// A log whose newest segment is not on the disk yet when the cleaner comes by is compacted a few rounds later at most.
#[test]
fn a_log_that_cannot_be_compacted_yet_is_compacted_soon() {
    simulate(5, |io, host| async move {
        let engine = open_engine(&io, Path::new("/data"), EngineConfig::default()).await;
        let log = engine.open_log(name("table", 0), compacted()).await.unwrap();
        let row = |time| keyed(BatchOptions::default(), &[("k", Some(&"v".repeat(900)), time)]);
        commit(&log, row(1)).await;
        commit(&log, row(2)).await;
        // The write that begins the next segment takes its time: all that is flushed ends with the first one.
        let slow = Duration::from_secs(5);
        host.plant(Fault::next(OperationKind::Write, Effect::Hang(slow)).on_path("table-0"));
        let appended = append(&log, row(3)).await.unwrap();
        io.sleep(Duration::from_millis(100)).await;
        assert_eq!((log.segment_count(), log.offsets().flushed_end.get()), (2, 2));
        let cleaner = engine.clone();
        io.spawn(async move { cleaner.keep_compacted().await }).detach();
        io.sleep(Duration::from_millis(100)).await;
        assert_eq!(everything(&io, &log).await.0.len(), 2, "nothing is compacted yet");
        log.flushed(appended.last_offset).await.unwrap();
        log.set_high_watermark(appended.last_offset.next());
        io.sleep(3 * CleanerConfig::default().backoff).await;
        let left: Vec<i64> = everything(&io, &log).await.0.into_keys().collect();
        assert_eq!(left, [1, 2], "the cleaner has paused more than once since");
    });
}

/// Writes, flushes and names of a segment that is being rewritten, and the file that foretells it.
#[test]
fn a_compaction_that_the_disk_refuses_leaves_the_log_as_it_was() {
    use OperationKind::{Flush, Metadata, Write};
    for (on, path, errno) in [
        (Write, ".cleaned", ENOSPC),
        (Write, ".cleaned", EIO),
        (Flush, ".cleaned", EIO),
        (Metadata, ".cleaned", ENOSPC),
        (Write, "compaction", ENOSPC),
    ] {
        simulate(6, |io, host| async move {
            let engine = open_engine(&io, Path::new("/data"), EngineConfig::default()).await;
            let log = engine.open_log(name("table", 0), compacted()).await.unwrap();
            for number in 0..20 {
                put(&log, "k", Some(&format!("{number} {}", "v".repeat(200)))).await;
            }
            seal(&log).await;
            engine.checkpoint().await.unwrap();
            let (before, _) = everything(&io, &log).await;
            host.plant(Fault::next(on, Effect::Fail(errno)).on_path(path).for_ever());
            let refused = engine.compact().await.unwrap_err();
            assert!(refused.to_string().contains("/data/"), "{refused}");
            // A flush that fails is what it is everywhere (case 26).
            assert_eq!(engine.data_dir().is_offline(), on == Flush, "{on:?} of {path}");
            if on == Flush {
                assert_eq!(everything(&io, &log).await.0, before, "reads go on");
                return;
            }
            assert!(log.offline().is_none(), "{on:?} of {path}");
            assert_eq!(everything(&io, &log).await.0, before, "{on:?} of {path}");
            put(&log, "other", Some("goes on")).await;
            host.clear_faults();
            assert!(!host.files().iter().any(|file| file.to_string_lossy().ends_with(".cleaned")), "nothing is left");
            io.sleep(Duration::from_secs(11)).await;
            assert!(engine.compact().await.unwrap().records_removed > 15, "{on:?} of {path}: by itself");
            let (after, _) = everything(&io, &log).await;
            assert!(latest(&before).iter().all(|(key, value)| latest(&after).get(key) == Some(value)));
            log.check_invariants();
        });
    }
}

/// A batch under a sound checksum whose records cannot be taken out: nobody looked into it when it came.
fn unopenable() -> Lease {
    let options = BatchOptions { compression: Compression::Gzip, ..BatchOptions::default() };
    let mut bytes = keyed(options, &[("key", Some("value"), 1_000_000)]).to_vec();
    bytes[heddle_record::HEADER_LEN..].fill(0);
    let crc = heddle_record::checksum::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    Lease::from_vec(bytes)
}

/// As Kafka marks such a partition uncleanable; here it can be compacted again once the batch is deleted.
#[test]
fn a_log_with_a_batch_that_cannot_be_opened_stays_as_it_is_and_others_are_compacted() {
    simulate(13, |io, _host| async move {
        let engine = open_engine(&io, Path::new("/data"), EngineConfig::default()).await;
        let keeps = LogConfig { cleanup_policy: CleanupPolicy::Delete, retention_age: None, ..compacted() };
        let bad = engine.open_log(name("bad", 0), keeps).await.unwrap();
        let good = engine.open_log(name("good", 0), compacted()).await.unwrap();
        put(&bad, "a", Some("first")).await;
        let unopenable = commit(&bad, unopenable()).await.last_offset;
        for log in [&bad, &good] {
            for value in ["1", "2", "3"] {
                put(log, "a", Some(value)).await;
            }
            seal(log).await;
        }
        bad.set_config(compacted());
        let before = read_all(&io, &bad).await;
        assert!(engine.compact().await.unwrap().records_removed > 0, "the other one is compacted");
        let a_while = Duration::from_secs(900);
        io.sleep(a_while).await;
        assert_eq!(engine.compact().await.unwrap().records_removed, 0, "it is tried again, in vain");
        assert_eq!(read_all(&io, &bad).await, before, "nothing of it is gone");
        assert!(bad.offline().is_none() && !engine.data_dir().is_offline());
        assert_eq!(latest(&everything(&io, &good).await.0)["a"], "3");

        engine.delete_records_before(&bad, unopenable.next()).await.unwrap();
        io.sleep(a_while).await;
        assert!(engine.compact().await.unwrap().records_removed > 0);
        assert_eq!(latest(&everything(&io, &bad).await.0)["a"], "3");
    });
}

#[test]
fn readers_and_writers_go_on_meanwhile() {
    run(|io| async move {
        let home = home();
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("table", 0), compacted()).await.unwrap();
        let writer = io.spawn({
            let log = log.clone();
            async move {
                for number in 0..600 {
                    put(&log, &format!("{}", number % 11), Some(&format!("{number} {}", "x".repeat(60)))).await;
                }
            }
        });
        let reader = io.spawn({
            let (log, io) = (log.clone(), io.clone());
            async move {
                for round in 0..300_i64 {
                    let end = log.offsets().high_watermark.offset().get();
                    let out = log.read(offset(end * (round % 10) / 10), limit(end, 3000)).await.unwrap();
                    offsets_of(&io, &out).await;
                    io.yield_now().await;
                }
            }
        });
        for _ in 0..40 {
            engine.compact().await.unwrap();
            io.yield_now().await;
        }
        writer.await;
        reader.await;
        seal(&log).await;
        engine.compact().await.unwrap();
        assert!(log.offline().is_none());
        let (records, _) = everything(&io, &log).await;
        let latest = latest(&records);
        for key in 0..11 {
            let last = (0..600).rev().find(|number| number % 11 == key).unwrap();
            assert!(latest[&key.to_string()].starts_with(&format!("{last} ")));
        }
    });
}

/// Numbers that look random, from a seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A log, and what was written to it.
struct Story {
    engine: Engine,
    log: Log,
    config: LogConfig,
    written: BTreeMap<i64, Written>,
    sequences: BTreeMap<i64, i32>,
}

impl Story {
    async fn write(&mut self, chance: &mut Chance) {
        let codec = Compression::ALL[chance.below(5) as usize];
        let producer = chance.below(3) as i64;
        let sequence = self.sequences.entry(producer).or_default();
        let idempotent = BatchOptions {
            producer_id: ProducerId::new(producer),
            producer_epoch: ProducerEpoch::new(0),
            base_sequence: Sequence::new(*sequence),
            compression: codec,
            ..BatchOptions::default()
        };
        let options =
            if producer == 0 { BatchOptions { compression: codec, ..BatchOptions::default() } } else { idempotent };
        let count = 1 + chance.below(6) as i64;
        let records: Vec<Written> = (0..count)
            .map(|_| {
                let key = Some(format!("key {}", chance.below(25)));
                let value = (chance.below(4) > 0).then(|| "v".repeat(chance.below(120) as usize));
                (key, value, 5_000_000 + chance.below(1000) as i64)
            })
            .collect();
        let borrowed: Vec<(&str, Option<&str>, i64)> =
            records.iter().map(|(key, value, time)| (key.as_deref().unwrap(), value.as_deref(), *time)).collect();
        let batch = keyed(options, &borrowed);
        let appended = commit(&self.log, batch.clone()).await;
        if producer > 0 {
            *sequence += count as i32;
            assert_eq!(append(&self.log, batch).await.unwrap().base_offset, appended.base_offset, "a duplicate");
        }
        self.written.extend((appended.base_offset.get()..).zip(records));
    }

    async fn check(&self, io: &Io) {
        self.log.check_invariants();
        let start = self.log.offsets().log_start.get();
        let (found, headers) = everything(io, &self.log).await;
        let found: BTreeMap<i64, Written> = found.into_iter().filter(|(offset, _)| *offset >= start).collect();
        assert!(found.iter().all(|(offset, record)| self.written.get(offset) == Some(record)), "nothing is made up");
        let there: BTreeMap<i64, Written> =
            self.written.range(start..).map(|(offset, record)| (*offset, record.clone())).collect();
        assert_eq!(latest(&found), latest(&there));
        assert!(headers.windows(2).all(|pair| pair[0].last_offset() < pair[1].base_offset));
        for time in [4_999_999, 5_000_300, 5_000_999, 5_001_000] {
            let first = found.iter().find(|(_, record)| record.2 >= time).map(|(offset, _)| *offset);
            let answer = self.log.offset_for_timestamp(Timestamp::new(time)).await.unwrap();
            assert_eq!(answer.map(|answer| answer.offset.get()), first, "at {time}");
        }
    }
}

#[test]
fn whatever_happens_the_log_agrees_with_what_was_written() {
    run(|io| async move {
        for seed in 0..12 {
            let mut chance = Chance(seed);
            let home = home();
            let retention = if seed % 2 == 0 { Duration::ZERO } else { Duration::from_secs(3600) };
            let config = LogConfig { delete_retention: retention, ..compacted() };
            let map_bytes_max = if seed % 3 == 0 { 400 } else { 1 << 20 };
            let cleaner = CleanerConfig { map_bytes_max, ..CleanerConfig::default() };
            let engine_config = EngineConfig { cleaner, ..EngineConfig::default() };
            let engine = open_engine(&io, home.path(), engine_config.clone()).await;
            let log = engine.open_log(name("table", 0), config.clone()).await.unwrap();
            let mut story = Story { engine, log, config, written: BTreeMap::new(), sequences: BTreeMap::new() };
            for _ in 0..120 {
                match chance.below(20) {
                    0 => {
                        story.engine.compact().await.unwrap();
                        story.check(&io).await;
                    }
                    1 => story.engine.checkpoint().await.unwrap(),
                    2 if seed % 4 == 1 => {
                        let end = story.log.offsets().high_watermark.offset().get() as u64;
                        let before = offset(chance.below(end / 4 + 1) as i64);
                        story.engine.delete_records_before(&story.log, before).await.unwrap();
                    }
                    3 => {
                        if chance.below(2) == 0 {
                            story.engine.close().await.unwrap();
                        }
                        let Story { engine, log, config, written, sequences } = story;
                        drop((engine, log));
                        settle(&io).await;
                        if chance.below(3) == 0 {
                            let checkpoint = home.path().join("heddle.checkpoint.0");
                            if chance.below(2) == 0 && checkpoint.exists() && seed % 4 != 1 {
                                std::fs::remove_file(checkpoint).unwrap();
                            }
                        }
                        let engine = open_engine(&io, home.path(), engine_config.clone()).await;
                        let log = engine.open_log(name("table", 0), config.clone()).await.unwrap();
                        log.set_high_watermark(log.offsets().committable_end);
                        story = Story { engine, log, config, written, sequences };
                        story.check(&io).await;
                    }
                    _ => story.write(&mut chance).await,
                }
            }
            story.engine.compact().await.unwrap();
            story.check(&io).await;
            story.engine.close().await.unwrap();
            verify(&io, home.path()).await;
        }
    });
}
