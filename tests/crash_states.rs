//! The engine against power loss, in breadth: distinct states of the disk, drawn at every moment of its lives, for both log
//! devices and both reaches of a flush. No acknowledged record may be missing in any of them, and nothing may come back.
//!
//! `HEDDLE_CRASH_STATES=n` looks at n distinct states for each kind of disk; `./check` asks for 200,000, a million in all.
//! A failure names the story, the life, the moment and the cut.
#![forbid(unsafe_code)]

use heddle_engine::PlantedBug;
use heddle_io::sim::{DeviceCache, FaultModel, FlushScope, Metadata};
use heddle_tests::crash_states::Enumeration;
use heddle_tests::engine_life::Life;

/// Posix, and no direct writing: the page cache it is.
const BUFFERED: FaultModel = FaultModel {
    metadata: Metadata::OnlySynced,
    flush: FlushScope::File,
    survival: None,
    direct: false,
    cache: DeviceCache::Volatile,
};
const BUFFERED_JOURNALED: FaultModel = FaultModel { metadata: Metadata::Journaled, ..BUFFERED };
/// A flush of any file covers the overwrites of all: ext4, XFS.
const DIRECT_ONE_FLUSH: FaultModel = FaultModel { direct: true, flush: FlushScope::Device, ..BUFFERED_JOURNALED };
/// Each file needs its own flush.
const DIRECT_FLUSH_EACH: FaultModel = FaultModel { direct: true, ..BUFFERED };
const DIRECT_WRITE_THROUGH: FaultModel = FaultModel { cache: DeviceCache::WriteThrough, ..DIRECT_ONE_FLUSH };

fn states() -> u64 {
    std::env::var("HEDDLE_CRASH_STATES").ok().and_then(|states| states.parse().ok()).unwrap_or(400)
}

fn enumeration(model: FaultModel) -> Enumeration {
    let life = Life { batches: 3, ..Life::first() };
    Enumeration { model, claimed: None, life, states: states(), seed: 0 }
}

#[expect(clippy::print_stdout, reason = "how much was looked at is worth a line under --nocapture")]
fn no_state_breaks_a_promise(name: &str, model: FaultModel) {
    match enumeration(model).run() {
        Ok(looked) => {
            assert_eq!(looked.direct_writes > 0, model.direct, "{name}: the engine chooses by what it is told");
            println!(
                "{name}: {} distinct states at {} moments of {} stories, 0 acknowledged records lost, 0 resurrected",
                looked.states, looked.moments, looked.stories
            );
        }
        Err(broken) => panic!("{name}: {broken}"),
    }
}

#[test]
fn no_state_breaks_a_promise_on_the_page_cache() {
    no_state_breaks_a_promise("buffered, only the synced is sure", BUFFERED);
}

#[test]
fn no_state_breaks_a_promise_on_the_page_cache_of_a_journal() {
    no_state_breaks_a_promise("buffered, journaled", BUFFERED_JOURNALED);
}

#[test]
fn no_state_breaks_a_promise_where_one_flush_is_for_all() {
    // Case 41.
    no_state_breaks_a_promise("direct, one flush for all", DIRECT_ONE_FLUSH);
}

#[test]
fn no_state_breaks_a_promise_where_each_file_is_flushed() {
    // Case 41.
    no_state_breaks_a_promise("direct, each file flushed", DIRECT_FLUSH_EACH);
}

#[test]
fn no_state_breaks_a_promise_where_the_device_writes_through() {
    no_state_breaks_a_promise("direct, write through", DIRECT_WRITE_THROUGH);
}

/// What the enumeration says of an engine with a bug.
fn broken_by(bug: PlantedBug, model: FaultModel) -> String {
    let mut enumeration = enumeration(model);
    enumeration.life.engine.planted_bug = bug;
    enumeration.states = 20_000;
    enumeration.run().expect_err("the bug is found")
}

#[test]
fn an_acknowledgement_before_the_flush_is_found() {
    for model in [BUFFERED, DIRECT_ONE_FLUSH, DIRECT_FLUSH_EACH] {
        let broken = broken_by(PlantedBug::AckBeforeFlush, model);
        assert!(broken.contains("acknowledged and are gone") || broken.contains("was read"), "{broken}");
    }
}

#[test]
fn a_disk_that_flushes_less_than_the_engine_was_told_is_found() {
    // What makes the choice of the flush a decision that these tests can see: the engine believes that one flush is for
    // all, and the disk keeps less.
    let mut lied_to = Enumeration { claimed: Some(DIRECT_ONE_FLUSH), ..enumeration(DIRECT_FLUSH_EACH) };
    lied_to.states = 20_000;
    let broken = lied_to.run().expect_err("the loss is seen");
    assert!(broken.contains("are gone") || broken.contains("was read"), "{broken}");
}
