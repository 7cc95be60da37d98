//! Putting a rewritten segment in the place of those that it stands for, so that a power cut leaves the one or the others.
//!
//! ```text
//! 1  <base>.<generation>.cleaned    written and flushed, its name too
//! 2  compaction                     replaced, durably: from here on the rewritten segment counts
//! 3  <base>.log                     takes its place by a rename, while nobody looks a position up
//! 4  the other segments             removed; the directory flushed
//! ```
//!
//! Owns these steps, and their end at the next start where a cut came between 2 and 4: whatever the checkpoint says of the
//! segments, before or after, is corrected by the manifest. A `.cleaned` file that the manifest does not name is a leftover.
//! After a kill in step 2 the manifest may be in the page cache only: the start flushes its name before it goes on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use heddle_io::{Io, Lease, OpenOptions};
use heddle_record::Offset;

use super::manifest::{CompactedSegment, Manifest};
use crate::archive::{LogSnapshot, SegmentSnapshot};
use crate::config::PlantedBug;
use crate::data_dir::write_checked;
use crate::engine::Core;
use crate::error::Error;
use crate::layout::{COMPACTION_FILE, SegmentFile, cleaned_file};
use crate::log::{LogInner, READERS_MAX};
use crate::recovery::remove_segment_files;
use crate::segment::Segment;
use crate::state::LogState;

impl LogInner {
    /// Where a rewritten segment is written to.
    pub(crate) fn cleaned_path(&self, base: Offset, generation: u64) -> PathBuf {
        self.path.join(cleaned_file(base, generation))
    }

    /// Replaces the file `compaction`, durably.
    ///
    /// # Errors
    /// The disk's: the former one counts, unless the directory could not be flushed.
    pub(crate) async fn write_manifest(&self, manifest: &Manifest) -> Result<(), Error> {
        let bytes = Lease::from_vec(manifest.encode());
        write_checked(self.io(), &self.path, COMPACTION_FILE, vec![bytes]).await
    }

    /// Puts `new` in the place of the segments from its base offset up to `put.end`. Its file is written and flushed; its
    /// name is not durable yet. `manifest` is what counts from now on.
    ///
    /// # Errors
    /// The disk's. The log goes offline where it is not known what counts; else everything is as it was.
    pub(crate) async fn replace_segments(
        self: &Rc<Self>,
        new: Segment,
        put: CompactedSegment,
        manifest: &Manifest,
    ) -> Result<(), Error> {
        self.io().sync_dir(&self.path).await?;
        if self.core.config.planted_bug != PlantedBug::SwapWithoutManifest
            && let Err(error) = self.write_manifest(manifest).await
        {
            return if error.is_refusal() { Err(error) } else { Err(self.fail_swap(error)) };
        }
        let put_in_place = self.put_in_place(new, put).await;
        put_in_place.map_err(|error| self.fail_swap(error))?;
        self.complete_indexes_later();
        Ok(())
    }

    /// What is on the disk is one thing or the other, and only the next start can tell.
    fn fail_swap(&self, error: Error) -> Error {
        if !self.state.borrow().deleted {
            self.core.dir.note_failure(&error);
            self.take_offline(&error);
        }
        error
    }

    async fn put_in_place(&self, new: Segment, put: CompactedSegment) -> Result<(), Error> {
        // First the readers, then the indexes: a reader may be waiting for these.
        let readers = self.readers.acquire(READERS_MAX).await;
        let _turn = self.index_turn.acquire(1).await;
        let cleaned = self.cleaned_path(put.base, put.generation);
        let covered = self.state.borrow().bases(put.base, put.end);
        if covered.is_empty() {
            // Retention took all of it meanwhile.
            self.core.device.recycle(self.io(), &cleaned, None).await?;
            return Ok(self.io().sync_dir(&self.path).await?);
        }
        remove_indexes(&self.core, &self.path, put.base).await?;
        self.io().rename(&cleaned, &self.path.join(SegmentFile::Log.name(put.base))).await?;
        self.state.borrow_mut().replace(new, put.end);
        for base in covered.iter().chain([&put.base]) {
            self.forget_files(*base);
        }
        drop(readers);
        for base in covered.into_iter().filter(|base| *base != put.base) {
            remove_segment_files(&self.core, &self.path, base).await?;
        }
        Ok(self.io().sync_dir(&self.path).await?)
    }
}

impl LogState {
    /// The base offsets of the segments from `base` up to `end`.
    fn bases(&self, base: Offset, end: Offset) -> Vec<Offset> {
        let all = self.segments.iter().map(|segment| segment.base_offset);
        all.filter(|found| (base..end).contains(found)).collect()
    }

    /// Puts a segment in the place of those from its base offset up to `end`. Positions in them mean nothing any more.
    fn replace(&mut self, new: Segment, end: Offset) {
        let from = self.segments.partition_point(|segment| segment.base_offset < new.base_offset);
        let to = self.segments.partition_point(|segment| segment.base_offset < end);
        assert!(from < to && to < self.segments.len(), "sealed segments are replaced");
        assert!(end <= self.vouched_for, "only what a checkpoint vouches for is rewritten");
        self.tail.borrow_mut().forget(new.base_offset, end);
        self.segments.splice(from..to, [new]);
        self.forget_landmarks();
        self.unsaved = true;
    }
}

/// Removes the index files of a segment, which do not fit the one that takes its name.
async fn remove_indexes(core: &Core, path: &Path, base: Offset) -> Result<(), Error> {
    for kind in [SegmentFile::OffsetIndex, SegmentFile::TimeIndex] {
        core.device.recycle(&core.io, &path.join(kind.name(base)), None).await?;
    }
    Ok(())
}

/// What compaction has done to the log at `path`; nothing if there is no such file.
///
/// # Errors
/// The disk's; [`Error::Damaged`] if the file cannot be understood: what it says of the segments is needed.
pub(crate) async fn read_manifest(io: &Io, path: &Path) -> Result<Manifest, Error> {
    let path = path.join(COMPACTION_FILE);
    let file = match io.open(&path, OpenOptions::read()).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Manifest::default()),
        Err(error) => return Err(error.into()),
    };
    let len = usize::try_from(io.len(&file).await?).expect("a small file fits in memory");
    let bytes = io.read_lease(&file, 0, len).await?;
    Manifest::decode(&bytes).map_err(|reason| {
        let reason = reason.to_owned();
        Error::Damaged { path, position: 0, offset: Offset::ZERO, reason }
    })
}

/// Brings to its end what a power cut interrupted. `files` are the base offsets of the `.log` files; `cleaned` the base
/// offsets and generations of the files of rewritten segments.
///
/// # Errors
/// The disk's.
pub(crate) async fn finish_swaps(
    core: &Core,
    path: &Path,
    manifest: &Manifest,
    files: &mut BTreeSet<Offset>,
    cleaned: &[(Offset, u64)],
) -> Result<(), Error> {
    let mut changed = !cleaned.is_empty();
    let counts = |cleaned: &(Offset, u64)| manifest.segments.iter().any(|put| (put.base, put.generation) == *cleaned);
    if cleaned.iter().any(counts) {
        // A kill may have come between the manifest and its name on the disk: what follows must not outlive it.
        core.io.sync_dir(path).await?;
    }
    for cleaned in cleaned {
        let (base, generation) = cleaned;
        let from = path.join(cleaned_file(*base, *generation));
        if counts(cleaned) {
            tracing::info!(path = %from.display(), "a rewritten segment takes its place");
            remove_indexes(core, path, *base).await?;
            core.io.rename(&from, &path.join(SegmentFile::Log.name(*base))).await?;
            files.insert(*base);
        } else {
            core.io.remove_file(&from).await?;
        }
    }
    for put in &manifest.segments {
        let replaced: Vec<Offset> = files.range(put.base.next()..put.end).copied().collect();
        for base in replaced {
            remove_segment_files(core, path, base).await?;
            files.remove(&base);
            changed = true;
        }
    }
    if changed { Ok(core.io.sync_dir(path).await?) } else { Ok(()) }
}

/// What a checkpoint says of a log, with the segments that were rewritten since in the place of those that they stand for.
pub(crate) fn corrected(mut saved: LogSnapshot, manifest: &Manifest) -> LogSnapshot {
    for put in &manifest.segments {
        let (base, end) = (put.base.get(), put.end.get());
        let from = saved.segments.partition_point(|segment| segment.base_offset < base);
        let to = saved.segments.partition_point(|segment| segment.base_offset < end);
        let replaced = &saved.segments[from..to];
        let is_known = matches!(replaced, [one] if one.base_offset == base && one.size == put.size);
        let (Some(first), Some(last)) = (replaced.first(), replaced.last()) else { continue };
        // The segment with the recovery point was never rewritten.
        if is_known || to == saved.segments.len() {
            continue;
        }
        let rewritten = SegmentSnapshot {
            base_offset: base,
            size: put.size,
            max_time: None,
            offset_entries: 0,
            time_entries: 0,
            bytes_since_entry: 0,
            last_time: None,
            index_complete: false,
            first_append_at: first.first_append_at,
            last_append_at: last.last_append_at,
        };
        saved.segments.splice(from..to, [rewritten]);
    }
    saved
}
