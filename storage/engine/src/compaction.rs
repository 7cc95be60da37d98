//! Compaction: of each key the last record stays (`cleanup.policy=compact`).
//!
//! Owns which log is next and when. A log becomes a candidate when it seals a segment; a log that is clean costs nothing
//! until then, and there is no timer for any of them. The dirtiest goes first, one at a time on each core, in slices of
//! half a millisecond. It never touches the active segment, nothing above the high watermark, and nothing that no
//! checkpoint vouches for.
//!
//! `dirt.rs` says whether a pass is worth it, `pass.rs` is the pass, `rules.rs` what stays, `survivors.rs` which records are
//! the last of their keys (`offset_map.rs`, `offset_set.rs`), `target.rs` what is written, `swap.rs` how a rewritten segment
//! takes its place, `manifest.rs` what is written down of that, `pace.rs` how fast it goes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use heddle_io::Monotonic;
use heddle_io::sync::{Notify, Semaphore};
use heddle_record::{LogId, Timestamp};

use crate::config::CleanerConfig;
use crate::engine::Engine;
use crate::error::Error;
use crate::log::{Log, LogInner};

mod dirt;
mod key_hash;
mod manifest;
mod offset_map;
mod offset_set;
mod pace;
mod pass;
mod rules;
mod slot_group;
mod survivors;
mod swap;
mod target;

pub(crate) use manifest::Manifest;
pub use manifest::{COMPACTION_HEADER_LEN, COMPACTION_MAGIC, COMPACTION_SEGMENT_LEN, COMPACTION_VERSION};
pub use pass::Compacted;
pub(crate) use swap::{corrected, finish_swaps, read_manifest};

use dirt::Job;
use pace::Pace;
use pass::{Pass, Verdicts};

/// Logs that are looked at before others run.
const LOGS_PER_TURN: usize = 64;
/// How long a log is left alone that cannot be compacted because of what is in it.
const DAMAGED_PAUSE: Duration = Duration::from_secs(600);
/// How long a log is left alone whose pass has failed for another reason.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// What a log needs for its compaction.
pub(crate) struct Compaction {
    /// One pass at a time, and none while the log is opened again or closed.
    pub(crate) turn: Semaphore,
    /// What is on the disk, once somebody has looked.
    manifest: RefCell<Option<Manifest>>,
    /// It is left alone until then.
    retry_at: Cell<Option<Monotonic>>,
    /// It was said that what is in the log keeps it from being compacted, and no pass has succeeded since.
    is_told: Cell<bool>,
}

impl Compaction {
    pub(crate) fn new() -> Compaction {
        let (manifest, retry_at, is_told) = (RefCell::default(), Cell::default(), Cell::default());
        Compaction { turn: Semaphore::new(1), manifest, retry_at, is_told }
    }

    async fn load(&self, log: &LogInner) -> Result<(), Error> {
        if self.manifest.borrow().is_none() {
            let read = read_manifest(log.io(), &log.path).await?;
            self.manifest.borrow_mut().get_or_insert(read);
        }
        Ok(())
    }

    /// Leaves the log alone for so long.
    fn rest(&self, now: Monotonic, pause: Option<Duration>) {
        self.retry_at.set(pause.map(|pause| now + pause));
    }
}

/// What the logs of a core share for their compaction.
#[derive(Default)]
pub(crate) struct Cleaner {
    pub(crate) config: RefCell<CleanerConfig>,
    /// Logs that may have something to compact.
    candidates: RefCell<BTreeSet<LogId>>,
    /// Told when there is something new to do, or nothing more.
    changed: Notify,
    is_stopped: Rc<Cell<bool>>,
}

impl Cleaner {
    pub(crate) fn new(config: CleanerConfig) -> Cleaner {
        Cleaner { config: RefCell::new(config), ..Cleaner::default() }
    }

    /// A log has sealed a segment, was opened, or has other settings.
    pub(crate) fn consider(&self, log: LogId) {
        self.candidates.borrow_mut().insert(log);
    }

    /// Logs that may have something to compact.
    pub(crate) fn candidates(&self) -> usize {
        self.candidates.borrow().len()
    }

    /// No pass is begun any more, and the one under way is given up.
    pub(crate) fn stop(&self) {
        self.is_stopped.set(true);
        self.changed.notify_all();
    }
}

impl Engine {
    /// Compacts the logs of this core, whenever there is something to compact, until the engine is closed.
    pub async fn keep_compacted(&self) {
        let core = &self.inner.core;
        while !core.cleaner.is_stopped.get() {
            let changed = core.cleaner.changed.wait();
            let backoff = core.cleaner.config.borrow().backoff;
            if let Err(error) = self.compact().await {
                core.dir.note_failure(&error);
                tracing::warn!(%error, "compaction could not go on; it tries again later");
            }
            let _told = core.io.timeout(backoff, changed).await;
        }
    }

    /// Compacts every log of this core that it is worth it for now, the dirtiest first.
    ///
    /// # Errors
    /// The disk's. A log that is damaged is no error: it is left as it is, with a line in the log.
    pub async fn compact(&self) -> Result<Compacted, Error> {
        let mut all = Compacted::default();
        loop {
            let dirty = self.dirty().await?;
            if dirty.is_empty() {
                return Ok(all);
            }
            for log in dirty {
                // The last one took a while: much may have changed.
                if let Some(job) = self.job_of(&log).await? {
                    all.add(&self.compact_log(&log, job).await?);
                }
            }
        }
    }

    /// Changes how the logs of this core are compacted, from the next pass on.
    pub fn set_cleaner(&self, config: CleanerConfig) {
        let cleaner = &self.inner.core.cleaner;
        if *cleaner.config.borrow() != config {
            *cleaner.config.borrow_mut() = config;
            cleaner.changed.notify_all();
        }
    }

    /// The logs that a pass is worth it for, the dirtiest first.
    async fn dirty(&self) -> Result<Vec<Log>, Error> {
        let core = &self.inner.core;
        let candidates: Vec<LogId> = core.cleaner.candidates.borrow().iter().copied().collect();
        let mut dirty: Vec<(u64, Log)> = Vec::new();
        for (number, id) in candidates.into_iter().enumerate() {
            if number % LOGS_PER_TURN == LOGS_PER_TURN - 1 {
                core.io.yield_now().await;
            }
            let Some(log) = self.log(id).filter(|log| log.config().cleanup_policy.compacts()) else {
                core.cleaner.candidates.borrow_mut().remove(&id);
                continue;
            };
            if let Some(job) = self.job_of(&log).await? {
                dirty.push((job.ratio, log));
            }
        }
        dirty.sort_by_key(|(ratio, _)| std::cmp::Reverse(*ratio));
        Ok(dirty.into_iter().map(|(_, log)| log).collect())
    }

    /// What is to be done about a log; nothing about one that is offline or could not be compacted lately.
    async fn job_of(&self, log: &Log) -> Result<Option<Job>, Error> {
        let inner = &log.inner;
        let core = &self.inner.core;
        let may_be_tried = inner.compaction.retry_at.get().is_none_or(|at| core.io.now() >= at);
        let is_off = !core.cleaner.config.borrow().enabled || core.cleaner.is_stopped.get();
        if is_off || log.offline().is_some() || !may_be_tried {
            return Ok(None);
        }
        let now = Timestamp::new(core.io.wall_clock());
        let config = log.config();
        if inner.state.borrow().active_is_overdue(&config, now) {
            inner.roll_active().await?;
        }
        let has_sealed = inner.state.borrow().segments.len() > 1;
        if !has_sealed {
            self.forget_if_settled(log);
            return Ok(None);
        }
        if let Err(error) = inner.compaction.load(inner).await {
            self.give_up(log, &error)?;
            return Ok(None);
        }
        let job = {
            let manifest = inner.compaction.manifest.borrow();
            let manifest = manifest.as_ref().expect("it was just loaded");
            inner.state.borrow().dirt(manifest, &config, now)
        };
        if job.is_none() {
            self.forget_if_settled(log);
        }
        Ok(job)
    }

    /// A log with nothing that only time makes due is no candidate until it seals another segment.
    fn forget_if_settled(&self, log: &Log) {
        let waits_for_time = log.config().compaction_lag_max.is_some() || {
            let manifest = log.inner.compaction.manifest.borrow();
            let state = log.inner.state.borrow();
            let active = state.segments[state.segments.len() - 1].base_offset;
            let is_clean = manifest.as_ref().is_some_and(|manifest| manifest.first_dirty >= active);
            let has_tombstones =
                manifest.as_ref().is_some_and(|manifest| manifest.segments.iter().any(|one| one.horizon.is_some()));
            state.segments.len() > 1 && (!is_clean || has_tombstones)
        };
        if !waits_for_time {
            self.inner.core.cleaner.candidates.borrow_mut().remove(&log.name().id);
        }
    }

    async fn compact_log(&self, log: &Log, mut job: Job) -> Result<Compacted, Error> {
        let core = &self.inner.core;
        let vouched_for = || log.inner.state.borrow().vouched_for;
        if job.end > vouched_for() {
            self.checkpoint().await?;
        }
        job.end = job.end.min(vouched_for()).max(job.first_dirty);
        let config = core.cleaner.config.borrow().clone();
        let _turn = log.inner.compaction.turn.acquire(1).await;
        let is_stopped = || core.cleaner.is_stopped.get();
        let mut pass = Pass {
            log: &log.inner,
            job,
            pace: Pace::new(&core.io, config.bytes_per_second, Rc::clone(&core.cleaner.is_stopped)),
            map_bytes_max: config.map_bytes_max,
            is_stopped: &is_stopped,
            done: Compacted::default(),
            verdicts: Verdicts::default(),
            memory: Vec::new(),
            transactions: BTreeSet::new(),
        };
        let mut manifest = log.inner.compaction.manifest.borrow().clone().expect("a job comes from a manifest");
        let before = manifest.clone();
        let first_segment = || log.inner.state.borrow().segments[0].base_offset;
        let first_before = first_segment();
        let outcome = pass.run(&mut manifest).await;
        let done = pass.done;
        core.meters.count_pass(&done);
        let has_moved = manifest != before;
        *log.inner.compaction.manifest.borrow_mut() = Some(manifest);
        match outcome {
            Ok(()) => {
                log.inner.compaction.is_told.set(false);
                log.inner.compaction.rest(core.io.now(), pause_after(&Ok(has_moved), config.backoff));
            }
            // What it was about to read was deleted meanwhile: what is left is looked at again.
            Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::NotFound && first_segment() > first_before => {
                log.inner.compaction.rest(core.io.now(), pause_after(&Ok(false), config.backoff));
            }
            Err(error) => self.give_up(log, &error)?,
        }
        tracing::debug!(log = %log.name(), ?done, "compacted");
        Ok(done)
    }

    /// A pass has failed: the log is left alone for a while.
    fn give_up(&self, log: &Log, error: &Error) -> Result<(), Error> {
        let core = &self.inner.core;
        core.dir.note_failure(error);
        let pause = pause_after(&Err(error), core.cleaner.config.borrow().backoff);
        log.inner.compaction.rest(core.io.now(), pause);
        let is_expected = log.inner.state.borrow().deleted || core.cleaner.is_stopped.get();
        match error {
            _ if is_expected => Ok(()),
            Error::Damaged { .. } => {
                // Once: it is tried again now and then, since records may be deleted up to the batch, and beyond it.
                if !log.inner.compaction.is_told.replace(true) {
                    let remedy = "see `heddle log verify`; delete the records up to and with this offset to go on";
                    tracing::error!(log = %log.name(), %error, remedy, "the log cannot be compacted and stays as it is; others are");
                }
                Ok(())
            }
            // It says so itself.
            Error::Offline(_) => Ok(()),
            error => Err(error.clone()),
        }
    }
}

/// How long a log is left alone after a pass, of which `Ok` tells whether it has come any further.
fn pause_after(outcome: &Result<bool, &Error>, backoff: Duration) -> Option<Duration> {
    match outcome {
        Ok(true) => None,
        // The last flush is not in a checkpoint yet, or there is nothing to gain: it is looked at again soon.
        Ok(false) => Some(backoff),
        Err(Error::Damaged { .. }) => Some(DAMAGED_PAUSE),
        Err(_) => Some(RETRY_AFTER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heddle_record::Offset;

    #[test]
    fn only_a_damaged_log_is_left_alone_for_long() {
        let backoff = Duration::from_secs(15);
        assert_eq!(pause_after(&Ok(true), backoff), None);
        assert_eq!(pause_after(&Ok(false), backoff), Some(backoff), "what it lacks is there by the next round");
        assert_eq!(pause_after(&Err(&Error::Offline("stopped".into())), backoff), Some(RETRY_AFTER));
        let damage = Error::Damaged { path: "/l".into(), position: 0, offset: Offset::ZERO, reason: String::new() };
        assert_eq!(pause_after(&Err(&damage), backoff), Some(DAMAGED_PAUSE));
    }
}
