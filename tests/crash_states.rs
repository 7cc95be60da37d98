//! The engine against power loss, in breadth: distinct states of the disk, drawn at every moment of its lives, for both log
//! devices and both reaches of a flush. No acknowledged record may be missing in any of them, and nothing may come back. The same
//! of logs that are compacted meanwhile, in several passes where memory is short, and that retention deletes from.
//!
//! `HEDDLE_CRASH_STATES=n` looks at n distinct states for each kind of disk and of log; `./check` asks for 115,000, a million
//! in all. `HEDDLE_CRASH_STORY=n` begins with story n, for others than are looked at every time. A failure names the story, the
//! life, the moment and the cut.
#![forbid(unsafe_code)]

use heddle_engine::PlantedBug;
use heddle_io::sim::{DeviceCache, FaultModel, FlushScope, Metadata};
use heddle_tests::crash_states::{Enumeration, Scenario};
use heddle_tests::engine_life::Life;
use heddle_tests::table_life::TableLife;

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

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|number| number.parse().expect("a number"))
}

fn states() -> u64 {
    number("HEDDLE_CRASH_STATES").unwrap_or(400)
}

fn first_story() -> u64 {
    number("HEDDLE_CRASH_STORY").unwrap_or(0)
}

fn enumeration(model: FaultModel) -> Enumeration<Life> {
    let life = Life { batches: 3, ..Life::first() };
    Enumeration { model, claimed: None, life, states: states(), seed: first_story() }
}

fn tables(model: FaultModel) -> Enumeration<TableLife> {
    Enumeration { model, claimed: None, life: TableLife::first(), states: states(), seed: first_story() }
}

#[expect(clippy::print_stdout, reason = "how much was looked at is worth a line under --nocapture")]
fn no_state_breaks_a_promise<S: Scenario>(name: &str, enumeration: &Enumeration<S>) {
    match enumeration.run() {
        Ok(looked) => {
            let model = enumeration.model;
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
    no_state_breaks_a_promise("buffered, only the synced is sure", &enumeration(BUFFERED));
}

#[test]
fn no_state_breaks_a_promise_on_the_page_cache_of_a_journal() {
    no_state_breaks_a_promise("buffered, journaled", &enumeration(BUFFERED_JOURNALED));
}

#[test]
fn no_state_breaks_a_promise_where_one_flush_is_for_all() {
    // Case 41.
    no_state_breaks_a_promise("direct, one flush for all", &enumeration(DIRECT_ONE_FLUSH));
}

#[test]
fn no_state_breaks_a_promise_where_each_file_is_flushed() {
    // Case 41.
    no_state_breaks_a_promise("direct, each file flushed", &enumeration(DIRECT_FLUSH_EACH));
}

#[test]
fn no_state_breaks_a_promise_where_the_device_writes_through() {
    no_state_breaks_a_promise("direct, write through", &enumeration(DIRECT_WRITE_THROUGH));
}

#[test]
fn no_state_breaks_a_promise_while_logs_are_compacted_on_the_page_cache() {
    // Case 32.
    no_state_breaks_a_promise("compacted, buffered, only the synced is sure", &tables(BUFFERED));
}

#[test]
fn no_state_breaks_a_promise_while_logs_are_compacted_on_the_page_cache_of_a_journal() {
    no_state_breaks_a_promise("compacted, buffered, journaled", &tables(BUFFERED_JOURNALED));
}

#[test]
fn no_state_breaks_a_promise_while_logs_are_compacted_where_one_flush_is_for_all() {
    // Case 32.
    no_state_breaks_a_promise("compacted, direct, one flush for all", &tables(DIRECT_ONE_FLUSH));
}

#[test]
fn no_state_breaks_a_promise_while_logs_are_compacted_where_each_file_is_flushed() {
    no_state_breaks_a_promise("compacted, direct, each file flushed", &tables(DIRECT_FLUSH_EACH));
}

/// Records are deleted while a pass is under way: in some of these lives it comes to a segment that is gone.
#[test]
fn lives_on_a_sound_disk_are_refused_nothing() {
    for seed in 0..20 {
        let lives = Enumeration { seed, states: 1, ..tables(BUFFERED) };
        lives.run().unwrap_or_else(|broken| panic!("{broken}"));
    }
}

/// What the enumeration says of an engine with a bug.
fn broken_by(bug: PlantedBug, model: FaultModel) -> String {
    let mut enumeration = enumeration(model);
    enumeration.life.engine.planted_bug = bug;
    enumeration.states = 20_000;
    enumeration.run().expect_err("the bug is found")
}

/// Records that were promised are missing: in what was recovered, or already in the file that should have them.
fn tells_of_a_loss(broken: &str) -> bool {
    ["are gone", "was read", "is damaged"].iter().any(|words| broken.contains(words))
}

#[test]
fn an_acknowledgement_before_the_flush_is_found() {
    for model in [BUFFERED, DIRECT_ONE_FLUSH, DIRECT_FLUSH_EACH] {
        let broken = broken_by(PlantedBug::AckBeforeFlush, model);
        assert!(tells_of_a_loss(&broken), "{broken}");
    }
}

#[test]
fn a_disk_that_flushes_less_than_the_engine_was_told_is_found() {
    // What makes the choice of the flush a decision that these tests can see: the engine believes that one flush is for
    // all, and the disk keeps less.
    let mut lied_to = Enumeration { claimed: Some(DIRECT_ONE_FLUSH), ..enumeration(DIRECT_FLUSH_EACH) };
    lied_to.states = 20_000;
    let broken = lied_to.run().expect_err("the loss is seen");
    assert!(tells_of_a_loss(&broken), "{broken}");
}

/// What is found in few states of each of many stories.
fn broken_in_many_stories(enumeration: &Enumeration<Life>) -> String {
    let broken = (0..60).find_map(|seed| Enumeration { seed, states: 200, ..enumeration.clone() }.run().err());
    broken.expect("the loss is seen")
}

#[test]
fn a_start_that_does_not_flush_what_it_found_is_found() {
    // On a journal one flush of everything is for all that is found.
    for model in [BUFFERED, BUFFERED_JOURNALED] {
        let mut enumeration = enumeration(model);
        enumeration.life.engine.planted_bug = PlantedBug::FoundIsNotFlushed;
        let broken = broken_in_many_stories(&enumeration);
        assert!(broken.contains("was read"), "{broken}");
    }
}

#[test]
fn a_flush_of_everything_that_flushes_nothing_is_found() {
    let broken = broken_in_many_stories(&Enumeration { claimed: Some(BUFFERED_JOURNALED), ..enumeration(BUFFERED) });
    assert!(broken.contains("was read"), "{broken}");
}

#[test]
fn a_swap_that_nothing_tells_of_is_found() {
    let mut enumeration = tables(DIRECT_FLUSH_EACH);
    enumeration.life.engine.planted_bug = PlantedBug::SwapWithoutManifest;
    let broken = (0..60).find_map(|seed| Enumeration { seed, states: 200, ..enumeration.clone() }.run().err());
    broken.expect("the bug is found");
}

/// A kill between the file that tells of a swap and its name on the disk, a start that ends the swap, a loss of power.
#[test]
fn a_start_tells_of_a_swap_before_it_ends_it() {
    for seed in [20, 1000] {
        let story = Enumeration { seed, states: 2_000, ..tables(BUFFERED) };
        story.run().unwrap_or_else(|broken| panic!("{broken}"));
    }
}
