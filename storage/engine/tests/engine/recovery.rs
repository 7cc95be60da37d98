//! Logs that come back: after a clean stop, after a kill, with torn tails, damage, lost and stale checkpoints.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use crate::harness::*;
use heddle_engine::{EngineConfig, Error, Log, LogConfig};
use heddle_io::Io;
use heddle_io::sim::{Effect, Fault, FaultModel, Metadata, OperationKind, Simulator};
use heddle_record::{Compression, LeaderEpoch};

/// Appends `count` batches of one record.
async fn fill(log: &Log, count: usize) {
    for _ in 0..count {
        commit(log, batch(1, 300)).await;
    }
}

/// Opens the directory again and says what the log holds. Dropping an engine without closing it is a kill.
async fn reopened(io: &Io, path: &Path) -> Result<Vec<(i64, i64)>, Error> {
    let engine = open_engine(io, path, EngineConfig::default()).await;
    let log = engine.open_log(name("orders", 0), small_segments()).await?;
    log.check_invariants();
    Ok(read_all(io, &log).await)
}

fn singles(count: i64) -> Vec<(i64, i64)> {
    (0..count).map(|offset| (offset, offset)).collect()
}

fn overwrite(path: &Path, position: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(position)).unwrap();
    file.write_all(bytes).unwrap();
}

fn append_bytes(path: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

fn cut(path: &Path, len: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

fn last(path: &Path, suffix: &str) -> std::path::PathBuf {
    files(path, &name("orders", 0), suffix).pop().unwrap()
}

#[test]
fn a_kill_loses_nothing_that_was_acknowledged() {
    run(|io| async move {
        for checkpoint_after in [None, Some(0), Some(7), Some(20)] {
            let home = home();
            {
                let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
                for number in 0..20 {
                    if checkpoint_after == Some(number) {
                        engine.checkpoint().await.unwrap();
                    }
                    fill(&log, 1).await;
                }
                if checkpoint_after == Some(20) {
                    engine.checkpoint().await.unwrap();
                }
            }
            assert_eq!(reopened(&io, home.path()).await.unwrap(), singles(20), "{checkpoint_after:?}");
        }
    });
}

#[test]
fn a_clean_stop_leaves_nothing_to_scan_and_appends_go_on() {
    run(|io| async move {
        let home = home();
        for round in 0..4 {
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
            assert_eq!(read_all(&io, &log).await, singles(round * 5));
            fill(&log, 5).await;
            engine.close().await.unwrap();
            assert!(append(&log, batch(1, 1)).await.is_err(), "closed");
        }
        assert_eq!(reopened(&io, home.path()).await.unwrap(), singles(20));
    });
}

#[test]
fn torn_tails_are_cut_and_never_come_back() {
    run(|io| async move {
        // What may lie behind the end: part of a batch, zeros (case 40), garbage, and whole old batches (case 41).
        let old = batch(1, 300);
        let mut flipped = old.to_vec();
        flipped[100] ^= 0x10;
        let tails: [&[u8]; 6] = [&old[..200], &old[..20], &[0; 3000], &[0xff; 100], &flipped, &old];
        for tail in tails {
            let home = home();
            {
                let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
                fill(&log, 3).await;
                engine.checkpoint().await.unwrap();
                fill(&log, 5).await;
            }
            let file = last(home.path(), ".log");
            let before = batches_len(&file);
            cut(&file, before);
            append_bytes(&file, tail);
            assert_eq!(reopened(&io, home.path()).await.unwrap(), singles(8));
            let left = std::fs::read(&file).unwrap().split_off(before as usize);
            assert!(left.iter().all(|byte| *byte == 0), "the tail is gone from the file");
        }
    });
}

#[test]
fn the_first_batch_that_does_not_fit_ends_the_log() {
    run(|io| async move {
        let home = home();
        {
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
            fill(&log, 20).await;
        }
        // Nothing was checkpointed: a bad batch in the second of four segments may be torn.
        let segments = files(home.path(), &name("orders", 0), ".log");
        assert!(segments.len() >= 4);
        overwrite(&segments[1], 450, b"x");
        let found = reopened(&io, home.path()).await.unwrap();
        assert!(found.len() < 20 && found.len() > 5, "{found:?}");
        assert_eq!(found, singles(found.len() as i64));
        assert_eq!(files(home.path(), &name("orders", 0), ".log").len(), 2, "later segments are gone");
        assert_eq!(reopened(&io, home.path()).await.unwrap(), found, "and stay gone");
    });
}

#[test]
fn damage_below_the_recovery_point_is_no_torn_tail() {
    run(|io| async move {
        for kind in ["flip", "cut", "remove sealed", "cut sealed", "zero"] {
            let home = home();
            {
                let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
                fill(&log, 10).await;
                engine.checkpoint().await.unwrap();
            }
            let segments = files(home.path(), &name("orders", 0), ".log");
            let (first, last) = (&segments[0], segments.last().unwrap());
            let len = batches_len(last);
            match kind {
                "flip" => overwrite(last, len - 10, b"x"),
                "cut" => cut(last, len - 1),
                "remove sealed" => std::fs::remove_file(first).unwrap(),
                "cut sealed" => cut(first, 100),
                _ => overwrite(last, 0, &vec![0; len as usize]),
            }
            let error = reopened(&io, home.path()).await.unwrap_err();
            assert!(is_damage(&error), "{kind}: {error}");
            let error = reopened(&io, home.path()).await.unwrap_err();
            assert!(is_damage(&error), "the files are untouched; {kind}: {error}");
        }
    });
}

#[test]
fn a_lost_checkpoint_costs_time_but_no_records() {
    run(|io| async move {
        for kind in ["removed", "torn", "flipped", "empty", "other version"] {
            let home = home();
            {
                let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
                append(&log, idempotent(5, 0, 0, 2)).await.unwrap();
                fill(&log, 10).await;
                engine.close().await.unwrap();
            }
            let checkpoint = home.path().join("heddle.checkpoint.0");
            let mut bytes = std::fs::read(&checkpoint).unwrap();
            match kind {
                "removed" => std::fs::remove_file(&checkpoint).unwrap(),
                "torn" => std::fs::write(&checkpoint, &bytes[..bytes.len() / 2]).unwrap(),
                "flipped" => {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                    std::fs::write(&checkpoint, &bytes).unwrap();
                }
                "empty" => std::fs::write(&checkpoint, []).unwrap(),
                _ => {
                    bytes[8] = 99;
                    std::fs::write(&checkpoint, &bytes).unwrap();
                }
            }
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
            assert_eq!(read_all(&io, &log).await.len(), 11, "{kind}");
            assert!(append(&log, idempotent(5, 0, 0, 2)).await.unwrap().duplicate, "{kind}: producers are rebuilt");
            assert_eq!(log.latest_epoch(), Some(LeaderEpoch::new(0)));
            log.check_invariants();
        }
    });
}

#[test]
fn without_its_checkpoint_interior_damage_is_refused() {
    run(|io| async move {
        let home = home();
        {
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
            fill(&log, 20).await;
            engine.close().await.unwrap();
        }
        std::fs::write(home.path().join("heddle.checkpoint.0"), b"rot").unwrap();
        let segments = files(home.path(), &name("orders", 0), ".log");
        overwrite(&segments[1], 450, b"x");
        assert!(is_damage(&reopened(&io, home.path()).await.unwrap_err()));
        assert_eq!(files(home.path(), &name("orders", 0), ".log").len(), segments.len());
    });
}

#[test]
fn producers_survive_a_kill_by_checkpoint_and_by_replay() {
    run(|io| async move {
        // Cases 29 and 55: the snapshot with what was replayed gives the table that a full replay gives.
        for checkpoint_after in [None, Some(3), Some(6)] {
            let home = home();
            {
                let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
                for number in 0..6 {
                    if checkpoint_after == Some(number) {
                        engine.checkpoint().await.unwrap();
                    }
                    commit(&log, idempotent(5, 1, number * 2, 2)).await;
                }
                engine.checkpoint().await.unwrap();
            }
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
            for number in 1..6 {
                let again = append(&log, idempotent(5, 1, number * 2, 2)).await.unwrap();
                assert!(again.duplicate);
                assert_eq!(again.base_offset, offset(i64::from(number) * 2));
            }
            assert!(append(&log, idempotent(5, 1, 0, 2)).await.is_err(), "only the last five are known");
            assert!(append(&log, idempotent(5, 0, 0, 2)).await.is_err(), "the old epoch is fenced");
            assert!(!append(&log, idempotent(5, 1, 12, 2)).await.unwrap().duplicate);
        }
    });
}

#[test]
fn cores_come_and_go() {
    run(|io| async move {
        let home = home();
        let names: Vec<_> = (0..6).map(|partition| name("orders", partition)).collect();
        for (round, cores) in [2, 1, 2, 3, 1].into_iter().enumerate() {
            let expected = round as i64;
            settle(&io).await;
            let dir = heddle_engine::DataDir::open(&io, home.path(), &Default::default()).await.unwrap();
            let mut engines = Vec::new();
            for core in 0..cores {
                let config = EngineConfig { core, cores, ..EngineConfig::default() };
                engines.push(heddle_engine::Engine::open(&io, dir.clone(), config).await.unwrap());
            }
            for (number, log_name) in names.iter().enumerate() {
                let engine = &engines[(number + round) % cores];
                let log = engine.open_log(log_name.clone(), small_segments()).await.unwrap();
                assert_eq!(log.offsets().log_end.get(), expected, "round {round}");
                commit(&log, idempotent(1, 0, expected as i32, 1)).await;
                assert!(append(&log, idempotent(1, 0, expected as i32, 1)).await.unwrap().duplicate);
                // Some cores are killed before they have written a checkpoint.
                if number % 2 == 0 {
                    engine.checkpoint().await.unwrap();
                }
            }
            if round == 2 {
                for engine in &engines {
                    engine.close().await.unwrap();
                }
                assert!(home.path().join("heddle.checkpoint.1").exists());
            }
        }
    });
}

#[test]
fn checkpoints_of_cores_that_are_gone_go_too() {
    run(|io| async move {
        let home = home();
        {
            let dir = heddle_engine::DataDir::open(&io, home.path(), &Default::default()).await.unwrap();
            for core in 0..3 {
                let config = EngineConfig { core, cores: 3, ..EngineConfig::default() };
                let engine = heddle_engine::Engine::open(&io, dir.clone(), config).await.unwrap();
                let log = engine.open_log(name("orders", core as i32), small_segments()).await.unwrap();
                fill(&log, 3).await;
                engine.close().await.unwrap();
            }
        }
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
        fill(&log, 1).await;
        engine.checkpoint().await.unwrap();
        assert!(!home.path().join("heddle.checkpoint.2").exists());
        drop((log, engine));
        // What no core had open was carried on.
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 2), small_segments()).await.unwrap();
        assert_eq!(read_all(&io, &log).await, singles(3));
        let path = last_of(home.path(), 2);
        drop((log, engine));
        overwrite(&path, path.metadata().unwrap().len() - 10, b"x");
        let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
        let log = engine.open_log(name("orders", 2), small_segments()).await.unwrap();
        let appended = append(&log, batch(1, 1)).await;
        assert!(appended.is_err() || log.flush().await.is_err(), "its recovery point is still known");
        assert!(log.offline().is_some());
    });
}

fn last_of(path: &Path, partition: i32) -> std::path::PathBuf {
    files(path, &name("orders", partition), ".log").pop().unwrap()
}

#[test]
fn torn_indexes_are_written_again() {
    run(|io| async move {
        for kind in ["removed", "torn", "garbage", "zeros", "misleading"] {
            let home = home();
            let config = LogConfig { segment_bytes: 20_000, index_interval_bytes: 256, ..LogConfig::default() };
            {
                let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                let log = engine.open_log(name("orders", 0), config.clone()).await.unwrap();
                fill(&log, 150).await;
                engine.close().await.unwrap();
            }
            for suffix in [".index", ".timeindex"] {
                for path in files(home.path(), &name("orders", 0), suffix) {
                    let len = path.metadata().unwrap().len() as usize;
                    match kind {
                        "removed" => std::fs::remove_file(&path).unwrap(),
                        "torn" => {
                            OpenOptions::new().write(true).open(&path).unwrap().set_len(len as u64 / 2 + 1).unwrap()
                        }
                        "garbage" => std::fs::write(&path, vec![0x5a; len]).unwrap(),
                        "zeros" => std::fs::write(&path, vec![0; len]).unwrap(),
                        // Ascending, plausible, and wrong.
                        _ => std::fs::write(&path, misleading(len)).unwrap(),
                    }
                }
            }
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("orders", 0), config).await.unwrap();
            for from in [0, 1, 40, 77, 149] {
                let out = log.read(offset(from), limit(150, 1)).await.unwrap();
                assert_eq!(offsets_of(&io, &out).await, [(from, from)], "{kind}");
            }
            assert!(log.offline().is_none());
            let found = log.offset_for_timestamp(heddle_record::Timestamp::new(1000)).await.unwrap().unwrap();
            assert_eq!(found.offset, offset(0), "{kind}");
        }
    });
}

/// A start believes what a checkpoint says of the index files of a segment that goes on. Before they count as complete, they are
/// looked at.
#[test]
fn an_index_that_a_power_cut_has_torn_is_whole_when_its_segment_is_sealed() {
    run(|io| async move {
        for kind in ["sound", "zeros", "torn"] {
            let home = home();
            let config = LogConfig { segment_bytes: 20_000, index_interval_bytes: 256, ..LogConfig::default() };
            let first = |suffix| files(home.path(), &name("orders", 0), suffix)[0].clone();
            {
                let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
                let log = engine.open_log(name("orders", 0), config.clone()).await.unwrap();
                fill(&log, 50).await;
                engine.checkpoint().await.unwrap();
                fill(&log, 5).await;
            }
            for path in [first(".index"), first(".timeindex")] {
                let mut bytes = std::fs::read(&path).unwrap();
                assert!(bytes.len() >= 12);
                match kind {
                    "sound" => continue,
                    "zeros" => bytes.fill(0),
                    _ => bytes.truncate(4),
                }
                std::fs::write(&path, bytes).unwrap();
            }
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("orders", 0), config).await.unwrap();
            let mut count = 55;
            while log.segment_count() == 1 {
                fill(&log, 1).await;
                count += 1;
            }
            assert_eq!(read_all(&io, &log).await, singles(count));
            engine.close().await.unwrap();
            let positions = batch_positions(&std::fs::read(first(".log")).unwrap());
            let index = std::fs::read(first(".index")).unwrap();
            let entries = heddle_engine::index::decode_offset_index(&index, offset(0));
            assert!(8 * entries.len() == index.len() && entries.len() > 20, "{kind}: {} entries", entries.len());
            for entry in entries {
                let number = entry.last_offset.get() as usize;
                assert_eq!(positions[number], entry.position as usize, "{kind}: of batch {number}");
            }
            let times = std::fs::read(first(".timeindex")).unwrap();
            assert_eq!(12 * heddle_engine::index::decode_time_index(&times, offset(0)).len(), times.len(), "{kind}");
        }
    });
}

/// Where each batch of a segment starts.
fn batch_positions(segment: &[u8]) -> Vec<usize> {
    let (mut at, mut positions) = (0, Vec::new());
    while let Some(batch) = segment.get(at..).filter(|rest| !rest.is_empty()) {
        positions.push(at);
        at += heddle_record::RecordBatch::peek(batch).unwrap().len();
    }
    positions
}

fn misleading(len: usize) -> Vec<u8> {
    (1..=len as u32 / 8)
        .flat_map(|n| [(n).to_be_bytes(), (n * 100).to_be_bytes()].concat())
        .chain(vec![0; len % 8])
        .collect()
}

/// A kill comes between a log's directory and its name on the disk. The next start finds the log in the page cache: what is
/// acknowledged then must not go with the directory.
#[test]
fn a_log_whose_making_a_kill_has_interrupted_is_durable_once_it_is_open() {
    for seed in 0..20 {
        let host = Simulator::new(seed).host("broker");
        host.set_fault_model(FaultModel { metadata: Metadata::OnlySynced, ..FaultModel::default() });
        let (disk, io) = (host.clone(), host.start_core());
        let core = io.clone();
        let killed = async move {
            let engine = open_engine(&io, Path::new("/data"), EngineConfig::default()).await;
            // First the names in the log's directory are made durable, then its own.
            disk.plant(Fault::next(OperationKind::SyncDirectory, Effect::Hang(Duration::from_secs(60))).after(1));
            let making = engine.open_log(name("orders", 0), small_segments());
            assert!(io.timeout(Duration::from_secs(1), making).await.is_err(), "it hangs");
        };
        host.simulator().run(&core, killed).unwrap();
        host.kill();
        live(&host, |io| async move {
            let engine = open_engine(&io, Path::new("/data"), EngineConfig::default()).await;
            fill(&engine.open_log(name("orders", 0), small_segments()).await.unwrap(), 3).await;
        });
        live(&host, |io| async move {
            assert_eq!(reopened(&io, Path::new("/data")).await.unwrap(), singles(3), "seed {seed}");
        });
    }
}

#[test]
fn foreign_and_leftover_files_do_no_harm() {
    run(|io| async move {
        // Case 46.
        let home = home();
        {
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
            fill(&log, 3).await;
        }
        let directory = home.path().join(name("orders", 0).directory().unwrap());
        std::fs::write(directory.join("README"), b"not ours").unwrap();
        std::fs::write(directory.join("00000000000000000900.index"), b"leftover").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", directory.join("00000000000000000700.log")).unwrap();
        let deleted = home.path().join(format!("{}.deleted", name("gone", 0).directory().unwrap()));
        std::fs::create_dir(&deleted).unwrap();
        std::fs::write(deleted.join("00000000000000000000.log"), b"old").unwrap();
        std::fs::write(home.path().join("heddle.checkpoint.0.tmp"), b"unfinished").unwrap();
        assert_eq!(reopened(&io, home.path()).await.unwrap(), singles(3));
        assert!(!deleted.exists() && !home.path().join("heddle.checkpoint.0.tmp").exists());
        assert!(directory.join("README").exists());
        assert!(!directory.join("00000000000000000900.index").exists());
    });
}

#[test]
fn compressed_batches_are_not_opened_by_recovery() {
    run(|io| async move {
        let home = home();
        {
            let engine = open_engine(&io, home.path(), EngineConfig::default()).await;
            let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
            for codec in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
                commit(&log, batch_at(&[1, 2, 3], codec)).await;
            }
        }
        assert_eq!(reopened(&io, home.path()).await.unwrap(), [(0, 2), (3, 5), (6, 8), (9, 11)]);
    });
}
