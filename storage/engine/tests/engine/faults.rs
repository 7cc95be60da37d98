//! The faults of a disk, as a table: which operation meets what, who hears of it, what goes on, and what brings it back.
//!
//! For every row: nobody is acknowledged what is not on disk, the answer comes within a second, what is committed can be
//! read, the error names the file and what to do, and once the cause is gone appends go on, by themselves or after a
//! restart, with everything that was acknowledged.

use std::path::Path;
use std::time::Duration;

use crate::harness::*;
use heddle_engine::{AppendError, DeviceChoice, Engine, EngineConfig, Error, Log, LogConfig};
use heddle_io::Io;
use heddle_io::sim::{Effect, Fault, FaultModel, FlushScope, Host, OperationKind};

const EROFS: i32 = 30;
/// An append that goes beyond what the direct device has prepared.
const LARGE_BYTES: usize = 30_000;
/// An append that fits one segment and not two.
const FULL_BYTES: usize = 60_000;
/// How long the disk hangs.
const HANG: Duration = Duration::from_secs(30);

/// What an append becomes that meets the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// It is acknowledged.
    Acked,
    /// It is refused and its log is offline; the other logs go on.
    LogOffline,
    /// It is refused, and everything is offline.
    AllOffline,
}

/// What brings the log back once the cause is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Back {
    Itself,
    Restart,
}

struct Row {
    name: &'static str,
    on: OperationKind,
    effect: Effect,
    /// The operations that are hit are those on paths with this in them.
    path: &'static str,
    /// The append begins a new segment.
    rolls: bool,
    answer: Answer,
    back: Back,
}

fn table() -> Vec<Row> {
    use Answer::{Acked, AllOffline, LogOffline};
    use Back::{Itself, Restart};
    use OperationKind::{Flush, Metadata, SyncDirectory, Write};
    let row = |name, on, effect, answer, back| Row { name, on, effect, path: "", rolls: false, answer, back };
    let log_row = |name, on, effect, answer, back| Row { path: "orders-0", ..row(name, on, effect, answer, back) };
    let index_row = |name, effect| Row { path: "index", rolls: true, ..row(name, Write, effect, Acked, Itself) };
    let is_direct = crate::DEVICE == DeviceChoice::Direct;
    let allocated = if is_direct { LogOffline } else { Acked };
    vec![
        log_row("EIO on write", Write, Effect::Fail(EIO), LogOffline, Restart),
        log_row("ENOSPC on write", Write, Effect::Fail(ENOSPC), LogOffline, Itself),
        log_row("EROFS on write", Write, Effect::Fail(EROFS), LogOffline, Itself),
        log_row("short write", Write, Effect::Short(512), Acked, Itself),
        // One flush is for all logs, or each has its own: both fail the directory.
        row("EIO on flush", Flush, Effect::Fail(EIO), AllOffline, Restart),
        row("ENOSPC on flush", Flush, Effect::Fail(ENOSPC), AllOffline, Restart),
        row("EROFS on flush", Flush, Effect::Fail(EROFS), AllOffline, Restart),
        log_row("ENOSPC on allocation", Metadata, Effect::Fail(ENOSPC), allocated, Itself),
        Row { rolls: true, ..log_row("ENOSPC on a new segment", Metadata, Effect::Fail(ENOSPC), LogOffline, Itself) },
        Row { rolls: true, ..log_row("EIO on a new segment", Metadata, Effect::Fail(EIO), LogOffline, Restart) },
        Row { rolls: true, ..log_row("EIO on a new entry", SyncDirectory, Effect::Fail(EIO), AllOffline, Restart) },
        index_row("EIO on an index", Effect::Fail(EIO)),
        index_row("ENOSPC on an index", Effect::Fail(ENOSPC)),
    ]
}

/// Runs a story on simulated hosts, one for each kind of flush that the device knows.
fn simulate<F: Future<Output = ()> + 'static>(story: impl Fn(Io, Host) -> F) {
    let scopes = [FlushScope::File, FlushScope::Device];
    let scopes = if crate::DEVICE == DeviceChoice::Direct { &scopes[..] } else { &scopes[..1] };
    for flush in scopes {
        simulate_on(FaultModel { flush: *flush, ..FaultModel::default() }, 11, &story);
    }
}

/// Reads go to the disk: nothing is kept in memory for them.
fn config() -> EngineConfig {
    EngineConfig { tail_bytes_max: 0, ..EngineConfig::default() }
}

struct Logs {
    engine: Engine,
    orders: Log,
    others: Log,
}

async fn open(io: &Io) -> Logs {
    let engine = open_engine(io, Path::new("/data"), config()).await;
    let small = LogConfig { segment_bytes: 64 << 10, ..LogConfig::default() };
    let orders = engine.open_log(name("orders", 0), small).await.unwrap();
    let others = engine.open_log(name("others", 0), LogConfig::default()).await.unwrap();
    Logs { engine, orders, others }
}

/// Logs with two batches each: the second writes where the disk has prepared blocks, if it does.
async fn begin(io: &Io) -> Logs {
    let logs = open(io).await;
    for _ in 0..2 {
        commit(&logs.orders, batch(1, 100)).await;
        commit(&logs.others, batch(1, 100)).await;
    }
    logs
}

/// The same logs after a restart.
async fn again(io: &Io, logs: Logs) -> Logs {
    drop(logs);
    open(io).await
}

/// Appends and waits for the flush.
async fn durable(log: &Log, bytes: usize) -> Result<i64, Error> {
    match append(log, batch(1, bytes)).await {
        Ok(appended) => log.flushed(appended.last_offset).await.map(|()| {
            log.set_high_watermark(appended.last_offset.next());
            appended.base_offset.get()
        }),
        Err(AppendError::Offline(error)) => Err(error),
        Err(error) => panic!("refused: {error}"),
    }
}

fn assert_names_the_file(log: &Log, row: &str) {
    let said = log.offline().expect("it is offline").to_string();
    assert!(said.contains("/data/"), "{row}: {said}");
}

async fn play(io: Io, host: Host, row: Row) {
    let mut logs = begin(&io).await;
    host.plant(Fault::next(row.on, row.effect).on_path(row.path).for_ever());
    let bytes = if row.rolls { FULL_BYTES } else { LARGE_BYTES };
    if row.rolls {
        // Fills the segment; what is prepared behind it does not take the next one.
        host.clear_faults();
        commit(&logs.orders, batch(1, bytes)).await;
        host.plant(Fault::next(row.on, row.effect).on_path(row.path).for_ever());
    }
    let mut acked: Vec<i64> = read_all(&io, &logs.orders).await.into_iter().map(|(base, _)| base).collect();
    let outcome = soon(&io, durable(&logs.orders, bytes)).await;
    let others = soon(&io, durable(&logs.others, 100)).await;
    assert_eq!(outcome.is_ok(), row.answer == Answer::Acked, "{}: {outcome:?}", row.name);
    assert_eq!(others.is_ok(), row.answer != Answer::AllOffline, "{}: {others:?}", row.name);
    assert_eq!(logs.engine.data_dir().is_offline(), row.answer == Answer::AllOffline, "{}", row.name);
    acked.extend(outcome.ok());
    if row.answer != Answer::Acked {
        assert_names_the_file(&logs.orders, row.name);
        assert!(soon(&io, durable(&logs.orders, 100)).await.is_err(), "{}: not while it lasts", row.name);
    }
    let readable: Vec<i64> = soon(&io, read_all(&io, &logs.orders)).await.into_iter().map(|(base, _)| base).collect();
    assert!(readable.starts_with(&acked), "{}: reads go on: {readable:?} of {acked:?}", row.name);

    host.clear_faults();
    logs.engine.reopen_full_logs().await;
    assert_eq!(logs.orders.offline().is_none(), row.back == Back::Itself, "{}", row.name);
    if row.back == Back::Restart {
        assert!(durable(&logs.orders, 100).await.is_err(), "{}: what failed is never tried again", row.name);
        logs = again(&io, logs).await;
    }
    acked.push(soon(&io, durable(&logs.orders, 100)).await.unwrap());
    logs = again(&io, logs).await;
    let found: Vec<i64> = read_all(&io, &logs.orders).await.into_iter().map(|(base, _)| base).collect();
    assert!(acked.iter().all(|offset| found.contains(offset)), "{}: {acked:?} of {found:?}", row.name);
    logs.orders.check_invariants();
}

#[test]
fn every_fault_has_its_answer() {
    for index in 0..table().len() {
        simulate(|io, host| async move {
            let row = table().swap_remove(index);
            play(io, host, row).await;
        });
    }
}

#[test]
fn a_read_that_fails_fails_alone() {
    simulate(|io, host| async move {
        let logs = begin(&io).await;
        drop(logs);
        let logs = open(&io).await;
        host.plant(Fault::next(OperationKind::Read, Effect::Fail(EIO)).on_path(".log").for_ever());
        let read = soon(&io, logs.orders.read(offset(1), EVERYTHING)).await;
        let failed = match read {
            Err(error) => error.to_string(),
            Ok(out) => {
                let Some(heddle_engine::Piece::File { file, position, len }) = out.pieces.first() else {
                    panic!("nothing is in memory")
                };
                io.read_lease(file, *position, *len).await.unwrap_err().to_string()
            }
        };
        assert!(failed.contains("/data/orders-0"), "{failed}");
        assert!(logs.orders.offline().is_none());
        host.clear_faults();
        assert_eq!(read_all(&io, &logs.orders).await.len(), 2);
        soon(&io, durable(&logs.orders, 100)).await.unwrap();
    });
}

#[test]
fn a_file_system_that_became_read_only_is_read_and_then_written_again() {
    simulate(|io, host| async move {
        let logs = begin(&io).await;
        host.set_read_only(true);
        for log in [&logs.orders, &logs.others] {
            let error = soon(&io, durable(log, LARGE_BYTES)).await.unwrap_err();
            assert!(error.is_refusal(), "{error}");
            assert!(error.remedy().contains("read-only"));
            assert_eq!(soon(&io, read_all(&io, log)).await.len(), 2);
        }
        assert!(logs.engine.checkpoint().await.is_err());
        logs.engine.reopen_full_logs().await;
        assert!(soon(&io, durable(&logs.orders, 100)).await.is_err(), "it still is");
        host.set_read_only(false);
        logs.engine.reopen_full_logs().await;
        for log in [&logs.orders, &logs.others] {
            assert_eq!(soon(&io, durable(log, 100)).await.unwrap(), 2);
            log.check_invariants();
        }
        logs.engine.checkpoint().await.unwrap();
    });
}

#[test]
fn a_hanging_disk_holds_up_nobody_but_who_waits_for_it() {
    for hung in [OperationKind::Write, OperationKind::Flush] {
        simulate(move |io, host| async move {
            let logs = begin(&io).await;
            host.plant(Fault::next(hung, Effect::Hang(HANG)).on_path("orders-0"));
            let started = io.now();
            let late = append(&logs.orders, batch(1, LARGE_BYTES)).await.unwrap();
            io.sleep(Duration::from_millis(100)).await;
            // Its own readers, other logs' readers and writers.
            assert_eq!(soon(&io, read_all(&io, &logs.others)).await.len(), 2);
            let found = soon(&io, logs.orders.read(offset(0), limit(2, usize::MAX))).await.unwrap();
            assert_eq!(found.next_offset, offset(2));
            let other = append(&logs.others, batch(1, 100)).await.unwrap();
            soon(&io, logs.others.written(other.last_offset)).await.unwrap();
            soon(&io, logs.others.flushed(other.last_offset)).await.unwrap();
            assert!(io.now().since(started) < 3 * SOON);
            // Who waits for the disk is answered when the disk is, and not before.
            assert!(
                io.timeout(SOON, logs.orders.flushed(late.last_offset)).await.is_err(),
                "{hung:?}: not on disk yet"
            );
            logs.orders.flushed(late.last_offset).await.unwrap();
            assert!(io.now().since(started) >= HANG);
            assert!(logs.orders.offline().is_none());
        });
    }
}

#[test]
fn one_flush_that_hangs_delays_acks_and_nothing_else() {
    simulate(|io, host| async move {
        let logs = begin(&io).await;
        host.plant(Fault::next(OperationKind::Flush, Effect::Hang(HANG)));
        let started = io.now();
        let late = append(&logs.orders, batch(1, 100)).await.unwrap();
        io.sleep(Duration::from_millis(100)).await;
        let other = append(&logs.others, batch(1, 100)).await.unwrap();
        soon(&io, logs.others.written(other.last_offset)).await.unwrap();
        assert_eq!(soon(&io, read_all(&io, &logs.others)).await.len(), 3);
        logs.orders.flushed(late.last_offset).await.unwrap();
        assert!(io.now().since(started) >= HANG, "acknowledged when the disk has it");
        logs.others.flushed(other.last_offset).await.unwrap();
    });
}

#[test]
fn a_wall_clock_that_jumps_loses_nothing_young() {
    const DAY: i64 = 24 * 60 * 60 * 1000;
    simulate(|io, host| async move {
        let engine = open_engine(&io, Path::new("/data"), config()).await;
        let settings = LogConfig { segment_bytes: 2048, timestamp_after_max: None, ..LogConfig::default() };
        let orders = engine.open_log(name("orders", 0), settings).await.unwrap();
        let now = |io: &Io| batch_at(&[io.wall_clock(); 10], heddle_record::Compression::None);
        for jump in [0, -30 * DAY, 30 * DAY, 3 * DAY, -3 * DAY] {
            host.shift_wall_clock(jump);
            for _ in 0..8 {
                commit(&orders, now(&io)).await;
            }
            engine.apply_retention().await.unwrap();
            assert_eq!(orders.offsets().log_start.get(), 0, "a week is kept, whatever the clock does ({jump} ms)");
            orders.check_invariants();
        }
        assert!(orders.segment_count() > 2);
        drop((engine, orders));
        let engine = open_engine(&io, Path::new("/data"), config()).await;
        let orders = engine.open_log(name("orders", 0), LogConfig::default()).await.unwrap();
        assert_eq!(read_all(&io, &orders).await.len(), 40);
    });
}
