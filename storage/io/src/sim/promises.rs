//! The fault model at the top of `disk.rs`, promise by promise.
//!
//! Each test runs one story over many seeds. What is promised must hold in all of them; what is not promised must be seen to
//! fail in at least one and to hold in at least one, so that a disk that is kinder than its model fails here.

use std::collections::BTreeSet;
use std::path::Path;

use super::content::Survival;
use super::disk::{Disk, FaultModel, FlushScope, Metadata};
use super::fault::{CutPoint, Effect, Fault, OperationKind};
use super::random::Random;
use super::request::{Errno, OpenMode, OperationId, Reply, Request};
use super::tree::Inode;
use crate::file::Access;

pub(super) const SEEDS: u64 = 400;

pub(super) fn strict() -> FaultModel {
    FaultModel::default()
}

pub(super) fn journaled() -> FaultModel {
    FaultModel { metadata: Metadata::Journaled, ..strict() }
}

pub(super) fn device_flush() -> FaultModel {
    FaultModel { flush: FlushScope::Device, ..journaled() }
}

/// A process that does one thing after the other.
pub(super) struct Process {
    pub(super) disk: Disk,
    /// Keeps the files open.
    handles: Vec<super::request::Handle>,
}

impl Process {
    pub(super) fn on(model: FaultModel, seed: u64) -> Process {
        Process { disk: Disk::new(model, Random::new(seed)), handles: Vec::new() }
    }

    pub(super) fn ask(&mut self, request: Request) -> Result<Reply, Errno> {
        let id = self.begin(request);
        self.disk.complete(id)
    }

    pub(super) fn begin(&mut self, request: Request) -> OperationId {
        self.disk.issue(request).0
    }

    pub(super) fn open(&mut self, path: &str) -> Inode {
        let mode = OpenMode { create: true, ..OpenMode::default() };
        match self.ask(Request::Open { path: path.into(), mode }) {
            Ok(Reply::Opened { file, handle }) => {
                self.handles.push(handle);
                file
            }
            other => panic!("open {path}: {other:?}"),
        }
    }

    /// A file with `bytes` in it, durable with its name.
    pub(super) fn durable_file(&mut self, path: &str, bytes: &[u8]) -> Inode {
        let file = self.open(path);
        self.write(file, 0, bytes);
        self.flush(file);
        self.sync_dir("/");
        file
    }

    pub(super) fn write(&mut self, file: Inode, position: u64, bytes: &[u8]) {
        let written = self.ask(Request::Write { file, position, bytes: bytes.into(), access: Access::Cached });
        assert!(matches!(written, Ok(Reply::Written(count)) if count == bytes.len()), "{written:?}");
    }

    pub(super) fn write_direct(&mut self, file: Inode, position: u64, bytes: &[u8]) {
        let request = Request::Write { file, position, bytes: bytes.into(), access: Access::Direct };
        assert!(matches!(self.ask(request), Ok(Reply::Written(count)) if count == bytes.len()));
    }

    pub(super) fn flush(&mut self, file: Inode) {
        self.ask(Request::Flush { file }).expect("a sound disk flushes");
    }

    fn sync_dir(&mut self, path: &str) {
        self.ask(Request::SyncDirectory { path: path.into() }).expect("a sound disk flushes");
    }

    fn rename(&mut self, from: &str, to: &str) {
        self.ask(Request::Rename { from: from.into(), to: to.into() }).expect("both directories exist");
    }

    /// The file's bytes, or `None` if it has no such name.
    pub(super) fn peek(&self, path: &str) -> Option<Vec<u8>> {
        self.disk.peek(Path::new(path)).ok()
    }

    fn names(&self) -> String {
        let files = self.disk.list_files();
        files.iter().map(|path| path.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }
}

/// Everything that is left of `story` after a power cut, over many seeds.
pub(super) fn left_over<T: Ord>(
    model: FaultModel,
    story: impl Fn(&mut Process),
    left: impl Fn(&Process) -> T,
) -> BTreeSet<T> {
    let one = |seed| {
        let mut process = Process::on(model, seed);
        story(&mut process);
        process.disk.power_cut();
        left(&process)
    };
    (0..SEEDS).map(one).collect()
}

fn names_left(model: FaultModel, story: impl Fn(&mut Process)) -> BTreeSet<String> {
    left_over(model, story, Process::names)
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn promise_1_a_completed_write_is_read_and_one_in_flight_is_not() {
    let mut process = Process::on(strict(), 1);
    let file = process.durable_file("/a", b"old");
    let write = process.begin(Request::Write { file, position: 0, bytes: (*b"new").into(), access: Access::Cached });
    assert_eq!(process.peek("/a").unwrap(), b"old");
    process.disk.complete(write).unwrap();
    assert_eq!(process.peek("/a").unwrap(), b"new");
}

#[test]
fn promise_2_a_flush_keeps_what_completed_before_it_was_issued() {
    for model in [strict(), journaled(), device_flush()] {
        let story = |process: &mut Process| {
            let file = process.durable_file("/a", b"");
            process.write(file, 0, &[b'a'; 1000]);
            process.ask(Request::SetLen { file, len: 700 }).unwrap();
            let flush = process.begin(Request::Flush { file });
            process.write(file, 0, &[b'b'; 512]);
            process.disk.complete(flush).unwrap();
        };
        let left = left_over(model, story, |process| process.peek("/a").expect("its name was synced"));
        assert!(left.iter().all(|bytes| bytes.len() == 700 && bytes[512..] == [b'a'; 188]), "{model:?}");
        let first: BTreeSet<u8> = left.iter().map(|bytes| bytes[0]).collect();
        assert_eq!(first, BTreeSet::from(*b"ab"), "{model:?}: what completed during the flush is not covered");
    }
}

#[test]
fn promise_2_a_flush_says_nothing_of_what_was_in_flight_when_it_was_issued() {
    let story = |process: &mut Process| {
        let file = process.durable_file("/a", &[b'.'; 512]);
        let write =
            process.begin(Request::Write { file, position: 0, bytes: [b'a'; 512].into(), access: Access::Cached });
        let flush = process.begin(Request::Flush { file });
        process.disk.complete(write).unwrap();
        process.disk.complete(flush).unwrap();
    };
    let first = left_over(strict(), story, |process| process.peek("/a").unwrap()[0]);
    assert_eq!(first, BTreeSet::from(*b".a"));
}

#[test]
fn promise_3_a_synced_directory_keeps_its_entries() {
    for model in [strict(), journaled()] {
        let story = |process: &mut Process| {
            for path in ["/a", "/b", "/c"] {
                process.open(path);
            }
            process.rename("/b", "/renamed");
            process.ask(Request::RemoveFile { path: "/c".into() }).unwrap();
            process.sync_dir("/");
        };
        assert_eq!(names_left(model, story), set(&["/a /renamed"]), "{model:?}");
    }
}

#[test]
fn promise_3_a_rename_survives_whole_or_not_at_all() {
    for model in [strict(), journaled()] {
        let story = |process: &mut Process| {
            process.durable_file("/new", b"new");
            process.durable_file("/current", b"old");
            process.rename("/new", "/current");
        };
        let left = left_over(model, story, |process| (process.names(), process.peek("/current").unwrap()));
        let before = ("/current /new".to_owned(), b"old".to_vec());
        let after = ("/current".to_owned(), b"new".to_vec());
        assert_eq!(left, BTreeSet::from([before, after]), "{model:?}");
    }
}

#[test]
fn promise_4_kill_loses_no_completed_operation() {
    for seed in 0..SEEDS {
        let mut process = Process::on(strict(), seed);
        let file = process.open("/a");
        process.write(file, 0, b"in the page cache");
        process.rename("/a", "/b");
        process.disk.kill();
        assert_eq!(process.peek("/b").unwrap(), b"in the page cache");
        process.disk.power_cut();
    }
}

#[test]
fn risk_1_of_unflushed_writes_any_part_survives() {
    let story = |process: &mut Process| {
        let file = process.durable_file("/a", &[b'.'; 1024]);
        process.write(file, 0, &[b'1'; 512]);
        process.write(file, 512, &[b'2'; 1024]);
    };
    let left = left_over(strict(), story, |process| {
        let bytes = process.peek("/a").unwrap();
        bytes.chunks(512).map(|sector| char::from(sector[0])).collect::<String>()
    });
    for expected in ["..", "1.", "12", "122", ".2", ".22", "1.2", "12\0"] {
        assert!(left.contains(expected), "{expected:?} of {left:?}");
    }
}

#[test]
fn risk_1_files_lose_independently() {
    let story = |process: &mut Process| {
        let (first, second) = (process.durable_file("/a", b"."), process.durable_file("/b", b"."));
        process.write(first, 0, b"x");
        process.write(second, 0, b"x");
    };
    let left =
        left_over(strict(), story, |process| [process.peek("/a").unwrap(), process.peek("/b").unwrap()].concat());
    assert_eq!(left, BTreeSet::from([b"..", b"x.", b".x", b"xx"].map(|bytes| bytes.to_vec())));
}

#[test]
fn risk_1_a_write_in_flight_may_leave_any_sector() {
    let story = |process: &mut Process| {
        let file = process.durable_file("/a", &[b'.'; 1024]);
        process.begin(Request::Write { file, position: 0, bytes: [b'x'; 1024].into(), access: Access::Cached });
    };
    let left = left_over(strict(), story, |process| {
        let bytes = process.peek("/a").unwrap();
        String::from_utf8(vec![bytes[0], bytes[512]]).unwrap()
    });
    assert_eq!(left, set(&["..", "x.", ".x", "xx"]));
}

#[test]
fn risk_2_only_synced_names_are_sure_whatever_was_flushed() {
    // Case 27.
    let story = |process: &mut Process| {
        for path in ["/a", "/b"] {
            let file = process.open(path);
            process.write(file, 0, b"flushed");
            process.flush(file);
        }
    };
    assert_eq!(names_left(strict(), story), set(&["", "/a", "/b", "/a /b"]));
    let found = |process: &Process| ["/a", "/b"].iter().filter_map(|path| process.peek(path)).collect::<Vec<_>>();
    let intact = left_over(strict(), story, found);
    assert!(intact.iter().flatten().all(|bytes| bytes == b"flushed"), "a name that survives has its flushed bytes");
}

#[test]
fn risk_2_an_entry_needs_its_directory_too() {
    let story = |process: &mut Process| {
        process.ask(Request::CreateDirectories { path: "/d/e".into() }).unwrap();
        process.open("/d/e/a");
        process.sync_dir("/d/e");
        process.sync_dir("/d");
    };
    assert_eq!(names_left(strict(), story), set(&["", "/d/e/a"]));
}

#[test]
fn risk_2_a_rename_between_directories_may_leave_both_names_but_never_none() {
    let story = |process: &mut Process| {
        process.ask(Request::CreateDirectories { path: "/d".into() }).unwrap();
        process.durable_file("/a", b"x");
        process.rename("/a", "/d/a");
    };
    assert_eq!(names_left(strict(), story), set(&["/a", "/a /d/a", "/d/a"]));
    assert_eq!(names_left(journaled(), story), set(&["/a", "/d/a"]));
}

#[test]
fn risk_2_a_journal_keeps_the_order_and_strict_posix_does_not() {
    let story = |process: &mut Process| {
        for path in ["/1", "/2", "/3"] {
            process.open(path);
        }
    };
    assert_eq!(names_left(journaled(), story), set(&["", "/1", "/1 /2", "/1 /2 /3"]));
    assert_eq!(names_left(strict(), story).len(), 8, "every subset");
}

#[test]
fn risk_2_a_journaled_flush_takes_along_what_came_before() {
    let story = |process: &mut Process| {
        process.open("/1");
        let file = process.open("/2");
        process.open("/3");
        process.flush(file);
    };
    assert_eq!(names_left(journaled(), story), set(&["/1 /2", "/1 /2 /3"]));
    assert_eq!(
        names_left(strict(), story).len(),
        8,
        "where only the synced is sure, a file's flush says nothing of names"
    );
}

#[test]
fn risk_2_a_rename_may_arrive_before_the_bytes() {
    // Case 28: why a side file is flushed before it is renamed.
    for model in [strict(), journaled()] {
        let story = |process: &mut Process| {
            process.durable_file("/checkpoint", b"old");
            let file = process.open("/temporary");
            process.write(file, 0, b"new");
            process.rename("/temporary", "/checkpoint");
            process.sync_dir("/");
        };
        let left = left_over(model, story, |process| process.peek("/checkpoint").unwrap());
        assert!(left.contains(b"new".as_slice()) && left.contains([].as_slice()), "{model:?}: {left:?}");
        assert!(!left.contains(b"old".as_slice()), "{model:?}: the rename was synced");
    }
}

#[test]
fn risk_2_an_unsynced_removal_may_come_undone_with_all_its_bytes() {
    let story = |process: &mut Process| {
        process.durable_file("/a", b"back again");
        process.handles.clear();
        process.ask(Request::RemoveFile { path: "/a".into() }).unwrap();
    };
    for model in [strict(), journaled()] {
        let left = left_over(model, story, |process| process.peek("/a"));
        assert_eq!(left, BTreeSet::from([None, Some(b"back again".to_vec())]), "{model:?}");
    }
}

#[test]
fn risk_2_a_set_length_follows_the_journal_but_needs_its_own_flush_where_there_is_none() {
    let story = |process: &mut Process| {
        let file = process.durable_file("/a", &[b'x'; 1000]);
        process.ask(Request::SetLen { file, len: 10 }).unwrap();
        let other = process.open("/b");
        process.flush(other);
    };
    let length = |process: &Process| process.peek("/a").unwrap().len();
    assert_eq!(left_over(journaled(), story, length), BTreeSet::from([10]));
    assert_eq!(left_over(strict(), story, length), BTreeSet::from([10, 1000]));
}

#[test]
fn risk_3_what_a_failed_flush_lost_stays_lost() {
    // Case 26.
    let story = |process: &mut Process| {
        let file = process.durable_file("/a", &[b'.'; 4096]);
        process.write(file, 0, &[b'x'; 4096]);
        process.disk.plant(Fault::next(OperationKind::Flush, Effect::Fail(libc::EIO)));
        assert_eq!(process.ask(Request::Flush { file }).unwrap_err(), Errno(libc::EIO));
        process.flush(file);
        assert_eq!(process.peek("/a").unwrap(), [b'x'; 4096], "until the power goes, nobody can tell");
    };
    let whole = left_over(strict(), story, |process| process.peek("/a").unwrap() == [b'x'; 4096]);
    assert!(whole.contains(&false));
}

#[test]
fn risk_5_a_killed_process_leaves_part_of_what_was_in_flight() {
    let left: BTreeSet<String> = (0..SEEDS)
        .map(|seed| {
            let mut process = Process::on(strict(), seed);
            let file = process.durable_file("/a", &[b'.'; 1024]);
            process.begin(Request::Write { file, position: 0, bytes: [b'x'; 1024].into(), access: Access::Cached });
            let mode = OpenMode { create: true, ..OpenMode::default() };
            process.begin(Request::Open { path: "/b".into(), mode });
            process.disk.kill();
            let bytes = process.peek("/a").unwrap();
            format!("{}{} {}", char::from(bytes[0]), char::from(bytes[512]), process.names())
        })
        .collect();
    assert_eq!(left.len(), 8, "each sector and the file, there or not: {left:?}");
}

#[test]
fn a_device_flush_covers_overwrites_of_other_files_only() {
    let story = |process: &mut Process| {
        let zeroed = process.durable_file("/zeroed", &[0; 8192]);
        let grown = process.durable_file("/grown", b"");
        let flushed = process.durable_file("/flushed", b".");
        process.write_direct(zeroed, 0, &[b'x'; 8192]);
        process.write_direct(grown, 0, &[b'x'; 4096]);
        process.flush(flushed);
    };
    let whole = |process: &Process| {
        (process.peek("/zeroed").unwrap() == [b'x'; 8192], process.peek("/grown").unwrap() == [b'x'; 4096])
    };
    assert_eq!(left_over(device_flush(), story, whole), BTreeSet::from([(true, false), (true, true)]));
    assert_eq!(left_over(journaled(), story, whole).len(), 4, "without it a flush is of its file alone");
}

#[test]
fn one_seed_loses_the_same() {
    let left = |seed| {
        let mut process = Process::on(strict(), seed);
        let file = process.durable_file("/a", &[b'.'; 100_000]);
        process.write(file, 0, &[b'x'; 100_000]);
        process.disk.power_cut();
        process.peek("/a").unwrap()
    };
    assert!((0..20).all(|seed| left(seed) == left(seed)));
    assert!((1..20).any(|seed| left(seed) != left(0)));
}

#[test]
fn a_second_cut_takes_nothing_more() {
    for seed in 0..SEEDS {
        let mut process = Process::on(strict(), seed);
        let file = process.open("/a");
        process.write(file, 0, &[b'x'; 5000]);
        process.disk.power_cut();
        let (names, bytes) = (process.names(), process.peek("/a"));
        process.disk.power_cut();
        assert_eq!((names, bytes), (process.names(), process.peek("/a")));
    }
}

#[test]
fn a_fixed_survival_is_kept() {
    for (survival, expected) in [(Survival::Nothing, None), (Survival::Everything, Some(vec![b'x'; 100]))] {
        let story = |process: &mut Process| {
            let file = process.open("/a");
            process.write(file, 0, &[b'x'; 100]);
        };
        let model = FaultModel { survival: Some(survival), ..strict() };
        assert_eq!(left_over(model, story, |process| process.peek("/a")), BTreeSet::from([expected]));
    }
}

#[test]
fn space_runs_out_with_a_short_write_and_comes_back() {
    // Case 43.
    let mut process = Process::on(strict(), 1);
    process.disk.set_capacity(Some(3 * 4096));
    let file = process.open("/a");
    let write = |process: &mut Process, position, length: usize| {
        process.ask(Request::Write { file, position, bytes: vec![1; length].into(), access: Access::Cached })
    };
    assert!(matches!(write(&mut process, 100, 20_000), Ok(Reply::Written(count)) if count == 3 * 4096 - 100));
    assert_eq!(write(&mut process, 3 * 4096, 1).unwrap_err(), Errno(libc::ENOSPC));
    assert!(write(&mut process, 0, 4096).is_ok(), "an overwrite needs no space");
    let allocate = Request::Allocate { file, position: 0, length: 4 * 4096, extend: false };
    assert_eq!(process.ask(allocate).unwrap_err(), Errno(libc::ENOSPC));
    process.ask(Request::SetLen { file, len: 4096 }).unwrap();
    assert!(write(&mut process, 4096, 8192).is_ok());
    assert_eq!(process.disk.used_bytes(), 3 * 4096);
    process.handles.clear();
    process.ask(Request::RemoveFile { path: "/a".into() }).unwrap();
    process.sync_dir("/");
    process.open("/b");
    process.ask(Request::RemoveFile { path: "/b".into() }).unwrap();
    assert_eq!(process.disk.used_bytes(), 0, "a removed file that nobody has open gives its space back");
}

#[test]
fn faults_hit_the_operation_they_were_planted_for() {
    let mut process = Process::on(strict(), 1);
    let file = process.durable_file("/a.log", &[7; 100]);
    process.disk.plant(Fault::next(OperationKind::Write, Effect::Short(10)).on_path(".log"));
    let short = process.ask(Request::Write { file, position: 0, bytes: [8; 100].into(), access: Access::Cached });
    assert!(matches!(short, Ok(Reply::Written(10))));
    process.disk.plant(Fault::next(OperationKind::Read, Effect::FlipBit));
    let read = |process: &mut Process| match process.ask(Request::Read { file, position: 50, length: 10 }) {
        Ok(Reply::Bytes(bytes)) => bytes,
        other => panic!("{other:?}"),
    };
    let flipped: u32 = read(&mut process).iter().map(|byte| (byte ^ 7).count_ones()).sum();
    assert_eq!(flipped, 1);
    assert_eq!(read(&mut process), [7; 10], "the medium is sound");
    process.disk.flip_bit(Path::new("/a.log"), 50, 3).unwrap();
    assert_eq!(read(&mut process)[0], 7 ^ 8);
    process.disk.plant(Fault::next(OperationKind::Metadata, Effect::Fail(libc::ENOSPC)));
    let open = Request::Open { path: "/b".into(), mode: OpenMode { create: true, ..OpenMode::default() } };
    assert_eq!(process.ask(open).unwrap_err(), Errno(libc::ENOSPC));
    assert_eq!(process.names(), "/a.log");
}

#[test]
fn a_flush_of_everything_covers_all_files_and_names() {
    let journaled = FaultModel { metadata: Metadata::Journaled, survival: Some(Survival::Nothing), ..strict() };
    for is_covered in [true, false] {
        let mut process = Process::on(journaled, 1);
        process.ask(Request::CreateDirectories { path: "/d".into() }).unwrap();
        let files = [process.open("/d/a"), process.open("/b")];
        files.iter().for_each(|file| process.write(*file, 0, &[7; 600]));
        process.ask(Request::SetLen { file: files[1], len: 900 }).unwrap();
        process.rename("/b", "/d/c");
        if is_covered {
            process.ask(Request::FlushEverything { path: "/d".into() }).expect("a journal flushes everything");
        }
        process.write(files[0], 0, &[8; 600]);
        process.open("/late");
        process.disk.power_cut();
        let length = |name: &str| process.peek(name).map(|bytes| (bytes[0], bytes.len()));
        let expected = is_covered.then_some([Some((7, 600)), Some((7, 900))]);
        assert_eq!([length("/d/a"), length("/d/c")], expected.unwrap_or([None, None]));
        assert_eq!(length("/late"), None);
    }
    let mut process = Process::on(strict(), 1);
    let everything = || Request::FlushEverything { path: "/".into() };
    assert_eq!(process.ask(everything()).unwrap_err(), Errno(libc::EOPNOTSUPP), "nothing is known of it elsewhere");
    let mut process = Process::on(journaled, 1);
    let file = process.durable_file("/a", &[1; 600]);
    process.write(file, 0, &[2; 600]);
    process.disk.plant(Fault::next(OperationKind::Flush, Effect::Fail(libc::EIO)));
    assert_eq!(process.ask(everything()).unwrap_err(), Errno(libc::EIO));
    process.ask(everything()).expect("the next one succeeds, and brings nothing");
    process.disk.power_cut();
    assert!(process.peek("/a").unwrap().chunks(512).any(|sector| sector[0] == 1), "some of it is lost for good");
}

#[test]
fn every_step_can_be_cut_at() {
    let steps = |cut_at| {
        let mut process = Process::on(strict(), 1);
        process.disk.set_cut_at(cut_at);
        let mut due = Vec::new();
        let file = process.open("/a");
        for request in [
            Request::Write { file, position: 0, bytes: [1; 10].into(), access: Access::Cached },
            Request::Read { file, position: 0, length: 10 },
            Request::Flush { file },
            Request::SyncDirectory { path: "/".into() },
        ] {
            let id = process.begin(request);
            due.push(process.disk.cut_is_due(Some(id)));
            process.disk.complete(id).unwrap();
            due.push(process.disk.cut_is_due(None));
        }
        (process.disk.counters().steps, due.iter().position(|due| *due))
    };
    assert_eq!(steps(None), (8, None), "the read makes none");
    assert_eq!(steps(Some(CutPoint::Write(0))).1, Some(0));
    assert_eq!(steps(Some(CutPoint::Flush(0))).1, Some(4));
    assert_eq!(steps(Some(CutPoint::Flush(1))).1, Some(6));
    assert_eq!(steps(Some(CutPoint::Step(2))).1, Some(0));
    assert_eq!(steps(Some(CutPoint::Step(3))).1, Some(1));
    assert_eq!(steps(Some(CutPoint::Step(7))).1, Some(7));
}

#[test]
fn a_lock_has_one_holder_until_it_is_gone() {
    let mut process = Process::on(strict(), 1);
    let file = process.open("/lock");
    let (first, second) = (super::request::Handle::default(), super::request::Handle::default());
    assert!(process.disk.lock(file, &first));
    assert!(process.disk.lock(file, &first), "its own holder may ask again");
    assert!(!process.disk.lock(file, &second));
    drop(first);
    assert!(process.disk.lock(file, &second));
}

#[test]
fn names_are_found_and_refused_as_on_linux() {
    let mut process = Process::on(strict(), 1);
    process.ask(Request::CreateDirectories { path: "/d/e".into() }).unwrap();
    process.open("/d/a");
    process.open("/d/e/b");
    let errno = |process: &mut Process, request| match process.ask(request) {
        Err(Errno(errno)) => errno,
        Ok(reply) => panic!("{reply:?}"),
    };
    let create_new = OpenMode { create_new: true, ..OpenMode::default() };
    let cases = [
        (Request::Open { path: "/x".into(), mode: OpenMode::default() }, libc::ENOENT),
        (Request::Open { path: "/d".into(), mode: OpenMode::default() }, libc::EISDIR),
        (Request::Open { path: "/d/a".into(), mode: create_new }, libc::EEXIST),
        (Request::Open { path: "/d/a/b".into(), mode: create_new }, libc::ENOTDIR),
        (Request::CreateDirectories { path: "/d/a".into() }, libc::EEXIST),
        (Request::RemoveFile { path: "/d/e".into() }, libc::EISDIR),
        (Request::Rename { from: "/d/a".into(), to: "/d/e".into() }, libc::EISDIR),
        (Request::Rename { from: "/d".into(), to: "/d/e/f".into() }, libc::EINVAL),
        (Request::List { path: "/d/a".into() }, libc::ENOTDIR),
        (Request::SyncDirectory { path: "/none".into() }, libc::ENOENT),
    ];
    for (request, expected) in cases {
        assert_eq!(errno(&mut process, request), expected);
    }
    process.ask(Request::Rename { from: "/d".into(), to: "/moved".into() }).unwrap();
    assert_eq!(process.names(), "/moved/a /moved/e/b");
    process.ask(Request::RemoveTree { path: "moved".into() }).unwrap();
    assert_eq!(process.names(), "");
}
