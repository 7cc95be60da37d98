//! The small files beside the logs, on a disk that fails: checkpoints, the notes of what was written to, indexes, the reserve.
//!
//! None of them holds a record, so a write that fails costs no ack; a flush that fails says that the disk loses what it is
//! given, whatever file that was, and takes everything offline.

use std::path::Path;

use crate::harness::*;
use heddle_engine::{Engine, EngineConfig, Log, LogConfig};
use heddle_io::Io;
use heddle_io::sim::{Effect, Fault, OperationKind};

/// What a checkpoint becomes that meets the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It is written.
    Written,
    /// It is not, and everything else goes on.
    Missed,
    /// It is not, and nothing is acknowledged any more.
    AllOffline,
}

const CHECKPOINTS: [(&str, OperationKind, &str, Outcome); 8] = [
    ("EIO on a write", OperationKind::Write, "heddle.checkpoint", Outcome::Missed),
    ("EIO on its file", OperationKind::Metadata, "heddle.checkpoint", Outcome::Missed),
    ("EIO on its flush", OperationKind::Flush, "heddle.checkpoint", Outcome::AllOffline),
    ("EIO on its entry", OperationKind::SyncDirectory, "/data", Outcome::AllOffline),
    ("EIO on the notes", OperationKind::Write, "heddle.touched", Outcome::Written),
    ("EIO on a flush of the notes", OperationKind::Flush, "heddle.touched", Outcome::Written),
    ("EIO on an index", OperationKind::Write, ".index", Outcome::Written),
    ("EIO on the file of an index", OperationKind::Metadata, ".timeindex", Outcome::Written),
];

async fn open(io: &Io) -> (Engine, Log) {
    let engine = open_engine(io, Path::new("/data"), EngineConfig::default()).await;
    let orders = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
    (engine, orders)
}

/// Appends and waits for the flush; whether it is acknowledged, within a second.
async fn is_acked(io: &Io, log: &Log) -> bool {
    let durable = async {
        let Ok(appended) = append(log, batch(1, 500)).await else { return false };
        let flushed = log.flushed(appended.last_offset).await.is_ok();
        if flushed {
            log.set_high_watermark(appended.last_offset.next());
        }
        flushed
    };
    soon(io, durable).await
}

async fn bases(io: &Io, log: &Log) -> Vec<i64> {
    soon(io, read_all(io, log)).await.into_iter().map(|(base, _)| base).collect()
}

#[test]
fn a_checkpoint_that_the_disk_refuses_costs_no_ack() {
    for (row, on, path, outcome) in CHECKPOINTS {
        simulate(5, |io, host| async move {
            let (engine, orders) = open(&io).await;
            for _ in 0..7 {
                assert!(is_acked(&io, &orders).await);
            }
            engine.checkpoint().await.unwrap();
            assert!(is_acked(&io, &orders).await);
            host.plant(Fault::next(on, Effect::Fail(EIO)).on_path(path).for_ever());
            let written = soon(&io, engine.checkpoint()).await;
            assert_eq!(written.is_ok(), outcome == Outcome::Written, "{row}: {written:?}");
            assert_eq!(engine.data_dir().is_offline(), outcome == Outcome::AllOffline, "{row}");
            if let Err(error) = written {
                assert!(error.to_string().contains("/data"), "{row}: it names the file: {error}");
            }
            let acked = if outcome == Outcome::AllOffline { 8 } else { 9 };
            assert_eq!(is_acked(&io, &orders).await, acked == 9, "{row}");
            assert_eq!(bases(&io, &orders).await, Vec::from_iter(0..acked), "{row}: reads go on");

            let flushes = host.counters().flushes;
            host.clear_faults();
            let again = soon(&io, engine.checkpoint()).await;
            assert_eq!(again.is_ok(), outcome != Outcome::AllOffline, "{row}: {again:?}");
            if outcome == Outcome::AllOffline {
                assert_eq!(host.counters().flushes, flushes, "{row}: no flush is tried again");
                assert!(!is_acked(&io, &orders).await, "{row}");
            }
            drop((engine, orders));
            let (_engine, orders) = open(&io).await;
            assert!(bases(&io, &orders).await.starts_with(&Vec::from_iter(0..acked)), "{row}: all that was acked");
            assert!(is_acked(&io, &orders).await, "{row}");
        });
    }
}

/// Before the first write to a log since its checkpoint there is a note of it: without the note nothing is written.
#[test]
fn a_note_that_the_disk_refuses_refuses_the_append() {
    for (on, all_offline) in [(OperationKind::Write, false), (OperationKind::Flush, true)] {
        simulate(5, |io, host| async move {
            let two = async || {
                let (engine, orders) = open(&io).await;
                let others = engine.open_log(name("others", 0), LogConfig::default()).await.unwrap();
                (engine, orders, others)
            };
            let (engine, orders, others) = two().await;
            assert!(is_acked(&io, &orders).await && is_acked(&io, &others).await);
            // Both are idle in the checkpoint of a clean stop; the first append to one is noted.
            engine.close().await.unwrap();
            drop((engine, orders, others));
            let (engine, orders, others) = two().await;
            assert!(is_acked(&io, &others).await);
            host.plant(Fault::next(on, Effect::Fail(EIO)).on_path("heddle.touched").for_ever());
            assert!(!is_acked(&io, &orders).await);
            let said = orders.offline().unwrap().to_string();
            assert!(said.contains("heddle.touched"), "{said}");
            assert_eq!(engine.data_dir().is_offline(), all_offline);
            assert_eq!(is_acked(&io, &others).await, !all_offline, "it is noted already");
            host.clear_faults();
            assert!(!is_acked(&io, &orders).await, "what failed is never tried again");
            drop((engine, orders, others));
            let (_engine, orders) = open(&io).await;
            assert!(is_acked(&io, &orders).await);
        });
    }
}

/// The first checkpoint after the notes were lost makes them count again: it flushes them.
#[test]
fn a_flush_of_renewed_notes_that_fails_takes_everything_offline() {
    simulate(5, |io, host| async move {
        let (engine, orders) = open(&io).await;
        assert!(is_acked(&io, &orders).await);
        engine.close().await.unwrap();
        drop((engine, orders));
        settle(&io).await;
        let notes = host.files().into_iter().find(|path| path.to_string_lossy().contains("heddle.touched")).unwrap();
        host.flip_bit(&notes, 3, 0).unwrap();
        let (engine, orders) = open(&io).await;
        assert!(is_acked(&io, &orders).await);
        host.plant(Fault::next(OperationKind::Flush, Effect::Fail(EIO)).on_path("heddle.touched"));
        assert!(soon(&io, engine.checkpoint()).await.is_err());
        assert!(engine.data_dir().is_offline());
        assert!(!is_acked(&io, &orders).await);
    });
}

/// Segments whose removal waits for a checkpoint go once there is one, although the log's start does not move again.
#[test]
fn retention_ends_what_a_failed_checkpoint_left() {
    simulate(5, |io, host| async move {
        let (engine, orders) = open(&io).await;
        for _ in 0..20 {
            assert!(is_acked(&io, &orders).await);
        }
        orders.set_config(LogConfig { retention_bytes: Some(4096), ..small_segments() });
        let segments = || host.files().iter().filter(|path| path.extension().is_some_and(|it| it == "log")).count();
        let before = segments();
        host.plant(Fault::next(OperationKind::Write, Effect::Fail(EIO)).on_path("heddle.checkpoint"));
        assert!(soon(&io, engine.apply_retention()).await.is_err());
        assert!(!engine.data_dir().is_offline());
        assert!(segments() >= before, "nothing goes before that is durable");
        soon(&io, engine.apply_retention()).await.unwrap();
        assert!(segments() < before / 2, "{} of {before} are left", segments());
        assert!(is_acked(&io, &orders).await);
        orders.check_invariants();
    });
}

/// A flush of the space that is kept for hard times is a flush as any other.
#[test]
fn a_flush_of_the_reserve_that_fails_takes_everything_offline() {
    simulate(5, |io, host| async move {
        host.plant(Fault::next(OperationKind::Flush, Effect::Fail(EIO)).on_path("heddle.reserve"));
        let (engine, orders) = open(&io).await;
        let upkeep = engine.clone();
        io.spawn(async move { upkeep.maintain().await }).detach();
        io.sleep(5 * SOON).await;
        assert!(engine.data_dir().is_offline());
        assert!(!is_acked(&io, &orders).await);
    });
}
