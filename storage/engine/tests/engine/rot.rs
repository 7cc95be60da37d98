//! What a medium loses without a word: found when it is read and by the scrub, never served, and no harm to the rest.

use std::path::Path;

use crate::harness::*;
use heddle_engine::{Engine, EngineConfig, Error, Log, LogConfig, ReadError};
use heddle_io::Io;
use heddle_io::sim::Host;

/// How fast the scrub is: one that can be timed, and one that nobody waits for.
const SLOWLY: u64 = 1000;
const AT_ONCE: u64 = 1 << 40;

/// A log of several segments with two batches each, after a restart: nothing of it is in memory.
async fn cold(io: &Io, path: &Path, scrub_bytes_per_second: u64) -> (Engine, Log) {
    let config = EngineConfig { scrub_bytes_per_second, ..EngineConfig::default() };
    let engine = open_engine(io, path, config.clone()).await;
    let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
    for _ in 0..7 {
        commit(&log, batch(1, 800)).await;
    }
    engine.close().await.unwrap();
    drop((engine, log));
    let engine = open_engine(io, path, config).await;
    let log = engine.open_log(name("orders", 0), small_segments()).await.unwrap();
    assert_eq!(log.segment_count(), 4);
    log.set_high_watermark(offset(7));
    (engine, log)
}

/// The log's second segment, with offsets 2 and 3.
fn second(host: &Host) -> std::path::PathBuf {
    let found = host.files().into_iter().find(|path| path.ends_with("00000000000000000002.log"));
    found.expect("the segment that begins at 2")
}

fn damage(error: &ReadError) -> (u64, i64) {
    match error {
        ReadError::Failed(Error::Damaged { path, position, offset, .. }) => {
            assert!(path.ends_with("00000000000000000002.log"), "{error}");
            (*position, offset.get())
        }
        other => panic!("not damage: {other}"),
    }
}

async fn assert_not_served(log: &Log) {
    let out = log.read(offset(0), EVERYTHING).await.unwrap();
    assert_eq!(out.next_offset, offset(2), "what lies before it is served");
    for from in [2, 3] {
        let (position, at) = damage(&log.read(offset(from), EVERYTHING).await.unwrap_err());
        assert!(position > 0 && at == 3, "{position} {at}");
    }
}

#[test]
fn rot_is_found_when_it_is_read_and_never_served() {
    simulate(5, |io, host| async move {
        let (engine, log) = cold(&io, Path::new("/data"), SLOWLY).await;
        host.flip_bit(second(&host), 1500, 3).unwrap();
        assert_not_served_once_read(&log).await;
        assert_eq!(log.read(offset(4), EVERYTHING).await.unwrap().next_offset, offset(7), "the rest is served");
        assert!(log.offline().is_none());
        commit(&log, batch(1, 100)).await;
        // Whoever gives the damaged records up reads on.
        engine.delete_records_before(&log, offset(4)).await.unwrap();
        assert_eq!(read_all(&io, &log).await.first().unwrap().0, 4);
    });
}

async fn assert_not_served_once_read(log: &Log) {
    assert_eq!(damage(&log.read(offset(3), EVERYTHING).await.unwrap_err()).1, 3);
    assert_not_served(log).await;
}

#[test]
fn the_scrub_finds_rot_slowly_and_takes_it_back_when_it_is_repaired() {
    simulate(5, |io, host| async move {
        let (engine, log) = cold(&io, Path::new("/data"), SLOWLY).await;
        host.flip_bit(second(&host), 1500, 3).unwrap();
        // The first look at the log's files, which is once.
        log.read(offset(4), EVERYTHING).await.unwrap();
        let started = io.now();
        engine.scrub_round().await;
        let seconds = io.now().since(started).as_secs();
        assert!((3..20).contains(&seconds), "{seconds} s for some kilobytes at one in a second");
        let reads = host.counters().reads;
        assert_eq!(damage(&log.read(offset(2), EVERYTHING).await.unwrap_err()).1, 3);
        assert!(host.counters().reads - reads < 3, "it is known already");
        assert_not_served(&log).await;
        host.flip_bit(second(&host), 1500, 3).unwrap();
        engine.scrub_round().await;
        assert_eq!(read_all(&io, &log).await.len(), 7);
    });
}

#[test]
fn the_upkeep_scrubs() {
    simulate(5, |io, host| async move {
        let (engine, log) = cold(&io, Path::new("/data"), SLOWLY).await;
        host.flip_bit(second(&host), 1500, 3).unwrap();
        let upkeep = io.spawn({
            let engine = engine.clone();
            async move { engine.maintain().await }
        });
        io.sleep(std::time::Duration::from_secs(600)).await;
        upkeep.cancel();
        let reads = host.counters().reads;
        assert!(log.read(offset(2), EVERYTHING).await.is_err());
        assert!(host.counters().reads - reads < 3, "it is known already");
    });
}

#[test]
fn the_scrub_reads_the_medium_of_a_real_disk() {
    run(|io| async move {
        let home = home();
        let (engine, log) = cold(&io, home.path(), AT_ONCE).await;
        engine.scrub_round().await;
        assert_eq!(read_all(&io, &log).await.len(), 7);
        rot(&files(home.path(), log.name(), ".log")[1]);
        engine.scrub_round().await;
        assert_not_served(&log).await;
    });
}

/// A segment of a real disk, damaged; everything of it is in the page cache.
fn rot(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[1500] ^= 8;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn pages_that_the_kernel_or_another_process_has_read_are_checked_too() {
    run(|io| async move {
        let home = home();
        let (_engine, log) = cold(&io, home.path(), SLOWLY).await;
        rot(&files(home.path(), log.name(), ".log")[1]);
        assert_not_served_once_read(&log).await;
    });
}

#[test]
fn what_the_page_cache_has_given_up_is_checked_again() {
    run(|io| async move {
        let home = home();
        let (_engine, log) = cold(&io, home.path(), SLOWLY).await;
        assert_eq!(read_all(&io, &log).await.len(), 7);
        let path = files(home.path(), log.name(), ".log").remove(1);
        rot(&path);
        let file = std::fs::File::open(&path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert_not_served_once_read(&log).await;
    });
}

#[test]
fn a_reader_waits_for_the_check_of_some_megabytes_only() {
    simulate(5, |io, host| async move {
        let config = LogConfig { segment_bytes: 16 << 20, ..LogConfig::default() };
        let open = async || {
            let engine = open_engine(&io, Path::new("/data"), EngineConfig::default()).await;
            let log = engine.open_log(name("orders", 0), config.clone()).await.unwrap();
            (engine, log)
        };
        let (engine, log) = open().await;
        for _ in 0..20 {
            commit(&log, batch(1, 900_000)).await;
        }
        engine.close().await.unwrap();
        drop((engine, log));
        let (_engine, log) = open().await;
        log.set_high_watermark(offset(20));
        let before = host.counters().bytes_read;
        let out = log.read(offset(0), EVERYTHING).await.unwrap();
        assert_eq!(out.next_offset, offset(5), "the first that reaches 4 MiB is the last");
        assert!(host.counters().bytes_read - before < 8 << 20, "and not much more is read");
        assert_eq!(read_all(&io, &log).await.len(), 20);
    });
}

#[test]
fn the_scrub_misses_a_file_and_makes_no_noise_of_a_log_that_is_deleted_under_it() {
    simulate(5, |io, host| async move {
        let (engine, log) = cold(&io, Path::new("/data"), SLOWLY).await;
        io.remove_file(&second(&host)).await.unwrap();
        engine.scrub_round().await;
        let (position, at) = damage(&log.read(offset(2), EVERYTHING).await.unwrap_err());
        assert_eq!((position, at), (0, 2));
        assert_eq!(log.read(offset(4), EVERYTHING).await.unwrap().next_offset, offset(7));
        let round = io.spawn({
            let engine = engine.clone();
            async move { engine.scrub_round().await }
        });
        io.sleep(std::time::Duration::from_millis(100)).await;
        engine.delete_log(log.name()).await.unwrap();
        drop(log);
        round.await;
        assert!(engine.logs().is_empty());
    });
}
