//! A full disk: what frees space still works, with the reserve that was kept for it, and the rest goes on when there is room.

use std::path::Path;
use std::time::Duration;

use crate::harness::*;
use heddle_engine::{Engine, EngineConfig, Log, LogConfig};
use heddle_io::Io;
use heddle_io::sim::{FaultModel, Host, Metadata};

fn simulate<F: Future<Output = ()> + 'static>(story: impl FnOnce(Io, Host) -> F) {
    // The file systems that one keeps logs on commit the removal of names with any flush.
    simulate_on(FaultModel { metadata: Metadata::Journaled, ..FaultModel::default() }, 3, story);
}

struct Full {
    engine: Engine,
    metadata: Log,
    orders: Log,
}

fn has_reserve(host: &Host) -> bool {
    host.files().iter().any(|path| path.ends_with("heddle.reserve"))
}

/// A disk that has no page left but the reserve, and a log that was refused one.
async fn full(io: &Io, host: &Host) -> Full {
    let engine = open_engine(io, Path::new("/data"), EngineConfig::default()).await;
    let important = LogConfig { uses_reserve: true, ..LogConfig::default() };
    let metadata = engine.open_log(name("metadata", 0), important).await.unwrap();
    let ordinary = LogConfig { segment_bytes: 64 << 10, ..LogConfig::default() };
    let orders = engine.open_log(name("orders", 0), ordinary).await.unwrap();
    commit(&metadata, batch(1, 100)).await;
    for _ in 0..200 {
        commit(&orders, batch(1, 40_000)).await;
    }
    let upkeep = engine.clone();
    io.spawn(async move { upkeep.maintain().await }).detach();
    while !has_reserve(host) {
        io.sleep(Duration::from_millis(10)).await;
    }
    io.sleep(Duration::from_millis(100)).await;
    host.set_capacity(Some(host.used_bytes()));
    let full = Full { engine, metadata, orders };
    full.assert_refused().await;
    assert!(has_reserve(host), "not for those");
    full
}

impl Full {
    async fn assert_refused(&self) {
        match append(&self.orders, batch(1, 50_000)).await {
            Ok(appended) => assert!(self.orders.flushed(appended.last_offset).await.unwrap_err().is_no_space()),
            Err(error) => assert!(error.to_string().contains("pace") || error.to_string().contains("full"), "{error}"),
        }
        assert_eq!(self.orders.offsets().high_watermark.get(), 200, "what is committed stays");
    }

    /// The log takes appends within seconds, and the reserve is there again.
    async fn assert_goes_on(&self, io: &Io, host: &Host) {
        io.sleep(Duration::from_secs(5)).await;
        assert!(has_reserve(host), "made again");
        commit(&self.orders, batch(1, 1000)).await;
    }
}

#[test]
fn metadata_and_checkpoints_have_the_reserve_and_nobody_else() {
    simulate(|io, host| async move {
        let full = full(&io, &host).await;
        // A thousand small records of metadata, and the checkpoints that follow them.
        for _ in 0..100 {
            commit(&full.metadata, batch(10, 100)).await;
        }
        assert!(!has_reserve(&host));
        full.engine.checkpoint().await.unwrap();
        io.sleep(Duration::from_secs(5)).await;
        full.assert_refused().await;
        assert!(!has_reserve(&host), "there is no room for it");
        let used = host.used_bytes();
        full.assert_refused().await;
        assert!(host.used_bytes() <= used, "and ordinary logs do not take what is left of it");
        host.set_capacity(None);
        full.assert_goes_on(&io, &host).await;
    });
}

#[test]
fn deleting_a_log_makes_room() {
    simulate(|io, host| async move {
        let full = full(&io, &host).await;
        let spare = full.engine.open_log(name("spare", 0), LogConfig::default()).await.unwrap();
        let refused = append(&spare, batch(1, 50_000)).await.unwrap();
        assert!(spare.flushed(refused.last_offset).await.unwrap_err().is_no_space());
        commit(&full.metadata, batch(1, 200_000)).await;
        full.engine.delete_log(full.orders.name()).await.unwrap();
        io.sleep(Duration::from_secs(5)).await;
        assert!(has_reserve(&host));
        commit(&spare, batch(1, 50_000)).await;
    });
}

#[test]
fn deleting_records_makes_room() {
    simulate(|io, host| async move {
        let full = full(&io, &host).await;
        full.engine.delete_records_before(&full.orders, offset(150)).await.unwrap();
        full.assert_goes_on(&io, &host).await;
        assert_eq!(full.orders.offsets().log_start.get(), 150);
        full.orders.check_invariants();
    });
}

#[test]
fn retention_makes_room() {
    simulate(|io, host| async move {
        let full = full(&io, &host).await;
        full.orders.set_config(LogConfig { retention_bytes: Some(1 << 20), ..(*full.orders.config()).clone() });
        assert!(full.orders.offline().is_some());
        full.engine.apply_retention().await.unwrap();
        full.assert_goes_on(&io, &host).await;
        assert!(full.orders.offsets().log_start.get() > 100);
        full.orders.check_invariants();
    });
}
