//! A disk with a volatile cache, and the file system on it.
//!
//! Owns files, names, planted faults, and what is left after a power cut. Never knows time or tasks: the world asks it to
//! issue an operation, waits as long as it says, and asks it to complete it.
//!
//! # The fault model
//!
//! What a process may rely on:
//!
//! 1. A write that completed is seen by every later read. While it is in flight, readers see the old bytes.
//! 2. After a flush of a file succeeded (`sync_data` and `sync_all` alike), everything that *completed* on that file before the
//!    flush was *issued* survives a power cut: bytes, and the length, set or grown.
//! 3. After `sync_dir` succeeded, the entries of that directory that were made, renamed or removed before it was issued
//!    survive. A rename within a directory survives whole or not at all.
//! 4. `kill -9` loses no completed operation.
//!
//! What it may not:
//!
//! 1. Of what no flush covered, any part may survive a power cut: nothing, everything, whole writes without the ones before
//!    them, single 512-byte sectors of a write, the new length with zeros in place of the bytes, and this for each file by
//!    itself ([`Survival`], drawn from the seed at every cut). A sector is never torn. A write in flight counts as unflushed.
//! 2. Names follow [`Metadata`]. `OnlySynced` is what POSIX promises: each change of a name that no `sync_dir` covered survives
//!    or not by itself; flushing a file says nothing about its name. A rename between directories may leave both names.
//!    `Journaled` is what ext4 and XFS do: changes survive in order, and flushing a file takes along the changes before the
//!    last one that concerns it. Neither relates a rename to the bytes of the renamed file. With a journal there is a flush of
//!    everything (`syncfs`): all files and all names.
//! 3. A flush that fails loses data for good: some sectors are on the medium, the others never will be, later flushes succeed,
//!    and reads go on showing what was written until the power is lost. ("Can Applications Recover from fsync Failures?",
//!    Rebello et al., USENIX ATC 2020.)
//! 4. Two operations in flight complete in any order.
//! 5. A process that is killed with writes in flight leaves any part of them behind.
//!
//! # Direct writes
//!
//! A file opened with `OpenOptions::direct` (refused where [`FaultModel::direct`] says so) takes whole, aligned blocks. What is
//! written passes the page cache and sits in the *device's* cache, where all of the above holds of it, in any subset and any
//! order, until
//!
//! - its own file is flushed;
//! - or, where [`FlushScope`] is `Device`, any file is flushed, if the write was an *overwrite*: of pages that are durably
//!   written already, below the durable length. A block that is merely allocated (or was never written), and one behind a
//!   length that is not durable, needs metadata to be found again, and so its own file's flush. Bytes that went through the
//!   page cache need that always;
//! - or it completes, if it was an overwrite and the device has no volatile cache ([`DeviceCache::WriteThrough`]).
//!
//! `FlushScope::File` promises no more than the first. Where one flush is for all, one that fails loses the overwrites of all.
//!
//! Faults are planted with [`Fault`]; space can run out ([`Disk::set_capacity`]); the medium can rot ([`Disk::flip_bit`]); the
//! file system can become read-only ([`Disk::set_read_only`]): a flush fails then like any other that fails.
//! Access rights, links and time stamps do not exist here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::content::{ChangeNumber, Content, Survival, survive};
use super::fault::{CutPoint, DiskCounters, Effect, Fault, OperationKind};
use super::pages::PAGE_BYTES;
use super::random::{Random, mix};
use super::request::{Entry, Errno, Handle, OpenMode, OperationId, Reply, Request};
use super::tree::{Inode, JournalPosition, Node, Tree};
use crate::file::Access;
use crate::probe::DiskTraits;

/// Which changes of names survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metadata {
    /// Only what `sync_dir` covered is sure; of the rest each change survives or not by itself.
    OnlySynced,
    /// In order; any flush takes along what came before.
    Journaled,
}

/// What a successful flush covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushScope {
    /// The file that was flushed.
    File,
    /// That file, and completed overwrites of every other file of the disk.
    Device,
}

/// What a power cut does to the cache of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceCache {
    /// It is emptied.
    Volatile,
    /// It survives, or there is none.
    WriteThrough,
}

/// The promises that a simulated disk keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultModel {
    /// Fate of names.
    pub metadata: Metadata,
    /// Reach of a flush.
    pub flush: FlushScope,
    /// Fate of unflushed bytes; `None` draws one at each cut.
    pub survival: Option<Survival>,
    /// Whether files can be opened for direct writing.
    pub direct: bool,
    /// The cache of the device.
    pub cache: DeviceCache,
}

impl Default for FaultModel {
    /// The least that a disk may promise; files can be written directly.
    fn default() -> FaultModel {
        FaultModel {
            metadata: Metadata::OnlySynced,
            flush: FlushScope::File,
            survival: None,
            direct: true,
            cache: DeviceCache::Volatile,
        }
    }
}

/// How long operations take, in virtual time: a range each, drawn evenly.
#[derive(Clone, Copy, Debug)]
pub struct DiskTiming {
    /// Reads.
    pub read: (Duration, Duration),
    /// Writes.
    pub write: (Duration, Duration),
    /// Flushes of files and directories.
    pub flush: (Duration, Duration),
    /// Everything else.
    pub metadata: (Duration, Duration),
}

impl Default for DiskTiming {
    fn default() -> DiskTiming {
        let micros = |low, high| (Duration::from_micros(low), Duration::from_micros(high));
        DiskTiming { read: micros(5, 200), write: micros(5, 200), flush: micros(100, 2000), metadata: micros(5, 100) }
    }
}

#[derive(Clone)]
struct InFlight {
    request: Request,
    effect: Option<Effect>,
    /// What a flush covers: everything that completed before it was issued.
    changes_end: ChangeNumber,
    journal_end: JournalPosition,
}

/// The disk of one host. A copy shares nothing with its original but unchanged pages.
#[derive(Clone)]
pub(crate) struct Disk {
    model: FaultModel,
    timing: DiskTiming,
    bytes_per_second: Option<u64>,
    random: Random,
    files: BTreeMap<Inode, Content>,
    paths: BTreeMap<Inode, PathBuf>,
    /// When the bytes of a file last changed, by the host's wall clock. Not subject to power cuts.
    modified_ms: BTreeMap<Inode, i64>,
    wall_clock_ms: i64,
    tree: Tree,
    change_next: u64,
    in_flight: BTreeMap<OperationId, InFlight>,
    operation_next: u64,
    open: Vec<(Inode, Weak<()>)>,
    open_collected: usize,
    locks: Vec<(Inode, Weak<()>)>,
    faults: Vec<Fault>,
    capacity_pages: Option<u64>,
    is_read_only: bool,
    counters: DiskCounters,
    cut_at: Option<CutPoint>,
    /// What a probe finds, if that is not what the disk keeps.
    claimed: Option<FaultModel>,
}

impl Disk {
    /// An empty disk that keeps the promises of `model`.
    pub(crate) fn new(model: FaultModel, random: Random) -> Disk {
        Disk {
            model,
            timing: DiskTiming::default(),
            bytes_per_second: None,
            random,
            files: BTreeMap::new(),
            paths: BTreeMap::new(),
            modified_ms: BTreeMap::new(),
            wall_clock_ms: 0,
            tree: Tree::new(),
            change_next: 0,
            in_flight: BTreeMap::new(),
            operation_next: 0,
            open: Vec::new(),
            open_collected: 0,
            locks: Vec::new(),
            faults: Vec::new(),
            capacity_pages: None,
            is_read_only: false,
            counters: DiskCounters::default(),
            cut_at: None,
            claimed: None,
        }
    }

    /// Takes an operation; the answer says for how long it stays in flight.
    pub(crate) fn issue(&mut self, request: Request) -> (OperationId, Duration) {
        let kind = request.kind();
        let (effect, extra) = self.hit(kind, &request);
        self.counters.issued(kind);
        if let Request::Write { file, position, bytes, access } = &request {
            self.counters.bytes_written += bytes.len() as u64;
            if *access == Access::Direct {
                self.count_direct_write(*file, *position, bytes.len() as u64);
            }
        }
        if request.changes() {
            self.counters.steps += 1;
        }
        let id = OperationId(self.operation_next);
        self.operation_next += 1;
        let (changes_end, journal_end) = (ChangeNumber(self.change_next), self.tree.journal_end());
        self.in_flight.insert(id, InFlight { request, effect, changes_end, journal_end });
        let reads_in_flight = self.in_flight.values().map(|operation| operation.request.bytes_to_read()).sum();
        self.counters.reads_in_flight_bytes_max = self.counters.reads_in_flight_bytes_max.max(reads_in_flight);
        (id, self.duration(kind) + extra)
    }

    fn count_direct_write(&mut self, file: Inode, position: u64, length: u64) {
        self.counters.direct_writes += 1;
        if self.files.get(&file).is_some_and(|content| !content.is_overwrite(position, length)) {
            self.counters.direct_writes_not_in_place += 1;
        }
        let overlaps = |operation: &InFlight| match &operation.request {
            Request::Write { file: other, position: at, bytes, .. } => {
                *other == file && *at < position + length && position < at + bytes.len() as u64
            }
            _ => false,
        };
        self.counters.overlapping_writes +=
            self.in_flight.values().filter(|operation| overlaps(operation)).count() as u64;
    }

    /// Carries an issued operation out.
    ///
    /// # Panics
    /// If it is not in flight.
    pub(crate) fn complete(&mut self, id: OperationId) -> Result<Reply, Errno> {
        let operation = self.in_flight.remove(&id).expect("an operation completes once, and not after a cut");
        if operation.request.changes() {
            self.counters.steps += 1;
        }
        self.perform(operation)
    }

    /// Whether the planted cut falls on the operation that was just issued or completed.
    pub(crate) fn cut_is_due(&self, last: Option<OperationId>) -> bool {
        let kind = last.and_then(|id| self.in_flight.get(&id)).map(|operation| operation.request.kind());
        match self.cut_at {
            Some(point @ CutPoint::Step(_)) => self.counters.reached(point, OperationKind::Metadata),
            Some(point) => kind.is_some_and(|kind| self.counters.reached(point, kind)),
            None => false,
        }
    }

    /// Power is lost, with operations in flight. What remains is what is on the medium.
    pub(crate) fn power_cut(&mut self) {
        let survival = self.model.survival.unwrap_or_else(|| draw_survival(&mut self.random));
        self.leave_in_flight(survival);
        let torn = self.draw_torn();
        self.tree.cut(self.model.metadata, &mut self.random, names_per_mille(survival));
        let Disk { files, tree, random, .. } = self;
        for content in files.values_mut() {
            content.cut(survival, torn, |journal| tree.is_committed(journal), random);
        }
        self.tree.restart();
        self.process_gone();
    }

    /// The process is gone, the page cache is not. Operations in flight may have happened, in part or not at all.
    pub(crate) fn kill(&mut self) {
        let survival = draw_survival(&mut self.random);
        self.leave_in_flight(survival);
        self.process_gone();
    }

    /// Locks `file` for `handle`; `false` when another handle has the lock.
    pub(crate) fn lock(&mut self, file: Inode, handle: &Handle) -> bool {
        self.locks.retain(|(_, holder)| holder.strong_count() > 0);
        match self.locks.iter().find(|(locked, _)| *locked == file) {
            Some((_, holder)) => holder.as_ptr() == Arc::as_ptr(handle),
            None => {
                self.locks.push((file, Arc::downgrade(handle)));
                true
            }
        }
    }

    /// The length of an open file.
    pub(crate) fn len(&self, file: Inode) -> Result<u64, Errno> {
        self.files.get(&file).map(|content| content.seen().len()).ok_or(Errno(libc::EBADF))
    }

    /// When the bytes of a file last changed, in milliseconds since 1970.
    pub(crate) fn modified_ms(&self, file: Inode) -> i64 {
        self.modified_ms.get(&file).copied().unwrap_or_default()
    }

    /// Tells the disk the host's wall clock, which it stamps changes with.
    pub(crate) fn set_wall_clock(&mut self, millis: i64) {
        self.wall_clock_ms = millis;
    }

    /// What a probe of this disk finds.
    pub(crate) fn traits(&self) -> DiskTraits {
        let FaultModel { direct, flush, cache, .. } = self.claimed.unwrap_or(self.model);
        DiskTraits {
            file_system: "sim".to_owned(),
            direct,
            one_flush_for_all: direct && flush == FlushScope::Device,
            write_through: direct && cache == DeviceCache::WriteThrough,
            ring_writes_inline: true,
            reason: format!("a simulated disk: direct {direct}, a flush covers the {flush:?}, the cache is {cache:?}"),
        }
    }

    pub(crate) fn set_model(&mut self, model: FaultModel) {
        self.model = model;
    }

    pub(crate) fn set_claimed(&mut self, claimed: Option<FaultModel>) {
        self.claimed = claimed;
    }

    /// How fast bytes come and go; `None` is endlessly.
    pub(crate) fn set_bandwidth(&mut self, bytes_per_second: Option<u64>) {
        self.bytes_per_second = bytes_per_second;
    }

    /// How long the device is at nothing else than this request.
    pub(crate) fn transfer_time(&self, request: &Request) -> Duration {
        let bytes = match request {
            Request::Write { bytes, .. } => bytes.len() as u64,
            other => other.bytes_to_read(),
        };
        self.bytes_per_second.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(bytes as f64 / rate as f64))
    }

    pub(crate) fn set_timing(&mut self, timing: DiskTiming) {
        self.timing = timing;
    }

    /// Bytes that all files together may occupy, in whole pages; `None` is endless. Files keep what they have.
    pub(crate) fn set_capacity(&mut self, bytes: Option<u64>) {
        self.capacity_pages = bytes.map(|bytes| bytes / PAGE_BYTES);
    }

    /// Bytes that all files together occupy.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.files.values().map(Content::pages_used).sum::<u64>() * PAGE_BYTES
    }

    /// Whether the file system refuses everything that would change it, as after `errors=remount-ro`.
    pub(crate) fn set_read_only(&mut self, is_read_only: bool) {
        self.is_read_only = is_read_only;
    }

    pub(crate) fn plant(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    pub(crate) fn clear_faults(&mut self) {
        self.faults.clear();
    }

    pub(crate) fn set_cut_at(&mut self, point: Option<CutPoint>) {
        self.cut_at = point;
    }

    pub(crate) fn counters(&self) -> DiskCounters {
        self.counters
    }

    /// From here on the seed of every draw is `random`.
    pub(crate) fn reseed(&mut self, random: Random) {
        self.random = random;
    }

    /// Turns over one bit of a file on the medium and in the cache.
    pub(crate) fn flip_bit(&mut self, path: &Path, position: u64, bit: u8) -> Result<(), Errno> {
        let file = self.file_at(path)?;
        let content = self.content(file)?;
        if position >= content.seen().len() {
            return Err(Errno(libc::EINVAL));
        }
        content.flip_bit(position, bit);
        Ok(())
    }

    /// The whole of a file as processes see it, for a test's eyes: no operation, no step.
    pub(crate) fn peek(&self, path: &Path) -> Result<Vec<u8>, Errno> {
        let file = self.file_at(path)?;
        let content = self.files.get(&file).expect("a named file has content");
        let mut bytes = vec![0; content.seen().len() as usize];
        content.seen().read(0, &mut bytes);
        Ok(bytes)
    }

    /// A number that depends on the name and the bytes of every file.
    pub(crate) fn digest(&self) -> u64 {
        self.list_files().iter().fold(0, |digest, path| {
            let file = self.file_at(path).expect("it was just listed");
            let name = super::request::digest_of(path.as_os_str().as_encoded_bytes());
            mix(digest ^ mix(name) ^ self.files[&file].seen().digest())
        })
    }

    /// Every file below `/`, for a test's eyes.
    pub(crate) fn list_files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut waiting = vec![(PathBuf::from("/"), super::tree::ROOT)];
        while let Some((path, directory)) = waiting.pop() {
            for (name, node) in self.tree.entries(directory) {
                match node {
                    Node::File(_) => found.push(path.join(name)),
                    Node::Directory(inode) => waiting.push((path.join(name), inode)),
                }
            }
        }
        found.sort();
        found
    }

    fn perform(&mut self, operation: InFlight) -> Result<Reply, Errno> {
        let InFlight { request, mut effect, changes_end, journal_end } = operation;
        if self.is_read_only && request.needs_to_write() {
            effect = Some(Effect::Fail(libc::EROFS));
        }
        if let Some(Effect::Fail(errno)) = effect {
            match request {
                Request::Flush { file } => self.flush_failed(file, changes_end),
                Request::FlushEverything { .. } if self.flushes_everything() => {
                    self.flush_of_everything_failed(changes_end)
                }
                _ => {}
            }
            return Err(Errno(errno));
        }
        match request {
            Request::Open { path, mode } => self.open(&path, mode),
            Request::Read { file, position, length } => self.read(file, position, length, effect),
            Request::Write { file, position, bytes, access } => self.write(file, position, &bytes, access, effect),
            Request::Flush { file } => self.flush(file, changes_end, journal_end),
            Request::SetLen { file, len } => self.set_len(file, len),
            Request::Allocate { file, position, length, extend } => self.allocate(file, position, length, extend),
            Request::CreateDirectories { path } => self.create_directories(&path),
            Request::List { path } => self.list(&path),
            Request::Stat { path } => self.stat(&path),
            Request::Rename { from, to } => self.rename(&from, &to),
            Request::RemoveFile { path } => self.remove_file(&path),
            Request::RemoveTree { path } => self.remove_tree(&path),
            Request::FlushEverything { path } => {
                self.tree.lookup(&path)?;
                if !self.flushes_everything() {
                    return Err(Errno(libc::EOPNOTSUPP));
                }
                self.flush_everything(changes_end, journal_end);
                Ok(Reply::Done)
            }
            Request::SyncDirectory { path } => match self.tree.lookup(&path)? {
                Node::Directory(directory) => {
                    self.tree.sync(directory, journal_end, self.model.metadata);
                    // What was removed gives its space back only now: before, a power cut could bring it back.
                    self.collect();
                    Ok(Reply::Done)
                }
                Node::File(_) => Err(Errno(libc::ENOTDIR)),
            },
        }
    }

    fn open(&mut self, path: &Path, mode: OpenMode) -> Result<Reply, Errno> {
        if mode.direct && !self.model.direct {
            return Err(Errno(libc::EINVAL));
        }
        let file = match self.tree.lookup(path) {
            Ok(Node::Directory(_)) => return Err(Errno(libc::EISDIR)),
            Ok(Node::File(_)) if mode.create_new => return Err(Errno(libc::EEXIST)),
            Ok(Node::File(file)) => {
                if mode.truncate && self.len(file)? > 0 {
                    self.set_len(file, 0)?;
                }
                file
            }
            Err(Errno(libc::ENOENT)) if mode.create || mode.create_new => {
                let (directory, name) = self.tree.parent(path)?;
                let file = self.tree.create_file(directory, name);
                self.files.insert(file, Content::default());
                self.modified_ms.insert(file, self.wall_clock_ms);
                file
            }
            Err(errno) => return Err(errno),
        };
        self.paths.insert(file, path.to_owned());
        let handle = Handle::default();
        self.open.push((file, Arc::downgrade(&handle)));
        if self.open.len() > 2 * self.open_collected + 64 {
            self.collect();
        }
        Ok(Reply::Opened { file, handle })
    }

    fn read(&mut self, file: Inode, position: u64, length: usize, effect: Option<Effect>) -> Result<Reply, Errno> {
        let mut bytes = vec![0; length];
        let count = self.content(file)?.seen().read(position, &mut bytes);
        bytes.truncate(count);
        if effect == Some(Effect::FlipBit) && count > 0 {
            bytes[self.random.below(count as u64) as usize] ^= 1 << self.random.below(8);
        }
        self.counters.bytes_read += count as u64;
        Ok(Reply::Bytes(bytes))
    }

    fn write(
        &mut self,
        file: Inode,
        position: u64,
        bytes: &Rc<[u8]>,
        access: Access,
        effect: Option<Effect>,
    ) -> Result<Reply, Errno> {
        let count = match effect {
            Some(Effect::Short(count)) => count.min(bytes.len()),
            _ => bytes.len(),
        };
        let count = self.fitting(file, position, count)?;
        let number = self.next_change();
        let bytes = if count == bytes.len() { Rc::clone(bytes) } else { bytes[..count].into() };
        let write_through = self.model.cache == DeviceCache::WriteThrough && access == Access::Direct;
        let content = self.content(file)?;
        content.write(number, position, bytes, access);
        if write_through {
            content.device_flushed(ChangeNumber(number.0 + 1));
        }
        self.modified_ms.insert(file, self.wall_clock_ms);
        Ok(Reply::Written(count))
    }

    /// How many of `count` bytes at `position` the disk has room for.
    fn fitting(&mut self, file: Inode, position: u64, count: usize) -> Result<usize, Errno> {
        let Some(capacity) = self.capacity_pages else { return Ok(count) };
        let free = capacity.saturating_sub(self.used_bytes() / PAGE_BYTES);
        let content = self.content(file)?;
        let mut fits = count;
        while content.pages_missing(position, fits as u64) > free {
            let end = position + fits as u64;
            fits = (((end - 1) / PAGE_BYTES * PAGE_BYTES).saturating_sub(position)) as usize;
        }
        if fits == 0 && count > 0 { Err(Errno(libc::ENOSPC)) } else { Ok(fits) }
    }

    fn flush(&mut self, file: Inode, end: ChangeNumber, journal_end: JournalPosition) -> Result<Reply, Errno> {
        for length in self.content(file)?.flushed(end) {
            self.tree.length_synced(length);
        }
        if self.model.metadata == Metadata::Journaled {
            self.tree.sync(file, journal_end, Metadata::Journaled);
        }
        if self.model.flush == FlushScope::Device {
            self.files.values_mut().for_each(|content| content.device_flushed(end));
        }
        Ok(Reply::Done)
    }

    /// Whether one call flushes all files and names: a file system with a journal is known to.
    fn flushes_everything(&self) -> bool {
        self.claimed.unwrap_or(self.model).metadata == Metadata::Journaled
    }

    fn flush_everything(&mut self, end: ChangeNumber, journal_end: JournalPosition) {
        if self.model.metadata != Metadata::Journaled {
            // It was said to, and does nothing.
            return;
        }
        for content in self.files.values_mut() {
            for length in content.flushed(end) {
                self.tree.length_synced(length);
            }
        }
        self.tree.sync_all(journal_end);
        self.collect();
    }

    fn flush_of_everything_failed(&mut self, end: ChangeNumber) {
        let Disk { files, random, tree, .. } = self;
        for content in files.values_mut() {
            for length in content.flush_failed(end, random) {
                tree.length_synced(length);
            }
        }
    }

    fn flush_failed(&mut self, file: Inode, end: ChangeNumber) {
        let Disk { files, random, tree, model, .. } = self;
        if let Some(content) = files.get_mut(&file) {
            for length in content.flush_failed(end, random) {
                tree.length_synced(length);
            }
        }
        if model.flush == FlushScope::Device {
            files.values_mut().for_each(|content| content.device_flush_failed(end, random));
        }
    }

    fn set_len(&mut self, file: Inode, len: u64) -> Result<Reply, Errno> {
        let number = self.next_change();
        let journal = self.tree.length_changed(file);
        self.content(file)?.set_len(number, len, journal);
        self.modified_ms.insert(file, self.wall_clock_ms);
        Ok(Reply::Done)
    }

    fn allocate(&mut self, file: Inode, position: u64, length: u64, extend: bool) -> Result<Reply, Errno> {
        let end = position + length;
        if let Some(capacity) = self.capacity_pages {
            let free = capacity.saturating_sub(self.used_bytes() / PAGE_BYTES);
            if self.content(file)?.pages_missing(0, end) > free {
                return Err(Errno(libc::ENOSPC));
            }
        }
        self.content(file)?.reserve(end);
        if extend && self.len(file)? < end {
            self.set_len(file, end)?;
        }
        Ok(Reply::Done)
    }

    fn create_directories(&mut self, path: &Path) -> Result<Reply, Errno> {
        match self.tree.lookup(path) {
            Ok(Node::Directory(_)) => return Ok(Reply::Done),
            Ok(Node::File(_)) => return Err(Errno(libc::EEXIST)),
            Err(Errno(libc::ENOENT)) => {}
            Err(errno) => return Err(errno),
        }
        if let Some(parent) = path.parent() {
            self.create_directories(parent)?;
        }
        let (directory, name) = self.tree.parent(path)?;
        self.tree.create_directory(directory, name);
        Ok(Reply::Done)
    }

    fn list(&self, path: &Path) -> Result<Reply, Errno> {
        let Node::Directory(directory) = self.tree.lookup(path)? else { return Err(Errno(libc::ENOTDIR)) };
        let entry = |(name, node): (&std::ffi::OsStr, Node)| Entry {
            name: name.to_owned(),
            is_directory: matches!(node, Node::Directory(_)),
        };
        Ok(Reply::Entries(self.tree.entries(directory).map(entry).collect()))
    }

    fn stat(&self, path: &Path) -> Result<Reply, Errno> {
        match self.tree.lookup(path)? {
            Node::File(file) => {
                Ok(Reply::Stat { is_directory: false, len: self.len(file)?, modified_ms: self.modified_ms(file) })
            }
            Node::Directory(_) => Ok(Reply::Stat { is_directory: true, len: 0, modified_ms: self.wall_clock_ms }),
        }
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Result<Reply, Errno> {
        if to.starts_with(from) && to != from {
            return Err(Errno(libc::EINVAL));
        }
        self.tree.rename(from, to)?;
        if let Node::File(file) = self.tree.lookup(to)? {
            self.paths.insert(file, to.to_owned());
        }
        self.collect();
        Ok(Reply::Done)
    }

    fn remove_file(&mut self, path: &Path) -> Result<Reply, Errno> {
        let Node::File(_) = self.tree.lookup(path)? else { return Err(Errno(libc::EISDIR)) };
        let (directory, name) = self.tree.parent(path)?;
        self.tree.unlink(directory, name);
        self.collect();
        Ok(Reply::Done)
    }

    /// Entry by entry, the deepest first, as a process would.
    fn remove_tree(&mut self, path: &Path) -> Result<Reply, Errno> {
        let Node::Directory(directory) = self.tree.lookup(path)? else { return Err(Errno(libc::ENOTDIR)) };
        let entries: Vec<_> = self.tree.entries(directory).map(|(name, node)| (name.to_owned(), node)).collect();
        for (name, node) in entries {
            match node {
                Node::File(_) => self.tree.unlink(directory, &name),
                Node::Directory(_) => {
                    self.remove_tree(&path.join(&name))?;
                }
            }
        }
        let (parent, name) = self.tree.parent(path)?;
        self.tree.unlink(parent, name);
        self.collect();
        Ok(Reply::Done)
    }

    /// Forgets files that no process has open and that no name, durable or not, can bring back.
    fn collect(&mut self) {
        self.open.retain(|(_, handle)| handle.strong_count() > 0);
        self.open_collected = self.open.len();
        let mut kept = self.tree.named();
        kept.extend(self.open.iter().map(|(file, _)| *file));
        kept.extend(self.in_flight.values().filter_map(|operation| operation.request.file()));
        self.files.retain(|file, _| kept.contains(file));
        self.paths.retain(|file, _| kept.contains(file));
        self.modified_ms.retain(|file, _| kept.contains(file));
    }

    /// Operations in flight, when the process dies or power is lost: a write may leave any part of itself in the cache, any
    /// other change happens or not.
    fn leave_in_flight(&mut self, survival: Survival) {
        let mut in_flight: Vec<InFlight> = std::mem::take(&mut self.in_flight).into_values().collect();
        while !in_flight.is_empty() {
            // They reach the cache in any order.
            let operation = in_flight.swap_remove(self.random.below(in_flight.len() as u64) as usize);
            match operation.request {
                Request::Write { file, position, bytes, access } => {
                    self.leave_write(survival, file, position, &bytes, access);
                }
                Request::Read { .. } | Request::Flush { .. } | Request::SyncDirectory { .. } => {}
                _ if self.random.chance(names_per_mille(survival)) => {
                    // A failure is as good as not having happened: nobody is left to hear of it.
                    let _ = self.perform(operation);
                }
                _ => {}
            }
        }
    }

    fn leave_write(&mut self, survival: Survival, file: Inode, position: u64, bytes: &Rc<[u8]>, access: Access) {
        let mut part = super::pages::Image::default();
        survive(&mut part, survival, std::cmp::Ordering::Equal, position, bytes, &mut self.random);
        let mut at = position;
        let end = position + bytes.len() as u64;
        // What is left of it in the cache is again an unflushed write, sector by sector.
        while at < end.min(part.len()) {
            let next = ((at / super::content::SECTOR_BYTES + 1) * super::content::SECTOR_BYTES).min(end);
            let original = &bytes[(at - position) as usize..(next - position) as usize];
            let mut left = vec![0; original.len()];
            part.read(at, &mut left);
            if left == original {
                let number = self.next_change();
                if let Ok(content) = self.content(file) {
                    content.write(number, at, original.into(), access);
                }
            }
            at = next;
        }
    }

    fn process_gone(&mut self) {
        self.open.clear();
        self.locks.clear();
        self.faults.clear();
        self.cut_at = None;
        self.counters = DiskCounters::default();
        self.collect();
    }

    /// One of the unflushed changes of the disk, the last that a cut in order leaves anything of.
    fn draw_torn(&mut self) -> ChangeNumber {
        let pending: Vec<ChangeNumber> = self.files.values().flat_map(Content::pending).collect();
        let first = pending.iter().min().copied().unwrap_or(ChangeNumber(0));
        let last = pending.iter().max().copied().unwrap_or(first);
        ChangeNumber(self.random.between(first.0, last.0 + 1))
    }

    fn hit(&mut self, kind: OperationKind, request: &Request) -> (Option<Effect>, Duration) {
        let opened = || self.paths.get(&request.file()?).map(PathBuf::as_path);
        let path = request.path().or_else(opened).unwrap_or(Path::new("")).to_owned();
        match self.faults.iter_mut().find_map(|fault| fault.hit(kind, &path)) {
            Some(Effect::Hang(time)) => (None, time),
            effect => (effect, Duration::ZERO),
        }
    }

    fn duration(&mut self, kind: OperationKind) -> Duration {
        let (low, high) = match kind {
            OperationKind::Read => self.timing.read,
            OperationKind::Write => self.timing.write,
            OperationKind::Flush | OperationKind::SyncDirectory => self.timing.flush,
            OperationKind::Metadata => self.timing.metadata,
        };
        Duration::from_nanos(self.random.between(low.as_nanos() as u64, high.as_nanos() as u64))
    }

    fn next_change(&mut self) -> ChangeNumber {
        self.change_next += 1;
        ChangeNumber(self.change_next - 1)
    }

    fn content(&mut self, file: Inode) -> Result<&mut Content, Errno> {
        self.files.get_mut(&file).ok_or(Errno(libc::EBADF))
    }

    fn file_at(&self, path: &Path) -> Result<Inode, Errno> {
        match self.tree.lookup(path)? {
            Node::File(file) => Ok(file),
            Node::Directory(_) => Err(Errno(libc::EISDIR)),
        }
    }
}

/// A way to lose bytes, the telling ones more often than the plain ones.
fn draw_survival(random: &mut Random) -> Survival {
    let per_mille = [100, 500, 900, 990][random.below(4) as usize];
    match random.below(8) {
        0 => Survival::Nothing,
        1 => Survival::Everything,
        2 | 3 => Survival::Prefix,
        4 | 5 => Survival::Writes { per_mille },
        _ => Survival::Sectors { per_mille },
    }
}

/// Of a thousand unsynced names, how many survive.
fn names_per_mille(survival: Survival) -> u64 {
    match survival {
        Survival::Nothing => 0,
        Survival::Everything => 1000,
        Survival::Prefix => 500,
        Survival::Writes { per_mille } | Survival::Sectors { per_mille } => per_mille,
    }
}
