//! Reads of what only the disk has, beside appends that wait for the same disk: they make room, and get on.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use crate::harness::*;
use heddle_engine::{Engine, EngineConfig, Log, LogConfig};
use heddle_io::Io;
use heddle_io::sim::{Effect, Fault, OperationKind};

/// What a slow disk moves in a second: one read takes longer than most flushes.
const SLOW_DISK: u64 = 200 << 20;
/// Bytes of cold reads that may be in flight beside appends, and one read.
const WINDOW_MAX: u64 = 1 << 20;
const READ_BYTES: u64 = 128 << 10;
/// Between two appends.
const PACE: Duration = Duration::from_millis(10);
const BACKLOG_BATCHES: i64 = 200;

/// A log with a backlog of 40 MiB in ten segments, after a restart: little of it is in memory. And one to append to.
async fn backlog(io: &Io, path: &Path) -> (Engine, Log, Log) {
    let config = EngineConfig { tail_bytes_max: 1 << 20, ..EngineConfig::default() };
    let segments = LogConfig { segment_bytes: 4 << 20, ..LogConfig::default() };
    let engine = open_engine(io, path, config.clone()).await;
    let log = engine.open_log(name("backlog", 0), segments.clone()).await.unwrap();
    for _ in 0..BACKLOG_BATCHES {
        commit(&log, batch(10, 20_000)).await;
    }
    engine.close().await.unwrap();
    drop((engine, log));
    let engine = open_engine(io, path, config).await;
    let log = engine.open_log(name("backlog", 0), segments).await.unwrap();
    log.set_high_watermark(log.offsets().log_end.offset());
    let live = engine.open_log(name("live", 0), LogConfig::default()).await.unwrap();
    commit(&live, batch(1, 100)).await;
    // Appends were there until now, and are no more.
    io.sleep(Duration::from_secs(60)).await;
    (engine, log, live)
}

/// Durable appends, one each [`PACE`], until they are stopped: how long each took, from when it was due, ascending.
async fn appends(io: Io, log: Log, stopped: Rc<Cell<bool>>) -> Vec<Duration> {
    let (mut taken, mut due) = (Vec::new(), io.now());
    while !stopped.get() {
        io.sleep_until(due).await;
        commit(&log, batch(1, 4000)).await;
        taken.push(io.now().since(due));
        due = due + PACE;
    }
    taken.sort();
    taken
}

/// Reads all of a log, and takes none of the bytes: they would be read a second time, as the simulated disk has no page cache.
async fn drain(log: &Log) {
    let mut from = log.offsets().log_start.offset();
    while from < log.offsets().log_end.offset() {
        let out = log.read(from, EVERYTHING).await.unwrap();
        assert!(out.start_offset == from && out.next_offset > from);
        from = out.next_offset;
    }
}

#[test]
fn appends_beside_a_drain_take_hardly_longer_and_the_drain_ends() {
    simulate(7, |io, host| async move {
        let (_engine, log, live) = backlog(&io, Path::new("/data")).await;
        host.set_disk_bandwidth(Some(SLOW_DISK));
        let stopped = Rc::new(Cell::new(false));
        let alone = io.spawn(appends(io.clone(), live.clone(), Rc::clone(&stopped)));
        io.sleep(Duration::from_secs(3)).await;
        stopped.set(true);
        let alone = alone.await;

        let stopped = Rc::new(Cell::new(false));
        let beside = io.spawn(appends(io.clone(), live.clone(), Rc::clone(&stopped)));
        io.sleep(PACE).await;
        let (mut drains, begun) = (0, io.now());
        while io.now().since(begun) < Duration::from_secs(3) {
            drain(&log).await;
            drains += 1;
        }
        stopped.set(true);
        let beside = beside.await;
        let p99 = |taken: &[Duration]| taken[taken.len() * 99 / 100];
        assert!(beside.len() > 200, "{} appends", beside.len());
        assert!(p99(&beside) <= 2 * p99(&alone), "{:?} beside a drain, {:?} alone", p99(&beside), p99(&alone));
        // And not because the drain stands still: of 600 MiB it had at least a tenth.
        assert!(drains >= 2, "{drains} drains of 40 MiB in three seconds");
        let most = host.counters().reads_in_flight_bytes_max;
        assert!((READ_BYTES..=WINDOW_MAX + READ_BYTES).contains(&most), "{most} bytes of reads in flight");
    });
}

#[test]
fn a_drain_gets_on_while_a_flush_hangs() {
    simulate(7, |io, host| async move {
        let (_engine, log, live) = backlog(&io, Path::new("/data")).await;
        commit(&live, batch(1, 100)).await;
        host.plant(Fault::next(OperationKind::Flush, Effect::Hang(Duration::from_secs(30))));
        let begun = io.now();
        let hanging = io.spawn({
            let live = live.clone();
            async move { commit(&live, batch(1, 100)).await }
        });
        io.sleep(Duration::from_millis(20)).await;
        drain(&log).await;
        let taken = io.now().since(begun);
        assert!(taken < Duration::from_secs(5), "the drain took {taken:?}");
        assert!(!hanging.is_finished());
        hanging.await;
    });
}

#[test]
fn many_drains_at_once_share_what_may_be_in_flight() {
    simulate(7, |io, host| async move {
        let (_engine, log, live) = backlog(&io, Path::new("/data")).await;
        host.set_disk_bandwidth(Some(SLOW_DISK));
        let stopped = Rc::new(Cell::new(false));
        let appending = io.spawn(appends(io.clone(), live, Rc::clone(&stopped)));
        io.sleep(PACE).await;
        let drains: Vec<_> = (0..10)
            .map(|_| {
                let log = log.clone();
                io.spawn(async move { drain(&log).await })
            })
            .collect();
        for one in drains {
            one.await;
        }
        stopped.set(true);
        appending.await;
        let most = host.counters().reads_in_flight_bytes_max;
        // Headers of batches are read as they are needed.
        assert!(most <= WINDOW_MAX + READ_BYTES + 10 * (8 << 10), "{most} bytes of reads in flight");
    });
}
