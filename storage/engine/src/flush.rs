//! Making bytes durable: group commit, and who waits for it.
//!
//! Owns the one flush of a log that is in flight at any time: of its own files, or, where nothing but the device's flush is
//! needed, the one that all logs share (`shared_flush.rs`). Writes never wait for it; it covers what was written before
//! it was issued, and when it is done everybody it covers is acknowledged at once. What was written meanwhile is covered
//! by the next. A failed flush takes the whole data directory offline, on every core, and is never tried again: the second
//! answer would be OK and the bytes gone (case 26).
//!
//! ```text
//! write A ─┬─ flush 1 (covers A) ──┬─ ack A, flush 2 (covers B and C) ── ack B, C
//!          └─ write B ── write C ──┘
//! ```

use std::collections::VecDeque;
use std::rc::Rc;

use heddle_io::File;
use heddle_io::sync::{OneshotReceiver, OneshotSender, oneshot};
use heddle_record::Offset;

use crate::cold::Commit;
use crate::config::{LogConfig, PlantedBug};
use crate::device::Device;
use crate::error::Error;
use crate::index::TimeEntry;
use crate::log::{Log, LogInner};
use crate::state::{Boundary, DirtyFile, LogState};

impl Log {
    /// Waits until the record at `last_offset` is with the operating system and can be read (acks=1).
    ///
    /// # Errors
    /// [`Error::Offline`] if that will not happen any more.
    pub async fn written(&self, last_offset: Offset) -> Result<(), Error> {
        self.inner.wait_for(last_offset, Limit::Written).await
    }

    /// Waits until the record at `last_offset` survives a power cut. Where the topic relaxes flushing this asks for a
    /// flush.
    ///
    /// # Errors
    /// [`Error::Offline`] if that is not known.
    pub async fn flushed(&self, last_offset: Offset) -> Result<(), Error> {
        self.inner.start_flushing();
        self.inner.wait_for(last_offset, Limit::Flushed).await
    }

    /// Waits until this replica may commit the record at `last_offset` (acks=all on a single replica): it is flushed, or
    /// only written where the topic relaxes flushing.
    ///
    /// # Errors
    /// [`Error::Offline`] if that will not happen any more.
    pub async fn committable(&self, last_offset: Offset) -> Result<(), Error> {
        let limit = if self.config().relaxes_flushing() { Limit::Written } else { Limit::Flushed };
        self.inner.wait_for(last_offset, limit).await
    }

    /// Makes everything durable that has offsets now.
    ///
    /// # Errors
    /// [`Error::Offline`] if that is not known.
    pub async fn flush(&self) -> Result<(), Error> {
        let log_end = self.inner.state.borrow().log_end;
        match log_end.checked_add(-1) {
            Some(last_offset) if last_offset >= self.inner.state.borrow().flushed.offset => {
                self.inner.wait_for(last_offset, Limit::Written).await?;
                self.flushed(last_offset).await
            }
            _ => self.inner.offline().map_or(Ok(()), Err),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    Written,
    Flushed,
}

/// What one flush covers.
pub(crate) struct FlushPlan {
    covers: Boundary,
    /// Files that need a flush of their own, of segments up to the one that `covers` lies in.
    files: Vec<File>,
    /// A directory entry of one of them is new.
    new_entry: bool,
    /// How far the flush settles the blocks of the segment that is written.
    settles: Option<(Offset, u64)>,
    /// The largest timestamp of the segment, up to what is covered.
    max: Option<TimeEntry>,
    truncations: u64,
}

impl FlushPlan {
    /// Whether any flush of the device will do.
    pub(crate) fn is_shared(&self) -> bool {
        self.files.is_empty() && !self.new_entry
    }
}

impl LogInner {
    async fn wait_for(&self, last_offset: Offset, limit: Limit) -> Result<(), Error> {
        loop {
            let waiter = {
                self.offline().map_or(Ok(()), Err)?;
                let mut state = self.state.borrow_mut();
                let (end, queue) = match limit {
                    Limit::Written => (state.written.offset, &mut state.written_waiters),
                    Limit::Flushed => (state.flushed.offset, &mut state.flushed_waiters),
                };
                if last_offset < end {
                    return Ok(());
                }
                queue.wait(last_offset)
            };
            // Woken by sending or by dropping the sender: either way the limits are looked at again.
            let _woken = waiter.await;
        }
    }

    /// Asks for a flush if the topic's settings do by now.
    pub(crate) fn flush_if_due(self: &Rc<Self>) {
        let due = {
            let (state, config) = (self.state.borrow(), self.config.borrow());
            state.flush_is_due(&config)
                || !state.flushed_waiters.is_empty()
                || (!state.dirty.is_empty() && self.core.too_many_dirty_files())
        };
        if due {
            self.start_flushing();
        } else {
            self.plan_timed_flush();
        }
    }

    /// Where the topic bounds how long a record may wait for its flush, tells the engine's upkeep when that is.
    fn plan_timed_flush(self: &Rc<Self>) {
        let Some(age) = self.config.borrow().flush_age_max else { return };
        if !self.state.borrow().dirty.is_empty() {
            self.core.flush_later(self.name.id, self.io().now() + age);
        }
    }

    /// Makes sure that a task flushes what is written.
    pub(crate) fn start_flushing(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        if state.flushing {
            return;
        }
        let Some(plan) = state.plan_flush(self.core.device) else { return };
        state.flushing = true;
        drop(state);
        if plan.is_shared() {
            self.core.shared_flush.ask(Rc::clone(self));
        } else {
            self.flush_alone();
        }
    }

    /// Starts the task that flushes this log's own files.
    pub(crate) fn flush_alone(self: &Rc<Self>) {
        self.io().spawn(Rc::clone(self).flush_dirty()).detach();
    }

    /// The shared flush that covers `plan` is over.
    pub(crate) fn shared_flush_ended(self: &Rc<Self>, plan: FlushPlan, result: &Result<(), Error>) {
        match result {
            Ok(()) => self.publish_flushed(plan),
            Err(error) => self.fail_flush(error),
        }
        self.state.borrow_mut().flushing = false;
        if result.is_ok() && self.flush_is_wanted() {
            self.start_flushing();
        }
    }

    fn fail_flush(&self, error: &Error) {
        if !self.state.borrow().deleted {
            self.core.dir.take_offline(error);
            self.take_offline(error);
        }
    }

    fn flush_is_wanted(&self) -> bool {
        let state = self.state.borrow();
        state.flush_is_due(&self.config.borrow()) || !state.flushed_waiters.is_empty()
    }

    async fn flush_dirty(self: Rc<Self>) {
        loop {
            let permit = self.core.flush_permits.acquire(1).await;
            // Planned only now: it covers what was written while waiting for the permit.
            let plan = self.state.borrow().plan_flush(self.core.device);
            let Some(plan) = plan else { break };
            if plan.is_shared() {
                return self.core.shared_flush.ask(Rc::clone(&self));
            }
            let flush = self.core.meters.flush(self.io(), self.run_flush(&plan));
            let flushed = self.core.commit(Commit::Flush, flush).await;
            drop(permit);
            match flushed {
                Ok(()) => self.publish_flushed(plan),
                Err(error) => {
                    self.fail_flush(&error);
                    break;
                }
            }
            if !self.flush_is_wanted() {
                break;
            }
        }
        self.state.borrow_mut().flushing = false;
    }

    async fn run_flush(&self, plan: &FlushPlan) -> Result<(), Error> {
        let bug = self.core.config.planted_bug;
        if plan.new_entry && bug != PlantedBug::NoDirectorySync {
            self.io().sync_dir(&self.path).await?;
        }
        for file in &plan.files {
            let mut flushed = self.core.device.flush(self.io(), file).await;
            if flushed.is_err() && bug == PlantedBug::RetryFailedFlush {
                flushed = self.core.device.flush(self.io(), file).await;
            }
            flushed?;
        }
        Ok(())
    }

    /// Moves the flushed end to what the flush covered, and wakes who waits for it.
    fn publish_flushed(self: &Rc<Self>, plan: FlushPlan) {
        if self.core.dir.is_offline() {
            return self.take_offline(&self.core.dir.offline_error().expect("it is offline"));
        }
        let mut state = self.state.borrow_mut();
        if state.truncations != plan.truncations || state.offline.is_some() {
            return;
        }
        state.note_flushed(&plan);
        let (end, closed) = (state.flushed.offset, state.drop_clean_files());
        state.flushed_waiters.wake_below(end);
        state.check_order();
        drop(state);
        self.core.dirty_files.set(self.core.dirty_files.get() - closed);
        self.limits_moved();
    }
}

impl LogState {
    /// Whether the topic's settings ask for a flush now.
    fn flush_is_due(&self, config: &LogConfig) -> bool {
        let unflushed = self.written.offset.distance_from(self.flushed.offset).unwrap_or(i64::MAX);
        unflushed > 0
            && (!config.relaxes_flushing()
                || u64::try_from(unflushed).is_ok_and(|count| count >= config.flush_messages))
    }

    /// What a flush that is issued now covers; `None` if there is nothing to flush or the log is offline.
    pub(crate) fn plan_flush(&self, device: Device) -> Option<FlushPlan> {
        if self.written == self.flushed || self.offline.is_some() {
            return None;
        }
        let covers = self.written;
        let needs_own = |dirty: &&DirtyFile| {
            dirty.segment <= covers.segment
                && (!device.shares_flushes() || dirty.unsettled_to > self.flushed_in(dirty.segment))
        };
        let own = self.dirty.iter().filter(needs_own);
        let settles = self.space.filter(|space| own.clone().any(|dirty| dirty.segment == space.segment));
        let settles = settles.map(|space| (space.segment, space.touched_end()));
        let files: Vec<File> = own.map(|dirty| dirty.file.clone()).collect();
        let new_entry =
            self.segments.iter().any(|segment| segment.base_offset <= covers.segment && !segment.entry_synced);
        Some(FlushPlan { covers, files, new_entry, settles, max: self.written_max, truncations: self.truncations })
    }

    /// How many bytes of a segment are flushed.
    fn flushed_in(&self, segment: Offset) -> u64 {
        match segment.cmp(&self.flushed.segment) {
            std::cmp::Ordering::Less => u64::MAX,
            std::cmp::Ordering::Equal => self.flushed.position,
            std::cmp::Ordering::Greater => 0,
        }
    }

    fn note_flushed(&mut self, plan: &FlushPlan) {
        self.flushed = plan.covers;
        self.flushed_max = plan.max;
        if let (Some((segment, end)), Some(space)) = (plan.settles, &mut self.space)
            && space.segment == segment
        {
            space.settle(end);
        }
        self.remember(plan.covers);
        for segment in &mut self.segments {
            // Only segments that had a file when the flush began; of a later one nothing is known.
            segment.entry_synced |= segment.base_offset <= plan.covers.segment;
        }
    }

    /// Lets go of the files in which nothing is left to flush. Returns how many.
    pub(crate) fn drop_clean_files(&mut self) -> usize {
        let before = self.dirty.len();
        let (flushed, written) = (self.flushed, self.written);
        let clean = flushed == written && !self.writing;
        self.dirty.retain(|dirty| dirty.segment > flushed.segment || (dirty.segment == flushed.segment && !clean));
        before - self.dirty.len()
    }
}

/// Tasks that wait for an offset to be passed, in the order of offsets.
#[derive(Debug, Default)]
pub(crate) struct AckQueue {
    waiters: VecDeque<(Offset, Waiter)>,
}

struct Waiter(OneshotSender<()>);

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiter")
    }
}

impl AckQueue {
    /// Resolves when `last_offset` is below the limit, or everybody is woken.
    fn wait(&mut self, last_offset: Offset) -> OneshotReceiver<()> {
        let (sender, receiver) = oneshot();
        // Nearly always at the end: acknowledgements are waited for in the order of appends.
        let place = self.waiters.partition_point(|(offset, _)| *offset <= last_offset);
        self.waiters.insert(place, (last_offset, Waiter(sender)));
        receiver
    }

    /// Wakes all who wait for offsets below `end`.
    pub(crate) fn wake_below(&mut self, end: Offset) {
        while self.waiters.front().is_some_and(|(offset, _)| *offset < end) {
            self.waiters.pop_front();
        }
        if self.waiters.is_empty() {
            self.waiters = VecDeque::new();
        }
    }

    /// Wakes everybody.
    pub(crate) fn wake_all(&mut self) {
        self.waiters = VecDeque::new();
    }

    fn is_empty(&self) -> bool {
        self.waiters.iter().all(|(_, waiter)| waiter.0.is_closed())
    }
}
