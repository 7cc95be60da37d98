//! One pass over one log: learn the last offset of each key in the dirty part, then write the segments below again without
//! what these replace.
//!
//! ```text
//! log start ── compacted before ── first dirty ── dirty ── end ── too young, active ──
//!                                  └─ mapped, a part if memory is short ─┘
//! └──────────────── filtered, neighbours put together ─────────────────┘
//! ```
//!
//! Owns the order: segments from the oldest to the youngest, each durably in its place before the next. So a tombstone
//! that goes has nothing below it left to hide. A segment that nothing goes from is not written again.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;

use heddle_io::OpenOptions;
use heddle_record::{
    BatchBuilder, BatchHeader, Compression, LeaderEpoch, Offset, RecordBatch, RecordError, RecordKey, RecordKeys,
    ThinnedBatch, Timestamp,
};

use super::dirt::Job;
use super::manifest::{CompactedSegment, Manifest};
use super::pace::Pace;
use super::rules::{Marker, Rules, Whole};
use super::survivors::{FullAt, Questions, Survivors};
use super::target::{Output, Target};
use crate::error::Error;
use crate::layout::SegmentFile;
use crate::log::LogInner;
use crate::opening::COMPRESSED_HERE_MAX;
use crate::scan::{BatchScan, Continuity, Scanned};
use crate::segment::Segment;

/// Bytes that are copied, and gathered to be written, at once: what is written is still near the core, and little enough to
/// be written by the core itself.
pub(super) const CHUNK_BYTES: usize = 128 << 10;
/// Records that are looked at before the clock is.
const RECORDS_PER_LOOK: usize = 256;
/// A segment may grow when a delete horizon takes the place of its timestamps; it never gets here.
const SEGMENT_BYTES_LIMIT: u64 = i32::MAX as u64;

/// What a pass has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compacted {
    /// Bytes read, those that were looked at twice counted twice.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Records that were looked at in order to be kept or not.
    pub records: u64,
    /// Records that are gone.
    pub records_removed: u64,
    /// Segments that are gone, put together with others.
    pub segments_removed: u64,
    /// Keys of the dirty parts.
    pub keys: u64,
    /// The most memory that the keys of one pass took, in bytes.
    pub key_bytes_max: u64,
}

impl Compacted {
    /// Adds what another pass has done.
    pub(crate) fn add(&mut self, other: &Compacted) {
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.records += other.records;
        self.records_removed += other.records_removed;
        self.segments_removed += other.segments_removed;
        self.keys += other.keys;
        self.key_bytes_max = self.key_bytes_max.max(other.key_bytes_max);
    }
}

/// A pass under way.
pub(super) struct Pass<'a> {
    pub(super) log: &'a Rc<LogInner>,
    pub(super) job: Job,
    pub(super) pace: Pace,
    /// Bytes that the map of keys may take.
    pub(super) map_bytes_max: usize,
    /// Whether the pass is to be given up.
    pub(super) is_stopped: &'a dyn Fn() -> bool,
    pub(super) done: Compacted,
    pub(super) verdicts: Verdicts,
    /// Memory for a batch of which only some records stay, used again and again.
    pub(super) memory: Vec<u8>,
    /// Producers of whose transaction, which no marker has ended so far, some data stays.
    pub(super) transactions: BTreeSet<i64>,
}

/// What becomes of the records of one batch. Kept from batch to batch for its memory.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    records: Vec<Verdict>,
    /// Places of those whose keys are asked for.
    asked: Vec<usize>,
    questions: Questions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Verdict {
    stays: bool,
    /// It has no value, and the pass knows what is behind it.
    is_tombstone: bool,
}

/// A segment to be read.
#[derive(Debug, Clone, Copy)]
struct Source {
    base: Offset,
    /// Where the next one starts.
    end: Offset,
    size: u64,
    index_entries: u64,
    first_append_at: Option<Timestamp>,
    last_append_at: Option<Timestamp>,
}

/// What becomes of a batch.
enum Fate {
    Stays,
    /// These bytes take its place.
    Becomes(Vec<u8>),
    Goes,
}

impl Fate {
    /// Whether there are records of a batch with this header afterwards.
    fn leaves_records(&self, header: &BatchHeader) -> bool {
        match self {
            Fate::Stays => header.record_count > 0,
            Fate::Becomes(bytes) => RecordBatch::peek(bytes).is_ok_and(|batch| batch.record_count() > 0),
            Fate::Goes => false,
        }
    }
}

impl Verdicts {
    /// Has those go of the records asked for whose keys have a later one.
    fn hear(&mut self, rules: &Rules) {
        let mut places = self.asked.drain(..);
        rules.survivors.answer(&mut self.questions, |is_replaced| {
            let place = places.next().expect("an answer to each question");
            self.records[place].stays &= !is_replaced;
        });
    }
}

impl Pass<'_> {
    /// Runs the pass; `manifest` follows what is on the disk.
    ///
    /// # Errors
    /// [`Error::Damaged`]: a batch cannot be read, so the log cannot be compacted. [`Error::Offline`]: given up. The disk's.
    pub(super) async fn run(&mut self, manifest: &mut Manifest) -> Result<(), Error> {
        let rules = self.rules().await?;
        let sources = self.sources(rules.end);
        if self.job.tombstones_only {
            for source in due(sources, manifest, rules.now) {
                self.compact_group(&[source], &rules, manifest).await?;
            }
            return Ok(());
        }
        let mut rest = &sources[..];
        while !rest.is_empty() {
            let count = self.compact_group(rest, &rules, manifest).await?;
            rest = &rest[count..];
        }
        if manifest.first_dirty != rules.end {
            manifest.first_dirty = rules.end;
            self.log.touch().await?;
            self.log.write_manifest(manifest).await?;
        }
        Ok(())
    }

    /// Maps the dirty part, as far as memory goes.
    async fn rules(&mut self) -> Result<Rules, Error> {
        let io = self.log.io();
        let dirty = self.job.end.distance_from(self.job.first_dirty);
        let offsets_max = dirty.and_then(|dirty| usize::try_from(dirty).ok()).unwrap_or(usize::MAX);
        let mut survivors = Survivors::new(io.random_bytes16(), self.map_bytes_max, offsets_max);
        let end = if self.job.tombstones_only { self.job.end } else { self.map_dirty(&mut survivors).await? };
        self.done.keys = survivors.keys() as u64;
        self.done.key_bytes_max = survivors.bytes() as u64;
        let producers: BTreeMap<i64, Offset> = {
            let state = self.log.state.borrow();
            let last = |(id, producer): (heddle_record::ProducerId, &crate::producer_state::Producer)| {
                producer.batches.last().map(|batch| (id.get(), batch.last_offset))
            };
            state.producers.iter().filter_map(last).collect()
        };
        let delete_retention = self.log.config.borrow().delete_retention;
        let delete_retention = i64::try_from(delete_retention.as_millis()).unwrap_or(i64::MAX);
        let (first_dirty, now) = (self.job.first_dirty, Timestamp::new(io.wall_clock()));
        Ok(Rules { survivors, first_dirty, end, now, delete_retention, producers })
    }

    /// Notes the keys of the dirty part. Returns where that ends, which is earlier where memory does.
    async fn map_dirty(&mut self, survivors: &mut Survivors) -> Result<Offset, Error> {
        let first_dirty = self.job.first_dirty;
        for source in self.sources(self.job.end).into_iter().filter(|source| source.end > first_dirty) {
            let mut scan = self.scan(source).await?;
            while let Some(batch) = next_batch(&mut scan, self.log, source).await? {
                self.pass_on(batch.len()).await?;
                let header = batch.header();
                if header.last_offset() < first_dirty || header.attributes.is_control() || header.record_count == 0 {
                    continue;
                }
                let body = self.body(&batch).await?;
                let mut keys = Keys::new(&batch, &body);
                while !keys.is_done {
                    let noted = keys.note(RECORDS_PER_LOOK, first_dirty, survivors);
                    match noted.map_err(|error| self.damage(source, header, error))? {
                        Ok(()) => self.pace.breathe().await,
                        Err(FullAt(offset)) => return Ok(offset),
                    }
                }
            }
        }
        Ok(survivors.settle().err().map_or(self.job.end, |FullAt(offset)| offset))
    }

    /// The segments that start below `end` and may be rewritten.
    fn sources(&self, end: Offset) -> Vec<Source> {
        let state = self.log.state.borrow();
        let limit = self.job.end.min(state.vouched_for);
        let pairs = state.segments.windows(2);
        let some = pairs.take_while(|pair| pair[0].base_offset < end && pair[1].base_offset <= limit);
        some.map(|pair| Source::of(&pair[0], pair[1].base_offset)).collect()
    }

    async fn scan(&self, source: Source) -> Result<BatchScan, Error> {
        let file = self.log.open_file(source.base, SegmentFile::Log, OpenOptions::read_write()).await?;
        let (any, ascending) = (LeaderEpoch::NONE, Continuity::Ascending);
        Ok(BatchScan::new(file, source.size, 0, source.base, any, ascending).reading_ahead().governed(&self.log.core))
    }

    /// Writes the first of these segments again, if anything of it goes, as one with those behind it that fit. Returns how
    /// many that were.
    async fn compact_group(
        &mut self,
        sources: &[Source],
        rules: &Rules,
        manifest: &mut Manifest,
    ) -> Result<usize, Error> {
        let mut target = Target::new(sources[0].base, manifest.generation + 1);
        let filled = match self.fill(&mut target, sources, rules).await {
            Ok(count) if target.output.is_some() => {
                self.finish(target, &sources[..count], rules, manifest).await.map(|()| count)
            }
            other => other,
        };
        match &filled {
            Ok(_) => self.log.state.borrow_mut().rewriting = false,
            Err(_) => self.abandon(sources[0].base, manifest.generation + 1).await,
        }
        filled
    }

    async fn fill(&mut self, target: &mut Target, sources: &[Source], rules: &Rules) -> Result<usize, Error> {
        let mut last = None;
        let mut count = 0;
        for (number, source) in sources.iter().enumerate() {
            if number > 0 && !self.joins(target, source) {
                break;
            }
            if number > 0 && target.output.is_none() {
                self.begin_output(target, &sources[..number], sources[number - 1].size).await?;
            }
            count += 1;
            let mut scan = self.scan(*source).await?;
            let mut position = 0;
            while let Some(batch) = next_batch(&mut scan, self.log, *source).await? {
                self.pass_on(batch.len()).await?;
                let fate = self.judge(*source, &batch, rules).await?;
                if target.output.is_none() && !matches!(fate, Fate::Stays) {
                    self.begin_output(target, &sources[..count], position).await?;
                }
                match fate {
                    Fate::Stays => target.put(batch.bytes(), self.index_interval()),
                    Fate::Becomes(bytes) => {
                        target.put(&bytes, self.index_interval());
                        if bytes.capacity() > self.memory.capacity() {
                            self.memory = bytes;
                        }
                    }
                    Fate::Goes => {}
                }
                self.write_out(target, CHUNK_BYTES).await?;
                position += batch.len() as u64;
                last = Some(*batch.header());
            }
        }
        if let Some(last) = last.filter(|_| target.size == 0) {
            // A segment is never empty: what was there is told by its last batch, without records.
            target.put(&BatchBuilder::emptied(&last), self.index_interval());
        }
        Ok(count)
    }

    /// Whether a segment goes into the one that is being made: it fits, and that is written anyway, or both are of a size,
    /// so that no byte is written again too often for the sake of fewer files.
    fn joins(&self, target: &Target, source: &Source) -> bool {
        let config = self.log.config.borrow();
        let reach = source.end.distance_from(target.base).expect("offsets of a log are not negative");
        let entries = u64::from(target.index.offset_entries()) + source.index_entries;
        target.size + source.size <= u64::from(config.segment_bytes)
            && entries * crate::index::OFFSET_ENTRY_LEN as u64 <= u64::from(config.segment_index_bytes)
            && reach <= i64::from(i32::MAX)
            && (target.output.is_some() || source.size * 2 >= target.size)
            && !self.job.tombstones_only
    }

    fn index_interval(&self) -> u32 {
        self.log.config.borrow().index_interval_bytes
    }

    /// What becomes of a batch.
    async fn judge(&mut self, source: Source, batch: &RecordBatch<'_>, rules: &Rules) -> Result<Fate, Error> {
        let header = batch.header();
        if header.attributes.is_control() {
            return self.judge_marker(batch, rules).await;
        }
        let fate = self.judge_data(source, batch, rules).await?;
        if header.attributes.is_transactional() && fate.leaves_records(header) {
            self.transactions.insert(header.producer_id.get());
        }
        Ok(fate)
    }

    /// The marker that ends a transaction goes a while after the last data of the transaction has gone (case 51).
    async fn judge_marker(&mut self, batch: &RecordBatch<'_>, rules: &Rules) -> Result<Fate, Error> {
        let header = batch.header();
        let has_data = self.transactions.remove(&header.producer_id.get());
        // A pass over a few segments has not seen the data before them.
        let knows_data = !self.job.tombstones_only;
        match rules.marker(header, knows_data && !has_data) {
            Marker::Stays => Ok(Fate::Stays),
            Marker::Goes => Ok(emptied(header, rules)),
            Marker::GoesAfter(horizon) => {
                let mut builder = BatchBuilder::compact(header, Some(horizon));
                let body = self.body(batch).await?;
                for record in batch.records_in(&body) {
                    let record =
                        record.map_err(|error| self.log.compaction_damage(header.base_offset, error.to_string()))?;
                    builder.keep(&record).expect("there is as much as there was");
                }
                let mut bytes = Vec::new();
                let built = builder.finish(&mut bytes);
                built.map_err(|error| self.log.compaction_damage(header.base_offset, error.to_string()))?;
                Ok(Fate::Becomes(bytes))
            }
        }
    }

    async fn judge_data(&mut self, source: Source, batch: &RecordBatch<'_>, rules: &Rules) -> Result<Fate, Error> {
        let header = batch.header();
        let whole = rules.whole(header);
        if whole.is_some() && header.base_offset < rules.end {
            self.count(header.record_count, if whole == Some(Whole::Goes) { header.record_count } else { 0 });
        }
        match whole {
            Some(Whole::Stays) => return Ok(Fate::Stays),
            Some(Whole::Goes) => return Ok(emptied(header, rules)),
            None if header.record_count > 0 => {}
            None if rules.keeps_empty(header) => return Ok(Fate::Stays),
            None => return Ok(Fate::Goes),
        }
        if rules.bits_tell(header)
            && let Some(bytes) = self.thinned(source, batch, rules.survivors.are_last_from(header.base_offset)).await?
        {
            let kept = rules.survivors.last_between(header.base_offset, header.last_offset());
            let kept = i32::try_from(kept).expect("no more than the batch has");
            self.count(header.record_count, header.record_count - kept);
            return Ok(Fate::Becomes(bytes));
        }
        let body = self.body(batch).await?;
        let mut verdicts = std::mem::take(&mut self.verdicts);
        let fate = match self.judge_records(source, batch, &body, rules, &mut verdicts).await {
            Ok(()) => self.fate(source, batch, &body, rules, &verdicts.records).await,
            Err(error) => Err(error),
        };
        self.verdicts = verdicts;
        fate
    }

    async fn judge_records(
        &self,
        source: Source,
        batch: &RecordBatch<'_>,
        body: &[u8],
        rules: &Rules,
        verdicts: &mut Verdicts,
    ) -> Result<(), Error> {
        let header = batch.header();
        verdicts.records.clear();
        let mut keys = Keys::new(batch, body);
        while !keys.is_done {
            let judged = keys.judge(RECORDS_PER_LOOK, rules, verdicts);
            judged.map_err(|error| self.damage(source, header, error))?;
            self.pace.breathe().await;
        }
        verdicts.hear(rules);
        Ok(())
    }

    /// What becomes of a batch with these verdicts on its records.
    async fn fate(
        &mut self,
        source: Source,
        batch: &RecordBatch<'_>,
        body: &[u8],
        rules: &Rules,
        verdicts: &[Verdict],
    ) -> Result<Fate, Error> {
        let header = batch.header();
        let kept = verdicts.iter().filter(|verdict| verdict.stays);
        let (count, has_tombstone) =
            kept.fold((0, false), |(count, any), verdict| (count + 1, any || verdict.is_tombstone));
        self.count(header.record_count, header.record_count - count);
        let horizon = rules.horizon(header, has_tombstone);
        if count == 0 {
            return Ok(emptied(header, rules));
        } else if count == header.record_count && horizon == header.delete_horizon() {
            return Ok(Fate::Stays);
        }
        if horizon == header.delete_horizon()
            && let Some(bytes) = self.thinned(source, batch, verdicts.iter().map(|verdict| verdict.stays)).await?
        {
            return Ok(Fate::Becomes(bytes));
        }
        let mut builder = BatchBuilder::compact(header, horizon);
        let kept = batch.records_in(body).zip(verdicts).filter(|(_, verdict)| verdict.stays);
        for (number, (record, _)) in kept.enumerate() {
            let record = record.expect("it was read a moment ago");
            builder.keep(&record).expect("less is kept than there was");
            if number % RECORDS_PER_LOOK == RECORDS_PER_LOOK - 1 {
                self.pace.breathe().await;
            }
        }
        self.built(builder).await.map(Fate::Becomes)
    }

    /// A batch with those of its records that stay, as they lie; `None` if it must be written anew.
    async fn thinned(
        &mut self,
        source: Source,
        batch: &RecordBatch<'_>,
        stays: impl Iterator<Item = bool>,
    ) -> Result<Option<Vec<u8>>, Error> {
        let header = batch.header();
        if batch.compression() != Some(Compression::None) {
            return Ok(None);
        }
        let mut thinned = ThinnedBatch::new(header, std::mem::take(&mut self.memory));
        let mut records = batch.spans_in(batch.body()).zip(stays);
        loop {
            let looked_at = keep_some(&mut thinned, records.by_ref().take(RECORDS_PER_LOOK));
            match looked_at.map_err(|error| self.damage(source, header, error))? {
                RECORDS_PER_LOOK => self.pace.breathe().await,
                _ => return Ok(thinned.finish()),
            }
        }
    }

    fn count(&mut self, records: i32, removed: i32) {
        self.done.records += u64::try_from(records).unwrap_or(0);
        self.done.records_removed += u64::try_from(removed).unwrap_or(0);
    }

    /// The records of a batch in the open.
    async fn body<'b>(&self, batch: &RecordBatch<'b>) -> Result<Cow<'b, [u8]>, Error> {
        let body = self.log.core.open_batch(batch).await?;
        body.map_err(|error| self.log.compaction_damage(batch.base_offset(), error.to_string()))
    }

    async fn built(&self, builder: BatchBuilder) -> Result<Vec<u8>, Error> {
        let finish = |builder: BatchBuilder| {
            let mut bytes = Vec::new();
            builder.finish(&mut bytes).map(|_| bytes)
        };
        let built = match builder.is_compressed() && builder.size_uncompressed() > COMPRESSED_HERE_MAX {
            true => self.log.core.elsewhere(move || finish(builder)).await?,
            false => finish(builder),
        };
        built.map_err(|error| self.log.compaction_damage(Offset::NONE, error.to_string()))
    }

    /// Accounts for bytes that were read, and gives up if that is wanted.
    async fn pass_on(&mut self, bytes: usize) -> Result<(), Error> {
        self.done.bytes_read += bytes as u64;
        self.pace.spend(bytes as u64).await;
        if (self.is_stopped)() || self.log.state.borrow().deleted {
            return Err(Error::Offline("compaction was stopped".into()));
        }
        self.log.offline().map_or(Ok(()), Err)
    }

    fn damage(&self, source: Source, header: &BatchHeader, error: RecordError) -> Error {
        let reason = format!("segment {}, batch at offset {}: {error}", source.base, header.base_offset);
        self.log.compaction_damage(header.base_offset, reason)
    }
}

/// What is written.
impl Pass<'_> {
    /// Makes the file, and copies what stays as it is: all of the segments before the last of `begun`, and of that the
    /// first `upto` bytes.
    async fn begin_output(&mut self, target: &mut Target, begun: &[Source], upto: u64) -> Result<(), Error> {
        self.log.check_room()?;
        self.log.touch().await?;
        self.log.state.borrow_mut().rewriting = true;
        let path = self.log.cleaned_path(target.base, target.generation);
        let file = self.log.io().open(&path, OpenOptions::create().truncate()).await?;
        target.output = Some(Output::new(self.log.io(), file));
        let (last, whole) = begun.split_last().expect("a segment was begun");
        let lengths = whole.iter().map(|source| (source.base, source.size)).chain([(last.base, upto)]);
        for (base, len) in lengths {
            self.copy(target, base, len).await?;
        }
        Ok(())
    }

    async fn copy(&mut self, target: &mut Target, base: Offset, len: u64) -> Result<(), Error> {
        let file = self.log.open_file(base, SegmentFile::Log, OpenOptions::read_write()).await?;
        let mut position = 0;
        while position < len {
            let wanted = usize::try_from(len - position).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            let bytes = self.log.io().read_lease(&file, position, wanted).await?;
            if bytes.len() < wanted {
                return Err(self.log.compaction_damage(base, "the file ends".to_owned()));
            }
            self.pass_on(wanted).await?;
            target.output.as_mut().expect("it was begun").gather(&bytes);
            self.write_out(target, CHUNK_BYTES).await?;
            position += wanted as u64;
        }
        Ok(())
    }

    /// Writes what has gathered if that is `least` bytes or more.
    async fn write_out(&mut self, target: &mut Target, least: usize) -> Result<(), Error> {
        if target.size > SEGMENT_BYTES_LIMIT {
            return Err(self.log.compaction_damage(target.base, "the segment would become too large".to_owned()));
        }
        let Some(output) = target.output.as_mut().filter(|output| output.waiting() >= least.max(1)) else {
            return Ok(());
        };
        let len = output.write(self.log.io()).await?;
        self.done.bytes_written += len;
        self.pace.spend(len).await;
        Ok(())
    }

    /// Flushes the file and has it take its place.
    async fn finish(
        &mut self,
        mut target: Target,
        group: &[Source],
        rules: &Rules,
        manifest: &mut Manifest,
    ) -> Result<(), Error> {
        self.write_out(&mut target, 0).await?;
        let output = target.output.take().expect("something was written");
        let written = output.complete(self.log.io()).await?;
        assert_eq!(written, target.size, "what is indexed was written");
        let (first, last) = (&group[0], &group[group.len() - 1]);
        let put = CompactedSegment {
            base: first.base,
            end: last.end,
            size: target.size,
            generation: target.generation,
            horizon: target.horizon,
        };
        let mut next = manifest.clone();
        next.put(put, self.log.state.borrow().log_start);
        if last.end >= rules.end && !self.job.tombstones_only {
            next.first_dirty = rules.end;
        }
        let mut index = target.index;
        index.seal();
        let segment = Segment {
            size: target.size,
            index,
            first_append_at: first.first_append_at,
            last_append_at: last.last_append_at,
            on_disk: true,
            entry_synced: true,
            ..Segment::new(first.base)
        };
        self.log.replace_segments(segment, put, &next).await?;
        *manifest = next;
        self.done.segments_removed += group.len() as u64 - 1;
        Ok(())
    }

    /// Leaves nothing behind of a segment that was not finished.
    async fn abandon(&self, base: Offset, generation: u64) {
        if self.log.offline().is_some() {
            // The next start looks at the log, and removes it or brings it to its end.
            return;
        }
        let was_rewriting = std::mem::take(&mut self.log.state.borrow_mut().rewriting);
        if !was_rewriting {
            return;
        }
        let path: PathBuf = self.log.cleaned_path(base, generation);
        if let Err(error) = self.log.core.device.recycle(self.log.io(), &path, None).await {
            tracing::warn!(path = %path.display(), %error, "what is left of a compaction could not be removed");
        }
    }
}

impl Source {
    fn of(segment: &Segment, end: Offset) -> Source {
        Source {
            base: segment.base_offset,
            end,
            size: segment.size,
            index_entries: u64::from(segment.index.offset_entries()),
            first_append_at: segment.first_append_at,
            last_append_at: segment.last_append_at,
        }
    }
}

impl LogInner {
    /// What is there cannot be compacted.
    fn compaction_damage(&self, base: Offset, reason: String) -> Error {
        Error::Damaged { path: self.path.clone(), position: 0, offset: base, reason }
    }
}

/// The next batch of a segment, all of it checked: what is damaged is not written again under a new checksum.
async fn next_batch<'s>(
    scan: &'s mut BatchScan,
    log: &LogInner,
    source: Source,
) -> Result<Option<RecordBatch<'s>>, Error> {
    let (position, offset) = (scan.position(), scan.next_offset());
    match scan.next(log.io()).await? {
        Scanned::Batch(_, batch) => Ok(Some(batch)),
        Scanned::End => Ok(None),
        Scanned::Misfit(reason) => {
            let path = log.path.join(SegmentFile::Log.name(source.base));
            let found = Error::Damaged { path, position, offset, reason };
            log.note_damage(source.base, Err(found))
        }
    }
}

/// The keys of a batch, looked at a few at a time so that others have their turn. What is done with each is done in plain
/// functions: in the future of a pass all that they hold would lie in memory.
struct Keys<'a> {
    header: BatchHeader,
    records: RecordKeys<'a>,
    /// The place of the next record in the batch, and the smallest offset that it may have.
    number: i32,
    next: Offset,
    is_done: bool,
}

impl<'a> Keys<'a> {
    fn new(batch: &RecordBatch<'_>, body: &'a [u8]) -> Keys<'a> {
        let header = *batch.header();
        Keys { header, records: batch.keys_in(body), number: 0, next: header.base_offset, is_done: false }
    }

    /// The next record and its offset. Whoever asks until there is none has seen that nothing follows the last.
    #[inline(always)]
    fn step(&mut self) -> Result<Option<(Offset, RecordKey<'a>)>, RecordError> {
        let Some(record) = self.records.next().transpose()? else {
            self.is_done = true;
            return Ok(None);
        };
        let offset = self.header.offset_at(record.offset_delta);
        if offset < self.next || offset > self.header.last_offset() {
            return Err(RecordError::OffsetDelta { index: self.number, delta: record.offset_delta });
        }
        self.number += 1;
        self.next = offset.next();
        Ok(Some((offset, record)))
    }

    /// Notes the next records, as far as memory goes.
    fn note(
        &mut self,
        count: usize,
        first_dirty: Offset,
        survivors: &mut Survivors,
    ) -> Result<Result<(), FullAt>, RecordError> {
        for _ in 0..count {
            let Some((offset, record)) = self.step()? else { break };
            let Some(key) = record.key.filter(|_| offset >= first_dirty) else { continue };
            if let Err(full) = survivors.note(key, offset, record.is_tombstone) {
                return Ok(Err(full));
            }
        }
        Ok(Ok(()))
    }

    /// Says of the next records whether they stay, as far as that is known without the answers that are still due.
    fn judge(&mut self, count: usize, rules: &Rules, verdicts: &mut Verdicts) -> Result<(), RecordError> {
        for _ in 0..count {
            let Some((offset, record)) = self.step()? else { break };
            let is_tombstone = record.is_tombstone && offset < rules.end;
            let mut answers_are_due = false;
            let is_last = match record.key {
                _ if offset >= rules.end => true,
                // A compacted topic takes none without a key; one from before it was compacted says nothing that could last.
                None => false,
                Some(_) if offset >= rules.first_dirty => rules.survivors.is_last(offset),
                Some(key) => {
                    verdicts.asked.push(verdicts.records.len());
                    answers_are_due = rules.survivors.ask(&mut verdicts.questions, key);
                    true
                }
            };
            let stays = is_last && rules.keeps_last(&self.header, offset, is_tombstone);
            verdicts.records.push(Verdict { stays, is_tombstone });
            if answers_are_due {
                verdicts.hear(rules);
            }
        }
        Ok(())
    }
}

/// Keeps those of the records that stay. Returns how many were looked at.
fn keep_some<'a>(
    thinned: &mut ThinnedBatch,
    records: impl Iterator<Item = (Result<&'a [u8], RecordError>, bool)>,
) -> Result<usize, RecordError> {
    let mut count = 0;
    for (record, stays) in records {
        let record = record?;
        if stays {
            thinned.keep(record)?;
        }
        count += 1;
    }
    Ok(count)
}

/// What becomes of a batch of which no record stays.
fn emptied(header: &BatchHeader, rules: &Rules) -> Fate {
    if rules.keeps_empty(header) { Fate::Becomes(BatchBuilder::emptied(header).to_vec()) } else { Fate::Goes }
}

/// The segments with tombstones whose time has come.
fn due(sources: Vec<Source>, manifest: &Manifest, now: Timestamp) -> Vec<Source> {
    let is_due = |put: &&super::manifest::CompactedSegment| put.horizon.is_some_and(|horizon| horizon <= now);
    let bases: Vec<Offset> = manifest.segments.iter().filter(is_due).map(|put| put.base).collect();
    sources.into_iter().filter(|source| bases.contains(&source.base)).collect()
}
