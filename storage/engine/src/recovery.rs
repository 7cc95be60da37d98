//! Opening a log that is on disk: from the recovery point on, every batch is checked, and the first that does not fit is
//! where the log ends.
//!
//! Owns telling a torn tail from damage. Above the recovery point anything may be torn: it is cut off, durably, before the
//! next append. Below it everything was flushed: if it is not there, the log stays closed and the disk untouched, because
//! cutting would throw away what was acknowledged.
//!
//! ```text
//! 0 ───────────── recovery point ───────────── end ─ ─ ─ ─
//!   believed, its      every batch checked      cut off
//!   last batch read
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use heddle_io::sync::Permits;
use heddle_io::{EntryKind, File, Hold, Io, Lease, OpenOptions};
use heddle_record::{LeaderEpoch, Offset, RecordBatch, Timestamp};

use crate::archive::{LogSnapshot, SegmentSnapshot, StoredLog};
use crate::checkpoint::{inherited, sound_snapshot};
use crate::compaction::{Manifest, corrected, finish_swaps, read_manifest};
use crate::config::PlantedBug;
use crate::engine::{Core, Found};
use crate::error::Error;
use crate::index::{
    IndexBuilder, OFFSET_ENTRY_LEN, OffsetEntry, TIME_ENTRY_LEN, TimeEntry, decode_offset_index, decode_time_index,
};
use crate::layout::{COMPACTION_FILE, LogName, SegmentFile, TEMPORARY_SUFFIX, parse_cleaned};
use crate::scan::{BatchScan, Continuity, HeaderScan, Scanned, ScannedBatch, last_batch_misfit};
use crate::segment::Segment;
use crate::snapshot;
use crate::space::Space;
use crate::state::{Boundary, LogState};

/// Bytes between index entries that recovery makes; a log's own setting applies to what is appended later.
const INDEX_INTERVAL_BYTES: u32 = 4096;

/// Bytes of prepared space that recovery looks at at once.
const ZERO_READ_BYTES: u64 = 1 << 20;

/// Bytes of a segment that are read when it is opened: what most logs have got since the last checkpoint.
const FIRST_READ_BYTES: usize = 64 << 10;

/// Opens the log in the directory at `path`, or makes it there, durably.
///
/// # Errors
/// [`Error::Damaged`] if flushed bytes are gone; [`Error::Io`].
pub(crate) async fn open_or_create(core: &Core, name: &LogName, path: &Path) -> Result<LogState, Error> {
    core.dir.offline_error().map_or(Ok(()), Err)?;
    let (stored, present, missing, lost) = {
        let inherited = inherited(&core.dir);
        let (present, missing) = (inherited.is_present(name.id), inherited.is_missing(name.id));
        (inherited.stored(name.id), present, missing, inherited.lost)
    };
    if missing {
        return Err(missing_directory(name, path));
    } else if !present {
        let state = create(core, path).await?;
        inherited(&core.dir).note_created(name.id);
        return Ok(state);
    }
    let saved = stored.as_ref().and_then(|stored| sound_snapshot(name, stored));
    if let (Some(saved), Some(StoredLog { active: false, .. })) = (&saved, &stored) {
        return Ok(snapshot::restore(saved));
    }
    let turn = core.lookings.acquire(1).await;
    let (files, manifest) = find_segments(core, name, path).await?;
    if files.is_empty() && saved.is_none() {
        drop(turn);
        // The directory survived a crash that the first segment's name did not.
        return create(core, path).await;
    }
    let may_have_lost_checkpoint = lost && saved.is_none();
    let recovery =
        Recovery { may_have_lost_checkpoint, turn: Some(turn), ..Recovery::of(core, name, path, files, &manifest) };
    let opened = match saved {
        Some(saved) => {
            let vouched_for = snapshot::recovery_point(&saved).segment;
            let mut resumed = recovery.resume(&corrected(saved, &manifest)).await;
            if let Ok(state) = &mut resumed {
                state.vouched_for = vouched_for;
            }
            resumed
        }
        None => recovery.scan_all().await,
    };
    if let Err(error) = &opened {
        core.dir.note_failure(error);
    }
    opened
}

/// The records of a log are gone with its directory.
fn missing_directory(name: &LogName, path: &Path) -> Error {
    let reason = "the log's directory is missing".to_owned();
    let error = Error::Damaged { path: path.to_owned(), position: 0, offset: Offset::ZERO, reason };
    tracing::error!(log = %name, %error, "records are gone: restore the directory from a copy or delete the topic");
    error
}

/// Opens a log again from what its state in memory says is flushed, after writes that failed for want of space.
///
/// # Errors
/// As [`open_or_create`].
pub(crate) async fn reopen(core: &Core, name: &LogName, path: &Path, flushed: &LogSnapshot) -> Result<LogState, Error> {
    let (files, manifest) = find_segments(core, name, path).await?;
    let recovery = Recovery { own_writes: true, ..Recovery::of(core, name, path, files, &manifest) };
    let opened = recovery.resume(flushed).await;
    if let Err(error) = &opened {
        core.dir.note_failure(error);
    }
    opened
}

/// Makes a new log with its first segment, durably. A log that always has its first segment loses nothing but its end in a
/// power cut: without it, a later segment whose name survived would become the start of the log.
async fn create(core: &Core, path: &Path) -> Result<LogState, Error> {
    core.io.create_dir_all(path).await?;
    core.device.prepare(&core.io, &path.join(SegmentFile::Log.name(Offset::ZERO)), None).await?;
    core.sync_names(Some(path.to_owned())).await?;
    let mut state = LogState::empty(Offset::ZERO);
    let first = state.active();
    (first.on_disk, first.entry_synced) = (true, true);
    Ok(state)
}

/// The segments in a log's directory, by base offset, and what compaction has done to them, brought to its end (case 32). What
/// a crash has left beside them is removed.
async fn find_segments(core: &Core, name: &LogName, path: &Path) -> Result<(BTreeSet<Offset>, Manifest), Error> {
    let mut listing = Listing::read(&core.io, path).await?;
    let manifest = if listing.has_manifest {
        read_manifest(&core.io, path).await.inspect_err(|error| {
            if matches!(error, Error::Damaged { .. }) {
                tracing::error!(log = %name, %error, "it tells the segments of a compacted log: restore it from a copy or delete the topic");
            }
        })?
    } else {
        Manifest::default()
    };
    listing.remove_leftovers(&core.io).await?;
    finish_swaps(core, path, &manifest, &mut listing.segments, &listing.cleaned).await?;
    Ok((listing.segments, manifest))
}

/// What is in a log's directory.
#[derive(Default)]
struct Listing {
    /// The `.log` files.
    segments: BTreeSet<Offset>,
    /// The files of rewritten segments that have not taken their place, by base offset and generation.
    cleaned: Vec<(Offset, u64)>,
    /// Compaction has told what it did.
    has_manifest: bool,
    /// Files that belong to a segment.
    others: Vec<(Offset, PathBuf)>,
    /// Files that were not finished.
    temporary: Vec<PathBuf>,
}

impl Listing {
    /// Lists the directory at `path`. What is foreign is reported (case 46).
    async fn read(io: &Io, path: &Path) -> Result<Listing, Error> {
        let mut listing = Listing::default();
        for entry in io.read_dir(path).await? {
            let full = || path.join(&entry.name);
            match (SegmentFile::parse(&entry.name), entry.kind) {
                (Some((base_offset, SegmentFile::Log)), EntryKind::File) => {
                    listing.segments.insert(base_offset);
                }
                (Some((base_offset, _)), EntryKind::File) => listing.others.push((base_offset, full())),
                (None, EntryKind::File) if entry.name.ends_with(TEMPORARY_SUFFIX) => listing.temporary.push(full()),
                (None, EntryKind::File) if entry.name == COMPACTION_FILE => listing.has_manifest = true,
                (None, EntryKind::File) if parse_cleaned(&entry.name).is_some() => {
                    listing.cleaned.extend(parse_cleaned(&entry.name));
                }
                _ => tracing::warn!(path = %full().display(), "not a file of a log; left alone"),
            }
        }
        Ok(listing)
    }

    /// Removes what belongs to no segment.
    async fn remove_leftovers(&self, io: &Io) -> Result<(), Error> {
        let is_left = |(base_offset, _): &&(Offset, PathBuf)| !self.segments.contains(base_offset);
        let left = self.others.iter().filter(is_left).map(|(_, path)| path);
        for path in self.temporary.iter().chain(left) {
            io.remove_file(path).await?;
        }
        Ok(())
    }
}

struct Recovery<'a> {
    core: &'a Core,
    name: &'a LogName,
    path: &'a Path,
    /// The segments in the directory.
    files: BTreeSet<Offset>,
    /// A checkpoint of this log may have existed and cannot be read.
    may_have_lost_checkpoint: bool,
    /// This process wrote the log before, and its writes have ended.
    own_writes: bool,
    /// Below this offset compaction has left gaps between batches and between segments.
    gaps_end: Offset,
    /// The segment that is looked at.
    opened: Option<OpenSegment>,
    /// One of the logs that are looked at at the same time.
    turn: Option<Permits>,
}

/// A segment that is looked at: opened once.
#[derive(Clone)]
struct OpenSegment {
    base_offset: Offset,
    file: File,
    /// Its length in bytes.
    len: u64,
    /// What was read of it.
    bytes: Lease,
    /// Where that begins.
    bytes_at: u64,
}

impl OpenSegment {
    /// The bytes from `position` on that were read.
    fn known_from(&self, position: u64) -> &[u8] {
        let from = position.checked_sub(self.bytes_at).and_then(|from| usize::try_from(from).ok());
        from.and_then(|from| self.bytes.get(from..)).unwrap_or_default()
    }

    fn headers(&self, from: u64, to: u64) -> HeaderScan {
        HeaderScan::new(self.file.clone(), from, to).knowing(self.bytes.clone(), self.bytes_at)
    }
}

impl<'a> Recovery<'a> {
    fn of(core: &'a Core, name: &'a LogName, path: &'a Path, files: BTreeSet<Offset>, manifest: &Manifest) -> Self {
        let gaps_end = manifest.gaps_end();
        let (may_have_lost_checkpoint, own_writes, opened, turn) = (false, false, None, None);
        Recovery { core, name, path, files, may_have_lost_checkpoint, own_writes, gaps_end, opened, turn }
    }
}

impl Recovery<'_> {
    /// Without a snapshot everything is scanned.
    async fn scan_all(mut self) -> Result<LogState, Error> {
        let start = self.files.first().copied().unwrap_or(Offset::ZERO);
        let mut state = LogState::empty(start);
        self.scan(&mut state).await?;
        // A kill may have come between the directory and its name on the disk.
        self.core.sync_names(None).await?;
        Ok(state)
    }

    /// With one, only what lies behind its recovery point.
    async fn resume(mut self, saved: &LogSnapshot) -> Result<LogState, Error> {
        self.remove_deleted(saved).await?;
        let mut state = LogState::empty(Offset::new(saved.log_start));
        state.segments.clear();
        let first = saved.segments.iter().position(|segment| self.is_kept(saved, segment)).expect("the last is kept");
        let (last, sealed) = saved.segments[first..].split_last().expect("the last is kept");
        for segment in sealed {
            state.segments.push(self.sealed_segment(segment).await?);
        }
        state.segments.push(self.last_segment(saved, last).await?);
        state.log_start = Offset::new(saved.log_start);
        state.high_watermark = state.log_start;
        state.epochs = snapshot::epochs(saved);
        state.epochs.truncate_from_start(state.log_start);
        state.producers = snapshot::producers(saved);
        state.set_end(snapshot::recovery_point(saved));
        self.scan(&mut state).await?;
        Ok(state)
    }

    /// Whether a segment of the snapshot has anything at or above the log's start.
    fn is_kept(&self, saved: &LogSnapshot, segment: &SegmentSnapshot) -> bool {
        let next = saved.segments.iter().find(|other| other.base_offset > segment.base_offset);
        next.is_none_or(|next| next.base_offset > saved.log_start)
    }

    /// Removes segments below the log's start: the checkpoint that moved it comes before their removal, so a crash in
    /// between leaves them.
    async fn remove_deleted(&mut self, saved: &LogSnapshot) -> Result<(), Error> {
        let first_kept = saved.segments.iter().find(|segment| self.is_kept(saved, segment)).expect("the last is kept");
        let first_kept = Offset::new(first_kept.base_offset);
        let gone: Vec<Offset> = self.files.range(..first_kept).copied().collect();
        for base_offset in gone {
            self.remove(base_offset).await?;
        }
        Ok(())
    }

    async fn remove(&mut self, base_offset: Offset) -> Result<(), Error> {
        remove_segment_files(self.core, self.path, base_offset).await?;
        self.files.remove(&base_offset);
        Ok(())
    }

    /// A segment that was complete when the checkpoint was written. Its batches are believed, its length is not.
    async fn sealed_segment(&self, saved: &SegmentSnapshot) -> Result<Segment, Error> {
        let base_offset = Offset::new(saved.base_offset);
        self.check_is_there(base_offset)?;
        let len = self.core.io.metadata(&self.file(base_offset)).await?.len;
        self.check_length(base_offset, len, saved.size)?;
        let mut segment = snapshot::segment(saved);
        segment.index = IndexBuilder::complete(saved.offset_entries, saved.time_entries, snapshot::max_time(saved));
        if !saved.index_complete {
            let file = self.core.io.open(&self.file(base_offset), OpenOptions::read_write()).await?;
            let (index, _) = self.index_from_batches(file, saved.size).await?;
            segment.index = index;
            segment.index.seal();
        }
        Ok(segment)
    }

    /// The segment with the recovery point: the batch before that point must be there, sound, and end exactly there.
    async fn last_segment(&mut self, whole: &LogSnapshot, saved: &SegmentSnapshot) -> Result<Segment, Error> {
        let base_offset = Offset::new(saved.base_offset);
        let mut segment = snapshot::segment(saved);
        segment.on_disk = self.files.contains(&base_offset);
        segment.entry_synced = segment.on_disk && saved.size > 0;
        if saved.size == 0 {
            return Ok(segment);
        }
        self.check_is_there(base_offset)?;
        let last_indexed = snapshot::last_indexed(saved);
        let opened = self.open(base_offset, last_indexed.unwrap_or(saved.size)).await?;
        self.check_length(base_offset, opened.len, saved.size)?;
        let point = snapshot::recovery_point(whole);
        // The index files are not looked at: who looks something up in them believes no entry without its batch.
        segment.index = match last_indexed {
            Some(from) if self.ends_with_a_batch(&opened, from, point).await? => snapshot::believed_index(saved),
            _ => self.index_of_last_segment(whole, saved, &opened).await?,
        };
        Ok(segment)
    }

    /// Whether a walk over the batches from `from` on comes to one that is sound and ends at `point`.
    async fn ends_with_a_batch(&self, opened: &OpenSegment, from: u64, point: Boundary) -> Result<bool, Error> {
        let headers = opened.headers(from, point.position);
        match last_batch_misfit(&self.core.io, opened.file.clone(), headers, point).await {
            Ok(misfit) => Ok(misfit.is_none()),
            Err(Error::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The indexes below the recovery point, from their files if these fit, else from the batches. The batch before the
    /// recovery point is looked at.
    async fn index_of_last_segment(
        &self,
        whole: &LogSnapshot,
        saved: &SegmentSnapshot,
        opened: &OpenSegment,
    ) -> Result<IndexBuilder, Error> {
        let base_offset = opened.base_offset;
        let offsets = self.read_offset_index(base_offset, saved).await?;
        let times = self.read_time_index(base_offset, whole, saved).await?;
        let fits = match (&offsets, &times) {
            (Some(offsets), Some(_)) => self.names_a_batch(opened, offsets.last(), saved.size).await?,
            _ => false,
        };
        let (index, last_entry) = match (offsets, times) {
            (Some(offsets), Some(times)) if fits => {
                let index = IndexBuilder::resume(&offsets, &times, snapshot::max_time(saved), saved.size);
                (index, offsets.last().map_or(0, |entry| u64::from(entry.position)))
            }
            _ => {
                tracing::info!(log = %self.name, segment = base_offset.get(), "the index does not fit; writing it again");
                self.index_from_batches(opened.file.clone(), saved.size).await?
            }
        };
        self.check_last_batch(whole, opened, last_entry).await?;
        Ok(index)
    }

    fn check_is_there(&self, base_offset: Offset) -> Result<(), Error> {
        if self.files.contains(&base_offset) {
            return Ok(());
        }
        Err(self.damaged(base_offset, 0, base_offset, "the file is missing".to_owned()))
    }

    fn check_length(&self, base_offset: Offset, len: u64, size: u64) -> Result<(), Error> {
        if len >= size {
            return Ok(());
        }
        Err(self.damaged(base_offset, len, base_offset, format!("the file ends, {size} bytes were flushed")))
    }

    /// Whether the batch is there that the last index entry names.
    async fn names_a_batch(&self, opened: &OpenSegment, entry: Option<&OffsetEntry>, size: u64) -> Result<bool, Error> {
        let Some(entry) = entry else { return Ok(true) };
        match opened.headers(u64::from(entry.position), size).next(&self.core.io).await {
            Ok(batch) => Ok(batch.is_some_and(|batch| batch.header.last_offset() == entry.last_offset)),
            Err(Error::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads the batch before the recovery point.
    async fn check_last_batch(&self, saved: &LogSnapshot, opened: &OpenSegment, from: u64) -> Result<(), Error> {
        let point = snapshot::recovery_point(saved);
        let headers = opened.headers(from, point.position);
        match last_batch_misfit(&self.core.io, opened.file.clone(), headers, point).await? {
            None => Ok(()),
            Some(found) => Err(self.damaged(opened.base_offset, found.position, found.expected, found.reason)),
        }
    }

    /// The offset index below the recovery point; `None` if the file does not have what the checkpoint says.
    async fn read_offset_index(
        &self,
        base_offset: Offset,
        saved: &SegmentSnapshot,
    ) -> Result<Option<Vec<OffsetEntry>>, Error> {
        let len = saved.offset_entries as usize * OFFSET_ENTRY_LEN;
        let Some(bytes) = self.read_index(base_offset, SegmentFile::OffsetIndex, len).await? else { return Ok(None) };
        let mut entries = decode_offset_index(&bytes, base_offset);
        let whole = entries.len() == saved.offset_entries as usize;
        entries.retain(|entry| u64::from(entry.position) < saved.size);
        Ok(whole.then_some(entries))
    }

    /// The time index below the recovery point; `None` if the file does not have what the checkpoint says.
    async fn read_time_index(
        &self,
        base_offset: Offset,
        whole: &LogSnapshot,
        saved: &SegmentSnapshot,
    ) -> Result<Option<Vec<TimeEntry>>, Error> {
        let len = saved.time_entries as usize * TIME_ENTRY_LEN;
        let Some(bytes) = self.read_index(base_offset, SegmentFile::TimeIndex, len).await? else { return Ok(None) };
        let mut entries = decode_time_index(&bytes, base_offset);
        let complete = entries.len() == saved.time_entries as usize;
        entries.retain(|entry| entry.last_offset.get() < whole.recovery_offset);
        Ok(complete.then_some(entries))
    }

    async fn read_index(
        &self,
        base_offset: Offset,
        kind: SegmentFile,
        len: usize,
    ) -> Result<Option<heddle_io::Lease>, Error> {
        if len == 0 {
            return Ok(Some(heddle_io::Lease::empty()));
        }
        match self.core.io.open(&self.path.join(kind.name(base_offset)), OpenOptions::read()).await {
            Ok(file) => Ok(Some(self.core.io.read_lease(&file, 0, len).await?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The indexes of a segment, made from its headers, and the position of its last batch.
    async fn index_from_batches(&self, file: File, size: u64) -> Result<(IndexBuilder, u64), Error> {
        let mut scan = HeaderScan::new(file, 0, size);
        let mut index = IndexBuilder::default();
        let mut last = 0;
        while let Some(batch) = scan.next(&self.core.io).await? {
            index.note(batch.indexed(), INDEX_INTERVAL_BYTES);
            last = batch.position;
        }
        Ok((index, last))
    }

    /// Checks everything from the end of `state` on, adds what fits, and cuts off the rest.
    async fn scan(&mut self, state: &mut LogState) -> Result<(), Error> {
        let mut touched = Vec::new();
        loop {
            let base_offset = state.active().base_offset;
            if !self.files.contains(&base_offset) {
                break;
            }
            let from = state.active().size;
            let opened = self.open(base_offset, from).await?;
            state.active().on_disk = true;
            let misfit = self.scan_segment(state, &opened).await?;
            let end = state.active().size;
            state.space = Some(Space::of_file(base_offset, end, opened.len));
            if self.is_continued(state) {
                self.cut_off_rest(&opened, end).await?;
            } else if let Some(reason) = misfit
                && !self.is_prepared_space(&opened, end).await?
            {
                self.refuse_damage(state, base_offset, end, &reason)?;
                self.cut(state, &opened, &reason).await?;
                break;
            }
            if end > from {
                touched.push(self.file(base_offset));
            }
            self.step_over_gap(state);
            let log_end = state.log_end;
            if !self.files.contains(&log_end) || end == 0 {
                break;
            }
            state.roll();
        }
        self.remove_unreachable(state).await?;
        self.settle(state, touched).await
    }

    /// Whether another segment goes on where the batches of the active one end. Then it has all that it was ever given, and
    /// what lies behind them is nobody's: space that was prepared, or old batches of a file that was used again. Which device
    /// left it there is no matter.
    fn is_continued(&self, state: &mut LogState) -> bool {
        let base_offset = state.active().base_offset;
        state.log_end > base_offset && self.files.contains(&state.log_end)
    }

    /// Takes away what a kill has kept from being trimmed. Nothing depends on it: the next start finds it again.
    async fn cut_off_rest(&self, opened: &OpenSegment, end: u64) -> Result<(), Error> {
        if opened.len > end {
            self.core.io.set_len(&opened.file, end).await?;
        }
        Ok(())
    }

    /// Where compaction may have left nothing behind the last batch, the log goes on with the next segment.
    fn step_over_gap(&self, state: &mut LogState) {
        let base_offset = state.active().base_offset;
        let next = self.files.range(base_offset.next()..).next();
        if let Some(next) = next.filter(|next| **next <= self.gaps_end) {
            state.log_end = state.log_end.max(*next);
        }
    }

    /// Adds the batches of the active segment that fit. Returns why the next one does not, if there is one.
    async fn scan_segment(&self, state: &mut LogState, opened: &OpenSegment) -> Result<Option<String>, Error> {
        let now = Timestamp::new(self.core.io.wall_clock());
        let epoch =
            state.log_end.checked_add(-1).and_then(|last| state.epochs.epoch_at(last)).unwrap_or(LeaderEpoch::NONE);
        let position = state.active().size;
        let has_gaps = state.active().base_offset < self.gaps_end;
        let rule = if has_gaps { Continuity::Ascending } else { Continuity::Contiguous };
        let scan = BatchScan::new(opened.file.clone(), opened.len, position, state.log_end, epoch, rule);
        let mut scan = scan.knowing(opened.bytes.clone(), opened.bytes_at);
        loop {
            match scan.next(&self.core.io).await? {
                Scanned::Batch(scanned, batch) => replay(state, &scanned, &batch, now),
                Scanned::End => return Ok(None),
                Scanned::Misfit(reason) => return Ok(Some(reason)),
            }
        }
    }

    /// Whether nothing but zeros follows the log's end in its file: space that was prepared for it.
    async fn is_prepared_space(&self, opened: &OpenSegment, end: u64) -> Result<bool, Error> {
        let known = opened.known_from(end);
        if !self.core.device.is_direct() || !is_zeros(known) {
            return Ok(false);
        }
        let mut position = end + known.len() as u64;
        while position < opened.len {
            let wanted = ZERO_READ_BYTES.min(opened.len - position);
            let bytes = self.core.io.read_lease(&opened.file, position, wanted as usize).await?;
            if bytes.is_empty() || !is_zeros(&bytes) {
                return Ok(false);
            }
            position += bytes.len() as u64;
        }
        Ok(true)
    }

    /// Without a checkpoint that once was there, only the end of the last segment can be a torn tail.
    fn refuse_damage(&self, state: &LogState, base_offset: Offset, position: u64, reason: &str) -> Result<(), Error> {
        let has_later = self.files.range(base_offset.next()..).next().is_some();
        if self.may_have_lost_checkpoint && has_later {
            return Err(self.damaged(base_offset, position, state.log_end, reason.to_owned()));
        }
        Ok(())
    }

    /// Ends the log where the first batch that does not fit begins: later segments go first, then the rest of this one.
    async fn cut(&mut self, state: &mut LogState, opened: &OpenSegment, reason: &str) -> Result<(), Error> {
        let (base_offset, end, len) = (opened.base_offset, state.active().size, opened.len);
        tracing::warn!(
            log = %self.name, segment = base_offset.get(), position = end, offset = state.log_end.get(), bytes = len - end, reason,
            "the log ends before its file does; cutting off the rest"
        );
        let later: Vec<Offset> = self.files.range(base_offset.next()..).copied().collect();
        for segment in later.into_iter().rev() {
            self.remove(segment).await?;
        }
        self.core.io.sync_dir(self.path).await?;
        if self.core.config.planted_bug != PlantedBug::KeepCutTail {
            self.core.device.truncate(&self.core.io, &opened.file, end).await?;
        }
        state.space = None;
        Ok(())
    }

    /// Removes segments that do not continue the log: left by a crash in the middle of a cut.
    async fn remove_unreachable(&mut self, state: &mut LogState) -> Result<(), Error> {
        let last = state.active().base_offset;
        let left: Vec<Offset> = self.files.range(last.next()..).copied().collect();
        if let Some(first) = left.first() {
            self.refuse_damage(
                state,
                last,
                state.segments[state.segments.len() - 1].size,
                "the next segment does not follow",
            )?;
            tracing::warn!(log = %self.name, segment = first.get(), offset = state.log_end.get(), "removing segments that do not continue the log");
        }
        for segment in left.into_iter().rev() {
            self.remove(segment).await?;
        }
        Ok(())
    }

    /// Makes durable what the scan found, and everything below it the new recovery point.
    async fn settle(&mut self, state: &mut LogState, touched: Vec<PathBuf>) -> Result<(), Error> {
        // Whoever waits for the disk keeps nobody from looking at the next log, and no file open.
        (self.opened, self.turn) = (None, None);
        let unsynced = state.segments.iter().any(|segment| segment.on_disk && !segment.entry_synced);
        let directory = unsynced.then(|| self.path.to_owned());
        self.core.sync_found(Found { files: touched, directory }).await?;
        for segment in &mut state.segments {
            segment.entry_synced = segment.on_disk;
        }
        let active = state.active();
        let (segment, position) = (active.base_offset, active.size);
        state.epochs.truncate_from_end(state.log_end.next());
        let end = Boundary { offset: state.log_end, segment, position };
        state.set_end(end);
        state.unsaved = true;
        Ok(())
    }

    /// Opens a segment, unless it is open, and reads it from `from` on: nothing before nobody writes it any more.
    async fn open(&mut self, base_offset: Offset, from: u64) -> Result<OpenSegment, Error> {
        if let Some(opened) = self.opened.as_ref().filter(|opened| opened.base_offset == base_offset) {
            return Ok(opened.clone());
        }
        let (io, path) = (&self.core.io, self.file(base_offset));
        let hold = (!self.own_writes).then_some(Hold::Alone);
        let opened = io.open_and_read(&path, OpenOptions::read_write(), hold, from, FIRST_READ_BYTES).await?;
        let (len, bytes) = match opened.bytes {
            Some(bytes) => (opened.len, bytes),
            None => {
                self.core.device.wait_for_former_writes(io, &opened.file).await?;
                (io.len(&opened.file).await?, Lease::empty())
            }
        };
        let opened = OpenSegment { base_offset, file: opened.file, len, bytes, bytes_at: from };
        self.opened = Some(opened.clone());
        Ok(opened)
    }

    fn file(&self, base_offset: Offset) -> PathBuf {
        self.path.join(SegmentFile::Log.name(base_offset))
    }

    fn damaged(&self, base_offset: Offset, position: u64, offset: Offset, reason: String) -> Error {
        let error = Error::Damaged { path: self.file(base_offset), position, offset, reason };
        tracing::error!(log = %self.name, %error, "flushed records are gone: the log stays offline; restore it from a copy or delete the topic");
        error
    }
}

fn is_zeros(bytes: &[u8]) -> bool {
    // Whole words of a block at a time: byte by byte it would take longer than to read them.
    let (blocks, rest) = bytes.as_chunks::<512>();
    blocks.iter().all(|block| *block == [0; 512]) && rest.iter().all(|byte| *byte == 0)
}

/// Puts a batch that was found on disk into the state, as the append did that wrote it.
fn replay(state: &mut LogState, scanned: &ScannedBatch, batch: &RecordBatch<'_>, now: Timestamp) {
    let header = batch.header();
    state.epochs.assign(header.partition_leader_epoch, header.base_offset);
    let segment = state.active();
    segment.index.note(scanned.indexed(), INDEX_INTERVAL_BYTES);
    segment.size = scanned.end();
    let time = if header.max_timestamp == Timestamp::NONE { now } else { header.max_timestamp.min(now) };
    segment.first_append_at.get_or_insert(time);
    segment.last_append_at = segment.last_append_at.max(Some(time));
    state.log_end = header.next_offset();
    state.producers.replay(header, now);
}

/// Removes the files of a segment. What is not there is no error (case 33).
///
/// # Errors
/// The disk's.
pub(crate) async fn remove_segment_files(core: &Core, path: &Path, base_offset: Offset) -> Result<(), Error> {
    for kind in SegmentFile::ALL {
        core.device.recycle(&core.io, &path.join(kind.name(base_offset)), None).await?;
    }
    Ok(())
}
