//! The engine against power loss: a life of an engine is cut at every step of its disk, and whatever is left of the disk
//! must keep every promise that was made. An engine with a planted bug must be caught by the same checks.
//!
//! `HEDDLE_CRASH_SEEDS=n` cuts n times as many stories; a failure names the seed and the step that repeat it.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::rc::Rc;

use heddle_engine::{DeviceChoice, EngineConfig, PlantedBug};
use heddle_io::sim::{
    CutPoint, DeviceCache, DiskCopy, Effect, Fault, FaultModel, FlushScope, Metadata, OperationKind, Simulator,
};
use heddle_tests::engine_life::Life;
use heddle_tests::engine_recovery::{Verdict, examine};
use heddle_tests::history::History;

const STRICT: FaultModel = FaultModel {
    metadata: Metadata::OnlySynced,
    flush: FlushScope::File,
    survival: None,
    direct: true,
    cache: DeviceCache::Volatile,
};
const JOURNALED: FaultModel = FaultModel { metadata: Metadata::Journaled, ..STRICT };

/// One story: a seed, a disk, a life, perhaps a fault.
#[derive(Clone)]
struct Story {
    seed: u64,
    model: FaultModel,
    life: Life,
    fault: Option<Fault>,
}

/// How a story ended.
struct Ending {
    history: History,
    /// The disk at the moment of the cut.
    disk: DiskCopy,
    /// Steps that the disk took.
    steps: u64,
    /// What the engine refused, if it did.
    refused: Option<String>,
}

impl Story {
    fn new(seed: u64, model: FaultModel) -> Story {
        Story { seed, model, life: Life::first(), fault: None }
    }

    fn with_bug(mut self, bug: PlantedBug) -> Story {
        self.life.engine.planted_bug = bug;
        self
    }

    /// Tells the story up to `step`, or to its end.
    fn tell(&self, step: Option<u64>) -> Ending {
        let simulator = Simulator::new(self.seed);
        let host = simulator.host("broker");
        host.set_fault_model(self.model);
        if let Some(fault) = &self.fault {
            host.plant(fault.clone());
        }
        if let Some(step) = step {
            host.cut_at(CutPoint::Step(step));
        }
        let history = Rc::new(RefCell::new(History::default()));
        let io = host.start_core();
        let lived = simulator.run(&io, self.life.clone().live(io.clone(), Rc::clone(&history)));
        let refused = match lived {
            Ok(Err(refused)) => Some(refused.0),
            Ok(Ok(())) | Err(heddle_io::sim::Stopped::HostGone) => None,
            Err(stopped) => panic!("seed {} step {step:?}: {stopped}", self.seed),
        };
        let disk = if host.is_up() { host.copy_disk() } else { host.disk_at_cut().expect("it was cut as planned") };
        let history = history.borrow().clone();
        Ending { history, disk, steps: host.counters().steps, refused }
    }

    /// Cuts the story at every `stride`th step, examines `ends` ends of each cut, and answers the first broken promise.
    fn cut_everywhere(&self, stride: usize, ends: u64) -> Verdict<u64> {
        let whole = self.tell(None);
        let mut examined = 0;
        for step in (0..=whole.steps).step_by(stride) {
            self.cut_at(step, ends)?;
            examined += ends;
        }
        Ok(examined)
    }

    /// Cuts the story at one step, or at its end, and examines `ends` ends.
    fn cut_at(&self, step: u64, ends: u64) -> Verdict {
        let ending = self.tell(Some(step));
        for end in 0..ends {
            let seed = self.seed.wrapping_mul(1_000_003) ^ (step * ends + end);
            let verdict = examine(&ending.disk, seed, &ending.history, &self.life);
            verdict.map_err(|broken| format!("seed {} step {step} end {end}: {broken}", self.seed))?;
        }
        Ok(())
    }
}

/// How many stories to cut: one, or what the environment says.
fn stories() -> u64 {
    std::env::var("HEDDLE_CRASH_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(1)
}

/// A seed and a step to look at alone, `HEDDLE_CRASH_AT=seed,step`.
fn only() -> Option<(u64, u64)> {
    let at = std::env::var("HEDDLE_CRASH_AT").ok()?;
    let (seed, step) = at.split_once(',').expect("HEDDLE_CRASH_AT is seed,step");
    Some((seed.parse().expect("a seed"), step.parse().expect("a step")))
}

#[expect(clippy::print_stdout, reason = "how much was examined is worth a line under --nocapture")]
fn no_cut_breaks_a_promise(model: FaultModel) {
    if let Some((seed, step)) = only() {
        let verdict = Story::new(seed, model).cut_at(step, 2);
        return verdict.unwrap_or_else(|broken| panic!("{broken}"));
    }
    for seed in 0..stories() {
        match Story::new(seed, model).cut_everywhere(1, 2) {
            Ok(examined) => println!("seed {seed}: {examined} ends examined"),
            Err(broken) => panic!("{broken}"),
        }
    }
}

#[test]
fn no_cut_breaks_a_promise_where_only_the_synced_is_sure() {
    no_cut_breaks_a_promise(STRICT);
}

#[test]
fn no_cut_breaks_a_promise_on_a_journal() {
    no_cut_breaks_a_promise(JOURNALED);
}

/// The first broken promise of an engine with a bug, over a few seeds.
fn catch(bug: PlantedBug, fault: Option<Fault>) -> Option<String> {
    catch_in(Life::first(), bug, fault)
}

fn catch_in(life: Life, bug: PlantedBug, fault: Option<Fault>) -> Option<String> {
    (0..20).find_map(|seed| {
        let mut story = Story { life: life.clone(), ..Story::new(seed, STRICT) }.with_bug(bug);
        story.fault = fault.clone();
        story.cut_everywhere(3, 3).err()
    })
}

/// Batches that fit into each other's places, and no epoch that tells the lives apart.
fn alike(device: DeviceChoice) -> Life {
    let life = Life::first();
    Life { alike: true, engine: EngineConfig { device, ..life.engine }, ..life }
}

#[test]
fn no_cut_breaks_a_promise_where_what_was_cut_off_would_fit() {
    for device in [DeviceChoice::Direct, DeviceChoice::Buffered] {
        let story = Story { life: alike(device), ..Story::new(0, STRICT) };
        story.cut_everywhere(2, 2).unwrap_or_else(|broken| panic!("{device:?}: {broken}"));
    }
}

#[test]
fn an_acknowledgement_before_the_flush_is_caught() {
    catch(PlantedBug::AckBeforeFlush, None).expect("it is caught");
}

#[test]
fn a_directory_that_is_not_synced_is_caught() {
    // Case 27.
    catch(PlantedBug::NoDirectorySync, None).expect("it is caught");
}

#[test]
fn a_tail_that_is_not_cut_is_caught() {
    // Case 41. The direct device writes zeros over what is behind its first append.
    catch_in(alike(DeviceChoice::Buffered), PlantedBug::KeepCutTail, None).expect("it is caught");
}

#[test]
fn a_write_to_an_idle_log_without_a_note_is_caught() {
    catch(PlantedBug::NoTouchedNote, None).expect("it is caught");
}

/// A fault in the middle of the story, on the files of logs.
fn flush_failure(after: u64) -> Fault {
    Fault::next(OperationKind::Flush, Effect::Fail(5)).on_path(".log").after(after)
}

#[test]
fn a_flush_that_is_tried_again_is_caught() {
    // Case 26.
    catch(PlantedBug::RetryFailedFlush, Some(flush_failure(6))).expect("it is caught");
}

#[test]
fn no_failed_operation_breaks_a_promise() {
    // Cases 26 and 43.
    for (kind, errno) in [(OperationKind::Flush, 5), (OperationKind::Write, 5), (OperationKind::Write, 28)] {
        for after in [0, 3, 10] {
            let fault = Fault::next(kind, Effect::Fail(errno)).on_path(".log").after(after);
            let story = Story { fault: Some(fault), ..Story::new(after, STRICT) };
            let ending = story.tell(None);
            assert!(ending.refused.is_some(), "{kind:?} fails with {errno} and nobody hears of it");
            for seed in 0..10 {
                let verdict = examine(&ending.disk, seed, &ending.history, &story.life);
                verdict.unwrap_or_else(|broken| panic!("{kind:?} {errno} after {after}, end {seed}: {broken}"));
            }
        }
    }
}
