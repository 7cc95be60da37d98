//! Cold reads: bytes that come from the disk, beside appends that wait for the same disk.
//!
//! Owns how many of them are in flight ([`ColdReads`]), and reading a stretch of a file in order with several reads in flight
//! ([`ColdStream`]). Never looks at what it reads. `docs/decisions/0020-cold-reads.md` has the measurements.
//!
//! A write or a flush waits behind all that the disk was given before it, so appends pay for the bytes that cold reads have in
//! flight. Beside appends these are a window, of all cores together, that follows the time of the appends' own writes and
//! flushes, their commits:
//!
//! ```text
//! a commit with no cold read beside it ──── is how long they usually take (a slow median)
//! a commit beside cold reads ─┬─ at most half as long again ── the window grows by a step
//!                             └─ longer ───────────────────── it shrinks by half, to no less than one read
//! none of the first kind for a while ── cold reads pause until there was one
//! ```
//!
//! A core may always have one read in flight: a drain gets on whatever the appends do, and no core waits for another's.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use heddle_io::sync::{Notify, Semaphore};
use heddle_io::{Budget, File, Lease, Monotonic, Task};

use crate::engine::Core;

/// Bytes of one cold read at most.
pub(crate) const READ_BYTES: usize = 128 << 10;
/// Bytes that one read of a log waits for, and the rest of a batch.
pub(crate) const WAITED_FOR_BYTES_MAX: u64 = 4 << 20;
/// Bytes in flight while nobody appends.
const QUIET_BYTES_MAX: usize = 2 << 20;
/// Bounds of the window beside appends, and a step of its growth.
const WINDOW_MIN: usize = READ_BYTES;
const WINDOW_MAX: usize = 1 << 20;
const WINDOW_STEP: usize = 64 << 10;
/// Appends are there until nothing was committed for this long.
const LINGER: Duration = Duration::from_secs(10);
/// How much longer than usual a commit may take beside cold reads: this part of its usual time, and a little in any case.
const SLOWER_PART: u32 = 2;
const SLACK: Duration = Duration::from_micros(200);
/// How long what is usual is believed while there are cold reads beside each commit, and how long they pause at most for one
/// without.
const USUAL_FOR: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// The part of itself by which the usual time follows each commit.
const USUAL_STEP: u32 = 16;

/// What the cores of a data directory share: they read from one disk.
#[derive(Debug)]
pub(crate) struct SharedColdReads {
    in_flight: Budget,
    /// Bytes in flight beside appends. Two cores that change it at once may lose one of the changes: it is changed all the time.
    window: AtomicUsize,
    /// When a commit began or ended last, ns of the monotonic clock; 0 before the first.
    committed_at: AtomicU64,
    /// Until when no cold read begins, ns of the monotonic clock.
    paused_until: AtomicU64,
}

impl Default for SharedColdReads {
    fn default() -> SharedColdReads {
        SharedColdReads {
            in_flight: Budget::new(),
            window: AtomicUsize::new(WINDOW_MIN),
            committed_at: AtomicU64::new(0),
            paused_until: AtomicU64::new(0),
        }
    }
}

impl SharedColdReads {
    /// Bytes that may be in flight now.
    fn limit(&self, now: Monotonic) -> usize {
        if self.has_appends(now) { self.window.load(Ordering::Relaxed) } else { QUIET_BYTES_MAX }
    }

    fn has_appends(&self, now: Monotonic) -> bool {
        let committed_at = self.committed_at.load(Ordering::Relaxed);
        committed_at != 0 && now.since(Monotonic::from_nanos(committed_at)) < LINGER
    }

    /// Cores write to one place here: not more often than matters.
    fn note_commit(&self, now: Monotonic) {
        let before = Monotonic::from_nanos(self.committed_at.load(Ordering::Relaxed));
        if now.since(before) > LINGER / 100 {
            self.committed_at.store(now.as_nanos().max(1), Ordering::Relaxed);
        }
    }

    fn grow(&self) {
        let window = self.window.load(Ordering::Relaxed);
        self.window.store((window + WINDOW_STEP).min(WINDOW_MAX), Ordering::Relaxed);
    }

    fn shrink(&self) {
        let window = self.window.load(Ordering::Relaxed);
        self.window.store((window / 2).max(WINDOW_MIN), Ordering::Relaxed);
    }
}

/// What a commit waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commit {
    /// A write past the page cache.
    Write,
    /// A flush.
    Flush,
}

/// A commit that has begun.
#[derive(Debug, Clone, Copy)]
struct Begun {
    at: Monotonic,
    takes: u64,
    beside_reads: bool,
}

/// How long one kind of commit takes, as far as this core has seen.
#[derive(Debug, Default)]
struct Usual {
    /// A median that moves slowly; `None` before the first.
    time: Cell<Option<Duration>>,
    /// When a commit without cold reads beside it was seen last, or a pause was made for one.
    seen_at: Cell<Option<Monotonic>>,
}

impl Usual {
    fn learn(&self, took: Duration) {
        let next = self.time.get().map_or(took, |usual| {
            let step = usual / USUAL_STEP;
            if took > usual { usual + step } else { usual - step }
        });
        self.time.set(Some(next));
    }

    fn is_exceeded_by(&self, took: Duration) -> bool {
        self.time.get().is_none_or(|usual| took > usual + usual / SLOWER_PART + SLACK)
    }
}

/// One core's cold reads.
pub(crate) struct ColdReads {
    /// Who asks for the next read; the others wait behind, in the order in which they came.
    turn: Semaphore,
    /// Reads of this core that are in flight.
    own: Cell<usize>,
    /// Told when one of them ended, or a pause has.
    freed: Notify,
    writes: Usual,
    flushes: Usual,
    /// When the window was last made smaller by this core.
    shrunk_at: Cell<Monotonic>,
}

impl ColdReads {
    pub(crate) fn new() -> ColdReads {
        ColdReads {
            turn: Semaphore::new(1),
            own: Cell::new(0),
            freed: Notify::new(),
            writes: Usual::default(),
            flushes: Usual::default(),
            shrunk_at: Cell::new(Monotonic::from_nanos(0)),
        }
    }

    fn usual(&self, commit: Commit) -> &Usual {
        match commit {
            Commit::Write => &self.writes,
            Commit::Flush => &self.flushes,
        }
    }
}

impl Core {
    /// Runs a commit of appends: what cold reads follow.
    pub(crate) async fn commit<T>(&self, commit: Commit, work: impl Future<Output = T>) -> T {
        let shared = self.dir.cold_reads();
        let begun =
            Begun { at: self.io.now(), takes: shared.in_flight.takes(), beside_reads: shared.in_flight.used() > 0 };
        shared.note_commit(begun.at);
        let result = work.await;
        self.commit_ended(commit, begun);
        result
    }

    fn commit_ended(&self, commit: Commit, begun: Begun) {
        let (shared, own, now) = (self.dir.cold_reads(), &self.cold_reads, self.io.now());
        shared.note_commit(now);
        let (usual, took) = (own.usual(commit), now.since(begun.at));
        if !begun.beside_reads && shared.in_flight.takes() == begun.takes {
            usual.learn(took);
            usual.seen_at.set(Some(now));
            if shared.paused_until.swap(0, Ordering::Relaxed) != 0 {
                own.freed.notify_all();
            }
            return;
        }
        if usual.is_exceeded_by(took) {
            // What began before the last time says nothing about the window since.
            if begun.at >= own.shrunk_at.get() {
                shared.shrink();
                own.shrunk_at.set(now);
            }
        } else {
            shared.grow();
        }
        if usual.seen_at.get().is_none_or(|seen_at| now.since(seen_at) > USUAL_FOR) {
            usual.seen_at.set(Some(now));
            shared.paused_until.store((now + PAUSE_MAX).as_nanos(), Ordering::Relaxed);
        }
    }

    /// Waits until `bytes` more may be in flight.
    pub(crate) async fn admit_cold(self: &Rc<Self>, bytes: usize) -> ColdPermit {
        let (shared, own) = (self.dir.cold_reads(), &self.cold_reads);
        let _turn = own.turn.acquire(1).await;
        loop {
            let now = self.io.now();
            let paused_until = Monotonic::from_nanos(shared.paused_until.load(Ordering::Relaxed));
            if paused_until > now {
                // Either way everything is looked at again.
                let _woken = self.io.timeout_at(paused_until, own.freed.wait()).await;
                continue;
            }
            if own.own.get() == 0 {
                shared.in_flight.take(bytes);
            } else if !shared.in_flight.try_take(bytes, shared.limit(now)) {
                own.freed.wait().await;
                continue;
            }
            own.own.set(own.own.get() + 1);
            return ColdPermit { core: Rc::clone(self), bytes };
        }
    }

    /// Reads bytes of a file in their turn.
    async fn read_cold(self: Rc<Self>, file: File, position: u64, len: usize) -> Result<Lease, heddle_io::Error> {
        let _permit = self.admit_cold(len).await;
        let (read, buffer) = self.io.read(&file, position, self.io.buffer(len), len).await;
        read.map(|_| buffer.freeze())
    }

    /// Brings bytes of a file into the page cache that are not there, some megabytes at most: what follows is read when it is
    /// sent.
    pub(crate) async fn warm(self: &Rc<Self>, file: &File, range: Range<u64>) -> Result<(), heddle_io::Error> {
        let end = range.end.min(range.start.saturating_add(WAITED_FOR_BYTES_MAX));
        let len = usize::try_from(end - range.start).expect("some megabytes");
        if self.io.is_resident(file, range.start, len) {
            return Ok(());
        }
        let mut stream = ColdStream::new(self, file.clone(), range.start, end);
        while !stream.next().await?.is_empty() {}
        Ok(())
    }

    /// Reads that a stream should have in flight now.
    fn cold_depth(&self) -> usize {
        (self.dir.cold_reads().limit(self.io.now()) / READ_BYTES).max(1)
    }
}

/// Bytes that are in flight until it drops.
pub(crate) struct ColdPermit {
    core: Rc<Core>,
    bytes: usize,
}

impl Drop for ColdPermit {
    fn drop(&mut self) {
        let own = &self.core.cold_reads;
        self.core.dir.cold_reads().in_flight.give_back(self.bytes);
        own.own.set(own.own.get() - 1);
        own.freed.notify_all();
    }
}

/// A stretch of a file, read in order, several reads ahead of who takes the bytes. Reads that are in flight when it drops run
/// to their end and are counted until then.
pub(crate) struct ColdStream {
    core: Rc<Core>,
    file: File,
    /// Where the next read begins, and where the last one ends.
    next: u64,
    end: u64,
    ahead: VecDeque<Task<Result<Lease, heddle_io::Error>>>,
}

impl ColdStream {
    /// The bytes from `position` to `end` of `file`.
    pub(crate) fn new(core: &Rc<Core>, file: File, position: u64, end: u64) -> ColdStream {
        // Beside appends the kernel adds nothing to what may be in flight.
        core.io.set_read_ahead(&file, !core.dir.cold_reads().has_appends(core.io.now()));
        ColdStream { core: Rc::clone(core), file, next: position, end, ahead: VecDeque::new() }
    }

    /// The next bytes; empty at the end.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) async fn next(&mut self) -> Result<Lease, heddle_io::Error> {
        self.read_ahead();
        match self.ahead.pop_front() {
            Some(read) => {
                let bytes = read.await;
                self.read_ahead();
                bytes
            }
            None => Ok(Lease::empty()),
        }
    }

    fn read_ahead(&mut self) {
        let depth = self.core.cold_depth();
        while self.ahead.len() < depth && self.next < self.end {
            // To the next multiple: no two reads share a block.
            let len = READ_BYTES - (self.next % READ_BYTES as u64) as usize;
            let len = len.min(usize::try_from(self.end - self.next).unwrap_or(usize::MAX));
            let read = Rc::clone(&self.core).read_cold(self.file.clone(), self.next, len);
            self.ahead.push_back(self.core.io.spawn(read));
            self.next += len as u64;
        }
    }
}

impl std::fmt::Debug for ColdStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ColdStream({}, {}..{})", self.file.path().display(), self.next, self.end)
    }
}
