//! The fault model of direct writes at the top of `disk.rs`, promise by promise, in the manner of `promises.rs`.
//!
//! The three controls that the rule of one flush for all stands on: an acknowledgement before the flush, blocks that are
//! only allocated and blocks behind a length that is not durable must all be seen to lose.

use std::collections::BTreeSet;

use super::disk::{DeviceCache, FaultModel};
use super::fault::{Effect, Fault, OperationKind};
use super::promises::{Process, SEEDS, device_flush, journaled, left_over, strict};
use super::request::{Errno, OpenMode, Request};
use super::tree::Inode;
use crate::file::Access;

const OLD: [u8; 8192] = [b'.'; 8192];
const NEW: [u8; 4096] = [b'x'; 4096];

fn write_through() -> FaultModel {
    FaultModel { cache: DeviceCache::WriteThrough, ..strict() }
}

/// A file whose blocks are allocated, not written, and whose length is durable.
fn allocated(process: &mut Process, path: &str) -> Inode {
    let file = process.durable_file(path, b"");
    process.ask(Request::Allocate { file, position: 0, length: 8192, extend: true }).expect("there is space");
    process.flush(file);
    file
}

/// The first byte of each sector of the first block.
fn sectors(process: &Process, path: &str) -> String {
    let bytes = process.peek(path).expect("its name was synced");
    bytes[..bytes.len().min(4096)].chunks(512).map(|sector| char::from(sector[0])).collect()
}

/// Whether the direct write to `/log` of `story` survives, over many seeds.
fn survives(model: FaultModel, story: impl Fn(&mut Process)) -> BTreeSet<bool> {
    left_over(model, story, |process| process.peek("/log").expect("its name was synced").starts_with(&NEW))
}

const SURELY: [bool; 1] = [true];
const PERHAPS: [bool; 2] = [false, true];

#[test]
fn a_direct_write_that_no_flush_covers_leaves_any_subset_of_its_sectors() {
    for model in [strict(), device_flush()] {
        let story = |process: &mut Process| {
            let log = process.durable_file("/log", &OLD);
            process.write_direct(log, 0, &NEW);
        };
        let left = left_over(model, story, |process| sectors(process, "/log"));
        assert!(left.contains("xxxxxxxx") && left.contains("........"));
        assert!(left.len() > 50, "{} of 256 subsets", left.len());
        assert!(left.iter().all(|sectors| sectors.bytes().all(|byte| byte == b'.' || byte == b'x')));
    }
}

#[test]
fn later_direct_writes_may_survive_earlier_ones() {
    let story = |process: &mut Process| {
        let log = process.durable_file("/log", &OLD);
        process.write_direct(log, 4096, &[b'1'; 4096]);
        process.write_direct(log, 0, &[b'2'; 4096]);
    };
    let left = left_over(device_flush(), story, |process| {
        let bytes = process.peek("/log").expect("its name was synced");
        (bytes[0], bytes[4096])
    });
    assert_eq!(left, [(b'.', b'.'), (b'.', b'1'), (b'2', b'.'), (b'2', b'1')].into());
}

#[test]
fn one_flush_covers_the_completed_overwrites_of_every_file() {
    let story = |process: &mut Process| {
        let (log, other) = (process.durable_file("/log", &OLD), process.durable_file("/other", b"."));
        process.write_direct(log, 0, &NEW);
        process.flush(other);
    };
    assert_eq!(survives(device_flush(), story), SURELY.into());
    assert_eq!(survives(strict(), story), PERHAPS.into(), "where a flush is of its file alone it says nothing");
    assert_eq!(survives(journaled(), story), PERHAPS.into());
}

#[test]
fn control_an_acknowledgement_before_the_flush_loses() {
    // The flush was issued while the write was in flight, and what completed meanwhile is not covered.
    let story = |process: &mut Process| {
        let (log, other) = (process.durable_file("/log", &OLD), process.durable_file("/other", b"."));
        let write = process.begin(Request::Write { file: log, position: 0, bytes: NEW.into(), access: Access::Direct });
        let flush = process.begin(Request::Flush { file: other });
        process.disk.complete(write).expect("a sound disk writes");
        process.disk.complete(flush).expect("a sound disk flushes");
    };
    assert_eq!(survives(device_flush(), story), PERHAPS.into());
}

#[test]
fn control_blocks_that_are_only_allocated_lose() {
    let story = |flush_the_log: bool| {
        move |process: &mut Process| {
            let (log, other) = (allocated(process, "/log"), process.durable_file("/other", b"."));
            process.write_direct(log, 0, &NEW);
            process.flush(if flush_the_log { log } else { other });
        }
    };
    for model in [device_flush(), strict(), write_through()] {
        assert_eq!(survives(model, story(false)), PERHAPS.into());
        assert_eq!(survives(model, story(true)), SURELY.into());
    }
    let zeros = left_over(device_flush(), story(false), |process| sectors(process, "/log"));
    assert!(zeros.contains("\0\0\0\0\0\0\0\0"), "what is lost reads as zero");
}

#[test]
fn control_blocks_behind_the_durable_length_lose() {
    let story = |flush_the_log: bool| {
        move |process: &mut Process| {
            let (log, other) = (process.durable_file("/log", b""), process.durable_file("/other", b"."));
            process.write_direct(log, 0, &NEW);
            process.flush(if flush_the_log { log } else { other });
        }
    };
    assert_eq!(survives(device_flush(), story(false)), PERHAPS.into());
    assert_eq!(survives(device_flush(), story(true)), SURELY.into());
}

#[test]
fn once_its_own_flush_has_made_a_block_a_written_one_every_flush_will_do() {
    let story = |process: &mut Process| {
        let (log, other) = (allocated(process, "/log"), process.durable_file("/other", b"."));
        process.write_direct(log, 0, &[b'1'; 4096]);
        process.flush(log);
        process.write_direct(log, 0, &NEW);
        process.flush(other);
    };
    assert_eq!(survives(device_flush(), story), SURELY.into());
}

#[test]
fn bytes_of_the_page_cache_need_the_flush_of_their_own_file() {
    let story = |process: &mut Process| {
        let (log, other) = (process.durable_file("/log", &OLD), process.durable_file("/other", b"."));
        process.write(log, 0, &NEW);
        process.flush(other);
    };
    assert_eq!(survives(device_flush(), story), PERHAPS.into());
}

#[test]
fn a_failed_flush_of_the_device_loses_what_other_files_wrote() {
    // Case 26: the second flush says that all is well.
    let story = |process: &mut Process| {
        let (log, other) = (process.durable_file("/log", &OLD), process.durable_file("/other", b"."));
        process.write_direct(log, 0, &NEW);
        process.disk.plant(Fault::next(OperationKind::Flush, Effect::Fail(libc::EIO)));
        assert_eq!(process.ask(Request::Flush { file: other }).unwrap_err(), Errno(libc::EIO));
        process.flush(log);
    };
    assert_eq!(survives(device_flush(), story), [false].into(), "eight sectors never all survive here");
    assert_eq!(survives(strict(), story), SURELY.into(), "where flushes are of files the other's failure is its own");
}

#[test]
fn without_a_volatile_cache_an_overwrite_is_durable_once_it_has_completed() {
    let story = |complete: bool| {
        move |process: &mut Process| {
            let log = process.durable_file("/log", &OLD);
            let request = Request::Write { file: log, position: 0, bytes: NEW.into(), access: Access::Direct };
            let write = process.begin(request);
            if complete {
                process.disk.complete(write).expect("a sound disk writes");
            }
        }
    };
    assert_eq!(survives(write_through(), story(true)), SURELY.into());
    assert_eq!(survives(write_through(), story(false)), PERHAPS.into(), "in flight it may be torn all the same");
}

#[test]
fn kill_loses_no_completed_direct_write() {
    for seed in 0..SEEDS {
        let mut process = Process::on(strict(), seed);
        let log = process.open("/log");
        process.write_direct(log, 0, &NEW);
        process.disk.kill();
        assert_eq!(process.peek("/log").expect("nobody cut the power"), NEW);
    }
}

#[test]
fn a_disk_may_refuse_direct_files() {
    let mut process = Process::on(FaultModel { direct: false, ..strict() }, 1);
    let mode = OpenMode { create: true, direct: true, ..OpenMode::default() };
    let refused = process.ask(Request::Open { path: "/log".into(), mode });
    assert_eq!(refused.unwrap_err(), Errno(libc::EINVAL));
    assert_eq!(process.peek("/log"), None);
}

#[test]
fn traits_say_what_the_model_keeps() {
    let traits = |model| Process::on(model, 1).disk.traits();
    assert!(traits(device_flush()).one_flush_for_all && !traits(strict()).one_flush_for_all);
    assert!(traits(write_through()).write_through && !traits(strict()).write_through);
    let refused = traits(FaultModel { direct: false, ..device_flush() });
    assert!(!refused.direct && !refused.one_flush_for_all && !refused.write_through);
}

#[test]
fn writes_that_cost_a_kernel_thread_or_race_are_counted() {
    let mut process = Process::on(device_flush(), 1);
    let log = process.durable_file("/log", &OLD);
    process.write_direct(log, 0, &NEW);
    process.write_direct(log, 8192, &NEW);
    let counters = process.disk.counters();
    assert_eq!((counters.direct_writes, counters.direct_writes_not_in_place), (2, 1));
    let fresh = allocated(&mut process, "/fresh");
    process.write_direct(fresh, 0, &NEW);
    assert_eq!(process.disk.counters().direct_writes_not_in_place, 2);
    let write = |at: u64| Request::Write { file: log, position: at, bytes: NEW.into(), access: Access::Direct };
    process.begin(write(0));
    process.begin(write(4096));
    assert_eq!(process.disk.counters().overlapping_writes, 0);
    process.begin(write(0));
    assert_eq!(process.disk.counters().overlapping_writes, 1);
}
