//! One core's engine: the logs that it has open and what they share.
//!
//! Owns opening, deleting and closing logs, the upkeep that runs in the background ([`Engine::maintain`]), and the limits
//! that hold for a whole core. Which logs belong to this core is the broker's decision.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::Duration;

use heddle_io::sync::{Notify, Semaphore};
use heddle_io::{AppendBuffer, EntryKind, Io, Lease, Monotonic};
use heddle_record::{LogId, Timestamp};

use crate::checkpoint::{Busy, CheckpointTurn, inherited};
use crate::cold::ColdReads;
use crate::compaction::Cleaner;
use crate::config::{EngineConfig, LogConfig, PlantedBug};
use crate::data_dir::{DataDir, clean_leftovers};
use crate::device::Device;
use crate::error::Error;
use crate::files::FileTable;
use crate::group::Group;
use crate::layout::{self, DELETED_SUFFIX, LogName};
use crate::log::{Log, LogInner};
use crate::segment::IDLE_AFTER;
use crate::shared_flush::SharedFlush;
use crate::statistics::Meters;
use crate::tail::TailCache;
use crate::touched::{TouchedFile, Trust};

/// One core's engine. Clones share it; it stays on its core.
#[derive(Clone)]
pub struct Engine {
    pub(crate) inner: Rc<EngineInner>,
}

pub(crate) struct EngineInner {
    pub(crate) core: Rc<Core>,
    logs: RefCell<BTreeMap<LogId, Slot>>,
}

/// What is known of a log.
enum Slot {
    /// It is being opened, closed or deleted.
    Busy,
    Open(Log),
}

/// What all logs of a core share.
pub(crate) struct Core {
    pub(crate) io: Io,
    pub(crate) dir: DataDir,
    pub(crate) config: EngineConfig,
    pub(crate) device: Device,
    /// The ends of logs that are in memory.
    pub(crate) tails: TailCache,
    pub(crate) shared_flush: SharedFlush,
    pub(crate) cold_reads: ColdReads,
    pub(crate) files: FileTable,
    /// Bytes that all logs of this core have accepted and not written yet.
    pending_bytes: Cell<usize>,
    /// How long a producer may be silent before it is forgotten.
    producer_id_expiration: Cell<Duration>,
    /// Told when pending bytes were written.
    pub(crate) drained: Notify,
    pub(crate) flush_permits: Semaphore,
    /// Who has it may use a helper thread for work that would hold up the core.
    pub(crate) helper: Semaphore,
    /// Where the headers of batches wait to be written, on the buffered device.
    headers: RefCell<AppendBuffer>,
    /// Files that are held open because they have bytes that were not flushed.
    pub(crate) dirty_files: Cell<usize>,
    /// Producers that all logs of this core remember.
    producers: Cell<usize>,
    pub(crate) checkpoints: CheckpointTurn,
    pub(crate) touched: TouchedFile,
    pub(crate) cleaner: Cleaner,
    pub(crate) meters: Meters,
    /// Names in the data directory that are to become durable, and new directories that are to become so before.
    names: Group<Option<PathBuf>>,
    /// Logs with something on disk that a start has found and that is to become durable.
    found: Group<Found>,
    /// Logs whose files are looked at at the same time.
    pub(crate) lookings: Semaphore,
    /// Directories of deleted logs that are removed at the same time.
    removals: Semaphore,
    /// Settings that a log was opened with lately: neighbours share theirs.
    last_config: RefCell<Rc<LogConfig>>,
    /// Bytes appended since the last checkpoint.
    pub(crate) bytes_since_checkpoint: Cell<u64>,
    /// Logs that are offline because the disk was full or read-only.
    full: RefCell<BTreeSet<LogId>>,
    /// When a log with `flush_age_max` has to be flushed.
    flush_deadlines: RefCell<BTreeMap<LogId, Monotonic>>,
    /// Logs that were written to, and when to look whether they are idle; ascending.
    watched: RefCell<VecDeque<(Weak<LogInner>, Monotonic)>>,
    /// Told when the upkeep has something to do before its time.
    upkeep: Notify,
}

/// What recovery found of a log and does not know to be durable.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    /// Segments with batches behind the recovery point. Their files are closed meanwhile: there may be thousands.
    pub(crate) files: Vec<PathBuf>,
    /// The log's directory, if the name of a segment in it is new.
    pub(crate) directory: Option<PathBuf>,
}

/// How long a log that met a full disk stays offline before it is tried again.
const FULL_PAUSE: Duration = Duration::from_secs(1);
/// How often the machine's free memory is looked at while the ends of logs take any.
const MEMORY_PAUSE: Duration = Duration::from_secs(5);
/// Below this part of the machine's memory the ends of logs give some back, and above twice as much they may grow again.
const MEMORY_LOW_SHARE: u64 = 16;
/// Idle logs that the upkeep sees to before it looks at the rest of its work.
const IDLE_LOGS_AT_ONCE: usize = 64;
/// The longest that the upkeep sleeps, which bounds how long a new deadline can be missed.
const UPKEEP_SLEEP_MAX: Duration = Duration::from_secs(60);
/// The shortest time between two checkpoints that are written because many logs turned busy.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(10);
/// Logs that a start looks at at the same time. More may be waiting for what was found to become durable, with no file open.
const LOOKINGS_MAX: usize = 64;
/// How long what was found in a log waits at most for others that are being looked at, to become durable with it.
const FOUND_DELAY_MAX: Duration = Duration::from_millis(100);
const FOUND_PAUSE: Duration = Duration::from_millis(1);
/// Directories of deleted logs that a core removes at the same time.
const REMOVALS_MAX: usize = 2;
/// How long the directory of a deleted log waits at most for the names of others to be synced.
const REMOVAL_DELAY_MAX: Duration = Duration::from_secs(2);
const REMOVAL_PAUSE: Duration = Duration::from_millis(10);
/// Headers of batches that are not written yet are kept in pieces of memory of this size.
const HEADERS_BYTES: usize = 8 << 10;
/// Logs that are closed at the same time.
const CLOSES_MAX: usize = 64;

impl Engine {
    /// Opens the engine of core `config.core`. The first to open cleans up what a crash has left.
    ///
    /// # Errors
    /// What the system refuses. Checkpoints that cannot be read are ignored with a line in the log.
    pub async fn open(io: &Io, dir: DataDir, config: EngineConfig) -> Result<Engine, Error> {
        assert!(config.core < config.cores, "the core is one of the cores");
        if crate::checkpoint::load_once(io, &dir).await? {
            clean_leftovers(io, dir.path()).await?;
        }
        let device = dir.device(io, config.device).await?;
        let (generation, trust) = {
            let inherited = inherited(&dir);
            (inherited.generation(), if inherited.notes_lost { Trust::Void } else { Trust::Reliable })
        };
        let notes = dir.path().join(layout::touched_file(config.core));
        let touched = TouchedFile::open(io, &notes, generation, trust).await?;
        let core = Core {
            io: io.clone(),
            dir,
            device,
            tails: TailCache::new(config.tail_bytes_max),
            shared_flush: SharedFlush::default(),
            cold_reads: ColdReads::new(),
            files: FileTable::new(config.open_files_max),
            pending_bytes: Cell::new(0),
            drained: Notify::new(),
            helper: Semaphore::new(1),
            flush_permits: Semaphore::new(config.flushes_in_flight_max.max(1)),
            headers: RefCell::new(AppendBuffer::with_capacity(HEADERS_BYTES)),
            dirty_files: Cell::new(0),
            producers: Cell::new(0),
            checkpoints: CheckpointTurn::new(),
            touched,
            cleaner: Cleaner::new(config.cleaner.clone()),
            meters: Meters::default(),
            names: Group::new(),
            found: Group::new(),
            lookings: Semaphore::new(LOOKINGS_MAX),
            removals: Semaphore::new(REMOVALS_MAX),
            last_config: RefCell::default(),
            producer_id_expiration: Cell::new(config.producer_id_expiration),
            bytes_since_checkpoint: Cell::new(0),
            full: RefCell::default(),
            flush_deadlines: RefCell::default(),
            watched: RefCell::default(),
            upkeep: Notify::new(),
            config,
        };
        let inner = EngineInner { core: Rc::new(core), logs: RefCell::default() };
        Ok(Engine { inner: Rc::new(inner) })
    }

    /// The data directory.
    pub fn data_dir(&self) -> &DataDir {
        &self.inner.core.dir
    }

    /// The logs that are in the data directory, open or not, of all cores.
    ///
    /// # Errors
    /// What the system refuses.
    pub async fn stored_logs(&self) -> Result<Vec<LogName>, Error> {
        let entries = self.inner.core.io.read_dir(self.data_dir().path()).await?;
        let directories = entries.iter().filter(|entry| entry.kind == EntryKind::Directory);
        Ok(directories.filter_map(|entry| LogName::from_directory(&entry.name)).collect())
    }

    /// Opens a log: recovers it if it is there, makes it, durably, if it is not.
    ///
    /// # Errors
    /// [`Error::Damaged`] if bytes that were flushed are gone: the log stays closed, and everything on disk as it is.
    /// [`Error::InUse`], [`Error::InvalidTopicName`], [`Error::Io`].
    pub async fn open_log(&self, name: LogName, config: LogConfig) -> Result<Log, Error> {
        let path = self.data_dir().path().join(name.directory()?);
        if self.log(name.id).is_some() {
            return Err(Error::InUse(name.to_string()));
        }
        let mut slot = BusySlot::take(&self.inner, &name)?;
        let core = Rc::clone(&self.inner.core);
        let state = crate::recovery::open_or_create(&core, &name, &path).await?;
        let config = config.checked();
        let log = Log { inner: Rc::new(LogInner::new(core, name, path, config, state)) };
        log.check_invariants();
        self.inner.core.count_producers(log.producer_count());
        if log.config().cleanup_policy.compacts() {
            self.inner.core.cleaner.consider(log.name().id);
        }
        slot.finish(Some(log.clone()));
        Ok(log)
    }

    /// The log, if this core has it open.
    pub fn log(&self, id: LogId) -> Option<Log> {
        match self.inner.logs.borrow().get(&id) {
            Some(Slot::Open(log)) => Some(log.clone()),
            _ => None,
        }
    }

    /// The logs that this core has open.
    pub fn logs(&self) -> Vec<Log> {
        let logs = self.inner.logs.borrow();
        logs.values().filter_map(|slot| if let Slot::Open(log) = slot { Some(log.clone()) } else { None }).collect()
    }

    /// Deletes a log, open or not: it is gone for good when this returns, and its files soon after. Operations on it fail
    /// from now on (case 23).
    ///
    /// # Errors
    /// [`Error::InUse`] while it is being opened, [`Error::Io`]. It is no error if there is no such log.
    pub async fn delete_log(&self, name: &LogName) -> Result<(), Error> {
        let open = self.log(name.id);
        let mut slot = BusySlot::take(&self.inner, name)?;
        if let Some(log) = open {
            log.inner.mark_deleted();
            self.inner.core.forget_producers(log.producer_count());
        }
        let core = &self.inner.core;
        core.files.forget_log(name.id);
        let deleted = remove_directory(core, name).await;
        if deleted.is_ok() {
            crate::checkpoint::forget_log(self.data_dir(), name.id);
        }
        slot.finish(None);
        deleted
    }

    /// Forgets producers that were silent for this long, from the next round of the upkeep on.
    pub fn set_producer_id_expiration(&self, expiration: Duration) {
        self.inner.core.producer_id_expiration.set(expiration);
    }

    /// Runs the upkeep of this core until it is dropped: timed flushes, checkpoints, retention, forgetting idle producers,
    /// and beside them the scrub.
    pub async fn maintain(&self) {
        let (mut upkeep, mut scrub) = (std::pin::pin!(self.upkeep()), std::pin::pin!(self.scrub()));
        std::future::poll_fn(|context| {
            // Neither ever ends.
            let scrubbing = scrub.as_mut().poll(context);
            assert!(scrubbing.is_pending(), "the scrub goes on for ever");
            upkeep.as_mut().poll(context)
        })
        .await;
    }

    async fn upkeep(&self) {
        let (io, config) = (&self.inner.core.io, &self.inner.core.config);
        let mut checkpoint_at = io.now() + config.checkpoint_interval;
        let mut checkpoint_early_at = io.now() + CHECKPOINT_PAUSE;
        let mut retention_at = io.now() + config.retention_check_interval;
        let mut full_at = io.now();
        let mut memory_at = io.now() + MEMORY_PAUSE;
        loop {
            let wake = self.inner.core.upkeep.wait();
            let now = io.now();
            let flush_at = self.flush_overdue(now);
            let many_touched = self.inner.core.touched.noted() >= config.checkpoint_touched_logs;
            if many_touched {
                checkpoint_at = checkpoint_at.min(checkpoint_early_at);
            }
            if now >= checkpoint_at || self.inner.core.checkpoint_is_due() {
                self.checkpoint_logged().await;
                checkpoint_at = io.now() + config.checkpoint_interval;
                checkpoint_early_at = io.now() + CHECKPOINT_PAUSE;
            }
            if now >= retention_at {
                self.expire_producers();
                if let Err(error) = self.apply_retention().await {
                    tracing::warn!(%error, "retention could not finish; it tries again later");
                }
                retention_at = io.now() + config.retention_check_interval;
            }
            if now >= full_at {
                if config.core == 0 || self.inner.core.dir.is_short() {
                    self.inner.core.dir.make_reserve(io).await;
                }
                self.reopen_full_logs().await;
                full_at = io.now() + FULL_PAUSE;
            }
            let idle_at = self.trim_idle_logs().await;
            if self.inner.core.tails.bytes() == 0 {
                memory_at = now + UPKEEP_SLEEP_MAX;
            } else if now >= memory_at {
                self.inner.core.tails.sweep_small();
                self.inner.core.mind_memory();
                memory_at = io.now() + MEMORY_PAUSE;
            } else {
                memory_at = memory_at.min(now + MEMORY_PAUSE);
            }
            let full_at = if self.inner.core.is_full() { full_at } else { now + UPKEEP_SLEEP_MAX };
            let sleep_until = checkpoint_at
                .min(retention_at)
                .min(full_at)
                .min(memory_at)
                .min(idle_at.unwrap_or(now + UPKEEP_SLEEP_MAX))
                .min(flush_at.unwrap_or(now + UPKEEP_SLEEP_MAX));
            let now = io.now();
            let pause = if sleep_until > now { sleep_until - now } else { Duration::ZERO };
            // Woken or time is up: either way everything is looked at again.
            let _woken = io.timeout(pause, wake).await;
        }
    }

    /// Starts the flushes that are due; returns when the next one is.
    fn flush_overdue(&self, now: Monotonic) -> Option<Monotonic> {
        let deadlines = &self.inner.core.flush_deadlines;
        let overdue: Vec<LogId> =
            deadlines.borrow().iter().filter(|(_, deadline)| **deadline <= now).map(|(id, _)| *id).collect();
        for id in overdue {
            deadlines.borrow_mut().remove(&id);
            if let Some(log) = self.log(id) {
                log.inner.start_flushing();
            }
        }
        deadlines.borrow().values().min().copied()
    }

    /// Gives back what was prepared for logs that are idle by now; returns when to look again.
    async fn trim_idle_logs(&self) -> Option<Monotonic> {
        let core = &self.inner.core;
        for _ in 0..IDLE_LOGS_AT_ONCE {
            let now = core.io.now();
            let due = core.watched.borrow_mut().pop_front_if(|(_, deadline)| *deadline <= now);
            let Some((log, _)) = due else { break };
            let Some(log) = log.upgrade() else { continue };
            let again = log.trim_if_idle().await.unwrap_or_else(|error| {
                core.dir.note_failure(&error);
                tracing::warn!(log = %log.name, %error, "the space of an idle log could not be given back");
                false
            });
            if again {
                core.watch(&log);
            } else {
                log.is_watched.set(false);
            }
        }
        core.watched.borrow().front().map(|(_, deadline)| *deadline)
    }

    /// Brings logs back online that met a full or a read-only disk. Where it still is, the next append takes them offline
    /// again.
    pub async fn reopen_full_logs(&self) {
        let full = self.inner.core.take_full();
        if !full.is_empty() {
            self.free_what_was_deleted().await;
        }
        for id in full {
            let Some(log) = self.log(id) else { continue };
            if log.inner.check_room().is_err() {
                self.inner.core.note_full_quietly(id);
                continue;
            }
            match log.inner.reopen().await {
                Ok(()) => tracing::info!(log = %log.name(), "the log is online again"),
                Err(error) if error.is_refusal() => self.inner.core.note_full_quietly(id),
                Err(error) => {
                    tracing::error!(log = %log.name(), %error, "the log cannot be opened again and stays offline")
                }
            }
        }
    }

    /// What was deleted gives its space back once the file system has committed that.
    async fn free_what_was_deleted(&self) {
        let core = &self.inner.core;
        if let Err(error) = core.io.sync_dir(self.data_dir().path()).await {
            core.dir.note_failure_of_writable(&error.into());
        }
    }

    async fn checkpoint_logged(&self) {
        if let Err(error) = self.checkpoint().await {
            tracing::warn!(%error, "the checkpoint could not be written; until one can, a start scans more: check the disk");
        }
    }

    fn expire_producers(&self) {
        let age = i64::try_from(self.inner.core.producer_id_expiration.get().as_millis()).unwrap_or(i64::MAX);
        let limit = Timestamp::new(self.inner.core.io.wall_clock().saturating_sub(age));
        for log in self.logs() {
            let expired = log.inner.state.borrow_mut().producers.expire(limit);
            self.inner.core.forget_producers(expired);
        }
    }

    /// Closes all logs: flushes, completes the index files, writes a checkpoint. Appends fail from now on.
    ///
    /// # Errors
    /// What could not be made durable. A log that went offline earlier is no error: it was reported then.
    pub async fn close(&self) -> Result<(), Error> {
        self.inner.core.cleaner.stop();
        let mut first_error = None;
        let mut closing = VecDeque::new();
        for log in self.logs() {
            closing.push_back(self.inner.core.io.spawn(async move { log.inner.close().await }));
            if closing.len() == CLOSES_MAX {
                let closed = closing.pop_front().expect("some are being closed").await;
                first_error = first_error.or(closed.err());
            }
        }
        for closed in closing {
            first_error = first_error.or(closed.await.err());
        }
        let saved = self.save(Busy::Now).await;
        self.inner.logs.borrow_mut().clear();
        first_error.map_or(saved, Err)
    }

    /// Files that this core has open.
    pub fn open_files(&self) -> usize {
        self.inner.core.files.len() + self.inner.core.dirty_files.get()
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("core", &self.config.core).finish_non_exhaustive()
    }
}

/// Marks a log as busy until it is finished or dropped.
struct BusySlot<'a> {
    inner: &'a EngineInner,
    id: LogId,
    finished: bool,
}

impl<'a> BusySlot<'a> {
    fn take(inner: &'a EngineInner, name: &LogName) -> Result<Self, Error> {
        let mut logs = inner.logs.borrow_mut();
        if let Some(Slot::Busy) = logs.get(&name.id) {
            return Err(Error::InUse(name.to_string()));
        }
        logs.insert(name.id, Slot::Busy);
        Ok(BusySlot { inner, id: name.id, finished: false })
    }

    fn finish(&mut self, log: Option<Log>) {
        self.finished = true;
        let mut logs = self.inner.logs.borrow_mut();
        match log {
            Some(log) => logs.insert(self.id, Slot::Open(log)),
            None => logs.remove(&self.id),
        };
    }
}

impl Drop for BusySlot<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.inner.logs.borrow_mut().remove(&self.id);
        }
    }
}

/// Renames the log's directory, durably, and has it removed. A crash in between leaves a name that is removed at start.
async fn remove_directory(core: &Rc<Core>, name: &LogName) -> Result<(), Error> {
    let directory = core.dir.path();
    let from = directory.join(name.directory()?);
    let to = directory.join(format!("{}{DELETED_SUFFIX}", name.directory()?));
    if !core.io.exists(&from).await? {
        return Ok(());
    }
    core.with_reserve(async || {
        // Of two tries the first may have renamed it.
        match core.io.rename(&from, &to).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => core.sync_names(None).await,
        }
    })
    .await?;
    let core_of_task = Rc::clone(core);
    let deadline = core.io.now() + REMOVAL_DELAY_MAX;
    let removal = async move {
        let _turn = core_of_task.removals.acquire(1).await;
        core_of_task.names_are_quiet(deadline).await;
        if let Err(error) = core_of_task.io.remove_dir_all(&to).await {
            tracing::warn!(directory = %to.display(), %error, "the rest of a deleted log is removed at the next start");
        }
    };
    core.io.spawn(removal).detach();
    Ok(())
}

impl Core {
    /// Whether a log with `pending` bytes that are not written may accept `len` more. One batch is always accepted where
    /// nothing is pending.
    pub(crate) fn has_room(&self, pending: usize, len: usize) -> bool {
        let log_has_room = pending == 0 || pending + len <= self.config.pending_bytes_max;
        let all = self.pending_bytes.get();
        log_has_room && (all == 0 || all + len <= self.config.core_pending_bytes_max)
    }

    /// Makes the names in the data directory durable, and before that those in `made`, a new directory in it. All who ask
    /// at the same time share it.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) async fn sync_names(&self, made: Option<PathBuf>) -> Result<(), Error> {
        let sync = async |made: Vec<Option<PathBuf>>| {
            let sync_one = |path: PathBuf| {
                let io = self.io.clone();
                self.io.spawn(async move { io.sync_dir(&path).await })
            };
            let syncing: Vec<_> = made.into_iter().flatten().map(sync_one).collect();
            for one in syncing {
                one.await?;
            }
            Ok(self.io.sync_dir(self.dir.path()).await?)
        };
        self.names.join(made, sync).await
    }

    /// Waits until no names are being made durable, but not beyond `deadline`. A file system may hold the data directory's lock
    /// until the device has discarded the blocks of a directory that is removed; whoever renames there would wait for it.
    async fn names_are_quiet(&self, deadline: Monotonic) {
        while self.names.is_busy() && self.io.now() < deadline {
            self.io.sleep(REMOVAL_PAUSE).await;
        }
    }

    /// Makes durable what recovery found of a log. All who ask at the same time share it.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) async fn sync_found(&self, found: Found) -> Result<(), Error> {
        let is_forgotten = self.config.planted_bug == PlantedBug::FoundIsNotFlushed;
        if is_forgotten || found.files.is_empty() && found.directory.is_none() {
            return Ok(());
        }
        let sync = async |all: Vec<Found>| {
            let files: Vec<PathBuf> = all.iter().flat_map(|found| found.files.iter().cloned()).collect();
            let directories: Vec<PathBuf> = all.into_iter().filter_map(|found| found.directory).collect();
            Ok(self.io.sync_many(self.dir.path(), &files, &directories).await?)
        };
        self.found.join_after(found, async || self.looked_at_all().await, sync).await
    }

    /// Waits until no log is being looked at, but not for long: the flush for what was found in others serves it too.
    async fn looked_at_all(&self) {
        let deadline = self.io.now() + FOUND_DELAY_MAX;
        while self.lookings.available() < LOOKINGS_MAX && self.io.now() < deadline {
            self.io.sleep(FOUND_PAUSE).await;
        }
    }

    /// The settings, shared with the log that was opened before if they are the same.
    pub(crate) fn share_config(&self, config: LogConfig) -> Rc<LogConfig> {
        let mut last = self.last_config.borrow_mut();
        if **last != config {
            *last = Rc::new(config);
        }
        Rc::clone(&last)
    }

    /// A checkpoint begins: what comes from now on asks for the next.
    pub(crate) fn begin_checkpoint(&self) {
        self.bytes_since_checkpoint.set(0);
        self.touched.begin_checkpoint();
    }

    /// A log turned from idle to busy.
    pub(crate) fn note_touched(&self) {
        if self.touched.noted() >= self.config.checkpoint_touched_logs {
            self.upkeep.notify_all();
        }
    }

    /// Counts an append of `len` bytes, which are pending now.
    pub(crate) fn count_append(&self, len: u64) {
        self.pending_bytes.set(self.pending_bytes.get() + len as usize);
        let before = self.checkpoint_is_due();
        self.bytes_since_checkpoint.set(self.bytes_since_checkpoint.get() + len);
        if self.checkpoint_is_due() && !before {
            self.upkeep.notify_all();
        }
    }

    /// A copy of a batch's header that waits to be written, beside those before it: an allocation for each would cost more
    /// than the copy.
    pub(crate) fn keep_header(&self, header: &[u8]) -> Lease {
        let mut headers = self.headers.borrow_mut();
        if headers.spare() < header.len() && !headers.clear_if_unshared() {
            *headers = AppendBuffer::with_capacity(HEADERS_BYTES);
        }
        let from = headers.len();
        let count = headers.append(header);
        assert_eq!(count, header.len(), "there is room for a header");
        headers.lease(from..from + count)
    }

    /// Counts `bytes` as no longer pending, written or not.
    pub(crate) fn release(&self, bytes: usize) {
        self.pending_bytes.set(self.pending_bytes.get() - bytes);
        self.drained.notify_all();
    }

    /// Bytes that all logs have accepted and not written yet.
    pub(crate) fn pending(&self) -> usize {
        self.pending_bytes.get()
    }

    /// Producers that all logs remember.
    pub(crate) fn producers(&self) -> usize {
        self.producers.get()
    }

    /// Whether appends are under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.pending_bytes.get() > 0
    }

    /// Notes a log that is offline because the disk was full or read-only.
    pub(crate) fn note_full(&self, log: LogId) {
        self.note_full_quietly(log);
        self.upkeep.notify_all();
    }

    /// The same without waking the upkeep, which has just found out.
    fn note_full_quietly(&self, log: LogId) {
        self.full.borrow_mut().insert(log);
    }

    /// Whether a full disk keeps anything from going on.
    fn is_full(&self) -> bool {
        !self.full.borrow().is_empty() || self.dir.is_short()
    }

    fn take_full(&self) -> BTreeSet<LogId> {
        std::mem::take(&mut self.full.borrow_mut())
    }

    /// Has the upkeep look whether a log is idle, once it can be.
    pub(crate) fn watch(&self, log: &Rc<LogInner>) {
        let mut watched = self.watched.borrow_mut();
        watched.push_back((Rc::downgrade(log), self.io.now() + IDLE_AFTER));
        if watched.len() == 1 {
            self.upkeep.notify_all();
        }
    }

    /// Gives memory of the ends of logs back where the machine runs short of it.
    fn mind_memory(&self) {
        let Some(memory) = self.io.memory() else { return };
        let low = memory.total / MEMORY_LOW_SHARE;
        if memory.available < low {
            let short = usize::try_from(2 * low - memory.available).unwrap_or(usize::MAX) / self.config.cores;
            let bytes = self.tails.bytes().saturating_sub(short);
            tracing::info!(
                available = memory.available,
                keeps = bytes,
                "memory runs short: the ends of logs give some back"
            );
            self.tails.set_bytes_max(bytes);
        } else if memory.available > 2 * low {
            self.tails.set_bytes_max(self.config.tail_bytes_max);
        }
    }

    fn checkpoint_is_due(&self) -> bool {
        self.bytes_since_checkpoint.get() >= self.config.checkpoint_bytes
    }

    /// Counts `new` producers. Whether there are too many now.
    pub(crate) fn count_producers(&self, new: usize) -> bool {
        self.producers.set(self.producers.get() + new);
        self.producers.get() > self.config.producer_ids_max
    }

    pub(crate) fn forget_producers(&self, count: usize) {
        self.producers.set(self.producers.get() - count);
    }

    /// Whether so many files are held open for their flush that it must not wait any longer.
    pub(crate) fn too_many_dirty_files(&self) -> bool {
        self.dirty_files.get() > self.config.open_files_max
    }

    /// Asks for a flush of a log at `deadline`, unless one is asked for already.
    pub(crate) fn flush_later(&self, log: LogId, deadline: Monotonic) {
        let mut deadlines = self.flush_deadlines.borrow_mut();
        if deadlines.contains_key(&log) {
            return;
        }
        let is_next = deadlines.values().all(|other| *other > deadline);
        deadlines.insert(log, deadline);
        if is_next {
            self.upkeep.notify_all();
        }
    }
}
