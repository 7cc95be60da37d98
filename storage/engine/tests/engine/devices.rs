//! A log whose device changes between two runs of the process, after a kill: every record that was acknowledged is there,
//! whichever device left what behind the batches of a segment that was sealed and not trimmed yet.

use std::path::{Path, PathBuf};

use crate::harness::*;
use heddle_engine::{DataDir, DeviceChoice, Engine, EngineConfig, Log, LogConfig, WantedIdentity};
use heddle_io::Io;
use heddle_io::sim::{Effect, Fault, Host, OperationKind};

const CHANGES: [(DeviceChoice, DeviceChoice); 4] = [
    (DeviceChoice::Direct, DeviceChoice::Buffered),
    (DeviceChoice::Direct, DeviceChoice::Direct),
    (DeviceChoice::Buffered, DeviceChoice::Direct),
    (DeviceChoice::Buffered, DeviceChoice::Buffered),
];
/// Far more batches than a test here has to append.
const BATCHES_MAX: usize = 100;

fn settings() -> LogConfig {
    LogConfig { segment_bytes: 200_000, ..LogConfig::default() }
}

async fn open(io: &Io, device: DeviceChoice) -> (Engine, Log) {
    settle(io).await;
    let dir = DataDir::open(io, Path::new("/data"), &WantedIdentity::default()).await.unwrap();
    let engine = Engine::open(io, dir, EngineConfig { device, ..EngineConfig::default() }).await.unwrap();
    let orders = engine.open_log(name("orders", 0), settings()).await.unwrap();
    (engine, orders)
}

/// The last segment's file.
fn last_segment(host: &Host) -> PathBuf {
    let mut logs: Vec<PathBuf> = host.files().into_iter().filter(|it| it.to_string_lossy().ends_with(".log")).collect();
    logs.sort();
    logs.pop().expect("the log has a segment")
}

/// Appends batches until `enough`.
async fn append_until(log: &Log, mut enough: impl FnMut() -> bool) {
    for _ in 0..BATCHES_MAX {
        if enough() {
            return;
        }
        commit(log, batch(1, 30_000)).await;
    }
    panic!("{BATCHES_MAX} batches are not enough");
}

/// Fills the active segment with so many batches and seals it with another. It is not trimmed, as if a kill had come before
/// that.
async fn seal_untrimmed(host: &Host, log: &Log, batches: usize) {
    for _ in 0..batches {
        commit(log, batch(1, 30_000)).await;
    }
    let sealed = last_segment(host);
    host.plant(Fault::next(OperationKind::Metadata, Effect::Fail(EIO)).on_path(sealed.to_str().unwrap()).for_ever());
    commit(log, batch(1, 30_000)).await;
    assert_ne!(last_segment(host), sealed, "it is sealed");
    commit(log, batch(1, 100)).await;
}

async fn assert_all_there(io: &Io, log: &Log, start: i64, end: i64) {
    let found: Vec<i64> = read_all(io, log).await.into_iter().map(|(base, _)| base).collect();
    assert_eq!(found, Vec::from_iter(start..end));
}

#[test]
fn what_a_sealed_segment_has_behind_its_batches_costs_no_record() {
    for (former, device) in CHANGES {
        simulate(3, |io, host| async move {
            let (engine, orders) = open(&io, former).await;
            commit(&orders, batch(1, 100)).await;
            seal_untrimmed(&host, &orders, 6).await;
            let end = orders.offsets().log_end.get();
            drop((engine, orders));
            host.clear_faults();
            for device in [device, former, device] {
                let (_engine, orders) = open(&io, device).await;
                assert_all_there(&io, &orders, 0, end).await;
            }
            let (_engine, orders) = open(&io, device).await;
            assert_eq!(commit(&orders, batch(1, 100)).await.base_offset.get(), end);
            assert_all_there(&io, &orders, 0, end + 1).await;
        });
    }
}

/// The file of a segment that retention deleted becomes the next one's, with the old batches in it.
#[test]
fn old_batches_in_a_file_that_is_used_again_cost_no_record() {
    for device in [DeviceChoice::Direct, DeviceChoice::Buffered] {
        simulate(4, |io, host| async move {
            let (engine, orders) = open(&io, DeviceChoice::Direct).await;
            for _ in 0..20 {
                commit(&orders, batch(1, 30_000)).await;
            }
            orders.set_config(LogConfig { retention_bytes: Some(250_000), retention_age: None, ..settings() });
            engine.apply_retention().await.unwrap();
            let is_kept = || host.files().iter().any(|path| path.ends_with("recycled.tmp"));
            assert!(is_kept(), "{:?}", host.files());
            orders.set_config(LogConfig { retention_age: None, ..settings() });
            append_until(&orders, || !is_kept()).await;
            // A batch of another size first: what follows in the file does not begin at its end.
            commit(&orders, batch(1, 1_000)).await;
            seal_untrimmed(&host, &orders, 5).await;
            let offsets = orders.offsets();
            drop((engine, orders));
            host.clear_faults();
            let (_engine, orders) = open(&io, device).await;
            assert_all_there(&io, &orders, offsets.log_start.get(), offsets.log_end.get()).await;
        });
    }
}
