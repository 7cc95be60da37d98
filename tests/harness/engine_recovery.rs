//! What must hold when an engine opens a disk that a crash has left.
//!
//! Owns the way from a disk to a verdict: recover, hold everything against the [`History`], recover again. Never repairs.

use std::collections::BTreeMap;
use std::rc::Rc;

use heddle_engine::{AppendOrigin, EngineConfig, Log, LogName};
use heddle_io::Io;
use heddle_io::sim::{CutPoint, DiskCopy, Host, Simulator};
use heddle_record::LeaderEpoch;

use crate::engine_life::{Life, Shared, open_engine, read_batches};
use crate::history::{Content, History, LogHistory};

/// What the logs of a data directory have.
pub type Contents = BTreeMap<LogName, Content>;

/// A broken promise, in words.
pub type Verdict<T = ()> = Result<T, String>;

/// Opens what the host's disk has and holds it against `history`.
///
/// # Errors
/// The first broken promise.
pub async fn recover(io: Io, history: History, config: EngineConfig) -> Verdict<Contents> {
    let engine = open_engine(&io, config).await.map_err(|error| format!("the engine does not open: {error}"))?;
    let stored = engine.stored_logs().await.map_err(|error| format!("the logs cannot be listed: {error}"))?;
    let mut opening = Vec::new();
    for name in stored {
        let known = history.logs.get(&name).ok_or_else(|| format!("{name}: nobody made this log"))?.clone();
        // All at once, as a broker does: what they find is flushed together.
        let opened = io.spawn({
            let (engine, name, config) = (engine.clone(), name.clone(), known.config.clone());
            async move { engine.open_log(name, config).await }
        });
        opening.push((name, known, opened));
    }
    let mut contents = Contents::new();
    for (name, known, opened) in opening {
        let opened = opened.await.map_err(|error| format!("{name}: it does not open: {error}"))?;
        let content = recover_log(&io, &opened, &known).await.map_err(|broken| format!("{name}: {broken}"))?;
        contents.insert(name, content);
    }
    for (name, known) in &history.logs {
        known.check(contents.get(name)).map_err(|broken| format!("{name}: {broken}"))?;
    }
    Ok(contents)
}

async fn recover_log(io: &Io, log: &Log, known: &LogHistory) -> Verdict<Content> {
    log.check_invariants();
    let offsets = log.offsets();
    if offsets.flushed_end.offset() != offsets.log_end.offset() {
        return Err(format!("a recovered log is flushed: {offsets:?}"));
    }
    log.set_high_watermark(offsets.committable_end);
    let (start, end) = (offsets.log_start.offset(), offsets.log_end.offset());
    let batches = read_batches(io, log, start, end).await.map_err(|refused| refused.0)?;
    probe_producers(log, known, &batches).await?;
    Ok(Content { start: start.get(), end: end.get(), batches, size: log.size_bytes() })
}

/// The last batch of each producer, sent again, is a duplicate with its own offsets.
async fn probe_producers(log: &Log, known: &LogHistory, batches: &[(i64, i64, u32)]) -> Verdict {
    let mut last_of = BTreeMap::new();
    for (base, ..) in batches {
        if let Some(given) = known.given.get(base)
            && let Some((producer, _)) = given.producer
        {
            last_of.insert(producer.get(), (*base, given));
        }
    }
    for (producer, (base, given)) in last_of {
        let epoch = log.latest_epoch().unwrap_or(LeaderEpoch::NONE);
        match log.append(given.bytes.clone(), AppendOrigin::Client, epoch).await {
            Ok(again) if again.duplicate && again.base_offset.get() == base => {}
            other => return Err(format!("producer {producer} repeats its batch at {base} and gets {other:?}")),
        }
    }
    Ok(())
}

/// A host with what a power cut left of `disk`, decided by `seed`.
pub fn host_after_cut(disk: &DiskCopy, seed: u64) -> (Simulator, Host) {
    let simulator = Simulator::new(seed);
    let host = simulator.host("broker");
    host.insert_after_power_cut(disk, seed);
    (simulator, host)
}

/// Recovers on a host that has just started, within the simulation.
///
/// # Errors
/// The first broken promise; that recovery never ends.
pub fn recover_on(host: &Host, history: &History, config: &EngineConfig) -> Verdict<Contents> {
    let io = host.start_core();
    let recovered = host.simulator().run(&io, recover(io.clone(), history.clone(), config.clone()));
    recovered.map_err(|stopped| format!("recovery: {stopped}"))?
}

/// Everything that must hold for one end of one crash:
///
/// - recovery keeps every promise, and a second one, after another power cut, finds the same;
/// - a recovery that is cut itself keeps every promise next time;
/// - the engine goes on from there, is cut again, and keeps the promises of both lives.
///
/// # Errors
/// The first broken promise.
pub fn examine(disk: &DiskCopy, seed: u64, history: &History, life: &Life) -> Verdict {
    let (_simulator, host) = host_after_cut(disk, seed);
    let first = recover_on(&host, history, &life.engine)?;
    let steps = host.counters().steps;
    let mut adopted = history.clone();
    for (name, content) in &first {
        adopted.log(name).adopt(content);
    }
    host.power_cut();
    host.restart();
    let second = recover_on(&host, &adopted, &life.engine).map_err(|broken| format!("second recovery: {broken}"))?;
    if first != second {
        return Err(format!("a second recovery finds something else: {first:?}, then {second:?}"));
    }
    cut_in_recovery(disk, seed, history, life, steps)?;
    host.power_cut();
    host.restart();
    live_on(&host, seed, adopted, life)
}

fn cut_in_recovery(disk: &DiskCopy, seed: u64, history: &History, life: &Life, steps: u64) -> Verdict {
    if steps == 0 {
        return Ok(());
    }
    let (simulator, host) = host_after_cut(disk, seed);
    host.cut_at(CutPoint::Step(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) % steps));
    let io = host.start_core();
    let cut = simulator.run(&io, recover(io.clone(), history.clone(), life.engine.clone()));
    if let Ok(finished) = cut {
        return Err(format!("recovery was to be cut and was not: {finished:?}"));
    }
    host.restart();
    recover_on(&host, history, &life.engine).map(|_| ()).map_err(|broken| format!("after a cut in recovery: {broken}"))
}

fn live_on(host: &Host, seed: u64, history: History, life: &Life) -> Verdict {
    let history: Shared = Rc::new(std::cell::RefCell::new(history));
    let next = life.next();
    host.cut_at(CutPoint::Step(seed.wrapping_mul(0xbf58_476d_1ce4_e5b9) % 400));
    let io = host.start_core();
    match host.simulator().run(&io, next.live(io.clone(), Rc::clone(&history))) {
        Ok(Err(refused)) => return Err(format!("the next life is refused: {refused:?}")),
        Ok(Ok(())) => host.power_cut(),
        Err(heddle_io::sim::Stopped::HostGone) => {}
        Err(stopped) => return Err(format!("the next life: {stopped}")),
    }
    host.restart();
    let history = history.borrow().clone();
    recover_on(host, &history, &life.engine).map(|_| ()).map_err(|broken| format!("after the next life: {broken}"))
}
