//! Disks that fail or are full, on the simulator: who is told, what goes on, what never happens again.

use std::path::Path;

use crate::harness::*;
use heddle_engine::{AppendError, Engine, EngineConfig, Log, LogConfig};
use heddle_io::Io;
use heddle_io::sim::{Effect, Fault, OperationKind};

async fn two_logs(io: &Io) -> (Engine, Log, Log) {
    let engine = open_engine(io, Path::new("/data"), EngineConfig::default()).await;
    let orders = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
    let others = engine.open_log(name("others", 0), LogConfig::default()).await.unwrap();
    commit(&orders, batch(1, 100)).await;
    commit(&others, batch(1, 100)).await;
    (engine, orders, others)
}

#[test]
fn a_failed_write_takes_its_log_offline_and_no_other() {
    simulate(7, |io, host| async move {
        let (engine, orders, others) = two_logs(&io).await;
        host.plant(Fault::next(OperationKind::Write, Effect::Fail(EIO)).on_path("orders-0"));
        let appended = append(&orders, batch(1, 100)).await.unwrap();
        assert!(orders.flushed(appended.last_offset).await.is_err());
        assert!(orders.written(appended.last_offset).await.is_err());
        // Never tried again: the disk is fine by now, the log is not.
        assert!(matches!(append(&orders, batch(1, 100)).await, Err(AppendError::Offline(_))));
        engine.reopen_full_logs().await;
        assert!(orders.offline().is_some());
        assert_eq!(read_all(&io, &orders).await, [(0, 0)], "what is committed can be read");
        assert!(!engine.data_dir().is_offline());
        commit(&others, batch(1, 100)).await;
    });
}

#[test]
fn a_failed_flush_takes_everything_offline_on_every_core() {
    simulate(7, |io, host| async move {
        // Case 26.
        settle(&io).await;
        let dir = heddle_engine::DataDir::open(&io, Path::new("/data"), &Default::default()).await.unwrap();
        let mut logs = Vec::new();
        for core in 0..2 {
            let config = EngineConfig { core, cores: 2, ..EngineConfig::default() };
            let engine = Engine::open(&io, dir.clone(), config).await.unwrap();
            let log = engine.open_log(name("orders", core as i32), LogConfig::default()).await.unwrap();
            commit(&log, batch(1, 100)).await;
            logs.push((engine, log));
        }
        host.plant(Fault::next(OperationKind::Flush, Effect::Fail(EIO)).on_path("orders-0"));
        let appended = append(&logs[0].1, batch(1, 100)).await.unwrap();
        let on_other_core = append(&logs[1].1, batch(1, 100)).await.unwrap();
        assert!(logs[0].1.flushed(appended.last_offset).await.is_err());
        assert!(dir.is_offline());
        let ends: Vec<i64> = logs.iter().map(|(_, log)| log.offsets().flushed_end.get()).collect();
        assert_eq!(ends[0], 1, "what the failed flush covered is not flushed");
        // The other core acknowledges nothing that was not acknowledged before.
        if ends[1] == 1 {
            assert!(logs[1].1.flushed(on_other_core.last_offset).await.is_err());
        }
        for (engine, log) in &logs {
            assert!(matches!(append(log, batch(1, 100)).await, Err(AppendError::Offline(_))));
            assert!(engine.checkpoint().await.is_err(), "nothing is certain any more");
            assert!(engine.open_log(name("new", 9), LogConfig::default()).await.is_err());
        }
    });
}

#[test]
fn a_full_disk_refuses_at_once_and_goes_on_when_there_is_room() {
    simulate(7, |io, host| async move {
        // Case 43.
        let (engine, orders, _others) = two_logs(&io).await;
        append(&orders, idempotent(5, 0, 0, 1)).await.unwrap();
        orders.flush().await.unwrap();
        orders.set_high_watermark(offset(2));
        host.set_capacity(Some(host.used_bytes() + 4096));
        let mut sequence = 1;
        let end = loop {
            let appended = append(&orders, idempotent(5, 0, sequence, 50)).await.unwrap();
            if orders.flushed(appended.last_offset).await.is_err() {
                break appended.base_offset;
            }
            orders.set_high_watermark(appended.last_offset.next());
            sequence += 50;
        };
        assert!(matches!(append(&orders, idempotent(5, 0, sequence, 50)).await, Err(AppendError::Offline(_))));
        assert_eq!(read_all(&io, &orders).await.last().unwrap().1 + 1, end.get(), "reads go on");
        // Still full: it may try, and is refused again.
        engine.reopen_full_logs().await;
        if let Ok(appended) = append(&orders, idempotent(5, 0, sequence, 50)).await {
            assert!(orders.flushed(appended.last_offset).await.is_err());
        }
        host.set_capacity(None);
        engine.reopen_full_logs().await;
        orders.check_invariants();
        assert_eq!(orders.offsets().high_watermark.offset(), end);
        let appended = append(&orders, idempotent(5, 0, sequence, 50)).await.unwrap();
        assert_eq!((appended.base_offset, appended.duplicate), (end, false));
        orders.flushed(appended.last_offset).await.unwrap();
        assert!(append(&orders, idempotent(5, 0, sequence, 50)).await.unwrap().duplicate);
        orders.check_invariants();
    });
}

#[test]
fn the_upkeep_brings_a_full_log_back() {
    simulate(7, |io, host| async move {
        let (engine, orders, _others) = two_logs(&io).await;
        let upkeep = engine.clone();
        io.spawn(async move { upkeep.maintain().await }).detach();
        host.set_capacity(Some(host.used_bytes()));
        let appended = append(&orders, batch(1, 100_000)).await.unwrap();
        assert!(orders.flushed(appended.last_offset).await.is_err());
        host.set_capacity(None);
        while orders.offline().is_some() {
            orders.changed().wait().await;
        }
        commit(&orders, batch(1, 5000)).await;
    });
}

#[test]
fn a_checkpoint_that_meets_a_full_disk_leaves_the_former_one() {
    simulate(7, |io, host| async move {
        let (engine, orders, others) = two_logs(&io).await;
        engine.checkpoint().await.unwrap();
        commit(&orders, batch(1, 100)).await;
        host.set_capacity(Some(host.used_bytes()));
        assert!(engine.checkpoint().await.is_err());
        assert!(!engine.data_dir().is_offline());
        host.set_capacity(None);
        engine.checkpoint().await.unwrap();
        drop((engine, orders, others));
        let engine = open_engine(&io, Path::new("/data"), EngineConfig::default()).await;
        let orders = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        assert_eq!(read_all(&io, &orders).await, [(0, 0), (1, 1)]);
    });
}
