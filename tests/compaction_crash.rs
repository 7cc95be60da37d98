//! Compaction against power loss: a story of keyed records, tombstones and passes is cut at every step of its disk, on both
//! log devices. Whatever is left of the disk, no live record may be lost, no deleted key may come back, nothing may appear
//! twice or at another offset, and producers go on where they were. An engine that swaps segments without writing that down
//! first must be caught.
//!
//! `HEDDLE_CRASH_SEEDS=n` cuts n stories of each kind; a failure names the seed, the step and the end that repeat it.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use heddle_engine::{
    AppendOrigin, DataDir, DeviceChoice, Engine, EngineConfig, Log, LogName, PlantedBug, WantedIdentity,
};
use heddle_io::sim::{CutPoint, DeviceCache, DiskCopy, FaultModel, FlushScope, Host, Metadata, Simulator, Stopped};
use heddle_io::{Io, Lease};
use heddle_record::{LeaderEpoch, LogId, Offset, PartitionIndex, TopicId};
use heddle_tests::engine_recovery::Verdict;
use heddle_tests::table_life::{Row, batch, check_repeat, check_rows, compacted, rows, rows_by_chance};

/// Keys of the table: few, so that every pass has something to remove.
const KEYS: u64 = 5;

const DIRECT: FaultModel = FaultModel {
    metadata: Metadata::OnlySynced,
    flush: FlushScope::File,
    survival: None,
    direct: true,
    cache: DeviceCache::Volatile,
};
const DIRECT_JOURNALED: FaultModel = FaultModel { metadata: Metadata::Journaled, flush: FlushScope::Device, ..DIRECT };
const BUFFERED: FaultModel = FaultModel { direct: false, ..DIRECT };
const BUFFERED_JOURNALED: FaultModel = FaultModel { metadata: Metadata::Journaled, ..BUFFERED };

/// What the outside has seen.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Every record that got an offset.
    given: BTreeMap<i64, Row>,
    /// Everything below was acknowledged.
    acknowledged: i64,
    /// The next sequence of the producer, and its last batch.
    sequence: i32,
    last_batch: Option<(i64, Lease)>,
}

/// What a log has: rows by offset, and where it ends.
type Content = (BTreeMap<i64, Row>, i64);

fn name() -> LogName {
    LogName { topic: "table".into(), id: LogId { topic: TopicId::new([5; 16]), partition: PartitionIndex::new(0) } }
}

async fn open(io: &Io, config: &EngineConfig) -> Verdict<(Engine, Log)> {
    let text = |error: heddle_engine::Error| error.to_string();
    let dir = DataDir::open(io, Path::new("/data"), &WantedIdentity::default()).await.map_err(text)?;
    let engine = Engine::open(io, dir, config.clone()).await.map_err(text)?;
    let log = engine.open_log(name(), compacted()).await.map_err(text)?;
    log.check_invariants();
    log.set_high_watermark(log.offsets().committable_end);
    Ok((engine, log))
}

/// One life: rows, passes over them, checkpoints in between.
struct Life {
    io: Io,
    seen: Rc<RefCell<Seen>>,
    config: EngineConfig,
    rounds: u64,
}

impl Life {
    async fn live(self) -> Verdict {
        let (engine, log) = open(&self.io, &self.config).await?;
        let reader = self.io.spawn(read_along(self.io.clone(), log.clone()));
        for round in 0..self.rounds {
            for _ in 0..6 {
                self.append(&log).await?;
            }
            if round % 3 == 1 {
                engine.checkpoint().await.map_err(|error| error.to_string())?;
            }
            // The last pass is under way while more is appended.
            let compacting = self.io.spawn({
                let engine = engine.clone();
                async move { engine.compact().await }
            });
            self.append(&log).await?;
            compacting.await.map_err(|error| error.to_string())?;
            log.check_invariants();
        }
        reader.cancel();
        engine.close().await.map_err(|error| error.to_string())
    }

    async fn append(&self, log: &Log) -> Verdict {
        let (sequence, epoch) = (self.seen.borrow().sequence, LeaderEpoch::new(0));
        let rows = rows_by_chance(&self.io, KEYS);
        let batch = batch(sequence, &rows);
        let appended = log.append(batch.clone(), AppendOrigin::Client, epoch).await;
        let appended = appended.map_err(|error| error.to_string())?;
        {
            let mut seen = self.seen.borrow_mut();
            seen.sequence += rows.len() as i32;
            seen.last_batch = Some((appended.base_offset.get(), batch));
            seen.given.extend((appended.base_offset.get()..).zip(rows));
        }
        log.flushed(appended.last_offset).await.map_err(|error| error.to_string())?;
        log.set_high_watermark(appended.last_offset.next());
        self.seen.borrow_mut().acknowledged = appended.last_offset.get() + 1;
        Ok(())
    }
}

/// Reads from everywhere while segments are replaced.
async fn read_along(io: Io, log: Log) {
    for round in 0_i64.. {
        let end = log.offsets().high_watermark.offset();
        let from = Offset::new(end.get() * (round % 7) / 7);
        if let Err(error) = rows(&io, &log, from, end).await
            && log.offline().is_none()
        {
            panic!("a read from {from}: {error}");
        }
        io.sleep(Duration::from_micros(300)).await;
    }
}

/// Opens what is there and holds it against what was seen. With `compact` it is compacted first.
async fn recover(io: Io, seen: Seen, config: EngineConfig, compact: bool) -> Verdict<Content> {
    let (engine, log) = open(&io, &config).await?;
    if compact {
        engine.compact().await.map_err(|error| error.to_string())?;
        log.check_invariants();
    }
    let (start, end) = (log.offsets().log_start.offset(), log.offsets().log_end.offset());
    if start != Offset::ZERO || end.get() < seen.acknowledged {
        return Err(format!("{start}..{end}, {} was acknowledged", seen.acknowledged));
    }
    let found = rows(&io, &log, start, end).await?;
    check_rows(&found, &seen.given, 0..end.get())?;
    if let Some((base, batch)) = seen.last_batch.filter(|(base, _)| *base < end.get()) {
        check_repeat(&log, batch, LeaderEpoch::new(0), base).await?;
    }
    Ok((found, end.get()))
}

fn run<T>(host: &Host, future: impl Future<Output = Verdict<T>> + 'static, io: &Io) -> Verdict<T>
where
    T: 'static,
{
    host.simulator().run(io, future).map_err(|stopped| stopped.to_string())?
}

/// One kind of story.
#[derive(Clone)]
struct Story {
    seed: u64,
    model: FaultModel,
    config: EngineConfig,
    rounds: u64,
}

impl Story {
    fn new(seed: u64, model: FaultModel) -> Story {
        let device = if model.direct { DeviceChoice::Direct } else { DeviceChoice::Buffered };
        let config = EngineConfig { device, checkpoint_busy_for: Duration::ZERO, ..EngineConfig::default() };
        Story { seed, model, config, rounds: 4 }
    }

    /// Tells it up to `step`: what was seen, what is left of the disk, how many steps there were.
    fn tell(&self, step: Option<u64>) -> (Seen, DiskCopy, u64) {
        let simulator = Simulator::new(self.seed);
        let host = simulator.host("broker");
        host.set_fault_model(self.model);
        if let Some(step) = step {
            host.cut_at(CutPoint::Step(step));
        }
        let seen = Rc::new(RefCell::new(Seen::default()));
        let io = host.start_core();
        let life = Life { io: io.clone(), seen: Rc::clone(&seen), config: self.config.clone(), rounds: self.rounds };
        match simulator.run(&io, life.live()) {
            Ok(Ok(())) | Err(Stopped::HostGone) => {}
            Ok(Err(refused)) => panic!("seed {} step {step:?}: the engine refuses: {refused}", self.seed),
            Err(stopped) => panic!("seed {} step {step:?}: {stopped}", self.seed),
        }
        let disk = if host.is_up() { host.copy_disk() } else { host.disk_at_cut().expect("it was cut as planned") };
        let seen = seen.borrow().clone();
        (seen, disk, host.counters().steps)
    }

    /// Cuts it at every `stride`th step and looks at `ends` ends of each; how many that were.
    fn cut_everywhere(&self, stride: usize, ends: u64) -> Verdict<u64> {
        let (_, _, steps) = self.tell(None);
        let mut looked_at = 0;
        for step in (0..=steps).step_by(stride) {
            let (seen, disk, _) = self.tell(Some(step));
            for end in 0..ends {
                let verdict = self.examine(&disk, self.seed ^ (step * ends + end) << 8, &seen);
                verdict.map_err(|broken| format!("seed {} step {step} end {end}: {broken}", self.seed))?;
                looked_at += 1;
            }
        }
        Ok(looked_at)
    }

    /// A start finds everything; so does one after a cut in that start; so does one that compacts, and the one after.
    fn examine(&self, disk: &DiskCopy, seed: u64, seen: &Seen) -> Verdict {
        let host_after_cut = || {
            let host = Simulator::new(seed).host("broker");
            host.insert_after_power_cut(disk, seed);
            host
        };
        let start = |host: &Host, compact| {
            let io = host.start_core();
            run(host, recover(io.clone(), seen.clone(), self.config.clone(), compact), &io)
        };
        let host = host_after_cut();
        let first = start(&host, false)?;
        let steps = host.counters().steps;
        host.power_cut();
        host.restart();
        let second = start(&host, false).map_err(|broken| format!("the second start: {broken}"))?;
        if first != second {
            return Err(format!("a second start finds {second:?}, the first {first:?}"));
        }
        host.power_cut();
        host.restart();
        start(&host, true).map_err(|broken| format!("compacted: {broken}"))?;
        host.power_cut();
        host.restart();
        start(&host, false).map_err(|broken| format!("after it was compacted: {broken}"))?;

        let host = host_after_cut();
        host.cut_at(CutPoint::Step(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) % steps.max(1)));
        let io = host.start_core();
        // It is cut somewhere, or over before.
        let _ = host.simulator().run(&io, recover(io.clone(), seen.clone(), self.config.clone(), false));
        if host.is_up() {
            host.power_cut();
        }
        host.restart();
        start(&host, false).map(|_| ()).map_err(|broken| format!("after a cut in the start: {broken}"))
    }
}

fn stories() -> u64 {
    std::env::var("HEDDLE_CRASH_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(1)
}

#[expect(clippy::print_stdout, reason = "how much was looked at is worth a line under --nocapture")]
fn no_cut_breaks_a_promise(model: FaultModel) {
    for seed in 0..stories() {
        match Story::new(seed, model).cut_everywhere(1, 2) {
            Ok(looked_at) => println!("seed {seed}: {looked_at} ends"),
            Err(broken) => panic!("{broken}"),
        }
    }
}

#[test]
fn no_cut_breaks_a_promise_on_the_direct_device() {
    // Case 32.
    no_cut_breaks_a_promise(DIRECT);
}

#[test]
fn no_cut_breaks_a_promise_on_the_direct_device_of_a_journal() {
    no_cut_breaks_a_promise(DIRECT_JOURNALED);
}

#[test]
fn no_cut_breaks_a_promise_on_the_page_cache() {
    no_cut_breaks_a_promise(BUFFERED);
}

#[test]
fn no_cut_breaks_a_promise_on_the_page_cache_of_a_journal() {
    no_cut_breaks_a_promise(BUFFERED_JOURNALED);
}

#[test]
fn segments_are_rewritten_at_all() {
    let (seen, disk, _) = Story::new(0, BUFFERED).tell(None);
    let host = Simulator::new(1).host("broker");
    host.insert_after_power_cut(&disk, 1);
    let io = host.start_core();
    let config = Story::new(0, BUFFERED).config;
    let (found, end) = run(&host, recover(io.clone(), seen.clone(), config, false), &io).expect("it opens");
    assert!(found.len() + 10 < seen.given.len(), "{} of {} records are left", found.len(), seen.given.len());
    assert_eq!(end, seen.acknowledged);
}

#[test]
fn a_swap_that_nothing_tells_of_is_caught() {
    let caught = (0..10).find_map(|seed| {
        let mut story = Story::new(seed, DIRECT);
        story.config.planted_bug = PlantedBug::SwapWithoutManifest;
        story.cut_everywhere(3, 2).err()
    });
    caught.expect("it is caught");
}

/// Simulated time that a pass takes, and the bytes that it read and wrote.
fn pass_at(rate: Option<u64>) -> (Duration, u64) {
    let simulator = Simulator::new(3);
    let host = simulator.host("broker");
    host.set_fault_model(BUFFERED);
    let io = host.start_core();
    let mut config = Story::new(0, BUFFERED).config;
    config.cleaner.bytes_per_second = rate;
    let future = {
        let io = io.clone();
        async move {
            let (engine, log) = open(&io, &config).await?;
            let life = Life { io: io.clone(), seen: Rc::default(), config, rounds: 1 };
            for _ in 0..80 {
                life.append(&log).await?;
            }
            engine.checkpoint().await.map_err(|error| error.to_string())?;
            let begun = io.now();
            let done = engine.compact().await.map_err(|error| error.to_string())?;
            Ok((io.now().since(begun), done.bytes_read + done.bytes_written))
        }
    };
    run(&host, future, &io).expect("it is compacted")
}

#[test]
fn a_pass_keeps_to_its_rate() {
    let (fast, bytes) = pass_at(None);
    let rate = 20_000;
    let (slow, same_bytes) = pass_at(Some(rate));
    assert_eq!(bytes, same_bytes);
    let least = Duration::from_millis(bytes * 1000 / rate);
    assert!(slow >= least.mul_f64(0.9) && fast * 4 < slow, "{bytes} bytes at {rate} in {slow:?}, else {fast:?}");
}
