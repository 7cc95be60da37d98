//! The recovery checkpoint: one file per core with what every log of the core needs to come back quickly.
//!
//! Owns `heddle.checkpoint.<core>`. A checkpoint is a help, never the truth: one that is torn, damaged or old is ignored
//! with a line in the log, and the logs are scanned from their start. It is replaced as a whole, atomically, and written
//! a few logs at a time, so that the core goes on with its work meanwhile.
//!
//! Which core owns a log changes from run to run. So all checkpoints of the directory are read at start and of each log
//! the newest snapshot counts; every core carries on those that no core has replaced by its own yet. Only then are the
//! files of cores that no longer exist removed.
//!
//! A log that was idle when its snapshot was taken, and that no note (`touched.rs`) names since, ends where the snapshot
//! says: it is opened without a look at its files.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::MutexGuard;

use heddle_io::sync::Semaphore;
use heddle_io::{Buffer, EntryKind, Io, Lease, OpenOptions};
use heddle_record::{LogId, Timestamp};

use crate::archive::{self, Age, ArchiveWriter, LogSnapshot, Stored, StoredLog};
use crate::data_dir::{DataDir, write_checked};
use crate::engine::Engine;
use crate::error::Error;
use crate::layout::{self, LogName};
use crate::log::Log;
use crate::segment_index::Indexes;
use crate::snapshot;
use crate::state::Boundary;
use crate::touched::{self, Notes};

/// Logs whose snapshots are taken before other tasks run.
const LOGS_PER_TURN: usize = 64;

/// What the checkpoints of earlier runs say.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    /// The generation of this run.
    generation: u64,
    /// The newest snapshot of each log, until the core that opened the log has written its own.
    logs: BTreeMap<LogId, StoredLog>,
    /// Logs that have a directory.
    present: BTreeSet<LogId>,
    /// Logs that had records and have no directory any more.
    missing: BTreeSet<LogId>,
    /// A checkpoint could not be read: logs without a snapshot may have had one.
    pub(crate) lost: bool,
    /// Which logs were written to since is not known: every log is looked at, until each core has a checkpoint of its own.
    pub(crate) notes_lost: bool,
    /// Cores that have written a checkpoint in this run.
    written_by: BTreeSet<usize>,
}

impl Inherited {
    /// The generation of this run.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// What is known of a log.
    pub(crate) fn stored(&self, id: LogId) -> Option<StoredLog> {
        self.logs.get(&id).cloned()
    }

    /// Whether a log had records and its directory is gone.
    pub(crate) fn is_missing(&self, id: LogId) -> bool {
        self.missing.contains(&id)
    }

    /// Whether a log has a directory.
    pub(crate) fn is_present(&self, id: LogId) -> bool {
        self.present.contains(&id)
    }

    /// A log's directory was made.
    pub(crate) fn note_created(&mut self, id: LogId) {
        self.present.insert(id);
    }
}

/// Orders the checkpoints of one core, and lets one of them serve everybody who asked before it began.
pub(crate) struct CheckpointTurn {
    turn: Semaphore,
    /// Counts the checkpoints that began.
    pub(crate) begun: Cell<u64>,
    /// The number of the last one that succeeded.
    saved: Cell<u64>,
}

impl CheckpointTurn {
    pub(crate) fn new() -> CheckpointTurn {
        CheckpointTurn { turn: Semaphore::new(1), begun: Cell::new(0), saved: Cell::new(0) }
    }
}

/// Which logs the next start has to look at although no note names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Busy {
    /// Those with an append under way or a short while ago.
    Lately,
    /// Those with an append under way: the process stops.
    Now,
}

impl Engine {
    /// Writes a checkpoint, if anything has changed since the last: first flushes every log, so that the next start has
    /// nothing to scan but what comes after.
    ///
    /// # Errors
    /// The former checkpoint stays in force.
    pub async fn checkpoint(&self) -> Result<(), Error> {
        let changed = |log: &Log| log.inner.state.borrow().unsaved;
        let logs: Vec<Log> = self.logs().into_iter().filter(changed).collect();
        if logs.is_empty() && !self.inner.core.touched.awaits_checkpoint() {
            return Ok(());
        }
        for log in &logs {
            log.inner.start_flushing();
        }
        for (number, log) in logs.iter().enumerate().filter(|(_, log)| log.offline().is_none()) {
            // A log that goes offline meanwhile has its last flushed state saved.
            if log.flush().await.is_ok() {
                log.inner.write_indexes_logged(Indexes::All).await;
            }
            if number % LOGS_PER_TURN == 0 {
                self.inner.core.io.yield_now().await;
            }
        }
        self.save(Busy::Lately).await
    }

    /// Writes a checkpoint of what is flushed now. Whoever asks while one is being written shares the next.
    ///
    /// # Errors
    /// The former checkpoint stays in force.
    pub(crate) async fn save(&self, busy: Busy) -> Result<(), Error> {
        let turns = &self.inner.core.checkpoints;
        let begun_before = turns.begun.get();
        let _turn = turns.turn.acquire(1).await;
        if turns.saved.get() > begun_before {
            return Ok(());
        }
        turns.begun.set(turns.begun.get() + 1);
        self.write_checkpoint(turns.begun.get(), busy).await?;
        turns.saved.set(turns.begun.get());
        Ok(())
    }

    async fn write_checkpoint(&self, sequence: u64, busy: Busy) -> Result<(), Error> {
        let core = &self.inner.core;
        core.dir.offline_error().map_or(Ok(()), Err)?;
        core.begin_checkpoint();
        let age = Age { generation: inherited(&core.dir).generation, sequence };
        let open = self.logs();
        let own: BTreeSet<LogId> = open.iter().map(|log| log.name().id).collect();
        let mut writer = ArchiveWriter::new();
        let points = self.take_snapshots(&mut writer, &open, age, busy).await;
        self.carry_on(&mut writer, &own).await;
        let name = layout::checkpoint_file(core.config.core);
        let bytes = writer.finish(age);
        let written =
            core.with_reserve(async || write_checked(&core.io, core.dir.path(), &name, bytes.clone()).await).await;
        if let Err(error) = written {
            core.dir.note_failure(&error);
            for log in &open {
                log.inner.state.borrow_mut().unsaved = true;
            }
            return Err(error);
        }
        for (log, point) in open.iter().zip(points) {
            log.inner.note_saved(point);
        }
        core.touched.settle(age).await.inspect_err(|error| core.dir.note_failure(error))?;
        self.forget_inherited(&own).await
    }

    /// Adds the core's own logs. Returns their recovery points, in the same order.
    async fn take_snapshots(&self, writer: &mut ArchiveWriter, open: &[Log], age: Age, busy: Busy) -> Vec<Boundary> {
        let io = &self.inner.core.io;
        let busy_for = i64::try_from(self.inner.core.config.checkpoint_busy_for.as_millis()).unwrap_or(i64::MAX);
        let mut points = Vec::with_capacity(open.len());
        for some in open.chunks(LOGS_PER_TURN) {
            let busy_since = match busy {
                Busy::Lately => io.wall_clock().saturating_sub(busy_for).saturating_add(1),
                Busy::Now => i64::MAX,
            };
            for log in some {
                let (snapshot, active) = log.inner.take_snapshot(Timestamp::new(busy_since));
                points.push(snapshot::recovery_point(&snapshot));
                writer.add(log.name().id, age, active, &snapshot);
            }
            writer.end_piece();
            io.yield_now().await;
        }
        points
    }

    /// Adds what earlier runs knew of logs that no core has written about in this one.
    async fn carry_on(&self, writer: &mut ArchiveWriter, own: &BTreeSet<LogId>) {
        let core = &self.inner.core;
        let mut next = None;
        loop {
            let some: Vec<StoredLog> = {
                let inherited = inherited(&core.dir);
                let from = next.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
                let rest = inherited.logs.range((from, std::ops::Bound::Unbounded));
                rest.take(LOGS_PER_TURN).map(|(_, log)| log.clone()).collect()
            };
            let Some(last) = some.last() else { return };
            next = Some(last.id);
            some.iter().filter(|log| !own.contains(&log.id)).for_each(|log| writer.add_stored(log));
            writer.end_piece();
            core.io.yield_now().await;
        }
    }

    /// Snapshots of logs that this core has written itself are no longer needed; once all cores have written, neither are
    /// the files of cores that do not exist any more.
    async fn forget_inherited(&self, own: &BTreeSet<LogId>) -> Result<(), Error> {
        let core = &self.inner.core;
        let all_written = {
            let mut inherited = inherited(&core.dir);
            inherited.logs.retain(|id, _| !own.contains(id));
            inherited.written_by.insert(core.config.core) && inherited.written_by.len() == core.config.cores
        };
        if !all_written {
            return Ok(());
        }
        let entries = core.io.read_dir(core.dir.path()).await?;
        // Notes first: a checkpoint without them is read, and believed in nothing.
        for number_of in [layout::touched_core, layout::checkpoint_core] {
            for entry in &entries {
                if number_of(&entry.name).is_some_and(|number| number >= core.config.cores) {
                    core.io.remove_file(&core.dir.path().join(&entry.name)).await?;
                }
            }
        }
        Ok(())
    }
}

/// What is inherited. It is there from the first engine's opening on.
pub(crate) fn inherited(dir: &DataDir) -> MappedInherited<'_> {
    let guard = dir.inherited().lock().expect("nobody panics while holding it");
    assert!(guard.is_some(), "checkpoints are loaded when the first engine opens");
    MappedInherited(guard)
}

/// A guard of what is inherited.
pub(crate) struct MappedInherited<'a>(MutexGuard<'a, Option<Inherited>>);

impl std::ops::Deref for MappedInherited<'_> {
    type Target = Inherited;

    fn deref(&self) -> &Inherited {
        self.0.as_ref().expect("checked when it was locked")
    }
}

impl std::ops::DerefMut for MappedInherited<'_> {
    fn deref_mut(&mut self) -> &mut Inherited {
        self.0.as_mut().expect("checked when it was locked")
    }
}

/// Forgets the snapshot of a log that is deleted.
pub(crate) fn forget_log(dir: &DataDir, id: LogId) {
    let mut inherited = inherited(dir);
    inherited.logs.remove(&id);
    inherited.present.remove(&id);
    inherited.missing.remove(&id);
}

/// Reads all checkpoints of the directory, unless another engine of this process has. Returns whether this call did.
///
/// # Errors
/// What the system refuses. What cannot be understood is ignored.
pub(crate) async fn load_once(io: &Io, dir: &DataDir) -> Result<bool, Error> {
    if dir.inherited().lock().expect("nobody panics while holding it").is_some() {
        return Ok(false);
    }
    let mut found = Found::default();
    let mut present = BTreeSet::new();
    for entry in io.read_dir(dir.path()).await? {
        if entry.kind == EntryKind::File {
            found.read(io, &dir.path().join(&entry.name), &entry.name).await?;
        } else if let Some(name) = LogName::from_directory(&entry.name) {
            present.insert(name.id);
        }
    }
    let loaded = found.combine(present);
    let mut inherited = dir.inherited().lock().expect("nobody panics while holding it");
    let first = inherited.is_none();
    inherited.get_or_insert(loaded);
    Ok(first)
}

/// The checkpoints and notes of all cores, as they were read.
#[derive(Default)]
struct Found {
    checkpoints: BTreeMap<usize, Option<Stored>>,
    notes: BTreeMap<usize, Option<Notes>>,
}

impl Found {
    /// Reads the file if it is a checkpoint or a file of notes.
    async fn read(&mut self, io: &Io, path: &Path, name: &str) -> Result<(), Error> {
        let unreadable = |reason| {
            tracing::warn!(file = %path.display(), reason, "a checkpoint is not readable; its logs are scanned from their start");
        };
        if let Some(core) = layout::checkpoint_core(name) {
            let read = read_checkpoint(io, path).await?;
            self.checkpoints.insert(core, read.map_err(unreadable).ok());
        } else if let Some(core) = layout::touched_core(name) {
            let read = touched::read(&read_whole(io, path).await?);
            let unreliable = |reason| {
                tracing::warn!(file = %path.display(), reason, "which logs were written to last is not known; all are looked at");
            };
            self.notes.insert(core, read.map_err(unreliable).ok());
        }
        Ok(())
    }

    /// Of each log the newest snapshot, and whether it can be believed without a look at the log's files.
    fn combine(self, present: BTreeSet<LogId>) -> Inherited {
        let mut inherited = Inherited { lost: self.has_lost_checkpoint(), ..Inherited::default() };
        inherited.notes_lost = inherited.lost || !self.has_all_notes();
        for stored in self.checkpoints.into_values().flatten() {
            inherited.take(stored);
        }
        for (log, age) in self.notes.into_values().flatten().flat_map(|notes| notes.notes) {
            inherited.generation = inherited.generation.max(age.generation);
            if let Some(stored) = inherited.logs.get_mut(&log)
                && age >= stored.age
            {
                stored.active = true;
            }
        }
        if inherited.notes_lost {
            inherited.logs.values_mut().for_each(|log| log.active = true);
        }
        inherited.generation += 1;
        let (there, gone): (BTreeMap<_, _>, _) =
            std::mem::take(&mut inherited.logs).into_iter().partition(|(id, _)| present.contains(id));
        let had_records = |log: &StoredLog| log.snapshot().is_some_and(|log| log.recovery_offset > log.log_start);
        inherited.missing = gone.into_iter().filter(|(_, log)| had_records(log)).map(|(id, _)| id).collect();
        inherited.logs = there;
        inherited.present = present;
        inherited
    }

    /// Whether a checkpoint was there that is not there, not readable, or older than it was.
    fn has_lost_checkpoint(&self) -> bool {
        let stale = |(core, notes): (&usize, &Option<Notes>)| {
            let known = self.checkpoints.get(core).and_then(Option::as_ref).map_or(Age::default(), |stored| stored.age);
            notes.as_ref().is_some_and(|notes| notes.checkpoint > known)
        };
        self.checkpoints.values().any(Option::is_none) || self.notes.iter().any(stale)
    }

    /// Whether the notes that come after each checkpoint can be relied on.
    fn has_all_notes(&self) -> bool {
        let known = |core: &usize| matches!(self.notes.get(core), Some(Some(_)));
        self.notes.values().all(Option::is_some) && self.checkpoints.keys().all(known)
    }
}

impl Inherited {
    /// Keeps what is newer than what is known.
    fn take(&mut self, stored: Stored) {
        self.generation = self.generation.max(stored.age.generation);
        for log in stored.logs {
            match self.logs.get_mut(&log.id) {
                Some(known) if known.age > log.age => {}
                // Carried on by another core, which may have known of a note.
                Some(known) if known.age == log.age => known.active |= log.active,
                _ => {
                    self.logs.insert(log.id, log);
                }
            }
        }
    }
}

/// Reads one checkpoint: what it says, or why it says nothing.
///
/// # Errors
/// What the system refuses.
pub(crate) async fn read_checkpoint(io: &Io, path: &Path) -> Result<Result<Stored, &'static str>, Error> {
    Ok(archive::read(read_whole(io, path).await?))
}

/// The bytes of a file, aligned in memory.
async fn read_whole(io: &Io, path: &Path) -> Result<Lease, Error> {
    let file = io.open(path, OpenOptions::read()).await?;
    let len = usize::try_from(io.len(&file).await?).expect("a file in memory");
    let (read, bytes) = io.read(&file, 0, Buffer::aligned(len), len).await;
    read?;
    Ok(bytes.freeze())
}

/// What a log's snapshot says, if it can be so.
pub(crate) fn sound_snapshot(name: &LogName, stored: &StoredLog) -> Option<LogSnapshot> {
    let snapshot = stored.snapshot().filter(snapshot::is_sound);
    if snapshot.is_none() {
        tracing::warn!(log = %name, "the checkpoint contradicts itself; the log is scanned from its start");
    }
    snapshot
}
