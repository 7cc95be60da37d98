//! A thousand logs on a simulated disk: what it takes to make, open, use and delete them, in operations, not in time.

use std::collections::VecDeque;
use std::future::Future;

use crate::harness::*;
use heddle_engine::{Engine, EngineConfig, Log, LogConfig};
use heddle_io::Io;
use heddle_io::sim::{FaultModel, Host, Metadata, Simulator};

const LOGS: i32 = 1_000;
/// Logs that are opened at the same time.
const TOGETHER: usize = 256;
/// Of so many logs one is in use.
const STRIDE: usize = 50;

/// What the disk was asked for since the last look.
struct Operations {
    host: Host,
    before: [u64; 5],
}

impl Operations {
    fn of(host: &Host) -> Operations {
        let mut operations = Operations { host: host.clone(), before: [0; 5] };
        operations.since();
        operations
    }

    /// Reads, writes, flushes, flushes of directories, others.
    fn since(&mut self) -> [u64; 5] {
        let now = self.host.counters();
        let now = [now.reads, now.writes, now.flushes, now.directory_syncs, now.metadata];
        let before = std::mem::replace(&mut self.before, now);
        std::array::from_fn(|index| now[index] - before[index])
    }
}

async fn open_all(io: &Io, engine: &Engine) -> Vec<Log> {
    let (mut opening, mut logs) = (VecDeque::new(), Vec::new());
    for partition in 0..LOGS {
        let engine = engine.clone();
        opening.push_back(
            io.spawn(async move { engine.open_log(name("wide", partition), LogConfig::default()).await.unwrap() }),
        );
        if opening.len() == TOGETHER {
            logs.push(opening.pop_front().unwrap().await);
        }
    }
    for log in opening {
        logs.push(log.await);
    }
    logs
}

async fn delete_all(io: &Io, engine: &Engine) {
    let mut deleting = VecDeque::new();
    for partition in 0..LOGS {
        let engine = engine.clone();
        deleting.push_back(io.spawn(async move { engine.delete_log(&name("wide", partition)).await.unwrap() }));
        if deleting.len() == TOGETHER {
            deleting.pop_front().unwrap().await;
        }
    }
    for deleted in deleting {
        deleted.await;
    }
}

/// One life of the host's engine, whose operations are counted.
fn live<F: Future<Output = ()> + 'static>(host: &Host, life: impl FnOnce(Io, Operations) -> F) {
    crate::harness::live(host, |io| life(io, Operations::of(host)));
}

fn config() -> EngineConfig {
    EngineConfig { open_files_max: 64, checkpoint_busy_for: std::time::Duration::ZERO, ..EngineConfig::default() }
}

#[test]
fn a_thousand_logs_cost_what_is_used_of_them() {
    let simulator = Simulator::new(11);
    let host = simulator.host("broker");
    let logs = LOGS as u64;
    let used = logs / STRIDE as u64;
    live(&host, |io, mut operations| async move {
        let engine = open_engine(&io, "/data".as_ref(), config()).await;
        operations.since();
        let all = open_all(&io, &engine).await;
        let [reads, writes, flushes, directory_syncs, others] = operations.since();
        assert_eq!((reads, writes, flushes), (0, 0, 0));
        assert!(directory_syncs < logs + logs / 8, "{directory_syncs}: the data directory is flushed for many at once");
        assert!(others <= 2 * logs, "{others}: a directory and a file each");
        assert_eq!(engine.open_files(), 0);
        for log in &all {
            commit(log, batch(1, 10)).await;
        }
        assert!(engine.open_files() <= 64, "{}", engine.open_files());
        engine.close().await.unwrap();
    });
    live(&host, |io, mut operations| async move {
        let engine = open_engine(&io, "/data".as_ref(), config()).await;
        let [reads, writes, ..] = operations.since();
        assert!(reads + writes < 10, "{reads} reads, {writes} writes");
        let all = open_all(&io, &engine).await;
        assert_eq!(operations.since(), [0; 5], "after a clean stop nothing is looked at");
        assert!(all.iter().all(|log| log.offsets().log_end.get() == 1));
        for log in all.iter().step_by(STRIDE) {
            commit(log, batch(1, 10)).await;
        }
        let [_, writes, flushes, ..] = operations.since();
        assert!(
            writes <= 2 * used && flushes <= 2 * used,
            "{writes} writes, {flushes} flushes: a note and a batch each"
        );
        // Power is cut.
    });
    live(&host, |io, mut operations| async move {
        let engine = open_engine(&io, "/data".as_ref(), config()).await;
        operations.since();
        let all = open_all(&io, &engine).await;
        let [reads, writes, flushes, directory_syncs, others] = operations.since();
        let sum = reads + writes + flushes + directory_syncs + others;
        assert!((used..20 * used).contains(&sum), "{sum}: only what was written to is looked at");
        for (number, log) in all.iter().enumerate() {
            let written = if number % STRIDE == 0 { 2 } else { 1 };
            assert_eq!(log.offsets().log_end.get(), written, "{}", log.name());
        }
        engine.checkpoint().await.unwrap();
        operations.since();
        engine.checkpoint().await.unwrap();
        assert_eq!(operations.since(), [0; 5], "nothing has changed since");
        delete_all(&io, &engine).await;
        assert!(engine.stored_logs().await.unwrap().is_empty());
        let [.., directory_syncs, _] = operations.since();
        assert!(directory_syncs < logs / 8, "{directory_syncs}: the data directory is flushed for many at once");
    });
}

/// A start after a cut at a moment at which all logs were being written to: a listing of the directory, an opening and a read
/// each, and few flushes for what was found in all of them. How much the log has, and whether its index has entries, is no
/// matter.
#[test]
fn logs_that_were_written_to_cost_three_operations_each() {
    let simulator = Simulator::new(12);
    let host = simulator.host("broker");
    host.set_fault_model(FaultModel { metadata: Metadata::Journaled, ..FaultModel::default() });
    let logs = LOGS as u64;
    live(&host, |io, _| async move {
        let engine = open_engine(&io, "/data".as_ref(), config()).await;
        let all = open_all(&io, &engine).await;
        for log in &all {
            // The second has an index entry.
            commit(log, batch(5, 1000)).await;
            commit(log, batch(1, 1000)).await;
        }
        io.sleep(std::time::Duration::from_secs(1)).await;
        engine.checkpoint().await.unwrap();
        for log in &all {
            commit(log, batch(1, 1000)).await;
        }
        // Power is cut.
    });
    live(&host, |io, mut operations| async move {
        let engine = open_engine(&io, "/data".as_ref(), config()).await;
        operations.since();
        let all = open_all(&io, &engine).await;
        assert!(all.iter().all(|log| log.offsets().flushed_end.get() == 7));
        let [reads, writes, flushes, directory_syncs, others] = operations.since();
        assert_eq!((reads, writes, directory_syncs, others), (logs, 0, 0, 2 * logs));
        assert!(flushes <= logs / 8, "{flushes}: one flush makes durable what was found in many");
        let read = all[0].read(offset(0), limit(7, 1)).await.unwrap();
        assert_eq!(offsets_of(&io, &read).await, [(0, 4)]);
    });
}

#[test]
fn damage_of_an_idle_log_is_found_when_it_is_used() {
    run(|io| async move {
        for kind in ["remove", "cut", "flip", "directory"] {
            let home = tempfile::tempdir().unwrap();
            {
                let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
                for _ in 0..10 {
                    commit(&log, batch(1, 300)).await;
                }
                engine.close().await.unwrap();
            }
            let segments = files(home.path(), &name("orders", 0), ".log");
            let (first, last) = (&segments[0], segments.last().unwrap());
            let mut bytes = std::fs::read(last).unwrap();
            match kind {
                "remove" => std::fs::remove_file(first).unwrap(),
                "cut" => std::fs::write(first, b"short").unwrap(),
                "flip" => {
                    *bytes.last_mut().unwrap() ^= 1;
                    std::fs::write(last, &bytes).unwrap();
                }
                _ => std::fs::remove_dir_all(last.parent().unwrap()).unwrap(),
            }
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let opened = engine.open_log(name("orders", 0), small_segments()).await;
            if kind == "directory" {
                assert!(is_damage(&opened.unwrap_err()), "records are gone, and nothing is made in their place");
                continue;
            }
            let log = opened.unwrap();
            assert!(log.read(offset(9), limit(10, 1000)).await.is_err(), "{kind}");
            assert!(log.offline().is_some(), "{kind}");
            assert!(append(&log, batch(1, 1)).await.is_err(), "{kind}");
        }
    });
}

#[test]
fn without_its_notes_a_checkpoint_is_believed_in_nothing() {
    run(|io| async move {
        for kind in ["removed", "torn", "flipped", "older checkpoint"] {
            let home = tempfile::tempdir().unwrap();
            let (notes, checkpoint) = (home.path().join("heddle.touched.0"), home.path().join("heddle.checkpoint.0"));
            let mut older = Vec::new();
            for round in 0..3 {
                let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
                commit(&log, batch(1, 300)).await;
                match round {
                    0 => {
                        engine.close().await.unwrap();
                        older = std::fs::read(&checkpoint).unwrap();
                    }
                    1 => engine.close().await.unwrap(),
                    // Killed: only the note says that there is more.
                    _ => {}
                }
            }
            let bytes = std::fs::read(&notes).unwrap();
            match kind {
                "removed" => std::fs::remove_file(&notes).unwrap(),
                "torn" => std::fs::write(&notes, &bytes[..40]).unwrap(),
                "flipped" => std::fs::write(&notes, bytes.iter().map(|byte| byte ^ 1).collect::<Vec<_>>()).unwrap(),
                _ => std::fs::write(&checkpoint, older).unwrap(),
            }
            // Twice: what a start finds does not make the next one believe.
            for _ in 0..2 {
                let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
                assert_eq!(log.offsets().log_end.get(), 3, "{kind}");
            }
        }
    });
}
